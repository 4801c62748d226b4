//! A stand-in for k0s' autopilot, which places a file into the images folder.
//!
//! An `airgapupdate` downloads into a hidden file beside its target: `.download.<number>.tmp`, with
//! mode 0600. k0s compares the file with the hash of the plan, if the plan has one. It syncs the
//! file and renames it to the last part of its address. After a failure it removes the hidden file
//! and leaves the target alone (`pkg/autopilot/download` and `internal/pkg/file` of k0s). It never
//! places a file with a checksum beside it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bundle::fixtures::digest_of;

/// A download of autopilot. Dropping it before its end is a failed download.
pub struct Download {
    file: File,
    hidden: PathBuf,
    target: PathBuf,
}

impl Download {
    /// Opens the hidden file. `number` stands for the random part of its name.
    pub fn begin(target: &Path, number: &str) -> io::Result<Download> {
        let hidden = target.with_file_name(format!(".download.{number}.tmp"));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&hidden)?;
        Ok(Download {
            file,
            hidden,
            target: target.to_owned(),
        })
    }

    /// Writes bytes that the server has sent.
    pub fn receive(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }

    /// Ends the download. With the hash of a plan (`sha256:…`), the bytes must match it.
    pub fn finish(self, expected: Option<&str>) -> io::Result<()> {
        let found = digest_of(&fs::read(&self.hidden)?);
        if expected.is_some_and(|expected| expected != found.as_ref()) {
            return Err(io::Error::other("hash mismatch"));
        }
        self.file.sync_all()?;
        fs::rename(&self.hidden, &self.target)
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        // After the rename there is no such file.
        let _ = fs::remove_file(&self.hidden);
    }
}

/// Places a whole file, like a plan that succeeds.
pub fn place(target: &Path, bytes: &[u8]) {
    let placed = Download::begin(target, "2718281828").and_then(|mut download| {
        download.receive(bytes)?;
        download.finish(Some(digest_of(bytes).as_ref()))
    });
    placed.expect("the folder takes the file");
}
