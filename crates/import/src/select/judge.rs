//! The judgement whether an image is whole for the wanted platforms, and the choice of its
//! manifests.

use std::collections::HashSet;

use bundle::{Content, Kind, Manifest, Node};
use oci_spec::image::Digest;
use platforms::Wanted;

use super::Rank;
use super::answer::{Answers, hidden};
use super::closure::{Builder, Closure};
use super::node::{is_runnable, leaves, offered, platform_text, stated_platform};
use super::problem::{Problem, absent, broken, node_problems, problems, problems_in};

/// The judgement of an image in a store, where the image already has a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// The store has everything that the image needs to run.
    Whole(Closure),
    /// Nothing in the image runs on this node. The list has its platforms.
    Foreign(Vec<String>),
    /// The image is not a container image. The text is its type.
    Artifact(String),
    /// The image cannot run. Each problem names the platform and the blob.
    Broken(Vec<Problem>),
}

/// Judges an image in a store as [`select`](super::select()) judges images of a bundle. `place` is
/// the store's name, as in "is not in containerd".
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

pub(super) enum Unfit {
    Foreign(Vec<String>),
    Artifact(String),
    Broken(Vec<Problem>),
}

pub(super) struct Walk<'a> {
    pub(super) wanted: &'a Wanted,
    /// True for a Docker archive. It has no descriptors, so the catalog makes them from the
    /// configs.
    pub(super) judge_by_config: bool,
    /// Name of the place with the blobs.
    pub(super) place: &'static str,
}

impl Walk<'_> {
    pub(super) fn root(&self, node: &Node, notes: &mut Vec<String>) -> Result<(Closure, Rank), Unfit> {
        match &node.content {
            Content::Manifest(manifest) => self.single(node, manifest, notes),
            Content::Index(children) => self.index(node, children, notes),
            Content::Other => Err(Unfit::Artifact(node.descriptor.media_type().to_string())),
            Content::Absent => Err(Unfit::Broken(vec![absent(&node.descriptor, self.place)])),
            Content::Broken(flaw) => Err(Unfit::Broken(vec![broken(node, flaw)])),
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
                return Err(Unfit::Artifact(format!(
                    "{artifact_type}, which containerd mounts as a volume from 2.1 on"
                )));
            }
            notes.push(format!(
                "not a container image but {artifact_type}: for image volumes only"
            ));
        }
        let Some(rank) = self.rank(node) else {
            return Err(Unfit::Foreign(vec![platform_text(node)]));
        };
        if stated_platform(node).is_none() {
            notes.push(
                "neither its descriptor nor its config names a platform: taken to be for this node"
                    .to_owned(),
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

    /// Returns the required manifests: those that containerd uses for each wanted platform, or all
    /// of them. All returned manifests are whole.
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

    /// Returns true if a child of an index is taken: it is required, or it suits the node and is
    /// whole.
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

    /// Returns the rank of a manifest among the acceptable platforms, or `None` if it does not
    /// suit.
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
        // Configs lie about variants, and containerd does not check a single manifest when it runs
        // it.
        let loose = matchers
            .iter()
            .any(|matcher| matcher.accepts_loosely(&platform.os, &platform.architecture));
        exact.or(loose.then_some(Rank::MAX))
    }
}
