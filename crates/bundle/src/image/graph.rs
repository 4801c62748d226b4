//! Resolves a descriptor whose blobs are not in a bundle but in another store, such as
//! containerd's.
//!
//! The documents are read and judged like those of an OCI layout. So a bundle and a content store
//! give the same answer about the same image.

use basics::{counted, digest};
use oci_spec::image::{Descriptor, Digest};

use super::account::Account;
use super::documents::RawDescriptor;
use super::layout::Layout;
use super::reader::Blobs;
use crate::limits::set_bytes;
use crate::{Content, Fault, Flaw, Limits, Node, PartState};

/// A store that keeps blobs by digest.
pub trait Store {
    /// Returns the size of a blob in bytes, or `None` if the store lacks it.
    fn size(&self, digest: &Digest) -> Option<u64>;

    /// Reads a document. The caller has checked its size against the limits.
    ///
    /// # Errors
    ///
    /// Returns the reason why the document cannot be read, in a sentence that names the blob.
    fn read(&mut self, digest: &Digest) -> Result<Vec<u8>, String>;
}

/// Finds the content behind a descriptor. The descriptor may lack a platform. Bytes that a
/// descriptor embeds do not count as being in the store.
///
/// # Errors
///
/// Returns [`Fault::Limit`] if an image costs more than the limits allow.
pub fn resolve(descriptor: &Descriptor, store: &mut dyn Store, limits: &Limits) -> Result<Node, Fault> {
    let mut stored = Stored {
        store,
        limits,
        spent: Account::default(),
    };
    let mut node = Node {
        descriptor: descriptor.clone(),
        platform: None,
        content: Content::Absent,
    };
    Layout::new(&mut stored).resolve(&mut node)?;
    Ok(node)
}

struct Stored<'s> {
    store: &'s mut dyn Store,
    limits: &'s Limits,
    spent: Account,
}

impl Blobs for Stored<'_> {
    fn limits(&self) -> &Limits {
        self.limits
    }

    fn spent(&self) -> Account {
        self.spent
    }

    fn charge(&mut self, descriptors: usize, kept: u64) -> Result<(), Fault> {
        self.spent.charge(self.limits, descriptors, kept)
    }

    fn hold(&mut self, bytes: u64) -> Result<(), Fault> {
        self.spent.hold(self.limits, bytes)
    }

    fn take_embedded(&mut self, _: &RawDescriptor, _: &Descriptor) {}

    fn state(&mut self, descriptor: &Descriptor) -> PartState {
        let digest = descriptor.digest();
        match self.store.size(digest) {
            None => PartState::Absent,
            Some(size) if size == descriptor.size() => PartState::Present,
            Some(size) => PartState::Broken(
                format!(
                    "blob {digest} has {}, but its descriptor says {}",
                    counted(size, "byte"),
                    descriptor.size()
                )
                .into(),
            ),
        }
    }

    fn contents(&mut self, descriptor: &Descriptor) -> Result<Result<Vec<u8>, Flaw>, Fault> {
        let digest = descriptor.digest();
        let limit = self.limits.json_document;
        if descriptor.size() > limit {
            let size = descriptor.size();
            let reason = format!(
                "document {digest} has {size} bytes, more than {limit} ({})",
                set_bytes("jsonDocument", limit)
            );
            return Ok(Err(reason.into()));
        }
        let bytes = match self.store.read(digest) {
            Ok(bytes) => bytes,
            Err(reason) => return Ok(Err(reason.into())),
        };
        if !digest::fits(&bytes, digest) {
            return Ok(Err(Flaw::damage(digest, &digest::like(digest, &bytes))));
        }
        Ok(Ok(bytes))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use oci_spec::image::MediaType;

    struct Shelf(HashMap<Digest, Vec<u8>>);

    impl Store for Shelf {
        fn size(&self, digest: &Digest) -> Option<u64> {
            self.0.get(digest).map(|bytes| bytes.len() as u64)
        }

        fn read(&mut self, digest: &Digest) -> Result<Vec<u8>, String> {
            self.0
                .get(digest)
                .cloned()
                .ok_or_else(|| format!("{digest} disappeared"))
        }
    }

    impl Shelf {
        fn put(&mut self, bytes: &str) -> Digest {
            let digest = digest::sha256(bytes.as_bytes());
            self.0.insert(digest.clone(), bytes.as_bytes().to_vec());
            digest
        }
    }

    fn part(media_type: &str, digest: &Digest, size: usize) -> String {
        format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":{size}}}"#)
    }

    #[test]
    fn an_image_in_a_store_is_judged_as_one_in_a_bundle() {
        let mut shelf = Shelf(HashMap::new());
        let layer = shelf.put("layer");
        let config_text =
            format!(r#"{{"os":"linux","architecture":"amd64","rootfs":{{"diff_ids":["{layer}"]}}}}"#);
        let config = shelf.put(&config_text);
        let manifest_text = format!(
            r#"{{"config":{},"layers":[{}]}}"#,
            part(
                "application/vnd.oci.image.config.v1+json",
                &config,
                config_text.len()
            ),
            part("application/vnd.oci.image.layer.v1.tar", &layer, 5)
        );
        let manifest = shelf.put(&manifest_text);
        let index_text = format!(
            r#"{{"manifests":[{}]}}"#,
            part(
                "application/vnd.oci.image.manifest.v1+json",
                &manifest,
                manifest_text.len()
            )
        );
        let index = shelf.put(&index_text);
        let root = Descriptor::new(MediaType::ImageIndex, index_text.len() as u64, index);
        let found = |shelf: &mut Shelf| {
            let node = resolve(&root, shelf, &Limits::default()).unwrap();
            let Content::Index(children) = node.content else {
                panic!("{node:?}")
            };
            let Content::Manifest(manifest) = children[0].content.clone() else {
                panic!("{children:?}")
            };
            manifest
        };
        let whole = found(&mut shelf);
        assert!(whole.problems.is_empty() && whole.layers[0].state == PartState::Present);
        assert_eq!(whole.config_platform.as_ref().unwrap().to_string(), "linux/amd64");

        shelf.0.insert(layer.clone(), b"longer layer".to_vec());
        assert!(
            matches!(&found(&mut shelf).layers[0].state, PartState::Broken(reason) if reason.contains("12 bytes"))
        );
        shelf.0.remove(&layer);
        assert_eq!(found(&mut shelf).layers[0].state, PartState::Absent);
        shelf
            .0
            .insert(config, config_text.replace("amd64", "arm64").into_bytes());
        assert!(matches!(found(&mut shelf).config.state, PartState::Broken(_)));
        let few = Limits {
            descriptors: 1,
            ..Limits::default()
        };
        assert!(resolve(&root, &mut shelf, &few).is_err());
    }
}
