//! The pace that an operator wants, which outlives gateways.

use super::pace::Wanted;
use crate::error::Result;
use crate::ledger::model::PaceRow;
use crate::ledger::{CommitBuilder, key};
use crate::object::Objects;

impl From<PaceRow> for Wanted {
    fn from(row: PaceRow) -> Wanted {
        match (row.rebuild_bandwidth, row.rebuild_deadline_ms) {
            (0, 0) => Wanted::Auto,
            (0, deadline_ms) => Wanted::Deadline(deadline_ms),
            (bandwidth, _) => Wanted::Bandwidth(bandwidth),
        }
    }
}

impl From<Wanted> for PaceRow {
    fn from(wanted: Wanted) -> PaceRow {
        match wanted {
            Wanted::Auto => PaceRow::default(),
            Wanted::Bandwidth(rebuild_bandwidth) => PaceRow {
                rebuild_bandwidth,
                ..PaceRow::default()
            },
            Wanted::Deadline(rebuild_deadline_ms) => PaceRow {
                rebuild_deadline_ms,
                ..PaceRow::default()
            },
        }
    }
}

impl Objects {
    /// How fast the operator wants rebuilding.
    pub async fn wanted_pace(&self) -> Result<Wanted> {
        let row = self.ledger.get::<PaceRow>(key::pace()).await?;
        Ok(row.map_or(Wanted::Auto, |found| found.row.into()))
    }

    /// Records how fast the operator wants rebuilding; `instead_of`: only if that is what was wanted until now.
    pub async fn want_pace(&self, wanted: Wanted, instead_of: Option<Wanted>) -> Result<()> {
        let found = self.ledger.get::<PaceRow>(key::pace()).await?;
        let version = found.as_ref().map(|found| found.version);
        let now = found.map_or(Wanted::Auto, |found| found.row.into());
        if instead_of.is_some_and(|before| before != now) {
            return Ok(());
        }
        let commit = CommitBuilder::new()
            .expect(&key::pace(), version)
            .put(key::pace(), &PaceRow::from(wanted));
        self.ledger.commit(self.lease.fence(commit).build()).await?;
        Ok(())
    }
}
