//! A stand-in for containerd: an in-process server that speaks containerd's real protocol over a
//! real Unix socket. It keeps state as containerd does. It is stricter in places where containerd
//! lets an importer damage a node unnoticed.
//!
//! [`Fake`] is the only entry point. Tests start one and connect a client or the program to
//! [`Fake::socket`]. Afterwards they check the store, the order of its changes, and the violations
//! that [`Fake::check_done`] returns. Its answers were measured on containerd 1.6.20, 1.7.24,
//! 2.1.9, 2.3.7 and 2.4.2. The tests of this crate run the same raw scenarios on these versions.
//!
//! [`GoImporter`] acts as another importer, on the stand-in and on a real containerd alike.
//!
//! The stand-in never mounts or runs anything, and knows nothing about reading bundles. It reads an
//! unpacked layer from beginning to end and keeps nothing of it.

mod containers;
mod content;
mod cri;
mod diff;
mod digest;
mod events;
mod fake;
mod faults;
mod filters;
mod gc;
mod go_importer;
mod images;
mod inspect;
mod introspection;
mod leases;
mod namespaces;
mod platform;
mod seed;
mod server;
mod service;
mod snapshots;
mod state;
mod strictness;
mod version;
mod wire;
mod write;

pub use digest::sha256;
pub use fake::{Fake, FakeConfig};
pub use faults::Fault;
pub use gc::GcPolicy;
pub use go_importer::{GoImporter, ImportFailed, K0S_SOURCES, K3S_PINNED, Step};
pub use inspect::{
    BlobRecord, Event, ImageRecord, IngestRecord, LeaseRecord, Mutation, SnapshotKind, SnapshotRecord, Target,
};
pub use platform::NodePlatform;
pub use seed::{SeedContainer, SeedImage};
pub use tonic::Code;
pub use wire::RPCS;
