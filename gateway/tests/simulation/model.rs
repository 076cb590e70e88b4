//! What clients were told: for each key, what it may hold.
//!
//! A client that got an error, or no answer, does not know: the key holds what it held before, or what was sent. The next
//! read that succeeds settles it.

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use std::collections::BTreeMap;
use std::sync::Mutex;
use tokio::time::Instant;

/// What a key holds: pieces of content, by seed and length; none if there is no object.
pub type Value = Option<Vec<(u64, usize)>>;

/// The bytes of a value.
pub fn bytes_of(pieces: &[(u64, usize)]) -> Bytes {
    let mut bytes = Vec::with_capacity(pieces.iter().map(|(_, len)| len).sum());
    for (seed, len) in pieces {
        let start = bytes.len();
        bytes.resize(start + len, 0);
        StdRng::seed_from_u64(*seed).fill_bytes(&mut bytes[start..]);
    }
    bytes.into()
}

/// The keys of one client. No other writes to them.
#[derive(Default)]
pub struct Model {
    keys: BTreeMap<String, Vec<Value>>,
}

impl Model {
    /// What a key may hold.
    pub fn of(&self, key: &str) -> Vec<Value> {
        self.keys.get(key).cloned().unwrap_or_else(|| vec![None])
    }

    /// A change was answered: it holds this.
    pub fn set(&mut self, key: &str, value: Value) {
        self.keys.insert(key.into(), vec![value]);
    }

    /// A change was not answered, or refused.
    pub fn maybe(&mut self, key: &str, value: Value) {
        let mut values = self.of(key);
        if !values.contains(&value) {
            values.push(value);
        }
        self.keys.insert(key.into(), values);
    }

    pub fn keys(&self) -> impl Iterator<Item = &String> {
        self.keys.keys()
    }

    /// Takes in what a read of all of it found: an error message if it cannot be.
    pub fn found(&mut self, key: &str, bytes: Option<&[u8]>) -> Result<(), String> {
        let values = self.of(key);
        let is_it = |value: &&Value| match (value, bytes) {
            (None, None) => true,
            (Some(pieces), Some(bytes)) => bytes_of(pieces) == bytes,
            _ => false,
        };
        match values.iter().find(is_it) {
            Some(value) => {
                self.set(key, value.clone());
                Ok(())
            }
            None => Err(format!(
                "{key} holds {}, and may hold {values:?}",
                bytes.map_or_else(
                    || "nothing".into(),
                    |bytes| format!("{} other bytes", bytes.len())
                )
            )),
        }
    }

    /// Whether what a read of a range found can be.
    pub fn found_range(&self, key: &str, first: usize, last: usize, bytes: &[u8]) -> Result<(), String> {
        let is_it = |value: &Value| {
            value.as_ref().is_some_and(|pieces| {
                let all = bytes_of(pieces);
                first < all.len() && all[first..(last + 1).min(all.len())] == *bytes
            })
        };
        match self.of(key).iter().any(is_it) {
            true => Ok(()),
            false => Err(format!("{key} has other bytes in {first}..={last}")),
        }
    }
}

/// A change of a key that several clients write to.
struct Write {
    value: Value,
    begun: Instant,
    /// From then on it is done, if it was done.
    ended: Option<Instant>,
    acknowledged: bool,
}

/// The keys that all clients write to, and every change of them.
#[derive(Default)]
pub struct Shared {
    writes: Mutex<BTreeMap<String, Vec<Write>>>,
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Vec<Write>>> {
        self.writes.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// A change is asked for. Answers its number.
    pub fn begin(&self, key: &str, value: Value) -> usize {
        let mut keys = self.lock();
        let writes = keys.entry(key.into()).or_default();
        writes.push(Write {
            value,
            begun: Instant::now(),
            ended: None,
            acknowledged: false,
        });
        writes.len() - 1
    }

    /// It was answered, or nobody knows and whatever it did is done.
    pub fn end(&self, key: &str, write: usize, acknowledged: bool) {
        if let Some(write) = self.lock().get_mut(key).and_then(|writes| writes.get_mut(write)) {
            (write.ended, write.acknowledged) = (Some(Instant::now()), acknowledged);
        }
    }

    /// Whether what a read found that began then can be: a change of which is not known that another one, acknowledged before
    /// the read began, came after it.
    pub fn found(&self, key: &str, begun: Instant, bytes: Option<&[u8]>) -> Result<(), String> {
        let keys = self.lock();
        let writes = keys.get(key).map_or(&[][..], Vec::as_slice);
        let is_past = |ended: Option<Instant>| {
            let follows =
                |later: &Write| later.acknowledged && ended.is_some_and(|ended| later.begun > ended);
            writes
                .iter()
                .any(|later| follows(later) && later.ended.is_some_and(|ended| ended < begun))
        };
        let is_it = |value: &Value| match (value, bytes) {
            (None, None) => true,
            (Some(pieces), Some(bytes)) => {
                pieces.iter().map(|(_, len)| len).sum::<usize>() == bytes.len() && bytes_of(pieces) == bytes
            }
            _ => false,
        };
        let is_first = bytes.is_none()
            && !writes
                .iter()
                .any(|w| w.acknowledged && w.ended.is_some_and(|e| e < begun));
        match is_first
            || writes
                .iter()
                .any(|write| is_it(&write.value) && !is_past(write.ended))
        {
            true => Ok(()),
            false => {
                let of = writes.iter().position(|write| is_it(&write.value));
                Err(format!(
                    "{key} holds what is past: that of change {of:?} of {}",
                    writes.len()
                ))
            }
        }
    }
}
