//! `airgapd wait --now`: the answer of `GET /ready` as an exit status, for probes that run a
//! program.

use node::control::{self, Unanswered};
use node::ready::{self, Cause, Query, Readiness};

use super::super::only_root;
use super::{Call, Exit, Refusal};
use crate::cli::{OutputFormat, WaitArgs};
use crate::output::{self, Page};

/// Asks the daemon once if the node is ready.
pub(super) async fn run(args: &WaitArgs, call: &Call) -> Result<Exit, Refusal> {
    let query = Query {
        releases: args.releases.clone(),
        bundles: args.bundles.clone(),
        all_bundles: args.all,
    };
    let asked = control::ask_ready(&call.settings.runtime_dir, &query).await;
    let readiness = asked.unwrap_or_else(|unanswered| of_unanswered(&unanswered));
    let readiness = understood(readiness);
    let readiness = match args.required {
        true => with_required(readiness),
        false => readiness,
    };
    match call.format {
        OutputFormat::Json => output::json(&readiness)?,
        OutputFormat::Text if readiness.ready => {
            let mut page = Page::new();
            output::line!(page, "{}", readiness.reason);
            output::text(&page)?;
        }
        OutputFormat::Text => tracing::error!("{}", readiness.reason),
    }
    Ok(exit(&readiness))
}

fn exit(readiness: &Readiness) -> Exit {
    let Some(cause) = readiness.cause else {
        return match readiness.ready {
            true => Exit::Done,
            false => Exit::Failed,
        };
    };
    match cause {
        Cause::Working | Cause::Absent | Cause::Daemon => Exit::TimedOut,
        Cause::Containerd => Exit::Unreachable,
        Cause::Missing => Exit::Missing,
        Cause::NoDaemon => Exit::NoDaemon,
        Cause::Waiting | Cause::NothingRequired | Cause::Query | Cause::Failed => Exit::Failed,
    }
}

fn of_unanswered(unanswered: &Unanswered) -> Readiness {
    match unanswered {
        Unanswered::NoDaemon(_) => Readiness::not(Cause::NoDaemon, unanswered.to_string()),
        Unanswered::Denied(socket) => Readiness::not(Cause::NoDaemon, only_root(socket, "wait")),
        // The daemon may be restarting, or be of an older version.
        Unanswered::NoAnswer { .. } => Readiness::not(Cause::Daemon, unanswered.to_string()),
    }
}

/// Returns the answer, unless it has another version of the document. Nothing in such an answer has
/// a known meaning.
fn understood(readiness: Readiness) -> Readiness {
    match readiness.version {
        ready::VERSION => readiness,
        other => Readiness::not(
            Cause::Failed,
            format!(
                "the daemon answers with version {other} of the document, and this program knows version {}: use the \
                 program of the daemon",
                ready::VERSION
            ),
        ),
    }
}

/// Returns the answer to a caller that insists on required images. Without any, the answer of the
/// daemon is about bundles alone.
fn with_required(readiness: Readiness) -> Readiness {
    match (readiness.ready, &readiness.required) {
        (true, None) => Readiness::not(
            Cause::NothingRequired,
            "the configuration requires no images: name their sources under `require`",
        ),
        _ => readiness,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_ready_answer_without_a_cause_and_of_a_known_version_is_a_success() {
        let exit = |text: &str| {
            let read: Readiness = serde_json::from_str(text).expect("a document");
            exit(&understood(read))
        };
        let table = [
            (r#"{"version": 1, "ready": true, "reason": ""}"#, Exit::Done),
            (r#"{"version": 1, "ready": false, "reason": ""}"#, Exit::Failed),
            (
                r#"{"version": 1, "ready": true, "reason": "", "cause": "missing"}"#,
                Exit::Missing,
            ),
            (
                r#"{"version": 1, "ready": false, "reason": "", "cause": "working"}"#,
                Exit::TimedOut,
            ),
            (r#"{"version": 2, "ready": true, "reason": ""}"#, Exit::Failed),
            (r#"{"version": 0, "ready": true, "reason": ""}"#, Exit::Failed),
        ];
        for (text, wanted) in table {
            assert_eq!(exit(text), wanted, "{text}");
        }
        let silent = Readiness::not(Cause::NoDaemon, "no daemon answers");
        assert_eq!(understood(silent.clone()), silent);
    }

    #[test]
    fn without_required_images_no_answer_about_bundles_is_enough_for_a_caller_that_wants_them() {
        let read = |text: &str| -> Readiness { serde_json::from_str(text).expect("a document") };
        let refused = with_required(read(r#"{"version": 1, "ready": true, "reason": ""}"#));
        assert_eq!(
            (refused.ready, refused.cause),
            (false, Some(Cause::NothingRequired))
        );
        let with_images =
            r#"{"version": 1, "ready": true, "reason": "", "required": {"images": 1, "missing": 0}}"#;
        assert!(with_required(read(with_images)).ready);
        let silent = Readiness::not(Cause::NoDaemon, "no daemon answers");
        assert_eq!(with_required(silent.clone()), silent);
    }
}
