//! `airgapd status`: how bundles and images stand, with a daemon or without.
//!
//! The daemon says over its control socket what is under way, the ledger has the past, and containerd itself the images that
//! are in place now. Any of the three may be away: then the rest is shown, and the answer names the part that is missing.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::{Call, Exit, Refusal};
use crate::cli::{OutputFormat, StatusArgs};
use crate::output::{self, Page, bytes};
use node::control::{self, Unanswered, Want};
use node::decide::desired;
use node::images::folder::{Depth, Ending, Folder};
use node::place::Place;
use node::progress::{self, Doing};
use node::required;
use node::runtime::{self, Containerd};
use node::settings::Settings;
use node::state::ledger::{self, Entry, ErrorClass, Ledger};
use node::state::roster::{self, Phase, Roster, Version};
use node::status::{
    self, BundleStatus, ContainerdStatus, FolderStatus, IgnoredStatus, ImageCount, ImageStatus, Live,
    RequiredStatus, State, Status, UnpackStatus,
};
use node::verdict::Verdict;

/// How often `--watch` looks.
const PACE: Duration = Duration::from_secs(1);

/// The document of `airgapd status -o json`.
#[derive(Debug, Serialize)]
pub(super) struct Document {
    #[serde(flatten)]
    pub(super) status: Status,
    /// The images that bundles vouch for; absent when containerd could not be asked.
    pub(super) images: Option<Vec<ImageStatus>>,
    /// Everything that is wrong, in a sentence each: the reason of exit status 1 or 3.
    problems: Vec<String>,
}

/// Shows how everything stands. The exit status follows from the verdict: 0 when the node is healthy or working, 3 when
/// containerd cannot be asked, 1 otherwise.
pub(super) async fn run(args: &StatusArgs, call: &Call) -> Result<Exit, Refusal> {
    let node = call.node()?;
    let mut shown = String::new();
    loop {
        let document = look(&call.settings, &node).await;
        if !args.watch {
            call.answer(&document, || text(&document))?;
            return Ok(exit(&document));
        }
        let now = match call.format {
            OutputFormat::Text => text(&document).to_string(),
            OutputFormat::Json => serde_json::to_string(&document)?,
        };
        if now != shown {
            match call.format {
                OutputFormat::Text if io::stdout().is_terminal() => output::screen(&text(&document))?,
                OutputFormat::Text => {
                    let mut page = text(&document);
                    page.gap();
                    output::text(&page)?;
                }
                OutputFormat::Json => output::json_line(&document)?,
            }
            shown = now;
        }
        tokio::time::sleep(PACE).await;
        if !output::is_read() {
            return Ok(exit(&document));
        }
    }
}

/// How everything stands, by the daemon, the ledger and containerd, as far as each can be had.
pub(super) async fn look(settings: &Settings, node: &Place) -> Document {
    let (answer, runtime) = tokio::join!(
        control::ask(&settings.runtime_dir, Want::Status, None),
        runtime::connect(&node.socket, settings)
    );
    let ledger = ledger::read(&settings.state_dir).unwrap_or_default();
    let mut problems = Vec::new();
    let runtime = runtime.map_err(|error| basics::chain(&error));
    let status = match answer {
        Ok(told) => told.status,
        Err(unanswered) => {
            if !matches!(unanswered, Unanswered::NoDaemon(_)) {
                problems.push(unanswered.to_string());
            }
            let mut status = without_daemon(settings, node, &ledger, &runtime);
            if let (Ok(runtime), false) = (&runtime, settings.require.is_empty()) {
                match required::check(settings, runtime).await {
                    Ok(required) => status.required = Some(required),
                    Err(error) => problems.push(basics::chain(&error)),
                }
            }
            status.judged()
        }
    };
    let images = match &runtime {
        Ok(runtime) => match runtime::glance(runtime, &ledger).await {
            Ok(survey) => Some(desired::images(&ledger, &survey, &settings.exclude)),
            Err(error) => {
                problems.push(basics::chain(&error));
                None
            }
        },
        Err(_) => None,
    };
    let verdict = match &images {
        Some(images) => status.verdict.with_images(images),
        None => status.verdict,
    };
    let wrong = verdict.reasons.iter().filter(|reason| !reason.health.is_well());
    problems.extend(wrong.map(ToString::to_string));
    Document {
        status: Status { verdict, ..status },
        images,
        problems,
    }
}

/// The same form, from what is on disk.
fn without_daemon(
    settings: &Settings,
    node: &Place,
    ledger: &Ledger,
    runtime: &Result<Containerd, String>,
) -> Status {
    let mut roster = Roster::default();
    let listed = Folder::open_dir(&node.images_dir).and_then(|folder| {
        let depth = Depth {
            recursive: settings.recursive,
            allow_insecure: settings.allow_insecure_dir,
        };
        folder.list(depth).map(|listing| (folder, listing))
    });
    let problem = match listed {
        Ok((folder, listing)) => {
            let known = |name: &std::ffi::OsStr, version: &Version| version.is_known(ledger, name);
            roster.list(listing.entries, Instant::now(), known);
            leave_alone(&mut roster, &folder, settings, ledger);
            None
        }
        Err(error) => Some(format!("cannot list the images folder: {error}")),
    };
    let bundles = status::bundles(&roster, ledger, &Live::default(), Instant::now());
    Status {
        containerd: ContainerdStatus {
            socket: node.socket.display().to_string(),
            namespace: settings.namespace.clone(),
            reachable: runtime.is_ok(),
            version: runtime.as_ref().ok().map(|runtime| runtime.version.text.clone()),
            platform: runtime.as_ref().ok().map(|runtime| runtime.platform.to_string()),
            problem: runtime.as_ref().err().cloned(),
        },
        folder: FolderStatus {
            path: node.images_dir.display().to_string(),
            problem,
            vanished: None,
        },
        image_count: status::count_images(ledger, &bundles),
        bundles,
        ignored: status::ignored(&roster),
        ..Status::default()
    }
}

/// Leaves the files alone that the daemon would.
fn leave_alone(roster: &mut Roster, folder: &Folder, settings: &Settings, ledger: &Ledger) {
    for name in roster.names(|phase| matches!(phase, Phase::Settling { .. })) {
        let identity = roster.identity(&name);
        let is_set_aside = |entry: &Entry| identity.as_ref().is_some_and(|now| entry.is_set_aside(now));
        if ledger.get(&name).is_some_and(is_set_aside) {
            roster.refuse(&name);
            continue;
        }
        let Some(version) = roster.version(&name).filter(|version| !version.is_layout) else {
            continue;
        };
        let size = version.identity.size;
        let ending = folder
            .open(&name)
            .map_or(Ok(Ending::Foreign), |file| Ending::of(&file, size));
        let ending = ending.unwrap_or(Ending::Foreign);
        if let Some(reason) = roster::why_ignored(&name, ending, size, settings.pull_lists, ledger) {
            roster.ignore(&name, reason);
        }
    }
}

fn exit(document: &Document) -> Exit {
    let verdict = &document.status.verdict;
    match (&document.images, verdict.is_without_containerd()) {
        (None, _) | (_, true) => Exit::Unreachable,
        _ if verdict.health.is_well() && document.problems.is_empty() => Exit::Done,
        _ => Exit::Failed,
    }
}

fn reason(bundle: &BundleStatus) -> Option<&str> {
    let error = bundle.error.as_ref().map(|error| error.text.as_str());
    bundle.waits_for.as_deref().or(error)
}

fn text(document: &Document) -> Page {
    let mut text = Page::new();
    verdict_text(&mut text, &document.status.verdict);
    head(&mut text, &document.status);
    text.gap();
    if document.status.bundles.is_empty() {
        output::line!(text, "no bundles");
    } else {
        output::line!(
            text,
            "{:<18} {:>6} {:>9} {:>9}  {:<17} BUNDLE",
            "STATE",
            "IMAGES",
            "SIZE",
            "TOOK",
            "IMPORTED"
        );
    }
    for bundle in &document.status.bundles {
        bundle_lines(&mut text, bundle, document.status.daemon.is_some());
    }
    ignored_text(&mut text, &document.status.ignored);
    images_text(&mut text, document.images.as_deref(), document.status.image_count);
    if let Some(unpack) = &document.status.unpack {
        unpack_text(&mut text, unpack);
    }
    if let Some(required) = &document.status.required {
        required_text(&mut text, required);
    }
    text
}

/// How many reasons are named: a thousand files may be bad at once.
const MOST_REASONS: usize = 5;

fn verdict_text(text: &mut Page, verdict: &Verdict) {
    output::paragraph(text, "verdict     ", &verdict.in_short());
    let mut wrong = verdict.reasons.iter().filter(|reason| !reason.health.is_well());
    for reason in wrong.by_ref().take(MOST_REASONS) {
        output::paragraph(text, "            ", &reason.to_string());
        if let Some(remedy) = &reason.remedy {
            output::paragraph(text, "            do  ", remedy);
        }
    }
    match wrong.count() {
        0 => {}
        more => output::line!(text, "            and {more} more"),
    }
}

fn unpack_text(text: &mut Page, unpack: &UnpackStatus) {
    let UnpackStatus {
        running,
        pending,
        failed,
        problem,
    } = unpack;
    let mut summary = match (pending, running) {
        (0, _) => "everything is unpacked".to_owned(),
        (pending, true) => format!("{pending} images are being unpacked"),
        (pending, false) => format!("{pending} images wait to be unpacked"),
    };
    if !failed.is_empty() {
        let _ = write!(summary, ", {} cannot be", failed.len());
    }
    if let Some(problem) = problem {
        let _ = write!(summary, "; {problem}");
    }
    output::paragraph(text, "unpack:   ", &summary);
    for image in failed {
        output::line!(text, "  {}: {}", image.name, image.reason);
    }
}

fn required_text(text: &mut Page, required: &RequiredStatus) {
    text.gap();
    let unknown = || match &required.problem {
        Some(problem) => problem.clone(),
        None => "not looked at yet".to_owned(),
    };
    let summary = required.summary().unwrap_or_else(unknown);
    output::paragraph(text, "required: ", &summary);
    for image in &required.missing {
        output::paragraph(text, "  ", &format!("{}: {}", image.reference, image.why));
        if let Some(source) = image.asked_by.first() {
            let more = match image.asked_by.len() - 1 {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            output::paragraph(text, "    asked for by ", &format!("{source}{more}"));
        }
    }
}

fn head(text: &mut Page, status: &Status) {
    let daemon = match &status.daemon {
        Some(daemon) => format!(
            "airgapd {}, pid {}, since {}",
            daemon.version,
            daemon.pid,
            minute(daemon.started_at)
        ),
        None => "not running".to_owned(),
    };
    output::paragraph(text, "daemon      ", &daemon);
    let containerd = &status.containerd;
    let which = match (&containerd.version, &containerd.platform) {
        (Some(version), Some(platform)) => format!(
            "{version} on {}, namespace {}, {platform}",
            containerd.socket, containerd.namespace
        ),
        _ => containerd
            .problem
            .clone()
            .unwrap_or_else(|| format!("not connected to {}", containerd.socket)),
    };
    output::paragraph(text, "containerd  ", &which);
    output::paragraph(text, "folder      ", &status.folder.path);
}

fn bundle_lines(text: &mut Page, bundle: &BundleStatus, is_live: bool) {
    // Without a daemon nothing is under way: a bundle is as the ledger has it.
    let state = match bundle.state {
        State::Checking if !is_live => "imported",
        State::Settling if !is_live => "not imported",
        state => state.as_str(),
    };
    let dash = || "-".to_owned();
    let took = bundle
        .duration_ms
        .map_or_else(dash, |ms| format!("{}.{} s", ms / 1000, ms % 1000 / 100));
    let when = bundle.imported_at.map_or_else(dash, minute);
    output::line!(
        text,
        "{state:<18} {:>6} {:>9} {took:>9}  {when:<17} {}",
        bundle.images,
        bytes(bundle.size),
        bundle.name
    );
    if let Some(progress) = &bundle.progress {
        let line = progress::bar(Doing::Sending, progress, output::WIDTH - 4);
        output::paragraph(text, "    ", &line);
    }
    if let Some(reason) = reason(bundle) {
        output::paragraph(text, "    ", reason);
    }
    let is_for_room = bundle
        .error
        .as_ref()
        .is_some_and(|error| error.class == ErrorClass::Space);
    match bundle.retry_in_ms {
        Some(_) if is_for_room => output::paragraph(text, "    ", "tried again as soon as there is room"),
        Some(ms) => output::paragraph(text, "    ", &format!("tried again in {} s", ms.div_ceil(1000))),
        None => {}
    }
}

/// How many of them are named: a folder that was filled by mistake has thousands.
const MOST_IGNORED: usize = 20;

fn ignored_text(text: &mut Page, ignored: &[IgnoredStatus]) {
    if ignored.is_empty() {
        return;
    }
    text.gap();
    let files = match ignored.len() {
        1 => "1 file".to_owned(),
        count => format!("{count} files"),
    };
    output::line!(text, "ignored: {files}");
    for ignored in ignored.iter().take(MOST_IGNORED) {
        output::paragraph(text, "  ", &format!("{}: {}", ignored.name, ignored.reason));
    }
    if let Some(more) = ignored.len().checked_sub(MOST_IGNORED).filter(|more| *more > 0) {
        output::line!(text, "  and {more} more (-o json names them)");
    }
}

fn images_text(text: &mut Page, images: Option<&[ImageStatus]>, counted: ImageCount) {
    text.gap();
    let Some(images) = images else {
        output::line!(text, "images: unknown, since containerd could not be asked");
        return;
    };
    let problems: Vec<_> = images
        .iter()
        .filter_map(|image| Some((image, image.problem()?)))
        .collect();
    let broken: HashSet<&str> = problems.iter().map(|(image, _)| image.digest.as_str()).collect();
    let whole = images
        .iter()
        .map(|image| image.digest.as_str())
        .filter(|digest| !broken.contains(digest));
    let in_place = whole.collect::<HashSet<_>>().len();
    let counted = ImageCount { in_place, ..counted };
    output::line!(text, "{counted}");
    for (image, problem) in problems {
        output::paragraph(
            text,
            "  ",
            &format!("{} ({}): {problem}", image.name, image.bundle),
        );
    }
}

/// A time without its seconds, in UTC as the journal of a node has it.
pub(super) fn minute(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%MZ").to_string()
}
