//! The images in Kubernetes manifests: containers of all three kinds and image volumes, in every
//! pod template.
//!
//! Objects of the built-in kinds have their pod template at a known path (Kubernetes API reference,
//! `PodSpec`). A value of the wrong type there is a mistake. Any other object may be a custom
//! resource. In it, each mapping with a list of containers that have images counts as a pod spec. A
//! document that is not a Kubernetes object (a chart's values, a CI file) has no images.

use std::cell::RefCell;

use crate::reader::Reader;
use crate::tree::{self, HELM, Tree};
use crate::{Limits, Problem};

/// The containers of a pod spec, by kind.
const CONTAINERS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

/// An image that an object requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    /// Reference as written.
    pub reference: String,
    /// Object that requests it: `Deployment shop/web`.
    pub object: String,
    /// Path to the reference within the object: `spec.template.spec.containers[0].image`.
    pub field: String,
    /// Pull policy in the object, if any.
    pub pull_policy: Option<String>,
}

impl Use {
    /// Returns the pull policy that kubelet uses.
    ///
    /// If the object has none, the tag `latest` (or no tag and no digest) means `Always`. Any other
    /// reference means `IfNotPresent` (Kubernetes documentation, "Images").
    #[must_use]
    pub fn effective_policy(&self) -> &str {
        if let Some(policy) = &self.pull_policy {
            return policy;
        }
        let name = self.reference.rsplit('/').next().unwrap_or_default();
        let is_pinned = name.contains('@');
        match name.split_once(':') {
            None if !is_pinned => "Always",
            Some((_, "latest")) => "Always",
            _ => "IfNotPresent",
        }
    }
}

/// The images and mistakes in a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Images in the order of the text.
    pub uses: Vec<Use>,
    /// Number of Kubernetes objects.
    pub objects: usize,
    /// Mistakes in the text.
    pub problems: Vec<Problem>,
    /// Possible mistakes: the images that a Kustomization puts in are not in its source files.
    pub notes: Vec<String>,
}

/// Reads the manifests of a text: YAML or JSON, one document or many. The items of `List` objects
/// are read one by one.
#[must_use]
pub fn read(text: &str, limits: &Limits) -> Found {
    let (documents, problems) = tree::documents(text, limits);
    let mut found = Found {
        problems,
        ..Found::default()
    };
    for document in &documents {
        let before = found.problems.len();
        found.object(&document.tree, None);
        for problem in &mut found.problems[before..] {
            problem.line.get_or_insert(document.line);
        }
    }
    found.reject_templates(text);
    found
}

impl Found {
    /// Reads one object. `item_kind` is the kind of an item in a typed list, which may omit its
    /// own.
    fn object(&mut self, tree: &Tree, item_kind: Option<&str>) {
        let Tree::Map(members) = tree else { return };
        let kind = tree.text("kind").or(item_kind);
        let api_version = tree.text("apiVersion");
        let (Some(kind), true) = (kind, api_version.is_some() || item_kind.is_some()) else {
            return;
        };
        if let (Some(item_kind), Some(Tree::List(items))) = (kind.strip_suffix("List"), tree.get("items")) {
            let item_kind = Some(item_kind).filter(|kind| !kind.is_empty());
            items.iter().for_each(|item| self.object(item, item_kind));
            return;
        }
        self.objects += 1;
        let group = api_version
            .and_then(|version| version.split_once('/'))
            .map_or("", |(group, _)| group);
        let object = object_name(kind, tree);
        if kind == "Kustomization" && tree.get("images").is_some() {
            self.notes.push(format!(
                "{object} replaces images: give the output of `kubectl kustomize` instead of its sources"
            ));
        }
        match pod_spec_path(group, kind) {
            Some(path) => self.pod_spec(&object, &path, tree),
            None if kind == "CustomResourceDefinition" => {}
            None => members
                .iter()
                .for_each(|(key, value)| self.search(&object, key, value)),
        }
    }

    /// Searches a resource of an unknown kind for pod specs.
    fn search(&mut self, object: &str, path: &str, tree: &Tree) {
        match tree {
            Tree::Map(members) => {
                if looks_like_pod_spec(tree) {
                    self.take(object, path, tree);
                }
                for (key, value) in members {
                    self.search(object, &format!("{path}.{key}"), value);
                }
            }
            Tree::List(list) => {
                for (at, value) in list.iter().enumerate() {
                    self.search(object, &format!("{path}[{at}]"), value);
                }
            }
            Tree::Null | Tree::Bool(_) | Tree::Number(_) | Tree::Text(_) => {}
        }
    }

    fn pod_spec(&mut self, object: &str, path: &[&str], tree: &Tree) {
        let problems = RefCell::default();
        let prefix = format!("{object}: ");
        let spec = Reader::new(tree, &prefix, &problems).at(path);
        self.uses.extend(uses(&spec, object));
        self.problems.extend(problems.into_inner());
    }

    /// Takes the images of a pod spec in a custom resource. Values of a wrong type are no mistake
    /// there.
    fn take(&mut self, object: &str, path: &str, tree: &Tree) {
        let ignored = RefCell::default();
        let spec = Reader::new(tree, &format!("{object}: {path}"), &ignored);
        self.uses.extend(uses(&spec, object));
    }

    /// Turns references with template actions into mistakes, with their line in the text.
    fn reject_templates(&mut self, text: &str) {
        let (templates, uses) = std::mem::take(&mut self.uses)
            .into_iter()
            .partition(|found: &Use| found.reference.contains("{{") || found.reference.contains("${"));
        self.uses = uses;
        let problem = |found: Use| Problem {
            line: text
                .lines()
                .position(|line| line.contains(&found.reference))
                .map(|at| at + 1),
            at: format!("{}: {}", found.object, found.field),
            reason: format!("is a template, not an image reference: {HELM}"),
        };
        self.problems.extend(Vec::into_iter(templates).map(problem));
    }
}

/// Returns the kind and name, as `Deployment shop/web`. Without a name it is the kind alone.
fn object_name(kind: &str, tree: &Tree) -> String {
    let metadata = tree.get("metadata").unwrap_or(&Tree::Null);
    let name = metadata.text("name").or_else(|| metadata.text("generateName"));
    match (metadata.text("namespace"), name) {
        (Some(namespace), Some(name)) => format!("{kind} {namespace}/{name}"),
        (None, Some(name)) => format!("{kind} {name}"),
        (_, None) => kind.to_owned(),
    }
}

/// Returns the path to the pod spec of a built-in workload, `None` for an unknown kind.
fn pod_spec_path(group: &str, kind: &str) -> Option<Vec<&'static str>> {
    let template = vec!["spec", "template", "spec"];
    match (group, kind) {
        ("", "Pod") => Some(vec!["spec"]),
        ("", "PodTemplate") => Some(vec!["template", "spec"]),
        ("", "ReplicationController")
        | ("apps" | "extensions", "Deployment" | "DaemonSet" | "StatefulSet" | "ReplicaSet")
        | ("batch" | "extensions", "Job") => Some(template),
        ("batch", "CronJob") => Some(vec!["spec", "jobTemplate", "spec", "template", "spec"]),
        // Items of a typed list have no group.
        ("", "Deployment" | "DaemonSet" | "StatefulSet" | "ReplicaSet" | "Job") => Some(template),
        ("", "CronJob") => Some(vec!["spec", "jobTemplate", "spec", "template", "spec"]),
        _ => None,
    }
}

fn looks_like_pod_spec(tree: &Tree) -> bool {
    CONTAINERS.iter().any(|key| match tree.get(key) {
        Some(Tree::List(list)) => list.iter().any(|container| container.text("image").is_some()),
        _ => false,
    })
}

/// Returns the images of a pod spec.
fn uses(spec: &Reader<'_>, object: &str) -> Vec<Use> {
    let mut found = Vec::new();
    let mut take = |reference: &Reader<'_>, policy: &Reader<'_>| {
        if let Some(text) = reference.text() {
            let field = reference.path().strip_prefix(object).unwrap_or(reference.path());
            found.push(Use {
                reference: text.trim().to_owned(),
                object: object.to_owned(),
                field: field.trim_start_matches(": ").to_owned(),
                pull_policy: policy.text().map(str::to_owned),
            });
        }
    };
    for container in CONTAINERS.iter().flat_map(|kind| spec.get(kind).elements()) {
        take(&container.get("image"), &container.get("imagePullPolicy"));
    }
    for volume in spec.get("volumes").elements() {
        let image = volume.get("image");
        take(&image.get("reference"), &image.get("pullPolicy"));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn references(text: &str) -> Vec<String> {
        let found = read(text, &Limits::default());
        assert_eq!(found.problems, [], "{text}");
        found.uses.into_iter().map(|found| found.reference).collect()
    }

    fn problems(text: &str) -> Vec<String> {
        let problems = read(text, &Limits::default()).problems;
        problems.iter().map(ToString::to_string).collect()
    }

    const SPEC: &str = "{initContainers: [{image: i}], containers: [{image: c}, {name: no image}], \
        ephemeralContainers: [{image: e}], volumes: [{name: x, image: {reference: v}}, {emptyDir: {}}]}";

    #[test]
    fn every_workload_kind_is_known() {
        let template = format!("spec: {{template: {{spec: {SPEC}}}}}");
        let cron = format!("spec: {{jobTemplate: {{{template}}}}}");
        for (head, body) in [
            ("{apiVersion: v1, kind: Pod", format!("spec: {SPEC}")),
            (
                "{apiVersion: v1, kind: PodTemplate",
                format!("template: {{spec: {SPEC}}}"),
            ),
            ("{apiVersion: v1, kind: ReplicationController", template.clone()),
            ("{apiVersion: apps/v1, kind: Deployment", template.clone()),
            (
                "{apiVersion: extensions/v1beta1, kind: Deployment",
                template.clone(),
            ),
            ("{apiVersion: apps/v1, kind: DaemonSet", template.clone()),
            ("{apiVersion: apps/v1, kind: StatefulSet", template.clone()),
            ("{apiVersion: apps/v1, kind: ReplicaSet", template.clone()),
            ("{apiVersion: batch/v1, kind: Job", template.clone()),
            ("{apiVersion: batch/v1, kind: CronJob", cron.clone()),
            ("{apiVersion: batch/v1beta1, kind: CronJob", cron),
            // Custom resources.
            (
                "{apiVersion: argoproj.io/v1alpha1, kind: Rollout",
                template.clone(),
            ),
            (
                "{apiVersion: example.com/v1, kind: Thing",
                format!("spec: {{deep: [{{podSpec: {SPEC}}}]}}"),
            ),
        ] {
            let object = format!("{head}, metadata: {{name: n, namespace: s}}, {body}}}");
            assert_eq!(references(&object), ["i", "c", "e", "v"], "{object}");
            let list = format!("apiVersion: v1\nkind: List\nitems:\n- {object}\n- {object}\n");
            assert_eq!(references(&list).len(), 8, "{list}");
        }
        let typed = format!(
            "apiVersion: apps/v1\nkind: DeploymentList\nitems: [{{metadata: {{name: n}}, {template}}}]"
        );
        assert_eq!(references(&typed).len(), 4, "{typed}");
    }

    #[test]
    fn uses_say_where_they_are() {
        let text = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web, namespace: shop}\nspec: {template: {spec: \
            {containers: [{image: a, imagePullPolicy: Never}, {image: 'b:1'}], volumes: [{image: {reference: c, pullPolicy: Always}}]}}}";
        let found = read(text, &Limits::default());
        let rows: Vec<_> = found
            .uses
            .iter()
            .map(|found| {
                (
                    found.object.as_str(),
                    found.field.as_str(),
                    found.effective_policy(),
                )
            })
            .collect();
        let object = "Deployment shop/web";
        assert_eq!(
            rows,
            [
                (object, "spec.template.spec.containers[0].image", "Never"),
                (object, "spec.template.spec.containers[1].image", "IfNotPresent"),
                (object, "spec.template.spec.volumes[0].image.reference", "Always"),
            ]
        );
    }

    #[test]
    fn the_policy_that_is_not_given_follows_from_the_tag() {
        for (reference, policy) in [
            ("a", "Always"),
            ("a:latest", "Always"),
            ("host:5000/a", "Always"),
            ("host:5000/a:1", "IfNotPresent"),
            ("a@sha256:00", "IfNotPresent"),
            ("a:1@sha256:00", "IfNotPresent"),
        ] {
            let found = Use {
                reference: reference.to_owned(),
                object: String::new(),
                field: String::new(),
                pull_policy: None,
            };
            assert_eq!(found.effective_policy(), policy, "{reference}");
        }
    }

    #[test]
    fn what_is_no_workload_has_no_images() {
        for text in [
            "image: {repository: a, tag: b}\ncontainers: [{image: x}]\n",
            "apiVersion: v1\nkind: ConfigMap\ndata: {a: 'spec: {{ .Values.x }}'}\n",
            "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nspec: {containers: [{image: x}]}\n",
            "- a\n- b\n",
            "plain text",
            "apiVersion: v1\nkind: Pod\nspec:\n",
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: patch}\n",
            "apiVersion: v1\nkind: List\nitems: []\n",
        ] {
            assert!(references(text).is_empty(), "{text}");
        }
    }

    #[test]
    fn wrong_types_are_named_by_their_path_and_templates_by_their_line() {
        let rows = [
            (
                "spec: {containers: [{image: 1.2}]}",
                "line 1: Pod p: spec.containers[0].image must be text, not a number: put it in quotes",
            ),
            (
                "spec: {containers: {image: a}}",
                "line 1: Pod p: spec.containers must be a list, not a mapping",
            ),
            ("spec: [a]", "line 1: Pod p: spec must be a mapping, not a list"),
            (
                "spec: {containers: [a]}",
                "line 1: Pod p: spec.containers[0] must be a mapping, not text",
            ),
            (
                "spec:\n  containers:\n  - image: \"{{ .Values.image }}\"",
                "line 6: Pod p: spec.containers[0].image is a template, not an image reference: render it first, with `helm template` for a chart",
            ),
        ];
        for (spec, expected) in rows {
            let text = format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\n{spec}\n");
            let found: Vec<String> = problems(&text).into_iter().collect();
            assert!(
                found.iter().all(|problem| problem == expected) && !found.is_empty(),
                "{found:?}"
            );
        }
        let flow = "apiVersion: v1\nkind: Pod\nspec:\n  containers:\n  - image: {{ .Values.image }}\n";
        let found = problems(flow);
        assert!(
            found[0].contains("line 5") && found[0].contains("helm template"),
            "{found:?}"
        );
    }

    #[test]
    fn a_kustomization_that_replaces_images_is_noted() {
        let text = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nimages: [{name: a, newTag: b}]\n";
        assert_eq!(read(text, &Limits::default()).notes.len(), 1);
    }
}
