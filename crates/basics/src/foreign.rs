//! Text from bundles and other programs, made safe to print: a name in a bundle must not drive a
//! terminal or forge a log line.

use std::ffi::OsStr;
use std::fmt::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Text that a bundle, a file name or another program chose.
///
/// Foreign text cannot be printed raw. `{}` escapes every character that ends a line, drives a
/// terminal, changes the direction of writing or is invisible. `{:?}` also puts the text in quotes.
/// A precision (`{:.200}`) limits the number of characters. JSON documents carry the text
/// unchanged, since JSON has escapes of its own.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Foreign<T = String>(T);

impl<T: AsRef<str>> Foreign<T> {
    /// Marks text as foreign.
    pub fn new(text: T) -> Self {
        Self(text)
    }

    /// Returns the text unchanged, to compare, to look up and to send to other programs.
    #[must_use]
    pub fn raw(&self) -> &str {
        self.0.as_ref()
    }
}

impl Foreign<String> {
    /// Marks a file name as foreign. Bytes that are not UTF-8 are written as `\xff`.
    #[must_use]
    pub fn file_name(name: &OsStr) -> Self {
        let mut text = String::new();
        for chunk in name.as_bytes().utf8_chunks() {
            text.push_str(chunk.valid());
            for byte in chunk.invalid() {
                text.push_str(&format!("\\x{byte:02x}"));
            }
        }
        Self(text)
    }
}

/// Returns true if a character is printed as itself.
#[must_use]
pub fn is_visible(c: char) -> bool {
    // Bidirectional overrides and similar characters are not control characters, but `escape_debug`
    // knows that they do not print. It also escapes quotes and backslashes, which are harmless.
    !c.is_control() && c.escape_debug().nth(1) != Some('u')
}

impl<T: AsRef<str>> fmt::Display for Foreign<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        shortened(f, self.raw(), |f, c| match is_visible(c) {
            true => f.write_char(c),
            false => write!(f, "{}", c.escape_debug()),
        })
    }
}

impl<T: AsRef<str>> fmt::Debug for Foreign<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        shortened(f, self.raw(), |f, c| write!(f, "{}", c.escape_debug()))?;
        f.write_char('"')
    }
}

/// Writes as many characters as the precision allows.
fn shortened(
    f: &mut fmt::Formatter<'_>,
    text: &str,
    write: impl Fn(&mut fmt::Formatter<'_>, char) -> fmt::Result,
) -> fmt::Result {
    let mut characters = text.chars();
    let most = f.precision().unwrap_or(usize::MAX);
    for c in characters.by_ref().take(most) {
        write(f, c)?;
    }
    match characters.next() {
        Some(_) => f.write_str("..."),
        None => Ok(()),
    }
}

/// Returns text in quotes, escaped and at most 200 characters long, for messages and terminals.
#[must_use]
pub fn quoted(text: &str) -> String {
    format!("{:.200?}", Foreign::new(text))
}

/// Returns the same without quotes.
#[must_use]
pub fn shown(text: &str) -> String {
    format!("{:.200}", Foreign::new(text))
}

/// Longest text that is printed whole, in bytes. Paths on Linux may have up to 4096.
const LONGEST: usize = 512;

/// Bytes that print with control characters and invalid UTF-8 escaped, and shortened if very long.
pub struct Escaped<'a>(&'a [u8]);

/// Escapes text.
#[must_use]
pub fn text(text: &str) -> Escaped<'_> {
    Escaped(text.as_bytes())
}

/// Escapes bytes, usually the name of an entry.
#[must_use]
pub fn bytes(bytes: &[u8]) -> Escaped<'_> {
    Escaped(bytes)
}

/// Escapes a path.
#[must_use]
pub fn path(path: &Path) -> Escaped<'_> {
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

/// Returns the first 512 bytes of a reason, which is the length that is kept.
///
/// Errors of parsers quote the text that they reject, which may be a whole document. Each image and
/// each layer that failed repeats the reason.
pub fn reason(reason: impl fmt::Display) -> String {
    struct Shortened(String);

    impl fmt::Write for Shortened {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            let room = LONGEST.saturating_sub(self.0.len());
            let end = text.floor_char_boundary(room);
            self.0.push_str(&text[..end]);
            if end < text.len() { Err(fmt::Error) } else { Ok(()) }
        }
    }

    let mut shortened = Shortened(String::new());
    if write!(shortened, "{reason}").is_err() {
        shortened.0.push_str("...");
    }
    shortened.0
}

fn write_char(f: &mut fmt::Formatter<'_>, c: char) -> fmt::Result {
    // Bidirectional overrides and similar characters are not control characters, but `escape_debug`
    // knows that they do not print. It also escapes quotes, which are harmless here.
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
    fn foreign_text_is_never_printed_raw() {
        let rows = [
            ("plain \"quoted\" \\ text", "plain \"quoted\" \\ text"),
            ("gr\u{f6}\u{df}e \u{4e2d}", "gr\u{f6}\u{df}e \u{4e2d}"),
            ("new\nline\r\t", "new\\nline\\r\\t"),
            ("a\u{1b}[31mb\u{7}", "a\\u{1b}[31mb\\u{7}"),
            ("C1: \u{9b}1m \u{85}", "C1: \\u{9b}1m \\u{85}"),
            ("\u{202e}rat.\u{2066}", "\\u{202e}rat.\\u{2066}"),
            ("a\u{2028}b\u{200b}", "a\\u{2028}b\\u{200b}"),
        ];
        for (given, printed) in rows {
            assert_eq!(Foreign::new(given).to_string(), printed);
        }
        assert_eq!(format!("{:.3}", Foreign::new("abcd")), "abc...");
        assert_eq!(format!("{:?}", Foreign::new("a\"\n")), r#""a\"\n""#);
        let name = OsStr::from_bytes(b"\xff\n.tar");
        assert_eq!(Foreign::file_name(name).to_string(), "\\xff\\n.tar");
    }

    #[test]
    fn a_very_long_reason_is_kept_in_short() {
        assert_eq!(reason("it is not there"), "it is not there");
        let long = reason(format_args!("no {} here", "\u{4e2d}".repeat(1 << 20)));
        assert!(
            long.len() <= LONGEST + 3 && long.starts_with("no \u{4e2d}"),
            "{long}"
        );
        assert!(long.ends_with("..."), "{long}");
    }

    #[test]
    fn a_very_long_name_is_shortened() {
        let long = vec![b'a'; 60_000];
        let printed = bytes(&long).to_string();
        assert!(printed.len() < 600, "{}", printed.len());
        assert!(printed.ends_with("... (60000 bytes)"), "{printed}");
    }
}
