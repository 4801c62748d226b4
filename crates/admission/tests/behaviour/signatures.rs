//! Signatures of real programs, and files that are no signatures of a key.

use std::collections::BTreeSet;

use admission::{Form, LARGEST_SIGNATURE, Signature, SignatureProblem, Signed};
use basics::digest;
use serde_json::{Value, json};

use crate::{MAKERS, SAMPLES, fixture, fixture_path, key};

#[test]
fn the_table_has_each_signature_of_the_fixtures() {
    let folder = std::fs::read_dir(fixture_path("")).unwrap();
    let names = folder.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let signed = |name: &String| {
        let endings = Form::ALL.map(Form::ending);
        let known = ["bundle.", "catalogs.", "files."];
        endings.iter().any(|ending| name.ends_with(ending))
            && known.iter().any(|start| name.starts_with(start))
    };
    let there: BTreeSet<_> = names.filter(signed).collect();
    let listed: BTreeSet<_> = SAMPLES.iter().map(|sample| sample.file.to_owned()).collect();
    assert_eq!(there, listed);
}

#[test]
fn each_signature_is_valid_with_its_own_key_over_its_own_bytes_only() {
    for sample in SAMPLES {
        let signature = sample.signature();
        // A key that hashes the bytes itself needs them all.
        let can_sign_files = !["openssl-ed25519", "minisign"].contains(&sample.maker);
        for signed in ["bundle", "catalogs", "files"] {
            let bytes = fixture(signed);
            let (text, file) = (Signed::text(&bytes), Signed::file(&digest::sha256(&bytes)));
            for maker in MAKERS {
                let (key, right) = (key(maker), sample.signed == signed && sample.maker == maker);
                let told = format!("{sample:?} by {maker} over {signed}");
                assert_eq!(key.verifies(&signature, text), right, "{told}");
                assert_eq!(key.verifies(&signature, file), right && can_sign_files, "{told}");
            }
        }
    }
}

#[test]
fn a_file_hash_of_another_algorithm_is_never_signed() {
    let signature = Signature::parse(Form::Plain, &fixture("bundle.cosign2.sig")).unwrap();
    let sha512 = digest::sha512(&fixture("bundle"));
    assert!(!key("cosign2").verifies(&signature, Signed::file(&sha512)));
}

#[test]
fn a_sidecar_cut_at_any_byte_is_refused() {
    for sample in SAMPLES {
        let bytes = sample.bytes();
        let signed = fixture(sample.signed);
        for end in 0..bytes.len() {
            let Ok(signature) = Signature::parse(sample.form, &bytes[..end]) else {
                continue;
            };
            // A last line end is no part of a signature.
            if bytes[end..].iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            assert!(
                !key(sample.maker).verifies(&signature, Signed::text(&signed)),
                "{sample:?} cut after {end} bytes"
            );
        }
    }
}

fn problem(form: Form, bytes: &[u8]) -> SignatureProblem {
    Signature::parse(form, bytes).unwrap_err()
}

#[test]
fn other_files_are_refused_with_the_remedy() {
    use SignatureProblem::{Broken, Empty, Keyless, Legacy, OldBundle, Statement, TooLarge};
    for form in Form::ALL {
        let mut large = vec![b'a'; usize::try_from(LARGEST_SIGNATURE).unwrap()];
        assert_eq!(problem(form, &large), Broken(form));
        large.push(b'a');
        assert_eq!(problem(form, &large), TooLarge);
        assert_eq!(problem(form, b""), Empty);
        assert_eq!(problem(form, b" \n"), Empty);
        assert_eq!(problem(form, b"\xff"), Broken(form));
    }
    let table = [
        (Form::Sigstore, fixture("old-bundle.sigstore.json"), OldBundle),
        (Form::Sigstore, fixture("statement.sigstore.json"), Statement),
        (
            Form::Sigstore,
            fixture("catalogs.cosign2.sig"),
            Broken(Form::Sigstore),
        ),
        (Form::Minisign, fixture("legacy.minisig"), Legacy),
        (Form::Minisign, fixture("minisign.pub"), Broken(Form::Minisign)),
        (
            Form::Plain,
            fixture("catalogs.cosign2.sigstore.json"),
            Broken(Form::Plain),
        ),
        (
            Form::Plain,
            fixture("catalogs.minisign.minisig"),
            Broken(Form::Plain),
        ),
        (Form::Plain, fixture("rsa.pub"), Broken(Form::Plain)),
        (Form::Plain, vec![0x30; 256], Broken(Form::Plain)),
        // A Sigstore bundle without a key, as signatures by a certificate are.
        (
            Form::Sigstore,
            changed(|bundle| bundle["verificationMaterial"] = json!({"certificate": {"rawBytes": "AA=="}})),
            Keyless,
        ),
        (
            Form::Sigstore,
            changed(|bundle| bundle["messageSignature"]["messageDigest"]["digest"] = json!("AA==")),
            Broken(Form::Sigstore),
        ),
        (
            Form::Sigstore,
            changed(|bundle| bundle["messageSignature"]["signature"] = json!("AA==")),
            Broken(Form::Sigstore),
        ),
        (
            Form::Sigstore,
            changed(|bundle| drop(bundle.as_object_mut().unwrap().remove("messageSignature"))),
            Broken(Form::Sigstore),
        ),
    ];
    for (form, bytes, expected) in table {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        assert_eq!(problem(form, &bytes), expected, "{text}");
    }
    let unknown = changed(|bundle| bundle["mediaType"] = json!("application/x\u{1b}"));
    let unknown = problem(Form::Sigstore, &unknown).to_string();
    assert!(unknown.contains("application/x\\u{1b}"), "{unknown}");
}

/// Returns a Sigstore bundle of the fixtures after a change.
fn changed(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut bundle = serde_json::from_slice(&fixture("catalogs.cosign3.sigstore.json")).unwrap();
    change(&mut bundle);
    serde_json::to_vec(&bundle).unwrap()
}

#[test]
fn the_media_types_of_all_versions_with_the_same_fields_are_read() {
    for media_type in [
        "application/vnd.dev.sigstore.bundle.v0.3+json",
        "application/vnd.dev.sigstore.bundle+json;version=0.3",
        "application/vnd.dev.sigstore.bundle+json;version=0.2",
        "application/vnd.dev.sigstore.bundle+json;version=0.1",
    ] {
        let bytes = changed(|bundle| {
            bundle["mediaType"] = json!(media_type);
            bundle["verificationMaterial"]["tlogEntries"] = json!([{"logIndex": "1"}]);
            bundle["verificationMaterial"]["publicKey"] = json!({});
        });
        let signature = Signature::parse(Form::Sigstore, &bytes).unwrap();
        assert!(
            key("cosign3").verifies(&signature, Signed::text(&fixture("catalogs"))),
            "{media_type}"
        );
    }
}

#[test]
fn a_digest_or_key_that_a_signature_names_is_no_proof() {
    let signed = fixture("catalogs");
    let names_other = changed(|bundle| {
        bundle["messageSignature"]["messageDigest"]["digest"] =
            json!("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
    });
    let signature = Signature::parse(Form::Sigstore, &names_other).unwrap();
    assert!(!key("cosign3").verifies(&signature, Signed::text(&signed)));

    // The digest of another algorithm says nothing about the sha256.
    let names_sha512 = changed(|bundle| {
        bundle["messageSignature"]["messageDigest"] = json!({"algorithm": "SHA2_512", "digest": "AA=="});
    });
    let by_sha512 = Signature::parse(Form::Sigstore, &names_sha512).unwrap();
    assert!(key("cosign3").verifies(&by_sha512, Signed::text(&signed)));

    let zeros = "sha256:0000000000000000000000000000000000000000000000000000000000000000";
    assert!(!key("cosign3").verifies(&signature, Signed::file(&zeros.parse().unwrap())));

    let names_other = changed(|bundle| {
        bundle["verificationMaterial"]["publicKey"]["hint"] =
            json!("B7jcCuRF0dMdfImI+6wv6M2l5Pm8IV6oChRlN42Y+T8=");
    });
    let signature = Signature::parse(Form::Sigstore, &names_other).unwrap();
    assert!(key("cosign3").verifies(&signature, Signed::text(&signed)));
    assert!(!key("cosign2").verifies(&signature, Signed::text(&signed)));
}
