//! The images of k0s itself: what a cluster configuration asks for, given the image set of a
//! release.
//!
//! Order, defaults and conditions are those of `k0s airgap list-images`. They changed with 1.36,
//! and [`Listing`] says how.

mod config;
mod sets;

pub use config::{ClusterConfig, PullPolicies, parse};
pub use sets::{ImageSet, Listing, Origin, UnknownRelease, builtin, newest, parse_sets};

use config::{Balancer, Provider};
use platforms::{Platform, Rules};

/// A part of k0s that is an image.
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
    /// All of them.
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

    /// What it is called in an image set.
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

    /// Where a cluster configuration overrides it.
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

/// An image that k0s brings up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needed {
    /// What it is for.
    pub component: Component,
    /// The reference.
    pub reference: String,
    /// The policy that k0s gives its pod.
    pub pull_policy: String,
}

/// Why there is no list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unlisted {
    /// The set has no image for something that the configuration wants.
    #[error("{} wants an image for {key} (k0s {release} has none)", .field)]
    NoImage {
        /// The field of the configuration.
        field: String,
        /// The component.
        key: &'static str,
        /// The release.
        release: String,
    },
    /// k0s does not run there.
    #[error("k0s {release} has no images for {platform}: it runs on linux and windows")]
    NoPlatform {
        /// The platform.
        platform: String,
        /// The release.
        release: String,
    },
}

/// The images that a cluster with this configuration needs on nodes of this platform, in the order
/// of `k0s airgap list-images`; with `all` also those that the configuration does not use.
///
/// # Errors
///
/// [`Unlisted`] when the image set cannot answer.
pub fn images(
    config: &ClusterConfig,
    set: &ImageSet,
    platform: &Platform,
    all: bool,
) -> Result<Vec<Needed>, Unlisted> {
    let platform = platform.normalized(Rules::Rc3);
    let components = match (platform.os.as_str(), set.listing) {
        ("linux", Listing::Fixed) => fixed(config, &platform, all),
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

/// The list up to 1.35: everything for both networks, whichever is configured.
fn fixed(config: &ClusterConfig, platform: &Platform, all: bool) -> Vec<Component> {
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
    if all {
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

/// The list from 1.36 on: what the configuration uses on the platform.
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
    // Where everything is asked for, what a set does not have is not missed.
    let has_traefik = set.image(Component::Traefik).is_some();
    if all && has_traefik || balances_with(Balancer::Traefik) {
        components.push(Component::Traefik);
    }
    components
}

fn needed(config: &ClusterConfig, set: &ImageSet, component: Component) -> Result<Needed, Unlisted> {
    let given = config.overrides.get(&component);
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
    let name = config
        .repository
        .as_deref()
        .map_or_else(|| name.to_owned(), |at| moved(name, at));
    Ok(Needed {
        component,
        reference: format!("{name}:{version}"),
        pull_policy: config.policies.of(component).to_owned(),
    })
}

/// An image name in another repository, by k0s's rule: the repository takes the place of the host,
/// or stands before a name without one; a name that begins with it stays.
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
