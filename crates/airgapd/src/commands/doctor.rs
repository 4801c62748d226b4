//! `airgapd doctor`: what on this node keeps bundles from being imported, each with the remedy.
//!
//! It looks and changes nothing. What it cannot find out it says so, and does not guess.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use containerd::Deprecation;
use import::Disk;
use import::labels::EXPIRES;
use jiff::Timestamp;
use platforms::Matcher;
use serde::Serialize;

use super::Exit;
use crate::config::OutputFormat;
use crate::output::{self, Page, bytes};
use node::control::{self, Told, Unanswered, Want};
use node::decide::coexistence::{self, Sight};
use node::images::folder::{self, Folder, FolderTrust};
use node::place::{self, Place};
use node::runtime::{self, Containerd, Unusable};
use node::settings::{PlatformChoice, Settings};
use node::status::Standing;

/// Below this part of containerd's disk kubelet evicts pods and collects images by default (`imagefs.available<15%`).
const EVICTION_PERCENT: u64 = 15;

/// What was looked at, and what was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    /// What was looked at, in one word.
    subject: &'static str,
    verdict: Verdict,
    text: String,
    /// What to do about it.
    remedy: Option<String>,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    /// It works, and is worth knowing.
    Note,
    /// Bundles are not imported, or not all, until it is put right.
    Problem,
}

/// The document of `airgapd doctor -o json`.
#[derive(Debug, Serialize)]
struct Document<'a> {
    healthy: bool,
    findings: &'a [Finding],
}

fn ok(subject: &'static str, text: impl Into<String>) -> Finding {
    finding(subject, Verdict::Ok, text, None)
}

fn note(subject: &'static str, text: impl Into<String>, remedy: impl Into<String>) -> Finding {
    finding(subject, Verdict::Note, text, Some(remedy.into()))
}

fn problem(subject: &'static str, text: impl Into<String>, remedy: impl Into<String>) -> Finding {
    finding(subject, Verdict::Problem, text, Some(remedy.into()))
}

fn finding(
    subject: &'static str,
    verdict: Verdict,
    text: impl Into<String>,
    remedy: Option<String>,
) -> Finding {
    Finding {
        subject,
        verdict,
        text: text.into(),
        remedy,
    }
}

/// Looks at the node. Exit status 1 when there is a problem.
pub(crate) async fn run(settings: &Settings, format: OutputFormat) -> anyhow::Result<Exit> {
    let mut findings = Vec::new();
    findings.extend(of_user());
    let unit = Unit::of_systemd();
    let evidence = place::probe(Path::new("/"));
    match place::decide(&evidence, settings) {
        Err(ambiguous) => findings.push(problem(
            "node",
            ambiguous.to_string(),
            "set `distribution:` in /etc/airgapd/config.yaml",
        )),
        Ok(node) => {
            findings.push(of_node(&node));
            findings.extend(of_folder(&node, settings));
            findings.push(of_watches(&node.images_dir));
            findings.push(of_state(&settings.state_dir));
            findings.extend(of_containerd(&node, settings).await);
            findings.push(of_daemon(settings).await);
            findings.extend(unit.as_ref().map(Unit::judge));
            findings.extend(unit.and_then(|unit| unit.hides(&node.images_dir)));
        }
    }
    let healthy = findings.iter().all(|finding| finding.verdict != Verdict::Problem);
    match format {
        OutputFormat::Text => output::text(&text(&findings))?,
        OutputFormat::Json => output::json(&Document {
            healthy,
            findings: &findings,
        })?,
    }
    Ok(if healthy { Exit::Done } else { Exit::Failed })
}

fn text(findings: &[Finding]) -> Page {
    let mut text = Page::new();
    for finding in findings {
        let verdict = match finding.verdict {
            Verdict::Ok => "ok",
            Verdict::Note => "note",
            Verdict::Problem => "PROBLEM",
        };
        let label = format!("{verdict:<8} {:<11} ", finding.subject);
        output::paragraph(&mut text, &label, &finding.text);
        if let Some(remedy) = &finding.remedy {
            output::paragraph(&mut text, &format!("{:<8} {:<11} ", "", "do"), remedy);
        }
    }
    let problems = findings
        .iter()
        .filter(|finding| finding.verdict == Verdict::Problem)
        .count();
    text.gap();
    match problems {
        0 => output::line!(text, "nothing keeps bundles from being imported"),
        1 => output::line!(text, "1 problem"),
        count => output::line!(text, "{count} problems"),
    };
    text
}

/// Somebody else than root sees other things than the daemon does.
fn of_user() -> Option<Finding> {
    let is_root = rustix::process::geteuid().is_root();
    (!is_root).then(|| {
        note(
            "user",
            "this is not root: what only root may see looks as if it were not there",
            "run it as root, as the daemon is",
        )
    })
}

fn of_node(node: &Place) -> Finding {
    match node.because.as_slice() {
        [] => note(
            "node",
            "nothing tells what runs containerd here: it is taken for plain containerd",
            "set `distribution:` if it is something else",
        ),
        because => ok("node", format!("{} ({})", node.distribution, because.join(", "))),
    }
}

fn of_folder(node: &Place, settings: &Settings) -> Vec<Finding> {
    let path = &node.images_dir;
    let folder = match Folder::open_dir(path) {
        Ok(folder) => folder,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return vec![note(
                "folder",
                format!("{} is not there yet", path.display()),
                format!("install -d -m 0755 {}", path.display()),
            )];
        }
        Err(error) => {
            return vec![problem(
                "folder",
                format!("{}: {error}", path.display()),
                "make it a folder that root can read",
            )];
        }
    };
    let mut findings = vec![match folder::judge(&folder, path, settings.allow_insecure_dir) {
        FolderTrust::Trusted => ok("folder", path.display().to_string()),
        FolderTrust::Warning(why) => note(
            "folder",
            format!("{}: {why}", path.display()),
            "chown root: and chmod go-w it, unless whoever else can write it may give any image any name",
        ),
        FolderTrust::Refused(why) => problem(
            "folder",
            format!("{}: {why}", path.display()),
            format!("chmod o-w {}", path.display()),
        ),
    }];
    if let Some(kind) = quiet_file_system(path) {
        findings.push(note(
            "folder",
            format!("it is on {kind}, which does not tell of every change or of who is writing"),
            "put bundles there under a name that begins with a dot and rename them when they are whole; otherwise they \
             are taken when nothing has happened to them for a while",
        ));
    }
    findings
}

/// A file system that gives no reliable events or leases.
fn quiet_file_system(path: &Path) -> Option<&'static str> {
    let kind = rustix::fs::statfs(path).ok()?.f_type;
    // linux/magic.h
    match u64::try_from(kind).ok()? & 0xffff_ffff {
        0x6969 => Some("NFS"),
        0x517b | 0xff53_4d42 | 0xfe53_4d42 => Some("SMB"),
        0x6573_5546 => Some("FUSE"),
        0x794c_7630 => Some("overlayfs"),
        0x0102_1997 => Some("9P"),
        0x00c3_6400 => Some("Ceph"),
        _ => None,
    }
}

fn of_watches(folder: &Path) -> Finding {
    let limit = |name: &str| {
        let text = fs::read_to_string(format!("/proc/sys/fs/inotify/{name}")).unwrap_or_default();
        text.trim().to_owned()
    };
    let watched = node::images::try_watch(folder);
    let limits = format!(
        "{} instances and {} watches for each user",
        limit("max_user_instances"),
        limit("max_user_watches")
    );
    match watched {
        Ok(()) => ok("inotify", limits),
        Err(error) => note(
            "inotify",
            format!(
                "the kernel gives no watch ({error}); the limits are {limits}: the folder is looked at every few seconds instead"
            ),
            "sysctl -w fs.inotify.max_user_instances=1024 fs.inotify.max_user_watches=524288, and the same in /etc/sysctl.d",
        ),
    }
}

fn of_state(folder: &Path) -> Finding {
    let shown = folder.display();
    if rustix::fs::access(folder, rustix::fs::Access::WRITE_OK).is_ok() {
        return ok("state", shown.to_string());
    }
    match folder.try_exists() {
        Ok(false) => note(
            "state",
            format!("{shown} is not there yet"),
            "nothing, the daemon makes it",
        ),
        _ => note(
            "state",
            format!("{shown} cannot be written: after each restart every bundle is read again"),
            "mount it writable, or choose another `stateDir:`",
        ),
    }
}

async fn of_containerd(node: &Place, settings: &Settings) -> Vec<Finding> {
    let socket = node.socket.display();
    let runtime = match runtime::connect(&node.socket, settings).await {
        Ok(runtime) => runtime,
        Err(error @ Unusable::NoCri { .. }) => {
            return vec![problem(
                "containerd",
                error.to_string(),
                "give the socket of kubelet's containerd (`address:`), or enable its CRI plugin",
            )];
        }
        Err(error) if error.is_unreachable() => {
            return vec![problem(
                "containerd",
                format!("nothing answers on {socket}: {}", basics::chain(&error)),
                format!(
                    "start {}, or give the right socket (`address:`); the daemon waits for it",
                    node.distribution
                ),
            )];
        }
        Err(error) => {
            return vec![problem(
                "containerd",
                format!("{socket}: {}", basics::chain(&error)),
                "see containerd's own log",
            )];
        }
    };
    let mut findings = vec![ok(
        "containerd",
        format!(
            "{} on {socket}, namespace {}, {}",
            runtime.version.text, settings.namespace, runtime.platform
        ),
    )];
    findings.extend(of_namespace(settings));
    findings.extend(of_platform(&runtime, settings));
    findings.push(of_disk(&runtime, settings));
    findings.push(of_others(&runtime, node, settings).await);
    findings.extend(of_expiry(&runtime).await);
    findings.extend(of_deprecations(&runtime).await);
    findings
}

/// Records that containerd's garbage collector deletes at a certain time.
async fn of_expiry(runtime: &Containerd) -> Option<Finding> {
    /// As many are named.
    const NAMED: usize = 3;
    // Why they cannot be listed is told with the others.
    let records = runtime.client.images_labelled(&[EXPIRES]).await.ok()?;
    let names: Vec<String> = records.into_iter().map(|record| record.name).collect();
    if names.is_empty() {
        return None;
    }
    let more = match names.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Some(note(
        "expiry",
        format!(
            "image records have the label {EXPIRES}, and containerd 2.0 and later deletes them at the time it names, pinned \
             or not: {}{more}",
            names[..names.len().min(NAMED)].join(", ")
        ),
        format!(
            "nothing for images of bundles, which the daemon takes the label from; of others: ctr -n k8s.io images label NAME {EXPIRES}="
        ),
    ))
}

/// Features in use that a later containerd drops, as containerd reports them.
async fn of_deprecations(runtime: &Containerd) -> Vec<Finding> {
    let warnings = match runtime.client.deprecations().await {
        Ok(warnings) => warnings,
        Err(error) => {
            return vec![problem(
                "deprecated",
                basics::chain(&error),
                "see containerd's own log",
            )];
        }
    };
    let finding = |warning: Deprecation| {
        let id = warning.id.rsplit('/').next().unwrap_or_default();
        note(
            "deprecated",
            format!("{id}: {}", warning.message),
            "change it before the next upgrade of containerd; `ctr deprecations list` shows when it was last used",
        )
    };
    warnings.into_iter().map(finding).collect()
}

fn of_namespace(settings: &Settings) -> Option<Finding> {
    let namespace = &settings.namespace;
    (namespace != runtime::KUBERNETES).then(|| {
        note(
            "namespace",
            format!(
                "images go to {namespace}, and kubelet sees those in {} only",
                runtime::KUBERNETES
            ),
            format!("leave out `namespace:`, unless {namespace} is meant"),
        )
    })
}

/// What is asked for where it is not what the node can run.
fn of_platform(runtime: &Containerd, settings: &Settings) -> Option<Finding> {
    let PlatformChoice::These(chosen) = &settings.platforms else {
        return None;
    };
    let node = Matcher::only(&runtime.platform, runtime.version.rules());
    let foreign: Vec<String> = chosen
        .iter()
        .filter(|platform| !node.accepts(platform))
        .map(ToString::to_string)
        .collect();
    (!foreign.is_empty()).then(|| {
        note(
            "platform",
            format!(
                "images for {} are taken, which this node ({}) cannot run",
                foreign.join(", "),
                runtime.platform
            ),
            "leave out `platforms:`, unless the images are for other nodes",
        )
    })
}

fn of_disk(runtime: &Containerd, settings: &Settings) -> Finding {
    let Some(store) = &runtime.store else {
        return note(
            "disk",
            "containerd's content store cannot be seen from here, so nothing is known of its disk",
            "run it on the node itself",
        );
    };
    let disk = match Disk::of(store) {
        Ok(disk) => disk,
        Err(error) => {
            return note(
                "disk",
                format!("{}: {error}", store.display()),
                "see whether it is mounted",
            );
        }
    };
    let text = format!(
        "{} of {} free at {}",
        bytes(disk.free),
        bytes(disk.size),
        store.display()
    );
    if let Some(shortage) = runtime::space(settings, runtime).below_minimum() {
        return problem(
            "disk",
            shortage.to_string(),
            "free space there, or lower `minFree:`",
        );
    }
    match disk.free < disk.size / 100 * EVICTION_PERCENT {
        true => note(
            "disk",
            format!("{text}, which is less than {EVICTION_PERCENT} %: kubelet may be removing images"),
            "free space there",
        ),
        false => ok("disk", text),
    }
}

async fn of_others(runtime: &Containerd, node: &Place, settings: &Settings) -> Finding {
    let client = &runtime.client;
    let sight = match Sight::look(client, Timestamp::now()).await {
        Ok(sight) => sight,
        Err(error) => return problem("others", basics::chain(&error), "see containerd's own log"),
    };
    let evidence = sight.evidence(&node.images_dir, node.is_home.then_some(node.distribution));
    match coexistence::judge(settings.coexistence, &evidence) {
        None => ok("others", "nobody else imports this folder"),
        Some((importer, why)) => note(
            "others",
            format!(
                "{importer} imports this folder, too ({why}): it is let go first, then checked and completed"
            ),
            "nothing; docs/coexistence.md says how it is done, and how to have the folder alone",
        ),
    }
}

async fn of_daemon(settings: &Settings) -> Finding {
    match control::ask(&settings.runtime_dir, Want::Status, None).await {
        Ok(Told { status, .. }) => {
            let failed = status.bundles.iter();
            let failed = failed
                .filter(|bundle| bundle.state.standing() == Standing::Failed)
                .count();
            match failed {
                0 => ok("daemon", format!("it runs; bundles: {}", status.bundles.len())),
                count => problem(
                    "daemon",
                    format!(
                        "{count} of {} bundles could not be imported",
                        status.bundles.len()
                    ),
                    "airgapd status names each with its reason",
                ),
            }
        }
        Err(Unanswered::NoDaemon(_)) => problem(
            "daemon",
            "it is not running",
            "systemctl enable --now airgapd.service",
        ),
        Err(error) => problem("daemon", error.to_string(), "systemctl restart airgapd.service"),
    }
}

/// What systemd knows of the unit, property by property.
struct Unit(BTreeMap<String, String>);

impl Unit {
    /// Nothing where there is no systemd.
    fn of_systemd() -> Option<Unit> {
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

    fn judge(&self) -> Finding {
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
                "journalctl -u airgapd -b; exit-code usually means a mistake that `airgapd config --check` names",
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

    /// The folder where the unit keeps it from the daemon: it looks empty, or is not there, however full it is.
    fn hides(&self, folder: &Path) -> Option<Finding> {
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
            "choose a folder elsewhere (`imagesDir:`), below /var/lib or /srv for instance",
        ))
    }
}

#[cfg(test)]
mod tests {
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
                "exit-code",
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
                    found.text.contains(by) && found.verdict == Verdict::Problem,
                    "{found:?}"
                );
            }
        }
    }
}
