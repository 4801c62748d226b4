//! Names files that are not bundles. The message names the format and a command, which makes a
//! bundle of the file or fetches the right file.
//!
//! The content identifies a file. Only the pieces of a split file are identified by their names,
//! because their content shows nothing. Sources: the descriptions of the formats, and magic(5).

use std::path::Path;

use super::tar;

/// Bytes at the beginning that are checked. The mark of ISO 9660 is after 32 KiB.
pub(crate) const PEEK: usize = 40 << 10;

/// A format that bytes at an offset identify, with its name and the remedy.
struct Kind {
    at: usize,
    magic: &'static [u8],
    what: &'static str,
    remedy: &'static str,
}

const fn kind(at: usize, magic: &'static [u8], what: &'static str, remedy: &'static str) -> Kind {
    Kind {
        at,
        magic,
        what,
        remedy,
    }
}

const UNZIP: &str = "Take the archive out of it with `unzip FILE`. If it holds a folder with an image layout, pack \
                     that with `tar -cf images.tar -C FOLDER .`";
const SAVE: &str = "Save the images with `docker save -o images.tar NAME` or `skopeo copy docker://NAME \
                    oci-archive:images.tar:NAME`";
const DECRYPT_GPG: &str = "Decrypt it with `gpg -o images.tar -d FILE`";
const DECRYPT_AGE: &str = "Decrypt it with `age -d -i KEY -o images.tar FILE`";
const OTHER_FILE: &str = "It was probably copied by mistake: copy the bundle here instead";

/// In the order of the checks. A bootable disk has the mark of a disk as well as its own.
const KINDS: [Kind; 46] = [
    kind(0, b"PK\x03\x04", "a zip archive", UNZIP),
    kind(0, b"PK\x05\x06", "an empty zip archive", UNZIP),
    kind(0, b"PK\x07\x08", "a piece of a zip archive in several", UNZIP),
    kind(
        0,
        b"\x02\x21\x4c\x18",
        "legacy lz4 data",
        "Decompress it with `lz4 -dc FILE > images.tar`",
    ),
    kind(
        0,
        b"LZIP",
        "lzip data",
        "Decompress it with `lzip -dc FILE > images.tar`",
    ),
    kind(
        0,
        b"\x89LZO\0\r\n\x1a\n",
        "lzop data",
        "Decompress it with `lzop -dc FILE > images.tar`",
    ),
    kind(
        0,
        b"\x1f\x9d",
        "data of compress (.Z)",
        "Decompress it with `gzip -dc FILE > images.tar`",
    ),
    kind(
        0,
        b"\xff\x06\0\0sNaPpY",
        "snappy data",
        "Decompress it with `snzip -dc FILE > images.tar`",
    ),
    kind(
        0,
        b"7z\xbc\xaf\x27\x1c",
        "a 7z archive",
        "Take the bundle out of it with `7z x FILE`",
    ),
    kind(
        0,
        b"Rar!\x1a\x07",
        "a RAR archive",
        "Take the bundle out of it with `unrar x FILE`",
    ),
    kind(0, b"070701", "a cpio archive, as an initramfs is", SAVE),
    kind(0, b"070707", "a cpio archive", SAVE),
    kind(
        0,
        b"!<arch>\n",
        "a Debian package or another ar archive",
        OTHER_FILE,
    ),
    kind(0, b"\xed\xab\xee\xdb", "an RPM package", OTHER_FILE),
    kind(0x202, b"HdrS", "a Linux kernel image", OTHER_FILE),
    kind(0x38, b"ARM\x64", "a Linux kernel image", OTHER_FILE),
    kind(0, b"\x27\x05\x19\x56", "a kernel image for U-Boot", OTHER_FILE),
    kind(4, b"zimg", "a compressed Linux kernel image", OTHER_FILE),
    kind(
        0x8001,
        b"CD001",
        "an ISO image of a disk",
        "Mount it with `mount -o loop,ro FILE /mnt` and copy the bundle out of it",
    ),
    kind(0, b"QFI\xfb", "a qcow2 image of a disk", OTHER_FILE),
    kind(0, b"KDMV", "a VMDK image of a disk", OTHER_FILE),
    kind(0, b"vhdxfile", "a VHDX image of a disk", OTHER_FILE),
    kind(0, b"<<< ", "a VirtualBox image of a disk", OTHER_FILE),
    kind(0, b"LUKS\xba\xbe", "an encrypted disk (LUKS)", OTHER_FILE),
    kind(0, b"hsqs", "a squashfs file system", SAVE),
    kind(0x400, b"\xe2\xe1\xf5\xe0", "an erofs file system", SAVE),
    kind(0, b"XFSB", "an XFS file system", OTHER_FILE),
    kind(
        0,
        b"MSCF\0\0\0\0",
        "a Windows cabinet",
        "Take the bundle out of it with `cabextract FILE`",
    ),
    kind(0x438, b"\x53\xef", "an ext file system", OTHER_FILE),
    kind(0x1fe, b"\x55\xaa", "an image of a bootable disk", OTHER_FILE),
    kind(0, b"\x7fELF", "a program or a kernel (ELF)", OTHER_FILE),
    kind(0, b"MZ", "a program for Windows or EFI", OTHER_FILE),
    kind(
        0,
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
        "a document of Microsoft Office, or Thumbs.db",
        "Remove it from the folder",
    ),
    kind(0, b"%PDF-", "a PDF document", "Remove it from the folder"),
    kind(
        0,
        b"-----BEGIN PGP MESSAGE",
        "data encrypted or signed with PGP",
        DECRYPT_GPG,
    ),
    kind(
        0,
        b"-----BEGIN PGP",
        "a signature or key of PGP",
        "Remove it from the folder",
    ),
    kind(0, b"\x8c\x0d\x04", "data encrypted with PGP", DECRYPT_GPG),
    kind(
        0,
        b"\xa3\x01",
        "data signed with PGP, or compressed by it",
        DECRYPT_GPG,
    ),
    kind(
        0,
        b"\xa3\x02",
        "data signed with PGP, or compressed by it",
        DECRYPT_GPG,
    ),
    kind(0, b"age-encryption.org/", "data encrypted with age", DECRYPT_AGE),
    kind(0, b"-----BEGIN AGE", "data encrypted with age", DECRYPT_AGE),
    kind(
        0,
        b"Salted__",
        "data encrypted with OpenSSL",
        "Decrypt it with `openssl enc -d` and the cipher and options that encrypted it",
    ),
    kind(
        0,
        b"-----BEGIN ",
        "a certificate or key (PEM)",
        "Remove it from the folder",
    ),
    kind(0, b"#!", "a script", "Remove it from the folder"),
    kind(
        0,
        b"version https://git-lfs",
        "a pointer of Git LFS, not the file itself",
        "Fetch the file with `git lfs pull`",
    ),
    kind(
        0,
        b"SQLite format 3\0",
        "a database of SQLite",
        "Remove it from the folder",
    ),
];

/// Names the format that begins with these bytes, to follow "this is", and adds the remedy.
pub(crate) fn named(start: &[u8]) -> Option<String> {
    let of = |kind: &&Kind| {
        start
            .get(kind.at..)
            .is_some_and(|rest| rest.starts_with(kind.magic))
    };
    if let Some(Kind { what, remedy, .. }) = KINDS.iter().find(of) {
        return Some(format!("{what}. {remedy}"));
    }
    if is_lzma(start) {
        return Some(
            "lzma data, the format before xz. Decompress it with `xz -dc FILE > images.tar`".to_owned(),
        );
    }
    if matches!(start, [0x84, _, 3, ..] | [0x85, _, _, 3, ..]) {
        return Some(format!("data encrypted with PGP. {DECRYPT_GPG}"));
    }
    if let Some(text) = utf_16(start) {
        let kind = as_text(&text).unwrap_or_else(|| AGAIN.to_owned());
        return Some(format!("text in UTF-16, as Windows writes it: {kind}"));
    }
    as_text(start).or_else(|| in_the_middle(start))
}

/// Returns the ASCII characters of text that begins with a byte order mark of UTF-16.
fn utf_16(start: &[u8]) -> Option<Vec<u8>> {
    let (rest, low) = match start {
        [0xff, 0xfe, rest @ ..] => (rest, 0),
        [0xfe, 0xff, rest @ ..] => (rest, 1),
        _ => return None,
    };
    Some(rest.chunks_exact(2).map(|pair| pair[low]).collect())
}

/// The remedy if a download left another document.
const AGAIN: &str =
    "The download failed: fetch the file again with `curl -fL -o FILE URL`, which reports errors";

/// Returns true for the header of an .lzma file, which has no magic number. The header has
/// properties, a dictionary and a size (LZMA SDK, lzma-specification). The dictionary is a power of
/// two, or one and a half times that. The size is unknown or credible.
fn is_lzma(start: &[u8]) -> bool {
    let Some((header, _)) = start.split_first_chunk::<13>() else {
        return false;
    };
    let number = |bytes: &[u8]| {
        bytes
            .iter()
            .rev()
            .fold(0_u64, |all, byte| all << 8 | u64::from(*byte))
    };
    let dictionary = number(&header[1..5]);
    let size = number(&header[5..]);
    let is_usual =
        dictionary.is_power_of_two() || (dictionary / 3).is_power_of_two() && dictionary.is_multiple_of(3);
    // lc + 9 * (lp + 5 * pb) with lc = 3, lp = 0, pb = 2, which every writer uses.
    header[0] == 0x5d && dictionary >= 4096 && is_usual && (size == u64::MAX || size < 1 << 48)
}

/// Names text of the kinds that failed downloads and registries leave.
fn as_text(start: &[u8]) -> Option<String> {
    let text = start
        .strip_prefix(b"\xef\xbb\xbf")
        .unwrap_or(start)
        .trim_ascii_start();
    let begins = |word: &str| {
        text.get(..word.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(word.as_bytes()))
    };
    let again = AGAIN;
    let html = [
        "<!doctype html",
        "<html",
        "<head",
        "<body",
        "<title",
        "<script",
        "<!--",
    ];
    if html.into_iter().any(begins) {
        return Some(format!("a web page (HTML). {again}"));
    }
    if begins("<?xml") || begins("<Error>") {
        return Some(format!("an XML document. {again}"));
    }
    if begins("HTTP/1.") || begins("HTTP/2") {
        return Some(format!("the answer of a web server with its headers. {again}"));
    }
    let end = start.len().min(512);
    if start[..end].contains(&0) {
        return None;
    }
    if begins("{") || begins("[") {
        let has = |word: &[u8]| start[..end].windows(word.len()).any(|part| part == word);
        return Some(if has(b"\"errors\"") && has(b"\"code\"") {
            format!("the error of a registry (JSON). {again}")
        } else {
            format!("a JSON document and not an archive, perhaps the manifest of an image. {SAVE}")
        });
    }
    None
}

/// Returns words to add for plain text. They do not repeat the text: the entry of the folder may be
/// a link to a file that readers of the log must not see.
pub(crate) fn but_text(start: &[u8]) -> Option<&'static str> {
    let seen = &start[..start.len().min(512)];
    let is_text = |byte: &u8| matches!(byte, b'\t' | b'\n' | b'\r' | b' '..=b'~');
    (!seen.trim_ascii().is_empty() && seen.iter().all(is_text)).then_some(
        " but text. If this was a download, fetch it again with `curl -fL -o FILE URL`, which reports errors",
    )
}

/// Names a later piece of a split tar. It contains headers, but none at its beginning. Pieces are
/// nearly always cut at whole blocks.
fn in_the_middle(start: &[u8]) -> Option<String> {
    let mut blocks = start
        .chunks_exact(usize::try_from(tar::BLOCK).expect("a block fits"))
        .skip(1);
    blocks
        .any(tar::is_header)
        .then(|| format!("the middle of a tar archive, one piece of several: {JOIN}"))
}

/// The remedy for pieces.
pub(crate) const JOIN: &str = "put all pieces together in their order with `cat PIECE... > images.tar`";

/// Endings of whole files, after which split(1) and similar programs put the number of a piece.
const ENDINGS: [&str; 12] = [
    "tar", "tgz", "tzst", "txz", "gz", "zst", "xz", "lz4", "bz2", "zip", "7z", "oci",
];

/// Returns true if the name of a file is that of one piece of several: `images.tar.001`,
/// `images.tar.gz.aa`, `images.tar.part2`, `images.tar-00`, and split's own `xaa`.
pub(crate) fn is_piece(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let is_number =
        |text: &str| (1..=4).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    // As split(1) counts: the first of three letters is an a for the first 676 pieces.
    let is_letters = |text: &str| {
        matches!(text.as_bytes(), [b'a'..=b'f', _] | [b'a', b'a'..=b'f', _])
            && text.bytes().all(|byte| byte.is_ascii_lowercase())
            && !ENDINGS.contains(&text)
            && text != "br"
    };
    let of_bundle = |whole: &str| {
        ENDINGS
            .iter()
            .any(|ending| whole.strip_suffix(ending).is_some_and(|rest| rest.ends_with('.')))
    };
    // `split images.tar.gz images.tar.gz` puts nothing between.
    let cut = name.len().saturating_sub(2);
    if name.is_char_boundary(cut) && is_letters(&name[cut..]) && of_bundle(&name[..cut]) {
        return true;
    }
    if name.len() == 3 && name.strip_prefix('x').is_some_and(is_letters) {
        return true;
    }
    let Some((whole, piece)) = name.rsplit_once(['.', '-', '_']) else {
        return false;
    };
    let piece = piece.strip_prefix("part").unwrap_or(piece);
    let whole = [".part", "-part", "_part"]
        .iter()
        .find_map(|word| whole.strip_suffix(word))
        .unwrap_or(whole);
    of_bundle(whole) && (is_number(piece) || is_letters(piece))
}

/// An entry of an archive that shows the kind of the archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Telltale {
    /// Another archive: the bundle was packed a second time.
    Archive,
    /// The first file of a Helm chart.
    Chart,
    /// A root file system in a folder.
    RootInFolder,
}

/// Returns the kind of archive that an entry of this name shows, if any.
pub(crate) fn telltale(name: &[u8]) -> Option<Telltale> {
    const ARCHIVES: [&[u8]; 7] = [
        b".tar",
        b".tgz",
        b".tar.gz",
        b".tar.zst",
        b".tar.xz",
        b".tar.bz2",
        b".oci",
    ];
    // The layer of an old Docker archive shows nothing by itself.
    if ARCHIVES.iter().any(|ending| name.ends_with(ending)) && !name.ends_with(b"layer.tar") {
        return Some(Telltale::Archive);
    }
    let parts: Vec<&[u8]> = name.split(|byte| *byte == b'/').collect();
    match parts.as_slice() {
        [_, b"Chart.yaml"] => Some(Telltale::Chart),
        [_, b"etc", b"passwd" | b"os-release"] | [_, b"bin", b"sh"] => Some(Telltale::RootInFolder),
        _ => None,
    }
}

impl Telltale {
    /// Returns the reason why an archive with an entry of this name is not a bundle.
    pub(crate) fn reason(self, name: &str) -> String {
        match self {
            Self::Archive => format!(
                "it is an archive with other archives in it ({name}): take them out with `tar -xf FILE` and copy each to the images folder"
            ),
            Self::Chart => format!(
                "it is a Helm chart ({name}), which has no images. List the images it needs with `helm template FILE | airgapd \
                 list-images --no-k0s --manifests -`, and bundle those with `airgapd bundle-artifacts`"
            ),
            Self::RootInFolder => format!("{ROOT_FILE_SYSTEM} (here packed with its folder: {name})"),
        }
    }
}

/// Files of a root file system. Every root file system has some of them.
pub(crate) const ROOT_FILES: [&str; 8] = [
    "etc/passwd",
    "etc/os-release",
    "usr/lib/os-release",
    "etc/hostname",
    "etc/resolv.conf",
    "bin/sh",
    "bin/busybox",
    "usr/bin/env",
];

/// The description of a file that `docker export` made, and the remedy.
pub(crate) const ROOT_FILE_SYSTEM: &str = "it is a root file system, as `docker export` makes it, without name, config and \
                                           layers. Save the image instead with `docker save -o images.tar NAME`";

/// The description of skopeo's `dir:` form, and the remedy.
pub(crate) const DIR_FORM: &str = "it is skopeo's dir: form, which keeps no names. Make a bundle of the original folder with \
                                   `skopeo copy dir:FOLDER oci-archive:images.tar:NAME`";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_bring_instead_of_a_bundle_is_named_with_what_helps() {
        let at = |offset: usize, magic: &[u8]| {
            let mut bytes = vec![0; PEEK];
            bytes[offset..offset + magic.len()].copy_from_slice(magic);
            bytes
        };
        let utf_16 = |text: &str| {
            let units = std::iter::once(0xfeff).chain(text.encode_utf16());
            units.flat_map(u16::to_le_bytes).collect::<Vec<_>>()
        };
        let rows: [(Vec<u8>, &str, &str); 36] = [
            (b"PK\x03\x04\x14\0".to_vec(), "zip archive", "unzip"),
            (
                b"\x5d\0\0\x80\0\xff\xff\xff\xff\xff\xff\xff\xff\0\x37".to_vec(),
                "lzma",
                "xz -dc",
            ),
            (b"\x02\x21\x4c\x18\0".to_vec(), "legacy lz4", "lz4 -dc"),
            (at(0x202, b"HdrS"), "kernel image", "copy the bundle"),
            (at(0x38, b"ARM\x64"), "kernel image", "copy the bundle"),
            (at(0x8001, b"CD001"), "ISO image", "mount -o loop"),
            (at(0x1fe, b"\x55\xaa"), "bootable disk", "copy the bundle"),
            (b"\x7fELF\x02".to_vec(), "ELF", "copy the bundle"),
            (
                b"\xef\xbb\xbf\r\n<!DOCTYPE html><p>404".to_vec(),
                "web page (HTML)",
                "curl -fL",
            ),
            (b"<HTML>".to_vec(), "web page (HTML)", "curl -fL"),
            (b"<?xml version='1.0'?><Error>".to_vec(), "XML", "curl -fL"),
            (b"{\"schemaVersion\": 2}".to_vec(), "JSON", "docker save"),
            (
                b"version https://git-lfs.github.com/spec/v1\n".to_vec(),
                "Git LFS",
                "git lfs pull",
            ),
            (b"#!/bin/sh\nexit 1\n".to_vec(), "script", "Remove it"),
            (
                b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1".to_vec(),
                "Thumbs.db",
                "Remove it",
            ),
            (b"7z\xbc\xaf\x27\x1c".to_vec(), "7z archive", "7z x"),
            (b"Rar!\x1a\x07\x01\0".to_vec(), "RAR archive", "unrar x"),
            (
                b"!<arch>\ndebian-binary".to_vec(),
                "Debian package",
                "copy the bundle",
            ),
            (b"\xed\xab\xee\xdb\x03".to_vec(), "RPM package", "copy the bundle"),
            (b"QFI\xfb\0\0\0\x03".to_vec(), "qcow2", "copy the bundle"),
            (b"vhdxfile".to_vec(), "VHDX", "copy the bundle"),
            (b"LUKS\xba\xbe\0\x02".to_vec(), "LUKS", "copy the bundle"),
            (b"hsqs\x01".to_vec(), "squashfs", "docker save"),
            (at(0x400, b"\xe2\xe1\xf5\xe0"), "erofs", "docker save"),
            (b"<!-- a portal --><html>".to_vec(), "web page (HTML)", "curl -fL"),
            (b"<Error><Code>NoSuchKey</Code>".to_vec(), "XML", "curl -fL"),
            (
                b"{\"errors\":[{\"code\":\"MANIFEST_UNKNOWN\"}]}".to_vec(),
                "error of a registry",
                "curl -fL",
            ),
            (utf_16("Access denied\r\n"), "UTF-16", "curl -fL"),
            (
                utf_16("<!DOCTYPE html>"),
                "UTF-16, as Windows writes it: a web page",
                "curl -fL",
            ),
            (
                b"age-encryption.org/v1\n-> X25519".to_vec(),
                "encrypted with age",
                "age -d",
            ),
            (
                b"-----BEGIN AGE ENCRYPTED FILE-----".to_vec(),
                "encrypted with age",
                "age -d",
            ),
            (
                b"-----BEGIN PGP MESSAGE-----".to_vec(),
                "with PGP",
                "gpg -o images.tar -d",
            ),
            (
                b"\x8c\x0d\x04\x09\x03\x08".to_vec(),
                "encrypted with PGP",
                "gpg -o images.tar -d",
            ),
            (
                b"\x85\x01\x0c\x03".to_vec(),
                "encrypted with PGP",
                "gpg -o images.tar -d",
            ),
            (b"Salted__12345678".to_vec(), "OpenSSL", "openssl enc -d"),
            (
                b"-----BEGIN CERTIFICATE-----".to_vec(),
                "certificate",
                "Remove it",
            ),
        ];
        for (bytes, what, remedy) in rows {
            let named = named(&bytes).unwrap_or_default();
            assert!(named.contains(what) && named.contains(remedy), "{what}: {named}");
        }
        for other in [
            &b"remember the milk\n"[..],
            b"",
            &[0; 4096],
            b"{\0",
            &[0xff; 4096],
        ] {
            assert_eq!(named(other), None, "{other:?}");
        }
    }

    #[test]
    fn text_is_told_as_such_and_its_words_are_not_repeated() {
        for text in [
            &b"404 page not found\n"[..],
            b"404: Not Found",
            b"root:x:0:0",
            &[b'x'; 600],
        ] {
            assert!(
                but_text(text).is_some_and(|said| said.contains("curl -fL")),
                "{text:?}"
            );
        }
        for other in [&b""[..], b"\n", b"a\0b", b"\x1b[2J", b"\xff\xfe"] {
            assert_eq!(but_text(other), None, "{other:?}");
        }
    }

    #[test]
    fn pieces_are_told_by_their_names_and_whole_bundles_are_none() {
        for piece in [
            "images.tar.001",
            "images.tar.gz.aa",
            "images.tar.zst.ab",
            "images.tar.part2",
            "images.tar.part-aa",
            "images.tar_part_01",
            "images.tar.gzab",
            "images.taraa",
            "images.tar.partaa",
            "images.tar-00",
            "images.tar_01",
            "xaa",
            "images.zip.001",
        ] {
            assert!(is_piece(Path::new(piece)), "{piece}");
        }
        for whole in [
            "images.tar",
            "images.tar.gz",
            "images.tar.bz2",
            "bundle-1.31.14",
            "images-001",
            "images-001.tar",
            "k0s-airgap-bundle-v1.31.14+k0s.0-amd64",
            "x.tar.txt",
            "xx",
            "xaa.tar",
            "images.tar.br",
            "images.tar.bak",
            "images.tar.bin",
            "images.tar.def",
        ] {
            assert!(!is_piece(Path::new(whole)), "{whole}");
        }
    }
}
