use std::cmp::{Ordering, Reverse};
use std::fmt;

use crate::expansion::expanded;
use crate::platform::{normalized_architecture, normalized_os};
use crate::{Platform, Rules, windows};

/// An ordered list of acceptable platforms, or everything.
///
/// A candidate's rank is the first place in the list that it matches. A candidate matches if
/// operating system, architecture and variant are equal after normalisation. Version and features
/// must agree too if the [`Rules`] compare them. [`Display`](fmt::Display) writes the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matcher {
    scope: Scope,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Scope {
    Everything,
    /// Normalised, most preferred first, without repetitions.
    List {
        platforms: Vec<Platform>,
        rules: Rules,
    },
}

impl Matcher {
    /// Returns a matcher of all that a node of this platform can run, as containerd's `Only`.
    ///
    /// arm64 includes 32-bit arm from v8 down to v5, amd64 includes 386, and a level includes the
    /// lower levels. It accepts nothing for an arm64 level that the rules do not know.
    pub fn only(platform: &Platform, rules: Rules) -> Matcher {
        Matcher::any_of([platform], rules)
    }

    /// Returns a matcher of exactly this platform in any spelling, as containerd's `OnlyStrict`.
    pub fn strict(platform: &Platform, rules: Rules) -> Matcher {
        Matcher::listing(vec![platform.normalized(rules)], rules)
    }

    /// Returns a matcher of all that nodes of any of these platforms can run: their
    /// [`only`](Matcher::only) lists one after the other.
    ///
    /// It accepts nothing if `platforms` is empty.
    pub fn any_of<'a>(platforms: impl IntoIterator<Item = &'a Platform>, rules: Rules) -> Matcher {
        let mut union = Vec::new();
        for platform in platforms
            .into_iter()
            .flat_map(|platform| expanded(platform, rules))
        {
            if !union.contains(&platform) {
                union.push(platform);
            }
        }
        Matcher::listing(union, rules)
    }

    /// Returns a matcher that accepts every platform and prefers none.
    pub fn all() -> Matcher {
        Matcher {
            scope: Scope::Everything,
        }
    }

    fn listing(platforms: Vec<Platform>, rules: Rules) -> Matcher {
        Matcher {
            scope: Scope::List { platforms, rules },
        }
    }

    /// Returns the acceptable platforms, normalised, most preferred first. The list is also empty
    /// for [`all`](Matcher::all).
    pub fn platforms(&self) -> &[Platform] {
        match &self.scope {
            Scope::Everything => &[],
            Scope::List { platforms, .. } => platforms,
        }
    }

    /// Returns the most preferred platform as text. For [`only`](Matcher::only) that is the given
    /// platform.
    pub fn asked(&self) -> Option<String> {
        self.platforms().first().map(ToString::to_string)
    }

    /// Returns true if this is [`all`](Matcher::all).
    pub fn is_all(&self) -> bool {
        matches!(self.scope, Scope::Everything)
    }

    /// Returns true if the candidate is acceptable.
    pub fn accepts(&self, candidate: &Platform) -> bool {
        self.rank(candidate).is_some()
    }

    /// Returns true if a descriptor with this platform is acceptable. A descriptor without a
    /// platform always is.
    ///
    /// This is the filter that containerd applies to the entries of an index.
    pub fn accepts_descriptor(&self, platform: Option<&Platform>) -> bool {
        platform.is_none_or(|platform| self.accepts(platform))
    }

    /// Returns true if containerd takes a manifest with this platform in its config and none in its
    /// descriptor.
    ///
    /// [`Rules::V0_2`] looks at operating system and architecture only.
    pub fn accepts_config(&self, config: &Platform) -> bool {
        match &self.scope {
            Scope::List { rules, .. } if !rules.reads_whole_configs() => {
                self.accepts(&Platform::new(&config.os, &config.architecture, ""))
            }
            Scope::List { .. } | Scope::Everything => self.accepts(config),
        }
    }

    /// Returns the rules of the matcher, `None` for [`all`](Matcher::all).
    pub fn rules(&self) -> Option<Rules> {
        match &self.scope {
            Scope::Everything => None,
            Scope::List { rules, .. } => Some(*rules),
        }
    }

    /// Returns true if operating system and architecture occur in the list with any variant.
    ///
    /// This is for image configs, whose variants are often wrong. containerd ignores them when it
    /// runs a single manifest. An empty `os` means Linux.
    pub fn accepts_loosely(&self, os: &str, architecture: &str) -> bool {
        let Scope::List { platforms, rules } = &self.scope else {
            return true;
        };
        let os = normalized_os(os);
        let (architecture, _) = normalized_architecture(architecture, "", *rules);
        platforms
            .iter()
            .any(|wanted| wanted.os == os && wanted.architecture == architecture)
    }

    /// Returns the candidate's place in the list, 0 for the most preferred, `None` if it is not
    /// acceptable.
    pub fn rank(&self, candidate: &Platform) -> Option<usize> {
        match &self.scope {
            Scope::Everything => Some(0),
            Scope::List { platforms, rules } => {
                let candidate = candidate.normalized(*rules);
                platforms
                    .iter()
                    .position(|wanted| matches(wanted, &candidate, *rules))
            }
        }
    }

    /// Orders candidates by preference: `Less` if `a` is better.
    ///
    /// Candidates of equal rank are equal, except that since [`Rules::Rc3`] more features are
    /// better. Unacceptable candidates come last and are equal among each other. This is a total
    /// order: a stable sort by it gives containerd's sequence.
    pub fn prefer(&self, a: &Platform, b: &Platform) -> Ordering {
        self.merit(a).cmp(&self.merit(b))
    }

    /// Returns the best acceptable item, the first among equals. An item without a platform is only
    /// taken if there is no other.
    ///
    /// containerd makes this choice once when it runs an image. If the chosen item is unreadable,
    /// it tries no second.
    pub fn best<'a, T: ?Sized>(
        &self,
        items: impl IntoIterator<Item = &'a T>,
        platform_of: impl Fn(&'a T) -> Option<&'a Platform>,
    ) -> Option<&'a T> {
        items
            .into_iter()
            .filter(|item| self.accepts_descriptor(platform_of(item)))
            // min_by returns the first of several equal ones.
            .min_by_key(|item| platform_of(item).map_or(Merit::LAST, |platform| self.merit(platform)))
    }

    fn merit(&self, candidate: &Platform) -> Merit {
        let Some(rank) = self.rank(candidate) else {
            return Merit::LAST;
        };
        let features = match self.scope {
            Scope::List { rules, .. } if rules.compares_features() => candidate.os_features.len(),
            _ => 0,
        };
        Merit {
            rank,
            features: Reverse(features),
        }
    }
}

/// Merit of a candidate. The smallest is the best.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Merit {
    rank: usize,
    features: Reverse<usize>,
}

impl Merit {
    const LAST: Merit = Merit {
        rank: usize::MAX,
        features: Reverse(0),
    };
}

/// Returns true if a candidate is the wanted platform. Both are normalised.
fn matches(wanted: &Platform, candidate: &Platform, rules: Rules) -> bool {
    (&wanted.os, &wanted.architecture, &wanted.variant)
        == (&candidate.os, &candidate.architecture, &candidate.variant)
        && (!rules.compares_windows_versions() || version_matches(wanted, candidate))
        && (!rules.compares_features() || features_match(wanted, candidate))
}

fn version_matches(wanted: &Platform, candidate: &Platform) -> bool {
    wanted.os != "windows"
        || windows::version_accepted(wanted.os_version.as_deref(), candidate.os_version.as_deref())
}

/// Returns true if every feature of the candidate is wanted.
fn features_match(wanted: &Platform, candidate: &Platform) -> bool {
    // Earlier rules ignored win32k, which many Windows images have, so it needs no match.
    let free = |feature: &str| wanted.os == "windows" && feature == "win32k";
    candidate
        .os_features
        .iter()
        .all(|feature| free(feature) || wanted.os_features.contains(feature))
}

impl fmt::Display for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.scope {
            Scope::Everything => f.write_str("all platforms"),
            Scope::List { platforms, .. } if platforms.is_empty() => f.write_str("no platform"),
            Scope::List { platforms, .. } => {
                let names: Vec<String> = platforms.iter().map(ToString::to_string).collect();
                f.write_str(&names.join(", "))
            }
        }
    }
}
