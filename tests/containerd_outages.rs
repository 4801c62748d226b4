//! containerd is killed, stopped, upgraded, wiped or replaced under a running daemon. Present
//! content stays, missing content is restored, and nothing is sent needlessly.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

use bundle::fixtures::{Archive, Image, Layer};
use containerd::ImageRecord;
use fake_containerd::Fault;
use lab::{Generation, Options};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::bundles::{self, image, native, text};
use crate::support::mount::{Mount, loop_device};
use crate::support::target::MANAGED;
use crate::support::{
    Node, Own, Target, on_its_own_containerd, on_the_fake, run_on_own, unique, wait_for, wait_until,
};

fn is_ext4(folder: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/mounts").expect("Linux has it");
    mounts.contains(&format!(" {} ext4 ", text(folder)))
}

/// Options of a containerd on its own disk.
fn on_a_disk() -> Options {
    Options {
        disk: Some(160 << 20),
        ..Options::default()
    }
}

const BIG: &str = "registry.test/big:1";
const SMALL: &str = "registry.test/small:1";
const MIB: u64 = 1 << 20;
/// Size of the layer that the tests interrupt.
const LAYER: u64 = 160 * MIB;

fn as_usual() -> Options {
    Options::default()
}

fn big_image() -> Image {
    Image::new(BIG)
        .platform(native())
        .layer(unique())
        .with_layer(Layer::zeros(LAYER))
}

fn store(own: &Own) -> std::path::PathBuf {
    own.containerd.root().join("io.containerd.content.v1.content")
}

/// Returns the size of the longest ingest in bytes.
fn under_way(store: &Path) -> u64 {
    let ingests = fs::read_dir(store.join("ingest")).into_iter().flatten().flatten();
    let data = ingests.filter_map(|ingest| fs::metadata(ingest.path().join("data")).ok());
    data.map(|data| data.len()).max().unwrap_or(0)
}

/// Waits until a blob is partly written, with at least `least` bytes.
fn until_in_mid_blob(store: &Path, least: u64) -> u64 {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let bytes = under_way(store);
        if bytes >= least {
            return bytes;
        }
        assert!(Instant::now() < deadline, "no blob was ever under way");
        // This is shorter than the transfer of a blob, so wait_until would be too slow.
        std::thread::sleep(Duration::from_micros(300));
    }
}

/// Returns the bytes that the last import of the only bundle sent, from the ledger.
fn sent_bytes(node: &Node) -> Option<u64> {
    let ledger: Value = serde_json::from_str(&fs::read_to_string(node.ledger()).ok()?).ok()?;
    ledger["bundles"].as_object()?.values().next()?["imported"]["sent_bytes"].as_u64()
}

/// Returns the total size of all blobs of an archive that this machine needs.
fn needed_bytes(archive: &Archive) -> u64 {
    let needed = bundles::needed_here(&archive.images);
    let size = |digest: &String| {
        let name = archive.name_of(&digest.parse().unwrap());
        archive.bytes_of(&name).len() as u64
    };
    needed.iter().map(size).sum()
}

fn is_in_place(target: &Target, name: &str) -> bool {
    target.record(name).is_some() && target.is_pinned(name)
}

fn is_quiet(target: &Target) -> bool {
    target.leases().is_empty() && target.ingests().is_empty()
}

#[allow(clippy::print_stderr, reason = "a figure for a run by hand")]
fn report(target: &Target, what: &str, since: Instant) {
    eprintln!(
        "{what} on {:?}: {:.2} s",
        target.place(),
        since.elapsed().as_secs_f64()
    );
}

fn a_containerd_killed_in_mid_blob_is_waited_for_and_the_blob_goes_on_from_there(own: &mut Own) {
    let store = store(own);
    let node = Node::on(&own.target);
    bundles::write(&node.images().join("big.tar"), [big_image()]);
    let daemon = node.start();
    let reached = until_in_mid_blob(&store, 8 * MIB);
    own.containerd.kill().unwrap();
    own.containerd.restart().unwrap();
    let since = Instant::now();
    let target = &own.target;
    daemon.wait_until("the image", || is_in_place(target, BIG));
    report(target, "finished after a kill in mid blob", since);
    daemon.wait_until("the ledger", || sent_bytes(&node).is_some());
    let sent = sent_bytes(&node).unwrap();
    assert!(
        sent <= LAYER + MIB - reached,
        "{sent} bytes sent after {reached} of {LAYER} were there"
    );
    daemon.finish(target);
}

fn a_containerd_that_stands_still_in_mid_blob_goes_on_where_it_was(own: &mut Own) {
    let store = store(own);
    let target = &own.target;
    let node = Node::on(target);
    bundles::write(&node.images().join("big.tar"), [big_image()]);
    let daemon = node.start();
    until_in_mid_blob(&store, 8 * MIB);
    let pid = i32::try_from(own.containerd.pid().unwrap()).unwrap();
    let pid = Pid::from_raw(pid).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    // containerd is suspended, so no event can end this wait.
    std::thread::sleep(Duration::from_secs(3));
    kill_process(pid, Signal::CONT).unwrap();
    daemon.wait_until("the image", || is_in_place(target, BIG));
    daemon.wait_until("the ledger", || sent_bytes(&node).is_some());
    assert!(
        sent_bytes(&node).unwrap() <= LAYER + MIB,
        "each byte goes over the wire once"
    );
    let log = daemon.finish(target);
    assert!(
        !log.contains("went away") && !log.contains("not imported"),
        "{log}"
    );
}

/// Another containerd, or the same one without data, takes over the socket. The daemon restores
/// everything.
fn an_empty_containerd_on_the_same_socket_gets_everything(own: &mut Own) {
    let node = Node::on(&own.target);
    let archive = bundles::write(&node.images().join("a.tar"), [image(SMALL)]);
    let daemon = node.start();
    let target = &own.target;
    daemon.wait_until("the image", || is_in_place(target, SMALL) && is_quiet(target));
    own.containerd.restart_empty().unwrap();
    let (since, target) = (Instant::now(), &own.target);
    daemon.wait_until("the image again", || is_in_place(target, SMALL));
    report(target, "restored in an empty containerd", since);
    assert_eq!(target.digests(), bundles::needed_here(&archive.images));
    daemon.finish(target);
}

/// Waits for a restore, and checks its duration and the bytes that were sent for it.
fn healed(own: &Own, node: &Node, what: &str, within: Duration, most_bytes: u64, holds: impl Fn() -> bool) {
    let since = Instant::now();
    wait_for(within, what, holds);
    report(&own.target, what, since);
    wait_for(Duration::from_secs(20), "all work has ended", || {
        is_quiet(&own.target)
    });
    wait_for(
        Duration::from_secs(20),
        "the ledger says that no more was sent",
        || sent_bytes(node).is_some_and(|sent| sent <= most_bytes),
    );
    report(
        &own.target,
        &format!("{:?} bytes sent; quiet", sent_bytes(node)),
        since,
    );
}

/// The promise is 2 s for records and 10 s for the store. Test machines may be slower than nodes.
fn what_is_removed_under_the_daemon_is_healed_soon_and_only_that_is_sent(own: &mut Own) {
    const SOON: Duration = Duration::from_secs(10);
    let target = &own.target;
    let node = Node::on(target);
    let archive = bundles::write(&node.images().join("a.tar"), [image(SMALL)]);
    let all = needed_bytes(&archive);
    let daemon = node.start();
    daemon.wait_until("the image", || is_in_place(target, SMALL) && is_quiet(target));

    target.ctr(&["images", "rm", SMALL]);
    healed(own, &node, "healed after ctr images rm", SOON, 0, || {
        is_in_place(target, SMALL)
    });
    let id = target.image_status(SMALL).expect("CRI knows it").id;
    target.block_on(cri_remove(target.socket(), &id));
    healed(own, &node, "healed after RemoveImage of CRI", SOON, all, || {
        is_in_place(target, SMALL)
    });
    target.set_labels(SMALL, &[(crate::support::target::PINNED, None)]);
    healed(own, &node, "healed after the pin was taken", SOON, 0, || {
        is_in_place(target, SMALL)
    });

    daemon.finish(target);
}

/// containerd's database still lists content that was removed from its disk.
fn a_store_that_is_wiped_under_the_daemon_is_filled_again(own: &mut Own) {
    const SOON: Duration = Duration::from_secs(30);
    let (store, target) = (store(own), &own.target);
    let node = Node::on(target);
    let archive = bundles::write(&node.images().join("a.tar"), [image(SMALL)]);
    let all = needed_bytes(&archive);
    let daemon = node.start();
    daemon.wait_until("the image", || is_in_place(target, SMALL) && is_quiet(target));

    let needed = bundles::needed_here(&archive.images);
    let mut remove = vec!["content", "rm"];
    remove.extend(needed.iter().map(String::as_str));
    target.ctr(&remove);
    healed(
        own,
        &node,
        "healed after ctr content rm of all",
        SOON,
        all,
        || needed.is_subset(&target.digests()),
    );
    fs::remove_dir_all(store.join("blobs/sha256")).unwrap();
    fs::create_dir(store.join("blobs/sha256")).unwrap();
    let is_whole = |digest: &String| {
        let file = store
            .join("blobs/sha256")
            .join(digest.trim_start_matches("sha256:"));
        fs::read(file).is_ok_and(|bytes| fake_containerd::sha256(&bytes) == *digest)
    };
    healed(own, &node, "healed after the store was wiped", SOON, all, || {
        needed.iter().all(is_whole)
    });
    assert!(is_in_place(target, SMALL));
    daemon.finish(target);
}

async fn cri_remove(socket: &Path, id: &str) {
    use k8s_cri::v1::image_service_client::ImageServiceClient;
    use k8s_cri::v1::{ImageSpec, RemoveImageRequest};
    let endpoint = tonic::transport::Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap();
    let mut images = ImageServiceClient::new(endpoint.connect().await.unwrap());
    let image = ImageSpec {
        image: id.to_owned(),
        ..ImageSpec::default()
    };
    let request = RemoveImageRequest { image: Some(image) };
    images.remove_image(request).await.expect("CRI removes it");
}

/// containerd never syncs the file with its identity, and a power cut may leave it empty. 1.7 and
/// later make a new one.
fn a_containerd_that_has_lost_its_identity_is_worked_with(own: &mut Own) {
    let node = Node::on(&own.target);
    bundles::write(&node.images().join("a.tar"), [image(SMALL)]);
    let daemon = node.start();
    daemon.wait_until("the image", || own.target.record(SMALL).is_some());
    own.containerd.stop().expect("containerd can be stopped");
    let root = fs::read_dir(own.containerd.root()).expect("a folder");
    let files = root.map(|entry| entry.expect("an entry").path().join("uuid"));
    let files: Vec<_> = files.filter(|file| file.exists()).collect();
    assert!(!files.is_empty());
    files
        .iter()
        .for_each(|file| drop(File::create(file).expect("the file exists")));
    own.containerd.restart().expect("containerd can be started");
    bundles::write(&node.images().join("b.tar"), [image(BIG)]);
    daemon.wait_until("the other image", || is_in_place(&own.target, BIG));
    if own.containerd.generation() == Generation::V1_6 {
        assert!(daemon.count("remove the file `uuid`") > 0, "{}", daemon.log());
    }
    daemon.finish(&own.target);
}

/// The kernel makes a failing disk read-only: reads work and writes fail until the operator repairs
/// the machine.
fn while_containerds_disk_is_read_only_nothing_is_lost_and_then_it_goes_on(own: &mut Own) {
    let node = Node::on(&own.target);
    bundles::write(&node.images().join("a.tar"), [image(SMALL)]);
    let daemon = node.start();
    daemon.wait_until("the image, and all marks that CRI adds", || {
        let records = own.target.records();
        let is_marked = |record: &ImageRecord| record.labels.contains_key(MANAGED);
        is_in_place(&own.target, SMALL) && is_quiet(&own.target) && records.values().all(is_marked)
    });
    let root = own.containerd.root();
    if !is_ext4(&root) {
        // Without loop devices the disk is in memory, and such a disk cannot be made to fail.
        daemon.finish(&own.target);
        return;
    }
    // containerd dies if its collector cannot write (gc/scheduler). Its next turn is over before.
    own.containerd.force_gc().expect("containerd collects garbage");
    let disk = Mount::known(&root);
    disk.change("remount,abort");
    bundles::write(&node.images().join("b.tar"), [image(BIG)]);
    daemon.wait_until("the log has the refusal", || {
        let log = daemon.log().to_lowercase();
        log.lines()
            .any(|line| line.contains("b.tar") && line.contains("read-only file system"))
    });
    assert!(own.target.record(BIG).is_none());
    assert!(is_in_place(&own.target, SMALL), "reads still work");
    own.containerd.stop().expect("containerd can be stopped");
    drop(disk);
    // Processes of other tests with mounts of their own can hold the failed file system. A mount
    // of the same disk would be the failed one again until they have ended.
    let image = root.with_file_name("disk.img");
    wait_for(
        Duration::from_secs(180),
        "the end of the failed file system",
        || loop_device(&image).is_none(),
    );
    Mount::over(&root, &["-o", "loop", &text(&image)]).leave();
    own.containerd.restart().expect("containerd can be started");
    daemon.wait_until("the other image", || is_in_place(&own.target, BIG));
    assert!(is_in_place(&own.target, SMALL));
    daemon.finish(&own.target);
}

/// Statement 36: containerd dies and comes back, the import goes on.
fn a_containerd_that_restarts_meanwhile_is_waited_for(target: &Target) {
    let fake = target.as_fake().unwrap();
    let node = Node::on(target);
    let daemon = node.start();
    node.drop_marker(target, &daemon);
    fake.kill();
    let name = "registry.test/later:1";
    bundles::write(&node.images().join("later.tar"), [image(name)]);
    daemon.wait_for_log("waiting");
    fake.listen();
    wait_until("the image", || fake.images(target.namespace()).contains_key(name));
    daemon.wait_until("the lease is returned", || {
        fake.leases(target.namespace()).is_empty()
    });
    daemon.stop();
}

on_its_own_containerd! {
    as_usual;
    a_containerd_killed_in_mid_blob_is_waited_for_and_the_blob_goes_on_from_there,
    a_containerd_that_stands_still_in_mid_blob_goes_on_where_it_was,
    an_empty_containerd_on_the_same_socket_gets_everything,
    what_is_removed_under_the_daemon_is_healed_soon_and_only_that_is_sent,
    a_store_that_is_wiped_under_the_daemon_is_filled_again,
    a_containerd_that_has_lost_its_identity_is_worked_with,
}

/// Returns the records without the label that CRI adds to each at an unpredictable time.
fn without_marks_of_cri(target: &Target) -> BTreeMap<String, ImageRecord> {
    let mut records = target.records();
    for record in records.values_mut() {
        record.labels.remove(MANAGED);
    }
    records
}

/// The daemon sees a version with other rules, checks every bundle again, and has nothing to do.
fn everything_stays_in_place_over_an_upgrade_of_containerd(own: &mut Own, to: Generation) {
    let node = Node::on(&own.target);
    let archive = bundles::write(&node.images().join("a.tar"), [image(SMALL)]);
    let daemon = node.start();
    let target = &own.target;
    daemon.wait_until("the image", || is_in_place(target, SMALL) && is_quiet(target));
    let before = without_marks_of_cri(target);
    own.containerd.become_generation(to).unwrap();
    let target = &own.target;
    daemon.wait_for_log(&format!(
        "connected to containerd {}",
        own.containerd.version_text()
    ));
    daemon.wait_for_log("checks every bundle again");
    daemon.wait_until("a comparison has ended", || sent_bytes(&node) == Some(0));
    assert_eq!(without_marks_of_cri(target), before);
    assert_eq!(target.digests(), bundles::needed_here(&archive.images));

    bundles::write(&node.images().join("later.tar"), [image(BIG)]);
    daemon.wait_until("a later bundle", || is_in_place(target, BIG));
    daemon.finish(target);
}

#[test]
fn everything_stays_in_place_when_1_7_becomes_2_1() {
    run_on_own(Generation::V1_7, &Options::default(), |own| {
        everything_stays_in_place_over_an_upgrade_of_containerd(own, Generation::V2_1);
    });
}

#[test]
fn everything_stays_in_place_when_2_1_becomes_2_3() {
    run_on_own(Generation::V2_1, &Options::default(), |own| {
        everything_stays_in_place_over_an_upgrade_of_containerd(own, Generation::V2_3);
    });
}

/// Every answer is slow, but not slow enough to give containerd up.
fn a_containerd_that_takes_its_time_is_waited_for(target: &Target) {
    let fake = target.as_fake().unwrap();
    let node = Node::on(target);
    for rpc in fake_containerd::RPCS {
        fake.inject(Fault::Delay {
            rpc,
            by: Duration::from_millis(300),
        });
    }
    bundles::write(&node.images().join("a.tar"), [image(SMALL)]);
    let daemon = node.start();
    wait_for(Duration::from_secs(60), "the image", || {
        fake.images(target.namespace()).contains_key(SMALL)
    });
    fake.clear_faults();
    daemon.wait_until("all work has ended", || is_quiet(target));
    assert!(is_in_place(target, SMALL));
    let log = daemon.finish(target);
    assert!(
        !log.contains("went away") && !log.contains("not imported"),
        "{log}"
    );
}

/// containerd does not repeat events. A comparison finds the changes that no event reported.
fn what_no_event_told_of_is_found_at_the_next_comparison(target: &Target) {
    let fake = target.as_fake().unwrap();
    let node = Node::on(target);
    node.configure_also("resync: 1s");
    let archive = bundles::write(&node.images().join("a.tar"), [image(SMALL)]);
    let daemon = node.start();
    daemon.wait_until("the image", || is_in_place(target, SMALL) && is_quiet(target));
    let layer = archive.images[0].manifests[0].layers[0].to_string();
    let events = fake.events().len();
    assert!(fake.remove_blob(target.namespace(), &layer));
    assert_eq!(fake.events().len(), events, "no event was sent");
    daemon.wait_until("the layer again", || target.digests().contains(&layer));
    daemon.finish(target);
}

on_the_fake! {
    a_containerd_that_takes_its_time_is_waited_for,
    what_no_event_told_of_is_found_at_the_next_comparison,
    a_containerd_that_restarts_meanwhile_is_waited_for,
}
on_its_own_containerd! {
    on_a_disk;
    while_containerds_disk_is_read_only_nothing_is_lost_and_then_it_goes_on,
}
