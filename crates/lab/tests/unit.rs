//! systemd reads the unit and its drop-ins without a complaint, and the exposure is the promised
//! one.
//!
//! systemd-analyze reads a root folder with only the unit. The units and programs that it refers to
//! are empty stand-ins. So the machine's units make no difference. `cargo xtask packaged` runs the
//! real service.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use lab::{left_out, parts, workspace};
use tempfile::TempDir;

/// Promised limit of the exposure in tenths, as `--threshold=` takes it: 1.0.
const PROMISED: u32 = 10;

/// The service of the daemon, the service of a scrub, and its timer.
const UNIT: &str = "airgapd.service";
const SCRUB: &str = "airgapd-scrub.service";
const TIMER: &str = "airgapd-scrub.timer";

/// The check of the boot, for image-based systems.
const BOOT_CHECK: &str = "airgapd-boot-check.service";

/// Limit with a port for metrics. The service then uses the node's network.
const WITH_NETWORK: u32 = 18;

/// A system that has only the unit and these drop-ins.
struct System {
    root: TempDir,
    analyze: PathBuf,
}

impl System {
    /// Returns `None` if systemd-analyze is not available. It panics if the environment requires
    /// it.
    fn with(drop_ins: &[&Path]) -> Option<System> {
        let analyze = left_out::unless_had("systemd-analyze", parts::systemd_analyze())?;
        let root = tempfile::tempdir().unwrap();
        let units = root.path().join("etc/systemd/system");
        let own = units.join("airgapd.service.d");
        fs::create_dir_all(&own).unwrap();
        for unit in [UNIT, SCRUB, TIMER] {
            fs::copy(workspace().join("systemd").join(unit), units.join(unit)).unwrap();
        }
        for drop_in in drop_ins {
            fs::copy(drop_in, own.join(drop_in.file_name().unwrap())).unwrap();
        }
        let check = workspace().join("config/fleet").join(BOOT_CHECK);
        fs::copy(check, units.join(BOOT_CHECK)).unwrap();
        for name in [
            "boot-complete.target",
            "sysinit.target",
            "basic.target",
            "shutdown.target",
            "local-fs.target",
            "multi-user.target",
            "timers.target",
            "time-sync.target",
            "time-set.target",
            "system.slice",
            "-.slice",
        ] {
            fs::write(units.join(name), "[Unit]\nDefaultDependencies=no\n").unwrap();
        }
        for program in [
            "usr/bin/airgapd",
            "usr/libexec/airgapd-boot-check",
            "bin/systemctl",
        ] {
            let program = root.path().join(program);
            fs::create_dir_all(program.parent().unwrap()).unwrap();
            fs::write(&program, "#!/bin/sh\n").unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        }
        Some(System { root, analyze })
    }

    fn analyze(&self, unit: &str, arguments: &[&str]) -> Output {
        Command::new(&self.analyze)
            .args(arguments)
            .arg("--root")
            .arg(self.root.path())
            .args(["--no-pager", unit])
            .output()
            .unwrap()
    }

    fn complaints(&self) -> String {
        self.complaints_about(UNIT)
    }

    /// Returns systemd's complaints. An unknown key is a complaint but no failure.
    fn complaints_about(&self, unit: &str) -> String {
        let output = self.analyze(unit, &["verify", "--man=no"]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{text}");
        text
    }

    fn is_at_most(&self, tenths: u32) -> bool {
        self.is_unit_at_most(UNIT, tenths)
    }

    /// Returns true if the exposure is at most `tenths`.
    fn is_unit_at_most(&self, unit: &str, tenths: u32) -> bool {
        let threshold = format!("--threshold={tenths}");
        let output = self.analyze(unit, &["security", "--offline=yes", &threshold]);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            text.contains(&format!("Overall exposure level for {unit}")),
            "{text}"
        );
        output.status.success()
    }
}

fn drop_ins() -> Vec<PathBuf> {
    let folder = workspace().join("systemd/drop-ins");
    let mut paths: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    paths
}

fn name(drop_in: &Path) -> &str {
    drop_in.file_stem().unwrap().to_str().unwrap()
}

#[test]
fn systemd_has_no_complaint_about_the_unit_alone_or_with_any_drop_in() {
    let Some(alone) = System::with(&[]) else {
        return;
    };
    assert_eq!(alone.complaints(), "");
    for drop_in in &drop_ins() {
        let system = System::with(&[drop_in]).unwrap();
        assert_eq!(system.complaints(), "", "{}", drop_in.display());
    }
    let all = drop_ins();
    let all: Vec<&Path> = all.iter().map(PathBuf::as_path).collect();
    assert_eq!(System::with(&all).unwrap().complaints(), "");
}

#[test]
fn systemd_has_no_complaint_about_the_units_of_a_scrub_and_their_exposure_is_that_of_the_daemon() {
    let Some(system) = System::with(&[]) else {
        return;
    };
    assert_eq!(system.complaints_about(SCRUB), "");
    assert_eq!(system.complaints_about(TIMER), "");
    assert!(system.is_unit_at_most(SCRUB, PROMISED));
}

/// boot-complete.target requires each of its checks, and starts behind them (systemd.special(7)).
#[test]
fn systemd_has_no_complaint_about_the_check_of_the_boot_which_the_target_waits_for() {
    let Some(system) = System::with(&[]) else {
        return;
    };
    assert_eq!(system.complaints_about(BOOT_CHECK), "");
    let unit = fs::read_to_string(workspace().join("config/fleet").join(BOOT_CHECK)).unwrap();
    for line in [
        "Before=boot-complete.target",
        "RequiredBy=boot-complete.target",
        "Type=oneshot",
        "ExecStart=/usr/libexec/airgapd-boot-check",
    ] {
        assert!(unit.lines().any(|of_unit| of_unit == line), "{line}");
    }
}

/// Shows that the test above can fail.
#[test]
fn systemd_does_complain_about_what_it_does_not_know() {
    let folder = tempfile::tempdir().unwrap();
    let wrong = folder.path().join("wrong.conf");
    fs::write(&wrong, "[Service]\nReadWritePath=/srv\n").unwrap();
    if let Some(system) = System::with(&[&wrong]) {
        assert!(system.complaints().contains("ReadWritePath"));
    }
}

#[test]
fn the_exposure_is_what_was_promised_with_every_drop_in_that_needs_no_network() {
    let Some(alone) = System::with(&[]) else {
        return;
    };
    assert!(alone.is_at_most(PROMISED));
    for drop_in in &drop_ins() {
        let promised = match name(drop_in) {
            "metrics" => WITH_NETWORK,
            _ => PROMISED,
        };
        let system = System::with(&[drop_in]).unwrap();
        assert!(system.is_at_most(promised), "{}", drop_in.display());
    }
    // Fewer restrictions raise the exposure, so the score is that of this unit.
    let folder = tempfile::tempdir().unwrap();
    let open = folder.path().join("open.conf");
    fs::write(&open, "[Service]\nSystemCallFilter=\nCapabilityBoundingSet=~\n").unwrap();
    assert!(!System::with(&[&open]).unwrap().is_at_most(PROMISED));
}

/// An operator finds each drop-in and how to install it.
#[test]
fn every_drop_in_says_how_it_is_installed_and_the_documentation_names_it() {
    let documentation = fs::read_to_string(workspace().join("docs/install.md")).unwrap();
    for drop_in in drop_ins() {
        let file = drop_in.file_name().unwrap().to_str().unwrap();
        let text = fs::read_to_string(&drop_in).unwrap();
        let command = format!("install -D -m 0644 {file} /etc/systemd/system/airgapd.service.d/{file}");
        assert!(text.contains(&command), "{file}");
        assert!(documentation.contains(&format!("`{file}`")), "{file}");
    }
}
