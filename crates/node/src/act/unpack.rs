//! Unpack-ahead: images of finished bundles are unpacked while nothing else is to be done.
//!
//! It goes on beside the loop, one image after the other, and never while bundles are imported: names come first. An
//! import that begins has it stop after the layer that is being unpacked. Everything it does can be found again in
//! containerd, so it is remembered nowhere: after a restart one listing tells what is left. With
//! `unpack: before-record` images come unpacked from their import, and this is for those that were there before.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use import::Pattern;
use import::unpack::{Ahead, AheadObserver, Unpack, UnpackError, Unpacked, unpack_ahead};
use oci_spec::image::Digest;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::Daemon;
use crate::outcome::Outcome;
use crate::runtime::Containerd;
use crate::state::crash;
use crate::state::ledger::Ledger;
use crate::status::{UnpackFailureStatus, UnpackStatus};
use basics::backoff::{self, Backoff};

/// The waits after something that is nobody's fault: a full disk, a containerd that goes away.
const AGAIN: Backoff = Backoff {
    first: Duration::from_secs(5),
    longest: Duration::from_secs(600),
};

/// What a look, with all that came of it, ended with; `None` where it was dropped.
pub(super) type Ended = Option<Result<(), UnpackError>>;

/// Something that is heard of unpacking.
pub(super) enum Heard {
    /// So many images are to be unpacked.
    Found(usize),
    /// An image is through; why not, where it could not be unpacked.
    Image(Ahead, Result<Unpacked, (String, bool)>),
    /// It has come to its end.
    Ended(Ended),
    /// It has panicked, with this text.
    Panicked(String),
}

/// What is known, and what runs.
#[derive(Default)]
pub(super) struct Unpacking {
    task: Option<Task>,
    /// Whether nothing has happened since the last look that could leave something to do.
    is_current: bool,
    /// It is not looked again before.
    earliest: Option<Instant>,
    failures: u32,
    /// Images that are still to be unpacked, as far as is known.
    pending: usize,
    /// Images that cannot be unpacked, by target, with a name and the reason. They are not tried again by this run.
    bad: HashMap<Digest, UnpackFailureStatus>,
    /// What was said last about trouble that passes.
    said: Option<String>,
}

struct Task {
    work: JoinHandle<Result<(), UnpackError>>,
    told: mpsc::UnboundedReceiver<Heard>,
    stop: CancellationToken,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.work.abort();
    }
}

impl Unpacking {
    /// Something happened that may leave something to do.
    pub(super) fn doubt(&mut self) {
        self.is_current = false;
    }

    /// Has it end after the layer that is being unpacked.
    pub(super) fn interrupt(&mut self) {
        if let Some(task) = &self.task {
            task.stop.cancel();
        }
    }

    /// Waits for the next thing that is heard; for ever while nothing runs. Safe to cancel.
    pub(super) async fn next(&mut self) -> Heard {
        let Some(task) = &mut self.task else {
            return std::future::pending().await;
        };
        // Everything that was told before the end comes before the end.
        if let Some(heard) = task.told.recv().await {
            return heard;
        }
        match (&mut task.work).await {
            Ok(ended) => Heard::Ended(Some(ended)),
            Err(error) => match error.try_into_panic() {
                Ok(panic) => Heard::Panicked(crash::panic_text(&*panic)),
                Err(_) => Heard::Ended(None),
            },
        }
    }

    /// Ends the work that runs. The daemon begins it anew, later each time.
    fn put_off(&mut self, why: String) {
        self.task = None;
        let wait = AGAIN.wait(self.failures, backoff::chance());
        self.failures = self.failures.saturating_add(1);
        self.is_current = false;
        self.earliest = Some(Instant::now() + wait);
        if self.said.as_ref() != Some(&why) {
            warn!("images are not unpacked, which is tried again in {wait:?}: {why}");
            self.said = Some(why);
        }
    }

    /// What the daemon answers; `None` where nothing is unpacked ahead.
    pub(super) fn status(&self, unpack: Unpack) -> Option<UnpackStatus> {
        if unpack == Unpack::None {
            return None;
        }
        let mut failed: Vec<_> = self.bad.values().cloned().collect();
        failed.sort_by(|a, b| a.name.cmp(&b.name));
        Some(UnpackStatus {
            running: self.task.is_some(),
            pending: self.pending,
            problem: self.said.clone(),
            failed,
        })
    }
}

/// Tells the loop.
struct Teller(mpsc::UnboundedSender<Heard>);

impl AheadObserver for Teller {
    fn found(&self, images: usize) {
        let _ = self.0.send(Heard::Found(images));
    }

    fn image(&self, image: &Ahead, ended: &Result<Unpacked, UnpackError>) {
        let ended = match ended {
            Ok(unpacked) => Ok(*unpacked),
            Err(error) => Err((basics::chain(error), error.is_content())),
        };
        let _ = self.0.send(Heard::Image(image.clone(), ended));
    }
}

impl Daemon {
    /// When it is looked next, if that is to be at all.
    pub(super) fn unpack_due(&self, now: Instant) -> Option<Instant> {
        let unpacking = &self.unpacking;
        let is_wanted = self.state.settings.unpack != Unpack::None && self.hands.containerd.is_some();
        let is_time = self.state.lanes.is_empty() && !self.state.is_draining && !self.state.room.is_below();
        let is_due = is_wanted && is_time && !unpacking.is_current && unpacking.task.is_none();
        is_due.then(|| unpacking.earliest.unwrap_or(now))
    }

    /// Begins to unpack if that is due.
    pub(super) fn unpack_if_due(&mut self) {
        let now = Instant::now();
        if self.unpack_due(now).is_none_or(|due| due > now) {
            return;
        }
        let Some(live) = &self.hands.containerd else {
            return;
        };
        let desired = self.state.ledger.desired_images();
        let desired: HashSet<&Digest> = desired.values().map(|(wanted, _)| *wanted).collect();
        self.unpacking.bad.retain(|target, _| desired.contains(target));
        let images = wanted(
            &self.state.ledger,
            &self.state.settings.priority,
            &self.unpacking.bad,
        );
        self.unpacking.is_current = true;
        if images.is_empty() {
            self.unpacking.pending = 0;
            return;
        }
        let (sender, told) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let (runtime, settings) = (live.runtime.clone(), Arc::clone(&self.state.settings));
        let heard = stop.clone();
        let work =
            tokio::spawn(async move { work(&runtime, &settings, &images, &heard, Teller(sender)).await });
        self.unpacking.task = Some(Task { work, told, stop });
    }

    /// Takes down what was heard.
    pub(super) fn on_unpacking(&mut self, heard: Heard) {
        match heard {
            Heard::Found(images) => {
                self.unpacking.pending = images;
                if images > 0 {
                    info!("unpacking {images} images ahead");
                }
            }
            Heard::Image(image, ended) => self.on_unpacked(image, ended),
            Heard::Ended(ended) => self.on_unpacking_ended(ended),
            Heard::Panicked(text) => self.unpacking.put_off(text),
        }
    }

    fn on_unpacked(&mut self, image: Ahead, ended: Result<Unpacked, (String, bool)>) {
        let Ahead { name, target, .. } = image;
        match ended {
            Ok(Unpacked { layers, .. }) => {
                self.unpacking.pending = self.unpacking.pending.saturating_sub(1);
                info!(image = name, digest = %target, outcome = Outcome::Unpacked.as_str(), "image unpacked: {layers} layers");
            }
            Err((reason, true)) => {
                self.unpacking.pending = self.unpacking.pending.saturating_sub(1);
                error!(
                    image = name,
                    digest = %target,
                    outcome = Outcome::NotUnpacked.as_str(),
                    "image cannot be unpacked, so containers of it will not start: {reason}"
                );
                let failure = UnpackFailureStatus {
                    name,
                    digest: target.to_string(),
                    reason,
                };
                self.unpacking.bad.insert(target, failure);
            }
            // The end says more.
            Err((_, false)) => {}
        }
    }

    fn on_unpacking_ended(&mut self, ended: Ended) {
        let unpacking = &mut self.unpacking;
        unpacking.task = None;
        match ended {
            Some(Ok(())) => {
                unpacking.failures = 0;
                unpacking.said = None;
            }
            None | Some(Err(UnpackError::Stopped)) => unpacking.is_current = false,
            Some(Err(error)) => unpacking.put_off(basics::chain(&error)),
        }
    }
}

async fn work(
    runtime: &Containerd,
    settings: &crate::settings::Settings,
    images: &[Ahead],
    stop: &CancellationToken,
    teller: Teller,
) -> Result<(), UnpackError> {
    let unpacker = crate::runtime::unpacker(settings, runtime).await?;
    unpack_ahead(&runtime.client, &unpacker, images, stop, &teller).await
}

/// The images that bundles vouch for, each target once: those of the first pattern first, then in order of arrival.
fn wanted(ledger: &Ledger, priority: &[Pattern], bad: &HashMap<Digest, UnpackFailureStatus>) -> Vec<Ahead> {
    let mut images: Vec<(usize, u64, Ahead)> = Vec::new();
    for (name, (target, entry)) in ledger.desired_images() {
        let closure = ledger.closure(target).unwrap_or_default();
        if bad.contains_key(target) || closure.is_empty() {
            continue;
        }
        let matching = priority.iter().position(|pattern| pattern.matches(name));
        let image = Ahead {
            name: name.to_owned(),
            target: target.clone(),
            closure: closure.to_vec(),
        };
        images.push((matching.unwrap_or(priority.len()), entry.arrival, image));
    }
    images.sort_by_key(|(rank, arrival, _)| (*rank, *arrival));
    let mut seen = HashSet::new();
    let images = images.into_iter().map(|(_, _, image)| image);
    images.filter(|image| seen.insert(image.target.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn unpacking_that_panics_is_begun_anew_later() {
        let (_, told) = mpsc::unbounded_channel();
        let mut unpacking = Unpacking {
            task: Some(Task {
                work: tokio::spawn(async { panic!("no way") }),
                told,
                stop: CancellationToken::new(),
            }),
            is_current: true,
            ..Unpacking::default()
        };
        let Heard::Panicked(why) = unpacking.next().await else {
            panic!("another end")
        };
        unpacking.put_off(why);
        assert!(unpacking.task.is_none() && !unpacking.is_current && unpacking.earliest.is_some());
        assert_eq!(unpacking.said.as_deref(), Some("a panic: no way"));
    }
}
