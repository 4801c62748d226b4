use crate::{Matcher, ParseError, Platform, Rules};

/// The platforms that an operator chooses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlatformChoice {
    /// The node's own platform.
    Node,
    /// These platforms, as if the node were each of them.
    These(Vec<Platform>),
    /// Every platform in the bundle.
    All,
}

/// Reason why texts are not a choice of platforms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InvalidChoice {
    /// `all` is combined with another platform.
    AllAndOthers,
    /// A text is not a platform.
    NoPlatform {
        /// The text.
        text: String,
        /// The reason.
        error: ParseError,
    },
}

impl PlatformChoice {
    /// Reads platforms, or `all` alone. An empty list means the node's own platform.
    ///
    /// # Errors
    ///
    /// Returns the first text that is not a platform, or [`InvalidChoice::AllAndOthers`].
    pub fn of(texts: &[String]) -> Result<PlatformChoice, InvalidChoice> {
        if texts.iter().any(|text| text == "all") {
            return match texts.len() {
                1 => Ok(PlatformChoice::All),
                _ => Err(InvalidChoice::AllAndOthers),
            };
        }
        let parse = |text: &String| {
            text.parse().map_err(|error| InvalidChoice::NoPlatform {
                text: text.clone(),
                error,
            })
        };
        let platforms: Vec<Platform> = texts.iter().map(parse).collect::<Result<_, _>>()?;
        Ok(match platforms.is_empty() {
            true => PlatformChoice::Node,
            false => PlatformChoice::These(platforms),
        })
    }

    /// Returns the chosen platforms by these rules. `node` returns the platform of the node if that
    /// is chosen.
    #[must_use]
    pub fn wanted(&self, node: impl FnOnce() -> Platform, rules: &[Rules]) -> Wanted {
        match self {
            PlatformChoice::All => Wanted::All {
                rules: rules.to_vec(),
            },
            PlatformChoice::These(platforms) => Wanted::of(platforms, rules),
            PlatformChoice::Node => Wanted::of(&[node()], rules),
        }
    }
}

/// The wanted platforms, by the rules of the containerds that images are for.
#[derive(Clone, Debug)]
pub enum Wanted {
    /// The platforms that each matcher accepts. The parts of an image for each of them must be
    /// whole.
    Platforms(Vec<Matcher>),
    /// All platforms in the bundle, and the whole image must be whole.
    All {
        /// Rules of the containerds that the images are for. None of them may use an artifact in
        /// place of an image.
        rules: Vec<Rules>,
    },
}

impl Wanted {
    /// Returns the platforms that nodes of these platforms take, by each of these rules.
    #[must_use]
    pub fn of(platforms: &[Platform], rules: &[Rules]) -> Wanted {
        let each = platforms.iter().flat_map(|platform| {
            let only = |rules: &Rules| Matcher::only(platform, *rules);
            rules.iter().map(only)
        });
        Wanted::Platforms(each.collect())
    }

    /// Returns the same platforms by these rules.
    #[must_use]
    pub fn by(&self, rules: &[Rules]) -> Wanted {
        match self {
            Wanted::All { .. } => Wanted::All {
                rules: rules.to_vec(),
            },
            Wanted::Platforms(matchers) => {
                let platforms = matchers.iter().filter_map(|matcher| matcher.platforms().first());
                Wanted::of(&platforms.cloned().collect::<Vec<_>>(), rules)
            }
        }
    }

    /// Returns true if every containerd that the images are for mounts data-only artifacts.
    #[must_use]
    pub fn mounts_artifacts(&self) -> bool {
        match self {
            Wanted::Platforms(matchers) => {
                let mut rules = matchers.iter().map(Matcher::rules);
                rules.all(|rules| rules.is_some_and(Rules::mounts_artifacts))
            }
            Wanted::All { rules } => rules.iter().all(|rules| rules.mounts_artifacts()),
        }
    }

    /// Returns the wanted platforms as text, each once. The list is empty if every platform is
    /// wanted.
    #[must_use]
    pub fn asked(&self) -> Vec<String> {
        let mut texts: Vec<String> = Vec::new();
        let Wanted::Platforms(matchers) = self else {
            return texts;
        };
        for text in matchers.iter().filter_map(Matcher::asked) {
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
        texts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(texts: &[&str]) -> Result<PlatformChoice, InvalidChoice> {
        let texts: Vec<String> = texts.iter().map(ToString::to_string).collect();
        PlatformChoice::of(&texts)
    }

    #[test]
    fn all_stands_alone_and_nothing_is_the_node() {
        assert_eq!(choice(&[]), Ok(PlatformChoice::Node));
        assert_eq!(choice(&["all"]), Ok(PlatformChoice::All));
        assert_eq!(choice(&["all", "linux/arm64"]), Err(InvalidChoice::AllAndOthers));
        assert!(
            matches!(choice(&["linux/arm64", "!"]), Err(InvalidChoice::NoPlatform { text, .. }) if text == "!")
        );
    }

    #[test]
    fn each_platform_is_wanted_by_each_of_the_rules_and_asked_for_once() {
        let node = || "linux/amd64".parse::<Platform>().unwrap();
        let these = choice(&["linux/arm64", "linux/s390x"]).unwrap();
        let Wanted::Platforms(matchers) = these.wanted(node, &Rules::ALL) else {
            panic!("two were chosen");
        };
        assert_eq!(matchers.len(), 2 * Rules::ALL.len());
        let own = PlatformChoice::Node.wanted(node, &Rules::ALL);
        assert_eq!(own.asked(), ["linux/amd64"]);
        assert!(own.by(&[Rules::Rc3]).mounts_artifacts() && !own.by(&[Rules::V0_2]).mounts_artifacts());
        assert!(PlatformChoice::All.wanted(node, &Rules::ALL).asked().is_empty());
    }
}
