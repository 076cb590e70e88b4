//! Reads the whole ledger, slowly and again and again, so that damage is known before it is needed; and while any is known, nothing is
//! deleted.
//!
//! A pass goes over all rows (each one's seal is checked) and all blocks of the file (each one's checksum, on disk, whatever is cached).
//! What it finds is noted in [`Damage`], as what any read finds is. A block that is not what was written and that no row was read from may
//! be unused: a crash leaves such ones. It is counted, and holds nothing up. What is known to be damaged is repaired from the archive
//! ([`Mending`]), and then a pass begins anew.
//!
//! Invariant: within [`LOOK`] of the moment that damage is known there is a hold, until there is none.

use super::holds::Hold;
use super::worker::{Step, Worker};
use crate::archive::mending::Mending;
use crate::error::Result;
use crate::ledger::damage::{Damage, LastPass};
use crate::ledger::key;
use crate::ledger::store::KeyRange;
use crate::object::Objects;
use bytes::Bytes;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How often the known damage is looked at, and a piece of the pass is done.
const LOOK: Duration = Duration::from_millis(500);
/// Rows of a piece: a million rows take a quarter of an hour.
const ROWS_AT_ONCE: usize = 500;
/// Blocks of a piece: 2 GiB take six hours.
const BLOCKS_AT_ONCE: u64 = 12;
/// The pause between passes.
const REST: Duration = Duration::from_secs(6 * 3600);
/// Damage that is shown with a hold.
const WORDS_MAX: usize = 5;

enum Place {
    Rows(Bytes),
    Blocks(u64),
    Rest(Instant),
}

struct Pass {
    place: Place,
    found: LastPass,
    /// Repairs before it began.
    repairs: u64,
}

/// The worker.
pub struct LedgerCheck {
    objects: Arc<Objects>,
    pass: Mutex<Pass>,
    mending: Mending,
}

impl LedgerCheck {
    /// For this gateway's ledger.
    pub fn new(objects: Arc<Objects>) -> LedgerCheck {
        let pass = Mutex::new(Pass {
            place: Place::Rows(Bytes::new()),
            found: LastPass::default(),
            repairs: 0,
        });
        let mending = Mending::new(objects.clone());
        let check = LedgerCheck {
            objects,
            pass,
            mending,
        };
        check.hold();
        check
    }

    fn hold(&self) {
        let Some(damage) = self.objects.ledger.damage() else {
            return;
        };
        match damage.counts().is_any() {
            true => {
                let why = format!("the ledger is damaged: {}", damage.words(WORDS_MAX).join("; "));
                self.objects.holds.place(Hold::LedgerDamaged, &why);
            }
            false => self.objects.holds.lift(Hold::LedgerDamaged),
        }
    }

    /// A piece of the pass; what is done is told by where it goes on.
    async fn go_on(&self, damage: &Damage) -> Result<()> {
        let place = {
            let pass = self.pass.lock().unwrap_or_else(PoisonError::into_inner);
            match &pass.place {
                Place::Rows(from) => Place::Rows(from.clone()),
                Place::Blocks(from) => Place::Blocks(*from),
                Place::Rest(until) => Place::Rest(*until),
            }
        };
        let ledger = &self.objects.ledger;
        match place {
            Place::Rest(until) if Instant::now() < until => {}
            Place::Rest(_) => self.set(Place::Rows(Bytes::new()), |found| *found = LastPass::default()),
            Place::Rows(start) => {
                let scanned = ledger
                    .scan_raw(KeyRange { start, end: None }, ROWS_AT_ONCE)
                    .await?;
                let next = match scanned.rows.last().filter(|_| scanned.rows.len() == ROWS_AT_ONCE) {
                    Some(last) => Place::Rows(key::after(&last.key)),
                    None => Place::Blocks(0),
                };
                let (rows, gaps) = (scanned.rows.len() as u64, scanned.gaps.len() as u64);
                self.set(next, |found| {
                    found.rows += rows;
                    found.gaps += gaps;
                });
            }
            Place::Blocks(from) => {
                let checked = ledger.check_blocks(from, BLOCKS_AT_ONCE).await?;
                let next = match checked.next {
                    Some(next) => Place::Blocks(next),
                    None => Place::Rest(Instant::now() + REST),
                };
                let is_over = checked.next.is_none();
                self.set(next, |found| {
                    found.blocks += checked.blocks;
                    found.blocks_wrong += checked.wrong;
                });
                if is_over {
                    let found = self.pass.lock().unwrap_or_else(PoisonError::into_inner).found;
                    damage.note_pass(LastPass {
                        ended_ms: self.objects.clock.now_ms(),
                        ..found
                    });
                }
            }
        }
        Ok(())
    }

    /// What was repaired is looked at again, with all the rest.
    fn begin_anew_after_repair(&self, damage: &Damage) {
        let repairs = damage.repair().repairs;
        let mut pass = self.pass.lock().unwrap_or_else(PoisonError::into_inner);
        if pass.repairs != repairs {
            *pass = Pass {
                place: Place::Rows(Bytes::new()),
                found: LastPass::default(),
                repairs,
            };
        }
    }

    fn set(&self, place: Place, change: impl FnOnce(&mut LastPass)) {
        let mut pass = self.pass.lock().unwrap_or_else(PoisonError::into_inner);
        pass.place = place;
        change(&mut pass.found);
    }
}

#[async_trait::async_trait]
impl Worker for LedgerCheck {
    fn name(&self) -> &'static str {
        "ledger"
    }

    fn rest(&self) -> Duration {
        LOOK
    }

    async fn step(&self) -> Result<Step> {
        let Some(damage) = self.objects.ledger.damage() else {
            return Ok(Step::Idle);
        };
        self.hold();
        let done = self.go_on(&damage).await;
        self.mending.look(&damage).await;
        self.begin_anew_after_repair(&damage);
        self.hold();
        done.map(|()| Step::Idle)
    }
}
