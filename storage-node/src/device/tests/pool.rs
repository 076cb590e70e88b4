//! The pool of memory for reads.

use super::super::buffer::Memory;
use super::super::pool::{CLASSES, PIECE_BYTES_MAX, Pool, class_of, size_of_class};
use super::*;
use std::sync::atomic::{AtomicBool, Ordering};

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

/// What was used once must not keep what is used now from being used again.
#[test]
fn what_comes_back_takes_the_place_of_other_sizes() {
    let pool = Pool::new(1 << 20);
    let small: Vec<Memory> = (0..16).map(|_| pool.take(64 << 10)).collect();
    small.into_iter().for_each(|piece| pool.give(piece));
    assert_eq!(pool.held(), 1 << 20);
    let large = pool.take(512 << 10);
    let at = large.start();
    pool.give(large);
    assert_eq!((pool.held(), pool.counted()), (1 << 20, 1 << 20));
    assert_eq!(pool.take(512 << 10).start(), at);
    pool.give(pool.take(2 << 20)); // Larger than the pool: it takes nobody's place.
    assert_eq!(pool.held(), 512 << 10);
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
    assert_eq!(pool.held(), pool.counted());
}

#[test]
fn a_buffer_recycled_has_the_length_asked_for_and_comes_back_shared_or_not() {
    for len in [1, BLOCK, 68 << 10, 1 << 20, PIECE_BYTES_MAX, 4 << 20] {
        let mut buf = AlignedBuf::recycled(len);
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
