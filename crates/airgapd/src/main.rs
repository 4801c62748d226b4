//! airgapd: imports image bundles into containerd on airgapped Kubernetes nodes.

mod cli;
mod commands;
mod config;
mod folder;
mod ledger;
mod node;
mod output;
mod progress;
mod runtime;
mod sys;

use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};
use crate::commands::Exit;
use crate::config::{Config, Given};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let config = match config::load(&cli.common, more_flags(&cli.command), std::env::vars_os()) {
        Ok(config) => config,
        Err(mistakes) => {
            let _ = output::complain(&mistakes.to_string());
            return Exit::Usage.into();
        }
    };
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    match run(cli, config) {
        Ok(exit) => exit.into(),
        Err(error) => {
            tracing::error!("{error:#}");
            Exit::Failed.into()
        }
    }
}

/// Flags of single commands that stand for configuration.
fn more_flags(command: &Command) -> Vec<Given> {
    match command {
        Command::Run(platform) => platform.given(),
        Command::Import(args) => args.platform.given(),
        Command::Inspect(args) => args.platform.given(),
        Command::Release(_) | Command::Config(_) => Vec::new(),
    }
}

fn run(cli: Cli, config: Config) -> anyhow::Result<Exit> {
    let format = cli.common.output;
    if let Command::Config(args) = &cli.command {
        return commands::config::run(args, &config, format);
    }
    let settings = config.settings;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        match cli.command {
            Command::Inspect(args) => commands::inspect::run(&args, &settings, format).await,
            Command::Import(args) => {
                commands::import::run(
                    &args,
                    &settings,
                    &node::decide(&node::probe(Path::new("/")), &settings)?,
                    format,
                )
                .await
            }
            Command::Release(args) => {
                commands::release::run(
                    &args,
                    &settings,
                    &node::decide(&node::probe(Path::new("/")), &settings)?,
                    format,
                )
                .await
            }
            Command::Run(_) | Command::Config(_) => unreachable!(),
        }
    })
}
