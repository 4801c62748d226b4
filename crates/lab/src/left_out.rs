//! Tests that cannot run on this machine: left out with a note, or a failure where nothing may be
//! left out.

use std::fs::File;
use std::io::Write as _;

use anyhow::Result;

use crate::note;
use crate::parts::REQUIRE_CONTAINERD;

/// The environment variable with the file into which tests write what they leave out; `cargo xtask
/// test` sums it up.
pub const FILE: &str = "AIRGAPD_TEST_LEFT_OUT";

/// What a test needs, or `None` where it cannot be had: then the test is left out, and the reason
/// is noted.
///
/// # Panics
///
/// Where nothing may be left out: with `AIRGAPD_REQUIRE_CONTAINERD=1`, which `cargo xtask test`
/// sets as root on Debian.
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

/// Notes that the running test is left out, and why.
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
    // Short appended lines of several processes stay whole. Without the file the note has to do.
    if let Ok(mut file) = File::options().append(true).open(path) {
        let _ = file.write_all(line.as_bytes());
    }
}
