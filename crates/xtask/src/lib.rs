//! `cargo xtask`: the project's own tasks, on a machine with nothing set up.
//!
//! This crate is what cargo builds before the first task begins, so it depends on little. Tasks
//! that need the project's own crates are in the workshop, a program that this one builds and
//! starts.

// A task runner's output is what it is for.
#![allow(clippy::print_stdout, clippy::print_stderr)]

pub mod arguments;
pub mod bare;
pub mod checks;
pub mod endurance;
pub mod kubernetes;
mod messages;
pub mod mutants;
pub mod prose;
pub mod reference;
pub mod suite;
pub mod workshop;

pub use arguments::{Arguments, Task};
