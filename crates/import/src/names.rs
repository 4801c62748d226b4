//! Image names: from an archive's name of an image to the names of its records in containerd.
//!
//! CRI looks up a pod's image under its normalised reference and under nothing else. A record with
//! another name is invisible to kubelet and cannot be removed through CRI. containerd's own
//! importer takes the names of an OCI layout as they are. This module normalises them. It never
//! invents a repository: a plain tag needs a base name, and an image without a name needs one from
//! the operator. Otherwise the image is reported.

mod reference;

use std::collections::{BTreeMap, HashSet};

use basics::foreign::quoted;
use bundle::RawName;
use oci_spec::image::Digest;
use serde::{Deserialize, Serialize};

pub use self::reference::{InvalidReference, Reference};
use crate::pattern::Pattern;

/// The `name@digest` records that a named image gets, so that pods pinned by digest find it
/// offline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DigestReferences {
    /// None.
    None,
    /// The digest of the record's target. Most pods are pinned to this digest.
    #[default]
    Target,
    /// The target's digest and the digest of each imported manifest below an index.
    All,
}

/// A prefix of names, and its replacement on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alias {
    /// The prefix of names in bundles, such as `quay.io/k0sproject`.
    pub from: String,
    /// The text in place of the prefix in the second name.
    pub to: String,
}

impl Alias {
    /// Returns the second name of `reference`, if the prefix ends at a boundary of the reference.
    fn apply(&self, reference: &Reference) -> Option<Result<Reference, InvalidReference>> {
        let text = reference.to_string();
        let rest = text.strip_prefix(&self.from)?;
        let at_boundary = self.from.ends_with('/') || rest.is_empty() || rest.starts_with(['/', ':', '@']);
        at_boundary.then(|| format!("{}{rest}", self.to).parse())
    }
}

/// The rules for naming images on import.
#[derive(Clone, Debug, Default)]
pub struct Naming {
    /// Second names by prefix.
    pub aliases: Vec<Alias>,
    /// References for images (by target digest) that the archive leaves without a name.
    pub names: BTreeMap<String, Reference>,
    /// The repository of plain tags.
    pub base_name: Option<String>,
    /// The `name@digest` records to add.
    pub digest_references: DigestReferences,
    /// Patterns of the names that a bundle may use, as normalised references. An empty list allows
    /// every name.
    pub allowed: Vec<Pattern>,
    /// The scopes of the keys that have signed the bundle. A record's name outside of all of them
    /// refuses its image. `None` if nothing asks for signatures.
    pub scopes: Option<Vec<Scope>>,
}

/// The names that bundles with a valid signature of a key may use.
#[derive(Clone, Debug, PartialEq)]
pub struct Scope {
    /// The key, fit to print.
    pub key: String,
    /// Patterns of normalised references. An empty list allows no name.
    pub names: Vec<Pattern>,
}

/// The names of one image, and the problems with its other names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// References of the target itself, in order, without repetition.
    pub references: Vec<Reference>,
    /// Names that were not used, each with the reason.
    pub refused: Vec<String>,
    /// Number of refused names that only `allowedNames` forbids.
    pub forbidden: usize,
}

impl Naming {
    /// Returns the names of an image that the archive calls `raw`, for a record that would point to
    /// `target`.
    ///
    /// The names do not include references to manifests below an index.
    /// [`Naming::manifest_references`] returns those.
    #[must_use]
    pub fn names_of(&self, raw: &[RawName], target: &Digest) -> Names {
        let mut names = Names::default();
        for name in raw {
            match self.reference_of(name, target) {
                Ok(references) => self.add_allowed(&mut names, references),
                Err(reason) => names.refused.push(reason),
            }
        }
        if let Some(given) = self.names.get(target.as_ref()) {
            names.references.push(given.clone());
        }
        self.add_digest_names(&mut names.references, target);
        self.add_aliases(&mut names);
        keep_first_of_each(&mut names.references);
        names
    }

    /// Returns true if bundles may use this name.
    #[must_use]
    pub fn allows(&self, reference: &Reference) -> bool {
        let text = reference.to_string();
        self.allowed.is_empty() || self.allowed.iter().any(|pattern| pattern.matches(&text))
    }

    /// Returns why the keys that have signed the bundle may not give this name to a record. Returns
    /// `None` if a key may, or if nothing asks for signatures.
    pub(crate) fn out_of_scope(&self, name: &str) -> Option<String> {
        let scopes = self.scopes.as_ref()?;
        let mut patterns = scopes.iter().flat_map(|scope| &scope.names);
        if patterns.any(|pattern| pattern.matches(name)) {
            return None;
        }
        let keys: Vec<&str> = scopes.iter().map(|scope| scope.key.as_str()).collect();
        let who = match keys[..] {
            [key] => format!("key {key} may not"),
            _ => format!("none of the keys [{}] may", keys.join(", ")),
        };
        Some(format!(
            "{who} give the name {name}: if it should, add a pattern for the name to the `.allow` file of the key"
        ))
    }

    /// Returns the `name@digest` references of a manifest below the index with these `names`.
    #[must_use]
    pub fn manifest_references(&self, names: &[Reference], manifest: &Digest) -> Vec<Reference> {
        if self.digest_references != DigestReferences::All {
            return Vec::new();
        }
        let mut references: Vec<_> = names.iter().map(|name| name.by_digest(manifest)).collect();
        keep_first_of_each(&mut references);
        references
    }

    /// Returns the number of `name@digest` references that each manifest below an index gets from
    /// these names.
    pub(crate) fn repositories(&self, names: &[Reference]) -> usize {
        if self.digest_references != DigestReferences::All {
            return 0;
        }
        let repositories = names.iter().map(Reference::repository);
        repositories.collect::<HashSet<_>>().len()
    }

    fn reference_of(&self, name: &RawName, target: &Digest) -> Result<Vec<Reference>, String> {
        let text = match name {
            RawName::RefName(tag) if is_plain_tag(tag) => self.with_base_name(tag)?,
            RawName::RefName(text) | RawName::ContainerdName(text) | RawName::RepoTag(text) => text.clone(),
        };
        let reference: Reference = text.parse().map_err(|e: InvalidReference| e.to_string())?;
        if reference.digest().is_some_and(|digest| digest != target.as_ref()) {
            return Err(format!(
                "{} names a digest that is not the image's ({target})",
                quoted(&text)
            ));
        }
        let parts = [reference.by_tag(), reference.only_digest()];
        let mut references: Vec<Reference> = parts.into_iter().flatten().collect();
        if references.len() > 1 {
            references.push(reference);
        }
        Ok(references)
    }

    /// Takes the names that a bundle may use. Names that follow from an allowed name (its digest,
    /// its aliases) need no permission. The same holds for names from the operator. The bundle did
    /// not choose any of these.
    fn add_allowed(&self, names: &mut Names, references: Vec<Reference>) {
        for reference in references {
            if self.allows(&reference) {
                names.references.push(reference);
            } else {
                names.forbidden += 1;
                names.refused.push(format!(
                    "{reference} is not among the names that allowedNames allows"
                ));
            }
        }
    }

    fn with_base_name(&self, tag: &str) -> Result<String, String> {
        match &self.base_name {
            Some(base) => Ok(format!("{base}:{tag}")),
            None => Err(format!(
                "{} is a plain tag without a repository: set baseName, or name the image with --name DIGEST=REFERENCE",
                quoted(tag)
            )),
        }
    }

    fn add_digest_names(&self, references: &mut Vec<Reference>, target: &Digest) {
        if self.digest_references == DigestReferences::None {
            return;
        }
        let by_digest: Vec<_> = references.iter().map(|name| name.by_digest(target)).collect();
        references.extend(by_digest);
    }

    fn add_aliases(&self, names: &mut Names) {
        let mut second = Vec::new();
        for alias in &self.aliases {
            for result in names.references.iter().filter_map(|name| alias.apply(name)) {
                match result {
                    Ok(name) => second.push(name),
                    Err(error) => names
                        .refused
                        .push(format!("alias {}={}: {error}", alias.from, alias.to)),
                }
            }
        }
        names.references.extend(second);
    }
}

/// Returns true for an annotation value that has a tag and no repository, such as `latest` or
/// `v1.2`.
fn is_plain_tag(text: &str) -> bool {
    !text.contains(['/', ':', '@'])
}

fn keep_first_of_each(references: &mut Vec<Reference>) {
    let mut seen = HashSet::new();
    references.retain(|reference| seen.insert(reference.clone()));
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const OTHER: &str = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    fn target() -> Digest {
        TARGET.parse().unwrap()
    }

    fn names(naming: &Naming, raw: RawName) -> Vec<String> {
        naming
            .names_of(&[raw], &target())
            .references
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn a_named_image_also_gets_its_digest_name() {
        let wanted = vec!["r.test/a:1".to_owned(), format!("r.test/a@{TARGET}")];
        assert_eq!(
            names(&Naming::default(), RawName::ContainerdName("r.test/a:1".into())),
            wanted
        );
    }

    #[test]
    fn tag_and_digest_give_three_names() {
        let raw = RawName::RefName(format!("x:1@{TARGET}"));
        let naming = Naming {
            digest_references: DigestReferences::None,
            ..Naming::default()
        };
        assert_eq!(
            names(&naming, raw),
            [
                "docker.io/library/x:1".to_owned(),
                format!("docker.io/library/x@{TARGET}"),
                format!("docker.io/library/x:1@{TARGET}"),
            ]
        );
    }

    #[test]
    fn a_digest_name_that_is_not_the_targets_is_refused() {
        let refused = Naming::default().names_of(&[RawName::RepoTag(format!("x@{OTHER}"))], &target());
        assert!(refused.references.is_empty());
        assert!(
            refused.refused[0].contains("is not the image's"),
            "{:?}",
            refused.refused
        );
    }

    #[test]
    fn a_plain_tag_needs_a_base_name() {
        let bare = Naming::default().names_of(&[RawName::RefName("latest".into())], &target());
        assert!(bare.references.is_empty());
        assert!(bare.refused[0].contains("baseName"), "{:?}", bare.refused);
        let based = Naming {
            base_name: Some("r.test/app".into()),
            digest_references: DigestReferences::None,
            ..Naming::default()
        };
        assert_eq!(
            names(&based, RawName::RefName("latest".into())),
            ["r.test/app:latest"]
        );
    }

    #[test]
    fn a_repo_tag_without_tag_is_latest() {
        let naming = Naming {
            digest_references: DigestReferences::None,
            ..Naming::default()
        };
        assert_eq!(
            names(&naming, RawName::RepoTag("busybox".into())),
            ["docker.io/library/busybox:latest"]
        );
    }

    #[test]
    fn only_allowed_names_are_taken_and_what_follows_from_them() {
        let naming = Naming {
            allowed: vec![
                "r.test/ok/*".parse().unwrap(),
                "docker.io/library/busybox:*".parse().unwrap(),
            ],
            aliases: vec![Alias {
                from: "r.test/ok".into(),
                to: "mirror.test/ok".into(),
            }],
            ..Naming::default()
        };
        let raw = ["r.test/ok/a:1", "r.test/other:1", "busybox", "r.test/ok"]
            .map(|name| RawName::RepoTag(name.into()));
        let taken = naming.names_of(&raw, &target());
        let texts: Vec<_> = taken.references.iter().map(ToString::to_string).collect();
        let wanted = [
            "r.test/ok/a:1".to_owned(),
            "docker.io/library/busybox:latest".to_owned(),
            format!("r.test/ok/a@{TARGET}"),
            format!("docker.io/library/busybox@{TARGET}"),
            "mirror.test/ok/a:1".to_owned(),
            format!("mirror.test/ok/a@{TARGET}"),
        ];
        assert_eq!(texts, wanted);
        assert_eq!(taken.forbidden, 2);
        for name in ["r.test/other:1", "r.test/ok:latest"] {
            assert!(
                taken
                    .refused
                    .iter()
                    .any(|why| why.starts_with(name) && why.contains("allowedNames")),
                "{name}: {:?}",
                taken.refused
            );
        }
    }

    #[test]
    fn a_name_that_the_operator_gives_needs_no_pattern() {
        let naming = Naming {
            allowed: vec!["r.test/*".parse().unwrap()],
            names: BTreeMap::from([(TARGET.to_owned(), "elsewhere.test/given:1".parse().unwrap())]),
            digest_references: DigestReferences::None,
            ..Naming::default()
        };
        let named = naming.names_of(&[RawName::RepoTag("x:1".into())], &target());
        assert_eq!(named.references, ["elsewhere.test/given:1".parse().unwrap()]);
        assert_eq!(named.forbidden, 1);
    }

    #[test]
    fn one_bad_name_spares_the_others() {
        let raw = [
            RawName::RepoTag("UPPER/Case:1".into()),
            RawName::RepoTag("ok:1".into()),
        ];
        let names = Naming::default().names_of(&raw, &target());
        assert_eq!(names.references[0].to_string(), "docker.io/library/ok:1");
        assert_eq!(names.refused.len(), 1);
    }

    #[test]
    fn an_alias_adds_a_second_name_at_a_boundary_only() {
        let alias = |from: &str, to: &str| Alias {
            from: from.into(),
            to: to.into(),
        };
        let naming = Naming {
            aliases: vec![
                alias("quay.io/k0s", "r.local/k0s"),
                alias("quay.io/k0sproject", "r.local/kp"),
            ],
            digest_references: DigestReferences::None,
            ..Naming::default()
        };
        assert_eq!(
            names(&naming, RawName::RepoTag("quay.io/k0sproject/x:1".into())),
            ["quay.io/k0sproject/x:1", "r.local/kp/x:1"]
        );
    }

    #[test]
    fn the_prefix_of_an_alias_ends_where_a_part_of_the_name_ends() {
        let table = [
            ("r.test/a/", Some("m.test/x:1")),
            ("r.test/a", Some("m.test//x:1")),
            ("r.test/a/x", Some("m.test/:1")),
            ("r.test/a/x:1", Some("m.test/")),
            ("r.test/a/x:", None),
            ("r.test/", Some("m.test/a/x:1")),
            ("r.test", Some("m.test//a/x:1")),
            ("r.tes", None),
            ("other.test", None),
        ];
        let reference: Reference = "r.test/a/x:1".parse().unwrap();
        for (from, text) in table {
            let alias = Alias {
                from: from.into(),
                to: "m.test/".into(),
            };
            let wanted = text.map(str::parse::<Reference>);
            assert_eq!(alias.apply(&reference), wanted, "{from}");
        }
    }

    #[test]
    fn an_alias_that_makes_no_name_is_told_and_spares_the_image() {
        let naming = Naming {
            aliases: vec![Alias {
                from: "r.test".into(),
                to: "Not A Host".into(),
            }],
            digest_references: DigestReferences::None,
            ..Naming::default()
        };
        let names = naming.names_of(&[RawName::RepoTag("r.test/a:1".into())], &target());
        assert_eq!(names.references, ["r.test/a:1".parse().unwrap()]);
        let [refused] = &names.refused[..] else {
            panic!("{names:?}")
        };
        assert!(refused.starts_with("alias r.test=Not A Host: "), "{refused}");
    }

    #[test]
    fn each_repository_counts_once_for_the_manifests_below_an_index() {
        let base: Vec<Reference> = ["r.test/a:1", "r.test/a:2", "r.test/b:1"]
            .map(|name| name.parse().unwrap())
            .into();
        for (digest_references, wanted) in [
            (DigestReferences::None, 0),
            (DigestReferences::Target, 0),
            (DigestReferences::All, 2),
        ] {
            let naming = Naming {
                digest_references,
                ..Naming::default()
            };
            assert_eq!(naming.repositories(&base), wanted, "{digest_references:?}");
            let references = naming.manifest_references(&base, &target());
            assert_eq!(references.len(), wanted, "{digest_references:?}");
        }
    }

    #[test]
    fn an_unnamed_image_takes_the_name_the_operator_gives() {
        let naming = Naming {
            names: BTreeMap::from([(TARGET.to_owned(), "r.test/given:1".parse().unwrap())]),
            digest_references: DigestReferences::None,
            ..Naming::default()
        };
        let named = naming.names_of(&[], &target());
        assert_eq!(named.references[0].to_string(), "r.test/given:1");
    }

    #[test]
    fn manifests_below_an_index_are_named_only_when_asked() {
        let base: Vec<Reference> = vec!["r.test/a:1".parse().unwrap(), "r.test/a:2".parse().unwrap()];
        assert!(Naming::default().manifest_references(&base, &target()).is_empty());
        let all = Naming {
            digest_references: DigestReferences::All,
            ..Naming::default()
        };
        assert_eq!(all.manifest_references(&base, &target()).len(), 1);
    }

    #[test]
    fn a_name_needs_a_pattern_of_one_key_among_those_that_signed() {
        let scope = |key: &str, names: &[&str]| Scope {
            key: key.to_owned(),
            names: names.iter().map(|text| text.parse().unwrap()).collect(),
        };
        let release = || scope("release (0a1b)", &["r.test/shop/*", "r.test/pause:3.?"]);
        let table = [
            (None, "elsewhere.test/a:1", None),
            (
                Some(vec![]),
                "r.test/shop/a:1",
                Some("none of the keys [] may give"),
            ),
            (Some(vec![release()]), "r.test/shop/a:1", None),
            (Some(vec![release()]), "r.test/shop/a/b@sha256:ab", None),
            (Some(vec![release()]), "r.test/pause:3.9", None),
            (
                Some(vec![release()]),
                "r.test/pause@sha256:ab",
                Some("key release (0a1b) may not give the name r.test/pause@sha256:ab: "),
            ),
            (
                Some(vec![release(), scope("lab (ff)", &[])]),
                "evil.test/r.test/shop/a:1",
                Some(
                    "none of the keys [release (0a1b), lab (ff)] may give the name evil.test/r.test/shop/a:1: ",
                ),
            ),
            (
                Some(vec![scope("lab (ff)", &[]), release()]),
                "r.test/shop/a:1",
                None,
            ),
            (Some(vec![scope("all (1)", &["*"])]), "any.test/thing:1", None),
        ];
        for (scopes, name, expected) in table {
            let naming = Naming {
                scopes: scopes.clone(),
                ..Naming::default()
            };
            let reason = naming.out_of_scope(name);
            match expected {
                None => assert_eq!(reason, None, "{scopes:?} {name}"),
                Some(part) => assert!(
                    reason.as_ref().is_some_and(|reason| reason.contains(part)),
                    "{scopes:?} {name}: {reason:?}"
                ),
            }
        }
    }
}
