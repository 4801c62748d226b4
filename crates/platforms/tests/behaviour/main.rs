//! Tests of the crate's promises: tables of containerd's answers, and properties over many
//! platforms.

#![allow(clippy::needless_pass_by_value, reason = "proptest hands over owned values")]

mod choice;
mod detection;
mod forms;
mod properties;
mod vectors;

use airgapd_platforms::{Platform, Rules};

const ALL_RULES: [Rules; 3] = [Rules::V0_2, Rules::Rc1, Rules::Rc3];

/// Parses `os/architecture[/variant]` as an index gives it and resolves no alias. Without a system
/// (`amd64`, `arm/v7`) it is for linux.
fn raw(text: &str) -> Platform {
    let parts: Vec<&str> = text.split('/').collect();
    match parts[..] {
        ["linux" | "windows" | "darwin", architecture] => Platform::new(parts[0], architecture, ""),
        ["linux" | "windows" | "darwin", architecture, variant] => {
            Platform::new(parts[0], architecture, variant)
        }
        [architecture] => Platform::new("linux", architecture, ""),
        [architecture, variant] => Platform::new("linux", architecture, variant),
        _ => panic!("bad test platform {text}"),
    }
}

fn with_features(mut platform: Platform, features: &[&str]) -> Platform {
    platform.os_features = features.iter().map(ToString::to_string).collect();
    platform
}

fn with_version(mut platform: Platform, version: &str) -> Platform {
    platform.os_version = Some(version.to_owned());
    platform
}
