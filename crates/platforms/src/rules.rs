/// A generation of containerd's matching rules.
///
/// What a node runs is decided by its own containerd, so the rules must follow the version that is
/// there; [`Rules::of_containerd`] picks them.
///
/// | rules | containerd | its platforms library |
/// |---|---|---|
/// | `V0_2` | 1.6, 1.7 | v0.2.1, or the same code inside containerd |
/// | `Rc1` | 2.0, 2.1, 2.2 | v1.0.0-rc.0 to rc.2 |
/// | `Rc3` | 2.3 and later; Debian's 2.1 | v1.0.0-rc.3 and later |
///
/// A distribution may build an older containerd with a newer library, as Debian does with 2.1.
///
/// containerd 2.0.0 alone shipped rc.0 and is treated as `Rc1` too. It computed the arm64 lists
/// instead of looking them up: spellings like `8.0` and levels like `v10`, which no CPU and no
/// image has, match there but not here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rules {
    /// arm64 levels stand for themselves: `arm64/v8.2` takes neither `arm64/v8.1` nor `arm64`.
    V0_2,
    /// arm64 levels include the lower ones; `os.version` counts when the wanted system is Windows.
    Rc1,
    /// As `Rc1`, and a candidate may not ask for an `os.features` entry that is not wanted.
    Rc3,
}

impl Rules {
    /// Every generation, the oldest first: for whoever cannot know which containerd an image will
    /// meet.
    pub const ALL: [Rules; 3] = [Rules::V0_2, Rules::Rc1, Rules::Rc3];

    /// The containerds that have these rules, for people: `1.6 and 1.7`.
    pub fn versions(self) -> &'static str {
        match self {
            Rules::V0_2 => "1.6 and 1.7",
            Rules::Rc1 => "2.0 to 2.2",
            Rules::Rc3 => "2.3 and later",
        }
    }

    /// Picks the rules of a containerd by its version; unknown future versions get the newest
    /// rules.
    pub fn of_containerd(major: u64, minor: u64) -> Rules {
        match (major, minor) {
            (0 | 1, _) => Rules::V0_2,
            (2, 0..=2) => Rules::Rc1,
            _ => Rules::Rc3,
        }
    }

    /// Whether CRI mounts a data-only artifact as an image volume (KEP-4639), where the config of
    /// the artifact lists its layers as an image's does. It is so on 2.1 and later, by a test; 2.0
    /// has no image volumes at all.
    pub fn mounts_artifacts(self) -> bool {
        self >= Rules::Rc1
    }

    /// Whether arm64 levels include the lower ones, and `9`, `v8.0` and the like are aliases.
    pub(crate) fn knows_arm64_levels(self) -> bool {
        self >= Rules::Rc1
    }

    /// Whether a wanted Windows version restricts what is accepted.
    pub(crate) fn compares_windows_versions(self) -> bool {
        self >= Rules::Rc1
    }

    /// Whether variant, version and features in a config count where a descriptor has no platform.
    pub(crate) fn reads_whole_configs(self) -> bool {
        self >= Rules::Rc1
    }

    /// Whether `os.features` take part in matching and in preference.
    pub(crate) fn compares_features(self) -> bool {
        self >= Rules::Rc3
    }
}
