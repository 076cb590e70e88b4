//! How fast rebuilding goes: a budget of bytes a second, which follows what clients feel of it.
//!
//! ```text
//! nobody waits for the disks          full speed
//! clients wait as long as ever        a little faster, twice a second
//! they wait half as long again        much slower, and not below the floor
//! ```
//! How long clients wait is compared with what it was while nothing was rebuilt; after a minute at the floor, with what it is there. An operator who knows better sets a bandwidth,
//! or says when it must be done: then the floor is what that takes, whatever clients feel. Volumes that survive no further
//! loss wait for nobody.
//!
//! Invariant: nothing is decided here but when work begins. The clock that deadlines are compared with moves no data.

use crate::object::latencies::{Counts, Fading, KINDS, Latencies};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::time::Instant;

/// Bytes a second that rebuilding has, however busy clients are, unless somebody says otherwise.
pub const FLOOR: u64 = 16 << 20;
/// A shard costs at least this: a small one takes an access, too.
pub const COST_MIN: u64 = 4 << 10;

/// How often the budget changes.
const WINDOW: Duration = Duration::from_millis(500);
/// What is moved at once takes about so many seconds of the budget.
const AT_ONCE: f64 = 0.025;
/// How long somebody sleeps at the most before the budget is looked at again.
const NAP_MAX: Duration = Duration::from_millis(100);
/// How much what clients felt before a window still weighs after it; and of what they felt in peace.
const KEPT: f64 = 0.5;
const KEPT_IN_PEACE: f64 = 0.98;
/// With less than this nobody is waiting.
const FEW: f64 = 20.0;
/// With this many the 99th percentile says something; else the 90th.
const MANY: f64 = 300.0;
/// Clients may wait so much longer than in peace.
const SLOWER_MAX: f64 = 1.5;
const CUT: f64 = 0.6;
const RAISE: f64 = 1.0 / 8.0;
/// Windows at the floor, one after the other, after which what clients felt in peace is of another time: they may be more by now.
const FORGOTTEN_AFTER: u32 = 120;
/// A budget that is so much more than what is used is none.
const UNUSED: f64 = 4.0;

/// What an operator wants; the ledger keeps it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wanted {
    /// As fast as clients do not feel it.
    #[default]
    Auto,
    /// So many bytes a second, whatever clients feel.
    Bandwidth(u64),
    /// Done by then, in milliseconds since 1970; else as `Auto`.
    Deadline(u64),
}

#[derive(Default)]
struct State {
    wanted: Wanted,
    /// Bytes a second that it takes to be done in time.
    needed: u64,
    /// None: full speed.
    rate: Option<f64>,
    /// Bytes that may be moved now; less than none when too much was.
    credit: f64,
    credited: Option<Instant>,
    /// The present window: since when, and what was moved.
    since: Option<Instant>,
    moved: u64,
    was_moving: bool,
    was_floored: bool,
    /// Windows at the floor since it was last above.
    floored: u32,
    seen: Option<Box<Counts>>,
    /// How many requests there were lately.
    present: [f64; KINDS],
    lately: [Fading; KINDS],
    in_peace: [Fading; KINDS],
}

/// The budget of one gateway.
pub struct Pace {
    floor: u64,
    latencies: Arc<Latencies>,
    state: Mutex<State>,
}

impl Pace {
    /// With this floor, in bytes a second.
    pub fn new(floor: u64, latencies: Arc<Latencies>) -> Pace {
        Pace {
            floor: floor.max(1),
            latencies,
            state: Mutex::default(),
        }
    }

    /// Waits until so many bytes may be moved.
    pub async fn take(&self, bytes: u64, is_urgent: bool) {
        while let Some(nap) = self.claim(bytes, is_urgent, Instant::now()) {
            tokio::time::sleep(nap).await;
        }
    }

    /// Takes the bytes, or says how long to wait before asking again.
    fn claim(&self, bytes: u64, is_urgent: bool, now: Instant) -> Option<Duration> {
        let mut state = self.lock();
        self.adapt(&mut state, now);
        if let Some(rate) = state.rate.filter(|_| !is_urgent) {
            state.refill(rate, now);
            if state.credit < 0.0 {
                let until_there = Duration::from_secs_f64((-state.credit / rate).min(1.0));
                return Some(until_there.clamp(Duration::from_millis(1), NAP_MAX));
            }
            state.credit -= bytes as f64;
        }
        state.moved += bytes;
        None
    }

    /// Bytes that may be moved at once, so that clients do not wait for much more than that.
    pub fn portion(&self, most: u64) -> u64 {
        match self.lock().rate {
            Some(rate) => ((rate * AT_ONCE) as u64).clamp(1, most),
            None => most,
        }
    }

    /// Takes in what the operator wants, and what is left to do; also looks at what clients feel, working or not.
    pub fn set(&self, wanted: Wanted, left_bytes: u64, now_ms: u64, now: Instant) {
        let mut state = self.lock();
        state.wanted = wanted;
        if let Wanted::Bandwidth(rate) = wanted {
            state.rate = Some(rate.max(1) as f64);
        }
        state.needed = match wanted {
            Wanted::Deadline(at_ms) => match at_ms.saturating_sub(now_ms) {
                0 => u64::MAX, // Late: as fast as it goes.
                left_ms => (u128::from(left_bytes) * 1000 / u128::from(left_ms)) as u64,
            },
            _ => 0,
        };
        self.adapt(&mut state, now);
    }

    /// What the operator wants.
    pub fn wanted(&self) -> Wanted {
        self.lock().wanted
    }

    /// How fast it may go, in bytes a second; none: as fast as it can.
    pub fn limit(&self) -> Option<u64> {
        self.lock().rate.map(|rate| rate as u64)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn adapt(&self, state: &mut State, now: Instant) {
        let since = *state.since.get_or_insert(now);
        let elapsed = now.duration_since(since);
        if elapsed < WINDOW {
            return;
        }
        let moved = state.moved as f64 / elapsed.as_secs_f64();
        let is_moving = state.moved > 0;
        let is_peace = !is_moving && !state.was_moving;
        // Who finds no peace compares with what the floor costs.
        let is_floored = state.rate.is_some_and(|rate| rate <= self.floor as f64);
        state.floored = if is_floored && is_moving {
            state.floored + 1
        } else {
            0
        };
        if state.floored >= FORGOTTEN_AFTER {
            (state.floored, state.in_peace) = (0, Default::default());
        }
        // What came just before is still felt.
        let was_floored = std::mem::replace(&mut state.was_floored, is_floored);
        let is_quiet = is_floored && was_floored;
        state.look(&self.latencies.counts(), is_peace, is_quiet);
        (state.since, state.moved, state.was_moving) = (Some(now), 0, is_moving);
        let floor = (self.floor.max(state.needed)) as f64;
        state.rate = match (state.wanted, state.felt()) {
            (Wanted::Bandwidth(rate), _) => Some(rate.max(1) as f64),
            (Wanted::Deadline(_), _) if state.needed == u64::MAX => None,
            (_, Felt::NobodyWaits) => None,
            // Clients are there, and it is not known yet what they would feel.
            _ if !is_moving => Some(floor),
            (_, Felt::Unknown) => Some(floor),
            (_, Felt::Slower(by)) if by > SLOWER_MAX => {
                // What was felt before the cut says nothing of what is felt after it.
                state.lately = Default::default();
                Some((state.rate.unwrap_or(moved).min(moved.max(floor)) * CUT).max(floor))
            }
            (_, Felt::NoNews) => state.rate.map(|rate| rate.max(floor)),
            _ => state
                .rate
                .map(|rate| {
                    if rate > moved * UNUSED {
                        rate
                    } else {
                        rate * (1.0 + RAISE)
                    }
                })
                .map(|rate| rate.max(floor)),
        };
    }
}

/// What clients feel of it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Felt {
    /// There are hardly any.
    NobodyWaits,
    /// They were never seen in peace.
    Unknown,
    /// Too little since the last cut.
    NoNews,
    /// They wait so many times as long as in peace.
    Slower(f64),
}

impl State {
    /// No more is saved up than is moved at once.
    fn refill(&mut self, rate: f64, now: Instant) {
        let elapsed = self.credited.map_or(Duration::ZERO, |at| now.duration_since(at));
        self.credited = Some(now);
        self.credit = (self.credit + rate * elapsed.as_secs_f64()).min(rate * AT_ONCE);
    }

    fn look(&mut self, counts: &Counts, is_peace: bool, is_quiet: bool) {
        let before = self
            .seen
            .replace(Box::new(*counts))
            .unwrap_or_else(|| Box::new(*counts));
        for kind in 0..KINDS {
            let (before, now) = (&before[kind], &counts[kind]);
            let requests = now.iter().sum::<u64>() - before.iter().sum::<u64>();
            self.present[kind] = self.present[kind] * KEPT + requests as f64;
            self.lately[kind].take_in(before, now, KEPT);
            if is_peace || is_quiet && self.in_peace[kind].weight() < FEW {
                self.in_peace[kind].take_in(before, now, KEPT_IN_PEACE);
            }
        }
    }

    /// Of the kind of request that feels most of it.
    fn felt(&self) -> Felt {
        let is_present = |kind: &usize| self.present[*kind] >= FEW;
        let present: Vec<usize> = (0..KINDS).filter(is_present).collect();
        if present.is_empty() {
            return Felt::NobodyWaits;
        }
        let is_known = |kind: &&usize| self.in_peace[**kind].weight() >= FEW;
        if present.iter().filter(is_known).count() == 0 {
            return Felt::Unknown;
        }
        let kinds = present.iter().filter(is_known);
        let kinds = kinds.map(|kind| (&self.lately[*kind], &self.in_peace[*kind]));
        let slower = kinds
            .filter(|(lately, _)| lately.weight() >= FEW)
            .map(|(lately, in_peace)| {
                let share = if lately.weight() >= MANY { 0.99 } else { 0.9 };
                lately.quantile(share) / in_peace.quantile(share)
            });
        slower.reduce(f64::max).map_or(Felt::NoNews, Felt::Slower)
    }
}

#[cfg(test)]
mod tests;
