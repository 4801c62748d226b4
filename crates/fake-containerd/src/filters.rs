//! containerd's filter language: `field.path==value,field!=value,field~=regex` with `"quoted"`
//! parts. The filters of a request are alternatives.

use regex::Regex;
use tonic::Status;

/// Alternatives. An empty list accepts everything.
pub(crate) struct Filters(Vec<Vec<Selector>>);

struct Selector {
    path: Vec<String>,
    test: Test,
}

enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    Matches(Regex),
}

impl Filters {
    pub(crate) fn parse(texts: &[String]) -> Result<Self, Status> {
        texts
            .iter()
            .map(|text| parse(text))
            .collect::<Result<_, _>>()
            .map(Filters)
    }

    /// Returns true if one alternative holds. `field` looks up the value at a path.
    pub(crate) fn accept<'a>(&self, field: impl Fn(&[&str]) -> Option<&'a str>) -> bool {
        let holds = |selector: &Selector| {
            let path: Vec<&str> = selector.path.iter().map(String::as_str).collect();
            let value = field(&path);
            match &selector.test {
                Test::Present => value.is_some(),
                Test::Equal(wanted) => value.is_some_and(|value| value == wanted),
                Test::NotEqual(unwanted) => value.is_none_or(|value| value != unwanted),
                Test::Matches(regex) => value.is_some_and(|value| regex.is_match(value)),
            }
        };
        self.0.is_empty() || self.0.iter().any(|selectors| selectors.iter().all(holds))
    }
}

fn parse(text: &str) -> Result<Vec<Selector>, Status> {
    let mut rest = text;
    let mut selectors = Vec::new();
    while !rest.is_empty() {
        selectors.push(selector(&mut rest).map_err(|reason| {
            Status::invalid_argument(format!(
                "filters: parse error: [{text}]: {reason}: invalid argument"
            ))
        })?);
        match rest.strip_prefix(',') {
            Some(after) => rest = after,
            None if rest.is_empty() => {}
            None => {
                let text = format!(
                    "filters: parse error: [{text}]: expected a comma before {rest:?}: invalid argument"
                );
                return Err(Status::invalid_argument(text));
            }
        }
    }
    Ok(selectors)
}

fn selector(rest: &mut &str) -> Result<Selector, String> {
    let mut path = vec![word(rest, is_field_character)?];
    while let Some(after) = rest.strip_prefix('.') {
        *rest = after;
        path.push(word(rest, is_field_character)?);
    }
    let mut operator = |sign: &str| rest.strip_prefix(sign).map(|after| *rest = after).is_some();
    let test = if operator("==") {
        Test::Equal(word(rest, is_value_character)?)
    } else if operator("!=") {
        Test::NotEqual(word(rest, is_value_character)?)
    } else if operator("~=") {
        let pattern = word(rest, is_value_character)?;
        Test::Matches(Regex::new(&pattern).map_err(|error| error.to_string())?)
    } else {
        Test::Present
    };
    Ok(Selector { path, test })
}

/// Reads a quoted text, or the longest run of characters that need no quotes.
fn word(rest: &mut &str, bare: fn(char) -> bool) -> Result<String, String> {
    match rest.chars().next() {
        Some(quote @ ('"' | '/' | '|')) => quoted(rest, quote),
        _ => {
            let end = rest.find(|character| !bare(character)).unwrap_or(rest.len());
            if end == 0 {
                return Err(format!("expected a field or value before {rest:?}"));
            }
            let (word, after) = rest.split_at(end);
            *rest = after;
            Ok(word.to_owned())
        }
    }
}

fn quoted(rest: &mut &str, quote: char) -> Result<String, String> {
    let mut text = String::new();
    let mut characters = rest.char_indices().skip(1);
    while let Some((at, character)) = characters.next() {
        if character == quote {
            *rest = &rest[at + 1..];
            return Ok(text);
        }
        let escaped = character == '\\' && quote == '"';
        match if escaped {
            characters.next()
        } else {
            Some((at, character))
        } {
            Some((_, character)) => text.push(character),
            None => break,
        }
    }
    Err("a quoted text does not end".to_owned())
}

fn is_field_character(character: char) -> bool {
    character.is_ascii_alphanumeric() || character == '_' || character == '-'
}

fn is_value_character(character: char) -> bool {
    !matches!(character, ',' | '"') && !character.is_whitespace()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIN: &str = "io.cri-containerd.pinned";

    fn accepts(filters: &[&str], name: &str, pin: Option<&str>) -> bool {
        let filters: Vec<String> = filters.iter().map(|&text| text.to_owned()).collect();
        Filters::parse(&filters).unwrap().accept(|path| match path {
            ["name"] => Some(name),
            ["labels", key @ ..] if key.join(".") == PIN => pin,
            _ => None,
        })
    }

    #[test]
    fn filters_select_by_name_and_label() {
        let pinned = format!("labels.\"{PIN}\"==pinned");
        for (filters, name, pin, expected) in [
            (&[][..], "x", None, true),
            (&["name==x"], "x", None, true),
            (&["name==x"], "y", None, false),
            (
                &["name==docker.io/library/x:1@sha256:0"],
                "docker.io/library/x:1@sha256:0",
                None,
                true,
            ),
            (&["name!=x"], "y", None, true),
            (&["name~=^docker"], "docker.io/library/x:1", None, true),
            (&["name~=\"/library/\""], "docker.io/library/x:1", None, true),
            (&["name~=/^quay/"], "docker.io/library/x:1", None, false),
            (&[pinned.as_str()], "x", Some("pinned"), true),
            (&[pinned.as_str()], "x", None, false),
            (
                &["labels.\"io.cri-containerd.pinned\""],
                "x",
                Some("anything"),
                true,
            ),
            (
                &["name==x,labels.\"io.cri-containerd.pinned\"==pinned"],
                "x",
                None,
                false,
            ),
            (&["name==x", "name==y"], "y", None, true),
        ] {
            assert_eq!(
                accepts(filters, name, pin),
                expected,
                "{filters:?} {name} {pin:?}"
            );
        }
    }

    #[test]
    fn malformed_filters_are_invalid_arguments() {
        for text in ["==x", "name==", "name~=(", "name==\"x", "name=x", ".name"] {
            let error = Filters::parse(&[text.to_owned()])
                .err()
                .unwrap_or_else(|| panic!("{text} was accepted"));
            assert_eq!(error.code(), tonic::Code::InvalidArgument, "{text}");
        }
    }
}
