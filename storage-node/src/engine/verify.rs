//! Local scrub: reads every live record past the page cache, and checks the disk against the index and the index against the
//! disk.
//!
//! - Index to disk: what the index says is live must be there, with its identity and its CRCs. What is not is read again, and
//!   looked up again, before it counts: one bad read decides nothing, and the record may have moved or been deleted meanwhile.
//! - Disk to index: a valid record that the index does not have must be dead for a reason (superseded, deleted, dropped, cut);
//!   else it would come back at the next start.
//! - The summary of a sealed extent lists what is there ([`summary`]).
//!
//! How fast, and whether at all, it is told while it runs ([`Verifying`]): a pass that is asked for begins at the first extent, and
//! goes as fast as is decent. It goes extent by extent, from a cursor that the superblock remembers, at a pace: so many bytes a second that the whole
//! disk takes one cycle. It reads in bursts; between them it holds no buffers and no extent, but the list of what is live in one.
//! In a burst it reads gently, unless it is behind its pace: on a disk that others keep busy.

mod summary;

use super::index::{Entry, ExtentUse, Index};
use super::reader::{check_head, read_span};
use super::stream::{GENTLE, Gait, HASTY, Stream};
use super::{Shared, superblocks};
use crate::device::{BLOCK, align_down};
use crate::format::FormatError;
use crate::format::extent::SYSTEM_UNIT;
use crate::format::record::{HEAD_BYTES_MAX, RecordHead, RecordKind, RecordPlace};
use crate::protocol::{
    Finding, FindingKind, Findings, SHARD_BYTES_MAX, ShardKey, UnitId, VerifyStatus, bad_block, seal_seed,
};
use std::collections::VecDeque;
use std::iter::Peekable;
use std::ops::Bound;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use summary::{Summed, Use};

/// Findings that are kept; the oldest make room.
const FINDINGS_MAX: usize = 1024;
/// Bytes read in one go, between pauses: much beside the end of the last read, which is read twice.
const BURST_BYTES: u32 = if cfg!(test) { 32 << 10 } else { 2 << 20 };
/// The same when it is late.
const LATE_BURST_BYTES: u32 = if cfg!(test) { 128 << 10 } else { 16 << 20 };
/// So far behind its pace it is late.
const LATE_AFTER: Duration = Duration::from_secs(1);
/// The longest record.
const RECORD_BYTES_MAX: u32 = SHARD_BYTES_MAX + 4 * BLOCK as u32;
/// Shards looked up under one lock.
const LOOK_UPS: usize = 4096;
/// How often a record that looks wrong is read again.
const READ_ATTEMPTS: usize = 3;
/// How long a valid record may be missing in the index: its batch may just have been flushed.
const INDEX_PATIENCE: Duration = Duration::from_millis(if cfg!(test) { 300 } else { 5_000 });
/// The pause between two looks at the index.
const INDEX_PAUSE: Duration = Duration::from_millis(20);
/// A verifier that has nothing to do looks again after this long.
const REST: Duration = Duration::from_secs(60);
/// A pass that was asked for reads at most so much: less than any disk can.
const AT_ONCE_BYTES_PER_S: f64 = (64u64 << 20) as f64;

/// What one pass over some extents did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Bytes read.
    pub bytes: u64,
    /// Live shards that were checked.
    pub shards: u64,
    /// Findings.
    pub findings: u64,
}

/// What verifying found since the disk was opened.
#[derive(Debug)]
pub struct Found {
    opened: u64,
    kept: Mutex<(u64, VecDeque<Finding>)>,
}

impl Found {
    /// Nothing yet. `opened` is another number each time.
    pub fn new(opened: u64) -> Found {
        Found {
            opened,
            kept: Mutex::default(),
        }
    }

    /// Which opening of the disk this is.
    pub fn opened(&self) -> u64 {
        self.opened
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).0
    }

    fn add(&self, finding: Finding) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, found) = &mut *kept;
        *last += 1;
        if found.len() >= FINDINGS_MAX {
            found.pop_front();
        }
        found.push_back(finding);
    }

    /// Those numbered above `after`, as far as they are kept.
    pub fn after(&self, after: u64) -> Findings {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, found) = &*kept;
        let new = last.saturating_sub(after).min(found.len() as u64) as usize;
        Findings {
            opened: self.opened,
            last: *last,
            found: found.iter().skip(found.len() - new).cloned().collect(),
        }
    }
}

/// What verifying was told, and what it did since the disk was opened.
#[derive(Debug, Default)]
pub struct Verifying(Mutex<Told>);

#[derive(Debug, Default)]
struct Told {
    cycle: Option<Duration>,
    /// A pass was asked for, and is not over.
    at_once: bool,
    /// It begins with the next extent.
    anew: bool,
    passes: u64,
    ended: Option<Instant>,
}

impl Verifying {
    fn lock(&self) -> MutexGuard<'_, Told> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pass takes so long from now on.
    pub fn set_cycle(&self, cycle: Duration) {
        self.lock().cycle = Some(cycle);
    }

    /// A pass begins, in place of the one on its way.
    pub fn begin_anew(&self) {
        let mut told = self.lock();
        (told.at_once, told.anew) = (true, true);
    }

    /// What operators see of it.
    pub fn status(&self) -> VerifyStatus {
        let told = self.lock();
        VerifyStatus {
            cycle_s: told.cycle.map(|cycle| cycle.as_secs()),
            at_once: told.at_once,
            passes: told.passes,
            ended_s_ago: told.ended.map(|ended| ended.elapsed().as_secs()),
            ..VerifyStatus::default()
        }
    }

    /// The extent to go on with, where it would be this one otherwise.
    fn go_on(&self, number: u32) -> u32 {
        match std::mem::take(&mut self.lock().anew) {
            true => 0,
            false => number,
        }
    }

    /// How long there is to wait before an extent is begun; for ever if none.
    fn wait(&self, number: u32) -> Option<Duration> {
        let told = self.lock();
        match (told.at_once, told.cycle) {
            (true, _) => Some(Duration::ZERO),
            (false, None) => None,
            (false, Some(cycle)) if number == 0 => Some(REST.min(cycle)),
            (false, Some(_)) => Some(Duration::ZERO),
        }
    }

    /// The pace at which so many bytes are read; none where nobody asks for it.
    fn bytes_per_s(&self, used: u64) -> Option<f64> {
        let told = self.lock();
        match (told.at_once, told.cycle) {
            (true, _) => Some(AT_ONCE_BYTES_PER_S),
            (false, cycle) => cycle.map(|cycle| used as f64 / cycle.as_secs_f64().max(1e-3)),
        }
    }

    /// The last extent was verified. Not the end of a pass that is asked for anew.
    fn end_pass(&self) {
        let mut told = self.lock();
        if !told.anew {
            (told.at_once, told.ended) = (false, Some(Instant::now()));
            told.passes += 1;
        }
    }
}

/// Sleeps so that reading goes at a pace, or until it is told to stop. Whoever verifies and is told something goes on at the pace
/// that is wanted now.
pub struct Pace {
    bytes_per_s: f64,
    started: Instant,
    done: u64,
    orders: Option<(Receiver<()>, Arc<Shared>)>,
}

impl Pace {
    /// As fast as the disk reads.
    pub fn unbounded() -> Pace {
        Pace::new(f64::INFINITY, None)
    }

    /// So many bytes a second; with orders until somebody says otherwise, or stop.
    pub fn new(bytes_per_s: f64, orders: Option<(Receiver<()>, Arc<Shared>)>) -> Pace {
        Pace {
            bytes_per_s,
            started: Instant::now(),
            done: 0,
            orders,
        }
    }

    /// How much to read before the next pause, and how.
    pub fn burst(&self) -> (u32, Gait) {
        match self.bytes_per_s.is_finite() {
            true => burst(self.started.elapsed().saturating_sub(self.due())),
            false => (u32::MAX, HASTY),
        }
    }

    /// How long what was done may take.
    fn due(&self) -> Duration {
        Duration::try_from_secs_f64(self.done as f64 / self.bytes_per_s).unwrap_or(Duration::MAX)
    }

    /// Goes on at another pace, from now.
    fn set(&mut self, bytes_per_s: f64) {
        (self.bytes_per_s, self.started, self.done) = (bytes_per_s, Instant::now(), 0);
    }

    /// So many bytes were read. Says whether to go on.
    fn spend(&mut self, bytes: u64) -> bool {
        self.done += bytes;
        self.sleep(self.due().saturating_sub(self.started.elapsed()))
    }

    /// Says whether to go on. Ends early when it is told something.
    fn sleep(&mut self, time: Duration) -> bool {
        let Some((orders, shared)) = &self.orders else {
            std::thread::sleep(time);
            return true;
        };
        match orders.recv_timeout(time) {
            Ok(()) => {
                if let Some(bytes_per_s) = shared.verifying.bytes_per_s(used_bytes(shared)) {
                    self.set(bytes_per_s);
                }
                true
            }
            Err(error) => error == RecvTimeoutError::Timeout,
        }
    }
}

/// How much to read in one go, and how, so far behind the pace. Pure.
pub fn burst(late: Duration) -> (u32, Gait) {
    match late < LATE_AFTER {
        true => (BURST_BYTES, GENTLE),
        false => (LATE_BURST_BYTES, HASTY),
    }
}

/// Verifies a disk for as long as it is open, as it is told; ends when nobody can tell it anything any more.
pub fn run(shared: &Arc<Shared>, orders: Receiver<()>) {
    let mut pace = Pace::new(f64::INFINITY, Some((orders, shared.clone())));
    let extents = shared.layout.extents();
    loop {
        let number = shared.verify_cursor.load(Ordering::Relaxed) % extents;
        let number = shared.verifying.go_on(number);
        shared.verify_cursor.store(number, Ordering::Relaxed);
        let waited = shared.verifying.wait(number);
        let told = Instant::now();
        if waited != Some(Duration::ZERO) && !pace.sleep(waited.unwrap_or(REST)) {
            return;
        }
        // Told something else meanwhile: it counts from now.
        if waited.is_none_or(|wait| told.elapsed() < wait) {
            continue;
        }
        if let Some(bytes_per_s) = shared.verifying.bytes_per_s(used_bytes(shared)) {
            pace.set(bytes_per_s);
        }
        if shared.fence.get().is_some() || verify_extent(shared, number, &mut pace).is_none() {
            return;
        }
        let next = (number + 1) % extents;
        shared.verify_cursor.store(next, Ordering::Relaxed);
        if next == 0 {
            shared.verifying.end_pass();
        }
        shared.queue.nudge();
    }
}

fn used_bytes(shared: &Shared) -> u64 {
    shared
        .index()
        .extents
        .iter()
        .map(|extent| u64::from(extent.end))
        .sum()
}

/// Verifies one extent. None if it was told to stop half-way, or the disk went out of service.
pub fn verify_extent(shared: &Shared, number: u32, pace: &mut Pace) -> Option<Verified> {
    let mut verified = Verified::default();
    // A file that was removed can still be read; it is no disk any more.
    shared.check_presence();
    if shared.fence.get().is_some() {
        return None;
    }
    let Some(mut pass) = Pass::begin(shared, number) else {
        return Some(verified);
    };
    verified.bytes += pass.summed.bytes();
    let mut more = true;
    while more {
        let before = verified;
        let (bytes_max, gait) = pace.burst();
        more = pass.burst(bytes_max, gait, &mut verified);
        for (key, entry) in std::mem::take(&mut pass.doubtful) {
            verified.findings += u64::from(settle_doubt(shared, pass.of.owner, key, &entry));
        }
        shared.metrics.verified_bytes.add(verified.bytes - before.bytes);
        shared
            .metrics
            .verified_shards
            .add(verified.shards - before.shards);
        if shared.fence.get().is_some() || !pace.spend(verified.bytes - before.bytes) {
            return None;
        }
    }
    verified.findings += u64::from(pass.summed.settle(shared, pace)?);
    verified.findings += settle_unknown(shared, pass.of.owner, pass.unknown, pace)?;
    Some(verified)
}

/// One extent on its way from its start to its end.
struct Pass<'a> {
    shared: &'a Shared,
    of: Use,
    /// Where the log ended when the pass began. What is appended meanwhile is for the next time.
    end: u32,
    at: u32,
    /// What the index had in the extent then, by place.
    live: Peekable<std::vec::IntoIter<(ShardKey, Entry)>>,
    doubtful: Vec<(ShardKey, Entry)>,
    unknown: Vec<RecordHead>,
    summed: Summed,
}

impl<'a> Pass<'a> {
    /// None if the extent holds no unit's records. The system's tombstones are read and checked at every start.
    fn begin(shared: &'a Shared, number: u32) -> Option<Pass<'a>> {
        let (used, generation, end) = {
            let extent = &shared.index().extents[number as usize];
            (extent.used, extent.generation, extent.end)
        };
        let ExtentUse::Owned(owner) = used else {
            return None;
        };
        if owner == SYSTEM_UNIT {
            return None;
        }
        let of = Use {
            number,
            owner,
            generation,
        };
        let live = live_shards(shared, owner, number);
        Some(Pass {
            shared,
            of,
            end,
            at: shared.layout.data_start(),
            summed: Summed::begin(shared, of, &live),
            live: live.into_iter().peekable(),
            doubtful: Vec::new(),
            unknown: Vec::new(),
        })
    }

    /// Goes on for about so many bytes. Says whether there is more.
    fn burst(&mut self, bytes_max: u32, gait: Gait, verified: &mut Verified) -> bool {
        // For a burst only: compaction waits for it.
        let Some(_pin) = self.of.pin(self.shared) else {
            return false;
        };
        let from = align_down(u64::from(self.at)) as u32;
        let until = from.saturating_add(bytes_max).min(self.end);
        // A record that begins in the burst is read to its end.
        let last = until.saturating_add(RECORD_BYTES_MAX).min(self.end);
        let start = self.shared.layout.extent_offset(self.of.number);
        let mut stream = Stream::new(&*self.shared.device, start, from..last, gait);
        let mut more = true;
        while more && self.at < until {
            more = self.step(&mut stream, verified);
        }
        verified.bytes += u64::from(stream.position() - from);
        more && self.at < self.end
    }

    /// Looks at the record at `at`, and finds the next. Records lie one after the other; where the chain breaks, the next
    /// live one is where it goes on.
    fn step(&mut self, stream: &mut Stream<'_>, verified: &mut Verified) -> bool {
        let at = self.at;
        let here = RecordPlace {
            extent: self.of.number,
            generation: self.of.generation,
            offset: at,
        };
        let live = self.live.next_if(|(_, entry)| entry.place.offset <= at);
        let head = RecordHead::decode(stream.bytes(at, HEAD_BYTES_MAX), &self.shared.identity, here).ok();
        if let Some(head) = &head {
            self.summed.meet(self.shared, head);
        }
        let next = head.as_ref().map(|head| at + head.next_at);
        match (live, head) {
            (Some((key, entry)), head) => {
                verified.shards += 1;
                let right = head.is_some_and(|head| {
                    let record = stream.bytes(at, entry.footprint() as u32);
                    is_right(self.of.owner, key, &entry, &head, record)
                });
                if !right {
                    self.doubtful.push((key, entry));
                }
            }
            (None, Some(head)) if head.kind == RecordKind::Shard && self.unknown.len() < FINDINGS_MAX => {
                if !is_explained(&self.shared.index(), self.of.owner, &head) {
                    self.unknown.push(head);
                }
            }
            (None, _) => {}
        }
        self.at = match (next, self.live.peek()) {
            (Some(next), _) if next < self.end => next,
            (_, Some((_, entry))) => entry.place.offset.max(at),
            _ => return false,
        };
        true
    }
}

/// The shards that the index has in an extent, by place.
fn live_shards(shared: &Shared, owner: UnitId, number: u32) -> Vec<(ShardKey, Entry)> {
    let (mut live, mut after) = (Vec::new(), Bound::Unbounded);
    loop {
        let index = shared.index();
        let mut looked = 0;
        for (key, entry) in index.shards(owner, after).take(LOOK_UPS) {
            looked += 1;
            after = Bound::Excluded(key);
            if entry.place.extent == number {
                live.push((key, entry));
            }
        }
        if looked < LOOK_UPS {
            break;
        }
    }
    live.sort_unstable_by_key(|(_, entry)| entry.place.offset);
    live
}

fn is_right(unit: UnitId, key: ShardKey, entry: &Entry, head: &RecordHead, record: &[u8]) -> bool {
    let named =
        head.kind == RecordKind::Shard && (head.unit, head.key) == (unit, key) && Entry::of(head) == *entry;
    let payload = record.get(entry.payload_at as usize..);
    let seed = seal_seed(unit, key, head.len);
    named && payload.is_some_and(|payload| bad_block(seed, payload, &head.block_crcs).is_none())
}

/// A live record that did not look right is read again, alone. Says whether it is a finding; it is none when the whole
/// disk is gone or overwritten, which fences it.
fn settle_doubt(shared: &Shared, unit: UnitId, key: ShardKey, entry: &Entry) -> bool {
    let mut found = None;
    for _ in 0..READ_ATTEMPTS {
        if shared.fence.get().is_some() || shared.index().find(unit, key) != Some(*entry) {
            return false;
        }
        found = match read_span(shared, entry.place, 0, entry.footprint() as u32).wait() {
            Err(error) if shared.fence_if_gone(&error).is_err() => return false,
            Err(error) => Some((FindingKind::Unreadable, error.to_string())),
            Ok(span) => {
                let bytes = span.bytes();
                match check_head(&shared.identity, &bytes, unit, key, entry) {
                    Ok(head) if is_right(unit, key, entry, &head, &bytes) => return false,
                    Ok(_) => Some((FindingKind::Corrupt, FormatError::Checksum("payload").to_string())),
                    Err(error) => Some((FindingKind::Corrupt, error.to_string())),
                }
            }
        };
    }
    let Some((kind, what)) = found else { return false };
    if superblocks::is_overwritten(&superblocks::read(&*shared.device), &shared.identity) {
        shared.fence_because(superblocks::OVERWRITTEN);
        return false;
    }
    shared.metrics.corrupt_shards.add(1);
    report(shared, kind, unit, key, entry.place, what);
    true
}

/// Valid records that are not live must be dead for a reason, which the index may learn a moment later. How many are not, or
/// none if it was told to stop.
fn settle_unknown(
    shared: &Shared,
    unit: UnitId,
    mut unknown: Vec<RecordHead>,
    pace: &mut Pace,
) -> Option<u64> {
    let started = Instant::now();
    loop {
        unknown.retain(|head| !is_explained(&shared.index(), unit, head));
        if unknown.is_empty() || started.elapsed() > INDEX_PATIENCE {
            break;
        }
        if !pace.sleep(INDEX_PAUSE) {
            return None;
        }
    }
    for head in &unknown {
        let what = "a valid record that the index does not know".into();
        report(shared, FindingKind::Forgotten, unit, head.key, head.place, what);
    }
    Some(unknown.len() as u64)
}

fn is_explained(index: &Index, unit: UnitId, head: &RecordHead) -> bool {
    let extent = &index.extents[head.place.extent as usize];
    let freed = extent.used != ExtentUse::Owned(unit) || extent.generation != head.place.generation;
    // In the index is the record itself, or what took its place.
    freed
        || index.find(unit, head.key).is_some()
        || index.is_deleted(unit, head.key.blob, head.sequence)
        || index.cuts.iter().any(|(_, places)| places.contains(&head.place))
}

fn report(shared: &Shared, kind: FindingKind, unit: UnitId, key: ShardKey, place: RecordPlace, what: String) {
    tracing::warn!(
        disk = %shared.identity.disk, ?kind, unit = ?unit, key = ?key, extent = place.extent, offset = place.offset, %what,
        "found by verifying"
    );
    shared.metrics.verify_findings.add(1);
    shared.found.add(Finding {
        kind,
        unit,
        key,
        extent: place.extent,
        offset: place.offset,
        what,
    });
}
