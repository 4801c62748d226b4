//! The meaning of a reference to CRI, and the records that can have a say in the answers.
//!
//! CRI normalises what a pod asks for and looks for a record of exactly that name. With a tag and a
//! digest the tag does not count. The digest of a config, or the beginning of one, is an id
//! (containerd's CRI plugin, `LocalResolve`).

use std::collections::HashSet;
use std::ops::ControlFlow;

use containerd::{Client, ImageRecord};
use import::Reference;

use crate::{Held, Inventory, Need};

/// How many hexadecimal digits make an id: shorter ones may be names.
const SHORTEST_ID: usize = 12;

/// How long an id is that is not only the beginning of one.
const FULL_ID: usize = "sha256:".len() + 64;

/// Among so many images that are like those that are asked for there is one to name.
const MOST_ALIKE: usize = 1000;

/// What a reference means to CRI.
pub(crate) enum Wanted {
    /// A record of this name; the reference it was made of.
    Name(String, Reference),
    /// An image by its id or the beginning of it.
    Id(String),
}

impl Wanted {
    fn into_text(self) -> String {
        match self {
            Wanted::Name(text, _) | Wanted::Id(text) => text,
        }
    }
}

/// What a text stands for where no image is called so: CRI looks for a name first.
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

/// The records that can have a say in the answers to some needs.
#[derive(Debug, Default)]
pub struct Sought {
    /// Names that are asked for, ids in full included.
    names: HashSet<String>,
    /// Beginnings of ids.
    ids: Vec<String>,
    /// Where near misses are wanted, too.
    near: Option<Near>,
}

/// The repositories and names by which near misses of the wanted images are recognised.
#[derive(Debug, Default)]
struct Near {
    repositories: HashSet<String>,
    digests: HashSet<String>,
    /// Last parts of paths, each with a tag.
    versions: HashSet<(String, String)>,
}

impl Sought {
    /// The marks of all images that are asked for.
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

    /// The same with the near misses of what may be missing.
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

    /// Whether a record matters.
    pub fn may_be(&self, record: &ImageRecord) -> bool {
        let ImageRecord { name, target, .. } = record;
        self.names.contains(name)
            || self.ids.iter().any(|id| name.starts_with(id.as_str()))
            || self
                .near
                .as_ref()
                .is_some_and(|near| near.is_like(name, target.digest().as_ref()))
    }

    /// Asks for the records that matter where there are very many: by name, and with a list only
    /// for what those lack.
    ///
    /// # Errors
    ///
    /// The error of the client.
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

/// The last part of a repository's path.
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

/// Repository and tag of a record's name.
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
