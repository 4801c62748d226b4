//! Metrics, as Prometheus reads them (text format 0.0.4): what happened since the start is counted here, how things
//! stand is taken from a [`Status`] when somebody asks.
//!
//! Names and units follow the Prometheus conventions: one prefix, base units, `_total` for counters. Bundles are
//! labelled by file name and by the digest of their catalog, so that a fleet can be asked on how many nodes a bundle is.

use std::io;
use std::path::Path;
use std::time::Duration;

use basics::Foreign;
use import::BundleResult;
use prometheus::core::Collector;
use prometheus::{
    GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use crate::state::ledger::{ErrorClass, LastTry, Outcome};
use crate::status::{BundleStatus, RequiredStatus, State, Status, UnpackStatus};

/// How long imports take, in seconds: from what was there already to tens of gigabytes.
const DURATIONS: [f64; 8] = [0.1, 0.5, 2.0, 10.0, 30.0, 120.0, 600.0, 3600.0];

/// What is counted from the start of the daemon.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    imports: IntCounterVec,
    sent: IntCounter,
    present: IntCounter,
    seconds: Histogram,
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
        let options = HistogramOpts::new("airgapd_import_duration_seconds", "How long imports took");
        let seconds = Histogram::with_opts(options.buckets(DURATIONS.to_vec()));
        let last_success = IntGauge::new(
            "airgapd_last_success_timestamp_seconds",
            "When an import last ended with everything in place",
        );
        Metrics {
            imports: registered(&registry, imports),
            sent: registered(&registry, sent),
            present: registered(&registry, present),
            seconds: registered(&registry, seconds),
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

    /// Everything, as text.
    pub(crate) fn text(&self, status: &Status) -> String {
        // What was before this start is known from the bundles.
        let last_success = self.last_success.get().max(last_success(status));
        self.last_success.set(last_success);
        let standing = standing(status);
        let mut families = self.registry.gather();
        families.extend(standing.gather());
        families.sort_by(|a, b| a.name().cmp(b.name()));
        TextEncoder::new()
            .encode_to_string(&families)
            .expect("metrics are named and typed correctly")
    }
}

/// When a bundle was last brought into place, of those that are known, in seconds since 1970; 0 where none was.
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

/// Replaces a file that node_exporter reads: it sees the old text or the new one.
///
/// # Errors
///
/// Those of the file system.
pub(crate) fn write(file: &Path, text: &str) -> io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("/"));
    let mut builder = tempfile::Builder::new();
    builder.prefix(".airgapd-metrics-");
    let mut new = builder.tempfile_in(folder)?;
    io::Write::write_all(&mut new, text.as_bytes())?;
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    new.as_file().set_permissions(readable)?;
    new.persist(file).map_err(|error| error.error)?;
    Ok(())
}

/// How things stand, as gauges.
fn standing(status: &Status) -> Registry {
    let registry = Registry::new();
    let build = gauges(
        &registry,
        "airgapd_build_info",
        "The version of airgapd",
        &["version"],
    );
    build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
    let up = gauges(
        &registry,
        "airgapd_containerd_up",
        "Whether containerd can be reached",
        &[],
    );
    let containerd = &status.containerd;
    up.with_label_values::<&str>(&[]).set(containerd.reachable.into());
    if let (Some(version), Some(platform)) = (&containerd.version, &containerd.platform) {
        gauges(
            &registry,
            "airgapd_containerd_info",
            "The containerd that is reached",
            &["version", "platform"],
        )
        .with_label_values(&[version, platform].map(|text| Foreign::new(text).to_string()))
        .set(1);
    }
    let folder = gauges(
        &registry,
        "airgapd_folder_up",
        "Whether bundles can be imported from the images folder",
        &[],
    );
    folder
        .with_label_values::<&str>(&[])
        .set(status.folder.problem.is_none().into());
    if let Some(required) = &status.required {
        add_required(&registry, required);
    }
    if let Some(unpack) = &status.unpack {
        add_unpack(&registry, unpack);
    }
    add_bundles(&registry, status);
    let ignored = gauges(
        &registry,
        "airgapd_ignored_files",
        "Entries of the images folder that are left alone, since they are no bundles",
        &[],
    );
    let count = i64::try_from(status.ignored.len()).unwrap_or(i64::MAX);
    ignored.with_label_values::<&str>(&[]).set(count);
    registry
}

fn add_unpack(registry: &Registry, unpack: &UnpackStatus) {
    let rows = [
        (
            "airgapd_unpack_pending_images",
            "Images that are still to be unpacked ahead",
            unpack.pending,
        ),
        (
            "airgapd_unpack_failed_images",
            "Images that cannot be unpacked, so that no container of them starts",
            unpack.failed.len(),
        ),
    ];
    for (name, help, value) in rows {
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        gauges(registry, name, help, &[])
            .with_label_values::<&str>(&[])
            .set(value);
    }
}

/// What is not known is left out, apart from that.
fn add_required(registry: &Registry, required: &RequiredStatus) {
    let is_known = required.checked_at.is_some() && required.problem.is_none();
    let set = |name: &str, help: &str, value: usize| {
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        gauges(registry, name, help, &[])
            .with_label_values::<&str>(&[])
            .set(value);
    };
    set(
        "airgapd_required_up",
        "Whether it is known if the images are there that the configuration requires",
        usize::from(is_known),
    );
    if is_known {
        set(
            "airgapd_required_images",
            "Images that the configuration requires",
            required.references,
        );
        set(
            "airgapd_required_missing_images",
            "Images that the configuration requires and that are not there, or not whole",
            required.missing.len(),
        );
    }
}

fn add_bundles(registry: &Registry, status: &Status) {
    let by_state = gauges(
        registry,
        "airgapd_bundles",
        "Bundles, by how far they have come",
        &["state"],
    );
    for state in State::ALL {
        let count = status
            .bundles
            .iter()
            .filter(|bundle| bundle.state == state)
            .count();
        by_state
            .with_label_values(&[state.as_str()])
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }
    let is_set_aside = |bundle: &&BundleStatus| {
        let class = bundle.error.as_ref().map(|error| error.class);
        class == Some(ErrorClass::Crash)
    };
    let count = status.bundles.iter().filter(is_set_aside).count();
    gauges(
        registry,
        "airgapd_set_aside_bundles",
        "Bundles that are left alone, since the daemon crashed over each of them several times",
        &[],
    )
    .with_label_values::<&str>(&[])
    .set(i64::try_from(count).unwrap_or(i64::MAX));
    let info = gauges(
        registry,
        "airgapd_bundle_info",
        "A bundle, the digest of its catalog as last imported, and how far it has come",
        &["bundle", "digest", "state"],
    );
    let images = gauges(
        registry,
        "airgapd_bundle_images",
        "Image records that a bundle vouches for",
        &["bundle"],
    );
    let imported = GaugeVec::new(
        Opts::new(
            "airgapd_bundle_imported_timestamp_seconds",
            "When a bundle was last imported",
        ),
        &["bundle"],
    );
    let imported = registered(registry, imported);
    for bundle in &status.bundles {
        let name = &bundle.name.to_string();
        let digest = bundle.catalog.as_deref().unwrap_or_default();
        info.with_label_values(&[name, digest, bundle.state.as_str()])
            .set(1);
        images
            .with_label_values(&[name])
            .set(i64::try_from(bundle.images).unwrap_or(i64::MAX));
        if let Some(at) = bundle.imported_at {
            let seconds = Duration::from_millis(u64::try_from(at.as_millisecond()).unwrap_or(0));
            imported.with_label_values(&[name]).set(seconds.as_secs_f64());
        }
    }
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
mod tests {
    use super::*;
    use crate::status::ContainerdStatus;

    #[test]
    fn a_name_that_lies_neither_breaks_a_line_nor_hides_in_one() {
        let status = Status {
            containerd: ContainerdStatus {
                version: Some("2.1\n\u{9b}1m".to_owned()),
                platform: Some("linux/amd64".to_owned()),
                ..ContainerdStatus::default()
            },
            bundles: vec![BundleStatus::named(
                "new\nline \u{202e}rat.tar".as_ref(),
                State::Done,
            )],
            ..Status::default()
        };
        let text = Metrics::new().text(&status);
        assert!(text.chars().all(|c| c == '\n' || basics::is_visible(c)), "{text}");
        assert!(
            text.lines()
                .all(|line| line.starts_with("airgapd") || line.starts_with("# "))
        );
        assert!(text.contains("rat.tar"), "{text}");
    }
}
