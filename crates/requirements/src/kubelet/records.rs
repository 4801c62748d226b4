//! Records that a kubelet keeps about the images it pulled.
//!
//! A kubelet that verifies credentials (KEP-2535) writes files below `image_manager` of its root
//! folder. It writes one when it starts to pull an image (`pulling`), and another when the pull has
//! ended (`pulled`). A record stays when its image is removed, and it belongs to the image's id,
//! not to its name. So a record of an earlier pull may apply to an image from a bundle. kubelet
//! then treats the image as pulled by itself (kubernetes#138175). Source: the types
//! `ImagePulledRecord` and `ImagePullIntent` of `kubelet.config.k8s.io/v1beta1`, and the behaviour
//! of kubelet 1.36.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;

use crate::reader::Reader;
use crate::tree::{self, Tree};
use crate::{Limits, Problems};
use basics::digest;

/// Longest record, in bytes. kubelet adds at most a hundred credentials to a record.
pub const LONGEST: usize = 1 << 20;

/// The two folders of records, by kubelet's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Folder {
    /// Pulls that have ended.
    Pulled,
    /// Pulls that have started and not ended.
    Pulling,
}

impl Folder {
    /// Both folders, in the order in which they must be read. At the end of a pull kubelet writes
    /// the second file before it removes the first. A reader in the other order may miss both.
    pub const ALL: [Self; 2] = [Self::Pulling, Self::Pulled];

    /// Returns the name below `image_manager`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pulled => "pulled",
            Self::Pulling => "pulling",
        }
    }
}

/// Returns true if kubelet reads a file of this name. Its other files are unfinished.
#[must_use]
pub fn is_record(file: &str) -> bool {
    file.starts_with(PREFIX) && !file.ends_with(".tmp")
}

/// Start of the name of each record.
const PREFIX: &str = "sha256-";

/// The records of a kubelet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Records {
    /// Pulled images, by their id.
    pulled: BTreeMap<String, Pulled>,
    /// Files of pulls that have not ended, by the image as a pod gives it.
    pulling: BTreeMap<String, String>,
    /// Reasons why kubelet cannot read a file, by the file's path below `image_manager`.
    unreadable: BTreeMap<String, String>,
}

/// A pulled image.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pulled {
    file: String,
    /// Pods that may use it, by the repository as a pod gives it.
    access: BTreeMap<String, Access>,
}

/// The pods that may use an image that kubelet pulled.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Access {
    /// Every pod: kubelet pulled the image without credentials, or with those of the node.
    EveryPod,
    /// Pods with one of these credentials. Each is a secret or a service account with its
    /// namespace.
    Holders(Vec<String>),
}

/// Reason why kubelet does not let a pod use an image that is on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Path of the record that causes the refusal, below `image_manager`.
    pub file: String,
    /// The content of the record that causes it.
    pub reason: Reason,
}

/// The content of a record that makes kubelet refuse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The record is unreadable, and kubelet then refuses under every policy.
    Unreadable(String),
    /// The record allows only these other repositories of the same image. The list is empty if a
    /// crash cut the pull short.
    OtherRepositories(Vec<String>),
    /// The record allows pods with one of these credentials. The credentials of a pod are not known
    /// here.
    Credentials(Vec<String>),
    /// A pull has started and kubelet recorded no end.
    Unfinished,
}

impl Reason {
    /// Returns true if kubelet refuses every pod, with any credentials.
    #[must_use]
    pub fn is_certain(&self) -> bool {
        !matches!(self, Self::Credentials(_))
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(why) => write!(f, "kubelet cannot read its record of this image: {why}"),
            Self::OtherRepositories(others) if others.is_empty() => f.write_str(
                "kubelet's record of this image allows no pod to use it, as after a crash during the pull",
            ),
            Self::OtherRepositories(others) => write!(
                f,
                "kubelet pulled this same image as {}, so it requires credentials for any other repository",
                others.join(", ")
            ),
            Self::Credentials(holders) => write!(
                f,
                "kubelet pulled this same image with credentials, so it refuses pods without {}",
                holders.join(" or ")
            ),
            Self::Unfinished => {
                f.write_str("kubelet started to pull this image and has no record that the pull ended")
            }
        }
    }
}

impl Records {
    /// Adds one file. An unreadable file is no error here, since kubelet refuses the image because
    /// of it.
    pub fn add(&mut self, folder: Folder, file: &str, text: &str) {
        let path = format!("{}/{file}", folder.name());
        let taken = match folder {
            Folder::Pulled => pulled(text, &path).map(|(id, record)| drop(self.pulled.insert(id, record))),
            Folder::Pulling => intent(text).map(|image| drop(self.pulling.insert(image, path.clone()))),
        };
        if let Err(problems) = taken {
            self.add_unreadable(folder, file, &problems.to_string());
        }
    }

    /// Adds one file that cannot be read as text.
    pub fn add_unreadable(&mut self, folder: Folder, file: &str, why: &str) {
        self.unreadable
            .insert(format!("{}/{file}", folder.name()), why.to_owned());
    }

    /// Returns the number of added files.
    #[must_use]
    pub fn count(&self) -> usize {
        self.pulled.len() + self.pulling.len() + self.unreadable.len()
    }

    /// Returns the unreadable record of this image, which blocks it under every policy.
    pub(super) fn unreadable(&self, given: &str, id: &str) -> Option<Refusal> {
        let known = self.pulled.contains_key(id);
        let pulled = (!known).then_some((Folder::Pulled, id));
        let pulling = (!known && !self.pulling.contains_key(given)).then_some((Folder::Pulling, given));
        pulled.into_iter().chain(pulling).find_map(|(folder, key)| {
            let file = format!("{}/{}", folder.name(), file_of(key));
            let why = self.unreadable.get(&file)?.clone();
            let reason = Reason::Unreadable(why);
            Some(Refusal { file, reason })
        })
    }

    /// Returns the decision of the records about an image as a pod gives it, `None` if kubelet
    /// never pulled it.
    pub(super) fn said_of(&self, given: &str, id: &str) -> Option<Result<(), Refusal>> {
        let Some(record) = self.pulled.get(id) else {
            let refusal = |file: &String| Refusal {
                file: file.clone(),
                reason: Reason::Unfinished,
            };
            return self.pulling.get(given).map(|file| Err(refusal(file)));
        };
        let reason = match record.access.get(repository(given)) {
            Some(Access::EveryPod) => return Some(Ok(())),
            Some(Access::Holders(holders)) if !holders.is_empty() => Reason::Credentials(holders.clone()),
            Some(Access::Holders(_)) => Reason::OtherRepositories(Vec::new()),
            None => Reason::OtherRepositories(record.access.keys().cloned().collect()),
        };
        let file = record.file.clone();
        Some(Err(Refusal { file, reason }))
    }
}

/// Returns the repository of a reference as written, without tag and digest.
///
/// kubelet looks up names in its records and in `preloadedImagesVerificationAllowlist` without
/// completing them first.
#[must_use]
pub fn repository(given: &str) -> &str {
    let name = given.split('@').next().unwrap_or(given);
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    }
}

/// Returns the file name for an image's id, or for an image as a pod gives it.
fn file_of(key: &str) -> String {
    format!("{PREFIX}{}", digest::sha256(key.as_bytes()).digest())
}

fn pulled(text: &str, path: &str) -> Result<(String, Pulled), Problems> {
    read(text, "ImagePulledRecord", |record| {
        let id = required(&record.get("imageRef"));
        let mapping = record.get("credentialMapping");
        let entries = mapping.keys().into_iter().map(|repository| {
            let entry = mapping.get(&repository);
            (repository, access(&entry))
        });
        let access = entries.collect();
        let file = path.to_owned();
        (id, Pulled { file, access })
    })
}

fn access(entry: &Reader<'_>) -> Access {
    if entry.get("nodePodsAccessible").bool() == Some(true) {
        return Access::EveryPod;
    }
    let names = |key: &str, kind: &str| {
        let holders = entry.get(key).elements();
        let name = |holder: &Reader<'_>| {
            let part = |key: &str| holder.get(key).text().unwrap_or_default().to_owned();
            format!("{kind} {}/{}", part("namespace"), part("name"))
        };
        holders.iter().map(name).collect::<Vec<_>>()
    };
    let secrets = names("kubernetesSecrets", "secret");
    let accounts = names("kubernetesServiceAccounts", "service account");
    Access::Holders(secrets.into_iter().chain(accounts).collect())
}

fn intent(text: &str) -> Result<String, Problems> {
    read(text, "ImagePullIntent", |intent| required(&intent.get("image")))
}

fn required(reader: &Reader<'_>) -> String {
    let text = reader.text();
    if text.is_none() {
        reader.complain("is missing".to_owned());
    }
    text.unwrap_or_default().to_owned()
}

/// Reads the only object of a text, which must be of `kind`.
fn read<T>(text: &str, kind: &str, take: impl FnOnce(&Reader<'_>) -> T) -> Result<T, Problems> {
    let limits = Limits {
        text: LONGEST,
        ..Limits::default()
    };
    let (documents, problems) = tree::documents(text, &limits);
    if !problems.is_empty() {
        return Err(Problems(problems));
    }
    let problems = RefCell::default();
    let nothing = Tree::Null;
    let tree = documents.first().map_or(&nothing, |document| &document.tree);
    let reader = Reader::new(tree, "", &problems);
    let is_ours = |version: &str| version.starts_with("kubelet.config.k8s.io/");
    if tree.text("kind") != Some(kind) || !tree.text("apiVersion").is_some_and(is_ours) {
        reader.complain(format!("it has no {kind}"));
        return Err(Problems(problems.into_inner()));
    }
    let taken = take(&reader);
    match problems.into_inner() {
        problems if problems.is_empty() => Ok(taken),
        problems => Err(Problems(problems)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubelet::{Kubelet, Verdict, Verification};

    const ID: &str = "sha256:aa";
    const APP: &str = "registry.test/app:1";

    fn record(mapping: &str) -> String {
        format!(
            r#"{{"kind":"ImagePulledRecord","apiVersion":"kubelet.config.k8s.io/v1beta1","lastUpdatedTime":"2026-11-01T12:00:00Z","imageRef":"{ID}","credentialMapping":{mapping}}}"#
        )
    }

    fn intent(image: &str) -> String {
        format!(
            r#"{{"kind":"ImagePullIntent","apiVersion":"kubelet.config.k8s.io/v1beta1","image":"{image}"}}"#
        )
    }

    fn records(folder: Folder, key: &str, text: &str) -> Records {
        let mut records = Records::default();
        records.add(folder, &file_of(key), text);
        assert_eq!(records.count(), 1);
        records
    }

    fn verdict(verification: Verification, records: &Records, given: &str) -> Verdict {
        let kubelet = Kubelet {
            verification,
            ..Kubelet::default()
        };
        kubelet.verdict(records, given, ID)
    }

    /// Returns the reason of a refusal as text, empty if the image is allowed.
    fn said(records: &Records, given: &str) -> String {
        match verdict(Verification::default(), records, given) {
            Verdict::Allowed => String::new(),
            Verdict::Settings(objection) => objection,
            Verdict::Record(refusal) => refusal.reason.to_string(),
        }
    }

    #[test]
    fn a_record_counts_for_the_repository_as_the_pod_gives_it() {
        let anyone = r#"{"nodePodsAccessible":true}"#;
        let secret =
            r#"{"kubernetesSecrets":[{"uid":"u","namespace":"shop","name":"pull","credentialHash":"h"}]}"#;
        let account = r#"{"kubernetesServiceAccounts":[{"uid":"u","namespace":"shop","name":"web"}]}"#;
        for (mapping, given, expected) in [
            (format!(r#"{{"registry.test/app":{anyone}}}"#), APP, ""),
            (
                format!(r#"{{"registry.test/app":{anyone}}}"#),
                "registry.test/app@sha256:bb",
                "",
            ),
            (
                format!(r#"{{"registry.test/app":{anyone}}}"#),
                "registry.test/app:1@sha256:bb",
                "",
            ),
            (format!(r#"{{"quay.io/app":{anyone}}}"#), APP, "as quay.io/app,"),
            // CRI sees one image here, kubelet sees two repositories.
            (
                format!(r#"{{"docker.io/library/app":{anyone}}}"#),
                "app:1",
                "as docker.io/library/app,",
            ),
            (
                format!(r#"{{"registry.test/app":{secret}}}"#),
                APP,
                "pods without secret shop/pull",
            ),
            (
                format!(r#"{{"registry.test/app":{account}}}"#),
                APP,
                "pods without service account shop/web",
            ),
            (r#"{"registry.test/app":{}}"#.to_owned(), APP, "allows no pod"),
            ("{}".to_owned(), APP, "allows no pod"),
            ("null".to_owned(), APP, "allows no pod"),
        ] {
            let said = said(&records(Folder::Pulled, ID, &record(&mapping)), given);
            assert!(
                said.contains(expected) && said.is_empty() == expected.is_empty(),
                "{mapping} {given}: {said}"
            );
        }
    }

    #[test]
    fn an_image_without_a_record_of_its_own_is_allowed() {
        assert_eq!(said(&Records::default(), APP), "");
        let mut other = Records::default();
        let text = record("{}").replace(ID, "sha256:cc");
        other.add(Folder::Pulled, &file_of("sha256:cc"), &text);
        other.add(
            Folder::Pulling,
            &file_of("registry.test/app:2"),
            &intent("registry.test/app:2"),
        );
        assert_eq!(said(&other, APP), "");
    }

    #[test]
    fn a_pull_that_has_not_ended_counts_for_the_very_same_text() {
        let records = records(Folder::Pulling, APP, &intent(APP));
        assert!(said(&records, APP).contains("started to pull"));
        assert_eq!(said(&records, "registry.test/app:1@sha256:bb"), "");
    }

    #[test]
    fn the_policy_decides_whether_a_record_matters_unless_it_cannot_be_read() {
        let refusing = records(Folder::Pulled, ID, &record("{}"));
        let allowing = records(
            Folder::Pulled,
            ID,
            &record(r#"{"registry.test/app":{"nodePodsAccessible":true}}"#),
        );
        let broken = records(Folder::Pulled, ID, "{");
        let half = records(Folder::Pulling, APP, &intent(""));
        use Verification::{
            AlwaysVerify, NeverVerify, NeverVerifyAllowlistedImages, NeverVerifyPreloadedImages,
        };
        for (policy, records, expected) in [
            (NeverVerify, &refusing, "allowed"),
            (NeverVerifyPreloadedImages, &refusing, "record"),
            (NeverVerifyAllowlistedImages, &refusing, "settings"),
            (AlwaysVerify, &refusing, "settings"),
            (NeverVerify, &allowing, "allowed"),
            (NeverVerifyPreloadedImages, &allowing, "allowed"),
            (NeverVerifyAllowlistedImages, &allowing, "allowed"),
            (AlwaysVerify, &allowing, "allowed"),
            (NeverVerify, &broken, "record"),
            (AlwaysVerify, &broken, "record"),
            (NeverVerify, &half, "record"),
        ] {
            let verdict = verdict(policy, records, APP);
            let kind = match &verdict {
                Verdict::Allowed => "allowed",
                Verdict::Settings(_) => "settings",
                Verdict::Record(_) => "record",
            };
            assert_eq!(kind, expected, "{policy:?} {verdict:?}");
        }
    }

    #[test]
    fn files_that_are_no_records_are_named_and_temporary_ones_passed_over() {
        for (file, expected) in [
            ("sha256-ab", true),
            ("sha256-ab.tmp", false),
            ("notes", false),
            ("", false),
        ] {
            assert_eq!(is_record(file), expected, "{file}");
        }
        for (text, part) in [
            ("", "no ImagePulledRecord"),
            ("[]", "no ImagePulledRecord"),
            ("kind: ImagePulledRecord", "no ImagePulledRecord"),
            (&*intent(APP), "no ImagePulledRecord"),
            (
                r#"{"kind":"ImagePulledRecord","apiVersion":"kubelet.config.k8s.io/v1beta1"}"#,
                "imageRef is missing",
            ),
            (&*record(r#"{"a":[]}"#), "must be a mapping"),
            (&*record("[]"), "must be a mapping"),
            (&*"x".repeat(LONGEST + 1), "more than"),
        ] {
            let said = said(&records(Folder::Pulled, ID, text), APP);
            assert!(said.contains("cannot read") && said.contains(part), "{said}");
        }
    }

    /// A pair from the test data of kubelet 1.36.
    #[test]
    fn the_name_of_a_record_is_the_hash_of_what_it_is_about() {
        assert_eq!(
            file_of("testimageref"),
            "sha256-b3c0cc4278800b03a308ceb2611161430df571ca733122f0a40ac8b9792a9064"
        );
    }
}
