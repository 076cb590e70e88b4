//! Calls of many shards: that neighbours share reads and puts share batches, and that one that is wrong costs the others nothing.

use super::*;
use std::collections::BTreeSet;
use std::sync::Mutex;

const LEN: usize = 4096;
const COUNT: u64 = 200;

/// Where the device was read; and places whose reads fail.
#[derive(Default)]
struct Seen {
    reads: Mutex<Vec<std::ops::Range<u64>>>,
    bad: Mutex<Option<u64>>,
}

struct House {
    disk: SimulatedDisk,
    engine: Engine,
    seen: Arc<Seen>,
}

fn house() -> House {
    let disk = SimulatedDisk::new(64 << 20, 1);
    format_simulated(&disk, 4 << 20);
    let seen = Arc::<Seen>::default();
    let noted = seen.clone();
    let device = Tampered::over(&disk, move |offset, buf| {
        let read = offset..offset + buf.len() as u64;
        noted.reads.lock().unwrap().push(read.clone());
        match *noted.bad.lock().unwrap() {
            Some(bad) if read.contains(&bad) => Err(DeviceError {
                kind: DeviceErrorKind::Read,
                what: "a bad sector".into(),
            }),
            _ => Ok(()),
        }
    });
    House {
        engine: Engine::open(device).unwrap(),
        disk,
        seen,
    }
}

fn shard(blob: u64) -> SealedShard {
    let key = key(blob, 0);
    sealed(&unit(1), key, payload(&unit(1), key, 0, LEN))
}

/// As if they were put in an order that is not that of their names.
fn shuffled() -> Vec<u64> {
    (0..COUNT).map(|n| n * 77 % COUNT).collect()
}

impl House {
    fn fill(&self) {
        for blobs in shuffled().chunks(50) {
            let shards = blobs.iter().map(|blob| shard(*blob)).collect();
            let stored = block_on(self.engine.put_many(&unit(1), shards, DEADLINE)).unwrap();
            assert_eq!(stored, vec![Ok(()); 50]);
        }
    }

    /// Reads all; the names of those that were not right, which must say so.
    fn wrong(&self) -> Vec<(u64, NodeError)> {
        let keys: Vec<ShardKey> = (0..COUNT).map(|blob| key(blob, 0)).collect();
        let read = block_on(self.engine.get_many(&unit(1), &keys, DEADLINE)).unwrap();
        assert_eq!(read.len(), keys.len());
        let mut wrong = Vec::new();
        for (key, read) in keys.into_iter().zip(read) {
            match read {
                Ok(blocks) => {
                    assert!(verifies(&unit(1), key, &blocks));
                    assert_eq!(blocks.payload, shard(key.blob).payload);
                }
                Err(error) => wrong.push((key.blob, error)),
            }
        }
        wrong
    }
}

#[test]
fn neighbours_are_read_at_once_and_puts_share_batches() {
    let house = house();
    let before = house.engine.metrics();
    house.fill();
    let batches = house.engine.metrics().batches - before.batches;
    assert!(batches <= 4, "{batches} batches");
    house.seen.reads.lock().unwrap().clear();
    assert_eq!(house.wrong(), []);
    let reads = house.seen.reads.lock().unwrap().clone();
    assert!(reads.len() <= 2, "{reads:?}");
    assert_eq!(house.engine.metrics().gets - before.gets, COUNT);
    assert_eq!(house.engine.metrics().puts - before.puts, COUNT);
}

#[test]
fn what_lies_far_apart_is_not_read_for_what_lies_between() {
    let house = house();
    house.fill();
    house.seen.reads.lock().unwrap().clear();
    let wanted: BTreeSet<u64> = shuffled().into_iter().step_by(20).collect();
    let keys: Vec<ShardKey> = wanted.iter().map(|blob| key(*blob, 0)).collect();
    let read = block_on(house.engine.get_many(&unit(1), &keys, DEADLINE)).unwrap();
    assert!(read.iter().all(Result::is_ok));
    let reads = house.seen.reads.lock().unwrap().clone();
    let bytes: u64 = reads.iter().map(|read| read.end - read.start).sum();
    assert!(
        reads.len() == keys.len() && bytes <= keys.len() as u64 * 3 * LEN as u64,
        "{reads:?}"
    );
}

#[test]
fn a_record_that_is_wrong_spoils_no_other() {
    let house = house();
    house.fill();
    let (start, _) = offset_of(&house.engine, unit(1).unit, key(60, 0));
    house.disk.flip_bit(start + 100, 2);
    let wrong = house.wrong();
    assert!(
        matches!(wrong[..], [(60, NodeError::Corrupt { .. })]),
        "{wrong:?}"
    );
    house.disk.flip_bit(start + 100, 2);
    assert_eq!(house.wrong(), []);
}

#[test]
fn a_sector_that_cannot_be_read_costs_the_records_on_it_alone() {
    let house = house();
    house.fill();
    let (start, _) = offset_of(&house.engine, unit(1).unit, key(60, 0));
    *house.seen.bad.lock().unwrap() = Some(start + 2000);
    let wrong = house.wrong();
    assert!(wrong.iter().any(|(blob, _)| *blob == 60), "{wrong:?}");
    assert!(
        wrong.len() <= 2
            && wrong
                .iter()
                .all(|(_, error)| matches!(error, NodeError::Io { .. }))
    );
}

#[test]
fn what_does_not_fit_into_the_queue_is_refused_whole() {
    let house = house();
    let shards: Vec<SealedShard> = (0..crate::client::MANY_SHARDS_MAX as u64).map(shard).collect();
    // None of these is waited for until all are there.
    let to = unit(1);
    let calls = (0..6).map(|_| house.engine.put_many(&to, shards.clone(), DEADLINE));
    let done = block_on(futures::future::join_all(calls));
    let whole = |answers: &Vec<Result<(), NodeError>>| answers.iter().all(Result::is_ok);
    assert!(done.iter().any(|call| call.as_ref().is_ok_and(whole)));
    let refused = |call: &Result<_, NodeError>| *call == Err(NodeError::Overloaded);
    assert!(
        done.iter()
            .all(|call| refused(call) || call.as_ref().is_ok_and(whole))
    );
}
