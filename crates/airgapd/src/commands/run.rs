//! `airgapd run`: the daemon, from start to stop.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use node::act::{self, Ended, Signal};
use node::place;
use node::settings::{Reloaded, Settings};
use node::systemd::Systemd;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tracing::info;

use super::{Exit, Refusal};
use crate::config::{self, Config, Mistakes};

/// Reads the current configuration.
pub(super) type ReadConfiguration = Box<dyn Fn() -> Result<Config, Mistakes> + Send>;

/// Runs until SIGTERM or SIGINT. A second signal ends it at once. After SIGHUP it reads
/// `configuration` again.
pub(super) async fn run(settings: Settings, configuration: ReadConfiguration) -> Result<Exit, Refusal> {
    let mut signals = signals(settings.clone(), configuration)?;
    let evidence = place::probe(Path::new("/"));
    let explicit = settings.distribution.is_some() || settings.address.is_some();
    if !explicit && evidence.is_controller_without_worker() {
        return Ok(idle(&mut signals).await?);
    }
    let node = place::decide(&evidence, &settings)?;
    let because = if node.because.is_empty() {
        "by default".to_owned()
    } else {
        node.because.join(", ")
    };
    let images = node.images_dirs();
    let images: Vec<_> = images.iter().map(|folder| folder.display().to_string()).collect();
    let (images, socket) = (images.join(" and "), node.socket.display());
    info!(
        "bundles from {images}, images to the containerd on {socket} ({}: {because})",
        node.distribution.name()
    );
    match act::run(settings, node, signals).await? {
        Ended::Stopped => Ok(Exit::Done),
        Ended::Misplaced => Ok(start_anew()?),
    }
}

/// Restarts the program in the same process. So no earlier decision remains, and the service
/// manager need not know. Returns only if that fails.
fn start_anew() -> anyhow::Result<Exit> {
    info!("the containerd of this node has changed: restarting the daemon");
    let mut arguments = std::env::args_os();
    let mut program = Command::new("/proc/self/exe");
    if let Some(name) = arguments.next() {
        program.arg0(name);
    }
    Err(program.args(arguments).exec()).context("cannot restart the daemon")
}

/// Time between two checks of an idle daemon for work.
const LOOK: Duration = Duration::from_secs(10);

/// Waits on a k0s controller without a worker. It has no containerd, which is no error, and it may
/// become a worker later.
async fn idle(signals: &mut UnboundedReceiver<Signal>) -> anyhow::Result<Exit> {
    let systemd = Systemd::from_environment();
    info!("this is a k0s controller without a worker: the daemon has nothing to import");
    systemd.ready();
    systemd.status("idle: a controller without a worker");
    loop {
        // An idle daemon must also report to the unit's watchdog.
        let due = systemd.alive().map(Into::into);
        let look = tokio::time::Instant::now() + LOOK;
        tokio::select! {
            signal = signals.recv() => if !matches!(signal, Some(Signal::Reload(_))) { break },
            () = tokio::time::sleep_until(due.map_or(look, |due| look.min(due))) => {}
        }
        if !place::probe(Path::new("/")).is_controller_without_worker() {
            return start_anew();
        }
    }
    systemd.stopping(Duration::ZERO);
    Ok(Exit::Done)
}

/// Returns signals as they arrive. `settings` are the current settings, which a reload replaces.
fn signals(
    mut settings: Settings,
    configuration: ReadConfiguration,
) -> anyhow::Result<UnboundedReceiver<Signal>> {
    let (sender, receiver) = unbounded_channel();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        loop {
            let heard = tokio::select! {
                _ = terminate.recv() => Signal::Stop,
                _ = interrupt.recv() => Signal::Stop,
                _ = hangup.recv() => Signal::Reload(Box::new(reload(&mut settings, &configuration))),
            };
            if sender.send(heard).is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}

/// Reads the configuration again and compares it with the current settings. It replaces them unless
/// the configuration has mistakes.
fn reload(settings: &mut Settings, configuration: &ReadConfiguration) -> Result<Reloaded, String> {
    let config = configuration().map_err(|mistakes| mistakes.in_one_line())?;
    config.tell_of_removed();
    let reloaded = config::reload(settings, config.settings);
    settings.clone_from(&reloaded.settings);
    Ok(reloaded)
}
