//! Has what is damaged of the running ledger repaired from its archive.
//!
//! ```text
//! damage is known ──► find_damage: parts, at commit C ──► the archive has all up to C? ──► recall: their rows at C ──► mend
//!        ▲                                                   no: after the next shipment                             │
//!        └───────────────────────── the hold is lifted when nothing is known to be damaged ◄───────────────────────┘
//! ```
//! Invariants:
//! - Nothing is changed unless every damaged part is known from the archive, from entries of this gateway's own history.
//! - One attempt at a time; after one that failed the next comes later, up to [`PAUSE_MAX`].

use super::entry::Writer;
use super::finding::Finder;
use super::recall::{Asked, recall};
use super::shipper::sources;
use crate::cluster::setup;
use crate::error::{Error, Result};
use crate::ledger::damage::Damage;
use crate::ledger::key;
use crate::ledger::store::{Gap, KeyRange};
use crate::object::Objects;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use storage_node::protocol::ClusterId;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// The pause after an attempt that failed; each further one in a row is followed by one twice as long.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(300);
/// The archive is waited for so long in an attempt.
const SHIPPING_MAX: Duration = Duration::from_secs(5);
/// Rows that are read again at a time.
const PAGE: usize = 1_000;

#[derive(Default)]
struct State {
    attempt: Option<JoinHandle<()>>,
    failures: u32,
    not_before: Option<Instant>,
}

/// See the module.
pub struct Mending {
    objects: Arc<Objects>,
    /// Its row may be what is damaged.
    cluster: OnceLock<ClusterId>,
    state: Arc<Mutex<State>>,
}

impl Drop for Mending {
    fn drop(&mut self) {
        if let Some(attempt) = &lock(&self.state).attempt {
            attempt.abort();
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Mending {
    /// For a gateway.
    pub fn new(objects: Arc<Objects>) -> Mending {
        Mending {
            objects,
            cluster: OnceLock::new(),
            state: Arc::default(),
        }
    }

    /// Begins an attempt if something is damaged, and it is time.
    pub async fn look(&self, damage: &Arc<Damage>) {
        if self.cluster.get().is_none()
            && let Ok(Some((cluster, _))) = setup::find(&self.objects.ledger).await
        {
            self.cluster.get_or_init(|| cluster);
        }
        let state = &mut *lock(&self.state);
        let is_attempting = state
            .attempt
            .as_ref()
            .is_some_and(|attempt| !attempt.is_finished());
        if is_attempting || self.objects.disks.generations().own().is_none() {
            return; // In safe mode nobody knows which history is right.
        }
        if !damage.counts().is_any() {
            (state.failures, state.not_before) = (0, None);
            damage.note_repair(|note| note.waits = None);
            return;
        }
        if state.not_before.is_some_and(|at| Instant::now() < at) {
            return;
        }
        let Some(cluster) = self.cluster.get().copied() else {
            let why = "the row that says which cluster this is cannot be read: `cairn ledger repair`";
            damage.note_repair(|note| note.waits = Some(why.into()));
            return;
        };
        let (objects, shared, damage) = (self.objects.clone(), self.state.clone(), damage.clone());
        state.attempt = Some(tokio::spawn(async move {
            let attempted = attempt(&objects, cluster).await;
            let mut state = lock(&shared);
            match attempted {
                Ok(done) => {
                    (state.failures, state.not_before) = (0, None);
                    note_done(&objects, &damage, &done);
                }
                Err(error) => {
                    let pause = (PAUSE * (1 << state.failures.min(16))).min(PAUSE_MAX);
                    state.failures += 1;
                    state.not_before = Some(Instant::now() + pause);
                    let why = error.to_string();
                    if damage.repair().waits.as_ref() != Some(&why) {
                        tracing::info!(
                            why,
                            "the ledger is not repaired from its archive yet; it is tried again"
                        );
                    }
                    damage.note_repair(|note| note.waits = Some(why));
                }
            }
        }));
    }
}

/// What an attempt repaired.
struct Done {
    parts: usize,
    rows: u64,
    position: u64,
}

fn note_done(objects: &Objects, damage: &Damage, done: &Done) {
    if done.parts == 0 && done.rows == 0 {
        return damage.note_repair(|note| note.waits = None);
    }
    objects.metrics.ledger_repaired_rows.inc_by(done.rows);
    damage.note_repair(|note| {
        note.repairs += 1;
        note.rows += done.rows;
        note.waits = None;
    });
    tracing::info!(
        parts = done.parts,
        rows = done.rows,
        position = done.position,
        "what was damaged of the ledger is repaired from its archive"
    );
}

async fn attempt(objects: &Arc<Objects>, cluster: ClusterId) -> Result<Done> {
    let ledger = &objects.ledger;
    let mut done = Done {
        parts: 0,
        rows: 0,
        position: ledger.position(),
    };
    let Some(mending) = ledger.find_damage().await? else {
        return Ok(done);
    };
    done.position = mending.position();
    let parts = mending.parts().to_vec();
    let mut rows = Vec::new();
    if !parts.is_empty() {
        for part in lost_rows(objects, cluster, &parts, done.position).await? {
            rows.extend(part);
        }
    }
    (done.parts, done.rows) = (parts.len(), rows.len() as u64);
    mending.mend(rows).await?;
    for part in &parts {
        read_again(objects, part).await?;
    }
    Ok(done)
}

/// The rows of these parts at a commit, as the archive has them.
async fn lost_rows(
    objects: &Arc<Objects>,
    cluster: ClusterId,
    parts: &[Gap],
    position: u64,
) -> Result<Vec<Vec<crate::ledger::store::Row>>> {
    let archive = &objects.archive;
    if tokio::time::timeout(SHIPPING_MAX, archive.shipped(position))
        .await
        .is_err()
    {
        let shipped = archive.status(position).shipped;
        return Err(Error::Internal(format!(
            "the archive is complete up to commit {shipped}, and what is damaged is of commit {position}"
        )));
    }
    let own = objects.disks.generations().own();
    let own = own.ok_or_else(|| Error::ReadOnly("the ledger is behind".into()))?;
    let finder = Finder::new(cluster, sources(objects));
    let found = finder.find(0).await;
    let asked = Asked {
        parts,
        position,
        witnesses: &[],
        later: &[],
        writer: Some(Writer {
            number: own.number,
            nonce: own.nonce,
        }),
    };
    let known = recall(&found.entries, &asked, &finder).await;
    let known = known.map_err(|error| Error::Internal(error.to_string()))?;
    let (all, known) = (known.len(), known.into_iter().flatten().collect::<Vec<_>>());
    match known.len() == all {
        true => Ok(known),
        false => Err(Error::Internal(format!(
            "of {all} damaged parts the archive knows {}",
            known.len()
        ))),
    }
}

/// Reads what was repaired; an error if it cannot be.
async fn read_again(objects: &Objects, part: &Gap) -> Result<()> {
    let mut range = KeyRange {
        start: part.start.clone(),
        end: part.end.clone(),
    };
    loop {
        let scanned = objects.ledger.scan_raw(range.clone(), PAGE).await?;
        if let Some(gap) = scanned.gaps.first() {
            let what = key::words(&gap.start);
            return Err(Error::Internal(format!(
                "{what} was repaired, and is damaged again"
            )));
        }
        match scanned.rows.last().filter(|_| scanned.rows.len() == PAGE) {
            Some(last) => range.start = key::after(&last.key),
            None => return Ok(()),
        }
    }
}
