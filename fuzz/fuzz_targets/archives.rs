//! Tar archives whose headers have right checksums: plain, compressed, cut, and as frames with a
//! seek table. A fuzzer finds neither a checksum nor the end of a frame by chance. The checks are
//! the same as for any bytes.

#![no_main]

use airgapd_fuzz::{check, open};
use bundle::Compression;
use bundle::fixtures::compress;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let [form, parameter, tar @ ..] = data else { return };
    let tar = with_checksums(tar.to_vec());
    let bytes = match form % 8 {
        0 => tar,
        1 => compressed(Compression::Gzip, &tar),
        2 => compressed(Compression::Zstd, &tar),
        3 => compressed(Compression::Xz, &tar),
        4 => compressed(Compression::Lz4, &tar),
        5 => compressed(Compression::Bzip2, &tar),
        6 => cut(
            compressed(CODECS[usize::from(form / 8) % CODECS.len()], &tar),
            *parameter,
        ),
        _ => framed(&tar, *parameter, *form),
    };
    if let Ok(bundle) = open(&bytes) {
        check(&bundle);
    }
});

const CODECS: [Compression; 5] = [
    Compression::Gzip,
    Compression::Zstd,
    Compression::Xz,
    Compression::Lz4,
    Compression::Bzip2,
];

const BLOCK: usize = 512;

/// Gives every block a right checksum at the place of a header's checksum.
fn with_checksums(mut tar: Vec<u8>) -> Vec<u8> {
    let mut at = 0;
    while let Some(block) = tar.get_mut(at..at + BLOCK) {
        at += BLOCK;
        if block.iter().all(|byte| *byte == 0) {
            continue;
        }
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let size = std::str::from_utf8(&block[124..135]).ok();
        let size = size
            .and_then(|text| usize::from_str_radix(text.trim(), 8).ok())
            .unwrap_or(0);
        at = at.saturating_add(size.next_multiple_of(BLOCK));
    }
    tar
}

fn compressed(codec: Compression, bytes: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    compress(codec, &mut packed, |target| target.write_all(bytes)).expect("memory takes everything");
    packed
}

/// Returns the first `part` of 256 parts of the bytes.
fn cut(mut bytes: Vec<u8>, part: u8) -> Vec<u8> {
    bytes.truncate(bytes.len() * usize::from(part) / 256);
    bytes
}

/// Returns frames of a few blocks each and their seek table. The parameter makes one row of the
/// table wrong.
fn framed(tar: &[u8], parameter: u8, form: u8) -> Vec<u8> {
    let blocks = usize::from(parameter % 16) + 1;
    let (mut file, mut table) = (Vec::new(), Vec::new());
    for (at, part) in tar.chunks(blocks * BLOCK).enumerate() {
        let frame = zstd::bulk::compress(part, 1).expect("memory takes everything");
        let lie = u32::from(parameter >= 128 && at == usize::from(form / 8)) << (parameter % 32);
        for size in [frame.len(), part.len()] {
            let size = u32::try_from(size).expect("inputs are small");
            table.extend_from_slice(&(size ^ lie).to_le_bytes());
        }
        file.extend_from_slice(&frame);
    }
    let number = |n: usize| u32::try_from(n).expect("inputs are small").to_le_bytes();
    file.extend_from_slice(&0x184D_2A5E_u32.to_le_bytes());
    file.extend_from_slice(&number(table.len() + 9));
    file.extend_from_slice(&table);
    file.extend_from_slice(&number(table.len() / 8));
    file.push(0);
    file.extend_from_slice(&0x8F92_EAB1_u32.to_le_bytes());
    file
}
