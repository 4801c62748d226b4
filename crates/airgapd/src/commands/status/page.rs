//! The page of `airgapd status`: its parts, their order, and the lines that fit.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _};

use super::super::Call;
use super::Document;
use crate::output::{self, Colour, Page, bytes};
use basics::counted;
use node::progress::{self, Doing};
use node::state::ledger::ErrorClass;
use node::status::{
    BundleStatus, DiskUse, IgnoredStatus, ImageCount, ImageStatus, ReleaseStatus, RequiredStatus, State,
    Status, UnpackStatus, savings,
};
use node::verdict::{Health, Reason, Verdict};

/// The form of the text.
pub(super) struct View {
    /// Width, in characters.
    pub(super) width: usize,
    /// True if long names are wrapped too. Without a terminal they are not, for `grep`.
    pub(super) breaks_names: bool,
    /// Number of lines on the screen, `None` for no limit.
    pub(super) lines: Option<usize>,
    /// True if the page shows the use of the disk.
    pub(super) is_verbose: bool,
}

impl View {
    pub(super) fn of(call: &Call) -> View {
        View {
            width: output::width(),
            breaks_names: io::stdout().is_terminal(),
            lines: None,
            is_verbose: call.is_verbose,
        }
    }

    /// Returns the columns before the name of a bundle, which comes last. A narrow terminal has no
    /// room for all of them.
    fn row(&self, state: &str, images: &str, size: &str, took: &str, when: &str) -> String {
        match self.width >= output::WIDTH - 1 {
            true => format!("{state:<18} {images:>6} {size:>9} {took:>9}  {when:<17} "),
            false => format!("{state:<17} {images:>6} {size:>9}  "),
        }
    }
}

/// The lines of one bundle.
struct Row {
    state: State,
    lines: Page,
}

/// Returns the reason why a bundle is not in place. The last error is left out while a new attempt
/// runs or is due.
fn reason(bundle: &BundleStatus) -> Option<&str> {
    let is_over = matches!(bundle.state, State::Retrying | State::Failed | State::Gone);
    let error = bundle.error.as_ref().filter(|_| is_over);
    let error = error.map(|error| error.text.as_str());
    bundle.waits_for.as_deref().or(error)
}

pub(super) fn text(document: &Document, view: &View) -> Page {
    let status = &document.status;
    let mut top = Page::new();
    let told = verdict_text(&mut top, &status.verdict);
    head(&mut top, status, view);
    top.gap();
    let mut titles = Page::new();
    if status.bundles.is_empty() {
        output::line!(titles, "no bundles");
    } else {
        let row = view.row("STATE", "IMAGES", "SIZE", "TOOK", "IMPORTED");
        output::line!(titles, "{row}BUNDLE");
    }
    let mut bundles: Vec<&BundleStatus> = status.bundles.iter().collect();
    bundles.sort_by_key(|bundle| urgency(bundle.state));
    let row = |bundle: &&BundleStatus| Row {
        state: bundle.state,
        lines: bundle_lines(bundle, status.daemon.is_some(), &told, view),
    };
    let rows: Vec<Row> = bundles.iter().map(row).collect();
    let mut bottom = Page::new();
    releases_text(&mut bottom, &status.releases);
    ignored_text(&mut bottom, &status.ignored);
    match document.is_daemons_word {
        true => {
            bottom.gap();
            output::line!(bottom, "{}", status.image_count);
        }
        false => images_text(&mut bottom, document.images.as_deref(), status.image_count),
    }
    if let Some(unpack) = &status.unpack {
        unpack_text(&mut bottom, unpack);
    }
    if let Some(required) = &status.required {
        required_text(&mut bottom, required);
    }
    arranged(top, &titles, &rows, bottom, view.lines)
}

/// Bundles that need the operator come first, then those under way, and those in place last.
fn urgency(state: State) -> u8 {
    match state {
        State::Failed => 0,
        State::Retrying => 1,
        State::Stalled | State::AwaitingChecksum | State::AwaitingSignature => 2,
        State::Importing => 3,
        State::Checking | State::Following | State::Queued | State::Settling => 4,
        State::Gone => 5,
        State::Skipped => 6,
        State::Done => 7,
    }
}

/// Returns one page of all parts. With limited lines, the top gets at most half of them and the
/// bottom a quarter. Bundles that do not fit are counted.
fn arranged(mut top: Page, titles: &Page, rows: &[Row], mut bottom: Page, lines: Option<usize>) -> Page {
    let Some(lines) = lines else {
        top.add(titles);
        rows.iter().for_each(|row| top.add(&row.lines));
        top.add(&bottom);
        return top;
    };
    let all: usize = rows.iter().map(|row| row.lines.lines()).sum();
    if top.lines() + titles.lines() + all + bottom.lines() > lines {
        top.cut(lines / 2);
        bottom.cut(lines / 4);
    }
    top.add(titles);
    let room = lines.saturating_sub(top.lines() + bottom.lines());
    let (mut used, mut shown) = (0, 0);
    for (at, row) in rows.iter().enumerate() {
        // One line for the count of the other bundles.
        let rest = usize::from(at + 1 < rows.len());
        if used + row.lines.lines() + rest > room {
            break;
        }
        top.add(&row.lines);
        used += row.lines.lines();
        shown += 1;
    }
    let left = &rows[shown..];
    let done = left.iter().filter(|row| row.state == State::Done).count();
    match (left.len() - done, done) {
        _ if used >= room => {}
        (0, 0) => {}
        (0, done) => output::line!(top, "and {done} done"),
        (more, 0) => output::line!(top, "and {more} more"),
        (more, done) => output::line!(top, "and {more} more, and {done} done"),
    }
    top.add(&bottom);
    top
}

/// Most reasons on the page. A thousand files may be bad at once.
const MOST_REASONS: usize = 5;

/// Writes the verdict, and returns the reasons that it names.
fn verdict_text<'v>(text: &mut Page, verdict: &'v Verdict) -> Vec<&'v Reason> {
    output::paragraph(text, "verdict     ", &verdict.in_short());
    let colour = match verdict.health {
        Health::Healthy => Colour::Green,
        Health::Working => Colour::Cyan,
        Health::Waiting | Health::Degraded => Colour::Yellow,
        Health::Failed => Colour::Red,
    };
    text.paint(0, "verdict     ".len(), usize::MAX, colour);
    let mut wrong = verdict.reasons.iter().filter(|reason| !reason.health.is_well());
    let mut told = Vec::new();
    for reason in wrong.by_ref().take(MOST_REASONS) {
        told.push(reason);
        output::paragraph(text, "            ", &reason.to_string());
        if let Some(remedy) = &reason.remedy {
            output::paragraph(text, "            do  ", remedy);
        }
    }
    match wrong.count() {
        0 => {}
        more => output::line!(text, "            and {more} more"),
    }
    told
}

/// Most releases on the page.
const MOST_RELEASES: usize = 10;

/// Writes the releases. Those that are not in place come first, and those that are kept for a roll
/// back last.
fn releases_text(text: &mut Page, releases: &[ReleaseStatus]) {
    if releases.is_empty() {
        return;
    }
    text.gap();
    output::line!(text, "{:<14} {:>9}  RELEASE", "STATE", "MEMBERS");
    let mut sorted: Vec<&ReleaseStatus> = releases.iter().collect();
    sorted.sort_by_key(|release| (release.kept, release.in_place));
    for release in sorted.iter().take(MOST_RELEASES) {
        let state = release.state();
        let members = match release.members {
            0 => "-".to_owned(),
            all => format!("{} of {all}", all - release.missing),
        };
        output::line!(text, "{state:<14} {members:>9}  {}", release.name);
        if let Some(problem) = release.problem.as_ref().filter(|_| !release.kept) {
            output::paragraph(text, "    ", problem);
        }
    }
    match releases.len().saturating_sub(MOST_RELEASES) {
        0 => {}
        more => output::line!(text, "and {more} more"),
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
        (1, true) => "1 image is being unpacked".to_owned(),
        (1, false) => "1 image waits to be unpacked".to_owned(),
        (pending, true) => format!("{pending} images are being unpacked"),
        (pending, false) => format!("{pending} images wait to be unpacked"),
    };
    if !failed.is_empty() {
        let _ = write!(summary, ", {} cannot be unpacked", failed.len());
    }
    if let Some(problem) = problem {
        let _ = write!(summary, " ({problem})");
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
        None => "not checked yet".to_owned(),
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
            output::paragraph(text, "    required by ", &format!("{source}{more}"));
        }
    }
}

fn head(text: &mut Page, status: &Status, view: &View) {
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
    for (at, path) in status.folder_paths().into_iter().enumerate() {
        let label = if at == 0 { "folder      " } else { "            " };
        output::paragraph(text, label, path);
    }
    for why in &status.unusable_keys {
        output::paragraph(text, "unusable    ", &format!("key {why}"));
    }
    if let Some(disk) = status.disk.as_ref().filter(|_| view.is_verbose) {
        let free = format!(
            "{} of {} free, {} must stay free (minFree)",
            bytes(disk.free_bytes),
            bytes(disk.size_bytes),
            bytes(disk.min_free_bytes)
        );
        output::paragraph(text, "disk        ", &free);
    }
    if let Some(scrub) = status.scrub.as_ref().filter(|_| view.is_verbose) {
        let told = format!("{}: {scrub}", minute(scrub.at));
        output::paragraph(text, "scrub       ", &told);
    }
    let freed = savings(&status.bundles);
    if view.is_verbose && freed > 0 {
        let would = format!("would free {} (`afterImport: receipt`)", bytes(freed));
        output::paragraph(text, "receipts    ", &would);
    }
}

fn bundle_lines(bundle: &BundleStatus, is_live: bool, told: &[&Reason], view: &View) -> Page {
    let mut text = Page::new();
    // Without a daemon no work is in progress, so the ledger has the state of a bundle.
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
    let images = bundle.images.to_string();
    let row = view.row(state, &images, &bytes(bundle.size), &took, &when);
    match view.breaks_names {
        true => output::paragraph(&mut text, &row, &bundle.name.to_string()),
        false => output::line!(text, "{row}{}", bundle.name),
    }
    let colour = match bundle.state {
        State::Failed => Some(Colour::Red),
        State::Retrying
        | State::Stalled
        | State::AwaitingChecksum
        | State::AwaitingSignature
        | State::Gone => Some(Colour::Yellow),
        State::Importing => Some(Colour::Cyan),
        State::Done => Some(Colour::Green),
        State::Settling | State::Queued | State::Following | State::Checking | State::Skipped => None,
    };
    if let Some(colour) = colour {
        text.paint(0, 0, state.len(), colour);
    }
    if let Some(progress) = &bundle.progress {
        let line = progress::bar(Doing::Sending, progress, view.width - 4);
        output::paragraph(&mut text, "    ", &line);
    }
    // The verdict is above, and its reasons are not repeated.
    let is_told = |why: &str| {
        let mut told = told.iter();
        told.any(|reason| reason.name.as_ref() == Some(&bundle.name) && reason.text == why)
    };
    if let Some(reason) = reason(bundle).filter(|why| !is_told(why)) {
        output::paragraph(&mut text, "    ", reason);
    }
    let is_for_room = bundle
        .error
        .as_ref()
        .is_some_and(|error| error.class == ErrorClass::Space);
    match bundle.retry_in_ms {
        Some(_) if is_for_room => {
            output::paragraph(&mut text, "    ", "retry as soon as there is room");
        }
        Some(ms) => {
            let text_of = format!("retry in {} s", ms.div_ceil(1000));
            output::paragraph(&mut text, "    ", &text_of);
        }
        None => {}
    }
    if let Some(why) = &bundle.unadmitted {
        output::paragraph(&mut text, "    ", &format!("unadmitted: {why}"));
    }
    if let Some(of) = bundle.receipt_of.as_ref().filter(|_| view.is_verbose) {
        let content = match &bundle.catalog {
            Some(catalog) => format!(" and the content digest {catalog}"),
            None => String::new(),
        };
        let line = format!("receipt of {}, which had {}{content}", of.bundle, bytes(of.size));
        output::paragraph(&mut text, "    ", &line);
    }
    for signer in bundle.signers.iter().filter(|_| view.is_verbose) {
        output::paragraph(&mut text, "    ", &format!("signed by {signer}, {}", signer.kind));
    }
    if let Some(disk_use) = bundle.disk_use.filter(|_| view.is_verbose) {
        let DiskUse {
            store_bytes,
            only_bytes,
            freed_bytes,
        } = disk_use;
        let line = format!(
            "in containerd {}, {} of it for this bundle alone, its removal frees {}",
            bytes(store_bytes),
            bytes(only_bytes),
            bytes(freed_bytes)
        );
        output::paragraph(&mut text, "    ", &line);
    }
    text
}

/// Most ignored files on the page. A folder that was filled by mistake has thousands.
const MOST_IGNORED: usize = 20;

fn ignored_text(text: &mut Page, ignored: &[IgnoredStatus]) {
    if ignored.is_empty() {
        return;
    }
    text.gap();
    output::line!(text, "ignored: {}", counted(ignored.len(), "file"));
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
        output::line!(text, "images: unknown, since containerd did not answer");
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
    output::line!(text, "{}", counted.with_in_place(in_place));
    for (image, problem) in problems {
        output::paragraph(
            text,
            "  ",
            &format!("{} ({}): {problem}", image.name, image.bundle),
        );
    }
}

/// Returns a time without its seconds, in UTC as in a node's journal.
pub(in crate::commands) fn minute(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%MZ").to_string()
}

#[cfg(test)]
mod tests {
    use node::status::ErrorStatus;

    use super::*;

    fn lines(count: usize, word: &str) -> Page {
        Page::of_lines(&format!("{word}\n").repeat(count))
    }

    #[test]
    fn an_error_is_not_repeated_below_a_try_that_runs() {
        let error = ErrorStatus {
            text: "no room".to_owned(),
            class: ErrorClass::Space,
            at: jiff::Timestamp::UNIX_EPOCH,
            attempts: 1,
            refused_by: None,
        };
        for state in State::ALL {
            let bundle = BundleStatus {
                error: Some(error.clone()),
                ..BundleStatus::named("a.tar".as_ref(), state)
            };
            let is_over = matches!(state, State::Retrying | State::Failed | State::Gone);
            assert_eq!(reason(&bundle), is_over.then_some("no room"), "{state:?}");
        }
    }

    #[test]
    fn a_screen_shows_as_many_bundles_as_fit_and_counts_the_others() {
        use State::{Done, Failed, Queued};
        let row = |state: State, count| Row {
            state,
            lines: lines(count, state.as_str()),
        };
        let (failed, done) = (|| row(Failed, 2), || row(Done, 1));
        type Case = (Option<usize>, Vec<Row>, &'static [&'static str]);
        let table: Vec<Case> = vec![
            (
                None,
                vec![failed(), done()],
                &["top", "top", "failed", "failed", "done", "end"],
            ),
            (
                Some(6),
                vec![failed(), done()],
                &["top", "top", "failed", "failed", "done", "end"],
            ),
            (
                Some(5),
                vec![failed(), done()],
                &["top", "top", "and 1 more, and 1 done", "end"],
            ),
            (
                Some(5),
                vec![done(), done(), done()],
                &["top", "top", "done", "and 2 done", "end"],
            ),
            (
                Some(8),
                vec![failed(), row(Queued, 1), done(), done(), done()],
                &[
                    "top",
                    "top",
                    "failed",
                    "failed",
                    "queued",
                    "done",
                    "and 2 done",
                    "end",
                ],
            ),
            (
                Some(4),
                vec![failed(), row(Queued, 1)],
                &["top", "top", "and 2 more", "end"],
            ),
            (Some(2), vec![done(), done()], &["top", "top"]),
        ];
        for (height, rows, expected) in table {
            let page =
                arranged(lines(1, "top"), &lines(1, "top"), &rows, lines(1, "end"), height).to_string();
            assert_eq!(page.lines().collect::<Vec<_>>(), expected, "{height:?}");
        }
    }
}
