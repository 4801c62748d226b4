//! What the fuzz targets have in common: a bundle out of bytes, and what must hold for every bundle that opens.

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use airgapd_bundle::{Bundle, Catalog, Content, Error, Limits, Node, PartState};
use oci_spec::image::Digest;

/// Opens bytes as a bundle, in memory.
pub fn open(bytes: &[u8]) -> Result<Bundle, Error> {
    let memory = rustix::fs::memfd_create("bundle", rustix::fs::MemfdFlags::CLOEXEC).expect("memory for a file");
    let mut file = File::from(memory);
    file.write_all(bytes).expect("a file in memory takes everything");
    Bundle::from_file(file, Path::new("fuzz"), &limits())
}

/// Small enough that everything can be read, and that limits are reached.
fn limits() -> Limits {
    Limits { entries: 10_000, descriptors: 1_000, images: 100, ..Limits::default() }
}

/// Whatever a catalog calls present can be read to its size, by itself and in the order of the archive.
pub fn check(bundle: &Bundle) {
    let digests = present(bundle.catalog());
    check_stream(bundle, digests.iter().cloned().collect());
    for digest in digests.into_iter().take(if bundle.is_sequential() { 4 } else { usize::MAX }) {
        let blob = bundle.blob(&digest).expect("a blob that is present can be opened");
        let size = blob.size();
        let Ok(reader) = blob.open(0) else { continue };
        let read = std::io::copy(&mut reader.take(size + 1), &mut std::io::sink());
        assert!(read.is_err() || read.is_ok_and(|read| read == size), "{digest} is longer or shorter than it says");
    }
}

fn check_stream(bundle: &Bundle, wanted: HashSet<Digest>) {
    let Ok(mut stream) = bundle.stream(&wanted) else { return };
    while let Ok(Some(mut blob)) = stream.next_blob() {
        let size = blob.size();
        let read = std::io::copy(&mut blob, &mut std::io::sink());
        assert!(read.is_err() || read.is_ok_and(|read| read == size), "{} is longer or shorter", blob.digest());
    }
}

fn present(catalog: &Catalog) -> Vec<Digest> {
    let mut digests = Vec::new();
    catalog.images.iter().for_each(|image| collect(&image.root, &mut digests));
    digests
}

fn collect(node: &Node, digests: &mut Vec<Digest>) {
    match &node.content {
        Content::Absent | Content::Broken(_) => return,
        Content::Other => {}
        Content::Index(children) => children.iter().for_each(|child| collect(child, digests)),
        Content::Manifest(manifest) => {
            let parts = manifest.parts().filter(|part| matches!(part.state, PartState::Present));
            digests.extend(parts.map(|part| part.descriptor.digest().clone()));
        }
    }
    digests.push(node.descriptor.digest().clone());
}
