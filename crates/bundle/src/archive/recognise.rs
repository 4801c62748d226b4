//! Tells a tar archive from other files by the first bytes.

use std::io::Read as _;

use super::decode::Decoder;
use super::file::ArchiveFile;
use super::packed::Packed;
use super::{Compression, Truncation, strangers, tar};
use crate::Fault;

/// Size of a header in bytes.
const BLOCK: usize = 512;

/// Returns the compression of a tar archive, or an error for any other file.
pub(crate) fn recognise(file: &ArchiveFile, length: u64) -> Result<Compression, Fault> {
    if length == 0 {
        return Err(Fault::Empty);
    }
    let mut start = vec![0; usize::try_from(length.min(tar::BLOCK)).expect("at most a block")];
    file.read_exact_at(&mut start, 0).map_err(tar::read_error)?;
    match Compression::detect(&start) {
        _ if tar::is_header(&start) => Ok(Compression::None),
        Compression::None => {
            let mut start = vec![0; strangers::PEEK.min(usize::try_from(length).unwrap_or(usize::MAX))];
            file.read_exact_at(&mut start, 0).map_err(tar::read_error)?;
            Err(no_tar(&start, length, ""))
        }
        codec => Ok(codec),
    }
}

/// Returns the compression of a stream that starts like this, or an error if it is no tar archive.
/// A start shorter than [`strangers::PEEK`] is the whole stream.
pub(crate) fn recognise_start(start: &[u8]) -> Result<Compression, Fault> {
    if start.is_empty() {
        return Err(Fault::Empty);
    }
    let block = start.get(..BLOCK).unwrap_or(start);
    match Compression::detect(block) {
        _ if tar::is_header(block) => Ok(Compression::None),
        Compression::None => Err(no_tar(start, start.len() as u64, "")),
        codec => Ok(codec),
    }
}

/// Checks that a compressed file is a tar archive. Otherwise the error names the content.
pub(crate) fn recognise_packed(packed: &Packed) -> Result<(), Fault> {
    recognise_decoded(&mut packed.decoder()?, packed.compression)
}

/// Checks that decompressed data is a tar archive. Reads no more than the beginning.
pub(crate) fn recognise_decoded(decoder: &mut Decoder, codec: Compression) -> Result<(), Fault> {
    let mut start = Vec::new();
    let mut read_on = |start: &mut Vec<u8>, bytes: u64| {
        let read = decoder.by_ref().take(bytes).read_to_end(start);
        read.map_err(tar::read_error)
    };
    read_on(&mut start, tar::BLOCK)?;
    match Compression::detect(&start) {
        _ if tar::is_header(&start) => Ok(()),
        Compression::None => {
            read_on(&mut start, strangers::PEEK as u64)?;
            let compressed = format!(" compressed with {codec}");
            Err(no_tar(&start, start.len() as u64, &compressed))
        }
        inner => Err(Fault::Unrecognised(format!(
            "it is compressed twice, with {codec} and inside with {inner}. Decompress it once"
        ))),
    }
}

/// Returns the fault for a file of this length that starts like this and is not a tar archive.
fn no_tar(start: &[u8], length: u64, compressed: &str) -> Fault {
    // Every header contains zero bytes, and no text does.
    let has_zeros = start.contains(&0);
    if let Some(stranger) = strangers::named(start) {
        return Fault::Unrecognised(match compressed {
            "" => format!("this is {stranger}"),
            compressed => format!("inside it,{compressed}, is {stranger}"),
        });
    }
    if start.iter().all(|byte| *byte == 0) && (length == 0 || length >= tar::BLOCK) {
        return Fault::Unrecognised("the archive is empty".to_owned());
    }
    if length < tar::BLOCK && has_zeros {
        return Fault::Truncated(Truncation {
            offset: 0,
            entry: None,
            expected: tar::BLOCK,
            present: length,
        });
    }
    let but = strangers::but_text(start).unwrap_or_default();
    Fault::Unrecognised(format!("this is not a tar archive{compressed}{but}"))
}
