//! What is committed and not in the tree yet, in memory: over the tree, it is the ledger as it is now.
//!
//! Invariants:
//! - All of a batch is seen or nothing of it; who reads several keys or a range reads them of one moment.
//! - The lock is held for work in memory only, and no longer than what was asked for takes.
//! - The cache holds rows as the tree has them, and none that is recent. It takes one in only from the tree of this moment.
//! - A removed row stays as a mark over the tree's row, if the tree has one. Rows that are put and soon removed, as those of garbage are,
//!   leave none: every scan of their range would pass all of these marks again.

use super::tree::{Failure, Table};
use crate::ledger::store::{Direction, KeyRange, Row, Versioned};
use bytes::Bytes;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use std::collections::BTreeMap;
use std::iter::Peekable;
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// A row as it was left by the last commit that wrote its key; none if it was removed.
pub type Entry = Option<Versioned>;
/// Rows by key.
pub type Rows = BTreeMap<Bytes, Entry>;

/// The most that a follower gets of what came into the tree meanwhile; past it, it gets nothing.
const FOLLOWED_MAX: usize = 16;

/// Rows in the order of a range.
pub type Ordered = Vec<(Bytes, Entry)>;

/// What a row takes in memory besides its bytes, about.
const ROW_OVERHEAD: u64 = 160;

#[derive(Clone)]
struct Weigh;

impl Weighter<Bytes, Versioned> for Weigh {
    fn weight(&self, key: &Bytes, row: &Versioned) -> u64 {
        (key.len() + row.value.len()) as u64 + ROW_OVERHEAD
    }
}

/// Rows on their way to the tree.
pub struct Settling {
    /// The rows.
    pub rows: Rows,
    /// The version of the last commit among them.
    pub sequence: u64,
}

struct State {
    /// What came since the last switch.
    active: Rows,
    /// The version of the last commit.
    sequence: u64,
    /// Something was committed since the last switch, if only to be removed again.
    changed: bool,
    settling: Option<Arc<Settling>>,
    /// The version of the last commit that the tree has with all before it.
    settled: u64,
    /// What came into the tree since somebody began to follow.
    followed: Option<Vec<Arc<Settling>>>,
    /// None once closed.
    tree: Option<Arc<Table>>,
    /// Counts trees.
    trees: u64,
}

/// See the module.
pub struct Recent {
    state: RwLock<State>,
    cache: Cache<Bytes, Versioned, Weigh>,
}

/// What is known of some keys, and the tree to ask for the others.
pub struct Found {
    /// For each key: its row, or that there is none; none if the tree must be asked.
    pub entries: Vec<Option<Entry>>,
    /// The tree of that moment.
    pub tree: Arc<Table>,
    /// Which one it is.
    pub trees: u64,
}

impl Recent {
    /// Nothing yet over this tree, whose last commit has this version. Rows that are read are cached in so many bytes.
    pub fn new(tree: Table, sequence: u64, cache_bytes: u64) -> Recent {
        Recent {
            state: RwLock::new(State {
                active: Rows::new(),
                sequence,
                changed: false,
                settling: None,
                settled: sequence,
                followed: None,
                tree: Some(Arc::new(tree)),
                trees: 0,
            }),
            cache: Cache::with_weighter((cache_bytes / 512) as usize, cache_bytes, Weigh),
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of these keys; none once closed.
    pub fn find(&self, keys: &[Bytes]) -> Option<Found> {
        let state = self.read();
        let known = |key: &Bytes| {
            let cached = || self.cache.get(key).map(Some);
            state.get(key).cloned().or_else(cached)
        };
        Some(Found {
            entries: keys.iter().map(known).collect(),
            tree: state.tree.clone()?,
            trees: state.trees,
        })
    }

    /// Takes a row into the cache that `found`'s tree has.
    pub fn remember(&self, found: &Found, key: &Bytes, row: &Versioned) {
        let state = self.read(); // Nobody commits meanwhile.
        if state.trees == found.trees && state.get(key).is_none() {
            self.cache.insert(key.clone(), row.clone());
        }
    }

    /// The recent rows of a range that matter to who wants its first (or last) `limit`, in that order, and the tree below them and
    /// which one it is; none once closed.
    pub fn range(
        &self,
        range: &KeyRange,
        limit: usize,
        direction: Direction,
    ) -> Option<(Ordered, Arc<Table>, u64)> {
        let state = self.read();
        let tree = state.tree.clone()?;
        let bounds = (
            Bound::Included(range.start.clone()),
            range.end.clone().map_or(Bound::Unbounded, Bound::Excluded),
        );
        let nothing = Rows::new();
        let older = state
            .settling
            .as_ref()
            .map_or(&nothing, |settling| &settling.rows);
        let (newer, older) = (state.active.range(bounds.clone()), older.range(bounds));
        let recent = match direction {
            Direction::Forward => until_full(newer, older, limit, direction),
            Direction::Backward => until_full(newer.rev(), older.rev(), limit, direction),
        };
        Some((recent, tree, state.trees))
    }

    /// The keys that these rows remove, of rows that were put since the last switch: perhaps the tree never had them. And the tree to
    /// ask, and which one that is; none once closed.
    pub fn removed_soon(&self, rows: &Rows) -> Option<(Vec<Bytes>, Arc<Table>, u64)> {
        let state = self.read();
        let is_settling = |key: &Bytes| state.settling.as_ref().is_some_and(|s| s.rows.contains_key(key));
        let is_young = |key: &Bytes| matches!(state.active.get(key), Some(Some(_))) && !is_settling(key);
        let removed = rows.iter().filter(|(_, entry)| entry.is_none());
        let young = removed.map(|(key, _)| key).filter(|key| is_young(key));
        Some((young.cloned().collect(), state.tree.clone()?, state.trees))
    }

    /// Takes in what was committed, up to this version. Of the rows that are `gone` nothing is left; neither the tree nor what is on its
    /// way there has them.
    pub fn commit(&self, rows: Rows, gone: &[Bytes], sequence: u64) {
        let mut state = self.write();
        for key in rows.keys() {
            self.cache.remove(key);
        }
        state.active.extend(rows);
        for key in gone {
            state.active.remove(key);
        }
        (state.sequence, state.changed) = (sequence, true);
    }

    /// Takes in what the tree has at once, up to this version. Nothing else must be on its way there.
    pub fn adopt(&self, rows: Rows, sequence: u64, tree: Table) {
        let mut state = self.write();
        debug_assert!(!state.changed && state.settling.is_none());
        for key in rows.keys() {
            self.cache.remove(key);
        }
        (state.sequence, state.settled) = (sequence, sequence);
        state.followed = None;
        state.tree = Some(Arc::new(tree));
        state.trees += 1;
    }

    /// The version of the last commit, and whether the tree lacks any.
    pub fn sequence(&self) -> (u64, bool) {
        let state = self.read();
        (state.sequence, state.changed)
    }

    /// Turns what is active into what is being settled. Nothing must be.
    pub fn switch(&self) {
        let mut state = self.write();
        debug_assert!(state.settling.is_none());
        let (rows, sequence) = (std::mem::take(&mut state.active), state.sequence);
        state.settling = Some(Arc::new(Settling { rows, sequence }));
        state.changed = false;
    }

    /// What is being settled.
    pub fn settling(&self) -> Option<Arc<Settling>> {
        self.read().settling.clone()
    }

    /// The tree has what was being settled.
    pub fn settled(&self, tree: Table) {
        let mut state = self.write();
        let settled = state.settling.take();
        if let Some(settled) = &settled {
            state.settled = settled.sequence;
            let followed = state.followed.as_mut();
            if let Some(followed) = followed.filter(|followed| followed.len() < FOLLOWED_MAX) {
                followed.push(settled.clone());
            } else {
                state.followed = None;
            }
        }
        state.tree = Some(Arc::new(tree));
        state.trees += 1;
        drop(state);
        drop(settled); // Many rows: not under the lock.
    }

    /// Everything that the tree may lack, and the version of the last commit.
    pub fn unsettled(&self) -> (Rows, u64) {
        let state = self.read();
        let older = state.settling.as_ref().map(|settling| settling.rows.clone());
        let mut rows = older.unwrap_or_default();
        rows.extend(
            state
                .active
                .iter()
                .map(|(key, entry)| (key.clone(), entry.clone())),
        );
        (rows, state.sequence)
    }

    /// The tree has everything, up to this version.
    pub fn all_settled(&self, tree: Table, sequence: u64) {
        let mut state = self.write();
        let settled = (std::mem::take(&mut state.active), state.settling.take());
        (state.sequence, state.changed) = (sequence, false);
        state.settled = sequence;
        state.followed = None;
        state.tree = Some(Arc::new(tree));
        state.trees += 1;
        self.cache.clear();
        drop(state);
        drop(settled); // Many rows: not under the lock.
    }

    /// The same tree, opened again, or with some of what is being settled.
    pub fn renew(&self, tree: Table) {
        let mut state = self.write();
        if state.tree.is_some() {
            state.tree = Some(Arc::new(tree));
        }
        state.trees += 1;
    }

    /// Keeps what comes into the tree from now on, for one who copies it: the tree of this moment, and the version of the last commit
    /// that it has with all before it. None once closed.
    pub fn follow(&self) -> Option<(Arc<Table>, u64)> {
        let mut state = self.write();
        let tree = state.tree.clone()?;
        state.followed = Some(Vec::new());
        Some((tree, state.settled))
    }

    /// What came into the tree since; none if it was too much, or did not come one after the other.
    pub fn followed(&self) -> Option<Vec<Arc<Settling>>> {
        self.write().followed.take()
    }

    /// How many trees there were.
    pub fn trees(&self) -> u64 {
        self.read().trees
    }

    /// Lets go of the tree.
    pub fn close(&self) {
        self.write().tree = None;
    }
}

impl State {
    fn get(&self, key: &Bytes) -> Option<&Entry> {
        let settling = || self.settling.as_ref()?.rows.get(key);
        self.active.get(key).or_else(settling)
    }
}

fn until_full<'a>(
    newer: impl Iterator<Item = (&'a Bytes, &'a Entry)>,
    older: impl Iterator<Item = (&'a Bytes, &'a Entry)>,
    limit: usize,
    direction: Direction,
) -> Ordered {
    let owned = |(key, entry): (&Bytes, &Entry)| Ok::<_, Failure>((key.clone(), entry.clone()));
    let mut rows = 0;
    let mut recent = Vec::new();
    // What is in memory does not fail.
    for (key, entry) in merge(newer.map(owned), older.map(owned), direction).flatten() {
        if rows == limit {
            break;
        }
        rows += usize::from(entry.is_some());
        recent.push((key, entry));
    }
    recent
}

/// The first `limit` rows of the tree's with the recent ones over them; all in the same order.
pub fn overlay(
    recent: Ordered,
    tree: impl Iterator<Item = Result<Row, Failure>>,
    limit: usize,
    direction: Direction,
) -> Result<Vec<Row>, Failure> {
    let older = tree.map(|row| row.map(|row| (row.key, Some(row.versioned))));
    let rows = merge(recent.into_iter().map(Ok), older, direction).filter_map(|row| match row {
        Ok((key, entry)) => entry.map(|versioned| Ok(Row { key, versioned })),
        Err(error) => Some(Err(error)),
    });
    rows.take(limit).collect()
}

type Item = Result<(Bytes, Entry), Failure>;

/// Two sorted sources as one; of a key that both have, the newer's.
fn merge<N: Iterator<Item = Item>, O: Iterator<Item = Item>>(
    newer: N,
    older: O,
    direction: Direction,
) -> Merge<N, O> {
    Merge {
        newer: newer.peekable(),
        older: older.peekable(),
        direction,
    }
}

struct Merge<N: Iterator, O: Iterator> {
    newer: Peekable<N>,
    older: Peekable<O>,
    direction: Direction,
}

impl<N: Iterator<Item = Item>, O: Iterator<Item = Item>> Iterator for Merge<N, O> {
    type Item = Item;

    fn next(&mut self) -> Option<Item> {
        let (Some(Ok((newer, _))), Some(Ok((older, _)))) = (self.newer.peek(), self.older.peek()) else {
            // One has ended, or fails, which is said at once.
            return match self.older.peek() {
                Some(Err(_)) => self.older.next(),
                _ => self.newer.next().or_else(|| self.older.next()),
            };
        };
        let order = match self.direction {
            Direction::Forward => newer.cmp(older),
            Direction::Backward => older.cmp(newer),
        };
        if order.is_eq() {
            self.older.next();
        }
        match order.is_le() {
            true => self.newer.next(),
            false => self.older.next(),
        }
    }
}
