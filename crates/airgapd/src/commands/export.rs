//! `airgapd export`: makes a bundle of images in this node's containerd.
//!
//! First it looks up all images and puts them under a lease. So it reports all problems before it
//! reads the first layer, and containerd removes no blob meanwhile. A requested image that is
//! missing or incomplete is an error. With `--all`, incomplete images are skipped and listed.

pub(super) mod choice;
mod feed;
pub(super) mod stock;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bundle::Limits;
use bundle::write::{Draft, Layout, Written};
use containerd::{Client, Held};
use import::lease::Lease;
use oci_spec::image::Digest;
use platforms::Wanted;
use serde::Serialize;

use self::choice::{Choice, LeftOut, Platforms};
use self::feed::Feed;
use self::stock::{Stock, Wish};
use super::making::{self, Made, MadeOf, Render, Target};
use super::{Call, Exit, Refusal};
use crate::cli::{Compress, ExportArgs};
use crate::output::{self, Page};
use node::runtime::Containerd;
use node::settings::{PlatformChoice, Settings};
use verify::Need;
use verify::{Inventory, Snapshots, Sought, answer};

/// Most attempts to select images if blobs disappear meanwhile.
const TRIES: usize = 5;

/// Mark of the lease in containerd, which tells its owner.
const MARK: &str = "export";

/// The requested images.
enum Asked {
    Everything,
    These(Vec<String>),
}

/// Exports images. An interrupted run leaves neither a partial file nor a lease.
pub(super) async fn run(args: &ExportArgs, call: &Call) -> Result<Exit, Refusal> {
    let started = Instant::now();
    let node = call.node()?;
    let target = Target::of(call)?;
    let asked = asked(args)?;
    let runtime = call.connect(&node).await?;
    let export = Export {
        runtime: &runtime,
        asked: &asked,
        platforms: platforms(&call.settings, &runtime),
        limits: call.settings.limits.clone(),
        compress: args.compress,
        target: &target,
    };
    let report = tokio::select! {
        report = export.leased(started) => report?,
        () = making::interrupted() => {
            export.give_back().await;
            return Err(Refusal::new(Exit::Failed, "interrupted: no bundle was made"));
        }
    };
    target.tell(call.format, &report)?;
    Ok(Exit::Done)
}

fn asked(args: &ExportArgs) -> Result<Asked, Refusal> {
    if args.all {
        return Ok(Asked::Everything);
    }
    let hint = "name images, give a list of them with --images or on standard input, or use --all";
    let texts = making::asked_for(&args.references, &args.images, hint).map_err(Refusal::usage)?;
    match texts.is_empty() {
        true => Err(making::no_image()),
        false => Ok(Asked::These(texts)),
    }
}

fn platforms(settings: &Settings, runtime: &Containerd) -> Platforms {
    let these = match &settings.platforms {
        PlatformChoice::All => return Platforms::All,
        PlatformChoice::These(platforms) => platforms.as_slice(),
        PlatformChoice::Node => std::slice::from_ref(&runtime.platform),
    };
    let rules = [runtime.version.rules()];
    let wanted = these.iter().map(|platform| {
        let wanted = Wanted::of(std::slice::from_ref(platform), &rules);
        (platform.to_string(), wanted)
    });
    Platforms::These(wanted.collect())
}

struct Export<'a> {
    runtime: &'a Containerd,
    asked: &'a Asked,
    platforms: Platforms,
    limits: Limits,
    compress: Compress,
    target: &'a Target,
}

/// The exported images and, with `--all`, the skipped images.
#[derive(Default)]
struct Selection {
    choices: Vec<Choice>,
    skipped: Vec<Skipped>,
}

impl Export<'_> {
    /// Exports under a lease, which is deleted after success and after failure.
    async fn leased(&self, started: Instant) -> Result<Report, Refusal> {
        let lease = Lease::acquire(self.client(), &lease_name(), MARK).await?;
        let made = self.make(&lease, started).await;
        self.give_back().await;
        made
    }

    fn client(&self) -> &Client {
        &self.runtime.client
    }

    /// Deletes the lease. If that fails, the lease expires by itself.
    async fn give_back(&self) {
        let id = format!("{}{}", import::lease::PREFIX, lease_name());
        if let Err(error) = self.client().delete_lease(&id, false).await {
            tracing::warn!("cannot delete lease {id}: {}", basics::chain(&error));
        }
    }

    async fn make(&self, lease: &Lease, started: Instant) -> Result<Report, Refusal> {
        let selection = self.select(lease).await?;
        let mut draft = Draft {
            images: selection
                .choices
                .iter()
                .map(|choice| choice.draft.clone())
                .collect(),
            ..Draft::default()
        };
        draft.leave_out_derived_name();
        let layout = Layout::of(&draft)?;
        for choice in &selection.choices {
            for absent in &choice.absent {
                tracing::warn!("{}: {absent}", choice.wish.label);
            }
        }
        let read = Arc::new(AtomicU64::new(0));
        let feed = Feed::new(self.client(), Arc::clone(&read));
        let compression = making::compression(self.compress);
        let done = || read.load(Ordering::Relaxed);
        let (written, _) = making::write(self.target, &layout, compression, feed, done, None).await?;
        Ok(Report {
            compression: compression.as_str(),
            ..Report::new(self.target, &layout, &selection, written, started.elapsed())
        })
    }

    /// Chooses images and puts them under the lease. It starts again if a blob disappeared
    /// meanwhile.
    async fn select(&self, lease: &Lease) -> Result<Selection, Refusal> {
        for _ in 0..TRIES {
            let stock = Arc::new(Stock::of(self.runtime).await?);
            let selection = self.choose(&stock).await?;
            let blobs = selection.choices.iter().flat_map(|choice| choice.draft.blobs());
            let digests: HashSet<_> = blobs.map(|blob| &blob.digest).collect();
            if self.hold(lease, &stock, &digests).await? {
                let now = Stock::of(self.runtime).await?;
                if digests.iter().all(|digest| now.has(digest)) {
                    return Ok(selection);
                }
            }
        }
        let problem = "images keep disappearing while they are read: retry later";
        Err(making::not_made(vec![problem.to_owned()]))
    }

    /// Puts blobs and the blobs that they refer to under the lease. Returns true if all were
    /// present.
    async fn hold(
        &self,
        lease: &Lease,
        stock: &Stock,
        digests: &HashSet<&Digest>,
    ) -> Result<bool, containerd::Error> {
        for blob in stock.roots(digests) {
            match self
                .client()
                .hold_blob(lease.id(), &blob.digest, blob.size)
                .await?
            {
                Held::Held => {}
                Held::Absent => return Ok(false),
            }
        }
        Ok(true)
    }

    async fn choose(&self, stock: &Arc<Stock>) -> Result<Selection, Refusal> {
        let (wishes, mut problems) = match self.asked {
            Asked::Everything => (stock.everything(), Vec::new()),
            Asked::These(texts) => self.find(stock, texts).await?,
        };
        let mut store = stock.store(self.runtime);
        let (platforms, limits, stock) = (self.platforms.clone(), self.limits.clone(), Arc::clone(stock));
        // This runs on a separate thread, since it waits for each document.
        let looking = tokio::task::spawn_blocking(move || {
            let mut looked_up = Vec::new();
            for wish in wishes {
                let node = stock::look_up(&wish.target, &mut store, &limits);
                if let Some(error) = store.take_failure() {
                    return Err(error);
                }
                let (label, digest) = (wish.label.clone(), wish.target.digest().to_string());
                let chosen = match node {
                    Ok(node) => choice::choose(wish, &node, &platforms, &stock),
                    Err(reason) => Err(vec![reason]),
                };
                looked_up.push(chosen.map_err(|problems| Skipped {
                    name: label,
                    digest,
                    reason: problems.join("; "),
                }));
            }
            Ok(looked_up)
        });
        let mut selection = Selection::default();
        for chosen in looking.await?? {
            match (chosen, self.asked) {
                (Ok(choice), _) => selection.choices.push(choice),
                (Err(skipped), Asked::Everything) => selection.skipped.push(skipped),
                (Err(skipped), Asked::These(_)) => {
                    problems.push(format!("{}: {}", skipped.name, skipped.reason));
                }
            }
        }
        if selection.choices.is_empty() && problems.is_empty() {
            problems = nothing(&selection.skipped);
        }
        if problems.is_empty() {
            Ok(selection)
        } else {
            Err(making::not_made(problems))
        }
    }

    /// Returns the images for the texts, each once, and the problems of the other texts.
    async fn find(&self, stock: &Stock, texts: &[String]) -> anyhow::Result<(Vec<Wish>, Vec<String>)> {
        let mut wishes: Vec<Wish> = Vec::new();
        let (mut problems, mut unknown) = (Vec::new(), Vec::new());
        for text in texts {
            match stock.find(text) {
                Err(problem) => problems.push(problem),
                Ok(None) => unknown.push(text),
                Ok(Some(wish)) => match wishes
                    .iter_mut()
                    .find(|known| known.target.digest() == wish.target.digest())
                {
                    Some(known) => known.names.extend(wish.names),
                    None => wishes.push(wish),
                },
            }
        }
        if !unknown.is_empty() {
            problems.extend(self.near_misses(&unknown).await?);
        }
        Ok((wishes, problems))
    }

    /// Returns a message for each missing image, with the closest existing image.
    async fn near_misses(&self, unknown: &[&String]) -> anyhow::Result<Vec<String>> {
        let everything = Wanted::All { rules: Vec::new() };
        let need = |text: &&String| Need {
            reference: (*text).clone(),
            sources: Vec::new(),
        };
        let needs: Vec<Need> = unknown.iter().map(need).collect();
        let sought = Sought::with_near_misses(&needs);
        let inventory = Inventory::of_containerd(
            self.client(),
            None,
            &everything,
            &self.limits,
            Snapshots::Ignored,
            &sought,
        )
        .await?;
        let told = needs.iter().map(|need| {
            let near = answer(need, &inventory, &Inventory::default()).near_miss;
            let near = near
                .map(|near| format!(" (the closest is {})", near.reference))
                .unwrap_or_default();
            let text = basics::foreign::shown(&need.reference);
            format!("{text}: containerd has no image of this name{near}")
        });
        Ok(told.collect())
    }
}

/// Returns the name of the lease: the same for the whole run, and different for each run.
fn lease_name() -> String {
    static NAME: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    let make = || {
        let seed = format!("{} {}", std::process::id(), jiff::Timestamp::now());
        format!("{MARK}-{}", basics::digest::short(seed.as_bytes()))
    };
    NAME.get_or_init(make).clone()
}

fn nothing(skipped: &[Skipped]) -> Vec<String> {
    let reasons = skipped
        .iter()
        .map(|image| format!("{}: {}", image.name, image.reason));
    let head = match skipped {
        [] => "there are no images in this namespace of containerd (--namespace selects another)".to_owned(),
        [_] => "the only image is not whole:".to_owned(),
        skipped => format!("none of {} images is whole:", skipped.len()),
    };
    std::iter::once(head).chain(reasons).collect()
}

/// The document of `airgapd export -o json`.
#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    made: Made,
    compression: &'static str,
    images: Vec<ImageReport>,
    /// Images of `--all` that are not whole.
    skipped: Vec<Skipped>,
    blobs: MadeOf,
    duration_ms: u64,
}

#[derive(Debug, Serialize)]
struct ImageReport {
    name: String,
    names: Vec<String>,
    digest: String,
    media_type: String,
    platforms: Vec<String>,
    /// Requested platforms that are not whole.
    absent: Vec<String>,
    /// Platforms in its index that the bundle lacks.
    left_out: Vec<LeftOut>,
    /// Bytes of all its blobs, including blobs that it shares with other images.
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct Skipped {
    name: String,
    digest: String,
    reason: String,
}

impl Report {
    fn new(
        target: &Target,
        layout: &Layout,
        selection: &Selection,
        written: Written,
        took: Duration,
    ) -> Report {
        let skipped = selection.skipped.iter().map(|image| Skipped {
            name: image.name.clone(),
            digest: image.digest.clone(),
            reason: image.reason.clone(),
        });
        Report {
            made: Made::of(target, layout, &written),
            compression: "none",
            images: selection.choices.iter().map(ImageReport::new).collect(),
            skipped: skipped.collect(),
            blobs: MadeOf::of(layout),
            duration_ms: basics::milliseconds(took),
        }
    }
}

impl ImageReport {
    fn new(choice: &Choice) -> ImageReport {
        ImageReport {
            name: choice.wish.label.clone(),
            names: choice.draft.names.clone(),
            digest: choice.wish.target.digest().to_string(),
            media_type: choice.wish.target.media_type().to_string(),
            platforms: choice.platforms.clone(),
            absent: choice.absent.clone(),
            left_out: choice.left_out.clone(),
            bytes: making::bytes_of(&choice.draft),
        }
    }
}

impl Render for Report {
    fn text(&self) -> Page {
        let mut text = Page::new();
        for image in &self.images {
            let bytes = output::bytes(image.bytes);
            output::line!(
                text,
                "  {bytes:>9}  {} ({})",
                image.name,
                image.platforms.join(", ")
            );
            for absent in &image.absent {
                output::paragraph(&mut text, "             absent: ", absent);
            }
        }
        for image in &self.skipped {
            output::line!(text, "    skipped  {}", image.name);
            output::paragraph(&mut text, "             ", &image.reason);
        }
        output::line!(
            text,
            "{}: {}, {} in {}",
            self.made.path,
            basics::counted(self.images.len(), "image"),
            output::bytes(self.made.bytes),
            basics::counted(self.blobs.written, "blob")
        );
        text
    }
}
