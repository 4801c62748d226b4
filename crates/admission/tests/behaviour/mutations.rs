//! One flipped bit, in each place: signature, key, signed text, digest.

use admission::{Form, Key, Signature, Signed};
use basics::digest;

use crate::{SAMPLES, Sample, fixture, key, named};

fn flipped(bytes: &[u8]) -> impl Iterator<Item = (usize, Vec<u8>)> {
    (0..bytes.len() * 8).map(|bit| {
        let mut flipped = bytes.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        (bit / 8, flipped)
    })
}

/// Returns true if the byte belongs to the signature itself. The rest is text for people and
/// programs: the untrusted comment of minisign, the names and further fields of a Sigstore bundle.
fn is_signature(sample: Sample, bytes: &[u8], at: usize) -> bool {
    let text = String::from_utf8_lossy(bytes);
    match sample.form {
        Form::Plain => true,
        Form::Minisign => text
            .find('\n')
            .is_some_and(|end| (end + 1..bytes.len() - 1).contains(&at)),
        Form::Sigstore => {
            let name = "\"signature\":\"";
            let start = text.find(name).unwrap() + name.len();
            (start..start + text[start..].find('"').unwrap()).contains(&at)
        }
    }
}

/// Returns a signature over a list for each kind of file and key: base64, DER, Ed25519, minisign,
/// and a Sigstore bundle, which names the digest of the list.
fn one_of_each_kind() -> [Sample; 5] {
    [
        "catalogs.cosign2.sig",
        "catalogs.openssl-p256.sig",
        "catalogs.openssl-ed25519.sig",
        "catalogs.minisign.minisig",
        "catalogs.cosign3.sigstore.json",
    ]
    .map(named)
}

#[test]
fn a_flipped_bit_in_a_signature_makes_it_wrong() {
    for sample in one_of_each_kind() {
        let (bytes, signed, key) = (sample.bytes(), fixture("catalogs"), key(sample.maker));
        let mut tried = 0;
        for (at, flipped) in flipped(&bytes).filter(|(at, _)| is_signature(sample, &bytes, *at)) {
            tried += 1;
            if let Ok(signature) = Signature::parse(sample.form, &flipped) {
                assert!(
                    !key.verifies(&signature, Signed::text(&signed)),
                    "{sample:?} at byte {at}"
                );
            }
        }
        assert!(tried >= 512, "{sample:?}: {tried} bits");
    }
}

#[test]
fn a_flipped_bit_in_the_signed_text_makes_its_signature_wrong() {
    for sample in one_of_each_kind() {
        let (signature, key) = (sample.signature(), key(sample.maker));
        for (at, flipped) in flipped(&fixture(sample.signed)) {
            assert!(
                !key.verifies(&signature, Signed::text(&flipped)),
                "{sample:?} at byte {at}"
            );
        }
    }
}

#[test]
fn a_flipped_bit_in_the_digest_of_a_file_makes_its_signature_wrong() {
    let hash = digest::sha256(&fixture("bundle"));
    let hash: Vec<u8> = (0..32)
        .map(|at| u8::from_str_radix(&hash.digest()[2 * at..2 * at + 2], 16).unwrap())
        .collect();
    let signature = named("bundle.cosign2.sig").signature();
    for (at, flipped) in flipped(&hash) {
        let digest = digest::of_sha256(&flipped.try_into().unwrap());
        let valid = key("cosign2").verifies(&signature, Signed::file(&digest));
        assert!(!valid, "byte {at}");
    }
}

#[test]
fn a_flipped_bit_in_a_key_gives_another_key_or_none() {
    let samples = ["cosign2", "openssl-p256", "openssl-ed25519", "minisign"].map(|maker| {
        let mut signed = SAMPLES.iter().filter(|sample| sample.signed == "catalogs");
        *signed.find(|sample| sample.maker == maker).unwrap()
    });
    for sample in samples {
        let (signature, signed, own) = (sample.signature(), fixture("catalogs"), key(sample.maker));
        let mut others = 0;
        for (at, flipped) in flipped(&fixture(&format!("{}.pub", sample.maker))) {
            let Ok(key) = Key::parse(&flipped) else {
                continue;
            };
            others += usize::from(key != own);
            let same = key.fingerprint() == own.fingerprint();
            let valid = key.verifies(&signature, Signed::text(&signed));
            assert!(same || !valid, "{sample:?}: byte {at} of the key");
        }
        // A point that is not on the curve is no key, so P-256 has few others.
        let least = if sample.maker.contains("ed25519") { 100 } else { 0 };
        assert!(others >= least, "{sample:?}: {others} other keys");
    }
}

#[test]
fn any_bytes_are_a_key_or_a_signature_or_a_problem() {
    use proptest::prelude::*;
    let starts = [
        "-----BEGIN PUBLIC KEY-----\n",
        "untrusted comment: a\n",
        "",
        "{\"mediaType\":\"",
    ];
    let bytes = proptest::collection::vec(any::<u8>(), 0..300);
    proptest!(|(start in proptest::sample::select(starts.to_vec()), bytes in bytes)| {
        let text = [start.as_bytes(), &bytes].concat();
        prop_assert!(Key::parse(&text).is_err());
        for form in Form::ALL {
            if let Ok(signature) = Signature::parse(form, &text) {
                prop_assert!(!key("cosign2").verifies(&signature, Signed::text(b"")));
            }
        }
    });
}

#[test]
fn parts_of_real_files_in_any_order_are_never_a_panic() {
    use proptest::prelude::*;
    let files: Vec<Vec<u8>> = SAMPLES
        .iter()
        .map(|sample| sample.bytes())
        .chain(crate::MAKERS.map(|maker| fixture(&format!("{maker}.pub"))))
        .collect();
    let piece = (proptest::sample::select(files), 0..400_usize, 0..400_usize);
    let piece = piece.prop_map(|(file, start, length)| {
        let start = start.min(file.len());
        file[start..file.len().min(start + length)].to_vec()
    });
    proptest!(|(pieces in proptest::collection::vec(piece, 0..4))| {
        let text = pieces.concat();
        let _ = Key::parse(&text);
        for form in Form::ALL {
            let _ = Signature::parse(form, &text);
        }
    });
}
