//! Keys and signatures that this machine's openssl makes during the test. Without openssl there is
//! nothing to compare: the fixtures have signatures of openssl too.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use admission::{Form, Key, KeyKind, Signature, Signed};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use basics::digest;

use crate::{MAKERS, fixture, fixture_path, key};

fn is_there() -> bool {
    let mut version = Command::new("openssl");
    version.arg("version").stdout(Stdio::null()).stderr(Stdio::null());
    version.status().is_ok_and(|status| status.success())
}

fn openssl<A: AsRef<OsStr>>(folder: &Path, arguments: impl IntoIterator<Item = A>) -> Vec<u8> {
    let output = Command::new("openssl")
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split_whitespace()
}

#[test]
fn a_fingerprint_is_the_sha256_of_what_openssl_writes() {
    if !is_there() {
        return;
    }
    let temporary = tempfile::tempdir().unwrap();
    for maker in MAKERS.iter().filter(|maker| **maker != "minisign") {
        let path = fixture_path(&format!("{maker}.pub"));
        let der = openssl(
            temporary.path(),
            words("pkey -pubin -outform DER -in")
                .map(OsStr::new)
                .chain([path.as_os_str()]),
        );
        assert_eq!(*key(maker).fingerprint(), digest::sha256(&der), "{maker}");
    }
    // openssl does not know minisign's file. Its Ed25519 key in PEM has the same fingerprint.
    let text = String::from_utf8(fixture("minisign.pub")).unwrap();
    let bytes = STANDARD.decode(text.lines().nth(1).unwrap()).unwrap();
    let mut der = STANDARD.decode("MCowBQYDK2VwAyEA").unwrap();
    der.extend_from_slice(&bytes[10..]);
    fs::write(temporary.path().join("der"), &der).unwrap();
    let pem = openssl(temporary.path(), words("pkey -pubin -inform DER -in der"));
    let as_pem = Key::parse(&pem).unwrap();
    assert_eq!(as_pem.kind(), KeyKind::Ed25519);
    assert_eq!(as_pem.fingerprint(), key("minisign").fingerprint());
    assert_ne!(
        as_pem,
        key("minisign"),
        "an Ed25519 key makes no signature of minisign valid"
    );
}

#[test]
fn fresh_signatures_of_openssl_are_valid() {
    if !is_there() {
        return;
    }
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let run = |line: &str| openssl(folder, words(line));
    let read = |name: &str| fs::read(folder.join(name)).unwrap();
    run("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out a.key");
    run("pkey -in a.key -pubout -out a.pub");
    run("genpkey -algorithm ED25519 -out b.key");
    run("pkey -in b.key -pubout -out b.pub");
    let (p256, ed25519) = (
        Key::parse(&read("a.pub")).unwrap(),
        Key::parse(&read("b.pub")).unwrap(),
    );
    // Half of all ECDSA signatures have numbers with a byte more, and half have a large `s`.
    for at in 0..12 {
        let text = format!("airgapd-catalogs 1\n{at}\n");
        fs::write(folder.join("list"), &text).unwrap();
        run("dgst -sha256 -sign a.key -out a.sig list");
        run("base64 -in a.sig -out a.base64");
        run("pkeyutl -sign -rawin -inkey b.key -in list -out b.sig");
        let hash = digest::sha256(text.as_bytes());
        for (name, key) in [("a.sig", &p256), ("a.base64", &p256), ("b.sig", &ed25519)] {
            let signature = Signature::parse(Form::Plain, &read(name)).unwrap();
            assert!(
                key.verifies(&signature, Signed::text(text.as_bytes())),
                "{name} {at}"
            );
            assert_eq!(
                key.verifies(&signature, Signed::file(&hash)),
                key.kind() == KeyKind::P256,
                "{name}"
            );
            assert!(
                !key.verifies(&signature, Signed::text(b"airgapd-catalogs 1\n")),
                "{name} {at}"
            );
        }
    }
}
