//! The shards of one unit, in key order: a little over 16 bytes each.
//!
//! ```text
//! key    blob 48 | stripe 16                      bits
//! value  extent 21 | offset ÷ 64, 22 | len 21
//! ```
//! Leaves of up to 256 such pairs, sorted, and a list of their first keys. Ids grow, so most inserts are at the end, where leaves
//! are left full; elsewhere a full leaf is split. What else a reader needs follows: the generation is the extent's, the payload
//! starts where `record::place` says, and the digests are as many as the unit's other shards have. A shard that does not fit
//! into those bits, or has another number of digests, is kept aside at full length.
//!
//! Invariant: pure; a key is in one of the two places, never in both.

use crate::format::record::RECORD_ALIGN;
use crate::protocol::ShardKey;
use std::collections::BTreeMap;
use std::ops::Bound;

/// Pairs in a leaf at most: 4 KiB.
const LEAF_MAX: usize = 256;
/// A leaf that falls below this is merged with a neighbour, if what comes of it has room to grow.
const LEAF_MIN: usize = LEAF_MAX / 4;

const STRIPE_BITS: u32 = 16;
const OFFSET_BITS: u32 = 22;
const LEN_BITS: u32 = 21;
const EXTENT_BITS: u32 = 64 - OFFSET_BITS - LEN_BITS;

const _: () = assert!(crate::format::layout::EXTENT_SIZE_MAX / RECORD_ALIGN as u64 <= 1 << OFFSET_BITS);
const _: () = assert!(crate::protocol::SHARD_BYTES_MAX < 1 << LEN_BITS);

/// Where a shard is, and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// The extent.
    pub extent: u32,
    /// Of the head, from the extent's start.
    pub offset: u32,
    /// Payload bytes.
    pub len: u32,
    /// Digests in the head's table.
    pub digests: u8,
}

/// The shards of one unit.
#[derive(Debug, Default)]
pub struct Shards {
    /// The first key of each leaf.
    firsts: Vec<u64>,
    leaves: Vec<Vec<(u64, u64)>>,
    packed: usize,
    /// The digests of each packed shard.
    digests: u8,
    aside: BTreeMap<ShardKey, Location>,
}

impl Shards {
    /// The greatest key.
    pub fn last(&self) -> Option<ShardKey> {
        let packed = self.leaves.last().and_then(|leaf| leaf.last());
        let packed = packed.map(|(key, _)| unpack_key(*key));
        packed.max(self.aside.last_key_value().map(|(key, _)| *key))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.packed + self.aside.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where a shard is.
    pub fn get(&self, key: ShardKey) -> Option<Location> {
        if let Some(location) = self.aside.get(&key) {
            return Some(*location);
        }
        let packed = pack_key(key)?;
        let leaf = &self.leaves[self.leaf_of(packed)?];
        let at = leaf.binary_search_by_key(&packed, |(key, _)| *key).ok()?;
        Some(self.unpack(leaf[at].1))
    }

    /// Puts a shard in; answers where it was before.
    pub fn insert(&mut self, key: ShardKey, location: Location) -> Option<Location> {
        if self.packed == 0 {
            self.digests = location.digests;
        }
        match (pack_key(key), pack(&location)) {
            (Some(key_bits), Some(value)) if location.digests == self.digests => {
                let aside = self.aside.remove(&key);
                self.insert_packed(key_bits, value).or(aside)
            }
            _ => {
                let packed = self.remove_packed(key);
                self.aside.insert(key, location).or(packed)
            }
        }
    }

    /// Takes a shard out; answers where it was.
    pub fn remove(&mut self, key: ShardKey) -> Option<Location> {
        self.aside.remove(&key).or_else(|| self.remove_packed(key))
    }

    /// Every shard after a key, in order.
    pub fn range(&self, after: Bound<ShardKey>) -> impl Iterator<Item = (ShardKey, Location)> {
        let past = move |key: ShardKey| match after {
            Bound::Unbounded => true,
            Bound::Included(first) => key >= first,
            Bound::Excluded(last) => key > last,
        };
        let leaf = match after {
            Bound::Unbounded => 0,
            Bound::Included(key) | Bound::Excluded(key) => self.leaf_of(pack_key_below(key)).unwrap_or(0),
        };
        let packed = self.leaves[leaf.min(self.leaves.len())..].iter().flatten();
        let packed = packed.map(|(key, value)| (unpack_key(*key), self.unpack(*value)));
        let mut packed = packed.skip_while(move |(key, _)| !past(*key)).peekable();
        let aside = self.aside.range((after, Bound::Unbounded));
        let mut aside = aside.map(|(key, location)| (*key, *location)).peekable();
        std::iter::from_fn(move || match (packed.peek(), aside.peek()) {
            (Some((a, _)), Some((b, _))) if a < b => packed.next(),
            (_, Some(_)) => aside.next(),
            (_, None) => packed.next(),
        })
    }

    /// The leaf that has a key, or would; none if there are no leaves.
    fn leaf_of(&self, key: u64) -> Option<usize> {
        let after = self.firsts.partition_point(|first| *first <= key);
        match (after, self.leaves.is_empty()) {
            (_, true) => None,
            (0, false) => Some(0),
            (after, false) => Some(after - 1),
        }
    }

    fn insert_packed(&mut self, key: u64, value: u64) -> Option<Location> {
        let Some(number) = self.leaf_of(key) else {
            self.add_leaf(0, vec![(key, value)]);
            self.packed = 1;
            return None;
        };
        let last = number + 1 == self.leaves.len();
        let leaf = &mut self.leaves[number];
        let at = match leaf.binary_search_by_key(&key, |(key, _)| *key) {
            Ok(at) => {
                let old = std::mem::replace(&mut leaf[at].1, value);
                return Some(self.unpack(old));
            }
            Err(at) => at,
        };
        self.packed += 1;
        if leaf.len() < LEAF_MAX {
            leaf.insert(at, (key, value));
            self.firsts[number] = leaf[0].0;
        } else if at == LEAF_MAX && last {
            self.add_leaf(number + 1, vec![(key, value)]);
        } else {
            let mut right = leaf.split_off(LEAF_MAX / 2);
            match at.checked_sub(LEAF_MAX / 2) {
                Some(at) => right.insert(at, (key, value)),
                None => leaf.insert(at, (key, value)),
            }
            self.firsts[number] = leaf[0].0;
            self.add_leaf(number + 1, right);
        }
        None
    }

    fn add_leaf(&mut self, number: usize, leaf: Vec<(u64, u64)>) {
        self.firsts.insert(number, leaf[0].0);
        self.leaves.insert(number, leaf);
    }

    fn remove_packed(&mut self, key: ShardKey) -> Option<Location> {
        let key = pack_key(key)?;
        let number = self.leaf_of(key)?;
        let leaf = &mut self.leaves[number];
        let at = leaf.binary_search_by_key(&key, |(key, _)| *key).ok()?;
        let (_, value) = leaf.remove(at);
        self.packed -= 1;
        self.tidy(number);
        Some(self.unpack(value))
    }

    /// After a removal: no empty leaf, and no small one that a neighbour could take in.
    fn tidy(&mut self, number: usize) {
        let len = self.leaves[number].len();
        if len >= LEAF_MIN {
            self.firsts[number] = self.leaves[number][0].0;
            return;
        }
        let fits = |other: &Vec<(u64, u64)>| len + other.len() <= LEAF_MAX * 3 / 4;
        let before = number.checked_sub(1).filter(|before| fits(&self.leaves[*before]));
        if let Some(before) = before {
            let mut leaf = self.leaves.remove(number);
            self.firsts.remove(number);
            self.leaves[before].append(&mut leaf);
        } else if self.leaves.get(number + 1).is_some_and(fits) {
            let mut next = self.leaves.remove(number + 1);
            self.firsts.remove(number + 1);
            self.leaves[number].append(&mut next);
            self.firsts[number] = self.leaves[number][0].0;
        } else if len == 0 {
            self.leaves.remove(number);
            self.firsts.remove(number);
        } else {
            self.firsts[number] = self.leaves[number][0].0;
            self.leaves[number].shrink_to(LEAF_MIN);
        }
    }

    fn unpack(&self, value: u64) -> Location {
        let bits = |shift: u32, bits: u32| (value >> shift & ((1 << bits) - 1)) as u32;
        Location {
            extent: bits(OFFSET_BITS + LEN_BITS, EXTENT_BITS),
            offset: bits(LEN_BITS, OFFSET_BITS) * RECORD_ALIGN,
            len: bits(0, LEN_BITS),
            digests: self.digests,
        }
    }
}

fn pack(location: &Location) -> Option<u64> {
    let fits = location.extent >> EXTENT_BITS == 0
        && location.len >> LEN_BITS == 0
        && location.offset.is_multiple_of(RECORD_ALIGN)
        && (location.offset / RECORD_ALIGN) >> OFFSET_BITS == 0;
    let value = u64::from(location.extent) << (OFFSET_BITS + LEN_BITS)
        | u64::from(location.offset / RECORD_ALIGN) << LEN_BITS
        | u64::from(location.len);
    fits.then_some(value)
}

/// Keys that fit keep their order.
fn pack_key(key: ShardKey) -> Option<u64> {
    let fits = key.blob >> (64 - STRIPE_BITS) == 0 && key.stripe >> STRIPE_BITS == 0;
    fits.then(|| key.blob << STRIPE_BITS | u64::from(key.stripe))
}

/// The greatest key that fits and is not above this one.
fn pack_key_below(key: ShardKey) -> u64 {
    match key.blob >> (64 - STRIPE_BITS) {
        0 => key.blob << STRIPE_BITS | u64::from(key.stripe.min((1 << STRIPE_BITS) - 1)),
        _ => u64::MAX,
    }
}

fn unpack_key(key: u64) -> ShardKey {
    ShardKey {
        blob: key >> STRIPE_BITS,
        stripe: (key & ((1 << STRIPE_BITS) - 1)) as u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    fn location(rng: &mut StdRng) -> Location {
        Location {
            extent: match rng.random_range(0..50) {
                0 => rng.random(),
                _ => rng.random_range(0..1 << EXTENT_BITS),
            },
            offset: rng.random_range(0..1 << OFFSET_BITS) * RECORD_ALIGN,
            len: rng.random_range(0..=crate::protocol::SHARD_BYTES_MAX),
            digests: if rng.random_ratio(1, 50) { 3 } else { 6 },
        }
    }

    /// Keys of few blobs, so that they meet again; now and then one that does not fit.
    fn key(rng: &mut StdRng, blobs: u64) -> ShardKey {
        ShardKey {
            blob: match rng.random_range(0..200) {
                0 => u64::MAX - rng.random_range(0..3),
                _ => rng.random_range(0..blobs),
            },
            stripe: match rng.random_range(0..200) {
                0 => rng.random(),
                _ => rng.random_range(0..4),
            },
        }
    }

    fn check(shards: &Shards, model: &BTreeMap<ShardKey, Location>) {
        assert_eq!(shards.len(), model.len());
        assert!(
            shards
                .range(Bound::Unbounded)
                .eq(model.iter().map(|(k, l)| (*k, *l)))
        );
        assert_eq!(shards.firsts.len(), shards.leaves.len());
        for (first, leaf) in shards.firsts.iter().zip(&shards.leaves) {
            assert_eq!(*first, leaf[0].0);
            assert!(leaf.len() <= LEAF_MAX && leaf.is_sorted());
        }
    }

    #[test]
    fn it_is_a_sorted_map() {
        for seed in crate::engine::tests::seeds(20) {
            println!("CAIRN_TEST_SEED={seed}");
            let mut rng = StdRng::seed_from_u64(seed);
            let (mut shards, mut model) = (Shards::default(), BTreeMap::new());
            let blobs = [10, 300, 5_000][seed as usize % 3];
            for round in 0..12 {
                // Growing, then shrinking, then about level.
                let removals = [1, 3, 9, 5][round % 4];
                for _ in 0..1_500 {
                    let key = key(&mut rng, blobs);
                    if rng.random_range(0..10) < removals {
                        assert_eq!(shards.remove(key), model.remove(&key));
                    } else {
                        let location = location(&mut rng);
                        assert_eq!(shards.insert(key, location), model.insert(key, location));
                    }
                    assert_eq!(shards.get(key), model.get(&key).copied());
                }
                check(&shards, &model);
                for _ in 0..50 {
                    let from = key(&mut rng, blobs);
                    for bound in [Bound::Included(from), Bound::Excluded(from)] {
                        let expected = model.range((bound, Bound::Unbounded)).map(|(k, l)| (*k, *l));
                        assert!(shards.range(bound).take(30).eq(expected.take(30)), "{bound:?}");
                    }
                }
            }
            for key in model.keys() {
                assert!(shards.remove(*key).is_some());
            }
            assert!(shards.is_empty() && shards.leaves.is_empty());
        }
    }

    /// Ids that grow leave full leaves; and what is deleted gives its memory back.
    #[test]
    fn growing_ids_take_sixteen_bytes() {
        let mut shards = Shards::default();
        let location = Location {
            extent: 1,
            offset: 64,
            len: 5,
            digests: 6,
        };
        let key = |n: u64| ShardKey {
            blob: n / 3,
            stripe: (n % 3) as u32,
        };
        let bytes = |shards: &Shards| {
            let pairs: usize = shards.leaves.iter().map(Vec::capacity).sum();
            16 * pairs + 24 * shards.leaves.capacity() + 8 * shards.firsts.capacity()
        };
        for n in 0..100_000 {
            shards.insert(key(n), location);
        }
        assert!(bytes(&shards) < 17 * 100_000, "{}", bytes(&shards));
        for n in (0..100_000).filter(|n| n % 10 != 0) {
            shards.remove(key(n));
        }
        assert!(bytes(&shards) < 40 * 10_000, "{}", bytes(&shards));
    }
}
