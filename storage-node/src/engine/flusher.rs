//! The second half of a batch: waits for its writes, flushes once, changes the index, answers. It has a thread of its own, so
//! that the device writes the next batch while this one is flushed.
//!
//! Invariants:
//! - Batches are finished in the order in which they were started, at most [`IN_FLIGHT_MAX`] at once.
//! - The index changes, and an answer leaves, only after the flush that covers the records; and a batch is acknowledged only
//!   after all before it.
//! - A failed write or flush fences the disk; what is in flight behind it fails too, because the device has latched.

use super::Shared;
use super::committer::FenceOnPanic;
use super::index::{Entry, Mark};
use super::queue::Reply;
use crate::device::{Completion, DeviceError};
use crate::format::record::{RecordHead, RecordKind};
use crate::protocol::{NodeError, UnitId};
use crate::sync::Arc;
use crate::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use crate::sync::thread::{Builder, JoinHandle};
use std::collections::{HashMap, HashSet};

/// Batches that are written and flushed at the same time.
pub const IN_FLIGHT_MAX: usize = 2;

/// A request whose records are in a batch.
pub struct Admitted {
    /// Who waits.
    pub reply: Reply,
    /// Its records.
    pub records: Vec<RecordHead>,
}

/// What a batch changes once it is durable.
#[derive(Default)]
pub struct Pending {
    /// Requests that are answered then.
    pub admitted: Vec<Admitted>,
    /// Tombstones in the batch of deletes that ran out of space half-way: on the disk all the same, so in the index.
    pub unanswered: Vec<RecordHead>,
    /// What it changes for the requests behind it.
    pub decided: Decided,
}

/// Deletes and drops that the index does not know yet.
#[derive(Default)]
pub struct Decided {
    /// Blobs that are deleted.
    pub tombstones: HashSet<(UnitId, u64)>,
    /// Units that are dropped, and at which epoch.
    pub drops: HashMap<UnitId, u32>,
}

impl Pending {
    /// Nobody waits for anything in it.
    pub fn is_empty(&self) -> bool {
        self.admitted.is_empty() && self.unanswered.is_empty()
    }
}

/// A batch whose writes were started; none if it has only answers to give in their turn.
pub struct Started {
    /// Its number.
    pub number: u64,
    /// Its writes.
    pub writes: Vec<Completion<()>>,
    /// Bytes of them.
    pub bytes: u64,
    /// What follows when they are durable.
    pub pending: Pending,
}

/// The thread, and how the committer speaks with it.
pub struct Flusher {
    /// Dropped to end it.
    started: Option<Sender<Started>>,
    finished: Receiver<Option<u64>>,
    thread: Option<JoinHandle<()>>,
}

impl Flusher {
    /// Starts it.
    pub fn start(shared: Arc<Shared>) -> std::io::Result<Flusher> {
        let (started, batches) = channel();
        let (sender, finished) = channel();
        let work = move || {
            // Dropped before the channels: whoever finds them closed finds the reason.
            let (batches, sender) = (batches, sender);
            let _guard = FenceOnPanic(shared.clone(), "flusher");
            run(&shared, &batches, &sender);
        };
        let thread = Builder::new().name("flusher".into()).spawn(work)?;
        Ok(Flusher {
            started: Some(started),
            finished,
            thread: Some(thread),
        })
    }

    /// Hands over a batch. False when the thread is gone: those who wait are answered by the loss of their replies.
    pub fn hand_over(&self, batch: Started) -> bool {
        self.started
            .as_ref()
            .is_some_and(|sender| sender.send(batch).is_ok())
    }

    /// The next batch that is done, and its number if it is flushed now; an error when the thread is gone, none when `wait` is
    /// false and there is none.
    pub fn next_done(&self, wait: bool) -> Result<Option<Option<u64>>, NodeError> {
        let gone = || NodeError::Fenced {
            reason: "the flusher stopped".into(),
        };
        if wait {
            return self.finished.recv().map(Some).map_err(|_| gone());
        }
        match self.finished.try_recv() {
            Ok(done) => Ok(Some(done)),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(gone()),
        }
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        self.started = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a flusher panicked");
        }
    }
}

fn run(shared: &Shared, batches: &Receiver<Started>, finished: &Sender<Option<u64>>) {
    for batch in batches {
        let flushed = finish(shared, batch);
        // First, so that the next batch says that this one is flushed.
        let heard = finished.send(flushed).is_ok();
        shared.queue.batch_done();
        if !heard {
            return;
        }
    }
}

/// Waits, flushes, updates the index, answers; its number if it is flushed now.
fn finish(shared: &Shared, batch: Started) -> Option<u64> {
    let Started {
        number,
        writes,
        bytes,
        pending,
    } = batch;
    let written = !writes.is_empty();
    let result = match written {
        true => make_durable(shared, writes, bytes).map_err(|error| shared.fence_with(&error)),
        false => shared.check_serving(),
    };
    conclude(shared, pending, &result);
    (written && result.is_ok()).then_some(number)
}

/// Takes what is durable now into the index, then answers.
pub fn conclude(shared: &Shared, pending: Pending, result: &Result<(), NodeError>) {
    if result.is_ok() {
        take_in(shared, &pending);
    }
    for admitted in pending.admitted {
        let _ = admitted.reply.send(result.clone()); // Who has left needs no answer.
    }
}

/// Waits for the writes of a batch, then for one flush.
pub fn make_durable(shared: &Shared, writes: Vec<Completion<()>>, bytes: u64) -> Result<(), DeviceError> {
    wait_for(writes)?;
    flush(shared, bytes)
}

/// Waits for all of them, also after a failure: the kernel may still be writing.
pub fn wait_for(writes: Vec<Completion<()>>) -> Result<(), DeviceError> {
    let results: Vec<_> = writes.into_iter().map(|write| write.wait()).collect();
    results.into_iter().collect()
}

/// Makes a batch of so many bytes durable once its writes have completed.
pub fn flush(shared: &Shared, bytes: u64) -> Result<(), DeviceError> {
    shared.device.flush_now()?;
    shared.metrics.batches.add(1);
    shared.metrics.bytes_written.add(bytes);
    Ok(())
}

fn take_in(shared: &Shared, pending: &Pending) {
    let mut index = shared.index_mut();
    let admitted = pending.admitted.iter().flat_map(|a| &a.records);
    for head in admitted.chain(&pending.unanswered) {
        let mark = Mark::of(head);
        match head.kind {
            RecordKind::Shard => {
                index.insert(head.unit, head.key, Entry::of(head), head.sequence, head.epoch)
            }
            RecordKind::Tombstone => index.delete_blob(head.unit, head.key.blob, mark),
            RecordKind::UnitDropped => index.drop_unit(head.unit, mark),
            RecordKind::Cut => {}
        }
    }
}
