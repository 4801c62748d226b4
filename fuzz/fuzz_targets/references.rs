//! Any text as an image reference: what parses prints to something that parses to the same.

#![no_main]

use airgapd_import::Reference;
use libfuzzer_sys::fuzz_target;

// The grammar is compiled once, which takes seconds under a sanitizer.
fuzz_target!(init: drop("a".parse::<Reference>()), |text: &str| {
    let Ok(reference) = text.parse::<Reference>() else { return };
    let printed = reference.to_string();
    assert_eq!(printed.parse().as_ref(), Ok(&reference), "{text:?} prints as {printed:?}");
    assert!(printed.is_ascii() && !printed.contains(char::is_control), "{printed:?}");
});
