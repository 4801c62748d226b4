//! Answers of commands. They go to standard output, and only from here. Everything else goes to
//! standard error through the log.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use basics::Foreign;
pub(crate) use basics::bytes;
pub(crate) use node::json::to_json;
use rustix::event::{PollFd, PollFlags, Timespec};
use serde::Serialize;
use serde_json::ser::{CompactFormatter, PrettyFormatter};

/// Text for people, in whole lines.
///
/// Much of the text comes from archives. So each line is [`Foreign`] and printed escaped: no text
/// in it can end the line, move the cursor or change the direction of writing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Page(Vec<Line>);

/// One line of a page, escaped.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    text: String,
    painted: Option<Painted>,
}

/// A part of a line that has a colour on terminals, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Painted {
    begin: usize,
    length: usize,
    colour: Colour,
}

/// A colour of text, by ECMA-48, 8.3.117 (SGR).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Colour {
    Red,
    Green,
    Yellow,
    Cyan,
}

impl Colour {
    fn sgr(self) -> &'static str {
        match self {
            Colour::Red => "\u{1b}[31m",
            Colour::Green => "\u{1b}[32m",
            Colour::Yellow => "\u{1b}[33m",
            Colour::Cyan => "\u{1b}[36m",
        }
    }
}

/// Adds a line to a [`Page`], with the arguments of `format!`.
macro_rules! line {
    ($page:expr, $($told:tt)+) => {
        $page.line(format_args!($($told)+))
    };
}
pub(crate) use line;

impl Page {
    /// Returns an empty page.
    pub(crate) fn new() -> Page {
        Page::default()
    }

    /// Returns a page of lines without foreign text, or with text that is already escaped.
    pub(crate) fn of_lines(text: &str) -> Page {
        let mut page = Page::new();
        text.lines().for_each(|text| line!(page, "{text}"));
        page
    }

    /// Adds one line.
    pub(crate) fn line(&mut self, told: fmt::Arguments<'_>) {
        self.push(told.to_string().trim_end());
    }

    /// Adds an empty line.
    pub(crate) fn gap(&mut self) {
        self.push("");
    }

    /// Adds the lines of another page.
    pub(crate) fn add(&mut self, other: &Page) {
        self.0.extend(other.0.iter().cloned());
    }

    /// Returns the number of lines.
    pub(crate) fn lines(&self) -> usize {
        self.0.len()
    }

    /// Drops all lines after the first `lines`.
    pub(crate) fn cut(&mut self, lines: usize) {
        self.0.truncate(lines);
    }

    /// Colours `length` characters of the line at `line`, from `begin`, on a terminal with colours.
    /// A missing line is ignored, and a shorter line is coloured up to its end.
    pub(crate) fn paint(&mut self, line: usize, begin: usize, length: usize, colour: Colour) {
        if let Some(line) = self.0.get_mut(line) {
            line.painted = Some(Painted {
                begin,
                length,
                colour,
            });
        }
    }

    fn push(&mut self, line: &str) {
        self.0.push(Line {
            text: Foreign::new(line).to_string(),
            painted: None,
        });
    }

    /// Returns the text with its colours, each line followed by `end`.
    fn shown(&self, has_colours: bool, end: &str) -> String {
        let mut shown = String::new();
        for Line { text, painted } in &self.0 {
            match painted.filter(|_| has_colours) {
                Some(Painted {
                    begin,
                    length,
                    colour,
                }) => {
                    let part = |from: usize, count: usize| text.chars().skip(from).take(count);
                    shown.extend(part(0, begin));
                    shown.push_str(colour.sgr());
                    shown.extend(part(begin, length));
                    shown.push_str("\u{1b}[0m");
                    shown.extend(part(begin.saturating_add(length), usize::MAX));
                }
                None => shown.push_str(text),
            }
            shown.push_str(end);
        }
        shown
    }
}

impl fmt::Display for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown(false, "\n"))
    }
}

/// Prints text. A closed pipe is no error.
pub(crate) fn text(page: &Page) -> io::Result<()> {
    raw(page.shown(has_colours(&io::stdout()), "\n").as_bytes())
}

/// Returns true if a stream shows colours and its user wants them: a terminal that is not dumb,
/// without `NO_COLOR` (no-color.org).
pub(crate) fn has_colours(stream: &impl IsTerminal) -> bool {
    let is_refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    stream.is_terminal() && !is_dumb() && !is_refused
}

fn is_dumb() -> bool {
    std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb")
}

/// Prints bytes unchanged: scripts and pages without foreign text.
pub(crate) fn raw(bytes: &[u8]) -> io::Result<()> {
    forgive_closed_pipe(io::stdout().lock().write_all(bytes))
}

/// Prints an error before the log is set up.
pub(crate) fn complain(text: &str) -> io::Result<()> {
    let page = Page::of_lines(&format!("airgapd: {text}"));
    forgive_closed_pipe(io::stderr().lock().write_all(page.to_string().as_bytes()))
}

/// Erases the line of the cursor.
const TAKE_BACK: &str = "\r\u{1b}[K";

/// True if the last line on standard error shows progress.
static SHOWS_PROGRESS: AtomicBool = AtomicBool::new(false);

/// Shows progress in place of the previous progress line. An empty text removes it. This is for a
/// terminal on standard error only.
pub(crate) fn progress(text: &str) -> io::Result<()> {
    let mut out = io::stderr().lock();
    SHOWS_PROGRESS.store(!text.is_empty(), Ordering::Relaxed);
    forgive_closed_pipe(out.write_all(format!("{TAKE_BACK}{}", Foreign::new(text)).as_bytes()))
}

/// Returns the characters before a line on a terminal, which erase a progress line.
pub(crate) fn on_a_new_line() -> &'static str {
    match SHOWS_PROGRESS.swap(false, Ordering::Relaxed) {
        true => TAKE_BACK,
        false => "",
    }
}

/// Returns the number of characters that fit into a line of the terminal on standard error. The
/// last column stays free, since a character there may start a new line.
pub(crate) fn terminal_width() -> usize {
    size_of(io::stderr()).0
}

/// Returns the number of characters that fit into a line of a terminal, and its number of lines.
fn size_of(stream: impl AsFd) -> (usize, usize) {
    let size = rustix::termios::tcgetwinsize(stream).ok();
    let known = |cells: u16, unknown: usize| match usize::from(cells) {
        0 => unknown,
        cells => cells,
    };
    let columns = size.as_ref().map_or(80, |size| known(size.ws_col, 80));
    (columns - 1, size.map_or(24, |size| known(size.ws_row, 24)))
}

/// Returns the width of text for people, in characters: that of the terminal on standard output, or
/// [`WIDTH`] without one.
pub(crate) fn width() -> usize {
    match io::stdout().is_terminal() {
        true => size_of(io::stdout()).0.max(NARROWEST),
        false => WIDTH,
    }
}

/// Least width of text, in characters, even on a narrower terminal.
const NARROWEST: usize = 30;

/// The alternate screen of the terminal on standard output. A drop returns to the normal screen.
#[derive(Debug)]
pub(crate) struct Screen(());

impl Screen {
    /// Switches to the alternate screen. Returns `None` if standard output is not a terminal, or a
    /// dumb one. (xterm's private modes 1049 and 25: the alternate screen, the cursor.)
    pub(crate) fn take() -> Option<Screen> {
        if !io::stdout().is_terminal() || is_dumb() {
            return None;
        }
        raw(b"\x1b[?1049h\x1b[?25l").ok().map(|()| Screen(()))
    }

    /// Returns the number of lines that fit. The last line stays free for the cursor.
    pub(crate) fn lines(&self) -> usize {
        size_of(io::stdout()).1.saturating_sub(1).max(1)
    }

    /// Shows a page in place of the previous page. It overwrites the screen without clearing it
    /// first, so that it does not flicker.
    pub(crate) fn show(&self, page: &Page) -> io::Result<()> {
        let text = page.shown(has_colours(&io::stdout()), "\u{1b}[K\n");
        raw(format!("\u{1b}[H{text}\u{1b}[J").as_bytes())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = raw(b"\x1b[?25h\x1b[?1049l");
    }
}

/// Returns true if a reader of standard output may still exist. The other end of a pipe may be
/// closed, and a program that writes nothing does not notice.
pub(crate) fn is_read() -> bool {
    let stdout = io::stdout();
    let mut ends = [PollFd::new(&stdout, PollFlags::empty())];
    let _ = rustix::event::poll(&mut ends, Some(&Timespec::default()));
    let gone = PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL;
    !ends[0].revents().intersects(gone)
}

/// Prints a report on standard error, for commands that write a bundle to standard output.
pub(crate) fn aside(page: &Page) -> io::Result<()> {
    forgive_closed_pipe(io::stderr().lock().write_all(page.to_string().as_bytes()))
}

/// Returns a JSON document as it is printed.
pub(crate) fn document(document: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut out = to_json(document, PrettyFormatter::new())?;
    out.push(b'\n');
    Ok(out)
}

/// Prints one JSON document.
pub(crate) fn json(content: &impl Serialize) -> io::Result<()> {
    raw(&document(content)?)
}

/// Prints a JSON document as one line.
pub(crate) fn json_line(document: &impl Serialize) -> io::Result<()> {
    let mut out = to_json(document, CompactFormatter)?;
    out.push(b'\n');
    raw(&out)
}

fn forgive_closed_pipe(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Width of text for people without a terminal, in characters.
pub(crate) const WIDTH: usize = 100;

/// Adds text after `label` and wraps it with the same indentation. It breaks lines between words if
/// possible, and within long words (digests, names) otherwise.
pub(crate) fn paragraph(page: &mut Page, label: &str, text: &str) {
    paragraph_of(page, label, text, width());
}

/// Adds the same with lines of `width` characters.
fn paragraph_of(page: &mut Page, label: &str, text: &str, width: usize) {
    let indent = label.chars().count();
    let room = width.saturating_sub(indent).max(20);
    let text = Foreign::new(text).to_string();
    let mut line = String::new();
    let mut begin = label.to_owned();
    let mut end = |line: &mut String| {
        page.push(format!("{begin}{}", line.trim_end()).as_str());
        begin = " ".repeat(indent);
        line.clear();
    };
    for word in text.split(' ') {
        let mut word: Vec<char> = word.chars().collect();
        let used = line.chars().count();
        if used > 0 && used + word.len() > room {
            end(&mut line);
        }
        while word.len() > room {
            line.extend(word.drain(..room));
            end(&mut line);
        }
        line.extend(word);
        line.push(' ');
    }
    end(&mut line);
}

#[cfg(test)]
mod tests {
    use basics::is_visible;

    use super::*;

    #[test]
    fn nothing_that_is_put_into_a_line_ends_it_or_drives_a_terminal() {
        let mut page = Page::new();
        line!(page, "{}  {}", "done", "new\nline.tar");
        paragraph(&mut page, "  why  ", "a\nb \u{202e}c \u{9b}1m");
        assert_eq!(
            page.to_string(),
            "done  new\\nline.tar\n  why  a\\nb \\u{202e}c \\u{9b}1m\n"
        );
    }

    #[test]
    fn a_colour_is_around_its_part_of_the_line_and_nowhere_else() {
        let mut page = Page::new();
        line!(page, "{}", "f\u{f6}\u{f6}  done  \u{1b}[1m");
        page.paint(0, 5, 4, Colour::Green);
        page.paint(1, 0, 4, Colour::Red);
        assert_eq!(
            page.shown(true, "|"),
            "f\u{f6}\u{f6}  \u{1b}[32mdone\u{1b}[0m  \\u{1b}[1m|"
        );
        page.paint(0, 5, usize::MAX, Colour::Green);
        assert!(page.shown(true, "|").ends_with("\\u{1b}[1m\u{1b}[0m|"));
        assert_eq!(page.to_string(), "f\u{f6}\u{f6}  done  \\u{1b}[1m\n");
    }

    #[test]
    fn json_escapes_what_is_not_to_be_seen_and_reads_back_the_same() {
        let name = "new\nline \u{202e}\u{9b}\u{7f}\u{2028}\u{e0001} gr\u{f6}\u{df}e \\ \"";
        for form in [true, false] {
            let document = serde_json::json!({"name": name, "list": [1, {}], name: null});
            let made = match form {
                true => to_json(&document, PrettyFormatter::new()),
                false => to_json(&document, CompactFormatter),
            };
            let made = String::from_utf8(made.unwrap()).unwrap();
            assert!(made.chars().all(|c| c == '\n' || is_visible(c)), "{made}");
            assert!(
                made.contains("\\u202e\\u009b\\u007f\\u2028\\udb40\\udc01 gr\u{f6}\u{df}e"),
                "{made}"
            );
            assert_eq!(
                serde_json::from_str::<serde_json::Value>(&made).unwrap(),
                document
            );
        }
    }

    #[test]
    fn paragraphs_fit_a_screen_and_lose_nothing() {
        let long = "x".repeat(250);
        for text in [
            "",
            "short",
            &"many words ".repeat(40),
            &long,
            &format!("a {long} b"),
        ] {
            for label in ["", "  digest   "] {
                let mut out = Page::new();
                paragraph_of(&mut out, label, text, WIDTH);
                let out = out.to_string();
                assert!(out.lines().all(|line| line.chars().count() <= WIDTH), "{out}");
                let kept = |text: &str| text.split_whitespace().collect::<String>();
                assert_eq!(kept(&out), kept(label) + &kept(text));
            }
        }
        let mut out = Page::new();
        paragraph_of(&mut out, "  a  ", &"word ".repeat(30), WIDTH);
        let out = out.to_string();
        assert!(out.lines().nth(1).unwrap().starts_with("     word"), "{out}");
    }

    #[test]
    fn bytes_are_shown_in_the_largest_unit_below_a_thousand() {
        let rows = [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (1_540, "1.5 kB"),
            (999_999, "999.9 kB"),
            (1_000_000, "1.0 MB"),
            (2_147_483_648, "2.1 GB"),
            (u64::MAX, "18446.7 PB"),
        ];
        for (count, wanted) in rows {
            assert_eq!(bytes(count), wanted, "{count}");
        }
    }
}
