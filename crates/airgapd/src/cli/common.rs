//! Flags of several commands and their values for the configuration.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::config::Flag;

/// Flags that every command takes.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Common {
    /// Configuration [default: /etc/airgapd/config.yaml]
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) config: Option<PathBuf>,
    /// Data folder of k0s, k3s or another distribution
    #[arg(long, value_name = "DIR", global = true)]
    pub(crate) data_dir: Option<PathBuf>,
    /// Images folder [default: DATA-DIR/images]
    #[arg(long, value_name = "DIR", global = true)]
    pub(crate) images_dir: Option<PathBuf>,
    /// Folder of the state of airgapd
    #[arg(long, value_name = "DIR", global = true)]
    pub(crate) state_dir: Option<PathBuf>,
    /// Socket of containerd
    #[arg(short, long, value_name = "SOCKET", global = true)]
    pub(crate) address: Option<PathBuf>,
    /// Namespace in containerd [default: k8s.io]
    #[arg(short, long, value_name = "NAME", global = true)]
    pub(crate) namespace: Option<String>,
    /// text, json, or FILE for a new bundle, - for stdout
    #[arg(short, long, value_name = "FORM|FILE", value_parser = Output::parse, global = true)]
    pub(crate) output: Vec<Output>,
    /// Log more, -vv everything
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub(crate) verbose: u8,
    /// Log errors only
    #[arg(short, long, conflicts_with = "verbose", global = true)]
    pub(crate) quiet: bool,
}

/// A value of `--output`: the form of the answer, or the file of a bundle. `./json` is a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    Form(OutputFormat),
    File(PathBuf),
}

impl Output {
    #[expect(clippy::unnecessary_wraps, reason = "the command line's parsers may fail")]
    fn parse(text: &str) -> Result<Self, String> {
        Ok(match text {
            "text" => Self::Form(OutputFormat::Text),
            "json" => Self::Form(OutputFormat::Json),
            file => Self::File(file.into()),
        })
    }
}

/// The form of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum OutputFormat {
    #[default]
    Text,
    Json,
}

/// Returns true if a command line asks for JSON, even if the rest of it makes no sense.
pub(crate) fn asks_for_json(arguments: impl Iterator<Item = OsString>) -> bool {
    let words: Vec<OsString> = arguments.collect();
    let in_one = ["-ojson", "-o=json", "--output=json"];
    let in_two = |pair: &[OsString]| (pair[0] == "-o" || pair[0] == "--output") && pair[1] == "json";
    words.iter().any(|word| in_one.iter().any(|form| word == form)) || words.windows(2).any(in_two)
}

impl Common {
    /// The form of the answer that was typed last.
    pub(crate) fn form(&self) -> OutputFormat {
        let mut forms = self.output.iter().filter_map(|output| match output {
            Output::Form(form) => Some(*form),
            Output::File(_) => None,
        });
        forms.next_back().unwrap_or_default()
    }

    /// The file of the bundle that was typed last.
    pub(crate) fn file(&self) -> Option<&Path> {
        let mut files = self.output.iter().filter_map(|output| match output {
            Output::Form(_) => None,
            Output::File(file) => Some(file.as_path()),
        });
        files.next_back()
    }

    /// The flags for the configuration that were typed.
    pub(super) fn flags(&self) -> Vec<Flag> {
        let level = match (self.quiet, self.verbose) {
            (true, _) => Some(Flag::Quiet),
            (false, 0) => None,
            (false, times) => Some(Flag::Verbose(times)),
        };
        let flags = [
            self.data_dir.clone().map(Flag::DataDir),
            self.images_dir.clone().map(Flag::ImagesDir),
            self.state_dir.clone().map(Flag::StateDir),
            self.address.clone().map(Flag::Address),
            self.namespace.clone().map(Flag::Namespace),
            level,
        ];
        flags.into_iter().flatten().collect()
    }
}

/// The flag of the commands that judge platforms.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct PlatformFlag {
    /// Platform in place of this node's, such as linux/arm64, or `all`
    #[arg(long = "platform", value_name = "PLATFORM")]
    platforms: Vec<String>,
}

impl PlatformFlag {
    /// The flag for the configuration, if it was typed.
    pub(super) fn flag(&self) -> Option<Flag> {
        (!self.platforms.is_empty()).then(|| Flag::Platforms(self.platforms.clone()))
    }
}

/// The flag of the commands that import.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct RateFlag {
    /// Most bytes a second, such as 50MiB, or 0 for no limit
    #[arg(long, value_name = "SIZE")]
    rate_limit: Option<String>,
}

impl RateFlag {
    /// The flag for the configuration, if it was typed.
    pub(super) fn flag(&self) -> Option<Flag> {
        self.rate_limit.clone().map(Flag::RateLimit)
    }
}

/// The flag of the commands that name images.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct NameFlag {
    /// Name for an image that has none in the bundle, repeatable
    #[arg(long = "name", value_name = "DIGEST=REFERENCE")]
    names: Vec<String>,
}

impl NameFlag {
    /// The flag for the configuration, if it was typed. The configuration reports a name without an
    /// equals sign.
    pub(super) fn flag(&self) -> Option<Flag> {
        let pair = |text: &String| {
            let (digest, reference) = text.split_once('=').unwrap_or((text, ""));
            (digest.to_owned(), reference.to_owned())
        };
        (!self.names.is_empty()).then(|| Flag::Names(self.names.iter().map(pair).collect()))
    }
}
