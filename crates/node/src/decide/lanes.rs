//! The jobs that run outside the loop, and the lanes they run in.
//!
//! One lane takes any bundle, even one of 30 GB. The other lane takes light work only: small
//! bundles, and repairs of known bundles. So light work never waits behind a long import.
//!
//! Both lanes share the daemon's memory. The light lane reads a bundle within a part of the limits.
//! A bundle that needs more is heavy and waits for the main lane. So at most one bundle uses the
//! limits in full.
//!
//! A job that does nothing gives its lane to a file that can use it. Its own file returns to the
//! queue. A job that waits for another bundle with the same names gives way at once. An import
//! without progress gives way after [`STILL`], and after twice as long each further time: another
//! bundle may be sending the blob that it needs. It starts again when the other job has ended.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::time::{Duration, Instant};

use bundle::Identity;
use oci_spec::image::Digest;

use crate::progress::Mark;
use crate::state::ledger::SignerEntry;
use crate::state::roster::Version;

/// Size in bytes up to which an import takes only seconds.
const SMALL: u64 = 64 << 20;

/// Time for which an import keeps its lane at first although none of its bytes and images moves.
/// containerd may take minutes to commit or unpack a layer of some GB, and the daemon does not
/// interrupt that.
pub(crate) const STILL: Duration = Duration::from_secs(300);

/// The place where a job runs. Each lane has one job at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Any bundle.
    Main,
    /// Repairs and small bundles.
    Light,
}

/// The stage of a job.
#[derive(Debug)]
pub(crate) enum Stage {
    /// The job checks and reads its file.
    Opening,
    /// The bundle waits until another bundle that writes the same names is done.
    Waiting,
    /// The job imports the images of its bundle.
    Importing,
    /// The job pulls the images of its list.
    Pulling { catalog: Digest },
}

/// A job.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) name: OsString,
    /// The file as it was listed at the start of the job.
    pub(crate) version: Version,
    pub(crate) lane: Lane,
    pub(crate) stage: Stage,
    /// The records that the job writes, with their targets. Empty until the catalog is read.
    pub(crate) records: BTreeMap<String, Digest>,
    /// The names among them that the job leaves as they are.
    pub(crate) left: BTreeSet<String>,
    /// The names among them that the rule for signatures keeps from the bundle.
    pub(crate) withheld: BTreeSet<String>,
    /// The keys that admitted the bundle, once it is read.
    pub(crate) signers: Vec<SignerEntry>,
    /// True if one of its records changed meanwhile, by the job or by another program.
    pub(crate) disturbed: bool,
    /// True if a proof for it may have come since its start.
    pub(crate) has_new_proof: bool,
    /// True if its file or the rules changed. The file is then not done, even after a success.
    pub(crate) is_outdated: bool,
    /// True if the job gave its lane to another file.
    pub(crate) has_yielded: bool,
    started: Instant,
    stillness: Stillness,
    /// Time for which the job keeps its lane without progress.
    patience: Duration,
}

impl Job {
    /// Returns the time from which others may have the lane if the job makes no progress. `None`
    /// while the job reads its file or pulls images.
    fn idle_from(&self) -> Option<Instant> {
        match self.stage {
            _ if self.has_yielded => None,
            Stage::Waiting => Some(self.stillness.since),
            Stage::Importing => Some(self.stillness.since + self.patience),
            Stage::Opening | Stage::Pulling { .. } => None,
        }
    }

    /// Returns the time since the start of the job.
    pub(crate) fn elapsed(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.started)
    }

    fn waits(&self) -> bool {
        matches!(self.stage, Stage::Waiting)
    }
}

/// The time since which a job makes no progress.
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

    /// Starts over if the job made progress.
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
    /// Size in bytes.
    pub(crate) size: u64,
    /// True if it was imported before.
    pub(crate) is_repair: bool,
    /// True if it must run alone: the daemon crashed over it, or over a file whose job is running.
    pub(crate) is_alone: bool,
}

/// The jobs, by file name.
#[derive(Debug, Default)]
pub(crate) struct Lanes {
    running: BTreeMap<OsString, Job>,
    /// Files that were found to be heavy.
    heavy: HashMap<OsString, Identity>,
    /// Files that gave their lane away, each with the file whose job it waits for.
    behind: HashMap<OsString, OsString>,
    /// Number of times in a row that the import of a file gave its lane away.
    yields: HashMap<OsString, u32>,
}

/// The way in which a job leaves its lane.
#[derive(Debug)]
pub(crate) enum Leaving {
    /// The job only waited, and has ended.
    Over,
    /// Its work has to be dropped first.
    Working,
}

impl Lanes {
    /// Returns the lane that a file can start in now.
    pub(crate) fn lane_for(&self, load: Load<'_>) -> Option<Lane> {
        let mut lanes = self.lanes_for(load);
        lanes.find(|lane| self.in_lane(*lane).is_none())
    }

    /// Returns the idle job in a lane that the file could start in, or `None` if a lane is free.
    /// For a file that must run alone, this is the only running job.
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

    /// Returns the lanes that a file may start in, the preferred lane first.
    fn lanes_for(&self, load: Load<'_>) -> impl Iterator<Item = Lane> + use<> {
        let Load { name, identity, .. } = load;
        let has_place = !load.is_alone || self.running.is_empty();
        let may_start = has_place && self.may_ask(name);
        let is_light = (load.is_repair || load.size <= SMALL) && !self.is_heavy(name, identity);
        [Lane::Light, Lane::Main]
            .into_iter()
            .filter(move |lane| may_start && (is_light || *lane == Lane::Main))
    }

    /// Returns true if a file has no lane and does not wait for another job to end.
    fn may_ask(&self, name: &OsStr) -> bool {
        let other = self.behind.get(name);
        let is_behind = other.is_some_and(|other| self.running.contains_key(other));
        !self.running.contains_key(name) && !is_behind
    }

    fn in_lane(&self, lane: Lane) -> Option<&Job> {
        self.running.values().find(|job| job.lane == lane)
    }

    /// Returns true if a file was found to be heavy.
    pub(crate) fn is_heavy(&self, name: &OsStr, identity: &Identity) -> bool {
        self.heavy.get(name) == Some(identity)
    }

    /// Notes that a file is heavy. `is_there` tells which files still exist.
    pub(crate) fn note_heavy(
        &mut self,
        name: &OsStr,
        identity: &Identity,
        is_there: impl Fn(&OsStr) -> bool,
    ) {
        self.heavy.retain(|name, _| is_there(name));
        self.heavy.insert(name.to_owned(), identity.clone());
    }

    /// Notes the progress of jobs.
    pub(crate) fn note_progress(&mut self, marks: impl IntoIterator<Item = (OsString, Mark)>, now: Instant) {
        for (name, mark) in marks {
            if let Some(job) = self.running.get_mut(&name) {
                job.stillness.note(mark, now);
            }
        }
    }

    /// Returns the time at which the next job will have been idle for too long.
    pub(crate) fn idle_due(&self, now: Instant) -> Option<Instant> {
        let idle = self.running.values().filter_map(Job::idle_from);
        idle.filter(|idle| *idle > now).min()
    }

    /// Makes a job give its lane away. Returns `None` if there is no such job.
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

    /// Returns true if a file waits for another job to end.
    pub(crate) fn is_behind(&self, name: &OsStr) -> bool {
        self.behind.contains_key(name)
    }

    /// Adds a job, which begins by opening its file.
    pub(crate) fn start(&mut self, name: &OsStr, version: Version, lane: Lane, now: Instant) {
        let job = Job {
            name: name.to_owned(),
            version,
            lane,
            stage: Stage::Opening,
            records: BTreeMap::new(),
            left: BTreeSet::new(),
            withheld: BTreeSet::new(),
            signers: Vec::new(),
            disturbed: false,
            has_new_proof: false,
            is_outdated: false,
            has_yielded: false,
            started: now,
            stillness: Stillness::begins(now),
            patience: patience(self.yields.get(name).copied().unwrap_or_default()),
        };
        self.behind.remove(name);
        self.running.insert(name.to_owned(), job);
    }

    /// Moves a job on to another stage.
    pub(crate) fn go_on(&mut self, name: &OsStr, stage: Stage, now: Instant) {
        if let Some(job) = self.running.get_mut(name) {
            job.stage = stage;
            job.stillness.since = now;
        }
    }

    /// Notes the records that a job will write, and the keys that admit them, after a read of the
    /// catalog. The job then waits for its turn.
    pub(crate) fn wait(
        &mut self,
        name: &OsStr,
        records: BTreeMap<String, Digest>,
        signers: Vec<SignerEntry>,
    ) {
        if let Some(job) = self.running.get_mut(name) {
            job.records = records;
            job.signers = signers;
            job.stage = Stage::Waiting;
        }
    }

    /// Returns the first waiting bundle, in the order of `rank`, that can start: no bundle that is
    /// being imported wants one of its names for another image.
    pub(crate) fn unblocked<R: Ord>(&self, rank: impl Fn(&OsStr) -> R) -> Option<OsString> {
        let importing = |job: &&Job| matches!(job.stage, Stage::Importing);
        let importing: Vec<&Job> = self.running.values().filter(importing).collect();
        let is_free = |job: &&Job| {
            importing
                .iter()
                .all(|other| !disagree(&job.records, &other.records))
        };
        let waiting = self.running.values().filter(|job| job.waits());
        let free = waiting.filter(is_free).min_by_key(|job| rank(&job.name));
        free.map(|job| job.name.clone())
    }

    pub(crate) fn get(&self, name: &OsStr) -> Option<&Job> {
        self.running.get(name)
    }

    pub(crate) fn get_mut(&mut self, name: &OsStr) -> Option<&mut Job> {
        self.running.get_mut(name)
    }

    /// Removes a job that has ended.
    pub(crate) fn end(&mut self, name: &OsStr) -> Option<Job> {
        self.behind.retain(|_, other| other != name);
        let job = self.running.remove(name)?;
        if !job.has_yielded {
            self.yields.remove(name);
        }
        Some(job)
    }

    /// Marks the jobs that `is_outdated` selects. Returns the files whose work has to be dropped,
    /// and the jobs that only waited and are over.
    pub(crate) fn drop_if(&mut self, is_outdated: impl Fn(&Job) -> bool) -> (Vec<OsString>, Vec<Job>) {
        for job in self.running.values_mut().filter(|job| is_outdated(job)) {
            job.is_outdated = true;
        }
        let over = self.end_waiting(|job| job.is_outdated);
        let working = self.running.values().filter(|job| job.is_outdated);
        (working.map(|job| job.name.clone()).collect(), over)
    }

    /// Ends the jobs that wait for another job.
    pub(crate) fn drop_waiting(&mut self) {
        self.end_waiting(|_| true);
    }

    fn end_waiting(&mut self, is_over: impl Fn(&Job) -> bool) -> Vec<Job> {
        let over = self.running.values().filter(|job| job.waits() && is_over(job));
        let over: Vec<OsString> = over.map(|job| job.name.clone()).collect();
        over.iter().filter_map(|name| self.end(name)).collect()
    }

    /// Returns the jobs, ordered by file name.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Job> {
        self.running.values()
    }

    /// Returns the job that writes this record, if there is one.
    pub(crate) fn writer_of(&mut self, record: &str) -> Option<&mut Job> {
        self.running
            .values_mut()
            .find(|job| job.records.contains_key(record))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.running.is_empty()
    }
}

/// Returns the time for which an import keeps its lane without progress: twice as long after each
/// time that it gave the lane away. Interrupted work, such as the unpacking of a layer, starts
/// over. Without the growth, two jobs could interrupt each other for ever.
fn patience(yields: u32) -> Duration {
    STILL * (1 << yields.min(6))
}

/// Returns true if the two bundles want different images under one name.
fn disagree(one: &BTreeMap<String, Digest>, other: &BTreeMap<String, Digest>) -> bool {
    let is_disputed = |(name, target)| other.get(name).is_some_and(|wanted| wanted != target);
    one.iter().any(is_disputed)
}
