//! Decides which entries of a listing the roster tracks, with which checksums, and which it leaves
//! alone. A listing changes the phase of new and changed files only.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::time::Instant;

use bundle::Identity;

use super::{Phase, Remark, Roster, Tracked, Version};
use crate::images::folder::{self, Class, Ending, Listed, Reason};
use crate::images::pull_list;
use crate::images::sidecar::sidecar_of;
use crate::state::ledger::Ledger;

impl Roster {
    /// Applies a listing of everything, see `Roster::list_in`.
    pub fn list(
        &mut self,
        listed: Vec<Listed>,
        now: Instant,
        known: impl Fn(&OsStr, &Version) -> bool,
    ) -> Vec<(OsString, Reason)> {
        self.list_in(|_| true, listed, now, known)
    }

    /// Applies a listing of the folders whose names `is_in` selects. Files of other folders stay as
    /// they are. `known` returns true if the ledger has an import of this very file with this very
    /// checksum file. Returns the entries that are no bundles and that the log does not have yet.
    pub(crate) fn list_in(
        &mut self,
        is_in: impl Fn(&OsStr) -> bool,
        listed: Vec<Listed>,
        now: Instant,
        known: impl Fn(&OsStr, &Version) -> bool,
    ) -> Vec<(OsString, Reason)> {
        let mut ignored = Vec::new();
        let names: HashSet<&OsString> = listed.iter().map(|entry| &entry.name).collect();
        self.said.retain(|name, _| names.contains(name) || !is_in(name));
        let (listed, mut sidecars) = split_off_sidecars(listed);
        let bundles: HashSet<&OsString> = listed
            .iter()
            .filter(|entry| is_bundle(entry))
            .map(|entry| &entry.name)
            .collect();
        self.files
            .retain(|name, _| bundles.contains(name) || !is_in(name));
        self.others.retain(|name, _| !is_in(name));
        let mut seen = Vec::new();
        for entry in listed {
            let is_layout = match entry.class {
                Class::Candidate => false,
                Class::Layout => true,
                Class::Ignored(reason) => {
                    if self.remark(&entry.name, Remark::Ignored(reason)) {
                        ignored.push((entry.name.clone(), reason));
                    }
                    self.others.insert(entry.name, reason);
                    continue;
                }
            };
            let version = Version {
                sidecar: match is_layout {
                    true => None,
                    false => sidecars.remove(&sidecar_of(&entry.name)),
                },
                identity: entry.identity,
                is_layout,
            };
            seen.push((entry.name, version));
        }
        for (name, version) in seen {
            self.see(name, version, now, &known);
        }
        ignored
    }

    fn see(
        &mut self,
        name: OsString,
        version: Version,
        now: Instant,
        known: impl Fn(&OsStr, &Version) -> bool,
    ) {
        let new = Phase::Settling { look: now };
        let phase = match self.files.get(&name) {
            Some(tracked) if tracked.version == version => return,
            Some(_) => {
                if let Some(said) = self.said.get_mut(&name) {
                    said.retain(|what| matches!(what, Remark::Ignored(_)));
                }
                new
            }
            None if known(&name, &version) => Phase::Known,
            None => new,
        };
        let since = now;
        self.files.insert(
            name,
            Tracked {
                version,
                since,
                phase,
                attempts: 0,
            },
        );
    }
}

/// Separates the checksum files of listed bundles from the listing. Returns the other entries, and
/// the checksum files by name.
pub(crate) fn split_off_sidecars(listed: Vec<Listed>) -> (Vec<Listed>, HashMap<OsString, Identity>) {
    let is_file = |entry: &&Listed| entry.class == Class::Candidate;
    let files = listed.iter().filter(is_file);
    let sidecars: HashSet<OsString> = files.map(|entry| sidecar_of(&entry.name)).collect();
    let (sidecars, others): (Vec<_>, Vec<_>) = listed
        .into_iter()
        .partition(|entry| entry.class == Class::Candidate && sidecars.contains(&entry.name));
    let of = |entry: Listed| (entry.name, entry.identity);
    (others, sidecars.into_iter().map(of).collect())
}

/// Returns the reason why a file is left alone, from its content and its name
/// (`folder::why_ignored`). A file in the place of an imported bundle is never left alone. With
/// `pull_lists`, neither is a list that can be pulled.
pub fn why_ignored(
    name: &OsStr,
    ending: Ending,
    size: u64,
    pull_lists: bool,
    ledger: &Ledger,
) -> Option<Reason> {
    let was_imported = ledger.get(name).is_some_and(|entry| entry.imported.is_some());
    match folder::why_ignored(name, ending, size)? {
        Reason::List if pull_lists && pull_list::is_list(name, ending, size) => None,
        Reason::List if pull_lists => Some(Reason::Companion),
        Reason::List => Some(Reason::List),
        _ if was_imported => None,
        reason => Some(reason),
    }
}

fn is_bundle(entry: &Listed) -> bool {
    match entry.class {
        Class::Candidate | Class::Layout => true,
        Class::Ignored(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::tests::{always, file, first_due, identity, never, new_only};
    use super::*;

    #[test]
    fn a_changed_file_settles_anew_and_an_unchanged_one_stays_done() {
        let now = Instant::now();
        let mut roster = Roster::default();
        roster.list(vec![file("a.tar", 1), file("b.tar", 2)], now, new_only);
        roster.finish("a.tar".as_ref());
        roster.finish("b.tar".as_ref());
        let later = now + Duration::from_secs(1);
        roster.list(vec![file("a.tar", 1), file("b.tar", 3)], later, new_only);
        assert_eq!(roster.phase("a.tar".as_ref()), Some(Phase::Done));
        assert_eq!(
            roster.phase("b.tar".as_ref()),
            Some(Phase::Settling { look: later })
        );
        assert_eq!(roster.still_since("b.tar".as_ref()), Some(later));
    }

    #[test]
    fn an_ignored_entry_is_told_once_until_it_goes() {
        let now = Instant::now();
        let mut roster = Roster::default();
        let hidden = || Listed {
            class: Class::Ignored(Reason::Hidden),
            ..file(".x", 1)
        };
        assert_eq!(roster.list(vec![hidden()], now, new_only).len(), 1);
        assert!(roster.list(vec![hidden()], now, new_only).is_empty());
        roster.list(Vec::new(), now, new_only);
        assert_eq!(roster.list(vec![hidden()], now, new_only).len(), 1);
    }

    #[test]
    fn a_checksum_that_comes_changes_or_goes_makes_its_bundle_settle_anew_and_no_other() {
        let now = Instant::now();
        let mut roster = Roster::default();
        let (a, b) = (|| file("a.tar", 1), || file("b.tar", 2));
        roster.list(vec![a(), b()], now, new_only);
        for listed in [
            vec![a(), file("a.tar.sha256", 7), b()],
            vec![a(), file("a.tar.sha256", 8), b()],
            vec![a(), b()],
        ] {
            roster.finish("a.tar".as_ref());
            roster.finish("b.tar".as_ref());
            let told = roster.list(listed.clone(), now, new_only);
            assert!(told.is_empty(), "a checksum file is no news");
            assert_eq!(
                roster.phase("a.tar".as_ref()),
                Some(Phase::Settling { look: now })
            );
            assert_eq!(roster.phase("b.tar".as_ref()), Some(Phase::Done));
            roster.finish("a.tar".as_ref());
            roster.list(listed, now, new_only);
            assert_eq!(roster.phase("a.tar".as_ref()), Some(Phase::Done));
        }
    }

    #[test]
    fn a_checksum_without_its_bundle_is_looked_at_and_is_one_again_when_that_comes() {
        let now = Instant::now();
        let mut roster = Roster::default();
        let (name, alone) = ("a.tar.sha256", || vec![file("a.tar.sha256", 7)]);
        assert!(roster.list(alone(), now, new_only).is_empty());
        assert_eq!(first_due(&roster, now, never), Some(name.into()));
        assert!(roster.ignore(name.as_ref(), Reason::Checksum));
        assert_eq!(roster.ignored(), [(OsStr::new(name), Reason::Checksum)]);
        roster.list(alone(), now, new_only);
        assert_eq!(
            (first_due(&roster, now, always), roster.ignored().len()),
            (None, 1)
        );
        roster.list(vec![file("a.tar", 1), file(name, 7)], now, new_only);
        assert!(roster.ignored().is_empty() && roster.phase(name.as_ref()).is_none());
        assert_eq!(
            roster.version("a.tar".as_ref()).unwrap().sidecar,
            Some(identity(7))
        );
    }

    #[test]
    fn a_text_in_place_of_a_bundle_that_was_imported_is_not_left_alone() {
        let mut ledger = Ledger::default();
        let why = |ledger: &Ledger, name: &str, pull_lists| {
            why_ignored(name.as_ref(), Ending::Foreign, 2000, pull_lists, ledger)
        };
        for (name, pull_lists, reason) in [
            ("README.md", false, Some(Reason::Companion)),
            ("images.txt", false, Some(Reason::List)),
            ("images.txt", true, None),
            ("sha256sum.txt", true, Some(Reason::Companion)),
            ("images.TXT", true, Some(Reason::Companion)),
            ("images.tar.digest", true, Some(Reason::Companion)),
            ("images.tar.digest.sig", true, Some(Reason::Companion)),
            ("images.tar.sha256.minisig", true, Some(Reason::Companion)),
            ("images.txt.sigstore.json", true, Some(Reason::Companion)),
            ("sha256sum-amd64.txt.sig", true, Some(Reason::Companion)),
            ("SHA256SUMS.minisig", true, Some(Reason::Companion)),
            ("install.sh", false, None),
        ] {
            assert_eq!(why(&ledger, name, pull_lists), reason, "{name} {pull_lists}");
        }
        let imported = crate::state::ledger::Imported {
            identity: identity(1),
            sidecar: None,
            catalog: format!("sha256:{}", "a".repeat(64)).parse().unwrap(),
            images: Vec::new(),
            at: jiff::Timestamp::UNIX_EPOCH,
            duration_ms: 1,
            sent_bytes: 1,
            signers: Vec::new(),
            withheld: Vec::new(),
            release: crate::state::ledger::Carried::default(),
        };
        let outcome = crate::state::ledger::Outcome::Imported;
        ledger.record_import("README.md".as_ref(), outcome, imported, []);
        assert_eq!(why(&ledger, "README.md", false), None);
    }
}
