//! `airgapd run`: the daemon, from start to stop on one screen.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::Exit;
use crate::config::Settings;
use crate::daemon;
use crate::node::Runtime as Node;

/// Runs until SIGTERM or SIGINT.
pub(crate) async fn run(settings: Settings, node: Node) -> anyhow::Result<Exit> {
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stopper = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stopper.cancel();
    });
    daemon::run(settings, node, stop).await?;
    Ok(Exit::Done)
}
