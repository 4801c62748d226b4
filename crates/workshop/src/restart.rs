//! `cargo xtask restart`: measures the restart of a k0s worker with twenty bundles, until k0s would
//! start kubelet.
//!
//! k0s starts its components one after the other: containerd, the import of its images folder,
//! kubelet. The stand-in for its importer is `ctr images import --local --no-unpack` for each file,
//! in the order of their names. That is the same client code, and it also sends every byte. k0s
//! labels each record afterwards, and `ctr` does not. airgapd runs as its unit does: it starts
//! together with the rest of the node.
//!
//! The images are in containerd before each restart, as on a node that has run before. All layouts
//! share the bundles, the containerd and its content, and each round has another order.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use bundle::fixtures::{Image, Layout as Bundle};
use clap::Args;
use lab::runtime::NAMESPACE;
use lab::{Containerd, Generation, Options, is_root, output_of};
use xtask::checks;
use xtask::workshop::target_folder;

use crate::daemon::{Daemon, Places};

/// Flags of the measurement.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Generation of containerd: 1.7, 2.1, 2.3 or 2.4.
    #[arg(long, default_value_t = Generation::V2_1)]
    containerd: Generation,
    /// Restarts of each layout. The result is their median.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Measure this airgapd instead of a new build of this source.
    #[arg(long)]
    program: Option<PathBuf>,
}

/// Number of large bundles, and of small bundles.
const OF_EACH: usize = 10;

/// Layers of an image in a large bundle, in MB. Such a bundle has four images.
const LARGE: [usize; 3] = [16, 8, 1];

/// Layers of an image in a small bundle, in MB. Such a bundle has two images.
const SMALL: [usize; 2] = [8, 2];

/// Number of images in all bundles.
const IMAGES: usize = OF_EACH * (4 + 2);

/// A place of the bundles, and the importers that see them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// In k0s' folder, without airgapd.
    K0s,
    /// In k0s' folder, which airgapd watches too.
    Shared,
    /// In a folder of airgapd. k0s' folder is empty.
    Own,
}

impl Layout {
    const ALL: [Layout; 3] = [Layout::K0s, Layout::Shared, Layout::Own];

    fn name(self) -> &'static str {
        match self {
            Layout::K0s => "all bundles in k0s' folder, no airgapd",
            Layout::Shared => "all bundles in k0s' folder, airgapd on the same folder",
            Layout::Own => "all bundles in a folder of airgapd, k0s' folder empty",
        }
    }
}

/// The times of a restart, in seconds from the start of containerd.
#[derive(Clone, Copy, Debug)]
struct Sample {
    /// containerd and CRI answer.
    containerd: f64,
    /// k0s' importer is through with its folder.
    kubelet: f64,
    /// airgapd has found every image in place. `None` without airgapd.
    in_place: Option<f64>,
    /// Bytes that containerd has written, in MB.
    written: f64,
}

/// Measures all layouts and prints their medians.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if !is_root() {
        bail!("only root can start the containerd for the measurements");
    }
    if arguments.containerd == Generation::V1_6 {
        bail!("`ctr` of containerd 1.6 has no `--local`");
    }
    let program = match &arguments.program {
        Some(program) => std::path::absolute(program)?,
        None => build()?,
    };
    let mut worker = Worker::prepare(arguments.containerd, program)?;
    let mut samples = Layout::ALL.map(|_| Vec::new());
    for round in 0..arguments.runs.max(1) {
        for at in order(round, Layout::ALL.len()) {
            let layout = Layout::ALL[at];
            let sample = worker.restart(layout).with_context(|| layout.name().to_owned())?;
            println!("round {}, {}: {sample:.2?}", round + 1, layout.name());
            samples[at].push(sample);
        }
    }
    print!("{}", table(worker.containerd.version_text(), &samples));
    Ok(())
}

fn build() -> Result<PathBuf> {
    checks::step("building airgapd for release");
    checks::run(checks::cargo().args(["build", "--release", "--locked", "--package", "airgapd"]))?;
    Ok(target_folder().join("release/airgapd"))
}

/// Returns the order of the layouts in a round. Another layout starts each round, and every second
/// round runs backwards.
fn order(round: usize, layouts: usize) -> Vec<usize> {
    let mut order: Vec<_> = (0..layouts).map(|turn| (turn + round) % layouts).collect();
    if round % 2 == 1 {
        order.reverse();
    }
    order
}

/// Returns the medians as a table in Markdown.
fn table(version: &str, samples: &[Vec<Sample>; 3]) -> String {
    let mut text = format!(
        "\nRestart of a worker with containerd {version}, {} bundles, {IMAGES} images, medians of {}:\n\n\
         | layout | containerd answers | kubelet would start | airgapd has found every image in place | written by containerd |\n|---|---|---|---|---|\n",
        2 * OF_EACH,
        samples[0].len()
    );
    for (layout, samples) in Layout::ALL.into_iter().zip(samples) {
        let of = |part: fn(&Sample) -> f64| median(samples.iter().map(part).collect());
        text += &format!(
            "| {} | {:.1} s | {:.1} s | {} | {:.0} MB |\n",
            layout.name(),
            of(|sample| sample.containerd),
            of(|sample| sample.kubelet),
            match layout {
                Layout::K0s => "does not run".to_owned(),
                _ => format!("{:.1} s", of(|sample| sample.in_place.unwrap_or(f64::NAN))),
            },
            of(|sample| sample.written)
        );
    }
    text
}

/// Returns the middle value, or the upper of the two in the middle.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A worker with its containerd, and the files of this measurement.
struct Worker {
    containerd: Containerd,
    program: PathBuf,
    folder: tempfile::TempDir,
}

impl Worker {
    /// Makes the bundles and imports them, first as k0s and then with airgapd.
    fn prepare(generation: Generation, program: PathBuf) -> Result<Worker> {
        let folder = tempfile::Builder::new().prefix("airgapd-restart-").tempdir()?;
        for name in ["bundles", "empty", "state"] {
            fs::create_dir(folder.path().join(name))?;
        }
        let configuration = format!("runtimeDir: {}\n", folder.path().join("run").display());
        fs::write(folder.path().join("config.yaml"), configuration)?;
        checks::step("making the bundles");
        write_bundles(&folder.path().join("bundles"))?;
        let containerd = Containerd::start(generation, &Options::default())?;
        let worker = Worker {
            containerd,
            program,
            folder,
        };
        checks::step("importing them for the first time");
        worker.import_as_k0s(&worker.path("bundles"))?;
        let mut daemon = worker.start_daemon()?;
        daemon.until_in_place(2 * OF_EACH, IMAGES)?;
        daemon.stop()?;
        Ok(worker)
    }

    fn start_daemon(&self) -> Result<Daemon> {
        let places = Places {
            folder: self.folder.path(),
            images: &self.path("bundles"),
            state: &self.path("state"),
            address: &self.containerd.socket(),
        };
        Daemon::start(&self.program, &places, &[])
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Imports each file of k0s' folder by its name.
    fn import_as_k0s(&self, folder: &Path) -> Result<()> {
        let entries = fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path()));
        let mut files = entries.collect::<Result<Vec<_>, _>>()?;
        files.sort();
        for file in files {
            let mut ctr = self.containerd.ctr_in(NAMESPACE);
            ctr.args(["images", "import", "--local", "--no-unpack"]);
            output_of(ctr.arg(file))?;
        }
        Ok(())
    }

    /// Stops the worker and starts it again.
    fn restart(&mut self, layout: Layout) -> Result<Sample> {
        self.containerd.stop()?;
        rustix::fs::sync();
        let began = Instant::now();
        let since = || began.elapsed().as_secs_f64();
        let daemon = (layout != Layout::K0s).then(|| self.start_daemon()).transpose()?;
        // containerd starts in this thread, and the daemon's messages come in another.
        let waiting = daemon.map(|mut daemon| {
            thread::spawn(move || -> Result<(Daemon, f64)> {
                daemon.until_in_place(2 * OF_EACH, IMAGES)?;
                Ok((daemon, began.elapsed().as_secs_f64()))
            })
        });
        self.containerd.restart()?;
        let containerd = since();
        let theirs = match layout {
            Layout::K0s | Layout::Shared => self.path("bundles"),
            Layout::Own => self.path("empty"),
        };
        self.import_as_k0s(&theirs)?;
        let kubelet = since();
        let ours = waiting.map(|waiting| waiting.join().expect("the thread does not panic"));
        let in_place = match ours.transpose()? {
            Some((mut daemon, at)) => {
                daemon.stop()?;
                Some(at)
            }
            None => None,
        };
        Ok(Sample {
            containerd,
            kubelet,
            in_place,
            written: written_by(self.containerd.pid().context("containerd does not run")?)?,
        })
    }
}

/// Returns the bytes that a process has caused to be written to the disk, in MB (proc(5)).
fn written_by(pid: u32) -> Result<f64> {
    let account = fs::read_to_string(format!("/proc/{pid}/io"))?;
    let line = account
        .lines()
        .find_map(|line| line.strip_prefix("write_bytes: "));
    let bytes: f64 = line.context("the kernel keeps no account")?.parse()?;
    Ok(bytes / 1e6)
}

/// Writes the bundles. Their layers are random bytes, which compress as badly as packed layers.
fn write_bundles(folder: &Path) -> Result<()> {
    let mut random = File::open("/dev/urandom")?;
    for number in 0..OF_EACH {
        for (kind, images, layers) in [("large", 4, &LARGE[..]), ("small", 2, &SMALL[..])] {
            let mut bundle = Bundle::new();
            for image in 0..images {
                let name = format!("registry.example/{kind}{number}/app{image}:1");
                let mut made = Image::new(&name).platform(PLATFORM);
                for megabytes in layers {
                    let mut bytes = vec![0; megabytes * 1_000_000];
                    random.read_exact(&mut bytes)?;
                    made = made.layer(bytes);
                }
                bundle = bundle.image(made);
            }
            bundle.write_to(&folder.join(format!("{kind}-{number}.tar")));
        }
    }
    Ok(())
}

/// The platform of this machine, in containerd's words.
const PLATFORM: &str = if cfg!(target_arch = "aarch64") {
    "linux/arm64"
} else {
    "linux/amd64"
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_layout_has_each_place_in_the_order_and_the_median_is_the_middle() {
        let rounds: Vec<_> = (0..6).map(|round| order(round, 3)).collect();
        for place in 0..3 {
            let mut there: Vec<_> = rounds.iter().map(|round| round[place]).collect();
            there.sort_unstable();
            assert_eq!(there, [0, 0, 1, 1, 2, 2], "place {place} of {rounds:?}");
        }
        assert_eq!(median(vec![9.0, 1.0, 3.0]).to_bits(), 3.0_f64.to_bits());
    }

    #[test]
    fn the_table_has_the_medians_of_each_layout() {
        let sample = |kubelet| Sample {
            containerd: 0.5,
            kubelet,
            in_place: Some(kubelet),
            written: 1200.0,
        };
        let samples = [9.0, 8.0, 0.6].map(|of| vec![sample(of), sample(of + 9.0), sample(of - 0.5)]);
        let text = table("2.1.9", &samples);
        for row in [
            "| all bundles in k0s' folder, no airgapd | 0.5 s | 9.0 s | does not run | 1200 MB |",
            "| all bundles in a folder of airgapd, k0s' folder empty | 0.5 s | 0.6 s | 0.6 s | 1200 MB |",
        ] {
            assert!(text.contains(row), "{text}");
        }
    }

    #[test]
    fn the_kernel_has_an_account_of_this_process() {
        assert!(written_by(std::process::id()).unwrap() >= 0.0);
    }
}
