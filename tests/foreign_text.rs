//! Foreign text in bundles, file names and arguments: every output escapes it, and it forges no
//! line.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use bundle::fixtures::{Archive, EntryKind, Image, Layout, Manifest};
use serde_json::json;

use crate::support::bundles::{self, image};
use crate::support::{Node, Target, on_the_fake, unique};

const A: &str = "registry.test/a:1";

/// A text that ends a line and changes the writing direction. It controls a terminal by C0 and C1
/// codes, and has invisible characters.
const LIE: &str = "x\nFORGED \u{202e}\u{200e}\u{2028}\u{feff}\u{9b}31m\u{1b}[2J\r\t\u{7}";

/// Returns bundles with such text in every place.
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

/// Every command escapes the text of bundles, file names and arguments.
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
    daemon.wait_until("the log names each file", || {
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

/// File names are bytes (path_resolution(7)), and labels and logs are text.
fn names_that_are_no_text_are_imported_and_shown_escaped(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    let bidi = "\u{202e}rat.\u{2066}tar".as_bytes();
    let names: [&[u8]; 5] = [
        b"\xff\xfe.tar",
        b"new\nline.tar",
        b"\x1b[31mred.tar",
        bidi,
        "c1\u{9b}31m.tar".as_bytes(),
    ];
    for (number, file) in names.iter().enumerate() {
        let bundle = node.path(&format!("odd-{number}.tar"));
        bundles::write(&bundle, [image(&format!("registry.test/odd-{number}:1"))]);
        fs::rename(bundle, node.images().join(OsStr::from_bytes(file))).unwrap();
    }
    for number in 0..names.len() {
        let name = format!("registry.test/odd-{number}:1");
        daemon.wait_until("its image", || {
            target.record(&name).is_some() && target.is_pinned(&name)
        });
    }
    node.airgapd(["wait"]).exits(0);
    let told = [
        node.airgapd(["status"]).exits(0).stdout,
        node.airgapd(["status", "-o", "json"]).exits(0).stdout,
        node.airgapd(["inspect", &bundles::text(&node.images().join("new\nline.tar"))])
            .exits(0)
            .stdout,
    ];
    for told in &told {
        let is_shown = |c: char| c == '\n' || basics::is_visible(c);
        assert!(told.chars().all(is_shown), "{told:?}");
        assert!(told.contains("new\\nline.tar"), "{told}");
    }
    let rows = told[0].lines().filter(|line| line.starts_with("done "));
    assert_eq!(rows.count(), names.len(), "{}", told[0]);
    let answered: serde_json::Value = serde_json::from_str(&told[1]).unwrap();
    let bundles = answered["bundles"].as_array().unwrap();
    assert!(
        bundles.iter().any(|bundle| bundle["name"] == "new\nline.tar"),
        "{answered}"
    );
    fs::remove_file(node.images().join(OsStr::from_bytes(names[0]))).unwrap();
    daemon.wait_until("the removed bundles release their records", || {
        target.source_files("registry.test/odd-0:1").is_empty()
    });
    let log = daemon.finish(target);
    assert!(!log.contains('\x1b') && log.contains("red.tar"), "{log}");
    assert!(
        log.lines().all(|line| line.starts_with("20")),
        "no name breaks a line: {log}"
    );
}

on_the_fake! {
    no_command_prints_raw_what_others_say,
    names_that_are_no_text_are_imported_and_shown_escaped,
}
