//! How much may be done twice. Each first attempt earns a little, each further one costs a lot: so hedges and retries stay a
//! small share of the load, and a cluster that is slow or failing is not made slower by those who try again.
//!
//! Invariant: at most `price` attempts earn one repetition, and what is saved up is bounded.

use std::sync::atomic::{AtomicI64, Ordering};

/// A budget of repetitions.
#[derive(Debug)]
pub struct Tokens {
    left: AtomicI64,
    price: i64,
    most: i64,
}

impl Tokens {
    /// Full: one repetition for each `price` first attempts, and up to `burst` at once.
    const fn new(price: i64, burst: i64) -> Tokens {
        Tokens {
            left: AtomicI64::new(price * burst),
            price,
            most: price * burst,
        }
    }

    /// Reads that race a slow disk: one in twenty.
    pub const fn hedges() -> Tokens {
        Tokens::new(20, 64)
    }

    /// Stripes sent again, and pieces decoded because their disk failed: one in ten. A disk that dies under load fails all that
    /// is on its way to it at once, so many may be saved up.
    pub const fn retries() -> Tokens {
        Tokens::new(10, 1_024)
    }

    /// Takes in a first attempt.
    pub fn earn(&self) {
        if self.left.load(Ordering::Relaxed) < self.most {
            self.left.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Pays for a repetition, if there is enough.
    pub fn spend(&self) -> bool {
        let enough = |left: i64| (left >= self.price).then_some(left - self.price);
        self.left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, enough)
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repetitions_are_a_share_of_what_is_done() {
        let tokens = Tokens::retries();
        assert_eq!((0..10_000).filter(|_| tokens.spend()).count(), 1_024);
        let repeated = (0..10_000).filter(|_| {
            tokens.earn();
            tokens.spend()
        });
        assert_eq!(repeated.count(), 1_000);
        (0..100_000).for_each(|_| tokens.earn());
        assert_eq!((0..10_000).filter(|_| tokens.spend()).count(), 1_024);
    }
}
