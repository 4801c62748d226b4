//! Which manifest containerd makes containers of, where an image index offers several.
//!
//! containerd resolves an image in one way, whoever asks (CRI, `ctr run`, unpacking):
//! `images.Manifest`. Of the entries of an index it keeps those whose platform matches and those
//! without one, sorts them by preference with the latter last, and goes on with the first. It looks
//! at nothing else: a signature or a list of parts with a platform counts like an image, and where
//! the first one is of no use there is no second. Source: containerd, `images/image.go` (1.6, 1.7)
//! and `core/images/image.go` (2.x).

use crate::{Matcher, Platform};

/// An entry of an image index, or an image itself, as far as containerd looks at it when it
/// chooses.
pub trait Entry: Sized {
    /// The platform of its descriptor. `None` where the descriptor has none, which is not the same
    /// as an empty one.
    fn platform(&self) -> Option<&Platform>;

    /// What its descriptor leads to.
    fn behind(&self) -> Behind<'_, Self>;
}

/// What a descriptor leads to.
#[derive(Clone, Copy, Debug)]
pub enum Behind<'e, E> {
    /// An image index: these entries, in its order.
    Index(&'e [E]),
    /// A manifest, whatever it describes.
    Manifest {
        /// The platform in its config. `None` where the config was not read; an empty platform
        /// where it names none.
        config: Option<&'e Platform>,
    },
    /// A document that is not there or cannot be read, or something that is neither index nor
    /// manifest.
    Nothing,
}

/// What containerd answers when it is asked for the manifest of an image.
#[derive(Debug)]
pub enum Chosen<'e, E> {
    /// It goes on with this one, and fails if this one is of no use.
    This(&'e E),
    /// It goes no further than this manifest, which has no platform and whose config is for another
    /// one.
    Mismatch(&'e E),
    /// No entry is for the platform.
    None,
}

/// Answers as the containerd would that `matcher` has the platform and the rules of.
///
/// An image that is no index is what it is: containerd looks at its platform no more. The depth of
/// indexes is the caller's to bound.
pub fn chosen<'e, E: Entry>(image: &'e E, matcher: &Matcher) -> Chosen<'e, E> {
    match image.behind() {
        Behind::Index(entries) => chosen_among(entries, matcher),
        Behind::Manifest { .. } | Behind::Nothing => Chosen::This(image),
    }
}

fn chosen_among<'e, E: Entry>(entries: &'e [E], matcher: &Matcher) -> Chosen<'e, E> {
    let Some(first) = matcher.best(entries, E::platform) else {
        return Chosen::None;
    };
    match first.behind() {
        Behind::Index(below) => chosen_among(below, matcher),
        Behind::Manifest { config: Some(config) }
            if first.platform().is_none() && !matcher.accepts_config(config) =>
        {
            Chosen::Mismatch(first)
        }
        Behind::Manifest { .. } | Behind::Nothing => Chosen::This(first),
    }
}
