//! One file at a time: from the look that tells whether it is finished to what is written down of its import.

use std::ffi::OsStr;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bundle::{Bundle, Identity};
use containerd::Client;
use import::{
    BundleReport, ImageOutcome, ImageReport, Intent, Outcome, Policy, Selection, Source, Verdict, bundle_id,
};
use jiff::Timestamp;
use tracing::{debug, error, info, warn};

use super::telling::{log_report, shown};
use super::{Connection, Daemon};
use crate::checksum::{self, Checksum, sidecar_of};
use crate::config::Checksums;
use crate::folder::{self, Ending, Folder, Observation, Reason, Refused, Settle, Writer};
use crate::ledger::{self, ErrorClass, Imported, LastError};
use crate::lists;
use crate::progress::Progress;
use crate::roster::{Phase, Version};
use crate::trust;

impl Daemon {
    /// Takes on the file that is due, if any.
    pub(super) async fn work_on_one(&mut self) -> bool {
        let connected = matches!(self.connection, Connection::Up(_));
        let Some(name) = self.roster.due(Instant::now(), connected) else {
            return false;
        };
        let Some(version) = self.roster.version(&name) else {
            return false;
        };
        let file = match self.folder().map(|folder| open_bundle(&folder, &name, &version)) {
            Ok(Ok(Some(file))) => file,
            Ok(Ok(None)) => {
                self.look_again(&name);
                return true;
            }
            Ok(Err(Refused::Gone)) | Err(_) => {
                self.relist = true;
                self.roster.set(&name, Phase::Done);
                return true;
            }
            Ok(Err(refused)) => {
                if self.refusals.admit() {
                    warn!(bundle = %shown(&name), "not imported: {refused}");
                } else {
                    debug!(bundle = %shown(&name), "not imported: {refused}");
                }
                self.roster.set(
                    &name,
                    Phase::Failed {
                        attempts: 1,
                        retry: None,
                    },
                );
                return true;
            }
        };
        match self.roster.phase(&name) {
            Some(Phase::Settling { .. }) if version.is_layout => drop(self.settle_layout(&name, true)),
            Some(Phase::Settling { .. }) => self.settle(&name, &file),
            _ => self.import(&name, file, version).await,
        }
        true
    }

    /// Spares files that an earlier run of this program found bad: they are told of once more and not read again.
    pub(super) fn recall_damage(&mut self) {
        if self.ledger.context.program.as_deref() != Some(ledger::PROGRAM) {
            return;
        }
        for name in self.roster.names(|phase| matches!(phase, Phase::Settling { .. })) {
            let (Some(entry), Some(identity)) = (self.ledger.get(&name), self.roster.identity(&name)) else {
                continue;
            };
            let Some(text) = entry.damage(&identity) else {
                continue;
            };
            if self.refusals.admit() {
                error!(bundle = %shown(&name), outcome = "failed", "not imported, as before: {text}");
            }
            // What did land of it is looked after like anything else.
            let phase = match entry.outcome {
                ledger::Outcome::Partial => Phase::Known,
                _ => Phase::Failed {
                    attempts: entry.attempts,
                    retry: None,
                },
            };
            self.roster.set(&name, phase);
        }
    }

    fn settle(&mut self, name: &OsStr, file: &File) {
        let Some(since) = self.roster.still_since(name) else {
            return;
        };
        // The listing may be older than the file: what is about to be judged is what is open.
        match file.metadata() {
            Ok(metadata) if Some(Identity::of(&metadata)) == self.roster.identity(name) => {}
            _ => return self.look_again(name),
        }
        match Observation::of(file, since) {
            Ok(mut seen) => {
                let is_list = lists::is_list(name, seen.ending, seen.size);
                if is_list {
                    // However short, it will not become an archive.
                    seen.ending = Ending::Foreign;
                }
                self.settled(name, folder::settle(&seen, Instant::now()));
                let is_ready = self.roster.phase(name) == Some(Phase::Ready);
                if is_ready && is_list && !self.settings.pull_lists && self.roster.ignore(name, Reason::List)
                {
                    info!(file = %shown(name), "ignored: {}", Reason::List);
                }
            }
            Err(error) => {
                warn!(bundle = %shown(name), "cannot be read: {error}");
                self.roster.fail(name, Instant::now(), true);
            }
        }
    }

    /// Whether it was settled; as long as it is not known to be whole, it is asked again after it was opened.
    fn settle_layout(&mut self, name: &OsStr, is_whole: bool) -> bool {
        let Some(since) = self.roster.still_since(name) else {
            return false;
        };
        let settle = folder::settle_layout(is_whole, since, Instant::now());
        self.settled(name, settle);
        settle == Settle::Settled
    }

    fn settled(&mut self, name: &OsStr, settle: Settle) {
        if let Some(why) = self.roster.settle(name, settle) {
            warn!(bundle = %shown(name), "not imported, and nothing has happened for a while: {why}");
        }
    }

    async fn import(&mut self, name: &OsStr, file: File, version: Version) {
        let Connection::Up(up) = &self.connection else {
            return;
        };
        let (client, policy) = (up.runtime.client.clone(), up.policy.clone());
        match self.verify(name, &file, &version).await {
            Ok(Verified::Yes) => {}
            Ok(Verified::NotNow) => return,
            Err(failure) => return self.unverified(name, version.identity, &failure),
        }
        let size = version.identity.size;
        match Ending::of(&file, size) {
            _ if version.is_layout => {}
            Ok(ending) if lists::is_list(name, ending, size) => {
                return self.provide_list(name, file, version, &client).await;
            }
            // It will be refused, and that is line enough for it.
            Ok(Ending::Foreign) => debug!(bundle = %shown(name), "importing"),
            Ok(_) | Err(_) => info!(bundle = %shown(name), "importing"),
        }
        self.import_bundle(name, file, version, &client, &policy).await;
        // A refusal that is forgotten is found again; a thousand of them are written down together.
        match self.roster.phase(name) {
            Some(Phase::Failed { .. }) => self.unsaved = true,
            _ => self.save(),
        }
    }

    async fn import_bundle(
        &mut self,
        name: &OsStr,
        file: File,
        version: Version,
        client: &Client,
        policy: &Policy,
    ) {
        let path = self.images_dir.join(name);
        let started = Instant::now();
        let same_file = file.try_clone();
        let opened = read_bundle(
            file,
            path.clone(),
            self.settings.limits.clone(),
            version.is_layout,
        )
        .await;
        let is_whole = opened
            .as_ref()
            .is_ok_and(|bundle| broken(bundle, policy).is_none());
        if version.is_layout && !is_whole && !self.settle_layout(name, false) {
            return;
        }
        if version.is_layout {
            info!(bundle = %shown(name), "importing");
        } else if self.may_go_on(name, same_file.ok().as_ref(), &opened, is_whole) {
            return;
        }
        let bundle = match opened {
            Ok(bundle) => Arc::new(bundle),
            Err(error) => return self.unreadable(name, &path, &error, started),
        };
        // A folder has no identity but that of its listing.
        let identity = match version.is_layout {
            true => version.identity,
            false => bundle.identity().clone(),
        };
        if let Some(reason) = unfinished(&bundle, policy) {
            return self.failed(name, identity, &reason, ErrorClass::Bundle, false);
        }
        if let Some(trusted) = &self.settings.trusted_digests
            && let Err(why) = trust::check(trusted, &bundle.catalog().digest)
        {
            return self.refuse(name, identity, &why);
        }
        let text_name = name.to_string_lossy().into_owned();
        let intent = Intent {
            source: Source::Bundle(text_name.clone()),
            on_conflict: self.settings.on_conflict,
        };
        let progress = Progress::start(shown(name));
        let result = import::import(
            client,
            &bundle,
            policy,
            &intent,
            &bundle_id(&text_name),
            false,
            &progress,
        )
        .await;
        match result {
            Ok(imported) => self.imported(name, &bundle, identity, imported),
            Err(error) => {
                let report = BundleReport::untried(&path, &error, started.elapsed());
                self.stopped(name, identity, &report, &error);
            }
        }
    }

    /// Puts off what looks like an upload that goes on later: a program that writes in several goes leaves such files
    /// in between, and nobody has it open then.
    fn may_go_on(
        &mut self,
        name: &OsStr,
        file: Option<&File>,
        opened: &Result<Bundle, bundle::Error>,
        is_whole: bool,
    ) -> bool {
        let since = self.roster.still_since(name);
        let Some(look) = since.and_then(|since| folder::may_go_on_until(since, Instant::now())) else {
            return false;
        };
        let is_cut = match opened {
            Ok(bundle) => matches!(bundle.catalog().ending, bundle::Ending::Truncated(_)),
            Err(error) => matches!(
                error.fault,
                bundle::Fault::Truncated(_) | bundle::Fault::CompressedCut { .. }
            ),
        };
        if !is_cut && (is_whole || !file.is_some_and(folder::may_be_reserved)) {
            return false;
        }
        info!(bundle = %shown(name), "not whole yet; it is read again when it has changed, or has not for a while");
        self.roster.set(name, Phase::Settling { look });
        true
    }

    /// Has the images of a list pulled, one after the other; one that cannot be had spares the others.
    async fn provide_list(&mut self, name: &OsStr, file: File, version: Version, client: &Client) {
        let started = Instant::now();
        let identity = version.identity;
        let text = match lists::read(file) {
            Ok(text) => text,
            Err(error) => {
                let text = format!("it cannot be read: {error}");
                return self.failed(name, identity, &text, ErrorClass::Bundle, false);
            }
        };
        let catalog = Checksum::of(text.as_bytes()).to_digest();
        if let Some(trusted) = &self.settings.trusted_digests
            && let Err(why) = trust::check(trusted, &catalog)
        {
            return self.refuse(name, identity, &why);
        }
        info!(bundle = %shown(name), "pulling the images of a list");
        let (naming, source) = (
            self.settings.naming(),
            Source::Bundle(name.to_string_lossy().into_owned()),
        );
        let (mut images, mut problems) = (Vec::new(), Vec::new());
        for reference in lists::parse(&text, &naming) {
            let provided = match reference {
                Ok(reference) => lists::provide(client, &reference, &naming, &source)
                    .await
                    .map_err(|error| format!("{reference}: {}", import::chain(&error))),
                Err(problem) => Err(problem),
            };
            match provided {
                Ok(entries) => {
                    let image = &entries[0].name;
                    info!(bundle = %shown(name), image, "image in place");
                    images.extend(entries);
                }
                Err(problem) => {
                    error!(bundle = %shown(name), "image not pulled: {problem}");
                    problems.push(problem);
                }
            }
        }
        let closures: Vec<_> = images
            .iter()
            .map(|image| (image.target.clone(), vec![image.target.clone()]))
            .collect();
        let imported = Imported {
            identity: identity.clone(),
            sidecar: version.sidecar,
            catalog,
            images,
            at: Timestamp::now(),
            duration_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            sent_bytes: 0,
        };
        let outcome = match (closures.is_empty(), problems.is_empty()) {
            (_, true) => ledger::Outcome::Imported,
            (false, false) => ledger::Outcome::Partial,
            (true, false) => ledger::Outcome::Failed,
        };
        self.ledger.record_import(name, outcome, imported, closures);
        match problems.into_iter().next() {
            None => self.roster.set(name, Phase::Done),
            Some(text) => {
                let (class, at) = (ErrorClass::Transient, Timestamp::now());
                let error = LastError { text, class, at };
                self.ledger.record_failure(name, identity, outcome, error);
                self.roster.fail(name, Instant::now(), true);
            }
        }
        self.save();
    }

    /// Checks a file against the checksum beside it, unless this very pair was checked before.
    async fn verify(
        &mut self,
        name: &OsStr,
        file: &File,
        version: &Version,
    ) -> Result<Verified, checksum::Failure> {
        let mode = self.settings.checksums;
        // One that was imported without a checksum is known too, and not enough where one is required.
        let is_needed = mode == Checksums::Require && version.sidecar.is_none();
        if mode == Checksums::Off || !is_needed && super::is_known(&self.ledger, name, version) {
            return Ok(Verified::Yes);
        }
        if version.is_layout {
            return match mode {
                Checksums::Require => Err(checksum::Failure::NoFile),
                Checksums::Off | Checksums::IfPresent => Ok(Verified::Yes),
            };
        }
        let folder = self.folder().map_err(checksum::Failure::Read)?;
        let sidecar = folder.open(&sidecar_of(name));
        if !is_as_listed(&sidecar, version) {
            self.look_again(name);
            return Ok(Verified::NotNow);
        }
        let base_name = std::path::Path::new(name).file_name().unwrap_or(name);
        let Some(expected) = checksum::expected(base_name, sidecar, mode)? else {
            return Ok(Verified::Yes);
        };
        let file = file.try_clone().map_err(checksum::Failure::Read)?;
        let identity = checksum::check(file, base_name, expected).await?;
        if identity != version.identity {
            return Err(checksum::Failure::Changed);
        }
        info!(bundle = %shown(name), "its checksum is right");
        Ok(Verified::Yes)
    }

    fn look_again(&mut self, name: &OsStr) {
        self.relist = true;
        let look = Instant::now() + AGAIN;
        self.roster.set(name, Phase::Settling { look });
    }

    fn unverified(&mut self, name: &OsStr, identity: Identity, failure: &checksum::Failure) {
        use checksum::Failure;
        match failure {
            Failure::Missing { .. } | Failure::NoFile => {
                if self.roster.await_checksum(name) {
                    warn!(bundle = %shown(name), "waiting: {failure}");
                }
            }
            Failure::Unusable { .. } | Failure::Mismatch { .. } => {
                self.refuse(name, identity, &failure.to_string());
            }
            Failure::Changed | Failure::Read(_) => {
                self.failed(name, identity, &failure.to_string(), ErrorClass::Transient, true);
            }
        }
        self.save();
    }

    /// Leaves a bundle alone until it, its checksum or the rules change. What was imported of it before is neither
    /// taken back nor restored any more.
    fn refuse(&mut self, name: &OsStr, identity: Identity, why: &str) {
        let before = self.ledger.get(name).and_then(|entry| entry.imported.as_ref());
        let text = match before {
            Some(_) => {
                format!("{why} (what was imported of it before stays, and is not looked after any more)")
            }
            None => why.to_owned(),
        };
        self.failed(name, identity, &text, ErrorClass::Refused, false);
        self.save();
    }

    fn unreadable(&mut self, name: &OsStr, path: &std::path::Path, error: &bundle::Error, started: Instant) {
        let identity = self.roster.identity(name);
        let report = BundleReport::unreadable(path, error, started.elapsed());
        let text = report.error.unwrap_or_default();
        let transient = matches!(error.fault, bundle::Fault::Changed | bundle::Fault::Io { .. });
        let class = if transient {
            ErrorClass::Transient
        } else {
            ErrorClass::Bundle
        };
        if let Some(identity) = identity {
            self.failed(name, identity, &text, class, transient);
        }
    }

    fn failed(&mut self, name: &OsStr, identity: Identity, text: &str, class: ErrorClass, retry: bool) {
        if class != ErrorClass::Bundle || self.refusals.admit() {
            error!(bundle = %shown(name), outcome = "failed", "not imported: {text}");
        } else {
            debug!(bundle = %shown(name), outcome = "failed", "not imported: {text}");
        }
        let error = LastError {
            text: text.to_owned(),
            class,
            at: Timestamp::now(),
        };
        self.ledger
            .record_failure(name, identity, ledger::Outcome::Failed, error);
        self.roster.fail(name, Instant::now(), retry);
    }

    fn stopped(&mut self, name: &OsStr, identity: Identity, report: &BundleReport, error: &import::Error) {
        let text = report.error.clone().unwrap_or_default();
        let (class, retry) = match error {
            import::Error::Containerd(inner) => match inner.recovery() {
                containerd::Recovery::Space => (ErrorClass::Space, true),
                containerd::Recovery::Permanent => (ErrorClass::Permanent, true),
                _ => (ErrorClass::Transient, true),
            },
            _ => (ErrorClass::Transient, error.is_transient()),
        };
        self.failed(name, identity, &text, class, retry);
        if report.cause == Some(import::Cause::Unreachable) {
            self.lost(error);
        }
    }

    fn imported(&mut self, name: &OsStr, bundle: &Bundle, identity: Identity, imported: import::Imported) {
        let import::Imported {
            report,
            selection,
            stopped,
            ..
        } = imported;
        log_report(name, &report);
        if report.landed() || report.outcome == Outcome::Skipped {
            self.write_down(name, bundle, &identity, &report, &selection);
        }
        match stopped {
            Some(error) => self.stopped(name, identity, &report, &error),
            None if matches!(report.outcome, Outcome::Failed | Outcome::Partial) => {
                self.incomplete(name, identity, &report);
            }
            None => self.roster.set(name, Phase::Done),
        }
    }

    /// Writes down what is wrong with a bundle of which not everything landed. It is tried again when the file changes.
    fn incomplete(&mut self, name: &OsStr, identity: Identity, report: &BundleReport) {
        let mut failed = report
            .images
            .iter()
            .filter(|image| image.outcome == ImageOutcome::Failed);
        let reason =
            |image: &ImageReport| format!("{}: {}", image.name, image.reason.as_deref().unwrap_or("failed"));
        let text = failed.next().map(reason).unwrap_or_default();
        let class = if report.cause == Some(import::Cause::Bundle) {
            ErrorClass::Bundle
        } else {
            ErrorClass::Permanent
        };
        let error = LastError {
            text,
            class,
            at: Timestamp::now(),
        };
        self.ledger
            .record_failure(name, identity, report.outcome.into(), error);
        self.roster.fail(name, Instant::now(), false);
    }

    fn write_down(
        &mut self,
        name: &OsStr,
        bundle: &Bundle,
        identity: &Identity,
        report: &BundleReport,
        selection: &Selection,
    ) {
        let in_place: Vec<_> = report
            .images
            .iter()
            .filter(|image| image.outcome.is_in_place())
            .collect();
        let images = in_place.iter().filter_map(|image| {
            Some(ledger::ImageEntry {
                name: image.name.clone(),
                target: image.digest.parse().ok()?,
            })
        });
        let closures = selection.taken().flat_map(|taken| {
            let digests: Vec<_> = taken
                .closure
                .blobs
                .iter()
                .map(|blob| blob.digest.clone())
                .collect();
            taken
                .records
                .iter()
                .map(move |record| (record.target.digest().clone(), digests.clone()))
        });
        let imported = Imported {
            identity: identity.clone(),
            sidecar: self.roster.version(name).and_then(|version| version.sidecar),
            catalog: bundle.catalog().digest.clone(),
            images: images.collect(),
            at: Timestamp::now(),
            duration_ms: report.duration_ms,
            sent_bytes: report.blobs.sent_bytes,
        };
        self.ledger
            .record_import(name, report.outcome.into(), imported, closures);
    }
}

/// What came of a look at a bundle's checksum.
enum Verified {
    /// It is right, or there is none to be held against.
    Yes,
    /// It is just being written.
    NotNow,
}

/// Whether a sidecar is what the listing says, and nobody is writing it.
fn is_as_listed(sidecar: &Result<File, Refused>, version: &Version) -> bool {
    let seen = Instant::now();
    match sidecar {
        Ok(file) => {
            let identity = file.metadata().ok().map(|metadata| Identity::of(&metadata));
            let writer = Observation::of(file, seen).map_or(Writer::Unknown, |seen| seen.writer);
            identity == version.sidecar && writer != Writer::Present
        }
        Err(Refused::Gone) => version.sidecar.is_none(),
        Err(_) => true,
    }
}

/// How soon a file is looked at again that changed while it was looked at.
const AGAIN: Duration = Duration::from_millis(500);

/// Why an archive without a proper end is taken for an upload that was cut off. Without the mark at its end it has to
/// hold every blob that its images refer to.
fn unfinished(bundle: &Bundle, policy: &Policy) -> Option<String> {
    match &bundle.catalog().ending {
        bundle::Ending::Marker => None,
        bundle::Ending::Truncated(cut) => Some(format!("{cut}: finish the upload")),
        bundle::Ending::NoMarker => broken(bundle, policy).map(|problem| {
            format!("the archive has no end marker and is not whole, finish the upload: {problem}")
        }),
    }
}

/// What keeps the first image of a bundle that is not whole from being so.
fn broken(bundle: &Bundle, policy: &Policy) -> Option<String> {
    let selection = import::select(bundle.catalog(), policy);
    selection.choices.iter().find_map(|choice| match &choice.verdict {
        Verdict::Broken(problems) => Some(format!("{}: {}", choice.label, problems.join("; "))),
        Verdict::Take(_) | Verdict::Skip(_) | Verdict::Forbidden => None,
    })
}

/// Opens what was listed. `None` where it is another one by now.
fn open_bundle(folder: &Folder, name: &OsStr, version: &Version) -> Result<Option<File>, Refused> {
    if !version.is_layout {
        return folder.open(name).map(Some);
    }
    let (layout, identity) = folder.open_layout(name)?;
    Ok((identity == version.identity).then_some(layout))
}

/// Reads the catalog of an open bundle; that blocks, so it happens off the runtime's threads.
async fn read_bundle(
    file: File,
    path: PathBuf,
    limits: bundle::Limits,
    is_layout: bool,
) -> Result<Bundle, bundle::Error> {
    let read = move || match is_layout {
        true => Bundle::from_dir(file, &path, &limits),
        false => Bundle::from_file(file, &path, &limits),
    };
    let opened = tokio::task::spawn_blocking(read).await;
    opened.expect("reading a bundle never panics")
}
