//! The files in the images folder and how far each has come: the daemon's work list. `listing`
//! takes over what the folder holds, and this module moves files on.
//!
//! Pure: listings, clock readings and results go in, the next thing to do comes out. Nothing here
//! touches a file or containerd, and nothing but the daemon's one loop owns it.

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

/// The waits after tries that may go better later.
const RETRY: Backoff = Backoff {
    first: Duration::from_secs(1),
    longest: Duration::from_secs(300),
};

/// Every file of the folder that may be a bundle.
#[derive(Debug, Default)]
pub struct Roster {
    files: BTreeMap<OsString, Tracked>,
    /// Entries that are no bundles as their names and types show, with the reason.
    others: BTreeMap<OsString, Reason>,
    /// What was said about a name already, so that it is said once.
    said: HashMap<OsString, HashSet<Remark>>,
}

/// A file as it was listed, with what stands for its checksum beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// The file as it was listed.
    pub identity: Identity,
    /// Of `<file>.sha256`, where there is one.
    pub(crate) sidecar: Option<Identity>,
    /// It is a folder, an unpacked layout.
    pub is_layout: bool,
}

impl Version {
    /// Whether the ledger's last import of the bundle by this name is of this very file, checked
    /// against this very checksum, and nothing was left to try again.
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
    /// When this version was first seen: the file has been still since then.
    since: Instant,
    phase: Phase,
    /// How often in a row this version was tried in vain.
    attempts: u32,
}

/// How far a file has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It may still be written to: looked at again then.
    Settling {
        /// Time of the next look.
        look: Instant,
    },
    /// Finished; imported as soon as there is a containerd.
    Ready,
    /// A job of the daemon is at it.
    Running,
    /// Finished, and left to another importer first.
    Following,
    /// The ledger knows this very file: compared with containerd before it is opened.
    Known,
    /// Finished, and missing something beside it: looked at again when that comes.
    Waiting,
    /// No bundle, as its content shows; left alone until it changes.
    Ignored(Reason),
    /// Its images are in place, as far as they can be.
    Done,
    /// It could not be imported; tried again then, or when it changes.
    Failed {
        /// Time of the next try; `None` where only another file or a change on the node helps.
        retry: Option<Instant>,
    },
}

impl Phase {
    /// The moves that decisions make. A file that was replaced begins anew, whatever it was.
    fn may_become(self, to: Phase) -> bool {
        use Phase::{Done, Failed, Following, Ignored, Known, Ready, Running, Settling, Waiting};
        match (self, to) {
            // To be looked at: not finished after all, or by rules that have changed.
            (Settling { .. } | Ready | Running | Ignored(_) | Failed { .. }, Settling { .. }) => true,
            // To be imported: finished, given up, restored, or by rules that have changed.
            (Ignored(_), Ready) => false,
            (_, Ready) => true,
            (Ready | Failed { retry: Some(_) }, Running | Following) => true,
            (_, Running | Following) => false,
            // Compared and in place, imported, or gone before it was opened.
            (Running | Known | Done | Settling { .. } | Ready | Failed { .. }, Done) => true,
            (Done | Settling { .. }, Known) => true,
            (Running, Waiting) => true,
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
    NoChecksum,
}

impl Roster {
    /// The files that are due to be looked at, or, where `may_start` says so, imported. Those that
    /// wait longest go first.
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

    /// When the next file is due that is not due now. What waits for `may_start` wakes nobody.
    pub(crate) fn next_due(&self, now: Instant, connected: bool) -> Option<Instant> {
        let wakes = |file: &Tracked| match file.due()? {
            (at, Step::Look) => at,
            (at, Step::Start) => at.filter(|at| connected && *at > now),
        };
        self.files.values().filter_map(wakes).min()
    }

    /// How long the file has been as it is; `None` when it is not in the list any more.
    pub(crate) fn still_since(&self, name: &OsStr) -> Option<Instant> {
        self.files.get(name).map(|file| file.since)
    }

    /// How far a file has come.
    pub(crate) fn phase(&self, name: &OsStr) -> Option<Phase> {
        self.files.get(name).map(|file| file.phase)
    }

    /// The identity a file was listed with.
    pub fn identity(&self, name: &OsStr) -> Option<Identity> {
        self.version(name).map(|version| version.identity)
    }

    /// What a file and its checksum were listed as.
    pub fn version(&self, name: &OsStr) -> Option<Version> {
        self.files.get(name).map(|file| file.version.clone())
    }

    /// Whether it is still to be found out whether a file is finished.
    pub(crate) fn is_settling(&self, name: &OsStr) -> bool {
        matches!(self.phase(name), Some(Phase::Settling { .. }))
    }

    /// Moves a file on. Moves that no decision makes are a fault of the program: they stop a test,
    /// and a daemon goes on.
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

    /// Has a file looked at (again) to find out whether it is finished.
    pub(crate) fn look_at(&mut self, name: &OsStr, look: Instant) {
        self.go(name, Phase::Settling { look });
    }

    /// Queues a finished file for an import.
    pub(crate) fn queue(&mut self, name: &OsStr) {
        self.go(name, Phase::Ready);
    }

    /// A job begins with a file that was queued or whose next try is due.
    pub(crate) fn begin(&mut self, name: &OsStr) {
        self.go(name, Phase::Running);
    }

    /// Queues a file again whose job came to nothing. Whether it still counted as running.
    pub(crate) fn stop_running(&mut self, name: &OsStr) -> bool {
        let is_running = self.phase(name) == Some(Phase::Running);
        if is_running {
            self.queue(name);
        }
        is_running
    }

    /// The images of a file are in place, as far as they can be.
    pub(crate) fn finish(&mut self, name: &OsStr) {
        self.go(name, Phase::Done);
    }

    /// Leaves a file to another importer for now.
    pub(crate) fn follow(&mut self, name: &OsStr) {
        self.go(name, Phase::Following);
    }

    /// Has a file compared with containerd that an earlier run imported in part.
    pub(crate) fn recall(&mut self, name: &OsStr) {
        self.go(name, Phase::Known);
    }

    /// Does not try a file again until it changes.
    pub fn refuse(&mut self, name: &OsStr) {
        self.go(name, Phase::Failed { retry: None });
    }

    /// Puts a file off that could be imported now.
    pub(crate) fn postpone(&mut self, name: &OsStr, until: Instant) {
        self.go(name, Phase::Failed { retry: Some(until) });
    }

    /// Writes down that a file failed. With `retry`, a random number, it is tried again, later each
    /// time.
    pub(crate) fn fail(&mut self, name: &OsStr, now: Instant, retry: Option<u64>) {
        let Some(file) = self.files.get_mut(name) else {
            return;
        };
        let failures = file.attempts;
        file.attempts = failures.saturating_add(1);
        let retry = retry.map(|chance| now + RETRY.wait(failures, chance));
        self.go(name, Phase::Failed { retry });
    }

    /// Leaves a file alone. Whether that is to be said: the first time only.
    pub fn ignore(&mut self, name: &OsStr, reason: Reason) -> bool {
        self.go(name, Phase::Ignored(reason));
        self.remark(name, Remark::Ignored(reason))
    }

    /// Notes that something is said of a name; whether that is the first time.
    fn remark(&mut self, name: &OsStr, what: Remark) -> bool {
        self.said.entry(name.to_owned()).or_default().insert(what)
    }

    /// Everything that is left alone, with the reason, by name.
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

    /// Lets a file wait for its checksum. Whether that is to be said: the first time only.
    pub(crate) fn await_checksum(&mut self, name: &OsStr) -> bool {
        self.go(name, Phase::Waiting);
        self.remark(name, Remark::NoChecksum)
    }

    /// Takes over whether a file is finished. What should be said about it, the first time only.
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

    /// Why a file that does not get finished was reported.
    pub(crate) fn stalled(&self, name: &OsStr) -> Option<Why> {
        self.said.get(name)?.iter().find_map(|what| match what {
            Remark::Waiting(why) => Some(*why),
            _ => None,
        })
    }

    /// The names in one phase, told by `is`.
    pub fn names(&self, is: impl Fn(Phase) -> bool) -> Vec<OsString> {
        self.files
            .iter()
            .filter(|(_, file)| is(file.phase))
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// How many files are in one phase, told by `is`.
    pub(crate) fn count(&self, is: impl Fn(Phase) -> bool) -> usize {
        self.files.values().filter(|file| is(file.phase)).count()
    }

    /// Everything is to be compared with containerd again: it was away, or is another one.
    pub(crate) fn doubt(&mut self) {
        for file in self.files.values_mut().filter(|file| file.phase == Phase::Done) {
            file.phase = Phase::Known;
        }
    }
}

/// What a file is due for.
enum Step {
    /// A look whether it is finished.
    Look,
    /// An import.
    Start,
}

impl Tracked {
    /// What the file waits for, and until when if time is all it waits for.
    fn due(&self) -> Option<(Option<Instant>, Step)> {
        match self.phase {
            Phase::Settling { look } => Some((Some(look), Step::Look)),
            Phase::Ready => Some((None, Step::Start)),
            Phase::Failed { retry: Some(retry) } => Some((Some(retry), Step::Start)),
            Phase::Failed { retry: None }
            | Phase::Running
            | Phase::Following
            | Phase::Known
            | Phase::Waiting
            | Phase::Ignored(_)
            | Phase::Done => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::folder::{Class, Listed};

    /// Tried again, after the whole wait.
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
            assert_eq!(roster.await_checksum("a.tar".as_ref()), is_news);
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
