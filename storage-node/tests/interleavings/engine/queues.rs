//! The queue: what it accepts is taken once and in order, what it refuses is not; its bounds hold; and whoever waits is woken.

use super::ADDRESS;
use super::queue::{BYTES_MAX, Change, Queue, REQUESTS_MAX, Request};
use crate::explore;
use crate::protocol::{NodeError, Seal, SealedShard, ShardKey};
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::sync::{Arc, Instant, mpsc, thread};
use bytes::Bytes;
use shuttle::rand::Rng;
use std::sync::LazyLock;
use std::time::Duration;

/// Zeros: a page of the kernel's, however long.
static ZEROS: LazyLock<Bytes> = LazyLock::new(|| Bytes::from(vec![0; BYTES_MAX]));
/// Three fit into the queue.
const LARGE: usize = BYTES_MAX / 10 * 3;
/// Enough to be written beside the batch before it, in tests and in the product.
const WORTH_A_FLUSH: usize = 4 << 20;

fn request(change: Change) -> Request {
    Request {
        address: ADDRESS,
        change,
        reply: tokio::sync::oneshot::channel().0,
        retried: false,
    }
}

/// A small request with a number.
fn numbered(number: u64) -> Request {
    request(Change::Delete(vec![number]))
}

fn sized(number: u64, len: usize) -> Request {
    request(Change::Put(SealedShard {
        key: ShardKey {
            blob: number,
            stripe: 0,
        },
        seal: Seal {
            block_crcs: Vec::new(),
            digests: Vec::new(),
        },
        payload: ZEROS.slice(..len),
    }))
}

fn number_of(request: &Request) -> u64 {
    match &request.change {
        Change::Put(shard) => shard.key.blob,
        Change::Delete(blobs) => blobs[0],
        Change::DropUnit | Change::Admit(..) | Change::Obey(_) | Change::Still(_) => {
            panic!("no test asks for it")
        }
    }
}

fn numbers(requests: &[Request]) -> Vec<u64> {
    requests.iter().map(number_of).collect()
}

fn queue() -> Arc<Queue> {
    Arc::new(Queue::default())
}

/// How many large requests fit now: what the queue counts is what waits in it.
fn room(queue: &Queue) -> usize {
    (0..10)
        .take_while(|_| queue.push(sized(0, LARGE)).is_ok())
        .count()
}

/// Pushes numbered requests, and says which were accepted.
fn producer(queue: &Arc<Queue>, from: u64) -> thread::JoinHandle<Vec<u64>> {
    let queue = queue.clone();
    thread::spawn(move || {
        let accepted = |number: &u64| queue.push(numbered(*number)).is_ok();
        (from..from + 3).filter(accepted).collect()
    })
}

#[test]
fn what_is_accepted_is_taken_once_and_in_order_also_when_some_is_put_back() {
    explore(20_000, || {
        let queue = queue();
        let producers = [producer(&queue, 100), producer(&queue, 200)];
        let taker = queue.clone();
        let taker = thread::spawn(move || {
            let mut taken = Vec::new();
            while let Some(mut requests) = taker.take(2, usize::MAX, None) {
                assert!(requests.len() <= 2);
                // As the committer does with what finds no space.
                let kept = shuttle::rand::thread_rng().gen_range(0..=requests.len());
                let back = requests.split_off(kept);
                taken.extend(numbers(&requests));
                taker.put_back(back);
            }
            taken
        });
        // Beside the producers: what comes too late is refused, and what waits is taken.
        queue.close();
        let accepted: Vec<Vec<u64>> = producers.map(|p| p.join().unwrap()).into();
        let taken = taker.join().unwrap();
        for (from, accepted) in [100, 200].into_iter().zip(&accepted) {
            let of_this: Vec<u64> = taken
                .iter()
                .copied()
                .filter(|n| (from..from + 100).contains(n))
                .collect();
            assert_eq!(of_this, *accepted);
        }
        assert_eq!(taken.len(), accepted.iter().map(Vec::len).sum::<usize>());
        assert!(matches!(queue.push(numbered(1)), Err(NodeError::Fenced { .. })));
    });
}

#[test]
fn no_request_is_left_waiting_when_producers_and_batches_end() {
    explore(20_000, || {
        let queue = queue();
        let producers = [producer(&queue, 100), producer(&queue, 200)];
        let (to_flusher, batches) = mpsc::channel::<()>();
        let flushed = queue.clone();
        let flusher = thread::spawn(move || batches.iter().for_each(|()| flushed.batch_done()));
        let mut taken = 0;
        // Nobody closes the queue: only wakes of pushes and of batches that are done end the waits.
        while taken < 6 {
            taken += queue.take(10, usize::MAX, None).unwrap().len();
            queue.batch_started();
            to_flusher.send(()).unwrap();
        }
        drop(to_flusher);
        assert!(producers.into_iter().all(|p| p.join().unwrap().len() == 3));
        flusher.join().unwrap();
    });
}

#[test]
fn only_what_is_worth_a_flush_goes_beside_a_batch_in_flight() {
    explore(20_000, || {
        let queue = queue();
        let (to_flusher, batches) = mpsc::channel::<()>();
        let (flushed, in_flight) = (queue.clone(), Arc::new(AtomicUsize::new(0)));
        let ended = in_flight.clone();
        let flusher = thread::spawn(move || {
            for () in batches {
                ended.fetch_sub(1, Ordering::SeqCst);
                flushed.batch_done();
            }
        });
        let pushing = queue.clone();
        let producer = thread::spawn(move || {
            for number in 0..5 {
                let len = if number % 2 == 0 { 100 } else { WORTH_A_FLUSH };
                pushing.push(sized(number, len)).unwrap();
            }
        });
        let mut taken = 0;
        while taken < 5 {
            let requests = queue.take(10, usize::MAX, None).unwrap();
            let is_alone = in_flight.load(Ordering::SeqCst) == 0;
            let is_large = requests.iter().any(|request| number_of(request) % 2 == 1);
            assert!(is_alone || is_large, "{:?}", numbers(&requests));
            taken += requests.len();
            in_flight.fetch_add(1, Ordering::SeqCst);
            queue.batch_started();
            to_flusher.send(()).unwrap();
        }
        drop(to_flusher);
        producer.join().unwrap();
        flusher.join().unwrap();
    });
}

/// Small requests wait for the batch in flight however little patience there is, and its end wakes who waits.
#[test]
fn what_waits_for_a_batch_in_flight_is_taken_at_its_end() {
    explore(20_000, || {
        let queue = queue();
        queue.batch_started();
        queue.push(numbered(1)).unwrap();
        let (done, is_done) = (queue.clone(), Arc::new(AtomicBool::new(false)));
        let says = is_done.clone();
        let flusher = thread::spawn(move || {
            says.store(true, Ordering::SeqCst);
            done.batch_done();
        });
        let taken = queue.take(10, usize::MAX, Some(Duration::ZERO)).unwrap();
        assert_eq!(numbers(&taken), [1]);
        assert!(is_done.load(Ordering::SeqCst));
        flusher.join().unwrap();
    });
}

#[test]
fn the_bounds_hold_whoever_pushes_at_once() {
    explore(20_000, || {
        let queue = queue();
        let refused = |result| match result {
            Ok(()) => 0,
            Err(NodeError::Overloaded) => 1,
            Err(error) => panic!("{error}"),
        };
        let push = |number| {
            let queue = queue.clone();
            thread::spawn(move || refused(queue.push(sized(number, LARGE))))
        };
        let producers = [1, 2, 3, 4].map(push);
        let refusals: usize = producers.map(|p| p.join().unwrap()).into_iter().sum();
        assert_eq!(refusals, 1);
        let taken = queue.take(10, LARGE * 2, Some(Duration::ZERO)).unwrap();
        assert_eq!(taken.len(), 1, "two, and what they take besides, are more");
        assert_eq!(room(&queue), 1);
    });
}

#[test]
fn the_bound_on_requests_holds_whoever_pushes_at_once() {
    explore(100, || {
        let queue = queue();
        (1..REQUESTS_MAX as u64).for_each(|number| queue.push(numbered(number)).unwrap());
        let push = |number| {
            let queue = queue.clone();
            thread::spawn(move || queue.push(numbered(number)).is_ok())
        };
        let accepted = [5_000, 5_001].map(push).map(|p| p.join().unwrap());
        assert_eq!(accepted.iter().filter(|a| **a).count(), 1);
    });
}

/// What is put back goes beyond the bound if it must, and counts.
#[test]
fn what_is_counted_is_what_waits() {
    explore(20_000, || {
        let queue = queue();
        (0..3).for_each(|number| queue.push(sized(number, LARGE)).unwrap());
        let pushing = queue.clone();
        let producer = thread::spawn(move || {
            let accepted = |number: &u64| pushing.push(sized(*number, LARGE)).is_ok();
            (3..6).filter(accepted).count()
        });
        let taken = queue.take(2, usize::MAX, None).unwrap();
        assert_eq!(numbers(&taken), [0, 1]);
        queue.put_back(taken);
        let accepted = producer.join().unwrap();
        assert!(accepted <= 2);
        assert_eq!(room(&queue), 0);
        let taken = queue.take(10, usize::MAX, Some(Duration::ZERO)).unwrap();
        let first: Vec<u64> = numbers(&taken).into_iter().take(3).collect();
        assert_eq!((taken.len(), &first[..]), (3 + accepted, &[0, 1, 2][..]));
        assert_eq!(room(&queue), 3);
    });
}

#[test]
fn patience_ends_and_not_before_its_time() {
    const PATIENCE: Duration = Duration::from_millis(500);
    explore(20_000, || {
        let queue = queue();
        let pushing = queue.clone();
        let producer = thread::spawn(move || pushing.push(numbered(1)).unwrap());
        let mut taken = Vec::new();
        while taken.is_empty() {
            let started = Instant::now();
            taken = queue.take(10, usize::MAX, Some(PATIENCE)).unwrap();
            let waited = Instant::now().saturating_duration_since(started);
            assert!(!taken.is_empty() || waited >= PATIENCE, "{waited:?}");
        }
        assert_eq!(numbers(&taken), [1]);
        producer.join().unwrap();
        // Nobody comes: it ends all the same.
        assert!(queue.take(10, usize::MAX, Some(PATIENCE)).unwrap().is_empty());
    });
}

#[test]
fn a_nudge_is_never_lost() {
    explore(20_000, || {
        let queue = queue();
        let nudging = queue.clone();
        let nudger = thread::spawn(move || nudging.nudge());
        assert!(queue.take(10, usize::MAX, None).unwrap().is_empty());
        nudger.join().unwrap();
    });
}

/// A committer that panics empties the queue beside the one that did not.
#[test]
fn closing_ends_every_wait() {
    explore(20_000, || {
        let queue = queue();
        let take = || {
            let queue = queue.clone();
            thread::spawn(move || {
                let mut taken = 0;
                while let Some(requests) = queue.take(1, usize::MAX, None) {
                    taken += requests.len();
                }
                taken
            })
        };
        let takers = [take(), take()];
        queue.push(numbered(1)).unwrap();
        queue.batch_started();
        queue.push(numbered(2)).unwrap();
        queue.close();
        // In flight or not: what waits is taken before the end.
        let taken: usize = takers.map(|t| t.join().unwrap()).into_iter().sum();
        assert_eq!(taken, 2);
    });
}
