//! The daemon as a library.
//!
//! [`place`] says which containerd and which folder are this node's, [`runtime`] connects to it,
//! [`images`] reads the folder, [`state`] is what the daemon knows, [`decide`] what follows from
//! it, and [`act`] does that. It knows no command line, reads no configuration file and prints
//! nothing.

pub mod act;
pub mod control;
pub mod decide;
pub mod images;
pub mod json;
pub mod metrics;
pub mod outcome;
pub mod place;
pub mod progress;
pub mod report;
pub mod required;
pub mod runtime;
pub mod settings;
pub mod state;
pub mod status;
pub mod sys;
pub mod systemd;
mod uses;
pub mod verdict;
