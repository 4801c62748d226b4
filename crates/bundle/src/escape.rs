//! Foreign text made fit to print: what an archive says must not drive a terminal or forge a log line.

use std::fmt::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// Longest text that is printed whole, in bytes; a path on Linux is at most 4096 anyway.
const LONGEST: usize = 512;

/// Displays bytes with control characters and invalid UTF-8 escaped, shortened when very long.
pub(crate) struct Escaped<'a>(&'a [u8]);

/// Escapes text.
pub(crate) fn text(text: &str) -> Escaped<'_> {
    Escaped(text.as_bytes())
}

/// Escapes bytes, usually the name of an entry.
pub(crate) fn bytes(bytes: &[u8]) -> Escaped<'_> {
    Escaped(bytes)
}

/// Escapes a path.
pub(crate) fn path(path: &Path) -> Escaped<'_> {
    Escaped(path.as_os_str().as_bytes())
}

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.0[..self.0.len().min(LONGEST)];
        for chunk in shown.utf8_chunks() {
            for c in chunk.valid().chars() {
                write_char(f, c)?;
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        if shown.len() < self.0.len() {
            write!(f, "... ({} bytes)", self.0.len())?;
        }
        Ok(())
    }
}

fn write_char(f: &mut fmt::Formatter<'_>, c: char) -> fmt::Result {
    // Bidirectional overrides and their like are no control characters, but `escape_debug` knows that
    // they do not print. Quotes, which it escapes as well, are harmless here.
    match c {
        '\'' | '"' => f.write_char(c),
        _ => write!(f, "{}", c.escape_debug()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_drives_a_terminal_is_printed() {
        let rows: [(&[u8], &str); 7] = [
            (b"blobs/sha256/ab", "blobs/sha256/ab"),
            (b"a\x1b[2Jb\n", "a\\u{1b}[2Jb\\n"),
            (b"\xff\xfe.tar", "\\xff\\xfe.tar"),
            (b"it's \"x\"", "it's \"x\""),
            ("\u{202e}rat".as_bytes(), "\\u{202e}rat"),
            ("caf\u{e9}".as_bytes(), "caf\u{e9}"),
            (b"back\\slash", "back\\\\slash"),
        ];
        for (given, printed) in rows {
            assert_eq!(bytes(given).to_string(), printed);
        }
    }

    #[test]
    fn a_very_long_name_is_shortened() {
        let long = vec![b'a'; 60_000];
        let printed = bytes(&long).to_string();
        assert!(printed.len() < 600, "{}", printed.len());
        assert!(printed.ends_with("... (60000 bytes)"), "{printed}");
    }
}
