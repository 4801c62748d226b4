//! The common part of the commands that make bundles: the requested images, the place of the
//! bundle, the writer, its progress, and the common part of the reports.

use std::collections::HashMap;
use std::io::{self, BufWriter, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bundle::Compression;
use bundle::write::{BlobFeed, Draft, DraftImage, Layout, Output, WriteError, Written};
use serde::Serialize;

use super::{Call, Exit, Refusal, digests};
use crate::cli::{Compress, OutputFormat};
use crate::output;
use crate::progress::{self, has_bar};
use node::progress::Doing;
use node::status::ProgressStatus;

/// Times between two reports of a long transfer: in the log without a terminal, and on a terminal.
const TOLD_EVERY: Duration = Duration::from_secs(10);
const SHOWN_EVERY: Duration = Duration::from_millis(500);

/// The place of a new bundle.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    Stdout,
    File(PathBuf),
}

impl Target {
    /// Reads the place from `--output`. Without a file it is standard output.
    ///
    /// # Errors
    ///
    /// Returns the mistake on the command line.
    pub(super) fn of(call: &Call) -> Result<Target, Refusal> {
        match &call.file {
            Some(file) if file.as_os_str() != "-" => Ok(Target::File(file.clone())),
            _ if io::stdout().is_terminal() => Err(Refusal::usage(
                "refusing to write a bundle to a terminal: use --output FILE, or redirect standard output",
            )),
            _ if call.format == OutputFormat::Json => Err(Refusal::usage(
                "the bundle and its report cannot both go to standard output: use --output FILE",
            )),
            _ => Ok(Target::Stdout),
        }
    }

    /// Returns its name in reports.
    pub(crate) fn shown(&self) -> String {
        match self {
            Target::Stdout => "-".to_owned(),
            Target::File(path) => path.display().to_string(),
        }
    }

    /// Prints the report: on standard output, or on standard error if the bundle goes to standard
    /// output.
    pub(crate) fn tell(&self, format: OutputFormat, report: &impl Render) -> io::Result<()> {
        match (format, self) {
            (OutputFormat::Json, _) => output::json(report),
            (OutputFormat::Text, Target::File(_)) => output::text(&report.text()),
            (OutputFormat::Text, Target::Stdout) => output::aside(&report.text()),
        }
    }
}

/// A report in both forms.
pub(crate) trait Render: Serialize {
    /// Returns the text for people.
    fn text(&self) -> output::Page;
}

/// Returns the requested compression.
pub(crate) fn compression(compress: Compress) -> Compression {
    match compress {
        Compress::None => Compression::None,
        Compress::Zstd => Compression::Zstd,
        Compress::Gzip => Compression::Gzip,
    }
}

/// Checks a file that is written and does not have its name yet. An error is the reason why it must
/// not get the name.
pub(crate) type Proof = Box<dyn FnOnce(&Path) -> Result<(), Refusal> + Send>;

/// Writes a bundle on a separate thread and shows the progress. Returns what was written, and the
/// feed.
///
/// `done` returns the bytes of blobs so far. Standard output takes no `proof`, since it cannot be
/// taken back. If the future is dropped before its end, no file is left. A list with the content
/// digest follows a bundle file: `<bundle>.digest`.
pub(crate) async fn write<F: BlobFeed + Send + 'static>(
    target: &Target,
    layout: &Layout,
    compression: Compression,
    feed: F,
    done: impl Fn() -> u64,
    proof: Option<Proof>,
) -> Result<(Written, F), Refusal> {
    let files = match target {
        Target::Stdout => None,
        Target::File(path) => Some(Files::create(path, layout).with_context(|| path.display().to_string())?),
    };
    let mut half_files = HalfFiles(files.as_ref().map(Files::temporary).unwrap_or_default());
    let total: u64 = layout.blobs().iter().map(|blob| blob.size).sum();
    let layout = layout.clone();
    let writing = tokio::task::spawn_blocking(move || write_now(&layout, compression, files, feed, proof));
    let written = tokio::select! {
        written = writing => written?,
        () = show(total, done) => unreachable!("the progress never ends"),
    };
    half_files.0.clear();
    if has_bar() {
        let _ = output::progress("");
    }
    written
}

/// A new bundle and the list with its content digest.
struct Files {
    bundle: Output,
    digest: Output,
}

impl Files {
    fn create(path: &Path, layout: &Layout) -> Result<Files, WriteError> {
        Ok(Files {
            bundle: Output::create(path)?,
            digest: digests::draft(layout.digest(), path)?,
        })
    }

    fn temporary(&self) -> Vec<PathBuf> {
        [&self.bundle, &self.digest]
            .map(|output| output.temporary().to_owned())
            .into()
    }

    /// Gives both their names: the list last, so that no list is there without its bundle.
    fn commit(self) -> Result<(), WriteError> {
        self.bundle.commit()?;
        self.digest.commit()
    }
}

/// Deletes the temporary files. The writing thread continues after its future is dropped, until the
/// program ends.
struct HalfFiles(Vec<PathBuf>);

impl Drop for HalfFiles {
    fn drop(&mut self) {
        for path in &self.0 {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn write_now<F: BlobFeed>(
    layout: &Layout,
    compression: Compression,
    files: Option<Files>,
    mut feed: F,
    proof: Option<Proof>,
) -> Result<(Written, F), Refusal> {
    let written = match files {
        None => bundle::write::write(layout, compression, io::stdout().lock(), &mut feed)?,
        Some(mut files) => {
            let buffered = BufWriter::with_capacity(256 << 10, &mut files.bundle);
            let written = bundle::write::write(layout, compression, buffered, &mut feed)?;
            if let Some(proof) = proof {
                proof(files.bundle.temporary())?;
            }
            files.commit()?;
            written
        }
    };
    Ok((written, feed))
}

async fn show(total: u64, done: impl Fn() -> u64) {
    let on_terminal = has_bar();
    let started = Instant::now();
    loop {
        tokio::time::sleep(if on_terminal { SHOWN_EVERY } else { TOLD_EVERY }).await;
        let so_far = ProgressStatus::new(done(), total, basics::milliseconds(started.elapsed()));
        if on_terminal {
            progress::show(Doing::Writing, &so_far, None);
        } else {
            tracing::info!("{}", node::progress::line(Doing::Writing, &so_far));
        }
    }
}

/// Waits for SIGINT or SIGTERM.
pub(crate) async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}

/// Reads the references of a list: a file, or `-` for standard input.
///
/// # Errors
///
/// Returns a sentence that names the file.
fn read_list(path: &Path) -> Result<Vec<String>, String> {
    let text = verify::read_text(path)?;
    let entries = requirements::lists::parse(&text.text).into_iter();
    Ok(entries.map(|entry| entry.reference).collect())
}

/// Returns the requested images: by name, from lists, or from standard input if neither is given.
/// A list may be empty.
///
/// # Errors
///
/// Returns an error for a list that cannot be read. Returns `hint` if no image is given and
/// standard input is a terminal.
pub(super) fn asked_for(names: &[String], lists: &[PathBuf], hint: &str) -> Result<Vec<String>, String> {
    let mut texts = names.to_vec();
    for list in lists {
        texts.extend(read_list(list)?);
    }
    if names.is_empty() && lists.is_empty() {
        if io::stdin().is_terminal() {
            return Err(hint.to_owned());
        }
        texts = read_list(Path::new("-"))?;
    }
    Ok(texts)
}

/// Returns the refusal of a command whose lists are all empty.
pub(super) fn no_image() -> Refusal {
    Refusal::usage("no image is named")
}

/// Returns the refusal of a command that made no bundle, with the reasons.
pub(super) fn not_made(mut problems: Vec<String>) -> Refusal {
    if let Some(first) = problems.first_mut() {
        first.insert_str(0, "no bundle was made: ");
    }
    Refusal::of_many(Exit::Failed, problems)
}

/// The first part of every report of a new bundle.
#[derive(Debug, Serialize)]
pub(super) struct Made {
    /// Path of the file, `-` for standard output.
    pub(super) path: String,
    /// Bytes of the file.
    pub(super) bytes: u64,
    /// Bytes of the archive in it.
    archive_bytes: u64,
    /// Digest of the bundle's index.
    digest: String,
}

impl Made {
    pub(super) fn of(target: &Target, layout: &Layout, written: &Written) -> Made {
        Made {
            path: target.shown(),
            bytes: written.file,
            archive_bytes: written.archive,
            digest: layout.digest().to_string(),
        }
    }
}

/// Returns the name of the release that a new bundle belongs to.
pub(super) fn release_of(draft: &Draft) -> Option<String> {
    draft.release.as_ref().map(|members| members.release().to_owned())
}

/// The blobs of a new bundle.
#[derive(Debug, Serialize)]
pub(super) struct MadeOf {
    pub(super) written: usize,
    pub(super) written_bytes: u64,
}

impl MadeOf {
    pub(super) fn of(layout: &Layout) -> MadeOf {
        MadeOf {
            written: layout.blobs().len(),
            written_bytes: layout.blobs().iter().map(|blob| blob.size).sum(),
        }
    }
}

/// Returns the bytes of all blobs of an image, including blobs that it shares with other images.
pub(super) fn bytes_of(image: &DraftImage) -> u64 {
    let blobs: HashMap<_, _> = image.blobs().map(|blob| (&blob.digest, blob.size)).collect();
    blobs.values().sum()
}
