//! Bundles from registries: a real registry at one end, the program and containerd at the other.

mod access;
mod content;
mod deltas;
mod k0s;
mod transfers;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};

use bundle::fixtures::{Image, Layer, Manifest};

use crate::support::bundles::native;
use crate::support::node::{Answer, program};

/// Variables that lead the program to credentials or proxies of the person who runs the tests.
const FOREIGN: [&str; 13] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "ALL_PROXY",
    "all_proxy",
    "NO_PROXY",
    "no_proxy",
    "REGISTRY_AUTH_FILE",
    "XDG_RUNTIME_DIR",
    "XDG_CONFIG_HOME",
    "DOCKER_CONFIG",
    "HOME",
];

/// Returns `airgapd bundle-artifacts` with these arguments.
fn bundler<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = program();
    for name in FOREIGN {
        command.env_remove(name);
    }
    command
        .arg("bundle-artifacts")
        .args(arguments)
        .stdin(Stdio::null());
    command
}

/// Runs it to its end with a registry without TLS.
fn bundle<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Answer {
    answer(bundler(arguments).args(["--insecure-registries", "plain-http"]))
}

fn answer(command: &mut Command) -> Answer {
    Answer::from(command.output().expect("the program runs"))
}

/// Returns all files in a folder. A failed run must leave none.
fn files_in(folder: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let names = entries.map(|entry| entry.expect("an entry").file_name());
    names.map(|name| name.to_string_lossy().into_owned()).collect()
}

/// Returns the digests of the blobs of a plain archive.
fn blobs_in(archive: &Path) -> BTreeSet<String> {
    let output = Command::new("tar")
        .arg("-tf")
        .arg(archive)
        .output()
        .expect("tar runs");
    let names = String::from_utf8(output.stdout).expect("names are text");
    let blobs = names.lines().filter_map(|name| name.strip_prefix("blobs/"));
    blobs.map(|blob| blob.replace('/', ":")).collect()
}

/// Returns bytes that no codec can compress. The same seed gives the same bytes.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut next = || {
        // xorshift64 (Marsaglia 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend_from_slice(&next().to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn noise_layer(length: usize, seed: u64) -> Layer {
    Layer::new(noise(length, seed))
}

/// Returns an image for this machine with layers of noise, by their lengths and seeds.
fn noise_image(layers: &[(usize, u64)]) -> Image {
    let manifest = layers
        .iter()
        .fold(Manifest::new(native()), |manifest, (length, seed)| {
            manifest.with_layer(noise_layer(*length, *seed))
        });
    Image::unnamed().manifest(manifest)
}
