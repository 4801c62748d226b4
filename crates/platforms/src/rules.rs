/// A generation of containerd's matching rules.
///
/// The containerd of a node decides which manifest the node runs, so the rules must follow its
/// version. [`Rules::of_containerd`] picks them.
///
/// | rules | containerd | its platforms library |
/// |---|---|---|
/// | `V0_2` | 1.6, 1.7 | v0.2.1, or the same code inside containerd |
/// | `Rc1` | 2.0, 2.1, 2.2 | v1.0.0-rc.0 to rc.2 |
/// | `Rc3` | 2.3 and later, Debian's 2.1 | v1.0.0-rc.3 and later |
///
/// A distribution may build an older containerd with a newer library, as Debian does with 2.1.
///
/// Only containerd 2.0.0 has rc.0, and it is treated as `Rc1` too. It computes the arm64 lists
/// instead of looking them up. Spellings like `8.0` and levels like `v10`, which no CPU and no
/// image has, match there but not here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rules {
    /// An arm64 level includes no other: `arm64/v8.2` takes neither `arm64/v8.1` nor `arm64`.
    V0_2,
    /// An arm64 level includes the lower levels. `os.version` counts if the wanted system is
    /// Windows.
    Rc1,
    /// As `Rc1`, and each entry in the candidate's `os.features` must be wanted.
    Rc3,
}

impl Rules {
    /// All generations, the oldest first, for images whose containerd is not known.
    pub const ALL: [Rules; 3] = [Rules::V0_2, Rules::Rc1, Rules::Rc3];

    /// Returns the containerd versions with these rules as readable text: `1.6 and 1.7`.
    pub fn versions(self) -> &'static str {
        match self {
            Rules::V0_2 => "1.6 and 1.7",
            Rules::Rc1 => "2.0 to 2.2",
            Rules::Rc3 => "2.3 and later",
        }
    }

    /// Returns the rules of a containerd by its version. Unknown future versions get the newest
    /// rules.
    pub fn of_containerd(major: u64, minor: u64) -> Rules {
        match (major, minor) {
            (0 | 1, _) => Rules::V0_2,
            (2, 0..=2) => Rules::Rc1,
            _ => Rules::Rc3,
        }
    }

    /// Returns true if CRI mounts a data-only artifact as an image volume (KEP-4639).
    ///
    /// The artifact's config must list its layers as an image's config does. containerd 2.1 and
    /// later mount it, as a test showed. containerd 2.0 has no image volumes at all.
    pub fn mounts_artifacts(self) -> bool {
        self >= Rules::Rc1
    }

    /// Returns true if arm64 levels include the lower levels, and spellings like `9` and `v8.0` are
    /// aliases.
    pub(crate) fn knows_arm64_levels(self) -> bool {
        self >= Rules::Rc1
    }

    /// Returns true if a wanted Windows version restricts the candidates.
    pub(crate) fn compares_windows_versions(self) -> bool {
        self >= Rules::Rc1
    }

    /// Returns true if variant, version and features in a config count for a descriptor without a
    /// platform.
    pub(crate) fn reads_whole_configs(self) -> bool {
        self >= Rules::Rc1
    }

    /// Returns true if `os.features` count in matching and in preference.
    pub(crate) fn compares_features(self) -> bool {
        self >= Rules::Rc3
    }
}
