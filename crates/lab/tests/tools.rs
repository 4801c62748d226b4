//! Fetched tools run without the folders that an installed package would have.

use std::process::Command;

use lab::{left_out, parts};

/// rpm reads its settings from `/usr/lib/rpm`, which does not exist on a machine without rpm.
#[test]
fn rpm_finds_the_settings_that_came_with_it() {
    let Some(rpm) = left_out::unless_had("rpm", parts::tool("rpm")) else {
        return;
    };
    let answer = Command::new(rpm)
        .args(["--eval", "%{_host_os}"])
        .output()
        .unwrap();
    let complaint = String::from_utf8_lossy(&answer.stderr);
    assert!(answer.status.success(), "{complaint}");
    assert_eq!(String::from_utf8_lossy(&answer.stdout), "linux\n", "{complaint}");
}
