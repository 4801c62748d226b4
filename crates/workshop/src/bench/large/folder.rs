//! The daemon's first look at a folder of many bundles, with nothing in memory.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use bundle::fixtures::{Layer, LayerFile, Layout};

use super::super::bundles::{Noise, image};
use super::super::daemon::{self, Node};
use super::super::measure::{self, Sample};
use super::super::{Arguments, Bench};
use super::{bench, table};

/// Number of bundles. Each has an image with a layer of [`LAYER`] bytes and two small ones.
const BUNDLES: usize = 200;

/// Size of the largest layer of a bundle in bytes.
const LAYER: usize = 4 << 20;

/// The daemon's knowledge at its start.
#[derive(Clone, Copy)]
enum State {
    Known,
    Deleted,
}

/// A start of the daemon.
struct Start {
    sample: Sample,
    /// Bytes that the daemon had the disk read.
    read: f64,
}

/// Starts the daemon on bundles that are in place, with and without its state. Before each start
/// containerd starts anew, and the kernel forgets all files, as in a reboot.
pub(super) fn run(arguments: &Arguments, program: &Path) -> Result<String> {
    let mut bench = bench(arguments, program, true, None)?;
    let node = Node::of(&bench);
    node.create()?;
    for number in 0..BUNDLES {
        let name = format!("registry.example/folder/app{number}:1");
        let layer = |size: usize| {
            let seed = format!("{name} {size}");
            Layer::files([LayerFile::new(&size.to_string(), Noise::of(&seed).bytes(size))])
        };
        let layers = [LAYER, 64 << 10, 1 << 10].map(layer);
        let path = node.images.join(format!("app{number}.tar"));
        Layout::new().image(image(&name, &layers)).write_to(&path);
    }
    let mut daemon = node.start(&bench, &[])?;
    daemon.until_in_place(BUNDLES, BUNDLES)?;
    daemon.stop()?;
    let mut rows = Vec::new();
    let states = [("state known", State::Known), ("state deleted", State::Deleted)];
    let mut starts: [Vec<Start>; 2] = Default::default();
    for _ in 0..bench.runs {
        for (at, (_, state)) in states.iter().enumerate() {
            starts[at].push(start(&mut bench, &node, *state)?);
        }
    }
    for ((name, _), starts) in states.iter().zip(&starts) {
        let samples: Vec<_> = starts.iter().map(|start| start.sample).collect();
        let read = table::median(starts.iter().map(|start| start.read));
        let mut row = vec![(*name).to_owned(), format!("{:.1}", read / f64::from(1 << 20))];
        row.extend(table::usual(&samples));
        rows.push(row);
    }
    Ok(table::table(
        &[&["", "MiB read"][..], &table::USUAL].concat(),
        &rows,
    ))
}

fn start(bench: &mut Bench, node: &Node, state: State) -> Result<Start> {
    if matches!(state, State::Deleted) {
        fs::remove_dir_all(&node.state)?;
        fs::create_dir(&node.state)?;
    }
    bench.containerd.stop()?;
    forget_files()?;
    bench.containerd.restart()?;
    let mut read = 0.0;
    let sample = measure::around(&bench.containerd, || {
        let started = Instant::now();
        let mut daemon = node.start(bench, &[])?;
        daemon.until_in_place(BUNDLES, BUNDLES)?;
        let wall = started.elapsed().as_secs_f64();
        let (cpu, peak) = daemon::usage(&daemon)?;
        read = read_by(daemon.pid())?;
        daemon.stop()?;
        Ok(Sample {
            wall,
            cpu,
            peak,
            ..Sample::default()
        })
    })?;
    Ok(Start { sample, read })
}

/// Makes the kernel forget all files that it has in memory (`drop_caches` in
/// Documentation/admin-guide/sysctl/vm.rst).
fn forget_files() -> Result<()> {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").context("cannot empty the cache of files")
}

/// Returns the bytes that a process made the disk read (proc_pid_io(5)).
fn read_by(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/io"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("read_bytes: "));
    let bytes = line.context("the kernel does not account for reads")?;
    Ok(bytes.trim().parse()?)
}
