//! Answers go to standard output, and only from here; talk goes to standard error through the log.

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

/// Text for people, made of whole lines.
///
/// Much of it are the words of an archive, so nothing that is put into a line ends it, moves a
/// cursor or turns the direction of writing around: it is [`Foreign`], and printed escaped.
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

/// A colour of text, as ECMA-48, 8.3.117 (SGR) has it.
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

/// Adds a line, given as to `format!`, to a [`Page`].
macro_rules! line {
    ($page:expr, $($told:tt)+) => {
        $page.line(format_args!($($told)+))
    };
}
pub(crate) use line;

impl Page {
    /// An empty one.
    pub(crate) fn new() -> Page {
        Page::default()
    }

    /// Several lines that this program made of nothing foreign, or of what is escaped already.
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

    /// Adds the lines of another one.
    pub(crate) fn add(&mut self, other: &Page) {
        self.0.extend(other.0.iter().cloned());
    }

    /// How many lines it has.
    pub(crate) fn lines(&self) -> usize {
        self.0.len()
    }

    /// Drops all lines but the first few.
    pub(crate) fn cut(&mut self, lines: usize) {
        self.0.truncate(lines);
    }

    /// Gives a part of the line at `line` a colour, where it is shown on a terminal that has
    /// colours: `length` characters from `begin` on. A line that is not there, or is shorter, has
    /// no colour beyond its end.
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

    /// With its colours, each line ended by `end`.
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

/// Prints text. A reader that went away (a closed pipe) is no error.
pub(crate) fn text(page: &Page) -> io::Result<()> {
    raw(page.shown(has_colours(&io::stdout()), "\n").as_bytes())
}

/// Whether a stream shows colours and its user wants them: a terminal that is not dumb, without
/// `NO_COLOR` (no-color.org).
pub(crate) fn has_colours(stream: &impl IsTerminal) -> bool {
    let is_refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    stream.is_terminal() && !is_dumb() && !is_refused
}

fn is_dumb() -> bool {
    std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb")
}

/// Prints bytes as they are: scripts and pages that this program made of nothing foreign.
pub(crate) fn raw(bytes: &[u8]) -> io::Result<()> {
    forgive_closed_pipe(io::stdout().lock().write_all(bytes))
}

/// Says what is wrong before there is a log.
pub(crate) fn complain(text: &str) -> io::Result<()> {
    let page = Page::of_lines(&format!("airgapd: {text}"));
    forgive_closed_pipe(io::stderr().lock().write_all(page.to_string().as_bytes()))
}

/// Takes back the line that the cursor is on.
const TAKE_BACK: &str = "\r\u{1b}[K";

/// Whether the last line on standard error is one that shows how far something has come.
static SHOWS_PROGRESS: AtomicBool = AtomicBool::new(false);

/// Shows how far something has come, in place of what was shown before; an empty text takes it
/// away. For a terminal on standard error only.
pub(crate) fn progress(text: &str) -> io::Result<()> {
    let mut out = io::stderr().lock();
    SHOWS_PROGRESS.store(!text.is_empty(), Ordering::Relaxed);
    forgive_closed_pipe(out.write_all(format!("{TAKE_BACK}{}", Foreign::new(text)).as_bytes()))
}

/// The characters before a line on a terminal: they take back a line that shows how far something
/// has come.
pub(crate) fn on_a_new_line() -> &'static str {
    match SHOWS_PROGRESS.swap(false, Ordering::Relaxed) {
        true => TAKE_BACK,
        false => "",
    }
}

/// How many characters fit into a line of the terminal on standard error; what is written into the
/// last column may begin a new line.
pub(crate) fn terminal_width() -> usize {
    size_of(io::stderr()).0
}

/// How many characters fit into a line of a terminal, and how many lines it has.
fn size_of(stream: impl AsFd) -> (usize, usize) {
    let size = rustix::termios::tcgetwinsize(stream).ok();
    let known = |cells: u16, unknown: usize| match usize::from(cells) {
        0 => unknown,
        cells => cells,
    };
    let columns = size.as_ref().map_or(80, |size| known(size.ws_col, 80));
    (columns - 1, size.map_or(24, |size| known(size.ws_row, 24)))
}

/// How wide text for people is, in characters: as wide as the terminal on standard output, or
/// [`WIDTH`] where there is none.
pub(crate) fn width() -> usize {
    match io::stdout().is_terminal() {
        true => size_of(io::stdout()).0.max(NARROWEST),
        false => WIDTH,
    }
}

/// Text on a narrower terminal is as if it were so wide.
const NARROWEST: usize = 30;

/// The whole terminal on standard output, for one command: its alternate screen, which is given
/// back when this is dropped.
#[derive(Debug)]
pub(crate) struct Screen(());

impl Screen {
    /// Takes the screen; `None` where standard output is no terminal, or a dumb one. (xterm's
    /// private modes 1049 and 25: the alternate screen, the cursor.)
    pub(crate) fn take() -> Option<Screen> {
        if !io::stdout().is_terminal() || is_dumb() {
            return None;
        }
        raw(b"\x1b[?1049h\x1b[?25l").ok().map(|()| Screen(()))
    }

    /// How many lines fit. The last one stays free for the cursor.
    pub(crate) fn lines(&self) -> usize {
        size_of(io::stdout()).1.saturating_sub(1).max(1)
    }

    /// Shows text in place of all that is there. It is written over and not cleared, so that
    /// nothing flickers.
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

/// Whether standard output may still be read. The other end of a pipe may be gone, and a program
/// that has nothing to write does not notice.
pub(crate) fn is_read() -> bool {
    let stdout = io::stdout();
    let mut ends = [PollFd::new(&stdout, PollFlags::empty())];
    let _ = rustix::event::poll(&mut ends, Some(&Timespec::default()));
    let gone = PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL;
    !ends[0].revents().intersects(gone)
}

/// Prints a report on standard error, where the bundle itself goes to standard output.
pub(crate) fn aside(page: &Page) -> io::Result<()> {
    forgive_closed_pipe(io::stderr().lock().write_all(page.to_string().as_bytes()))
}

/// One JSON document, as it is printed.
pub(crate) fn document(document: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut out = to_json(document, PrettyFormatter::new())?;
    out.push(b'\n');
    Ok(out)
}

/// Prints one JSON document.
pub(crate) fn json(content: &impl Serialize) -> io::Result<()> {
    raw(&document(content)?)
}

/// Prints one JSON document on a line of its own.
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

/// How wide text for people is where it is not shown on a terminal, in characters.
pub(crate) const WIDTH: usize = 100;

/// Adds text that begins with `label` and goes on below itself where it does not fit: between words
/// where that is possible, and within them (digests, long names) where it is not.
pub(crate) fn paragraph(page: &mut Page, label: &str, text: &str) {
    paragraph_of(page, label, text, width());
}

/// The same for lines of so many characters.
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
