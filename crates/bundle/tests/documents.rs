//! The JSON documents of layouts. They are read as containerd reads them, and refused if readers
//! would differ.

use serde_json::json;

use crate::common::*;
use airgapd_bundle::fixtures::{Image, Layout, Manifest};
use airgapd_bundle::{Fault, Warning};

#[test]
fn a_document_that_contradicts_its_media_type_is_refused() {
    let manifest = || Manifest::new("linux/amd64").layer(b"x");
    let index = "application/vnd.oci.image.index.v1+json";
    let rows = [
        (
            manifest().member("manifests", json!([])),
            "has the members of an index",
        ),
        (
            manifest().member("mediaType", json!(index)),
            "calls itself an index",
        ),
        (manifest().member("fsLayers", json!([])), "schema 1"),
        (manifest().member("config", json!(null)), "names no config"),
        (manifest().member("layers", json!([7])), "is not valid"),
        (
            manifest().member("layers", json!([{ "digest": "x" }])),
            "\"x\" is not a digest",
        ),
    ];
    for (built, reason) in rows {
        let bundle = good(&Layout::new().image(Image::new("a").manifest(built)).build());
        let root = &only_image(&bundle).root;
        assert!(broken(root).contains(reason), "{}", broken(root));
        assert!(
            broken(root).contains(root.descriptor.digest().as_ref()),
            "{}",
            broken(root)
        );
    }
}

#[test]
fn documents_are_read_as_leniently_as_containerd_reads_them() {
    let manifest = || Manifest::new("linux/amd64").layer(b"x");
    let rows = [
        manifest().member("mediaType", json!(null)),
        manifest().member("schemaVersion", json!(1)),
        manifest().member("manifests", json!(null)),
        manifest().member("somethingNew", json!({ "a": [1, 2.5, null] })),
        manifest()
            .config("history", json!(null))
            .config("created", json!(7)),
        manifest().descriptor_member(
            "mediaType",
            json!("application/vnd.docker.distribution.manifest.v2+json"),
        ),
        manifest().config_media_type("application/vnd.docker.container.image.v1+json"),
        Manifest::new("linux/amd64"),
        Manifest::new("linux/amd64").member("layers", json!(null)),
    ];
    for built in rows {
        let bundle = good(
            &Layout::new()
                .image(Image::new("a").manifest(built.clone()))
                .build(),
        );
        assert!(is_whole(&only_image(&bundle).root), "{built:?}");
    }
}

#[test]
fn the_version_of_the_layout_must_be_known() {
    let mut archive = one_image();
    archive.set("oci-layout", r#"{"imageLayoutVersion":"2.0.0"}"#.to_owned());
    assert!(matches!(refused(&archive), Fault::UnsupportedLayout(version) if version == "\"2.0.0\""));
    let mut archive = one_image();
    archive.set("oci-layout", "no json".to_owned());
    assert!(matches!(
        refused(&archive),
        Fault::Document {
            entry: "oci-layout",
            ..
        }
    ));
}

#[test]
fn a_layout_without_its_layout_file_is_taken_with_a_warning() {
    let mut archive = one_image();
    archive.remove("oci-layout");
    let bundle = good(&archive);
    assert!(is_whole(&only_image(&bundle).root));
    assert_eq!(bundle.catalog().warnings, [Warning::NoLayoutFile]);
}

#[test]
fn an_unusable_index_is_an_error_that_says_so() {
    let rows = [
        ("", "EOF"),
        ("[]", "expected an object"),
        (r#"["", []]"#, "expected an object"),
        ("{} {}", "trailing characters"),
        (r#"{"manifests":[]}"#, "lists no images"),
        (r#"{"manifests":null}"#, "lists no images"),
        (r#"{"manifests":{}}"#, "expected a list"),
        (r#"{"manifests":[{"a":1}],"Manifests":[]}"#, "lists no images"),
        (r#"{"manifests":[],"layers":[]}"#, "has the members of a manifest"),
        (
            r#"{"mediaType":"application/vnd.oci.image.manifest.v1+json"}"#,
            "calls itself a manifest",
        ),
    ];
    for (index, expected) in rows {
        let mut archive = one_image();
        archive.set("index.json", index.to_owned());
        match refused(&archive) {
            Fault::Document {
                entry: "index.json",
                reason,
            } => assert!(reason.contains(expected), "{reason}"),
            fault => panic!("{index}: {fault}"),
        }
    }
}

#[test]
fn keys_in_another_case_or_given_twice_are_read_as_go_reads_them() {
    let plain = one_image();
    let digest = good(&plain).catalog().images[0].root.descriptor.digest().clone();
    let index = String::from_utf8(plain.bytes_of("index.json")).unwrap();
    let member = index.strip_prefix('{').unwrap();
    let rows = [
        index.replace("\"manifests\"", "\"Manifests\""),
        index.replace("\"manifests\"", "\"MANIFESTS\""),
        index
            .replace("\"digest\"", "\"Digest\"")
            .replace("\"size\"", "\"\u{17f}ize\""),
        index.replace("\"annotations\"", "\"Annotations\""),
        format!("{{\"manifests\":[],{member}"),
        format!("{{\"manifests\":[{{\"digest\":\"sha256:00\"}}],{member}"),
        format!("{{\"manifests\":null,{member}"),
        index.replace("\"digest\"", "\"digest\":\"sha256:00\",\"digest\""),
        index.replace("\"size\"", "\"size\":-1,\"Size\""),
    ];
    for row in rows {
        let mut archive = one_image();
        archive.set("index.json", row.clone());
        let bundle = good(&archive);
        let image = only_image(&bundle);
        assert_eq!(*image.root.descriptor.digest(), digest, "{row}");
        assert!(is_whole(&image.root), "{row}");
        assert_eq!(image.names.len(), 1, "{row}");
    }
}

#[test]
fn manifests_and_configs_are_read_as_go_reads_them_too() {
    let manifest = json!({
        "SchemaVersion": 2,
        "MediaType": "application/vnd.oci.image.manifest.v1+json",
        "CONFIG": {"mediatype": "application/vnd.oci.image.config.v1+json", "digest": "CONFIG", "size": 0},
        "Layers": [],
    });
    let config = r#"{"OS":"windows","os":"linux","Architecture":"arm64","RootFS":{"Diff_IDs":[]}}"#;
    let config_digest = airgapd_bundle::fixtures::digest_of(config.as_bytes());
    let manifest = manifest
        .to_string()
        .replace("\"CONFIG\",", &format!("\"{config_digest}\","))
        .replace(
            "\"digest\":\"CONFIG\"",
            &format!("\"digest\":\"{config_digest}\""),
        )
        .replace("\"size\":0", &format!("\"size\":{}", config.len()));
    let digest = airgapd_bundle::fixtures::digest_of(manifest.as_bytes());
    let mut archive = one_image();
    archive.add(
        &format!("blobs/sha256/{}", config_digest.digest()),
        config.to_owned(),
    );
    archive.add(&format!("blobs/sha256/{}", digest.digest()), manifest.clone());
    let index = json!({ "schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest.to_string(), "size": manifest.len(),
    }] });
    archive.set("index.json", index.to_string());
    let bundle = good(&archive);
    let manifest = self::manifest(&only_image(&bundle).root);
    assert_eq!(manifest.problems, Vec::<String>::new());
    let platform = manifest.config_platform.as_ref().unwrap();
    assert_eq!(
        (platform.os.as_str(), platform.architecture.as_str()),
        ("linux", "arm64")
    );
}

#[test]
fn an_object_given_twice_is_refused_where_go_would_mix_the_two() {
    let index = String::from_utf8(one_image().bytes_of("index.json")).unwrap();
    let mut archive = one_image();
    let twice = index.replace(
        "\"annotations\":",
        "\"annotations\":{\"a\":\"b\"},\"annotations\":",
    );
    assert_ne!(twice, index);
    archive.set("index.json", twice);
    let bundle = good(&archive);
    assert!(broken(&only_image(&bundle).root).contains("given twice"));
}
