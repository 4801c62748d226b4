//! `cargo xtask`: the project's own tasks, on a machine without any preparation.
//!
//! cargo builds this crate before the first task starts, so it has few dependencies. Tasks that
//! need the project's own crates are in the workshop. This program builds the workshop and starts
//! it.

// A task prints its results.
#![allow(clippy::print_stdout, clippy::print_stderr)]

pub mod arguments;
pub mod bare;
pub mod checks;
pub mod endurance;
pub mod k0s_releases;
pub mod kubernetes;
mod messages;
pub mod mutants;
pub mod prose;
pub mod reference;
pub mod suite;
pub mod workshop;

pub use arguments::{Arguments, Task};
