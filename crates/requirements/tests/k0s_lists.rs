//! The lists of k0s for its defaults and for other configurations, as `k0s airgap list-images`
//! prints them.
//!
//! Source: these files of github.com/k0sproject/k0s, at the tags v1.36.3+k0s.2, v1.34.10+k0s.0 and
//! v1.30.9+k0s.0:
//!
//! - `pkg/airgap/images.go`: which components, in which order.
//! - `cmd/airgap/listimages_test.go`: load balancers, architectures, Windows.
//! - `pkg/constant/constant.go`: the constants.
//! - `docs/configuration.md`, "spec.images": overrides and the repository.

use platforms::Platform;
use requirements::Limits;
use requirements::k0s::{self, ImageSet};

const NEW: &str = "v1.36.3+k0s.2";
const OLD: &str = "v1.34.10+k0s.0";

const BASE: [&str; 5] = [
    "quay.io/k0sproject/pause:3.10.2-0",
    "quay.io/k0sproject/apiserver-network-proxy-agent:v0.36.0-k0s.0",
    "quay.io/k0sproject/kube-proxy:v1.36.3-1",
    "quay.io/k0sproject/coredns:1.14.6-k0s.0",
    "quay.io/k0sproject/metrics-server:v0.9.0-k0s.0",
];
const PUSH_GATEWAY: &str = "quay.io/k0sproject/pushgateway-ttl:1.4.0-k0s.2";
const KUBE_ROUTER: [&str; 2] = [
    "quay.io/k0sproject/cni-node:v1.9.1-k0s.1",
    "quay.io/k0sproject/kube-router:v2.10.0-iptables1.8.13-k0s.1",
];
const CALICO: [&str; 3] = [
    "quay.io/k0sproject/calico-cni:v3.32.1-2",
    "quay.io/k0sproject/calico-kube-controllers:v3.32.1-2",
    "quay.io/k0sproject/calico-node:v3.32.1-2",
];
const ENVOY: &str = "quay.io/k0sproject/envoy-distroless:v1.39.0";
const TRAEFIK: &str = "quay.io/k0sproject/traefik:v3.7.7-k0s.0";
const WINDOWS: [&str; 2] = [
    "registry.k8s.io/pause:3.10.1",
    "docker.io/sigwindowstools/kube-proxy:v1.36.3-calico-hostprocess",
];
const CALICO_WINDOWS: [&str; 2] = [
    "docker.io/calico/cni-windows:v3.32.1",
    "docker.io/calico/node-windows:v3.32.1",
];

/// Up to 1.35 the list is the same for every network.
const OLD_BASE: [&str; 10] = [
    "quay.io/k0sproject/calico-cni:v3.29.7-0",
    "quay.io/k0sproject/calico-kube-controllers:v3.29.7-0",
    "quay.io/k0sproject/calico-node:v3.29.7-0",
    "quay.io/k0sproject/coredns:1.13.2",
    "quay.io/k0sproject/apiserver-network-proxy-agent:v0.33.0",
    "quay.io/k0sproject/kube-proxy:v1.34.10",
    "quay.io/k0sproject/kube-router:v2.6.3-iptables1.8.11-0",
    "quay.io/k0sproject/cni-node:1.8.0-k0s.0",
    "quay.io/k0sproject/metrics-server:v0.7.2-1",
    "quay.io/k0sproject/pause:3.10.1",
];
const OLD_PUSH_GATEWAY: &str = "quay.io/k0sproject/pushgateway-ttl:1.4.0-k0s.0";
const OLD_ENVOY: &str = "quay.io/k0sproject/envoy-distroless:v1.34.14";

/// The first releases of 1.29 to 1.32 list a pause image that no configuration changes.
const EARLY: &str = "v1.30.9+k0s.0";
const EARLY_PAUSE: &str = "registry.k8s.io/pause:3.9";
const EARLY_ENVOY: &str = "quay.io/k0sproject/envoy-distroless:v1.30.7";

fn set(release: &str) -> ImageSet {
    k0s::builtin(release).unwrap()
}

fn list(release: &str, spec: &str, platform: &str, all: bool) -> Result<Vec<String>, String> {
    let text = format!("apiVersion: k0s.k0sproject.io/v1beta1\nkind: ClusterConfig\nspec: {spec}\n");
    let config = k0s::parse(&text, &Limits::default()).map_err(|e| e.to_string())?;
    let platform: Platform = platform.parse().unwrap();
    let needed = k0s::images(&config, &set(release), &platform, all).map_err(|e| e.to_string())?;
    Ok(needed.into_iter().map(|needed| needed.reference).collect())
}

fn joined(parts: &[&[&str]]) -> Vec<String> {
    parts.concat().into_iter().map(str::to_owned).collect()
}

const BALANCED: &str = "{network: {nodeLocalLoadBalancing: {enabled: true}}}";
const TRAEFIK_BALANCED: &str = "{network: {nodeLocalLoadBalancing: {enabled: true, type: Traefik}}}";

#[test]
fn the_lists_are_those_of_k0s() {
    let rows: Vec<(&str, &str, &str, bool, Vec<String>)> = vec![
        // The defaults.
        (NEW, "{}", "linux/amd64", false, joined(&[&BASE, &KUBE_ROUTER])),
        (OLD, "{}", "linux/amd64", false, joined(&[&OLD_BASE])),
        // 1: everything.
        (
            NEW,
            "{}",
            "linux/amd64",
            true,
            joined(&[&BASE, &[PUSH_GATEWAY], &KUBE_ROUTER, &CALICO, &[ENVOY, TRAEFIK]]),
        ),
        (
            OLD,
            "{}",
            "linux/amd64",
            true,
            joined(&[&OLD_BASE, &[OLD_PUSH_GATEWAY, OLD_ENVOY]]),
        ),
        // 2: everything, on an architecture without envoy.
        (
            NEW,
            "{}",
            "linux/arm/v7",
            true,
            joined(&[&BASE, &[PUSH_GATEWAY], &KUBE_ROUTER, &CALICO, &[TRAEFIK]]),
        ),
        (
            NEW,
            "{}",
            "linux/riscv64",
            true,
            joined(&[&BASE, &[PUSH_GATEWAY], &KUBE_ROUTER, &CALICO, &[TRAEFIK]]),
        ),
        (
            OLD,
            "{}",
            "linux/arm/v7",
            true,
            joined(&[&OLD_BASE, &[OLD_PUSH_GATEWAY]]),
        ),
        // 3: Windows nodes.
        (NEW, "{}", "windows/amd64", false, joined(&[&WINDOWS])),
        (
            NEW,
            "{}",
            "windows/amd64",
            true,
            joined(&[&WINDOWS, &CALICO_WINDOWS, &[TRAEFIK]]),
        ),
        (
            NEW,
            "{network: {provider: calico}}",
            "windows/amd64",
            false,
            joined(&[&WINDOWS, &CALICO_WINDOWS]),
        ),
        // 4: calico.
        (
            NEW,
            "{network: {provider: calico}}",
            "linux/arm64",
            false,
            joined(&[&BASE, &CALICO]),
        ),
        (
            OLD,
            "{network: {provider: calico}}",
            "linux/arm64",
            false,
            joined(&[&OLD_BASE]),
        ),
        // 5: a custom network.
        (
            NEW,
            "{network: {provider: custom}}",
            "linux/amd64",
            false,
            joined(&[&BASE]),
        ),
        // 6: node-local load balancing with envoy.
        (
            NEW,
            BALANCED,
            "linux/amd64",
            false,
            joined(&[&BASE, &KUBE_ROUTER, &[ENVOY]]),
        ),
        (
            NEW,
            BALANCED,
            "linux/arm/v7",
            false,
            joined(&[&BASE, &KUBE_ROUTER]),
        ),
        (
            NEW,
            BALANCED,
            "linux/riscv64",
            false,
            joined(&[&BASE, &KUBE_ROUTER]),
        ),
        (NEW, BALANCED, "windows/amd64", false, joined(&[&WINDOWS])),
        (
            OLD,
            BALANCED,
            "linux/amd64",
            false,
            joined(&[&OLD_BASE, &[OLD_ENVOY]]),
        ),
        (OLD, BALANCED, "linux/arm", false, joined(&[&OLD_BASE])),
        // 7: with traefik.
        (
            NEW,
            TRAEFIK_BALANCED,
            "linux/arm/v7",
            false,
            joined(&[&BASE, &KUBE_ROUTER, &[TRAEFIK]]),
        ),
        (
            NEW,
            TRAEFIK_BALANCED,
            "windows/amd64",
            false,
            joined(&[&WINDOWS, &[TRAEFIK]]),
        ),
        // 8: a custom load balancer, on and off.
        (
            NEW,
            "{network: {nodeLocalLoadBalancing: {enabled: true, envoyProxy: {image: {image: registry.example.com/custom, version: v1337}}}}}",
            "linux/amd64",
            false,
            joined(&[&BASE, &KUBE_ROUTER, &["registry.example.com/custom:v1337"]]),
        ),
        (
            NEW,
            "{network: {nodeLocalLoadBalancing: {enabled: false, envoyProxy: {image: {image: registry.example.com/custom, version: v1337}}}}}",
            "linux/amd64",
            false,
            joined(&[&BASE, &KUBE_ROUTER]),
        ),
        // 9: custom images, in whole and in part, one with a digest.
        (
            NEW,
            "{images: {pause: {image: a.test/p, version: '1'}, coredns: {version: 2@sha256:0123456789abcdef0123456789abcdef}, \
             kuberouter: {cniInstaller: {image: installer}}}, unknown: {coredns: 1}}",
            "linux/amd64",
            false,
            joined(&[
                &["a.test/p:1"],
                &BASE[1..3],
                &["quay.io/k0sproject/coredns:2@sha256:0123456789abcdef0123456789abcdef"],
                &BASE[4..],
                &["installer:v1.9.1-k0s.1"],
                &KUBE_ROUTER[1..],
            ]),
        ),
    ];
    for (release, spec, platform, all, expected) in rows {
        assert_eq!(
            list(release, spec, platform, all),
            Ok(expected),
            "{release} {spec} {platform} all={all}"
        );
    }
}

/// 10: the example of k0s's documentation, and every other image with it.
#[test]
fn a_repository_is_that_of_every_image() {
    let spec = "{images: {repository: airgap-repo.local, calico: {kubecontrollers: {image: \
        repo.acme.corp/k0sproject/calico-kube-controllers}}}, network: {nodeLocalLoadBalancing: {enabled: true}}}";
    let all = list(NEW, spec, "linux/amd64", true).unwrap();
    assert!(all.contains(&"airgap-repo.local/k0sproject/calico-kube-controllers:v3.32.1-2".to_owned()));
    assert!(
        all.iter()
            .all(|image| image.starts_with("airgap-repo.local/k0sproject/") || image == TRAEFIK),
        "{all:#?}"
    );
    let defaults = list(NEW, "{}", "linux/amd64", true).unwrap();
    assert_eq!(all.len(), defaults.len());
    let windows = list(NEW, spec, "windows/amd64", true).unwrap();
    assert!(
        windows.contains(&"airgap-repo.local/pause:3.10.1".to_owned()),
        "{windows:#?}"
    );
}

#[test]
fn the_first_releases_list_their_own_pause_image_and_no_push_gateway() {
    let spec = "{images: {repository: r.test, pause: {image: a.test/p, version: '1'}}}";
    let all = list(EARLY, spec, "linux/amd64", true).unwrap();
    assert_eq!(all.len(), OLD_BASE.len() + 1, "{all:#?}");
    assert_eq!(all[9], EARLY_PAUSE);
    assert!(
        all[..9].iter().all(|image| image.starts_with("r.test/")),
        "{all:#?}"
    );
    assert_eq!(all[10], EARLY_ENVOY.replace("quay.io", "r.test"));
    let later = list("v1.30.10+k0s.0", spec, "linux/amd64", true).unwrap();
    assert_eq!(later.len(), OLD_BASE.len() + 2, "{later:#?}");
    assert_eq!(later[9], "r.test/p:1");
}

/// k0s moves an image of `--all` only if the configuration uses or mentions it.
#[test]
fn a_load_balancer_that_no_configuration_names_stays_where_it_is() {
    let balancers = |balancing: &str| {
        let spec =
            format!("{{images: {{repository: r.test}}, network: {{nodeLocalLoadBalancing: {balancing}}}}}");
        let all = list(NEW, &spec, "linux/amd64", true).unwrap();
        all[all.len() - 2..].to_vec()
    };
    let moved = |image: &str| image.replace("quay.io", "r.test");
    let (envoy, traefik) = (ENVOY.to_owned(), TRAEFIK.to_owned());
    for (balancing, expected) in [
        ("{}", [moved(ENVOY), traefik.clone()]),
        ("{enabled: true}", [moved(ENVOY), traefik]),
        ("{type: Traefik}", [envoy.clone(), moved(TRAEFIK)]),
        ("{enabled: true, type: Traefik}", [envoy, moved(TRAEFIK)]),
        ("{traefik: {}}", [moved(ENVOY), moved(TRAEFIK)]),
        (
            "{type: Traefik, envoyProxy: {imagePullPolicy: Never}}",
            [moved(ENVOY), moved(TRAEFIK)],
        ),
    ] {
        assert_eq!(balancers(balancing), expected, "{balancing}");
    }
}

#[test]
fn what_a_release_does_not_have_is_said() {
    for (release, spec, platform, part) in [
        (
            OLD,
            TRAEFIK_BALANCED,
            "linux/amd64",
            "spec.network.nodeLocalLoadBalancing.traefik.image",
        ),
        ("v1.33", "{}", "windows/amd64", "spec.images.windows.pause"),
        (NEW, "{}", "darwin/arm64", "linux and windows"),
    ] {
        let error = list(release, spec, platform, false).unwrap_err();
        assert!(error.contains(part), "{error}");
    }
    // A custom image is enough.
    let own = "{network: {nodeLocalLoadBalancing: {enabled: true, type: Traefik, traefik: {image: {image: a, version: b}}}}}";
    assert_eq!(
        list(OLD, own, "linux/amd64", false).unwrap().last().unwrap(),
        "a:b"
    );
}

#[test]
fn pull_policies_are_those_of_the_configuration() {
    let text = "kind: ClusterConfig\nspec: {images: {default_pull_policy: Never}, network: {nodeLocalLoadBalancing: \
        {enabled: true, envoyProxy: {imagePullPolicy: Always}}}}";
    let config = k0s::parse(text, &Limits::default()).unwrap();
    let platform: Platform = "linux/amd64".parse().unwrap();
    let needed = k0s::images(&config, &set(NEW), &platform, false).unwrap();
    for image in needed {
        let expected = if image.reference == ENVOY {
            "Always"
        } else {
            "Never"
        };
        assert_eq!(image.pull_policy, expected, "{}", image.reference);
    }
}
