//! One verdict on the node: its health, and each thing that is wrong, with its remedy. Pure.
//!
//! `status`, `wait`, `doctor`, the metrics, the status line of systemd and the journal show this
//! verdict. So no output calls healthy what another calls failed. docs/operating.md has the table
//! of states and exit statuses.

use std::fmt;

use basics::Foreign;
use serde::{Deserialize, Serialize};

use crate::state::ledger::ErrorClass;
use crate::status::{
    BundleStatus, ErrorStatus, FolderStatus, ImageStatus, RecordStatus, RequiredStatus, State, Status,
    UnpackStatus,
};

/// The health of the node, with the worst state last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// Everything that the bundles bring is in place.
    #[default]
    Healthy,
    /// Something is under way, and nothing is wrong.
    Working,
    /// The daemon needs something from outside before it continues, such as containerd. It then
    /// continues by itself.
    Waiting,
    /// The images are in place, but a promise of the daemon about them does not hold.
    Degraded,
    /// An image, a bundle or the daemon itself is missing, and time alone does not help.
    Failed,
}

impl Health {
    /// All states, with the worst last.
    pub const ALL: [Health; 5] = [
        Health::Healthy,
        Health::Working,
        Health::Waiting,
        Health::Degraded,
        Health::Failed,
    ];

    /// Returns the word for documents, metrics and lines.
    pub fn as_str(self) -> &'static str {
        match self {
            Health::Healthy => "healthy",
            Health::Working => "working",
            Health::Waiting => "waiting",
            Health::Degraded => "degraded",
            Health::Failed => "failed",
        }
    }

    /// Returns true if no action is needed: the node is healthy, or on its way there.
    pub fn is_well(self) -> bool {
        self <= Health::Working
    }

    /// Returns true if the node continues by itself, at once or after an event outside the daemon.
    /// A caller that waits may keep waiting.
    pub fn may_pass(self) -> bool {
        matches!(self, Health::Working | Health::Waiting)
    }
}

/// The subject of a reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// The daemon itself.
    Daemon,
    /// The connection to containerd.
    Containerd,
    /// The images folder.
    Folder,
    /// The configuration.
    Configuration,
    /// The disk of containerd's content store.
    Disk,
    /// A file of the folder.
    Bundle,
    /// An image.
    Image,
    /// The images that the configuration requires.
    Required,
    /// Images that are unpacked ahead.
    Unpack,
    /// The metrics of the daemon.
    Metrics,
}

impl Subject {
    /// Returns the word for documents.
    pub fn as_str(self) -> &'static str {
        match self {
            Subject::Daemon => "daemon",
            Subject::Containerd => "containerd",
            Subject::Folder => "folder",
            Subject::Configuration => "configuration",
            Subject::Disk => "disk",
            Subject::Bundle => "bundle",
            Subject::Image => "image",
            Subject::Required => "required",
            Subject::Unpack => "unpack",
            Subject::Metrics => "metrics",
        }
    }
}

/// One thing that keeps the node from being healthy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// The severity of the reason.
    pub health: Health,
    /// The subject of the reason.
    pub subject: Subject,
    /// The bundle or image, if the reason is about one.
    pub name: Option<Foreign>,
    /// The thing that the node waits for, in a few words. Only [`Health::Waiting`] has it.
    pub waits_for: Option<String>,
    /// The fact, in a sentence.
    pub text: String,
    /// The remedy. Absent if there is none, or if the text has it.
    pub remedy: Option<String>,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) if self.health == Health::Working => write!(f, "{name} is {}", self.text),
            Some(name) => write!(f, "{name}: {}", self.text),
            None => f.write_str(&self.text),
        }
    }
}

impl Reason {
    fn new(health: Health, subject: Subject, text: impl Into<String>) -> Reason {
        Reason {
            health,
            subject,
            name: None,
            waits_for: None,
            text: text.into(),
            remedy: None,
        }
    }

    fn waiting(subject: Subject, waits_for: impl Into<String>, text: impl Into<String>) -> Reason {
        Reason {
            waits_for: Some(waits_for.into()),
            ..Reason::new(Health::Waiting, subject, text)
        }
    }

    fn named(self, name: Foreign) -> Reason {
        Reason {
            name: Some(name),
            ..self
        }
    }

    fn remedy(self, remedy: impl Into<String>) -> Reason {
        Reason {
            remedy: Some(remedy.into()),
            ..self
        }
    }
}

/// The health of the node, with the reasons.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The health of the worst reason.
    pub health: Health,
    /// The reasons, with the worst first. A healthy node has none.
    pub reasons: Vec<Reason>,
}

impl Verdict {
    /// Returns the verdict that follows from these reasons.
    pub fn new(mut reasons: Vec<Reason>) -> Verdict {
        reasons.sort_by_key(|reason| std::cmp::Reverse(reason.health));
        Verdict {
            health: reasons.first().map(|reason| reason.health).unwrap_or_default(),
            reasons,
        }
    }

    /// Returns the verdict on the whole node.
    pub fn of(status: &Status) -> Verdict {
        let mut reasons = of_node(status);
        reasons.extend(status.bundles.iter().flat_map(of_bundle));
        let is_working = reasons.iter().any(|reason| reason.health == Health::Working);
        let imported = status
            .bundles
            .iter()
            .filter_map(|bundle| bundle.imported_at)
            .max();
        reasons.extend(status.required.iter().filter_map(|required| {
            let is_outdated = !required.is_current && imported > required.checked_at;
            of_required(required, is_working || is_outdated)
        }));
        reasons.extend(status.unpack.iter().flat_map(of_unpack));
        Verdict::new(reasons)
    }

    /// Returns the verdict on these bundles alone. It includes the node's own problems if they keep
    /// the bundles from their import.
    pub fn of_bundles<'s>(status: &Status, bundles: impl IntoIterator<Item = &'s BundleStatus>) -> Verdict {
        let mut reasons: Vec<Reason> = bundles.into_iter().flat_map(of_bundle).collect();
        let is_under_way = reasons.iter().any(|reason| reason.health.may_pass());
        if is_under_way || status.folders().any(|folder| folder.problem.is_some()) {
            let node = of_node(status).into_iter();
            reasons.extend(node.filter(|reason| reason.health != Health::Degraded));
        }
        Verdict::new(reasons)
    }

    /// Returns the verdict after a look at the images in containerd itself. While bundles are under
    /// way, their images change, so the look does not count.
    pub fn with_images(self, images: &[ImageStatus]) -> Verdict {
        let mut reasons = self.reasons;
        let is_of = |subject| reasons.iter().any(|reason: &Reason| reason.subject == subject);
        let is_restored = !is_of(Subject::Daemon) && !is_of(Subject::Folder);
        if reasons.iter().all(|reason| reason.health != Health::Working) {
            reasons.extend(images.iter().filter_map(|image| of_image(image, is_restored)));
        }
        Verdict::new(reasons)
    }

    /// Returns true if the node waits for containerd. The state of its images is unknown then.
    pub fn is_without_containerd(&self) -> bool {
        let mut reasons = self.reasons.iter();
        reasons.any(|reason| reason.subject == Subject::Containerd && reason.health == Health::Waiting)
    }

    /// Returns true if the node continues by itself for one of the reasons.
    pub fn may_pass(&self) -> bool {
        self.reasons.iter().any(|reason| reason.health.may_pass())
    }

    /// Returns the health in a few words: `waiting for containerd`.
    pub fn in_short(&self) -> String {
        let waits_for = self.reasons.first().and_then(|first| first.waits_for.as_ref());
        match waits_for {
            Some(what) => format!("{} for {what}", self.health.as_str()),
            None => self.health.as_str().to_owned(),
        }
    }

    /// Returns the verdict in a line: `waiting for containerd`, `failed: bad.tar: ... (and 2
    /// more)`.
    pub fn headline(&self) -> String {
        let text = self.in_short();
        let Some(first) = self.reasons.first() else {
            return text;
        };
        let text = format!("{text}: {first}");
        match self
            .reasons
            .iter()
            .filter(|reason| reason.health == self.health)
            .count()
        {
            0 | 1 => text,
            count => format!("{text} (and {} more)", count - 1),
        }
    }
}

fn of_node(status: &Status) -> Vec<Reason> {
    let mut reasons = Vec::new();
    if status.daemon.is_none() {
        let text = "the daemon is not running: nothing is imported and nothing restored";
        let reason = Reason::new(Health::Failed, Subject::Daemon, text);
        reasons.push(reason.remedy("systemctl enable --now airgapd.service"));
    }
    let containerd = &status.containerd;
    if !containerd.reachable {
        let remedy = "start containerd, or correct `address:`. `airgapd doctor` checks the socket";
        reasons.push(match &containerd.problem {
            Some(problem) => Reason::waiting(Subject::Containerd, "containerd", problem).remedy(remedy),
            None => {
                let text = format!("connecting to containerd on {}", containerd.socket);
                Reason::new(Health::Working, Subject::Containerd, text)
            }
        });
    }
    for (at, folder) in status.folders().enumerate() {
        reasons.extend(of_folder(folder, at == 0));
    }
    if let Some(problem) = &status.configuration_problem {
        let text = format!("the daemon does not use the configuration on disk: {problem}");
        let reason = Reason::new(Health::Degraded, Subject::Configuration, text);
        reasons
            .push(reason.remedy(
                "correct the mistakes that `airgapd config --check` names, then `systemctl reload airgapd.service`",
            ));
    }
    if let Some(problem) = &status.keys_problem {
        let text = format!("no new bundle is imported: {problem}");
        let reason = Reason::new(Health::Failed, Subject::Configuration, text);
        reasons.push(reason.remedy(
            "make the keys and lists usable as docs/admission.md describes, or set `signatures: off`",
        ));
    }
    if let Some(below) = status.disk.as_ref().and_then(|disk| disk.problem.as_ref()) {
        let reason = Reason::waiting(
            Subject::Disk,
            ROOM,
            format!("nothing is imported or restored: {below}"),
        );
        reasons.push(
            reason.remedy("free space on that disk, or lower `minFree`. The daemon notices the change"),
        );
    }
    reasons.extend(of_metrics(status));
    reasons
}

fn of_folder(folder: &FolderStatus, is_first: bool) -> Vec<Reason> {
    let mut reasons = Vec::new();
    if let Some(problem) = &folder.problem {
        let text = format!("{}: {problem}", folder.path);
        let reason = Reason::waiting(Subject::Folder, "the images folder", text);
        reasons.push(reason.remedy(match is_first {
            true => format!(
                "create the folder with `install -d -m 0755 {}` if it is missing. The daemon notices the change",
                folder.path
            ),
            false => "mount the folder or take it out of `imagesDirs`. The daemon notices a mount".to_owned(),
        }));
    }
    if let Some(vanished) = &folder.vanished {
        let text = format!("{}. Their images stay pinned", vanished.problem);
        let reason = Reason::new(Health::Degraded, Subject::Folder, text);
        reasons.push(reason.remedy(
            "mount the disk or bring the bundles back. If they will not return, run `airgapd release --vanished`",
        ));
    }
    reasons
}

/// Metrics that do not arrive. Alerts would consider the node silent, or rely on an old file.
fn of_metrics(status: &Status) -> Vec<Reason> {
    let new = |problem: &String| Reason::new(Health::Degraded, Subject::Metrics, problem);
    let file = status.metrics_file_problem.iter().map(|problem| {
        new(problem).remedy(
            "create the folder, and let the daemon write there: `systemctl edit airgapd.service`, [Service], ReadWritePaths=FOLDER",
        )
    });
    let address = status.metrics_address_problem.iter().map(|problem| {
        new(problem).remedy(
            "free the port, or install the drop-in metrics.conf (docs/metrics.md), which lets the service use the network",
        )
    });
    file.chain(address).collect()
}

const ROOM: &str = "room on containerd's disk";

/// Returns the reasons from a bundle. A bundle that is in place, or that has nothing for this node,
/// has none.
pub(crate) fn of_bundle(bundle: &BundleStatus) -> Vec<Reason> {
    let new = |health, text: String| Reason::new(health, Subject::Bundle, text);
    let error = bundle.error.as_ref();
    let said = || {
        bundle
            .waits_for
            .clone()
            .or_else(|| error.map(|error| error.text.clone()))
    };
    let waits = |what: &str, text: &str| {
        let text = said().unwrap_or_else(|| text.to_owned());
        Reason::waiting(Subject::Bundle, what, text)
    };
    let mut reasons = Vec::new();
    match bundle.state {
        State::Done | State::Skipped | State::Gone => {}
        State::Settling | State::Queued | State::Importing | State::Following | State::Checking => {
            reasons.push(new(Health::Working, bundle.state.as_str().to_owned()));
        }
        State::Stalled => reasons.push(
            waits("the end of an upload", "its upload has stopped")
                .remedy("finish the upload, or remove the file"),
        ),
        State::AwaitingChecksum => reasons.push(
            waits("a checksum", &format!("{}.sha256 is missing", bundle.name))
                .remedy("put that file beside the bundle, or set `checksums: if-present`"),
        ),
        State::AwaitingSignature => reasons.push(
            waits("a signature", "no signature of a trusted key speaks of it")
                .remedy("put its signature beside the bundle (docs/admission.md)"),
        ),
        State::Retrying => reasons.push(of_retry(error, said())),
        State::Failed => {
            let text = said().unwrap_or_else(|| "it failed".to_owned());
            let remedy = error.map(|error| remedy(error.class));
            reasons.push(Reason {
                remedy: remedy.map(str::to_owned),
                ..new(Health::Failed, text)
            });
        }
    }
    for name in &bundle.moved {
        let text =
            format!("another program moved the record {name} to another image: the daemon leaves it alone");
        let reason = new(Health::Degraded, text);
        reasons.push(
            reason.remedy("remove the record so that the daemon creates it again, or remove the bundle"),
        );
    }
    let named = reasons
        .into_iter()
        .map(|reason| reason.named(bundle.name.clone()));
    named.collect()
}

/// Returns the reason of a bundle that the daemon retries.
fn of_retry(error: Option<&ErrorStatus>, said: Option<String>) -> Reason {
    match (error.map(|error| error.class), said) {
        (Some(class @ ErrorClass::Space), said) => {
            let text = said.unwrap_or_else(|| "there is no room for it".to_owned());
            Reason::waiting(Subject::Bundle, ROOM, text).remedy(remedy(class))
        }
        (Some(class), said) => {
            let text = said.unwrap_or_else(|| "its last try failed".to_owned());
            Reason::waiting(Subject::Bundle, "another try", text).remedy(remedy(class))
        }
        // Nothing failed: another program removes its images again and again.
        (None, Some(text)) => {
            let reason = Reason::new(Health::Degraded, Subject::Bundle, text);
            reason.remedy("find the program that removes them, or remove the bundle")
        }
        // It gave its lane to another file.
        (None, None) => Reason::new(Health::Working, Subject::Bundle, "waiting for its turn"),
    }
}

/// Returns the remedy for a file that failed in this way.
fn remedy(class: ErrorClass) -> &'static str {
    match class {
        ErrorClass::Transient => "wait for the next try. `airgapd doctor` looks for the cause",
        ErrorClass::Space => "free space on that disk. The daemon resumes as soon as there is room",
        ErrorClass::Disk => "check the disk: `dmesg` and smartctl name the fault",
        ErrorClass::Bundle => {
            "copy the bundle again and compare its sha256sum. `airgapd inspect --verify FILE` checks every blob"
        }
        ErrorClass::Permanent => {
            "correct the cause that the message names. The daemon retries when the file or the configuration changes"
        }
        ErrorClass::Refused => {
            "bring a bundle that the rule allows, or change the rule that the message names"
        }
        ErrorClass::Crash => {
            "replace the file or update airgapd, and report the crash. `airgapd import FILE` tries it by hand"
        }
    }
}

fn of_image(image: &ImageStatus, is_restored: bool) -> Option<Reason> {
    let problem = image.problem()?;
    let reason = Reason::new(
        Health::Degraded,
        Subject::Image,
        format!("{problem} ({})", Foreign::new(&*image.bundle)),
    );
    let remedy = match image.record {
        RecordStatus::Elsewhere => {
            "remove the record so that the daemon creates it again, or remove the bundle"
        }
        _ if is_restored => "no action is needed: the daemon restores it, and `airgapd wait` waits for that",
        RecordStatus::Missing | RecordStatus::InPlace => "import its bundle with `airgapd import`",
    };
    Some(reason.named(Foreign::new(image.name.clone())).remedy(remedy))
}

/// `may_come` is true if bundles may bring the missing images, or have brought them since the
/// check.
fn of_required(required: &RequiredStatus, may_come: bool) -> Option<Reason> {
    if let Some(problem) = &required.problem {
        let text = format!("cannot check the required images: {problem}");
        let reason = Reason::new(Health::Failed, Subject::Required, text);
        return Some(reason.remedy("correct the source that `require` names"));
    }
    let looking = || Reason::new(Health::Working, Subject::Required, "checking the required images");
    let Some(summary) = required.summary() else {
        return Some(looking());
    };
    let mut missing = required.missing.iter().map(|image| image.reference.as_str());
    let first = missing.next()?;
    if may_come {
        return Some(looking());
    }
    let more = match missing.count() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let text = format!("{summary}: {}{more}", Foreign::new(first));
    let reason = Reason::new(Health::Failed, Subject::Required, text);
    Some(reason.remedy("`airgapd verify` names the nearest bundle or name for each"))
}

fn of_unpack(unpack: &UnpackStatus) -> Vec<Reason> {
    let failed = unpack.failed.iter().map(|image| {
        let text = format!(
            "cannot be unpacked, so no container of it starts: {}",
            image.reason
        );
        let reason =
            Reason::new(Health::Failed, Subject::Unpack, text).named(Foreign::new(image.name.clone()));
        reason.remedy("bring a bundle with a sound image")
    });
    let problem = unpack.problem.iter().map(|problem| {
        Reason::waiting(
            Subject::Unpack,
            "another try",
            format!("images are not unpacked: {problem}"),
        )
    });
    failed.chain(problem).collect()
}

#[cfg(test)]
mod tests;
