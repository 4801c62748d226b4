//! The manifest of an index that containerd uses, by the node's platform and the rules of
//! containerd's version.

use std::collections::HashSet;

use bundle::{Content, Kind, Node};
use oci_spec::image::Digest;
use platforms::{Chosen, Matcher, Platform, Rules, Wanted};

use super::node::{is_runnable, leaves, platform_text, stated_platform};
use super::problem::{Problem, node_problems};
use super::{BUNDLE, Rank};

/// containerd's choice from an index on a node.
enum Answer<'n> {
    /// containerd makes containers from this image, if it is whole.
    Image(&'n Node),
    /// containerd uses a useless manifest, although the index has an image for this node.
    Hidden {
        used: &'n Node,
        why: String,
        meant: &'n Node,
    },
    /// The index has nothing for the node.
    Nothing,
}

impl<'n> Answer<'n> {
    /// Returns the answer of the containerd whose rules `matcher` has.
    fn of(root: &'n Node, matcher: &Matcher) -> Answer<'n> {
        let (used, why) = match platforms::chosen(root, matcher) {
            Chosen::None => return Answer::Nothing,
            Chosen::This(node) => match unusable(node) {
                None => return Answer::Image(node),
                Some(why) => (node, why),
            },
            Chosen::Mismatch(node) => {
                let config = platform_text(node);
                (node, format!("no platform, and a config for {config}"))
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

    fn problems(&self, place: &str) -> Vec<Problem> {
        let Answer::Hidden { used, why, meant } = self else {
            return Vec::new();
        };
        let platform = platform_text(meant);
        let (used_digest, meant_digest) = (used.descriptor.digest(), meant.descriptor.digest());
        let problem = format!(
            "{platform}: containerd uses {used_digest} ({why}) instead of the image {meant_digest} after it in the index"
        );
        std::iter::once(Problem::of_image(problem))
            .chain(node_problems(used, place))
            .collect()
    }
}

/// Returns the reason why containerd cannot make a container from its choice. Returns `None` if the
/// choice is an image, or should be.
fn unusable(node: &Node) -> Option<String> {
    match &node.content {
        Content::Manifest(manifest) => match &manifest.kind {
            Kind::Image => None,
            Kind::Artifact { artifact_type } => Some(format!("not a container image but {artifact_type}")),
        },
        Content::Other => Some(format!("not a manifest but {}", node.descriptor.media_type())),
        // A missing manifest counts as an image if its descriptor names a platform.
        Content::Absent | Content::Broken(_) => node
            .platform
            .is_none()
            .then(|| "no platform, and not readable".to_owned()),
        Content::Index(_) => None,
    }
}

/// Returns the image of an index for a node, even if other manifests come before it.
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

/// The manifests that the asked containerds use of an index, each once.
#[derive(Default)]
pub(super) struct Answers<'n> {
    pub(super) best: Vec<&'n Node>,
    pub(super) problems: Problems,
}

/// The problems that keep an image from running, each once, in the order of discovery.
#[derive(Default)]
pub(super) struct Problems {
    pub(super) list: Vec<Problem>,
    pub(super) seen: HashSet<Problem>,
}

impl Problems {
    fn add(&mut self, problem: Problem) {
        if self.seen.insert(problem.clone()) {
            self.list.push(problem);
        }
    }
}

impl<'n> Answers<'n> {
    pub(super) fn of(
        root: &'n Node,
        matchers: &[Matcher],
        place: &str,
        notes: &mut Vec<String>,
    ) -> Answers<'n> {
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

    /// Adds the answers for one platform, by each of the rules asked for.
    fn add(&mut self, given: &[(&Matcher, Answer<'n>)], place: &str, notes: &mut Vec<String>) {
        let digest = |answer: &Answer<'_>| answer.node().map(|node| node.descriptor.digest().clone());
        let differ = given
            .iter()
            .any(|(_, answer)| digest(answer) != digest(&given[0].1));
        for (matcher, answer) in given {
            let by_whom = if differ { by_whom(matcher) } else { String::new() };
            for problem in answer.problems(place) {
                self.problems.add(problem.after(&by_whom));
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
                    let platform = matcher.asked().unwrap_or_default();
                    let what = format!("{by_whom}there is nothing for {platform} in the image");
                    self.problems.add(Problem::of_image(what));
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

/// Groups matchers by platform. Matchers of a group differ only in their rules.
fn by_platform(matchers: &[Matcher]) -> Vec<Vec<&Matcher>> {
    let mut groups: Vec<Vec<&Matcher>> = Vec::new();
    for matcher in matchers {
        let of_same = |group: &&mut Vec<&Matcher>| group[0].asked() == matcher.asked();
        match groups.iter_mut().find(of_same) {
            Some(group) => group.push(matcher),
            None => groups.push(vec![matcher]),
        }
    }
    groups
}

/// Returns the start of a sentence that holds for some containerds only.
fn by_whom(matcher: &Matcher) -> String {
    let versions = matcher.rules().map(Rules::versions);
    versions.map_or_else(String::new, |versions| format!("on containerd {versions} "))
}

/// Largest number of platforms of an image. A hostile index may list thousands: each costs a look
/// at all its entries, and each record's report names them.
pub(super) const MOST_PLATFORMS: usize = 100;

/// Returns the problems of images that containerd would not find on a node of their own platform.
/// For a policy that takes all platforms.
pub(super) fn hidden(root: &Node, children: &[Node], rules: &[Rules]) -> Problems {
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

/// Returns an image of an index for one of these platforms that containerd does not use. containerd
/// uses a manifest instead that is useless there. Returns `None` if there is no such image, or if
/// no platform is wanted.
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

/// Returns the manifest from which containerd makes containers on the node of `matcher`. Returns
/// `None` if it finds no usable manifest.
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

#[cfg(test)]
mod tests {
    use bundle::fixtures::{Archive, Image, Layout, Manifest, Node as Entry};
    use bundle::{Bundle, Limits};

    use super::*;

    #[test]
    fn a_container_is_made_of_an_image_for_the_node_and_of_nothing_else() {
        let image = |platform: &str| Manifest::new(platform).layer(platform.as_bytes().to_vec());
        let artifact = |platform: &str| image(platform).config_media_type("application/spdx+json");
        let archive = |root: Entry| Layout::new().image(Image::new("r.test/a:1").root(root)).build();
        let index = |manifests: Vec<Manifest>| {
            archive(Entry::Index(manifests.into_iter().map(Entry::from).collect()))
        };
        let node = Matcher::only(&"linux/arm64".parse().unwrap(), Rules::Rc3);
        let chosen = |archive: &Archive| {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("b.tar");
            archive.write_to(&path);
            let bundle = Bundle::open(&path, &Limits::default()).unwrap();
            let root = &bundle.catalog().images[0].root;
            chosen_for(root, &node).map(|node| node.descriptor.digest().clone())
        };
        let both = index(vec![image("linux/amd64"), image("linux/arm64")]);
        assert_eq!(chosen(&both).as_ref(), Some(&both.images[0].manifests[1].digest));
        let mut cut = both.clone();
        cut.remove_blob(&both.images[0].manifests[1].digest);
        assert!(chosen(&cut).is_some(), "it is chosen, and not there");
        let single = archive(image("linux/arm64").into());
        assert_eq!(
            chosen(&single).as_ref(),
            Some(&single.images[0].manifests[0].digest)
        );
        for (case, archive) in [
            ("another platform", index(vec![image("linux/amd64")])),
            ("another platform, alone", archive(image("linux/amd64").into())),
            (
                "an artifact before it",
                index(vec![artifact("linux/arm64"), image("linux/arm64")]),
            ),
            ("an artifact alone", archive(artifact("linux/arm64").into())),
        ] {
            assert_eq!(chosen(&archive), None, "{case}");
        }
    }
}
