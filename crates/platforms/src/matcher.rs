use std::cmp::{Ordering, Reverse};
use std::fmt;

use crate::expansion::expanded;
use crate::platform::{normalized_architecture, normalized_os};
use crate::{Platform, Rules, windows};

/// An ordered list of acceptable platforms, or everything.
///
/// A candidate's rank is the first place in the list that it matches: operating system,
/// architecture and variant are equal once both are normalised, and version and features agree as
/// far as the [`Rules`] look at them. [`Display`](fmt::Display) writes the list.
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
    /// What a node of this platform can run, as containerd's `Only`: arm64 includes 32-bit arm from
    /// v8 down to v5, amd64 includes 386, a level includes the lower ones.
    ///
    /// Accepts nothing for an arm64 level that the rules do not know.
    pub fn only(platform: &Platform, rules: Rules) -> Matcher {
        Matcher::any_of([platform], rules)
    }

    /// Exactly this platform, however it is spelled, as containerd's `OnlyStrict`.
    pub fn strict(platform: &Platform, rules: Rules) -> Matcher {
        Matcher::listing(vec![platform.normalized(rules)], rules)
    }

    /// What nodes of any of these platforms can run: their [`only`](Matcher::only) lists one after
    /// the other.
    ///
    /// Accepts nothing if there are none.
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

    /// Everything, with no preference.
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

    /// The acceptable platforms, normalised, most preferred first; empty also for
    /// [`all`](Matcher::all).
    pub fn platforms(&self) -> &[Platform] {
        match &self.scope {
            Scope::Everything => &[],
            Scope::List { platforms, .. } => platforms,
        }
    }

    /// The most preferred platform as text: for [`only`](Matcher::only) the one that is asked for.
    pub fn asked(&self) -> Option<String> {
        self.platforms().first().map(ToString::to_string)
    }

    /// Whether this is [`all`](Matcher::all).
    pub fn is_all(&self) -> bool {
        matches!(self.scope, Scope::Everything)
    }

    /// Whether the candidate is acceptable.
    pub fn accepts(&self, candidate: &Platform) -> bool {
        self.rank(candidate).is_some()
    }

    /// Whether a descriptor with this platform is acceptable; one without a platform always is.
    ///
    /// This is the filter that containerd applies to the entries of an index.
    pub fn accepts_descriptor(&self, platform: Option<&Platform>) -> bool {
        platform.is_none_or(|platform| self.accepts(platform))
    }

    /// Whether containerd takes a manifest of an index whose descriptor has no platform, and whose
    /// config is for this one.
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

    /// The rules it matches by; none for [`all`](Matcher::all).
    pub fn rules(&self) -> Option<Rules> {
        match &self.scope {
            Scope::Everything => None,
            Scope::List { rules, .. } => Some(*rules),
        }
    }

    /// Whether operating system and architecture occur in the list, whatever the variant.
    ///
    /// For image configs, which often lie about variants, and whose variant containerd does not
    /// look at when it runs a single manifest. An empty `os` means the running one.
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

    /// The candidate's place in the list, 0 the most preferred; nothing if it is not acceptable.
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

    /// Orders candidates by preference: `Less` when `a` is better.
    ///
    /// Candidates of equal rank are equal, except that since [`Rules::Rc3`] the one with more
    /// features is better. What is not acceptable comes last and is equal among itself. A total
    /// order: use it with a stable sort to get containerd's sequence.
    pub fn prefer(&self, a: &Platform, b: &Platform) -> Ordering {
        self.merit(a).cmp(&self.merit(b))
    }

    /// The best acceptable item; the first of equals, an item without a platform only when there is
    /// nothing else.
    ///
    /// This is the one choice that containerd makes when it runs an image: if that choice turns out
    /// to be unreadable there is no second one.
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

/// How good a candidate is; the smallest is the best.
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

/// Whether a candidate is the wanted platform; both are normalised.
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

/// The candidate asks for no feature that is not wanted.
fn features_match(wanted: &Platform, candidate: &Platform) -> bool {
    // Earlier rules did not look at win32k, which many Windows images have; it stays free.
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
