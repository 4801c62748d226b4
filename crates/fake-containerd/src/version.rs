//! Differences between the emulated versions of containerd.

/// A parsed `Version.Version` text. Unreadable parts count as 0.
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

    /// Returns true for 1.x, which waits for about a second if a ref is locked. 2.x answers at
    /// once.
    pub(crate) fn waits_for_ref(&self) -> bool {
        !self.at_least(2, 0, 0)
    }

    pub(crate) fn sha512(&self) -> bool {
        self.at_least(2, 3, 0)
    }

    /// Returns true if leases and labels hold image records, image records may expire, and
    /// deletions may name a target.
    pub(crate) fn image_leases(&self) -> bool {
        self.at_least(2, 0, 0)
    }

    /// Returns true if a blob's own label can tie its life to a record or another blob.
    pub(crate) fn back_references(&self) -> bool {
        self.at_least(2, 2, 0)
    }

    /// Returns true if commits are events. Deletions of blobs are events in every version.
    pub(crate) fn content_create_events(&self) -> bool {
        self.at_least(2, 1, 0)
    }

    /// Returns true if CRI reports `pinned`, which it does since 1.6.22 and 1.7.3.
    pub(crate) fn honours_pins(&self) -> bool {
        self.at_least(1, 7, 3) || ((self.major, self.minor) == (1, 6) && self.patch >= 22)
    }

    /// Returns true for 1.6, which sends Go's zero time if a field is empty. Later versions omit
    /// the field.
    pub(crate) fn zero_times(&self) -> bool {
        !self.at_least(1, 7, 0)
    }

    /// Returns true if transfer and streaming exist, and the pid in introspection. They came with
    /// 1.7.
    pub(crate) fn transfer(&self) -> bool {
        self.at_least(1, 7, 0)
    }

    /// Returns true if the lease of a call gets a snapshot that already exists.
    pub(crate) fn leases_targets(&self) -> bool {
        self.at_least(1, 7, 0)
    }

    /// Returns true if the collection of a snapshot is an event. Its removal is an event in every
    /// version.
    pub(crate) fn tells_of_collected_snapshots(&self) -> bool {
        self.at_least(1, 7, 0)
    }

    /// Returns true if a snapshot without a parent can get one at its commit.
    pub(crate) fn rebases(&self) -> bool {
        self.at_least(2, 2, 0)
    }

    /// Returns true if Docker's media type for zstd layers is known, which it is since 2.0.
    pub(crate) fn docker_zstd(&self) -> bool {
        self.at_least(2, 0, 0)
    }

    /// Returns true if CRI consists of several plugins, as it does since 2.0.
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
