//! Fetches images and other artifacts from OCI registries, for bundles.
//!
//! [`resolve`] reads the documents of a reference and chooses the platforms that containerd would
//! choose. [`Feed`] fetches several layers at a time and returns them in the order of the bundle.
//! The digest of a blob is known before its transfer and verified after it. So retries, resumed
//! transfers, mirrors and the cache are harmless.
//!
//! A request passes through five modules. `client` asks the locations of a repository. `access`
//! answers challenges. `http` sends requests and follows redirects. `answer` and `body` judge the
//! answer. `retry` decides about retries, and two loops carry this out: `Client::get` for
//! documents, and `Fetcher::transfer` for layers, which continues at the byte of the interruption.
//!
//! The crate speaks the OCI distribution-spec 1.1 (pull) with the token and basic authentication of
//! Docker's registries. It uses a stock HTTP client. It does not know containerd or the short forms
//! of image names. It neither prints nor reads the environment: the caller passes proxies and the
//! paths of credentials.

mod access;
mod answer;
mod body;
mod cache;
mod challenge;
mod client;
mod credentials;
mod error;
mod feed;
mod http;
mod locations;
mod reach;
mod resolve;
mod retry;
mod subject;

pub use cache::Cache;
pub use client::{Client, Options};
pub use credentials::Credentials;
pub use error::Error;
pub use feed::{Counters, Feed};
pub use http::{Proxies, Security};
pub use locations::{InvalidRule, Rule};
pub use resolve::{ImageRef, Resolved, resolve};
pub use retry::Retry;
