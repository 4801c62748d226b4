//! Files that the daemon crashed over: found out at the start, tried alone, and set aside after several crashes.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;
use std::time::Instant;

use jiff::Timestamp;
use tracing::{error, warn};

use super::Daemon;
use super::telling::shown;
use crate::state::crash::{self, Kills, Left, Verdict};
use crate::state::ledger::{self, Crash, Crashes, Ledger};
use basics::backoff;

/// Makes suspects of the files that the daemon before this one may have died of, and says so. Tells whether the ledger has
/// news.
pub(super) fn inherit(left: &Left, ledger: &mut Ledger, images_dir: &Path) -> bool {
    let boot = ledger::boot_id();
    let verdict = left.verdict(boot.as_deref(), &Kills::now());
    if verdict.is_none() && !ledger.has_crashes() {
        return false;
    }
    let program = crash::program();
    if let Ok(program) = &program {
        ledger.acquit_of_others(program);
    }
    let Some(Verdict { cause, suspects }) = verdict else {
        return true;
    };
    if suspects.is_empty() {
        warn!("the daemon before this one died of {cause}, and worked on no file");
    }
    for (name, identity) in &suspects {
        let crash = Crash {
            cause: cause.clone(),
            boot: boot.clone(),
            program: program.as_ref().ok().cloned(),
            at: Timestamp::now(),
        };
        let times = ledger.record_crash(name, identity, crash, &way_out(images_dir, name));
        // A file that is set aside is told of when it is listed.
        if times < Crashes::MOST {
            warn!(
                bundle = %shown(name),
                "the daemon before this one died of {cause} while it worked on this file ({times} of {} times in one \
                 boot, then it is set aside): the daemon tries it again, alone",
                Crashes::MOST
            );
        }
    }
    true
}

/// How a file that is set aside comes to another try.
fn way_out(images_dir: &Path, name: &OsStr) -> String {
    let path = basics::Foreign::file_name(images_dir.join(name).as_os_str()).to_string();
    format!(
        "replace it, or install another version of airgapd, and the daemon tries it again; `airgapd import {path}` tries \
         it at once, beside the daemon"
    )
}

impl Daemon {
    /// Notes which files are worked on, for the daemon after this one.
    pub(super) fn note_jobs(&mut self) {
        let jobs = self.jobs.all().map(|job| &job.order);
        let files = jobs.map(|order| (order.name.clone(), order.version.identity.clone()));
        let files: BTreeMap<_, _> = files.collect();
        self.marker.note(files);
    }

    /// Whether the daemon leaves a file alone that it crashed over.
    pub(super) fn is_set_aside(&self, name: &OsStr) -> bool {
        let identity = self.roster.identity(name);
        let entry = self.ledger.get(name);
        entry.is_some_and(|entry| identity.is_some_and(|identity| entry.is_set_aside(&identity)))
    }

    /// Takes down that a job panicked. The daemon tries its file again, alone, and sets it aside after several times.
    pub(super) fn panicked(&mut self, name: &OsStr, cause: String) {
        let Some(job) = self.jobs.end(name) else { return };
        if !self.is_current(&job) {
            // Another file has the name by now.
            return self.started_over(name);
        }
        let crash = Crash {
            cause,
            boot: ledger::boot_id(),
            program: crash::program().ok(),
            at: Timestamp::now(),
        };
        let bundle = shown(name);
        let identity = &job.order.version.identity;
        let cause = crash.cause.clone();
        let way_out = way_out(&self.images_dir, name);
        let times = self.ledger.record_crash(name, identity, crash, &way_out);
        let is_set_aside = times >= Crashes::MOST;
        if is_set_aside {
            let entry = self.ledger.get(name).and_then(|entry| entry.last_error.as_ref());
            let text = entry.map(|error| error.text.as_str()).unwrap_or_default();
            error!(bundle, outcome = "failed", "not imported: {text}");
        } else {
            error!(
                bundle,
                "its import ended with {cause}: the daemon tries it again, alone"
            );
        }
        let chance = (!is_set_aside).then(backoff::chance);
        self.roster.fail(name, Instant::now(), chance);
        // The blobs that it has moved are under its lease.
        self.sweep_soon();
        self.save();
    }
}
