//! The release that a bundle names: a set of bundles that carry one list of members.
//!
//! `index.json` names the release and the digest of the list, so the content digest of a bundle
//! covers both. A signature or a trusted digest of the bundle then covers them, too.

use std::collections::BTreeMap;
use std::sync::Arc;

use basics::{digest, foreign};
use oci_spec::image::Digest;
use serde::{Deserialize, Serialize};

use super::account::TEXT;
use super::catalog::Image;

/// Annotation of `index.json`: the name of the release.
const NAME: &str = "io.airgapd.release";
/// Annotation of `index.json`: the digest of the blob with the list of members.
const DOCUMENT: &str = "io.airgapd.release.members";

/// The version of the list. Readers accept only this version.
const VERSION: u32 = 1;

/// Most members of a release. A node has no more image records by default.
const MOST_MEMBERS: usize = 50_000;

/// Longest name of a release, in bytes.
const LONGEST_RELEASE: usize = 128;

/// Longest name of a member, in bytes. Names of images have at most 255 bytes, a tag and a digest.
const LONGEST_MEMBER: usize = 1024;

/// Bytes of memory for a member.
const MEMBER: u64 = size_of::<Member>() as u64 + 4 * TEXT;

/// The release that a bundle names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    /// Its name, which [`check_release_name`] accepts.
    pub name: String,
    /// Its members, or the contradiction in the bundle that makes its list unusable, in one line.
    /// The bundle can be imported all the same.
    pub members: Result<Arc<Members>, String>,
}

/// An image of a release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Full name of the image, as its record has it.
    pub name: String,
    /// Digest of the image's target.
    pub digest: Digest,
}

/// The members of a release: all images of all its bundles. The list is never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Members {
    release: String,
    /// Sorted by name. No name occurs twice.
    members: Vec<Member>,
    digest: Digest,
}

#[derive(Serialize, Deserialize)]
struct MembersDocument {
    version: u32,
    release: String,
    members: Vec<Member>,
}

impl Members {
    /// Makes the list of a release, sorted by name. The same member may come several times.
    ///
    /// # Errors
    ///
    /// Returns the reason in one line: a name of a release that readers do not accept, a list
    /// without members, a name for two images, or a list that exceeds what readers accept.
    pub fn new(release: &str, mut members: Vec<Member>) -> Result<Self, String> {
        members.sort_by(|a, b| (&a.name, a.digest.as_ref()).cmp(&(&b.name, b.digest.as_ref())));
        members.dedup();
        check_release_name(release)?;
        check(&members)?;
        let mut list = Self {
            release: release.to_owned(),
            digest: digest::sha256(b""),
            members,
        };
        let document = list.document();
        let limit = crate::Limits::default().json_document;
        if document.len() as u64 > limit {
            return Err(format!(
                "the list of release {release} would have {} bytes, more than {limit}",
                document.len()
            ));
        }
        list.digest = digest::sha256(&document);
        Ok(list)
    }

    /// Returns the name of the release.
    pub fn release(&self) -> &str {
        &self.release
    }

    /// Returns the members, sorted by name.
    pub fn all(&self) -> &[Member] {
        &self.members
    }

    /// Returns the digest of the list, which all bundles of the release share.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Returns the digest that the list has for a name.
    pub fn get(&self, name: &str) -> Option<&Digest> {
        let at = self
            .members
            .binary_search_by(|member| member.name.as_str().cmp(name))
            .ok()?;
        Some(&self.members[at].digest)
    }

    /// Returns the list as a document, which is a blob of each bundle.
    pub(crate) fn document(&self) -> Vec<u8> {
        let document = MembersDocument {
            version: VERSION,
            release: self.release.clone(),
            members: self.members.clone(),
        };
        serde_json::to_vec(&document).expect("a document of texts and numbers is serialised")
    }

    /// Returns the annotations of `index.json` that refer to the document.
    pub(crate) fn annotations(&self) -> BTreeMap<&'static str, String> {
        BTreeMap::from([(NAME, self.release.clone()), (DOCUMENT, self.digest.to_string())])
    }

    /// Returns the bytes of memory that the list takes.
    pub(crate) fn held_bytes(&self) -> u64 {
        let texts = self.members.iter().map(|member| member.name.len() as u64);
        texts.sum::<u64>() + self.members.len() as u64 * MEMBER + self.release.len() as u64 + TEXT
    }

    /// Returns the contradiction between the list and the images of a bundle that carries it.
    pub(crate) fn contradiction(&self, images: &[Image]) -> Option<String> {
        let names = images.iter().flat_map(|image| {
            let digest = image.root.descriptor.digest();
            image.names.iter().map(move |name| (name.as_str(), digest))
        });
        let mut names = names.filter_map(|(name, digest)| match self.get(name) {
            Some(listed) if listed == digest => None,
            Some(listed) => Some(format!(
                "its list has {listed} for {}, and the bundle has {digest}",
                foreign::text(name)
            )),
            None => Some(format!(
                "its list lacks {}, which the bundle has",
                foreign::text(name)
            )),
        });
        names.next()
    }
}

/// The annotations of an `index.json` that name a release.
pub(crate) struct Pointer {
    pub(crate) name: String,
    /// Digest of the list, or the reason why there is none.
    pub(crate) list: Result<Digest, String>,
}

/// Returns the release that the annotations of an `index.json` name. The inner error is the reason
/// why they name none.
pub(crate) fn pointer(annotations: &BTreeMap<String, String>) -> Option<Result<Pointer, String>> {
    let (name, list) = (annotations.get(NAME), annotations.get(DOCUMENT));
    let Some(name) = name else {
        list?;
        return Some(Err(format!("the annotation {NAME} is missing")));
    };
    Some(check_release_name(name).map(|()| Pointer {
        name: name.clone(),
        list: match list {
            Some(digest) => digest::parse(digest),
            None => Err(format!("the annotation {DOCUMENT} is missing")),
        },
    }))
}

/// Reads the document of a release.
pub(crate) fn parse(bytes: &[u8], release: &str) -> Result<Members, String> {
    let document: MembersDocument = serde_json::from_slice(bytes).map_err(foreign::reason)?;
    if document.version != VERSION {
        return Err(format!(
            "its list has version {}, and only {VERSION} is supported",
            document.version
        ));
    }
    if document.release != release {
        return Err(format!(
            "its list is of release {}",
            foreign::shown(&document.release)
        ));
    }
    check(&document.members)?;
    Ok(Members {
        release: document.release,
        members: document.members,
        digest: digest::sha256(bytes),
    })
}

/// Checks the name of a release: 1 to 128 of the characters `A-Z a-z 0-9 . _ + -`, with a letter or
/// a digit first.
///
/// # Errors
///
/// Returns the fault in one line.
pub fn check_release_name(name: &str) -> Result<(), String> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._+-".contains(&byte);
    let is_good = name.len() <= LONGEST_RELEASE
        && name
            .bytes()
            .next()
            .is_some_and(|first| first.is_ascii_alphanumeric())
        && name.bytes().all(is_allowed);
    if is_good {
        return Ok(());
    }
    let start: String = name.chars().take(LONGEST_RELEASE).collect();
    Err(format!(
        "{} is not the name of a release: it should have 1 to {LONGEST_RELEASE} of the characters A-Z a-z 0-9 . _ + - \
         and begin with a letter or a digit",
        foreign::quoted(&start)
    ))
}

/// Checks a list: it has members, few enough, and each name once and in order.
fn check(members: &[Member]) -> Result<(), String> {
    if members.is_empty() {
        return Err("its list has no members".to_owned());
    }
    if members.len() > MOST_MEMBERS {
        return Err(format!(
            "its list has {} members, more than {MOST_MEMBERS}",
            members.len()
        ));
    }
    for member in members {
        if member.name.is_empty() || member.name.len() > LONGEST_MEMBER {
            return Err(format!(
                "its list has a name of {} bytes, and names have 1 to {LONGEST_MEMBER}",
                member.name.len()
            ));
        }
        digest::parse(member.digest.as_ref())?;
    }
    let unordered = members.windows(2).find(|pair| pair[0].name >= pair[1].name);
    match unordered {
        None => Ok(()),
        Some([one, other]) if one.name == other.name => Err(format!(
            "{} is both {} and {}",
            foreign::shown(&one.name),
            one.digest,
            other.digest
        )),
        Some(_) => Err("its list is not sorted by name".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, fill: char) -> Member {
        Member {
            name: name.to_owned(),
            digest: format!("sha256:{}", fill.to_string().repeat(64)).parse().unwrap(),
        }
    }

    #[test]
    fn names_of_releases_have_few_characters() {
        for name in ["1", "2026.1", "shop-4.2+k0s.1", "a_b", &"x".repeat(128)] {
            assert_eq!(check_release_name(name), Ok(()), "{name}");
        }
        for name in [
            "",
            "-a",
            ".a",
            "a/b",
            "a b",
            "a\n",
            "ü",
            "a\u{1b}[2J",
            &"x".repeat(129),
        ] {
            let error = check_release_name(name).unwrap_err();
            assert!(error.len() < 600 && !error.contains(['\n', '\u{1b}']), "{error}");
        }
    }

    #[test]
    fn a_list_reads_back_as_it_was_made() {
        let list = Members::new("r1", vec![member("b", '1'), member("a", '2'), member("b", '1')]).unwrap();
        assert_eq!(list.all(), [member("a", '2'), member("b", '1')]);
        assert_eq!(list.get("b"), Some(&member("b", '1').digest));
        assert_eq!(list.get("c"), None);
        let read = parse(&list.document(), "r1").unwrap();
        assert_eq!(read, list);
        assert_eq!(list.digest(), &digest::sha256(&list.document()));
    }

    #[test]
    fn a_list_that_readers_would_refuse_is_not_made() {
        let many = |count: usize, length: usize| {
            (0..count)
                .map(|n| member(&format!("{n:0length$}"), 'a'))
                .collect::<Vec<_>>()
        };
        for (members, expected) in [
            (Vec::new(), "no members"),
            (vec![member("a", '1'), member("a", '2')], "a is both sha256:1"),
            (vec![member("", '1')], "a name of 0 bytes"),
            (vec![member(&"x".repeat(1025), '1')], "a name of 1025 bytes"),
            (many(MOST_MEMBERS + 1, 6), "50001 members"),
            (many(10_000, 900), "bytes, more than 8388608"),
        ] {
            let error = Members::new("r1", members).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        assert!(Members::new("r 1", vec![member("a", '1')]).is_err());
        assert!(Members::new("r1", many(MOST_MEMBERS, 6)).is_ok());
    }

    #[test]
    fn a_list_with_a_fault_is_refused_as_a_whole() {
        let text = |list: &str| format!(r#"{{"version":1,"release":"r1","members":[{list}]}}"#);
        let row = |name: &str, fill: &str| {
            let digest = fill.repeat(64);
            format!(r#"{{"name":"{name}","digest":"sha256:{digest}"}}"#)
        };
        let (a, b) = (row("a", "1"), row("b", "2"));
        assert!(parse(text(&format!("{a},{b}")).as_bytes(), "r1").is_ok());
        for (bytes, expected) in [
            (text(""), "no members"),
            (text(&format!("{b},{a}")), "not sorted"),
            (text(&format!("{a},{a}")), "a is both"),
            (text(&a).replace(":1,", ":2,"), "version 2"),
            (text(&a).replace("r1", "r2"), "of release r2"),
            (text(&a).replace("sha256:1", "sha256:x"), ""),
            (text(&a).replace("sha256", "md5"), ""),
            (text(&a)[..40].to_owned(), ""),
            (String::new(), ""),
            ("[]".to_owned(), ""),
        ] {
            let error = parse(bytes.as_bytes(), "r1").unwrap_err();
            assert!(
                error.contains(expected) && !error.contains('\n'),
                "{bytes}: {error}"
            );
        }
    }

    #[test]
    fn annotations_name_a_release_only_together() {
        let list = Members::new("r1", vec![member("a", '1')]).unwrap();
        let of = |keys: &[&str]| -> BTreeMap<String, String> {
            let all = list.annotations().into_iter();
            all.filter(|(key, _)| keys.contains(key))
                .map(|(key, value)| (key.to_owned(), value))
                .collect()
        };
        assert!(pointer(&of(&[])).is_none());
        let both = pointer(&of(&[NAME, DOCUMENT])).unwrap().unwrap();
        assert_eq!(
            (both.name.as_str(), both.list.as_ref()),
            ("r1", Ok(list.digest()))
        );
        assert!(pointer(&of(&[DOCUMENT])).unwrap().is_err());
        assert!(pointer(&of(&[NAME])).unwrap().unwrap().list.is_err());
        let hostile = BTreeMap::from([(NAME.to_owned(), "x".repeat(1 << 20))]);
        assert!(pointer(&hostile).unwrap().err().unwrap().len() < 600);
    }
}
