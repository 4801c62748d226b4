//! The values of the log field `outcome`: the result for a bundle, an image or the node.
//!
//! Operators and alerts search for these words, so a word never changes. The words of a report
//! ([`import::Outcome`], [`import::result::ImageOutcome`]) appear in the same field. A word that
//! both have means the same.

/// The result for the bundle, the image or the node of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A bundle is in place.
    Imported,
    /// Some images of a bundle are in place, and others failed.
    Partial,
    /// Nothing of a bundle is in place, or an image is not in place.
    Failed,
    /// A bundle is gone from the folder, or the record of an image is deleted.
    Removed,
    /// Parts of a bundle are missing in containerd, and the daemon restores them.
    Restored,
    /// Another program had recorded an image without all its blobs, and the bundle brought them.
    Repaired,
    /// An upload has stalled.
    Stalled,
    /// An image was unpacked.
    Unpacked,
    /// An image cannot be unpacked.
    NotUnpacked,
    /// A required image is missing.
    Missing,
    /// containerd does not answer.
    Unreachable,
    /// The rule for signatures refuses a bundle, or containerd answers with more than the daemon
    /// accepts.
    Refused,
    /// The images folder cannot be used.
    Unusable,
    /// All bundles are gone at once.
    Vanished,
    /// The disk has too little room.
    Full,
    /// The configuration has mistakes.
    Misconfigured,
    /// The verdict on the node has changed: healthy, waiting, degraded or failed.
    Verdict,
}

impl Outcome {
    /// All outcomes.
    pub const ALL: [Outcome; 17] = [
        Outcome::Imported,
        Outcome::Partial,
        Outcome::Failed,
        Outcome::Removed,
        Outcome::Restored,
        Outcome::Repaired,
        Outcome::Stalled,
        Outcome::Unpacked,
        Outcome::NotUnpacked,
        Outcome::Missing,
        Outcome::Unreachable,
        Outcome::Refused,
        Outcome::Unusable,
        Outcome::Vanished,
        Outcome::Full,
        Outcome::Misconfigured,
        Outcome::Verdict,
    ];

    /// Returns the word in the log.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Outcome::Imported => "imported",
            Outcome::Partial => "partial",
            Outcome::Failed => "failed",
            Outcome::Removed => "removed",
            Outcome::Restored => "restored",
            Outcome::Repaired => "repaired",
            Outcome::Stalled => "stalled",
            Outcome::Unpacked => "unpacked",
            Outcome::NotUnpacked => "not-unpacked",
            Outcome::Missing => "missing",
            Outcome::Unreachable => "unreachable",
            Outcome::Refused => "refused",
            Outcome::Unusable => "unusable",
            Outcome::Vanished => "vanished",
            Outcome::Full => "full",
            Outcome::Misconfigured => "misconfigured",
            Outcome::Verdict => "verdict",
        }
    }

    /// Returns the outcome with this word, if there is one.
    #[must_use]
    pub fn of(word: &str) -> Option<Outcome> {
        Outcome::ALL.into_iter().find(|outcome| outcome.as_str() == word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_has_a_word_of_its_own_and_is_found_by_it() {
        for outcome in Outcome::ALL {
            assert_eq!(Outcome::of(outcome.as_str()), Some(outcome));
        }
    }

    #[test]
    fn the_outcomes_that_a_report_has_too_go_by_the_same_words() {
        for (here, there) in [
            (Outcome::Imported, import::Outcome::Imported),
            (Outcome::Partial, import::Outcome::Partial),
            (Outcome::Failed, import::Outcome::Failed),
        ] {
            assert_eq!(here.as_str(), there.as_str());
        }
        assert_eq!(
            Outcome::Failed.as_str(),
            import::result::ImageOutcome::Failed.as_str()
        );
    }
}
