//! The manifest that containerd uses of an index, on a node of a platform and by the rules of its
//! version.

use std::collections::HashSet;

use bundle::{Content, Kind, Node};
use oci_spec::image::Digest;
use platforms::{Chosen, Matcher, Platform, Rules, Wanted};

use super::node::{is_runnable, leaves, platform_text, stated_platform};
use super::problem::{Problem, node_problems};
use super::{BUNDLE, Rank};

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

    fn problems(&self, place: &str) -> Vec<Problem> {
        let Answer::Hidden { used, why, meant } = self else {
            return Vec::new();
        };
        let platform = platform_text(meant);
        let (used_digest, meant_digest) = (used.descriptor.digest(), meant.descriptor.digest());
        let problem = format!(
            "{platform}: containerd uses {used_digest}, {why}; the image is {meant_digest}, which stands behind it"
        );
        std::iter::once(Problem::of_image(problem))
            .chain(node_problems(used, place))
            .collect()
    }
}

/// Why containerd can make no container of what it chose; none where an image is or should be
/// there.
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
pub(super) struct Answers<'n> {
    pub(super) best: Vec<&'n Node>,
    pub(super) problems: Problems,
}

/// What keeps an image from running: each problem once, in the order in which it was found.
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

    /// Adds what one platform gets, by each of the rules that were asked for.
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
                    let what = format!("{by_whom}there is nothing for {platform} in it");
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

/// Matchers for the same platform together: they differ in their rules only.
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

/// The start of a sentence that holds for some containerds only.
fn by_whom(matcher: &Matcher) -> String {
    let versions = matcher.rules().map(Rules::versions);
    versions.map_or_else(String::new, |versions| format!("on containerd {versions} "))
}

/// No image is for so many platforms. A hostile index may list thousands: each costs a look at all
/// its entries, and each record's report names them.
pub(super) const MOST_PLATFORMS: usize = 100;

/// Where everything is taken: images that containerd would not get at on a node of their own
/// platform.
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

/// The image that an index has for one of these platforms although containerd uses another of its
/// manifests, which is of no use there. None where that is not so, and where no platform is asked
/// for.
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

/// What containerd makes containers of on the node that `matcher` is of; none where it has nothing
/// that it can use.
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
