//! Bundles that k0s' autopilot places: by a rename, under one name for every release, and without a
//! checksum beside them.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use bundle::fixtures::Archive;
use fake_containerd::{Fake, FakeConfig, GoImporter, K0S_SOURCES};
use rustix::process::Signal;

use crate::connection::on_the_node;
use crate::support::autopilot::{Download, place};
use crate::support::bundles::{self, image};
use crate::support::node::Daemon;
use crate::support::target::{BUNDLE, MANAGED, PINNED};
use crate::support::{Node, Target, on_each_containerd, on_the_fake};

const ONE: &str = "registry.test/one:1";
const TWO: &str = "registry.test/two:1";
const WRONG: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

/// Returns the bytes of a bundle with one image.
fn bundle_of(name: &str) -> Vec<u8> {
    bundles::layout([image(name)]).build().to_bytes()
}

/// Returns the line that `sha256sum` writes about a file.
fn sum(bytes: &[u8], name: &str) -> String {
    let digest = bundle::fixtures::digest_of(bytes);
    format!("{}  {name}\n", digest.digest())
}

/// Returns the content digest of a bundle, as `airgapd inspect` prints it.
fn content_of(node: &Node, bytes: &[u8]) -> String {
    let file = node.path("inspected.tar");
    fs::write(&file, bytes).expect("a file");
    let document = node
        .airgapd(["inspect", "-o", "json", &bundles::text(&file)])
        .json();
    document["digest"].as_str().expect("a digest").to_owned()
}

fn a_plan_places_a_bundle_and_the_next_one_replaces_it(target: &Target) {
    let node = Node::on(target);
    let place_of_all = node.images().join("bundle.tar");
    let daemon = node.start();
    let bytes = bundle_of(ONE);
    let (first, rest) = bytes.split_at(bytes.len() / 2);
    let mut download = Download::begin(&place_of_all, "1804289383").expect("a file");
    download.receive(first).expect("there is space");
    node.drop_marker(target, &daemon);
    assert!(target.record(ONE).is_none(), "the download is not over");
    download.receive(rest).expect("there is space");
    download.finish(None).expect("the file gets its name");
    daemon.wait_for_line("bundle.tar", "bundle imported");
    assert!(target.is_pinned(ONE));

    // The server breaks off, another one sends other bytes than the plan names, and k0s is killed.
    let next = bundle_of(TWO);
    let mut cut = Download::begin(&place_of_all, "846930886").expect("a file");
    cut.receive(&next[..next.len() / 2]).expect("there is space");
    drop(cut);
    let mut wrong = Download::begin(&place_of_all, "1681692777").expect("a file");
    wrong.receive(&next).expect("there is space");
    wrong.finish(Some(WRONG)).expect_err("the hash is another");
    let mut orphan = Download::begin(&place_of_all, "1714636915").expect("a file");
    orphan.receive(&next).expect("there is space");
    std::mem::forget(orphan);
    node.drop_marker(target, &daemon);
    assert!(target.is_pinned(ONE) && target.record(TWO).is_none());
    assert_eq!(daemon.count("importing bundle=bundle.tar"), 1, "{}", daemon.log());
    assert_eq!(daemon.count("not imported"), 0, "{}", daemon.log());

    place(&place_of_all, &next);
    daemon.wait_until("the next release", || {
        target.record(TWO).is_some() && target.is_pinned(TWO)
    });
    daemon.wait_until("the release before loses its pin", || !target.is_pinned(ONE));
    assert!(target.record(ONE).is_some());
    let log = daemon.finish(target);
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
}

/// Autopilot places no checksum. A list of digests in a folder of root admits its bundles.
fn a_required_checksum_stops_autopilots_bundles_and_a_list_of_digests_admits_them(target: &Target) {
    let node = Node::on(target);
    let plain = fs::read_to_string(node.path("config.yaml")).expect("a configuration");
    node.configure_also("checksums: require");
    let daemon = node.start();
    let bytes = bundle_of(ONE);
    place(&node.images().join("bundle.tar"), &bytes);
    daemon.wait_for_line("bundle.tar", "`checksums: require` demands one");
    let answer = node.airgapd(["wait", "--timeout", "1s"]).exits(1);
    assert!(answer.said().contains("bundle.tar.sha256"), "{answer:?}");
    assert!(target.record(ONE).is_none());

    let trusted = node.path("trusted");
    fs::create_dir(&trusted).expect("a folder");
    fs::set_permissions(&trusted, fs::Permissions::from_mode(0o755)).expect("the test owns it");
    let release = format!("{}  bundle.tar\n", content_of(&node, &bytes));
    fs::write(trusted.join("release.txt"), release).expect("a file");
    node.configure(&format!("{plain}trustedDigests: {}\n", trusted.display()));
    daemon.signal(Signal::HUP);
    daemon.wait_until("the listed bundle", || {
        target.record(ONE).is_some() && target.is_pinned(ONE)
    });
    place(&node.images().join("bundle.tar"), &bundle_of(TWO));
    daemon.wait_for_line("bundle.tar", "is not among the trusted digests");
    assert!(target.is_pinned(ONE) && target.record(TWO).is_none());
    let log = daemon.finish(target);
    assert!(log.contains("checksums, trustedDigests changed"), "{log}");
}

/// A plan may have an `airgapupdate` for the file with the checksum, before that of the bundle.
fn a_plan_can_place_the_required_checksum_first(target: &Target) {
    let node = Node::on(target);
    node.configure_also("checksums: require");
    let daemon = node.start();
    for (release, name) in [("1", ONE), ("2", TWO)] {
        let (file, bytes) = (format!("release-{release}.tar"), bundle_of(name));
        let sidecar = node.images().join(format!("{file}.sha256"));
        place(&sidecar, sum(&bytes, &file).as_bytes());
        place(&node.images().join(&file), &bytes);
        daemon.wait_until("the release", || {
            target.record(name).is_some() && target.is_pinned(name)
        });
        daemon.wait_for_line(&file, "its checksum is right");
    }
    let log = daemon.finish(target);
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
}

on_the_fake! {
    a_plan_places_a_bundle_and_the_next_one_replaces_it,
    a_required_checksum_stops_autopilots_bundles_and_a_list_of_digests_admits_them,
    a_plan_can_place_the_required_checksum_first,
}

/// Makes the records of CRI for images that it has pulled: by name, by digest and by id, without a
/// pin.
fn as_pulled(target: &Target, archive: &Archive, names: &[&str]) {
    for (name, image) in names.iter().zip(&archive.images) {
        let labels = [(PINNED, None), (K0S_SOURCES, None), (MANAGED, Some("managed"))];
        target.set_labels(name, &labels);
        let by_digest = &bundles::records_of(name, image)[1];
        let record = target.expect_record(name);
        target.put_record(by_digest, &record.target, &[(MANAGED, "managed")]);
    }
}

/// The cluster has pulled its images while it had a registry. Then a plan brings the bundle.
fn images_that_were_pulled_first_are_pinned_without_a_byte_sent(target: &Target) {
    let node = Node::on(target);
    let pulled = node.path("pulled.tar");
    let archive = bundles::write(&pulled, [image(ONE), image(TWO)]);
    target.block_on(async {
        let registry = GoImporter::connect(target.socket(), target.namespace()).await;
        let imported = registry.import_as_k0s(&pulled, async |_| std::ops::ControlFlow::Continue(()));
        imported.await.expect("containerd takes the images");
    });
    as_pulled(target, &archive, &[ONE, TWO]);
    let records = bundles::all_records([ONE, TWO].into_iter().zip(&archive.images));
    assert!(
        records
            .iter()
            .all(|record| !target.labels(record).contains_key(PINNED))
    );
    let before = target.digests();

    let daemon = node.start();
    place(&node.images().join("bundle.tar"), &archive.to_bytes());
    daemon.wait_until("all images are pinned", || {
        records.iter().all(|record| {
            let labels = target.labels(record);
            target.is_pinned(record) && labels.keys().any(|key| key.starts_with(BUNDLE))
        })
    });
    for record in &records {
        assert_eq!(target.labels(record)[MANAGED], "managed", "{record}");
    }
    let log = daemon.finish(target);
    assert!(log.contains("0 B sent"), "{log}");
    if let Some(fake) = target.as_fake() {
        assert_eq!(fake.received_bytes(), 0, "{:?}", fake.received());
    }
    target.collect_garbage();
    let after = target.digests();
    assert!(after.is_subset(&before) && bundles::needed_here(&archive.images).is_subset(&after));
}

on_each_containerd! {
    images_that_were_pulled_first_are_pinned_without_a_byte_sent,
}

/// A controller that also runs a worker has k0s' containerd and its images folder.
fn on_a_controller_with_a_worker_the_daemon_imports_what_autopilot_places(_: &Target) {
    if !lab::is_root() {
        return;
    }
    let node = tempfile::tempdir().expect("a folder");
    let at = |path: &str| node.path().join(path);
    for folder in ["bin", "run/k0s", "run/systemd/system", "lib/k0s/images", "etc"] {
        fs::create_dir_all(at(folder)).expect("a folder");
    }
    let unit = |arguments: &str| {
        let text = format!("[Service]\nExecStart=/usr/local/bin/k0s {arguments}\n");
        fs::write(at("run/systemd/system/k0scontroller.service"), text).expect("a file");
    };
    unit("controller");
    let k0s = Fake::start_blocking(FakeConfig {
        socket: Some(at("run/k0s/containerd.sock")),
        ..FakeConfig::default()
    });
    let bundle = at("lib/k0s/images/bundle.tar");
    place(&bundle, &bundle_of(ONE));
    let daemon = Daemon::start(on_the_node(node.path()), &at("run/notify"));
    daemon.wait_until_ready();
    daemon.wait_for_log("the daemon has nothing to import");
    assert!(daemon.stop().contains("a k0s controller without a worker"));
    assert!(k0s.counters().is_empty(), "{:?}", k0s.counters());

    unit("controller --enable-worker=true --no-taints=true");
    let mut command = on_the_node(node.path());
    // No importer of k0s runs here, which the daemon would wait for.
    command.env("AIRGAPD_COEXISTENCE", "exclusive");
    let daemon = Daemon::start(command, &at("run/notify"));
    daemon.wait_until_ready();
    daemon.wait_until("the image is in k0s'", || k0s.images("k8s.io").contains_key(ONE));
    place(&bundle, &bundle_of(TWO));
    daemon.wait_until("the image of the next plan", || {
        k0s.images("k8s.io").contains_key(TWO)
    });
    daemon.wait_until("the lease is returned", || k0s.leases("k8s.io").is_empty());
    daemon.stop();
    assert_eq!(k0s.check_done(), Vec::<String>::new());
}

on_the_fake! {
    on_a_controller_with_a_worker_the_daemon_imports_what_autopilot_places,
}
