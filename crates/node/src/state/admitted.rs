//! The evidence of admissions: the folder `admitted` in the state folder.
//!
//! For each catalog that a signature admitted, `<catalog>.json` has the signatures, and the images
//! that landed with it. `<sha256>.text` has a signed list, which all bundles of a release share.
//! [`Evidence::standing`] checks them again with the keys and revocations of today, so a forged or
//! changed file admits nothing.
//!
//! The daemon and `airgapd import` write here side by side. A lock on the folder orders them, and
//! evidence for the same catalog adds to the evidence that is there.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use admission::{
    Admission, Bytes, Form, Judgement, KeyKind, Keys, LARGEST_LIST, MOST_SIGNATURES, Policy, Proof, Question,
    Reach, Refusal, Revocations, SignedList, judge,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use import::names::Scope;
use jiff::Timestamp;
use oci_spec::image::Digest;
use serde::{Deserialize, Serialize};

use super::entry::ImageEntry;
use crate::images::folder::{self, Depth, Folder};
use crate::images::keys::TrustedKeys;

/// The version of a document that this program reads and writes.
const VERSION: u32 = 1;

/// Name of the folder in the state folder.
const FOLDER: &str = "admitted";

const DOCUMENT: &str = ".json";
const TEXT: &str = ".text";

/// Name of a file that is being written. Only the owner of the folder's lock writes here.
const TEMPORARY: &str = ".new";

/// Bound for a document's size, in bytes: as many images as the ledger may have.
const LARGEST: u64 = 64 << 20;

/// The evidence for the admission of one catalog.
#[derive(Clone, Debug)]
pub struct Evidence {
    document: Document,
    /// The signed lists, by the sha256 of their texts.
    lists: Lists,
}

type Lists = BTreeMap<String, Arc<SignedList>>;

/// The document of a catalog.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    version: u32,
    /// Digest of the admitted catalog.
    catalog: Digest,
    /// Sha256 of the bundle file, if a pass over the file has made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    file: Option<Digest>,
    /// True if the bundle is a folder.
    #[serde(default)]
    folder: bool,
    /// Time of the last admission.
    at: Timestamp,
    /// The records that landed.
    images: Vec<ImageEntry>,
    proofs: Vec<KeptProof>,
}

/// A signature that admitted the catalog.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct KeptProof {
    /// Name of the signature's file.
    name: String,
    form: Form,
    reach: Reach,
    /// Name of the key's file without its ending, at the time of the admission.
    key: String,
    fingerprint: Digest,
    kind: KeyKind,
    /// The bytes of the signature's file, in base64.
    signature: String,
    /// The signed list. Without a list, the signature speaks of the bundle file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    list: Option<KeptList>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct KeptList {
    /// Name of the list's file.
    name: String,
    /// Sha256 of its text.
    text: Digest,
}

/// The state of an earlier admission, by the keys and revocations of today.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// A key that made a signature is still trusted.
    Admitted(Admission),
    /// A digest of the bundle is revoked. The text names it and its list.
    Revoked(String),
    /// No signature counts any more. The text is the reason.
    Withdrawn(String),
    /// Sums of files are revoked, and the sum of this file is not known.
    NeedsFileDigest,
}

impl Evidence {
    /// Makes the evidence of an admission that [`judge`] has made of `proofs`. No image has landed
    /// yet.
    pub fn of(admission: &Admission, proofs: &[Proof], bytes: Bytes<'_>, at: Timestamp) -> Evidence {
        let mut lists = Lists::new();
        // Root may have placed a key under several names. They all point to one proof.
        let mut seen = BTreeSet::new();
        let signers = admission.signers.iter();
        let signers = signers.filter(|signer| seen.insert(signer.proof));
        let proofs = signers.filter_map(|signer| {
            let proof = proofs.get(signer.proof)?;
            let list = proof.list().map(|list| {
                let text = basics::digest::sha256(list.text());
                lists.insert(text.to_string(), Arc::clone(list));
                let name = list.name().to_owned();
                KeptList { name, text }
            });
            Some(KeptProof {
                name: proof.name().to_owned(),
                form: proof.form(),
                reach: proof.reach(),
                key: signer.key.clone(),
                fingerprint: signer.fingerprint.clone(),
                kind: signer.kind,
                signature: STANDARD.encode(proof.bytes()),
                list,
            })
        });
        let proofs = proofs.collect();
        let (file, folder) = match bytes {
            Bytes::Hashed(file) => (Some(file.clone()), false),
            Bytes::Folder => (None, true),
            Bytes::Unhashed => (None, false),
        };
        let document = Document {
            version: VERSION,
            catalog: admission.catalog.clone(),
            file,
            folder,
            at,
            images: Vec::new(),
            proofs,
        };
        Evidence { document, lists }
    }

    /// Returns the evidence of another admission by the same proofs. `bytes` may be those of a pass
    /// that the first admission did not need.
    #[must_use]
    pub fn again(mut self, bytes: Bytes<'_>, at: Timestamp) -> Evidence {
        self.document.at = at;
        if let (None, Bytes::Hashed(file)) = (&self.document.file, bytes) {
            self.document.file = Some(file.clone());
        }
        self
    }

    /// Returns the evidence with these records as those that landed: their names and targets.
    #[must_use]
    pub fn with_landed(mut self, images: impl IntoIterator<Item = (String, Digest)>) -> Evidence {
        let images = images.into_iter();
        self.document.images = images.map(|(name, target)| ImageEntry { name, target }).collect();
        self
    }

    /// Reads the evidence for a catalog in a state folder. Returns `None` if there is none that can
    /// be used.
    pub fn read(state: &Path, catalog: &Digest) -> Option<Evidence> {
        let path = state.join(FOLDER);
        let document = document(&path, &document_name(catalog)).ok()?;
        with_lists(&path, document, &mut Lists::new()).ok()
    }

    /// Returns the digest of the admitted catalog.
    pub fn catalog(&self) -> &Digest {
        &self.document.catalog
    }

    /// Returns the time of the admission.
    pub fn at(&self) -> Timestamp {
        self.document.at
    }

    /// Returns true if a record of this name with this target landed.
    pub fn has(&self, name: &str, target: &Digest) -> bool {
        self.document.has(name, target)
    }

    /// Returns the targets with which a record of this name landed. There is at most one.
    pub fn target_of(&self, name: &str) -> Option<&Digest> {
        let mut images = self.document.images.iter();
        images.find(|image| image.name == name).map(|image| &image.target)
    }

    /// Adds what earlier evidence for the same catalog has more: images, and signatures of other
    /// keys that speak of the same bytes.
    fn add(&mut self, before: Evidence, is_withheld: impl Fn(&str) -> bool) {
        let document = &mut self.document;
        let names: BTreeSet<String> = document.images.iter().map(|image| image.name.clone()).collect();
        let images = before.document.images.into_iter();
        let images = images.filter(|image| !names.contains(&image.name) && !is_withheld(&image.name));
        document.images.extend(images);
        if (&before.document.file, before.document.folder) != (&document.file, document.folder) {
            return;
        }
        for proof in before.document.proofs {
            let is_known = |known: &KeptProof| known.fingerprint == proof.fingerprint;
            if document.proofs.len() < MOST_SIGNATURES && !document.proofs.iter().any(is_known) {
                document.proofs.push(proof);
            }
        }
        for (text, list) in before.lists {
            self.lists.entry(text).or_insert(list);
        }
    }

    /// Returns what the evidence knows of the bytes of the admitted bundle.
    pub(crate) fn bytes(&self) -> Bytes<'_> {
        match (&self.document.file, self.document.folder) {
            (Some(file), _) => Bytes::Hashed(file),
            (None, true) => Bytes::Folder,
            (None, false) => Bytes::Unhashed,
        }
    }

    /// Checks the signatures again. The document's own words about keys count for nothing. `now` is
    /// the digest of today's file, if a pass has made it, for evidence that never needed one.
    pub fn standing(&self, keys: &Keys, revocations: &Revocations, now: Bytes<'_>) -> Standing {
        let document = &self.document;
        let proofs: Vec<Proof> = document.proofs.iter().map(|proof| self.proof(proof)).collect();
        let bytes = match self.bytes() {
            Bytes::Unhashed => now,
            known => known,
        };
        let judgement = judge(&Question {
            policy: Policy::Require,
            keys,
            revocations,
            proofs: &proofs,
            catalog: &document.catalog,
            bytes,
        });
        match judgement {
            Judgement::Admitted(admission) => Standing::Admitted(admission),
            Judgement::Refused(refusal @ Refusal::Revoked { .. }) => Standing::Revoked(refusal.to_string()),
            Judgement::Refused(refusal) => Standing::Withdrawn(refusal.to_string()),
            Judgement::Unsigned { remarks } => {
                let remarks: Vec<String> = remarks.iter().map(ToString::to_string).collect();
                Standing::Withdrawn(format!("no signature counts: {}", remarks.join("; ")))
            }
            Judgement::NeedsFileDigest => Standing::NeedsFileDigest,
        }
    }

    fn proof(&self, kept: &KeptProof) -> Proof {
        let list = kept.list.as_ref().map(|list| {
            let known = self.lists.get(list.text.as_ref());
            let lost = || {
                let why = "its text is not among the evidence".to_owned();
                Arc::new(SignedList::unreadable(&list.name, why))
            };
            known.map_or_else(lost, Arc::clone)
        });
        match STANDARD.decode(&kept.signature) {
            Ok(bytes) => Proof::new(&kept.name, kept.form, bytes, list, kept.reach),
            Err(error) => Proof::unreadable(&kept.name, kept.form, error.to_string(), list, kept.reach),
        }
    }
}

impl Document {
    /// Returns the digest of the admitted catalog.
    pub fn catalog(&self) -> &Digest {
        &self.catalog
    }

    /// Returns the names of the records that landed.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.images.iter().map(|image| image.name.as_str())
    }

    /// Returns true if a record of this name with this target landed.
    pub fn has(&self, name: &str, target: &Digest) -> bool {
        let mut images = self.images.iter();
        images.any(|image| image.name == name && image.target == *target)
    }
}

/// The evidence of all admissions.
#[derive(Debug, Default)]
pub struct Admissions {
    /// The evidence by the text of the catalog's digest.
    pub evidence: BTreeMap<String, Evidence>,
    /// Documents and texts that cannot be used, each with the reason.
    pub problems: Vec<String>,
}

impl Admissions {
    /// Reads the evidence in a state folder, for the daemon and for commands that run beside it. A
    /// state folder without evidence has none.
    pub fn read(state: &Path) -> Admissions {
        let path = state.join(FOLDER);
        let mut admissions = Admissions::default();
        let names = match names_in(&path) {
            Ok(names) => names,
            Err(error) => {
                admissions.problems.push(format!("{}: {error}", path.display()));
                return admissions;
            }
        };
        let mut texts = Lists::new();
        for name in names.iter().filter(|name| name.ends_with(DOCUMENT)) {
            let evidence = document(&path, name).and_then(|document| with_lists(&path, document, &mut texts));
            match evidence {
                Ok(evidence) => {
                    admissions
                        .evidence
                        .insert(evidence.catalog().to_string(), evidence);
                }
                Err(why) => admissions.problems.push(why),
            }
        }
        admissions
    }
}

/// The evidence of all admissions, judged by the keys and revocations of one moment.
#[derive(Debug)]
pub struct Judged<'a>(Vec<(&'a Evidence, Result<Vec<Scope>, Doubt>)>);

/// The reason why no evidence vouches for an image record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doubt {
    /// The reason.
    pub why: String,
    /// Remedy.
    pub remedy: &'static str,
}

impl Admissions {
    /// Checks all signatures with these keys and revocations.
    pub fn judged(&self, trusted: &TrustedKeys, revocations: &Revocations) -> Judged<'_> {
        let judged = |evidence| (evidence, scopes(evidence, trusted, revocations));
        Judged(self.evidence.values().map(judged).collect())
    }
}

/// Returns the names that the signers of a catalog may give today.
fn scopes(
    evidence: &Evidence,
    trusted: &TrustedKeys,
    revocations: &Revocations,
) -> Result<Vec<Scope>, Doubt> {
    let (why, remedy) = match evidence.standing(trusted.keys(), revocations, Bytes::Unhashed) {
        Standing::Admitted(admission) => return Ok(trusted.scopes_of(&admission)),
        Standing::Revoked(why) => (
            why,
            "remove its bundle and its record, and import a bundle that is not revoked",
        ),
        Standing::Withdrawn(why) => (
            why,
            "trust its key again, or import a bundle with it that a trusted key has signed",
        ),
        Standing::NeedsFileDigest => (
            "checksums of files are revoked, and the evidence lacks the checksum of its bundle".to_owned(),
            "import its bundle again, or revoke by the line of `airgapd inspect --digest` instead",
        ),
    };
    Err(Doubt { why, remedy })
}

impl Judged<'_> {
    /// Checks that a record of this name and target came with a catalog that a trusted key admits
    /// today. The patterns of the key must allow the name. No label of the record counts.
    ///
    /// # Errors
    ///
    /// Returns why no evidence vouches for the record.
    pub fn vouch(&self, name: &str, target: &Digest) -> Result<(), Doubt> {
        let mut doubt = None;
        for (evidence, scopes) in &self.0 {
            let Some(landed) = evidence.target_of(name) else {
                continue;
            };
            let verdict = match scopes {
                _ if landed != target => Err(moved(landed)),
                Ok(scopes) => within(scopes, name),
                Err(doubt) => Err(doubt.clone()),
            };
            match verdict {
                Ok(()) => return Ok(()),
                // The reason of evidence for this very image says more than another image.
                Err(why) if doubt.is_none() || landed == target => doubt = Some(why),
                Err(_) => {}
            }
        }
        Err(doubt.unwrap_or_else(|| Doubt {
            why: "there is no evidence that a signed bundle brought an image of this name".to_owned(),
            remedy: "import a signed bundle with it while `signatures` is set",
        }))
    }
}

fn moved(landed: &Digest) -> Doubt {
    Doubt {
        why: format!("a signed bundle brought {landed} under this name, and another program moved the name"),
        remedy: "remove its record, and import the signed bundle again",
    }
}

fn within(scopes: &[Scope], name: &str) -> Result<(), Doubt> {
    let mut patterns = scopes.iter().flat_map(|scope| &scope.names);
    if patterns.any(|pattern| pattern.matches(name)) {
        return Ok(());
    }
    let keys: Vec<&str> = scopes.iter().map(|scope| scope.key.as_str()).collect();
    Err(Doubt {
        why: format!(
            "the patterns of the keys that signed it lack this name: {}",
            keys.join(", ")
        ),
        remedy: "add a pattern for the name to the `.allow` file of the key, or import a bundle of another key",
    })
}

/// Keeps evidence in a state folder, and creates the folder if needed. Earlier evidence for the
/// same catalog adds its images and signatures, except the names that `is_withheld` keeps from the
/// bundle. The call blocks for as long as the disk takes. A crash at any moment leaves the old
/// evidence or the new evidence.
///
/// # Errors
///
/// Returns the error of the disk. The evidence may then be on the disk or not.
pub fn keep(state: &Path, mut evidence: Evidence, is_withheld: impl Fn(&str) -> bool) -> io::Result<()> {
    let path = state.join(FOLDER);
    if !path.exists() {
        DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
        File::open(state)?.sync_all()?;
    }
    let _lock = lock(&path)?;
    if let Some(before) = Evidence::read(state, evidence.catalog()) {
        evidence.add(before, is_withheld);
    }
    let has = |name: &str, text: &[u8]| read(&path, name, LARGEST_LIST).is_ok_and(|bytes| bytes == text);
    carry_out(&path, steps_to_keep(&evidence, has))
}

/// Returns the documents of all catalogs that fulfil a condition. Documents that cannot be read are
/// left out.
///
/// # Errors
///
/// Returns why the folder cannot be listed.
pub fn documents(state: &Path, is_wanted: impl Fn(&Digest) -> bool) -> io::Result<Vec<Document>> {
    let path = state.join(FOLDER);
    let names = names_in(&path)?;
    let names = names.iter().filter(|name| name.ends_with(DOCUMENT));
    let documents = names.filter_map(|name| document(&path, name).ok());
    Ok(documents
        .filter(|document| is_wanted(&document.catalog))
        .collect())
}

/// Removes the documents that are not needed any more, texts without a document, and the traces of
/// crashes. The call waits for programs that keep evidence.
///
/// # Errors
///
/// Returns the error of the disk. The next call removes the rest.
pub fn prune(state: &Path, is_needed: impl Fn(&Document) -> bool) -> io::Result<()> {
    let path = state.join(FOLDER);
    if !path.exists() {
        return Ok(());
    }
    let _lock = lock(&path)?;
    let names = names_in(&path)?;
    let read = |name: &str| document(&path, name).ok();
    carry_out(&path, steps_to_prune(&names, read, is_needed))
}

/// Locks the folder against other jobs and other programs, until the file is dropped. The kernel
/// frees the lock when its owner dies.
fn lock(path: &Path) -> io::Result<File> {
    let folder = File::open(path)?;
    folder.lock()?;
    Ok(folder)
}

/// One step of a change. A crash or a power cut may come between any two.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// Writes and syncs a file, and gives it its name.
    Put(String, Vec<u8>),
    Remove(String),
    /// Syncs the folder. Before that, a power cut may undo each of the steps alone.
    Sync,
}

/// Returns the steps that keep evidence. The texts come first, so no document lacks its text. `has`
/// tells if the folder has a file with this content.
fn steps_to_keep(evidence: &Evidence, has: impl Fn(&str, &[u8]) -> bool) -> Vec<Step> {
    let mut steps = Vec::new();
    for proof in &evidence.document.proofs {
        let Some(list) = &proof.list else { continue };
        let Some(signed) = evidence.lists.get(list.text.as_ref()) else {
            continue;
        };
        let step = Step::Put(text_name(&list.text), signed.text().to_vec());
        if !steps.contains(&step) && !has(&text_name(&list.text), signed.text()) {
            steps.push(step);
        }
    }
    // A text that is there may be unsynced, because an earlier run ended in between.
    steps.push(Step::Sync);
    let bytes = serde_json::to_vec(&evidence.document).expect("evidence is plain data");
    steps.push(Step::Put(document_name(evidence.catalog()), bytes));
    steps.push(Step::Sync);
    steps
}

/// Returns the steps that remove what is not needed. A document goes before its texts. A document
/// that cannot be read stays, and then all texts stay: a newer version may have written it.
fn steps_to_prune(
    names: &BTreeSet<String>,
    read: impl Fn(&str) -> Option<Document>,
    is_needed: impl Fn(&Document) -> bool,
) -> Vec<Step> {
    let (mut steps, mut texts, mut is_known) = (Vec::new(), BTreeSet::new(), true);
    for name in names.iter().filter(|name| name.ends_with(DOCUMENT)) {
        match read(name) {
            Some(document) if is_needed(&document) => texts.extend(texts_of(&document)),
            Some(_) => steps.push(Step::Remove(name.clone())),
            None => is_known = false,
        }
    }
    // An earlier run may have ended before its removals were synced.
    steps.push(Step::Sync);
    let is_unused = |name: &&String| name.ends_with(TEXT) && !texts.contains(*name);
    let unused = names.iter().filter(|name| is_known && is_unused(name));
    steps.extend(unused.cloned().map(Step::Remove));
    if names.contains(TEMPORARY) {
        steps.push(Step::Remove(TEMPORARY.to_owned()));
    }
    steps
}

fn texts_of(document: &Document) -> BTreeSet<String> {
    let lists = document.proofs.iter().filter_map(|proof| proof.list.as_ref());
    lists.map(|list| text_name(&list.text)).collect()
}

fn document_name(catalog: &Digest) -> String {
    format!("{}{DOCUMENT}", catalog.digest())
}

fn text_name(text: &Digest) -> String {
    format!("{}{TEXT}", text.digest())
}

fn carry_out(path: &Path, steps: Vec<Step>) -> io::Result<()> {
    for step in steps {
        match step {
            Step::Put(name, bytes) => put(path, &name, &bytes)?,
            Step::Remove(name) => remove(&path.join(name))?,
            Step::Sync => File::open(path)?.sync_all()?,
        }
    }
    Ok(())
}

fn put(path: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.join(TEMPORARY);
    remove(&temporary)?;
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path.join(name))
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Returns the names in the folder. An absent folder has none.
fn names_in(path: &Path) -> io::Result<BTreeSet<String>> {
    let metadata = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(error) => return Err(error),
    };
    if !folder::is_roots_alone(metadata.mode(), metadata.uid()) {
        return Err(io::Error::other("others than root can write it"));
    }
    let listing = Folder::open_dir(path)?.list(Depth::default())?;
    let names = listing.entries.into_iter().map(|entry| entry.name);
    Ok(names.filter_map(|name| name.into_string().ok()).collect())
}

/// Reads a file of the folder, or returns why it cannot be used.
fn read(path: &Path, name: &str, largest: u64) -> Result<Vec<u8>, String> {
    let folder = Folder::open_dir(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let bytes = folder.read_roots(path, OsStr::new(name), largest);
    bytes.map_err(|why| why.to_string())
}

fn document(path: &Path, name: &str) -> Result<Document, String> {
    #[derive(Deserialize)]
    struct Header {
        version: u32,
    }
    let bytes = read(path, name, LARGEST)?;
    let whole = path.join(name);
    let broken = |why: String| format!("{}: {why}", whole.display());
    match serde_json::from_slice(&bytes) {
        Ok(Header { version: VERSION }) => {}
        Ok(Header { version }) => {
            return Err(broken(format!(
                "it has version {version}, and this airgapd knows {VERSION}"
            )));
        }
        Err(error) => return Err(broken(error.to_string())),
    }
    let document: Document = serde_json::from_slice(&bytes).map_err(|error| broken(error.to_string()))?;
    match document_name(&document.catalog) == name {
        true => Ok(document),
        false => Err(broken(format!("it is about the catalog {}", document.catalog))),
    }
}

/// Adds the texts that a document names. `known` has the texts of other documents.
fn with_lists(path: &Path, document: Document, known: &mut Lists) -> Result<Evidence, String> {
    let mut lists = Lists::new();
    for list in document.proofs.iter().filter_map(|proof| proof.list.as_ref()) {
        let key = list.text.to_string();
        if !known.contains_key(&key) {
            let bytes = read(path, &text_name(&list.text), LARGEST_LIST)?;
            if !basics::digest::fits(&bytes, &list.text) {
                let text = path.join(text_name(&list.text));
                return Err(format!("{}: its content is not that of its name", text.display()));
            }
            known.insert(key.clone(), Arc::new(SignedList::new(&list.name, bytes)));
        }
        lists.insert(key.clone(), Arc::clone(&known[&key]));
    }
    Ok(Evidence { document, lists })
}

#[cfg(test)]
mod tests;
