//! What every background worker is, and the loop that runs it.

use crate::error::Result;
use serde::Serialize;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;

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
}

/// A running worker.
pub struct Running {
    status: Arc<Mutex<WorkerStatus>>,
    task: tokio::task::JoinHandle<()>,
}

/// How long a worker rests after a step that failed.
const REST_AFTER_ERROR: Duration = Duration::from_secs(1);
/// How long it rests before it looks at the next batch when there was nothing to be done with one.
const REST_AFTER_SKIP: Duration = Duration::from_millis(100);

impl Running {
    /// Starts a worker; it ends after the step in progress when `stop` turns true.
    pub fn start(worker: impl Worker, mut stop: watch::Receiver<bool>) -> Running {
        let status = Arc::new(Mutex::new(WorkerStatus {
            name: worker.name(),
            ..Default::default()
        }));
        let seen = status.clone();
        let task = tokio::spawn(async move {
            while !*stop.borrow() {
                let stepped = worker.step().await;
                note(&seen, worker.name(), &stepped);
                let rest = match stepped {
                    Ok(Step::Worked) => continue,
                    Ok(Step::Skipped) => REST_AFTER_SKIP,
                    Ok(Step::Idle) => worker.rest(),
                    Err(_) => REST_AFTER_ERROR,
                };
                tokio::select! {
                    _ = tokio::time::sleep(rest) => {}
                    _ = worker.woken() => {}
                    changed = stop.changed() => if changed.is_err() { return },
                }
            }
        });
        Running { status, task }
    }

    /// What it is doing.
    pub fn status(&self) -> WorkerStatus {
        self.status.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// Waits for its end, which `stop` must have been asked for.
    pub async fn ended(self) {
        if let Err(error) = self.task.await {
            tracing::error!(%error, "a background worker panicked");
        }
    }
}

/// Records a step.
fn note(status: &Mutex<WorkerStatus>, name: &str, stepped: &Result<Step>) {
    let mut status = status.lock().unwrap_or_else(|e| e.into_inner());
    match stepped {
        Ok(step) => {
            status.idle = *step != Step::Worked;
            status.steps += u64::from(*step == Step::Worked);
            status.error = None;
        }
        Err(error) => {
            let text = error.to_string();
            if status.error.as_ref() != Some(&text) {
                tracing::warn!(worker = name, %error, "background work failed; it will be tried again");
            }
            status.error = Some(text);
        }
    }
}
