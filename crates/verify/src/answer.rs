//! The answer for one reference from an inventory, with the nearest miss and the remedy.
//!
//! A pod may miss an image that is present under a slightly different name. Operators look for that
//! difference.

use import::content::CONTAINERD;
use import::labels::EXPIRES;
use import::{Judgement, Reference};
use oci_spec::image::Digest;
use serde::Serialize;

use crate::sought::{Wanted, find, parts, wanted};
use crate::{Held, Inventory, Need, Source};

/// The remark about an image that runs without its layers.
const UNPACKED: &str = "it is unpacked, and its layers are not in the store (discard_unpacked_layers in containerd's \
                        configuration): it runs, and cannot be exported";

/// The answer whether the image of a reference is present.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// The image is present, with every blob.
    Present,
    /// No image has this name.
    Absent,
    /// The image is present, but lacks a part or has a damaged part.
    Incomplete,
    /// The image is present for other platforms only.
    WrongPlatform,
    /// The name belongs to something that is no container image.
    NotAnImage,
    /// The text is no image reference.
    InvalidReference,
}

/// The part in which a near miss differs from the wanted image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Difference {
    Digest,
    Registry,
    Tag,
    Platform,
}

/// An image that is similar to the wanted image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NearMiss {
    pub differs_in: Difference,
    pub reference: String,
    /// `containerd`, or the bundle.
    pub place: String,
}

/// The answer for one reference.
#[derive(Clone, Debug, Serialize)]
pub struct Answer {
    /// The normalised reference, or the given text if it is no reference.
    pub reference: String,
    /// The answer itself.
    pub status: Status,
    /// The name and the target of the record that was found.
    #[serde(skip)]
    pub record: Option<(String, Digest)>,
    /// The digest that the name points at.
    pub digest: Option<String>,
    /// `containerd`, or the bundle.
    pub place: Option<String>,
    /// The platforms that are whole, or the platforms that exist instead.
    pub platforms: Vec<String>,
    /// True if kubelet's garbage collector leaves the image alone. `None` for an image of a bundle.
    pub pinned: Option<bool>,
    /// The bundles that vouch for the image.
    pub bundles: Vec<String>,
    /// The reasons why the image is missing.
    pub problems: Vec<String>,
    /// A bundle on this disk that has the whole image.
    pub found_in: Option<String>,
    /// An image that is similar to the wanted image, if there is one.
    pub near_miss: Option<NearMiss>,
    /// The way to get the image.
    pub remedy: Option<String>,
    /// Doubts about an image that is present, in sentences.
    pub warnings: Vec<String>,
    /// The places that need the image.
    pub sources: Vec<Source>,
}

impl Answer {
    fn new(need: &Need, status: Status) -> Answer {
        Answer {
            reference: need.reference.clone(),
            status,
            record: None,
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
            Judgement::Broken(problems) => (
                Status::Incomplete,
                Vec::new(),
                problems.iter().map(ToString::to_string).collect(),
            ),
        };
        let unpacked = held.lacks_layers.then(|| UNPACKED.to_owned());
        Answer {
            warnings: unpacked.into_iter().chain(held.doubts.iter().cloned()).collect(),
            record: Some((held.name.clone(), held.target.clone())),
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

/// Answers for one need. The image must be in `inventory`. `bundles` has the bundles that could
/// bring it.
pub fn answer(need: &Need, inventory: &Inventory, bundles: &Inventory) -> Answer {
    let wanted = match wanted(need.given(), inventory) {
        Ok(wanted) => wanted,
        Err(reason) => {
            let mut answer = Answer::new(need, Status::InvalidReference);
            answer.problems.push(reason);
            answer.remedy = Some("correct the reference in its source".to_owned());
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

/// Adds warnings. `expires` is the name of a record that containerd will delete, and the time.
fn warn(answer: &mut Answer, expires: Option<(&str, &str)>) {
    if answer.pinned == Some(false) {
        answer
            .warnings
            .push("it is not pinned: kubelet may remove it when the disk is full".to_owned());
    }
    if let Some((name, when)) = expires {
        answer.warnings.push(format!(
            "its record expires ({EXPIRES} is {when}): containerd 2.0 and later then deletes it, even if it is pinned. To keep it, \
             import a bundle with the image, or run: ctr -n k8s.io images label {name} {EXPIRES}="
        ));
    }
}

/// Adds the nearest miss and the remedy.
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
            answer.remedy = Some("make that bundle again, whole".to_owned());
        }
        Status::NotAnImage => {
            answer.remedy =
                Some("give this name to the image that it was meant for, or use another name".to_owned());
        }
        _ => closest(answer, wanted, inventory, bundles),
    }
}

/// Returns how to run an image that stands behind another manifest of its index. No bundle of this
/// index helps: containerd goes by the index, and an index with another order has another digest. A
/// reference to the manifest itself bypasses the index.
fn uncover(held: &Held, image: &Digest) -> String {
    let repository = parts(&held.name).0;
    format!(
        "no bundle of this index helps. Rebuild the index with the image {image} before the manifest that containerd uses, \
         or without a platform on that manifest. Or bundle {repository}@{image} by itself, and refer to it by that digest"
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
        Judgement::Broken(problems) => import::select::in_words(problems),
    }
}

fn near(held: &Held, differs_in: Difference) -> NearMiss {
    NearMiss {
        differs_in,
        reference: held.name.clone(),
        place: held.place.clone(),
    }
}

/// Adds the image that differs least, and the remedy that leads from it to the wanted image.
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
        None => answer.remedy = Some("add it to a bundle: no bundle here has a similar image".to_owned()),
    }
}

type Found = Option<(NearMiss, String)>;

/// Finds another part of the same image if the wanted digest is in it, or another build.
fn other_digest<'h>(reference: &Reference, held: impl Iterator<Item = &'h Held>) -> Found {
    let digest = reference.digest()?;
    let same = held.filter(|held| parts(&held.name).0 == reference.repository());
    let mut same: Vec<&Held> = same.collect();
    // The wanted tag comes first. Then names with a tag, which say more than names with a digest.
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
        let remedy =
            "the image is present without a record by digest: import its bundle again, which adds the record"
                .to_owned();
        return Some((near(held, Difference::Digest), remedy));
    }
    let held = same.first()?;
    let remedy = format!(
        "it is another build, {}: bundle the digest that is required, or refer to this digest",
        held.target
    );
    Some((near(held, Difference::Digest), remedy))
}

/// Finds the same version in another registry: the same path, or at least the same last part of the
/// path.
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
    // If an image is in a bundle and in containerd, name containerd's.
    let held = same.max_by_key(|held| {
        let tag = parts(&held.name).1.unwrap_or_default();
        (alike(tag, wanted), held.place == CONTAINERD)
    })?;
    let remedy = format!("bundle {reference}, or ask for {}", held.name);
    Some((near(held, Difference::Tag), remedy))
}

/// Returns how many characters two tags have in common at their beginnings.
fn alike(a: &str, b: &str) -> usize {
    a.chars().zip(b.chars()).take_while(|(a, b)| a == b).count()
}
