//! Will every image that this node is asked for be there?
//!
//! [`Shelf`] is what there is, in containerd or in bundles, by name; [`Need`](crate::needs::Need) is what is asked for;
//! [`answer()`] holds one against the other as CRI would, and says for what is missing what comes closest and what to do.

mod answer;
mod shelf;

pub(crate) use answer::{Answer, Sought, Status, answer};
pub(crate) use shelf::{Held, Shelf, Snapshots};
