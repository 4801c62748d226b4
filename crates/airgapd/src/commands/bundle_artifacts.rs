//! `airgapd bundle-artifacts`: makes a bundle of images from registries, on the connected side.
//!
//! First it reads every document of every image. So it reports all problems before it fetches the
//! first layer, also images that no node would take. Then it lays out the archive, and fetches the
//! layers in that order while it writes. The file gets its name after it was opened again and
//! checked against the nodes' needs.

mod proof;
mod report;

use std::collections::{HashMap, HashSet};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Context as _, bail};
use bundle::write::{Draft, DraftImage, Layout, WriteError, Written};
use bundle::{Bundle, Inventory, Limits, Member, Members};
use futures_util::StreamExt as _;
use import::{Naming, Policy};
use oci_spec::image::Digest;
use platforms::{InvalidChoice, PlatformChoice, Rules, Wanted};
use registry::{
    Cache, Client, Counters, Credentials, Feed, ImageRef, Options, Proxies, Resolved, Retry, Security,
};

use self::proof::BundleProof;
use self::report::Report;
use super::making::{self, Proof, Target, compression};
use super::{Call, Exit, Refusal};
use crate::cli::{BundleArtifactsArgs, Insecure};

/// Most transfers at a time. More of them make no registry faster.
const MOST_TRANSFERS: usize = 64;

/// Largest inventory, in bytes.
const LARGEST_INVENTORY: u64 = 64 << 20;

/// Makes a bundle. An interrupted run leaves no file.
pub(super) async fn run(args: &BundleArtifactsArgs, call: &Call) -> Result<Exit, Refusal> {
    let started = Instant::now();
    let limits = &call.settings.limits;
    let target = Target::of(call)?;
    let references = references(args)?;
    if references.is_empty() {
        tracing::warn!("no image is named: the bundle is empty");
    }
    let platforms = platforms_of(&args.platforms).map_err(Refusal::usage)?;
    let client = Arc::new(Client::new(options(args)?)?);
    let cache = args.cache.clone().map(Cache::open).transpose()?;
    let concurrency = transfers(args);
    let policy = policy_of(&platforms);
    let images = resolve_all(&client, cache.as_ref(), &references, &policy.wanted, concurrency).await?;
    let mut proof = BundleProof {
        policy,
        limits: limits.clone(),
        artifacts: HashMap::new(),
    };
    let mut draft = Draft {
        images: proof.of_plan(&images)?,
        ..Draft::default()
    };
    let artifacts = proof.artifacts.clone();
    let total = layout_of(&draft)?
        .blobs()
        .iter()
        .map(|blob| blob.size)
        .sum::<u64>();
    if !args.base.is_empty() || !args.have.is_empty() {
        let (name, present) = read_bases(args, limits).await?;
        draft.leave_out(&name, &present);
    }
    draft.release = args
        .release
        .as_ref()
        .map(|release| members_of(release, &draft))
        .transpose()?;
    let layout = layout_of(&draft)?;
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

/// Returns the layout of the bundle. Only an empty list gives no images.
fn layout_of(draft: &Draft) -> Result<Layout, WriteError> {
    match draft.images.is_empty() {
        true => Ok(Layout::empty()),
        false => Layout::of(draft),
    }
}

/// Returns the requested images, each once, in the given order.
fn references(args: &BundleArtifactsArgs) -> Result<Vec<ImageRef>, Refusal> {
    let hint = "name images, or give a list of them on standard input";
    let texts = making::asked_for(&args.references, &[], hint).map_err(Refusal::usage)?;
    if texts.is_empty() && !args.may_be_empty {
        return Err(making::no_image());
    }
    let (mut found, mut mistakes) = (Vec::new(), Vec::new());
    let mut seen = HashSet::new();
    for text in texts {
        match text.parse::<import::Reference>() {
            Ok(reference) => {
                let reference = image_ref(&reference);
                if seen.insert(reference.clone()) {
                    found.push(reference);
                }
            }
            Err(error) => mistakes.push(error.to_string()),
        }
    }
    match mistakes.is_empty() {
        true => Ok(found),
        false => Err(Refusal::of_many(Exit::Usage, mistakes)),
    }
}

/// Returns the list of a release that has the images of this bundle only.
fn members_of(release: &str, draft: &Draft) -> Result<Arc<Members>, Refusal> {
    let members = draft.images.iter().flat_map(|image| {
        let member = |name: &String| Member {
            name: name.clone(),
            digest: image.target.digest().clone(),
        };
        image.names.iter().map(member)
    });
    match Members::new(release, members.collect()) {
        Ok(members) => Ok(Arc::new(members)),
        Err(reason) => Err(making::not_made(vec![format!("--release {release}: {reason}")])),
    }
}

/// Returns the number of transfers at a time. Each may buffer 8 MiB.
fn transfers(args: &BundleArtifactsArgs) -> usize {
    usize::try_from(args.concurrency).map_or(MOST_TRANSFERS, |number| number.min(MOST_TRANSFERS))
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

/// Returns the platforms of the nodes that the bundle is for, by default this machine's.
fn platforms_of(texts: &[String]) -> Result<PlatformChoice, String> {
    PlatformChoice::of(texts).map_err(|invalid| match invalid {
        InvalidChoice::AllAndOthers => "--platform all cannot be combined with another platform".to_owned(),
        InvalidChoice::NoPlatform { text, error } => {
            format!("--platform {}: {error}", basics::foreign::quoted(&text))
        }
    })
}

/// Returns the policy of such a node, without its rules for names. The version of its containerd is
/// not known here, so the bundle has the parts that any version would use.
fn policy_of(platforms: &PlatformChoice) -> Policy {
    Policy {
        wanted: platforms.wanted(platforms::host, &Rules::ALL),
        naming: Naming::default(),
        most_records: import::plan::MOST_RECORDS,
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

/// Returns the files in which skopeo, podman and docker keep credentials, in the order of skopeo
/// and podman.
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

/// Reads the documents of all images, some at a time, and reports the problem of each.
async fn resolve_all(
    client: &Arc<Client>,
    cache: Option<&Cache>,
    references: &[ImageRef],
    wanted: &Wanted,
    concurrency: usize,
) -> Result<Vec<Resolved>, Refusal> {
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
        return Err(making::not_made(problems));
    }
    Ok(images)
}

/// Reads the bases of a delta and returns their names and layers.
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

/// Returns the layers that a node has after it imported a bundle: the bundle's own, and those it
/// relies on.
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
        bail!("the inventory has more than {LARGEST_INVENTORY} bytes");
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
    /// Writes the bundle on a separate thread, and shows the progress.
    async fn write(&self, proof: BundleProof) -> Result<Written, Refusal> {
        let concurrency = transfers(self.args);
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
        // An empty archive has nothing to prove.
        let proof = (!self.images.is_empty()).then(|| -> Proof { Box::new(move |path| proof.of_file(path)) });
        let (written, feed) = tokio::select! {
            written = making::write(self.target, self.layout, form, feed, done, proof) => written?,
            () = making::interrupted() => {
                return Err(Refusal::new(Exit::Failed, "interrupted: no bundle was made"));
            }
        };
        feed.finish();
        Ok(written)
    }
}
