//! Makes `docs/messages.md`, the list of the daemon's warnings and errors, from the source.
//!
//! A message is a string literal of a call that writes to the log. If the text of a call is made at
//! another place, [`ELSEWHERE`] names that place. [`made`] returns an error for a call that it
//! cannot read, so that the list is complete.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use lab::workspace;

const HEAD: &str = "# Messages\n\n\
    Every message of the daemon at warning and above. `cargo xtask reference` makes this page from\n\
    the source. A `…` stands for a value. [runbook.md](runbook.md) has causes and remedies.\n\n\
    The journal has the level as `PRIORITY` (3 for an error, 4 for a warning) and the outcome as\n\
    `AIRGAPD_OUTCOME`. A daemon that cannot start logs its errors and ends with 1 or 2.\n";

/// The sources of the daemon. Commands print their errors on the operator's screen, so they are not
/// in the list.
const OF_THE_DAEMON: [&str; 7] = [
    "crates/airgapd/src/config.rs",
    "crates/airgapd/src/log.rs",
    "crates/bundle/src",
    "crates/containerd/src",
    "crates/import/src",
    "crates/node/src",
    "crates/verify/src",
];

/// Calls that write to the log, with their levels. A call of `tell!` names its level.
const CALLS: [(&str, Option<Level>); 5] = [
    ("warn!(", Some(Level::Warning)),
    ("error!(", Some(Level::Error)),
    ("Line::warn(", Some(Level::Warning)),
    ("Line::error(", Some(Level::Error)),
    ("tell!(", None),
];

/// Calls that pass on a text from another place: the file, the name in the call, the outcome, and
/// the blocks that make the text. A block is a file and the start of the block. A call without a
/// block passes on messages that the list has already.
type Elsewhere = (
    &'static str,
    &'static str,
    Option<&'static str>,
    &'static [(&'static str, &'static str)],
);
const ELSEWHERE: [Elsewhere; 14] = [
    (
        "node/src/act/errands.rs",
        "warning",
        None,
        &[("node/src/runtime.rs", "fn without_cri")],
    ),
    ("node/src/act.rs", "notice", None, &[NOTICES]),
    (
        "node/src/act/answer.rs",
        "problem",
        None,
        &[("node/src/act/answer.rs", "problem: format!")],
    ),
    ("node/src/act/hands.rs", "notice", None, &[NOTICES]),
    ("node/src/act/journal.rs", "text", None, &[]),
    (
        "node/src/act/journal.rs",
        "warning",
        None,
        &[
            ("bundle/src/error.rs", "impl fmt::Display for Warning"),
            ("import/src/select/answer.rs", "notes.push"),
            ("import/src/select/closure.rs", "notes.push"),
            ("import/src/select/judge.rs", "notes.push"),
        ],
    ),
    (
        "node/src/decide/room.rs",
        "warning",
        None,
        &[("import/src/space.rs", "pub fn warnings(&self)")],
    ),
    (
        "node/src/decide/compare.rs",
        "failed",
        Some("refused"),
        &[("containerd/src/error.rs", "Refused {\n")],
    ),
    (
        "node/src/decide/compare.rs",
        "text",
        Some("unreachable"),
        &[
            ("node/src/decide.rs", "Event::Ended =>"),
            ("node/src/decide/compare.rs", "return self.go_away"),
            ("node/src/decide/record.rs", "self.go_away"),
        ],
    ),
    (
        "node/src/decide/listing.rs",
        "reason",
        Some("unusable"),
        &[
            ("node/src/act/hands.rs", "fn list_now("),
            (
                "node/src/decide/listing.rs",
                "Some(seen.place)) {\n            return Err",
            ),
            ("node/src/images/permissions.rs", "FolderTrust::Refused(format!"),
        ],
    ),
    (
        "node/src/decide/listing.rs",
        "why",
        None,
        &[("node/src/images/permissions.rs", "fn judge_folder")],
    ),
    (
        "node/src/decide/require.rs",
        "sentence",
        None,
        &[(
            "node/src/decide/require.rs",
            "if let Some(problem) = &found.problem {\n        return",
        )],
    ),
    (
        "node/src/decide/require.rs",
        "sentence",
        Some("missing"),
        &[("node/src/status.rs", "missing => format!")],
    ),
    (
        "airgapd/src/config.rs",
        "removed",
        None,
        &[("airgapd/src/config/resolve.rs", "removed.push")],
    ),
];
const NOTICES: (&str, &str) = ("node/src/state/store.rs", "impl fmt::Display for Notice");

/// Messages with a value that is itself words of the program. The page shows each with those words:
/// the message, the file that has the words, and the printed texts.
type Spelled = (&'static str, &'static str, &'static [&'static str]);
const SPELLED: [Spelled; 8] = [
    (
        "……. Waiting for containerd",
        "node/src/act/errands.rs",
        &["no containerd on … (…). Waiting for containerd"],
    ),
    (
        "……. Waiting for containerd",
        "node/src/runtime.rs",
        &[
            "the containerd on … has no CRI service, so kubelet does not use it: set `address:` to the socket of kubelet's containerd, or `cri: false` to use this one. Waiting for containerd",
        ],
    ),
    (
        "…. The pins of their images stay until the bundles return, or until you run `airgapd release --vanished`",
        "node/src/decide/listing.rs",
        &[
            "… is another folder than before: … of … missing. The pins of their images stay until the bundles return, or until you run `airgapd release --vanished`",
            "… is on …, which is not mounted: … of … missing. The pins of their images stay until the bundles return, or until you run `airgapd release --vanished`",
            "… is no longer a folder after the first in `imagesDirs`: … of … missing. The pins of their images stay until the bundles return, or until you run `airgapd release --vanished`",
        ],
    ),
    (
        "…: run chmod o-w on it, or set `allowInsecureDir: true`",
        "node/src/images/permissions.rs",
        &[
            "every user can write it (mode …), and with it give any image any name: run chmod o-w on it, or set `allowInsecureDir: true`",
        ],
    ),
    (
        "…… is used…",
        "import/src/select/answer.rs",
        &["on containerd … … is used…"],
    ),
    (
        "… of … required images are missing",
        "node/src/status.rs",
        &[
            "… of … required images are missing",
            "1 of … required images is missing",
            "the required image is missing",
        ],
    ),
    (
        "not imported…: …",
        "node/src/decide/listing.rs",
        &["not imported, as before: …"],
    ),
    (
        "not imported…: …",
        "node/src/state/suspects.rs",
        &["not imported: set aside: the daemon crashed over it … times in one boot, the last time by …. …"],
    ),
];

/// Warnings that stand for many others in a crowded log. Their call has no text of its own.
const IN_PLACE_OF_MANY: (&str, [&str; 3]) = (
    "node/src/decide/line.rs",
    [
        "1 more file was not imported (…)",
        "… more files were not imported (…)",
        "containerd keeps connecting and disconnecting: …",
    ],
);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Warning,
    Error,
}

impl Level {
    fn as_str(self) -> &'static str {
        match self {
            Level::Warning => "warning",
            Level::Error => "error",
        }
    }
}

/// A message, in the order of the page.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Message {
    text: String,
    level: Level,
    outcome: Option<String>,
}

/// Returns the path of the page.
pub(crate) fn page() -> PathBuf {
    workspace().join("docs/messages.md")
}

/// Makes the page from the source.
///
/// # Errors
///
/// Returns an error if a file cannot be read or if the text of a call is not found.
pub(crate) fn made() -> Result<String> {
    let mut messages = BTreeSet::new();
    for path in OF_THE_DAEMON {
        for path in sources(&workspace().join(path))? {
            let source = shipped(&read(&path)?);
            messages.extend(said(&path, &source)?);
        }
    }
    let (file, texts) = IN_PLACE_OF_MANY;
    for text in texts {
        check_words("", file, text)?;
        messages.insert(Message {
            text: text.to_owned(),
            level: Level::Warning,
            outcome: None,
        });
    }
    let messages = spelled(messages)?;
    let mut page = HEAD.to_owned();
    page.push_str("\n| message | level | outcome |\n|---|---|---|\n");
    for Message { text, level, outcome } in &messages {
        let outcome = outcome.as_deref().map(|word| format!("`{word}`"));
        let quoted = if text.contains('`') {
            format!("`` {text} ``")
        } else {
            format!("`{text}`")
        };
        let (quoted, level) = (quoted.replace('|', "\\|"), level.as_str());
        let _ = writeln!(page, "| {quoted} | {level} | {} |", outcome.unwrap_or_default());
    }
    page.push_str(
        "\n## Message ids\n\n\
         Events of these kinds have a `MESSAGE_ID`. `journalctl -x` explains them, and\n\
         `journalctl MESSAGE_ID=…` finds them.\n\n\
         | outcome | about | id | text of `journalctl -x` |\n|---|---|---|---|\n",
    );
    let catalog = read(&workspace().join("systemd/airgapd.catalog"))?;
    for (outcome, about, id) in ids(&read(&workspace().join("crates/airgapd/src/log/message_id.rs"))?) {
        let subject =
            subject(&catalog, &id).with_context(|| format!("the catalog has no {id} ({outcome})"))?;
        let _ = writeln!(page, "| `{outcome}` | {about} | `{id}` | {subject} |");
    }
    Ok(page)
}

/// Puts the texts of [`SPELLED`] in the place of their messages.
fn spelled(mut messages: BTreeSet<Message>) -> Result<BTreeSet<Message>> {
    let mut replaced = Vec::new();
    for (message, file, texts) in SPELLED {
        let of = |found: &&Message| found.text == message;
        let found: Vec<_> = messages.iter().filter(of).cloned().collect();
        anyhow::ensure!(
            !found.is_empty(),
            "no call has the message {message:?} of SPELLED in crates/xtask/src/messages.rs"
        );
        for text in texts {
            check_words(message, file, text)?;
            replaced.extend(found.iter().cloned().map(|found| Message {
                text: (*text).to_owned(),
                ..found
            }));
        }
    }
    messages.retain(|found| SPELLED.iter().all(|(message, ..)| found.text != *message));
    messages.extend(replaced);
    Ok(messages)
}

/// Checks that the words of a text between its values are in the message or in the file.
fn check_words(message: &str, file: &str, text: &str) -> Result<()> {
    let source = shipped(&read(&workspace().join("crates").join(file))?);
    let (said, known) = (literals(&source).join("\n"), message);
    let is_there = |words: &str| said.contains(words) || known.contains(words);
    let begin = known.split('…').next().unwrap_or_default();
    let text = text.strip_prefix(begin).unwrap_or(text);
    let rest = known.trim_start_matches('…');
    let own = text
        .strip_suffix(rest)
        .filter(|_| !rest.is_empty())
        .unwrap_or(text);
    let mut parts = own
        .split('…')
        .map(|part| part.trim_matches([' ', '(', ')', ':', '.', ',', '1']));
    match parts.find(|part| !is_there(part)) {
        Some(part) => Err(anyhow!("{file}: no message has the words {part:?}")),
        None => Ok(()),
    }
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Returns a source file, or all source files of a folder.
fn sources(path: &Path) -> Result<Vec<PathBuf>> {
    if path.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(path).with_context(|| format!("cannot list {}", path.display()))? {
        let path = entry?.path();
        if path.is_dir() || path.extension().is_some_and(|extension| extension == "rs") {
            found.extend(sources(&path)?);
        }
    }
    Ok(found)
}

/// Returns the source without its tests and comments.
fn shipped(source: &str) -> String {
    let source = source
        .split("\n#[cfg(test)]\nmod tests {")
        .next()
        .unwrap_or_default();
    let lines = source.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.fold(String::new(), |text, line| text + line + "\n")
}

/// Returns the messages of a file.
fn said(path: &Path, source: &str) -> Result<Vec<Message>> {
    let mut messages = Vec::new();
    for (call, level) in CALLS {
        for (at, _) in source.match_indices(call) {
            let is_whole = !source[..at].ends_with(|letter: char| letter.is_alphanumeric() || letter == '_');
            let rest = &source[at + call.len() - 1..];
            let inside = balanced(rest).filter(|_| is_whole);
            let Some(inside) = inside else { continue };
            let named = || {
                let words = inside.split(',').map(str::trim);
                words.into_iter().find_map(|word| match word {
                    "warn" => Some(Level::Warning),
                    "error" => Some(Level::Error),
                    _ => None,
                })
            };
            // Other calls of `tell!` have lower levels.
            let Some(level) = level.or_else(named) else {
                continue;
            };
            let outcome = outcome(&source[..at], inside, &rest[inside.len()..]);
            let texts = texts(path, &source[..at], inside, outcome.as_deref()).with_context(|| {
                let line = source[..at].lines().count();
                format!("{} near line {line}, `{call}…)`", path.display())
            })?;
            messages.extend(texts.into_iter().map(|text| Message {
                text,
                level,
                outcome: outcome.clone(),
            }));
        }
    }
    Ok(messages)
}

/// Returns the texts of a call: its own, those of the variable that it names, or those from
/// [`ELSEWHERE`].
fn texts(path: &Path, before: &str, inside: &str, outcome: Option<&str>) -> Result<Vec<String>> {
    if let Some(text) = patterns(inside).into_iter().next() {
        return Ok(vec![text]);
    }
    let mut name = name_in(inside);
    let function = before.rfind("fn ").unwrap_or_default();
    if let Some((_, bound)) = before[function..].rsplit_once(&format!("let {name} = ")) {
        let bound = bound.split_once(";\n").map_or(bound, |(bound, _)| bound);
        let texts = patterns(bound);
        if !texts.is_empty() {
            return Ok(texts);
        }
        name = name_in(bound);
    }
    let mut known = ELSEWHERE.iter();
    let known = known.find(|(file, of, has, _)| {
        path.ends_with(Path::new("crates").join(file)) && *of == name && *has == outcome
    });
    let (.., blocks) = known.ok_or_else(|| {
        anyhow!("cannot find the text of {name:?} (outcome {outcome:?}): add its place to ELSEWHERE in crates/xtask/src/messages.rs")
    })?;
    let mut texts = Vec::new();
    for (file, begin) in *blocks {
        let source = shipped(&read(&workspace().join("crates").join(file))?);
        let open = if begin.contains("fn ") || begin.starts_with("impl") {
            '{'
        } else {
            '('
        };
        let begun = source.split(begin).skip(1);
        let inside = begun.filter_map(|rest| rest.find(open).and_then(|at| balanced(&rest[at..])));
        let said: Vec<_> = inside.flat_map(patterns).collect();
        anyhow::ensure!(!said.is_empty(), "{file}: no message after {begin:?}");
        texts.extend(said);
    }
    Ok(texts)
}

/// Returns the word of an outcome from the call or from the calls chained to it. If the call only
/// names a variable, the outcome is before the call.
fn outcome(before: &str, inside: &str, after: &str) -> Option<String> {
    let end = after
        .match_indices(";\n")
        .nth(1)
        .map_or(after.len(), |(at, _)| at);
    let after = &after[..after.find("Line::").map_or(end, |next| next.min(end))];
    let variant = |text: &str| {
        let is_letter = |letter: char| letter.is_ascii_alphabetic();
        let word: String = text.chars().take_while(|letter| is_letter(*letter)).collect();
        Some(word).filter(|word| !word.is_empty())
    };
    let first = |text: &str| {
        let (_, rest) = text
            .split_once("Outcome::")
            .or_else(|| text.split_once("Said::"))?;
        variant(rest)
    };
    let names_it = inside.split(',').any(|word| word.trim() == "outcome");
    let nearest = || {
        before
            .rsplit_once("Outcome::")
            .and_then(|(_, rest)| variant(rest))
    };
    let found = first(inside)
        .or_else(|| first(after).filter(|_| after.contains(".outcome(")))
        .or_else(|| nearest().filter(|_| names_it))?;
    Some(kebab(&found))
}

fn kebab(variant: &str) -> String {
    let mut word = String::new();
    for letter in variant.chars() {
        if letter.is_ascii_uppercase() && !word.is_empty() {
            word.push('-');
        }
        word.push(letter.to_ascii_lowercase());
    }
    word
}

/// Returns the text between the bracket at the start and its counterpart. Brackets in strings and
/// characters do not count.
fn balanced(text: &str) -> Option<&str> {
    let (mut depth, mut rest) = (0_usize, text);
    loop {
        let letter = rest.chars().next()?;
        let taken = match letter {
            '"' => string(rest)?.len(),
            '\'' if rest.get(2..3) == Some("'") => 3,
            '(' | '{' | '[' => {
                depth += 1;
                1
            }
            ')' | '}' | ']' => {
                depth = depth.checked_sub(1)?;
                1
            }
            _ => letter.len_utf8(),
        };
        rest = rest.get(taken..)?;
        if depth == 0 {
            return text.get(1..text.len() - rest.len() - 1);
        }
    }
}

/// Returns the string literal at the start, with its quotes.
fn string(text: &str) -> Option<&str> {
    let mut letters = text.char_indices().skip(1);
    loop {
        match letters.next()? {
            (_, '\\') => drop(letters.next()),
            (at, '"') => return text.get(..=at),
            _ => {}
        }
    }
}

/// Returns the string literals of a text, with continued lines joined.
fn literals(text: &str) -> Vec<String> {
    let (mut found, mut rest) = (Vec::new(), text);
    while let Some(at) = rest.find(['"', '\'']) {
        rest = &rest[at..];
        let taken = match string(rest).filter(|_| rest.starts_with('"')) {
            Some(literal) => {
                let mut joined = String::new();
                for line in literal.trim_matches('"').split("\\\n") {
                    joined.push_str(if joined.is_empty() {
                        line
                    } else {
                        line.trim_start()
                    });
                }
                found.push(joined.replace("\\\"", "\""));
                literal.len()
            }
            None if rest.get(2..3) == Some("'") => 3,
            None => 1,
        };
        rest = &rest[taken..];
    }
    found
}

/// Returns the text with `…` for each value.
fn pattern(literal: &str) -> String {
    let mut text = String::new();
    let mut rest = literal;
    while let Some((before, value)) = rest.split_once('{') {
        text.push_str(before);
        text.push('…');
        rest = value.split_once('}').map_or("", |(_, after)| after);
    }
    text + rest
}

/// Returns the texts of the literals that have words.
fn patterns(text: &str) -> Vec<String> {
    let patterns = literals(text).into_iter().map(|literal| pattern(&literal));
    patterns.filter(|pattern| has_words(pattern)).collect()
}

/// Returns true if a pattern has words beside values and punctuation.
fn has_words(pattern: &str) -> bool {
    let mut words = pattern.split(|letter: char| !letter.is_alphabetic());
    words.any(|word| word.len() > 2)
}

/// Returns the last value of the last literal, which may follow the literal. Without a literal, it
/// returns the first word, which is a variable or a function.
fn name_in(text: &str) -> String {
    let Some(literal) = literals(text).pop() else {
        return first_word(text);
    };
    let inside = first_word(literal.rsplit_once('{').map_or("", |(_, value)| value));
    let mut words = text.rsplit(|letter: char| !letter.is_alphanumeric() && letter != '_');
    let mut behind = || words.find(|word| !word.is_empty()).unwrap_or_default();
    if inside.is_empty() {
        behind().to_owned()
    } else {
        inside
    }
}

fn first_word(text: &str) -> String {
    let is_letter = |letter: char| letter.is_alphanumeric() || letter == '_';
    let text = text.trim_start();
    text.chars().take_while(|letter| is_letter(*letter)).collect()
}

/// Returns the outcome, subject and id of each kind of event with an id, from the table in the
/// program.
fn ids(source: &str) -> Vec<(String, String, String)> {
    let mut ids = Vec::new();
    let mut outcome = String::new();
    for line in shipped(source).lines() {
        if let Some((_, rest)) = line.split_once("Outcome::") {
            outcome = kebab(&first_word(rest));
        }
        for entry in line.split("(About::").skip(1) {
            if let Some(id) = literals(entry).into_iter().next() {
                ids.push((outcome.clone(), kebab(&first_word(entry)), id));
            }
        }
    }
    ids
}

/// Returns the headline of an entry of the journal's catalog, with `…` for its fields.
fn subject(catalog: &str, id: &str) -> Option<String> {
    let (_, entry) = catalog.split_once(&format!("-- {id}\n"))?;
    let line = entry.lines().find_map(|line| line.strip_prefix("Subject: "))?;
    Some(
        line.replace("@AIRGAPD_BUNDLE@", "…")
            .replace("@AIRGAPD_IMAGE@", "…"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(source: &str) -> Vec<(String, Level, Option<String>)> {
        let messages = said(Path::new("x.rs"), source).unwrap();
        let rows = messages.into_iter();
        rows.map(|message| (message.text, message.level, message.outcome))
            .collect()
    }

    #[test]
    fn the_page_is_up_to_date() {
        let there = fs::read_to_string(page()).unwrap_or_default();
        let made = made().unwrap();
        let moved = made
            .lines()
            .filter(|line| !there.lines().any(|other| other == *line));
        let moved: Vec<_> = moved.collect();
        assert!(
            there == made,
            "docs/messages.md lacks {moved:#?}: run `cargo xtask reference`"
        );
    }

    #[test]
    fn a_message_is_found_in_the_call_or_in_its_variable_with_its_outcome() {
        let table = [
            (
                r#"fn a() { warn!("no metrics at {} ({why})", x.y()); }"#,
                ("no metrics at … (…)", Level::Warning, None),
            ),
            (
                "fn a() { turn.say(Line::error(format!(\"bad: {x} \\\n    and worse\")).outcome(Outcome::NotUnpacked)); }",
                ("bad: … and worse", Level::Error, Some("not-unpacked")),
            ),
            (
                "fn a() {\nlet text = format!(\"gone: {x}\");\nlet line = Line::warn(text);\nturn.say(line.outcome(Said::Full));\n}",
                ("gone: …", Level::Warning, Some("full")),
            ),
            (
                "fn a() {\nlet outcome = Outcome::Verdict.as_str();\nwarn!(outcome, \"the node is {x}\")\n}",
                ("the node is …", Level::Warning, Some("verdict")),
            ),
            (
                "fn a() { tell!(is_told, error, bundle, \"not imported: {x}\") }",
                ("not imported: …", Level::Error, None),
            ),
        ];
        for (source, (text, level, outcome)) in table {
            let wanted = (text.to_owned(), level, outcome.map(str::to_owned));
            assert_eq!(of(source), [wanted], "{source}");
        }
    }

    #[test]
    fn words_of_another_place_are_those_that_the_program_prints() {
        let message = "……. Waiting for containerd";
        let file = "node/src/act/errands.rs";
        check_words(message, file, "no containerd on … (…). Waiting for containerd").unwrap();
        let error = check_words(message, file, "no server on … (…). Waiting for containerd").unwrap_err();
        assert!(format!("{error}").contains("no server on"), "{error}");
        assert!(spelled(BTreeSet::new()).is_err(), "a message without a call");
    }

    #[test]
    fn a_line_of_another_level_and_one_of_a_test_is_no_message() {
        let source =
            "fn a() { tell!(is_told, info, \"it is told\"); info!(\"and this\"); xwarn!(\"or this\") }";
        assert_eq!(of(source), []);
        assert_eq!(
            of(&shipped(
                "// warn!(\"no\")\n#[cfg(test)]\nmod tests { fn a() { warn!(\"of a test\") } }"
            )),
            []
        );
    }

    #[test]
    fn a_call_whose_text_is_nowhere_is_an_error_that_says_what_to_do() {
        for call in [
            r#"warn!("{text}")"#,
            r#"warn!("{}", it.text)"#,
            "Line::warn(text)",
        ] {
            let error = said(Path::new("x.rs"), &format!("fn a(text: &str) {{ {call} }}")).unwrap_err();
            let error = format!("{error:#}");
            assert!(
                error.contains(r#"the text of "text""#) && error.contains("ELSEWHERE"),
                "{error}"
            );
        }
    }

    #[test]
    fn brackets_in_strings_and_characters_are_no_brackets() {
        assert_eq!(
            balanced(r#"(a, ")\"(", ')', [b]) rest"#),
            Some(r#"a, ")\"(", ')', [b]"#)
        );
        assert_eq!(balanced("(a"), None);
    }
}
