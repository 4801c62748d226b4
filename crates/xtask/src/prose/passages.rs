//! The passages of a file: paragraphs, items, cells of tables, comments and texts of messages.

use std::path::Path;

use ra_ap_rustc_lexer::{FrontmatterAllowed, LiteralKind, TokenKind, tokenize};

/// Fewest words of a string literal that counts as a text.
const WORDS_OF_A_MESSAGE: usize = 4;

/// Lines that belong together, as the rules read them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Passage {
    pub(super) lines: Vec<Line>,
    /// True if its lines can be wrapped: not those of a table or a string.
    pub(super) is_wrapped: bool,
    /// True for the text of a message.
    pub(super) is_message: bool,
}

/// A line of a passage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// Number in its file, from 1.
    pub(super) number: usize,
    /// The line as the file has it.
    pub(super) whole: String,
    /// The words of it, without the mark of a comment.
    words: String,
}

impl Passage {
    /// The words of all lines, with a letter for each piece of code.
    pub(super) fn text(&self) -> String {
        without_code(&self.joined())
    }

    fn joined(&self) -> String {
        let words: Vec<_> = self.lines.iter().map(|line| line.words.as_str()).collect();
        words.join("\n")
    }

    /// The number of the line at an offset into the text.
    pub(super) fn line_at(&self, offset: usize) -> usize {
        let text = self.text();
        let before = text.get(..offset).unwrap_or_default().matches('\n').count();
        self.lines.get(before).map_or(0, |line| line.number)
    }
}

/// Puts a letter in place of each code span and of each address behind a link, and keeps line ends.
fn without_code(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(['`', ']']) {
        let (before, after) = rest.split_at(at);
        plain.push_str(before);
        let marks = after.chars().take_while(|mark| *mark == '`').count();
        let ends = match marks {
            0 => after
                .strip_prefix("](")
                .and_then(|link| link.find(')'))
                .map(|end| end + 3),
            _ => after[marks..].find(&"`".repeat(marks)).map(|end| end + 2 * marks),
        };
        let ends = ends.unwrap_or(1);
        if ends > 1 && marks > 0 {
            plain.push('X');
        } else if ends == 1 && marks == 0 {
            plain.push(']');
        }
        plain.extend(after[..ends].matches('\n'));
        rest = &after[ends..];
    }
    plain + rest
}

/// The passages of a file, by the ending of its name.
pub(super) fn of(file: &Path, source: &str) -> Vec<Passage> {
    let name = file
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let ending = file
        .extension()
        .and_then(|ending| ending.to_str())
        .unwrap_or_default();
    match ending {
        "rs" => of_rust(file, source),
        "md" => markdown(plain_lines(source)),
        "yaml" | "toml" | "sh" | "service" | "conf" => of_hashes(source),
        "catalog" => markdown(plain_lines(source).filter(|line| !line.words.starts_with(['#', '-']))),
        _ if name == "run" || source.starts_with("#!") => of_hashes(source),
        _ => Vec::new(),
    }
}

fn plain_lines(source: &str) -> impl Iterator<Item = Line> {
    source.lines().zip(1..).map(|(line, number)| Line {
        number,
        whole: line.to_owned(),
        words: line.trim().to_owned(),
    })
}

/// The paragraphs, headings, items and cells. Examples are left out.
fn markdown(lines: impl Iterator<Item = Line>) -> Vec<Passage> {
    let mut found = vec![Passage::default()];
    let mut is_example = false;
    for mut line in lines {
        let words = line.words.clone();
        if words.starts_with("```") {
            is_example = !is_example;
        }
        let begins = words.is_empty() || words.starts_with(['#', '|', '-', '*', '>']) || is_numbered(&words);
        if begins || is_example || words.starts_with("```") {
            found.push(Passage::default());
        }
        if is_example || words.is_empty() || words.starts_with("```") {
            continue;
        }
        if words.starts_with('|') {
            found.extend(cells(&line));
            found.push(Passage::default());
            continue;
        }
        let marks = |mark: char| "#*->0123456789. ".contains(mark);
        if begins {
            line.words = words.trim_start_matches(marks).to_owned();
        }
        if let Some(passage) = found.last_mut() {
            passage.is_wrapped = !words.starts_with('#');
            passage.lines.push(line);
        }
    }
    found.retain(|passage| !passage.lines.is_empty());
    found
}

/// Returns true for the first line of an item with a number.
fn is_numbered(words: &str) -> bool {
    words
        .split_once(". ")
        .is_some_and(|(number, _)| number.len() < 3 && number.bytes().all(|digit| digit.is_ascii_digit()))
}

fn cells(line: &Line) -> Vec<Passage> {
    let cells = line.words.replace("\\|", "/");
    let cells = cells.trim_matches('|').split('|').map(|cell| Passage {
        lines: vec![Line {
            words: cell.trim().to_owned(),
            ..line.clone()
        }],
        ..Passage::default()
    });
    cells.collect()
}

/// The comments of a file whose comments begin with a hash. A comment behind a value stays on its
/// line.
fn of_hashes(source: &str) -> Vec<Passage> {
    let lines = plain_lines(source).map(|mut line| {
        let comment = line.words.strip_prefix('#').filter(|rest| !rest.starts_with('!'));
        line.words = comment.unwrap_or_default().trim().to_owned();
        line
    });
    let mut found = markdown(lines);
    let behind = plain_lines(source).filter(|line| !line.words.starts_with('#'));
    found.extend(behind.filter_map(|mut line| {
        line.words = line.words.split_once(" # ")?.1.trim().to_owned();
        Some(Passage {
            lines: vec![line],
            ..Passage::default()
        })
    }));
    found
}

/// The comments of a source, and the texts that its strings hold outside of tests.
fn of_rust(file: &Path, source: &str) -> Vec<Passage> {
    let is_test = file.components().any(|folder| folder.as_os_str() == "tests");
    let tests = source.find("\n#[cfg(test)]\nmod tests {").unwrap_or(source.len());
    let lines: Vec<_> = source.lines().collect();
    let mut found = Vec::new();
    let mut comment: Vec<Line> = Vec::new();
    let (mut at, mut number) = (0, 1);
    for token in tokenize(source, FrontmatterAllowed::No) {
        let text = &source[at..at + token.len as usize];
        let whole = lines.get(number - 1).copied().unwrap_or_default();
        match token.kind {
            TokenKind::LineComment { .. } => {
                let is_next = comment.last().is_some_and(|last| last.number + 1 == number);
                let is_alone = whole.trim_start().starts_with("//");
                if !(is_next && is_alone) {
                    found.extend(markdown(comment.drain(..)));
                }
                comment.push(Line {
                    number,
                    whole: whole.to_owned(),
                    words: text.trim_start_matches(['/', '!']).trim().to_owned(),
                });
            }
            TokenKind::Literal {
                kind: LiteralKind::Str { .. },
                ..
            } if !is_test && at < tests => found.extend(message(text, number)),
            _ => {}
        }
        at += text.len();
        number += text.matches('\n').count();
    }
    found.extend(markdown(comment.into_iter()));
    found
}

/// The text of a string literal that has enough words to be one. An indented line is an example.
fn message(literal: &str, number: usize) -> Vec<Passage> {
    let text = literal
        .trim_matches('"')
        .replace("\\n", "\n\n")
        .replace("\\\"", "\"");
    let mut lines = Vec::new();
    let mut goes_on = false;
    for (line, at) in text.split('\n').zip(number..) {
        let is_example = line.starts_with("  ") && !goes_on;
        let words = if is_example {
            ""
        } else {
            line.trim().trim_end_matches('\\')
        };
        goes_on = line.ends_with('\\');
        lines.push(Line {
            number: at,
            whole: String::new(),
            words: values(words),
        });
    }
    let mut passages = markdown(lines.into_iter());
    passages.retain(|passage| {
        let letters = |word: &&str| word.chars().filter(|letter| letter.is_alphabetic()).count() > 1;
        let text = passage.joined();
        text.split_whitespace().filter(letters).count() >= WORDS_OF_A_MESSAGE
    });
    for passage in &mut passages {
        passage.is_wrapped = false;
        passage.is_message = true;
    }
    passages
}

/// The text with a letter for each value that a format string names.
fn values(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, value)) = rest.split_once('{') {
        let Some((_, after)) = value.split_once('}') else {
            break;
        };
        plain.push_str(before);
        plain.push('X');
        rest = after;
    }
    plain + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(file: &str, source: &str) -> Vec<String> {
        let passages = of(Path::new(file), source).into_iter();
        passages
            .map(|passage| passage.text().replace('\n', " "))
            .collect()
    }

    #[test]
    fn each_kind_of_file_has_its_passages() {
        let cases: [(&str, &str, &[&str]); 6] = [
            (
                "a.md",
                "# Head\n\nOne\ntwo `what`.\n\n* item\n  more\n* [other](what)\n",
                &["Head", "One two X.", "item more", "[other"],
            ),
            (
                "a.md",
                "| a | b `c\\|d` |\n|---|---|\n",
                &["a", "b X", "---", "---"],
            ),
            ("a.md", "```\ncode\n```\nText\n", &["Text"]),
            (
                "a.yaml",
                "# First\n# line.\nkey: 1 # behind\n",
                &["First line.", "behind"],
            ),
            (
                "a.rs",
                "//! Head\n//! goes on.\n\n/// Item.\nfn f() { g(\"no more than {n} words here\", \"short\"); // behind\n}\n",
                &["no more than X words here", "Head goes on.", "Item.", "behind"],
            ),
            (
                "a.rs",
                "fn f() {}\n#[cfg(test)]\nmod tests {\n fn g() { h(\"a text of a test only\") }\n}\n",
                &[],
            ),
        ];
        for (file, source, expected) in cases {
            let mut found = texts(file, source);
            let mut expected = expected.to_vec();
            found.sort();
            expected.sort_unstable();
            assert_eq!(found, expected, "{source}");
        }
    }

    #[test]
    fn strings_of_tests_are_no_messages() {
        assert!(texts("tests/a.rs", "fn f() { g(\"a text of a test only\") }").is_empty());
    }
}
