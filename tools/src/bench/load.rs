//! The loop that loads the server: as many workers as the concurrency says, each with a connection of its own, each doing
//! one request after the other until the time is over or the source of requests is dry.

use super::client::{Connection, Job};
use super::plan::Op;
use super::signer::Endpoint;
use hdrhistogram::Histogram;
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// How long a worker rests after an error, so that a server that is down is not hammered and errors stay countable.
const REST_AFTER_ERROR: Duration = Duration::from_millis(50);

/// How often progress is shown.
const TICK: Duration = Duration::from_millis(100);

/// Where workers get requests from; `None` when there are no more. It is asked by all of them at once.
pub type Source = Arc<dyn Fn(&mut StdRng) -> Option<Job> + Send + Sync>;

/// How a load is put on.
#[derive(Clone, Debug)]
pub struct Load {
    /// The server.
    pub endpoint: Endpoint,
    /// Connections, each with one request at a time.
    pub concurrency: usize,
    /// How long; without it until the source is dry.
    pub duration: Option<Duration>,
    /// Whether each byte of each get is checked.
    pub verify: bool,
    /// Ends it early when it becomes true.
    pub stop: Arc<AtomicBool>,
}

/// What came of a load.
#[derive(Debug)]
pub struct Outcome {
    /// One for each operation that was done, in the order of [`Op::ALL`].
    pub tallies: Vec<Tally>,
    /// From the first request to the last answer.
    pub elapsed: Duration,
    /// The first thing that went wrong, in words.
    pub first_error: Option<String>,
}

impl Outcome {
    /// How many requests failed.
    pub fn errors(&self) -> u64 {
        self.tallies.iter().map(|tally| tally.errors).sum()
    }

    /// Adds what came of the same load at another time.
    pub fn merge(&mut self, other: Outcome) {
        for tally in other.tallies {
            match self.tallies.iter_mut().find(|mine| mine.op == tally.op) {
                Some(mine) => mine.merge(&tally),
                None => self.tallies.push(tally),
            }
        }
        self.tallies
            .sort_by_key(|tally| Op::ALL.iter().position(|op| *op == tally.op));
        self.elapsed += other.elapsed;
        self.first_error = self.first_error.take().or(other.first_error);
    }
}

/// What came of one operation.
#[derive(Clone, Debug)]
pub struct Tally {
    /// Which.
    pub op: Op,
    /// Requests that succeeded.
    pub requests: u64,
    /// Requests that did not.
    pub errors: u64,
    /// Bytes of objects that those that succeeded moved.
    pub bytes: u64,
    /// Microseconds from sending to the answer's last byte, of those that succeeded.
    pub latency_us: Histogram<u64>,
}

impl Tally {
    /// Nothing yet.
    pub fn new(op: Op) -> Tally {
        let latency_us = Histogram::new(3).expect("three significant digits are supported");
        Tally {
            op,
            requests: 0,
            errors: 0,
            bytes: 0,
            latency_us,
        }
    }

    /// Counts a request that did.
    pub fn succeeded(&mut self, bytes: u64, latency: Duration) {
        self.requests += 1;
        self.bytes += bytes;
        // Not `saturating_record`, which never resizes. An hour is far beyond the deadline of a request.
        let micros = latency.min(Duration::from_secs(3600)).as_micros() as u64;
        self.latency_us
            .record(micros)
            .expect("a histogram that resizes takes an hour");
    }

    /// Adds another's counts to this.
    pub fn merge(&mut self, other: &Tally) {
        self.requests += other.requests;
        self.errors += other.errors;
        self.bytes += other.bytes;
        // Fails only for histograms of a fixed range; these grow.
        self.latency_us
            .add(&other.latency_us)
            .expect("a histogram that resizes takes every other");
    }
}

/// Puts the load on. All connections are open before it starts. `progress` is called now and then, with the time that has
/// passed and the requests done.
pub async fn drive(load: &Load, source: Source, progress: impl Fn(Duration, u64)) -> Result<Outcome, String> {
    let mut connections = Vec::with_capacity(load.concurrency);
    for _ in 0..load.concurrency {
        let mut connection = Connection::new(load.endpoint.clone());
        connection.open().await?;
        connections.push(connection);
    }

    let started = Instant::now();
    let done = Arc::new(AtomicU64::new(0));
    let mut workers = JoinSet::new();
    for (seed, connection) in (0..).zip(connections) {
        let worker = Worker {
            connection,
            source: source.clone(),
            rng: StdRng::seed_from_u64(seed),
            verify: load.verify,
            stop: load.stop.clone(),
            deadline: load.duration.map(|duration| started + duration),
            done: done.clone(),
        };
        workers.spawn(worker.run());
    }

    let mut tallies: Vec<Tally> = Vec::new();
    let mut first_error: Option<(Instant, String)> = None;
    let mut tick = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            worker = workers.join_next() => match worker {
                None => break,
                Some(Err(e)) => return Err(format!("a worker died: {e}")),
                Some(Ok((own, error))) => {
                    own.iter().for_each(|tally| tally_of(&mut tallies, tally.op).merge(tally));
                    first_error = first_error.into_iter().chain(error).min_by_key(|(at, _)| *at);
                }
            },
            _ = tick.tick() => progress(started.elapsed(), done.load(Ordering::Relaxed)),
        }
    }
    let elapsed = started.elapsed();
    tallies.sort_by_key(|tally| Op::ALL.iter().position(|&op| op == tally.op));
    Ok(Outcome {
        tallies,
        elapsed,
        first_error: first_error.map(|(_, text)| text),
    })
}

struct Worker {
    connection: Connection,
    source: Source,
    rng: StdRng,
    verify: bool,
    stop: Arc<AtomicBool>,
    deadline: Option<Instant>,
    done: Arc<AtomicU64>,
}

impl Worker {
    async fn run(mut self) -> (Vec<Tally>, Option<(Instant, String)>) {
        let mut tallies = Vec::new();
        let mut first_error = None;
        while !self.stop.load(Ordering::Relaxed)
            && self.deadline.is_none_or(|deadline| Instant::now() < deadline)
        {
            let Some(job) = (self.source)(&mut self.rng) else {
                break;
            };
            let tally = tally_of(&mut tallies, job.op);
            let sent = Instant::now();
            match self.connection.run(job, self.verify).await {
                Ok(bytes) => tally.succeeded(bytes, sent.elapsed()),
                Err(text) => {
                    tally.errors += 1;
                    first_error.get_or_insert_with(|| (Instant::now(), text));
                    tokio::time::sleep(REST_AFTER_ERROR).await;
                }
            }
            self.done.fetch_add(1, Ordering::Relaxed);
        }
        (tallies, first_error)
    }
}

fn tally_of(tallies: &mut Vec<Tally>, op: Op) -> &mut Tally {
    let found = tallies
        .iter()
        .position(|tally| tally.op == op)
        .unwrap_or_else(|| {
            tallies.push(Tally::new(op));
            tallies.len() - 1
        });
    &mut tallies[found]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_of_every_magnitude_are_kept() {
        let (mut tally, mut other) = (Tally::new(Op::Get), Tally::new(Op::Get));
        for us in [1, 900, 5_000, 80_000] {
            tally.succeeded(1, Duration::from_micros(us));
        }
        for us in [1_200_000, 59_000_000, u64::MAX] {
            other.succeeded(1, Duration::from_micros(us));
        }
        tally.merge(&other);
        for (quantile, us) in [
            (0.0, 1.0),
            (0.28, 900.0),
            (0.42, 5e3),
            (0.57, 8e4),
            (0.71, 1.2e6),
            (0.85, 5.9e7),
            (1.0, 3.6e9),
        ] {
            let found = tally.latency_us.value_at_quantile(quantile) as f64;
            assert!((found / us - 1.0).abs() < 0.001, "{quantile}: {found}");
        }
        assert_eq!((tally.requests, tally.bytes), (7, 7));
    }
}
