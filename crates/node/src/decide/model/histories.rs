//! Thousands of random histories of the model. The test plays events in any order, and containerd's
//! content must converge to that of the folder.
//!
//! Jobs end at random times, and connections break. Files come, change and disappear, the daemon
//! dies, and other programs remove records and blobs. After a number of steps, only time passes and
//! jobs end. Then the test checks every promise.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::time::Duration;

use containerd::ImageChange;
use import::labels::{OUR_PIN, PINNED};
use oci_spec::image::{Descriptor, Digest, MediaType};

use super::super::Event;
use super::{Content, File, SECOND, World, digest, is_in_second, layer};
use crate::settings::AfterImport;
use crate::state::ledger::Ledger;
use crate::state::roster::Phase;

/// Number of histories, unless `AIRGAPD_TEST_ROUNDS` has another one.
const HISTORIES: u64 = 2000;
/// Number of events in each history.
const STEPS: u64 = 60;

/// The place of a file among all files with images of the same name: first folder, arrival, and the
/// time of a receipt.
type Rank = (bool, u64, Option<i64>);

impl World {
    /// Plays a random event.
    fn happen(&mut self) {
        let name: OsString = match self.dice(5) {
            number @ 0..3 => format!("{number}.tar").into(),
            number => format!("{SECOND}/{number}.tar").into(),
        };
        let image = format!("registry.test/app:{}", self.dice(4));
        let target = digest(self.dice(6) + 1);
        match self.dice(19) {
            0..=3 => {
                let more = self.dice(3);
                let images = (0..=more).map(|_| {
                    let image = format!("registry.test/app:{}", self.dice(4));
                    (image, digest(self.dice(6) + 1))
                });
                let images: BTreeMap<String, Digest> = images.collect();
                let content = match self.dice(6) {
                    0 => Content::Broken,
                    _ => Content::Bundle(images.into_iter().collect()),
                };
                self.history.push(format!("{name:?} comes with {content:?}"));
                let identity = self.identity();
                self.folder.insert(name, File { identity, content });
                self.state.relist = true;
            }
            // One bundle at a time, because the loss of many at once counts as a fault of the
            // folder.
            4 => {
                self.history.push(format!("{name:?} goes"));
                self.folder.remove(&name);
                self.state.relist = true;
            }
            5 => {
                self.history.push(format!("{image} is removed"));
                if self.records.remove(&image).is_some() {
                    self.changed(&image, ImageChange::Deleted);
                }
            }
            6 => {
                self.history.push(format!("{image} is moved to {target}"));
                if let Some(record) = self.records.get_mut(&image) {
                    record.target = Descriptor::new(MediaType::ImageManifest, 1, target);
                    self.moved.insert(image.clone());
                    self.changed(&image, ImageChange::Updated);
                }
            }
            7 => {
                self.history.push(format!("the blob {target} goes"));
                if self.blobs.remove(&target.to_string()).is_some() {
                    self.changed(target.as_ref(), ImageChange::ContentDeleted);
                }
            }
            8 => {
                self.is_up = !self.is_up;
                self.history.push(format!("containerd is up: {}", self.is_up));
                if !self.is_up {
                    self.take(Event::Ended);
                }
            }
            9 => self.pass(Duration::from_secs(7)),
            10 => self.pass(Duration::from_secs(400)),
            11 => self.end_check(),
            12 => self.go_on_unpacking(),
            13 => {
                self.history.push("the daemon dies, and begins again".to_owned());
                self.restart("boot");
            }
            14 => {
                self.second = match self.second {
                    Some(_) => None,
                    None => Some((3, 3)),
                };
                self.history
                    .push(format!("the second folder is there: {}", self.second.is_some()));
                self.state.relist = true;
            }
            _ => self.end_some_job(),
        }
        self.deliver();
    }

    /// Plays a random event in a world with receipts.
    fn happen_with_receipts(&mut self) {
        // A daemon can only die before its last save if nothing has happened since.
        self.receipts_mut().stale = None;
        if self.dice(5) > 1 {
            return self.happen();
        }
        let target = digest(self.dice(6) + 1);
        let images: Vec<OsString> = self.folder.keys().cloned().collect();
        let some = usize::try_from(self.dice(1000)).expect("a small number") % images.len().max(1);
        match self.dice(13) {
            0..=2 => self.reload_after_import(),
            3 => drop(self.lose_a_layer()),
            4..=5 => {
                self.history
                    .push("containerd collects what nothing holds".to_owned());
                self.collect_garbage();
            }
            6 => {
                self.history.push("kubelet removes what is not pinned".to_owned());
                self.collect_records();
            }
            7 => {
                self.history
                    .push("the power fails, and blobs are lost".to_owned());
                let at = self.history.len();
                self.blobs.remove(layer(&target).as_ref());
                self.blobs.remove(target.as_ref());
                self.restart(&format!("boot {at}"));
            }
            8 => {
                self.history.push("the daemon dies in mid-import".to_owned());
                self.end_unheard();
                self.restart("boot");
            }
            9 => {
                self.history.push("the ledger is lost".to_owned());
                self.receipts_mut().is_ledger_lost = true;
                self.begin("boot", Ledger::default());
            }
            10 => {
                self.history.push("containerd is wiped".to_owned());
                self.records.clear();
                self.moved.clear();
                self.blobs.clear();
                self.receipts_mut().leases.clear();
                self.receipts_mut().is_robbed = true;
                self.take(Event::Ended);
            }
            11 => {
                self.history.push("another program deletes a lease".to_owned());
                self.receipts_mut().is_robbed = true;
                let lease = self.receipts_mut().leases.pop_first();
                if let Some((id, (path, _))) = lease
                    && self.is_up
                    && self.dice(2) == 0
                {
                    self.history
                        .push("the daemon dies while it fills it again".to_owned());
                    self.receipts_mut().leases.insert(id, (path, BTreeSet::new()));
                    self.restart("boot");
                }
            }
            _ => {
                if let Some(name) = images.get(some).filter(|name| self.is_receipt(name)) {
                    self.history.push(format!("the operator releases {name:?}"));
                    self.folder.remove(name);
                    self.state.relist = true;
                }
            }
        }
        self.deliver();
    }

    /// Takes away the layer of an image that a receipt stands for. Returns the image's target.
    fn lose_a_layer(&mut self) -> Option<Digest> {
        let held = self.images_of_receipts();
        let some = usize::try_from(self.dice(1000)).expect("a small number") % held.len().max(1);
        let target = held.get(some)?;
        let lost = layer(target);
        self.history.push(format!("the layer {lost} goes"));
        if self.blobs.remove(lost.as_ref()).is_some() {
            self.changed(lost.as_ref(), ImageChange::ContentDeleted);
        }
        Some(target.clone())
    }

    /// Brings a bundle with an image under another name.
    fn bring(&mut self, target: Digest) {
        let images = vec![("registry.test/brought:1".to_owned(), target)];
        self.history.push(format!("a bundle comes with {images:?}"));
        let (identity, content) = (self.identity(), Content::Bundle(images));
        self.folder
            .insert("brought.tar".into(), File { identity, content });
        self.state.relist = true;
    }

    /// Lets the daemon die before the last save of its ledger, now and then.
    fn die_before_the_save(&mut self) {
        if let Some(stale) = self.receipts_mut().stale.take()
            && self.dice(8) == 0
        {
            self.history.push("the daemon dies before it saves".to_owned());
            self.begin("boot", stale);
        }
    }

    fn end_some_job(&mut self) {
        let which = self.dice(2);
        let names: Vec<OsString> = self.jobs.keys().cloned().collect();
        if let Some(name) = names.get(usize::from(which == 1 && names.len() > 1)) {
            let name = name.clone();
            self.history
                .push(format!("the job of {name:?} continues: {:?}", self.jobs[&name]));
            self.end_job(&name);
        }
    }

    /// Delivers events of containerd, some time after they happened.
    fn deliver(&mut self) {
        while self.dice(3) > 0
            && let Some(event) = self.events.pop_front()
        {
            if self.state.connection.is_up() {
                self.take(Event::Changed(event));
            }
        }
    }

    /// Lets time pass and jobs end, with a containerd and without any other event.
    pub(in crate::decide) fn settle(&mut self) {
        self.is_up = true;
        self.is_shaky = false;
        self.state.relist |= self.second.is_none();
        self.second.get_or_insert((3, 3));
        self.state.relist = true;
        let mut done_since = None;
        for _ in 0..2000 {
            let due = self.go_on();
            while let Some(event) = self.events.pop_front() {
                if self.state.connection.is_up() {
                    self.take(Event::Changed(event));
                }
            }
            let names: Vec<OsString> = self.jobs.keys().cloned().collect();
            for name in &names {
                self.end_job(name);
            }
            if !names.is_empty() {
                // The end of a job makes other work due at once.
                continue;
            }
            if self.checking.is_some() || self.unpacking.is_some() {
                self.end_check();
                self.go_on_unpacking();
                continue;
            }
            let is_quiet = self.jobs.is_empty() && self.state.lanes.is_empty() && !self.state.relist;
            match due {
                // Only the next regular comparison is due.
                Some(due) if is_quiet && due > self.now + Duration::from_secs(500) && self.is_all_done() => {
                    return;
                }
                // Degraded receipts are due again and again.
                Some(_)
                    if is_quiet
                        && self.is_all_done()
                        && self.now - *done_since.get_or_insert(self.now) > Duration::from_secs(1300) =>
                {
                    return;
                }
                Some(due) if is_quiet => {
                    let wait = due.saturating_duration_since(self.now);
                    self.pass(wait.max(Duration::from_millis(1)));
                }
                _ => {}
            }
        }
        let due = self
            .state
            .next_due(self.now)
            .map(|due| due.saturating_duration_since(self.now));
        self.fail(&format!("the daemon does not come to rest: {due:?}"));
    }

    fn is_all_done(&self) -> bool {
        let is_open = |phase| !matches!(phase, Phase::Done | Phase::Failed { retry: None });
        let is_due = self.state.require_due(self.now).is_some() || self.state.unpack_due(self.now).is_some();
        // A degraded receipt is tried again for ever.
        let is_degraded = |name: &OsString| match &self.folder.get(name).map(|file| &file.content) {
            Some(Content::Receipt(_, images)) => !self.lost_of(images).is_empty(),
            _ => false,
        };
        self.state.roster.names(is_open).iter().all(is_degraded) && !is_due
    }

    pub(super) fn fail(&self, why: &str) -> ! {
        let phases: Vec<_> = self
            .folder
            .keys()
            .map(|name| (name, self.state.roster.phase(name)))
            .collect();
        panic!("{why}\n{}\n{phases:?}", self.history.join("\n"));
    }

    /// Checks that containerd has the images of the folder, and that all of them are unpacked. The
    /// daemon must also know whether the required image is missing.
    ///
    /// Returns the number of images that receipts vouch for and whose layers are lost.
    pub(in crate::decide) fn check(&self) -> u32 {
        let required = self.state.required_status(self.now);
        if !required.is_some_and(|required| required.is_current && required.missing == self.missing()) {
            self.fail("the daemon does not know which required images are missing");
        }
        for (name, (target, _)) in self.state.ledger.desired_images() {
            if !self.unpacked.contains(target) {
                self.fail(&format!("{target} of {name} is not unpacked"));
            }
        }
        let mut wanted: BTreeMap<String, (Rank, Digest, &OsString)> = BTreeMap::new();
        for (name, file) in &self.folder {
            let Some(entry) = self.state.ledger.get(name) else {
                self.fail(&format!("the ledger does not know {name:?}"))
            };
            let images = match &file.content {
                Content::Bundle(images) | Content::Receipt(_, images) => images.clone(),
                // A broken file in place of a bundle keeps the claims of the bundle before it.
                Content::Broken => {
                    let imported = entry.imported.iter().flat_map(|imported| &imported.images);
                    imported
                        .map(|image| (image.name.clone(), image.target.clone()))
                        .collect()
                }
            };
            let is_failed = self.state.roster.phase(name) == Some(Phase::Failed { retry: None });
            if matches!(file.content, Content::Broken) != is_failed {
                self.fail(&format!(
                    "{name:?} is broken and does not count as failed, or the other way round"
                ));
            }
            for (image, target) in images {
                // The first folder comes before the second. A receipt has the place of its bundle.
                let rank = match &file.content {
                    Content::Receipt(of, _) => {
                        let bundle = OsStr::new(&of.bundle);
                        (!is_in_second(bundle), entry.arrival, Some(of.since()))
                    }
                    Content::Bundle(_) | Content::Broken => (!is_in_second(name), entry.arrival, None),
                };
                let before = wanted.get(&image).map(|(rank, ..)| *rank);
                if before.is_none_or(|before| rank > before) {
                    wanted.insert(image, (rank, target, name));
                }
            }
        }
        let mut degraded = 0;
        for (image, (_, target, bundle)) in &wanted {
            match &self.folder[*bundle].content {
                // The daemon neither removes nor restores these images.
                Content::Broken => continue,
                // A receipt that lacks a layer says so, and keeps the other images in place.
                Content::Receipt(_, images) if !self.moved.contains(image) => {
                    let mut lost = self.lost_of(images);
                    let is_whole = lost.is_empty();
                    // Images whose names another file has need no layer.
                    lost.retain(|image, _| wanted[*image].2 == *bundle);
                    match (lost.is_empty(), self.is_degraded(bundle, &lost)) {
                        (false, false) => {
                            self.fail(&format!("{bundle:?} does not name what it lacks: {lost:?}"))
                        }
                        (true, true) if is_whole => {
                            self.fail(&format!("{bundle:?} is degraded and lacks nothing"))
                        }
                        _ => {}
                    }
                    if lost.contains_key(image.as_str()) {
                        degraded += 1;
                        continue;
                    }
                }
                Content::Receipt(..) | Content::Bundle(_) => {}
            }
            let Some(record) = self.records.get(image) else {
                self.fail(&format!("{image} is missing"))
            };
            if record.target.digest() != target && !self.moved.contains(image) {
                self.fail(&format!(
                    "{image} is not what {bundle:?} says, which has the name"
                ));
            }
            let is_pinned = record.labels.contains_key(PINNED) && record.labels.contains_key(OUR_PIN);
            if !is_pinned && !self.moved.contains(image) {
                self.fail(&format!("{image} is not pinned"));
            }
            for blob in [target.clone(), layer(target)] {
                if !self.blobs.contains_key(blob.as_ref()) && !self.moved.contains(image) {
                    self.fail(&format!("{blob} of {image} is missing"));
                }
            }
        }
        let has_broken = self
            .folder
            .values()
            .any(|file| matches!(file.content, Content::Broken));
        for (name, record) in &self.records {
            let is_kept = has_broken || degraded > 0 || self.moved.contains(name) || self.has_vanished();
            let is_kept = is_kept || self.has_lost_a_ledger();
            if !wanted.contains_key(name) && record.labels.contains_key(OUR_PIN) && !is_kept {
                self.fail(&format!("{name} has a pin, and no bundle has it"));
            }
        }
        self.check_receipts();
        degraded
    }
}

#[test]
fn whatever_happens_in_any_order_the_state_converges_to_what_the_folder_says() {
    let rounds = std::env::var("AIRGAPD_TEST_ROUNDS").ok();
    let histories = rounds.map_or(HISTORIES, |rounds| rounds.parse().expect("a number of rounds"));
    for seed in 0..histories {
        let mut world = World::new(seed);
        world.history.push(format!("seed {seed}"));
        world.is_shaky = seed % 4 > 1;
        for _ in 0..STEPS {
            world.happen();
            world.go_on();
        }
        world.settle();
        world.check();
    }
}

/// The same with receipts. In the end every image of a file is whole and pinned, or its receipt
/// names the lost layer. The model itself refuses a removal of a file without a receipt
/// in place ([`World::remove`]).
#[test]
fn with_receipts_no_image_is_lost_that_a_file_vouches_for_and_no_file_goes_without_its_receipt() {
    let rounds = std::env::var("AIRGAPD_TEST_ROUNDS").ok();
    let histories = rounds.map_or(HISTORIES / 4, |rounds| {
        rounds.parse().expect("a number of rounds")
    });
    let (mut degraded, mut bundles, mut receipts, mut left) = (0, 0, 0, 0);
    for seed in 0..histories {
        let mut world = World::with_receipts(seed);
        world.history.push(format!("seed {seed}"));
        world.is_shaky = seed % 4 > 1;
        if seed % 8 < 7 {
            world.after_import(AfterImport::Receipt);
        }
        for _ in 0..STEPS {
            world.happen_with_receipts();
            world.go_on();
            world.die_before_the_save();
        }
        world.settle();
        world.check();
        // A bundle that got no receipt at first is tried again after an hour.
        world.pass(Duration::from_secs(4000));
        world.settle();
        world.check();
        left += world.check_files();
        // A receipt names a lost layer, until a bundle brings it back.
        if let Some(target) = world.lose_a_layer() {
            world.settle();
            degraded += world.check();
            world.bring(target);
            world.settle();
            world.check();
        }
        let [of_bundles, of_receipts] = world.removals();
        bundles += of_bundles;
        receipts += of_receipts;
    }
    // Otherwise the histories show nothing.
    let counts = [degraded, bundles, receipts, left];
    let least = u32::try_from(histories / 20).expect("a number of rounds");
    assert!(counts.iter().all(|count| *count >= least), "{counts:?}");
}

/// Without this test, the first test could pass with a daemon that starts every file again and
/// again.
/// again.
#[test]
fn a_bundle_that_nothing_happens_to_is_started_once() {
    for seed in 0..20 {
        let mut world = World::new(seed);
        for number in 0..5 {
            let images = vec![(format!("registry.test/app:{number}"), digest(number + 1))];
            let identity = world.identity();
            let content = Content::Bundle(images);
            world
                .folder
                .insert(format!("{number}.tar").into(), File { identity, content });
        }
        world.settle();
        world.check();
        world.pass(Duration::from_secs(36_000));
        world.settle();
        assert_eq!(
            world.starts.values().sum::<u32>(),
            5,
            "{}",
            world.history.join("\n")
        );
    }
}
