//! `airgapd wait`: what an upgrade controller, a playbook or a k0sctl hook waits for.

use std::time::{Duration, Instant};

use serde::Serialize;
use tracing::info;

use super::Exit;
use crate::cli::WaitArgs;
use crate::config::{OutputFormat, Settings};
use crate::control::{self, Unanswered};
use crate::output;
use crate::status::{BundleStatus, Standing, State, Status};

/// How often the daemon is asked: soon at first, since most bundles are small.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The document of `airgapd wait -o json`.
#[derive(Debug, Serialize)]
struct Document {
    outcome: Outcome,
    /// Why it is not `converged`, in one line.
    error: Option<String>,
    /// The bundles that were waited for, as they were at the end.
    bundles: Vec<BundleStatus>,
    waited_ms: u64,
}

/// What waiting came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Outcome {
    Converged,
    Failed,
    TimedOut,
    NoDaemon,
}

/// Waits. Exit status 0, 1, 6 or 7.
pub(crate) async fn run(args: &WaitArgs, settings: &Settings, format: OutputFormat) -> anyhow::Result<Exit> {
    let document = wait(args, settings).await;
    if let (OutputFormat::Text, Some(error)) = (format, &document.error) {
        tracing::error!("{error}");
    }
    match format {
        OutputFormat::Json => output::json(&document)?,
        OutputFormat::Text if document.outcome == Outcome::Converged => {
            output::text(&format!("{} in place\n", count(document.bundles.len())))?;
        }
        OutputFormat::Text => {}
    }
    Ok(match document.outcome {
        Outcome::Converged => Exit::Done,
        Outcome::Failed => Exit::Failed,
        Outcome::TimedOut => Exit::TimedOut,
        Outcome::NoDaemon => Exit::NoDaemon,
    })
}

async fn wait(args: &WaitArgs, settings: &Settings) -> Document {
    let started = Instant::now();
    let (mut pause, mut said) = (FIRST_PAUSE, String::new());
    let mut last = Vec::new();
    loop {
        // Listed each time: on a file system without events the daemon itself only looks now and then.
        let (outcome, error) = match control::ask(&settings.runtime_dir, true).await {
            Ok(status) => {
                let (outcome, error) = judge(&status, &args.bundles);
                last = wanted(&status, &args.bundles).into_iter().cloned().collect();
                (outcome, error)
            }
            // It may be about to answer again: a restart takes a moment.
            Err(error @ Unanswered::NoAnswer { .. }) => (None, Some(error.to_string())),
            Err(error) => (Some(Outcome::NoDaemon), Some(error.to_string())),
        };
        let is_late = started.elapsed() >= args.timeout;
        if let Some(outcome) = outcome.or(is_late.then_some(Outcome::TimedOut)) {
            return Document {
                outcome,
                error,
                bundles: last,
                waited_ms: crate::status::millis(started.elapsed()),
            };
        }
        let error = error.unwrap_or_default();
        if error != said {
            info!("{error}");
            said = error;
        }
        tokio::time::sleep(pause.min(args.timeout.saturating_sub(started.elapsed()))).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn wanted<'a>(status: &'a Status, names: &[String]) -> Vec<&'a BundleStatus> {
    let is_wanted = |bundle: &&BundleStatus| names.is_empty() || names.contains(&bundle.name);
    let there = status.bundles.iter().filter(|bundle| bundle.state != State::Gone);
    there.filter(is_wanted).collect()
}

/// What the state of the bundles means for whoever waits for these, or all: an outcome, or nothing yet; and why.
fn judge(status: &Status, names: &[String]) -> (Option<Outcome>, Option<String>) {
    let bundles = wanted(status, names);
    let is_there = |name: &&String| bundles.iter().any(|bundle| bundle.name == **name);
    if let Some(problem) = &status.folder.problem {
        return (None, Some(problem.clone()));
    }
    if let Some(absent) = names.iter().find(|name| !is_there(name)) {
        let text = format!("there is no bundle {absent} in {}", status.folder.path);
        return (Some(Outcome::Failed), Some(text));
    }
    let of = |standing: Standing| {
        let bundles = bundles
            .iter()
            .filter(move |bundle| bundle.state.standing() == standing);
        let said = bundles.map(|bundle| sentence(bundle));
        said.collect::<Vec<_>>()
    };
    let (pending, failed) = (of(Standing::Pending), of(Standing::Failed));
    if !pending.is_empty() {
        return (None, Some(pending.join("; ")));
    }
    match failed.is_empty() {
        true => (Some(Outcome::Converged), None),
        false => (Some(Outcome::Failed), Some(failed.join("; "))),
    }
}

fn sentence(bundle: &BundleStatus) -> String {
    let error = bundle.error.as_ref().map(|error| error.text.as_str());
    let (name, state) = (&bundle.name, bundle.state.as_str());
    match bundle.waits_for.as_deref().or(error) {
        Some(why) => format!("{name} is {state}: {why}"),
        None => format!("{name} is {state}"),
    }
}

fn count(bundles: usize) -> String {
    match bundles {
        1 => "1 bundle".to_owned(),
        count => format!("{count} bundles"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{ContainerdStatus, FolderStatus};

    fn bundle(name: &str, state: State) -> BundleStatus {
        BundleStatus {
            name: name.to_owned(),
            state,
            size: 1,
            outcome: None,
            catalog: None,
            images: 0,
            imported_at: None,
            duration_ms: None,
            sent_bytes: None,
            progress: None,
            waits_for: None,
            error: None,
            retry_in_ms: None,
        }
    }

    fn judged(states: &[State], names: &[&str], problem: Option<&str>) -> Option<Outcome> {
        let bundles = states.iter().zip('a'..);
        let status = Status {
            daemon: None,
            containerd: ContainerdStatus::default(),
            folder: FolderStatus {
                path: "/images".to_owned(),
                problem: problem.map(str::to_owned),
            },
            bundles: bundles
                .map(|(state, name)| bundle(&name.to_string(), *state))
                .collect(),
        };
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        judge(&status, &names).0
    }

    #[test]
    fn waiting_ends_when_nothing_is_pending_and_a_failure_is_told() {
        use State::{Done, Failed, Gone, Importing, Queued, Retrying, Stalled};
        type Row<'a> = (&'a [State], &'a [&'a str], Option<&'a str>, Option<Outcome>);
        let table: [Row<'_>; 12] = [
            (&[], &[], None, Some(Outcome::Converged)),
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
        ];
        for (states, names, problem, wanted) in table {
            assert_eq!(judged(states, names, problem), wanted, "{states:?} {names:?}");
        }
    }
}
