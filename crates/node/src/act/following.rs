//! New bundles that are left to another importer first: they wait here until its pass over them is over.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::time::{Duration, Instant};

use bundle::Identity;
use jiff::Timestamp;
use tracing::{debug, info};

use super::telling::shown;
use super::{Connection, Daemon};
use crate::decide::coexistence::{self, Importer, Next, PAUSE, Pass, Sight};
use crate::images::folder::Ending;
use crate::images::pull_list;
use crate::place::Distribution;
use crate::settings::Coexistence;
use crate::state::roster::{Phase, Version};

/// Looking takes no more than this part of the time, however many records there are.
const SHARE: u32 = 4;

/// Who is waited for, and who was.
#[derive(Default)]
pub(super) struct Following {
    /// The distribution whose containerd and folder ours are.
    home: Option<Distribution>,
    /// By bundle.
    passes: BTreeMap<OsString, Pass>,
    /// Bundles whose turn it was, as they were then: a failed try is repeated without waiting again.
    over: BTreeMap<OsString, Identity>,
    /// Which importer was told of.
    said: Option<Importer>,
    next: Option<Instant>,
}

impl Following {
    pub(super) fn new(node: &crate::place::Place) -> Following {
        Following {
            home: node.is_home.then_some(node.distribution),
            ..Following::default()
        }
    }

    /// When containerd is looked at next.
    pub(super) fn next_look(&self) -> Option<Instant> {
        self.next
    }
}

impl Daemon {
    /// Leaves a finished file to others for now, where there may be any that can read it; says whether it does.
    ///
    /// Others read plain archives only, and restore nothing: what is known is imported again without waiting for them.
    pub(super) fn is_left_to_others(&mut self, name: &OsStr, file: &File, version: &Version) -> bool {
        let identity = &version.identity;
        let is_plain = || {
            let ending = Ending::of(file, identity.size);
            ending.is_ok_and(|ending| {
                matches!(ending, Ending::Marker | Ending::NoMarker | Ending::Beginning)
                    && !pull_list::is_list(name, ending, identity.size)
            })
        };
        let imported = self.ledger.get(name).and_then(|entry| entry.imported.as_ref());
        let is_known = imported.is_some_and(|imported| imported.identity == *identity);
        if self.settings.coexistence == Coexistence::Exclusive
            || version.is_layout
            || is_known
            || self.following.over.get(name) == Some(identity)
            || !is_plain()
        {
            return false;
        }
        let pass = Pass::begin(self.images_dir.join(name), identity.mtime_ns, Instant::now());
        self.following.passes.insert(name.to_owned(), pass);
        self.following.next = Some(Instant::now());
        self.roster.set(name, Phase::Following);
        true
    }

    /// Looks at containerd for the bundles that wait, and takes those up whose turn it is.
    pub(super) async fn follow_if_due(&mut self) {
        let Connection::Up(up) = &self.connection else {
            return;
        };
        if self.following.next.is_none_or(|next| next > Instant::now()) {
            return;
        }
        let roster = &self.roster;
        let is_waiting = |name: &OsStr| roster.phase(name) == Some(Phase::Following);
        self.following.passes.retain(|name, _| is_waiting(name));
        self.following.over.retain(|name, _| roster.phase(name).is_some());
        self.following.next = None;
        if self.following.passes.is_empty() {
            return;
        }
        let client = up.runtime.client.clone();
        let began = Instant::now();
        match Sight::look(&client, Timestamp::now()).await {
            // Where there are very many records, containerd spends no more than a part of its time on being looked at.
            Ok(sight) => self.follow(&sight, PAUSE.max(began.elapsed() * SHARE)),
            Err(error) => {
                self.following.next = Some(Instant::now() + PAUSE);
                self.lost(&error);
            }
        }
    }

    fn follow(&mut self, sight: &Sight, pause: Duration) {
        let now = Instant::now();
        let evidence = sight.evidence(&self.images_dir, self.following.home);
        let importer = coexistence::judge(self.settings.coexistence, &evidence);
        let mut turns = Vec::new();
        for (name, pass) in &mut self.following.passes {
            match pass.look(importer.map(|(importer, _)| importer), sight, now, pause) {
                Next::Wait => self.following.next = Some(now + pause),
                Next::Go(why) => turns.push((name.clone(), why)),
            }
        }
        let waits = self.following.next.is_some();
        if let Some((importer, why)) =
            importer.filter(|(importer, _)| waits && self.following.said != Some(*importer))
        {
            self.following.said = Some(importer);
            info!(
                "{importer} imports this folder, too ({why}): new bundles are left to it first, then checked and completed"
            );
        }
        for (name, why) in turns {
            debug!(bundle = %shown(&name), "not waiting for another importer: {why}");
            self.following.passes.remove(&name);
            if let Some(identity) = self.roster.identity(&name) {
                self.following.over.insert(name.clone(), identity);
            }
            self.roster.set(&name, Phase::Ready);
        }
    }
}
