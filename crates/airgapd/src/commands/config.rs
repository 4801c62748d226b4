//! `airgapd config`: the effective configuration.

use std::fmt::Write as _;

use super::Exit;
use crate::cli::ConfigArgs;
use crate::config::{Config, OutputFormat};
use crate::output;

/// Prints every key with its value and where it comes from; with `--check` only that all is well.
pub(crate) fn run(args: &ConfigArgs, config: &Config, format: OutputFormat) -> anyhow::Result<Exit> {
    let file = config
        .file
        .as_ref()
        .map_or_else(|| "no file".to_owned(), |file| file.display().to_string());
    match (args.check, format) {
        (true, OutputFormat::Text) => output::text(&format!("the configuration is usable ({file})\n"))?,
        (false, OutputFormat::Text) => {
            let mut text = format!("# {file}\n");
            for row in config.rows() {
                let _ = writeln!(text, "{row}");
            }
            output::text(&text)?;
        }
        (_, OutputFormat::Json) => output::json(&config.rows())?,
    }
    Ok(Exit::Done)
}
