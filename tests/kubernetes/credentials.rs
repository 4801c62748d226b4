//! Kubelets that require credentials before a pod uses an imported image (KEP-2535), and the report
//! of `airgapd verify` before that.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::{Machine, as_usual, id_of, on_a_real_kubelet};
use crate::support::bundles::text;
use crate::support::registry::Registry;
use crate::support::{bundles, unique};

const APP: &str = "registry.test/shop/web:2.1";

impl Machine<'_> {
    /// Runs `airgapd verify` for these references with the path of this kubelet.
    fn verify(&self, references: &[&str], exit: i32) -> Value {
        let list = self.node.path("references.txt");
        fs::write(&list, references.join("\n")).expect("a file");
        let arguments = [
            "verify",
            "-o",
            "json",
            "--images",
            &text(&list),
            "--kubelet-config",
            &text(&self.kubelet.config()),
            "--kubelet-root",
            &text(&self.kubelet.root()),
        ];
        self.node.airgapd(arguments).exits(exit).json()
    }

    /// Follows the remedy.
    fn remove_record_and_restart(&mut self, refused: &Value) {
        assert_eq!(
            refused["remedy"],
            "remove the record and restart kubelet, which keeps its records in memory"
        );
        fs::remove_file(refused["record"].as_str().expect("a path")).expect("the file exists");
        self.kubelet.restart().expect("kubelet starts");
    }

    /// Returns the only image that kubelet will refuse.
    fn only_refused(&self, references: &[&str]) -> Value {
        let document = self.verify(references, 4);
        let refused = document["refused"].as_array().expect("a list");
        assert_eq!(refused.len(), 1, "{document:#}");
        refused[0].clone()
    }
}

/// kubernetes#138175: a record belongs to the image's id, and lists repositories.
fn an_image_that_kubelet_once_pulled_under_another_name_is_refused_as_verify_said(machine: &mut Machine<'_>) {
    let Some(registry) = Registry::start() else { return };
    let app = bundles::runnable(APP, &["/bin/busybox", "sleep", "86400"]);
    let archive = bundles::write(&machine.node.path("web.tar"), [app.clone()]);
    let (pulled, _) = registry.push("shop/web", "2.1", app);
    machine.pod_with("pulling", &pulled, "IfNotPresent");
    machine.event("pulling", "Started");
    drop(registry);
    machine.bring("web.tar", APP);

    let refused = machine.only_refused(&[APP, &pulled]);
    assert_eq!(refused["reference"], APP);
    assert_eq!(refused["id"], id_of(&archive.images[0]));
    let record = refused["record"].as_str().expect("a path");
    assert!(Path::new(record).starts_with(machine.kubelet.root()), "{record}");
    let repository = pulled.rsplit_once(':').expect("a tag").0;
    assert!(
        refused["problem"].as_str().expect("a text").contains(repository),
        "{refused:#}"
    );

    let before = machine.so_far();
    machine.pod("web", APP);
    machine.event_since(before, "web", "ErrImageNeverPull");

    machine.remove_record_and_restart(&refused);
    assert_eq!(machine.verify(&[APP], 0)["refused"], json!([]));
    machine.event_since(before, "web", "Started");
}

/// The file of an interrupted pull. When kubelet starts, it turns the file into a record without
/// credentials.
fn an_image_whose_pull_a_crash_cut_short_is_refused_as_verify_said(machine: &mut Machine<'_>) {
    machine.bundle("web.tar", APP);
    // A crash of the node during a pull leaves this file.
    let pulling = machine.kubelet.root().join("image_manager/pulling");
    machine.kubelet.stop().expect("the process ends");
    let intent = json!({
        "kind": "ImagePullIntent", "apiVersion": "kubelet.config.k8s.io/v1beta1", "image": APP,
    });
    fs::write(pulling.join(name_of(APP)), intent.to_string()).expect("a file");
    machine.bring("web.tar", APP);
    let refused = machine.only_refused(&[APP]);
    assert!(
        refused["record"].as_str().expect("a path").contains("/pulling/"),
        "{refused:#}"
    );

    machine.kubelet.restart().expect("kubelet starts");
    let refused = machine.only_refused(&[APP]);
    assert!(
        refused["record"].as_str().expect("a path").contains("/pulled/"),
        "{refused:#}"
    );
    let before = machine.so_far();
    machine.pod("web", APP);
    machine.event_since(before, "web", "ErrImageNeverPull");

    machine.remove_record_and_restart(&refused);
    assert_eq!(machine.verify(&[APP], 0)["refused"], json!([]));
    machine.event_since(before, "web", "Started");
}

/// This holds for every policy, because kubelet reads the record first.
fn a_record_that_cannot_be_read_refuses_its_image_even_where_nothing_is_verified(machine: &mut Machine<'_>) {
    let archive = machine.bundle("web.tar", APP);
    machine.bring("web.tar", APP);
    let id = id_of(&archive.images[0]);
    machine.kubelet.stop().expect("the process ends");
    let record = machine
        .kubelet
        .root()
        .join("image_manager/pulled")
        .join(name_of(&id));
    fs::write(record, "{").expect("a file");
    machine.kubelet.restart().expect("kubelet starts");
    let refused = machine.only_refused(&[APP]);
    let before = machine.so_far();
    machine.pod("web", APP);
    machine.event_since(before, "web", "ErrImageNeverPull");
    machine.remove_record_and_restart(&refused);
    machine.event_since(before, "web", "Started");
}

fn where_credentials_are_always_verified_imported_images_are_refused_and_verify_warns(
    machine: &mut Machine<'_>,
) {
    machine.bundle("web.tar", APP);
    machine.bring("web.tar", APP);
    let document = machine.verify(&[APP], 0);
    let warning = document["warnings"][0].as_str().expect("a warning");
    assert!(warning.contains("AlwaysVerify"), "{document:#}");
    let before = machine.so_far();
    machine.pod("web", APP);
    machine.event_since(before, "web", "ErrImageNeverPull");

    let socket = machine.own.containerd.socket();
    let lax = "imagePullCredentialsVerificationPolicy: NeverVerifyPreloadedImages";
    machine.kubelet.configure(&socket, lax).expect("a file");
    machine.kubelet.restart().expect("kubelet starts");
    assert_eq!(machine.verify(&[APP], 0)["warnings"], json!([]));
    machine.event_since(before, "web", "Started");
}

/// kubelet compares `preloadedImagesVerificationAllowlist` with the name in the pod.
fn the_list_of_exceptions_holds_for_the_name_as_the_pod_writes_it(machine: &mut Machine<'_>) {
    let short = format!("web-{}:1", unique());
    let long = format!("docker.io/library/{short}");
    let repository = long.rsplit_once(':').expect("a tag").0;
    machine.bundle("web.tar", &long);
    machine.bring("web.tar", &long);
    let socket = machine.own.containerd.socket();
    let settings = format!(
        "imagePullCredentialsVerificationPolicy: NeverVerifyAllowlistedImages\n\
         preloadedImagesVerificationAllowlist: [{repository}]"
    );
    machine.kubelet.configure(&socket, &settings).expect("a file");
    machine.kubelet.restart().expect("kubelet starts");
    assert_eq!(machine.verify(&[&long], 0)["warnings"], json!([]));
    let warnings = machine.verify(&[&short], 0)["warnings"].to_string();
    assert!(
        warnings.contains(short.rsplit_once(':').expect("a tag").0),
        "{warnings}"
    );
    let before = machine.so_far();
    machine.pod("long", &long);
    machine.pod("short", &short);
    machine.event_since(before, "long", "Started");
    machine.event_since(before, "short", "ErrImageNeverPull");
}

/// Returns the file name that kubelet gives to an image or an id.
fn name_of(key: &str) -> String {
    format!(
        "sha256-{}",
        fake_containerd::sha256(key.as_bytes()).trim_start_matches("sha256:")
    )
}

on_a_real_kubelet!(
    as_usual, "";
    an_image_that_kubelet_once_pulled_under_another_name_is_refused_as_verify_said,
    an_image_whose_pull_a_crash_cut_short_is_refused_as_verify_said,
    the_list_of_exceptions_holds_for_the_name_as_the_pod_writes_it,
);
on_a_real_kubelet!(
    as_usual, "imagePullCredentialsVerificationPolicy: NeverVerify";
    a_record_that_cannot_be_read_refuses_its_image_even_where_nothing_is_verified,
);
on_a_real_kubelet!(
    as_usual, "imagePullCredentialsVerificationPolicy: AlwaysVerify";
    where_credentials_are_always_verified_imported_images_are_refused_and_verify_warns,
);
