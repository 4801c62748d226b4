//! Decides what a configuration that was read again changes while the daemon runs.

use std::sync::Arc;

use super::compare::Connection;
use super::line::Line;
use super::{Action, Turn};
use crate::outcome::Outcome;
use crate::settings::Reloaded;
use crate::state::State;
use crate::state::roster::Phase;

impl State {
    /// Keeps the settings, since the configuration on disk has these mistakes.
    pub(super) fn on_misread(&mut self, mistakes: String, turn: &mut Turn) {
        let text = format!("the new configuration was rejected, and the old one stays: {mistakes}");
        turn.say(Line::error(text).outcome(Outcome::Misconfigured));
        self.configuration_problem = Some(mistakes);
    }

    /// Applies new settings. `fingerprint` describes everything in them that decides over imports.
    /// It is `None` without a connection.
    pub(super) fn on_reload(&mut self, reloaded: Reloaded, fingerprint: Option<String>, turn: &mut Turn) {
        let Reloaded {
            settings,
            applied,
            postponed,
        } = reloaded;
        self.configuration_problem = None;
        // Lists and manifests change without the configuration.
        let is_other = applied.is_empty() && self.require_anew(turn);
        match (applied.is_empty(), postponed.is_empty()) {
            (true, _) if is_other => turn.say(Line::info(
                "the configuration was read again: files under `require` changed",
            )),
            (true, true) => turn.say(Line::info(
                "the configuration was read again: nothing has changed",
            )),
            (false, _) => {
                let text = format!("the configuration was read again: {} changed", applied.join(", "));
                turn.say(Line::info(text));
            }
            (true, false) => {}
        }
        if !postponed.is_empty() {
            let keys = postponed.join(", ");
            turn.say(Line::warn(format!("restart airgapd for the new {keys}")));
        }
        if applied.is_empty() {
            return;
        }
        self.settings = Arc::new(settings);
        turn.act(Action::Adopt);
        if let Some(fingerprint) = fingerprint {
            let uuid = self.ledger.context.containerd.clone();
            self.check_context(uuid, fingerprint, turn);
        }
        self.forget_required(turn);
        self.unpack.doubt();
        self.look_anew(turn);
    }

    /// Repeats decisions about files that the old settings made, and compares the bundles that are
    /// done.
    fn look_anew(&mut self, turn: &Turn) {
        for name in self.roster.names(|phase| matches!(phase, Phase::Ignored(_))) {
            self.roster.look_at(&name, turn.now);
        }
        if let Connection::Up(up) = &mut self.connection {
            up.ours_listed = false;
        }
        self.trusted = None;
        match self.settings.signatures {
            Some(_) => self.keys.iter_mut().for_each(|keys| keys.is_stale = true),
            None => self.keys = None,
        }
        self.receipts.try_again();
        self.relist = true;
        self.compare_soon(turn.now);
    }
}
