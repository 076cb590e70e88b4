//! Memory for reads that is used again: taking it from the allocator, zeroed, and giving it back costs as much as checking
//! what was read.
//!
//! Invariants:
//! - What is in the pool was initialised when it was made. What it holds now is what was last read into it, so whoever takes
//!   it hands it to a device, which fills all of it or fails, and shows nobody what a failed read left.
//! - The pool keeps at most [`POOLED_BYTES_MAX`] in all; what comes back beyond that is freed. Locks are held for a push or a pop.

use super::BLOCK;
use super::buffer::Memory;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes that a process keeps for reads to come.
pub const POOLED_BYTES_MAX: usize = 64 << 20;
/// The largest piece that is kept: a whole record of 1 MiB, head and padding included.
const PIECE_BYTES_MAX: usize = 5 << 18;
/// Sizes there are between one power of two and the next: at most a fifth of a piece is not used.
const STEPS: usize = 4;
/// One for each size: four up to four blocks, then four to each doubling.
const CLASSES: usize = class_of(PIECE_BYTES_MAX) + 1;

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
const fn class_of(len: usize) -> usize {
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
const fn size_of_class(class: usize) -> usize {
    if class < STEPS {
        return (class + 1) * BLOCK;
    }
    let shift = class / STEPS - 1;
    ((class % STEPS + STEPS + 1) << shift) * BLOCK
}

struct Pool {
    bytes_max: usize,
    bytes: AtomicUsize,
    free: [Mutex<Vec<Memory>>; CLASSES],
}

impl Pool {
    const fn new(bytes_max: usize) -> Pool {
        Pool {
            bytes_max,
            bytes: AtomicUsize::new(0),
            free: [const { Mutex::new(Vec::new()) }; CLASSES],
        }
    }

    fn free(&self, class: usize) -> MutexGuard<'_, Vec<Memory>> {
        self.free[class].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, len: usize) -> Memory {
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

    fn give(&self, memory: Memory) {
        let len = memory.len();
        let class = class_of(len.min(PIECE_BYTES_MAX));
        if size_of_class(class) != len {
            return;
        }
        // Counted first, so that the bound holds whoever comes in between.
        if self.bytes.fetch_add(len, Ordering::Relaxed) + len > self.bytes_max {
            self.bytes.fetch_sub(len, Ordering::Relaxed);
            return;
        }
        self.free(class).push(memory);
    }

    #[cfg(test)]
    fn held(&self) -> usize {
        // All at once: what moves from one class to another meanwhile would count twice.
        let all: Vec<_> = (0..CLASSES).map(|class| self.free(class)).collect();
        all.iter().flat_map(|free| free.iter()).map(Memory::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::AlignedBuf;
    use std::sync::atomic::AtomicBool;

    #[test]
    fn a_class_holds_every_length_it_is_for_and_wastes_little() {
        let mut sizes: Vec<usize> = (0..CLASSES).map(size_of_class).collect();
        for blocks in 1..=PIECE_BYTES_MAX / BLOCK {
            for len in [blocks * BLOCK - BLOCK + 1, blocks * BLOCK] {
                let size = size_of_class(class_of(len));
                assert!(size >= len);
                assert!(size <= blocks * BLOCK * 5 / 4, "{size} bytes for {len}");
            }
        }
        assert!(
            sizes
                .iter()
                .enumerate()
                .all(|(class, size)| class_of(*size) == class)
        );
        assert!(sizes.is_sorted());
        sizes.dedup();
        assert_eq!(sizes.len(), CLASSES);
    }

    #[test]
    fn a_piece_that_came_back_is_used_again() {
        let pool = Pool::new(1 << 20);
        let first = pool.take(68 << 10);
        let at = first.start();
        pool.give(first);
        assert_eq!(pool.held(), 80 << 10);
        let second = pool.take(70 << 10);
        assert_eq!(second.start(), at);
        assert_eq!(pool.held(), 0);
        assert_ne!(pool.take(68 << 10).start(), at);
    }

    #[test]
    fn it_keeps_no_more_than_its_bound_and_nothing_that_is_too_large() {
        let pool = Pool::new(1 << 20);
        let pieces: Vec<Memory> = (0..40).map(|_| pool.take(64 << 10)).collect();
        pieces.into_iter().for_each(|piece| pool.give(piece));
        assert_eq!(pool.held(), 1 << 20);
        let large = pool.take(PIECE_BYTES_MAX + 1);
        assert_eq!(large.len(), PIECE_BYTES_MAX + BLOCK);
        drop(pool.take(64 << 10));
        let before = pool.held();
        pool.give(large);
        assert_eq!(pool.held(), before);
    }

    /// Each owner marks its piece and finds its mark: no piece has two.
    #[test]
    fn threads_never_share_a_piece_and_the_bound_holds() {
        let (pool, stop) = (Pool::new(512 << 10), AtomicBool::new(false));
        let work = |thread: u8| {
            let mut held = Vec::new();
            for round in 0..4_000usize {
                let mut piece = pool.take((round * 7 % 33) * BLOCK);
                piece.bytes_mut().fill(thread);
                held.push(piece);
                if held.len() > round % 5 {
                    let piece = held.swap_remove(round % held.len());
                    assert!(piece.bytes().iter().all(|byte| *byte == thread));
                    pool.give(piece);
                }
            }
            held.into_iter().for_each(|piece| pool.give(piece));
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4).map(|thread| scope.spawn(move || work(thread))).collect();
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    assert!(pool.held() <= 512 << 10);
                }
            });
            let done = workers.into_iter().all(|worker| worker.join().is_ok());
            stop.store(true, Ordering::Relaxed);
            assert!(done);
        });
        assert_eq!(pool.held(), pool.bytes.load(Ordering::Relaxed));
    }

    #[test]
    fn a_buffer_for_reading_has_the_length_asked_for_and_comes_back_shared_or_not() {
        for len in [1, BLOCK, 68 << 10, 1 << 20, PIECE_BYTES_MAX, 4 << 20] {
            let mut buf = AlignedBuf::for_reading(len);
            assert_eq!(buf.len(), len.next_multiple_of(BLOCK));
            assert_eq!(buf.as_ptr() as usize % BLOCK, 0);
            buf.fill(9);
            let shared = bytes::Bytes::from_owner(buf);
            let part = shared.slice(shared.len() - 1..);
            drop(shared);
            assert_eq!(part[0], 9);
        }
        assert!(AlignedBuf::zeroed(68 << 10).iter().all(|byte| *byte == 0));
    }
}
