//! The manifest of an index that containerd uses: a comparison with CRI for random indexes. The id
//! of an image in CRI is the digest of the config that containerd found.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read};
use std::sync::Arc;

use bundle::fixtures::digest_of;
use bundle::{Content, Kind, Limits, Node, PartState, Store};
use containerd::{BlobSource, BlobSpec, Client, NewImage};
use harness::{Own, eventually, unique};
use oci_spec::image::{Descriptor, Digest, MediaType};
use platforms::{Chosen, Matcher, Platform};
use serde_json::{Value, json};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// Number of random indexes. A quarter of them has nothing for the node, and another quarter
/// nothing that the node can use.
const DRAWN: u64 = 150;

macro_rules! on_each_real_one {
    ($($name:ident $generation:ident),*) => {
        $(#[test]
        fn $name() {
            let options = lab::Options::default();
            harness::play_on_own(lab::Generation::$generation, &options, cri_has_the_image_that_was_foretold);
        })*
    };
}

on_each_real_one!(
    containerd_1_6_uses_the_manifest_that_was_foretold V1_6,
    containerd_1_7_uses_the_manifest_that_was_foretold V1_7,
    containerd_2_1_uses_the_manifest_that_was_foretold V2_1,
    containerd_2_3_uses_the_manifest_that_was_foretold V2_3
);

async fn cri_has_the_image_that_was_foretold(own: &mut Own) {
    let client = own.stage.in_namespace("k8s.io").client().await;
    let rules = client.version().await.expect("an answer").rules();
    let node = client
        .node_platform()
        .await
        .expect("an answer")
        .expect("a platform");
    let matcher = Matcher::only(&node, rules);
    let lease = format!("choosing-{}", unique());
    let expires = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
    client
        .create_lease(&lease, expires, &BTreeMap::new())
        .await
        .expect("a lease");

    let mut drawn = Vec::new();
    for seed in 1..=DRAWN {
        let mut shelf = Shelf::default();
        let root = Draw::new(seed, &node).index(&mut shelf, 0);
        shelf.send(&client, &lease).await;
        let name = format!("choosing.test/{lease}:{seed}");
        record(&client, &name, &root).await;
        let root = bundle::resolve(&root, &mut shelf, &Limits::default()).expect("it is within the limits");
        drawn.push((name, root));
    }
    // CRI handles one event after the other. When it knows the last image, it has looked at all of
    // them.
    let mut shelf = Shelf::default();
    let last = Draw::new(0, &node).image(&mut shelf, "last");
    shelf.send(&client, &lease).await;
    let name = format!("choosing.test/{lease}:last");
    record(&client, &name, &last).await;
    eventually("CRI has seen the last image", async || {
        id_of(&client, &name).await.is_some()
    })
    .await;

    let (mut images, mut others) = (0, 0);
    for (name, root) in &drawn {
        let id = id_of(&client, name).await;
        let foretold = foretold(root, &matcher);
        let is_right = match &foretold {
            Foretold::Image(config) => id.as_deref() == Some(config.as_ref()),
            // Some versions of CRI make an image of this config, and some do not. None uses another
            // config.
            Foretold::Artifact(config) => id.is_none() || id.as_deref() == Some(config.as_ref()),
            Foretold::Nothing => id.is_none(),
        };
        match foretold {
            Foretold::Image(_) => images += 1,
            Foretold::Artifact(_) | Foretold::Nothing => others += 1,
        }
        assert!(
            is_right,
            "{name}: {foretold:?} by {rules:?}, and CRI has {id:?}:\n{}",
            outline(root, 0)
        );
    }
    assert!(
        images > 30 && others > 30,
        "{images} images and {others} others say little"
    );
    for (name, _) in drawn {
        client.delete_image(&name, false).await.expect("deleted");
    }
    client.delete_lease(&lease, false).await.expect("deleted");
}

/// The expected answer of CRI.
#[derive(Debug)]
enum Foretold<'n> {
    /// An image with this config.
    Image(&'n Digest),
    /// Nothing, or an image with this config, which is no image config.
    Artifact(&'n Digest),
    Nothing,
}

fn foretold<'n>(root: &'n Node, matcher: &Matcher) -> Foretold<'n> {
    let Chosen::This(node) = platforms::chosen(root, matcher) else {
        return Foretold::Nothing;
    };
    match &node.content {
        Content::Manifest(manifest) if manifest.config.state == PartState::Present => {
            let config = manifest.config.descriptor.digest();
            match manifest.kind {
                Kind::Image => Foretold::Image(config),
                Kind::Artifact { .. } => Foretold::Artifact(config),
            }
        }
        _ => Foretold::Nothing,
    }
}

/// Returns a line for each entry, for the failure message.
fn outline(node: &Node, depth: usize) -> String {
    let own = node.platform.as_ref().map(|platform| format!("{platform:#}"));
    let own = own.unwrap_or_else(|| "no platform".to_owned());
    let indent = "  ".repeat(depth);
    match &node.content {
        Content::Index(below) => {
            let below: String = below.iter().map(|node| outline(node, depth + 1)).collect();
            format!("{indent}{own}: index\n{below}")
        }
        Content::Manifest(manifest) => {
            let config = manifest
                .config_platform
                .as_ref()
                .map(|platform| format!("{platform:#}"));
            let (kind, digest) = (&manifest.kind, manifest.config.descriptor.digest());
            format!("{indent}{own}: {kind:?} with config {digest} for {config:?}\n")
        }
        Content::Other => format!("{indent}{own}: another type\n"),
        Content::Absent | Content::Broken(_) => format!("{indent}{own}: not there\n"),
    }
}

async fn id_of(client: &Client, name: &str) -> Option<String> {
    let image = client.cri().image_status(name).await.expect("an answer");
    image.map(|image| image.id)
}

async fn record(client: &Client, name: &str, target: &Descriptor) {
    let image = NewImage {
        name: name.to_owned(),
        target: target.clone(),
        labels: BTreeMap::new(),
    };
    client.create_image(&image).await.expect("created");
}

/// The documents of one index.
#[derive(Default)]
struct Shelf {
    documents: HashMap<Digest, Vec<u8>>,
}

impl Shelf {
    fn put(&mut self, media_type: &str, document: &Value) -> Descriptor {
        let descriptor = described(media_type, document);
        let bytes = document.to_string().into_bytes();
        self.documents.insert(descriptor.digest().clone(), bytes);
        descriptor
    }

    async fn send(&self, client: &Client, lease: &str) {
        for (digest, bytes) in &self.documents {
            let spec = BlobSpec::new(digest.clone(), bytes.len() as u64);
            let source = Arc::new(Bytes(bytes.clone()));
            client.write_blob(lease, &spec, source).await.expect("written");
        }
    }
}

impl Store for Shelf {
    fn size(&self, digest: &Digest) -> Option<u64> {
        self.documents.get(digest).map(|bytes| bytes.len() as u64)
    }

    fn read(&mut self, digest: &Digest) -> Result<Vec<u8>, String> {
        self.documents
            .get(digest)
            .cloned()
            .ok_or_else(|| "it is not there".to_owned())
    }
}

struct Bytes(Vec<u8>);

impl BlobSource for Bytes {
    fn open(&self, offset: u64) -> io::Result<Box<dyn Read + Send>> {
        let from = usize::try_from(offset).expect("a small document");
        Ok(Box::new(io::Cursor::new(self.0[from..].to_vec())))
    }
}

fn described(media_type: &str, document: &Value) -> Descriptor {
    let bytes = document.to_string().into_bytes();
    Descriptor::new(MediaType::from(media_type), bytes.len() as u64, digest_of(&bytes))
}

fn entry(descriptor: &Descriptor, platform: Option<&Value>) -> Value {
    let mut entry = json!({
        "mediaType": descriptor.media_type().to_string(),
        "digest": descriptor.digest().to_string(),
        "size": descriptor.size(),
    });
    if let Some(platform) = platform {
        entry["platform"] = platform.clone();
    }
    entry
}

/// Draws indexes from a seed, so that a failure can be repeated.
struct Draw {
    seed: u64,
    state: u64,
    node: Value,
    serial: u64,
}

impl Draw {
    fn new(seed: u64, node: &Platform) -> Draw {
        Draw {
            seed,
            state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            node: serde_json::to_value(node).expect("a platform is JSON"),
            serial: 0,
        }
    }

    /// Returns a number below `bound` (xorshift64*, Vigna 2016).
    fn below(&mut self, bound: u64) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        (self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    fn platform(&mut self) -> Value {
        let mut platform = match self.below(8) {
            0..4 => self.node.clone(),
            4 => json!({ "os": "linux", "architecture": "386" }),
            5 => json!({ "os": "linux", "architecture": "amd64", "variant": "v2" }),
            6 => json!({ "os": "unknown", "architecture": "unknown" }),
            _ => json!({ "os": "linux", "architecture": "s390x" }),
        };
        if self.one_in(4) {
            platform["os.features"] = json!(["nydus.remoteimage.v1"]);
        }
        if self.one_in(8) {
            platform["os.version"] = json!("10.0.17763");
        }
        platform
    }

    fn index(&mut self, shelf: &mut Shelf, depth: u32) -> Descriptor {
        let count = 1 + self.below(5);
        let entries: Vec<Value> = (0..count).map(|_| self.entry(shelf, depth)).collect();
        shelf.put(
            INDEX,
            &json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries }),
        )
    }

    fn entry(&mut self, shelf: &mut Shelf, depth: u32) -> Value {
        let platform = (!self.one_in(3)).then(|| self.platform());
        let descriptor = match self.below(12) {
            0 | 1 if depth < 2 => self.index(shelf, depth + 1),
            2 => self.manifest(shelf, "application/vnd.example.parts.v1+json"),
            // A document of a type without references.
            3 => {
                let parts = json!({ "parts": self.next() });
                shelf.put("application/spdx+json", &parts)
            }
            // An absent manifest.
            4 => described(MANIFEST, &json!({ "absent": self.next() })),
            _ => self.manifest(shelf, CONFIG),
        };
        entry(&descriptor, platform.as_ref())
    }

    fn manifest(&mut self, shelf: &mut Shelf, config_type: &str) -> Descriptor {
        let mut config = if self.one_in(6) {
            json!({})
        } else {
            self.platform()
        };
        let salt = self.next();
        self.with_config(shelf, config_type, &mut config, &salt)
    }

    fn image(&mut self, shelf: &mut Shelf, salt: &str) -> Descriptor {
        let mut config = self.node.clone();
        self.with_config(shelf, CONFIG, &mut config, salt)
    }

    /// Returns a manifest with this config. Its layers need not exist, since nothing is unpacked.
    fn with_config(
        &self,
        shelf: &mut Shelf,
        config_type: &str,
        config: &mut Value,
        salt: &str,
    ) -> Descriptor {
        let layer = digest_of(salt.as_bytes());
        config["author"] = json!(format!("{salt} of {}", unique()));
        config["rootfs"] = json!({ "type": "layers", "diff_ids": [layer.to_string()] });
        let config = shelf.put(config_type, config);
        let layer = Descriptor::new(
            MediaType::from("application/vnd.oci.image.layer.v1.tar"),
            1024,
            layer,
        );
        let layers = [entry(&layer, None)];
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": entry(&config, None), "layers": layers,
        });
        shelf.put(MANIFEST, &manifest)
    }

    fn next(&mut self) -> String {
        self.serial += 1;
        format!("{}-{}", self.seed, self.serial)
    }
}
