//! The ledger's knowledge of releases: the release that each bundle carries, and the lists of
//! members.
//!
//! A thousand bundles may carry one list, so the ledger has each list once, by its digest.

use std::collections::{BTreeMap, HashSet};

use bundle::{Members, Release};
use oci_spec::image::Digest;
use serde::{Deserialize, Serialize};

use super::entry::{Entry, ImageEntry};
use super::ledger::Ledger;

/// Most bytes that all lists together take in `state.json`, about. The largest list of a bundle
/// fits, and a ledger of a thousand bundles fits beside all lists.
const MOST_BYTES: usize = 16 << 20;

/// Bytes of a member in `state.json` besides its name: the digest and the punctuation.
const MEMBER: usize = 100;

/// The release that a bundle carries, as its last import found it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Carried {
    /// A version that does not know releases made the entry.
    #[default]
    Unknown,
    /// The bundle belongs to none.
    Nothing,
    /// The bundle names this release.
    Release(Box<CarriedRelease>),
}

/// A release that a bundle names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CarriedRelease {
    pub(crate) name: String,
    /// Digest of its list of members, or the reason why the ledger has no list.
    pub(crate) list: Result<Digest, String>,
    /// The members in the bundle of which it has nothing for this node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) skipped: Vec<ImageEntry>,
}

impl Carried {
    /// Returns true for an entry of a version that does not know releases.
    pub(crate) fn is_unknown(&self) -> bool {
        *self == Carried::Unknown
    }

    fn release_mut(&mut self) -> Option<&mut CarriedRelease> {
        match self {
            Carried::Release(release) => Some(release),
            Carried::Unknown | Carried::Nothing => None,
        }
    }
}

impl Entry {
    /// Returns the release that the bundle of the last import names.
    pub(crate) fn release(&self) -> Option<&CarriedRelease> {
        match &self.imported.as_ref()?.release {
            Carried::Release(release) => Some(release),
            Carried::Unknown | Carried::Nothing => None,
        }
    }
}

/// The lists of members, by digest. `Digest` has no order, so the key is its text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Lists(BTreeMap<String, Vec<ImageEntry>>);

impl Lists {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Keeps a list, if there is room.
    fn keep(&mut self, members: &Members) -> Result<Digest, String> {
        let digest = members.digest();
        if !self.0.contains_key(digest.as_ref()) {
            let list = members.all().iter().map(|member| ImageEntry {
                name: member.name.clone(),
                target: member.digest.clone(),
            });
            let list: Vec<_> = list.collect();
            if bytes_of(self.0.values().flatten()) + bytes_of(&list) > MOST_BYTES {
                return Err(format!(
                    "the state of airgapd has no room for its list, since all lists may take {} MiB",
                    MOST_BYTES >> 20
                ));
            }
            self.0.insert(digest.to_string(), list);
        }
        Ok(digest.clone())
    }
}

fn bytes_of<'i>(images: impl IntoIterator<Item = &'i ImageEntry>) -> usize {
    images.into_iter().map(|image| image.name.len() + MEMBER).sum()
}

impl Ledger {
    /// Keeps the list of a release that a bundle carries, and returns the part of its entry.
    /// `skipped` are the members of which the bundle has nothing for this node.
    pub(crate) fn carry(&mut self, release: Option<&Release>, skipped: Vec<ImageEntry>) -> Carried {
        let Some(release) = release else {
            return Carried::Nothing;
        };
        let members = release.members.as_ref().map_err(Clone::clone);
        let list = members.and_then(|members| self.lists.keep(members));
        Carried::Release(Box::new(CarriedRelease {
            name: release.name.clone(),
            skipped: if list.is_ok() { skipped } else { Vec::new() },
            list,
        }))
    }

    /// Returns the members of a list, sorted by name.
    pub(crate) fn list(&self, digest: &Digest) -> Option<&[ImageEntry]> {
        self.lists.0.get(digest.as_ref()).map(Vec::as_slice)
    }

    /// Drops the lists that no bundle carries.
    pub(super) fn drop_unused_lists(&mut self) {
        if self.lists.is_empty() {
            return;
        }
        let releases = self.all().filter_map(Entry::release);
        let used: HashSet<String> = releases
            .filter_map(|release| Some(release.list.as_ref().ok()?.to_string()))
            .collect();
        self.lists.0.retain(|digest, _| used.contains(digest));
    }

    /// Forgets of which members the bundles have nothing for this node, since that follows from the
    /// settings. The next import of each bundle or receipt finds them again.
    pub(crate) fn forget_skipped(&mut self) {
        for entry in self.all_mut() {
            if let Some(release) = entry
                .imported
                .as_mut()
                .and_then(|imported| imported.release.release_mut())
            {
                release.skipped.clear();
            }
        }
    }

    /// Returns the bundles that a version without releases imported, and that have a member of this
    /// list. The daemon reads them again.
    pub(crate) fn unread_bundles_of(&self, list: &Digest) -> Vec<&Entry> {
        let members = self.list(list).unwrap_or_default();
        let is_member = |image: &ImageEntry| {
            let at = members.binary_search_by(|member| member.name.as_str().cmp(&image.name));
            at.is_ok_and(|at| members[at].target == image.target)
        };
        let unread = self.all().filter(|entry| {
            let imported = entry.imported.as_ref().filter(|_| entry.is_vouching());
            imported.is_some_and(|imported| {
                imported.release.is_unknown() && imported.images.iter().any(is_member)
            })
        });
        unread.collect()
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::sync::Arc;

    use bundle::Member;
    use import::Outcome;

    use super::super::ledger::tests::{digest, imported};
    use super::super::ledger::{self, Imported};
    use super::*;

    fn release(name: &str, images: &[(&str, char)]) -> Release {
        let member = |(name, fill): &(&str, char)| Member {
            name: (*name).to_owned(),
            digest: digest(*fill),
        };
        let members = Members::new(name, images.iter().map(member).collect());
        Release {
            name: name.to_owned(),
            members: members.map(Arc::new),
        }
    }

    fn record(ledger: &mut Ledger, file: &str, release: Option<&Release>) {
        let imported = Imported {
            release: ledger.carry(release, Vec::new()),
            ..imported(1, &[("a", '1')])
        };
        ledger.record_import(OsStr::new(file), Outcome::Imported, imported, []);
    }

    #[test]
    fn a_list_is_kept_once_and_for_as_long_as_a_bundle_carries_it() {
        let mut ledger = Ledger::default();
        let one = release("r1", &[("a", '1'), ("b", '2')]);
        record(&mut ledger, "one.tar", Some(&one));
        record(&mut ledger, "two.tar", Some(&one));
        let list = one.members.as_ref().unwrap().digest().clone();
        assert_eq!(ledger.lists.0.len(), 1);
        assert_eq!(ledger.list(&list).unwrap().len(), 2);
        let text = serde_json::to_string(&ledger).unwrap();
        let read: Ledger = serde_json::from_str(&text).unwrap();
        assert_eq!(read, ledger);
        record(&mut ledger, "one.tar", None);
        assert!(ledger.list(&list).is_some());
        ledger.forget(OsStr::new("two.tar"));
        assert_eq!(ledger.list(&list), None);
        assert!(!serde_json::to_string(&ledger).unwrap().contains("lists"));
    }

    #[test]
    fn lists_have_a_bound_together() {
        let mut ledger = Ledger::default();
        let names: Vec<String> = (0..8_000).map(|n| format!("{n:0900}")).collect();
        let images: Vec<(&str, char)> = names.iter().map(|name| (name.as_str(), '1')).collect();
        let kept = |ledger: &Ledger, file: &str| {
            let entry = ledger.get(OsStr::new(file)).unwrap();
            entry.release().unwrap().list.clone()
        };
        for (file, is_kept) in [("1.tar", true), ("2.tar", true), ("3.tar", false)] {
            record(&mut ledger, file, Some(&release(&file[..1], &images)));
            assert_eq!(kept(&ledger, file).is_ok(), is_kept, "{file}");
        }
        assert!(kept(&ledger, "3.tar").unwrap_err().contains("no room"));
    }

    #[test]
    fn bundles_of_an_earlier_version_are_read_again_if_a_release_has_their_images() {
        let mut ledger = Ledger::default();
        let outcome = Outcome::Imported;
        ledger.record_import(OsStr::new("old.tar"), outcome, imported(1, &[("b", '2')]), []);
        ledger.record_import(OsStr::new("other.tar"), outcome, imported(1, &[("b", '3')]), []);
        record(&mut ledger, "plain.tar", None);
        let one = release("r1", &[("a", '1'), ("b", '2')]);
        record(&mut ledger, "new.tar", Some(&one));
        let list = one.members.as_ref().unwrap().digest();
        let files: Vec<_> = ledger.unread_bundles_of(list);
        let files: Vec<String> = files
            .iter()
            .map(|entry| ledger::label_name(&entry.file))
            .collect();
        assert_eq!(files, ["old.tar"]);
    }

    #[test]
    fn an_entry_without_the_key_knows_no_release() {
        let mut value = serde_json::to_value(imported(1, &[("a", '1')])).unwrap();
        assert_eq!(value.get("release"), None);
        value["another"] = serde_json::json!(1);
        let read: Imported = serde_json::from_value(value).unwrap();
        assert!(read.release.is_unknown());
    }
}
