//! Group commit: many callers, one writer thread, one durable transaction for all the commits that arrived while
//! the one before was being made durable.
//!
//! Invariants:
//! - Commits are applied in the order in which they entered the queue, and nobody is answered before the whole batch
//!   is durable. A conflict waits too: it may be with an earlier commit of the same batch.
//! - The queue is bounded by count and by bytes. A caller that finds it full waits without holding a thread.
//! - A caller that goes away changes nothing for its neighbours: once queued, a commit is applied whether or not
//!   somebody still wants the answer.
//! - A failure latches, a panic too. Whoever waits and whoever comes later gets the first failure's words, until the engine makes it
//!   good. The queue and its thread go on.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::store::{Commit, LedgerError};

/// The most commits that wait in the queue.
const QUEUE_COMMITS_MAX: usize = 4096;
/// The most bytes of keys and values that wait or are being made durable. A larger commit goes alone.
const QUEUE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The most commits of one transaction.
const BATCH_COMMITS_MAX: usize = 1024;
/// A batch that has this many bytes takes no further commit.
const BATCH_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What a commit came to: its version, or why it did not apply.
pub type Outcome = Result<u64, LedgerError>;

/// What makes a batch durable.
pub trait Apply: Send + 'static {
    /// Applies the commits in order, durably, and answers each; an error means that the state of all is unknown.
    fn apply(&mut self, batch: &[Commit]) -> Result<Vec<Outcome>, String>;
}

/// A failure of an engine, remembered until it is made good.
#[derive(Clone, Debug, Default)]
pub struct Latch(Arc<Latched>);

#[derive(Debug, Default)]
struct Latched {
    /// Looked at first: a commit and a read each ask.
    failed: AtomicBool,
    failure: Mutex<Option<(String, Instant)>>,
}

impl Latch {
    /// Remembers the failure, unless there is one, and answers the error that everybody gets from now on.
    pub fn set(&self, what: String) -> LedgerError {
        let mut failure = lock(&self.0.failure);
        let (what, _) = failure.get_or_insert_with(|| {
            tracing::error!(%what, "the ledger failed and refuses everything until it is taken up again");
            (what, Instant::now())
        });
        self.0.failed.store(true, Ordering::Release);
        LedgerError::Unavailable { what: what.clone() }
    }

    /// It was made good.
    pub fn clear(&self) {
        if let Some((_, since)) = lock(&self.0.failure).take() {
            let seconds = since.elapsed().as_secs_f64();
            tracing::info!(seconds, "the ledger is taken up again");
        }
        self.0.failed.store(false, Ordering::Release);
    }

    /// The failure, and when it was.
    pub fn failure(&self) -> Option<(String, Instant)> {
        lock(&self.0.failure).clone()
    }

    /// An error while there is a failure.
    pub fn check(&self) -> Result<(), LedgerError> {
        if !self.0.failed.load(Ordering::Acquire) {
            return Ok(());
        }
        match &*lock(&self.0.failure) {
            None => Ok(()),
            Some((what, _)) => Err(LedgerError::Unavailable { what: what.clone() }),
        }
    }
}

/// What a panic said.
pub fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "without words".to_owned())
}

/// The queue and its writer thread. Dropping it applies what is queued and stops the thread.
#[derive(Debug)]
pub struct GroupCommit {
    /// `None` once shut down.
    queue: Mutex<Option<mpsc::Sender<Queued>>>,
    room: Arc<Semaphore>,
    writer: Mutex<Option<JoinHandle<()>>>,
    latch: Latch,
}

#[derive(Debug)]
struct Queued {
    commit: Commit,
    answer: oneshot::Sender<Outcome>,
    _room: OwnedSemaphorePermit,
}

impl GroupCommit {
    /// Starts the writer thread.
    pub fn start(apply: impl Apply, latch: Latch) -> std::io::Result<Self> {
        let (sender, receiver) = mpsc::channel(QUEUE_COMMITS_MAX);
        let writer = Writer {
            apply,
            receiver,
            latch: latch.clone(),
        };
        let writer = std::thread::Builder::new()
            .name("ledger-writer".to_owned())
            .spawn(move || writer.run())?;
        Ok(Self {
            queue: Mutex::new(Some(sender)),
            room: Arc::new(Semaphore::new(QUEUE_BYTES_MAX)),
            writer: Mutex::new(Some(writer)),
            latch,
        })
    }

    /// Queues the commit and waits until it is durable or refused.
    pub async fn commit(&self, commit: Commit) -> Outcome {
        self.latch.check()?;
        let queue = lock(&self.queue).clone().ok_or_else(shut_down)?;
        let bytes = commit.bytes().min(QUEUE_BYTES_MAX) as u32;
        let room = Arc::clone(&self.room)
            .acquire_many_owned(bytes)
            .await
            .map_err(|_closed| shut_down())?;
        let (answer, outcome) = oneshot::channel();
        let queued = Queued {
            commit,
            answer,
            _room: room,
        };
        queue.send(queued).await.map_err(|_gone| self.writer_died())?;
        drop(queue);
        outcome.await.unwrap_or_else(|_gone| Err(self.writer_died()))
    }

    /// Takes no more commits, waits until those in hand are answered, and stops the thread.
    pub async fn shutdown(&self) {
        lock(&self.queue).take();
        let writer = lock(&self.writer).take();
        if let Some(writer) = writer {
            // An error means that the writer panicked; its callers have been told.
            let _joined = tokio::task::spawn_blocking(move || writer.join()).await;
        }
    }

    /// As `shutdown`; blocks.
    pub fn close(&self) {
        lock(&self.queue).take();
        if let Some(writer) = lock(&self.writer).take() {
            // As in `shutdown`.
            let _joined = writer.join();
        }
    }

    /// The writer leaves its loop only when the queue closes, so a queue without a writer means a panic.
    fn writer_died(&self) -> LedgerError {
        self.latch.set("the ledger's writer thread panicked".to_owned())
    }
}

impl Drop for GroupCommit {
    fn drop(&mut self) {
        self.close();
    }
}

struct Writer<A> {
    apply: A,
    receiver: mpsc::Receiver<Queued>,
    latch: Latch,
}

impl<A: Apply> Writer<A> {
    fn run(mut self) {
        while let Some(first) = self.receiver.blocking_recv() {
            std::thread::yield_now(); // Who is about to commit, and waits for a processor, joins this batch.
            let (commits, waiting) = self.batch(first);
            let outcomes = self.outcomes(&commits);
            for ((answer, room), outcome) in waiting.into_iter().zip(outcomes) {
                // First, so that whoever has the answer finds the room free.
                drop(room);
                // The caller may have gone away.
                let _unwanted = answer.send(outcome);
            }
        }
    }

    fn batch(
        &mut self,
        first: Queued,
    ) -> (Vec<Commit>, Vec<(oneshot::Sender<Outcome>, OwnedSemaphorePermit)>) {
        let (mut commits, mut waiting, mut bytes) = (Vec::new(), Vec::new(), 0);
        let mut next = Some(first);
        while let Some(Queued {
            commit,
            answer,
            _room,
        }) = next
        {
            bytes += commit.bytes();
            commits.push(commit);
            waiting.push((answer, _room));
            let full = commits.len() >= BATCH_COMMITS_MAX || bytes >= BATCH_BYTES_MAX;
            next = if full { None } else { self.receiver.try_recv().ok() };
        }
        (commits, waiting)
    }

    fn outcomes(&mut self, commits: &[Commit]) -> Vec<Outcome> {
        let applied = match self.latch.check() {
            Ok(()) => {
                let apply = AssertUnwindSafe(|| self.apply.apply(commits));
                let applied = std::panic::catch_unwind(apply).unwrap_or_else(|panic| {
                    let what = panic_message(&*panic);
                    Err(format!("the ledger's writer thread panicked: {what}"))
                });
                applied.map_err(|what| self.latch.set(what))
            }
            Err(latched) => Err(latched),
        };
        applied.unwrap_or_else(|failure| vec![Err(failure); commits.len()])
    }
}

/// The error after a shutdown.
pub fn shut_down() -> LedgerError {
    LedgerError::Unavailable {
        what: "the ledger is shut down".to_owned(),
    }
}

/// These locks guard single assignments, which a panic cannot leave half done.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
