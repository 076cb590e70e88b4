//! The thread that brings commits into the tree, and that takes the ledger up again after a failure.
//!
//! Invariants:
//! - A transaction is begun with as much as there is room for; what is more comes in pieces. A crash between two leaves rows of the
//!   log in the tree, and the log, which has them all, until the last piece says how far the tree is.
//! - A failure of the tree stops nothing but settling: the tree is opened again and the same is tried again, from memory, after
//!   pauses that grow up to [`PAUSE_MAX`].
//! - After a failure of the log everything that memory has is in the tree, durably, before a commit is taken again; commits of which
//!   it is unknown whether they are durable are made so, whole.

use super::recent::{Entry, Rows};
use super::tree::Failure;
use super::writer::{Mended, Shared, Turn, lock, refused, with_row};
use crate::ledger::group_commit::panic_message;
use crate::ledger::room::Needed;
use crate::ledger::store::LedgerError;
use bytes::Bytes;
use std::iter::Peekable;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A ledger that is at rest for so long is brought into the tree, and its log is empty.
const REST: Duration = Duration::from_millis(if cfg!(test) { 20 } else { 1_000 });
/// The pause after the first failure; each further one in a row is followed by one twice as long.
const PAUSE: Duration = Duration::from_millis(10);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How often it is tried at the end; then the next start does it.
const ATTEMPTS_AT_END: u32 = 3;
/// Rows of a piece, however little room there is: what was freed in the tree's file is not counted as room. Fewer after a failure.
pub(super) const PIECE_ROWS_MIN: usize = 64;

/// The thread that brings commits into the tree.
#[derive(Debug)]
pub struct Settler {
    thread: Option<JoinHandle<()>>,
}

impl Settler {
    /// Starts it.
    pub fn start(shared: Arc<Shared>) -> std::io::Result<Settler> {
        let thread = std::thread::Builder::new()
            .name("ledger-settler".into())
            .spawn(move || run(&shared))?;
        Ok(Settler { thread: Some(thread) })
    }

    /// Brings the rest into the tree and ends. The writer must have ended. Blocks.
    pub fn close(&mut self, shared: &Shared) {
        lock(&shared.turn).closed = true;
        shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _joined = thread.join(); // What panicked was caught.
        }
        if let Some(mended) = lock(&shared.turn).mended.take() {
            mended.building.abandon();
        }
    }
}

enum Step {
    Worked,
    Ended,
}

fn run(shared: &Shared) {
    let (mut seen, mut failures) = (0, 0);
    loop {
        let closed = match failures {
            0 => wait_for_work(shared),
            _ => pause(shared, (PAUSE * (1 << failures.min(16))).min(PAUSE_MAX)),
        };
        let step = AssertUnwindSafe(|| step(shared, &mut seen, failures));
        let step = std::panic::catch_unwind(step)
            .unwrap_or_else(|panic| Err(Failure::Damaged(format!("a panic: {}", panic_message(&*panic)))));
        match step {
            Ok(Step::Ended) => return,
            Ok(Step::Worked) if failures > 0 => {
                failures = 0;
                well_again(shared);
            }
            Ok(Step::Worked) => {}
            Err(failure) => {
                failures += 1;
                failed(shared, &failure, failures);
                if closed && failures >= ATTEMPTS_AT_END {
                    tracing::warn!(%failure, "the ledger was not closed cleanly; the next start reads its log");
                    return;
                }
            }
        }
    }
}

/// Waits until there is something to do; whether it is the end.
fn wait_for_work(shared: &Shared) -> bool {
    let idle = |turn: &mut Turn| {
        let nothing = !turn.settling && !turn.closed && !turn.broken && turn.mended.is_none();
        nothing && shared.latch.check().is_ok()
    };
    let waited = shared.changed.wait_timeout_while(lock(&shared.turn), REST, idle);
    let (turn, _) = waited.unwrap_or_else(PoisonError::into_inner);
    turn.closed
}

/// Waits for a while, and opens the tree again for those who read meanwhile; whether it is the end.
fn pause(shared: &Shared, pause: Duration) -> bool {
    let until = Instant::now() + pause;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let pausing = |turn: &mut Turn| !turn.closed && !turn.broken && turn.mended.is_none();
        let waited = shared
            .changed
            .wait_timeout_while(lock(&shared.turn), left, pausing);
        let (turn, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if turn.closed || !turn.broken {
            return turn.closed;
        }
        drop(turn);
        if left.is_zero() || reopen_tree(shared).is_err() {
            // The next step tries that again.
            std::thread::sleep(left);
            return lock(&shared.turn).closed;
        }
    }
}

fn step(shared: &Shared, seen: &mut u64, failures: u32) -> Result<Step, Failure> {
    let (settling, broken, closed) = {
        let turn = lock(&shared.turn);
        (turn.settling, turn.broken, turn.closed)
    };
    if broken {
        reopen_tree(shared)?;
    }
    if shared.latch.check().is_err() {
        take_up_again(shared, failures)?;
        return Ok(Step::Worked);
    }
    if let Some(mended) = lock(&shared.turn).mended.take() {
        put_in_place(shared, mended);
        return Ok(Step::Worked);
    }
    if settling {
        settle_once(shared, failures)?;
        lock(&shared.turn).settling = false;
        shared.changed.notify_all();
        return Ok(Step::Worked);
    }
    let (sequence, is_behind) = shared.recent.sequence();
    if is_behind && (closed || sequence == *seen) {
        if let Ok(mut log) = shared.log.try_lock() {
            shared.switch(&mut log);
        }
        return Ok(Step::Worked);
    }
    *seen = sequence;
    if closed {
        finish(shared, sequence)?;
        return Ok(Step::Ended);
    }
    Ok(Step::Worked)
}

fn reopen_tree(shared: &Shared) -> Result<(), Failure> {
    std::thread::sleep(PAUSE); // So often at most, whatever readers find.
    shared
        .tree
        .reopen()
        .map_err(|error| Failure::Damaged(error.to_string()))?;
    shared.recent.renew(shared.tree.table()?);
    lock(&shared.turn).broken = false;
    shared.changed.notify_all();
    Ok(())
}

/// Puts a copy of the tree without its damage in its place, with what came into the tree meanwhile.
fn put_in_place(shared: &Shared, mended: Mended) {
    let Mended {
        building,
        log,
        mut position,
        answer,
    } = mended;
    let mut put = || {
        let followed = shared.recent.followed().ok_or_else(|| {
            Failure::Damaged("more was committed meanwhile than could be followed".to_owned())
        })?;
        let failed = |error: LedgerError| Failure::Damaged(error.to_string());
        for settled in followed {
            position = settled.sequence;
            building.apply(&settled.rows, position).map_err(failed)?;
        }
        building.mark(position, &log)
    };
    let mut put = put();
    match &put {
        Err(_) => building.abandon(),
        Ok(()) => {
            let replaced = shared.tree.replace(|| building.finish());
            put = replaced.map_err(|error| Failure::Damaged(error.to_string()));
            match shared.tree.table() {
                Ok(table) => shared.recent.renew(table),
                Err(_) => lock(&shared.turn).broken = true, // It is opened again.
            }
        }
    }
    if put.is_ok() {
        shared.tree.damage().forget_all();
    }
    let _gone = answer.send(put); // Whoever asked may have left.
}

/// Says once that something is wrong, and what to do next.
fn failed(shared: &Shared, failure: &Failure, failures: u32) {
    if failures == 1 && shared.latch.check().is_ok() {
        tracing::warn!(%failure, "the ledger's tree takes nothing for now; what is committed stays in its log");
    }
    let mut turn = lock(&shared.turn);
    turn.broken |= failure.breaks();
    turn.stuck = Some(refused(failure));
    shared.changed.notify_all();
}

fn well_again(shared: &Shared) {
    lock(&shared.turn).stuck = None;
    shared.changed.notify_all();
    tracing::info!("the ledger's tree takes what is committed again");
}

pub(super) fn settle_once(shared: &Shared, failures: u32) -> Result<(), Failure> {
    if let Some(settling) = shared.recent.settling() {
        bring_in(shared, &settling.rows, settling.sequence, failures)?;
        shared.recent.settled(shared.tree.table()?);
    }
    Ok(())
}

/// Brings rows into the tree that the log has, in as many pieces as the room there is asks for.
fn bring_in(shared: &Shared, rows: &Rows, sequence: u64, failures: u32) -> Result<(), Failure> {
    let least = (PIECE_ROWS_MIN >> failures.min(16)).max(1);
    let mut rest = rows.iter().peekable();
    loop {
        let piece = next_piece(&mut rest, shared.tree.bytes(), shared.room(), least);
        let is_last = rest.peek().is_none();
        shared.tree.apply(piece, is_last.then_some(sequence))?;
        if is_last {
            return Ok(());
        }
        // Pages are used again only when nobody reads them.
        shared.recent.renew(shared.tree.table()?);
    }
}

/// The next rows that there is room for, and at least so many.
pub(super) fn next_piece<'a>(
    rest: &mut Peekable<impl Iterator<Item = (&'a Bytes, &'a Entry)>>,
    tree_bytes: u64,
    room: u64,
    least: usize,
) -> Vec<(&'a Bytes, &'a Entry)> {
    let mut needed = Needed::on_tree(tree_bytes);
    let mut piece = Vec::new();
    while let Some(row) = rest.next_if(|row| {
        needed = with_row(needed, *row);
        piece.len() < least || needed.bytes() <= room
    }) {
        piece.push(row);
    }
    piece
}

/// After a failure of the log: all that memory has goes into the tree, then what was in doubt, and the log begins anew.
fn take_up_again(shared: &Shared, failures: u32) -> Result<(), Failure> {
    let Ok(mut log) = shared.log.try_lock() else {
        return Err(Failure::Damaged("a commit is being written".into()));
    };
    let (rows, mut sequence) = shared.recent.unsettled();
    bring_in(shared, &rows, sequence, failures)?;
    let mut doubtful = lock(&shared.doubtful);
    if let Some(doubtful) = doubtful.as_ref() {
        shared.tree.apply(&doubtful.rows, Some(doubtful.last))?;
        sequence = doubtful.last;
    }
    let table = shared.tree.table()?;
    log.renew()
        .map_err(|error| Failure::Damaged(format!("its log: {error}")))?;
    let to_follow = doubtful.take().and_then(|doubtful| doubtful.to_follow);
    shared.recent.all_settled(table, sequence);
    to_follow.iter().for_each(|batch| shared.changes.push(batch));
    lock(&shared.turn).settling = false;
    shared.latch.clear();
    shared.changed.notify_all();
    Ok(())
}

/// Says in the tree that it has everything. If that fails, the next start reads the log for nothing.
fn finish(shared: &Shared, sequence: u64) -> Result<(), Failure> {
    let id = *lock(&shared.log).id();
    shared.tree.apply_and_mark(&Rows::new(), sequence, &id, false)
}
