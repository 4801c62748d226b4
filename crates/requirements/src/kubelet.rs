//! The settings of a kubelet that block images which were imported and not pulled.
//!
//! The feature is `KubeletEnsureSecretPulledImages` (KEP-2535), alpha in Kubernetes 1.33, beta and
//! on by default in 1.35. With it, a kubelet may require credentials before a pod uses an image
//! that is already on the node. An airgapped node has no registry that could check them. Source:
//! Kubernetes documentation, "Ensure Image Pull Credential Verification", and the reference of
//! `kubelet.config.k8s.io/v1beta1`.

pub mod records;

use std::cell::RefCell;

pub use records::{Records, Refusal, repository};

use crate::reader::Reader;
use crate::tree;
use crate::{Limits, Problem, Problems};

/// The check of a kubelet before a pod may use an image that is already on the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Verification {
    /// No check for any image.
    NeverVerify,
    /// No check for images that kubelet did not pull itself. The default.
    #[default]
    NeverVerifyPreloadedImages,
    /// No check for images that kubelet did not pull and that are on the list.
    NeverVerifyAllowlistedImages,
    /// Credentials for every image.
    AlwaysVerify,
}

/// The settings of a kubelet that concern images.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kubelet {
    /// `imagePullCredentialsVerificationPolicy`.
    verification: Verification,
    /// `preloadedImagesVerificationAllowlist`: image names without tag or digest, some with `/*` at
    /// the end.
    allowlist: Vec<String>,
    /// `staticPodPath`.
    pub static_pods: Option<String>,
}

/// Reads the `KubeletConfiguration` in a text.
///
/// # Errors
///
/// Returns every value of the wrong type and every value that kubelet does not know, each with its
/// path.
pub fn parse(text: &str, limits: &Limits) -> Result<Kubelet, Problems> {
    let (documents, problems) = tree::documents(text, limits);
    if !problems.is_empty() {
        return Err(Problems(problems));
    }
    let problems = RefCell::default();
    let mut kubelet = Kubelet::default();
    let is_kubelet = |tree: &tree::Tree| tree.text("kind") == Some("KubeletConfiguration");
    match documents.iter().find(|document| is_kubelet(&document.tree)) {
        Some(document) => kubelet = read(&Reader::new(&document.tree, "", &problems)),
        None => problems.borrow_mut().push(Problem {
            line: None,
            at: String::new(),
            reason: "it has no object of the kind KubeletConfiguration".to_owned(),
        }),
    }
    match problems.into_inner() {
        problems if problems.is_empty() => Ok(kubelet),
        problems => Err(Problems(problems)),
    }
}

fn read(config: &Reader<'_>) -> Kubelet {
    let policy = config.get("imagePullCredentialsVerificationPolicy");
    let verification = match policy.text() {
        None => Verification::default(),
        Some("NeverVerify") => Verification::NeverVerify,
        Some("NeverVerifyPreloadedImages") => Verification::NeverVerifyPreloadedImages,
        Some("NeverVerifyAllowlistedImages") => Verification::NeverVerifyAllowlistedImages,
        Some("AlwaysVerify") => Verification::AlwaysVerify,
        Some(other) => {
            policy.complain(format!("is {other:?}, which kubelet does not know"));
            Verification::default()
        }
    };
    let allowlist = config.get("preloadedImagesVerificationAllowlist").elements();
    Kubelet {
        verification,
        allowlist: allowlist
            .iter()
            .filter_map(Reader::text)
            .map(str::to_owned)
            .collect(),
        static_pods: config.get("staticPodPath").text().map(str::to_owned),
    }
}

/// The decision of a kubelet about an image that is on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Pods may use it.
    Allowed,
    /// Its settings block the image: the reason and the remedy.
    Settings(String),
    /// One of its records blocks the image.
    Record(Refusal),
}

impl Kubelet {
    /// Decides if this kubelet lets a pod use an image that is on the node. `records` are those of
    /// its own pulls. `given` is the image as the pod gives it, and `id` is its id in CRI.
    #[must_use]
    pub fn verdict(&self, records: &Records, given: &str, id: &str) -> Verdict {
        if let Some(refusal) = records.unreadable(given, id) {
            return Verdict::Record(refusal);
        }
        let said = records.said_of(given, id);
        if self.verification == Verification::NeverVerifyPreloadedImages {
            return match said {
                None | Some(Ok(())) => Verdict::Allowed,
                Some(Err(refusal)) => Verdict::Record(refusal),
            };
        }
        // A kubelet that requires credentials for every image accepts a record that allows the pod.
        match self.objection(repository(given)) {
            Some(objection) if said != Some(Ok(())) => Verdict::Settings(objection),
            _ => Verdict::Allowed,
        }
    }

    /// Returns the reason if this kubelet requires credentials for an imported image of this
    /// repository.
    ///
    /// The repository is given as in the pod: kubelet compares that text with its list, and
    /// `busybox` is not `docker.io/library/busybox`.
    #[must_use]
    pub fn objection(&self, repository: &str) -> Option<String> {
        let policy = match self.verification {
            Verification::NeverVerify | Verification::NeverVerifyPreloadedImages => return None,
            Verification::NeverVerifyAllowlistedImages if self.allows(repository) => return None,
            Verification::NeverVerifyAllowlistedImages => "NeverVerifyAllowlistedImages",
            Verification::AlwaysVerify => "AlwaysVerify",
        };
        let remedy = match self.verification {
            Verification::NeverVerifyAllowlistedImages => {
                format!("add {repository:?} to preloadedImagesVerificationAllowlist")
            }
            _ => "use NeverVerifyPreloadedImages".to_owned(),
        };
        Some(format!(
            "kubelet's imagePullCredentialsVerificationPolicy is {policy}, so it requires credentials for imported images: {remedy}"
        ))
    }

    fn allows(&self, repository: &str) -> bool {
        self.allowlist.iter().any(|entry| match entry.strip_suffix("/*") {
            Some(prefix) => repository
                .strip_prefix(prefix)
                .is_some_and(|rest| rest.starts_with('/')),
            None => entry == repository,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kubelet(settings: &str) -> Kubelet {
        let text =
            format!("apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n{settings}\n");
        parse(&text, &Limits::default()).unwrap()
    }

    #[test]
    fn only_strict_policies_object_and_the_list_has_exceptions() {
        let listed = "imagePullCredentialsVerificationPolicy: NeverVerifyAllowlistedImages\n\
            preloadedImagesVerificationAllowlist: [docker.io/library/busybox, quay.io/k0sproject/*]";
        let always = "imagePullCredentialsVerificationPolicy: AlwaysVerify";
        for (settings, repository, objects) in [
            ("", "docker.io/library/busybox", false),
            (
                "imagePullCredentialsVerificationPolicy: NeverVerify",
                "a.b/c",
                false,
            ),
            (
                "imagePullCredentialsVerificationPolicy: NeverVerifyPreloadedImages",
                "a.b/c",
                false,
            ),
            (always, "docker.io/library/busybox", true),
            (listed, "docker.io/library/busybox", false),
            (listed, "docker.io/library/busybox2", true),
            (listed, "quay.io/k0sproject/pause", false),
            (listed, "quay.io/k0sproject", true),
            (listed, "quay.io/k0sprojects/pause", true),
        ] {
            assert_eq!(
                kubelet(settings).objection(repository).is_some(),
                objects,
                "{settings} {repository}"
            );
        }
    }

    #[test]
    fn mistakes_are_named_by_their_path() {
        for (text, part) in [
            ("kind: Pod", "KubeletConfiguration"),
            (
                "kind: KubeletConfiguration\nimagePullCredentialsVerificationPolicy: Sometimes",
                "Sometimes",
            ),
            (
                "kind: KubeletConfiguration\npreloadedImagesVerificationAllowlist: a",
                "must be a list",
            ),
            ("a: [", "not valid YAML"),
        ] {
            let error = parse(text, &Limits::default()).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
