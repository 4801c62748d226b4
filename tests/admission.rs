//! Admission by real programs, before a rule is set, and while a program writes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bundle::fixtures::{Archive, Layout};
use memmap2::MmapMut;
use serde_json::{Value, json};

use crate::signatures::{Guarded, put, signature, sum, with};
use crate::support::bundles::{self, image, marker, text};
use crate::support::mount::Mount;
use crate::support::tools::{cosign, tool};
use crate::support::{Node, Target, on_the_fake};

/// The commands that docs/admission.md has for a program.
fn documented(program: &str) -> Vec<String> {
    let page = fs::read_to_string(lab::workspace().join("docs/admission.md")).unwrap();
    let commands = page
        .lines()
        .filter(|line| line.split_whitespace().next() == Some(program));
    let commands: Vec<_> = commands.map(str::to_owned).collect();
    assert!(!commands.is_empty(), "{program}");
    commands
}

/// Runs a command line in a folder, with a program of this path under its usual name.
fn run(folder: &Path, name: &str, program: &Path, line: &str) {
    let shell = format!("{name}() {{ \"$PROGRAM\" \"$@\"; }}; {line}");
    let output = Command::new("sh")
        .args(["-ec", &shell])
        .current_dir(folder)
        .env("PROGRAM", program)
        .env("HOME", folder)
        .env("COSIGN_PASSWORD", "")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{line}: {output:?}");
}

/// A folder with the bundle `shop.tar` and its list, as the documents name them.
fn shop(guarded: &Guarded, folder: &str) -> (PathBuf, String) {
    let folder = guarded.node.path(folder);
    fs::create_dir(&folder).unwrap();
    let (file, name) = marker(folder.join("shop.tar"));
    put(&file, ".digest", guarded.list(&file));
    (file, name)
}

/// Copies a bundle with its list and signature into the images folder. The bundle comes last.
fn place(guarded: &Guarded, file: &Path, name: &str, ending: &str) {
    let placed = guarded.node.images().join(name);
    for ending in [".digest", &format!(".digest{ending}"), ""] {
        fs::copy(with(file, ending), with(&placed, ending)).unwrap();
    }
}

/// The signature of the documents' command admits the bundle, for the command and for the daemon.
/// Another list under the signature does not.
fn is_accepted(target: &Target, guarded: &Guarded, (file, name): &(PathBuf, String), ending: &str) {
    let node = &guarded.node;
    let daemon = node.start();
    place(guarded, file, &format!("shop{ending}.tar"), ending);
    daemon.wait_until("the signed image", || target.record(name).is_some());
    let signer = &target.labels(name)["io.airgapd.signer"];
    assert!(signer.starts_with("release ("), "{ending}: {signer}");
    daemon.finish(target);
    node.import([file]).exits(0);
    let list = fs::read_to_string(with(file, ".digest")).unwrap();
    put(file, ".digest", list.clone() + "# one more line\n");
    let error = node.import([file]).exits(5).bundle()["error"].to_string();
    assert!(error.contains("shop.tar.digest"), "{ending}: {error}");
    put(file, ".digest", list);
}

/// cosign 2 and 3, by the commands of docs/admission.md, without a network.
fn keys_and_signatures_of_cosign_admit_a_bundle(target: &Target) {
    let guarded = Guarded::on(target, "require");
    for suite in lab::parts::COSIGN_SUITES {
        let Some(program) = cosign(suite) else { return };
        let shop = shop(&guarded, suite);
        let folder = shop.0.parent().unwrap();
        run(folder, "cosign", &program, "cosign generate-key-pair");
        fs::copy(folder.join("cosign.pub"), guarded.keys().join("release.pub")).unwrap();
        let of_version = match suite {
            "trixie" => "cosign 2",
            _ => "cosign 3",
        };
        let commands = documented("cosign").into_iter();
        let commands: Vec<_> = commands.filter(|line| line.contains(of_version)).collect();
        assert!(!commands.is_empty(), "{of_version}");
        for command in commands {
            let ending = match command.contains(".sigstore.json") {
                true => ".sigstore.json",
                false => ".sig",
            };
            run(folder, "cosign", &program, &command);
            is_accepted(target, &guarded, &shop, ending);
            fs::remove_file(with(&shop.0, &format!(".digest{ending}"))).unwrap();
        }
    }
}

/// minisign signs a list, by the command of docs/admission.md.
fn keys_and_signatures_of_minisign_admit_a_bundle(target: &Target) {
    let Some(program) = tool("minisign") else { return };
    let guarded = Guarded::on(target, "require");
    let shop = shop(&guarded, "minisign");
    let folder = shop.0.parent().unwrap();
    run(
        folder,
        "minisign",
        &program,
        "minisign -G -W -p release.pub -s release.key",
    );
    fs::copy(folder.join("release.pub"), guarded.keys().join("release.pub")).unwrap();
    for command in documented("minisign") {
        run(folder, "minisign", &program, &command);
        is_accepted(target, &guarded, &shop, ".minisig");
    }
}

/// A list in the folder of trusted digests, and its signature, are copied like any other file.
fn a_trusted_list_that_is_still_written_is_waited_for(target: &Target) {
    let guarded = Guarded::on(target, "require");
    let node = &guarded.node;
    let trusted = guarded.keys().with_file_name("trusted");
    fs::create_dir(&trusted).unwrap();
    node.configure_also(&format!("trustedDigests: {}", trusted.display()));
    for (at, ending) in [".digest", ".digest.sig"].into_iter().enumerate() {
        let (file, name) = marker(node.path(&format!("late-{at}.tar")));
        let list = trusted.join(format!("release-{at}"));
        guarded.sign(&file, &list, 1);
        let writer = File::options().append(true).open(with(&list, ending)).unwrap();
        let error = node.import([&file]).exits(1).bundle()["error"].to_string();
        let reason = format!("one of its proofs is being written: release-{at}{ending}");
        assert!(error.contains(&reason), "{error}");
        let daemon = node.start();
        node.drop_in(&file);
        daemon.wait_until("the daemon has the file", || {
            let status = node.airgapd(["status", "-o", "json"]).stdout;
            status.contains(&format!("late-{at}.tar"))
        });
        assert!(target.record(&name).is_none());
        drop(writer);
        daemon.wait_until("the image", || target.record(&name).is_some());
        assert_eq!(daemon.count("trusted digests"), 0, "{}", daemon.log());
        daemon.finish(target);
    }
}

/// A ledger of a version that knows no signatures has a fingerprint of its rules. With `signatures:
/// off` the daemon has the same, so an upgrade reads no bundle again.
fn keys_are_no_rule_while_signatures_are_off(target: &Target) {
    let node = Node::on(target);
    let config = fs::read_to_string(node.path("config.yaml")).unwrap();
    let selection = |more: &str| {
        node.configure(&format!("{config}{more}\n"));
        let daemon = node.start();
        node.drop_marker(target, &daemon);
        daemon.finish(target);
        let state: Value = serde_json::from_slice(&fs::read(node.ledger()).unwrap()).unwrap();
        state["context"]["selection"].as_str().unwrap().to_owned()
    };
    let unsigned = selection("");
    for more in ["signatures: off", "signatures: off\ntrustedKeys: /etc/other"] {
        assert_eq!(selection(more), unsigned, "{more}");
    }
    let rule = "signatures: if-present\ntrustedKeys: ";
    let signed = selection(&format!("{rule}/etc/other"));
    assert_ne!(signed, unsigned);
    assert_ne!(selection(&format!("{rule}/etc/another")), signed);
}

/// The daemon reads the files of an OS image again at its start, since they may be others.
/// Those that it imported before the rule stay in place.
fn bundles_of_an_os_image_from_before_the_rule_stay_in_place(target: &Target) {
    let guarded = Guarded::on(target, "off");
    let node = &guarded.node;
    let (os, content) = (node.path("os"), node.path("content"));
    fs::create_dir(&os).unwrap();
    fs::create_dir(&content).unwrap();
    let (file, name) = marker(content.join("old.tar"));
    let mount = Mount::bind_read_only(&content, &os);
    let config = fs::read_to_string(node.path("config.yaml")).unwrap();
    let kept = config.lines().filter(|line| !line.starts_with("imagesDir"));
    let kept = kept.collect::<Vec<_>>().join("\n");
    let folders = format!("imagesDirs: [{}, {}]", node.images().display(), os.display());
    node.configure(&format!("{kept}\n{folders}\n"));
    let daemon = node.start();
    daemon.wait_until("the image", || target.record(&name).is_some());
    node.airgapd(["wait"]).exits(0);
    daemon.finish(target);

    let metadata = fs::metadata(&file).unwrap();
    let (changed, written) = (metadata.ctime_nsec(), metadata.mtime_nsec());
    assert_eq!(changed, written, "the file has no time of change of its own");
    let config = fs::read_to_string(node.path("config.yaml")).unwrap();
    node.configure(&config.replace("signatures: off", "signatures: require"));
    for (at, start) in ["the same file", "another file"].into_iter().enumerate() {
        if at == 1 {
            // A new OS image has the same bundle in a new file.
            let same = content.join("copy");
            fs::copy(&file, &same).unwrap();
            fs::rename(same, &file).unwrap();
        }
        target.remove_record(&name);
        let daemon = node.start();
        daemon.wait_until("the image is restored", || target.record(&name).is_some());
        let later = format!("later-{at}.tar");
        let (later, later_name) = marker(node.path(&later));
        guarded.sign(&later, &node.images().join(later.file_name().unwrap()), 1);
        node.drop_in(&later);
        daemon.wait_until("a later bundle", || target.record(&later_name).is_some());
        assert_eq!(
            daemon.count("there is no signature"),
            0,
            "{start}: {}",
            daemon.log()
        );
        daemon.finish(target);
    }
    // Other content in the place of the file needs a signature.
    let (other, other_name) = marker(content.join("copy"));
    fs::rename(other, &file).unwrap();
    let daemon = node.start();
    daemon.wait_for_line("old.tar", "there is no signature for it");
    assert!(target.record(&other_name).is_none() && target.is_pinned(&name));
    daemon.finish(target);
    drop(mount);
}

/// The daemon judges a receipt by the evidence of its bundle, and so does the check.
fn a_check_tells_the_fate_of_receipts(target: &Target) {
    let guarded = Guarded::on(target, "if-present");
    let node = &guarded.node;
    guarded.trust("release", 1, "registry.test/*");
    let (signed, _) = marker(node.path("signed.tar"));
    guarded.sign(&signed, &signed, 1);
    let (unsigned, name) = marker(node.path("unsigned.tar"));
    for file in [&signed, &unsigned] {
        node.import(["--keep", &text(file)]).exits(0);
    }
    let fates = || {
        let answer = node.airgapd(["config", "--check", "--signatures", "require", "-o", "json"]);
        let document = answer.json();
        let bundles = document["bundles"].as_array().expect("a list").iter();
        let fate = |bundle: &serde_json::Value| {
            let path = bundle["path"].as_str().unwrap();
            let of = path.rsplit('-').next().unwrap().to_owned();
            (of, bundle["fate"].as_str().unwrap().to_owned())
        };
        bundles.map(fate).collect::<std::collections::BTreeMap<_, _>>()
    };
    let expected = |signed: &str, unsigned: &str| {
        let row = |name: &str, fate: &str| (name.to_owned(), fate.to_owned());
        std::collections::BTreeMap::from([row("signed.tar", signed), row("unsigned.tar", unsigned)])
    };
    assert_eq!(fates(), expected("accepted", "waits"), "no daemon has read them");
    let daemon = node.start();
    node.airgapd(["wait", "--timeout", "20s"]).exits(0);
    daemon.stop();
    assert_eq!(fates(), expected("accepted", "stays"));
    fs::write(guarded.revoked().join("list"), guarded.list(&signed)).unwrap();
    assert_eq!(fates(), expected("refused", "stays"));
    assert!(target.is_pinned(&name));
    node.airgapd(["release", "--all"]).exits(0);
}

/// `config --check --signatures RULE` tells the fate of each bundle, and changes nothing.
fn a_check_lists_the_bundles_that_a_rule_would_keep_out(target: &Target) {
    let guarded = Guarded::on(target, "off");
    let node = &guarded.node;
    guarded.trust("release", 1, "registry.test/*");
    let (old, _) = marker(node.path("old.tar"));
    node.import_and_stop(target, &old, 2);
    let place = |name: &str| marker(node.images().join(name)).0;
    let signed = place("signed.tar");
    guarded.sign(&signed, &signed, 1);
    let check = |rule: &str, more: &[&str]| {
        let mut words = vec!["config", "--check", "--signatures", rule];
        words.extend(more);
        node.airgapd(words)
    };
    let said = check("require", &[]).exits(0).stdout;
    assert!(said.contains("the rule keeps out no bundle of 2"), "{said}");
    assert!(said.contains("stays") && said.contains("old.tar"), "{said}");

    place("unsigned.tar");
    let foreign = place("foreign.tar");
    guarded.sign(&foreign, &foreign, 2);
    let mixed = node.images().join("mixed.tar");
    bundles::write(&mixed, [image("registry.test/a:1"), image("quay.test/b:1")]);
    put(&mixed, ".sha256.sig", signature(1, sum(&mixed).as_bytes()));
    put(&mixed, ".sha256", sum(&mixed));
    let early = place("early.tar");
    put(
        &early,
        ".digest.sig",
        signature(1, b"a list that is still to come"),
    );
    let revoked = place("revoked.tar");
    guarded.sign(&revoked, &revoked, 1);
    fs::write(guarded.revoked().join("list"), guarded.list(&revoked)).unwrap();
    node.put_broken("broken.tar");
    fs::write(node.images().join("README.md"), "no bundle").unwrap();
    fs::create_dir(node.images().join("folder")).unwrap();

    let all = |folder: PathBuf| -> BTreeMap<PathBuf, Option<Vec<u8>>> {
        let entries = fs::read_dir(folder).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        paths.map(|path| (path.clone(), fs::read(path).ok())).collect()
    };
    let before = (all(node.images()), all(node.state()));
    let calls = target.as_fake().unwrap().counters();
    let expected = [
        ("broken.tar", "refused", ""),
        (
            "early.tar",
            "waits",
            "early.tar.digest has a signature and is missing: copy it",
        ),
        ("foreign.tar", "refused", "no trusted key makes it valid"),
        ("mixed.tar", "partial", "may not give the name quay.test/b:1"),
        ("old.tar", "stays", "asks for a signature when the file changes"),
        ("revoked.tar", "refused", "is revoked by list"),
        ("signed.tar", "accepted", ""),
        ("unsigned.tar", "waits", "Sign its list of contents"),
    ];
    let document = check("require", &["-o", "json"]).exits(1).json();
    assert_eq!(document["error"], Value::Null);
    let told = document["bundles"].as_array().unwrap();
    assert_eq!(told.len(), expected.len(), "{document:#}");
    let text = check("require", &[]).exits(1).stdout;
    let packed = |text: &str| text.split_whitespace().collect::<String>();
    for (told, (name, fate, reason)) in told.iter().zip(expected) {
        let path = bundles::text(&node.images().join(name));
        assert_eq!(
            (&told["path"], &told["fate"]),
            (&json!(path), &json!(fate)),
            "{told:#}"
        );
        let is_told = told["reason"].as_str().unwrap_or_default();
        assert!(is_told.contains(reason), "{told:#}");
        let line = packed(&format!("{fate} {path}: {is_told}"));
        assert_eq!(
            packed(&text).contains(&line),
            fate != "accepted",
            "{line}: {text}"
        );
    }
    assert!(text.contains("keeps out 6 of 8 bundles"), "{text}");
    assert_eq!((all(node.images()), all(node.state())), before);
    assert_eq!(target.as_fake().unwrap().counters(), calls);

    let softer = check("if-present", &["-o", "json"]).exits(1).json();
    let fate = |name: &str| {
        let mut bundles = softer["bundles"].as_array().unwrap().iter();
        let path = json!(bundles::text(&node.images().join(name)));
        bundles.find(|bundle| bundle["path"] == path).unwrap()["fate"].clone()
    };
    assert_eq!(
        (fate("unsigned.tar"), fate("foreign.tar")),
        (json!("accepted"), json!("refused"))
    );
    let answer = node.airgapd(["config", "--signatures", "require"]).exits(2);
    assert!(answer.stderr.contains("--check"), "{answer:?}");
    fs::remove_file(guarded.keys().join("release.pub")).unwrap();
    let answer = check("require", &[]).exits(2);
    assert!(answer.stderr.contains("needs a key"), "{answer:?}");
}

const ONE: &str = "registry.test/one:1";
const TWO: &str = "registry.test/two:1";

/// A shared mapping of a file. A write through it leaves the times of the file as they are.
#[derive(Clone)]
struct Mapped(Arc<Mutex<MmapMut>>);

impl Mapped {
    fn of(path: &Path) -> Mapped {
        let file = File::options().read(true).write(true).open(path).unwrap();
        // SAFETY: the mapping covers the file, which keeps its length. Other code reads the file
        // with pread(2) only.
        #[expect(unsafe_code, reason = "only a mapping writes without a trace in the times")]
        let mapping = unsafe { MmapMut::map_mut(&file) }.unwrap();
        Mapped(Arc::new(Mutex::new(mapping)))
    }

    fn write(&self, bytes: &[u8]) {
        self.0.lock().unwrap().copy_from_slice(bytes);
    }
}

/// A bundle, and changed bundles of the same length: other names, a broken layer, or both.
struct Case {
    form: &'static str,
    /// The targets of both images.
    targets: [String; 2],
    original: Vec<u8>,
    names: Vec<u8>,
    layer: Vec<u8>,
    both: Vec<u8>,
}

/// Returns bundles of two images whose names have the same length: a layout with its index first,
/// and a Docker archive. One change gives each image the other name, and one breaks a layer.
fn cases(names: [&str; 2]) -> Vec<Case> {
    let forms = [
        ("oci", Layout::new(), "index.json"),
        ("docker", Layout::docker(), "manifest.json"),
    ];
    let case = |(form, layout, list): (&'static str, Layout, &str)| {
        let mut archive = layout.image(image(names[0])).image(image(names[1])).build();
        archive.move_first(list);
        let text = String::from_utf8(archive.bytes_of(list)).unwrap();
        let parts: Vec<String> = text
            .split(names[0])
            .map(|part| part.replace(names[1], names[0]))
            .collect();
        let mut renamed = archive.clone();
        renamed.set(list, parts.join(names[1]));
        let break_layer = |archive: &Archive| {
            let mut broken = archive.clone();
            broken.corrupt(&archive.images[0].manifests[0].layers[0]);
            broken
        };
        let (broken, both) = (break_layer(&archive), break_layer(&renamed));
        let [original, names, layer, both] = [&archive, &renamed, &broken, &both].map(Archive::to_bytes);
        for changed in [&names, &layer, &both] {
            assert!(*changed != original && changed.len() == original.len());
        }
        Case {
            form,
            targets: [0, 1].map(|at| archive.images[at].root.to_string()),
            original,
            names,
            layer,
            both,
        }
    };
    forms.into_iter().map(case).collect()
}

/// Signs a bundle: the list of its contents, or the file.
fn prove(guarded: &Guarded, file: &Path, proof: &str) {
    match proof {
        "contents" => guarded.sign(file, file, 1),
        _ => put(file, ".sig", signature(1, &fs::read(file).unwrap())),
    }
}

/// Returns the names of a namespace with their targets.
fn landed(target: &Target, namespace: &str) -> BTreeMap<String, String> {
    let images = target.as_fake().unwrap().images(namespace).into_iter();
    images
        .map(|(name, record)| (name, record.target.digest.to_string()))
        .collect()
}

/// A writer changes list and layer at each step of an import. It takes the change back at the next
/// step, or never. Each record that lands is the signed one.
fn a_writer_at_each_step_of_an_import_never_changes_what_lands(target: &Target) {
    let guarded = Guarded::on(target, "require");
    let (node, fake) = (&guarded.node, target.as_fake().unwrap());
    let import = |namespace: &str, file: &Path| node.import(["--namespace", namespace, &text(file)]);
    for case in cases([ONE, TWO]) {
        for proof in ["contents", "file"] {
            let of = format!("{}-{proof}", case.form);
            let file = node.path(&format!("{of}.tar"));
            fs::write(&file, &case.original).unwrap();
            prove(&guarded, &file, proof);
            let steps = Arc::new(Mutex::new(0));
            let count = Arc::clone(&steps);
            fake.at_each_step(move || *count.lock().unwrap() += 1);
            import(&of, &file).exits(0);
            fake.clear_faults();
            let (expected, steps) = (landed(target, &of), *steps.lock().unwrap());
            assert!(expected.contains_key(ONE) && expected[ONE] != expected[TWO]);
            assert!(steps > 10, "{of}: {steps} steps");
            let mapped = Mapped::of(&file);
            let mut refused = 0;
            for step in 0..steps {
                let back = if step % 2 == 0 { step + 1 } else { u32::MAX };
                let at = format!("{of}-{step}");
                // The bytes are written already, so the change leaves no trace.
                mapped.write(&case.original);
                let writer = (mapped.clone(), case.original.clone(), case.both.clone());
                let mut now = 0;
                fake.at_each_step(move || {
                    let (mapped, original, changed) = &writer;
                    match now {
                        now if now == step => mapped.write(changed),
                        now if now == back => mapped.write(original),
                        _ => {}
                    }
                    now += 1;
                });
                let answer = import(&at, &file);
                fake.clear_faults();
                let found = landed(target, &at);
                for (name, digest) in &found {
                    assert_eq!(Some(digest), expected.get(name), "{at}: {answer:?}");
                }
                let is_whole = found == expected;
                assert_eq!(answer.status.code() == Some(0), is_whole, "{at}: {answer:?}");
                if !is_whole {
                    refused += 1;
                    mapped.write(&case.original);
                    import(&at, &file).exits(0);
                    assert_eq!(landed(target, &at), expected, "{at}");
                }
            }
            assert!(refused > 0, "{of}: no change was refused");
        }
    }
}

/// A writer changes the bundle and takes the change back, as fast as it can, while the program
/// reads.
fn a_writer_that_never_rests_never_changes_what_lands(target: &Target) {
    let guarded = Guarded::on(target, "require");
    let node = &guarded.node;
    let mut refused = 0;
    for case in cases([ONE, TWO]) {
        for proof in ["contents", "file"] {
            let of = format!("{}-{proof}", case.form);
            let file = node.path(&format!("{of}.tar"));
            fs::write(&file, &case.original).unwrap();
            prove(&guarded, &file, proof);
            node.import(["--namespace", &of, &text(&file)]).exits(0);
            let expected = landed(target, &of);
            let mapped = Mapped::of(&file);
            for (what, changed) in [("names", &case.names), ("layer", &case.layer)] {
                for round in 0..10 {
                    let at = format!("{of}-{what}-{round}");
                    let is_over = AtomicBool::new(false);
                    let import = || node.import(["--namespace", &at, &text(&file)]);
                    let answer = std::thread::scope(|scope| {
                        scope.spawn(|| {
                            while !is_over.load(Ordering::Relaxed) {
                                mapped.write(changed);
                                std::thread::yield_now();
                                mapped.write(&case.original);
                                std::thread::yield_now();
                            }
                        });
                        let answer = import();
                        is_over.store(true, Ordering::Relaxed);
                        answer
                    });
                    for (name, digest) in landed(target, &at) {
                        assert_eq!(Some(&digest), expected.get(&name), "{at}: {answer:?}");
                    }
                    if answer.status.code() != Some(0) {
                        refused += 1;
                        import().exits(0);
                    }
                    assert_eq!(landed(target, &at), expected, "{at}");
                }
            }
        }
    }
    assert!(refused > 0, "the writer was never in time");
}

/// The daemon reads no file that a program may write. So the writer opens it at a step of the
/// import.
fn a_writer_at_each_step_of_the_daemon_never_changes_what_lands(target: &Target) {
    let guarded = Guarded::on(target, "require");
    let (node, fake) = (&guarded.node, target.as_fake().unwrap());
    let daemon = node.start();
    let (mut step, mut refused) = (0, 0);
    loop {
        let names = ["one", "two"].map(|name| format!("registry.test/{name}-{step:03}:1"));
        let case = cases([&names[0], &names[1]]).remove(0);
        let changed = case.both.clone();
        let file = node.path(&format!("step-{step}.tar"));
        fs::write(&file, &case.original).unwrap();
        let name = format!("step-{step}.tar");
        let list = guarded.list(&file);
        let placed = node.images().join(&name);
        put(&placed, ".digest.sig", signature(1, list.as_bytes()));
        put(&placed, ".digest", list);
        let is_done = Arc::new(AtomicBool::new(false));
        let (path, done) = (placed.clone(), Arc::clone(&is_done));
        let mut now = 0;
        fake.at_each_step(move || {
            // The daemon asks for other things before the file is there.
            if now == step && path.exists() {
                Mapped::of(&path).write(&changed);
                done.store(true, Ordering::Relaxed);
            }
            now += usize::from(path.exists());
        });
        fs::rename(&file, &placed).unwrap();
        let answer = node.airgapd(["wait", "--bundle", &name, "--timeout", "30s"]);
        fake.clear_faults();
        let records = target.records();
        for (name, target) in names.iter().zip(&case.targets) {
            if let Some(record) = records.get(name) {
                assert_eq!(record.target.digest().as_ref(), target, "{step}: {name}");
            }
        }
        refused += usize::from(answer.status.code() == Some(1));
        fs::remove_file(&placed).unwrap();
        if !is_done.load(Ordering::Relaxed) {
            break;
        }
        step += 1;
    }
    assert!(step > 10 && refused > 0, "{step} steps, {refused} refused");
    daemon.finish(target);
}

on_the_fake! {
    a_check_lists_the_bundles_that_a_rule_would_keep_out,
    a_check_tells_the_fate_of_receipts,
    a_trusted_list_that_is_still_written_is_waited_for,
    a_writer_at_each_step_of_an_import_never_changes_what_lands,
    a_writer_at_each_step_of_the_daemon_never_changes_what_lands,
    a_writer_that_never_rests_never_changes_what_lands,
    bundles_of_an_os_image_from_before_the_rule_stay_in_place,
    keys_and_signatures_of_cosign_admit_a_bundle,
    keys_and_signatures_of_minisign_admit_a_bundle,
    keys_are_no_rule_while_signatures_are_off,
}
