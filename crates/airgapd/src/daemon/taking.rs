//! Taking files on: the look that tells whether one is finished, and the orders for the jobs.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bundle::Identity;
use import::{Intent, Source, Space};
use oci_spec::image::Digest;
use tracing::{debug, info};

use super::job::{self, Opened, Order, Read};
use super::jobs::{Came, Job, Lane, Load, STILL, Stage};
use super::telling::{shown, tell};
use super::{BURST, Connection, Daemon};
use crate::config::Checksums;
use crate::desired;
use crate::folder::{self, Ending, Observation, Reason, Refused, Settle};
use crate::ledger::{self, ErrorClass};
use crate::lists;
use crate::roster::{self, Phase, Version};
use crate::runtime;
use crate::trust;
use basics::backoff;

/// How soon a file is looked at again that changed while it was looked at.
const AGAIN: Duration = Duration::from_millis(500);

/// How long files are looked at before the loop turns to something else.
const LOOKS: Duration = Duration::from_millis(50);

/// Why a name of a bundle's is left as it is.
const LATER: &str = "a bundle that arrived later has this name";
const MOVED: &str = "somebody else moved the record since the bundle was imported";

impl Daemon {
    /// Takes on what is due, if anything: files to be looked at, for a moment, or one to be imported. A turn takes the
    /// longer the more files there are, so that one look in each of them would take time with their square.
    pub(super) fn take_on_due(&mut self) -> bool {
        let started = Instant::now();
        let may_start = |name: &OsStr, version: &Version| self.may_start(name, version);
        // A suspect takes no other file along, and keeps none waiting that could be done.
        let is_sound =
            |name: &OsStr, version: &Version| !self.ledger.is_suspect(name) && self.may_start(name, version);
        let mut due = self.roster.due(started, is_sound);
        if due.is_empty() {
            due = self.roster.due(started, may_start);
        }
        for name in &due {
            let is_look = matches!(self.roster.phase(name), Some(Phase::Settling { .. }));
            self.take_on(name);
            if !is_look || started.elapsed() >= LOOKS {
                break;
            }
        }
        !due.is_empty()
    }

    fn take_on(&mut self, name: &OsStr) {
        let Some(version) = self.roster.version(name) else {
            return;
        };
        let opened = self
            .folder()
            .map(|folder| job::open_listed(&folder, name, &version));
        match opened {
            Ok(Ok(Some(file))) => self.take_on_open(name, file, version),
            Ok(Ok(None)) => self.look_again(name),
            Ok(Err(Refused::Gone)) | Err(_) => {
                self.relist = true;
                self.roster.set(name, Phase::Done);
            }
            Ok(Err(refused)) => self.turned_away(name, &refused),
        }
    }

    fn may_start(&self, name: &OsStr, version: &Version) -> bool {
        self.takes_on() && self.jobs.lane_for(self.load(name, version)).is_some()
    }

    /// Whether files are taken on at all.
    fn takes_on(&self) -> bool {
        let connected = matches!(self.connection, Connection::Up(_));
        connected && !self.disk.is_below() && !self.is_draining
    }

    fn load<'a>(&self, name: &'a OsStr, version: &'a Version) -> Load<'a> {
        let is_suspect = |name: &OsStr| self.ledger.is_suspect(name);
        Load {
            name,
            identity: &version.identity,
            size: match version.is_layout {
                // The size below it is unknown.
                true => u64::MAX,
                false => version.identity.size,
            },
            is_repair: version.is_known(&self.ledger, name),
            is_alone: is_suspect(name) || self.jobs.all().any(|job| is_suspect(&job.order.name)),
        }
    }

    /// Has a job that does nothing give its lane to a file that is due, if there are two such. Gives when to look again
    /// whether a job does nothing.
    pub(super) fn yield_lane(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let next = self.jobs.note_progress(now);
        let idle = |name: &OsStr, version: &Version| self.jobs.idle_before(self.load(name, version), now);
        let gains = |name: &OsStr, version: &Version| self.takes_on() && idle(name, version).is_some();
        let gaining = self.roster.due(now, gains).into_iter().next();
        let giving = gaining.and_then(|name| {
            let version = self.roster.version(&name)?;
            Some(idle(&name, &version)?.order.name.clone())
        });
        if let Some(name) = giving {
            self.give_way(&name);
        }
        next
    }

    fn give_way(&mut self, name: &OsStr) {
        info!(bundle = %shown(name), "nothing of it moves: others go first, and it goes on after them");
        if self.jobs.give_way(name).is_some() {
            self.dropped(name);
        }
    }

    fn take_on_open(&mut self, name: &OsStr, file: File, version: Version) {
        match self.roster.phase(name) {
            Some(Phase::Settling { .. }) if version.is_layout => drop(self.settle_layout(name, true)),
            Some(Phase::Settling { .. }) => self.settle(name, &file),
            _ if self.is_left_to_others(name, &file, &version) => {}
            _ => self.start_job(name, file, version),
        }
    }

    fn turned_away(&mut self, name: &OsStr, refused: &Refused) {
        let was_imported = self
            .ledger
            .get(name)
            .is_some_and(|entry| entry.imported.is_some());
        if let Some(reason) = folder::why_ignored_by_name(name).filter(|_| !was_imported) {
            return self.ignore(name, reason);
        }
        let is_told = self.rows.refused.admits(Instant::now());
        tell!(is_told, warn, bundle = %shown(name), outcome = "failed", "not imported: {refused}");
        self.roster.set(name, Phase::Failed { retry: None });
    }

    /// Spares files that an earlier run of this program found bad, or that it crashed over: they are told of once more
    /// and not read again.
    pub(super) fn recall_damage(&mut self) {
        let is_same_program = self.ledger.context.program.as_deref() == Some(ledger::PROGRAM);
        for name in self.roster.names(|phase| matches!(phase, Phase::Settling { .. })) {
            let (Some(entry), Some(identity)) = (self.ledger.get(&name), self.roster.identity(&name)) else {
                continue;
            };
            let is_set_aside = entry.is_set_aside(&identity);
            let text = match (&entry.last_error, is_set_aside) {
                (Some(error), true) => Some(error.text.as_str()),
                _ => entry.damage(&identity).filter(|_| is_same_program),
            };
            let Some(text) = text else { continue };
            let before = if is_set_aside { "" } else { ", as before" };
            let is_told = self.rows.refused.admits(Instant::now());
            tell!(is_told, error, bundle = %shown(&name), outcome = "failed", "not imported{before}: {text}");
            // What did land of it is looked after like anything else.
            let phase = match entry.outcome {
                ledger::LastTry::Ended(ledger::Outcome::Partial) => Phase::Known,
                _ => Phase::Failed { retry: None },
            };
            self.roster.set(&name, phase);
        }
    }

    fn settle(&mut self, name: &OsStr, file: &File) {
        let Some(since) = self.roster.still_since(name) else {
            return;
        };
        // The listing may be older than the file: what is about to be judged is what is open.
        let now = SystemTime::now();
        let identity = file.metadata().map(|metadata| Identity::of(&metadata)).ok();
        let Some(identity) =
            identity.filter(|identity| Some(identity) == self.roster.identity(name).as_ref())
        else {
            return self.look_again(name);
        };
        if let Some(left) = folder::indistinct_for(&identity, now) {
            let look = Instant::now() + left;
            return self.roster.set(name, Phase::Settling { look });
        }
        match Observation::of(file, since) {
            Ok(mut seen) => {
                let (ending, size) = (seen.ending, seen.size);
                let pull_lists = self.settings.pull_lists;
                let reason = roster::why_ignored(name, ending, size, pull_lists, &self.ledger);
                if reason.is_some() || pull_lists && lists::is_list(name, ending, size) {
                    // However short, it will not become an archive.
                    seen.ending = Ending::Foreign;
                }
                if let Some(reason) = reason {
                    return self.settle_ignored(name, &seen, reason);
                }
                self.settled(name, folder::settle(&seen, Instant::now()));
            }
            Err(error) => {
                let is_told = self.rows.refused.admits(Instant::now());
                tell!(is_told, warn, bundle = %shown(name), outcome = "failed", "cannot be read: {error}");
                self.roster.fail(name, Instant::now(), Some(backoff::chance()));
            }
        }
    }

    /// A file that is no bundle is ignored as soon as it is finished, until it changes.
    fn settle_ignored(&mut self, name: &OsStr, seen: &Observation, reason: Reason) {
        // An empty file is finished when no process has it open for writing, like any other that is no archive.
        let size = seen.size.max(1);
        match folder::settle(&Observation { size, ..*seen }, Instant::now()) {
            Settle::Settled => self.ignore(name, reason),
            settle => self.settled(name, settle),
        }
    }

    fn ignore(&mut self, name: &OsStr, reason: Reason) {
        if self.roster.ignore(name, reason) {
            let is_told = self.rows.ignored.admits(Instant::now());
            tell!(is_told, info, file = %shown(name), "ignored: {reason}");
        }
    }

    /// Whether it was settled; as long as it is not known to be whole, it is asked again after it was opened.
    fn settle_layout(&mut self, name: &OsStr, is_whole: bool) -> bool {
        let Some(since) = self.roster.still_since(name) else {
            return false;
        };
        let settle = folder::settle_layout(is_whole, since, Instant::now());
        self.settled(name, settle);
        settle == Settle::Settled
    }

    fn settled(&mut self, name: &OsStr, settle: Settle) {
        if let Some(why) = self.roster.settle(name, settle) {
            let is_told = self.rows.delayed.admits(Instant::now());
            tell!(
                is_told,
                warn,
                bundle = %shown(name),
                outcome = "stalled",
                "not imported, and nothing has happened for a while: {why}"
            );
        }
        // Its place in the order is that in which bundles were finished, not that in which there was time for them.
        if let (Some(Phase::Ready), Some(identity)) = (self.roster.phase(name), self.roster.identity(name)) {
            self.unsaved |= self.ledger.arrive(name, &identity);
        }
    }

    pub(super) fn look_again(&mut self, name: &OsStr) {
        self.relist = true;
        let look = Instant::now() + AGAIN;
        self.roster.set(name, Phase::Settling { look });
    }

    fn start_job(&mut self, name: &OsStr, file: File, version: Version) {
        let Connection::Up(up) = &self.connection else {
            return;
        };
        let is_repair = version.is_known(&self.ledger, name);
        let size = version.identity.size;
        let Some(lane) = self.jobs.lane_for(self.load(name, &version)) else {
            return;
        };
        let mode = self.settings.checksums;
        // One that was imported without a checksum is known too, and not enough where one is required.
        let is_needed = mode == Checksums::Require && version.sidecar.is_none();
        let is_checked = mode == Checksums::Off || is_repair && !is_needed;
        // What is no archive will be refused, and that is line enough for it; a folder is begun with when it is whole.
        let is_archive = !version.is_layout && !matches!(Ending::of(&file, size), Ok(Ending::Foreign));
        let is_begun = self.jobs.is_heavy(name, &version.identity);
        let is_told = is_archive && !is_begun && self.rows.begun.admits(Instant::now());
        let order = Arc::new(Order {
            is_told,
            is_beside_another: lane == Lane::Light,
            name: name.to_owned(),
            version,
            images_dir: self.images_dir.clone(),
            settings: Arc::clone(&self.settings),
            runtime: up.runtime.clone(),
            policy: up.policy.clone(),
            started: Instant::now(),
        });
        self.roster.set(name, Phase::Running);
        self.unpacking.interrupt();
        let open = job::open(Arc::clone(&order), file, is_checked);
        self.jobs.start(order, lane, open);
    }

    /// Takes over what a job came back with.
    pub(super) fn on_job(&mut self, name: &OsStr, came: Option<Came>) {
        if matches!(came, Some(Came::Imported(_) | Came::Pulled(_))) {
            // What containerd has to say about it may come later than somebody asks.
            self.requiring.doubt();
        }
        match came {
            Some(Came::Opened(opened)) => self.opened(name, opened),
            Some(Came::Imported(result)) => self.end_import(name, *result),
            Some(Came::Pulled(pulled)) => self.end_pull(name, pulled),
            Some(Came::Panicked(text)) => self.panicked(name, text),
            None => self.dropped(name),
        }
        self.start_unblocked();
    }

    /// A job was dropped because its file or the rules changed, or because it gave its lane to another.
    fn dropped(&mut self, name: &OsStr) {
        let ended = self.jobs.end(name);
        if self.roster.phase(name) == Some(Phase::Running) {
            self.roster.set(name, Phase::Ready);
            if ended.is_some_and(|job| job.has_yielded) && !self.jobs.is_behind(name) {
                // Nothing is known of what it waits for: those that are due go first.
                self.roster.postpone(name, Instant::now() + STILL);
            }
        }
        // Its lease may be nobody's any more.
        self.abandoned.insert(name.to_owned());
        self.sweep_soon();
    }

    fn opened(&mut self, name: &OsStr, opened: Opened) {
        let is_too_heavy = |error: &bundle::Error| {
            let job = self.jobs.get(name);
            job.is_some_and(|job| job.is_too_heavy(error))
        };
        match opened {
            Opened::Read {
                found: Err(error), ..
            } if is_too_heavy(&error) => self.wait_for_main_lane(name, &error),
            Opened::Read { found, is_reserved } if self.puts_off(name, &found, is_reserved) => {
                self.jobs.end(name);
            }
            Opened::Read { found: Ok(read), .. } => self.admit(name, read),
            Opened::List(Ok(text)) => self.start_pull(name, text),
            refused => {
                if let Some(job) = self.jobs.end(name) {
                    self.not_opened(&job, refused);
                }
            }
        }
    }

    /// Has a bundle read again within the whole limits, when no other one is.
    fn wait_for_main_lane(&mut self, name: &OsStr, error: &bundle::Error) {
        debug!(bundle = %shown(name), "too heavy to be read beside another bundle: {error}");
        let Some(job) = self.jobs.end(name) else {
            return;
        };
        let roster = &self.roster;
        let is_there = |name: &OsStr| roster.phase(name).is_some();
        self.jobs.note_heavy(name, &job.order.version.identity, is_there);
        if self.roster.phase(name) == Some(Phase::Running) {
            self.roster.set(name, Phase::Ready);
        }
    }

    /// Puts off what looks like an upload that goes on later, for as long as that may be.
    fn puts_off(
        &mut self,
        name: &OsStr,
        found: &Result<Box<Read>, bundle::Error>,
        is_reserved: bool,
    ) -> bool {
        let Some(job) = self.jobs.get(name).filter(|job| self.is_current(job)) else {
            return false;
        };
        let is_layout = job.order.version.is_layout;
        let since = self.roster.still_since(name).filter(|_| !is_layout);
        let until = since.and_then(|since| folder::may_go_on_until(since, Instant::now()));
        let Some(look) = until.filter(|_| job::may_go_on(found, is_reserved)) else {
            return false;
        };
        let is_told = self.rows.delayed.admits(Instant::now());
        tell!(
            is_told,
            info,
            bundle = %shown(name),
            "not whole yet; it is read again when it has changed, or has not for a while"
        );
        self.roster.set(name, Phase::Settling { look });
        true
    }

    fn not_opened(&mut self, job: &Job, opened: Opened) {
        let (order, name) = (&*job.order, &job.order.name);
        if !self.is_current(job) {
            return;
        }
        match opened {
            Opened::NotNow => self.look_again(name),
            Opened::Unverified(failure) => self.unverified(order, &failure),
            Opened::Read {
                found: Err(error), ..
            } => {
                if !order.version.is_layout || self.settle_layout(name, false) {
                    self.unreadable(order, &error);
                }
            }
            Opened::List(Err(error)) => {
                let text = format!("it cannot be read: {error}");
                self.failed(order, &text, ErrorClass::Bundle, false);
            }
            Opened::List(Ok(_)) | Opened::Read { found: Ok(_), .. } => unreachable!("these go on"),
        }
    }

    /// Lets a bundle go on whose catalog was read, or turns it away by what it says.
    fn admit(&mut self, name: &OsStr, read: Box<Read>) {
        let Some(job) = self.jobs.get(name) else {
            return;
        };
        let order = Arc::clone(&job.order);
        if self.is_draining || !self.is_current(job) {
            return self.dropped(name);
        }
        let is_layout = order.version.is_layout;
        if is_layout && read.broken.is_some() && !self.settle_layout(name, false) {
            self.jobs.end(name);
            return;
        }
        if is_layout {
            let is_told = self.rows.begun.admits(Instant::now());
            tell!(is_told, info, bundle = %shown(name), "importing");
        }
        let trusted = self.settings.trusted_digests.as_ref();
        if let Some(reason) = read.unfinished() {
            self.jobs.end(name);
            return self.failed(&order, &reason, ErrorClass::Bundle, false);
        }
        match trusted.map(|trusted| trust::check(trusted, &read.bundle.catalog().digest)) {
            Some(Err(why)) => {
                self.jobs.end(name);
                self.refuse(&order, &why);
            }
            Some(Ok(())) | None => self.jobs.wait(name, read),
        }
    }

    /// Starts the imports that wait for nothing any more.
    fn start_unblocked(&mut self) {
        while !self.is_draining {
            let ledger = &self.ledger;
            let arrival = |name: &OsStr| ledger.get(name).map_or(u64::MAX, |entry| entry.arrival);
            let Some((name, read)) = self.jobs.unblocked(arrival) else {
                return;
            };
            self.start_import(&name, *read);
        }
    }

    fn start_import(&mut self, name: &OsStr, read: Read) {
        if std::mem::take(&mut self.unsaved) {
            // What a crash leaves in containerd must be known to be this bundle's.
            self.save();
        }
        let source = Source::Bundle(ledger::label_name(name));
        let Some(order) = self.jobs.get(name).map(|job| Arc::clone(&job.order)) else {
            return;
        };
        if !order.version.is_known(&self.ledger, name) {
            // Whoever places a bundle anew wants its images, whatever was done to those of the one before.
            self.healing.forget(name);
        }
        let (leave, space) = (self.names_to_leave(&order, &read), self.space());
        let Some(job) = self.jobs.get_mut(name) else {
            return;
        };
        job.left = leave.keys().cloned().collect();
        let intent = Intent {
            leave,
            space,
            priority: self.settings.priority.clone(),
            pace: Arc::clone(&self.pace),
            most_records: self.settings.most_records,
            ..Intent::new(source, self.settings.on_conflict)
        };
        let import = job::import(order, Arc::clone(&read.bundle), intent, Arc::clone(&job.counters));
        let stage = Stage::Importing(read.bundle);
        self.jobs
            .go_on(name, stage, async { Came::Imported(Box::new(import.await)) });
    }

    /// Where the blobs go. Without a connection the import has to find out for itself that there is no room.
    fn space(&self) -> Space {
        match &self.connection {
            Connection::Up(up) => runtime::space(&self.settings, &up.runtime),
            Connection::Down { .. } => Space::default(),
        }
    }

    /// Names of a bundle's that are not its to write, with the reason.
    fn names_to_leave(&self, order: &Order, read: &Read) -> BTreeMap<String, String> {
        let mut leave = BTreeMap::new();
        if order.version.is_known(&self.ledger, &order.name) {
            // It is restored, and what others did on purpose since its import is not undone by that.
            let elsewhere = self.elsewhere.get(&order.name).into_iter().flatten();
            leave.extend(elsewhere.map(|name| (name.clone(), MOVED.to_owned())));
        }
        let later = self.ledger.later_claims(&order.name);
        let is_taken = |(name, target): &(&String, &Digest)| {
            later.get(name.as_str()).is_some_and(|wanted| wanted != target)
        };
        let taken = read.records.iter().filter(is_taken);
        leave.extend(taken.map(|(name, _)| (name.clone(), LATER.to_owned())));
        let names = read.records.keys().map(String::as_str);
        leave.extend(desired::left_out(names, &self.settings.exclude));
        leave
    }

    fn start_pull(&mut self, name: &OsStr, text: String) {
        let Some(order) = self.jobs.get_mut(name).map(|job| Arc::clone(&job.order)) else {
            return;
        };
        let catalog = job::list_digest(&text);
        if let Some(trusted) = &self.settings.trusted_digests
            && let Err(why) = trust::check(trusted, &catalog)
        {
            self.jobs.end(name);
            return self.refuse(&order, &why);
        }
        let pull = job::pull(order, text);
        self.jobs.go_on(name, Stage::Pulling { catalog }, async {
            Came::Pulled(pull.await)
        });
    }

    /// Whether a job is still for the file as it is now, by the rules as they are now.
    pub(super) fn is_current(&self, job: &Job) -> bool {
        let order = &job.order;
        !job.is_outdated && self.roster.version(&order.name).as_ref() == Some(&order.version)
    }

    /// Drops the jobs of files that were replaced or are gone. A checksum that comes while images are on their way stops
    /// nothing: each byte is held against its digest, and the file against its checksum afterwards.
    pub(super) fn drop_outdated_jobs(&mut self) {
        let roster = &self.roster;
        let is_outdated = |job: &Job| {
            let order = &job.order;
            let is_importing = matches!(job.stage, Stage::Importing(_));
            roster
                .version(&order.name)
                .is_none_or(|version| match is_importing {
                    true => version.identity != order.version.identity,
                    false => version != order.version,
                })
        };
        let outdated: Vec<OsString> = self
            .jobs
            .all()
            .filter(|job| is_outdated(job))
            .map(|job| job.order.name.clone())
            .collect();
        for name in &outdated {
            info!(bundle = %shown(name), "it was replaced or removed while it was imported: stopping");
        }
        if self.jobs.drop_if(is_outdated) {
            self.compare_within(BURST);
        }
    }
}
