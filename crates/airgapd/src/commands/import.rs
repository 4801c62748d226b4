//! `airgapd import`: imports bundles now, with or without a running daemon.
//!
//! A file in the images folder is imported as the daemon would import it, and the daemon manages it
//! afterwards. Images of any other file are marked as imported by hand, and stay until `airgapd
//! release`. So are images that come through a pipe.

mod answer;
mod input;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bundle::Bundle;
use import::plan::UnpackWhen;
use import::unpack::Unpack;
use import::{BundleReport, BundleResult, Cause, Intent, Outcome, Pace, Policy, Source, Unpacker, bundle_id};
use jiff::Timestamp;
use oci_spec::image::Digest;

use self::answer::Document;
use self::input::{Input, Stream};
use super::{Call, Exit, Refusal};
use crate::cli::{ImportArgs, OutputFormat};
use crate::output::{self, Page};
use crate::progress::Progress;
use node::admit::{self, By, Forbidden, Opened, Piped, Rules, Verdict};
use node::decide::desired;
use node::images::folder::{self, Folder};
use node::images::keys::TrustedKeys;
use node::images::sidecar::{self, Failure, sidecar_of};
use node::place::Place;
use node::progress::Doing;
use node::receipts::{self, Unmade};
use node::runtime::{self, Containerd};
use node::settings::{Checksums, Settings};
use node::spool::Spool;
use node::state::admitted::{self, Evidence};
use node::state::ledger::{self, SignerEntry};

/// Imports all files, one after the other. A bad file does not stop the others.
pub(super) async fn run(args: &ImportArgs, call: &Call) -> Result<Exit, Refusal> {
    let (settings, node) = (&call.settings, call.node()?);
    let allowed = call.allowed("import", Exit::Unreachable, &[&node.socket]);
    let connected = match allowed {
        Ok(()) => call.connect(&node).await,
        Err(refusal) => Err(refusal),
    };
    let runtime = connected.map_err(|refusal| {
        refusal.with_document(|error| Document {
            bundles: &[],
            error: Some(error),
        })
    })?;
    let policy = runtime::policy(settings, Some(&runtime));
    let import = Import {
        settings,
        node: &node,
        runtime: &runtime,
        policy: &policy,
        pace: Arc::new(Pace::new(settings.rate_limit)),
        dry_run: args.dry_run,
        leaves_receipts: args.keep,
        proofs: &args.proofs,
        spool: args.spool,
    };
    if args.files.iter().filter(|file| input::is_stdin(file)).count() > 1 {
        return Err(Refusal::usage(
            "- stands for standard input, which can be read once".to_owned(),
        ));
    }
    let mut results = Vec::new();
    let mut interrupted = pin!(super::making::interrupted());
    let mut listens = false;
    for file in &args.files {
        let input = Input::open(file);
        // From its first stream on, the command handles signals itself.
        listens |= matches!(input, Ok(Input::Stream(_)));
        let ended = async {
            match listens {
                true => interrupted.as_mut().await,
                false => std::future::pending().await,
            }
        };
        let (result, plan, is_interrupted) = import.one(file, input, ended).await;
        // With `-q`, text reports only failures.
        if call.format == OutputFormat::Text && (!call.is_quiet || failure(&result).is_some()) {
            output::text(&answer::text(&result, args.dry_run))?;
            if args.dry_run {
                output::text(&Page::of_lines(&plan))?;
            }
        }
        results.push(result);
        if is_interrupted {
            break;
        }
    }
    import.end_evidence().await;
    let exit = exit(&results);
    if call.format == OutputFormat::Json {
        let reports: Vec<BundleReport> = results.into_iter().map(BundleReport::from).collect();
        output::json(&Document {
            bundles: &reports,
            error: None,
        })?;
    }
    Ok(exit)
}

struct Import<'a> {
    settings: &'a Settings,
    node: &'a Place,
    runtime: &'a Containerd,
    policy: &'a Policy,
    /// Rate limit for all files together.
    pace: Arc<Pace>,
    dry_run: bool,
    /// True if each bundle leaves a receipt.
    leaves_receipts: bool,
    /// Proofs that the caller names, in addition to those beside each file.
    proofs: &'a [PathBuf],
    /// Most bytes of a spool file.
    spool: u64,
}

/// A result instead of an import. It is in a box, since it is large.
type Refused = Box<BundleResult>;

/// The owner of the images: the source that vouches for them, and the id of the lease.
struct Owner {
    source: Source,
    lease_id: String,
    /// The bytes of an input without a file name, see [`Input::nameless`].
    nameless: Option<Arc<AtomicU64>>,
}

impl Import<'_> {
    /// Imports one input. Returns the result, the plan as text, and true if `interrupted` came
    /// first. A stream leaves no lease behind, since it cannot be continued.
    async fn one(
        &self,
        path: &Path,
        input: Result<Input, bundle::Error>,
        interrupted: impl Future<Output = ()>,
    ) -> (BundleResult, String, bool) {
        let started = Instant::now();
        let is_stream = matches!(input, Ok(Input::Stream(_)));
        let (mut owner, turn) = self.owner(path, is_stream);
        owner.nameless = input.as_ref().ok().and_then(|input| input.nameless(path));
        let lease_id = owner.lease_id.clone();
        let import = async {
            match input {
                Ok(Input::File(file)) => self.file(path, file, owner, started).await,
                Ok(Input::Stream(stream)) => self.read_stream(path, stream, owner, started).await,
                Err(error) => Err(Box::new(BundleResult::unreadable(
                    path,
                    &error,
                    started.elapsed(),
                ))),
            }
        };
        let (imported, is_interrupted) = tokio::select! {
            imported = import => (imported, false),
            () = interrupted => {
                let why = "interrupted: images that were in place before stay, and no other image is imported";
                let result = BundleResult::refused(path, why.to_owned(), Cause::Other, started.elapsed());
                (Err(Box::new(result)), true)
            }
        };
        if is_stream
            && !self.dry_run
            && let Err(error) = import::lease::give_back(&self.runtime.client, &lease_id).await
        {
            let lease = import::lease::base_of(&lease_id);
            tracing::warn!(%error, "cannot delete lease {lease}, which holds the blobs of the pipe for a day");
        }
        drop(turn);
        let (result, plan) = imported.unwrap_or_else(|result| (*result, String::new()));
        (result, plan, is_interrupted)
    }

    /// Returns the owner of the images of an input. A stream, and a file without a name of its own,
    /// also take a turn. The turn lasts as long as the returned file.
    fn owner(&self, path: &Path, is_stream: bool) -> (Owner, Option<File>) {
        let is_nameless = input::is_nameless(path);
        if !is_nameless && !is_stream {
            let recursive = self.node.searches_sub_folders(self.settings);
            return (whose(path, self.node, recursive), None);
        }
        let name = match is_nameless {
            true => input::STDIN.as_ref(),
            false => path.file_name().unwrap_or(path.as_os_str()),
        };
        if self.dry_run {
            return (by_hand(name, name), None);
        }
        let (place, turn) = input::lease_name(path, &self.settings.state_dir);
        (by_hand(name, &place), turn)
    }

    async fn file(
        &self,
        path: &Path,
        file: File,
        owner: Owner,
        started: Instant,
    ) -> Result<(BundleResult, String), Refused> {
        let opened = self.open(path, file, started).await?;
        let progress = Progress::start(shown(path), Doing::Sending);
        self.carry_out(path, opened, owner, &progress, &HashMap::new(), started)
            .await
    }

    async fn read_stream(
        &self,
        path: &Path,
        stream: Stream,
        owner: Owner,
        started: Instant,
    ) -> Result<(BundleResult, String), Refused> {
        let client = &self.runtime.client;
        let refused =
            |why: String| Box::new(BundleResult::refused(path, why, Cause::Other, started.elapsed()));
        if self.settings.checksums == Checksums::Require {
            return Err(refused(Failure::NoFile.to_string()));
        }
        let spool = Spool {
            folder: self.settings.state_dir.clone(),
            most: self.spool,
            min_free: self.settings.min_free,
        };
        let order = self.order(path, None, None);
        let piped = admit::open_pipe(stream, order, spool).await;
        let progress = Progress::start(shown(path), Doing::Sending);
        let pipe = match piped.map_err(|failure| not_opened(path, failure, started))? {
            Piped::Judged(opened) => {
                let opened = judged(path, *opened, started)?;
                return self
                    .carry_out(path, opened, owner, &progress, &HashMap::new(), started)
                    .await;
            }
            Piped::Passing(_) if self.dry_run => {
                let why = "a dry run needs the list of images first, and in this pipe it comes last: copy the file to \
                           the node, or send a bundle that `airgapd bundle merge` has made";
                return Err(refused(why.to_owned()));
            }
            Piped::Passing(pipe) => pipe,
        };
        let intent = self.intent(owner.source.clone());
        let brought = import::take_blobs(client, *pipe, &intent, &owner.lease_id, progress.observer()).await;
        let brought =
            brought.map_err(|error| Box::new(BundleResult::untried(path, &error, started.elapsed())))?;
        let opened = Opened::allowed(brought.bundle);
        let (result, plan) = self
            .carry_out(path, opened, owner, &progress, &brought.sent, started)
            .await?;
        Ok((result.with_reasons(&brought.left_out), plan))
    }

    /// Imports a bundle that the rules allow. `sent` has the blobs that were sent before.
    async fn carry_out(
        &self,
        path: &Path,
        mut opened: Opened,
        owner: Owner,
        progress: &Progress,
        sent: &HashMap<Digest, u64>,
        started: Instant,
    ) -> Result<(BundleResult, String), Refused> {
        let untried = |error: import::Error| Box::new(BundleResult::untried(path, &error, started.elapsed()));
        let evidence = opened.evidence(Timestamp::now()).filter(|_| !self.dry_run);
        let sum = opened.take_sum();
        if let Some(evidence) = evidence.clone() {
            let kept = self.keep(evidence, &BTreeSet::new());
            kept.map_err(|why| Box::new(BundleResult::refused(path, why, Cause::Other, started.elapsed())))?;
        }
        let mut policy = self.policy.clone();
        policy.naming.scopes = opened.scopes;
        let signers: Vec<SignerEntry> = match opened.verdict {
            Verdict::Admitted(admission) => admission.signers.into_iter().map(SignerEntry::from).collect(),
            Verdict::Allowed | Verdict::Missing(_) | Verdict::Forbidden(_) => Vec::new(),
        };
        let bundle = Arc::new(opened.bundle);
        let (mut leave, of_others) = self.left_out(&bundle, &policy, &signers);
        let withheld: BTreeSet<String> = of_others.keys().cloned().collect();
        leave.extend(of_others);
        let going = match &owner.source {
            // The daemon makes the receipt. A file that leaves a name to another one stays.
            Source::Bundle(_) if leave.is_empty() => {
                runtime::going(self.settings, self.runtime, path, bundle.identity())
            }
            Source::Bundle(_) | Source::Hand(_) | Source::Receipt(_) => 0,
        };
        let mut intent = Intent {
            leave,
            signer: ledger::signers(&signers),
            unpack: self.unpack().await.map_err(untried)?,
            ..self.intent(owner.source)
        };
        intent.space.going = going;
        let imported = import::import(
            &self.runtime.client,
            &bundle,
            &policy,
            &intent,
            &owner.lease_id,
            self.dry_run,
            progress.observer(),
        );
        let imported = imported.await.map_err(untried)?;
        let mut result = imported.result.with_sent(&imported.selection, sent);
        let mut landed = evidence.map(|evidence| evidence.with_landed(result.landed_records()));
        if let Some(sum) = sum.filter(|_| failure(&result).is_none())
            && let Some(evidence) = landed.take()
        {
            landed = Some(sum.add_to(evidence).await);
        }
        let mut problem = landed.and_then(|evidence| self.keep(evidence, &withheld).err());
        let is_whole = failure(&result).is_none() || result.outcome == Outcome::Skipped;
        if self.leaves_receipts && problem.is_none() && is_whole {
            let left = self
                .leave_receipt(&bundle, &policy, &intent, &result, owner.nameless)
                .await;
            match left {
                Ok(None) => {}
                Ok(Some(note)) => result.warnings.push(note),
                Err(why) => problem = Some(why),
            }
        }
        if let Some(why) = problem {
            (result.error, result.cause) = (Some(why), Some(Cause::Other));
            result.outcome = match result.landed() {
                true => Outcome::Partial,
                false => Outcome::Failed,
            };
        }
        Ok((result, imported.plan.to_string()))
    }

    /// Returns the rules for writing records, without those that depend on the bundle.
    fn intent(&self, source: Source) -> Intent {
        Intent {
            priority: self.settings.priority.clone(),
            space: runtime::space(self.settings, self.runtime),
            pace: Arc::clone(&self.pace),
            most_records: self.settings.most_records,
            ..Intent::new(source, self.settings.on_conflict)
        }
    }

    /// Returns the order to open a bundle and to hold it against the rules.
    fn order(&self, path: &Path, folder: Option<PathBuf>, checksum: Option<Digest>) -> admit::Order {
        admit::Order {
            path: path.to_owned(),
            folder,
            name: path.file_name().unwrap_or_default().to_owned(),
            limits: self.settings.limits.clone(),
            checksum,
            rules: Rules::of(self.settings),
            more: self.proofs.to_vec(),
            evidence: None,
            receipt: None,
            leaves_receipt: self.leaves_receipts,
        }
    }

    /// Keeps the evidence of an admission where the daemon keeps it. Returns why that failed. The
    /// daemon may run meanwhile.
    fn keep(&self, evidence: Evidence, withheld: &BTreeSet<String>) -> Result<(), String> {
        let kept = admitted::keep(&self.settings.state_dir, evidence, |name| withheld.contains(name));
        kept.map_err(|error| format!("the evidence of its signature cannot be written: {error}"))
    }

    /// Ends the evidence of former imports whose records are gone. A ledger that cannot be read may
    /// need any evidence.
    async fn end_evidence(&self) {
        if self.settings.signatures.is_none() || self.dry_run {
            return;
        }
        let Some(ledger) = ledger::read_or_empty(&self.settings.state_dir) else {
            return;
        };
        if receipts::is_any_unread(self.settings, &ledger) {
            // Its images may need any evidence, too.
            return;
        }
        let is_imported = |catalog: &Digest| ledger.has_imported(catalog);
        let ended = admit::end_evidence(&self.settings.state_dir, &self.runtime.client, is_imported).await;
        if let Err(why) = ended {
            tracing::debug!("{why}");
        }
    }
}

impl Import<'_> {
    /// Makes the receipt of a bundle that is in place, and imports it as the daemon would. Returns
    /// a note if the bundle needs none. `nameless` has the bytes of a bundle without a file name.
    async fn leave_receipt(
        &self,
        bundle: &Arc<Bundle>,
        policy: &Policy,
        intent: &Intent,
        result: &BundleResult,
        nameless: Option<Arc<AtomicU64>>,
    ) -> Result<Option<String>, String> {
        let client = &self.runtime.client;
        let (name, mark) = match &intent.source {
            Source::Bundle(name) | Source::Receipt(name) => (name, None),
            Source::Hand(name) => (name, Some(name.as_str())),
        };
        let of = receipts::Of {
            bundle,
            records: &result.landed_records().collect(),
            name,
            by_hand: mark.is_some(),
            nameless: nameless.map(|bytes| bytes.load(Ordering::Relaxed)),
            policy,
        };
        let path = match receipts::make(client, of, self.settings, &self.pace, |_| {}).await {
            Ok(path) => path,
            Err(error @ Unmade::Nothing) => return Ok(Some(format!("there is no receipt: {error}"))),
            Err(error) => {
                let why = basics::chain(&error);
                return Err(format!("the images are in place, without a receipt: {why}"));
            }
        };
        let name = ledger::label_name(path.as_os_str());
        let taking = Intent {
            source: Source::Receipt(name.clone()),
            ..intent.clone()
        };
        let taken = receipts::take(client, &path, policy, &taking, mark, &self.settings.limits).await;
        taken.map_err(|error| format!("the receipt {name} is written, but not taken: {error}"))?;
        Ok(None)
    }

    /// Returns the unpacker and the time to unpack. A command has no background, so it unpacks
    /// after the records instead.
    async fn unpack(&self) -> Result<Option<(Unpacker, UnpackWhen)>, import::Error> {
        let when = match self.settings.unpack {
            Unpack::None => return Ok(None),
            Unpack::Background => UnpackWhen::AfterRecords,
            Unpack::BeforeRecord => UnpackWhen::BeforeRecord,
        };
        let unpacker = runtime::unpacker(self.settings, self.runtime).await?;
        Ok(Some((unpacker, when)))
    }

    /// Returns the names that `exclude` keeps out of a bundle, and those that the keys of other
    /// bundles keep out. A delta counts with its base.
    fn left_out(
        &self,
        bundle: &Bundle,
        policy: &Policy,
        signers: &[SignerEntry],
    ) -> (BTreeMap<String, String>, BTreeMap<String, String>) {
        let selection = import::select(&bundle.catalog().with_its_base(), policy);
        let records = selection.taken().flat_map(|taken| &taken.records);
        let records: Vec<_> = records
            .map(|record| (record.name.as_str(), record.target.digest()))
            .collect();
        let names = records.iter().map(|(name, _)| *name);
        let left = desired::left_out(names, &self.settings.exclude);
        let mut withheld = BTreeMap::new();
        let ledger = self
            .settings
            .signatures
            .and_then(|_| ledger::read(&self.settings.state_dir));
        if let Some(ledger) = ledger {
            let trusted = TrustedKeys::read(&self.settings.trusted_keys);
            let usable = trusted.keys().usable().iter();
            let is_trusted = |key: &Digest| usable.clone().any(|usable| usable.key.fingerprint() == key);
            let others = desired::of_other_keys(&ledger, records, signers, is_trusted);
            withheld.extend(others.into_iter().map(|(name, (_, why))| (name.to_owned(), why)));
        }
        (left, withheld)
    }

    /// Opens a file as a bundle, and holds it against the rules of the node.
    async fn open(&self, path: &Path, file: File, started: Instant) -> Result<Opened, Refused> {
        let (folder, checksum) = match input::is_stdin(path) {
            // No file lies beside standard input.
            true if self.settings.checksums == Checksums::Require => (None, Err(Failure::NoFile)),
            true => (None, Ok(None)),
            false => (
                Some(beside(path).to_owned()),
                checksum(&file, path, self.settings.checksums),
            ),
        };
        let checksum = checksum.map_err(|failure| not_opened(path, failure.into(), started))?;
        let opened = admit::open(file, self.order(path, folder, checksum)).await;
        judged(
            path,
            opened.map_err(|failure| not_opened(path, failure, started))?,
            started,
        )
    }
}

/// Returns the result of a file that was not opened.
fn not_opened(path: &Path, failure: admit::Failure, started: Instant) -> Refused {
    let refused = |why: String, cause| Box::new(BundleResult::refused(path, why, cause, started.elapsed()));
    match failure {
        admit::Failure::Bundle(error) => Box::new(BundleResult::unreadable(path, &error, started.elapsed())),
        admit::Failure::Checksum(failure) => {
            let cause = match failure {
                Failure::Mismatch { .. } => Cause::Bundle,
                Failure::Changed | Failure::Read(_) => Cause::File,
                Failure::Missing { .. } | Failure::NoFile | Failure::Unusable { .. } => Cause::Other,
            };
            refused(failure.to_string(), cause)
        }
        failure @ (admit::Failure::Growing(_) | admit::Failure::Proof(_) | admit::Failure::Spool(_)) => {
            refused(failure.to_string(), Cause::Other)
        }
    }
}

/// Returns the bundle if the rules allow it.
fn judged(path: &Path, opened: Opened, started: Instant) -> Result<Opened, Refused> {
    let refused = |why: &str, cause| {
        Box::new(BundleResult::refused(
            path,
            why.to_owned(),
            cause,
            started.elapsed(),
        ))
    };
    match &opened.verdict {
        Verdict::Allowed | Verdict::Admitted(_) => Ok(opened),
        Verdict::Missing(why) => Err(refused(why, Cause::Other)),
        Verdict::Forbidden(Forbidden { why, by }) => {
            let cause = match by {
                By::Signatures | By::Revocation => Cause::Bundle,
                By::TrustedDigests | By::UnreadableRevocations | By::Keys => Cause::Other,
            };
            Err(refused(why, cause))
        }
    }
}

fn open_file(path: &Path) -> Result<File, bundle::Error> {
    folder::open_path(path).map_err(|source| bundle::Error {
        path: path.to_owned(),
        fault: bundle::Fault::Io {
            action: "open the file",
            source,
        },
    })
}

/// Returns the checksum beside a bundle. An entry that is neither file nor folder has none here:
/// the reader refuses it.
fn checksum(file: &File, path: &Path, mode: Checksums) -> Result<Option<Digest>, Failure> {
    if mode == Checksums::Require && is_folder(file) {
        return Err(Failure::NoFile);
    }
    let is_file = file.metadata().is_ok_and(|metadata| metadata.is_file());
    if mode == Checksums::Off || !is_file {
        return Ok(None);
    }
    let name = path.file_name().unwrap_or(OsStr::new(""));
    let sidecar = Folder::open_dir(beside(path))
        .map_err(folder::Refused::Unreadable)
        .and_then(|folder| folder.open(&sidecar_of(name)));
    sidecar::expected(name, sidecar, mode)
}

/// Returns the folder of a file.
fn beside(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Opens a bundle without a check of its checksum.
pub(super) async fn open(path: &Path, limits: &bundle::Limits) -> Result<Bundle, bundle::Error> {
    read(open_file(path)?, path, limits).await
}

/// Reads the catalog of an open bundle on a separate thread, since that blocks.
async fn read(file: File, path: &Path, limits: &bundle::Limits) -> Result<Bundle, bundle::Error> {
    let (path, limits) = (path.to_owned(), limits.clone());
    let read = move || match is_folder(&file) {
        true => Bundle::from_dir(file, &path, &limits),
        false => Bundle::from_file(file, &path, &limits),
    };
    let opened = tokio::task::spawn_blocking(read).await;
    opened.expect("reading a bundle never panics")
}

fn is_folder(file: &File) -> bool {
    file.metadata().is_ok_and(|metadata| metadata.is_dir())
}

/// Returns the source that vouches for the images of a file, and the id of the lease. Both depend
/// on the file's place: an images folder or another.
fn whose(path: &Path, node: &Place, recursive: bool) -> Owner {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    if let Some(name) = name_of(&path, node, recursive) {
        let lease_id = bundle_id(&name);
        return Owner {
            source: Source::Bundle(name),
            lease_id,
            nameless: None,
        };
    }
    by_hand(path.file_name().unwrap_or(path.as_os_str()), path.as_os_str())
}

/// Returns the owner of images that are imported by hand. The lease follows from `place`.
fn by_hand(name: &OsStr, place: &OsStr) -> Owner {
    Owner {
        source: Source::Hand(name.to_string_lossy().into_owned()),
        lease_id: basics::digest::short(place.as_encoded_bytes()),
        nameless: None,
    }
}

/// Returns the name of a file for people.
fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// Returns the daemon's name of a file if the daemon would find it in an images folder. A link in
/// the folder counts as a file of the folder.
fn name_of(path: &Path, node: &Place, recursive: bool) -> Option<String> {
    let more = node.more_dirs.iter();
    let more = more.filter_map(|folder| Some(folder.join(name_in(path, folder, recursive)?)));
    let name = name_in(path, &node.images_dir, recursive)
        .into_iter()
        .chain(more)
        .next()?;
    Some(node::state::ledger::label_name(name.as_os_str()))
}

/// Returns the path of a file in a folder, if the daemon would find it there.
fn name_in(path: &Path, folder: &Path, recursive: bool) -> Option<PathBuf> {
    let parent = path.parent()?.canonicalize().ok()?;
    let below = parent.strip_prefix(folder.canonicalize().ok()?).ok()?;
    let is_reached = recursive || below.as_os_str().is_empty();
    let name = below.join(path.file_name()?);
    is_reached.then_some(name)
}

/// Returns one exit status for all bundles. An unreachable containerd comes first. Then it matters
/// if any image was imported, and if the bundles caused all failures.
fn exit(results: &[BundleResult]) -> Exit {
    let causes: Vec<Cause> = results.iter().filter_map(failure).collect();
    let landed = results.iter().any(BundleResult::landed);
    match causes.as_slice() {
        [] => Exit::Done,
        causes if causes.contains(&Cause::Unreachable) => Exit::Unreachable,
        causes if !landed && causes.iter().all(|cause| *cause == Cause::Bundle) => Exit::BadBundle,
        _ => Exit::Failed,
    }
}

fn failure(result: &BundleResult) -> Option<Cause> {
    let is_unpacked = result
        .unpacked
        .as_ref()
        .is_none_or(|unpacked| unpacked.failed.is_empty());
    match result.outcome {
        // Its records are in place, but its containers will not start.
        Outcome::Imported | Outcome::Unchanged if !is_unpacked => Some(Cause::Other),
        Outcome::Imported | Outcome::Unchanged => None,
        // The bundle is sound, but none of its images is in place.
        Outcome::Skipped => Some(Cause::Other),
        Outcome::Partial | Outcome::Failed => Some(result.cause.unwrap_or(Cause::Other)),
    }
}
