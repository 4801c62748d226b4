//! What is known of one file in the images folder: the last try with it, and the images that it put
//! into containerd.
//!
//! It knows no other file and no disk.

use std::ffi::{OsStr, OsString};
use std::fmt;

use basics::Foreign;
use bundle::Identity;
use import::Outcome;
use jiff::Timestamp;
use oci_spec::image::Digest;
use serde::{Deserialize, Serialize};

use super::suspects::Crashes;

/// `<id>` in the labels on image records: the first 16 hex digits of the sha256 of a bundle's file
/// name in the images folder.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct BundleId(String);

impl BundleId {
    /// The id of the bundle with this file name.
    pub(crate) fn of(file: &OsStr) -> BundleId {
        BundleId(import::bundle_id(&label_name(file)))
    }
}

/// A file's name as labels and leases have it. Names are bytes and labels are text (protobuf has no
/// other strings), so bytes that are no UTF-8 are written as `\xff`: two files that differ in them
/// only are two bundles.
pub fn label_name(file: &OsStr) -> String {
    Foreign::file_name(file).raw().to_owned()
}

impl fmt::Display for BundleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is known of one file in the images folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The file's name in the folder. Names are bytes; one that is not UTF-8 is kept as hex.
    #[serde(with = "file_name")]
    pub(crate) file: OsString,
    /// Position in the order in which bundles arrived; a file that was replaced arrives anew.
    pub(crate) arrival: u64,
    /// The file as it was when it was last tried.
    pub(crate) identity: Identity,
    /// How that try ended.
    pub(crate) outcome: LastTry,
    /// How often this very file was tried without success; 0 after one.
    #[serde(default)]
    pub(crate) attempts: u32,
    #[serde(default)]
    pub(crate) last_error: Option<LastError>,
    /// What the bundle last put into containerd. It outlives a failed try with a newer file, since
    /// a bundle that was replaced by a broken file unpins nothing.
    #[serde(default)]
    pub(crate) imported: Option<Imported>,
    /// When the same catalog was first imported, where that was before `imported.at`. Versions that
    /// do not know the key read the rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) first: Option<Timestamp>,
    /// Since when the file is gone. What it vouched for is withdrawn, and then the entry goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) gone: Option<Timestamp>,
    /// That the daemon crashed while it worked on this file. Versions that do not know the key read
    /// the rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) crashes: Option<Crashes>,
}

/// The last try with a bundle, in the words of `airgapd import -o json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LastTry {
    /// It is finished, and its first import is still to come or was interrupted.
    Pending,
    /// How it ended.
    #[serde(untagged)]
    Ended(Outcome),
}

/// Why the last try failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LastError {
    pub(crate) text: String,
    pub(crate) class: ErrorClass,
    pub(crate) at: Timestamp,
    /// How many images failed, each target counted once. Versions that do not know the key read the
    /// rest.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) images: usize,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// What has to happen before another try makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorClass {
    /// Time: containerd was away, a lock was held.
    Transient,
    /// Space on containerd's disk.
    Space,
    /// A disk that works: containerd's, or the one that the bundle is on.
    Disk,
    /// Another file: this one is bad.
    Bundle,
    /// Somebody who changes the configuration or the permissions.
    Permanent,
    /// Another file, checksum or rule: the node must not take this one. What it imported is not
    /// wanted any more.
    Refused,
    /// Another file, or another version of this program, which crashed over this one again and
    /// again. Only in documents: the ledger counts the crashes of an entry instead, so that earlier
    /// versions can read it.
    Crash,
}

impl ErrorClass {
    /// Every one.
    pub const ALL: [ErrorClass; 7] = [
        ErrorClass::Transient,
        ErrorClass::Space,
        ErrorClass::Disk,
        ErrorClass::Bundle,
        ErrorClass::Permanent,
        ErrorClass::Refused,
        ErrorClass::Crash,
    ];

    /// As in documents and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorClass::Transient => "transient",
            ErrorClass::Space => "space",
            ErrorClass::Disk => "disk",
            ErrorClass::Bundle => "bundle",
            ErrorClass::Permanent => "permanent",
            ErrorClass::Refused => "refused",
            ErrorClass::Crash => "crash",
        }
    }

    /// Whether time may help without a change of the file or the rules.
    pub(super) fn may_pass(self) -> bool {
        match self {
            ErrorClass::Transient | ErrorClass::Space | ErrorClass::Disk => true,
            ErrorClass::Bundle | ErrorClass::Permanent | ErrorClass::Refused | ErrorClass::Crash => false,
        }
    }
}

impl Entry {
    /// Whether the last try brought a part of the images, and time alone does not bring the others.
    pub(crate) fn is_incomplete(&self) -> bool {
        let is_partial = self.outcome == LastTry::Ended(Outcome::Partial);
        is_partial
            && self
                .last_error
                .as_ref()
                .is_some_and(|error| !error.class.may_pass())
    }

    /// What was found wrong with this very file, where only another file could help.
    pub(crate) fn damage(&self, identity: &Identity) -> Option<&str> {
        let error = self.last_error.as_ref()?;
        let is_bad = error.class == ErrorClass::Bundle && self.identity == *identity;
        is_bad.then_some(error.text.as_str())
    }

    /// Time of the earliest import of its present catalog that is known.
    pub(crate) fn first_imported(&self) -> Option<Timestamp> {
        self.imported
            .as_ref()
            .map(|imported| self.first.unwrap_or(imported.at))
    }

    /// Whether what it has imported is wanted.
    pub(crate) fn is_vouching(&self) -> bool {
        !self.is_refused() && self.gone.is_none()
    }

    /// Whether the node's rules are against this file, whatever it has imported.
    pub(crate) fn is_refused(&self) -> bool {
        let class = self.last_error.as_ref().map(|error| error.class);
        class == Some(ErrorClass::Refused)
    }

    /// Whether the daemon crashed over this very file until it was left alone.
    pub fn is_set_aside(&self, identity: &Identity) -> bool {
        let is_worn = |crashes: &Crashes| crashes.times >= Crashes::MOST;
        self.identity == *identity && self.crashes.as_ref().is_some_and(is_worn)
    }
}

/// A successful import, whole or in part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Imported {
    /// The file as it was read.
    pub(crate) identity: Identity,
    /// The checksum file that it was found to match.
    #[serde(default)]
    pub(crate) sidecar: Option<Identity>,
    /// Digest of the catalog (`index.json` or `manifest.json`): the identity of the content.
    pub(crate) catalog: Digest,
    pub(crate) images: Vec<ImageEntry>,
    pub(crate) at: Timestamp,
    pub(crate) duration_ms: u64,
    /// Bytes that were sent to containerd.
    pub(crate) sent_bytes: u64,
}

/// An image record that a bundle vouches for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageEntry {
    pub(crate) name: String,
    pub(crate) target: Digest,
}

/// File names as text where they are UTF-8, as `{"hex": "…"}` where they are not.
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
                    .ok_or_else(|| D::Error::custom("a file name with broken hex"))
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
            // What a label says leads back to the bundle.
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
