//! The index lock: puts, deletes, compaction and readers over the real index and a disk of a few places, each step as the engine
//! takes it. What is real is `Index`; readers follow `engine/reader.rs` (look up and pin, read, check the head, look up again),
//! compaction follows `engine/compaction.rs` (copies durable, compare-and-swap, free, reuse when its readers have left).
//!
//! Harder than the engine, which moves nothing while a batch is in flight: here puts and deletes become durable at any moment.

use super::UNIT;
use super::index::{Entry, Extent, ExtentUse, Index, Mark};
use crate::explore;
use crate::format::extent::SYSTEM_UNIT;
use crate::format::record::{RecordHead, RecordKind, RecordPlace};
use crate::protocol::ShardKey;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Arc, Mutex, thread};
use shuttle::sync::RwLock;
use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;

/// Extents: of tombstones, for puts, two that are emptied into one another.
const SYSTEM: u32 = 0;
const PUTS: u32 = 1;
const MOVED: [u32; 2] = [2, 3];
const DATA_START: u32 = 4096;
const STEP: u32 = 4096;
const LEN: u32 = 100;
const DIGESTS: u8 = 6;
/// How often a reader follows a record that moves, as the engine's.
const ATTEMPTS: usize = 4;
const KEYS: [u64; 2] = [10, 20];

/// What a head and its payload say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Record {
    place: RecordPlace,
    blob: u64,
    sequence: u64,
}

struct House {
    index: RwLock<Index>,
    /// What is on the disk, by extent and offset.
    media: Mutex<HashMap<(u32, u32), Record>>,
    /// Requests that became durable, and those that were begun.
    acknowledged: BTreeMap<u64, AtomicU64>,
    begun: BTreeMap<u64, AtomicU64>,
    deleted: AtomicBool,
}

fn key(blob: u64) -> ShardKey {
    ShardKey { blob, stripe: 0 }
}

fn place(extent: u32, generation: u64, number: u32) -> RecordPlace {
    RecordPlace {
        extent,
        generation,
        offset: DATA_START + number * STEP,
    }
}

fn entry(place: RecordPlace) -> Entry {
    Entry::at(place, LEN, DIGESTS)
}

fn tombstone(blob: u64, sequence: u64) -> Mark {
    Mark::of(&RecordHead {
        kind: RecordKind::Tombstone,
        unit: UNIT,
        key: key(blob),
        epoch: 1,
        sequence,
        batch: 1,
        flushed: 0,
        place: place(SYSTEM, 1, sequence as u32),
        ordinal: 0,
        part_start: DATA_START,
        loose_start: DATA_START,
        payload_at: 256,
        next_at: 256,
        len: 0,
        block_crcs: Vec::new(),
        digests: Vec::new(),
    })
}

impl House {
    /// Each key has a record in the extent that is emptied first.
    fn new() -> Arc<House> {
        let mut index = Index::default();
        let extent = |used, generation| Extent::new(used, generation, DATA_START);
        index.extents = vec![
            extent(ExtentUse::Owned(SYSTEM_UNIT), 1),
            extent(ExtentUse::Owned(UNIT), 2),
            extent(ExtentUse::Owned(UNIT), 3),
            extent(ExtentUse::Free, 0),
        ];
        let house = House {
            index: RwLock::new(index),
            media: Mutex::new(HashMap::new()),
            acknowledged: KEYS.map(|blob| (blob, AtomicU64::new(1))).into(),
            begun: KEYS.map(|blob| (blob, AtomicU64::new(1))).into(),
            deleted: AtomicBool::new(false),
        };
        for (number, blob) in KEYS.into_iter().enumerate() {
            let place = place(MOVED[0], 3, number as u32);
            house.write(place, blob, 1);
            let mut index = house.index.write().unwrap();
            index.insert(UNIT, key(blob), entry(place), 1, 1);
        }
        Arc::new(house)
    }

    fn write(&self, place: RecordPlace, blob: u64, sequence: u64) {
        let record = Record {
            place,
            blob,
            sequence,
        };
        self.media
            .lock()
            .unwrap()
            .insert((place.extent, place.offset), record);
    }

    fn read(&self, place: RecordPlace) -> Option<Record> {
        self.media
            .lock()
            .unwrap()
            .get(&(place.extent, place.offset))
            .copied()
    }

    /// Puts a key again: the record, the flush, then the index.
    fn put(&self, blob: u64, sequence: u64, number: u32) {
        self.begun[&blob].store(sequence, Ordering::SeqCst);
        let place = place(PUTS, 2, number);
        self.write(place, blob, sequence);
        self.index
            .write()
            .unwrap()
            .insert(UNIT, key(blob), entry(place), sequence, 1);
        self.acknowledged[&blob].store(sequence, Ordering::SeqCst);
    }

    fn delete(&self, blob: u64, sequence: u64) {
        self.deleted.store(true, Ordering::SeqCst);
        let mark = tombstone(blob, sequence);
        self.index.write().unwrap().delete_blob(UNIT, blob, mark);
    }

    /// The sequence of the record that a reader gets; none when there is no such shard.
    fn get(&self, blob: u64) -> Option<u64> {
        let mut failed: Option<Entry> = None;
        for _ in 0..ATTEMPTS {
            let (entry, pin) = {
                let index = self.index.read().unwrap();
                let entry = index.find(UNIT, key(blob))?;
                (entry, index.extents[entry.place.extent as usize].pin.clone())
            };
            let found = self.read(entry.place);
            let right = found.filter(|found| found.place == entry.place && found.blob == blob);
            // What was checked stays right while the blocks are read.
            let again = right.is_some().then(|| self.read(entry.place));
            drop(pin);
            match right {
                Some(record) => {
                    assert_eq!(again, Some(Some(record)), "it was written over while it was read");
                    return Some(record.sequence);
                }
                None => {
                    let before = failed.replace(entry);
                    assert_ne!(before, Some(entry), "blob {blob} would be called corrupt");
                }
            }
        }
        panic!("blob {blob} moved too often");
    }

    /// What it gets is no older than what was acknowledged before, and no newer than what was begun since.
    fn check(&self, blob: u64) {
        let before = self.acknowledged[&blob].load(Ordering::SeqCst);
        let found = self.get(blob);
        let after = self.begun[&blob].load(Ordering::SeqCst);
        match found {
            Some(sequence) => assert!(
                (before..=after).contains(&sequence),
                "{before} {sequence} {after}"
            ),
            None => assert!(
                self.deleted.load(Ordering::SeqCst) && blob == KEYS[0],
                "{blob} is lost"
            ),
        }
    }

    /// Moves what is live in an extent to another one, and frees it.
    fn compact(&self, victim: u32, to: u32, generation: u64) {
        {
            let mut index = self.index.write().unwrap();
            let pin = index.extents[to as usize].pin.clone();
            let fresh = Extent::new(ExtentUse::Owned(UNIT), generation, DATA_START);
            index.extents[to as usize] = Extent { pin, ..fresh };
        }
        let live: Vec<_> = {
            let index = self.index.read().unwrap();
            let all = index.shards(UNIT, Bound::Unbounded);
            all.filter(|(_, entry)| entry.place.extent == victim).collect()
        };
        for (number, (key, from)) in live.into_iter().enumerate() {
            if self.index.read().unwrap().find(UNIT, key) != Some(from) {
                continue;
            }
            let record = self.read(from.place).unwrap();
            let copy = place(to, generation, number as u32);
            self.write(copy, key.blob, record.sequence);
            let mut index = self.index.write().unwrap();
            index.relocate(UNIT, key, from.place, entry(copy), record.sequence);
        }
        let mut index = self.index.write().unwrap();
        assert_eq!(index.extents[victim as usize].live, 0, "what was live was moved");
        index.free(victim, DATA_START);
    }

    /// Makes a freed extent usable again. Says whether its readers have left.
    fn reclaim(&self, number: u32) -> bool {
        let mut index = self.index.write().unwrap();
        let extent = &mut index.extents[number as usize];
        let drained = Arc::strong_count(&extent.pin) == 1;
        if drained {
            extent.used = ExtentUse::Free;
        }
        drained
    }

    /// There and back again, so that places are written over.
    fn compact_twice(&self) {
        self.compact(MOVED[0], MOVED[1], 10);
        while !self.reclaim(MOVED[0]) {
            thread::yield_now();
        }
        self.compact(MOVED[1], MOVED[0], 11);
    }

    /// The counts of every extent are those of what is live in it.
    fn check_counts(&self) {
        let index = self.index.read().unwrap();
        let mut live = vec![(0, 0); index.extents.len()];
        for (_, entry) in index.shards(UNIT, Bound::Unbounded) {
            let counts = &mut live[entry.place.extent as usize];
            *counts = (counts.0 + 1, counts.1 + entry.footprint());
        }
        for number in [PUTS, MOVED[0], MOVED[1]] {
            let extent = &index.extents[number as usize];
            assert_eq!(
                (extent.live, extent.live_bytes),
                live[number as usize],
                "extent {number}"
            );
        }
        let is_needed = index
            .tombstones
            .get(&(UNIT, KEYS[0]))
            .is_some_and(Mark::is_needed);
        let is_there = index
            .extents
            .iter()
            .any(|extent| extent.dead_blobs.contains(&KEYS[0]));
        assert_eq!(is_needed, is_there && self.deleted.load(Ordering::SeqCst));
    }
}

#[test]
fn readers_meet_every_record_while_it_is_put_again_deleted_and_moved() {
    explore(20_000, || {
        let house = House::new();
        let run = |work: fn(&House)| {
            let house = house.clone();
            thread::spawn(move || work(&house))
        };
        let threads = [
            run(House::compact_twice),
            // One thread changes the index after flushes, in the order of sequences.
            run(|house| {
                house.put(KEYS[1], 5, 0);
                house.put(KEYS[0], 6, 1);
                house.delete(KEYS[0], 7);
                house.put(KEYS[1], 8, 2);
            }),
            run(|house| KEYS.iter().cycle().take(6).for_each(|blob| house.check(*blob))),
            run(|house| KEYS.iter().rev().for_each(|blob| house.check(*blob))),
        ];
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(house.get(KEYS[0]), None, "a moved record does not come back");
        assert_eq!(house.get(KEYS[1]), Some(8));
        house.check_counts();
    });
}
