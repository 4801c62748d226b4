//! Any documents in a good archive: `index.json`, `manifest.json`, and manifests, configs and
//! indexes. They refer to each other by their right digests, which a fuzzer does not find by
//! chance.

#![no_main]

use airgapd_fuzz::{check, expand, open};
use bundle::fixtures::{Archive, Data, Image, Layout, digest_of};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&kind, documents)) = data.split_first() else {
        return;
    };
    let image = Image::new("r.test/a:1").platform("linux/amd64").layer(b"x");
    let mut archive = match kind % 4 {
        0 => Layout::new().image(image).build(),
        1 => Layout::docker().image(image).build(),
        _ => Layout::hybrid().image(image).build(),
    };
    let (blobs, last) = documents.split_at(
        documents
            .iter()
            .rposition(|byte| *byte == 0)
            .map_or(0, |at| at + 1),
    );
    let known = add_blobs(&mut archive, blobs);
    let last = Data::from(expand(last, &known));
    match kind % 4 {
        0 | 2 => drop(archive.set("index.json", last)),
        1 => drop(archive.set("manifest.json", last)),
        _ => {
            archive.remove("manifest.json");
            archive.set("index.json", last);
        }
    }
    if let Ok(bundle) = open(&archive.to_bytes()) {
        check(&bundle);
    }
});

/// Adds each text up to a zero byte as a blob under its digest. It also gets a name that
/// `manifest.json` can use.
fn add_blobs(archive: &mut Archive, blobs: &[u8]) -> Vec<(String, usize)> {
    let mut known = Vec::new();
    for blob in blobs.split_inclusive(|byte| *byte == 0).take(26) {
        let blob = expand(&blob[..blob.len() - 1], &known);
        let digest = digest_of(&blob).to_string();
        let size = blob.len();
        archive.add(&format!("blobs/{}", digest.replace(':', "/")), Data::from(blob));
        known.push((digest, size));
    }
    known
}
