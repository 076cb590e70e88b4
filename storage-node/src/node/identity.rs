//! Which of a node's disks may serve, given what each of them says it is. Pure but for [`is_same_file`].
//!
//! Invariant: a disk serves only if no other disk of the node has its id and the same incarnation, or a greater one.
//! Of two disks of one incarnation one is a copy of the other (a `cp`, an image, both sides of a mirror). Each may have
//! acknowledged what the other does not hold, and no number in a superblock says which one was served last: so neither
//! serves, and neither is written to, until somebody who knows takes one away. Of two incarnations the older was given
//! up by whoever formatted the disk anew.

use crate::protocol::DiskId;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// What a disk says it is, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Where.
    pub path: PathBuf,
    /// Which disk.
    pub disk: DiskId,
    /// Which life of it.
    pub incarnation: u64,
}

/// Why a disk does not serve beside the others.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// Others have its id and its incarnation.
    #[error(
        "disk {disk} is here more than once, and nobody can tell which copy is the right one: it is {} and {}; \
         take away all but the one that was served last",
        .path.display(), shown(.others)
    )]
    Copies {
        /// The disk.
        disk: DiskId,
        /// This one.
        path: PathBuf,
        /// The others.
        others: Vec<PathBuf>,
    },
    /// Another has its id and a greater incarnation.
    #[error(
        "disk {disk} was formatted anew, with incarnation {newer}: that is {}, and this has {incarnation}",
        .path.display()
    )]
    Superseded {
        /// The disk.
        disk: DiskId,
        /// This one's incarnation.
        incarnation: u64,
        /// The greater one.
        newer: u64,
        /// Where that is.
        path: PathBuf,
    },
}

fn shown(paths: &[PathBuf]) -> String {
    let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    paths.join(" and ")
}

/// Why `claim` may not be served beside `others`, if it may not.
pub fn conflict<'a>(claim: &Claim, others: impl Iterator<Item = &'a Claim>) -> Option<Conflict> {
    let alike: Vec<&Claim> = others.filter(|other| other.disk == claim.disk).collect();
    let copies = alike
        .iter()
        .filter(|other| other.incarnation == claim.incarnation);
    let copies: Vec<PathBuf> = copies.map(|other| other.path.clone()).collect();
    if !copies.is_empty() {
        return Some(Conflict::Copies {
            disk: claim.disk,
            path: claim.path.clone(),
            others: copies,
        });
    }
    let newest = alike.iter().max_by_key(|other| other.incarnation)?;
    (newest.incarnation > claim.incarnation).then(|| Conflict::Superseded {
        disk: claim.disk,
        incarnation: claim.incarnation,
        newer: newest.incarnation,
        path: newest.path.clone(),
    })
}

/// Whether two paths lead to one file or block device. Then there is no copy: it is the same disk, named twice.
pub fn is_same_file(a: &Path, b: &Path) -> bool {
    let identity = |path: &Path| {
        let metadata = path.metadata().ok()?;
        let is_block_device = metadata.file_type().is_block_device();
        Some(match is_block_device {
            true => (metadata.rdev(), 0, true),
            false => (metadata.dev(), metadata.ino(), false),
        })
    };
    a == b || identity(a).is_some_and(|found| identity(b) == Some(found))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(path: &str, disk: u128, incarnation: u64) -> Claim {
        Claim {
            path: path.into(),
            disk: DiskId(disk),
            incarnation,
        }
    }

    /// Every way in which three disks can have two ids and three incarnations.
    #[test]
    fn one_disk_serves_at_most_once_and_never_an_old_or_doubtful_one() {
        for case in 0..216u32 {
            let digit = |n: u32| case / 6u32.pow(n) % 6;
            let claims: Vec<Claim> = (0..3)
                .map(|n| {
                    claim(
                        &format!("/{n}"),
                        u128::from(digit(n) / 3),
                        u64::from(digit(n) % 3),
                    )
                })
                .collect();
            let conflict_of = |n: usize| {
                let others = (0..3).filter(|other| *other != n).map(|other| &claims[other]);
                conflict(&claims[n], others)
            };
            for id in 0..2 {
                let of_id = (0..3).filter(|n| claims[*n].disk == DiskId(id));
                let newest = of_id.clone().map(|n| claims[n].incarnation).max();
                let newest_is_alone = of_id
                    .clone()
                    .filter(|n| Some(claims[*n].incarnation) == newest)
                    .count()
                    == 1;
                for n in of_id {
                    let is_newest = Some(claims[n].incarnation) == newest;
                    assert_eq!(
                        conflict_of(n).is_none(),
                        is_newest && newest_is_alone,
                        "{claims:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_conflict_names_everybody() {
        let claims = [
            claim("/a", 7, 1),
            claim("/b", 7, 1),
            claim("/c", 7, 1),
            claim("/d", 7, 3),
        ];
        let told = conflict(&claims[0], claims[1..].iter()).unwrap().to_string();
        assert!(
            told.contains(&DiskId(7).to_string()) && told.contains("/a and /b and /c;"),
            "{told}"
        );
        let told = conflict(&claims[0], claims[3..].iter()).unwrap().to_string();
        assert!(
            told.contains("incarnation 3: that is /d") && told.contains("has 1"),
            "{told}"
        );
    }
}
