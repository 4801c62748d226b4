//! Small parts that every crate uses: digests, foreign text, chains of errors, back-off, amounts.
//!
//! No function here knows bundles or containerd, opens a file, reads a clock or waits.

pub mod backoff;
pub mod digest;
pub mod foreign;

mod amount;
mod chain;

pub use amount::{bytes, counted, milliseconds};
pub use backoff::Backoff;
pub use chain::chain;
pub use foreign::{Foreign, is_visible};
