//! The jobs that run beside the loop, and the lanes they run in.
//!
//! One lane is for whatever comes, a bundle of 30 GB included. The other takes light work only, restoring what is missing
//! of a known bundle and small bundles, so that these never wait behind a long import.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use oci_spec::image::Digest;
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};

use super::job::{Opened, Order, Pulled, Read};
use crate::crash;
use crate::progress::Counters;

/// A file up to this size in bytes is imported within seconds.
const SMALL: u64 = 64 << 20;

/// Where a job runs; each lane has one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// Any bundle.
    Main,
    /// Repairs and small bundles.
    Light,
}

/// What a job came back with.
pub(super) enum Came {
    Opened(Opened),
    Imported(Box<Result<import::Imported, import::Error>>),
    Pulled(Pulled),
    /// It panicked, with this text. The daemon goes on: a job shares nothing that it could leave half done.
    Panicked(String),
}

/// How far a job has come.
pub(super) enum Stage {
    /// Its file is checked and read.
    Opening,
    /// Its bundle waits until another one that writes the same names is done.
    Waiting(Box<Read>),
    /// Its images are on their way.
    Importing(Arc<bundle::Bundle>),
    /// The images of its list are pulled.
    Pulling { catalog: Digest },
}

/// A job.
pub(super) struct Job {
    pub(super) order: Arc<Order>,
    lane: Lane,
    pub(super) stage: Stage,
    /// The records it writes, and what they are to point at, as soon as that is known.
    pub(super) records: BTreeMap<String, Digest>,
    /// Those of them that are left as they are.
    pub(super) left: BTreeSet<String>,
    /// How far its import has come.
    pub(super) counters: Arc<Counters>,
    /// A record it writes changed meanwhile, by its hand or another's.
    pub(super) disturbed: bool,
    /// Its file or the rules changed: whatever it comes back with, the file is not done.
    pub(super) is_outdated: bool,
    task: Option<AbortHandle>,
}

/// The jobs that run, by file name.
#[derive(Default)]
pub(super) struct Jobs {
    tasks: JoinSet<Came>,
    running: HashMap<OsString, Job>,
}

impl Jobs {
    /// The lane that a file can start in now. A file for which `is_suspect` holds shares the daemon with no other.
    pub(super) fn lane_for(
        &self,
        name: &OsStr,
        size: u64,
        is_repair: bool,
        is_suspect: impl Fn(&OsStr) -> bool,
    ) -> Option<Lane> {
        let is_alone = is_suspect(name) || self.running.keys().any(|running| is_suspect(running));
        if self.running.contains_key(name) || is_alone && !self.running.is_empty() {
            return None;
        }
        let is_light = is_repair || size <= SMALL;
        [Lane::Light, Lane::Main]
            .into_iter()
            .find(|lane| (is_light || *lane == Lane::Main) && self.is_free(*lane))
    }

    fn is_free(&self, lane: Lane) -> bool {
        self.running.values().all(|job| job.lane != lane)
    }

    /// Starts a job with the opening of its file.
    pub(super) fn start(
        &mut self,
        order: Arc<Order>,
        lane: Lane,
        open: impl Future<Output = Opened> + Send + 'static,
    ) {
        let name = order.name.clone();
        let job = Job {
            order,
            lane,
            stage: Stage::Opening,
            records: BTreeMap::new(),
            left: BTreeSet::new(),
            counters: Arc::default(),
            disturbed: false,
            is_outdated: false,
            task: None,
        };
        self.running.insert(name.clone(), job);
        self.spawn(&name, async move { Came::Opened(open.await) });
    }

    /// Goes on with a job.
    pub(super) fn go_on(
        &mut self,
        name: &OsStr,
        stage: Stage,
        work: impl Future<Output = Came> + Send + 'static,
    ) {
        if let Some(job) = self.running.get_mut(name) {
            job.stage = stage;
        }
        self.spawn(name, work);
    }

    fn spawn(&mut self, name: &OsStr, work: impl Future<Output = Came> + Send + 'static) {
        if let Some(job) = self.running.get_mut(name) {
            job.task = Some(self.tasks.spawn(work));
        }
    }

    /// The next thing a job came back with, and whose it is; `None` for one that was dropped. Waits for ever while
    /// nothing runs. Safe to cancel.
    pub(super) async fn next(&mut self) -> (OsString, Option<Came>) {
        match self.tasks.join_next_with_id().await {
            None => std::future::pending().await,
            Some(Ok((id, came))) => (self.name_of(id), Some(came)),
            Some(Err(error)) => (self.name_of(error.id()), dropped(error)),
        }
    }

    fn name_of(&self, id: Id) -> OsString {
        let is_of = |job: &Job| job.task.as_ref().is_some_and(|task| task.id() == id);
        let found = self.running.iter().find(|(_, job)| is_of(job));
        found
            .map(|(name, _)| name.clone())
            .expect("a job stays in the list until its task is joined")
    }

    /// Lets a bundle wait whose catalog was read.
    pub(super) fn wait(&mut self, name: &OsStr, read: Box<Read>) {
        if let Some(job) = self.running.get_mut(name) {
            job.records.clone_from(&read.records);
            job.stage = Stage::Waiting(read);
        }
    }

    /// A bundle that waits and need not any more: nobody who is importing wants one of its names for something else.
    /// Those that wait are gone through in the order of `arrival`.
    pub(super) fn unblocked(&mut self, arrival: impl Fn(&OsStr) -> u64) -> Option<(OsString, Box<Read>)> {
        let importing = |job: &&Job| matches!(job.stage, Stage::Importing(_));
        let importing: Vec<&Job> = self.running.values().filter(importing).collect();
        let is_free = |job: &Job| {
            importing
                .iter()
                .all(|other| !disagree(&job.records, &other.records))
        };
        let waiting = self
            .running
            .iter()
            .filter(|(_, job)| matches!(job.stage, Stage::Waiting(_)) && is_free(job));
        let name = waiting
            .map(|(name, _)| name)
            .min_by_key(|name| arrival(name))?
            .clone();
        let job = self.running.get_mut(&name)?;
        match std::mem::replace(&mut job.stage, Stage::Opening) {
            Stage::Waiting(read) => Some((name, read)),
            stage => {
                job.stage = stage;
                None
            }
        }
    }

    pub(super) fn get(&self, name: &OsStr) -> Option<&Job> {
        self.running.get(name)
    }

    pub(super) fn get_mut(&mut self, name: &OsStr) -> Option<&mut Job> {
        self.running.get_mut(name)
    }

    /// Takes a job off the list that has come to its end.
    pub(super) fn end(&mut self, name: &OsStr) -> Option<Job> {
        self.running.remove(name)
    }

    /// Drops the jobs that `is_outdated` names. What they have moved stays under their leases.
    pub(super) fn drop_if(&mut self, is_outdated: impl Fn(&Job) -> bool) {
        for job in self.running.values_mut().filter(|job| is_outdated(job)) {
            job.is_outdated = true;
            job.task.iter().for_each(AbortHandle::abort);
        }
        self.running
            .retain(|_, job| !(job.is_outdated && matches!(job.stage, Stage::Waiting(_))));
    }

    /// Drops the jobs that wait for another one.
    pub(super) fn drop_waiting(&mut self) {
        self.running
            .retain(|_, job| !matches!(job.stage, Stage::Waiting(_)));
    }

    /// The jobs.
    pub(super) fn all(&self) -> impl Iterator<Item = &Job> {
        self.running.values()
    }

    /// The job that writes this record, if one does.
    pub(super) fn writer_of(&mut self, record: &str) -> Option<&mut Job> {
        self.running
            .values_mut()
            .find(|job| job.records.contains_key(record))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.running.is_empty()
    }
}

/// Whether two bundles want a name for different images.
fn disagree(one: &BTreeMap<String, Digest>, other: &BTreeMap<String, Digest>) -> bool {
    let is_disputed = |(name, target)| other.get(name).is_some_and(|wanted| wanted != target);
    one.iter().any(is_disputed)
}

/// Gives the reason of a job that panicked, and nothing for a job that was dropped.
fn dropped(error: JoinError) -> Option<Came> {
    let panic = error.try_into_panic().ok()?;
    Some(Came::Panicked(crash::panic_text(&*panic)))
}

#[cfg(test)]
mod tests {
    use super::super::job::joined;
    use super::*;

    #[tokio::test]
    async fn a_job_that_panics_comes_back_with_why_and_one_that_is_dropped_with_nothing() {
        let mut tasks: JoinSet<()> = JoinSet::new();
        tasks.spawn(async {
            let read = tokio::task::spawn_blocking(|| panic!("the 7th entry\nis odd"));
            joined::<()>(read.await);
        });
        let Some(Came::Panicked(text)) = dropped(tasks.join_next().await.unwrap().unwrap_err()) else {
            panic!("another end")
        };
        assert!(
            text.starts_with("a panic: the 7th entry") && !text.contains('\n'),
            "{text}"
        );
        tasks.spawn(std::future::pending()).abort();
        assert!(dropped(tasks.join_next().await.unwrap().unwrap_err()).is_none());
    }
}
