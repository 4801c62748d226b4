//! What comes to the daemon by other doors than its bundles: signals, its own output, folders and disks that refuse, and
//! other daemons.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use bundle::Compression;
use bundle::fixtures::{Archive, EntryKind, Image, Layout, Manifest};
use fake_containerd::Fault;
use lab::{Generation, Options};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::support::bundles::{self, image, text};
use crate::support::node::{Daemon, peak_memory};
use crate::support::target::PINNED;
use crate::support::{Node, Own, Target, on_its_own_containerd, on_the_fake, unique, wait_for};

const A: &str = "registry.test/a:1";
const B: &str = "registry.test/b:1";

fn is_pinned(target: &Target, name: &str) -> bool {
    let record = target.record(name);
    record.is_some_and(|record| record.labels.contains_key(PINNED))
}

fn signal(daemon: &Daemon, signal: Signal) {
    let pid = i32::try_from(daemon.pid()).ok().and_then(Pid::from_raw);
    kill_process(pid.expect("it runs"), signal).expect("it runs");
}

/// Holds up imports until the faults are cleared.
fn slow_commits(target: &Target) {
    let fake = target.as_fake().expect("it is the stand-in");
    fake.inject(Fault::SlowCommit {
        by: Duration::from_secs(5),
    });
}

fn a_storm_of_signals_in_mid_import_is_survived_and_hardly_told_of(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    slow_commits(target);
    bundles::write(&node.images().join("a.tar"), [image(A)]);
    daemon.wait_until("something is held", || !target.leases().is_empty());
    for _ in 0..1000 {
        signal(&daemon, Signal::HUP);
        signal(&daemon, Signal::PIPE);
    }
    daemon.wait_for_log("the configuration was read again");
    target.as_fake().expect("it is the stand-in").clear_faults();
    daemon.wait_until("the image", || target.record(A).is_some());
    daemon.wait_until("its lease is given back", || target.leases().is_empty());
    assert!(daemon.log().lines().count() < 100, "{}", daemon.log());

    // Reloads that come with a stop neither undo nor hold it up.
    let mut daemon = daemon;
    for wanted in [Signal::HUP, Signal::TERM, Signal::HUP, Signal::INT] {
        signal(&daemon, wanted);
    }
    assert!(daemon.wait().success(), "{}", daemon.log());
    node.start().finish(target);
}

/// A full disk below the log, a reader that has gone, descriptors that were closed by whoever started it.
fn whatever_becomes_of_its_output_the_daemon_imports_and_answers(target: &Target) {
    for (number, outputs) in ["2>/dev/full", "2>&-", "0<&- 1>&- 2>&-", "2>&1 | head -c 1"]
        .iter()
        .enumerate()
    {
        let node = Node::on(target);
        let name = format!("registry.test/output{number}:1");
        bundles::write(&node.images().join("a.tar"), [image(&name)]);
        let program = node.command(["run"]);
        let mut command = Command::new("sh");
        // The shell waits for all of a pipe, and its own end tells nothing.
        command.args(["-c", &format!("\"$@\" {outputs}")]).arg("sh");
        command.arg(program.get_program()).args(program.get_args());
        for (name, _) in program.get_envs() {
            command.env_remove(name);
        }
        let daemon = Daemon::start(command, &node.path("notify.sock"));
        daemon.wait_until_ready();
        daemon.wait_until("the image", || target.record(&name).is_some());
        let status = node.airgapd(["status", "-o", "json"]).json();
        let pid = status["daemon"]["pid"].as_i64().expect("it answers");
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        kill_process(pid.expect("it runs"), Signal::TERM).expect("it runs");
        let mut daemon = daemon;
        daemon.wait();
        daemon.wait_until("its lease is given back", || target.leases().is_empty());
    }
}

/// Without a place for the control socket nobody can ask, and everything else works.
fn a_runtime_folder_that_cannot_be_had_is_told_of_and_nothing_else_lacks(target: &Target) {
    for number in 0..2 {
        let node = Node::on(target);
        let name = format!("registry.test/runtime{number}:1");
        let folder = node.path("run");
        let mount = match number {
            // A file where the folder should be.
            0 => {
                fs::write(&folder, "").expect("a file");
                None
            }
            _ => {
                fs::create_dir(&folder).expect("a folder");
                Some(Mount::read_only(&folder))
            }
        };
        bundles::write(&node.images().join("a.tar"), [image(&name)]);
        let daemon = node.start();
        daemon.wait_until("the image", || target.record(&name).is_some());
        assert_eq!(daemon.count("no control socket in"), 1, "{}", daemon.log());
        let answer = node.airgapd(["wait", "--timeout", "1s"]);
        assert!(!answer.status.success(), "{answer:?}");
        assert!(answer.stderr.contains("airgapd.service"), "{answer:?}");
        let log = daemon.finish(target);
        assert!(log.lines().count() < 20, "{log}");
        drop(mount);
    }
}

fn bundles_on_a_read_only_disk_are_imported_and_let_go(target: &Target) {
    let node = Node::on(target);
    bundles::write(&node.images().join("a.tar"), [image(A)]);
    let elsewhere = node.path("elsewhere");
    bundles::write(&node.path("a-layout.tar"), [image(B)]);
    fs::rename(node.images(), &elsewhere).expect("it is one file system");
    fs::create_dir(node.images()).expect("a folder");
    let mount = Mount::bind_read_only(&elsewhere, &node.images());
    let daemon = node.start();
    daemon.wait_until("the image", || target.record(A).is_some());
    // It comes on the other side of the mount, as a new squashfs would.
    fs::copy(node.path("a-layout.tar"), elsewhere.join("b.tar")).expect("it can be copied");
    daemon.wait_until("the other image", || target.record(B).is_some());
    let log = daemon.finish(target);
    assert!(!log.contains("ERROR"), "{log}");
    drop(mount);
}

/// A mount, which is taken away at the end.
struct Mount(PathBuf);

impl Mount {
    fn new(folder: &Path, arguments: &[&str]) -> Mount {
        let mut mount = Command::new("mount");
        let mount = mount.args(arguments).arg(folder);
        assert!(mount.status().expect("mount runs").success(), "{mount:?}");
        Mount(folder.to_owned())
    }

    fn read_only(folder: &Path) -> Mount {
        Mount::new(folder, &["-t", "tmpfs", "-o", "ro,size=64k", "tmpfs"])
    }

    fn bind_read_only(from: &Path, folder: &Path) -> Mount {
        let mount = Mount::new(folder, &["--bind", &text(from)]);
        // This makes no second mount to be taken away.
        std::mem::forget(Mount::new(folder, &["-o", "remount,bind,ro"]));
        mount
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// Two daemons on one folder and one namespace are a mistake. They share the leases of their bundles, each may take what
/// the other holds, and both end with everything in place.
fn two_daemons_with_states_of_their_own_end_with_everything_in_place(target: &Target) {
    let (first, second) = (Node::on(target), Node::on(target));
    second.configure(
        &fs::read_to_string(second.path("config.yaml"))
            .expect("there is a configuration")
            .replace(&text(&second.images()), &text(&first.images())),
    );
    let daemons = [first.start(), second.start()];
    let names: Vec<_> = (0..6)
        .map(|number| format!("registry.test/two{number}:1"))
        .collect();
    for (number, name) in names.iter().enumerate() {
        bundles::write(&first.images().join(format!("{number}.tar")), [image(name)]);
    }
    for node in [&first, &second] {
        let answer = node.airgapd(["wait", "--timeout", "25s"]).exits(0);
        assert!(answer.stdout.starts_with("6 bundles in place"), "{answer:?}");
    }
    for name in &names {
        assert!(is_pinned(target, name), "{name}");
    }
    // A bundle that leaves is let go by both, and nothing comes back.
    fs::remove_file(first.images().join("0.tar")).expect("it is there");
    wait_for(Duration::from_secs(30), "the pin goes", || {
        !is_pinned(target, &names[0])
    });
    let [one, other] = daemons;
    one.finish(target);
    other.finish(target);
    assert!(!is_pinned(target, &names[0]));
    assert!(is_pinned(target, &names[1]));
}

/// As a cloned machine has it, or one that was restored from a backup: the state tells of images that are not there.
fn a_daemon_with_the_state_of_another_brings_its_own_containerd_up_to_it(target: &Target) {
    let first = Node::on(target);
    let elsewhere = target.elsewhere();
    let second = Node::on(&elsewhere);
    bundles::write(&first.images().join("a.tar"), [image(A)]);
    let daemon = first.start();
    daemon.wait_until("the image", || target.record(A).is_some());
    daemon.wait_until("it is written down", || first.ledger().exists());
    fs::copy(first.images().join("a.tar"), second.images().join("a.tar")).expect("it can be copied");
    daemon.wait_until("its lease is given back", || target.leases().is_empty());
    fs::copy(first.ledger(), second.ledger()).expect("it can be copied");
    let copy = second.start();
    copy.wait_until("the image", || elsewhere.record(A).is_some());
    fs::remove_file(second.images().join("a.tar")).expect("it is there");
    copy.wait_until("its pin goes", || !is_pinned(&elsewhere, A));
    assert!(is_pinned(target, A), "the other namespace is another daemon's");
    copy.finish(&elsewhere);
    daemon.finish(target);
}

/// What is done to a file in mid import says nothing of what comes of it.
fn a_bundle_that_is_harmed_in_mid_import_is_imported_when_it_is_right_again(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    let plain = bundles::layout([image("registry.test/plain:1")]).build();
    let packed = bundles::layout([image("registry.test/packed:1")]).build();
    let folder = bundles::layout([image("registry.test/folder:1")]).build();
    let blob = folder.name_of(&folder.images[0].manifests[0].layers[0]);
    slow_commits(target);
    let make = |name: &str| {
        let path = node.images().join(name);
        match name {
            "plain.tar" => plain.write_to(&path),
            "packed.tar.gz" => {
                fs::write(&path, packed.to_compressed(Compression::Gzip)).expect("it can be written");
            }
            _ => folder.extract_to(&path),
        }
    };
    for (name, file) in [
        ("plain.tar", "plain.tar".to_owned()),
        ("packed.tar.gz", "packed.tar.gz".to_owned()),
        ("folder", format!("folder/{blob}")),
    ] {
        for harm in [cut, overwrite, extend] {
            let said = daemon.log().len();
            make(name);
            daemon.wait_until("the import runs", || {
                let log = daemon.log();
                let mut new = log[said..].lines();
                new.any(|line| line.contains("importing") && line.contains(name))
            });
            harm(&node.images().join(&file));
            make(name);
        }
    }
    target.as_fake().expect("it is the stand-in").clear_faults();
    for name in ["plain", "packed", "folder"] {
        let name = format!("registry.test/{name}:1");
        daemon.wait_until(&name, || is_pinned(target, &name));
    }
    daemon.finish(target);
}

fn cut(path: &Path) {
    let file = File::options().write(true).open(path).expect("it is there");
    file.set_len(file.metadata().expect("it is there").len() / 2)
        .expect("it can be cut");
}

fn overwrite(path: &Path) {
    let file = File::options().write(true).open(path).expect("it is there");
    let size = file.metadata().expect("it is there").len();
    let zeros = vec![0; usize::try_from(size).expect("it is small")];
    file.write_all_at(&zeros, 0).expect("it can be written");
}

fn extend(path: &Path) {
    let file = File::options().write(true).open(path).expect("it is there");
    let size = file.metadata().expect("it is there").len();
    file.write_all_at(b"more", size).expect("it can be written");
}

/// A folder into which somebody unpacked something else.
fn twenty_thousand_junk_files_cost_little_and_hide_no_bundle(target: &Target) {
    const FILES: usize = 20_000;
    let node = Node::on(target);
    for number in 0..FILES {
        let (name, content) = match number % 4 {
            0 => (format!("{number}.md"), "# text\n"),
            1 => (format!("{number}.json"), "{}\n"),
            2 => (format!(".{number}"), ""),
            _ => (format!("{number}"), ""),
        };
        fs::write(node.images().join(name), content).expect("a file");
    }
    bundles::write(&node.images().join("zzz.tar"), [image(A)]);
    let started = Instant::now();
    let daemon = node.start();
    daemon.wait_until("the image", || target.record(A).is_some());
    let took = started.elapsed();
    assert!(took < Duration::from_secs(15), "{took:?}");
    let answer = node.airgapd(["wait", "--timeout", "20s"]).exits(0);
    assert!(
        answer
            .stdout
            .starts_with("1 bundle in place, 20000 files ignored"),
        "{answer:?}"
    );
    let status = node.airgapd(["status", "-o", "json"]).json();
    assert_eq!(
        status["ignored"].as_array().map(Vec::len),
        Some(FILES),
        "all of them by name"
    );
    let shown = node.airgapd(["status"]).stdout;
    assert!(shown.contains("ignored: 20000 files"), "{shown:.2000}");
    assert!(
        daemon.log().lines().count() < 120,
        "{} lines",
        daemon.log().lines().count()
    );
    // More events at once than the kernel's queue holds.
    for number in 0..FILES {
        fs::remove_file(node.images().join(match number % 4 {
            0 => format!("{number}.md"),
            1 => format!("{number}.json"),
            2 => format!(".{number}"),
            _ => format!("{number}"),
        }))
        .expect("it is there");
    }
    bundles::write(&node.images().join("b.tar"), [image(B)]);
    daemon.wait_until("the other image", || target.record(B).is_some());
    let peak = peak_memory(daemon.pid()).expect("it runs");
    assert!(peak < 64 << 20, "{peak} bytes");
    daemon.finish(target);
}

/// Ends a line, turns the direction of writing, drives a terminal as C0 and as C1, and cannot be seen.
const LIE: &str = "x\nFORGED \u{202e}\u{200e}\u{2028}\u{feff}\u{9b}31m\u{1b}[2J\r\t\u{7}";

/// Bundles that lie in every place where a bundle may say something.
fn bundles_that_lie(folder: &Path) -> Vec<PathBuf> {
    let of = |image: Image| bundles::layout([image]).build();
    let manifest = || Manifest::new(bundles::native()).layer(unique());
    let platform = json!({
        "os": format!("linux{LIE}"), "architecture": LIE, "variant": LIE, "os.version": LIE, "os.features": [LIE],
    });
    let mut entries = of(image(A));
    entries.add(LIE, LIE.to_owned());
    entries.push(&format!("{LIE}-link"), EntryKind::Symlink(LIE.to_owned()));
    let mut layout = of(image(A));
    layout.set("oci-layout", json!({"imageLayoutVersion": LIE}).to_string());
    let mut index = of(image(A));
    index.set(
        "index.json",
        json!({"manifests": [{"mediaType": LIE, "digest": LIE, "size": LIE, LIE: LIE}]}).to_string(),
    );
    let mut docker = bundles::docker([image(A)]).build();
    docker.set(
        "manifest.json",
        json!([{"Config": LIE, "RepoTags": [LIE, format!("a{LIE}:1")], "Layers": [LIE]}]).to_string(),
    );
    let mut nested = of(image(A));
    nested.prefix(&format!("{LIE}/"));
    let artifact = || manifest().config_media_type(&format!("application/{LIE}"));
    let archives = [
        of(image(&format!("registry.test/a{LIE}:1"))),
        of(image(A).ref_name(LIE).annotation(LIE, LIE)),
        Layout::hybrid().image(image(A).repo_tag(LIE)).build(),
        of(Image::new(A).manifest(artifact())),
        of(Image::new(A).manifest(artifact()).manifest(manifest())),
        of(Image::new(A)
            .manifest(manifest().descriptor_member("platform", platform.clone()))
            .in_an_index()),
        of(Image::new(A).manifest(
            manifest()
                .config("os", json!(LIE))
                .config("os.features", json!([LIE])),
        )),
        of(Image::new(A).manifest(
            manifest()
                .member("mediaType", json!(LIE))
                .member("artifactType", json!(LIE)),
        )),
        of(image(A).descriptor_member("mediaType", json!(LIE))),
        entries,
        layout,
        index,
        docker,
        nested,
    ];
    let write = |(number, archive): (usize, &Archive)| {
        let mut name = format!("{number}{LIE}").into_bytes();
        name.extend_from_slice(b"\xff.tar");
        let path = folder.join(OsStr::from_bytes(&name));
        archive.write_to(&path);
        path
    };
    archives.iter().enumerate().map(write).collect()
}

#[track_caller]
fn is_fit_to_print(output: &Output) {
    for said in [&output.stdout, &output.stderr] {
        let said = std::str::from_utf8(said).expect("the program prints text");
        let is_shown = |c: char| c == '\n' || basics::is_visible(c);
        assert!(said.chars().all(is_shown), "{said:?}");
        assert!(!said.lines().any(|line| line.starts_with("FORGED")), "{said:?}");
    }
}

/// What a bundle, the name of a file or an argument says is escaped, whichever command says it.
fn no_command_prints_raw_what_others_say(target: &Target) {
    let node = Node::on(target);
    let files = bundles_that_lie(&node.images());
    let list = node.path("list.txt");
    fs::write(&list, format!("registry.test/{LIE}\n")).expect("a file");
    let manifests = node.path("pod.yaml");
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": LIE},
        "spec": {"containers": [{"name": LIE, "image": LIE}]}});
    fs::write(&manifests, pod.to_string()).expect("a file");
    let (list, manifests, made) = (list.as_os_str(), manifests.as_os_str(), node.path("made.tar"));
    let missing = OsStr::from_bytes(b"/no\xff\n\xe2\x80\xaesuch\xc2\x9b.tar");
    let word = OsStr::new;
    let run = |arguments: &[&OsStr]| {
        let answer = node.command(arguments).stdin(Stdio::null()).output();
        is_fit_to_print(&answer.expect("the program runs"));
    };
    for form in ["text", "json"].map(|form| [word("-o"), word(form)]) {
        for file in files.iter().map(|file| file.as_os_str()).chain([missing]) {
            for command in [
                &["inspect"][..],
                &["import", "--dry-run"],
                &["import"],
                &["wait", "--bundle"],
            ] {
                let words: Vec<_> = command.iter().map(|text| word(text)).collect();
                run(&[&words[..], &[file], &form].concat());
            }
            run(&[
                &[word("bundle"), word("diff"), file, files[0].as_os_str()],
                &form[..],
            ]
            .concat());
            run(&[word("bundle"), word("merge"), file, word("-o"), made.as_os_str()]);
            run(&[&[word("verify"), word("--bundle"), file], &form[..]].concat());
        }
        for (flag, file) in [("--images", list), ("--manifests", manifests)] {
            run(&[&[word("verify"), word(flag), file], &form[..]].concat());
            run(&[&[word("list-images"), word(flag), file], &form[..]].concat());
        }
        for command in ["verify", "doctor", "status", "nonsense\n\u{202e}"] {
            run(&[&[word(command)], &form[..]].concat());
        }
        for arguments in [
            ["release", "--image"],
            ["release", "--bundle"],
            ["inspect", "--platform"],
        ] {
            run(&[&arguments.map(word)[..], &[word(LIE)], &form[..]].concat());
        }
        run(&[&[word("list-images"), missing], &form[..]].concat());
    }
    let daemon = node.start();
    daemon.wait_until("each file is told of", || {
        let status = node.airgapd(["status", "-o", "json"]).json();
        let bundles = status["bundles"].as_array().map_or(0, Vec::len);
        bundles == files.len() && !status.to_string().contains("settling")
    });
    for command in ["status", "doctor", "verify"] {
        run(&[word(command)]);
    }
    let (_, metrics) = node.ask("/metrics", &[]);
    let log = daemon.stop();
    for said in [metrics, log] {
        let is_shown = |c: char| c == '\n' || basics::is_visible(c);
        assert!(said.chars().all(is_shown), "{said:?}");
        assert!(!said.lines().any(|line| line.starts_with("FORGED")), "{said}");
    }
}

on_the_fake! {
    no_command_prints_raw_what_others_say,
    a_storm_of_signals_in_mid_import_is_survived_and_hardly_told_of,
    whatever_becomes_of_its_output_the_daemon_imports_and_answers,
    a_runtime_folder_that_cannot_be_had_is_told_of_and_nothing_else_lacks,
    bundles_on_a_read_only_disk_are_imported_and_let_go,
    two_daemons_with_states_of_their_own_end_with_everything_in_place,
    a_daemon_with_the_state_of_another_brings_its_own_containerd_up_to_it,
    a_bundle_that_is_harmed_in_mid_import_is_imported_when_it_is_right_again,
    twenty_thousand_junk_files_cost_little_and_hide_no_bundle,
}

/// A containerd on a disk of its own.
fn on_a_disk() -> Options {
    Options {
        disk: Some(160 << 20),
        ..Options::default()
    }
}

/// As the kernel leaves a disk that fails: everything can be read and nothing written, until the machine is seen to.
fn while_containerds_disk_is_read_only_nothing_is_lost_and_then_it_goes_on(own: &mut Own) {
    let node = Node::on(&own.target);
    bundles::write(&node.images().join("a.tar"), [image(A)]);
    let daemon = node.start();
    daemon.wait_until("the image", || own.target.record(A).is_some());
    let root = own.containerd.root();
    if !is_ext4(&root) {
        // Without loop devices it is in memory, and such a disk does not fail.
        daemon.finish(&own.target);
        return;
    }
    std::mem::forget(Mount::new(&root, &["-o", "remount,abort"]));
    bundles::write(&node.images().join("b.tar"), [image(B)]);
    daemon.wait_until("it is told", || {
        let log = daemon.log().to_lowercase();
        log.lines()
            .any(|line| line.contains("b.tar") && line.contains("read-only file system"))
    });
    assert!(own.target.record(B).is_none());
    assert!(is_pinned(&own.target, A), "what is there can be read");
    own.containerd.stop().expect("it can be stopped");
    drop(Mount(root.clone()));
    let disk = text(&root.with_file_name("disk.img"));
    std::mem::forget(Mount::new(&root, &["-o", "loop", &disk]));
    own.containerd.restart().expect("it can be started");
    daemon.wait_until("the other image", || is_pinned(&own.target, B));
    assert!(is_pinned(&own.target, A));
    daemon.finish(&own.target);
}

fn is_ext4(folder: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/mounts").expect("Linux has it");
    mounts.contains(&format!(" {} ext4 ", text(folder)))
}

/// Files of a disk are counted, too: it may be full of small ones.
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
    bundles::write(&node.images().join("a.tar"), [image(A)]);
    daemon.wait_for_log("files");
    assert!(target.record(A).is_none());
    fs::remove_dir_all(&folder).expect("it is ours");
    daemon.wait_until("the image", || is_pinned(target, A));
    daemon.finish(target);
}

/// containerd never syncs the file that it keeps its identity in, and a power cut may leave it empty. 1.7 and later make a
/// new one.
fn a_containerd_that_has_lost_its_identity_is_worked_with(own: &mut Own) {
    let node = Node::on(&own.target);
    bundles::write(&node.images().join("a.tar"), [image(A)]);
    let daemon = node.start();
    daemon.wait_until("the image", || own.target.record(A).is_some());
    own.containerd.stop().expect("it can be stopped");
    let root = fs::read_dir(own.containerd.root()).expect("a folder");
    let files = root.map(|entry| entry.expect("an entry").path().join("uuid"));
    let files: Vec<_> = files.filter(|file| file.exists()).collect();
    assert!(!files.is_empty());
    files
        .iter()
        .for_each(|file| drop(File::create(file).expect("it is there")));
    own.containerd.restart().expect("it can be started");
    bundles::write(&node.images().join("b.tar"), [image(B)]);
    daemon.wait_until("the other image", || is_pinned(&own.target, B));
    if own.containerd.generation() == Generation::V1_6 {
        assert!(daemon.count("remove the file `uuid`") > 0, "{}", daemon.log());
    }
    daemon.finish(&own.target);
}

on_its_own_containerd! {
    on_a_disk;
    a_containerd_that_has_lost_its_identity_is_worked_with,
    while_containerds_disk_is_read_only_nothing_is_lost_and_then_it_goes_on,
    a_disk_without_room_for_another_file_is_a_full_disk,
}
