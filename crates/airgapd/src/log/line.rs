//! An event with all its data, and its form for programs.

use std::fmt;

use jiff::Timestamp;
use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::{Event, Level};

use crate::output;

/// Fields in the order in which they were recorded. A later value replaces an earlier one.
#[derive(Clone, Debug, Default)]
pub(super) struct Fields(Vec<(&'static str, Value)>);

impl Fields {
    /// Returns the value of this name.
    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        let named = self.0.iter().find(|(known, _)| *known == name);
        named.map(|(_, value)| value)
    }

    /// Returns every name with its value.
    pub(super) fn iter(&self) -> impl Iterator<Item = &(&'static str, Value)> {
        self.0.iter()
    }

    pub(super) fn set(&mut self, name: &'static str, value: Value) {
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name, value)),
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.set(field.name(), format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field.name(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field.name(), value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field.name(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field.name(), value.into());
    }
}

/// An event with all its data.
pub(super) struct Line {
    pub(super) time: Timestamp,
    pub(super) level: Level,
    pub(super) message: String,
    pub(super) fields: Fields,
    pub(super) file: Option<&'static str>,
    pub(super) line: Option<u32>,
}

impl Line {
    pub(super) fn new(event: &Event<'_>, mut fields: Fields) -> Line {
        let metadata = event.metadata();
        let message = fields
            .0
            .iter()
            .position(|(name, _)| *name == "message")
            .map(|at| fields.0.remove(at).1);
        Line {
            time: Timestamp::now(),
            level: *metadata.level(),
            message: message.as_ref().map(text_of).unwrap_or_default(),
            fields,
            file: metadata.file(),
            line: metadata.line(),
        }
    }

    /// Returns the event as one line of JSON.
    pub(super) fn as_json(&self) -> String {
        let mut object = serde_json::Map::new();
        object.insert("time".into(), format!("{:.3}", self.time).into());
        object.insert("level".into(), self.level.as_str().to_ascii_lowercase().into());
        object.insert("message".into(), self.message.as_str().into());
        // A field cannot replace time, level and message.
        for (name, value) in &self.fields.0 {
            object.entry(*name).or_insert_with(|| value.clone());
        }
        let line = output::to_json(&object, serde_json::ser::CompactFormatter);
        let line = String::from_utf8(line.expect("fields are plain data")).expect("JSON is text");
        format!("{line}\n")
    }
}

/// Returns the text of a value, without JSON's quotes.
pub(super) fn text_of(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
