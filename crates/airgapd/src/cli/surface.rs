//! The help of the program itself: its commands in groups, and nothing that few people type.

use std::ffi::OsString;
use std::fmt::Write as _;

use clap::{CommandFactory as _, FromArgMatches as _};

use super::{Cli, airgap};

/// The commands that `airgapd --help` lists, by their purpose. Other commands are for programs and
/// packages.
const GROUPS: [(&str, &[&str]); 4] = [
    ("Node", &["status", "images", "wait", "verify"]),
    (
        "Bundles",
        &["import", "inspect", "bundle-artifacts", "export", "bundle"],
    ),
    ("Lists", &["list-images"]),
    ("Repair", &["doctor", "release", "rollback", "config"]),
];

/// The command line with the help of the program.
pub(crate) fn definition() -> clap::Command {
    let command = Cli::command();
    let heading = command.get_styles().get_header();
    let mut listing = String::new();
    for (group, names) in GROUPS {
        let _ = writeln!(listing, "{heading}{group}:{heading:#}");
        let commands = names.iter().filter_map(|name| command.find_subcommand(name));
        for of_group in commands {
            let about = of_group.get_about().map(ToString::to_string).unwrap_or_default();
            let _ = writeln!(listing, "  {:<16}  {about}", of_group.get_name());
        }
        listing.push('\n');
    }
    let template = format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n\
         {listing}{heading}Global options:{heading:#}\n{{options}}{{after-help}}"
    );
    command.help_template(template)
}

/// Reads the command line of this process.
///
/// # Errors
///
/// Returns clap's error for a wrong command line, and for help that was asked for.
pub(crate) fn parse() -> Result<Cli, clap::Error> {
    parse_from(std::env::args_os())
}

/// Reads a command line whose first word is the program.
///
/// # Errors
///
/// Returns clap's error for a wrong command line, and for help that was asked for.
pub(crate) fn parse_from(
    words: impl IntoIterator<Item = impl Into<OsString> + Clone>,
) -> Result<Cli, clap::Error> {
    let mut definition = definition();
    let words = airgap::as_clap_reads(words.into_iter().map(Into::into).collect());
    let matches = definition.try_get_matches_from_mut(words)?;
    Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut definition))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn help() -> String {
        definition().term_width(80).render_help().to_string()
    }

    #[test]
    fn at_most_fourteen_commands_are_listed_in_four_groups_each_on_one_line_of_a_terminal() {
        let names: Vec<_> = GROUPS.iter().flat_map(|(_, names)| *names).collect();
        assert!(names.len() <= 14, "{names:?}");
        let help = help();
        for name in &names {
            let rows = help
                .lines()
                .filter(|line| line.starts_with(&format!("  {name} ")));
            assert_eq!(rows.count(), 1, "{name}\n{help}");
        }
        for line in help.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }

    #[test]
    fn a_command_is_in_a_group_or_hidden() {
        let listed: Vec<_> = GROUPS.iter().flat_map(|(_, names)| *names).copied().collect();
        for command in Cli::command().get_subcommands() {
            let name = command.get_name();
            assert_ne!(listed.contains(&name), command.is_hide_set(), "{name}");
        }
    }

    #[test]
    fn help_is_a_command_too() {
        for words in [
            &["airgapd", "help"][..],
            &["airgapd", "--help"],
            &["airgapd", "help", "wait"],
        ] {
            let error = parse_from(words).unwrap_err();
            assert_eq!(error.kind(), clap::error::ErrorKind::DisplayHelp, "{words:?}");
        }
    }
}
