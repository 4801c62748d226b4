//! Opens a bundle and holds it against the rules of this node, before any of it reaches containerd.
//!
//! Checksum, trusted digests and signatures speak of one open file. A signature over the file needs
//! a pass over its bytes. The catalog is then made of the very bytes that were hashed. A checksum
//! shares that pass. Each rule that is on has to allow the bundle.
//!
//! The daemon and `airgapd import` open bundles by [`open`], and pipes by [`open_pipe`].
//! [`beforehand`] tells what a rule would do.

pub mod beforehand;
mod summed;

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use admission::{
    Admission, Bytes, Form, Judgement, List, Policy, Proof, Question, Reach, Refusal, Revocations, judge,
};
use bundle::{Bundle, Fault, Hashed, Identity, Limits, Pipe};
use containerd::Client;
use import::names::Scope;
use jiff::Timestamp;
use oci_spec::image::Digest;

use crate::images::folder::{self, Folder, Refused};
use crate::images::keys::{self, TrustedKeys};
use crate::images::proofs::{self, Found};
use crate::images::{sidecar, trusted_digests};
use crate::settings::{Settings, Signatures};
use crate::spool::Spool;
use crate::state::admitted::{self, Document, Evidence, Standing};
use crate::state::ledger::RefusedBy;

pub use self::summed::Sum;
use self::summed::Summed;

/// The order to open a bundle.
#[derive(Debug)]
pub struct Order {
    /// The bundle's path in messages.
    pub path: PathBuf,
    /// The folder in which the proofs lie. `None` if the bundle has no place, as behind a pipe.
    pub folder: Option<PathBuf>,
    /// The bundle's path below that folder. The names of its proofs follow from it.
    pub name: OsString,
    /// Bounds for the reading.
    pub limits: Limits,
    /// The sha256 that the file must have by its checksum.
    pub checksum: Option<Digest>,
    /// The rules of this node.
    pub rules: Rules,
    /// Further proofs that the operator names: lists, or signatures.
    pub more: Vec<PathBuf>,
    /// Evidence of an earlier admission of the same file. While its key is trusted, it admits the
    /// same catalog again, without the proofs beside the bundle.
    pub evidence: Option<Evidence>,
    /// The state folder, if the file is a receipt. The rules then speak of the bundle that it
    /// stands for, with the evidence of that bundle's admission.
    pub receipt: Option<PathBuf>,
    /// True if the file is to leave a receipt. With signatures, the evidence then has the digest of
    /// the file. A later list may revoke it when the file is gone.
    pub leaves_receipt: bool,
}

/// The rules that an admission follows.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The rule for signatures. `None`: keys and signatures are not even opened.
    pub signatures: Option<Signatures>,
    /// The folder of keys.
    pub keys: PathBuf,
    /// The folder of trusted digests.
    pub trusted_digests: Option<PathBuf>,
}

impl Rules {
    /// Returns the rules of these settings.
    pub fn of(settings: &Settings) -> Rules {
        Rules {
            signatures: settings.signatures,
            keys: settings.trusted_keys.clone(),
            trusted_digests: settings.trusted_digests.clone(),
        }
    }

    /// Returns true if every bundle is allowed.
    fn are_none(&self) -> bool {
        self.signatures.is_none() && self.trusted_digests.is_none()
    }
}

/// A bundle that was read, with the word of the rules on it.
#[derive(Debug)]
pub struct Opened {
    /// The bundle.
    pub bundle: Bundle,
    /// The word of the rules.
    pub verdict: Verdict,
    /// The names that the signers may give. `None` if the bundle is not admitted by signatures.
    pub scopes: Option<Vec<Scope>>,
    /// The proofs that the verdict was made of.
    proofs: Vec<Proof>,
    /// The evidence that has admitted the bundle again.
    kept: Option<Evidence>,
    /// True for a layout folder.
    is_folder: bool,
    /// True for a receipt, whose admission is that of another file.
    is_receipt: bool,
    /// The sum of the stream that the bundle comes through, if its receipt will need it.
    sum: Option<Sum>,
}

/// The word of the rules on a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No rule forbids the bundle, and no signature speaks of it.
    Allowed,
    /// A trusted key has signed the bundle.
    Admitted(Admission),
    /// A proof is required and is not there yet. The text says which.
    Missing(String),
    /// A rule forbids the bundle.
    Forbidden(Forbidden),
}

/// The reason why a rule forbids a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forbidden {
    /// The reason and the remedy.
    pub why: String,
    /// The rule that forbids the bundle.
    pub by: By,
}

/// The rule that forbids a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The operator's list of digests lacks the bundle.
    TrustedDigests,
    /// No signature counts. Another file or another proof can help.
    Signatures,
    /// The bundle is revoked, whatever was allowed before.
    Revocation,
    /// The revoked digests of this node cannot be read, so any bundle may be revoked.
    UnreadableRevocations,
    /// The keys of this node cannot be used.
    Keys,
}

impl By {
    /// Returns the part of the rule for signatures, if signatures forbid the bundle.
    pub(crate) fn refusal(self) -> Option<RefusedBy> {
        match self {
            By::TrustedDigests => None,
            By::Signatures => Some(RefusedBy::Signature),
            By::Revocation => Some(RefusedBy::Revoked),
            By::UnreadableRevocations => Some(RefusedBy::Revocations),
            By::Keys => Some(RefusedBy::Keys),
        }
    }

    /// Returns true if only keys and signatures of today forbid the bundle.
    pub fn is_about_keys(self) -> bool {
        match self {
            By::Signatures | By::Keys => true,
            By::TrustedDigests | By::Revocation | By::UnreadableRevocations => false,
        }
    }
}

/// The reason why a bundle was not opened.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The file does not have its checksum, or changed during the pass.
    #[error(transparent)]
    Checksum(#[from] sidecar::Failure),
    /// A program writes one of its proofs at this moment.
    #[error("one of its proofs is being written: {0}")]
    Growing(String),
    /// A proof that the operator named cannot be used.
    #[error("{0}")]
    Proof(String),
    /// A bundle from a pipe must be spooled, and cannot be.
    #[error("{0}")]
    Spool(String),
    /// The file is no bundle, or a damaged one.
    #[error(transparent)]
    Bundle(#[from] bundle::Error),
}

/// The reason why a file in the folder of receipts is not read.
pub(crate) const NO_RECEIPT: &str =
    "it is no receipt that this version can read: move it out of the folder of receipts";

/// The reason why no list of images to pull is imported. Nothing binds a list to the images that a
/// registry sends, so no signature speaks of lists.
pub(crate) const NO_LISTS: &str = "`signatures: require` allows bundles only, and this is a list of images to pull: set `pullLists: off`, or \
     place a bundle of these images";

impl Opened {
    /// Returns a bundle on a node without rules about bundles.
    pub fn allowed(bundle: Bundle) -> Opened {
        Opened {
            bundle,
            verdict: Verdict::Allowed,
            scopes: None,
            proofs: Vec::new(),
            kept: None,
            is_folder: false,
            is_receipt: false,
            sum: None,
        }
    }

    /// Takes the sum of the stream that the bundle comes through. The stream must be imported
    /// first. `None` for a file, for a bundle that leaves no receipt, and without signatures.
    pub fn take_sum(&mut self) -> Option<Sum> {
        self.sum.take()
    }

    /// Returns the evidence of the admission, without images. `None` if no signature admits the
    /// bundle.
    pub fn evidence(&self, at: Timestamp) -> Option<Evidence> {
        let Verdict::Admitted(admission) = &self.verdict else {
            return None;
        };
        let bytes = match self.is_receipt {
            // They are not those of the bundle that was admitted.
            true => Bytes::Unhashed,
            false => bytes_of(&self.bundle, self.is_folder),
        };
        Some(match self.kept.clone() {
            Some(kept) => kept.again(bytes, at),
            None => Evidence::of(admission, &self.proofs, bytes, at),
        })
    }

    /// Returns true if the evidence of this admission was kept before.
    pub fn is_kept(&self) -> bool {
        self.kept.is_some()
    }
}

/// Opens a file as a bundle, and holds it against the rules. Nothing of it reaches containerd.
///
/// The work blocks, so it runs on a thread of its own. Dropping the call ends a pass over the file.
///
/// # Errors
///
/// Returns why there is no bundle to judge. A bundle that a rule forbids is no error.
pub async fn open(file: File, order: Order) -> Result<Opened, Failure> {
    let abandoned = Arc::new(AtomicBool::new(false));
    let _abandon = Abandon(Arc::clone(&abandoned));
    aside(move || Opening::new(&order, Some(&file), &abandoned)?.read(&file)).await
}

/// Runs work on a thread that it may block.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

/// A bundle from a pipe.
#[derive(Debug)]
pub enum Piped {
    /// The rules have judged it. Its blobs are still to come, or it was spooled.
    Judged(Box<Opened>),
    /// No rule speaks of it, and its blobs come before the list of its images.
    Passing(Box<Pipe>),
}

/// Opens a stream as a bundle, and holds it against the rules. Nothing of it reaches containerd.
///
/// A list of images at the beginning is enough for the rules that speak of content digests. For all
/// other rules, and for an archive that cannot be read in one pass, the stream is spooled. A stream
/// that leaves a receipt is hashed on its way ([`Opened::take_sum`]).
///
/// # Errors
///
/// Returns why there is no bundle to judge. A stream that is cut off is an error.
pub async fn open_pipe(
    source: impl Read + Send + 'static,
    order: Order,
    spool: Spool,
) -> Result<Piped, Failure> {
    let abandoned = Arc::new(AtomicBool::new(false));
    let _abandon = Abandon(Arc::clone(&abandoned));
    aside(move || {
        let mut sum = None;
        let pipe = match order.leaves_receipt && order.rules.signatures.is_some() {
            true => {
                let (summed, of_it) = Summed::new(source);
                sum = Some(of_it);
                Pipe::open(summed, &order.path, &order.limits)?
            }
            false => Pipe::open(source, &order.path, &order.limits)?,
        };
        let is_listed = pipe.catalog().is_some();
        if !is_listed && pipe.has_named_blobs() && order.rules.are_none() && order.more.is_empty() {
            return Ok(Piped::Passing(Box::new(pipe)));
        }
        let opening = Opening::new(&order, None, &abandoned)?;
        if let Some(catalog) = pipe.catalog()
            && !opening.is_judged_by_file()
            && let Some((verdict, proofs)) = opening.judge(&catalog.digest, Bytes::Unhashed)?
        {
            let opened = opening.opened(pipe.into_bundle()?, verdict, proofs);
            return Ok(Piped::Judged(Box::new(Opened { sum, ..opened })));
        }
        let file = spool.take(pipe, &abandoned)?;
        let opened = Opening::new(&order, Some(&file), &abandoned)?.read(&file)?;
        opened.bundle.check_whole()?;
        Ok(Piped::Judged(Box::new(opened)))
    })
    .await
}

/// Tells the blocking thread to stop when it is dropped. A thread cannot be cancelled, and the
/// program could not end before it.
struct Abandon(Arc<AtomicBool>);

impl Drop for Abandon {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The opening of one file.
struct Opening<'a> {
    order: &'a Order,
    abandoned: &'a AtomicBool,
    /// True for a layout folder, which has no bytes of its own.
    is_folder: bool,
    /// The pass over the file, until the catalog is made of it.
    hashed: Option<Hashed>,
    /// All that signatures are judged by, if they are judged.
    trust: Option<Trust>,
    /// Evidence of an earlier admission.
    evidence: Option<Evidence>,
}

/// The keys, the revocations and the proofs beside a bundle.
struct Trust {
    policy: Policy,
    keys: TrustedKeys,
    revocations: Revocations,
    beside: Found,
}

impl<'a> Opening<'a> {
    /// Reads the rules. There is no file while a bundle comes through a pipe.
    fn new(order: &'a Order, file: Option<&File>, abandoned: &'a AtomicBool) -> Result<Self, Failure> {
        let metadata = file.map(File::metadata);
        let is_folder = metadata.is_some_and(|metadata| metadata.is_ok_and(|metadata| metadata.is_dir()));
        let trust = match order.rules.signatures {
            Some(policy) => Some(Trust {
                policy,
                keys: TrustedKeys::read(&order.rules.keys),
                revocations: keys::revocations(&order.rules.keys),
                beside: proofs_of(order, file)?,
            }),
            None => None,
        };
        Ok(Opening {
            order,
            abandoned,
            is_folder,
            hashed: None,
            trust,
            evidence: order.evidence.clone(),
        })
    }

    /// Returns true if a rule speaks of the file's bytes, or may do so when the file is gone.
    fn needs_file_digest(&self) -> bool {
        self.trust.is_some() && self.order.leaves_receipt || self.is_judged_by_file()
    }

    /// Returns true if a rule speaks of the file's bytes.
    fn is_judged_by_file(&self) -> bool {
        let is_evident = self.order.evidence.is_some();
        self.trust.as_ref().is_some_and(|trust| {
            self.order.receipt.is_none() && trust.revocations.speak_of_files()
                || !is_evident && speak_of_the_file(&trust.beside.proofs)
        })
    }

    fn read(mut self, file: &File) -> Result<Opened, Failure> {
        let mut is_proven = self.needs_file_digest();
        if self.order.checksum.is_some() {
            self.hash(file)?;
        }
        loop {
            let bundle = self.bundle(file, is_proven)?;
            if let (Some(state), None) = (&self.order.receipt, &self.evidence) {
                self.evidence = Evidence::read(state, bundle.catalog().stood_for());
            }
            let (catalog, bytes) = match (&self.order.receipt, &self.evidence) {
                // The bytes of the receipt are not those of the bundle that was admitted.
                (Some(_), Some(evidence)) => (bundle.catalog().stood_for(), evidence.bytes()),
                (Some(_), None) => (bundle.catalog().stood_for(), Bytes::Unhashed),
                (None, _) => (&bundle.catalog().digest, bytes_of(&bundle, self.is_folder)),
            };
            match self.judge(catalog, bytes)? {
                Some((verdict, proofs)) => return Ok(self.opened(bundle, verdict, proofs)),
                // Only the pass over the file can tell. It happens once, since a bundle that was
                // read from it has the digest of its file.
                None => is_proven = true,
            }
        }
    }

    /// Makes the pass over the file, unless it was made. An entry that is no file has none, and the
    /// reader refuses it.
    fn hash(&mut self, file: &File) -> Result<(), Failure> {
        let is_file = file.metadata().is_ok_and(|metadata| metadata.is_file());
        if self.hashed.is_some() || !is_file {
            return Ok(());
        }
        let file = file.try_clone().map_err(sidecar::Failure::Read)?;
        let hashed = Hashed::of(file, self.abandoned).map_err(|fault| match fault {
            Fault::Changed => sidecar::Failure::Changed,
            Fault::Io { source, .. } => sidecar::Failure::Read(source),
            other => sidecar::Failure::Read(io::Error::other(other)),
        })?;
        if let Some(expected) = &self.order.checksum
            && expected != hashed.digest()
        {
            let name = self.order.path.file_name().unwrap_or_default();
            return Err(sidecar::mismatch(name, expected, hashed.digest()).into());
        }
        self.hashed = Some(hashed);
        Ok(())
    }

    /// Reads the catalog. If it must be proven, it is made of the bytes that were hashed.
    fn bundle(&mut self, file: &File, is_proven: bool) -> Result<Bundle, Failure> {
        let (path, limits) = (&self.order.path, &self.order.limits);
        let same = || {
            file.try_clone().map_err(|source| {
                let action = "open the file";
                bundle::Error {
                    path: path.clone(),
                    fault: Fault::Io { action, source },
                }
            })
        };
        if self.is_folder {
            return Ok(Bundle::from_dir(same()?, path, limits)?);
        }
        if is_proven {
            self.hash(file)?;
        }
        match self.hashed.take_if(|_| is_proven) {
            Some(hashed) => Ok(Bundle::from_hashed(hashed, path, limits)?),
            None => Ok(Bundle::from_file(same()?, path, limits)?),
        }
    }

    fn opened(self, bundle: Bundle, verdict: Verdict, proofs: Vec<Proof>) -> Opened {
        let scopes = match (&verdict, &self.trust) {
            (Verdict::Admitted(admission), Some(trust)) => Some(trust.keys.scopes_of(admission)),
            _ => None,
        };
        Opened {
            bundle,
            kept: match (&verdict, proofs.is_empty()) {
                (Verdict::Admitted(_), true) => self.evidence,
                _ => None,
            },
            is_folder: self.is_folder,
            is_receipt: self.order.receipt.is_some(),
            sum: None,
            verdict,
            scopes,
            proofs,
        }
    }

    /// Returns the word of the rules, and the proofs that it was made of. `None` if only the digest
    /// of the file can tell. The list of a signature may be in the making, which is a failure.
    fn judge(&self, catalog: &Digest, bytes: Bytes<'_>) -> Result<Option<(Verdict, Vec<Proof>)>, Failure> {
        let trusted = self.order.rules.trusted_digests.as_deref();
        let Some(trust) = &self.trust else {
            let verdict = trusted.map(|trusted| trusted_digests::check(trusted, catalog));
            return Ok(Some((allowed(verdict.unwrap_or(Ok(()))), Vec::new())));
        };
        let (mut proofs, mut lists) = (trust.beside.proofs.clone(), Vec::new());
        if let Some(folder) = trusted {
            match trusted_digests::proofs(folder, catalog, bytes) {
                Ok(Found {
                    growing: Some(name), ..
                }) => return Err(Failure::Growing(name)),
                Ok(found) => lists = found.proofs,
                Err(why) => return Ok(Some((forbidden(By::TrustedDigests, why), Vec::new()))),
            }
        }
        if let Some(folder) = trusted
            && let Err(why) = trusted_digests::check_unsigned(folder, catalog)
        {
            match trust.judge(Policy::Require, &lists, catalog, bytes) {
                Judgement::Admitted(_) => {}
                Judgement::NeedsFileDigest => return Ok(self.without_sum()),
                Judgement::Unsigned { .. } | Judgement::Refused(_) => {
                    return Ok(Some((forbidden(By::TrustedDigests, why), Vec::new())));
                }
            }
        }
        proofs.append(&mut lists);
        let judgement = trust.judge(trust.policy, &proofs, catalog, bytes);
        if let Some(admission) = self.stands(trust, catalog, bytes) {
            // A signature that came later may add a key.
            let adds_key = matches!(
                &judgement,
                Judgement::Admitted(now) if now.signers.len() > admission.signers.len()
            );
            if !adds_key {
                return Ok(Some((Verdict::Admitted(admission), Vec::new())));
            }
        }
        if self.order.receipt.is_some() && self.needs_sum(trust) {
            return Ok(self.without_sum());
        }
        let verdict = match judgement {
            Judgement::NeedsFileDigest => return Ok(self.without_sum()),
            Judgement::Admitted(admission) => Verdict::Admitted(admission),
            Judgement::Unsigned { remarks } => {
                let mut reasons = trust.beside.unfinished.clone();
                reasons.extend(remarks.iter().map(ToString::to_string));
                match trust.policy {
                    // A signature that is there must be valid, also if its list comes later.
                    Policy::IfPresent if trust.beside.unfinished.is_empty() => Verdict::Allowed,
                    policy => Verdict::Missing(missing(policy, &reasons)),
                }
            }
            // The list of another signature is still to come.
            Judgement::Refused(Refusal::NoneValid(_)) if !trust.beside.unfinished.is_empty() => {
                Verdict::Missing(missing(trust.policy, &trust.beside.unfinished))
            }
            Judgement::Refused(refusal) => {
                let by = match refusal {
                    Refusal::Revoked { .. } => By::Revocation,
                    Refusal::Revocations(_) => By::UnreadableRevocations,
                    Refusal::NoKeys(_) => By::Keys,
                    _ => By::Signatures,
                };
                forbidden(by, refusal.to_string())
            }
        };
        Ok(Some((verdict, proofs)))
    }

    /// Returns the word on a file whose digest decides and is not known. `None` if a pass over the
    /// file can tell. For a receipt nothing can, since the file is gone.
    fn without_sum(&self) -> Option<(Verdict, Vec<Proof>)> {
        self.order.receipt.as_ref()?;
        let why = "digests of files are revoked or listed, and the evidence lacks that of its bundle's file: place \
                   the bundle once more";
        Some((forbidden(By::Revocation, why.to_owned()), Vec::new()))
    }

    /// Returns true if the evidence stands or falls with the digest of the file, and lacks it.
    fn needs_sum(&self, trust: &Trust) -> bool {
        let evidence = self.evidence.as_ref();
        evidence.is_some_and(|evidence| {
            let standing = evidence.standing(trust.keys.keys(), &trust.revocations, evidence.bytes());
            matches!(standing, Standing::NeedsFileDigest)
        })
    }

    /// Returns the admission by earlier evidence for the same catalog, if it stands today.
    fn stands(&self, trust: &Trust, catalog: &Digest, bytes: Bytes<'_>) -> Option<Admission> {
        let evidence = self.evidence.as_ref()?;
        let is_same = evidence.catalog() == catalog;
        // Another file may have the same catalog, and its own sum may be revoked.
        let is_revoked = match bytes {
            Bytes::Hashed(file) => trust.revocations.of_file(file).is_some(),
            Bytes::Unhashed | Bytes::Folder => false,
        };
        match evidence.standing(trust.keys.keys(), &trust.revocations, bytes) {
            Standing::Admitted(admission) if is_same && !is_revoked => Some(admission),
            _ => None,
        }
    }
}

impl Trust {
    fn judge(&self, policy: Policy, proofs: &[Proof], catalog: &Digest, bytes: Bytes<'_>) -> Judgement {
        judge(&Question {
            policy,
            keys: self.keys.keys(),
            revocations: &self.revocations,
            proofs,
            catalog,
            bytes,
        })
    }
}

/// Ends the evidence in a state folder that covers no record of containerd any more. Evidence for a
/// catalog that `is_imported` knows stays, since the daemon restores its records.
///
/// Another program may add to the evidence meanwhile. Such evidence stays until the next call.
///
/// # Errors
///
/// Returns why the records or the folder cannot be read, in one line.
pub async fn end_evidence(
    state: &Path,
    client: &Client,
    is_imported: impl Fn(&Digest) -> bool,
) -> Result<(), String> {
    let text = |error: io::Error| {
        format!(
            "the evidence of former images stays in {}: {error}",
            state.display()
        )
    };
    let mut unneeded = admitted::documents(state, |catalog| !is_imported(catalog)).map_err(text)?;
    if !unneeded.is_empty() {
        let names: BTreeSet<&str> = unneeded.iter().flat_map(Document::names).collect();
        let records = client
            .images_named(names)
            .await
            .map_err(|error| basics::chain(&error))?;
        let covers = |document: &Document| {
            let mut records = records.iter();
            records.any(|record| document.has(&record.name, record.target.digest()))
        };
        unneeded.retain(|document| !covers(document));
    }
    admitted::prune(state, |document| !unneeded.contains(document)).map_err(text)
}

/// Returns the digest of a bundle's file, if a pass has made it.
fn bytes_of(bundle: &Bundle, is_folder: bool) -> Bytes<'_> {
    match bundle.file_digest() {
        Some(digest) => Bytes::Hashed(digest),
        None if is_folder => Bytes::Folder,
        None => Bytes::Unhashed,
    }
}

fn allowed(checked: Result<(), String>) -> Verdict {
    match checked {
        Ok(()) => Verdict::Allowed,
        Err(why) => forbidden(By::TrustedDigests, why),
    }
}

fn forbidden(by: By, why: String) -> Verdict {
    Verdict::Forbidden(Forbidden { why, by })
}

fn missing(policy: Policy, reasons: &[String]) -> String {
    let mut text = match policy {
        Policy::Require => "there is no signature for it, and `signatures: require` demands one".to_owned(),
        Policy::IfPresent => "its signature is not whole".to_owned(),
    };
    if !reasons.is_empty() {
        text = format!("{text} ({})", reasons.join(". "));
    }
    text
}

/// Returns true if only the pass over the file makes one of these proofs count. A list of catalogs
/// needs no pass, so it comes first.
fn speak_of_the_file(proofs: &[Proof]) -> bool {
    let is_of_catalogs = |proof: &Proof| {
        let list = proof.list().map(|list| List::parse(list.text()));
        matches!(list, Some(Ok(List::Catalogs(_))))
    };
    !proofs.is_empty() && !proofs.iter().any(is_of_catalogs)
}

/// Returns the proofs beside a bundle, and those that the operator names.
fn proofs_of(order: &Order, bundle: Option<&File>) -> Result<Found, Failure> {
    let mut found = match order.folder.as_deref().map(Folder::open_dir) {
        None => Found::default(),
        Some(Ok(folder)) => proofs::beside(&folder, &order.name),
        Some(Err(error)) => return Err(sidecar::Failure::Read(error).into()),
    };
    for path in &order.more {
        add_named(&mut found, path, bundle)?;
    }
    match &found.growing {
        Some(name) => Err(Failure::Growing(name.clone())),
        None => Ok(found),
    }
}

/// Adds a proof that the operator names: a list with its signatures beside it, or a signature. The
/// list of a signature lies beside it. Without a list, the signature is over the bundle.
fn add_named(found: &mut Found, path: &Path, bundle: Option<&File>) -> Result<(), Failure> {
    let known = found.proofs.len() + found.unfinished.len();
    let text = path.as_os_str().as_bytes();
    let ending = |form: &Form| text.strip_suffix(form.ending().as_bytes());
    let signed = Form::ALL.iter().find_map(ending).map(OsStr::from_bytes);
    let is_list = |signed: &OsStr| {
        let identity = |metadata: io::Result<_>| metadata.map(|metadata| Identity::of(&metadata)).ok();
        let listed = identity(std::fs::metadata(signed));
        listed.is_some() && listed != bundle.and_then(|bundle| identity(bundle.metadata()))
    };
    let (signed, list) = match signed {
        Some(signed) => (signed, is_list(signed).then_some(Reach::Bundle)),
        None => (path.as_os_str(), Some(Reach::Bundle)),
    };
    found.add_signatures(signed, list, |name| match folder::open_path(Path::new(name)) {
        Ok(file) => Ok(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Refused::Gone),
        Err(error) => Err(Refused::Unreadable(error)),
    });
    match found.proofs.len() + found.unfinished.len() > known || found.growing.is_some() {
        true => Ok(()),
        false => Err(Failure::Proof(format!(
            "{} is no proof: it must be a signature, or a list with its signature beside it",
            path.display()
        ))),
    }
}
