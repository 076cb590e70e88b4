//! What background work costs readers: the 99th percentile of verified reads at a moderate depth, of a disk that does nothing else,
//! that compacts, and that verifies itself at its usual pace. The three take turns, round after round, with as many reads each.
//!
//! Compaction goes as it pleases: deletes make it begin, before the clock starts, and how fast it went is said beside what it cost. Each
//! reader waits for its answer before it asks again, so that a stall delays few reads: hence the 99.9th percentile too.

use crate::Result;
use crate::disk::Disk;
use crate::loads::{Shards, drop_all, put_all, thin_out, time_blocks};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

const DEPTH: usize = 4;
const UNITS: u64 = 4;
const WIDTH: usize = 6;
const MIB: usize = 1 << 20;
/// Background work makes reads so much slower at most.
const TARGET: f64 = 1.3;
/// Reads between two looks at whether compaction is still at work.
const SLICE: u64 = 512;
/// It is not when nothing was moved for so long: it may rest between its steps.
const OVER: Duration = Duration::from_secs(2);
/// Of what is there to be compacted, so much was deleted: every extent is worth emptying.
const DELETED: f64 = 0.6;
/// A disk is verified once in this time, and is so large: hence the pace.
const CYCLE: Duration = Duration::from_secs(7 * 86_400);
const LARGE_DISK_BYTES: f64 = (16u64 << 40) as f64;
/// How long verifying may take to begin: it rests before each pass.
const PATIENCE: Duration = Duration::from_secs(90);
/// How long after that reads begin.
const SETTLED: Duration = Duration::from_millis(50);

/// How much is done.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Rounds.
    pub rounds: usize,
    /// Reads of a round.
    pub reads: u64,
    /// Shards of 1 MiB that are read.
    pub shards: u64,
    /// Shards that are put to be compacted.
    pub chaff: u64,
    /// Verify as fast as a pass in a second, rather than as a large disk does.
    pub hasty: bool,
}

/// Percentiles of one kind of rounds.
#[derive(Debug, Default)]
struct Rounds {
    median: Vec<Duration>,
    p99: Vec<Duration>,
    p999: Vec<Duration>,
    reads: usize,
}

impl Rounds {
    fn add(&mut self, mut times: Vec<Duration>) {
        times.sort_unstable();
        let Some(last) = times.len().checked_sub(1) else {
            return;
        };
        self.median.push(times[last / 2]);
        self.p99.push(times[last * 99 / 100]);
        self.p999.push(times[last * 999 / 1000]);
        self.reads += times.len();
    }

    fn typical(rounds: &[Duration]) -> Duration {
        let mut rounds = rounds.to_vec();
        rounds.sort_unstable();
        rounds.get(rounds.len() / 2).copied().unwrap_or_default()
    }
}

/// What was found.
#[derive(Debug, Default)]
pub struct Latency {
    idle: Rounds,
    compacting: Rounds,
    verifying: Rounds,
    /// Shards that compaction moved beside the reads, and in what time.
    moved: (u64, Duration),
}

struct Bench<'a> {
    runtime: &'a Runtime,
    path: &'a Path,
    disk: Option<Disk>,
    kept: Arc<Shards>,
    next: u64,
    size: Size,
}

/// Measures on a new disk, which was formatted at `path`.
pub fn measure(runtime: &Runtime, path: &Path, disk: Disk, size: Size) -> Result<Latency> {
    let kept = Arc::new(Shards::new(size.shards, MIB, UNITS, WIDTH));
    runtime.block_on(put_all(&disk, &kept, DEPTH))?;
    let mut bench = Bench {
        runtime,
        path,
        disk: Some(disk),
        kept,
        next: 0,
        size,
    };
    let mut found = Latency::default();
    for round in 0..size.rounds {
        bench.warm_up()?;
        let idle = bench.read(size.reads)?;
        found.idle.add(idle);
        let times = bench.while_compacting(round as u64, &mut found.moved)?;
        found.compacting.add(times);
        found.verifying.add(bench.while_verifying()?);
    }
    Ok(found)
}

impl Bench<'_> {
    fn disk(&self) -> Result<&Disk> {
        Ok(self.disk.as_ref().ok_or("the disk is open")?)
    }

    fn reopen(&mut self) -> Result<()> {
        drop(self.disk.take());
        self.disk = Some(Disk::open(self.path)?);
        Ok(())
    }

    fn read(&mut self, count: u64) -> Result<Vec<Duration>> {
        let numbers = self.next..self.next + count;
        self.next = numbers.end;
        let disk = self.disk()?;
        self.runtime
            .block_on(time_blocks(disk, &self.kept, numbers, DEPTH))
    }

    /// After a start each shard's head is read once.
    fn warm_up(&mut self) -> Result<()> {
        self.read(8 * self.size.shards).map(drop)
    }

    /// What is read until nothing is moved any more, or there are enough.
    fn while_compacting(&mut self, round: u64, all_moved: &mut (u64, Duration)) -> Result<Vec<Duration>> {
        let chaff = Shards::new(self.size.chaff, MIB, UNITS, WIDTH).in_volumes_from(100 + UNITS * round);
        let chaff = Arc::new(chaff);
        self.runtime.block_on(put_all(self.disk()?, &chaff, DEPTH))?;
        let moved = |bench: &Self| Ok::<_, crate::Error>(bench.disk()?.engine.metrics().records_moved);
        self.runtime.block_on(thin_out(self.disk()?, &chaff, DELETED))?;
        let (started, before) = (Instant::now(), moved(self)?);
        let (mut times, mut at_work) = (Vec::new(), 0);
        let (mut last, mut when) = (before, started);
        while at_work < self.size.reads as usize && when.elapsed() < OVER {
            times.extend(self.read(SLICE)?);
            let now = moved(self)?;
            if now > last {
                (last, when, at_work) = (now, Instant::now(), times.len());
            }
        }
        times.truncate(at_work);
        *all_moved = (
            all_moved.0 + last - before,
            all_moved.1 + when.duration_since(started),
        );
        self.runtime.block_on(drop_all(self.disk()?, &chaff))?;
        Ok(times)
    }

    fn while_verifying(&mut self) -> Result<Vec<Duration>> {
        let used = self.disk()?.engine.status().live_bytes as f64;
        self.reopen()?;
        self.warm_up()?;
        let cycle = match self.size.hasty {
            true => Duration::from_secs(1),
            false => CYCLE.mul_f64(used / LARGE_DISK_BYTES),
        };
        let engine = self.disk()?.engine.clone();
        engine.start_verifying(cycle)?;
        let started = Instant::now();
        while engine.metrics().verified_bytes == 0 {
            if started.elapsed() > PATIENCE {
                return Err("verifying does not begin".into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(engine);
        // Not only what comes with its first burst.
        std::thread::sleep(SETTLED);
        let times = self.read(self.size.reads)?;
        // Dropping it is what stops it.
        self.reopen()?;
        Ok(times)
    }
}

impl std::fmt::Display for Latency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let micros = |times: &[Duration]| Rounds::typical(times).as_micros();
        let ratio =
            |rounds: &Rounds| Rounds::typical(&rounds.p99).div_duration_f64(Rounds::typical(&self.idle.p99));
        write!(
            f,
            "64 KiB reads, {DEPTH} in flight, p99        idle {} µs",
            micros(&self.idle.p99)
        )?;
        for (name, rounds) in [("compacting", &self.compacting), ("verifying", &self.verifying)] {
            match rounds.reads {
                0 => write!(f, "; {name} was over too soon")?,
                _ => write!(
                    f,
                    "; {name} {} µs, {:.2}× (target {TARGET}×)",
                    micros(&rounds.p99),
                    ratio(rounds)
                )?,
            }
        }
        let all = [&self.idle, &self.compacting, &self.verifying];
        let medians = all.map(|rounds| micros(&rounds.median));
        let tails = all.map(|rounds| micros(&rounds.p999));
        let reads = all.map(|rounds| rounds.reads);
        let (moved, time) = self.moved;
        write!(
            f,
            "\n    medians {medians:?} µs, p99.9 {tails:?} µs, of {reads:?} reads; compaction moved {:.0} MiB/s",
            moved as f64 / time.as_secs_f64().max(1e-3)
        )
    }
}
