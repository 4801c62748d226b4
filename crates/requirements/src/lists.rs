//! Plain lists: one reference on each line, as `k0s airgap list-images` and scripts with `crictl`
//! write them.

/// A line of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Number of the line, from 1.
    pub number: usize,
    /// The reference as written.
    pub reference: String,
}

/// Returns the references of a list. It ignores blank lines, lines that begin with `#`, and text
/// after a blank and `#`.
#[must_use]
pub fn parse(text: &str) -> Vec<Line> {
    let lines = text.trim_start_matches('\u{feff}').lines().enumerate();
    lines
        .filter_map(|(at, line)| {
            let line = line.split(" #").next().unwrap_or_default().trim();
            let says_something = !line.is_empty() && !line.starts_with('#');
            says_something.then(|| Line {
                number: at + 1,
                reference: line.to_owned(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_a_reference_except_blank_ones_and_comments() {
        let text = "\u{feff}# ours\r\n\r\n  quay.io/a/b:1 \r\nbusybox # small\n#x\nc@sha256:00";
        let found: Vec<_> = parse(text)
            .into_iter()
            .map(|line| (line.number, line.reference))
            .collect();
        let expected = [(3, "quay.io/a/b:1"), (4, "busybox"), (6, "c@sha256:00")];
        assert_eq!(found, expected.map(|(number, text)| (number, text.to_owned())));
        assert!(parse("").is_empty());
    }
}
