//! Batches that overlap: power cuts while one is flushed and the next is written, and what requests behind one in flight see.

use super::*;
use crate::device::simulated::SimulatedDisk;
use futures::future::join_all;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};

/// A device whose flush takes a while: what is written meanwhile is not covered by it.
struct SlowFlush(Arc<dyn Device>, Duration);

impl Device for SlowFlush {
    fn info(&self) -> &DeviceInfo {
        self.0.info()
    }
    fn read(&self, offset: u64, buf: AlignedBuf) -> Completion<AlignedBuf> {
        self.0.read(offset, buf)
    }
    fn write_parts(&self, offset: u64, parts: Vec<AlignedBytes>) -> Completion<()> {
        self.0.write_parts(offset, parts)
    }
    fn flush(&self) -> Completion<()> {
        let flushed = self.0.flush().wait();
        std::thread::sleep(self.1);
        Completion::ready(flushed)
    }
    fn allocate(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        self.0.allocate(offset, len)
    }
    fn check(&self) -> Result<(), DeviceError> {
        self.0.check()
    }
}

fn open(disk: &SimulatedDisk, flush: Duration) -> Result<Engine, String> {
    Engine::open(Arc::new(SlowFlush(disk.device(), flush)))
}

const SHORT: Duration = Duration::from_micros(300);

type Key = (u64, ShardKey);

/// What must be on the disk: for each shard the lengths that are allowed, 0 for none.
#[derive(Default)]
struct Allowed(BTreeMap<Key, BTreeSet<usize>>);

impl Allowed {
    fn check(&self, engine: &Engine) {
        for (&(volume, key), lens) in &self.0 {
            let from = unit(volume);
            let found = match get(engine, &from, key) {
                Ok(blocks) => {
                    assert!(verifies(&from, key, &blocks));
                    assert_eq!(blocks.payload, payload(&from, key, 0, blocks.payload.len()));
                    blocks.payload.len()
                }
                Err(NodeError::NotFound) => 0,
                Err(error) => panic!("{volume} {key:?}: {error}"),
            };
            assert!(
                lens.contains(&found),
                "{volume} {key:?}: {found} is none of {lens:?}"
            );
        }
    }
}

/// Twelve requests at once, again and again, until the power goes. Says whether it did, and how often batches overlapped.
fn load(engine: &Engine, rng: &mut StdRng, allowed: &mut Allowed, first: u64, rounds: u64) -> bool {
    for round in 0..rounds {
        let deletes: Vec<Key> = allowed
            .0
            .keys()
            .filter(|_| rng.random_ratio(1, 12))
            .copied()
            .take(3)
            .collect();
        let puts: Vec<(Key, usize)> = (0..9)
            .map(|number| {
                let key = key(first + round * 9 + number, rng.random_range(0..2));
                let len = [40, 700, 4096, 33_000, 40_000][rng.random_range(0..5)];
                ((rng.random_range(0..3), key), len)
            })
            .collect();
        let put = puts.iter().map(|&((volume, key), len)| async move {
            let to = unit(volume);
            let shard = sealed(&to, key, payload(&to, key, 0, len));
            engine.put(&to, shard, DEADLINE).await
        });
        let delete = deletes.iter().map(|(volume, key)| {
            let (from, blobs) = (unit(*volume), [key.blob]);
            async move { engine.delete(&from, &blobs, DEADLINE).await }
        });
        let (put, deleted) = block_on(async { futures::join!(join_all(put), join_all(delete)) });
        for (&(key, len), answer) in puts.iter().zip(&put) {
            let lens = allowed.0.entry(key).or_insert_with(|| BTreeSet::from([0]));
            match answer {
                Ok(()) => *lens = BTreeSet::from([len]),
                Err(NodeError::NoSpace) => {}
                Err(_) => _ = lens.insert(len),
            }
        }
        for ((volume, key), answer) in deletes.iter().zip(&deleted) {
            let same_blob = allowed
                .0
                .iter_mut()
                .filter(|((v, k), _)| (v, k.blob) == (volume, key.blob));
            for (_, lens) in same_blob {
                match answer {
                    Ok(()) => *lens = BTreeSet::from([0]),
                    Err(_) => _ = lens.insert(0),
                }
            }
        }
        if put
            .iter()
            .chain(&deleted)
            .any(|a| matches!(a, Err(NodeError::Fenced { .. })))
        {
            return true;
        }
    }
    false
}

#[test]
fn a_power_cut_between_two_batches_loses_nothing_acknowledged() {
    let mut cuts = 0;
    for seed in seeds(250) {
        println!("CAIRN_TEST_SEED={seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let disk = SimulatedDisk::new(8 << 20, seed);
        format_simulated(&disk, 256 * 1024);
        let mut allowed = Allowed::default();
        for life in 0..3 {
            let engine = open(&disk, SHORT).unwrap();
            disk.crash_after(rng.random_range(0..60));
            cuts += u64::from(load(&engine, &mut rng, &mut allowed, life * 1_000, 6));
            drop(engine);
            disk.reboot();
            if rng.random_ratio(1, 3) {
                // And again while it recovers.
                disk.crash_after(rng.random_range(0..40));
                drop(open(&disk, SHORT));
                disk.reboot();
            }
            let engine = open(&disk, SHORT).unwrap();
            allowed.check(&engine);
            assert_eq!(engine.status().corrupt_shards, 0, "a power cut is no rot");
            // What is there now stays, whichever it was.
            for (&(volume, key), lens) in &mut allowed.0 {
                let len = get(&engine, &unit(volume), key).map_or(0, |found| found.payload.len());
                *lens = BTreeSet::from([len]);
            }
        }
    }
    assert!(
        cuts > 200 || std::env::var_os("CAIRN_TEST_SEED").is_some(),
        "{cuts} cuts"
    );
}

/// A put of a blob that is being deleted is refused, and so is one to a unit that is being dropped at a later epoch.
#[test]
fn requests_see_what_is_decided_in_a_batch_that_is_not_flushed_yet() {
    let disk = SimulatedDisk::new(8 << 20, 1);
    format_simulated(&disk, 256 * 1024);
    let engine = open(&disk, Duration::from_millis(30)).unwrap();
    let (to, newer) = (unit(1), UnitAddress { epoch: 5, ..unit(2) });
    let put = |to: UnitAddress, blob: u64| {
        // Large enough to be written beside a batch in flight.
        let key = key(blob, 0);
        let shard = sealed(&to, key, payload(&to, key, 0, 40_000));
        let engine = &engine;
        async move { engine.put(&to, shard, DEADLINE).await }
    };
    let later = |put| async {
        tokio::time::sleep(Duration::from_millis(10)).await;
        put.await
    };
    block_on(async {
        for blob in 0..5 {
            let (deleted, late) = futures::join!(
                engine.delete(&to, std::slice::from_ref(&blob), DEADLINE),
                later(put(to, blob)),
            );
            assert_eq!((deleted, late), (Ok(()), Err(NodeError::Deleted)));
        }
        let (dropped, stale) = futures::join!(engine.drop_unit(&newer, DEADLINE), later(put(unit(2), 1)));
        assert_eq!(
            (dropped, stale),
            (Ok(()), Err(NodeError::StaleEpoch { current: 5 }))
        );
    });
}

/// A put that waits behind a flush when its time is over is not begun, and one that a batch has is done all the same. Whoever comes
/// with no time left is refused at once.
#[test]
fn what_waits_when_its_time_is_over_is_not_begun() {
    let disk = SimulatedDisk::new(16 << 20, 1);
    format_simulated(&disk, 1 << 20);
    let engine = open(&disk, Duration::from_millis(300)).unwrap();
    let (to, len) = (unit(1), 3000);
    let put_within = |blob: u64, patience: Duration| {
        let shard = sealed(&to, key(blob, 0), payload(&to, key(blob, 0), 0, len));
        engine.put(&to, shard, patience)
    };
    let (first, second) = block_on(async {
        let first = put_within(1, Duration::from_millis(100));
        let second = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            put_within(2, Duration::from_millis(100)).await
        };
        futures::join!(first, second)
    });
    assert_eq!(
        (first, second),
        (Err(NodeError::Timeout), Err(NodeError::Timeout))
    );
    // Its flush covers whatever came before it.
    put(&engine, &to, key(3, 0), payload(&to, key(3, 0), 0, len)).unwrap();
    assert!(get(&engine, &to, key(1, 0)).is_ok());
    assert!(matches!(get(&engine, &to, key(2, 0)), Err(NodeError::NotFound)));
    let puts = engine.metrics().puts;
    assert_eq!(block_on(put_within(4, Duration::ZERO)), Err(NodeError::Timeout));
    let read = engine.get(&to, key(3, 0), BlockRange::ALL, Duration::ZERO);
    assert_eq!(block_on(read), Err(NodeError::Timeout));
    assert_eq!(engine.metrics().puts, puts);
}
