//! The contenders: airgapd, two ways of containerd's own importer, k0s' way, and the limits of the
//! machine.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::Result;
use clap::ValueEnum;
use lab::Generation;
use lab::runtime::NAMESPACE;

use super::measure::{self, Sample};
use super::trees::Contents;
use super::{Bench, machine};
use crate::daemon::without_our_environment;

/// A program or a limit that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Contender {
    /// `airgapd import`, or the daemon.
    Airgapd,
    /// The same with `unpack: before-record`.
    AirgapdUnpacking,
    /// The same with `unpack: background`. `airgapd import` then unpacks after the records.
    AirgapdBackground,
    /// The importer inside k0s and k3s: the client writes blob after blob.
    CtrLocal,
    /// The same client, which unpacks image after image at the end.
    CtrLocalUnpacking,
    /// The default of `ctr`: in containerd 2 the transfer service, with unpacking.
    Ctr,
    /// [`CtrLocal`](Self::CtrLocal) behind a decompressor.
    CtrLocalPiped,
    /// [`Ctr`](Self::Ctr) behind a decompressor.
    CtrPiped,
    /// `airgapd import -`, which decompresses the bundle itself.
    AirgapdPiped,
    /// The importer inside k0s with its watch: [`CtrLocal`](Self::CtrLocal) after ten seconds
    /// without a change in the folder.
    K0s,
    /// Only the checksum, with the processor's instructions for SHA-256.
    Hash,
    /// Only the copy, until it is on the disk.
    Copy,
    /// Only the hash of the bundle, and every layer once through a decompressor and `tar`. As many
    /// of these run at a time as the machine has cores. At the end all files are on the disk.
    Extract,
}

impl Contender {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Airgapd => "airgapd",
            Self::AirgapdUnpacking => "airgapd, unpack: before-record",
            Self::AirgapdBackground => "airgapd, unpack: background",
            Self::CtrLocal => "ctr import --local --no-unpack",
            Self::CtrLocalUnpacking => "ctr import --local",
            Self::Ctr => "ctr import",
            Self::CtrLocalPiped => "decompressor | ctr import --local --no-unpack",
            Self::CtrPiped => "decompressor | ctr import",
            Self::AirgapdPiped => "cat | airgapd import -",
            Self::K0s => "k0s' way",
            Self::Hash => "openssl dgst -sha256",
            Self::Copy => "cp and fsync",
            Self::Extract => "hash, decompress, extract and sync",
        }
    }

    /// Returns the contender of a name.
    pub(super) fn named(name: &str) -> Option<Self> {
        let mut all = Self::value_variants().iter().copied();
        all.find(|contender| contender.name() == name)
    }

    /// Returns true if its import unpacks the layers.
    pub(super) fn unpacks(self) -> bool {
        match self {
            Self::AirgapdUnpacking | Self::AirgapdBackground | Self::CtrLocalUnpacking => true,
            Self::Ctr | Self::CtrPiped => true,
            Self::Airgapd | Self::CtrLocal | Self::CtrLocalPiped | Self::K0s => false,
            Self::AirgapdPiped => false,
            Self::Hash | Self::Copy | Self::Extract => false,
        }
    }
}

/// Runs a contender on the scenario's bundle once.
pub(super) fn run(bench: &Bench, contender: Contender) -> Result<Sample> {
    let (before, bundle) = bench.scenario.bundles(&bench.bundles)?;
    bench.empty()?;
    if let Some(before) = before {
        measure::pipeline(&bench.containerd, commands(bench, contender, &before.path)?)?;
    }
    rest(bench, &bundle.path)?;
    let sample = measure::pipeline(&bench.containerd, commands(bench, contender, &bundle.path)?)?;
    let _ = std::fs::remove_file(copied(bench));
    Ok(sample)
}

/// Waits before a run, so that every contender starts with an idle disk and with the bundle in
/// memory.
pub(super) fn rest(bench: &Bench, bundle: &Path) -> Result<()> {
    rustix::fs::sync();
    let makes_many_files = bench.scenario.makes_many_files();
    thread::sleep(machine::rest(&bench.containerd.root(), makes_many_files));
    io::copy(&mut File::open(bundle)?, &mut io::sink())?;
    Ok(())
}

/// Returns the commands of a contender. Each reads the output of the command before.
pub(super) fn commands(bench: &Bench, contender: Contender, bundle: &Path) -> Result<Vec<Command>> {
    Ok(match contender {
        Contender::Airgapd => vec![airgapd(bench, "none", bundle)],
        Contender::AirgapdBackground => vec![airgapd(bench, "background", bundle)],
        Contender::AirgapdUnpacking => vec![airgapd(bench, "before-record", bundle)],
        Contender::CtrLocalUnpacking => vec![ctr(bench, &["--local"], bundle)],
        Contender::CtrLocal | Contender::K0s => vec![ctr(bench, local(bench), bundle)],
        Contender::Ctr => vec![ctr(bench, &[], bundle)],
        Contender::CtrLocalPiped => vec![
            decompressor(bench, bundle),
            ctr(bench, local(bench), Path::new("-")),
        ],
        Contender::CtrPiped => vec![decompressor(bench, bundle), ctr(bench, &[], Path::new("-"))],
        Contender::AirgapdPiped => {
            let mut cat = Command::new("cat");
            cat.arg(bundle);
            vec![cat, airgapd(bench, "none", Path::new("-"))]
        }
        Contender::Hash => {
            let mut openssl = Command::new("openssl");
            openssl.args(["dgst", "-sha256"]).arg(bundle);
            vec![openssl]
        }
        Contender::Copy => {
            let copy = copied(bench);
            let mut shell = Command::new("sh");
            shell
                .args(["-c", "cp \"$0\" \"$1\" && sync \"$1\""])
                .arg(bundle)
                .arg(copy);
            vec![shell]
        }
        Contender::Extract => vec![extract(bench, bundle)?],
    })
}

/// Returns the path of the file of [`Contender::Copy`].
pub(super) fn copied(bench: &Bench) -> PathBuf {
    bench.folder.path().join("copy")
}

/// Returns the folder for the files of [`Contender::Extract`], on the disk of containerd's
/// snapshots.
pub(super) fn extracted(bench: &Bench) -> PathBuf {
    bench.containerd.root().join("extracted")
}

/// Hashes the bundle and unpacks its layers, the largest first, each into a folder of its own.
fn extract(bench: &Bench, bundle: &Path) -> Result<Command> {
    // The arguments are the bundle, the decompressor, the folder and the layers' names in the
    // bundle.
    const SCRIPT: &str = r#"
        set -e
        bundle=$0 decompressor=$1 folder=$2
        shift 2
        mkdir "$folder"
        printf '%s\n' hash "$@" | xargs -P "$(nproc)" -I {} sh -e -c '
            if [ "$4" = hash ]; then exec openssl dgst -sha256 "$1"; fi
            into="$3/${4##*/}"
            mkdir "$into"
            tar --occurrence=1 -xOf "$1" "$4" | "$2" -dc | tar --warning=no-timestamp -xf - -C "$into"
        ' sh "$bundle" "$decompressor" "$folder" {}
        sync -f "$folder""#;
    let mut shell = Command::new("sh");
    shell
        .args(["-c", SCRIPT])
        .arg(bundle)
        .arg(bench.scenario.decompressor())
        .arg(extracted(bench))
        .args(Contents::of(bundle)?.layers);
    Ok(shell)
}

fn airgapd(bench: &Bench, unpack: &str, bundle: &Path) -> Command {
    let mut command = Command::new(&bench.program);
    command
        .args(["import", "--quiet", "--config"])
        .arg(bench.folder.path().join("config.yaml"))
        .arg("--address")
        .arg(bench.containerd.socket())
        .args(["--unpack", unpack])
        .arg(bundle);
    without_our_environment(&mut command);
    command
}

fn ctr(bench: &Bench, flags: &[&str], bundle: &Path) -> Command {
    let mut command = bench.containerd.ctr_in(NAMESPACE);
    command.args(["images", "import"]).args(flags).arg(bundle);
    command
}

/// Returns the flags for an import by the client. `ctr` of 1.6 has no `--local` and always works
/// this way.
fn local(bench: &Bench) -> &'static [&'static str] {
    match bench.containerd.generation() {
        Generation::V1_6 => &["--no-unpack"],
        Generation::V1_7 | Generation::V2_1 | Generation::V2_3 | Generation::V2_4 => {
            &["--local", "--no-unpack"]
        }
    }
}

fn decompressor(bench: &Bench, bundle: &Path) -> Command {
    let mut command = Command::new(bench.scenario.decompressor());
    command.arg("-dc").arg(bundle);
    command
}
