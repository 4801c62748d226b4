//! Versions of Windows images that a Windows version runs, since [`Rules::Rc1`](crate::Rules::Rc1).
//!
//! It is used to check images for a Windows node on another machine. The list of long-term releases
//! comes from rc.2. rc.1 (containerd 2.0.11, 2.1.0) did not know Windows Server 2025 yet.

/// Windows Server 2022, the first release that also runs images older than itself.
const LTSC_2022: u16 = 20_348;
/// Long-term releases in ascending order.
const LTSC: [u16; 2] = [LTSC_2022, 26_100];

#[derive(Clone, Copy, PartialEq, Eq)]
struct Version {
    major: u8,
    minor: u8,
    build: u16,
}

/// Returns true if the wanted version runs the candidate. An absent version and an unreadable
/// wanted version restrict nothing.
pub(crate) fn version_accepted(wanted: Option<&str>, candidate: Option<&str>) -> bool {
    let (Some(wanted), Some(candidate)) = (wanted.and_then(version), candidate) else {
        return true;
    };
    // containerd reads a malformed version as 0.0.0.
    let candidate = version(candidate).unwrap_or(Version {
        major: 0,
        minor: 0,
        build: 0,
    });
    let same_line = (wanted.major, wanted.minor) == (candidate.major, candidate.minor);
    same_line && (oldest_build(wanted.build)..=wanted.build).contains(&candidate.build)
}

/// Returns the oldest build that a host runs: its own, or the long-term release before it.
fn oldest_build(host: u16) -> u16 {
    if host < LTSC_2022 {
        return host;
    }
    LTSC.into_iter()
        .rev()
        .find(|release| *release < host)
        .unwrap_or(LTSC_2022)
}

/// Reads `major.minor.build` and ignores the rest. 0.0.0 counts as none.
fn version(text: &str) -> Option<Version> {
    let mut parts = text.split('.');
    let major = parts.next()?.parse().ok()?;
    let minor = parts.next()?.parse().ok()?;
    let build = parts.next()?.parse().ok()?;
    Some(Version { major, minor, build }).filter(|_| (major, minor, build) != (0, 0, 0))
}
