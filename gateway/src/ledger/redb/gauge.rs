//! Looks twice a second how much room there is for the ledger, makes its reserve whole again, and says so when room runs out.
//!
//! Invariant: requests ask what was seen last, which is in memory; nobody of them asks the filesystem.

use super::reserve::Reserve;
use crate::ledger::room::Measured;
use crate::ledger::store::Room;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often it looks.
const PERIOD: Duration = Duration::from_millis(500);

/// What is known of the room, and the thread that looks.
#[derive(Debug)]
pub struct Gauge {
    seen: Arc<RwLock<Option<Room>>>,
    /// Ends the thread when it is dropped.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Gauge {
    /// Looks once, and from then on in a thread of its own. Blocks.
    pub fn start(reserve: Arc<Reserve>) -> std::io::Result<Gauge> {
        let seen = Arc::<RwLock<Option<Room>>>::default();
        let (stop, stopped) = channel();
        look(&reserve, &seen);
        let looking = seen.clone();
        let thread = std::thread::Builder::new()
            .name("ledger-room".into())
            .spawn(move || run(&reserve, &looking, &stopped))?;
        Ok(Gauge {
            seen,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// What was seen last; none if the filesystem does not say.
    pub fn room(&self) -> Option<Room> {
        *self.seen.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Gauge {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _joined = thread.join(); // If it panicked, the panic hook has said so.
        }
    }
}

fn run(reserve: &Reserve, seen: &RwLock<Option<Room>>, stopped: &Receiver<()>) {
    while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(PERIOD) {
        look(reserve, seen);
    }
}

fn look(reserve: &Reserve, seen: &RwLock<Option<Room>>) {
    let before = *seen.read().unwrap_or_else(PoisonError::into_inner);
    // A reserve that cannot be made longer for another reason than room is one that is too short.
    let measured = reserve.refill().or_else(|_| reserve.measure());
    let now = measured.ok().map(|measured| judged(&measured, before));
    if let Some(now) = now {
        say(before, now);
    }
    *seen.write().unwrap_or_else(PoisonError::into_inner) = now;
}

fn judged(measured: &Measured, before: Option<Room>) -> Room {
    Room {
        free_bytes: measured.free_bytes,
        reserve_bytes: measured.reserve_bytes,
        reserve_wanted_bytes: measured.reserve_wanted(),
        admits_uploads: measured.admits(before.is_none_or(|before| before.admits_uploads)),
    }
}

fn say(before: Option<Room>, now: Room) {
    let (free_bytes, reserve_bytes) = (now.free_bytes, now.reserve_bytes);
    match (
        before.is_none_or(|before| before.admits_uploads),
        now.admits_uploads,
    ) {
        (true, false) => tracing::warn!(
            free_bytes,
            reserve_bytes,
            "the filesystem of the ledger is nearly full: uploads are refused, deletes and reads go on"
        ),
        (false, true) => tracing::info!(
            free_bytes,
            reserve_bytes,
            "the filesystem of the ledger has room again: uploads go on"
        ),
        _ => {}
    }
}
