//! One reference held against what there is.
//!
//! CRI normalises what a pod asks for and looks for a record of exactly that name; with a tag and a digest the tag does
//! not count; a config's digest, or the beginning of one, is an id (containerd's CRI plugin, `LocalResolve`). So a pod
//! may miss an image that is there under a name that differs by a hair, and that hair is what operators look for.

use std::collections::HashSet;
use std::ops::ControlFlow;

use containerd::{Client, ImageRecord};
use import::labels::EXPIRES;
use import::{CONTAINERD, Judgement, Reference};
use oci_spec::image::Digest;
use serde::Serialize;

use super::{Held, Inventory};
use crate::{Need, Source};

/// How many hexadecimal digits make an id: shorter ones may be names.
const SHORTEST_ID: usize = 12;

/// How long an id is that is not only the beginning of one.
const FULL_ID: usize = "sha256:".len() + 64;

/// Among so many images that are like those that are asked for there is one to name.
const MOST_ALIKE: usize = 1000;

/// What there is to say of an image that runs without its layers.
const UNPACKED: &str = "it is unpacked, and its layers are not in the store (discard_unpacked_layers in containerd's \
                        configuration): it runs, and cannot be exported";

/// Whether a reference will be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It is there, down to every blob.
    Present,
    /// There is no image of this name.
    Absent,
    /// It is there, and something it needs is not, or is damaged.
    Incomplete,
    /// It is there for other platforms only.
    WrongPlatform,
    /// What has the name is no container image.
    NotAnImage,
    /// It is no image reference.
    InvalidReference,
}

/// How a near miss differs from what was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Difference {
    Digest,
    Registry,
    Tag,
    Platform,
}

/// An image that is almost the one that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NearMiss {
    pub differs_in: Difference,
    pub reference: String,
    /// `containerd`, or the bundle.
    pub place: String,
}

/// What there is to say about one reference.
#[derive(Clone, Debug, Serialize)]
pub struct Answer {
    /// The normalised reference, or the text in its place where it is none.
    pub reference: String,
    /// Whether it will be there.
    pub status: Status,
    /// What the name points at.
    pub digest: Option<String>,
    /// `containerd`, or the bundle.
    pub place: Option<String>,
    /// The platforms that are whole, or that there are instead.
    pub platforms: Vec<String>,
    /// Whether kubelet's garbage collector leaves the image alone; `None` for an image of a bundle.
    pub pinned: Option<bool>,
    /// The bundles that vouch for it.
    pub bundles: Vec<String>,
    /// What is wrong.
    pub problems: Vec<String>,
    /// A bundle on this disk that has the image, whole.
    pub found_in: Option<String>,
    /// An image that is almost the one that is asked for, where there is one.
    pub near_miss: Option<NearMiss>,
    /// What to do about it.
    pub remedy: Option<String>,
    /// Doubts about an image that is present, in sentences.
    pub warnings: Vec<String>,
    /// The places that ask for it.
    pub sources: Vec<Source>,
}

impl Answer {
    fn new(need: &Need, status: Status) -> Answer {
        Answer {
            reference: need.reference.clone(),
            status,
            digest: None,
            place: None,
            platforms: Vec::new(),
            pinned: None,
            bundles: Vec::new(),
            problems: Vec::new(),
            found_in: None,
            near_miss: None,
            remedy: None,
            warnings: Vec::new(),
            sources: need.sources.clone(),
        }
    }

    fn about(need: &Need, held: &Held) -> Answer {
        let (status, platforms, problems) = match &held.state {
            Judgement::Whole(closure) => (Status::Present, closure.platforms.clone(), Vec::new()),
            Judgement::Foreign(offered) => (Status::WrongPlatform, offered.clone(), vec![only_for(offered)]),
            Judgement::Artifact(kind) => (
                Status::NotAnImage,
                Vec::new(),
                vec![format!("it is not a container image but {kind}")],
            ),
            Judgement::Broken(problems) => (Status::Incomplete, Vec::new(), problems.clone()),
        };
        let unpacked = held.lacks_layers.then(|| UNPACKED.to_owned());
        Answer {
            warnings: unpacked.into_iter().chain(held.doubts.iter().cloned()).collect(),
            digest: Some(held.target.to_string()),
            place: Some(held.place.clone()),
            platforms,
            problems,
            pinned: held.pinned,
            bundles: held.bundles.clone(),
            ..Answer::new(need, status)
        }
    }

    /// Returns true unless the image is present, down to every blob.
    pub fn is_missing(&self) -> bool {
        self.status != Status::Present
    }
}

fn only_for(offered: &[String]) -> String {
    match offered {
        [] => "nothing in it is for this node".to_owned(),
        offered => format!("it is not for this node, only for {}", offered.join(", ")),
    }
}

/// What a reference means to CRI.
enum Wanted {
    /// A record of this name; the reference it was made of.
    Name(String, Reference),
    /// An image by its id or the beginning of it.
    Id(String),
}

impl Wanted {
    fn into_text(self) -> String {
        match self {
            Wanted::Name(text, _) | Wanted::Id(text) => text,
        }
    }
}

/// What a text stands for where no image is called so: CRI looks for a name first.
fn as_id(text: &str) -> Option<Wanted> {
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    let is_hex = !hex.is_empty() && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let is_id = is_hex && (text.len() > hex.len() || (SHORTEST_ID..=64).contains(&hex.len()));
    is_id.then(|| Wanted::Id(text.to_owned()))
}

fn wanted(text: &str, inventory: &Inventory) -> Result<Wanted, String> {
    let by_name = by_name(text);
    match as_id(text) {
        Some(id) => Ok(by_name
            .ok()
            .filter(|name| find(name, inventory).is_some())
            .unwrap_or(id)),
        None => by_name,
    }
}

fn by_name(text: &str) -> Result<Wanted, String> {
    let reference: Reference = text
        .parse()
        .map_err(|error: import::InvalidReference| error.to_string())?;
    let name = match (reference.digest(), reference.tag()) {
        (Some(digest), _) => format!("{}@{digest}", reference.repository()),
        (None, Some(tag)) => format!("{}:{tag}", reference.repository()),
        (None, None) => format!("{}:latest", reference.repository()),
    };
    Ok(Wanted::Name(name, reference))
}

/// The records that can have a say in the answers to some needs.
#[derive(Debug, Default)]
pub struct Sought {
    /// Names that are asked for, ids in full included.
    names: HashSet<String>,
    /// Beginnings of ids.
    ids: Vec<String>,
    /// Where near misses are wanted, too.
    near: Option<Near>,
}

/// The repositories and names by which near misses of the wanted images are recognised.
#[derive(Debug, Default)]
struct Near {
    repositories: HashSet<String>,
    digests: HashSet<String>,
    /// Last parts of paths, each with a tag.
    versions: HashSet<(String, String)>,
}

impl Sought {
    /// The marks of all images that are asked for.
    pub fn exactly(needs: &[Need]) -> Sought {
        let mut sought = Sought::default();
        for text in needs.iter().map(Need::given) {
            sought.names.extend(by_name(text).ok().map(Wanted::into_text));
            sought
                .ids
                .extend(as_id(text).map(|wanted| full_id(&wanted.into_text())));
        }
        sought
    }

    /// The same with the near misses of what may be missing.
    pub fn with_near_misses(needs: &[Need]) -> Sought {
        let mut near = Near::default();
        for text in needs.iter().map(Need::given) {
            if let Ok(Wanted::Name(_, reference)) = by_name(text) {
                near.add(&reference);
            }
        }
        Sought {
            near: Some(near),
            ..Sought::exactly(needs)
        }
    }

    /// Whether a record matters.
    pub fn may_be(&self, record: &ImageRecord) -> bool {
        let ImageRecord { name, target, .. } = record;
        self.names.contains(name)
            || self.ids.iter().any(|id| name.starts_with(id.as_str()))
            || self
                .near
                .as_ref()
                .is_some_and(|near| near.is_like(name, target.digest().as_ref()))
    }

    /// Asks for the records that matter where there are very many: by name, and with a list only for what those lack.
    ///
    /// # Errors
    ///
    /// The error of the client.
    pub async fn among_many(&self, client: &Client) -> Result<Vec<ImageRecord>, containerd::Error> {
        let full = self.ids.iter().filter(|id| id.len() == FULL_ID);
        let names = self.names.iter().chain(full).map(String::as_str);
        let mut found = client.images_named(names).await?;
        let is_found = |name: &String| found.iter().any(|record| record.name == *name);
        let is_vague = self.ids.iter().any(|id| id.len() < FULL_ID);
        let is_short = self.near.is_some() && !self.names.iter().all(is_found);
        if !is_vague && !is_short {
            return Ok(found);
        }
        let looked_up: HashSet<String> = found.iter().map(|record| record.name.clone()).collect();
        let known = found.len();
        let look = |record: ImageRecord| {
            if !looked_up.contains(&record.name) && self.may_be(&record) {
                found.push(record);
            }
            match found.len() - known < MOST_ALIKE {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        };
        client.each_image(look).await?;
        Ok(found)
    }
}

impl Near {
    fn add(&mut self, reference: &Reference) {
        let repository = reference.repository();
        self.repositories.insert(repository.to_owned());
        self.digests.extend(reference.digest().map(str::to_owned));
        let version = last(repository).zip(reference.tag());
        self.versions
            .extend(version.map(|(last, tag)| (last.to_owned(), tag.to_owned())));
    }

    fn is_like(&self, name: &str, target: &str) -> bool {
        let (repository, tag) = parts(name);
        let version = last(repository).zip(tag);
        self.repositories.contains(repository)
            || self.digests.contains(target)
            || version.is_some_and(|(last, tag)| self.versions.contains(&(last.to_owned(), tag.to_owned())))
    }
}

/// The last part of a repository's path.
fn last(repository: &str) -> Option<&str> {
    repository.rsplit('/').next()
}

fn full_id(id: &str) -> String {
    match id.starts_with("sha256:") {
        true => id.to_owned(),
        false => format!("sha256:{id}"),
    }
}

fn find<'s>(wanted: &Wanted, inventory: &'s Inventory) -> Option<&'s Held> {
    match wanted {
        Wanted::Name(name, _) => inventory.get(name),
        Wanted::Id(id) => inventory.by_id(id),
    }
}

/// Answers for one need: `inventory` is where it must be, `bundles` are those it could still come from.
pub fn answer(need: &Need, inventory: &Inventory, bundles: &Inventory) -> Answer {
    let wanted = match wanted(need.given(), inventory) {
        Ok(wanted) => wanted,
        Err(reason) => {
            let mut answer = Answer::new(need, Status::InvalidReference);
            answer.problems.push(reason);
            answer.remedy = Some("correct it where it is asked for".to_owned());
            return answer;
        }
    };
    let mut answer = match find(&wanted, inventory) {
        Some(held) => Answer::about(need, held),
        None => Answer::new(need, Status::Absent),
    };
    match answer.status {
        Status::Present => {
            let expires = find(&wanted, inventory)
                .and_then(|held| Some((held.name.as_str(), held.expires.as_deref()?)));
            warn(&mut answer, expires);
        }
        _ => advise(&mut answer, &wanted, inventory, bundles),
    }
    answer
}

/// `expires` is the name of a record that ends by itself, and when.
fn warn(answer: &mut Answer, expires: Option<(&str, &str)>) {
    if answer.pinned == Some(false) {
        answer
            .warnings
            .push("it is not pinned: kubelet may remove it when the disk is full".to_owned());
    }
    if let Some((name, when)) = expires {
        answer.warnings.push(format!(
            "its record expires ({EXPIRES} is {when}): containerd 2.0 and later deletes it then, pinned or not; a bundle \
             that has it takes the label away, and so does: ctr -n k8s.io images label {name} {EXPIRES}="
        ));
    }
}

/// Adds what comes closest and what to do.
fn advise(answer: &mut Answer, wanted: &Wanted, inventory: &Inventory, bundles: &Inventory) {
    if answer.status == Status::Absent {
        answer.problems.push(match wanted {
            Wanted::Name(name, _) => format!("there is no image of the name {name}"),
            Wanted::Id(_) => "there is no image with this id".to_owned(),
        });
    }
    let in_bundle = find(wanted, bundles);
    if let Some(held) = in_bundle.filter(|held| held.is_whole()) {
        answer.found_in = Some(held.place.clone());
        answer.remedy = Some(format!("airgapd import {}", held.place));
        return;
    }
    if let Some(held) = in_bundle {
        answer
            .problems
            .push(format!("{} has it, but {}", held.place, flaw(&held.state)));
    }
    if let Some(foreign) = [find(wanted, inventory), in_bundle]
        .into_iter()
        .flatten()
        .find(|held| is_foreign(held))
    {
        answer.near_miss = Some(near(foreign, Difference::Platform));
        answer.remedy = Some("bundle it for this node's platform too".to_owned());
        return;
    }
    let held = [find(wanted, inventory), in_bundle].into_iter().flatten();
    if let Some((held, image)) = held.filter_map(|held| Some((held, held.hidden.as_ref()?))).next() {
        answer.remedy = Some(uncover(held, image));
        return;
    }
    match answer.status {
        Status::Incomplete => {
            answer.remedy = Some("import a bundle that has it, whole: only what is missing moves".to_owned());
        }
        Status::Absent if in_bundle.is_some_and(|held| matches!(held.state, Judgement::Broken(_))) => {
            answer.remedy = Some("make that bundle anew, whole".to_owned());
        }
        Status::NotAnImage => {
            answer.remedy = Some("use its name for the image it was meant for, or another name".to_owned());
        }
        _ => closest(answer, wanted, inventory, bundles),
    }
}

/// How an image comes to run that stands behind another manifest of its index. No bundle of this index helps: containerd
/// goes by the index, and an index with another order is another digest. A reference to the manifest itself passes by it.
fn uncover(held: &Held, image: &Digest) -> String {
    let repository = parts(&held.name).0;
    format!(
        "no bundle of this index helps. Build the index anew, with the image {image} before what containerd uses now, or with \
         no platform on the latter; or bundle {repository}@{image} by itself, and ask for it by that digest"
    )
}

fn is_foreign(held: &Held) -> bool {
    matches!(held.state, Judgement::Foreign(_))
}

fn flaw(state: &Judgement) -> String {
    match state {
        Judgement::Whole(_) => "it is whole".to_owned(),
        Judgement::Foreign(offered) => only_for(offered),
        Judgement::Artifact(kind) => format!("it is not a container image but {kind}"),
        Judgement::Broken(problems) => problems.join("; "),
    }
}

fn near(held: &Held, differs_in: Difference) -> NearMiss {
    NearMiss {
        differs_in,
        reference: held.name.clone(),
        place: held.place.clone(),
    }
}

/// Names the image that differs least, and how to get from one to the other.
fn closest(answer: &mut Answer, wanted: &Wanted, inventory: &Inventory, bundles: &Inventory) {
    let Wanted::Name(_, reference) = wanted else {
        answer.remedy = Some("import the bundle that has it, or ask for it by name".to_owned());
        return;
    };
    let everything = || {
        inventory
            .all()
            .chain(bundles.all())
            .filter(|held| held.is_whole())
    };
    let found = other_digest(reference, everything())
        .or_else(|| other_registry(reference, everything()))
        .or_else(|| other_tag(reference, everything()));
    match found {
        Some((near, remedy)) => {
            answer.near_miss = Some(near);
            answer.remedy = Some(remedy);
        }
        None => answer.remedy = Some("add it to a bundle: no bundle here has anything like it".to_owned()),
    }
}

type Found = Option<(NearMiss, String)>;

/// The digest of something else in the same image, or another build.
fn other_digest<'h>(reference: &Reference, held: impl Iterator<Item = &'h Held>) -> Found {
    let digest = reference.digest()?;
    let same = held.filter(|held| parts(&held.name).0 == reference.repository());
    let mut same: Vec<&Held> = same.collect();
    // With a tag, that one first; names with a tag say more than those by digest.
    same.sort_by_key(|held| {
        let tag = parts(&held.name).1;
        (tag.is_none() || tag != reference.tag(), tag.is_none())
    });
    let below = |held: &&Held| {
        held.below
            .iter()
            .find(|(found, _)| found.as_ref() == digest)
            .map(|(_, platform)| platform.clone())
    };
    if let Some((held, platform)) = same.iter().find_map(|held| Some((*held, below(held)?))) {
        let (repository, target) = (reference.repository(), &held.target);
        let remedy = format!(
            "that digest is its {platform} manifest: pin to the index with {repository}@{target}, or import it with digestReferences: all"
        );
        return Some((near(held, Difference::Digest), remedy));
    }
    if let Some(held) = same.iter().find(|held| held.target.as_ref() == digest) {
        let remedy = "the image is there, without a name by digest: import its bundle again, which adds one"
            .to_owned();
        return Some((near(held, Difference::Digest), remedy));
    }
    let held = same.first()?;
    let remedy = format!(
        "it is another build, {}: bundle the one that is asked for, or ask for this one",
        held.target
    );
    Some((near(held, Difference::Digest), remedy))
}

/// The same path and tag, or at least the same last part of the path, elsewhere.
fn other_registry<'h>(reference: &Reference, held: impl Iterator<Item = &'h Held>) -> Found {
    let is_same_version = |held: &&Held| match (reference.digest(), parts(&held.name)) {
        (Some(digest), _) => held.target.as_ref() == digest,
        (None, (_, tag)) => tag.is_some() && tag == reference.tag(),
    };
    let (wanted_host, wanted_path) = reference.repository().split_once('/')?;
    let similarity = |held: &Held| {
        let (repository, _) = parts(&held.name);
        let (_, path) = repository.split_once('/')?;
        let last = |path: &str| path.rsplit('/').next().map(str::to_owned);
        match path {
            path if path == wanted_path => Some(0),
            path if last(path) == last(wanted_path) => Some(1),
            _ => None,
        }
    };
    let found = held
        .filter(is_same_version)
        .filter_map(|held| Some((similarity(held)?, held)));
    let (similarity, held) = found.min_by_key(|(similarity, _)| *similarity)?;
    let from = parts(&held.name).0;
    let (from, to) = match (similarity, from.split_once('/')) {
        (0, Some((host, _))) => (host, wanted_host),
        _ => (from, reference.repository()),
    };
    let remedy = format!("ask for {}, or import it with the alias {from}={to}", held.name);
    Some((near(held, Difference::Registry), remedy))
}

fn other_tag<'h>(reference: &Reference, held: impl Iterator<Item = &'h Held>) -> Found {
    let same =
        held.filter(|held| parts(&held.name).0 == reference.repository() && parts(&held.name).1.is_some());
    let wanted = reference.tag().unwrap_or_default();
    // Of one that is in a bundle and in containerd, the latter is the one to ask for.
    let held = same.max_by_key(|held| {
        let tag = parts(&held.name).1.unwrap_or_default();
        (alike(tag, wanted), held.place == CONTAINERD)
    })?;
    let remedy = format!("bundle {reference}, or ask for {}", held.name);
    Some((near(held, Difference::Tag), remedy))
}

/// How many characters two tags begin with in common.
fn alike(a: &str, b: &str) -> usize {
    a.chars().zip(b.chars()).take_while(|(a, b)| a == b).count()
}

/// Repository and tag of a record's name.
fn parts(name: &str) -> (&str, Option<&str>) {
    let without_digest = name.split('@').next().unwrap_or(name);
    match without_digest.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag)),
        _ => (without_digest, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inventory(names: &[&str]) -> Inventory {
        let target: Digest = format!("sha256:{}", "a".repeat(64)).parse().unwrap();
        let held = names.iter().map(|name| Held {
            name: (*name).to_owned(),
            target: target.clone(),
            state: Judgement::Broken(Vec::new()),
            lacks_layers: false,
            hidden: None,
            doubts: Vec::new(),
            below: Vec::new(),
            place: CONTAINERD.to_owned(),
            pinned: None,
            expires: None,
            bundles: Vec::new(),
        });
        Inventory::of(held)
    }

    #[test]
    fn what_could_be_an_id_is_a_name_where_there_is_one() {
        let id = format!("sha256:{}", "c".repeat(64));
        let name = "docker.io/library/cafecafecafe:latest";
        let table: [(&str, &[&str], Option<&str>); 6] = [
            ("cafecafecafe", &[name], Some(name)),
            ("cafecafecafe", &[], None),
            ("cccccccccccc", &[&id], Some(&id)),
            (&id, &[&id], Some(&id)),
            (&id["sha256:".len()..], &[&id], Some(&id)),
            // Too short to be an id.
            (
                "cafe",
                &["docker.io/library/cafe:latest"],
                Some("docker.io/library/cafe:latest"),
            ),
        ];
        for (text, names, found) in table {
            let inventory = inventory(names);
            let wanted = wanted(text, &inventory).unwrap();
            let held = find(&wanted, &inventory).map(|held| held.name.as_str());
            assert_eq!(held, found, "{text} in {names:?}");
        }
    }
}
