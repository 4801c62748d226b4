//! What came of jobs: what is said, what the ledger keeps, and whether and when a file is tried again.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::time::Instant;

use bundle::Bundle;
use import::result::{ImageOutcome, ImageResult};
use import::{BundleResult, Outcome, Selection};
use jiff::Timestamp;

use super::job::{Order, Pulled};
use super::jobs::{Job, Stage};
use super::telling::{log_repairs, log_report, shown, tell};
use super::{BURST, Daemon};
use crate::checksum;
use crate::coexistence::repaired;
use crate::ledger::{self, ErrorClass, Imported, LastError};
use crate::roster::Phase;
use basics::backoff;

impl Daemon {
    pub(super) fn unverified(&mut self, order: &Order, failure: &checksum::Failure) {
        use checksum::Failure;
        match failure {
            Failure::Missing { .. } | Failure::NoFile => {
                if self.roster.await_checksum(&order.name) {
                    let is_told = self.rows.delayed.admits(Instant::now());
                    tell!(is_told, warn, bundle = %shown(&order.name), "waiting: {failure}");
                }
            }
            Failure::Unusable { .. } | Failure::Mismatch { .. } => {
                self.refuse(order, &failure.to_string());
            }
            Failure::Changed | Failure::Read(_) => {
                self.failed(order, &failure.to_string(), ErrorClass::Transient, true);
            }
        }
        self.save();
    }

    /// Leaves a bundle alone until it, its checksum or the rules change. What was imported of it before is neither
    /// taken back nor restored any more.
    pub(super) fn refuse(&mut self, order: &Order, why: &str) {
        let before = self.ledger.get(&order.name);
        let text = match before.and_then(|entry| entry.imported.as_ref()) {
            Some(_) => {
                format!("{why} (what was imported of it before stays, and is not looked after any more)")
            }
            None => why.to_owned(),
        };
        self.failed(order, &text, ErrorClass::Refused, false);
        self.save();
    }

    pub(super) fn unreadable(&mut self, order: &Order, error: &bundle::Error) {
        let report = BundleResult::unreadable(&order.path(), error, order.elapsed());
        self.count(&report);
        let text = report.error.unwrap_or_default();
        let transient = matches!(error.fault, bundle::Fault::Changed | bundle::Fault::Io { .. });
        let class = match &error.fault {
            bundle::Fault::Io { source, .. } if containerd::is_disk_failure(source) => ErrorClass::Disk,
            _ if transient => ErrorClass::Transient,
            _ => ErrorClass::Bundle,
        };
        self.failed(order, &text, class, transient);
    }

    /// Writes down that a file failed. A refusal that is forgotten is found again, and a thousand of them are saved
    /// together.
    pub(super) fn failed(&mut self, order: &Order, text: &str, class: ErrorClass, retry: bool) {
        let bundle = shown(&order.name);
        let is_told = self.rows.refused.admits(Instant::now());
        tell!(is_told, error, bundle, outcome = "failed", "not imported: {text}");
        self.record_failure(order, ledger::Outcome::Failed, text, class);
        let chance = retry.then(backoff::chance);
        self.roster.fail(&order.name, Instant::now(), chance);
        if !retry && self.abandoned.remove(&order.name) {
            self.sweep_soon();
        }
    }

    fn record_failure(&mut self, order: &Order, outcome: ledger::Outcome, text: &str, class: ErrorClass) {
        let error = LastError {
            text: text.to_owned(),
            class,
            at: Timestamp::now(),
        };
        let identity = order.version.identity.clone();
        self.ledger.record_failure(&order.name, identity, outcome, error);
        self.unsaved = true;
    }

    fn stopped(&mut self, order: &Order, report: &BundleResult, error: &import::Error) {
        let text = report.error.clone().unwrap_or_default();
        let (class, retry) = match error {
            error if error.is_space() => (ErrorClass::Space, true),
            error if error.is_disk() => (ErrorClass::Disk, true),
            import::Error::Containerd(inner) => match inner.recovery() {
                containerd::Recovery::Permanent => (ErrorClass::Permanent, true),
                _ => (ErrorClass::Transient, true),
            },
            import::Error::TooManyRecords { .. } => (ErrorClass::Permanent, true),
            import::Error::TooManyNames { .. } => (ErrorClass::Permanent, false),
            _ => (ErrorClass::Transient, error.is_transient()),
        };
        self.failed(order, &text, class, retry);
        if let import::Error::NoSpace(shortage) = error {
            self.wait_for_room(&order.name, shortage);
        }
        if report.cause == Some(import::Cause::Unreachable) {
            self.went_away(&format!("containerd went away: {}", basics::chain(error)));
        }
    }

    /// Writes down what came of an import.
    pub(super) fn end_import(&mut self, name: &OsStr, result: Result<import::Imported, import::Error>) {
        let Some(job) = self.jobs.end(name) else {
            return;
        };
        match result {
            Ok(imported) => self.imported(&job, imported),
            Err(_) if !self.is_current(&job) => self.started_over(name),
            Err(error) => {
                let order = &job.order;
                let report = BundleResult::untried(&order.path(), &error, order.elapsed());
                self.count(&report);
                self.stopped(order, &report, &error);
            }
        }
        self.unpacking.doubt();
        if job.disturbed || self.reworded.contains(name) {
            self.compare_within(BURST);
        }
        if self.roster.phase(name) == Some(Phase::Done) {
            self.save();
        }
    }

    fn count(&self, report: &BundleResult) {
        self.metrics.count(report, Timestamp::now().as_second());
    }

    /// What a job wrote is known to be its bundle's; the file as it is now comes next.
    pub(super) fn started_over(&mut self, name: &OsStr) {
        self.relist = true;
        if self.roster.phase(name) == Some(Phase::Running) {
            self.roster.set(name, Phase::Ready);
        }
    }

    fn imported(&mut self, job: &Job, imported: import::Imported) {
        let import::Imported {
            result: report,
            selection,
            plan,
            stopped,
        } = imported;
        let order = &job.order;
        let is_bad = matches!(report.outcome, Outcome::Failed | Outcome::Partial);
        let is_told = !is_bad || self.rows.refused.admits(Instant::now());
        log_report(&order.name, &report, is_told);
        self.count(&report);
        log_repairs(&order.name, &repaired(&plan, &report));
        if let Stage::Importing(bundle) = &job.stage
            && (report.landed() || report.outcome == Outcome::Skipped)
        {
            self.write_down(job, bundle, &report, &selection);
        }
        if !self.is_current(job) {
            return self.started_over(&order.name);
        }
        match stopped {
            Some(error) => self.stopped(order, &report, &error),
            None if matches!(report.outcome, Outcome::Failed | Outcome::Partial) => {
                self.incomplete(order, &report);
            }
            None => self.roster.set(&order.name, Phase::Done),
        }
    }

    /// Writes down what is wrong with a bundle of which not everything landed. It is tried again when the file changes.
    fn incomplete(&mut self, order: &Order, report: &BundleResult) {
        let mut failed = report
            .images
            .iter()
            .filter(|image| image.outcome == ImageOutcome::Failed);
        let reason =
            |image: &ImageResult| format!("{}: {}", image.name, image.reason.as_deref().unwrap_or("failed"));
        let text = failed.next().map(reason).unwrap_or_default();
        let class = if report.cause == Some(import::Cause::Bundle) {
            ErrorClass::Bundle
        } else {
            ErrorClass::Permanent
        };
        self.record_failure(order, report.outcome, &text, class);
        self.roster.fail(&order.name, Instant::now(), None);
    }

    fn write_down(&mut self, job: &Job, bundle: &Bundle, report: &BundleResult, selection: &Selection) {
        // A name that is left to another is still wanted: it comes back when the other is gone.
        let is_wanted = |image: &&ImageResult| image.outcome.is_in_place() || job.left.contains(&image.name);
        let images = report
            .images
            .iter()
            .filter(is_wanted)
            .map(|image| ledger::ImageEntry {
                name: image.name.clone(),
                target: image.target.clone(),
            });
        // Many names, one closure: the digests of a target are collected once.
        let mut seen = HashSet::new();
        let closures = selection.taken().flat_map(|taken| {
            let blobs = taken.closure.blobs.iter();
            let digests: Vec<_> = blobs.map(|blob| blob.digest.clone()).collect();
            let targets: Vec<_> = taken
                .records
                .iter()
                .map(|record| record.target.digest())
                .filter(|target| seen.insert(*target))
                .cloned()
                .collect();
            targets.into_iter().map(move |target| (target, digests.clone()))
        });
        let Order { name, version, .. } = &*job.order;
        let imported = Imported {
            identity: match version.is_layout {
                // A folder has no identity but that of its listing.
                true => version.identity.clone(),
                false => bundle.identity().clone(),
            },
            sidecar: version.sidecar.clone(),
            catalog: bundle.catalog().digest.clone(),
            images: images.collect(),
            at: Timestamp::now(),
            duration_ms: report.duration_ms,
            sent_bytes: report.blobs.sent_bytes,
        };
        self.note_reworded(name, &imported);
        self.ledger
            .record_import(name, report.outcome, imported, closures);
        self.unsaved = true;
    }

    /// Keeps in mind that records may have a label of the bundle which are not among its images any more. Of what an import
    /// that was cut short has written, the ledger does not know.
    fn note_reworded(&mut self, name: &OsStr, imported: &Imported) {
        let before = self.ledger.get(name).and_then(|entry| entry.imported.as_ref());
        if before.is_none_or(|before| before.images != imported.images) {
            self.reworded.insert(name.to_owned());
        }
    }

    /// Writes down what came of a list.
    pub(super) fn end_pull(&mut self, name: &OsStr, pulled: Pulled) {
        let Some(job) = self.jobs.end(name) else {
            return;
        };
        let Stage::Pulling { catalog } = &job.stage else {
            return;
        };
        let Pulled { images, problems } = pulled;
        let targets = images.iter().map(|image| image.target.clone());
        let closures: Vec<_> = targets.map(|target| (target.clone(), vec![target])).collect();
        let outcome = match (closures.is_empty(), problems.is_empty()) {
            (_, true) => ledger::Outcome::Imported,
            (false, false) => ledger::Outcome::Partial,
            (true, false) => ledger::Outcome::Failed,
        };
        let order = &job.order;
        let imported = Imported {
            identity: order.version.identity.clone(),
            sidecar: order.version.sidecar.clone(),
            catalog: catalog.clone(),
            images,
            at: Timestamp::now(),
            duration_ms: u64::try_from(order.elapsed().as_millis()).unwrap_or(u64::MAX),
            sent_bytes: 0,
        };
        self.note_reworded(name, &imported);
        self.ledger.record_import(name, outcome, imported, closures);
        match problems.first() {
            _ if !self.is_current(&job) => self.started_over(name),
            None => self.roster.set(name, Phase::Done),
            Some(text) => {
                self.record_failure(order, outcome, text, ErrorClass::Transient);
                self.roster.fail(name, Instant::now(), Some(backoff::chance()));
            }
        }
        if self.reworded.contains(name) {
            self.compare_within(BURST);
        }
        self.save();
    }
}
