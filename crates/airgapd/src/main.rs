//! airgapd: imports image bundles into containerd on airgapped Kubernetes nodes.
//!
//! This is the edge around the libraries: the command line and the configuration ([`cli`], [`config`]), the commands, and
//! everything that is shown ([`output`], [`log`]). The daemon is the library `node`.

mod cli;
mod commands;
mod config;
mod log;
mod output;
mod progress;

use std::path::Path;
use std::process::ExitCode;

use basics::Foreign;
use clap::Parser;
use node::place;
use node::settings::Settings;

use crate::cli::{Cli, Command};
use crate::commands::Exit;
use crate::config::{Common, Config, Given, OutputFormat};

fn main() -> ExitCode {
    node::sys::give_back_memory();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return not_understood(&printable(error)),
    };
    if let Some(exit) = commands::documentation::run(&cli.command) {
        return exit.into();
    }
    if let Some(file) = cli.common.file()
        && !cli.command.writes_a_file()
    {
        let file = basics::foreign::quoted(&file.to_string_lossy());
        let mistake = format!("--output {file}: this command answers as text or json");
        let _ = output::complain(&mistake);
        let _ = output::failure(cli.common.form(), &mistake);
        return Exit::Usage.into();
    }
    let config = match config::load(&cli.common, flags_of(&cli.command), std::env::vars_os()) {
        Ok(config) => config,
        Err(mistakes) => {
            let _ = output::complain(&mistakes.to_string());
            let _ = output::failure(cli.common.form(), &mistakes.to_string());
            return Exit::Usage.into();
        }
    };
    log::init(config.settings.log);
    config.tell_of_removed();
    let format = cli.common.form();
    match execute(cli, config) {
        Ok(exit) => exit.into(),
        Err(error) => {
            tracing::error!("{error:#}");
            let _ = output::failure(format, &format!("{error:#}"));
            Exit::Failed.into()
        }
    }
}

/// The same error for the command line as it may be printed: a shell makes arguments of file names, and clap quotes them.
fn printable(error: clap::Error) -> clap::Error {
    let shown = std::env::args_os().map(|argument| Foreign::file_name(&argument).to_string());
    Cli::try_parse_from(shown).err().unwrap_or(error)
}

/// Ends with what clap has to say: help that was asked for, or what is wrong with the command line. Who asked for a
/// document gets one.
fn not_understood(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    let text = error.render().to_string();
    if error.use_stderr() && config::asks_for_json(std::env::args_os()) {
        let reason = text.split("\n\n").next().unwrap_or_default();
        let reason = reason.strip_prefix("error: ").unwrap_or(reason);
        let _ = output::failure(OutputFormat::Json, reason);
    }
    match error.use_stderr() {
        true => Exit::Usage.into(),
        false => Exit::Done.into(),
    }
}

/// Flags of single commands that stand for configuration.
fn flags_of(command: &Command) -> Vec<Given> {
    match command {
        Command::Run(args) => args.given(),
        Command::Import(args) => args.given(),
        Command::Inspect(args) => args.given(),
        Command::Verify(args) => args.platform.given(),
        Command::Export(args) => args.platform.given(),
        Command::Release(_)
        | Command::Config(_)
        | Command::ListImages(_)
        | Command::BundleArtifacts(_)
        | Command::Inventory
        | Command::Bundle(_)
        | Command::Completions(_)
        | Command::Man(_)
        | Command::Doctor
        | Command::Status(_)
        | Command::Wait(_) => Vec::new(),
    }
}

fn execute(cli: Cli, config: Config) -> anyhow::Result<Exit> {
    let format = cli.common.form();
    let file = cli.common.file().map(Path::to_owned);
    match cli.command {
        Command::Config(args) => {
            let node = place::decide(&place::probe(Path::new("/")), &config.settings);
            commands::config::run(&args, &config, node, format)
        }
        Command::BundleArtifacts(args) => {
            let run = commands::bundle_artifacts::run(args, file, config.settings.limits, format);
            block_on(run)
        }
        command => block_on(answer(command, config.settings, cli.common)),
    }
}

/// One thread is enough: what reads and hashes has threads of its own, and everything else waits for others. More of them
/// make nothing faster and each of them takes memory.
fn block_on(answer: impl Future<Output = anyhow::Result<Exit>>) -> anyhow::Result<Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let exit = runtime.block_on(answer);
    // A thread that reads a bundle may be at it for minutes, and nothing of it is needed any more.
    runtime.shutdown_background();
    exit
}

async fn answer(command: Command, settings: Settings, common: Common) -> anyhow::Result<Exit> {
    let (format, flags) = (common.form(), flags_of(&command));
    match command {
        Command::Inspect(args) => commands::inspect::run(&args, &settings, format).await,
        Command::Import(args) => {
            commands::import::run(&args, &settings, &this_node(&settings)?, format).await
        }
        Command::Release(args) => {
            commands::release::run(&args, &settings, &this_node(&settings)?, format).await
        }
        Command::Export(args) => {
            let file = common.file().map(Path::to_owned);
            commands::export::run(args, file, &settings, &this_node(&settings)?, format).await
        }
        Command::Bundle(args) => {
            let file = common.file().map(Path::to_owned);
            commands::bundles::run(args, file, &settings, format).await
        }
        Command::Inventory => {
            let file = common.file().map(Path::to_owned);
            commands::inventory::run(file, &settings, &this_node(&settings)?, format).await
        }
        Command::ListImages(args) => commands::list_images::run(&args, format).await,
        Command::Status(args) => {
            commands::status::run(&args, &settings, &this_node(&settings)?, format).await
        }
        Command::Doctor => commands::doctor::run(&settings, format).await,
        Command::Wait(args) => commands::wait::run(&args, &settings, format).await,
        Command::Verify(args) => {
            commands::verify::run(&args, &settings, || this_node(&settings), format).await
        }
        Command::Run(_) => {
            let configuration = move || config::load(&common, flags.clone(), std::env::vars_os());
            commands::run::run(settings, Box::new(configuration)).await
        }
        Command::Config(_) | Command::Completions(_) | Command::Man(_) | Command::BundleArtifacts(_) => {
            unreachable!("these are called by themselves")
        }
    }
}

/// Which containerd this node's images go to, by what is installed on it.
fn this_node(settings: &Settings) -> anyhow::Result<place::Place> {
    Ok(place::decide(&place::probe(Path::new("/")), settings)?)
}
