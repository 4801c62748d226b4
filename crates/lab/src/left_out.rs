//! Leaves out tests that cannot run on this machine, or fails them if the environment requires
//! them.

use std::fs::File;
use std::io::Write as _;

use anyhow::Result;

use crate::note;
use crate::parts::REQUIRE_CONTAINERD;

/// Environment variable with the path of a file in which tests record that they were left out.
/// `cargo xtask test` sums the file up.
pub const FILE: &str = "AIRGAPD_TEST_LEFT_OUT";

/// Returns a part that a test needs. If it is not available, the function records the reason and
/// returns `None`. The caller then leaves the test out.
///
/// # Panics
///
/// Panics if the part is missing and `AIRGAPD_REQUIRE_CONTAINERD=1` is set. `cargo xtask test` sets
/// it as root on Debian.
pub fn unless_had<T>(what: &str, had: Result<T>) -> Option<T> {
    match had {
        Ok(part) => Some(part),
        Err(error) if std::env::var_os(REQUIRE_CONTAINERD).is_some_and(|value| value == "1") => {
            panic!("{what} is required: {error:#}")
        }
        Err(error) => {
            record(&format!("no {what}: {error:#}"));
            None
        }
    }
}

/// Records that the running test is left out, and why.
pub fn record(reason: &str) {
    note(&format!("left out: {reason}"));
    let Some(path) = std::env::var_os(FILE) else {
        return;
    };
    let thread = std::thread::current();
    let line = format!(
        "{}: {}\n",
        thread.name().unwrap_or("a test"),
        reason.replace('\n', " ")
    );
    // A short line that several processes append stays whole. Without the file, the line on
    // standard error must do.
    if let Ok(mut file) = File::options().append(true).open(path) {
        let _ = file.write_all(line.as_bytes());
    }
}
