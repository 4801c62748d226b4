//! Checks the direction of the dependencies between the project's crates, and the libraries that
//! only one crate may use. `docs/architecture.md` describes both in words.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use lab::workspace;

/// For each crate, the project's crates that its shipped code may use.
const MAY_USE: [(&str, &[&str]); 16] = [
    ("admission", &["basics"]),
    ("basics", &[]),
    ("platforms", &[]),
    ("bundle", &["basics", "platforms"]),
    ("containerd", &["basics", "platforms"]),
    ("requirements", &["basics", "platforms"]),
    ("registry", &["basics", "bundle", "platforms"]),
    ("import", &["basics", "bundle", "containerd", "platforms"]),
    (
        "verify",
        &[
            "basics",
            "bundle",
            "containerd",
            "import",
            "platforms",
            "requirements",
        ],
    ),
    (
        "node",
        &[
            "admission",
            "basics",
            "bundle",
            "containerd",
            "import",
            "platforms",
            "verify",
        ],
    ),
    (
        "airgapd",
        &[
            "basics",
            "bundle",
            "containerd",
            "import",
            "node",
            "platforms",
            "registry",
            "requirements",
            "verify",
        ],
    ),
    ("fake-containerd", &["basics"]),
    ("harness", &["containerd", "fake-containerd", "lab"]),
    ("lab", &[]),
    ("xtask", &["lab"]),
    ("workshop", &["admission", "bundle", "lab", "xtask"]),
];

/// Libraries that belong to one concern, and the shipped crates that may use them.
const KNOWN_TO: [(&str, &[&str]); 14] = [
    ("tonic", &["containerd"]),
    ("containerd-client", &["containerd"]),
    ("k8s-cri", &["containerd"]),
    ("tar", &["bundle"]),
    ("reqwest", &["registry"]),
    ("rustls", &["registry"]),
    ("minisign-verify", &["admission"]),
    ("p256", &["admission"]),
    ("ring", &["admission"]),
    ("anyhow", &["airgapd"]),
    ("clap", &["airgapd"]),
    ("notify", &["node"]),
    ("prometheus", &["node"]),
    ("sd-notify", &["node"]),
];

/// Crates that only tests and tasks use.
const NOT_SHIPPED: [&str; 5] = ["fake-containerd", "harness", "lab", "xtask", "workshop"];

/// Returns the keys below `[dependencies]` of each crate's manifest, by the name of the crate's
/// folder.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let crates = fs::read_dir(workspace().join("crates")).expect("the crates are there");
    crates
        .map(|entry| {
            let folder = entry.expect("a folder can be read");
            let manifest =
                fs::read_to_string(folder.path().join("Cargo.toml")).expect("each crate has a manifest");
            let name = folder.file_name().to_string_lossy().into_owned();
            (name, keys_below(&manifest, "[dependencies]"))
        })
        .collect()
}

/// Returns the keys of one table of a manifest.
fn keys_below(manifest: &str, table: &str) -> BTreeSet<String> {
    manifest
        .lines()
        .skip_while(|line| line.trim() != table)
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once('='))
        .map(|(key, _)| key.split('.').next().unwrap_or(key).trim().to_owned())
        .collect()
}

#[test]
fn no_crate_uses_one_that_it_may_not_know() {
    let allowed: BTreeMap<_, _> = MAY_USE.into_iter().collect();
    let dependencies = dependencies();
    let all: Vec<_> = dependencies.keys().map(String::as_str).collect();
    let listed: Vec<_> = allowed.keys().copied().collect();
    assert_eq!(all, listed, "each crate has its line");
    for (name, keys) in &dependencies {
        let used: Vec<_> = all
            .iter()
            .copied()
            .filter(|other| keys.contains(*other))
            .collect();
        let mut expected = allowed[name.as_str()].to_vec();
        expected.sort_unstable();
        assert_eq!(used, expected, "{name} uses these crates of the project");
    }
}

#[test]
fn the_crates_know_no_circle() {
    let allowed: BTreeMap<_, _> = MAY_USE.into_iter().collect();
    for name in allowed.keys() {
        let mut ahead = allowed[name].to_vec();
        let mut seen = BTreeSet::new();
        while let Some(next) = ahead.pop() {
            assert_ne!(next, *name, "{name} leads back to itself");
            if seen.insert(next) {
                ahead.extend(allowed[next]);
            }
        }
    }
}

#[test]
fn a_library_that_stands_for_a_way_of_doing_things_is_known_to_one_crate() {
    let dependencies = dependencies();
    for (library, allowed) in KNOWN_TO {
        let knowing: Vec<_> = dependencies
            .iter()
            .filter(|(name, keys)| keys.contains(library) && !NOT_SHIPPED.contains(&name.as_str()))
            .map(|(name, _)| name.as_str())
            .collect();
        assert_eq!(knowing, allowed, "{library} is known to these crates");
    }
}

#[test]
fn keys_of_a_manifest_are_found_in_their_table_only() {
    let manifest = "[package]\nname = \"a\"\n\n[dependencies]\nb = { workspace = true }\n# c = \"1\"\nd.workspace = true\n\n[dev-dependencies]\ne = \"1\"\n";
    let keys = keys_below(manifest, "[dependencies]");
    let keys: Vec<_> = keys.iter().map(String::as_str).collect();
    assert_eq!(keys, ["b", "d"]);
}
