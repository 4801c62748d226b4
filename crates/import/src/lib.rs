//! Imports bundles into containerd.
//!
//! Data flows in one direction:
//!
//! - [`select()`] (pure) decides which images of a catalog this node takes.
//! - [`Survey`] reads what containerd has.
//! - [`plan`](plan::plan) (pure) decides every step.
//! - [`carry_out`](ingest::carry_out) takes the steps and decides nothing.
//! - [`BundleResult`] is the result, and [`BundleReport`] is the document about it.
//!
//! [`import()`] runs the whole flow. The daemon, `airgapd import` and its dry run all use it. If a
//! pipe brings its list of images last, [`take_blobs()`] comes before.
//!
//! The crate's root exports the names of this flow. The modules have those of its parts, each by
//! its topic.
//!
//! This crate never reads an archive's bytes itself and never sees a gRPC type.

pub mod content;
mod error;
mod import;
pub mod ingest;
pub mod labels;
pub mod lease;
pub mod names;
mod pace;
pub mod pattern;
mod piped;
pub mod plan;
pub mod release;
mod report;
pub mod result;
mod rounds;
pub mod scrub;
pub mod select;
pub mod space;
pub mod survey;
pub mod unpack;

pub use error::{Degradation, Error};
pub use import::{Imported, import};
pub use ingest::{Observer, Silent};
pub use labels::{Source, bundle_id};
pub use names::{Naming, Reference};
pub use pace::Pace;
pub use pattern::Pattern;
pub use piped::{Brought, take_blobs};
pub use plan::{Intent, Plan};
pub use report::{BundleReport, ImageReport};
pub use result::{BundleResult, Cause, Outcome};
pub use select::{Judgement, Policy, Selection, Verdict, judge, select};
pub use space::Space;
pub use survey::Survey;
pub use unpack::Unpacker;
