//! What this process asks of the system before anything else.

use rustix::fs::Mode;
use rustix::process::{Resource, getrlimit, setrlimit, umask};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Has all files and directories that this process makes be readable by its user only: ledgers, disks, keys and backups hold what
/// nobody else is to read.
pub fn make_files_private() {
    umask(Mode::RWXG | Mode::RWXO);
}

/// Raises the limit of open files as far as this process may: each connection and each disk is one.
pub fn raise_open_files() {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// Takes from others what an earlier version let them read: the files in a directory of a ledger or of disks.
pub fn make_private(directory: &Path) {
    let entries = directory
        .read_dir()
        .and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match entries {
        Ok(entries) => entries.iter().for_each(|entry| make_file_private(&entry.path())),
        Err(error) => {
            tracing::warn!(directory = %directory.display(), %error, "who can read its files is not known")
        }
    }
}

/// The same of one file; anything else, as a device or a link, is left alone.
pub fn make_file_private(path: &Path) {
    let changed = || -> std::io::Result<bool> {
        let found = std::fs::symlink_metadata(path)?;
        let mode = found.permissions().mode() & 0o777;
        let is_open = found.is_file() && mode & 0o077 != 0;
        if is_open {
            std::fs::set_permissions(path, PermissionsExt::from_mode(mode & 0o700))?;
        }
        Ok(is_open)
    };
    match changed() {
        Ok(true) => tracing::info!(path = %path.display(), "only its owner can read it from now on"),
        Ok(false) => {}
        Err(error) => tracing::warn!(path = %path.display(), %error, "others may be able to read it"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_earlier_versions_become_private() {
        let directory = tempfile::tempdir().expect("a directory");
        let (file, link) = (
            directory.path().join("ledger.redb"),
            directory.path().join("link"),
        );
        std::fs::write(&file, "x").expect("writes");
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).expect("sets");
        std::os::unix::fs::symlink("/etc/passwd", &link).expect("links");
        let mode = || std::fs::metadata(&file).expect("there").permissions().mode() & 0o777;
        make_private(directory.path());
        assert_eq!(mode(), 0o600);
        make_private(directory.path());
        assert_eq!(mode(), 0o600);
    }

    #[test]
    fn the_limit_of_open_files_is_as_high_as_it_may_be() {
        raise_open_files();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }
}
