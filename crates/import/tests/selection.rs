//! The images of a bundle that a node takes. The test makes the bundles and needs no containerd.

use std::time::{Duration, Instant};

use airgapd_import::names::{Alias, DigestReferences, Scope};
use airgapd_import::select::{ChildKind, Choice, NamedTarget, Skip, Taken, hidden_image, in_words};
use airgapd_import::{Naming, Policy, Verdict, select};
use bundle::fixtures::{Archive, Image, Layout, Manifest, Node};
use bundle::{Bundle, Content, Limits, RawName};
use oci_spec::image::Digest;
use platforms::Wanted;
use platforms::{Platform, Rules};
use serde_json::json;

fn open(archive: &Archive) -> Bundle {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("b.tar");
    archive.write_to(&path);
    Bundle::open(&path, &Limits::default()).unwrap()
}

fn node(platform: &str) -> Policy {
    nodes(&[platform])
}

fn nodes(platforms: &[&str]) -> Policy {
    by(&[Rules::Rc1], platforms)
}

/// Returns a policy of nodes of these platforms, by these rules.
fn by(rules: &[Rules], platforms: &[&str]) -> Policy {
    let platforms: Vec<Platform> = platforms.iter().map(|text| text.parse().unwrap()).collect();
    let naming = Naming {
        digest_references: DigestReferences::None,
        ..Naming::default()
    };
    Policy {
        wanted: Wanted::of(&platforms, rules),
        naming,
        most_records: airgapd_import::plan::MOST_RECORDS,
    }
}

fn choices(archive: &Archive, policy: &Policy) -> Vec<Choice> {
    select(open(archive).catalog(), policy).choices
}

fn only_choice(archive: &Archive, policy: &Policy) -> Choice {
    let mut choices = choices(archive, policy);
    assert_eq!(choices.len(), 1);
    choices.remove(0)
}

fn taken(choice: &Choice) -> &Taken {
    match &choice.verdict {
        Verdict::Take(taken) => taken,
        other => panic!("{other:?}"),
    }
}

fn problems(choice: &Choice) -> String {
    match &choice.verdict {
        Verdict::Broken(problems) => in_words(problems),
        other => panic!("{other:?}"),
    }
}

fn names(choice: &Choice) -> Vec<&str> {
    taken(choice)
        .records
        .iter()
        .map(|record| record.name.as_str())
        .collect()
}

fn needs(choice: &Choice, digest: &Digest) -> bool {
    taken(choice)
        .closure
        .blobs
        .iter()
        .any(|blob| blob.digest == *digest)
}

/// Comparing every pair of 100,000 names would take minutes. The default limit refuses such a
/// bundle, but the operator may raise the limit.
#[test]
fn the_time_that_names_and_manifests_take_grows_with_their_number_only() {
    let mut catalog = open(
        &Layout::new()
            .image(Image::new("r.test/a:1").platform("linux/amd64").layer(b"x"))
            .build(),
    )
    .catalog()
    .clone();
    let names = (0..100_000).map(|n| RawName::RepoTag(format!("r.test/a:{n}")));
    catalog.images[0].names = names.collect();
    let mut child = catalog.images[0].clone();
    child.names = Vec::new();
    let children = (0..30_000).map(|n: u32| {
        let mut node = child.root.clone();
        node.descriptor
            .set_digest(format!("sha256:{n:064x}").parse().unwrap());
        node.platform = Some(format!("linux/arch{n}").parse().unwrap());
        node
    });
    child.root.content = Content::Index(children.collect());
    child
        .root
        .descriptor
        .set_digest(format!("sha256:{:064x}", u32::MAX).parse().unwrap());
    child.names.push(RawName::RepoTag("r.test/index:1".to_owned()));
    catalog.images.push(child);
    let started = Instant::now();
    let all = Policy {
        most_records: 200_000,
        wanted: Wanted::All {
            rules: vec![Rules::Rc1],
        },
        ..node("linux/amd64")
    };
    let selection = select(&catalog, &all);
    let records: usize = selection.taken().map(|taken| taken.records.len()).sum();
    assert_eq!(records, 100_001);
    let took = started.elapsed();
    assert!(took < Duration::from_secs(20), "{took:?}");
}

fn index_of(platforms: &[&str]) -> Archive {
    let image = platforms
        .iter()
        .fold(Image::new("r.test/a:1"), |image, platform| {
            image.platform(platform).layer(platform.as_bytes())
        });
    Layout::new().image(image.in_an_index()).build()
}

#[test]
fn the_platforms_a_node_can_run_are_taken_and_no_others() {
    let seven = [
        "linux/amd64",
        "linux/arm64/v8",
        "linux/arm/v7",
        "linux/arm/v6",
        "linux/arm/v5",
        "linux/386",
        "linux/s390x",
    ];
    let rows = [
        (
            "linux/arm64",
            vec!["linux/arm64", "linux/arm/v7", "linux/arm/v6", "linux/arm/v5"],
        ),
        ("linux/amd64", vec!["linux/amd64", "linux/386"]),
        ("linux/arm/v6", vec!["linux/arm/v6", "linux/arm/v5"]),
        ("linux/s390x", vec!["linux/s390x"]),
    ];
    let archive = index_of(&seven);
    for (host, wanted) in rows {
        let choice = only_choice(&archive, &node(host));
        assert_eq!(taken(&choice).closure.platforms, wanted, "{host}");
        assert_eq!(
            taken(&choice).records[0].target.digest(),
            &archive.images[0].root,
            "{host}"
        );
        // Three blobs for each platform (manifest, config, layer), and the index.
        assert_eq!(taken(&choice).closure.blobs.len(), wanted.len() * 3 + 1, "{host}");
    }
}

#[test]
fn an_image_without_anything_for_this_node_is_skipped_and_says_what_it_has() {
    let choice = only_choice(&index_of(&["linux/arm64", "linux/s390x"]), &node("linux/riscv64"));
    let Verdict::Skip(Skip::Foreign { offered }) = &choice.verdict else {
        panic!("{choice:?}")
    };
    assert_eq!(offered, &["linux/arm64", "linux/s390x"]);
}

/// Statement 23: an amd64 node never claims v2.
#[test]
fn an_index_with_only_amd64_v2_matches_nothing_on_amd64() {
    let choice = only_choice(&index_of(&["linux/amd64/v2"]), &node("linux/amd64"));
    assert!(
        matches!(choice.verdict, Verdict::Skip(Skip::Foreign { .. })),
        "{choice:?}"
    );
}

/// Statement 22.
#[test]
fn without_amd64_the_386_variant_is_taken() {
    let choice = only_choice(&index_of(&["linux/386"]), &node("linux/amd64"));
    assert_eq!(taken(&choice).closure.platforms, ["linux/386"]);
}

#[test]
fn the_best_match_must_be_whole_since_containerd_has_no_second_try() {
    let mut archive = index_of(&["linux/arm64", "linux/arm/v7"]);
    let layer = archive.images[0].manifests[0].layers[0].clone();
    archive.remove_blob(&layer);
    let problem = problems(&only_choice(&archive, &node("linux/arm64")));
    assert!(
        problem.contains("linux/arm64: layer 1 of 1") && problem.contains(layer.as_ref()),
        "{problem}"
    );
}

#[test]
fn a_best_match_that_the_index_lists_and_the_bundle_lacks_is_a_broken_image() {
    let mut archive = index_of(&["linux/arm64", "linux/arm/v7"]);
    let manifest = archive.images[0].manifests[0].digest.clone();
    archive.remove_blob(&manifest);
    let problem = problems(&only_choice(&archive, &node("linux/arm64")));
    assert!(
        problem.contains("linux/arm64") && problem.contains(manifest.as_ref()),
        "{problem}"
    );
}

#[test]
fn a_second_choice_that_is_not_whole_is_left_out() {
    let mut archive = index_of(&["linux/arm64", "linux/arm/v7"]);
    let second = archive.images[0].manifests[1].clone();
    archive.remove_blob(&second.layers[0]);
    let choice = only_choice(&archive, &node("linux/arm64"));
    assert_eq!(taken(&choice).closure.platforms, ["linux/arm64"]);
    assert!(!needs(&choice, &second.digest));
}

/// Statement 30.
#[test]
fn platforms_that_are_absent_and_not_wanted_do_not_matter() {
    let mut archive = index_of(&["linux/amd64", "linux/arm64"]);
    let other = archive.images[0].manifests[1].clone();
    for blob in other.layers.iter().chain([&other.config, &other.digest]) {
        archive.remove_blob(blob);
    }
    let choice = only_choice(&archive, &node("linux/amd64"));
    assert_eq!(taken(&choice).records[0].target.digest(), &archive.images[0].root);
}

#[test]
fn two_platforms_asked_for_must_both_be_whole() {
    let archive = index_of(&["linux/amd64", "linux/s390x", "linux/arm64"]);
    let both = only_choice(&archive, &nodes(&["linux/amd64", "linux/s390x"]));
    assert_eq!(taken(&both).closure.platforms, ["linux/amd64", "linux/s390x"]);
    let mut cut = archive.clone();
    cut.remove_blob(&archive.images[0].manifests[1].layers[0]);
    assert!(problems(&only_choice(&cut, &nodes(&["linux/amd64", "linux/s390x"]))).contains("linux/s390x"));
    assert_eq!(
        taken(&only_choice(&cut, &node("linux/amd64"))).closure.platforms,
        ["linux/amd64"]
    );
}

#[test]
fn all_takes_what_the_bundle_holds_and_wants_it_whole() {
    let all = Policy {
        wanted: Wanted::All {
            rules: vec![Rules::Rc1],
        },
        ..node("linux/amd64")
    };
    let mut archive = index_of(&["linux/amd64", "linux/arm64", "linux/s390x"]);
    let absent = archive.images[0].manifests[2].clone();
    archive.remove_blob(&absent.digest);
    assert_eq!(
        taken(&only_choice(&archive, &all)).closure.platforms,
        ["linux/amd64", "linux/arm64"]
    );
    archive.remove_blob(&archive.images[0].manifests[1].layers[0].clone());
    assert!(problems(&only_choice(&archive, &all)).contains("linux/arm64"));
}

/// Statement 29.
#[test]
fn a_nested_index_is_walked_and_one_of_foreign_platforms_is_skipped() {
    let nested = |platform: &str| {
        let manifest = Manifest::new(platform).layer(platform.as_bytes().to_vec());
        Layout::new()
            .image(Image::new("r.test/a:1").root(Node::Index(vec![Node::Index(vec![manifest.into()])])))
            .build()
    };
    let archive = nested("linux/amd64");
    let choice = only_choice(&archive, &node("linux/amd64"));
    assert_eq!(taken(&choice).closure.blobs.len(), 5);
    let foreign = only_choice(&nested("linux/s390x"), &node("linux/amd64"));
    assert!(
        matches!(&foreign.verdict, Verdict::Skip(Skip::Foreign { offered }) if offered == &["linux/s390x"])
    );
}

/// Statement 28: containerd would record the image, and it would fail with an exec format error.
#[test]
fn a_single_manifest_is_judged_by_its_config_when_its_descriptor_says_nothing() {
    let image = |platform: &str| {
        let manifest = Manifest::new(platform)
            .layer(b"x".to_vec())
            .platform_in_config_only();
        Layout::new()
            .image(Image::new("r.test/a:1").manifest(manifest))
            .build()
    };
    let foreign = only_choice(&image("linux/arm64"), &node("linux/amd64"));
    assert!(
        matches!(&foreign.verdict, Verdict::Skip(Skip::Foreign { .. })),
        "{foreign:?}"
    );
    taken(&only_choice(&image("linux/amd64"), &node("linux/amd64")));
    // Configs lie about variants: os and architecture decide.
    taken(&only_choice(&image("linux/arm/v7"), &node("linux/arm/v6")));
}

#[test]
fn a_manifest_that_names_no_platform_at_all_is_taken_with_a_note() {
    let manifest = Manifest::new("linux/amd64").layer(b"x".to_vec()).no_platform();
    let choice = only_choice(
        &Layout::new()
            .image(Image::new("r.test/a:1").manifest(manifest))
            .build(),
        &node("linux/amd64"),
    );
    taken(&choice);
    assert!(
        choice.notes.iter().any(|note| note.contains("platform")),
        "{:?}",
        choice.notes
    );
}

/// Statement 21.
#[test]
fn a_name_for_two_platforms_goes_to_the_one_that_suits_the_node_whatever_the_order() {
    let amd64 = || Image::new("r.test/a:1").platform("linux/amd64").layer(b"amd64");
    let i386 = || Image::new("r.test/a:1").platform("linux/386").layer(b"386");
    for archive in [
        Layout::new().image(amd64()).image(i386()).build(),
        Layout::new().image(i386()).image(amd64()).build(),
    ] {
        let choices = choices(&archive, &node("linux/amd64"));
        let winners: Vec<_> = choices
            .iter()
            .filter(|choice| matches!(choice.verdict, Verdict::Take(_)))
            .collect();
        assert_eq!(winners.len(), 1);
        assert_eq!(taken(winners[0]).closure.platforms, ["linux/amd64"]);
        assert!(
            choices
                .iter()
                .any(|choice| matches!(choice.verdict, Verdict::Skip(Skip::Outranked)))
        );
    }
}

#[test]
fn among_equals_the_last_one_gets_the_name() {
    let image = |layer: &[u8]| Image::new("r.test/a:1").platform("linux/amd64").layer(layer);
    let archive = Layout::new()
        .image(image(b"first"))
        .image(image(b"second"))
        .build();
    let choices = choices(&archive, &node("linux/amd64"));
    assert!(matches!(choices[0].verdict, Verdict::Skip(Skip::Outranked)));
    assert_eq!(names(&choices[1]), ["r.test/a:1"]);
}

#[test]
fn entries_for_the_same_image_are_one_image_with_all_the_names() {
    let image = |name: &str| Image::new(name).platform("linux/amd64").layer(b"x");
    let archive = Layout::new()
        .image(image("r.test/a:1"))
        .image(image("r.test/a:2"))
        .build();
    let choice = only_choice(&archive, &node("linux/amd64"));
    assert_eq!(names(&choice), ["r.test/a:1", "r.test/a:2"]);
}

#[test]
fn an_image_without_a_name_is_skipped_as_unnamed() {
    let archive = Layout::new()
        .image(Image::unnamed().platform("linux/amd64").layer(b"x"))
        .build();
    let choice = only_choice(&archive, &node("linux/amd64"));
    assert!(matches!(choice.verdict, Verdict::Skip(Skip::Unnamed)));
}

#[test]
fn an_artifact_gets_no_record() {
    let chart = Manifest::new("linux/amd64")
        .layer(b"x".to_vec())
        .config_media_type("application/vnd.cncf.helm.config.v1+json");
    let archive = Layout::new()
        .image(Image::new("r.test/chart:1").manifest(chart))
        .build();
    let choice = only_choice(&archive, &node("linux/amd64"));
    assert!(
        matches!(&choice.verdict, Verdict::Skip(Skip::Artifact(kind)) if kind.contains("helm")),
        "{choice:?}"
    );
}

/// KEP-4639. The program's tests in `tests/kubelet.rs` show the artifacts that containerd mounts as
/// a volume.
#[test]
fn an_artifact_that_lists_its_layers_gets_a_record_where_it_can_be_mounted() {
    let model = |platform: &str| {
        Manifest::new(platform)
            .layer(b"x".to_vec())
            .config_media_type("application/vnd.test.model.config+json")
            .member("artifactType", json!("application/vnd.test.model"))
    };
    let alone = |manifest: Manifest| {
        Layout::new()
            .image(Image::new("r.test/model:1").manifest(manifest.no_platform()))
            .build()
    };
    let archive = alone(model("linux/amd64"));
    for rules in [Rules::Rc1, Rules::Rc3] {
        let choice = only_choice(&archive, &by(&[rules], &["linux/amd64"]));
        assert_eq!(taken(&choice).records.len(), 1);
        assert!(
            choice
                .notes
                .iter()
                .any(|note| note.contains("image volumes only")),
            "{choice:?}"
        );
    }
    let skipped =
        |archive: &Archive, rules: &[Rules]| match only_choice(archive, &by(rules, &["linux/amd64"])).verdict
        {
            Verdict::Skip(Skip::Artifact(kind)) => kind,
            other => panic!("{other:?}"),
        };
    for rules in [&[Rules::V0_2][..], &Rules::ALL] {
        assert!(skipped(&archive, rules).contains("mounts as a volume from 2.1 on"));
    }
    let rc3 = [Rules::Rc3];
    let lists_nothing = alone(model("linux/amd64").config_bytes("{}"));
    assert_eq!(skipped(&lists_nothing, &rc3), "application/vnd.test.model");
    let no_json = alone(model("linux/amd64").config_bytes("weights"));
    assert_eq!(skipped(&no_json, &rc3), "application/vnd.test.model");
    let lists_others = alone(model("linux/amd64").config("rootfs", json!({"diff_ids": ["sha256:00"]})));
    assert_eq!(skipped(&lists_others, &rc3), "application/vnd.test.model");
    // An absent blob makes an artifact broken, like an image.
    let mut cut = archive.clone();
    cut.remove_blob(&archive.images[0].manifests[0].layers[0]);
    assert!(problems(&only_choice(&cut, &by(&rc3, &["linux/amd64"]))).contains("is not in the bundle"));
    // In an index, an artifact is no image, at any place.
    let index = Layout::new()
        .image(Image::new("r.test/index:1").root(Node::Index(vec![
            model("linux/amd64").into(),
            Manifest::new("linux/amd64").layer(b"y".to_vec()).into(),
        ])))
        .build();
    assert!(
        problems(&only_choice(&index, &by(&rc3, &["linux/amd64"]))).contains("application/vnd.test.model")
    );
}

#[test]
fn children_come_before_parents_and_each_blob_once() {
    let archive = index_of(&["linux/amd64", "linux/386"]);
    let choice = only_choice(&archive, &node("linux/amd64"));
    let mut seen = std::collections::HashSet::new();
    for blob in &taken(&choice).closure.blobs {
        assert!(
            blob.children.iter().all(|child| seen.contains(&child.digest)),
            "{blob:?}"
        );
        assert!(seen.insert(blob.digest.clone()), "{blob:?}");
    }
}

#[test]
fn the_children_of_a_manifest_are_of_the_kinds_that_containerd_labels_them_by() {
    use ChildKind::{Config, Layer, Manifest as Image, Other};
    let docker = image("linux/s390x").config_media_type("application/vnd.docker.container.image.v1+json");
    let archive = listed([image("linux/amd64"), docker, sbom("linux/arm64")]);
    let rules = Rules::ALL.to_vec();
    let policy = Policy {
        wanted: Wanted::All { rules },
        ..node("linux/amd64")
    };
    let choice = only_choice(&archive, &policy);
    let parents = taken(&choice).closure.blobs.iter().map(|blob| &blob.children);
    let kinds = parents.map(|children| children.iter().map(|child| child.kind).collect::<Vec<_>>());
    let kinds: Vec<_> = kinds.filter(|kinds| !kinds.is_empty()).collect();
    let index = vec![Image, Image, Image];
    assert_eq!(
        kinds,
        [
            vec![Layer, Config],
            vec![Layer, Config],
            vec![Layer, Other],
            index
        ]
    );
}

#[test]
fn every_manifest_taken_gets_its_digest_name_where_all_are_asked_for() {
    let archive = index_of(&["linux/amd64", "linux/s390x"]);
    let mut policy = node("linux/amd64");
    policy.naming.digest_references = DigestReferences::All;
    let choice = only_choice(&archive, &policy);
    let image = &archive.images[0];
    let wanted = [
        "r.test/a:1".to_owned(),
        format!("r.test/a@{}", image.root),
        format!("r.test/a@{}", image.manifests[0].digest),
    ];
    assert_eq!(names(&choice), wanted);
    assert_eq!(
        taken(&choice).records[2].target.digest(),
        &image.manifests[0].digest
    );
}

/// Returns an archive with an index of these manifests.
fn listed(manifests: impl IntoIterator<Item = Manifest>) -> Archive {
    let nodes = manifests.into_iter().map(Node::from).collect();
    Layout::new()
        .image(Image::new("r.test/a:1").root(Node::Index(nodes)))
        .build()
}

fn image(platform: &str) -> Manifest {
    Manifest::new(platform).layer(platform.as_bytes().to_vec())
}

/// Returns a list of parts for this platform.
fn sbom(platform: &str) -> Manifest {
    artifact(platform, "application/spdx+json")
}

fn artifact(platform: &str, kind: &str) -> Manifest {
    Manifest::new(platform)
        .layer(b"parts".to_vec())
        .config_bytes(b"{}".to_vec())
        .config_media_type(kind)
}

/// Returns a manifest as the nydus converter lists it: for nodes that have the feature.
fn nydus(config: &str) -> Manifest {
    let platform = json!({ "os": "linux", "architecture": "amd64", "os.features": ["nydus.remoteimage.v1"] });
    Manifest::new("linux/amd64")
        .layer(b"nydus".to_vec())
        .config_media_type(config)
        .descriptor_member("platform", platform)
}

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// bazel-contrib/rules_img#742, opencontainers/image-spec#1216
#[test]
fn an_artifact_with_a_platform_that_stands_before_the_image_makes_it_broken_and_both_are_named() {
    for first in [
        sbom("linux/amd64"),
        artifact("linux/amd64", "application/vnd.amazon.soci.index.v2+json"),
    ] {
        let mut archive = listed([first, image("linux/amd64")]);
        let [used, meant] = [0, 1].map(|at| archive.images[0].manifests[at].clone());
        for rules in Rules::ALL {
            let problem = problems(&only_choice(&archive, &by(&[rules], &["linux/amd64"])));
            assert!(
                problem.contains(used.digest.as_ref())
                    && problem.contains(meant.digest.as_ref())
                    && problem.contains("not a container image"),
                "{problem}"
            );
        }
        let hidden = |archive: &Archive, platform: &str| {
            let bundle = open(archive);
            let root = &bundle.catalog().images[0].root;
            hidden_image(root, &node(platform).wanted).cloned()
        };
        assert_eq!(hidden(&archive, "linux/amd64"), Some(meant.digest.clone()));
        assert_eq!(hidden(&archive, "linux/s390x"), None);
        assert_eq!(hidden(&listed([image("linux/amd64")]), "linux/amd64"), None);
        archive.remove_blob(&used.layers[0]);
        let problem = problems(&only_choice(&archive, &node("linux/amd64")));
        assert!(problem.contains(used.layers[0].as_ref()), "{problem}");
        // A node of another platform does not use the artifact.
        let foreign = only_choice(&archive, &node("linux/s390x"));
        assert!(matches!(foreign.verdict, Verdict::Skip(Skip::Foreign { .. })));
    }
}

#[test]
fn an_artifact_before_the_image_is_refused_where_every_platform_is_taken() {
    let archive = listed([sbom("linux/amd64"), image("linux/amd64"), image("linux/arm64")]);
    let all = |rules: &[Rules]| Policy {
        wanted: Wanted::All {
            rules: rules.to_vec(),
        },
        ..node("linux/amd64")
    };
    let problem = problems(&only_choice(&archive, &all(&Rules::ALL)));
    assert!(problem.contains("linux/amd64: containerd uses"), "{problem}");
    let archive = listed([image("linux/amd64"), sbom("linux/amd64"), image("linux/arm64")]);
    taken(&only_choice(&archive, &all(&Rules::ALL)));
    let featured = listed([
        nydus("application/vnd.nydus.image.config.v1+json"),
        image("linux/amd64"),
    ]);
    taken(&only_choice(&featured, &all(&[Rules::Rc3])));
    problems(&only_choice(&featured, &all(&[Rules::V0_2])));
}

#[test]
fn artifacts_behind_the_image_for_no_platform_or_for_unknown_ones_change_nothing() {
    let unknown = sbom("unknown/unknown");
    let without = sbom("linux/amd64").platform_in_config_only();
    for (order, artifact) in [
        ([image("linux/amd64"), sbom("linux/amd64"), unknown.clone()], 1),
        ([unknown, without.clone(), image("linux/amd64")], 0),
        ([without, image("linux/amd64"), sbom("linux/amd64")], 2),
    ] {
        let mut archive = listed(order);
        taken(&only_choice(&archive, &by(&Rules::ALL, &["linux/amd64"])));
        let parts = archive.images[0].manifests[artifact].layers[0].clone();
        archive.remove_blob(&parts);
        taken(&only_choice(&archive, &by(&Rules::ALL, &["linux/amd64"])));
    }
}

#[test]
fn an_index_of_artifacts_alone_is_skipped_and_not_broken() {
    let archive = listed([sbom("linux/amd64"), sbom("linux/arm64")]);
    let choice = only_choice(&archive, &node("linux/amd64"));
    assert!(
        matches!(choice.verdict, Verdict::Skip(Skip::Foreign { .. })),
        "{choice:?}"
    );
}

#[test]
fn an_image_for_other_nodes_says_each_platform_once_and_names_no_attestation() {
    let archive = listed([
        image("linux/s390x"),
        image("linux/arm64"),
        image("linux/arm64"),
        image("unknown/unknown"),
        sbom("linux/ppc64le"),
    ]);
    let choice = only_choice(&archive, &node("linux/amd64"));
    let Verdict::Skip(Skip::Foreign { offered }) = &choice.verdict else {
        panic!("{choice:?}")
    };
    assert_eq!(offered, &["linux/s390x", "linux/arm64"]);
}

/// dragonflyoss/nydus#1976
#[test]
fn features_count_by_the_newest_rules_and_not_before() {
    let mut archive = listed([nydus(CONFIG), image("linux/amd64")]);
    let [first, plain] = [0, 1].map(|at| archive.images[0].manifests[at].clone());
    archive.remove_blob(&first.layers[0]);
    for rules in [Rules::V0_2, Rules::Rc1] {
        let problem = problems(&only_choice(&archive, &by(&[rules], &["linux/amd64"])));
        assert!(problem.contains(first.layers[0].as_ref()), "{rules:?}: {problem}");
    }
    let choice = only_choice(&archive, &by(&[Rules::Rc3], &["linux/amd64"]));
    assert!(needs(&choice, &plain.digest) && !needs(&choice, &first.digest));
}

#[test]
fn for_every_rule_both_choices_are_brought_and_the_difference_is_told() {
    let both = by(&Rules::ALL, &["linux/amd64"]);
    let archive = listed([nydus(CONFIG), image("linux/amd64")]);
    let choice = only_choice(&archive, &both);
    for manifest in &archive.images[0].manifests {
        assert!(needs(&choice, &manifest.digest));
        let told = |note: &&String| note.contains(manifest.digest.as_ref());
        let notes: Vec<_> = choice.notes.iter().filter(told).collect();
        assert!(!notes.is_empty(), "{:?}", choice.notes);
    }
    assert!(
        choice
            .notes
            .iter()
            .any(|note| note.starts_with("on containerd 1.6 and 1.7 "))
    );
    assert!(
        choice
            .notes
            .iter()
            .any(|note| note.starts_with("on containerd 2.3 and later "))
    );
    let same = only_choice(&index_of(&["linux/amd64", "linux/386"]), &both);
    assert_eq!(same.notes, [""; 0]);

    let archive = listed([
        nydus("application/vnd.nydus.image.config.v1+json"),
        image("linux/amd64"),
    ]);
    let problem = problems(&only_choice(&archive, &both));
    assert!(
        problem.starts_with("on containerd 1.6 and 1.7 linux/amd64: containerd uses"),
        "{problem}"
    );
    assert!(!problem.contains("2.3"), "{problem}");

    let archive = listed([nydus(CONFIG)]);
    let problem = problems(&only_choice(&archive, &both));
    assert!(
        problem.contains("on containerd 2.3 and later there is nothing for linux/amd64 in the image"),
        "{problem}"
    );
}

/// containerd's client asks the snapshotter for the features in the config, even if the index has
/// none.
#[test]
fn features_that_only_the_config_asks_for_are_told_and_break_no_image() {
    let needy = image("linux/amd64").config("os.features", json!(["erofs"]));
    let choice = only_choice(&listed([needy]), &by(&Rules::ALL, &["linux/amd64"]));
    taken(&choice);
    let told = ": containerd 2.3 and later need a snapshotter with os.features erofs";
    let is_told = choice.notes.iter().any(|note| note.contains(told));
    assert!(is_told, "{:?}", choice.notes);
}

/// containerd reads the config of the first manifest without a platform, and of no other.
#[test]
fn the_first_manifest_without_a_platform_decides_by_its_config() {
    let by_config = |platform| image(platform).platform_in_config_only();
    let archive = listed([by_config("linux/amd64"), by_config("linux/arm64")]);
    taken(&only_choice(&archive, &node("linux/amd64")));
    let archive = listed([by_config("linux/arm64"), by_config("linux/amd64")]);
    let [used, meant] = [0, 1].map(|at| archive.images[0].manifests[at].digest.clone());
    let problem = problems(&only_choice(&archive, &node("linux/amd64")));
    assert!(
        problem.contains(used.as_ref()) && problem.contains(meant.as_ref()),
        "{problem}"
    );
    // 1.6 and 1.7 ignore the variant in the config. Later versions use it.
    let archive = listed([by_config("linux/arm/v7")]);
    taken(&only_choice(&archive, &by(&[Rules::V0_2], &["linux/arm/v7"])));
    let level = listed([by_config("linux/amd64/v2")]);
    taken(&only_choice(&level, &by(&[Rules::V0_2], &["linux/amd64"])));
    let newer = only_choice(&level, &by(&[Rules::Rc1], &["linux/amd64"]));
    assert!(
        matches!(newer.verdict, Verdict::Skip(Skip::Foreign { .. })),
        "{newer:?}"
    );
}

#[test]
fn layers_that_only_a_plugin_unpacks_are_told_and_stop_nothing() {
    let with = |media_type: &str| {
        let layer = bundle::fixtures::Layer::new(media_type.as_bytes().to_vec()).media_type(media_type);
        let image = Image::new("r.test/a:1").manifest(Manifest::new("linux/amd64").with_layer(layer));
        let choice = only_choice(&Layout::new().image(image).build(), &node("linux/amd64"));
        taken(&choice);
        choice.notes.join("; ")
    };
    for plain in [
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
    ] {
        assert_eq!(with(plain), "", "{plain}");
    }
    for unusual in [
        "application/vnd.oci.image.layer.nydus.blob.v1",
        "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
    ] {
        let note = with(unusual);
        assert!(
            note.starts_with("linux/amd64: ") && note.contains(unusual),
            "{note}"
        );
    }
}

/// Returns an index of so many images, with so many names of one repository each.
fn product(names: usize, images: usize) -> bundle::Catalog {
    let archive = Layout::new()
        .image(Image::new("r.test/a:1").platform("linux/amd64").layer(b"x"))
        .build();
    let mut catalog = open(&archive).catalog().clone();
    let image = catalog.images[0].root.clone();
    let children = (0..images).map(|n| {
        let mut child = image.clone();
        let digest = format!("sha256:{n:064x}");
        child.descriptor.set_digest(digest.parse().unwrap());
        child.platform = Some("linux/amd64".parse().unwrap());
        child
    });
    catalog.images[0].root.content = Content::Index(children.collect());
    let names = (0..names).map(|n| RawName::RepoTag(format!("r.test/a{n}:1")));
    catalog.images[0].names = names.collect();
    catalog
}

#[test]
fn names_times_digests_count_before_the_first_record_is_made() {
    let with = |digest_references| Policy {
        naming: Naming {
            digest_references,
            ..Naming::default()
        },
        most_records: 10_000,
        ..node("linux/amd64")
    };
    let table = [
        (DigestReferences::None, 256, 4_000, Some(256)),
        (DigestReferences::Target, 256, 4_000, Some(512)),
        (DigestReferences::All, 100, 98, Some(200 + 9_800)),
        (DigestReferences::All, 100, 99, None),
        (DigestReferences::All, 256, 4_000, None),
    ];
    for (references, names, images, records) in table {
        let selection = select(&product(names, images), &with(references));
        let made: usize = selection.taken().map(|taken| taken.records.len()).sum();
        assert_eq!(made, records.unwrap_or(0), "{references:?}: {names} x {images}");
        let asked = selection.asked_records;
        assert_eq!(
            asked > 10_000,
            records.is_none(),
            "{asked} for {names} x {images}"
        );
        if records.is_none() {
            let problem = problems(&selection.choices[0]);
            assert!(problem.contains("limits.records"), "{problem}");
        }
    }
}

#[test]
fn all_images_together_ask_for_as_many_records_as_there_may_be() {
    let mut catalog = product(60, 1);
    let mut other = catalog.images[0].clone();
    let digest = format!("sha256:{:064x}", u32::MAX);
    other.root.descriptor.set_digest(digest.parse().unwrap());
    other.names = (0..60)
        .map(|n| RawName::RepoTag(format!("r.test/b{n}:1")))
        .collect();
    catalog.images.push(other);
    let policy = Policy {
        most_records: 100,
        ..node("linux/amd64")
    };
    let selection = select(&catalog, &policy);
    assert_eq!(selection.asked_records, 120);
    assert_eq!(selection.taken().count(), 1);
}

/// A config of some MiB, and thousands of absent layers. Each problem starts with the platform.
#[test]
fn what_a_platform_says_is_told_of_each_layer_in_short() {
    let archive = Layout::new()
        .image(Image::new("r.test/a:1").platform("linux/amd64").layer(b"x"))
        .build();
    let mut catalog = open(&archive).catalog().clone();
    let Content::Manifest(manifest) = &mut catalog.images[0].root.content else {
        panic!("a manifest")
    };
    let manifest = std::sync::Arc::make_mut(manifest);
    let platform = manifest.config_platform.as_mut().unwrap();
    platform.variant = Some("v".repeat(1 << 20));
    let mut layer = manifest.layers[0].clone();
    layer.state = bundle::PartState::Absent;
    manifest.layers = vec![layer; 5_000];
    let choices = select(&catalog, &node("linux/amd64")).choices;
    let Verdict::Broken(problems) = &choices[0].verdict else {
        panic!("{:?}", choices[0].label)
    };
    let longest = problems.iter().map(|problem| problem.what.len()).max();
    assert!(problems.len() == 5_000 && longest < Some(1_000), "{longest:?}");
}

#[test]
fn a_record_keeps_annotations_where_they_are_few() {
    let selected = |annotations: usize| {
        let mut catalog = product(200, 1);
        let text = "x".repeat(100);
        let annotations = (0..annotations).map(|n| (n.to_string(), text.clone())).collect();
        let descriptor = &mut catalog.images[0].root.descriptor;
        descriptor.set_annotations(Some(annotations));
        descriptor.set_urls(Some(vec![text.clone(); 9_999]));
        let selection = select(&catalog, &node("linux/amd64"));
        let records = selection.taken().flat_map(|taken| taken.records.clone());
        records.collect::<Vec<_>>()
    };
    for (there, kept) in [(1, 1), (6, 6), (7, 0), (10_000, 0)] {
        let records = selected(there);
        let annotations = |record: &NamedTarget| record.target.annotations().iter().flatten().count();
        assert_eq!(records.len(), 200);
        assert!(
            records
                .iter()
                .all(|record| annotations(record) == kept && record.target.urls().is_none()),
            "{there}"
        );
        let first = &records[0].target;
        let is_shared = |record: &NamedTarget| std::sync::Arc::ptr_eq(&record.target, first);
        assert!(records.iter().all(is_shared), "one descriptor for all names");
    }
}

#[test]
fn a_final_name_out_of_scope_refuses_its_image_and_the_others_land() {
    let archive = Layout::new()
        .image(Image::new("r.test/shop/a:1").platform("linux/amd64").layer(b"a"))
        .image(Image::new("r.test/shop/b:1").platform("linux/amd64").layer(b"b"))
        .build();
    let alias = |from: &str, to: &str| Alias {
        from: from.to_owned(),
        to: to.to_owned(),
    };
    let catalog = open(&archive).catalog().clone();
    let digest_of_b = catalog.images[1].root.descriptor.digest().to_string();
    let by_digest = |digest_references| Naming {
        digest_references,
        ..Naming::default()
    };
    let plain = || by_digest(DigestReferences::None);
    // Each row: the naming rules, the patterns of the key, and the name that refuses `b` if any.
    let table = [
        (plain(), vec!["r.test/shop/*"], None),
        (plain(), vec!["r.test/shop/a:1", "r.test/shop/b:1"], None),
        (
            plain(),
            vec!["r.test/shop/a:*"],
            Some("r.test/shop/b:1".to_owned()),
        ),
        (
            by_digest(DigestReferences::Target),
            vec!["r.test/shop/a*", "r.test/shop/b:*"],
            Some(format!("r.test/shop/b@{digest_of_b}")),
        ),
        (
            Naming {
                aliases: vec![alias("r.test/shop/b", "mirror.test/b")],
                ..plain()
            },
            vec!["r.test/*"],
            Some("mirror.test/b:1".to_owned()),
        ),
        (
            Naming {
                names: [(digest_of_b.clone(), "given.test/b:2".parse().unwrap())].into(),
                ..plain()
            },
            vec!["r.test/*"],
            Some("given.test/b:2".to_owned()),
        ),
        (
            Naming {
                names: [(digest_of_b.clone(), "given.test/b:2".parse().unwrap())].into(),
                ..plain()
            },
            vec!["r.test/*", "given.test/b:?"],
            None,
        ),
    ];
    for (naming, patterns, refused) in table {
        let scope = Scope {
            key: "release (0123456789abcdef)".to_owned(),
            names: patterns.iter().map(|text| text.parse().unwrap()).collect(),
        };
        let policy = Policy {
            naming: Naming {
                scopes: Some(vec![scope]),
                ..naming
            },
            ..node("linux/amd64")
        };
        let choices = select(&catalog, &policy).choices;
        taken(&choices[0]);
        match (&choices[1].verdict, &refused) {
            (Verdict::Take(_), None) => {}
            (Verdict::Forbidden(reason), Some(name)) => assert!(
                reason.starts_with(&format!(
                    "key release (0123456789abcdef) may not give the name {name}: "
                )),
                "{patterns:?}: {reason}"
            ),
            (other, _) => panic!("{patterns:?}: {other:?}"),
        }
    }
}

#[test]
fn a_plain_tag_is_held_against_the_scope_with_its_repository_and_so_are_manifests() {
    let names_in = |raw: RawName, naming: Naming, pattern: &str| {
        let mut catalog = product(1, 2);
        catalog.images[0].names = vec![raw];
        let scope = Scope {
            key: "k".to_owned(),
            names: vec![pattern.parse().unwrap()],
        };
        let policy = Policy {
            naming: Naming {
                scopes: Some(vec![scope]),
                ..naming
            },
            ..node("linux/amd64")
        };
        match select(&catalog, &policy).choices.remove(0).verdict {
            Verdict::Take(taken) => Ok(taken.records.len()),
            Verdict::Forbidden(reason) => Err(reason),
            other => panic!("{other:?}"),
        }
    };
    let based = || Naming {
        base_name: Some("r.test/app".to_owned()),
        digest_references: DigestReferences::None,
        ..Naming::default()
    };
    let tag = || RawName::RefName("v1".to_owned());
    assert_eq!(names_in(tag(), based(), "r.test/app:v?"), Ok(1));
    assert!(names_in(tag(), based(), "v1").is_err());
    let short = || RawName::RepoTag("busybox".to_owned());
    assert_eq!(names_in(short(), based(), "docker.io/library/busybox:*"), Ok(1));
    assert!(names_in(short(), based(), "busybox*").is_err());

    let all = || Naming {
        digest_references: DigestReferences::All,
        ..Naming::default()
    };
    let repo_tag = || RawName::RepoTag("r.test/a:1".to_owned());
    assert_eq!(names_in(repo_tag(), all(), "r.test/a*"), Ok(4));
    // The digest of the index, and those of both manifests below it.
    let reason = names_in(repo_tag(), all(), "r.test/a:*").unwrap_err();
    assert!(reason.contains("name r.test/a@sha256:"), "{reason}");
}
