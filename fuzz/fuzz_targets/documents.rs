//! Any bytes as `index.json` and as `manifest.json` of an otherwise good archive, and as a manifest that an index
//! refers to by its right digest.

#![no_main]

use airgapd_bundle::fixtures::{Data, Image, Layout, digest_of};
use airgapd_fuzz::{check, open};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&kind, document)) = data.split_first() else { return };
    let image = Image::new("r.test/a:1").platform("linux/amd64").layer(b"x");
    let mut archive = match kind % 4 {
        0 => Layout::new().image(image).build(),
        1 => Layout::docker().image(image).build(),
        _ => Layout::hybrid().image(image).build(),
    };
    let text = Data::from(document.to_vec());
    match kind % 4 {
        0 => drop(archive.set("index.json", text)),
        1 => drop(archive.set("manifest.json", text)),
        2 => drop(archive.set("index.json", text)),
        _ => {
            let digest = digest_of(document);
            let index = format!(
                r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}","size":{}}},{{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"{digest}","size":{}}}]}}"#,
                document.len(),
                document.len()
            );
            archive.set("index.json", Data::from(index.into_bytes()));
            archive.add(&format!("blobs/{}", digest.to_string().replace(':', "/")), text);
        }
    }
    if let Ok(bundle) = open(&archive.to_bytes()) {
        check(&bundle);
    }
});
