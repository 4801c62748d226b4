//! `airgapd wait --now`: the answer of `GET /ready` as an exit status, for probes that run a program.

use node::control::{self, Unanswered};
use node::ready::{Cause, Query, Readiness};

use super::super::only_root;
use super::{Call, Exit, Refusal};
use crate::cli::{OutputFormat, WaitArgs};
use crate::output::{self, Page};

/// Asks the daemon once if the node is ready.
pub(super) async fn run(args: &WaitArgs, call: &Call) -> Result<Exit, Refusal> {
    let query = Query {
        releases: Vec::new(),
        bundles: args.bundles.clone(),
        all_bundles: args.all,
    };
    let asked = control::ask_ready(&call.settings.runtime_dir, &query).await;
    let readiness = asked.unwrap_or_else(|unanswered| of_unanswered(&unanswered));
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
    Ok(readiness.cause.map_or(Exit::Done, exit))
}

fn exit(cause: Cause) -> Exit {
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
    fn without_required_images_no_answer_about_bundles_is_enough_for_a_caller_that_wants_them() {
        let about_bundles = Readiness {
            ready: true,
            ..Readiness::default()
        };
        let refused = with_required(about_bundles.clone());
        assert_eq!(
            (refused.ready, refused.cause),
            (false, Some(Cause::NothingRequired))
        );
        let with_images = Readiness {
            required: Some(node::ready::RequiredCount {
                images: 1,
                missing: 0,
            }),
            ..about_bundles
        };
        assert!(with_required(with_images).ready);
        let silent = Readiness::not(Cause::NoDaemon, "no daemon answers");
        assert_eq!(with_required(silent.clone()), silent);
    }
}
