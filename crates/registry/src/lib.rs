//! Fetches images and other artifacts from OCI registries, for bundles.
//!
//! [`resolve`] reads the documents of a reference and chooses platforms as containerd would;
//! [`Feed`] fetches layers, several at a time, and hands them out in the order in which a bundle is
//! written. Everything is known by digest before it is fetched and proven by it afterwards, which
//! makes retries, resumed transfers, mirrors and the cache harmless.
//!
//! Requests pass through five rooms: `client` asks the locations of a repository, `access` answers
//! challenges, `http` sends and follows redirects, `answer` and `body` judge what comes back.
//! `retry` decides about further tries; the two loops that carry the decision out are `Client::get`
//! for documents and `Fetcher::transfer` for layers, which go on where they broke.
//!
//! It speaks the OCI distribution-spec 1.1 (pull) with the token and basic authentication of
//! Docker's registries, over a stock HTTP client. It knows nothing of containerd and of what a
//! reference means to people, and it neither prints nor reads the environment: proxies and the
//! places of credentials are given to it.

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
