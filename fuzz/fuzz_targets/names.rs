//! Any text as a platform and as an image reference: what parses prints to something that parses to the same.

#![no_main]

use airgapd_import::Reference;
use airgapd_platforms::{Matcher, Platform, Rules};
use libfuzzer_sys::fuzz_target;

// The grammar of references is compiled once, which takes seconds under a sanitizer.
fuzz_target!(init: drop("a".parse::<Reference>()), |text: &str| {
    platform(text);
    reference(text);
});

fn reference(text: &str) {
    let Ok(reference) = text.parse::<Reference>() else { return };
    let printed = reference.to_string();
    assert_eq!(printed.parse().as_ref(), Ok(&reference), "{text:?} prints as {printed:?}");
    assert!(printed.is_ascii() && !printed.contains(char::is_control), "{printed:?}");
}

fn platform(text: &str) {
    let Ok(platform) = text.parse::<Platform>() else { return };
    for rules in [Rules::V0_2, Rules::Rc1, Rules::Rc3] {
        let normalized = platform.normalized(rules);
        assert_eq!(normalized.normalized(rules), normalized, "normalising twice changes {text:?}");
        let only = Matcher::only(&platform, rules);
        assert!(only.platforms().is_empty() || only.accepts(&platform), "{text:?} is not accepted by its own list");
    }
}
