//! Lines for the log, as values, and the rows that keep them from flooding it.

use std::ffi::OsStr;
use std::time::{Duration, Instant};

use basics::{Foreign, counted};
use oci_spec::image::Digest;

use crate::outcome::Outcome;

/// Returns a file name in a form for people and logs.
pub(crate) fn shown(name: &OsStr) -> String {
    Foreign::file_name(name).to_string()
}

/// The importance of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    Debug,
    Info,
    Warn,
    Error,
}

/// A line for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) level: Level,
    /// The word that identifies the kind of the line and gives it a message id.
    pub(crate) outcome: Option<Outcome>,
    pub(crate) bundle: Option<String>,
    /// A file that is no bundle.
    pub(crate) file: Option<String>,
    pub(crate) image: Option<String>,
    pub(crate) digest: Option<String>,
    pub(crate) text: String,
}

impl Line {
    pub(crate) fn new(level: Level, text: impl Into<String>) -> Line {
        Line {
            level,
            outcome: None,
            bundle: None,
            file: None,
            image: None,
            digest: None,
            text: text.into(),
        }
    }

    pub(crate) fn debug(text: impl Into<String>) -> Line {
        Line::new(Level::Debug, text)
    }

    pub(crate) fn info(text: impl Into<String>) -> Line {
        Line::new(Level::Info, text)
    }

    pub(crate) fn warn(text: impl Into<String>) -> Line {
        Line::new(Level::Warn, text)
    }

    pub(crate) fn error(text: impl Into<String>) -> Line {
        Line::new(Level::Error, text)
    }

    pub(crate) fn outcome(self, outcome: Outcome) -> Line {
        let outcome = Some(outcome);
        Line { outcome, ..self }
    }

    pub(crate) fn bundle(self, name: &OsStr) -> Line {
        let bundle = Some(shown(name));
        Line { bundle, ..self }
    }

    pub(crate) fn image(self, name: &str) -> Line {
        let image = Some(name.to_owned());
        Line { image, ..self }
    }

    pub(crate) fn digest(self, digest: &Digest) -> Line {
        let digest = Some(digest.to_string());
        Line { digest, ..self }
    }

    pub(crate) fn file(self, name: &OsStr) -> Line {
        let file = Some(shown(name));
        Line { file, ..self }
    }

    /// Returns the line at debug level, unless `is_told`.
    pub(crate) fn told(self, is_told: bool) -> Line {
        let level = if is_told { self.level } else { Level::Debug };
        Line { level, ..self }
    }
}

/// Keeps lines of one kind from flooding the log. An operator who puts a thousand files of another
/// kind into the folder has made one mistake. A containerd that comes and goes all night is one
/// trouble. Pure: the caller passes the time.
///
/// The first lines of a row are logged one by one. The others are counted, and the count is logged
/// when the row pauses, or each minute while it lasts. So the log gets at most one line more than
/// [`Row::MOST`] of a kind in a minute.
#[derive(Debug, Default)]
pub(crate) struct Row {
    last: Option<Instant>,
    told: u32,
    held_back: u32,
    /// Time of the first line that is held back.
    oldest: Option<Instant>,
    /// Time of the last count in the log.
    counted: Option<Instant>,
}

impl Row {
    /// Number of lines that are logged one by one.
    const MOST: u32 = 20;
    /// After this long without a line, the next line begins another row. Counts are logged no more
    /// often than that.
    const QUIET: Duration = Duration::from_secs(60);
    /// After this long without a line, the count of the lines held back is logged.
    const PAUSE: Duration = Duration::from_secs(2);

    /// Returns true if one more line may be logged by itself.
    pub(crate) fn admits(&mut self, now: Instant) -> bool {
        let since = self
            .last
            .replace(now)
            .map(|last| now.saturating_duration_since(last));
        if since.is_none_or(|since| since >= Self::QUIET) {
            self.told = 0;
        }
        let is_told = self.told < Self::MOST;
        if is_told {
            self.told += 1;
        } else {
            self.held_back += 1;
            self.oldest.get_or_insert(now);
        }
        is_told
    }

    /// Returns the time at which the count of the lines held back is due.
    fn due(&self) -> Option<Instant> {
        let (last, oldest) = (self.last?, self.oldest?);
        let due = (last + Self::PAUSE).min(oldest + Self::QUIET);
        Some(self.counted.map_or(due, |counted| due.max(counted + Self::QUIET)))
    }

    /// Returns the number of lines held back, if the count is due.
    fn count(&mut self, now: Instant) -> Option<u32> {
        self.due().filter(|due| *due <= now)?;
        self.counted = Some(now);
        self.rest()
    }

    /// Returns the number of lines held back, even if the count is not due.
    pub(crate) fn rest(&mut self) -> Option<u32> {
        self.oldest.take()?;
        Some(std::mem::take(&mut self.held_back))
    }
}

/// The kinds of lines that can come once for each file, or without end.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    /// Files whose import started.
    pub(crate) begun: Row,
    /// Files that are not imported yet, for a reason that may pass.
    pub(crate) delayed: Row,
    /// Files that were not imported, or only in part.
    pub(crate) refused: Row,
    /// Files that are no bundles by their content.
    pub(crate) ignored: Row,
    /// Files that left the folder.
    pub(crate) gone: Row,
    /// Connections to containerd that were made or lost.
    pub(crate) connection: Row,
}

impl Rows {
    /// Returns the time at which the next count is due.
    pub(crate) fn due(&self) -> Option<Instant> {
        let Rows {
            begun,
            delayed,
            refused,
            ignored,
            gone,
            connection,
        } = self;
        let rows = [begun, delayed, refused, ignored, gone, connection];
        rows.into_iter().filter_map(Row::due).min()
    }

    /// Returns the counts that are due, as lines.
    pub(crate) fn sum_up(&mut self, now: Instant) -> Vec<Line> {
        self.counts(|row| row.count(now))
    }

    /// Returns all counts that the log does not have yet, for the end of the log.
    pub(crate) fn end(&mut self) -> Vec<Line> {
        self.counts(Row::rest)
    }

    fn counts(&mut self, count_of: impl FnMut(&mut Row) -> Option<u32>) -> Vec<Line> {
        const HINT: &str = "`log.level: debug` names them";
        let Rows {
            begun,
            delayed,
            refused,
            ignored,
            gone,
            connection,
        } = self;
        let [begun, delayed, refused, ignored, gone, connection] =
            [begun, delayed, refused, ignored, gone, connection].map(count_of);
        let line = |level, text: String| Line::new(level, text);
        let text = |count: u32, one: &str, many: &str| match count {
            1 => format!("1 {one} ({HINT})"),
            _ => format!("{count} {many} ({HINT})"),
        };
        let lines = [
            begun.map(|count| {
                let text = text(count, "more import was started", "more imports were started");
                line(Level::Info, text)
            }),
            delayed.map(|count| {
                let text = text(
                    count,
                    "more file is not imported yet",
                    "more files are not imported yet",
                );
                line(Level::Info, text)
            }),
            refused.map(|count| {
                let text = text(
                    count,
                    "more file was not imported",
                    "more files were not imported",
                );
                line(Level::Warn, text)
            }),
            ignored.map(|count| {
                let text = text(count, "more file was ignored", "more files were ignored");
                line(Level::Info, text)
            }),
            gone.map(|count| {
                let text = text(count, "more bundle is gone", "more bundles are gone");
                line(Level::Info, text)
            }),
            connection.map(|count| {
                let changes = counted(count, "more change");
                let text = format!("containerd keeps connecting and disconnecting: {changes}");
                line(Level::Warn, text)
            }),
        ];
        lines.into_iter().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_row_is_cut_short_and_counted_and_a_later_one_is_told_again() {
        let now = Instant::now();
        let mut row = Row::default();
        let told = (0..1000).filter(|_| row.admits(now)).count();
        assert_eq!(told, 20);
        assert_eq!(row.count(now), None, "it may go on");
        assert_eq!(row.count(now + Row::PAUSE), Some(980));
        assert_eq!((row.due(), row.rest()), (None, None));
        assert!(!row.admits(now + Row::QUIET / 2));
        assert!(row.admits(now + Row::QUIET / 2 + Row::QUIET));
    }

    #[test]
    fn a_row_that_does_not_pause_is_counted_each_minute() {
        let now = Instant::now();
        let mut row = Row::default();
        let counts: Vec<u32> = (0..3600)
            .filter_map(|second| {
                let now = now + Duration::from_secs(second);
                row.admits(now);
                row.count(now)
            })
            .collect();
        assert!((55..=60).contains(&counts.len()), "{counts:?}");
        assert_eq!(counts.iter().sum::<u32>() + row.rest().unwrap_or(0) + 20, 3600);
    }

    #[test]
    fn a_line_keeps_what_it_is_about_and_is_for_debugging_only_when_it_is_not_told() {
        let name = OsStr::new("a\n.tar");
        let line = Line::warn("it failed").outcome(Outcome::Failed);
        let line = line.bundle(name).image("r.test/a:1").file(name);
        let wanted = Line {
            level: Level::Warn,
            outcome: Some(Outcome::Failed),
            bundle: Some(r"a\n.tar".to_owned()),
            file: Some(r"a\n.tar".to_owned()),
            image: Some("r.test/a:1".to_owned()),
            digest: None,
            text: "it failed".to_owned(),
        };
        assert_eq!(line, wanted);
        assert_eq!(line.clone().told(true), wanted);
        let level = Level::Debug;
        assert_eq!(line.told(false), Line { level, ..wanted });
        let levels = [Line::debug, Line::info, Line::warn, Line::error].map(|of| of("x").level);
        assert_eq!(levels, [Level::Debug, Level::Info, Level::Warn, Level::Error]);
    }

    #[test]
    fn lines_that_were_held_back_are_counted_by_kind_when_they_pause_and_at_the_end() {
        let now = Instant::now();
        let mut rows = Rows::default();
        let fill = |rows: &mut Rows, at: Instant| {
            let kinds = [
                &mut rows.begun,
                &mut rows.delayed,
                &mut rows.refused,
                &mut rows.ignored,
                &mut rows.gone,
                &mut rows.connection,
            ];
            for (row, more) in kinds.into_iter().zip(1..) {
                let told = (0..Row::MOST + more).filter(|_| row.admits(at)).count();
                assert!(told <= Row::MOST as usize);
            }
        };
        assert_eq!(rows.due(), None);
        fill(&mut rows, now);
        assert_eq!(rows.due(), Some(now + Row::PAUSE));
        assert_eq!(rows.sum_up(now), [], "they may go on");
        let summed = rows.sum_up(now + Row::PAUSE);
        let wanted = [
            (Level::Info, "1 more import was started (`log.level: debug` names"),
            (Level::Info, "2 more files are not imported yet"),
            (Level::Warn, "3 more files were not imported"),
            (Level::Info, "4 more files were ignored"),
            (Level::Info, "5 more bundles are gone"),
            (
                Level::Warn,
                "containerd keeps connecting and disconnecting: 6 more changes",
            ),
        ];
        assert_eq!(summed.len(), wanted.len());
        for (line, (level, text)) in summed.iter().zip(wanted) {
            assert!(line.level == level && line.text.starts_with(text), "{line:?}");
        }
        assert_eq!((rows.due(), rows.end()), (None, Vec::new()));
        let again = now + Row::PAUSE + Duration::from_secs(1);
        fill(&mut rows, again);
        assert_eq!(
            rows.due(),
            Some(now + Row::PAUSE + Row::QUIET),
            "a count each minute"
        );
        assert_eq!(rows.end().len(), wanted.len());
        assert_eq!(rows.due(), None);
    }

    #[test]
    fn a_row_begins_anew_after_a_quiet_minute() {
        let begin = Instant::now();
        for (pause, is_told) in [(Row::QUIET - Duration::from_millis(1), false), (Row::QUIET, true)] {
            let mut row = Row::default();
            while row.admits(begin) {}
            assert_eq!(row.admits(begin + pause), is_told, "after {pause:?}");
        }
    }

    proptest! {
        /// The bound that the log keeps, and that every line is logged or counted.
        #[test]
        fn a_minute_has_at_most_21_lines_of_a_kind(pauses in prop::collection::vec(0..5000_u64, 1..2000)) {
            let mut now = Instant::now();
            let (mut row, mut lines, accounted) = (Row::default(), Vec::new(), Cell::new(0));
            for pause in &pauses {
                let next = now + Duration::from_millis(*pause);
                if let Some(due) = row.due().filter(|due| *due < next) {
                    accounted.set(accounted.get() + row.count(due).unwrap());
                    lines.push(due);
                }
                now = next;
                if row.admits(now) {
                    accounted.set(accounted.get() + 1);
                    lines.push(now);
                }
            }
            let within = |start: &Instant| lines.iter().filter(|line| **line >= *start && **line < *start + Row::QUIET).count();
            prop_assert!(lines.iter().all(|start| within(start) <= 21));
            accounted.set(accounted.get() + row.rest().unwrap_or(0));
            prop_assert_eq!(accounted.get() as usize, pauses.len());
        }
    }
}
