//! Lists of image records in parts, for namespaces whose list is too long for one message.
//!
//! containerd answers a list with one message of at most 16 MiB. It knows filters, but no pages.
//! Each request costs it a walk over all records of the namespace. An answer that does not fit
//! costs more than an answer that fits. containerd's refusal gives the size of the answer, so the
//! client can compute how many parts to ask for.
//!
//! The parts follow the last characters of the names. Names share their beginnings (a registry's
//! host, a repository) and differ at their ends, in a tag or a digest. The ends may be alike too
//! (`:latest`). If the targets differ, the parts then follow the first digits of their digests.

use crate::error::Oversize;

/// The digits of a digest.
const HEX: [char; 16] = [
    '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f',
];
/// Number of digits of a digest that tell parts apart. 256 parts of 8 MiB are more than any node
/// has.
const DIGITS: usize = 2;

/// Divisor of the largest message that gives the intended size of a part. Parts differ in size, and
/// one part is in memory at a time.
const AIM: u64 = 2;

/// The lowest character.
const FIRST: char = '\0';
/// The highest character.
const LAST: char = char::MAX;

/// Characters at which the full range is cut at once. Most names end in a decimal or hexadecimal
/// digit.
const ENDS: [char; 7] = ['2', '4', '6', '8', ':', 'd', 'g'];

/// Characters at which a range is cut into two. The first that lies within the range is used.
const CUTS: [char; 13] = [
    '8', 'g', '4', 'c', '2', '6', 'a', 'e', 'n', '{', '0', ':', '\u{80}',
];

/// A part of the records in a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    targets: Targets,
    names: Names,
}

/// Records whose target's digest starts with `begin`, followed by a digit of `HEX[first..end]`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Targets {
    begin: String,
    first: usize,
    end: usize,
}

/// A part of the names.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Names {
    /// Names that end in `suffix`, with a character from `first` to `last` before it.
    Ending { first: char, last: char, suffix: String },
    /// This name alone.
    Named(String),
}

impl Part {
    /// Returns the part with all records.
    pub(crate) fn all() -> Part {
        Part {
            targets: Targets::after(String::new()),
            names: Names::before(String::new()),
        }
    }

    /// Returns the part as a filter of containerd, or `None` for all records.
    pub(crate) fn filter(&self) -> Option<String> {
        let filters: Vec<String> = self
            .targets
            .filter()
            .into_iter()
            .chain(self.names.filter())
            .collect();
        (!filters.is_empty()).then(|| filters.join(","))
    }

    /// Returns filters for the records of this part that one of the given filters accepts. Without
    /// given filters, every record of the part counts.
    pub(crate) fn filters(&self, given: &[String]) -> Vec<String> {
        match self.filter() {
            None => given.to_vec(),
            Some(filter) if given.is_empty() => vec![filter],
            Some(filter) => given.iter().map(|given| format!("{given},{filter}")).collect(),
        }
    }

    /// Cuts this part into parts that have its records between them, none twice. Parts that likely
    /// hold many records come last. Returns `None` for a single name.
    ///
    /// `told` is the size that the answer would have had, and the limit. `above` is the size of the
    /// part from which this part was cut. A cut by the ends of names may make a part hardly
    /// smaller. The next cut is then by targets, and the other way round.
    ///
    /// A single name comes last, so the caller asks for it first. If containerd finds every list
    /// too long, it finds this name's list too long as well. So the client does not try longer and
    /// longer ends for ever.
    pub(crate) fn pieces(self, told: Option<Oversize>, above: Option<u64>) -> Option<Vec<Part>> {
        let times = told.map_or(2, |told| told.size.div_ceil((told.limit / AIM).max(1)).max(2));
        let hardly_smaller = told
            .zip(above)
            .is_some_and(|(told, above)| told.size > above / 4 * 3);
        if self.targets.is_all() == hardly_smaller
            && let Some(targets) = self.targets.clone().pieces(times)
        {
            let part = |targets| Part {
                targets,
                names: self.names.clone(),
            };
            return Some(targets.into_iter().map(part).collect());
        }
        let part = |names| Part {
            targets: self.targets.clone(),
            names,
        };
        Some(self.names.clone().pieces(times)?.into_iter().map(part).collect())
    }
}

impl Targets {
    fn after(begin: String) -> Targets {
        Targets {
            begin,
            first: 0,
            end: HEX.len(),
        }
    }

    fn is_all(&self) -> bool {
        self.begin.is_empty() && (self.first, self.end) == (0, HEX.len())
    }

    /// Returns the filter. A digest has one colon, before its digits.
    fn filter(&self) -> Option<String> {
        if self.is_all() {
            return None;
        }
        let Targets { begin, first, end } = self;
        let digits: String = HEX[*first..*end].iter().collect();
        Some(format!("target.digest~=\":{begin}[{digits}]\""))
    }

    /// Cuts this into at least `times` pieces, and at most twice as many. Returns `None` if digits
    /// do not tell the records apart any more.
    fn pieces(self, times: u64) -> Option<Vec<Targets>> {
        let Targets { begin, first, end } = self;
        let width = end - first;
        if width == 1 {
            return match begin.len() + 1 < DIGITS {
                true => Targets::after(format!("{begin}{}", HEX[first])).pieces(times),
                false => None,
            };
        }
        let wanted = usize::try_from(times)
            .unwrap_or(usize::MAX)
            .min(width)
            .next_power_of_two();
        let step = width.div_ceil(wanted).max(1);
        let cut = (first..end).step_by(step).map(|from| Targets {
            begin: begin.clone(),
            first: from,
            end: end.min(from + step),
        });
        let deeper = times.div_ceil(width as u64);
        match deeper {
            0 | 1 => Some(cut.collect()),
            deeper => Some(
                cut.flat_map(|one| one.clone().pieces(deeper).unwrap_or_else(|| vec![one]))
                    .collect(),
            ),
        }
    }
}

impl Names {
    /// Returns the names that end in `suffix` and are longer. No name is empty.
    fn before(suffix: String) -> Names {
        Names::Ending {
            first: FIRST,
            last: LAST,
            suffix,
        }
    }

    fn filter(&self) -> Option<String> {
        match self {
            Names::Ending { first, last, suffix }
                if (*first, *last, suffix.as_str()) == (FIRST, LAST, "") =>
            {
                None
            }
            Names::Ending { first, last, suffix } => Some(format!(
                "name~=\"[{}-{}]{}$\"",
                escaped(*first),
                escaped(*last),
                pattern(suffix)
            )),
            Names::Named(name) => Some(format!("name~=\"^{}$\"", pattern(name))),
        }
    }

    /// Cuts the names into two pieces, or at [`ENDS`] if two are too few. Returns `None` for a
    /// single name.
    fn pieces(self, times: u64) -> Option<Vec<Names>> {
        let Names::Ending { first, last, suffix } = self else {
            return None;
        };
        if first == last {
            let suffix = format!("{first}{suffix}");
            return Some(vec![Names::before(suffix.clone()), Names::Named(suffix)]);
        }
        let cuts = match (first, last, times > 2) {
            (FIRST, LAST, true) => ENDS.to_vec(),
            _ => vec![cut(first, last)],
        };
        let firsts = [first].into_iter().chain(cuts.iter().copied());
        let lasts = cuts.iter().copied().map(below).chain([last]);
        let piece = |(first, last)| Names::Ending {
            first,
            last,
            suffix: suffix.clone(),
        };
        let mut pieces: Vec<Names> = firsts.zip(lasts).map(piece).collect();
        // Names that end in digits come last.
        pieces.reverse();
        Some(pieces)
    }
}

/// Returns a filter for the records that have a label with any value.
pub(crate) fn labelled(key: &str) -> String {
    format!("labels.\"{}\"", quoted(key))
}

/// Returns a filter for the records of a target.
pub(crate) fn targeting(digest: &str) -> String {
    format!("target.digest==\"{}\"", quoted(digest))
}

/// Returns a filter for the things whose `field` begins with a text.
pub(crate) fn beginning(field: &str, text: &str) -> String {
    format!("{field}~=\"^{}\"", pattern(text))
}

/// Returns a filter for the things whose `field` contains a text.
pub(crate) fn containing(field: &str, text: &str) -> String {
    format!("{field}~=\"{}\"", pattern(text))
}

/// Escapes a text for use within quotes.
fn quoted(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}

/// Returns the first character of the upper half. It is above `first` and not above `last`.
fn cut(first: char, last: char) -> char {
    let known = CUTS.into_iter().find(|cut| first < *cut && *cut <= last);
    known.unwrap_or_else(|| {
        let middle = (u32::from(first) + u32::from(last)).div_ceil(2);
        // The surrogates lie between the two ranges. They are not characters.
        char::from_u32(middle).unwrap_or('\u{e000}')
    })
}

/// Returns the character before this one, which is not the lowest.
fn below(character: char) -> char {
    char::from_u32(u32::from(character) - 1).unwrap_or('\u{d7ff}')
}

/// Returns a regular expression for exactly this text, without a character that containerd's
/// filters interpret.
fn pattern(text: &str) -> String {
    text.chars().map(escaped).collect()
}

/// Writes a character by its number. Within quotes, a backslash is written twice.
fn escaped(character: char) -> String {
    format!("\\\\x{{{:x}}}", u32::from(character))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record's name, and the digits of its target's digest.
    type Record<'a> = (&'a str, &'a str);

    fn has(part: &Part, (name, digits): &Record<'_>) -> bool {
        let Targets { begin, first, end } = &part.targets;
        let is_of_targets = digits
            .strip_prefix(begin.as_str())
            .and_then(|rest| rest.chars().next())
            .is_some_and(|digit| HEX[*first..*end].contains(&digit));
        let is_named = match &part.names {
            Names::Named(only) => only == name,
            Names::Ending { first, last, suffix } => name
                .strip_suffix(suffix.as_str())
                .and_then(|rest| rest.chars().next_back())
                .is_some_and(|character| (*first..=*last).contains(&character)),
        };
        is_of_targets && is_named
    }

    /// Asks until no answer has more than `most` records, each of one byte. Returns the parts that
    /// fit, and the number of answers that did not fit.
    fn asked(records: &[Record<'_>], most: usize) -> (Vec<Part>, usize) {
        let (mut found, mut wasted) = (Vec::new(), 0);
        let mut parts = vec![(Part::all(), None)];
        while let Some((part, above)) = parts.pop() {
            let size = records.iter().filter(|record| has(&part, record)).count();
            if size <= most {
                found.push(part);
                continue;
            }
            wasted += 1;
            let told = Oversize {
                size: size as u64,
                limit: most as u64,
            };
            let pieces = part.pieces(Some(told), above).expect("a single name stands once");
            parts.extend(pieces.into_iter().map(|piece| (piece, Some(told.size))));
        }
        (found, wasted)
    }

    fn assert_each_is_in_one_part(records: &[Record<'_>], parts: &[Part]) {
        for record in records {
            let holders = parts.iter().filter(|part| has(part, record)).count();
            assert_eq!(holders, 1, "{record:?}");
        }
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
        let records = names.map(|name| (name, "0123"));
        let (parts, _) = asked(&records, 1);
        assert_each_is_in_one_part(&records, &parts);
    }

    #[test]
    fn of_names_that_end_in_digits_one_answer_is_wasted() {
        let hex: Vec<String> = (0..4096)
            .map(|number: u32| format!("r.test/a@sha256:{number:x}"))
            .collect();
        let tags: Vec<String> = (0..5000)
            .map(|number: u32| format!("r.test/a:1.{number}"))
            .collect();
        for names in [hex, tags] {
            let records: Vec<Record<'_>> = names.iter().map(|name| (name.as_str(), "7f00")).collect();
            let (found, wasted) = asked(&records, records.len() / 3);
            assert_eq!((found.len(), wasted), (8, 1), "{}", names[0]);
            assert_each_is_in_one_part(&records, &found);
        }
    }

    #[test]
    fn of_names_that_all_end_alike_two_answers_are_wasted_where_their_targets_differ() {
        let digits: Vec<String> = (0..4096).map(|number: u32| format!("{number:03x}")).collect();
        let records = digits.iter().map(|digits| ("r.test/a:latest", digits.as_str()));
        let records: Vec<Record<'_>> = records.collect();
        for (most, parts) in [
            (4096, 1),
            (4095, 7 + 4),
            (1500, 7 + 8),
            (1000, 7 + 16),
            (100, 7 + 128),
        ] {
            let (found, wasted) = asked(&records, most);
            assert_eq!(
                (found.len(), wasted),
                (parts, 2 * usize::from(parts > 1)),
                "{most}"
            );
            assert_each_is_in_one_part(&records, &found);
        }
    }

    #[test]
    fn halves_are_never_empty_ranges_and_end_at_single_characters() {
        let mut parts = vec![Names::before(String::new())];
        let mut singles = 0;
        while let Some(part) = parts.pop() {
            let Names::Ending { first, last, suffix } = &part else {
                panic!("{part:?}");
            };
            assert!(first <= last && suffix.is_empty(), "{part:?}");
            if first == last {
                singles += 1;
            } else {
                parts.extend(part.pieces(2).expect("it is a range"));
            }
        }
        assert_eq!(singles, 0x11_0000 - 0x800);
    }

    #[test]
    fn filters_have_nothing_in_them_that_containerd_would_read_otherwise() {
        assert_eq!(Part::all().filter(), None);
        let given = vec![labelled("a\"b")];
        assert_eq!(given, [r#"labels."a\"b""#]);
        assert_eq!(Part::all().filters(&given), given);
        let named = Names::Named("a\"".to_owned());
        assert_eq!(named.filter().as_deref(), Some(r#"name~="^\\x{61}\\x{22}$""#));
        let ending = Part {
            targets: Targets {
                begin: "f".to_owned(),
                first: 0,
                end: 2,
            },
            names: Names::Ending {
                first: '8',
                last: 'f',
                suffix: "$".to_owned(),
            },
        };
        let filter = r#"target.digest~=":f[01]",name~="[\\x{38}-\\x{66}]\\x{24}$""#;
        assert_eq!(ending.filter().as_deref(), Some(filter));
        assert_eq!(ending.filters(&given), [format!("{},{filter}", given[0])]);
        assert_eq!(targeting("sha256:a"), r#"target.digest=="sha256:a""#);
        assert_eq!(beginning("ref", "a."), r#"ref~="^\\x{61}\\x{2e}""#);
    }
}
