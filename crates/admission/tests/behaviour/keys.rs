//! Keys of real programs, and files that are no keys for bundles.

use admission::{Form, Key, KeyKind, KeyProblem, Keys, LARGEST_KEY, MOST_KEYS, TrustedKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::{MAKERS, SAMPLES, fixture, key};

#[test]
fn the_keys_of_each_program_are_read_with_their_kind() {
    let kinds = MAKERS.map(|maker| key(maker).kind());
    let expected = [
        KeyKind::P256,
        KeyKind::P256,
        KeyKind::P256,
        KeyKind::Ed25519,
        KeyKind::Minisign,
    ];
    assert_eq!(kinds, expected);
    let base64_alone = String::from_utf8(fixture("minisign.pub")).unwrap();
    let base64_alone = base64_alone.lines().nth(1).unwrap();
    assert_eq!(Key::parse(base64_alone.as_bytes()), Ok(key("minisign")));
    let pem = String::from_utf8(fixture("cosign2.pub")).unwrap();
    for text in [
        pem.replace('\n', "\r\n"),
        pem.trim_end().to_owned(),
        format!("\n{pem}\n\n"),
    ] {
        assert_eq!(Key::parse(text.as_bytes()), Ok(key("cosign2")), "{text:?}");
    }
}

#[test]
fn cosign_names_its_key_by_the_same_fingerprint() {
    for sample in SAMPLES.iter().filter(|sample| sample.form == Form::Sigstore) {
        let bundle: Value = serde_json::from_slice(&sample.bytes()).unwrap();
        let hint = bundle["verificationMaterial"]["publicKey"]["hint"]
            .as_str()
            .unwrap();
        let hint = STANDARD.decode(hint).unwrap();
        assert_eq!(
            key(sample.maker).fingerprint().digest(),
            basics::digest::hex(&hint),
            "{sample:?}"
        );
    }
}

#[test]
fn a_compressed_point_is_the_same_key() {
    let compressed = Key::parse(&fixture("p256-compressed.pub")).unwrap();
    assert_eq!(compressed, key("openssl-p256"));
}

#[test]
fn other_files_are_refused_with_the_remedy() {
    let text = |name: &str| String::from_utf8(fixture(name)).unwrap();
    let pem = text("openssl-p256.pub");
    let cut = pem.len() - 30;
    let private = |label: &str| pem.replace("PUBLIC KEY", label);
    let table = [
        (text("rsa.pub"), "its kind is RSA"),
        (text("p384.pub"), "its kind is an elliptic curve other than P-256"),
        (text("p256-explicit.pub"), "no whole public key"),
        (text("x25519.pub"), "its kind is the algorithm 1.3.101.110"),
        (
            text("certificate.pub"),
            "it has a CERTIFICATE: put a PUBLIC KEY here",
        ),
        (private("PRIVATE KEY"), "remove it from this machine"),
        (private("EC PRIVATE KEY"), "remove it from this machine"),
        (
            private("ENCRYPTED SIGSTORE PRIVATE KEY"),
            "remove it from this machine",
        ),
        (
            "untrusted comment: minisign encrypted secret key\nRWRTY0Iy\n".to_owned(),
            "remove it from this machine",
        ),
        (pem[..cut].to_owned(), "no whole public key"),
        (format!("{pem}{pem}"), "no whole public key"),
        (text("minisign.pub")[..100].to_owned(), "no whole public key"),
        (text("minisign.pub").repeat(2), "no whole public key"),
        (
            text("minisign.pub").replace("untrusted", "trusted"),
            "no whole public key",
        ),
        // An Ed25519 key has no parameters (RFC 8410, 3), not even an empty one.
        (ed25519_with_null(), "no whole public key"),
        (text("catalogs.minisign.minisig"), "no whole public key"),
        (String::new(), "no whole public key"),
        (
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGs a@b\n".to_owned(),
            "no whole public key",
        ),
    ];
    for (text, reason) in table {
        let problem = Key::parse(text.as_bytes()).expect_err(&text).to_string();
        assert!(problem.contains(reason), "{text}: {problem}");
    }
    assert_eq!(Key::parse(b"\xff\xfe"), Err(KeyProblem::Unreadable));
}

fn ed25519_with_null() -> String {
    let head = [0x30, 0x2c, 0x30, 7, 6, 3, 0x2b, 0x65, 0x70, 5, 0, 3, 0x21, 0];
    let base64 = STANDARD.encode([head.as_slice(), &[7; 32]].concat());
    format!("-----BEGIN PUBLIC KEY-----\n{base64}\n-----END PUBLIC KEY-----\n")
}

#[test]
fn a_key_file_and_a_folder_of_keys_have_bounds() {
    let mut text = fixture("minisign.pub");
    text.resize(usize::try_from(LARGEST_KEY).unwrap(), b'\n');
    assert_eq!(Key::parse(&text), Ok(key("minisign")));
    text.push(b'\n');
    assert_eq!(Key::parse(&text), Err(KeyProblem::TooLarge));

    let many = |count: usize| {
        let keys = (0..count).map(|at| TrustedKey {
            name: format!("key{at}"),
            key: key("cosign2"),
        });
        Keys::new(keys.collect(), Vec::new())
    };
    assert_eq!(many(MOST_KEYS).usable().len(), MOST_KEYS);
    let too_many = many(MOST_KEYS + 1);
    assert!(too_many.usable().is_empty());
    assert!(
        too_many.problems()[0].contains("there are 65 keys"),
        "{:?}",
        too_many.problems()
    );
}

#[test]
fn a_key_is_shown_with_its_name_and_the_start_of_its_fingerprint() {
    let trusted = TrustedKey {
        name: "release\u{1b}[2J".to_owned(),
        key: key("cosign2"),
    };
    let short = &trusted.key.fingerprint().digest()[..16];
    assert_eq!(trusted.to_string(), format!("release\\u{{1b}}[2J ({short})"));
    assert_eq!(serde_json::to_string(&KeyKind::P256).unwrap(), "\"p256\"");
    for kind in [KeyKind::P256, KeyKind::Ed25519, KeyKind::Minisign] {
        assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
    }
}
