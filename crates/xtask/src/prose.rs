//! Checks the prose of the project against the rules of `docs/style.md` that a program can check.
//!
//! It reads documents, comments, doc comments and the texts of messages and help. Other rules need
//! a reader.

mod passages;
mod rules;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use lab::workspace;

/// Longest line of a document or a comment, in characters.
const WIDTH: usize = 100;

/// A place that breaks a rule.
#[derive(Debug)]
struct Offence {
    file: PathBuf,
    line: usize,
    rule: String,
    text: String,
}

/// Checks the files below the paths, or all files that git knows, and prints each offence.
///
/// # Errors
///
/// Returns an error if a file breaks a rule or is not readable.
pub fn run(paths: &[PathBuf]) -> Result<()> {
    let offences = offences(paths)?;
    for Offence {
        file,
        line,
        rule,
        text,
    } in &offences
    {
        println!("{}:{line}: {rule}: {text}", file.display());
    }
    ensure!(
        offences.is_empty(),
        "{} offences against docs/style.md",
        offences.len()
    );
    Ok(())
}

fn offences(paths: &[PathBuf]) -> Result<Vec<Offence>> {
    let mut found = Vec::new();
    for file in files(paths)? {
        let path = workspace().join(&file);
        let Ok(source) = fs::read_to_string(&path) else {
            continue; // Pictures and archives are no prose.
        };
        found.extend(offences_in(&file, &source));
    }
    Ok(found)
}

/// The files of the repository below the paths, relative to its root.
fn files(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "--"])
        .args(paths)
        .current_dir(workspace())
        .output()
        .context("cannot run git")?;
    if !listed.status.success() {
        bail!("git ls-files failed: {}", String::from_utf8_lossy(&listed.stderr));
    }
    let listed = String::from_utf8(listed.stdout).context("git ls-files printed no UTF-8")?;
    Ok(listed.lines().map(PathBuf::from).collect())
}

fn offences_in(file: &Path, source: &str) -> Vec<Offence> {
    let mut found = Vec::new();
    let mut add = |line, rule, text: &str| {
        let (file, text) = (file.to_owned(), text.to_owned());
        found.push(Offence {
            file,
            line,
            rule,
            text,
        });
    };
    for passage in passages::of(file, source) {
        for line in &passage.lines {
            if passage.is_wrapped && is_too_wide(&line.whole) {
                add(
                    line.number,
                    format!("wider than {WIDTH} columns"),
                    line.whole.trim(),
                );
            }
        }
        for (offset, rule, text) in rules::broken(&passage.text(), passage.is_message) {
            add(passage.line_at(offset), rule, &text.replace('\n', " "));
        }
    }
    found
}

/// Returns true for a line that wrapping would make shorter. A piece of code is a word.
fn is_too_wide(line: &str) -> bool {
    let mut is_code = false;
    let words = line.split(|letter: char| {
        is_code ^= letter == '`';
        letter.is_whitespace() && !is_code
    });
    let longest = words.map(|word| word.chars().count()).max();
    line.chars().count() > WIDTH && longest.is_some_and(|longest| longest < WIDTH / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prose_of_the_project_keeps_the_rules() {
        let offences = offences(&[]).unwrap();
        let count = offences.len();
        assert_eq!(
            count,
            0,
            "run `cargo xtask prose`: {:#?}",
            &offences[..count.min(9)]
        );
    }

    #[test]
    fn an_offence_names_its_line() {
        let source = "//! Reads.\n\n/// A list of\n/// images. What it holds.\nfn f() {}\n";
        let offences = offences_in(Path::new("a.rs"), source);
        assert_eq!(offences.len(), 1, "{offences:?}");
        assert_eq!(offences[0].line, 4);
    }

    #[test]
    fn wide_lines_of_tables_examples_and_addresses_stay() {
        let wide = "word ".repeat(30);
        let address = format!("See https://example.org/{}", "a".repeat(90));
        let cases = [
            ("a.md", wide.clone(), 1),
            ("a.md", format!("| {wide} |"), 0),
            ("a.md", format!("```\n{wide}\n```"), 0),
            ("a.md", address, 0),
            ("a.md", format!("Default `[{wide}]`."), 0),
            ("a.rs", format!("// {}", "word. ".repeat(30)), 1),
            ("a.rs", format!("fn f() {{ g(\"{}\") }}", "word. ".repeat(30)), 0),
        ];
        for (file, text, expected) in cases {
            let found = offences_in(Path::new(file), &text);
            let wide = found.iter().filter(|offence| offence.rule.starts_with("wider"));
            assert_eq!(wide.count(), expected, "{text}");
        }
    }
}
