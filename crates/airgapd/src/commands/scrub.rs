//! `airgapd scrub`: reads the blobs that bundles vouch for again, and replaces wrong ones.

use std::sync::Arc;

use basics::counted;
use import::Pace;
use node::scrub::{self, BlobState, Failure, MOST_WRONG, Order, Report, WrongBlob};
use node::state::ledger;
use node::sys;

use super::{Call, Exit, Refusal};
use crate::cli::OutputFormat;
use crate::output::{self, Page, bytes};

/// Scrubs this node's containerd. The exit status is 1 if a blob is still wrong, or missing and in
/// no file here. It is also 1 if so many were wrong that the run ended early. It is 3 if containerd
/// does not answer.
pub(super) async fn run(call: &Call) -> Result<Exit, Refusal> {
    let (settings, node) = (&call.settings, call.node()?);
    call.allowed("scrub", Exit::Unreachable, &[&node.socket])?;
    let ledger = ledger::read(&settings.state_dir).ok_or_else(|| {
        let text = format!(
            "there is no readable ledger in {}: the daemon has imported no image yet, or this is not root",
            settings.state_dir.display()
        );
        Refusal::new(Exit::Failed, text)
    })?;
    let runtime = call.connect(&node).await?;
    sys::read_when_idle();
    let order = Order {
        runtime: &runtime,
        ledger: &ledger,
        images_dir: &node.images_dir,
        state_dir: &settings.state_dir,
        limits: &settings.limits,
        pace: Arc::new(Pace::new(settings.rate_limit)),
    };
    let report = scrub::scrub(&order).await.map_err(|failure| refusal(&failure))?;
    let exit = match report.is_good() {
        true => Exit::Done,
        false => Exit::Failed,
    };
    // With `-q`, text reports only failures.
    if call.format == OutputFormat::Json || !call.is_quiet || exit != Exit::Done {
        call.answer(&report, || text(&report))?;
    }
    Ok(exit)
}

fn refusal(failure: &Failure) -> Refusal {
    let exit = match failure {
        Failure::Containerd(error) if import::scrub::is_unanswered(error) => Exit::Unreachable,
        Failure::Containerd(_) | Failure::Running(_) | Failure::Memory { .. } => Exit::Failed,
    };
    Refusal::new(exit, basics::chain(failure))
}

fn text(report: &Report) -> Page {
    let mut text = Page::new();
    let read = format!(
        "read {} of {}, {}",
        report.read,
        counted(report.blobs, "blob"),
        bytes(report.read_bytes)
    );
    let found = match report.wrong.len() {
        0 => "all right".to_owned(),
        wrong => format!("{wrong} wrong"),
    };
    output::line!(text, "{read}: {found}");
    if report.absent > 0 {
        let absent = counted(report.absent, "blob");
        output::line!(
            text,
            "{absent} missing in containerd: the daemon restores them from this node's files"
        );
    }
    for blob in &report.wrong {
        of_blob(&mut text, blob);
    }
    if report.remaining > 0 {
        let told = format!(
            "{MOST_WRONG} wrong blobs ended this run before {} more. The disk or the memory of the machine may fail. \
             The next run continues from here",
            counted(report.remaining, "blob")
        );
        output::paragraph(&mut text, "stopped    ", &told);
        output::paragraph(
            &mut text,
            "       do  ",
            "check the disk and the memory (`dmesg`), then run `airgapd scrub` again",
        );
    }
    text
}

fn of_blob(text: &mut Page, blob: &WrongBlob) {
    let label = match blob.state {
        BlobState::Replaced => "replaced   ",
        BlobState::RightOnDisk => "on disk    ",
        BlobState::Degraded => "DEGRADED   ",
    };
    let mut told = format!("{} of {}: {}", blob.digest, blob.images.join(", "), blob.found);
    if let Some(bundle) = &blob.from {
        told = format!("{told}. Now it has the bytes of {bundle}");
    }
    if blob.state == BlobState::RightOnDisk {
        told = format!("{told}. On the disk it is right, so the memory of the machine may fail");
    }
    for reason in &blob.reasons {
        told = format!("{told}. {}", capitalised(reason));
    }
    output::paragraph(text, label, &told);
    if let Some(remedy) = &blob.remedy {
        output::paragraph(text, "       do  ", remedy);
    }
}

/// Returns a reason as a sentence.
fn capitalised(reason: &str) -> String {
    let mut chars = reason.chars();
    let first = chars.next().map(|first| first.to_ascii_uppercase());
    first.into_iter().chain(chars).collect()
}
