//! Imports into containerd: the same scenarios on the stand-in and, as far as they can be seen
//! there, on the real generations.
//!
//! Statement numbers are those of the list of testable statements in containerd's behaviour as this
//! project knows it.

mod manifest_choice;
mod proxy;
mod races;
mod release;
mod scale;
mod support;

mod compressed;
mod faults;
mod ingest;
mod pace;

lab::serves_a_containerd!();
