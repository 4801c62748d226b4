//! Reads the folder and the disk, keeps the ledger, and starts jobs: the work that the loop does at
//! once. It decides nothing.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use admission::{Bytes, Refusal};
use bundle::Identity;
use containerd::{ImageEvent, ImageEvents};
use import::Space;
use import::space::Disk;
use import::survey::any_without_file;
use import::unpack::Ahead;
use import::{Intent, Pace, Policy};
use jiff::Timestamp;
use tracing::warn;

use super::job::{self, Order};
use super::require::Check;
use super::unpack::Unpacking;
use super::work::Work;
use crate::decide::desired;
use crate::decide::line::shown;
use crate::decide::listing::{KeysSeen, Seen, Trusted};
use crate::decide::require::Checked;
use crate::decide::room::{Room, Stamp};
use crate::decide::unpack::{UnpackEnd, UnpackProgress};
use crate::decide::{Event, Look, Opening, Readings, Start, Step};
use crate::images::folder::{self, Depth, Ending, Folder, FolderTrust, Listing, Observation, Refused};
use crate::images::keys::{self, TrustedKeys};
use crate::images::watch::Watch;
use crate::images::{mounts, proofs, trusted_digests};
use crate::metrics::Metrics;
use crate::place::{Place, folder_of};
use crate::receipts;
use crate::runtime::{self, Containerd};
use crate::settings::{Settings, Signatures};
use crate::state::State;
use crate::state::admitted::{Admissions, Evidence, Standing};
use crate::state::crash::Marker;
use crate::state::ledger::{self, Ledger, Saved, Store};
use crate::state::roster::Version;

/// Longest time for looks at files before the loop does something else.
const LOOKS: Duration = Duration::from_millis(50);

/// The reason why a check or unpacking ends before it starts.
const UNCONNECTED: &str = "there is no connection to containerd";

/// The loop's access to files, containerd, and jobs.
pub(super) struct Hands {
    /// The containerd and the folder that were found at the start.
    pub(super) place: Place,
    pub(super) watch: Watch,
    store: Store,
    /// The files under way, for the next daemon.
    pub(super) marker: Marker,
    pub(super) metrics: Metrics,
    /// The jobs.
    pub(super) work: Work,
    /// The check of the required images.
    pub(super) check: Check,
    pub(super) unpacking: Unpacking,
    /// The rate limit of all jobs together.
    pub(super) pace: Arc<Pace>,
    /// The connection, if there is one.
    pub(super) containerd: Option<Live>,
    /// The file that was opened last.
    opened: Option<(OsString, File)>,
    /// Files that stay under a name of an interrupted removal, as far as the log has them.
    told: BTreeSet<PathBuf>,
}

/// A connection to containerd.
pub(super) struct Live {
    pub(super) runtime: Containerd,
    pub(super) events: ImageEvents,
    pub(super) policy: Policy,
}

/// Waits for the next event of containerd. Returns `None` when its stream has ended. Waits forever
/// while there is no connection. Safe to cancel.
pub(super) async fn next_event(containerd: &mut Option<Live>) -> Option<ImageEvent> {
    match containerd {
        Some(live) => live.events.next().await,
        None => std::future::pending().await,
    }
}

impl Hands {
    pub(super) fn new(
        place: Place,
        settings: &Settings,
        watch: Watch,
        store: Store,
        marker: Marker,
        metrics: Metrics,
    ) -> Hands {
        Hands {
            place,
            watch,
            store,
            marker,
            metrics,
            work: Work::default(),
            check: Check::default(),
            unpacking: Unpacking::default(),
            pace: Arc::new(Pace::new(settings.rate_limit)),
            containerd: None,
            opened: None,
            told: BTreeSet::new(),
        }
    }

    /// Writes the ledger to disk if it has changed.
    pub(super) fn save(&mut self, ledger: &Ledger) {
        match self.store.save(ledger) {
            Saved::Written | Saved::Unchanged | Saved::NotSaved(None) => {}
            Saved::NotSaved(Some(notice)) => warn!("{notice}"),
        }
    }

    /// Closes the file that was opened last, if no job was started for it. An open descriptor would
    /// keep the disk space of a removed file.
    pub(super) fn close(&mut self) {
        self.opened = None;
    }

    pub(super) fn disconnect(&mut self) {
        self.containerd = None;
    }

    /// Applies these settings from now on.
    pub(super) fn adopt(&mut self, settings: &Settings) {
        self.pace.set(settings.rate_limit);
        if let Some(live) = &mut self.containerd {
            live.policy = runtime::policy(settings, Some(&live.runtime));
        }
    }

    /// Returns everything that decides the result of an import with these settings, or `None`
    /// without a connection.
    pub(super) fn fingerprint(&self, settings: &Settings) -> Option<String> {
        let live = self.containerd.as_ref()?;
        Some(runtime::fingerprint(settings, &live.runtime))
    }

    /// Lists the images folders, in their order. Creates the first one if it never existed.
    ///
    /// # Errors
    ///
    /// Returns an error text for the operator for each folder that cannot be created, opened or
    /// listed.
    pub(super) fn list(&mut self, state: &State) -> Vec<Result<Box<Seen>, String>> {
        let started = Instant::now();
        let (mut all, mut elsewhere) = (Vec::new(), 0);
        for (at, folder) in self.place.dirs().iter().enumerate() {
            let seen = self.list_now(at, folder, elsewhere, state);
            elsewhere += seen.as_ref().map_or(0, |seen| seen.listing.sub_folders());
            all.push(seen.map(Box::new));
        }
        self.watch.listed(started.elapsed());
        all
    }

    /// Lists the folder of this number at this path.
    fn list_now(&mut self, at: usize, path: &Path, elsewhere: usize, state: &State) -> Result<Seen, String> {
        // A folder that existed before was moved, unmounted or removed. Only its owner knows which.
        // The folders after the first one belong to an image of the system or to a mount.
        let is_created = match state.folders[at].place {
            None if at == 0 || *path == self.place.receipts => folder::ensure(path).map_err(|error| {
                format!("cannot create the images folder: {error}. The daemon waits for it")
            })?,
            _ => false,
        };
        let folder =
            Folder::open_dir(path).map_err(|error| format!("cannot open the images folder: {error}"))?;
        let allow_insecure = state.settings.allow_insecure_dir;
        let trust = folder::judge(&folder, path, allow_insecure);
        let listing = match &trust {
            FolderTrust::Refused(_) => Listing::default(),
            FolderTrust::Trusted | FolderTrust::Warning(_) => {
                let is_of_images = *path != self.place.receipts;
                let recursive = is_of_images && self.place.searches_sub_folders(&state.settings);
                let depth = Depth {
                    recursive,
                    allow_insecure,
                    elsewhere,
                };
                let list = || {
                    let listing = folder.list(depth);
                    listing.map_err(|error| format!("cannot list the images folder: {error}"))
                };
                let mut listing = list()?;
                // The folder, or a disk below it, may be mounted after the start.
                if self.undo_removals(&folders_of_removals(path, &listing)) {
                    listing = list()?;
                }
                if !is_of_images {
                    receipts::remove_unfinished(path, &listing.entries);
                }
                match at {
                    0 => listing,
                    _ if !is_of_images => listing.with_paths(path).without_hidden(),
                    _ => listing.with_paths(path),
                }
            }
        };
        let lacking = self.lacking(at, &listing, &state.ledger);
        Ok(Seen {
            place: folder.place(),
            is_read_only: folder.is_read_only(),
            keeps: receipts::why_folder_keeps(folder.owner(), folder.is_read_only()),
            is_created: is_created && *path != self.place.receipts,
            trust,
            unclear: self.unclear(&lacking, &listing),
            // Without a missing file it does not matter.
            missing_mount: match lacking.is_empty() {
                true => None,
                false => mounts::missing(path, Path::new("/")),
            },
            trusted: trusted(state),
            proofs: match state.settings.signatures {
                Some(_) => proofs::stamp(&listing.entries),
                None => Vec::new(),
            },
            keys: keys_seen(state),
            listing,
        })
    }

    /// Undoes the interrupted removals of files in these folders. Returns true if a file has
    /// another name than before. The log has each file that stays under its other name once.
    pub(super) fn undo_removals(&mut self, folders: &BTreeSet<PathBuf>) -> bool {
        let mut is_any_renamed = false;
        for folder in folders {
            let complain = |name: &OsStr, why: &str| {
                let path = folder.join(name);
                let shown = shown(path.as_os_str());
                if self.told.insert(path) {
                    warn!("{shown}: a removal cannot be undone: {why}");
                }
            };
            match receipts::undo_removals(folder, complain) {
                Ok(is_renamed) => is_any_renamed |= is_renamed,
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => {
                    if self.told.insert(folder.clone()) {
                        warn!(
                            "{}: a removal cannot be undone: {error}",
                            shown(folder.as_os_str())
                        );
                    }
                }
            }
        }
        is_any_renamed
    }

    /// Returns the files that the ledger has in a folder and the folder's listing lacks or leaves
    /// out.
    fn lacking<'l>(&self, at: usize, listing: &Listing, ledger: &'l Ledger) -> Vec<&'l OsString> {
        let listed: HashSet<&OsString> = listing.entries.iter().map(|entry| &entry.name).collect();
        let files = ledger.entries().into_iter().map(|entry| &entry.file);
        let later = self.place.later_dirs();
        let is_in = |file: &OsString| folder_of(file, &later) == Some(at);
        files
            .filter(|file| is_in(file) && (!listed.contains(file) || listing.leaves_out(file)))
            .collect()
    }

    /// Returns those of these files that cannot be checked, or that exist and that the listing
    /// leaves out.
    fn unclear(&self, files: &[&OsString], listing: &Listing) -> BTreeSet<OsString> {
        let is_unclear = |file: &&&OsString| {
            let looked = self.place.images_dir.join(file).symlink_metadata();
            let is_absent = |kind| matches!(kind, ErrorKind::NotFound | ErrorKind::NotADirectory);
            match looked {
                Ok(_) => listing.leaves_out(file),
                Err(error) => !is_absent(error.kind()),
            }
        };
        let unclear = files.iter().filter(is_unclear);
        unclear.map(|file| (*file).clone()).collect()
    }

    /// Opens a listed file, in its folder. Returns `None` if another file has its name by now.
    fn open_listed(&self, name: &OsStr, version: &Version) -> Result<Option<File>, Refused> {
        let (folder, name) = self.place.locate(name).ok_or(Refused::Gone)?;
        let folder = Folder::open_dir(folder).map_err(|_| Refused::Gone)?;
        job::open_listed(&folder, name, version)
    }

    /// Looks at files, one after the other, as long as there is time. A turn takes longer the more
    /// files there are. With a single look in each turn, the total time would therefore grow with
    /// the square of their number.
    pub(super) fn look(&self, state: &State, files: Vec<(OsString, Version)>) -> Vec<Event> {
        let started = Instant::now();
        let mut seen = Vec::new();
        for (name, version) in files {
            if !seen.is_empty() && started.elapsed() >= LOOKS {
                break;
            }
            let look = self.look_at(&name, &version, state);
            seen.push(Event::Looked(name, version, look));
        }
        seen
    }

    fn look_at(&self, name: &OsStr, version: &Version, state: &State) -> Look {
        let file = match self.open_listed(name, version) {
            Ok(Some(file)) => file,
            Ok(None) => return Look::Replaced,
            Err(refused) => return Look::Refused(refused),
        };
        if version.is_layout {
            return Look::Layout;
        }
        // The listing may be older than the file. The open file is judged, so its identity counts.
        let identity = file.metadata().map(|metadata| Identity::of(&metadata)).ok();
        let (Some(identity), Some(since)) = (identity, state.roster.still_since(name)) else {
            return Look::Replaced;
        };
        if identity != version.identity {
            return Look::Replaced;
        }
        if let Some(left) = folder::indistinct_for(&identity, SystemTime::now()) {
            return Look::Indistinct(left);
        }
        match Observation::of(&file, since) {
            Ok(seen) => Look::Seen(seen),
            Err(error) => Look::Unreadable(error.to_string()),
        }
    }

    /// Opens a file for its import, and keeps it open.
    pub(super) fn open(&mut self, name: OsString, version: Version) -> Event {
        let opening = match self.open_listed(&name, &version) {
            Ok(Some(file)) => {
                let ending = match version.is_layout {
                    true => None,
                    false => Ending::of(&file, version.identity.size).ok(),
                };
                self.opened = Some((name.clone(), file));
                Opening::Open(ending)
            }
            Ok(None) => Opening::Replaced,
            Err(refused) => Opening::Refused(refused),
        };
        Event::Opened(name, version, opening)
    }

    /// Starts a job for the file that was opened last.
    pub(super) fn start(&mut self, state: &State, start: Start) {
        let Start {
            name,
            version,
            lane,
            is_checked,
            is_told,
        } = start;
        let file = self.opened.take().filter(|(opened, _)| *opened == name);
        let (Some((_, file)), Some(live)) = (file, &self.containerd) else {
            // There is nothing to read: the job ends as if it had been dropped.
            return self.work.start_nothing(name);
        };
        let folder = self.place.locate(&name).map(|(folder, _)| folder.to_owned());
        let imported = state.ledger.get(&name).and_then(|entry| entry.imported.as_ref());
        let same = imported.filter(|imported| imported.identity == version.identity);
        let signed =
            same.filter(|imported| state.settings.signatures.is_some() && !imported.signers.is_empty());
        let state_dir = &state.settings.state_dir;
        let is_receipt = self.place.is_receipt(&name);
        let order = Order {
            is_told,
            lane,
            is_receipt,
            makes_receipt: !is_receipt && state.wants_receipt(&name, &version),
            pace: Arc::clone(&self.pace),
            name,
            version,
            images_dir: folder.unwrap_or_else(|| self.place.images_dir.clone()),
            settings: Arc::clone(&state.settings),
            runtime: live.runtime.clone(),
            policy: live.policy.clone(),
            evidence: signed.and_then(|imported| Evidence::read(state_dir, &imported.catalog)),
            started: Instant::now(),
        };
        self.work.start(Arc::new(order), file, is_checked);
    }

    /// Lets the job of a file import the bundle that it has read.
    pub(super) fn import(&mut self, state: &State, name: &OsStr, leave: BTreeMap<String, String>) {
        let settings = &state.settings;
        // Without a connection, the import itself has to find out that there is no room.
        let live = self.containerd.as_ref();
        let going = |live: &Live| {
            let version = state.lanes.get(name).map(|job| &job.version);
            // A file stays if it leaves a name to another bundle or program.
            let version = version.filter(|version| leave.is_empty() && state.wants_receipt(name, version));
            let (folder, below) = self.place.locate(name)?;
            let identity = &version?.identity;
            Some(runtime::going(
                settings,
                &live.runtime,
                &folder.join(below),
                identity,
            ))
        };
        let space = live.map(|live| Space {
            going: going(live).unwrap_or_default(),
            ..runtime::space(settings, &live.runtime)
        });
        let source = job::source_of(name, self.place.is_receipt(name));
        let intent = Intent {
            leave,
            signer: state
                .lanes
                .get(name)
                .and_then(|job| ledger::signers(&job.signers)),
            space: space.unwrap_or_default(),
            priority: state.order_of_images(),
            pace: Arc::clone(&self.pace),
            most_records: settings.most_records,
            ..Intent::new(source, settings.on_conflict)
        };
        let job = state.lanes.get(name);
        let withheld = job.map(|job| job.withheld.clone()).unwrap_or_default();
        self.work.import(name, intent, withheld);
    }

    /// Removes a listed file that the daemon needs no more: [`Event::Removed`].
    pub(super) fn remove(&self, name: OsString, version: &Version) -> Event {
        let removed = match self.place.locate(&name) {
            Some((folder, below)) => receipts::remove(folder, below, &version.identity),
            None => Err("it is in no folder of the daemon".to_owned()),
        };
        Event::Removed(name, version.identity.clone(), removed)
    }

    /// Adds the finished job of a file to the metrics.
    pub(super) fn count(&self, name: &OsStr) {
        if let Some(report) = self.work.report_of(name) {
            self.metrics.count(report, Timestamp::now().as_second());
        }
    }

    /// Starts a check of the required images. Without a connection, returns its end at once.
    pub(super) fn check(&mut self, settings: &Arc<Settings>) -> Option<Event> {
        let Some(live) = &self.containerd else {
            return Some(Event::Checked(Checked::Failed(UNCONNECTED.to_owned())));
        };
        self.check.begin(Arc::clone(settings), live.runtime.clone());
        None
    }

    /// Starts to unpack images. Without a connection, returns its end at once.
    pub(super) fn unpack(&mut self, settings: &Arc<Settings>, images: Vec<Ahead>) -> Option<Event> {
        let Some(live) = &self.containerd else {
            let end = UnpackEnd::Failed(UNCONNECTED.to_owned());
            return Some(Event::Unpacking(UnpackProgress::Ended(end)));
        };
        self.unpacking
            .begin(images, Arc::clone(settings), live.runtime.clone());
        None
    }

    /// Returns the readings that this step needs.
    pub(super) fn readings(&self, step: Step, settings: &Settings) -> Readings {
        match step {
            Step::Ask => Readings {
                room: self.room(settings),
                ..Readings::default()
            },
            Step::Work => Readings {
                marks: self.work.marks().collect(),
                ..Readings::default()
            },
        }
    }

    /// Reads the free space of containerd's disk, if the disk is visible.
    fn room(&self, settings: &Settings) -> Option<Room> {
        let live = self.containerd.as_ref()?;
        let space = runtime::space(settings, &live.runtime);
        let store = space.store.as_ref();
        Some(Room {
            below: space.below_minimum(),
            disk: store.and_then(|store| Disk::of(store).ok()),
            stamp: store.and_then(|store| stamp_of(&store.join("blobs/sha256"))),
        })
    }

    /// Returns true if containerd's store lacks files of blobs that the ledger lists.
    pub(super) fn has_lost_files(&self, ledger: &Ledger) -> bool {
        let store = self
            .containerd
            .as_ref()
            .and_then(|live| live.runtime.store.as_ref());
        store.is_some_and(|store| any_without_file(store, &desired::digests(ledger)))
    }
}

/// Returns the folders of the files in a listing that have their name from a removal. The daemon
/// lists nothing while it removes a file, so the removal was interrupted.
fn folders_of_removals(folder: &Path, listing: &Listing) -> BTreeSet<PathBuf> {
    let paths = listing.entries.iter().map(|entry| folder.join(&entry.name));
    let is_of_removal = |path: &PathBuf| path.file_name().is_some_and(receipts::is_of_removal);
    let left = paths.filter(is_of_removal);
    left.filter_map(|path| path.parent().map(Path::to_owned))
        .collect()
}

/// Returns the operator's trusted digests, if there is such a folder. Checks the bundles against
/// them only if the folder has changed.
fn trusted(state: &State) -> Option<Trusted> {
    let folder = state.settings.trusted_digests.as_ref()?;
    let stamp = trusted_digests::stamp(folder);
    let mut distrusted = BTreeSet::new();
    if state.trusted.as_ref() != Some(&stamp) {
        for entry in state.ledger.entries() {
            let catalog = entry.imported.as_ref().map(|imported| &imported.catalog);
            if catalog.is_some_and(|catalog| trusted_digests::check(folder, catalog).is_err()) {
                distrusted.insert(entry.file.clone());
            }
        }
    }
    Some(Trusted { stamp, distrusted })
}

/// Returns the keys and revocations, if signatures are asked for and the folders have changed.
fn keys_seen(state: &State) -> Option<KeysSeen> {
    let policy = state.settings.signatures?;
    let folder = &state.settings.trusted_keys;
    let stamp = keys::Stamp::of(folder);
    if state
        .keys
        .as_ref()
        .is_some_and(|keys| keys.stamp == stamp && !keys.is_stale)
    {
        return None;
    }
    let (keys, revocations) = (TrustedKeys::read(folder), keys::revocations(folder));
    let usable = keys.keys().usable().iter();
    let problem = match revocations.problem() {
        Some(why) => Some(Refusal::Revocations(why.to_owned())),
        None if policy == Signatures::Require => keys.keys().lack().map(Refusal::NoKeys),
        None => None,
    };
    let admissions = Admissions::read(&state.settings.state_dir);
    let mut withdrawn = BTreeSet::new();
    for entry in state.ledger.entries() {
        let Some(imported) = &entry.imported else { continue };
        let evidence = admissions.evidence.get(imported.catalog.as_ref());
        let standing = |evidence: &Evidence| evidence.standing(keys.keys(), &revocations, Bytes::Unhashed);
        let stands = match evidence.map(standing) {
            // The next job for the file hashes it, and only then a revoked sum can concern it.
            Some(standing) => matches!(standing, Standing::Admitted(_) | Standing::NeedsFileDigest),
            // It was imported before signatures were asked for. Only a revocation concerns it.
            None if imported.signers.is_empty() => revocations.of_catalog(&imported.catalog).is_none(),
            None => false,
        };
        if !stands {
            withdrawn.insert(entry.file.clone());
        }
    }
    Some(KeysSeen {
        stamp,
        is_stale: false,
        trusted: usable.map(|trusted| trusted.key.fingerprint().clone()).collect(),
        problem: problem.map(|problem| problem.to_string()),
        unusable: keys.keys().problems().to_vec(),
        withdrawn,
    })
}

/// Returns `None` if the folder does not exist: no blob was ever committed, or the store was wiped.
fn stamp_of(folder: &Path) -> Option<Stamp> {
    let metadata = fs::metadata(folder).ok()?;
    Some((
        metadata.dev(),
        metadata.ino(),
        metadata.mtime(),
        metadata.mtime_nsec(),
    ))
}
