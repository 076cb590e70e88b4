//! Heads of records that were read lately, so that a block far behind its head takes one read of the disk, not two.
//!
//! What is kept is the head's bytes, and whoever takes them checks them again as if they came from the disk: with their
//! CRC, for this very shard, put and place. So a head that was damaged in memory is read anew, and one that passes is as
//! good as one that was just read.
//!
//! Why blocks that do not match a kept head need no second look at the head: a record's place is never written again in
//! the same use of its extent, so a head that is valid for a place is valid for ever. The blocks are wrong, and they are
//! what a retry reads again. A head that rots on the disk meanwhile does no harm to what is served; it is found by verifying
//! and by every read of a whole record, which take nothing from here, and so is a disk that somebody overwrote. A shard that
//! is moved, or put again by a repair, has another place.
//!
//! Invariant: bounded in bytes, what the cache itself takes for an entry included.

use crate::format::record::RecordPlace;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, Weighter};
use std::hash::RandomState;
use std::sync::Arc;

/// Bytes of kept heads: of a disk with 1 MiB shards of rs(4,2), those of the 30 GiB that were read last.
pub const HEADS_BYTES: u64 = 16 << 20;
/// What an entry takes besides the head: a slot and a hash bucket, both in tables that grow by doubling, and the counts
/// and rounding of an allocation.
const ENTRY_BYTES: u64 = 160;
/// A head with few digests, and its entry.
const TYPICAL_BYTES: u64 = 512;

#[derive(Clone)]
struct Weigh;

impl Weighter<RecordPlace, Arc<[u8]>> for Weigh {
    fn weight(&self, _place: &RecordPlace, head: &Arc<[u8]>) -> u64 {
        ENTRY_BYTES + head.len() as u64
    }
}

/// The heads of one disk.
pub struct Heads(Cache<RecordPlace, Arc<[u8]>, Weigh>);

impl Heads {
    /// None yet, and never more than so many bytes.
    pub fn new(bytes_max: u64) -> Heads {
        // Four parts are enough not to wait for one another, and few enough that the longest head fits into each.
        let (items, shards) = (bytes_max.div_ceil(TYPICAL_BYTES) as usize, 4);
        let options = OptionsBuilder::new()
            .estimated_items_capacity(items)
            .weight_capacity(bytes_max)
            .shards(shards)
            .build();
        let options = options.expect("items and bytes are given");
        Heads(Cache::with_options(
            options,
            Weigh,
            RandomState::new(),
            DefaultLifecycle::default(),
        ))
    }

    /// The head's bytes at a place. They are still to be checked.
    pub fn get(&self, place: RecordPlace) -> Option<Arc<[u8]>> {
        self.0.get(&place)
    }

    /// Keeps a head that was read from the disk and is valid, in the place of what was kept of it.
    pub fn keep(&self, place: RecordPlace, head: &[u8]) {
        self.0.insert(place, head.into());
    }

    #[cfg(test)]
    fn bytes(&self) -> u64 {
        self.0.weight()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::record::{HEAD_BYTES_MAX, head_len};

    fn place(number: u32) -> RecordPlace {
        RecordPlace {
            extent: number % 7,
            generation: 3,
            offset: number * 64,
        }
    }

    #[test]
    fn what_is_kept_never_outgrows_the_bound() {
        let (heads, bound) = (Heads::new(1 << 20), 1 << 20);
        let lengths = [head_len(2, 3), head_len(16, 6), HEAD_BYTES_MAX];
        for number in 0..20_000 {
            heads.keep(place(number), &vec![7; lengths[number as usize % 3] as usize]);
            assert!(heads.bytes() <= bound, "{} bytes after {number}", heads.bytes());
        }
        assert!(
            heads.bytes() > bound / 2,
            "{} bytes: it keeps what it may",
            heads.bytes()
        );
        assert!(heads.get(place(0)).is_none() || heads.get(place(1)).is_none());
    }

    #[test]
    fn each_place_and_each_use_of_an_extent_has_its_own_head() {
        let heads = Heads::new(HEADS_BYTES);
        heads.keep(place(1), b"one");
        heads.keep(place(2), b"two");
        heads.keep(place(1), b"one again");
        assert_eq!(heads.get(place(1)).as_deref(), Some(&b"one again"[..]));
        assert_eq!(heads.get(place(2)).as_deref(), Some(&b"two"[..]));
        let later = RecordPlace {
            generation: 4,
            ..place(1)
        };
        assert_eq!(heads.get(later), None);
    }

    #[test]
    fn a_disk_that_nobody_reads_from_has_no_memory_set_aside() {
        assert!(Heads::new(HEADS_BYTES).0.memory_used().total() < 4096);
    }
}
