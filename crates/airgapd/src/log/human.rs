//! Lines for people, on a terminal or in a file.

use std::io::IsTerminal;

use basics::{Foreign, is_visible};
use serde_json::Value;
use tracing::Level;

use super::line::{Line, text_of};
use crate::output;

/// The terminal that shows the lines.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terminal {
    /// True if it shows colours and its user wants them.
    pub(super) has_colours: bool,
}

impl Terminal {
    /// Returns the terminal behind a stream, if any. It has colours unless it is dumb or `NO_COLOR`
    /// is set (no-color.org).
    pub(super) fn of(stream: &impl IsTerminal) -> Option<Terminal> {
        stream.is_terminal().then(|| Terminal {
            has_colours: output::has_colours(stream),
        })
    }
}

impl Line {
    /// Returns the line for the user of a command. Warnings and errors stand out, and the rest is
    /// plain.
    pub(super) fn for_terminal(&self, terminal: Terminal) -> String {
        // SGR (ECMA-48, 8.3.117): bold, red, yellow.
        let (label, colour) = match self.level {
            Level::ERROR => ("error: ", "\u{1b}[1;31m"),
            Level::WARN => ("warning: ", "\u{1b}[1;33m"),
            Level::INFO => ("", ""),
            Level::DEBUG => ("debug: ", ""),
            Level::TRACE => ("trace: ", ""),
        };
        let label = match terminal.has_colours && !colour.is_empty() {
            true => format!("{colour}{label}\u{1b}[0m"),
            false => label.to_owned(),
        };
        format!(
            "{}{label}{}{}\n",
            output::on_a_new_line(),
            escaped(&self.message),
            self.pairs()
        )
    }

    /// Returns the line for a file or a console, with time and level.
    pub(super) fn for_file(&self) -> String {
        let Line { time, level, .. } = self;
        format!(
            "{time:.3} {level:<5} {}{}\n",
            escaped(&self.message),
            self.pairs()
        )
    }

    fn pairs(&self) -> String {
        let pair = |(name, value): &(&str, Value)| format!(" {name}={}", quoted(&text_of(value)));
        self.fields.iter().map(pair).collect()
    }
}

/// Escapes foreign text, which must neither drive a terminal nor forge a line.
pub(super) fn escaped(text: &str) -> Foreign<&str> {
    Foreign::new(text)
}

/// Puts a value in quotes if its end would not be clear otherwise.
pub(super) fn quoted(text: &str) -> String {
    let is_plain = |c: char| !c.is_whitespace() && c != '"' && is_visible(c);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => text.to_owned(),
        false => format!("{:?}", Foreign::new(text)),
    }
}
