//! The plan: every step of an import, decided before the first one is taken.
//!
//! Pure: what is selected and what is there go in, a printable value comes out, and whoever carries it out has nothing
//! left to decide. The same function serves the daemon, `import`, `import --dry-run`, and the comparison of an
//! unchanged bundle with containerd at a restart.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use containerd::{BlobInfo, ImageRecord};
use oci_spec::image::{Descriptor, Digest};

use crate::labels::{self, CRI_MANAGED, LabelChanges, Labels, Source};
use crate::names::Reference;
use crate::pace::Pace;
use crate::pattern::Pattern;
use crate::select::{Child, ChildKind, Member, NamedTarget, Taken};
use crate::space::Space;
use crate::survey::Survey;
use crate::unpack::Unpacker;

/// What to do about a record that has our name and another target, and is not ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnConflict {
    /// The record moves to our target.
    #[default]
    Replace,
    /// The record stays as it is, and that is said.
    Keep,
    /// The record stays as it is, and the image counts as failed.
    Refuse,
}

/// Under whose name and by which rules images are recorded.
#[derive(Clone, Debug)]
pub struct Intent {
    /// Who vouches for the images.
    pub source: Source,
    /// What to do about names that are taken.
    pub on_conflict: OnConflict,
    /// Names that are left as they are whatever the bundle says, each with the reason.
    pub leave: BTreeMap<String, String>,
    /// Where the blobs go, and what stays free there.
    pub space: Space,
    /// Which images come first, by their names: those of the first pattern, then those of the second, then the others.
    pub priority: Vec<Pattern>,
    /// How fast blobs are sent.
    pub pace: Arc<Pace>,
    /// What the images are unpacked with, if they are, and when.
    pub unpack: Option<(Unpacker, UnpackWhen)>,
    /// How many records the namespace may have, those of others counted, once a bundle has added its own. Default
    /// [`MOST_RECORDS`].
    pub most_records: usize,
}

/// A record with a short name and few labels takes some 300 bytes in containerd's answer to a list, and this is about as
/// many as there is room for in one message of 16 MiB.
pub const MOST_RECORDS: usize = 50_000;

/// When an import unpacks images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnpackWhen {
    /// Each image before its records: one that cannot be unpacked gets none.
    BeforeRecord,
    /// After all records. What cannot be unpacked is told and keeps its records.
    AfterRecords,
}

impl Intent {
    /// To record every image of a source, and to move names of others by a rule.
    #[must_use]
    pub fn new(source: Source, on_conflict: OnConflict) -> Intent {
        Intent {
            source,
            on_conflict,
            leave: BTreeMap::new(),
            space: Space::default(),
            priority: Vec::new(),
            pace: Arc::default(),
            unpack: None,
            most_records: MOST_RECORDS,
        }
    }
}

/// Every step of an import, in order.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The images: those that come first, and among equals those with the fewest bytes to send.
    pub images: Vec<ImagePlan>,
}

/// The steps for one image.
#[derive(Clone, Debug)]
pub struct ImagePlan {
    /// Where the image stands in the list that was planned.
    pub index: usize,
    /// Its blobs, children before parents; none when all its names stay with others.
    pub blobs: Vec<BlobStep>,
    /// Its records, after all blobs.
    pub records: Vec<RecordStep>,
    /// Its platforms, best first.
    pub platforms: Vec<String>,
    /// Whether it is to be unpacked: that is wanted and has not been done.
    pub unpack: bool,
}

/// What happens to one blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobStep {
    /// The blob.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Whether it is sent.
    pub action: BlobAction,
    /// How many labels it lacks, for the gc and for `sources`; given with the commit when it is sent. Which they are is
    /// asked when they are written: names and layers of an image are a product that nothing bounds.
    pub lacking: usize,
    /// The labels that say where it is from, by the names of all images that have it; shared by blobs that have the same.
    pub sources: Arc<Labels>,
    /// What it refers to.
    pub children: Vec<Child>,
}

/// Whether and how a blob is touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlobAction {
    /// It is missing: its bytes are sent.
    Send,
    /// It is there, but its image is not complete yet: the lease keeps it.
    Hold,
    /// It is there and safe.
    Leave,
}

/// What happens to one image record.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordStep {
    /// Its name.
    pub name: String,
    /// What it points at afterwards.
    pub target: Arc<Descriptor>,
    /// What is done.
    pub action: RecordAction,
}

/// What is done to a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordAction {
    /// It does not exist: it is created with target, pin and source.
    Create(Labels),
    /// It points elsewhere: it is moved, with its labels, in one call.
    Retarget {
        /// What it points at now.
        from: Digest,
        /// The labels that change with it.
        labels: LabelChanges,
    },
    /// Only its labels lack something.
    Relabel(LabelChanges),
    /// Nothing.
    Unchanged,
    /// The name is taken by something else, and stays.
    Conflict {
        /// What it points at.
        with: Digest,
        /// Whether that makes the image a failed one.
        refuse: bool,
    },
    /// The name is not this bundle's to decide about; why.
    Leave(String),
}

impl RecordAction {
    /// Whether the record is written.
    #[must_use]
    pub fn writes(&self) -> bool {
        matches!(
            self,
            RecordAction::Create(_) | RecordAction::Retarget { .. } | RecordAction::Relabel(_)
        )
    }
}

impl Plan {
    /// Whether everything is in place: nothing is leased and nothing is written.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.images.iter().all(ImagePlan::is_done)
    }

    /// How many records are made that are not there.
    #[must_use]
    pub fn new_records(&self) -> usize {
        let steps = self.images.iter().flat_map(|image| &image.records);
        let new = steps.filter(|step| matches!(step.action, RecordAction::Create(_)));
        new.map(|step| &step.name).collect::<HashSet<_>>().len()
    }

    /// How many bytes have to be sent, each blob counted once.
    #[must_use]
    pub fn bytes_to_send(&self) -> u64 {
        self.blobs_to_send().iter().map(|(_, size)| size).sum()
    }

    /// The blobs that have to be sent, each once, with their sizes in bytes.
    pub(crate) fn blobs_to_send(&self) -> Vec<(&Digest, u64)> {
        let mut seen = HashSet::new();
        let steps = self.images.iter().flat_map(|image| &image.blobs);
        steps
            .filter(|step| step.action == BlobAction::Send && seen.insert(&step.digest))
            .map(|step| (&step.digest, step.size))
            .collect()
    }
}

impl ImagePlan {
    /// Whether its blobs, their labels and its records are all as they should be.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.blobs.iter().all(BlobStep::is_done) && !self.records.iter().any(|record| record.action.writes())
    }

    /// Whether all its names belong to others and stay with them: blobs that no record of ours keeps are not sent.
    fn is_unwanted(&self) -> bool {
        self.records.iter().all(|record| {
            matches!(
                record.action,
                RecordAction::Conflict { .. } | RecordAction::Leave(_)
            )
        })
    }

    /// The first pattern that one of its names matches, by position.
    fn rank(&self, priority: &[Pattern]) -> usize {
        let is_match = |pattern: &Pattern| self.records.iter().any(|record| pattern.matches(&record.name));
        priority.iter().position(is_match).unwrap_or(priority.len())
    }

    fn bytes_to_send(&self) -> u64 {
        self.blobs
            .iter()
            .filter(|step| step.action == BlobAction::Send)
            .map(|step| step.size)
            .sum()
    }
}

impl BlobStep {
    fn is_done(&self) -> bool {
        self.action != BlobAction::Send && self.lacking == 0
    }
}

/// Decides every step for `images`, given what is there.
#[must_use]
pub fn plan(images: &[&Taken], survey: &Survey, intent: &Intent) -> Plan {
    let sources = Sources::of(images);
    let mut images: Vec<_> = images
        .iter()
        .enumerate()
        .map(|(at, image)| plan_image(at, image, &sources, survey, intent))
        .collect();
    images.sort_by_cached_key(|image| (image.rank(&intent.priority), image.bytes_to_send()));
    Plan { images }
}

/// Where blobs are from, as labels. Made once for all blobs that are in the same images: an image may have thousands of
/// layers and hundreds of names, and a layer may be in thousands of images.
struct Sources<'a>(HashMap<&'a Digest, Arc<Labels>>);

/// Repositories that a blob's labels name at most. containerd writes each label of each blob to its disk.
const MOST_SOURCES: usize = 16;

impl<'a> Sources<'a> {
    fn of(images: &[&'a Taken]) -> Self {
        let mut holders: HashMap<&Digest, Vec<usize>> = HashMap::new();
        for (at, image) in images.iter().enumerate() {
            for blob in &image.closure.blobs {
                let holders = holders.entry(&blob.digest).or_default();
                if holders.len() < MOST_SOURCES {
                    holders.push(at);
                }
            }
        }
        let repositories: Vec<Vec<String>> = images.iter().map(|image| repositories(image)).collect();
        let mut made: HashMap<Vec<usize>, Arc<Labels>> = HashMap::new();
        let labels = |holders: &Vec<usize>| {
            let names = holders.iter().flat_map(|at| &repositories[*at]);
            let names: BTreeSet<&str> = names.map(String::as_str).collect();
            Arc::new(labels::distribution_sources(names.into_iter().take(MOST_SOURCES)))
        };
        let of_blob = |(digest, holders): (&'a Digest, Vec<usize>)| {
            if let Some(labels) = made.get(&holders) {
                return (digest, Arc::clone(labels));
            }
            let labels = labels(&holders);
            made.insert(holders, Arc::clone(&labels));
            (digest, labels)
        };
        Sources(holders.into_iter().map(of_blob).collect())
    }

    fn labels(&self, digest: &Digest) -> Arc<Labels> {
        self.0.get(digest).cloned().unwrap_or_default()
    }
}

/// The first few repositories that an image is named by, in order.
fn repositories(image: &Taken) -> Vec<String> {
    let references = image
        .records
        .iter()
        .map(|record| record.name.parse::<Reference>());
    let repositories = references
        .flatten()
        .map(|reference| reference.repository().to_owned());
    let repositories: BTreeSet<String> = repositories.collect();
    repositories.into_iter().take(MOST_SOURCES).collect()
}

fn plan_image(
    index: usize,
    image: &Taken,
    sources: &Sources<'_>,
    survey: &Survey,
    intent: &Intent,
) -> ImagePlan {
    let mut plan = ImagePlan {
        index,
        blobs: plan_blobs(image, sources, survey),
        records: plan_records(image, survey, intent),
        platforms: image.closure.platforms.clone(),
        unpack: is_to_be_unpacked(image, survey, intent),
    };
    if plan.is_unwanted() {
        plan.blobs.clear();
        plan.unpack = false;
    } else if plan.is_done() {
        // The record and the labels keep the blobs: there is nothing to protect them from.
        for step in &mut plan.blobs {
            step.action = BlobAction::Leave;
        }
    }
    plan
}

fn is_to_be_unpacked(image: &Taken, survey: &Survey, intent: &Intent) -> bool {
    let there = image
        .closure
        .blobs
        .iter()
        .filter_map(|member| survey.blobs.get(&member.digest));
    let unpacker = intent.unpack.as_ref().map(|(unpacker, _)| unpacker);
    unpacker.is_some_and(|unpacker| !unpacker.is_unpacked(there, &survey.snapshots))
}

fn plan_records(image: &Taken, survey: &Survey, intent: &Intent) -> Vec<RecordStep> {
    let plan = |wanted: &NamedTarget| plan_record(wanted, survey.records.get(&wanted.name), intent);
    image.records.iter().map(plan).collect()
}

fn plan_blobs(image: &Taken, sources: &Sources<'_>, survey: &Survey) -> Vec<BlobStep> {
    let plan = |member: &Member| {
        let sources = sources.labels(&member.digest);
        plan_blob(member, sources, survey.blobs.get(&member.digest))
    };
    image.closure.blobs.iter().map(plan).collect()
}

fn plan_blob(member: &Member, sources: Arc<Labels>, there: Option<&BlobInfo>) -> BlobStep {
    let none = Labels::new();
    let there_labels = there.map_or(&none, |blob| &blob.labels);
    // A blob of another size under this digest is not the blob: sending it makes containerd say so.
    let action = if there.is_some() {
        BlobAction::Hold
    } else {
        BlobAction::Send
    };
    BlobStep {
        digest: member.digest.clone(),
        size: member.size,
        action,
        lacking: missing_labels(&member.children, &sources, there_labels).len(),
        sources,
        children: member.children.clone(),
    }
}

/// The labels that a blob with the labels `there` lacks: of its children, for the gc, and of where it is from, for mirrors.
pub(crate) fn missing_labels(children: &[Child], sources: &Labels, there: &Labels) -> Labels {
    let mut missing = missing_gc_labels(children, there);
    missing.extend(labels::missing_sources(sources, there));
    missing
}

const GC_REF: &str = "containerd.io/gc.ref.content";

/// The labels that tell containerd's garbage collector of `children`, as far as `there` does not say it yet.
///
/// Keys are numbered per kind as containerd numbers them. A key that is taken for another blob is left alone and the
/// next free number is used: somebody else may rely on it, for another platform of the same index.
#[must_use]
pub fn missing_gc_labels(children: &[Child], there: &Labels) -> Labels {
    let mut missing = Labels::new();
    let mut next: HashMap<ChildKind, usize> = HashMap::new();
    let mut referred_to: HashSet<&str> = referred_to(there).collect();
    for child in children {
        let number = next.entry(child.kind).or_default();
        if !referred_to.insert(child.digest.as_ref()) {
            *number += 1;
            continue;
        }
        let key = loop {
            let key = gc_key(child.kind, *number);
            *number += 1;
            if !there.contains_key(&key) {
                break key;
            }
        };
        missing.insert(key, child.digest.to_string());
    }
    missing
}

/// What labels keep alive.
fn referred_to(labels: &Labels) -> impl Iterator<Item = &str> {
    let keeps = |(key, _): &(&String, &String)| key.strip_prefix(GC_REF).is_some_and(is_gc_suffix);
    labels.iter().filter(keeps).map(|(_, value)| value.as_str())
}

fn is_gc_suffix(suffix: &str) -> bool {
    suffix.is_empty() || suffix.starts_with(['.', '/'])
}

fn gc_key(kind: ChildKind, number: usize) -> String {
    match kind {
        ChildKind::Manifest => format!("{GC_REF}.m.{number}"),
        ChildKind::Layer => format!("{GC_REF}.l.{number}"),
        ChildKind::Config if number == 0 => format!("{GC_REF}.config"),
        ChildKind::Config => format!("{GC_REF}.config{number}"),
        ChildKind::Other => format!("{GC_REF}.{number}"),
    }
}

/// Decides what happens to one record, given the record of that name.
#[must_use]
pub fn plan_record(wanted: &NamedTarget, there: Option<&ImageRecord>, intent: &Intent) -> RecordStep {
    let left = intent.leave.get(&wanted.name);
    let action = match (left, there) {
        (Some(why), _) => RecordAction::Leave(why.clone()),
        (None, None) => RecordAction::Create(created_labels(&intent.source)),
        (None, Some(record)) if is_same_target(&record.target, &wanted.target) => {
            relabel(record, &intent.source)
        }
        (None, Some(record)) => move_or_leave(record, intent),
    };
    RecordStep {
        name: wanted.name.clone(),
        target: Arc::clone(&wanted.target),
        action,
    }
}

fn created_labels(source: &Source) -> Labels {
    labels::vouch(&Labels::new(), source)
        .into_iter()
        .filter_map(|(key, value)| Some((key, value?)))
        .collect()
}

fn is_same_target(there: &Descriptor, wanted: &Descriptor) -> bool {
    there.digest() == wanted.digest()
        && there.media_type() == wanted.media_type()
        && there.size() == wanted.size()
}

fn relabel(record: &ImageRecord, source: &Source) -> RecordAction {
    let changes = labels::vouch(&record.labels, source);
    if changes.is_empty() {
        RecordAction::Unchanged
    } else {
        RecordAction::Relabel(changes)
    }
}

fn move_or_leave(record: &ImageRecord, intent: &Intent) -> RecordAction {
    let ours = labels::is_vouched_for(&record.labels);
    if !ours && intent.on_conflict != OnConflict::Replace {
        let refuse = intent.on_conflict == OnConflict::Refuse;
        return RecordAction::Conflict {
            with: record.target.digest().clone(),
            refuse,
        };
    }
    let mut labels = labels::vouch(&record.labels, &intent.source);
    // With its mark on it CRI takes the record for known and never learns of the new image's ID. CRI may be setting
    // the mark at this moment, so it is taken away whether we saw it or not.
    labels.insert(CRI_MANAGED.to_owned(), None);
    RecordAction::Retarget {
        from: record.target.digest().clone(),
        labels,
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut seen = HashSet::new();
        for image in &self.images {
            write!(f, "{image}")?;
            for step in &image.blobs {
                let again = !seen.insert(&step.digest);
                writeln!(f, "  {}", BlobLine { step, again })?;
            }
            if image.unpack {
                writeln!(f, "  unpack  its layers")?;
            }
            for record in &image.records {
                writeln!(f, "  {record}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for ImagePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self
            .records
            .first()
            .map_or("(no record)", |record| record.name.as_str());
        writeln!(f, "{name} ({})", self.platforms.join(", "))
    }
}

struct BlobLine<'a> {
    step: &'a BlobStep,
    again: bool,
}

impl fmt::Display for BlobLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = match self.step.action {
            BlobAction::Send if self.again => "shared ",
            BlobAction::Send => "send   ",
            BlobAction::Hold | BlobAction::Leave => "present",
        };
        write!(f, "{verb} {} {} bytes", self.step.digest, self.step.size)?;
        match self.step.lacking {
            0 => Ok(()),
            labels => write!(f, ", {labels} labels"),
        }
    }
}

impl fmt::Display for RecordStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, target, action } = self;
        let digest = target.digest();
        match action {
            RecordAction::Create(_) => write!(f, "create  {name} -> {digest}"),
            RecordAction::Retarget { from, .. } => write!(f, "move    {name} from {from} -> {digest}"),
            RecordAction::Relabel(changes) => write!(f, "label   {name}: {}", changed_keys(changes)),
            RecordAction::Unchanged => write!(f, "keep    {name} -> {digest}"),
            RecordAction::Conflict { with, .. } => {
                write!(f, "leave   {name}: it belongs to somebody else, {with}")
            }
            RecordAction::Leave(why) => write!(f, "leave   {name}: {why}"),
        }
    }
}

fn changed_keys(changes: &LabelChanges) -> String {
    let sign = |(key, value): (&String, &Option<String>)| {
        format!("{}{key}", if value.is_some() { '+' } else { '-' })
    };
    changes.iter().map(sign).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::select::Closure;
    use oci_spec::image::MediaType;

    fn digest(fill: char) -> Digest {
        format!("sha256:{}", fill.to_string().repeat(64)).parse().unwrap()
    }

    fn descriptor(fill: char) -> Descriptor {
        Descriptor::new(MediaType::ImageManifest, 7, digest(fill))
    }

    fn leaf(fill: char, size: u64) -> Member {
        Member {
            digest: digest(fill),
            size,
            children: Vec::new(),
        }
    }

    fn child(kind: ChildKind, fill: char) -> Child {
        Child {
            kind,
            digest: digest(fill),
        }
    }

    /// A manifest `m` over config `c` and layer `1`.
    fn image(name: &str) -> Taken {
        let children = vec![child(ChildKind::Layer, '1'), child(ChildKind::Config, 'c')];
        let manifest = Member {
            digest: digest('a'),
            size: 7,
            children,
        };
        let closure = Closure {
            blobs: vec![leaf('1', 100), leaf('c', 10), manifest],
            platforms: vec!["linux/amd64".into()],
        };
        Taken {
            records: vec![NamedTarget {
                name: name.into(),
                target: descriptor('a').into(),
            }],
            closure,
        }
    }

    fn intent() -> Intent {
        Intent::new(Source::Bundle("b.tar".into()), OnConflict::Replace)
    }

    /// A blob that says that it is from the repository `r.test/a`.
    fn blob(fill: char, labels: &[(&str, char)]) -> BlobInfo {
        let source = (SOURCE.to_owned(), "a".to_owned());
        let labels = labels
            .iter()
            .map(|(key, value)| ((*key).to_owned(), digest(*value).to_string()))
            .chain([source])
            .collect();
        BlobInfo {
            digest: digest(fill),
            size: 1,
            labels,
        }
    }

    fn survey(records: Vec<ImageRecord>, blobs: Vec<BlobInfo>) -> Survey {
        let blobs = blobs
            .into_iter()
            .map(|blob| (blob.digest.clone(), blob))
            .collect();
        Survey {
            records: records
                .into_iter()
                .map(|record| (record.name.clone(), record))
                .collect(),
            blobs,
            ..Survey::default()
        }
    }

    fn record(name: &str, target: char, labels: Labels) -> ImageRecord {
        ImageRecord {
            name: name.into(),
            target: descriptor(target),
            labels,
        }
    }

    fn ours() -> Labels {
        created_labels(&intent().source)
    }

    const SOURCE: &str = "containerd.io/distribution.source.r.test";
    const L0: &str = "containerd.io/gc.ref.content.l.0";
    const CONFIG: &str = "containerd.io/gc.ref.content.config";

    /// The keys of the labels that a blob lacks.
    fn lacking(step: &BlobStep, there: Option<&BlobInfo>) -> Vec<String> {
        let there = there.map(|blob| blob.labels.clone()).unwrap_or_default();
        let missing = missing_labels(&step.children, &step.sources, &there);
        missing.into_keys().collect()
    }

    fn whole() -> Vec<BlobInfo> {
        vec![
            blob('1', &[]),
            blob('c', &[]),
            blob('a', &[(L0, '1'), (CONFIG, 'c')]),
        ]
    }

    #[test]
    fn an_empty_containerd_gets_every_blob_and_the_record() {
        let image = image("r.test/a:1");
        let plan = plan(&[&image], &Survey::default(), &intent());
        let steps = &plan.images[0];
        assert!(steps.blobs.iter().all(|step| step.action == BlobAction::Send));
        assert_eq!(lacking(&steps.blobs[2], None), [SOURCE, CONFIG, L0]);
        assert_eq!(steps.blobs[2].lacking, 3);
        assert!(matches!(&steps.records[0].action, RecordAction::Create(labels) if *labels == ours()));
        assert_eq!(plan.bytes_to_send(), 117);
        assert!(!plan.is_done());
    }

    #[test]
    fn an_image_in_place_needs_nothing() {
        let image = image("r.test/a:1");
        let plan = plan(
            &[&image],
            &survey(vec![record("r.test/a:1", 'a', ours())], whole()),
            &intent(),
        );
        assert!(plan.is_done());
        assert!(
            plan.images[0]
                .blobs
                .iter()
                .all(|step| step.action == BlobAction::Leave)
        );
        assert_eq!(plan.images[0].records[0].action, RecordAction::Unchanged);
    }

    #[test]
    fn blobs_that_are_there_are_held_while_the_rest_comes() {
        let image = image("r.test/a:1");
        let plan = plan(&[&image], &survey(Vec::new(), vec![blob('1', &[])]), &intent());
        let actions: Vec<_> = plan.images[0].blobs.iter().map(|step| step.action).collect();
        assert_eq!(actions, [BlobAction::Hold, BlobAction::Send, BlobAction::Send]);
        assert_eq!(plan.bytes_to_send(), 17);
    }

    #[test]
    fn a_parent_that_is_there_without_labels_gets_them() {
        let image = image("r.test/a:1");
        let bare = vec![blob('1', &[]), blob('c', &[]), blob('a', &[(L0, '1')])];
        let there = survey(vec![record("r.test/a:1", 'a', ours())], bare);
        let plan = plan(&[&image], &there, &intent());
        let step = &plan.images[0].blobs[2];
        assert_eq!(lacking(step, there.blobs.get(&step.digest)), [CONFIG]);
        assert_eq!(step.lacking, 1);
        assert_eq!(plan.images[0].records[0].action, RecordAction::Unchanged);
        assert!(!plan.is_done());
    }

    #[test]
    fn a_blob_that_does_not_say_where_it_is_from_gets_that_label() {
        let image = image("r.test/a:1");
        let mut blobs = whole();
        blobs[0].labels.clear();
        let there = survey(vec![record("r.test/a:1", 'a', ours())], blobs);
        let plan = plan(&[&image], &there, &intent());
        let steps = &plan.images[0].blobs;
        let lacks: Vec<_> = steps.iter().map(|step| step.lacking).collect();
        assert_eq!(lacks, [1, 0, 0]);
        assert_eq!(lacking(&steps[0], there.blobs.get(&steps[0].digest)), [SOURCE]);
        assert!(!plan.is_done());
    }

    #[test]
    fn a_label_key_that_keeps_another_blob_alive_is_left_alone() {
        let there = Labels::from([(
            "containerd.io/gc.ref.content.m.0".to_owned(),
            digest('f').to_string(),
        )]);
        let missing = missing_gc_labels(&[child(ChildKind::Manifest, 'a')], &there);
        assert_eq!(
            missing.keys().collect::<Vec<_>>(),
            ["containerd.io/gc.ref.content.m.1"]
        );
    }

    #[test]
    fn any_gc_label_that_refers_to_the_child_is_enough() {
        let there = Labels::from([(
            "containerd.io/gc.ref.content.7".to_owned(),
            digest('a').to_string(),
        )]);
        assert!(missing_gc_labels(&[child(ChildKind::Manifest, 'a')], &there).is_empty());
        // Words that only begin so, and what containerd 2.2 and 2.3 added: none of these keeps the child.
        for key in [
            "containerd.io/gc.ref.contents",
            "containerd.io/gc.ref.image.0",
            "containerd.io/gc.ref.snapshot.overlayfs",
            "containerd.io/gc.bref.content.m.0",
            "containerd.io/gc.bref.image",
            "containerd.io/gc.cond.snapshot.overlayfs",
            "containerd.io/gc.cond.value-usedat",
        ] {
            let other = Labels::from([(key.to_owned(), digest('a').to_string())]);
            let missing = missing_gc_labels(&[child(ChildKind::Manifest, 'a')], &other);
            assert_eq!(missing.len(), 1, "{key}");
        }
    }

    #[test]
    fn blobs_of_an_image_share_the_labels_that_say_where_they_are_from() {
        let mut image = image("r.test/a:1");
        let record = image.records[0].clone();
        let named = |n: usize| NamedTarget {
            name: format!("host{n:03}.test/a:1"),
            target: Arc::clone(&record.target),
        };
        image.records = (0..256).map(named).collect();
        let plan = plan(&[&image], &Survey::default(), &intent());
        let steps = &plan.images[0].blobs;
        assert_eq!(steps[0].sources.len(), MOST_SOURCES);
        let is_shared = |step: &BlobStep| Arc::ptr_eq(&step.sources, &steps[0].sources);
        assert!(steps.iter().all(is_shared));
    }

    /// Held against each other one by one, they take a minute.
    #[test]
    fn the_labels_of_many_children_are_found_in_time_that_grows_with_their_number_only() {
        let children: Vec<Child> = (0..50_000)
            .map(|n| Child {
                kind: ChildKind::Layer,
                digest: format!("sha256:{n:064x}").parse().unwrap(),
            })
            .collect();
        let started = std::time::Instant::now();
        let missing = missing_gc_labels(&children, &Labels::new());
        assert_eq!(missing.len(), 50_000);
        assert!(missing_gc_labels(&children, &missing).is_empty());
        assert!(started.elapsed() < std::time::Duration::from_secs(10));
    }

    #[test]
    fn the_same_layer_twice_is_labelled_once() {
        let twice = [
            child(ChildKind::Layer, '1'),
            child(ChildKind::Layer, '1'),
            child(ChildKind::Layer, '2'),
        ];
        let missing = missing_gc_labels(&twice, &Labels::new());
        assert_eq!(
            missing.keys().collect::<Vec<_>>(),
            [L0, "containerd.io/gc.ref.content.l.2"]
        );
    }

    #[test]
    fn a_record_that_moves_is_shown_to_cri_again() {
        let mut labels = ours();
        labels.insert(CRI_MANAGED.into(), "managed".into());
        let step = plan_record(
            &image("r.test/a:1").records[0],
            Some(&record("r.test/a:1", 'b', labels)),
            &intent(),
        );
        let RecordAction::Retarget { from, labels } = step.action else {
            panic!("{step:?}")
        };
        assert_eq!(from, digest('b'));
        assert_eq!(labels, LabelChanges::from([(CRI_MANAGED.to_owned(), None)]));
    }

    #[test]
    fn a_name_of_somebody_else_follows_the_rule() {
        let taken = record(
            "r.test/a:1",
            'b',
            Labels::from([("theirs".to_owned(), "x".to_owned())]),
        );
        let action = |on_conflict| {
            let intent = Intent {
                on_conflict,
                ..intent()
            };
            plan_record(&image("r.test/a:1").records[0], Some(&taken), &intent).action
        };
        assert!(matches!(
            action(OnConflict::Replace),
            RecordAction::Retarget { .. }
        ));
        assert_eq!(
            action(OnConflict::Keep),
            RecordAction::Conflict {
                with: digest('b'),
                refuse: false
            }
        );
        assert_eq!(
            action(OnConflict::Refuse),
            RecordAction::Conflict {
                with: digest('b'),
                refuse: true
            }
        );
    }

    #[test]
    fn a_name_to_be_left_is_left_and_an_image_of_no_other_name_sends_nothing() {
        let intent = Intent {
            leave: BTreeMap::from([("r.test/a:1".to_owned(), "another bundle has it".to_owned())]),
            ..intent()
        };
        let image = image("r.test/a:1");
        let plan = plan(&[&image], &Survey::default(), &intent);
        assert_eq!(
            plan.images[0].records[0].action,
            RecordAction::Leave("another bundle has it".to_owned())
        );
        assert!(plan.is_done() && plan.images[0].blobs.is_empty());
    }

    #[test]
    fn annotations_alone_do_not_move_a_record() {
        let mut there = record("r.test/a:1", 'a', ours());
        there
            .target
            .set_annotations(Some([("k".to_owned(), "v".to_owned())].into()));
        assert_eq!(
            plan_record(&image("r.test/a:1").records[0], Some(&there), &intent()).action,
            RecordAction::Unchanged
        );
    }

    #[test]
    fn a_blob_of_several_images_is_sent_once() {
        let images = ["r.test/a:1", "r.test/b:1"].map(image);
        let there = survey(Vec::new(), vec![blob('1', &[])]);
        let plan = plan(&[&images[0], &images[1]], &there, &intent());
        assert_eq!(plan.blobs_to_send(), [(&digest('c'), 10), (&digest('a'), 7)]);
        assert_eq!(plan.bytes_to_send(), 17);
    }

    #[test]
    fn small_images_go_first() {
        let small = image("r.test/small:1");
        let mut large = image("r.test/large:1");
        large.closure.blobs.insert(0, leaf('9', 1_000_000));
        let plan = plan(&[&large, &small], &Survey::default(), &intent());
        assert_eq!(
            plan.images.iter().map(|image| image.index).collect::<Vec<_>>(),
            [1, 0]
        );
        assert_eq!(plan.bytes_to_send(), 1_000_117);
    }

    #[test]
    fn images_of_earlier_patterns_go_first_by_any_of_their_names() {
        let mut large = image("r.test/pause:3");
        large.closure.blobs.insert(0, leaf('9', 1_000_000));
        let mut aliased = image("r.test/dns:1");
        aliased.records.push(NamedTarget {
            name: "mirror.test/coredns:1".into(),
            target: descriptor('a').into(),
        });
        let other = image("r.test/app:1");
        let intent = Intent {
            priority: ["*/pause:*", "*/coredns:*"]
                .map(|text| text.parse().unwrap())
                .into(),
            ..intent()
        };
        let plan = plan(&[&other, &aliased, &large], &Survey::default(), &intent);
        let order: Vec<_> = plan.images.iter().map(|image| image.index).collect();
        assert_eq!(order, [2, 1, 0]);
    }

    #[test]
    fn the_plan_prints_every_step() {
        let image = image("r.test/a:1");
        let text = plan(&[&image], &survey(Vec::new(), vec![blob('1', &[])]), &intent()).to_string();
        let one = digest('1');
        for wanted in [
            "r.test/a:1 (linux/amd64)",
            &format!("present {one}"),
            "send    ",
            "3 labels",
            "create  r.test/a:1",
        ] {
            assert!(text.contains(wanted), "{wanted} in {text}");
        }
    }
}
