//! The ledger decides: which buckets, objects, blobs, volumes and disks exist.
//!
//! `store` is what an engine offers, `redb` and `memory` are engines, `conformance` runs against each. `key` and
//! `model` say what the rows look like; [`Ledger`] reads and writes them typed.
//!
//! Invariant: nothing outside this folder encodes a key or a row.

pub mod bounds;
pub mod changes;
#[cfg(test)]
mod conformance;
pub mod damage;
pub mod group_commit;
pub mod key;
pub mod memory;
pub mod model;
pub mod redb;
pub mod room;
pub mod store;

use bytes::Bytes;
use damage::Damage;
use prost::Message;
use std::sync::{Arc, OnceLock};
use store::{
    BlocksChecked, Commit, Direction, EngineState, KeyRange, LedgerError, Mending, Mutation, Precondition,
    Row, Scanned, Store,
};

/// How often a commit that lost a race is tried again before the client is told.
pub const CONFLICT_RETRIES: usize = 32;

/// A typed row and its version.
#[derive(Clone, Debug)]
pub struct Typed<T> {
    /// The row.
    pub row: T,
    /// Its version, for preconditions.
    pub version: u64,
}

/// Rows to be shown.
#[derive(Clone, Debug)]
pub struct Shown<T> {
    /// Those that can be read.
    pub rows: Vec<(Bytes, Typed<T>)>,
    /// Where it goes on; none at the end of the range.
    pub next: Option<Bytes>,
    /// Whether there are, or were, rows among them that cannot be read.
    pub lacks: bool,
}

/// Typed access to a store.
#[derive(Clone)]
pub struct Ledger {
    store: Arc<dyn Store>,
    /// Why nothing may be committed, if nothing may.
    frozen: Arc<OnceLock<String>>,
}

impl Ledger {
    /// On top of an engine.
    pub fn new(store: Arc<dyn Store>) -> Ledger {
        Ledger {
            store,
            frozen: Arc::default(),
        }
    }

    /// One row.
    pub async fn get<T: Message + Default>(&self, key: Bytes) -> Result<Option<Typed<T>>, LedgerError> {
        Ok(self.get_many(vec![key]).await?.pop().flatten())
    }

    /// Several rows of one kind, in the order of their keys, all from one moment.
    pub async fn get_many<T: Message + Default>(
        &self,
        keys: Vec<Bytes>,
    ) -> Result<Vec<Option<Typed<T>>>, LedgerError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let names = keys.clone();
        let values = self.store.get(keys).await?;
        values
            .into_iter()
            .zip(names)
            .map(|(value, key)| {
                value
                    .map(|v| {
                        Ok(Typed {
                            row: decode(&key, v.value)?,
                            version: v.version,
                        })
                    })
                    .transpose()
            })
            .collect()
    }

    /// Rows of one kind, in key order.
    pub async fn scan<T: Message + Default>(
        &self,
        range: KeyRange,
        limit: usize,
    ) -> Result<Vec<(Bytes, Typed<T>)>, LedgerError> {
        let rows = self.store.scan(range, limit, Direction::Forward).await?;
        rows.into_iter()
            .map(|r| {
                let row = decode(&r.key, r.versioned.value)?;
                Ok((
                    r.key,
                    Typed {
                        row,
                        version: r.versioned.version,
                    },
                ))
            })
            .collect()
    }

    /// Rows of one kind for those who show them, in key order, and beside what is damaged; none is left when there are fewer than
    /// `limit`, damaged ones counted.
    pub async fn scan_beside<T: Message + Default>(
        &self,
        range: KeyRange,
        limit: usize,
    ) -> Result<Shown<T>, LedgerError> {
        let scanned = self.store.scan_beside(range, limit).await?;
        let is_last = scanned.rows.len() < limit;
        let last = scanned.rows.last().map(|row| row.key.clone());
        let typed = |row: Row| {
            let version = row.versioned.version;
            let row_of = |row| Typed { row, version };
            decode(&row.key, row.versioned.value).map(|decoded| (row.key, row_of(decoded)))
        };
        let scanned_rows = scanned.rows.len();
        let rows: Vec<_> = scanned
            .rows
            .into_iter()
            .map(typed)
            .filter_map(Result::ok)
            .collect();
        Ok(Shown {
            lacks: !scanned.gaps.is_empty() || rows.len() < scanned_rows,
            rows,
            next: last.filter(|_| !is_last).map(|last| key::after(&last)),
        })
    }

    /// Rows as they are stored, beside what is damaged.
    pub async fn scan_raw(&self, range: KeyRange, limit: usize) -> Result<Scanned, LedgerError> {
        self.store.scan_beside(range, limit).await
    }

    /// Looks at blocks of the engine's file.
    pub async fn check_blocks(&self, from: u64, most: u64) -> Result<BlocksChecked, LedgerError> {
        self.store.check_blocks(from, most).await
    }

    /// Looks for all that cannot be read, to have it mended.
    pub async fn find_damage(&self) -> Result<Option<Box<dyn Mending>>, LedgerError> {
        self.store.find_damage().await
    }

    /// What is known to be damaged.
    pub fn damage(&self) -> Option<Arc<Damage>> {
        self.store.damage()
    }

    /// Every row of a range, in pages, handed to `each` as they come.
    pub async fn for_each<T: Message + Default>(
        &self,
        mut range: KeyRange,
        mut each: impl FnMut(Bytes, Typed<T>),
    ) -> Result<(), LedgerError> {
        const PAGE: usize = 1_000;
        loop {
            let rows = self.scan(range.clone(), PAGE).await?;
            let full = rows.len() == PAGE;
            if let Some((last, _)) = rows.last() {
                range.start = key::after(last);
            }
            rows.into_iter().for_each(|(key, row)| each(key, row));
            if !full {
                return Ok(());
            }
        }
    }

    /// Counts the rows of a range, up to `most`.
    pub async fn count(&self, mut range: KeyRange, most: usize) -> Result<usize, LedgerError> {
        const PAGE: usize = 1_000;
        let mut counted = 0;
        while counted < most {
            let rows = self
                .store
                .scan(range.clone(), PAGE.min(most - counted), Direction::Forward)
                .await?;
            let Some(last) = rows.last() else { break };
            range.start = key::after(&last.key);
            counted += rows.len();
        }
        Ok(counted)
    }

    /// The same ledger on top of another engine, which stands in front of this one's; both are frozen together.
    pub fn over(&self, store: Arc<dyn Store>) -> Ledger {
        Ledger {
            store,
            frozen: self.frozen.clone(),
        }
    }

    /// Refuses every commit from now on, by this one and those cloned from it.
    pub fn freeze(&self, why: &str) {
        self.frozen.get_or_init(|| why.to_owned());
    }

    /// An error if nothing may be committed.
    pub fn check_writable(&self) -> Result<(), LedgerError> {
        match self.frozen.get() {
            Some(why) => Err(LedgerError::Frozen { why: why.clone() }),
            None => Ok(()),
        }
    }

    /// Applies a commit.
    pub async fn commit(&self, commit: Commit) -> Result<u64, LedgerError> {
        self.check_writable()?;
        self.store.commit(commit).await
    }

    /// The engine.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// How far the ledger is: the version of its last commit.
    pub fn position(&self) -> u64 {
        self.store.position()
    }

    /// How the engine is.
    pub fn state(&self) -> EngineState {
        self.store.state()
    }

    /// An error while there is no room for more objects.
    pub fn check_room(&self) -> Result<(), LedgerError> {
        match self.store.state().room {
            Some(room) if !room.admits_uploads => Err(LedgerError::Full),
            _ => Ok(()),
        }
    }

    /// Takes `count` consecutive ids from a counter; they are never handed out again.
    pub async fn take_ids(&self, counter: key::Counter, count: u64) -> Result<u64, LedgerError> {
        let row_key = key::counter(counter);
        for attempt in 0.. {
            let current = self.get::<model::CounterRow>(row_key.clone()).await?;
            let first = current.as_ref().map_or(1, |c| c.row.next);
            let commit = CommitBuilder::new()
                .expect(&row_key, current.map(|c| c.version))
                .put(row_key.clone(), &model::CounterRow { next: first + count })
                .build();
            match self.commit(commit).await {
                Ok(_) => return Ok(first),
                Err(LedgerError::Conflict { .. }) if attempt < CONFLICT_RETRIES => {}
                Err(error) => return Err(error),
            }
        }
        unreachable!("the loop returns")
    }
}

fn decode<T: Message + Default>(key: &[u8], value: Bytes) -> Result<T, LedgerError> {
    T::decode(value).map_err(|e| LedgerError::Damaged {
        what: format!("row {}: {e}", key.escape_ascii()),
    })
}

/// Builds a commit from typed rows.
#[derive(Clone, Debug, Default)]
pub struct CommitBuilder {
    commit: Commit,
}

impl CommitBuilder {
    /// An empty one.
    pub fn new() -> CommitBuilder {
        CommitBuilder::default()
    }

    /// The key must have this version, or be absent if there is none.
    pub fn expect(mut self, key: &Bytes, version: Option<u64>) -> CommitBuilder {
        self.commit.preconditions.push(match version {
            Some(version) => Precondition::Version {
                key: key.clone(),
                version,
            },
            None => Precondition::Absent { key: key.clone() },
        });
        self
    }

    /// Writes a row.
    pub fn put<T: Message>(mut self, key: Bytes, row: &T) -> CommitBuilder {
        self.commit.mutations.push(Mutation::Put {
            key,
            value: row.encode_to_vec().into(),
        });
        self
    }

    /// Removes a row.
    pub fn delete(mut self, key: Bytes) -> CommitBuilder {
        self.commit.mutations.push(Mutation::Delete { key });
        self
    }

    /// The commit.
    pub fn build(self) -> Commit {
        self.commit
    }
}
