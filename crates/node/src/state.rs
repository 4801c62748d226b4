//! What the daemon knows: the files and how far each has come, and what was imported from which. Nothing here waits.

pub(crate) mod crash;
pub mod ledger;
pub mod roster;
