//! The exit status of the program, and the message of a command that fails.

use std::process::ExitCode;

use import::Cause;
use serde::Serialize;

use crate::cli::OutputFormat;
use crate::output;

/// Exit status of the program. Scripts rely on the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done: everything that the command should do is in place.
    Done,
    /// Something failed, or no image was imported although the bundle is sound.
    Failed,
    /// The command line or the configuration is wrong.
    Usage,
    /// containerd cannot be reached.
    Unreachable,
    /// Something that the caller requested is missing.
    Missing,
    /// The bundle is damaged and no image was imported.
    BadBundle,
    /// The time is over and the condition is not met.
    TimedOut,
    /// No daemon answers.
    NoDaemon,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Unreachable => 3,
            Exit::Missing => 4,
            Exit::BadBundle => 5,
            Exit::TimedOut => 6,
            Exit::NoDaemon => 7,
        })
    }
}

/// Reason why a command failed. Commands only return it, and [`Refusal::tell`] prints it for all of
/// them.
///
/// Every error becomes a refusal with [`Exit::Failed`]. A refusal is not an error itself, so that
/// no code wraps it in one.
#[derive(Debug)]
pub(crate) struct Refusal {
    exit: Exit,
    /// The reasons, each with its remedy. Foreign text is escaped and cannot start a new line.
    lines: Vec<String>,
    /// JSON document for programs, if the command has its own form for it.
    document: Option<Vec<u8>>,
}

impl Refusal {
    /// Returns a refusal with this exit status and reason.
    pub(crate) fn new(exit: Exit, line: impl Into<String>) -> Refusal {
        Refusal::of_many(exit, vec![line.into()])
    }

    /// Returns a refusal with this exit status and these reasons.
    pub(crate) fn of_many(exit: Exit, lines: Vec<String>) -> Refusal {
        Refusal {
            exit,
            lines,
            document: None,
        }
    }

    /// Returns a refusal of a wrong command line or configuration.
    pub(crate) fn usage(line: impl Into<String>) -> Refusal {
        Refusal::new(Exit::Usage, line)
    }

    /// Returns a refusal of a bundle that cannot be opened.
    pub(crate) fn of_bundle(error: &bundle::Error) -> Refusal {
        let exit = match Cause::of(error) {
            Cause::Bundle => Exit::BadBundle,
            Cause::File | Cause::Unreachable | Cause::Other => Exit::Failed,
        };
        Refusal::new(exit, basics::chain(error))
    }

    /// Adds the reasons of another refusal. A failure counts more than a bad bundle.
    #[must_use]
    pub(crate) fn and(mut self, other: Refusal) -> Refusal {
        if other.exit == Exit::Failed {
            self.exit = Exit::Failed;
        }
        self.lines.extend(other.lines);
        self
    }

    /// Adds the JSON document for programs in the command's own form, made from the reasons.
    pub(crate) fn with_document<D: Serialize>(mut self, document: impl FnOnce(String) -> D) -> Refusal {
        self.document = output::document(&document(self.text())).ok();
        self
    }

    fn text(&self) -> String {
        self.lines.join("\n")
    }

    /// Reports the reasons: to people in the log, or on standard error before the log is set up,
    /// and to programs as JSON.
    pub(crate) fn tell(self, format: OutputFormat) -> Exit {
        if tracing::dispatcher::has_been_set() {
            self.lines.iter().for_each(|line| tracing::error!("{line}"));
        } else {
            let _ = output::complain(&self.text());
        }
        // If the answer cannot be written, the exit status still shows the failure.
        if format == OutputFormat::Json {
            let _ = match &self.document {
                Some(document) => output::raw(document),
                None => output::json(&Failure { error: &self.text() }),
            };
        }
        self.exit
    }
}

impl<E: Into<anyhow::Error>> From<E> for Refusal {
    fn from(error: E) -> Refusal {
        Refusal::new(Exit::Failed, format!("{:#}", error.into()))
    }
}

/// JSON document of a failed command that has no form of its own for that.
#[derive(Debug, Serialize)]
pub(crate) struct Failure<'a> {
    pub(crate) error: &'a str,
}
