//! Makes a catalog of a file: recognises its format, and the side of a hybrid that counts.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use basics::{digest, foreign};
use oci_spec::image::Digest;
use serde::Deserialize as _;
use serde_json::value::RawValue;

use super::docker::Docker;
use super::documents::{self, Annotated, Index, LayoutFile, RawList};
use super::hybrid::compare_sides;
use super::layout::{Layout, blob_name};
use super::reader::{Blobs as _, Places, Reader};
use super::release::{self, Release};
use super::reliance::{self, Reliance};
use crate::archive::{
    Archive, ArchiveFile, BlobsFolder, Folder, Found, Frames, Packed, Place, recognise, recognise_packed,
    strangers,
};
use crate::{
    Catalog, Compression, Content, Ending, Fault, Format, Identity, Image, Kind, Limits, Node, PartState,
    Warning,
};

const LAYOUT_FILE: &str = "oci-layout";
const INDEX: &str = "index.json";
pub(super) const DOCKER: &str = "manifest.json";

/// Passes over a compressed archive for its documents, besides one for each level of indexes. They
/// are for the documents above and below the indexes, and a few are spare.
const MOST_PASSES: u32 = 6;

/// The access to an archive's bytes.
pub(crate) enum Access {
    /// The bytes are in the file as they are.
    Plain,
    /// The bytes are compressed, and can be read only from the beginning.
    Packed(Arc<Packed>),
    /// The bytes are compressed, with a seek table.
    Framed(Arc<Frames>),
}

/// Makes the catalog of a file.
pub(crate) fn read(
    file: &ArchiveFile,
    identity: &Identity,
    limits: &Limits,
) -> Result<(Catalog, Places, Access), Fault> {
    match recognise(file, identity.size)? {
        Compression::None => {
            let mut archive = Archive::scan(file, identity.size, limits)?;
            let (catalog, places) = draw(&mut archive, Compression::None, limits)?;
            Ok((catalog, places, Access::Plain))
        }
        codec => {
            if codec == Compression::Zstd
                && let Some(read) = read_frames(file, identity.size, limits)
            {
                return Ok(read);
            }
            let packed = Arc::new(Packed::new(file, identity, codec, limits));
            recognise_packed(&packed)?;
            let mut archive = Archive::unpack(&packed, limits)?;
            let (catalog, places) = draw(&mut archive, codec, limits)?;
            Ok((catalog, places, Access::Packed(packed)))
        }
    }
}

/// Makes the catalog of a file with a seek table. Returns `None` if there is no table, or if the
/// table or its target has a fault. Then reading every byte shows the fault. Also returns `None` if
/// random access costs more than reading the frames in order.
fn read_frames(file: &ArchiveFile, length: u64, limits: &Limits) -> Option<(Catalog, Places, Access)> {
    let frames = Arc::new(Frames::find(file, length, limits).ok()??);
    let mut archive = Archive::scan_frames(&frames, limits).ok()?;
    let (catalog, places) = draw(&mut archive, Compression::Zstd, limits).ok()?;
    let offsets = places.values().filter_map(Place::offset);
    frames
        .are_within_reach(offsets)
        .then_some((catalog, places, Access::Framed(frames)))
}

/// Makes the catalog of an archive from its first entries, while a pipe has yet to bring the rest.
/// Returns `None` if these entries do not say enough.
///
/// The catalog counts if the documents of all images are there. A manifest of an index may be
/// missing, if another manifest of the same index is there. Bundles for one platform lack the other
/// platforms. A config may be missing if the bundle is a delta and relies on it. A document that
/// counts as missing must not come later. All layers may come later, except those that a delta
/// relies on.
pub(crate) fn read_head(
    archive: &mut Archive,
    compression: Compression,
    limits: &Limits,
) -> Result<Option<(Catalog, Places, HashSet<Digest>)>, Fault> {
    let is_there = |name: &str| matches!(archive.find(name), Found::File(_));
    if !is_there(LAYOUT_FILE) || !is_there(INDEX) {
        return Ok(None);
    }
    let mut absent = HashSet::new();
    for _ in 0..=limits.index_depth.saturating_add(MOST_PASSES) {
        archive.expect_all_but(absent.clone());
        let (mut catalog, places) = draw_once(archive, compression, limits)?;
        if archive.wants() {
            return Ok(None);
        }
        let relied_on = catalog.relies_on.iter().flat_map(|reliance| &reliance.blobs);
        let relied_on = relied_on.map(|blob| blob.digest.clone());
        let mut more: HashSet<Digest> = archive.unseen();
        more.extend(relied_on);
        if more.is_subset(&absent) {
            catalog.ending = Ending::Marker;
            return Ok(is_known(&catalog).then_some((catalog, places, absent)));
        }
        absent.extend(more);
    }
    Ok(None)
}

/// Returns true if a catalog has the documents of all its images.
fn is_known(catalog: &Catalog) -> bool {
    let is_unusable = |warning: &Warning| {
        matches!(
            warning,
            Warning::RelianceUnusable { .. } | Warning::ReleaseUnusable { .. } | Warning::IndexUnusable(_)
        )
    };
    let relied_on = catalog.relies_on.iter().flat_map(|reliance| &reliance.blobs);
    let relied_on: HashSet<&Digest> = relied_on.map(|blob| &blob.digest).collect();
    !catalog.warnings.iter().any(is_unusable)
        && catalog
            .images
            .iter()
            .all(|image| is_known_node(&image.root, &relied_on))
}

fn is_known_node(node: &Node, relied_on: &HashSet<&Digest>) -> bool {
    match &node.content {
        Content::Absent => false,
        Content::Other | Content::Broken(_) => true,
        Content::Manifest(manifest) => {
            let config = &manifest.config;
            manifest.kind != Kind::Image
                || config.state != PartState::Absent
                || relied_on.contains(config.descriptor.digest())
        }
        Content::Index(children) => {
            let mut there = children.iter().filter(|child| child.content != Content::Absent);
            children.is_empty() || {
                let known: Vec<bool> = there
                    .by_ref()
                    .map(|child| is_known_node(child, relied_on))
                    .collect();
                !known.is_empty() && !known.contains(&false)
            }
        }
    }
}

/// Makes the catalog of an archive that has come through a pipe.
pub(crate) fn read_piped(
    archive: &mut Archive,
    compression: Compression,
    limits: &Limits,
) -> Result<(Catalog, Places), Fault> {
    archive.expect_nothing();
    let drawn = draw_once(archive, compression, limits);
    match archive.wants() {
        true => Err(Fault::Piped(
            "its documents take more memory than a pipe may use".to_owned(),
        )),
        false => drawn,
    }
}

/// Makes the catalog of a folder.
pub(crate) fn read_folder(folder: &Arc<Folder>, limits: &Limits) -> Result<(Catalog, Places), Fault> {
    let mut archive = Archive::extracted(Arc::clone(folder));
    draw(&mut archive, Compression::None, limits)
}

/// Makes the catalog of an archive. Repeats that if documents must be fetched first.
fn draw(
    archive: &mut Archive,
    compression: Compression,
    limits: &Limits,
) -> Result<(Catalog, Places), Fault> {
    for _ in 0..limits.index_depth.saturating_add(MOST_PASSES) {
        let drawn = draw_once(archive, compression, limits);
        if !archive.wants() {
            return drawn;
        }
        // Frees the incomplete catalog, so that it takes no room besides the documents.
        drop(drawn);
        archive.fetch()?;
    }
    Err(Fault::Limit {
        what: "passes over a compressed bundle for its documents, so decompress it first".to_owned(),
        limit: u64::from(limits.index_depth.saturating_add(MOST_PASSES)),
        set: None,
    })
}

fn draw_once(
    archive: &Archive,
    compression: Compression,
    limits: &Limits,
) -> Result<(Catalog, Places), Fault> {
    let documents = Documents::read(archive, limits)?;
    let mut reader = Reader::new(archive, limits);
    let found = documents.images(&mut reader)?;
    if archive.ending == Ending::Marker
        && reader.places.is_empty()
        && let Some(reason) = blobs_elsewhere(archive, &found)
    {
        return Err(Fault::Unrecognised(reason));
    }
    check_names(&found.images, limits)?;
    let mut warnings = archive.warnings.clone();
    warnings.extend(found.warnings);
    let catalog = Catalog {
        format: found.format,
        compression,
        digest: found.digest,
        images: found.images,
        relies_on: found.relies_on,
        release: found.release,
        warnings,
        ending: archive.ending.clone(),
    };
    Ok((catalog, reader.places))
}

/// Returns the reason why a layout without any of its blobs has them elsewhere. Returns `None` if
/// the blobs are just missing.
fn blobs_elsewhere(archive: &Archive, found: &Images) -> Option<String> {
    if found.format == Format::DockerArchive || !found.images.iter().all(is_without_root) {
        return None;
    }
    let noun = archive.noun();
    let why = match archive.blobs() {
        BlobsFolder::Link => "`blobs` is a symbolic link, which airgapd does not follow",
        BlobsFolder::Nothing => "the blobs are elsewhere, as after `skopeo copy --dest-shared-blob-dir`",
        BlobsFolder::Something => return None,
    };
    Some(format!(
        "the {noun} is an image layout without blobs: {why}. Make a bundle with `skopeo copy --src-shared-blob-dir \
         BLOBS oci:FOLDER:NAME oci-archive:images.tar:NAME`"
    ))
}

fn is_without_root(image: &Image) -> bool {
    let Content::Broken(reason) = &image.root.content else {
        return image.root.content == Content::Absent;
    };
    reason.contains("is a link")
}

/// The documents that list the images of an archive.
struct Documents {
    index: Option<Vec<u8>>,
    docker: Option<Vec<u8>>,
    /// True if there is a valid `oci-layout`.
    is_layout: bool,
}

/// The images that the documents list, with the remarks about them.
pub(super) struct Images {
    format: Format,
    pub(super) digest: Digest,
    pub(super) images: Vec<Image>,
    relies_on: Option<Reliance>,
    release: Option<Release>,
    pub(super) warnings: Vec<Warning>,
}

impl Documents {
    fn read(archive: &Archive, limits: &Limits) -> Result<Self, Fault> {
        let is_layout = match document(archive, LAYOUT_FILE, limits)? {
            Some(bytes) => check_version(&bytes)?,
            None => false,
        };
        let documents = Self {
            index: document(archive, INDEX, limits)?,
            docker: document(archive, DOCKER, limits)?,
            is_layout,
        };
        match (&documents.index, &documents.docker) {
            (None, None) => Err(unrecognised(archive, is_layout)),
            // An archive with both and without oci-layout is a Docker archive, unless it was cut
            // off before oci-layout.
            (Some(_), Some(_)) if !is_layout => match &archive.ending {
                Ending::Truncated(truncation) => Err(Fault::Truncated(truncation.clone())),
                Ending::Marker | Ending::NoMarker => Ok(documents),
            },
            _ => Ok(documents),
        }
    }

    fn images(&self, reader: &mut Reader<'_>) -> Result<Images, Fault> {
        match (&self.index, &self.docker) {
            (Some(index), None) => {
                let mut images = from_layout(reader, index, None)?;
                if !self.is_layout {
                    images.warnings.push(Warning::NoLayoutFile);
                }
                if images.images.is_empty() {
                    return Err(Fault::Document {
                        entry: INDEX,
                        reason: "it lists no images".to_owned(),
                    });
                }
                Ok(images)
            }
            (Some(index), Some(docker)) if self.is_layout => {
                let images = from_layout(reader, index, Some(docker))?;
                if !images.images.is_empty() {
                    return Ok(images);
                }
                // Docker 25.0 before 25.0.3 wrote "manifests": null for images saved by digest
                // (moby#47210).
                let images = from_docker(reader, docker)?;
                let warning = Warning::IndexUnusable("lists no images");
                Ok(Images {
                    format: Format::Hybrid,
                    warnings: vec![warning],
                    ..images
                })
            }
            (_, Some(docker)) => {
                let mut images = from_docker(reader, docker)?;
                if self.is_layout {
                    images.warnings.push(Warning::IndexUnusable("is missing"));
                }
                Ok(images)
            }
            (None, None) => unreachable!("one of the documents is there"),
        }
    }
}

/// Reads a document that lists images. Returns `None` if there is no such entry.
fn document(archive: &Archive, entry: &'static str, limits: &Limits) -> Result<Option<Vec<u8>>, Fault> {
    match (archive.find(entry), &archive.ending) {
        (Found::Nothing, _) => Ok(None),
        (Found::Unusable(_), Ending::Truncated(truncation)) => Err(Fault::Truncated(truncation.clone())),
        (Found::Unusable(reason), _) => Err(Fault::Document {
            entry,
            reason: format!("it is {reason}"),
        }),
        (Found::File(place), _) if place.size() > limits.json_document => Err(Fault::Limit {
            what: format!("bytes in {entry}"),
            limit: limits.json_document,
            set: Some(crate::limits::set_bytes("jsonDocument", limits.json_document)),
        }),
        // The result is also `None` if the document must be fetched first. Then the reader repeats
        // all this.
        (Found::File(place), _) => archive.read(&place),
    }
}

/// Returns true if this version makes the archive an OCI layout. containerd treats an empty version
/// as missing.
fn check_version(bytes: &[u8]) -> Result<bool, Fault> {
    let file: LayoutFile = documents::parse_first(bytes).map_err(|error| invalid(LAYOUT_FILE, &error))?;
    match file.image_layout_version.as_str() {
        "" => Ok(false),
        "1.0.0" => Ok(true),
        version => Err(Fault::UnsupportedLayout(format!("{version:?}"))),
    }
}

fn invalid(entry: &'static str, error: &serde_json::Error) -> Fault {
    Fault::Document {
        entry,
        reason: foreign::reason(format_args!("not valid: {error}")),
    }
}

fn unrecognised(archive: &Archive, is_layout: bool) -> Fault {
    if let Ending::Truncated(truncation) = &archive.ending {
        return Fault::Truncated(truncation.clone());
    }
    let reason = if is_root_file_system(archive) {
        strangers::ROOT_FILE_SYSTEM.to_owned()
    } else if is_layout {
        "there is an oci-layout file but neither index.json nor manifest.json".to_owned()
    } else if let Some(folder) = archive
        .nested_in
        .as_ref()
        .filter(|folder| is_dir_form(archive, folder))
    {
        format!("{} (in folder {folder}/ of the archive)", strangers::DIR_FORM)
    } else if let Some(folder) = &archive.nested_in {
        format!(
            "the image layout is in folder {folder}/ of the archive. Pack the content of that folder, not the folder itself"
        )
    } else if matches!(archive.find("repositories"), Found::File(_)) {
        "it is a Docker archive from before version 1.10, without manifest.json".to_owned()
    } else if let Some((telltale, name)) = &archive.telltale {
        telltale.reason(name)
    } else {
        format!("the {} has neither index.json nor manifest.json", archive.noun())
    };
    Fault::Unrecognised(reason)
}

fn is_root_file_system(archive: &Archive) -> bool {
    let is_there = |name: &str| !matches!(archive.find(name), Found::Nothing);
    let usual = strangers::ROOT_FILES.iter().filter(|name| is_there(name));
    is_there(".dockerenv") || usual.count() >= 2
}

/// Returns true if a folder of the archive is in skopeo's `dir:` form. There, `manifest.json` is
/// the manifest of one image.
fn is_dir_form(archive: &Archive, folder: &str) -> bool {
    let Found::File(place) = archive.find(&format!("{folder}/{DOCKER}")) else {
        return false;
    };
    let is_small = place.size() <= Limits::default().json_document;
    is_small && matches!(archive.read(&place), Ok(Some(bytes)) if is_manifest(&bytes))
}

/// Returns true if a document is an object with the members of a manifest or an index. The
/// `manifest.json` of a Docker archive is a list.
fn is_manifest(document: &[u8]) -> bool {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Manifest {
        schema_version: Option<serde::de::IgnoredAny>,
        media_type: Option<serde::de::IgnoredAny>,
    }
    let manifest = serde_json::from_slice::<Manifest>(document);
    let begins_as_object = document.trim_ascii_start().starts_with(b"{");
    begins_as_object
        && manifest.is_ok_and(|manifest| manifest.schema_version.is_some() || manifest.media_type.is_some())
}

fn from_layout(reader: &mut Reader<'_>, document: &[u8], docker: Option<&Vec<u8>>) -> Result<Images, Fault> {
    let index: Index<'_> = documents::parse(document).map_err(|error| invalid(INDEX, &error))?;
    if let Some(contradiction) = index.contradiction() {
        return Err(Fault::Document {
            entry: INDEX,
            reason: format!("it {contradiction}"),
        });
    }
    check_count(index.manifests.len(), INDEX, reader.limits)?;
    let mut layout = Layout::new(reader);
    let images: Result<Vec<_>, _> = index.manifests.iter().map(|entry| layout.image(entry)).collect();
    let mut images = Images {
        format: if docker.is_some() {
            Format::Hybrid
        } else {
            Format::OciLayout
        },
        digest: digest::sha256(document),
        images: images?,
        relies_on: None,
        release: None,
        warnings: Vec::new(),
    };
    match reliance(reader, document)? {
        None => {}
        Some(Ok(reliance)) => {
            // A receipt lacks its layers by design.
            let delta = reliance.receipt.is_none().then(|| Warning::Delta {
                base: foreign::text(&reliance.base).to_string(),
                count: reliance.blobs.len(),
            });
            images.warnings.extend(delta);
            images.relies_on = Some(reliance);
        }
        Some(Err(reason)) => images.warnings.push(Warning::RelianceUnusable { reason }),
    }
    read_release(reader, document, &mut images)?;
    if let Some(docker) = docker {
        compare_sides(reader, &mut images, document, docker)?;
    }
    Ok(images)
}

fn from_docker(reader: &mut Reader<'_>, document: &[u8]) -> Result<Images, Fault> {
    if is_manifest(document) {
        return Err(Fault::Unrecognised(strangers::DIR_FORM.to_owned()));
    }
    let elements = elements(document)?;
    if elements.is_empty() {
        return Err(Fault::Document {
            entry: DOCKER,
            reason: "it lists no images".to_owned(),
        });
    }
    check_count(elements.len(), DOCKER, reader.limits)?;
    let mut docker = Docker::new(reader);
    let images: Result<Vec<_>, _> = elements.iter().map(|element| docker.image(element)).collect();
    let images = images?;
    let digest = content_digest(document, &images);
    Ok(Images {
        format: Format::DockerArchive,
        digest,
        images,
        relies_on: None,
        release: None,
        warnings: Vec::new(),
    })
}

/// Reads the blobs that a delta relies on. The inner error says why their list is unusable.
fn reliance(reader: &mut Reader<'_>, index: &[u8]) -> Result<Option<Result<Reliance, String>>, Fault> {
    let Ok(Annotated { annotations }) = documents::parse(index) else {
        return Ok(None);
    };
    let digest = match reliance::pointer(&annotations) {
        None => return Ok(None),
        Some(Ok(digest)) => digest,
        Some(Err(reason)) => return Ok(Some(Err(reason))),
    };
    let place = match reader.archive.find(&blob_name(&digest)) {
        Found::File(place) => place,
        Found::Nothing => return Ok(Some(Err(format!("blob {digest} is not in the bundle")))),
        Found::Unusable(reason) => return Ok(Some(Err(format!("blob {digest} is {reason}")))),
    };
    let document = reader.document(&place, &digest)?;
    let reliance = document
        .map_err(|flaw| flaw.to_string())
        .and_then(|bytes| reliance::parse(&bytes));
    if let Ok(reliance) = &reliance {
        // `Catalog::completed_by` makes a second catalog beside this one.
        reader.hold_again()?;
        reader.hold(reliance.held_bytes())?;
    }
    Ok(Some(reliance))
}

/// Reads the release that a bundle names, and holds its list against the images of the bundle.
fn read_release(reader: &mut Reader<'_>, index: &[u8], images: &mut Images) -> Result<(), Fault> {
    let Ok(Annotated { annotations }) = documents::parse(index) else {
        return Ok(());
    };
    let (name, list) = match release::pointer(&annotations) {
        None => return Ok(()),
        Some(Ok(pointer)) => (Some(pointer.name), pointer.list),
        Some(Err(reason)) => (None, Err(reason)),
    };
    let members = match (&name, list) {
        (Some(name), Ok(digest)) => list_of_release(reader, name, &digest)?,
        (_, Err(reason)) => Err(reason),
        (None, Ok(_)) => unreachable!("a list without a name is an error"),
    };
    let members = members.and_then(|members| match members.contradiction(&images.images) {
        None => Ok(Arc::new(members)),
        Some(contradiction) => Err(contradiction),
    });
    if let Err(reason) = &members {
        images.warnings.push(Warning::ReleaseUnusable {
            release: name.clone(),
            reason: reason.clone(),
        });
    }
    images.release = name.map(|name| Release { name, members });
    Ok(())
}

fn list_of_release(
    reader: &mut Reader<'_>,
    name: &str,
    digest: &Digest,
) -> Result<Result<release::Members, String>, Fault> {
    let place = match reader.archive.find(&blob_name(digest)) {
        Found::File(place) => place,
        Found::Nothing => return Ok(Err(format!("its list {digest} is not in the bundle"))),
        Found::Unusable(reason) => return Ok(Err(format!("its list {digest} is {reason}"))),
    };
    let document = reader.document(&place, digest)?;
    let members = document
        .map_err(|flaw| flaw.to_string())
        .and_then(|bytes| release::parse(&bytes, name));
    if let Ok(members) = &members {
        reader.hold(members.held_bytes())?;
    }
    Ok(members)
}

/// Returns the elements of `manifest.json`. As in containerd, bytes after the first JSON value do
/// not matter.
pub(super) fn elements(document: &[u8]) -> Result<Vec<&RawValue>, Fault> {
    let mut json = serde_json::Deserializer::from_slice(document);
    RawList::deserialize(&mut json)
        .map(|list| list.0)
        .map_err(|error| invalid(DOCKER, &error))
}

pub(super) fn check_count(count: usize, entry: &str, limits: &Limits) -> Result<(), Fault> {
    if count > limits.images {
        return Err(Fault::Limit {
            what: format!("images in {entry}: there are {count}"),
            limit: limits.images as u64,
            set: Some(crate::limits::set("images", limits.images)),
        });
    }
    Ok(())
}

/// Checks the number of names of each image. Entries with the same descriptor are one image.
fn check_names(images: &[Image], limits: &Limits) -> Result<(), Fault> {
    let mut counts: HashMap<&Digest, usize> = HashMap::new();
    for image in images {
        *counts.entry(image.root.descriptor.digest()).or_default() += image.names.len();
    }
    let is_beyond = |image: &&Image| counts[image.root.descriptor.digest()] > limits.names;
    let Some(image) = images.iter().find(is_beyond) else {
        return Ok(());
    };
    let digest = image.root.descriptor.digest();
    Err(Fault::Limit {
        what: format!("names of one image: {digest} has {}", counts[digest]),
        limit: limits.names as u64,
        set: Some(crate::limits::set("names", limits.names)),
    })
}

/// Returns the identity of content that no document pins by itself.
pub(super) fn content_digest(document: &[u8], images: &[Image]) -> Digest {
    let mut hasher = digest::Hasher::sha256();
    hasher.update(document);
    for image in images {
        hasher.update(image.root.descriptor.digest().as_ref().as_bytes());
    }
    hasher.finish()
}
