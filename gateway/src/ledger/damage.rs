//! What is known to be damaged of a ledger.
//!
//! Whoever reads a row or a page and finds that its checksum does not hold notes it here; operators, `/metrics` and the workers that
//! delete look here. It is knowledge of this process: what is still damaged at the next start is found again when it is read.
//!
//! Invariants:
//! - What is kept is bounded; past the bound it is only known that there is more.
//! - Something is damaged until it was written anew or read well, never because time passed. That there is
//!   more than is kept ends with a whole pass that met no more than that, or once all was written anew.

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
    more_pages: More,
    rows: BTreeMap<Bytes, String>,
    more_rows: More,
    corrected: u64,
    last_pass: Option<LastPass>,
    repair: RepairNote,
}

/// Whether there is more than is kept. Its names are not known, so nothing tells when one of it is damaged no
/// more.
#[derive(Clone, Copy, Debug, Default)]
struct More {
    is_known: bool,
    /// It was met since the last whole pass ended.
    is_met: bool,
}

impl More {
    /// Whether this is news.
    fn note(&mut self) -> bool {
        self.is_met = true;
        !std::mem::replace(&mut self.is_known, true)
    }

    /// A whole pass would have met it.
    fn end_pass(&mut self) {
        self.is_known = std::mem::take(&mut self.is_met);
    }
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
    /// Rows whose seal does not hold; one more than are kept by name if there are more.
    pub rows: u64,
    /// Pages of the file whose checksum does not hold; the same.
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
        let is_kept = known.pages.len() < KEPT_MAX;
        let is_news = match is_kept {
            true => known.pages.insert(block),
            false => known.more_pages.note(),
        };
        drop(known);
        match (is_kept, is_news) {
            (true, _) => tracing::error!(
                block,
                "a page of the ledger is damaged: what it holds cannot be read"
            ),
            (false, true) => tracing::error!(
                block,
                "more than {KEPT_MAX} pages of the ledger are damaged: the others are not named"
            ),
            (false, false) => {}
        }
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
        let is_kept = known.rows.len() < KEPT_MAX;
        let is_news = match is_kept {
            true => {
                known.rows.insert(Bytes::copy_from_slice(key), what.to_owned());
                true
            }
            false => known.more_rows.note(),
        };
        drop(known);
        match (is_kept, is_news) {
            (true, _) => tracing::error!(what, "a row of the ledger is damaged"),
            (false, true) => tracing::error!(
                what,
                "more than {KEPT_MAX} rows of the ledger are damaged: the others are not named"
            ),
            (false, false) => {}
        }
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
            rows: known.rows.len() as u64 + u64::from(known.more_rows.is_known),
            pages: known.pages.len() as u64 + u64::from(known.more_pages.is_known),
            corrected: known.corrected,
        }
    }

    /// A pass over the whole ledger ended.
    pub fn note_pass(&self, pass: LastPass) {
        let mut known = self.lock();
        known.last_pass = Some(pass);
        known.more_pages.end_pass();
        known.more_rows.end_pass();
    }

    /// The last pass that ended since this process began.
    pub fn last_pass(&self) -> Option<LastPass> {
        self.lock().last_pass
    }

    /// What is known, in words, at most so many lines.
    pub fn words(&self, most: usize) -> Vec<String> {
        let known = self.lock();
        let pages = known.pages.iter().map(|block| format!("page {block}"));
        let more = [(known.more_rows, "rows"), (known.more_pages, "pages")];
        let more = more.into_iter().filter(|(more, _)| more.is_known);
        let more = more.map(|(_, what)| format!("more than {KEPT_MAX} {what}"));
        let rows = known.rows.values().cloned();
        rows.chain(pages).chain(more).take(most).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_anew_is_damaged_no_more() {
        let damage = Damage::default();
        (0..5).for_each(|block| damage.note_page(block));
        damage.note_page(0);
        damage.note_row(b"k", "row k");
        assert_eq!((damage.counts().pages, damage.counts().rows), (5, 1));
        assert_eq!(damage.words(2), ["row k", "page 0"]);
        damage.forget_row(b"k");
        damage.forget_page(0);
        damage.note_corrected(1);
        let counts = damage.counts();
        assert_eq!((counts.pages, counts.rows, counts.corrected), (3, 0, 1));
        assert!(counts.is_any());
    }

    /// What is not kept is not counted again at every read, and is damaged no more once a whole pass did not
    /// meet it.
    #[test]
    fn more_than_is_kept_is_known_until_a_whole_pass_does_not_meet_it() {
        let damage = Damage::default();
        let kept = KEPT_MAX as u64;
        let counts = || (damage.counts().pages, damage.counts().rows);
        for _ in 0..3 {
            (0..2 * kept).for_each(|block| damage.note_page(block));
            (0..2 * kept).for_each(|row| damage.note_row(&row.to_be_bytes(), "a row"));
        }
        assert_eq!(counts(), (kept + 1, kept + 1));
        assert!(
            damage
                .words(usize::MAX)
                .contains(&"more than 1000 pages".to_owned())
        );
        damage.note_pass(LastPass::default());
        assert_eq!(counts(), (kept + 1, kept + 1), "it was met before the pass ended");
        (0..kept).for_each(|block| damage.forget_page(block));
        (0..kept).for_each(|row| damage.forget_row(&row.to_be_bytes()));
        assert_eq!(counts(), (1, 1));
        assert!(damage.counts().is_any());
        damage.note_pass(LastPass::default());
        assert!(!damage.counts().is_any());
        (0..=kept).for_each(|block| damage.note_page(block));
        damage.forget_all();
        assert!(!damage.counts().is_any());
    }
}
