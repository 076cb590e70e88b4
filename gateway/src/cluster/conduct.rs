//! How a disk has behaved to this gateway: how fast, how often it failed, and which of its answers were wrong.
//!
//! Reads and writes are judged apart, each by a [`Breaker`] and its recent [`Latency`]: a disk whose flush hangs can still be
//! read. A disk that answers reads wrongly gets no new writes either, while others can take them. A shard that is missing says
//! something of that shard and nothing of the disk: it is counted for people, and steers nothing. Every call to a disk on the
//! request path is begun and ended here; one that is dropped when it was late already counts as late.
//!
//! Invariant: what was late or failed through a pause of this process says nothing of the disk ([`super::pauses`]).
//! Invariant: locks are one disk's, and held for a few additions; none is held across I/O.
//! Invariant: what is counted is for people and for choices. No data is kept, dropped or believed because of it.

use super::breaker::{Admission, Breaker, Change, Weight};
use super::latency::Latency;
use super::pauses::Pauses;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use storage_node::protocol::NodeError;
use tokio::time::Instant;
use tracing::{debug, info, warn};

/// A read that takes longer than 99 of 100 did of late is late; within these bounds.
pub const LATE_MIN: Duration = Duration::from_millis(20);
/// The same, and for a disk of which little is known.
pub const LATE_MAX: Duration = Duration::from_millis(400);
/// A call is given up after so many times what 99 of 100 took of late.
const CUT_OFF_FACTOR: u32 = 8;
/// But not before: a flush may take its time.
const CUT_OFF_MIN: Duration = Duration::from_secs(2);
/// And not after.
pub const CUT_OFF_MAX: Duration = Duration::from_secs(10);

/// What a call does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It reads a shard.
    Read,
    /// It stores one.
    Write,
}

/// How far a disk is to be trusted with a new shard; the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trust {
    /// Nothing speaks against it.
    Full,
    /// Its writes end well, and its reads were wrong of late.
    ReadsWrong,
    /// Its writes failed of late, or were late.
    WritesFail,
}

/// How an answer was wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// Bytes that do not match their checksums, which are bound to the shard that was asked for.
    Bytes,
    /// Bytes that match the checksums that came with them, which are not those of the ledger.
    Forged,
    /// Another length, or other blocks, than the shard has.
    Shape,
    /// A digest table that is not the stripe's.
    Digests,
    /// The node says that its record is damaged.
    Damaged,
    /// A shard that was acknowledged and is not there. Counted only.
    Missing,
    /// The disk fails to read it.
    Unreadable,
    /// No answer of the protocol.
    Garbled,
    /// What is right is refused as if it were not.
    Refused,
    /// A write that was acknowledged reads back wrong, or not at all.
    Unkept,
}

impl Wrong {
    /// All there are.
    pub const ALL: [Wrong; 10] = [
        Wrong::Bytes,
        Wrong::Forged,
        Wrong::Shape,
        Wrong::Digests,
        Wrong::Damaged,
        Wrong::Missing,
        Wrong::Unreadable,
        Wrong::Garbled,
        Wrong::Refused,
        Wrong::Unkept,
    ];

    /// In a word.
    pub fn word(self) -> &'static str {
        match self {
            Wrong::Bytes => "bytes",
            Wrong::Forged => "forged",
            Wrong::Shape => "shape",
            Wrong::Digests => "digests",
            Wrong::Damaged => "damaged",
            Wrong::Missing => "missing",
            Wrong::Unreadable => "unreadable",
            Wrong::Garbled => "garbled",
            Wrong::Refused => "refused",
            Wrong::Unkept => "unkept",
        }
    }
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As it should.
    Good,
    /// In a way that says nothing of how the disk behaves.
    Neutral,
    /// The disk or its node failed.
    Failed(String),
    /// The way to its node did. Whether the node answers at all is known from polling it, so one such failure says little.
    Unreachable(String),
    /// An answer came, and it was wrong.
    Wrong(Wrong, String),
}

impl Outcome {
    /// Whether it may come of a call that took long, whoever's fault that was.
    fn is_of_time(&self) -> bool {
        matches!(
            self,
            Outcome::Failed(_) | Outcome::Unreachable(_) | Outcome::Wrong(Wrong::Garbled, _)
        )
    }

    /// Of a call that ended with this error.
    pub fn of_error(error: &NodeError) -> Outcome {
        let wrong = match error {
            NodeError::Overloaded
            | NodeError::NoSpace
            | NodeError::StaleEpoch { .. }
            | NodeError::OtherLedger { .. }
            | NodeError::Deleted
            | NodeError::NotFound => return Outcome::Neutral,
            NodeError::Timeout | NodeError::Fenced { .. } | NodeError::WrongDisk => {
                return Outcome::Failed(error.to_string());
            }
            NodeError::Unreachable { .. } => return Outcome::Unreachable(error.to_string()),
            NodeError::Corrupt { .. } => Wrong::Damaged,
            NodeError::Io { .. } => Wrong::Unreadable,
            NodeError::Garbled { .. } => Wrong::Garbled,
            NodeError::BadRequest { .. } | NodeError::SealMismatch { .. } => Wrong::Refused,
        };
        Outcome::Wrong(wrong, error.to_string())
    }
}

/// See the module.
#[derive(Debug)]
pub struct Conduct {
    label: String,
    reads: Lane,
    writes: Lane,
    wrong: WrongAnswers,
    pauses: Arc<Pauses>,
}

#[derive(Debug, Default)]
struct Lane(Mutex<LaneState>);

#[derive(Debug, Default)]
struct LaneState {
    breaker: Breaker,
    latency: Latency,
    /// Why it is open, or last was.
    cause: Option<Cause>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Cause {
    Late,
    Failed(String),
    Wrong(String),
}

#[derive(Debug, Default)]
struct WrongAnswers {
    counts: [AtomicU64; Wrong::ALL.len()],
    last: Mutex<Option<(Wrong, String, Instant)>>,
}

/// The wrong answers of a disk since this gateway started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WrongSeen {
    /// How many of each kind that there were any of.
    pub counts: Vec<(Wrong, u64)>,
    /// The last one, in words, and how long ago it was.
    pub last: Option<(String, Duration)>,
}

impl LaneState {
    /// After how long a call is late: a read is hedged then, a write given up.
    fn patience(&self, kind: Kind) -> Duration {
        match kind {
            Kind::Read => self.latency.p99_times(1, LATE_MIN, LATE_MAX),
            Kind::Write => self.cut_off(),
        }
    }

    fn cut_off(&self) -> Duration {
        self.latency.p99_times(CUT_OFF_FACTOR, CUT_OFF_MIN, CUT_OFF_MAX)
    }
}

impl Lane {
    fn lock(&self) -> MutexGuard<'_, LaneState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Conduct {
    /// Of a disk with this name, of which nothing is known.
    pub fn new(label: &str, pauses: Arc<Pauses>) -> Conduct {
        Conduct {
            label: label.into(),
            reads: Lane::default(),
            writes: Lane::default(),
            wrong: WrongAnswers::default(),
            pauses,
        }
    }

    fn lane(&self, kind: Kind) -> &Lane {
        match kind {
            Kind::Read => &self.reads,
            Kind::Write => &self.writes,
        }
    }

    /// Begins a call. End it with [`Call::end`].
    pub fn begin(self: &Arc<Self>, kind: Kind) -> Call {
        let since = Instant::now();
        let is_trial = self.lane(kind).lock().breaker.begin(since);
        Call {
            conduct: self.clone(),
            kind,
            since,
            is_trial,
            ended: false,
        }
    }

    /// Whether to read from it.
    pub fn may_read(&self) -> Admission {
        self.reads.lock().breaker.admission(Instant::now())
    }

    /// Whether to write to it while there are others.
    pub fn may_write(&self) -> bool {
        self.trust() == Trust::Full
    }

    /// How far to trust it with a new shard.
    pub fn trust(&self) -> Trust {
        let now = Instant::now();
        if self.writes.lock().breaker.admission(now) == Admission::No {
            return Trust::WritesFail;
        }
        let reads = self.reads.lock();
        match reads.breaker.is_open(now) && matches!(reads.cause, Some(Cause::Wrong(_))) {
            true => Trust::ReadsWrong,
            false => Trust::Full,
        }
    }

    /// After how long a read of it is late.
    pub fn late_after(&self) -> Duration {
        self.reads.lock().patience(Kind::Read)
    }

    /// After how long a call to it is given up.
    pub fn cut_off(&self, kind: Kind) -> Duration {
        self.lane(kind).lock().cut_off()
    }

    /// Why it rests, if it does for a reason that operators should know: it failed, or lied. Being slow is none.
    pub fn suspicion(&self) -> Option<String> {
        let now = Instant::now();
        [&self.writes, &self.reads].into_iter().find_map(|lane| {
            let lane = lane.lock();
            match &lane.cause {
                Some(Cause::Failed(why) | Cause::Wrong(why)) if lane.breaker.is_open(now) => {
                    Some(why.clone())
                }
                _ => None,
            }
        })
    }

    /// Takes in how a call ended that was not begun here, or what its answer turned out to be later.
    pub fn take_in(&self, kind: Kind, outcome: Outcome) {
        if !(outcome.is_of_time() && self.pauses.lately()) {
            self.failed(kind, outcome);
        }
    }

    /// The wrong answers since this gateway started.
    pub fn wrong_seen(&self) -> WrongSeen {
        let count = |wrong: Wrong| (wrong, self.wrong.counts[wrong as usize].load(Ordering::Relaxed));
        let last = self.wrong.last.lock().unwrap_or_else(PoisonError::into_inner);
        WrongSeen {
            counts: Wrong::ALL
                .map(count)
                .into_iter()
                .filter(|(_, n)| *n > 0)
                .collect(),
            last: last
                .as_ref()
                .map(|(wrong, what, at)| (format!("{}: {what}", wrong.word()), at.elapsed())),
        }
    }

    fn failed(&self, kind: Kind, outcome: Outcome) {
        let (weight, cause) = match outcome {
            Outcome::Good | Outcome::Neutral => return,
            Outcome::Failed(why) => (Weight::Heavy, Cause::Failed(why)),
            Outcome::Unreachable(why) => (Weight::Light, Cause::Failed(why)),
            Outcome::Wrong(wrong, what) => {
                self.wrong.counts[wrong as usize].fetch_add(1, Ordering::Relaxed);
                let last = Some((wrong, what.clone(), Instant::now()));
                *self.wrong.last.lock().unwrap_or_else(PoisonError::into_inner) = last;
                if wrong == Wrong::Missing {
                    return; // That is about the shard: one that is lost may be asked for again and again.
                }
                (
                    Weight::Light,
                    Cause::Wrong(format!("wrong answers: {}: {what}", wrong.word())),
                )
            }
        };
        self.note_failure(kind, weight, cause);
    }

    fn note_failure(&self, kind: Kind, weight: Weight, cause: Cause) {
        let mut lane = self.lane(kind).lock();
        let Change::Opened(rest) = lane.breaker.failed(weight, Instant::now()) else {
            return;
        };
        lane.cause = Some(cause.clone());
        drop(lane);
        let disk = &self.label;
        match (cause, kind) {
            (Cause::Late, _) => debug!(disk, ?rest, "disk slow: reads go around it"),
            (Cause::Wrong(why), Kind::Read) => {
                warn!(
                    disk,
                    why,
                    ?rest,
                    "disk suspect: no new writes to it, and reads go around it"
                );
            }
            (Cause::Failed(why), Kind::Read) => {
                warn!(disk, why, ?rest, "disk suspect: reads go around it");
            }
            (Cause::Failed(why) | Cause::Wrong(why), Kind::Write) => {
                warn!(disk, why, ?rest, "disk suspect: no new writes to it");
            }
        }
    }
}

/// A call in progress.
#[derive(Debug)]
pub struct Call {
    conduct: Arc<Conduct>,
    kind: Kind,
    since: Instant,
    is_trial: bool,
    ended: bool,
}

impl Call {
    /// It ended.
    pub fn end(mut self, outcome: Outcome) {
        self.ended = true;
        let (now, is_good) = (Instant::now(), outcome == Outcome::Good);
        let mut lane = self.lane();
        let took = now.duration_since(self.since);
        let is_late = took >= lane.patience(self.kind);
        if (is_late || outcome.is_of_time()) && self.conduct.pauses.touched(self.since) {
            return;
        }
        // How long a failure took says how long others take only if it was waited for.
        if is_good || is_late {
            lane.latency.record(took);
        }
        let change = match is_good && !is_late {
            true => lane.breaker.succeeded(now),
            false => Change::None,
        };
        drop(lane);
        if change == Change::Closed {
            info!(disk = self.conduct.label, kind = ?self.kind, "disk trusted again");
        }
        match is_good && is_late {
            true => self.conduct.note_failure(self.kind, Weight::Heavy, Cause::Late),
            false => self.conduct.failed(self.kind, outcome),
        }
    }

    fn lane(&self) -> MutexGuard<'_, LaneState> {
        self.conduct.lane(self.kind).lock()
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let took = self.since.elapsed();
        let mut lane = self.lane();
        if self.is_trial {
            lane.breaker.trial_over();
        }
        let is_late =
            !self.ended && took >= lane.patience(self.kind) && !self.conduct.pauses.touched(self.since);
        if is_late {
            lane.latency.record(took);
        }
        drop(lane);
        if is_late {
            self.conduct.note_failure(self.kind, Weight::Heavy, Cause::Late);
        }
    }
}

#[cfg(test)]
mod tests;
