//! Configuration: from the operator's values to the program's settings.
//!
//! The sources are the [`mod@file`], the [`environment`] and the [`flags`]. Each returns a list of
//! [`Given`] values: text that a key reads, or a flag that the command line has read. One pure
//! function, [`resolve`], turns them into [`Settings`] and reports every mistake at once. One row
//! of [`keys`] has everything about a key. [`values`] reads and prints each kind of value. No code
//! here checks the node or knows the parser of the command line.

mod environment;
mod file;
mod flags;
mod keys;
mod resolve;
mod values;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use node::settings::Settings;
use serde::Serialize;
use serde_yaml::Value;

pub(crate) use self::flags::Flag;
use self::keys::{KEYS, Key};
pub(crate) use self::resolve::reload;
pub(crate) use self::values::Words;

/// Path of the configuration file unless `--config` or `AIRGAPD_CONFIG` sets another. The file may
/// be missing there.
pub(crate) const DEFAULT_FILE: &str = "/etc/airgapd/config.yaml";

/// Origin of a value. A later origin in this list overrides the earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Origin {
    Default,
    File,
    Environment,
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Origin::Default => "default",
            Origin::File => "file",
            Origin::Environment => "environment",
            Origin::Flag => "flag",
        })
    }
}

/// Exact place of a value, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    File { path: PathBuf, line: Option<usize> },
    Variable(String),
    Flag(&'static str),
}

impl Place {
    fn origin(&self) -> Origin {
        match self {
            Place::File { .. } => Origin::File,
            Place::Variable(_) => Origin::Environment,
            Place::Flag(_) => Origin::Flag,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::File {
                path,
                line: Some(line),
            } => write!(f, "{}:{line}", path.display()),
            Place::File { path, line: None } => write!(f, "{}", path.display()),
            Place::Variable(name) => write!(f, "environment variable {name}"),
            Place::Flag(name) => f.write_str(name),
        }
    }
}

/// A value from one of the sources.
#[derive(Clone, Debug, PartialEq)]
struct Given {
    key: String,
    value: Typed,
    place: Place,
}

/// A value before it is checked.
#[derive(Clone, Debug, PartialEq)]
enum Typed {
    /// From the file or a variable. Its key reads it.
    Written(Value),
    /// From a flag, which the command line has read.
    Flag(Flag),
}

impl Given {
    /// Puts the value of this key into the settings.
    ///
    /// # Errors
    ///
    /// Returns the reason why the value is wrong.
    fn put(&self, key: &Key, settings: &mut Settings) -> Result<(), String> {
        match &self.value {
            Typed::Written(value) => (key.read)(settings, value),
            Typed::Flag(flag) => flag.put(settings),
        }
    }
}

impl From<Flag> for Given {
    fn from(flag: Flag) -> Given {
        Given {
            key: flag.key().to_owned(),
            place: Place::Flag(flag.name()),
            value: Typed::Flag(flag),
        }
    }
}

/// A mistake in the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mistake {
    pub(crate) place: Place,
    /// The key, if the mistake concerns one.
    pub(crate) key: Option<String>,
    pub(crate) what: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if let (Some(key), Place::File { .. }) = (&self.key, &self.place) {
            write!(f, "{key}: ")?;
        }
        f.write_str(&self.what)
    }
}

/// All mistakes in the configuration, in the order file, environment, flags.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mistakes(pub(crate) Vec<Mistake>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the configuration is not usable")?;
        self.0.iter().try_for_each(|mistake| write!(f, "\n  {mistake}"))
    }
}

impl std::error::Error for Mistakes {}

impl Mistakes {
    /// Returns all mistakes in one line, for the log.
    pub(crate) fn in_one_line(&self) -> String {
        let told = self.0.iter().map(ToString::to_string);
        let told: Vec<String> = told
            .map(|text| text.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        told.join("; ")
    }
}

/// Settings, with the origin of each.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Config {
    pub(crate) settings: Settings,
    origins: BTreeMap<&'static str, Origin>,
    /// File that was read, if it exists.
    pub(crate) file: Option<PathBuf>,
    /// Values of removed keys, which have no effect: one per place.
    pub(crate) removed: Vec<Mistake>,
}

impl Config {
    /// Returns every key with its effective value and origin, in the order of the documentation.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let origin = |key: &Key| self.origins.get(key.name).copied().unwrap_or(Origin::Default);
        let row = |key: &Key| Row {
            key: key.name,
            value: (key.show)(&self.settings),
            origin: origin(key),
        };
        KEYS.iter().map(row).collect()
    }

    /// Logs a warning for each place with a removed key.
    pub(crate) fn tell_of_removed(&self) {
        for removed in &self.removed {
            tracing::warn!("{removed}");
        }
    }
}

/// One line of `airgapd config`. In JSON: `{"key": …, "value": …, "origin": …}`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Row {
    pub(crate) key: &'static str,
    /// `null` if the distribution sets the value, or there is none.
    pub(crate) value: Value,
    pub(crate) origin: Origin,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // JSON is YAML, and short values look the same in both.
        let value = serde_json::to_string(&self.value).unwrap_or_default();
        write!(f, "{}: {value}  # {}", self.key, self.origin)
    }
}

/// Reads the file, the environment and the flags, and resolves them. `file` is the path from
/// `--config`.
///
/// # Errors
/// Returns all mistakes in them.
pub(crate) fn load(
    file: Option<&Path>,
    flags: Vec<Flag>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Config, Mistakes> {
    let mut mistakes = Vec::new();
    let (variables, file_variable) = environment::read(environment, &mut mistakes);
    let named = match (file, file_variable) {
        (Some(path), _) => Some((path.to_owned(), Place::Flag("--config"))),
        (None, Some(path)) => Some((path, Place::Variable("AIRGAPD_CONFIG".to_owned()))),
        (None, None) => None,
    };
    let (file, mut given) = file::read(named, &mut mistakes);
    given.extend(variables);
    given.extend(flags.into_iter().map(Given::from));
    match resolve::resolve(given) {
        Ok(mut config) if mistakes.is_empty() => {
            config.file = file;
            Ok(config)
        }
        Ok(_) => Err(Mistakes(mistakes)),
        Err(Mistakes(more)) => Err(Mistakes(mistakes.into_iter().chain(more).collect())),
    }
}

#[cfg(test)]
mod tests {
    use node::settings::{LogLevel, PlatformChoice};

    use super::*;

    fn value_of(config: &Config, key: &str) -> (String, Origin) {
        let row = config.rows().into_iter().find(|row| row.key == key).unwrap();
        (serde_json::to_string(&row.value).unwrap(), row.origin)
    }

    fn environment(pairs: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
        pairs
            .iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect()
    }

    #[test]
    fn flags_beat_variables_beat_the_file_beats_defaults() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.yaml");
        std::fs::write(&path, "namespace: file\nresync: 1m\ngrace: 1s\n").unwrap();
        let variables = environment(&[("AIRGAPD_NAMESPACE", "variable"), ("AIRGAPD_RESYNC", "2m")]);
        let flags = vec![Flag::Namespace("flag".to_owned())];
        let config = load(Some(&path), flags, variables).unwrap();

        assert_eq!(value_of(&config, "namespace"), ("\"flag\"".into(), Origin::Flag));
        assert_eq!(
            value_of(&config, "resync"),
            ("\"2m\"".into(), Origin::Environment)
        );
        assert_eq!(value_of(&config, "grace"), ("\"1s\"".into(), Origin::File));
        assert_eq!(value_of(&config, "cri"), ("null".into(), Origin::Default));
        assert_eq!(config.file, Some(path));
    }

    #[test]
    fn lists_and_maps_fit_into_variables() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.yaml");
        std::fs::write(&path, "").unwrap();
        let names = format!("sha256:{}=busybox", "a".repeat(64));
        let variables = environment(&[
            ("AIRGAPD_PLATFORMS", "linux/arm64, linux/amd64"),
            ("AIRGAPD_ALIASES", "a=b,c=d"),
            ("AIRGAPD_NAMES", &names),
            ("AIRGAPD_CRI", "false"),
            ("AIRGAPD_LIMITS_JSON_DOCUMENT", "1KiB"),
            ("AIRGAPD_LOG_LEVEL", "warn"),
            ("AIRGAPD_ADDRESS", ""),
            ("PATH", "/bin"),
            ("AIRGAPD_SERVICE_HOST", "10.0.0.1"),
            ("AIRGAPD_PORT_80_TCP", "tcp://10.0.0.1:80"),
        ]);
        let settings = load(Some(&path), Vec::new(), variables).unwrap().settings;
        assert!(matches!(&settings.platforms, PlatformChoice::These(platforms) if platforms.len() == 2));
        assert_eq!(
            (settings.aliases.len(), settings.names.len(), settings.cri),
            (2, 1, Some(false))
        );
        assert_eq!(
            (settings.limits.json_document, settings.log.level),
            (1024, LogLevel::Warn)
        );
        assert_eq!(settings.address, None);
    }

    #[test]
    fn mistakes_of_all_origins_come_together() {
        use std::os::unix::ffi::OsStringExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.yaml");
        std::fs::write(&path, "resync: x\n").unwrap();
        let mut variables = environment(&[("AIRGAPD_DATADIR", "/x"), ("AIRGAPD_UNPACK", "soon")]);
        variables.push(("AIRGAPD_STATE_DIR".into(), OsString::from_vec(vec![0xff])));
        let flags = vec![Flag::Namespace("a b".to_owned())];
        let error = load(Some(&path), flags, variables).unwrap_err().to_string();
        for part in [
            "c.yaml:1: resync",
            "environment variable AIRGAPD_DATADIR: there is no such key: did you mean `dataDir`?",
            "environment variable AIRGAPD_UNPACK: expects one of none, background, before-record",
            "environment variable AIRGAPD_STATE_DIR: is not UTF-8",
            "--namespace: expects a namespace",
        ] {
            assert!(error.contains(part), "{part} in {error}");
        }
    }

    #[test]
    fn a_file_that_is_named_must_be_there() {
        let missing = Path::new("/nonexistent/c.yaml");
        let error = load(Some(missing), Vec::new(), []).unwrap_err().to_string();
        assert!(
            error.contains("--config: cannot read /nonexistent/c.yaml"),
            "{error}"
        );
        let variables = environment(&[("AIRGAPD_CONFIG", "/nonexistent/c.yaml")]);
        let error = load(None, Vec::new(), variables).unwrap_err().to_string();
        assert!(error.contains("AIRGAPD_CONFIG"), "{error}");
    }

    #[test]
    fn flags_set_the_log_level_and_relative_paths_become_absolute() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.yaml");
        std::fs::write(&path, "").unwrap();
        let with = |flag: Flag| load(Some(&path), vec![flag], []).unwrap().settings;
        assert_eq!(with(Flag::Quiet).log.level, LogLevel::Error);
        assert_eq!(with(Flag::Verbose(1)).log.level, LogLevel::Debug);
        assert_eq!(with(Flag::Verbose(3)).log.level, LogLevel::Trace);
        let images = with(Flag::ImagesDir("images".into())).images_dir.unwrap();
        assert_eq!(images, std::env::current_dir().unwrap().join("images"));
        assert_eq!(with(Flag::Address("unix:///a".into())).address, Some("/a".into()));
    }
}
