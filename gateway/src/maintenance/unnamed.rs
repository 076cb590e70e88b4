//! Blobs that disks have shards of and no row names: they are set aside, and go after a time, if nothing speaks against it.
//!
//! ```text
//! census, sweep of orphans ─► 'U' row ─► complete censuses, hours of running ─► garbage row ─► deleted from the disks
//!                                │
//!                                └─► named again, gone from the disks, restored by an operator: no row any more
//! ```
//! That a row is missing proves nothing: the ledger may be an older copy, or have lost a row. So what is known of such a blob is
//! kept in a row of its own (`unnamed/aside`), each complete census that finds it counts once (`unnamed/count`), and gateways
//! count how long they run (`unnamed/keep`). `unnamed/judge` decides, and is pure.
//!
//! Invariant: nothing is deleted here. What goes becomes a garbage row, in a commit that has as preconditions that no blob row and
//! no garbage row names it and that its own row is as it was judged.
//! Invariant: nothing goes while there is a hold (`holds`), nor when more is unnamed than a few: then an operator is asked.
//! Invariant: nothing goes that an object's or a part's row names: all of them are read first.
//! Invariant: a read of the ledger that fails is not a missing row: the step fails, and nothing goes in it.
//! Deliberately absent: wall clocks. Time counts only as long as a gateway runs, and not while there is a hold.

pub mod aside;
mod count;
pub mod judge;
pub mod keep;
mod references;

use super::worker::{Step, Worker};
use crate::error::{Error, Result};
use crate::ledger::model::{BlobRow, GarbageRow, GenerationRow, UnnamedRow};
use crate::ledger::{CommitBuilder, Typed, key};
use crate::object::Objects;
use crate::object::readers::BlobKey;
use bytes::Bytes;
use judge::{Verdict, Why, bound, judge};
use keep::RunClock;
pub use references::Reference;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// So many rows are read, or changed, at once.
const PAGE: usize = 512;
/// So many go in one step.
const STEP_MAX: usize = 10_000;
/// A count of blobs, to see whether a bound is passed, holds so long.
const COUNT_HOLDS: Duration = Duration::from_secs(600);
/// A census takes at least so long, however short what nothing names is kept.
const CENSUS_MIN: Duration = Duration::from_secs(60);
const REST: Duration = Duration::from_secs(5);
/// It rests so many times as long as a step took.
const REST_SHARE: u32 = 20;

/// What a gateway knows of them, for status and metrics.
#[derive(Debug, Default)]
pub struct Known {
    clock: RunClock,
    summary: Mutex<Summary>,
}

/// What is set aside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Blobs.
    pub blobs: u64,
    /// Bytes of their shards.
    pub bytes: u64,
    /// Blobs of these that go only when an operator says so.
    pub kept: u64,
    /// Blobs of these that objects name, and that lack only their own row.
    pub referenced: u64,
    /// Why nothing goes by itself, if nothing does.
    pub stopped: Option<String>,
    /// How soon a census is to be over, so that those that have to find what waits fit the time that it is kept.
    pub census_within: Option<Duration>,
}

impl Known {
    /// What was set aside when it was last looked at.
    pub fn summary(&self) -> Summary {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Summary> {
        self.summary.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See the module.
pub struct Unnamed {
    objects: Arc<Objects>,
    /// Blobs of a volume, or of all (none), as counted last.
    counted: Mutex<HashMap<Option<u64>, Counted>>,
    took: Mutex<Duration>,
}

/// How many blobs are named.
#[derive(Clone, Copy)]
struct Counted {
    at: Instant,
    blobs: usize,
    /// Whether there may be more.
    is_least: bool,
}

/// What one look at all rows found.
#[derive(Default)]
struct Survey {
    summary: Summary,
    /// Blobs that would go by themselves in time, by volume.
    going: BTreeMap<u64, u64>,
    /// Those whose time is over, and the versions of their rows; not more than fit a step.
    due: Vec<(BlobKey, u64)>,
}

impl Unnamed {
    /// For one gateway.
    pub fn new(objects: Arc<Objects>) -> Unnamed {
        Unnamed {
            objects,
            counted: Mutex::default(),
            took: Mutex::default(),
        }
    }

    /// Looks at all rows. Those whose blobs are named meanwhile go from the list.
    async fn survey(&self) -> Result<Survey> {
        let objects = &self.objects;
        let (keep, ran_s) = objects.keep().await?;
        let kept_below = objects.kept_below_blob().await?;
        let mut survey = Survey::default();
        let mut range = key::table(b'U');
        loop {
            let rows = objects.ledger.scan::<UnnamedRow>(range.clone(), PAGE).await?;
            let Some((last, _)) = rows.last() else { break };
            range.start = key::after(last);
            for (blob, row) in objects.forget_named(rows).await? {
                survey.summary.blobs += 1;
                survey.summary.bytes += row.row.bytes;
                match judge(blob.1, &row.row, &keep, ran_s, kept_below) {
                    Verdict::Kept(why) => {
                        survey.summary.kept += 1;
                        survey.summary.referenced += u64::from(why == Why::Referenced);
                        continue;
                    }
                    Verdict::Goes if survey.due.len() < STEP_MAX => survey.due.push((blob, row.version)),
                    Verdict::Goes | Verdict::Waits { .. } => {}
                }
                *survey.going.entry(blob.0).or_default() += 1;
            }
        }
        survey.summary.stopped = self.why_stopped(&survey.going).await?;
        if !survey.going.is_empty() {
            let within = Duration::from_secs(keep.keep_s) / keep.censuses;
            survey.summary.census_within = Some(within.max(CENSUS_MIN));
        }
        Ok(survey)
    }

    /// Why nothing is to go by itself, if nothing is.
    async fn why_stopped(&self, going: &BTreeMap<u64, u64>) -> Result<Option<String>> {
        let holds = self.objects.holds.all();
        if let Some((_, why)) = holds.first() {
            return Ok(Some(why.clone()));
        }
        let all = going.values().sum::<u64>();
        if let Some(most) = self.passed(None, all, judge::BLOBS_MAX).await? {
            return Ok(Some(format!(
                "nothing names {all} blobs, more than {most}: look at `cairn unnamed list`, then `cairn unnamed purge` or `restore`"
            )));
        }
        for (volume, blobs) in going {
            if let Some(most) = self
                .passed(Some(*volume), *blobs, judge::VOLUME_BLOBS_MAX)
                .await?
            {
                return Ok(Some(format!(
                    "nothing names {blobs} blobs of volume {volume}, more than {most}: look at `cairn unnamed list`, then \
                     `cairn unnamed purge` or `restore`"
                )));
            }
        }
        Ok(None)
    }

    /// The bound, if so many unnamed blobs of a volume, or of all, are more.
    async fn passed(&self, volume: Option<u64>, blobs: u64, least: u64) -> Result<Option<u64>> {
        if blobs <= least {
            return Ok(None);
        }
        let enough = usize::try_from(blobs)
            .unwrap_or(usize::MAX)
            .saturating_mul(judge::SHARE as usize);
        let lock = || self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let known = lock().get(&volume).copied();
        let holds =
            |known: &Counted| known.at.elapsed() < COUNT_HOLDS && (!known.is_least || known.blobs >= enough);
        let named = match known.filter(holds) {
            Some(known) => known.blobs,
            None => {
                let range = volume.map_or_else(|| key::table(b'B'), key::blobs);
                let blobs = self.objects.ledger.count(range, enough).await?;
                let counted = Counted {
                    at: Instant::now(),
                    blobs,
                    is_least: blobs >= enough,
                };
                lock().insert(volume, counted);
                blobs
            }
        };
        let most = bound(named as u64, least);
        Ok((blobs > most).then_some(most))
    }
}

impl Unnamed {
    /// Looks at all that is set aside, and lets go of what is due.
    async fn look(&self) -> Result<Step> {
        let objects = &self.objects;
        objects.note_running().await?;
        let survey = self.survey().await?;
        let before = std::mem::replace(&mut *objects.unnamed.lock(), survey.summary.clone());
        objects.metrics.unnamed_blobs.set(survey.summary.blobs as i64);
        objects.metrics.unnamed_bytes.set(survey.summary.bytes as i64);
        if let Some(why) = &survey.summary.stopped {
            // Who placed a hold has said so.
            if before.stopped.as_ref() != Some(why) && objects.holds.may_delete() {
                tracing::warn!(why, "what nothing names is kept");
            }
            return Ok(Step::Idle);
        }
        if survey.due.is_empty() {
            return Ok(Step::Idle);
        }
        let due = objects.keep_referenced(survey.due).await?;
        Ok(match objects.purge_unnamed(&due).await?.is_empty() {
            true => Step::Idle,
            false => Step::Worked,
        })
    }
}

impl Objects {
    /// Blobs with a smaller id go only when an operator says so.
    pub async fn kept_below_blob(&self) -> Result<u64> {
        let found = self.ledger.get::<GenerationRow>(key::generation()).await?;
        Ok(found.map_or(0, |found| found.row.kept_below_blob))
    }

    /// Of rows of blobs that were set aside, those whose blobs still have no other row; the others are removed.
    async fn forget_named(
        &self,
        rows: Vec<(Bytes, Typed<UnnamedRow>)>,
    ) -> Result<Vec<(BlobKey, Typed<UnnamedRow>)>> {
        let known = |(row_key, row): (Bytes, Typed<UnnamedRow>)| Some((key::volume_and_blob(&row_key)?, row));
        let rows: Vec<(BlobKey, Typed<UnnamedRow>)> = rows.into_iter().filter_map(known).collect();
        let keys = |of: fn(u64, u64) -> Bytes| rows.iter().map(|((v, b), _)| of(*v, *b)).collect();
        let named = self.ledger.get_many::<BlobRow>(keys(key::blob)).await?;
        let garbage = self.ledger.get_many::<GarbageRow>(keys(key::garbage)).await?;
        let (mut unnamed, mut commit, mut gone) = (Vec::new(), CommitBuilder::new(), 0);
        for ((found, named), garbage) in rows.into_iter().zip(named).zip(garbage) {
            if named.is_none() && garbage.is_none() {
                unnamed.push(found);
                continue;
            }
            let row_key = key::unnamed(found.0.0, found.0.1);
            commit = commit.expect(&row_key, Some(found.1.version)).delete(row_key);
            gone += 1;
        }
        if gone > 0 && self.commit_unless_changed(commit).await? {
            tracing::info!(blobs = gone, "blobs that were set aside have a row again");
        }
        Ok(unnamed)
    }

    /// Commits under the lease. False if something changed meanwhile: whoever comes next decides on what is there then.
    pub(super) async fn commit_unless_changed(&self, commit: CommitBuilder) -> Result<bool> {
        match self
            .ledger
            .commit(self.lease.fence(commit).build())
            .await
            .map_err(Error::from)
        {
            Ok(_) => Ok(true),
            Err(Error::Conflict) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Makes garbage of blobs that were set aside, each if its row still has this version and nothing names it. Answers which.
    pub async fn purge_unnamed(&self, blobs: &[(BlobKey, u64)]) -> Result<Vec<BlobKey>> {
        let mut purged = Vec::new();
        for page in blobs.chunks(PAGE) {
            if !self.holds.may_delete() {
                break;
            }
            if self.purge_all(page).await? {
                purged.extend(page.iter().map(|(blob, _)| *blob));
                continue;
            }
            // One of them changed: the others by themselves.
            for one in page {
                if self.holds.may_delete() && self.purge_all(std::slice::from_ref(one)).await? {
                    purged.push(one.0);
                }
            }
        }
        if !purged.is_empty() {
            tracing::info!(blobs = purged.len(), "blobs that nothing names are deleted");
            self.abandoned.wake();
        }
        Ok(purged)
    }

    async fn purge_all(&self, blobs: &[(BlobKey, u64)]) -> Result<bool> {
        let mut commit = CommitBuilder::new();
        for ((volume, blob), version) in blobs {
            let (row_key, garbage) = (key::unnamed(*volume, *blob), key::garbage(*volume, *blob));
            commit = commit
                .expect(&key::blob(*volume, *blob), None)
                .expect(&garbage, None)
                .expect(&row_key, Some(*version))
                .put(garbage, &GarbageRow::default())
                .delete(row_key);
        }
        self.commit_unless_changed(commit).await
    }
}

#[async_trait::async_trait]
impl Worker for Unnamed {
    fn name(&self) -> &'static str {
        "unnamed"
    }

    fn rest(&self) -> Duration {
        let took = *self.took.lock().unwrap_or_else(PoisonError::into_inner);
        REST.max(took * REST_SHARE)
    }

    async fn step(&self) -> Result<Step> {
        let began = Instant::now();
        let stepped = self.look().await;
        *self.took.lock().unwrap_or_else(PoisonError::into_inner) = began.elapsed();
        stepped
    }
}
