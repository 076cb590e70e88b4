//! Why nothing may be deleted at the moment.
//!
//! Workers that delete shards, drop units or give up disks ask here before each step. Whoever knows that the ledger cannot be
//! trusted places a hold; it stays until that reason is gone.
//!
//! Invariant: while there is a hold, no worker sends a delete or a drop to a disk, and no disk is given up.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

/// A reason that can be there once at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hold {
    /// Disks know a newer ledger than this one.
    LedgerBehind,
    /// Rows or pages of the ledger are damaged.
    LedgerDamaged,
    /// The ledger was restored, and does not know yet where units are.
    LedgerRestored,
}

impl Hold {
    /// In a word, for programs.
    pub fn word(self) -> &'static str {
        match self {
            Hold::LedgerBehind => "ledger_behind",
            Hold::LedgerDamaged => "ledger_damaged",
            Hold::LedgerRestored => "ledger_restored",
        }
    }
}

/// The holds of one gateway.
#[derive(Clone, Debug, Default)]
pub struct Holds(Arc<RwLock<BTreeMap<Hold, String>>>);

impl Holds {
    /// Places a hold, with words for operators. The first one of a kind is logged.
    pub fn place(&self, hold: Hold, why: &str) {
        let mut holds = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if holds.insert(hold, why.to_owned()).is_some() {
            return;
        }
        match hold {
            Hold::LedgerRestored => tracing::info!(hold = hold.word(), why, "nothing is deleted for now"),
            _ => tracing::error!(hold = hold.word(), why, "nothing is deleted from now on"),
        }
    }

    /// Lifts a hold.
    pub fn lift(&self, hold: Hold) {
        let mut holds = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if holds.remove(&hold).is_some() {
            tracing::info!(hold = hold.word(), "the reason to delete nothing is gone");
        }
    }

    /// All holds, with their words.
    pub fn all(&self) -> Vec<(Hold, String)> {
        let holds = self.0.read().unwrap_or_else(PoisonError::into_inner);
        holds.iter().map(|(hold, why)| (*hold, why.clone())).collect()
    }

    /// Whether something may be deleted.
    pub fn may_delete(&self) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_lifted_by_itself() {
        let holds = Holds::default();
        assert!(holds.may_delete());
        holds.place(Hold::LedgerBehind, "a");
        holds.place(Hold::LedgerDamaged, "b");
        holds.place(Hold::LedgerDamaged, "c");
        holds.lift(Hold::LedgerBehind);
        assert_eq!(holds.all(), [(Hold::LedgerDamaged, "c".to_owned())]);
        assert!(!holds.may_delete());
        holds.lift(Hold::LedgerDamaged);
        assert!(holds.may_delete());
    }
}
