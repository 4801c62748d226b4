//! Scrub: reads the blobs that bundles vouch for again, and replaces wrong ones from a bundle.
//!
//! `pass` decides which blobs a run reads (pure), and `judge` what happens to a wrong one.
//! [`import::scrub`] reads and replaces. `shelf` finds right bytes. `memory` is the file with the
//! place where a run ended.
//!
//! A blob that containerd lacks is no wrong blob. If a file on this node has it, the daemon
//! restores it. Otherwise it is degraded, like a layer that only a receipt stands for.
//!
//! A scrub works beside the daemon. It changes no record. The daemon notices a deleted blob and
//! restores it from its bundle. That is the same work with the same ingest, so either of both may
//! come first. The daemon also finishes a scrub that was killed.

mod memory;
mod pass;
mod shelf;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bundle::{Identity, Limits};
use import::Pace;
use import::scrub::{self, Reading, Replacement, read, replace, restore_labels};
use jiff::Timestamp;
use oci_spec::image::Digest;
use serde::Serialize;
use tracing::info;

use self::memory::{Memory, Run, Store, Wrong};
use self::pass::{Needed, Pass};
use self::shelf::{Found, Lack, Shelf};
use crate::runtime::Containerd;
use crate::state::ledger::{self, Ledger, label_name};
use crate::status::ScrubStatus;

pub use self::pass::MOST_WRONG;

/// Longest time in which the place of a running scrub is only in memory.
const SAVE_EVERY: Duration = Duration::from_secs(1);

/// The work and the surroundings of a scrub.
#[derive(Debug)]
pub struct Order<'a> {
    /// The containerd whose blobs are read.
    pub runtime: &'a Containerd,
    /// The bundles that vouch for blobs.
    pub ledger: &'a Ledger,
    /// The first images folder.
    pub images_dir: &'a Path,
    /// Folder of the ledger, for the memory of the scrub.
    pub state_dir: &'a Path,
    /// Limits of bundles.
    pub limits: &'a Limits,
    /// Largest number of bytes a second that are read and written.
    pub pace: Arc<Pace>,
}

/// The result of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Number of blobs that bundles vouch for.
    pub blobs: usize,
    /// Number of blobs that this run has read.
    pub read: usize,
    /// Bytes that this run has read and hashed.
    pub read_bytes: u64,
    /// Number of blobs that containerd lacks, and that a file on this node has. The daemon restores
    /// them.
    pub absent: usize,
    /// Number of blobs that the next run reads before a pass is whole. 0 after a whole pass.
    pub remaining: usize,
    /// The wrong blobs, and those that containerd lacks and no file on this node has.
    pub wrong: Vec<WrongBlob>,
}

/// A blob that was wrong or missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WrongBlob {
    /// The digest.
    pub digest: String,
    /// The images that need the blob.
    pub images: Vec<String>,
    /// The bundles that vouch for these images.
    pub bundles: Vec<String>,
    /// State after the run.
    pub state: BlobState,
    /// The finding.
    pub found: String,
    /// The bundle whose bytes replaced the blob.
    pub from: Option<String>,
    /// The reasons why nothing replaced the blob.
    pub reasons: Vec<String>,
    /// Remedy, if the blob is still wrong.
    pub remedy: Option<String>,
}

/// State of such a blob after a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BlobState {
    /// The blob is right again, with the bytes of a bundle.
    Replaced,
    /// The blob was wrong in memory only: its bytes on the disk are right.
    RightOnDisk,
    /// The blob is still wrong or missing, and its images are damaged.
    Degraded,
}

impl Report {
    /// Returns true if no blob is wrong or lost any more, and no number of wrong blobs ended the
    /// run.
    #[must_use]
    pub fn is_good(&self) -> bool {
        let is_degraded = |blob: &WrongBlob| blob.state == BlobState::Degraded;
        self.remaining == 0 && !self.wrong.iter().any(is_degraded)
    }

    /// Returns the number of wrong blobs in a state.
    #[must_use]
    pub fn count(&self, state: BlobState) -> usize {
        self.wrong.iter().filter(|blob| blob.state == state).count()
    }
}

/// The reason why a scrub ended before its result.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// containerd does not answer.
    #[error(transparent)]
    Containerd(#[from] containerd::Error),
    /// Another scrub is running.
    #[error("another scrub uses the state folder {}: wait for its end", .0.display())]
    Running(PathBuf),
    /// The memory cannot be kept, without which a scrub that is killed would leave labels out.
    #[error("cannot keep the place of the scrub in {}", folder.display())]
    Memory {
        /// The state folder.
        folder: PathBuf,
        /// The reason.
        source: io::Error,
    },
}

/// Returns the last scrub of a node, as its memory has it. Returns `None` if there was none. Reads
/// a file of at most 16 MiB.
#[must_use]
pub fn last(state_dir: &Path) -> Option<ScrubStatus> {
    memory::read(state_dir).status()
}

/// Reads the blobs that bundles vouch for, from the place on where the last run ended, and replaces
/// wrong ones. [`MOST_WRONG`] blobs that turned wrong end the run. An error keeps the place, and
/// what is known about wrong blobs.
///
/// # Errors
///
/// Returns the reason why there is no result. Safe to cancel: the next run continues.
pub async fn scrub(order: &Order<'_>) -> Result<Report, Failure> {
    let unkept = |source| Failure::Memory {
        folder: order.state_dir.to_owned(),
        source,
    };
    let opened = Store::open(order.state_dir).map_err(unkept)?;
    let (store, mut memory) = opened.ok_or_else(|| Failure::Running(order.state_dir.to_owned()))?;
    let needed = pass::needed(order.ledger);
    memory.wrong.retain(|digest, _| needed.contains_key(digest));
    let pass = Pass::of(&needed, &memory);
    let mut scrub = Scrub {
        order,
        store,
        memory,
        saved: Instant::now(),
        shelf: Shelf::of(order.ledger, &needed, order.images_dir, order.limits),
        now: Now::of(order.state_dir),
        report: Report {
            blobs: needed.len(),
            ..Report::default()
        },
    };
    if let Err(failure) = scrub.run(pass).await {
        // The failure says more than an error of the state folder.
        let _ = scrub.save();
        return Err(failure);
    }
    Ok(scrub.report)
}

/// A run.
struct Scrub<'a> {
    order: &'a Order<'a>,
    store: Store,
    memory: Memory,
    /// Time of the last save.
    saved: Instant,
    shelf: Shelf,
    now: Now,
    report: Report,
}

/// The blobs that bundles vouch for at this moment. A run takes hours, and the operator may remove
/// bundles meanwhile.
struct Now {
    state_dir: PathBuf,
    /// The ledger's file as it was read last.
    stamp: Option<Identity>,
    /// The blobs by digest. `None` until the ledger was read again.
    needed: Option<BTreeMap<String, Needed>>,
}

impl Now {
    fn of(state_dir: &Path) -> Now {
        Now {
            state_dir: state_dir.to_owned(),
            stamp: None,
            needed: None,
        }
    }

    /// Returns true if a bundle vouches for a blob, by the ledger on the disk. A ledger that cannot
    /// be read takes nothing back.
    fn needs(&mut self, digest: &Digest) -> bool {
        let stamp = ledger::stamp(&self.state_dir);
        if stamp.is_none() || stamp != self.stamp {
            self.needed = ledger::read(&self.state_dir).map(|ledger| pass::needed(&ledger));
            self.stamp = stamp;
        }
        let needed = self.needed.as_ref();
        needed.is_none_or(|needed| needed.contains_key(digest.as_ref()))
    }
}

/// A wrong blob, and the finding.
type Finding<'n> = (&'n Needed, String);

/// The next step for a wrong blob.
enum Judgement {
    /// These bytes replace it.
    Replace(Found),
    /// The blob stays, for these reasons and with this remedy.
    Leave(Vec<String>, String),
}

/// Decides about a wrong blob. `others` are the namespaces besides the node's that list it. `found`
/// is the bundle with right bytes, or the bundles that should have them. Pure.
fn judge(others: &[String], found: Result<Found, Vec<Lack>>) -> Judgement {
    if !others.is_empty() {
        let names = others.join(", ");
        let reason = format!("containerd keeps its file, since another namespace has the blob, too: {names}");
        let remedy = format!(
            "remove the image from namespace {names} (`ctr -n NAMESPACE images rm NAME`), then run `airgapd scrub`"
        );
        return Judgement::Leave(vec![reason], remedy);
    }
    match found {
        Ok(found) => Judgement::Replace(found),
        Err(lacks) => {
            let (reasons, remedy) = left(lacks);
            Judgement::Leave(reasons, remedy)
        }
    }
}

/// Returns the reasons why no file on this node has a blob, and the remedy.
fn left(lacks: Vec<Lack>) -> (Vec<String>, String) {
    let bring: BTreeSet<&str> = lacks.iter().map(|lack| lack.bring.as_str()).collect();
    let bring: Vec<&str> = bring.into_iter().collect();
    let remedy = format!(
        "copy {} to this node again, or a bundle with the image, then run `airgapd scrub`",
        bring.join(" or ")
    );
    (lacks.into_iter().map(|lack| lack.reason).collect(), remedy)
}

impl Scrub<'_> {
    async fn run(&mut self, pass: Pass<'_>) -> Result<(), Failure> {
        let mut wrong = Vec::new();
        for blob in pass.known {
            wrong.extend(self.examine(blob).await?);
        }
        self.heal(wrong).await?;
        let mut wrong = Vec::new();
        let mut remaining = pass.rest.len();
        for blob in pass.rest {
            wrong.extend(self.examine(blob).await?);
            remaining -= 1;
            self.memory.after = Some(blob.digest.to_string());
            self.save_if_due()?;
            if wrong.len() + self.report.count(BlobState::RightOnDisk) >= MOST_WRONG {
                break;
            }
        }
        self.report.remaining = remaining;
        if remaining == 0 {
            self.memory.after = None;
            self.memory.finished = Some(Timestamp::now());
        }
        self.heal(wrong).await?;
        // A blob that a run could not write leaves its children to the lease.
        if self.memory.wrong.values().all(|wrong| wrong.labels.is_none()) {
            scrub::end(&self.order.runtime.client).await?;
        }
        self.memory.last = Some(Run {
            at: Timestamp::now(),
            blobs: self.report.blobs,
            read: self.report.read,
            remaining: self.report.remaining,
        });
        self.save()
    }

    /// Reads a blob. Returns the finding if its bytes in the store are wrong.
    async fn examine<'n>(&mut self, blob: &'n Needed) -> Result<Option<Finding<'n>>, Failure> {
        let (client, store) = (&self.order.runtime.client, self.order.runtime.store.as_deref());
        let key = blob.digest.to_string();
        let reading = read(client, &blob.digest, store, &self.order.pace).await?;
        if reading != Reading::Absent {
            self.report.read += 1;
        }
        match reading {
            Reading::Right { bytes } => {
                self.report.read_bytes += bytes;
                self.is_right(&key, blob).await?;
            }
            Reading::RightOnDisk { first } => {
                self.is_right(&key, blob).await?;
                self.tell(blob, first, BlobState::RightOnDisk, None);
            }
            Reading::Wrong { why } => {
                info!("blob {key} is wrong in containerd: {why}");
                self.memory.wrong.entry(key).or_default();
                self.save()?;
                return Ok(Some((blob, why)));
            }
            // An earlier run deleted it and was killed.
            Reading::Absent if self.labels_of(&key).is_some() => {
                let why = "a scrub that was replacing it was interrupted".to_owned();
                return Ok(Some((blob, why)));
            }
            Reading::Absent => {
                self.memory.wrong.remove(&key);
                match self.shelf.lacks(blob).await {
                    None => self.report.absent += 1,
                    // Its bundle was removed, or its receipt released, since the run began.
                    Some(_) if !self.now.needs(&blob.digest) => {}
                    // The daemon reports the loss at once, so the memory does not keep it.
                    Some(lacks) => {
                        let (reasons, remedy) = left(lacks);
                        let found = "containerd lacks it".to_owned();
                        let told = self.tell(blob, found, BlobState::Degraded, Some(remedy));
                        told.reasons = reasons;
                    }
                }
            }
        }
        Ok(None)
    }

    fn labels_of(&self, digest: &str) -> Option<&BTreeMap<String, String>> {
        self.memory.wrong.get(digest)?.labels.as_ref()
    }

    /// Forgets that a blob was wrong. If the daemon restored it after a scrub was killed, it gets
    /// the labels of other programs back.
    async fn is_right(&mut self, key: &str, blob: &Needed) -> Result<(), Failure> {
        if let Some(Wrong { labels: Some(labels) }) = self.memory.wrong.remove(key) {
            restore_labels(&self.order.runtime.client, &blob.digest, &labels).await?;
        }
        Ok(())
    }

    /// Replaces the wrong blobs for which a bundle has right bytes, all in one batch.
    async fn heal(&mut self, wrong: Vec<Finding<'_>>) -> Result<(), Failure> {
        let runtime = self.order.runtime;
        let (mut batch, mut findings) = (Vec::new(), Vec::new());
        for (blob, why) in wrong {
            let others = runtime.client.other_namespaces_with(&blob.digest).await?;
            let found = match others.is_empty() {
                true => self.shelf.find(blob, &self.order.pace).await,
                false => Err(Vec::new()),
            };
            match judge(&others, found) {
                Judgement::Leave(..) if !self.now.needs(&blob.digest) => {
                    self.memory.wrong.remove(blob.digest.as_ref());
                }
                Judgement::Leave(reasons, remedy) => {
                    let told = self.tell(blob, why, BlobState::Degraded, Some(remedy));
                    told.reasons = reasons;
                }
                Judgement::Replace(Found { bundle, blob: bytes }) => {
                    let labels = self.keep_labels(blob).await?;
                    let digest = blob.digest.clone();
                    batch.push(Replacement {
                        digest,
                        labels,
                        blob: bytes,
                    });
                    findings.push((blob, why, bundle));
                }
            }
        }
        if batch.is_empty() {
            return Ok(());
        }
        // From now on a killed scrub leaves blobs without their labels.
        self.save()?;
        let store = runtime.store.as_deref();
        let failed: BTreeMap<String, String> = replace(&runtime.client, store, &batch, &self.order.pace)
            .await?
            .into_iter()
            .map(|(digest, why)| (digest.to_string(), why))
            .collect();
        for (blob, why, bundle) in findings {
            let key = blob.digest.to_string();
            match failed.get(&key) {
                None => {
                    self.memory.wrong.remove(&key);
                    self.tell(blob, why, BlobState::Replaced, None).from = Some(bundle);
                }
                Some(reason) => {
                    let remedy = "check the disk (`dmesg`), then run `airgapd scrub`".to_owned();
                    let told = self.tell(blob, why, BlobState::Degraded, Some(remedy));
                    told.reasons = vec![format!("its replacement from {bundle} did not last: {reason}")];
                }
            }
        }
        self.save()
    }

    /// Returns the labels of a wrong blob, and keeps them in the memory. Those of an interrupted
    /// run count if the blob is gone.
    async fn keep_labels(&mut self, blob: &Needed) -> Result<BTreeMap<String, String>, Failure> {
        let there = self.order.runtime.client.blob(&blob.digest).await?;
        let kept = self.memory.wrong.entry(blob.digest.to_string()).or_default();
        let mut labels = kept.labels.take().unwrap_or_default();
        labels.extend(there.into_iter().flat_map(|info| info.labels));
        kept.labels = Some(labels.clone());
        Ok(labels)
    }

    /// Adds a wrong blob to the report.
    fn tell(
        &mut self,
        blob: &Needed,
        found: String,
        state: BlobState,
        remedy: Option<String>,
    ) -> &mut WrongBlob {
        self.report.wrong.push(WrongBlob {
            digest: blob.digest.to_string(),
            images: blob.images.iter().cloned().collect(),
            bundles: blob.bundles.iter().map(|file| label_name(file)).collect(),
            state,
            found,
            from: None,
            reasons: Vec::new(),
            remedy,
        });
        self.report.wrong.last_mut().expect("a blob was just added")
    }

    fn save_if_due(&mut self) -> Result<(), Failure> {
        match self.saved.elapsed() < SAVE_EVERY {
            true => Ok(()),
            false => self.save(),
        }
    }

    fn save(&mut self) -> Result<(), Failure> {
        self.saved = Instant::now();
        self.store.save(&self.memory).map_err(|source| Failure::Memory {
            folder: self.order.state_dir.to_owned(),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the reasons and the remedy for a blob that stays. A lack is a reason and the bundle
    /// to bring.
    fn left_by(others: &[&str], lacks: &[(&str, &str)]) -> (String, String) {
        let others: Vec<String> = others.iter().map(|name| (*name).to_owned()).collect();
        let lack = |(reason, bring): &(&str, &str)| Lack {
            reason: (*reason).to_owned(),
            bring: (*bring).to_owned(),
        };
        match judge(&others, Err(lacks.iter().map(lack).collect())) {
            Judgement::Replace(_) => panic!("there are no right bytes"),
            Judgement::Leave(reasons, remedy) => (reasons.join("; "), remedy),
        }
    }

    #[test]
    fn a_blob_stays_without_right_bytes_or_if_another_namespace_has_it() {
        let table = [
            (
                &[][..],
                &[("a.tar is a FIFO", "a.tar")][..],
                "a.tar is a FIFO",
                "copy a.tar to",
            ),
            (
                &[],
                &[
                    ("wrong, too", "b.tar"),
                    ("leaves it", "a.tar"),
                    ("no file", "b.tar"),
                ],
                "wrong, too; leaves it; no file",
                "copy a.tar or b.tar to",
            ),
            (
                &["moby"],
                &[],
                "another namespace has the blob, too: moby",
                "namespace moby",
            ),
            (&["default", "moby"], &[], "too: default, moby", "default, moby"),
        ];
        for (others, lacks, reason, remedy) in table {
            let (reasons, told) = left_by(others, lacks);
            assert!(reasons.contains(reason), "{reasons}");
            assert!(told.contains(remedy), "{told}");
        }
    }
}
