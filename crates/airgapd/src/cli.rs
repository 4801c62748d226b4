//! The command line: what an operator can type.

mod common;

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use import::unpack::Unpack;
use verify::{K0sQuestion, Sources};

pub(crate) use self::common::{Common, OutputFormat, asks_for_json};
use self::common::{NameFlag, PlatformFlag, RateFlag};
use crate::config::{Flag, Words};

/// Imports image bundles into containerd on nodes without a registry.
#[derive(Debug, Parser)]
#[command(
    name = "airgapd",
    version,
    about,
    max_term_width = 100,
    disable_help_subcommand = true
)]
#[command(
    after_help = "Exit status: 0 done, 1 something failed or nothing landed, 2 usage or configuration, \
                        3 containerd cannot be reached, 4 something required is missing, 5 the bundle is bad and nothing landed, 6 waited in vain, 7 no daemon answers."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// A command: a task, which a configuration belongs to, or documentation, which none belongs to.
#[derive(Debug, Subcommand)]
#[expect(clippy::large_enum_variant, reason = "there is one of them in a run")]
pub(crate) enum Command {
    #[command(flatten)]
    Task(Task),
    #[command(flatten)]
    Documentation(Documentation),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Task {
    /// Watch the images folder and import every bundle in it (systemd starts this)
    Run(RunArgs),
    /// Import bundles now
    Import(ImportArgs),
    /// Show what is inside a bundle, what this node would take of it, and whether it is whole
    Inspect(InspectArgs),
    /// List the images that a k0s cluster needs, and those of Kubernetes manifests
    ListImages(ListImagesArgs),
    /// Say whether every image that this node will be asked for is there, whole
    Verify(VerifyArgs),
    /// Make a bundle of images in registries
    BundleArtifacts(BundleArtifactsArgs),
    /// Make a bundle of images that this node's containerd has
    Export(ExportArgs),
    /// Say what this node has, as JSON, for `bundle-artifacts --have`
    Inventory,
    /// Make bundles from bundles, or compare them
    Bundle(BundleArgs),
    /// Show how bundles and images stand, with the daemon or without
    Status(StatusArgs),
    /// List the images that containerd has, with who pinned them and the bundles that vouch for
    /// them
    Images(ImagesArgs),
    /// Say for an audit which images this node has of which files, since when, and who owns the
    /// files
    #[command(after_help = "\
The owner is that of the file now, for the ledger remembers none. Beside it stands whether content, owner and mode have changed \
since the last import. The first import is the earliest of this content under this file name that the ledger knows.

Exit status: 0 done, 1 there is no ledger to be read, 3 containerd cannot be reached.")]
    Report,
    /// Wait until every bundle of the images folder, or one, is in place
    Wait(WaitArgs),
    /// Say what on this node keeps bundles from being imported, and what to do about it
    Doctor,
    /// Take back our labels and pins; image records stay
    Release(ReleaseArgs),
    /// Show the effective configuration and where each value comes from
    Config(ConfigArgs),
}

/// Documents that packages ship beside the program. They follow from the definition of the command
/// line alone.
#[derive(Debug, Subcommand)]
pub(crate) enum Documentation {
    /// Print the completions for a shell
    Completions(CompletionsArgs),
    /// Print the manual page, or write all of them into a folder
    Man(ManArgs),
}

#[derive(Args, Debug)]
pub(crate) struct CompletionsArgs {
    /// Which shell
    #[arg(value_name = "SHELL")]
    pub(crate) shell: clap_complete::Shell,
}

#[derive(Args, Debug)]
pub(crate) struct ManArgs {
    /// Write one page for the program and one for each command there
    #[arg(value_name = "FOLDER")]
    pub(crate) folder: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    platform: PlatformFlag,
    #[command(flatten)]
    rate: RateFlag,
}

#[derive(Args, Debug)]
pub(crate) struct ImportArgs {
    /// Bundles: files, or folders with extracted OCI image layouts, anywhere and also in the images
    /// folder
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// Print what would be done, and do nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    names: NameFlag,
    /// Unpack the layers, too, so that the first container need not wait for it: background (after
    /// all records) or before-record (an image that cannot be unpacked gets none)
    #[arg(long, value_name = "WHEN", value_parser = one_of::<Unpack>())]
    unpack: Option<Unpack>,
    #[command(flatten)]
    platform: PlatformFlag,
    #[command(flatten)]
    rate: RateFlag,
}

#[derive(Args, Debug)]
pub(crate) struct InspectArgs {
    /// The bundle: a file, or a folder with an extracted OCI image layout
    #[arg(required = true, value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Read every byte and check it against its digest
    #[arg(long)]
    pub(crate) verify: bool,
    #[command(flatten)]
    names: NameFlag,
    #[command(flatten)]
    platform: PlatformFlag,
}

#[derive(Args, Debug)]
pub(crate) struct ListImagesArgs {
    #[command(flatten)]
    pub(crate) k0s: K0sArgs,
    /// Only the images of manifests
    #[arg(long, requires = "manifests", conflicts_with_all = ["k0s_config", "k0s_version", "k0s", "image_set", "all"])]
    pub(crate) no_k0s: bool,
    #[command(flatten)]
    pub(crate) manifests: ManifestArgs,
    /// The platform of the nodes, such as linux/arm64 or windows/amd64; without it, this machine's
    #[arg(long, value_name = "PLATFORM")]
    pub(crate) platform: Option<String>,
}

impl Task {
    /// Whether `--output` may be a file.
    pub(crate) fn writes_a_file(&self) -> bool {
        matches!(
            self,
            Task::BundleArtifacts(_)
                | Task::Export(_)
                | Task::Inventory
                | Task::Bundle(BundleArgs {
                    verb: BundleVerb::Merge(_) | BundleVerb::Split(_)
                })
        )
    }

    /// The flags for the configuration that were typed.
    pub(crate) fn flags(&self, common: &Common) -> Vec<Flag> {
        let typed = match self {
            Task::Run(args) => vec![args.platform.flag(), args.rate.flag()],
            Task::Import(args) => vec![
                args.platform.flag(),
                args.names.flag(),
                args.unpack.map(Flag::Unpack),
                args.rate.flag(),
            ],
            Task::Inspect(args) => vec![args.platform.flag(), args.names.flag()],
            Task::Verify(args) => vec![args.platform.flag()],
            Task::Export(args) => vec![args.platform.flag()],
            Task::Release(_)
            | Task::Config(_)
            | Task::ListImages(_)
            | Task::BundleArtifacts(_)
            | Task::Inventory
            | Task::Bundle(_)
            | Task::Doctor
            | Task::Report
            | Task::Status(_)
            | Task::Images(_)
            | Task::Wait(_) => Vec::new(),
        };
        common
            .flags()
            .into_iter()
            .chain(typed.into_iter().flatten())
            .collect()
    }
}

/// How registries are spoken to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Insecure {
    /// By TLS, with certificates that are checked.
    #[default]
    No,
    /// By TLS, whoever answers.
    SkipTlsVerify,
    /// Without TLS.
    PlainHttp,
}

/// Compressions that bundles are written in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Compress {
    /// None: most layers are compressed already.
    #[default]
    None,
    /// zstd in frames that can be read one by one.
    Zstd,
    /// gzip.
    Gzip,
}

#[derive(Args, Debug)]
#[command(after_help = "\
The bundle goes to --output FILE, or to standard output with --output -. Images may also come on standard input, one on \
each line; empty lines and those that begin with # do not count.

  airgapd bundle-artifacts registry.k8s.io/pause:3.10 quay.io/k0sproject/coredns:1.12.2 -o images.tar
  airgapd list-images | airgapd bundle-artifacts --platform linux/amd64 --platform linux/arm64 -o images.tar
  airgapd bundle-artifacts --base images-1.31.tar -o update.tar < images-1.32.txt")]
pub(crate) struct BundleArtifactsArgs {
    /// Images by tag, by digest or both; from standard input if there are none here
    #[arg(value_name = "REFERENCE")]
    pub(crate) references: Vec<String>,
    /// Take the best of each image for this platform; `all` takes everything [default: this
    /// machine's]
    #[arg(long = "platform", value_name = "PLATFORM")]
    pub(crate) platforms: Vec<String>,
    /// How the bundle is compressed
    #[arg(long, value_enum, default_value_t, value_name = "FORM")]
    pub(crate) compress: Compress,
    /// Make a delta: leave out layers that this bundle has; may be given several times
    #[arg(long, value_name = "BUNDLE")]
    pub(crate) base: Vec<PathBuf>,
    /// Make a delta: leave out layers that a node has, by the answer of `airgapd inventory`; may be
    /// given several times
    #[arg(long, value_name = "INVENTORY")]
    pub(crate) have: Vec<PathBuf>,
    /// Keep what was fetched in this folder, and do not fetch it again
    #[arg(long, value_name = "FOLDER")]
    pub(crate) cache: Option<PathBuf>,
    /// How many transfers run at a time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) concurrency: u16,
    /// How often a transfer is tried again that makes no progress
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub(crate) retries: u32,
    /// Whether registries may be spoken to without checked TLS; holds for all of them
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    pub(crate) insecure_registries: Insecure,
    /// Credentials as docker, podman and skopeo keep them [default: where those keep them]
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub(crate) registries_config: Vec<PathBuf>,
    /// Trust the certificates in this PEM file, too; may be given several times
    #[arg(long, value_name = "FILE")]
    pub(crate) ca_file: Vec<PathBuf>,
    /// Look for images below a prefix elsewhere first: docker.io=mirror.example:5000/hub; may be
    /// given several times
    #[arg(long, value_name = "PREFIX=PREFIX")]
    pub(crate) mirror: Vec<registry::Rule>,
    /// Fetch images below a prefix from elsewhere, under their own names; may be given several
    /// times
    #[arg(long, value_name = "PREFIX=PREFIX")]
    pub(crate) rewrite: Vec<registry::Rule>,
}

#[derive(Args, Debug)]
#[command(after_help = "\
The bundle goes to --output FILE, or to standard output with --output -. Images may also come on standard input, one on \
each line; empty lines and those that begin with # do not count. Of each image what is whole for this node's platform is \
taken, or for those of --platform; the digest of its index stays the same.

  airgapd export --all -o node.tar
  airgapd export registry.k8s.io/pause:3.10 quay.io/k0sproject/coredns:1.12.2 -o images.tar
  airgapd list-images | airgapd export --compress zstd -o images.tar.zst")]
pub(crate) struct ExportArgs {
    /// Images by tag, by digest, by both or by id; from standard input if none are named
    #[arg(value_name = "REFERENCE", conflicts_with = "all")]
    pub(crate) references: Vec<String>,
    /// Everything that has a name and is whole
    #[arg(long, conflicts_with = "images")]
    pub(crate) all: bool,
    /// Lists of references, one on each line; - for standard input
    #[arg(long, num_args = 1.., value_name = "LIST")]
    pub(crate) images: Vec<PathBuf>,
    /// How the bundle is compressed
    #[arg(long, value_enum, default_value_t, value_name = "FORM")]
    pub(crate) compress: Compress,
    #[command(flatten)]
    platform: PlatformFlag,
}

#[derive(Args, Debug)]
pub(crate) struct BundleArgs {
    #[command(subcommand)]
    pub(crate) verb: BundleVerb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BundleVerb {
    /// Make one bundle of several; a delta and its base make a whole one
    Merge(MergeArgs),
    /// Make several bundles of one, each of whole images, that are imported independently
    Split(SplitArgs),
    /// Say what changes from one bundle to another
    Diff(DiffArgs),
}

#[derive(Args, Debug)]
#[command(after_help = "\
The bundle goes to --output FILE, or to standard output with --output -. Where bundles have different images under one \
name, the last one counts. Of a single bundle it makes one of airgapd's form: from a Docker archive, say.")]
pub(crate) struct MergeArgs {
    /// The bundles: files, or folders with extracted OCI image layouts
    #[arg(required = true, value_name = "FILE")]
    pub(crate) bundles: Vec<PathBuf>,
    /// How the bundle is compressed
    #[arg(long, value_enum, default_value_t, value_name = "FORM")]
    pub(crate) compress: Compress,
}

#[derive(Args, Debug)]
#[command(after_help = "With --output images.tar the volumes are images-1.tar, images-2.tar and so on.")]
pub(crate) struct SplitArgs {
    /// The bundle: a file, or a folder with an extracted OCI image layout
    #[arg(required = true, value_name = "FILE")]
    pub(crate) bundle: PathBuf,
    /// The most that a volume may have before it is compressed, such as 4GiB or 4.7GB
    #[arg(long, value_name = "SIZE")]
    pub(crate) max_size: Size,
    /// How the volumes are compressed
    #[arg(long, value_enum, default_value_t, value_name = "FORM")]
    pub(crate) compress: Compress,
}

#[derive(Args, Debug)]
pub(crate) struct DiffArgs {
    /// The one bundle
    #[arg(required = true, value_name = "FROM")]
    pub(crate) from: PathBuf,
    /// The other
    #[arg(required = true, value_name = "TO")]
    pub(crate) to: PathBuf,
}

/// A size in bytes, typed with a unit: what is sold in powers of ten has `GB`, what is counted in
/// powers of two `GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

impl std::str::FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        const UNITS: [(&str, u64); 9] = [
            ("KiB", 1 << 10),
            ("MiB", 1 << 20),
            ("GiB", 1 << 30),
            ("TiB", 1 << 40),
            ("kB", 1_000),
            ("MB", 1_000_000),
            ("GB", 1_000_000_000),
            ("TB", 1_000_000_000_000),
            ("B", 1),
        ];
        let with_unit = UNITS
            .iter()
            .find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor)));
        let (digits, factor) = with_unit.unwrap_or((text, 1));
        let (whole, part) = digits
            .trim_end()
            .split_once('.')
            .unwrap_or((digits.trim_end(), "0"));
        let read = || {
            let scale = 10_u64.checked_pow(u32::try_from(part.len()).ok()?)?;
            let digits: u64 = format!("{whole}{part}").parse().ok()?;
            let bytes = u128::from(digits) * u128::from(factor) / u128::from(scale);
            u64::try_from(bytes).ok().filter(|bytes| *bytes > 0)
        };
        read()
            .map(Size)
            .ok_or_else(|| "it should be a size such as 4GiB or 4.7GB".to_owned())
    }
}

#[derive(Args, Debug)]
pub(crate) struct VerifyArgs {
    /// Lists of references, one on each line; - for standard input
    #[arg(long, num_args = 1.., value_name = "LIST")]
    pub(crate) images: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) k0s: K0sArgs,
    #[command(flatten)]
    pub(crate) manifests: ManifestArgs,
    /// kubelet's folder of static pods
    #[arg(long, value_name = "DIR")]
    pub(crate) static_pods: Option<PathBuf>,
    /// What containerd starts every pod with, where it does not tell
    #[arg(long, value_name = "REFERENCE")]
    pub(crate) sandbox_image: Option<String>,
    /// Also want that nobody pulls: every pull policy must be Never
    #[arg(long)]
    pub(crate) require_never: bool,
    /// kubelet's configuration, to be warned of settings that refuse imported images
    #[arg(long, value_name = "FILE")]
    pub(crate) kubelet_config: Option<PathBuf>,
    /// kubelet's root folder, to find records of pulls for which it refuses images that are there
    #[arg(long, value_name = "DIR", conflicts_with = "bundles")]
    pub(crate) kubelet_root: Option<PathBuf>,
    /// Ask bundles instead of containerd, before they travel
    #[arg(long = "bundle", num_args = 1.., value_name = "FILE")]
    pub(crate) bundles: Vec<PathBuf>,
    #[command(flatten)]
    platform: PlatformFlag,
}

#[derive(Args, Debug)]
#[command(after_help = "\
One row for each image, with all its names; names by digest are shown where there is no other. An image that a bundle vouches for \
and that is missing is listed, too. SIZE is that of the blobs that this node needs.

Exit status: 0 done, 1 an image that a bundle vouches for is missing or not whole, 3 containerd cannot be reached, 4 no image \
has a name that matches.")]
pub(crate) struct ImagesArgs {
    /// Only images with a name that matches as a whole: * stands for any characters, ? for one
    #[arg(value_name = "PATTERN")]
    pub(crate) pattern: Option<import::Pattern>,
}

#[derive(Args, Debug)]
pub(crate) struct StatusArgs {
    /// Go on showing it, until interrupted
    #[arg(long)]
    pub(crate) watch: bool,
}

#[derive(Args, Debug)]
#[command(after_help = "\
The images folder is listed first, so a file counts that was copied a moment ago. Uploads that have come to a halt are \
waited for like others. With --digest the names of files and images do not count: a rollout that brings new content under an old \
name waits for that content, also where no bundle has it yet. With --bundle and --digest this bundle must have it.

Exit status: 0 in place, 1 failed, 3 not in time because containerd is away, 4 in place and something required is missing, 6 not in \
time, 7 no daemon answers.")]
pub(crate) struct WaitArgs {
    /// Only for this bundle, by its file name in the images folder; may be given several times
    #[arg(long = "bundle", value_name = "NAME")]
    pub(crate) bundles: Vec<String>,
    /// Only for this content: the digest of an image, or of a bundle as `airgapd inspect` has it;
    /// may be given several times
    #[arg(long = "digest", value_name = "DIGEST", value_parser = basics::digest::parse)]
    pub(crate) digests: Vec<oci_spec::image::Digest>,
    /// For every bundle of the folder, as without --bundle
    #[arg(long, conflicts_with_all = ["bundles", "digests"])]
    pub(crate) all: bool,
    /// Also for every image that the configuration requires (`require`)
    #[arg(long)]
    pub(crate) required: bool,
    /// Take a folder without any bundle for converged, instead of waiting for one
    #[arg(long, conflicts_with_all = ["bundles", "digests"])]
    pub(crate) allow_empty: bool,
    /// How long, such as 90s or 10m; 0s only looks once
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = humantime::parse_duration)]
    pub(crate) timeout: std::time::Duration,
}

#[derive(Args, Debug)]
pub(crate) struct ReleaseArgs {
    /// Bundles by file name, or images by name
    #[arg(value_name = "NAME", required_unless_present_any = ["all", "vanished"], conflicts_with_all = ["all", "vanished"])]
    pub(crate) names: Vec<String>,
    /// Everything that airgapd ever labelled or pinned
    #[arg(long)]
    pub(crate) all: bool,
    /// What bundles vouch for that are no longer in the images folder
    #[arg(long, conflicts_with = "all")]
    pub(crate) vanished: bool,
    /// Print what would be taken back, and do nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Args, Debug)]
pub(crate) struct ConfigArgs {
    /// Only say whether the configuration is usable
    #[arg(long)]
    pub(crate) check: bool,
}

/// The flags for the images of k0s.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct K0sArgs {
    /// The cluster configuration, of k0s or k0sctl; - for standard input
    #[arg(long, value_name = "FILE")]
    k0s_config: Option<PathBuf>,
    /// The release of k0s, such as v1.34.10+k0s.0 or 1.34
    #[arg(long, value_name = "RELEASE")]
    k0s_version: Option<String>,
    /// The k0s program to ask
    #[arg(long, value_name = "FILE", conflicts_with_all = ["k0s_version", "image_set"])]
    k0s: Option<PathBuf>,
    /// A file with the images of other releases
    #[arg(long, value_name = "FILE")]
    image_set: Option<PathBuf>,
    /// Also the images that the configuration of k0s does not use
    #[arg(long)]
    all: bool,
}

impl K0sArgs {
    /// The question that these flags ask.
    pub(crate) fn question(&self) -> K0sQuestion {
        K0sQuestion {
            k0s_config: self.k0s_config.clone(),
            k0s_version: self.k0s_version.clone(),
            k0s: self.k0s.clone(),
            image_set: self.image_set.clone(),
            all: self.all,
            is_release_wanted: false,
        }
    }
}

/// The flag for manifests.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct ManifestArgs {
    /// Kubernetes YAML or JSON: files, folders with all that is below them, or - for standard input
    #[arg(long, num_args = 1.., value_name = "FILE|DIR")]
    pub(crate) manifests: Vec<PathBuf>,
}

impl VerifyArgs {
    /// The sources that the operator names.
    pub(crate) fn sources(&self) -> Sources {
        Sources {
            images: self.images.clone(),
            k0s: self.k0s.question(),
            manifests: self.manifests.manifests.clone(),
            static_pods: self.static_pods.clone(),
            sandbox_image: self.sandbox_image.clone(),
        }
    }
}

/// Reads one of the words that the configuration takes for a value, too.
fn one_of<T: Words + Send + Sync>() -> impl TypedValueParser<Value = T> {
    let meaning = |text: String| {
        T::WORDS
            .iter()
            .find(|(word, _)| *word == text)
            .map(|(_, meaning)| *meaning)
    };
    PossibleValuesParser::new(T::WORDS.iter().map(|(word, _)| *word))
        .map(move |text| meaning(text).expect("it is one of the words"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_of_both_kinds() {
        let rows = [
            ("512", Some(512)),
            ("4GiB", Some(4 << 30)),
            ("4.7GB", Some(4_700_000_000)),
            ("1.5 MiB", Some(3 << 19)),
            ("700B", Some(700)),
            ("0GB", None),
            ("-1GB", None),
            ("GB", None),
            ("1.2.3MB", None),
            ("99999999999TB", None),
            ("1.00000000000000000000001MB", None),
        ];
        for (text, wanted) in rows {
            assert_eq!(text.parse::<Size>().ok(), wanted.map(Size), "{text}");
        }
    }
}
