//! The manifest of an index that containerd uses.

use airgapd_platforms::{Behind, Chosen, Entry, Matcher, Platform, Rules, chosen};
use proptest::prelude::*;
use proptest::sample::select;

use crate::{raw, with_features};

#[derive(Clone, Debug)]
struct Listed {
    name: usize,
    platform: Option<Platform>,
    behind: What,
}

#[derive(Clone, Debug)]
enum What {
    Index(Vec<Listed>),
    Manifest(Option<Platform>),
    Nothing,
}

impl Entry for Listed {
    fn platform(&self) -> Option<&Platform> {
        self.platform.as_ref()
    }

    fn behind(&self) -> Behind<'_, Self> {
        match &self.behind {
            What::Index(below) => Behind::Index(below),
            What::Manifest(config) => Behind::Manifest {
                config: config.as_ref(),
            },
            What::Nothing => Behind::Nothing,
        }
    }
}

fn manifest(platform: &str) -> Listed {
    entry(Some(raw(platform)), What::Manifest(None))
}

fn by_config(platform: &str) -> Listed {
    entry(None, What::Manifest(Some(raw(platform))))
}

fn entry(platform: Option<Platform>, behind: What) -> Listed {
    Listed {
        name: 0,
        platform,
        behind,
    }
}

/// Puts the entries into an index and numbers all of them, depth first.
fn index(entries: Vec<Listed>) -> Listed {
    let mut root = entry(None, What::Index(entries));
    number(&mut root, &mut 0);
    root
}

fn number(entry: &mut Listed, next: &mut usize) {
    entry.name = *next;
    *next += 1;
    if let What::Index(below) = &mut entry.behind {
        below.iter_mut().for_each(|entry| number(entry, next));
    }
}

/// The number of the entry that containerd uses, negative if its config stops containerd.
fn used(root: &Listed, node: &str, rules: Rules) -> Option<isize> {
    let number = |entry: &Listed| isize::try_from(entry.name).unwrap();
    match chosen(root, &Matcher::only(&raw(node), rules)) {
        Chosen::This(entry) => Some(number(entry)),
        Chosen::Mismatch(entry) => Some(-number(entry)),
        Chosen::None => None,
    }
}

#[test]
fn the_first_of_the_best_platform_is_used_whatever_is_behind_it() {
    let featured = || {
        entry(
            Some(with_features(raw("amd64"), &["nydus"])),
            What::Manifest(None),
        )
    };
    let absent = || entry(Some(raw("amd64")), What::Nothing);
    let below = |entries| entry(None, What::Index(entries));
    let rows = [
        (vec![manifest("386"), manifest("amd64")], Some(2), Some(2)),
        (vec![manifest("amd64"), manifest("amd64")], Some(1), Some(1)),
        (vec![manifest("arm64"), manifest("386")], Some(2), Some(2)),
        (vec![manifest("arm64"), manifest("amd64/v2")], None, None),
        (vec![absent(), manifest("amd64")], Some(1), Some(1)),
        (vec![by_config("amd64"), manifest("386")], Some(2), Some(2)),
        (vec![by_config("amd64"), by_config("amd64")], Some(1), Some(1)),
        (vec![by_config("arm64"), by_config("amd64")], Some(-1), Some(-1)),
        (vec![by_config("amd64/v2")], Some(1), Some(-1)),
        (
            vec![entry(None, What::Manifest(Some(Platform::default())))],
            Some(-1),
            Some(-1),
        ),
        (
            vec![entry(Some(Platform::default()), What::Manifest(None))],
            None,
            None,
        ),
        (vec![entry(None, What::Manifest(None))], Some(1), Some(1)),
        (vec![featured(), manifest("amd64")], Some(1), Some(2)),
        (vec![featured(), manifest("386")], Some(1), Some(2)),
        (vec![featured()], Some(1), None),
        (
            vec![below(vec![manifest("386"), manifest("amd64")])],
            Some(3),
            Some(3),
        ),
        // An index without a platform comes last, even if its entries fit better.
        (
            vec![below(vec![manifest("amd64")]), manifest("386")],
            Some(3),
            Some(3),
        ),
        // If containerd chooses it, there is no way back.
        (
            vec![below(vec![manifest("arm64")]), by_config("amd64")],
            None,
            None,
        ),
        (vec![], None, None),
    ];
    for (entries, old, new) in rows {
        let root = index(entries);
        assert_eq!(used(&root, "amd64", Rules::V0_2), old, "{root:?}");
        assert_eq!(used(&root, "amd64", Rules::Rc3), new, "{root:?}");
    }
}

#[test]
fn an_image_that_is_no_index_is_used_whatever_its_platform() {
    for platform in ["arm64", "amd64"] {
        assert_eq!(used(&manifest(platform), "amd64", Rules::Rc3), Some(0));
    }
}

fn leaf() -> impl Strategy<Value = Listed> {
    let names = vec![
        "amd64",
        "amd64",
        "386",
        "amd64/v2",
        "arm64",
        "arm/v7",
        "windows/amd64",
        "unknown/unknown",
    ];
    let platform = (select(names), select(vec![0_usize, 0, 0, 1, 2]))
        .prop_map(|(name, features)| with_features(raw(name), &["a", "b"][..features]));
    let config = prop_oneof![1 => Just(None), 3 => platform.clone().prop_map(Some)];
    let behind = prop_oneof![4 => config.prop_map(What::Manifest), 1 => Just(What::Nothing)];
    (proptest::option::weighted(0.7, platform), behind).prop_map(|(platform, behind)| entry(platform, behind))
}

fn tree() -> impl Strategy<Value = Listed> {
    let nested = leaf().prop_recursive(2, 12, 4, |inner| {
        (
            proptest::option::weighted(0.3, Just(raw("amd64"))),
            proptest::collection::vec(inner, 0..4),
        )
            .prop_map(|(platform, below)| entry(platform, What::Index(below)))
    });
    proptest::collection::vec(nested, 0..6).prop_map(index)
}

/// The same in containerd's steps: lists that are filtered, sorted and cut to one entry.
fn by_sorting(root: &Listed, matcher: &Matcher) -> Option<(usize, bool)> {
    let mut at = root;
    while let What::Index(entries) = &at.behind {
        let suits = |entry: &&Listed| entry.platform.as_ref().is_none_or(|own| matcher.accepts(own));
        let mut left: Vec<&Listed> = entries.iter().filter(suits).collect();
        left.sort_by(|a, b| match (&a.platform, &b.platform) {
            (None, None) => std::cmp::Ordering::Equal,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some(_), None) => std::cmp::Ordering::Less,
            (Some(a), Some(b)) => matcher.prefer(a, b),
        });
        at = *left.first()?;
    }
    let mismatch = match (&at.platform, &at.behind) {
        (None, What::Manifest(Some(config))) if at.name != root.name => !matcher.accepts_config(config),
        _ => false,
    };
    Some((at.name, mismatch))
}

proptest! {
    #[test]
    fn it_is_what_filtering_and_sorting_leaves(root in tree(), rules in select(&crate::ALL_RULES[..]), node in select(vec!["amd64", "386", "arm64"])) {
        let matcher = Matcher::only(&raw(node), rules);
        let found = match chosen(&root, &matcher) {
            Chosen::This(entry) => Some((entry.name, false)),
            Chosen::Mismatch(entry) => Some((entry.name, true)),
            Chosen::None => None,
        };
        prop_assert_eq!(found, by_sorting(&root, &matcher));
    }

    /// The document behind an entry never changes the choice. containerd reads it after the choice.
    #[test]
    fn entries_of_other_platforms_change_nothing(root in tree(), rules in select(&crate::ALL_RULES[..])) {
        let matcher = Matcher::only(&raw("amd64"), rules);
        let What::Index(entries) = &root.behind else { unreachable!("a tree is an index") };
        let mut more = entries.clone();
        more.insert(0, entry(Some(raw("s390x")), What::Nothing));
        more.insert(0, entry(Some(raw("unknown/unknown")), What::Manifest(None)));
        let before = by_sorting(&root, &matcher);
        let more = Listed { behind: What::Index(more), ..root.clone() };
        let after = match chosen(&more, &matcher) {
            Chosen::This(entry) => Some((entry.name, false)),
            Chosen::Mismatch(entry) => Some((entry.name, true)),
            Chosen::None => None,
        };
        prop_assert_eq!(before, after);
    }
}
