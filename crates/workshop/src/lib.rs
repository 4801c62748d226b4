//! Bundles that the tasks and the tests share: the demonstration's, and airgapd's own image.
//!
//! The program of this crate has the tasks that make and measure bundles. `cargo xtask` builds and
//! starts it.

pub mod demo_bundle;
pub mod own_image;
