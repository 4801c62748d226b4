//! Imports of compressed bundles, which are read in order.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, mpsc};

use airgapd_import::ingest::IngestedImage;
use airgapd_import::{Observer, Outcome};
use bundle::Compression;
use bundle::fixtures::Archive;
use containerd::{BlobSource, BlobSpec, Client};
use harness::{Stage, eventually};
use oci_spec::image::Digest;

use crate::support::{Stock, amd64, assert_converged, everywhere, import_all, noise, observed_import};

everywhere! {
    a_compressed_bundle_is_imported_like_a_plain_one
    a_compressed_bundle_that_is_in_place_is_not_read_again
    only_what_is_missing_of_a_compressed_bundle_is_sent
    an_image_is_recorded_as_soon_as_its_blobs_have_gone_by
    a_half_written_blob_is_resumed_as_its_bytes_go_by
    a_half_written_blob_with_other_bytes_is_started_over
    a_lease_that_vanishes_during_a_pass_is_made_again
}

/// Returns two images that share a layer, which is larger than one piece of a pass.
fn archive() -> Archive {
    let shared = noise(700_000);
    let images = [
        amd64("r.test/a:1", &[&shared, &noise(100)]),
        amd64("r.test/b:1", &[&shared, &noise(2_000_000), b"same for all"]),
    ];
    Stock::images(images).archive
}

async fn a_compressed_bundle_is_imported_like_a_plain_one(stage: &Stage) {
    for codec in [
        Compression::Gzip,
        Compression::Zstd,
        Compression::Xz,
        Compression::Lz4,
        Compression::Bzip2,
    ] {
        let (client, archive) = (stage.client().await, archive());
        let packed = Stock::packed(archive, codec);
        let needed: u64 = packed.needed().values().sum();
        let imported = import_all(&client, &packed).await;
        assert_eq!(imported.result.outcome, Outcome::Imported, "{codec}");
        assert!(imported.result.blobs.sent_bytes <= needed);
        assert_converged(&client, &packed).await;
    }
}

async fn a_compressed_bundle_that_is_in_place_is_not_read_again(stage: &Stage) {
    let (client, packed) = (stage.client().await, Stock::packed(archive(), Compression::Zstd));
    import_all(&client, &packed).await;
    let again = import_all(&client, &packed).await;
    assert_eq!(again.result.outcome, Outcome::Unchanged);
    assert_eq!(again.result.blobs.sent_bytes, 0);
    assert_converged(&client, &packed).await;
}

async fn only_what_is_missing_of_a_compressed_bundle_is_sent(stage: &Stage) {
    let client = stage.client().await;
    let shared = noise(700_000);
    let first = Stock::packed(
        Stock::images([amd64("r.test/a:1", &[&shared])]).archive,
        Compression::Gzip,
    );
    import_all(&client, &first).await;
    let other = noise(1000);
    let second = Stock::images([amd64("r.test/b:1", &[&shared, &other])]).archive;
    let second = Stock::packed(second, Compression::Gzip);
    let imported = import_all(&client, &second).await;
    assert!(
        imported.result.blobs.sent_bytes < 10_000,
        "{:?}",
        imported.result.blobs
    );
    assert_converged(&client, &second).await;
}

/// Notes the order of the events.
#[derive(Default)]
struct Story(Mutex<Vec<String>>);

impl Observer for Story {
    fn blob(&self, digest: &Digest, _sent: Option<u64>) {
        self.0.lock().unwrap().push(digest.to_string());
    }
    fn image(&self, outcome: &IngestedImage) {
        let records = outcome.records.as_ref().expect("a sound image");
        self.0.lock().unwrap().push(records[0].0.name.clone());
    }
}

async fn an_image_is_recorded_as_soon_as_its_blobs_have_gone_by(stage: &Stage) {
    let client = stage.client().await;
    let layers: Vec<_> = (0..24).map(|_| noise(200_000)).collect();
    let layers: Vec<&[u8]> = layers.iter().map(Vec::as_slice).collect();
    let mut archive = Stock::images([
        amd64("r.test/large:1", &layers),
        amd64("r.test/small:1", &[&noise(100)]),
    ])
    .archive;
    let small = archive.images[1].manifests[0].layers[0].clone();
    let name = archive.name_of(&small);
    archive.move_first(&name);
    let packed = Stock::packed(archive, Compression::Zstd);
    let story = Story::default();
    observed_import(&client, &packed, &story).await.unwrap();
    let story = story.0.into_inner().unwrap();
    let position = |what: &str| story.iter().position(|told| told == what).expect("it was told");
    let layers = &packed.archive.images[0].manifests[0].layers;
    let last = layers.iter().map(|layer| position(layer.as_ref())).max();
    // A few blobs are under way at a time. So the small image may be finished some blobs late, but
    // not after all of them.
    assert!(Some(position("r.test/small:1")) < last, "{story:?}");
    assert_converged(&client, &packed).await;
}

/// A blob whose bytes stop coming.
struct Stuck {
    beginning: Vec<u8>,
    gate: Mutex<Option<mpsc::Receiver<()>>>,
}

impl BlobSource for Stuck {
    fn open(&self, offset: u64) -> io::Result<Box<dyn Read + Send>> {
        assert_eq!(offset, 0);
        let gate = self.gate.lock().unwrap().take().expect("it is opened once");
        Ok(Box::new(
            io::Cursor::new(self.beginning.clone()).chain(Gate(gate)),
        ))
    }
}

struct Gate(mpsc::Receiver<()>);

impl Read for Gate {
    fn read(&mut self, _buffer: &mut [u8]) -> io::Result<usize> {
        let _ = self.0.recv();
        Err(io::Error::other("the source is stuck"))
    }
}

/// Leaves the beginning of a blob behind, as an interrupted import does, under a separate lease.
async fn leave_half(client: &Client, digest: &Digest, size: u64, beginning: Vec<u8>) {
    let expires = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
    client
        .create_lease("interrupted", expires, &BTreeMap::new())
        .await
        .unwrap();
    let (sender, gate) = mpsc::channel();
    let source = Arc::new(Stuck {
        beginning,
        gate: Mutex::new(Some(gate)),
    });
    let spec = BlobSpec::new(digest.clone(), size);
    let has_begun = eventually("bytes arrive", async || {
        client
            .ingests()
            .await
            .unwrap()
            .iter()
            .any(|ingest| ingest.offset > 0)
    });
    tokio::select! {
        written = client.write_blob("interrupted", &spec, source) => panic!("{written:?}"),
        () = has_begun => {}
    }
    drop(sender);
}

/// Returns the layer of two million bytes, with its size and its bytes.
fn long_layer(packed: &Stock) -> (Digest, u64, Vec<u8>) {
    let digest = packed.archive.images[1].manifests[0].layers[1].clone();
    let bytes = packed.archive.bytes_of(&packed.archive.name_of(&digest));
    (digest, bytes.len() as u64, bytes)
}

async fn a_half_written_blob_is_resumed_as_its_bytes_go_by(stage: &Stage) {
    let (client, packed) = (stage.client().await, Stock::packed(archive(), Compression::Gzip));
    let (digest, size, bytes) = long_layer(&packed);
    leave_half(&client, &digest, size, bytes[..1_100_000].to_vec()).await;
    let needed: u64 = packed.needed().values().sum();
    let imported = import_all(&client, &packed).await;
    assert!(
        imported.result.blobs.sent_bytes <= needed - (512 << 10),
        "{:?} of {needed}",
        imported.result.blobs
    );
    client.delete_lease("interrupted", true).await.unwrap();
    assert_converged(&client, &packed).await;
}

async fn a_half_written_blob_with_other_bytes_is_started_over(stage: &Stage) {
    let (client, packed) = (stage.client().await, Stock::packed(archive(), Compression::Zstd));
    let (digest, size, _) = long_layer(&packed);
    leave_half(&client, &digest, size, noise(1_100_000)).await;
    let imported = import_all(&client, &packed).await;
    assert_eq!(imported.result.outcome, Outcome::Imported);
    client.delete_lease("interrupted", true).await.unwrap();
    assert_converged(&client, &packed).await;
}

async fn a_lease_that_vanishes_during_a_pass_is_made_again(stage: &Stage) {
    struct Vandal(Client, Mutex<u32>);
    impl Observer for Vandal {
        fn blob(&self, _digest: &Digest, _sent: Option<u64>) {
            let mut told = self.1.lock().unwrap();
            *told += 1;
            if *told == 2 {
                tokio::task::block_in_place(|| {
                    tokio::runtime::Handle::current().block_on(async {
                        for lease in self.0.leases().await.unwrap() {
                            self.0.delete_lease(&lease.id, true).await.unwrap();
                        }
                    });
                });
            }
        }
    }
    let (client, packed) = (stage.client().await, Stock::packed(archive(), Compression::Gzip));
    let vandal = Vandal(client.clone(), Mutex::new(0));
    let imported = observed_import(&client, &packed, &vandal).await.unwrap();
    assert!(imported.stopped.is_none(), "{:?}", imported.stopped);
    assert_converged(&client, &packed).await;
}
