//! Decides which new bundles are left to another importer first. They wait here until its pass over
//! them has ended.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::time::{Duration, Instant};

use bundle::Identity;

use super::coexistence::{self, Evidence, Importer, Next, PAUSE, Pass, Sight};
use super::line::Line;
use super::{Errand, Turn};
use crate::images::folder::Ending;
use crate::images::pull_list;
use crate::place::Distribution;
use crate::settings::{Coexistence, Signatures};
use crate::state::State;
use crate::state::roster::{Phase, Version};

/// Length of the pause after a look, as a multiple of the look's own length. It bounds the share of
/// looks in the daemon's time, however many records there are.
const SHARE: u32 = 4;

/// Pause between two looks that find out whether signatures can guard the first folder by now.
const GUARD_PAUSE: Duration = Duration::from_secs(5);

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
    /// The reason why signatures cannot guard the first folder, by the last look.
    unguarded: Option<String>,
    next: Option<Instant>,
}

impl Following {
    pub(crate) fn new(home: Option<Distribution>) -> Following {
        Following {
            home,
            passes: BTreeMap::new(),
            over: BTreeMap::new(),
            said: None,
            unguarded: None,
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
        // Other importers have one folder. It is the first of ours, if it is ours at all.
        let is_theirs = self.folder_of(name) == Some(0);
        // If signatures are required, each bundle waits for a look at other importers. None may be
        // there at all.
        let is_guarded = self.settings.signatures == Some(Signatures::Require);
        let is_exclusive = self.settings.coexistence == Coexistence::Exclusive;
        if !is_theirs
            || is_known
            || self.following.over.get(name) == Some(identity)
            || !is_guarded && (is_exclusive || version.is_layout || !is_plain)
        {
            return false;
        }
        let pass = Pass::begin(self.images_dir.join(name), identity.mtime_ns, now);
        self.following.passes.insert(name.to_owned(), pass);
        self.following.next = Some(now);
        self.roster.follow(name);
        true
    }

    /// Returns why the daemon imports nothing from a folder that it may read. Signatures are
    /// required, and another program imports the folder without them. Others have one folder,
    /// which is the first of ours.
    pub(super) fn unguarded(&self, folder: Option<usize>) -> Option<String> {
        if folder != Some(0) || self.settings.signatures != Some(Signatures::Require) {
            return None;
        }
        let home = Evidence {
            home: self.following.home,
            ..Evidence::default()
        };
        let by_home = coexistence::unguarded(self.settings.coexistence, &home);
        by_home.or_else(|| self.following.unguarded.clone())
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
        match self.following.passes.is_empty() && self.following.unguarded.is_none() {
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
        let is_guarded = self.settings.signatures == Some(Signatures::Require);
        let unguarded = coexistence::unguarded(self.settings.coexistence, &evidence).filter(|_| is_guarded);
        self.relist |= unguarded != self.following.unguarded;
        if unguarded.is_none() && self.following.unguarded.is_some() {
            self.judge_again(&BTreeSet::new());
        }
        self.following.unguarded = unguarded;
        self.following.next = None;
        let mut turns = Vec::new();
        for (name, pass) in &mut self.following.passes {
            match pass.look(importer.map(|(importer, _)| importer), sight, now, pause) {
                Next::Wait => self.following.next = Some(now + pause),
                Next::Go(why) => turns.push((name.clone(), why)),
            }
        }
        let waits = self.following.next.is_some();
        if !waits && self.following.unguarded.is_some() {
            self.following.next = Some(now + GUARD_PAUSE.max(pause));
        }
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
