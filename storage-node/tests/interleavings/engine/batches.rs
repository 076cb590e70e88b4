//! The flusher, between clients, a committer as small as can be, and a disk that answers in any order: nobody is told that a
//! record is durable before it is, and everybody is told something.

use super::flusher::{Admitted, Flusher, IN_FLIGHT_MAX, Pending, Started};
use super::index::{Extent, ExtentUse, Index};
use super::queue::{Change, Queue, Request};
use super::{ADDRESS, Shared, UNIT};
use crate::device::{Completer, Completion, DeviceError, DeviceErrorKind, completion};
use crate::explore;
use crate::format::record::{RecordHead, RecordKind, RecordPlace};
use crate::protocol::{NodeError, ShardKey};
use crate::sync::{Arc, Mutex, thread};
use shuttle::rand::Rng;
use shuttle::sync::RwLock;
use std::collections::BTreeSet;
use tokio::sync::oneshot;

/// Requests of each client.
const REQUESTS: u64 = 2;
const CLIENTS: u64 = 3;
const GENERATION: u64 = 9;

/// Of which blob, and what.
type Answer = (u64, Result<(), NodeError>);

#[derive(Default)]
struct Media {
    written: BTreeSet<u64>,
    durable: BTreeSet<u64>,
    flushes: u64,
    failed: Option<DeviceError>,
    /// This write fails.
    fails_at: Option<u64>,
}

/// A latched disk that answers writes and flushes in any order.
#[derive(Clone, Default)]
pub struct Disk(Arc<Mutex<Media>>);

impl Disk {
    fn is_durable(&self, blob: u64) -> bool {
        self.0.lock().unwrap().durable.contains(&blob)
    }

    /// Starts an operation, unless one has failed.
    fn start(&self, work: impl FnOnce(&Disk, Completer<()>) + Send + 'static) -> Completion<()> {
        if let Some(failure) = &self.0.lock().unwrap().failed {
            return Completion::ready(Err(failure.clone()));
        }
        let (completer, answer) = completion();
        let (disk, latch) = (self.clone(), self.clone());
        thread::spawn(move || work(&disk, completer));
        answer.on_failure(move |error| {
            latch.0.lock().unwrap().failed.get_or_insert(error.clone());
        })
    }

    fn write(&self, blob: u64) -> Completion<()> {
        self.start(move |disk, completer| {
            let fails = disk.0.lock().unwrap().fails_at == Some(blob);
            if fails {
                return completer.complete(Err(DeviceError::new(DeviceErrorKind::Write, "broken")));
            }
            disk.0.lock().unwrap().written.insert(blob);
            completer.complete(Ok(()));
        })
    }

    /// Covers the writes that were answered before it was asked for.
    pub fn flush(&self) -> Completion<()> {
        let covered = {
            let mut media = self.0.lock().unwrap();
            media.flushes += 1;
            media.written.clone()
        };
        self.start(move |disk, completer| {
            disk.0.lock().unwrap().durable.extend(covered);
            completer.complete(Ok(()));
        })
    }

    /// The same, waited for.
    pub fn flush_now(&self) -> Result<(), DeviceError> {
        self.flush().wait()
    }
}

fn shared(fails_at: Option<u64>) -> Arc<Shared> {
    let mut index = Index::default();
    index
        .extents
        .push(Extent::new(ExtentUse::Owned(UNIT), GENERATION, 4096));
    let disk = Disk::default();
    disk.0.lock().unwrap().fails_at = fails_at;
    Arc::new(Shared {
        queue: Queue::default(),
        index: RwLock::new(index),
        device: disk,
        metrics: Default::default(),
        fence: Mutex::new(None),
    })
}

fn key(blob: u64) -> ShardKey {
    ShardKey { blob, stripe: 0 }
}

fn head(blob: u64, sequence: u64, batch: u64) -> RecordHead {
    RecordHead {
        kind: RecordKind::Shard,
        unit: UNIT,
        key: key(blob),
        epoch: 1,
        sequence,
        batch,
        flushed: 0,
        place: RecordPlace {
            extent: 0,
            generation: GENERATION,
            offset: 4096 + sequence as u32 * 4096,
        },
        ordinal: sequence as u32,
        part_start: 4096,
        loose_start: 4096,
        payload_at: 256,
        next_at: 4096,
        len: 100,
        block_crcs: vec![0],
        digests: vec![[0; 32]; 6],
    }
}

/// Takes, writes, hands over: as `src/engine/committer.rs` does, without what it decides. The order in which it wrote.
fn commit(shared: &Arc<Shared>) -> Vec<u64> {
    let flusher = Flusher::start(shared.clone()).unwrap();
    let (mut in_flight, mut number, mut order) = (0, 1, Vec::new());
    let collect = |in_flight: &mut usize, most: usize| {
        while *in_flight > 0
            && let Some(_) = flusher.next_done(*in_flight > most).unwrap()
        {
            *in_flight -= 1;
        }
    };
    while let Some(requests) = shared.queue.take(2, usize::MAX, None) {
        collect(&mut in_flight, IN_FLIGHT_MAX - 1);
        let mut started = Started {
            number,
            writes: Vec::new(),
            bytes: 0,
            pending: Pending::default(),
        };
        for Request { change, reply, .. } in requests {
            let Change::Delete(blobs) = change else { continue };
            started.writes.push(shared.device.write(blobs[0]));
            started.pending.admitted.push(Admitted {
                reply,
                records: vec![head(blobs[0], order.len() as u64, number)],
            });
            order.push(blobs[0]);
        }
        in_flight += 1;
        number += 1;
        assert!(in_flight <= IN_FLIGHT_MAX);
        shared.queue.batch_started();
        assert!(flusher.hand_over(started));
    }
    collect(&mut in_flight, 0);
    order
}

/// Pushes its requests at once, and then hears of each.
fn client(shared: &Arc<Shared>, number: u64) -> thread::JoinHandle<Vec<Answer>> {
    let shared = shared.clone();
    thread::spawn(move || {
        let blobs = number * REQUESTS..(number + 1) * REQUESTS;
        let ask = |blob: u64| {
            let (reply, answer) = oneshot::channel();
            let request = Request {
                address: ADDRESS,
                change: Change::Delete(vec![blob]),
                reply,
                retried: false,
            };
            shared.queue.push(request).unwrap();
            (blob, answer)
        };
        let asked: Vec<_> = blobs.map(ask).collect();
        let hear = |(blob, answer): (u64, oneshot::Receiver<_>)| {
            let answer: Result<(), NodeError> =
                shuttle::future::block_on(answer).expect("everybody is answered");
            if answer.is_ok() {
                assert!(
                    shared.device.is_durable(blob),
                    "{blob} was acknowledged too early"
                );
                assert!(shared.index.read().unwrap().find(UNIT, key(blob)).is_some());
            }
            (blob, answer)
        };
        asked.into_iter().map(hear).collect()
    })
}

/// In which order it was written, and the answers.
fn run(shared: &Arc<Shared>) -> (Vec<u64>, Vec<Answer>) {
    let committing = shared.clone();
    let committer = thread::spawn(move || commit(&committing));
    let clients: Vec<_> = (0..CLIENTS).map(|number| client(shared, number)).collect();
    let answers = clients.into_iter().flat_map(|c| c.join().unwrap()).collect();
    shared.queue.close();
    (committer.join().unwrap(), answers)
}

#[test]
fn nothing_is_acknowledged_before_it_is_durable_and_everything_is() {
    explore(10_000, || {
        let shared = shared(None);
        let (order, answers) = run(&shared);
        assert_eq!(order.len() as u64, CLIENTS * REQUESTS);
        assert!(answers.iter().all(|(_, answer)| answer.is_ok()), "{answers:?}");
        let flushes = shared.device.0.lock().unwrap().flushes;
        assert_eq!(shared.metrics.batches.get(), flushes, "one flush for each batch");
    });
}

/// A failed write fails its batch and all behind it, and none before.
#[test]
fn after_a_failed_write_nothing_is_acknowledged() {
    explore(10_000, || {
        let fails_at = shuttle::rand::thread_rng().gen_range(0..CLIENTS * REQUESTS);
        let shared = shared(Some(fails_at));
        let (order, answers) = run(&shared);
        let failed = |blob: &u64| answers.iter().any(|(b, answer)| b == blob && answer.is_err());
        let place = order.iter().position(|blob| *blob == fails_at).unwrap();
        assert!(order[place..].iter().all(failed), "{order:?}: {answers:?}");
        let first = order.iter().position(failed).unwrap();
        assert!(order[first..].iter().all(failed), "{order:?}: {answers:?}");
        assert!(shared.fence.lock().unwrap().is_some());
    });
}
