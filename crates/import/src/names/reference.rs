//! Normalised image references, read by the distribution reference grammar as containerd and CRI
//! apply it.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use basics::foreign::quoted;
use oci_spec::image::Digest;

/// Largest number of characters in a repository (host and path): the limit of the distribution
/// reference grammar.
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

/// The error for a text that is no image reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} is not an image reference: {reason}", quoted(.text))]
pub struct InvalidReference {
    text: String,
    reason: String,
}

impl Reference {
    /// Returns host and path, such as `docker.io/library/busybox`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Returns the tag. `None` if the reference has a digest alone.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Returns the digest as text, if there is one.
    #[must_use]
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }

    /// Returns a reference to the same repository, by digest alone.
    #[must_use]
    pub fn by_digest(&self, digest: &Digest) -> Reference {
        Reference {
            repository: self.repository.clone(),
            tag: None,
            digest: Some(digest.to_string()),
        }
    }

    pub(super) fn by_tag(&self) -> Option<Reference> {
        self.tag.is_some().then(|| Reference {
            digest: None,
            ..self.clone()
        })
    }

    pub(super) fn only_digest(&self) -> Option<Reference> {
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

/// Reads a reference without the library. The library first compiles its grammar, which takes each
/// process 40 ms and 12 MiB: longer than an import with nothing to do. A test checks that both give
/// the same results.
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

/// Host of names without a host.
const DOCKER_HUB: &str = "docker.io";

/// Splits off the host. A first component is a host if it cannot be part of a path, or if it is
/// `localhost`.
fn split_host(text: &str) -> Result<(&str, &str), &'static str> {
    match text.split_once('/') {
        Some((first, rest)) if first == "localhost" || first.contains(is_for_hosts) => {
            // A name with an underscore is no host. But the grammar accepts it, and containerd uses
            // its first part as the host.
            match (is_host(first) || is_path_component(first), first) {
                (false, _) => Err("it does not begin with a host"),
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

/// Returns true for a name or an address (IPv6 in brackets), with or without a port.
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

/// Returns true for lower-case letters and digits, separated by a dot, one or two underscores or
/// any number of hyphens.
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

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

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

    /// The library and this module accept the same texts, with two exceptions. The library does not
    /// know some hosts (IPv6 addresses, a first component with capitals). It also accepts tags of
    /// other scripts, which are no tags.
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
}
