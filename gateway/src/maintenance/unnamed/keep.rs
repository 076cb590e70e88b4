//! How long what nothing names is kept: the setting, and the time that gateways have run.
//!
//! Invariant: time that is not in the ledger yet when a gateway dies is forgotten, so that the sum is never more than what ran.
//! A step of the worker that came late counts for little: the machine may have been stopped meanwhile.

use crate::error::{Error, Result};
use crate::ledger::model::KeepRow;
use crate::ledger::{CONFLICT_RETRIES, CommitBuilder, key};
use crate::object::Objects;
use serde::{Deserialize, Serialize};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Seconds that gateways run before what nothing names goes, unless somebody says otherwise.
pub const KEEP_S: u64 = 86_400;
/// Complete censuses that have to find it.
pub const CENSUSES: u32 = 3;
/// How often the time is written down.
const WRITE_PERIOD: Duration = Duration::from_secs(60);
/// Between two steps so much counts at most.
const STEP_MAX: Duration = Duration::from_secs(60);

/// The setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keep {
    /// Seconds that gateways have to run before it goes.
    pub keep_s: u64,
    /// Complete censuses that have to find it before it goes; at least one.
    pub censuses: u32,
}

/// The time that this process has run and not written down.
#[derive(Debug, Default)]
pub struct RunClock(Mutex<Run>);

#[derive(Debug, Default)]
struct Run {
    unwritten: Duration,
    at: Option<Instant>,
}

impl RunClock {
    /// Time passes. Whether it counts.
    fn pass(&self, counts: bool) {
        let mut run = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let passed = run.at.replace(now).map_or(Duration::ZERO, |at| now - at);
        if counts {
            run.unwritten += passed.min(STEP_MAX);
        }
    }

    fn unwritten(&self) -> Duration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).unwritten
    }

    /// Whole seconds, to be written down now.
    fn take(&self) -> u64 {
        let mut run = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let seconds = run.unwritten.as_secs();
        run.unwritten -= Duration::from_secs(seconds);
        seconds
    }
}

impl Objects {
    /// The setting, and the seconds that gateways have run.
    pub async fn keep(&self) -> Result<(Keep, u64)> {
        let found = self.ledger.get::<KeepRow>(key::keep()).await?;
        let row = found.map_or_else(KeepRow::default, |found| found.row);
        let keep = Keep {
            keep_s: row.keep_s.unwrap_or(KEEP_S),
            censuses: row.censuses.unwrap_or(CENSUSES).max(1),
        };
        Ok((
            keep,
            row.ran_s.saturating_add(self.unnamed.clock.unwritten().as_secs()),
        ))
    }

    /// Sets how long it is kept.
    pub async fn set_keep(&self, keep: Keep) -> Result<()> {
        self.change_keep(|row| {
            row.keep_s = Some(keep.keep_s);
            row.censuses = Some(keep.censuses.max(1));
        })
        .await
    }

    /// Counts the time since the last call, unless there is a hold, and writes it down every minute.
    pub(super) async fn note_running(&self) -> Result<()> {
        let clock = &self.unnamed.clock;
        clock.pass(self.holds.may_delete());
        if clock.unwritten() < WRITE_PERIOD {
            return Ok(());
        }
        // If the outcome is not known it is not written again: rather too little than too much.
        let seconds = clock.take();
        self.change_keep(|row| row.ran_s = row.ran_s.saturating_add(seconds))
            .await
    }

    async fn change_keep(&self, change: impl Fn(&mut KeepRow)) -> Result<()> {
        let row_key = key::keep();
        for _ in 0..CONFLICT_RETRIES {
            let found = self.ledger.get::<KeepRow>(row_key.clone()).await?;
            let (mut row, version) = found.map_or((KeepRow::default(), None), |f| (f.row, Some(f.version)));
            change(&mut row);
            let commit = CommitBuilder::new()
                .expect(&row_key, version)
                .put(row_key.clone(), &row);
            if self.commit_unless_changed(commit).await? {
                return Ok(());
            }
        }
        Err(Error::Conflict)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn time_counts_while_it_runs_and_what_came_late_counts_little() {
        let clock = RunClock::default();
        clock.pass(true);
        for _ in 0..7 {
            tokio::time::advance(Duration::from_millis(1_500)).await;
            clock.pass(true);
        }
        assert_eq!(
            (clock.take(), clock.unwritten()),
            (10, Duration::from_millis(500))
        );
        tokio::time::advance(Duration::from_secs(1_000_000)).await;
        clock.pass(true);
        assert_eq!(clock.take(), STEP_MAX.as_secs());
        tokio::time::advance(Duration::from_secs(50)).await;
        clock.pass(false);
        tokio::time::advance(Duration::from_secs(3)).await;
        clock.pass(true);
        assert_eq!(clock.take(), 3);
    }
}
