//! The configuration file: YAML, with the line of each key for messages.

use std::path::{Path, PathBuf};

use serde_yaml::Value;

use super::keys::GROUPS;
use super::values::kind;
use super::{DEFAULT_FILE, Given, Mistake, Place, Typed};

/// Reads the named file, or the file at its default path, which may be missing. Returns the path of
/// the file that was read, and its values.
pub(super) fn read(
    named: Option<(PathBuf, Place)>,
    mistakes: &mut Vec<Mistake>,
) -> (Option<PathBuf>, Vec<Given>) {
    let path = named
        .as_ref()
        .map_or_else(|| PathBuf::from(DEFAULT_FILE), |(path, _)| path.clone());
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let given = from_yaml(&path, &text, mistakes);
            (Some(path), given)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && named.is_none() => (None, Vec::new()),
        Err(error) => {
            let place = named.map_or(
                Place::File {
                    path: path.clone(),
                    line: None,
                },
                |(_, place)| place,
            );
            let what = format!("cannot read {}: {error}", path.display());
            mistakes.push(Mistake {
                place,
                key: None,
                what,
            });
            (None, Vec::new())
        }
    }
}

/// Reads the values of a configuration file. A text that is not YAML is one mistake, with its line.
pub(super) fn from_yaml(path: &Path, text: &str, mistakes: &mut Vec<Mistake>) -> Vec<Given> {
    let place = |line| Place::File {
        path: path.to_owned(),
        line,
    };
    let root = match serde_yaml::from_str::<Value>(text) {
        Ok(Value::Null) => return Vec::new(),
        Ok(Value::Mapping(root)) => root,
        Ok(other) => {
            let what = format!(
                "expects keys with values, such as `resync: 10m`, got {}",
                kind(&other)
            );
            mistakes.push(Mistake {
                place: place(None),
                key: None,
                what,
            });
            return Vec::new();
        }
        Err(error) => {
            let line = error.location().map(|location| location.line());
            mistakes.push(Mistake {
                place: place(line),
                key: None,
                what: error.to_string(),
            });
            return Vec::new();
        }
    };
    let mut given = Vec::new();
    for (key, value) in root {
        let key = key_text(&key);
        match value {
            Value::Mapping(members) if GROUPS.contains(&key.as_str()) => {
                for (member, value) in members {
                    let member = key_text(&member);
                    let place = place(line_of(text, &[&key, &member]));
                    given.push(Given {
                        key: format!("{key}.{member}"),
                        value: Typed::Written(value),
                        place,
                    });
                }
            }
            Value::Null if GROUPS.contains(&key.as_str()) => {}
            value => given.push(Given {
                place: place(line_of(text, &[&key])),
                key,
                value: Typed::Written(value),
            }),
        }
    }
    given
}

/// Returns a key as text. A key of another kind (`1: x`, `true: x`) is unknown anyway.
fn key_text(key: &Value) -> String {
    match key {
        Value::String(text) => text.clone(),
        other => serde_json::to_string(other).unwrap_or_else(|_| kind(other).to_owned()),
    }
}

/// Returns the line of a key by its path, from 1, in block style. The parser's values have no
/// lines.
fn line_of(text: &str, path: &[&str]) -> Option<usize> {
    let [wanted, rest @ ..] = path else { return None };
    let mut lines = text.lines().enumerate();
    let indent = |line: &str| line.len() - line.trim_start().len();
    let is_key = |line: &str, key: &str| {
        let bare = line.trim_start().trim_start_matches(['"', '\'']);
        let after = bare
            .strip_prefix(key)
            .map(|after| after.trim_start_matches(['"', '\'']).trim_start());
        after.is_some_and(|after| after.starts_with(':'))
    };
    let (number, line) = lines.find(|(_, line)| indent(line) == 0 && is_key(line, wanted))?;
    match rest {
        [] => Some(number + 1),
        [member, ..] => lines
            .take_while(|(_, line)| indent(line) > 0 || line.trim().is_empty() || line.starts_with('#'))
            .find(|(_, line)| is_key(line, member))
            .map(|(number, _)| number + 1)
            // `log: {level: debug}` has it all on one line.
            .or_else(|| line.contains(member).then_some(number + 1)),
    }
}
