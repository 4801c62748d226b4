//! `airgapd bundle-artifacts`: a bundle of images in registries, made on the connected side.
//!
//! First every document of every image is read, so that what is wrong with any of them is said before the first layer
//! moves: also that no node would take it. Then the archive is laid out, and layers are fetched in its order while it is
//! written. A file gets its name when it was opened again and is what the nodes need.

use std::collections::{HashMap, HashSet};
use std::io::{self, IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bundle::write::{Draft, DraftImage, Layout, Written};
use bundle::{Bundle, Inventory, Limits, Store};
use futures_util::StreamExt as _;
use import::{Judgement, Naming, Policy, Skip};
use oci_spec::image::Digest;
use platforms::{Platform, Rules};
use registry::{
    Cache, Client, Counters, Credentials, Feed, ImageRef, Options, Proxies, Resolved, Retry, Security, Wanted,
};
use serde::Serialize;

use super::inspect::Inspection;
use super::making::{self, Proof, Target, Told, compression};
use super::{Call, Exit, Refusal};
use crate::cli::{BundleArtifactsArgs, Insecure};
use crate::output::{self, Page};

/// An inventory may be this long, in bytes.
const LARGEST_INVENTORY: u64 = 64 << 20;

/// Makes a bundle. Interrupted, it leaves nothing.
pub(super) async fn run(args: &BundleArtifactsArgs, call: &Call) -> Result<Exit, Refusal> {
    let started = Instant::now();
    let limits = &call.settings.limits;
    let target = Target::of(call)?;
    let references = references(args).map_err(Refusal::usage)?;
    let platforms = Platforms::of(&args.platforms).map_err(Refusal::usage)?;
    let client = Arc::new(Client::new(options(args)?)?);
    let cache = args.cache.clone().map(Cache::open).transpose()?;
    let concurrency = usize::from(args.concurrency);
    let images = resolve_all(
        &client,
        cache.as_ref(),
        &references,
        &platforms.fetched(),
        concurrency,
    )
    .await?;
    let mut proof = BundleProof {
        policy: platforms.policy(),
        limits: limits.clone(),
        artifacts: HashMap::new(),
    };
    let mut draft = Draft {
        images: proof.of_plan(&images)?,
        relies_on: None,
    };
    let artifacts = proof.artifacts.clone();
    let total = Layout::of(&draft)?
        .blobs()
        .iter()
        .map(|blob| blob.size)
        .sum::<u64>();
    if !args.base.is_empty() || !args.have.is_empty() {
        let (name, present) = read_bases(args, limits).await?;
        draft.leave_out(&name, &present);
    }
    let layout = Layout::of(&draft)?;
    let counters = Counters::default();
    let job = Job {
        args,
        target: &target,
        layout: &layout,
        client: &client,
        cache: cache.as_ref(),
        images: &images,
        counters: &counters,
    };
    let written = job.write(proof).await?;
    let report = Report::new(&job, &draft, &artifacts, written, total, started.elapsed());
    target.tell(call.format, &report)?;
    Ok(Exit::Done)
}

/// The images that are asked for, each once, sorted by nothing but their order.
fn references(args: &BundleArtifactsArgs) -> Result<Vec<ImageRef>, String> {
    let listed;
    let texts = if args.references.is_empty() {
        if io::stdin().is_terminal() {
            return Err("name images, or give a list of them on standard input".to_owned());
        }
        listed = making::read_list(Path::new("-"))?;
        &listed
    } else {
        &args.references
    };
    let (mut found, mut mistakes) = (Vec::new(), Vec::new());
    for text in texts {
        match text.parse::<import::Reference>() {
            Ok(reference) => {
                let reference = image_ref(&reference);
                if !found.contains(&reference) {
                    found.push(reference);
                }
            }
            Err(error) => mistakes.push(error.to_string()),
        }
    }
    match (mistakes.is_empty(), found.is_empty()) {
        (false, _) => Err(mistakes.join("\n")),
        (true, true) => Err("no image is named".to_owned()),
        (true, false) => Ok(found),
    }
}

fn image_ref(reference: &import::Reference) -> ImageRef {
    let digest = reference
        .digest()
        .map(|digest| digest.parse().expect("a reference's digest was checked"));
    let tag = reference.tag().map(ToOwned::to_owned);
    ImageRef {
        repository: reference.repository().to_owned(),
        tag: tag.or_else(|| digest.is_none().then(|| "latest".to_owned())),
        digest,
    }
}

/// The platforms of the nodes that the bundle is for. Which containerd they have is not known here: the bundle has
/// what any of them would use.
enum Platforms {
    All,
    These(Vec<Platform>),
}

impl Platforms {
    fn of(texts: &[String]) -> Result<Platforms, String> {
        if texts.iter().any(|platform| platform == "all") {
            return if texts.len() == 1 {
                Ok(Platforms::All)
            } else {
                Err("--platform all goes with no other platform".to_owned())
            };
        }
        let parsed = texts.iter().map(|text| {
            let platform = text.parse::<Platform>();
            platform.map_err(|error| format!("--platform {}: {error}", basics::foreign::quoted(text)))
        });
        let parsed: Vec<Platform> = parsed.collect::<Result<_, _>>()?;
        Ok(Platforms::These(match parsed.is_empty() {
            true => vec![platforms::host()],
            false => parsed,
        }))
    }

    fn fetched(&self) -> Wanted {
        match self.wanted() {
            import::Wanted::All { .. } => Wanted::All,
            import::Wanted::Platforms(matchers) => Wanted::Best(matchers),
        }
    }

    fn wanted(&self) -> import::Wanted {
        match self {
            Platforms::All => import::Wanted::All {
                rules: Rules::ALL.to_vec(),
            },
            Platforms::These(platforms) => import::Wanted::of(platforms, &Rules::ALL),
        }
    }

    /// The policy of such a node, without its rules for names.
    fn policy(&self) -> Policy {
        Policy {
            wanted: self.wanted(),
            naming: Naming::default(),
            most_records: import::MOST_RECORDS,
        }
    }
}

/// Makes sure that nodes of the platforms that were asked for take every image of the bundle.
struct BundleProof {
    policy: Policy,
    limits: Limits,
    /// Artifacts that were asked for: digest and kind. The bundle carries them, and nodes make no record of them.
    artifacts: HashMap<Digest, String>,
}

/// The verdict of a node on an image.
enum Prospect {
    Taken(DraftImage),
    /// It is no container image, but what newer containerds mount as a volume.
    Volume(DraftImage, String),
    /// It is no container image, but this.
    Artifact(String),
    Refused(String),
}

impl BundleProof {
    /// Looks at the documents that were read, before the first layer moves. Says what is no image, and gives what the
    /// bundle shall hold.
    ///
    /// # Errors
    ///
    /// Every image that no such node would take, with the reason; the same of all artifacts where there is no image.
    fn of_plan(&mut self, images: &[Resolved]) -> anyhow::Result<Vec<DraftImage>> {
        let (mut refused, mut artifacts, mut drafts) = (Vec::new(), Vec::new(), Vec::new());
        for image in images {
            match self.prospect(image) {
                Prospect::Taken(draft) => drafts.push(draft),
                Prospect::Refused(reason) => refused.push(format!("{}: {reason}", image.reference)),
                Prospect::Volume(draft, what) => {
                    tracing::warn!("{}: {what}", image.reference);
                    self.artifacts.insert(image.draft.target.digest().clone(), what);
                    drafts.push(draft);
                }
                Prospect::Artifact(what) => {
                    artifacts.push(format!("{}: {what}", image.reference));
                    self.artifacts.insert(image.draft.target.digest().clone(), what);
                    drafts.push(image.draft.clone());
                }
            }
        }
        if artifacts.len() == images.len() {
            refused.append(&mut artifacts);
        }
        if !refused.is_empty() {
            bail!("no bundle was made: {}", refused.join("\n"));
        }
        for artifact in artifacts {
            tracing::warn!("{artifact}");
        }
        Ok(drafts)
    }

    fn prospect(&self, image: &Resolved) -> Prospect {
        let mut inventory = Planned::of(image);
        let root = match bundle::resolve(&image.draft.target, &mut inventory, &self.limits) {
            Ok(root) => root,
            Err(fault) => return Prospect::Refused(fault.to_string()),
        };
        let newest = self.policy.wanted.by(&[Rules::Rc3]);
        let no_image = |skip: Skip| Prospect::Artifact(format!("no node makes an image of it: {skip}"));
        match import::judge(&root, &self.policy.wanted, "the bundle") {
            Judgement::Whole(_) => {
                let mut draft = image.draft.clone();
                draft.find_images(&root);
                Prospect::Taken(draft)
            }
            Judgement::Broken(problems) => Prospect::Refused(problems.join("; ")),
            Judgement::Artifact(kind)
                if matches!(import::judge(&root, &newest, "the bundle"), Judgement::Whole(_)) =>
            {
                Prospect::Volume(image.draft.clone(), Skip::Artifact(kind).to_string())
            }
            Judgement::Artifact(kind) => no_image(Skip::Artifact(kind)),
            Judgement::Foreign(offered) if offered.is_empty() => no_image(Skip::Foreign { offered }),
            Judgement::Foreign(offered) => Prospect::Refused(Skip::Foreign { offered }.to_string()),
        }
    }

    /// Looks at the finished file with the eyes of `airgapd inspect`.
    ///
    /// # Errors
    ///
    /// Why it is no bundle, or every image of it that no such node would take.
    fn of_file(&self, path: &Path) -> anyhow::Result<()> {
        let bundle = Bundle::open(path, &self.limits).context("the bundle that was made cannot be read")?;
        let inspection = Inspection::of(&bundle, &self.policy);
        let refused =
            inspection.refused(|digest| self.artifacts.keys().any(|known| known.as_ref() == digest));
        if !refused.is_empty() || !inspection.is_complete() {
            bail!("no bundle was made: {}", refused.join("\n"));
        }
        Ok(())
    }
}

/// The blobs that a bundle of this image will have.
struct Planned<'a> {
    documents: HashMap<&'a Digest, &'a [u8]>,
    layers: HashMap<&'a Digest, u64>,
}

impl<'a> Planned<'a> {
    fn of(image: &'a Resolved) -> Planned<'a> {
        let documents = image.documents().map(|(blob, bytes)| (&blob.digest, bytes));
        let layers = image.draft.layers.iter().map(|blob| (&blob.digest, blob.size));
        Planned {
            documents: documents.collect(),
            layers: layers.collect(),
        }
    }
}

impl Store for Planned<'_> {
    fn size(&self, digest: &Digest) -> Option<u64> {
        let document = self.documents.get(digest).map(|bytes| bytes.len() as u64);
        document.or_else(|| self.layers.get(digest).copied())
    }

    fn read(&mut self, digest: &Digest) -> Result<Vec<u8>, String> {
        let document = self.documents.get(digest).map(|bytes| bytes.to_vec());
        document.ok_or_else(|| format!("{digest} is not a document"))
    }
}

fn options(args: &BundleArtifactsArgs) -> anyhow::Result<Options> {
    let read = |path: &PathBuf| {
        let name = format!("--ca-file {}", path.display());
        let pem = std::fs::read(path).with_context(|| name.clone())?;
        anyhow::Ok((name, pem))
    };
    let variable = |name: &str| {
        let value = std::env::var(name).or_else(|_| std::env::var(name.to_lowercase()));
        value.ok().filter(|value| !value.is_empty())
    };
    let proxy = |name: &str| variable(name).or_else(|| variable("ALL_PROXY"));
    let default_files = if args.registries_config.is_empty() {
        default_credentials()
    } else {
        Vec::new()
    };
    Ok(Options {
        security: match args.insecure_registries {
            Insecure::No => Security::Verify,
            Insecure::SkipTlsVerify => Security::SkipVerify,
            Insecure::PlainHttp => Security::PlainHttp,
        },
        roots: args.ca_file.iter().map(read).collect::<Result<_, _>>()?,
        proxies: Proxies {
            http: proxy("HTTP_PROXY"),
            https: proxy("HTTPS_PROXY"),
            no_proxy: variable("NO_PROXY"),
        },
        rewrites: args.rewrite.clone(),
        mirrors: args.mirror.clone(),
        credentials: Credentials::read(&args.registries_config, &default_files)?,
        retry: Retry {
            times: args.retries,
            ..Retry::default()
        },
    })
}

/// Where skopeo, podman and docker keep credentials, in the order in which the first two look for them.
fn default_credentials() -> Vec<PathBuf> {
    let folder = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let home = folder("HOME");
    let in_home = |path: &str| home.as_ref().map(|home| home.join(path));
    let config = folder("XDG_CONFIG_HOME").or_else(|| in_home(".config"));
    let docker = folder("DOCKER_CONFIG").or_else(|| in_home(".docker"));
    [
        folder("REGISTRY_AUTH_FILE"),
        folder("XDG_RUNTIME_DIR").map(|folder| folder.join("containers/auth.json")),
        config.map(|folder| folder.join("containers/auth.json")),
        docker.map(|folder| folder.join("config.json")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Reads the documents of all images, some at a time; says of each what is wrong with it.
async fn resolve_all(
    client: &Arc<Client>,
    cache: Option<&Cache>,
    references: &[ImageRef],
    wanted: &Wanted,
    concurrency: usize,
) -> anyhow::Result<Vec<Resolved>> {
    let resolving = references
        .iter()
        .map(|reference| registry::resolve(client, cache, reference, wanted));
    let resolved: Vec<_> = futures_util::stream::iter(resolving)
        .buffered(concurrency)
        .collect()
        .await;
    let (mut images, mut problems) = (Vec::new(), Vec::new());
    for image in resolved {
        match image {
            Ok(image) => images.push(image),
            Err(error) => problems.push(basics::chain(&error)),
        }
    }
    if !problems.is_empty() {
        bail!("no bundle was made: {}", problems.join("\n"));
    }
    Ok(images)
}

/// What the bases of a delta are called, and the layers they have.
async fn read_bases(
    args: &BundleArtifactsArgs,
    limits: &Limits,
) -> anyhow::Result<(String, HashSet<Digest>)> {
    let (mut names, mut present) = (Vec::new(), HashSet::new());
    for path in &args.base {
        let base = super::import::open(path, limits).await?;
        names.push(
            path.file_name()
                .unwrap_or(path.as_os_str())
                .to_string_lossy()
                .into_owned(),
        );
        present.extend(layers_of(&base));
    }
    for path in &args.have {
        let inventory = read_inventory(path).with_context(|| format!("--have {}", path.display()))?;
        names.push(format!("node {}", inventory.node));
        present.extend(inventory.blobs.into_iter().map(|blob| blob.digest));
    }
    Ok((names.join(", "), present))
}

/// The layers that are where a bundle was imported: its own, and those it relied on.
fn layers_of(base: &Bundle) -> HashSet<Digest> {
    let catalog = base.catalog();
    let images: Vec<DraftImage> = catalog.images.iter().map(DraftImage::of).collect();
    let own = images.iter().flat_map(|image| &image.layers);
    let relied_on = catalog.relies_on.iter().flat_map(|reliance| &reliance.blobs);
    own.chain(relied_on).map(|blob| blob.digest.clone()).collect()
}

fn read_inventory(path: &Path) -> anyhow::Result<Inventory> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?
        .take(LARGEST_INVENTORY + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST_INVENTORY {
        bail!("it has more than {LARGEST_INVENTORY} bytes");
    }
    Inventory::parse(&bytes).map_err(anyhow::Error::msg)
}

struct Job<'a> {
    args: &'a BundleArtifactsArgs,
    target: &'a Target,
    layout: &'a Layout,
    client: &'a Arc<Client>,
    cache: Option<&'a Cache>,
    images: &'a [Resolved],
    counters: &'a Counters,
}

impl Job<'_> {
    /// Writes the bundle on a thread of its own, and shows how far it is.
    async fn write(&self, proof: BundleProof) -> anyhow::Result<Written> {
        let concurrency = usize::from(self.args.concurrency);
        let blobs = self.layout.blobs();
        let feed = Feed::begin(
            self.client,
            self.images,
            blobs,
            concurrency,
            self.cache,
            self.counters,
        );
        let done =
            || self.counters.fetched.load(Ordering::Relaxed) + self.counters.cached.load(Ordering::Relaxed);
        let form = compression(self.args.compress);
        let proof: Proof = Box::new(move |path| proof.of_file(path));
        let (written, feed) = tokio::select! {
            written = making::write(self.target, self.layout, form, feed, done, Some(proof)) => written?,
            () = making::interrupted() => bail!("interrupted: no bundle was made"),
        };
        feed.finish();
        Ok(written)
    }
}

/// The document of `airgapd bundle-artifacts -o json`.
#[derive(Debug, Serialize)]
struct Report {
    /// The file; `-` for standard output.
    path: String,
    /// Bytes of the file, and of the archive in it.
    bytes: u64,
    archive_bytes: u64,
    /// The digest of the bundle's index.
    digest: String,
    compression: &'static str,
    /// What a delta relies on, by name.
    base: Option<String>,
    images: Vec<ImageReport>,
    blobs: BlobReport,
    duration_ms: u64,
}

#[derive(Debug, Serialize)]
struct ImageReport {
    name: String,
    names: Vec<String>,
    digest: String,
    media_type: String,
    platforms: Vec<String>,
    /// Asked for, and not offered.
    missing_platforms: Vec<String>,
    /// Why nodes make no image of it, where it is none.
    no_image: Option<String>,
    /// Bytes of all its blobs, those that it shares with others included.
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct BlobReport {
    written: usize,
    written_bytes: u64,
    fetched_bytes: u64,
    cached_bytes: u64,
    /// Left out because the base of a delta has them.
    left_out: usize,
    left_out_bytes: u64,
}

impl Report {
    fn new(
        job: &Job<'_>,
        draft: &Draft,
        artifacts: &HashMap<Digest, String>,
        written: Written,
        total: u64,
        took: Duration,
    ) -> Self {
        let told = |image| ImageReport::new(image, artifacts);
        let blobs = job.layout.blobs();
        let written_bytes: u64 = blobs.iter().map(|blob| blob.size).sum();
        Self {
            path: job.target.shown(),
            bytes: written.file,
            archive_bytes: written.archive,
            digest: job.layout.digest().to_string(),
            compression: compression(job.args.compress).as_str(),
            base: draft.relies_on.as_ref().map(|reliance| reliance.base.clone()),
            images: job.images.iter().map(told).collect(),
            blobs: BlobReport {
                written: blobs.len(),
                written_bytes,
                fetched_bytes: job.counters.fetched.load(Ordering::Relaxed),
                cached_bytes: job.counters.cached.load(Ordering::Relaxed),
                left_out: draft
                    .relies_on
                    .as_ref()
                    .map_or(0, |reliance| reliance.blobs.len()),
                left_out_bytes: total - written_bytes,
            },
            duration_ms: making::milliseconds(took),
        }
    }
}

impl Told for Report {
    fn text(&self) -> Page {
        let mut text = Page::new();
        for image in &self.images {
            let platforms = image.platforms.join(", ");
            output::line!(
                text,
                "  {:>9}  {} ({platforms})",
                output::bytes(image.bytes),
                image.name
            );
            for missing in &image.missing_platforms {
                output::line!(text, "             has nothing for {missing}");
            }
            if let Some(reason) = &image.no_image {
                output::line!(text, "             {reason}");
            }
        }
        let blobs = &self.blobs;
        output::line!(
            text,
            "{}: {} images, {} in {} blobs ({} fetched, {} from the cache)",
            self.path,
            self.images.len(),
            output::bytes(self.bytes),
            blobs.written,
            output::bytes(blobs.fetched_bytes),
            output::bytes(blobs.cached_bytes),
        );
        if let Some(base) = &self.base {
            let bytes = output::bytes(blobs.left_out_bytes);
            output::line!(
                text,
                "a delta on {base}: {} layers ({bytes}) are left out",
                blobs.left_out
            );
        }
        text
    }
}

impl ImageReport {
    fn new(image: &Resolved, artifacts: &HashMap<Digest, String>) -> Self {
        let blobs: HashMap<_, _> = image
            .draft
            .blobs()
            .map(|blob| (&blob.digest, blob.size))
            .collect();
        Self {
            name: image.reference.to_string(),
            names: image.draft.names.clone(),
            digest: image.draft.target.digest().to_string(),
            media_type: image.draft.target.media_type().to_string(),
            platforms: image.platforms.clone(),
            missing_platforms: image.missing.clone(),
            no_image: artifacts.get(image.draft.target.digest()).cloned(),
            bytes: blobs.values().sum(),
        }
    }
}
