//! The images and blobs of a containerd at one moment, and the lookup of images by a typed name.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use bundle::{Limits, Node};
use containerd::{BlobInfo, ImageRecord};
use import::content::ContentStore;
use import::{Reference, Survey};
use oci_spec::image::{Descriptor, Digest};

use node::runtime::Containerd;

/// Start of the names of CRI's own records, which are ids.
const ID: &str = "sha256:";

/// Least hexadecimal digits of an id. Shorter texts may be names.
const SHORTEST_ID: usize = 12;

/// Starts of labels: those that keep a blob's children, and those that keep the snapshots of an
/// image.
const GC_CONTENT: &str = "containerd.io/gc.ref.content";
const GC_SNAPSHOT: &str = "containerd.io/gc.ref.snapshot.";

/// The image records and blobs of a namespace.
#[derive(Debug)]
pub(crate) struct Stock {
    records: BTreeMap<String, ImageRecord>,
    blobs: HashMap<Digest, BlobInfo>,
}

/// An image and the names under which it is exported.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    /// Name in messages.
    pub(crate) label: String,
    pub(crate) names: BTreeSet<String>,
    pub(crate) target: Descriptor,
}

impl Stock {
    /// Reads the records and blobs from containerd. If its store is visible, blobs that containerd
    /// lists but has lost are left out.
    ///
    /// # Errors
    /// Returns the error of the client.
    pub(crate) async fn of(runtime: &Containerd) -> Result<Stock, containerd::Error> {
        let records = runtime.client.images().await?.into_iter();
        let blobs = runtime.client.blobs().await?.into_iter();
        let survey = Survey {
            records: records.map(|record| (record.name.clone(), record)).collect(),
            blobs: blobs.map(|blob| (blob.digest.clone(), blob)).collect(),
            ..Survey::default()
        };
        let Survey { records, blobs, .. } = survey.checked(&runtime.client, runtime.store.as_deref()).await?;
        Ok(Stock { records, blobs })
    }

    /// Returns all images with a name, one wish for each target. Records that have only an id are
    /// left out.
    pub(crate) fn everything(&self) -> Vec<Wish> {
        let mut wishes: Vec<Wish> = Vec::new();
        let mut places: HashMap<&Digest, usize> = HashMap::new();
        for record in self.records.values().filter(|record| !is_id(&record.name)) {
            let place = *places.entry(record.target.digest()).or_insert(wishes.len());
            if place == wishes.len() {
                wishes.push(Wish {
                    label: record.name.clone(),
                    names: BTreeSet::new(),
                    target: record.target.clone(),
                });
            }
            wishes[place].names.insert(record.name.clone());
        }
        wishes
    }

    /// Returns the image for a text, `None` if there is no such image.
    ///
    /// # Errors
    ///
    /// Returns a sentence if the text is not a reference, or its tag names another image here.
    pub(crate) fn find(&self, text: &str) -> Result<Option<Wish>, String> {
        let record = match self.records.get(text).or_else(|| self.by_id(text)) {
            Some(record) => Some(record),
            None => self.by_reference(
                &text
                    .parse()
                    .map_err(|error: import::names::InvalidReference| error.to_string())?,
            )?,
        };
        Ok(record.map(|record| Wish {
            label: text.to_owned(),
            names: self.names_with(record),
            target: record.target.clone(),
        }))
    }

    fn by_id(&self, text: &str) -> Option<&ImageRecord> {
        let hex = text.strip_prefix(ID).unwrap_or(text);
        let is_hex = hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if !is_hex || hex.len() < SHORTEST_ID {
            return None;
        }
        let id = format!("{ID}{hex}");
        let mut found = self
            .records
            .range(id.clone()..)
            .take_while(|(name, _)| name.starts_with(&id));
        let (_, record) = found.next()?;
        found.next().is_none().then_some(record)
    }

    /// Looks up a reference as CRI does, and by digest even if no record has that digest in its
    /// name.
    fn by_reference(&self, reference: &Reference) -> Result<Option<&ImageRecord>, String> {
        let repository = reference.repository();
        let Some(digest) = reference.digest() else {
            let tag = reference.tag().unwrap_or("latest");
            return Ok(self.records.get(&format!("{repository}:{tag}")));
        };
        if let Some(tag) = reference.tag()
            && let Some(record) = self.records.get(&format!("{repository}:{tag}"))
        {
            let found = record.target.digest();
            return if found.as_ref() == digest {
                Ok(Some(record))
            } else {
                Err(format!(
                    "{reference}: on this node the tag names another image, {found}"
                ))
            };
        }
        let by_name = self.records.get(&format!("{repository}@{digest}"));
        Ok(by_name.or_else(|| {
            self.records.values().find(|record| {
                record.target.digest().as_ref() == digest && repository_of(&record.name) == Some(repository)
            })
        }))
    }

    /// Returns a record's name and the names by digest for the same image. For an id it returns all
    /// names of the image.
    fn names_with(&self, record: &ImageRecord) -> BTreeSet<String> {
        let target = record.target.digest();
        let same = self
            .records
            .values()
            .filter(|other| other.target.digest() == target && !is_id(&other.name));
        let belongs = |other: &&ImageRecord| {
            let by_digest = other.name.ends_with(&format!("@{target}"));
            other.name == record.name
                || is_id(&record.name)
                || by_digest && repository_of(&other.name) == repository_of(&record.name)
        };
        same.filter(belongs).map(|other| other.name.clone()).collect()
    }

    /// Returns a content store to look images up. Its reads block.
    pub(crate) fn store(&self, runtime: &Containerd) -> ContentStore {
        ContentStore::of(
            &runtime.client,
            self.blobs.values().map(|blob| (blob.digest.clone(), blob.size)),
        )
    }

    /// Returns the blobs to which no other blob of the set refers. If these are kept, the others
    /// are kept too.
    pub(crate) fn roots<'d>(&'d self, digests: &HashSet<&'d Digest>) -> Vec<&'d BlobInfo> {
        let blobs = || digests.iter().filter_map(|digest| self.blobs.get(*digest));
        let referred: HashSet<&str> = blobs().flat_map(children).collect();
        blobs()
            .filter(|blob| !referred.contains(blob.digest.as_ref()))
            .collect()
    }

    /// Returns the blobs that image records keep, in the order of their digests.
    pub(crate) fn kept(&self) -> Vec<&BlobInfo> {
        let mut kept: BTreeMap<&str, &BlobInfo> = BTreeMap::new();
        let mut queue: Vec<&str> = self
            .records
            .values()
            .map(|record| record.target.digest().as_ref())
            .collect();
        let by_text: HashMap<&str, &BlobInfo> = self
            .blobs
            .values()
            .map(|blob| (blob.digest.as_ref(), blob))
            .collect();
        while let Some(digest) = queue.pop() {
            if let Some(blob) = by_text.get(digest)
                && kept.insert(digest, blob).is_none()
            {
                queue.extend(children(blob));
            }
        }
        kept.into_values().collect()
    }

    /// Returns the records that have a name.
    pub(crate) fn named(&self) -> impl Iterator<Item = &ImageRecord> {
        self.records.values().filter(|record| !is_id(&record.name))
    }

    /// Returns true if the blob is present.
    pub(crate) fn has(&self, digest: &Digest) -> bool {
        self.blobs.contains_key(digest)
    }

    /// Returns true if the image with this config was unpacked, at least in part. An unpacked image
    /// may have lost its layers since.
    pub(crate) fn was_unpacked(&self, config: &Digest) -> bool {
        let blob = self.blobs.get(config);
        blob.is_some_and(|blob| blob.labels.keys().any(|key| key.starts_with(GC_SNAPSHOT)))
    }
}

/// Returns the tree below a target. It reads documents and blocks.
///
/// # Errors
///
/// Returns the reason why the tree cannot be read, in a sentence. The store knows if containerd
/// caused it.
pub(crate) fn look_up(
    target: &Descriptor,
    store: &mut ContentStore,
    limits: &Limits,
) -> Result<Node, String> {
    bundle::resolve(target, store, limits).map_err(|fault| basics::chain(&fault))
}

fn children(blob: &BlobInfo) -> impl Iterator<Item = &str> {
    let labels = blob.labels.iter();
    labels
        .filter(|(key, _)| key.starts_with(GC_CONTENT))
        .map(|(_, digest)| digest.as_str())
}

fn is_id(name: &str) -> bool {
    name.starts_with(ID)
}

fn repository_of(name: &str) -> Option<&str> {
    let name = name.split_once('@').map_or(name, |(name, _)| name);
    let (rest, last) = name.rsplit_once('/')?;
    let end = last.find(':').map_or(name.len(), |at| rest.len() + 1 + at);
    Some(&name[..end])
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::image::MediaType;

    const A: char = 'a';
    const B: char = 'b';

    fn digest(letter: char) -> Digest {
        format!("sha256:{}", letter.to_string().repeat(64))
            .parse()
            .unwrap()
    }

    fn stock(records: &[(&str, char)]) -> Stock {
        let record = |(name, letter): &(&str, char)| ImageRecord {
            name: (*name).to_owned(),
            target: Descriptor::new(MediaType::ImageIndex, 5, digest(*letter)),
            labels: BTreeMap::new(),
            created_at: None,
        };
        Stock {
            records: records
                .iter()
                .map(|given| (given.0.to_owned(), record(given)))
                .collect(),
            blobs: HashMap::new(),
        }
    }

    fn blob(letter: char, labels: &[(&str, char)]) -> BlobInfo {
        BlobInfo {
            digest: digest(letter),
            size: 1,
            labels: labels
                .iter()
                .map(|(key, to)| ((*key).to_owned(), digest(*to).to_string()))
                .collect(),
        }
    }

    #[test]
    fn what_is_typed_finds_what_cri_would_find_with_the_names_by_digest() {
        let at = |letter: char| format!("quay.io/x/app@{}", digest(letter));
        let id = format!("sha256:{}", "c".repeat(64));
        let (by_digest, elsewhere) = (at(A), format!("other.test/app@{}", digest(A)));
        let stock = stock(&[
            ("docker.io/library/busybox:latest", B),
            ("quay.io/x/app:1", A),
            ("quay.io/x/app:2", A),
            (&by_digest, A),
            (&elsewhere, A),
            (&id, A),
            ("odd name", B),
            ("localhost:5000/app:1", B),
        ]);
        let names = |text: &str| {
            let found = stock.find(text);
            found.map(|wish| wish.map(|wish| wish.names.into_iter().collect::<Vec<_>>()))
        };
        let all = [
            "other.test/app@",
            "quay.io/x/app:1",
            "quay.io/x/app:2",
            "quay.io/x/app@",
        ];
        let rows: [(String, Option<&[&str]>); 10] = [
            ("busybox".into(), Some(&["docker.io/library/busybox:latest"])),
            (
                "quay.io/x/app:1".into(),
                Some(&["quay.io/x/app:1", "quay.io/x/app@"]),
            ),
            (by_digest.clone(), Some(&["quay.io/x/app@"])),
            (
                format!("quay.io/x/app:2@{}", digest(A)),
                Some(&["quay.io/x/app:2", "quay.io/x/app@"]),
            ),
            (
                format!("quay.io/x/app:9@{}", digest(A)),
                Some(&["quay.io/x/app@"]),
            ),
            ("c".repeat(12), Some(&all)),
            (id.clone(), Some(&all)),
            ("odd name".into(), Some(&["odd name"])),
            ("quay.io/x/app:3".into(), None),
            (
                format!("localhost:5000/app@{}", digest(B)),
                Some(&["localhost:5000/app:1"]),
            ),
        ];
        for (text, wanted) in rows {
            let found = names(&text).unwrap();
            let found = found.as_ref().map(|found| {
                found
                    .iter()
                    .map(|name| name.split_inclusive('@').next().unwrap())
                    .collect::<Vec<_>>()
            });
            assert_eq!(found.as_deref(), wanted, "{text}");
        }
        let other = names(&format!("quay.io/x/app:1@{}", digest(B))).unwrap_err();
        assert!(other.contains(digest(A).as_ref()), "{other}");
        assert!(names("No Name").is_err());
        assert_eq!(stock.everything().len(), 2);
    }

    #[test]
    fn what_a_blob_refers_to_is_kept_with_it() {
        let mut stock = stock(&[("a.test/a:1", 'a')]);
        let blobs = [
            blob('a', &[("containerd.io/gc.ref.content.m.0", 'b')]),
            blob('b', &[("containerd.io/gc.ref.content.config", 'c')]),
            blob('c', &[("containerd.io/gc.ref.snapshot.overlayfs", 'd')]),
            blob('d', &[]),
        ];
        stock.blobs = blobs
            .into_iter()
            .map(|blob| (blob.digest.clone(), blob))
            .collect();
        let kept: Vec<_> = stock.kept().iter().map(|blob| blob.digest.clone()).collect();
        assert_eq!(kept, ['a', 'b', 'c'].map(digest));
        let all = ['a', 'b', 'c', 'd'].map(digest);
        let roots = stock.roots(&all.iter().collect());
        let roots: HashSet<_> = roots.iter().map(|blob| &blob.digest).collect();
        assert_eq!(roots, HashSet::from([&all[0], &all[3]]));
        assert!(stock.was_unpacked(&digest('c')) && !stock.was_unpacked(&digest('b')));
    }

    #[test]
    fn a_repository_is_what_comes_before_tag_and_digest() {
        let rows = [
            ("a.test:5000/b/c:1", Some("a.test:5000/b/c")),
            ("a.test:5000/b", Some("a.test:5000/b")),
            ("a.test/b:1@sha256:aa", Some("a.test/b")),
            ("name", None),
        ];
        for (name, wanted) in rows {
            assert_eq!(repository_of(name), wanted, "{name}");
        }
    }
}
