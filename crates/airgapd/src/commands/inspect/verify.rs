//! Reads every byte of a bundle's blobs and checks their digests.

use std::collections::{HashMap, HashSet};
use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};

use basics::digest::Hasher;
use bundle::{Bundle, Content, Node, PartState};
use import::Observer;
use oci_spec::image::{Descriptor, Digest};
use serde::Serialize;

/// Size of a read, in bytes.
const CHUNK: usize = 1 << 20;

/// The result of the verification.
#[derive(Debug, Serialize)]
pub(super) struct Verification {
    /// Number of blobs that were read.
    blobs: u64,
    /// Bytes of these blobs.
    bytes: u64,
    /// Blobs with other bytes than their digests say.
    pub(super) damaged: Vec<Damage>,
    /// Error that stopped the verification early.
    pub(super) error: Option<String>,
}

/// A blob with other bytes than its digest says.
#[derive(Debug, Serialize)]
pub(super) struct Damage {
    pub(super) digest: String,
    /// Digest of its bytes.
    pub(super) found: String,
    /// First image that refers to it.
    pub(super) image: String,
}

impl Damage {
    /// Returns the damage in the words of an import.
    pub(super) fn why(&self) -> String {
        format!("its bytes hash to {}, not {}", self.found, self.digest)
    }
}

impl Verification {
    pub(super) fn is_good(&self) -> bool {
        self.damaged.is_empty() && self.error.is_none()
    }

    /// Returns a summary in one line.
    pub(super) fn summary(&self) -> String {
        let (blobs, size) = (
            basics::counted(self.blobs, "blob"),
            crate::output::bytes(self.bytes),
        );
        match self.damaged.len() {
            0 => format!("{blobs} read ({size}), all match their digests"),
            damaged => format!("{blobs} read ({size}), {damaged} of them DAMAGED"),
        }
    }
}

/// Reads all blobs in the order of the archive, in constant memory. It blocks.
pub(super) fn verify(bundle: &Bundle, progress: &impl Observer) -> Verification {
    let users = users(bundle);
    progress.planned(users.values().map(|user| user.size).sum());
    let read = progress.bytes().unwrap_or_default();
    let mut done = Verification {
        blobs: 0,
        bytes: 0,
        damaged: Vec::new(),
        error: None,
    };
    if let Err(error) = read_all(bundle, &users, &read, &mut done) {
        done.error = Some(error);
    }
    done
}

fn read_all(
    bundle: &Bundle,
    users: &HashMap<Digest, User>,
    read: &AtomicU64,
    done: &mut Verification,
) -> Result<(), String> {
    let wanted: HashSet<Digest> = users.keys().cloned().collect();
    let mut stream = bundle.stream(&wanted).map_err(|error| basics::chain(&error))?;
    let mut buffer = vec![0; CHUNK];
    while let Some(mut blob) = stream.next_blob().map_err(|error| basics::chain(&error))? {
        let digest = blob.digest().clone();
        let (found, bytes) = hash(&mut Counted(&mut blob, read), &digest, &mut buffer)
            .map_err(|error| format!("blob {digest}: {error}"))?;
        done.blobs += 1;
        done.bytes += bytes;
        if found != digest.digest() {
            done.damaged.push(Damage {
                found: format!("{}:{found}", digest.algorithm()),
                image: users
                    .get(&digest)
                    .map(|user| user.image.clone())
                    .unwrap_or_default(),
                digest: digest.to_string(),
            });
        }
    }
    match bundle.is_unchanged() {
        Ok(true) => Ok(()),
        Ok(false) => Err("the bundle changed while it was read".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

struct Counted<'r, R>(&'r mut R, &'r AtomicU64);

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.0.read(buffer)?;
        self.1.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// Reads to the end and returns the hash in hex digits, and the number of bytes.
fn hash(reader: &mut impl Read, digest: &Digest, buffer: &mut [u8]) -> io::Result<(String, u64)> {
    let (mut hasher, mut bytes) = (Hasher::of(digest), 0);
    loop {
        match reader.read(buffer) {
            Ok(0) => return Ok((hasher.finish().digest().to_owned(), bytes)),
            Ok(read) => {
                hasher.update(&buffer[..read]);
                bytes += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// An image that refers to a blob.
struct User {
    /// First image that refers to it.
    image: String,
    /// Size of the blob, in bytes.
    size: u64,
}

/// Returns all blobs of the bundle, each with the name of the first image that refers to it.
fn users(bundle: &Bundle) -> HashMap<Digest, User> {
    let mut users = HashMap::new();
    for image in &bundle.catalog().images {
        let name = image
            .names
            .first()
            .map_or_else(|| image.root.descriptor.digest().to_string(), ToString::to_string);
        below(&image.root, &name, &mut users);
    }
    users
}

fn below(node: &Node, image: &str, users: &mut HashMap<Digest, User>) {
    let mut add = |descriptor: &Descriptor| {
        let user = || User {
            image: image.to_owned(),
            size: descriptor.size(),
        };
        users.entry(descriptor.digest().clone()).or_insert_with(user);
    };
    match &node.content {
        Content::Absent | Content::Broken(_) => {}
        Content::Other => add(&node.descriptor),
        Content::Manifest(manifest) => {
            add(&node.descriptor);
            let present = manifest.parts().filter(|part| part.state == PartState::Present);
            present.for_each(|part| add(&part.descriptor));
        }
        Content::Index(children) => {
            add(&node.descriptor);
            children.iter().for_each(|child| below(child, image, users));
        }
    }
}
