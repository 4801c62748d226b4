//! Digests that no signature admits.

use oci_spec::image::Digest;

use crate::list::{self, Hashes, ListProblem};

/// The digests of `revoked.d`. A file there that cannot be read makes all of them unusable. It may
/// have the digest of the next bundle.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revocations {
    files: Vec<RevokedFile>,
    problem: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct RevokedFile {
    name: String,
    catalogs: Hashes,
    files: Hashes,
}

impl Revocations {
    /// Takes the reason why the folder cannot be used at all. An absent folder is no such reason,
    /// since it revokes nothing.
    #[must_use]
    pub fn unusable(why: String) -> Self {
        Self {
            files: Vec::new(),
            problem: Some(why),
        }
    }

    /// Reads the text of a file of the folder.
    ///
    /// A list that begins with [`HEADER`](crate::HEADER) revokes catalogs. In other lists a line
    /// `sha256:<hex>` revokes a catalog, and a line in the forms of sha256sum revokes a file.
    pub fn add(&mut self, name: &str, text: &[u8]) {
        match list::revoked(text) {
            Ok((catalogs, files)) => self.files.push(RevokedFile {
                name: name.to_owned(),
                catalogs,
                files,
            }),
            Err(problem) => self.add_problem(name, &problem),
        }
    }

    /// Notes a file that cannot be read.
    pub fn add_problem(&mut self, name: &str, problem: &ListProblem) {
        let name = basics::foreign::shown(name);
        self.problem.get_or_insert_with(|| format!("{name}: {problem}"));
    }

    /// Returns why the revocations cannot be used.
    #[must_use]
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// Returns true if a file's digest is revoked. Only then must a pass hash a bundle for the
    /// revocations.
    #[must_use]
    pub fn speak_of_files(&self) -> bool {
        self.files.iter().any(|file| !file.files.is_empty())
    }

    /// Returns the name of the list that revokes the catalog.
    #[must_use]
    pub fn of_catalog(&self, digest: &Digest) -> Option<&str> {
        let file = self.files.iter().find(|file| file.catalogs.contains(digest));
        file.map(|file| file.name.as_str())
    }

    /// Returns the name of the list that revokes the file.
    #[must_use]
    pub fn of_file(&self, digest: &Digest) -> Option<&str> {
        let file = self.files.iter().find(|file| file.files.contains(digest));
        file.map(|file| file.name.as_str())
    }
}
