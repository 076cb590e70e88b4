//! What every background worker is, and the loop that runs it.
//!
//! A step that panics ends the step and not the worker: it goes on after a pause that grows while it panics again, up to five
//! minutes. How often that happened is counted, and shown with what it said.
//! Invariant: a worker ends when it is told to, and in no other way.

use crate::error::{Error, Result};
use futures::FutureExt;
use serde::Serialize;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Something; there may be more right now.
    Worked,
    /// Nothing could be done with these, but there are others to look at.
    Skipped,
    /// Nothing, or nothing that could be done now.
    Idle,
}

/// Background work, in small steps.
#[async_trait::async_trait]
pub trait Worker: Send + Sync + 'static {
    /// For people.
    fn name(&self) -> &'static str;

    /// How long it rests after a step that had nothing to do.
    fn rest(&self) -> Duration;

    /// Does a bounded piece of work.
    async fn step(&self) -> Result<Step>;

    /// Returns when there may be work before the rest is over.
    async fn woken(&self) {
        std::future::pending().await
    }
}

/// What operators see of a worker.
#[derive(Clone, Debug, Default, Serialize)]
pub struct WorkerStatus {
    /// Its name.
    pub name: &'static str,
    /// Steps that did something.
    pub steps: u64,
    /// Whether the last step found nothing to do.
    pub idle: bool,
    /// The last error, until a step succeeds.
    pub error: Option<String>,
    /// How many seconds ago the first step failed after which none has succeeded.
    pub failing_s: Option<u64>,
    /// How often it panicked and was started again.
    pub restarts: u64,
}

#[derive(Default)]
struct Seen {
    status: WorkerStatus,
    failing_since: Option<Instant>,
}

/// A running worker.
pub struct Running {
    seen: Arc<Mutex<Seen>>,
    task: tokio::task::JoinHandle<()>,
}

/// How long a worker rests after a step that failed.
const REST_AFTER_ERROR: Duration = Duration::from_secs(1);
/// And after one that panicked, at first; twice as long each time,
const REST_AFTER_PANIC_MIN: Duration = Duration::from_secs(1);
/// up to this.
const REST_AFTER_PANIC_MAX: Duration = Duration::from_secs(300);
/// How long it rests before it looks at the next batch when there was nothing to be done with one.
const REST_AFTER_SKIP: Duration = Duration::from_millis(100);

impl Running {
    /// Starts a worker; it ends after the step in progress when `stop` turns true.
    pub fn start(worker: impl Worker, mut stop: watch::Receiver<bool>) -> Running {
        let seen = Arc::new(Mutex::new(Seen {
            status: WorkerStatus {
                name: worker.name(),
                ..WorkerStatus::default()
            },
            failing_since: None,
        }));
        let seen_by_task = seen.clone();
        let task = tokio::spawn(async move {
            let mut rest_after_panic = REST_AFTER_PANIC_MIN;
            while !*stop.borrow() {
                // What a step leaves behind when it panics is what it leaves behind when it fails: locks are not held across steps.
                let stepped = AssertUnwindSafe(worker.step()).catch_unwind().await;
                let rest = match &stepped {
                    Ok(_) => None,
                    Err(_) => Some(rest_after_panic),
                };
                rest_after_panic = match rest {
                    None => REST_AFTER_PANIC_MIN,
                    Some(rest) => (rest * 2).min(REST_AFTER_PANIC_MAX),
                };
                let stepped = stepped.unwrap_or_else(|panic| Err(Error::Internal(said(&*panic))));
                note(&seen_by_task, worker.name(), &stepped, rest);
                let rest = match (rest, stepped) {
                    (Some(rest), _) => rest,
                    (None, Ok(Step::Worked)) => continue,
                    (None, Ok(Step::Skipped)) => REST_AFTER_SKIP,
                    (None, Ok(Step::Idle)) => worker.rest(),
                    (None, Err(_)) => REST_AFTER_ERROR,
                };
                tokio::select! {
                    _ = tokio::time::sleep(rest) => {}
                    _ = worker.woken() => {}
                    changed = stop.changed() => if changed.is_err() { return },
                }
            }
        });
        Running { seen, task }
    }

    /// What it is doing.
    pub fn status(&self) -> WorkerStatus {
        let seen = lock(&self.seen);
        WorkerStatus {
            failing_s: seen.failing_since.map(|since| since.elapsed().as_secs()),
            ..seen.status.clone()
        }
    }

    /// Waits for its end, which `stop` must have been asked for.
    pub async fn ended(self) {
        if let Err(error) = self.task.await {
            tracing::error!(%error, "a background worker panicked");
        }
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a panic said.
fn said(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("it panicked: {}", text.unwrap_or("and said nothing"))
}

/// Records a step; `rest`: it panicked, and goes on after that.
fn note(seen: &Mutex<Seen>, name: &str, stepped: &Result<Step>, rest: Option<Duration>) {
    let mut seen = lock(seen);
    match stepped {
        Ok(step) => {
            seen.status.idle = *step != Step::Worked;
            seen.status.steps += u64::from(*step == Step::Worked);
            seen.status.error = None;
            seen.failing_since = None;
        }
        Err(error) => {
            let text = error.to_string();
            match rest {
                Some(rest) => {
                    tracing::error!(worker = name, %error, ?rest, "background work panicked; it goes on after a rest")
                }
                None if seen.status.error.as_ref() != Some(&text) => {
                    tracing::warn!(worker = name, %error, "background work failed; it will be tried again");
                }
                None => {}
            }
            seen.status.restarts += u64::from(rest.is_some());
            seen.status.error = Some(text);
            seen.failing_since.get_or_insert_with(Instant::now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// Panics in its first steps, then fails in as many, then works.
    struct Shaky {
        steps: Arc<AtomicU64>,
        bad: u64,
    }

    #[async_trait::async_trait]
    impl Worker for Shaky {
        fn name(&self) -> &'static str {
            "shaky"
        }

        fn rest(&self) -> Duration {
            Duration::from_secs(1)
        }

        async fn step(&self) -> Result<Step> {
            let step = self.steps.fetch_add(1, Ordering::Relaxed);
            assert!(step >= self.bad, "step {step} of a test");
            match step < 2 * self.bad {
                true => Err(Error::Internal("a test".into())),
                false => Ok(Step::Idle),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_panics_goes_on_ever_more_seldom() {
        let steps = Arc::new(AtomicU64::new(0));
        let (stop, stopped) = watch::channel(false);
        let shaky = Shaky {
            steps: steps.clone(),
            bad: 12,
        };
        let running = Running::start(shaky, stopped);
        tokio::time::sleep(Duration::from_millis(500)).await;
        let status = running.status();
        assert_eq!((status.restarts, status.failing_s), (1, Some(0)));
        assert!(status.error.unwrap().contains("it panicked: step 0 of a test"));
        // 1, 2, 4 … 256 s, then 300 s each time.
        tokio::time::sleep(Duration::from_secs(511)).await;
        assert_eq!(running.status().restarts, 10);
        tokio::time::sleep(Duration::from_secs(600)).await;
        let status = running.status();
        assert_eq!((status.restarts, status.failing_s), (12, Some(1_111)));
        // Errors and work follow.
        tokio::time::sleep(Duration::from_secs(312)).await;
        let status = running.status();
        assert_eq!(
            (status.restarts, status.failing_s, status.error),
            (12, None, None)
        );
        assert!(steps.load(Ordering::Relaxed) > 24);
        stop.send(true).unwrap();
        running.ended().await;
    }
}
