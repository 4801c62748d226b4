//! Will every image that this node is asked for be there?
//!
//! [`Needs`] is what is asked for: lists, manifests, the images of k0s, the sandbox. [`Inventory`]
//! is what there is, in containerd or in bundles, by name. [`answer()`] holds one need against an
//! inventory as CRI would, and says for an image that is missing which one comes closest, and what
//! to do. The crate prints nothing, writes nothing and imports nothing.

mod answer;
mod asked;
mod inventory;
mod sought;

pub use answer::{Answer, Status, answer};
pub use asked::{K0sAnswer, K0sQuestion, Kind, Need, Needs, Source, Sources, read_text};
pub use inventory::{Held, Inventory, Snapshots};
pub use sought::Sought;
