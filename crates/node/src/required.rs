//! The check that the images which the configuration requires are in containerd: a continuous
//! `airgapd verify`.
//!
//! The daemon checks when something may have changed. `airgapd status` checks if no daemon runs.
//! The check stays cheap, because it opens no bundle and starts no program. Only `airgapd verify`
//! finds out how to get a missing image.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use jiff::Timestamp;
use platforms::Platform;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

use crate::runtime::{self, Containerd};
use crate::settings::Settings;
use crate::status::{MissingStatus, RequiredStatus};
use verify::{Answer, Inventory, Need, Needs, Reading, Sought, Sources, answer};

/// Longest time for reading all sources. It ends before [`crate::ready::TRUST`] does, so that the
/// reason is known by then.
const PATIENCE: Duration = Duration::from_secs(30);

/// Longest time for the stamps of all sources. At the start of the daemon a probe waits for them,
/// and gives up after a second.
const GLANCE: Duration = Duration::from_millis(500);

/// Reads the sources of required images in a thread. A read from a dead network mount never ends
/// and nothing cancels it, so the caller gives it up. One thread reads at a time, so at most one
/// hangs.
#[derive(Clone, Debug)]
pub struct Reader {
    turn: Arc<Semaphore>,
    reading: Reading,
}

impl Default for Reader {
    fn default() -> Reader {
        Reader {
            turn: Arc::new(Semaphore::new(1)),
            reading: Reading::default(),
        }
    }
}

impl Reader {
    /// Returns the stamps of the sources, or `None` if a file system does not answer at once. Safe
    /// to cancel.
    pub(crate) async fn stamp(&self, sources: &Sources) -> Option<String> {
        let sources = sources.clone();
        let stamps = self.read(GLANCE, move |reading| sources.stamps(reading));
        stamps.await.ok().map(|stamps| stamps.digest)
    }

    /// Reads in a thread, within this time. Safe to cancel: the thread then reads on for nothing.
    ///
    /// # Errors
    ///
    /// Returns a sentence with the source that was not read in time.
    async fn read<T: Send + 'static>(
        &self,
        patience: Duration,
        read: impl FnOnce(&Reading) -> T + Send + 'static,
    ) -> Result<T, String> {
        let answered = async {
            let turn = Arc::clone(&self.turn).acquire_owned().await;
            let turn = turn.expect("nothing closes it");
            let (answer, answered) = oneshot::channel();
            let reading = self.reading.clone();
            thread::Builder::new().name("sources".to_owned()).spawn(move || {
                let read = catch_unwind(AssertUnwindSafe(|| read(&reading)));
                drop(turn);
                // The caller may have given up.
                let _ = answer.send(read);
            })?;
            Ok::<_, io::Error>(answered.await.expect("the thread answers, even if it panics"))
        };
        match timeout(patience, answered).await {
            Ok(Ok(Ok(read))) => Ok(read),
            Ok(Ok(Err(panic))) => resume_unwind(panic),
            Ok(Err(error)) => Err(format!("cannot start a thread to read the sources: {error}")),
            Err(_) => {
                let path = self.reading.path();
                let source = path.map_or_else(|| "a source".to_owned(), |path| path.display().to_string());
                Err(format!(
                    "cannot read {source}: its file system has not answered for {} s (restart airgapd if it stays away)",
                    patience.as_secs()
                ))
            }
        }
    }
}

/// Checks whether every image that `require` names is in containerd, whole. Reads only. Safe to
/// cancel. Takes at most 30 s for the sources. containerd's calls have deadlines of their own.
///
/// # Errors
///
/// Returns containerd's errors. Problems of the sources are in the answer, since only their owner
/// can correct them.
pub async fn check(
    settings: &Settings,
    runtime: &Containerd,
    reader: &Reader,
) -> Result<RequiredStatus, containerd::Error> {
    let mut found = RequiredStatus {
        is_current: true,
        checked_at: Some(Timestamp::now()),
        ..RequiredStatus::default()
    };
    let platform = runtime::asked_platform(settings, Some(runtime));
    let mut needs = match gather(&settings.require, platform, reader).await {
        Ok((needs, stamp)) => {
            found.stamp = Some(stamp);
            needs
        }
        Err(problem) => {
            found.problem = Some(problem);
            return Ok(found);
        }
    };
    if settings.require.sandbox_image.is_none()
        && runtime.is_of_kubelet
        && let Some(image) = runtime.client.cri().sandbox_image().await?
    {
        needs.add_sandbox(image);
    }
    if !needs.mistakes.is_empty() {
        found.problem = Some(needs.mistakes.join("; "));
        return Ok(found);
    }
    let all = needs.merged();
    let policy = runtime::policy(settings, Some(runtime));
    let inventory = Inventory::of_containerd(
        &runtime.client,
        runtime.store.as_deref(),
        &policy.wanted,
        &settings.limits,
        runtime::snapshots(runtime),
        &Sought::exactly(&all),
    )
    .await?;
    found.references = all.len();
    found.names = all.iter().map(|need| need.reference.clone()).collect();
    found.missing = all.iter().filter_map(|need| missing(need, &inventory)).collect();
    Ok(found)
}

/// Returns the images of the sources, and the stamps of the files from before they were read.
///
/// # Errors
///
/// Returns a sentence with the source that was not read in time.
async fn gather(
    sources: &Sources,
    platform: Option<Platform>,
    reader: &Reader,
) -> Result<(Needs, String), String> {
    let (sources, runtime) = (sources.clone(), tokio::runtime::Handle::current());
    let read = move |reading: &Reading| {
        let stamps = sources.stamps(reading);
        let mut needs = Needs::followed_by(reading);
        needs.mistakes = stamps.mistakes;
        if needs.mistakes.is_empty() {
            runtime.block_on(needs.add(&sources, platform.as_ref()));
        }
        (needs, stamps.digest)
    };
    reader.read(PATIENCE, read).await
}

fn missing(need: &Need, inventory: &Inventory) -> Option<MissingStatus> {
    let answer = answer(need, inventory, &Inventory::default());
    answer.is_missing().then(|| MissingStatus {
        why: why(&answer),
        reference: answer.reference,
        asked_by: answer.sources.iter().map(ToString::to_string).collect(),
    })
}

fn why(answer: &Answer) -> String {
    answer.problems.join("; ")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::time::Instant;

    use super::*;

    const SHORT: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(60);

    /// A mount that does not answer, until it does.
    #[tokio::test]
    async fn a_source_that_is_never_read_ends_as_a_problem_and_leaves_one_thread_at_most() {
        let folder = tempfile::tempdir().expect("a folder");
        let list = folder.path().join("list.txt");
        fs::write(&list, "r.test/a:1").expect("a file");
        let sources = Sources {
            images: vec![list.clone()],
            ..Sources::default()
        };
        let reader = Reader::default();
        let begun = Arc::new(AtomicUsize::new(0));
        let (answers, waits) = mpsc::channel::<()>();
        let hang = {
            let (sources, begun) = (sources.clone(), Arc::clone(&begun));
            move |reading: &Reading| {
                begun.fetch_add(1, Ordering::Relaxed);
                sources.stamps(reading);
                let _ = waits.recv();
            }
        };
        let text = |read: Result<(), String>| read.expect_err("it is not read");
        let wanted = format!("cannot read {}: its file system has not answered", list.display());
        let problem = text(reader.read(Duration::from_secs(1), hang).await);
        assert!(problem.starts_with(&wanted), "{problem}");
        for _ in 0..3 {
            let again = Arc::clone(&begun);
            let count = move |_: &Reading| {
                again.fetch_add(1, Ordering::Relaxed);
            };
            let problem = text(reader.read(SHORT, count).await);
            assert!(problem.starts_with(&wanted), "{problem}");
        }
        let began = Instant::now();
        assert_eq!(reader.stamp(&sources).await, None);
        assert!(began.elapsed() < LONG, "{:?}", began.elapsed());
        assert_eq!(begun.load(Ordering::Relaxed), 1, "one thread hangs");
        drop(answers);
        assert_eq!(reader.read(LONG, |_| 7).await, Ok(7));
        let stamp = reader.stamp(&sources).await;
        assert!(stamp.is_some());
        let gathered = gather(&sources, None, &reader).await;
        let (needs, of_check) = gathered.expect("the list is there");
        assert_eq!((needs.sources().len(), Some(of_check)), (1, stamp));
    }

    #[tokio::test]
    async fn a_thread_that_panics_leaves_its_place_to_the_next() {
        let reader = Reader::default();
        let other = reader.clone();
        let task = tokio::spawn(async move { other.read(LONG, |_| panic!("no way")).await });
        let ended: Result<Result<(), String>, _> = task.await;
        assert!(ended.expect_err("it panics").is_panic());
        assert_eq!(reader.read(LONG, |_| 7).await, Ok(7));
    }
}
