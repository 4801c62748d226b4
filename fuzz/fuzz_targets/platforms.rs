//! Any text as a platform. A parsed platform does not change when it is normalised twice, and its
//! own list accepts it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use platforms::{Matcher, Platform, Rules};

fuzz_target!(|text: &str| {
    let Ok(platform) = text.parse::<Platform>() else {
        return;
    };
    for rules in [Rules::V0_2, Rules::Rc1, Rules::Rc3] {
        let normalized = platform.normalized(rules);
        assert_eq!(
            normalized.normalized(rules),
            normalized,
            "normalising twice changes {text:?}"
        );
        let only = Matcher::only(&platform, rules);
        assert!(
            only.platforms().is_empty() || only.accepts(&platform),
            "{text:?} is not accepted by its own list"
        );
    }
});
