//! The meaning of a reference to CRI, and the records that matter for the answers.
//!
//! CRI normalises a pod's reference and looks for a record of exactly that name. In a reference
//! with a tag and a digest, the tag does not count. The digest of a config, or its beginning, is an
//! id (containerd's CRI plugin, `LocalResolve`).

use std::collections::HashSet;
use std::ops::ControlFlow;

use containerd::{Client, ImageRecord};
use import::Reference;

use crate::{Held, Inventory, Need};

/// Fewest hexadecimal digits of an id. A shorter text may be a name.
const SHORTEST_ID: usize = 12;

/// Length of a complete id.
const FULL_ID: usize = "sha256:".len() + 64;

/// Most records of similar images that are read. One of so many is near enough to name.
const MOST_ALIKE: usize = 1000;

/// The meaning of a reference to CRI.
pub(crate) enum Wanted {
    /// A record of this name, and the reference from which the name was made.
    Name(String, Reference),
    /// An image by its id or the beginning of its id.
    Id(String),
}

impl Wanted {
    fn into_text(self) -> String {
        match self {
            Wanted::Name(text, _) | Wanted::Id(text) => text,
        }
    }
}

/// Returns a text as an id, if it can be one. CRI looks for an image of this name first.
fn as_id(text: &str) -> Option<Wanted> {
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    let is_hex = !hex.is_empty() && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let is_id = is_hex && (text.len() > hex.len() || (SHORTEST_ID..=64).contains(&hex.len()));
    is_id.then(|| Wanted::Id(text.to_owned()))
}

pub(crate) fn wanted(text: &str, inventory: &Inventory) -> Result<Wanted, String> {
    let by_name = by_name(text);
    match as_id(text) {
        Some(id) => Ok(by_name
            .ok()
            .filter(|name| find(name, inventory).is_some())
            .unwrap_or(id)),
        None => by_name,
    }
}

fn by_name(text: &str) -> Result<Wanted, String> {
    let reference: Reference = text
        .parse()
        .map_err(|error: import::names::InvalidReference| error.to_string())?;
    let name = match (reference.digest(), reference.tag()) {
        (Some(digest), _) => format!("{}@{digest}", reference.repository()),
        (None, Some(tag)) => format!("{}:{tag}", reference.repository()),
        (None, None) => format!("{}:latest", reference.repository()),
    };
    Ok(Wanted::Name(name, reference))
}

/// The records that matter for the answers to some needs.
#[derive(Debug, Default)]
pub struct Sought {
    /// The wanted names, including complete ids.
    names: HashSet<String>,
    /// The beginnings of wanted ids.
    ids: Vec<String>,
    /// The marks of near misses, if they matter.
    near: Option<Near>,
}

/// The repositories and names that identify near misses of the wanted images.
#[derive(Debug, Default)]
struct Near {
    repositories: HashSet<String>,
    digests: HashSet<String>,
    /// Last parts of paths, each with a tag.
    versions: HashSet<(String, String)>,
}

impl Sought {
    /// Returns the records of exactly the wanted images.
    pub fn exactly(needs: &[Need]) -> Sought {
        let mut sought = Sought::default();
        for text in needs.iter().map(Need::given) {
            sought.names.extend(by_name(text).ok().map(Wanted::into_text));
            sought
                .ids
                .extend(as_id(text).map(|wanted| full_id(&wanted.into_text())));
        }
        sought
    }

    /// Returns the records of the wanted images and of their near misses.
    pub fn with_near_misses(needs: &[Need]) -> Sought {
        let mut near = Near::default();
        for text in needs.iter().map(Need::given) {
            if let Ok(Wanted::Name(_, reference)) = by_name(text) {
                near.add(&reference);
            }
        }
        Sought {
            near: Some(near),
            ..Sought::exactly(needs)
        }
    }

    /// Returns true if a record matters.
    pub fn may_be(&self, record: &ImageRecord) -> bool {
        let ImageRecord { name, target, .. } = record;
        self.names.contains(name)
            || self.ids.iter().any(|id| name.starts_with(id.as_str()))
            || self
                .near
                .as_ref()
                .is_some_and(|near| near.is_like(name, target.digest().as_ref()))
    }

    /// Requests the records that matter if there are very many records. It requests them by name,
    /// and lists records only if some names are missing.
    ///
    /// # Errors
    ///
    /// Returns the error of the client.
    pub async fn among_many(&self, client: &Client) -> Result<Vec<ImageRecord>, containerd::Error> {
        let full = self.ids.iter().filter(|id| id.len() == FULL_ID);
        let names = self.names.iter().chain(full).map(String::as_str);
        let mut found = client.images_named(names).await?;
        let is_found = |name: &String| found.iter().any(|record| record.name == *name);
        let is_vague = self.ids.iter().any(|id| id.len() < FULL_ID);
        let is_short = self.near.is_some() && !self.names.iter().all(is_found);
        if !is_vague && !is_short {
            return Ok(found);
        }
        let looked_up: HashSet<String> = found.iter().map(|record| record.name.clone()).collect();
        let known = found.len();
        let look = |record: ImageRecord| {
            if !looked_up.contains(&record.name) && self.may_be(&record) {
                found.push(record);
            }
            match found.len() - known < MOST_ALIKE {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        };
        client.each_image(look).await?;
        Ok(found)
    }
}

impl Near {
    fn add(&mut self, reference: &Reference) {
        let repository = reference.repository();
        self.repositories.insert(repository.to_owned());
        self.digests.extend(reference.digest().map(str::to_owned));
        let version = last(repository).zip(reference.tag());
        self.versions
            .extend(version.map(|(last, tag)| (last.to_owned(), tag.to_owned())));
    }

    fn is_like(&self, name: &str, target: &str) -> bool {
        let (repository, tag) = parts(name);
        let version = last(repository).zip(tag);
        self.repositories.contains(repository)
            || self.digests.contains(target)
            || version.is_some_and(|(last, tag)| self.versions.contains(&(last.to_owned(), tag.to_owned())))
    }
}

/// Returns the last part of a repository's path.
fn last(repository: &str) -> Option<&str> {
    repository.rsplit('/').next()
}

fn full_id(id: &str) -> String {
    match id.starts_with("sha256:") {
        true => id.to_owned(),
        false => format!("sha256:{id}"),
    }
}

pub(crate) fn find<'s>(wanted: &Wanted, inventory: &'s Inventory) -> Option<&'s Held> {
    match wanted {
        Wanted::Name(name, _) => inventory.get(name),
        Wanted::Id(id) => inventory.by_id(id),
    }
}

/// Returns repository and tag of a record's name.
pub(crate) fn parts(name: &str) -> (&str, Option<&str>) {
    let without_digest = name.split('@').next().unwrap_or(name);
    match without_digest.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag)),
        _ => (without_digest, None),
    }
}

#[cfg(test)]
mod tests {
    use import::Judgement;
    use import::content::CONTAINERD;
    use oci_spec::image::Digest;

    use super::*;

    fn inventory(names: &[&str]) -> Inventory {
        let target: Digest = format!("sha256:{}", "a".repeat(64)).parse().unwrap();
        let held = names.iter().map(|name| Held {
            name: (*name).to_owned(),
            target: target.clone(),
            state: Judgement::Broken(Vec::new()),
            lacks_layers: false,
            hidden: None,
            doubts: Vec::new(),
            below: Vec::new(),
            place: CONTAINERD.to_owned(),
            pinned: None,
            expires: None,
            bundles: Vec::new(),
            pinned_by: Vec::new(),
            created_at: None,
            unpacked: None,
        });
        Inventory::of(held)
    }

    #[test]
    fn what_could_be_an_id_is_a_name_where_there_is_one() {
        let id = format!("sha256:{}", "c".repeat(64));
        let name = "docker.io/library/cafecafecafe:latest";
        let table: [(&str, &[&str], Option<&str>); 6] = [
            ("cafecafecafe", &[name], Some(name)),
            ("cafecafecafe", &[], None),
            ("cccccccccccc", &[&id], Some(&id)),
            (&id, &[&id], Some(&id)),
            (&id["sha256:".len()..], &[&id], Some(&id)),
            // Too short to be an id.
            (
                "cafe",
                &["docker.io/library/cafe:latest"],
                Some("docker.io/library/cafe:latest"),
            ),
        ];
        for (text, names, found) in table {
            let inventory = inventory(names);
            let wanted = wanted(text, &inventory).unwrap();
            let held = find(&wanted, &inventory).map(|held| held.name.as_str());
            assert_eq!(held, found, "{text} in {names:?}");
        }
    }
}
