//! Interrupted transfers, and blobs that need no transfer.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use bundle::fixtures::{Image, digest_of};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::{bundle, bundler, files_in, noise_image};
use crate::support::bundles::text;
use crate::support::middleman::{Act, Middleman, Request};
use crate::support::registry::Registry;
use crate::support::wait_until;

const MIB: usize = 1 << 20;

/// Starts the bundler with its standard output in a pipe without a reader, so that it stops within
/// a blob.
fn begin_and_hold(reference: &str) -> Child {
    let arguments = [
        reference,
        "-o",
        "-",
        "--insecure-registries",
        "plain-http",
        "--retries",
        "20",
    ];
    let mut command = bundler(arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("the program starts")
}

/// Reads the rest of both outputs.
fn rest_of(mut child: Child) -> (i32, Vec<u8>, String) {
    let mut stderr = child.stderr.take().expect("the stream is piped");
    let said = std::thread::spawn(move || {
        let mut text = String::new();
        stderr.read_to_string(&mut text).map(|_| text)
    });
    let mut bytes = Vec::new();
    let mut stdout = child.stdout.take().expect("the stream is piped");
    stdout.read_to_end(&mut bytes).expect("the file can be read");
    let status = child.wait().expect("waiting for the child works");
    let said = said
        .join()
        .expect("the thread does not panic")
        .expect("the file can be read");
    (status.code().expect("the command was not killed"), bytes, said)
}

/// A registry is killed while it sends, and restarted. No byte is sent twice, and the bundle is the
/// same.
#[test]
fn a_registry_that_is_killed_in_mid_blob_is_taken_up_again_when_it_is_back() {
    let Some(mut registry) = Registry::start() else {
        return;
    };
    let (name, _) = registry.push("big/image", "1", noise_image(&[(48 * MIB, 1), (MIB, 2)]));
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("whole.tar");
    bundle([&name, "-o", &text(&file)]).exits(0);

    let mut child = begin_and_hold(&name);
    // The rest of the layer is larger than the buffers of pipes, sockets and the program.
    let mut beginning = vec![0; MIB];
    let stdout = child.stdout.as_mut().expect("the stream is piped");
    stdout.read_exact(&mut beginning).expect("the transfer has begun");
    registry.kill();
    registry.restart();
    let (code, rest, said) = rest_of(child);
    let bytes = [beginning, rest].concat();
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("continuing at the same byte"), "{said}");
    assert_eq!(digest_of(&bytes), digest_of(&fs::read(&file).unwrap()));
    assert!(
        registry.log().contains("http.response.status=206"),
        "{}",
        registry.log()
    );
}

fn cutting(after: usize) -> impl Fn(&Request, usize) -> Act + Send + Sync {
    move |request, before| match before {
        0 if request.is_for_a_blob() => Act::Cut(after),
        _ => Act::Pass,
    }
}

fn through(middleman: &Middleman, reference: &str, file: &Path) -> Vec<String> {
    let (registry, _) = reference.split_once('/').expect("a reference has a host");
    let rewrite = format!("{registry}={}", middleman.host());
    [reference, "--rewrite", &rewrite, "-o", &text(file)]
        .map(str::to_owned)
        .into()
}

#[test]
fn every_transfer_may_break_once_also_where_ranges_are_not_known() {
    let Some(registry) = Registry::start() else { return };
    let (name, _) = registry.push("some/image", "1", noise_image(&[(3 * MIB, 1), (MIB, 2)]));
    let folder = TempDir::new().unwrap();
    let (straight, bent) = (folder.path().join("straight.tar"), folder.path().join("bent.tar"));
    bundle([&name, "-o", &text(&straight)]).exits(0);
    let expected = fs::read(&straight).unwrap();
    let cut = Middleman::before(registry.port(), cutting(400_000));
    bundle(through(&cut, &name, &bent)).exits(0);
    assert!(fs::read(&bent).unwrap() == expected);
    let ranges: Vec<_> = cut
        .seen()
        .iter()
        .filter_map(|seen| seen.header("range").map(str::to_owned))
        .collect();
    assert_eq!(ranges.len(), 2, "{ranges:?}");

    let ignorant = Middleman::before(registry.port(), |request, before| match before {
        0 if request.is_for_a_blob() => Act::Cut(400_000),
        _ => Act::Without("range"),
    });
    bundle(through(&ignorant, &name, &bent)).exits(0);
    assert!(fs::read(&bent).unwrap() == expected);

    // A busy registry answers 429 with the time of the next try.
    let busy = Middleman::before(registry.port(), |_, before| match before {
        0 => Act::Answer(429, "Retry-After: 0\r\n".to_owned(), String::new()),
        1 => Act::Answer(503, String::new(), String::new()),
        _ => Act::Pass,
    });
    bundle(through(&busy, &name, &bent)).exits(0);
    assert!(fs::read(&bent).unwrap() == expected);
}

#[test]
fn a_transfer_that_comes_to_nothing_is_said_and_leaves_no_half_file() {
    let Some(registry) = Registry::start() else { return };
    let (name, _) = registry.push("some/image", "1", noise_image(&[(3 * MIB, 1)]));
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("bundle.tar");
    let rows = [
        (Act::Cut(0), "cannot fetch"),
        (Act::Damage, "is corrupt"),
        (Act::Answer(404, String::new(), String::new()), "is not in"),
    ];
    for (act, expected) in rows {
        let middleman = Middleman::before(registry.port(), move |request, _| {
            // The config is the small blob.
            if request.is_for_a_blob() && request.header("range").is_some() {
                Act::Cut(0)
            } else if request.is_for_a_blob() && is_layer(request) {
                act.clone()
            } else {
                Act::Pass
            }
        });
        let mut arguments = through(&middleman, &name, &file);
        arguments.extend(["--retries".to_owned(), "1".to_owned()]);
        let answer = bundle(arguments).exits(1);
        assert!(answer.stderr.contains(expected), "{expected}: {answer:?}");
        assert!(answer.stderr.contains(layer().as_str()), "{answer:?}");
        assert!(files_in(folder.path()).is_empty(), "{expected}");
    }
}

/// Returns the digest of the layer of `noise_image(&[(3 * MIB, 1)])`.
fn layer() -> String {
    super::noise_layer(3 * MIB, 1).digest().to_string()
}

fn is_layer(request: &Request) -> bool {
    request.target.ends_with(&layer())
}

#[test]
fn an_interruption_leaves_no_half_file_and_the_old_bundle() {
    let Some(registry) = Registry::start() else { return };
    let (name, _) = registry.push("some/image", "1", noise_image(&[(3 * MIB, 1)]));
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("bundle.tar");
    fs::write(&file, "the old one").unwrap();
    for signal in [Signal::TERM, Signal::INT] {
        let middleman = Middleman::before(registry.port(), |request, before| {
            if is_layer(request) && before > 0 {
                std::thread::sleep(Duration::from_secs(60));
            }
            cutting(MIB)(request, before)
        });
        let mut command = bundler(through(&middleman, &name, &file));
        command
            .args(["--insecure-registries", "plain-http"])
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        wait_until("the transfer stands still", || {
            middleman
                .seen()
                .iter()
                .filter(|request| is_layer(request))
                .count()
                == 2
        });
        // The old bundle, and the new bundle and its list under temporary names.
        assert_eq!(files_in(folder.path()).len(), 3);
        kill_process(Pid::from_child(&child), signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(1));
        assert_eq!(fs::read(&file).unwrap(), b"the old one");
        assert_eq!(files_in(folder.path()).len(), 1);
    }
}

#[test]
fn what_is_in_the_cache_does_not_travel() {
    let Some(registry) = Registry::start() else { return };
    let (name, _) = registry.push("some/image", "1", noise_image(&[(MIB, 1), (MIB, 2)]));
    let folder = TempDir::new().unwrap();
    let cache = text(&folder.path().join("cache"));
    let run = |file: &str| {
        let file = folder.path().join(file);
        let middleman = Middleman::before(registry.port(), |_, _| Act::Pass);
        let mut arguments = through(&middleman, &name, &file);
        arguments.extend(["--cache", &cache, "-o", "json"].map(str::to_owned));
        let report = bundle(arguments).exits(0).json();
        let moved = report["blobs"]["fetched_bytes"].as_u64().unwrap();
        (
            fs::read(&file).unwrap(),
            middleman.blobs(),
            moved,
            middleman.seen().len(),
        )
    };
    let (first, requests, moved, _) = run("first.tar");
    assert!(requests == 3 && moved > 2 * MIB as u64, "{requests} {moved}");
    let (second, requests, moved, all) = run("second.tar");
    assert!(second == first);
    assert_eq!(
        (requests, moved, all),
        (0, 0, 1),
        "the program requests only the tag"
    );

    // A changed file in the cache is noticed and fetched again.
    let damaged = folder
        .path()
        .join("cache/blobs")
        .join(layer_1().replace(':', "/"));
    fs::write(&damaged, "damaged").unwrap();
    let (third, requests, ..) = run("third.tar");
    assert!(third == first);
    assert_eq!(requests, 1);
}

fn layer_1() -> String {
    super::noise_layer(MIB, 1).digest().to_string()
}

/// A layer of two repositories is fetched once. If the first repository loses it, it comes from the
/// other.
#[test]
fn a_layer_of_two_images_is_fetched_once_from_whoever_has_it() {
    let Some(registry) = Registry::start() else { return };
    let (one, _) = registry.push("some/one", "1", noise_image(&[(MIB, 1), (MIB, 2)]));
    let (two, _) = registry.push("some/two", "1", noise_image(&[(MIB, 1), (MIB, 3)]));
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("bundle.tar");
    let middleman = Middleman::before(registry.port(), |request, _| {
        if request.target.contains("/one/") && request.target.ends_with(&layer_1()) {
            Act::Answer(404, String::new(), String::new())
        } else {
            Act::Pass
        }
    });
    let mut arguments = through(&middleman, &one, &file);
    arguments.push(two);
    bundle(arguments).exits(0);
    let of_layer = |request: &Request| request.target.ends_with(&layer_1());
    assert_eq!(
        middleman
            .seen()
            .iter()
            .filter(|request| of_layer(request))
            .count(),
        2
    );
}

/// The same images give the same bytes, for any number of concurrent transfers and any order of the
/// names.
#[test]
fn concurrency_and_order_change_no_byte() {
    let Some(registry) = Registry::start() else { return };
    let image =
        |seed: u64| -> Image { noise_image(&[(MIB, 1), (300_000, seed), (70_000, seed + 1), (5, seed + 2)]) };
    let mut names: Vec<String> = (1..=6)
        .map(|n| registry.push(&format!("some/image-{n}"), "1", image(10 * n)).0)
        .collect();
    let folder = TempDir::new().unwrap();
    for form in ["none", "gzip", "zstd"] {
        let mut digests = Vec::new();
        for concurrency in ["1", "8"] {
            let file = folder.path().join(format!("{form}-{concurrency}"));
            let output = text(&file);
            let arguments = ["-o", &output, "--compress", form, "--concurrency", concurrency];
            bundle(names.iter().map(String::as_str).chain(arguments)).exits(0);
            names.reverse();
            digests.push(digest_of(&fs::read(&file).unwrap()));
        }
        assert_eq!(digests[0], digests[1], "{form}");
    }
}
