//! Random bits flip in containerd's store. Scrubs find all of them, and replace each blob that a
//! bundle on the node has. Some scrubs are killed, and some run beside a daemon.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Stdio;

use bundle::fixtures::Image;
use lab::{Generation, Options};
use oci_spec::image::Digest;
use serde_json::Value;

use super::dice::Dice;
use super::{Asked, say};
use crate::support::bundles::{self, native, needed_here};
use crate::support::target::run_on_own;
use crate::support::{Node, Own, Target};

/// Most blobs that are damaged before a scrub.
const MOST: usize = 30;

/// A node with a bundle in its folder and the images of another bundle, which is gone.
struct Worn<'t> {
    node: Node,
    target: &'t Target,
    /// Blobs with a replacement.
    kept: Vec<Digest>,
    /// Blobs without a replacement.
    gone: Vec<Digest>,
    dice: Dice,
    tally: Tally,
}

#[derive(Debug, Default)]
struct Tally {
    flips: usize,
    replaced: usize,
    degraded: usize,
    /// Blobs that the daemon, or a run that was killed, had restored.
    restored: usize,
    runs: usize,
    kills: usize,
}

/// Returns images of small layers, each of its own.
fn images(dice: &mut Dice, group: &str, count: usize) -> Vec<Image> {
    let image = |n| {
        let image = Image::new(&format!("registry.test/{group}{n}:1")).platform(native());
        (0..4).fold(image, |image, _| {
            let length = dice.within(1..40_000);
            image.layer(dice.bytes(length))
        })
    };
    (0..count).map(image).collect()
}

impl Worn<'_> {
    fn on(target: &Target, seed: u64) -> Worn<'_> {
        let node = Node::on(target);
        node.configure_also("cri: false");
        let mut dice = Dice::new(seed);
        let blobs = |archive: &bundle::fixtures::Archive| -> Vec<Digest> {
            let needed = needed_here(&archive.images).into_iter();
            needed.map(|digest| digest.parse().expect("a digest")).collect()
        };
        let kept = bundles::write(&node.path("kept.tar"), images(&mut dice, "kept", 30));
        node.import_and_stop(target, &node.path("kept.tar"), 60);
        let gone = bundles::write(&node.path("gone.tar"), images(&mut dice, "gone", 3));
        node.import_and_stop(target, &node.path("gone.tar"), 66);
        fs::remove_file(node.images().join("gone.tar")).expect("the file is there");
        Worn {
            kept: blobs(&kept),
            gone: blobs(&gone),
            node,
            target,
            dice,
            tally: Tally::default(),
        }
    }

    /// Flips a bit in several blobs, and returns these with the bits.
    fn age(&mut self, most: usize) -> BTreeMap<String, (Digest, usize)> {
        let all: Vec<Digest> = self.kept.iter().chain(&self.gone).cloned().collect();
        let mut aged = BTreeMap::new();
        for _ in 0..self.dice.within(1..most.min(MOST) + 1) {
            let digest = self.dice.pick(&all).expect("there are blobs").clone();
            let bit = self.dice.within(0..1 << 20);
            if !aged.contains_key(digest.as_ref() as &str) {
                self.target.flip_bit_at(&digest, bit);
                aged.insert(digest.to_string(), (digest, bit));
            }
        }
        for (digest, _) in aged.values() {
            let is_right = self.target.is_right(digest);
            assert!(!is_right, "{digest} did not change");
        }
        self.tally.flips += aged.len();
        aged
    }

    /// Starts a scrub and kills it after a random time.
    fn interrupted(&mut self) {
        let mut command = self.node.command(["scrub"]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut run = command.spawn().expect("the program starts");
        std::thread::sleep(self.dice.milliseconds(10..400));
        let _ = run.kill();
        run.wait().expect("the program ends");
        self.tally.kills += 1;
    }

    /// Returns true if a lease is left. A kill during a collection leaves that of the collection
    /// behind for ten minutes, which does not count.
    fn has_leases(&self) -> bool {
        let leases = self.target.leases();
        leases.iter().any(|lease| lease != "airgapd-collect")
    }

    /// Scrubs until a pass is whole. Returns the state of each blob that was wrong.
    fn scrub(&mut self) -> BTreeMap<String, String> {
        let mut states = BTreeMap::new();
        loop {
            let answer = self.node.airgapd(["scrub", "-o", "json"]);
            let report: Value = answer.json();
            self.tally.runs += 1;
            for blob in report["wrong"].as_array().expect("a list") {
                let text = |key: &str| blob[key].as_str().expect("a text").to_owned();
                states.insert(text("digest"), text("state"));
            }
            if report["remaining"] == 0 {
                return states;
            }
        }
    }

    fn pass(&mut self, most: usize) {
        let before = (self.target.records(), self.target.blobs());
        let has_daemon = self.dice.one_in(4);
        let daemon = has_daemon.then(|| {
            // With this file gone, a daemon would release its images.
            fs::copy(self.node.path("gone.tar"), self.node.images().join("gone.tar")).expect("a copy");
            let daemon = self.node.start();
            daemon.wait_until("all leases are returned", || !self.has_leases());
            daemon
        });
        let aged = self.age(most);
        let is_killed = self.dice.one_in(4);
        if is_killed {
            self.interrupted();
        }
        let mut states = self.scrub();
        // The place of a killed run is behind the blobs that it has read.
        states.extend(self.scrub());
        let gone: BTreeSet<String> = self.gone.iter().map(ToString::to_string).collect();
        for (key, (digest, bit)) in &aged {
            let has_replacement = has_daemon || !gone.contains(key);
            match states.get(key).map(String::as_str) {
                Some("replaced") => self.tally.replaced += 1,
                Some("degraded") => self.tally.degraded += 1,
                None if is_killed || has_daemon => self.tally.restored += 1,
                other => panic!("{key} was not found: {other:?}"),
            }
            assert_eq!(self.target.is_right(digest), has_replacement, "{key}");
            if !has_replacement {
                self.target.flip_bit_at(digest, *bit);
            }
        }
        for digest in states.keys() {
            assert!(aged.contains_key(digest), "{digest} was right");
        }
        if let Some(daemon) = daemon {
            daemon.wait_until("all leases are returned", || !self.has_leases());
            daemon.stop();
            fs::remove_file(self.node.images().join("gone.tar")).expect("the file is there");
        }
        assert_eq!(self.scrub(), BTreeMap::new(), "all is right again");
        self.target.collect_garbage();
        let after = (self.target.records(), self.target.blobs());
        assert_eq!(after, before);
        assert!(!self.has_leases());
    }
}

fn flips(own: &mut Own, count: usize, seed: u64) {
    let generation = own.containerd.generation();
    let mut worn = Worn::on(&own.target, seed);
    while worn.tally.flips < count {
        let most = count - worn.tally.flips;
        worn.pass(most);
    }
    say(&format!("containerd {generation}, seed {seed}: {:?}", worn.tally));
}

fn play(generation: Generation, count: usize, seed: u64) {
    let options = Options {
        cri: false,
        ..Options::default()
    };
    run_on_own(generation, &options, |own| flips(own, count, seed));
}

#[test]
fn random_flips_are_all_found_and_replaced_on_containerd_1_7() {
    play(Generation::V1_7, 20, 1);
}

#[test]
fn random_flips_are_all_found_and_replaced_on_containerd_2_3() {
    play(Generation::V2_3, 20, 2);
}

/// Runs for `cargo xtask flips`.
#[test]
#[ignore = "takes long: `cargo xtask flips` runs it"]
fn as_many_flips_as_asked_for() {
    let Asked { rounds, seed } = Asked::or(1000);
    for generation in super::generations_asked_for() {
        play(generation, rounds, seed);
    }
}
