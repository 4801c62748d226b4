//! Any bytes as a bundle, plain or compressed: opening gives a catalog or an error, and every blob
//! it offers can be read to its end or says why not. Nothing is accepted under a digest that its
//! bytes do not have.

#![no_main]

use airgapd_fuzz::{check, open};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(bundle) = open(data) {
        check(&bundle);
    }
});
