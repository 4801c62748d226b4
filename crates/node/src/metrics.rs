//! Metrics in Prometheus' text format (0.0.4). This module counts events since the start. It takes
//! the current state from a [`Status`] when the metrics are read.
//!
//! Names and units follow the Prometheus conventions: one prefix, base units, `_total` for
//! counters. The number of series is bounded for any number of bundles: two series name bundles and
//! one names releases, each for at most 50.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use basics::Foreign;
use import::BundleResult;
use prometheus::core::Collector;
use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

use crate::ready::Standing;
use crate::state::ledger::{ErrorClass, LastTry, Outcome, RefusedBy};
use crate::status::{
    BundleStatus, DiskStatus, ImageCount, ReleaseStatus, RequiredStatus, ScrubStatus, State, Status,
    UnpackStatus,
};
use crate::verdict::Health;

/// Most bundles in place that are named, most of the others, and most releases. With a thousand
/// bundles, a node has fewer than 200 series, and 51 more with releases.
const MOST_NAMED: usize = 50;

/// Durations of imports in seconds: from images that containerd already had to tens of gigabytes.
const DURATIONS: [f64; 8] = [0.1, 0.5, 2.0, 10.0, 30.0, 120.0, 600.0, 3600.0];

/// The counts since the start of the daemon.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    imports: IntCounterVec,
    sent: IntCounter,
    present: IntCounter,
    seconds: Histogram,
    restored: IntCounter,
    last_success: IntGauge,
}

impl Metrics {
    pub(crate) fn new() -> Metrics {
        let registry = Registry::new();
        let imports = IntCounterVec::new(
            Opts::new("airgapd_imports_total", "Imports that ended, by outcome"),
            &["outcome"],
        );
        let sent = IntCounter::new("airgapd_sent_bytes_total", "Bytes of blobs sent to containerd");
        let present = IntCounter::new(
            "airgapd_present_bytes_total",
            "Bytes of blobs that were not sent because containerd had them",
        );
        let options = HistogramOpts::new("airgapd_import_duration_seconds", "Duration of imports");
        let seconds = Histogram::with_opts(options.buckets(DURATIONS.to_vec()));
        let restored = IntCounter::new(
            "airgapd_restored_bundles_total",
            "Bundles of which something was missing in containerd and that were restored",
        );
        let last_success = IntGauge::new(
            "airgapd_last_success_timestamp_seconds",
            "Time when an import last ended with everything in place",
        );
        Metrics {
            imports: registered(&registry, imports),
            sent: registered(&registry, sent),
            present: registered(&registry, present),
            seconds: registered(&registry, seconds),
            restored: registered(&registry, restored),
            last_success: registered(&registry, last_success),
            registry,
        }
    }

    /// Counts an import that ended at this time, in seconds since 1970.
    pub(crate) fn count(&self, report: &BundleResult, now: i64) {
        self.imports.with_label_values(&[report.outcome.as_str()]).inc();
        self.sent.inc_by(report.blobs.sent_bytes);
        self.present.inc_by(report.blobs.present_bytes);
        self.seconds
            .observe(Duration::from_millis(report.duration_ms).as_secs_f64());
        if report.landed() {
            self.last_success.set(now);
        }
    }

    /// Counts a bundle that was restored.
    pub(crate) fn count_restored(&self) {
        self.restored.inc();
    }

    /// Returns all metrics as text. Those of required images and releases have the findings of
    /// `/ready`.
    pub(crate) fn text(&self, status: &Status, ready: &Standing<'_>) -> String {
        // The bundles tell of imports before this start.
        let last_success = self.last_success.get().max(last_success(status));
        self.last_success.set(last_success);
        let standing = standing(status, ready);
        let mut families = self.registry.gather();
        families.extend(standing.gather());
        families.sort_by(|a, b| a.name().cmp(b.name()));
        TextEncoder::new()
            .encode_to_string(&families)
            .expect("metrics are named and typed correctly")
    }
}

/// Returns the latest import of the known bundles that ended in place, in seconds since 1970.
/// Returns 0 if there is none.
fn last_success(status: &Status) -> i64 {
    let landed = status.bundles.iter().filter(|bundle| {
        matches!(
            bundle.outcome,
            Some(LastTry::Ended(Outcome::Imported | Outcome::Unchanged))
        )
    });
    let times = landed.filter_map(|bundle| Some(bundle.imported_at?.as_second()));
    times.max().unwrap_or(0)
}

/// Replaces a file that node_exporter reads. It sees either the old text or the new text. The new
/// text is first written to a fixed name. The daemon creates that file new each time. Other users
/// may write in the folder, and it must not follow a link of theirs.
///
/// # Errors
///
/// Returns an error if the file system refuses an operation.
pub(crate) fn write(file: &Path, text: &str) -> io::Result<()> {
    write_with(file, text, 0o644)
}

/// Replaces a file like [`write`], and gives it this mode.
///
/// # Errors
///
/// Returns an error if the file system refuses an operation.
pub(crate) fn write_with(file: &Path, text: &str, mode: u32) -> io::Result<()> {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let new = file.with_file_name(format!(".{name}.new"));
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut open = fs::OpenOptions::new();
    let mut written = open.write(true).create_new(true).mode(0o600).open(&new)?;
    written.write_all(text.as_bytes())?;
    written.set_permissions(fs::Permissions::from_mode(mode))?;
    fs::rename(&new, file)
}

/// Returns the current state as gauges.
fn standing(status: &Status, ready: &Standing<'_>) -> Registry {
    let registry = Registry::new();
    let build = gauges(
        &registry,
        "airgapd_build_info",
        "The version of airgapd",
        &["version"],
    );
    build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
    add_verdict(&registry, status);
    let containerd = &status.containerd;
    set(
        &registry,
        "airgapd_containerd_up",
        "1 if containerd can be reached, otherwise 0",
        u64::from(containerd.reachable),
    );
    if let (Some(version), Some(platform)) = (&containerd.version, &containerd.platform) {
        gauges(
            &registry,
            "airgapd_containerd_info",
            "The containerd that the daemon is connected to",
            &["version", "platform"],
        )
        .with_label_values(&[version, platform].map(|text| Foreign::new(text).to_string()))
        .set(1);
    }
    set(
        &registry,
        "airgapd_folder_up",
        "1 if bundles can be imported from every images folder, otherwise 0",
        u64::from(status.folders().all(|folder| folder.problem.is_none())),
    );
    let vanished = status.folders().filter_map(|folder| folder.vanished.as_ref());
    set(
        &registry,
        "airgapd_vanished_bundles",
        "Bundles that vanished with their folder and keep their images pinned",
        vanished.map(|vanished| count(vanished.bundles)).sum(),
    );
    set(
        &registry,
        "airgapd_config_last_reload_successful",
        "1 if the configuration on disk was accepted when it was last read, otherwise 0",
        u64::from(status.configuration_problem.is_none()),
    );
    if let Some(disk) = &status.disk {
        add_disk(&registry, disk);
    }
    if let Some(required) = &status.required {
        add_required(&registry, required, ready);
    }
    if let Some(unpack) = &status.unpack {
        add_unpack(&registry, unpack);
    }
    if let Some(scrub) = &status.scrub {
        add_scrub(&registry, scrub);
    }
    add_images(&registry, status.image_count);
    add_bundles(&registry, &status.bundles);
    add_receipts(&registry, &status.bundles);
    add_names(&registry, &status.bundles);
    add_releases(&registry, &status.releases, ready);
    set(
        &registry,
        "airgapd_ignored_files",
        "Entries of the images folder that are left alone because they are no bundles",
        count(status.ignored.len()),
    );
    registry
}

fn add_verdict(registry: &Registry, status: &Status) {
    let verdict = gauges(
        registry,
        "airgapd_verdict",
        "The verdict on the node: 1 for the state that it is in, 0 for the others",
        &["state"],
    );
    for health in Health::ALL {
        verdict
            .with_label_values(&[health.as_str()])
            .set((health == status.verdict.health).into());
    }
}

/// Adds the last scrub. A node without one has no such metrics.
fn add_scrub(registry: &Registry, scrub: &ScrubStatus) {
    set(
        registry,
        "airgapd_scrub_wrong_blobs",
        "Blobs that are wrong in containerd and that the last scrub could not replace",
        count(scrub.wrong),
    );
    set(
        registry,
        "airgapd_scrub_last_timestamp_seconds",
        "Time when a scrub last came to its end",
        u64::try_from(scrub.at.as_second()).unwrap_or(0),
    );
}

fn add_disk(registry: &Registry, disk: &DiskStatus) {
    let rows = [
        (
            "airgapd_disk_size_bytes",
            "Size of the disk of containerd's content store",
            disk.size_bytes,
        ),
        (
            "airgapd_disk_free_bytes",
            "Space on it that is free for programs without privileges",
            disk.free_bytes,
        ),
        (
            "airgapd_disk_min_free_bytes",
            "Space that has to stay free on it",
            disk.min_free_bytes,
        ),
        (
            "airgapd_disk_below_minimum",
            "1 if less is free than has to stay free, so that nothing is imported, otherwise 0",
            u64::from(disk.problem.is_some()),
        ),
    ];
    for (name, help, value) in rows {
        set(registry, name, help, value);
    }
}

fn add_unpack(registry: &Registry, unpack: &UnpackStatus) {
    set(
        registry,
        "airgapd_unpack_pending_images",
        "Images that still wait to be unpacked ahead",
        count(unpack.pending),
    );
    set(
        registry,
        "airgapd_unpack_failed_images",
        "Images that cannot be unpacked, so that no container of them starts",
        count(unpack.failed.len()),
    );
}

/// Adds the required images. Unknown counts are left out, and `airgapd_required_up` says so. After
/// a restart the state is known from the last daemon, and the counts are not.
fn add_required(registry: &Registry, required: &RequiredStatus, ready: &Standing<'_>) {
    let is_known = ready.required.is_some();
    set(
        registry,
        "airgapd_required_up",
        "1 if the state of the required images is known, otherwise 0",
        u64::from(is_known),
    );
    if is_known && required.checked_at.is_some() {
        set(
            registry,
            "airgapd_required_images",
            "Images that the configuration requires",
            count(required.references),
        );
        set(
            registry,
            "airgapd_required_missing_images",
            "Images that the configuration requires and that are missing or not whole",
            count(required.missing.len()),
        );
    }
}

fn add_images(registry: &Registry, images: ImageCount) {
    let ImageCount {
        all,
        in_place,
        failed,
    } = images;
    let by_state = gauges(
        registry,
        "airgapd_images",
        "Images of the bundles, by state. Each target is counted once",
        &["state"],
    );
    let pending = all.saturating_sub(in_place + failed);
    for (state, value) in [("in-place", in_place), ("failed", failed), ("pending", pending)] {
        by_state
            .with_label_values(&[state])
            .set(i64::try_from(value).unwrap_or(i64::MAX));
    }
}

fn add_bundles(registry: &Registry, bundles: &[BundleStatus]) {
    let by_state = gauges(registry, "airgapd_bundles", "Bundles by state", &["state"]);
    for state in State::ALL {
        let count = bundles.iter().filter(|bundle| bundle.state == state).count();
        by_state
            .with_label_values(&[state.as_str()])
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }
    let of_class = |class: ErrorClass| {
        let is_of = |bundle: &&BundleStatus| {
            let failed = matches!(bundle.state, State::Failed | State::Retrying);
            failed && bundle.error.as_ref().is_some_and(|error| error.class == class)
        };
        bundles.iter().filter(is_of).count()
    };
    let by_class = gauges(
        registry,
        "airgapd_bundles_failed",
        "Bundles whose last try failed, by what has to happen before a retry makes sense",
        &["class"],
    );
    for class in ErrorClass::ALL {
        by_class
            .with_label_values(&[class.as_str()])
            .set(i64::try_from(of_class(class)).unwrap_or(i64::MAX));
    }
    let by_cause = gauges(
        registry,
        "airgapd_bundles_refused",
        "Bundles that the rule for signatures refuses, by cause",
        &["cause"],
    );
    for cause in RefusedBy::ALL {
        let is_of = |bundle: &&BundleStatus| {
            let error = bundle.error.as_ref().filter(|_| bundle.state == State::Failed);
            error.is_some_and(|error| error.refused_by == Some(cause))
        };
        by_cause
            .with_label_values(&[cause.as_str()])
            .set(i64::try_from(bundles.iter().filter(is_of).count()).unwrap_or(i64::MAX));
    }
    set(
        registry,
        "airgapd_set_aside_bundles",
        "Bundles that are left alone because the daemon crashed over each of them several times",
        count(of_class(ErrorClass::Crash)),
    );
}

/// Adds the receipts, and the files that they stand for. A receipt that is being released is none.
fn add_receipts(registry: &Registry, bundles: &[BundleStatus]) {
    let receipts: Vec<&BundleStatus> = bundles
        .iter()
        .filter(|bundle| bundle.receipt_of.is_some() && bundle.state != State::Gone)
        .collect();
    let is_degraded = |bundle: &&&BundleStatus| {
        let class = bundle.error.as_ref().map(|error| error.class);
        class == Some(ErrorClass::Degraded)
    };
    let degraded = receipts.iter().filter(is_degraded).count();
    let is_failed = |bundle: &&&BundleStatus| bundle.state == State::Failed;
    let failed = receipts.iter().filter(is_failed).count();
    let held = receipts.len() - degraded - failed;
    let by_state = gauges(
        registry,
        "airgapd_receipts",
        "Receipts, which stand for bundles whose files may be gone",
        &["state"],
    );
    for (state, number) in [("held", held), ("degraded", degraded), ("failed", failed)] {
        by_state
            .with_label_values(&[state])
            .set(i64::try_from(number).unwrap_or(i64::MAX));
    }
    let stood_for = receipts.iter().filter_map(|bundle| bundle.receipt_of.as_ref());
    set(
        registry,
        "airgapd_receipts_bundle_bytes",
        "Size of the files that receipts stand for",
        stood_for.map(|of| of.size).sum(),
    );
}

/// Adds the names of bundles: of the bundles in place the newest, of the others the worst.
fn add_names(registry: &Registry, bundles: &[BundleStatus]) {
    let (mut done, mut others): (Vec<_>, Vec<_>) =
        bundles.iter().partition(|bundle| bundle.state == State::Done);
    set(
        registry,
        "airgapd_bundles_in_place_hash",
        "A number made of the names and digests of all bundles in place: nodes with the same number have the same bundles",
        hash(&done),
    );
    done.sort_by_key(|bundle| std::cmp::Reverse(bundle.imported_at));
    others.sort_by_key(|bundle| rank(bundle.state));
    let named = done.len().min(MOST_NAMED) + others.len().min(MOST_NAMED);
    let info = gauges(
        registry,
        "airgapd_bundle_info",
        "A bundle in place and the digest of its catalog. Of many bundles, only the newest are named",
        &["bundle", "digest"],
    );
    for bundle in done.into_iter().take(MOST_NAMED) {
        let digest = bundle.catalog.as_deref().unwrap_or_default();
        info.with_label_values(&[&*bundle.name.to_string(), digest])
            .set(1);
    }
    let not_in_place = gauges(
        registry,
        "airgapd_bundle_not_in_place",
        "A bundle that is not in place, and its state. Of many bundles, only the worst are named",
        &["bundle", "state"],
    );
    for bundle in others.into_iter().take(MOST_NAMED) {
        not_in_place
            .with_label_values(&[&*bundle.name.to_string(), bundle.state.as_str()])
            .set(1);
    }
    set(
        registry,
        "airgapd_bundles_not_shown",
        "Bundles that no series names, because there are too many",
        count(bundles.len() - named),
    );
}

/// Adds the releases. Of many, those that are not in place are named first. A node without releases
/// has no such series.
fn add_releases(registry: &Registry, releases: &[ReleaseStatus], ready: &Standing<'_>) {
    if releases.is_empty() {
        return;
    }
    let in_place = gauges(
        registry,
        "airgapd_release_in_place",
        "1 if every member of a release is in place, otherwise 0. Of many releases, only some are named",
        &["release"],
    );
    let is_in_place = |release: &ReleaseStatus| ready.releases.contains(release.name.as_str());
    let mut releases: Vec<&ReleaseStatus> = releases.iter().collect();
    releases.sort_by_key(|release| is_in_place(release));
    for release in releases.iter().take(MOST_NAMED) {
        in_place
            .with_label_values(&[release.name.as_str()])
            .set(is_in_place(release).into());
    }
    set(
        registry,
        "airgapd_releases_not_shown",
        "Releases that no series names, because there are too many",
        count(releases.len().saturating_sub(MOST_NAMED)),
    );
}

/// Returns the rank of a bundle that is not in place. If there are many, only those of the lowest
/// ranks are named: the worst.
fn rank(state: State) -> u8 {
    match state {
        State::Failed => 0,
        State::Retrying => 1,
        State::Stalled | State::AwaitingChecksum | State::AwaitingSignature => 2,
        State::Settling | State::Queued | State::Importing | State::Following | State::Checking => 3,
        State::Skipped | State::Gone => 4,
        State::Done => 5,
    }
}

/// Returns 48 bits of a hash over the names and digests of these bundles, in the order of their
/// names. A sample is a 64-bit float, which represents such a number exactly.
fn hash(bundles: &[&BundleStatus]) -> u64 {
    let mut text = Vec::new();
    for bundle in bundles {
        for part in [bundle.name.raw(), bundle.catalog.as_deref().unwrap_or_default()] {
            text.extend_from_slice(part.as_bytes());
            text.push(0);
        }
    }
    let digits = &basics::digest::short(&text)[..12];
    u64::from_str_radix(digits, 16).expect("it is hexadecimal")
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

/// Sets a gauge without labels.
fn set(registry: &Registry, name: &str, help: &str, value: u64) {
    gauges(registry, name, help, &[])
        .with_label_values::<&str>(&[])
        .set(i64::try_from(value).unwrap_or(i64::MAX));
}

fn gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    registered(registry, IntGaugeVec::new(Opts::new(name, help), labels))
}

fn registered<C: Collector + Clone + 'static>(registry: &Registry, metric: prometheus::Result<C>) -> C {
    let metric = metric.expect("the name and the labels are valid");
    registry
        .register(Box::new(metric.clone()))
        .expect("every name is given once");
    metric
}

#[cfg(test)]
mod tests;
