//! Lists of catalogs and lists of files. The first line tells them apart, so a digest of one kind
//! is never taken for the other.

use oci_spec::image::Digest;

use crate::{Hash, LARGEST_LIST, hash_in, hash_of};

/// First line of a list of catalogs.
pub const HEADER: &str = "airgapd-catalogs 1";

/// Start of [`HEADER`] in every version.
const HEADER_NAME: &[u8] = b"airgapd-catalogs";

/// The reason why a list cannot be used. Each message ends with the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListProblem {
    /// The list is larger than [`LARGEST_LIST`].
    #[error("it is larger than {LARGEST_LIST} bytes: split it")]
    TooLarge,
    /// The list has no digest.
    #[error("it has no digest: make the list again")]
    Empty,
    /// The first line names a version that this program does not know.
    #[error("its first line is not `{HEADER}`, the version that this program knows")]
    Version,
    /// A line of a list of catalogs is no digest.
    #[error("its line {0} is no digest: a list of catalogs has lines `sha256:` and 64 digits")]
    NoCatalog(usize),
    /// A line of a list of files has the digest of a catalog.
    #[error("its line {0} is no sum of a file: a list of catalogs begins with `{HEADER}`")]
    NoFile(usize),
    /// A line of a list of revoked digests is no digest.
    #[error("its line {0} is no digest: write `sha256:` and 64 digits")]
    NoDigest(usize),
    /// The file cannot be read, in words of its reader.
    #[error("{0}")]
    Unreadable(String),
}

/// A set of sha256 digests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hashes(Vec<Hash>);

impl Hashes {
    fn new(mut hashes: Vec<Hash>) -> Self {
        hashes.sort_unstable();
        hashes.dedup();
        Self(hashes)
    }

    /// Returns true if the set has the digest.
    #[must_use]
    pub fn contains(&self, digest: &Digest) -> bool {
        hash_of(digest).is_some_and(|hash| self.0.binary_search(&hash).is_ok())
    }

    /// Returns the number of digests.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns true if the set has no digest.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The digests of a list. Names beside them are remarks: only digests count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum List {
    /// Digests of catalogs, below [`HEADER`].
    Catalogs(Hashes),
    /// Digests of files, in the forms of sha256sum.
    Files(Hashes),
}

impl List {
    /// Reads the text of a list.
    ///
    /// Each line of a list of catalogs must be a digest. A list of files may have other lines,
    /// since releases also list sums of other algorithms.
    ///
    /// # Errors
    ///
    /// Returns why the list cannot be used.
    pub fn parse(text: &[u8]) -> Result<Self, ListProblem> {
        let (form, lines) = open(text)?;
        let mut hashes = Vec::new();
        for (number, line) in lines {
            match (form, line_of(line)) {
                (Kind::Catalogs, Line::Catalog(hash)) | (Kind::Files, Line::File(hash)) => hashes.push(hash),
                (Kind::Catalogs, _) => return Err(ListProblem::NoCatalog(number)),
                (Kind::Files, Line::Catalog(_)) => return Err(ListProblem::NoFile(number)),
                (Kind::Files, Line::Other) => {}
            }
        }
        if hashes.is_empty() {
            return Err(ListProblem::Empty);
        }
        let hashes = Hashes::new(hashes);
        Ok(match form {
            Kind::Catalogs => Self::Catalogs(hashes),
            Kind::Files => Self::Files(hashes),
        })
    }
}

/// Reads a list of revoked digests: those of catalogs and those of files. Without [`HEADER`] each
/// line says which of them it is. Each line must be a digest, since an overlooked one lets a
/// bundle in.
pub(crate) fn revoked(text: &[u8]) -> Result<(Hashes, Hashes), ListProblem> {
    let (form, lines) = open(text)?;
    let (mut catalogs, mut files) = (Vec::new(), Vec::new());
    for (number, line) in lines {
        match (form, line_of(line)) {
            (_, Line::Catalog(hash)) => catalogs.push(hash),
            (Kind::Files, Line::File(hash)) => files.push(hash),
            (Kind::Catalogs, _) => return Err(ListProblem::NoCatalog(number)),
            (Kind::Files, Line::Other) => return Err(ListProblem::NoDigest(number)),
        }
    }
    Ok((Hashes::new(catalogs), Hashes::new(files)))
}

#[derive(Clone, Copy)]
enum Kind {
    Catalogs,
    Files,
}

/// Checks the size and the first line. Returns the kind of the list and its further lines with
/// their numbers, except blank lines and comments.
fn open(text: &[u8]) -> Result<(Kind, impl Iterator<Item = (usize, &[u8])>), ListProblem> {
    if text.len() as u64 > LARGEST_LIST {
        return Err(ListProblem::TooLarge);
    }
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let mut lines = text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end);
    let first = lines.clone().next().unwrap_or_default();
    let kind = match first {
        header if header == HEADER.as_bytes() => Kind::Catalogs,
        other if other.starts_with(HEADER_NAME) => return Err(ListProblem::Version),
        _ => Kind::Files,
    };
    if matches!(kind, Kind::Catalogs) {
        lines.next();
    }
    let start = if matches!(kind, Kind::Catalogs) { 2 } else { 1 };
    let lines = lines.enumerate().map(move |(at, line)| (at + start, line));
    Ok((
        kind,
        lines.filter(|(_, line)| !line.is_empty() && !line.starts_with(b"#")),
    ))
}

/// The digest of a line.
enum Line {
    /// `sha256:<hex>`, in lower case as digests are written.
    Catalog(Hash),
    /// `<hex>  name`, `<hex> *name`, `SHA256 (name) = <hex>`, or the digits alone.
    File(Hash),
    Other,
}

fn line_of(line: &[u8]) -> Line {
    let read = |hex: &[u8], kind: fn(Hash) -> Line| {
        let (hex, rest) = hex.split_at_checked(64)?;
        let ends = rest.first().is_none_or(|byte| matches!(byte, b' ' | b'\t'));
        hash_in(hex).filter(|_| ends).map(kind)
    };
    if let Some(digest) = line.strip_prefix(b"sha256:") {
        return match digest.iter().take(64).any(u8::is_ascii_uppercase) {
            true => Line::Other,
            false => read(digest, Line::Catalog).unwrap_or(Line::Other),
        };
    }
    if let Some(rest) = line.strip_prefix(b"SHA256 (") {
        let close = rest.windows(4).rposition(|part| part == b") = ");
        let hash = close.and_then(|close| hash_in(&rest[close + 4..]));
        return hash.map_or(Line::Other, Line::File);
    }
    // sha256sum begins a line with a backslash if the name has escapes.
    let line = line.strip_prefix(b"\\").unwrap_or(line);
    read(line, Line::File).unwrap_or(Line::Other)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    fn hashes(hex: &[&str]) -> Hashes {
        Hashes::new(hex.iter().map(|hex| hash_in(hex.as_bytes()).unwrap()).collect())
    }

    #[test]
    fn each_form_of_a_list_has_its_kind_and_its_digests() {
        let upper = A.to_uppercase();
        let (catalogs, files) = (List::Catalogs(hashes(&[A, B])), List::Files(hashes(&[A, B])));
        let table = [
            (format!("{HEADER}\nsha256:{A}\nsha256:{B}\n"), &catalogs),
            (
                format!("{HEADER}\r\nsha256:{B}  b.tar\r\nsha256:{A}\tx"),
                &catalogs,
            ),
            (
                format!("\u{feff}{HEADER}\n\n# x\nsha256:{A} a b\nsha256:{B}\nsha256:{A}"),
                &catalogs,
            ),
            (format!("{A}  a.tar\n{B} *b.tar\n"), &files),
            (format!("{upper}  a.tar\n\\{B}  b\\n.tar\n"), &files),
            (format!("SHA256 (a) = {A}\nSHA256 (b) = c) = {B}\n"), &files),
            (
                format!("\n# made by hand\n{A}\nSHA512 (a) = {B}{B}\n{B} b\n"),
                &files,
            ),
            (
                format!("-----BEGIN PGP SIGNED MESSAGE-----\n{A}  {HEADER}\n{B}\tb"),
                &files,
            ),
        ];
        for (text, list) in table {
            assert_eq!(List::parse(text.as_bytes()).as_ref(), Ok(list), "{text:?}");
        }
    }

    #[test]
    fn a_list_of_one_kind_with_a_digest_of_the_other_is_refused() {
        let table = [
            (String::new(), ListProblem::Empty),
            ("\n# nothing\n".to_owned(), ListProblem::Empty),
            (format!("{HEADER}\n"), ListProblem::Empty),
            (format!("{HEADER}0\nsha256:{A}\n"), ListProblem::Version),
            (format!("airgapd-catalogs 2\nsha256:{A}\n"), ListProblem::Version),
            (
                format!("{HEADER}\nsha256:{A}\n{B}  b.tar\n"),
                ListProblem::NoCatalog(3),
            ),
            (format!("{HEADER}\nSHA256 (a) = {A}\n"), ListProblem::NoCatalog(2)),
            (
                format!("{HEADER}\n\nsha256:{}\n", &A[1..]),
                ListProblem::NoCatalog(3),
            ),
            (format!("{HEADER}\nsha256:{A}{B}\n"), ListProblem::NoCatalog(2)),
            (
                format!("{HEADER}\nsha256:{}\n", A.to_uppercase()),
                ListProblem::NoCatalog(2),
            ),
            (format!("{HEADER}\nsha512:{A}{B}\n"), ListProblem::NoCatalog(2)),
            (
                format!(" sha256:{A}\n{A}  a.tar\nsha256:{B}\n"),
                ListProblem::NoFile(3),
            ),
            (format!("\n{HEADER}\nsha256:{A}\n"), ListProblem::NoFile(3)),
            (format!("{}  a.tar\n", &A[1..]), ListProblem::Empty),
            (format!("{A}{B}  a.tar\nSHA256 (a) = {A}0\n"), ListProblem::Empty),
        ];
        for (text, problem) in table {
            assert_eq!(List::parse(text.as_bytes()), Err(problem), "{text:?}");
        }
    }

    #[test]
    fn a_revoked_digest_is_of_the_kind_that_its_line_says() {
        let none = hashes(&[]);
        let table = [
            (
                format!("sha256:{A}\n{B}  b.tar\n"),
                Ok((hashes(&[A]), hashes(&[B]))),
            ),
            (
                format!("SHA256 (b.tar) = {B}\n"),
                Ok((none.clone(), hashes(&[B]))),
            ),
            (
                format!("{HEADER}\nsha256:{A}\n"),
                Ok((hashes(&[A]), none.clone())),
            ),
            ("# none yet\n".to_owned(), Ok((none.clone(), none))),
            (
                format!("sha256:{A}\nsha256:{}\n", &B[1..]),
                Err(ListProblem::NoDigest(2)),
            ),
            ("shop.tar\n".to_owned(), Err(ListProblem::NoDigest(1))),
            (format!("{HEADER}\n{B}  b.tar\n"), Err(ListProblem::NoCatalog(2))),
            ("airgapd-catalogs 2\n".to_owned(), Err(ListProblem::Version)),
        ];
        for (text, found) in table {
            assert_eq!(revoked(text.as_bytes()), found, "{text:?}");
        }
    }

    #[test]
    fn only_a_sha256_is_on_a_list() {
        let list = hashes(&[A]);
        let digest = |text: String| text.parse::<Digest>().unwrap();
        assert!(list.contains(&digest(format!("sha256:{A}"))));
        assert!(!list.contains(&digest(format!("sha256:{B}"))));
        assert!(!list.contains(&digest(format!("sha512:{A}{A}"))));
    }

    #[test]
    fn a_list_as_large_as_allowed_is_read_and_a_larger_one_is_not() {
        let line = format!("sha256:{A}\n");
        let mut text = format!("{HEADER}\n").into_bytes();
        let largest = usize::try_from(LARGEST_LIST).unwrap();
        while text.len() + line.len() <= largest {
            text.extend_from_slice(line.as_bytes());
        }
        text.resize(largest, b'\n');
        assert_eq!(List::parse(&text), Ok(List::Catalogs(hashes(&[A]))));
        text.push(b'\n');
        assert_eq!(List::parse(&text), Err(ListProblem::TooLarge));
        assert_eq!(revoked(&text), Err(ListProblem::TooLarge));
    }

    #[test]
    fn any_bytes_are_a_list_or_a_problem() {
        use proptest::prelude::*;
        let piece = prop_oneof![
            Just(HEADER.as_bytes().to_vec()),
            Just(b"\n".to_vec()),
            Just(b"sha256:".to_vec()),
            Just(b"SHA256 (".to_vec()),
            Just(b") = ".to_vec()),
            Just(A.as_bytes().to_vec()),
            proptest::collection::vec(any::<u8>(), 0..80),
        ];
        proptest!(|(pieces in proptest::collection::vec(piece, 0..12))| {
            let text = pieces.concat();
            let digits = text.iter().filter(|byte| byte.is_ascii_hexdigit()).count();
            if let Ok(List::Catalogs(found) | List::Files(found)) = List::parse(&text) {
                prop_assert!(!found.is_empty() && found.len() * 64 <= digits);
            }
            let _ = revoked(&text);
        });
    }
}
