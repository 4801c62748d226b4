//! The command line: what an operator can type.

mod airgap;
mod common;
mod size;
mod surface;

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use import::unpack::Unpack;
use node::settings::Signatures;
use verify::{K0sQuestion, Sources};

use self::airgap::AirgapArgs;
pub(crate) use self::common::{Common, OutputFormat, asks_for_json};
use self::common::{NameFlag, PlatformFlag, RateFlag};
pub(crate) use self::size::Size;
pub(crate) use self::surface::{definition, parse, parse_from};
use crate::config::{Flag, Words};

/// Imports image bundles into containerd on nodes without a registry.
#[derive(Debug, Parser)]
#[command(name = "airgapd", version, about, max_term_width = 100)]
#[command(after_help = "\
Exit status:
  0  done                     4  a required image is missing
  1  failed                   5  bad bundle, no image imported
  2  usage or configuration   6  timeout
  3  containerd is away       7  no daemon answers

\"airgapd help COMMAND\" shows the flags of a command. systemd starts the daemon with \
\"airgapd run\", and a timer \"airgapd scrub\". Audits use report. Programs and packages use inventory, completions and man.")]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// A command: a task, which has a configuration, documentation, which has none, or a line of k0s.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    #[command(flatten)]
    Task(Task),
    #[command(flatten)]
    Documentation(Documentation),
    /// Answer the command lines of `k0s airgap`
    #[command(hide = true)]
    Airgap(AirgapArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Task {
    /// Run the daemon: watch the images folder and import each bundle
    #[command(hide = true)]
    Run(RunArgs),
    /// Import bundles now
    Import(ImportArgs),
    /// Show the contents of a bundle and what a node takes of it
    Inspect(InspectArgs),
    /// List the images that k0s and Kubernetes manifests need
    ListImages(ListImagesArgs),
    /// Check that this node has every image that its pods need
    Verify(VerifyArgs),
    /// Make a bundle of images in registries
    BundleArtifacts(BundleArtifactsArgs),
    /// Make a bundle of images in this node's containerd
    Export(ExportArgs),
    /// Print the blobs of this node as JSON, for `bundle-artifacts --have`
    #[command(hide = true)]
    Inventory,
    /// Merge, split or compare bundles
    Bundle(BundleArgs),
    /// Show the state of this node, its bundles and images
    Status(StatusArgs),
    /// List the images of this node with their pins and bundles
    Images(ImagesArgs),
    /// Print an audit report: images, files, owners and times
    #[command(
        hide = true,
        after_help = "\
The report names the owner that each file has now. It says if content, owner or mode have changed since the last import. \
The first import is the earliest one of this content under this file name in the state file.

Exit status:
  0  done
  1  no readable state file
  3  containerd is away"
    )]
    Report,
    /// Wait until bundles are in place
    Wait(WaitArgs),
    /// Find problems of this node and print the remedies
    #[command(after_help = "\
Exit status:
  0  no problem
  1  a problem")]
    Doctor,
    /// Remove the pins and labels of airgapd from images
    Release(ReleaseArgs),
    /// Give a former release on this node its image names back
    Rollback(RollbackArgs),
    /// Read the blobs of bundles in containerd again and replace wrong ones
    #[command(hide = true)]
    Scrub(ScrubArgs),
    /// Show the configuration and the origin of each value
    Config(ConfigArgs),
}

/// Documents that packages ship beside the program, made of the definition of the command line
/// alone.
#[derive(Debug, Subcommand)]
pub(crate) enum Documentation {
    /// Print the completions for a shell
    #[command(hide = true)]
    Completions(CompletionsArgs),
    /// Print the manual page or write all pages into a folder
    #[command(hide = true)]
    Man(ManArgs),
}

#[derive(Args, Debug)]
pub(crate) struct CompletionsArgs {
    /// Shell
    #[arg(value_name = "SHELL")]
    pub(crate) shell: clap_complete::Shell,
}

#[derive(Args, Debug)]
pub(crate) struct ManArgs {
    /// Folder for one page of the program and one of each command
    #[arg(value_name = "DIR")]
    pub(crate) folder: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    platform: PlatformFlag,
    #[command(flatten)]
    rate: RateFlag,
}

/// Reads the value of `--spool`.
fn spool(text: &str) -> Result<u64, String> {
    match text {
        "0" => Ok(0),
        text => text.parse::<Size>().map(|size| size.0),
    }
}

#[derive(Args, Debug)]
#[command(after_help = "\
Exit status:
  0  done
  1  failed
  3  containerd is away
  5  bad bundle, no image imported")]
pub(crate) struct ImportArgs {
    /// Bundles: files, named pipes, folders with extracted OCI image layouts, or - for stdin
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// Only print what the import would do
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Most space in the state folder for a bundle from a pipe that cannot be imported in one pass.
    /// The file has no name and ends with the command. 0 forbids it
    #[arg(long, value_name = "SIZE", value_parser = spool, default_value = "4GiB")]
    pub(crate) spool: u64,
    /// Further proof for the bundles: a signature, or a signed list with its signature beside it.
    /// It adds no key and changes no rule. Repeatable
    #[arg(long = "proof", value_name = "FILE")]
    pub(crate) proofs: Vec<PathBuf>,
    /// Leave a receipt for each bundle: the daemon then keeps its images in place without the file
    #[arg(long, conflicts_with = "dry_run")]
    pub(crate) keep: bool,
    #[command(flatten)]
    names: NameFlag,
    /// Unpack the layers, so that the first container starts at once: background (after all
    /// records) or before-record (an image that fails to unpack gets no record)
    #[arg(long, value_name = "WHEN", value_parser = one_of::<Unpack>())]
    unpack: Option<Unpack>,
    #[command(flatten)]
    platform: PlatformFlag,
    #[command(flatten)]
    rate: RateFlag,
}

#[derive(Args, Debug)]
#[command(after_help = "\
Exit status:
  0  the bundle is whole
  1  the file cannot be read
  5  bad bundle")]
pub(crate) struct InspectArgs {
    /// Bundle: a file, or a folder with an extracted OCI image layout. With --digest, any number
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// Check every byte against its digest
    #[arg(long)]
    pub(crate) verify: bool,
    /// Print only a line with the content digest and the file name of each bundle
    #[arg(long, conflicts_with = "verify")]
    pub(crate) digest: bool,
    #[command(flatten)]
    names: NameFlag,
    #[command(flatten)]
    platform: PlatformFlag,
}

#[derive(Args, Debug)]
pub(crate) struct ListImagesArgs {
    #[command(flatten)]
    pub(crate) k0s: K0sArgs,
    /// Only the images of manifests, none of k0s
    #[arg(long, requires = "manifests", conflicts_with_all = ["k0s_config", "k0s_version", "k0s", "image_set", "all"])]
    pub(crate) no_k0s: bool,
    #[command(flatten)]
    pub(crate) manifests: ManifestArgs,
    /// Platform of the nodes, such as linux/arm64 or windows/amd64 [default: this machine's]
    #[arg(long, value_name = "PLATFORM")]
    pub(crate) platform: Option<String>,
}

impl Task {
    /// Returns true if `--output` may be a file.
    pub(crate) fn writes_a_file(&self) -> bool {
        matches!(
            self,
            Task::BundleArtifacts(_)
                | Task::Export(_)
                | Task::Inventory
                | Task::Bundle(BundleArgs {
                    verb: BundleVerb::Merge(_) | BundleVerb::Split(_) | BundleVerb::Release(_)
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
            Task::Scrub(args) => vec![args.rate.flag()],
            Task::Config(args) => vec![args.signatures.map(Flag::Signatures)],
            Task::Release(_)
            | Task::ListImages(_)
            | Task::BundleArtifacts(_)
            | Task::Inventory
            | Task::Bundle(_)
            | Task::Doctor
            | Task::Report
            | Task::Status(_)
            | Task::Images(_)
            | Task::Wait(_)
            | Task::Rollback(_) => Vec::new(),
        };
        common
            .flags()
            .into_iter()
            .chain(typed.into_iter().flatten())
            .collect()
    }
}

/// Trust in the registries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Insecure {
    /// TLS with checked certificates
    #[default]
    No,
    /// TLS without a check of certificates
    SkipTlsVerify,
    /// No TLS
    PlainHttp,
}

/// Compressions that bundles are written in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Compress {
    /// None: most layers are compressed already
    #[default]
    None,
    /// zstd in frames that readers can open one by one
    Zstd,
    /// gzip
    Gzip,
}

#[derive(Args, Debug)]
#[command(after_help = "\
The bundle goes to --output FILE, or to standard output. Standard input may have the images, between white space. A word \
that begins with # ends its line.

  airgapd bundle-artifacts registry.k8s.io/pause:3.10 quay.io/k0sproject/coredns:1.12.2 -o images.tar
  airgapd list-images | airgapd bundle-artifacts --platform linux/amd64 --platform linux/arm64 -o images.tar
  airgapd bundle-artifacts --base images-1.31.tar -o update.tar < images-1.32.txt")]
pub(crate) struct BundleArtifactsArgs {
    /// Images by tag, by digest or both [default: those on standard input]
    #[arg(value_name = "REFERENCE")]
    pub(crate) references: Vec<String>,
    /// Platform of the nodes, `all` for every platform, repeatable [default: this machine's]
    #[arg(long = "platform", value_name = "PLATFORM")]
    pub(crate) platforms: Vec<String>,
    /// Compression of the bundle
    #[arg(long, value_enum, default_value_t, value_name = "FORM")]
    pub(crate) compress: Compress,
    /// Make a delta without the layers that this bundle has, repeatable
    #[arg(long, value_name = "BUNDLE")]
    pub(crate) base: Vec<PathBuf>,
    /// Make a delta without the layers in this output of `airgapd inventory`, repeatable
    #[arg(long, value_name = "INVENTORY")]
    pub(crate) have: Vec<PathBuf>,
    /// Name of the release that the bundle is by itself
    #[arg(long, value_name = "NAME", value_parser = release_name)]
    pub(crate) release: Option<String>,
    /// Folder that keeps downloads for the next run
    #[arg(long, value_name = "DIR")]
    pub(crate) cache: Option<PathBuf>,
    /// Transfers at a time, at most 64 of them
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) concurrency: u64,
    /// Retries of a transfer that makes no progress
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub(crate) retries: u32,
    /// Trust in all registries
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    pub(crate) insecure_registries: Insecure,
    /// Credentials in the form of docker, podman and skopeo, repeatable [default: their files]
    #[arg(long, value_name = "FILE")]
    pub(crate) registries_config: Vec<PathBuf>,
    /// PEM file with further trusted certificates, repeatable
    #[arg(long, value_name = "FILE")]
    pub(crate) ca_file: Vec<PathBuf>,
    /// Mirror to ask first for a prefix, as in docker.io=mirror.example:5000/hub, repeatable
    #[arg(long, value_name = "PREFIX=PREFIX")]
    pub(crate) mirror: Vec<registry::Rule>,
    /// Registry to ask instead for a prefix, repeatable. Images keep their names
    #[arg(long, value_name = "PREFIX=PREFIX")]
    pub(crate) rewrite: Vec<registry::Rule>,
    /// True if an empty list makes an empty bundle, as in k0s.
    #[arg(skip)]
    pub(crate) may_be_empty: bool,
}

#[derive(Args, Debug)]
#[command(after_help = "\
The bundle goes to --output FILE, or to standard output. Standard input may have the images, between white space. A word \
that begins with # ends its line. The bundle has what is whole of \
each image for this node's platform, or for those of --platform. The digest of the image's index stays the same.

  airgapd export --all -o node.tar
  airgapd export registry.k8s.io/pause:3.10 quay.io/k0sproject/coredns:1.12.2 -o images.tar
  airgapd list-images | airgapd export --compress zstd -o images.tar.zst")]
pub(crate) struct ExportArgs {
    /// Images by tag, by digest, by both or by id [default: those on standard input]
    #[arg(value_name = "REFERENCE", conflicts_with = "all")]
    pub(crate) references: Vec<String>,
    /// Every image that has a name and is whole
    #[arg(long, conflicts_with = "images")]
    pub(crate) all: bool,
    /// File with references between white space, or - for standard input, repeatable
    #[arg(long, value_name = "FILE")]
    pub(crate) images: Vec<PathBuf>,
    /// Compression of the bundle
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
    /// Make one bundle of several. A delta and its base make a whole one
    Merge(MergeArgs),
    /// Make several bundles of one, each of whole images
    Split(SplitArgs),
    /// Show the changes from one bundle to another
    Diff(DiffArgs),
    /// Write bundles anew as a release: each with the list of all their images
    Release(ReleaseBundlesArgs),
}

#[derive(Args, Debug)]
#[command(after_help = "\
The bundle goes to --output FILE, or to standard output. If bundles have different images under \
a name, the last bundle counts. A single bundle is written anew in airgapd's form: a Docker archive becomes an OCI layout.")]
pub(crate) struct MergeArgs {
    /// Bundles: files, or folders with extracted OCI image layouts
    #[arg(required = true, value_name = "FILE")]
    pub(crate) bundles: Vec<PathBuf>,
    /// Compression of the bundle
    #[arg(long, value_enum, default_value_t, value_name = "FORM")]
    pub(crate) compress: Compress,
}

#[derive(Args, Debug)]
#[command(after_help = "With --output images.tar the volumes are images-1.tar, images-2.tar and so on.")]
pub(crate) struct SplitArgs {
    /// Bundle: a file, or a folder with an extracted OCI image layout
    #[arg(required = true, value_name = "FILE")]
    pub(crate) bundle: PathBuf,
    /// Largest size of a volume before compression, such as 4GiB or 4.7GB
    #[arg(long, value_name = "SIZE")]
    pub(crate) max_size: Size,
    /// Compression of the volumes
    #[arg(long, value_enum, default_value_t, value_name = "FORM")]
    pub(crate) compress: Compress,
}

#[derive(Args, Debug)]
#[command(after_help = "\
The bundles go into the folder --output DIR, under the names that they have. DIR has all of them or none: it must be a new \
or an empty folder. A node has the release in place when it has every image of the list in place. Sign the new bundles, \
since their content digests cover the list.

  airgapd bundle release shop-4.2 base.tar shop.tar -o shop-4.2")]
pub(crate) struct ReleaseBundlesArgs {
    /// Name of the release: letters, digits and . _ + - in any order, a letter or a digit first
    #[arg(value_name = "NAME", value_parser = release_name)]
    pub(crate) release: String,
    /// Bundles: files, or folders with extracted OCI image layouts
    #[arg(required = true, value_name = "FILE")]
    pub(crate) bundles: Vec<PathBuf>,
    /// Compression of the bundles [default: that of each bundle]
    #[arg(long, value_enum, value_name = "FORM")]
    pub(crate) compress: Option<Compress>,
}

#[derive(Args, Debug)]
pub(crate) struct DiffArgs {
    /// Old bundle
    #[arg(required = true, value_name = "FROM")]
    pub(crate) from: PathBuf,
    /// New bundle
    #[arg(required = true, value_name = "TO")]
    pub(crate) to: PathBuf,
}

#[derive(Args, Debug)]
#[command(after_help = "\
Exit status:
  0  every image is there
  3  containerd is away
  4  an image is missing or refused
  5  bad bundle")]
pub(crate) struct VerifyArgs {
    /// Images that this node must have
    #[arg(value_name = "IMAGE")]
    pub(crate) references: Vec<String>,
    /// File with references between white space, or - for standard input, repeatable
    #[arg(long, value_name = "FILE")]
    pub(crate) images: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) k0s: K0sArgs,
    #[command(flatten)]
    pub(crate) manifests: ManifestArgs,
    /// kubelet's folder of static pods
    #[arg(long, value_name = "DIR")]
    pub(crate) static_pods: Option<PathBuf>,
    /// Sandbox image of every pod, if containerd does not tell it
    #[arg(long, value_name = "REFERENCE")]
    pub(crate) sandbox_image: Option<String>,
    /// Fail if a pull policy is not Never
    #[arg(long)]
    pub(crate) require_never: bool,
    /// kubelet's configuration, for a warning about settings that refuse imported images
    #[arg(long, value_name = "FILE")]
    pub(crate) kubelet_config: Option<PathBuf>,
    /// kubelet's root folder, to find records of pulls that make it refuse present images
    #[arg(long, value_name = "DIR", conflicts_with = "bundles")]
    pub(crate) kubelet_root: Option<PathBuf>,
    /// Fail if an image came with no bundle that a key of trustedKeys has signed
    #[arg(long, conflicts_with = "bundles")]
    pub(crate) require_signed: bool,
    /// Check this bundle instead of containerd, before its transport, repeatable
    #[arg(long = "bundle", value_name = "FILE")]
    pub(crate) bundles: Vec<PathBuf>,
    #[command(flatten)]
    platform: PlatformFlag,
}

#[derive(Args, Debug)]
#[command(after_help = "\
Each image has a row with all its names. Names by digest appear only without another name. The list includes missing images \
of bundles. SIZE is that of the blobs that this node needs.

Exit status:
  0  done
  1  an image of a bundle is missing or not whole
  3  containerd is away
  4  no name matches")]
pub(crate) struct ImagesArgs {
    /// Only images whose whole name matches: * is any text, ? any character
    #[arg(value_name = "PATTERN")]
    pub(crate) pattern: Option<import::Pattern>,
}

#[derive(Args, Debug)]
#[command(after_help = "\
-v also shows the disk use and the keys of each bundle, and the last scrub.

Exit status:
  0  healthy or working
  1  waiting, degraded or failed
  3  containerd is away")]
pub(crate) struct StatusArgs {
    /// Refresh the screen until interrupted
    #[arg(short, long)]
    pub(crate) watch: bool,
}

#[derive(Args, Debug, Default)]
#[command(after_help = "\
The daemon lists the images folder first, so a file that arrived a moment ago counts. A stalled upload counts as unfinished. \
With --digest only content counts: a rollout of new content under an old name waits for it, even before a bundle has it. With \
--bundle and --digest this bundle must have the content.

With --now the answer is that of GET /ready (docs/control.md): the images under `require` count if there are any, and --bundle \
also takes the content digest of a bundle. The daemon lists nothing for it.

Exit status:
  0  in place
  1  failed
  3  timeout because containerd is away
  4  a required image is missing
  6  timeout (1 if the node waits for something else than containerd, such as space)
  7  no daemon answers")]
pub(crate) struct WaitArgs {
    /// Only for this bundle, by its path or its name in an images folder, repeatable
    #[arg(long = "bundle", value_name = "NAME")]
    pub(crate) bundles: Vec<String>,
    /// Only for this content: the digest of an image, or of a bundle in `airgapd inspect`,
    /// repeatable
    #[arg(long = "digest", value_name = "DIGEST", value_parser = basics::digest::parse)]
    pub(crate) digests: Vec<oci_spec::image::Digest>,
    /// Only for this release: every image of its list, repeatable
    #[arg(long = "release", value_name = "NAME", value_parser = release_name)]
    pub(crate) releases: Vec<String>,
    /// For every bundle of the folder, the default
    #[arg(long, conflicts_with_all = ["bundles", "digests", "releases"])]
    pub(crate) all: bool,
    /// Also for every image under `require` in the configuration
    #[arg(long)]
    pub(crate) required: bool,
    /// Accept an empty images folder instead of waiting for a bundle
    #[arg(long, conflicts_with_all = ["bundles", "digests", "releases"])]
    pub(crate) allow_empty: bool,
    /// Ask once if the node is ready, as GET /ready does: for probes
    #[arg(long, conflicts_with_all = ["digests", "allow_empty", "timeout"])]
    pub(crate) now: bool,
    /// Longest wait: 90s, 10m, or a number of seconds. 0 checks once
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = timeout)]
    pub(crate) timeout: std::time::Duration,
}

#[derive(Args, Debug)]
#[command(after_help = "\
The command gives the bundles and receipts of the release a new time. The daemon then takes them for the last ones. No layer \
is sent. Bundles in an earlier images folder keep their names. `keepReleases` keeps the receipts of former releases, and \
\"airgapd status\" lists them as kept. The way forward is the same command with the later release.

Exit status:
  0  the release is in place
  1  the node does not have the whole release, or it failed
  3  containerd is away
  6  timeout
  7  no daemon answers")]
pub(crate) struct RollbackArgs {
    /// Name of the release
    #[arg(value_name = "RELEASE", value_parser = release_name)]
    pub(crate) release: String,
    /// Longest wait until the release is in place: 90s, 10m, or a number of seconds
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = timeout)]
    pub(crate) timeout: std::time::Duration,
}

#[derive(Args, Debug)]
pub(crate) struct ReleaseArgs {
    /// Bundles by path or file name, receipts also by content digest, or images by name
    #[arg(value_name = "NAME", required_unless_present_any = ["all", "vanished"], conflicts_with_all = ["all", "vanished"])]
    pub(crate) names: Vec<String>,
    /// Every image that airgapd labelled or pinned
    #[arg(long)]
    pub(crate) all: bool,
    /// Images of bundles that are no longer in an images folder, and receipts without a file
    #[arg(long, conflicts_with = "all")]
    pub(crate) vanished: bool,
    /// Only print what the command would remove
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Args, Debug)]
#[command(after_help = "\
The command reads what the daemon's bundles brought to this node, and hashes it. A run that was interrupted continues \
where it was. Three wrong blobs end a run. A wrong blob is replaced if a bundle on this node has the right bytes.

Exit status:
  0  every blob is right, or was replaced
  1  a blob is still wrong, or three wrong blobs ended the run
  3  containerd is away")]
pub(crate) struct ScrubArgs {
    #[command(flatten)]
    rate: RateFlag,
}

#[derive(Args, Debug)]
pub(crate) struct ConfigArgs {
    /// Check the configuration and print only mistakes
    #[arg(long)]
    pub(crate) check: bool,
    /// With --check: list the bundles in the folders that this rule would keep out
    #[arg(long, value_name = "RULE", requires = "check", value_parser = one_of::<Rule>())]
    pub(crate) signatures: Option<Rule>,
}

/// A rule for signatures. `None` is `off`.
type Rule = Option<Signatures>;

/// The flags for the images of k0s.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct K0sArgs {
    /// Cluster configuration of k0s or k0sctl, or - for standard input
    #[arg(long, value_name = "FILE")]
    k0s_config: Option<PathBuf>,
    /// Release of k0s, such as v1.34.10+k0s.0 or 1.34
    #[arg(long, value_name = "RELEASE")]
    k0s_version: Option<String>,
    /// k0s program that lists its images
    #[arg(long, value_name = "FILE", conflicts_with_all = ["k0s_version", "image_set"])]
    k0s: Option<PathBuf>,
    /// File with the images of other releases
    #[arg(long, value_name = "FILE")]
    image_set: Option<PathBuf>,
    /// Include images that the configuration of k0s does not use
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
    /// Kubernetes YAML or JSON, repeatable: a file, a folder with all below it, or - for standard
    /// input
    #[arg(long, value_name = "FILE|DIR")]
    pub(crate) manifests: Vec<PathBuf>,
}

impl VerifyArgs {
    /// The sources that the operator names.
    pub(crate) fn sources(&self) -> Sources {
        Sources {
            references: self.references.clone(),
            images: self.images.clone(),
            k0s: self.k0s.question(),
            manifests: self.manifests.manifests.clone(),
            static_pods: self.static_pods.clone(),
            sandbox_image: self.sandbox_image.clone(),
        }
    }
}

/// Reads the name of a release.
fn release_name(text: &str) -> Result<String, String> {
    bundle::check_release_name(text).map(|()| text.to_owned())
}

/// Reads a duration with units, or a number of seconds.
fn timeout(text: &str) -> Result<std::time::Duration, humantime::DurationError> {
    match text.parse() {
        Ok(seconds) => Ok(std::time::Duration::from_secs(seconds)),
        Err(_) => humantime::parse_duration(text),
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
    fn a_timeout_is_a_duration_or_a_number_of_seconds() {
        let rows = [
            ("5", Some(5)),
            ("0", Some(0)),
            ("90s", Some(90)),
            ("10m", Some(600)),
            ("-1", None),
            ("soon", None),
        ];
        for (text, seconds) in rows {
            let expected = seconds.map(std::time::Duration::from_secs);
            assert_eq!(timeout(text).ok(), expected, "{text}");
        }
    }
}
