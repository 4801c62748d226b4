//! `airgapd images`: lists the images of this node with their owners and problems.
//!
//! The images come from containerd. The ledger has the images of bundles, so missing images are
//! listed too. A row is an image. A record is only a name of an image, and a bundle makes two
//! records for each name.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IsTerminal as _};

use basics::{Foreign, bytes, counted};
use import::{Judgement, Pattern};
use jiff::Timestamp;
use serde::Serialize;

use super::status::minute;
use super::{Call, Exit, Refusal};
use crate::cli::ImagesArgs;
use crate::output::{self, Page};
use node::decide::desired;
use node::runtime;
use node::state::ledger;
use node::status::{ImageStatus, RecordStatus};
use verify::{Held, Inventory};

/// The document of `airgapd images -o json`.
#[derive(Debug, Serialize)]
struct Document {
    /// Images, sorted by their first names.
    images: Vec<Image>,
}

/// One image.
#[derive(Debug, Default, PartialEq, Serialize)]
struct Image {
    /// Its names. Names by digest are only listed if it has no others.
    names: BTreeSet<String>,
    digest: String,
    /// Its complete platforms. For an image for other platforms: the platforms that it has.
    platforms: Vec<String>,
    /// Size of the blobs that this node needs, in bytes. `None` if unknown.
    size: Option<u64>,
    /// Programs that pinned a record of it.
    pinned_by: BTreeSet<&'static str>,
    /// All bundles that vouch for a record of it, including bundles that were imported by hand.
    bundles: BTreeSet<String>,
    /// Time when its oldest record was made.
    since: Option<Timestamp>,
    /// True if it is unpacked for this node. `None` if unknown.
    unpacked: Option<bool>,
    /// Problems of the image itself.
    problems: Vec<String>,
    /// Its records, by name.
    records: Vec<Record>,
    /// Problems of records that bundles vouch for, by name.
    #[serde(skip)]
    of_records: Vec<(String, String)>,
}

/// One record of an image.
#[derive(Debug, PartialEq, Serialize)]
struct Record {
    name: String,
    pinned_by: Vec<&'static str>,
    bundles: Vec<String>,
    since: Option<Timestamp>,
}

/// Lists the images with a matching name. The exit status is 1 if an image of a bundle is not
/// whole, and 4 if no name matches.
pub(super) async fn run(args: &ImagesArgs, call: &Call) -> Result<Exit, Refusal> {
    let settings = &call.settings;
    let node = call.node()?;
    let runtime = call.connect(&node).await?;
    let pattern = args.pattern.as_ref();
    let policy = runtime::policy(settings, Some(&runtime));
    let unreachable = |error: containerd::Error| Refusal::new(Exit::Unreachable, basics::chain(&error));
    let inventory = Inventory::of_pattern(
        &runtime.client,
        runtime.store.as_deref(),
        &policy.wanted,
        &settings.limits,
        runtime::snapshots(&runtime),
        pattern,
    );
    let inventory = inventory.await.map_err(unreachable)?;
    let ledger = ledger::read(&settings.state_dir).unwrap_or_default();
    let survey = runtime::glance(&runtime, &ledger).await.map_err(unreachable)?;
    let desired = desired::images(&ledger, &survey, &settings.exclude);
    let images = gathered(inventory.all(), &desired, pattern);
    if let Some(pattern) = pattern.filter(|_| images.is_empty()) {
        let hint = match pattern.to_string().contains(['*', '?']) {
            true => String::new(),
            false => format!(": a pattern must match the whole name, for example `*{pattern}*`"),
        };
        let text = format!("no image has a name that matches {pattern}{hint}");
        return Err(Refusal::new(Exit::Missing, text));
    }
    let is_broken = |image: &Image| !image.problems.is_empty() && !image.bundles.is_empty();
    let exit = match images.iter().any(is_broken) {
        true => Exit::Failed,
        false => Exit::Done,
    };
    let document = Document { images };
    call.answer(&document, || text(&document.images))?;
    Ok(exit)
}

/// Returns the images that containerd has, and the images of bundles that it lacks.
fn gathered<'h>(
    held: impl Iterator<Item = &'h Held>,
    desired: &[ImageStatus],
    pattern: Option<&Pattern>,
) -> Vec<Image> {
    let mut images: BTreeMap<String, Image> = BTreeMap::new();
    for held in held {
        let image = images.entry(held.target.to_string()).or_default();
        image.add(held);
    }
    for wanted in desired {
        let is_absent = wanted.record != RecordStatus::InPlace;
        let is_asked = pattern.is_none_or(|pattern| pattern.matches(&wanted.name));
        let is_new = is_absent && is_asked && !images.contains_key(&wanted.digest);
        if is_new {
            images.insert(wanted.digest.clone(), Image::default());
        }
        if let Some(image) = images.get_mut(&wanted.digest) {
            image.hold_against(wanted);
        }
    }
    let mut images: Vec<Image> = images
        .into_iter()
        .map(|(digest, image)| image.finished(digest))
        .collect();
    images.sort_by(|a, b| a.names.cmp(&b.names));
    images
}

impl Image {
    /// Adds an image that containerd has under one name.
    fn add(&mut self, held: &Held) {
        if self.records.is_empty() {
            (self.platforms, self.size, self.problems) = match &held.state {
                Judgement::Whole(closure) => (closure.platforms.clone(), Some(closure.size()), Vec::new()),
                Judgement::Foreign(offered) => (
                    offered.clone(),
                    None,
                    vec!["it is not for this node's platform".to_owned()],
                ),
                Judgement::Artifact(_) => Default::default(),
                Judgement::Broken(problems) => (
                    Vec::new(),
                    None,
                    problems.iter().map(ToString::to_string).collect(),
                ),
            };
            self.unpacked = held.unpacked;
        }
        self.pinned_by.extend(&held.pinned_by);
        self.bundles.extend(held.bundles.iter().cloned());
        self.since = [self.since, held.created_at].into_iter().flatten().min();
        self.names.insert(held.name.clone());
        self.records.push(Record {
            name: held.name.clone(),
            pinned_by: held.pinned_by.clone(),
            bundles: held.bundles.clone(),
            since: held.created_at,
        });
    }

    /// Adds the problem of a record that a bundle vouches for. Missing blobs are already known from
    /// the image.
    fn hold_against(&mut self, wanted: &ImageStatus) {
        let Some(problem) = wanted.problem() else {
            return;
        };
        self.bundles.insert(wanted.bundle.clone());
        let is_known = wanted.record == RecordStatus::InPlace && !self.problems.is_empty();
        if !is_known {
            self.names.insert(wanted.name.clone());
            self.of_records.push((wanted.name.clone(), problem));
        }
    }

    fn finished(mut self, digest: String) -> Image {
        self.digest = digest;
        // A record by digest usually has the same problem as its name, so the problem is listed
        // once.
        let all = &self.of_records;
        let is_said = |told: &(String, String)| {
            let mut named = all.iter().filter(|(name, _)| !is_by_digest(name));
            is_by_digest(&told.0) && named.any(|(_, problem)| *problem == told.1)
        };
        let told = all.iter().filter(|told| !is_said(told));
        let told = told.map(|(name, problem)| format!("{}: {problem}", Foreign::new(&**name)));
        self.problems.extend(told);
        if self.names.iter().any(|name| !is_by_digest(name)) {
            self.names.retain(|name| !is_by_digest(name));
        }
        self
    }
}

/// Returns true for `NAME@sha256:...`, and for the ids under which CRI keeps images.
fn is_by_digest(name: &str) -> bool {
    name.contains('@') || name.starts_with("sha256:")
}

/// Titles of the columns.
const TITLES: [&str; 8] = [
    "NAME", "DIGEST", "PLATFORM", "SIZE", "PINNED", "UNPACKED", "SINCE", "BUNDLES",
];

fn text(images: &[Image]) -> Page {
    let rows: Vec<[String; 8]> = images.iter().map(cells).collect();
    let titles = TITLES.map(str::to_owned);
    let all = || std::iter::once(&titles).chain(&rows);
    let widths: [usize; 7] =
        std::array::from_fn(|column| all().map(|row| row[column].chars().count()).max().unwrap_or(0));
    let longest = all()
        .map(|row| widths.iter().map(|width| width + 2).sum::<usize>() + row[7].chars().count())
        .max();
    // On a terminal, a name has its own line if the rest does not fit beside it. Other text is for
    // `grep` and stays on one line.
    let is_narrow = io::stdout().is_terminal() && longest.unwrap_or(0) > output::width();
    let mut page = Page::new();
    let line = |page: &mut Page, row: &[String; 8], others: &[&String]| {
        let cells = row[1..7].iter().zip(&widths[1..]);
        let rest: String = cells.map(|(cell, width)| format!("{cell:<width$}  ")).collect();
        let [name, .., bundles] = row;
        match is_narrow {
            true => output::paragraph(page, "", name),
            false => output::line!(page, "{name:<width$}  {rest}{bundles}", width = widths[0]),
        }
        for name in others {
            output::line!(page, "{}", Foreign::new(&***name));
        }
        if is_narrow {
            output::paragraph(page, "  ", &format!("{rest}{bundles}"));
        }
    };
    if images.is_empty() {
        output::line!(page, "no images");
        return page;
    }
    line(&mut page, &titles, &[]);
    for (image, row) in images.iter().zip(&rows) {
        line(&mut page, row, &Vec::from_iter(image.names.iter().skip(1)));
        for problem in &image.problems {
            output::paragraph(&mut page, "    ", problem);
        }
    }
    page.gap();
    output::line!(page, "{}", counted(images.len(), "image"));
    page
}

fn cells(image: &Image) -> [String; 8] {
    fn joined(words: impl IntoIterator<Item = impl AsRef<str>>) -> String {
        let words: Vec<String> = words
            .into_iter()
            .map(|word| Foreign::new(word.as_ref()).to_string())
            .collect();
        match words.is_empty() {
            true => "-".to_owned(),
            false => words.join(","),
        }
    }
    let hex = image.digest.split_once(':').map_or("", |(_, hex)| hex);
    let unpacked = image
        .unpacked
        .map(|is_unpacked| if is_unpacked { "yes" } else { "no" });
    [
        joined(image.names.first()),
        hex.chars().take(12).collect(),
        joined(&image.platforms),
        image.size.map_or_else(|| "-".to_owned(), bytes),
        joined(&image.pinned_by),
        unpacked.unwrap_or("unknown").to_owned(),
        image.since.map_or_else(|| "-".to_owned(), minute),
        joined(&image.bundles),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(name: &str, record: RecordStatus) -> ImageStatus {
        ImageStatus {
            name: name.to_owned(),
            digest: "sha256:1".to_owned(),
            bundle: "a.tar".to_owned(),
            record,
            missing_blobs: Vec::new(),
            pinned: true,
        }
    }

    #[test]
    fn an_image_that_is_missing_is_listed_once_under_the_names_that_match() {
        let both = [
            wanted("r.test/a:1", RecordStatus::Missing),
            wanted("r.test/a@sha256:1", RecordStatus::Missing),
            wanted("r.test/b:1", RecordStatus::InPlace),
        ];
        let table: [(Option<&str>, usize); 4] = [
            (None, 1),
            (Some("r.test/a:1"), 1),
            (Some("*/a*"), 1),
            (Some("r.test/b:1"), 0),
        ];
        for (pattern, count) in table {
            let pattern = pattern.map(|text| text.parse().unwrap());
            let images = gathered(std::iter::empty(), &both, pattern.as_ref());
            assert_eq!(images.len(), count, "{pattern:?}");
            for image in images {
                assert_eq!(Vec::from_iter(&image.names), ["r.test/a:1"]);
                assert_eq!(image.problems, ["r.test/a:1: its record is missing"]);
            }
        }
    }
}
