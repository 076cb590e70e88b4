//! The files of a ledger, copied and put back as operators and backups do.

use std::fs;
use std::path::{Path, PathBuf};

/// What belongs to the ledger in a gateway's directory, however many files those are; not the room that is kept for it.
pub fn of(data: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(data).unwrap().map(|entry| entry.unwrap().path());
    let is_ledger = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        name.starts_with("ledger.redb") && !name.ends_with("-reserve")
    };
    files.filter(is_ledger).collect()
}

/// Copies them to another directory.
pub fn back_up(data: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in of(data) {
        fs::copy(&file, to.join(file.file_name().unwrap())).unwrap();
    }
}

/// Takes them away.
pub fn remove(data: &Path) {
    for file in of(data) {
        fs::remove_file(file).unwrap();
    }
}

/// Puts a copy in their place.
pub fn put_back(from: &Path, data: &Path) {
    remove(data);
    back_up(from, data);
}
