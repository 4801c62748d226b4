//! The connection to containerd, and the comparison of the ledger with containerd's content.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::time::{Duration, Instant};

use basics::counted;
use containerd::{ImageChange, ImageEvent};
use import::{Survey, bundle_id, lease};

use super::desired::{self, ByName, Moved, Standing};
use super::line::Line;
use super::{Action, Errand, Failed, Turn, Unreached};
use crate::outcome::Outcome;
use crate::state::State;
use crate::state::ledger::{self, Context};
use crate::state::roster::Phase;

/// Delay of a comparison that containerd's events ask for, since events come in bursts.
pub(crate) const BURST: Duration = Duration::from_millis(200);
/// Length of the rest after a comparison, as a multiple of the comparison's own length. During the
/// rest, changed records cause no comparison. An import makes thousands of changes, and beside
/// thousands of records a comparison takes seconds.
const REST: u32 = 4;

/// The connection to containerd, as far as decisions need it.
#[derive(Debug)]
pub(crate) enum Connection {
    /// There is no connection. The daemon tries again at `next`.
    Down {
        next: Instant,
    },
    /// An attempt to connect is running.
    Trying,
    Up(Up),
}

#[derive(Debug)]
pub(crate) struct Up {
    /// Time of the next comparison.
    pub(crate) compare: Instant,
    /// Start of the running comparison, if there is one.
    begun: Option<Instant>,
    /// End of the rest after a long comparison. Until then, changed records cause no comparison.
    rest: Instant,
    /// True if all records with airgapd's pin were read and judged since the connection was made. A
    /// change of the configuration clears it.
    pub(crate) ours_listed: bool,
    /// True if the leases of bundles that are done or gone were deleted, which the first comparison
    /// does.
    leases_swept: bool,
    /// True if the daemon can see containerd's content store.
    pub(crate) has_store: bool,
}

/// Facts about a containerd that was just connected.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    /// For the log: its version, its socket and the platform of this node.
    pub(crate) text: String,
    /// containerd's uuid. It changes with another containerd or a wiped one. `None` if containerd
    /// does not report it.
    pub(crate) uuid: Option<String>,
    /// Everything that decides what an import yields, in a form that is equal for equal rules.
    pub(crate) fingerprint: String,
    pub(crate) has_store: bool,
}

impl Connection {
    pub(crate) fn is_up(&self) -> bool {
        matches!(self, Connection::Up(_))
    }

    /// Returns the time of the next attempt to connect, or of the next comparison.
    pub(super) fn due(&self) -> Option<Instant> {
        match self {
            Connection::Down { next } => Some(*next),
            Connection::Trying => None,
            Connection::Up(up) => Some(up.compare).filter(|_| up.begun.is_none()),
        }
    }
}

impl State {
    pub(super) fn connect_if_due(&mut self, turn: &mut Turn) {
        if let Connection::Down { next } = self.connection
            && next <= turn.now
        {
            self.connection = Connection::Trying;
            turn.send(Errand::Connect);
        }
    }

    pub(super) fn on_connected(&mut self, facts: Facts, turn: &mut Turn) {
        let Facts {
            text,
            uuid,
            fingerprint,
            has_store,
        } = facts;
        let now = turn.now;
        let is_told = self.rows.connection.admits(now);
        turn.say(Line::info(format!("connected to {text}")).told(is_told));
        self.link.connected(now);
        self.check_context(uuid, fingerprint, turn);
        self.connection = Connection::Up(Up {
            compare: now,
            begun: None,
            rest: now,
            ours_listed: false,
            leases_swept: false,
            has_store,
        });
        self.forget_room(now);
        self.roster.doubt();
        self.receipts.doubt_leases();
    }

    pub(super) fn on_unreached(&mut self, why: &Unreached, turn: &mut Turn) {
        let chance = turn.chance();
        let (next, is_news) = self.link.failed(&why.text, turn.now, chance);
        if is_news {
            let is_told = self.rows.connection.admits(turn.now);
            let cause = why
                .cause
                .as_ref()
                .map(|cause| format!(" ({cause})"))
                .unwrap_or_default();
            let text = format!("{}{cause}. Waiting for containerd", why.text);
            turn.say(Line::warn(text).outcome(Outcome::Unreachable).told(is_told));
        }
        self.connection = Connection::Down { next };
        // If jobs run, there was a containerd, and it comes back.
        self.is_misplaced = self.lanes.is_empty() && why.is_elsewhere;
    }

    /// Handles a failed call. If only a message was too large, the connection is still good. The
    /// daemon then repeats the call when it is due.
    pub(super) fn on_lost(&mut self, failed: &Failed, turn: &mut Turn) {
        if let Connection::Up(up) = &mut self.connection {
            up.begun = None;
        }
        if !failed.is_too_large {
            return self.go_away(&format!("containerd went away: {}", failed.text), turn);
        }
        let is_told = self.rows.connection.admits(turn.now);
        let line = Line::warn(failed.text.clone()).outcome(Outcome::Refused);
        turn.say(line.told(is_told));
    }

    /// Records that the connection is gone, if that is news.
    pub(crate) fn go_away(&mut self, text: &str, turn: &mut Turn) {
        if !matches!(self.connection, Connection::Down { .. }) {
            let chance = turn.chance();
            let next = self.link.lost(turn.now, chance);
            let is_told = self.rows.connection.admits(turn.now);
            turn.say(Line::warn(text).outcome(Outcome::Unreachable).told(is_told));
            self.connection = Connection::Down { next };
            turn.act(Action::Disconnect);
            self.required.lose(turn.now);
        }
        self.roster.doubt();
    }

    /// Updates the circumstances of the ledger. It holds for one containerd, one boot and one set
    /// of rules. If the rules changed, the daemon drops all jobs and queues every bundle again.
    pub(super) fn check_context(&mut self, uuid: Option<String>, fingerprint: String, turn: &mut Turn) {
        let before = std::mem::take(&mut self.ledger.context);
        let is_changed = before
            .selection
            .as_ref()
            .is_some_and(|before| *before != fingerprint);
        self.ledger.context = Context {
            containerd: uuid,
            // The next comparison updates it, after it has checked every blob.
            boot: before.boot,
            selection: Some(fingerprint),
            folder: before.folder,
            more_folders: before.more_folders,
            program: Some(ledger::PROGRAM.to_owned()),
        };
        if !is_changed {
            return;
        }
        self.ledger.forget_skipped();
        let text = "the node's platform, the configuration or its defaults changed: the daemon checks every bundle again";
        turn.say(Line::info(text));
        let is_settled = |phase| {
            matches!(
                phase,
                Phase::Known
                    | Phase::Done
                    | Phase::Running
                    | Phase::Waiting(_)
                    | Phase::Failed { retry: None }
            )
        };
        let mut names = self.roster.names(is_settled);
        names.retain(|name| !self.is_set_aside(name));
        for name in names {
            self.roster.queue(&name);
        }
        self.drop_jobs(|_| true, turn);
    }

    /// Returns true if the daemon leaves a file alone because it crashed over it.
    pub(super) fn is_set_aside(&self, name: &OsStr) -> bool {
        let identity = self.roster.identity(name);
        let entry = self.ledger.get(name);
        entry.is_some_and(|entry| identity.is_some_and(|identity| entry.is_set_aside(&identity)))
    }

    /// Applies an event of containerd. A changed record of a bundle or a deleted blob causes a
    /// comparison.
    pub(super) fn on_change(&mut self, event: &ImageEvent, turn: &mut Turn) {
        let Connection::Up(up) = &mut self.connection else {
            return;
        };
        self.required.doubt(turn.now);
        let is_deleted = event.kind == ImageChange::ContentDeleted;
        if !is_deleted && let Some(job) = self.lanes.writer_of(&event.name) {
            // The job most likely made the change. If another program did, the comparison after the
            // job finds it.
            job.disturbed = true;
            return;
        }
        let soon = (turn.now + BURST).max(up.rest);
        if up.compare <= soon {
            // The scheduled comparison covers this change too. So thousands of changes cause one
            // comparison.
            return;
        }
        let needs = |digest: &str| digest.parse().is_ok_and(|digest| self.ledger.needs(&digest));
        let why = match is_deleted {
            true => needs(&event.name).then_some("a blob of a managed image was deleted"),
            false => (self.ledger.vouches_for(&event.name)).then_some("a managed record changed"),
        };
        if let Some(why) = why {
            up.compare = soon;
            turn.say(Line::debug(why).image(&event.name));
        }
    }

    /// Schedules a comparison for the next turn.
    pub(super) fn compare_soon(&mut self, now: Instant) {
        self.compare_within(Duration::ZERO, now);
    }

    /// Schedules a comparison for no later than `wait` from now.
    pub(super) fn compare_within(&mut self, wait: Duration, now: Instant) {
        if let Connection::Up(up) = &mut self.connection {
            up.compare = up.compare.min(now + wait);
        }
    }

    /// Starts a comparison of the ledger with containerd if one is due. It opens no bundle.
    pub(super) fn compare_if_due(&mut self, turn: &mut Turn) {
        let (now, resync) = (turn.now, self.settings.resync);
        let Connection::Up(up) = &mut self.connection else {
            return;
        };
        if up.compare > now || up.begun.is_some() {
            return;
        }
        up.compare = now + resync;
        up.begun = Some(now);
        self.required.doubt(now);
        self.unpack.doubt();
        turn.send(Errand::Survey {
            labels: self.labels_in_doubt(turn.at),
            is_new_boot: self.is_new_boot(),
            unread: self.unread_leases(),
        });
    }

    pub(super) fn is_new_boot(&self) -> bool {
        is_new_boot(self.ledger.context.boot.as_deref(), self.boot.as_deref())
    }

    /// Applies a survey of containerd. It has all records with these `labels`.
    pub(super) fn on_survey(&mut self, survey: Survey, labels: Vec<String>, turn: &mut Turn) {
        if !self.connection.is_up() {
            return;
        }
        if self.is_new_boot() {
            let (whole, lost) = (survey.blobs.len(), survey.lost.len());
            let next = match lost {
                0 => "",
                _ => ". The daemon restores them from their bundles",
            };
            turn.say(Line::info(format!(
                "after a reboot: {} of imported bundles present, {lost} lost{next}",
                counted(whole, "blob")
            )));
        }
        self.ledger.context.boot.clone_from(&self.boot);
        self.note_leases(&survey);
        self.compare(&survey, turn);
        self.withdraw(survey, labels, turn);
    }

    fn compare(&mut self, survey: &Survey, turn: &mut Turn) {
        let by_name = ByName::of(&self.ledger);
        let mut findings: Vec<(OsString, Standing, Vec<Moved>)> = Vec::new();
        for name in self
            .roster
            .names(|phase| matches!(phase, Phase::Known | Phase::Done))
        {
            if let Some(entry) = self.ledger.get(&name) {
                let exclude = &self.settings.exclude;
                let (standing, moved) = desired::standing(entry, &self.ledger, &by_name, survey, exclude);
                findings.push((name, standing, moved));
            }
        }
        for (name, standing, mut moved) in findings {
            // A job moved the record, or is about to. The comparison after the job judges it.
            moved.retain(|moved| match self.lanes.writer_of(&moved.name) {
                Some(job) => {
                    job.disturbed = true;
                    false
                }
                None => true,
            });
            self.note_moved(&name, moved, turn);
            match standing {
                Standing::InPlace => self.roster.finish(&name),
                Standing::Missing(what) => self.restore(&name, &what, turn),
            }
        }
    }

    /// Logs once for each record that another program moved it, and remembers not to move it back.
    fn note_moved(&mut self, bundle: &OsStr, moved: Vec<Moved>, turn: &mut Turn) {
        for Moved { name, from, to } in &moved {
            if self.moved.insert((name.clone(), to.to_string())) {
                let text = format!("another program moved the record from {from} to {to}: left alone");
                turn.say(Line::warn(text).bundle(bundle).image(name));
            }
        }
        let names: BTreeSet<String> = moved.into_iter().map(|moved| moved.name).collect();
        match names.is_empty() {
            true => drop(self.elsewhere.remove(bundle)),
            false => drop(self.elsewhere.insert(bundle.to_owned(), names)),
        }
    }

    /// Imports a bundle again because containerd lacks a part of it: at once, or later if that
    /// happens again and again.
    fn restore(&mut self, name: &OsStr, what: &str, turn: &mut Turn) {
        match self.healing.wait(name, what, turn.now) {
            None => {
                let line = Line::info(format!("{what} is missing in containerd: restoring it"));
                turn.say(line.outcome(Outcome::Restored).bundle(name));
                self.roster.queue(name);
            }
            Some(wait) => {
                let text = format!(
                    "{what} is missing in containerd once more: another program seems to remove it on purpose. The daemon restores it in {wait:?}"
                );
                turn.say(Line::warn(text).bundle(name));
                self.roster.postpone(name, turn.now + wait);
            }
        }
    }

    /// Schedules a check of all leases in the next comparison.
    pub(super) fn sweep_soon(&mut self, now: Instant) {
        if let Connection::Up(up) = &mut self.connection {
            up.leases_swept = false;
        }
        self.compare_within(BURST, now);
    }

    /// Deletes the leases that an earlier run left behind for bundles that are done or gone. This
    /// is the last step of a comparison.
    pub(super) fn sweep_leases(&mut self, turn: &mut Turn) {
        let Connection::Up(up) = &mut self.connection else {
            return;
        };
        if std::mem::replace(&mut up.leases_swept, true) {
            return self.end_comparison(turn);
        }
        let is_over = |phase| matches!(phase, Phase::Done | Phase::Failed { retry: None });
        let pending = self.roster.names(|phase| !is_over(phase));
        let of_imports = pending
            .iter()
            .map(|name| format!("{}{}", lease::PREFIX, bundle_id(&ledger::label_name(name))));
        let entries = self.ledger.entries().into_iter();
        let of_receipts = entries.filter_map(|entry| Some(entry.stands_for.as_ref()?.lease.clone()));
        turn.send(Errand::Sweep {
            kept: of_imports.chain(of_receipts).collect(),
            ended: self.receipts.ended().clone(),
        });
    }

    pub(super) fn end_comparison(&mut self, turn: &mut Turn) {
        self.receipts.tend_soon();
        turn.act(Action::Save);
        if let Connection::Up(up) = &mut self.connection
            && let Some(begun) = up.begun.take()
        {
            up.rest = turn.now + turn.now.saturating_duration_since(begun) * REST;
        }
    }
}

/// Returns true if the machine rebooted since the ledger was written. An unknown boot id is no
/// reboot.
fn is_new_boot(before: Option<&str>, now: Option<&str>) -> bool {
    matches!((before, now), (Some(before), Some(now)) if before != now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_boot_than_the_one_that_is_known_is_a_new_one() {
        assert!(is_new_boot(Some("a"), Some("b")));
        for (before, now) in [
            (Some("a"), Some("a")),
            (None, Some("a")),
            (Some("a"), None),
            (None, None),
        ] {
            assert!(!is_new_boot(before, now), "{before:?} {now:?}");
        }
    }
}
