//! The places from which a repository is fetched: rewritten prefixes, mirrors, and Docker's own
//! host name.

use std::fmt;
use std::str::FromStr;

/// A prefix of repositories and its replacement, for example `docker.io=mirror.example:5000/hub`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    from: String,
    to: String,
}

/// The error for a text that is not a rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not PREFIX=PREFIX, such as docker.io=mirror.example:5000/hub")]
pub struct InvalidRule(String);

impl FromStr for Rule {
    type Err = InvalidRule;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidRule(text.to_owned());
        let (from, to) = text.split_once('=').ok_or_else(invalid)?;
        let clean = |side: &str| {
            let side = side.trim().trim_end_matches('/');
            let is_usable = !side.is_empty()
                && !side.contains("://")
                && !side.starts_with('/')
                && side
                    .chars()
                    .all(|c| c.is_ascii_graphic() && !matches!(c, '@' | '?' | '#' | '\\' | '%'));
            is_usable.then(|| side.to_owned())
        };
        Ok(Self {
            from: clean(from).ok_or_else(invalid)?,
            to: clean(to).ok_or_else(invalid)?,
        })
    }
}

impl Rule {
    /// Returns the repository with the other prefix, if it has this rule's prefix. A prefix ends at
    /// the end of a path component.
    fn apply(&self, repository: &str) -> Option<String> {
        let rest = repository.strip_prefix(&self.from)?;
        (rest.is_empty() || rest.starts_with('/')).then(|| format!("{}{rest}", self.to))
    }
}

/// A repository at a registry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Location {
    /// The registry's host as in the image name.
    pub(crate) host: String,
    pub(crate) path: String,
}

impl Location {
    fn of(repository: &str) -> Option<Self> {
        let (host, path) = repository.split_once('/')?;
        Some(Self {
            host: host.to_owned(),
            path: path.to_owned(),
        })
    }

    /// Returns the host that serves the registry's API.
    pub(crate) fn api_host(&self) -> &str {
        match self.host.as_str() {
            "docker.io" | "index.docker.io" => "registry-1.docker.io",
            host => host,
        }
    }
}

impl Location {
    /// Returns the registry's own name without a port.
    pub(crate) fn domain(&self) -> &str {
        match self.api_host() {
            "registry-1.docker.io" => "docker.io",
            host => without_port(host),
        }
    }
}

/// Returns a host without its port.
pub(crate) fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.path)
    }
}

/// Returns the places of a repository, in order: its mirrors, then the repository itself. First,
/// the rule with the longest prefix rewrites the name.
pub(crate) fn locations(repository: &str, rewrites: &[Rule], mirrors: &[Rule]) -> Vec<Location> {
    let longest = rewrites
        .iter()
        .filter_map(|rule| Some((rule.from.len(), rule.apply(repository)?)))
        .max_by_key(|(length, _)| *length);
    let origin = longest.map_or_else(|| repository.to_owned(), |(_, rewritten)| rewritten);
    let mut found: Vec<Location> = Vec::new();
    let mirrored = mirrors.iter().filter_map(|rule| rule.apply(&origin));
    for repository in mirrored.chain([origin.clone()]) {
        let location = Location::of(&repository);
        found.extend(location.filter(|location| !found.contains(location)));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(texts: &[&str]) -> Vec<Rule> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn mirrors_come_first_and_the_longest_rewrite_counts() {
        type Row = (
            &'static str,
            &'static [&'static str],
            &'static [&'static str],
            &'static [&'static str],
        );
        let rows: [Row; 6] = [
            ("quay.io/a/b", &[], &[], &["quay.io/a/b"]),
            (
                "docker.io/library/a",
                &[],
                &["docker.io=m1:5000/hub", "quay.io=m2", "docker.io/library=m3"],
                &["m1:5000/hub/library/a", "m3/a", "docker.io/library/a"],
            ),
            (
                "docker.io/library/a",
                &["docker.io=one.example", "docker.io/library=two.example/x/"],
                &[],
                &["two.example/x/a"],
            ),
            (
                "docker.io/library/a",
                &["docker.i=x", "docker.io/lib=x"],
                &[],
                &["docker.io/library/a"],
            ),
            (
                "quay.io/a",
                &["quay.io=new.example"],
                &["new.example=m"],
                &["m/a", "new.example/a"],
            ),
            ("quay.io/a", &[], &["quay.io=quay.io"], &["quay.io/a"]),
        ];
        for (repository, rewrites, mirrors, expected) in rows {
            let found = locations(repository, &rules(rewrites), &rules(mirrors));
            let found: Vec<_> = found.iter().map(ToString::to_string).collect();
            assert_eq!(found, expected, "{repository}");
        }
    }

    #[test]
    fn what_is_no_rule_is_refused() {
        for text in [
            "",
            "a",
            "=b",
            "a=",
            "a=https://b",
            "/a=b",
            "a=b c",
            "a=b@c",
            "a=b?x",
        ] {
            assert!(text.parse::<Rule>().is_err(), "{text}");
        }
    }
}
