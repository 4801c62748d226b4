//! The part of an image that can be exported: the wanted platforms that are whole in containerd.
//! Pure.

use std::collections::HashSet;
use std::sync::Arc;

use bundle::write::DraftImage;
use bundle::{Content, Kind, Manifest, Node, PartState};
use import::Judgement;
use import::content::CONTAINERD;
use import::select::{in_words, platform_text, problems_in};
use oci_spec::image::Digest;
use platforms::Wanted;
use serde::Serialize;

use super::stock::{Stock, Wish};

/// Hint for an image whose layers containerd has discarded.
const DISCARDED: &str = "its layers were discarded after unpacking (discard_unpacked_layers in containerd's \
                         configuration): import or pull it again without that setting";

/// The wanted platforms, each by itself.
#[derive(Clone, Debug)]
pub(super) enum Platforms {
    /// All complete platforms.
    All,
    /// The best manifest for each of these.
    These(Vec<(String, Wanted)>),
}

/// The exported part of an image.
#[derive(Debug)]
pub(super) struct Choice {
    pub(super) wish: Wish,
    pub(super) draft: DraftImage,
    /// Platforms in the exported part.
    pub(super) platforms: Vec<String>,
    /// Wanted platforms that are not whole, in sentences.
    pub(super) absent: Vec<String>,
    /// Platforms that the image offers and the bundle lacks.
    pub(super) left_out: Vec<LeftOut>,
}

/// A manifest of an index that is not exported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct LeftOut {
    platform: String,
    digest: String,
    pub(crate) reason: String,
}

/// Chooses the complete platforms of an image.
///
/// # Errors
///
/// Returns the reasons why no part of the image can be exported, in sentences.
pub(super) fn choose(
    wish: Wish,
    root: &Node,
    platforms: &Platforms,
    stock: &Stock,
) -> Result<Choice, Vec<String>> {
    let mut held = Held::default();
    match platforms {
        Platforms::All => held.add("", &judge_whole(root, CONTAINERD)),
        Platforms::These(each) => {
            for (platform, wanted) in each {
                held.add(platform, &import::judge(root, wanted, CONTAINERD));
            }
        }
    }
    if matches!(platforms, Platforms::All) && held.blobs.is_empty() {
        held.absent.extend(
            left_out(root, &held.blobs, CONTAINERD)
                .into_iter()
                .map(|left| left.reason),
        );
    }
    if !held.absent.is_empty() && lost_its_layers(root, stock) {
        held.absent.push(DISCARDED.to_owned());
    }
    if held.blobs.is_empty() {
        return Err(held.absent);
    }
    let names = wish.names.iter().cloned().collect();
    Ok(Choice {
        draft: DraftImage::part(names, root, &held.blobs),
        platforms: held.platforms,
        absent: held.absent,
        left_out: left_out(root, &held.blobs, CONTAINERD),
        wish,
    })
}

/// The complete parts of all requested platforms.
#[derive(Default)]
struct Held {
    blobs: HashSet<Digest>,
    platforms: Vec<String>,
    absent: Vec<String>,
}

impl Held {
    fn add(&mut self, wanted: &str, judgement: &Judgement) {
        match judgement {
            Judgement::Whole(closure) => {
                self.blobs
                    .extend(closure.blobs.iter().map(|blob| blob.digest.clone()));
                for platform in &closure.platforms {
                    if !self.platforms.contains(platform) {
                        self.platforms.push(platform.clone());
                    }
                }
            }
            Judgement::Broken(problems) => self.absent.extend(problems.iter().map(ToString::to_string)),
            Judgement::Artifact(kind) => self
                .absent
                .push(format!("it is not a container image but {kind}")),
            Judgement::Foreign(_) if wanted.is_empty() => {}
            Judgement::Foreign(offered) if offered.is_empty() => {
                self.absent.push(format!("it has nothing for {wanted}"));
            }
            Judgement::Foreign(offered) => {
                self.absent.push(format!(
                    "it has nothing for {wanted}, but for {}",
                    offered.join(", ")
                ));
            }
        }
    }
}

/// Judges an image without its incomplete manifests.
pub(crate) fn judge_whole(root: &Node, place: &'static str) -> Judgement {
    let mut rest = root.clone();
    if let Content::Index(children) = &mut rest.content {
        Arc::make_mut(children)
            .iter_mut()
            .for_each(|child| take_away_broken(child, place));
    }
    import::judge(&rest, &Wanted::All { rules: Vec::new() }, place)
}

fn take_away_broken(node: &mut Node, place: &str) {
    if let Content::Index(children) = &mut node.content {
        Arc::make_mut(children)
            .iter_mut()
            .for_each(|child| take_away_broken(child, place));
    } else if problem(node, place).is_some() {
        node.content = Content::Absent;
    }
}

/// Returns the reason why a manifest is not whole, `None` if it is.
fn problem(node: &Node, place: &str) -> Option<String> {
    match &node.content {
        Content::Manifest(manifest) => {
            let problems = problems_in(place, node, manifest);
            (!problems.is_empty()).then(|| in_words(&problems))
        }
        Content::Absent => Some(format!(
            "{}: {} is not in {place}",
            platform_text(node),
            node.descriptor.digest()
        )),
        Content::Broken(reason) => Some(format!("{}: {reason}", platform_text(node))),
        Content::Index(_) | Content::Other => None,
    }
}

/// Returns the manifests below an index that are not among the blobs, with the reasons.
pub(crate) fn left_out(root: &Node, blobs: &HashSet<Digest>, place: &str) -> Vec<LeftOut> {
    let Content::Index(children) = &root.content else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for node in children.iter() {
        found.extend(left_out(node, blobs, place));
        if matches!(node.content, Content::Index(_)) || blobs.contains(node.descriptor.digest()) {
            continue;
        }
        found.push(LeftOut {
            platform: platform_text(node),
            digest: node.descriptor.digest().to_string(),
            reason: problem(node, place).unwrap_or_else(|| "not asked for".to_owned()),
        });
    }
    found
}

/// Returns true if an image was unpacked and has lost its layers since.
fn lost_its_layers(node: &Node, stock: &Stock) -> bool {
    match &node.content {
        Content::Index(children) => children.iter().any(|child| lost_its_layers(child, stock)),
        Content::Manifest(manifest) => {
            manifest.kind == Kind::Image
                && stock.was_unpacked(manifest.config.descriptor.digest())
                && lacks_layers(manifest)
        }
        Content::Other | Content::Absent | Content::Broken(_) => false,
    }
}

fn lacks_layers(manifest: &Manifest) -> bool {
    manifest
        .layers
        .iter()
        .any(|layer| layer.state == PartState::Absent)
}
