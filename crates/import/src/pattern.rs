//! Patterns of names, for rules about many names at once.

use std::fmt;
use std::str::FromStr;

use wildmatch::WildMatch;

/// A pattern for a whole name: `*` stands for any run of characters, including `/`, and `?` for
/// exactly one.
///
/// No other character is special, so a name without `*` and `?` is a pattern for itself. Matching
/// takes time proportional to the product of both lengths, even for hostile patterns.
#[derive(Clone, Debug, PartialEq)]
pub struct Pattern(WildMatch);

/// The error for a text that is no pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPattern {
    /// The pattern would match the empty name alone.
    #[error("a pattern must not be empty")]
    Empty,
    /// No name has such characters, so the pattern would match nothing.
    #[error("a pattern has no spaces and no control characters")]
    Unprintable,
}

impl Pattern {
    /// Returns true if the whole of `name` matches.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        self.0.matches(name)
    }
}

impl FromStr for Pattern {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "" => Err(InvalidPattern::Empty),
            text if text.chars().any(|c| c.is_whitespace() || c.is_control()) => {
                Err(InvalidPattern::Unprintable)
            }
            text => Ok(Pattern(WildMatch::new(text))),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_run_and_a_question_mark_for_one_character() {
        let rows = [
            ("quay.io/k0sproject/*", "quay.io/k0sproject/a/b:1", true),
            ("quay.io/k0sproject/*", "quay.io/k0sproject", false),
            ("quay.io/k0sproject/*", "evil.io/quay.io/k0sproject/a:1", false),
            ("*", "anything/at:all", true),
            ("*/pause:3.?", "registry.k8s.io/pause:3.9", true),
            ("*/pause:3.?", "registry.k8s.io/pause:3.10", false),
            ("r.test/a:1", "r.test/a:1", true),
            ("r.test/a:1", "r.test/a:12", false),
            ("r.test/a.b:1", "r.test/aXb:1", false),
            ("r.test/[ab]:1", "r.test/a:1", false),
            ("*a*b*c*", "xxaxxbxxcxx", true),
        ];
        for (pattern, name, expected) in rows {
            let pattern: Pattern = pattern.parse().unwrap();
            assert_eq!(pattern.matches(name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn a_pattern_that_could_never_match_is_refused() {
        for text in ["", " ", "a b", "a\n", "a\u{1b}[1m"] {
            assert!(text.parse::<Pattern>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_pattern_prints_as_it_was_written() {
        for text in ["*", "a/*/b?c", "r.test/a:1"] {
            assert_eq!(text.parse::<Pattern>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_hostile_pattern_takes_no_exponential_time() {
        let pattern: Pattern = format!("{}b", "*a".repeat(200)).parse().unwrap();
        assert!(!pattern.matches(&"a".repeat(20_000)));
    }
}
