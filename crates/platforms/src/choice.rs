//! The manifest that containerd runs if an image index offers several.
//!
//! containerd resolves every image with the same function, `images.Manifest`, for CRI, `ctr run`
//! and unpacking alike. It keeps the entries of an index whose platform matches and those without a
//! platform. It sorts them by preference, entries without a platform last, and continues with the
//! first. Nothing else counts: a signature or a list of parts with a platform counts like an image.
//! If the first entry is unusable, containerd tries no second. Source: containerd,
//! `images/image.go` (1.6, 1.7) and `core/images/image.go` (2.x).

use crate::{Matcher, Platform};

/// An entry of an image index, or an image itself: the parts that containerd reads to choose.
pub trait Entry: Sized {
    /// Returns the platform of its descriptor, `None` if it has none. An empty platform is not the
    /// same as none.
    fn platform(&self) -> Option<&Platform>;

    /// Returns the document that its descriptor leads to.
    fn behind(&self) -> Behind<'_, Self>;
}

/// The document that a descriptor leads to.
#[derive(Clone, Copy, Debug)]
pub enum Behind<'e, E> {
    /// An image index with these entries, in its order.
    Index(&'e [E]),
    /// A manifest of an image or of anything else.
    Manifest {
        /// Platform in its config. `None` if the config was not read, an empty platform if the
        /// config names none.
        config: Option<&'e Platform>,
    },
    /// A missing or unreadable document, or a document that is neither an index nor a manifest.
    Nothing,
}

/// containerd's answer to a request for the manifest of an image.
#[derive(Debug)]
pub enum Chosen<'e, E> {
    /// containerd continues with this entry, and fails if the entry is unusable.
    This(&'e E),
    /// containerd stops at this manifest: it has no platform, and its config is for another
    /// platform.
    Mismatch(&'e E),
    /// No entry is for the platform.
    None,
}

/// Answers as a containerd with the platform and the rules of `matcher` does.
///
/// If the image is not an index, containerd ignores its platform. The caller limits the depth of
/// nested indexes.
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
