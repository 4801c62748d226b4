//! Will every image that this node needs be present?
//!
//! [`Needs`] gathers the images that are needed, from lists, manifests, the images of k0s, and the
//! sandbox. [`Inventory`] has the images of containerd or of bundles, by name. [`answer()`] looks a
//! need up in an inventory like CRI would. For a missing image it finds the nearest miss and the
//! remedy. The crate prints nothing, writes nothing and imports nothing.

mod answer;
mod asked;
mod inventory;
mod sought;

pub use answer::{Answer, Status, answer};
pub use asked::{
    K0sAnswer, K0sQuestion, Kind, Need, Needs, Reading, Source, Sources, Stamps, is_foreign_program,
    read_text,
};
pub use inventory::{Held, Inventory, Snapshots};
pub use sought::Sought;
