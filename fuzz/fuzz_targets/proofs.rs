//! Any bytes for the readers of keys, signatures, lists and revoked digests, and for the verdict on
//! a bundle. A fuzzer knows no private key, so it signs nothing: a bundle is admitted by the very
//! list that the fixtures' keys signed, or not at all.

#![no_main]

use std::sync::Arc;

use admission::{
    Bytes, Form, Judgement, Key, Keys, List, Policy, Proof, Question, Reach, Revocations, Signature,
    SignedList, TrustedKey, judge,
};
use airgapd_fuzz::assert_printable;
use basics::digest;
use libfuzzer_sys::fuzz_target;

/// The keys of the fixtures, one of each kind.
const KEYS: [(&str, &[u8]); 4] = [
    ("cosign2", include_bytes!("../../crates/admission/tests/fixtures/cosign2.pub")),
    ("cosign3", include_bytes!("../../crates/admission/tests/fixtures/cosign3.pub")),
    ("ed25519", include_bytes!("../../crates/admission/tests/fixtures/openssl-ed25519.pub")),
    ("minisign", include_bytes!("../../crates/admission/tests/fixtures/minisign.pub")),
];

/// The lists that these keys signed.
const CATALOGS: &[u8] = include_bytes!("../../crates/admission/tests/fixtures/catalogs");
const FILES: &[u8] = include_bytes!("../../crates/admission/tests/fixtures/files");

fuzz_target!(|data: &[u8]| {
    let Some((&reader, bytes)) = data.split_first() else {
        return;
    };
    match reader % 8 {
        0 => match Key::parse(bytes) {
            Ok(key) => assert_printable(&format!("{key:?} {}", key.fingerprint())),
            Err(problem) => assert_printable(&problem.to_string()),
        },
        1..=3 => match Signature::parse(Form::ALL[usize::from(reader % 8) - 1], bytes) {
            Ok(signature) => drop(signature.clone()),
            Err(problem) => assert_printable(&problem.to_string()),
        },
        4 => match List::parse(bytes) {
            Ok(List::Catalogs(hashes) | List::Files(hashes)) => assert!(!hashes.is_empty()),
            Err(problem) => assert_printable(&problem.to_string()),
        },
        5 => {
            let mut revocations = Revocations::default();
            revocations.add("list", bytes);
            revocations.problem().into_iter().for_each(assert_printable);
        }
        _ => weigh(reader, bytes),
    }
});

/// Judges a bundle by a signature and a list, which the first byte zero separates.
fn weigh(reader: u8, bytes: &[u8]) {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let (signature, text) = (&bytes[..end], bytes.get(end + 1..).unwrap_or_default());
    let keys = KEYS.map(|(name, text)| TrustedKey {
        name: name.to_owned(),
        key: Key::parse(text).expect("a key of the fixtures"),
    });
    let keys = Keys::new(keys.into(), Vec::new());
    let form = Form::ALL[usize::from(reader / 8) % 3];
    let list = Arc::new(SignedList::new("list", text.to_vec()));
    let proofs = [Proof::new("list.sig", form, signature.to_vec(), Some(list), Reach::Bundle)];
    let file = digest::sha256(b"bundle\n");
    let judgement = judge(&Question {
        policy: Policy::Require,
        keys: &keys,
        revocations: &Revocations::default(),
        proofs: &proofs,
        catalog: &digest::sha256(b"catalog\n"),
        bytes: Bytes::Hashed(&file),
    });
    match judgement {
        Judgement::Admitted(_) => assert!([CATALOGS, FILES].contains(&text), "admitted by another list"),
        Judgement::Refused(refusal) => assert_printable(&refusal.to_string()),
        other => panic!("a proof beside a bundle admits it or refuses it, and not {other:?}"),
    }
}
