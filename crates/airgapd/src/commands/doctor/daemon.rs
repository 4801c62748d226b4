//! Checks of the daemon and its unit.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use node::control::{self, StatusReply, Unanswered, Want};
use node::settings::Settings;
use node::status::Status;
use node::verdict::Subject;

use super::{Finding, note, ok, problem};

/// Reports the reasons of the daemon's verdict, each as a finding. `is_without_containerd` is true
/// if the doctor's own check found containerd unusable and reported more details.
pub(super) async fn of_daemon(settings: &Settings, is_without_containerd: bool) -> Vec<Finding> {
    match control::ask(&settings.runtime_dir, Want::Status, None).await {
        Ok(StatusReply { status, .. }) => of_status(&status, is_without_containerd),
        Err(Unanswered::NoDaemon(_)) => vec![problem(
            "daemon",
            "it is not running",
            "systemctl enable --now airgapd.service",
        )],
        Err(error) => vec![problem(
            "daemon",
            error.to_string(),
            "systemctl restart airgapd.service",
        )],
    }
}

fn of_status(status: &Status, is_without_containerd: bool) -> Vec<Finding> {
    let bundles = basics::counted(status.bundles.len(), "bundle");
    let text = format!(
        "it is running with {bundles}: the node is {}",
        status.verdict.in_short()
    );
    let mut findings = vec![ok("daemon", text)];
    let wrong = status
        .verdict
        .reasons
        .iter()
        .filter(|reason| !reason.health.is_well());
    let wrong = wrong.filter(|reason| !is_without_containerd || reason.subject != Subject::Containerd);
    findings.extend(wrong.map(|reason| Finding {
        remedy: reason.remedy.clone(),
        ..problem(reason.subject.as_str(), reason.to_string(), "")
    }));
    findings
}

/// The properties of the unit, as systemd reports them.
pub(super) struct Unit(BTreeMap<String, String>);

impl Unit {
    /// Reads the properties. Returns `None` without systemd.
    pub(super) fn of_systemd() -> Option<Unit> {
        if !Path::new("/run/systemd/system").is_dir() {
            return None;
        }
        const PROPERTIES: &str =
            "--property=LoadState,ActiveState,UnitFileState,Result,NRestarts,ProtectHome,PrivateTmp";
        let output = Command::new("systemctl")
            .args(["show", "airgapd.service", PROPERTIES])
            .output()
            .ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let properties = text.lines().filter_map(|line| line.split_once('='));
        Some(Unit(
            properties
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
        ))
    }

    fn property(&self, name: &str) -> &str {
        self.0.get(name).map(String::as_str).unwrap_or_default()
    }

    pub(super) fn judge(&self) -> Finding {
        let (active, file) = (self.property("ActiveState"), self.property("UnitFileState"));
        if self.property("LoadState") != "loaded" {
            return note(
                "unit",
                "systemd has no airgapd.service",
                "install the package, or systemd/airgapd.service",
            );
        }
        if active == "failed" {
            return problem(
                "unit",
                format!("airgapd.service has failed ({})", self.property("Result")),
                "run journalctl -u airgapd -b. exit-code usually means a mistake that `airgapd config --check` names",
            );
        }
        if !file.starts_with("enabled") {
            return note(
                "unit",
                format!("airgapd.service is {file}: it does not start with the node"),
                "systemctl enable airgapd.service",
            );
        }
        match self.property("NRestarts").parse::<u64>() {
            Ok(count) if count > 3 => note(
                "unit",
                format!("airgapd.service was restarted {count} times"),
                "journalctl -u airgapd -b",
            ),
            _ => ok("unit", format!("airgapd.service is {file} and {active}")),
        }
    }

    /// Reports that the unit hides the folder from the daemon. The folder then looks empty or
    /// missing to the daemon, even with bundles in it.
    pub(super) fn hides(&self, folder: &Path) -> Option<Finding> {
        let is_below = |folders: &[&str]| folders.iter().any(|hidden| folder.starts_with(hidden));
        let by = match (self.property("ProtectHome"), self.property("PrivateTmp")) {
            ("yes" | "tmpfs", _) if is_below(&["/home", "/root", "/run/user"]) => "ProtectHome=",
            (_, "yes" | "disconnected") if is_below(&["/tmp", "/var/tmp"]) => "PrivateTmp=",
            _ => return None,
        };
        Some(problem(
            "unit",
            format!(
                "airgapd.service does not see {}: {by} hides it from the daemon",
                folder.display()
            ),
            "choose another folder (`imagesDir:`), for instance below /var/lib or /srv",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn the_unit_is_judged_by_what_systemd_says() {
        let table = [
            (
                ["not-found", "inactive", "", "success", "0"],
                Verdict::Note,
                "no airgapd.service",
            ),
            (
                ["loaded", "failed", "enabled", "exit-code", "0"],
                Verdict::Problem,
                "airgapd.service has failed (exit-code)",
            ),
            (
                ["loaded", "active", "disabled", "success", "0"],
                Verdict::Note,
                "does not start",
            ),
            (
                ["loaded", "active", "enabled", "success", "9"],
                Verdict::Note,
                "9 times",
            ),
            (
                ["loaded", "active", "enabled", "success", "0"],
                Verdict::Ok,
                "active",
            ),
        ];
        let keys = ["LoadState", "ActiveState", "UnitFileState", "Result", "NRestarts"];
        for (values, verdict, word) in table {
            let found = unit(&keys, &values).judge();
            assert_eq!(found.verdict, verdict, "{values:?}");
            assert!(found.text.contains(word), "{found:?}");
            assert_eq!(found.remedy.is_none(), verdict == Verdict::Ok, "{found:?}");
        }
    }

    fn unit(keys: &[&str], values: &[&str]) -> Unit {
        let pairs = keys.iter().zip(values);
        Unit(
            pairs
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
        )
    }

    #[test]
    fn a_folder_that_the_unit_hides_is_told_of() {
        let table = [
            ("/var/lib/k0s/images", ["yes", "yes"], None),
            ("/root/bundles", ["yes", "yes"], Some("ProtectHome=")),
            ("/home/a/bundles", ["tmpfs", "no"], Some("ProtectHome=")),
            ("/home/a/bundles", ["read-only", "yes"], None),
            ("/rooted", ["yes", "yes"], None),
            ("/tmp/bundles", ["no", "yes"], Some("PrivateTmp=")),
            ("/tmp/bundles", ["yes", "no"], None),
        ];
        for (folder, values, by) in table {
            let found = unit(&["ProtectHome", "PrivateTmp"], &values).hides(Path::new(folder));
            assert_eq!(found.is_some(), by.is_some(), "{folder} {values:?}");
            if let (Some(found), Some(by)) = (found, by) {
                assert!(
                    found.text.contains(&format!("{by} hides it from the daemon"))
                        && found.verdict == Verdict::Problem,
                    "{found:?}"
                );
            }
        }
    }
}
