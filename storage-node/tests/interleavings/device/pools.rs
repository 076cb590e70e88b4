//! The pool of memory: a piece has one owner, the pool keeps no more than it may, and counts what it keeps.

use super::BLOCK;
use super::buffer::Memory;
use super::pool::Pool;
use crate::explore;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Arc, thread};

const BOUND: usize = 3 * BLOCK;

/// Marks its pieces, and finds its marks.
fn work(pool: &Pool, mark: u8) {
    let take = |blocks: usize| {
        let mut piece = pool.take(blocks * BLOCK);
        assert!(piece.len() >= blocks * BLOCK);
        piece.bytes_mut().fill(mark);
        piece
    };
    let give = |piece: Memory| {
        assert!(piece.bytes().iter().all(|byte| *byte == mark));
        pool.give(piece);
    };
    let (small, large) = (take(1), take(2));
    give(small);
    let again = take(1);
    give(large);
    give(again);
}

#[test]
fn no_piece_has_two_owners_and_the_bound_holds_at_every_moment() {
    explore(3_000, || {
        let (pool, working) = (Arc::new(Pool::new(BOUND)), Arc::new(AtomicUsize::new(3)));
        let workers: Vec<_> = (1..=3)
            .map(|mark| {
                let (pool, working) = (pool.clone(), working.clone());
                thread::spawn(move || {
                    work(&pool, mark);
                    working.fetch_sub(1, Ordering::SeqCst);
                })
            })
            .collect();
        while working.load(Ordering::SeqCst) > 0 {
            assert!(pool.held() <= BOUND);
            thread::yield_now();
        }
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        assert!(pool.held() <= BOUND);
        assert_eq!(pool.held(), pool.counted(), "what is counted is what there is");
    });
}

#[test]
fn what_comes_back_is_there_for_the_next() {
    explore(3_000, || {
        let pool = Arc::new(Pool::new(BOUND));
        let (first, second) = (pool.take(BLOCK), pool.take(BLOCK));
        let giver = pool.clone();
        let giver = thread::spawn(move || giver.give(first));
        pool.give(second);
        giver.join().unwrap();
        assert_eq!(pool.held(), 2 * BLOCK);
        let taker = pool.clone();
        let taker = thread::spawn(move || taker.take(BLOCK));
        let pieces = (pool.take(BLOCK), taker.join().unwrap());
        assert_eq!(pool.held(), 0);
        drop(pieces);
    });
}
