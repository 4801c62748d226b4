//! Any bytes as a bundle, plain or compressed. Opening returns a catalog or an error. Every blob of
//! the catalog can be read to its end or returns an error. No blob is accepted under a digest that
//! does not match its bytes.

#![no_main]

use airgapd_fuzz::{check, open};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(bundle) = open(data) {
        check(&bundle);
    }
});
