//! Receipts in the chaos: files that go, kills between receipt and removal, and lost layers.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use containerd::Lease;
use import::lease::RECEIPT_PREFIX;
use rustix::process::Signal;

use super::super::say;
use super::{Chaos, REST_WITHIN, Shelved};
use crate::support::bundles::text;
use crate::support::node::Node;

/// Start of the name of a bundle that is being removed.
const GOING: &str = ".airgapd-going-";
/// Said by the daemon after it has removed a file.
const TAKEN: &str = "its receipt takes its place";

/// The setting `afterImport` of a run with receipts.
#[derive(Debug)]
pub(super) struct Receipts {
    is_on: bool,
    /// The configuration without the setting.
    settings: String,
}

/// The results of a run with receipts.
#[derive(Debug, Default)]
pub(super) struct Figures {
    /// Files that gave way to their receipts, in the logs of the daemons.
    taken: usize,
    /// Receipts that lost a layer, named it, and got it back.
    degraded: usize,
    /// Kills at the sign of a receipt.
    at_receipts: usize,
}

/// The sign of a receipt that a kill waits for.
#[derive(Debug)]
pub(super) enum Sign {
    /// A file is made in the folder of receipts.
    Making(Option<std::time::SystemTime>),
    /// The daemon has removed a file: the count before.
    Taken(usize),
}

/// Returns the path of the receipt of a bundle with a plain name.
pub(super) fn of(node: &Node, file: &str) -> PathBuf {
    node.state().join("receipts").join(file)
}

/// Returns the name of the receipt of a bundle in labels.
pub(super) fn label_of(node: &Node, file: &str) -> String {
    text(&of(node, file))
}

/// Returns the bundle that a name in labels belongs to: its own name, or that of its receipt.
pub(super) fn bundle_of<'l>(node: &Node, label: &'l str) -> &'l str {
    let below = Path::new(label).strip_prefix(node.state().join("receipts"));
    below.ok().and_then(Path::to_str).unwrap_or(label)
}

/// Returns the time of the last change of the folder of receipts.
fn changed(node: &Node) -> Option<std::time::SystemTime> {
    let folder = fs::metadata(node.state().join("receipts"));
    folder.and_then(|folder| folder.modified()).ok()
}

impl Receipts {
    /// Configures a node whose files give way to receipts.
    pub(super) fn on(node: &Node) -> Receipts {
        let settings = fs::read_to_string(node.path("config.yaml")).expect("there is a configuration");
        let receipts = Receipts {
            is_on: true,
            settings,
        };
        receipts.configure(node);
        receipts
    }

    fn configure(&self, node: &Node) {
        let value = if self.is_on { "receipt" } else { "keep" };
        node.configure(&format!("{}afterImport: {value}\n", self.settings));
    }
}

impl Chaos {
    /// Turns receipts on or off, now and then.
    pub(super) fn change_settings(&mut self) {
        let Some(receipts) = &mut self.receipts else {
            return;
        };
        if self.dice.one_in(5) || !receipts.is_on && self.dice.one_in(2) {
            receipts.is_on = !receipts.is_on;
            receipts.configure(&self.node);
            if let Some(daemon) = &self.daemon {
                daemon.signal(Signal::HUP);
            }
        }
    }

    /// Returns the bundles that a round leaves as they were.
    pub(super) fn untouched(&self, before: &std::collections::BTreeMap<String, Shelved>) -> Vec<String> {
        let is_same = |(file, bundle): &(&String, &Shelved)| {
            self.shelf
                .get(*file)
                .is_some_and(|now| now.targets == bundle.targets)
        };
        let same = before.iter().filter(is_same);
        same.map(|(file, _)| file.clone()).collect()
    }

    /// Returns the sign of a receipt that the kill of this round waits for, if it waits for any.
    pub(super) fn draw_sign(&mut self) -> Option<Sign> {
        let is_on = self.receipts.as_ref().is_some_and(|receipts| receipts.is_on);
        if !is_on || self.dice.one_in(3) {
            return None;
        }
        self.figures.receipts.at_receipts += 1;
        let taken = self.daemon.as_ref().map_or(0, |daemon| daemon.count(TAKEN));
        match self.dice.one_in(3) {
            true => Some(Sign::Taken(taken)),
            false => Some(Sign::Making(changed(&self.node))),
        }
    }

    /// Waits for a sign, and a few milliseconds more: a receipt and a removal take no longer.
    pub(super) fn wait_for(&mut self, sign: &Sign, untouched: &[String]) -> Result<(), String> {
        let instant = self.dice.milliseconds(0..30);
        let deadline = Instant::now() + Duration::from_secs(2);
        let is_there = |chaos: &Chaos| match sign {
            Sign::Making(before) => changed(&chaos.node) != *before,
            Sign::Taken(before) => {
                let daemon = chaos.daemon.as_ref();
                daemon.is_some_and(|daemon| daemon.count(TAKEN) > *before)
            }
        };
        while Instant::now() < deadline && !is_there(self) {
            self.are_held(untouched)?;
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(instant);
        Ok(())
    }

    /// Checks that each of these bundles has its file or its receipt. The order of the looks is
    /// that of the removal: name, other name, receipt.
    pub(super) fn are_held(&self, files: &[String]) -> Result<(), String> {
        for file in files {
            let going = self.node.images().join(format!("{GOING}{file}"));
            let places = [self.place(file), going, of(&self.node, file)];
            if !places.iter().any(|place| place.exists()) {
                return Err(format!("{file} has neither its file nor its receipt"));
            }
        }
        Ok(())
    }

    /// Checks that each receipt has one lease, and that no lease is left of a receipt that went. A
    /// receipt that was made while its bundle was removed is removed once more.
    pub(super) fn have_leases(&self, leases: &[Lease]) -> Result<(), String> {
        if self.receipts.is_none() {
            return Ok(());
        }
        let entries = fs::read_dir(self.node.state().join("receipts"));
        let names = entries.into_iter().flatten().flatten();
        let names: Vec<String> = names
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| !name.starts_with('.'))
            .collect();
        if let Some(left) = names.iter().find(|name| !self.shelf.contains_key(*name)) {
            let _ = fs::remove_file(of(&self.node, left));
            return Err(format!("the receipt of {left}, which was removed, is there"));
        }
        let held = leases.iter().filter(|lease| lease.id.starts_with(RECEIPT_PREFIX));
        match (held.count(), names.len()) {
            (held, receipts) if held == receipts => Ok(()),
            (held, receipts) => Err(format!("{receipts} receipts have {held} leases")),
        }
    }

    /// Deletes a layer of a bundle whose file is gone, now and then. Its receipt must name the
    /// layer and the image. The bundle then brings the layer back.
    pub(super) fn lose_a_layer(&mut self) -> Result<(), String> {
        if self.receipts.is_none() || !self.dice.one_in(3) {
            return Ok(());
        }
        let is_gone = |file: &&String| !self.place(file).exists() && of(&self.node, file).exists();
        let gone: Vec<String> = self.shelf.keys().filter(is_gone).cloned().collect();
        let Some(file) = self.dice.pick(&gone).cloned() else {
            return Ok(());
        };
        let bundle = self.shelf[&file].clone();
        let Some((image, layer)) = bundle.layer.clone() else {
            return Ok(());
        };
        let deleted = self.runtime.block_on(self.client.delete_blob(&layer));
        deleted.map_err(|error| format!("cannot delete {layer}: {error}"))?;
        self.wait_for_loss(&file, [&image, layer.as_ref(), &file])?;
        let placed = self.node.path("healing.tar");
        fs::write(&placed, &bundle.bytes).map_err(|error| error.to_string())?;
        fs::rename(&placed, self.place(&file)).map_err(|error| error.to_string())?;
        self.figures.receipts.degraded += 1;
        let deadline = Instant::now() + REST_WITHIN;
        let is_back = |chaos: &Chaos| {
            let there = chaos.runtime.block_on(chaos.client.blobs());
            there.is_ok_and(|there| there.iter().any(|blob| blob.digest == layer))
        };
        while !is_back(self) {
            if Instant::now() > deadline {
                return Err(format!("{layer} of {file} does not come back"));
            }
            thread::sleep(Duration::from_millis(20));
        }
        self.come_to_rest(std::slice::from_ref(&file))?;
        self.look_at_everything()
    }

    /// Waits until the status of a receipt is degraded and has these words.
    fn wait_for_loss(&self, file: &str, words: [&str; 3]) -> Result<(), String> {
        let receipt = label_of(&self.node, file);
        let deadline = Instant::now() + REST_WITHIN;
        loop {
            let shown = self.node.airgapd(["status", "-o", "json"]).stdout;
            let status: serde_json::Value = serde_json::from_str(&shown).unwrap_or_default();
            let bundles = status["bundles"].as_array().into_iter().flatten();
            let error = bundles
                .filter(|bundle| bundle["name"] == *receipt)
                .map(|bundle| bundle["error"]["text"].to_string())
                .next();
            let is_named = error.as_ref().is_some_and(|error| {
                error.contains("degraded") && words.iter().all(|word| error.contains(word))
            });
            match is_named {
                true => return Ok(()),
                false if Instant::now() > deadline => {
                    return Err(format!("the loss of {words:?} is not named: {error:?}"));
                }
                false => thread::sleep(Duration::from_millis(50)),
            }
        }
    }
}

impl Figures {
    /// Counts the files that gave way to their receipts in the log of a daemon.
    pub(super) fn note(&mut self, log: &str) {
        self.taken += log.lines().filter(|line| line.contains(TAKEN)).count();
    }

    /// Prints the figures of a run with receipts.
    pub(super) fn tell(&self) {
        if self.at_receipts == 0 {
            return;
        }
        say(&format!(
            "  with receipts: {} files gave way to them, {} kills at a receipt or a removal; {} receipts lost a layer, \
             named it, and got it back",
            self.taken, self.at_receipts, self.degraded,
        ));
        assert!(self.taken > 0, "no file gave way to its receipt");
    }
}
