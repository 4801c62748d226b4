//! Tells a tar archive from other files by the first bytes.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;

use super::packed::Packed;
use super::{Compression, Truncation, strangers, tar};
use crate::Fault;

/// Returns the compression of a tar archive, or an error for any other file.
pub(crate) fn recognise(file: &File, length: u64) -> Result<Compression, Fault> {
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

/// Checks that compressed data is a tar archive. Otherwise the error names the content.
pub(crate) fn recognise_packed(packed: &Packed) -> Result<(), Fault> {
    let mut start = Vec::new();
    let mut decoder = packed.decoder()?;
    let mut read_on = |start: &mut Vec<u8>, bytes: u64| {
        let read = decoder.by_ref().take(bytes).read_to_end(start);
        read.map_err(tar::read_error)
    };
    read_on(&mut start, tar::BLOCK)?;
    let codec = packed.compression;
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
