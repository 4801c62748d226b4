//! `containerd.services.diff.v1`: decompresses layers according to their media type, reads them as
//! tars, and discards the content.

use std::collections::HashSet;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use basics::digest::Hasher;
use tonic::{Request, Response, Status};

use crate::service::{Call, Service, delivered, missing};
use crate::snapshots::{lower_folders, upper_folder};
use crate::state::State;
use crate::version::Version;
use crate::wire;
use crate::wire::generated::diff_server::Diff;

#[tonic::async_trait]
impl Diff for Service {
    async fn apply(
        &self,
        request: Request<wire::ApplyRequest>,
    ) -> Result<Response<wire::ApplyResponse>, Status> {
        let call = self.enter("Diff.Apply", request.metadata()).await?;
        let request = request.into_inner();
        let (media_type, bytes, version) = begin(&mut self.state_for(&call), &call, &request)?;
        let below = request.mounts.iter().find_map(lower_folders).map(str::to_owned);
        // The lock is not held here, so that other calls are answered meanwhile, as patient clients
        // expect.
        let unpacked = tokio::task::spawn_blocking(move || unpack(&media_type, &bytes, &version, below))
            .await
            .expect("unpacking does not panic")?;
        let mut state = self.state_for(&call);
        let answer = finish(&mut state, &call, &request.mounts, unpacked);
        state.settle();
        delivered(&mut state, call.rpc, answer)
    }
}

/// The digest and size of an uncompressed layer.
struct Unpacked {
    digest: String,
    size: u64,
}

/// Finds the layer and its snapshot.
fn begin(
    state: &mut State,
    call: &Call,
    request: &wire::ApplyRequest,
) -> Result<(String, Arc<Vec<u8>>, Version), Status> {
    let Some(diff) = &request.diff else {
        return Err(missing(state, call.rpc, "diff"));
    };
    let digest = &diff.digest;
    if state.blob(&call.namespace, digest).is_none() {
        return Err(Status::not_found(format!(
            "failed to get reader from content store: content digest {digest}: not found"
        )));
    }
    let bytes = state
        .blob_bytes(&call.namespace, digest)
        .ok_or_else(|| Status::data_loss(format!("the stand-in kept no bytes of {digest}")))?;
    if !request.sync_fs {
        state.violation(format!(
            "{} of {digest} was called without sync_fs, so a power cut can leave a snapshot of empty files",
            call.rpc
        ));
    }
    let is_alone = request.mounts.iter().any(|mount| upper_folder(mount).is_some());
    if is_alone && !request.mounts.iter().any(|mount| lower_folders(mount).is_some()) {
        state.violation(format!(
            "{} of {digest} was called without the layers below, whose folders it may need",
            call.rpc
        ));
    }
    if state.snapshot_at(&call.namespace, &request.mounts).is_none() {
        state.violation(format!(
            "{} of {digest} was called with mounts of no prepared snapshot",
            call.rpc
        ));
        return Err(vanished());
    }
    Ok((diff.media_type.clone(), bytes, state.version.clone()))
}

/// Records the layer that was applied, if the snapshot still exists.
fn finish(
    state: &mut State,
    call: &Call,
    mounts: &[wire::Mount],
    unpacked: Unpacked,
) -> Result<wire::ApplyResponse, Status> {
    let snapshot = state.snapshot_at(&call.namespace, mounts).ok_or_else(vanished)?;
    let Unpacked { digest, size } = unpacked;
    snapshot.applied = Some(digest.clone());
    snapshot.keeps_whiteouts = mounts.iter().any(|mount| upper_folder(mount).is_some());
    state.changed(call.rpc, &call.namespace, &digest, call.lease.as_deref());
    Ok(wire::ApplyResponse {
        applied: Some(wire::Descriptor {
            media_type: "application/vnd.oci.image.layer.v1.tar".to_owned(),
            digest,
            size: i64::try_from(size).unwrap_or(i64::MAX),
            annotations: Default::default(),
        }),
    })
}

fn vanished() -> Status {
    Status::unknown("failed to mount /tmp/containerd-mount: no such file or directory")
}

/// The compression of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compression {
    /// Not compressed.
    None,
    /// Compressed or not, as the first bytes say.
    Unknown,
}

/// Returns containerd's view of a media type. It trusts OCI's type for uncompressed layers, even
/// with an unknown suffix. For all other types it checks the bytes.
fn compression_of(media_type: &str, version: &Version) -> Option<Compression> {
    const OCI: &str = "application/vnd.oci.image.layer.";
    const DOCKER: &str = "application/vnd.docker.image.rootfs.";
    if let Some(kind) = media_type.strip_prefix(OCI) {
        let kind = kind.strip_prefix("nondistributable.").unwrap_or(kind);
        let (base, suffix) = kind.split_once('+').unwrap_or((kind, ""));
        return (base == "v1.tar").then_some(match suffix {
            "gzip" | "zstd" => Compression::Unknown,
            _ => Compression::None,
        });
    }
    let kind = media_type.strip_prefix(DOCKER)?;
    match kind.strip_prefix("foreign.").unwrap_or(kind) {
        "diff.tar" | "diff.tar.gzip" => Some(Compression::Unknown),
        "diff.tar.zstd" if version.docker_zstd() => Some(Compression::Unknown),
        _ => None,
    }
}

/// Reads a layer. `below` is the folder of the layers below, if the caller gave one. It has no
/// folders.
fn unpack(
    media_type: &str,
    bytes: &[u8],
    version: &Version,
    below: Option<String>,
) -> Result<Unpacked, Status> {
    const GZIP: &[u8] = &[0x1f, 0x8b, 0x08];
    const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
    let compression = compression_of(media_type, version).ok_or_else(|| {
        Status::unknown(format!(
            "failed to get stream processor for {media_type}: no processor for media-type"
        ))
    })?;
    let is_compressed = compression == Compression::Unknown;
    let plain: Box<dyn Read + '_> = if is_compressed && bytes.starts_with(GZIP) {
        Box::new(flate2::read::MultiGzDecoder::new(bytes))
    } else if is_compressed && bytes.starts_with(ZSTD) {
        Box::new(zstd::Decoder::new(bytes).map_err(|error| Status::unknown(error.to_string()))?)
    } else {
        Box::new(bytes)
    };
    let mut plain = Counted {
        plain,
        hasher: Hasher::sha256(),
        size: 0,
        broken: None,
    };
    match (look_through(&mut plain), below) {
        (Ok(Some(unlisted)), Some(below)) => Err(Status::unknown(format!(
            "lstat {below}/{}: not a directory",
            unlisted.display()
        ))),
        (Ok(_), _) => Ok(Unpacked {
            digest: plain.hasher.finish().to_string(),
            size: plain.size,
        }),
        (Err(error), _) => Err(Status::unknown(
            plain.broken.unwrap_or_else(|| in_gos_words(&error)),
        )),
    }
}

/// Reads a tar to its end, and the bytes after it. Returns the first folder that has an entry and
/// is not listed before it.
fn look_through(plain: &mut impl Read) -> io::Result<Option<PathBuf>> {
    let mut archive = tar::Archive::new(&mut *plain);
    let (mut folders, mut unlisted) = (HashSet::from([PathBuf::new()]), None);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path: PathBuf = entry.path()?.strip_prefix(".").unwrap_or(&entry.path()?).into();
        let parent = path.parent().unwrap_or(Path::new(""));
        if unlisted.is_none() && !folders.contains(parent) {
            unlisted = Some(parent.to_owned());
        }
        if entry.header().entry_type().is_dir() {
            folders.insert(path);
        }
        io::copy(&mut entry, &mut io::sink())?;
    }
    io::copy(plain, &mut io::sink())?;
    Ok(unlisted)
}

/// The reader of the tar's bytes.
struct Counted<'a> {
    plain: Box<dyn Read + 'a>,
    hasher: Hasher,
    size: u64,
    /// The reason why decompression failed.
    broken: Option<String>,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.plain.read(buffer).inspect_err(|error| {
            self.broken = Some(match error.kind() {
                io::ErrorKind::UnexpectedEof => "unexpected EOF".to_owned(),
                io::ErrorKind::InvalidInput => "gzip: invalid checksum".to_owned(),
                _ => error.to_string(),
            });
        })?;
        self.hasher.update(&buffer[..read]);
        self.size += read as u64;
        Ok(read)
    }
}

/// Returns the message of Go's tar reader for a tar that is cut off or invalid.
fn in_gos_words(error: &io::Error) -> String {
    let text = error.to_string();
    if ["entire block", "unexpected EOF"]
        .iter()
        .any(|cut| text.contains(cut))
    {
        "unexpected EOF".to_owned()
    } else {
        "archive/tar: invalid tar header".to_owned()
    }
}
