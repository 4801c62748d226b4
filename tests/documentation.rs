//! The program makes its own completions and manual pages for the packages. The documents name
//! tests that exist, and quote the program word for word.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::node::program;

/// The commands in the groups of the program's help, and those that it names below.
fn commands() -> Vec<String> {
    let help = program().arg("--help").output().expect("the program runs").stdout;
    let help = String::from_utf8(help).expect("help is text");
    let (groups, _) = help.split_once("Global options:\n").expect("there are options");
    let commands = groups.lines().filter_map(|line| line.strip_prefix("  "));
    commands
        .filter_map(|line| line.split_whitespace().next())
        .chain(["run", "inventory", "completions", "man"])
        .map(str::to_owned)
        .collect()
}

#[test]
fn completions_for_each_shell_know_every_command() {
    let commands = commands();
    assert!(commands.iter().any(|command| command == "import"), "{commands:?}");
    for shell in ["bash", "zsh", "fish"] {
        let answer = program().args(["completions", shell]).output().unwrap();
        assert!(answer.status.success());
        let script = String::from_utf8(answer.stdout).unwrap();
        for command in &commands {
            assert!(script.contains(command.as_str()), "{shell}: {command}");
        }
    }
}

#[test]
fn there_is_a_manual_page_for_the_program_and_each_command_whatever_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let answer = program()
        .arg("man")
        .arg(folder.path())
        .args(["--config", "/nonexistent/config.yaml"])
        .output()
        .unwrap();
    assert!(answer.status.success(), "{answer:?}");
    for command in commands() {
        let page = fs::read_to_string(folder.path().join(format!("airgapd-{command}.1"))).unwrap();
        assert!(page.contains(".TH") && page.contains(&command), "{command}");
    }
    assert!(folder.path().join("airgapd.1").is_file());
}

#[test]
fn a_folder_for_the_pages_that_is_not_there_is_named() {
    let answer = program().args(["man", "/nonexistent"]).output().unwrap();
    assert_eq!(answer.status.code(), Some(1));
    let said = String::from_utf8(answer.stderr).unwrap();
    assert!(said.contains("/nonexistent"), "{said}");
}

/// Returns the root folder of the project.
fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Returns a source file with continued strings joined: the shipped part, and the tests.
fn source(file: &Path) -> (String, String) {
    let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let mut joined = String::new();
    for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
        match joined.strip_suffix("\\\n").map(str::len) {
            Some(length) => {
                joined.truncate(length);
                joined.push_str(line.trim_start());
            }
            None => joined.push_str(line),
        }
        joined.push('\n');
    }
    let joined = joined.replace("\\\"", "\"");
    match joined.split_once("\n#[cfg(test)]\nmod tests {") {
        Some((shipped, tests)) => (shipped.to_owned(), tests.to_owned()),
        None => (joined.clone(), joined),
    }
}

/// Returns the source of the shipped crates, without their tests.
fn shipped() -> String {
    const NOT_SHIPPED: [&str; 5] = ["fake-containerd", "harness", "lab", "workshop", "xtask"];
    let crates = workspace().join("crates");
    let mut folders: Vec<_> = fs::read_dir(crates)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    folders.retain(|path| NOT_SHIPPED.iter().all(|name| !path.ends_with(name)));
    let mut folders: Vec<_> = folders.iter().map(|path| path.join("src")).collect();
    let mut sources = String::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.extension().and_then(|extension| extension.to_str()) {
                None if path.is_dir() => folders.push(path),
                Some("rs") => sources.push_str(&source(&path).0),
                _ => {}
            }
        }
    }
    sources
}

/// A row of the runbook: the words that the program prints, split at the values, and the tests.
struct Symptom {
    line: usize,
    keys: Vec<Vec<String>>,
    tests: Vec<String>,
}

/// Returns the texts in backticks.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// Returns the lines of the tables of symptoms in docs/runbook.md, with their numbers.
fn runbook() -> impl Iterator<Item = (&'static str, usize)> {
    let lines = include_str!("../docs/runbook.md").lines().zip(1..);
    lines.skip_while(|(line, _)| *line != "## A pod does not start")
}

/// Returns the rows of docs/runbook.md that start with words of the program.
fn symptoms() -> Vec<Symptom> {
    let rows = runbook().filter(|(line, _)| line.starts_with("| `"));
    let part = |part: &str| part.trim_matches([' ', '.', ',', ':', ';']).to_owned();
    let key = |key: &str| key.split('…').map(part).filter(|part| !part.is_empty()).collect();
    rows.map(|(row, line)| {
        let cells: Vec<_> = row.trim_matches('|').split(" | ").collect();
        assert_eq!(cells.len(), 4, "docs/runbook.md:{line}: a row has four cells");
        Symptom {
            line,
            keys: quoted(cells[0]).into_iter().map(key).collect(),
            tests: quoted(cells[3]).into_iter().map(str::to_owned).collect(),
        }
    })
    .collect()
}

/// The program prints each symptom in the words of the runbook, and a test of the row looks for
/// them.
#[test]
fn symptoms_are_quoted_in_the_words_of_the_program_and_a_test_brings_each_about() {
    let shipped = shipped();
    let mut moved = Vec::new();
    let symptoms = symptoms();
    for Symptom { line, keys, tests } in &symptoms {
        let parts = || keys.iter().flatten();
        for part in parts().filter(|part| !shipped.contains(part.as_str())) {
            moved.push(format!(
                "docs/runbook.md:{line}: the program does not print {part:?}"
            ));
        }
        let files = tests.iter().filter_map(|test| test.split_once("::"));
        let tests: String = files.map(|(file, _)| source(&workspace().join(file)).1).collect();
        // A test need not quote the whole text: three words in a row identify a message.
        let is_quoted = |part: &String| {
            let words: Vec<_> = part.split(' ').collect();
            let least = words.len().min(3);
            words
                .windows(least)
                .map(|words| words.join(" "))
                .any(|words| words.len() > 7 && tests.contains(&words))
        };
        if !parts().any(is_quoted) {
            moved.push(format!(
                "docs/runbook.md:{line}: no test of the row looks for {keys:?}"
            ));
        }
    }
    assert!(moved.is_empty(), "{moved:#?}");
    assert!(symptoms.len() > 40, "the table is read: {}", symptoms.len());
}

/// Every warning and error of the daemon is explained: it has an id for `journalctl -x`, or a row
/// of the runbook.
#[test]
fn each_message_at_warning_and_above_has_a_message_id_or_a_row_of_the_runbook() {
    let text = include_str!("../docs/messages.md");
    let (messages, ids) = text
        .split_once("\n## Message ids\n")
        .expect("the page has two tables");
    let explained: Vec<_> = ids
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| quoted(line)[0])
        .collect();
    let keys: Vec<_> = symptoms().into_iter().flat_map(|symptom| symptom.keys).collect();
    let rows = messages.lines().filter(|line| line.starts_with("| `"));
    let unexplained: Vec<_> = rows
        .filter(|row| {
            let (message, rest) = row
                .rsplit_once(" | ")
                .and_then(|(row, outcome)| Some((row.rsplit_once(" | ")?.0, outcome)))
                .expect("three cells");
            let has_id = quoted(rest)
                .first()
                .is_some_and(|outcome| explained.contains(outcome));
            let has_row = || {
                keys.iter()
                    .any(|key| key.iter().all(|part| message.contains(part.as_str())))
            };
            !has_id && !has_row()
        })
        .collect();
    assert!(
        unexplained.is_empty(),
        "docs/runbook.md has no row for {unexplained:#?}"
    );
}

#[test]
fn the_tests_that_the_comparison_names_are_there() {
    let text = include_str!("../docs/comparison.md");
    let named = text.split('`').filter(|text| text.contains(".rs::"));
    let named: Vec<_> = named.filter_map(|test| test.split_once("::")).collect();
    assert!(named.len() > 10, "{named:?}");
    for (file, name) in named {
        let source = fs::read_to_string(workspace().join(file));
        let source = source.unwrap_or_else(|error| panic!("{file}: {error}"));
        assert!(source.contains(&format!("fn {name}(")), "{file} has no {name}");
    }
    // Each of the 56 items has a row, a state, and a test unless it is missing.
    let mut items = BTreeSet::new();
    for row in text.lines() {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let Ok(numbers) = cells[0]
            .split(", ")
            .map(str::parse::<u32>)
            .collect::<Result<Vec<_>, _>>()
        else {
            continue;
        };
        items.extend(numbers);
        let state = cells[2];
        assert!(["same", "more", "differs", "missing"].contains(&state), "{row}");
        let test = cells[cells.len() - 1];
        assert_eq!(test == "–", state == "missing", "{row}");
        assert_eq!(test.contains(".rs::"), state != "missing", "{row}");
    }
    assert!(items.into_iter().eq(1..=56), "an item has no row");
}

/// docs/faults.md and docs/runbook.md name a test in each row, in the form `path/of/file.rs::name`.
#[test]
fn the_tests_that_the_documentation_names_are_there() {
    let mut count = 0;
    let faults = include_str!("../docs/faults.md").lines().zip(1..);
    for (document, lines) in [
        ("docs/faults.md", faults.collect::<Vec<_>>()),
        ("docs/runbook.md", runbook().collect()),
    ] {
        let is_head = |line: &str| {
            ["| fault", "| it says", "| you see"]
                .iter()
                .any(|head| line.starts_with(head))
        };
        let rows = lines
            .into_iter()
            .filter(|(line, _)| line.starts_with("| ") && !is_head(line));
        for (row, line) in rows {
            let held_by = row
                .trim_end_matches('|')
                .rsplit('|')
                .next()
                .expect("a row has cells");
            let tests: Vec<&str> = held_by.split('`').filter(|text| text.contains("::")).collect();
            assert!(
                !tests.is_empty(),
                "{document}:{line}: this row names no test: {row}"
            );
            for test in tests {
                let (file, name) = test.split_once("::").expect("the pattern has two colons");
                let source = fs::read_to_string(workspace().join(file))
                    .unwrap_or_else(|error| panic!("{document}:{line}: {file}: {error}"));
                assert!(
                    source.contains(&format!("fn {name}(")),
                    "{document}:{line}: {file} has no {name}"
                );
                count += 1;
            }
        }
    }
    assert!(count > 100, "the tables are read: {count}");
}
