//! A small model of two folders and a containerd, which carries out actions and errands in the
//! simplest way. `histories` plays random histories on it, and [`super::claims`] plays chosen ones.

mod histories;
mod receipts;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use bundle::Identity;
use containerd::{BlobInfo, ImageChange, ImageEvent, ImageRecord};
use import::labels;
use import::result::ImageOutcome;
use import::survey::Census;
use import::unpack::{Ahead, Unpack};
use import::{Outcome, Source, Survey};
use jiff::Timestamp;
use oci_spec::image::{Descriptor, Digest, MediaType};
use verify::Sources;

use self::receipts::Receipts;
use super::compare::Facts;
use super::listing::Seen;
use super::record::{Bad, Came, Found, Landed, LandedImage, Stop};
use super::require::Checked;
use super::unpack::{UnpackEnd, UnpackProgress};
use super::{Action, Errand, Event, Failed, Look, Opening, Readings, Step, Turn, Unreached};
use crate::admit::Verdict;
use crate::images::folder::{Class, Ending, FolderTrust, Listed, Listing, Observation, Writer};
use crate::settings::{Coexistence, Settings};
use crate::state::State;
use crate::state::ledger::{ErrorClass, Ledger, StandsFor, label_name};
use crate::status::{MissingStatus, RequiredStatus};

/// The image that the configuration requires.
const REQUIRED: &str = "registry.test/app:0";

/// A file of the folder.
#[derive(Clone, Debug)]
pub(super) struct File {
    pub(super) identity: Identity,
    pub(super) content: Content,
}

#[derive(Clone, Debug)]
pub(super) enum Content {
    /// A bundle with these images: name and target.
    Bundle(Vec<(String, Digest)>),
    /// A receipt of a bundle with these images.
    Receipt(StandsFor, Vec<(String, Digest)>),
    /// A bundle that cannot be read.
    Broken,
}

/// The present work of a job.
#[derive(Clone, Debug)]
pub(super) enum Work {
    Reading(Content),
    /// The job has read the catalog and waits for an answer.
    Read(Vec<(String, Digest)>),
    Importing(Vec<(String, Digest)>, BTreeSet<String>),
    Aborted,
}

/// Images that are being unpacked ahead.
pub(super) struct Unpacking {
    pub(super) images: Vec<Ahead>,
    pub(super) is_interrupted: bool,
}

pub(super) struct World {
    pub(super) state: State,
    now: Instant,
    at: Timestamp,
    dice: Turn,
    /// The files of both folders.
    pub(super) folder: BTreeMap<OsString, File>,
    /// Device and inode of the first folder.
    pub(super) place: (u64, u64),
    /// Device and inode of the second folder, [`SECOND`], if it is there.
    pub(super) second: Option<(u64, u64)>,
    /// True if the second folder is read-only.
    pub(super) is_second_read_only: bool,
    pub(super) missing_mount: Option<PathBuf>,
    inodes: u64,
    pub(super) is_up: bool,
    /// True if some imports stop early.
    is_shaky: bool,
    pub(super) records: BTreeMap<String, ImageRecord>,
    blobs: BTreeMap<String, Digest>,
    /// Events of containerd that have not been delivered yet.
    events: VecDeque<ImageEvent>,
    pub(super) jobs: BTreeMap<OsString, Work>,
    errands: VecDeque<Errand>,
    /// The ledger as it was last saved.
    saved: Ledger,
    /// A running check of the required images, with the images that were missing at its start.
    pub(super) checking: Option<Vec<MissingStatus>>,
    /// Number of checks that have begun.
    pub(super) checks: u32,
    pub(super) unpacking: Option<Unpacking>,
    /// Targets that were unpacked.
    pub(super) unpacked: HashSet<Digest>,
    /// Names of records that another program moved. The check does not judge them any more.
    moved: BTreeSet<String>,
    /// Number of starts of each file.
    pub(super) starts: HashMap<OsString, u32>,
    /// Number of restorations that the metrics count.
    pub(super) restored: u32,
    /// The receipts, in worlds that have them.
    receipts: Option<Receipts>,
    pub(super) history: Vec<String>,
}

pub(super) fn digest(number: u64) -> Digest {
    format!("sha256:{number:064x}").parse().expect("a digest")
}

/// The second images folder.
pub(super) const SECOND: &str = "/os";

fn folders() -> (PathBuf, &'static [PathBuf]) {
    static MORE: LazyLock<[PathBuf; 1]> = LazyLock::new(|| [PathBuf::from(SECOND)]);
    (PathBuf::from("/images"), &*MORE)
}

pub(super) fn is_in_second(name: &OsStr) -> bool {
    Path::new(name).starts_with(SECOND)
}

/// Returns the digest of the catalog of a bundle with these images.
fn catalog(images: &[(String, Digest)]) -> Digest {
    let names: Vec<_> = images
        .iter()
        .map(|(name, target)| format!("{name}={target}"))
        .collect();
    basics::digest::sha256(names.join(",").as_bytes())
}

/// Returns the digest of the layer of a target's image.
fn layer(target: &Digest) -> Digest {
    let last = target.digest();
    format!("sha256:f{}", &last[1..]).parse().expect("a digest")
}

impl World {
    pub(super) fn new(seed: u64) -> World {
        let now = Instant::now();
        let settings = Settings {
            coexistence: match seed % 3 {
                0 => Coexistence::Auto,
                _ => Coexistence::Exclusive,
            },
            require: Sources {
                images: vec![PathBuf::from("/list.txt")],
                ..Sources::default()
            },
            unpack: Unpack::Background,
            ..Settings::default()
        };
        let boot = Some("boot".to_owned());
        World {
            state: State::new(settings, folders(), None, Ledger::default(), boot, now),
            now,
            at: Timestamp::UNIX_EPOCH,
            dice: Turn::new(now, Timestamp::UNIX_EPOCH, seed),
            folder: BTreeMap::new(),
            place: (1, 1),
            second: Some((3, 3)),
            is_second_read_only: false,
            missing_mount: None,
            inodes: 0,
            is_up: seed.is_multiple_of(2),
            is_shaky: false,
            records: BTreeMap::new(),
            blobs: BTreeMap::new(),
            events: VecDeque::new(),
            jobs: BTreeMap::new(),
            errands: VecDeque::new(),
            saved: Ledger::default(),
            checking: None,
            checks: 0,
            unpacking: None,
            unpacked: HashSet::new(),
            moved: BTreeSet::new(),
            starts: HashMap::new(),
            restored: 0,
            receipts: None,
            history: Vec::new(),
        }
    }

    /// Returns true if bundles disappeared with a folder.
    pub(super) fn has_vanished(&self) -> bool {
        self.state.folders.iter().any(|folder| folder.vanished.is_some())
    }

    pub(super) fn dice(&mut self, sides: u64) -> u64 {
        self.dice.chance() % sides
    }

    pub(super) fn turn(&mut self) -> Turn {
        Turn::new(self.now, self.at, self.dice.chance())
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.now += time;
        self.at += time;
    }

    /// Replaces the daemon by its successor, which has the saved ledger, in this boot of the
    /// machine.
    pub(super) fn restart(&mut self, boot: &str) {
        self.begin(boot, self.saved.clone());
    }

    /// Begins a daemon with this ledger.
    fn begin(&mut self, boot: &str, ledger: Ledger) {
        let settings = Settings::clone(&self.state.settings);
        let (folders, boot) = ((folders().0, self.later_folders()), Some(boot.to_owned()));
        self.state = State::new(settings, folders, None, ledger, boot, self.now);
        if let Some(receipts) = &mut self.receipts {
            receipts.daemons += 1;
        }
        self.events.clear();
        self.jobs.clear();
        self.errands.clear();
        self.checking = None;
        self.unpacking = None;
    }

    /// Plays one round of the loop. Returns the time of the next one.
    pub(super) fn round(&mut self) -> Option<Instant> {
        let mut step = Step::Ask;
        loop {
            let mut turn = self.turn();
            let next = self.state.step(step, Readings::default(), &mut turn);
            self.carry_out(turn);
            while let Some(errand) = self.errands.pop_front() {
                let event = self.run(errand);
                self.take(event);
            }
            match next {
                ControlFlow::Continue(next) => step = next,
                ControlFlow::Break(due) => return due,
            }
        }
    }

    /// Plays rounds until nothing more is due now. Returns the time of the next one.
    pub(super) fn go_on(&mut self) -> Option<Instant> {
        loop {
            let due = self.round();
            if due.is_none_or(|due| due > self.now) {
                return due;
            }
        }
    }

    pub(super) fn take(&mut self, event: Event) {
        let mut turn = self.turn();
        self.state.on(event, &mut turn);
        self.carry_out(turn);
    }

    fn carry_out(&mut self, turn: Turn) {
        let mut turns = VecDeque::from([turn]);
        while let Some(turn) = turns.pop_front() {
            self.errands.extend(turn.errands);
            for action in turn.actions {
                for event in self.perform(action) {
                    let mut next = self.turn();
                    self.state.on(event, &mut next);
                    turns.push_back(next);
                }
            }
        }
        let running = &self.state.lanes;
        self.jobs.retain(|name, _| running.get(name).is_some());
        let lanes: BTreeSet<_> = self.state.lanes.all().map(|job| job.lane as u8).collect();
        assert_eq!(lanes.len(), self.state.lanes.all().count(), "one job a lane");
        let goes_on = self.unpacking.as_ref().is_some_and(|work| !work.is_interrupted);
        assert!(
            !goes_on || lanes.is_empty(),
            "images are unpacked beside an import"
        );
    }

    fn perform(&mut self, action: Action) -> Vec<Event> {
        match action {
            Action::List => return vec![self.listed()],
            Action::Look(files) => {
                return files
                    .into_iter()
                    .map(|(name, version)| {
                        let there = self.folder.get(&name).map(|file| &file.identity);
                        let look = match there == Some(&version.identity) {
                            true => Look::Seen(Observation {
                                size: 10 << 10,
                                writer: Writer::None,
                                ending: Ending::Marker,
                                changed: self.state.roster.still_since(&name).unwrap_or(self.now),
                                age: None,
                            }),
                            false => Look::Replaced,
                        };
                        Event::Looked(name, version, look)
                    })
                    .collect();
            }
            Action::Open(name, version) => {
                let there = self.folder.get(&name).map(|file| &file.identity);
                let opening = match there == Some(&version.identity) {
                    true => Opening::Open(Some(Ending::Marker)),
                    false => Opening::Replaced,
                };
                return vec![Event::Opened(name, version, opening)];
            }
            Action::Remove(name, _) if self.receipts.is_none() => {
                panic!("{name:?} goes, although `afterImport` is keep")
            }
            Action::Remove(name, version) => return vec![self.remove(&name, &version.identity)],
            Action::Start(start) => {
                let content = match self.folder.get(&start.name) {
                    Some(file) => file.content.clone(),
                    None => Content::Broken,
                };
                *self.starts.entry(start.name.clone()).or_default() += 1;
                let before = self.jobs.insert(start.name.clone(), Work::Reading(content));
                assert!(before.is_none(), "{:?} has a job already", start.name);
                self.note_start(&start.name);
            }
            Action::Import(name, leave) => {
                let work = self.jobs.remove(&name);
                let Some(Work::Read(images)) = work else {
                    panic!("an import of {name:?} starts during {work:?}")
                };
                let leave = leave.into_keys().collect();
                self.jobs.insert(name, Work::Importing(images, leave));
            }
            Action::Abort(name) => {
                if let Some(work) = self.jobs.get_mut(&name) {
                    *work = Work::Aborted;
                }
            }
            Action::Disconnect => self.events.clear(),
            Action::Check => {
                assert!(self.checking.is_none(), "two checks at a time");
                self.checking = Some(self.missing());
                self.checks += 1;
            }
            Action::AbortCheck => self.checking = None,
            Action::Unpack(images) => {
                assert!(self.unpacking.is_none(), "images are unpacked twice at a time");
                let is_interrupted = false;
                self.unpacking = Some(Unpacking {
                    images,
                    is_interrupted,
                });
            }
            Action::InterruptUnpacking => {
                let work = self.unpacking.as_mut();
                work.expect("images are being unpacked").is_interrupted = true;
            }
            Action::Say(line) => self.history.push(format!("  {}: {:?}", line.text, line.bundle)),
            Action::Pull(_) => panic!("there are no lists"),
            Action::Save => self.save(),
            Action::CountRestored => self.restored += 1,
            Action::Watch(_) | Action::Count(_) | Action::Report(..) | Action::CheckFiles | Action::Adopt => {
            }
        }
        Vec::new()
    }

    fn listed(&self) -> Event {
        let listed = |(name, file): (&OsString, &File)| Listed {
            name: name.clone(),
            class: Class::Candidate,
            identity: file.identity.clone(),
        };
        let (receipts, images): (Vec<_>, Vec<_>) =
            self.folder.iter().partition(|(name, _)| self.is_receipt(name));
        let (second, first) = images.into_iter().partition(|(name, _)| is_in_second(name));
        let seen = |entries: Vec<(&OsString, &File)>, place, missing_mount| {
            let entries = entries.into_iter().map(listed).collect();
            Ok(Box::new(Seen {
                listing: Listing {
                    entries,
                    ..Listing::default()
                },
                place,
                is_read_only: self.is_second_read_only && Some(place) == self.second,
                keeps: None,
                is_created: false,
                trust: FolderTrust::Trusted,
                unclear: BTreeSet::new(),
                missing_mount,
                trusted: None,
                proofs: Vec::new(),
                keys: None,
            }))
        };
        let mut folders = vec![
            seen(first, self.place, self.missing_mount.clone()),
            match self.second {
                Some(place) => seen(second, place, None),
                None => Err("it is not there".to_owned()),
            },
        ];
        folders.extend(self.receipts.is_some().then(|| seen(receipts, (5, 5), None)));
        Event::Listed(folders)
    }

    fn run(&mut self, errand: Errand) -> Event {
        let lost = || {
            Event::Lost(Failed {
                text: "it is away".to_owned(),
                is_too_large: false,
            })
        };
        match errand {
            Errand::Connect if self.is_up => Event::Connected(Box::new(Facts {
                text: "the model".to_owned(),
                uuid: Some("uuid".to_owned()),
                fingerprint: "rules".to_owned(),
                has_store: false,
            })),
            Errand::Connect => Event::Unreached(Unreached {
                text: "no containerd".to_owned(),
                cause: None,
                is_elsewhere: false,
            }),
            _ if !self.is_up => lost(),
            Errand::Survey { labels, unread, .. } => {
                let blob = |digest: &Digest| BlobInfo {
                    digest: digest.clone(),
                    size: 1,
                    labels: BTreeMap::new(),
                };
                let blobs = self.blobs.values().map(|digest| (digest.clone(), blob(digest)));
                let ledger = &self.state.ledger;
                let survey = Survey {
                    records: self.records.clone(),
                    census: Some(Census::default()),
                    blobs: blobs.collect(),
                    receipts: self.receipts.as_mut().map(|receipts| {
                        receipts.is_robbed = false;
                        receipts.whole(ledger, &unread)
                    }),
                    ..Survey::default()
                };
                Event::Surveyed(Box::new(survey), labels)
            }
            Errand::Withdraw(withdrawing) => {
                for withdrawal in &withdrawing.plan {
                    if let Some(record) = self.records.get_mut(&withdrawal.name) {
                        change(&mut record.labels, &withdrawal.changes);
                    }
                }
                Event::Withdrawn(withdrawing, Vec::new())
            }
            Errand::Sweep { kept, ended } => Event::Swept(self.sweep(&kept, &ended)),
            Errand::Sight => Event::Sighted(Box::default(), Duration::ZERO),
        }
    }

    /// Ends the work of a job, or brings it to a point where it needs an answer.
    pub(super) fn end_job(&mut self, name: &OsStr) {
        let Some(work) = self.jobs.remove(name) else {
            return;
        };
        let came = match work {
            Work::Aborted => Came::Dropped,
            Work::Reading(Content::Broken) => Came::Bad(Bad {
                text: "it is broken".to_owned(),
                class: ErrorClass::Bundle,
                may_go_on: false,
                is_beyond_limits: false,
            }),
            Work::Reading(Content::Bundle(images) | Content::Receipt(_, images)) => {
                let stands_for = self.stands_for(name);
                let found = Found {
                    records: images.iter().cloned().collect(),
                    broken: None,
                    unfinished: None,
                    may_go_on: false,
                    catalog: digest(0),
                    stands_for,
                    verdict: Verdict::Allowed,
                };
                self.jobs.insert(name.to_owned(), Work::Read(images));
                Came::Found(Box::new(found))
            }
            // The job waits for an answer and does not end by itself.
            Work::Read(images) => {
                self.jobs.insert(name.to_owned(), Work::Read(images));
                return;
            }
            Work::Importing(..) if !self.is_up => Came::Untried(Stop {
                text: "containerd went away".to_owned(),
                class: ErrorClass::Transient,
                retry: true,
                shortage: None,
                unreachable: Some("it is away".to_owned()),
                lost: Vec::new(),
            }),
            Work::Importing(images, leave)
                if self.is_shaky && !self.is_receipt(name) && self.dice(4) == 0 =>
            {
                Came::Imported(Box::new(self.import_in_part(name, &images, &leave)))
            }
            Work::Importing(images, leave) => Came::Imported(Box::new(self.land(name, &images, &leave))),
        };
        self.take(Event::Job(name.to_owned(), Box::new(came)));
    }

    /// Imports a bundle with the receipt that it may get, or a receipt.
    fn land(&mut self, name: &OsStr, images: &[(String, Digest)], leave: &BTreeSet<String>) -> Landed {
        match self.stands_for(name) {
            Some(of) => self.import_receipt(name, &of, images, leave),
            None => {
                let mut landed = self.import(name, images, leave);
                self.make_receipt(name, &mut landed, leave);
                landed
            }
        }
    }

    fn import(&mut self, name: &OsStr, images: &[(String, Digest)], leave: &BTreeSet<String>) -> Landed {
        self.import_as(name, &Source::Bundle(label_name(name)), images, leave)
    }

    fn import_as(
        &mut self,
        name: &OsStr,
        source: &Source,
        images: &[(String, Digest)],
        leave: &BTreeSet<String>,
    ) -> Landed {
        let mut landed = Vec::new();
        for (image, target) in images {
            let is_left = leave.contains(image);
            if !is_left {
                let record = self.records.entry(image.clone()).or_insert_with(|| ImageRecord {
                    name: image.clone(),
                    target: Descriptor::new(MediaType::ImageManifest, 1, target.clone()),
                    labels: BTreeMap::new(),
                    created_at: None,
                });
                record.target = Descriptor::new(MediaType::ImageManifest, 1, target.clone());
                let changes = labels::vouch(&record.labels, source);
                change(&mut record.labels, &changes);
                self.moved.remove(image);
                self.changed(image, ImageChange::Updated);
            }
            for blob in [target.clone(), layer(target)] {
                self.blobs.insert(blob.to_string(), blob);
            }
            landed.push(LandedImage {
                name: image.clone(),
                target: target.clone(),
                outcome: match is_left {
                    true => ImageOutcome::Skipped,
                    false => ImageOutcome::Created,
                },
                reason: None,
            });
        }
        let identity = self.state.roster.identity(name);
        Landed {
            identity: identity.unwrap_or_else(|| self.identity()),
            catalog: catalog(images),
            kept: None,
            is_read_back: false,
            is_delta: false,
            outcome: Outcome::Imported,
            has_landed: true,
            closures: images
                .iter()
                .map(|(_, target)| (target.clone(), vec![target.clone(), layer(target)]))
                .collect(),
            images: landed,
            duration_ms: 1,
            sent_bytes: 1,
            is_bundles_fault: false,
            stopped: None,
            forecast: None,
            release: None,
            skipped: Vec::new(),
        }
    }

    /// Imports the last image alone and stops.
    pub(super) fn import_in_part(
        &mut self,
        name: &OsStr,
        images: &[(String, Digest)],
        leave: &BTreeSet<String>,
    ) -> Landed {
        let (last, others) = images.split_last().expect("a bundle has images");
        let mut landed = self.import(name, std::slice::from_ref(last), leave);
        landed.outcome = Outcome::Partial;
        landed
            .images
            .extend(others.iter().map(|(image, target)| LandedImage {
                name: image.clone(),
                target: target.clone(),
                outcome: ImageOutcome::Failed,
                reason: None,
            }));
        landed.stopped = Some(Stop {
            text: "it was cut short".to_owned(),
            class: ErrorClass::Transient,
            retry: true,
            shortage: None,
            unreachable: None,
            lost: Vec::new(),
        });
        landed
    }

    /// Returns the required image if it is missing.
    fn missing(&self) -> Vec<MissingStatus> {
        let is_there = self.records.contains_key(REQUIRED);
        let missing = MissingStatus {
            reference: REQUIRED.to_owned(),
            why: String::new(),
            asked_by: Vec::new(),
        };
        if is_there { Vec::new() } else { vec![missing] }
    }

    /// Ends the check.
    pub(super) fn end_check(&mut self) {
        let Some(missing) = self.checking.take() else {
            return;
        };
        if self.is_shaky && self.dice(4) == 0 {
            return self.take(Event::Checked(Checked::Panicked("a panic: no way".to_owned())));
        }
        self.take(Event::Checked(match self.is_up {
            true => Checked::Found(RequiredStatus {
                is_current: true,
                checked_at: Some(self.at),
                problem: None,
                references: 1,
                missing,
                ..RequiredStatus::default()
            }),
            false => Checked::Failed("it is away".to_owned()),
        }));
    }

    /// Unpacks one image, or ends unpacking.
    pub(super) fn go_on_unpacking(&mut self) {
        let Some(mut work) = self.unpacking.take() else {
            return;
        };
        let Unpacking {
            images,
            is_interrupted,
        } = &mut work;
        images.retain(|image| !self.unpacked.contains(&image.target));
        let end = match images.pop() {
            _ if !self.is_up => UnpackEnd::Failed("it is away".to_owned()),
            _ if self.is_shaky && self.dice(4) == 0 => UnpackEnd::Failed("the disk is full".to_owned()),
            None => UnpackEnd::Done,
            Some(_) if *is_interrupted => UnpackEnd::Stopped,
            Some(Ahead { name, target, .. }) => {
                self.unpacking = Some(work);
                self.unpacked.insert(target.clone());
                let layers = 1;
                return self.take(Event::Unpacking(UnpackProgress::Unpacked {
                    name,
                    target,
                    layers,
                }));
            }
        };
        self.take(Event::Unpacking(UnpackProgress::Ended(end)));
    }

    fn changed(&mut self, name: &str, kind: ImageChange) {
        let name = name.to_owned();
        self.events.push_back(ImageEvent { name, kind });
    }

    pub(super) fn identity(&mut self) -> Identity {
        self.inodes += 1;
        Identity {
            device: 1,
            inode: self.inodes,
            size: 10 << 10,
            mtime_ns: self.inodes.cast_signed(),
            ctime_ns: 0,
        }
    }
}

fn change(labels: &mut BTreeMap<String, String>, changes: &labels::LabelChanges) {
    for (key, value) in changes {
        match value {
            Some(value) => drop(labels.insert(key.clone(), value.clone())),
            None => drop(labels.remove(key)),
        }
    }
}
