//! `airgapd doctor`: finds the problems on this node that prevent the import of bundles, each with
//! its remedy.
//!
//! It changes nothing. If it cannot check something, it says so and does not guess.

mod containerd;
mod daemon;
mod folder;
mod gzip;

use std::path::{Path, PathBuf};

use node::place::{self, Place};
use serde::Serialize;

use self::daemon::Unit;
use super::{Call, Exit, Refusal, is_denied};
use crate::output::{self, Page};

/// A check and its result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    /// Subject of the check, in one word.
    subject: &'static str,
    verdict: Verdict,
    text: String,
    /// Remedy, if one is needed.
    remedy: Option<String>,
}

/// Severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    /// It works, but the operator should know it.
    Note,
    /// No bundle is imported, or not all, until the problem is solved.
    Problem,
}

/// The document of `airgapd doctor -o json`.
#[derive(Debug, Serialize)]
struct Document<'a> {
    healthy: bool,
    findings: &'a [Finding],
}

fn ok(subject: &'static str, text: impl Into<String>) -> Finding {
    finding(subject, Verdict::Ok, text, None)
}

fn note(subject: &'static str, text: impl Into<String>, remedy: impl Into<String>) -> Finding {
    finding(subject, Verdict::Note, text, Some(remedy.into()))
}

fn problem(subject: &'static str, text: impl Into<String>, remedy: impl Into<String>) -> Finding {
    finding(subject, Verdict::Problem, text, Some(remedy.into()))
}

fn finding(
    subject: &'static str,
    verdict: Verdict,
    text: impl Into<String>,
    remedy: Option<String>,
) -> Finding {
    Finding {
        subject,
        verdict,
        text: text.into(),
        remedy,
    }
}

/// Checks the node. The exit status is 1 if there is a problem.
pub(super) async fn run(call: &Call) -> Result<Exit, Refusal> {
    let settings = &call.settings;
    let mut findings = Vec::new();
    let unit = Unit::of_systemd();
    let evidence = place::probe(Path::new("/"));
    match place::decide(&evidence, settings) {
        Err(ambiguous) => findings.push(problem(
            "node",
            ambiguous.to_string(),
            "set `distribution:` in /etc/airgapd/config.yaml",
        )),
        Ok(node) => {
            let is_root = rustix::process::geteuid().is_root();
            let (containerd, daemon) = (is_denied(&node.socket), is_denied(&call.control_socket()));
            findings.extend((!is_root).then(|| of_user(containerd || daemon)));
            findings.push(of_node(&node));
            findings.extend(folder::of_folders(&node, settings));
            // Another user's rights to watches and to the folder say nothing about the daemon's.
            if is_root {
                findings.push(folder::of_watches(&node.images_dirs()));
                findings.push(folder::of_state(&settings.state_dir));
                findings.extend(folder::of_scrub(&settings.state_dir));
                findings.extend(folder::of_keys(settings));
            }
            if !containerd {
                findings.extend(containerd::of_containerd(&node, settings).await);
            }
            if !daemon {
                let is_of_containerd = |finding: &Finding| finding.subject == "containerd";
                let is_problem = |finding: &Finding| finding.verdict == Verdict::Problem;
                let mut found = findings.iter();
                let is_without =
                    containerd || found.any(|finding| is_of_containerd(finding) && is_problem(finding));
                findings.extend(daemon::of_daemon(settings, is_without).await);
            }
            findings.extend(unit.as_ref().map(Unit::judge));
            let hidden = |folder: &PathBuf| unit.as_ref().and_then(|unit| unit.hides(folder));
            findings.extend(node.images_dirs().iter().filter_map(hidden));
        }
    }
    let healthy = findings.iter().all(|finding| finding.verdict != Verdict::Problem);
    let document = Document {
        healthy,
        findings: &findings,
    };
    call.answer(&document, || text(&findings))?;
    Ok(if healthy { Exit::Done } else { Exit::Failed })
}

fn text(findings: &[Finding]) -> Page {
    let mut text = Page::new();
    for finding in findings {
        let verdict = match finding.verdict {
            Verdict::Ok => "ok",
            Verdict::Note => "note",
            Verdict::Problem => "PROBLEM",
        };
        let label = format!("{verdict:<8} {:<11} ", finding.subject);
        output::paragraph(&mut text, &label, &finding.text);
        if let Some(remedy) = &finding.remedy {
            output::paragraph(&mut text, &format!("{:<8} {:<11} ", "", "do"), remedy);
        }
    }
    let problems = findings
        .iter()
        .filter(|finding| finding.verdict == Verdict::Problem)
        .count();
    text.gap();
    match problems {
        0 => output::line!(text, "no problems found: bundles can be imported"),
        1 => output::line!(text, "1 problem"),
        count => output::line!(text, "{count} problems"),
    };
    text
}

/// Reports that the user is not root. Another user does not see everything that the daemon sees. If
/// only root may use the sockets, the checks are incomplete, and that is a problem.
fn of_user(is_denied: bool) -> Finding {
    match is_denied {
        true => problem(
            "user",
            "this is not root: containerd or the daemon cannot be checked, and checks that need root are skipped",
            "sudo airgapd doctor",
        ),
        false => note(
            "user",
            "this is not root: checks that need root are skipped",
            "sudo airgapd doctor",
        ),
    }
}

fn of_node(node: &Place) -> Finding {
    match node.because.as_slice() {
        [] => note(
            "node",
            "no distribution was found here: airgapd assumes plain containerd",
            "set `distribution:` if it is another one",
        ),
        because => ok("node", format!("{} ({})", node.distribution, because.join(", "))),
    }
}
