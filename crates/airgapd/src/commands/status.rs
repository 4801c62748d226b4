//! `airgapd status`: shows the state of bundles and images, with or without a running daemon.
//!
//! The daemon reports its current work over the control socket. The ledger has the past, and
//! containerd has the images that are in place now. Any of the three may be missing. The answer
//! then has the rest, and names the missing part.
//!
//! Beside tens of thousands of records, containerd takes seconds to answer. If the daemon has every
//! image in place, the page would name none, so `status` does not ask containerd.

mod page;

use std::time::{Duration, Instant};

use import::space::Disk;
use rustix::process::Signal;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

pub(super) use self::page::minute;
use self::page::{View, text};
use super::{Call, Exit, Refusal};
use crate::cli::{OutputFormat, StatusArgs};
use crate::output::{self, Screen};
use node::control::{self, Unanswered, Want};
use node::decide::desired;
use node::images::folder::{Depth, Ending, Folder};
use node::images::keys::TrustedKeys;
use node::place::Place;
use node::releases;
use node::required::{self, Reader};
use node::runtime::{self, Containerd};
use node::settings::Settings;
use node::state::ledger::{self, Entry, Ledger};
use node::state::roster::{self, Phase, Roster, Version};
use node::status::{
    self, BundleStatus, ContainerdStatus, DiskStatus, FolderStatus, ImageCount, ImageStatus, Live, Status,
};
use node::verdict::Verdict;

/// Time between two checks of `--watch`.
const PACE: Duration = Duration::from_secs(1);

/// The document of `airgapd status -o json`.
#[derive(Debug, Serialize)]
pub(super) struct Document {
    #[serde(flatten)]
    pub(super) status: Status,
    /// Images that bundles vouch for, `null` if containerd did not answer.
    pub(super) images: Option<Vec<ImageStatus>>,
    /// True if `status` did not ask containerd, since the daemon has every image in place.
    #[serde(skip)]
    is_daemons_word: bool,
    /// All problems, one sentence each: the reasons for exit status 1 or 3.
    problems: Vec<String>,
}

/// The images that the answer needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Each image, and what each bundle takes on the disk.
    Each,
    /// Those that are not in place.
    Wrong,
}

impl Wanted {
    fn of(call: &Call) -> Wanted {
        match call.format {
            OutputFormat::Text if !call.is_verbose => Wanted::Wrong,
            OutputFormat::Text | OutputFormat::Json => Wanted::Each,
        }
    }
}

/// Shows the state of everything. The exit status follows from the verdict: 0 if the node is
/// healthy or working, 3 if containerd does not answer, and 1 otherwise.
pub(super) async fn run(args: &StatusArgs, call: &Call) -> Result<Exit, Refusal> {
    let node = call.node()?;
    call.allowed(
        "status",
        Exit::Unreachable,
        &[&call.control_socket(), &node.socket],
    )?;
    if !args.watch {
        let document = look(&call.settings, &node, Wanted::of(call)).await;
        call.answer(&document, || text(&document, &View::of(call)))?;
        return Ok(exit(&document));
    }
    let screen = match call.format {
        OutputFormat::Text => Screen::take(),
        OutputFormat::Json => None,
    };
    match screen {
        Some(screen) => watch_on(&screen, &node, call).await,
        None => watch_in_lines(&node, call).await,
    }
}

/// Prints each change below the previous change, until its reader closes the pipe.
async fn watch_in_lines(node: &Place, call: &Call) -> Result<Exit, Refusal> {
    let mut shown = String::new();
    loop {
        let document = look(&call.settings, node, Wanted::of(call)).await;
        let mut page = text(&document, &View::of(call));
        let now = match call.format {
            OutputFormat::Text => page.to_string(),
            OutputFormat::Json => serde_json::to_string(&document)?,
        };
        if now != shown {
            match call.format {
                OutputFormat::Text => {
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

/// Fills the screen of a terminal until a signal arrives or the terminal is closed. The exit status
/// is that of the last check.
async fn watch_on(screen: &Screen, node: &Place, call: &Call) -> Result<Exit, Refusal> {
    let mut resized = signal(SignalKind::window_change())?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut ended = signal(SignalKind::terminate())?;
    let mut hung_up = signal(SignalKind::hangup())?;
    let mut suspended = signal(SignalKind::from_raw(Signal::TSTP.as_raw()))?;
    let mut last = Exit::Done;
    let show = async {
        loop {
            let document = look(&call.settings, node, Wanted::of(call)).await;
            last = exit(&document);
            let draw = || {
                let view = View {
                    lines: Some(screen.lines()),
                    ..View::of(call)
                };
                screen.show(&text(&document, &view))
            };
            draw()?;
            let pause = tokio::time::sleep(PACE);
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    _ = resized.recv() => draw()?,
                }
            }
            if !output::is_read() {
                return Ok::<(), Refusal>(());
            }
        }
    };
    {
        tokio::pin!(show);
        loop {
            tokio::select! {
                shown = &mut show => break shown?,
                _ = interrupted.recv() => break,
                _ = ended.recv() => break,
                _ = hung_up.recv() => break,
                _ = suspended.recv() => screen.suspend()?,
            }
        }
    }
    Ok(last)
}

/// Reads the state of everything from the daemon, the ledger and containerd, as far as each is
/// available.
pub(super) async fn look(settings: &Settings, node: &Place, wanted: Wanted) -> Document {
    let answer = match control::ask(&settings.runtime_dir, Want::Status, None).await {
        Ok(told) if wanted == Wanted::Wrong && has_every_image_in_place(&told.status) => {
            return Document {
                problems: problems(&told.status.verdict),
                status: told.status,
                images: None,
                is_daemons_word: true,
            };
        }
        answer => answer,
    };
    let runtime = runtime::connect(&node.socket, settings).await;
    let ledger = ledger::read(&settings.state_dir).unwrap_or_default();
    let mut wrong = Vec::new();
    let runtime = runtime.map_err(|error| basics::chain(&error));
    let status = match answer {
        Ok(told) => told.status,
        Err(unanswered) => {
            if !matches!(unanswered, Unanswered::NoDaemon(_)) {
                wrong.push(unanswered.to_string());
            }
            let mut status = without_daemon(settings, node, &ledger, &runtime);
            if let (Ok(runtime), false) = (&runtime, settings.require.is_empty()) {
                match required::check(settings, runtime, &Reader::default()).await {
                    Ok(required) => status.required = Some(required),
                    Err(error) => wrong.push(basics::chain(&error)),
                }
            }
            status.judged()
        }
    };
    let mut status = status;
    let images = match &runtime {
        Ok(runtime) => match runtime::glance(runtime, &ledger).await {
            Ok(survey) => {
                let mut used = desired::disk_use(&ledger, &survey);
                for bundle in &mut status.bundles {
                    bundle.disk_use = used.remove(bundle.name.raw());
                }
                Some(desired::images(&ledger, &survey, &settings.exclude))
            }
            Err(error) => {
                wrong.push(basics::chain(&error));
                None
            }
        },
        Err(error) => {
            // If the daemon has no connection either, the verdict has the reason.
            if status.containerd.reachable {
                wrong.push(error.clone());
            }
            None
        }
    };
    let verdict = match &images {
        Some(images) => status.verdict.with_images(images),
        None => status.verdict,
    };
    wrong.extend(problems(&verdict));
    Document {
        status: Status { verdict, ..status },
        images,
        is_daemons_word: false,
        problems: wrong,
    }
}

/// Returns true if the daemon misses no image, except those that failed with their bundles.
fn has_every_image_in_place(status: &Status) -> bool {
    let ImageCount {
        all,
        in_place,
        failed,
    } = status.image_count;
    let is_moved = |bundle: &BundleStatus| !bundle.moved.is_empty();
    status.containerd.reachable && in_place + failed == all && !status.bundles.iter().any(is_moved)
}

fn problems(verdict: &Verdict) -> Vec<String> {
    let wrong = verdict.reasons.iter().filter(|reason| !reason.health.is_well());
    wrong.map(ToString::to_string).collect()
}

/// Returns the same form from the data on disk.
fn without_daemon(
    settings: &Settings,
    node: &Place,
    ledger: &Ledger,
    runtime: &Result<Containerd, String>,
) -> Status {
    let mut roster = Roster::default();
    let depth = Depth {
        recursive: node.searches_sub_folders(settings),
        allow_insecure: settings.allow_insecure_dir,
        ..Depth::default()
    };
    let (mut entries, mut folders) = (Vec::new(), Vec::new());
    for (at, path) in node.images_dirs().iter().enumerate() {
        let listed = Folder::open_dir(path).and_then(|folder| folder.list(depth));
        let problem = match listed {
            Ok(listing) if at == 0 => {
                entries.extend(listing.entries);
                None
            }
            Ok(listing) => {
                entries.extend(listing.with_paths(path).entries);
                None
            }
            Err(error) => Some(format!("cannot list the images folder: {error}")),
        };
        folders.push(FolderStatus {
            path: path.display().to_string(),
            problem,
            vanished: None,
        });
    }
    let receipts = Folder::open_dir(&node.receipts).and_then(|folder| folder.list(Depth::default()));
    let receipts = receipts.unwrap_or_default().with_paths(&node.receipts);
    entries.extend(receipts.entries);
    let known = |name: &std::ffi::OsStr, version: &Version| version.is_known(ledger, name);
    roster.list(entries, Instant::now(), known);
    leave_alone(&mut roster, node, settings, ledger);
    let mut folders = folders.into_iter();
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
        folder: folders.next().unwrap_or_default(),
        more_folders: folders.collect(),
        unusable_keys: match settings.signatures {
            Some(_) => TrustedKeys::read(&settings.trusted_keys)
                .keys()
                .problems()
                .to_vec(),
            None => Vec::new(),
        },
        disk: runtime.as_ref().ok().and_then(|runtime| disk(settings, runtime)),
        scrub: node::scrub::last(&settings.state_dir),
        image_count: status::count_images(ledger, &bundles),
        releases: releases::releases(ledger, &bundles, releases::Rules::of(settings)),
        bundles,
        ignored: status::ignored(&roster),
        ..Status::default()
    }
}

/// Returns the disk of containerd's content store, if it is visible.
fn disk(settings: &Settings, runtime: &Containerd) -> Option<DiskStatus> {
    let space = runtime::space(settings, runtime);
    let disk = Disk::of(space.store.as_deref()?).ok()?;
    Some(DiskStatus::of(
        disk,
        space.min_free,
        space.below_minimum().as_ref(),
    ))
}

/// Leaves out the files that the daemon would leave out.
fn leave_alone(roster: &mut Roster, node: &Place, settings: &Settings, ledger: &Ledger) {
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
        let ending = node
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
        (None, _) if !document.is_daemons_word => Exit::Unreachable,
        (_, true) => Exit::Unreachable,
        _ if verdict.health.is_well() && document.problems.is_empty() => Exit::Done,
        _ => Exit::Failed,
    }
}
