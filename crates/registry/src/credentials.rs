//! Reads credentials in the files of Docker, podman and skopeo: `config.json`, `auth.json`,
//! credential helpers.
//!
//! Sources: docker-credential-helpers' protocol, containers-auth.json(5).

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;
use tokio::io::AsyncWriteExt as _;

use crate::Error;
use crate::locations::Location;

/// Longest time for a helper's answer. A helper that prompts the operator cannot be used.
const HELPER_TIMEOUT: Duration = Duration::from_secs(30);

/// User name in the answer of a helper that returns a token in place of a password.
const TOKEN_USER: &str = "<token>";

/// Largest file in bytes. A larger file is not a credentials file.
const LARGEST_FILE: u64 = 1 << 20;

/// The sources of credentials: files in order, and the helpers that they name.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    files: Vec<(PathBuf, AuthFile)>,
}

/// The secret of a user.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Secret {
    Password {
        user: String,
        password: String,
    },
    /// A refresh token, which the client exchanges for an access token.
    Identity(String),
    /// An access token that is used unchanged.
    Bearer(String),
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Password { .. } => "a password",
            Self::Identity(_) => "an identity token",
            Self::Bearer(_) => "a token",
        })
    }
}

#[derive(Clone, Default, Deserialize)]
struct AuthFile {
    #[serde(default)]
    auths: HashMap<String, Entry>,
    #[serde(default, rename = "credHelpers")]
    helpers: HashMap<String, String>,
    #[serde(default, rename = "credsStore")]
    store: Option<String>,
}

impl fmt::Debug for AuthFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set()
            .entries(self.auths.keys().chain(self.helpers.keys()))
            .finish()
    }
}

#[derive(Clone, Default, Deserialize)]
struct Entry {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    identitytoken: String,
    #[serde(default)]
    registrytoken: String,
}

impl Credentials {
    /// Reads the files. The files of `required` must exist, and those of `optional` may be absent.
    ///
    /// # Errors
    ///
    /// Returns [`Error::Credentials`] with the name of the file.
    pub fn read(required: &[PathBuf], optional: &[PathBuf]) -> Result<Self, Error> {
        let mut files = Vec::new();
        for path in required {
            files.push((path.clone(), read(path).map_err(|error| in_file(path, &error))?));
        }
        for path in optional {
            match read(path) {
                Ok(file) => files.push((path.clone(), file)),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(in_file(path, &error)),
            }
        }
        Ok(Self { files })
    }

    /// Returns the secret for a repository from the first file that has one. A helper for the host
    /// is the only source of its file. Otherwise the entry closest to the repository comes first,
    /// then the store for all hosts. Cancel safe: a helper is killed.
    pub(crate) async fn of(&self, location: &Location) -> Result<Option<Secret>, Error> {
        for (path, file) in &self.files {
            if let Some((server, helper)) = file.helper(location) {
                if let Some(secret) = ask(helper, &server).await? {
                    return Ok(Some(secret));
                }
                continue;
            }
            if let Some((key, entry)) = file.entry(location) {
                let secret = entry.secret().map_err(|reason| {
                    Error::Credentials(format!("{}: entry {key}: {reason}", path.display()))
                })?;
                if secret.is_some() {
                    return Ok(secret);
                }
            }
            if let Some(store) = &file.store {
                let server = if is_docker(&location.host) {
                    DOCKER_SERVER
                } else {
                    &location.host
                };
                if let Some(secret) = ask(store, server).await? {
                    return Ok(Some(secret));
                }
            }
        }
        Ok(None)
    }
}

fn read(path: &Path) -> std::io::Result<AuthFile> {
    let length = std::fs::metadata(path)?.len();
    if length > LARGEST_FILE {
        return Err(std::io::Error::other(format!(
            "it has {length} bytes, and the limit is {LARGEST_FILE}"
        )));
    }
    let bytes = std::fs::read(path)?;
    // Without this step, `serde` would also accept a list of the members' values.
    let members: serde_json::Map<_, _> = serde_json::from_slice(&bytes).map_err(std::io::Error::other)?;
    serde_json::from_value(members.into()).map_err(std::io::Error::other)
}

fn in_file(path: &Path, error: &std::io::Error) -> Error {
    Error::Credentials(format!("{}: {error}", path.display()))
}

const DOCKER_SERVER: &str = "https://index.docker.io/v1/";

fn is_docker(host: &str) -> bool {
    matches!(host, "docker.io" | "index.docker.io" | "registry-1.docker.io")
}

/// Returns the host and path of a key. Keys of the protocol's first version are URLs.
fn plain(key: &str) -> &str {
    let key = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"))
        .unwrap_or(key);
    let key = key.trim_end_matches('/');
    key.strip_suffix("/v1")
        .or_else(|| key.strip_suffix("/v2"))
        .unwrap_or(key)
}

fn same_host(a: &str, b: &str) -> bool {
    a == b || is_docker(a) && is_docker(b)
}

impl AuthFile {
    fn helper(&self, location: &Location) -> Option<(String, &str)> {
        let mut helpers = self.helpers.iter();
        let (server, helper) = helpers.find(|(server, _)| same_host(plain(server), &location.host))?;
        Some((server.clone(), helper))
    }

    /// Returns the entry with the longest key that is a prefix of the repository.
    fn entry(&self, location: &Location) -> Option<(&str, &Entry)> {
        let fits = |key: &str| {
            let key = plain(key);
            let (host, path) = key.split_once('/').unwrap_or((key, ""));
            let below = location.path.strip_prefix(path);
            let is_below =
                path.is_empty() || below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
            (same_host(host, &location.host) && is_below).then_some(path.len())
        };
        self.auths
            .iter()
            .filter_map(|(key, entry)| Some((fits(key)?, key, entry)))
            .max_by_key(|(length, key, _)| (*length, *key))
            .map(|(_, key, entry)| (key.as_str(), entry))
    }
}

impl Entry {
    fn secret(&self) -> Result<Option<Secret>, String> {
        if !self.registrytoken.is_empty() {
            return Ok(Some(Secret::Bearer(self.registrytoken.clone())));
        }
        if !self.identitytoken.is_empty() {
            return Ok(Some(Secret::Identity(self.identitytoken.clone())));
        }
        if !self.auth.is_empty() {
            let lenient =
                GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
            let engine = GeneralPurpose::new(&base64::alphabet::STANDARD, lenient);
            let decoded = engine
                .decode(self.auth.trim())
                .map_err(|_| "its auth is not base64")?;
            let text = String::from_utf8(decoded).map_err(|_| "its auth is not text")?;
            let (user, password) = text.split_once(':').ok_or("its auth is not user:password")?;
            // Old versions of Docker pad the text with zero bytes.
            let password = password.trim_end_matches('\0');
            return Ok(Some(Secret::Password {
                user: user.to_owned(),
                password: password.to_owned(),
            }));
        }
        Ok((!self.username.is_empty()).then(|| Secret::Password {
            user: self.username.clone(),
            password: self.password.clone(),
        }))
    }
}

#[derive(Deserialize)]
struct HelperAnswer {
    #[serde(rename = "Username")]
    user: String,
    #[serde(rename = "Secret")]
    secret: String,
}

/// Asks a helper for the credentials of a server. Returns `None` if the helper has none.
async fn ask(helper: &str, server: &str) -> Result<Option<Secret>, Error> {
    let failed = |reason: String| {
        Error::Credentials(format!(
            "helper docker-credential-{helper} for {server}: {reason}"
        ))
    };
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if helper.is_empty() || !helper.chars().all(is_name) {
        return Err(Error::Credentials(format!(
            "{helper:?} is not the name of a credential helper"
        )));
    }
    let run = async {
        let mut child = tokio::process::Command::new(format!("docker-credential-{helper}"))
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(server.as_bytes()).await?;
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(HELPER_TIMEOUT, run)
        .await
        .map_err(|_| failed("it did not answer within 30 s".to_owned()))?
        .map_err(|error| failed(error.to_string()))?;
    let answer = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        // The protocol has no code for this answer, only this sentence.
        if answer.contains("credentials not found") {
            return Ok(None);
        }
        return Err(failed(answer.trim().chars().take(200).collect()));
    }
    let answer: HelperAnswer = serde_json::from_str(&answer)
        .map_err(|_| failed("its answer does not follow the protocol".to_owned()))?;
    Ok(Some(if answer.user == TOKEN_USER {
        Secret::Identity(answer.secret)
    } else {
        Secret::Password {
            user: answer.user,
            password: answer.secret,
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location(repository: &str) -> Location {
        crate::locations::locations(repository, &[], &[]).remove(0)
    }

    fn password(user: &str) -> Option<Secret> {
        Some(Secret::Password {
            user: user.to_owned(),
            password: "p:w".to_owned(),
        })
    }

    #[tokio::test]
    async fn the_entry_closest_to_the_repository_counts() {
        let encode = |user: &str| base64::engine::general_purpose::STANDARD.encode(format!("{user}:p:w"));
        let file = serde_json::json!({ "auths": {
            "https://index.docker.io/v1/": { "auth": encode("docker") },
            "quay.io": { "auth": encode("quay") },
            "quay.io/team": { "auth": encode("team") },
            "quay.io/team/app": { "username": "app", "password": "p:w" },
            "http://plain.example:5000/v2/": { "auth": encode("plain") },
            "token.example": { "identitytoken": "refresh", "auth": encode("ignored") },
            "bearer.example": { "registrytoken": "abc" },
            "empty.example": {}
        }});
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        std::fs::write(&path, file.to_string()).unwrap();
        let credentials = Credentials::read(&[path], &[folder.path().join("absent.json")]).unwrap();
        let rows = [
            ("docker.io/library/a", password("docker")),
            ("quay.io/a", password("quay")),
            ("quay.io/team/b", password("team")),
            ("quay.io/teams/b", password("quay")),
            ("quay.io/team/app", password("app")),
            ("quay.io/team/app/sub", password("app")),
            ("plain.example:5000/a", password("plain")),
            ("token.example/a", Some(Secret::Identity("refresh".to_owned()))),
            ("bearer.example/a", Some(Secret::Bearer("abc".to_owned()))),
            ("empty.example/a", None),
            ("other.example/a", None),
        ];
        for (repository, expected) in rows {
            assert_eq!(
                credentials.of(&location(repository)).await.unwrap(),
                expected,
                "{repository}"
            );
        }
    }

    #[test]
    fn files_that_are_wrong_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        for text in ["", "[]", "{\"auths\":1}"] {
            std::fs::write(&path, text).unwrap();
            let error = Credentials::read(std::slice::from_ref(&path), &[]).unwrap_err();
            assert!(error.to_string().contains("config.json"), "{error}");
        }
        assert!(Credentials::read(&[folder.path().join("absent")], &[]).is_err());
    }

    #[tokio::test]
    async fn a_helper_is_never_a_path() {
        for name in ["", "../evil", "a/b", "a b"] {
            assert!(ask(name, "x").await.is_err(), "{name}");
        }
    }

    #[test]
    fn secrets_are_not_printed() {
        let secret = format!("{:?}", password("user").unwrap());
        assert!(!secret.contains("p:w") && !secret.contains("user"), "{secret}");
    }
}
