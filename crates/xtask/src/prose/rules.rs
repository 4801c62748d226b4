//! The rules: pure functions of a passage's text.

/// Most words of a sentence. A colon begins a new count, since a list may follow it.
const WORDS: usize = 20;

/// Clauses that stand where the subject belongs.
const OPENINGS: [&str; 12] = [
    "what", "whatever", "who", "whoever", "whom", "whose", "how", "whether", "why", "which", "so that",
    "as to",
];
/// Words after `that` which make it a clause: "That it ends" is no subject, "That bundle" is one.
const AFTER_THAT: [&str; 10] = [
    "it", "they", "a", "an", "the", "no", "each", "every", "this", "there",
];
/// Words for persons and things that have a name.
const PRONOUNS: [&str; 16] = [
    "somebody",
    "someone",
    "nobody",
    "everybody",
    "everyone",
    "anybody",
    "anyone",
    "whoever",
    "whomever",
    "no one",
    "the one",
    "the ones",
    "one who",
    "one that",
    "those who",
    "such a one",
];
/// Phrases that hide who acts or that no native speaker writes.
const PHRASES: [&str; 41] = [
    "it is looked",
    "it was looked",
    "it is told",
    "it was told",
    "it is said",
    "it was said",
    "it is asked",
    "it was asked",
    "it is tried",
    "it was tried",
    "it is waited",
    "it was waited",
    "it is begun",
    "it was begun",
    "it is known",
    "waited for by",
    "is looked whether",
    "be looked whether",
    "looked whether",
    "told of",
    "taken for gone",
    "at its word",
    "at his word",
    "comes to nothing",
    "come to nothing",
    "came to nothing",
    "come of it",
    "comes of it",
    "be at it",
    "is at it",
    "got at",
    "begun with",
    "begins with it",
    "held against",
    "holds against",
    "cannot be had",
    "could be had",
    "be had",
    "is asked for",
    "the time being",
    "beside the loop",
];
/// The first person, which messages do without.
const FIRST_PERSON: [&str; 5] = ["we", "our", "ours", "us", "my"];
/// Endings with a full stop that end no sentence.
const ABBREVIATIONS: [&str; 7] = ["e.g.", "i.e.", "etc.", "vs.", "no.", "cf.", "approx."];

/// The broken rules of a text: where it breaks one, the rule, and the sentence.
pub(super) fn broken(text: &str, is_message: bool) -> Vec<(usize, String, String)> {
    let mut found = Vec::new();
    for (offset, sentence) in sentences(text) {
        let words = words(sentence);
        let mut add = |rule: String| found.push((offset, rule, sentence.to_owned()));
        if !sentence.ends_with('?')
            && let Some(opening) = opening(&words)
        {
            add(format!("\"{opening}\" opens the sentence"));
        }
        for word in PRONOUNS {
            if has(&words, word) {
                add(format!("\"{word}\" stands for a name"));
            }
        }
        for phrase in PHRASES {
            if has(&words, phrase) {
                add(format!("\"{phrase}\" hides the actor or the fact"));
            }
        }
        if is_message && let Some(word) = FIRST_PERSON.iter().find(|word| has(&words, word)) {
            add(format!("\"{word}\" in a message"));
        }
        if sentence.contains("; ") {
            add("a semicolon joins two thoughts".to_owned());
        }
        if let Some(count) = longest(sentence).filter(|count| *count > WORDS) {
            add(format!("{count} words"));
        }
    }
    found
}

/// The sentences and where they begin.
fn sentences(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut start = 0;
    for (at, _) in text.match_indices([' ', '\n']) {
        let before = text[start..at].trim_end_matches(['"', '\'', ')', '*', '_']);
        let is_abbreviated = ABBREVIATIONS
            .iter()
            .any(|ending| before.to_ascii_lowercase().ends_with(ending));
        if before.ends_with(['.', '!', '?']) && !before.ends_with("..") && !is_abbreviated {
            found.push((start, text[start..at].trim()));
            start = at + 1;
        }
    }
    found.push((start, text[start..].trim()));
    found.retain(|(_, sentence)| !sentence.is_empty());
    found
}

/// The words in lower case without the marks around them.
fn words(sentence: &str) -> Vec<String> {
    let marks = |letter: char| !letter.is_alphanumeric();
    let words = sentence.split_whitespace().map(|word| word.trim_matches(marks));
    words
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .collect()
}

fn opening(words: &[String]) -> Option<&'static str> {
    let begins = |opening: &&&str| {
        let count = opening.split(' ').count();
        words
            .get(..count)
            .is_some_and(|first| first.join(" ") == **opening)
    };
    let second = words.get(1).map(String::as_str).unwrap_or_default();
    let clause = words.first().is_some_and(|first| first == "that") && AFTER_THAT.contains(&second);
    OPENINGS.iter().find(begins).copied().or(clause.then_some("that"))
}

fn has(words: &[String], phrase: &str) -> bool {
    let phrase: Vec<_> = phrase.split(' ').collect();
    words
        .windows(phrase.len())
        .any(|some| some.iter().zip(&phrase).all(|(word, of)| word == of))
}

/// Words in the longest part of a sentence between colons. A list of pieces of code counts as one
/// word.
fn longest(sentence: &str) -> Option<usize> {
    let count = |part: &str| {
        let mut words = words(part);
        words.dedup_by(|next, before| next == "x" && before == "x");
        words.len()
    };
    sentence.split(": ").map(count).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule_finds_its_offence_and_nothing_else() {
        let long = "word ".repeat(21);
        let cases = [
            ("What takes long happens in jobs.", Some("opens")),
            ("That it ends is known.", Some("opens")),
            ("How many images does it hold?", None),
            ("That bundle is skipped.", None),
            ("Somebody removed the image.", Some("name")),
            ("The bundle is the one that came last.", Some("name")),
            ("One of the images failed.", None),
            ("Here it was looked whether the image is there.", Some("hides")),
            ("The import ends; the lease goes.", Some("semicolon")),
            (long.as_str(), Some("words")),
            (
                "A list of ten words stands here and then: ten more words, which are no part of the first.",
                None,
            ),
            ("The daemon retries, e.g. after a minute.", None),
        ];
        for (text, expected) in cases {
            let found = broken(text, false);
            assert_eq!(found.is_empty(), expected.is_none(), "{text}: {found:?}");
            if let Some(expected) = expected {
                assert!(
                    found.iter().any(|(_, rule, _)| rule.contains(expected)),
                    "{text}: {found:?}"
                );
            }
        }
    }

    #[test]
    fn messages_do_without_the_first_person() {
        assert_eq!(broken("the lease is ours", true).len(), 1);
        assert_eq!(broken("the lease is ours", false).len(), 0);
    }

    #[test]
    fn a_sentence_ends_at_its_full_stop() {
        let found: Vec<_> = sentences("Reads it. (See 1.6.) containerd's own waits! Done?")
            .into_iter()
            .map(|(_, sentence)| sentence)
            .collect();
        assert_eq!(
            found,
            ["Reads it.", "(See 1.6.)", "containerd's own waits!", "Done?"]
        );
    }
}
