//! Tells beforehand which bundles and receipts of a node a rule for signatures would keep out.
//!
//! It opens the files as the daemon does, and changes nothing. The evidence of its bundle's
//! admission speaks for a receipt. A bundle that only its own signature
//! or a signed checksum admits costs a pass over its file.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use basics::foreign;
use bundle::Identity;
use serde::Serialize;

use super::{Forbidden, NO_LISTS, NO_RECEIPT, Opened, Order, Rules, Verdict};
use crate::decide::coexistence;
use crate::images::folder::{Class, Depth, Ending, Folder, Listed, Refused};
use crate::images::pull_list;
use crate::place::Place;
use crate::runtime;
use crate::settings::{Settings, Signatures};
use crate::state::admitted::Evidence;
use crate::state::ledger::{self, Ledger};
use crate::state::roster;
use crate::sys::{Probe, probe_writers};

/// A bundle of an images folder or a receipt, and its fate under the rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Foreseen {
    /// The path of the file, as text that tells different paths apart.
    pub path: String,
    /// Its fate.
    pub fate: Fate,
    /// The cause and the way out. `None` for a bundle that is accepted as a whole.
    pub reason: Option<String>,
}

/// The fate of a bundle under a rule for signatures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    /// The daemon imports it.
    Accepted,
    /// The daemon imports some of its images, and refuses the others for their names.
    Partial,
    /// It is in place, and its images stay. The daemon refuses another file in its place.
    Stays,
    /// The daemon waits for a proof.
    Waits,
    /// The daemon refuses it.
    Refused,
}

impl Fate {
    /// Returns true if the daemon keeps the bundle out, or a part of it.
    #[must_use]
    pub fn is_kept_out(self) -> bool {
        match self {
            Fate::Accepted | Fate::Stays => false,
            Fate::Partial | Fate::Waits | Fate::Refused => true,
        }
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Fate::Accepted => "accepted",
            Fate::Partial => "partial",
            Fate::Stays => "stays",
            Fate::Waits => "waits",
            Fate::Refused => "refused",
        })
    }
}

/// Judges each bundle of the images folders by these settings, in the order of the folders and
/// names. Receipts follow. A folder that does not exist has no bundles.
///
/// # Errors
///
/// Returns the folder that cannot be read, and why.
pub async fn foresee(place: &Place, settings: &Settings) -> Result<Vec<Foreseen>, (PathBuf, io::Error)> {
    let ledger = ledger::read(&settings.state_dir).unwrap_or_default();
    let unguarded = unguarded(place, settings);
    let (mut foreseen, mut elsewhere) = (Vec::new(), 0);
    for (at, path) in place.dirs().into_iter().enumerate() {
        let is_of_receipts = path == place.receipts;
        let depth = Depth {
            recursive: !is_of_receipts && place.searches_sub_folders(settings),
            allow_insecure: settings.allow_insecure_dir,
            elsewhere,
        };
        let listed = Folder::open_dir(&path).and_then(|folder| Ok((folder.list(depth)?, folder)));
        let (listing, folder) = match listed {
            Ok(listed) => listed,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err((path, error)),
        };
        elsewhere += listing.sub_folders();
        for entry in roster::split_off_sidecars(listing.entries).0 {
            // A file of a later folder has its whole path as its name.
            let name = match at {
                0 => entry.name.clone(),
                _ => path.join(&entry.name).into_os_string(),
            };
            let look = Look {
                settings,
                ledger: &ledger,
                folder: &path,
                name: &name,
                entry: &entry,
                is_receipt: is_of_receipts,
            };
            let Some((fate, reason)) = look.fate(&folder).await else {
                continue;
            };
            let (fate, reason) = match &unguarded {
                Some(why) if at == 0 && fate != Fate::Stays => (Fate::Refused, Some(why.clone())),
                _ => (fate, reason),
            };
            let path = ledger::label_name(path.join(&entry.name).as_os_str());
            foreseen.push(Foreseen { path, fate, reason });
        }
    }
    Ok(foreseen)
}

/// Returns why the daemon would import nothing from the first folder, whatever is signed.
fn unguarded(place: &Place, settings: &Settings) -> Option<String> {
    if settings.signatures != Some(Signatures::Require) {
        return None;
    }
    let home = place.is_home.then_some(place.distribution);
    let evidence = coexistence::Sight::default().evidence(&place.images_dir, home);
    coexistence::unguarded(settings.coexistence, &evidence)
}

/// One entry of a folder.
struct Look<'a> {
    settings: &'a Settings,
    ledger: &'a Ledger,
    folder: &'a Path,
    /// The daemon's name of the file.
    name: &'a OsStr,
    entry: &'a Listed,
    /// True for a file of the folder of receipts.
    is_receipt: bool,
}

/// The fate of a bundle, and the reason for it.
type Told = (Fate, Option<String>);

impl Look<'_> {
    /// Returns `None` for an entry that is no bundle.
    async fn fate(&self, folder: &Folder) -> Option<Told> {
        let is_layout = match self.entry.class {
            Class::Candidate => false,
            Class::Layout => true,
            Class::Ignored(_) => return None,
        };
        let file = match folder.open(&self.entry.name) {
            Ok(file) => file,
            Err(Refused::Gone) => return None,
            Err(refused) => return Some(told(Fate::Refused, refused.to_string())),
        };
        if !is_layout {
            let size = file.metadata().map_or(0, |metadata| metadata.len());
            let ending = Ending::of(&file, size).unwrap_or(Ending::Foreign);
            let pull_lists = self.settings.pull_lists;
            if pull_lists && pull_list::is_list(self.name, ending, size) {
                let is_refused = self.settings.signatures == Some(Signatures::Require);
                return is_refused.then(|| told(Fate::Refused, NO_LISTS.to_owned()));
            }
            if roster::why_ignored(self.name, ending, size, pull_lists, self.ledger).is_some() {
                return None;
            }
            if matches!(probe_writers(file.as_fd()), Probe::Busy) {
                let why = "a program still has it open for writing: wait for its end and check again";
                return Some(told(Fate::Waits, why.to_owned()));
            }
        }
        Some(self.judge(file).await)
    }

    async fn judge(&self, file: File) -> Told {
        let identity = file.metadata().map(|metadata| Identity::of(&metadata)).ok();
        let imported = self
            .ledger
            .get(self.name)
            .and_then(|entry| entry.imported.as_ref());
        let same = imported
            .filter(|imported| !imported.signers.is_empty() && Some(&imported.identity) == identity.as_ref());
        let evidence = same.and_then(|imported| Evidence::read(&self.settings.state_dir, &imported.catalog));
        let order = Order {
            path: self.folder.join(&self.entry.name),
            folder: Some(self.folder.to_owned()),
            name: self.entry.name.clone(),
            limits: self.settings.limits.clone(),
            checksum: None,
            rules: Rules::of(self.settings),
            more: Vec::new(),
            evidence,
            receipt: self.is_receipt.then(|| self.settings.state_dir.clone()),
            leaves_receipt: false,
        };
        let opened = match super::open(file, order).await {
            Ok(opened) => opened,
            Err(super::Failure::Growing(_)) => {
                let why = "one of its proofs is being written: check again later".to_owned();
                return told(Fate::Waits, why);
            }
            Err(super::Failure::Bundle(error)) => {
                // The message begins with the path.
                let (text, path) = (basics::chain(&error), foreign::path(&error.path).to_string());
                let text = text.trim_start_matches(&path).trim_start_matches(": ").to_owned();
                return told(Fate::Refused, text);
            }
            Err(failure) => return told(Fate::Refused, basics::chain(&failure)),
        };
        let catalog = opened.bundle.catalog();
        let content = match self.is_receipt {
            true if catalog.receipt().is_none() => return told(Fate::Refused, NO_RECEIPT.to_owned()),
            true => catalog.stood_for(),
            false => &catalog.digest,
        };
        let stays =
            imported.is_some_and(|imported| imported.signers.is_empty() && imported.catalog == *content);
        match &opened.verdict {
            Verdict::Missing(why) if stays => told(Fate::Stays, format!("{why}. {STAYS}")),
            Verdict::Forbidden(Forbidden { why, by }) if stays && by.is_about_keys() => {
                told(Fate::Stays, format!("{why}. {STAYS}"))
            }
            Verdict::Missing(why) if self.is_receipt => told(Fate::Waits, format!("{why}. {SIGN_AGAIN}")),
            Verdict::Missing(why) => told(Fate::Waits, format!("{why}. {SIGN}")),
            Verdict::Forbidden(forbidden) => told(Fate::Refused, forbidden.why.clone()),
            Verdict::Allowed | Verdict::Admitted(_) => self.names(&opened),
        }
    }

    /// Judges the names of an admitted bundle by the patterns of its keys.
    fn names(&self, opened: &Opened) -> Told {
        let mut policy = runtime::policy(self.settings, None);
        policy.naming.scopes.clone_from(&opened.scopes);
        let selection = import::select(&opened.bundle.catalog().with_its_base(), &policy);
        let mut forbidden = selection
            .choices
            .iter()
            .filter_map(|choice| match &choice.verdict {
                import::select::Verdict::Forbidden(why) => Some(why.clone()),
                _ => None,
            });
        let first = forbidden.next();
        match (first, selection.taken().next().is_some()) {
            (None, _) => (Fate::Accepted, None),
            (Some(why), true) => told(Fate::Partial, why),
            (Some(why), false) => told(Fate::Refused, why),
        }
    }
}

/// The way out for a bundle without a proof.
const SIGN: &str = "Sign its list of contents, and copy the list and the signature beside it";

/// The way out for a receipt whose bundle had no proof.
const SIGN_AGAIN: &str = "Import its bundle once more with a signature";

/// The rule for a bundle from before the rule.
const STAYS: &str = "It is in place and stays. The daemon asks for a signature when the file changes";

fn told(fate: Fate, reason: String) -> Told {
    (fate, Some(reason))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use bundle::fixtures::{Image, Layout};

    use super::*;
    use crate::images::roots::tests::folder_of_root;
    use crate::place::Distribution;

    const IMPORTER: &str = "imports this folder without asking for signatures";

    /// Returns the file names, fates and reasons of all bundles.
    fn foreseen(place: &Place, settings: &Settings) -> Vec<(String, Fate, String)> {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let foreseen = runtime.block_on(foresee(place, settings)).unwrap();
        let told = foreseen.into_iter().map(|told| {
            let name = told.path.rsplit('/').next().unwrap().to_owned();
            (name, told.fate, told.reason.unwrap_or_default())
        });
        told.collect()
    }

    #[test]
    fn each_folder_is_foreseen_with_what_the_daemon_would_find_there() {
        let _no_forks = crate::sys::forks::none();
        let roots = folder_of_root();
        let folder = |name: &str| {
            let path = roots.path().join(name);
            fs::create_dir(&path).unwrap();
            path
        };
        let (images, more) = (folder("images"), folder("more"));
        let layout = Layout::new().image(Image::new("r.test/a:1").layer("a"));
        let write = |path: &Path| drop(layout.write_to(path));
        write(&images.join("a.tar"));
        write(&more.join("b.tar"));
        write(&more.join("open.tar"));
        let writer = fs::OpenOptions::new().append(true).open(more.join("open.tar"));
        fs::write(images.join("list.txt"), "r.test/a:1\n").unwrap();
        let mut place = Place {
            distribution: Distribution::K0s,
            images_dir: images,
            more_dirs: vec![more, roots.path().join("absent")],
            receipts: PathBuf::from("/nowhere/receipts"),
            socket: "/run/k0s/containerd.sock".into(),
            is_home: false,
            because: Vec::new(),
        };
        let mut settings = Settings {
            signatures: Some(Signatures::Require),
            trusted_keys: folder("keys.d"),
            state_dir: folder("state"),
            pull_lists: true,
            ..Settings::default()
        };
        let told = |place: &Place, settings: &Settings| {
            let told = foreseen(place, settings).into_iter();
            told.map(|(name, fate, _)| (name, fate)).collect::<Vec<_>>()
        };
        let row = |name: &str, fate| (name.to_owned(), fate);
        let expected = [
            row("a.tar", Fate::Refused),
            row("list.txt", Fate::Refused),
            row("b.tar", Fate::Refused),
            row("open.tar", Fate::Waits),
        ];
        assert_eq!(told(&place, &settings), expected, "there is no key");
        let of_list = foreseen(&place, &settings).remove(1).2;
        assert_eq!(of_list, NO_LISTS);

        // A folder that another program imports has no guard. The other folders have.
        place.is_home = true;
        let reasons = foreseen(&place, &settings);
        let is_unguarded: Vec<bool> = reasons.iter().map(|told| told.2.contains(IMPORTER)).collect();
        assert_eq!(is_unguarded, [true, true, false, false]);

        settings.signatures = Some(Signatures::IfPresent);
        drop(writer);
        let accepted = ["a.tar", "b.tar", "open.tar"].map(|name| row(name, Fate::Accepted));
        assert_eq!(told(&place, &settings), accepted);
    }
}
