//! `airgapd wait`: waits until bundles are in place, for upgrade controllers, playbooks and k0sctl
//! hooks.

mod now;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use basics::{Foreign, counted};
use oci_spec::image::Digest;
use serde::Serialize;
use tracing::info;

use super::{Call, Exit, Refusal};
use crate::cli::{OutputFormat, WaitArgs};
use crate::output::{self, Page};
use node::control::{self, StatusReply, Unanswered, Want};
use node::place;
use node::receipts;
use node::settings::Settings;
use node::state::ledger::{self, Ledger};
use node::status::{BundleStatus, IgnoredStatus, ReleaseStatus, RequiredStatus, State, Status};
use node::verdict::{Reason, Subject, Verdict};

/// The pause after an answer with news, and after an answer without news.
const SHORT_PAUSE: Duration = Duration::from_millis(50);
const LONG_PAUSE: Duration = Duration::from_secs(1);

/// The document of `airgapd wait -o json`.
#[derive(Debug, Serialize)]
struct Document {
    outcome: Outcome,
    /// Reason why it is not `converged`, in one line.
    error: Option<String>,
    /// The line about a digest or a release that was not in place at the end of the time. It is a
    /// part of `error`.
    #[serde(skip)]
    absent: Option<String>,
    /// Verdict on the awaited bundles, with the obstacles to their import.
    verdict: Verdict,
    /// The awaited bundles, in their last state.
    bundles: Vec<BundleStatus>,
    /// The ignored files of the folder at the end.
    ignored: Vec<IgnoredStatus>,
    /// With `--required`, the images that the configuration requires.
    required: Option<RequiredStatus>,
    /// With `--release`, the awaited releases that a bundle names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    releases: Vec<ReleaseStatus>,
    waited_ms: u64,
}

/// The end of waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Outcome {
    Converged,
    Failed,
    /// Every bundle is in place, and a required image is not.
    Missing,
    TimedOut,
    NoDaemon,
}

/// Waits while the node is working or waiting.
///
/// The exit status is 0 if the node is healthy, and 1 if it is degraded or failed. It is 4 if a
/// required image is missing, and 7 without a daemon. If the time ends first, the status is 6 for a
/// node that is still working. It is 3 for a node that waits for containerd, and 1 for any other
/// wait.
pub(super) async fn run(args: &WaitArgs, call: &Call) -> Result<Exit, Refusal> {
    if args.now {
        return now::run(args, call).await;
    }
    let document = wait(args, &call.settings).await;
    if call.format == OutputFormat::Text && document.error.is_some() {
        document
            .errors()
            .iter()
            .for_each(|error| tracing::error!("{error}"));
    }
    match call.format {
        OutputFormat::Json => output::json(&document)?,
        OutputFormat::Text if document.outcome == Outcome::Converged => {
            let required = document.required.as_ref().and_then(RequiredStatus::summary);
            let required = required.map_or_else(String::new, |summary| format!(", {summary}"));
            let mut page = Page::new();
            let ignored = ignored_text(document.ignored.len());
            let of =
                |is: fn(State) -> bool| document.bundles.iter().filter(|bundle| is(bundle.state)).count();
            let skipped = match of(|state| state == State::Skipped) {
                0 => String::new(),
                count => format!(", {} nothing for this node", has(count)),
            };
            let releases: Vec<&str> = document
                .releases
                .iter()
                .map(|release| release.name.as_str())
                .collect();
            let in_place = match (of(|state| state != State::Skipped), releases.is_empty()) {
                (0, true) => "no bundle".to_owned(),
                (0, false) => format!("release {}", releases.join(", ")),
                (count, true) => counted(count, "bundle"),
                (count, false) => format!("{}, release {}", counted(count, "bundle"), releases.join(", ")),
            };
            output::line!(page, "{in_place} in place{skipped}{ignored}{required}");
            output::text(&page)?;
        }
        OutputFormat::Text => {}
    }
    Ok(match document.outcome {
        Outcome::Converged => Exit::Done,
        Outcome::Failed => Exit::Failed,
        Outcome::Missing => Exit::Missing,
        Outcome::TimedOut if document.verdict.is_without_containerd() => Exit::Unreachable,
        // Content that did not arrive is late, even if the node has other problems.
        Outcome::TimedOut if document.absent.is_some() => Exit::TimedOut,
        Outcome::TimedOut if !document.verdict.health.is_well() => Exit::Failed,
        Outcome::TimedOut => Exit::TimedOut,
        Outcome::NoDaemon => Exit::NoDaemon,
    })
}

impl Document {
    /// Returns the reasons why it did not converge, one line each, up to a limit. A thousand files
    /// may be bad at once.
    fn errors(&self) -> Vec<String> {
        let is_told = |reason: &&Reason| !reason.health.is_well();
        let mut told = self.verdict.reasons.iter().filter(is_told);
        let mut lines: Vec<String> = self.absent.iter().cloned().collect();
        if matches!(self.outcome, Outcome::Failed | Outcome::TimedOut) {
            lines.extend(told.by_ref().take(MOST_TOLD).map(line));
        }
        if lines.is_empty() {
            return self.error.iter().cloned().collect();
        }
        if let more @ 1.. = told.count() {
            lines.push(format!("and {more} more, see `airgapd status`"));
        }
        lines
    }
}

/// Most reasons in the log.
const MOST_TOLD: usize = 5;

fn line(reason: &Reason) -> String {
    let waits_for = reason.waits_for.as_ref();
    let waits_for = waits_for
        .map(|what| format!("waiting for {what}: "))
        .unwrap_or_default();
    let remedy = reason.remedy.as_ref();
    let remedy = remedy.map(|remedy| format!("; {remedy}")).unwrap_or_default();
    format!("{waits_for}{reason}{remedy}")
}

async fn wait(args: &WaitArgs, settings: &Settings) -> Document {
    let started = Instant::now();
    let mut waiting = Waiting::new(args, settings);
    loop {
        let asked = Instant::now();
        // The first request has no timeout, so that even a short wait gets an answer. Later
        // requests end with the time, and the last known state counts.
        let ask = control::ask(&settings.runtime_dir, waiting.want, waiting.tag.as_deref());
        let answer = match waiting.tag {
            None => Some(ask.await),
            Some(_) => {
                let left = args.timeout.saturating_sub(started.elapsed());
                tokio::time::timeout(left, ask).await.ok()
            }
        };
        let news = answer.is_some_and(|answer| waiting.take_in(args, answer));
        let is_late = started.elapsed() >= args.timeout;
        if let Some(outcome) = waiting.outcome.or(is_late.then_some(Outcome::TimedOut)) {
            return waiting.end(outcome, started.elapsed());
        }
        // A pause limits the requests if the daemon has much news, or answers at once without news.
        let pause = match news || asked.elapsed() >= control::NEWS {
            true => SHORT_PAUSE,
            false => LONG_PAUSE,
        };
        tokio::time::sleep(pause.min(args.timeout.saturating_sub(started.elapsed()))).await;
    }
}

/// The state of waiting so far.
struct Waiting {
    /// Folder of the ledger.
    state_dir: PathBuf,
    /// Folder of receipts.
    receipts: PathBuf,
    /// Kind of the next request. Each one makes the daemon list the folder, since on a file system
    /// without events the daemon lists it rarely.
    want: Want,
    /// Tag of the last status.
    tag: Option<String>,
    outcome: Option<Outcome>,
    error: Option<String>,
    /// The line about a digest or a release that is not in place.
    absent: Option<String>,
    verdict: Verdict,
    bundles: Vec<BundleStatus>,
    ignored: Vec<IgnoredStatus>,
    required: Option<RequiredStatus>,
    releases: Vec<ReleaseStatus>,
}

impl Waiting {
    fn new(args: &WaitArgs, settings: &Settings) -> Waiting {
        Waiting {
            state_dir: settings.state_dir.clone(),
            receipts: receipts::folder(settings),
            // One check is enough: after it, the daemon knows by itself when to check again.
            want: match args.required {
                true => Want::Checked,
                false => Want::Listed,
            },
            tag: None,
            outcome: None,
            error: None,
            absent: None,
            verdict: Verdict::default(),
            bundles: Vec::new(),
            ignored: Vec::new(),
            required: None,
            releases: Vec::new(),
        }
    }

    /// Applies an answer of the daemon. Returns true if it is news.
    fn take_in(&mut self, args: &WaitArgs, answer: Result<StatusReply, Unanswered>) -> bool {
        let (before, said) = (self.tag.take(), self.error.take());
        (self.outcome, self.error) = match answer {
            Ok(reply) => {
                self.want = Want::Listed;
                self.tag = reply.tag;
                self.judge(args, reply.status)
            }
            // The daemon may be restarting, which takes a moment.
            Err(error @ Unanswered::NoAnswer { .. }) => (None, Some(error.to_string())),
            Err(Unanswered::Denied(socket)) => {
                (Some(Outcome::NoDaemon), Some(super::only_root(&socket, "wait")))
            }
            Err(error) => (Some(Outcome::NoDaemon), Some(error.to_string())),
        };
        if self.outcome.is_none() && self.error != said {
            info!("{}", self.error.as_deref().unwrap_or_default());
        }
        self.tag.is_some() && self.tag != before
    }

    fn judge(&mut self, args: &WaitArgs, status: Status) -> (Option<Outcome>, Option<String>) {
        let typed = match meant(&args.bundles, &status, &self.receipts) {
            Ok(typed) => typed,
            Err(ambiguous) => return (Some(Outcome::Failed), Some(ambiguous)),
        };
        self.ignored.clone_from(&status.ignored);
        self.releases = named(&status, &args.releases).cloned().collect();
        let content = match (args.digests.as_slice(), args.releases.as_slice()) {
            ([], []) => None,
            // A release needs no ledger.
            ([], releases) => Some(Content::default().with_releases(&status, &typed, releases)),
            (digests, releases) => {
                let content = Content::of(&status, &self.ledger(), &typed, digests);
                Some(content.with_releases(&status, &typed, releases))
            }
        };
        let names: &[String] = content.as_ref().map_or(&typed, |content| &content.waited_for);
        self.absent = content.as_ref().and_then(|content| content.absent.clone());
        (self.bundles, self.verdict) = match &content {
            // A bundle that failed in part may still have brought the digest.
            Some(Content { absent: None, .. }) if names.is_empty() => (Vec::new(), Verdict::default()),
            Some(Content { absent: Some(_), .. }) if names.is_empty() => {
                (Vec::new(), verdict(&status, args, names))
            }
            _ => {
                let bundles = wanted(&status, names).into_iter().cloned().collect();
                (bundles, verdict(&status, args, names))
            }
        };
        // With required images, they decide if an empty folder is enough.
        let allow_empty = args.allow_empty || args.required || content.is_some();
        let judged = judge(&status, &self.verdict, names, allow_empty);
        if let Some(absent) = &self.absent {
            return not_there(absent, judged, !args.bundles.is_empty());
        }
        match judged {
            (Some(Outcome::Converged), _) if args.required => {
                let judged = judge_required(status.required.as_ref());
                self.required = status.required;
                judged
            }
            judged => judged,
        }
    }

    /// Reads the images of each bundle from the ledger, since the daemon does not report each
    /// image.
    fn ledger(&self) -> Ledger {
        ledger::read(&self.state_dir).unwrap_or_default()
    }

    fn end(self, outcome: Outcome, waited: Duration) -> Document {
        Document {
            outcome,
            error: self.error,
            absent: self.absent.filter(|_| outcome == Outcome::TimedOut),
            verdict: self.verdict,
            bundles: self.bundles,
            ignored: self.ignored,
            required: self.required,
            releases: self.releases,
            waited_ms: basics::milliseconds(waited),
        }
    }
}

/// Returns the names of the bundles that the command line means: a path, or the name in any of the
/// images folders. A bundle whose file is gone counts by its receipt.
fn meant(typed: &[String], status: &Status, receipts: &Path) -> Result<Vec<String>, String> {
    let folders = status.folder_paths().into_iter().map(PathBuf::from);
    let folders = folders.filter(|folder| folder != receipts);
    let there = status.bundles.iter().filter(|bundle| bundle.state != State::Gone);
    let files = there.clone().filter(|bundle| bundle.receipt_of.is_none());
    let ignored = status.ignored.iter().map(|ignored| ignored.name.raw());
    let receipts = there.filter_map(|bundle| {
        let of = bundle.receipt_of.as_ref().filter(|of| !of.by_hand)?;
        Some((of.bundle.raw(), bundle.name.raw()))
    });
    let names = place::Names::new(
        folders.collect(),
        files.map(|bundle| bundle.name.raw()).chain(ignored),
        receipts,
    );
    let meant = |name: &String| {
        names.meant(name).map_err(|several| {
            let several: Vec<String> = several
                .into_iter()
                .map(|name| Foreign::new(name).to_string())
                .collect();
            format!(
                "{} is the name of several bundles: {}. Give the path",
                Foreign::new(name.clone()),
                several.join(", ")
            )
        })
    };
    let meant: Result<Vec<Vec<String>>, String> = typed.iter().map(meant).collect();
    Ok(meant?.into_iter().flatten().collect())
}

fn wanted<'a>(status: &'a Status, names: &[String]) -> Vec<&'a BundleStatus> {
    let is_wanted =
        |bundle: &&BundleStatus| names.is_empty() || names.iter().any(|name| name == bundle.name.raw());
    let there = status.bundles.iter().filter(|bundle| bundle.state != State::Gone);
    there.filter(is_wanted).collect()
}

/// Returns the releases of these names that a bundle names.
fn named<'s>(status: &'s Status, names: &'s [String]) -> impl Iterator<Item = &'s ReleaseStatus> {
    let releases = status.releases.iter();
    releases.filter(|release| names.contains(&release.name))
}

/// The result of `--digest` and `--release`: the awaited bundles, and a digest or a release that is
/// not in place.
#[derive(Default)]
struct Content {
    /// Named bundles, and whole bundles with one of the digests.
    waited_for: Vec<String>,
    /// Message about the first digest that no bundle has in place, as an image or as its content.
    /// Or about the first release that is not in place.
    absent: Option<String>,
}

impl Content {
    fn of(status: &Status, ledger: &Ledger, names: &[String], digests: &[Digest]) -> Content {
        let mut waited_for: BTreeSet<String> = names.iter().cloned().collect();
        let mut absent = None;
        for digest in digests {
            let brought = ledger.bundles_with(digest);
            let has = |bundle: &&BundleStatus| match bundle.state {
                State::Done => {
                    bundle.catalog.as_deref() == Some(digest.as_ref()) || brought.contains(bundle.name.raw())
                }
                // Some of its images may be in place, but its whole content is not.
                State::Failed => brought.contains(bundle.name.raw()),
                _ => false,
            };
            let with: Vec<_> = wanted(status, names).into_iter().filter(has).collect();
            if with.is_empty() {
                absent.get_or_insert(match names {
                    [] => {
                        let folders = status.folder_paths().join(" and ");
                        format!("no bundle in {folders} has {digest} in place")
                    }
                    names => format!("{digest} is not in place in {}", names.join(", ")),
                });
            }
            let whole = with.iter().filter(|bundle| bundle.state == State::Done);
            waited_for.extend(whole.map(|bundle| bundle.name.raw().to_owned()));
        }
        Content {
            waited_for: waited_for.into_iter().collect(),
            absent,
        }
    }

    /// Adds the releases. Their bundles are not waited for, since another part of such a bundle may
    /// have failed. Named bundles are.
    fn with_releases(mut self, status: &Status, names: &[String], releases: &[String]) -> Content {
        for name in releases {
            let absent = match status.releases.iter().find(|release| release.name == *name) {
                Some(release) if release.in_place => continue,
                Some(release) => {
                    let why = release.problem.as_deref().unwrap_or("its state is not known");
                    format!("release {name} is not in place: {why}")
                }
                None => {
                    let folders = status.folder_paths().join(" and ");
                    format!("no imported bundle in {folders} names the release {name}")
                }
            };
            self.absent.get_or_insert(absent);
        }
        let known: BTreeSet<String> = self.waited_for.into_iter().chain(names.iter().cloned()).collect();
        Content {
            waited_for: known.into_iter().collect(),
            ..self
        }
    }
}

/// Returns the outcome if no bundle has a digest in place. The digest may still arrive, unless a
/// named bundle failed.
fn not_there(
    absent: &str,
    judged: (Option<Outcome>, Option<String>),
    is_named: bool,
) -> (Option<Outcome>, Option<String>) {
    match judged {
        (Some(Outcome::Failed), why) if is_named => (Some(Outcome::Failed), why),
        (None, Some(why)) => (None, Some(format!("{absent}; {why}"))),
        (Some(_) | None, _) => (None, Some(absent.to_owned())),
    }
}

/// Returns the verdict on the awaited bundles, or on the node if none is named. Required images are
/// judged separately.
fn verdict(status: &Status, args: &WaitArgs, names: &[String]) -> Verdict {
    if !names.is_empty() {
        return Verdict::of_bundles(status, wanted(status, names));
    }
    let reasons = status.verdict.reasons.iter();
    let is_asked = |reason: &&Reason| !args.required || reason.subject != Subject::Required;
    Verdict::new(reasons.filter(is_asked).cloned().collect())
}

/// Returns the outcome for a caller that waits for these bundles, or for all, and the reason. The
/// outcome is `None` while the wait continues.
fn judge(
    status: &Status,
    verdict: &Verdict,
    names: &[String],
    allow_empty: bool,
) -> (Option<Outcome>, Option<String>) {
    let bundles = wanted(status, names);
    let find = |name: &str| bundles.iter().find(|bundle| bundle.name.raw() == name);
    let folder = status.folder_paths().join(" and ");
    let is_listed = status.folders().all(|folder| folder.problem.is_none());
    for name in names.iter().filter(|_| is_listed) {
        let text = match find(name) {
            Some(bundle) if bundle.state == State::Skipped => {
                format!(
                    "{} has nothing for this node: `airgapd inspect` shows its platforms",
                    bundle.name
                )
            }
            Some(_) => continue,
            None => match status.ignored.iter().find(|ignored| ignored.name.raw() == name) {
                Some(ignored) => format!("{} is ignored: {}", ignored.name, ignored.reason),
                None => format!("there is no bundle {} in {folder}", Foreign::new(name)),
            },
        };
        return (Some(Outcome::Failed), Some(text));
    }
    let passing = verdict.reasons.iter().filter(|reason| reason.health.may_pass());
    let passing: Vec<String> = passing.map(pending).collect();
    if !passing.is_empty() {
        return (None, Some(in_one_line(&passing)));
    }
    if !verdict.health.is_well() {
        let wrong: Vec<String> = verdict.reasons.iter().map(ToString::to_string).collect();
        return (Some(Outcome::Failed), Some(in_one_line(&wrong)));
    }
    if bundles.is_empty() && !allow_empty {
        let ignored = ignored_text(status.ignored.len());
        let text = format!("there is no bundle in {folder}{ignored}: --allow-empty accepts an empty folder");
        return (None, Some(text));
    }
    (Some(Outcome::Converged), None)
}

/// Returns the reason why the wait continues.
fn pending(reason: &Reason) -> String {
    match &reason.waits_for {
        Some(what) => format!("waiting for {what}: {reason}"),
        None => reason.to_string(),
    }
}

/// Returns the first few of many sentences in one line. A thousand files may be bad at once.
fn in_one_line(sentences: &[String]) -> String {
    const MOST: usize = 5;
    let first = sentences.iter().take(MOST).map(String::as_str);
    let mut line = first.collect::<Vec<_>>().join("; ");
    if let Some(more) = sentences.len().checked_sub(MOST).filter(|more| *more > 0) {
        line = format!("{line}, and {more} more, see `airgapd status`");
    }
    line
}

/// Returns the outcome for the required images. All bundles are in place then and bring no more
/// images.
fn judge_required(required: Option<&RequiredStatus>) -> (Option<Outcome>, Option<String>) {
    let Some(required) = required else {
        let text = "the configuration requires no images: name their sources under `require`";
        return (Some(Outcome::Failed), Some(text.to_owned()));
    };
    if !required.is_current {
        return (
            None,
            Some("the check of the required images is running".to_owned()),
        );
    }
    if let Some(problem) = &required.problem {
        return (Some(Outcome::Failed), Some(problem.clone()));
    }
    if required.missing.is_empty() {
        return (Some(Outcome::Converged), None);
    }
    let missing = required.missing.iter().map(|image| image.reference.as_str());
    let text = format!(
        "{}: {} (`airgapd verify` says what to do)",
        required.summary().unwrap_or_default(),
        missing.collect::<Vec<_>>().join(", ")
    );
    (Some(Outcome::Missing), Some(text))
}

/// Returns the number of ignored files, as the end of a sentence.
fn ignored_text(files: usize) -> String {
    match files {
        0 => String::new(),
        count => format!(", {} ignored (`airgapd status` says why)", counted(count, "file")),
    }
}

fn has(bundles: usize) -> String {
    match bundles {
        1 => "1 bundle has".to_owned(),
        count => format!("{count} bundles have"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use node::status::{ContainerdStatus, DaemonStatus, FolderStatus, ReceiptStatus};

    type Judged = (Option<Outcome>, Option<String>);

    fn judged(states: &[State], names: &[&str], problem: Option<&str>) -> Judged {
        judged_with(states, names, problem, false)
    }

    fn judged_with(states: &[State], names: &[&str], problem: Option<&str>, allow_empty: bool) -> Judged {
        let bundles = states.iter().zip('a'..);
        let status = Status {
            daemon: Some(DaemonStatus {
                version: "1".to_owned(),
                pid: 1,
                started_at: jiff::Timestamp::UNIX_EPOCH,
            }),
            containerd: ContainerdStatus {
                reachable: true,
                ..ContainerdStatus::default()
            },
            folder: FolderStatus {
                path: "/images".to_owned(),
                problem: problem.map(str::to_owned),
                vanished: None,
            },
            bundles: bundles
                .map(|(state, name)| BundleStatus::named(name.to_string().as_ref(), *state))
                .collect(),
            ignored: vec![IgnoredStatus {
                name: Foreign::new("README.md".to_owned()),
                reason: "it is a text".to_owned(),
            }],
            ..Status::default()
        }
        .judged();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let verdict = match names.is_empty() {
            true => status.verdict.clone(),
            false => Verdict::of_bundles(&status, wanted(&status, &names)),
        };
        judge(&status, &verdict, &names, allow_empty)
    }

    /// `wait --now` has the same names, by the same resolver.
    #[test]
    fn a_bundle_is_waited_for_by_its_file_and_without_it_by_its_receipt() {
        let folder = |path: &str| FolderStatus {
            path: path.to_owned(),
            ..FolderStatus::default()
        };
        let receipt = |name: &str, of: &str, by_hand| BundleStatus {
            receipt_of: Some(ReceiptStatus {
                bundle: Foreign::new(of.to_owned()),
                size: 1,
                by_hand,
                catalog: None,
            }),
            ..BundleStatus::named(name.as_ref(), State::Done)
        };
        let status = Status {
            folder: folder("/images"),
            more_folders: vec![folder("/os"), folder("/state/receipts")],
            bundles: vec![
                BundleStatus::named("/os/os.tar".as_ref(), State::Done),
                BundleStatus::named("both.tar".as_ref(), State::Importing),
                receipt("/state/receipts/both.tar", "both.tar", false),
                receipt("/state/receipts/shop.tar", "shop.tar", false),
                receipt("/state/receipts/by-hand-1-hand.tar", "hand.tar", true),
                // No import has read it yet.
                BundleStatus::named("/state/receipts/new.tar".as_ref(), State::Queued),
                BundleStatus::named("new.tar".as_ref(), State::Queued),
            ],
            ..Status::default()
        };
        for (typed, wanted) in [
            ("shop.tar", "/state/receipts/shop.tar"),
            ("/images/shop.tar", "/state/receipts/shop.tar"),
            ("/state/receipts/shop.tar", "/state/receipts/shop.tar"),
            ("both.tar", "both.tar"),
            ("/images/both.tar", "both.tar"),
            ("new.tar", "new.tar"),
            ("os.tar", "/os/os.tar"),
            ("hand.tar", "hand.tar"),
        ] {
            let meant = meant(&[typed.to_owned()], &status, Path::new("/state/receipts"));
            assert_eq!(meant, Ok(vec![wanted.to_owned()]), "{typed}");
        }
    }

    #[test]
    fn of_many_that_failed_the_first_few_are_named_and_the_others_counted() {
        let sentences: Vec<_> = ('a'..='g').map(String::from).collect();
        assert_eq!(in_one_line(&sentences[..5]), "a; b; c; d; e");
        assert_eq!(
            in_one_line(&sentences),
            "a; b; c; d; e, and 2 more, see `airgapd status`"
        );
    }

    #[test]
    fn what_is_required_is_judged_by_an_answer_that_is_new_enough() {
        let required = |change: fn(&mut RequiredStatus)| {
            let mut required = RequiredStatus {
                is_current: true,
                checked_at: Some(jiff::Timestamp::UNIX_EPOCH),
                references: 2,
                ..RequiredStatus::default()
            };
            change(&mut required);
            judge_required(Some(&required))
        };
        let missing = |required: &mut RequiredStatus| {
            required.missing.push(node::status::MissingStatus {
                reference: "a:1".to_owned(),
                why: String::new(),
                asked_by: Vec::new(),
            });
        };
        assert_eq!(required(|_| {}), (Some(Outcome::Converged), None));
        let (outcome, why) = required(missing);
        assert_eq!(outcome, Some(Outcome::Missing));
        assert!(why.unwrap().starts_with("1 of 2 required images is missing: a:1"));
        assert_eq!(required(|required| required.is_current = false).0, None);
        let unknown = required(|required| required.problem = Some("it is unreadable".to_owned()));
        assert_eq!(
            unknown,
            (Some(Outcome::Failed), Some("it is unreadable".to_owned()))
        );
        assert_eq!(judge_required(None).0, Some(Outcome::Failed));
    }

    #[test]
    fn waiting_ends_when_nothing_is_pending_and_a_failure_is_told() {
        use State::{Done, Failed, Gone, Importing, Queued, Retrying, Skipped, Stalled};
        type Row<'a> = (&'a [State], &'a [&'a str], Option<&'a str>, Option<Outcome>);
        let table: [Row<'_>; 16] = [
            (&[], &[], None, None),
            (&[Gone], &[], None, None),
            (&[Done, Done], &[], None, Some(Outcome::Converged)),
            (&[Done, Gone], &[], None, Some(Outcome::Converged)),
            (&[Done, Queued], &[], None, None),
            (&[Done, Stalled], &[], None, None),
            (&[Done, Failed], &[], None, Some(Outcome::Failed)),
            (&[Retrying, Failed], &[], None, None),
            (&[Done, Failed], &["a"], None, Some(Outcome::Converged)),
            (&[Done, Failed], &["b"], None, Some(Outcome::Failed)),
            (&[Done, Importing], &["a", "c"], None, Some(Outcome::Failed)),
            (&[Gone], &["a"], None, Some(Outcome::Failed)),
            (&[Done], &[], Some("it is not mounted"), None),
            (&[Done, Skipped], &[], None, Some(Outcome::Converged)),
            (&[Done, Skipped], &["b"], None, Some(Outcome::Failed)),
            (&[Skipped], &[], None, Some(Outcome::Converged)),
        ];
        for (states, names, problem, wanted) in table {
            let (outcome, _) = judged(states, names, problem);
            assert_eq!(outcome, wanted, "{states:?} {names:?}");
        }
    }

    #[test]
    fn a_folder_without_bundles_is_no_answer_unless_it_is_allowed_and_an_ignored_file_is_no_bundle() {
        let (outcome, why) = judged(&[], &[], None);
        assert_eq!(outcome, None);
        let why = why.unwrap();
        assert!(
            why.contains("no bundle in /images, 1 file ignored") && why.contains("--allow-empty"),
            "{why}"
        );
        assert_eq!(
            judged_with(&[], &[], None, true),
            (Some(Outcome::Converged), None)
        );
        let named = judged(&[State::Done], &["README.md"], None);
        let text = "README.md is ignored: it is a text".to_owned();
        assert_eq!(named, (Some(Outcome::Failed), Some(text)));
    }
}
