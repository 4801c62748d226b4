//! The journal, by its native protocol. Fields have a prefix, as in `AIRGAPD_BUNDLE`, but
//! `MESSAGE_ID` must not have it. The available layer cannot do both.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing::Level;

use super::human::{escaped, quoted};
use super::line::{Line, text_of};
use super::message_id::message_id;

/// The journal's native socket (systemd's "Native Journal Protocol").
pub(super) const JOURNAL: &str = "/run/systemd/journal/socket";

impl Line {
    /// Returns the text for the journal, with image and bundle in it. The journal keeps fields
    /// apart and does not show them.
    fn for_journal(&self) -> String {
        let mut text = escaped(&self.message).to_string();
        let mut add = |name: &str| {
            let value = self.fields.get(name).map(|value| quoted(&text_of(value)));
            if let Some(value) = value.filter(|value| !text.contains(value.as_str())) {
                text.push_str(&format!(" {name}={value}"));
            }
        };
        add("image");
        add("bundle");
        text
    }

    /// Returns the entry in the journal's native protocol.
    pub(super) fn as_entry(&self) -> Vec<u8> {
        let mut entry = Vec::with_capacity(512);
        // Levels of syslog(3). journalctl shows notice (5) and above in bold, so info is 6.
        let priority = match self.level {
            Level::ERROR => "3",
            Level::WARN => "4",
            Level::INFO => "6",
            Level::DEBUG | Level::TRACE => "7",
        };
        put(&mut entry, "MESSAGE", &self.for_journal());
        put(&mut entry, "PRIORITY", priority);
        put(&mut entry, "SYSLOG_IDENTIFIER", "airgapd");
        if let Some(file) = self.file {
            put(&mut entry, "CODE_FILE", file);
        }
        if let Some(line) = self.line {
            put(&mut entry, "CODE_LINE", &line.to_string());
        }
        for (name, value) in self.fields.iter() {
            put(&mut entry, &journal_name(name), &text_of(value));
        }
        if let Some(id) = message_id(&self.fields) {
            put(&mut entry, "MESSAGE_ID", id);
        }
        entry
    }
}

/// Returns the field's name in the journal, which takes upper-case letters, digits and underscores.
fn journal_name(field: &str) -> String {
    let upper = |c: char| {
        if c.is_ascii_alphanumeric() {
            c.to_ascii_uppercase()
        } else {
            '_'
        }
    };
    format!("AIRGAPD_{}", field.chars().map(upper).collect::<String>())
}

/// Longest value, in bytes. Longer values are cut, so that an entry always fits into a datagram.
/// airgapd logs no value of that length.
pub(super) const LONGEST_VALUE: usize = 8 << 10;

/// Adds a field in the form with its length in front, which takes any bytes.
fn put(entry: &mut Vec<u8>, name: &str, value: &str) {
    let value = &value.as_bytes()[..value.floor_char_boundary(LONGEST_VALUE)];
    entry.extend_from_slice(name.as_bytes());
    entry.push(b'\n');
    entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    entry.extend_from_slice(value);
    entry.push(b'\n');
}

/// The journal's socket and its path.
pub(super) struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Journal {
    pub(super) fn connect(path: &Path) -> io::Result<Journal> {
        let socket = UnixDatagram::unbound()?;
        // A journal that hangs must not block the program: the line is lost instead.
        socket.set_write_timeout(Some(Duration::from_secs(1)))?;
        // journald discards an empty entry. This only checks if it listens.
        socket.send_to(&[], path)?;
        Ok(Journal {
            socket,
            path: path.to_owned(),
        })
    }

    /// Sends an entry to the path, so that it also reaches a restarted journald.
    pub(super) fn send(&self, entry: &[u8]) {
        let _ = self.socket.send_to(entry, &self.path);
    }
}
