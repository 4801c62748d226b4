//! Image names: from what an archive calls an image to the names of its records in containerd.
//!
//! CRI looks a pod's image up under its normalised reference and under nothing else, so a record that is not named
//! that way is invisible to kubelet and cannot be removed through CRI. containerd's own importer writes the names of
//! an OCI layout down as they are; this module normalises them, and never invents a repository: a plain tag needs a
//! base name, an image without a name needs one from the operator, and both are reported otherwise.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use basics::foreign::quoted;
use bundle::RawName;
use oci_spec::image::Digest;
use serde::{Deserialize, Serialize};

use crate::pattern::Pattern;

/// The most characters a repository (host and path) may have: the limit of the distribution reference grammar.
const REPOSITORY_LENGTH: usize = 255;

/// A normalised image reference: host and path, with a tag, a digest, or both.
///
/// Follows the distribution reference grammar as containerd and CRI apply it: `busybox` is
/// `docker.io/library/busybox:latest`, `index.docker.io` is `docker.io`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    repository: String,
    tag: Option<String>,
    digest: Option<String>,
}

/// Why a text is no image reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} is not an image reference: {reason}", quoted(.text))]
pub struct InvalidReference {
    text: String,
    reason: String,
}

impl Reference {
    /// Host and path, such as `docker.io/library/busybox`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, absent when the reference is by digest alone.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest as text, when there is one.
    #[must_use]
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }

    /// The same repository, by digest alone.
    #[must_use]
    pub fn by_digest(&self, digest: &Digest) -> Reference {
        Reference {
            repository: self.repository.clone(),
            tag: None,
            digest: Some(digest.to_string()),
        }
    }

    fn by_tag(&self) -> Option<Reference> {
        self.tag.is_some().then(|| Reference {
            digest: None,
            ..self.clone()
        })
    }

    fn only_digest(&self) -> Option<Reference> {
        self.digest.is_some().then(|| Reference {
            tag: None,
            ..self.clone()
        })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).map_err(|reason| InvalidReference {
            text: text.to_owned(),
            reason: reason.to_owned(),
        })
    }
}

/// Reads a reference by hand. The library's way compiles its grammar first, which takes each process 40 ms and 12 MiB:
/// longer than an import with nothing to do. That both read the same is a test.
fn parse(text: &str) -> Result<Reference, &'static str> {
    if !text.is_ascii() {
        return Err("only ASCII characters are allowed");
    }
    if is_bare_hex(text) {
        return Err("64 hexadecimal digits are an image ID, not a name");
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) if is_digest(digest) => (rest, Some(digest.to_owned())),
        Some(_) => return Err("its digest is malformed"),
        None => (text, None),
    };
    let (host, rest) = split_host(rest)?;
    let (path, tag) = match rest.split_once(':') {
        Some((path, tag)) if is_tag(tag) => (path, Some(tag.to_owned())),
        Some(_) => return Err("its tag is malformed"),
        None => (rest, digest.is_none().then(|| "latest".to_owned())),
    };
    if path.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err("a repository name must be lowercase");
    }
    if !path.split('/').all(is_path_component) {
        return Err("its path is malformed");
    }
    let library = match host == DOCKER_HUB && !path.contains('/') {
        true => "library/",
        false => "",
    };
    let repository = format!("{host}/{library}{path}");
    if repository.len() > REPOSITORY_LENGTH {
        return Err("the repository has more than 255 characters");
    }
    Ok(Reference {
        repository,
        tag,
        digest,
    })
}

/// Where names without a host belong.
const DOCKER_HUB: &str = "docker.io";

/// The host, and what follows it. A first component is a host where it could not be part of a path, or is `localhost`.
fn split_host(text: &str) -> Result<(&str, &str), &'static str> {
    match text.split_once('/') {
        Some((first, rest)) if first == "localhost" || first.contains(is_for_hosts) => {
            // An underscore makes no host, and yet the grammar takes such a name, and containerd goes by its first part.
            match (is_host(first) || is_path_component(first), first) {
                (false, _) => Err("not a host at its beginning"),
                (true, "index.docker.io") => Ok((DOCKER_HUB, rest)),
                (true, host) => Ok((host, rest)),
            }
        }
        _ => Ok((DOCKER_HUB, text)),
    }
}

fn is_for_hosts(character: char) -> bool {
    matches!(character, '.' | ':') || character.is_ascii_uppercase()
}

/// A name or an address (IPv6 in brackets), with or without a port.
fn is_host(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').map(|rest| rest.split_once(']')) {
        Some(Some((address, after))) => {
            let is_address = address.parse::<Ipv6Addr>().is_ok();
            return is_address && after.strip_prefix(':').map_or(after.is_empty(), is_number);
        }
        Some(None) => return false,
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    host.split('.').all(is_host_label) && port.is_none_or(is_number)
}

fn is_host_label(text: &str) -> bool {
    let in_label = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    !text.is_empty() && text.bytes().all(in_label) && !text.starts_with('-') && !text.ends_with('-')
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Lower-case letters and digits, with a dot, one or two underscores or any number of hyphens between them.
fn is_path_component(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let ends_are_words = |text: &[u8]| {
        [text.first(), text.last()]
            .iter()
            .all(|end| end.is_some_and(|b| is_word(*b)))
    };
    let mut separators = text.split(|character: char| is_word(character as u8));
    ends_are_words(text.as_bytes())
        && separators.all(|separator| {
            matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-')
        })
}

fn is_tag(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let bytes = text.as_bytes();
    (1..=128).contains(&bytes.len())
        && is_word(bytes[0])
        && bytes
            .iter()
            .all(|byte| is_word(*byte) || matches!(byte, b'.' | b'-'))
}

fn is_digest(text: &str) -> bool {
    let is_known = ["sha256:", "sha384:", "sha512:"]
        .iter()
        .any(|kind| text.starts_with(kind));
    is_known && Digest::from_str(text).is_ok()
}

fn is_bare_hex(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Which `name@digest` records are added to a named image, so that pods pinned by digest find it offline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DigestReferences {
    /// None.
    None,
    /// The digest of the record's target, which is what most pods are pinned to.
    #[default]
    Target,
    /// Also the digest of each imported manifest below an index.
    All,
}

/// A prefix of names and what it is also known as on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alias {
    /// The prefix of names in bundles, such as `quay.io/k0sproject`.
    pub from: String,
    /// What stands in its place in the second name.
    pub to: String,
}

impl Alias {
    /// The second name of `reference`, when the prefix ends at a boundary of it.
    fn apply(&self, reference: &Reference) -> Option<Result<Reference, InvalidReference>> {
        let text = reference.to_string();
        let rest = text.strip_prefix(&self.from)?;
        let at_boundary = self.from.ends_with('/') || rest.is_empty() || rest.starts_with(['/', ':', '@']);
        at_boundary.then(|| format!("{}{rest}", self.to).parse())
    }
}

/// How images are named on import.
#[derive(Clone, Debug, Default)]
pub struct Naming {
    /// Second names by prefix.
    pub aliases: Vec<Alias>,
    /// References for images (by target digest) that the archive leaves without a name.
    pub names: BTreeMap<String, Reference>,
    /// The repository that plain tags belong to.
    pub base_name: Option<String>,
    /// Which `name@digest` records are added.
    pub digest_references: DigestReferences,
    /// What a bundle may call its images, as normalised references; empty allows every name.
    pub allowed: Vec<Pattern>,
}

/// The names of one image, and what was wrong with the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// References the target itself answers to, in order, without repetition.
    pub references: Vec<Reference>,
    /// Names that were not used, each with the reason.
    pub refused: Vec<String>,
    /// Those among them that would have been used if they were allowed.
    pub forbidden: usize,
}

impl Naming {
    /// The names of an image that the archive calls `raw` and whose record would point at `target`.
    ///
    /// `manifests` are the digests of the imported manifests below an index; references to those come back separately
    /// from [`Naming::manifest_references`].
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

    /// Whether bundles may call an image so.
    #[must_use]
    pub fn allows(&self, reference: &Reference) -> bool {
        let text = reference.to_string();
        self.allowed.is_empty() || self.allowed.iter().any(|pattern| pattern.matches(&text))
    }

    /// The `name@digest` references of a manifest below the index `names` were given to.
    #[must_use]
    pub fn manifest_references(&self, names: &[Reference], manifest: &Digest) -> Vec<Reference> {
        if self.digest_references != DigestReferences::All {
            return Vec::new();
        }
        let mut references: Vec<_> = names.iter().map(|name| name.by_digest(manifest)).collect();
        keep_first_of_each(&mut references);
        references
    }

    /// How many `name@digest` references each manifest below an index gets from these names.
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
                "{} names a digest that is not the image's, which is {target}",
                quoted(&text)
            ));
        }
        Ok(reference
            .by_tag()
            .into_iter()
            .chain(reference.only_digest())
            .collect())
    }

    /// Takes what a bundle may name. Names that follow from an allowed one (its digest, its aliases) and those the
    /// operator gives are allowed with it: they are nobody else's words.
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

/// `latest`, `v1.2`: an annotation value that says a tag and no repository.
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
    fn references_are_normalised_as_cri_does() {
        let by_digest = format!("foo/bar@{TARGET}");
        let rows = [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1", "docker.io/library/busybox:1"),
            ("index.docker.io/library/x:1", "docker.io/library/x:1"),
            ("localhost:5000/x/y:2", "localhost:5000/x/y:2"),
            ("localhost/x", "localhost/x:latest"),
            ("localhost", "docker.io/library/localhost:latest"),
            ("example.com", "docker.io/library/example.com:latest"),
            ("foo/bar", "docker.io/foo/bar:latest"),
            ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
            ("[::1]:5000/x:1", "[::1]:5000/x:1"),
            ("Registry/x", "Registry/x:latest"),
            ("Registry.Example/x", "Registry.Example/x:latest"),
            (by_digest.as_str(), &*format!("docker.io/foo/bar@{TARGET}")),
        ]
        .map(|(given, wanted)| (given, wanted.to_owned()));
        for (given, wanted) in rows {
            assert_eq!(given.parse::<Reference>().unwrap().to_string(), wanted, "{given}");
        }
    }

    #[test]
    fn texts_outside_the_grammar_are_refused_by_name() {
        let long = format!("r.test/{}:1", "a/".repeat(130).trim_end_matches('/'));
        let rows = [
            "",
            "UPPER/Case:1",
            "a b",
            "x:\u{1b}[31m",
            "x:\u{fc}",
            &"a".repeat(64),
            &long,
            "[zz]/x",
            "-Host/x",
            "Ho_st/x",
            "x@sha256:abc",
            "../../evil:1",
        ];
        for text in rows {
            let error = text.parse::<Reference>().unwrap_err().to_string();
            assert!(error.contains("is not an image reference"), "{text}: {error}");
            assert!(!error.contains('\u{1b}'), "{error:?}");
        }
    }

    /// What the library takes and what we take is the same, but for hosts that it does not know (IPv6 addresses, a first
    /// component with capitals) and tags of other scripts, which are no tags.
    mod like_the_library {
        use proptest::prelude::*;

        use super::super::{Reference, is_bare_hex, is_host_label};

        fn library(text: &str) -> Option<String> {
            let parsed: oci_spec::distribution::Reference = text.parse().ok()?;
            Some(parsed.whole())
        }

        fn is_ours_to_judge(text: &str) -> bool {
            let first = text.split_once('/').map_or("", |(first, _)| first);
            let has_capitals = first.bytes().any(|byte| byte.is_ascii_uppercase()) && is_host_label(first);
            text.starts_with('[') || has_capitals || is_bare_hex(text)
        }

        fn compare(text: &str) -> Result<(), TestCaseError> {
            let ours = text
                .parse::<Reference>()
                .ok()
                .map(|reference| reference.to_string());
            if !is_ours_to_judge(text) && ours.as_ref().is_none_or(|ours| ours.len() < 250) {
                prop_assert_eq!(ours, library(text), "{}", text);
            }
            Ok(())
        }

        proptest! {
            #![proptest_config(ProptestConfig::with_cases(4096))]

            #[test]
            fn among_texts_of_all_kinds(text in "[ -~]{0,40}") {
                compare(&text)?;
            }

            #[test]
            fn among_texts_that_look_like_references(
                text in "(localhost/|index.docker.io/|docker.io/|[a-zA-Z0-9.-]{1,6}(:[0-9]{0,3})?/)?[a-z0-9._/-]{1,12}(:[A-Za-z0-9._-]{0,6})?(@sha256:[0-9a-f]{62,66}|@sha512:[0-9a-f]{64}|@md5:[0-9a-f]{32})?"
            ) {
                compare(&text)?;
            }
        }
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
    fn tag_and_digest_give_both_names() {
        let raw = RawName::RefName(format!("x:1@{TARGET}"));
        let naming = Naming {
            digest_references: DigestReferences::None,
            ..Naming::default()
        };
        assert_eq!(
            names(&naming, raw),
            [
                "docker.io/library/x:1".to_owned(),
                format!("docker.io/library/x@{TARGET}")
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
}
