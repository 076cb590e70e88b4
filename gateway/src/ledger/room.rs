//! Decides how much room a ledger keeps on its filesystem, when uploads end, and how much of a settle is done at once. Purely:
//! who measures and who allocates is elsewhere (`redb/reserve.rs`).
//!
//! Invariants:
//! - Uploads end while the whole reserve is there, so that what frees space (deletes, aborts) and what must go on (leases, repairs)
//!   has all of it.
//! - They go on only when there is twice as much as where they ended: a filesystem at the edge does not flap.

/// Bytes that are kept for the tree, at most: what a settle of four megabytes of rows all over the tree takes, pages that are
/// copied included. A settle that needs more is done in pieces, so more would only save flushes.
pub const RESERVE_BYTES_MAX: u64 = 32 << 20;
/// Of a small filesystem the reserve is one byte in so many.
const RESERVE_SHARE: u64 = 32;
/// The reserve is made, and given up, by so many bytes.
pub const PIECE_BYTES: u64 = 1 << 20;

/// Bytes of a page of the tree.
const PAGE_BYTES: u64 = 4096;
/// Pages that a row's change copies at most: its leaf, in two if it was split, and the branches above that it does not share.
const PAGES_A_ROW: u64 = 5;
/// What every transaction writes, whatever is in it: roots, the tree's own tables.
const TRANSACTION_BYTES: u64 = 256 << 10;

/// What was measured of a filesystem.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// Its bytes in all.
    pub total_bytes: u64,
    /// Bytes that anybody may still take of it.
    pub free_bytes: u64,
    /// Bytes of the reserve that is there.
    pub reserve_bytes: u64,
}

impl Measured {
    /// Bytes that the reserve should have on this filesystem.
    pub fn reserve_wanted(&self) -> u64 {
        (self.total_bytes / RESERVE_SHARE).min(RESERVE_BYTES_MAX) / PIECE_BYTES * PIECE_BYTES
    }

    /// Whether uploads may go on, if until now they `did`.
    pub fn admits(&self, did: bool) -> bool {
        let wanted = self.reserve_wanted();
        let least = if did { wanted } else { 2 * wanted };
        self.reserve_bytes >= wanted && self.free_bytes >= least
    }

    /// Bytes that a transaction may count on. What is free counts only while there is plenty: others take of it too.
    pub fn for_transaction(&self) -> u64 {
        match self.admits(true) {
            true => self.reserve_bytes + self.free_bytes / 2,
            false => self.reserve_bytes,
        }
    }
}

/// Bytes that a transaction takes at most: a tree copies what it changes, and lets go of the old pages later.
#[derive(Clone, Copy, Debug)]
pub struct Needed {
    rows: u64,
    payload: u64,
    tree_bytes: u64,
}

impl Needed {
    /// For an empty transaction on a tree of so many bytes.
    pub fn on_tree(tree_bytes: u64) -> Needed {
        Needed {
            rows: 0,
            payload: 0,
            tree_bytes,
        }
    }

    /// With a row more, of so many bytes of key and value.
    pub fn with_row(self, bytes: usize) -> Needed {
        Needed {
            rows: self.rows + 1,
            payload: self.payload + bytes as u64,
            ..self
        }
    }

    /// In bytes.
    pub fn bytes(&self) -> u64 {
        // Free pages are a bitmap or two, which each transaction writes.
        let base = TRANSACTION_BYTES + self.tree_bytes / PAGE_BYTES;
        let copied = (self.rows * PAGES_A_ROW * PAGE_BYTES).min(self.tree_bytes + PAGES_A_ROW * PAGE_BYTES);
        // A value may take a page of twice its length.
        base + copied + 3 * self.payload
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn measured(total: u64, free: u64, reserve: u64) -> Measured {
        Measured {
            total_bytes: total * MIB,
            free_bytes: free * MIB,
            reserve_bytes: reserve * MIB,
        }
    }

    #[test]
    fn the_reserve_is_a_share_of_a_small_filesystem_and_bounded_on_a_large_one() {
        assert_eq!(measured(500, 0, 0).reserve_wanted(), 15 * MIB);
        assert_eq!(measured(1 << 20, 0, 0).reserve_wanted(), RESERVE_BYTES_MAX);
        assert_eq!(measured(10, 10, 0).reserve_wanted(), 0);
        // Nothing is wanted of a filesystem so small, and nothing refused because of it.
        assert!(measured(10, 0, 0).admits(true));
    }

    #[test]
    fn uploads_end_before_the_reserve_is_touched_and_go_on_well_above() {
        for total in [500, 5_000, 500_000] {
            let wanted = measured(total, 0, 0).reserve_wanted() / MIB;
            let mut did = true;
            let mut ended = None;
            for free in (0..=4 * wanted).rev() {
                did = measured(total, free, wanted).admits(did);
                if !did {
                    ended.get_or_insert(free);
                }
            }
            assert_eq!(ended, Some(wanted - 1));
            let again = (0..=4 * wanted).find(|free| measured(total, *free, wanted).admits(false));
            assert_eq!(again, Some(2 * wanted));
            // However much is free: the reserve comes first.
            assert!(!measured(total, 10 * wanted, wanted - 1).admits(true));
        }
    }

    #[test]
    fn a_transaction_counts_on_what_is_free_only_while_there_is_plenty() {
        assert_eq!(measured(500, 100, 15).for_transaction(), 65 * MIB);
        assert_eq!(measured(500, 14, 15).for_transaction(), 15 * MIB);
        assert_eq!(measured(500, 100, 3).for_transaction(), 3 * MIB);
    }

    #[test]
    fn what_a_transaction_needs_grows_with_rows_and_no_further_than_the_tree() {
        let mut needed = Needed::on_tree(100 * MIB);
        let mut before = needed.bytes();
        for _ in 0..1_000 {
            needed = needed.with_row(100);
            assert!(needed.bytes() > before);
            before = needed.bytes();
        }
        let small = (0..100_000).fold(Needed::on_tree(MIB), |needed, _| needed.with_row(100));
        assert!(small.bytes() < 32 * MIB, "{}", small.bytes());
        // A thousand rows of a large ledger fit into the reserve.
        let thousand = (0..1_000).fold(Needed::on_tree(2048 * MIB), |needed, _| needed.with_row(300));
        assert!(thousand.bytes() < RESERVE_BYTES_MAX);
    }
}
