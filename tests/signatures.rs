//! `signatures: require`: airgapd imports only bundles that a trusted key has signed.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bundle::fixtures::digest_of;
use fake_containerd::GoImporter;
use oci_spec::image::Digest;
use p256::ecdsa::SigningKey;
use p256::ecdsa::signature::Signer as _;
use p256::pkcs8::{EncodePublicKey as _, LineEnding};
use tempfile::TempDir;

use crate::support::bundles::{self, image, marker, text};
use crate::support::node::bundle;
use crate::support::tools::tool;
use crate::support::{Node, Target, on_each_containerd, on_the_fake, unique};

/// Calls that change something in containerd.
const WRITES: [&str; 7] = [
    "Content.Write",
    "Content.Update",
    "Content.Delete",
    "Images.Create",
    "Images.Update",
    "Images.Delete",
    "Leases.Create",
];

/// A node with a folder of trusted keys.
pub struct Guarded {
    pub node: Node,
    /// A folder that only root can change. It has `keys.d` and `revoked.d`.
    roots: TempDir,
}

impl Guarded {
    /// Returns a node that trusts the key of seed 1 for every name.
    pub fn on(target: &Target, policy: &str) -> Guarded {
        let node = Node::on(target);
        let guarded = Guarded {
            node,
            roots: tempfile::Builder::new().tempdir_in(safe_folder()).unwrap(),
        };
        fs::set_permissions(guarded.roots.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(guarded.keys()).unwrap();
        fs::create_dir(guarded.revoked()).unwrap();
        guarded.trust("release", 1, "*");
        let keys = guarded.keys();
        guarded
            .node
            .configure_also(&format!("signatures: {policy}\ntrustedKeys: {}", keys.display()));
        guarded
    }

    pub fn keys(&self) -> PathBuf {
        self.roots.path().join("keys.d")
    }

    pub fn revoked(&self) -> PathBuf {
        self.roots.path().join("revoked.d")
    }

    pub fn trust(&self, name: &str, seed: u8, names: &str) {
        fs::write(self.keys().join(format!("{name}.allow")), names).unwrap();
        fs::write(self.keys().join(format!("{name}.pub")), public_key(seed)).unwrap();
    }

    /// Returns the text of a list with the catalog of a bundle.
    pub fn list(&self, bundle: &Path) -> String {
        let document = self.node.airgapd(["inspect", "-o", "json", &text(bundle)]).json();
        let digest = document["digest"].as_str().unwrap();
        format!("airgapd-catalogs 1\n{digest}  {}\n", bundle.display())
    }

    /// Writes the list of a bundle's catalog beside a path, with a signature of the key of a seed.
    pub fn sign(&self, bundle: &Path, beside: &Path, seed: u8) {
        let list = self.list(bundle);
        put(beside, ".digest.sig", signature(seed, list.as_bytes()));
        put(beside, ".digest", list);
    }

    /// Makes the daemon list its folder. It looks at keys every half minute otherwise.
    pub fn nudge(&self) {
        fs::write(self.node.images().join(".touch"), "").unwrap();
    }
}

/// Returns a folder of which only root can change a part.
fn safe_folder() -> PathBuf {
    let is_roots = |folder: &Path| {
        let is_safe = |part: &Path| {
            let metadata = fs::symlink_metadata(part);
            metadata.is_ok_and(|metadata| {
                metadata.is_dir() && metadata.uid() == 0 && metadata.mode() & 0o022 == 0
            })
        };
        folder.ancestors().all(is_safe)
    };
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let candidates = [
        Some(env!("CARGO_TARGET_TMPDIR").into()),
        home,
        Some("/run".into()),
    ];
    let safe = candidates
        .into_iter()
        .flatten()
        .find(|folder: &PathBuf| is_roots(folder));
    safe.expect("the target folder, the home folder or /run can be written by root alone")
}

fn private_key(seed: u8) -> SigningKey {
    SigningKey::from_slice(&[seed; 32]).unwrap()
}

fn public_key(seed: u8) -> String {
    let key = *private_key(seed).verifying_key();
    key.to_public_key_pem(LineEnding::LF).unwrap()
}

/// Returns a signature as cosign writes it.
pub fn signature(seed: u8, text: &[u8]) -> String {
    let signature: p256::ecdsa::Signature = private_key(seed).sign(text);
    STANDARD.encode(signature.to_der())
}

/// Returns a signature in a Sigstore bundle.
fn sigstore(seed: u8, text: &[u8]) -> String {
    let signature = signature(seed, text);
    let media_type = "application/vnd.dev.sigstore.bundle.v0.3+json";
    format!(
        r#"{{"mediaType": "{media_type}", "verificationMaterial": {{"publicKey": {{"hint": ""}}}},
        "messageSignature": {{"signature": "{signature}"}}}}"#
    )
}

/// Writes a file whose name is a path with an ending.
pub fn put(path: &Path, ending: &str, text: impl AsRef<[u8]>) {
    fs::write(with(path, ending), text).unwrap();
}

pub fn with(path: &Path, ending: &str) -> PathBuf {
    format!("{}{ending}", path.display()).into()
}

/// Returns a line of sha256sum about a file.
pub fn sum(path: &Path) -> String {
    let digest = digest_of(&fs::read(path).unwrap()).to_string();
    format!("{}  any.tar\n", digest.strip_prefix("sha256:").unwrap())
}

/// Changes one bit in the middle of a file.
fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

/// Returns the number of calls that have changed something.
fn writes(target: &Target) -> u64 {
    let fake = target.as_fake().expect("the stand-in counts");
    WRITES.iter().map(|rpc| fake.calls(rpc)).sum()
}

fn every_kind_of_proof_of_a_trusted_key_admits_a_bundle(target: &Target) {
    let guarded = Guarded::on(target, "require");
    let node = &guarded.node;
    type Prove = fn(&Guarded, &Path);
    let kinds: [(&str, Prove); 5] = [
        ("catalog", |guarded, file| guarded.sign(file, file, 1)),
        ("checksum", |_, file| {
            let sum = sum(file);
            put(file, ".sha256.sig", signature(1, sum.as_bytes()));
            put(file, ".sha256", sum.replace("any.tar", "checksum.tar"));
            put(
                file,
                ".sha256.sig",
                signature(1, &fs::read(with(file, ".sha256")).unwrap()),
            );
        }),
        ("file", |_, file| {
            put(file, ".sig", signature(1, &fs::read(file).unwrap()));
        }),
        ("sums", |_, file| {
            let sums = file.with_file_name("SHA256SUMS");
            fs::write(&sums, sum(file)).unwrap();
            put(&sums, ".sig", signature(1, sum(file).as_bytes()));
        }),
        ("several", |guarded, file| {
            guarded.sign(file, file, 1);
            put(file, ".sig", signature(9, b"of another key"));
        }),
    ];
    for (kind, prove) in kinds {
        let name = format!("registry.test/{kind}:1");
        let folder = node.path(kind);
        fs::create_dir(&folder).unwrap();
        let file = folder.join(format!("{kind}.tar"));
        bundles::write(&file, [image(&name)]);
        let before = writes(target);
        let error = node.import([&file]).exits(1).bundle()["error"].to_string();
        assert!(error.contains("there is no signature for it"), "{kind}: {error}");
        assert_eq!(writes(target), before, "{kind}");
        prove(&guarded, &file);
        node.import([&file]).exits(0);
        assert!(target.record(&name).is_some(), "{kind}");
    }
}

fn a_wrong_proof_refuses_a_bundle_before_anything_is_written(target: &Target) {
    type Spoil = fn(&Guarded, &Path);
    let table: [(&str, Spoil, i32, &str); 13] = [
        (
            "a bit of the signature",
            |_, file| {
                let signature = with(file, ".digest.sig");
                let mut der = STANDARD.decode(fs::read(&signature).unwrap()).unwrap();
                *der.last_mut().unwrap() ^= 1;
                fs::write(signature, STANDARD.encode(der)).unwrap();
            },
            5,
            "no trusted key makes it valid",
        ),
        (
            "a bit of the list",
            |_, file| flip(&with(file, ".digest")),
            5,
            "no trusted key",
        ),
        (
            "a bit of the bundle, whose file is signed",
            |_, file| {
                fs::remove_file(with(file, ".digest.sig")).unwrap();
                put(file, ".sig", signature(1, &fs::read(file).unwrap()));
                // The bit pads a document of the archive, so only the signature covers it.
                let mut bytes = fs::read(file).unwrap();
                let document = b"imageLayoutVersion";
                let at = bytes.windows(document.len()).position(|part| part == document);
                let padding = at.unwrap() / 512 * 512 + 511;
                bytes[padding] ^= 1;
                fs::write(file, bytes).unwrap();
            },
            5,
            "no trusted key makes it valid",
        ),
        (
            "a bit of the key",
            |guarded, _| flip(&guarded.keys().join("release.pub")),
            1,
            "there is no usable key",
        ),
        (
            "another key",
            |guarded, file| guarded.sign(file, file, 2),
            5,
            "no trusted key makes it valid",
        ),
        (
            "a signature over another list",
            |guarded, file| {
                let (other, _) = marker(guarded.node.path("other.tar"));
                guarded.sign(&other, file, 1);
            },
            5,
            "lacks the content",
        ),
        (
            "another bundle under the name",
            |_, file| drop(bundles::write(file, [image("registry.test/swapped:1")])),
            5,
            "lacks the content",
        ),
        (
            "a truncated signature",
            |_, file| {
                let signature = with(file, ".digest.sig");
                let text = fs::read(&signature).unwrap();
                fs::write(signature, &text[..text.len() / 2]).unwrap();
            },
            5,
            ".digest.sig",
        ),
        (
            "an empty signature",
            |_, file| put(file, ".digest.sig", ""),
            5,
            ".digest.sig",
        ),
        (
            "a revoked catalog",
            |guarded, file| fs::write(guarded.revoked().join("2026"), guarded.list(file)).unwrap(),
            5,
            "is revoked by 2026",
        ),
        (
            "a revoked file",
            |guarded, file| fs::write(guarded.revoked().join("2026"), sum(file)).unwrap(),
            5,
            "is revoked by 2026",
        ),
        (
            "revocations that cannot be read",
            |guarded, _| fs::write(guarded.revoked().join("2026"), "nonsense\n").unwrap(),
            1,
            "the revoked digests cannot be read",
        ),
        (
            "a folder of keys that others can write",
            |guarded, _| {
                fs::set_permissions(guarded.keys(), fs::Permissions::from_mode(0o777)).unwrap();
            },
            1,
            "there is no usable key",
        ),
    ];
    for policy in ["require", "if-present"] {
        for (case, spoil, exit, reason) in &table {
            let guarded = Guarded::on(target, policy);
            let node = &guarded.node;
            let (file, name) = marker(node.path("judged.tar"));
            guarded.sign(&file, &file, 1);
            spoil(&guarded, &file);
            let before = writes(target);
            let is_about_keys = reason.contains("no usable key");
            let (exit, reason) = match policy == "if-present" && is_about_keys {
                true => (5, "no trusted key"),
                false => (*exit, *reason),
            };
            let error = node.import([&file]).exits(exit).bundle()["error"].to_string();
            assert!(error.contains(reason), "{policy}, {case}: {error}");
            assert_eq!(writes(target), before, "{policy}, {case}");
            let daemon = node.start();
            for ending in ["", ".digest", ".digest.sig", ".sig"] {
                if let Ok(bytes) = fs::read(with(&file, ending)) {
                    put(
                        &node.images().join("judged.tar"),
                        &format!("{ending}.part"),
                        bytes,
                    );
                }
            }
            for ending in [".digest", ".digest.sig", ".sig", ""] {
                let placed = node.images().join("judged.tar");
                let _ = fs::rename(with(&placed, &format!("{ending}.part")), with(&placed, ending));
            }
            daemon.wait_for_line("judged.tar", reason);
            assert_eq!(writes(target), before, "{policy}, {case}");
            assert!(target.record(&name).is_none(), "{policy}, {case}");
            daemon.stop();
        }
    }
}

fn a_bundle_waits_for_its_signature_and_a_key_is_enough_for_a_refused_bundle(target: &Target) {
    let guarded = Guarded::on(target, "require");
    let node = &guarded.node;
    let (file, name) = marker(node.path("early.tar"));
    let (other, other_name) = marker(node.path("foreign.tar"));
    let daemon = node.start();
    let placed = node.drop_in(&file);
    daemon.wait_for_line("early.tar", "waiting: there is no signature for it");
    let states = || {
        let status = node.airgapd(["status", "-o", "json"]).json();
        let bundles = status["bundles"].as_array().unwrap().clone();
        bundles
            .iter()
            .map(|bundle| bundle["state"].to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(states(), ["\"awaiting-signature\""]);
    guarded.sign(&file, &placed, 1);
    daemon.wait_until("the signed image", || target.record(&name).is_some());

    guarded.sign(&other, &node.images().join("foreign.tar"), 2);
    node.drop_in(&other);
    daemon.wait_for_line("foreign.tar", "no trusted key makes it valid");
    assert!(target.record(&other_name).is_none());
    guarded.trust("partner", 2, "*");
    guarded.nudge();
    daemon.wait_until("the image of the new key", || {
        target.record(&other_name).is_some()
    });
    assert_eq!(
        daemon.count("waiting: there is no signature"),
        1,
        "{}",
        daemon.log()
    );
    daemon.finish(target);
}

fn names_out_of_the_scope_of_the_key_are_refused_and_the_others_land(target: &Target) {
    let guarded = Guarded::on(target, "require");
    guarded.trust("release", 1, "registry.test/shop/*");
    let node = &guarded.node;
    let file = node.path("mixed.tar");
    bundles::write(
        &file,
        [image("registry.test/shop/a:1"), image("registry.test/kube:1")],
    );
    guarded.sign(&file, &node.images().join("mixed.tar"), 1);
    let daemon = node.start();
    node.drop_in(&file);
    daemon.wait_for_line("mixed.tar", "may not give the name registry.test/kube:1");
    assert!(target.record("registry.test/shop/a:1").is_some());
    assert!(target.record("registry.test/kube:1").is_none());

    // A pattern for the key, or a signature of a key for this name, brings the image.
    guarded.trust("release", 1, "registry.test/shop/*\nregistry.test/kube*\n");
    guarded.nudge();
    daemon.wait_until("the image of the new pattern", || {
        target.record("registry.test/kube:1").is_some()
    });
    guarded.trust("other", 2, "registry.test/other*");
    let more = node.path("more.tar");
    bundles::write(
        &more,
        [image("registry.test/shop/b:1"), image("registry.test/other:1")],
    );
    let placed = node.images().join("more.tar");
    guarded.sign(&more, &placed, 1);
    node.drop_in(&more);
    daemon.wait_for_line("more.tar", "may not give the name registry.test/other:1");
    let list = fs::read(with(&placed, ".digest")).unwrap();
    put(&placed, ".digest.sigstore.json", sigstore(2, &list));
    daemon.wait_until("the image of the second key", || {
        target.record("registry.test/other:1").is_some()
    });
    daemon.stop();

    guarded.trust("release", 1, "registry.test/shop/*");
    guarded.sign(&file, &file, 1);
    let report = node.import([&file]).exits(1).bundle();
    assert_eq!(report["outcome"], "partial", "{report:#}");
}

fn a_flag_adds_proofs_and_no_keys(target: &Target) {
    let guarded = Guarded::on(target, "require");
    let node = &guarded.node;
    let (file, name) = marker(node.path("alone.tar"));
    let elsewhere = node.path("proofs");
    fs::create_dir(&elsewhere).unwrap();
    let list = elsewhere.join("release");
    guarded.sign(&file, &list, 2);
    let proof = |ending: &str| format!("--proof={}", with(&list, ending).display());
    let error = node.import([text(&file), proof(".digest.sig")]).exits(5).bundle();
    assert!(error["error"].to_string().contains("no trusted key"), "{error:#}");
    let error = node.import([text(&file), proof("")]).exits(1).bundle();
    assert!(error["error"].to_string().contains("is no proof"), "{error:#}");
    assert_eq!(writes(target), 0);

    guarded.sign(&file, &list, 1);
    node.import([text(&file), proof(".digest")]).exits(0);
    assert!(target.record(&name).is_some());
    put(&list, ".sig", signature(1, &fs::read(&file).unwrap()));
    node.import([text(&file), proof(".sig")]).exits(0);
}

/// The images of a bundle stay as they were when a rule comes that asks for a signature. When a
/// signature stops to count, they stay too, and the daemon does not restore them.
fn what_is_in_place_stays_when_the_rule_comes_and_when_the_key_goes(target: &Target) {
    let guarded = Guarded::on(target, "off");
    let node = &guarded.node;
    let (old, old_name) = marker(node.path("old.tar"));
    let (signed, signed_name) = marker(node.path("signed.tar"));
    node.import_and_stop(target, &old, 2);

    let config = fs::read_to_string(node.path("config.yaml")).unwrap();
    node.configure(&config.replace("signatures: off", "signatures: require"));
    guarded.sign(&signed, &node.images().join("signed.tar"), 1);
    let daemon = node.start();
    node.drop_in(&signed);
    daemon.wait_until("the signed image", || target.record(&signed_name).is_some());
    target.remove_record(&old_name);
    daemon.wait_until("the old image is restored", || target.record(&old_name).is_some());
    target.remove_record(&signed_name);
    daemon.wait_until("the signed image is restored", || {
        target.record(&signed_name).is_some()
    });

    guarded.trust("other", 2, "*");
    fs::remove_file(guarded.keys().join("release.pub")).unwrap();
    guarded.nudge();
    daemon.wait_for_line("signed.tar", "the daemon no longer restores them");
    assert!(target.is_pinned(&signed_name), "it stays in place");
    target.remove_record(&signed_name);
    target.remove_record(&old_name);
    daemon.wait_until("the old image is restored", || target.record(&old_name).is_some());
    assert!(target.record(&signed_name).is_none());

    fs::write(guarded.revoked().join("list"), guarded.list(&old)).unwrap();
    guarded.nudge();
    daemon.wait_for_line("old.tar", "is revoked by list");
    assert!(target.is_pinned(&old_name), "it stays in place");
    guarded.trust("release", 1, "*");
    guarded.nudge();
    daemon.wait_until("its key is back", || target.record(&signed_name).is_some());
    daemon.stop();
}

/// The evidence of its bundle's admission admits a receipt, also after the proofs are gone.
fn a_receipt_is_admitted_by_the_evidence_of_its_bundle_and_revoked_with_it(target: &Target) {
    let guarded = Guarded::on(target, "require");
    let node = &guarded.node;
    node.configure_also("afterImport: receipt");
    let (file, name) = marker(node.path("signed.tar"));
    let beside = node.images().join("signed.tar");
    guarded.sign(&file, &beside, 1);
    let daemon = node.start();
    node.drop_in(&file);
    daemon.wait_until("a receipt takes the place of the file", || !beside.exists());
    daemon.stop();
    for ending in [".digest", ".digest.sig"] {
        fs::remove_file(with(&beside, ending)).unwrap();
    }
    target.remove_record(&name);
    let daemon = node.start();
    daemon.wait_until("the image is restored", || {
        target.record(&name).is_some() && target.is_pinned(&name)
    });
    let shown = node.airgapd(["status", "-o", "json"]).json();
    assert_eq!(shown["bundles"][0]["signers"][0]["key"], "release", "{shown:#}");

    fs::write(guarded.revoked().join("list"), guarded.list(&file)).unwrap();
    guarded.nudge();
    daemon.wait_for_line("signed.tar", "is revoked by list");
    target.remove_record(&name);
    let (other, other_name) = marker(node.path("other.tar"));
    guarded.sign(&other, &node.images().join("other.tar"), 1);
    node.drop_in(&other);
    daemon.wait_until("a later bundle", || target.record(&other_name).is_some());
    assert!(
        target.record(&name).is_none(),
        "the daemon does not restore a revoked bundle"
    );
    daemon.stop();
    for receipt in ["signed.tar", "other.tar"] {
        node.airgapd(["release", receipt]).exits(0);
    }
    // A command keeps the evidence too.
    let (by_hand, by_hand_name) = marker(node.path("by-hand.tar"));
    guarded.sign(&by_hand, &by_hand, 1);
    node.import(["--keep", &text(&by_hand)]).exits(0);
    let daemon = node.start();
    target.remove_record(&by_hand_name);
    daemon.wait_until("the image is restored", || {
        target.record(&by_hand_name).is_some() && target.is_pinned(&by_hand_name)
    });
    daemon.stop();
    node.airgapd(["release", "by-hand.tar"]).exits(0);
}

/// No signature would admit the receipt of an image from before the rule.
fn a_bundle_from_before_the_rule_keeps_its_file(target: &Target) {
    let guarded = Guarded::on(target, "if-present");
    let node = &guarded.node;
    let (older, older_name) = marker(node.path("older.tar"));
    let daemon = node.start();
    let kept = node.drop_in(&older);
    daemon.wait_until("the older image", || target.record(&older_name).is_some());
    daemon.finish(target);
    let config = node.path("config.yaml");
    let settings = fs::read_to_string(&config)
        .unwrap()
        .replace("if-present", "require");
    fs::write(&config, settings + "afterImport: receipt\n").unwrap();
    let (file, _) = marker(node.path("signed.tar"));
    let beside = node.images().join("signed.tar");
    guarded.sign(&file, &beside, 1);
    let daemon = node.start();
    node.drop_in(&file);
    daemon.wait_until("a receipt takes the place of the signed file", || {
        !beside.exists()
    });
    node.airgapd(["wait", "--timeout", "20s"]).exits(0);
    assert!(kept.is_file());
    assert!(!node.state().join("receipts/older.tar").exists());
    assert_eq!(daemon.count("gets no receipt"), 0, "{}", daemon.log());
    daemon.stop();
    node.airgapd(["release", "signed.tar"]).exits(0);
}

/// The evidence of a receipt has the sum of the file that is gone. It outlives the ledger and the
/// records.
fn a_receipt_keeps_the_evidence_and_the_sum_of_its_bundle(target: &Target) {
    let guarded = Guarded::on(target, "require");
    let node = &guarded.node;
    node.configure_also("afterImport: receipt");
    let (file, name) = marker(node.path("signed.tar"));
    let beside = node.images().join("signed.tar");
    guarded.sign(&file, &beside, 1);
    let daemon = node.start();
    node.drop_in(&file);
    daemon.wait_until("a receipt takes the place of the file", || !beside.exists());
    daemon.stop();
    fs::remove_file(node.state().join("state.json")).unwrap();
    for record in target.names() {
        target.remove_record(&record);
    }
    // The command ends evidence that nothing needs.
    let (other, _) = marker(node.path("other.tar"));
    guarded.sign(&other, &other, 1);
    node.import([&text(&other)]).exits(0);
    let daemon = node.start();
    daemon.wait_until("the image is restored", || target.record(&name).is_some());

    fs::write(guarded.revoked().join("list"), sum(&file)).unwrap();
    guarded.nudge();
    daemon.wait_for_line("signed.tar", "is revoked by list");
    daemon.wait_until("no lease of an import is left", || {
        let leases = target.leases();
        leases.iter().all(|id| id.starts_with("airgapd-receipt-"))
    });
    daemon.stop();
    node.airgapd(["release", "signed.tar"]).exits(0);
}

/// The evidence of a signed list has no sum of the file. A revoked sum of another file concerns no
/// bundle in place. The job that restores an image hashes its file first.
fn a_revoked_file_concerns_no_other_bundle_in_place(target: &Target) {
    let guarded = Guarded::on(target, "require");
    let node = &guarded.node;
    let (file, name) = marker(node.path("kept.tar"));
    let placed = node.images().join("kept.tar");
    guarded.sign(&file, &placed, 1);
    let daemon = node.start();
    let dropped = node.drop_in(&file);
    daemon.wait_for_line("kept.tar", "bundle imported");
    // The evidence has to be enough.
    fs::remove_file(with(&placed, ".digest.sig")).unwrap();
    fs::remove_file(with(&placed, ".digest")).unwrap();
    let (other, _) = marker(node.path("other.tar"));
    fs::write(guarded.revoked().join("list"), sum(&other)).unwrap();
    guarded.nudge();
    target.remove_record(&name);
    daemon.wait_until("the image is restored", || target.record(&name).is_some());
    assert_eq!(daemon.count("no longer restores"), 0, "{}", daemon.log());

    fs::write(guarded.revoked().join("list"), sum(&dropped)).unwrap();
    guarded.nudge();
    target.remove_record(&name);
    daemon.wait_for_line("kept.tar", "is revoked by list");
    assert!(target.record(&name).is_none());
    let leases = || target.as_fake().unwrap().leases(target.namespace());
    daemon.wait_until("a dropped job leaves nothing", || leases().is_empty());
    daemon.stop();
}

/// A name moves only by a bundle of the key that has signed its image.
fn a_name_of_one_key_is_not_moved_by_another(target: &Target) {
    const NAME: &str = "registry.test/app:1";
    let guarded = Guarded::on(target, "require");
    guarded.trust("other", 2, "*");
    let node = &guarded.node;
    let release = |file: &str, seed: u8| {
        let path = node.path(file);
        let archive = bundles::write(&path, [image(NAME).layer(file.as_bytes())]);
        guarded.sign(&path, &node.images().join(file), seed);
        (path, archive.images[0].root.clone())
    };
    let is_at = |digest: &Digest| {
        let record = target.record(NAME);
        record.is_some_and(|record| record.target.digest() == digest)
    };
    let (first, old) = release("first.tar", 1);
    let (second, foreign) = release("second.tar", 2);
    let (third, new) = release("third.tar", 1);
    let daemon = node.start();
    let placed = node.drop_in(&first);
    daemon.wait_until("the first image", || is_at(&old));
    let label = target.labels(NAME)["io.airgapd.signer"].clone();
    assert!(label.starts_with("release ("), "{label}");
    node.drop_in(&second);
    daemon.wait_for_line("second.tar", "has signed the image of this name in first.tar");
    assert!(is_at(&old));
    // The command has the same rule.
    guarded.sign(&second, &second, 2);
    node.import([&second]);
    assert!(is_at(&old));
    // The bundle of the other key takes the place of the first one, in a file of the same name.
    for ending in [".digest", ".digest.sig"] {
        let other = with(&node.images().join("second.tar"), ending);
        fs::copy(other, with(&placed, ending)).unwrap();
    }
    fs::copy(&second, &placed).unwrap();
    daemon.wait_for_line("first.tar", "which this file replaced");
    assert!(is_at(&old));
    guarded.sign(&first, &placed, 1);
    node.drop_in(&first);
    daemon.wait_until("the first bundle is back", || {
        let log = daemon.log();
        let is_begun = |line: &&str| line.contains("first.tar") && line.contains("signed by release (");
        log.lines().filter(is_begun).count() == 2
    });
    let newest = node.drop_in(&third);
    daemon.wait_until("the image of the same key", || is_at(&new));
    // The next daemon knows who wants the name.
    daemon.stop();
    let daemon = node.start();
    daemon.wait_for_line("second.tar", "has signed the image of this name in third.tar");
    fs::remove_file(placed).unwrap();
    fs::remove_file(newest).unwrap();
    daemon.wait_until("the image of the other key", || is_at(&foreign));
    daemon.stop();
}

fn beside_an_importer_without_signatures_nothing_is_imported(target: &Target) {
    const WHY: &str =
        "k0s imports this folder without asking for signatures: set imagesDir to a folder of its own";
    let guarded = Guarded::on(target, "require");
    let node = &guarded.node;
    let (theirs, their_name) = marker(node.images().join("theirs.tar"));
    target.block_on(async {
        let k0s = GoImporter::connect(target.socket(), target.namespace()).await;
        let imported = k0s
            .import_as_k0s(&theirs, async |_| ControlFlow::Continue(()))
            .await;
        imported.expect("k0s accepts the archive");
    });
    let (ours, name) = marker(node.path("ours.tar"));
    guarded.sign(&ours, &node.images().join("ours.tar"), 1);
    let daemon = node.start();
    node.drop_in(&ours);
    daemon.wait_for_log(WHY);
    let status = node.airgapd(["status", "-o", "json"]).json();
    assert!(
        status["folder"]["problem"].to_string().contains(WHY),
        "{status:#}"
    );
    assert_eq!(status["verdict"]["health"], "failed", "{status:#}");
    let doctor = node.airgapd(["doctor"]).said();
    let doctor = doctor.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        doctor.contains(&format!("the daemon imports nothing: {WHY}")),
        "{doctor}"
    );
    assert!(target.record(&name).is_none());
    // The other program and its images go, and the daemon notices.
    fs::remove_file(theirs).unwrap();
    target.remove_record(&their_name);
    daemon.wait_until("the signed image", || target.record(&name).is_some());
    daemon.stop();
}

/// The evidence in the state folder admits the same file again. Without it, the signature beside
/// the bundle does.
fn evidence_and_keys_of_a_bundle_are_shown(target: &Target) {
    let guarded = Guarded::on(target, "require");
    let node = &guarded.node;
    let (file, name) = marker(node.path("shown.tar"));
    let placed = node.images().join("shown.tar");
    guarded.sign(&file, &placed, 1);
    let daemon = node.start();
    node.drop_in(&file);
    daemon.wait_for_line("shown.tar", "signed by release (");
    daemon.wait_until("the image", || target.record(&name).is_some());
    daemon.wait_until("the ledger", || {
        fs::read_to_string(node.ledger()).is_ok_and(|text| text.contains("signers"))
    });
    let document = |command: &str| node.airgapd([command, "-o", "json"]).json();
    for command in ["status", "report"] {
        let document = document(command);
        let signer = &document["bundles"][0]["signers"][0];
        assert_eq!(
            (&signer["key"], &signer["kind"]),
            (&"release".into(), &"p256".into()),
            "{document:#}"
        );
    }
    daemon.stop();

    fs::remove_file(with(&placed, ".digest.sig")).unwrap();
    target.remove_record(&name);
    let daemon = node.start();
    daemon.wait_until("the evidence is enough", || target.record(&name).is_some());
    daemon.stop();
    fs::remove_dir_all(node.state().join("admitted")).unwrap();
    target.remove_record(&name);
    let daemon = node.start();
    daemon.wait_for_line("shown.tar", "there is no signature for it");
    guarded.sign(&file, &placed, 1);
    daemon.wait_until("the signature is enough", || target.record(&name).is_some());
    daemon.stop();
}

/// A program that has the file open changes it after the verdict. Then the import fails or brings
/// the images that were admitted, and never others.
fn a_write_to_an_admitted_file_never_changes_the_images(target: &Target) {
    const NAME: &str = "registry.test/written:1";
    let guarded = Guarded::on(target, "require");
    let node = &guarded.node;
    node.configure_also("rateLimit: 1MiB");
    let path = node.path("written.tar");
    let archive = bundles::write(&path, [bundles::large(NAME, 6 << 20)]);
    guarded.sign(&path, &node.images().join("written.tar"), 1);
    let admitted = archive.images[0].root.clone();
    let daemon = node.start();
    let placed = node.drop_in(&path);
    daemon.wait_for_line("written.tar", "signed by release (");

    let (other, _) = marker(node.path("other.tar"));
    let mut bytes = fs::read(&placed).unwrap();
    let others = fs::read(other).unwrap();
    bytes[..others.len()].copy_from_slice(&others);
    bytes[others.len()..].fill(7);
    let writer = fs::OpenOptions::new().write(true).open(&placed).unwrap();
    writer.write_all_at(&bytes, 0).unwrap();
    drop(writer);
    daemon.wait_until("the end of the import", || {
        let log = daemon.log();
        log.contains("replaced or removed during its import") || log.contains("ERROR")
    });
    let records = target.records();
    assert!(
        records.values().all(|record| *record.target.digest() == admitted),
        "{records:?}"
    );
    fs::remove_file(placed).unwrap();
    daemon.wait_until("no lease is left", || target.leases().is_empty());
    daemon.stop();
}

/// The commands of docs/admission.md for openssl.
fn keys_and_signatures_of_openssl_admit_a_bundle(target: &Target) {
    let Some(program) = tool("openssl") else { return };
    let openssl = |arguments: &str, paths: &[&Path]| {
        let mut command = Command::new(&program);
        command.args(arguments.split_whitespace()).args(paths);
        command.output()
    };
    let guarded = Guarded::on(target, "require");
    let node = &guarded.node;
    let private = node.path("private.pem");
    let run = |arguments: &str, paths: &[&Path]| {
        let output = openssl(arguments, paths).unwrap();
        assert!(output.status.success(), "{output:?}");
        output.stdout
    };
    let kinds = [
        (
            "p256",
            "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out",
        ),
        ("ed25519", "genpkey -algorithm ED25519 -out"),
    ];
    for (kind, make) in kinds {
        run(make, &[&private]);
        let public = run("pkey -pubout -in", &[&private]);
        fs::write(guarded.keys().join("release.pub"), public).unwrap();
        let (file, name) = marker(node.path(&format!("{kind}.tar")));
        put(&file, ".digest", guarded.list(&file));
        let (list, signature) = (with(&file, ".digest"), with(&file, ".digest.sig"));
        let key = private.display();
        let sign = match kind {
            "p256" => format!("dgst -sha256 -sign {key} -out {}", signature.display()),
            _ => format!(
                "pkeyutl -sign -rawin -inkey {key} -out {} -in",
                signature.display()
            ),
        };
        run(&sign, &[&list]);
        node.import([&file]).exits(0);
        assert!(
            target.labels(&name)["io.airgapd.signer"].starts_with("release ("),
            "{kind}"
        );
        flip(&list);
        node.import([&file]).exits(5);
    }
}

/// A signature over the content digest is enough for a bundle whose documents come first. All other
/// pipes go through a file without a name, and nothing of them is sent before the verdict.
fn a_pipe_is_held_against_its_proofs_before_anything_is_written(target: &Target) {
    let guarded = Guarded::on(target, "require");
    let node = &guarded.node;
    let forms: [(&str, bundles::Arrange); 2] = [
        ("planned", bundles::documents_first),
        ("spooled", |archive| archive),
    ];
    for (form, make) in forms {
        let name = format!("registry.test/{form}:1");
        let file = node.path(&format!("{form}.tar"));
        make(bundles::layout([bundles::large(&name, 1 << 18)]).build()).write_to(&file);
        let bytes = fs::read(&file).unwrap();
        let before = writes(target);
        let said = node.pipe_in(&["-"], &bytes).exits(1).said();
        assert!(said.contains("no signature for it"), "{form}: {said}");
        let list = node.path(&format!("{form}.list"));
        let (sum, catalog) = (text(&with(&list, ".sig")), text(&with(&list, ".digest.sig")));
        guarded.sign(&file, &list, 9);
        let refused = node.pipe_in(&["--proof", &catalog, "-"], &bytes).exits(5).said();
        assert!(refused.contains("trusted"), "{form}: {refused}");
        guarded.sign(&file, &list, 1);
        put(&list, ".sig", signature(1, &bytes));
        for (proof, needs_file) in [(&catalog, form == "spooled"), (&sum, true)] {
            let without = node.pipe_in(&["--spool", "0", "--dry-run", "--proof", proof, "-"], &bytes);
            assert_eq!(
                without.status.code(),
                Some(i32::from(needs_file)),
                "{form}: {without:?}"
            );
            let dry = node.pipe_in(&["--dry-run", "--proof", proof, "-"], &bytes);
            dry.exits(0);
        }
        assert_eq!(writes(target), before, "{form}");
        let cut = &bytes[..bytes.len() / 2];
        node.pipe_in(&["--proof", &catalog, "-"], cut).exits(5);
        assert!(
            target.record(&name).is_none() && target.leases().is_empty(),
            "{form}"
        );
        node.pipe_in(&["--proof", &catalog, "-"], &bytes).exits(0);
        let labels = target.labels(&name);
        assert!(labels["io.airgapd.signer"].starts_with("release ("), "{labels:?}");
    }
}

/// A receipt of a stream has the sum of all its bytes, without a copy of them on the disk.
fn a_pipe_that_leaves_a_receipt_is_read_once_and_has_the_sum_of_its_bytes(target: &Target) {
    let guarded = Guarded::on(target, "require");
    let node = &guarded.node;
    let name = format!("registry.test/{}:1", unique());
    let file = node.path("piped.tar");
    let layout = bundles::layout([bundles::large(&name, 1 << 18)]);
    bundles::documents_first(layout.build()).write_to(&file);
    // A pipe may bring more than the archive.
    let padded = [fs::read(&file).unwrap(), vec![0; 3 << 16]].concat();
    fs::write(&file, &padded).unwrap();
    let list = node.path("piped.list");
    guarded.sign(&file, &list, 1);
    let catalog = text(&with(&list, ".digest.sig"));
    let import = |arguments: &[&str]| {
        let own = ["--keep", "--proof", &catalog, "-"];
        node.pipe_in(&[&own[..], arguments].concat(), &padded)
    };
    import(&["--spool", "0"]).exits(0);
    assert_eq!(doubt(node, &name), "");
    // Sums of files that are revoked decide by the sum of the stream.
    let list = guarded.revoked().join("list");
    let (other, _) = marker(node.path("other.tar"));
    fs::write(&list, sum(&other)).unwrap();
    assert_eq!(doubt(node, &name), "");
    target.remove_record(&name);
    let daemon = node.start();
    daemon.wait_until("the receipt restores the image", || {
        target.record(&name).is_some() && target.is_pinned(&name)
    });
    node.airgapd(["wait", "--timeout", "20s"]).exits(0);
    fs::write(&list, sum(&file)).unwrap();
    guarded.nudge();
    daemon.wait_for_line("stdin", "is revoked by list");
    assert!(doubt(node, &name).contains("is revoked by list"));
    let arguments = [
        "verify",
        "--require-signed",
        "-o",
        "json",
        "--sandbox-image",
        &name,
        &name,
    ];
    let unsigned = &node.airgapd(arguments).exits(4).json()["unsigned"][0];
    assert_eq!(unsigned["receipt_of"], "stdin", "{unsigned:#}");
    let remedy = unsigned["remedy"].as_str().unwrap();
    assert!(remedy.contains("`airgapd release stdin`"), "{remedy}");
    daemon.stop();
    node.airgapd(["release", "stdin"]).exits(0);
    // A rule that speaks of the file's bytes needs them all before the verdict.
    let said = import(&["--spool", "0"]).exits(1).said();
    assert!(said.contains("--spool"), "{said}");
}

/// Returns the problem of each image that `verify --require-signed` refuses, by its reference. The
/// text has the same problems as the document.
fn unsigned(node: &Node, references: &[&str]) -> BTreeMap<String, String> {
    let arguments = |format: &str| {
        let own = [
            "verify",
            "-o",
            format,
            "--require-signed",
            "--sandbox-image",
            references[0],
        ];
        own.iter()
            .chain(references)
            .map(|part| (*part).to_owned())
            .collect::<Vec<_>>()
    };
    let answer = node.airgapd(arguments("json"));
    let document = answer.json();
    let entry = |image: &serde_json::Value| {
        assert!(
            image["remedy"].as_str().is_some_and(|remedy| !remedy.is_empty()),
            "{image:#}"
        );
        assert!(
            image["sources"]
                .as_array()
                .is_some_and(|sources| !sources.is_empty()),
            "{image:#}"
        );
        let text = |key: &str| image[key].as_str().unwrap().to_owned();
        (text("reference"), text("problem"))
    };
    let refused: BTreeMap<_, _> = document["unsigned"]
        .as_array()
        .unwrap()
        .iter()
        .map(entry)
        .collect();
    assert_eq!(document["complete"], refused.is_empty(), "{document:#}");
    let said = node.airgapd(arguments("text"));
    for code in [answer.status.code(), said.status.code()] {
        assert_eq!(code, Some(if refused.is_empty() { 0 } else { 4 }), "{document:#}");
    }
    let said = said.stdout;
    for reference in refused.keys() {
        assert!(said.contains(&format!("UNSIGNED {reference}\n")), "{said}");
    }
    assert_eq!(said.matches("  why    ").count(), refused.len(), "{said}");
    refused
}

/// Returns why `verify --require-signed` refuses one image. Empty if it does not.
fn doubt(node: &Node, reference: &str) -> String {
    unsigned(node, &[reference]).remove(reference).unwrap_or_default()
}

/// The state folder alone counts: a label of containerd vouches for nothing.
fn images_are_verified_by_the_evidence_in_the_state_folder(target: &Target) {
    let target = &target.in_kubernetes();
    let guarded = Guarded::on(target, "require");
    let node = &guarded.node;
    node.configure_also("digestReferences: all");
    let file = node.path("signed.tar");
    let at = format!("registry.test/signed-{}", unique());
    let name = format!("{at}/app:1");
    let archive = bundles::write(&file, [image(&name)]);
    let digest = archive.images[0].root.clone();
    let by_digest = format!("{at}/app@{digest}");
    guarded.sign(&file, &node.images().join("signed.tar"), 1);
    let daemon = node.start();
    node.drop_in(&file);
    daemon.wait_for_line("signed.tar", "bundle imported");
    let both = [name.as_str(), by_digest.as_str()];
    assert!(unsigned(node, &both).is_empty());
    daemon.stop();

    // A record with every label of the signed image, by hand.
    let record = target.record(&name).unwrap();
    let forged = format!("{at}/forged:1");
    let labels: Vec<(&str, &str)> = record
        .labels
        .iter()
        .map(|(key, value)| (&**key, &**value))
        .collect();
    assert!(
        labels.iter().any(|(key, _)| *key == "io.airgapd.signer"),
        "{labels:?}"
    );
    target.put_record(&forged, &record.target, &labels);
    let refused = unsigned(node, &[&name, &forged]);
    assert_eq!(refused.keys().collect::<Vec<_>>(), [&forged]);
    let why = "there is no evidence that a signed bundle brought";
    assert!(refused[&forged].contains(why), "{refused:?}");

    // Another image under the name.
    let (other, other_name) = marker(node.path("other.tar"));
    guarded.sign(&other, &other, 1);
    node.import([&other]).exits(0);
    let moved = target.record(&other_name).unwrap().target;
    target.remove_record(&name);
    target.put_record(&name, &moved, &labels);
    let why = doubt(node, &name);
    assert!(
        why.contains(&format!("brought {digest} under this name")),
        "{why}"
    );
    assert_eq!(doubt(node, &by_digest), "");
    target.remove_record(&name);
    target.put_record(&name, &record.target, &[]);
    assert_eq!(doubt(node, &name), "", "labels never count");

    // The patterns of the key, the key, and the revoked digests are those of today.
    guarded.trust("release", 1, "registry.test/elsewhere/*");
    let why = doubt(node, &name);
    assert!(
        why.contains("the patterns of the keys") && why.contains("release ("),
        "{why}"
    );
    guarded.trust("release", 1, "*");
    fs::rename(guarded.keys().join("release.pub"), node.path("release.pub")).unwrap();
    assert!(doubt(node, &name).contains("no usable key"));
    guarded.trust("other", 2, "*");
    assert!(doubt(node, &name).contains("no trusted key makes it valid"));
    fs::rename(node.path("release.pub"), guarded.keys().join("release.pub")).unwrap();
    assert_eq!(doubt(node, &name), "");
    let list = guarded.revoked().join("2026");
    for (line, why) in [
        (guarded.list(&file), "is revoked by 2026"),
        (sum(&other), "lacks the checksum of its bundle"),
        ("nonsense\n".to_owned(), "the revoked digests cannot be read"),
    ] {
        fs::write(&list, line).unwrap();
        let told = doubt(node, &name);
        assert!(told.contains(why), "{told}");
    }
    // An import by hand hashes the file while checksums are revoked.
    fs::write(&list, sum(&other)).unwrap();
    guarded.sign(&file, &file, 1);
    node.import([&file]).exits(0);
    assert_eq!(doubt(node, &name), "");
    fs::write(&list, sum(&file)).unwrap();
    assert!(doubt(node, &name).contains("is revoked by 2026"));
    fs::remove_file(&list).unwrap();
    assert_eq!(doubt(node, &name), "");

    // Evidence that others can write counts for nothing.
    let admitted = node.state().join("admitted");
    fs::set_permissions(&admitted, fs::Permissions::from_mode(0o777)).unwrap();
    assert!(doubt(node, &name).contains("there is no evidence"));
    fs::set_permissions(&admitted, fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(doubt(node, &name), "");
    fs::remove_dir_all(node.state()).unwrap();
    assert!(doubt(node, &name).contains("there is no evidence"));
    // The signature lies beside the bundle, so the daemon makes the evidence again.
    let daemon = node.start();
    daemon.wait_for_line("signed.tar", "bundle imported");
    assert!(unsigned(node, &both).is_empty());
    daemon.stop();
    // A missing image is no unsigned image, and a bundle has no evidence.
    let absent = format!("{at}/absent:1");
    let document = node
        .airgapd(["verify", "-o", "json", "--require-signed", &absent])
        .exits(4)
        .json();
    // containerd before 2.0 asks for the image of sandboxes too, which another test may bring.
    let images = document["images"].as_array().expect("a list of images");
    let image = images.iter().find(|image| image["reference"] == absent.as_str());
    assert_eq!(image.expect("the image")["status"], "absent", "{document:#}");
    node.airgapd(["verify", "--require-signed", "--bundle", &text(&file), &name])
        .exits(2);
}

/// The daemon and the command write evidence at the same time, and for the same content too.
fn an_import_by_hand_keeps_evidence_beside_the_daemon_while_a_record_needs_it(target: &Target) {
    let target = &target.in_kubernetes();
    let guarded = Guarded::on(target, "require");
    let node = &guarded.node;
    node.configure_also("digestReferences: none");
    let (placed, placed_name) = marker(node.path("placed.tar"));
    guarded.sign(&placed, &node.images().join("placed.tar"), 1);
    let daemon = node.start();
    let placed = node.drop_in(&placed);
    daemon.wait_for_line("placed.tar", "bundle imported");
    let documents = || {
        let files = fs::read_dir(node.state().join("admitted")).unwrap();
        let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.ends_with(".json")).count()
    };
    let mut names = vec![placed_name.clone()];
    // More bundles arrive in the folder while others are imported by hand.
    for number in 0..3 {
        let (file, name) = marker(node.path(&format!("folder-{number}.tar")));
        guarded.sign(&file, &node.images().join(format!("folder-{number}.tar")), 1);
        node.drop_in(&file);
        names.push(name);
        let (file, name) = marker(node.path(&format!("hand-{number}.tar")));
        guarded.sign(&file, &file, 1);
        node.import([&file]).exits(0);
        names.push(name);
    }
    node.airgapd(["wait"]).exits(0);
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    assert!(unsigned(node, &all).is_empty());
    assert_eq!(documents(), 7);
    // The content of the folder under another name, by hand.
    let alias = "registry.test/by-hand:1";
    let copy = node.path("copy.tar");
    fs::copy(&placed, &copy).unwrap();
    guarded.sign(&copy, &copy, 1);
    let own = format!("{}={alias}", target.record(&placed_name).unwrap().target.digest());
    node.import([text(&copy), "--name".to_owned(), own]).exits(0);
    assert!(unsigned(node, &[&placed_name, alias]).is_empty());
    assert_eq!(documents(), 7);
    daemon.stop();

    // Evidence lasts as long as a record or a bundle of the folder needs it.
    target.remove_record(names.last().unwrap());
    target.remove_record(&names[1]);
    let daemon = node.start();
    daemon.wait_until("the evidence of a removed image ends", || documents() == 6);
    daemon.wait_until("the image of the folder is restored", || {
        target.record(&names[1]).is_some()
    });
    node.airgapd(["wait"]).exits(0);
    assert!(unsigned(node, &all[..all.len() - 1]).is_empty());
    daemon.stop();
    target.remove_record(&names[2]);
    let (file, name) = marker(node.path("last.tar"));
    guarded.sign(&file, &file, 1);
    node.import([&file]).exits(0);
    assert_eq!(documents(), 6, "the command ends evidence too");
    assert_eq!(doubt(node, &name), "");
}

/// Evidence that cannot be written stops the import before anything reaches containerd.
fn an_import_whose_evidence_cannot_be_kept_writes_nothing(target: &Target) {
    let guarded = Guarded::on(target, "require");
    let node = &guarded.node;
    let (file, name) = marker(node.path("alone.tar"));
    guarded.sign(&file, &file, 1);
    fs::write(node.path("occupied"), "").unwrap();
    let config = fs::read_to_string(node.path("config.yaml")).unwrap();
    let elsewhere = node.path("occupied/state");
    let changed = config.replace(&text(&node.state()), &text(&elsewhere));
    assert_ne!(changed, config);
    node.configure(&changed);
    let error = node.import([&file]).exits(1).bundle()["error"].to_string();
    assert!(
        error.contains("the evidence of its signature cannot be written"),
        "{error}"
    );
    assert_eq!(writes(target), 0);
    node.configure(&config);
    node.import([&file]).exits(0);
    assert!(target.record(&name).is_some());
}

fn the_evidence_of_a_bundle_ends_with_its_records(target: &Target) {
    let guarded = Guarded::on(target, "require");
    let node = &guarded.node;
    node.configure_also("onRemoval: delete\nunpinGrace: 0s");
    let (file, name) = marker(node.path("short.tar"));
    guarded.sign(&file, &node.images().join("short.tar"), 1);
    let daemon = node.start();
    let placed = node.drop_in(&file);
    daemon.wait_for_line("short.tar", "bundle imported");
    let files = || fs::read_dir(node.state().join("admitted")).unwrap().count();
    assert_eq!(files(), 2, "a document and its list");
    fs::remove_file(placed).unwrap();
    daemon.wait_until("the image is gone", || target.record(&name).is_none());
    daemon.wait_until("the evidence is gone", || files() == 0);
    daemon.stop();
}

/// A name that another key keeps from a bundle never landed with that bundle.
fn the_evidence_has_the_names_that_landed(target: &Target) {
    const NAME: &str = "registry.test/owned:1";
    let target = &target.in_kubernetes();
    let guarded = Guarded::on(target, "require");
    guarded.trust("other", 2, "*");
    let node = &guarded.node;
    let second_name = "registry.test/second:1";
    let release = |file: &str, seed: u8, names: &[&str]| {
        let path = node.path(file);
        let images = names.iter().map(|name| image(name).layer(file.as_bytes()));
        bundles::write(&path, images);
        guarded.sign(&path, &node.images().join(file), seed);
        guarded.sign(&path, &path, seed);
        path
    };
    let first = release("first.tar", 1, &[NAME]);
    let second = release("second.tar", 2, &[NAME, second_name]);
    let by_hand = release("by-hand.tar", 2, &[NAME, "registry.test/third:1"]);
    let daemon = node.start();
    node.drop_in(&first);
    daemon.wait_for_line("first.tar", "bundle imported");
    node.drop_in(&second);
    daemon.wait_for_line("second.tar", "has signed the image of this name");
    daemon.wait_until("the other name", || target.record(second_name).is_some());
    node.import([&by_hand]);
    daemon.stop();
    assert!(unsigned(node, &[NAME, second_name, "registry.test/third:1"]).is_empty());
    // The withheld image gets the name by hand: no bundle brought it under this name.
    for name in [second_name, "registry.test/third:1"] {
        let theirs = target.record(name).unwrap().target;
        target.remove_record(NAME);
        target.put_record(NAME, &theirs, &[]);
        let why = doubt(node, NAME);
        assert!(why.contains("another program moved the name"), "{why}");
    }
}

/// Each cause of a refusal is a gauge, and a word in the log and in the status.
fn a_refusal_is_counted_by_its_cause_and_has_its_message(target: &Target) {
    let guarded = Guarded::on(target, "require");
    guarded.trust("other", 2, "*");
    let node = &guarded.node;
    let refused = || {
        let (_, body) = node.ask("/metrics", &[]);
        let lines = body.lines().filter_map(|line| {
            let (cause, count) = line
                .strip_prefix("airgapd_bundles_refused{cause=\"")?
                .split_once("\"} ")?;
            (count != "0").then(|| format!("{cause} {count}"))
        });
        lines.collect::<Vec<_>>()
    };
    let refused_by = |file: &str| {
        let status = node.airgapd(["status", "-o", "json"]).json();
        bundle(&status, file)["error"]["refused_by"].clone()
    };
    let place = |file: &str, seed: u8| {
        let (path, _) = marker(node.path(file));
        guarded.sign(&path, &node.images().join(file), seed);
        node.drop_in(&path)
    };
    let daemon = node.start();
    let wrong = place("wrong.tar", 9);
    daemon.wait_for_line("wrong.tar", "no trusted key makes it valid");
    daemon.wait_for_line("wrong.tar", "outcome=refused");
    daemon.wait_until("a refusal", || refused() == ["signature 1"]);
    assert_eq!(refused_by("wrong.tar"), "signature");

    let revoked = place("revoked.tar", 1);
    daemon.wait_for_line("revoked.tar", "bundle imported");
    assert_eq!(refused_by("revoked.tar"), serde_json::Value::Null);
    fs::write(guarded.revoked().join("list"), guarded.list(&revoked)).unwrap();
    guarded.nudge();
    daemon.wait_until("two refusals", || refused() == ["revoked 1", "signature 1"]);
    assert_eq!(refused_by("revoked.tar"), "revoked");

    // A damaged file is no refusal by the rule.
    node.put_broken("bad.tar");
    daemon.wait_for_line("bad.tar", "outcome=failed");
    daemon.stop();
    let daemon = node.start();
    daemon.wait_until("the refusals are known", || {
        refused() == ["revoked 1", "signature 1"]
    });
    fs::write(guarded.revoked().join("list"), "nonsense\n").unwrap();
    guarded.nudge();
    daemon.wait_until("no list", || refused() == ["revocations 2"]);
    fs::remove_file(guarded.revoked().join("list")).unwrap();
    // A signature of a trusted key ends the refusal of the same file.
    guarded.sign(&wrong, &wrong, 1);
    guarded.nudge();
    daemon.wait_until("no refusal", || refused().is_empty());
    daemon.wait_for_line("wrong.tar", "bundle imported");
    for name in ["release", "other"] {
        fs::remove_file(guarded.keys().join(format!("{name}.pub"))).unwrap();
    }
    guarded.nudge();
    daemon.wait_until("no key", || refused() == ["keys 2"]);
    daemon.stop();
}

/// Keys beside usable keys that cannot be used are no secret of `config --check`.
fn status_and_doctor_name_the_keys_that_cannot_be_used(target: &Target) {
    let guarded = Guarded::on(target, "require");
    let node = &guarded.node;
    let daemon = node.start();
    let status = || node.airgapd(["status", "-o", "json"]).json();
    let unusable = || status()["unusable_keys"].to_string();
    daemon.wait_until("the folder is listed", || {
        node.airgapd(["status"]).status.success()
    });
    assert_eq!(status().get("unusable_keys"), None);
    fs::write(guarded.keys().join("bare.pub"), public_key(2)).unwrap();
    fs::write(guarded.keys().join("cut.pub"), &public_key(3)[..90]).unwrap();
    guarded.nudge();
    daemon.wait_until("the keys are read", || unusable().contains("bare.pub"));
    let wanted = [
        "bare.pub: ",
        "bare.allow is missing",
        "cut.pub: ",
        "no whole public key",
    ];
    for words in wanted {
        assert!(unusable().contains(words), "{}", unusable());
    }
    let findings = || node.airgapd(["doctor", "-o", "json"]).json()["findings"].to_string();
    let told = |command: &str| {
        let said = node.airgapd([command]).said();
        said.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    for text in [told("status"), told("doctor"), findings()] {
        for words in wanted {
            assert!(text.contains(words), "{text}");
        }
    }
    assert!(told("doctor").contains("1 usable key"), "{}", told("doctor"));
    // The other key still admits bundles.
    node.airgapd(["status"]).exits(0);
    daemon.stop();
    assert!(unusable().contains("cut.pub"), "without a daemon too");
    fs::remove_file(guarded.keys().join("release.pub")).unwrap();
    assert!(findings().contains("no key can be used: "), "{}", findings());
}

on_the_fake! {
    a_pipe_is_held_against_its_proofs_before_anything_is_written,
    a_pipe_that_leaves_a_receipt_is_read_once_and_has_the_sum_of_its_bytes,
    an_import_whose_evidence_cannot_be_kept_writes_nothing,
    a_refusal_is_counted_by_its_cause_and_has_its_message,
    status_and_doctor_name_the_keys_that_cannot_be_used,
    a_write_to_an_admitted_file_never_changes_the_images,
    keys_and_signatures_of_openssl_admit_a_bundle,
    evidence_and_keys_of_a_bundle_are_shown,
    every_kind_of_proof_of_a_trusted_key_admits_a_bundle,
    a_wrong_proof_refuses_a_bundle_before_anything_is_written,
    a_flag_adds_proofs_and_no_keys,
    a_revoked_file_concerns_no_other_bundle_in_place,
    a_bundle_from_before_the_rule_keeps_its_file,
    a_receipt_keeps_the_evidence_and_the_sum_of_its_bundle,
}
on_each_containerd! {
    images_are_verified_by_the_evidence_in_the_state_folder,
    an_import_by_hand_keeps_evidence_beside_the_daemon_while_a_record_needs_it,
    the_evidence_has_the_names_that_landed,
    the_evidence_of_a_bundle_ends_with_its_records,
    a_name_of_one_key_is_not_moved_by_another,
    beside_an_importer_without_signatures_nothing_is_imported,
    a_bundle_waits_for_its_signature_and_a_key_is_enough_for_a_refused_bundle,
    names_out_of_the_scope_of_the_key_are_refused_and_the_others_land,
    what_is_in_place_stays_when_the_rule_comes_and_when_the_key_goes,
    a_receipt_is_admitted_by_the_evidence_of_its_bundle_and_revoked_with_it,
}
