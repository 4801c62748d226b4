//! Bundles that are written. The same content gives the same bytes, and reading them gives the
//! draft.

use std::collections::HashSet;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use crate::common::*;
use airgapd_bundle::fixtures::{Image, Layer, Layout as Fixture, Manifest, Node, digest_of};
use airgapd_bundle::write::{BlobFeed, Draft, DraftImage, Layout, Output, WriteError, write};
use airgapd_bundle::{
    BlobRef, Bundle, Catalog, Compression, Content, DeltaBase, Identity, Member, Members, Part, PartState,
    Receipt, Release, SkippedMembers, Warning,
};
use oci_spec::image::Digest;

const WRITTEN: [Compression; 3] = [Compression::None, Compression::Gzip, Compression::Zstd];

/// Returns noise, which compression cannot make small.
pub(crate) fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let step = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    (0..length).map(step).collect()
}

/// Two images that share a layer, one of them in a nested index.
pub(crate) fn source() -> Bundle {
    let shared = Layer::plain(noise(300_000, 7).into());
    let nested = Node::Index(vec![Node::Index(vec![
        Manifest::new("linux/amd64").with_layer(shared.clone()).into(),
        Manifest::new("linux/arm64").layer(b"small".to_vec()).into(),
    ])]);
    let archive = Fixture::new()
        .image(Image::new("docker.io/library/nested:1").root(nested))
        .image(
            Image::new("docker.io/library/single:1")
                .platform("linux/amd64")
                .with_layer(shared)
                .layer(noise(70_000, 9)),
        )
        .build();
    good(&archive)
}

pub(crate) fn draft(bundle: &Bundle) -> Draft {
    Draft {
        images: bundle.catalog().images.iter().map(DraftImage::of).collect(),
        ..Draft::default()
    }
}

/// Provides the blobs of a bundle, in pieces of at most this many bytes.
struct Slow<'a>(&'a Bundle, usize);

struct SlowReader(Box<dyn Read + Send>, usize);

impl Read for SlowReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = buffer.len().min(self.1);
        self.0.read(&mut buffer[..n])
    }
}

impl BlobFeed for Slow<'_> {
    fn open(&mut self, blob: &BlobRef) -> io::Result<Box<dyn Read + '_>> {
        let found = self
            .0
            .blob(&blob.digest)
            .expect("only blobs of the draft are asked for");
        Ok(Box::new(SlowReader(found.open(0)?, self.1)))
    }
}

pub(crate) fn written(draft: &Draft, from: &Bundle, compression: Compression) -> Vec<u8> {
    let layout = Layout::of(draft).unwrap();
    let mut bytes = Vec::new();
    let written = write(&layout, compression, &mut bytes, &mut Slow(from, usize::MAX)).unwrap();
    assert_eq!(written.file, bytes.len() as u64);
    assert_eq!(written.archive, layout.archive_size());
    bytes
}

/// Returns the catalog's view of its images, independent of the archive's form.
pub(crate) fn images(catalog: &Catalog) -> Vec<(String, Node_)> {
    let mut images: Vec<_> = catalog
        .images
        .iter()
        .map(|image| {
            let mut root = image.root.clone();
            root.descriptor.set_annotations(None);
            (image.names[0].as_str().to_owned(), root)
        })
        .collect();
    images.sort_by(|a, b| a.0.cmp(&b.0));
    images
}

pub(crate) type Node_ = airgapd_bundle::Node;

#[test]
fn what_is_written_is_read_back_in_every_compression() {
    let source = source();
    for compression in WRITTEN {
        let bundle = open(&written(&draft(&source), &source, compression)).unwrap();
        let catalog = bundle.catalog();
        assert_eq!(catalog.compression, compression);
        assert_eq!(catalog.warnings, []);
        assert_eq!(&catalog.digest, Layout::of(&draft(&source)).unwrap().digest());
        assert_eq!(images(catalog), images(source.catalog()));
        for image in &catalog.images {
            assert!(is_whole(&image.root));
            assert_blobs_are_right(&bundle, &image.root);
        }
    }
}

#[test]
fn neither_order_nor_pieces_change_a_byte() {
    let source = source();
    let forward = draft(&source);
    let mut backward = forward.clone();
    backward.images.reverse();
    let twice = Draft {
        images: [forward.images.clone(), forward.images.clone()].concat(),
        ..Draft::default()
    };
    for compression in WRITTEN {
        let expected = written(&forward, &source, compression);
        assert_eq!(written(&backward, &source, compression), expected);
        assert_eq!(written(&twice, &source, compression), expected);
        let mut slow = Vec::new();
        let layout = Layout::of(&forward).unwrap();
        write(&layout, compression, &mut slow, &mut Slow(&source, 1000)).unwrap();
        assert_eq!(slow, expected);
    }
}

#[test]
fn names_come_first_and_headers_tell_nothing_of_their_writer() {
    let source = source();
    let bytes = written(&draft(&source), &source, Compression::None);
    let mut archive = tar::Archive::new(bytes.as_slice());
    let mut names = Vec::new();
    let mut sizes = Vec::new();
    for entry in archive.entries().unwrap() {
        let entry = entry.unwrap();
        let header = entry.header();
        assert_eq!(header.mtime().unwrap(), 0);
        assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (0, 0));
        assert_eq!(header.mode().unwrap(), 0o644);
        assert_eq!(header.username_bytes(), Some(&b""[..]));
        names.push(entry.path().unwrap().display().to_string());
        sizes.push(entry.size());
    }
    assert_eq!(&names[..2], ["oci-layout", "index.json"]);
    let first_layer = sizes.iter().position(|size| *size >= 70_000).unwrap();
    // These are two indexes, three manifests, three configs, and the two documents of the archive.
    assert_eq!(first_layer, 10);
}

#[test]
fn every_name_gets_an_entry_for_all_readers() {
    let source = source();
    let mut draft = draft(&source);
    draft.images[0].names.push("quay.io/other/name:2".to_owned());
    let bytes = written(&draft, &source, Compression::None);
    let bundle = open(&bytes).unwrap();
    let names: Vec<_> = bundle
        .catalog()
        .images
        .iter()
        .map(|i| i.names[0].as_str())
        .collect();
    assert_eq!(
        names,
        [
            "docker.io/library/nested:1",
            "docker.io/library/single:1",
            "quay.io/other/name:2"
        ]
    );
    for image in &bundle.catalog().images {
        let annotations = image.root.descriptor.annotations().clone().unwrap();
        for key in ["io.containerd.image.name", "org.opencontainers.image.ref.name"] {
            assert_eq!(annotations[key], image.names[0].as_str());
        }
    }
}

/// Returns the elements of the `manifest.json` for these images: configs, names and layers. Returns
/// `None` if there is no such document. Also checks that the written bundle is read as an OCI
/// layout.
fn listed(
    images: impl IntoIterator<Item = Image>,
    change: impl FnOnce(&mut Draft),
) -> Option<serde_json::Value> {
    let fixture = images.into_iter().fold(Fixture::new(), Fixture::image);
    let source = good(&fixture.build());
    let mut draft = draft(&source);
    change(&mut draft);
    let bytes = written(&draft, &source, Compression::None);
    let bundle = open(&bytes).unwrap();
    let catalog = bundle.catalog();
    assert_eq!(&catalog.digest, Layout::of(&draft).unwrap().digest());
    let is_delta = |warning: &Warning| matches!(warning, Warning::Delta { .. });
    assert!(catalog.warnings.iter().all(is_delta), "{:?}", catalog.warnings);
    let mut archive = tar::Archive::new(bytes.as_slice());
    let mut entries = archive.entries().unwrap().map(Result::unwrap);
    let found = entries.find(|entry| entry.path_bytes().as_ref() == b"manifest.json")?;
    Some(serde_json::from_reader(found).unwrap())
}

#[test]
fn readers_of_docker_archives_find_every_image_or_no_list() {
    let one = |name: &str| Image::new(name).platform("linux/amd64").layer(b"one");
    let other = |name: &str| Image::new(name).platform("linux/arm64").layer(b"other");
    let two_platforms = || {
        let children =
            ["linux/amd64", "linux/arm64"].map(|platform| Manifest::new(platform).layer(platform).into());
        Image::new("quay.io/c/two:1").root(Node::Index(children.into()))
    };
    let artifact = || {
        let manifest = Manifest::new("linux/amd64")
            .no_platform()
            .config_media_type("application/vnd.oci.empty.v1+json")
            .config_bytes("{}")
            .layer(b"a model".to_vec());
        Image::new("quay.io/c/model:1").manifest(manifest)
    };
    let encrypted = || {
        let layer =
            Layer::new(b"secret".to_vec()).media_type("application/vnd.oci.image.layer.v1.tar+encrypted");
        Image::new("quay.io/c/secret:1")
            .platform("linux/amd64")
            .with_layer(layer)
    };
    let tags = |list: Option<serde_json::Value>| {
        let list = list?;
        let elements = list.as_array().unwrap().iter();
        let tags = elements.map(|element| {
            let tags = element["RepoTags"].as_array().unwrap().iter();
            tags.map(|tag| tag.as_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        });
        Some(tags.collect::<Vec<_>>())
    };
    let unchanged = |_: &mut Draft| {};
    let a = "docker.io/library/a:1";
    let b = "registry.test:5000/b:2";

    let single = listed([one(a)], unchanged).unwrap();
    let image = good(&Fixture::new().image(one(a)).build());
    let manifest = manifest(&only_image(&image).root);
    let path = |part: &Part| part.descriptor.digest().to_string().replace(':', "/");
    let expected = serde_json::json!([{
        "Config": format!("blobs/{}", path(&manifest.config)),
        "RepoTags": [a],
        "Layers": [format!("blobs/{}", path(&manifest.layers[0]))],
    }]);
    assert_eq!(single, expected);

    let several = listed([one(a), other(b)], unchanged);
    assert_eq!(tags(several), Some(vec![vec![a.to_owned()], vec![b.to_owned()]]));
    let twice = listed([one(a), one(b)], unchanged);
    assert_eq!(
        tags(twice),
        Some(vec![vec![a.to_owned(), b.to_owned()]]),
        "one image"
    );
    let in_an_index = listed([one(a).in_an_index()], unchanged);
    assert_eq!(tags(in_an_index), Some(vec![vec![a.to_owned()]]));
    let with_artifact = listed([artifact(), one(a)], unchanged);
    assert_eq!(tags(with_artifact), Some(vec![vec![a.to_owned()]]));
    let by_digest = listed([one(a)], |draft| {
        let digest = draft.images[0].target.digest();
        draft.images[0].names = vec![format!("docker.io/library/a@{digest}")];
    });
    assert_eq!(
        tags(by_digest),
        Some(vec![vec![]]),
        "a name by digest is not a tag"
    );

    assert_eq!(listed([two_platforms()], unchanged), None);
    assert_eq!(listed([one(a), two_platforms()], unchanged), None);
    assert_eq!(listed([one(a), encrypted()], unchanged), None);
    assert_eq!(listed([artifact()], unchanged), None);
    let delta = listed([one(a), other(b)], |draft| {
        let layer = draft.images[0].layers[0].digest.clone();
        draft.leave_out("base.tar", &HashSet::from([layer]));
    });
    assert_eq!(delta, None, "they cannot use an image without a layer");
}

#[test]
fn one_image_with_a_tag_and_its_digest_is_the_only_entry() {
    let source = good(
        &Fixture::new()
            .image(Image::new("docker.io/library/a:1").platform("linux/amd64"))
            .build(),
    );
    let entries = |names: &[&str]| {
        let mut draft = draft(&source);
        let digest = draft.images[0].target.digest().to_string();
        draft.images[0].names = names.iter().map(|name| name.replace("DIGEST", &digest)).collect();
        draft.leave_out_derived_name();
        let bundle = open(&written(&draft, &source, Compression::None)).unwrap();
        let names = bundle
            .catalog()
            .images
            .iter()
            .map(|image| image.names[0].as_str().to_owned());
        names
            .map(|name| name.replace(&digest, "DIGEST"))
            .collect::<Vec<_>>()
    };
    let (tag, digest) = ("localhost:5000/a:1", "localhost:5000/a@DIGEST");
    assert_eq!(entries(&[digest, tag]), [tag]);
    assert_eq!(entries(&[digest]), [digest]);
    // If a name must be given, both stay, for operators who import without airgapd.
    for kept in [
        [tag, "localhost:5000/a:2", digest],
        [tag, "quay.io/a@DIGEST", digest],
    ] {
        let mut expected = kept.to_vec();
        expected.sort_unstable();
        assert_eq!(entries(&kept), expected);
    }
    let other_digest = format!("localhost:5000/a@{}", digest_of(b"another"));
    assert_eq!(entries(&[tag, &other_digest]), [tag, &other_digest]);
}

#[test]
fn blobs_that_are_not_what_they_should_be_are_refused() {
    let source = source();
    let layout = Layout::of(&draft(&source)).unwrap();
    let victim = layout.blobs().last().unwrap().clone();
    let bad = |change: fn(Vec<u8>) -> Vec<u8>| {
        let mut feed = |blob: &BlobRef| -> io::Result<Box<dyn Read>> {
            let mut bytes = Vec::new();
            source
                .blob(&blob.digest)
                .unwrap()
                .open(0)?
                .read_to_end(&mut bytes)?;
            let bytes = if blob.digest == victim.digest {
                change(bytes)
            } else {
                bytes
            };
            Ok(Box::new(io::Cursor::new(bytes)))
        };
        write(&layout, Compression::None, io::sink(), &mut feed).unwrap_err()
    };
    let flipped = bad(|mut bytes| {
        bytes[17] ^= 1;
        bytes
    });
    assert!(
        matches!(&flipped, WriteError::Digest { digest, .. } if *digest == victim.digest),
        "{flipped}"
    );
    let short = bad(|bytes| bytes[..bytes.len() - 1].to_vec());
    assert!(
        short
            .to_string()
            .contains(&format!("{} bytes and has {}", victim.size, victim.size - 1)),
        "{short}"
    );
    let long = bad(|bytes| [bytes.as_slice(), b"x"].concat());
    assert!(long.to_string().contains("and has more"), "{long}");
    let mut gone = |blob: &BlobRef| -> io::Result<Box<dyn Read>> {
        Err(io::Error::other(format!("no {}", blob.digest)))
    };
    let gone = write(&layout, Compression::None, io::sink(), &mut gone).unwrap_err();
    assert!(matches!(gone, WriteError::Blob { .. }));
}

#[test]
fn a_draft_that_contradicts_itself_is_refused() {
    let source = source();
    let good = draft(&source);
    assert!(Layout::of(&Draft::default()).is_err());
    assert!(Layout::empty().blobs().is_empty());
    let mut sizes = good.clone();
    sizes.images[0].layers[0].size += 1;
    assert!(
        Layout::of(&sizes)
            .unwrap_err()
            .to_string()
            .contains("has two sizes")
    );
    let mut rootless = good.clone();
    rootless.images[0].documents.remove(0);
    assert!(
        Layout::of(&rootless)
            .unwrap_err()
            .to_string()
            .contains("its own image")
    );
    let mut many_names = good.clone();
    many_names.images[0].names = (0..257).map(|i| format!("docker.io/library/a:{i}")).collect();
    let said = |draft: &Draft| Layout::of(draft).unwrap_err().to_string();
    assert!(said(&many_names).contains("has 257 names, more than the 256"));
    let mut many = good;
    let image = many.images[0].clone();
    many.images = (0..5001)
        .map(|i| {
            let mut image = image.clone();
            image.names = vec![format!("docker.io/library/a:{i}")];
            let digest = format!("sha256:{i:064x}").parse().unwrap();
            image.target.set_digest(digest);
            image
        })
        .collect();
    assert!(said(&many).contains("5001 names of images are more than the 5000"));
}

#[test]
fn a_delta_says_what_it_relies_on() {
    let source = source();
    let mut delta = draft(&source);
    let shared = delta.images[0].layers[0].clone();
    let config = delta.images[0].documents.last().unwrap().digest.clone();
    let present: HashSet<Digest> = [shared.digest.clone(), config, digest_of(b"of others")].into();
    delta.leave_out("base.tar", &present);
    let bytes = written(&delta, &source, Compression::None);
    assert!((bytes.len() as u64) < shared.size);
    let bundle = open(&bytes).unwrap();
    let reliance = bundle.catalog().relies_on.clone().unwrap();
    assert_eq!(reliance.base, "base.tar");
    assert_eq!(reliance.blobs, std::slice::from_ref(&shared));
    assert!(bundle.blob(&shared.digest).is_none());
    let Content::Manifest(single) = &bundle.catalog().images[1].root.content else {
        panic!("a manifest was expected")
    };
    assert_eq!(single.config.state, PartState::Present);
    assert_eq!(single.layers[0].state, PartState::Absent);
    assert_eq!(single.layers[1].state, PartState::Present);
    let mut none = draft(&source);
    none.leave_out("base.tar", &[digest_of(b"of others")].into());
    assert_eq!(none.relies_on, None);
}

#[test]
fn a_receipt_has_every_document_no_layer_and_the_bundle_that_it_stands_for() {
    let source = source();
    let mut draft = draft(&source);
    let layers: HashSet<Digest> = draft
        .images
        .iter()
        .flat_map(|image| image.layers.iter().map(|blob| blob.digest.clone()))
        .collect();
    let receipt = Receipt {
        catalog: digest_of(b"of the bundle"),
        bundle: "shop.tar".to_owned(),
        identity: Identity {
            device: 1,
            inode: 2,
            size: 3,
            mtime_ns: 4,
            ctime_ns: 5,
        },
        made_at: 6,
        rolled_back_at: None,
        by_hand: true,
        bases: vec![DeltaBase {
            name: "os.tar".to_owned(),
            blobs: vec![layers.iter().next().unwrap().clone()],
        }],
        skipped: Some(SkippedMembers {
            platforms: "linux/amd64".to_owned(),
            names: vec!["registry.test/other:1".to_owned()],
        }),
    };
    for layer in &layers {
        let is_of_base = receipt.bases[0].blobs.contains(layer);
        assert_eq!(receipt.base_of(layer), is_of_base.then_some("os.tar"));
    }
    draft.stand_for(receipt.clone());
    let bundle = open(&written(&draft, &source, Compression::None)).unwrap();
    let catalog = bundle.catalog();
    assert_eq!(catalog.receipt(), Some(&receipt));
    assert_eq!(catalog.stood_for(), &receipt.catalog);
    assert!(catalog.warnings.is_empty(), "{:?}", catalog.warnings);
    let reliance = catalog.relies_on.as_ref().unwrap();
    let relied_on: HashSet<Digest> = reliance.blobs.iter().map(|blob| blob.digest.clone()).collect();
    assert_eq!(relied_on, layers);
    let documents = draft.images.iter().flat_map(|image| &image.documents);
    assert!(
        documents
            .into_iter()
            .all(|blob| bundle.blob(&blob.digest).is_some())
    );
    assert!(layers.iter().all(|layer| bundle.blob(layer).is_none()));

    // A receipt of images without layers still tells what it stands for.
    for image in &mut draft.images {
        image.layers.clear();
    }
    draft.stand_for(receipt.clone());
    let bundle = open(&written(&draft, &source, Compression::None)).unwrap();
    assert_eq!(bundle.catalog().receipt(), Some(&receipt));
}

#[test]
fn an_output_is_there_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bundle.tar");
    let listing = || -> Vec<String> {
        let entries = std::fs::read_dir(folder.path()).unwrap();
        entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect()
    };
    let mut output = Output::create(&path).unwrap();
    io::Write::write_all(&mut output, b"half").unwrap();
    assert!(
        listing().iter().all(|name| name.starts_with('.')),
        "{:?}",
        listing()
    );
    drop(output);
    assert_eq!(listing(), Vec::<String>::new());
    std::fs::write(&path, b"old").unwrap();
    let mut output = Output::create(&path).unwrap();
    io::Write::write_all(&mut output, b"new").unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    output.commit().unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"new");
    assert_eq!(listing(), ["bundle.tar"]);
    assert!(Output::create(folder.path()).is_err());
    assert!(Output::create(Path::new("/")).is_err());
    assert!(Output::create(&folder.path().join("no/such/folder.tar")).is_err());
}

fn members_of(draft: &Draft, more: &[(&str, Digest)]) -> Vec<Member> {
    let own = draft.images.iter().flat_map(|image| {
        let member = |name: &String| (name.clone(), image.target.digest().clone());
        image.names.iter().map(member)
    });
    let more = more
        .iter()
        .map(|(name, digest)| ((*name).to_owned(), digest.clone()));
    own.chain(more)
        .map(|(name, digest)| Member { name, digest })
        .collect()
}

#[test]
fn a_release_and_its_list_are_part_of_what_the_content_digest_covers() {
    let source = source();
    let plain = draft(&source);
    let elsewhere = ("docker.io/library/other:1", digest_of(b"elsewhere"));
    let of = |name: &str, more: &[(&str, Digest)]| {
        let mut draft = plain.clone();
        let members = Members::new(name, members_of(&draft, more)).unwrap();
        draft.release = Some(Arc::new(members));
        draft
    };
    let mut digests: HashSet<String> = HashSet::new();
    digests.insert(Layout::of(&plain).unwrap().digest().to_string());
    for (name, more) in [("r1", vec![]), ("r2", vec![]), ("r1", vec![elsewhere.clone()])] {
        let draft = of(name, &more);
        for compression in WRITTEN {
            let bundle = open(&written(&draft, &source, compression)).unwrap();
            let catalog = bundle.catalog();
            let release = catalog.release.clone().unwrap();
            assert_eq!(release.name, name);
            assert_eq!(release.members.as_ref().ok(), draft.release.as_ref());
            assert_eq!(catalog.warnings, []);
            assert_eq!(images(catalog), images(source.catalog()));
            digests.insert(catalog.digest.to_string());
        }
    }
    assert_eq!(digests.len(), 4, "each list has a content digest of its own");
    // A delta may belong to a release, too.
    let mut delta = of("r1", &[elsewhere]);
    let layer = delta.images[0].layers[0].digest.clone();
    delta.leave_out("base.tar", &[layer].into());
    let bundle = open(&written(&delta, &source, Compression::None)).unwrap();
    assert!(bundle.catalog().relies_on.is_some());
    assert!(bundle.catalog().release.as_ref().unwrap().members.is_ok());
}

#[test]
fn a_bundle_with_other_images_than_its_release_is_not_written() {
    let source = source();
    let plain = draft(&source);
    let mut members = members_of(&plain, &[]);
    members[0].digest = digest_of(b"forged");
    let forged = Arc::new(Members::new("r1", members.clone()).unwrap());
    members.remove(0);
    let fewer = Arc::new(Members::new("r1", members).unwrap());
    for list in [forged, fewer] {
        let release = Release {
            name: "r1".to_owned(),
            members: Ok(Arc::clone(&list)),
        };
        let mut draft = plain.clone();
        assert!(!draft.stay_in(&release) && draft.release.is_none());
        draft.release = Some(list);
        let error = Layout::of(&draft).unwrap_err().to_string();
        assert!(error.contains("is not a member of release r1"), "{error}");
    }
}

/// Returns a bundle of `source` with these annotations of `index.json` and this list as a blob.
fn with_release(source: &Bundle, annotations: &serde_json::Value, list: Option<&[u8]>) -> Bundle {
    let bytes = written(&draft(source), source, Compression::None);
    let mut tar = tar::Builder::new(Vec::new());
    let mut put = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, bytes).unwrap();
    };
    for entry in tar::Archive::new(&*bytes).entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().to_string_lossy().into_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        if name == "index.json" {
            let mut index: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
            index["annotations"] = annotations.clone();
            bytes = serde_json::to_vec(&index).unwrap();
        }
        put(&name, &bytes);
    }
    if let Some(list) = list {
        put(&format!("blobs/sha256/{}", digest_of(list).digest()), list);
    }
    open(&tar.into_inner().unwrap()).unwrap()
}

#[test]
fn a_release_whose_list_is_unusable_is_told_and_the_bundle_can_be_imported() {
    let source = source();
    let list = |members: Vec<Member>| {
        serde_json::json!({"version": 1, "release": "r1", "members": members})
            .to_string()
            .into_bytes()
    };
    let mut members = members_of(&draft(&source), &[]);
    members.sort_by(|a, b| a.name.cmp(&b.name));
    let good = list(members.clone());
    let mut forged = members.clone();
    forged[0].digest = digest_of(b"forged");
    let cases = [
        (good.clone(), true, None),
        (good.clone(), false, Some("is not in the bundle")),
        (list(forged), true, Some("the bundle has sha256:")),
        (
            list(members[1..].to_vec()),
            true,
            Some("its list lacks docker.io/library/nested:1"),
        ),
        (list(Vec::new()), true, Some("no members")),
        (good[..good.len() - 1].to_vec(), true, Some("EOF")),
        (b"{}".to_vec(), true, Some("version")),
        (vec![b' '; (8 << 20) + 1], true, Some("more than 8388608")),
    ];
    for (list, is_there, expected) in cases {
        let annotations = serde_json::json!({
            "io.airgapd.release": "r1",
            "io.airgapd.release.members": digest_of(&list),
        });
        let bundle = with_release(&source, &annotations, is_there.then_some(&list));
        let catalog = bundle.catalog();
        let release = catalog.release.as_ref().unwrap();
        assert_eq!(images(catalog), images(source.catalog()));
        match (&release.members, expected) {
            (Ok(found), None) => assert_eq!(found.all(), members),
            (Err(problem), Some(expected)) => {
                assert!(problem.contains(expected) && !problem.contains('\n'), "{problem}");
                let told = catalog.warnings.iter().map(ToString::to_string);
                let told: Vec<String> = told.collect();
                assert!(told[0].starts_with("release r1 cannot be in place"), "{told:?}");
            }
            (found, expected) => panic!("{found:?} {expected:?}"),
        }
    }
    for annotations in [
        serde_json::json!({"io.airgapd.release": "a/../b", "io.airgapd.release.members": digest_of(&good)}),
        serde_json::json!({"io.airgapd.release.members": digest_of(&good)}),
    ] {
        let bundle = with_release(&source, &annotations, Some(&good));
        assert_eq!(bundle.catalog().release, None);
        let told: Vec<String> = bundle
            .catalog()
            .warnings
            .iter()
            .map(ToString::to_string)
            .collect();
        assert!(
            told[0].starts_with("the bundle belongs to no release"),
            "{told:?}"
        );
    }
    for digest in ["sha256:0", "", "md5:0123"] {
        let annotations =
            serde_json::json!({"io.airgapd.release": "r1", "io.airgapd.release.members": digest});
        let bundle = with_release(&source, &annotations, None);
        assert!(
            bundle.catalog().release.as_ref().unwrap().members.is_err(),
            "{digest}"
        );
    }
}
