//! Clients beside a rebuild: a few that read somewhere, one that writes small objects, each with a pause between its requests, as
//! a cluster has that is not at its limit. How long they waited is what matters.

use crate::Result;
use crate::cluster::{self, Cluster};
use rand::Rng;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

const READERS: usize = 4;
const READ_BYTES: u64 = 64 << 10;
const WRITTEN_BYTES: usize = 4 << 10;
const PAUSE: Duration = Duration::from_millis(3);
/// Numbers of objects that were not there before.
const FIRST_NEW: u64 = 1 << 40;

/// What clients waited for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Waited {
    /// The median and the 99th percentile of reads.
    pub reads: [Duration; 2],
    /// The same of writes.
    pub writes: [Duration; 2],
    /// How many requests there were.
    pub requests: usize,
}

/// Running clients.
pub struct Clients {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<Result<()>>>,
    times: Arc<[Mutex<Vec<Duration>>; 2]>,
}

static NEXT_NEW: AtomicU64 = AtomicU64::new(FIRST_NEW);

impl Clients {
    /// Starts them on a cluster that has so many objects of so many bytes.
    pub fn start(cluster: &Cluster, objects: u64, object_bytes: u64) -> Clients {
        let stop = Arc::<AtomicBool>::default();
        let times = Arc::<[Mutex<Vec<Duration>>; 2]>::default();
        let mut tasks = Vec::new();
        for reader in 0..=READERS {
            let (gateway, stop, times) = (cluster.gateway().clone(), stop.clone(), times.clone());
            tasks.push(cluster.runtime().spawn(async move {
                let kind = usize::from(reader == READERS);
                while !stop.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    if kind == 1 {
                        let number = NEXT_NEW.fetch_add(1, Ordering::Relaxed);
                        cluster::put(&gateway, number, WRITTEN_BYTES).await?;
                    } else {
                        let (number, block) = {
                            let mut random = rand::rng();
                            let blocks = object_bytes / READ_BYTES;
                            (random.random_range(0..objects), random.random_range(0..blocks))
                        };
                        let got = cluster::get(&gateway, number, block * READ_BYTES, READ_BYTES).await?;
                        if got != READ_BYTES {
                            return Err(format!("a read of {got} bytes").into());
                        }
                    }
                    times[kind]
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(began.elapsed());
                    tokio::time::sleep(PAUSE).await;
                }
                Ok(())
            }));
        }
        Clients { stop, tasks, times }
    }

    /// Forgets what they waited for so far.
    pub fn begin(&self) {
        for times in &*self.times {
            times.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
    }

    /// What they waited for since.
    pub fn waited(&self) -> Waited {
        let sorted = self.times.each_ref().map(|times| {
            let mut times = times.lock().unwrap_or_else(PoisonError::into_inner).clone();
            times.sort_unstable();
            times
        });
        let at = |times: &[Duration], percent: usize| {
            let last = times.len().saturating_sub(1);
            times.get(last * percent / 100).copied().unwrap_or_default()
        };
        let both = |times: &[Duration]| [at(times, 50), at(times, 99)];
        Waited {
            reads: both(&sorted[0]),
            writes: both(&sorted[1]),
            requests: sorted.iter().map(Vec::len).sum(),
        }
    }

    /// Ends them; an error if one of them failed.
    pub fn stop(self, cluster: &Cluster) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            cluster.runtime().block_on(task)??;
        }
        Ok(())
    }
}
