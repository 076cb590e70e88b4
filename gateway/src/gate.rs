//! Lets requests in, and at shutdown lets no more in and waits for those inside.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tokio::sync::Notify;

/// Counts what is in progress.
#[derive(Clone, Default)]
pub struct Gate {
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    inside: AtomicUsize,
    closed: AtomicBool,
    left: Notify,
}

/// Something in progress; leaves when dropped.
pub struct Inside {
    state: Arc<State>,
}

impl Gate {
    /// Lets a new request in, unless the gate is closed.
    pub fn enter(&self) -> Option<Inside> {
        let inside = self.enter_within();
        (!self.state.closed.load(Ordering::SeqCst)).then_some(inside)
    }

    /// Counts work that a request already inside started and that outlives it: never refused.
    pub fn enter_within(&self) -> Inside {
        self.state.inside.fetch_add(1, Ordering::SeqCst);
        Inside {
            state: self.state.clone(),
        }
    }

    /// Lets no more in.
    pub fn close(&self) {
        self.state.closed.store(true, Ordering::SeqCst);
    }

    /// Whether it is closed.
    pub fn is_closed(&self) -> bool {
        self.state.closed.load(Ordering::SeqCst)
    }

    /// Returns when nothing is inside.
    pub async fn empty(&self) {
        loop {
            let left = self.state.left.notified();
            if self.state.inside.load(Ordering::SeqCst) == 0 {
                return;
            }
            left.await;
        }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        if self.state.inside.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.state.left.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn closing_waits_for_those_inside() {
        let gate = Gate::default();
        let inside = gate.enter().expect("open");
        gate.close();
        assert!(gate.enter().is_none());
        let waiting = tokio::spawn({
            let gate = gate.clone();
            async move { gate.empty().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(inside);
        waiting.await.expect("ends");
    }
}
