use std::fmt;

use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::Rules;

/// Operating system that an absent `os` means: the system that containerd runs on, here always
/// Linux.
pub(crate) const RUNNING_OS: &str = "linux";

/// A platform as image indexes, image configs and command lines give it.
///
/// The fields keep the text as given. Compare platforms through a [`Matcher`](crate::Matcher) or
/// after [`normalized`](Platform::normalized).
///
/// The JSON form is `platform` of the OCI image-spec ("Image Index"). An image config has the same
/// keys at its top. A key that is absent or `null` reads as empty. An empty variant or version
/// reads as none, since containerd makes no difference between them.
///
/// A descriptor without a platform is *not* the same as one with an empty platform: the former is
/// always accepted, the latter never matches. `Option<Platform>` keeps them apart.
///
/// [`Display`](fmt::Display) writes `os/architecture[/variant]` with aliases resolved
/// (`linux/arm64`, `linux/arm/v7`). The text is always safe for terminals and logs. `{:#}` adds
/// version and features, as in `windows(10.0.17763+win32k)/amd64`. Both forms can be parsed again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// Operating system, by Go's name (`linux`, `windows`). Empty means Linux.
    #[serde(default, deserialize_with = "text")]
    pub os: String,
    /// Instruction set, by Go's name (`amd64`, `arm64`, `arm`) or an alias (`x86_64`, `aarch64`).
    #[serde(default, deserialize_with = "text")]
    pub architecture: String,
    /// Level of the instruction set, such as `v7` for arm or `v3` for amd64.
    #[serde(
        default,
        deserialize_with = "optional_text",
        skip_serializing_if = "Option::is_none"
    )]
    pub variant: Option<String>,
    /// Version of the operating system. Only Windows images use it.
    #[serde(
        rename = "os.version",
        default,
        deserialize_with = "optional_text",
        skip_serializing_if = "Option::is_none"
    )]
    pub os_version: Option<String>,
    /// Features that the operating system must have, such as `win32k`.
    #[serde(
        rename = "os.features",
        default,
        deserialize_with = "list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub os_features: Vec<String>,
}

fn text<'de, D: Deserializer<'de>>(source: D) -> Result<String, D::Error> {
    Ok(Option::deserialize(source)?.unwrap_or_default())
}

fn optional_text<'de, D: Deserializer<'de>>(source: D) -> Result<Option<String>, D::Error> {
    Ok(Option::deserialize(source)?.filter(|text: &String| !text.is_empty()))
}

/// Most `os.features` that a platform may have. Windows images have one or two. The limit bounds
/// the work of a comparison, which reads all of them.
pub const MOST_FEATURES: usize = 100;

fn list<'de, D: Deserializer<'de>>(source: D) -> Result<Vec<String>, D::Error> {
    struct Features;

    impl<'de> Visitor<'de> for Features {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of features")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(Vec::new())
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut source: A) -> Result<Self::Value, A::Error> {
            let mut features = Vec::new();
            while let Some(feature) = source.next_element()? {
                if features.len() == MOST_FEATURES {
                    return Err(A::Error::custom(format_args!(
                        "more than {MOST_FEATURES} os.features"
                    )));
                }
                features.push(feature);
            }
            Ok(features)
        }
    }

    source.deserialize_any(Features)
}

impl Platform {
    /// Returns all texts of the platform, features included.
    pub fn words(&self) -> impl Iterator<Item = &String> {
        let Platform {
            os,
            architecture,
            variant,
            os_version,
            os_features,
        } = self;
        let optional = [variant, os_version].into_iter().flatten();
        [os, architecture].into_iter().chain(optional).chain(os_features)
    }

    /// Makes a platform of its three usual parts. An empty variant means none.
    pub fn new(os: &str, architecture: &str, variant: &str) -> Platform {
        Platform {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: filled(variant),
            ..Platform::default()
        }
    }

    /// Resolves aliases and defaults, so that different spellings of one platform become equal.
    ///
    /// A second call changes nothing more. Unknown names are only lower-cased.
    #[must_use]
    pub fn normalized(&self, rules: Rules) -> Platform {
        let variant = self.variant.as_deref().unwrap_or_default();
        let (architecture, variant) = normalized_architecture(&self.architecture, variant, rules);
        Platform {
            os: normalized_os(&self.os),
            architecture,
            variant: filled(&variant),
            os_version: self.os_version.as_deref().and_then(filled),
            os_features: normalized_features(&self.os_features, rules),
        }
    }
}

fn filled(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

pub(crate) fn normalized_os(os: &str) -> String {
    match os.to_ascii_lowercase().as_str() {
        "" => RUNNING_OS.to_owned(),
        "macos" => "darwin".to_owned(),
        other => other.to_owned(),
    }
}

/// Returns architecture and variant by their canonical names. The variant is empty if there is
/// none.
pub(crate) fn normalized_architecture(architecture: &str, variant: &str, rules: Rules) -> (String, String) {
    let architecture = architecture.to_ascii_lowercase();
    let variant = variant.to_ascii_lowercase();
    let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
        ("i386", _) => ("386", ""),
        ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", ""),
        ("x86_64" | "x86-64" | "amd64", other) => ("amd64", other),
        ("aarch64" | "arm64", "8" | "v8") => ("arm64", ""),
        ("aarch64" | "arm64", "v8.0") if rules.knows_arm64_levels() => ("arm64", ""),
        ("aarch64" | "arm64", "9" | "9.0" | "v9.0") if rules.knows_arm64_levels() => ("arm64", "v9"),
        ("aarch64" | "arm64", other) => ("arm64", other),
        ("armhf", _) => ("arm", "v7"),
        ("armel", _) => ("arm", "v6"),
        ("arm", "" | "7") => ("arm", "v7"),
        ("arm", "5") => ("arm", "v5"),
        ("arm", "6") => ("arm", "v6"),
        ("arm", "8") => ("arm", "v8"),
        other => other,
    };
    (architecture.to_owned(), variant.to_owned())
}

fn normalized_features(features: &[String], rules: Rules) -> Vec<String> {
    let mut features = features.to_vec();
    if rules.compares_features() {
        features.sort();
        features.dedup();
    }
    features
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The oldest rules resolve the aliases on which all generations agree.
        let Platform {
            os,
            architecture,
            variant,
            os_version,
            os_features,
        } = self.normalized(Rules::V0_2);
        write_safely(f, &os)?;
        if f.alternate() && (os_version.is_some() || !os_features.is_empty()) {
            write_options(f, os_version.as_deref().unwrap_or_default(), &os_features)?;
        }
        f.write_str("/")?;
        write_safely(
            f,
            if architecture.is_empty() {
                "unknown"
            } else {
                &architecture
            },
        )?;
        if let Some(variant) = variant {
            f.write_str("/")?;
            write_safely(f, &variant)?;
        }
        Ok(())
    }
}

/// Writes text from an archive without its control characters, which could forge log lines.
fn write_safely(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    text.chars().try_for_each(|c| match c.is_ascii_graphic() {
        true => write!(f, "{c}"),
        false => write!(f, "{}", c.escape_default()),
    })
}

fn write_options(f: &mut fmt::Formatter<'_>, version: &str, features: &[String]) -> fmt::Result {
    f.write_str("(")?;
    write_encoded(f, version)?;
    for feature in features.iter().filter(|feature| !feature.is_empty()) {
        f.write_str("+")?;
        write_encoded(f, feature)?;
    }
    f.write_str(")")
}

/// Writes text and percent-encodes the characters that have a meaning in the text form.
fn write_encoded(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    text.bytes().try_for_each(|byte| match byte {
        b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'.' | b'-' | b'_' => write!(f, "{}", char::from(byte)),
        _ => write!(f, "%{byte:02X}"),
    })
}
