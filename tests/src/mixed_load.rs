//! A mix of requests that goes on while faults come and go: puts, reads of the whole and of ranges, overwrites, deletes,
//! multipart uploads. Every byte that is read is checked, and every request is noted: when it began and ended, and how.
//!
//! Invariants: a key is written by one client at a time; no request is tried again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rand::random_range;

use crate::client::{Client, Failure, Outcome, Request};
use crate::content::Content;
use crate::model::{Model, Violations};

const KEYS_OF_CLIENT: usize = 25;
const PART_BYTES_MIN: usize = 5 << 20;

/// One request, as its client saw it.
#[derive(Clone, Debug)]
pub struct Done {
    /// PUT, GET, …
    pub what: &'static str,
    /// When it was sent.
    pub began: Instant,
    /// When its answer was there, or none came.
    pub ended: Instant,
    /// Why it failed, if it did.
    pub failure: Option<String>,
}

/// What a load did, and what must be there now.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// What the keys may hold.
    pub model: Model,
    /// All requests.
    pub requests: Vec<Done>,
    /// Answers that were wrong: other bytes than were put.
    pub violations: Violations,
}

impl Report {
    /// The requests that failed.
    pub fn failed(&self) -> impl Iterator<Item = &Done> {
        self.requests.iter().filter(|done| done.failure.is_some())
    }

    /// Takes over what another load did, on other keys.
    fn merge(&mut self, other: Report) {
        self.model.merge(other.model);
        self.requests.extend(other.requests);
        self.violations.extend(other.violations);
    }
}

/// Runs `faults` under the load of this many clients, who go on with the keys of `model`, each with those under its own
/// prefix.
pub fn during<R>(
    client: &Client,
    bucket: &str,
    clients: usize,
    model: &Model,
    faults: impl FnOnce() -> R,
) -> (Report, R) {
    let running = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let stop = StopOnDrop(&running);
        let loads: Vec<_> = (0..clients)
            .map(|number| {
                let mut load = Load {
                    client,
                    bucket,
                    prefix: format!("client-{number}/"),
                    report: Report {
                        model: model.clone(),
                        ..Report::default()
                    },
                };
                load.report.model.keep(&load.prefix);
                let running = &running;
                scope.spawn(move || {
                    while running.load(Ordering::SeqCst) {
                        load.step();
                    }
                    load.report
                })
            })
            .collect();
        let result = faults();
        drop(stop);
        let mut report = Report::default();
        for load in loads {
            report.merge(load.join().unwrap());
        }
        (report, result)
    })
}

/// Also when the faults panic: a scope waits for its threads.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

struct Load<'a> {
    client: &'a Client,
    bucket: &'a str,
    prefix: String,
    report: Report,
}

impl Load<'_> {
    /// One operation: one request, or the few of a multipart upload.
    fn step(&mut self) {
        let key = format!("{}{}", self.prefix, random_range(0..KEYS_OF_CLIENT));
        match random_range(0..20) {
            0..=6 => self.put(&key),
            7..=12 => self.get(&key),
            13..=16 => self.get_range(&key),
            17..=18 => {
                let outcome = self.call("DELETE", |client, bucket| client.delete(bucket, &key));
                self.write(&key, None, outcome);
            }
            _ => self.multipart(&key),
        }
    }

    fn put(&mut self, key: &str) {
        let bytes = match random_range(0..10) {
            0 => 0,
            1..=4 => random_range(1..16_385),
            5..=7 => random_range(16_385..300_000),
            _ => random_range(300_000..5_000_000),
        };
        let content = Content::random(bytes);
        let body = content.make();
        let outcome = self.call("PUT", |client, bucket| client.put(bucket, key, &body));
        self.write(key, Some(content), outcome.map(drop));
    }

    fn get(&mut self, key: &str) {
        let found = self.call("GET", |client, bucket| client.find(bucket, key));
        let Ok(found) = found else { return };
        let fits = |content: &Option<Content>| match (content, &found) {
            (None, None) => true,
            (Some(content), Some(found)) => content.compare(found).is_ok(),
            _ => false,
        };
        let possible = self.report.model.possible(key);
        if !possible.iter().any(fits) {
            let bytes = found.map(|found| found.len());
            let wrong = format!("{key}: {bytes:?} bytes read, possible were {possible:?}");
            self.report.violations.push(wrong);
        }
    }

    /// Reads a part of an object that is certainly there.
    fn get_range(&mut self, key: &str) {
        let [Some(content)] = *self.report.model.possible(key) else {
            return;
        };
        if content.bytes == 0 {
            return;
        }
        let first = random_range(0..content.bytes);
        let last = random_range(first..content.bytes.min(first + 300_000));
        let range = format!("bytes={first}-{last}");
        let found = self.call("GET range", |client, bucket| {
            client.call(&Request {
                method: "GET",
                bucket,
                key,
                headers: &[("range", &range)],
                ..Request::default()
            })
        });
        if found.is_ok_and(|found| found.body != content.make()[first..=last]) {
            self.report
                .violations
                .push(format!("{key}: {range} of {content:?} is wrong"));
        }
    }

    fn multipart(&mut self, key: &str) {
        let content = Content::random(PART_BYTES_MIN + random_range(1..300_000));
        let body = content.make();
        let client = self.client;
        let bucket = self.bucket;
        let begun = self.call("multipart POST", |_, _| client.create_upload(bucket, key));
        let Ok(mut upload) = begun else { return };
        // Until it is completed, nothing of it may be seen.
        for (number, part) in [(1, &body[..PART_BYTES_MIN]), (2, &body[PART_BYTES_MIN..])] {
            if self.call("part PUT", |_, _| upload.part(number, part)).is_err() {
                return;
            }
        }
        let outcome = self.call("multipart POST", |_, _| upload.complete());
        self.write(key, Some(content), outcome);
    }

    /// Sends one request, and notes it.
    fn call<T>(
        &mut self,
        what: &'static str,
        send: impl FnOnce(&Client, &str) -> Outcome<T>,
    ) -> Result<T, Failure> {
        let began = Instant::now();
        let outcome = send(self.client, self.bucket);
        self.report.requests.push(Done {
            what,
            began,
            ended: Instant::now(),
            failure: outcome.as_ref().err().map(ToString::to_string),
        });
        outcome
    }

    fn write(&mut self, key: &str, content: Option<Content>, outcome: Outcome<()>) {
        match outcome {
            Ok(()) => self.report.model.acknowledged(key, content),
            Err(_) => self.report.model.uncertain(key, content),
        }
    }
}

/// What happened when, for people: one line for each second with failures or slow requests, and the sums.
pub fn summary(report: &Report, since: Instant) -> String {
    let at = |moment: Instant| moment.saturating_duration_since(since).as_secs_f64();
    let slowest = report.requests.iter().map(|done| done.ended - done.began).max();
    let slow = |limit: u64| {
        let limit = Duration::from_secs(limit);
        report
            .requests
            .iter()
            .filter(|done| done.ended - done.began > limit)
            .count()
    };
    let mut text = format!(
        "{} requests, {} failed, {} took over 1 s, {} over 3 s, the slowest {:.1} s\n",
        report.requests.len(),
        report.failed().count(),
        slow(1),
        slow(3),
        slowest.unwrap_or_default().as_secs_f64(),
    );
    for done in report.failed() {
        let failure = done.failure.as_deref().unwrap_or_default();
        let line = format!(
            "  {} begun at {:.1} s failed at {:.1} s: {failure}\n",
            done.what,
            at(done.began),
            at(done.ended)
        );
        text.push_str(&line);
    }
    text
}
