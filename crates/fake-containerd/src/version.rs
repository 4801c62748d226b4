//! What the emulated version of containerd does differently from the others.

/// A parsed `Version.Version` text; what cannot be read counts as 0.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    major: u64,
    minor: u64,
    patch: u64,
}

impl Version {
    pub(crate) fn parse(text: &str) -> Self {
        let mut numbers = text
            .trim_start_matches('v')
            .split(['.', '~', '+', '-'])
            .map(|part| part.parse().unwrap_or(0));
        let mut next = || numbers.next().unwrap_or(0);
        Version {
            major: next(),
            minor: next(),
            patch: next(),
        }
    }

    fn at_least(&self, major: u64, minor: u64, patch: u64) -> bool {
        (self.major, self.minor, self.patch) >= (major, minor, patch)
    }

    /// 1.x waits for about a second when a ref is locked, 2.x answers at once.
    pub(crate) fn waits_for_ref(&self) -> bool {
        !self.at_least(2, 0, 0)
    }

    pub(crate) fn sha512(&self) -> bool {
        self.at_least(2, 3, 0)
    }

    /// Leases and labels hold image records, image records may expire, deletions may name a target.
    pub(crate) fn image_leases(&self) -> bool {
        self.at_least(2, 0, 0)
    }

    /// Blobs say of themselves that they live as long as a record or another blob.
    pub(crate) fn back_references(&self) -> bool {
        self.at_least(2, 2, 0)
    }

    /// Commits are events; deletions of blobs always were.
    pub(crate) fn content_create_events(&self) -> bool {
        self.at_least(2, 1, 0)
    }

    /// CRI reports `pinned` since 1.6.22 and 1.7.3.
    pub(crate) fn honours_pins(&self) -> bool {
        self.at_least(1, 7, 3) || ((self.major, self.minor) == (1, 6) && self.patch >= 22)
    }

    /// 1.6 sends Go's zero time where later versions leave the field out.
    pub(crate) fn zero_times(&self) -> bool {
        !self.at_least(1, 7, 0)
    }

    /// transfer and streaming came with 1.7, as did the pid in introspection.
    pub(crate) fn transfer(&self) -> bool {
        self.at_least(1, 7, 0)
    }

    /// A snapshot that is there already is put on the lease of the call that would have made it.
    pub(crate) fn leases_targets(&self) -> bool {
        self.at_least(1, 7, 0)
    }

    /// That a snapshot was collected is an event, as that it was removed always was.
    pub(crate) fn tells_of_collected_snapshots(&self) -> bool {
        self.at_least(1, 7, 0)
    }

    /// Docker's media type for layers with zstd is known since 2.0.
    pub(crate) fn docker_zstd(&self) -> bool {
        self.at_least(2, 0, 0)
    }

    /// CRI was split into several plugins in 2.0.
    pub(crate) fn split_cri(&self) -> bool {
        self.at_least(2, 0, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distribution_suffixes_and_prefixes_do_not_disturb_the_numbers() {
        for (text, expected) in [
            ("1.6.20~ds1", (1, 6, 20)),
            ("v2.1.9", (2, 1, 9)),
            ("2.1.9+unknown", (2, 1, 9)),
            ("1.7.24-k3s1", (1, 7, 24)),
            ("2.3", (2, 3, 0)),
        ] {
            let version = Version::parse(text);
            assert_eq!((version.major, version.minor, version.patch), expected, "{text}");
        }
    }

    #[test]
    fn pins_are_honoured_from_1_6_22_and_1_7_3() {
        for (text, honoured) in [
            ("1.6.20", false),
            ("1.6.22", true),
            ("1.7.2", false),
            ("1.7.3", true),
            ("2.0.0", true),
        ] {
            assert_eq!(Version::parse(text).honours_pins(), honoured, "{text}");
        }
    }
}
