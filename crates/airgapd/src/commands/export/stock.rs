//! The content of a containerd at one moment, and which of its images a typed name means.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use bundle::{Limits, Node};
use containerd::{BlobInfo, ImageRecord};
use import::content::ContentStore;
use import::{Reference, Survey};
use oci_spec::image::{Descriptor, Digest};

use node::runtime::Containerd;

/// The beginning of the names of CRI's own records: they are ids.
const ID: &str = "sha256:";

/// How many hexadecimal digits make an id: shorter ones may be names.
const SHORTEST_ID: usize = 12;

/// Labels that keep a blob's children begin so, and so those that keep what was unpacked of an
/// image.
const GC_CONTENT: &str = "containerd.io/gc.ref.content";
const GC_SNAPSHOT: &str = "containerd.io/gc.ref.snapshot.";

/// The image records and blobs of a namespace.
#[derive(Debug)]
pub(crate) struct Stock {
    records: BTreeMap<String, ImageRecord>,
    blobs: HashMap<Digest, BlobInfo>,
}

/// An image and the names that it is taken under.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    /// Its name in messages.
    pub(crate) label: String,
    pub(crate) names: BTreeSet<String>,
    pub(crate) target: Descriptor,
}

impl Stock {
    /// Asks containerd. Blobs that it lists and has lost are not among them, where its store can be
    /// seen.
    ///
    /// # Errors
    ///
    /// The error of the client.
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

    /// Everything that has a name, one wish for each target. A record with nothing but an id is no
    /// wish.
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

    /// The image that is meant by a text; none if there is no such image.
    ///
    /// # Errors
    ///
    /// A sentence, where the text is no reference, or contradicts what there is.
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

    /// As CRI does it, and by digest also where no record has it in its name.
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
                Err(format!("{reference}: the tag names another image here, {found}"))
            };
        }
        let by_name = self.records.get(&format!("{repository}@{digest}"));
        Ok(by_name.or_else(|| {
            self.records.values().find(|record| {
                record.target.digest().as_ref() == digest && repository_of(&record.name) == Some(repository)
            })
        }))
    }

    /// A record's name, and the others that stand for the same by digest; of an id, all the names
    /// it has.
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

    /// A place to look images up in. For threads that may wait.
    pub(crate) fn store(&self, runtime: &Containerd) -> ContentStore {
        ContentStore::of(
            &runtime.client,
            self.blobs.values().map(|blob| (blob.digest.clone(), blob.size)),
        )
    }

    /// Of these blobs, those that keep the others if they are kept: no other one refers to them.
    pub(crate) fn roots<'d>(&'d self, digests: &HashSet<&'d Digest>) -> Vec<&'d BlobInfo> {
        let blobs = || digests.iter().filter_map(|digest| self.blobs.get(*digest));
        let referred: HashSet<&str> = blobs().flat_map(children).collect();
        blobs()
            .filter(|blob| !referred.contains(blob.digest.as_ref()))
            .collect()
    }

    /// The blobs that image records keep, in the order of their digests.
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

    /// The records that have a name.
    pub(crate) fn named(&self) -> impl Iterator<Item = &ImageRecord> {
        self.records.values().filter(|record| !is_id(&record.name))
    }

    /// Whether a blob is there.
    pub(crate) fn has(&self, digest: &Digest) -> bool {
        self.blobs.contains_key(digest)
    }

    /// Whether something was unpacked of the image with this config. An unpacked image may have
    /// lost its layers since.
    pub(crate) fn was_unpacked(&self, config: &Digest) -> bool {
        let blob = self.blobs.get(config);
        blob.is_some_and(|blob| blob.labels.keys().any(|key| key.starts_with(GC_SNAPSHOT)))
    }
}

/// The tree below a target. Reads documents; for threads that may wait.
///
/// # Errors
///
/// Why nothing is known of it, in a sentence; the store tells whether that is containerd's fault.
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
