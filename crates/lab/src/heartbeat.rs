//! Reports progress during work that prints nothing for minutes.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::note;

/// Writes a line to standard error every few seconds until it is dropped.
#[derive(Debug)]
pub struct Heartbeat {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Heartbeat {
    /// Time between two lines.
    pub const INTERVAL: Duration = Duration::from_secs(5);

    /// Starts to report that this work is still running.
    pub fn start(work: &str) -> Self {
        let (stop, stopped) = mpsc::channel::<()>();
        let work = work.to_owned();
        let started = Instant::now();
        let thread = thread::spawn(move || {
            while stopped.recv_timeout(Self::INTERVAL) == Err(RecvTimeoutError::Timeout) {
                note(&format!("... {work}, {} s so far", started.elapsed().as_secs()));
            }
        });
        Self {
            stop: Some(stop),
            thread: Some(thread),
        }
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
