//! The part of k0s's cluster configuration that decides which images are needed.
//!
//! Other fields are ignored. Known fields must have the right type. Source: k0s documentation,
//! "Configuration options".

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use super::Component;
use crate::reader::Reader;
use crate::tree::{self, Tree};
use crate::{Limits, Problem, Problems};

/// The settings of a cluster configuration that concern images.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterConfig {
    /// Images that replace a release's own, in whole or in part.
    pub(super) overrides: BTreeMap<Component, ImageOverride>,
    /// `spec.images.repository`.
    pub repository: Option<String>,
    /// Pull policies of k0s's own pods.
    pub policies: PullPolicies,
    /// Provider of the network.
    pub(super) provider: Provider,
    /// True if worker nodes balance the load of the API servers themselves.
    pub(super) balancing: bool,
    /// Load balancer of the worker nodes.
    pub(super) balancer: Balancer,
    /// Load balancers that have a mapping of their own.
    pub(super) balancers: BTreeSet<Component>,
    /// The same configuration in JSON, if it was found in one of k0sctl. k0s itself does not read
    /// files of k0sctl.
    pub of_k0sctl: Option<String>,
    /// Release of k0s, if a configuration of k0sctl names it.
    pub release: Option<String>,
    /// Values that k0s reads in another way.
    pub notes: Vec<String>,
}

/// `image` and `version` of a component.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ImageOverride {
    /// Name without a tag.
    pub(super) image: Option<String>,
    /// Tag, with or without a digest.
    pub(super) version: Option<String>,
}

/// `spec.network.provider`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Provider {
    /// `kuberouter`, the default.
    #[default]
    KubeRouter,
    /// `calico`.
    Calico,
    /// `custom`: the operator installs the network and its images.
    Custom,
}

/// `spec.network.nodeLocalLoadBalancing.type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Balancer {
    /// `EnvoyProxy`, the default.
    #[default]
    Envoy,
    /// `Traefik`, from 1.36 on.
    Traefik,
}

impl Balancer {
    pub(super) fn component(self) -> Component {
        match self {
            Balancer::Envoy => Component::EnvoyProxy,
            Balancer::Traefik => Component::Traefik,
        }
    }
}

/// The pull policies of k0s's own pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PullPolicies {
    /// `spec.images.default_pull_policy`.
    pub default: Option<String>,
    /// Policies of the node-local load balancers, which may differ.
    pub(super) balancers: BTreeMap<Component, String>,
}

impl PullPolicies {
    /// Returns the policy of one component.
    #[must_use]
    pub fn of(&self, component: Component) -> &str {
        let own = self.balancers.get(&component);
        own.or(self.default.as_ref())
            .map_or("IfNotPresent", String::as_str)
    }
}

/// Reads a configuration. An empty text has all defaults.
///
/// It is an object of the kind `ClusterConfig`, the object in a k0sctl configuration, or a document
/// without a kind.
///
/// # Errors
///
/// Returns every value of the wrong type or meaning, with its path.
pub fn parse(text: &str, limits: &Limits) -> Result<ClusterConfig, Problems> {
    let (documents, problems) = tree::documents(text, limits);
    if !problems.is_empty() {
        return Err(Problems(problems));
    }
    let problems = RefCell::new(Vec::new());
    let config = match find(documents.iter().map(|document| &document.tree)) {
        Some((tree, release, prefix)) => ClusterConfig {
            of_k0sctl: (!prefix.is_empty()).then(|| tree.to_json().to_string()),
            release,
            ..read(&Reader::new(tree, prefix, &problems))
        },
        None if documents.is_empty() => ClusterConfig::default(),
        None => {
            problems.borrow_mut().push(Problem {
                line: None,
                at: String::new(),
                reason: "not a k0s configuration: it has no object of the kind ClusterConfig".to_owned(),
            });
            ClusterConfig::default()
        }
    };
    match problems.into_inner() {
        problems if problems.is_empty() => Ok(config),
        problems => Err(Problems(problems)),
    }
}

/// Returns the configuration among the documents, the release that k0sctl gives with it, and the
/// path to it.
fn find<'t>(trees: impl Iterator<Item = &'t Tree>) -> Option<(&'t Tree, Option<String>, &'static str)> {
    let trees: Vec<_> = trees.collect();
    let of_kind = |wanted: Option<&str>| trees.iter().copied().find(|tree| tree.text("kind") == wanted);
    if let Some(tree) = of_kind(Some("ClusterConfig")) {
        return Some((tree, None, ""));
    }
    if let Some(k0s) = of_kind(Some("Cluster")).and_then(|cluster| cluster.get("spec")?.get("k0s")) {
        let release = match k0s.get("version") {
            Some(Tree::Text(version)) => Some(version.clone()),
            _ => None,
        };
        let config = k0s.get("config").filter(|config| **config != Tree::Null);
        return Some((config.unwrap_or(&EMPTY), release, "spec.k0s.config"));
    }
    let bare = of_kind(None).filter(|tree| matches!(tree, Tree::Map(_)))?;
    let has_spec = bare.get("spec").is_some() || *bare == Tree::Map(Vec::new());
    has_spec.then_some((bare, None, ""))
}

/// A configuration with all defaults.
static EMPTY: Tree = Tree::Map(Vec::new());

/// Returns the path of the configuration that a running k0s was started with. `text` is its
/// `k0s.yaml` in `/run/k0s`. Source: k0s, `pkg/config/runtime.go` and `pkg/config/cfgvars.go`.
#[must_use]
pub fn startup_config(text: &str, limits: &Limits) -> Option<String> {
    let (documents, _) = tree::documents(text, limits);
    let spec = documents.first()?.tree.get("spec")?;
    let path = spec.get("k0sVars")?.text("StartupConfigPath")?;
    (!path.is_empty() && path != "-").then(|| path.to_owned())
}

fn read(config: &Reader<'_>) -> ClusterConfig {
    let images = config.at(&["spec", "images"]);
    let network = config.at(&["spec", "network"]);
    let balancing = network.get("nodeLocalLoadBalancing");
    let mut found = ClusterConfig {
        overrides: BTreeMap::new(),
        repository: images
            .get("repository")
            .text()
            .map(|text| text.trim_end_matches('/').to_owned()),
        policies: PullPolicies {
            default: policy(&images.get("default_pull_policy")),
            balancers: BTreeMap::new(),
        },
        provider: provider(&network.get("provider")),
        balancing: balancing.get("enabled").bool().unwrap_or(false),
        balancer: balancer(&balancing.get("type")),
        balancers: BTreeSet::new(),
        of_k0sctl: None,
        release: None,
        notes: Vec::new(),
    };
    let repository = images.get("repository");
    if repository.text().is_some_and(|text| text.ends_with('/')) {
        let path = repository.path();
        found.notes.push(format!(
            "{path} ends with a slash: k0s lists names with two slashes, which no registry has"
        ));
    }
    for component in Component::ALL {
        let given = match component {
            Component::EnvoyProxy | Component::Traefik => {
                let own = balancing.get(component.key());
                if own.is_given() {
                    found.balancers.insert(component);
                }
                if let Some(policy) = policy(&own.get("imagePullPolicy")) {
                    found.policies.balancers.insert(component, policy);
                }
                own.get("image")
            }
            _ => images.at(&component.key().split('.').collect::<Vec<_>>()),
        };
        let (image, version) = (given.get("image"), given.get("version"));
        let given = ImageOverride {
            image: image.text().map(str::to_owned),
            version: version.text().map(str::to_owned),
        };
        if given != ImageOverride::default() {
            found.overrides.insert(component, given);
        }
    }
    found
}

fn provider(given: &Reader<'_>) -> Provider {
    match given.text() {
        None | Some("kuberouter") => Provider::KubeRouter,
        Some("calico") => Provider::Calico,
        Some("custom") => Provider::Custom,
        Some(other) => {
            given.complain(format!("is {other:?}: use kuberouter, calico or custom"));
            Provider::default()
        }
    }
}

fn balancer(given: &Reader<'_>) -> Balancer {
    match given.text() {
        None | Some("EnvoyProxy") => Balancer::Envoy,
        Some("Traefik") => Balancer::Traefik,
        Some(other) => {
            given.complain(format!("is {other:?}: use EnvoyProxy or Traefik"));
            Balancer::default()
        }
    }
}

fn policy(given: &Reader<'_>) -> Option<String> {
    let policy = given.text()?;
    if !matches!(policy, "Always" | "IfNotPresent" | "Never") {
        given.complain(format!("is {policy:?}: use Always, IfNotPresent or Never"));
    }
    Some(policy.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<ClusterConfig, String> {
        parse(text, &Limits::default()).map_err(|problems| problems.to_string())
    }

    #[test]
    fn what_is_not_given_has_its_default_and_unknown_fields_are_fine() {
        for text in [
            "",
            "{}",
            "# nothing\n",
            "apiVersion: k0s.k0sproject.io/v1beta1\nkind: ClusterConfig\n",
            "kind: ClusterConfig\nspec:\n",
            "kind: ClusterConfig\nspec: {images: null, network: {podCIDR: 10.0.0.0/8}, unknown: [1]}\n",
            "kind: Cluster\nspec: {hosts: [], k0s: {dynamicConfig: false}}\n",
        ] {
            let expected = ClusterConfig {
                of_k0sctl: text.contains("hosts").then(|| "{}".to_owned()),
                ..ClusterConfig::default()
            };
            assert_eq!(read(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn every_mistake_is_named_by_its_path() {
        let text = "kind: ClusterConfig\nspec:\n  images:\n    pause: {version: 3.9}\n    coredns: x\n    repository: [a]\n    \
            default_pull_policy: Sometimes\n  network: {provider: cilium, nodeLocalLoadBalancing: {enabled: 'yes', type: Nginx}}\n";
        let error = read(text).unwrap_err();
        for part in [
            "spec.images.pause.version must be text, not a number: put it in quotes",
            "spec.images.coredns must be a mapping, not text",
            "spec.images.repository must be text, not a list",
            "spec.images.default_pull_policy is \"Sometimes\"",
            "spec.network.provider is \"cilium\"",
            "spec.network.nodeLocalLoadBalancing.enabled must be true or false, not text",
            "spec.network.nodeLocalLoadBalancing.type is \"Nginx\"",
        ] {
            assert!(error.contains(part), "{part}\n{error}");
        }
        for text in ["kind: Pod\nspec: {}\n", "- a\n", "text", "images: {}\n"] {
            assert!(
                read(text).unwrap_err().contains("not a k0s configuration"),
                "{text}"
            );
        }
        assert!(
            read("kind: ClusterConfig\nspec: [\n")
                .unwrap_err()
                .contains("line")
        );
    }

    #[test]
    fn the_configuration_within_one_of_k0sctl_is_found_with_its_release() {
        let text = "apiVersion: k0sctl.k0sproject.io/v1beta1\nkind: Cluster\nspec:\n  k0s:\n    version: v1.34.10+k0s.0\n    \
            config: {spec: {network: {provider: calico}, images: {default_pull_policy: Never}}}\n";
        let config = read(text).unwrap();
        assert_eq!(config.release.as_deref(), Some("v1.34.10+k0s.0"));
        assert_eq!(config.provider, Provider::Calico);
        assert_eq!(config.policies.of(Component::Pause), "Never");
        assert_eq!(
            config.of_k0sctl.as_deref(),
            Some(r#"{"spec":{"images":{"default_pull_policy":"Never"},"network":{"provider":"calico"}}}"#)
        );
        let wrong = read(&text.replace("calico", "[calico]")).unwrap_err();
        assert!(wrong.contains("spec.k0s.config.spec.network.provider"), "{wrong}");
    }

    #[test]
    fn a_running_k0s_names_the_configuration_that_it_was_started_with() {
        let running = |path: &str| {
            let text = format!(
                "apiVersion: k0s.k0sproject.io/v1beta1\nkind: RuntimeConfig\nmetadata: {{creationTimestamp: null}}\n\
                 spec:\n  k0sVars:\n    DataDir: /var/lib/k0s\n    StartupConfigPath: {path}\n  nodeConfig: null\n"
            );
            startup_config(&text, &Limits::default())
        };
        assert_eq!(running("/opt/k0s.yaml").as_deref(), Some("/opt/k0s.yaml"));
        assert_eq!(running("'-'"), None);
        assert_eq!(running("''"), None);
        assert_eq!(startup_config("kind: ClusterConfig\n", &Limits::default()), None);
        assert_eq!(startup_config("", &Limits::default()), None);
    }

    #[test]
    fn a_slash_at_the_end_of_the_repository_is_dropped_and_noted() {
        let with =
            |repository: &str| read(&format!("spec: {{images: {{repository: '{repository}'}}}}")).unwrap();
        assert_eq!(with("r.test/a").notes, Vec::<String>::new());
        let config = with("r.test/a/");
        assert_eq!(config.repository.as_deref(), Some("r.test/a"));
        assert!(config.notes[0].starts_with("spec.images.repository ends with a slash"));
    }
}
