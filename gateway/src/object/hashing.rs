//! MD5 of all uploads in progress, many at once.
//!
//! One upload's MD5 cannot be hurried, but those of several take hardly longer than one (`ec_core::md5`). So whoever has bytes to hash
//! hands them to a thread, which advances what waits in lanes, a piece of each at a time: who comes while a piece is done takes part
//! in the next, and nobody waits for somebody else's megabytes.
//!
//! Bounded: an upload waits for its bytes before it reads more than one chunk ahead, and the budget bounds uploads. More threads are
//! woken only when those that work have all their lanes full.

use crate::error::{Error, Result};
use bytes::{Buf, Bytes};
use ec_core::Kernel;
use ec_core::md5::{self, Md5};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use tokio::sync::oneshot;

/// How much of each upload is hashed before others may join: a tenth of a millisecond's work for one that is alone.
const PIECE_BYTES: usize = 64 * 1024;
/// One thread keeps up with this many processors' uploads.
const PROCESSORS_EACH: usize = 8;

struct Job {
    md5: Md5,
    left: Bytes,
    done: oneshot::Sender<Md5>,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// Threads that are at work.
    working: usize,
    closed: bool,
}

struct Shared {
    queue: Mutex<Queue>,
    arrived: Condvar,
    kernel: Kernel,
    lanes: usize,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Fills the lanes with jobs that wait, and waits for one if they are empty. False when there will be none.
    fn fill(&self, jobs: &mut Vec<Job>) -> bool {
        let mut queue = self.lock();
        if jobs.is_empty() && queue.jobs.is_empty() {
            queue.working -= 1;
            while queue.jobs.is_empty() {
                if queue.closed {
                    return false;
                }
                queue = self.arrived.wait(queue).unwrap_or_else(|e| e.into_inner());
            }
            queue.working += 1;
        }
        let free = self.lanes - jobs.len();
        let taken = queue.jobs.len().min(free);
        jobs.extend(queue.jobs.drain(..taken));
        true
    }

    /// Works, whatever happens: who waits for what was lost in a panic is told so, and the next ones are served.
    fn work_on(&self) {
        while std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.work())).is_err() {
            tracing::error!("a thread that hashes panicked, and goes on");
        }
    }

    fn work(&self) {
        let mut jobs = Vec::with_capacity(self.lanes);
        while self.fill(&mut jobs) {
            if jobs.len() < self.lanes {
                std::thread::yield_now(); // Who is about to ask, and waits for a processor, takes part.
                self.fill(&mut jobs);
            }
            let piece = |job: &Job| job.left.len().min(PIECE_BYTES);
            let mut streams: Vec<(&mut Md5, &[u8])> = Vec::with_capacity(jobs.len());
            for job in &mut jobs {
                let bytes = piece(job);
                streams.push((&mut job.md5, &job.left[..bytes]));
            }
            md5::update_many(self.kernel, &mut streams);
            for job in &mut jobs {
                job.left.advance(piece(job));
            }
            for job in jobs.extract_if(.., |job| job.left.is_empty()) {
                let _ = job.done.send(job.md5); // Who asked may be gone.
            }
        }
    }
}

/// See the module. Its threads end when it is dropped.
pub struct Hashing {
    shared: Arc<Shared>,
}

impl Hashing {
    /// Threads for this machine, which use this kernel.
    pub fn start(kernel: Kernel) -> Result<Hashing> {
        let processors = std::thread::available_parallelism().map_or(1, |n| n.get());
        let threads = processors.div_ceil(PROCESSORS_EACH);
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue {
                working: threads,
                ..Queue::default()
            }),
            arrived: Condvar::new(),
            kernel,
            lanes: md5::lanes(kernel),
        });
        let hashing = Hashing { shared };
        for number in 0..threads {
            let shared = hashing.shared.clone();
            let thread = std::thread::Builder::new().name(format!("md5-{number}"));
            thread
                .spawn(move || shared.work_on())
                .map_err(|error| Error::Internal(format!("no thread for hashing: {error}")))?;
        }
        Ok(hashing)
    }

    /// Takes more bytes into an MD5.
    pub async fn update(&self, md5: Md5, bytes: Bytes) -> Result<Md5> {
        let (done, answer) = oneshot::channel();
        {
            let mut queue = self.shared.lock();
            queue.jobs.push_back(Job {
                md5,
                left: bytes,
                done,
            });
            if queue.working == 0 || queue.jobs.len() > queue.working * self.shared.lanes {
                self.shared.arrived.notify_one();
            }
        }
        let stopped = |_| Error::Internal("the thread that hashes stopped".into());
        answer.await.map_err(stopped)
    }
}

impl Drop for Hashing {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.arrived.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(seed: usize, len: usize) -> Bytes {
        (0..len)
            .map(|i| ((i * 31 + seed * 7) >> 3) as u8)
            .collect::<Vec<u8>>()
            .into()
    }

    /// Many uploads of different lengths, each in its own chunks, all at once: every digest is the one of its bytes alone.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn uploads_do_not_get_each_others_digests() {
        for kernel in Kernel::supported() {
            let hashing = Arc::new(Hashing::start(kernel).unwrap());
            let uploads = (0..40).map(|n| {
                let hashing = hashing.clone();
                tokio::spawn(async move {
                    let bytes = content(n, n * n * 331 % 300_000);
                    let mut md5 = Md5::new();
                    for chunk in bytes.chunks(1 + n * 4_099) {
                        md5 = hashing.update(md5, Bytes::copy_from_slice(chunk)).await.unwrap();
                    }
                    let mut alone = Md5::new();
                    alone.update(&bytes);
                    assert_eq!(md5.finish(), alone.finish(), "{kernel}, upload {n}");
                })
            });
            for upload in uploads.collect::<Vec<_>>() {
                upload.await.unwrap();
            }
        }
    }

    /// Nobody waits for an answer that cannot come.
    #[tokio::test]
    async fn a_request_that_leaves_leaves_nothing_behind() {
        let hashing = Hashing::start(Kernel::best()).unwrap();
        let left = hashing.update(Md5::new(), content(1, 8 << 20));
        assert!(
            tokio::time::timeout(std::time::Duration::ZERO, left)
                .await
                .is_err()
        );
        let md5 = hashing.update(Md5::new(), content(2, 100)).await.unwrap();
        let mut alone = Md5::new();
        alone.update(&content(2, 100));
        assert_eq!(md5.finish(), alone.finish());
        let shared = Arc::downgrade(&hashing.shared);
        drop(hashing);
        for _ in 0..1_000 {
            if shared.upgrade().is_none() {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("the threads did not end");
    }
}
