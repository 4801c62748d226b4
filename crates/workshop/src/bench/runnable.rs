//! Measures the time until pods can run: the import of a bundle, and a first container of each
//! image.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::Result;

use super::Bench;
use super::contender::{self, Contender};
use super::events::Events;
use super::measure::{self, Sample};
use super::trees::{Contents, Runnable};

/// Imports a bundle and starts a container of each image. Layers that the import has left packed
/// are unpacked by the first container.
pub(super) fn run(bench: &Bench, contender: Contender) -> Result<Sample> {
    let (_, bundle) = bench.scenario.bundles(&bench.bundles)?;
    let images = Contents::of(&bundle.path)?.images;
    bench.empty()?;
    let events = Events::of(bench)?;
    contender::rest(bench, &bundle.path)?;
    let commands = contender::commands(bench, contender, &bundle.path)?;
    if contender == Contender::Extract {
        let sample = measure::pipeline(&bench.containerd, commands)?;
        fs::remove_dir_all(contender::extracted(bench))?;
        return Ok(sample);
    }
    measure::around(&bench.containerd, || {
        let started = Instant::now();
        let import = measure::run(commands)?;
        // The containers of an image that should be unpacked must not unpack it. This check is not
        // measured.
        let ahead = contender
            .unpacks()
            .then(|| events.first_of(&images))
            .transpose()?;
        let imported = Instant::now();
        start_each(bench, &images)?;
        let wall = import.wall + imported.elapsed().as_secs_f64();
        let first = match ahead {
            Some(first) => first,
            None => events.first_of(&images)?,
        };
        Ok(Sample {
            wall,
            first: first.duration_since(started).as_secs_f64(),
            ..import
        })
    })
}

/// Runs a short container of each image, as many at a time as the machine has cores. kubelet starts
/// the pods of a node side by side.
fn start_each(bench: &Bench, images: &[Runnable]) -> Result<()> {
    let cores = thread::available_parallelism()?.get();
    let next = AtomicUsize::new(0);
    let start = || -> Result<()> {
        while let Some(image) = images.get(next.fetch_add(1, Ordering::Relaxed)) {
            bench.containerd.run(&image.name, &["/bin/busybox", "true"])?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let lanes: Vec<_> = (0..cores).map(|_| scope.spawn(start)).collect();
        lanes
            .into_iter()
            .try_for_each(|lane| lane.join().expect("starting containers never panics"))
    })
}
