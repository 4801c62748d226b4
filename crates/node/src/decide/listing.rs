//! Decides what a listing of the folder changes: new, changed and known files, and bundles that are
//! gone. If the folder itself disappeared, its bundles do not count as gone.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::PathBuf;

use basics::counted;
use bundle::Identity;
use oci_spec::image::Digest;

use super::line::Line;
use super::{Action, Turn};
use crate::images::folder::{FolderTrust, Listing};
use crate::outcome::Outcome;
use crate::settings::Checksums;
use crate::state::State;
use crate::state::ledger::{self, Entry};
use crate::state::roster::{self, Phase, Version};

/// The folder as a listing found it.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) listing: Listing,
    /// Device and inode of the folder.
    pub(crate) place: (u64, u64),
    /// True if the daemon created the folder just now.
    pub(crate) is_created: bool,
    pub(crate) trust: FolderTrust,
    /// Files of the ledger that the listing lacks and that cannot be examined. They do not count as
    /// gone.
    pub(crate) unclear: BTreeSet<OsString>,
    /// A mount that this node declares for the folder but that is absent. The daemon looks for it
    /// only if files of the ledger are missing.
    pub(crate) missing_mount: Option<PathBuf>,
    /// The operator's folder of trusted digests, if it exists.
    pub(crate) trusted: Option<Trusted>,
}

/// The operator's trusted digests at the time of the listing.
#[derive(Debug)]
pub(crate) struct Trusted {
    /// Names and identities of the files in their folder, which tell whether it changed.
    pub(crate) stamp: Vec<(OsString, Identity)>,
    /// Imported bundles that the trusted digests do not cover.
    pub(crate) distrusted: BTreeSet<OsString>,
}

/// Device and inode that no folder has.
const NO_FOLDER: (u64, u64) = (0, 0);

/// The daemon's knowledge of the folder itself.
#[derive(Debug, Default)]
pub(crate) struct FolderState {
    /// The obstacle to all imports from the folder, if there is one. The log has each obstacle
    /// once.
    pub(crate) trouble: Option<String>,
    /// Bundles that are absent but do not count as removed.
    pub(crate) vanished: Option<Vanished>,
    /// See [`Seen::missing_mount`].
    missing_mount: Option<PathBuf>,
    /// Device and inode. Once the folder existed, the daemon creates no other one in its place.
    pub(crate) place: Option<(u64, u64)>,
    /// The last warning about its permissions in the log.
    warned: Option<String>,
    /// The stamp of the trusted digests at the last comparison with the bundles.
    pub(crate) trusted: Option<Vec<(OsString, Identity)>>,
    /// Files of the ledger that could not be examined.
    unclear: BTreeSet<OsString>,
    /// True if the folder was listed since the start.
    is_listed: bool,
    /// True if an earlier listing since the start found the same folder.
    is_watched: bool,
}

/// Bundles that disappeared with their folder. That looks like a lost mount, not like a removal by
/// the operator.
#[derive(Debug)]
pub(crate) struct Vanished {
    /// The sign of a lost mount, in a sentence.
    sign: String,
    /// The bundles as they were, with the digests of their catalogs.
    bundles: BTreeMap<OsString, (Identity, Digest)>,
    /// Number of bundles that are not back.
    pub(crate) missing: usize,
    /// Number of imported bundles that belong in the folder.
    known: usize,
}

impl fmt::Display for Vanished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Vanished {
            sign, missing, known, ..
        } = self;
        let are = if *missing == 1 { "is" } else { "are" };
        write!(
            f,
            "{sign}: {missing} of {} {are} missing",
            counted(*known, "bundle")
        )
    }
}

impl State {
    /// Applies a listing of the folder.
    pub(super) fn on_listed(&mut self, listed: Result<Box<Seen>, String>, turn: &mut Turn) {
        let listed = listed.and_then(|seen| self.judge(*seen, turn));
        match listed {
            Ok(seen) => {
                self.folder.trouble = None;
                self.take_over(seen, turn);
            }
            Err(reason) => {
                if self.folder.trouble.as_ref() != Some(&reason) {
                    let text = format!("{}: {reason}", self.images_dir.display());
                    turn.say(Line::warn(text).outcome(Outcome::Unusable));
                }
                self.folder.trouble = Some(reason);
            }
        }
        self.drop_outdated_jobs(turn);
    }

    fn judge(&mut self, seen: Seen, turn: &mut Turn) -> Result<Seen, String> {
        if seen.is_created {
            let folder = self.images_dir.display();
            turn.say(Line::info(format!("created the images folder {folder}")));
        }
        self.folder.is_watched = self.folder.is_listed && self.folder.place == Some(seen.place);
        self.folder.place = Some(seen.place);
        match &seen.trust {
            FolderTrust::Trusted => {}
            FolderTrust::Warning(why) => {
                if self.folder.warned.as_ref() != Some(why) {
                    turn.say(Line::warn(format!("{}: {why}", self.images_dir.display())));
                }
                self.folder.warned = Some(why.clone());
            }
            FolderTrust::Refused(why) => return Err(format!("nothing is imported: {why}")),
        }
        Ok(seen)
    }

    fn take_over(&mut self, seen: Seen, turn: &mut Turn) {
        let Seen {
            listing,
            unclear,
            missing_mount,
            trusted,
            ..
        } = seen;
        turn.act(Action::Watch(listing.folders));
        let mut listed = listing.entries;
        if self.settings.checksums == Checksums::Off {
            listed = roster::split_off_sidecars(listed).0;
        }
        let ledger = &self.ledger;
        let known = |name: &OsStr, version: &Version| version.is_known(ledger, name);
        let told = self.roster.list(listed, turn.now, known);
        for (name, reason) in told {
            let is_told = self.rows.ignored.admits(turn.now);
            turn.say(Line::info(format!("ignored: {reason}")).file(&name).told(is_told));
        }
        self.folder.unclear = unclear;
        self.folder.missing_mount = missing_mount;
        self.folder.is_listed = true;
        self.recall_damage(turn);
        self.notice_gone(turn);
        if self.roster.count(|phase| phase == Phase::Known) > 0 {
            self.compare_soon(turn.now);
        }
        if let Some(trusted) = trusted {
            self.look_at_trust(trusted);
        }
    }

    /// Spares files that an earlier run of this program found damaged or crashed over. The log has
    /// their error once more, and the daemon does not read them again.
    fn recall_damage(&mut self, turn: &mut Turn) {
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
            let is_told = self.rows.refused.admits(turn.now);
            let line = Line::error(format!("not imported{before}: {text}")).outcome(Outcome::Failed);
            turn.say(line.bundle(&name).told(is_told));
            // The daemon keeps the images of a partial import in place like any others.
            match entry.outcome {
                ledger::LastTry::Ended(ledger::Outcome::Partial) => self.roster.recall(&name),
                _ => self.roster.refuse(&name),
            }
        }
    }

    /// Marks bundles as gone if the ledger has them and the listing lacks them. If the folder
    /// itself is at fault, no bundle counts as gone.
    pub(super) fn notice_gone(&mut self, turn: &mut Turn) {
        let known: Vec<&Entry> = self
            .ledger
            .entries()
            .into_iter()
            .filter(|entry| entry.gone.is_none())
            .collect();
        let missing: BTreeSet<OsString> = known
            .iter()
            .filter(|entry| !self.is_there(&entry.file))
            .map(|entry| entry.file.clone())
            .collect();
        if let Some(vanished) = self.vanished() {
            let is_news = self
                .folder
                .vanished
                .as_ref()
                .is_none_or(|before| before.missing != vanished.missing);
            if is_news {
                let text = format!(
                    "{vanished}. The pins of their images stay until the bundles return, or until you run `airgapd release --vanished`"
                );
                turn.say(Line::warn(text).outcome(Outcome::Vanished));
            }
            self.folder.vanished = Some(vanished);
            // After a restart the folder still counts as another folder, even if the mount is back
            // by then.
            self.ledger.context.folder = Some(NO_FOLDER);
            turn.act(Action::Save);
            return;
        }
        if self.folder.vanished.take().is_some() {
            turn.say(Line::info("no bundle is missing any more"));
        }
        for name in &missing {
            let is_told = self.rows.gone.admits(turn.now);
            let line = Line::info("the bundle is gone").outcome(Outcome::Removed);
            turn.say(line.bundle(name).told(is_told));
        }
        let entries = self.ledger.entries().into_iter();
        let there: BTreeSet<OsString> = entries
            .filter(|entry| self.is_there(&entry.file))
            .map(|entry| entry.file.clone())
            .collect();
        self.ledger.mark_gone(|name| there.contains(name), turn.at);
        self.ledger.context.folder = self.folder.place;
        if !missing.is_empty() {
            self.compare_soon(turn.now);
        }
    }

    /// Returns the bundles that are missing but do not count as removed. Bundles that were never
    /// imported do not count: they have nothing to lose.
    fn vanished(&self) -> Option<Vanished> {
        let entries = self.ledger.entries().into_iter();
        let known = entries.filter(|entry| entry.gone.is_none() && entry.imported.is_some());
        let known: Vec<&Entry> = known.collect();
        let before = self.folder.vanished.as_ref();
        let is_back = |entry: &&&Entry| {
            let lost = before.and_then(|before| before.bundles.get(&entry.file));
            self.is_there(&entry.file) && lost.is_none_or(|lost| self.is_back(entry, lost))
        };
        let missing = known.len() - known.iter().filter(is_back).count();
        if missing == 0 {
            return None;
        }
        let (sign, bundles) = match before {
            Some(before) => {
                let sign = self.sign_of_loss().unwrap_or_else(|| before.sign.clone());
                (sign, before.bundles.clone())
            }
            None => {
                let bundle = |entry: &&Entry| {
                    let imported = entry.imported.as_ref()?;
                    let was = (imported.identity.clone(), imported.catalog.clone());
                    Some((entry.file.clone(), was))
                };
                let missing = known.iter().filter(|entry| !self.is_there(&entry.file));
                (self.sign_of_loss()?, missing.filter_map(bundle).collect())
            }
        };
        Some(Vanished {
            sign,
            bundles,
            missing,
            known: known.len(),
        })
    }

    /// Returns true if a file is the bundle that was lost. Its size and the time of its last change
    /// tell, or its catalog if the operator restored it from elsewhere.
    fn is_back(&self, entry: &Entry, (identity, catalog): &(Identity, Digest)) -> bool {
        let now = self.roster.identity(&entry.file);
        let is_same = |now: &Identity| now.size == identity.size && now.mtime_ns == identity.mtime_ns;
        let imported = entry.imported.as_ref();
        now.as_ref().is_some_and(is_same)
            || imported.is_some_and(|imported| {
                Some(&imported.identity) == now.as_ref() && imported.catalog == *catalog
            })
    }

    /// Returns a sign that the folder is a lost mount, if there is one. An operator may empty a
    /// folder, but it stays the same folder.
    fn sign_of_loss(&self) -> Option<String> {
        let folder = self.images_dir.display();
        let (before, now) = (self.ledger.context.folder, self.folder.place?);
        // A reboot assigns new device numbers.
        let is_other =
            before.is_some_and(|(device, inode)| inode != now.1 || device != now.0 && !self.is_new_boot());
        match &self.folder.missing_mount {
            // Files that left this very folder while the daemon watched were removed.
            Some(mount) if is_other || !self.folder.is_watched => Some(format!(
                "{folder} is on {}, which is not mounted",
                mount.display()
            )),
            _ => is_other.then(|| format!("{folder} is another folder than before")),
        }
    }

    /// Returns true if a file is in the folder, as far as the daemon can tell. A file that cannot
    /// be examined is not gone.
    pub(super) fn is_there(&self, name: &OsStr) -> bool {
        !self.folder.is_listed || self.roster.phase(name).is_some() || self.folder.unclear.contains(name)
    }

    /// Compares the bundles with the trusted digests again if those have changed.
    fn look_at_trust(&mut self, trusted: Trusted) {
        let Trusted { stamp, distrusted } = trusted;
        if self.folder.trusted.as_ref() == Some(&stamp) {
            return;
        }
        let is_settled = |phase| {
            matches!(
                phase,
                Phase::Known | Phase::Done | Phase::Failed { retry: None, .. }
            )
        };
        let ledger = &self.ledger;
        let mut names = self.roster.names(is_settled);
        names.retain(|name| {
            let entry = ledger.get(name);
            let is_refused = entry.is_some_and(Entry::is_refused);
            let is_set_aside = entry.is_some_and(|entry| entry.is_set_aside(&entry.identity));
            is_refused || !is_set_aside && distrusted.contains(name)
        });
        for name in names {
            self.roster.queue(&name);
        }
        self.folder.trusted = Some(stamp);
    }

    /// Returns the files that jobs work on, for the next daemon.
    pub(crate) fn under_way(&self) -> BTreeMap<OsString, Identity> {
        let jobs = self.lanes.all();
        jobs.map(|job| (job.name.clone(), job.version.identity.clone()))
            .collect()
    }
}
