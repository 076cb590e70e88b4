//! The bounded queue in front of a disk's committer: what arrives during a flush is the next batch.
//!
//! Invariant: a request is accepted whole or refused with `Overloaded`; one that was accepted is answered, also when
//! the disk is fenced or the node shuts down.

use crate::protocol::{Admission, Generation, LedgerMarks, NodeError, SealedShard, Still, UnitAddress};
use crate::sync::{Condvar, Instant, Mutex, MutexGuard, PoisonError, thread};
use std::collections::VecDeque;
use std::time::Duration;
use tokio::sync::oneshot;

/// The most requests that wait.
pub const REQUESTS_MAX: usize = 4096;
/// The most payload bytes that wait.
pub const BYTES_MAX: usize = 128 << 20;

/// This many bytes are written while the batch before is still in flight. A flush is shared by as many small requests as come
/// meanwhile, and large ones keep the device busy.
const OVERLAP_BYTES: usize = if cfg!(test) { 32 << 10 } else { 2 << 20 };

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
    /// Remember this admission of the disk.
    Admit(Admission, Generation),
    /// Obey this ledger.
    Obey(LedgerMarks),
    /// Refuse changes for a ledger for a while.
    Still(Still),
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
            Change::DropUnit | Change::Admit(..) | Change::Obey(_) | Change::Still(_) => 128,
        }
    }
}

#[derive(Default)]
struct Waiting {
    requests: VecDeque<Request>,
    bytes: usize,
    closed: bool,
    nudged: bool,
    /// The committer sleeps, and nobody has woken it yet. To wake who is awake is a call to the kernel too.
    asleep: bool,
    /// Batches that are being written and flushed.
    in_flight: usize,
}

impl Waiting {
    /// While a batch is in flight, only as much as is worth a flush of its own goes beside it; the rest is the next batch.
    fn has_batch(&self) -> bool {
        !self.requests.is_empty() && (self.in_flight == 0 || self.bytes >= OVERLAP_BYTES || self.closed)
    }
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
        self.push_all(vec![request])
    }

    /// Adds requests, all of them or none.
    pub fn push_all(&self, requests: Vec<Request>) -> Result<(), NodeError> {
        let mut waiting = self.lock();
        if waiting.closed {
            return Err(NodeError::Fenced {
                reason: "the node is shutting down".into(),
            });
        }
        let bytes: usize = requests.iter().map(Request::bytes).sum();
        if waiting.requests.len() + requests.len() > REQUESTS_MAX || waiting.bytes + bytes > BYTES_MAX {
            return Err(NodeError::Overloaded);
        }
        waiting.bytes += bytes;
        waiting.requests.extend(requests);
        if waiting.asleep && waiting.has_batch() {
            waiting.asleep = false;
            drop(waiting);
            self.arrived.notify_one();
        }
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
        let until = patience.map(|patience| Instant::now() + patience);
        let mut waiting = self.lock();
        let mut has_slept = false;
        while !waiting.has_batch() {
            if waiting.closed {
                return None;
            }
            if std::mem::take(&mut waiting.nudged) {
                break;
            }
            // What waits for the batch in flight is woken by its end.
            let left = match until.filter(|_| waiting.requests.is_empty()) {
                Some(until) => until.saturating_duration_since(Instant::now()),
                None => Duration::MAX,
            };
            if left.is_zero() {
                break;
            }
            has_slept = true;
            waiting.asleep = true;
            waiting = match left {
                Duration::MAX => self.arrived.wait(waiting).unwrap_or_else(PoisonError::into_inner),
                left => {
                    let woken = self.arrived.wait_timeout(waiting, left);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
            };
            waiting.asleep = false;
        }
        if has_slept && waiting.has_batch() {
            drop(waiting);
            thread::yield_now(); // Who is about to ask, and waits for a processor, joins this batch.
            waiting = self.lock();
        }
        let (mut taken, mut bytes) = (Vec::new(), 0);
        if !waiting.has_batch() {
            return Some(taken);
        }
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

    /// A batch is being written.
    pub fn batch_started(&self) {
        self.lock().in_flight += 1;
    }

    /// One that was is durable, or has failed.
    pub fn batch_done(&self) {
        self.lock().in_flight -= 1;
        self.arrived.notify_all();
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
