//! What a kubelet remembers of the images it pulled.
//!
//! A kubelet that verifies credentials (KEP-2535) writes a file below `image_manager` of its root
//! folder when it begins to pull an image (`pulling`), and another when the image is there
//! (`pulled`). A record lives on when its image is removed, and belongs to the image's id, not to
//! its name. So an image that comes by a bundle may meet the record of an earlier pull, and then
//! kubelet takes it for one that it pulled itself (kubernetes#138175). Source: the types
//! `ImagePulledRecord` and `ImagePullIntent` of `kubelet.config.k8s.io/v1beta1`, and what kubelet
//! 1.36 does with them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;

use crate::reader::Reader;
use crate::tree::{self, Tree};
use crate::{Limits, Problems};
use basics::digest;

/// The longest record in bytes: kubelet stops adding credentials to one at a hundred.
pub const LONGEST: usize = 1 << 20;

/// The two folders of records, as kubelet calls them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Folder {
    /// Images that were pulled.
    Pulled,
    /// Pulls that have begun and not ended.
    Pulling,
}

impl Folder {
    /// Both of them, in the order in which they have to be read. A kubelet that notes the end of a
    /// pull writes the second file before it removes the first, so a reader that goes the other way
    /// may miss both.
    pub const ALL: [Self; 2] = [Self::Pulling, Self::Pulled];

    /// The name below `image_manager`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pulled => "pulled",
            Self::Pulling => "pulling",
        }
    }
}

/// Whether kubelet reads a file of this name: its others are unfinished.
#[must_use]
pub fn is_record(file: &str) -> bool {
    file.starts_with(PREFIX) && !file.ends_with(".tmp")
}

/// What the name of each record begins with.
const PREFIX: &str = "sha256-";

/// The records of a kubelet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Records {
    /// Images that were pulled, by their id.
    pulled: BTreeMap<String, Pulled>,
    /// The files of pulls that have not ended, by the image as a pod gives it.
    pulling: BTreeMap<String, String>,
    /// Why kubelet cannot read a file, by its path below `image_manager`.
    unreadable: BTreeMap<String, String>,
}

/// One image that was pulled.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pulled {
    file: String,
    /// Who may use it, by the repository as a pod gives it.
    access: BTreeMap<String, Access>,
}

/// Who may use an image that kubelet pulled.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Access {
    /// Every pod: it was pulled without credentials, or with those of the node.
    EveryPod,
    /// Pods with one of these; each is a secret or a service account with its namespace.
    Holders(Vec<String>),
}

/// Why kubelet does not let a pod use an image that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The record that is to blame, by its path below `image_manager`.
    pub file: String,
    /// What is in it.
    pub reason: Reason,
}

/// What a record has that makes kubelet refuse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It cannot be read, and kubelet then refuses whatever its policy is.
    Unreadable(String),
    /// It allows other repositories of the same image; where there is none, a crash cut the pull
    /// short.
    OtherRepositories(Vec<String>),
    /// It allows pods that bring one of these credentials. Whether a pod does is not known here.
    Credentials(Vec<String>),
    /// A pull has begun and its end was not noted.
    Unfinished,
}

impl Reason {
    /// Whether every pod is refused, whatever it brings.
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
                "kubelet has a record of pulling this image that allows no pod to use it, as a crash during the pull leaves it",
            ),
            Self::OtherRepositories(others) => write!(
                f,
                "kubelet pulled this very image as {}, so it wants credentials for any other repository",
                others.join(", ")
            ),
            Self::Credentials(holders) => write!(
                f,
                "kubelet pulled this very image with credentials, so it refuses pods without {}",
                holders.join(" or ")
            ),
            Self::Unfinished => f.write_str("kubelet began to pull this image and has not noted how that ended"),
        }
    }
}

impl Records {
    /// Takes one file in. What is in it may be anything: a file that cannot be read is a reason to
    /// refuse.
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

    /// Takes one file in that cannot even be read as text.
    pub fn add_unreadable(&mut self, folder: Folder, file: &str, why: &str) {
        self.unreadable
            .insert(format!("{}/{file}", folder.name()), why.to_owned());
    }

    /// How many files were taken in.
    #[must_use]
    pub fn count(&self) -> usize {
        self.pulled.len() + self.pulling.len() + self.unreadable.len()
    }

    /// What stands in the way before any policy is asked: a record of this image that cannot be
    /// read.
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

    /// What the records say of an image that a pod gives like that; `None` where kubelet never
    /// pulled it.
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

/// The repository of a reference as it stands there, without tag and digest. kubelet completes no
/// name before it looks one up in its records and in `preloadedImagesVerificationAllowlist`.
#[must_use]
pub fn repository(given: &str) -> &str {
    let name = given.split('@').next().unwrap_or(given);
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    }
}

/// The name of the file for an image's id, or for an image as a pod gives it.
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

/// Reads the only object of a text, which must be of that kind.
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
        reader.complain(format!("there is no {kind} in it"));
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

    /// What the reason of a refusal says; empty where there is none.
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
            // One image to CRI, two repositories to kubelet.
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
        assert!(said(&records, APP).contains("began to pull"));
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
