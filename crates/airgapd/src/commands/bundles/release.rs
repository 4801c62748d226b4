//! `airgapd bundle release`: writes bundles anew, each with the list of the images of all.

use std::collections::{BTreeMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use basics::{Foreign, counted};
use bundle::write::{Layout, OutputFolder};
use bundle::{Compression, Member, Members};
use oci_spec::image::Digest;
use serde::Serialize;

use super::making::{self, Render, Target};
use super::source::Sources;
use super::{FileReport, feed, write, write_warnings};
use crate::cli::ReleaseBundlesArgs;
use crate::commands::{Call, Exit, Refusal};
use crate::output::{self, Page};

/// Makes a release. Its folder has all bundles or is not there.
pub(super) async fn make(args: ReleaseBundlesArgs, call: &Call) -> Result<Exit, Refusal> {
    let started = Instant::now();
    let folder = call.file.as_ref().filter(|file| file.as_os_str() != "-");
    let folder = folder.ok_or_else(|| {
        Refusal::usage("--output DIR is required: the folder for the bundles of the release")
    })?;
    let names = names_of(&args.bundles)?;
    let mut bundles = Vec::new();
    for path in &args.bundles {
        // A delta stays a delta, even if its base is another bundle of the release.
        bundles.push(Sources::open(std::slice::from_ref(path), &call.settings).await?);
    }
    let compression = compressions(&args, &bundles)?;
    let (members, mut warnings) = members_of(&args.release, &bundles)?;
    let staging = OutputFolder::create(folder)?;
    let mut reports = Vec::new();
    for ((sources, name), compression) in bundles.iter().zip(names).zip(compression) {
        let mut draft = sources.draft(&sources.items);
        draft.release = Some(Arc::clone(&members));
        let layout = Layout::of(&draft)?;
        let target = Target::File(staging.temporary().join(&name));
        let feed = feed(sources, &layout, &target).await?;
        let written = write(&target, &layout, compression, feed).await?;
        let target = Target::File(folder.join(&name));
        reports.push(FileReport::new(&target, &layout, &draft, written));
        warnings.extend(sources.warnings.iter().cloned());
    }
    staging.commit()?;
    let report = ReleaseReport {
        release: args.release,
        list: members.digest().clone(),
        members: members.all().to_vec(),
        bundles: reports,
        warnings,
        duration_ms: basics::milliseconds(started.elapsed()),
    };
    Target::File(folder.clone()).tell(call.format, &report)?;
    Ok(Exit::Done)
}

/// Returns the names of the new bundles: those of the files, and with `.tar` those of folders.
fn names_of(bundles: &[PathBuf]) -> Result<Vec<OsString>, Refusal> {
    let mut seen = HashSet::new();
    let name = |path: &PathBuf| {
        let mut name = path.file_name().map(OsStr::to_owned).ok_or_else(|| {
            Refusal::usage(format!(
                "{} has no file name for the new bundle",
                Foreign::file_name(path.as_os_str())
            ))
        })?;
        if path.is_dir() {
            name.push(".tar");
        }
        // The list with its content digest lies beside each bundle.
        let mut beside = name.clone();
        beside.push(".digest");
        match seen.insert(name.clone()) & seen.insert(beside) {
            true => Ok(name),
            false => Err(Refusal::usage(format!(
                "two bundles would have the name {}: give one of them another file name",
                Foreign::file_name(&name)
            ))),
        }
    };
    bundles.iter().map(name).collect()
}

/// Returns the compression of each new bundle.
fn compressions(args: &ReleaseBundlesArgs, bundles: &[Sources]) -> Result<Vec<Compression>, Refusal> {
    let (mut compressions, mut problems) = (Vec::new(), Vec::new());
    for bundle in bundles.iter().flat_map(|sources| &*sources.bundles) {
        let own = bundle.catalog().compression;
        let is_written = matches!(own, Compression::None | Compression::Gzip | Compression::Zstd);
        match (args.compress, is_written) {
            (Some(compress), _) => compressions.push(making::compression(compress)),
            (None, true) => compressions.push(own),
            (None, false) => problems.push(format!(
                "{}: airgapd reads {own} and does not write it: add --compress",
                shown(bundle.path())
            )),
        }
    }
    match problems.is_empty() {
        true => Ok(compressions),
        false => Err(Refusal::of_many(Exit::Usage, problems)),
    }
}

/// Returns the list of all named images, and warnings about images without a name.
fn members_of(release: &str, bundles: &[Sources]) -> Result<(Arc<Members>, Vec<String>), Refusal> {
    let mut known: BTreeMap<&str, (&Digest, &Path)> = BTreeMap::new();
    let (mut warnings, mut problems) = (Vec::new(), Vec::new());
    for sources in bundles {
        let path = sources.bundles.iter().map(bundle::Bundle::path).next();
        let path = path.unwrap_or(Path::new(""));
        for item in &sources.items {
            let digest = item.draft.target.digest();
            if item.names.is_empty() {
                warnings.push(format!(
                    "{}: {digest} has no name, so it is no member of the release",
                    shown(path)
                ));
            }
            for name in &item.names {
                match known.insert(name, (digest, path)) {
                    Some((other, of)) if other != digest => problems.push(format!(
                        "{name} is {other} of {} and {digest} of {}: a name has one image in a release",
                        shown(of),
                        shown(path)
                    )),
                    _ => {}
                }
            }
        }
    }
    if !problems.is_empty() {
        return Err(Refusal::of_many(Exit::BadBundle, problems));
    }
    let members = known.into_iter().map(|(name, (digest, _))| Member {
        name: name.to_owned(),
        digest: digest.clone(),
    });
    match Members::new(release, members.collect()) {
        Ok(members) => Ok((Arc::new(members), warnings)),
        Err(reason) => Err(Refusal::new(
            Exit::BadBundle,
            format!("release {release} was not made: {reason}"),
        )),
    }
}

fn shown(path: &Path) -> Foreign {
    Foreign::file_name(path.as_os_str())
}

/// The document of `airgapd bundle release -o json`.
#[derive(Debug, Serialize)]
struct ReleaseReport {
    release: String,
    /// Digest of the list of members.
    list: Digest,
    members: Vec<Member>,
    bundles: Vec<FileReport>,
    warnings: Vec<String>,
    duration_ms: u64,
}

impl Render for ReleaseReport {
    fn text(&self) -> Page {
        let mut text = Page::new();
        for bundle in &self.bundles {
            bundle.write_text(&mut text);
        }
        output::line!(
            text,
            "release {}: {} in {}",
            self.release,
            counted(self.members.len(), "member"),
            counted(self.bundles.len(), "bundle")
        );
        write_warnings(&mut text, &self.warnings);
        text
    }
}
