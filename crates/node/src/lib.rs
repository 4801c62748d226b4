//! The daemon as a library.
//!
//! [`place`] finds the containerd and the folder of this node, and [`runtime`] connects to
//! containerd. [`images`] reads the folder. [`state`] is everything that the daemon knows,
//! [`decide`] chooses the next actions from it, and [`act`] carries them out. The crate knows no
//! command line, reads no configuration file and prints nothing.

pub mod act;
pub mod admit;
pub mod control;
pub mod decide;
mod features;
pub mod images;
pub mod json;
pub mod metrics;
pub mod outcome;
pub mod place;
pub mod progress;
pub mod ready;
pub mod receipts;
pub mod releases;
pub mod report;
pub mod required;
pub mod rollback;
pub mod runtime;
pub mod scrub;
pub mod settings;
pub mod spool;
pub mod state;
pub mod status;
pub mod sys;
pub mod systemd;
mod uses;
pub mod verdict;
