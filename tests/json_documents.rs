//! The JSON documents, as a whole and key by key, as `docs/json.md` promises them to scripts.

use bundle::fixtures::{Archive, Image, Layout};
use oci_spec::image::Digest;
use serde_json::{Value, json};

use crate::support::bundles::text;
use crate::support::{Node, Target, on_the_fake};

const NAME: &str = "registry.test/app:1";
const ABSENT: &str = "registry.test/app:2";

/// Returns a bundle that is the same in every run: an index with a platform that the node runs and
/// another platform.
fn bundle() -> Layout {
    let image = Image::new(NAME)
        .platform("linux/amd64")
        .layer("ours")
        .platform("linux/s390x")
        .layer("not ours");
    Layout::new().image(image)
}

/// Returns the size of a blob by its digest.
fn size_of(archive: &Archive, digest: impl AsRef<str>) -> u64 {
    let name = archive.name_of(&digest.as_ref().parse().unwrap());
    archive.bytes_of(&name).len() as u64
}

/// Removes durations, which differ in every run.
fn without_duration(mut document: Value) -> Value {
    for bundle in document["bundles"].as_array_mut().unwrap() {
        assert!(bundle["duration_ms"].is_u64(), "{bundle:#}");
        bundle["duration_ms"] = json!(0);
    }
    document
}

fn import_prints_one_document_with_stable_keys(target: &Target) {
    let node = Node::on(target);
    let file = text(&node.path("bundle.tar"));
    let archive = bundle().write_to(file.as_ref());
    let root = archive.images[0].root.to_string();
    let [ours, other] = &archive.images[0].manifests[..] else {
        panic!("two platforms")
    };
    let sizes = |digests: Vec<&str>| {
        digests
            .into_iter()
            .map(|digest| size_of(&archive, digest))
            .sum::<u64>()
    };
    let taken = sizes(vec![
        &root,
        ours.digest.as_ref(),
        ours.config.as_ref(),
        ours.layers[0].as_ref(),
    ]);
    let left = sizes(vec![
        other.digest.as_ref(),
        other.config.as_ref(),
        other.layers[0].as_ref(),
    ]);
    let image = |name: &str, outcome: &str| {
        json!({
            "name": name,
            "digest": root,
            "media_type": "application/vnd.oci.image.index.v1+json",
            "platforms": ["linux/amd64"],
            "outcome": outcome,
            "reason": null,
        })
    };
    let document = |bundle: &str, outcome: &str, blobs: Value| {
        json!({"bundles": [{
            "path": file,
            "format": "oci-layout",
            "compression": "none",
            "outcome": bundle,
            "error": null,
            "images": [image(NAME, outcome), image(&format!("registry.test/app@{root}"), outcome)],
            "blobs": blobs,
            "space": null,
            "unpacked": null,
            "duration_ms": 0,
            "warnings": [],
        }], "error": null})
    };
    let blobs = |sent: (u64, u64), present: (u64, u64)| {
        json!({
            "sent": sent.0, "sent_bytes": sent.1,
            "present": present.0, "present_bytes": present.1,
            "not_needed": 3, "not_needed_bytes": left,
        })
    };
    let first = without_duration(node.import([&file]).exits(0).json());
    assert_eq!(first, document("imported", "created", blobs((4, taken), (0, 0))));
    let again = without_duration(node.import([&file]).exits(0).json());
    assert_eq!(
        again,
        document("unchanged", "unchanged", blobs((0, 0), (4, taken)))
    );
}

/// A value that could not be read is `null`. Without containerd, the list is empty.
fn import_prints_a_document_even_where_nothing_could_be_done(target: &Target) {
    let node = Node::on(target);
    let file = node.path("text.tar");
    std::fs::write(&file, "no bundle\n".repeat(200)).unwrap();
    let report = node.import([&file]).exits(5).bundle();
    assert_eq!(
        (&report["format"], &report["compression"]),
        (&Value::Null, &Value::Null),
        "{report:#}"
    );
    assert_eq!(report["outcome"], "failed");
    assert_eq!(report["images"], json!([]));
    assert!(
        report["error"].as_str().unwrap().contains("text.tar"),
        "{report:#}"
    );

    let nowhere = Node::at("/nonexistent/containerd.sock".as_ref(), target.namespace());
    let document = nowhere.import([&file]).exits(3).json();
    assert_eq!(document["bundles"], json!([]));
    let error = document["error"].as_str().unwrap();
    assert!(error.contains("/nonexistent/containerd.sock"), "{error}");
}

fn inspect_prints_one_document_with_stable_keys(target: &Target) {
    let node = Node::on(target);
    let file = text(&node.path("bundle.tar"));
    let archive = bundle().write_to(file.as_ref());
    let root = archive.images[0].root.to_string();
    let part = |digest: &Digest, media_type: &str| {
        let size = size_of(&archive, digest.as_ref());
        json!({"digest": digest.to_string(), "media_type": media_type, "size": size, "state": "present"})
    };
    let platform = |manifest: usize, name: &str, taken: bool| {
        let manifest = &archive.images[0].manifests[manifest];
        let parts = [
            manifest.digest.as_ref(),
            manifest.config.as_ref(),
            manifest.layers[0].as_ref(),
        ];
        json!({
            "platform": name,
            "digest": manifest.digest.to_string(),
            "taken": taken,
            "state": "whole",
            "problems": [],
            "config_platform": null,
            "layers": 1,
            "reason": if taken { Value::Null } else { json!("not taken on this node") },
            "blobs": [part(&manifest.config, "application/vnd.oci.image.config.v1+json"),
                part(&manifest.layers[0], "application/vnd.oci.image.layer.v1.tar")],
            "size": parts.map(|digest| size_of(&archive, digest)).iter().sum::<u64>(),
        })
    };
    let document = node
        .airgapd(["inspect", "-o", "json", "--platform", "linux/amd64", &file])
        .exits(0)
        .json();
    let expected = json!({
        "path": file,
        "format": "oci-layout",
        "compression": "none",
        "relies_on": null,
        "receipt": null,
        "release": null,
        "verified": null,
        "digest": bundle::fixtures::digest_of(&archive.bytes_of("index.json")).to_string(),
        "size": std::fs::metadata(&file).unwrap().len(),
        "complete": true,
        "warnings": [],
        "images": [{
            "names": [NAME],
            "digest": root,
            "media_type": "application/vnd.oci.image.index.v1+json",
            "records": [NAME, format!("registry.test/app@{root}")],
            "verdict": "take",
            "reason": null,
            "notes": [],
            "platforms": [platform(0, "linux/amd64", true), platform(1, "linux/s390x", false)],
        }],
        "error": null,
    });
    assert_eq!(document, expected);
}

fn every_command_prints_a_document_where_it_comes_to_nothing(target: &Target) {
    let node = Node::on(target);
    let keys = |document: &Value| document.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let absent = text(&node.path("absent.tar"));
    let foreign = text(&node.path("foreign.tar"));
    std::fs::write(&foreign, "no bundle\n".repeat(200)).unwrap();
    for (file, exit) in [(&absent, 1), (&foreign, 5)] {
        let document = node.airgapd(["inspect", "-o", "json", file]).exits(exit).json();
        assert_eq!(keys(&document), ["complete", "error", "path"]);
        assert_eq!(document["path"], json!(file));
        assert_eq!(document["complete"], json!(false));
        // All commands report an unreadable bundle with the same error.
        let report = node.import([file]).exits(exit).bundle();
        assert_eq!(report["error"], document["error"]);
    }
    let nowhere = Node::at("/nonexistent/containerd.sock".as_ref(), target.namespace());
    let document = nowhere
        .airgapd(["release", "--all", "-o", "json"])
        .exits(3)
        .json();
    assert_eq!(document["released"], json!([]));
    assert!(
        document["error"]
            .as_str()
            .unwrap()
            .contains("/nonexistent/containerd.sock")
    );

    node.configure_also("signatures: require\ntrustedKeys: /nonexistent/keys");
    let document = node.airgapd(["config", "--check", "-o", "json"]).exits(2).json();
    let why = "/nonexistent does not exist";
    assert!(document["error"].as_str().unwrap().contains(why), "{document}");
    node.configure_also("trustedDigests: /nonexistent/trusted");
    node.airgapd(["config"]).exits(0);
    let document = node.airgapd(["config", "--check", "-o", "json"]).exits(2).json();
    assert!(
        document["error"]
            .as_str()
            .unwrap()
            .contains("/nonexistent/trusted")
    );
    node.configure_also("resync: soon");
    for command in ["config", "import", "inspect"] {
        let arguments = [command, "-o", "json", &absent];
        let arguments = if command == "config" {
            &arguments[..3]
        } else {
            &arguments
        };
        let document = node.airgapd(arguments).exits(2).json();
        assert_eq!(keys(&document), ["error"]);
        assert!(document["error"].as_str().unwrap().contains("resync"));
    }
}

/// A command line with a mistake is answered with a document too, if the caller requested one.
fn a_command_line_that_is_not_understood_is_answered_with_a_document(target: &Target) {
    let node = Node::on(target);
    let rows: [(&[&str], &str); 5] = [
        (&["import", "-o", "json"], "<FILE>"),
        (&["status", "--output=json", "--wach"], "--wach"),
        (&["wait", "-ojson", "--timeout", "soon"], "soon"),
        (&["-o", "json", "nonsense"], "nonsense"),
        (&["status", "-o", "json", "-o", "file"], "--output"),
    ];
    for (arguments, part) in rows {
        let answer = node.airgapd(arguments).exits(2);
        let document = answer.json();
        let error = document["error"].as_str().unwrap();
        assert!(error.contains(part) && !error.contains("Usage"), "{document:#}");
        assert!(answer.stderr.contains(part), "{answer:?}");
    }
    let answer = node.airgapd(["status", "--wach"]).exits(2);
    assert_eq!(answer.stdout, "");
    let help = node.airgapd(["status", "--help", "-o", "json"]).exits(0);
    assert!(help.stdout.contains("--watch"), "{help:?}");
}

fn inspect_of_a_bundle_that_is_not_whole_ends_with_5(target: &Target) {
    let node = Node::on(target);
    let file = text(&node.path("bundle.tar"));
    let mut archive = bundle().build();
    let layer = archive.images[0].manifests[0].layers[0].clone();
    archive.remove_blob(&layer).write_to(file.as_ref());
    let answer = node
        .airgapd(["inspect", "-o", "json", "--platform", "linux/amd64", &file])
        .exits(5);
    let image = &answer.json()["images"][0];
    assert_eq!(
        (&answer.json()["complete"], &image["verdict"]),
        (&json!(false), &json!("broken"))
    );
    assert!(
        image["reason"].as_str().unwrap().contains(layer.digest()),
        "{image:#}"
    );
    assert_eq!(image["records"], json!([]));
}

fn verify_prints_one_document_with_stable_keys(target: &Target) {
    let node = Node::on(target);
    let file = text(&node.path("bundle.tar"));
    let archive = bundle().write_to(file.as_ref());
    node.import(["--platform", "linux/amd64", &file]).exits(0);
    let list = text(&node.path("list.txt"));
    std::fs::write(&list, "registry.test/app:1\nregistry.test/app:2\n").unwrap();
    let document = node
        .airgapd([
            "verify",
            "-o",
            "json",
            "--platform",
            "linux/amd64",
            "--images",
            &list,
        ])
        .exits(4)
        .json();
    let source = |line: usize, given: &str| {
        json!({"kind": "list", "path": list, "object": null, "field": format!("line {line}"), "given": given,
            "pull_policy": null})
    };
    assert!(document["containerd"]["version"].is_string(), "{document:#}");
    let expected = json!({
        "complete": false,
        "containerd": document["containerd"],
        "bundles": [],
        "k0s": null,
        "images": [{
            "reference": NAME,
            "status": "present",
            "digest": archive.images[0].root.to_string(),
            "place": "containerd",
            "platforms": ["linux/amd64"],
            "pinned": true,
            "bundles": ["bundle.tar"],
            "problems": [],
            "found_in": null,
            "near_miss": null,
            "remedy": null,
            "warnings": [],
            "sources": [source(1, NAME)],
        }, {
            "reference": "registry.test/app:2",
            "status": "absent",
            "digest": null,
            "place": null,
            "platforms": [],
            "pinned": null,
            "bundles": [],
            "problems": ["there is no image of the name registry.test/app:2"],
            "found_in": null,
            "near_miss": {"differs_in": "tag", "reference": NAME, "place": "containerd"},
            "remedy": format!("bundle registry.test/app:2, or ask for {NAME}"),
            "warnings": [],
            "sources": [source(2, "registry.test/app:2")],
        }],
        "pulls": [],
        "refused": [],
        "unsigned": [],
        "warnings": [],
        "notes": [],
    });
    assert_eq!(document, expected);
}

fn status_and_wait_print_documents_with_stable_keys(target: &Target) {
    let node = Node::on(target);
    let archive = bundle().write_to(&node.path("bundle.tar"));
    node.configure_also("platforms: [linux/amd64]");
    let list = text(&node.path("required.txt"));
    std::fs::write(&list, format!("{NAME}\n{ABSENT}\n")).unwrap();
    node.configure_also(&format!("require: {{images: [{list}]}}"));
    let daemon = node.start();
    std::fs::rename(node.path("bundle.tar"), node.images().join("bundle.tar")).unwrap();
    let waited = node.airgapd(["wait", "--required", "-o", "json"]).exits(4).json();
    let document = node.airgapd(["status", "-o", "json"]).exits(1).json();
    daemon.finish(target);
    let known = |key: &str| document["bundles"][0][key].clone();
    assert!(
        known("imported_at").is_string() && known("duration_ms").is_u64(),
        "{document:#}"
    );
    let shown = json!({
        "name": "bundle.tar",
        "state": "done",
        "size": std::fs::metadata(node.images().join("bundle.tar")).unwrap().len(),
        "outcome": "imported",
        "catalog": bundle::fixtures::digest_of(&archive.bytes_of("index.json")).to_string(),
        "images": 1,
        "failed_images": 0,
        "records": 2,
        "imported_at": known("imported_at"),
        "duration_ms": known("duration_ms"),
        "sent_bytes": known("sent_bytes"),
        "progress": null,
        "waits_for": null,
        "error": null,
        "retry_in_ms": null,
        "disk_use": null,
    });
    let mut with_disk_use = shown.clone();
    with_disk_use["disk_use"] = known("disk_use");
    let in_containerd = |digest: String| size_of(&archive, digest);
    let [ours, _] = &archive.images[0].manifests[..] else {
        panic!("two platforms")
    };
    let needed = [
        &archive.images[0].root,
        &ours.digest,
        &ours.config,
        &ours.layers[0],
    ];
    let bytes: u64 = needed
        .map(|digest| in_containerd(digest.to_string()))
        .iter()
        .sum();
    assert_eq!(
        with_disk_use["disk_use"],
        json!({"store_bytes": bytes, "only_bytes": bytes, "freed_bytes": bytes})
    );
    let image = |name: &str| {
        json!({"name": name, "digest": archive.images[0].root.to_string(), "bundle": "bundle.tar", "record": "in-place",
            "missing_blobs": [], "pinned": true})
    };
    let verdict = json!({"health": "failed", "reasons": [{"health": "failed", "subject": "required", "name": null,
        "waits_for": null, "text": format!("1 of 2 required images is missing: {ABSENT}"),
        "remedy": "`airgapd verify` names the nearest bundle or name for each"}]});
    let expected = json!({
        "verdict": verdict,
        "configuration_problem": null,
        "metrics_file_problem": null,
        "metrics_address_problem": null,
        "disk": document["disk"],
        "image_count": {"all": 1, "in_place": 1, "failed": 0},
        "daemon": {"version": env!("CARGO_PKG_VERSION"), "pid": document["daemon"]["pid"],
            "started_at": document["daemon"]["started_at"]},
        "containerd": {"socket": text(target.socket()), "namespace": target.namespace(), "reachable": true,
            "version": document["containerd"]["version"], "platform": "linux/amd64", "problem": null},
        "folder": {"path": text(&node.images()), "problem": null, "vanished": null},
        "more_folders": [],
        "required": {"current": true, "checked_at": document["required"]["checked_at"], "problem": null, "references": 2,
            "missing": [{"reference": ABSENT, "why": format!("there is no image of the name {ABSENT}"),
                "asked_by": [format!("{list}: line 2")]}]},
        "unpack": null,
        "bundles": [with_disk_use],
        "ignored": [],
        "images": [image(NAME), image(&format!("registry.test/app@{}", archive.images[0].root))],
        "problems": [format!("1 of 2 required images is missing: {ABSENT}")],
    });
    assert_eq!(document, expected);
    let waited_ms = waited["waited_ms"].clone();
    assert!(waited_ms.is_u64());
    let required = &waited["required"];
    assert_eq!(required["missing"], document["required"]["missing"]);
    let error = format!("1 of 2 required images is missing: {ABSENT} (`airgapd verify` says what to do)");
    let expected = json!({"outcome": "missing", "error": error, "verdict": {"health": "healthy", "reasons": []}, "bundles": [shown], "ignored": [],
        "required": required, "waited_ms": waited_ms});
    assert_eq!(waited, expected);
}

fn export_and_inventory_print_documents_with_stable_keys(target: &Target) {
    let node = Node::on(target);
    let file = text(&node.path("bundle.tar"));
    let archive = bundle().write_to(file.as_ref());
    node.import(["--platform", "linux/amd64", &file]).exits(0);
    let root = archive.images[0].root.to_string();
    let [ours, other] = &archive.images[0].manifests[..] else {
        panic!("two platforms")
    };
    let digests = [
        root.as_str(),
        ours.digest.as_ref(),
        ours.config.as_ref(),
        ours.layers[0].as_ref(),
    ];
    let sizes = digests.map(|digest| size_of(&archive, digest));
    let out = text(&node.path("out.tar"));
    let arguments = [
        "export",
        "-o",
        "json",
        "-o",
        &out,
        "--platform",
        "linux/amd64",
        NAME,
    ];
    let document = node.airgapd(arguments).exits(0).json();
    let bytes = std::fs::metadata(&out).unwrap().len();
    let inspected = node.airgapd(["inspect", "-o", "json", &out]).json();
    let reason = format!("linux/s390x: {} is not in containerd", other.digest);
    let expected = json!({
        "path": out,
        "bytes": bytes,
        "archive_bytes": bytes,
        "digest": inspected["digest"],
        "compression": "none",
        "images": [{
            "name": NAME,
            "names": [NAME, format!("registry.test/app@{root}")],
            "digest": root,
            "media_type": "application/vnd.oci.image.index.v1+json",
            "platforms": ["linux/amd64"],
            "absent": [],
            "left_out": [{"platform": "linux/s390x", "digest": other.digest.to_string(), "reason": reason}],
            "bytes": sizes.iter().sum::<u64>(),
        }],
        "skipped": [],
        "blobs": {"written": 4, "written_bytes": sizes.iter().sum::<u64>()},
        "duration_ms": document["duration_ms"],
    });
    assert_eq!(document, expected);

    let mut blobs: Vec<(&str, u64)> = digests.into_iter().zip(sizes).collect();
    blobs.sort_unstable();
    let blobs: Vec<Value> = blobs
        .into_iter()
        .map(|(digest, size)| json!({"digest": digest, "size": size}))
        .collect();
    let inventory = node.airgapd(["inventory"]).exits(0).json();
    let images = [NAME.to_owned(), format!("registry.test/app@{root}")]
        .map(|name| json!({"name": name, "digest": root}));
    assert!(inventory["node"].is_string());
    assert_eq!(
        inventory,
        json!({"version": 1, "node": inventory["node"], "blobs": blobs, "images": images})
    );
}

fn the_verbs_on_bundles_print_documents_with_stable_keys(target: &Target) {
    let node = Node::on(target);
    let file = text(&node.path("bundle.tar"));
    let archive = bundle().write_to(file.as_ref());
    let root = archive.images[0].root.to_string();
    let manifests = &archive.images[0].manifests;
    let parts = manifests
        .iter()
        .flat_map(|built| built.layers.iter().chain([&built.config, &built.digest]));
    let size = parts.map(|digest| size_of(&archive, digest)).sum::<u64>() + size_of(&archive, &root);
    let out = text(&node.path("out.tar"));
    let written = |document: &Value, path: &str, release: Value| {
        let bytes = std::fs::metadata(path).unwrap().len();
        json!({
            "path": path,
            "bytes": bytes,
            "archive_bytes": bytes,
            "digest": document["digest"],
            "base": null,
            "release": release,
            "images": [{"names": [NAME], "digest": root, "bytes": size}],
        })
    };
    let merged = ["bundle", "merge", "-o", "json", "-o", &out, &file];
    let merged = node.airgapd(merged).exits(0).json();
    let mut expected = written(&merged, &out, Value::Null);
    expected["warnings"] = json!([]);
    expected["duration_ms"] = merged["duration_ms"].clone();
    assert_eq!(merged, expected);

    let split = [
        "bundle",
        "split",
        "--max-size",
        "1MiB",
        "-o",
        "json",
        "-o",
        &out,
        &file,
    ];
    let split = node.airgapd(split).exits(0).json();
    let volume = text(&node.path("out-1.tar"));
    let volumes = [written(&split["volumes"][0], &volume, Value::Null)];
    assert_eq!(
        split,
        json!({"volumes": volumes, "warnings": [], "duration_ms": split["duration_ms"]})
    );

    let folder = text(&node.path("release"));
    let made = ["bundle", "release", "r1", "-o", "json", "-o", &folder, &file];
    let made = node.airgapd(made).exits(0).json();
    let bundle = written(&made["bundles"][0], &format!("{folder}/bundle.tar"), json!("r1"));
    assert_eq!(
        made,
        json!({
            "release": "r1",
            "list": made["list"],
            "members": [{"name": NAME, "digest": root}],
            "bundles": [bundle],
            "warnings": [],
            "duration_ms": made["duration_ms"],
        })
    );
    let bundle = text(&node.path("release/bundle.tar"));
    let inspected = node.airgapd(["inspect", "-o", "json", &bundle]).exits(0).json();
    assert_eq!(
        inspected["release"],
        json!({"name": "r1", "list": made["list"], "members": made["members"], "problem": null})
    );

    let other = text(&node.path("other.tar"));
    let changed = Layout::new().image(Image::new(NAME).platform("linux/amd64").layer("else"));
    let changed = changed.write_to(other.as_ref());
    let diff = ["bundle", "diff", "-o", "json", &file, &other];
    let diff = node.airgapd(diff).exits(0).json();
    let built = &changed.images[0].manifests[0];
    let added = [&built.digest, &built.config, &built.layers[0]].map(|digest| size_of(&changed, digest));
    let side = |path: &str, archive: &Archive| {
        let digest = bundle::fixtures::digest_of(&archive.bytes_of("index.json"));
        json!({"path": path, "digest": digest.to_string()})
    };
    let expected = json!({
        "same": false,
        "from": side(&file, &archive),
        "to": side(&other, &changed),
        "images": [{
            "name": NAME,
            "change": "changed",
            "from": {"digest": root, "platforms": ["linux/amd64", "linux/s390x"]},
            "to": {"digest": changed.images[0].root.to_string(), "platforms": ["linux/amd64"]},
        }],
        "unchanged": 0,
        "blobs": {
            "added": 3, "added_bytes": added.iter().sum::<u64>(),
            "removed": 7, "removed_bytes": size,
            "common": 0, "common_bytes": 0,
        },
    });
    assert_eq!(diff, expected);
}

fn release_and_config_print_documents_with_stable_keys(target: &Target) {
    let node = Node::on(target);
    let file = text(&node.path("bundle.tar"));
    bundle().write_to(file.as_ref());
    node.import([&file]).exits(0);
    let released = node
        .airgapd(["release", NAME, "--dry-run", "-o", "json"])
        .exits(0)
        .json();
    let labels = [
        "io.airgapd.import",
        "io.airgapd.pinned",
        "io.cri-containerd.pinned",
    ];
    assert_eq!(
        released,
        json!({"dry_run": true, "released": [{"name": NAME, "unpinned": true, "labels": labels}], "receipts": [], "error": null})
    );

    let config = node.airgapd(["config", "-o", "json"]).exits(0).json();
    let row = |key: &str| {
        config
            .as_array()
            .unwrap()
            .iter()
            .find(|row| row["key"] == key)
            .unwrap()
            .clone()
    };
    assert_eq!(
        row("resync"),
        json!({"key": "resync", "value": "10m", "origin": "default"})
    );
    assert_eq!(
        row("namespace"),
        json!({"key": "namespace", "value": target.namespace(), "origin": "file"})
    );
}

on_the_fake!(
    import_prints_one_document_with_stable_keys,
    import_prints_a_document_even_where_nothing_could_be_done,
    inspect_prints_one_document_with_stable_keys,
    inspect_of_a_bundle_that_is_not_whole_ends_with_5,
    a_command_line_that_is_not_understood_is_answered_with_a_document,
    every_command_prints_a_document_where_it_comes_to_nothing,
    verify_prints_one_document_with_stable_keys,
    export_and_inventory_print_documents_with_stable_keys,
    the_verbs_on_bundles_print_documents_with_stable_keys,
    status_and_wait_print_documents_with_stable_keys,
    release_and_config_print_documents_with_stable_keys,
);
