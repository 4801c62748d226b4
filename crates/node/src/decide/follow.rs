//! Decides which new bundles are left to another importer first. They wait here until its pass over
//! them has ended.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::time::{Duration, Instant};

use bundle::Identity;

use super::coexistence::{self, Importer, Next, PAUSE, Pass, Sight};
use super::line::Line;
use super::{Errand, Turn};
use crate::images::folder::Ending;
use crate::images::pull_list;
use crate::place::Distribution;
use crate::settings::Coexistence;
use crate::state::State;
use crate::state::roster::{Phase, Version};

/// Length of the pause after a look, as a multiple of the look's own length. It bounds the share of
/// looks in the daemon's time, however many records there are.
const SHARE: u32 = 4;

/// The bundles that wait for another importer, and those that have waited.
#[derive(Debug)]
pub(crate) struct Following {
    /// The distribution that the daemon's containerd and folder belong to.
    home: Option<Distribution>,
    /// Passes by bundle.
    passes: BTreeMap<OsString, Pass>,
    /// Bundles whose wait is over, as they were then. A retry does not wait again.
    over: BTreeMap<OsString, Identity>,
    /// The importer that the log has named.
    said: Option<Importer>,
    next: Option<Instant>,
}

impl Following {
    pub(crate) fn new(home: Option<Distribution>) -> Following {
        Following {
            home,
            passes: BTreeMap::new(),
            over: BTreeMap::new(),
            said: None,
            next: None,
        }
    }

    /// Returns the time of the next look at containerd.
    pub(crate) fn next_look(&self) -> Option<Instant> {
        self.next
    }
}

impl State {
    /// Leaves a finished file to other importers for now, if there may be any that can read it.
    /// Returns true if it does.
    ///
    /// Other importers read plain archives only and restore nothing, so a known bundle is imported
    /// again without waiting for them.
    pub(super) fn is_left_to_others(
        &mut self,
        name: &OsStr,
        ending: Option<Ending>,
        version: &Version,
        now: Instant,
    ) -> bool {
        let identity = &version.identity;
        let is_plain = ending.is_some_and(|ending| {
            matches!(ending, Ending::Marker | Ending::NoMarker | Ending::Beginning)
                && !pull_list::is_list(name, ending, identity.size)
        });
        let imported = self.ledger.get(name).and_then(|entry| entry.imported.as_ref());
        let is_known = imported.is_some_and(|imported| imported.identity == *identity);
        if self.settings.coexistence == Coexistence::Exclusive
            || version.is_layout
            || is_known
            || self.following.over.get(name) == Some(identity)
            || !is_plain
        {
            return false;
        }
        let pass = Pass::begin(self.images_dir.join(name), identity.mtime_ns, now);
        self.following.passes.insert(name.to_owned(), pass);
        self.following.next = Some(now);
        self.roster.follow(name);
        true
    }

    /// Asks for the signs of other importers, for the bundles that wait.
    pub(super) fn follow_if_due(&mut self, turn: &mut Turn) {
        if !self.connection.is_up() || self.following.next.is_none_or(|next| next > turn.now) {
            return;
        }
        let roster = &self.roster;
        let is_waiting = |name: &OsStr| roster.phase(name) == Some(Phase::Following);
        self.following.passes.retain(|name, _| is_waiting(name));
        self.following.over.retain(|name, _| roster.phase(name).is_some());
        // If the look fails, another one follows.
        self.following.next = Some(turn.now + PAUSE);
        match self.following.passes.is_empty() {
            true => self.following.next = None,
            false => turn.send(Errand::Sight),
        }
    }

    /// Queues the bundles whose wait is over.
    pub(super) fn on_sight(&mut self, sight: &Sight, took: Duration, turn: &mut Turn) {
        let now = turn.now;
        // With very many records a look takes long. The pause keeps its share of containerd's time
        // small.
        let pause = PAUSE.max(took * SHARE);
        let evidence = sight.evidence(&self.images_dir, self.following.home);
        let importer = coexistence::judge(self.settings.coexistence, &evidence);
        self.following.next = None;
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
            turn.say(Line::info(format!(
                "{importer} imports this folder, too ({why}): the daemon leaves new bundles to it first, then checks and completes them"
            )));
        }
        for (name, why) in turns {
            turn.say(Line::debug(format!("not waiting for another importer: {why}")).bundle(&name));
            self.following.passes.remove(&name);
            if let Some(identity) = self.roster.identity(&name) {
                self.following.over.insert(name.clone(), identity);
            }
            if self.roster.phase(&name) == Some(Phase::Following) {
                self.roster.queue(&name);
            }
        }
    }
}
