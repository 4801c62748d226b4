//! The jobs that run outside the loop, and the lanes they run in.
//!
//! One lane is for any bundle, one of 30 GB included. The other takes light work only: restoring
//! what is missing of a known bundle, and small bundles. So these never wait behind a long import.
//!
//! Both lanes share the memory of the daemon. A bundle in the light lane is read within a part of
//! the limits, and a bundle that needs more of them is heavy: it waits for the main lane. So at
//! most one bundle takes all that the limits allow.
//!
//! A job that does nothing gives its lane to a file that could use it, and goes back into the
//! queue: at once where it waits for another bundle with the same names, after [`STILL`] where
//! nothing of it moves (another bundle may be sending the blob that it needs), and twice as long
//! after each time. It begins again when the other job has ended.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::time::{Duration, Instant};

use bundle::Identity;
use oci_spec::image::Digest;

use crate::progress::Mark;
use crate::state::roster::Version;

/// A file up to this size in bytes is imported within seconds.
const SMALL: u64 = 64 << 20;

/// How long an import keeps its lane from others at first although none of its bytes and images
/// moves. containerd may take minutes to commit or unpack a layer of some GB, and is left alone
/// with that.
pub(crate) const STILL: Duration = Duration::from_secs(300);

/// Where a job runs; each lane has one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Any bundle.
    Main,
    /// Repairs and small bundles.
    Light,
}

/// How far a job has come.
#[derive(Debug)]
pub(crate) enum Stage {
    /// Its file is checked and read.
    Opening,
    /// Its bundle waits until another one that writes the same names is done.
    Waiting,
    /// Its images are on their way.
    Importing,
    /// The images of its list are pulled.
    Pulling { catalog: Digest },
}

/// A job.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) name: OsString,
    /// The file as it was listed when the job began.
    pub(crate) version: Version,
    pub(crate) lane: Lane,
    pub(crate) stage: Stage,
    /// The records it writes, and what they are to point at, as soon as that is known.
    pub(crate) records: BTreeMap<String, Digest>,
    /// Those of them that are left as they are.
    pub(crate) left: BTreeSet<String>,
    /// A record it writes changed meanwhile, by its hand or another's.
    pub(crate) disturbed: bool,
    /// Its file or the rules changed: whatever it comes back with, the file is not done.
    pub(crate) is_outdated: bool,
    /// It gave its lane to another file.
    pub(crate) has_yielded: bool,
    started: Instant,
    stillness: Stillness,
    /// How long it keeps its lane although nothing of it moves.
    patience: Duration,
}

impl Job {
    /// When others may have its lane if nothing of it moves until then; none while its file is
    /// read.
    fn idle_from(&self) -> Option<Instant> {
        match self.stage {
            _ if self.has_yielded => None,
            Stage::Waiting => Some(self.stillness.since),
            Stage::Importing => Some(self.stillness.since + self.patience),
            Stage::Opening | Stage::Pulling { .. } => None,
        }
    }

    /// How long the job has been at it.
    pub(crate) fn elapsed(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.started)
    }

    fn waits(&self) -> bool {
        matches!(self.stage, Stage::Waiting)
    }
}

/// Since when a job has not come any further.
#[derive(Debug)]
struct Stillness {
    mark: Mark,
    since: Instant,
}

impl Stillness {
    fn begins(now: Instant) -> Stillness {
        let mark = Mark::default();
        Stillness { mark, since: now }
    }

    /// Begins anew where the job has come further.
    fn note(&mut self, mark: Mark, now: Instant) {
        if self.mark != mark {
            *self = Stillness { mark, since: now };
        }
    }
}

/// A file that asks for a lane.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load<'a> {
    pub(crate) name: &'a OsStr,
    pub(crate) identity: &'a Identity,
    /// In bytes.
    pub(crate) size: u64,
    /// Whether it was imported before.
    pub(crate) is_repair: bool,
    /// Whether it starts only where no other job runs: the daemon crashed over it, or over one that
    /// runs.
    pub(crate) is_alone: bool,
}

/// The jobs, by file name.
#[derive(Debug, Default)]
pub(crate) struct Lanes {
    running: BTreeMap<OsString, Job>,
    /// Files that were found to be heavy.
    heavy: HashMap<OsString, Identity>,
    /// Files that gave their lane to others, and the file whose job each of them waits for.
    behind: HashMap<OsString, OsString>,
    /// How many times in a row the import of a file gave its lane to others.
    yields: HashMap<OsString, u32>,
}

/// How a job leaves its lane.
#[derive(Debug)]
pub(crate) enum Leaving {
    /// It only waited, and is over.
    Over,
    /// Its work has to be dropped first.
    Working,
}

impl Lanes {
    /// The lane that a file can start in now.
    pub(crate) fn lane_for(&self, load: Load<'_>) -> Option<Lane> {
        let mut lanes = self.lanes_for(load);
        lanes.find(|lane| self.in_lane(*lane).is_none())
    }

    /// The job that does nothing in a lane in which the file could start. None where a lane is
    /// free. Where the file has to be alone, that is the only job there is.
    pub(crate) fn idle_before(&self, load: Load<'_>, now: Instant) -> Option<&Job> {
        let mut jobs = Vec::new();
        if load.is_alone && self.running.len() == 1 && self.may_ask(load.name) {
            jobs.extend(self.running.values());
        }
        for lane in self.lanes_for(load) {
            jobs.push(self.in_lane(lane)?);
        }
        let is_idle = |job: &&Job| job.idle_from().is_some_and(|idle| idle <= now);
        jobs.into_iter().find(is_idle)
    }

    /// The lanes that a file may start in, the one that it should rather have first.
    fn lanes_for(&self, load: Load<'_>) -> impl Iterator<Item = Lane> + use<> {
        let Load { name, identity, .. } = load;
        let has_place = !load.is_alone || self.running.is_empty();
        let may_start = has_place && self.may_ask(name);
        let is_light = (load.is_repair || load.size <= SMALL) && !self.is_heavy(name, identity);
        [Lane::Light, Lane::Main]
            .into_iter()
            .filter(move |lane| may_start && (is_light || *lane == Lane::Main))
    }

    /// Whether a file neither has a lane nor waits for the job of another one to end.
    fn may_ask(&self, name: &OsStr) -> bool {
        let other = self.behind.get(name);
        let is_behind = other.is_some_and(|other| self.running.contains_key(other));
        !self.running.contains_key(name) && !is_behind
    }

    fn in_lane(&self, lane: Lane) -> Option<&Job> {
        self.running.values().find(|job| job.lane == lane)
    }

    /// Whether a file was found to be heavy.
    pub(crate) fn is_heavy(&self, name: &OsStr, identity: &Identity) -> bool {
        self.heavy.get(name) == Some(identity)
    }

    /// Notes that a file is heavy. `is_there` says which files there still are.
    pub(crate) fn note_heavy(
        &mut self,
        name: &OsStr,
        identity: &Identity,
        is_there: impl Fn(&OsStr) -> bool,
    ) {
        self.heavy.retain(|name, _| is_there(name));
        self.heavy.insert(name.to_owned(), identity.clone());
    }

    /// Notes how far the work of jobs has come.
    pub(crate) fn note_progress(&mut self, marks: impl IntoIterator<Item = (OsString, Mark)>, now: Instant) {
        for (name, mark) in marks {
            if let Some(job) = self.running.get_mut(&name) {
                job.stillness.note(mark, now);
            }
        }
    }

    /// When the next job will have done nothing for too long.
    pub(crate) fn idle_due(&self, now: Instant) -> Option<Instant> {
        let idle = self.running.values().filter_map(Job::idle_from);
        idle.filter(|idle| *idle > now).min()
    }

    /// Takes a job from its lane. `None` where there is no such job.
    pub(crate) fn give_way(&mut self, name: &OsStr) -> Option<Leaving> {
        let other = self.running.keys().find(|other| *other != name).cloned();
        if let Some(other) = other {
            self.behind.insert(name.to_owned(), other);
        }
        let job = self.running.get_mut(name)?;
        job.has_yielded = true;
        if job.waits() {
            return self.end(name).map(|_| Leaving::Over);
        }
        *self.yields.entry(name.to_owned()).or_default() += 1;
        Some(Leaving::Working)
    }

    /// Whether a file waits until the job of another one has ended.
    pub(crate) fn is_behind(&self, name: &OsStr) -> bool {
        self.behind.contains_key(name)
    }

    /// Adds a job that opens its file.
    pub(crate) fn start(&mut self, name: &OsStr, version: Version, lane: Lane, now: Instant) {
        let job = Job {
            name: name.to_owned(),
            version,
            lane,
            stage: Stage::Opening,
            records: BTreeMap::new(),
            left: BTreeSet::new(),
            disturbed: false,
            is_outdated: false,
            has_yielded: false,
            started: now,
            stillness: Stillness::begins(now),
            patience: patience(self.yields.get(name).copied().unwrap_or_default()),
        };
        self.behind.remove(name);
        self.running.insert(name.to_owned(), job);
    }

    /// Goes on with a job.
    pub(crate) fn go_on(&mut self, name: &OsStr, stage: Stage, now: Instant) {
        if let Some(job) = self.running.get_mut(name) {
            job.stage = stage;
            job.stillness.since = now;
        }
    }

    /// Lets a bundle wait whose catalog was read, and that is going to write these records.
    pub(crate) fn wait(&mut self, name: &OsStr, records: BTreeMap<String, Digest>) {
        if let Some(job) = self.running.get_mut(name) {
            job.records = records;
            job.stage = Stage::Waiting;
        }
    }

    /// A bundle that waits and need not any more: no bundle whose images are on their way wants one
    /// of its names for something else. Those that wait are gone through in the order of `arrival`.
    pub(crate) fn unblocked(&self, arrival: impl Fn(&OsStr) -> u64) -> Option<OsString> {
        let importing = |job: &&Job| matches!(job.stage, Stage::Importing);
        let importing: Vec<&Job> = self.running.values().filter(importing).collect();
        let is_free = |job: &&Job| {
            importing
                .iter()
                .all(|other| !disagree(&job.records, &other.records))
        };
        let waiting = self.running.values().filter(|job| job.waits());
        let free = waiting.filter(is_free).min_by_key(|job| arrival(&job.name));
        free.map(|job| job.name.clone())
    }

    pub(crate) fn get(&self, name: &OsStr) -> Option<&Job> {
        self.running.get(name)
    }

    pub(crate) fn get_mut(&mut self, name: &OsStr) -> Option<&mut Job> {
        self.running.get_mut(name)
    }

    /// Takes a job off the list that has come to its end.
    pub(crate) fn end(&mut self, name: &OsStr) -> Option<Job> {
        self.behind.retain(|_, other| other != name);
        let job = self.running.remove(name)?;
        if !job.has_yielded {
            self.yields.remove(name);
        }
        Some(job)
    }

    /// Marks the jobs that `is_outdated` names. Gives those whose work has to be dropped, and those
    /// that waited and are over.
    pub(crate) fn drop_if(&mut self, is_outdated: impl Fn(&Job) -> bool) -> (Vec<OsString>, Vec<Job>) {
        for job in self.running.values_mut().filter(|job| is_outdated(job)) {
            job.is_outdated = true;
        }
        let over = self.end_waiting(|job| job.is_outdated);
        let working = self.running.values().filter(|job| job.is_outdated);
        (working.map(|job| job.name.clone()).collect(), over)
    }

    /// Ends the jobs that wait for another one.
    pub(crate) fn drop_waiting(&mut self) {
        self.end_waiting(|_| true);
    }

    fn end_waiting(&mut self, is_over: impl Fn(&Job) -> bool) -> Vec<Job> {
        let over = self.running.values().filter(|job| job.waits() && is_over(job));
        let over: Vec<OsString> = over.map(|job| job.name.clone()).collect();
        over.iter().filter_map(|name| self.end(name)).collect()
    }

    /// The jobs, by file name.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Job> {
        self.running.values()
    }

    /// The job that writes this record, if one does.
    pub(crate) fn writer_of(&mut self, record: &str) -> Option<&mut Job> {
        self.running
            .values_mut()
            .find(|job| job.records.contains_key(record))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.running.is_empty()
    }
}

/// How long an import keeps its lane although nothing of it moves, which has given it to others so
/// many times before: twice as long each time. The work that a job is interrupted in (a layer that
/// is unpacked) begins anew, so that two jobs would otherwise interrupt each other for ever.
fn patience(yields: u32) -> Duration {
    STILL * (1 << yields.min(6))
}

/// Whether two bundles want a name for different images.
fn disagree(one: &BTreeMap<String, Digest>, other: &BTreeMap<String, Digest>) -> bool {
    let is_disputed = |(name, target)| other.get(name).is_some_and(|wanted| wanted != target);
    one.iter().any(is_disputed)
}
