//! A device that counts what the engine asks of the one behind it, and for how long it is kept busy.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use storage_node::device::{AlignedBuf, AlignedBytes, Completion, Device, DeviceError, DeviceInfo};

/// What was asked of a device since somebody last looked.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Reads.
    pub reads: u64,
    /// Bytes of them.
    pub bytes_read: u64,
    /// Writes.
    pub writes: u64,
    /// Bytes of them.
    pub bytes_written: u64,
    /// Flushes.
    pub flushes: u64,
    /// How long at least one write was in flight.
    pub writing: Duration,
    /// How long at least one flush was.
    pub flushing: Duration,
}

/// Operations in flight: how many, and since when any.
#[derive(Debug, Default)]
struct InFlight {
    count: usize,
    since: Option<Instant>,
}

#[derive(Debug, Default)]
struct State {
    counts: Counts,
    writes: InFlight,
    flushes: InFlight,
}

/// The counts, shared with the device.
#[derive(Clone, Debug, Default)]
pub struct Watch(Arc<Mutex<State>>);

impl Watch {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was counted since the last call.
    pub fn take(&self) -> Counts {
        std::mem::take(&mut self.lock().counts)
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Write,
    Flush,
}

impl State {
    fn of(&mut self, kind: Kind) -> (&mut InFlight, &mut Duration) {
        match kind {
            Kind::Write => (&mut self.writes, &mut self.counts.writing),
            Kind::Flush => (&mut self.flushes, &mut self.counts.flushing),
        }
    }

    fn begin(&mut self, kind: Kind) {
        let in_flight = self.of(kind).0;
        in_flight.count += 1;
        in_flight.since.get_or_insert_with(Instant::now);
    }

    fn end(&mut self, kind: Kind) {
        let (in_flight, busy) = self.of(kind);
        in_flight.count -= 1;
        if in_flight.count == 0
            && let Some(since) = in_flight.since.take()
        {
            *busy += since.elapsed();
        }
    }
}

/// Held by a completion until the device answers.
struct Answered(Watch, Kind);

impl Drop for Answered {
    fn drop(&mut self) {
        self.0.lock().end(self.1);
    }
}

/// The device.
pub struct Watched {
    device: Arc<dyn Device>,
    watch: Watch,
}

impl Watched {
    /// In front of `device`.
    pub fn new(device: Arc<dyn Device>) -> (Watched, Watch) {
        let watch = Watch::default();
        let watched = Watched {
            device,
            watch: watch.clone(),
        };
        (watched, watch)
    }

    fn begin(&self, kind: Kind, count: impl FnOnce(&mut Counts)) -> Answered {
        let mut state = self.watch.lock();
        count(&mut state.counts);
        state.begin(kind);
        Answered(self.watch.clone(), kind)
    }
}

impl Device for Watched {
    fn info(&self) -> &DeviceInfo {
        self.device.info()
    }

    fn read(&self, offset: u64, buf: AlignedBuf) -> Completion<AlignedBuf> {
        let mut state = self.watch.lock();
        state.counts.reads += 1;
        state.counts.bytes_read += buf.len() as u64;
        drop(state);
        self.device.read(offset, buf)
    }

    fn write_parts(&self, offset: u64, parts: Vec<AlignedBytes>) -> Completion<()> {
        let answered = self.begin(Kind::Write, |counts| {
            counts.writes += 1;
            counts.bytes_written += parts.iter().map(|part| part.len() as u64).sum::<u64>();
        });
        self.device.write_parts(offset, parts).holding(answered)
    }

    fn flush(&self) -> Completion<()> {
        let answered = self.begin(Kind::Flush, |counts| counts.flushes += 1);
        self.device.flush().holding(answered)
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        self.device.allocate(offset, len)
    }

    fn check(&self) -> Result<(), DeviceError> {
        self.device.check()
    }
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Counts) {
        self.reads += other.reads;
        self.bytes_read += other.bytes_read;
        self.writes += other.writes;
        self.bytes_written += other.bytes_written;
        self.flushes += other.flushes;
        self.writing += other.writing;
        self.flushing += other.flushing;
    }
}
