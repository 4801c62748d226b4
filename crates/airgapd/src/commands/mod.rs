//! One module for each command.

pub(crate) mod bundle_artifacts;
pub(crate) mod bundles;
pub(crate) mod config;
pub(crate) mod doctor;
pub(crate) mod documentation;
pub(crate) mod export;
pub(crate) mod import;
pub(crate) mod inspect;
pub(crate) mod inventory;
pub(crate) mod list_images;
pub(crate) mod making;
pub(crate) mod release;
pub(crate) mod run;
pub(crate) mod status;
pub(crate) mod verify;
pub(crate) mod wait;

use node::place::Place;
use node::runtime::{self, Containerd};
use node::settings::Settings;

/// How the program ends. The numbers are promised to scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done: everything asked for is in place.
    Done,
    /// Something failed, or nothing landed although the bundle is sound.
    Failed,
    /// The command line or the configuration is wrong.
    Usage,
    /// containerd cannot be reached.
    Unreachable,
    /// Something that was asked for is missing.
    Missing,
    /// The bundle is bad and nothing landed.
    BadBundle,
    /// What was waited for has not happened in time.
    TimedOut,
    /// No daemon answers.
    NoDaemon,
}

/// Connects to this node's containerd for a command.
///
/// # Errors
///
/// How to end, and why in one line, with the socket and what speaks for it.
pub(crate) async fn connect(node: &Place, settings: &Settings) -> Result<Containerd, (Exit, String)> {
    let connected = runtime::connect(&node.socket, settings).await;
    connected.map_err(|error| {
        let (socket, because) = (node.socket.display(), node.because.join(", "));
        let exit = match error.is_unreachable() {
            true => Exit::Unreachable,
            false => Exit::Failed,
        };
        (
            exit,
            format!("{} (tried {socket}: {because})", ::basics::chain(&error)),
        )
    })
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        std::process::ExitCode::from(match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Unreachable => 3,
            Exit::Missing => 4,
            Exit::BadBundle => 5,
            Exit::TimedOut => 6,
            Exit::NoDaemon => 7,
        })
    }
}
