//! Deltas: layers of the destination are not transferred, and missing ones are reported. Also
//! layers with an extreme compression ratio.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;

use bundle::fixtures::{Image, Layer, Manifest};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::json;

use super::{bundle, bundler, noise_image, noise_layer};
use crate::support::bundles::{native, text};
use crate::support::registry::Registry;
use crate::support::tools::{self, run, tool};
use crate::support::{Node, Target, on_each_containerd, on_the_fake, wait_until};

const MIB: usize = 1 << 20;

/// Returns an image with six layers of 10 MiB, and one of 1 MiB that changes.
fn version(changed: u64) -> Image {
    let mut layers: Vec<_> = (0..6).map(|seed| (10 * MIB, seed)).collect();
    layers.push((MIB, changed));
    noise_image(&layers)
}

fn one_changed_layer_is_all_that_travels_and_the_base_must_be_there(target: &Target) {
    let Some(registry) = Registry::start() else { return };
    let node = Node::on(target);
    let file = |name: &str| text(&node.path(name));
    // containerd shares content between namespaces, so another test must not have the same layers.
    let seed = u64::from(registry.port()) << 8;
    let (old, _) = registry.push("big/image", "1", version(seed));
    let (new, root) = registry.push("big/image", "2", version(seed + 1));
    bundle([&old, "-o", &file("base.tar")]).exits(0);
    let report = bundle([
        &new,
        "-o",
        &file("delta.tar"),
        "--base",
        &file("base.tar"),
        "-o",
        "json",
    ]);
    let report = report.exits(0).json();
    let size = fs::metadata(node.path("delta.tar")).unwrap().len();
    assert!(
        size < (MIB + MIB / 20) as u64,
        "{size} bytes for a layer of 1 MiB"
    );
    assert_eq!(report["base"], "base.tar");
    assert_eq!(report["blobs"]["left_out"], 6);

    let about = node.airgapd(["inspect", "--verify", &file("delta.tar")]).exits(0);
    assert!(
        about
            .stdout
            .contains("delta on base.tar, which has 6 of its layers"),
        "{about:?}"
    );
    let document = node
        .airgapd(["inspect", "-o", "json", &file("delta.tar")])
        .exits(0)
        .json();
    assert_eq!(document["relies_on"]["base"], "base.tar");
    assert_eq!(document["relies_on"]["blobs"].as_array().unwrap().len(), 6);
    assert_eq!(
        document["images"][0]["platforms"][0]["blobs"][1]["state"],
        "relied-on"
    );

    // Before the transfer, the operator can check the delta by itself and with its base.
    let list = file("list.txt");
    fs::write(&list, &new).unwrap();
    let verify = |node: &Node, arguments: &[&str]| {
        let all = ["verify", "-o", "json", "--images", &list];
        node.airgapd(all.iter().chain(arguments))
    };
    let alone = verify(&node, &["--bundle", &file("delta.tar")]).exits(4).json();
    assert_eq!(alone["images"][0]["status"], "incomplete", "{alone:#}");
    let both = [&file("delta.tar"), &file("base.tar")];
    verify(&node, &["--bundle", both[0], "--bundle", both[1]]).exits(0);

    let elsewhere = target.elsewhere();
    let stranger = Node::on(&elsewhere);
    let answer = stranger.import([file("delta.tar")]).exits(1);
    let kept = noise_layer(10 * MIB, 0);
    assert!(
        answer.said().contains("base.tar") && answer.said().contains(kept.digest().as_ref()),
        "{answer:?}"
    );
    assert!(elsewhere.names().is_empty() && elsewhere.leases().is_empty() && elsewhere.ingests().is_empty());

    node.import([file("base.tar")]).exits(0);
    node.drop_in(&node.path("delta.tar"));
    let there = verify(&node, &[]).exits(4).json();
    let found_in = there["images"][0]["found_in"].as_str();
    assert!(
        found_in.is_some_and(|file| file.ends_with("images/delta.tar")),
        "{there:#}"
    );
    fs::remove_file(node.images().join("delta.tar")).unwrap();
    let report = node.import([file("delta.tar")]).exits(0).bundle();
    assert!(
        report["blobs"]["sent_bytes"].as_u64().unwrap() < 2 * MIB as u64,
        "{report:#}"
    );
    assert_eq!(*target.expect_record(&new).target.digest(), root);
    assert!(target.is_pinned(&new));
    // The imported image stays whole without its base.
    target.remove_record(&old);
    target.collect_garbage();
    assert!(target.digests().contains(kept.digest().as_ref()));
}

/// A layer of zeros compresses a thousandfold and more. It is no attack if airgapd itself
/// compressed it.
#[test]
fn what_compresses_beyond_belief_is_read_back() {
    let Some(registry) = Registry::start() else { return };
    crate::support::run_on(crate::support::Place::Fake, |target| {
        let node = Node::on(target);
        let zeros = Manifest::new(native())
            .with_layer(Layer::zeros(200 << 20))
            .layer(crate::support::unique());
        let (name, _) = registry.push("some/zeros", "1", Image::unnamed().manifest(zeros));
        for form in ["zstd", "gzip"] {
            let target = target.elsewhere();
            let node_there = Node::on(&target);
            let file = text(&node.path(form));
            bundle([&name, "-o", &file, "--compress", form]).exits(0);
            assert!(fs::metadata(&file).unwrap().len() < 1 << 20, "{form}");
            node.airgapd(["inspect", "--verify", &file]).exits(0);
            node_there.import([&file]).exits(0);
            assert!(target.is_pinned(&name), "{form}");
            target.assert_tidy();
        }
    });
}

#[test]
fn zstd_bundles_are_plain_zstd_for_others() {
    let Some(registry) = Registry::start() else { return };
    let Some(zstd) = tool("zstd") else { return };
    let folder = tempfile::tempdir().unwrap();
    let (name, _) = registry.push("some/image", "1", noise_image(&[(MIB, 1), (100_000, 2), (10, 3)]));
    let path = |name: &str| text(&folder.path().join(name));
    bundle([&name, "-o", &path("plain.tar")]).exits(0);
    bundle([&name, "-o", &path("packed.tar.zst"), "--compress", "zstd"]).exits(0);
    run(Command::new(zstd).args(["-q", "-d", &path("packed.tar.zst"), "-o", &path("unpacked.tar")]));
    assert!(fs::read(path("plain.tar")).unwrap() == fs::read(path("unpacked.tar")).unwrap());
    // The table of frames is the last frame and has this mark.
    let packed = fs::read(path("packed.tar.zst")).unwrap();
    assert!(packed.ends_with(&0x8F92_EAB1_u32.to_le_bytes()));
}

#[test]
fn an_inventory_stands_for_a_base() {
    let Some(registry) = Registry::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| text(&folder.path().join(name));
    let (name, _) = registry.push("some/image", "1", noise_image(&[(MIB, 1), (MIB, 2)]));
    let had = noise_layer(MIB, 1).digest().to_string();
    let blobs = json!([{"digest": had, "size": MIB + 2048}]);
    let write = |document: serde_json::Value| fs::write(path("have.json"), document.to_string()).unwrap();
    write(json!({"version": 1, "node": "worker-3", "blobs": blobs, "images": []}));
    let arguments = [
        &name,
        "-o",
        &path("delta.tar"),
        "-o",
        "json",
        "--have",
        &path("have.json"),
    ]
    .map(String::from);
    let report = bundle(arguments.clone()).exits(0).json();
    assert_eq!(
        (&report["base"], &report["blobs"]["left_out"]),
        (&json!("node worker-3"), &json!(1))
    );
    assert!(!super::blobs_in(path("delta.tar").as_ref()).contains(&had));
    // A destination without any of the blobs gives no delta.
    write(json!({"version": 1, "node": "empty", "blobs": [], "images": []}));
    let report = bundle(arguments.clone()).exits(0).json();
    assert_eq!(report["base"], json!(null));
    write(json!({"version": 2}));
    let answer = bundle(arguments).exits(1);
    assert!(
        answer.said().contains("have.json") && answer.said().contains("version 2"),
        "{answer:?}"
    );
}

/// The daemon reports a delta without its base, and imports it when the base is there.
fn a_delta_in_the_folder_waits_for_its_base(target: &Target) {
    let Some(registry) = Registry::start() else { return };
    let node = Node::on(target);
    let file = |name: &str| text(&node.path(name));
    let (old, _) = registry.push("some/image", "1", noise_image(&[(MIB, 1), (1000, 2)]));
    let (new, _) = registry.push("some/image", "2", noise_image(&[(MIB, 1), (1000, 3)]));
    bundle([&old, "-o", &file("base.tar")]).exits(0);
    bundle([&new, "-o", &file("delta.tar"), "--base", &file("base.tar")]).exits(0);
    let daemon = node.start();
    node.drop_in(&node.path("delta.tar"));
    daemon.wait_for_log("base.tar");
    assert!(target.record(&new).is_none());
    node.drop_in(&node.path("base.tar"));
    daemon.wait_until("the base is imported", || target.record(&old).is_some());
    daemon.wait_until("the delta is imported", || target.record(&new).is_some());
    daemon.finish(target);
}

/// Two network namespaces with a cable between them. Dropping it ends both.
struct Cable {
    near: Child,
    far: Child,
}

impl Cable {
    const NEAR: &str = "10.77.0.1";
    const FAR: &str = "10.77.0.2";

    /// Returns `None` on a machine without the program for it.
    fn new() -> Option<Cable> {
        let program = tools::ip()?;
        let space = || {
            let own = fs::read_link("/proc/self/ns/net").unwrap();
            let mut command = Command::new("unshare");
            // `cat` ends with this process.
            let holder = command
                .args(["--net", "cat"])
                .stdin(Stdio::piped())
                .spawn()
                .unwrap();
            let of_holder = format!("/proc/{}/ns/net", holder.id());
            wait_until("a network namespace", || {
                fs::read_link(&of_holder).is_ok_and(|space| space != own)
            });
            holder
        };
        let cable = Cable {
            near: space(),
            far: space(),
        };
        let ip = |holder: &Child, arguments: &str| {
            let mut command = Command::new("nsenter");
            command
                .arg(format!("--net=/proc/{}/ns/net", holder.id()))
                .arg(&program);
            run(command.args(arguments.split(' ')));
        };
        let peer = format!(
            "link add wire0 type veth peer name wire1 netns {}",
            cable.far.id()
        );
        ip(&cable.near, &peer);
        for (holder, device, address) in [
            (&cable.near, "wire0", Cable::NEAR),
            (&cable.far, "wire1", Cable::FAR),
        ] {
            ip(holder, &format!("addr add {address}/24 dev {device}"));
            ip(holder, &format!("link set {device} up"));
        }
        Some(cable)
    }

    /// Runs work on a thread in one of the namespaces.
    fn at<T: Send>(holder: &Child, work: impl FnOnce() -> T + Send) -> T {
        let space = File::open(format!("/proc/{}/ns/net", holder.id())).unwrap();
        thread::scope(|scope| {
            let thread = scope.spawn(move || {
                move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                work()
            });
            thread.join().unwrap()
        })
    }

    /// Runs a command at the far end, with a connection as its input and output. `near` has the
    /// other end of the connection.
    fn far<T: Send>(&self, mut command: Command, near: impl FnOnce(TcpStream) -> T + Send) -> T {
        let (place, found) = mpsc::channel();
        thread::scope(|scope| {
            let served = scope.spawn(move || {
                Cable::at(&self.far, || {
                    let listener = TcpListener::bind((Cable::FAR, 0)).unwrap();
                    place.send(listener.local_addr().unwrap()).unwrap();
                    let (stream, _) = listener.accept().unwrap();
                    let ends = [stream.try_clone().unwrap(), stream].map(OwnedFd::from);
                    let [input, output] = ends.map(Stdio::from);
                    let mut child = command.stdin(input).stdout(output).spawn().unwrap();
                    drop(command);
                    child.wait().unwrap()
                })
            });
            let place = found.recv().unwrap();
            let answer = Cable::at(&self.near, || near(TcpStream::connect(place).unwrap()));
            assert!(served.join().unwrap().success());
            answer
        })
    }

    /// Returns the bytes that the near end has sent so far, with all headers.
    fn sent(&self) -> u64 {
        let table = Cable::at(&self.near, || {
            fs::read_to_string("/proc/thread-self/net/dev").unwrap()
        });
        let line = table.lines().find_map(|line| line.trim().strip_prefix("wire0:"));
        line.unwrap().split_whitespace().nth(8).unwrap().parse().unwrap()
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for holder in [&mut self.near, &mut self.far] {
            drop(holder.stdin.take());
            let _ = holder.wait();
        }
    }
}

/// The recipe of `docs/preparing.md`: the far node says which blobs it has, and only the rest
/// travels. No bundle is written to any disk.
fn only_the_layers_that_the_far_node_lacks_go_over_the_wire(target: &Target) {
    let Some(registry) = Registry::start() else { return };
    let Some(cable) = Cable::new() else { return };
    let node = Node::on(target);
    let file = |name: &str| text(&node.path(name));
    let (old, _) = registry.push("some/image", "1", noise_image(&[(MIB, 1), (MIB, 2), (1000, 3)]));
    let (new, _) = registry.push(
        "some/image",
        "2",
        noise_image(&[(MIB, 1), (MIB, 2), (100_000, 4)]),
    );
    bundle([&old, "-o", &file("base.tar")]).exits(0);
    node.import([file("base.tar")]).exits(0);
    let inventory = cable.far(node.command(["inventory"]), |mut stream| {
        let mut document = String::new();
        stream.read_to_string(&mut document).unwrap();
        document
    });
    fs::write(node.path("far.json"), inventory).unwrap();
    let before = cable.sent();
    let mut maker = bundler([&new, "-o", "-", "--have", &file("far.json")]);
    let maker = maker
        .args(["--insecure-registries", "plain-http"])
        .stdout(Stdio::piped());
    let mut maker = maker.spawn().unwrap();
    let mut delta = maker.stdout.take().unwrap();
    let answer = cable.far(node.command(["import", "-o", "json", "-"]), |mut stream| {
        io::copy(&mut delta, &mut stream).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut document = String::new();
        stream.read_to_string(&mut document).unwrap();
        document
    });
    assert!(maker.wait().unwrap().success());
    let wire = cable.sent() - before;
    assert!((100_000..160_000).contains(&wire), "{wire} bytes on the wire");
    assert!(answer.contains("\"outcome\": \"imported\""), "{answer}");
    assert!(target.is_pinned(&new));
    assert!(target.leases().is_empty());
    target.assert_tidy();
}

on_the_fake!(a_delta_in_the_folder_waits_for_its_base);
on_each_containerd!(only_the_layers_that_the_far_node_lacks_go_over_the_wire);
on_each_containerd!(one_changed_layer_is_all_that_travels_and_the_base_must_be_there);
