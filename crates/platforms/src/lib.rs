//! containerd's platform matching.
//!
//! An image index offers manifests for several platforms. containerd decides by its own rules which
//! of them a node may run and which it prefers. An arm64 node also takes 32-bit arm, and an amd64
//! node also takes 386. `x86_64` and `aarch64/8` are accepted as other spellings. A program that
//! brings images to a containerd must follow the same rules, or it brings images that never run.
//!
//! This crate holds these rules and nothing else. It never talks to a containerd and knows neither
//! images nor archives. All functions are pure except [`host`], which reads from this machine.
//!
//! The rules changed over time. [`Rules`] names the generations and the containerd versions that
//! use them.
//!
//! ```
//! use airgapd_platforms::{Matcher, Platform, Rules};
//!
//! let node: Platform = "linux/arm64".parse()?;
//! let matcher = Matcher::only(&node, Rules::of_containerd(1, 7));
//! let offered = ["linux/amd64", "linux/arm/v6", "linux/arm/v7"].map(|text| text.parse().unwrap());
//! let best = matcher.best(&offered, |platform: &Platform| Some(platform));
//! assert_eq!(best.map(ToString::to_string).as_deref(), Some("linux/arm/v7"));
//! # Ok::<(), airgapd_platforms::ParseError>(())
//! ```
//!
//! This crate differs from containerd in these cases, which real images do not have:
//!
//! - Letters outside ASCII are not lower-cased.
//! - A wanted `amd64` or `arm` variant above `v99` is not expanded. containerd would build a list
//!   of that length.
//! - A feature `win32k` that is given twice is ignored twice.
//! - Windows versions are compared by the list of releases that containerd has since 2.1.9.
//! - The arm64 arithmetic of containerd 2.0.0 is left out (see [`Rules`]).

mod choice;
mod detection;
mod expansion;
mod matcher;
mod parsing;
mod platform;
mod rules;
mod wanted;
mod windows;

pub use choice::{Behind, Chosen, Entry, chosen};
pub use detection::{detect, host};
pub use matcher::Matcher;
pub use parsing::ParseError;
pub use platform::{MOST_FEATURES, Platform};
pub use rules::Rules;
pub use wanted::{InvalidChoice, PlatformChoice, Wanted};
