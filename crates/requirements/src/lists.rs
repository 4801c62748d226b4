//! Plain lists: references between white space, as `k0s airgap list-images`, `xargs` and scripts
//! with `crictl` write them.

/// A reference of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Number of its line, from 1.
    pub line: usize,
    /// The reference as written.
    pub reference: String,
}

/// Returns the references of a list. A word that begins with `#` ends its line.
#[must_use]
pub fn parse(text: &str) -> Vec<Entry> {
    let lines = text.trim_start_matches('\u{feff}').lines().enumerate();
    lines
        .flat_map(|(at, line)| {
            let words = line.split_whitespace().take_while(|word| !word.starts_with('#'));
            words.map(move |word| Entry {
                line: at + 1,
                reference: word.to_owned(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_a_reference_except_comments() {
        let text =
            "\u{feff}# ours\r\n\r\n  quay.io/a/b:1 \r\nbusybox # small: a b\n#x\nc@sha256:00 d\t e\u{b}f#1";
        let found: Vec<_> = parse(text)
            .into_iter()
            .map(|entry| (entry.line, entry.reference))
            .collect();
        let expected = [
            (3, "quay.io/a/b:1"),
            (4, "busybox"),
            (6, "c@sha256:00"),
            (6, "d"),
            (6, "e"),
            (6, "f#1"),
        ];
        assert_eq!(found, expected.map(|(number, text)| (number, text.to_owned())));
        assert!(parse("").is_empty());
    }
}
