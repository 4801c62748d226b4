//! Which images of a bundle this node takes, under which names, and every blob that each of them needs.
//!
//! Pure: a catalog and a policy in, a [`Selection`] out. It follows what containerd does when it later runs an image
//! (one manifest is chosen, best match first, and there is no second try), so that whatever is selected can run.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use basics::foreign;
use bundle::{Catalog, Content, Format, Image, Kind, Manifest, Node, Part, PartState};
use oci_spec::image::{Descriptor, Digest, DigestAlgorithm};
use platforms::{Chosen, Matcher, Platform, Rules};
use serde::{Deserialize, Serialize};

use crate::names::{Naming, Reference};

/// The platforms that are taken from a bundle.
#[derive(Clone, Debug)]
pub enum Wanted {
    /// Those that each matcher accepts. What an image offers for each of them must be whole.
    Platforms(Vec<Matcher>),
    /// Everything the bundle holds, and all of it must be whole.
    All {
        /// The rules of the containerds that it is for: none of them may use an artifact where an image was meant.
        rules: Vec<Rules>,
    },
}

impl Wanted {
    /// What nodes of these platforms take, by each of these rules.
    #[must_use]
    pub fn of(platforms: &[Platform], rules: &[Rules]) -> Wanted {
        let each = platforms.iter().flat_map(|platform| {
            let only = |rules: &Rules| Matcher::only(platform, *rules);
            rules.iter().map(only)
        });
        Wanted::Platforms(each.collect())
    }

    /// The same platforms, by these rules.
    #[must_use]
    pub fn by(&self, rules: &[Rules]) -> Wanted {
        match self {
            Wanted::All { .. } => Wanted::All {
                rules: rules.to_vec(),
            },
            Wanted::Platforms(matchers) => {
                let platforms = matchers.iter().filter_map(|matcher| matcher.platforms().first());
                Wanted::of(&platforms.cloned().collect::<Vec<_>>(), rules)
            }
        }
    }

    /// Whether each containerd that it is for mounts data-only artifacts.
    fn mounts_artifacts(&self) -> bool {
        match self {
            Wanted::Platforms(matchers) => {
                let mut rules = matchers.iter().map(Matcher::rules);
                rules.all(|rules| rules.is_some_and(Rules::mounts_artifacts))
            }
            Wanted::All { rules } => rules.iter().all(|rules| rules.mounts_artifacts()),
        }
    }
}

/// What decides over a catalog: the node's platforms and the naming rules.
#[derive(Clone, Debug)]
pub struct Policy {
    /// The platforms that are taken.
    pub wanted: Wanted,
    /// How images are named.
    pub naming: Naming,
    /// How many records one bundle may ask for, with those of digests and aliases. Default of the configuration:
    /// [`MOST_RECORDS`](crate::MOST_RECORDS).
    pub most_records: usize,
}

/// What becomes of every image of a bundle, in the order of the bundle.
#[derive(Clone, Debug)]
pub struct Selection {
    /// One entry for each image; entries of the bundle with the same target are one image.
    pub choices: Vec<Choice>,
    /// How many records the images ask for: names, their digests and aliases. Of those beyond [`Policy::most_records`]
    /// none is in `choices`, and their images are broken.
    pub asked_records: usize,
}

impl Selection {
    /// The images that are imported.
    pub fn taken(&self) -> impl Iterator<Item = &Taken> {
        self.choices.iter().filter_map(|choice| match &choice.verdict {
            Verdict::Take(taken) => Some(taken),
            Verdict::Skip(_) | Verdict::Forbidden | Verdict::Broken(_) => None,
        })
    }

    /// Whether an image that is imported needs a blob that is named by its sha512.
    pub(crate) fn needs_sha512(&self) -> bool {
        self.taken().any(|taken| taken.closure.sha512().is_some())
    }

    /// Refuses these images: this version of containerd names all blobs by their sha256.
    pub(crate) fn refuse_sha512(&mut self, version: &str) {
        for choice in &mut self.choices {
            let Verdict::Take(taken) = &choice.verdict else {
                continue;
            };
            if let Some(digest) = taken.closure.sha512() {
                let problem = format!(
                    "blob {digest} is named by its sha512, which containerd 2.3 or later takes and this {version} does not: \
                     upgrade containerd, or bundle the image with sha256 digests"
                );
                choice.verdict = Verdict::Broken(vec![problem]);
            }
        }
    }
}

/// One image of the bundle and the decision about it.
#[derive(Clone, Debug)]
pub struct Choice {
    /// What to call it in messages: its first name as the archive gives it, or its digest.
    pub label: String,
    /// The descriptor that a record of it would point at.
    pub target: Descriptor,
    /// The decision.
    pub verdict: Verdict,
    /// What the operator should know although it stops nothing: names not used, manifests left out, guesses made.
    pub notes: Vec<String>,
}

/// The decision about one image.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// It is whole for this node and has at least one name.
    Take(Taken),
    /// Nothing is wrong with it, but it gets no record.
    Skip(Skip),
    /// Nothing is wrong with it, but every name it has is one that bundles may not use here; the reasons are in the
    /// notes.
    Forbidden,
    /// It cannot be run as the bundle holds it: each problem names the platform and the blob.
    Broken(Vec<String>),
}

/// An image that is imported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Its records.
    pub records: Vec<NamedTarget>,
    /// Every blob it needs.
    pub closure: Closure,
}

/// A name, and what an image record of that name points at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedTarget {
    /// The normalised reference.
    pub name: String,
    /// The index or manifest, with the annotations of the bundle's entry as far as they are few enough. All names
    /// of an image share it.
    pub target: Arc<Descriptor>,
}

/// Why a sound image gets no record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Skip {
    /// Nothing in it runs here; the platforms it has.
    Foreign {
        /// The platforms that are in the bundle, as text.
        offered: Vec<String>,
    },
    /// The archive gives it no usable name.
    Unnamed,
    /// It is not a container image (a chart, a signature, a module); its type.
    Artifact(String),
    /// All its names went to an image of the same bundle that suits this node better.
    Outranked,
}

impl std::fmt::Display for Skip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Skip::Foreign { offered } if offered.is_empty() => f.write_str("nothing in it is for this node"),
            Skip::Foreign { offered } => {
                write!(
                    f,
                    "not for this node: it has {} (--platform takes others)",
                    offered.join(", ")
                )
            }
            Skip::Unnamed => f.write_str("it has no usable name: give it one with --name DIGEST=REFERENCE"),
            Skip::Artifact(kind) => write!(f, "not a container image but {kind}"),
            Skip::Outranked => {
                f.write_str("another image of the bundle has the same name and suits this node better")
            }
        }
    }
}

/// The blobs an image needs on this node, children before parents, each once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closure {
    /// The blobs.
    pub blobs: Vec<Member>,
    /// The platforms of the manifests among them, best first.
    pub platforms: Vec<String>,
}

impl Closure {
    /// The bytes of all its blobs.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.blobs.iter().map(|blob| blob.size).sum()
    }

    /// A blob of it that is named by its sha512, which no containerd before 2.3 takes.
    #[must_use]
    pub fn sha512(&self) -> Option<&Digest> {
        let mut digests = self.blobs.iter().map(|blob| &blob.digest);
        digests.find(|digest| *digest.algorithm() == DigestAlgorithm::Sha512)
    }
}

/// One blob of a closure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// What it refers to and containerd's garbage collector must know of; empty for layers and configs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub children: Vec<Child>,
}

/// A reference from a manifest or index to a blob that must live as long as it does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Child {
    /// The kind of child as containerd's label keys say it.
    pub kind: ChildKind,
    /// The child.
    pub digest: Digest,
}

/// The kinds of children that containerd's gc labels tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChildKind {
    /// An image manifest: `containerd.io/gc.ref.content.m.<n>`.
    Manifest,
    /// A layer: `containerd.io/gc.ref.content.l.<n>`.
    Layer,
    /// An image config: `containerd.io/gc.ref.content.config`.
    Config,
    /// Anything else, nested indexes among them: `containerd.io/gc.ref.content.<n>`.
    Other,
}

/// Decides about every image of `catalog`.
#[must_use]
pub fn select(catalog: &Catalog, policy: &Policy) -> Selection {
    let groups = group_by_target(&catalog.images);
    let mut asked_records = 0;
    let mut choices: Vec<_> = groups
        .iter()
        .map(|group| choose(group, catalog.format, policy, &mut asked_records))
        .collect();
    settle_names(&mut choices);
    Selection {
        choices: choices.into_iter().map(|(choice, _)| choice).collect(),
        asked_records,
    }
}

/// What is to be said of an image that is not in a bundle but in a store, and has a record there already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// Everything that is needed to run it is there.
    Whole(Closure),
    /// Nothing in it runs here; the platforms it has.
    Foreign(Vec<String>),
    /// It is not a container image; its type.
    Artifact(String),
    /// It cannot be run: each problem names the platform and the blob.
    Broken(Vec<String>),
}

/// Judges an image in the store called `place` (as in "is not in containerd") as [`select`] judges those of a bundle.
#[must_use]
pub fn judge(root: &Node, wanted: &Wanted, place: &'static str) -> Judgement {
    let walk = Walk {
        wanted,
        judge_by_config: false,
        place,
    };
    match walk.root(root, &mut Vec::new()) {
        Ok((closure, _)) => Judgement::Whole(closure),
        Err(Unfit::Foreign(offered)) => Judgement::Foreign(offered),
        Err(Unfit::Artifact(kind)) => Judgement::Artifact(kind),
        Err(Unfit::Broken(problems)) => Judgement::Broken(problems),
    }
}

/// Entries of the archive for the same target: bundlers list an image once for each of its names.
fn group_by_target(images: &[Image]) -> Vec<Vec<&Image>> {
    let mut groups: Vec<Vec<&Image>> = Vec::new();
    let mut by_target: HashMap<(&Digest, Option<&Platform>), usize> = HashMap::new();
    for image in images {
        let key = (image.root.descriptor.digest(), image.root.platform.as_ref());
        let at = *by_target.entry(key).or_insert(groups.len());
        match groups.get_mut(at) {
            Some(group) => group.push(image),
            None => groups.push(vec![image]),
        }
    }
    groups
}

/// How well an image suits the node: its place in the list of acceptable platforms, `MAX` where it is not known.
type Rank = usize;

/// What is decided about an image. The records that it asks for are added to `asked`.
fn choose(group: &[&Image], format: Format, policy: &Policy, asked: &mut usize) -> (Choice, Rank) {
    let root = &group[0].root;
    let mut notes = Vec::new();
    let walk = Walk {
        wanted: &policy.wanted,
        judge_by_config: format == Format::DockerArchive,
        place: BUNDLE,
    };
    let (verdict, rank) = match walk.root(root, &mut notes) {
        Ok((closure, rank)) => {
            notes.extend(images_for_plugins(root, &closure));
            (named(group, closure, policy, &mut notes, asked), rank)
        }
        Err(Unfit::Foreign(offered)) => (Verdict::Skip(Skip::Foreign { offered }), Rank::MAX),
        Err(Unfit::Artifact(kind)) => (Verdict::Skip(Skip::Artifact(kind)), Rank::MAX),
        Err(Unfit::Broken(problems)) => (Verdict::Broken(problems), Rank::MAX),
    };
    (
        Choice {
            label: label(group),
            target: root.descriptor.clone(),
            verdict,
            notes,
        },
        rank,
    )
}

fn label(group: &[&Image]) -> String {
    let name = group.iter().flat_map(|image| &image.names).next();
    name.map_or_else(
        || group[0].root.descriptor.digest().to_string(),
        |name| foreign::shown(name.as_str()),
    )
}

fn named(
    group: &[&Image],
    closure: Closure,
    policy: &Policy,
    notes: &mut Vec<String>,
    asked: &mut usize,
) -> Verdict {
    let target = Arc::new(recorded(&group[0].root.descriptor));
    let mut records: Vec<NamedTarget> = Vec::new();
    let mut all: Vec<Reference> = Vec::new();
    let mut seen: HashSet<Reference> = HashSet::new();
    let mut forbidden = 0;
    for image in group {
        let names = policy
            .naming
            .names_of(&image.names, image.root.descriptor.digest());
        notes.extend(names.refused);
        forbidden += names.forbidden;
        for reference in names.references {
            if seen.insert(reference.clone()) {
                records.push(NamedTarget {
                    name: reference.to_string(),
                    target: Arc::clone(&target),
                });
                all.push(reference);
            }
        }
    }
    if records.is_empty() {
        return if forbidden > 0 {
            Verdict::Forbidden
        } else {
            Verdict::Skip(Skip::Unnamed)
        };
    }
    let manifests = taken_manifests(&group[0].root, &closure);
    let of_manifests = policy.naming.repositories(&all) * manifests.len();
    *asked += records.len() + of_manifests;
    if *asked > policy.most_records {
        let (names, manifests, most) = (records.len(), manifests.len(), policy.most_records);
        return Verdict::Broken(vec![format!(
            "its {names} names and the digests of its {manifests} manifests, with those of the images before it, are {asked} \
             image records: more than {most} (limits.records)"
        )]);
    }
    records.extend(manifest_records(&manifests, &all, &policy.naming));
    Verdict::Take(Taken { records, closure })
}

/// Bytes of annotations that a record keeps, each with [`ANNOTATION`] on top. containerd answers each list of records
/// with all of theirs, in one message of at most 16 MiB.
const MOST_ANNOTATIONS: usize = 1 << 10;

/// What an annotation takes beside its text, in bytes.
const ANNOTATION: usize = 64;

/// A descriptor as records have it: with its annotations where they are few, and without `urls`, which nothing asks a
/// record for.
fn recorded(descriptor: &Descriptor) -> Descriptor {
    let mut recorded = descriptor.clone();
    recorded.set_urls(None);
    let annotations = descriptor.annotations().iter().flatten();
    let bytes: usize = annotations
        .map(|(key, value)| key.len() + value.len() + ANNOTATION)
        .sum();
    if bytes > MOST_ANNOTATIONS {
        recorded.set_annotations(None);
    }
    recorded
}

/// The images below an index that are taken, each once.
fn taken_manifests<'n>(root: &'n Node, closure: &Closure) -> Vec<&'n Node> {
    let taken: HashSet<&Digest> = closure.blobs.iter().map(|blob| &blob.digest).collect();
    let mut seen = HashSet::new();
    let mut manifests = manifests_below(root);
    manifests.retain(|node| {
        let digest = node.descriptor.digest();
        taken.contains(digest) && seen.insert(digest)
    });
    manifests
}

/// The `name@digest` records of the manifests below an index, where the naming rules ask for them.
fn manifest_records(manifests: &[&Node], names: &[Reference], naming: &Naming) -> Vec<NamedTarget> {
    let mut records = Vec::new();
    for node in manifests {
        let mut target = recorded(&node.descriptor);
        target.set_annotations(None);
        let target = Arc::new(target);
        let references = naming.manifest_references(names, node.descriptor.digest());
        records.extend(references.into_iter().map(|reference| NamedTarget {
            name: reference.to_string(),
            target: Arc::clone(&target),
        }));
    }
    records
}

fn manifests_below(node: &Node) -> Vec<&Node> {
    let Content::Index(children) = &node.content else {
        return Vec::new();
    };
    let is_image = |child: &&Node| matches!(&child.content, Content::Manifest(m) if m.kind == Kind::Image);
    let mut found: Vec<&Node> = children.iter().filter(is_image).collect();
    found.extend(children.iter().flat_map(manifests_below));
    found
}

/// A name that several images claim goes to the one that suits the node best, and among equals to the last.
fn settle_names(choices: &mut [(Choice, Rank)]) {
    let mut winners: HashMap<String, (usize, Rank)> = HashMap::new();
    for (at, (choice, rank)) in choices.iter().enumerate() {
        for record in choice.records() {
            if winners.get(&record.name).is_none_or(|(_, held)| rank <= held) {
                winners.insert(record.name.clone(), (at, *rank));
            }
        }
    }
    for (at, (choice, _)) in choices.iter_mut().enumerate() {
        choice.give_up_names(|name| winners.get(name).is_some_and(|(winner, _)| *winner != at));
    }
}

impl Choice {
    fn records(&self) -> &[NamedTarget] {
        match &self.verdict {
            Verdict::Take(taken) => &taken.records,
            Verdict::Skip(_) | Verdict::Forbidden | Verdict::Broken(_) => &[],
        }
    }

    /// Takes away the names that another image of the bundle won; without a tag left, the image is not taken.
    fn give_up_names(&mut self, is_lost: impl Fn(&str) -> bool) {
        let Verdict::Take(taken) = &mut self.verdict else {
            return;
        };
        let (lost, kept): (Vec<_>, Vec<_>) =
            taken.records.drain(..).partition(|record| is_lost(&record.name));
        taken.records = kept;
        if lost.is_empty() {
            return;
        }
        self.notes.extend(
            lost.iter()
                .map(|record| format!("the name {} goes to another image of the bundle", record.name)),
        );
        if taken.records.iter().all(|record| record.name.contains('@')) {
            self.verdict = Verdict::Skip(Skip::Outranked);
        }
    }
}

enum Unfit {
    Foreign(Vec<String>),
    Artifact(String),
    Broken(Vec<String>),
}

struct Walk<'a> {
    wanted: &'a Wanted,
    /// A Docker archive has no descriptors: what stands for one was made from the config.
    judge_by_config: bool,
    /// What the place is called that the blobs are in.
    place: &'static str,
}

/// What a bundle is called in messages.
const BUNDLE: &str = "the bundle";

impl Walk<'_> {
    fn root(&self, node: &Node, notes: &mut Vec<String>) -> Result<(Closure, Rank), Unfit> {
        match &node.content {
            Content::Manifest(manifest) => self.single(node, manifest, notes),
            Content::Index(children) => self.index(node, children, notes),
            Content::Other => Err(Unfit::Artifact(node.descriptor.media_type().to_string())),
            Content::Absent => Err(Unfit::Broken(vec![absent(&node.descriptor, self.place)])),
            Content::Broken(reason) => Err(Unfit::Broken(vec![reason.clone()])),
        }
    }

    fn single(
        &self,
        node: &Node,
        manifest: &Manifest,
        notes: &mut Vec<String>,
    ) -> Result<(Closure, Rank), Unfit> {
        if let Kind::Artifact { artifact_type } = &manifest.kind {
            if !manifest.is_volume {
                return Err(Unfit::Artifact(artifact_type.clone()));
            }
            if !self.wanted.mounts_artifacts() {
                let why = "which containerd mounts as a volume from 2.1 on";
                return Err(Unfit::Artifact(format!("{artifact_type}, {why}")));
            }
            notes.push(format!(
                "no container image but {artifact_type}: for image volumes only"
            ));
        }
        let Some(rank) = self.rank(node) else {
            return Err(Unfit::Foreign(vec![platform_text(node)]));
        };
        if stated_platform(node).is_none() {
            notes.push(
                "neither its descriptor nor its config says a platform: taken to be for this node".to_owned(),
            );
        }
        let problems = problems_in(self.place, node, manifest);
        if !problems.is_empty() {
            return Err(Unfit::Broken(problems));
        }
        Ok((
            Builder::default()
                .manifest(node, manifest)
                .finish(vec![platform_text(node)]),
            rank,
        ))
    }

    fn index(
        &self,
        root: &Node,
        children: &[Node],
        notes: &mut Vec<String>,
    ) -> Result<(Closure, Rank), Unfit> {
        let best = self.required(root, children, notes)?;
        let mut builder = Builder::default();
        let required: HashSet<&Digest> = best.iter().map(|node| node.descriptor.digest()).collect();
        let keep = |node: &Node| self.keeps(node, &required);
        builder.index(root, children, &keep, notes);
        let platforms = builder.platforms(&best);
        let rank = best.iter().filter_map(|node| self.rank(node)).min();
        Ok((builder.finish(platforms), rank.unwrap_or(Rank::MAX)))
    }

    /// The manifests that must be there: what containerd uses for each platform asked for, or everything. All of them
    /// are whole.
    fn required<'n>(
        &self,
        root: &'n Node,
        children: &'n [Node],
        notes: &mut Vec<String>,
    ) -> Result<Vec<&'n Node>, Unfit> {
        let answers = match self.wanted {
            Wanted::All { rules } => Answers {
                best: leaves(children)
                    .into_iter()
                    .filter(|node| !matches!(node.content, Content::Absent))
                    .collect(),
                problems: hidden(root, children, rules),
            },
            Wanted::Platforms(matchers) => Answers::of(root, matchers, self.place, notes),
        };
        let mut problems = answers.problems.list;
        problems.extend(
            answers
                .best
                .iter()
                .flat_map(|node| node_problems(node, self.place)),
        );
        if !problems.is_empty() {
            return Err(Unfit::Broken(problems));
        }
        if !answers.best.iter().any(|node| is_runnable(node)) {
            return Err(Unfit::Foreign(offered(children)));
        }
        Ok(answers.best)
    }

    /// Whether a child of an index is taken: it is one of the required, or it suits and is whole.
    fn keeps(&self, node: &Node, required: &HashSet<&Digest>) -> bool {
        if required.contains(node.descriptor.digest()) {
            return true;
        }
        let suits = match (self.wanted, &node.platform) {
            (Wanted::All { .. }, _) => !matches!(node.content, Content::Absent),
            (Wanted::Platforms(matchers), Some(platform)) => matchers.iter().any(|m| m.accepts(platform)),
            (Wanted::Platforms(_), None) => true,
        };
        suits
            && match &node.content {
                Content::Manifest(manifest) => {
                    self.rank(node).is_some() && problems(node, manifest).is_empty()
                }
                Content::Index(children) => children.iter().any(|child| self.keeps(child, required)),
                Content::Other => true,
                Content::Absent | Content::Broken(_) => false,
            }
    }

    /// The place of a manifest among the acceptable platforms, `None` where it does not suit.
    fn rank(&self, node: &Node) -> Option<Rank> {
        let Wanted::Platforms(matchers) = self.wanted else {
            return Some(Rank::MAX);
        };
        if let Some(platform) = node.platform.as_ref().filter(|_| !self.judge_by_config) {
            return matchers.iter().filter_map(|matcher| matcher.rank(platform)).min();
        }
        let Some(platform) = stated_platform(node) else {
            return Some(Rank::MAX);
        };
        let exact = matchers.iter().filter_map(|matcher| matcher.rank(platform)).min();
        // Configs lie about variants, and containerd does not check a single manifest when it runs it.
        let loose = matchers
            .iter()
            .any(|matcher| matcher.accepts_loosely(&platform.os, &platform.architecture));
        exact.or(loose.then_some(Rank::MAX))
    }
}

/// What containerd does with an index on a node.
enum Answer<'n> {
    /// It makes containers of this one, if it is whole.
    Image(&'n Node),
    /// It uses one that is of no use, while another was meant for this node.
    Hidden {
        used: &'n Node,
        why: String,
        meant: &'n Node,
    },
    /// There is nothing for the node.
    Nothing,
}

impl<'n> Answer<'n> {
    /// Asks as the containerd would that `matcher` is of.
    fn of(root: &'n Node, matcher: &Matcher) -> Answer<'n> {
        let (used, why) = match platforms::chosen(root, matcher) {
            Chosen::None => return Answer::Nothing,
            Chosen::This(node) => match unusable(node) {
                None => return Answer::Image(node),
                Some(why) => (node, why),
            },
            Chosen::Mismatch(node) => {
                let config = platform_text(node);
                (node, format!("which has no platform and a config for {config}"))
            }
        };
        match meant(root, matcher) {
            Some(meant) => Answer::Hidden { used, why, meant },
            None => Answer::Nothing,
        }
    }

    fn node(&self) -> Option<&'n Node> {
        match self {
            Answer::Image(node) | Answer::Hidden { used: node, .. } => Some(node),
            Answer::Nothing => None,
        }
    }

    fn problems(&self, place: &str) -> Vec<String> {
        let Answer::Hidden { used, why, meant } = self else {
            return Vec::new();
        };
        let platform = platform_text(meant);
        let (used_digest, meant_digest) = (used.descriptor.digest(), meant.descriptor.digest());
        let problem = format!(
            "{platform}: containerd uses {used_digest}, {why}; the image is {meant_digest}, which stands behind it"
        );
        std::iter::once(problem)
            .chain(node_problems(used, place))
            .collect()
    }
}

/// Why containerd can make no container of what it chose; none where an image is or should be there.
fn unusable(node: &Node) -> Option<String> {
    match &node.content {
        Content::Manifest(manifest) => match &manifest.kind {
            Kind::Image => None,
            Kind::Artifact { artifact_type } => {
                Some(format!("which is not a container image but {artifact_type}"))
            }
        },
        Content::Other => Some(format!(
            "which is not a manifest but {}",
            node.descriptor.media_type()
        )),
        // What is not there is taken for an image when it says for which platform.
        Content::Absent | Content::Broken(_) => node
            .platform
            .is_none()
            .then(|| "which has no platform and cannot be read".to_owned()),
        Content::Index(_) => None,
    }
}

/// The image that an index has for a node, whatever stands before it.
fn meant<'n>(root: &'n Node, matcher: &Matcher) -> Option<&'n Node> {
    let Content::Index(children) = &root.content else {
        return None;
    };
    let suits = |node: &&Node| match (&node.platform, &node.content) {
        (Some(platform), _) => matcher.accepts(platform),
        (None, Content::Manifest(manifest)) => manifest
            .config_platform
            .as_ref()
            .is_some_and(|config| matcher.accepts_config(config)),
        (None, _) => false,
    };
    let images = leaves(children).into_iter().filter(|node| is_runnable(node));
    let rank = |node: &&Node| node.platform.as_ref().and_then(|platform| matcher.rank(platform));
    images
        .filter(suits)
        .min_by_key(|node| rank(node).unwrap_or(Rank::MAX))
}

/// What the containerds asked for use of an index, each manifest once.
#[derive(Default)]
struct Answers<'n> {
    best: Vec<&'n Node>,
    problems: Problems,
}

/// What keeps an image from running: each problem once, in the order in which it was found.
#[derive(Default)]
struct Problems {
    list: Vec<String>,
    seen: HashSet<String>,
}

impl Problems {
    fn add(&mut self, problem: String) {
        if self.seen.insert(problem.clone()) {
            self.list.push(problem);
        }
    }
}

impl<'n> Answers<'n> {
    fn of(root: &'n Node, matchers: &[Matcher], place: &str, notes: &mut Vec<String>) -> Answers<'n> {
        let mut answers = Answers::default();
        for asked in by_platform(matchers) {
            let given: Vec<(&Matcher, Answer<'n>)> = asked
                .into_iter()
                .map(|matcher| (matcher, Answer::of(root, matcher)))
                .collect();
            answers.add(&given, place, notes);
        }
        answers
    }

    /// Adds what one platform gets, by each of the rules that were asked for.
    fn add(&mut self, given: &[(&Matcher, Answer<'n>)], place: &str, notes: &mut Vec<String>) {
        let digest = |answer: &Answer<'_>| answer.node().map(|node| node.descriptor.digest().clone());
        let differ = given
            .iter()
            .any(|(_, answer)| digest(answer) != digest(&given[0].1));
        for (matcher, answer) in given {
            let by_whom = if differ { by_whom(matcher) } else { String::new() };
            for problem in answer.problems(place) {
                self.problems.add(format!("{by_whom}{problem}"));
            }
            match answer {
                Answer::Image(node) => {
                    let is_new = |seen: &&Node| seen.descriptor.digest() != node.descriptor.digest();
                    if self.best.iter().all(is_new) {
                        self.best.push(node);
                    }
                }
                Answer::Hidden { .. } => {}
                Answer::Nothing if differ => {
                    let platform = asked_text(matcher);
                    self.problems
                        .add(format!("{by_whom}there is nothing for {platform} in it"));
                }
                Answer::Nothing => {}
            }
            if differ && let Answer::Image(node) = answer {
                let digest = node.descriptor.digest();
                let platform = stated_platform(node);
                let platform = platform.map_or_else(String::new, |platform| format!(", for {platform:#}"));
                notes.push(format!("{by_whom}{digest} is used{platform}"));
            }
        }
    }
}

/// Matchers for the same platform together: they differ in their rules only.
fn by_platform(matchers: &[Matcher]) -> Vec<Vec<&Matcher>> {
    let mut groups: Vec<Vec<&Matcher>> = Vec::new();
    for matcher in matchers {
        let of_same = |group: &&mut Vec<&Matcher>| asked_text(group[0]) == asked_text(matcher);
        match groups.iter_mut().find(of_same) {
            Some(group) => group.push(matcher),
            None => groups.push(vec![matcher]),
        }
    }
    groups
}

fn asked_text(matcher: &Matcher) -> String {
    matcher
        .platforms()
        .first()
        .map(ToString::to_string)
        .unwrap_or_default()
}

/// The start of a sentence that holds for some containerds only.
fn by_whom(matcher: &Matcher) -> String {
    let versions = matcher.rules().map(Rules::versions);
    versions.map_or_else(String::new, |versions| format!("on containerd {versions} "))
}

/// No image is for so many platforms. A hostile index may list thousands: each costs a look at all its entries, and
/// each record's report names them.
const MOST_PLATFORMS: usize = 100;

/// Where everything is taken: images that containerd would not get at on a node of their own platform.
fn hidden(root: &Node, children: &[Node], rules: &[Rules]) -> Problems {
    let images = leaves(children)
        .into_iter()
        .filter(|node| is_runnable(node) && !matches!(node.content, Content::Absent | Content::Broken(_)));
    let mut seen = HashSet::new();
    let platforms: Vec<&Platform> = images
        .filter_map(stated_platform)
        .filter(|platform| seen.insert(*platform))
        .take(MOST_PLATFORMS)
        .collect();
    let mut problems = Problems::default();
    for platform in platforms {
        for rules in rules {
            let answer = Answer::of(root, &Matcher::only(platform, *rules));
            answer
                .problems(BUNDLE)
                .into_iter()
                .for_each(|problem| problems.add(problem));
        }
    }
    problems
}

/// The image that an index has for one of these platforms although containerd uses another of its manifests, which is of no
/// use there. None where that is not so, and where no platform is asked for.
#[must_use]
pub fn hidden_image<'n>(root: &'n Node, wanted: &Wanted) -> Option<&'n Digest> {
    let (Content::Index(_), Wanted::Platforms(matchers)) = (&root.content, wanted) else {
        return None;
    };
    matchers
        .iter()
        .find_map(|matcher| match Answer::of(root, matcher) {
            Answer::Hidden { meant, .. } => Some(meant.descriptor.digest()),
            Answer::Image(_) | Answer::Nothing => None,
        })
}

/// What containerd makes containers of on the node that `matcher` is of; none where it has nothing that it can use.
pub(crate) fn chosen_for<'n>(root: &'n Node, matcher: &Matcher) -> Option<&'n Node> {
    match &root.content {
        Content::Index(_) => match Answer::of(root, matcher) {
            Answer::Image(node) => Some(node),
            Answer::Hidden { .. } | Answer::Nothing => None,
        },
        Content::Manifest(manifest) => {
            (manifest.kind == Kind::Image && config_suits(root, matcher)).then_some(root)
        }
        Content::Other => None,
        Content::Absent | Content::Broken(_) => Some(root),
    }
}

fn config_suits(node: &Node, matcher: &Matcher) -> bool {
    stated_platform(node).is_none_or(|p| matcher.accepts_loosely(&p.os, &p.architecture))
}

fn is_image_like(node: &Node) -> bool {
    match &node.content {
        Content::Manifest(manifest) => manifest.kind == Kind::Image,
        Content::Other => false,
        // What is not there is taken for an image when it says for which platform.
        Content::Absent | Content::Broken(_) => node.platform.is_some(),
        Content::Index(_) => true,
    }
}

fn is_runnable(node: &Node) -> bool {
    is_image_like(node) && !matches!(node.content, Content::Index(_))
}

fn leaves(children: &[Node]) -> Vec<&Node> {
    children
        .iter()
        .flat_map(|child| match &child.content {
            Content::Index(below) => leaves(below),
            _ => vec![child],
        })
        .collect()
}

/// The platforms below an index that the bundle has something for, without repetition.
fn offered(children: &[Node]) -> Vec<String> {
    let mut texts: Vec<String> = Vec::new();
    let mut seen: HashSet<String> = HashSet::new();
    for node in leaves(children)
        .into_iter()
        .filter(|node| !matches!(node.content, Content::Absent))
    {
        let text = platform_text(node);
        if is_runnable(node) && text != "unknown/unknown" && seen.insert(text.clone()) {
            texts.push(text);
        }
    }
    texts
}

/// The platform a manifest says it is for: in its descriptor, else in its config.
fn stated_platform(node: &Node) -> Option<&Platform> {
    let config = match &node.content {
        Content::Manifest(manifest) => manifest.config_platform.as_ref(),
        _ => None,
    };
    node.platform.as_ref().or(config)
}

/// `linux/arm64/v8`, or `unknown platform`; at most 200 characters, since each problem of each layer begins with it.
#[must_use]
pub fn platform_text(node: &Node) -> String {
    stated_platform(node).map_or_else(
        || "unknown platform".to_owned(),
        |platform| foreign::shown(&platform.to_string()),
    )
}

/// Everything that keeps a manifest of a bundle from running: absent or damaged parts, each named.
#[must_use]
pub fn problems(node: &Node, manifest: &Manifest) -> Vec<String> {
    problems_in(BUNDLE, node, manifest)
}

/// The same of a manifest in the store called `place` (as in "is not in containerd").
#[must_use]
pub fn problems_in(place: &str, node: &Node, manifest: &Manifest) -> Vec<String> {
    let platform = platform_text(node);
    let count = manifest.layers.len();
    let config = part_problem(&manifest.config, place).map(|problem| format!("{platform}: config {problem}"));
    let layers = manifest.layers.iter().enumerate().filter_map(|(at, layer)| {
        let problem = part_problem(layer, place)?;
        Some(format!("{platform}: layer {} of {count} {problem}", at + 1))
    });
    let others = manifest
        .problems
        .iter()
        .map(|problem| format!("{platform}: {problem}"));
    config.into_iter().chain(layers).chain(others).collect()
}

/// The same of whatever is behind an entry of an index.
fn node_problems(node: &Node, place: &str) -> Vec<String> {
    match &node.content {
        Content::Manifest(manifest) => problems_in(place, node, manifest),
        Content::Absent => vec![format!(
            "{}: {}",
            platform_text(node),
            absent(&node.descriptor, place)
        )],
        Content::Broken(reason) => vec![format!("{}: {reason}", platform_text(node))],
        Content::Index(_) | Content::Other => Vec::new(),
    }
}

fn part_problem(part: &Part, place: &str) -> Option<String> {
    match &part.state {
        PartState::Present => None,
        PartState::Absent => Some(absent(&part.descriptor, place)),
        PartState::Broken(reason) => Some(format!("{}: {reason}", part.descriptor.digest())),
    }
}

fn absent(descriptor: &Descriptor, place: &str) -> String {
    format!("{} is not in {place}", descriptor.digest())
}

/// Collects a closure: children before parents, each blob once.
#[derive(Default)]
struct Builder {
    closure: Closure,
    seen: HashSet<Digest>,
    extra_platforms: Vec<String>,
}

impl Builder {
    fn manifest(mut self, node: &Node, manifest: &Manifest) -> Self {
        self.add_manifest(node, manifest);
        self
    }

    fn finish(mut self, platforms: Vec<String>) -> Closure {
        self.closure.platforms = platforms;
        self.closure
    }

    /// The required platforms first, in order of preference, then the others that came along.
    fn platforms(&mut self, best: &[&Node]) -> Vec<String> {
        let mut platforms: Vec<String> = best
            .iter()
            .filter(|n| is_runnable(n))
            .map(|n| platform_text(n))
            .collect();
        let mut seen: HashSet<String> = platforms.iter().cloned().collect();
        for platform in std::mem::take(&mut self.extra_platforms) {
            if platforms.len() < MOST_PLATFORMS && seen.insert(platform.clone()) {
                platforms.push(platform);
            }
        }
        platforms
    }

    fn index(
        &mut self,
        node: &Node,
        children: &[Node],
        keep: &dyn Fn(&Node) -> bool,
        notes: &mut Vec<String>,
    ) {
        let mut edges = Vec::new();
        for child in children {
            if !keep(child) {
                note_left_out(child, notes);
                continue;
            }
            edges.push(Child {
                kind: child_kind(child),
                digest: child.descriptor.digest().clone(),
            });
            match &child.content {
                Content::Index(below) => self.index(child, below, keep, notes),
                Content::Manifest(manifest) => {
                    if manifest.kind == Kind::Image {
                        self.extra_platforms.push(platform_text(child));
                    }
                    self.add_manifest(child, manifest);
                }
                Content::Other => self.add(&child.descriptor, Vec::new()),
                Content::Absent | Content::Broken(_) => {}
            }
        }
        self.add(&node.descriptor, edges);
    }

    fn add_manifest(&mut self, node: &Node, manifest: &Manifest) {
        let mut edges = Vec::new();
        for layer in &manifest.layers {
            self.add(&layer.descriptor, Vec::new());
            let kind = if is_layer(&layer.descriptor) {
                ChildKind::Layer
            } else {
                ChildKind::Other
            };
            edges.push(Child {
                kind,
                digest: layer.descriptor.digest().clone(),
            });
        }
        self.add(&manifest.config.descriptor, Vec::new());
        let kind = if is_config(&manifest.config.descriptor) {
            ChildKind::Config
        } else {
            ChildKind::Other
        };
        edges.push(Child {
            kind,
            digest: manifest.config.descriptor.digest().clone(),
        });
        self.add(&node.descriptor, edges);
    }

    fn add(&mut self, descriptor: &Descriptor, children: Vec<Child>) {
        if self.seen.insert(descriptor.digest().clone()) {
            let member = Member {
                digest: descriptor.digest().clone(),
                size: descriptor.size(),
                children,
            };
            self.closure.blobs.push(member);
        }
    }
}

/// Says which suitable part of an index was left behind because it is not whole.
fn note_left_out(child: &Node, notes: &mut Vec<String>) {
    if let Content::Broken(reason) = &child.content {
        notes.push(format!("{} left out: {reason}", platform_text(child)));
    }
}

fn child_kind(node: &Node) -> ChildKind {
    match &node.content {
        Content::Manifest(_) => ChildKind::Manifest,
        _ => ChildKind::Other,
    }
}

/// The images among these blobs that not every pod can use as its container's image, each in a sentence: those that
/// containerd unpacks with a plugin only, and an artifact.
///
/// A snapshotter (nydus) or a stream processor (encrypted layers) may be there and cannot be seen from outside, so such an
/// image is no broken one.
#[must_use]
pub fn images_for_plugins(root: &Node, closure: &Closure) -> Vec<String> {
    let taken: HashSet<&Digest> = closure.blobs.iter().map(|blob| &blob.digest).collect();
    let mut images = manifests_below(root);
    images.push(root);
    let mut found = Vec::new();
    for node in images {
        let Content::Manifest(manifest) = &node.content else {
            continue;
        };
        if matches!(manifest.kind, Kind::Artifact { .. }) && std::ptr::eq(node, root) {
            found.push(
                "an artifact: pods mount it as an image volume, and no container starts from it".to_owned(),
            );
        }
        if !taken.contains(node.descriptor.digest()) {
            continue;
        }
        for need in [unusual_layers(manifest), features(manifest)]
            .into_iter()
            .flatten()
        {
            let platform = platform_text(node);
            let note = format!("{platform}: {need}; on a node without it no container starts");
            if !found.contains(&note) {
                found.push(note);
            }
        }
    }
    found
}

fn unusual_layers(manifest: &Manifest) -> Option<String> {
    let types = manifest.layers.iter().map(|layer| layer.descriptor.media_type());
    let kind = types
        .map(ToString::to_string)
        .find(|kind| !is_unpacked_by_all(kind))?;
    Some(format!(
        "containerd unpacks layers of type {kind} with a plugin only (a snapshotter or a stream processor)"
    ))
}

/// From 2.3 on containerd asks the snapshotter whether it has what the config wants, whatever the index said
/// (containerd's client/image.go, `checkSnapshotterSupport`).
fn features(manifest: &Manifest) -> Option<String> {
    let platform = manifest.config_platform.as_ref()?;
    let features = &platform.os_features;
    (!features.is_empty() && platform.os != "windows").then(|| {
        let features: Vec<_> = features.iter().map(|feature| foreign::shown(feature)).collect();
        format!(
            "containerd 2.3 and later unpack an image whose config asks for os.features {} with a snapshotter only that has \
             them",
            features.join(", ")
        )
    })
}

/// The layer types that every containerd applies by itself.
fn is_unpacked_by_all(media_type: &str) -> bool {
    let ends = ["", ".gzip", ".zstd", "+gzip", "+zstd"];
    let archives = [
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
    ];
    archives
        .iter()
        .filter_map(|archive| media_type.strip_prefix(archive))
        .any(|end| ends.contains(&end))
}

/// The media types containerd files under `l.<n>`.
pub(crate) fn is_layer(descriptor: &Descriptor) -> bool {
    let media_type = descriptor.media_type().to_string();
    media_type.starts_with("application/vnd.oci.image.layer.")
        || media_type.starts_with("application/vnd.docker.image.rootfs.")
        || media_type == "application/vnd.erofs.layer.v1"
}

/// The media types containerd files under `config`.
fn is_config(descriptor: &Descriptor) -> bool {
    matches!(
        descriptor.media_type().as_ref(),
        "application/vnd.oci.image.config.v1+json" | "application/vnd.docker.container.image.v1+json"
    )
}
