//! Readers and printers of single values.
//!
//! Each kind of value has both in one place. The error of a reader names the expected value in a
//! few words. Kinds that a flag can have also take the value from the command line, with the same
//! errors.

mod amounts;
mod names;
mod places;

use std::fmt;
use std::marker::PhantomData;

use serde_yaml::Value;

pub(super) use self::amounts::{Count, Interval, MinFree, Rate, Size, Time, Window};
pub(super) use self::names::{Aliases, BaseName, Names, Patterns, Platforms, Release, SandboxImage};
pub(super) use self::places::{AbsolutePath, AbsolutePaths, ImagesDirs, Loopback, Namespace, Socket};

/// A kind of value in the configuration.
pub(super) trait Kind {
    /// Type of the value in the settings.
    type Setting;

    /// Reads a value of the file or a variable.
    ///
    /// # Errors
    ///
    /// Returns the expected value and the given value.
    fn read(value: &Value) -> Result<Self::Setting, String>;

    /// Returns the value as the file would have it.
    fn show(setting: &Self::Setting) -> Value;
}

/// A value that may be missing: `null`, or an empty text after the colon.
pub(super) struct Optional<K>(PhantomData<K>);

impl<K: Kind> Kind for Optional<K> {
    type Setting = Option<K::Setting>;

    fn read(value: &Value) -> Result<Self::Setting, String> {
        match value {
            Value::Null => Ok(None),
            value => K::read(value).map(Some),
        }
    }

    fn show(setting: &Self::Setting) -> Value {
        setting.as_ref().map_or(Value::Null, K::show)
    }
}

/// Values that are one word of a list.
pub(crate) trait Words: Copy + PartialEq + 'static {
    /// All words with their meanings.
    const WORDS: &[(&str, Self)];
}

pub(super) struct OneOf<T>(PhantomData<T>);

impl<T: Words> Kind for OneOf<T> {
    type Setting = T;

    fn read(value: &Value) -> Result<T, String> {
        let known = T::WORDS.iter().find(|(name, _)| value.as_str() == Some(name));
        known.map(|(_, meaning)| *meaning).ok_or_else(|| {
            let names: Vec<_> = T::WORDS.iter().map(|(name, _)| *name).collect();
            got(&format!("one of {}", names.join(", ")), value)
        })
    }

    fn show(setting: &T) -> Value {
        let word = T::WORDS.iter().find(|(_, meaning)| meaning == setting);
        word.expect("every meaning has its word").0.into()
    }
}

/// `true` or `false`.
pub(super) struct Truth;

impl Kind for Truth {
    type Setting = bool;

    fn read(value: &Value) -> Result<bool, String> {
        match value {
            Value::Bool(truth) => Ok(*truth),
            Value::String(text) if text == "true" => Ok(true),
            Value::String(text) if text == "false" => Ok(false),
            other => Err(got("true or false", other)),
        }
    }

    fn show(setting: &bool) -> Value {
        (*setting).into()
    }
}

/// Reads a list in the file, or the items of a variable with commas between them.
fn list(value: &Value, wanted: &str) -> Result<Vec<String>, String> {
    match value {
        Value::Sequence(items) => items
            .iter()
            .map(|item| text(item, wanted).map(str::to_owned))
            .collect(),
        Value::String(items) => Ok(items.split(',').map(str::trim).map(str::to_owned).collect()),
        other => Err(got(&format!("a list of {wanted}"), other)),
    }
}

fn text<'a>(value: &'a Value, wanted: &str) -> Result<&'a str, String> {
    value
        .as_str()
        .filter(|text| !text.is_empty())
        .ok_or_else(|| got(wanted, value))
}

fn filled(text: &str, wanted: &str) -> Result<(), String> {
    match text.is_empty() {
        true => Err(expects(wanted, quoted(text))),
        false => Ok(()),
    }
}

fn quoted(text: &str) -> impl fmt::Display {
    basics::foreign::quoted(text)
}

fn expects(wanted: &str, got: impl fmt::Display) -> String {
    format!("expects {wanted}, got {got}")
}

fn got(wanted: &str, value: &Value) -> String {
    match value {
        Value::String(text) => expects(wanted, quoted(text)),
        Value::Number(number) => expects(wanted, number),
        Value::Bool(truth) => expects(wanted, truth),
        other => expects(wanted, kind(other)),
    }
}

/// Returns the kind of a value, in words.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Sequence(_) => "a list",
        Value::Mapping(_) => "keys with values",
        Value::Tagged(_) => "a tagged value",
    }
}
