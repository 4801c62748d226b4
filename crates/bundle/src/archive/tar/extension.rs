//! Extended headers of PAX and GNU, and their changes to the entry that follows.

use ::tar::Header;

use super::{EntryKind, is_old_folder, type_flag};

/// Values of extended headers for the entry that follows them.
#[derive(Default)]
pub(super) struct Extension {
    /// Offset of the first extended header. Global headers do not count, because no entry must
    /// follow them.
    pub(super) offset: Option<u64>,
    name: Option<Vec<u8>>,
    long_name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    size: Option<u64>,
    sparse: bool,
    sparse_name: Option<Vec<u8>>,
}

impl Extension {
    /// Returns the name of the entry: from an extended header, or else from its own header.
    pub(super) fn name_of(&self, header: &Header) -> Vec<u8> {
        let given = self
            .sparse_name
            .as_ref()
            .or(self.long_name.as_ref())
            .or(self.name.as_ref());
        given.cloned().unwrap_or_else(|| header.path_bytes().into_owned())
    }

    fn link_of(&self, header: &Header) -> Vec<u8> {
        let given = self.long_link.as_ref().or(self.link.as_ref());
        given
            .cloned()
            .unwrap_or_else(|| header.link_name_bytes().unwrap_or_default().into_owned())
    }

    /// Returns the kind of the entry. Returns `None` if the entry cannot belong to an image.
    pub(super) fn kind_of(&self, header: &Header, name: &[u8]) -> Option<EntryKind> {
        match type_flag(header) {
            0 if is_old_folder(name) => None,
            b'0' | 0 | b'7' if self.sparse => Some(EntryKind::Sparse),
            b'S' => Some(EntryKind::Sparse),
            b'0' | 0 | b'7' => Some(EntryKind::File),
            b'1' => Some(EntryKind::HardLink(self.link_of(header))),
            b'2' => Some(EntryKind::SymbolicLink(self.link_of(header))),
            _ => None,
        }
    }

    /// Returns the number of bytes that the entry has in the archive.
    pub(super) fn size_of(&self, ustar_size: u64) -> Result<u64, &'static str> {
        match self.size {
            // Readers that believe different sizes see different archives (CVE-2025-62518).
            Some(size) if ustar_size != 0 && ustar_size != size => {
                Err("its header and its extended header disagree about its size")
            }
            Some(size) => Ok(size),
            None => Ok(ustar_size),
        }
    }

    /// Reads the payload of an extended header of this kind.
    pub(super) fn take(&mut self, kind: u8, payload: &[u8]) -> Result<(), &'static str> {
        let text = || {
            payload
                .split(|byte| *byte == 0)
                .next()
                .unwrap_or_default()
                .to_vec()
        };
        match kind {
            b'L' => self.long_name = Some(text()),
            b'K' => self.long_link = Some(text()),
            b'g' => return check_global(payload),
            _ => {
                for record in Records(payload) {
                    self.take_record(record?)?;
                }
            }
        }
        Ok(())
    }

    fn take_record(&mut self, (key, value): (&[u8], &[u8])) -> Result<(), &'static str> {
        // An empty value removes the record (POSIX.1-2017 pax, "Extended Header").
        let given = (!value.is_empty()).then(|| value.to_vec());
        match key {
            b"path" => self.name = given,
            b"linkpath" => self.link = given,
            b"size" => {
                self.size = if value.is_empty() {
                    None
                } else {
                    Some(decimal(value)?)
                }
            }
            b"GNU.sparse.name" => (self.sparse, self.sparse_name) = (true, given),
            key if key.starts_with(b"GNU.sparse.") => self.sparse = true,
            _ => {}
        }
        Ok(())
    }
}

/// Checks the records of a global header, which apply to all later entries. Tools write comments
/// (git archive) or times there. No tool writes a record that renames or resizes everything, and
/// readers treat such records differently.
fn check_global(payload: &[u8]) -> Result<(), &'static str> {
    for record in Records(payload) {
        if matches!(record?.0, b"path" | b"linkpath" | b"size") {
            return Err("a global extended header sets names or sizes");
        }
    }
    Ok(())
}

fn decimal(value: &[u8]) -> Result<u64, &'static str> {
    const BAD: &str = "the size in an extended header is not a number, or is too large";
    let text = std::str::from_utf8(value).map_err(|_| BAD)?;
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let value: i64 = text.parse().map_err(|_| BAD)?;
    if digits {
        u64::try_from(value).map_err(|_| BAD)
    } else {
        Err(BAD)
    }
}

/// The records of a PAX header: `<length> <key>=<value>\n`. The length counts the whole record and
/// is decimal.
struct Records<'a>(&'a [u8]);

impl<'a> Iterator for Records<'a> {
    type Item = Result<(&'a [u8], &'a [u8]), &'static str>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let record = split_record(self.0);
        self.0 = record.map_or(&[], |(_, rest)| rest);
        Some(
            record
                .map(|(record, _)| record)
                .ok_or("an extended header's records are malformed"),
        )
    }
}

type Record<'a> = (&'a [u8], &'a [u8]);

fn split_record(bytes: &[u8]) -> Option<(Record<'_>, &[u8])> {
    let space = bytes.iter().take(8).position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
    let record = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some(((&record[..equals], &record[equals + 1..]), &bytes[length..]))
}
