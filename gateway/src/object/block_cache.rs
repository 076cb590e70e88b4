//! Blocks that are asked for again and again, in memory, verified.
//!
//! A block is taken in when it is asked for a second time within a while (the doorkeeper of TinyLFU, Einziger et al. 2017): what is
//! read once, as by a backup, drives nothing out and is not even copied. What leaves is for `quick_cache` to say.
//!
//! Invariants:
//! - What is in it was verified, and is what its key names for ever: ids of blobs are not used twice, and blobs do not change.
//! - A block has memory of its own. A slice would keep the whole buffer of a disk or a node.
//! - Memory flips bits, and blocks stay for weeks. None is handed out that was not checked within the last second: for one that is hot
//!   it costs nothing, and one that is not the same any more is dropped.

use bytes::Bytes;
use ec_core::seal;
use quick_cache::Weighter;
use quick_cache::sync::{Cache, DefaultLifecycle};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use storage_node::protocol::{BLOCK_BYTES, BlockRange, ShardKey};

/// What a block takes besides its bytes, about.
const OVERHEAD: u64 = 160;
/// A guess: bytes of a block on average, small objects among them.
const TYPICAL_BYTES: u64 = 16 * 1024;
/// For each block that there is place for, so many are remembered to have been asked for.
const REMEMBERED: u64 = 4;

/// For so long a check is good.
const CHECK_EVERY: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    shard: ShardKey,
    index: u8,
    block: u32,
}

impl Key {
    /// The CRC's start, so that a block does not pass for another.
    fn seed(&self) -> u32 {
        (self.shard.blob as u32).rotate_left(8) ^ self.shard.stripe ^ u32::from(self.index) << 24
    }
}

struct Block {
    bytes: Bytes,
    crc: u32,
    /// When it was checked last, in milliseconds since the cache was made.
    checked: AtomicU64,
}

#[derive(Clone)]
struct Weigh;

impl Weighter<Key, Arc<Block>> for Weigh {
    fn weight(&self, _: &Key, block: &Arc<Block>) -> u64 {
        block.bytes.len() as u64 + OVERHEAD
    }
}

/// The cache of one gateway.
pub struct BlockCache {
    /// None if there is no memory for it.
    held: Option<Held>,
}

/// Keys are ids of our own making: nobody chooses them to collide, and a simulation can be run again.
type Hashing = BuildHasherDefault<DefaultHasher>;

struct Held {
    blocks: Cache<Key, Arc<Block>, Weigh, Hashing>,
    made: Instant,
    doorkeeper: Doorkeeper,
}

/// Remembers, mostly, what was asked for lately: each slot the last of those that fall into it.
struct Doorkeeper {
    hashing: Hashing,
    slots: Vec<AtomicU32>,
}

impl Doorkeeper {
    fn new(remembered: u64) -> Doorkeeper {
        let slots = remembered.next_power_of_two() as usize;
        Doorkeeper {
            hashing: Hashing::default(),
            slots: (0..slots).map(|_| AtomicU32::new(0)).collect(),
        }
    }

    /// Whether it was asked for before; from now on it was.
    fn knows(&self, key: &Key) -> bool {
        let hash = self.hashing.hash_one(key);
        let (slot, mark) = (hash as usize & (self.slots.len() - 1), (hash >> 32) as u32);
        self.slots[slot].swap(mark, Ordering::Relaxed) == mark
    }
}

/// Blocks of a shard by key.
fn keys(shard: ShardKey, index: u8, blocks: BlockRange) -> impl Iterator<Item = Key> {
    (blocks.first..blocks.first + blocks.count).map(move |block| Key { shard, index, block })
}

impl BlockCache {
    /// For so many bytes; for 0 nothing is kept.
    pub fn new(bytes: u64) -> BlockCache {
        let held = (bytes > 0).then(|| {
            let typical = (bytes / TYPICAL_BYTES).max(1);
            Held {
                blocks: Cache::with(
                    typical as usize,
                    bytes,
                    Weigh,
                    Hashing::default(),
                    DefaultLifecycle::default(),
                ),
                made: Instant::now(),
                doorkeeper: Doorkeeper::new(typical * REMEMBERED),
            }
        });
        BlockCache { held }
    }

    /// Blocks of a shard, if all of them are here.
    pub fn get(&self, shard: ShardKey, index: u8, blocks: BlockRange) -> Option<Vec<Bytes>> {
        let held = self.held.as_ref()?;
        keys(shard, index, blocks).map(|key| held.get(&key)).collect()
    }

    /// Which of a shard's blocks, which were read just now, it wants.
    pub fn wanted(&self, shard: ShardKey, index: u8, blocks: BlockRange) -> Vec<u32> {
        let Some(held) = &self.held else { return Vec::new() };
        keys(shard, index, blocks)
            .filter(|key| held.doorkeeper.knows(key))
            .map(|key| key.block)
            .collect()
    }

    /// Takes in what it wanted of verified blocks, of which `payload` has those from `first` on.
    pub fn take_in(&self, shard: ShardKey, index: u8, wanted: &[u32], first: u32, payload: &[u8]) {
        let Some(held) = &self.held else { return };
        for &block in wanted {
            let at = block.saturating_sub(first) as usize;
            let Some(bytes) = payload.chunks(BLOCK_BYTES as usize).nth(at) else {
                continue;
            };
            let key = Key { shard, index, block };
            let bytes = Bytes::copy_from_slice(bytes);
            let crc = seal::block_crc(key.seed(), block, &bytes);
            let checked = AtomicU64::new(held.now());
            held.blocks.insert(key, Arc::new(Block { bytes, crc, checked }));
        }
    }

    /// Bytes that it holds.
    pub fn used_bytes(&self) -> u64 {
        self.held.as_ref().map_or(0, |held| held.blocks.weight())
    }
}

impl Held {
    fn get(&self, key: &Key) -> Option<Bytes> {
        let block = self.blocks.get(key)?;
        let now = self.now();
        if now.saturating_sub(block.checked.load(Ordering::Relaxed)) < CHECK_EVERY.as_millis() as u64 {
            return Some(block.bytes.clone());
        }
        if seal::block_crc(key.seed(), key.block, &block.bytes) != block.crc {
            tracing::error!(
                blob = key.shard.blob,
                stripe = key.shard.stripe,
                shard = key.index,
                block = key.block,
                "a block changed in memory and was dropped; it is read from its disk again"
            );
            self.blocks.remove(key);
            return None;
        }
        block.checked.store(now, Ordering::Relaxed);
        Some(block.bytes.clone())
    }

    fn now(&self) -> u64 {
        self.made.elapsed().as_millis() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: usize = BLOCK_BYTES as usize;

    fn shard(blob: u64) -> ShardKey {
        ShardKey { blob, stripe: 2 }
    }

    fn payload(blob: u64, len: usize) -> Vec<u8> {
        (0..len)
            .map(|i| ((i as u64 * 31 + blob * 7) >> 3) as u8)
            .collect()
    }

    fn range(first: u32, count: u32) -> BlockRange {
        BlockRange { first, count }
    }

    /// Reads a shard from block 0 on, as a download does. Answers whether it was in memory.
    fn read(cache: &BlockCache, blob: u64, len: usize) -> bool {
        let (blocks, bytes) = (range(0, len.div_ceil(BLOCK) as u32), payload(blob, len));
        if let Some(found) = cache.get(shard(blob), 1, blocks) {
            assert!(found.concat() == bytes);
            return true;
        }
        let wanted = cache.wanted(shard(blob), 1, blocks);
        cache.take_in(shard(blob), 1, &wanted, 0, &bytes);
        false
    }

    #[test]
    fn the_third_read_is_from_memory_and_so_is_a_part_of_it() {
        let cache = BlockCache::new(16 << 20);
        let len = 3 * BLOCK + 77;
        let reads: Vec<bool> = (0..4).map(|_| read(&cache, 5, len)).collect();
        assert_eq!(reads, [false, false, true, true]);
        let part = cache.get(shard(5), 1, range(2, 2)).unwrap();
        assert!(part.concat() == payload(5, len)[2 * BLOCK..]);
        assert!(
            cache.get(shard(5), 1, range(3, 2)).is_none(),
            "a block behind the end"
        );
        assert!(cache.get(shard(5), 0, range(0, 1)).is_none(), "another shard");
        assert!(cache.get(shard(6), 1, range(0, 1)).is_none(), "another blob");
    }

    #[test]
    fn a_scan_drives_nothing_out_and_the_bound_holds() {
        let cache = BlockCache::new(16 << 20);
        let hot = 1..=100;
        for _ in 0..3 {
            hot.clone().for_each(|blob| _ = read(&cache, blob, BLOCK));
        }
        let hot: Vec<u64> = hot.filter(|&blob| read(&cache, blob, BLOCK)).collect();
        assert!(hot.len() > 90, "the doorkeeper forgets few: {}", hot.len());
        let used = cache.used_bytes();
        (1_000..6_000).for_each(|blob| _ = read(&cache, blob, BLOCK));
        assert_eq!(cache.used_bytes(), used, "what is read once is not kept");
        assert!(hot.iter().all(|&blob| read(&cache, blob, BLOCK)));
        // More than fits, again and again: it stays within its bytes, and works.
        for _ in 0..5 {
            (1..=1_000).for_each(|blob| _ = read(&cache, blob, BLOCK));
            assert!(cache.used_bytes() <= 16 << 20);
        }
        assert!(cache.used_bytes() > 8 << 20);
    }

    #[test]
    fn a_block_that_changed_in_memory_is_dropped() {
        let mut cache = BlockCache::new(16 << 20);
        (0..3).for_each(|_| _ = read(&cache, 5, BLOCK));
        let held = cache.held.as_mut().unwrap();
        let (key, block) = held.blocks.iter().next().unwrap();
        let mut changed = block.bytes.to_vec();
        changed[4_711] ^= 1;
        let changed = Block {
            bytes: changed.into(),
            crc: block.crc,
            checked: AtomicU64::new(0),
        };
        held.blocks.insert(key, Arc::new(changed));
        held.made -= 2 * CHECK_EVERY;
        assert!(!read(&cache, 5, BLOCK), "it was handed out");
        assert!(read(&cache, 5, BLOCK), "what was read anew is taken in");
    }

    #[test]
    fn without_memory_nothing_is_kept() {
        let cache = BlockCache::new(0);
        assert!((0..5).all(|_| !read(&cache, 1, 1_000)));
        assert_eq!(cache.used_bytes(), 0);
    }
}
