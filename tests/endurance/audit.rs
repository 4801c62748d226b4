//! Audits containerd from outside: compares its lists with the files on its disk.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use containerd::{BlobInfo, ImageRecord};
use serde_json::Value;

use crate::support::bundles::native;

/// The content store of one containerd. The first audit of a blob hashes it, and later audits only
/// check its size. That makes hundreds of audits possible.
pub struct Audit {
    blobs: PathBuf,
    hashed: HashSet<String>,
}

impl Audit {
    /// Returns an audit of the containerd with this root folder.
    pub fn of(root: &Path) -> Audit {
        Audit {
            blobs: root.join("io.containerd.content.v1.content/blobs"),
            hashed: HashSet::new(),
        }
    }

    /// Returns the number of hashed blobs.
    pub fn hashed(&self) -> usize {
        self.hashed.len()
    }

    /// Checks that a record implies whole blobs. Returns the faults in the closures of the records,
    /// on this machine's platform.
    pub fn broken(&mut self, records: &[ImageRecord], listed: &[BlobInfo]) -> Vec<String> {
        let listed: BTreeMap<_, _> = listed
            .iter()
            .map(|blob| (blob.digest.to_string(), blob.size))
            .collect();
        let mut faults = Vec::new();
        for record in records {
            let target = Part {
                digest: record.target.digest().to_string(),
                size: record.target.size(),
                is_document: true,
            };
            if let Err(fault) = self.walk(target, &listed) {
                faults.push(format!("{}: {fault}", record.name));
            }
        }
        faults
    }

    fn walk(&mut self, root: Part, listed: &BTreeMap<String, u64>) -> Result<(), String> {
        let mut to_see = vec![root];
        while let Some(part) = to_see.pop() {
            self.see(&part, listed)?;
            if part.is_document {
                let document = fs::read(self.path(&part.digest)).map_err(|error| error.to_string())?;
                to_see.extend(below(&document)?);
            }
        }
        Ok(())
    }

    fn see(&mut self, part: &Part, listed: &BTreeMap<String, u64>) -> Result<(), String> {
        let Part { digest, size, .. } = part;
        match listed.get(digest) {
            None => return Err(format!("{digest} is not in the content store")),
            Some(listed) if listed != size => {
                return Err(format!("{digest} has {listed} bytes in the list, not {size}"));
            }
            Some(_) => {}
        }
        let path = self.path(digest);
        let found = fs::metadata(&path)
            .map_err(|error| format!("{digest}: {error}"))?
            .len();
        if found != *size {
            return Err(format!("{digest} has {found} bytes on disk, not {size}"));
        }
        if self.hashed.contains(digest) {
            return Ok(());
        }
        let bytes = fs::read(&path).map_err(|error| format!("{digest}: {error}"))?;
        let is = fake_containerd::sha256(&bytes);
        if is != *digest {
            return Err(format!("{digest} has the content of {is}"));
        }
        self.hashed.insert(is);
        Ok(())
    }

    fn path(&self, digest: &str) -> PathBuf {
        self.blobs.join(digest.replace(':', "/"))
    }
}

/// A blob that a record or document refers to.
struct Part {
    digest: String,
    size: u64,
    /// True for an index or a manifest, which refers to other blobs.
    is_document: bool,
}

/// Returns the parts below an index or a manifest that a node needs.
fn below(document: &[u8]) -> Result<Vec<Part>, String> {
    let document: Value = serde_json::from_slice(document).map_err(|error| error.to_string())?;
    let list = |key: &str| document[key].as_array().cloned().unwrap_or_default();
    if document["manifests"].is_array() {
        let runs_here = |manifest: &&Value| match manifest["platform"]["architecture"].as_str() {
            Some(architecture) => native().split('/').nth(1) == Some(architecture),
            None => true,
        };
        let here: Vec<_> = list("manifests")
            .iter()
            .filter(runs_here)
            .map(|each| part(each, true))
            .collect();
        return match here.is_empty() {
            true => Err("an index without a manifest for this node".to_owned()),
            false => Ok(here),
        };
    }
    let layers = list("layers");
    Ok(layers
        .iter()
        .chain([&document["config"]])
        .map(|each| part(each, false))
        .collect())
}

fn part(descriptor: &Value, is_document: bool) -> Part {
    Part {
        digest: descriptor["digest"].as_str().unwrap_or_default().to_owned(),
        size: descriptor["size"].as_u64().unwrap_or_default(),
        is_document,
    }
}
