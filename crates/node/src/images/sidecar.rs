//! `<bundle>.sha256` beside a bundle: its content, and the check of the bundle's bytes against it.
//!
//! A checksum proves that a file arrived as it was sent, and not who sent it. Reading the sidecar
//! is pure. [`admit`](crate::admit) hashes the bundle through the same descriptor as the import, so
//! the file cannot be swapped in between.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;

use basics::Foreign;
use basics::digest;
use oci_spec::image::Digest;

use crate::images::folder::Refused;
use crate::settings::Checksums;

/// Ending that a sidecar's name adds to the name of its bundle.
const ENDING: &str = ".sha256";

/// Largest sidecar, in bytes. A list with the checksums of a whole release has a few KiB.
const LARGEST: u64 = 1 << 20;

/// Returns the name of a bundle's sidecar.
pub fn sidecar_of(bundle: &OsStr) -> OsString {
    let mut name = bundle.to_owned();
    name.push(ENDING);
    name
}

/// Reads 64 hexadecimal digits of either case as a sha256.
fn from_hex(hex: &[u8]) -> Option<Digest> {
    let hex = std::str::from_utf8(hex).ok()?.to_ascii_lowercase();
    digest::parse_sha256(&format!("sha256:{hex}")).ok()
}

/// The reason why the check of a bundle failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A sidecar is required, and there is none.
    #[error("there is no {sidecar} beside it, and `checksums: require` demands one")]
    Missing {
        /// The name that the sidecar would have.
        sidecar: String,
    },
    /// A folder has no bytes of its own to check, and a pipe has no file beside it.
    #[error("a folder or a pipe has no checksum, and `checksums: require` demands one")]
    NoFile,
    /// The sidecar has no checksum for this bundle.
    #[error("{sidecar} cannot be used: {why}")]
    Unusable {
        /// The name of the sidecar.
        sidecar: String,
        /// The reason, without the name.
        why: String,
    },
    /// The sidecar was made for other bytes than the bundle's.
    #[error(
        "its sha256 is {}, but {sidecar} says {}: copy the bundle again, and the checksum with it",
        found.digest(),
        expected.digest()
    )]
    Mismatch {
        /// The name of the sidecar.
        sidecar: String,
        /// The digest that the sidecar states.
        expected: Digest,
        /// The digest of the bundle's bytes.
        found: Digest,
    },
    /// A program wrote to the bundle meanwhile.
    #[error("it changed while its checksum was computed")]
    Changed,
    /// The bundle cannot be read.
    #[error("it cannot be read: {0}")]
    Read(#[source] io::Error),
}

/// Returns the checksum that a bundle must have, from the sidecar that was opened under its name.
///
/// # Errors
///
/// Returns [`Failure::Missing`] or [`Failure::Unusable`].
pub fn expected(
    bundle: &OsStr,
    sidecar: Result<File, Refused>,
    mode: Checksums,
) -> Result<Option<Digest>, Failure> {
    let name = Foreign::file_name(&sidecar_of(bundle)).to_string();
    let unusable = |why: String| Failure::Unusable {
        sidecar: name.clone(),
        why,
    };
    let file = match (sidecar, mode) {
        (_, Checksums::Off) => return Ok(None),
        (Ok(file), _) => file,
        (Err(Refused::Gone), Checksums::IfPresent) => return Ok(None),
        (Err(Refused::Gone), Checksums::Require) => return Err(Failure::Missing { sidecar: name }),
        (Err(refused), _) => return Err(unusable(refused.to_string())),
    };
    let mut text = Vec::new();
    match file.take(LARGEST + 1).read_to_end(&mut text) {
        Ok(_) if text.len() as u64 > LARGEST => Err(unusable(format!("it is larger than {LARGEST} bytes"))),
        Ok(_) => parse(&text, bundle).map(Some).map_err(unusable),
        Err(error) => Err(unusable(error.to_string())),
    }
}

/// Returns the checksum of a bundle from the text of a sidecar: a digest alone, or the line that
/// names the bundle.
///
/// # Errors
///
/// Returns the reason if the text has no checksum for the bundle, or several.
pub(crate) fn parse(text: &[u8], bundle: &OsStr) -> Result<Digest, String> {
    let mut found = None;
    let (mut lines, mut others) = (0, None);
    for line in text_lines(text) {
        lines += 1;
        let Some((checksum, name)) = parse_line(line) else {
            continue;
        };
        let is_ours = match &name {
            Some(name) => base_name(name) == bundle.as_bytes(),
            None => true,
        };
        if !is_ours {
            others.get_or_insert_with(|| name.unwrap_or_default());
        } else if found.is_some_and(|found| found != checksum) {
            return Err("it has two different checksums for this bundle".to_owned());
        } else {
            found = Some(checksum);
        }
    }
    match (found, others) {
        (Some(found), _) => Ok(found),
        (None, Some(other)) => Err(format!(
            "it has a checksum for {} and none for {}",
            basics::foreign::quoted(&String::from_utf8_lossy(&other)),
            basics::foreign::quoted(&bundle.to_string_lossy())
        )),
        (None, None) if lines == 0 => Err("it is empty".to_owned()),
        (None, None) => Err("there is no sha256 in it".to_owned()),
    }
}

/// Returns the lines without their ends, except blank lines and comments.
pub(crate) fn text_lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let lines = text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end);
    lines.filter(|line| !line.is_empty() && !line.starts_with(b"#"))
}

/// Parses a line: a sha256 and the name that it is for, if it has a name. It knows three forms:
/// `sha256sum`'s (`<hex>  name`, `<hex> *name`, escaped with a backslash in front), BSD's (`SHA256
/// (name) = <hex>`), and a sha256 alone.
pub(crate) fn parse_line(line: &[u8]) -> Option<(Digest, Option<Vec<u8>>)> {
    if let Some(rest) = line.strip_prefix(b"SHA256 (") {
        let close = rest.windows(4).rposition(|part| part == b") = ")?;
        return Some((from_hex(&rest[close + 4..])?, Some(rest[..close].to_vec())));
    }
    let (escaped, line) = match line.strip_prefix(b"\\") {
        Some(rest) => (true, rest),
        None => (false, line),
    };
    let line = line.strip_prefix(b"sha256:").unwrap_or(line);
    let checksum = from_hex(line.get(..64)?)?;
    match &line[64..] {
        [] => Some((checksum, None)),
        [b' ', b' ' | b'*', name @ ..] if escaped => Some((checksum, Some(unescape(name)))),
        [b' ', b' ' | b'*', name @ ..] => Some((checksum, Some(name.to_vec()))),
        // Operators type one space or a tab.
        [b' ' | b'\t', name @ ..] => Some((checksum, Some(name.trim_ascii_start().to_vec()))),
        _ => None,
    }
}

/// Resolves the escapes of sha256sum in a name: `\\`, `\n` and `\r` stand for a backslash, a line
/// feed and a carriage return.
fn unescape(name: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(name.len());
    let mut bytes = name.iter();
    while let Some(byte) = bytes.next() {
        plain.push(match byte {
            b'\\' => match bytes.next() {
                Some(b'n') => b'\n',
                Some(b'r') => b'\r',
                Some(other) => *other,
                None => b'\\',
            },
            other => *other,
        });
    }
    plain
}

/// Returns the last part of a name. Checksums are often made from a folder above: `./bundle.tar`,
/// `dist/bundle.tar`.
fn base_name(name: &[u8]) -> &[u8] {
    name.rsplit(|byte| *byte == b'/').next().unwrap_or(name)
}

/// Returns the failure of a bundle that does not have its checksum.
pub(crate) fn mismatch(bundle: &OsStr, expected: &Digest, found: &Digest) -> Failure {
    let sidecar = sidecar_of(bundle).to_string_lossy().into_owned();
    Failure::Mismatch {
        sidecar: basics::foreign::shown(&sidecar),
        expected: expected.clone(),
        found: found.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    fn parsed(text: &str) -> Result<String, String> {
        parse(text.as_bytes(), OsStr::new("b.tar")).map(|checksum| checksum.digest().to_owned())
    }

    #[test]
    fn every_usual_form_of_a_checksum_file_is_read() {
        let upper = A.to_uppercase();
        let table = [
            format!("{A}\n"),
            A.to_owned(),
            format!("{A}  b.tar\n"),
            format!("{A} *b.tar\n"),
            format!("{A} b.tar"),
            format!("{A}\tb.tar"),
            format!("{A}  ./b.tar\r\n"),
            format!("{A}  /srv/dist/b.tar\n"),
            format!("{upper}  b.tar\n"),
            format!("sha256:{A}\n"),
            format!("SHA256 (b.tar) = {A}\n"),
            format!("SHA256 (dist/b.tar) = {A}\n"),
            format!("\u{feff}{A}  b.tar\n"),
            format!("# made by hand\n\n{A}  b.tar\n"),
            format!("{B}  a.tar\n{A}  b.tar\n{B}  c.tar\n"),
            format!("SHA512 (b.tar) = {B}{B}\nSHA256 (b.tar) = {A}\n"),
            format!("{A}  b.tar\n{A}  b.tar\n"),
        ];
        for text in table {
            assert_eq!(parsed(&text), Ok(A.to_owned()), "{text:?}");
        }
    }

    #[test]
    fn odd_names_are_found_as_sha256sum_writes_them() {
        let name = OsStr::from_bytes(b"a\\b\nc\xff.tar");
        let mut line = format!("\\{A}  a\\\\b\\nc").into_bytes();
        line.extend(b"\xff.tar\n");
        assert_eq!(
            parse(&line, name).map(|found| found.digest().to_owned()),
            Ok(A.to_owned())
        );
        let spaced = format!("SHA256 (a) = b (c).tar) = {A}");
        assert!(parse(spaced.as_bytes(), OsStr::new("a) = b (c).tar")).is_ok());
    }

    #[test]
    fn a_file_that_says_nothing_or_two_things_is_refused_with_the_reason() {
        let table = [
            (String::new(), "empty"),
            ("\n\n# x\n".to_owned(), "empty"),
            (
                format!("{A}  other.tar\n"),
                "\"other.tar\" and none for \"b.tar\"",
            ),
            (format!("{A}  b.tar\n{B}  b.tar\n"), "two different"),
            ("hello".to_owned(), "no sha256"),
            (format!("{}  b.tar", &A[1..]), "no sha256"),
            (format!("{A}{A}  b.tar"), "no sha256"),
            (format!("+{}  b.tar", &A[1..]), "no sha256"),
            (format!("SHA256 (b.tar) = {}", &A[2..]), "no sha256"),
        ];
        for (text, reason) in table {
            let error = parsed(&text).unwrap_err();
            assert!(error.contains(reason), "{text:?}: {error}");
        }
    }

    #[test]
    fn any_bytes_are_read_without_a_panic() {
        use proptest::prelude::*;
        proptest!(|(bytes in proptest::collection::vec(any::<u8>(), 0..300))| {
            let _ = parse(&bytes, OsStr::new("b.tar"));
            let mut line = A.as_bytes().to_vec();
            line.extend(&bytes);
            let _ = parse_line(&line);
        });
    }
}
