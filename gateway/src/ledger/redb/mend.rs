//! Mends a tree that is damaged: a copy of it, with the rows that it lost from elsewhere, comes into its place while commits go on.
//!
//! What is damaged of a tree of pages cannot be written anew row by row: the way to a row leads through the page that is lost, and pages of
//! the engine's own have no rows. So all that can be read is copied, as it was at one commit, with the rows of the parts that cannot. What
//! comes into the tree meanwhile is kept (`recent`), and put into the copy before the two change places, which the settler does: it is the
//! only one that writes the tree. What is in the log stays there, and comes into the new tree as it would have come into the old one.
//!
//! Invariants:
//! - A part that was not asked for is not made up: if more turns out to be damaged than was known, nothing is changed.
//! - The copy is whole, durable and read back before it is in the tree's place.

use super::build::Building;
use super::log::LogId;
use super::offline::for_each_page;
use super::recent::Rows;
use super::tree::{Failure, Table};
use super::writer::{Mended, Shared, lock, refused};
use crate::ledger::key;
use crate::ledger::store::{Gap, LedgerError, Mending, Row};
use async_trait::async_trait;
use std::sync::{Arc, mpsc};

/// The most parts that are mended at once; more is a matter for a restore.
const PARTS_MAX: usize = 10_000;
/// Rows that are copied at once.
const COPIED_AT_ONCE: usize = 10_000;

/// See the module.
pub struct TreeMending {
    shared: Arc<Shared>,
    table: Arc<Table>,
    log: LogId,
    position: u64,
    pub(super) parts: Vec<Gap>,
}

impl Drop for TreeMending {
    fn drop(&mut self) {
        let _not_needed = self.shared.recent.followed();
    }
}

impl TreeMending {
    /// Looks through all of the tree; none if nothing of it is lost. Blocks.
    pub fn begin(shared: Arc<Shared>) -> Result<Option<TreeMending>, Failure> {
        let log = *lock(&shared.log).id();
        let Some((table, position)) = shared.recent.follow() else {
            return Ok(None);
        };
        let mut mending = TreeMending {
            shared,
            table,
            log,
            position,
            parts: Vec::new(),
        };
        mending.parts = for_each_page(&mending.table, |_| Ok(()))?;
        if mending.parts.len() > PARTS_MAX {
            let count = mending.parts.len();
            return Err(Failure::Unreadable(format!("{count} parts are damaged")));
        }
        // Damage may be where no row is, and then only a copy is without it.
        let is_damaged = !mending.parts.is_empty() || mending.shared.tree.damage().counts().is_any();
        Ok(is_damaged.then_some(mending))
    }

    fn copy(&self, rows: Vec<Row>) -> Result<Building, Failure> {
        let shared = &self.shared;
        let path = shared.tree.path();
        let path = path.ok_or_else(|| Failure::Damaged("this ledger is in no file".into()))?;
        if shared.tree.bytes() > shared.room() {
            return Err(Failure::Damaged(
                "there is no room for a copy of the ledger on its filesystem".into(),
            ));
        }
        let failed = |error: LedgerError| Failure::Damaged(error.to_string());
        let building = Building::with_reserve(path, shared.reserve.clone()).map_err(failed)?;
        let filled = self.fill(&building, rows);
        match filled {
            Ok(()) => Ok(building),
            Err(failure) => {
                building.abandon();
                Err(failure)
            }
        }
    }

    fn fill(&self, building: &Building, rows: Vec<Row>) -> Result<(), Failure> {
        let failed = |error: LedgerError| Failure::Damaged(error.to_string());
        let put = |rows: Vec<Row>| {
            let rows: Rows = rows
                .into_iter()
                .map(|row| (row.key, Some(row.versioned)))
                .collect();
            building.apply(&rows, self.position).map_err(failed)
        };
        let lost = for_each_page(&self.table, put)?;
        if let Some(other) = lost.iter().find(|lost| !self.has_part(lost)) {
            let what = key::words(&other.start);
            return Err(Failure::Unreadable(format!(
                "more is damaged than was known, at {what}"
            )));
        }
        let mut rest = rows.clone();
        while !rest.is_empty() {
            let some = rest.split_off(rest.len().saturating_sub(COPIED_AT_ONCE));
            put(some)?;
        }
        let table = building.table()?;
        for row in &rows {
            if table.get(&row.key)?.as_ref() != Some(&row.versioned) {
                let what = key::words(&row.key);
                return Err(Failure::Unreadable(format!("{what} does not read back")));
            }
        }
        Ok(())
    }

    fn has_part(&self, lost: &Gap) -> bool {
        let ends_within = |part: &Gap| match (&part.end, &lost.end) {
            (None, _) => true,
            (Some(part), Some(lost)) => lost <= part,
            (Some(_), None) => false,
        };
        self.parts
            .iter()
            .any(|part| part.start <= lost.start && ends_within(part))
    }

    fn put_in_place(self, rows: Vec<Row>) -> Result<(), Failure> {
        let building = self.copy(rows)?;
        let (answer, answered) = mpsc::sync_channel(1);
        {
            let mut turn = lock(&self.shared.turn);
            if turn.closed {
                drop(turn);
                building.abandon();
                return Err(Failure::Damaged("the ledger is closed".into()));
            }
            turn.mended = Some(Mended {
                building,
                log: self.log,
                position: self.position,
                answer,
            });
        }
        self.shared.changed.notify_all();
        let ended = || Err(Failure::Damaged("the ledger is closed".into()));
        answered.recv().unwrap_or_else(|_| ended())
    }
}

#[async_trait]
impl Mending for TreeMending {
    fn position(&self) -> u64 {
        self.position
    }

    fn parts(&self) -> &[Gap] {
        &self.parts
    }

    async fn mend(self: Box<Self>, rows: Vec<Row>) -> Result<(), LedgerError> {
        let mended = tokio::task::spawn_blocking(move || self.put_in_place(rows)).await;
        let mended = mended.map_err(|panicked| LedgerError::Unavailable {
            what: panicked.to_string(),
        })?;
        mended.map_err(|failure| refused(&failure))
    }
}
