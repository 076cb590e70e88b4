//! Whether a request keeps the bounds that `store.rs` states. Every engine asks here first, so that all of them
//! refuse the same requests with the same words, and before anything is queued.

use std::collections::HashSet;

use bytes::Bytes;

use super::store::{BATCH_MAX, Commit, KEY_BYTES_MAX, LedgerError, Mutation, Precondition, VALUE_BYTES_MAX};

/// The keys of a `get`: not too many, none too long.
pub fn check_get(keys: &[Bytes]) -> Result<(), LedgerError> {
    check_count("keys", keys.len())?;
    keys.iter().try_for_each(check_key)
}

/// A commit: not too large in any part, and no key written twice.
pub fn check_commit(commit: &Commit) -> Result<(), LedgerError> {
    check_count("preconditions", commit.preconditions.len())?;
    check_count("mutations", commit.mutations.len())?;
    commit
        .preconditions
        .iter()
        .map(Precondition::key)
        .try_for_each(check_key)?;
    let mut written = HashSet::with_capacity(commit.mutations.len());
    for mutation in &commit.mutations {
        check_key(mutation.key())?;
        if let Mutation::Put { value, .. } = mutation
            && value.len() > VALUE_BYTES_MAX
        {
            return Err(out_of_bounds(format!(
                "a value of {} bytes, at most {VALUE_BYTES_MAX}",
                value.len()
            )));
        }
        if !written.insert(mutation.key()) {
            return Err(out_of_bounds(format!(
                "the key {:?} is written twice",
                mutation.key()
            )));
        }
    }
    Ok(())
}

fn check_count(what: &str, count: usize) -> Result<(), LedgerError> {
    if count <= BATCH_MAX {
        return Ok(());
    }
    Err(out_of_bounds(format!("{count} {what}, at most {BATCH_MAX}")))
}

fn check_key(key: &Bytes) -> Result<(), LedgerError> {
    if key.len() <= KEY_BYTES_MAX {
        return Ok(());
    }
    Err(out_of_bounds(format!(
        "a key of {} bytes, at most {KEY_BYTES_MAX}",
        key.len()
    )))
}

fn out_of_bounds(what: String) -> LedgerError {
    LedgerError::OutOfBounds { what }
}

impl Precondition {
    /// The key it is about.
    pub fn key(&self) -> &Bytes {
        match self {
            Self::Version { key, .. } | Self::Absent { key } => key,
        }
    }

    /// Whether it holds for a key that now has this version, or none.
    pub fn holds(&self, version_now: Option<u64>) -> bool {
        match self {
            Self::Version { version, .. } => version_now == Some(*version),
            Self::Absent { .. } => version_now.is_none(),
        }
    }
}

impl Mutation {
    /// The key it changes.
    pub fn key(&self) -> &Bytes {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

impl Commit {
    /// The bytes of its keys and values: what it weighs in a queue.
    pub fn bytes(&self) -> usize {
        let preconditions: usize = self.preconditions.iter().map(|p| p.key().len()).sum();
        let mutations: usize = self
            .mutations
            .iter()
            .map(|mutation| match mutation {
                Mutation::Put { key, value } => key.len() + value.len(),
                Mutation::Delete { key } => key.len(),
            })
            .sum();
        preconditions + mutations
    }
}
