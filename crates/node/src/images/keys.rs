//! The folder of trusted keys, and the folder of revoked digests beside it.
//!
//! A key is a file `NAME.pub`. `NAME.allow` beside it has the patterns of the names that its
//! bundles may use. A key without that file is unusable. Each call reads the folder again, so a new
//! file is all that the operator has to add.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use admission::{Admission, Key, Keys, LARGEST_KEY, LARGEST_LIST, ListProblem, Revocations, TrustedKey};
use basics::Foreign;
use bundle::Identity;
use import::Pattern;
use import::names::Scope;

use super::folder::{Class, Depth, Folder, Listed, Reason};
use super::roots::Unusable;
use super::sidecar::text_lines;

/// Ending of the file with a key.
const KEY: &str = ".pub";

/// Ending of the file with the patterns of a key.
const ALLOW: &str = ".allow";

/// Largest file of patterns, in bytes: some thousand patterns.
const LARGEST_ALLOW: u64 = 64 << 10;

/// Name of the folder with the revoked digests. It lies beside the folder of keys.
const REVOKED: &str = "revoked.d";

/// The keys of this node, with the names that the bundles of each key may use.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrustedKeys {
    keys: Keys,
    /// The patterns of each usable key, by the key's name.
    scopes: BTreeMap<String, Vec<Pattern>>,
}

impl TrustedKeys {
    /// Reads the folder of keys. If another user may have changed the folder, no key is usable.
    pub fn read(folder: &Path) -> TrustedKeys {
        let read = Folder::open_roots(folder).and_then(|open| read_keys(&open, folder));
        read.unwrap_or_else(|why| TrustedKeys {
            keys: Keys::unusable(format!("the folder of trusted keys cannot be used: {why}")),
            scopes: BTreeMap::new(),
        })
    }

    /// Returns the usable keys, and why the folder or files in it do not count.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Returns the names that the signers of a bundle may give, one scope for each signer. The
    /// admission must have been judged with these keys: a signer that is none of them may give no
    /// name.
    pub fn scopes_of(&self, admission: &Admission) -> Vec<Scope> {
        let signers = admission.signers.iter();
        let trusted = signers.map(|signer| {
            let mut usable = self.keys.usable().iter();
            usable.find(|key| key.name == signer.key && *key.key.fingerprint() == signer.fingerprint)
        });
        let scope = |key: &TrustedKey| Scope {
            key: key.to_string(),
            names: self.scopes.get(&key.name).cloned().unwrap_or_default(),
        };
        trusted.flatten().map(scope).collect()
    }
}

fn read_keys(folder: &Folder, path: &Path) -> Result<TrustedKeys, Unusable> {
    let (mut usable, mut problems, mut scopes) = (Vec::new(), Vec::new(), BTreeMap::new());
    for entry in entries(folder, path)? {
        let Some(stem) = entry.name.as_bytes().strip_suffix(KEY.as_bytes()) else {
            continue;
        };
        match read_key(folder, path, &entry.name, OsStr::from_bytes(stem)) {
            Ok((key, patterns)) => {
                scopes.insert(key.name.clone(), patterns);
                usable.push(key);
            }
            Err(why) => problems.push(format!("{}: {why}", shown(&entry.name))),
        }
    }
    let keys = Keys::new(usable, problems);
    Ok(TrustedKeys { keys, scopes })
}

/// Reads a key and its patterns, or returns why the key cannot be used.
fn read_key(
    folder: &Folder,
    path: &Path,
    file: &OsStr,
    stem: &OsStr,
) -> Result<(TrustedKey, Vec<Pattern>), String> {
    let name = stem
        .to_str()
        .ok_or("its name is not UTF-8: rename it")?
        .to_owned();
    let text = folder.read_roots(path, file, LARGEST_KEY);
    let key = Key::parse(&text.map_err(|why| why.to_string())?).map_err(|why| why.to_string())?;
    let allow = format!("{name}{ALLOW}");
    let text = match folder.read_roots(path, OsStr::new(&allow), LARGEST_ALLOW) {
        Ok(text) => text,
        Err(Unusable::Absent(path)) => {
            return Err(format!(
                "{} is missing: write the patterns of the names that the key may sign into it, or * for all",
                path.display()
            ));
        }
        Err(why) => return Err(why.to_string()),
    };
    let patterns = patterns(&text).map_err(|why| format!("{}: {why}", basics::foreign::shown(&allow)))?;
    Ok((TrustedKey { name, key }, patterns))
}

/// Returns the patterns of a `.allow` file: one on each line, and comments.
fn patterns(text: &[u8]) -> Result<Vec<Pattern>, String> {
    let pattern = |line: &[u8]| {
        let line = String::from_utf8_lossy(line.trim_ascii());
        let pattern = line.parse::<Pattern>();
        pattern.map_err(|why| format!("{}: {why}", basics::foreign::quoted(&line)))
    };
    let patterns: Vec<Pattern> = text_lines(text).map(pattern).collect::<Result<_, _>>()?;
    match patterns.is_empty() {
        true => Err("it has no pattern: write one, or * for all names".to_owned()),
        false => Ok(patterns),
    }
}

/// Returns the folder of revoked digests that belongs to a folder of keys.
fn revoked_beside(keys: &Path) -> PathBuf {
    keys.with_file_name(REVOKED)
}

/// Reads the revoked digests beside the folder of keys. An absent folder revokes nothing. If
/// another user may have changed the folder or a file in it, a line may be lost. The revocations
/// are unusable then.
pub fn revocations(keys: &Path) -> Revocations {
    let path = revoked_beside(keys);
    let read = Folder::open_roots(&path).and_then(|folder| {
        let entries = entries(&folder, &path)?;
        Ok((folder, entries))
    });
    let mut revocations = Revocations::default();
    let (folder, entries) = match read {
        Ok(read) => read,
        Err(Unusable::Absent(_)) => return revocations,
        Err(why) => return Revocations::unusable(why.to_string()),
    };
    for entry in entries {
        match folder.read_roots(&path, &entry.name, LARGEST_LIST) {
            Ok(text) => revocations.add(&Foreign::file_name(&entry.name).to_string(), &text),
            Err(why) => {
                let why = ListProblem::Unreadable(why.to_string());
                revocations.add_problem(&Foreign::file_name(&entry.name).to_string(), &why);
            }
        }
    }
    revocations
}

/// Returns the entries of a folder, except the traces of editors and uploads.
fn entries(folder: &Folder, path: &Path) -> Result<Vec<Listed>, Unusable> {
    let listing = folder.list(Depth::default()).map_err(|error| Unusable::Io {
        path: path.to_owned(),
        error,
    })?;
    let is_trace = |class: &Class| matches!(class, Class::Ignored(Reason::Hidden | Reason::TemporaryName));
    let entries = listing.entries.into_iter();
    Ok(entries.filter(|entry| !is_trace(&entry.class)).collect())
}

fn shown(name: &OsStr) -> String {
    format!("{:.200}", Foreign::file_name(name))
}

/// The state of the folders of keys and revoked digests. Equal stamps mean equal keys and
/// revocations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    keys: Seen,
    revoked: Seen,
}

/// The files of a folder with their identities, or why it cannot be used.
type Seen = Result<Vec<(OsString, Identity)>, String>;

impl Stamp {
    /// Reads the stamp of a folder of keys, and of the revoked digests beside it.
    pub fn of(keys: &Path) -> Stamp {
        Stamp {
            keys: seen(keys),
            revoked: seen(&revoked_beside(keys)),
        }
    }
}

fn seen(path: &Path) -> Seen {
    let listed = Folder::open_roots(path).and_then(|folder| entries(&folder, path));
    let entries = listed.map_err(|why| why.to_string())?.into_iter();
    Ok(entries.map(|entry| (entry.name, entry.identity)).collect())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use admission::{KeyKind, MOST_KEYS};
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use oci_spec::image::Digest;
    use p256::ecdsa::SigningKey;
    use p256::ecdsa::signature::Signer as _;
    use p256::pkcs8::{EncodePublicKey as _, LineEnding};

    use super::*;
    use crate::images::roots::tests::{folder_of_root, set_mode};

    /// A name, a change of a file, and a part of the reason that follows.
    type Case<'a> = (&'a str, &'a dyn Fn(&Path), &'a str);

    fn private_key(seed: u8) -> SigningKey {
        SigningKey::from_slice(&[seed; 32]).unwrap()
    }

    /// Returns the public key of a seed in PEM.
    pub(crate) fn public_key(seed: u8) -> String {
        let key = *private_key(seed).verifying_key();
        key.to_public_key_pem(LineEnding::LF).unwrap()
    }

    /// Returns a signature over a text by the key of a seed, as cosign writes it.
    pub(crate) fn signature(seed: u8, text: &[u8]) -> Vec<u8> {
        let signature: p256::ecdsa::Signature = private_key(seed).sign(text);
        STANDARD.encode(signature.to_der()).into_bytes()
    }

    /// Returns keys that may give every name, by their names and seeds.
    pub(crate) fn trusted(keys: &[(&str, u8)]) -> Keys {
        let key = |(name, seed): &(&str, u8)| TrustedKey {
            name: (*name).to_owned(),
            key: Key::parse(public_key(*seed).as_bytes()).unwrap(),
        };
        Keys::new(keys.iter().map(key).collect(), Vec::new())
    }

    fn problems(keys: &TrustedKeys) -> String {
        keys.keys().problems().join("\n")
    }

    fn usable(keys: &TrustedKeys) -> Vec<&str> {
        keys.keys().usable().iter().map(|key| key.name.as_str()).collect()
    }

    #[test]
    fn a_key_is_usable_with_its_patterns_and_each_other_key_says_why_not() {
        let temporary = folder_of_root();
        let folder = temporary.path().join("keys.d");
        fs::create_dir(&folder).unwrap();
        let write = |name: &str, text: &str| fs::write(folder.join(name), text).unwrap();
        write("release.pub", &public_key(1));
        write(
            "release.allow",
            "# the shop\nr.test/shop/*\n\n  quay.io/k0sproject/*  \r\n",
        );
        write("lab.pub", &public_key(2));
        write("lab.allow", "*");
        write("bare.pub", &public_key(3));
        write("empty.pub", &public_key(3));
        write("empty.allow", "# none\n");
        write("spaced.pub", &public_key(3));
        write("spaced.allow", "r.test/a b\n");
        write("broken.pub", &public_key(3)[..90]);
        write("broken.allow", "*");
        write("open.pub", &public_key(3));
        write("open.allow", "*");
        set_mode(&folder.join("open.allow"), 0o666);
        write("wide.pub", &public_key(3));
        set_mode(&folder.join("wide.pub"), 0o664);
        write("wide.allow", "*");
        symlink(folder.join("lab.pub"), folder.join("link.pub")).unwrap();
        write("link.allow", "*");
        write("huge.pub", &"x".repeat(20_000));
        write("huge.allow", "*");
        write("long.pub", &public_key(3));
        write("long.allow", &"r.test/a\n".repeat(10_000));
        write(".hidden.pub", "");
        write("notes.txt", "");
        fs::create_dir(folder.join("dir.pub")).unwrap();
        fs::write(folder.join(OsStr::from_bytes(b"\xff.pub")), public_key(3)).unwrap();

        let keys = TrustedKeys::read(&folder);
        assert_eq!(usable(&keys), ["lab", "release"]);
        let told = problems(&keys);
        let table = [
            ("bare.pub", "bare.allow is missing: "),
            ("empty.pub", "empty.allow: it has no pattern"),
            (
                "spaced.pub",
                "spaced.allow: \"r.test/a b\": a pattern has no spaces",
            ),
            ("broken.pub", "no whole public key"),
            ("open.pub", "others than root can write"),
            ("wide.pub", "others than root can write"),
            ("link.pub", "is a symbolic link"),
            ("huge.pub", "larger than"),
            ("long.pub", "long.allow is larger than 65536 bytes"),
            ("dir.pub", "no regular file"),
            ("\\xff.pub", "not UTF-8"),
        ];
        for (name, why) in table {
            let line = told.lines().find(|line| line.starts_with(&format!("{name}: ")));
            assert!(line.is_some_and(|line| line.contains(why)), "{name}: {told}");
        }
        assert_eq!(told.lines().count(), table.len(), "{told}");

        let signer = |name: &str, of: &str| admission::Signer {
            key: name.to_owned(),
            fingerprint: Key::parse(of.as_bytes()).unwrap().fingerprint().clone(),
            kind: KeyKind::P256,
            proof: 0,
        };
        let catalog: Digest = format!("sha256:{}", "a".repeat(64)).parse().unwrap();
        let scopes = |signers| {
            let remarks = Vec::new();
            let scopes = keys.scopes_of(&Admission {
                catalog: catalog.clone(),
                signers,
                remarks,
            });
            let text = |scope: &Scope| {
                scope
                    .names
                    .iter()
                    .map(|name| format!("{name} "))
                    .collect::<String>()
            };
            scopes.iter().map(text).collect::<String>()
        };
        let (one, two) = (public_key(1), public_key(2));
        assert_eq!(
            scopes(vec![signer("release", &one)]),
            "r.test/shop/* quay.io/k0sproject/* "
        );
        assert_eq!(
            scopes(vec![signer("lab", &two), signer("release", &one)]),
            "* r.test/shop/* quay.io/k0sproject/* "
        );
        // Another key took the name since, or the key is gone.
        assert_eq!(scopes(vec![signer("release", &two), signer("gone", &one)]), "");
    }

    #[test]
    fn a_folder_of_keys_that_another_user_may_have_changed_has_no_usable_key() {
        let temporary = folder_of_root();
        let above = temporary.path().join("above");
        let folder = above.join("keys.d");
        assert!(problems(&TrustedKeys::read(&folder)).contains("above does not exist"));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("a.pub"), public_key(1)).unwrap();
        fs::write(folder.join("a.allow"), "*").unwrap();
        assert_eq!(usable(&TrustedKeys::read(&folder)), ["a"]);
        for at in [&folder, &above] {
            let before = Stamp::of(&folder);
            set_mode(at, 0o777);
            let keys = TrustedKeys::read(&folder);
            assert!(usable(&keys).is_empty());
            let told = problems(&keys);
            assert!(
                told.contains("the folder of trusted keys")
                    && told.contains(&format!("{} (mode", at.display())),
                "{told}"
            );
            assert_ne!(Stamp::of(&folder), before);
            set_mode(at, 0o755);
        }
        for seed in 1..=u8::try_from(MOST_KEYS).unwrap() {
            fs::write(folder.join(format!("b{seed}.pub")), public_key(seed)).unwrap();
            fs::write(folder.join(format!("b{seed}.allow")), "*").unwrap();
        }
        let keys = TrustedKeys::read(&folder);
        assert!(
            usable(&keys).is_empty() && problems(&keys).contains("at most 64"),
            "{keys:?}"
        );
    }

    #[test]
    fn revoked_digests_are_read_beside_the_keys_and_a_file_that_cannot_be_read_stops_all() {
        let temporary = folder_of_root();
        let (keys, revoked) = (
            temporary.path().join("keys.d"),
            temporary.path().join("revoked.d"),
        );
        let digest = |letter: &str| -> Digest { format!("sha256:{}", letter.repeat(64)).parse().unwrap() };
        assert_eq!(
            revocations(&keys),
            Revocations::default(),
            "an absent folder revokes nothing"
        );
        let mut stamps = vec![Stamp::of(&keys)];

        fs::create_dir(&revoked).unwrap();
        fs::write(
            revoked.join("2026"),
            format!("# CVE\n{}\n{}  b.tar\n", digest("a"), "b".repeat(64)),
        )
        .unwrap();
        fs::write(revoked.join("old~"), "nonsense").unwrap();
        fs::write(revoked.join(".new"), "nonsense").unwrap();
        let read = revocations(&keys);
        assert_eq!(read.problem(), None);
        assert_eq!(read.of_catalog(&digest("a")), Some("2026"));
        assert_eq!(read.of_file(&digest("b")), Some("2026"));
        assert_eq!(
            (read.of_catalog(&digest("b")), read.of_file(&digest("a"))),
            (None, None)
        );
        stamps.push(Stamp::of(&keys));

        let bad: [Case<'_>; 5] = [
            (
                "text",
                &|path| fs::write(path, "sha256:12\n").unwrap(),
                "line 1 is no digest",
            ),
            (
                "open",
                &|path| {
                    fs::write(path, "").unwrap();
                    set_mode(path, 0o646);
                },
                "others than root",
            ),
            (
                "link",
                &|path| symlink("2026", path).unwrap(),
                "is a symbolic link",
            ),
            ("folder", &|path| fs::create_dir(path).unwrap(), "no regular file"),
            (
                "large",
                &|path| fs::write(path, "#".repeat((4 << 20) + 1)).unwrap(),
                "larger than",
            ),
        ];
        for (name, make, why) in bad {
            let path = revoked.join(name);
            make(&path);
            let read = revocations(&keys);
            let problem = read.problem().unwrap_or_default();
            assert!(
                problem.starts_with(&format!("{name}: ")) && problem.contains(why),
                "{name}: {problem}"
            );
            let now = Stamp::of(&keys);
            assert!(!stamps.contains(&now), "{name}");
            stamps.push(now);
            fs::remove_file(&path).or_else(|_| fs::remove_dir(&path)).unwrap();
        }
        set_mode(&revoked, 0o775);
        let read = revocations(&keys);
        assert!(
            read.problem().is_some_and(|why| why.contains("others than root")),
            "{read:?}"
        );
    }
}
