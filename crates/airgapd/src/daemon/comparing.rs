//! containerd: the connection, and the comparison of what the ledger knows with what is there.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::time::{Duration, Instant};

use import::{Survey, bundle_id, labels, lease};
use tracing::{debug, info, warn};

use super::telling::{shown, tell};
use super::{BURST, Connection, Daemon, REST, Up};
use crate::desired::{self, Moved, Standing};
use crate::ledger::{self, Context};
use crate::node;
use crate::roster::Phase;
use crate::runtime::{self, Runtime, Unusable};
use basics::backoff;

impl Daemon {
    pub(super) async fn connect_if_due(&mut self) {
        let Connection::Down { next } = &self.connection else {
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
                let now = Instant::now();
                tell!(
                    self.rows.connection.admits(now),
                    info,
                    "connected to containerd {} on {}; this node is {platform}",
                    version.text,
                    self.socket.display()
                );
                self.link.connected(now);
                self.check_context(&up.runtime);
                self.connection = Connection::Up(Box::new(up));
                self.forget_disk();
                self.roster.doubt();
            }
            Err(error) => self.wait_for_containerd(&error),
        }
    }

    /// Has everything compared in the next turn.
    pub(super) fn compare_soon(&mut self) {
        self.compare_within(Duration::ZERO);
    }

    /// Has everything compared no later than that.
    pub(super) fn compare_within(&mut self, wait: Duration) {
        if let Connection::Up(up) = &mut self.connection {
            up.compare = up.compare.min(Instant::now() + wait);
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
            ours_listed: false,
            rest: Instant::now(),
            leases_swept: false,
        })
    }

    fn wait_for_containerd(&mut self, error: &Unusable) {
        let text = match error.is_unreachable() {
            true => format!("no containerd on {}", self.socket.display()),
            false => basics::chain(error),
        };
        let now = Instant::now();
        let (next, is_news) = self.link.failed(&text, now, backoff::chance());
        if is_news {
            tell!(
                self.rows.connection.admits(now),
                warn,
                outcome = "unreachable",
                "{text}; waiting for it ({})",
                basics::chain(error)
            );
        }
        self.connection = Connection::Down { next };
        // Where jobs are under way there was a containerd, and it comes back.
        self.is_misplaced = self.jobs.is_empty() && self.is_elsewhere();
    }

    /// Whether folder or socket are others than when this began: k0s was installed after us, or its unit has changed.
    fn is_elsewhere(&self) -> bool {
        let found = node::decide(&node::probe(Path::new("/")), &self.settings);
        found.is_ok_and(|found| !found.is_same_place(&self.node))
    }

    /// What the ledger says holds for one containerd, one boot and one set of rules.
    pub(super) fn check_context(&mut self, runtime: &Runtime) {
        let context = Context {
            containerd: runtime.uuid.clone(),
            // Taken over when everything was looked at.
            boot: self.ledger.context.boot.take(),
            selection: Some(runtime::fingerprint(&self.settings, runtime)),
            folder: self.ledger.context.folder,
            program: Some(ledger::PROGRAM.to_owned()),
        };
        if self.ledger.context.selection.is_some() && self.ledger.context.selection != context.selection {
            info!("the node's platform or the configuration changed: every bundle is looked at again");
            let is_settled = |phase| {
                matches!(
                    phase,
                    Phase::Known
                        | Phase::Done
                        | Phase::Running
                        | Phase::Waiting
                        | Phase::Failed { retry: None }
                )
            };
            let mut names = self.roster.names(is_settled);
            names.retain(|name| !self.is_set_aside(name));
            for name in names {
                self.roster.set(&name, Phase::Ready);
            }
            self.jobs.drop_if(|_| true);
        }
        self.ledger.context = context;
    }

    /// Drops a connection on which a call failed. One on which a message was too large is as good as before: the call is
    /// made again when it is due.
    pub(super) fn lost(&mut self, error: &containerd::Error) {
        let text = basics::chain(error);
        if !matches!(error, containerd::Error::TooLarge { .. }) {
            return self.went_away(&format!("containerd went away: {text}"));
        }
        let is_told = self.rows.connection.admits(Instant::now());
        tell!(is_told, warn, outcome = "refused", "{text}");
    }

    /// Takes down that the connection is gone, if that is news.
    pub(super) fn went_away(&mut self, text: &str) {
        if let Connection::Up(_) = self.connection {
            let now = Instant::now();
            let next = self.link.lost(now, backoff::chance());
            tell!(
                self.rows.connection.admits(now),
                warn,
                outcome = "unreachable",
                "{text}"
            );
            self.connection = Connection::Down { next };
        }
        self.roster.doubt();
    }

    /// Compares what the ledger knows with what is there; no bundle is opened.
    pub(super) async fn compare_if_due(&mut self) {
        let Connection::Up(up) = &mut self.connection else {
            return;
        };
        if up.compare > Instant::now() {
            return;
        }
        up.compare = Instant::now() + self.settings.resync;
        self.requiring.doubt();
        self.unpacking.doubt();
        let begun = Instant::now();
        let boot = ledger::boot_id();
        let is_new_boot = is_new_boot(self.ledger.context.boot.as_deref(), boot.as_deref());
        match runtime::survey(&up.runtime, &self.ledger, is_new_boot).await {
            Ok(survey) => {
                if is_new_boot {
                    let (whole, lost) = (survey.blobs.len(), survey.lost.len());
                    info!(
                        "the machine was started anew: {whole} blobs of imported bundles are there, {lost} are lost"
                    );
                }
                self.ledger.context.boot = boot;
                self.compare(&survey);
                if let Err(error) = self.withdraw(survey).await {
                    return self.lost(&error);
                }
            }
            Err(error) => return self.lost(&error),
        }
        self.sweep_leases().await;
        self.save();
        if let Connection::Up(up) = &mut self.connection {
            up.rest = Instant::now() + begun.elapsed() * REST;
        }
    }

    fn compare(&mut self, survey: &Survey) {
        let desired = self.ledger.desired_images();
        let mut findings: Vec<(OsString, Standing, Vec<Moved>)> = Vec::new();
        for name in self
            .roster
            .names(|phase| matches!(phase, Phase::Known | Phase::Done))
        {
            if let Some(entry) = self.ledger.get(&name) {
                let exclude = &self.settings.exclude;
                let (standing, moved) = desired::standing(entry, &self.ledger, &desired, survey, exclude);
                findings.push((name, standing, moved));
            }
        }
        for (name, standing, moved) in findings {
            self.note_moved(&name, moved);
            match standing {
                Standing::InPlace => self.roster.set(&name, Phase::Done),
                Standing::Missing(what) => self.restore(&name, &what),
            }
        }
    }

    /// Says once of each record that somebody else moved it, and keeps in mind not to move it back.
    fn note_moved(&mut self, bundle: &OsStr, moved: Vec<Moved>) {
        for Moved { name, from, to } in &moved {
            if self.moved.insert((name.clone(), to.to_string())) {
                warn!(bundle = %shown(bundle), image = name, "somebody else moved the record from {from} to {to}: left alone");
            }
        }
        let names: BTreeSet<String> = moved.into_iter().map(|moved| moved.name).collect();
        match names.is_empty() {
            true => drop(self.elsewhere.remove(bundle)),
            false => drop(self.elsewhere.insert(bundle.to_owned(), names)),
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

    /// Has leases looked through again at the next comparison.
    pub(super) fn sweep_soon(&mut self) {
        if let Connection::Up(up) = &mut self.connection {
            up.leases_swept = false;
        }
        self.compare_within(BURST);
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
        let is_over = |phase| matches!(phase, Phase::Done | Phase::Failed { retry: None });
        let pending = self.roster.names(|phase| !is_over(phase));
        let kept: Vec<String> = pending
            .iter()
            .map(|name| format!("{}{}", lease::PREFIX, bundle_id(&ledger::label_name(name))))
            .collect();
        let swept = async {
            for lease in client.leases_beginning(lease::PREFIX).await? {
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

/// Whether the machine was started anew since the ledger was written. What nobody knows is no news.
fn is_new_boot(before: Option<&str>, now: Option<&str>) -> bool {
    matches!((before, now), (Some(before), Some(now)) if before != now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_boot_than_the_one_that_is_known_is_a_new_one() {
        assert!(is_new_boot(Some("a"), Some("b")));
        for (before, now) in [
            (Some("a"), Some("a")),
            (None, Some("a")),
            (Some("a"), None),
            (None, None),
        ] {
            assert!(!is_new_boot(before, now), "{before:?} {now:?}");
        }
    }
}
