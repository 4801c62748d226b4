//! Makes `docs/configuration.md` from `config/config.yaml`, and `docs/messages.md` from the source.
//!
//! A test of the program compares `config/config.yaml` with the program's table of keys. So the
//! page cannot drift from the program either.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use lab::workspace;

use crate::messages;

const HEAD: &str = "# Configuration\n\n\
    Every key with its default and its environment variable. `cargo xtask reference` makes this page\n\
    from `config/config.yaml`, and a test compares that file with the program.\n";

/// Writes the pages.
///
/// # Errors
///
/// Returns an error if a file cannot be read or written, or if a message has no text.
pub fn write() -> Result<()> {
    for (path, text) in [(page(), made()?), (messages::page(), messages::made()?)] {
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn page() -> PathBuf {
    workspace().join("docs/configuration.md")
}

fn made() -> Result<String> {
    let path = workspace().join("config/config.yaml");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(render(&text))
}

/// Makes the page from an annotated configuration. The comments before a key are its text, and the
/// first block is the introduction.
fn render(annotated: &str) -> String {
    let mut page = HEAD.to_owned();
    let mut comment: Vec<&str> = Vec::new();
    let mut group = None;
    for line in annotated.lines() {
        let bare = line.trim_start();
        if let Some(text) = bare.strip_prefix('#') {
            comment.push(text.strip_prefix(' ').unwrap_or(text));
        } else if bare.is_empty() {
            write_text(&mut page, &mut comment);
        } else if let Some((key, value)) = bare.split_once(':') {
            let is_member = bare.len() < line.len();
            let value = value.trim();
            if value.is_empty() {
                let _ = writeln!(page, "\n## `{key}`");
                group = Some(key);
            } else if is_member {
                let name = format!("{}.{key}", group.unwrap_or_default());
                let _ = writeln!(page, "\n### `{name}`\n\n{}", default(&name, value));
            } else {
                let _ = writeln!(page, "\n## `{key}`\n\n{}", default(key, value));
            }
            write_text(&mut page, &mut comment);
        }
    }
    page
}

fn default(name: &str, value: &str) -> String {
    format!("Default `{value}`.\nVariable `{}`.", variable(name))
}

fn write_text(page: &mut String, comment: &mut Vec<&str>) {
    if !comment.is_empty() {
        let _ = writeln!(page, "\n{}", comment.join("\n").replace('<', "\\<"));
        comment.clear();
    }
}

/// Returns the variable of a key: `AIRGAPD_LOG_LEVEL` for `log.level`, `AIRGAPD_DATA_DIR` for
/// `dataDir`.
fn variable(name: &str) -> String {
    let mut variable = "AIRGAPD_".to_owned();
    for letter in name.chars() {
        match letter {
            '.' => variable.push('_'),
            _ if letter.is_ascii_uppercase() => variable.extend(['_', letter]),
            _ => variable.push(letter.to_ascii_uppercase()),
        }
    }
    variable
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_up_to_date() {
        let there = fs::read_to_string(page()).unwrap();
        assert!(there == made().unwrap(), "run `cargo xtask reference`");
    }

    #[test]
    fn comments_are_texts_of_the_key_below_them() {
        let page = render(
            "# About.\n\n# How\n# long.\nresync: 10m\n\n# Logs.\nlog:\n  # How much.\n  level: info\n",
        );
        let wanted = format!(
            "{HEAD}\nAbout.\n\n## `resync`\n\nDefault `10m`.\nVariable `AIRGAPD_RESYNC`.\n\nHow\nlong.\n\n## `log`\n\nLogs.\n\n\
             ### `log.level`\n\nDefault `info`.\nVariable `AIRGAPD_LOG_LEVEL`.\n\nHow much.\n"
        );
        assert_eq!(page, wanted);
    }
}
