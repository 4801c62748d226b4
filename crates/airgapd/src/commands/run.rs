//! `airgapd run`: the daemon, from start to stop on one screen.

use std::path::Path;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::Exit;
use crate::config::Settings;
use crate::daemon;
use crate::node;
use crate::systemd::Systemd;

/// Runs until SIGTERM or SIGINT.
pub(crate) async fn run(settings: Settings) -> anyhow::Result<Exit> {
    let stop = stop_signal()?;
    let evidence = node::probe(Path::new("/"));
    let explicit = settings.distribution.is_some() || settings.address.is_some();
    if !explicit && evidence.is_controller_without_worker() {
        return idle(&stop).await;
    }
    let node = node::decide(&evidence, &settings)?;
    let because = if node.because.is_empty() {
        "by default".to_owned()
    } else {
        node.because.join(", ")
    };
    let (images, socket) = (node.images_dir.display(), node.socket.display());
    info!(
        "bundles from {images}, images to the containerd on {socket} ({}: {because})",
        node.distribution.name()
    );
    daemon::run(settings, node, stop).await?;
    Ok(Exit::Done)
}

/// A controller that runs no containers has no containerd, and nothing is wrong with that.
async fn idle(stop: &CancellationToken) -> anyhow::Result<Exit> {
    let systemd = Systemd::from_environment();
    info!("this is a k0s controller without a worker: there is nothing to import for");
    systemd.ready();
    systemd.status("idle: a controller without a worker");
    stop.cancelled().await;
    systemd.stopping();
    Ok(Exit::Done)
}

fn stop_signal() -> anyhow::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let stopper = stop.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = hangup.recv() => info!("SIGHUP: the configuration is read at the start only; restart for a new one"),
            }
        }
        stopper.cancel();
    });
    Ok(stop)
}
