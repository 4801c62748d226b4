//! Places: paths, sockets, addresses, the namespace.

use std::net::SocketAddr;
use std::path::{Component, Path, PathBuf};

use node::settings::MOST_IMAGES_DIRS;
use serde_yaml::Value;

use super::{Kind, expects, got, list, quoted, text};

pub(in crate::config) struct AbsolutePath;

impl Kind for AbsolutePath {
    type Setting = PathBuf;

    fn read(value: &Value) -> Result<PathBuf, String> {
        const WANTED: &str = "an absolute path";
        let path = Path::new(text(value, WANTED)?);
        match path.is_absolute() && !path.as_os_str().as_encoded_bytes().contains(&0) {
            true => Ok(path.to_owned()),
            false => Err(got(WANTED, value)),
        }
    }

    fn show(setting: &PathBuf) -> Value {
        setting.display().to_string().into()
    }
}

impl AbsolutePath {
    /// Reads the path of a flag. A relative path starts at the working directory, as in other
    /// programs.
    pub(in crate::config) fn of(path: &Path) -> Result<PathBuf, String> {
        let absolute = std::path::absolute(path).map_err(|error| error.to_string())?;
        match absolute.to_str() {
            Some(_) => Ok(absolute),
            None => Err(format!("{} is not UTF-8", absolute.display())),
        }
    }
}

pub(in crate::config) struct AbsolutePaths;

impl Kind for AbsolutePaths {
    type Setting = Vec<PathBuf>;

    fn read(value: &Value) -> Result<Vec<PathBuf>, String> {
        let paths = list(value, "absolute paths")?;
        paths
            .into_iter()
            .map(|path| AbsolutePath::read(&path.into()))
            .collect()
    }

    fn show(setting: &Vec<PathBuf>) -> Value {
        setting.iter().map(AbsolutePath::show).collect()
    }
}

/// The images folders, the first of which takes new bundles.
pub(in crate::config) struct ImagesDirs;

impl Kind for ImagesDirs {
    type Setting = Vec<PathBuf>;

    fn read(value: &Value) -> Result<Vec<PathBuf>, String> {
        let folders = AbsolutePaths::read(value)?;
        // The names of bundles contain these paths, so each folder has one spelling.
        let folders: Vec<PathBuf> = folders.iter().map(|path| path.components().collect()).collect();
        if folders.len() > MOST_IMAGES_DIRS {
            let wanted = format!("at most {MOST_IMAGES_DIRS} folders");
            return Err(expects(&wanted, folders.len()));
        }
        for (at, folder) in folders.iter().enumerate() {
            if folder.components().any(|part| part == Component::ParentDir) {
                return Err(expects("paths without ..", folder.display()));
            }
            let other = |(other_at, other): &(usize, &PathBuf)| *other_at != at && folder.starts_with(other);
            match folders.iter().enumerate().find(other) {
                Some((_, other)) if other == folder => {
                    return Err(format!("{} is there twice", folder.display()));
                }
                Some((_, other)) => {
                    let (folder, other) = (folder.display(), other.display());
                    return Err(format!("{folder} is below {other}: name one of them"));
                }
                None => {}
            }
        }
        Ok(folders)
    }

    fn show(setting: &Vec<PathBuf>) -> Value {
        AbsolutePaths::show(setting)
    }
}

/// The path of a socket, which may begin with `unix://`.
pub(in crate::config) struct Socket;

impl Kind for Socket {
    type Setting = PathBuf;

    fn read(value: &Value) -> Result<PathBuf, String> {
        let address = text(value, "the path of a socket")?;
        let path = address
            .strip_prefix("unix://")
            .or(address.strip_prefix("unix:"))
            .unwrap_or(address);
        AbsolutePath::read(&path.into())
            .map_err(|_| got("the path of a socket, such as /run/k0s/containerd.sock", value))
    }

    fn show(setting: &PathBuf) -> Value {
        AbsolutePath::show(setting)
    }
}

impl Socket {
    /// Reads the socket of a flag.
    pub(in crate::config) fn of(path: &Path) -> Result<PathBuf, String> {
        match path.to_str().filter(|text| text.starts_with("unix:")) {
            Some(address) => Socket::read(&address.into()),
            None => AbsolutePath::of(path),
        }
    }
}

/// An address that only this machine can reach. A proxy in front of it can let other machines in
/// and check their rights.
pub(in crate::config) struct Loopback;

impl Kind for Loopback {
    type Setting = SocketAddr;

    fn read(value: &Value) -> Result<SocketAddr, String> {
        let wanted = "an address of this machine with a port, such as 127.0.0.1:9799";
        let address: SocketAddr = text(value, wanted)?.parse().map_err(|_| got(wanted, value))?;
        match address.ip().is_loopback() {
            true => Ok(address),
            false => Err(got(wanted, value)),
        }
    }

    fn show(setting: &SocketAddr) -> Value {
        setting.to_string().into()
    }
}

/// A namespace by containerd's rules: at most 76 characters, letters and digits with single `-`,
/// `_` or `.` between them.
pub(in crate::config) struct Namespace;

impl Kind for Namespace {
    type Setting = String;

    fn read(value: &Value) -> Result<String, String> {
        Namespace::of(text(value, Namespace::WANTED)?)
    }

    fn show(setting: &String) -> Value {
        setting.as_str().into()
    }
}

impl Namespace {
    const WANTED: &str = "a namespace such as k8s.io";

    /// Checks the name of a namespace.
    pub(in crate::config) fn of(name: &str) -> Result<String, String> {
        let is_word = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric());
        match name.len() <= 76 && name.split(['-', '_', '.']).all(is_word) {
            true => Ok(name.to_owned()),
            false => Err(expects(Self::WANTED, quoted(name))),
        }
    }
}
