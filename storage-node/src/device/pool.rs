//! Memory for what is read and written that is used again: taking it from the allocator, zeroed, and giving it back costs as much as
//! checking what was read.
//!
//! Invariants:
//! - What is in the pool was initialised when it was made. What it holds now is what was there last, be it somebody's object,
//!   so whoever takes it shows nobody more than was filled since: by themselves, or by a device that did not fail.
//! - The pool keeps at most [`POOLED_BYTES_MAX`] in all. What comes back beyond that takes the place of pieces of other sizes, so that
//!   the pool holds what is used now, or is freed. Locks are held for a push or a pop.

use super::BLOCK;
use super::buffer::Memory;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes that a process keeps for what comes.
pub const POOLED_BYTES_MAX: usize = 64 << 20;
/// The largest piece that is kept: a stripe of 32 data shards.
pub(super) const PIECE_BYTES_MAX: usize = 32 << 20;
/// So many pieces of other sizes make place for one at most.
const PLACES_MAX: usize = 64;
/// Sizes there are between one power of two and the next: at most a fifth of a piece is not used.
const STEPS: usize = 4;
/// One for each size: four up to four blocks, then four to each doubling.
pub(super) const CLASSES: usize = class_of(PIECE_BYTES_MAX) + 1;

const _: () = assert!(size_of_class(CLASSES - 1) == PIECE_BYTES_MAX);

/// The pool of this process.
static POOL: Pool = Pool::new(POOLED_BYTES_MAX);

/// Memory of at least `len` bytes, used before or new, with anything in it.
pub fn take(len: usize) -> Memory {
    POOL.take(len)
}

/// Takes memory back.
pub fn give(memory: Memory) {
    POOL.give(memory);
}

/// The smallest class that holds `len` bytes.
pub(super) const fn class_of(len: usize) -> usize {
    let blocks = if len == 0 { 1 } else { len.div_ceil(BLOCK) };
    if blocks <= STEPS {
        return blocks - 1;
    }
    // The leading bits of the last block's number say which doubling and which step of it.
    let shift = (blocks - 1).ilog2() as usize - STEPS.ilog2() as usize;
    let step = (blocks - 1) >> shift;
    STEPS * shift + step
}

/// How many bytes its pieces have.
pub(super) const fn size_of_class(class: usize) -> usize {
    if class < STEPS {
        return (class + 1) * BLOCK;
    }
    let shift = class / STEPS - 1;
    ((class % STEPS + STEPS + 1) << shift) * BLOCK
}

/// A pool: which piece is whose.
pub(super) struct Pool {
    bytes_max: usize,
    bytes: AtomicUsize,
    /// The class that is next to lose a piece to another.
    next: AtomicUsize,
    free: [Mutex<Vec<Memory>>; CLASSES],
}

impl Pool {
    pub(super) const fn new(bytes_max: usize) -> Pool {
        Pool {
            bytes_max,
            bytes: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            free: [const { Mutex::new(Vec::new()) }; CLASSES],
        }
    }

    fn free(&self, class: usize) -> MutexGuard<'_, Vec<Memory>> {
        self.free[class].lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn take(&self, len: usize) -> Memory {
        if len > PIECE_BYTES_MAX {
            return Memory::zeroed(len.next_multiple_of(BLOCK));
        }
        let class = class_of(len);
        let Some(memory) = self.free(class).pop() else {
            return Memory::zeroed(size_of_class(class));
        };
        self.bytes.fetch_sub(memory.len(), Ordering::Relaxed);
        memory
    }

    pub(super) fn give(&self, memory: Memory) {
        let len = memory.len();
        let class = class_of(len.min(PIECE_BYTES_MAX));
        if size_of_class(class) != len || len > self.bytes_max {
            return;
        }
        // Counted first, so that the bound holds whoever comes in between.
        self.bytes.fetch_add(len, Ordering::Relaxed);
        let mut places = 0;
        while self.bytes.load(Ordering::Relaxed) > self.bytes_max {
            if places == PLACES_MAX || !self.free_one_but(class) {
                self.bytes.fetch_sub(len, Ordering::Relaxed);
                return;
            }
            places += 1;
        }
        self.free(class).push(memory);
    }

    /// Frees a piece of any class but this, of each in turn. False if there is none.
    fn free_one_but(&self, kept: usize) -> bool {
        let classes = (0..CLASSES).map(|_| self.next.fetch_add(1, Ordering::Relaxed) % CLASSES);
        let freed = classes
            .filter(|class| *class != kept)
            .find_map(|class| self.free(class).pop());
        if let Some(memory) = &freed {
            self.bytes.fetch_sub(memory.len(), Ordering::Relaxed);
        }
        freed.is_some()
    }

    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        // All at once: what moves from one class to another meanwhile would count twice.
        let all: Vec<_> = (0..CLASSES).map(|class| self.free(class)).collect();
        all.iter().flat_map(|free| free.iter()).map(Memory::len).sum()
    }

    #[cfg(test)]
    pub(super) fn counted(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}
