//! `cargo xtask test`: runs all tests, even after a failure, and prints one summary at the end.
//!
//! The tests run under plain `cargo test`. cargo sums up each test program but never all of them.
//! So this module reads cargo's output on its way to the screen.

use std::fmt::{self, Write as _};
use std::fs;
use std::io::{self, BufRead as _, BufReader, PipeReader, Write as _};
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use lab::{Heartbeat, is_root, left_out, parts, place, workspace};

use crate::checks::{cargo, run as run_command, step};

/// Fetches everything that the tests need and runs them. The arguments of `cargo test` may select
/// some.
///
/// # Errors
///
/// Returns an error if a test fails, if a name fits no test, or if a required program is missing.
pub fn run(arguments: &[String]) -> Result<()> {
    if is_root() && parts::is_complete_machine() {
        place::must_allow_tests()?;
    }
    step(
        "fetching missing programs for the tests (the first run builds containerd 2.3, which takes some minutes)",
    );
    parts::provide_all()?;
    step("building the tests (the first build takes some minutes)");
    run_command(cargo().args(["test", "--no-run"]).args(selection(arguments)))?;
    step("running the tests");
    let summary = observe(arguments)?;
    print!("{summary}");
    summary.judge(arguments)
}

/// Returns the arguments for both calls of `cargo test`: everything before `--`.
fn selection(arguments: &[String]) -> Vec<String> {
    let ours = arguments.iter().take_while(|argument| *argument != "--");
    let mut selection = vec!["--locked".to_owned()];
    if !names_packages(arguments) {
        selection.push("--workspace".to_owned());
    }
    selection.extend(ours.cloned());
    selection
}

fn names_packages(arguments: &[String]) -> bool {
    arguments
        .iter()
        .take_while(|argument| *argument != "--")
        .any(|argument| ["-p", "--package"].iter().any(|flag| argument.starts_with(flag)))
}

/// Runs cargo with both of its streams in one pipe, which keeps their lines in order.
fn observe(arguments: &[String]) -> Result<Summary> {
    let left_out = LeftOut::create()?;
    let (reader, writer) = io::pipe()?;
    let mut cargo = cargo();
    cargo
        .args(["test", "--no-fail-fast"])
        .args(selection(arguments))
        .args(arguments.iter().skip_while(|argument| *argument != "--"))
        .env(left_out::FILE, &left_out.0)
        .stdout(writer.try_clone()?)
        .stderr(writer);
    if parts::is_complete_machine() {
        cargo.env(parts::REQUIRE_CONTAINERD, "1");
    }
    let mut summary = Summary::default();
    let started = Instant::now();
    let status = spawn_and_relay(cargo, reader, &mut summary)?;
    summary.took = started.elapsed();
    summary.all_went_well = status.success();
    summary.missing = left_out.read()?;
    Ok(summary)
}

/// Shows cargo's output, and a progress line after each silence.
fn spawn_and_relay(
    mut cargo: Command,
    reader: PipeReader,
    summary: &mut Summary,
) -> Result<std::process::ExitStatus> {
    let mut child = cargo.spawn().context("cannot run cargo")?;
    // The command holds the other end of the pipe. After this drop, the pipe closes with the last
    // test program.
    drop(cargo);
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                break;
            }
        }
    });
    let started = Instant::now();
    loop {
        match lines.recv_timeout(Heartbeat::INTERVAL) {
            Ok(line) => {
                summary.take(&line);
                writeln!(io::stdout(), "{line}")?;
            }
            Err(RecvTimeoutError::Timeout) => println!("{}", summary.progress(started.elapsed())),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    Ok(child.wait()?)
}

/// The file in which tests record that they were left out. Dropping it removes the file.
struct LeftOut(PathBuf);

impl LeftOut {
    fn create() -> Result<Self> {
        let path = workspace().join(format!("target/left-out-{}", std::process::id()));
        fs::write(&path, "").with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self(path))
    }

    fn read(&self) -> Result<Vec<String>> {
        let mut lines: Vec<_> = fs::read_to_string(&self.0)?.lines().map(str::to_owned).collect();
        lines.sort();
        lines.dedup();
        Ok(lines)
    }
}

impl Drop for LeftOut {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// The results of all test programs of a run.
#[derive(Debug, Default)]
struct Summary {
    program: String,
    programs: usize,
    results: usize,
    passed: usize,
    /// Number of tests that have passed in the running program.
    passed_so_far: usize,
    /// Program and test.
    failed: Vec<String>,
    /// Program, test and the reason that the test gives.
    ignored: Vec<String>,
    /// Tests that were left out, and the reasons.
    missing: Vec<String>,
    all_went_well: bool,
    took: Duration,
}

impl Summary {
    /// Reads a line of cargo or of a test program.
    fn take(&mut self, line: &str) {
        if let Some(program) = program_in(line) {
            self.program = program;
            self.programs += 1;
        } else if let Some(rest) = line.strip_prefix("test result: ") {
            self.results += 1;
            self.passed += count_in(rest, "passed");
            self.passed_so_far = 0;
        } else if let Some((name, outcome)) = test_in(line) {
            let name = format!("{}: {name}", self.program);
            match outcome.split_once(", ") {
                _ if outcome == "ok" => self.passed_so_far += 1,
                _ if outcome == "FAILED" => self.failed.push(name),
                Some(("ignored", reason)) => self.ignored.push(format!("{name}: {reason}")),
                None if outcome == "ignored" => self.ignored.push(name),
                _ => {}
            }
        }
    }

    fn progress(&self, elapsed: Duration) -> String {
        format!(
            "... at {} after {} s, {} tests have passed",
            self.program,
            elapsed.as_secs(),
            self.passed + self.passed_so_far
        )
    }

    /// Returns the number of test programs that ended without a result, for example after a kill.
    fn without_result(&self) -> usize {
        self.programs.saturating_sub(self.results)
    }

    fn judge(&self, arguments: &[String]) -> Result<()> {
        if !self.failed.is_empty() || !self.all_went_well || self.without_result() > 0 {
            bail!("the tests failed");
        }
        if self.passed == 0 && !arguments.iter().any(|argument| argument == "--list") {
            bail!("no test ran: no name fits `{}`", arguments.join(" "));
        }
        Ok(())
    }
}

/// Other programs read the last line, too.
impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let section = |title: &str, lines: &[String]| {
            let mut text = String::new();
            if !lines.is_empty() {
                let _ = writeln!(text, "\n{title}");
                lines.iter().for_each(|line| {
                    let _ = writeln!(text, "  {line}");
                });
            }
            text
        };
        let took = self.took.as_secs();
        f.write_str(&section("Left out by default:", &self.ignored))?;
        f.write_str(&section(
            "Left out because something is missing on this machine:",
            &self.missing,
        ))?;
        f.write_str(&section("Failed:", &self.failed))?;
        match self.without_result() {
            0 => {}
            ended => writeln!(f, "\nTest programs that ended before their last test: {ended}")?,
        }
        writeln!(
            f,
            "\n{} test programs, {} min {} s\n{} passed, {} failed, {} skipped",
            self.programs,
            took / 60,
            took % 60,
            self.passed,
            self.failed.len(),
            self.ignored.len()
        )
    }
}

/// Returns the test program that cargo starts with this line.
fn program_in(line: &str) -> Option<String> {
    let line = line.trim_start();
    if let Some(library) = line.strip_prefix("Doc-tests ") {
        return Some(format!("{library} (documentation)"));
    }
    let (_, path) = line.strip_prefix("Running ")?.rsplit_once('(')?;
    let file = path.strip_suffix(')')?.rsplit('/').next()?;
    let name = file.rsplit_once('-').map_or(file, |(name, _hash)| name);
    Some(name.to_owned())
}

/// Returns the name of a test and its outcome.
fn test_in(line: &str) -> Option<(&str, &str)> {
    line.strip_prefix("test ")?.split_once(" ... ")
}

/// Returns the number before a word, for example in `12 passed; 0 failed`.
fn count_in(result: &str, word: &str) -> usize {
    result
        .split([';', '.'])
        .find_map(|part| part.trim().strip_suffix(word)?.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "\
     Running unittests src/lib.rs (target/debug/deps/airgapd_bundle-0123abcd)

running 3 tests
test tar::a_cut_archive_is_refused ... ok
test tar::a_table_is_printed ... ignored, `cargo xtask uploads` runs it
test tar::a_link_is_followed ... FAILED

failures:
    tar::a_link_is_followed

test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s

error: test failed, to rerun pass `-p airgapd-bundle --lib`
   Doc-tests bundle

running 1 test
test crates/bundle/src/lib.rs - open (line 12) ... ok

test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 3 filtered out; finished in 0.50s
";

    fn summary(output: &str) -> Summary {
        let mut summary = Summary {
            all_went_well: true,
            ..Summary::default()
        };
        output.lines().for_each(|line| summary.take(line));
        summary
    }

    #[test]
    fn all_programs_are_summed_up_and_failures_are_named() {
        let summary = summary(OUTPUT);
        assert_eq!((summary.programs, summary.passed), (2, 2));
        assert_eq!(summary.failed, ["airgapd_bundle: tar::a_link_is_followed"]);
        assert_eq!(
            summary.ignored,
            ["airgapd_bundle: tar::a_table_is_printed: `cargo xtask uploads` runs it"]
        );
        assert!(summary.judge(&[]).is_err());
        let text = summary.to_string();
        assert!(text.ends_with("\n2 passed, 1 failed, 1 skipped\n"), "{text}");
    }

    #[test]
    fn a_program_that_is_killed_fails_the_run() {
        let killed =
            "     Running tests/main.rs (target/debug/deps/scenarios-01)\n\nrunning 3 tests\ntest a ... ok\n";
        assert_eq!(summary(killed).without_result(), 1);
        assert!(summary(killed).judge(&[]).is_err());
    }

    #[test]
    fn a_name_that_fits_no_test_fails_the_run() {
        let none = "     Running tests/main.rs (target/debug/deps/scenarios-01)\n\nrunning 0 tests\n\n\
            test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 9 filtered out; finished in 0.0s\n";
        let error = summary(none).judge(&["no_such_claim".to_owned()]).unwrap_err();
        assert!(error.to_string().contains("no_such_claim"), "{error}");
        assert!(
            summary(none)
                .judge(&["--".to_owned(), "--list".to_owned()])
                .is_ok()
        );
    }

    #[test]
    fn packages_are_named_before_the_double_dash_only() {
        let table: [(&[&str], bool); 6] = [
            (&[], false),
            (&["-p", "airgapd"], true),
            (&["--release", "--package=airgapd"], true),
            (&["-pairgapd"], true),
            (&["--", "-p"], false),
            (&["some_test", "--", "--nocapture"], false),
        ];
        for (arguments, expected) in table {
            let arguments: Vec<_> = arguments.iter().map(ToString::to_string).collect();
            assert_eq!(names_packages(&arguments), expected, "{arguments:?}");
        }
    }
}
