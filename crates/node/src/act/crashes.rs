//! Files over which the daemon crashed: found at the start, retried alone, and set aside after
//! several crashes.

use std::path::Path;

use jiff::Timestamp;
use tracing::warn;

use crate::decide::line::shown;
use crate::decide::record::way_out;
use crate::state::crash::{self, Kills, Left, Verdict};
use crate::state::ledger::{self, Crash, Crashes, Ledger};

/// Marks the files that the previous daemon may have died of as suspects, and logs them. Returns
/// true if the ledger has changed.
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
        warn!("the daemon before this one died of {cause} while it worked on no file");
    }
    for (name, identity) in &suspects {
        let crash = Crash {
            cause: cause.clone(),
            boot: boot.clone(),
            program: program.as_ref().ok().cloned(),
            at: Timestamp::now(),
        };
        let times = ledger.record_crash(name, identity, crash, &way_out(images_dir, name));
        // A file that is set aside is logged when it is listed.
        if times < Crashes::MOST {
            warn!(
                bundle = %shown(name),
                "the daemon before this one died of {cause} while it worked on this file ({times} of {most} times): the daemon \
                 tries it again, alone. After {most} crashes in one boot it sets the file aside",
                most = Crashes::MOST
            );
        }
    }
    true
}
