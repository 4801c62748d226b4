//! Flags that set keys, with the values that the command line has read.

use std::path::PathBuf;

use import::unpack::Unpack;
use node::settings::{LogLevel, Settings, Signatures};

use super::values::{AbsolutePath, Names, Namespace, Platforms, Rate, Socket};

/// A flag that sets a key of the configuration, as the operator typed it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Flag {
    DataDir(PathBuf),
    ImagesDir(PathBuf),
    StateDir(PathBuf),
    Address(PathBuf),
    Namespace(String),
    Quiet,
    /// Number of times it was typed, at least 1.
    Verbose(u8),
    Platforms(Vec<String>),
    /// Bytes per second, with a unit.
    RateLimit(String),
    /// Pairs of digest and reference.
    Names(Vec<(String, String)>),
    Unpack(Unpack),
    Signatures(Option<Signatures>),
}

impl Flag {
    /// Returns the flag as typed.
    pub(super) fn name(&self) -> &'static str {
        self.names().0
    }

    /// Returns the key that it sets.
    pub(super) fn key(&self) -> &'static str {
        self.names().1
    }

    fn names(&self) -> (&'static str, &'static str) {
        match self {
            Flag::DataDir(_) => ("--data-dir", "dataDir"),
            Flag::ImagesDir(_) => ("--images-dir", "imagesDir"),
            Flag::StateDir(_) => ("--state-dir", "stateDir"),
            Flag::Address(_) => ("--address", "address"),
            Flag::Namespace(_) => ("--namespace", "namespace"),
            Flag::Quiet => ("--quiet", "log.level"),
            Flag::Verbose(_) => ("--verbose", "log.level"),
            Flag::Platforms(_) => ("--platform", "platforms"),
            Flag::RateLimit(_) => ("--rate-limit", "rateLimit"),
            Flag::Names(_) => ("--name", "names"),
            Flag::Unpack(_) => ("--unpack", "unpack"),
            Flag::Signatures(_) => ("--signatures", "signatures"),
        }
    }

    /// Puts the value into the settings.
    ///
    /// # Errors
    /// Returns the reason why the value is wrong.
    pub(super) fn put(&self, settings: &mut Settings) -> Result<(), String> {
        match self {
            Flag::DataDir(path) => settings.data_dir = Some(AbsolutePath::of(path)?),
            Flag::ImagesDir(path) => settings.images_dir = Some(AbsolutePath::of(path)?),
            Flag::StateDir(path) => settings.state_dir = AbsolutePath::of(path)?,
            Flag::Address(path) => settings.address = Some(Socket::of(path)?),
            Flag::Namespace(name) => settings.namespace = Namespace::of(name)?,
            Flag::Quiet => settings.log.level = LogLevel::Error,
            Flag::Verbose(1) => settings.log.level = LogLevel::Debug,
            Flag::Verbose(_) => settings.log.level = LogLevel::Trace,
            Flag::Platforms(names) => settings.platforms = Platforms::of(names)?,
            Flag::RateLimit(rate) => settings.rate_limit = Rate::of(rate)?,
            Flag::Names(pairs) => settings.names = Names::of(pairs.iter().cloned())?,
            Flag::Unpack(when) => settings.unpack = *when,
            Flag::Signatures(rule) => settings.signatures = *rule,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::keys::KEYS;
    use super::*;

    #[test]
    fn every_flag_sets_the_key_that_it_stands_for_and_no_other() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let flags = [
            Flag::DataDir("/x".into()),
            Flag::ImagesDir("/x".into()),
            Flag::StateDir("/x".into()),
            Flag::Address("/x".into()),
            Flag::Namespace("x".to_owned()),
            Flag::Quiet,
            Flag::Verbose(1),
            Flag::Verbose(2),
            Flag::Platforms(vec!["linux/arm64".to_owned()]),
            Flag::RateLimit("50MiB".to_owned()),
            Flag::Names(vec![(digest, "busybox".to_owned())]),
            Flag::Unpack(Unpack::Background),
            Flag::Signatures(Some(Signatures::Require)),
        ];
        for flag in flags {
            let (before, mut after) = (Settings::default(), Settings::default());
            flag.put(&mut after).unwrap();
            let changed = KEYS
                .iter()
                .filter(|key| (key.show)(&before) != (key.show)(&after));
            let changed: Vec<_> = changed.map(|key| key.name).collect();
            assert_eq!(changed, [flag.key()], "{flag:?}");
        }
    }

    #[test]
    fn a_flag_that_makes_no_sense_is_refused_in_the_words_of_its_key() {
        let table = [
            (
                Flag::Namespace("a b".to_owned()),
                "expects a namespace such as k8s.io, got \"a b\"",
            ),
            (
                Flag::Address("unix:x".into()),
                "expects the path of a socket, such as /run/k0s/containerd.sock, got \"unix:x\"",
            ),
            (
                Flag::RateLimit("1KiB".to_owned()),
                "expects bytes a second such as 50MiB, at least 1MiB, or 0 for no limit, got \"1KiB\"",
            ),
            (
                Flag::Platforms(vec![String::new()]),
                "expects platforms such as linux/arm64, got \"\"",
            ),
            (
                Flag::Names(vec![("x".to_owned(), "busybox".to_owned())]),
                "expects a digest such as sha256:… with 64 hexadecimal digits, got \"x\"",
            ),
        ];
        for (flag, wanted) in table {
            assert_eq!(flag.put(&mut Settings::default()).unwrap_err(), wanted);
        }
    }
}
