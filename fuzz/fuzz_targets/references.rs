//! Any text as an image reference. A parsed reference prints a text that parses to the same
//! reference.

#![no_main]

use import::Reference;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(reference) = text.parse::<Reference>() else {
        return;
    };
    let printed = reference.to_string();
    assert_eq!(
        printed.parse().as_ref(),
        Ok(&reference),
        "{text:?} prints as {printed:?}"
    );
    assert!(
        printed.is_ascii() && !printed.contains(char::is_control),
        "{printed:?}"
    );
});
