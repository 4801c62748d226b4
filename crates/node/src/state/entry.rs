//! The ledger's entry for one file in the images folder: the last try, and the images that it put
//! into containerd. An entry knows no other file and no disk.

use std::ffi::{OsStr, OsString};
use std::fmt;

use admission::KeyKind;
use basics::Foreign;
use bundle::Identity;
use import::Outcome;
use jiff::Timestamp;
use oci_spec::image::Digest;
use serde::{Deserialize, Serialize};

use super::carried::Carried;
use super::suspects::Crashes;

/// `<id>` in the labels on image records: the first 16 hex digits of the sha256 of a bundle's file
/// name in the images folder.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct BundleId(String);

impl BundleId {
    /// Returns the id of the bundle with this file name.
    pub(crate) fn of(file: &OsStr) -> BundleId {
        BundleId(import::bundle_id(&label_name(file)))
    }
}

/// Returns a file's name in the form that labels and leases have. Names are bytes and labels are
/// text (protobuf has no other strings), so bytes that are not UTF-8 become `\xff`. Two files that
/// differ in such bytes only are two bundles.
pub fn label_name(file: &OsStr) -> String {
    Foreign::file_name(file).raw().to_owned()
}

impl fmt::Display for BundleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The ledger's entry for one file in the images folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The file's name in the folder. Names are bytes: a name that is not UTF-8 is kept as hex.
    #[serde(with = "file_name")]
    pub(crate) file: OsString,
    /// Position in the order in which bundles arrived. A replaced file arrives again.
    pub(crate) arrival: u64,
    /// The file as it was at the last try.
    pub(crate) identity: Identity,
    /// The result of that try.
    pub(crate) outcome: LastTry,
    /// Number of tries of this very file since the last success.
    #[serde(default)]
    pub(crate) attempts: u32,
    #[serde(default)]
    pub(crate) last_error: Option<LastError>,
    /// The images that the bundle last put into containerd. They outlive a failed try with a newer
    /// file: replacing a bundle by a broken file unpins nothing.
    #[serde(default)]
    pub(crate) imported: Option<Imported>,
    /// Time of the first import of the same catalog, if it was before `imported.at`. Versions that
    /// do not know the key read the rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) first: Option<Timestamp>,
    /// Time since which the file is gone. The daemon withdraws its labels and pins and then removes
    /// the entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) gone: Option<Timestamp>,
    /// The bundle that this file stands for, if it is a receipt. Versions that do not know the key
    /// do not read receipts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) stands_for: Option<StandsFor>,
    /// Crashes of the daemon while it worked on this file. Versions that do not know the key read
    /// the rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) crashes: Option<Crashes>,
}

/// The bundle that a receipt stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StandsFor {
    /// Name of the bundle in labels.
    pub(crate) bundle: String,
    /// The bundle's file as it was read.
    pub(crate) identity: Identity,
    /// Time of the receipt, in seconds since 1970.
    pub(crate) made_at: i64,
    /// Time of the last roll back to its release, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rolled_back_at: Option<i64>,
    /// Id of the lease that holds the receipt's blobs.
    pub(crate) lease: String,
    /// True if the bundle lay outside the images folders. A bundle of its name there is another.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) by_hand: bool,
    /// Content digest of the bundle. The evidence of its admission has this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) catalog: Option<Digest>,
}

impl StandsFor {
    /// Returns the time from which its images have their names, in seconds since 1970.
    pub(crate) fn since(&self) -> i64 {
        self.rolled_back_at.unwrap_or(self.made_at)
    }
}

/// The last try with a bundle, in the words of `airgapd import -o json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LastTry {
    /// The file is finished. Its first import has not ended yet, or was interrupted.
    Pending,
    /// The outcome of a try that ended.
    #[serde(untagged)]
    Ended(Outcome),
}

/// The error of the last try.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LastError {
    pub(crate) text: String,
    /// The condition for a useful retry. [`kept_class`] has its form on the disk.
    #[serde(flatten, with = "kept_class")]
    pub(crate) class: ErrorClass,
    pub(crate) at: Timestamp,
    /// Number of images that failed, each target counted once. Versions that do not know the key
    /// read the rest.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) images: usize,
    /// The rule for signatures that refused the bundle. Versions that do not know the key read the
    /// rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) refused_by: Option<RefusedBy>,
}

/// The part of the rule for signatures that refuses a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusedBy {
    /// No signature beside the bundle counts.
    Signature,
    /// The bundle would take a name from a bundle of another key.
    OtherKey,
    /// The bundle is revoked.
    Revoked,
    /// The revoked digests of this node cannot be read.
    Revocations,
    /// No key of this node can be used.
    Keys,
}

impl RefusedBy {
    /// Every part.
    pub const ALL: [RefusedBy; 5] = [
        RefusedBy::Signature,
        RefusedBy::OtherKey,
        RefusedBy::Revoked,
        RefusedBy::Revocations,
        RefusedBy::Keys,
    ];

    /// Returns the word for documents and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            RefusedBy::Signature => "signature",
            RefusedBy::OtherKey => "other-key",
            RefusedBy::Revoked => "revoked",
            RefusedBy::Revocations => "revocations",
            RefusedBy::Keys => "keys",
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// The condition for a useful retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorClass {
    /// Time: containerd was away, or another process had a lock.
    Transient,
    /// Room on containerd's disk.
    Space,
    /// A sound disk for containerd or for the bundle.
    Disk,
    /// Another file: this one is damaged.
    Bundle,
    /// Other settings or permissions.
    Permanent,
    /// Another file, checksum or rule: this node must not take this file. The images that it
    /// brought are not wanted any more.
    Refused,
    /// Another bundle: the file is a receipt, and containerd has lost blobs that no file here has.
    Degraded,
    /// Another file, or another version of this program, which crashed over this file again and
    /// again. Only documents have this class. The ledger counts the crashes of an entry instead, so
    /// that earlier versions can read it.
    Crash,
}

impl ErrorClass {
    /// Every class.
    pub const ALL: [ErrorClass; 8] = [
        ErrorClass::Transient,
        ErrorClass::Space,
        ErrorClass::Disk,
        ErrorClass::Bundle,
        ErrorClass::Permanent,
        ErrorClass::Refused,
        ErrorClass::Degraded,
        ErrorClass::Crash,
    ];

    /// Returns the word for documents and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorClass::Transient => "transient",
            ErrorClass::Space => "space",
            ErrorClass::Disk => "disk",
            ErrorClass::Bundle => "bundle",
            ErrorClass::Permanent => "permanent",
            ErrorClass::Refused => "refused",
            ErrorClass::Degraded => "degraded",
            ErrorClass::Crash => "crash",
        }
    }

    /// Returns true if a retry of the same file may succeed, without a change of the file or the
    /// rules. Another bundle may have brought what a receipt lacks.
    pub(super) fn may_pass(self) -> bool {
        match self {
            ErrorClass::Transient | ErrorClass::Space | ErrorClass::Disk | ErrorClass::Degraded => true,
            ErrorClass::Bundle | ErrorClass::Permanent | ErrorClass::Refused | ErrorClass::Crash => false,
        }
    }
}

impl Entry {
    /// Returns true if the last try brought only some of the images and time alone does not bring
    /// the others.
    pub(crate) fn is_incomplete(&self) -> bool {
        let is_partial = self.outcome == LastTry::Ended(Outcome::Partial);
        is_partial
            && self
                .last_error
                .as_ref()
                .is_some_and(|error| !error.class.may_pass())
    }

    /// Returns the error of this very file, if only another file could help.
    pub(crate) fn damage(&self, identity: &Identity) -> Option<&str> {
        let error = self.last_error.as_ref()?;
        let is_bad = error.class == ErrorClass::Bundle && self.identity == *identity;
        is_bad.then_some(error.text.as_str())
    }

    /// Returns the time of the earliest known import of its present catalog.
    pub(crate) fn first_imported(&self) -> Option<Timestamp> {
        self.imported
            .as_ref()
            .map(|imported| self.first.unwrap_or(imported.at))
    }

    /// Returns the time from which its images are, as far as the entry tells. In seconds since
    /// 1970.
    pub(super) fn since(&self) -> Option<i64> {
        match &self.stands_for {
            Some(of) => Some(of.since()),
            None => self.first_imported().map(Timestamp::as_second),
        }
    }

    /// Returns true if the images that it imported are wanted.
    pub(crate) fn is_vouching(&self) -> bool {
        !self.is_refused() && self.gone.is_none()
    }

    /// Returns true if the node's rules forbid this file, regardless of earlier imports.
    pub(crate) fn is_refused(&self) -> bool {
        let class = self.last_error.as_ref().map(|error| error.class);
        class == Some(ErrorClass::Refused)
    }

    /// Returns the keys that admitted the images that it imported.
    pub(crate) fn signers(&self) -> impl Iterator<Item = &SignerEntry> {
        self.imported.iter().flat_map(|imported| &imported.signers)
    }

    /// Returns true if other rules, keys or signatures may bring more images of this file.
    pub(crate) fn lacks_by_rules(&self) -> bool {
        let class = self.last_error.as_ref().map(|error| error.class);
        let is_withheld = |imported: &Imported| !imported.withheld.is_empty();
        self.is_refused()
            || class == Some(ErrorClass::Permanent)
            || self.imported.as_ref().is_some_and(is_withheld)
    }

    /// Returns true if the daemon crashed over this very file so often that it leaves the file
    /// alone.
    pub fn is_set_aside(&self, identity: &Identity) -> bool {
        let is_worn = |crashes: &Crashes| crashes.times >= Crashes::MOST;
        self.identity == *identity && self.crashes.as_ref().is_some_and(is_worn)
    }
}

/// A successful import, in full or in part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Imported {
    /// The file that was read.
    pub(crate) identity: Identity,
    /// The checksum file that the bundle matched.
    #[serde(default)]
    pub(crate) sidecar: Option<Identity>,
    /// Digest of the catalog (`index.json` or `manifest.json`), which identifies the content.
    pub(crate) catalog: Digest,
    pub(crate) images: Vec<ImageEntry>,
    pub(crate) at: Timestamp,
    pub(crate) duration_ms: u64,
    /// Bytes that were sent to containerd.
    pub(crate) sent_bytes: u64,
    /// The keys that admitted the bundle. Empty if no signature was asked for. Versions that do not
    /// know the key read the rest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) signers: Vec<SignerEntry>,
    /// The images whose names the rule for signatures kept from the bundle. Versions that do not
    /// know the key read the rest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) withheld: Vec<ImageEntry>,
    /// True if the file lacks blobs of its images: a delta, a receipt, or a list of images.
    /// Versions that do not know the key read the rest.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) is_delta: bool,
    /// The release that the bundle carries. Versions that do not know the key read the rest.
    #[serde(default, skip_serializing_if = "Carried::is_unknown")]
    pub(crate) release: Carried,
}

/// A key that admitted a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignerEntry {
    /// Name of the key's file, without its ending.
    pub key: String,
    /// Sha256 of the public key.
    pub fingerprint: Digest,
    /// Kind of the key.
    pub kind: KeyKind,
}

impl From<admission::Signer> for SignerEntry {
    fn from(signer: admission::Signer) -> Self {
        SignerEntry {
            key: signer.key,
            fingerprint: signer.fingerprint,
            kind: signer.kind,
        }
    }
}

/// Returns the keys that admitted a bundle as one text. `None` if there is none.
pub fn signers(signers: &[SignerEntry]) -> Option<String> {
    let keys: Vec<String> = signers.iter().map(ToString::to_string).collect();
    (!keys.is_empty()).then(|| keys.join(", "))
}

impl fmt::Display for SignerEntry {
    /// Writes the name of the key, and the start of its fingerprint.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = self.fingerprint.digest().get(..16).unwrap_or_default();
        write!(f, "{} ({short})", Foreign::new(self.key.as_str()))
    }
}

/// An image record that a bundle vouches for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageEntry {
    pub(crate) name: String,
    pub(crate) target: Digest,
}

/// The class of an error in the ledger: `class`, and `degraded` for [`ErrorClass::Degraded`].
/// Versions that do not know that class read a transient error.
mod kept_class {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::ErrorClass;

    #[derive(Serialize, Deserialize)]
    struct Kept {
        class: ErrorClass,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        degraded: bool,
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    pub(super) fn serialize<S: Serializer>(class: &ErrorClass, serializer: S) -> Result<S::Ok, S::Error> {
        let degraded = *class == ErrorClass::Degraded;
        let class = if degraded { ErrorClass::Transient } else { *class };
        Kept { class, degraded }.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ErrorClass, D::Error> {
        let kept = Kept::deserialize(deserializer)?;
        Ok(match kept.degraded {
            true => ErrorClass::Degraded,
            false => kept.class,
        })
    }
}

/// File names as text if they are UTF-8, otherwise as `{"hex": "…"}`.
pub(crate) mod file_name {
    use std::ffi::{OsStr, OsString};
    use std::os::unix::ffi::{OsStrExt, OsStringExt};

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Written {
        Text(String),
        Bytes { hex: String },
    }

    pub(crate) fn serialize<S: Serializer>(name: &OsStr, serializer: S) -> Result<S::Ok, S::Error> {
        let written = match name.to_str() {
            Some(text) => Written::Text(text.to_owned()),
            None => {
                let hex = basics::digest::hex(name.as_bytes());
                Written::Bytes { hex }
            }
        };
        written.serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<OsString, D::Error> {
        match Written::deserialize(deserializer)? {
            Written::Text(text) => Ok(text.into()),
            Written::Bytes { hex } => {
                let pairs = hex.as_bytes().chunks(2);
                let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
                let bytes: Option<Vec<u8>> = pairs.map(byte).collect();
                bytes
                    .map(OsString::from_vec)
                    .ok_or_else(|| D::Error::custom("a file name has invalid hex digits"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn names_that_are_no_text_are_told_apart_in_labels() {
        let table: [(&[u8], &str); 4] = [
            (b"a.tar", "a.tar"),
            ("\u{e4}.tar".as_bytes(), "\u{e4}.tar"),
            (b"\xff.tar", "\\xff.tar"),
            (b"a\xfe\xffb", "a\\xfe\\xffb"),
        ];
        for (file, expected) in table {
            let file = OsStr::from_bytes(file);
            assert_eq!(label_name(file), expected);
            // The label's text leads back to the bundle.
            assert_eq!(BundleId::of(OsStr::new(&label_name(file))), BundleId::of(file));
        }
    }

    #[test]
    fn a_bundle_id_is_the_start_of_the_hash_of_its_file_name() {
        // printf %s bundle.tar | sha256sum
        assert_eq!(BundleId::of(OsStr::new("bundle.tar")).0.len(), 16);
        assert_eq!(BundleId::of(OsStr::new("")).0, "e3b0c44298fc1c14");
        assert_ne!(BundleId::of(OsStr::new("a")), BundleId::of(OsStr::new("b")));
    }
}
