//! The checksums of a release, and the signature over them.
//!
//! Nodes, `sha256sum --check` and openssl read both files. In an images folder they admit airgapd's
//! own image on a node that trusts the key.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use admission::{Form, Key, KeyKind, Signature, Signed};
use anyhow::{Context, Result, bail};
use bundle::fixtures::digest_of;
use lab::{output_of, parts};

/// File of the checksums, in the format that `sha256sum --check` reads.
pub(super) const SUMS: &str = "SHA256SUMS";

/// File of the signature over the checksums: the bytes that openssl writes.
const SIGNATURE: &str = "SHA256SUMS.sig";

/// Writes the checksums of all files in the folder.
pub(super) fn write(out: &Path) -> Result<()> {
    let mut text = String::new();
    for (name, sum) in sums(out)? {
        let _ = writeln!(text, "{sum}  {name}");
    }
    fs::write(out.join(SUMS), text)?;
    Ok(())
}

/// Returns each file with its SHA-256, sorted by name.
pub(super) fn sums(out: &Path) -> Result<Vec<(String, String)>> {
    let mut names: Vec<_> = fs::read_dir(out)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    names.retain(|name| name != SUMS && name != SIGNATURE);
    names.sort();
    names
        .into_iter()
        .map(|name| {
            let digest = digest_of(&fs::read(out.join(&name))?);
            Ok((name, digest.digest().to_owned()))
        })
        .collect()
}

/// Signs the checksums in the folder with a private key, a PEM file of openssl. openssl asks for
/// its passphrase, if it has one.
///
/// # Errors
///
/// Returns an error if a node could not use the key, or if openssl fails.
pub(super) fn sign(out: &Path, key: &Path) -> Result<()> {
    let openssl = parts::tool("openssl")?;
    let openssl = |arguments: &str, path: &Path| {
        let mut command = Command::new(&openssl);
        command.args(arguments.split(' ')).arg(path);
        command
    };
    let public = output_of(&mut openssl("pkey -pubout -in", key))?;
    let public = Key::parse(public.as_bytes())
        .with_context(|| format!("a node cannot use the key of {}", key.display()))?;
    let mut command = match public.kind() {
        KeyKind::P256 => openssl("dgst -sha256 -sign", key),
        KeyKind::Ed25519 => openssl("pkeyutl -sign -rawin -inkey", key),
        KeyKind::Minisign => bail!("{} is no key of openssl", key.display()),
    };
    let (sums, signature) = (out.join(SUMS), out.join(SIGNATURE));
    command.arg("-out").arg(&signature);
    if public.kind() == KeyKind::Ed25519 {
        command.arg("-in");
    }
    output_of(command.arg(&sums))?;
    let made = Signature::parse(Form::Plain, &fs::read(&signature)?)?;
    if !public.verifies(&made, Signed::text(&fs::read(&sums)?)) {
        bail!("the signature of openssl is not valid for a node");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use admission::{
        Bytes, Judgement, Keys, Policy, Proof, Question, Reach, Revocations, SignedList, TrustedKey, judge,
    };

    use super::*;

    const FILES: [&str; 2] = ["airgapd-1-image.tar", "airgapd_1_amd64.deb"];

    /// Runs a line of a shell in a folder. Returns true if it succeeds.
    fn succeeds(folder: &Path, line: &str) -> bool {
        let mut shell = Command::new("sh");
        let output = shell.args(["-ec", line]).current_dir(folder).output().unwrap();
        output.status.success()
    }

    /// Returns the verdict of a node that trusts a key, on a file of the release.
    fn judged(out: &Path, key: &[u8], file: &str) -> Judgement {
        let list = SignedList::new(SUMS, fs::read(out.join(SUMS)).unwrap());
        let signature = fs::read(out.join(SIGNATURE)).unwrap();
        let proof = Proof::new(
            SIGNATURE,
            Form::Plain,
            signature,
            Some(Arc::new(list)),
            Reach::All,
        );
        let key = TrustedKey {
            name: "release".to_owned(),
            key: Key::parse(key).unwrap(),
        };
        judge(&Question {
            policy: Policy::Require,
            keys: &Keys::new(vec![key], Vec::new()),
            revocations: &Revocations::default(),
            proofs: &[proof],
            catalog: &digest_of(b"a catalog"),
            bytes: Bytes::Hashed(&digest_of(&fs::read(out.join(file)).unwrap())),
        })
    }

    #[test]
    fn signed_checksums_are_accepted_by_nodes_and_by_plain_programs() {
        if lab::left_out::unless_had("openssl", parts::tool("openssl")).is_none() {
            return;
        }
        let keys = [
            (
                "EC -pkeyopt ec_paramgen_curve:P-256",
                "openssl dgst -sha256 -verify ../release.pub -signature SHA256SUMS.sig SHA256SUMS",
            ),
            (
                "ED25519",
                "openssl pkeyutl -verify -rawin -pubin -inkey ../release.pub -sigfile SHA256SUMS.sig -in SHA256SUMS",
            ),
        ];
        for (algorithm, verify) in keys {
            let folder = tempfile::tempdir().unwrap();
            let (out, key) = (folder.path().join("dist"), folder.path().join("release.pem"));
            fs::create_dir(&out).unwrap();
            for name in FILES {
                fs::write(out.join(name), name).unwrap();
            }
            let make = format!(
                "openssl genpkey -algorithm {algorithm} -out release.pem && openssl pkey -in release.pem -pubout -out release.pub"
            );
            assert!(succeeds(folder.path(), &make), "{algorithm}");
            let public = fs::read(folder.path().join("release.pub")).unwrap();
            let unsigned = || {
                write(&out).unwrap();
                fs::read_to_string(out.join(SUMS)).unwrap()
            };
            let before = unsigned();
            assert_eq!(before.lines().count(), FILES.len(), "{before}");
            sign(&out, &key).unwrap();
            assert_eq!(unsigned(), before, "the signature is no file of the list");

            assert!(
                succeeds(&out, "sha256sum --check --strict SHA256SUMS"),
                "{algorithm}"
            );
            assert!(succeeds(&out, verify), "{algorithm}");
            for file in FILES {
                let judgement = judged(&out, &public, file);
                assert!(
                    matches!(judgement, Judgement::Admitted(_)),
                    "{algorithm}: {judgement:?}"
                );
            }
            fs::write(out.join(FILES[0]), "another program").unwrap();
            assert!(!succeeds(&out, "sha256sum --check --strict SHA256SUMS"));
            assert!(!matches!(judged(&out, &public, FILES[0]), Judgement::Admitted(_)));
            fs::write(out.join(SUMS), before + "\n").unwrap();
            assert!(!succeeds(&out, verify), "{algorithm}");
            assert!(!matches!(judged(&out, &public, FILES[1]), Judgement::Admitted(_)));
        }
    }

    #[test]
    fn a_key_that_no_node_can_use_signs_nothing() {
        if lab::left_out::unless_had("openssl", parts::tool("openssl")).is_none() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        write(folder.path()).unwrap();
        let make = "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384 -out key.pem";
        assert!(succeeds(folder.path(), make));
        let error = sign(folder.path(), &folder.path().join("key.pem")).unwrap_err();
        assert!(
            error.to_string().contains("a node cannot use the key"),
            "{error:#}"
        );
        assert!(sign(folder.path(), &folder.path().join("no.pem")).is_err());
        assert!(!folder.path().join(SIGNATURE).exists());
    }
}
