//! The ledger as operators see it: whether it can be asked, how far it is, and how much room it has.
//!
//! Invariant: this asks the engine for nothing that it has to read, and so can be told of a ledger that is unavailable.

use crate::ledger::Ledger;
use crate::ledger::damage::{LastPass, RepairNote};
use crate::metrics::Metrics;
use serde::{Deserialize, Serialize};

/// The ledger in the status.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LedgerLine {
    /// How far it is: the version of the last commit.
    pub position: u64,
    /// Why it refuses everything for now, if it does.
    pub unavailable: Option<String>,
    /// For how many seconds it has.
    pub unavailable_s: Option<u64>,
    /// Its room on its filesystem; none if that is not known.
    pub room: Option<RoomLine>,
    /// What is damaged of it; none of an engine that does not look.
    #[serde(default)]
    pub damage: Option<DamageLine>,
}

/// What is damaged of the ledger, and when all of it was looked at.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct DamageLine {
    /// Rows that are not what was written.
    pub rows: u64,
    /// Pages that are not, and were needed.
    pub pages: u64,
    /// Wrong bits that were set right since the start.
    pub corrected: u64,
    /// Some of it, in words.
    pub words: Vec<String>,
    /// The last pass over all of it since the start.
    pub last_pass: Option<LastPass>,
    /// How repairing from the archive goes.
    #[serde(default)]
    pub repair: RepairNote,
}

/// The room of the ledger.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RoomLine {
    /// Bytes that anybody may take of the filesystem.
    pub free_bytes: u64,
    /// Bytes that are kept for the ledger.
    pub reserve_bytes: u64,
    /// Bytes that should be.
    pub reserve_wanted_bytes: u64,
    /// Whether there is room for uploads.
    pub admits_uploads: bool,
}

/// Words of damage that are shown.
const WORDS_MAX: usize = 10;

impl DamageLine {
    /// Whether anything is known to be damaged.
    pub fn is_any(&self) -> bool {
        self.rows > 0 || self.pages > 0
    }
}

impl LedgerLine {
    /// As it is now.
    pub fn of(ledger: &Ledger) -> LedgerLine {
        let state = ledger.state();
        let (unavailable, since) = state.unavailable.unzip();
        LedgerLine {
            position: ledger.position(),
            unavailable,
            unavailable_s: since.map(|since| since.as_secs()),
            damage: ledger.damage().map(|damage| {
                let counts = damage.counts();
                DamageLine {
                    rows: counts.rows,
                    pages: counts.pages,
                    corrected: counts.corrected,
                    words: damage.words(WORDS_MAX),
                    last_pass: damage.last_pass(),
                    repair: damage.repair(),
                }
            }),
            room: state.room.map(|room| RoomLine {
                free_bytes: room.free_bytes,
                reserve_bytes: room.reserve_bytes,
                reserve_wanted_bytes: room.reserve_wanted_bytes,
                admits_uploads: room.admits_uploads,
            }),
        }
    }

    /// Whether nothing of it asks for an operator.
    pub fn is_well(&self) -> bool {
        self.unavailable.is_none()
            && self.room.as_ref().is_none_or(|room| room.admits_uploads)
            && self.damage.as_ref().is_none_or(|damage| !damage.is_any())
    }

    /// For `/metrics`.
    pub fn show(&self, metrics: &Metrics) {
        metrics
            .ledger_available
            .set(i64::from(self.unavailable.is_none()));
        if let Some(damage) = &self.damage {
            metrics.ledger_damaged_rows.set(damage.rows as i64);
            metrics.ledger_damaged_pages.set(damage.pages as i64);
            metrics.ledger_corrected_bits.set(damage.corrected as i64);
        }
        if let Some(room) = &self.room {
            metrics.ledger_free_bytes.set(room.free_bytes as i64);
            metrics.ledger_reserve_bytes.set(room.reserve_bytes as i64);
        }
    }
}
