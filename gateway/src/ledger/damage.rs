//! What is known to be damaged of a ledger.
//!
//! Whoever reads a row or a page and finds that its checksum does not hold notes it here; operators, `/metrics` and the workers that
//! delete look here. It is knowledge of this process: what is still damaged at the next start is found again when it is read.
//!
//! Invariants:
//! - What is kept is bounded; past the bound it is only counted.
//! - Something is damaged until it was written anew or read well, never because time passed.

use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The most rows, and the most pages, that are kept by name.
const KEPT_MAX: usize = 1_000;

/// See the module.
#[derive(Debug, Default)]
pub struct Damage(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    pages: BTreeSet<u64>,
    pages_unkept: u64,
    rows: BTreeMap<Bytes, String>,
    rows_unkept: u64,
    corrected: u64,
    last_pass: Option<LastPass>,
    repair: RepairNote,
}

/// How repairing it from the archive goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RepairNote {
    /// How often all that was damaged was repaired, since the start.
    pub repairs: u64,
    /// Rows that were had from the archive.
    pub rows: u64,
    /// Why what is damaged now was not repaired yet.
    pub waits: Option<String>,
}

/// What a pass over the whole ledger found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LastPass {
    /// When it ended, in milliseconds since 1970.
    pub ended_ms: u64,
    /// Rows that were read.
    pub rows: u64,
    /// Rows, or parts of the key space, that could not be.
    pub gaps: u64,
    /// Blocks of the file.
    pub blocks: u64,
    /// Blocks that are not what was written, in use or not.
    pub blocks_wrong: u64,
}

/// How much is damaged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DamageCounts {
    /// Rows whose seal does not hold.
    pub rows: u64,
    /// Pages of the file whose checksum does not hold.
    pub pages: u64,
    /// Pages that had one wrong bit and were set right, since this process began.
    pub corrected: u64,
}

impl DamageCounts {
    /// Whether anything is.
    pub fn is_any(&self) -> bool {
        self.rows > 0 || self.pages > 0
    }
}

impl Damage {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A page of the file, counted in blocks, is not what was written.
    pub fn note_page(&self, block: u64) {
        let mut known = self.lock();
        if known.pages.contains(&block) {
            return;
        }
        match known.pages.len() < KEPT_MAX {
            true => _ = known.pages.insert(block),
            false => known.pages_unkept += 1,
        }
        drop(known);
        tracing::error!(
            block,
            "a page of the ledger is damaged: what it holds cannot be read"
        );
    }

    /// A page was written anew.
    pub fn forget_page(&self, block: u64) {
        self.lock().pages.remove(&block);
    }

    /// A page had one wrong bit, and has no more.
    pub fn note_corrected(&self, block: u64) {
        let mut known = self.lock();
        known.corrected += 1;
        known.pages.remove(&block);
        drop(known);
        tracing::warn!(
            block,
            "a bit of the ledger's file was wrong and was set right: its disk or memory errs"
        );
    }

    /// A frame of the log had one wrong bit.
    pub fn note_corrected_log(&self) {
        self.lock().corrected += 1;
        tracing::warn!("a bit of the ledger's log was wrong and was set right: its disk or memory errs");
    }

    /// A row is not what was written; `what` says so in words.
    pub fn note_row(&self, key: &[u8], what: &str) {
        let mut known = self.lock();
        if known.rows.contains_key(key) {
            return;
        }
        match known.rows.len() < KEPT_MAX {
            true => _ = known.rows.insert(Bytes::copy_from_slice(key), what.to_owned()),
            false => known.rows_unkept += 1,
        }
        drop(known);
        tracing::error!(what, "a row of the ledger is damaged");
    }

    /// A row was written anew.
    pub fn forget_row(&self, key: &[u8]) {
        let mut known = self.lock();
        if !known.rows.is_empty() {
            known.rows.remove(key);
        }
    }

    /// All of the ledger was written anew, from what was read well.
    pub fn forget_all(&self) {
        let mut known = self.lock();
        let before = std::mem::take(&mut *known);
        (known.corrected, known.last_pass, known.repair) =
            (before.corrected, before.last_pass, before.repair);
        let gone = (before.rows, before.pages); // Not under the lock.
        drop(known);
        drop(gone);
    }

    /// What came of the last attempt to repair it.
    pub fn note_repair(&self, change: impl FnOnce(&mut RepairNote)) {
        change(&mut self.lock().repair);
    }

    /// See [`Damage::note_repair`].
    pub fn repair(&self) -> RepairNote {
        self.lock().repair.clone()
    }

    /// How much is known to be damaged.
    pub fn counts(&self) -> DamageCounts {
        let known = self.lock();
        DamageCounts {
            rows: known.rows.len() as u64 + known.rows_unkept,
            pages: known.pages.len() as u64 + known.pages_unkept,
            corrected: known.corrected,
        }
    }

    /// A pass over the whole ledger ended.
    pub fn note_pass(&self, pass: LastPass) {
        self.lock().last_pass = Some(pass);
    }

    /// The last pass that ended since this process began.
    pub fn last_pass(&self) -> Option<LastPass> {
        self.lock().last_pass
    }

    /// What is known, in words, at most so many lines.
    pub fn words(&self, most: usize) -> Vec<String> {
        let known = self.lock();
        let pages = known.pages.iter().map(|block| format!("page {block}"));
        known.rows.values().cloned().chain(pages).take(most).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_anew_is_damaged_no_more_and_the_rest_is_counted() {
        let damage = Damage::default();
        (0..2 * KEPT_MAX as u64).for_each(|block| damage.note_page(block));
        damage.note_page(0);
        damage.note_row(b"k", "row k");
        assert_eq!(
            (damage.counts().pages, damage.counts().rows),
            (2 * KEPT_MAX as u64, 1)
        );
        assert_eq!(damage.words(2), ["row k", "page 0"]);
        damage.forget_row(b"k");
        damage.forget_page(0);
        damage.note_corrected(1);
        let counts = damage.counts();
        assert_eq!(
            (counts.pages, counts.rows, counts.corrected),
            (2 * KEPT_MAX as u64 - 2, 0, 1)
        );
        assert!(counts.is_any());
    }
}
