//! The images of k0s itself, by a cluster configuration and the image set of a release.
//!
//! Order, defaults and conditions are those of `k0s airgap list-images`. They changed twice, as
//! [`Listing`] describes.

mod config;
mod sets;

pub use config::{ClusterConfig, PullPolicies, parse, startup_config};
pub use sets::{
    ImageSet, Listing, Origin, UnknownRelease, builtin, is_of_release, newest, parse_sets, preview,
};

use config::{Balancer, Provider};
use platforms::{Platform, Rules};

/// A part of k0s that runs from an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "named as in k0s's configuration")]
pub enum Component {
    Pause,
    Konnectivity,
    KubeProxy,
    CoreDns,
    MetricsServer,
    PushGateway,
    KubeRouterCniInstaller,
    KubeRouterCni,
    CalicoCni,
    CalicoKubeControllers,
    CalicoNode,
    EnvoyProxy,
    Traefik,
    WindowsPause,
    WindowsKubeProxy,
    CalicoWindowsCni,
    CalicoWindowsNode,
}

impl Component {
    /// All components.
    pub const ALL: [Component; 17] = [
        Component::Pause,
        Component::Konnectivity,
        Component::KubeProxy,
        Component::CoreDns,
        Component::MetricsServer,
        Component::PushGateway,
        Component::KubeRouterCniInstaller,
        Component::KubeRouterCni,
        Component::CalicoCni,
        Component::CalicoKubeControllers,
        Component::CalicoNode,
        Component::EnvoyProxy,
        Component::Traefik,
        Component::WindowsPause,
        Component::WindowsKubeProxy,
        Component::CalicoWindowsCni,
        Component::CalicoWindowsNode,
    ];

    /// Returns its key in an image set.
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Component::Pause => "pause",
            Component::Konnectivity => "konnectivity",
            Component::KubeProxy => "kubeproxy",
            Component::CoreDns => "coredns",
            Component::MetricsServer => "metricsserver",
            Component::PushGateway => "pushgateway",
            Component::KubeRouterCniInstaller => "kuberouter.cniInstaller",
            Component::KubeRouterCni => "kuberouter.cni",
            Component::CalicoCni => "calico.cni",
            Component::CalicoKubeControllers => "calico.kubecontrollers",
            Component::CalicoNode => "calico.node",
            Component::EnvoyProxy => "envoyProxy",
            Component::Traefik => "traefik",
            Component::WindowsPause => "windows.pause",
            Component::WindowsKubeProxy => "windows.kubeproxy",
            Component::CalicoWindowsCni => "calico.windows.cni",
            Component::CalicoWindowsNode => "calico.windows.node",
        }
    }

    /// Returns the field of a cluster configuration that overrides it.
    #[must_use]
    pub fn field(self) -> String {
        match self {
            Component::EnvoyProxy | Component::Traefik => {
                format!("spec.network.nodeLocalLoadBalancing.{}.image", self.key())
            }
            _ => format!("spec.images.{}", self.key()),
        }
    }
}

/// An image that k0s runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needed {
    /// The component that it is for.
    pub component: Component,
    /// Reference of the image.
    pub reference: String,
    /// Pull policy that k0s sets in its pod.
    pub pull_policy: String,
}

/// Reason why there is no list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unlisted {
    /// The set has no image for a component that the configuration needs.
    #[error("{} needs an image for {key}, and k0s {release} has none", .field)]
    NoImage {
        /// The field of the configuration.
        field: String,
        /// The component.
        key: &'static str,
        /// The release.
        release: String,
    },
    /// k0s does not run on this platform.
    #[error("k0s {release} has no images for {platform}: it runs on linux and windows")]
    NoPlatform {
        /// The platform.
        platform: String,
        /// The release.
        release: String,
    },
}

/// Returns the images that a cluster with this configuration needs on nodes of this platform.
///
/// They have the order of `k0s airgap list-images`. `all` adds the images that the configuration
/// does not use.
///
/// # Errors
///
/// Returns [`Unlisted`] if the image set lacks an image or the platform.
pub fn images(
    config: &ClusterConfig,
    set: &ImageSet,
    platform: &Platform,
    all: bool,
) -> Result<Vec<Needed>, Unlisted> {
    let platform = platform.normalized(Rules::Rc3);
    let components = match (platform.os.as_str(), set.listing) {
        ("linux", Listing::Early | Listing::Fixed) => fixed(config, set, &platform, all),
        ("linux" | "windows", _) => by_platform(config, set, &platform, all),
        _ => {
            return Err(Unlisted::NoPlatform {
                platform: platform.to_string(),
                release: set.release.clone(),
            });
        }
    };
    components
        .into_iter()
        .map(|component| needed(config, set, component))
        .collect()
}

/// Returns the list of k0s up to 1.35: the images of both networks, even though only one is
/// configured.
fn fixed(config: &ClusterConfig, set: &ImageSet, platform: &Platform, all: bool) -> Vec<Component> {
    let mut components = vec![
        Component::CalicoCni,
        Component::CalicoKubeControllers,
        Component::CalicoNode,
        Component::CoreDns,
        Component::Konnectivity,
        Component::KubeProxy,
        Component::KubeRouterCni,
        Component::KubeRouterCniInstaller,
        Component::MetricsServer,
        Component::Pause,
    ];
    if all && set.listing == Listing::Fixed {
        components.push(Component::PushGateway);
    }
    match config.balancer {
        Balancer::Envoy if (all || config.balancing) && platform.architecture != "arm" => {
            components.push(Component::EnvoyProxy);
        }
        Balancer::Traefik if config.balancing => components.push(Component::Traefik),
        Balancer::Envoy | Balancer::Traefik => {}
    }
    components
}

/// Returns the list of k0s from 1.36: the images that the configuration uses on the platform.
fn by_platform(config: &ClusterConfig, set: &ImageSet, platform: &Platform, all: bool) -> Vec<Component> {
    let is_linux = platform.os == "linux";
    let mut components = if is_linux {
        vec![
            Component::Pause,
            Component::Konnectivity,
            Component::KubeProxy,
            Component::CoreDns,
            Component::MetricsServer,
        ]
    } else {
        vec![Component::WindowsPause, Component::WindowsKubeProxy]
    };
    if all && is_linux {
        components.push(Component::PushGateway);
    }
    if (all || config.provider == Provider::KubeRouter) && is_linux {
        components.extend([Component::KubeRouterCniInstaller, Component::KubeRouterCni]);
    }
    if all || config.provider == Provider::Calico {
        components.extend(match is_linux {
            true => &[
                Component::CalicoCni,
                Component::CalicoKubeControllers,
                Component::CalicoNode,
            ][..],
            false => &[Component::CalicoWindowsCni, Component::CalicoWindowsNode],
        });
    }
    let balances_with = |balancer| config.balancing && config.balancer == balancer;
    let has_envoy = is_linux && !matches!(platform.architecture.as_str(), "arm" | "riscv64");
    if (all || balances_with(Balancer::Envoy)) && has_envoy {
        components.push(Component::EnvoyProxy);
    }
    // With `all`, an image that the set lacks is no error.
    let has_traefik = set.image(Component::Traefik).is_some();
    if all && has_traefik || balances_with(Balancer::Traefik) {
        components.push(Component::Traefik);
    }
    components
}

fn needed(config: &ClusterConfig, set: &ImageSet, component: Component) -> Result<Needed, Unlisted> {
    let is_constant = set.listing == Listing::Early && component == Component::Pause;
    let given = config.overrides.get(&component).filter(|_| !is_constant);
    let default = set.image(component);
    let name = given
        .and_then(|given| given.image.as_deref())
        .or(default.map(|image| image.name.as_str()));
    let version = given
        .and_then(|given| given.version.as_deref())
        .or(default.map(|image| image.version.as_str()));
    let (Some(name), Some(version)) = (name, version) else {
        return Err(Unlisted::NoImage {
            field: component.field(),
            key: component.key(),
            release: set.release.clone(),
        });
    };
    let repository = config.repository.as_deref();
    let repository = repository.filter(|_| !is_constant && is_movable(config, set, component));
    let name = repository.map_or_else(|| name.to_owned(), |at| moved(name, at));
    Ok(Needed {
        component,
        reference: format!("{name}:{version}"),
        pull_policy: config.policies.of(component).to_owned(),
    })
}

/// Returns false for the load balancer that the configuration neither uses nor mentions. k0s 1.36
/// and later list its image with `--all`, and leave it in its own repository. Source: k0s,
/// `overrideImageRepositories` in `pkg/apis/k0s/v1beta1/clusterconfig_types.go`.
fn is_movable(config: &ClusterConfig, set: &ImageSet, component: Component) -> bool {
    let is_balancer = matches!(component, Component::EnvoyProxy | Component::Traefik);
    set.listing != Listing::ByPlatform
        || !is_balancer
        || config.balancer.component() == component
        || config.balancers.contains(&component)
}

/// Returns an image name in another repository, by k0s's rule.
///
/// The repository replaces the host, or precedes a name without a host. A name that already starts
/// with the repository stays.
fn moved(name: &str, repository: &str) -> String {
    if name.starts_with(repository) {
        return name.to_owned();
    }
    match name.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => {
            format!("{repository}/{path}")
        }
        _ => format!("{repository}/{name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_takes_the_place_of_the_host() {
        for (name, expected) in [
            ("quay.io/k0sproject/pause", "r.local/x/k0sproject/pause"),
            ("localhost/pause", "r.local/x/pause"),
            ("host:5000/a/b", "r.local/x/a/b"),
            ("library/pause", "r.local/x/library/pause"),
            ("pause", "r.local/x/pause"),
            ("r.local/x/a", "r.local/x/a"),
        ] {
            assert_eq!(moved(name, "r.local/x"), expected, "{name}");
        }
    }

    #[test]
    fn every_component_is_a_key_of_its_own() {
        let mut keys: Vec<_> = Component::ALL.iter().map(|component| component.key()).collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), Component::ALL.len());
    }
}
