//! Lists of image records in parts, by the ends of their names, for namespaces whose list is too long for one message.
//!
//! containerd answers a list with one message of at most 16 MiB and knows no pages, only filters. So a list that does not
//! fit is asked for in two parts, and each of them again, until all fit. The parts follow the last characters of the
//! names: names share their beginnings (a registry's host, a repository) and differ at their ends, in a tag or a digest.

/// What no character is below.
const FIRST: char = '\0';
/// What no character is above.
const LAST: char = char::MAX;

/// Where a range of characters is cut, the first that lies within it: most names end in a hexadecimal digit, and of those
/// that end in another letter or in a mark there are few.
const CUTS: [char; 13] = [
    '8', 'g', '4', 'c', '2', '6', 'a', 'e', 'n', '{', '0', ':', '\u{80}',
];

/// Some of the names in a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Those that end in `suffix`, and before that in a character from `first` to `last`.
    Ending { first: char, last: char, suffix: String },
    /// This one.
    Named(String),
}

impl Part {
    /// All names; none is empty.
    pub(crate) fn all() -> Part {
        Part::before(String::new())
    }

    /// The names that end in `suffix` and are longer.
    fn before(suffix: String) -> Part {
        Part::Ending {
            first: FIRST,
            last: LAST,
            suffix,
        }
    }

    /// The part as a filter of containerd's; none for all names.
    pub(crate) fn filter(&self) -> Option<String> {
        match self {
            Part::Ending { first, last, suffix } if (*first, *last, suffix.as_str()) == (FIRST, LAST, "") => {
                None
            }
            Part::Ending { first, last, suffix } => Some(format!(
                "name~=\"[{}-{}]{}$\"",
                escaped(*first),
                escaped(*last),
                pattern(suffix)
            )),
            Part::Named(name) => Some(format!("name~=\"^{}$\"", pattern(name))),
        }
    }

    /// Two parts that have the names of this one between them, none twice; `None` for a single name. A single name comes
    /// last, and is to be asked for first: a containerd that finds every list too long finds that one so, too, and longer
    /// and longer ends are not tried for ever.
    pub(crate) fn halves(self) -> Option<[Part; 2]> {
        match self {
            Part::Named(_) => None,
            Part::Ending { first, last, suffix } if first == last => {
                let suffix = format!("{first}{suffix}");
                Some([Part::before(suffix.clone()), Part::Named(suffix)])
            }
            Part::Ending { first, last, suffix } => {
                let cut = cut(first, last);
                let lower = Part::Ending {
                    first,
                    last: below(cut),
                    suffix: suffix.clone(),
                };
                let upper = Part::Ending {
                    first: cut,
                    last,
                    suffix,
                };
                Some([lower, upper])
            }
        }
    }
}

/// The character that the upper half begins with; above `first` and not above `last`.
fn cut(first: char, last: char) -> char {
    let known = CUTS.into_iter().find(|cut| first < *cut && *cut <= last);
    known.unwrap_or_else(|| {
        let middle = (u32::from(first) + u32::from(last)).div_ceil(2);
        // Between these two ranges are the surrogates, which are no characters.
        char::from_u32(middle).unwrap_or('\u{e000}')
    })
}

/// The character before one that is not the first.
fn below(character: char) -> char {
    char::from_u32(u32::from(character) - 1).unwrap_or('\u{d7ff}')
}

/// A regular expression for exactly this text, in which nothing has a meaning for containerd's filters.
fn pattern(text: &str) -> String {
    text.chars().map(escaped).collect()
}

/// A character by its number; within quotes a backslash is written twice.
fn escaped(character: char) -> String {
    format!("\\\\x{{{:x}}}", u32::from(character))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has(part: &Part, name: &str) -> bool {
        match part {
            Part::Named(only) => only == name,
            Part::Ending { first, last, suffix } => name
                .strip_suffix(suffix.as_str())
                .and_then(|rest| rest.chars().next_back())
                .is_some_and(|character| (*first..=*last).contains(&character)),
        }
    }

    /// Splits until no part has two names, and gives the parts that have one.
    fn leaves(names: &[&str]) -> Vec<Part> {
        let mut found = Vec::new();
        let mut parts = vec![Part::all()];
        while let Some(part) = parts.pop() {
            match names.iter().filter(|name| has(&part, name)).count() {
                0 => {}
                1 => found.push(part),
                _ => parts.extend(part.halves().expect("a single name stands once")),
            }
        }
        found
    }

    #[test]
    fn every_name_is_in_one_part_however_alike_they_are() {
        let names = [
            "a",
            "ba",
            "aa",
            "\0a",
            "\u{10ffff}a",
            "\u{d7ff}",
            "\u{e000}",
            "ü",
            "x\n",
            "x\"",
            "x\\",
            "x$",
            "{",
            "z",
            "~",
            "registry.test/app:1",
            "registry.test/app:2",
            "registry.test/app:latest",
            "registry.test/b:latest",
        ];
        let found = leaves(&names);
        assert_eq!(found.len(), names.len());
        for name in names {
            let holders = found.iter().filter(|part| has(part, name)).count();
            assert_eq!(holders, 1, "{name:?}");
        }
    }

    #[test]
    fn halves_are_never_empty_ranges_and_end_at_single_characters() {
        let mut parts = vec![Part::all()];
        let mut singles = 0;
        while let Some(part) = parts.pop() {
            let Part::Ending { first, last, suffix } = &part else {
                panic!("{part:?}");
            };
            assert!(first <= last && suffix.is_empty(), "{part:?}");
            if first == last {
                singles += 1;
            } else {
                parts.extend(part.halves().expect("it is a range"));
            }
        }
        assert_eq!(singles, 0x11_0000 - 0x800);
    }

    #[test]
    fn filters_have_nothing_in_them_that_containerd_would_read_otherwise() {
        assert_eq!(Part::all().filter(), None);
        let named = Part::Named("a\"".to_owned());
        assert_eq!(named.filter().as_deref(), Some(r#"name~="^\\x{61}\\x{22}$""#));
        let ending = Part::Ending {
            first: '8',
            last: 'f',
            suffix: "$".to_owned(),
        };
        assert_eq!(
            ending.filter().as_deref(),
            Some(r#"name~="[\\x{38}-\\x{66}]\\x{24}$""#)
        );
    }
}
