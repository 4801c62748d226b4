//! One module for each command. A command returns how it ends, or a [`Refusal`]: it prints its
//! answer and nothing else.

mod bundle_artifacts;
mod bundles;
mod config;
mod doctor;
pub(crate) mod documentation;
mod export;
mod images;
mod import;
mod inspect;
mod inventory;
mod list_images;
mod making;
mod release;
mod report;
mod run;
mod status;
mod verify;
mod wait;

use std::io;
use std::path::{Path, PathBuf};

use node::place::{self, Place};
use node::runtime::{self, Containerd};
use node::settings::Settings;
use serde::Serialize;

use crate::cli::{Common, OutputFormat, Task};
use crate::config::{Config, Mistakes};
use crate::exit::{Exit, Refusal};
use crate::output::{self, Page};

/// Everything that a command is called with beside its own arguments.
struct Call {
    settings: Settings,
    format: OutputFormat,
    /// Where a bundle or an inventory goes.
    file: Option<PathBuf>,
    /// Whether text says more, or nothing but errors.
    is_verbose: bool,
    is_quiet: bool,
}

/// Carries out a task.
///
/// # Errors
///
/// Why it came to nothing.
pub(crate) async fn run(task: Task, common: Common, config: Config) -> Result<Exit, Refusal> {
    let call = Call {
        settings: config.settings.clone(),
        format: common.form(),
        file: common.file().map(Path::to_owned),
        is_verbose: common.verbose > 0,
        is_quiet: common.quiet,
    };
    match task {
        Task::Run(_) => run::run(call.settings, Box::new(move || configure(&common, &task))).await,
        Task::Import(args) => import::run(&args, &call).await,
        Task::Inspect(args) => inspect::run(&args, &call).await,
        Task::ListImages(args) => list_images::run(&args, &call).await,
        Task::Verify(args) => verify::run(&args, &call).await,
        Task::BundleArtifacts(args) => bundle_artifacts::run(&args, &call).await,
        Task::Export(args) => export::run(&args, &call).await,
        Task::Inventory => inventory::run(&call).await,
        Task::Bundle(args) => bundles::run(args, &call).await,
        Task::Status(args) => status::run(&args, &call).await,
        Task::Images(args) => images::run(&args, &call).await,
        Task::Report => report::run(&call).await,
        Task::Wait(args) => wait::run(&args, &call).await,
        Task::Doctor => doctor::run(&call).await,
        Task::Release(args) => release::run(&args, &call).await,
        Task::Config(args) => config::run(&args, &config, &call),
    }
}

/// Reads the configuration as it is now.
///
/// # Errors
///
/// Every mistake in it.
pub(crate) fn configure(common: &Common, task: &Task) -> Result<Config, Mistakes> {
    crate::config::load(common.config.as_deref(), task.flags(common), std::env::vars_os())
}

/// The end of a command whose sources have mistakes. The parser of a document may need several
/// lines for one.
fn mistakes(needs: &::verify::Needs) -> Refusal {
    let lines = needs.mistakes.iter().flat_map(|mistake| mistake.lines());
    Refusal::of_many(Exit::Usage, lines.map(str::to_owned).collect())
}

/// Whether a socket is there that this user may not use, by trying it. Root may use all.
fn is_denied(socket: &Path) -> bool {
    let is_root = rustix::process::geteuid().is_root();
    let tried = || std::os::unix::net::UnixStream::connect(socket);
    !is_root && tried().is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

/// The sentence for a command that asks on a socket of root's.
fn only_root(socket: &Path, command: &str) -> String {
    let socket = socket.display();
    format!("this is not root, and only root may use {socket}: sudo airgapd {command}")
}

impl Call {
    /// This node: which containerd its images go to, by the evidence on it.
    fn node(&self) -> Result<Place, place::Ambiguous> {
        place::decide(&place::probe(Path::new("/")), &self.settings)
    }

    /// The daemon's socket.
    fn control_socket(&self) -> PathBuf {
        node::control::socket_in(&self.settings.runtime_dir)
    }

    /// Refuses to go on with a command that asks on these sockets, where another user than root
    /// must not use them: what it would find out otherwise is wrong.
    ///
    /// # Errors
    ///
    /// How to end, and the command for root.
    fn allowed(&self, command: &str, exit: Exit, sockets: &[&Path]) -> Result<(), Refusal> {
        match sockets.iter().find(|socket| is_denied(socket)) {
            None => Ok(()),
            Some(socket) => Err(Refusal::new(exit, only_root(socket, command))),
        }
    }

    /// Connects to this node's containerd.
    ///
    /// # Errors
    ///
    /// How to end, and why in one line, with the socket and what speaks for it where it was found
    /// by looking around.
    async fn connect(&self, node: &Place) -> Result<Containerd, Refusal> {
        let connected = runtime::connect(&node.socket, &self.settings).await;
        let runtime = connected.map_err(|error| {
            let exit = match error.is_unreachable() {
                true => Exit::Unreachable,
                false => Exit::Failed,
            };
            // The message has the socket; where it was found by looking around, the traces that led
            // there follow.
            let found = match self.settings.address.is_none() && !node.because.is_empty() {
                true => format!(" (that of {}: {})", node.distribution, node.because.join(", ")),
                false => String::new(),
            };
            Refusal::new(exit, format!("{}{found}", ::basics::chain(&error)))
        })?;
        runtime
            .warning
            .iter()
            .for_each(|warning| tracing::warn!("{warning}"));
        Ok(runtime)
    }

    /// Answers in the form that was asked for.
    fn answer(&self, document: &impl Serialize, text: impl FnOnce() -> Page) -> io::Result<()> {
        match self.format {
            OutputFormat::Json => output::json(document),
            OutputFormat::Text => output::text(&text()),
        }
    }
}
