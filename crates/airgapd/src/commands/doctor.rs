//! `airgapd doctor`: what on this node keeps bundles from being imported, each with the remedy.
//!
//! It looks and changes nothing. It says so where it cannot find something out, and does not guess.

mod containerd;
mod daemon;
mod folder;

use std::path::Path;

use node::place::{self, Place};
use serde::Serialize;

use self::daemon::Unit;
use super::{Call, Exit, Refusal, is_denied};
use crate::output::{self, Page};

/// A check and its result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    /// The thing that was checked, in one word.
    subject: &'static str,
    verdict: Verdict,
    text: String,
    /// The remedy.
    remedy: Option<String>,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    /// It works, and is worth knowing.
    Note,
    /// Bundles are not imported, or not all, until it is put right.
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

/// Looks at the node. Exit status 1 when there is a problem.
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
            findings.extend(folder::of_folder(&node, settings));
            // The daemon's own watches and folder say nothing of those that another user may have.
            if is_root {
                findings.push(folder::of_watches(&node.images_dir));
                findings.push(folder::of_state(&settings.state_dir));
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
            findings.extend(unit.and_then(|unit| unit.hides(&node.images_dir)));
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
        0 => output::line!(text, "nothing keeps bundles from being imported"),
        1 => output::line!(text, "1 problem"),
        count => output::line!(text, "{count} problems"),
    };
    text
}

/// A user other than root sees other things than the daemon does. Where sockets are root's alone,
/// the answer is not the doctor's whole answer.
fn of_user(is_denied: bool) -> Finding {
    match is_denied {
        true => problem(
            "user",
            "this is not root: containerd or the daemon cannot be asked, and what only root may see is left out",
            "sudo airgapd doctor",
        ),
        false => note(
            "user",
            "this is not root: what only root may see is left out",
            "sudo airgapd doctor",
        ),
    }
}

fn of_node(node: &Place) -> Finding {
    match node.because.as_slice() {
        [] => note(
            "node",
            "nothing tells what runs containerd here: it is taken for plain containerd",
            "set `distribution:` if it is something else",
        ),
        because => ok("node", format!("{} ({})", node.distribution, because.join(", "))),
    }
}
