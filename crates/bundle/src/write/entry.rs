//! Headers of the archive's entries: regular files without an owner, last modified at the beginning
//! of 1970.

use tar::{EntryType, Header};

/// Size of a header in bytes. Entry data is padded to multiples of it.
pub(super) const BLOCK: usize = 512;

/// The largest size that the eleven octal digits of a header hold: 8 GiB less one byte.
const LARGEST_OCTAL: u64 = (1 << 33) - 1;

/// Returns the headers of a file. An extended header precedes the header if a name or a size does
/// not fit into it.
pub(super) fn headers(name: &str, size: u64) -> Vec<u8> {
    let mut records = Vec::new();
    let mut header = Header::new_ustar();
    if header.set_path(name).is_err() {
        records.extend(record("path", name));
        header
            .set_path("long-name")
            .expect("a short name fits into a header");
    }
    if size > LARGEST_OCTAL {
        records.extend(record("size", &size.to_string()));
    }
    let mut bytes = Vec::new();
    if !records.is_empty() {
        let mut extended = Header::new_ustar();
        extended
            .set_path("extended-header")
            .expect("a short name fits into a header");
        let length = records.len() as u64;
        bytes.extend_from_slice(finished(extended, EntryType::XHeader, length).as_bytes());
        bytes.extend(records);
        bytes.extend(padding(length));
    }
    // Zero if the extended header has the size, because this field cannot hold the same value.
    let size = if size > LARGEST_OCTAL { 0 } else { size };
    bytes.extend_from_slice(finished(header, EntryType::Regular, size).as_bytes());
    bytes
}

fn finished(mut header: Header, kind: EntryType, size: u64) -> Header {
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header.set_cksum();
    header
}

/// Returns a record of an extended header. Its length counts its own digits, too.
fn record(key: &str, value: &str) -> Vec<u8> {
    let rest = format!(" {key}={value}\n");
    let mut length = rest.len();
    while length.to_string().len() + rest.len() != length {
        length = length.to_string().len() + rest.len();
    }
    format!("{length}{rest}").into_bytes()
}

/// Returns the zeros that pad a file of `size` bytes.
pub(super) fn padding(size: u64) -> Vec<u8> {
    let over = usize::try_from(size % BLOCK as u64).expect("less than a block");
    vec![0; (BLOCK - over) % BLOCK]
}

/// Returns the number of bytes that a file takes in the archive.
pub(super) fn length(name: &str, size: u64) -> u64 {
    headers(name, 0).len() as u64
        + size.next_multiple_of(BLOCK as u64)
        + if size > LARGEST_OCTAL { 2 * BLOCK as u64 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_a_header_needs_no_other() {
        let rows = [
            ("index.json".to_owned(), 0, 512),
            (format!("blobs/sha256/{}", "a".repeat(64)), LARGEST_OCTAL, 512),
            (
                format!("blobs/sha256/{}", "a".repeat(64)),
                LARGEST_OCTAL + 1,
                1536,
            ),
            (format!("blobs/sha512/{}", "a".repeat(128)), 5, 1536),
        ];
        for (name, size, expected) in rows {
            assert_eq!(headers(&name, size).len(), expected, "{name} {size}");
        }
    }

    #[test]
    fn names_and_sizes_of_any_length_are_read_back() {
        let limits = crate::Limits::default();
        for (algorithm, hex, size) in [
            ("sha256", 64, 5_u64),
            ("sha512", 128, 9 << 30),
            ("sha256", 64, 9 << 30),
        ] {
            let name = format!("blobs/{algorithm}/{}", "a".repeat(hex));
            let bytes = headers(&name, size);
            let file = tempfile::tempfile().unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).unwrap();
            let length = length(&name, size) + 2 * BLOCK as u64;
            file.set_len(length).unwrap();
            let file = crate::archive::ArchiveFile::new(file);
            let mut walk = crate::archive::Walk::new(crate::archive::FileInput::new(&file, length), &limits);
            let crate::archive::Step::Entry(entry) = walk.next().unwrap() else {
                panic!("an entry was expected");
            };
            assert_eq!((entry.name, entry.size), (name.into_bytes(), size));
            let end = walk.next().unwrap();
            assert!(
                matches!(
                    &end,
                    crate::archive::Step::End {
                        ending: crate::Ending::Marker,
                        trailing: None
                    }
                ),
                "{end:?}"
            );
        }
    }

    #[test]
    fn a_record_counts_its_own_length() {
        for (value, expected) in [
            ("x", "6 a=x\n"),
            ("xxxxx", "11 a=xxxxx\n"),
            ("xxxx", "9 a=xxxx\n"),
        ] {
            let record = String::from_utf8(record("a", value)).unwrap();
            assert_eq!(record, expected);
            assert!(record.starts_with(&record.len().to_string()));
        }
    }
}
