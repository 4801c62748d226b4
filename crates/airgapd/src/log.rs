//! The log. It goes natively to the journal if systemd has connected the program to it. Otherwise
//! it goes to standard error, as lines for people or as JSON.
//!
//! One layer collects an event and the fields of the spans around it. [`human`], [`mod@line`] and
//! [`journal`] each write it in their form.

mod human;
mod journal;
mod line;
mod message_id;

use std::io::{self, Write};
use std::path::Path;
use std::sync::Mutex;

use node::settings::{LogFormat, LogLevel, LogSettings};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

use self::human::Terminal;
use self::journal::{JOURNAL, Journal};
use self::line::{Fields, Line};

/// Sets up the log of this process, once.
///
/// # Panics
///
/// Panics if it is called twice.
pub(crate) fn init(settings: LogSettings) {
    let (sink, trouble) = choose(settings.format);
    let subscriber = tracing_subscriber::registry().with(Lines(sink).with_filter(filter(settings.level)));
    tracing::subscriber::set_global_default(subscriber).expect("the log is set up once");
    if let Some(error) = trouble {
        tracing::warn!("cannot reach the journal, so the log goes to standard error: {error}");
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

/// Returns true if a descriptor is the stream in `JOURNAL_STREAM`, by device and inode
/// (systemd.exec(5)).
fn is_stream(stream: &str, descriptor: &impl std::os::fd::AsFd) -> bool {
    let Some((device, inode)) = stream.split_once(':') else {
        return false;
    };
    let stat = rustix::fs::fstat(descriptor);
    stat.is_ok_and(|stat| device.parse() == Ok(stat.st_dev) && inode.parse() == Ok(stat.st_ino))
}

/// Returns the filter: airgapd's own crates at the chosen level, libraries only at warning and
/// above.
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

    /// Writes a line. A write error is ignored, since there is no place to report it.
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
                    .iter()
                    .for_each(|(name, value)| fields.set(name, value.clone()));
            }
        }
        event.record(&mut fields);
        self.0.write(&Line::new(event, fields));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;
    use std::sync::Arc;

    use basics::is_visible;
    use jiff::Timestamp;
    use serde_json::Value;
    use tracing::{debug, error, info, info_span, warn};

    use super::journal::LONGEST_VALUE;
    use super::*;

    /// A writer whose text the test can read.
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

    /// Parses an entry of the journal's native protocol.
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

    /// The failure of an image is a different event than the failure of its bundle, with a
    /// different remedy.
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
}
