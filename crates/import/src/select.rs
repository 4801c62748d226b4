//! The selection: the images of a bundle that this node takes, with their names and every blob that
//! each needs.
//!
//! Pure: a catalog and a policy go in, and a [`Selection`] comes out. It follows the way in which
//! containerd later runs an image, so that every selected image can run. containerd chooses one
//! manifest, best match first, and makes no second attempt.
//!
//! `judge` decides whether an image is whole, by the `answer` that containerd gives for an index.
//! `closure` collects the blobs of a whole image, and `naming` its records. `problem` has the
//! sentences about absent or damaged blobs.

mod answer;
mod closure;
mod judge;
mod naming;
mod node;
mod plugins;
mod problem;

use std::collections::HashMap;
use std::sync::Arc;

use basics::foreign;
use bundle::{Catalog, Format, Image};
use containerd::Version;
use oci_spec::image::{Descriptor, Digest};
use platforms::{Platform, Wanted};

pub(crate) use self::answer::chosen_for;
pub use self::answer::hidden_image;
pub(crate) use self::closure::is_layer;
pub use self::closure::{Child, ChildKind, Closure, Member};
pub use self::judge::{Judgement, judge};
use self::judge::{Unfit, Walk};
use self::naming::{named, settle_names};
pub use self::node::platform_text;
pub use self::plugins::images_for_plugins;
pub use self::problem::{Damage, Problem, in_words, problems, problems_in};
use crate::names::Naming;

/// The rules of the selection: the node's platforms and the naming rules.
#[derive(Clone, Debug)]
pub struct Policy {
    /// The platforms to take.
    pub wanted: Wanted,
    /// The rules for naming images.
    pub naming: Naming,
    /// Largest number of records that one bundle may ask for, including those of digests and
    /// aliases. Default of the configuration: [`MOST_RECORDS`](crate::plan::MOST_RECORDS).
    pub most_records: usize,
}

/// The decisions about every image of a bundle, in the order of the bundle.
#[derive(Clone, Debug)]
pub struct Selection {
    /// One entry for each image. Entries of the bundle with the same target are one image.
    pub choices: Vec<Choice>,
    /// Number of records that the images ask for: names, their digests and aliases. Records beyond
    /// [`Policy::most_records`] are not in `choices`, and their images are broken.
    pub asked_records: usize,
}

impl Selection {
    /// Returns the images to import.
    pub fn taken(&self) -> impl Iterator<Item = &Taken> {
        self.choices.iter().filter_map(|choice| match &choice.verdict {
            Verdict::Take(taken) => Some(taken),
            Verdict::Skip(_) | Verdict::Forbidden(_) | Verdict::Broken(_) => None,
        })
    }

    /// Returns true if an image to import needs a blob with a sha512 digest.
    pub(crate) fn needs_sha512(&self) -> bool {
        self.taken().any(|taken| taken.closure.sha512().is_some())
    }

    /// Refuses images with sha512 digests: this version of containerd has no room for them.
    pub(crate) fn refuse_sha512(&mut self, version: &str) {
        for choice in &mut self.choices {
            let Verdict::Take(taken) = &choice.verdict else {
                continue;
            };
            if let Some(digest) = taken.closure.sha512() {
                let what = format!(
                    "blob {digest} is named by its sha512, which containerd 2.3 or later accepts and this {version} does not: \
                     upgrade containerd, or bundle the image with sha256 digests"
                );
                let blob = Some(digest.clone());
                let problem = Problem {
                    blob,
                    what,
                    damage: None,
                };
                choice.verdict = Verdict::Broken(vec![problem]);
            }
        }
    }
}

/// One image of the bundle and the decision about it.
#[derive(Clone, Debug)]
pub struct Choice {
    /// The image's name in messages: its first name in the archive, or its digest.
    pub label: String,
    /// The descriptor for a record of the image.
    pub target: Descriptor,
    /// The decision.
    pub verdict: Verdict,
    /// Remarks for the operator that stop nothing: unused names, left out manifests, guesses.
    pub notes: Vec<String>,
}

/// The decision about one image.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// The image is whole for this node and has at least one name.
    Take(Taken),
    /// The image is sound, but gets no record.
    Skip(Skip),
    /// The image is sound, but the bundle may not use its names. The text is the reason, and the
    /// notes name each name that `allowedNames` lacks.
    Forbidden(String),
    /// The image cannot run as it is in the bundle. Each problem names the platform and the blob.
    Broken(Vec<Problem>),
}

/// An image to import.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The image's records.
    pub records: Vec<NamedTarget>,
    /// Every blob that the image needs.
    pub closure: Closure,
}

/// A name, and the target of an image record of that name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedTarget {
    /// The normalised reference.
    pub name: String,
    /// The index or manifest, with the annotations of the bundle's entry if they are few enough.
    /// All names of an image share the target.
    pub target: Arc<Descriptor>,
}

/// The reason why a sound image gets no record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Skip {
    /// Nothing in the image runs on this node.
    Foreign {
        /// The image's platforms in the bundle, as text.
        offered: Vec<String>,
    },
    /// The archive gives it no usable name.
    Unnamed,
    /// The image is not a container image but a chart, a signature or a module. The text is its
    /// type.
    Artifact(String),
    /// Another image of the bundle suits this node better and got all names.
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

/// Groups the archive's entries by target. Bundlers list an image once for each of its names.
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

/// Rank of an image for the node: its place in the list of acceptable platforms. `MAX` if the place
/// is not known.
type Rank = usize;

/// Decides about an image. Adds the number of records that the image asks for to `asked`.
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

/// Name of the bundle in messages.
const BUNDLE: &str = "the bundle";

/// The first version of containerd whose content store has room for digests other than sha256.
const SHA512_SINCE: (u64, u64) = (2, 3);

/// Returns true if containerd accepts blobs with sha512 digests. A containerd without a version
/// number counts as a new one.
#[must_use]
pub fn takes_sha512(version: &Version) -> bool {
    !version.is_known() || (version.major, version.minor) >= SHA512_SINCE
}

#[cfg(test)]
mod tests {
    use oci_spec::image::MediaType;

    use super::*;

    fn digest(algorithm: &str, length: usize) -> Digest {
        format!("{algorithm}:{}", "a".repeat(length)).parse().unwrap()
    }

    fn choice(verdict: Verdict) -> Choice {
        Choice {
            label: "r.test/a:1".to_owned(),
            target: Descriptor::new(MediaType::ImageManifest, 7, digest("sha256", 64)),
            verdict,
            notes: Vec::new(),
        }
    }

    fn taken(blobs: &[&Digest]) -> Choice {
        let blob = |digest: &&Digest| Member {
            digest: (*digest).clone(),
            size: 1,
            children: Vec::new(),
        };
        let closure = Closure {
            blobs: blobs.iter().map(blob).collect(),
            platforms: Vec::new(),
        };
        let records = Vec::new();
        choice(Verdict::Take(Taken { records, closure }))
    }

    #[test]
    fn images_with_a_blob_that_is_named_by_its_sha512_are_refused_and_no_others() {
        let (short, long) = (digest("sha256", 64), digest("sha512", 128));
        let selection = |choices| Selection {
            choices,
            asked_records: 0,
        };
        let whole = || taken(&[&short, &short]);
        let skipped = || choice(Verdict::Skip(Skip::Unnamed));
        assert!(!selection(vec![whole(), skipped()]).needs_sha512());
        let mut selection = selection(vec![whole(), skipped(), taken(&[&short, &long])]);
        assert!(selection.needs_sha512());
        selection.refuse_sha512("1.7.24");
        assert!(!selection.needs_sha512());
        let verdicts = selection.choices.iter().map(|choice| &choice.verdict);
        let [Verdict::Take(_), Verdict::Skip(_), Verdict::Broken(problems)] =
            verdicts.collect::<Vec<_>>()[..]
        else {
            panic!("{selection:?}")
        };
        assert_eq!(problems[0].blob.as_ref(), Some(&long));
        let words = in_words(problems);
        assert!(words.contains("and this 1.7.24 does not"), "{words}");
    }

    #[test]
    fn an_image_that_is_skipped_says_why() {
        let foreign = |offered: &[&str]| Skip::Foreign {
            offered: offered.iter().map(ToString::to_string).collect(),
        };
        for (skip, text) in [
            (foreign(&[]), "nothing in it is for this node"),
            (
                foreign(&["linux/arm64", "linux/s390x"]),
                "not for this node: it has linux/arm64, linux/s390x (--platform takes others)",
            ),
            (
                Skip::Unnamed,
                "it has no usable name: give it one with --name DIGEST=REFERENCE",
            ),
            (
                Skip::Artifact("a chart".to_owned()),
                "not a container image but a chart",
            ),
            (
                Skip::Outranked,
                "another image of the bundle has the same name and suits this node better",
            ),
        ] {
            assert_eq!(skip.to_string(), text);
        }
    }

    #[test]
    fn layers_are_told_by_their_media_types_as_containerd_tells_them() {
        for (media_type, expected) in [
            ("application/vnd.oci.image.layer.v1.tar+gzip", true),
            ("application/vnd.oci.image.layer.nondistributable.v1.tar", true),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", true),
            ("application/vnd.docker.image.rootfs.foreign.diff.tar", true),
            ("application/vnd.erofs.layer.v1", true),
            ("application/vnd.erofs.layer.v2", false),
            ("application/vnd.oci.image.config.v1+json", false),
            ("application/vnd.in-toto+json", false),
        ] {
            let descriptor = Descriptor::new(media_type.into(), 7, digest("sha256", 64));
            assert_eq!(is_layer(&descriptor), expected, "{media_type}");
        }
    }

    #[test]
    fn blobs_may_be_named_by_their_sha512_from_2_3_on_and_where_there_is_no_number() {
        let table = [
            ("1.7.24", false),
            ("2.2.9", false),
            ("2.3.0", true),
            ("v2.4.2-k3s1", true),
            ("", true),
        ];
        for (text, expected) in table {
            let version = Version::parse(text);
            assert_eq!(takes_sha512(&version), expected, "{text}");
        }
    }
}
