//! Progress of a long command: a bar on a terminal, otherwise an occasional line in the log for
//! bundles that take long. With `-q` there is neither.

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::time::{Duration, Instant};

use import::Observer;
use tokio::task::JoinHandle;
use tracing::Level;

use node::progress::{Counters, Doing, Reporter, bar};
use node::status::ProgressStatus;

use crate::output;

/// Time between two moves of a bar.
const MOVES: Duration = Duration::from_millis(200);

/// Counts the work on one bundle and reports its progress until it is dropped.
#[derive(Debug)]
pub(crate) struct Progress {
    counters: Arc<Counters>,
    shown: Shown,
}

#[derive(Debug)]
enum Shown {
    Bar(JoinHandle<()>),
    Lines { _reporter: Reporter },
}

impl Progress {
    /// Starts to report the progress of a bundle to the user of the command.
    pub(crate) fn start(bundle: String, doing: Doing) -> Progress {
        let counters = Arc::<Counters>::default();
        let shown = match has_bar() {
            true => Shown::Bar(tokio::spawn(draw(doing, Arc::clone(&counters)))),
            false => Shown::Lines {
                _reporter: Reporter::start(bundle, doing, Arc::clone(&counters)),
            },
        };
        Progress { counters, shown }
    }

    /// Returns the observer that counts the work.
    pub(crate) fn observer(&self) -> &impl Observer {
        &*self.counters
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Shown::Bar(task) = &self.shown {
            task.abort();
            let _ = output::progress("");
        }
    }
}

/// Returns true if standard error is a terminal that can erase a line, and the log is not quiet.
pub(crate) fn has_bar() -> bool {
    let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    io::stderr().is_terminal() && !is_dumb && tracing::enabled!(Level::INFO)
}

async fn draw(doing: Doing, counters: Arc<Counters>) {
    let started = Instant::now();
    loop {
        tokio::time::sleep(MOVES).await;
        show(doing, &counters.so_far(started), counters.last().as_deref());
    }
}

/// Shows progress on the terminal, and the last step if there is room for it.
pub(crate) fn show(doing: Doing, so_far: &ProgressStatus, last: Option<&str>) {
    let width = output::terminal_width();
    let mut text = bar(doing, so_far, width);
    if let Some(last) = last {
        text = format!("{text}: {last}");
    }
    let _ = output::progress(&text.chars().take(width).collect::<String>());
}
