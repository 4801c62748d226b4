//! The text form of a platform, as containerd's tools accept it.

use std::str::FromStr;

use crate::platform::{RUNNING_OS, normalized_architecture, normalized_os};
use crate::{Platform, Rules, host};

/// A text that is not a platform. The message quotes the text and says what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "platform {text:?} {problem}: write os/architecture[/variant], for example linux/arm64 or linux/arm/v7"
)]
pub struct ParseError {
    text: String,
    problem: Problem,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Problem {
    #[error("is empty")]
    Empty,
    #[error("has a wildcard, which platforms cannot have")]
    Wildcard,
    #[error("has more than three parts")]
    TooManyParts,
    #[error(
        "has the part {0:?}, which is empty or has characters other than letters, digits, '.', '_' and '-'"
    )]
    Part(String),
    #[error("has {0:?} where an operating system is expected")]
    OperatingSystem(String),
    #[error("has {0:?} in parentheses, where os(version+feature+feature) is expected")]
    Options(String),
    #[error("is neither a known operating system nor a known architecture")]
    Unknown,
}

/// Most characters of the input that an error message repeats.
const QUOTED: usize = 80;

/// Reads `os[(version+feature…)]/architecture[/variant]`, or just a known `os` or `architecture`.
///
/// Follows containerd. A single architecture means this system (`arm64` is `linux/arm64`), and a
/// single system means this machine's architecture. `linux/arm` keeps no variant, and
/// `linux/arm64/v8` keeps its `v8`. With a slash, names may be unknown. Only aliases on which all
/// [`Rules`] agree are resolved here, and the matcher resolves the rest.
///
/// # Errors
///
/// Returns a [`ParseError`] that names the text. Surrounding blanks and characters outside ASCII
/// are errors.
impl FromStr for Platform {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Platform, ParseError> {
        parse(text).map_err(|problem| ParseError {
            text: quoted(text),
            problem,
        })
    }
}

fn quoted(text: &str) -> String {
    match text.char_indices().nth(QUOTED) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn parse(text: &str) -> Result<Platform, Problem> {
    if text.is_empty() {
        return Err(Problem::Empty);
    }
    if text.contains('*') {
        return Err(Problem::Wildcard);
    }
    // One part more than allowed is enough to see that there are too many.
    let parts: Vec<&str> = text.splitn(4, '/').collect();
    match parts[..] {
        [single] => parse_single(single),
        [os, architecture] => with_architecture(parse_os(os)?, architecture),
        [os, architecture, variant] => with_variant(parse_os(os)?, architecture, variant),
        _ => Err(Problem::TooManyParts),
    }
}

fn parse_single(text: &str) -> Result<Platform, Problem> {
    let platform = parse_os(text)?;
    if is_known_os(&platform.os) {
        return Ok(on_machine(platform, host()));
    }
    let platform =
        with_architecture(Platform::new(RUNNING_OS, "", ""), text).map_err(|_| Problem::Unknown)?;
    match is_known_architecture(&platform.architecture) {
        true => Ok(platform),
        false => Err(Problem::Unknown),
    }
}

/// Returns the system of `platform` with the architecture of `machine`.
fn on_machine(platform: Platform, machine: Platform) -> Platform {
    let Platform {
        architecture,
        variant,
        ..
    } = machine;
    // arm without a variant means v7.
    let variant = variant.filter(|variant| architecture == "arm" && variant != "v7");
    Platform {
        architecture,
        variant,
        ..platform
    }
}

fn with_architecture(platform: Platform, architecture: &str) -> Result<Platform, Problem> {
    let (architecture, variant) = normalized_architecture(checked(architecture)?, "", Rules::V0_2);
    let variant = Some(variant).filter(|variant| !variant.is_empty() && variant != "v7");
    Ok(Platform {
        architecture,
        variant,
        ..platform
    })
}

fn with_variant(platform: Platform, architecture: &str, variant: &str) -> Result<Platform, Problem> {
    let (architecture, variant) =
        normalized_architecture(checked(architecture)?, checked(variant)?, Rules::V0_2);
    let variant = match (architecture.as_str(), variant.as_str()) {
        ("arm64", "") => Some("v8".to_owned()),
        (_, "") => None,
        _ => Some(variant),
    };
    Ok(Platform {
        architecture,
        variant,
        ..platform
    })
}

fn checked(part: &str) -> Result<&str, Problem> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    match !part.is_empty() && part.chars().all(plain) {
        true => Ok(part),
        false => Err(Problem::Part(quoted(part))),
    }
}

/// Parses a platform with system, version and features only.
fn parse_os(part: &str) -> Result<Platform, Problem> {
    let (os, options) = match part.split_once('(') {
        Some((os, options)) => (os, Some(options)),
        None => (part, None),
    };
    if os.is_empty()
        || !os
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
    {
        return Err(Problem::OperatingSystem(quoted(os)));
    }
    let platform = Platform {
        os: normalized_os(os),
        ..Platform::default()
    };
    match options {
        Some(options) => with_options(platform, options).ok_or_else(|| Problem::Options(quoted(options))),
        None => Ok(platform),
    }
}

fn with_options(platform: Platform, options: &str) -> Option<Platform> {
    let mut values = options.strip_suffix(')')?.split('+');
    let version = decoded(values.next().unwrap_or_default())?;
    let os_features = values
        .map(|feature| decoded(feature).filter(|feature| !feature.is_empty()))
        .collect::<Option<Vec<String>>>()?;
    Some(Platform {
        os_version: Some(version).filter(|version| !version.is_empty()),
        os_features,
        ..platform
    })
}

/// Decodes percent-encoding. Returns `None` if the text is malformed.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => hex(bytes.next()?)? * 16 + hex(bytes.next()?)?,
            b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'.' | b'-' | b'_' => byte,
            _ => return None,
        });
    }
    String::from_utf8(decoded).ok()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}

/// Returns true if the operating system may be given without an architecture.
fn is_known_os(os: &str) -> bool {
    const KNOWN: [&str; 17] = [
        "aix",
        "android",
        "darwin",
        "dragonfly",
        "freebsd",
        "hurd",
        "illumos",
        "ios",
        "js",
        "linux",
        "nacl",
        "netbsd",
        "openbsd",
        "plan9",
        "solaris",
        "windows",
        "zos",
    ];
    KNOWN.contains(&os)
}

/// Returns true if the architecture may be given without an operating system.
fn is_known_architecture(architecture: &str) -> bool {
    const KNOWN: [&str; 24] = [
        "386",
        "amd64",
        "amd64p32",
        "arm",
        "arm64",
        "arm64be",
        "armbe",
        "loong64",
        "mips",
        "mips64",
        "mips64le",
        "mips64p32",
        "mips64p32le",
        "mipsle",
        "ppc",
        "ppc64",
        "ppc64le",
        "riscv",
        "riscv64",
        "s390",
        "s390x",
        "sparc",
        "sparc64",
        "wasm",
    ];
    KNOWN.contains(&architecture)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_system_has_the_variant_of_the_machine_only_where_no_other_is_meant_without_one() {
        for (machine, wanted) in [
            (("arm", "v6"), Some("v6")),
            (("arm", "v8"), Some("v8")),
            (("arm", "v7"), None),
            (("arm", ""), None),
            (("arm64", "v9"), None),
            (("amd64", ""), None),
        ] {
            let (architecture, variant) = machine;
            let machine = Platform::new("linux", architecture, variant);
            let platform = on_machine(Platform::new("freebsd", "", ""), machine);
            assert_eq!(
                platform,
                Platform::new("freebsd", architecture, wanted.unwrap_or_default())
            );
        }
    }
}
