//! The images folder: its listing, its changes, and the files beside bundles. Nothing here knows containerd.

pub mod folder;
pub mod pull_list;
pub mod sidecar;
pub mod trusted_digests;
pub(crate) mod watch;

pub use watch::try_watch;
