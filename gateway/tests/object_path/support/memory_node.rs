//! A storage node in memory, with every fault a gateway must answer to, switched per disk.
//!
//! It keeps the promises of `storage_node::protocol`: a put is checked against its seal, an old epoch or incarnation
//! is refused, a deleted blob stays deleted, deadlines hold. A future that is dropped before its delay is over has
//! done nothing.

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use std::collections::{BTreeMap, HashSet};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;
use storage_node::client::{DELETE_BLOBS_MAX, INVENTORY_LIMIT_MAX, StorageClient};
use storage_node::protocol::{
    AdmitRequest, BLOCK_BYTES, Beat, BlockRange, DiskId, DiskState, DiskStatus, Findings, Generation,
    InventoryEntry, LedgerMarks, NodeError, NodeStatus, Opening, SHARD_BYTES_MAX, SYSTEM_VOLUME_MIN,
    SealedShard, ShardBlocks, ShardKey, Still, UnitAddress, UnitId, UnitInfo, VerifyOrder, block_count,
    block_crc, seal_seed,
};

/// Bytes of a disk that never fills up.
const CAPACITY: u64 = 1 << 40;

/// What is wrong with a disk.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Its node does not know it.
    pub missing: bool,
    /// It reports itself fenced, and refuses everything.
    pub fenced: bool,
    /// What every put answers, once `puts_before` more have been done.
    pub put: Option<NodeError>,
    /// Puts that still succeed before `put` counts.
    pub puts_before: u64,
    /// What every get answers.
    pub get: Option<NodeError>,
    /// What every delete answers.
    pub delete: Option<NodeError>,
    /// How long a put takes.
    pub put_delay: Duration,
    /// How long a get takes.
    pub get_delay: Duration,
    /// How it answers wrongly, if it does.
    pub lie: Option<Lie>,
    /// Drops of units are not answered, and arrive when [`MemoryNode::late_drops`] says so.
    pub drops_late: bool,
}

/// A way to answer that looks well and is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// Reads answer other bytes under the shard's own CRCs.
    OtherBytes,
    /// Reads answer other bytes, with CRCs and digests made to match them.
    Forgery,
    /// Reads answer the bytes and CRCs of another shard of the disk; of the same one if it has no other.
    OtherShard,
    /// Reads answer less than was asked for.
    Truncated,
    /// Reads come with digests of nothing.
    Digests,
    /// Reads end in no answer of the protocol.
    Garbage,
    /// Reads are answered with an epoch that nobody gave.
    Epoch,
    /// Puts are acknowledged and not stored.
    Forgets,
}

/// One unit of a disk.
#[derive(Clone, Debug, Default)]
pub struct Unit {
    pub epoch: u32,
    pub shards: BTreeMap<ShardKey, SealedShard>,
    pub deleted: HashSet<u64>,
}

/// A disk.
pub struct MemoryDisk {
    pub incarnation: u64,
    pub capacity: u64,
    /// What its status says is free, if that is not the truth.
    pub reported_free: Option<u64>,
    pub faults: Faults,
    pub units: BTreeMap<UnitId, Unit>,
    pub puts: u64,
    pub gets: u64,
    pub deletes: u64,
    /// Calls of many shards.
    pub many: u64,
    /// Pages of inventories, by unit.
    pub inventories: BTreeMap<UnitId, u64>,
    /// What it says verifying found.
    pub findings: Findings,
    late_drops: Vec<UnitAddress>,
    /// How it was opened, and what its medium remembers.
    pub opening: Opening,
    /// Which ledger it obeys.
    pub ledger: LedgerMarks,
    /// It changes nothing for this ledger until then.
    still: Option<(Generation, tokio::time::Instant)>,
    /// Whether it was admitted in that opening: it serves nothing before.
    pub is_admitted: bool,
    /// How it was told to be verified.
    pub orders: Vec<VerifyOrder>,
}

/// What a copy of a disk has.
#[derive(Clone)]
pub struct Image {
    units: BTreeMap<UnitId, Unit>,
    opening: Opening,
}

impl MemoryDisk {
    fn new() -> MemoryDisk {
        MemoryDisk {
            incarnation: 1,
            capacity: CAPACITY,
            reported_free: None,
            faults: Faults::default(),
            units: BTreeMap::new(),
            puts: 0,
            gets: 0,
            deletes: 0,
            many: 0,
            inventories: BTreeMap::new(),
            findings: Findings::default(),
            late_drops: Vec::new(),
            opening: Opening {
                id: 1,
                ..Opening::default()
            },
            ledger: LedgerMarks::default(),
            still: None,
            is_admitted: false,
            orders: Vec::new(),
        }
    }

    /// Its node is started again.
    pub fn reopen(&mut self) {
        self.opening.id += 1;
        self.still = None;
        self.is_admitted = false;
    }

    /// Copies the medium.
    pub fn image(&self) -> Image {
        Image {
            units: self.units.clone(),
            opening: self.opening,
        }
    }

    /// Puts a copy in its place; what was there.
    pub fn swap(&mut self, image: Image) -> Image {
        let before = self.image();
        self.units = image.units;
        self.opening = Opening {
            id: before.opening.id + 1,
            ..image.opening
        };
        self.is_admitted = false;
        before
    }

    /// Every shard it holds.
    pub fn shards(&self) -> impl Iterator<Item = (UnitId, &SealedShard)> {
        self.units
            .iter()
            .flat_map(|(id, unit)| unit.shards.values().map(|s| (*id, s)))
    }

    /// Every shard it holds, to be damaged.
    pub fn shards_mut(&mut self) -> impl Iterator<Item = (UnitId, &mut SealedShard)> {
        self.units
            .iter_mut()
            .flat_map(|(id, unit)| unit.shards.values_mut().map(|s| (*id, s)))
    }

    fn live_bytes(&self) -> u64 {
        self.shards().map(|(_, s)| s.payload.len() as u64).sum()
    }

    /// Checks who asks, and remembers a newer epoch.
    /// The limits of what came to it.
    fn seen(&self) -> LedgerMarks {
        let named = || self.units.iter().filter(|(id, _)| id.volume < SYSTEM_VOLUME_MIN);
        let blobs = |unit: &Unit| {
            unit.shards
                .keys()
                .map(|key| key.blob)
                .chain(unit.deleted.iter().copied())
                .max()
        };
        LedgerMarks {
            generation: self.ledger.generation,
            position: 0,
            blob_limit: named()
                .filter_map(|(_, unit)| blobs(unit))
                .max()
                .map_or(0, |blob| blob + 1),
            volume_limit: named().map(|(id, _)| id.volume + 1).max().unwrap_or(0),
            epoch: named().map(|(_, unit)| unit.epoch).max().unwrap_or(0),
        }
    }

    /// Refuses to change anything for another ledger.
    fn check_ledger(&self, address: &UnitAddress) -> Result<(), NodeError> {
        let current = self.ledger.generation;
        match current == Generation::NONE || current == address.ledger {
            true => self.check_still(address.ledger),
            false => Err(NodeError::OtherLedger { current }),
        }
    }

    fn check_still(&self, ledger: Generation) -> Result<(), NodeError> {
        match self.still {
            Some((of, until)) if of == ledger && tokio::time::Instant::now() < until => {
                Err(NodeError::Overloaded)
            }
            _ => Ok(()),
        }
    }

    fn admit(&mut self, address: &UnitAddress) -> Result<(), NodeError> {
        if self.faults.missing || self.incarnation != address.incarnation || !self.is_admitted {
            return Err(NodeError::WrongDisk);
        }
        if self.faults.fenced {
            return Err(NodeError::Fenced {
                reason: "a test".into(),
            });
        }
        match self.units.get_mut(&address.unit) {
            Some(unit) if unit.epoch > address.epoch => Err(NodeError::StaleEpoch { current: unit.epoch }),
            Some(unit) => {
                unit.epoch = address.epoch;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn put(&mut self, to: &UnitAddress, shard: SealedShard) -> Result<(), NodeError> {
        self.check_ledger(to)?;
        self.admit(to)?;
        if self.faults.puts_before == 0 {
            if let Some(error) = &self.faults.put {
                return Err(error.clone());
            }
        } else {
            self.faults.puts_before -= 1;
        }
        verify(to.unit, &shard).map_err(|what| NodeError::SealMismatch { what })?;
        // Counted only where it can matter: it takes a walk over all shards.
        if self.capacity < CAPACITY && self.live_bytes() + shard.payload.len() as u64 > self.capacity {
            return Err(NodeError::NoSpace);
        }
        let unit = self.units.entry(to.unit).or_default();
        if unit.deleted.contains(&shard.key.blob) {
            return Err(NodeError::Deleted);
        }
        unit.epoch = to.epoch;
        self.puts += 1;
        if self.faults.lie == Some(Lie::Forgets) {
            return Ok(());
        }
        // As a disk does, it keeps bytes of its own: what was sent is let go.
        let payload = bytes::Bytes::copy_from_slice(&shard.payload);
        unit.shards.insert(shard.key, SealedShard { payload, ..shard });
        Ok(())
    }

    fn get(
        &mut self,
        from: &UnitAddress,
        key: ShardKey,
        blocks: BlockRange,
    ) -> Result<ShardBlocks, NodeError> {
        self.admit(from)?;
        self.gets += 1;
        if let Some(error) = &self.faults.get {
            return Err(error.clone());
        }
        let unit = self.units.get(&from.unit).ok_or(NodeError::NotFound)?;
        if unit.deleted.contains(&key.blob) {
            return Err(NodeError::Deleted);
        }
        let honest = unit.shards.get(&key).ok_or(NodeError::NotFound)?;
        let lie = self.faults.lie;
        let mut shard = match lie {
            // Of the same length if there is one: the harder to tell.
            Some(Lie::OtherShard) => {
                let others = || self.shards().map(|(_, s)| s).filter(|s| s.key != key);
                let alike = others().find(|s| s.payload.len() == honest.payload.len());
                alike.or_else(|| others().next()).unwrap_or(honest).clone()
            }
            _ => honest.clone(),
        };
        match lie {
            Some(Lie::Forgery) => {
                shard.payload = Bytes::from(vec![0x55; shard.payload.len()]);
                let seed = seal_seed(from.unit, key, shard.payload.len() as u32);
                shard.seal.block_crcs = ec_core::seal::block_crcs(seed, &shard.payload);
                shard.seal.digests[usize::from(from.unit.index)] = *blake3::hash(&shard.payload).as_bytes();
            }
            Some(Lie::OtherBytes) => shard.payload = Bytes::from(vec![0x55; shard.payload.len()]),
            Some(Lie::Digests) => shard.seal.digests.iter_mut().for_each(|d| *d = [7; 32]),
            Some(Lie::Garbage) => {
                return Err(NodeError::Garbled {
                    what: "a test".into(),
                });
            }
            Some(Lie::Epoch) => return Err(NodeError::StaleEpoch { current: u32::MAX }),
            _ => {}
        }
        let (len, block) = (shard.payload.len(), BLOCK_BYTES as usize);
        let start = (blocks.first as usize * block).min(len);
        let end = ((blocks.first as usize + blocks.count as usize) * block).min(len);
        let crcs = shard
            .seal
            .block_crcs
            .iter()
            .skip(blocks.first as usize)
            .take((end - start).div_ceil(block));
        let end = match lie {
            Some(Lie::Truncated) => end - (end - start) / 2,
            _ => end,
        };
        Ok(ShardBlocks {
            shard_len: len as u32,
            first_block: blocks.first,
            block_crcs: crcs.copied().collect(),
            digests: shard.seal.digests.clone(),
            payload: shard.payload.slice(start..end),
        })
    }

    fn delete(&mut self, from: &UnitAddress, blobs: &[u64]) -> Result<(), NodeError> {
        self.check_ledger(from)?;
        self.admit(from)?;
        if blobs.len() > DELETE_BLOBS_MAX {
            return Err(NodeError::BadRequest {
                what: "too many blobs".into(),
            });
        }
        if let Some(error) = &self.faults.delete {
            return Err(error.clone());
        }
        self.deletes += blobs.len() as u64;
        let unit = self.units.entry(from.unit).or_default();
        unit.epoch = from.epoch;
        unit.deleted.extend(blobs);
        unit.shards.retain(|key, _| !blobs.contains(&key.blob));
        Ok(())
    }

    fn status(&self, disk: DiskId) -> DiskStatus {
        let live_bytes = self.live_bytes();
        let state = match self.faults.fenced {
            true => DiskState::Fenced {
                reason: "a test".into(),
            },
            false => DiskState::Online,
        };
        DiskStatus {
            disk,
            incarnation: self.incarnation,
            path: "memory".into(),
            state,
            backend: "memory".into(),
            capacity_bytes: self.capacity,
            free_bytes: self
                .reported_free
                .unwrap_or(self.capacity.saturating_sub(live_bytes)),
            live_bytes,
            shards: self.shards().count() as u64,
            corrupt_shards: 0,
            opening: Some(self.opening),
            verify: None,
            ledger: Some(self.ledger.told(&self.seen())),
        }
    }
}

/// Whether a shard matches its seal, as a node checks it on arrival; and its own place in the digest table.
pub fn verify(unit: UnitId, shard: &SealedShard) -> Result<(), String> {
    let len = shard.payload.len() as u32;
    if len == 0 || len > SHARD_BYTES_MAX {
        return Err(format!("{len} bytes"));
    }
    if shard.seal.block_crcs.len() as u32 != block_count(len) {
        return Err(format!("{} CRCs for {len} bytes", shard.seal.block_crcs.len()));
    }
    let seed = seal_seed(unit, shard.key, len);
    for (block, (bytes, crc)) in shard
        .payload
        .chunks(BLOCK_BYTES as usize)
        .zip(&shard.seal.block_crcs)
        .enumerate()
    {
        if block_crc(seed, block as u32, bytes) != *crc {
            return Err(format!("block {block}"));
        }
    }
    match shard.seal.digests.get(unit.index as usize) {
        Some(digest) if digest == blake3::hash(&shard.payload).as_bytes() => Ok(()),
        _ => Err("the digest table".into()),
    }
}

/// A node with several disks.
pub struct MemoryNode {
    disks: Mutex<BTreeMap<DiskId, MemoryDisk>>,
    before_obey: tokio::sync::Mutex<Option<BoxFuture<'static, ()>>>,
    /// Whether it is a node of before disks could stand still.
    pub knows_no_stillness: std::sync::atomic::AtomicBool,
}

impl MemoryNode {
    pub fn new(disks: impl IntoIterator<Item = DiskId>) -> MemoryNode {
        MemoryNode {
            disks: Mutex::new(disks.into_iter().map(|id| (id, MemoryDisk::new())).collect()),
            before_obey: tokio::sync::Mutex::default(),
            knows_no_stillness: Default::default(),
        }
    }

    /// Has this happen just before the next disk is told of a ledger.
    pub async fn before_obey(&self, what: impl Future<Output = ()> + Send + 'static) {
        *self.before_obey.lock().await = Some(Box::pin(what));
    }

    /// Looks at, or changes, one disk.
    pub fn with<T>(&self, disk: DiskId, act: impl FnOnce(&mut MemoryDisk) -> T) -> T {
        act(self.lock().get_mut(&disk).expect("a disk of this node"))
    }

    /// Looks at, or changes, every disk.
    pub fn each(&self, mut act: impl FnMut(DiskId, &mut MemoryDisk)) {
        self.lock().iter_mut().for_each(|(id, disk)| act(*id, disk));
    }

    /// Sets what is wrong with a disk.
    pub fn fault(&self, disk: DiskId, faults: Faults) {
        self.with(disk, |d| d.faults = faults);
    }

    /// Delivers the drops that nobody waits for any more; how many there were.
    pub async fn late_drops(&self) -> usize {
        let mut late = Vec::new();
        self.each(|_, disk| late.append(&mut disk.late_drops));
        for unit in &late {
            let _ = self.drop_unit(unit, Duration::ZERO).await; // Whoever asked has left.
        }
        late.len()
    }

    /// All shards of all disks.
    pub fn shard_count(&self) -> usize {
        self.lock().values().map(|d| d.shards().count()).sum()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<DiskId, MemoryDisk>> {
        self.disks.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn on<T>(
        &self,
        disk: DiskId,
        act: impl FnOnce(&mut MemoryDisk) -> Result<T, NodeError>,
    ) -> Result<T, NodeError> {
        self.lock().get_mut(&disk).map_or(Err(NodeError::WrongDisk), act)
    }

    async fn delay(
        &self,
        disk: DiskId,
        deadline: Duration,
        of: impl FnOnce(&Faults) -> Duration,
    ) -> Result<(), NodeError> {
        let delay = self.lock().get(&disk).map_or(Duration::ZERO, |d| of(&d.faults));
        if delay > deadline {
            tokio::time::sleep(deadline).await;
            return Err(NodeError::Timeout);
        }
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        Ok(())
    }
}

/// Flips one bit of a shard's payload.
pub fn flip_bit(shard: &mut SealedShard, at: usize) {
    let mut bytes = shard.payload.to_vec();
    let at = at % bytes.len();
    bytes[at] ^= 0x10;
    shard.payload = Bytes::from(bytes);
}

#[async_trait]
impl StorageClient for MemoryNode {
    async fn put(&self, to: &UnitAddress, shard: SealedShard, deadline: Duration) -> Result<(), NodeError> {
        self.delay(to.disk, deadline, |f| f.put_delay).await?;
        tokio::task::yield_now().await;
        self.on(to.disk, |d| d.put(to, shard))
    }

    async fn get(
        &self,
        from: &UnitAddress,
        key: ShardKey,
        blocks: BlockRange,
        deadline: Duration,
    ) -> Result<ShardBlocks, NodeError> {
        self.delay(from.disk, deadline, |f| f.get_delay).await?;
        tokio::task::yield_now().await;
        self.on(from.disk, |d| d.get(from, key, blocks))
    }

    async fn get_many(
        &self,
        from: &UnitAddress,
        keys: &[ShardKey],
        deadline: Duration,
    ) -> Result<Vec<Result<ShardBlocks, NodeError>>, NodeError> {
        self.delay(from.disk, deadline, |f| f.get_delay).await?;
        tokio::task::yield_now().await;
        self.on(from.disk, |d| {
            d.admit(from)?;
            d.many += 1;
            Ok(keys
                .iter()
                .map(|key| d.get(from, *key, BlockRange::ALL))
                .collect())
        })
    }

    async fn put_many(
        &self,
        to: &UnitAddress,
        shards: Vec<SealedShard>,
        deadline: Duration,
    ) -> Result<Vec<Result<(), NodeError>>, NodeError> {
        self.delay(to.disk, deadline, |f| f.put_delay).await?;
        tokio::task::yield_now().await;
        self.on(to.disk, |d| {
            d.admit(to)?;
            d.many += 1;
            Ok(shards.into_iter().map(|shard| d.put(to, shard)).collect())
        })
    }

    async fn delete(&self, from: &UnitAddress, blobs: &[u64], _deadline: Duration) -> Result<(), NodeError> {
        tokio::task::yield_now().await;
        self.on(from.disk, |d| d.delete(from, blobs))
    }

    async fn inventory(
        &self,
        from: &UnitAddress,
        after: Option<ShardKey>,
        limit: usize,
        _deadline: Duration,
    ) -> Result<Vec<InventoryEntry>, NodeError> {
        self.on(from.disk, |d| {
            d.admit(from)?;
            *d.inventories.entry(from.unit).or_default() += 1;
            let Some(unit) = d.units.get(&from.unit) else {
                return Ok(Vec::new());
            };
            let entries = unit
                .shards
                .iter()
                .filter(|(key, _)| after.is_none_or(|after| **key > after));
            let entry = |(key, s): (&ShardKey, &SealedShard)| InventoryEntry {
                key: *key,
                len: s.payload.len() as u32,
            };
            Ok(entries.take(limit.min(INVENTORY_LIMIT_MAX)).map(entry).collect())
        })
    }

    async fn findings(
        &self,
        disk: DiskId,
        _incarnation: u64,
        after: u64,
        _deadline: Duration,
    ) -> Result<Findings, NodeError> {
        self.on(disk, |d| {
            let mut findings = d.findings.clone();
            let new = findings.last.saturating_sub(after) as usize;
            let old = findings.found.len().saturating_sub(new);
            findings.found.drain(..old);
            Ok(findings)
        })
    }

    async fn verify(
        &self,
        disk: DiskId,
        _incarnation: u64,
        order: &VerifyOrder,
        _deadline: Duration,
    ) -> Result<(), NodeError> {
        self.on(disk, |d| {
            d.orders.push(*order);
            Ok(())
        })
    }

    async fn admit(
        &self,
        disk: DiskId,
        _incarnation: u64,
        request: &AdmitRequest,
        _deadline: Duration,
    ) -> Result<(), NodeError> {
        self.on(disk, |d| {
            let known = d.opening.admission;
            if request.opening != d.opening.id {
                return Err(NodeError::WrongDisk);
            }
            if known != request.admission && known.number >= request.admission.number {
                return Err(NodeError::BadRequest {
                    what: "an older admission".into(),
                });
            }
            d.opening.admission = request.admission;
            d.is_admitted = true;
            Ok(())
        })
    }

    async fn units(
        &self,
        disk: DiskId,
        incarnation: u64,
        _deadline: Duration,
    ) -> Result<Vec<UnitInfo>, NodeError> {
        self.on(disk, |d| {
            d.admit(&UnitAddress {
                disk,
                incarnation,
                unit: UnitId {
                    volume: u64::MAX,
                    index: 0,
                },
                epoch: 0,
                ledger: storage_node::protocol::Generation::NONE,
            })?;
            let info = |(unit, held): (&UnitId, &Unit)| UnitInfo {
                unit: *unit,
                epoch: held.epoch,
                shards: held.shards.len() as u64,
                live_bytes: held.shards.values().map(|s| s.payload.len() as u64).sum(),
            };
            Ok(d.units.iter().map(info).collect())
        })
    }

    async fn drop_unit(&self, unit: &UnitAddress, _deadline: Duration) -> Result<(), NodeError> {
        self.on(unit.disk, |d| {
            if d.faults.drops_late {
                d.late_drops.push(*unit);
                return Err(NodeError::Timeout);
            }
            d.check_ledger(unit)?;
            d.admit(unit)?;
            d.units.remove(&unit.unit);
            Ok(())
        })
    }

    async fn obey(
        &self,
        disk: DiskId,
        incarnation: u64,
        marks: &LedgerMarks,
        _deadline: Duration,
    ) -> Result<(), NodeError> {
        // Whoever it obeys goes on meanwhile.
        if self.with(disk, |d| d.ledger.generation != marks.generation) {
            let mut before = self.before_obey.lock().await;
            if let Some(before) = before.take() {
                before.await;
            }
        }
        self.on(disk, |d| {
            if d.incarnation != incarnation {
                return Err(NodeError::WrongDisk);
            }
            if !d.ledger.obeys(marks.generation) {
                let current = d.ledger.generation;
                return Err(NodeError::OtherLedger { current });
            }
            d.check_still(marks.generation)?;
            d.ledger = d.ledger.told(marks);
            Ok(())
        })
    }

    async fn still(
        &self,
        disk: DiskId,
        incarnation: u64,
        still: &Still,
        _deadline: Duration,
    ) -> Result<(), NodeError> {
        if self.knows_no_stillness.load(std::sync::atomic::Ordering::Relaxed) {
            return Err(NodeError::BadRequest {
                what: "no such path".into(),
            });
        }
        self.on(disk, |d| {
            if d.incarnation != incarnation {
                return Err(NodeError::WrongDisk);
            }
            let ledger = d.ledger.generation;
            if ledger == still.ledger && ledger != Generation::NONE {
                let lasts = Duration::from_millis(still.lasts_ms);
                d.still = (!lasts.is_zero()).then(|| (ledger, tokio::time::Instant::now() + lasts));
            }
            Ok(())
        })
    }

    async fn beat(&self, _beat: &Beat, _deadline: Duration) -> Result<(), NodeError> {
        Ok(())
    }

    async fn status(&self, _deadline: Duration) -> Result<NodeStatus, NodeError> {
        let disks = self.lock();
        Ok(NodeStatus {
            disks: disks
                .iter()
                .filter(|(_, d)| !d.faults.missing)
                .map(|(id, d)| d.status(*id))
                .collect(),
            ..NodeStatus::default()
        })
    }
}
