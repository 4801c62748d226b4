//! Decides what a listing of the folder changes: new, changed and known files, and bundles that are
//! gone. If the folder itself disappeared, its bundles do not count as gone.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};

use basics::counted;
use bundle::Identity;
use oci_spec::image::Digest;

use super::line::Line;
use super::{Action, Turn};
use crate::images::folder::{FolderTrust, Listing};
use crate::images::{keys, proofs};
use crate::outcome::Outcome;
use crate::place::folder_of;
use crate::settings::{Checksums, Signatures};
use crate::state::State;
use crate::state::ledger::{self, Entry, Ledger};
use crate::state::roster::{self, Lack, Phase, Roster, Version};
use crate::status::{FolderStatus, VanishedStatus};

/// The folder as a listing found it.
#[derive(Debug)]
pub(crate) struct Seen {
    /// The entries, by the names of bundles ([`folder_of`]).
    pub(crate) listing: Listing,
    /// Device and inode of the folder.
    pub(crate) place: (u64, u64),
    /// True if the folder's file system or mount is read-only.
    pub(crate) is_read_only: bool,
    /// The reason why the daemon must not remove files of the folder, if it must not.
    pub(crate) keeps: Option<&'static str>,
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
    /// The files that may belong to proofs, if signatures are asked for.
    pub(crate) proofs: Vec<(OsString, Identity)>,
    /// The keys and revocations, if signatures are asked for and these changed.
    pub(crate) keys: Option<KeysSeen>,
}

/// The keys and revocations as they are now.
#[derive(Clone, Debug)]
pub(crate) struct KeysSeen {
    pub(crate) stamp: keys::Stamp,
    /// True if the settings changed since. The keys count until the next look at them.
    pub(crate) is_stale: bool,
    /// Fingerprints of the usable keys.
    pub(crate) trusted: HashSet<Digest>,
    /// The reason why no new bundle can be admitted.
    pub(crate) problem: Option<String>,
    /// The files that are no usable key, each with the reason.
    pub(crate) unusable: Vec<String>,
    /// Imported bundles whose signatures count no more.
    pub(crate) withdrawn: BTreeSet<OsString>,
}

/// Names and identities of the files in the folder of trusted digests, which tell whether it
/// changed.
pub(crate) type TrustStamp = Vec<(OsString, Identity)>;

/// The operator's trusted digests at the time of the listing.
#[derive(Debug)]
pub(crate) struct Trusted {
    pub(crate) stamp: TrustStamp,
    /// Imported bundles that the trusted digests do not cover.
    pub(crate) distrusted: BTreeSet<OsString>,
}

/// Device and inode that no folder has.
const NO_FOLDER: (u64, u64) = (0, 0);

/// The daemon's knowledge of one images folder.
#[derive(Debug, Default)]
pub(crate) struct FolderState {
    pub(crate) path: PathBuf,
    /// True if the ledger has bundles of the folder and the configuration lacks it.
    is_dropped: bool,
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
    /// See [`Seen::is_read_only`].
    is_read_only: bool,
    /// See [`Seen::keeps`].
    pub(super) keeps: Option<&'static str>,
    /// Files of the ledger that could not be examined.
    unclear: BTreeSet<OsString>,
    /// The files that may belong to proofs, as of the last listing.
    proofs: Vec<(OsString, Identity)>,
    /// True if the folder was listed since the start.
    is_listed: bool,
    /// True if an earlier listing since the start found the same folder.
    is_watched: bool,
}

impl FolderState {
    /// Returns the images folders, and then the folders that only the ledger knows.
    pub(crate) fn all(first: &Path, more_dirs: &[PathBuf], ledger: &Ledger) -> Vec<FolderState> {
        let paths = std::iter::once(first).chain(more_dirs.iter().map(PathBuf::as_path));
        let folder = |path: &Path| FolderState {
            path: path.to_owned(),
            ..FolderState::default()
        };
        let mut folders: Vec<FolderState> = paths.map(folder).collect();
        let entries = ledger.entries().into_iter();
        let dropped: BTreeSet<&Path> = entries
            .filter(|entry| folder_of(&entry.file, more_dirs).is_none())
            .filter_map(|entry| Path::new(&entry.file).parent())
            .collect();
        folders.extend(dropped.into_iter().map(|path| FolderState {
            is_dropped: true,
            is_listed: true,
            ..folder(path)
        }));
        folders
    }

    /// Returns the folder for the status. A folder that only the ledger knows is of interest while
    /// bundles of it are missing.
    pub(crate) fn status(&self) -> FolderStatus {
        FolderStatus {
            path: self.path.display().to_string(),
            problem: self.trouble.clone(),
            vanished: self.alarm().map(|vanished| VanishedStatus {
                bundles: vanished.missing,
                problem: vanished.to_string(),
            }),
        }
    }

    /// Returns the folder's key in [`ledger::Context::more_folders`].
    fn key(&self) -> String {
        ledger::label_name(self.path.as_os_str())
    }

    /// Returns true if a bundle belongs to the folder.
    fn has(&self, name: &OsStr) -> bool {
        match self.is_dropped {
            true => Path::new(name).parent() == Some(&self.path),
            false => Path::new(name).starts_with(&self.path),
        }
    }

    fn is_there(&self, name: &OsStr, roster: &Roster) -> bool {
        !self.is_listed || roster.phase(name).is_some() || self.unclear.contains(name)
    }
}

/// Bundles that disappeared with their folder. That looks like a lost mount, not like a removal by
/// the operator.
#[derive(Debug)]
pub(crate) struct Vanished {
    /// The sign of a lost mount, in a sentence.
    sign: String,
    /// The bundles as they were, with the digests of their catalogs.
    bundles: BTreeMap<OsString, (Identity, Digest)>,
    /// Number of bundles that are absent, or that have another bundle in their place. A file that
    /// the daemon has not read yet may be the bundle, and is not missing.
    pub(crate) missing: usize,
    /// Number of imported bundles that belong in the folder.
    known: usize,
}

impl FolderState {
    /// Returns the lost bundles if any of them is missing.
    pub(crate) fn alarm(&self) -> Option<&Vanished> {
        self.vanished.as_ref().filter(|vanished| vanished.missing > 0)
    }
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

/// Returns the number of the folder that a bundle belongs to.
fn place_of(folders: &[FolderState], name: &OsStr) -> Option<usize> {
    match Path::new(name).is_absolute() {
        false => Some(0),
        true => {
            let mut more = folders.iter().skip(1);
            more.position(|folder| folder.has(name)).map(|at| at + 1)
        }
    }
}

/// Returns the names that only one of two stamps has, or that differ in them.
fn difference(before: &[(OsString, Identity)], now: &[(OsString, Identity)]) -> Vec<OsString> {
    let (before, now): (HashSet<_>, HashSet<_>) = (before.iter().collect(), now.iter().collect());
    let changed = before.symmetric_difference(&now);
    changed.map(|(name, _)| name.clone()).collect()
}

impl State {
    /// Applies a listing of the images folders.
    pub(super) fn on_listed(&mut self, listed: Vec<Result<Box<Seen>, String>>, turn: &mut Turn) {
        let mut all = Vec::new();
        for (at, listed) in listed.into_iter().enumerate() {
            match listed.and_then(|seen| self.judge(at, *seen, turn)) {
                Ok(seen) => {
                    self.folders[at].trouble = None;
                    all.push((at, seen));
                }
                Err(reason) => {
                    let folder = &mut self.folders[at];
                    if folder.trouble.as_ref() != Some(&reason) {
                        let text = format!("{}: {reason}", folder.path.display());
                        turn.say(Line::warn(text).outcome(Outcome::Unusable));
                    }
                    folder.trouble = Some(reason);
                }
            }
        }
        if !all.is_empty() {
            self.take_over(all, turn);
        }
        self.drop_outdated_jobs(turn);
    }

    fn judge(&mut self, at: usize, seen: Seen, turn: &mut Turn) -> Result<Seen, String> {
        let (before, rest) = self.folders.split_at_mut(at);
        let folder = &mut rest[0];
        if seen.is_created {
            let folder = folder.path.display();
            turn.say(Line::info(format!("created the images folder {folder}")));
        }
        if let Some(same) = before.iter().find(|other| other.place == Some(seen.place)) {
            return Err(format!("it is the same folder as {}", same.path.display()));
        }
        folder.is_watched = folder.is_listed && folder.place == Some(seen.place);
        folder.place = Some(seen.place);
        match &seen.trust {
            FolderTrust::Trusted => {}
            FolderTrust::Warning(why) => {
                if folder.warned.as_ref() != Some(why) {
                    turn.say(Line::warn(format!("{}: {why}", folder.path.display())));
                }
                folder.warned = Some(why.clone());
            }
            FolderTrust::Refused(why) => return Err(format!("nothing is imported: {why}")),
        }
        if let Some(why) = self.unguarded(Some(at)) {
            return Err(format!("nothing is imported: {why}"));
        }
        Ok(seen)
    }

    fn take_over(&mut self, seen: Vec<(usize, Seen)>, turn: &mut Turn) {
        let (mut listed, mut below, mut trusted) = (Vec::new(), Vec::new(), None);
        let (mut changed, mut keys) = (Vec::new(), None);
        let mut is_seen = vec![false; self.folders.len()];
        for (at, seen) in seen {
            listed.extend(seen.listing.entries);
            below.extend(seen.listing.folders);
            trusted = seen.trusted;
            keys = keys.or(seen.keys);
            let folder = &mut self.folders[at];
            changed.extend(difference(&folder.proofs, &seen.proofs));
            folder.proofs = seen.proofs;
            folder.unclear = seen.unclear;
            folder.missing_mount = seen.missing_mount;
            folder.is_read_only = seen.is_read_only;
            folder.keeps = seen.keeps;
            if at > 0 && folder.is_read_only && !folder.is_watched {
                self.ledger.doubt_unchanging(&folder.path);
            }
            folder.is_listed = true;
            is_seen[at] = true;
        }
        turn.act(Action::Watch(below));
        if self.settings.checksums == Checksums::Off {
            listed = roster::split_off_sidecars(listed).0;
        }
        let (ledger, folders) = (&self.ledger, &self.folders);
        let known = |name: &OsStr, version: &Version| version.is_known(ledger, name);
        let is_in = |name: &OsStr| place_of(folders, name).is_none_or(|at| is_seen[at]);
        let told = self.roster.list_in(is_in, listed, turn.now, known);
        for (name, reason) in told {
            let is_told = self.rows.ignored.admits(turn.now);
            turn.say(Line::info(format!("ignored: {reason}")).file(&name).told(is_told));
        }
        self.recall_damage(turn);
        self.notice_gone(turn);
        if self.roster.count(|phase| phase == Phase::Known) > 0 {
            self.compare_soon(turn.now);
        }
        self.tell_of_keeping(turn);
        if let Some(trusted) = trusted {
            self.look_at_trust(trusted);
        }
        if let Some(seen) = keys {
            self.look_at_keys(seen, turn);
        }
        self.look_at_proofs(&changed);
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

    /// Marks bundles as gone if the ledger has them and the listing lacks them. If a folder itself
    /// is at fault, no bundle of it counts as gone.
    pub(super) fn notice_gone(&mut self, turn: &mut Turn) {
        for at in 0..self.folders.len() {
            self.notice_vanished(at, turn);
        }
        let is_judged = |entry: &&Entry| {
            let folder = self.folder_of(&entry.file).map(|at| &self.folders[at]);
            folder.is_none_or(|folder| folder.vanished.is_none())
        };
        let judged = self.ledger.entries().into_iter().filter(is_judged);
        let (there, absent): (Vec<&Entry>, Vec<&Entry>) =
            judged.partition(|entry| self.is_there(&entry.file));
        let missing = absent.iter().filter(|entry| entry.gone.is_none());
        let missing: BTreeSet<OsString> = missing.map(|entry| entry.file.clone()).collect();
        let there = there.iter().map(|entry| (entry.file.clone(), true));
        let absent = absent.iter().map(|entry| (entry.file.clone(), false));
        let is_there: HashMap<OsString, bool> = there.chain(absent).collect();
        for name in &missing {
            let is_told = self.rows.gone.admits(turn.now);
            let line = Line::info("the bundle is gone").outcome(Outcome::Removed);
            turn.say(line.bundle(name).told(is_told));
        }
        self.ledger.mark_gone(|name| is_there.get(name).copied(), turn.at);
        if !missing.is_empty() {
            // A scrub beside the daemon reads in the saved ledger which blobs are needed.
            turn.act(Action::Save);
            self.compare_soon(turn.now);
            // A name of theirs may be free for a bundle of another key.
            self.queue_withheld();
        }
    }

    /// Notices that bundles of a folder disappeared with it, or that they are back.
    fn notice_vanished(&mut self, at: usize, turn: &mut Turn) {
        let vanished = self.vanished(at);
        let folder = &mut self.folders[at];
        let before = folder.vanished.take();
        let place = match &vanished {
            Some(vanished) => {
                let is_news = before.is_none_or(|before| before.missing != vanished.missing);
                if is_news && vanished.missing > 0 {
                    let text = format!(
                        "{vanished}. The pins of their images stay until the bundles return, or until you run `airgapd release --vanished`"
                    );
                    turn.say(Line::warn(text).outcome(Outcome::Vanished));
                }
                turn.act(Action::Save);
                // After a restart the folder still counts as another folder, even if the mount is
                // back by then.
                Some(NO_FOLDER)
            }
            None => {
                if before.is_some() {
                    turn.say(Line::info("no bundle is missing any more"));
                }
                folder.place.filter(|_| folder.is_listed)
            }
        };
        folder.vanished = vanished;
        let context = &mut self.ledger.context;
        match (at, place) {
            (0, place) => context.folder = place.or(context.folder),
            (_, Some(place)) => drop(context.more_folders.insert(folder.key(), place)),
            (_, None) if folder.is_dropped => drop(context.more_folders.remove(&folder.key())),
            (_, None) => {}
        }
    }

    /// Returns the bundles of a folder that are missing but do not count as removed. Bundles that
    /// were never imported do not count: they have nothing to lose.
    fn vanished(&self, at: usize) -> Option<Vanished> {
        let folder = &self.folders[at];
        let entries = self.ledger.entries().into_iter();
        let is_known = |entry: &&Entry| {
            entry.gone.is_none() && entry.imported.is_some() && self.folder_of(&entry.file) == Some(at)
        };
        let known: Vec<&Entry> = entries.filter(is_known).collect();
        let before = folder.vanished.as_ref();
        let is_back = |entry: &Entry| {
            let lost = before.and_then(|before| before.bundles.get(&entry.file));
            match (self.is_there(&entry.file), lost) {
                (false, _) => Some(false),
                (true, None) => Some(true),
                (true, Some(lost)) => self.is_back(entry, lost),
            }
        };
        if known.iter().all(|entry| is_back(entry) == Some(true)) {
            return None;
        }
        let missing = known.iter().filter(|entry| is_back(entry) == Some(false));
        let missing = missing.count();
        let (sign, bundles) = match before {
            Some(before) => {
                let sign = self.sign_of_loss(at).unwrap_or_else(|| before.sign.clone());
                (sign, before.bundles.clone())
            }
            None => {
                let bundle = |entry: &&Entry| {
                    let imported = entry.imported.as_ref()?;
                    let was = (imported.identity.clone(), imported.catalog.clone());
                    Some((entry.file.clone(), was))
                };
                let missing = known.iter().filter(|entry| !self.is_there(&entry.file));
                (self.sign_of_loss(at)?, missing.filter_map(bundle).collect())
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
    /// tell, or its catalog if the operator restored it from elsewhere. `None` means that the
    /// daemon has not read the file yet.
    fn is_back(&self, entry: &Entry, (identity, catalog): &(Identity, Digest)) -> Option<bool> {
        let now = self.roster.identity(&entry.file)?;
        if now.size == identity.size && now.mtime_ns == identity.mtime_ns {
            return Some(true);
        }
        let imported = entry.imported.as_ref()?;
        (imported.identity == now).then(|| imported.catalog == *catalog)
    }

    /// Returns a sign that a folder is a lost mount, if there is one. An operator may empty a
    /// folder, but it stays the same folder.
    fn sign_of_loss(&self, at: usize) -> Option<String> {
        let folder = &self.folders[at];
        let shown = folder.path.display();
        if folder.is_dropped {
            return Some(format!(
                "{shown} is no longer a folder after the first in `imagesDirs`"
            ));
        }
        let context = &self.ledger.context;
        let before = match at {
            0 => context.folder,
            _ => context.more_folders.get(&folder.key()).copied(),
        };
        let now = folder.place?;
        // The node may have booted another OS image. Its folder may have the same numbers.
        let is_of_image = at > 0 && folder.is_read_only && !folder.is_watched;
        let is_other = before.is_some_and(|(device, inode)| match self.is_new_boot() {
            // A reboot assigns new device numbers.
            true => inode != now.1 || is_of_image,
            false => (device, inode) != now,
        });
        match &folder.missing_mount {
            // Files that left this very folder while the daemon watched were removed.
            Some(mount) if is_other || !folder.is_watched => {
                Some(format!("{shown} is on {}, which is not mounted", mount.display()))
            }
            _ => is_other.then(|| format!("{shown} is another folder than before")),
        }
    }

    /// Returns the number of the folder that a bundle belongs to, in [`State::folders`].
    pub(super) fn folder_of(&self, name: &OsStr) -> Option<usize> {
        place_of(&self.folders, name)
    }

    /// Returns true if a file is in its folder, as far as the daemon can tell. A file that cannot
    /// be examined is not gone.
    pub(super) fn is_there(&self, name: &OsStr) -> bool {
        let folder = self.folder_of(name).map(|at| &self.folders[at]);
        folder.is_some_and(|folder| folder.is_there(name, &self.roster))
    }

    /// Returns true if a file disappeared with its folder.
    pub(super) fn is_vanished(&self, name: &OsStr) -> bool {
        let folder = self.folder_of(name).map(|at| &self.folders[at]);
        folder.is_some_and(|folder| folder.vanished.is_some() && !folder.is_there(name, &self.roster))
    }

    /// Compares the bundles with the trusted digests again if those have changed.
    fn look_at_trust(&mut self, trusted: Trusted) {
        let Trusted { stamp, distrusted } = trusted;
        if self.trusted.as_ref() == Some(&stamp) {
            return;
        }
        self.judge_again(&distrusted);
        self.trusted = Some(stamp);
    }

    /// Queues the bundles that lack images by the rules, those that wait for a signature, and these
    /// bundles in place.
    pub(super) fn judge_again(&mut self, doubtful: &BTreeSet<OsString>) {
        let is_settled = |phase| {
            matches!(
                phase,
                Phase::Known
                    | Phase::Done
                    | Phase::Waiting(Lack::Signature)
                    | Phase::Failed { retry: None, .. }
            )
        };
        let (ledger, roster) = (&self.ledger, &self.roster);
        let mut names = roster.names(is_settled);
        names.retain(|name| {
            let entry = ledger.get(name);
            let is_short = entry.is_some_and(Entry::lacks_by_rules);
            let is_set_aside = entry.is_some_and(|entry| entry.is_set_aside(&entry.identity));
            let is_waiting = roster.phase(name) == Some(Phase::Waiting(Lack::Signature));
            is_waiting || !is_set_aside && (is_short || doubtful.contains(name))
        });
        for name in names {
            self.roster.queue(&name);
        }
    }

    /// Judges bundles by new keys and revocations.
    fn look_at_keys(&mut self, seen: KeysSeen, turn: &mut Turn) {
        let before = self.keys.as_ref().and_then(|keys| keys.problem.as_ref());
        if let Some(problem) = seen.problem.as_ref().filter(|problem| before != Some(problem)) {
            let text = format!("no new bundle is imported: {problem}");
            turn.say(Line::error(text).outcome(Outcome::Misconfigured));
        }
        let is_changed = |keys: &KeysSeen| keys.stamp != seen.stamp || keys.problem != seen.problem;
        if self.keys.as_ref().is_some_and(is_changed) {
            // Jobs have judged their bundles by the former keys.
            self.drop_jobs(|_| true, turn);
        }
        self.judge_again(&seen.withdrawn);
        self.keys = Some(seen);
    }

    /// Returns the bundles whose images stay in place although no signature admits them today, with
    /// the reason.
    pub(crate) fn unadmitted(&self) -> BTreeMap<OsString, String> {
        let Some(policy) = self.settings.signatures else {
            return BTreeMap::new();
        };
        let withdrawn = |file: &OsString| {
            self.keys
                .as_ref()
                .is_some_and(|keys| keys.withdrawn.contains(file))
        };
        let reason = |entry: &Entry| match &entry.imported.as_ref()?.signers[..] {
            [] if withdrawn(&entry.file) => Some("its content is revoked"),
            [] if policy == Signatures::Require => Some("it was imported before signatures were required"),
            [_, ..] if withdrawn(&entry.file) => Some("no signature of a trusted key admits it any more"),
            _ => None,
        };
        let entries = self.ledger.entries().into_iter();
        entries
            .filter_map(|entry| Some((entry.file.clone(), reason(entry)?.to_owned())))
            .collect()
    }

    /// Queues the bundles that may have another proof than before.
    fn look_at_proofs(&mut self, changed: &[OsString]) {
        if changed.is_empty() {
            return;
        }
        let is_open = |phase| {
            let is_waiting = phase == Phase::Waiting(Lack::Signature);
            is_waiting
                || matches!(
                    phase,
                    Phase::Running | Phase::Done | Phase::Failed { retry: None }
                )
        };
        for name in self.roster.names(is_open) {
            let is_short = self.ledger.get(&name).is_some_and(Entry::lacks_by_rules);
            let is_short = is_short && !self.is_set_aside(&name);
            let is_waiting = self.roster.phase(&name) == Some(Phase::Waiting(Lack::Signature));
            let is_meant = changed.iter().any(|proof| proofs::may_speak_of(proof, &name));
            match self.lanes.get_mut(&name) {
                // It may have looked for its proofs before.
                Some(job) => job.has_new_proof |= is_meant,
                None if is_meant && (is_waiting || is_short) => self.roster.queue(&name),
                None => {}
            }
        }
    }

    /// Returns the files that jobs work on, for the next daemon.
    pub(crate) fn under_way(&self) -> BTreeMap<OsString, Identity> {
        let jobs = self.lanes.all();
        jobs.map(|job| (job.name.clone(), job.version.identity.clone()))
            .collect()
    }
}
