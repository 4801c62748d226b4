//! JSON that is safe to show on a terminal.

use std::io::{self, Write};

use basics::is_visible;
use serde::Serialize;
use serde_json::ser::Formatter;

/// Returns a document as JSON that is safe on a terminal: every character that a terminal may obey
/// or hide is an escape.
pub fn to_json(document: &impl Serialize, form: impl Formatter) -> serde_json::Result<Vec<u8>> {
    let mut out = Vec::new();
    document.serialize(&mut serde_json::Serializer::with_formatter(
        &mut out,
        Visible(form),
    ))?;
    Ok(out)
}

/// Writes invisible characters as `\uXXXX`. JSON itself requires this only for the first 32
/// characters (RFC 8259, section 7).
struct Visible<F>(F);

/// Passes a formatter's calls on to the inner formatter.
macro_rules! hand_on {
    ($($call:ident($($argument:ident: $kind:ty),*);)+) => {
        $(fn $call<W: ?Sized + Write>(&mut self, out: &mut W $(, $argument: $kind)*) -> io::Result<()> {
            self.0.$call(out $(, $argument)*)
        })+
    };
}

impl<F: Formatter> Formatter for Visible<F> {
    hand_on! {
        begin_array();
        end_array();
        begin_array_value(first: bool);
        end_array_value();
        begin_object();
        end_object();
        begin_object_key(first: bool);
        end_object_key();
        begin_object_value();
        end_object_value();
    }

    fn write_string_fragment<W: ?Sized + Write>(&mut self, out: &mut W, fragment: &str) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(at) = rest.find(|c| !is_visible(c)) {
            let hidden = rest[at..].chars().next().expect("one was found");
            out.write_all(&rest.as_bytes()[..at])?;
            for unit in hidden.encode_utf16(&mut [0; 2]) {
                write!(out, "\\u{unit:04x}")?;
            }
            rest = &rest[at + hidden.len_utf8()..];
        }
        out.write_all(rest.as_bytes())
    }
}
