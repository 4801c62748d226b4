//! `airgapd completions` and `airgapd man`: what packages ship beside the program, made from the command line's own
//! definition so that it cannot drift. They need no configuration, so a wrong one does not stop them.

use std::io;
use std::path::Path;

use clap::CommandFactory;

use super::Exit;
use crate::cli::{Cli, Command};
use crate::output;

/// Prints completions or manual pages, if that is what was asked for.
pub(crate) fn run(command: &Command) -> Option<Exit> {
    let result = match command {
        Command::Completions(args) => completions(args.shell),
        Command::Man(args) => match &args.folder {
            None => man_page(),
            Some(folder) => {
                clap_mangen::generate_to(Cli::command(), folder).map_err(|error| in_folder(folder, &error))
            }
        },
        _ => return None,
    };
    Some(match result {
        Ok(()) => Exit::Done,
        Err(error) => {
            let _ = output::complain(&error.to_string());
            Exit::Failed
        }
    })
}

fn completions(shell: clap_complete::Shell) -> io::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "airgapd", &mut script);
    output::raw(&script)
}

fn man_page() -> io::Result<()> {
    let mut page = Vec::new();
    clap_mangen::Man::new(Cli::command()).render(&mut page)?;
    output::raw(&page)
}

fn in_folder(folder: &Path, error: &io::Error) -> io::Error {
    io::Error::new(
        error.kind(),
        format!("cannot write manual pages into {}: {error}", folder.display()),
    )
}
