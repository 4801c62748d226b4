//! `airgapd completions` and `airgapd man`: completions and manual pages for packages. They are
//! made from the definition of the command line, so they cannot drift from it. They need no
//! configuration, so mistakes in it do not stop them.

use std::io;

use anyhow::Context as _;

use super::{Exit, Refusal};
use crate::cli::{self, Documentation};
use crate::output;

/// Prints completions or manual pages.
pub(crate) fn run(command: &Documentation) -> Result<Exit, Refusal> {
    match command {
        Documentation::Completions(args) => completions(args.shell)?,
        Documentation::Man(args) => match &args.folder {
            None => man_page()?,
            Some(folder) => clap_mangen::generate_to(everything(), folder)
                .with_context(|| format!("cannot write manual pages into {}", folder.display()))?,
        },
    }
    Ok(Exit::Done)
}

fn completions(shell: clap_complete::Shell) -> io::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut everything(), "airgapd", &mut script);
    output::raw(&script)
}

fn man_page() -> io::Result<()> {
    let mut page = Vec::new();
    clap_mangen::Man::new(everything()).render(&mut page)?;
    output::raw(&page)
}

/// The command line with the commands that its help leaves out.
fn everything() -> clap::Command {
    cli::definition().mut_subcommands(|command| command.hide(false))
}
