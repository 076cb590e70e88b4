//! What clients were told: for each key, what it may hold.
//!
//! A client that got an error, or no answer, does not know: the key holds what it held before, or what was sent. The next
//! read that succeeds settles it.
//!
//! All of it is known with the positions of the ledger between which it happened. So it is known, too, what an older copy of the
//! ledger says, and what is left when a copy goes on instead.

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

/// The positions of a ledger when something was asked for, and when it was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub begun: u64,
    pub ended: u64,
}

/// What was learnt of a key.
struct Event {
    value: Value,
    /// No earlier commit did it.
    begun: u64,
    /// No later commit did it, and then it holds this; none if nobody knows whether it was done.
    ended: Option<u64>,
}

/// The keys of one client. No other writes to them.
#[derive(Default)]
pub struct Model(Mutex<BTreeMap<String, Vec<Event>>>);

/// What a key may hold after some of what happened to it.
fn after<'a>(events: impl Iterator<Item = (&'a Value, bool)>) -> Vec<Value> {
    let mut values = vec![None];
    for (value, is_certain) in events {
        match is_certain {
            true => values = vec![value.clone()],
            false if !values.contains(value) => values.push(value.clone()),
            false => {}
        }
    }
    values
}

impl Model {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Vec<Event>>> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn note(&self, key: &str, event: Event) {
        self.lock().entry(key.into()).or_default().push(event);
    }

    /// What a key may hold.
    pub fn of(&self, key: &str) -> Vec<Value> {
        let keys = self.lock();
        let events = keys.get(key).into_iter().flatten();
        after(events.map(|event| (&event.value, event.ended.is_some())))
    }

    /// What a key may hold according to the ledger as it was at a position, and whether it may have changed since.
    pub fn as_of(&self, key: &str, position: u64) -> (Vec<Value>, bool) {
        let keys = self.lock();
        let events = || keys.get(key).into_iter().flatten();
        let is_certain = |event: &Event| event.ended.is_some_and(|ended| ended <= position);
        let known = events().filter(|event| event.begun < position || is_certain(event));
        let values = after(known.map(|event| (&event.value, is_certain(event))));
        (values, events().any(|event| !is_certain(event)))
    }

    /// The ledger goes on from a position: what was committed after it is given up.
    pub fn fork(&self, position: u64) {
        for events in self.lock().values_mut() {
            events
                .retain(|event| event.begun < position || event.ended.is_some_and(|ended| ended <= position));
            for event in events {
                event.ended = event.ended.filter(|ended| *ended <= position);
            }
        }
    }

    /// A change was answered: it holds this.
    pub fn set(&self, key: &str, value: Value, span: Span) {
        let (begun, ended) = (span.begun, Some(span.ended));
        self.note(key, Event { value, begun, ended });
    }

    /// A change was not answered, or refused.
    pub fn maybe(&self, key: &str, value: Value, span: Span) {
        let (begun, ended) = (span.begun, None);
        self.note(key, Event { value, begun, ended });
    }

    pub fn keys(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    /// Takes in what a read of all of it found: an error message if it cannot be.
    pub fn found(&self, key: &str, bytes: Option<&[u8]>, span: Span) -> Result<(), String> {
        let values = self.of(key);
        let value = among(key, &values, bytes)?;
        if values.len() > 1 {
            self.set(key, value, span);
        }
        Ok(())
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

/// Which of these values was read; an error message if none was.
pub fn among(key: &str, values: &[Value], bytes: Option<&[u8]>) -> Result<Value, String> {
    let is_it = |value: &&Value| match (value, bytes) {
        (None, None) => true,
        (Some(pieces), Some(bytes)) => {
            pieces.iter().map(|(_, len)| len).sum::<usize>() == bytes.len() && bytes_of(pieces) == bytes
        }
        _ => false,
    };
    let held = || {
        bytes.map_or_else(
            || "nothing".into(),
            |bytes| format!("{} other bytes", bytes.len()),
        )
    };
    let found = values.iter().find(is_it).cloned();
    found.ok_or_else(|| format!("{key} holds {}, and may hold {values:?}", held()))
}

/// A change of a key that several clients write to.
struct Write {
    value: Value,
    begun: Instant,
    /// From then on it is done, if it was done.
    ended: Option<Instant>,
    acknowledged: bool,
    at: Span,
}

impl Write {
    /// Whether it was answered when the ledger was at a position.
    fn is_done_at(&self, position: u64) -> bool {
        self.acknowledged && self.at.ended <= position
    }
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

    /// A change is asked for, of a ledger at a position. Answers its number.
    pub fn begin(&self, key: &str, value: Value, position: u64) -> usize {
        let mut keys = self.lock();
        let writes = keys.entry(key.into()).or_default();
        let (begun, ended) = (position, u64::MAX);
        writes.push(Write {
            value,
            begun: Instant::now(),
            ended: None,
            acknowledged: false,
            at: Span { begun, ended },
        });
        writes.len() - 1
    }

    /// It was answered, or nobody knows and whatever it did is done.
    pub fn end(&self, key: &str, write: usize, acknowledged: bool, position: u64) {
        if let Some(write) = self.lock().get_mut(key).and_then(|writes| writes.get_mut(write)) {
            (write.ended, write.acknowledged) = (Some(Instant::now()), acknowledged);
            write.at.ended = position;
        }
    }

    /// The ledger goes on from a position. Nobody writes meanwhile.
    pub fn fork(&self, position: u64) {
        for writes in self.lock().values_mut() {
            writes.retain(|write| write.at.begun < position || write.is_done_at(position));
            for write in writes {
                write.acknowledged = write.is_done_at(position);
            }
        }
    }

    /// Whether what a read found that began then can be: a change of which is not known that another one, acknowledged before
    /// the read began, came after it.
    pub fn found(&self, key: &str, begun: Instant, bytes: Option<&[u8]>) -> Result<(), String> {
        let is_settled = |write: &Write| write.acknowledged && write.ended.is_some_and(|ended| ended < begun);
        self.may_hold(key, bytes, is_settled, |_| true)
    }

    /// The same of a read of the ledger as it was at a position.
    pub fn found_as_of(&self, key: &str, position: u64, bytes: Option<&[u8]>) -> Result<(), String> {
        let is_settled = |write: &Write| write.is_done_at(position);
        let is_there = |write: &Write| write.at.begun < position || write.is_done_at(position);
        self.may_hold(key, bytes, is_settled, is_there)
    }

    /// Whether a key may have changed since the ledger was at a position.
    pub fn changed_since(&self, key: &str, position: u64) -> bool {
        let keys = self.lock();
        let mut writes = keys.get(key).into_iter().flatten();
        writes.any(|write| !write.is_done_at(position))
    }

    fn may_hold(
        &self,
        key: &str,
        bytes: Option<&[u8]>,
        is_settled: impl Fn(&Write) -> bool,
        is_there: impl Fn(&Write) -> bool,
    ) -> Result<(), String> {
        let keys = self.lock();
        let writes = keys.get(key).map_or(&[][..], Vec::as_slice);
        let is_past = |ended: Option<Instant>| {
            let follows = |later: &Write| ended.is_some_and(|ended| later.begun > ended);
            writes.iter().any(|later| is_settled(later) && follows(later))
        };
        let may_be = |write: &&Write| is_there(write) && !is_past(write.ended);
        let values: Vec<Value> = writes
            .iter()
            .filter(may_be)
            .map(|write| write.value.clone())
            .collect();
        let is_first = bytes.is_none() && !writes.iter().any(is_settled);
        match is_first || among(key, &values, bytes).is_ok() {
            true => Ok(()),
            false => {
                let of = writes
                    .iter()
                    .position(|write| among(key, std::slice::from_ref(&write.value), bytes).is_ok());
                Err(format!(
                    "{key} holds what is past: that of change {of:?} of {}",
                    writes.len()
                ))
            }
        }
    }
}
