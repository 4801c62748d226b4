//! Imports into containerd: the same scenarios on the stand-in and, as far as they can be observed
//! there, on the real generations.
//!
//! Statement numbers refer to this project's list of testable statements about containerd's
//! behaviour.

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
