//! Small things that every crate needs and none owns: digests, text of others, chains of errors,
//! back-off, amounts.
//!
//! Nothing here knows a bundle or containerd, opens a file, reads a clock or waits.

pub mod backoff;
pub mod digest;
pub mod foreign;

mod amount;
mod chain;

pub use amount::{are, bytes, counted, milliseconds};
pub use backoff::Backoff;
pub use chain::chain;
pub use foreign::{Foreign, is_visible};
