//! airgapd: imports image bundles into containerd on airgapped Kubernetes nodes.
//!
//! This crate is the edge around the libraries: the command line and the configuration ([`cli`],
//! [`config`]), the [`commands`], the answers ([`output`]) and the log ([`log`]). The daemon is the
//! library `node`.

mod cli;
mod commands;
mod config;
mod exit;
mod log;
mod output;
mod progress;

use std::process::ExitCode;

use basics::Foreign;

use crate::cli::{Cli, Command};
use crate::exit::{Exit, Refusal};

fn main() -> ExitCode {
    node::sys::give_back_memory();
    let cli = match cli::parse() {
        Ok(cli) => cli,
        Err(error) => return not_understood(&printable(error)).into(),
    };
    let format = cli.common.form();
    run(cli).unwrap_or_else(|refusal| refusal.tell(format)).into()
}

fn run(Cli { common, command }: Cli) -> Result<Exit, Refusal> {
    let (task, common, without_effect) = match command {
        Command::Documentation(command) => return commands::documentation::run(&command),
        Command::Task(task) => (task, common, Vec::new()),
        Command::Airgap(line) => line.translated(common),
    };
    if let Some(file) = common.file().filter(|_| !task.writes_a_file()) {
        let file = basics::foreign::quoted(&file.to_string_lossy());
        let mistake = format!("--output {file}: this command answers as text or json");
        return Err(Refusal::usage(mistake));
    }
    let config =
        commands::configure(&common, &task).map_err(|mistakes| Refusal::usage(mistakes.to_string()))?;
    log::init(config.settings.log);
    config.tell_of_removed();
    for flag in without_effect {
        tracing::warn!("{flag} has no effect: airgapd takes it for command lines of k0s");
    }
    block_on(commands::run(task, common, config))
}

/// Returns the same error, safe to print. Arguments may be file names from a shell's pattern, and
/// clap quotes them.
fn printable(error: clap::Error) -> clap::Error {
    let shown = std::env::args_os().map(|argument| Foreign::file_name(&argument).to_string());
    cli::parse_from(shown).err().unwrap_or(error)
}

/// Prints clap's help, or its error about the command line. A caller that requested JSON gets the
/// error as JSON too.
fn not_understood(error: &clap::Error) -> Exit {
    let _ = error.print();
    if !error.use_stderr() {
        return Exit::Done;
    }
    if cli::asks_for_json(std::env::args_os()) {
        let text = error.render().to_string();
        let reason = text.split("\n\n").next().unwrap_or_default();
        let reason = reason.strip_prefix("error: ").unwrap_or(reason);
        let _ = output::json(&exit::Failure { error: reason });
    }
    Exit::Usage
}

/// Runs a command on one thread. Readers and hashers have their own threads, and all other work
/// waits for other programs. More threads make nothing faster, and each of them takes memory.
fn block_on(answer: impl Future<Output = Result<Exit, Refusal>>) -> Result<Exit, Refusal> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let exit = runtime.block_on(answer);
    // A thread that reads a bundle may run for minutes, and its result is no longer needed.
    runtime.shutdown_background();
    exit
}
