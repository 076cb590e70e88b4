//! How far the present work has got, in bytes, and when it will be done.
//!
//! What a unit has to hold is counted from the ledger's rows; what its disk has, by the looks at it and by what is written
//! there. The time left is what is left at the rate of the last half minute: a rate since the beginning would still tell of a
//! foreground load that is long over, and the first seconds of one that begins.
//!
//! Invariant: pure; the time is an argument.

use super::pace::Wanted;
use super::tasks::Task;
use crate::placement::volumes::Volume;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, VecDeque};
use std::time::Duration;
use storage_node::protocol::UnitId;
use tokio::time::Instant;

/// The rate is that of so long a time, looked at so often.
const WINDOW: Duration = Duration::from_secs(30);
const SAMPLE_PERIOD: Duration = Duration::from_millis(250);
/// No rate is told of a shorter time.
const RATE_AFTER: Duration = Duration::from_millis(500);

/// What operators see of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RebuildStatus {
    /// Units still to be made whole on another disk.
    pub units: usize,
    /// Of these, units that wait: for a disk that could take them, or for sources.
    pub waiting: usize,
    /// Bytes still to be written, as far as is known.
    pub left_bytes: u64,
    /// Bytes written since there was last nothing to do.
    pub done_bytes: u64,
    /// How long it takes at the present rate; none until all units are counted and there is a rate.
    pub eta_s: Option<u64>,
    /// Bytes written a second, of late.
    #[serde(default)]
    pub rate: Option<u64>,
    /// How fast the operator wants it.
    #[serde(default)]
    pub wanted: Wanted,
    /// How many bytes a second it may write now; none: as many as it can.
    #[serde(default)]
    pub limit: Option<u64>,
}

/// One unit that is to be made whole.
#[derive(Debug, Default)]
struct UnitProgress {
    volume: u64,
    /// Bytes it has to have: counted, or as far as its volume knows.
    bytes: u64,
    is_counted: bool,
    /// Of these, bytes that are on its new disk.
    there_bytes: u64,
}

/// A volume that is being counted: where to go on, and what there is so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counting {
    /// The volume.
    pub volume: u64,
    /// The first blob that was not looked at.
    pub from: u64,
    /// Bytes of those before it.
    pub bytes: u64,
}

/// How far the present work has got.
#[derive(Default)]
pub struct Progress {
    /// There was something to do at the last look.
    is_working: bool,
    units: HashMap<UnitId, UnitProgress>,
    /// Of these, units that wait.
    pub waiting: usize,
    counting: Option<Counting>,
    done_bytes: u64,
    samples: VecDeque<(Instant, u64)>,
}

impl Progress {
    /// Takes in what is to be done now. True when that is nothing and was something before.
    pub fn note_tasks(&mut self, tasks: &[Task]) -> bool {
        if tasks.is_empty() {
            return std::mem::take(self).is_working;
        }
        self.is_working = true;
        let mut before = std::mem::take(&mut self.units);
        for task in tasks {
            let unit = task.volume.unit(task.index);
            let known = before.remove(&unit).unwrap_or_default();
            let known = match known.is_counted {
                true => known,
                false => UnitProgress {
                    volume: task.volume.id,
                    bytes: task.volume.used_bytes(),
                    ..known
                },
            };
            self.units.insert(unit, known);
        }
        self.waiting = self.waiting.min(self.units.len());
        false
    }

    /// What is to be counted next.
    pub fn next_to_count(&mut self) -> Option<Counting> {
        let is_wanted = |volume: u64| {
            self.units
                .values()
                .any(|unit| unit.volume == volume && !unit.is_counted)
        };
        if let Some(counting) = self.counting.filter(|counting| is_wanted(counting.volume)) {
            return Some(counting);
        }
        let volume = self.units.values().find(|unit| !unit.is_counted)?.volume;
        let counting = Counting {
            volume,
            ..Counting::default()
        };
        self.counting = Some(counting);
        Some(counting)
    }

    /// Takes in some more of a volume's bytes, which go on at `next`, or else are all.
    pub fn counted(&mut self, so_far: Counting, bytes: u64, next: Option<u64>) {
        // Somebody may have begun to count it again.
        if self
            .counting
            .is_none_or(|now| (now.volume, now.from) != (so_far.volume, so_far.from))
        {
            return;
        }
        let bytes = so_far.bytes + bytes;
        self.counting = next.map(|from| Counting {
            volume: so_far.volume,
            from,
            bytes,
        });
        if next.is_none() {
            let of_it = self
                .units
                .values_mut()
                .filter(|unit| unit.volume == so_far.volume);
            of_it.for_each(|unit| (unit.bytes, unit.is_counted) = (bytes, true));
        }
    }

    /// A volume takes no more blobs from now on: what was counted before may have grown.
    pub fn count_again(&mut self, volume: &Volume) {
        self.counting = self.counting.filter(|counting| counting.volume != volume.id);
        let of_it = self.units.values_mut().filter(|unit| unit.volume == volume.id);
        of_it.for_each(|unit| unit.is_counted = false);
    }

    /// Some of a unit is on its new disk already; `first`: its first blobs.
    pub fn found(&mut self, unit: UnitId, bytes: u64, first: bool) {
        if let Some(unit) = self.units.get_mut(&unit) {
            unit.there_bytes = if first { bytes } else { unit.there_bytes + bytes };
        }
    }

    /// So much more of a unit was written.
    pub fn written(&mut self, unit: UnitId, bytes: u64, now: Instant) {
        self.sample(now);
        self.done_bytes += bytes;
        if let Some(unit) = self.units.get_mut(&unit) {
            unit.there_bytes += bytes;
        }
    }

    /// A unit is whole.
    pub fn finished(&mut self, unit: UnitId) {
        self.units.remove(&unit);
    }

    fn sample(&mut self, now: Instant) {
        let is_due = |last: &(Instant, u64)| now >= last.0 + SAMPLE_PERIOD;
        if self.samples.back().is_none_or(is_due) {
            self.samples.push_back((now, self.done_bytes));
        }
        while self.samples.len() > 1 && self.samples[1].0 + WINDOW <= now {
            self.samples.pop_front();
        }
    }

    /// Bytes a second, of late.
    fn rate(&self, now: Instant) -> Option<f64> {
        let (since, bytes) = *self.samples.front()?;
        let elapsed = now.duration_since(since);
        let rate = (self.done_bytes - bytes) as f64 / elapsed.as_secs_f64();
        (elapsed >= RATE_AFTER && rate > 0.0).then_some(rate)
    }

    /// Bytes still to be written.
    pub fn left_bytes(&self) -> u64 {
        let left = |unit: &UnitProgress| unit.bytes.saturating_sub(unit.there_bytes);
        self.units.values().map(left).sum()
    }

    /// What operators see.
    pub fn status(&self, now: Instant) -> RebuildStatus {
        let (left_bytes, rate) = (self.left_bytes(), self.rate(now));
        let is_counted = self.units.values().all(|unit| unit.is_counted);
        RebuildStatus {
            units: self.units.len(),
            waiting: self.waiting,
            left_bytes,
            done_bytes: self.done_bytes,
            eta_s: rate
                .filter(|_| is_counted)
                .map(|rate| (left_bytes as f64 / rate).ceil() as u64),
            rate: rate.map(|rate| rate as u64),
            ..RebuildStatus::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn unit(volume: u64) -> UnitId {
        UnitId { volume, index: 1 }
    }

    fn counted(volumes: u64, bytes: u64) -> Progress {
        let mut progress = Progress::default();
        for volume in 0..volumes {
            let of_it = UnitProgress {
                volume,
                ..UnitProgress::default()
            };
            progress.units.insert(unit(volume), of_it);
        }
        while let Some(counting) = progress.next_to_count() {
            // In two halves.
            let next = (counting.from == 0).then_some(77);
            progress.counted(counting, bytes / 2, next);
        }
        progress
    }

    #[test]
    fn the_time_left_follows_the_rate_of_late_and_not_that_of_the_beginning() {
        let mut progress = counted(10, 1000 * MIB);
        let start = Instant::now();
        assert_eq!(progress.status(start).eta_s, None);
        let mut now = start;
        // A hundred seconds at 10 MiB/s, then at 100 MiB/s.
        for second in 0..150 {
            let rate = if second < 100 { 10 } else { 100 };
            for _ in 0..4 {
                progress.written(unit(second / 20), rate * MIB / 4, now);
                now += Duration::from_millis(250);
            }
        }
        let status = progress.status(now);
        assert_eq!((status.done_bytes, status.units), (6000 * MIB, 10));
        let left = status.left_bytes as f64;
        let true_seconds = left / (100 * MIB) as f64;
        let told = status.eta_s.unwrap() as f64;
        assert!(
            (told - true_seconds).abs() < 0.1 * true_seconds,
            "{told} s, {true_seconds} s"
        );
    }

    #[test]
    fn what_is_there_already_is_not_left_and_a_unit_that_is_whole_is_none() {
        let mut progress = counted(3, 100 * MIB);
        assert_eq!(progress.left_bytes(), 300 * MIB);
        progress.found(unit(0), 40 * MIB, true);
        progress.found(unit(0), 10 * MIB, false);
        assert_eq!(progress.left_bytes(), 250 * MIB);
        progress.found(unit(0), 40 * MIB, true); // Looked at again from the start.
        assert_eq!(progress.left_bytes(), 260 * MIB);
        progress.finished(unit(0));
        assert_eq!(progress.left_bytes(), 200 * MIB);
    }

    #[test]
    fn there_is_no_time_left_before_all_is_counted() {
        let mut progress = counted(2, 100 * MIB);
        let now = Instant::now();
        progress.written(unit(0), MIB, now);
        let later = now + Duration::from_secs(1);
        assert_eq!(progress.status(later).eta_s, Some(199));
        let uncounted = UnitProgress {
            volume: 9,
            ..UnitProgress::default()
        };
        progress.units.insert(unit(9), uncounted);
        assert_eq!(progress.status(later).eta_s, None);
    }
}
