//! The images folder: its listing, its changes, and the files beside bundles. This module knows
//! nothing of containerd.

pub mod folder;
mod identity;
mod ignored;
pub mod keys;
mod listing;
pub(crate) mod mounts;
mod open;
mod permissions;
pub mod proofs;
pub mod pull_list;
pub(crate) mod roots;
mod settle;
pub mod sidecar;
pub mod trusted_digests;
pub(crate) mod watch;

pub use watch::try_watch;
