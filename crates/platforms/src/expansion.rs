//! The other platforms that a node of one platform runs.

use crate::{Platform, Rules};

/// Highest level that is expanded. No CPU comes near it. Without this limit a mistyped
/// `v1000000000` would become a list of that length.
const HIGHEST_LEVEL: u32 = 99;
/// The lowest arm level that containerd counts as runnable by a higher one.
const LOWEST_ARM_LEVEL: u32 = 5;

/// Returns the platforms that a node of this platform runs, most preferred first, normalised.
///
/// The list is empty if the rules do not know the level, such as `arm64/v10` since [`Rules::Rc1`].
pub(crate) fn expanded(platform: &Platform, rules: Rules) -> Vec<Platform> {
    let platform = platform.normalized(rules);
    let variant = platform.variant.as_deref().unwrap_or_default();
    runnable(&platform.architecture, variant, rules)
        .into_iter()
        .map(|(architecture, variant)| Platform {
            architecture: architecture.to_owned(),
            variant: Some(variant),
            ..platform.clone()
        })
        .map(|platform| platform.normalized(rules))
        .collect()
}

fn runnable<'a>(architecture: &'a str, variant: &str, rules: Rules) -> Vec<(&'a str, String)> {
    match architecture {
        "amd64" => amd64(variant),
        "arm" => arm(variant),
        "arm64" if rules.knows_arm64_levels() => arm64(variant),
        "arm64" => arm64_without_levels(variant),
        other => vec![(other, variant.to_owned())],
    }
}

fn amd64(variant: &str) -> Vec<(&'static str, String)> {
    let mut list = vec![("amd64", variant.to_owned())];
    list.extend(below(variant, 1).map(|level| ("amd64", level)));
    list.push(("386", String::new()));
    list
}

fn arm(variant: &str) -> Vec<(&'static str, String)> {
    let mut list = vec![("arm", variant.to_owned())];
    list.extend(below(variant, LOWEST_ARM_LEVEL).map(|level| ("arm", level)));
    list
}

/// Returns the levels below a `vN` down to `lowest`, highest first. There are none if `N` is not a
/// number.
fn below(variant: &str, lowest: u32) -> impl Iterator<Item = String> {
    let level = variant
        .strip_prefix('v')
        .unwrap_or(variant)
        .parse::<u32>()
        .unwrap_or(0);
    let level = if level > HIGHEST_LEVEL { 0 } else { level };
    (lowest..level).rev().map(|level| format!("v{level}"))
}

fn arm64_without_levels(variant: &str) -> Vec<(&'static str, String)> {
    let mut list = vec![("arm64", variant.to_owned())];
    list.extend(arm(if variant.is_empty() { "v8" } else { variant }));
    list
}

fn arm64(variant: &str) -> Vec<(&'static str, String)> {
    let series = match arm64_level(variant) {
        Some((8, minor)) => vec![(8, minor)],
        // Armv9.0 includes Armv8.5, 9.1 includes 8.6, and so on up to 9.4. Armv8.9 is the last of
        // its line.
        Some((9, minor)) => vec![(9, minor), (8, (minor + 5).min(9))],
        _ => return Vec::new(),
    };
    let mut list = Vec::new();
    for (major, highest) in series {
        list.extend(
            (1..=highest)
                .rev()
                .map(|minor| ("arm64", format!("v{major}.{minor}"))),
        );
        list.push(("arm64", format!("v{major}")));
    }
    list.extend(arm("v8"));
    list
}

/// Returns major and minor of a level that containerd knows: v8 to v8.9 and v9 to v9.7.
fn arm64_level(variant: &str) -> Option<(u32, u32)> {
    let (major, minor) = match variant.as_bytes() {
        b"" | b"v8" => (8, 0),
        b"v9" => (9, 0),
        [b'v', b'8', b'.', minor @ b'0'..=b'9'] => (8, minor - b'0'),
        [b'v', b'9', b'.', minor @ b'0'..=b'7'] => (9, minor - b'0'),
        _ => return None,
    };
    Some((major, u32::from(minor)))
}
