//! What packages ship beside the program is made by the program: completions and manual pages. And what the documents say of
//! tests and of the words of the program is so.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::node::program;

/// The commands as the program's help lists them.
fn commands() -> Vec<String> {
    let help = program().arg("--help").output().expect("the program runs").stdout;
    let help = String::from_utf8(help).expect("help is text");
    let (_, list) = help.split_once("Commands:\n").expect("there are commands");
    list.lines()
        .take_while(|line| !line.is_empty())
        // What is indented further goes on from the line above.
        .filter_map(|line| line.strip_prefix("  ").filter(|line| !line.starts_with(' ')))
        .filter_map(|line| line.split_whitespace().next())
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

/// What is quoted as a symptom is what the program says.
#[test]
fn symptoms_are_quoted_in_the_words_of_the_program() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut sources = String::new();
    let mut folders = vec![root.join("crates")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.extension().and_then(|extension| extension.to_str()) {
                None if path.is_dir() => folders.push(path),
                Some("rs") => sources.push_str(&fs::read_to_string(&path).unwrap()),
                _ => {}
            }
        }
    }
    let text = fs::read_to_string(root.join("docs/troubleshooting.md")).unwrap();
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
    let mut quoted = 0;
    for row in rows {
        let symptom = row.split('`').next().unwrap();
        for words in symptom
            .split('…')
            .map(|words| words.trim_matches([' ', '.', ',']))
        {
            quoted += 1;
            // An outcome is put into the sentence.
            let words = words.strip_prefix("bundle ").unwrap_or(words);
            assert!(sources.contains(words), "nobody says {words:?}");
        }
    }
    assert!(quoted > 10);
}

/// `docs/faults.md` names a test for each fault, as `path/of/file.rs::name`.
#[test]
fn the_tests_that_the_documentation_names_are_there() {
    let workspace: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let document = include_str!("../docs/faults.md");
    let rows = document
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| fault"));
    let mut count = 0;
    for row in rows {
        let held_by = row
            .trim_end_matches('|')
            .rsplit('|')
            .next()
            .expect("a row has cells");
        let tests: Vec<&str> = held_by.split('`').filter(|text| text.contains("::")).collect();
        assert!(!tests.is_empty(), "nothing holds this: {row}");
        for test in tests {
            let (file, name) = test.split_once("::").expect("it was looked for");
            let source =
                fs::read_to_string(workspace.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
            assert!(source.contains(&format!("fn {name}(")), "{file} has no {name}");
            count += 1;
        }
    }
    assert!(count > 40, "the table is read: {count}");
}
