//! `airgapd import -`: bundles from standard input and named pipes, which never become a file.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bundle::Compression;
use bundle::fixtures::{Archive, Image, digest_of};
use fake_containerd::Fault;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tonic::Code;

use crate::support::bundles::{
    self, PLATFORMS, documents_first, image, large, multi_platform, needed_here, text,
};
use crate::support::node::{Answer, outcomes};
use crate::support::target::{BY_HAND, PINNED};
use crate::support::tools::run;
use crate::support::{Node, Target, on_each_containerd, on_the_fake, wait_until};

/// Ends the input, and returns the answer.
fn end(mut child: Child) -> Answer {
    drop(child.stdin.take());
    child.wait_with_output().unwrap().into()
}

/// Makes an archive of these images.
type Make = fn(Vec<Image>) -> Archive;

/// The forms of a pipe that is read in one pass: planned at its beginning, or the list at its end.
fn forms() -> [(&'static str, Make); 2] {
    [
        ("documents first", |images| {
            documents_first(bundles::layout(images).build())
        }),
        ("blobs first", |images| bundles::layout(images).build()),
    ]
}

fn pack(archive: &Archive, codec: Compression) -> Vec<u8> {
    match codec {
        Compression::None => archive.to_bytes(),
        codec => archive.to_compressed(codec),
    }
}

/// A record's target and labels, without the times and file names in them.
fn traces(target: &Target, name: &str) -> (String, Vec<(String, String)>) {
    let record = target.expect_record(name);
    let mut labels: Vec<_> = record
        .labels
        .into_iter()
        .filter(|(key, _)| key != BY_HAND)
        .collect();
    labels.sort();
    (record.target.digest().to_string(), labels)
}

fn a_pipe_leaves_what_the_file_leaves(target: &Target) {
    for (form, make) in forms() {
        for codec in [Compression::None, Compression::Zstd, Compression::Gzip] {
            let (piped, filed) = (target.elsewhere(), target.elsewhere());
            let name = "registry.test/piped:1";
            let archive = make(vec![
                multi_platform(name, &PLATFORMS),
                large("registry.test/large:1", 3 << 20),
            ]);
            let bytes = pack(&archive, codec);
            let node = Node::on(&piped);
            let answer = node.pipe_in(&["-"], &bytes).exits(0);
            let bundle = answer.bundle();
            assert_eq!(bundle["outcome"], "imported", "{form}, {codec}: {answer:?}");
            let other = Node::on(&filed);
            let file = other.path("stdin");
            fs::write(&file, &bytes).unwrap();
            let expected = other.import([text(&file)]).exits(0).bundle();
            assert_eq!(outcomes(&bundle), outcomes(&expected), "{form}, {codec}");
            // The other namespace shares blobs with this one.
            let moved = |bundle: &Value| {
                let count = |key: &str| bundle["blobs"][key].as_u64().unwrap();
                [
                    count("sent") + count("present"),
                    count("not_needed"),
                    count("not_needed_bytes"),
                ]
            };
            assert_eq!(moved(&bundle), moved(&expected), "{form}, {codec}");
            assert_eq!(piped.names(), filed.names());
            for name in piped.names() {
                assert_eq!(traces(&piped, &name), traces(&filed, &name), "{form}, {codec}");
                assert_eq!(piped.labels(&name)[BY_HAND], "stdin");
                assert!(piped.is_pinned(&name));
            }
            assert_eq!(piped.leases(), filed.leases());
            assert!(piped.ingests().is_empty());
            piped.collect_garbage();
            assert_eq!(piped.digests(), needed_here(&archive.images), "{form}, {codec}");
            let again = node.pipe_in(&["-"], &bytes).exits(0).bundle();
            assert_eq!(again["blobs"]["sent_bytes"], 0, "{form}, {codec}: {again:#}");
            assert!(piped.leases().is_empty());
            // The state folder has no file, not even an empty one.
            assert_eq!(fs::read_dir(node.state()).unwrap().count(), 0);
        }
    }
}

/// `docker save` up to version 24 names layers by folders. Only the list at the end tells which
/// layer is which.
fn the_old_form_of_docker_goes_through_a_file_without_a_name_within_a_limit(target: &Target) {
    let node = Node::on(target);
    let name = "registry.test/docker:1";
    let bytes = bundles::docker([large(name, 2 << 20)]).build().to_bytes();
    for limit in ["0", "1MiB"] {
        let answer = node.pipe_in(&["--spool", limit, "-"], &bytes).exits(1);
        let said = answer.said();
        assert!(
            said.contains("--spool") && said.contains("bundle merge"),
            "{said}"
        );
        assert!(target.record(name).is_none());
    }
    node.configure_also("minFree: 99%");
    let said = node.pipe_in(&["-"], &bytes).exits(1).said();
    assert!(said.contains("must stay free"), "{said}");
    let node = Node::on(target);
    node.pipe_in(&["-"], &bytes).exits(0);
    assert_eq!(target.labels(name)[BY_HAND], "stdin");
    assert_eq!(fs::read_dir(node.state()).unwrap().count(), 0);
    assert!(target.leases().is_empty());
}

fn a_stream_that_is_cut_off_brings_nothing_and_its_lease_ends(target: &Target) {
    let node = Node::on(target);
    let names = ["registry.test/cut/a:1", "registry.test/cut/b:1"];
    let docker: Make = |images| bundles::docker(images).build();
    let list_first: Make = |images| {
        let mut archive = bundles::docker(images).build();
        archive.entries.sort_by_key(|entry| entry.name != "manifest.json");
        archive
    };
    let spooled = [("docker", docker), ("docker, list first", list_first)];
    for (form, make) in forms().into_iter().chain(spooled) {
        for codec in [Compression::None, Compression::Zstd] {
            let archive = make(names.map(|name| large(name, 1 << 20)).into());
            let bytes = pack(&archive, codec);
            let in_a_layer = bytes.len() * 3 / 4;
            // A boundary between entries looks like the end of a careless writer's archive.
            let boundary = usize::try_from(archive.boundaries().into_iter().rev().nth(1).unwrap()).unwrap();
            let cuts = match codec {
                Compression::None => vec![in_a_layer, boundary, 700, 0],
                _ => vec![in_a_layer, bytes.len() - 9, 700, 0],
            };
            for cut in cuts {
                let answer = node.pipe_in(&["-"], &bytes[..cut]);
                if target.names().is_empty() {
                    assert_eq!(
                        answer.status.code(),
                        Some(5),
                        "{form}, {codec}, at {cut}: {answer:?}"
                    );
                } else {
                    // No image may need the last entry of an archive without its mark.
                    assert_eq!((codec, cut), (Compression::None, boundary), "{form}: {answer:?}");
                    assert_eq!(target.names().len(), 2 * names.len());
                    names.iter().for_each(|name| target.remove_record(name));
                    for name in target.names() {
                        target.remove_record(&name);
                    }
                }
                assert!(target.leases().is_empty(), "{form}, {codec}, at {cut}");
                target.collect_garbage();
                assert!(target.ingests().is_empty(), "{form}, {codec}, at {cut}");
                assert!(target.digests().is_empty(), "{form}, {codec}, at {cut}");
            }
        }
    }
}

/// The other images of the bundle are imported, as from a file.
fn a_damaged_layer_fails_its_image_alone(target: &Target) {
    for (form, make) in forms() {
        let target = target.elsewhere();
        let node = Node::on(&target);
        let names = ["registry.test/damaged:1", "registry.test/sound:1"];
        let mut archive = make(names.map(|name| large(name, 1 << 20)).into());
        let layer = archive.images[0].manifests[0].layers[0].clone();
        archive.corrupt(&layer);
        let answer = node.pipe_in(&["-"], &archive.to_bytes());
        let file = node.path("damaged.tar");
        archive.write_to(&file);
        let elsewhere = target.elsewhere();
        let of_file = Node::on(&elsewhere).import([text(&file)]);
        assert_eq!(answer.status.code(), of_file.status.code(), "{form}: {answer:?}");
        assert_eq!(outcomes(&answer.bundle()), outcomes(&of_file.bundle()), "{form}");
        assert!(answer.said().contains(layer.as_ref()), "{form}: {answer:?}");
        assert!(target.record(names[0]).is_none() && target.record(names[1]).is_some());
        assert!(target.leases().is_empty() && target.ingests().is_empty());
    }
}

fn a_layer_that_never_comes_fails_its_image_alone(target: &Target) {
    let node = Node::on(target);
    let names = ["registry.test/absent:1", "registry.test/there:1"];
    let mut archive = documents_first(bundles::layout(names.map(|name| large(name, 1 << 20))).build());
    let layer = archive.images[0].manifests[0].layers[0].clone();
    archive.remove_blob(&layer);
    let answer = node.pipe_in(&["-"], &archive.to_bytes()).exits(1);
    let said = answer.said();
    assert!(
        said.contains("the pipe did not bring it") && said.contains(layer.as_ref()),
        "{said}"
    );
    assert!(target.record(names[0]).is_none() && target.record(names[1]).is_some());
    assert!(target.leases().is_empty());
    // Each image names its own layer, and the bundle is to blame.
    let images = ["registry.test/absent:2", "registry.test/absent:3"].map(|name| large(name, 1 << 20));
    let mut archive = documents_first(bundles::layout(images).build());
    let layers = [0, 1].map(|n| archive.images[n].manifests[0].layers[0].clone());
    for layer in &layers {
        archive.remove_blob(layer);
    }
    // A pipe of documents alone would be read like a file.
    let other = vec![1; 4096];
    archive.add(&format!("blobs/sha256/{}", digest_of(&other).digest()), other);
    let bundle = node.pipe_in(&["-"], &archive.to_bytes()).exits(5).bundle();
    for (n, layer) in layers.iter().enumerate() {
        let name = format!("registry.test/absent:{}", n + 2);
        let images = bundle["images"].as_array().unwrap();
        let image = images.iter().find(|image| image["name"] == *name).unwrap();
        let reason = image["reason"].as_str().unwrap();
        assert!(reason.contains(layer.as_ref()), "{reason}");
    }
}

/// Another program deletes the lease, and containerd collects the blobs that it held.
fn a_lease_that_is_deleted_is_the_reason_and_the_bundle_is_not_to_blame(target: &Target) {
    for (form, make) in forms() {
        let target = target.elsewhere();
        let node = Node::on(&target);
        let bytes = make(vec![large("registry.test/lease:1", 4 << 20)]).to_bytes();
        let mut child = node.begin_to_pipe(&["-"]);
        send_a_part(&target, &mut child, &bytes);
        target.delete_leases();
        let stdin = child.stdin.as_mut().unwrap();
        // The program may end before it has read everything.
        let _ = stdin.write_all(&bytes[bytes.len() / 2..]);
        let said = end(child).exits(1).said();
        assert!(said.contains("lease"), "{form}: {said}");
        assert!(target.names().is_empty() && target.leases().is_empty(), "{form}");
        node.pipe_in(&["-"], &bytes).exits(0);
    }
}

fn a_blob_that_containerd_refused_has_the_reason_of_containerd(target: &Target) {
    let node = Node::on(target);
    let bytes = bundles::layout([large("registry.test/refused:1", 1 << 20)])
        .build()
        .to_bytes();
    let fake = target.as_fake().unwrap();
    // The layer is the first blob of the pipe. Later writes would succeed.
    fake.inject(Fault::Fail {
        rpc: "Content.Write",
        nth: 1,
        code: Code::PermissionDenied,
        message: "a policy forbids it".to_owned(),
    });
    let said = node.pipe_in(&["-"], &bytes).exits(1).said();
    assert!(
        said.contains("a policy forbids it") && !said.contains("only once"),
        "{said}"
    );
    assert!(target.names().is_empty() && target.leases().is_empty());
}

fn a_containerd_that_goes_away_stops_the_import_and_its_lease_is_named(target: &Target) {
    for (form, make) in forms() {
        let target = target.elsewhere();
        let fake = target.as_fake().unwrap();
        let node = Node::on(&target);
        let bytes = make(vec![large("registry.test/away:1", 4 << 20)]).to_bytes();
        let mut child = node.begin_to_pipe(&["-"]);
        send_a_part(&target, &mut child, &bytes);
        let leases = target.leases();
        fake.kill();
        let stdin = child.stdin.as_mut().unwrap();
        let _ = stdin.write_all(&bytes[bytes.len() / 2..]);
        let said = end(child).exits(3).said();
        let lease = leases.first().unwrap();
        assert!(
            said.contains(&format!("cannot delete lease {lease}")),
            "{form}: {said}"
        );
        fake.restart();
        assert!(target.names().is_empty(), "{form}");
        node.pipe_in(&["-"], &bytes).exits(0);
        assert!(target.leases().is_empty(), "{form}");
    }
}

/// Writes the first bytes of a bundle, and waits until containerd has some of them.
fn send_a_part(target: &Target, child: &mut Child, bytes: &[u8]) {
    child
        .stdin
        .as_mut()
        .unwrap()
        .write_all(&bytes[..bytes.len() / 2])
        .unwrap();
    wait_until("blobs under way", || {
        !target.leases().is_empty() && (!target.ingests().is_empty() || !target.digests().is_empty())
    });
}

fn an_import_that_is_killed_leaves_one_lease_and_the_next_one_ends_it(target: &Target) {
    for (form, make) in forms() {
        let target = target.elsewhere();
        let node = Node::on(&target);
        let names = ["registry.test/killed/a:1", "registry.test/killed/b:1"];
        let bytes = make(names.map(|name| large(name, 2 << 20)).into()).to_bytes();
        let mut child = node.begin_to_pipe(&["-"]);
        send_a_part(&target, &mut child, &bytes);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(target.leases().len(), 1, "{form}");
        assert!(target.names().is_empty(), "{form}");
        node.pipe_in(&["-"], &bytes).exits(0);
        assert!(names.iter().all(|name| target.record(name).is_some()), "{form}");
        assert!(
            target.leases().is_empty() && target.ingests().is_empty(),
            "{form}"
        );
    }
}

/// Each import is killed a little later than the import before. The last import finishes the work.
fn imports_that_are_killed_at_many_instants_lose_nothing(target: &Target) {
    const KILLS: usize = 12;
    for (form, make) in forms() {
        let target = target.elsewhere();
        let node = Node::on(&target);
        let names = ["registry.test/kills/a:1", "registry.test/kills/b:1"];
        let archive = make(names.map(|name| large(name, 1 << 20)).into());
        let bytes = archive.to_bytes();
        for kill in 1..=KILLS {
            let mut child = node.begin_to_pipe(&["-"]);
            let part = &bytes[..bytes.len() * kill / KILLS];
            child.stdin.as_mut().unwrap().write_all(part).unwrap();
            child.kill().unwrap();
            child.wait().unwrap();
            assert!(target.leases().len() <= 1, "{form}: {:?}", target.leases());
        }
        node.pipe_in(&["-"], &bytes).exits(0);
        assert!(names.iter().all(|name| target.record(name).is_some()), "{form}");
        assert!(target.leases().is_empty(), "{form}");
        target.collect_garbage();
        assert!(target.ingests().is_empty(), "{form}");
        assert_eq!(target.digests(), needed_here(&archive.images), "{form}");
        target.assert_tidy();
    }
}

fn an_interrupted_import_ends_its_lease(target: &Target) {
    for (form, make) in forms() {
        for signal in [Signal::INT, Signal::TERM] {
            let target = target.elsewhere();
            let node = Node::on(&target);
            let name = "registry.test/interrupted:1";
            let bytes = make(vec![large(name, 2 << 20)]).to_bytes();
            let mut child = node.begin_to_pipe(&["-"]);
            send_a_part(&target, &mut child, &bytes);
            kill_process(Pid::from_child(&child), signal).unwrap();
            // The pipe stays open until the program has ended.
            let stdin = child.stdin.take();
            let answer: Answer = child.wait_with_output().unwrap().into();
            drop(stdin);
            assert!(
                answer.status.code() == Some(1) && answer.said().contains("interrupted"),
                "{form}: {answer:?}"
            );
            assert!(target.leases().is_empty(), "{form}");
            target.collect_garbage();
            assert!(target.digests().is_empty() && target.names().is_empty(), "{form}");
        }
    }
}

/// Each has a lease of its own. Otherwise the end of one would take the blobs of the other.
fn two_imports_at_a_time_do_not_disturb_each_other(target: &Target) {
    // A shell gives a pipe such a path for `<(...)`.
    for first_path in ["-", "/dev/stdin"] {
        let target = target.elsewhere();
        let node = Node::on(&target);
        let name = |n: usize| format!("registry.test/beside/{n}:1");
        let bytes = |n: usize| bundles::layout([large(&name(n), 2 << 20)]).build().to_bytes();
        let first = bytes(0);
        let mut waiting = node.begin_to_pipe(&[first_path]);
        send_a_part(&target, &mut waiting, &first);
        node.pipe_in(&["-"], &bytes(1)).exits(0);
        node.pipe_in(&["/dev/stdin"], &bytes(2)).exits(0);
        for (n, path) in [(3, "-"), (4, "/dev/stdin")] {
            let file = node.path("file.tar");
            fs::write(&file, bytes(n)).unwrap();
            let mut command = node.command(["import", path]);
            let answer: Answer = command.stdin(File::open(&file).unwrap()).output().unwrap().into();
            answer.exits(0);
        }
        assert_eq!(target.leases().len(), 1, "{first_path}");
        let rest = &first[first.len() / 2..];
        waiting.stdin.as_mut().unwrap().write_all(rest).unwrap();
        end(waiting).exits(0);
        assert!((0..5).all(|n| target.record(&name(n)).is_some()), "{first_path}");
        assert!(target.leases().is_empty(), "{first_path}");
    }
}

fn a_node_without_a_state_folder_keeps_one_lease_of_killed_imports(target: &Target) {
    let node = Node::on(target);
    fs::remove_dir(node.state()).unwrap();
    let bytes = bundles::layout([large("registry.test/stateless:1", 2 << 20)])
        .build()
        .to_bytes();
    for _ in 0..3 {
        let mut child = node.begin_to_pipe(&["-"]);
        send_a_part(target, &mut child, &bytes);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(target.leases().len(), 1);
    }
    node.pipe_in(&["-"], &bytes).exits(0);
    assert!(target.leases().is_empty());
}

fn an_interruption_ends_the_whole_command_also_after_the_pipe(target: &Target) {
    let other = |node: &Node| {
        let path = node.path("other.tar");
        bundles::layout([large("registry.test/other:1", 2 << 20)]).write_to(&path);
        text(&path)
    };
    let name = "registry.test/piped:1";
    let bytes = bundles::layout([large(name, 2 << 20)]).build().to_bytes();
    let interrupt = |child: Child, signal| -> Answer {
        kill_process(Pid::from_child(&child), signal).unwrap();
        let answer: Answer = child.wait_with_output().unwrap().into();
        let answer = answer.exits(1);
        assert!(answer.said().contains("interrupted"), "{answer:?}");
        answer
    };
    for signal in [Signal::INT, Signal::TERM] {
        // In the pipe: the file after it is not imported.
        let before = target.elsewhere();
        let node = Node::on(&before);
        let mut child = node.begin_to_pipe(&["-", &other(&node)]);
        send_a_part(&before, &mut child, &bytes);
        let stdin = child.stdin.take();
        let answer = interrupt(child, signal);
        drop(stdin);
        assert_eq!(
            answer.json()["bundles"].as_array().unwrap().len(),
            1,
            "{answer:?}"
        );
        assert!(before.names().is_empty());
        // In the file after the pipe.
        let after = target.elsewhere();
        let node = Node::on(&after);
        let mut child = node.begin_to_pipe(&["-", &other(&node)]);
        send_a_part(&after, &mut child, &bytes);
        let leases = after.leases();
        after.slow_commits(Duration::from_secs(2));
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(&bytes[bytes.len() / 2..]).unwrap();
        drop(stdin);
        wait_until("the import of the file", || !after.leases().is_subset(&leases));
        assert!(after.record(name).is_some());
        let answer = interrupt(child, signal);
        let bundles = answer.json()["bundles"].clone();
        assert_eq!(bundles[0]["outcome"], "imported", "{answer:?}");
        assert_eq!(bundles[1]["outcome"], "failed", "{answer:?}");
        assert!(after.record("registry.test/other:1").is_none());
        // The next import continues, as after Ctrl-C without a pipe.
        node.import([other(&node)]).exits(0);
    }
}

fn a_named_pipe_is_read_and_a_running_daemon_leaves_its_images_alone(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    let name = "registry.test/fifo:1";
    let fifo = node.path("images.fifo");
    run(Command::new("mkfifo").arg(&fifo));
    let bytes = documents_first(bundles::layout([image(name)]).build()).to_bytes();
    let mut command = node.command(["import", &text(&fifo)]);
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Opening waits for the reader.
    File::create(&fifo).unwrap().write_all(&bytes).unwrap();
    end(child).exits(0);
    assert_eq!(target.labels(name)[BY_HAND], "images.fifo");
    node.drop_marker(target, &daemon);
    assert_eq!(target.labels(name)[PINNED], "pinned");
    daemon.finish(target);
    node.airgapd(["release", "--all", "--yes"]);
}

/// `airgapd import - < bundle.tar` on the node itself.
fn a_file_behind_standard_input_is_as_good_as_a_file_with_a_name(target: &Target) {
    let node = Node::on(target);
    let name = "registry.test/redirected:1";
    let path = node.path("redirected.tar");
    bundles::docker([image(name)]).write_to(&path);
    let import = |file: File, arguments: &[&str]| -> Answer {
        let mut command = node.command([&["import", "-o", "json"], arguments].concat());
        command.stdin(file).output().unwrap().into()
    };
    import(File::open(&path).unwrap(), &["--spool", "0", "-"]).exits(0);
    assert_eq!(target.labels(name)[BY_HAND], "stdin");
    // The rest of a file is a stream.
    let mut behind = b"prologue".to_vec();
    File::open(&path).unwrap().read_to_end(&mut behind).unwrap();
    fs::write(node.path("behind"), &behind).unwrap();
    let mut file = File::open(node.path("behind")).unwrap();
    file.seek(SeekFrom::Start(8)).unwrap();
    import(file, &["-"]).exits(0);
    assert!(target.leases().is_empty());
}

fn a_dry_run_of_a_pipe_writes_nothing_and_needs_the_list_first(target: &Target) {
    let node = Node::on(target);
    let name = "registry.test/dry:1";
    let layout = || bundles::layout([image(name)]);
    let fake = target.as_fake().unwrap();
    fake.reset_log();
    let planned = node
        .pipe_in(&["--dry-run", "-"], &documents_first(layout().build()).to_bytes())
        .exits(0);
    assert!(planned.bundle()["blobs"]["sent"].as_u64().unwrap() > 0);
    let said = node
        .pipe_in(&["--dry-run", "-"], &layout().build().to_bytes())
        .exits(1)
        .said();
    assert!(said.contains("in this pipe it comes last"), "{said}");
    assert_eq!(fake.mutations(), []);
}

fn standard_input_is_read_once_and_has_no_checksum(target: &Target) {
    let node = Node::on(target);
    let said = node.pipe_in(&["-", "-"], b"").exits(2).said();
    assert!(said.contains("can be read once"), "{said}");
    node.configure_also("checksums: require");
    let bytes = bundles::layout([image("registry.test/sum:1")]).build().to_bytes();
    let said = node.pipe_in(&["-"], &bytes).exits(1).said();
    assert!(said.contains("a pipe has no checksum"), "{said}");
    assert!(target.names().is_empty());
}

/// The list of images comes last, so nothing may reach containerd before it is there.
fn a_list_of_trusted_digests_is_asked_before_the_first_byte_is_sent(target: &Target) {
    let node = Node::on(target);
    let list = node.path("trusted.d");
    fs::create_dir(&list).unwrap();
    node.configure_also(&format!("trustedDigests: {}", text(&list)));
    let fake = target.as_fake().unwrap();
    for (form, make) in forms() {
        let name = format!("registry.test/trusted/{}:1", form.replace(' ', "-"));
        let archive = make(vec![large(&name, 1 << 20)]);
        let bytes = archive.to_bytes();
        fake.reset_log();
        node.pipe_in(&["-"], &bytes).exits(1);
        assert_eq!(fake.mutations(), [], "{form}");
        let digest = digest_of(&archive.bytes_of("index.json"));
        fs::write(list.join("digests.txt"), format!("{digest}\n")).unwrap();
        node.pipe_in(&["-"], &bytes).exits(0);
        assert!(target.record(&name).is_some(), "{form}");
    }
    assert_eq!(fs::read_dir(node.state()).unwrap().count(), 0);
}

on_each_containerd!(
    a_pipe_leaves_what_the_file_leaves,
    a_stream_that_is_cut_off_brings_nothing_and_its_lease_ends,
    a_damaged_layer_fails_its_image_alone,
    an_import_that_is_killed_leaves_one_lease_and_the_next_one_ends_it,
    imports_that_are_killed_at_many_instants_lose_nothing,
    an_interrupted_import_ends_its_lease,
);
on_the_fake!(
    the_old_form_of_docker_goes_through_a_file_without_a_name_within_a_limit,
    a_layer_that_never_comes_fails_its_image_alone,
    a_lease_that_is_deleted_is_the_reason_and_the_bundle_is_not_to_blame,
    a_blob_that_containerd_refused_has_the_reason_of_containerd,
    a_containerd_that_goes_away_stops_the_import_and_its_lease_is_named,
    a_node_without_a_state_folder_keeps_one_lease_of_killed_imports,
    an_interruption_ends_the_whole_command_also_after_the_pipe,
    two_imports_at_a_time_do_not_disturb_each_other,
    a_named_pipe_is_read_and_a_running_daemon_leaves_its_images_alone,
    a_file_behind_standard_input_is_as_good_as_a_file_with_a_name,
    a_dry_run_of_a_pipe_writes_nothing_and_needs_the_list_first,
    standard_input_is_read_once_and_has_no_checksum,
    a_list_of_trusted_digests_is_asked_before_the_first_byte_is_sent,
);
