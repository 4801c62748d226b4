//! The scenarios, their contenders and their targets.

use bundle::Compression;
use clap::ValueEnum;
use lab::Generation;

use super::bundles::{Bundle, Bundles, SMALL_IMAGES};
use super::contender::Contender;

/// A measured case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(super) enum Scenario {
    /// A first import
    Cold,
    /// A first import of a bundle for four platforms
    Platforms,
    /// A first import of many small images
    Small,
    /// An import of images that are in containerd already
    Warm,
    /// An import of the next release
    Changed,
    /// A first import of a gzip bundle
    Gzip,
    /// A first import of a zstd bundle
    Zstd,
    /// A first import of a zstd bundle that comes through a pipe
    Pipe,
    /// A start of the daemon with nothing to do
    Restart,
    /// From a bundle that was written into the folder to its records
    Drop,
    /// From a bundle that was renamed into place to its records
    DropRenamed,
    /// From a dropped bundle to a container that has run, with and without unpacking ahead
    Running,
    /// The first container of an image that is in place, with and without unpacking ahead
    First,
    /// From a bundle of gzip layers to a container of each of its images
    Runnable,
    /// The same with zstd layers
    RunnableZstd,
}

/// A target for a figure.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    /// The way of airgapd that has the target.
    pub(super) of: Contender,
    pub(super) measure: Measure,
    pub(super) at_most: f64,
}

/// A figure of a contender that has a target.
#[derive(Clone, Copy, Debug)]
pub(super) enum Measure {
    /// In seconds.
    Time,
    /// Processor time, in seconds.
    Processor,
    /// Its time as a share of the sum of these contenders' times.
    TimeAgainst(&'static [Contender]),
    /// Its processor time as a share of that of another contender.
    ProcessorAgainst(Contender),
    /// Its peak memory as a share of that of another contender.
    MemoryAgainst(Contender),
}

impl Target {
    pub(super) fn in_words(self) -> String {
        match self.of {
            Contender::Airgapd => self.measure.in_words(),
            other => format!("{} of {}", self.measure.in_words(), other.name()),
        }
    }
}

impl Measure {
    fn in_words(self) -> String {
        match self {
            Self::Time => "seconds".to_owned(),
            Self::Processor => "CPU seconds".to_owned(),
            Self::TimeAgainst(others) => {
                let names: Vec<_> = others.iter().map(|other| other.name()).collect();
                format!("time against {}", names.join(" + "))
            }
            Self::ProcessorAgainst(other) => format!("CPU against {}", other.name()),
            Self::MemoryAgainst(other) => format!("memory against {}", other.name()),
        }
    }
}

impl Scenario {
    /// Returns the scenario of a name.
    pub(super) fn named(name: &str) -> Option<Self> {
        let mut all = Self::value_variants().iter().copied();
        all.find(|scenario| scenario.name() == name)
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Platforms => "platforms",
            Self::Small => "small",
            Self::Warm => "warm",
            Self::Changed => "changed",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Pipe => "pipe",
            Self::Restart => "restart",
            Self::Drop => "drop",
            Self::DropRenamed => "drop-renamed",
            Self::Running => "running",
            Self::First => "first",
            Self::Runnable => "runnable",
            Self::RunnableZstd => "runnable-zstd",
        }
    }

    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Cold => "first import of 600 MB, six images, one platform",
            Self::Platforms => "first import of 600 MB, three images, four platforms",
            Self::Small => "first import of 200 images of 40 KB",
            Self::Warm => "import of 600 MB that containerd has already",
            Self::Changed => "import of 600 MB of which a tenth is new",
            Self::Gzip => "first import of a .tar.gz, 600 MB of plain layers before compression",
            Self::Zstd => "first import of a .tar.zst, 600 MB of plain layers before compression",
            Self::Pipe => "first import of a .tar.zst of 600 MB through a pipe",
            Self::Restart => "start of the daemon to ready with 50 bundles and 500 images in place",
            Self::Drop => "from the end of writing a bundle of 10 MB into the folder to its last record",
            Self::DropRenamed => "from the rename of a bundle of 10 MB in the folder to its last record",
            Self::Running => {
                "from the end of copying a bundle of 120 MB to the end of a first, short container"
            }
            Self::First => "a first, short container of an imported image of 120 MB",
            Self::Runnable => {
                "from a bundle of five images, 1.2 GB of files in gzip layers, to a container of each"
            }
            Self::RunnableZstd => {
                "from a bundle of five images, 1.2 GB of files in zstd layers, to a container of each"
            }
        }
    }

    /// Returns true if containerd runs CRI. Comparisons of importers run without CRI, since it adds
    /// a record for each record, at unpredictable times.
    pub(super) fn needs_cri(self) -> bool {
        matches!(
            self,
            Self::Restart | Self::Drop | Self::DropRenamed | Self::Running | Self::First
        )
    }

    /// Returns true if creating files is much of the work. For each blob containerd makes a folder
    /// and several files, and deletes most of them.
    pub(super) fn makes_many_files(self) -> bool {
        matches!(self, Self::Small | Self::Runnable | Self::RunnableZstd)
    }

    /// Returns the size in bytes of containerd's own disk, if it has one. That disk is an ext4 with
    /// a journal, as the disks of nodes are. It needs no long rest before each run.
    ///
    /// The long rest is part of the full bench of small images. Their requests sync so often that a
    /// disk in a file would set their time.
    pub(super) fn disk(self, is_quick: bool) -> Option<u64> {
        let has_disk = match self {
            Self::Runnable | Self::RunnableZstd => true,
            Self::Small => is_quick,
            _ => false,
        };
        has_disk.then_some(5 << 30)
    }

    /// Returns the contenders. airgapd is the first.
    pub(super) fn contenders(self, generation: Generation) -> Vec<Contender> {
        use Contender::{
            Airgapd, AirgapdBackground, AirgapdPiped, AirgapdUnpacking, Copy, Ctr, CtrLocal, CtrLocalPiped,
            CtrLocalUnpacking, CtrPiped, Extract, Hash, K0s,
        };
        match self {
            Self::Cold => vec![Airgapd, AirgapdUnpacking, CtrLocal, Ctr, Hash, Copy],
            Self::Warm | Self::Changed => vec![Airgapd, AirgapdUnpacking, CtrLocal, Ctr],
            Self::Platforms | Self::Small => vec![Airgapd, CtrLocal],
            Self::Gzip | Self::Zstd => vec![Airgapd, AirgapdUnpacking, CtrLocalPiped, CtrPiped],
            Self::Pipe => vec![AirgapdPiped, CtrLocalPiped],
            Self::Restart => vec![Airgapd],
            Self::Drop | Self::DropRenamed => vec![Airgapd, CtrLocal, K0s],
            Self::Running | Self::First => vec![AirgapdUnpacking, Airgapd],
            // `ctr` of 1.6 always works this way.
            Self::Runnable | Self::RunnableZstd if generation == Generation::V1_6 => {
                vec![
                    AirgapdUnpacking,
                    AirgapdBackground,
                    Airgapd,
                    Ctr,
                    CtrLocal,
                    Extract,
                ]
            }
            Self::Runnable | Self::RunnableZstd => vec![
                AirgapdUnpacking,
                AirgapdBackground,
                Airgapd,
                Ctr,
                CtrLocalUnpacking,
                CtrLocal,
                Extract,
            ],
        }
    }

    /// Returns airgapd's way that ends with the same state in containerd as a contender. Only times
    /// to the same state are compared.
    pub(super) fn ours(self, contender: Contender) -> Contender {
        match self {
            Self::Pipe => Contender::AirgapdPiped,
            // Every contender ends with containers that have run.
            Self::Running | Self::First | Self::Runnable | Self::RunnableZstd => Contender::AirgapdUnpacking,
            _ if contender.unpacks() => Contender::AirgapdUnpacking,
            _ => Contender::Airgapd,
        }
    }

    /// Returns the contenders that are the limit of the machine together. Of a drop, it is the
    /// import without any watch.
    pub(super) fn floor(self) -> &'static [Contender] {
        match self {
            Self::Cold => &[Contender::Hash, Contender::Copy],
            Self::Drop | Self::DropRenamed => &[Contender::CtrLocal],
            Self::Runnable | Self::RunnableZstd => &[Contender::Extract],
            _ => &[],
        }
    }

    /// Returns the contenders whose times all times are compared with. Without any, airgapd's time
    /// is compared with every other.
    pub(super) fn yardsticks(self) -> &'static [Contender] {
        match self {
            Self::Runnable | Self::RunnableZstd => &[Contender::Ctr, Contender::Extract],
            _ => &[],
        }
    }

    pub(super) fn targets(self) -> &'static [Target] {
        use Contender::{
            Airgapd, AirgapdBackground, AirgapdPiped, AirgapdUnpacking, Copy, Ctr, CtrLocal, CtrLocalPiped,
            CtrPiped, Extract, Hash,
        };
        use Measure::{MemoryAgainst, Processor, ProcessorAgainst, Time, TimeAgainst};
        const fn target(measure: Measure, at_most: f64) -> Target {
            of(Airgapd, measure, at_most)
        }
        const fn of(of: Contender, measure: Measure, at_most: f64) -> Target {
            Target { of, measure, at_most }
        }
        const COLD: [Target; 4] = [
            target(TimeAgainst(&[CtrLocal]), 0.5),
            target(TimeAgainst(&[Hash, Copy]), 1.3),
            target(ProcessorAgainst(CtrLocal), 1.0),
            target(MemoryAgainst(CtrLocal), 1.0),
        ];
        const PLATFORMS: [Target; 1] = [target(TimeAgainst(&[CtrLocal]), 0.2)];
        const SMALL: [Target; 1] = [target(TimeAgainst(&[CtrLocal]), 0.6)];
        const WARM: [Target; 1] = [target(TimeAgainst(&[CtrLocal]), 0.02)];
        const GZIP: [Target; 1] = [of(AirgapdUnpacking, TimeAgainst(&[CtrPiped]), 0.8)];
        // At most 1.1 times `ctr`'s time divided by two.
        const ZSTD: [Target; 1] = [of(AirgapdUnpacking, TimeAgainst(&[CtrPiped]), 0.55)];
        const PIPE: [Target; 1] = [of(AirgapdPiped, TimeAgainst(&[CtrLocalPiped]), 0.6)];
        const RESTART: [Target; 2] = [target(Time, 0.3), target(Processor, 0.1)];
        const DROP: [Target; 1] = [target(Time, 0.15)];
        const RUNNABLE: [Target; 4] = [
            of(AirgapdUnpacking, TimeAgainst(&[Ctr]), 0.6),
            of(AirgapdUnpacking, TimeAgainst(&[Extract]), 1.3),
            of(AirgapdBackground, TimeAgainst(&[Ctr]), 0.6),
            of(AirgapdBackground, TimeAgainst(&[Extract]), 1.3),
        ];
        match self {
            Self::Cold => &COLD,
            Self::Platforms => &PLATFORMS,
            Self::Small => &SMALL,
            Self::Warm => &WARM,
            Self::Gzip => &GZIP,
            Self::Zstd => &ZSTD,
            Self::Pipe => &PIPE,
            Self::Restart => &RESTART,
            Self::Drop | Self::DropRenamed => &DROP,
            Self::Runnable | Self::RunnableZstd => &RUNNABLE,
            Self::Changed | Self::Running | Self::First => &[],
        }
    }

    /// Returns the program that decompresses the scenario's bundle or layers.
    pub(super) fn decompressor(self) -> &'static str {
        match self {
            Self::Zstd | Self::Pipe | Self::RunnableZstd => "zstd",
            _ => "gzip",
        }
    }

    /// Returns the fewest write transactions of containerd's database, for a scenario where they
    /// limit the time. A blob needs two, to open and to commit its ingest. A record needs one, and
    /// the lease two.
    pub(super) fn fewest_writes(self) -> Option<usize> {
        (self == Self::Small).then_some(2 * 3 * SMALL_IMAGES + 2 * SMALL_IMAGES + 2)
    }

    /// Returns the bundle to import, and the bundle that was imported before.
    pub(super) fn bundles(self, bundles: &Bundles) -> anyhow::Result<(Option<Bundle>, Bundle)> {
        Ok(match self {
            Self::Cold => (None, bundles.single()?),
            Self::Platforms => (None, bundles.platforms()?),
            Self::Small => (None, bundles.small()?),
            Self::Warm => (Some(bundles.single()?), bundles.single()?),
            Self::Changed => (Some(bundles.single()?), bundles.single_changed()?),
            Self::Gzip => (None, bundles.compressed(Compression::Gzip)?),
            Self::Zstd | Self::Pipe => (None, bundles.compressed(Compression::Zstd)?),
            Self::Restart => (None, bundles.many(0)?),
            Self::Drop | Self::DropRenamed => (None, bundles.demo()?),
            Self::Running | Self::First => (None, bundles.runnable()?),
            Self::Runnable => (None, bundles.trees(Compression::Gzip)?),
            Self::RunnableZstd => (None, bundles.trees(Compression::Zstd)?),
        })
    }
}
