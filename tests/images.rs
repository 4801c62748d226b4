//! `airgapd images`: the images of containerd, their owners, and the bundles that vouch for them.

use std::fs;

use oci_spec::image::{Descriptor, Digest, MediaType};
use serde_json::{Value, json};

use crate::support::bundles::{self, native};
use crate::support::{Node, Target, on_each_containerd, on_each_real_containerd, on_the_fake};

const ONE: &str = "registry.test/one:1";
const TWO: &str = "registry.test/two:1";

fn images(node: &Node, arguments: &[&str], exit: i32) -> Vec<Value> {
    let arguments = ["images", "-o", "json"]
        .into_iter()
        .chain(arguments.iter().copied());
    let document = node.airgapd(arguments).exits(exit).json();
    document["images"].as_array().expect("a list").clone()
}

fn an_image_is_one_row_with_every_bundle_that_vouches_for_it(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    node.put("one.tar", ONE);
    node.put("two.tar", TWO);
    fs::copy(node.images().join("one.tar"), node.path("also.tar")).unwrap();
    fs::rename(node.path("also.tar"), node.images().join("also.tar")).unwrap();
    node.airgapd(["wait"]).exits(0);
    let all = images(&node, &[], 0);
    assert_eq!(all.len(), 2, "{all:#?}");
    let one = &all[0];
    assert_eq!(one["names"], json!([ONE]));
    assert_eq!(one["bundles"], json!(["also.tar", "one.tar"]));
    assert_eq!(one["pinned_by"], json!(["airgapd"]));
    assert_eq!(one["platforms"], json!([native()]));
    assert_eq!(one["problems"], json!([]));
    assert_eq!(one["records"].as_array().map(Vec::len), Some(2), "{one:#}");
    assert!(
        one["size"].as_u64() > Some(0) && one["since"].is_string(),
        "{one:#}"
    );
    let digest = one["digest"].as_str().expect("a digest").to_owned();
    assert_eq!(digest, target.expect_record(ONE).target.digest().to_string());

    let text = node.airgapd(["images"]).exits(0).stdout;
    let line = text.lines().find(|line| line.starts_with(ONE)).expect("a row");
    assert!(line.contains(&digest["sha256:".len()..][..12]), "{text}");
    assert!(
        line.ends_with("also.tar,one.tar") && line.contains(" airgapd "),
        "{text}"
    );
    assert!(text.ends_with("\n2 images\n") && !text.contains('@'), "{text}");

    // Patterns follow the rules of `exclude`: they match whole names.
    let named = |pattern: &str| images(&node, &[pattern], 0);
    assert_eq!(named("*/two:?")[..], all[1..]);
    assert_eq!(named(ONE)[..], all[..1]);
    let by_digest = format!("registry.test/one@{digest}");
    assert_eq!(named(&by_digest)[..], all[..1], "it has both records");
    let answer = node.airgapd(["images", "one"]).exits(4);
    assert!(
        answer.stderr.contains("no image has a name that matches one") && answer.stderr.contains("`*one*`"),
        "{answer:?}"
    );
    let answer = node.airgapd(["images", "no*", "-o", "json"]).exits(4);
    assert_eq!(
        answer.json(),
        json!({"error": "no image has a name that matches no*"})
    );

    daemon.finish(target);
    assert_eq!(images(&node, &[], 0), all, "the command works without the daemon");
    for name in [ONE, &by_digest] {
        target.remove_record(name);
    }
    let missing = images(&node, &[ONE], 1);
    assert_eq!(
        missing[0]["problems"],
        json!([format!("{ONE}: its record is missing")])
    );
    assert_eq!(
        (&missing[0]["digest"], &missing[0]["names"], &missing[0]["size"]),
        (&json!(digest), &json!([ONE]), &Value::Null)
    );
    let text = node.airgapd(["images"]).exits(1).stdout;
    assert!(
        text.contains("    registry.test/one:1: its record is missing"),
        "{text}"
    );
}

/// The list has the records of other importers too, with the importer that pinned them.
fn a_pin_is_that_of_its_importer(target: &Target) {
    let node = Node::on(target);
    node.put("one.tar", ONE);
    node.import([node.images().join("one.tar")]).exits(0);
    let there = target.expect_record(ONE).target;
    let (pin, pinned) = ("io.cri-containerd.pinned", "pinned");
    target.put_record(
        "registry.test/k3s:1",
        &there,
        &[(pin, pinned), ("io.cattle.k3s.pinned", "pinned")],
    );
    let absent: Digest = format!("sha256:{}", "d".repeat(64)).parse().unwrap();
    let absent = Descriptor::new(MediaType::ImageManifest, 7, absent);
    target.put_record("registry.test/other:1", &absent, &[(pin, pinned)]);
    target.put_record("registry.test/pulled:1", &absent, &[]);
    // airgapd does not report missing content of other importers' images.
    let all = images(&node, &[], 0);
    assert_eq!(all.len(), 2, "{all:#?}");
    assert_eq!(all[0]["names"], json!(["registry.test/k3s:1", ONE]));
    assert_eq!(all[0]["pinned_by"], json!(["airgapd", "k3s"]));
    assert_eq!(
        all[1]["names"],
        json!(["registry.test/other:1", "registry.test/pulled:1"])
    );
    assert_eq!(all[1]["pinned_by"], json!(["another"]));
    assert_eq!((&all[1]["bundles"], &all[1]["size"]), (&json!([]), &Value::Null));
    assert_ne!(all[1]["problems"], json!([]), "its manifest is missing");
    let records = all[0]["records"].as_array().expect("a list");
    assert_eq!(records[0]["pinned_by"], json!(["k3s"]), "{records:#?}");
    target.remove_record("registry.test/k3s:1");
    target.remove_record("registry.test/other:1");
    target.remove_record("registry.test/pulled:1");
}

fn an_image_that_is_unpacked_is_told_from_one_that_is_not(target: &Target) {
    let node = Node::on(target);
    for (file, name, unpack) in [
        ("packed.tar", ONE, "none"),
        ("unpacked.tar", TWO, "before-record"),
    ] {
        let file = node.path(file);
        bundles::write(&file, [bundles::runnable(name, &["/bin/busybox"])]);
        node.configure_also(&format!("unpack: {unpack}"));
        node.import([bundles::text(&file)]).exits(0);
        let text = fs::read_to_string(node.path("config.yaml")).unwrap();
        node.configure(&text.replace(&format!("unpack: {unpack}\n"), ""));
    }
    let unpacked: Vec<_> = images(&node, &[], 0)
        .into_iter()
        .map(|image| image["unpacked"].clone())
        .collect();
    assert_eq!(unpacked, [json!(false), json!(true)]);
    let text = node.airgapd(["images", TWO]).exits(0).stdout;
    assert!(text.contains("  yes  "), "{text}");
}

fn without_containerd_nothing_is_listed(target: &Target) {
    let nowhere = Node::at("/nonexistent/containerd.sock".as_ref(), target.namespace());
    let answer = nowhere.airgapd(["images", "-o", "json"]).exits(3);
    assert!(
        answer.json()["error"]
            .as_str()
            .is_some_and(|error| error.contains("/nonexistent")),
        "{answer:?}"
    );
    let node = Node::on(target);
    assert_eq!(node.airgapd(["images"]).exits(0).stdout, "no images\n");
}

on_each_containerd!(
    an_image_is_one_row_with_every_bundle_that_vouches_for_it,
    a_pin_is_that_of_its_importer,
);
on_each_real_containerd!(an_image_that_is_unpacked_is_told_from_one_that_is_not,);
on_the_fake!(without_containerd_nothing_is_listed,);
