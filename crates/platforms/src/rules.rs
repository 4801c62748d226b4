/// A generation of containerd's matching rules.
///
/// What a node runs is decided by its own containerd, so the rules must follow the version that is
/// there; [`Rules::of_containerd`] picks them.
///
/// | rules | containerd | its platforms library |
/// |---|---|---|
/// | `V0_2` | 1.6, 1.7 | v0.2.1, or the same code inside containerd |
/// | `Rc1` | 2.0, 2.1, 2.2 | v1.0.0-rc.0 to rc.2 |
/// | `Rc3` | 2.3 and later | v1.0.0-rc.3 and later |
///
/// containerd 2.0.0 alone shipped rc.0 and is treated as `Rc1` too. It computed the arm64 lists
/// instead of looking them up: spellings like `8.0` and levels like `v10`, which no CPU and no image
/// has, match there but not here.
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
    /// Picks the rules of a containerd by its version; unknown future versions get the newest rules.
    pub fn of_containerd(major: u64, minor: u64) -> Rules {
        match (major, minor) {
            (0 | 1, _) => Rules::V0_2,
            (2, 0..=2) => Rules::Rc1,
            _ => Rules::Rc3,
        }
    }

    /// Whether arm64 levels include the lower ones, and `9`, `v8.0` and the like are aliases.
    pub(crate) fn knows_arm64_levels(self) -> bool {
        self >= Rules::Rc1
    }

    /// Whether a wanted Windows version restricts what is accepted.
    pub(crate) fn compares_windows_versions(self) -> bool {
        self >= Rules::Rc1
    }

    /// Whether `os.features` take part in matching and in preference.
    pub(crate) fn compares_features(self) -> bool {
        self >= Rules::Rc3
    }
}
