//! Who gets memory, and who gives it back when others wait: pure.
//!
//! Three quarters of a pool are for everybody. The last quarter is for parties that hold little of it: so nobody, by however many
//! connections, takes what others need to be served at all. A party is an access key, and an address.
//!
//! When a request waits for memory, connections whose client is slower than [`LEAST_RATE`] are cut, slowest first, until enough comes
//! back. Only time in which the client is waited for counts: what a busy disk takes is nobody's fault.

use std::time::Duration;

/// Bytes a second that a client has to send or to take while others wait.
pub const LEAST_RATE: u64 = 64 * 1024;
/// A client is judged when it was waited for so long.
pub const GRACE: Duration = Duration::from_secs(2);
/// Of a pool, a party that holds no more than one in so many holds little,
const LITTLE: u64 = 8;
/// and one in so many is kept for such.
const KEPT: u64 = 4;

/// Of so much, what is for everybody.
pub fn common(total: u64) -> u64 {
    (total - total / KEPT).max(1)
}

/// Whether a party that holds this much of so much, and wants more, holds little.
pub fn is_little(held: u64, wanted: u64, total: u64) -> bool {
    held.saturating_add(wanted) <= total / LITTLE
}

/// How a connection's client does, as of now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    /// Bytes that it sent or took,
    pub moved: u64,
    /// while it was waited for so long.
    pub waited: Duration,
}

impl Pace {
    /// Whether it is too slow for others to wait for it.
    pub fn is_slow(&self) -> bool {
        self.waited >= GRACE && self.rate() < LEAST_RATE as u128
    }

    /// Bytes a second.
    fn rate(&self) -> u128 {
        u128::from(self.moved) * 1_000 / self.waited.as_millis().max(1)
    }
}

/// A connection that holds memory.
#[derive(Clone, Copy, Debug)]
pub struct Holder {
    /// Which.
    pub id: u64,
    /// Bytes.
    pub held: u64,
    /// Of its client.
    pub pace: Pace,
    /// It was cut: what it holds comes back.
    pub is_cut: bool,
}

/// Whom to cut so that this many bytes come back; fewer if not enough are slow.
pub fn whom_to_cut(holders: &[Holder], wanted: u64) -> Vec<u64> {
    let mut coming: u64 = holders.iter().filter(|it| it.is_cut).map(|it| it.held).sum();
    let is_slow = |it: &&Holder| !it.is_cut && it.held > 0 && it.pace.is_slow();
    let mut slow: Vec<&Holder> = holders.iter().filter(is_slow).collect();
    slow.sort_by_key(|it| (it.pace.rate(), std::cmp::Reverse(it.held)));
    let mut cut = Vec::new();
    for holder in slow {
        if coming >= wanted {
            break;
        }
        coming = coming.saturating_add(holder.held);
        cut.push(holder.id);
    }
    cut
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(moved: u64, waited_ms: u64) -> Pace {
        Pace {
            moved,
            waited: Duration::from_millis(waited_ms),
        }
    }

    fn holder(id: u64, held: u64, pace: Pace) -> Holder {
        Holder {
            id,
            held,
            pace,
            is_cut: false,
        }
    }

    #[test]
    fn a_client_is_slow_by_the_time_that_it_was_waited_for() {
        assert!(!pace(0, 1_999).is_slow(), "too early to tell");
        assert!(pace(0, 2_000).is_slow());
        assert!(pace(2 * LEAST_RATE - 1, 2_000).is_slow());
        assert!(!pace(2 * LEAST_RATE, 2_000).is_slow());
        assert!(pace(u64::MAX, u64::MAX).is_slow(), "1,000 bytes a second");
        assert!(!pace(1 << 40, 0).is_slow());
    }

    #[test]
    fn the_slowest_give_back_no_more_than_is_wanted() {
        let fast = holder(1, 100, pace(1 << 30, 5_000));
        let slow = holder(2, 100, pace(1_000, 5_000));
        let slower = holder(3, 50, pace(10, 5_000));
        let nothing = holder(4, 0, pace(0, 50_000));
        let all = [fast, slow, slower, nothing];
        assert!(whom_to_cut(&all, 0).is_empty());
        assert_eq!(whom_to_cut(&all, 50), [3]);
        assert_eq!(whom_to_cut(&all, 51), [3, 2]);
        assert_eq!(
            whom_to_cut(&all, 1_000),
            [3, 2],
            "who is fast stays, however much is wanted"
        );
        let is_cut = Holder {
            is_cut: true,
            ..slower
        };
        assert!(
            whom_to_cut(&[fast, slow, is_cut], 50).is_empty(),
            "it comes already"
        );
        assert_eq!(whom_to_cut(&[fast, slow, is_cut], 51), [2]);
    }

    #[test]
    fn a_quarter_is_for_those_that_hold_little() {
        assert_eq!(common(1_000), 750);
        assert_eq!(common(1), 1);
        assert!(is_little(0, 125, 1_000));
        assert!(is_little(25, 100, 1_000));
        assert!(!is_little(26, 100, 1_000));
        assert!(!is_little(u64::MAX, 1, 1_000));
        // Two that want all cannot take the last quarter from each other, nor from a third.
        assert!(common(1_000) + 2 * 125 <= 1_000);
    }
}
