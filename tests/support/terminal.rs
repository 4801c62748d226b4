//! A terminal of a given size that records the output of a command.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::wait_until;

/// A command on its own terminal. Dropping it kills the command if it has not ended.
pub struct OnTerminal {
    child: Child,
    terminal: OwnedFd,
    shown: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl OnTerminal {
    /// Starts a command with its standard output and error on a terminal of this size.
    pub fn start(mut command: Command, columns: u16, lines: u16) -> OnTerminal {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("there are terminals");
        grantpt(&terminal).expect("the test owns it");
        unlockpt(&terminal).expect("the test owns it");
        let path = ptsname(&terminal, Vec::new()).expect("the path has a name");
        let path = path.into_string().expect("the path is text");
        resize(&terminal, columns, lines);
        let open = || {
            OpenOptions::new()
                .read(true)
                .write(true)
                .open(&path)
                .expect("the terminal can be opened")
        };
        command.stdin(Stdio::null()).stdout(open()).stderr(open());
        let child = command.spawn().expect("the program starts");
        // The command holds descriptors of the terminal. The reader sees the end only after all of
        // them are closed.
        drop(command);
        let mut out = File::from(terminal.try_clone().expect("a descriptor"));
        let shown = Arc::<Mutex<String>>::default();
        let seen = Arc::clone(&shown);
        let reader = thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = out.read(&mut buffer) {
                let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
                seen.lock().expect("no holder panics").push_str(&text);
            }
        });
        OnTerminal {
            child,
            terminal,
            shown,
            reader: Some(reader),
        }
    }

    /// Returns everything that was written to the terminal so far, unchanged.
    pub fn shown(&self) -> String {
        self.shown.lock().expect("no holder panics").clone()
    }

    /// Waits until the condition holds for the output.
    pub fn wait_until(&self, what: &str, mut holds: impl FnMut(&str) -> bool) {
        wait_until(what, || holds(&self.shown()));
    }

    /// Changes the size of the terminal and signals the command, like the kernel.
    pub fn resize(&self, columns: u16, lines: u16) {
        resize(&self.terminal, columns, lines);
        self.signal(Signal::WINCH);
    }

    /// Sends a signal to the command.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the process runs");
    }

    /// Returns true if a signal has stopped the command.
    pub fn is_stopped(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()));
        stat.is_ok_and(|stat| stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" T")))
    }

    /// Waits for the end of the command. Returns its exit code and its whole output.
    pub fn end(mut self) -> (Option<i32>, String) {
        let mut ended = None;
        wait_until("the command ends", || {
            ended = self.child.try_wait().expect("waiting for the child works");
            ended.is_some()
        });
        if let Some(reader) = self.reader.take() {
            reader.join().expect("the reader ends");
        }
        (ended.and_then(|status| status.code()), self.shown())
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn resize(terminal: &OwnedFd, columns: u16, lines: u16) {
    let size = Winsize {
        ws_row: lines,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(terminal, size).expect("this is a terminal");
}
