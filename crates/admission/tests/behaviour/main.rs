//! Tests of the crate's promises with keys and signatures that openssl, cosign and minisign made.
//! `tests/fixtures/make.sh` makes them.

mod keys;
mod mutations;
mod openssl;
mod signatures;
mod verdicts;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use admission::{Form, Key, Keys, Proof, Reach, Revocations, Signature, SignedList, TrustedKey};
use basics::digest;
use oci_spec::image::Digest;

/// The makers of the fixtures' keys.
const MAKERS: [&str; 5] = [
    "cosign2",
    "cosign3",
    "openssl-p256",
    "openssl-ed25519",
    "minisign",
];

fn fixture_path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

fn fixture(name: &str) -> Vec<u8> {
    fs::read(fixture_path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn key(maker: &str) -> Key {
    Key::parse(&fixture(&format!("{maker}.pub"))).unwrap()
}

fn keys(makers: &[&str]) -> Keys {
    let trusted = makers.iter().map(|maker| TrustedKey {
        name: (*maker).to_owned(),
        key: key(maker),
    });
    Keys::new(trusted.collect(), Vec::new())
}

/// A signature file of the fixtures.
#[derive(Clone, Copy, Debug)]
struct Sample {
    /// Name of the file.
    file: &'static str,
    /// Name of the signed file.
    signed: &'static str,
    /// Maker of the key.
    maker: &'static str,
    form: Form,
}

impl Sample {
    fn bytes(self) -> Vec<u8> {
        fixture(self.file)
    }

    fn signature(self) -> Signature {
        Signature::parse(self.form, &self.bytes())
            .unwrap_or_else(|problem| panic!("{}: {problem}", self.file))
    }
}

const fn sample(file: &'static str, signed: &'static str, maker: &'static str, form: Form) -> Sample {
    Sample {
        file,
        signed,
        maker,
        form,
    }
}

/// Each signature of the fixtures that a key makes valid. A test compares them with the folder.
const SAMPLES: [Sample; 24] = [
    sample("bundle.cosign2.sig", "bundle", "cosign2", Form::Plain),
    sample(
        "bundle.cosign2.sigstore.json",
        "bundle",
        "cosign2",
        Form::Sigstore,
    ),
    sample(
        "bundle.cosign3.sigstore.json",
        "bundle",
        "cosign3",
        Form::Sigstore,
    ),
    sample("bundle.minisign.minisig", "bundle", "minisign", Form::Minisign),
    sample(
        "bundle.openssl-ed25519.sig",
        "bundle",
        "openssl-ed25519",
        Form::Plain,
    ),
    sample(
        "bundle.openssl-p256-base64.sig",
        "bundle",
        "openssl-p256",
        Form::Plain,
    ),
    sample("bundle.openssl-p256.sig", "bundle", "openssl-p256", Form::Plain),
    sample(
        "catalogs.cosign2-ed25519.sigstore.json",
        "catalogs",
        "openssl-ed25519",
        Form::Sigstore,
    ),
    sample("catalogs.cosign2.sig", "catalogs", "cosign2", Form::Plain),
    sample(
        "catalogs.cosign2.sigstore.json",
        "catalogs",
        "cosign2",
        Form::Sigstore,
    ),
    sample(
        "catalogs.cosign3-ed25519.sigstore.json",
        "catalogs",
        "openssl-ed25519",
        Form::Sigstore,
    ),
    sample(
        "catalogs.cosign3.sigstore.json",
        "catalogs",
        "cosign3",
        Form::Sigstore,
    ),
    sample(
        "catalogs.minisign.minisig",
        "catalogs",
        "minisign",
        Form::Minisign,
    ),
    sample(
        "catalogs.openssl-ed25519-base64.sig",
        "catalogs",
        "openssl-ed25519",
        Form::Plain,
    ),
    sample(
        "catalogs.openssl-ed25519.sig",
        "catalogs",
        "openssl-ed25519",
        Form::Plain,
    ),
    sample(
        "catalogs.openssl-p256-base64.sig",
        "catalogs",
        "openssl-p256",
        Form::Plain,
    ),
    sample(
        "catalogs.openssl-p256.sig",
        "catalogs",
        "openssl-p256",
        Form::Plain,
    ),
    sample("files.cosign2.sig", "files", "cosign2", Form::Plain),
    sample("files.cosign2.sigstore.json", "files", "cosign2", Form::Sigstore),
    sample("files.cosign3.sigstore.json", "files", "cosign3", Form::Sigstore),
    sample("files.minisign.minisig", "files", "minisign", Form::Minisign),
    sample(
        "files.openssl-ed25519.sig",
        "files",
        "openssl-ed25519",
        Form::Plain,
    ),
    sample(
        "files.openssl-p256-base64.sig",
        "files",
        "openssl-p256",
        Form::Plain,
    ),
    sample("files.openssl-p256.sig", "files", "openssl-p256", Form::Plain),
];

/// Returns the sample with this name of its file.
fn named(file: &str) -> Sample {
    *SAMPLES.iter().find(|sample| sample.file == file).unwrap()
}

/// Returns the catalog that the list `catalogs` has.
fn catalog() -> Digest {
    digest::sha256(b"catalog\n")
}

/// Returns the sha256 of `bundle`, which the list `files` has.
fn bundle() -> Digest {
    digest::sha256(&fixture("bundle"))
}

/// Returns a digest that no list has.
fn other() -> Digest {
    digest::sha256(b"other")
}

/// Makes the proof of a sample as it lies beside a bundle.
fn proof(sample: Sample) -> Proof {
    altered(sample, |_| {}, |_| {})
}

/// Does the same after changes to the signature and to the list.
fn altered(sample: Sample, signature: impl FnOnce(&mut Vec<u8>), list: impl FnOnce(&mut Vec<u8>)) -> Proof {
    let mut bytes = sample.bytes();
    signature(&mut bytes);
    let signed = (sample.signed != "bundle").then(|| {
        let mut text = fixture(sample.signed);
        list(&mut text);
        Arc::new(SignedList::new(sample.signed, text))
    });
    Proof::new(sample.file, sample.form, bytes, signed, Reach::Bundle)
}

fn no_revocations() -> Revocations {
    Revocations::default()
}
