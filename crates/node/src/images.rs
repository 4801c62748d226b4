//! The images folder: its listing, its changes, and the files beside bundles. This module knows
//! nothing of containerd.

pub mod folder;
mod identity;
mod ignored;
mod listing;
pub(crate) mod mounts;
mod open;
mod permissions;
pub mod pull_list;
mod settle;
pub mod sidecar;
pub mod trusted_digests;
pub(crate) mod watch;

pub use watch::try_watch;
