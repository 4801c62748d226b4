//! A stand-in for containerd: an in-process server that speaks containerd's real protocol over a
//! real Unix socket, keeps state as the real one does, and is stricter where the real one lets an
//! importer damage a node unnoticed.
//!
//! [`Fake`] is the whole door. Tests start one, point a client or the program at [`Fake::socket`],
//! and ask afterwards what the store looks like, in which order it was changed, and whether
//! [`Fake::check_done`] finds a violation. What it answers was measured on containerd 1.6.20,
//! 1.7.24, 2.1.9, 2.3.7 and 2.4.2; the tests of this crate run the same raw scenarios on those.
//!
//! [`GoImporter`] plays another importer beside ours, on the stand-in and on a real containerd
//! alike.
//!
//! It never mounts or runs anything, and knows nothing of how bundles are read. A layer that is
//! unpacked is looked through from beginning to end and nothing of it is kept.

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
