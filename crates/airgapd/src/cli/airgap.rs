//! The command lines of `k0s airgap`, so that airgapd can take the place of k0s in a script.
//!
//! The verbs are airgapd's own commands with the flags of k0s besides. Source: k0s, `cmd/airgap`
//! and `pkg/config/cli.go`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use clap::{Args, Subcommand};

use super::{BundleArtifactsArgs, Common, ListImagesArgs, Task};

#[derive(Args, Debug)]
pub(crate) struct AirgapArgs {
    #[command(flatten)]
    k0s: K0sFlags,
    #[command(subcommand)]
    verb: AirgapVerb,
}

/// The verbs of `k0s airgap`. As in k0s, the last of several values of a flag counts.
#[derive(Debug, Subcommand)]
enum AirgapVerb {
    /// List the images that k0s needs
    #[command(
        args_override_self = true,
        after_help = "\
-c and --config name the configuration of k0s here. --data-dir, --debug, --debugListenOn and --status-socket have no effect."
    )]
    ListImages(ListImagesArgs),
    /// Make a bundle of images in registries
    #[command(args_override_self = true)]
    BundleArtifacts(BundleArtifactsArgs),
}

/// Flags that k0s has and airgapd has not.
#[derive(Args, Debug)]
struct K0sFlags {
    /// No effect
    #[arg(short, long, global = true, hide = true)]
    debug: bool,
    /// No effect
    #[arg(long = "debugListenOn", value_name = "ADDRESS", global = true, hide = true)]
    debug_listen_on: Option<String>,
    /// No effect
    #[arg(long, value_name = "SOCKET", global = true, hide = true)]
    status_socket: Option<String>,
}

impl AirgapArgs {
    /// Returns the command that does the same in airgapd, and the flags of k0s without an effect.
    ///
    /// `--config` is k0s's configuration here, so airgapd has its own from its usual place.
    pub(crate) fn translated(self, mut common: Common) -> (Task, Common, Vec<&'static str>) {
        let config = common.config.take();
        let mut without_effect = vec![
            ("--data-dir", common.data_dir.take().is_some()),
            ("--debug", self.k0s.debug),
            ("--debugListenOn", self.k0s.debug_listen_on.is_some()),
            ("--status-socket", self.k0s.status_socket.is_some()),
        ];
        let task = match self.verb {
            AirgapVerb::ListImages(mut args) => {
                args.k0s.k0s_config = args.k0s.k0s_config.or(config);
                Task::ListImages(args)
            }
            AirgapVerb::BundleArtifacts(mut args) => {
                without_effect.push(("--config", config.is_some()));
                let earlier = args.platforms.len().saturating_sub(1);
                args.platforms.drain(..earlier);
                args.may_be_empty = true;
                Task::BundleArtifacts(args)
            }
        };
        let given = without_effect.into_iter().filter(|(_, is_given)| *is_given);
        (task, common, given.map(|(flag, _)| flag).collect())
    }
}

/// Returns the words of a command line as clap understands them. Only lines of `airgap` change:
///
/// * A flag without a value may have one, as in `--all=true` and `-v=false`.
/// * `-c` is `--config`, whose last value counts. An empty value stands for the default.
/// * `airgap` alone asks for its help.
///
/// Source: k0s, `cmd/airgap/airgap.go`, and the flags of pflag.
pub(super) fn as_clap_reads(words: Vec<OsString>) -> Vec<OsString> {
    if words.get(1).is_none_or(|word| word != "airgap") {
        return words;
    }
    if words.len() == 2 {
        return words.into_iter().chain(["--help".into()]).collect();
    }
    let mut words = words.into_iter();
    let mut read: Vec<OsString> = words.by_ref().take(2).collect();
    let mut config = None;
    while let Some(word) = words.next() {
        if word == "--" {
            read.push(word);
            read.extend(words.by_ref());
        } else if let Some((name, is_set)) = word.to_str().and_then(switch) {
            if is_set {
                read.push(name.into());
            } else {
                read.retain(|earlier| earlier.to_str().and_then(switch) != Some((name, true)));
            }
        } else if let Some(value) = config_in(&word) {
            match value.map(OsStr::to_owned).or_else(|| words.next()) {
                Some(value) => config = Some(value),
                None => read.push("--config".into()),
            }
        } else {
            read.push(word);
        }
    }
    let config = config.filter(|value| !value.is_empty());
    let flag = config.map(|value| ["--config".into(), value]);
    read.splice(2..2, flag.into_iter().flatten());
    read
}

/// Returns the name of a flag without a value, and the value that a word of k0s gives it.
fn switch(word: &str) -> Option<(&'static str, bool)> {
    let (flag, value) = word.split_once('=').unwrap_or((word, "true"));
    let name = match flag {
        "--all" => "--all",
        "-d" | "--debug" => "--debug",
        "-v" | "--verbose" => "--verbose",
        _ => return None,
    };
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some((name, true)),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some((name, false)),
        _ => None,
    }
}

/// Returns the value of `--config` or `-c` in a word: `Some(None)` if the next word has it.
fn config_in(word: &OsStr) -> Option<Option<&OsStr>> {
    let bytes = word.as_encoded_bytes();
    let value = bytes.strip_prefix(b"--config");
    let value = value.or_else(|| bytes.strip_prefix(b"-c"))?;
    match value.split_first() {
        None => Some(None),
        Some((b'=', value)) => Some(Some(OsStr::from_bytes(value))),
        Some(_) if bytes[1] == b'c' => Some(Some(OsStr::from_bytes(value))),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::{Cli, Command, parse_from};
    use super::*;

    fn translated(line: &str) -> (Task, Common, Vec<&'static str>) {
        let Cli { common, command } = parse_from(line.split_whitespace()).unwrap();
        let Command::Airgap(args) = command else {
            panic!("{line}: {command:?}")
        };
        args.translated(common)
    }

    fn list(line: &str) -> (ListImagesArgs, Vec<&'static str>) {
        match translated(line) {
            (Task::ListImages(args), common, without_effect) => {
                assert_eq!((common.config, common.data_dir), (None, None), "{line}");
                (args, without_effect)
            }
            (task, ..) => panic!("{line}: {task:?}"),
        }
    }

    fn bundle(line: &str) -> (BundleArtifactsArgs, Common, Vec<&'static str>) {
        match translated(line) {
            (Task::BundleArtifacts(args), common, without_effect) => (args, common, without_effect),
            (task, ..) => panic!("{line}: {task:?}"),
        }
    }

    #[test]
    fn the_configuration_is_that_of_k0s_wherever_it_stands() {
        for line in [
            "k0s airgap list-images -c k0s.yaml",
            "k0s airgap list-images --config k0s.yaml",
            "k0s airgap list-images --config=k0s.yaml --all",
            "k0s airgap list-images -ck0s.yaml",
            "k0s airgap -c k0s.yaml list-images",
            "k0s airgap --config k0s.yaml list-images",
            "k0s airgap list-images --config other.yaml --config k0s.yaml",
            "k0s airgap list-images -c other.yaml -c k0s.yaml",
            "k0s airgap list-images -c other.yaml --config k0s.yaml",
            "k0s airgap -c other.yaml list-images --config=k0s.yaml",
            "k0s airgap list-images --config other.yaml -c=k0s.yaml",
            "k0s airgap list-images --k0s-config k0s.yaml",
        ] {
            let (args, without_effect) = list(line);
            assert_eq!(args.k0s.k0s_config, Some("k0s.yaml".into()), "{line}");
            assert_eq!(without_effect, Vec::<&str>::new(), "{line}");
        }
        let (args, _) = list("k0s airgap list-images --config -");
        assert_eq!(args.k0s.k0s_config, Some("-".into()));
        assert_eq!(list("k0s airgap list-images").0.k0s.k0s_config, None);
        for words in [
            &["k0s", "airgap", "list-images", "--config", ""][..],
            &["k0s", "airgap", "list-images", "-c", "k0s.yaml", "--config="],
            &["k0s", "airgap", "list-images", "--config=k0s.yaml", "-c", ""],
        ] {
            let Cli { common, .. } = parse_from(words).unwrap();
            assert_eq!(common.config, None, "{words:?}");
        }
        parse_from(["k0s", "airgap", "list-images", "--config"]).unwrap_err();
        parse_from(["airgapd", "list-images", "--config", ""]).unwrap_err();
    }

    #[test]
    fn a_flag_without_a_value_may_have_one_in_the_verbs_of_k0s_alone() {
        for (flags, all, verbose, without_effect) in [
            ("--all=true -v=true --debug=true", true, 1, &["--debug"][..]),
            ("--all=1 --verbose=T -d=TRUE", true, 1, &["--debug"]),
            ("--all=false -v=false --debug=false", false, 0, &[]),
            ("--all --all=false -v -v=0 -d -d=f", false, 0, &[]),
            ("--all=false --all -d=false -d", true, 0, &["--debug"]),
        ] {
            let (task, common, named) = translated(&format!("k0s airgap list-images {flags}"));
            let Task::ListImages(args) = task else {
                panic!("{task:?}")
            };
            assert_eq!((args.k0s.all, common.verbose), (all, verbose), "{flags}");
            assert_eq!(named, without_effect, "{flags}");
            let words = ["airgapd", "list-images"].into_iter();
            let elsewhere = parse_from(words.chain(flags.split_whitespace()));
            elsewhere.unwrap_err();
        }
        parse_from(["k0s", "airgap", "list-images", "--all=yes"]).unwrap_err();
        let (args, ..) = bundle("k0s airgap bundle-artifacts -- --all=true");
        assert_eq!(args.references, ["--all=true"]);
    }

    #[test]
    fn the_verbs_of_k0s_are_listed_for_airgap_alone() {
        let help = parse_from(["k0s", "airgap"]).unwrap_err();
        assert_eq!(help.kind(), clap::error::ErrorKind::DisplayHelp);
        let help = help.to_string();
        for verb in ["list-images", "bundle-artifacts"] {
            assert!(help.contains(verb), "{help}");
        }
    }

    #[test]
    fn flags_without_an_effect_are_named_once() {
        let flags = "--data-dir /var/lib/k0s -d --debugListenOn :6060 --status-socket /run/k0s/status.sock";
        let named = ["--data-dir", "--debug", "--debugListenOn", "--status-socket"];
        for line in [
            format!("k0s airgap list-images {flags}"),
            format!("k0s airgap {flags} list-images"),
            format!("k0s airgap list-images {flags} {flags}"),
        ] {
            assert_eq!(list(&line).1, named, "{line}");
        }
        let (_, _, without_effect) = bundle("k0s airgap bundle-artifacts --debug -c k0s.yaml x");
        assert_eq!(without_effect, ["--debug", "--config"]);
    }

    #[test]
    fn the_last_value_of_a_flag_counts() {
        let (args, _) =
            list("k0s airgap list-images --platform linux/arm --all --all --platform linux/arm64");
        assert_eq!(
            (args.platform.as_deref(), args.k0s.all),
            (Some("linux/arm64"), true)
        );
        let line = "k0s airgap bundle-artifacts -v --concurrency 1 --concurrency 9000 --registries-config a.json x y:1";
        let (args, common, _) = bundle(line);
        assert_eq!((args.concurrency, common.verbose), (9000, 1));
        assert_eq!(args.registries_config, [PathBuf::from("a.json")]);
        assert_eq!(args.references, ["x", "y:1"]);
        assert!(args.may_be_empty);
        let most = u64::MAX.to_string();
        for number in ["4294967296", &most] {
            let (args, ..) = bundle(&format!("k0s airgap bundle-artifacts --concurrency {number}"));
            assert_eq!(args.concurrency.to_string(), number);
        }
        let (args, ..) = bundle("k0s airgap bundle-artifacts --platform linux/arm --platform linux/arm64 x");
        assert_eq!(args.platforms, ["linux/arm64"]);
        for number in ["0", "-1", "x"] {
            parse_from(["k0s", "airgap", "bundle-artifacts", "--concurrency", number]).unwrap_err();
        }
    }

    #[test]
    fn a_flag_takes_one_value_each_time() {
        for (command, flags) in [
            (
                "bundle-artifacts",
                &["--registries-config", "--ca-file", "--base"][..],
            ),
            ("export", &["--images"]),
            ("verify", &["--images", "--bundle", "--manifests"]),
        ] {
            for flag in flags {
                let words = ["airgapd", command, flag, "file", flag, "another", "image:1"];
                let cli = parse_from(words).unwrap();
                assert!(
                    format!("{cli:?}").contains(r#"references: ["image:1"]"#),
                    "{cli:?}"
                );
            }
        }
    }
}
