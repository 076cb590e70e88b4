//! The bounded queue in front of a disk's committer: what arrives during a flush is the next batch.
//!
//! Invariant: a request is accepted whole or refused with `Overloaded`; one that was accepted is answered, also when
//! the disk is fenced or the node shuts down.

use crate::protocol::{NodeError, SealedShard, UnitAddress};
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;

/// The most requests that wait.
pub const REQUESTS_MAX: usize = 4096;
/// The most payload bytes that wait.
pub const BYTES_MAX: usize = 128 << 20;

/// Where the answer goes.
pub type Reply = oneshot::Sender<Result<(), NodeError>>;

/// What the committer is asked to make durable.
pub enum Change {
    /// Store a shard.
    Put(SealedShard),
    /// Delete blobs.
    Delete(Vec<u64>),
    /// Drop the unit.
    DropUnit,
}

/// A change, where it goes, and who waits for it.
pub struct Request {
    /// Where it goes.
    pub address: UnitAddress,
    /// What to do.
    pub change: Change,
    /// Who waits.
    pub reply: Reply,
    /// It found no space once, and compaction has run since.
    pub retried: bool,
}

impl Request {
    fn bytes(&self) -> usize {
        match &self.change {
            Change::Put(shard) => shard.payload.len() + 1024,
            Change::Delete(blobs) => blobs.len() * 128,
            Change::DropUnit => 128,
        }
    }
}

#[derive(Default)]
struct Waiting {
    requests: VecDeque<Request>,
    bytes: usize,
    closed: bool,
    nudged: bool,
}

/// The queue.
#[derive(Default)]
pub struct Queue {
    waiting: Mutex<Waiting>,
    arrived: Condvar,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a request, or refuses it.
    pub fn push(&self, request: Request) -> Result<(), NodeError> {
        let mut waiting = self.lock();
        if waiting.closed {
            return Err(NodeError::Fenced {
                reason: "the node is shutting down".into(),
            });
        }
        let bytes = request.bytes();
        if waiting.requests.len() >= REQUESTS_MAX || waiting.bytes + bytes > BYTES_MAX {
            return Err(NodeError::Overloaded);
        }
        waiting.bytes += bytes;
        waiting.requests.push_back(request);
        drop(waiting);
        self.arrived.notify_one();
        Ok(())
    }

    /// Puts requests back to the front, in their order.
    pub fn put_back(&self, requests: Vec<Request>) {
        let mut waiting = self.lock();
        for request in requests.into_iter().rev() {
            waiting.bytes += request.bytes();
            waiting.requests.push_front(request);
        }
    }

    /// What waits, up to these bounds; waits for at most `patience` (for ever if none) when nothing does. `None` when
    /// the queue is closed and empty.
    pub fn take(
        &self,
        count_max: usize,
        bytes_max: usize,
        patience: Option<Duration>,
    ) -> Option<Vec<Request>> {
        let mut waiting = self.lock();
        while waiting.requests.is_empty() {
            if waiting.closed {
                return None;
            }
            if std::mem::take(&mut waiting.nudged) {
                break;
            }
            match patience {
                None => waiting = self.arrived.wait(waiting).unwrap_or_else(PoisonError::into_inner),
                Some(patience) => {
                    waiting = self
                        .arrived
                        .wait_timeout(waiting, patience)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0;
                    break;
                }
            }
        }
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while let Some(request) = waiting.requests.pop_front() {
            let size = request.bytes();
            if !taken.is_empty() && (bytes + size > bytes_max || taken.len() >= count_max) {
                waiting.requests.push_front(request);
                break;
            }
            bytes += size;
            taken.push(request);
        }
        waiting.bytes -= bytes;
        Some(taken)
    }

    /// Wakes who waits for ever: there is something to do besides requests.
    pub fn nudge(&self) {
        self.lock().nudged = true;
        self.arrived.notify_all();
    }

    /// Refuses everything from now on; what waits is still taken.
    pub fn close(&self) {
        self.lock().closed = true;
        self.arrived.notify_all();
    }
}
