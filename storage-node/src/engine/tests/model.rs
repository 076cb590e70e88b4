//! The engine against a map, with tiny extents: puts, re-puts, deletes, reads, drops, reopening, power cuts.
//!
//! The map holds, for each shard, every state that is allowed: after an acknowledged call there is one; after a call
//! that a crash cut off there are two, and whichever recovery shows is the one from then on.

use super::*;
use crate::device::simulated::SimulatedDisk;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};

pub const UNITS: u64 = 3;
const BLOBS: u64 = 40;

/// A version of a shard that the disk may hold, or none.
type State = Option<(u64, usize)>;

/// An engine, its disk, and what must be on it.
pub struct House {
    pub disk: SimulatedDisk,
    pub engine: Option<Engine>,
    pub rng: StdRng,
    allowed: BTreeMap<(u64, ShardKey), BTreeSet<State>>,
    first_blob: u64,
    version: u64,
    /// Faults may make shards unreadable; wrong bytes are never allowed.
    pub lossy: bool,
}

impl House {
    pub fn new(seed: u64, extents: u64, extent_size: u64) -> House {
        let disk = SimulatedDisk::new(extents * extent_size + 64 * 1024, seed);
        format_simulated(&disk, extent_size);
        let engine = Some(Engine::open(disk.device()).unwrap());
        let rng = StdRng::seed_from_u64(seed);
        House {
            disk,
            engine,
            rng,
            allowed: BTreeMap::new(),
            first_blob: 0,
            version: 0,
            lossy: false,
        }
    }

    pub fn engine(&self) -> &Engine {
        self.engine.as_ref().unwrap()
    }

    fn states(&mut self, volume: u64, key: ShardKey) -> &mut BTreeSet<State> {
        self.allowed
            .entry((volume, key))
            .or_insert_with(|| BTreeSet::from([None]))
    }

    fn some_key(&mut self) -> ShardKey {
        // Blob ids move on, as they do in a cluster: deleted ones are not used again.
        if self.rng.random_ratio(1, 20) {
            self.first_blob += 1;
        }
        key(
            self.first_blob + self.rng.random_range(0..BLOBS),
            self.rng.random_range(0..3),
        )
    }

    /// One random call. False when the machine crashed in it.
    pub fn step(&mut self) -> bool {
        let volume = self.rng.random_range(0..UNITS);
        match self.rng.random_range(0..100) {
            0..55 => self.put(volume),
            55..75 => self.delete(volume),
            75..76 => self.drop_unit(volume),
            76..97 => self.read(volume),
            _ => self.reopen(),
        }
    }

    fn put(&mut self, volume: u64) -> bool {
        let (to, key) = (unit(volume), self.some_key());
        self.version += 1;
        let sizes = [1, 63, 64, 500, 4095, 4096, 4097, 8000, 20000];
        let len = *sizes.choose(&mut self.rng).unwrap();
        let version = if self.lossy { 0 } else { self.version };
        let len = if self.lossy {
            sizes[(key.blob % 9) as usize]
        } else {
            len
        };
        let new = Some((version, len));
        match put(self.engine(), &to, key, payload(&to, key, version, len)) {
            Ok(()) => *self.states(volume, key) = BTreeSet::from([new]),
            Err(NodeError::Deleted | NodeError::NoSpace) => {}
            Err(NodeError::Fenced { .. }) => {
                self.states(volume, key).insert(new);
                return false;
            }
            Err(error) => panic!("put: {error}"),
        }
        true
    }

    fn delete(&mut self, volume: u64) -> bool {
        let blobs: Vec<u64> = (0..self.rng.random_range(1..6))
            .map(|_| self.some_key().blob)
            .collect();
        let result = delete(self.engine(), &unit(volume), &blobs);
        let named = self
            .allowed
            .iter_mut()
            .filter(|((v, k), _)| *v == volume && blobs.contains(&k.blob));
        match result {
            Ok(()) => named.for_each(|(_, states)| *states = BTreeSet::from([None])),
            Err(NodeError::Fenced { .. }) => {
                named.for_each(|(_, states)| states.extend([None]));
                return false;
            }
            Err(NodeError::NoSpace) if self.lossy => {}
            Err(error) => panic!("delete: {error}"),
        }
        true
    }

    fn drop_unit(&mut self, volume: u64) -> bool {
        let result = block_on(self.engine().drop_unit(&unit(volume), DEADLINE));
        let named = self.allowed.iter_mut().filter(|((v, _), _)| *v == volume);
        match result {
            Ok(()) => named.for_each(|(_, states)| *states = BTreeSet::from([None])),
            Err(NodeError::Fenced { .. }) => {
                named.for_each(|(_, states)| states.extend([None]));
                return false;
            }
            Err(NodeError::NoSpace) if self.lossy => {}
            Err(error) => panic!("drop: {error}"),
        }
        true
    }

    fn read(&mut self, volume: u64) -> bool {
        let key = self.some_key();
        self.check_one(volume, key)
    }

    fn reopen(&mut self) -> bool {
        self.engine = None;
        match Engine::open(self.disk.device()) {
            Ok(engine) => self.engine = Some(engine),
            Err(error) => {
                assert!(self.lossy || self.disk.is_crashed(), "open: {error}");
                return false;
            }
        }
        true
    }

    /// Reads a shard as a gateway does, and compares. False when the machine crashed.
    fn check_one(&mut self, volume: u64, key: ShardKey) -> bool {
        let from = unit(volume);
        let found = match get(self.engine(), &from, key) {
            Ok(blocks) if !verifies(&from, key, &blocks) => Err("a block CRC".to_string()),
            Ok(blocks) => Ok(Some(blocks.payload)),
            Err(NodeError::NotFound) => Ok(None),
            Err(_) if self.disk.is_crashed() => return false,
            Err(NodeError::Fenced { .. }) if self.lossy => return false,
            Err(error) => Err(error.to_string()),
        };
        let allowed = self.states(volume, key).clone();
        let matches = |state: &State, found: &Option<Bytes>| match (state, found) {
            (None, None) => true,
            (Some((version, len)), Some(found)) => *found == payload(&from, key, *version, *len),
            _ => false,
        };
        match found {
            Ok(found) => {
                let hit = allowed.iter().find(|state| matches(state, &found)).copied();
                // A lost write may lose a put or a delete; wrong bytes are another thing.
                let lost = self.lossy && found.is_none();
                let undeleted = self.lossy
                    && found.is_some()
                    && matches(
                        &Some((
                            0,
                            [1, 63, 64, 500, 4095, 4096, 4097, 8000, 20000][(key.blob % 9) as usize],
                        )),
                        &found,
                    );
                let found_len = found.map(|f| f.len());
                assert!(
                    hit.is_some() || lost || undeleted,
                    "{volume} {key:?}: {found_len:?} is none of {allowed:?}"
                );
                if let Some(hit) = hit {
                    *self.states(volume, key) = BTreeSet::from([hit]);
                }
            }
            Err(error) => assert!(self.lossy, "{volume} {key:?}: {error}"),
        }
        true
    }

    /// Compares everything; the inventory too.
    pub fn check(&mut self) -> bool {
        let keys: Vec<_> = self.allowed.keys().copied().collect();
        for (volume, key) in keys {
            if !self.check_one(volume, key) {
                return false;
            }
        }
        for volume in 0..UNITS {
            let Ok(listed) = self.engine().inventory(&unit(volume), None, 10_000) else {
                return false;
            };
            let listed: BTreeMap<_, _> = listed.iter().map(|e| (e.key, e.len as usize)).collect();
            let live = |states: &BTreeSet<State>| states.first().copied().flatten().map(|(_, len)| len);
            let of_volume = self.allowed.iter().filter(|((v, _), _)| *v == volume);
            let expected: BTreeMap<_, _> = of_volume
                .filter_map(|((_, key), states)| Some((*key, live(states)?)))
                .collect();
            assert!(
                self.lossy || listed == expected,
                "inventory of {volume}: {listed:?}, not {expected:?}"
            );
        }
        true
    }

    /// Cuts the power and recovers, crashing `again` operations into the first recovery when given; then recovers once
    /// more and compares.
    pub fn power_cut(&mut self, again: Option<u64>) {
        self.engine = None;
        self.disk.reboot();
        if let Some(after) = again {
            self.disk.crash_after(after);
            drop(Engine::open(self.disk.device()));
            self.disk.reboot();
        }
        let first = Engine::open(self.disk.device()).unwrap();
        let contents = snapshot(&first);
        drop(first);
        self.disk.reboot();
        let second = Engine::open(self.disk.device()).unwrap();
        assert_eq!(contents, snapshot(&second), "a second recovery decides otherwise");
        assert_eq!(second.status().corrupt_shards, 0, "a power cut is no rot");
        self.engine = Some(second);
    }
}

type Snapshot = Vec<(UnitId, ShardKey, Result<ShardBlocks, NodeError>)>;

/// What an engine holds, without places: compaction may move things.
fn snapshot(engine: &Engine) -> Snapshot {
    let shards: Vec<(UnitAddress, ShardKey)> = {
        let index = engine.shared.index();
        let all = index.units.iter().flat_map(|(id, unit)| {
            let address = UnitAddress {
                unit: *id,
                epoch: unit.epoch,
                ..self::unit(id.volume)
            };
            let keys = unit.shards.range(Bound::Unbounded);
            keys.map(move |(key, _)| (address, key))
        });
        all.collect()
    };
    let read = |(from, key): (UnitAddress, ShardKey)| (from.unit, key, get(engine, &from, key));
    shards.into_iter().map(read).collect()
}

#[test]
fn random_calls_match_the_model() {
    for seed in seeds(30) {
        println!("CAIRN_TEST_SEED={seed}");
        let mut house = House::new(seed, 24, 64 * 1024);
        for _ in 0..400 {
            assert!(house.step());
        }
        assert!(house.check());
        house.reopen();
        assert!(house.check());
    }
}
