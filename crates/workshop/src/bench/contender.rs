//! The contenders: airgapd, two ways of containerd's own importer, and the limits of the machine.

use std::fs::File;
use std::io;
use std::path::Path;
use std::process::Command;
use std::thread;

use anyhow::Result;
use lab::Generation;
use lab::runtime::NAMESPACE;

use super::measure::{self, Sample};
use super::{Bench, Scenario, machine};

/// A program or a limit that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contender {
    /// `airgapd import`, or the daemon.
    Airgapd,
    /// The daemon with `unpack: before-record`.
    AirgapdUnpacking,
    /// The importer inside k0s and k3s: the client writes blob after blob.
    CtrLocal,
    /// The default of `ctr`: in containerd 2 the transfer service, with unpacking.
    Ctr,
    /// [`CtrLocal`](Self::CtrLocal) behind a decompressor.
    CtrLocalPiped,
    /// [`Ctr`](Self::Ctr) behind a decompressor.
    CtrPiped,
    /// Only the checksum, with the processor's instructions for SHA-256.
    Hash,
    /// Only the copy, until it is on the disk.
    Copy,
}

impl Contender {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Airgapd => "airgapd",
            Self::AirgapdUnpacking => "airgapd, unpack: before-record",
            Self::CtrLocal => "ctr import --local --no-unpack",
            Self::Ctr => "ctr import",
            Self::CtrLocalPiped => "decompressor | ctr import --local --no-unpack",
            Self::CtrPiped => "decompressor | ctr import",
            Self::Hash => "openssl dgst -sha256",
            Self::Copy => "cp and fsync",
        }
    }
}

/// Runs a contender on the scenario's bundle once.
pub(super) fn run(bench: &Bench, contender: Contender) -> Result<Sample> {
    let (before, bundle) = bench.scenario.bundles(&bench.bundles)?;
    bench.empty()?;
    if let Some(before) = before {
        measure::pipeline(&bench.containerd, commands(bench, contender, &before.path))?;
    }
    // Every contender starts with an idle disk and with the bundle in memory.
    rustix::fs::sync();
    let makes_many_files = bench.scenario.makes_many_files();
    thread::sleep(machine::rest(&bench.containerd.root(), makes_many_files));
    io::copy(&mut File::open(&bundle.path)?, &mut io::sink())?;
    let sample = measure::pipeline(&bench.containerd, commands(bench, contender, &bundle.path))?;
    let _ = std::fs::remove_file(bench.folder.path().join("copy"));
    Ok(sample)
}

/// Returns the commands of a contender. Each reads the output of the command before.
fn commands(bench: &Bench, contender: Contender, bundle: &Path) -> Vec<Command> {
    match contender {
        Contender::Airgapd | Contender::AirgapdUnpacking => vec![airgapd(bench, bundle)],
        Contender::CtrLocal => vec![ctr(bench, local(bench), bundle)],
        Contender::Ctr => vec![ctr(bench, &[], bundle)],
        Contender::CtrLocalPiped => vec![
            decompressor(bench, bundle),
            ctr(bench, local(bench), Path::new("-")),
        ],
        Contender::CtrPiped => vec![decompressor(bench, bundle), ctr(bench, &[], Path::new("-"))],
        Contender::Hash => {
            let mut openssl = Command::new("openssl");
            openssl.args(["dgst", "-sha256"]).arg(bundle);
            vec![openssl]
        }
        Contender::Copy => {
            let copy = bench.folder.path().join("copy");
            let mut shell = Command::new("sh");
            shell
                .args(["-c", "cp \"$0\" \"$1\" && sync \"$1\""])
                .arg(bundle)
                .arg(copy);
            vec![shell]
        }
    }
}

fn airgapd(bench: &Bench, bundle: &Path) -> Command {
    let mut command = Command::new(&bench.program);
    command
        .args(["import", "--quiet", "--config"])
        .arg(bench.folder.path().join("config.yaml"))
        .arg("--address")
        .arg(bench.containerd.socket())
        .arg(bundle);
    without_our_environment(&mut command);
    command
}

/// Removes the bench's own `AIRGAPD_` variables, so that they do not configure the daemon.
pub(super) fn without_our_environment(command: &mut Command) {
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("AIRGAPD_")) {
        command.env_remove(name);
    }
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
    let program = if bench.scenario == Scenario::Gzip {
        "gzip"
    } else {
        "zstd"
    };
    let mut command = Command::new(program);
    command.arg("-dc").arg(bundle);
    command
}
