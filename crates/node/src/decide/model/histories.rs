//! Thousands of random histories of the model. The test plays events in any order, and containerd's
//! content must converge to that of the folder.
//!
//! Jobs end at random times, and connections break. Files come, change and disappear, the daemon
//! dies, and other programs remove records and blobs. After a number of steps, only time passes and
//! jobs end. Then the test checks every promise.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::time::Duration;

use containerd::ImageChange;
use import::labels::{OUR_PIN, PINNED};
use oci_spec::image::{Descriptor, Digest, MediaType};

use super::super::Event;
use super::{Content, File, SECOND, World, digest, is_in_second, layer};
use crate::state::roster::Phase;

/// Number of histories, unless `AIRGAPD_TEST_ROUNDS` has another one.
const HISTORIES: u64 = 2000;
/// Number of events in each history.
const STEPS: u64 = 60;

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
        self.state.roster.count(is_open) == 0 && !is_due
    }

    fn fail(&self, why: &str) -> ! {
        let phases: Vec<_> = self
            .folder
            .keys()
            .map(|name| (name, self.state.roster.phase(name)))
            .collect();
        panic!("{why}\n{}\n{phases:?}", self.history.join("\n"));
    }

    /// Checks that containerd has the images of the folder, and that all of them are unpacked. The
    /// daemon must also know whether the required image is missing.
    pub(in crate::decide) fn check(&self) {
        let required = self.state.required_status();
        if !required.is_some_and(|required| required.is_current && required.missing == self.missing()) {
            self.fail("the daemon does not know which required images are missing");
        }
        for (name, (target, _)) in self.state.ledger.desired_images() {
            if !self.unpacked.contains(target) {
                self.fail(&format!("{target} of {name} is not unpacked"));
            }
        }
        let mut wanted: BTreeMap<String, ((bool, u64), Digest, &OsString)> = BTreeMap::new();
        for (name, file) in &self.folder {
            let Some(entry) = self.state.ledger.get(name) else {
                self.fail(&format!("the ledger does not know {name:?}"))
            };
            let images = match &file.content {
                Content::Bundle(images) => images.clone(),
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
                // The first folder comes before the second.
                let rank = (!is_in_second(name), entry.arrival);
                let before = wanted.get(&image).map(|(rank, ..)| *rank);
                if before.is_none_or(|before| rank > before) {
                    wanted.insert(image, (rank, target, name));
                }
            }
        }
        for (image, (_, target, bundle)) in &wanted {
            if matches!(self.folder[*bundle].content, Content::Broken) {
                // The daemon neither removes nor restores these images.
                continue;
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
            let is_kept = has_broken || self.moved.contains(name) || self.has_vanished();
            if !wanted.contains_key(name) && record.labels.contains_key(OUR_PIN) && !is_kept {
                self.fail(&format!("{name} has a pin, and no bundle has it"));
            }
        }
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

/// Without this test, the test above could pass with a daemon that starts every file again and
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
