//! A disk, its engine, and a map of what must be on it; calls are plain data ([`Operation`]), drawn or shrunk by whoever tests.
//!
//! The map holds, for each shard, every state that is allowed: after an acknowledged call there is one; after a call
//! that a crash cut off there are two, and whichever recovery shows is the one from then on.
//!
//! Whatever the calls are, two things are watched at the device ([`Watch`]): no write touches a record that the index
//! names, and the index names nothing that a power cut would take.

use super::*;
use crate::device::simulated::{Fault, SimulatedDisk, Unflushed};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Weak;

pub const UNITS: u64 = 3;
const BLOBS: u64 = 40;
/// Around the sizes of sectors and blocks.
const LENGTHS: [usize; 10] = [1, 63, 64, 65, 500, 4095, 4096, 4097, 8000, 20000];

/// A version of a shard that the disk may hold, or none.
type State = Option<(u64, usize)>;

/// A call, or what happens to the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    Put {
        volume: u64,
        key: ShardKey,
        len: usize,
    },
    Delete {
        volume: u64,
        blobs: Vec<u64>,
    },
    DropUnit {
        volume: u64,
    },
    /// Puts and deletes at once, so that they share a batch. Those that concern the same blob are left out.
    Together(Vec<Operation>),
    Read {
        volume: u64,
        key: ShardKey,
        range: BlockRange,
    },
    /// Compares the inventories.
    List,
    /// Puts until there is no space.
    Fill {
        volume: u64,
        len: usize,
    },
    /// Reads all of the disk and finds nothing wrong.
    Verify,
    /// A clean stop and start.
    Reopen,
    /// From now on a write or flush error may fence the disk; then it is opened again.
    Fail(Fault),
    /// The operation of the device that is so many from now crashes.
    Cut(Cut),
}

/// A crash, and what comes after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// How many operations of the device later.
    pub after: u64,
    /// What becomes of what was not flushed.
    pub unflushed: Unflushed,
    /// So many operations into the first recovery there is another crash.
    pub again: Option<u64>,
}

/// What was done and what went wrong, over all the houses that share it.
#[derive(Debug, Default)]
pub struct Counts {
    pub operations: AtomicU64,
    pub crashes: AtomicU64,
    pub recoveries: AtomicU64,
    pub lost: AtomicU64,
    pub resurrected: AtomicU64,
    pub wrong_bytes: AtomicU64,
    /// Of a full disk.
    pub refused_deletes: AtomicU64,
}

impl Counts {
    pub fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        write!(
            f,
            "{} model operations, {} crash points, {} recoveries; {} lost acknowledged records, {} resurrections, {} wrong bytes, {} refused deletes",
            of(&self.operations),
            of(&self.crashes),
            of(&self.recoveries),
            of(&self.lost),
            of(&self.resurrected),
            of(&self.wrong_bytes),
            of(&self.refused_deletes)
        )
    }
}

/// An engine, its disk, and what must be on it.
pub struct House {
    pub disk: SimulatedDisk,
    pub engine: Option<Engine>,
    pub rng: StdRng,
    pub counts: Arc<Counts>,
    watch: Arc<Watch>,
    allowed: BTreeMap<(u64, ShardKey), BTreeSet<State>>,
    /// Blobs that somebody tried to delete.
    deleted: BTreeSet<(u64, u64)>,
    first_blob: u64,
    version: u64,
    pending_cut: Option<Cut>,
    /// A fault is armed that may fence the disk.
    failing: bool,
    /// How long changes may take.
    pub deadline: Duration,
    /// Reads may fail or come back damaged, and what is on the disk is right.
    pub misreads: bool,
    /// Faults may lose shards, or bring them back; wrong bytes are never allowed.
    pub lossy: bool,
}

impl House {
    pub fn new(seed: u64, extents: u64, extent_size: u64) -> House {
        let disk = SimulatedDisk::new(extents * extent_size + 64 * 1024, seed);
        format_simulated(&disk, extent_size);
        let mut house = House {
            watch: Watch::over(&disk),
            disk,
            engine: None,
            rng: StdRng::seed_from_u64(seed),
            counts: Arc::default(),
            allowed: BTreeMap::new(),
            deleted: BTreeSet::new(),
            first_blob: 0,
            version: 0,
            pending_cut: None,
            failing: false,
            deadline: DEADLINE,
            misreads: false,
            lossy: false,
        };
        house.engine = Some(house.open().unwrap());
        house
    }

    pub fn engine(&self) -> &Engine {
        self.engine.as_ref().unwrap()
    }

    /// Opens the disk, watched.
    pub fn open(&self) -> Result<Engine, String> {
        Counts::add(&self.counts.recoveries);
        let engine = Engine::open(self.watch.clone())?;
        *self.watch.shared.lock().unwrap() = Arc::downgrade(&engine.shared);
        Ok(engine)
    }

    fn states(&mut self, volume: u64, key: ShardKey) -> &mut BTreeSet<State> {
        self.allowed
            .entry((volume, key))
            .or_insert_with(|| BTreeSet::from([None]))
    }

    /// The acknowledged shards of which there is one state, and it is there.
    pub fn certain(&self) -> Vec<(u64, ShardKey)> {
        let certain = |states: &BTreeSet<State>| states.len() == 1 && !states.contains(&None);
        let all = self.allowed.iter().filter(|(_, states)| certain(states));
        all.map(|(shard, _)| *shard).collect()
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

    /// A random call.
    pub fn draw(&mut self) -> Operation {
        let volume = self.rng.random_range(0..UNITS);
        match self.rng.random_range(0..100) {
            0..42 => self.draw_put(volume),
            42..50 => Operation::Together(
                (0..self.rng.random_range(2..8))
                    .map(|_| self.draw_change())
                    .collect(),
            ),
            50..70 => self.draw_delete(volume),
            70..71 => Operation::DropUnit { volume },
            71..95 => Operation::Read {
                volume,
                key: self.some_key(),
                range: BlockRange::ALL,
            },
            95..97 => Operation::List,
            _ => Operation::Reopen,
        }
    }

    fn draw_change(&mut self) -> Operation {
        let volume = self.rng.random_range(0..UNITS);
        match self.rng.random_ratio(1, 4) {
            true => self.draw_delete(volume),
            false => self.draw_put(volume),
        }
    }

    fn draw_put(&mut self, volume: u64) -> Operation {
        let (key, len) = (self.some_key(), *LENGTHS.choose(&mut self.rng).unwrap());
        Operation::Put { volume, key, len }
    }

    fn draw_delete(&mut self, volume: u64) -> Operation {
        let count = self.rng.random_range(1..6);
        let blobs = (0..count).map(|_| self.some_key().blob).collect();
        Operation::Delete { volume, blobs }
    }

    /// One random call. False when the disk went out of service in it.
    pub fn step(&mut self) -> bool {
        let operation = self.draw();
        self.apply(&operation)
    }

    /// Makes a call and compares. False when the disk is out of service, as it may be.
    pub fn apply(&mut self, operation: &Operation) -> bool {
        Counts::add(&self.counts.operations);
        match operation {
            Operation::Put { .. } | Operation::Delete { .. } | Operation::DropUnit { .. } => {
                self.change(std::slice::from_ref(operation))
            }
            Operation::Together(operations) => {
                Counts::add(&self.counts.operations);
                self.change(&apart(operations))
            }
            Operation::Read { volume, key, range } => self.check_one(*volume, *key, *range),
            Operation::List => self.check_inventories(),
            Operation::Fill { volume, len } => self.fill(*volume, *len),
            Operation::Verify => self.verify(),
            Operation::Reopen => self.reopen(),
            Operation::Fail(fault) => {
                self.failing = true;
                self.disk.arm(*fault);
                true
            }
            Operation::Cut(cut) => {
                let before = self.pending_cut.is_some();
                if before {
                    self.recover();
                }
                self.disk.crash_after(cut.after);
                self.pending_cut = Some(*cut);
                true
            }
        }
    }

    /// Applies all of it, recovering where the disk goes out of service, and compares everything.
    pub fn run(&mut self, operations: &[Operation]) {
        for operation in operations {
            if !self.apply(operation) {
                self.recover();
            }
        }
        if self.pending_cut.is_some() {
            self.recover();
        }
        while !self.check() {
            self.recover();
        }
    }

    /// Whether the disk may be out of service now.
    fn may_fail(&self) -> bool {
        self.lossy || self.failing || self.disk.is_crashed()
    }

    fn change(&mut self, operations: &[Operation]) -> bool {
        let versions: Vec<u64> = operations.iter().map(|_| self.next_version()).collect();
        let (lossy, deadline) = (self.lossy, self.deadline);
        let results = {
            let engine = self.engine();
            let call = async |operation: &Operation, version: u64| match operation {
                Operation::Put { volume, key, len } => {
                    let (to, (version, len)) = (unit(*volume), written(lossy, version, *key, *len));
                    let shard = sealed(&to, *key, payload(&to, *key, version, len));
                    engine.put(&to, shard, deadline).await
                }
                Operation::Delete { volume, blobs } => engine.delete(&unit(*volume), blobs, deadline).await,
                Operation::DropUnit { volume } => engine.drop_unit(&unit(*volume), deadline).await,
                other => panic!("not a change: {other:?}"),
            };
            let calls = operations
                .iter()
                .zip(&versions)
                .map(|(operation, version)| call(operation, *version));
            block_on(futures::future::join_all(calls))
        };
        let mut up = true;
        for ((operation, version), result) in operations.iter().zip(versions).zip(results) {
            up &= self.settle(operation, version, result);
        }
        up
    }

    fn next_version(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    /// Notes what a change did, or may have done.
    fn settle(&mut self, operation: &Operation, version: u64, result: Result<(), NodeError>) -> bool {
        if let Err(NodeError::Fenced { reason }) = &result {
            assert!(self.may_fail(), "fenced: {reason}");
        }
        let cut_off = matches!(result, Err(NodeError::Fenced { .. } | NodeError::Timeout));
        match (operation, result) {
            (Operation::Put { volume, key, len }, result) => {
                let new = Some(written(self.lossy, version, *key, *len));
                let deleted = self.deleted.contains(&(*volume, key.blob));
                let capacity = self.engine().shared.layout.extent_capacity() as usize;
                match result {
                    Ok(()) => *self.states(*volume, *key) = BTreeSet::from([new]),
                    Err(_) if cut_off => drop(self.states(*volume, *key).insert(new)),
                    Err(NodeError::Deleted) if deleted => {}
                    Err(NodeError::NoSpace) => {}
                    Err(NodeError::BadRequest { .. }) if len + 4096 > capacity => {}
                    Err(error) => panic!("{operation:?}: {error}"),
                }
            }
            (Operation::Delete { volume, blobs }, result) => {
                self.deleted.extend(blobs.iter().map(|blob| (*volume, *blob)));
                let doomed = |v: u64, key: ShardKey| v == *volume && blobs.contains(&key.blob);
                self.settle_deletion(operation, result, doomed);
            }
            (Operation::DropUnit { volume }, result) => {
                self.settle_deletion(operation, result, |v, _| v == *volume);
            }
            (other, _) => panic!("not a change: {other:?}"),
        }
        !cut_off
    }

    fn settle_deletion(
        &mut self,
        operation: &Operation,
        result: Result<(), NodeError>,
        doomed: impl Fn(u64, ShardKey) -> bool,
    ) {
        let named = self
            .allowed
            .iter_mut()
            .filter(|((volume, key), _)| doomed(*volume, *key));
        match result {
            Ok(()) => named.for_each(|(_, states)| *states = BTreeSet::from([None])),
            Err(NodeError::Fenced { .. } | NodeError::Timeout) => {
                named.for_each(|(_, states)| states.extend([None]))
            }
            // It may have deleted some.
            Err(NodeError::NoSpace) if self.lossy => {
                Counts::add(&self.counts.refused_deletes);
                named.for_each(|(_, states)| states.extend([None]));
            }
            Err(error) => panic!("{operation:?}: {error}"),
        }
    }

    fn fill(&mut self, volume: u64, len: usize) -> bool {
        for blob in 0..2000 {
            let (to, key) = (unit(volume), key(1_000_000 + self.version * 10_000 + blob, 0));
            let version = self.next_version();
            let (version, len) = written(self.lossy, version, key, len);
            let result = put(self.engine(), &to, key, payload(&to, key, version, len));
            let full = matches!(result, Err(NodeError::NoSpace | NodeError::BadRequest { .. }));
            if !self.settle(&Operation::Put { volume, key, len }, version, result) {
                return false;
            }
            if full {
                return true;
            }
        }
        panic!("the disk never gets full");
    }

    fn verify(&mut self) -> bool {
        let before = self.engine().findings(0).last;
        self.engine().verify_once();
        let findings = self.engine().findings(before).found;
        assert!(findings.is_empty() || self.may_fail(), "{findings:?}");
        true
    }

    fn reopen(&mut self) -> bool {
        self.engine = None;
        match self.open() {
            Ok(engine) => self.engine = Some(engine),
            Err(error) => {
                assert!(self.may_fail(), "open: {error}");
                return false;
            }
        }
        true
    }

    /// After the disk went out of service, or to make it so: what was to happen to it happens, and it is opened.
    pub fn recover(&mut self) {
        match self.pending_cut.take() {
            Some(cut) => self.cut(cut),
            None if self.disk.is_crashed() => self.power_cut(None),
            None => {
                // Out of service for a fault: the operator looks, and starts it again.
                self.engine = None;
                self.disk.disarm();
                let engine = self.open().unwrap();
                assert!(
                    self.lossy || engine.status().corrupt_shards == 0,
                    "a failed write is no rot"
                );
                self.engine = Some(engine);
            }
        }
        self.failing = false;
        assert!(self.check());
    }

    /// Cuts the power and recovers, crashing `again` operations into the first recovery when given; then recovers once
    /// more and compares.
    pub fn power_cut(&mut self, again: Option<u64>) {
        self.cut(Cut {
            after: 0,
            unflushed: Unflushed::Either,
            again,
        });
    }

    /// As [`House::power_cut`], in any way.
    pub fn cut(&mut self, cut: Cut) {
        Counts::add(&self.counts.crashes);
        self.engine = None;
        self.disk.reboot_with(cut.unflushed);
        if let Some(after) = cut.again {
            self.disk.crash_after(after);
            drop(self.open());
            // A process that was killed may lose its power while it recovers.
            self.disk.reboot_with(match cut.unflushed {
                Unflushed::Cached => Unflushed::Either,
                other => other,
            });
        }
        let first = self.open().unwrap();
        let contents = snapshot(&first);
        drop(first);
        self.disk.reboot();
        let second = self.open().unwrap();
        assert_eq!(contents, snapshot(&second), "a second recovery decides otherwise");
        assert_eq!(second.status().corrupt_shards, 0, "a power cut is no rot");
        self.engine = Some(second);
    }

    /// Reads a shard as a gateway does, and compares. False when the disk is out of service.
    pub fn check_one(&mut self, volume: u64, key: ShardKey, range: BlockRange) -> bool {
        let from = unit(volume);
        let found = match block_on(self.engine().get(&from, key, range, DEADLINE)) {
            Ok(blocks) if !verifies(&from, key, &blocks) => Err("a block CRC".to_string()),
            Ok(blocks) => Ok(Some(blocks)),
            Err(NodeError::NotFound) => Ok(None),
            Err(_) if self.disk.is_crashed() => return false,
            Err(NodeError::Fenced { .. }) if self.may_fail() => return false,
            Err(error @ (NodeError::Corrupt { .. } | NodeError::Io { .. })) => Err(error.to_string()),
            Err(error) => panic!("{volume} {key:?}: {error}"),
        };
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                assert!(self.lossy || self.misreads, "{volume} {key:?}: {error}");
                return true;
            }
        };
        let allowed = self.states(volume, key).clone();
        let hit = allowed.iter().find(|state| is_state(&from, key, **state, &found));
        match hit {
            Some(hit) => *self.states(volume, key) = BTreeSet::from([*hit]),
            None => self.judge(volume, key, &found),
        }
        true
    }

    /// What was found is none of the allowed states: a lossy disk may lose a put or a delete; else it is a bug.
    fn judge(&mut self, volume: u64, key: ShardKey, found: &Option<ShardBlocks>) {
        let from = unit(volume);
        let is_version = |version| {
            let len = found.as_ref().map_or(0, |blocks| blocks.shard_len as usize);
            is_state(&from, key, Some((version, len)), found)
        };
        let (kind, counter) = match found {
            None => ("lost", &self.counts.lost),
            Some(_) if (0..=self.version).any(is_version) => ("resurrected", &self.counts.resurrected),
            Some(_) => ("wrong bytes", &self.counts.wrong_bytes),
        };
        if self.lossy && kind != "wrong bytes" {
            return;
        }
        Counts::add(counter);
        let len = found.as_ref().map(|blocks| blocks.shard_len);
        let allowed = &self.allowed[&(volume, key)];
        panic!("{kind}: {volume} {key:?}: {len:?} is none of {allowed:?}");
    }

    /// Compares everything; the inventory too. False when the disk is out of service.
    pub fn check(&mut self) -> bool {
        let keys: Vec<_> = self.allowed.keys().copied().collect();
        for (volume, key) in keys {
            if !self.check_one(volume, key, BlockRange::ALL) {
                return false;
            }
        }
        let violations = self.watch.violations.lock().unwrap();
        assert!(self.lossy || violations.is_empty(), "{violations:?}");
        drop(violations);
        self.check_inventories()
    }

    fn check_inventories(&mut self) -> bool {
        for volume in 0..UNITS {
            let Ok(listed) = self.engine().inventory(&unit(volume), None, 10_000) else {
                assert!(self.may_fail());
                return false;
            };
            if self.lossy {
                continue;
            }
            let listed: BTreeMap<_, _> = listed.iter().map(|e| (e.key, e.len as usize)).collect();
            let of_volume = self.allowed.iter().filter(|((v, _), _)| *v == volume);
            for ((_, key), states) in of_volume.clone() {
                let found = listed.get(key).copied();
                let expected = states.iter().any(|state| state.map(|(_, len)| len) == found);
                assert!(
                    expected,
                    "inventory of {volume}: {key:?}: {found:?} is none of {states:?}"
                );
            }
            let known: BTreeSet<ShardKey> = of_volume.map(|((_, key), _)| *key).collect();
            assert!(listed.keys().all(|key| known.contains(key)), "{listed:?}");
        }
        true
    }
}

/// What a put writes. On a lossy disk a key has one content for ever, so that an older version is not wrong.
fn written(lossy: bool, version: u64, key: ShardKey, len: usize) -> (u64, usize) {
    match lossy {
        true => (0, LENGTHS[key.blob as usize % LENGTHS.len()]),
        false => (version, len),
    }
}

/// Whether what was found is this state, as far as it was read.
fn is_state(from: &UnitAddress, key: ShardKey, state: State, found: &Option<ShardBlocks>) -> bool {
    match (state, found) {
        (None, None) => true,
        (Some((version, len)), Some(found)) => {
            let start = found.first_block as usize * BLOCK_BYTES as usize;
            let whole = payload(from, key, version, len);
            let part = whole.get(start.min(len)..(start + found.payload.len()).min(len));
            found.shard_len as usize == len && part == Some(&found.payload[..])
        }
        _ => false,
    }
}

/// Those of the changes that concern different blobs.
fn apart(operations: &[Operation]) -> Vec<Operation> {
    let mut seen = BTreeSet::new();
    let mut is_apart = |operation: &&Operation| match operation {
        Operation::Put { volume, key, .. } => seen.insert((*volume, key.blob)),
        Operation::Delete { volume, blobs } => {
            let free = blobs.iter().all(|blob| !seen.contains(&(*volume, *blob)));
            seen.extend(blobs.iter().filter(|_| free).map(|blob| (*volume, *blob)));
            free
        }
        _ => false,
    };
    operations
        .iter()
        .filter(|operation| is_apart(operation))
        .cloned()
        .collect()
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

/// A device between an engine and its disk that looks at the index whenever something is written or flushed.
pub struct Watch {
    disk: SimulatedDisk,
    inner: Arc<dyn Device>,
    shared: Mutex<Weak<Shared>>,
    violations: Mutex<Vec<String>>,
}

impl Watch {
    fn over(disk: &SimulatedDisk) -> Arc<Watch> {
        Arc::new(Watch {
            disk: disk.clone(),
            inner: disk.device(),
            shared: Mutex::default(),
            violations: Mutex::default(),
        })
    }

    /// Looks at the place on the device of every live record. Not while the engine holds its index.
    fn each_live(&self, mut look: impl FnMut(u64, u64)) {
        let Some(shared) = self.shared.lock().unwrap().upgrade() else {
            return;
        };
        let Ok(index) = shared.index.try_read() else {
            return;
        };
        for unit in index.units.keys() {
            for (_, entry) in index.shards(*unit, Bound::Unbounded) {
                let extent = shared.layout.extent_offset(entry.place.extent);
                look(extent + u64::from(entry.place.offset), entry.footprint());
            }
        }
    }

    fn report(&self, violation: String) {
        self.violations.lock().unwrap().push(violation);
    }
}

impl Device for Watch {
    fn info(&self) -> &DeviceInfo {
        self.inner.info()
    }
    fn read(&self, offset: u64, buf: AlignedBuf) -> Completion<AlignedBuf> {
        self.inner.read(offset, buf)
    }
    fn write_parts(&self, offset: u64, parts: Vec<AlignedBytes>) -> Completion<()> {
        let end = offset + parts.iter().map(|part| part.len() as u64).sum::<u64>();
        self.each_live(|at, len| {
            if at < end && offset < at + len {
                self.report(format!(
                    "a write of {offset}..{end} touches the live record at {at}"
                ));
            }
        });
        self.inner.write_parts(offset, parts)
    }
    fn flush(&self) -> Completion<()> {
        self.each_live(|at, len| {
            if !self.disk.is_durable(at, len) {
                self.report(format!(
                    "the index names the record at {at}, which is not durable"
                ));
            }
        });
        self.inner.flush()
    }
    fn allocate(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        self.inner.allocate(offset, len)
    }
    fn check(&self) -> Result<(), DeviceError> {
        self.inner.check()
    }
}
