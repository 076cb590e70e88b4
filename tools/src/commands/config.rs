//! `cairn config`: looks at configuration files.

use crate::CommandResult;
use crate::config::{self, Wanted};
use crate::output::say;
use clap::{Args, Subcommand};
use std::path::PathBuf;

#[derive(Args)]
pub struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Explain every mistake in a file, with line, column and a suggestion. Exit code 1 if there is one
    Check {
        /// The file
        file: PathBuf,
    },
}

pub fn run(args: &ConfigArgs) -> CommandResult {
    let ConfigCommand::Check { file } = &args.command;
    config::read(file, Wanted::default())?;
    say!("{}: no mistakes", file.display());
    Ok(())
}
