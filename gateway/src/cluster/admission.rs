//! Telling a disk from a copy of what it was.
//!
//! A medium remembers the last *admission* that a gateway gave it, a number that only gateways let grow and a random nonce, and the
//! disk's row has it too. Each time a disk was opened anew, whoever holds the ledger admits it before anything is read from it or
//! written to it:
//! ```text
//! the row: the next admission, not given, and what the medium shows ─► the medium ─► the row: given, to this opening ─► used
//! ```
//! So a copy made before the last admission shows an older one, however often it was opened since: it is refused, for as long as the
//! ledger names a unit on the disk. When it names none any more, all that the copy has is leftover: it is admitted, and cleared.
//!
//! A copy made since the last admission cannot be told from the disk, if the disk is gone; but it lacks only what was
//! written since, and has only what was deleted since. It is used, as the disk would be, and is *in doubt*, as the disk is, until a
//! census of it (`maintenance/census`) has found both. The disk itself, back after its copy was admitted, is refused.
//!
//! Invariant: a disk is used only in an opening that the ledger has an admission for, given. Nodes refuse everything else
//! before they are told so.
//! Invariant: what the medium shows is accepted only if it is what the row says it was given, or, while it is not known whether
//! it was given, what it had before. A greater number is accepted too: then the ledger is older than the disk, restored perhaps.

use super::lease::Lease;
use crate::error::{Error, Result};
use crate::ledger::model::{AdmissionRow, DiskRow};
use crate::ledger::{CommitBuilder, Ledger, Typed, key};
use std::sync::Arc;
use std::time::Duration;
use storage_node::client::StorageClient;
use storage_node::protocol::{Admission, AdmitRequest, DiskId, Generation, Opening};

const DEADLINE: Duration = Duration::from_secs(5);

/// What a medium is, by what it shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The disk, in the opening that was admitted.
    Admitted,
    /// The disk, as far as anybody can tell, opened anew.
    New,
    /// A copy of an earlier state.
    Stale,
}

/// Judges a medium. Pure.
pub fn judge(row: Option<&AdmissionRow>, shown: &Opening) -> Standing {
    let Some(row) = row else { return Standing::New };
    let before = Admission {
        number: row.before_number,
        nonce: row.before_nonce,
    };
    match shown.admission {
        had if had == admission(row) && row.given && row.opening == shown.id => Standing::Admitted,
        had if had == admission(row) => Standing::New,
        had if had == before && !row.given => Standing::New,
        had if had.number > row.number => Standing::New,
        _ => Standing::Stale,
    }
}

fn admission(row: &AdmissionRow) -> Admission {
    Admission {
        number: row.number,
        nonce: row.nonce,
    }
}

/// The admission to give a medium that shows this. One that may have been given already is given again: the medium has it, or what it
/// had before it. Pure but for the nonce.
pub fn next(row: Option<&AdmissionRow>, shown: &Opening, nonce: u64) -> AdmissionRow {
    if let Some(row) = row
        && !row.given
        && judge(Some(row), shown) == Standing::New
        && shown.admission.number <= row.number
    {
        return *row;
    }
    let known = row.map_or(0, |row| row.number);
    AdmissionRow {
        number: known.max(shown.admission.number) + 1,
        nonce,
        opening: shown.id,
        before_number: shown.admission.number,
        before_nonce: shown.admission.nonce,
        given: false,
    }
}

/// Admits disks, under this gateway's lease.
pub struct Admitting {
    ledger: Ledger,
    lease: Arc<Lease>,
}

impl Admitting {
    /// For one gateway.
    pub fn new(ledger: Ledger, lease: Arc<Lease>) -> Admitting {
        Admitting { ledger, lease }
    }

    /// Admits a disk in an opening that its node showed. `is_cleared`: the ledger names no unit on it, so it may be a copy. The
    /// row, as it is then; none if it is not to be admitted after all.
    pub async fn admit(
        &self,
        disk: DiskId,
        client: &dyn StorageClient,
        shown: &Opening,
        ledger: Generation,
        is_cleared: bool,
    ) -> Result<Option<DiskRow>> {
        let row_key = key::disk(disk.0);
        let Some(Typed { mut row, version }) = self.ledger.get::<DiskRow>(row_key.clone()).await? else {
            return Ok(None); // It was removed.
        };
        match judge(row.admission.as_ref(), shown) {
            Standing::Admitted => return Ok(Some(row)),
            Standing::Stale if !is_cleared => return Ok(None),
            Standing::New | Standing::Stale => {}
        }
        let mut given = next(row.admission.as_ref(), shown, rand::random());
        row.admission = Some(given);
        let version = self.put(disk, &row, version).await?;
        let request = AdmitRequest {
            opening: shown.id,
            admission: admission(&given),
            ledger,
            is_reading: false,
        };
        let admitted = client.admit(disk, row.incarnation, &request, DEADLINE).await;
        admitted.map_err(|error| Error::Internal(error.to_string()))?;
        (given.given, given.opening) = (true, shown.id);
        row.admission = Some(given);
        self.put(disk, &row, version).await?;
        Ok(Some(row))
    }

    /// Notes that a disk was compared with the ledger since this admission.
    pub async fn note_censused(&self, disk: DiskId, number: u64) -> Result<bool> {
        let row_key = key::disk(disk.0);
        let Some(Typed { mut row, version }) = self.ledger.get::<DiskRow>(row_key).await? else {
            return Ok(false);
        };
        if row.admission.is_none_or(|now| now.number != number || !now.given) {
            return Ok(false); // Opened anew meanwhile.
        }
        row.censused = number;
        self.put(disk, &row, version).await?;
        Ok(true)
    }

    /// Notes when verifying came to the end of a disk.
    pub async fn note_verified(&self, disk: DiskId, at_ms: u64) -> Result<()> {
        let row_key = key::disk(disk.0);
        if let Some(Typed { mut row, version }) = self.ledger.get::<DiskRow>(row_key).await? {
            row.verified_ms = at_ms;
            self.put(disk, &row, version).await?;
        }
        Ok(())
    }

    async fn put(&self, disk: DiskId, row: &DiskRow, version: u64) -> Result<u64> {
        let row_key = key::disk(disk.0);
        let commit = CommitBuilder::new()
            .expect(&row_key, Some(version))
            .put(row_key, row);
        Ok(self.ledger.commit(self.lease.fence(commit).build()).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A medium, as it is when it is opened: what it remembers goes with every copy.
    #[derive(Clone, Copy, Default)]
    struct Medium(Admission);

    fn opened(medium: Medium, id: u64) -> Opening {
        Opening {
            id,
            admission: medium.0,
        }
    }

    /// Admits as [`Admitting::admit`] does, up to where it is cut off. Says whether the disk is used.
    fn admit(row: &mut Option<AdmissionRow>, medium: &mut Medium, id: u64, cut_off: usize) -> bool {
        let shown = &opened(*medium, id);
        match judge(row.as_ref(), shown) {
            Standing::Admitted => return true,
            Standing::Stale => return false,
            Standing::New => {}
        }
        let mut given = next(row.as_ref(), shown, shown.id * 1_000);
        if cut_off == 0 {
            return false;
        }
        *row = Some(given);
        if cut_off == 1 {
            return false;
        }
        medium.0 = admission(&given);
        if cut_off == 2 {
            return false;
        }
        (given.given, given.opening) = (true, shown.id);
        *row = Some(given);
        true
    }

    const DONE: usize = 3;

    /// Every way in which two attempts are cut off: the disk is never taken for a copy, and a copy from before its last use never for
    /// the disk, however often it was opened.
    #[test]
    fn the_disk_is_never_refused_and_an_old_copy_always_is() {
        for first in 0..=DONE {
            for second in 0..=DONE {
                let (mut row, mut disk) = (None, Medium::default());
                assert!(admit(&mut row, &mut disk, 1, DONE));
                let copy = disk;
                for (id, cut_off) in [(2, first), (3, second), (4, DONE)] {
                    let used = admit(&mut row, &mut disk, id, cut_off);
                    assert_eq!(used, cut_off == DONE, "{first} {second}");
                }
                for id in 5..20 {
                    assert_eq!(judge(row.as_ref(), &opened(copy, id)), Standing::Stale);
                }
                assert_eq!(judge(row.as_ref(), &opened(disk, 4)), Standing::Admitted);
                assert_eq!(judge(row.as_ref(), &opened(disk, 5)), Standing::New);
            }
        }
    }

    #[test]
    fn of_a_disk_and_its_newest_copy_the_first_to_come_is_it() {
        let (mut row, mut disk) = (None, Medium::default());
        assert!(admit(&mut row, &mut disk, 1, DONE));
        let mut copy = disk;
        assert!(admit(&mut row, &mut copy, 2, DONE));
        assert_eq!(judge(row.as_ref(), &opened(disk, 3)), Standing::Stale);
        assert_eq!(judge(row.as_ref(), &opened(copy, 4)), Standing::New);
    }

    /// The ledger was restored from a backup: the disks know more, and serve.
    #[test]
    fn a_ledger_that_is_older_than_the_disk_admits_it() {
        let (mut row, mut disk) = (None, Medium::default());
        let mut backup = None;
        for id in 1..5 {
            assert!(admit(&mut row, &mut disk, id, DONE));
            if id == 2 {
                backup = row;
            }
        }
        assert!(admit(&mut backup, &mut disk, 6, DONE));
        assert!(backup.unwrap().number > row.unwrap().number);
        assert!(admit(&mut None, &mut disk, 7, DONE));
    }
}
