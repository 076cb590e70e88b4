//! Whether requests of one kind should go to a disk, by how the last ones ended.
//!
//! ```text
//! closed ── failures prevail ──► open ── its rest is over ──► on trial ── a few good answers ──► closed
//!                                 ▲                              │
//!                                 └───── a failure: rests longer ┘
//! ```
//! A disk that hangs or cannot be reached opens it with the first failure, if nothing good is known of it lately; of wrong answers
//! it takes several, because a few sectors may be rotten on a disk that is well. In both cases at least half of what came
//! lately must have failed, or the last few without exception: under load a dead disk is known long before half of
//! a window has failed.
//!
//! Invariant: pure. It is told what happened and what time it is.
//! Invariant: it steers where there is a choice, and forbids nothing: what only this disk has is asked of it all the same.

use std::time::Duration;
use tokio::time::Instant;

/// What counts as lately: between one and two of these.
const WINDOW: Duration = Duration::from_secs(5);
/// Failures that weigh this much together are needed.
const WEIGHT_MIN: u32 = 8;
/// This many failures with nothing good in between are enough, whatever came before.
const RUN_MAX: u32 = 8;
/// The first rest.
const REST_MIN: Duration = Duration::from_secs(5);
/// And the longest.
const REST_MAX: Duration = Duration::from_secs(300);
/// After this long without another rest the next one is a first one again.
const REST_FORGOTTEN: Duration = Duration::from_secs(60);
/// Requests that may be on their way at once to a disk on trial.
const TRIALS_MAX: u32 = 2;
/// Good answers in a row that end a trial.
const PROOFS: u32 = 3;

/// How bad a failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    /// It may be about one shard.
    Light,
    /// It is about the disk, or the way to it.
    Heavy,
}

/// What came of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    None,
    /// It rests from now on, for so long.
    Opened(Duration),
    /// It is trusted again.
    Closed,
}

/// Whether to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// As any other.
    Yes,
    /// To see whether it is well again.
    Trial,
    /// Only if there is no other way.
    No,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Breaker {
    state: State,
    window: Window,
    rest: Duration,
    trials: u32,
}

#[derive(Debug, Default)]
enum State {
    /// Closed, and never open before.
    #[default]
    New,
    /// Closed again.
    Closed { since: Instant },
    /// On trial once `until` is past.
    Open { until: Instant, proofs: u32 },
}

impl Breaker {
    /// Whether to ask the disk.
    pub fn admission(&self, now: Instant) -> Admission {
        match self.state {
            State::New | State::Closed { .. } => Admission::Yes,
            State::Open { until, .. } if now >= until && self.trials < TRIALS_MAX => Admission::Trial,
            State::Open { .. } => Admission::No,
        }
    }

    /// Whether it rests.
    pub fn is_open(&self, now: Instant) -> bool {
        matches!(self.state, State::Open { until, .. } if now < until)
    }

    /// A request goes out. True if it is a trial, whose end must be told by [`Breaker::trial_over`].
    pub fn begin(&mut self, now: Instant) -> bool {
        let is_trial = matches!(self.state, State::Open { until, .. } if now >= until);
        self.trials += u32::from(is_trial);
        is_trial
    }

    /// A trial is over, with or without an answer.
    pub fn trial_over(&mut self) {
        self.trials = self.trials.saturating_sub(1);
    }

    /// A good answer came.
    pub fn succeeded(&mut self, now: Instant) -> Change {
        match &mut self.state {
            State::Open { until, proofs } if now >= *until => {
                *proofs += 1;
                if *proofs < PROOFS {
                    return Change::None;
                }
                self.state = State::Closed { since: now };
                self.window = Window::default();
                Change::Closed
            }
            State::Open { .. } => Change::None, // Sent before it opened.
            State::New | State::Closed { .. } => {
                self.window.at(now).good += 1;
                self.window.run = 0;
                Change::None
            }
        }
    }

    /// A failure came, or nothing in time.
    pub fn failed(&mut self, weight: Weight, now: Instant) -> Change {
        match self.state {
            State::Open { until, .. } if now < until => Change::None,
            State::Open { .. } => {
                self.rest = (self.rest * 2).min(REST_MAX);
                self.open(now)
            }
            State::New | State::Closed { .. } => {
                let counts = self.window.at(now);
                counts.bad += 1;
                counts.weight += match weight {
                    Weight::Light => 1,
                    Weight::Heavy => WEIGHT_MIN,
                };
                self.window.run += 1;
                if !self.window.is_bad() {
                    return Change::None;
                }
                self.rest = match self.state {
                    State::Closed { since } if now < since + REST_FORGOTTEN => (self.rest * 2).min(REST_MAX),
                    _ => REST_MIN,
                };
                self.open(now)
            }
        }
    }

    fn open(&mut self, now: Instant) -> Change {
        let until = now + self.rest;
        self.state = State::Open { until, proofs: 0 };
        self.window = Window::default();
        Change::Opened(self.rest)
    }
}

/// What came lately.
#[derive(Debug, Default)]
struct Window {
    /// The newest counts began here.
    since: Option<Instant>,
    now: Counts,
    before: Counts,
    /// Failures since the last good answer.
    run: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    good: u32,
    bad: u32,
    weight: u32,
}

impl Window {
    fn at(&mut self, now: Instant) -> &mut Counts {
        let since = *self.since.get_or_insert(now);
        if now >= since + WINDOW {
            self.before = match now < since + 2 * WINDOW {
                true => self.now,
                false => Counts::default(),
            };
            self.now = Counts::default();
            self.since = Some(now);
        }
        &mut self.now
    }

    fn is_bad(&self) -> bool {
        let sum = |of: fn(&Counts) -> u32| of(&self.now) + of(&self.before);
        let prevails = sum(|c| c.bad) >= sum(|c| c.good) && sum(|c| c.weight) >= WEIGHT_MIN;
        prevails || self.run >= RUN_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn opened(change: Change) -> bool {
        matches!(change, Change::Opened(_))
    }

    #[test]
    fn one_time_out_opens_it_for_a_disk_of_which_nothing_good_is_known() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        assert_eq!(breaker.failed(Weight::Heavy, now), Change::Opened(REST_MIN));
        assert_eq!(breaker.admission(now + REST_MIN - SECOND), Admission::No);
        assert_eq!(breaker.admission(now + REST_MIN), Admission::Trial);
    }

    #[test]
    fn wrong_answers_open_it_when_they_repeat() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        (1..WEIGHT_MIN).for_each(|_| assert!(!opened(breaker.failed(Weight::Light, now))));
        assert!(opened(breaker.failed(Weight::Light, now)));
        // And not when each is one of many.
        let mut breaker = Breaker::default();
        for n in 0..1000 {
            let now = now + SECOND * n / 10;
            (0..9).for_each(|_| assert_eq!(breaker.succeeded(now), Change::None));
            assert!(!opened(breaker.failed(Weight::Light, now)));
        }
        assert_eq!(breaker.admission(now + SECOND * 100), Admission::Yes);
    }

    #[test]
    fn half_of_what_came_lately_or_a_run_of_failures() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        (0..1000).for_each(|_| assert_eq!(breaker.succeeded(now), Change::None));
        (1..RUN_MAX).for_each(|_| assert!(!opened(breaker.failed(Weight::Heavy, now))));
        assert!(opened(breaker.failed(Weight::Heavy, now)));
        // Good answers of long ago count for nothing.
        let mut breaker = Breaker::default();
        (0..1000).for_each(|_| assert_eq!(breaker.succeeded(now), Change::None));
        assert!(!opened(breaker.failed(Weight::Heavy, now + WINDOW)));
        assert!(opened(breaker.failed(Weight::Heavy, now + 2 * WINDOW)));
    }

    #[test]
    fn a_trial_lets_few_through_and_a_few_good_answers_end_it() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        breaker.failed(Weight::Heavy, now);
        let now = now + REST_MIN;
        for _ in 0..TRIALS_MAX {
            assert_eq!(breaker.admission(now), Admission::Trial);
            assert!(breaker.begin(now));
        }
        assert_eq!(breaker.admission(now), Admission::No);
        breaker.trial_over();
        assert_eq!(breaker.admission(now), Admission::Trial);
        (1..PROOFS).for_each(|_| assert_eq!(breaker.succeeded(now), Change::None));
        assert_eq!(breaker.succeeded(now), Change::Closed);
        assert_eq!(breaker.admission(now), Admission::Yes);
        assert!(!breaker.begin(now));
    }

    #[test]
    fn rests_grow_while_it_fails_and_are_forgotten_when_it_behaves() {
        let (mut breaker, mut now) = (Breaker::default(), Instant::now());
        let mut rests = Vec::new();
        for _ in 0..8 {
            let Change::Opened(rest) = breaker.failed(Weight::Heavy, now) else {
                panic!("it stays closed");
            };
            // What was sent before it opened says nothing more.
            assert_eq!(breaker.failed(Weight::Heavy, now), Change::None);
            assert_eq!(breaker.succeeded(now), Change::None);
            rests.push(rest.as_secs());
            now += rest;
        }
        assert_eq!(rests, [5, 10, 20, 40, 80, 160, 300, 300]);
        (0..PROOFS).for_each(|_| assert!(!opened(breaker.succeeded(now))));
        assert_eq!(
            breaker.failed(Weight::Heavy, now + SECOND),
            Change::Opened(REST_MAX)
        );
        now += SECOND + REST_MAX;
        (0..PROOFS).for_each(|_| assert!(!opened(breaker.succeeded(now))));
        assert_eq!(
            breaker.failed(Weight::Heavy, now + REST_FORGOTTEN),
            Change::Opened(REST_MIN)
        );
    }
}
