//! `cairn ledger …`: the ledger itself.

mod accept;
mod backup;
mod check;
mod reach;
mod repair;
mod restore;

use crate::CommandResult;
use clap::{Args, Subcommand};
use gateway::ledger::store::LedgerError;
use std::path::Path;

#[derive(Args)]
pub struct LedgerArgs {
    #[command(subcommand)]
    command: LedgerCommand,
}

#[derive(Subcommand)]
enum LedgerCommand {
    /// Go on with a ledger that is older than what the disks know, and give up what was committed since
    Accept(accept::AcceptArgs),
    /// Write a backup while the gateway runs, and check it; or check one that is there
    Backup(backup::BackupArgs),
    /// Look at all of a ledger: rows, pages, log, references. Exits 0 if it is clean, 1 if damaged, 2 if it cannot be read
    Check(check::CheckArgs),
    /// Go on without what is lost of a damaged ledger; says first what that is
    Repair(repair::RepairArgs),
    /// Make a ledger from a backup, or from the disks of the cluster
    Restore(restore::RestoreArgs),
}

pub async fn run(args: LedgerArgs) -> CommandResult {
    match args.command {
        LedgerCommand::Accept(args) => accept::run(args).await,
        LedgerCommand::Backup(args) => backup::run(args).await,
        LedgerCommand::Check(args) => check::run(args).await,
        LedgerCommand::Repair(args) => repair::run(args).await,
        LedgerCommand::Restore(args) => restore::run(args).await,
    }
}

/// Why a ledger is not opened, and what to do about it.
pub fn not_opened(error: &LedgerError, data: &Path) -> String {
    let data = data.display();
    match error {
        // It says so itself.
        LedgerError::Unavailable { what } if what.contains("is not there") => error.to_string(),
        _ => format!(
            "{error}\n  `cairn ledger check --data {data}` says what is lost. `cairn ledger repair --data {data}` has it from the archive \
             on the disks where it can, and says what it gives up before it does anything. Or move the files of the ledger away, and have \
             it restored: `cairn ledger restore --from-disks --data {data}`"
        ),
    }
}
