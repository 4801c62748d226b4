//! The files in the images folder and the phase of each: the daemon's work list. `listing` takes
//! over the folder's content, and this module moves files from phase to phase.
//!
//! Pure: listings, clock readings and results go in, the next thing to do comes out. Nothing here
//! touches a file or containerd. Only the daemon's loop owns the roster.

mod listing;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::time::{Duration, Instant};

use bundle::Identity;

use crate::images::folder::{Reason, Settle, Why};
use crate::state::ledger::Ledger;
use basics::backoff::Backoff;

pub(crate) use self::listing::split_off_sidecars;
pub use self::listing::why_ignored;

/// The delays between tries of a file that may succeed later.
const RETRY: Backoff = Backoff {
    first: Duration::from_secs(1),
    longest: Duration::from_secs(300),
};

/// Every file of the folder that may be a bundle.
#[derive(Debug, Default)]
pub struct Roster {
    files: BTreeMap<OsString, Tracked>,
    /// Entries that are no bundles by name or type, with the reason.
    others: BTreeMap<OsString, Reason>,
    /// Remarks about a name that the log already has, so that it gets each only once.
    said: HashMap<OsString, HashSet<Remark>>,
}

/// A file as it was listed, together with the checksum file beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// The file as it was listed.
    pub identity: Identity,
    /// Identity of `<file>.sha256`, if it exists.
    pub(crate) sidecar: Option<Identity>,
    /// True for a folder, which is an unpacked layout.
    pub is_layout: bool,
}

impl Version {
    /// Returns true if the ledger's last import under this name read this very file. It must have
    /// checked the file against this very checksum and left nothing to retry.
    pub fn is_known(&self, ledger: &Ledger, name: &OsStr) -> bool {
        ledger.get(name).is_some_and(|entry| {
            let imported = entry.imported.as_ref().is_some_and(|imported| {
                imported.identity == self.identity && imported.sidecar == self.sidecar
            });
            imported && entry.identity == self.identity && entry.last_error.is_none()
        })
    }
}

#[derive(Debug)]
struct Tracked {
    version: Version,
    /// Time at which this version was first seen. The file has not changed since.
    since: Instant,
    phase: Phase,
    /// Number of failed tries of this version in a row.
    attempts: u32,
}

/// The phase of a file on its way into containerd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The file may still be written, so the daemon examines it again later.
    Settling {
        /// Time of the next look.
        look: Instant,
    },
    /// Finished. The import starts as soon as containerd is there.
    Ready,
    /// A job works on the file.
    Running,
    /// Finished. Another importer may import it first.
    Following,
    /// The ledger knows this very file. The daemon compares it with containerd before it opens it.
    Known,
    /// Finished, but a file beside it is missing. The daemon examines it again when that file
    /// appears.
    Waiting(Lack),
    /// Not a bundle by its content. The daemon leaves it alone until it changes.
    Ignored(Reason),
    /// As many of its images as possible are in place.
    Done,
    /// The file could not be imported. The daemon retries it at the given time, or when it changes.
    Failed {
        /// Time of the next try. `None` if only another file or a change on the node helps.
        retry: Option<Instant>,
    },
}

/// The file beside a bundle that the bundle waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lack {
    /// Its checksum.
    Checksum,
    /// A signature of a trusted key.
    Signature,
}

impl Phase {
    /// Returns true for the moves that decisions make. A replaced file starts over from any phase.
    fn may_become(self, to: Phase) -> bool {
        use Phase::{Done, Failed, Following, Ignored, Known, Ready, Running, Settling, Waiting};
        match (self, to) {
            // To be examined: not finished after all, or the rules changed.
            (Settling { .. } | Ready | Running | Ignored(_) | Failed { .. }, Settling { .. }) => true,
            // To be imported: finished, given up by a job or an importer, to be restored, or the
            // rules changed.
            (Ignored(_), Ready) => false,
            (_, Ready) => true,
            (Ready | Failed { retry: Some(_) }, Running | Following) => true,
            (_, Running | Following) => false,
            // In place after a comparison or an import, or removed before it was opened.
            (Running | Known | Done | Settling { .. } | Ready | Failed { .. }, Done) => true,
            (Done | Settling { .. }, Known) => true,
            (Running, Waiting(_)) => true,
            (Settling { .. } | Ready | Failed { .. }, Ignored(_)) => true,
            (Settling { .. } | Ready | Running | Known | Done | Failed { .. }, Failed { .. }) => true,
            _ => false,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Remark {
    Ignored(Reason),
    Waiting(Why),
    Lacks(Lack),
}

impl Roster {
    /// Returns the files that are due for a look, and those that are due for an import and pass
    /// `may_start`. Files that have waited longest come first.
    pub(crate) fn due(&self, now: Instant, may_start: impl Fn(&OsStr, &Version) -> bool) -> Vec<OsString> {
        let due = |(name, file): &(&OsString, &Tracked)| match file.due() {
            Some((at, Step::Look)) => at.is_none_or(|at| at <= now),
            Some((at, Step::Start)) => at.is_none_or(|at| at <= now) && may_start(name, &file.version),
            None => false,
        };
        let mut due: Vec<_> = self.files.iter().filter(due).collect();
        due.sort_by_key(|(_, file)| file.since);
        due.into_iter().map(|(name, _)| name.clone()).collect()
    }

    /// Returns the time at which the next file becomes due. A file that only waits for `may_start`
    /// sets no time.
    pub(crate) fn next_due(&self, now: Instant, connected: bool) -> Option<Instant> {
        let wakes = |file: &Tracked| match file.due()? {
            (at, Step::Look) => at,
            (at, Step::Start) => at.filter(|at| connected && *at > now),
        };
        self.files.values().filter_map(wakes).min()
    }

    /// Returns the time since which the file has not changed, or `None` if it is not on the roster.
    pub(crate) fn still_since(&self, name: &OsStr) -> Option<Instant> {
        self.files.get(name).map(|file| file.since)
    }

    /// Returns the phase of a file.
    pub(crate) fn phase(&self, name: &OsStr) -> Option<Phase> {
        self.files.get(name).map(|file| file.phase)
    }

    /// Returns the identity that a file was listed with.
    pub fn identity(&self, name: &OsStr) -> Option<Identity> {
        self.version(name).map(|version| version.identity)
    }

    /// Returns the identities that a file and its checksum were listed with.
    pub fn version(&self, name: &OsStr) -> Option<Version> {
        self.files.get(name).map(|file| file.version.clone())
    }

    /// Returns true if it is still unknown whether the file is finished.
    pub(crate) fn is_settling(&self, name: &OsStr) -> bool {
        matches!(self.phase(name), Some(Phase::Settling { .. }))
    }

    /// Moves a file to another phase. A move that no decision makes is a fault of the program. It
    /// stops a test, but not the daemon.
    fn go(&mut self, name: &OsStr, to: Phase) {
        let Some(file) = self.files.get_mut(name) else {
            return;
        };
        debug_assert!(
            file.phase.may_become(to),
            "{}: from {:?} to {to:?}",
            name.display(),
            file.phase
        );
        file.phase = to;
        if to == Phase::Done {
            file.attempts = 0;
        }
    }

    /// Schedules a look that finds out whether the file is finished.
    pub(crate) fn look_at(&mut self, name: &OsStr, look: Instant) {
        self.go(name, Phase::Settling { look });
    }

    /// Queues a finished file for an import.
    pub(crate) fn queue(&mut self, name: &OsStr) {
        self.go(name, Phase::Ready);
    }

    /// Marks a file as running: it was queued, or its next try is due.
    pub(crate) fn begin(&mut self, name: &OsStr) {
        self.go(name, Phase::Running);
    }

    /// Queues a file again after its job ended without a result. Returns true if the file still
    /// counted as running.
    pub(crate) fn stop_running(&mut self, name: &OsStr) -> bool {
        let is_running = self.phase(name) == Some(Phase::Running);
        if is_running {
            self.queue(name);
        }
        is_running
    }

    /// Marks a file as done: as many of its images as possible are in place.
    pub(crate) fn finish(&mut self, name: &OsStr) {
        self.go(name, Phase::Done);
    }

    /// Leaves a file to another importer for now.
    pub(crate) fn follow(&mut self, name: &OsStr) {
        self.go(name, Phase::Following);
    }

    /// Schedules a comparison with containerd for a file that an earlier run imported in part.
    pub(crate) fn recall(&mut self, name: &OsStr) {
        self.go(name, Phase::Known);
    }

    /// Stops trying a file until it changes.
    pub fn refuse(&mut self, name: &OsStr) {
        self.go(name, Phase::Failed { retry: None });
    }

    /// Postpones a file that could be imported now.
    pub(crate) fn postpone(&mut self, name: &OsStr, until: Instant) {
        self.go(name, Phase::Failed { retry: Some(until) });
    }

    /// Counts a failure. `retry` is a random number: if it is given, the daemon retries the file
    /// with increasing delay.
    pub(crate) fn fail(&mut self, name: &OsStr, now: Instant, retry: Option<u64>) {
        let Some(file) = self.files.get_mut(name) else {
            return;
        };
        let failures = file.attempts;
        file.attempts = failures.saturating_add(1);
        let retry = retry.map(|chance| now + RETRY.wait(failures, chance));
        self.go(name, Phase::Failed { retry });
    }

    /// Leaves a file alone. Returns true if the log does not have this yet.
    pub fn ignore(&mut self, name: &OsStr, reason: Reason) -> bool {
        self.go(name, Phase::Ignored(reason));
        self.remark(name, Remark::Ignored(reason))
    }

    /// Notes a remark about a name. Returns true if the remark is new.
    fn remark(&mut self, name: &OsStr, what: Remark) -> bool {
        self.said.entry(name.to_owned()).or_default().insert(what)
    }

    /// Returns everything that is left alone, with the reason, sorted by name.
    pub(crate) fn ignored(&self) -> Vec<(&OsStr, Reason)> {
        let of_files = self.files.iter().filter_map(|(name, file)| match file.phase {
            Phase::Ignored(reason) => Some((name.as_os_str(), reason)),
            _ => None,
        });
        let others = self
            .others
            .iter()
            .map(|(name, reason)| (name.as_os_str(), *reason));
        let mut ignored: Vec<_> = of_files.chain(others).collect();
        ignored.sort_unstable_by_key(|(name, _)| *name);
        ignored
    }

    /// Lets a bundle wait for a file beside it. Returns true if the log does not have this yet.
    pub(crate) fn await_file(&mut self, name: &OsStr, lack: Lack) -> bool {
        self.go(name, Phase::Waiting(lack));
        self.remark(name, Remark::Lacks(lack))
    }

    /// Applies the answer to whether a file is finished. Returns the reason of a stall if the log
    /// does not have it yet.
    pub(crate) fn settle(&mut self, name: &OsStr, settle: Settle) -> Option<Why> {
        match settle {
            Settle::Settled => {
                self.queue(name);
                None
            }
            Settle::Wait { until, .. } => {
                self.look_at(name, until);
                None
            }
            Settle::Stalled { until, why } => {
                self.look_at(name, until);
                self.remark(name, Remark::Waiting(why)).then_some(why)
            }
        }
    }

    /// Returns the reported reason why a file is not finished.
    pub(crate) fn stalled(&self, name: &OsStr) -> Option<Why> {
        self.said.get(name)?.iter().find_map(|what| match what {
            Remark::Waiting(why) => Some(*why),
            _ => None,
        })
    }

    /// Returns the names of the files whose phase `is` accepts.
    pub fn names(&self, is: impl Fn(Phase) -> bool) -> Vec<OsString> {
        self.files
            .iter()
            .filter(|(_, file)| is(file.phase))
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// Returns the number of files whose phase `is` accepts.
    pub(crate) fn count(&self, is: impl Fn(Phase) -> bool) -> usize {
        self.files.values().filter(|file| is(file.phase)).count()
    }

    /// Schedules a comparison for every file that is done, since containerd was away or was
    /// replaced.
    pub(crate) fn doubt(&mut self) {
        for file in self.files.values_mut().filter(|file| file.phase == Phase::Done) {
            file.phase = Phase::Known;
        }
    }
}

/// The step that a file is due for.
enum Step {
    /// A look that finds out whether the file is finished.
    Look,
    /// An import.
    Start,
}

impl Tracked {
    /// Returns the next step of the file and its time. The time is `None` if the file waits for
    /// more than time.
    fn due(&self) -> Option<(Option<Instant>, Step)> {
        match self.phase {
            Phase::Settling { look } => Some((Some(look), Step::Look)),
            Phase::Ready => Some((None, Step::Start)),
            Phase::Failed { retry: Some(retry) } => Some((Some(retry), Step::Start)),
            Phase::Failed { retry: None }
            | Phase::Running
            | Phase::Following
            | Phase::Known
            | Phase::Waiting(_)
            | Phase::Ignored(_)
            | Phase::Done => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::folder::{Class, Listed};

    /// A `chance` that gives the whole delay before a retry.
    const AGAIN: Option<u64> = Some(0);

    pub(super) fn identity(inode: u64) -> Identity {
        Identity {
            device: 1,
            inode,
            size: 10,
            mtime_ns: 0,
            ctime_ns: 0,
        }
    }

    pub(super) fn file(name: &str, inode: u64) -> Listed {
        Listed {
            name: name.into(),
            class: Class::Candidate,
            identity: identity(inode),
        }
    }

    pub(super) fn new_only(_: &OsStr, _: &Version) -> bool {
        false
    }

    pub(super) fn always(_: &OsStr, _: &Version) -> bool {
        true
    }

    pub(super) fn never(_: &OsStr, _: &Version) -> bool {
        false
    }

    pub(super) fn first_due(
        roster: &Roster,
        now: Instant,
        may_start: impl Fn(&OsStr, &Version) -> bool,
    ) -> Option<OsString> {
        roster.due(now, may_start).into_iter().next()
    }

    #[test]
    fn a_file_that_cannot_start_yet_wakes_nobody_and_does_not_hide_another() {
        let now = Instant::now();
        let mut roster = Roster::default();
        roster.list(vec![file("a.tar", 1), file("b.tar", 2)], now, new_only);
        roster.fail("a.tar".as_ref(), now, AGAIN);
        let later = now + Duration::from_secs(2);
        assert_eq!(
            roster.next_due(later, true),
            Some(now),
            "b is still to be looked at"
        );
        roster.queue("b.tar".as_ref());
        assert_eq!(roster.next_due(later, true), None);
        let not_a = |name: &OsStr, _: &Version| name != "a.tar";
        assert_eq!(first_due(&roster, later, not_a), Some("b.tar".into()));
        assert_eq!(first_due(&roster, later, always), Some("a.tar".into()));
    }

    #[test]
    fn what_a_job_is_at_is_not_due_and_its_failures_are_still_counted() {
        let now = Instant::now();
        let mut roster = Roster::default();
        roster.list(vec![file("a.tar", 1)], now, new_only);
        roster.fail("a.tar".as_ref(), now, AGAIN);
        roster.begin("a.tar".as_ref());
        assert_eq!(first_due(&roster, now + RETRY.longest, always), None);
        roster.fail("a.tar".as_ref(), now, AGAIN);
        assert_eq!(roster.next_due(now, true), Some(now + 2 * RETRY.first));
    }

    #[test]
    fn a_new_file_is_due_at_once_and_ready_only_with_a_containerd() {
        let now = Instant::now();
        let mut roster = Roster::default();
        roster.list(vec![file("a.tar", 1)], now, new_only);
        assert_eq!(first_due(&roster, now, never), Some("a.tar".into()));
        roster.settle("a.tar".as_ref(), Settle::Settled);
        assert_eq!(first_due(&roster, now, never), None);
        assert_eq!(first_due(&roster, now, always), Some("a.tar".into()));
    }

    #[test]
    fn a_file_the_ledger_knows_waits_for_the_comparison() {
        let now = Instant::now();
        let mut roster = Roster::default();
        roster.list(vec![file("a.tar", 1)], now, |_, _| true);
        assert_eq!(roster.phase("a.tar".as_ref()), Some(Phase::Known));
        assert_eq!(first_due(&roster, now, always), None);
    }

    #[test]
    fn a_stalled_upload_is_told_once_for_each_change_of_the_file() {
        let now = Instant::now();
        let mut roster = Roster::default();
        roster.list(vec![file("a.tar", 1)], now, new_only);
        let stalled = Settle::Stalled {
            until: now,
            why: Why::Empty,
        };
        assert_eq!(roster.settle("a.tar".as_ref(), stalled), Some(Why::Empty));
        assert_eq!(roster.settle("a.tar".as_ref(), stalled), None);
        roster.list(vec![file("a.tar", 2)], now, new_only);
        assert_eq!(roster.settle("a.tar".as_ref(), stalled), Some(Why::Empty));
    }

    #[test]
    fn a_bundle_waits_for_its_checksum_and_that_is_told_once() {
        let now = Instant::now();
        let mut roster = Roster::default();
        roster.list(vec![file("a.tar", 1)], now, new_only);
        for is_news in [true, false] {
            roster.queue("a.tar".as_ref());
            roster.begin("a.tar".as_ref());
            assert_eq!(roster.await_file("a.tar".as_ref(), Lack::Checksum), is_news);
        }
        assert_eq!(
            (first_due(&roster, now, always), roster.next_due(now, true)),
            (None, None)
        );
        roster.list(vec![file("a.tar", 1), file("a.tar.sha256", 7)], now, new_only);
        assert_eq!(first_due(&roster, now, never), Some("a.tar".into()));
    }

    #[test]
    fn retries_come_later_each_time_up_to_a_limit() {
        let now = Instant::now();
        let mut roster = Roster::default();
        roster.list(vec![file("a.tar", 1)], now, new_only);
        let mut waits = Vec::new();
        for _ in 0..12 {
            roster.fail("a.tar".as_ref(), now, AGAIN);
            waits.push(roster.next_due(now, true).unwrap() - now);
        }
        assert_eq!(waits[..3], [1, 2, 4].map(Duration::from_secs));
        assert_eq!(waits[11], RETRY.longest);
        roster.fail("a.tar".as_ref(), now, None);
        assert_eq!(roster.next_due(now, true), None);
    }

    #[test]
    fn the_file_that_waits_longest_goes_first() {
        let now = Instant::now();
        let mut roster = Roster::default();
        roster.list(vec![file("z.tar", 1)], now, new_only);
        roster.list(
            vec![file("a.tar", 2), file("z.tar", 1)],
            now + Duration::from_millis(1),
            new_only,
        );
        assert_eq!(
            first_due(&roster, now + Duration::from_secs(1), always),
            Some("z.tar".into())
        );
    }

    #[test]
    fn after_a_doubt_everything_done_is_compared_again() {
        let now = Instant::now();
        let mut roster = Roster::default();
        roster.list(vec![file("a.tar", 1)], now, new_only);
        roster.finish("a.tar".as_ref());
        roster.doubt();
        assert_eq!(
            roster.names(|phase| phase == Phase::Known),
            [OsString::from("a.tar")]
        );
    }
}
