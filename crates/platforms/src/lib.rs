//! containerd's platform matching.
//!
//! An image index offers manifests for several platforms, and containerd decides by rules of its
//! own which of them a node may run and which it likes best: an arm64 node also takes 32-bit arm,
//! an amd64 node also takes 386, and spellings such as `x86_64` or `aarch64/8` mean what one
//! expects. Whoever brings images to a containerd must come to the same answer, or it brings what
//! will never be run. This crate gives that answer and nothing else. It never talks to a containerd
//! and knows neither images nor archives; apart from [`host`], which looks at this machine,
//! everything is a pure function.
//!
//! The rules changed over time; [`Rules`] names the generations and says which containerd uses
//! which.
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
//! Differences from containerd, all beyond what real images contain: letters outside ASCII are not
//! lower-cased; a wanted `amd64` or `arm` variant above `v99` is not expanded (containerd would
//! build a list of that length); a feature `win32k` given twice is ignored twice; Windows versions
//! are compared by the list of releases that containerd has since 2.1.9; 2.0.0's own arm64
//! arithmetic (see [`Rules`]).

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
