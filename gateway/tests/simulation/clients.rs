//! Clients: each with keys of its own, one request after another, checking everything it reads against its model.
//!
//! Some leave before they are answered. A gateway that dies answers nobody.

mod requests;

pub use requests::{read, wanted_all};

use crate::model::{Model, Span, Value};
use crate::run::Run;
use crate::world::Serving;
use gateway::error::{Error, Result};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

const KEYS: usize = 14;
/// Keys that everybody writes to.
pub const SHARED_KEYS: usize = 3;
/// A commit that goes on without its client is decided by then.
const SETTLED: Duration = Duration::from_secs(5);

/// A request that takes longer is worth a line in the trace.
const SLOW: Duration = Duration::from_secs(10);

/// How a request ended.
enum Outcome<T> {
    Answered(T),
    Refused(Error),
    /// Nobody knows: the client left, or the gateway died.
    Unknown,
}

/// What was asked for, over all clients.
#[derive(Debug, Default)]
pub struct Counts {
    pub writes: AtomicU64,
    pub failed_writes: AtomicU64,
    pub reads: AtomicU64,
    pub unknown: AtomicU64,
}

pub struct Client {
    run: Arc<Run>,
    number: usize,
    rng: StdRng,
    model: Arc<Model>,
    /// Where the ledger was when the last request was asked and answered.
    span: Span,
}

impl Client {
    pub fn new(run: Arc<Run>, number: usize) -> Client {
        let rng = StdRng::seed_from_u64(run.seed.wrapping_mul(31).wrapping_add(number as u64 + 1));
        Client {
            model: run.models[number].clone(),
            run,
            number,
            rng,
            span: Span { begun: 0, ended: 0 },
        }
    }

    /// Asks for one thing after another until it is told to stop.
    pub async fn work(mut self) -> Client {
        while !self.run.is_quiet() && !self.run.has_failed() {
            let pause = Duration::from_millis(self.rng.random_range(0..400));
            tokio::time::sleep(pause).await;
            let run = self.run.clone();
            run.world.gateway().await;
            let _asking = run.traffic.read().await;
            // It may have died, or be another one, by now.
            if let Some(serving) = run.world.living() {
                self.one(&serving).await;
            }
        }
        self
    }

    async fn one(&mut self, serving: &Serving) {
        if self.rng.random_range(0..6) == 0 {
            let key = format!("shared/{}", self.rng.random_range(0..SHARED_KEYS));
            return match self.rng.random_range(0..4) {
                0 | 1 => self.put_shared(serving, &key).await,
                2 => self.delete_shared(serving, &key).await,
                _ => self.get_shared(serving, &key).await,
            };
        }
        let key = self.key();
        match self.rng.random_range(0..100) {
            0..30 => self.put(serving, &key).await,
            30..34 => self.upload(serving, &key).await,
            34..42 => self.copy(serving, &key).await,
            42..54 => self.delete(serving, &key).await,
            54..82 => self.get(serving, &key).await,
            82..96 => self.get_range(serving, &key).await,
            _ => self.list(serving).await,
        }
    }

    fn key(&mut self) -> String {
        format!("c{}/{:02}", self.number, self.rng.random_range(0..KEYS))
    }

    fn size(&mut self) -> usize {
        match self.rng.random_range(0..100) {
            0..4 => 0,
            4..45 => self.rng.random_range(1..16_384),
            45..50 => 16_384,
            50..90 => self.rng.random_range(16_385..300_000),
            90..97 => self.rng.random_range(300_000..2_000_000),
            _ => self.rng.random_range(4_000_000..7_000_000),
        }
    }

    fn piece(&mut self, size: usize) -> (u64, usize) {
        (self.rng.random(), size)
    }

    /// Waits for an answer, unless the client leaves or the gateway dies.
    async fn ask<T>(&mut self, serving: &Serving, asked: impl Future<Output = Result<T>>) -> Outcome<T> {
        let leaves = self.rng.random_range(0..100) < 3;
        let patience = match leaves {
            true => Duration::from_micros(self.rng.random_range(0..60_000)),
            false => Duration::from_secs(3_600),
        };
        let (begun, asked_at) = (serving.store.file.position(), Instant::now());
        let outcome = tokio::select! {
            answer = asked => match answer {
                Ok(answer) => Outcome::Answered(answer),
                Err(error) => Outcome::Refused(error),
            },
            () = serving.life.over() => Outcome::Unknown,
            () = tokio::time::sleep(patience) => Outcome::Unknown,
        };
        if asked_at.elapsed() > SLOW {
            let (number, took) = (self.number, asked_at.elapsed());
            self.run
                .trace
                .note(format!("client {number} waited for {took:?}"));
        }
        if matches!(outcome, Outcome::Unknown) {
            self.run.counts.unknown.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(SETTLED).await;
        }
        let ended = serving.store.file.position();
        self.span = Span { begun, ended };
        outcome
    }

    /// Takes in how a change of a key ended.
    fn changed<T>(&mut self, what: &str, key: &str, value: Value, outcome: Outcome<T>) -> Option<T> {
        let counts = &self.run.counts;
        counts.writes.fetch_add(1, Ordering::Relaxed);
        let len = value
            .as_ref()
            .map(|pieces| pieces.iter().map(|(_, len)| len).sum::<usize>());
        let (answer, how) = match outcome {
            Outcome::Answered(answer) => {
                self.model.set(key, value, self.span);
                (Some(answer), "done".into())
            }
            Outcome::Refused(error) => {
                counts.failed_writes.fetch_add(1, Ordering::Relaxed);
                self.model.maybe(key, value, self.span);
                (None, error.to_string())
            }
            Outcome::Unknown => {
                self.model.maybe(key, value, self.span);
                (None, "nobody knows".into())
            }
        };
        self.run
            .trace
            .note(format!("{what} {key} ({len:?} bytes): {how}"));
        answer
    }
}
