//! SIGHUP: the configuration is read again, and what can be changed while the daemon runs is changed.

use std::sync::Arc;
use std::time::Instant;

use tracing::{error, info, warn};

use super::{Connection, Daemon};
use crate::config::{self, Config, Mistakes, Reloaded};
use crate::roster::Phase;
use crate::runtime;

/// Reads the configuration as it is now.
pub(crate) type Read = Box<dyn Fn() -> Result<Config, Mistakes> + Send>;

impl Daemon {
    /// Reads the configuration again. One with mistakes changes nothing.
    pub(super) fn reload(&mut self) {
        self.systemd.reloading();
        match (self.configuration)() {
            Ok(config) => {
                config.tell_of_removed();
                self.apply(config::reload(&self.settings, config.settings));
            }
            Err(mistakes) => error!(
                outcome = "misconfigured",
                "the configuration is not taken, and the one before stays: {mistakes}"
            ),
        }
        self.systemd.ready();
    }

    fn apply(&mut self, reloaded: Reloaded) {
        let Reloaded {
            settings,
            applied,
            postponed,
        } = reloaded;
        match (applied.is_empty(), postponed.is_empty()) {
            (true, true) => info!("the configuration was read again: nothing has changed"),
            (false, _) => info!("the configuration was read again: {} changed", applied.join(", ")),
            (true, false) => {}
        }
        if !postponed.is_empty() {
            warn!("restart airgapd for the new {}", postponed.join(", "));
        }
        if applied.is_empty() {
            return;
        }
        self.pace.set(settings.rate_limit);
        self.settings = Arc::new(settings);
        if let Connection::Up(up) = &mut self.connection {
            up.policy = runtime::policy(&self.settings, Some(&up.runtime));
            let runtime = up.runtime.clone();
            self.check_context(&runtime);
        }
        self.requiring.forget();
        self.unpacking.doubt();
        self.look_anew();
    }

    /// What was decided about files by other settings is decided again; what is done is compared.
    fn look_anew(&mut self) {
        let look = Instant::now();
        for name in self.roster.names(|phase| matches!(phase, Phase::Ignored(_))) {
            self.roster.set(&name, Phase::Settling { look });
        }
        if let Connection::Up(up) = &mut self.connection {
            up.ours_listed = false;
        }
        self.trusted = None;
        self.relist = true;
        self.compare_soon();
    }
}
