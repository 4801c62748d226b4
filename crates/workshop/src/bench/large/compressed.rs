//! Compressed bundles against the programs that decompress them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};
use bundle::Compression;

use super::super::measure::{self, Sample};
use super::super::{Arguments, Bench, Contender, contender, order};
use super::{bench, table};

/// A program that reads a bundle.
enum Reader {
    /// `airgapd import`.
    Import,
    /// A decompressor, whose output nothing reads.
    Decompressor(PathBuf),
}

/// Imports one bundle in each form, and decompresses it. The bundles are in memory.
pub(super) fn run(arguments: &Arguments, program: &Path) -> Result<String> {
    let bench = bench(arguments, program, false, None)?;
    let of = |codec| bench.bundles.compressed(codec).map(|bundle| bundle.path);
    let plain = of(Compression::None)?;
    let (gzip, zstd) = (of(Compression::Gzip)?, of(Compression::Zstd)?);
    let seekable = bench.folder.path().join("seekable.tar.zst");
    merge(&bench, &plain, &seekable)?;
    let decompressor = |program: &str| Reader::Decompressor(program.into());
    let igzip = Reader::Decompressor(lab::parts::igzip()?);
    // The first row of each form is the import.
    let rows = [
        (".tar", &plain, Reader::Import, "airgapd import"),
        (".tar.gz", &gzip, Reader::Import, "airgapd import"),
        (".tar.gz", &gzip, decompressor("gzip"), "gzip -dc"),
        (".tar.gz", &gzip, igzip, "igzip -dc"),
        (".tar.zst", &zstd, Reader::Import, "airgapd import"),
        (".tar.zst", &zstd, decompressor("zstd"), "zstd -dc"),
        (".tar.zst, seekable", &seekable, Reader::Import, "airgapd import"),
        (".tar.zst, seekable", &seekable, decompressor("zstd"), "zstd -dc"),
    ];
    let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); rows.len()];
    for round in 0..bench.runs {
        for at in order(round, rows.len()) {
            let (_, bundle, reader, _) = &rows[at];
            bench.empty()?;
            contender::rest(&bench, bundle)?;
            samples[at].push(measure::pipeline(
                &bench.containerd,
                commands(&bench, bundle, reader)?,
            )?);
        }
    }
    let mut cells = Vec::new();
    let mut import = 0;
    for (at, (form, _, reader, name)) in rows.iter().enumerate() {
        if matches!(reader, Reader::Import) {
            import = at;
        }
        let share = table::ratio(&samples[import], &samples[at], |sample| sample.wall);
        let cores = table::of(&samples[at], |sample| sample.cpu / sample.wall);
        let both = table::of(&samples[at], |sample| {
            (sample.cpu + sample.server_cpu) / sample.wall
        });
        let mut row = vec![format!("{form}, {name}"), format!("{share:.2}")];
        row.extend([cores, both].map(|cores| format!("{:.0} %", 100.0 * cores)));
        row.extend(table::usual(&samples[at]));
        cells.push(row);
    }
    let headings = ["", "import's share of its time", "its CPU", "CPU of both sides"];
    Ok(table::table(&[&headings[..], &table::USUAL].concat(), &cells))
}

fn commands(bench: &Bench, bundle: &Path, reader: &Reader) -> Result<Vec<Command>> {
    match reader {
        Reader::Import => contender::commands(bench, Contender::Airgapd, bundle),
        Reader::Decompressor(program) => {
            let mut command = Command::new(program);
            command.arg("-dc").arg(bundle);
            Ok(vec![command])
        }
    }
}

/// Writes a bundle as airgapd writes zstd bundles, with a table of its frames.
fn merge(bench: &Bench, bundle: &Path, merged: &Path) -> Result<()> {
    let mut command = Command::new(&bench.program);
    command
        .args(["bundle", "merge", "--quiet", "--compress", "zstd", "--output"])
        .arg(merged)
        .arg(bundle);
    crate::daemon::without_our_environment(&mut command);
    match command.status()? {
        status if status.success() => Ok(()),
        status => bail!("airgapd bundle merge failed ({status})"),
    }
}
