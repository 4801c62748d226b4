//! Lists of content digests, which name the bundles of a release: `<bundle>.digest` beside each new
//! bundle, and the lines of `airgapd inspect --digest`.

use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use bundle::write::{Output, WriteError};
use oci_spec::image::Digest;

/// First line of a list. It tells content digests apart from the sha256 of files.
const HEADER: &[u8] = b"airgapd-catalogs 1\n";

/// Returns the path of the list beside a bundle.
pub(super) fn beside(bundle: &Path) -> PathBuf {
    let mut path = bundle.as_os_str().to_owned();
    path.push(".digest");
    path.into()
}

/// Returns the line of a bundle: its content digest and its file name. Odd names are escaped as
/// sha256sum does it, with a backslash in front of the line.
pub(super) fn line(digest: &Digest, bundle: &Path) -> Vec<u8> {
    let name = bundle.file_name().unwrap_or(bundle.as_os_str()).as_bytes();
    let mut escaped = Vec::with_capacity(name.len());
    for byte in name {
        match byte {
            b'\\' => escaped.extend(br"\\"),
            b'\n' => escaped.extend(br"\n"),
            b'\r' => escaped.extend(br"\r"),
            other => escaped.push(*other),
        }
    }
    let mark: &[u8] = if escaped.len() > name.len() { b"\\" } else { b"" };
    [mark, digest.as_ref().as_bytes(), b"  ", &escaped, b"\n"].concat()
}

/// Starts the list of a bundle that is about to be written. The caller commits it after the bundle.
///
/// # Errors
///
/// Returns an error if no file can be created there.
pub(super) fn draft(digest: &Digest, bundle: &Path) -> Result<Output, WriteError> {
    let mut output = Output::create(&beside(bundle))?;
    let list = [HEADER, &line(digest, bundle)].concat();
    output.write_all(&list).map_err(|source| WriteError::Target {
        action: "write the list of digests",
        source,
    })?;
    Ok(output)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    #[test]
    fn lines_have_the_file_name_as_sha256sum_writes_it() {
        let digest = basics::digest::sha256(b"x");
        for (path, mark, name) in [
            (&b"a.tar"[..], "", &b"a.tar"[..]),
            (b"/srv/my images/a b.tar", "", b"a b.tar"),
            (b"dist/a\\b\nc\r\xff.tar", "\\", b"a\\\\b\\nc\\r\xff.tar"),
        ] {
            let expected = [mark.as_bytes(), digest.as_ref().as_bytes(), b"  ", name, b"\n"].concat();
            let path = Path::new(OsStr::from_bytes(path));
            assert_eq!(line(&digest, path), expected, "{path:?}");
        }
    }
}
