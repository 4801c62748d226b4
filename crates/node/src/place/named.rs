//! The names that an operator may give to a bundle.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

/// Returns the name of the bundle that an operator means. `typed` is a path, or a name in any of
/// the images folders (`folders`, the first one first). `is_known` tells which bundles exist. A
/// name that no bundle has stays as it is.
///
/// # Errors
///
/// Returns the names of all bundles that it may mean, if there are several.
pub fn bundle_named(
    typed: &str,
    folders: &[PathBuf],
    is_known: impl Fn(&str) -> bool,
) -> Result<String, Vec<String>> {
    let text = |path: PathBuf| path.into_os_string().into_string().ok();
    if let (true, Some(first)) = (Path::new(typed).is_absolute(), folders.first()) {
        // Slashes at the end and `.` do not count.
        let path: PathBuf = Path::new(typed).components().collect();
        let name = path.strip_prefix(first).map(Path::to_owned).unwrap_or(path);
        return Ok(text(name).unwrap_or_else(|| typed.to_owned()));
    }
    let further = folders
        .iter()
        .skip(1)
        .filter_map(|folder| text(folder.join(typed)));
    let meant = std::iter::once(typed.to_owned()).chain(further);
    let mut meant: Vec<String> = meant.filter(|name| is_known(name)).collect();
    match (meant.pop(), meant.is_empty()) {
        (None, _) => Ok(typed.to_owned()),
        (Some(name), true) => Ok(name),
        (Some(name), false) => {
            meant.push(name);
            Err(meant)
        }
    }
}

/// The bundles of a node, by everything that an operator may call them.
#[derive(Clone, Debug, Default)]
pub struct Names<'n> {
    folders: Vec<PathBuf>,
    /// Files of the images folders, by name.
    files: HashSet<&'n str>,
    /// Receipts, by the name of the bundle that they stand for.
    receipts: HashMap<&'n str, Vec<&'n str>>,
}

impl<'n> Names<'n> {
    /// Returns the names of these files and receipts. A receipt comes with the name of the bundle
    /// that it stands for, or with none. `folders` are the images folders, the first one first.
    pub fn new(
        folders: Vec<PathBuf>,
        files: impl IntoIterator<Item = &'n str>,
        receipts: impl IntoIterator<Item = (&'n str, &'n str)>,
    ) -> Names<'n> {
        let mut names = Names {
            folders,
            files: files.into_iter().collect(),
            receipts: HashMap::new(),
        };
        for (stands_for, receipt) in receipts {
            names.receipts.entry(stands_for).or_default().push(receipt);
        }
        names
    }

    /// Returns the names of the bundles that an operator means by a name or a path. If the file is
    /// there, the file is meant. Otherwise all receipts that stand for it are: those of several
    /// releases may have its name. A receipt has no short name of its own. A name that no bundle
    /// has stays as it is.
    ///
    /// # Errors
    ///
    /// Returns the names of all bundles that it may mean, if there are several.
    pub fn meant(&self, typed: &str) -> Result<Vec<String>, Vec<String>> {
        let is_known = |name: &str| self.files.contains(name) || self.receipts.contains_key(name);
        let name = bundle_named(typed, &self.folders, is_known)?;
        Ok(match self.receipts.get(name.as_str()) {
            Some(receipts) if !self.files.contains(name.as_str()) => {
                receipts.iter().map(|receipt| (*receipt).to_owned()).collect()
            }
            _ => vec![name],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_is_meant_by_its_path_or_by_its_name_if_no_other_has_it() {
        let folders = ["/in", "/os", "/more"].map(PathBuf::from);
        let known = ["a.tar", "b.tar", "/os/b.tar", "/more/c.tar", "/more/sub/d.tar"];
        let named = |typed: &str| bundle_named(typed, &folders, |name| known.contains(&name));
        let table = [
            ("a.tar", "a.tar"),
            ("/in/a.tar", "a.tar"),
            ("/in//b.tar", "b.tar"),
            ("/os/b.tar", "/os/b.tar"),
            ("c.tar", "/more/c.tar"),
            ("sub/d.tar", "/more/sub/d.tar"),
            ("/more/./c.tar", "/more/c.tar"),
            ("/gone/e.tar", "/gone/e.tar"),
            ("registry.test/app:1", "registry.test/app:1"),
        ];
        for (typed, wanted) in table {
            assert_eq!(named(typed).as_deref(), Ok(wanted), "{typed}");
        }
        assert_eq!(
            named("b.tar"),
            Err(vec!["b.tar".to_owned(), "/os/b.tar".to_owned()])
        );
    }

    #[test]
    fn a_receipt_has_the_name_of_its_bundle_while_the_file_is_away() {
        let folders = ["/in", "/os"].map(PathBuf::from);
        let files = ["both.tar", "/os/there.tar", "twice.tar"];
        let receipts = [
            ("both.tar", "/state/receipts/both.tar"),
            ("gone.tar", "/state/receipts/gone.tar"),
            ("/os/away.tar", "/state/receipts/%2Fos%2Faway.tar"),
            ("/os/twice.tar", "/state/receipts/%2Fos%2Ftwice.tar"),
            ("shop.tar", "/state/receipts/of-release-1-shop.tar"),
            ("shop.tar", "/state/receipts/of-release-2-shop.tar"),
        ];
        let names = Names::new(folders.to_vec(), files, receipts);
        let table: [(&str, &[&str]); 12] = [
            ("both.tar", &["both.tar"]),
            ("/in/both.tar", &["both.tar"]),
            ("gone.tar", &["/state/receipts/gone.tar"]),
            ("/in/gone.tar", &["/state/receipts/gone.tar"]),
            ("there.tar", &["/os/there.tar"]),
            ("away.tar", &["/state/receipts/%2Fos%2Faway.tar"]),
            ("/os/away.tar", &["/state/receipts/%2Fos%2Faway.tar"]),
            ("/in/away.tar", &["away.tar"]),
            ("/state/receipts/gone.tar", &["/state/receipts/gone.tar"]),
            ("twice.tar", &[]),
            (
                "shop.tar",
                &[
                    "/state/receipts/of-release-1-shop.tar",
                    "/state/receipts/of-release-2-shop.tar",
                ],
            ),
            ("other.tar", &["other.tar"]),
        ];
        for (typed, wanted) in table {
            let wanted: Vec<String> = wanted.iter().map(|name| (*name).to_owned()).collect();
            match names.meant(typed) {
                Ok(meant) => assert_eq!(meant, wanted, "{typed}"),
                Err(several) => assert_eq!((typed, several.len()), ("twice.tar", 2)),
            }
        }
    }
}
