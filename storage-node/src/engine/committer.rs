//! The one thread that writes to a disk: takes what arrived, lays it out as one batch, starts its writes, and hands it to the
//! [`Flusher`], which answers when it is durable.
//!
//! Invariants:
//! - A batch may be written while the one before it is still in flight, never two before it. Its records say what was
//!   flushed by then, and where in their extent the loose part begins.
//! - A small batch that is alone is written, flushed and answered by this thread.
//! - Background work, and whatever else writes to the disk, waits until nothing is in flight.
//! - `Extent::end` moves on when a batch is laid out: nothing is written there twice, since a failed write fences the disk.
//! - A failed write or flush fences the disk; nothing is retried, and everybody who waits is told.

use super::batch::Batch;
use super::compaction::Job;
use super::flusher::{self, Admitted, Decided, Flusher, IN_FLIGHT_MAX, Pending, Started, make_durable};
use super::index::{ExtentUse, Mark};
use super::loose::Loose;
use super::queue::{Change, Request};
use super::rests::Rests;
use super::room::Purpose;
use super::summaries::Summaries;
use super::{Shared, WRITE_CHECK_INTERVAL, superblocks};
use crate::device::{AlignedBuf, AlignedBytes, BLOCK, Completion, DeviceError};
use crate::format::extent::{ExtentHeader, SYSTEM_UNIT};
use crate::format::record::CutPlace;
use crate::format::superblock::{FORMAT_VERSION, Superblock};
use crate::protocol::{Admission, Generation, LedgerMarks, NodeError, Still};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// The most bytes of one batch.
pub const BATCH_BYTES_MAX: usize = 16 << 20;
const BATCH_REQUESTS_MAX: usize = 1024;
/// A disk stands still so long at most, whatever it was asked.
const STILL_MAX: Duration = Duration::from_secs(60);
/// How long to sleep while readers keep a freed extent busy.
const DRAIN_PATIENCE: Duration = Duration::from_millis(5);

/// How long a disk is idle before its last batch is marked as flushed.
const MARK_AFTER: Duration = Duration::from_millis(500);

/// A batch of at most this many bytes is written by the committer itself, if nothing else is in flight.
const ALONE_BYTES_MAX: u64 = if cfg!(test) { 8 << 10 } else { 256 << 10 };
/// And so many writes one after the other; more go to the device together.
const WRITES_ALONE_MAX: usize = 2;

/// Numbers that only grow; recovery says where they stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters {
    /// The next request's.
    pub sequence: u64,
    /// The next batch's.
    pub batch: u64,
    /// The newest batch that is known to be flushed.
    pub flushed: u64,
    /// The next extent use's.
    pub generation: u64,
    /// The next header write's.
    pub header: u64,
}

/// The committer's state.
pub struct Committer {
    pub(super) shared: Arc<Shared>,
    pub(super) superblock: Superblock,
    pub(super) counters: Counters,
    pub(super) free: VecDeque<u32>,
    pub(super) job: Option<Job>,
    pub(super) rests: Rests,
    pub(super) headers: Vec<ExtentHeader>,
    pub(super) summaries: Summaries,
    pub(super) checked: Instant,
    /// Nothing is changed for this ledger until then.
    pub(super) still: Option<(Generation, Instant)>,
    /// Extents whose space the filesystem granted since the disk was opened.
    pub(super) granted: HashSet<u32>,
    /// It refused to, the last time.
    pub(super) starved: bool,
    pub(super) flusher: Flusher,
    /// What the flusher has not finished yet, oldest first.
    pub(super) in_flight: VecDeque<InFlight>,
}

/// A write that was laid out.
struct Laid {
    at: u64,
    parts: Vec<AlignedBytes>,
}

/// What must be known of a batch until it is flushed.
pub struct InFlight {
    pub(super) decided: Decided,
    /// Where its part of each extent starts.
    pub(super) starts: HashMap<u32, u32>,
}

/// A committer or flusher, by this name, that panics takes its disk out of service: nobody may wait for it.
pub(super) struct FenceOnPanic(pub(super) Arc<Shared>, pub(super) &'static str);

impl Drop for FenceOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fence_because(&format!("the {} panicked", self.1));
            self.0.queue.close();
            // Those who wait are answered by the loss of their reply.
            while self
                .0
                .queue
                .take(BATCH_REQUESTS_MAX, BATCH_BYTES_MAX, None)
                .is_some()
            {}
        }
    }
}

impl Committer {
    /// Works until the queue is closed and empty, then flushes.
    pub fn run(mut self) {
        let _guard = FenceOnPanic(self.shared.clone(), "committer");
        let mut background = true;
        loop {
            let serving = self.shared.fence.get().is_none();
            let patience = match background {
                true => Some(self.rest_left()),
                false if serving && self.is_draining() => Some(DRAIN_PATIENCE),
                false if serving && self.is_unmarked() => Some(MARK_AFTER),
                false => None,
            };
            let Some(requests) = self
                .shared
                .queue
                .take(BATCH_REQUESTS_MAX, BATCH_BYTES_MAX, patience)
            else {
                break;
            };
            let mut made_room = false;
            if !requests.is_empty() {
                made_room = self.serve(requests);
            } else if patience == Some(MARK_AFTER) {
                self.mark_flushed();
            }
            // The put that room was made for comes first: a step more could take the room again.
            background = self.shared.fence.get().is_none()
                && (made_room || self.is_resting() || self.finds_background_work() && self.polite_step());
        }
        self.drain();
        if self.shared.fence.get().is_none()
            && let Err(error) = self.shared.device.flush().wait()
        {
            self.shared.fence_with(&error);
        }
        self.mark_flushed();
    }

    fn is_unmarked(&self) -> bool {
        self.superblock.flushed < self.counters.batch - 1
            || self.summaries.is_due(self.counters.flushed)
            || !self.shared.bad_summaries().is_empty()
            || self.superblock.verified != self.shared.verify_cursor.load(Ordering::Relaxed)
    }

    /// Says in the superblock that the last batch was flushed. Until then only the next batch would say it, and rot in
    /// the last batch of an idle disk would look like a torn write.
    fn mark_flushed(&mut self) {
        self.drain();
        if self.shared.fence.get().is_some() || !self.is_unmarked() {
            return;
        }
        self.look_at_disk();
        self.write_summaries();
        if self.headers.is_empty() {
            self.superblock.headers = self.counters.header;
        }
        if self.shared.fence.get().is_none()
            && let Err(error) = self.write_superblock()
        {
            self.shared.fence_with(&error);
        }
    }

    pub(super) fn write_superblock(&mut self) -> Result<(), DeviceError> {
        self.superblock.version = FORMAT_VERSION;
        self.superblock.sequence += 1;
        self.superblock.flushed = self.counters.flushed;
        self.superblock.verified = self.shared.verify_cursor.load(Ordering::Relaxed);
        // What came to the disk may be forgotten with its last record.
        let known = self.superblock.ledger;
        self.superblock.ledger = known.told(&LedgerMarks {
            generation: known.generation,
            ..self.shared.seen.marks()
        });
        superblocks::write(&*self.shared.device, &self.superblock)
    }

    /// Says in the superblock that a gateway took this medium for the disk; never one that it took before.
    fn remember_admission(&mut self, admission: Admission, ledger: Generation) -> Result<(), NodeError> {
        let current = self.superblock.ledger.generation;
        if current != Generation::NONE && ledger != current {
            return Err(NodeError::OtherLedger { current });
        }
        self.check_still(ledger)?;
        let known = self.superblock.admission;
        if known != admission && admission.number <= known.number {
            let what = format!(
                "the disk has admission {}, which is not before {}",
                known.number, admission.number
            );
            return Err(NodeError::BadRequest { what });
        }
        self.look_at_disk();
        self.shared.check_serving()?;
        self.superblock.admission = admission;
        self.write_superblock()
            .map_err(|error| self.shared.fence_with(&error))?;
        *self.shared.lock_admission() = (admission, true);
        Ok(())
    }

    /// Refuses changes for a ledger for a while, if it is the one that the disk obeys.
    fn stand_still(&mut self, still: &Still) {
        let ledger = self.superblock.ledger.generation;
        if ledger == still.ledger && ledger != Generation::NONE {
            let lasts = Duration::from_millis(still.lasts_ms).min(STILL_MAX);
            self.still = (!lasts.is_zero()).then(|| (ledger, Instant::now() + lasts));
        }
    }

    /// Refuses a change for this ledger while the disk stands still for it.
    pub(super) fn check_still(&self, ledger: Generation) -> Result<(), NodeError> {
        match self.still {
            Some((of, until)) if of == ledger && Instant::now() < until => Err(NodeError::Overloaded),
            _ => Ok(()),
        }
    }

    /// Says in the superblock which ledger the disk obeys; never an older one, nor another copy of the same.
    fn obey(&mut self, told: LedgerMarks) -> Result<(), NodeError> {
        let known = self.superblock.ledger;
        if !known.obeys(told.generation) {
            let current = known.generation;
            return Err(NodeError::OtherLedger { current });
        }
        self.check_still(told.generation)?;
        let marks = known.told(&told);
        if marks == known {
            return Ok(());
        }
        self.look_at_disk();
        self.shared.check_serving()?;
        self.superblock.ledger = marks;
        self.write_superblock()
            .map_err(|error| self.shared.fence_with(&error))?;
        *self.shared.lock_ledger() = self.superblock.ledger;
        Ok(())
    }

    /// Makes durable what recovery read, which may still be in the drive's cache, and then its decisions. In that order: a
    /// cut that outlives the records it was judged by would name a place that another record takes.
    pub(super) fn settle(&mut self, new_cuts: &[CutPlace], loose: &Loose) -> Result<(), NodeError> {
        self.write_loose_again(loose)?;
        let flushed = self.shared.device.flush().wait();
        flushed.map_err(|error| self.shared.fence_with(&error))?;
        if new_cuts.is_empty() {
            self.counters.flushed = self.counters.batch - 1;
        }
        let mut batch = self.new_batch();
        let mut sequence = self.counters.sequence;
        let drafts = super::recovery::cut_drafts(new_cuts, || {
            sequence += 1;
            sequence - 1
        });
        self.counters.sequence = sequence;
        let mut cuts = Vec::new();
        for (draft, places) in drafts {
            cuts.push((self.append(&mut batch, SYSTEM_UNIT, draft, Purpose::Cut)?, places));
        }
        self.write_batch(batch)?;
        let mut index = self.shared.index_mut();
        for (head, places) in cuts {
            index.cut(Mark::of(&head), places);
        }
        Ok(())
    }

    pub(super) fn is_draining(&self) -> bool {
        self.shared
            .index()
            .extents
            .iter()
            .any(|e| e.used == ExtentUse::Draining)
    }

    /// Notices a disk that was removed, truncated or overwritten, before more is acknowledged on it: what is must be
    /// there after a restart. One superblock that is still ours says enough; ten a second cost a hard disk little.
    fn check_disk(&mut self) {
        if self.checked.elapsed() < WRITE_CHECK_INTERVAL {
            return;
        }
        let device = &*self.shared.device;
        if device.check().is_ok() && superblocks::first_is_ours(device, &self.superblock) {
            self.checked = Instant::now();
        } else {
            self.look_at_disk();
        }
    }

    /// Before a superblock is written too: a valid one must not hide that the rest was overwritten.
    fn look_at_disk(&mut self) {
        self.checked = Instant::now();
        let device = &*self.shared.device;
        if let Err(error) = device.check() {
            self.shared.fence_with(&error);
        } else if superblocks::is_overwritten(&superblocks::read(device), &self.shared.identity) {
            self.shared.fence_because(superblocks::OVERWRITTEN);
        }
    }

    /// Takes in what the flusher has finished; waits for it while more than `most` batches are in flight.
    fn collect(&mut self, most: usize) {
        while !self.in_flight.is_empty() {
            match self.flusher.next_done(self.in_flight.len() > most) {
                Ok(Some(flushed)) => {
                    self.in_flight.pop_front();
                    self.counters.flushed = flushed.unwrap_or(self.counters.flushed);
                }
                Ok(None) => return,
                Err(error) => {
                    self.shared.fence_because(&error.to_string());
                    self.in_flight.clear();
                }
            }
        }
    }

    /// Waits until nothing is in flight.
    pub(super) fn drain(&mut self) {
        self.collect(0);
    }

    /// Says whether room was made for a put that found none, which waits at the front of the queue.
    fn serve(&mut self, requests: Vec<Request>) -> bool {
        self.check_disk();
        self.collect(IN_FLIGHT_MAX - 1);
        let mut batch = self.new_batch();
        let mut pending = Pending::default();
        let mut requests = VecDeque::from(requests);
        let mut no_space = false;
        while let Some(request) = requests.pop_front() {
            if request.reply.is_closed() {
                continue;
            }
            if let Err(error) = self.shared.check_serving() {
                let _ = request.reply.send(Err(error));
                continue;
            }
            if let Change::Admit(admission, ledger) = request.change {
                let _ = request.reply.send(self.remember_admission(admission, ledger)); // The caller may have left.
                continue;
            }
            if let Change::Obey(marks) = request.change {
                let _ = request.reply.send(self.obey(marks)); // The same.
                continue;
            }
            if let Change::Still(still) = request.change {
                self.stand_still(&still);
                // Answered with the batch: what came before is done then.
                pending.admitted.push(Admitted {
                    reply: request.reply,
                    records: Vec::new(),
                });
                continue;
            }
            match self.admit(&mut batch, &mut pending, &request) {
                Ok(records) => pending.admitted.push(Admitted {
                    reply: request.reply,
                    records,
                }),
                Err(NodeError::NoSpace) if !request.retried => {
                    no_space = true;
                    requests.push_front(Request {
                        retried: true,
                        ..request
                    });
                    break;
                }
                Err(error) => {
                    let _ = request.reply.send(Err(error));
                }
            }
        }
        self.shared.queue.put_back(requests.into());
        self.submit(batch, pending);
        if no_space {
            self.drain();
            self.make_room();
        }
        no_space
    }

    /// Starts a batch's writes and leaves the rest to the flusher; does it all here and now where that takes no longer.
    fn submit(&mut self, batch: Batch, mut pending: Pending) {
        if batch.is_empty() && self.headers.is_empty() && pending.is_empty() {
            return;
        }
        let (number, bytes) = (batch.number(), batch.bytes());
        if self.in_flight.is_empty() && bytes <= ALONE_BYTES_MAX {
            return self.finish_alone(batch, pending);
        }
        let decided = std::mem::take(&mut pending.decided);
        let (writes, starts) = self.lay_out(batch);
        let writes = self.start(writes);
        self.in_flight.push_back(InFlight { decided, starts });
        self.shared.queue.batch_started();
        let started = Started {
            number,
            writes,
            bytes,
            pending,
        };
        if !self.flusher.hand_over(started) {
            self.shared.fence_because("the flusher stopped");
        }
    }

    /// Writes a small batch while nothing else is in flight, flushes and answers. To hand it from thread to thread, to be waited for
    /// in the end all the same, would cost more than the work.
    fn finish_alone(&mut self, batch: Batch, pending: Pending) {
        let (number, bytes) = (batch.number(), batch.bytes());
        let (writes, _) = self.lay_out(batch);
        let result = match writes.is_empty() {
            true => self.shared.check_serving(),
            false => self
                .write_now(writes, bytes)
                .map_err(|error| self.shared.fence_with(&error))
                .map(|()| self.counters.flushed = number),
        };
        flusher::conclude(&self.shared, pending, &result);
    }

    fn write_now(&self, writes: Vec<Laid>, bytes: u64) -> Result<(), DeviceError> {
        let device = &self.shared.device;
        match writes.len() {
            ..=WRITES_ALONE_MAX => {
                for write in writes {
                    device.write_now(write.at, write.parts)?;
                }
            }
            _ => flusher::wait_for(self.start(writes))?,
        }
        flusher::flush(&self.shared, bytes)
    }

    fn start(&self, writes: Vec<Laid>) -> Vec<Completion<()>> {
        let start = |write: Laid| self.shared.device.write_parts(write.at, write.parts);
        writes.into_iter().map(start).collect()
    }

    pub(super) fn new_batch(&self) -> Batch {
        Batch::new(self.counters.batch, self.counters.flushed)
    }

    /// Writes a batch, the staged headers and the summaries that are due, waits, flushes. Nothing else is in flight then.
    pub(super) fn write_batch(&mut self, batch: Batch) -> Result<(), NodeError> {
        self.drain();
        if batch.is_empty() && self.headers.is_empty() && !self.summaries.is_due(self.counters.flushed) {
            return Ok(());
        }
        let (number, bytes) = (batch.number(), batch.bytes());
        let (writes, _) = self.lay_out(batch);
        if writes.is_empty() {
            return Ok(());
        }
        let writes = self.start(writes);
        make_durable(&self.shared, writes, bytes).map_err(|error| self.shared.fence_with(&error))?;
        self.counters.flushed = number;
        Ok(())
    }

    /// The writes of a batch, the staged headers and the summaries that are due, for which it advances the logs; and where its
    /// part of each extent starts.
    fn lay_out(&mut self, mut batch: Batch) -> (Vec<Laid>, HashMap<u32, u32>) {
        let due = self.summaries.is_due(self.counters.flushed);
        if batch.is_empty() && self.headers.is_empty() && !due {
            return (Vec::new(), HashMap::new());
        }
        let summaries = self.due_summaries().unwrap_or_else(|error| {
            self.shared.fence_with(&error);
            Vec::new()
        });
        let layout = &self.shared.layout;
        let mut writes = Vec::new();
        let mut lay = |at, parts| writes.push(Laid { at, parts });
        summaries.into_iter().for_each(|(at, bytes)| lay(at, vec![bytes]));
        for header in self.headers.drain(..) {
            let mut block = AlignedBuf::zeroed(BLOCK);
            let bytes = header.encode(&self.shared.identity);
            block[..bytes.len()].copy_from_slice(&bytes);
            let (block, start) = (block.share(), layout.extent_offset(header.extent));
            lay(start, vec![block.clone()]);
            lay(start + u64::from(layout.data_end()), vec![block]);
        }
        for write in batch.encode(&self.shared.identity) {
            let at = layout.extent_offset(write.extent) + u64::from(write.offset);
            lay(at, write.parts);
        }
        let mut index = self.shared.index_mut();
        let mut starts = HashMap::new();
        for advance in batch.advances() {
            let extent = &mut index.extents[advance.extent as usize];
            (extent.end, extent.ordinal) = (advance.end, advance.ordinal);
            starts.insert(advance.extent, advance.start);
        }
        self.counters.batch += u64::from(!writes.is_empty());
        (writes, starts)
    }
}
