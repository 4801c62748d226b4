//! Images, by name and by platform.

use std::collections::BTreeMap;

use basics::digest;
use import::names::Alias;
use import::{Pattern, Reference};
use node::settings::PlatformChoice;
use platforms::Platform;
use serde_yaml::Value;

use super::{Kind, expects, filled, got, list, quoted, text};

/// A release of k0s. It must be text: YAML reads 1.34 as a number, and 1.30 as 1.3.
pub(in crate::config) struct Release;

impl Kind for Release {
    type Setting = String;

    fn read(value: &Value) -> Result<String, String> {
        text(
            value,
            "a release of k0s as text, such as v1.34.10+k0s.0 or \"1.34\"",
        )
        .map(str::to_owned)
    }

    fn show(setting: &String) -> Value {
        setting.as_str().into()
    }
}

/// The sandbox image, with which every pod starts.
pub(in crate::config) struct SandboxImage;

impl Kind for SandboxImage {
    type Setting = String;

    fn read(value: &Value) -> Result<String, String> {
        let name = text(value, "an image such as registry.k8s.io/pause:3.10")?;
        reference(name).map(|_| name.to_owned())
    }

    fn show(setting: &String) -> Value {
        setting.as_str().into()
    }
}

pub(in crate::config) struct Platforms;

impl Kind for Platforms {
    type Setting = PlatformChoice;

    fn read(value: &Value) -> Result<PlatformChoice, String> {
        Platforms::of(&list(value, Platforms::WANTED)?)
    }

    fn show(setting: &PlatformChoice) -> Value {
        match setting {
            PlatformChoice::Node => Value::Sequence(Vec::new()),
            PlatformChoice::All => Value::Sequence(vec!["all".into()]),
            PlatformChoice::These(platforms) => platforms.iter().map(ToString::to_string).collect(),
        }
    }
}

impl Platforms {
    const WANTED: &str = "platforms such as linux/arm64";

    /// Reads platforms by these names.
    pub(in crate::config) fn of(items: &[String]) -> Result<PlatformChoice, String> {
        items.iter().try_for_each(|item| filled(item, Self::WANTED))?;
        if items.iter().any(|item| item == "all") {
            return match items.len() {
                1 => Ok(PlatformChoice::All),
                _ => Err("`all` takes every platform: remove it or the other platforms".to_owned()),
            };
        }
        let platform = |item: &String| item.parse::<Platform>().map_err(|error| error.to_string());
        let platforms: Vec<Platform> = items.iter().map(platform).collect::<Result<_, _>>()?;
        Ok(match platforms.is_empty() {
            true => PlatformChoice::Node,
            false => PlatformChoice::These(platforms),
        })
    }
}

pub(in crate::config) struct Aliases;

impl Kind for Aliases {
    type Setting = Vec<Alias>;

    fn read(value: &Value) -> Result<Vec<Alias>, String> {
        const WANTED: &str = "aliases such as quay.io/k0sproject=registry.local/k0s";
        let alias = |item: &String| match item.split_once('=') {
            Some((from, to)) if is_prefix(from) && is_prefix(to) => Ok(Alias {
                from: from.to_owned(),
                to: to.to_owned(),
            }),
            _ => Err(expects(WANTED, quoted(item))),
        };
        list(value, WANTED)?.iter().map(alias).collect()
    }

    fn show(setting: &Vec<Alias>) -> Value {
        setting
            .iter()
            .map(|alias| format!("{}={}", alias.from, alias.to))
            .collect()
    }
}

/// Returns true if a name can start with this text.
fn is_prefix(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/:[]".contains(&byte);
    !text.is_empty() && !text.starts_with('/') && text.bytes().all(allowed)
}

/// Patterns of names.
pub(in crate::config) struct Patterns;

impl Kind for Patterns {
    type Setting = Vec<Pattern>;

    fn read(value: &Value) -> Result<Vec<Pattern>, String> {
        const WANTED: &str = "patterns of names such as quay.io/k0sproject/*";
        let pattern = |item: &String| {
            item.parse::<Pattern>()
                .map_err(|error| format!("{}: {error}", expects(WANTED, quoted(item))))
        };
        list(value, WANTED)?.iter().map(pattern).collect()
    }

    fn show(setting: &Vec<Pattern>) -> Value {
        setting.iter().map(ToString::to_string).collect()
    }
}

/// Names by digest: a mapping in the file, pairs with an equals sign in variables and flags.
pub(in crate::config) struct Names;

impl Kind for Names {
    type Setting = BTreeMap<String, Reference>;

    fn read(value: &Value) -> Result<BTreeMap<String, Reference>, String> {
        const WANTED: &str = "names by digest, such as `sha256:…: registry.local/app:1`";
        let pairs: Option<Vec<(String, String)>> = match value {
            Value::Mapping(names) => {
                let pair = |(digest, name): (&Value, &Value)| {
                    Some((digest.as_str()?.to_owned(), name.as_str()?.to_owned()))
                };
                names.iter().map(pair).collect()
            }
            Value::String(_) => {
                let pair = |item: String| {
                    let (digest, name) = item.split_once('=')?;
                    Some((digest.to_owned(), name.to_owned()))
                };
                list(value, WANTED)?.into_iter().map(pair).collect()
            }
            _ => None,
        };
        Names::of(pairs.ok_or_else(|| got(WANTED, value))?)
    }

    fn show(setting: &BTreeMap<String, Reference>) -> Value {
        let pair = |(digest, name): (&String, &Reference)| (digest.as_str().into(), name.to_string().into());
        Value::Mapping(setting.iter().map(pair).collect())
    }
}

impl Names {
    /// Reads pairs of digest and name.
    pub(in crate::config) fn of(
        pairs: impl IntoIterator<Item = (String, String)>,
    ) -> Result<BTreeMap<String, Reference>, String> {
        let digest = |text: &str| {
            let wanted = "a digest such as sha256:… with 64 hexadecimal digits";
            let digest = digest::parse(text).map_err(|_| expects(wanted, quoted(text)))?;
            Ok::<_, String>(digest.to_string())
        };
        let pairs = pairs.into_iter();
        pairs
            .map(|(of, name)| Ok((digest(&of)?, reference(&name)?)))
            .collect()
    }
}

/// A repository, for images whose names in bundles are only tags.
pub(in crate::config) struct BaseName;

impl Kind for BaseName {
    type Setting = String;

    fn read(value: &Value) -> Result<String, String> {
        const WANTED: &str = "a repository such as registry.local/app";
        let name = text(value, WANTED)?;
        match format!("{name}:tag").parse::<Reference>() {
            Ok(reference) if reference.tag() == Some("tag") => Ok(name.to_owned()),
            _ => Err(got(WANTED, value)),
        }
    }

    fn show(setting: &String) -> Value {
        setting.as_str().into()
    }
}

fn reference(text: &str) -> Result<Reference, String> {
    text.parse()
        .map_err(|error: import::names::InvalidReference| error.to_string())
}
