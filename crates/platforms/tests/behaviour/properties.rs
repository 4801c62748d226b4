//! Properties of every platform.

use std::cmp::Ordering;

use airgapd_platforms::{Matcher, Platform, Rules};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

fn rules() -> impl Strategy<Value = Rules> {
    select(&crate::ALL_RULES[..])
}

fn system() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => select(vec!["linux", "Linux", "", "windows", "macos", "darwin", "unknown"]).prop_map(str::to_owned),
        1 => any::<String>(),
    ]
}

fn architecture() -> impl Strategy<Value = String> {
    let known = vec![
        "amd64", "x86_64", "X86-64", "386", "i386", "arm", "armhf", "armel", "arm64", "aarch64", "AArch64",
        "riscv64", "s390x", "ppc64le", "unknown", "",
    ];
    prop_oneof![12 => select(known).prop_map(str::to_owned), 1 => any::<String>()]
}

fn variant() -> impl Strategy<Value = Option<String>> {
    prop_oneof![
        4 => Just(None),
        6 => (0_u32..12).prop_map(|level| Some(format!("v{level}"))),
        2 => (0_u32..12).prop_map(|level| Some(level.to_string())),
        4 => (7_u32..11, 0_u32..11).prop_map(|(major, minor)| Some(format!("v{major}.{minor}"))),
        1 => (7_u32..11, 0_u32..11).prop_map(|(major, minor)| Some(format!("{major}.{minor}"))),
        1 => any::<String>().prop_map(Some),
    ]
}

fn version() -> impl Strategy<Value = Option<String>> {
    let known = vec![
        "10.0.17763",
        "10.0.20348.1",
        "10.0.25398",
        "10.0.26100",
        "6.1",
        "",
    ];
    prop_oneof![6 => Just(None), 3 => select(known).prop_map(|text| Some(text.to_owned()))]
}

fn features() -> impl Strategy<Value = Vec<String>> {
    let known: Vec<String> = ["win32k", "b", "a", "b"].map(str::to_owned).to_vec();
    prop_oneof![3 => Just(Vec::new()), 1 => subsequence(known, 0..=4)]
}

fn platform() -> impl Strategy<Value = Platform> {
    (system(), architecture(), variant(), version(), features()).prop_map(
        |(os, architecture, variant, os_version, os_features)| Platform {
            os,
            architecture,
            variant,
            os_version,
            os_features,
        },
    )
}

/// Platforms of one family, so that several of them match the same list.
fn relative() -> impl Strategy<Value = Platform> {
    (
        select(vec!["amd64", "386", "arm", "arm64"]),
        variant(),
        features(),
    )
        .prop_map(|(architecture, variant, os_features)| Platform {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant,
            os_features,
            ..Platform::default()
        })
}

fn candidate() -> impl Strategy<Value = Platform> {
    prop_oneof![1 => platform(), 3 => relative()]
}

fn matcher() -> impl Strategy<Value = Matcher> {
    prop_oneof![
        6 => (relative(), rules()).prop_map(|(wanted, rules)| Matcher::only(&wanted, rules)),
        2 => (prop::collection::vec(platform(), 0..4), rules())
            .prop_map(|(wanted, rules)| Matcher::any_of(&wanted, rules)),
        2 => (platform(), rules()).prop_map(|(wanted, rules)| Matcher::strict(&wanted, rules)),
        1 => Just(Matcher::all()),
    ]
}

/// A matcher, and candidates of which about half come from its list.
fn situation(candidates: usize) -> impl Strategy<Value = (Matcher, Vec<Platform>)> {
    matcher().prop_flat_map(move |matcher| {
        let listed = matcher.platforms().to_vec();
        let near = match listed.is_empty() {
            true => candidate().boxed(),
            false => (select(listed), features())
                .prop_map(|(platform, os_features)| Platform {
                    os_features,
                    ..platform
                })
                .boxed(),
        };
        let offered = prop::collection::vec(prop_oneof![near, candidate()], candidates);
        (Just(matcher), offered)
    })
}

/// The same platform in another spelling.
fn respelled(platform: &Platform) -> Platform {
    let architecture = match platform.architecture.as_str() {
        "amd64" => "x86_64",
        "arm64" => "aarch64",
        other => other,
    };
    Platform {
        os: "LINUX".to_owned(),
        architecture: architecture.to_owned(),
        ..platform.clone()
    }
}

/// An arm64 level that the rules do not know accepts nothing, itself included.
fn is_known(platform: &Platform, rules: Rules) -> bool {
    !Matcher::only(platform, rules).platforms().is_empty()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn normalising_twice_changes_nothing_more(platform in platform(), rules in rules()) {
        let once = platform.normalized(rules);
        prop_assert_eq!(once.normalized(rules), once);
    }

    #[test]
    fn newer_rules_see_no_difference_after_older_ones(platform in platform(), rules in rules()) {
        prop_assert_eq!(platform.normalized(Rules::V0_2).normalized(rules), platform.normalized(rules));
    }

    #[test]
    fn only_accepts_the_platform_itself_and_first(platform in platform(), rules in rules()) {
        prop_assume!(is_known(&platform, rules));
        prop_assert_eq!(Matcher::only(&platform, rules).rank(&platform), Some(0));
    }

    #[test]
    fn only_unknown_arm64_levels_have_an_empty_list(platform in platform(), rules in rules()) {
        let arm64 = platform.normalized(rules).architecture == "arm64";
        prop_assert!(is_known(&platform, rules) || (arm64 && rules != Rules::V0_2));
    }

    #[test]
    fn strict_accepts_the_platform_itself(platform in platform(), rules in rules()) {
        prop_assert!(Matcher::strict(&platform, rules).accepts(&platform));
    }

    #[test]
    fn what_strict_accepts_only_accepts_first(wanted in relative(), other in candidate(), rules in rules()) {
        let (strict, only) = (Matcher::strict(&wanted, rules), Matcher::only(&wanted, rules));
        prop_assume!(!only.platforms().is_empty());
        prop_assert!(strict.accepts(&respelled(&wanted)));
        for candidate in [respelled(&wanted), other] {
            prop_assert!(!strict.accepts(&candidate) || only.rank(&candidate) == Some(0));
        }
    }

    #[test]
    fn any_of_accepts_what_one_of_its_lists_accepts(
        wanted in prop::collection::vec(relative(), 0..4), other in candidate(), rules in rules(),
    ) {
        let any = wanted.iter().any(|wanted| Matcher::only(wanted, rules).accepts(&other));
        prop_assert_eq!(Matcher::any_of(&wanted, rules).accepts(&other), any);
    }

    #[test]
    fn an_accepted_platform_is_also_accepted_loosely((matcher, offered) in situation(4)) {
        for platform in offered.iter().filter(|platform| matcher.accepts(platform)) {
            prop_assert!(matcher.accepts_loosely(&platform.os, &platform.architecture));
        }
    }

    #[test]
    fn upper_and_lower_case_make_no_difference((matcher, offered) in situation(4)) {
        for platform in offered {
            let upper = Platform {
                os: platform.os.to_ascii_uppercase(),
                architecture: platform.architecture.to_ascii_uppercase(),
                variant: platform.variant.as_ref().map(|variant| variant.to_ascii_uppercase()),
                ..platform.clone()
            };
            prop_assert_eq!(matcher.rank(&upper), matcher.rank(&platform));
        }
    }

    #[test]
    fn preference_is_a_total_order((matcher, offered) in situation(3)) {
        let [a, b, c] = &offered[..] else { unreachable!("three candidates were asked for") };
        prop_assert_eq!(matcher.prefer(a, a), Ordering::Equal);
        prop_assert_eq!(matcher.prefer(a, b), matcher.prefer(b, a).reverse());
        if matcher.prefer(a, b).is_le() && matcher.prefer(b, c).is_le() {
            prop_assert!(matcher.prefer(a, c).is_le());
        }
    }

    #[test]
    fn preference_follows_rank_and_puts_the_rejected_last((matcher, offered) in situation(2)) {
        let places = [&offered[0], &offered[1]].map(|platform| matcher.rank(platform).unwrap_or(usize::MAX));
        if places[0] != places[1] {
            prop_assert_eq!(matcher.prefer(&offered[0], &offered[1]), places[0].cmp(&places[1]));
        }
    }

    #[test]
    fn best_is_the_first_of_a_stable_sort((matcher, offered) in situation(6), hidden in 0_usize..8) {
        // One item in some runs has no platform.
        let items = offered.into_iter().enumerate();
        let mut items: Vec<_> = items.map(|(n, platform)| (n, Some(platform).filter(|_| n != hidden))).collect();
        let best = matcher.best(&items, |item| item.1.as_ref()).map(|item| item.0);
        items.retain(|item| matcher.accepts_descriptor(item.1.as_ref()));
        items.sort_by(|a, b| match (&a.1, &b.1) {
            (Some(a), Some(b)) => matcher.prefer(a, b),
            (a, b) => b.is_some().cmp(&a.is_some()),
        });
        prop_assert_eq!(best, items.first().map(|item| item.0));
    }

    #[test]
    fn reading_any_text_never_panics_and_errors_name_it(text in any::<String>()) {
        if let Err(error) = text.parse::<Platform>() {
            let start: String = text.chars().take(80).collect();
            let quoted = format!("{start:?}");
            prop_assert!(error.to_string().contains(quoted.trim_end_matches('"')), "{}", error);
        }
    }

    #[test]
    fn reading_near_misses_never_panics(text in r"[a-z0-9(){}+%/*. \\é]{0,24}") {
        let _: Result<Platform, _> = text.parse();
    }

    #[test]
    fn what_is_written_can_be_read_again(
        os in "[A-Za-z0-9_-]{1,10}",
        architecture in "[A-Za-z0-9_.-]{1,10}",
        variant in prop::option::of("[A-Za-z0-9_.-]{1,6}"),
        version in prop::option::of("[^\u{0}]{1,8}"),
        features in prop::collection::vec("[^\u{0}]{1,8}", 0..3),
        rules in rules(),
    ) {
        let platform =
            Platform { os, architecture, variant, os_version: version, os_features: features };
        let again: Platform = format!("{platform:#}").parse().expect("the long form is a platform");
        prop_assert_eq!(again.normalized(rules), platform.normalized(rules));
        let short: Platform = platform.to_string().parse().expect("the short form is a platform");
        let bare = Platform { os_version: None, os_features: Vec::new(), ..platform };
        prop_assert_eq!(short.normalized(rules), bare.normalized(rules));
    }

    #[test]
    fn json_gives_the_platform_back(platform in platform()) {
        let json = serde_json::to_string(&platform).expect("a platform has a JSON form");
        let again: Platform = serde_json::from_str(&json).expect("and can be read from it");
        let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
        let expected = Platform {
            variant: filled(platform.variant.clone()),
            os_version: filled(platform.os_version.clone()),
            ..platform
        };
        prop_assert_eq!(again, expected);
    }
}
