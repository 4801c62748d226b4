//! The daemon: one loop that owns the work list.
//!
//! A watch is a listing followed by changes, and a lost change is a new listing. So every turn of the loop is the same:
//! list the folder if something hints at a change, connect to containerd if there is none, compare what the ledger
//! knows with what containerd has if that is due, and take on at most one file. Whatever happens meanwhile waits its
//! turn in a channel. Dropping the loop's future at any await loses nothing: what matters is in containerd under a lease
//! and in the ledger.

mod leaving;
mod one;
mod telling;

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bundle::Identity;
use containerd::ImageEvents;
use import::{LEASE_PREFIX, Policy, Survey, bundle_id, labels};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::telling::{Refusals, shown};
use crate::config::{Checksums, Settings};
use crate::desired::{self, Moved, Standing};
use crate::folder::{self, Class, Depth, Folder, FolderTrust, Listing, Reason};
use crate::healing::Healing;
use crate::ledger::{self, Context, Ledger, Saved, Store};
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
/// How often systemd hears of progress while there is work: its socket takes few messages at a time.
const STATUS_PACE: Duration = Duration::from_secs(1);
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
    /// Why bundles that are not in the folder are not taken for gone, when that is so.
    vanished: Option<String>,
    /// Which folder this is; once it was there, another one in its place is not created by us.
    place: Option<(u64, u64)>,
    /// What was said about the folder's permissions.
    warned: Option<String>,
    /// Which refusals are told by name.
    refusals: Refusals,
    /// How the folder of trusted digests looked when the bundles were last held against it.
    trusted: Option<Vec<(OsString, Identity)>>,
    relist: bool,
    /// The ledger has news that can wait until there is nothing else to do.
    unsaved: bool,
    status_said: Instant,
    connection: Connection,
    systemd: Systemd,
    healing: Healing,
    /// Records that others moved, and where to, as far as it was said.
    moved: HashSet<(String, String)>,
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
            vanished: None,
            place: None,
            warned: None,
            refusals: Refusals::default(),
            trusted: None,
            relist: false,
            unsaved: false,
            status_said: now,
            connection: Connection::Down {
                next: now,
                wait: FIRST_WAIT,
                said: None,
            },
            systemd: Systemd::from_environment(),
            healing: Healing::default(),
            moved: HashSet::new(),
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
            if !worked || self.status_said.elapsed() >= STATUS_PACE {
                self.systemd.status(&self.status());
                self.status_said = Instant::now();
            }
            if !worked {
                self.refusals.sum_up();
                if std::mem::take(&mut self.unsaved) {
                    self.save();
                }
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
        // A folder that was there and is gone has been moved, unmounted or removed; only its owner knows which.
        let create = self.place.is_none();
        match if create {
            folder::ensure(&self.images_dir)
        } else {
            Ok(false)
        } {
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
        self.place = Some(folder.place());
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
        let told = self.roster.list(listed, Instant::now(), known);
        let ignored = told.len();
        for (name, reason) in told.into_iter().take(MOST_IGNORED) {
            info!(file = %shown(&name), "ignored: {reason}");
        }
        if ignored > MOST_IGNORED {
            info!("{} more files were ignored", ignored - MOST_IGNORED);
        }
        self.recall_damage();
        self.notice_gone();
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
        let count = |is: fn(Phase) -> bool| self.roster.count(is);
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
            folder: self.ledger.context.folder,
            program: Some(ledger::PROGRAM.to_owned()),
        };
        if self.ledger.context.selection.is_some() && self.ledger.context.selection != context.selection {
            info!("the node's platform or the configuration changed: every bundle is looked at again");
            for name in self.roster.names(|phase| {
                matches!(
                    phase,
                    Phase::Known | Phase::Done | Phase::Failed { retry: None, .. }
                )
            }) {
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
            Ok(survey) => {
                self.compare(&survey);
                if let Err(error) = self.withdraw(&survey).await {
                    return self.lost(&error);
                }
            }
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
                if self.moved.insert((image.clone(), to.to_string())) {
                    warn!(bundle = %shown(&name), image, "somebody else moved the record from {from} to {to}: left alone");
                }
            }
            match standing {
                Standing::InPlace => self.roster.set(&name, Phase::Done),
                Standing::Missing(what) => self.restore(&name, &what),
            }
        }
    }

    /// Imports a bundle again, of which something is missing in containerd: at once, or later when that happens again
    /// and again.
    fn restore(&mut self, name: &OsStr, what: &str) {
        let bundle = shown(name);
        let now = Instant::now();
        match self.healing.wait(name, now) {
            None => {
                info!(
                    bundle,
                    outcome = "restored",
                    "{what} is missing in containerd: restoring it"
                );
                self.roster.set(name, Phase::Ready);
            }
            Some(wait) => {
                warn!(
                    bundle,
                    "{what} is missing in containerd once more: somebody seems to remove it on purpose, so it is restored in {wait:?}"
                );
                self.roster.postpone(name, now + wait);
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
