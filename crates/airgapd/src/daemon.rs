//! The daemon: one loop that owns the work list.
//!
//! A watch is a listing followed by changes, and a lost change is a new listing. So every turn of the loop is the same:
//! list the folder if something hints at a change, connect to containerd if there is none, compare what the ledger
//! knows with what containerd has if that is due, and take on at most one file. Whatever happens meanwhile waits its
//! turn in a channel. Dropping the loop's future at any await loses nothing: what matters is in containerd under a lease
//! and in the ledger.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bundle::{Bundle, Identity};
use containerd::{Client, ImageEvents};
use import::{
    BundleReport, ImageOutcome, ImageReport, Intent, LEASE_PREFIX, Outcome, Policy, Selection, Source,
    Survey, Verdict, bundle_id, labels,
};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::checksum::{self, Checksum, sidecar_of};
use crate::config::{Checksums, Settings};
use crate::desired::{self, Moved, Standing};
use crate::folder::{
    self, Class, Depth, Ending, Folder, FolderTrust, Listing, Observation, Reason, Refused, Settle, Writer,
};
use crate::ledger::{self, Context, ErrorClass, Imported, LastError, Ledger, Saved, Store};
use crate::lists;
use crate::progress::Progress;
use crate::roster::{Phase, Roster, Version};
use crate::runtime::{self, Runtime, Unusable};
use crate::systemd::Systemd;
use crate::trust;
use crate::watch::Watch;

/// The first wait for a containerd that is not there, doubled up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Events of containerd come in bursts; the comparison they ask for waits this long for the rest.
const BURST: Duration = Duration::from_millis(200);
/// Of how many ignored files a listing tells by name; the others are counted.
const MOST_IGNORED: usize = 20;
/// How long the loop sleeps at most when nothing is due.
const IDLE: Duration = Duration::from_secs(3600);

/// Runs until `stop` is cancelled.
///
/// # Errors
///
/// What keeps the daemon from starting: another daemon has the state folder, the folder cannot be watched at all.
/// Everything that comes later is logged and waited out.
pub(crate) async fn run(
    settings: Settings,
    node: crate::node::Runtime,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut daemon = Daemon::start(settings, node)?;
    tokio::select! {
        () = stop.cancelled() => {}
        never = daemon.work() => match never {},
    }
    daemon.systemd.stopping();
    daemon.save();
    info!("stopped");
    Ok(())
}

enum Never {}

struct Daemon {
    settings: Settings,
    images_dir: PathBuf,
    socket: PathBuf,
    watch: Watch,
    store: Store,
    ledger: Ledger,
    roster: Roster,
    /// Why nothing can be imported from the folder at the moment, when that is so; said once for each reason.
    trouble: Option<String>,
    /// What was said about the folder's permissions.
    warned: Option<String>,
    /// How the folder of trusted digests looked when the bundles were last held against it.
    trusted: Option<Vec<(OsString, Identity)>>,
    relist: bool,
    connection: Connection,
    systemd: Systemd,
}

enum Connection {
    /// Nothing was heard of it yet, or it went away.
    Down {
        next: Instant,
        wait: Duration,
        said: Option<String>,
    },
    Up(Box<Up>),
}

struct Up {
    runtime: Runtime,
    events: ImageEvents,
    policy: Policy,
    /// When the ledger is to be compared with containerd.
    compare: Instant,
    /// Leases of bundles that are done or gone are given back after the first comparison.
    leases_swept: bool,
}

impl Daemon {
    fn start(settings: Settings, node: crate::node::Runtime) -> anyhow::Result<Daemon> {
        let (store, ledger, notices) = Store::open(&settings.state_dir)?;
        for notice in notices {
            warn!("{notice}");
        }
        let watch = Watch::start(&node.images_dir).context("cannot watch the images folder")?;
        let now = Instant::now();
        Ok(Daemon {
            images_dir: node.images_dir,
            socket: node.socket,
            watch,
            store,
            ledger,
            roster: Roster::default(),
            trouble: None,
            warned: None,
            trusted: None,
            relist: false,
            connection: Connection::Down {
                next: now,
                wait: FIRST_WAIT,
                said: None,
            },
            systemd: Systemd::from_environment(),
            settings,
        })
    }

    async fn work(&mut self) -> Never {
        self.list();
        self.systemd.ready();
        loop {
            if std::mem::take(&mut self.relist) {
                self.list();
            }
            self.connect_if_due().await;
            self.compare_if_due().await;
            let worked = self.work_on_one().await;
            self.systemd.status(&self.status());
            if !worked {
                self.wait().await;
            }
        }
    }

    /// Sleeps until something is due or something happens.
    async fn wait(&mut self) {
        let now = Instant::now();
        let connected = matches!(self.connection, Connection::Up(_));
        let mut wake = self.roster.next_due(connected).unwrap_or(now + IDLE);
        wake = wake.min(match &self.connection {
            Connection::Down { next, .. } => *next,
            Connection::Up(up) => up.compare,
        });
        tokio::select! {
            () = self.watch.changed() => self.relist = true,
            () = tokio::time::sleep_until(wake.into()) => {}
            change = next_event(&mut self.connection) => self.on_event(change),
        }
    }

    fn on_event(&mut self, event: Option<containerd::ImageEvent>) {
        let Connection::Up(up) = &mut self.connection else {
            return;
        };
        let Some(event) = event else {
            warn!("containerd went away");
            self.connection = Connection::Down {
                next: Instant::now(),
                wait: FIRST_WAIT,
                said: None,
            };
            return;
        };
        if self.ledger.desired_images().contains_key(event.name.as_str()) {
            debug!(image = event.name, "a managed record changed");
            up.compare = up.compare.min(Instant::now() + BURST);
        }
    }
}

/// Waits for ever while there is no connection: nothing happens on it.
async fn next_event(connection: &mut Connection) -> Option<containerd::ImageEvent> {
    match connection {
        Connection::Up(up) => up.events.next().await,
        Connection::Down { .. } => std::future::pending().await,
    }
}

/// The folder.
impl Daemon {
    fn list(&mut self) {
        match self.listing() {
            Ok(listed) => {
                self.trouble = None;
                self.take_over(listed);
                self.look_at_trust();
            }
            Err(reason) => {
                if self.trouble.as_ref() != Some(&reason) {
                    warn!("{}: {reason}", self.images_dir.display());
                }
                self.trouble = Some(reason);
            }
        }
    }

    fn listing(&mut self) -> Result<Listing, String> {
        match folder::ensure(&self.images_dir) {
            Ok(true) => info!("created the images folder {}", self.images_dir.display()),
            Ok(false) => {}
            Err(error) => {
                return Err(format!(
                    "cannot create the images folder: {error}; waiting for it"
                ));
            }
        }
        let folder = self
            .folder()
            .map_err(|error| format!("cannot open the images folder: {error}"))?;
        match folder::judge(&folder, &self.images_dir, self.settings.allow_insecure_dir) {
            FolderTrust::Trusted => {}
            FolderTrust::Warning(why) => {
                if self.warned.as_ref() != Some(&why) {
                    warn!("{}: {why}", self.images_dir.display());
                }
                self.warned = Some(why);
            }
            FolderTrust::Refused(why) => return Err(format!("nothing is imported: {why}")),
        }
        let depth = Depth {
            recursive: self.settings.recursive,
            allow_insecure: self.settings.allow_insecure_dir,
        };
        folder
            .list(depth)
            .map_err(|error| format!("cannot list the images folder: {error}"))
    }
}

impl Daemon {
    fn folder(&self) -> std::io::Result<Folder> {
        Folder::open_dir(&self.images_dir)
    }

    fn take_over(&mut self, listing: Listing) {
        self.watch.also(listing.folders);
        let mut listed = listing.entries;
        if self.settings.checksums == Checksums::Off {
            listed.retain(|entry| entry.class != Class::Ignored(Reason::Checksum));
        }
        let ledger = &self.ledger;
        let known = |name: &OsStr, version: &Version| is_known(ledger, name, version);
        let changes = self.roster.list(listed, Instant::now(), known);
        let ignored = changes.ignored.len();
        for (name, reason) in changes.ignored.into_iter().take(MOST_IGNORED) {
            info!(file = %shown(&name), "ignored: {reason}");
        }
        if ignored > MOST_IGNORED {
            info!("{} more files were ignored", ignored - MOST_IGNORED);
        }
        for name in changes.gone {
            info!(bundle = %shown(&name), "the bundle is gone; its images stay as they are");
            self.ledger.forget(&name);
        }
        if !self.roster.names(|phase| phase == Phase::Known).is_empty() {
            self.compare_soon();
        }
    }

    /// Holds the bundles against the trusted digests again when those have changed.
    fn look_at_trust(&mut self) {
        let Some(folder) = &self.settings.trusted_digests else {
            return;
        };
        let stamp = Some(trust::stamp(folder));
        if self.trusted == stamp {
            return;
        }
        let ledger = &self.ledger;
        let is_settled = |phase| {
            matches!(
                phase,
                Phase::Known | Phase::Done | Phase::Failed { retry: None, .. }
            )
        };
        let mut names = self.roster.names(is_settled);
        names.retain(|name| {
            let entry = ledger.get(name);
            let catalog = entry.and_then(|entry| Some(&entry.imported.as_ref()?.catalog));
            entry.is_some_and(ledger::Entry::is_refused)
                || catalog.is_some_and(|catalog| trust::check(folder, catalog).is_err())
        });
        for name in names {
            self.roster.set(&name, Phase::Ready);
        }
        self.trusted = stamp;
    }

    fn compare_soon(&mut self) {
        if let Connection::Up(up) = &mut self.connection {
            up.compare = Instant::now();
        }
    }

    fn save(&mut self) {
        match self.store.save(&self.ledger) {
            Saved::Written | Saved::Unchanged | Saved::NotSaved(None) => {}
            Saved::NotSaved(Some(notice)) => warn!("{notice}"),
        }
    }

    fn status(&self) -> String {
        let count = |is: fn(Phase) -> bool| self.roster.names(is).len();
        let containerd = match &self.connection {
            Connection::Up(up) => format!("containerd {}", up.runtime.version.text),
            Connection::Down { .. } => format!("waiting for containerd on {}", self.socket.display()),
        };
        let done = count(|phase| phase == Phase::Done);
        let failed = count(|phase| matches!(phase, Phase::Failed { .. }));
        let waiting = count(|phase| {
            matches!(
                phase,
                Phase::Settling { .. } | Phase::Ready | Phase::Known | Phase::Waiting
            )
        });
        let trouble = self
            .trouble
            .as_ref()
            .map(|why| format!("; {why}"))
            .unwrap_or_default();
        format!("{done} bundles in place, {waiting} waiting, {failed} failed; {containerd}{trouble}")
    }
}

/// Whether the ledger's last import of a bundle is of this very file, checked against this very checksum, and nothing
/// was left to try again.
fn is_known(ledger: &Ledger, name: &OsStr, version: &Version) -> bool {
    ledger.get(name).is_some_and(|entry| {
        let imported = entry.imported.as_ref().is_some_and(|imported| {
            imported.identity == version.identity && imported.sidecar == version.sidecar
        });
        imported && entry.identity == version.identity && entry.last_error.is_none()
    })
}

/// A file name for people and logs: control bytes escaped.
fn shown(name: &OsStr) -> String {
    import::printable(&name.to_string_lossy())
        .trim_matches('"')
        .to_owned()
}

/// containerd.
impl Daemon {
    async fn connect_if_due(&mut self) {
        let Connection::Down { next, .. } = &self.connection else {
            return;
        };
        if *next > Instant::now() {
            return;
        }
        match self.connect().await {
            Ok(up) => {
                let Runtime {
                    version, platform, ..
                } = &up.runtime;
                info!(
                    "connected to containerd {} on {}; this node is {platform}",
                    version.text,
                    self.socket.display()
                );
                self.check_context(&up);
                self.connection = Connection::Up(Box::new(up));
                self.roster.doubt();
            }
            Err(error) => self.wait_for_containerd(&error),
        }
    }

    async fn connect(&self) -> Result<Up, Unusable> {
        let runtime = runtime::connect(&self.socket, &self.settings).await?;
        // First the subscription, then the comparison: what happens in between is then not lost.
        let events = runtime.client.image_events().await?;
        let policy = runtime::policy(&self.settings, Some(&runtime));
        Ok(Up {
            runtime,
            events,
            policy,
            compare: Instant::now(),
            leases_swept: false,
        })
    }

    fn wait_for_containerd(&mut self, error: &Unusable) {
        let Connection::Down { next, wait, said } = &mut self.connection else {
            return;
        };
        let text = match error.is_unreachable() {
            true => format!("no containerd on {}", self.socket.display()),
            false => import::chain(error),
        };
        if said.as_ref() != Some(&text) {
            warn!("{text}; waiting for it ({})", import::chain(error));
        }
        *said = Some(text);
        *next = Instant::now() + *wait;
        *wait = (*wait * 2).min(LONGEST_WAIT);
    }

    /// What the ledger says holds for one containerd, one boot and one set of rules.
    fn check_context(&mut self, up: &Up) {
        let context = Context {
            containerd: Some(up.runtime.uuid.clone()),
            boot: ledger::boot_id(),
            selection: Some(runtime::fingerprint(&self.settings, &up.runtime)),
        };
        if self.ledger.context.selection.is_some() && self.ledger.context.selection != context.selection {
            info!("the node's platform or the configuration changed: every bundle is looked at again");
            for name in self
                .roster
                .names(|phase| matches!(phase, Phase::Known | Phase::Done))
            {
                self.roster.set(&name, Phase::Ready);
            }
        }
        self.ledger.context = context;
    }

    /// Drops a connection that failed.
    fn lost(&mut self, error: &dyn std::error::Error) {
        warn!("containerd went away: {}", import::chain(error));
        self.connection = Connection::Down {
            next: Instant::now() + FIRST_WAIT,
            wait: FIRST_WAIT,
            said: None,
        };
        self.roster.doubt();
    }

    /// Compares what the ledger knows with what is there: one listing of records, one of blobs, no bundle opened.
    async fn compare_if_due(&mut self) {
        let Connection::Up(up) = &mut self.connection else {
            return;
        };
        if up.compare > Instant::now() {
            return;
        }
        up.compare = Instant::now() + self.settings.resync;
        match Survey::of(&up.runtime.client, &desired::digests(&self.ledger)).await {
            Ok(survey) => self.compare(&survey),
            Err(error) => return self.lost(&error),
        }
        self.sweep_leases().await;
        self.save();
    }

    fn compare(&mut self, survey: &Survey) {
        let desired = self.ledger.desired_images();
        let mut findings: Vec<(OsString, Standing, Vec<Moved>)> = Vec::new();
        for name in self
            .roster
            .names(|phase| matches!(phase, Phase::Known | Phase::Done))
        {
            if let Some(entry) = self.ledger.get(&name) {
                let (standing, moved) = desired::standing(entry, &self.ledger, &desired, survey);
                findings.push((name, standing, moved));
            }
        }
        for (name, standing, moved) in findings {
            for Moved {
                name: image,
                from,
                to,
            } in moved
            {
                debug!(bundle = %shown(&name), image, "somebody else moved the record from {from} to {to}; left alone");
            }
            match standing {
                Standing::InPlace => self.roster.set(&name, Phase::Done),
                Standing::Missing(what) => {
                    info!(bundle = %shown(&name), "{what} is missing in containerd: restoring it");
                    self.roster.set(&name, Phase::Ready);
                }
            }
        }
    }

    /// Gives leases back that an earlier run left behind for bundles that are done or gone.
    async fn sweep_leases(&mut self) {
        let Connection::Up(up) = &mut self.connection else {
            return;
        };
        if std::mem::replace(&mut up.leases_swept, true) {
            return;
        }
        let client = up.runtime.client.clone();
        let pending = self.roster.names(|phase| !matches!(phase, Phase::Done));
        let kept: Vec<String> = pending
            .iter()
            .map(|name| format!("{LEASE_PREFIX}{}", bundle_id(&name.to_string_lossy())))
            .collect();
        let swept = async {
            for lease in client
                .leases()
                .await?
                .into_iter()
                .filter(|lease| lease.id.starts_with(LEASE_PREFIX))
            {
                let mark = lease.labels.get(labels::LEASE_MARK);
                if mark.is_some_and(|mark| mark.starts_with(labels::LEASE_OF_BUNDLE))
                    && !kept.iter().any(|id| lease.id.starts_with(id.as_str()))
                {
                    debug!(lease = lease.id, "giving back a lease that was left behind");
                    client.delete_lease(&lease.id, false).await?;
                }
            }
            Ok::<(), containerd::Error>(())
        };
        if let Err(error) = swept.await {
            self.lost(&error);
        }
    }
}

/// One file at a time.
impl Daemon {
    /// Takes on the file that is due, if any.
    async fn work_on_one(&mut self) -> bool {
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
                warn!(bundle = %shown(&name), "not imported: {refused}");
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
        let ending = Ending::of(&file, version.identity.size);
        if !version.is_layout
            && ending.is_ok_and(|ending| lists::is_list(name, ending, version.identity.size))
        {
            return self.provide_list(name, file, version, &client).await;
        }
        self.import_bundle(name, file, version, &client, &policy).await;
        self.save();
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
        // An incomplete folder is opened again and again, a file once.
        if !version.is_layout {
            info!(bundle = %shown(name), "importing");
        }
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
        if mode == Checksums::Off || is_known(&self.ledger, name, version) {
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
        self.save();
    }

    fn failed(&mut self, name: &OsStr, identity: Identity, text: &str, class: ErrorClass, retry: bool) {
        error!(bundle = %shown(name), outcome = "failed", "not imported: {text}");
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
            .record_failure(name, identity, ledger_outcome(report.outcome), error);
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
            .record_import(name, ledger_outcome(report.outcome), imported, closures);
    }
}

fn ledger_outcome(outcome: Outcome) -> ledger::Outcome {
    match outcome {
        Outcome::Imported => ledger::Outcome::Imported,
        Outcome::Unchanged => ledger::Outcome::Unchanged,
        Outcome::Partial => ledger::Outcome::Partial,
        Outcome::Skipped => ledger::Outcome::Skipped,
        Outcome::Failed => ledger::Outcome::Failed,
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

fn log_report(name: &OsStr, report: &BundleReport) {
    let bundle = shown(name);
    for warning in &report.warnings {
        warn!(bundle, "{warning}");
    }
    for image in &report.images {
        log_image(&bundle, image);
    }
    let (outcome, bytes, milliseconds) = (
        report.outcome.as_str(),
        report.blobs.sent_bytes,
        report.duration_ms,
    );
    info!(
        bundle,
        outcome,
        bytes,
        milliseconds,
        "bundle {outcome}: {} sent in {milliseconds} ms",
        crate::output::bytes(bytes)
    );
}

/// One line for each image. Its `name@digest` record goes without saying.
fn log_image(bundle: &str, image: &ImageReport) {
    let reason = image.reason.as_deref().unwrap_or_default();
    let (name, digest, outcome) = (&image.name, &image.digest, image.outcome.as_str());
    match image.outcome {
        ImageOutcome::Failed => error!(
            bundle,
            image = name,
            digest,
            outcome,
            "image not imported: {reason}"
        ),
        ImageOutcome::Skipped => info!(bundle, image = name, digest, outcome, "image skipped: {reason}"),
        _ if name.contains('@') => debug!(bundle, image = name, digest, outcome, "image {outcome}"),
        ImageOutcome::Unchanged => debug!(bundle, image = name, digest, outcome, "image in place"),
        ImageOutcome::Created | ImageOutcome::Retargeted | ImageOutcome::Relabelled => {
            info!(bundle, image = name, digest, outcome, "image {outcome}");
        }
    }
}
