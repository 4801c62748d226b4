//! Values by their path. Each value of a wrong type is collected as a problem with its path.

use std::cell::RefCell;
use std::collections::BTreeSet;

use crate::Problem;
use crate::tree::Tree;

/// A value, its path, and the list of problems.
#[derive(Clone)]
pub(crate) struct Reader<'t> {
    tree: Option<&'t Tree>,
    path: String,
    problems: &'t RefCell<Vec<Problem>>,
}

impl<'t> Reader<'t> {
    pub(crate) fn new(tree: &'t Tree, path: &str, problems: &'t RefCell<Vec<Problem>>) -> Self {
        Reader {
            tree: Some(tree),
            path: path.to_owned(),
            problems,
        }
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// Returns the member of a mapping. An absent or `null` value has no members.
    pub(crate) fn get(&self, key: &str) -> Reader<'t> {
        let tree = match self.tree {
            None | Some(Tree::Null) => None,
            Some(tree @ Tree::Map(_)) => tree.get(key),
            Some(other) => {
                self.is_not("a mapping", other);
                None
            }
        };
        let separator = if self.path.is_empty() || self.path.ends_with(' ') {
            ""
        } else {
            "."
        };
        Reader {
            tree,
            path: format!("{}{separator}{key}", self.path),
            problems: self.problems,
        }
    }

    /// Returns the value at a path of several keys.
    pub(crate) fn at(&self, path: &[&str]) -> Reader<'t> {
        path.iter().fold(self.clone(), |reader, key| reader.get(key))
    }

    /// Returns the keys of a mapping, each once.
    pub(crate) fn keys(&self) -> Vec<String> {
        match self.tree {
            None | Some(Tree::Null) => Vec::new(),
            Some(Tree::Map(members)) => {
                let keys: BTreeSet<_> = members.iter().map(|(key, _)| key.clone()).collect();
                keys.into_iter().collect()
            }
            Some(other) => {
                self.is_not("a mapping", other);
                Vec::new()
            }
        }
    }

    /// Returns the elements of a list.
    pub(crate) fn elements(&self) -> Vec<Reader<'t>> {
        let list = match self.tree {
            None | Some(Tree::Null) => return Vec::new(),
            Some(Tree::List(list)) => list,
            Some(other) => {
                self.is_not("a list", other);
                return Vec::new();
            }
        };
        let element = |(at, tree)| Reader {
            tree: Some(tree),
            path: format!("{}[{at}]", self.path),
            problems: self.problems,
        };
        list.iter().enumerate().map(element).collect()
    }

    /// Returns the text, `None` if it is empty.
    pub(crate) fn text(&self) -> Option<&'t str> {
        match self.tree? {
            Tree::Null => None,
            Tree::Text(text) => Some(text.as_str()).filter(|text| !text.is_empty()),
            other => {
                self.is_not("text", other);
                None
            }
        }
    }

    /// Returns true if there is a value, even an empty one.
    pub(crate) fn is_given(&self) -> bool {
        self.tree.is_some_and(|tree| *tree != Tree::Null)
    }

    pub(crate) fn bool(&self) -> Option<bool> {
        match self.tree? {
            Tree::Null => None,
            Tree::Bool(value) => Some(*value),
            other => {
                self.is_not("true or false", other);
                None
            }
        }
    }

    /// Adds a problem with this value.
    pub(crate) fn complain(&self, reason: String) {
        self.problems.borrow_mut().push(Problem {
            line: None,
            at: self.path.clone(),
            reason,
        });
    }

    fn is_not(&self, wanted: &str, found: &Tree) {
        let quote = match found {
            Tree::Number(_) | Tree::Bool(_) if wanted == "text" => ": put it in quotes",
            Tree::Map(_) if wanted == "text" => {
                ": if it was {{ ... }} in a template, render it first, with `helm template` for a chart"
            }
            _ => "",
        };
        self.complain(format!("must be {wanted}, not {}{quote}", found.kind()));
    }
}
