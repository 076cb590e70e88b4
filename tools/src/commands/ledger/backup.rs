//! `cairn ledger backup FILE`.

use crate::CommandResult;
use crate::admin_client::AdminArgs;
use crate::output::say;
use crate::size::format_size;
use clap::Args;
use gateway::archive::backup::BackupFile;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub struct BackupArgs {
    /// The file; a backup that is there is replaced when the new one is whole, and nothing else ever is
    file: PathBuf,
    /// Only check the file that is there
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

pub async fn run(args: BackupArgs) -> CommandResult {
    if args.check {
        say!("{}", describe(&args.file, open(&args.file).await?)?);
        return Ok(());
    }
    let file = args.file.clone();
    tokio::task::spawn_blocking(move || check_place(&file)).await??;
    let unfinished = args.file.with_added_extension("unfinished");
    args.admin.download("/v1/ledger/backup", &unfinished).await?;
    let backup = open(&unfinished).await?;
    let (from, to) = (unfinished.clone(), args.file.clone());
    tokio::task::spawn_blocking(move || place(&from, &to)).await??;
    say!("{}", describe(&args.file, backup)?);
    Ok(())
}

/// Reads a backup through, and checks it.
pub async fn open(path: &Path) -> Result<BackupFile, Box<dyn std::error::Error + Send + Sync>> {
    let shown = path.display().to_string();
    let path = path.to_owned();
    let opened = tokio::task::spawn_blocking(move || BackupFile::open(&path)).await?;
    opened.map_err(|error| format!("{shown}: {error}").into())
}

/// Whether a backup may be put here: where there is nothing, or another backup.
fn check_place(path: &Path) -> Result<(), String> {
    let shown = path.display();
    match path.symlink_metadata() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(format!("{shown}: {error}")),
        Ok(found) if found.is_file() && (found.len() == 0 || BackupFile::is_one(path)) => Ok(()),
        Ok(_) => Err(format!(
            "{shown} is there, and is not a backup of a ledger: name another file"
        )),
    }
}

fn place(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::rename(from, to)?;
    let directory = to.parent().filter(|parent| !parent.as_os_str().is_empty());
    std::fs::File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

fn describe(path: &Path, backup: BackupFile) -> Result<String, std::io::Error> {
    Ok(format!(
        "{}: the ledger of cluster {} at commit {}, of {}; {}, checked",
        path.display(),
        backup.cluster,
        backup.position,
        gateway::clock::rfc3339(backup.at_ms),
        format_size(path.metadata()?.len()),
    ))
}
