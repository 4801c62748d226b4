//! One module for each command. A command returns its exit status or a [`Refusal`]. It prints its
//! answer and nothing else.

mod bundle_artifacts;
mod bundles;
mod config;
mod digests;
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
mod rollback;
mod run;
mod scrub;
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

/// The common input of all commands besides their own arguments.
struct Call {
    settings: Settings,
    format: OutputFormat,
    /// Path of the new bundle or inventory.
    file: Option<PathBuf>,
    /// True if text has more details.
    is_verbose: bool,
    /// True if text has errors only.
    is_quiet: bool,
}

/// Runs a task.
///
/// # Errors
///
/// Returns the reason of the failure.
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
        Task::Rollback(args) => rollback::run(&args, &call).await,
        Task::Scrub(_) => scrub::run(&call).await,
        Task::Config(args) => config::run(&args, &config, &call).await,
    }
}

/// Reads the current configuration.
///
/// # Errors
/// Returns all mistakes in it.
pub(crate) fn configure(common: &Common, task: &Task) -> Result<Config, Mistakes> {
    crate::config::load(common.config.as_deref(), task.flags(common), std::env::vars_os())
}

/// Returns the refusal of a command whose sources have mistakes. The parser of a document may use
/// several lines for one mistake.
fn mistakes(needs: &::verify::Needs) -> Refusal {
    let lines = needs.mistakes.iter().flat_map(|mistake| mistake.lines());
    Refusal::of_many(Exit::Usage, lines.map(str::to_owned).collect())
}

/// Returns true if the socket exists and this user may not use it. It tries to connect. Root may
/// use all sockets.
fn is_denied(socket: &Path) -> bool {
    let is_root = rustix::process::geteuid().is_root();
    let tried = || std::os::unix::net::UnixStream::connect(socket);
    !is_root && tried().is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

/// Returns the sentence for a command that uses a socket of root.
fn only_root(socket: &Path, command: &str) -> String {
    let socket = socket.display();
    format!("this is not root, and only root may use {socket}: sudo airgapd {command}")
}

impl Call {
    /// Decides which containerd the images of this node go to, by the evidence on the node.
    fn node(&self) -> Result<Place, place::Ambiguous> {
        place::decide(&place::probe(Path::new("/")), &self.settings)
    }

    /// Returns the path of the daemon's control socket.
    fn control_socket(&self) -> PathBuf {
        node::control::socket_in(&self.settings.runtime_dir)
    }

    /// Refuses a command that uses these sockets if the user is not root and may not use them. Its
    /// answer would be wrong otherwise.
    ///
    /// # Errors
    ///
    /// Returns the exit status, and the command for root.
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
    /// Returns the exit status and the reason in one line. It has the socket, and the evidence for
    /// it if airgapd detected the socket.
    async fn connect(&self, node: &Place) -> Result<Containerd, Refusal> {
        let connected = runtime::connect(&node.socket, &self.settings).await;
        let runtime = connected.map_err(|error| {
            let exit = match error.is_unreachable() {
                true => Exit::Unreachable,
                false => Exit::Failed,
            };
            // The message has the socket. If airgapd detected it, the evidence follows.
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

    /// Prints the answer in the requested form.
    fn answer(&self, document: &impl Serialize, text: impl FnOnce() -> Page) -> io::Result<()> {
        match self.format {
            OutputFormat::Json => output::json(document),
            OutputFormat::Text => output::text(&text()),
        }
    }
}
