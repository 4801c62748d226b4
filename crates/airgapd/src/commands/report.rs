//! `airgapd report`: lists the images of this node and the files that they came from, for an
//! auditor.
//!
//! It combines the data of `status`, the ledger, and the current files in the folder. It gives no
//! verdict.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use basics::Foreign;
use bundle::Identity;
use jiff::Timestamp;
use serde::Serialize;

use super::status::{Wanted, look, minute};
use super::{Call, Exit, Refusal};
use crate::output::{self, Page, bytes};
use node::report::{self, BundleReport, FileReport, ImageReport};
use node::state::ledger;
use node::status::{ContainerdStatus, DaemonStatus, RecordStatus, ReleaseStatus};

/// The document of `airgapd report -o json`.
#[derive(Debug, Serialize)]
struct Document {
    /// Time of the report.
    at: Timestamp,
    /// Version of the program that made it.
    version: &'static str,
    /// The daemon, `null` if none answers.
    daemon: Option<DaemonStatus>,
    containerd: ContainerdStatus,
    /// The first images folder.
    folder: String,
    /// The further images folders.
    more_folders: Vec<String>,
    /// The releases that bundles name. Absent if there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    releases: Vec<ReleaseStatus>,
    bundles: Vec<BundleReport>,
    images: Vec<ImageReport>,
    /// Reasons why parts of the report are missing, one sentence each.
    problems: Vec<String>,
}

/// Makes the report. The exit status is 3 if containerd did not answer, 1 if the ledger cannot be
/// read, and 0 otherwise.
pub(super) async fn run(call: &Call) -> Result<Exit, Refusal> {
    let settings = &call.settings;
    let node = call.node()?;
    let seen = look(settings, &node, Wanted::Each).await;
    let ledger = ledger::read(&settings.state_dir);
    let mut problems = Vec::new();
    let exit = match (&seen.images, &ledger) {
        (None, _) => {
            problems.push("containerd did not answer: the state of the images is not known".to_owned());
            Exit::Unreachable
        }
        (_, None) => Exit::Failed,
        _ => Exit::Done,
    };
    if ledger.is_none() {
        problems.push(format!(
            "there is no readable ledger in {}: no image was imported yet, or this is not root",
            settings.state_dir.display()
        ));
    }
    let ledger = ledger.unwrap_or_default();
    let owners = Owners::read(Path::new("/etc"));
    let look = |file: &OsStr, imported: Option<&Identity>| {
        let metadata = fs::symlink_metadata(node.images_dir.join(file)).ok()?;
        Some(owners.report(&metadata, imported))
    };
    let more = seen.status.more_folders.into_iter();
    let document = Document {
        at: Timestamp::now(),
        version: env!("CARGO_PKG_VERSION"),
        bundles: report::bundles(&seen.status.bundles, &ledger, look),
        images: report::images(&ledger, &settings.exclude, seen.images.as_deref()),
        releases: seen.status.releases,
        daemon: seen.status.daemon,
        containerd: seen.status.containerd,
        folder: seen.status.folder.path,
        more_folders: more.map(|folder| folder.path).collect(),
        problems,
    };
    call.answer(&document, || text(&document))?;
    Ok(exit)
}

/// The users and groups in this machine's own files. Names from a directory service are left out,
/// since the program is linked statically.
#[derive(Debug, Default)]
struct Owners {
    passwd: String,
    group: String,
}

impl Owners {
    fn read(etc: &Path) -> Owners {
        let read = |file: &str| -> io::Result<String> {
            Ok(String::from_utf8_lossy(&fs::read(etc.join(file))?).into_owned())
        };
        Owners {
            passwd: read("passwd").unwrap_or_default(),
            group: read("group").unwrap_or_default(),
        }
    }

    fn report(&self, metadata: &Metadata, imported: Option<&Identity>) -> FileReport {
        let is_file = metadata.is_file();
        FileReport {
            size: if is_file { metadata.len() } else { 0 },
            modified_at: Timestamp::from_second(metadata.mtime()).ok(),
            uid: metadata.uid(),
            gid: metadata.gid(),
            user: name_of(&self.passwd, metadata.uid()),
            group: name_of(&self.group, metadata.gid()),
            is_as_imported: imported
                .filter(|_| is_file)
                .map(|imported| *imported == Identity::of(metadata)),
        }
    }
}

/// Returns the name of an id in a table of passwd(5) or group(5). The id is the third field.
fn name_of(table: &str, id: u32) -> Option<String> {
    let named = table.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(id)).then_some(name)
    });
    named.filter(|name| !name.is_empty()).map(str::to_owned)
}

fn text(document: &Document) -> Page {
    let mut text = Page::new();
    let made = format!("{} by airgapd {}", minute(document.at), document.version);
    output::paragraph(&mut text, "report      ", &made);
    let daemon = document.daemon.as_ref().map_or_else(
        || "not running".to_owned(),
        |daemon| format!("airgapd {}, since {}", daemon.version, minute(daemon.started_at)),
    );
    output::paragraph(&mut text, "daemon      ", &daemon);
    let containerd = &document.containerd;
    let version = containerd.version.as_deref().unwrap_or("not reachable");
    let which = format!(
        "{version} on {}, namespace {}",
        containerd.socket, containerd.namespace
    );
    output::paragraph(&mut text, "containerd  ", &which);
    output::paragraph(&mut text, "folder      ", &document.folder);
    for folder in &document.more_folders {
        output::paragraph(&mut text, "            ", folder);
    }
    for problem in &document.problems {
        output::paragraph(&mut text, "not known   ", problem);
    }
    for release in &document.releases {
        release_text(&mut text, release);
    }
    for bundle in &document.bundles {
        bundle_text(&mut text, bundle, document.daemon.is_some());
    }
    let is_by_digest = |image: &ImageReport| image.name.contains('@');
    let named = document.images.iter().filter(|image| !is_by_digest(image));
    let named: HashSet<&str> = named.map(|image| image.digest.as_str()).collect();
    for image in &document.images {
        // A name by digest adds nothing to the image's other name.
        if !is_by_digest(image) || !named.contains(image.digest.as_str()) {
            image_text(&mut text, image);
        }
    }
    text
}

fn release_text(text: &mut Page, release: &ReleaseStatus) {
    text.gap();
    let state = if release.in_place {
        "in place"
    } else {
        "not in place"
    };
    output::line!(text, "release {}: {state}", release.name);
    if let Some(problem) = &release.problem {
        output::paragraph(text, "  problem   ", problem);
    }
    if release.members > 0 {
        let there = release.members - release.missing;
        output::line!(text, "  members   {there} of {}", release.members);
    }
    let bundles: Vec<String> = release.bundles.iter().map(ToString::to_string).collect();
    output::paragraph(text, "  bundles   ", &bundles.join(", "));
}

fn bundle_text(text: &mut Page, bundle: &BundleReport, is_live: bool) {
    text.gap();
    match is_live {
        true => output::line!(text, "bundle {}: {}", bundle.name, bundle.state.as_str()),
        false => output::line!(text, "bundle {}", bundle.name),
    }
    match &bundle.file {
        Some(file) => file_text(text, file),
        None => output::line!(text, "  file      not in the folder"),
    }
    if let Some(catalog) = &bundle.catalog {
        output::paragraph(text, "  catalog   ", catalog);
    }
    for signer in &bundle.signers {
        output::paragraph(text, "  signed by ", &format!("{signer}, {}", signer.kind));
    }
    if let Some(why) = &bundle.unadmitted {
        output::paragraph(text, "  unadmitted ", why);
    }
    if let (Some(first), Some(last)) = (bundle.first_imported_at, bundle.imported_at) {
        let times = format!("first {}, last {}", minute(first), minute(last));
        output::paragraph(text, "  imported  ", &times);
    }
}

fn file_text(text: &mut Page, file: &FileReport) {
    let name = |name: &Option<String>, id: u32| match name {
        Some(name) => format!("{name} ({id})"),
        None => id.to_string(),
    };
    let changed = match file.is_as_imported {
        Some(true) => ", unchanged since its last import",
        Some(false) => ", changed since its last import",
        None => "",
    };
    let at = file.modified_at.map_or_else(|| "-".to_owned(), minute);
    output::line!(text, "  file      {}, of {at}{changed}", bytes(file.size));
    let (owner, group) = (name(&file.user, file.uid), name(&file.group, file.gid));
    output::line!(text, "  owner     {owner}, group {group}");
}

fn image_text(text: &mut Page, image: &ImageReport) {
    let record = match image.record {
        Some(RecordStatus::InPlace) => "its record is in place",
        Some(RecordStatus::Missing) => "its record is missing",
        Some(RecordStatus::Elsewhere) => "its record points at another image",
        None => "not known",
    };
    let mut standing = vec![record.to_owned()];
    if let Some(pinned) = image.pinned {
        standing.push(if pinned { "pinned" } else { "not pinned" }.to_owned());
    }
    match image.missing_blobs.as_ref().map_or(0, Vec::len) {
        0 => {}
        1 => standing.push("1 blob is missing".to_owned()),
        missing => standing.push(format!("{missing} blobs are missing")),
    }
    let list = |bundles: &[Foreign]| {
        let names: Vec<_> = bundles.iter().map(ToString::to_string).collect();
        names.join(", ")
    };
    text.gap();
    output::line!(text, "image {}", image.name);
    output::paragraph(text, "  digest    ", &image.digest);
    output::paragraph(text, "  bundles   ", &list(&image.bundles));
    for other in &image.overridden {
        let line = format!("{} has {} under this name", other.bundle, other.digest);
        output::paragraph(text, "  earlier   ", &line);
    }
    output::paragraph(text, "  now       ", &standing.join(", "));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_the_name_of_the_first_line_that_has_it() {
        let table =
            "root:x:0:0:root:/root:/bin/sh\n\nbroken\n:x:7:\ndeploy:x:1000:1000::/:\nother:x:1000:1::/:\n";
        let rows = [(0, Some("root")), (1000, Some("deploy")), (7, None), (1, None)];
        for (id, name) in rows {
            assert_eq!(name_of(table, id).as_deref(), name, "{id}");
        }
    }
}
