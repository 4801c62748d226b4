//! Where the log goes: natively to the journal where systemd has connected us to it, otherwise to standard
//! error, as lines for people or as JSON.
//!
//! One layer gathers an event and the fields of the spans around it; three small functions write it. The
//! journal's native protocol is spoken here because the fields have to be called `AIRGAPD_BUNDLE`, but
//! `MESSAGE_ID` may not carry that prefix, which the available layer cannot do.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use basics::{Foreign, is_visible};
use jiff::Timestamp;
use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

use crate::output;
use node::settings::{LogFormat, LogLevel, LogSettings};

/// Message ids, by what an event is about and the value of its field `outcome`. They identify a kind of event for ever
/// (systemd's message catalog, alerts), so they never change.
const MESSAGE_IDS: [(About, &str, &str); 15] = [
    (About::Bundle, "imported", "8556b10ba49d4573ae06291804dbd4ca"),
    (About::Bundle, "partial", "50e4782bcb78412fab65bdeb90d4a011"),
    (About::Bundle, "failed", "b8ad2be7d1b1473e81fc6ea1b2d810ae"),
    (About::Bundle, "removed", "d23c90c08ff84e1ba47ddae057aaa32c"),
    (About::Bundle, "restored", "315594b37c034c658c846fc8d3dd5493"),
    (About::Bundle, "stalled", "cc26b9f77e0a46c7bf2efe6fff9b3c94"),
    (About::Image, "failed", "3fed07ccc2b6498dabd319e22b75ee1e"),
    (About::Image, "removed", "d9279616bfe64f6cb672764e7f4c95cf"),
    (About::Image, "not-unpacked", "cf149ce95c8f4272b55fbd72c2602288"),
    (About::Node, "missing", "c1d6a540622441ab918cd1b69c809c0b"),
    (About::Node, "unreachable", "3988ec706eea40a9a5688978feadff45"),
    (About::Node, "unusable", "ee8ae775d0f948a098e0256c8144859f"),
    (About::Node, "vanished", "1ca980092c484a7eb02e4b85523d74d5"),
    (About::Node, "full", "bfa545555844475d9e07c8fd3b3791cc"),
    (About::Node, "misconfigured", "aedd3481ff3140f8904e5e937d8c2012"),
];

/// What an event is about: the smallest thing that one of its fields names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum About {
    Image,
    Bundle,
    Node,
}

impl About {
    fn of(fields: &Fields) -> About {
        let has = |key: &str| fields.0.iter().any(|(name, _)| *name == key);
        match (has("image"), has("bundle")) {
            (true, _) => About::Image,
            (false, true) => About::Bundle,
            (false, false) => About::Node,
        }
    }
}

/// The id of an event with these fields, if it is of a kind that has one.
fn message_id(fields: &Fields) -> Option<&'static str> {
    let about = About::of(fields);
    let outcome = fields.0.iter().find(|(name, _)| *name == "outcome")?.1.as_str()?;
    let mut kinds = MESSAGE_IDS.iter();
    let of_kind = kinds.find(|kind| (kind.0, kind.1) == (about, outcome));
    of_kind.map(|(_, _, id)| *id)
}

/// The journal's native socket (systemd's "Native Journal Protocol").
const JOURNAL: &str = "/run/systemd/journal/socket";

/// Sets up the log of this process, once.
///
/// # Panics
///
/// When it is called twice.
pub(crate) fn init(settings: LogSettings) {
    let (sink, trouble) = choose(settings.format);
    let subscriber = tracing_subscriber::registry().with(Lines(sink).with_filter(filter(settings.level)));
    tracing::subscriber::set_global_default(subscriber).expect("the log is set up once");
    if let Some(error) = trouble {
        tracing::warn!("cannot reach the journal ({error}); logging to standard error");
    }
}

fn choose(format: LogFormat) -> (Sink, Option<io::Error>) {
    let stderr = io::stderr();
    let human = || Sink::human(Box::new(io::stderr()), Terminal::of(&io::stderr()));
    let to_journal = match format {
        LogFormat::Human => return (human(), None),
        LogFormat::Json => return (Sink::Json(Mutex::new(Box::new(stderr))), None),
        LogFormat::Auto => std::env::var("JOURNAL_STREAM").is_ok_and(|stream| is_stream(&stream, &stderr)),
        LogFormat::Journal => true,
    };
    match to_journal.then(|| Journal::connect(Path::new(JOURNAL))) {
        Some(Ok(journal)) => (Sink::Journal(journal), None),
        Some(Err(error)) => (human(), Some(error)),
        None => (human(), None),
    }
}

/// Whether a descriptor is the stream that `JOURNAL_STREAM` names by device and inode (systemd.exec(5)).
fn is_stream(stream: &str, descriptor: &impl std::os::fd::AsFd) -> bool {
    let Some((device, inode)) = stream.split_once(':') else {
        return false;
    };
    let stat = rustix::fs::fstat(descriptor);
    stat.is_ok_and(|stat| device.parse() == Ok(stat.st_dev) && inode.parse() == Ok(stat.st_ino))
}

/// Our own crates at the chosen level; libraries only when something is wrong.
fn filter(level: LogLevel) -> Targets {
    let level = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    Targets::new()
        .with_default(level.min(LevelFilter::WARN))
        .with_target("airgapd", level)
}

/// Writes one line or entry for each event.
struct Lines(Sink);

enum Sink {
    Human {
        out: Mutex<Box<dyn Write + Send>>,
        terminal: Option<Terminal>,
    },
    Json(Mutex<Box<dyn Write + Send>>),
    Journal(Journal),
}

impl Sink {
    fn human(out: Box<dyn Write + Send>, terminal: Option<Terminal>) -> Sink {
        Sink::Human {
            out: Mutex::new(out),
            terminal,
        }
    }

    /// A log that cannot be written has nobody to complain to.
    fn write(&self, line: &Line) {
        let to = |out: &Mutex<Box<dyn Write + Send>>, text: String| {
            // A poisoned lock only means that another thread died while it wrote.
            let mut out = out.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let _ = out.write_all(text.as_bytes());
        };
        match self {
            Sink::Human {
                out,
                terminal: Some(terminal),
            } => to(out, line.for_terminal(*terminal)),
            Sink::Human { out, terminal: None } => to(out, line.for_file()),
            Sink::Json(out) => to(out, line.as_json()),
            Sink::Journal(journal) => journal.send(&line.as_entry()),
        }
    }
}

/// What lines are shown on.
#[derive(Clone, Copy, Debug)]
struct Terminal {
    /// Whether it shows colours, and whoever uses it wants them.
    has_colours: bool,
}

impl Terminal {
    /// Colours are for terminals that are not dumb, and for users who do not say `NO_COLOR` (no-color.org).
    fn of(stream: &impl IsTerminal) -> Option<Terminal> {
        let says = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let is_dumb = says("TERM").is_none_or(|term| term == "dumb");
        stream.is_terminal().then(|| Terminal {
            has_colours: !is_dumb && says("NO_COLOR").is_none(),
        })
    }
}

/// Fields in the order in which they were recorded; a later value replaces an earlier one.
#[derive(Clone, Debug, Default)]
struct Fields(Vec<(&'static str, Value)>);

impl Fields {
    fn set(&mut self, name: &'static str, value: Value) {
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name, value)),
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.set(field.name(), format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field.name(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field.name(), value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field.name(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field.name(), value.into());
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Lines {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        for span in context
            .event_scope(event)
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .iter()
            .rev()
        {
            if let Some(of_span) = span.extensions().get::<Fields>() {
                of_span
                    .0
                    .iter()
                    .for_each(|(name, value)| fields.set(name, value.clone()));
            }
        }
        event.record(&mut fields);
        self.0.write(&Line::new(event, fields));
    }
}

/// An event with everything that belongs to it.
struct Line {
    time: Timestamp,
    level: Level,
    message: String,
    fields: Fields,
    file: Option<&'static str>,
    line: Option<u32>,
}

impl Line {
    fn new(event: &Event<'_>, mut fields: Fields) -> Line {
        let metadata = event.metadata();
        let message = fields
            .0
            .iter()
            .position(|(name, _)| *name == "message")
            .map(|at| fields.0.remove(at).1);
        Line {
            time: Timestamp::now(),
            level: *metadata.level(),
            message: message.as_ref().map(text_of).unwrap_or_default(),
            fields,
            file: metadata.file(),
            line: metadata.line(),
        }
    }

    /// For somebody who has just typed a command: what is wrong stands out, the rest is plain.
    fn for_terminal(&self, terminal: Terminal) -> String {
        // SGR (ECMA-48, 8.3.117): bold, red, yellow.
        let (label, colour) = match self.level {
            Level::ERROR => ("error: ", "\u{1b}[1;31m"),
            Level::WARN => ("warning: ", "\u{1b}[1;33m"),
            Level::INFO => ("", ""),
            Level::DEBUG => ("debug: ", ""),
            Level::TRACE => ("trace: ", ""),
        };
        let label = match terminal.has_colours && !colour.is_empty() {
            true => format!("{colour}{label}\u{1b}[0m"),
            false => label.to_owned(),
        };
        format!(
            "{}{label}{}{}\n",
            output::on_a_new_line(),
            escaped(&self.message),
            self.pairs()
        )
    }

    /// For a file or a console: with time and level.
    fn for_file(&self) -> String {
        let Line { time, level, .. } = self;
        format!(
            "{time:.3} {level:<5} {}{}\n",
            escaped(&self.message),
            self.pairs()
        )
    }

    /// For the journal, which keeps fields apart and does not show them: what a line is about belongs into its text.
    fn for_journal(&self) -> String {
        let mut text = escaped(&self.message).to_string();
        let fields = self.fields.0.iter();
        let mut add = |name: &str| {
            let field = fields.clone().find(|(other, _)| *other == name);
            let value = field.map(|(_, value)| quoted(&text_of(value)));
            if let Some(value) = value.filter(|value| !text.contains(value.as_str())) {
                text.push_str(&format!(" {name}={value}"));
            }
        };
        add("image");
        add("bundle");
        text
    }

    fn pairs(&self) -> String {
        let pair = |(name, value): &(&str, Value)| format!(" {name}={}", quoted(&text_of(value)));
        self.fields.0.iter().map(pair).collect()
    }

    fn as_json(&self) -> String {
        let mut object = serde_json::Map::new();
        object.insert("time".into(), format!("{:.3}", self.time).into());
        object.insert("level".into(), self.level.as_str().to_ascii_lowercase().into());
        object.insert("message".into(), self.message.as_str().into());
        // What the line itself says cannot be replaced by a field.
        for (name, value) in &self.fields.0 {
            object.entry(*name).or_insert_with(|| value.clone());
        }
        let line = output::to_json(&object, serde_json::ser::CompactFormatter);
        let line = String::from_utf8(line.expect("fields are plain data")).expect("JSON is text");
        format!("{line}\n")
    }

    /// The entry in the journal's native protocol.
    fn as_entry(&self) -> Vec<u8> {
        let mut entry = Vec::with_capacity(512);
        // syslog(3) levels; journalctl shows notice (5) and above in bold, so info is 6.
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
        for (name, value) in &self.fields.0 {
            put(&mut entry, &journal_name(name), &text_of(value));
        }
        if let Some(id) = message_id(&self.fields) {
            put(&mut entry, "MESSAGE_ID", id);
        }
        entry
    }
}

fn text_of(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Foreign text must neither drive a terminal nor forge a line.
fn escaped(text: &str) -> Foreign<&str> {
    Foreign::new(text)
}

/// Quoted where it would not be clear where a value ends.
fn quoted(text: &str) -> String {
    let is_plain = |c: char| !c.is_whitespace() && c != '"' && is_visible(c);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => text.to_owned(),
        false => format!("{:?}", Foreign::new(text)),
    }
}

/// The journal takes upper-case letters, digits and underscores.
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

/// Longer values are cut, so that an entry always fits into a datagram; nothing we log is as long.
const LONGEST_VALUE: usize = 8 << 10;

/// A field with its length in front, the form that takes any bytes.
fn put(entry: &mut Vec<u8>, name: &str, value: &str) {
    let value = &value.as_bytes()[..value.floor_char_boundary(LONGEST_VALUE)];
    entry.extend_from_slice(name.as_bytes());
    entry.push(b'\n');
    entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    entry.extend_from_slice(value);
    entry.push(b'\n');
}

/// The journal's socket.
struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Journal {
    fn connect(path: &Path) -> io::Result<Journal> {
        let socket = UnixDatagram::unbound()?;
        // A journal that hangs must not hang us: the line is lost instead.
        socket.set_write_timeout(Some(Duration::from_secs(1)))?;
        // journald discards an empty entry; this only tells whether anybody listens.
        socket.send_to(&[], path)?;
        Ok(Journal {
            socket,
            path: path.to_owned(),
        })
    }

    /// Addressed by path each time, so that a restarted journald is found again.
    fn send(&self, entry: &[u8]) {
        let _ = self.socket.send_to(entry, &self.path);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::fd::AsFd;
    use std::sync::Arc;

    use tracing::{debug, error, info, info_span, warn};

    use super::*;

    /// A place to write to that the test can look at.
    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    const PLAIN: Terminal = Terminal { has_colours: false };

    fn with_sink(sink: Sink, level: LogLevel, deed: impl FnOnce()) {
        let subscriber = tracing_subscriber::registry().with(Lines(sink).with_filter(filter(level)));
        tracing::subscriber::with_default(subscriber, deed);
    }

    fn written(
        sink: impl FnOnce(Box<dyn Write + Send>) -> Sink,
        level: LogLevel,
        deed: impl FnOnce(),
    ) -> String {
        let buffer = Buffer::default();
        with_sink(sink(Box::new(buffer.clone())), level, deed);
        String::from_utf8(Arc::clone(&buffer.0).lock().unwrap().clone()).unwrap()
    }

    /// Takes an entry of the journal's native protocol apart.
    fn parsed(mut entry: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut fields = BTreeMap::new();
        while !entry.is_empty() {
            let end = entry.iter().position(|byte| *byte == b'\n').unwrap();
            let name = String::from_utf8(entry[..end].to_vec()).unwrap();
            let length = u64::from_le_bytes(entry[end + 1..end + 9].try_into().unwrap());
            let value = end + 9..end + 9 + usize::try_from(length).unwrap();
            assert_eq!(entry[value.end], b'\n');
            assert!(
                fields.insert(name, entry[value.clone()].to_vec()).is_none(),
                "a field given twice"
            );
            entry = &entry[value.end + 1..];
        }
        fields
    }

    fn journalled(deed: impl FnOnce()) -> Vec<BTreeMap<String, Vec<u8>>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let socket = UnixDatagram::bind(&path).unwrap();
        with_sink(
            Sink::Journal(Journal::connect(&path).unwrap()),
            LogLevel::Info,
            deed,
        );
        socket.set_nonblocking(true).unwrap();
        let mut buffer = vec![0; 1 << 18];
        let next = || {
            let length = socket.recv(&mut buffer).ok()?;
            Some(parsed(&buffer[..length]))
        };
        std::iter::from_fn(next)
            .filter(|entry| !entry.is_empty())
            .collect()
    }

    #[test]
    fn the_journal_gets_our_fields_those_of_spans_and_the_id_of_the_event() {
        let entries = journalled(|| {
            let _span = info_span!("import", bundle = "b.tar", outcome = "unknown").entered();
            info!(bytes = 12_u64, outcome = "imported", "imported it");
        });
        let expected = [
            ("AIRGAPD_BUNDLE", "b.tar"),
            ("AIRGAPD_BYTES", "12"),
            ("AIRGAPD_OUTCOME", "imported"),
            ("MESSAGE", "imported it bundle=b.tar"),
            ("MESSAGE_ID", "8556b10ba49d4573ae06291804dbd4ca"),
            ("PRIORITY", "6"),
            ("SYSLOG_IDENTIFIER", "airgapd"),
        ];
        assert_eq!(entries.len(), 1);
        for (name, value) in expected {
            assert_eq!(
                entries[0].get(name).map(Vec::as_slice),
                Some(value.as_bytes()),
                "{name}"
            );
        }
        assert!(entries[0]["CODE_FILE"].ends_with(b"log.rs"));
    }

    #[test]
    fn lines_without_a_known_outcome_have_no_id_and_levels_are_those_of_syslog() {
        let entries = journalled(|| {
            error!("a");
            warn!(outcome = "strange", "b");
            debug!("not at this level");
        });
        let priorities: Vec<_> = entries.iter().map(|entry| entry["PRIORITY"].as_slice()).collect();
        assert_eq!(priorities, [b"3", b"4"]);
        assert!(entries.iter().all(|entry| !entry.contains_key("MESSAGE_ID")));
    }

    /// The failure of one image is another event than that of its bundle, with another remedy.
    #[test]
    fn the_id_tells_image_bundle_and_node_apart() {
        let entries = journalled(|| {
            let _span = info_span!("import", bundle = "b.tar").entered();
            error!(image = "docker.io/library/x:1", outcome = "failed", "a");
            error!(outcome = "failed", "b");
            error!(
                image = "docker.io/library/x:1",
                outcome = "imported",
                "images have no such id"
            );
        });
        let ids: Vec<_> = entries.iter().map(|entry| entry.get("MESSAGE_ID")).collect();
        let id = |id: &str| Some(id.as_bytes().to_vec());
        let expected = [
            id("3fed07ccc2b6498dabd319e22b75ee1e"),
            id("b8ad2be7d1b1473e81fc6ea1b2d810ae"),
            None,
        ];
        assert_eq!(ids, expected.iter().map(Option::as_ref).collect::<Vec<_>>());
        let of_node = journalled(|| warn!(outcome = "full", "c"));
        assert_eq!(of_node[0]["MESSAGE_ID"], b"bfa545555844475d9e07c8fd3b3791cc");
    }

    #[test]
    fn message_ids_are_distinct_and_of_the_right_form() {
        let mut ids: Vec<_> = MESSAGE_IDS.iter().map(|(_, _, id)| *id).collect();
        assert!(
            ids.iter()
                .all(|id| id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()))
        );
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), MESSAGE_IDS.len());
    }

    #[test]
    fn line_breaks_and_huge_values_forge_no_field_in_the_journal() {
        let huge = "é".repeat(100_000);
        let entries = journalled(|| error!(bundle = "a\nPRIORITY=0\n", reason = huge, "x\u{1b}[2Jy\nz"));
        assert_eq!(entries.len(), 1);
        assert_eq!(entries[0]["PRIORITY"], b"3");
        assert_eq!(entries[0]["AIRGAPD_BUNDLE"], b"a\nPRIORITY=0\n");
        assert_eq!(entries[0]["AIRGAPD_REASON"].len(), LONGEST_VALUE);
        let message = b"x\\u{1b}[2Jy\\nz bundle=\"a\\nPRIORITY=0\\n\"";
        assert_eq!(entries[0]["MESSAGE"], message);
    }

    #[test]
    fn a_journal_that_is_gone_stops_nothing_and_one_that_was_never_there_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        assert!(Journal::connect(&path).is_err());
        let listener = UnixDatagram::bind(&path).unwrap();
        let journal = Journal::connect(&path).unwrap();
        drop(listener);
        std::fs::remove_file(&path).unwrap();
        journal.send(b"lost");

        let listener = UnixDatagram::bind(&path).unwrap();
        journal.send(b"found");
        let mut buffer = [0; 16];
        assert_eq!(
            listener.recv(&mut buffer).unwrap(),
            5,
            "after a restart of the journal"
        );
    }

    #[test]
    fn people_at_a_terminal_read_plain_lines() {
        let text = written(
            |out| Sink::human(out, Some(PLAIN)),
            LogLevel::Info,
            || {
                info!(bundle = "b.tar", "importing");
                warn!("careful");
                error!(path = "with space", "no");
                debug!("hidden");
            },
        );
        assert_eq!(
            text,
            "importing bundle=b.tar\nwarning: careful\nerror: no path=\"with space\"\n"
        );
    }

    #[test]
    fn what_is_wrong_stands_out_where_there_are_colours() {
        let colourful = Terminal { has_colours: true };
        let text = written(
            |out| Sink::human(out, Some(colourful)),
            LogLevel::Info,
            || {
                info!("importing");
                error!("no");
            },
        );
        assert_eq!(text, "importing\n\u{1b}[1;31merror: \u{1b}[0mno\n");
    }

    #[test]
    fn lines_in_a_file_begin_with_time_and_level() {
        let text = written(
            |out| Sink::human(out, None),
            LogLevel::Info,
            || info!("importing"),
        );
        let (time, rest) = text.split_once(' ').unwrap();
        assert!(time.parse::<Timestamp>().is_ok(), "{time}");
        assert_eq!(rest, "INFO  importing\n");
    }

    #[test]
    fn foreign_text_neither_drives_a_terminal_nor_forges_a_line() {
        for terminal in [Some(PLAIN), None] {
            let text = written(
                |out| Sink::human(out, terminal),
                LogLevel::Info,
                || {
                    info!(
                        bundle = "a\nerror:\u{202e} forged\u{1b}[31m",
                        file = "\u{2067}b",
                        "x\r\n\u{9b}y\u{202e}"
                    );
                },
            );
            assert_eq!(text.matches('\n').count(), 1, "{text:?}");
            assert!(text.trim_end().chars().all(is_visible), "{text:?}");
        }
    }

    #[test]
    fn json_lines_keep_numbers_and_cannot_be_overruled_by_fields() {
        let text = written(
            |out| Sink::Json(Mutex::new(out)),
            LogLevel::Info,
            || {
                info!(bytes = 5_u64, level = "forged", again = true, "a\nb");
            },
        );
        assert_eq!(text.matches('\n').count(), 1);
        let line: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&line["bytes"], &line["again"]),
            (&Value::from(5), &Value::from(true))
        );
        assert_eq!(
            (&line["level"], &line["message"]),
            (&Value::from("info"), &Value::from("a\nb"))
        );
    }

    #[test]
    fn libraries_are_heard_only_when_something_is_wrong() {
        let text = written(
            |out| Sink::human(out, Some(PLAIN)),
            LogLevel::Trace,
            || {
                info!(target: "h2::client", "hidden");
                warn!(target: "h2::client", "shown");
                info!(target: "airgapd_import", "shown too");
            },
        );
        assert_eq!(text, "warning: shown\nshown too\n");
        let text = written(
            |out| Sink::human(out, Some(PLAIN)),
            LogLevel::Error,
            || {
                warn!(target: "h2::client", "hidden");
                error!("shown");
            },
        );
        assert_eq!(text, "error: shown\n");
    }

    #[test]
    fn fields_that_are_recorded_later_are_in_the_lines_after() {
        let text = written(
            |out| Sink::human(out, Some(PLAIN)),
            LogLevel::Info,
            || {
                let span = info_span!("import", bundle = "b", images = tracing::field::Empty);
                let _entered = span.clone().entered();
                info!("before");
                span.record("images", 3);
                info!("after");
            },
        );
        assert_eq!(text, "before bundle=b\nafter bundle=b images=3\n");
    }

    #[test]
    fn the_journal_is_used_only_for_the_stream_that_systemd_named() {
        let file = tempfile::tempfile().unwrap();
        let stat = rustix::fs::fstat(file.as_fd()).unwrap();
        assert!(is_stream(&format!("{}:{}", stat.st_dev, stat.st_ino), &file));
        for other in ["", "1", "1:2", "x:y", "1:2:3"] {
            assert!(!is_stream(other, &file), "{other}");
        }
    }

    /// The journal's catalog (`journalctl -x`) and the program go by the same ids, and neither has one more.
    #[test]
    fn the_message_catalog_explains_every_message_id() {
        let catalog = include_str!("../../../systemd/airgapd.catalog");
        let mut explained: Vec<_> = catalog
            .lines()
            .filter_map(|line| line.strip_prefix("-- "))
            .collect();
        let mut sent: Vec<_> = MESSAGE_IDS.iter().map(|(_, _, id)| *id).collect();
        explained.sort_unstable();
        sent.sort_unstable();
        assert_eq!(explained, sent);
        for entry in catalog.split("\n-- ").skip(1) {
            let (header, text) = entry.split_once("\n\n").expect("a text below the header");
            assert!(
                header.contains("\nSubject: ") && header.contains("\nDefined-By: airgapd"),
                "{header}"
            );
            assert!(text.trim().lines().count() > 1, "{header}");
        }
    }

    /// What the catalog puts into its sentences (`@AIRGAPD_BUNDLE@`) is in every entry of that kind.
    #[test]
    fn the_message_catalog_relies_on_no_field_that_its_events_lack() {
        let catalog = include_str!("../../../systemd/airgapd.catalog");
        for (about, outcome, id) in MESSAGE_IDS {
            let (_, entry) = catalog.split_once(&format!("-- {id}\n")).unwrap();
            let entry = entry.split("\n-- ").next().unwrap();
            let allowed: &[&str] = match about {
                About::Image if outcome == "not-unpacked" => &["AIRGAPD_IMAGE"],
                About::Image => &["AIRGAPD_IMAGE", "AIRGAPD_BUNDLE"],
                About::Bundle => &["AIRGAPD_BUNDLE"],
                About::Node => &[],
            };
            for field in entry.split('@').skip(1).step_by(2) {
                assert!(allowed.contains(&field), "{outcome}: {field}");
            }
        }
    }

    /// An outcome that no id is known for would be a misspelt one.
    #[test]
    fn every_message_id_is_sent_by_some_line_of_the_daemon() {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../node/src/act");
        let files = std::fs::read_dir(sources).unwrap();
        let text: String = files
            .map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap())
            .collect();
        // These come from a report, as the words of its outcomes.
        let reported = [import::Outcome::Imported, import::Outcome::Partial].map(import::Outcome::as_str);
        for (_, outcome, _) in MESSAGE_IDS {
            let is_sent = text.contains(&format!("outcome = \"{outcome}\""));
            assert!(is_sent || reported.contains(&outcome), "{outcome}");
        }
    }
}
