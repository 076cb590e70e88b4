//! Whether a blob that nothing names goes, waits or is kept: pure.

use super::keep::Keep;
use crate::ledger::model::UnnamedRow;

/// Of a volume so many unnamed blobs are few,
pub const VOLUME_BLOBS_MAX: u64 = 1_000;
/// and so many of all,
pub const BLOBS_MAX: u64 = 10_000;
/// or one in so many.
pub const SHARE: u64 = 100;

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Its time is over.
    Goes,
    /// Not yet: until so many more complete censuses have found it, and gateways have run so many seconds more.
    Waits {
        /// Censuses.
        censuses: u32,
        /// Seconds.
        run_s: u64,
    },
    /// It stays until an operator decides.
    Kept(Why),
}

/// Why it stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It may belong to a ledger that was given up.
    OfAnotherLedger,
    /// An object or part names it, and its own row is missing.
    Referenced,
}

/// Decides on one blob, when gateways have run so long.
pub fn judge(blob: u64, row: &UnnamedRow, keep: &Keep, ran_s: u64, kept_below: u64) -> Verdict {
    if !row.named_by.is_empty() {
        return Verdict::Kept(Why::Referenced);
    }
    if blob < kept_below {
        return Verdict::Kept(Why::OfAnotherLedger);
    }
    let censuses = keep.censuses.max(1).saturating_sub(row.censuses);
    let run_s = row.seen_run_s.saturating_add(keep.keep_s).saturating_sub(ran_s);
    match (censuses, run_s) {
        (0, 0) => Verdict::Goes,
        (censuses, run_s) => Verdict::Waits { censuses, run_s },
    }
}

/// How many unnamed blobs are few, beside so many that are named.
pub fn bound(named: u64, least: u64) -> u64 {
    least.max(named / SHARE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_only_after_its_time_and_its_censuses() {
        let keep = Keep {
            keep_s: 100,
            censuses: 3,
        };
        for (censuses, ran_s, verdict) in [
            (3, 150, Verdict::Goes),
            (9, u64::MAX, Verdict::Goes),
            (
                2,
                150,
                Verdict::Waits {
                    censuses: 1,
                    run_s: 0,
                },
            ),
            (
                3,
                149,
                Verdict::Waits {
                    censuses: 0,
                    run_s: 1,
                },
            ),
            // The ledger is older than the row says: it waits longer.
            (
                0,
                0,
                Verdict::Waits {
                    censuses: 3,
                    run_s: 150,
                },
            ),
        ] {
            let row = UnnamedRow {
                seen_run_s: 50,
                censuses,
                ..UnnamedRow::default()
            };
            assert_eq!(judge(7, &row, &keep, ran_s, 7), verdict);
            let kept = Verdict::Kept(Why::OfAnotherLedger);
            assert_eq!(judge(7, &row, &keep, ran_s, 8), kept);
            let named_by = "bucket/key".into();
            let referenced = judge(7, &UnnamedRow { named_by, ..row }, &keep, ran_s, 0);
            assert_eq!(referenced, Verdict::Kept(Why::Referenced));
        }
        let never = Keep {
            keep_s: 0,
            censuses: 0,
        };
        let unseen = judge(7, &UnnamedRow::default(), &never, 0, 0);
        assert_eq!(
            unseen,
            Verdict::Waits {
                censuses: 1,
                run_s: 0
            }
        );
    }

    #[test]
    fn few_is_a_number_or_a_share_whichever_is_more() {
        assert_eq!(bound(0, 1_000), 1_000);
        assert_eq!(bound(100_099, 1_000), 1_000);
        assert_eq!(bound(200_000, 1_000), 2_000);
    }
}
