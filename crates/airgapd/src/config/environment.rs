//! The environment: one variable for each key, with the prefix `AIRGAPD_`.

use std::ffi::OsString;
use std::path::PathBuf;

use super::keys::KEYS;
use super::{Given, Mistake, Place, Typed};

const PREFIX: &str = "AIRGAPD_";

/// Returns the values of the variables that begin with `AIRGAPD_`, and the path in
/// `AIRGAPD_CONFIG`. An empty variable counts as not set.
pub(super) fn read(
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    mistakes: &mut Vec<Mistake>,
) -> (Vec<Given>, Option<PathBuf>) {
    let mut given = Vec::new();
    let mut file = None;
    for (name, value) in environment {
        let Some(name) = name
            .to_str()
            .filter(|name| name.starts_with(PREFIX) && !is_service_link(name))
        else {
            continue;
        };
        let place = Place::Variable(name.to_owned());
        if name == "AIRGAPD_CONFIG" && !value.is_empty() {
            file = Some(PathBuf::from(value));
            continue;
        }
        let key = key_of_variable(name);
        match value.into_string() {
            Ok(text) if text.is_empty() => {}
            Ok(text) => given.push(Given {
                key,
                value: Typed::Written(text.into()),
                place,
            }),
            Err(_) => mistakes.push(Mistake {
                place,
                key: Some(key),
                what: "is not UTF-8".to_owned(),
            }),
        }
    }
    given.sort_by(|a, b| a.key.cmp(&b.key));
    (given, file)
}

/// Returns true for a variable that Kubernetes sets for a service named "airgapd". Every container
/// gets variables for the services of its namespace, and these must not count as unknown keys.
fn is_service_link(name: &str) -> bool {
    let rest = &name[PREFIX.len()..];
    rest.starts_with("SERVICE_") || rest == "PORT" || rest.starts_with("PORT_")
}

/// Returns the variable of a key, such as `AIRGAPD_DATA_DIR` for `dataDir` or
/// `AIRGAPD_LIMITS_JSON_DOCUMENT` for `limits.jsonDocument`.
pub(super) fn variable_of_key(key: &str) -> String {
    let mut variable = PREFIX.to_owned();
    for c in key.chars() {
        match c {
            '.' => variable.push('_'),
            upper if upper.is_ascii_uppercase() => variable.extend(['_', upper]),
            lower => variable.push(lower.to_ascii_uppercase()),
        }
    }
    variable
}

pub(super) fn key_of_variable(variable: &str) -> String {
    let mut known = KEYS.iter().map(|key| key.name);
    known
        .find(|key| variable_of_key(key) == variable)
        .unwrap_or(variable)
        .to_owned()
}
