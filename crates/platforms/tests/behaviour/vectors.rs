//! containerd's lists, host by host and generation by generation.

use std::cmp::Ordering;

use airgapd_platforms::{Matcher, Platform, Rules};

use crate::{ALL_RULES, raw, with_features, with_version};

const ARM_V8: &str = "arm/v8 > arm/v7 > arm/v6 > arm/v5";

/// Hosts on whose lists all generations agree.
const SAME: &[(&str, &str)] = &[
    ("amd64", "amd64 > 386"),
    ("x86_64", "amd64 > 386"),
    ("x86-64", "amd64 > 386"),
    ("AMD64", "amd64 > 386"),
    ("amd64/v1", "amd64 > 386"),
    ("amd64/1", "amd64/1 > 386"),
    ("amd64/v2", "amd64/v2 > amd64 > 386"),
    ("amd64/v3", "amd64/v3 > amd64/v2 > amd64 > 386"),
    ("amd64/v4", "amd64/v4 > amd64/v3 > amd64/v2 > amd64 > 386"),
    ("amd64/unknown", "amd64/unknown > 386"),
    ("386", "386"),
    ("i386", "386"),
    ("i386/v6", "386"),
    ("arm", "arm/v7 > arm/v6 > arm/v5"),
    ("arm/7", "arm/v7 > arm/v6 > arm/v5"),
    ("arm/v7", "arm/v7 > arm/v6 > arm/v5"),
    ("armhf", "arm/v7 > arm/v6 > arm/v5"),
    ("arm/5", "arm/v5"),
    ("arm/v5", "arm/v5"),
    ("arm/6", "arm/v6 > arm/v5"),
    ("arm/v6", "arm/v6 > arm/v5"),
    ("armel", "arm/v6 > arm/v5"),
    ("arm/8", ARM_V8),
    ("arm/v8", ARM_V8),
    ("arm/v4", "arm/v4"),
    ("arm/unknown", "arm/unknown"),
    ("arm64", "arm64 > ARM_V8"),
    ("arm64/8", "arm64 > ARM_V8"),
    ("arm64/v8", "arm64 > ARM_V8"),
    ("arm64/V8", "arm64 > ARM_V8"),
    ("aarch64", "arm64 > ARM_V8"),
    ("ppc64le", "ppc64le"),
    ("s390x", "s390x"),
    ("riscv64", "riscv64"),
    ("loong64", "loong64"),
    ("mips64le", "mips64le"),
    // Not aliases of anything.
    ("i686", "i686"),
    ("ppc64el", "ppc64el"),
    ("loongarch64", "loongarch64"),
    ("windows/amd64", "windows/amd64 > windows/386"),
    (
        "darwin/arm64",
        "darwin/arm64 > darwin/arm/v8 > darwin/arm/v7 > darwin/arm/v6 > darwin/arm/v5",
    ),
];

/// Hosts on whose lists the generations differ: up to 1.7, and since 2.0.
const DIFFERENT: &[(&str, &str, &str)] = &[
    ("arm64/v8.0", "arm64/v8.0 > arm/v8.0", "arm64 > ARM_V8"),
    (
        "arm64/v8.1",
        "arm64/v8.1 > arm/v8.1",
        "arm64/v8.1 > arm64 > ARM_V8",
    ),
    (
        "arm64/v8.2",
        "arm64/v8.2 > arm/v8.2",
        "arm64/v8.2 > arm64/v8.1 > arm64 > ARM_V8",
    ),
    (
        "arm64/v8.6",
        "arm64/v8.6 > arm/v8.6",
        "arm64/v8.6 > arm64/v8.5 > arm64/v8.4 > arm64/v8.3 > arm64/v8.2 > arm64/v8.1 > arm64 > ARM_V8",
    ),
    (
        "arm64/v8.9",
        "arm64/v8.9 > arm/v8.9",
        "arm64/v8.9 > arm64/v8.8 > arm64/v8.7 > FROM_V8_6",
    ),
    ("arm64/v9", "arm64/v9 > arm/v9 > ARM_V8", "arm64/v9 > FROM_V8_5"),
    ("arm64/9", "arm64/9 > arm/9 > ARM_V8", "arm64/v9 > FROM_V8_5"),
    ("arm64/9.0", "arm64/9.0 > arm/9.0", "arm64/v9 > FROM_V8_5"),
    ("arm64/v9.0", "arm64/v9.0 > arm/v9.0", "arm64/v9 > FROM_V8_5"),
    (
        "arm64/v9.1",
        "arm64/v9.1 > arm/v9.1",
        "arm64/v9.1 > arm64/v9 > FROM_V8_6",
    ),
    (
        "arm64/v9.2",
        "arm64/v9.2 > arm/v9.2",
        "arm64/v9.2 > arm64/v9.1 > arm64/v9 > arm64/v8.7 > FROM_V8_6",
    ),
    (
        "arm64/v9.3",
        "arm64/v9.3 > arm/v9.3",
        "arm64/v9.3 > arm64/v9.2 > arm64/v9.1 > arm64/v9 > arm64/v8.8 > arm64/v8.7 > FROM_V8_6",
    ),
    ("arm64/v9.4", "arm64/v9.4 > arm/v9.4", "FROM_V9_4"),
    ("arm64/v9.5", "arm64/v9.5 > arm/v9.5", "arm64/v9.5 > FROM_V9_4"),
    (
        "arm64/v9.6",
        "arm64/v9.6 > arm/v9.6",
        "arm64/v9.6 > arm64/v9.5 > FROM_V9_4",
    ),
    (
        "arm64/v9.7",
        "arm64/v9.7 > arm/v9.7",
        "arm64/v9.7 > arm64/v9.6 > arm64/v9.5 > FROM_V9_4",
    ),
    ("arm64/v9.8", "arm64/v9.8 > arm/v9.8", ""),
    ("arm64/v10", "arm64/v10 > arm/v10 > arm/v9 > ARM_V8", ""),
    ("arm64/8.0", "arm64/8.0 > arm/8.0", ""),
    ("arm64/v8.10", "arm64/v8.10 > arm/v8.10", ""),
    ("arm64/unknown", "arm64/unknown > arm/unknown", ""),
];

fn expected(list: &str) -> Vec<Platform> {
    list.replace(
        "FROM_V9_4",
        "arm64/v9.4 > arm64/v9.3 > arm64/v9.2 > arm64/v9.1 > arm64/v9 > FROM_V8_9",
    )
    .replace("FROM_V8_9", "arm64/v8.9 > arm64/v8.8 > arm64/v8.7 > FROM_V8_6")
    .replace("FROM_V8_6", "arm64/v8.6 > FROM_V8_5")
    .replace(
        "FROM_V8_5",
        "arm64/v8.5 > arm64/v8.4 > arm64/v8.3 > arm64/v8.2 > arm64/v8.1 > arm64 > ARM_V8",
    )
    .replace("ARM_V8", ARM_V8)
    .split(" > ")
    .filter(|text| !text.is_empty())
    .map(raw)
    .collect()
}

fn only(host: &str, rules: Rules) -> Matcher {
    Matcher::only(&raw(host), rules)
}

#[test]
fn lists_on_which_all_generations_agree_are_containerds() {
    for rules in ALL_RULES {
        for (host, list) in SAME {
            assert_eq!(
                only(host, rules).platforms(),
                expected(list),
                "{host} by {rules:?}"
            );
        }
    }
}

#[test]
fn lists_up_to_containerd_1_7_know_no_arm64_levels() {
    for (host, list, _) in DIFFERENT {
        assert_eq!(only(host, Rules::V0_2).platforms(), expected(list), "{host}");
    }
}

#[test]
fn lists_since_containerd_2_include_lower_arm64_levels() {
    for rules in [Rules::Rc1, Rules::Rc3] {
        for (host, _, list) in DIFFERENT {
            assert_eq!(
                only(host, rules).platforms(),
                expected(list),
                "{host} by {rules:?}"
            );
        }
    }
}

#[test]
fn every_listed_platform_is_accepted_at_its_place() {
    for rules in ALL_RULES {
        let hosts = SAME
            .iter()
            .map(|row| row.0)
            .chain(DIFFERENT.iter().map(|row| row.0));
        for matcher in hosts.map(|host| only(host, rules)) {
            for (place, platform) in matcher.platforms().iter().enumerate() {
                assert_eq!(
                    matcher.rank(platform),
                    Some(place),
                    "{platform} in {matcher} by {rules:?}"
                );
            }
        }
    }
}

#[test]
fn what_a_node_cannot_run_is_rejected() {
    let rejected = [
        ("amd64", "amd64/v2"),
        ("amd64", "arm/v7"),
        ("amd64", "arm64"),
        ("amd64", "windows/amd64"),
        ("amd64", "unknown"),
        ("amd64/v2", "amd64/v3"),
        ("386", "amd64"),
        ("arm/v6", "arm"),
        ("arm/v6", "arm/v7"),
        ("arm64", "arm/v4"),
        ("arm64", "arm/v9"),
        ("arm64", "arm64/v9"),
        ("arm64/v9", "arm64/v8.6"),
        ("arm64/v9.6", "arm64/v8.10"),
    ];
    for rules in ALL_RULES {
        for (host, candidate) in rejected {
            assert!(
                !only(host, rules).accepts(&raw(candidate)),
                "{host} took {candidate} by {rules:?}"
            );
        }
    }
}

#[test]
fn arm64_accepts_32_bit_arm_from_v5_to_v8() {
    for rules in ALL_RULES {
        let matcher = only("arm64", rules);
        for candidate in [
            "arm64",
            "arm64/v8",
            "aarch64/8",
            "arm",
            "arm/v5",
            "arm/6",
            "armhf",
            "arm/v8",
        ] {
            assert!(matcher.accepts(&raw(candidate)), "{candidate} by {rules:?}");
        }
    }
}

#[test]
fn amd64_prefers_amd64_and_takes_386_if_that_is_all() {
    for rules in ALL_RULES {
        let matcher = only("amd64", rules);
        let both = [raw("386"), raw("amd64")];
        assert_eq!(matcher.best(&both, Some), Some(&both[1]));
        assert_eq!(matcher.best(&both[..1], Some), Some(&both[0]));
    }
}

#[test]
fn an_index_with_only_amd64_v2_has_nothing_for_an_amd64_node() {
    for rules in ALL_RULES {
        assert_eq!(only("amd64", rules).best(&[raw("amd64/v2")], Some), None);
    }
}

#[test]
fn an_arm64_node_orders_by_closeness() {
    for rules in ALL_RULES {
        let matcher = only("arm64", rules);
        let mut offered = [raw("arm/v6"), raw("arm/v7"), raw("arm64/v8")];
        offered.sort_by(|a, b| matcher.prefer(a, b));
        assert_eq!(offered, [raw("arm64/v8"), raw("arm/v7"), raw("arm/v6")]);
    }
}

#[test]
fn arm64_v9_includes_v8_5_but_not_v8_6_since_containerd_2() {
    for (rules, level, accepted) in [
        (Rules::V0_2, "arm64/v8.5", false),
        (Rules::V0_2, "arm64/v8.6", false),
        (Rules::Rc1, "arm64/v8.5", true),
        (Rules::Rc1, "arm64/v8.6", false),
        (Rules::Rc3, "arm64/v8.5", true),
        (Rules::Rc3, "arm64/v8.6", false),
    ] {
        assert_eq!(
            only("arm64/v9", rules).accepts(&raw(level)),
            accepted,
            "{level} by {rules:?}"
        );
    }
}

#[test]
fn nothing_runs_on_an_arm64_level_that_containerd_2_does_not_know() {
    for rules in [Rules::Rc1, Rules::Rc3] {
        let matcher = only("arm64/v10", rules);
        for candidate in ["arm64/v10", "arm64", "arm/v7"] {
            assert!(!matcher.accepts(&raw(candidate)), "{candidate}");
        }
        assert_eq!(matcher.to_string(), "no platform");
    }
}

#[test]
fn rules_follow_the_containerd_version() {
    for (major, minor, rules) in [
        (1, 6, Rules::V0_2),
        (1, 7, Rules::V0_2),
        (2, 0, Rules::Rc1),
        (2, 1, Rules::Rc1),
        (2, 2, Rules::Rc1),
        (2, 3, Rules::Rc3),
        (2, 10, Rules::Rc3),
        (3, 0, Rules::Rc3),
    ] {
        assert_eq!(Rules::of_containerd(major, minor), rules, "{major}.{minor}");
    }
}

#[test]
fn the_words_for_rules_name_containerds_that_have_them() {
    for rules in Rules::ALL {
        let words = rules.versions().split(' ');
        let named: Vec<Rules> = words
            .filter_map(|word| word.split_once('.'))
            .map(|(major, minor)| Rules::of_containerd(major.parse().unwrap(), minor.parse().unwrap()))
            .collect();
        assert!(
            !named.is_empty() && named.iter().all(|named| *named == rules),
            "{rules:?}: {named:?}"
        );
    }
}

#[test]
fn an_empty_platform_never_matches_but_an_absent_one_is_accepted() {
    for rules in ALL_RULES {
        let matcher = only("amd64", rules);
        assert!(!matcher.accepts(&Platform::default()));
        assert!(!matcher.accepts_descriptor(Some(&Platform::default())));
        assert!(matcher.accepts_descriptor(None));
    }
}

#[test]
fn attestations_are_accepted_only_when_everything_is() {
    let attestation = Platform::new("unknown", "unknown", "");
    assert!(
        ALL_RULES
            .iter()
            .all(|rules| !only("amd64", *rules).accepts(&attestation))
    );
    assert!(Matcher::all().accepts(&attestation));
}

#[test]
fn best_takes_the_first_of_equals_and_an_item_without_platform_last() {
    let matcher = only("amd64", Rules::Rc1);
    let items = [
        (0, None),
        (1, Some(raw("386"))),
        (2, Some(raw("amd64"))),
        (3, Some(raw("x86_64"))),
    ];
    let best = |items: &[(i32, Option<Platform>)]| {
        matcher
            .best(items, |(_, platform)| platform.as_ref())
            .map(|item| item.0)
    };
    assert_eq!(best(&items), Some(2));
    assert_eq!(best(&items[..2]), Some(1));
    assert_eq!(best(&items[..1]), Some(0));
    assert_eq!(best(&[(7, None), (8, None)]), Some(7));
    assert_eq!(best(&[(9, Some(raw("arm64")))]), None);
}

#[test]
fn strict_takes_other_spellings_of_the_platform_and_nothing_else() {
    for rules in ALL_RULES {
        let matcher = Matcher::strict(&raw("arm64/v8"), rules);
        assert!(matcher.accepts(&raw("aarch64")), "{rules:?}");
        assert!(!matcher.accepts(&raw("arm/v8")), "{rules:?}");
        assert!(
            !Matcher::strict(&raw("amd64"), rules).accepts(&raw("386")),
            "{rules:?}"
        );
    }
}

#[test]
fn any_of_puts_the_lists_one_after_the_other_without_repetition() {
    let wanted = [raw("amd64"), raw("arm/v6"), raw("arm64")];
    let matcher = Matcher::any_of(&wanted, Rules::Rc1);
    assert_eq!(
        matcher.platforms(),
        expected("amd64 > 386 > arm/v6 > arm/v5 > arm64 > arm/v8 > arm/v7")
    );
    assert_eq!(
        matcher.to_string(),
        "linux/amd64, linux/386, linux/arm/v6, linux/arm/v5, linux/arm64, linux/arm/v8, linux/arm/v7"
    );
    assert!(!Matcher::any_of([], Rules::Rc1).accepts(&raw("amd64")));
}

#[test]
fn all_accepts_everything_and_prefers_nothing() {
    let matcher = Matcher::all();
    let offered = [Platform::default(), raw("s390x"), raw("amd64")];
    assert!(offered.iter().all(|platform| matcher.accepts(platform)));
    assert_eq!(matcher.best(&offered, Some), Some(&offered[0]));
    assert_eq!(matcher.prefer(&offered[1], &offered[2]), Ordering::Equal);
    assert!(matcher.accepts_loosely("plan9", "none"));
    assert!(matcher.is_all() && matcher.platforms().is_empty());
}

#[test]
fn configs_are_judged_by_system_and_architecture_only() {
    for rules in ALL_RULES {
        let matcher = only("arm64", rules);
        for (os, architecture, accepted) in [
            ("linux", "arm64", true),
            ("", "aarch64", true),
            ("LINUX", "arm", true),
            ("linux", "armel", true),
            ("linux", "amd64", false),
            ("linux", "", false),
            ("windows", "arm64", false),
        ] {
            assert_eq!(
                matcher.accepts_loosely(os, architecture),
                accepted,
                "{os}/{architecture}"
            );
        }
    }
}

#[test]
fn features_reject_since_containerd_2_3_and_are_ignored_before() {
    let candidate = with_features(raw("amd64"), &["sse4"]);
    assert!(only("amd64", Rules::V0_2).accepts(&candidate));
    assert!(only("amd64", Rules::Rc1).accepts(&candidate));
    assert!(!only("amd64", Rules::Rc3).accepts(&candidate));
}

#[test]
fn a_candidate_with_a_part_of_the_wanted_features_matches_and_more_of_them_is_better() {
    let matcher = Matcher::only(&with_features(raw("amd64"), &["b", "a", "c", "a"]), Rules::Rc3);
    let offered = [
        with_features(raw("amd64"), &[]),
        with_features(raw("amd64"), &["c", "a"]),
        with_features(raw("amd64"), &["a", "b", "d"]),
        with_features(raw("386"), &["a", "b", "c"]),
    ];
    assert_eq!(
        offered.each_ref().map(|platform| matcher.rank(platform)),
        [Some(0), Some(0), None, Some(1)]
    );
    assert_eq!(matcher.best(&offered, Some), Some(&offered[1]));
    // Before, the first one wins.
    let before = Matcher::only(&with_features(raw("amd64"), &["a", "b", "c"]), Rules::Rc1);
    assert_eq!(before.best(&offered, Some), Some(&offered[0]));
}

#[test]
fn win32k_is_free_on_windows_and_only_there() {
    let windows = with_features(raw("windows/amd64"), &["win32k"]);
    assert!(only("windows/amd64", Rules::Rc3).accepts(&windows));
    assert!(!only("windows/amd64", Rules::Rc3).accepts(&with_features(windows, &["win32k", "other"])));
    assert!(!only("amd64", Rules::Rc3).accepts(&with_features(raw("amd64"), &["win32k"])));
}

#[test]
fn versions_count_for_windows_only_and_since_containerd_2() {
    let wanted = with_version(raw("windows/amd64"), "10.0.17763.1");
    let other = with_version(raw("windows/amd64"), "10.0.20348");
    assert!(Matcher::only(&wanted, Rules::V0_2).accepts(&other));
    assert!(!Matcher::only(&wanted, Rules::Rc1).accepts(&other));
    let linux = with_version(raw("amd64"), "6.1.0");
    assert!(Matcher::only(&linux, Rules::Rc3).accepts(&with_version(raw("amd64"), "5.10.0")));
}

#[test]
fn windows_hosts_run_what_their_release_allows() {
    for (host, candidate, accepted) in [
        // Before Server 2022: exactly the same build.
        ("10.0.17763", "10.0.17763.999", true),
        ("10.0.17763", "10.0.14393", false),
        // Server 2022 runs itself. Later releases up to 2025 run builds down to 2022.
        ("10.0.20348", "10.0.20348", true),
        ("10.0.20348", "10.0.17763", false),
        ("10.0.25398", "10.0.20348", true),
        ("10.0.26100", "10.0.20348", true),
        ("10.0.26100", "10.0.26101", false),
        ("10.0.26101", "10.0.26100", true),
        ("10.0.26101", "10.0.25398", false),
        ("10.0.26100", "11.0.26100", false),
        // Absent or unreadable wanted versions restrict nothing, unreadable candidates match
        // nothing.
        ("", "10.0.17763", true),
        ("10.0", "10.0.17763", true),
        ("10.0.x", "10.0.17763", true),
        ("0.0.0", "10.0.17763", true),
        ("10.0.17763", "", true),
        ("10.0.17763", "ten", false),
    ] {
        let wanted = with_version(raw("windows/amd64"), host);
        let candidate = with_version(raw("windows/amd64"), candidate);
        let got = Matcher::strict(&wanted, Rules::Rc1).accepts(&candidate);
        assert_eq!(
            got, accepted,
            "host {host:?}, candidate {:?}",
            candidate.os_version
        );
    }
}

#[test]
fn an_absurd_level_is_not_expanded() {
    for level in [
        "amd64/v1000000000",
        "amd64/v99999999999999999999",
        "arm/v4000000000",
    ] {
        assert!(only(level, Rules::Rc1).platforms().len() <= 2, "{level}");
    }
    assert_eq!(only("amd64/v99", Rules::Rc1).platforms().len(), 100);
}
