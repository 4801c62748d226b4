//! `airgapd run`: the daemon, from start to stop on one screen.

use std::path::Path;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tracing::info;

use super::Exit;
use crate::config::Settings;
use crate::daemon::{self, ReadConfiguration, Signal};
use crate::node;
use crate::systemd::Systemd;

/// Runs until SIGTERM or SIGINT; a second one ends it at once. SIGHUP has `configuration` read again.
pub(crate) async fn run(settings: Settings, configuration: ReadConfiguration) -> anyhow::Result<Exit> {
    let mut signals = signals()?;
    let evidence = node::probe(Path::new("/"));
    let explicit = settings.distribution.is_some() || settings.address.is_some();
    if !explicit && evidence.is_controller_without_worker() {
        return idle(&mut signals).await;
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
    daemon::run(settings, node, signals, configuration).await?;
    Ok(Exit::Done)
}

/// A controller that runs no containers has no containerd, and nothing is wrong with that.
async fn idle(signals: &mut UnboundedReceiver<Signal>) -> anyhow::Result<Exit> {
    let systemd = Systemd::from_environment();
    info!("this is a k0s controller without a worker: there is nothing to import for");
    systemd.ready();
    systemd.status("idle: a controller without a worker");
    loop {
        // Whoever has nothing to do is alive, too: the unit's watchdog makes no difference.
        let due = systemd.alive();
        tokio::select! {
            signal = signals.recv() => if signal != Some(Signal::Reload) { break },
            () = async { tokio::time::sleep_until(due.expect("a time to wait for").into()).await }, if due.is_some() => {}
        }
    }
    systemd.stopping(std::time::Duration::ZERO);
    Ok(Exit::Done)
}

fn signals() -> anyhow::Result<UnboundedReceiver<Signal>> {
    let (sender, receiver) = unbounded_channel();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        loop {
            let heard = tokio::select! {
                _ = terminate.recv() => Signal::Stop,
                _ = interrupt.recv() => Signal::Stop,
                _ = hangup.recv() => Signal::Reload,
            };
            if sender.send(heard).is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}
