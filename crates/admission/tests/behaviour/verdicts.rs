//! Tables of verdicts on a bundle.

use admission::{
    Admission, Bytes, Form, Judgement, Keys, LARGEST_LIST, LARGEST_SIGNATURE, MOST_SIGNATURES, Policy, Proof,
    Question, Reach, Reason, Refusal, Revocations, SignatureProblem, SignedList, judge,
};
use oci_spec::image::Digest;
use std::sync::Arc;

use crate::{
    MAKERS, SAMPLES, Sample, altered, bundle, catalog, fixture, keys, named, no_revocations, other, proof,
};

/// A question about the bundle of the fixtures, with the usual answers to all other points.
struct Asked {
    policy: Policy,
    keys: Keys,
    revocations: Revocations,
    proofs: Vec<Proof>,
    catalog: Digest,
    file: Option<Digest>,
    folder: bool,
}

impl Asked {
    fn new(proofs: Vec<Proof>) -> Self {
        Self {
            policy: Policy::Require,
            keys: keys(&MAKERS),
            revocations: no_revocations(),
            proofs,
            catalog: catalog(),
            file: None,
            folder: false,
        }
    }

    fn hashed(self, file: Digest) -> Self {
        Self {
            file: Some(file),
            ..self
        }
    }

    fn if_present(self) -> Self {
        Self {
            policy: Policy::IfPresent,
            ..self
        }
    }

    fn folder(self) -> Self {
        Self { folder: true, ..self }
    }

    fn revoked(mut self, text: &str) -> Self {
        self.revocations.add("list", text.as_bytes());
        self
    }

    fn catalog(self, catalog: Digest) -> Self {
        Self { catalog, ..self }
    }

    fn keys(self, keys: Keys) -> Self {
        Self { keys, ..self }
    }

    fn judge(&self) -> Judgement {
        judge(&Question {
            policy: self.policy,
            keys: &self.keys,
            revocations: &self.revocations,
            proofs: &self.proofs,
            catalog: &self.catalog,
            bytes: match &self.file {
                _ if self.folder => Bytes::Folder,
                Some(file) => Bytes::Hashed(file),
                None => Bytes::Unhashed,
            },
        })
    }

    fn refusal(&self) -> Refusal {
        match self.judge() {
            Judgement::Refused(refusal) => refusal,
            other => panic!("not refused: {other:?}"),
        }
    }

    /// Returns the reason of the only flaw.
    fn reason(&self) -> Reason {
        match self.refusal() {
            Refusal::NoneValid(flaws) => match &flaws[..] {
                [flaw] => flaw.reason.clone(),
                flaws => panic!("not one flaw: {flaws:?}"),
            },
            other => panic!("not by a flaw: {other}"),
        }
    }

    fn admission(&self) -> Admission {
        match self.judge() {
            Judgement::Admitted(admission) => admission,
            other => panic!("not admitted: {other:?}"),
        }
    }

    fn signers(&self) -> Vec<String> {
        self.admission()
            .signers
            .into_iter()
            .map(|signer| signer.key)
            .collect()
    }
}

fn beside(file: &str) -> Asked {
    Asked::new(vec![proof(named(file))])
}

/// Makes the proof lie in a folder for all bundles.
fn for_all(file: &str) -> Proof {
    let sample = named(file);
    let list = Arc::new(SignedList::new(sample.signed, fixture(sample.signed)));
    Proof::new(file, sample.form, sample.bytes(), Some(list), Reach::All)
}

const UNSIGNED: Judgement = Judgement::Unsigned { remarks: Vec::new() };

#[test]
fn each_signature_of_a_real_program_admits_its_bundle() {
    for sample in SAMPLES {
        let asked = Asked::new(vec![proof(sample)]);
        match sample.signed {
            "catalogs" => assert_eq!(asked.signers(), [sample.maker], "{sample:?}"),
            "bundle" if ["minisign", "openssl-ed25519"].contains(&sample.maker) => {
                assert_eq!(asked.hashed(bundle()).reason(), Reason::ListsOnly, "{sample:?}");
                continue;
            }
            _ => assert_eq!(asked.judge(), Judgement::NeedsFileDigest, "{sample:?}"),
        }
        let asked = asked.hashed(bundle());
        let admission = asked.admission();
        assert_eq!(admission.catalog, catalog());
        assert_eq!(admission.remarks, []);
        assert_eq!(admission.signers[0].key, sample.maker);
        assert_eq!(
            admission.signers[0].fingerprint,
            *crate::key(sample.maker).fingerprint()
        );
    }
}

#[test]
fn a_bundle_without_a_proof_is_unsigned() {
    assert_eq!(Asked::new(Vec::new()).judge(), UNSIGNED);
    assert_eq!(Asked::new(Vec::new()).if_present().judge(), UNSIGNED);
    assert_eq!(Asked::new(Vec::new()).folder().judge(), UNSIGNED);
    let without_keys = || Asked::new(Vec::new()).keys(Keys::default());
    assert_eq!(without_keys().if_present().judge(), UNSIGNED);
    assert!(matches!(without_keys().refusal(), Refusal::NoKeys(why) if why.contains("place a public key")));
    let unusable = || Keys::unusable("the group can write /etc/airgapd".to_owned());
    let refusal = Asked::new(Vec::new()).keys(unusable()).refusal();
    assert!(refusal.to_string().contains("the group can write"), "{refusal}");
    assert!(refusal.is_of_the_node());
    assert_eq!(
        Asked::new(Vec::new()).keys(unusable()).if_present().judge(),
        UNSIGNED
    );
}

#[test]
fn a_proof_that_does_not_count_refuses_the_bundle_with_the_reason() {
    let list = "catalogs.cosign2.sig";
    let flip = |bytes: &mut Vec<u8>| bytes[40] ^= 1;
    let cut = |bytes: &mut Vec<u8>| bytes.truncate(50);
    let trusted = |makers: &[&str]| keys(makers);
    let large_list = |text: &mut Vec<u8>| text.resize(usize::try_from(LARGEST_LIST).unwrap() + 1, b'\n');
    let large = |bytes: &mut Vec<u8>| bytes.resize(usize::try_from(LARGEST_SIGNATURE).unwrap() + 1, b'\n');
    let of = |file: &str, signature: fn(&mut Vec<u8>), list: fn(&mut Vec<u8>)| {
        Asked::new(vec![altered(named(file), signature, list)])
    };
    let swapped = |file: &'static str, signed: &str| {
        let sample = Sample {
            signed: named(signed).signed,
            ..named(file)
        };
        Asked::new(vec![proof(sample)])
    };
    let none: fn(&mut Vec<u8>) = |_| {};
    let table = [
        (
            "a flipped bit in the signature",
            of(list, flip, none),
            "no trusted key makes it valid",
        ),
        (
            "a flipped bit in the list",
            of(list, none, flip),
            "no trusted key makes it valid",
        ),
        (
            "a flipped bit in a list whose signature names its digest",
            of("catalogs.cosign3.sigstore.json", none, flip),
            "it was made for other bytes",
        ),
        (
            "another key",
            beside(list).keys(trusted(&["cosign3", "openssl-p256"])),
            "no trusted key makes it valid",
        ),
        (
            "another key, which a Sigstore bundle names",
            beside("catalogs.cosign2.sigstore.json").keys(trusted(&["cosign3"])),
            "which is not trusted",
        ),
        (
            "a flipped bit in a list that a trusted key of minisign signed",
            of("catalogs.minisign.minisig", none, flip),
            "no trusted key makes it valid",
        ),
        (
            "another key, which minisign names",
            beside("catalogs.minisign.minisig").keys(trusted(&["cosign3"])),
            "which is not trusted",
        ),
        (
            "an Ed25519 key as a key of minisign",
            beside("catalogs.openssl-ed25519.sig").keys(trusted(&["minisign"])),
            "no trusted key makes it valid",
        ),
        (
            "no key",
            beside(list).if_present().keys(Keys::default()),
            "no trusted key makes it valid",
        ),
        (
            "a signature over another list",
            swapped(list, "files.cosign2.sig"),
            "no trusted key makes it valid",
        ),
        (
            "a signature over another file",
            beside("bundle.cosign2.sig").hashed(other()),
            "no trusted key makes it valid",
        ),
        (
            "a signature over another file, which it names",
            beside("bundle.cosign3.sigstore.json").hashed(other()),
            "it was made for other bytes",
        ),
        (
            "a list's signature over the file",
            swapped(list, "bundle.cosign2.sig").hashed(bundle()),
            "no trusted key",
        ),
        (
            "a truncated sidecar",
            of(list, cut, none),
            "no whole signature of the form .sig",
        ),
        ("an empty sidecar", of(list, Vec::clear, none), "it is empty"),
        (
            "a large sidecar",
            of(list, large, none),
            "larger than 65536 bytes",
        ),
        (
            "a large list",
            of(list, none, large_list),
            "the list catalogs cannot be used: it is larger than 4194304 bytes",
        ),
        (
            "an unlisted catalog",
            beside(list).catalog(other()),
            "lacks the content sha256:",
        ),
        (
            "an unlisted file",
            beside("files.cosign2.sig").hashed(other()),
            "lacks the sum sha256:",
        ),
        (
            "the hash of a file as the digest of a catalog",
            beside("files.cosign2.sig").catalog(bundle()).hashed(other()),
            "lacks the sum sha256:",
        ),
        (
            "the digest of a catalog as the hash of a file",
            beside(list).catalog(other()).hashed(catalog()),
            "lacks the content sha256:",
        ),
        (
            "a list of files for a folder",
            beside("files.cosign2.sig").folder(),
            "the bundle is a folder",
        ),
        (
            "a signature over a folder",
            beside("bundle.cosign2.sig").folder(),
            "the bundle is a folder",
        ),
        (
            "minisign over a bundle",
            beside("bundle.minisign.minisig"),
            "needs a P-256 key",
        ),
        (
            "Ed25519 over a bundle",
            beside("bundle.openssl-ed25519.sig"),
            "needs a P-256 key",
        ),
        (
            "a signature over a bundle without a key that can make it",
            beside("bundle.cosign2.sig").keys(trusted(&["minisign"])),
            "no trusted key makes it valid",
        ),
    ];
    for (fault, asked, reason) in table {
        let asked = asked.if_present();
        let refusal = asked.refusal();
        let (text, file) = (refusal.to_string(), asked.proofs[0].name());
        assert!(text.contains(reason) && text.contains(file), "{fault}: {text}");
        assert!(!refusal.is_of_the_node(), "{fault}");
        if !asked.keys.usable().is_empty() {
            let required = Asked {
                policy: Policy::Require,
                ..asked
            };
            assert_eq!(required.refusal(), refusal, "{fault}");
        }
    }
}

#[test]
fn a_file_that_cannot_be_read_is_a_proof_that_does_not_count() {
    let sample = named("catalogs.cosign2.sig");
    let list = Arc::new(SignedList::new("catalogs", fixture("catalogs")));
    let unread = Proof::unreadable(
        "a.sig",
        sample.form,
        "permission denied".to_owned(),
        Some(list),
        Reach::Bundle,
    );
    assert_eq!(
        Asked::new(vec![unread]).reason(),
        Reason::Signature(SignatureProblem::Unreadable("permission denied".to_owned()))
    );
    let unread = Arc::new(SignedList::unreadable("a.digest", "it is a link".to_owned()));
    let unread = Proof::new(
        "a.digest.sig",
        sample.form,
        sample.bytes(),
        Some(unread),
        Reach::Bundle,
    );
    let reason = Asked::new(vec![unread]).reason().to_string();
    assert!(
        reason.contains("a.digest cannot be used: it is a link"),
        "{reason}"
    );
}

#[test]
fn a_valid_proof_admits_the_bundle_beside_wrong_ones() {
    let wrong = || altered(named("catalogs.cosign2.sig"), |bytes| bytes[40] ^= 1, |_| {});
    let admission = Asked::new(vec![wrong(), proof(named("catalogs.cosign3.sigstore.json"))]).admission();
    assert_eq!(admission.signers.len(), 1);
    assert_eq!(
        (admission.signers[0].key.as_str(), admission.signers[0].proof),
        ("cosign3", 1)
    );
    assert_eq!(admission.remarks.len(), 1);
    assert_eq!(admission.remarks[0].proof.raw(), "catalogs.cosign2.sig");
}

#[test]
fn all_valid_keys_are_shown_once_in_their_order() {
    let files = [
        "catalogs.minisign.minisig",
        "catalogs.openssl-p256.sig",
        "catalogs.cosign2.sig",
        "catalogs.cosign2.sigstore.json",
        "files.cosign3.sigstore.json",
    ];
    let asked = Asked::new(files.map(|file| proof(named(file))).into());
    assert_eq!(asked.signers(), ["cosign2", "openssl-p256", "minisign"]);
    assert_eq!(asked.admission().signers[0].proof, 2);
    let hashed = asked.hashed(bundle());
    assert_eq!(
        hashed.signers(),
        ["cosign2", "cosign3", "openssl-p256", "minisign"]
    );
}

#[test]
fn a_list_of_catalogs_needs_no_pass_over_the_file() {
    let proofs = [
        "bundle.cosign2.sig",
        "files.cosign2.sig",
        "catalogs.cosign3.sigstore.json",
    ];
    let asked = Asked::new(proofs.map(|file| proof(named(file))).into());
    assert_eq!(asked.signers(), ["cosign3"]);
    assert_eq!(asked.catalog(other()).judge(), Judgement::NeedsFileDigest);
}

#[test]
fn a_revoked_digest_is_refused_whichever_key_signed_it() {
    let (catalog_hex, file_hex) = (catalog().digest().to_owned(), bundle().digest().to_owned());
    let revoked_catalog = format!("# leaked\nsha256:{catalog_hex}\n");
    let with_header = format!("airgapd-catalogs 1\nsha256:{catalog_hex}\n");
    let revoked_file = format!("{file_hex}  shop.tar\n");
    let signed = |text: &str| beside("catalogs.cosign2.sig").revoked(text);

    for text in [&revoked_catalog, &with_header] {
        for asked in [
            signed(text),
            Asked::new(Vec::new()).if_present().revoked(text),
            signed(text).folder(),
        ] {
            let refusal = asked.refusal();
            assert!(
                matches!(&refusal, Refusal::Revoked { digest, list } if *digest == catalog() && list.raw() == "list"),
                "{refusal}"
            );
        }
    }
    // A revoked file is known after a pass only.
    for asked in [
        signed(&revoked_file),
        Asked::new(Vec::new()).if_present().revoked(&revoked_file),
    ] {
        assert_eq!(asked.judge(), Judgement::NeedsFileDigest);
        let refusal = asked.hashed(bundle()).refusal();
        assert!(matches!(refusal, Refusal::Revoked { digest, .. } if digest == bundle()));
    }
    assert_eq!(signed(&revoked_file).hashed(other()).signers(), ["cosign2"]);
    assert_eq!(signed(&revoked_file).folder().signers(), ["cosign2"]);
    assert_eq!(
        Asked::new(Vec::new()).revoked(&revoked_file).judge(),
        UNSIGNED,
        "it waits without a pass"
    );
    // A digest of one kind revokes nothing of the other.
    let crossed = format!("sha256:{file_hex}\n{catalog_hex}  shop.tar\n");
    assert_eq!(signed(&crossed).hashed(bundle()).signers(), ["cosign2"]);
}

#[test]
fn revocations_that_cannot_be_read_refuse_every_bundle() {
    for asked in [
        beside("catalogs.cosign2.sig").revoked("sha256:0\n"),
        Asked::new(Vec::new())
            .if_present()
            .revoked("# fine\n")
            .revoked("no digest\n"),
    ] {
        let refusal = asked.refusal();
        assert!(
            refusal.is_of_the_node() && refusal.to_string().contains("list: its line 1"),
            "{refusal}"
        );
    }
    let mut asked = beside("catalogs.cosign2.sig");
    asked.revocations = Revocations::unusable("others can write it".to_owned());
    assert!(asked.refusal().to_string().contains("others can write it"));
}

#[test]
fn a_bundle_has_at_most_eight_signatures() {
    let many = |count: usize| Asked::new(vec![proof(named("catalogs.cosign2.sig")); count]);
    assert_eq!(many(MOST_SIGNATURES).signers(), ["cosign2"]);
    assert_eq!(many(MOST_SIGNATURES + 1).refusal(), Refusal::TooMany(9));
    let mut shared = many(MOST_SIGNATURES);
    shared
        .proofs
        .extend((0..20).map(|_| for_all("catalogs.cosign3.sigstore.json")));
    assert_eq!(shared.signers(), ["cosign2", "cosign3"]);
}

#[test]
fn a_proof_for_all_bundles_admits_and_never_refuses() {
    let list = || for_all("catalogs.cosign2.sig");
    assert_eq!(Asked::new(vec![list()]).signers(), ["cosign2"]);
    assert_eq!(Asked::new(vec![list()]).catalog(other()).judge(), UNSIGNED);
    assert_eq!(
        Asked::new(vec![list()]).catalog(other()).if_present().judge(),
        UNSIGNED
    );
    let files = for_all("files.cosign2.sig");
    assert_eq!(Asked::new(vec![files.clone()]).hashed(other()).judge(), UNSIGNED);
    assert_eq!(Asked::new(vec![files]).folder().judge(), UNSIGNED);
    let untrusted = Asked::new(vec![list()]).keys(keys(&["cosign3"])).judge();
    let Judgement::Unsigned { remarks } = untrusted else {
        panic!("{untrusted:?}");
    };
    assert_eq!(remarks[0].reason, Reason::NotValid);
}

/// Each verdict on random proofs, keys and revocations is that of a plain count: is there a proof
/// whose bytes are unchanged, by a trusted key, over this catalog or this file?
#[test]
fn a_bundle_is_admitted_if_and_only_if_a_trusted_key_speaks_of_it() {
    use proptest::prelude::*;
    use proptest::sample::{select, subsequence};
    let proofs = proptest::collection::vec((select(SAMPLES.to_vec()), any::<bool>()), 0..5);
    let revoked = select(vec![
        None,
        None,
        None,
        Some("catalog"),
        Some("file"),
        Some("others"),
    ]);
    let question = (
        proofs,
        subsequence(MAKERS.to_vec(), 1..=5),
        any::<[bool; 3]>(),
        revoked,
    );
    proptest!(ProptestConfig::with_cases(60), |((picked, makers, choices, revoked) in question)| {
        let [right_catalog, right_file, require] = choices;
        let spoils = |changed: bool, sample: Sample| altered(
            sample,
            |bytes| if changed && sample.signed == "bundle" { bytes.truncate(bytes.len() / 2) },
            |text| if changed { text.push(b'\n') },
        );
        let proofs = picked.iter().map(|(sample, changed)| spoils(*changed, *sample)).collect();
        let mut asked = Asked::new(proofs).keys(keys(&makers));
        if !right_catalog {
            asked = asked.catalog(other());
        }
        if !require {
            asked = asked.if_present();
        }
        let file = if right_file { bundle() } else { other() };
        asked = match revoked {
            Some("catalog") => asked.revoked(&format!("sha256:{}", catalog().digest())),
            Some("file") => asked.revoked(bundle().digest()),
            Some(_) => {
                let unrelated = basics::digest::sha256(b"unrelated");
                asked.revoked(&format!("{unrelated}\n{}", unrelated.digest()))
            }
            None => asked,
        };
        let speaks = |hashed: bool| picked.iter().any(|(sample, changed)| {
            let of_this = match sample.signed {
                "catalogs" => right_catalog,
                "files" => hashed && right_file,
                _ => hashed && right_file && !["minisign", "openssl-ed25519"].contains(&sample.maker),
            };
            !changed && makers.contains(&sample.maker) && of_this
        });
        let is_revoked = |hashed: bool| match revoked {
            Some("catalog") => right_catalog,
            Some("file") => hashed && right_file,
            _ => false,
        };
        let names_files = matches!(revoked, Some("file" | "others"));
        let first = asked.judge();
        match &first {
            Judgement::Admitted(admission) => {
                prop_assert!(speaks(false) && !is_revoked(false) && !names_files);
                prop_assert_eq!(&admission.catalog, &asked.catalog);
            }
            Judgement::Refused(Refusal::Revoked { .. }) => prop_assert!(is_revoked(false)),
            Judgement::Refused(_) => prop_assert!(!speaks(true)),
            Judgement::Unsigned { .. } => prop_assert!(picked.is_empty()),
            Judgement::NeedsFileDigest => {}
        }
        match asked.hashed(file).judge() {
            Judgement::Admitted(admission) => {
                prop_assert!(speaks(true) && !is_revoked(true));
                prop_assert!(admission.signers.iter().all(|signer| makers.contains(&signer.key.as_str())));
            }
            Judgement::Refused(Refusal::Revoked { .. }) => prop_assert!(is_revoked(true)),
            Judgement::Refused(_) => prop_assert!(!speaks(true) && !is_revoked(true) && !picked.is_empty()),
            Judgement::Unsigned { .. } => prop_assert!(picked.is_empty() && !is_revoked(true)),
            Judgement::NeedsFileDigest => prop_assert!(false, "a hashed file needs no pass"),
        }
    });
}

#[test]
fn messages_print_no_name_raw() {
    let mut bytes = named("catalogs.cosign2.sig").bytes();
    bytes[40] ^= 1;
    let list = Arc::new(SignedList::new("x\u{1b}[2J", fixture("catalogs")));
    let wrong = Proof::new("x\u{1b}[2J.sig", Form::Plain, bytes, Some(list), Reach::Bundle);
    let text = Asked::new(vec![wrong]).refusal().to_string();
    assert!(text.contains("x\\u{1b}[2J.sig: "), "{text}");
    let mut asked = beside("catalogs.cosign2.sig");
    asked.revocations.add("\u{1b}", b"x");
    let text = asked.refusal().to_string();
    assert!(!text.contains('\u{1b}'), "{text}");
}
