//! The common part of the commands that make bundles: which images are asked for, where a bundle
//! goes, how it is written, what is shown meanwhile, and what every report says of it.

use std::collections::HashMap;
use std::io::{self, BufWriter, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bundle::Compression;
use bundle::write::{BlobFeed, DraftImage, Layout, Output, Written};
use serde::Serialize;

use super::{Call, Exit, Refusal};
use crate::cli::{Compress, OutputFormat};
use crate::output;
use crate::progress::{self, has_bar};
use node::progress::Doing;
use node::status::ProgressStatus;

/// A transfer that takes long is told of this often where there is no terminal, and shown this
/// often where there is.
const TOLD_EVERY: Duration = Duration::from_secs(10);
const SHOWN_EVERY: Duration = Duration::from_millis(500);

/// Where a bundle goes.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    Stdout,
    File(PathBuf),
}

impl Target {
    /// Takes `--output FILE` for a place, where it is one.
    ///
    /// # Errors
    ///
    /// The mistake on the command line.
    pub(super) fn of(call: &Call) -> Result<Target, Refusal> {
        match &call.file {
            None => Err(Refusal::usage(
                "say where the bundle goes: --output FILE, or - for standard output",
            )),
            Some(file) if file.as_os_str() != "-" => Ok(Target::File(file.clone())),
            Some(_) if io::stdout().is_terminal() => Err(Refusal::usage(
                "a bundle is nothing for a terminal: give --output FILE, or redirect standard output",
            )),
            Some(_) if call.format == OutputFormat::Json => Err(Refusal::usage(
                "the bundle and its report cannot both go to standard output",
            )),
            Some(_) => Ok(Target::Stdout),
        }
    }

    /// Its name in reports.
    pub(crate) fn shown(&self) -> String {
        match self {
            Target::Stdout => "-".to_owned(),
            Target::File(path) => path.display().to_string(),
        }
    }

    /// Says what was done, where the bundle leaves room for it.
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
    /// For people.
    fn text(&self) -> output::Page;
}

/// The form that was asked for.
pub(crate) fn compression(compress: Compress) -> Compression {
    match compress {
        Compress::None => Compression::None,
        Compress::Zstd => Compression::Zstd,
        Compress::Gzip => Compression::Gzip,
    }
}

/// Looks at a file that is written and has not its name yet. An error is why it must not get it.
pub(crate) type Proof = Box<dyn FnOnce(&Path) -> Result<(), Refusal> + Send>;

/// Writes a bundle on a thread of its own, and shows how far it is: `done` is how many bytes of its
/// blobs were had. Gives back what fed it. Standard output takes no `proof`: what is written there
/// is gone. Dropped before its end, it leaves no file.
pub(crate) async fn write<F: BlobFeed + Send + 'static>(
    target: &Target,
    layout: &Layout,
    compression: Compression,
    feed: F,
    done: impl Fn() -> u64,
    proof: Option<Proof>,
) -> Result<(Written, F), Refusal> {
    let output = match target {
        Target::Stdout => None,
        Target::File(path) => Some(Output::create(path).with_context(|| path.display().to_string())?),
    };
    let mut half_file = HalfFile(output.as_ref().map(|output| output.temporary().to_owned()));
    let total: u64 = layout.blobs().iter().map(|blob| blob.size).sum();
    let layout = layout.clone();
    let writing = tokio::task::spawn_blocking(move || write_now(&layout, compression, output, feed, proof));
    let written = tokio::select! {
        written = writing => written?,
        () = show(total, done) => unreachable!("it is shown for ever"),
    };
    half_file.0 = None;
    if has_bar() {
        let _ = output::progress("");
    }
    written
}

/// The thread that writes goes on after its future is dropped, until the program ends: its file
/// goes first.
struct HalfFile(Option<PathBuf>);

impl Drop for HalfFile {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn write_now<F: BlobFeed>(
    layout: &Layout,
    compression: Compression,
    output: Option<Output>,
    mut feed: F,
    proof: Option<Proof>,
) -> Result<(Written, F), Refusal> {
    let written = match output {
        None => bundle::write::write(layout, compression, io::stdout().lock(), &mut feed)?,
        Some(mut output) => {
            let buffered = BufWriter::with_capacity(256 << 10, &mut output);
            let written = bundle::write::write(layout, compression, buffered, &mut feed)?;
            if let Some(proof) = proof {
                proof(output.temporary())?;
            }
            output.commit()?;
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

/// The references of a list: a file, or `-` for standard input.
///
/// # Errors
///
/// A sentence that names the file.
fn read_list(path: &Path) -> Result<Vec<String>, String> {
    let text = verify::read_text(path)?;
    let lines = requirements::lists::parse(&text.text).into_iter();
    Ok(lines.map(|line| line.reference).collect())
}

/// The images that are asked for: by name, in lists, or else on standard input.
///
/// # Errors
///
/// The list that cannot be read; `hint` where nothing is given and standard input is a terminal.
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
    match texts.is_empty() {
        true => Err("no image is named".to_owned()),
        false => Ok(texts),
    }
}

/// The end of a command that makes no bundle for these reasons.
pub(super) fn not_made(mut problems: Vec<String>) -> Refusal {
    if let Some(first) = problems.first_mut() {
        first.insert_str(0, "no bundle was made: ");
    }
    Refusal::of_many(Exit::Failed, problems)
}

/// The beginning of every report of a bundle that was made.
#[derive(Debug, Serialize)]
pub(super) struct Made {
    /// The file; `-` for standard output.
    pub(super) path: String,
    /// Bytes of the file, and of the archive in it.
    pub(super) bytes: u64,
    archive_bytes: u64,
    /// The digest of the bundle's index.
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

/// The blobs of a bundle that was made.
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

/// Bytes of all blobs of an image, those included that it shares with other images.
pub(super) fn bytes_of(image: &DraftImage) -> u64 {
    let blobs: HashMap<_, _> = image.blobs().map(|blob| (&blob.digest, blob.size)).collect();
    blobs.values().sum()
}
