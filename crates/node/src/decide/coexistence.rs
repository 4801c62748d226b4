//! Coexistence with another importer: whether another program imports bundles from the same folder,
//! and when its pass over a bundle has ended. The judgements are pure.
//!
//! k0s imports `<data-dir>/images` into its own containerd, k3s and RKE2 import their
//! `agent/images`. No setting turns either off. Both send every byte of a bundle, even if
//! containerd has it. Two imports at the same time would move everything twice. So airgapd leaves a
//! new bundle to the other importer first. Then it adds what that importer left out or did only in
//! part. No wait lasts for ever: an importer that does not come, or that stops, gets no more time.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use containerd::{Client, ImageRecord, Ingest};
use import::labels::{K0S_SOURCES, K3S_PINNED, RKE2_PINNED};
use import::plan::{BlobAction, BlobStep, ImagePlan, RecordAction};
use import::{BundleResult, Plan};
use jiff::Timestamp;

use crate::place::Distribution;
use crate::settings::Coexistence;

/// Another importer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Importer {
    /// k0s's own worker.
    K0s,
    /// k3s or RKE2.
    K3s,
    /// An importer that is known by its ingests only.
    Unknown,
}

impl Importer {
    /// Returns the longest time between the end of an upload and the start of the importer's pass.
    /// k0s waits for ten seconds without an event in the folder, k3s for two seconds. An unknown
    /// importer has already begun, since only its work shows it.
    fn begins_within(self) -> Duration {
        Duration::from_secs(match self {
            Importer::K0s => 15,
            Importer::K3s => 5,
            Importer::Unknown => 0,
        })
    }
}

impl fmt::Display for Importer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Importer::K0s => "k0s",
            Importer::K3s => "k3s",
            Importer::Unknown => "another importer",
        })
    }
}

/// Signs of other importers on this node.
#[derive(Clone, Copy, Debug, Default)]
pub struct Evidence {
    /// The distribution that the daemon's containerd and folder belong to.
    pub(crate) home: Option<Distribution>,
    /// True if k0s's label names a bundle in the images folder.
    pub(crate) k0s_label: bool,
    /// True if k3s's label is on a record and k3s imports the images folder.
    pub(crate) k3s_label: bool,
    /// True if another program is importing at this moment.
    pub(crate) ingests: bool,
}

/// Returns the importer to follow, with the reason for the log.
pub fn judge(setting: Coexistence, evidence: &Evidence) -> Option<(Importer, &'static str)> {
    let Evidence {
        home,
        k0s_label,
        k3s_label,
        ingests,
    } = *evidence;
    let found = match home {
        _ if k0s_label => Some((Importer::K0s, "its label on records names this folder")),
        _ if k3s_label => Some((Importer::K3s, "its label is on records")),
        Some(Distribution::K0s) => Some((Importer::K0s, "this is its containerd and its folder")),
        Some(Distribution::K3s | Distribution::Rke2) => {
            Some((Importer::K3s, "this is its containerd and its folder"))
        }
        Some(Distribution::Containerd) | None if ingests => {
            Some((Importer::Unknown, "another program is importing"))
        }
        Some(Distribution::Containerd) | None => None,
    };
    match setting {
        Coexistence::Exclusive => None,
        Coexistence::Auto => found,
        // An operator who sets this knows of an importer. k0s is assumed, since it takes longest to
        // begin.
        Coexistence::Follow => found.or(Some((Importer::K0s, "the configuration says so"))),
    }
}

/// Returns why signatures cannot guard the first images folder: another program imports it without
/// asking for them. `coexistence: exclusive` is no answer, since that program imports all the same.
pub fn unguarded(setting: Coexistence, evidence: &Evidence) -> Option<String> {
    let setting = match setting {
        Coexistence::Follow => Coexistence::Follow,
        Coexistence::Auto | Coexistence::Exclusive => Coexistence::Auto,
    };
    let name = match (judge(setting, evidence)?.0, evidence.home) {
        (Importer::Unknown, _) => return None,
        (Importer::K0s, _) => "k0s",
        (Importer::K3s, Some(Distribution::Rke2)) => "RKE2",
        (Importer::K3s, _) => "k3s",
    };
    Some(format!(
        "{name} imports this folder without asking for signatures: set imagesDir to a folder of its own"
    ))
}

/// Signs of other importers from one look at containerd.
#[derive(Clone, Debug, Default)]
pub struct Sight {
    /// Bundles that k0s imported, with their time of change at that moment, in nanoseconds since
    /// 1970.
    sources: BTreeMap<PathBuf, i64>,
    k3s_label: bool,
    /// Fingerprint of all ingests of other programs. A change shows that they made progress.
    in_flight: Option<u64>,
}

/// Prefix of the ingests of containerd's Go import, which names them after the path in the archive.
const GO_INGEST: &str = "tar-";

impl Sight {
    /// Reads the records with labels of other importers, and their ingests, from containerd.
    ///
    /// # Errors
    ///
    /// Returns an error if a request to containerd fails.
    pub async fn look(client: &Client, clock: Timestamp) -> Result<Sight, containerd::Error> {
        let records = client
            .images_labelled(&[K0S_SOURCES, K3S_PINNED, RKE2_PINNED])
            .await?;
        let ingests = client.ingests_beginning(GO_INGEST).await?;
        Ok(Sight::of(&records, &ingests, clock))
    }

    fn of(records: &[ImageRecord], ingests: &[Ingest], clock: Timestamp) -> Sight {
        let labels = |key: &'static str| records.iter().filter_map(move |record| record.labels.get(key));
        let sources = labels(K0S_SOURCES).flat_map(|text| k0s_sources(text));
        let theirs: Vec<&Ingest> = ingests
            .iter()
            .filter(|ingest| ingest.reference.starts_with(GO_INGEST) && !is_stale(ingest, clock))
            .collect();
        Sight {
            sources: sources.collect(),
            k3s_label: labels(K3S_PINNED).chain(labels(RKE2_PINNED)).next().is_some(),
            in_flight: (!theirs.is_empty()).then(|| fingerprint(&theirs)),
        }
    }

    /// Returns the evidence from this look and from the node's distribution.
    pub fn evidence(&self, folder: &Path, home: Option<Distribution>) -> Evidence {
        Evidence {
            home,
            k0s_label: self.sources.keys().any(|path| path.starts_with(folder)),
            k3s_label: self.k3s_label && folder.ends_with("agent/images"),
            ingests: self.in_flight.is_some(),
        }
    }

    /// Returns true if k0s says that it has imported this very file.
    fn has_passed(&self, path: &Path, mtime_ns: i64) -> bool {
        self.sources.get(path) == Some(&mtime_ns)
    }
}

/// Reads the label's JSON object of paths and times (RFC 3339). Unreadable text counts as no label.
fn k0s_sources(text: &str) -> Vec<(PathBuf, i64)> {
    let found: BTreeMap<PathBuf, Timestamp> = serde_json::from_str(text).unwrap_or_default();
    let nanoseconds = |time: Timestamp| i64::try_from(time.as_nanosecond()).ok();
    found
        .into_iter()
        .filter_map(|(path, time)| Some((path, nanoseconds(time)?)))
        .collect()
}

fn is_stale(ingest: &Ingest, clock: Timestamp) -> bool {
    let idle = ingest.updated_at.map(|at| clock.duration_since(at));
    idle.is_some_and(|idle| Duration::try_from(idle).is_ok_and(|idle| idle > STANDSTILL))
}

fn fingerprint(ingests: &[&Ingest]) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    for ingest in ingests {
        (&ingest.reference, ingest.offset).hash(&mut hasher);
    }
    hasher.finish()
}

/// Time without progress after which an ingest counts as abandoned.
const STANDSTILL: Duration = Duration::from_secs(10);
/// Time for which an importer may seem idle between two blobs or bundles.
const GAP: Duration = Duration::from_secs(3);
/// Longest wait for another importer.
const LONGEST: Duration = Duration::from_secs(1800);
/// Pause between two looks.
pub(crate) const PAUSE: Duration = Duration::from_millis(500);

/// Another importer's pass over one file, as far as looks have shown it.
#[derive(Clone, Debug)]
pub(crate) struct Pass {
    path: PathBuf,
    mtime_ns: i64,
    begun: Instant,
    /// The last fingerprint of ingests, and the time since which it is the same.
    moved: Option<(u64, Instant)>,
    /// Time of the last look that showed an import under way.
    busy: Option<Instant>,
}

/// The next step for a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// The other importer may still be at work.
    Wait,
    /// It is airgapd's turn, with the reason for the log.
    Go(&'static str),
}

impl Pass {
    pub(crate) fn begin(path: PathBuf, mtime_ns: i64, now: Instant) -> Pass {
        Pass {
            path,
            mtime_ns,
            begun: now,
            moved: None,
            busy: None,
        }
    }

    /// Judges the signs of this moment. `importer` is the importer to follow, as far as containerd
    /// shows one now: an importer that is known by its ingests only is invisible between two blobs.
    /// `pause` is the approximate time between two looks. A single look without an ingest proves
    /// nothing, since it may fall between two blobs.
    pub(crate) fn look(
        &mut self,
        importer: Option<Importer>,
        sight: &Sight,
        now: Instant,
        pause: Duration,
    ) -> Next {
        let waited = now.saturating_duration_since(self.begun);
        if sight.has_passed(&self.path, self.mtime_ns) {
            return Next::Go("it has imported the bundle");
        }
        if waited >= LONGEST {
            return Next::Go("it takes too long");
        }
        if let Some(seen) = sight.in_flight {
            let since = match self.moved {
                Some((before, since)) if before == seen => since,
                _ => now,
            };
            self.moved = Some((seen, since));
            if now.saturating_duration_since(since) < STANDSTILL {
                self.busy = Some(now);
                return Next::Wait;
            }
        }
        match (self.busy, importer) {
            (Some(busy), _) if now.saturating_duration_since(busy) < GAP.max(2 * pause) => Next::Wait,
            (Some(_), _) => Next::Go("it has stopped"),
            (None, None) => Next::Go("no other importer is at work"),
            (None, Some(importer)) if waited < importer.begins_within() => Next::Wait,
            (None, Some(_)) => Next::Go("it does not come"),
        }
    }
}

/// An image whose record existed already, without all of its blobs.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Repaired {
    pub(crate) image: String,
    pub(crate) blobs: usize,
    pub(crate) bytes: u64,
}

/// Returns the images that an import completed although another program had recorded them before
/// they were whole.
pub(crate) fn repaired(plan: &Plan, report: &BundleResult) -> Vec<Repaired> {
    let in_place = report.images.iter().filter(|image| image.outcome.is_in_place());
    let in_place: HashSet<&str> = in_place.map(|image| image.name.as_str()).collect();
    let mut found = Vec::new();
    for image in &plan.images {
        let missing: Vec<u64> = missing(image).map(|step| step.size).collect();
        let was_there =
            |action: &RecordAction| matches!(action, RecordAction::Relabel(_) | RecordAction::Unchanged);
        let records = image.records.iter().filter(|step| was_there(&step.action));
        found.extend(
            records
                .filter(|step| !missing.is_empty() && in_place.contains(step.name.as_str()))
                .map(|step| Repaired {
                    image: step.name.clone(),
                    blobs: missing.len(),
                    bytes: missing.iter().sum(),
                }),
        );
    }
    found
}

fn missing(image: &ImagePlan) -> impl Iterator<Item = &BlobStep> {
    image.blobs.iter().filter(|step| step.action == BlobAction::Send)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use import::plan::RecordStep;
    use import::result::{BlobCounts, ImageOutcome, ImageResult};
    use oci_spec::image::{Descriptor, Digest, MediaType};

    use super::*;

    const MTIME: i64 = 1_700_000_000_123_456_789;

    fn record(key: &str, value: &str) -> ImageRecord {
        let digest: Digest = format!("sha256:{}", "a".repeat(64)).parse().unwrap();
        ImageRecord {
            name: "r.test/a:1".into(),
            target: Descriptor::new(MediaType::ImageManifest, 7, digest),
            labels: BTreeMap::from([(key.to_owned(), value.to_owned())]),
            created_at: None,
        }
    }

    fn ingest(reference: &str, offset: u64) -> Ingest {
        Ingest {
            reference: reference.to_owned(),
            offset,
            total: 0,
            started_at: None,
            updated_at: None,
        }
    }

    fn sight(records: &[ImageRecord], ingests: &[Ingest]) -> Sight {
        Sight::of(records, ingests, Timestamp::UNIX_EPOCH)
    }

    fn labelled(path: &str) -> Sight {
        // As Go writes it, in the node's time zone.
        let text = format!(r#"{{"{path}":"2023-11-15T01:13:20.123456789+03:00"}}"#);
        sight(&[record(K0S_SOURCES, &text)], &[])
    }

    #[test]
    fn the_importer_is_followed_that_the_evidence_names() {
        use Coexistence::{Auto, Exclusive, Follow};
        let none = Evidence::default();
        let k0s = Evidence {
            home: Some(Distribution::K0s),
            ..none
        };
        let rke2 = Evidence {
            home: Some(Distribution::Rke2),
            ..none
        };
        let label = Evidence {
            k0s_label: true,
            ..none
        };
        let k3s_label = Evidence {
            k3s_label: true,
            ..none
        };
        let ingests = Evidence {
            ingests: true,
            ..none
        };
        let table = [
            (Auto, none, None),
            (Auto, k0s, Some(Importer::K0s)),
            (Auto, rke2, Some(Importer::K3s)),
            (Auto, label, Some(Importer::K0s)),
            (Auto, k3s_label, Some(Importer::K3s)),
            (Auto, ingests, Some(Importer::Unknown)),
            (Follow, none, Some(Importer::K0s)),
            (Follow, k3s_label, Some(Importer::K3s)),
            (Exclusive, k0s, None),
            (Exclusive, label, None),
        ];
        for (setting, evidence, wanted) in table {
            let found = judge(setting, &evidence).map(|(importer, _)| importer);
            assert_eq!(found, wanted, "{setting:?} {evidence:?}");
        }
    }

    #[test]
    fn labels_and_ingests_tell_of_others_and_ours_do_not() {
        let folder = Path::new("/var/lib/k0s/images");
        let evidence = |sight: &Sight| {
            let found = sight.evidence(folder, None);
            (found.k0s_label, found.k3s_label, found.ingests)
        };
        let ours = ingest("airgapd-sha256:aa", 1);
        assert_eq!(
            evidence(&labelled("/var/lib/k0s/images/a.tar")),
            (true, false, false)
        );
        assert_eq!(evidence(&labelled("/srv/images/a.tar")), (false, false, false));
        assert_eq!(
            evidence(&sight(&[record(K0S_SOURCES, "no JSON")], &[])),
            (false, false, false)
        );
        assert_eq!(evidence(&sight(&[], &[ours])), (false, false, false));
        let theirs = ingest("tar-blobs/sha256/aa", 1);
        assert_eq!(
            evidence(&sight(&[], std::slice::from_ref(&theirs))),
            (false, false, true)
        );
        let dead = Ingest {
            updated_at: Some(Timestamp::UNIX_EPOCH - jiff::SignedDuration::from_secs(60)),
            ..theirs
        };
        assert_eq!(evidence(&sight(&[], &[dead])), (false, false, false));
        let k3s = sight(&[record(K3S_PINNED, "pinned")], &[]);
        assert_eq!(evidence(&k3s), (false, false, false));
        assert!(k3s.evidence(Path::new("/x/agent/images"), None).k3s_label);
    }

    #[test]
    fn an_import_under_way_has_died_when_it_did_not_get_on_for_longer_than_a_standstill() {
        let now = Timestamp::UNIX_EPOCH;
        let second = jiff::SignedDuration::from_secs;
        let nanosecond = jiff::SignedDuration::from_nanos(1);
        let standstill = jiff::SignedDuration::try_from(STANDSTILL).unwrap();
        let table = [
            (None, false),
            (Some(now), false),
            (Some(now - standstill), false),
            (Some(now - standstill - nanosecond), true),
            // The clock was set back.
            (Some(now + second(3600)), false),
        ];
        for (updated_at, is_dead) in table {
            let ingest = Ingest {
                updated_at,
                ..ingest("tar-blobs/sha256/aa", 1)
            };
            assert_eq!(is_stale(&ingest, now), is_dead, "{updated_at:?}");
        }
    }

    #[test]
    fn an_image_was_repaired_whose_record_was_there_and_of_which_blobs_were_sent() {
        let digest = |number: u64| -> Digest { format!("sha256:{number:064x}").parse().unwrap() };
        let blob = |number, size, action| BlobStep {
            digest: digest(number),
            size,
            action,
            lacking: 0,
            sources: Arc::default(),
            children: Vec::new(),
        };
        let sent = |number| blob(number, 10 * number, BlobAction::Send);
        let held = |number| blob(number, 1000, BlobAction::Hold);
        let unchanged = || RecordAction::Unchanged;
        let relabel = || RecordAction::Relabel(BTreeMap::new());
        let create = || RecordAction::Create(BTreeMap::new());
        let table = [
            (
                "unchanged",
                unchanged(),
                vec![sent(1), held(2), sent(3)],
                ImageOutcome::Unchanged,
            ),
            ("labelled", relabel(), vec![sent(4)], ImageOutcome::Relabelled),
            ("new", create(), vec![sent(5)], ImageOutcome::Created),
            ("whole", unchanged(), vec![held(6)], ImageOutcome::Unchanged),
            ("failed", unchanged(), vec![sent(7)], ImageOutcome::Failed),
        ];
        let target = Arc::new(Descriptor::new(MediaType::ImageManifest, 7, digest(0)));
        let (mut plan, mut images) = (Plan::default(), Vec::new());
        for (index, (name, action, blobs, outcome)) in table.into_iter().enumerate() {
            let name = name.to_owned();
            images.push(ImageResult {
                image: 0,
                name: name.clone(),
                target: digest(0),
                media_type: MediaType::ImageManifest,
                platforms: Vec::new(),
                outcome,
                reason: None,
                previous: None,
            });
            let target = Arc::clone(&target);
            plan.images.push(ImagePlan {
                index,
                blobs,
                records: vec![RecordStep { name, target, action }],
                platforms: Vec::new(),
                unpack: false,
            });
        }
        let result = BundleResult {
            path: "/i/a.tar".into(),
            format: None,
            compression: None,
            outcome: import::Outcome::Partial,
            error: None,
            images,
            blobs: BlobCounts::default(),
            unpacked: None,
            space: None,
            duration_ms: 0,
            warnings: Vec::new(),
            cause: None,
            retry: false,
        };
        let found = repaired(&plan, &result);
        let found: Vec<_> = found
            .iter()
            .map(|of| (of.image.as_str(), of.blobs, of.bytes))
            .collect();
        assert_eq!(found, [("unchanged", 2, 40), ("labelled", 1, 40)]);
    }

    /// Looks once a second. Returns the number of seconds until it is airgapd's turn, and the
    /// reason.
    fn waited(importer: impl Into<Option<Importer>>, sight_at: impl Fn(u64) -> Sight) -> (u64, &'static str) {
        let importer = importer.into();
        let start = Instant::now();
        let mut pass = Pass::begin("/i/a.tar".into(), MTIME, start);
        let looked = (0..).map(|second| {
            let now = start + Duration::from_secs(second);
            (second, pass.look(importer, &sight_at(second), now, PAUSE))
        });
        for (second, next) in looked {
            if let Next::Go(why) = next {
                return (second, why);
            }
        }
        unreachable!("no wait lasts for ever")
    }

    #[test]
    fn an_importer_is_waited_for_until_it_is_done_or_does_not_come_or_stops() {
        use Importer::{K0s, K3s, Unknown};
        let nothing = Sight::default();
        let busy = |offset| sight(&[], &[ingest("tar-blobs/sha256/aa", offset)]);
        assert_eq!(waited(K0s, |_| nothing.clone()), (15, "it does not come"));
        assert_eq!(waited(K3s, |_| nothing.clone()), (5, "it does not come"));
        assert_eq!(waited(Unknown, |_| nothing.clone()), (0, "it does not come"));
        assert_eq!(
            waited(K0s, |_| labelled("/i/a.tar")),
            (0, "it has imported the bundle")
        );
        let works = |second| match second {
            0..10 => nothing.clone(),
            10..60 => busy(second),
            _ => labelled("/i/a.tar"),
        };
        assert_eq!(waited(K0s, works), (60, "it has imported the bundle"));
        let fails = |second| {
            if second < 20 {
                busy(second)
            } else {
                labelled("/i/other.tar")
            }
        };
        assert_eq!(waited(Unknown, fails), (22, "it has stopped"));
        let between_blobs = |second| match second {
            0..20 if second % 3 == 0 => busy(second),
            _ => nothing.clone(),
        };
        assert_eq!(waited(None, between_blobs), (21, "it has stopped"));
        assert_eq!(
            waited(None, |_| nothing.clone()),
            (0, "no other importer is at work")
        );
        assert_eq!(waited(K0s, |_| busy(7)), (12, "it has stopped"), "it died");
        assert_eq!(waited(K0s, busy), (1800, "it takes too long"));
    }

    #[test]
    fn where_looks_are_far_apart_one_between_two_blobs_does_not_say_that_it_has_stopped() {
        let start = Instant::now();
        let pause = GAP + Duration::from_secs(1);
        let mut pass = Pass::begin("/i/a.tar".into(), MTIME, start);
        let busy = |offset| sight(&[], &[ingest("tar-blobs/sha256/aa", offset)]);
        let looks = [
            (busy(1), Next::Wait),
            (Sight::default(), Next::Wait),
            (busy(2), Next::Wait),
            (Sight::default(), Next::Wait),
            (Sight::default(), Next::Go("it has stopped")),
        ];
        for (at, (sight, wanted)) in (0..).zip(looks) {
            assert_eq!(pass.look(None, &sight, start + pause * at, pause), wanted, "{at}");
        }
    }

    #[test]
    fn an_import_of_the_file_as_it_was_before_is_none() {
        let mut pass = Pass::begin("/i/a.tar".into(), MTIME + 1, Instant::now());
        let next = pass.look(Some(Importer::K0s), &labelled("/i/a.tar"), Instant::now(), PAUSE);
        assert_eq!(next, Next::Wait);
    }
}
