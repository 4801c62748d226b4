//! airgapd: imports image bundles into containerd on airgapped Kubernetes nodes.
//!
//! This is the program around the libraries: command line and configuration ([`cli`], [`config`]), which containerd it
//! is ([`node`], [`runtime`]), the commands, and the daemon with what it watches, remembers and says.

mod checksum;
mod cli;
mod coexistence;
mod commands;
mod config;
mod daemon;
mod desired;
mod folder;
mod healing;
mod ledger;
mod lists;
mod log;
mod needs;
mod node;
mod output;
mod progress;
mod roster;
mod runtime;
mod sys;
mod systemd;
mod trust;
mod verify;
mod watch;
mod withdraw;

use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};
use crate::commands::Exit;
use crate::config::{Common, Config, Given, Settings};

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Some(exit) = commands::documentation::run(&cli.command) {
        return exit.into();
    }
    let config = match config::load(&cli.common, flags_of(&cli.command), std::env::vars_os()) {
        Ok(config) => config,
        Err(mistakes) => {
            let _ = output::complain(&mistakes.to_string());
            let _ = output::failure(cli.common.output, &mistakes.to_string());
            return Exit::Usage.into();
        }
    };
    log::init(config.settings.log);
    let format = cli.common.output;
    match execute(cli, config) {
        Ok(exit) => exit.into(),
        Err(error) => {
            tracing::error!("{error:#}");
            let _ = output::failure(format, &format!("{error:#}"));
            Exit::Failed.into()
        }
    }
}

/// Flags of single commands that stand for configuration.
fn flags_of(command: &Command) -> Vec<Given> {
    match command {
        Command::Run(platform) => platform.given(),
        Command::Import(args) => args.given(),
        Command::Inspect(args) => args.given(),
        Command::Verify(args) => args.platform.given(),
        Command::Release(_)
        | Command::Config(_)
        | Command::ListImages(_)
        | Command::Completions(_)
        | Command::Man(_) => Vec::new(),
    }
}

fn execute(cli: Cli, config: Config) -> anyhow::Result<Exit> {
    let format = cli.common.output;
    match cli.command {
        Command::Config(args) => {
            let node = node::decide(&node::probe(Path::new("/")), &config.settings);
            commands::config::run(&args, &config, node, format)
        }
        command => block_on(command, config.settings, &cli.common),
    }
}

/// Two threads are enough: the bytes are moved by containerd and hashed there.
fn block_on(command: Command, settings: Settings, common: &Common) -> anyhow::Result<Exit> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let format = common.output;
    let (common, flags) = (common.clone(), flags_of(&command));
    let configuration = Box::new(move || config::load(&common, flags.clone(), std::env::vars_os()));
    let exit = runtime.block_on(async {
        match command {
            Command::Inspect(args) => commands::inspect::run(&args, &settings, format).await,
            Command::Import(args) => {
                commands::import::run(&args, &settings, &this_node(&settings)?, format).await
            }
            Command::Release(args) => {
                commands::release::run(&args, &settings, &this_node(&settings)?, format).await
            }
            Command::ListImages(args) => commands::list_images::run(&args, format).await,
            Command::Verify(args) => {
                commands::verify::run(&args, &settings, || this_node(&settings), format).await
            }
            Command::Run(_) => commands::run::run(settings, configuration).await,
            Command::Config(_) | Command::Completions(_) | Command::Man(_) => {
                unreachable!("it needs no runtime")
            }
        }
    });
    // A thread that reads a bundle may be at it for minutes, and nothing of it is needed any more.
    runtime.shutdown_background();
    exit
}

/// Which containerd this node's images go to, by what is installed on it.
fn this_node(settings: &Settings) -> anyhow::Result<node::Runtime> {
    Ok(node::decide(&node::probe(Path::new("/")), settings)?)
}
