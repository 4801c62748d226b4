//! The exit status of the program, and the message of a command that fails.

use std::process::ExitCode;

use import::Cause;
use serde::Serialize;

use crate::cli::OutputFormat;
use crate::output;

/// How the program ends. The numbers are promised to scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done: everything asked for is in place.
    Done,
    /// Something failed, or nothing landed although the bundle is sound.
    Failed,
    /// The command line or the configuration is wrong.
    Usage,
    /// containerd cannot be reached.
    Unreachable,
    /// Something that was asked for is missing.
    Missing,
    /// The bundle is bad and nothing landed.
    BadBundle,
    /// The time is over, and the condition does not hold.
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

/// Why a command came to nothing. Commands only return it; [`Refusal::tell`] says it, once for all
/// of them.
///
/// Every error becomes one that ends with [`Exit::Failed`]. It is no error itself, so that it is
/// not wrapped into one.
#[derive(Debug)]
pub(crate) struct Refusal {
    exit: Exit,
    /// Everything that is wrong, each with its remedy. A text that is not ours stays in its line,
    /// whatever it contains.
    lines: Vec<String>,
    /// The answer for programs, where the command has a form of its own for it.
    document: Option<Vec<u8>>,
}

impl Refusal {
    /// A command that ends this way, for this reason.
    pub(crate) fn new(exit: Exit, line: impl Into<String>) -> Refusal {
        Refusal::of_many(exit, vec![line.into()])
    }

    /// A command that ends this way, for these reasons.
    pub(crate) fn of_many(exit: Exit, lines: Vec<String>) -> Refusal {
        Refusal {
            exit,
            lines,
            document: None,
        }
    }

    /// A wrong command line or configuration.
    pub(crate) fn usage(line: impl Into<String>) -> Refusal {
        Refusal::new(Exit::Usage, line)
    }

    /// A bundle that cannot be opened.
    pub(crate) fn of_bundle(error: &bundle::Error) -> Refusal {
        let exit = match Cause::of(error) {
            Cause::Bundle => Exit::BadBundle,
            Cause::File | Cause::Unreachable | Cause::Other => Exit::Failed,
        };
        Refusal::new(exit, basics::chain(error))
    }

    /// The same, with a document of the command's own form as the answer for programs. It is made
    /// of the reasons.
    pub(crate) fn with_document<D: Serialize>(mut self, document: impl FnOnce(String) -> D) -> Refusal {
        self.document = output::document(&document(self.text())).ok();
        self
    }

    fn text(&self) -> String {
        self.lines.join("\n")
    }

    /// Says what is wrong: to people in the log, or plainly before there is one, and to programs
    /// with a document.
    pub(crate) fn tell(self, format: OutputFormat) -> Exit {
        if tracing::dispatcher::has_been_set() {
            self.lines.iter().for_each(|line| tracing::error!("{line}"));
        } else {
            let _ = output::complain(&self.text());
        }
        // Where the answer cannot be written, the exit status still says that the command failed.
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

/// The document of a command that came to nothing and has no form of its own for that.
#[derive(Debug, Serialize)]
pub(crate) struct Failure<'a> {
    pub(crate) error: &'a str,
}
