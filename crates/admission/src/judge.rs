//! The verdict on a bundle, from its digests and the proofs for it.

use std::fmt;

use basics::Foreign;
use oci_spec::image::Digest;

use crate::MOST_SIGNATURES;
use crate::key::{KeyKind, Keys, TrustedKey};
use crate::list::{List, ListProblem};
use crate::proof::{Proof, Reach};
use crate::revoked::Revocations;
use crate::signature::{Signature, SignatureProblem, Signed};

/// The operator's choice, where it asks for signatures at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// A bundle without a proof may be imported. A proof that is there must be valid.
    IfPresent,
    /// Each bundle needs a valid proof.
    Require,
}

/// The state of the bundle file's own bytes.
#[derive(Clone, Copy, Debug)]
pub enum Bytes<'a> {
    /// No pass has hashed the file yet.
    Unhashed,
    /// The sha256 of the file, from the pass that also made the catalog.
    Hashed(&'a Digest),
    /// The bundle is a folder and has no bytes of its own.
    Folder,
}

/// All that a verdict follows from.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The operator's choice.
    pub policy: Policy,
    /// The trusted keys.
    pub keys: &'a Keys,
    /// The revoked digests.
    pub revocations: &'a Revocations,
    /// The proofs found for the bundle.
    pub proofs: &'a [Proof],
    /// Digest of the bundle's catalog.
    pub catalog: &'a Digest,
    /// The file's own bytes.
    pub bytes: Bytes<'a>,
}

/// The verdict on a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// A trusted key speaks of the bundle.
    Admitted(Admission),
    /// No proof speaks of the bundle. With [`Policy::Require`] the bundle waits for a proof.
    Unsigned {
        /// Faults of proofs for all bundles, which may explain the lack.
        remarks: Vec<Flaw>,
    },
    /// The verdict depends on the digest of the file. Hash the file and ask again with
    /// [`Bytes::Hashed`].
    NeedsFileDigest,
    /// The bundle must not be imported.
    Refused(Refusal),
}

/// The admission of one catalog. The import must use this catalog only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission {
    /// Digest of the admitted catalog.
    pub catalog: Digest,
    /// Each key whose signature is valid and speaks of the bundle, in the order of the keys. There
    /// is at least one. Before the file is hashed, signatures over files do not count.
    pub signers: Vec<Signer>,
    /// Faults of further proofs, for people.
    pub remarks: Vec<Flaw>,
}

/// A key whose signature admits a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signer {
    /// Name of the key.
    pub key: String,
    /// Fingerprint of the key.
    pub fingerprint: Digest,
    /// Kind of the key.
    pub kind: KeyKind,
    /// Index of the first proof by the key, among those of the question.
    pub proof: usize,
}

/// The fault of a proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flaw {
    /// Name of the signature's file.
    pub proof: Foreign,
    /// The reason why the proof does not count.
    pub reason: Reason,
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.200}: {}", self.proof, self.reason)
    }
}

/// The reason why a proof does not count. Each message ends with the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// The signature's file cannot be used.
    #[error(transparent)]
    Signature(#[from] SignatureProblem),
    /// The signed list cannot be used.
    #[error("the list {name} cannot be used: {problem}")]
    List {
        /// Name of the list's file.
        name: Foreign,
        /// The reason.
        problem: ListProblem,
    },
    /// The signature names a key that is not trusted. The name is no proof.
    #[error("it names key {0}, which is not trusted: add its public key, or sign with a trusted key")]
    UnknownKey(String),
    /// The signature names other bytes than those that it lies beside.
    #[error("it was made for other bytes: copy the signed file and its signature again")]
    OtherBytes,
    /// No trusted key makes the signature valid.
    #[error(
        "no trusted key makes it valid (another key made it, or the signed file changed): \
         copy both again, or add its public key"
    )]
    NotValid,
    /// A trusted key signed a list that lacks the bundle's catalog.
    #[error("the signed list lacks the content {catalog}: copy the list that was signed for this bundle")]
    CatalogNotListed {
        /// Digest of the bundle's catalog.
        catalog: Digest,
    },
    /// A trusted key signed a list that lacks the bundle's file.
    #[error(
        "the signed list lacks the sum {file}: copy the bundle again, or the list that was signed for it"
    )]
    FileNotListed {
        /// Sha256 of the bundle file.
        file: Digest,
    },
    /// The proof speaks of a file, and the bundle is a folder.
    #[error("it speaks of a file, and the bundle is a folder: sign a list of catalogs")]
    Folder,
    /// An Ed25519 signature lies beside a bundle as if it signed the file.
    #[error("a signature over a bundle needs a P-256 key: with this key sign a list of catalogs")]
    ListsOnly,
}

/// The reason why a bundle must not be imported.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Signatures are required, and no key can be used. Every new bundle is refused.
    #[error("signatures are required, and there is no usable key: {0}")]
    NoKeys(String),
    /// The revoked digests cannot be read. Every new bundle is refused.
    #[error("the revoked digests cannot be read: {0}")]
    Revocations(String),
    /// The catalog or the file is revoked, whichever key signed it.
    #[error("{digest} is revoked by {list}: remove the bundle")]
    Revoked {
        /// The revoked digest.
        digest: Digest,
        /// Name of the list that revokes it.
        list: Foreign,
    },
    /// The bundle has more than [`MOST_SIGNATURES`] signatures.
    #[error("{0} signatures lie beside it, and at most {MOST_SIGNATURES} are read: remove some")]
    TooMany(usize),
    /// No proof counts. There is at least one flaw.
    #[error("no signature counts: {}", joined(.0))]
    NoneValid(Vec<Flaw>),
}

impl Refusal {
    /// Returns true if the fault is the node's and not the bundle's: keys or revocations. Then no
    /// bundle can be admitted, and the node is failed.
    #[must_use]
    pub fn is_of_the_node(&self) -> bool {
        matches!(self, Self::NoKeys(_) | Self::Revocations(_))
    }
}

fn joined(flaws: &[Flaw]) -> String {
    let flaws: Vec<_> = flaws.iter().map(Flaw::to_string).collect();
    flaws.join(". ")
}

/// Judges a bundle.
///
/// A revocation refuses the bundle, signed or not. Then one valid proof of a trusted key admits it.
/// Lists of catalogs come first, since they need no pass over the file. A pass is due if a proof or
/// a revocation speaks of the file.
#[must_use]
pub fn judge(question: &Question<'_>) -> Judgement {
    let Question {
        policy,
        keys,
        revocations,
        proofs,
        catalog,
        bytes,
    } = *question;
    if let Some(problem) = revocations.problem() {
        return Judgement::Refused(Refusal::Revocations(problem.to_owned()));
    }
    let revoked = |digest: &Digest, list: &str| {
        Judgement::Refused(Refusal::Revoked {
            digest: digest.clone(),
            list: Foreign::new(list.to_owned()),
        })
    };
    if let Some(list) = revocations.of_catalog(catalog) {
        return revoked(catalog, list);
    }
    if let Bytes::Hashed(file) = bytes
        && let Some(list) = revocations.of_file(file)
    {
        return revoked(file, list);
    }
    if policy == Policy::Require
        && let Some(why) = keys.lack()
    {
        return Judgement::Refused(Refusal::NoKeys(why));
    }
    let beside = proofs
        .iter()
        .filter(|proof| proof.reach() == Reach::Bundle)
        .count();
    if beside > MOST_SIGNATURES {
        return Judgement::Refused(Refusal::TooMany(beside));
    }

    let mut signers: Vec<(usize, Signer)> = Vec::new();
    let (mut flaws, mut remarks, mut needs_hash) = (Vec::new(), Vec::new(), false);
    for (at, proof) in proofs.iter().enumerate() {
        match weigh(proof, keys, catalog, bytes) {
            Ok(valid) => {
                for key in valid {
                    if !signers.iter().any(|(known, _)| *known == key) {
                        signers.push((key, signer(&keys.usable()[key], at)));
                    }
                }
            }
            Err(Fault::NeedsHash) => needs_hash = true,
            Err(Fault::Flaw(reason)) => {
                let flaw = Flaw {
                    proof: Foreign::new(proof.name().to_owned()),
                    reason,
                };
                match proof.reach() {
                    Reach::Bundle => flaws.push(flaw),
                    Reach::All => remarks.push(flaw),
                }
            }
        }
    }
    // A list that serves all bundles and lacks this one is no fault.
    remarks.retain(|flaw| !flaw.reason.is_about_the_bundle());

    let must_hash = revocations.speak_of_files() && matches!(bytes, Bytes::Unhashed);
    match (signers.is_empty(), flaws.is_empty()) {
        _ if needs_hash && signers.is_empty() => Judgement::NeedsFileDigest,
        (true, false) => Judgement::Refused(Refusal::NoneValid(flaws)),
        (true, true) if must_hash && policy == Policy::IfPresent => Judgement::NeedsFileDigest,
        (true, true) => Judgement::Unsigned { remarks },
        (false, _) if must_hash => Judgement::NeedsFileDigest,
        (false, _) => {
            signers.sort_by_key(|(key, _)| *key);
            flaws.append(&mut remarks);
            Judgement::Admitted(Admission {
                catalog: catalog.clone(),
                signers: signers.into_iter().map(|(_, signer)| signer).collect(),
                remarks: flaws,
            })
        }
    }
}

impl Reason {
    /// Returns true if the proof is sound and speaks of something else.
    fn is_about_the_bundle(&self) -> bool {
        matches!(
            self,
            Self::CatalogNotListed { .. } | Self::FileNotListed { .. } | Self::Folder
        )
    }
}

fn signer(trusted: &TrustedKey, proof: usize) -> Signer {
    Signer {
        key: trusted.name.clone(),
        fingerprint: trusted.key.fingerprint().clone(),
        kind: trusted.key.kind(),
        proof,
    }
}

/// The reason why a proof does not count now.
enum Fault {
    /// Only the digest of the file can tell.
    NeedsHash,
    Flaw(Reason),
}

impl From<Reason> for Fault {
    fn from(reason: Reason) -> Self {
        Self::Flaw(reason)
    }
}

/// Returns the keys that make a proof valid for this bundle, as indices.
fn weigh(proof: &Proof, keys: &Keys, catalog: &Digest, bytes: Bytes<'_>) -> Result<Vec<usize>, Fault> {
    let signature = proof
        .signature
        .as_ref()
        .map_err(|problem| Reason::Signature(problem.clone()))?;
    let Some(list) = proof.list() else {
        return match bytes {
            _ if !signature.may_sign_files() => Err(Reason::ListsOnly.into()),
            Bytes::Folder => Err(Reason::Folder.into()),
            Bytes::Unhashed if !keys.may_sign_files() => Err(Reason::NotValid.into()),
            Bytes::Unhashed => Err(Fault::NeedsHash),
            Bytes::Hashed(file) => Ok(valid_keys(keys, signature, Signed::file(file))?),
        };
    };
    let unusable = |problem: &ListProblem| Reason::List {
        name: Foreign::new(list.name().to_owned()),
        problem: problem.clone(),
    };
    // A text that was not read whole has no valid signature. Faults in the text of a list matter
    // after its signature only: a copy that broke has both, and the signature tells it.
    if let Err(problem @ (ListProblem::TooLarge | ListProblem::Unreadable(_))) = &list.list {
        return Err(unusable(problem).into());
    }
    let valid = valid_keys(keys, signature, list.signed())?;
    match (list.list.as_ref().map_err(unusable)?, bytes) {
        (List::Catalogs(catalogs), _) if catalogs.contains(catalog) => Ok(valid),
        (List::Catalogs(_), _) => Err(Reason::CatalogNotListed {
            catalog: catalog.clone(),
        }
        .into()),
        (List::Files(_), Bytes::Unhashed) => Err(Fault::NeedsHash),
        (List::Files(_), Bytes::Folder) => Err(Reason::Folder.into()),
        (List::Files(files), Bytes::Hashed(file)) if files.contains(file) => Ok(valid),
        (List::Files(_), Bytes::Hashed(file)) => Err(Reason::FileNotListed { file: file.clone() }.into()),
    }
}

/// Returns the keys that make a signature valid, at least one, as indices.
fn valid_keys(keys: &Keys, signature: &Signature, signed: Signed<'_>) -> Result<Vec<usize>, Reason> {
    let all = keys.usable().iter().enumerate();
    let valid: Vec<_> = all
        .filter(|(_, trusted)| trusted.key.verifies(signature, signed))
        .map(|(at, _)| at)
        .collect();
    if !valid.is_empty() {
        return Ok(valid);
    }
    if !signature.speaks_of(signed) {
        return Err(Reason::OtherBytes);
    }
    match signature.stated_key() {
        Some(stated)
            if !keys
                .usable()
                .iter()
                .any(|trusted| trusted.key.is_named_by(signature)) =>
        {
            Err(Reason::UnknownKey(stated))
        }
        _ => Err(Reason::NotValid),
    }
}
