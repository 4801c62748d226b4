//! YAML and JSON as plain trees, with a limit of their memory.
//!
//! A YAML document of a few lines can expand to gigabytes: an alias is a copy of a value, which may
//! hold aliases itself. So every value is charged to a budget, and the reader rejects a document
//! that exceeds it. Merge keys (`<<`) are resolved, as Kubernetes' own tools do. If a key is given
//! twice, both values are kept, so that no image is missed.

use std::cell::Cell;
use std::fmt;

use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, SeqAccess, VariantAccess, Visitor,
};

use crate::{Limits, Problem};

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Tree {
    Null,
    Bool(bool),
    Number(String),
    Text(String),
    List(Vec<Tree>),
    Map(Vec<(String, Tree)>),
}

impl Tree {
    /// Returns the value of a key. The last of several counts, as in most readers.
    pub(crate) fn get(&self, key: &str) -> Option<&Tree> {
        match self {
            Tree::Map(members) => members.iter().rev().find(|(k, _)| k == key).map(|(_, v)| v),
            _ => None,
        }
    }

    /// Returns the value of a key if it is text.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        match self.get(key)? {
            Tree::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Returns the value in JSON. The last of several members of a name counts.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        use serde_json::Value;
        match self {
            Tree::Null => Value::Null,
            Tree::Bool(value) => Value::Bool(*value),
            Tree::Number(text) => serde_json::from_str(text).unwrap_or_else(|_| text.as_str().into()),
            Tree::Text(text) => text.as_str().into(),
            Tree::List(list) => list.iter().map(Tree::to_json).collect(),
            Tree::Map(members) => {
                let members = members.iter().map(|(key, tree)| (key.clone(), tree.to_json()));
                Value::Object(members.collect())
            }
        }
    }

    /// Returns the kind of the value, for messages.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Tree::Null => "nothing",
            Tree::Bool(_) => "true or false",
            Tree::Number(_) => "a number",
            Tree::Text(_) => "text",
            Tree::List(_) => "a list",
            Tree::Map(_) => "a mapping",
        }
    }
}

/// One document of a text.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Document {
    pub(crate) tree: Tree,
    /// Number of its first line, from 1.
    pub(crate) line: usize,
}

/// Reads every document of a text. A mistake in one does not affect the others.
pub(crate) fn documents(text: &str, limits: &Limits) -> (Vec<Document>, Vec<Problem>) {
    let text = text.trim_start_matches('\u{feff}');
    if text.len() > limits.text {
        let reason = format!("the text has {} bytes, more than {}", text.len(), limits.text);
        return (Vec::new(), vec![problem(None, reason)]);
    }
    if text.trim_start().starts_with(['{', '['])
        && let Some(documents) = json(text, limits)
    {
        return documents;
    }
    yaml(text, limits)
}

fn problem(line: Option<usize>, reason: String) -> Problem {
    Problem {
        line,
        at: String::new(),
        reason,
    }
}

/// Reads JSON values, one after the other. `None` means that the text is not JSON, but maybe YAML
/// in its flow style.
fn json(text: &str, limits: &Limits) -> Option<(Vec<Document>, Vec<Problem>)> {
    let mut documents = Vec::new();
    let mut rest = text;
    while !rest.trim_start().is_empty() {
        let line = line_at(text, text.len() - rest.trim_start().len());
        let budget = Budget::new(limits);
        let mut source = serde_json::Deserializer::from_str(rest).into_iter::<serde::de::IgnoredAny>();
        source.next()?.ok()?;
        let (value, after) = rest.split_at(source.byte_offset());
        match budget
            .seed()
            .deserialize(&mut serde_json::Deserializer::from_str(value))
        {
            Ok(tree) => documents.push(Document { tree, line }),
            Err(_) if budget.is_spent() => {
                return Some((documents, vec![problem(Some(line), budget.reason())]));
            }
            Err(_) => return None,
        }
        rest = after;
    }
    Some((documents, Vec::new()))
}

fn line_at(text: &str, offset: usize) -> usize {
    text.as_bytes()[..offset]
        .iter()
        .filter(|byte| **byte == b'\n')
        .count()
        + 1
}

fn yaml(text: &str, limits: &Limits) -> (Vec<Document>, Vec<Problem>) {
    let mut documents = Vec::new();
    let mut problems = Vec::new();
    for (line, part) in parts(text) {
        if part.len() > limits.document {
            let reason = format!(
                "the YAML document has {} bytes, more than {}: split it, or give it as JSON",
                part.len(),
                limits.document
            );
            problems.push(problem(Some(line), reason));
            continue;
        }
        for source in serde_yaml::Deserializer::from_str(part) {
            let budget = Budget::new(limits);
            match budget.seed().deserialize(source) {
                Ok(Tree::Null) => {}
                Ok(tree) => documents.push(Document { tree, line }),
                Err(error) => {
                    problems.push(yaml_problem(&error, &budget, part, line));
                    break;
                }
            }
        }
    }
    (documents, problems)
}

/// Returns the parts of a text between its `---` lines, each with the number of its first line.
///
/// Such a line always ends a document (YAML 1.2.2, 9.1.2), so the split needs no parser. Parts with
/// nothing but comments and directives are left out.
fn parts(text: &str) -> Vec<(usize, &str)> {
    let mut parts = Vec::new();
    let (mut begin, mut begin_line) = (0, 1);
    let mut offset = 0;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let rest = line.strip_prefix("---");
        if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n'])) {
            parts.push((begin_line, &text[begin..offset]));
            (begin, begin_line) = (offset, number + 1);
        }
        offset += line.len();
    }
    parts.push((begin_line, &text[begin..]));
    parts.retain(|(_, part)| part.lines().any(says_something));
    parts
}

fn says_something(line: &str) -> bool {
    let line = line.trim();
    !line.is_empty() && line != "---" && !line.starts_with(['#', '%'])
}

fn yaml_problem(error: &serde_yaml::Error, budget: &Budget, part: &str, begin: usize) -> Problem {
    if budget.is_spent() {
        return problem(Some(begin), budget.reason());
    }
    let within = error.location().map_or(1, |location| location.line().max(1));
    let line = begin + within - 1;
    // The library counts lines and columns within the part, so its position is cut off.
    let text = error.to_string();
    let text = text.split(" at line ").next().unwrap_or_default();
    if let Some(template) = template_near(part, within) {
        let line = begin + template - 1;
        return problem(
            Some(line),
            format!("not YAML but a template of it: {HELM} ({text})"),
        );
    }
    problem(Some(line), format!("not valid YAML: {text}"))
}

/// Returns the line with the template action that the parser rejects. The parser may fail a few
/// lines later.
fn template_near(part: &str, line: usize) -> Option<usize> {
    let near = part.lines().enumerate().take(line).skip(line.saturating_sub(4));
    let with_action = near.filter(|(_, text)| text.contains("{{"));
    with_action.last().map(|(at, _)| at + 1)
}

/// Remedy for a template.
pub(crate) const HELM: &str = "render it first, with `helm template` for a chart";

/// The bytes that a document may still take.
struct Budget {
    left: Cell<Option<usize>>,
    all: usize,
}

impl Budget {
    fn new(limits: &Limits) -> Self {
        Self {
            left: Cell::new(Some(limits.expanded)),
            all: limits.expanded,
        }
    }

    fn seed(&self) -> Value<'_> {
        Value(self)
    }

    fn is_spent(&self) -> bool {
        self.left.get().is_none()
    }

    fn reason(&self) -> String {
        format!("it expands to more than {} bytes", self.all)
    }

    fn charge<E: Error>(&self, bytes: usize) -> Result<(), E> {
        self.left
            .set(self.left.get().and_then(|left| left.checked_sub(bytes + 32)));
        match self.left.get() {
            Some(_) => Ok(()),
            None => Err(E::custom(self.reason())),
        }
    }
}

#[derive(Clone, Copy)]
struct Value<'b>(&'b Budget);

impl<'de> DeserializeSeed<'de> for Value<'_> {
    type Value = Tree;

    fn deserialize<D: Deserializer<'de>>(self, source: D) -> Result<Tree, D::Error> {
        source.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value<'_> {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: Error>(self) -> Result<Tree, E> {
        self.0.charge(0).map(|()| Tree::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Tree, E> {
        self.0.charge(0).map(|()| Tree::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Tree, E> {
        self.0.charge(0).map(|()| Tree::Number(value.to_string()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Tree, E> {
        self.0.charge(0).map(|()| Tree::Number(value.to_string()))
    }

    fn visit_i128<E: Error>(self, value: i128) -> Result<Tree, E> {
        self.0.charge(0).map(|()| Tree::Number(value.to_string()))
    }

    fn visit_u128<E: Error>(self, value: u128) -> Result<Tree, E> {
        self.0.charge(0).map(|()| Tree::Number(value.to_string()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Tree, E> {
        self.0.charge(0).map(|()| Tree::Number(value.to_string()))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Tree, E> {
        self.0.charge(value.len())?;
        Ok(Tree::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut source: A) -> Result<Tree, A::Error> {
        self.0.charge(0)?;
        let mut list = Vec::new();
        while let Some(value) = source.next_element_seed(self)? {
            list.push(value);
        }
        Ok(Tree::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut source: A) -> Result<Tree, A::Error> {
        self.0.charge(0)?;
        let mut members = Vec::new();
        while let Some(key) = source.next_key_seed(Key(self.0))? {
            members.push((key, source.next_value_seed(self)?));
        }
        Ok(Tree::Map(merged(members)))
    }

    /// Reads a value with its own tag and ignores the tag.
    fn visit_enum<A: EnumAccess<'de>>(self, source: A) -> Result<Tree, A::Error> {
        let (_, variant) = source.variant_seed(Key(self.0))?;
        variant.newtype_variant_seed(self)
    }
}

/// Resolves a merge key: its members count if the mapping has no member of that name.
fn merged(members: Vec<(String, Tree)>) -> Vec<(String, Tree)> {
    if !members.iter().any(|(key, _)| key == "<<") {
        return members;
    }
    let (merges, mut members): (Vec<_>, Vec<_>) = members.into_iter().partition(|(key, _)| key == "<<");
    let sources = merges.into_iter().flat_map(|(_, value)| match value {
        Tree::List(list) => list,
        other => vec![other],
    });
    for source in sources {
        let Tree::Map(inherited) = source else { continue };
        for (key, value) in inherited {
            if !members.iter().any(|(known, _)| *known == key) {
                members.push((key, value));
            }
        }
    }
    members
}

/// Reads a key: any plain value as text.
struct Key<'b>(&'b Budget);

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, source: D) -> Result<String, D::Error> {
        source.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Key<'_> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a plain key")
    }

    fn visit_unit<E: Error>(self) -> Result<String, E> {
        self.visit_str("null")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<String, E> {
        self.visit_str(&value.to_string())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<String, E> {
        self.visit_str(&value.to_string())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<String, E> {
        self.visit_str(&value.to_string())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<String, E> {
        self.visit_str(&value.to_string())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<String, E> {
        self.0.charge(value.len())?;
        Ok(value.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Vec<Document>, Vec<Problem>) {
        documents(text, &Limits::default())
    }

    fn trees(text: &str) -> Vec<Tree> {
        let (documents, problems) = read(text);
        assert_eq!(problems, [], "{text}");
        documents.into_iter().map(|document| document.tree).collect()
    }

    #[test]
    fn yaml_and_json_of_any_number_of_documents_are_read() {
        for (text, count) in [
            ("", 0),
            ("# nothing\n---\n# nothing\n", 0),
            ("a: 1", 1),
            ("---\na: 1\n---\nb: 2\n...\n", 2),
            ("%YAML 1.2\n---\na: 1\n", 1),
            ("--- # the first\na: 1\n---\r\nb: 2\r\n", 2),
            ("a: |\n  ----\n  text\n", 1),
            ("{\"a\": 1}", 1),
            ("{\"a\": \"\\ud83d\\ude00\"}\n{\"b\": 2}", 2),
            ("{a: 1, b: [x]}", 1),
            ("\u{feff}a: 1", 1),
        ] {
            assert_eq!(trees(text).len(), count, "{text:?}");
        }
    }

    #[test]
    fn anchors_and_merge_keys_are_resolved() {
        let tree =
            &trees("base: &b {image: x, n: 1}\nmore: {<<: *b, image: y}\nlist: [*b]\nk: !other v\n")[0];
        let more = tree.get("more").unwrap();
        assert_eq!(
            (more.text("image"), more.get("n")),
            (Some("y"), Some(&Tree::Number("1".to_owned())))
        );
        let Some(Tree::List(list)) = tree.get("list") else {
            panic!("{tree:?}")
        };
        assert_eq!(list[0].text("image"), Some("x"));
        assert_eq!(tree.text("k"), Some("v"));
    }

    #[test]
    fn a_mistake_is_told_with_its_line_and_spoils_no_other_document() {
        for (text, line, part) in [
            ("a: 1\n---\nb: [1\nc: 2\n---\nd: 1\n", 4, "not valid YAML"),
            (
                "a: 1\n---\nspec:\n{{- range .Values.x }}\n  b: 1\n---\nd: 1\n",
                4,
                "helm template",
            ),
            (
                "a: 1\n---\nspec: {{ .Values.x }}\n---\nd: 1\n",
                3,
                "helm template",
            ),
            ("a: 1\n---\na: \tb\n\tc: d\n---\nd: 1\n", 4, "not valid YAML"),
        ] {
            let (documents, problems) = read(text);
            assert_eq!(documents.len(), 2, "{text}");
            assert_eq!(problems.len(), 1, "{text}");
            assert_eq!(problems[0].line, Some(line), "{text} {problems:?}");
            assert!(problems[0].reason.contains(part), "{problems:?}");
        }
    }

    #[test]
    fn a_key_that_a_parser_quotes_drives_no_terminal() {
        for text in ["a`\tb: \t{{x}\n", "a\u{202e}b: \t{{x}\n", "a\u{7f}: [b\n"] {
            let (_, problems) = read(text);
            assert_eq!(problems.len(), 1, "{text:?}");
            let told = problems[0].to_string();
            assert!(told.chars().all(basics::is_visible), "{told:?}");
        }
    }

    /// Ten levels of ten aliases, wide documents of long texts, and deeply nested documents.
    #[test]
    fn what_stands_for_much_more_than_it_is_given_up() {
        let mut laughs = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for level in 1..12 {
            let below = format!("*a{},", level - 1).repeat(10);
            laughs.push_str(&format!("a{level}: &a{level} [{below}]\n"));
        }
        let wide = format!("a: &a {}\nb: [{}]\n", "x".repeat(1 << 20), "*a,".repeat(1 << 12));
        let deep = "[".repeat(100_000);
        let json = "[".repeat(100_000);
        let long = format!("a: {}", "x".repeat(5 << 20));
        let limits = Limits {
            expanded: 8 << 20,
            ..Limits::default()
        };
        for text in [laughs, wide, deep, json, long] {
            let (documents, problems) = documents(&text, &limits);
            assert!(documents.is_empty() && problems.len() == 1, "{problems:?}");
        }
        let many = Limits {
            text: 3,
            ..Limits::default()
        };
        assert_eq!(documents("a: 1", &many).1.len(), 1);
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "([-a:{}\\[\\],*&!|>\"' \n\t#%?<.]|---\n){0,80}") {
            read(&text);
        }
    }
}
