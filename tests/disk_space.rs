//! An import that does not fit is not started. An import that fills the disk is undone. Both
//! continue when there is room.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use bundle::fixtures::{Image, Layer};
use fake_containerd::{FakeConfig, Fault};
use lab::Options;
use serde_json::Value;
use tonic::Code;

use crate::support::bundles::{self, image, native, text};
use crate::support::mount::Mount;
use crate::support::node::Daemon;
use crate::support::{Node, Own, Target, on_its_own_containerd, on_the_fake, unique, wait_until};

const BIG: &str = "registry.test/big:1";
const SMALL: &str = "registry.test/small:1";
const MIB: u64 = 1 << 20;
/// Size of a disk with some room for a containerd with CRI.
const DISK: u64 = 160 * MIB;

/// Options of a containerd on its own disk.
fn on_a_small_disk() -> Options {
    Options {
        disk: Some(DISK),
        ..Options::default()
    }
}

fn big_image(size: u64) -> Image {
    Image::new(BIG)
        .platform(native())
        .layer(unique())
        .with_layer(Layer::zeros(size))
}

/// Returns the free bytes on the disk of a folder.
fn free(folder: &Path) -> u64 {
    let stat = rustix::fs::statvfs(folder).unwrap();
    stat.f_bavail * stat.f_frsize
}

/// Fills the disk of a folder until only `left` bytes are free.
fn fill(folder: &Path, left: u64) -> PathBuf {
    let file = folder.join("somebody-elses");
    let size = free(folder).checked_sub(left).expect("the disk has more room");
    let output = File::create(&file).unwrap();
    rustix::fs::fallocate(&output, rustix::fs::FallocateFlags::empty(), 0, size).unwrap();
    output.sync_all().unwrap();
    file
}

/// Returns the reason why the last try of the only bundle failed, from the ledger.
fn last_error(node: &Node) -> Option<(String, String)> {
    let ledger: Value = serde_json::from_str(&fs::read_to_string(node.ledger()).ok()?).ok()?;
    let error = ledger["bundles"].as_object()?.values().next()?["last_error"].clone();
    Some((
        error["class"].as_str()?.to_owned(),
        error["text"].as_str()?.to_owned(),
    ))
}

fn is_in_place(target: &Target, name: &str) -> bool {
    target.record(name).is_some() && target.is_pinned(name)
}

/// Returns true if airgapd has nothing on containerd's disk that no record needs.
fn nothing_is_left(target: &Target) -> bool {
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

fn what_does_not_fit_is_not_begun_and_imported_as_soon_as_it_fits(own: &mut Own) {
    let (root, target) = (own.containerd.root(), &own.target);
    let node = Node::on(target);
    let file = node.path("big.tar");
    bundles::write(&file, [big_image(48 * MIB)]);
    let ballast = fill(&root, 30 * MIB);
    let before = free(&root);

    let plan = node.import(["--dry-run", &text(&file)]).exits(1).bundle();
    let space = &plan["space"];
    assert_eq!(space["fits"], false, "{plan:#}");
    assert!(space["wanted_bytes"].as_u64().unwrap() >= 48 * MIB, "{plan:#}");
    assert!(space["free_bytes"].as_u64().unwrap() <= 30 * MIB, "{plan:#}");
    let answer = node.import([&text(&file)]).exits(1);
    let error = answer.bundle()["error"].as_str().unwrap().to_owned();
    for part in ["no space for it", "50.", "wanted", "free", &text(&root)] {
        assert!(error.contains(part), "{part} in {error}");
    }
    let images = answer.bundle()["images"].clone();
    assert_eq!(
        images.as_array().map(Vec::len),
        Some(1),
        "once for its image: {images:#}"
    );
    let said = node.airgapd(["import", &text(&file)]).exits(1).said();
    assert_eq!(said.matches("no space for it").count(), 1, "{said}");
    assert!(said.contains("FAILED     1 image, for that reason"), "{said}");

    let daemon = node.start();
    node.drop_in(&file);
    daemon.wait_for_log("no space for it");
    daemon.wait_until("the ledger says why", || {
        last_error(&node).is_some_and(|(class, text)| class == "space" && text.contains("wanted"))
    });
    assert!(target.names().is_empty() && nothing_is_left(target));
    assert!(before.abs_diff(free(&root)) < 2 * MIB, "nothing was written");

    fs::remove_file(ballast).unwrap();
    let since = Instant::now();
    daemon.wait_until("the image", || is_in_place(target, BIG));
    report(target, "imported after space was freed", since);
    let log = daemon.finish(target);
    assert_eq!(log.matches("no space for it").count(), 1, "{log}");
}

/// Returns the program in a place that does not see containerd's root, like a container with only
/// the socket.
fn out_of_sight(program: &Command, root: &Path) -> Command {
    let mut command = Command::new("unshare");
    let script = "mount -t tmpfs none \"$0\" && exec \"$@\"";
    command.args(["--mount", "sh", "-c", script]).arg(root);
    command.arg(program.get_program()).args(program.get_args());
    for (name, _) in program.get_envs() {
        command.env_remove(name);
    }
    command
}

/// The daemon cannot see that the disk is small.
fn a_disk_that_fills_up_gets_back_what_is_not_recorded_and_the_import_recovers(own: &mut Own) {
    let (root, target) = (own.containerd.root(), &own.target);
    let node = Node::on(target);
    let bundle = node.images().join("both.tar");
    bundles::write(&bundle, [big_image(48 * MIB), image(SMALL)]);
    let ballast = fill(&root, 30 * MIB);
    let before = free(&root);
    let command = out_of_sight(&node.command(["run"]), &root);
    let daemon = Daemon::start(command, &node.path("notify.sock"));
    daemon.wait_for_log("no space left");
    daemon.wait_until("the ledger says why", || {
        last_error(&node).is_some_and(|(class, text)| class == "space" && text.contains("no space"))
    });
    // The first try may have its folder or not, depending on when the other blob filled the disk.
    daemon.wait_until("the bundle that fits", || is_in_place(target, SMALL));
    assert!(target.record(BIG).is_none(), "nothing is half recorded");
    daemon.wait_until("everything is returned", || {
        nothing_is_left(target) && before.abs_diff(free(&root)) < 2 * MIB
    });

    fs::remove_file(ballast).unwrap();
    let since = Instant::now();
    daemon.wait_until("the image", || is_in_place(target, BIG));
    report(target, "recovered from a full disk that nobody sees", since);
    daemon.finish(target);
}

fn below_min_free_nothing_is_imported_or_healed_until_there_is_more(own: &mut Own) {
    let (root, target) = (own.containerd.root(), &own.target);
    let node = Node::on(target);
    node.configure_also("minFree: 40MiB");
    let daemon = node.start();
    bundles::write(&node.images().join("a.tar"), [image(SMALL)]);
    daemon.wait_until("the first image", || is_in_place(target, SMALL));
    daemon.wait_until("all work has ended", || nothing_is_left(target));

    let ballast = fill(&root, 20 * MIB);
    let names = [1, 2, 3].map(|n| format!("registry.test/later-{n}:1"));
    for (n, name) in names.iter().enumerate() {
        bundles::write(&node.images().join(format!("later-{n}.tar")), [image(name)]);
    }
    target.remove_record(SMALL);
    daemon.wait_for_log("minFree");
    daemon.wait_for_log("is missing in containerd");
    assert_eq!(daemon.count("minFree"), 1, "said once:\n{}", daemon.log());
    assert!(target.record(SMALL).is_none(), "nothing is healed");
    assert!(
        names.iter().all(|name| target.record(name).is_none()),
        "nothing is imported"
    );

    fs::remove_file(ballast).unwrap();
    daemon.wait_until("everything", || {
        // The test must read the daemon's messages for the service manager.
        daemon.notified();
        names.iter().all(|name| is_in_place(target, name)) && is_in_place(target, SMALL)
    });
    daemon.finish(target);
}

fn a_disk_that_kubelet_will_find_full_is_said_once_for_many_bundles(own: &mut Own) {
    let (root, target) = (own.containerd.root(), &own.target);
    let node = Node::on(target);
    node.configure_also("minFree: 0");
    let daemon = node.start();
    let ballast = fill(&root, 20 * MIB);
    let imports = |names: [&str; 3]| {
        for name in names {
            bundles::write(
                &node.images().join(format!("{name}.tar")),
                [image(&format!("registry.test/{name}:1"))],
            );
        }
        node.airgapd(["wait"]).exits(0);
    };
    imports(["a", "b", "c"]);
    assert_eq!(daemon.count("% full: above"), 1, "{}", daemon.log());
    let has_room = || {
        let disk = node.airgapd(["status", "-o", "json"]).json()["disk"].clone();
        disk["free_bytes"].as_u64() > Some(80 * MIB)
    };
    wait_until("the daemon has seen the full disk", || !has_room());
    fs::remove_file(ballast).unwrap();
    wait_until("the daemon has seen that there is room", has_room);
    let _ballast = fill(&root, 20 * MIB);
    imports(["d", "e", "f"]);
    assert_eq!(daemon.count("% full: above"), 2, "{}", daemon.log());
    daemon.finish(target);
}

/// The number of files counts too: small files can use up a disk's inodes.
fn a_disk_without_room_for_another_file_is_a_full_disk(own: &mut Own) {
    let target = &own.target;
    let node = Node::on(target);
    let daemon = node.start();
    let folder = own.containerd.root().join("others");
    fs::create_dir(&folder).expect("a folder");
    let mut number = 0;
    while File::create(folder.join(number.to_string())).is_ok() {
        number += 1;
    }
    bundles::write(&node.images().join("a.tar"), [image(SMALL)]);
    daemon.wait_for_log("files");
    assert!(target.record(SMALL).is_none());
    fs::remove_dir_all(&folder).expect("the test owns it");
    daemon.wait_until("the image", || is_in_place(target, SMALL));
    daemon.finish(target);
}

/// Returns the bytes that a folder takes on its disk, like `du`.
fn du(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let taken = entries.map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => du(&entry.path()),
        Ok(metadata) => metadata.blocks() * 512,
        // containerd removes a file meanwhile.
        Err(_) => 0,
    });
    taken.sum()
}

/// With a bundle in the folder, a node has each layer twice. With its receipt, it has it once.
fn a_receipt_gives_back_the_disk_that_its_bundle_took(own: &mut Own) {
    const LAYER: u64 = 16 * MIB;
    let (root, target) = (own.containerd.root(), &own.target);
    let store = root.join("io.containerd.content.v1.content");
    let node = Node::on(target);
    let bundle = node.path("big.tar");
    bundles::write(&bundle, [big_image(LAYER)]);
    let size = fs::metadata(&bundle).unwrap().len();
    let placed = node.drop_in(&bundle);
    let daemon = node.start();
    daemon.wait_until("the image", || {
        target.record(BIG).is_some() && target.leases().is_empty()
    });
    let taken = || du(&node.images()) + du(&node.state()) + du(&store);
    let before = taken();
    assert!(before > 2 * LAYER, "{before} bytes");
    node.configure_also("afterImport: receipt");
    daemon.signal(rustix::process::Signal::HUP);
    daemon.wait_until("the file goes", || !placed.exists());
    let receipt = node.state().join("receipts/big.tar");
    daemon.wait_until("the receipt vouches for the image", || {
        let label = text(&receipt);
        target.labels(BIG).values().any(|file| *file == label)
    });
    let after = taken();
    // The ledger and the receipt take a few blocks.
    assert!(after < LAYER + LAYER / 8, "{after} bytes of {before}");
    assert!(
        before - after > size - LAYER / 8,
        "{before} - {after} of {size} bytes"
    );
    let receipt = fs::metadata(receipt).unwrap().len();
    assert!(receipt < 64 << 10, "a receipt of {receipt} bytes");
    daemon.stop();
}

on_its_own_containerd! {
    on_a_small_disk;
    what_does_not_fit_is_not_begun_and_imported_as_soon_as_it_fits,
    a_disk_that_fills_up_gets_back_what_is_not_recorded_and_the_import_recovers,
    below_min_free_nothing_is_imported_or_healed_until_there_is_more,
    a_disk_that_kubelet_will_find_full_is_said_once_for_many_bundles,
    a_disk_without_room_for_another_file_is_a_full_disk,
    a_receipt_gives_back_the_disk_that_its_bundle_took,
}

/// containerd passes on the system's message. A quota has another message than a full disk.
fn a_quota_that_is_used_up_is_a_full_disk(target: &Target) {
    let fake = target.as_fake().unwrap();
    let node = Node::on(target);
    fake.inject(Fault::FailAll {
        rpc: "Content.Write",
        code: Code::Unknown,
        message: "write /var/lib/containerd/ingest/1/data: disk quota exceeded".to_owned(),
    });
    bundles::write(&node.images().join("a.tar"), [image(SMALL)]);
    let daemon = node.start();
    daemon.wait_for_log("disk quota exceeded");
    daemon.wait_until("the ledger says why", || {
        last_error(&node).is_some_and(|(class, _)| class == "space")
    });
    fake.clear_faults();
    daemon.wait_until("the image", || is_in_place(target, SMALL));
    daemon.finish(target);
}

/// The stand-in's store has no place. This one is in a folder, so its disk counts.
fn a_dry_run_says_what_is_wanted_and_what_there_is(_: &Target) {
    let store = tempfile::tempdir().unwrap();
    fs::create_dir(store.path().join("ingest")).unwrap();
    let target = Target::fake(FakeConfig {
        content_root: Some(store.path().to_owned()),
        ..FakeConfig::default()
    });
    let node = Node::on(&target);
    let file = text(&node.path("a.tar"));
    bundles::write(file.as_ref(), [image(SMALL), image("registry.test/other:1")]);
    let space = node.import(["--dry-run", &file]).exits(0).bundle()["space"].clone();
    let keys: Vec<_> = space.as_object().unwrap().keys().map(String::as_str).collect();
    let expected = [
        "fits",
        "free_bytes",
        "free_inodes",
        "going_bytes",
        "inodes",
        "min_free_bytes",
        "path",
        "size_bytes",
        "wanted_bytes",
        "wanted_inodes",
    ];
    assert_eq!(keys, expected, "{space:#}");
    assert_eq!(
        (&space["fits"], &space["path"]),
        (&true.into(), &text(store.path()).into())
    );
    assert!(space["wanted_bytes"].as_u64() > Some(0), "{space:#}");
    assert_eq!(space["going_bytes"], 0, "{space:#}");

    // A receipt takes the place of a file in the folder, and of no other file.
    node.configure_also("afterImport: receipt");
    let placed = text(&node.drop_in(file.as_ref()));
    let size = fs::metadata(&placed).unwrap().len();
    for (path, going) in [(&file, 0), (&placed, size)] {
        let plan = node.import(["--dry-run", path]).exits(0).bundle();
        assert_eq!(plan["space"]["going_bytes"], going, "{plan:#}");
    }
    let said = node.airgapd(["import", "--dry-run", &placed]).exits(0).stdout;
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(said.contains("free again with the bundle's file"), "{said}");
    // A file that leaves a name to another program or to the configuration stays.
    node.configure_also("exclude: [\"registry.test/other:*\"]");
    let plan = node.import(["--dry-run", &placed]).exits(0).bundle();
    assert_eq!(plan["space"]["going_bytes"], 0, "{plan:#}");

    let said = node.airgapd(["import", "--dry-run", &file]).exits(0);
    assert!(said.stdout.contains("space: fits: "), "{said:?}");
    assert!(said.stdout.contains(&text(store.path())), "{said:?}");
}

/// The daemon keeps its state in memory and logs that it cannot write it.
fn a_state_folder_that_is_full_or_read_only_costs_memory_and_nothing_else(target: &Target) {
    if !lab::is_root() {
        return;
    }
    let node = Node::on(target);
    let disk = Mount::over(&node.state(), &["-t", "tmpfs", "-o", "size=64k", "tmpfs"]);
    for (name, option) in [("full", None), ("read-only", Some("remount,ro"))] {
        let before = is_full(&node.state(), option.is_none());
        if let Some(option) = option {
            disk.change(option);
        }
        let daemon = node.start();
        let image_name = format!("registry.test/{name}:1");
        bundles::write(&node.images().join(format!("{name}.tar")), [image(&image_name)]);
        daemon.wait_until("the image", || is_in_place(target, &image_name));
        said_once(&daemon, "cannot keep the state in");
        daemon.finish(target);
        drop(before);
        if option.is_some() {
            disk.change("remount,rw");
        }
    }
    let daemon = node.start();
    daemon.wait_until("the ledger is written again", || {
        fs::read_to_string(node.ledger()).is_ok_and(|text| text.contains("read-only.tar"))
    });
    daemon.finish(target);
}

fn said_once(daemon: &Daemon, word: &str) {
    wait_until("it is said", || daemon.count(word) == 1);
}

struct Ballast(Option<PathBuf>);

/// Fills the disk of a folder if wanted, until the result is dropped.
fn is_full(folder: &Path, is_wanted: bool) -> Ballast {
    Ballast(is_wanted.then(|| fill(folder, 0)))
}

impl Drop for Ballast {
    fn drop(&mut self) {
        if let Some(file) = &self.0 {
            let _ = fs::remove_file(file);
        }
    }
}

on_the_fake! {
    a_dry_run_says_what_is_wanted_and_what_there_is,
    a_quota_that_is_used_up_is_a_full_disk,
    a_state_folder_that_is_full_or_read_only_costs_memory_and_nothing_else,
}
