//! The bundles that tasks and tests share: that of the demonstration, and airgapd's own image.
//!
//! The program of this crate runs the tasks that make and measure bundles. `cargo xtask` builds and
//! starts it.

pub mod demo_bundle;
pub mod own_image;
