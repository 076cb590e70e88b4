//! An answer arrives once, whoever waits for it and whoever has left; what is held until then is let go.

use super::{Completer, Completion, DeviceError, DeviceErrorKind, completion};
use crate::explore;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Arc, thread};
use futures::FutureExt;
use std::task::{Context, Poll, Waker};

type Answer = Result<u32, DeviceError>;

/// Small enough for every order that there is.
fn explore_all(test: fn()) {
    shuttle::check_dfs(test, None);
}

fn failure() -> DeviceError {
    DeviceError::new(DeviceErrorKind::Write, "broken")
}

/// Counts when it is dropped.
struct Held(Arc<AtomicUsize>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn count() -> (Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    (count.clone(), count)
}

/// Lets both sides run against one another.
fn race(
    device: impl FnOnce(Completer<u32>) + Send + 'static,
    caller: impl FnOnce(Completion<u32>) -> Answer,
) -> Answer {
    let (completer, completion) = completion();
    let device = thread::spawn(move || device(completer));
    let answer = caller(completion);
    device.join().unwrap();
    answer
}

#[test]
fn a_thread_that_waits_gets_the_answer() {
    explore_all(|| {
        assert_eq!(race(|device| device.complete(Ok(7)), Completion::wait), Ok(7));
    });
}

#[test]
fn a_task_that_awaits_gets_the_answer() {
    explore_all(|| {
        assert_eq!(
            race(|device| device.complete(Ok(7)), shuttle::future::block_on),
            Ok(7)
        );
    });
}

#[test]
fn a_task_that_was_polled_with_another_waker_gets_the_answer() {
    explore_all(|| {
        let polled_before = |mut completion: Completion<u32>| match completion
            .poll_unpin(&mut Context::from_waker(Waker::noop()))
        {
            Poll::Ready(answer) => answer,
            Poll::Pending => shuttle::future::block_on(completion),
        };
        assert_eq!(race(|device| device.complete(Ok(7)), polled_before), Ok(7));
    });
}

#[test]
fn a_device_that_stops_answers_too() {
    explore_all(|| {
        let gone = |answer: Answer| answer.is_err_and(|error| error.kind == DeviceErrorKind::Gone);
        assert!(gone(race(drop, Completion::wait)));
        assert!(gone(race(drop, shuttle::future::block_on)));
    });
}

/// The latch rests on it: who has seen a failure starts nothing that reaches the device.
#[test]
fn who_sees_a_failure_comes_after_its_hook_which_runs_once() {
    explore_all(|| look_at_failure(Completion::wait));
    explore_all(|| look_at_failure(shuttle::future::block_on));
}

fn look_at_failure<F>(caller: F)
where
    F: FnOnce(Completion<u32>) -> Answer,
{
    let (ran, hook) = count();
    let wait = |completion: Completion<u32>| {
        let answer = caller(completion.on_failure(move |_| _ = hook.fetch_add(1, Ordering::SeqCst)));
        assert_eq!(ran.load(Ordering::SeqCst), 1);
        answer
    };
    assert_eq!(
        race(|device| device.complete(Err(failure())), wait),
        Err(failure())
    );
}

#[test]
fn the_hook_of_who_has_left_runs_all_the_same() {
    explore_all(|| {
        let (ran, hook) = count();
        let (completer, completion) = completion::<u32>();
        let device = thread::spawn(move || completer.complete(Err(failure())));
        drop(completion.on_failure(move |_| _ = hook.fetch_add(1, Ordering::SeqCst)));
        device.join().unwrap();
        assert_eq!(ran.load(Ordering::SeqCst), 1);
    });
}

/// Bounds on memory rest on it: what a read holds is held until the device is done with the read, and no longer.
#[test]
fn what_is_held_is_let_go_when_the_device_answers() {
    explore_all(|| {
        let (dropped, held) = count();
        let (completer, completion) = completion::<u32>();
        let answers = Arc::new(AtomicUsize::new(0));
        let (answered, seen) = (answers.clone(), dropped.clone());
        let device = thread::spawn(move || {
            answered.store(1, Ordering::SeqCst);
            completer.complete(Ok(7));
        });
        let completion = completion.holding(Held(held));
        let is_dropped = seen.load(Ordering::SeqCst) == 1;
        assert!(!is_dropped || answers.load(Ordering::SeqCst) == 1);
        device.join().unwrap();
        // Nobody has looked at the answer yet.
        assert_eq!(dropped.load(Ordering::SeqCst), 1);
        drop(completion);
    });
    explore_all(|| {
        let (dropped, held) = count();
        let (completer, completion) = completion::<u32>();
        let seen = dropped.clone();
        let device = thread::spawn(move || {
            let completer = completer;
            assert_eq!(seen.load(Ordering::SeqCst), 0, "who has left does not end it");
            completer.complete(Ok(7));
        });
        drop(completion.holding(Held(held)));
        device.join().unwrap();
        assert_eq!(dropped.load(Ordering::SeqCst), 1);
    });
}

/// As a batch is waited for: several answers in any order, one of them a failure.
#[test]
fn many_answers_in_any_order() {
    explore(10_000, || {
        let (completers, completions): (Vec<_>, Vec<_>) = (0..4).map(|_| completion::<u32>()).unzip();
        let devices: Vec<_> = completers
            .into_iter()
            .enumerate()
            .map(|(number, completer)| {
                thread::spawn(move || match number {
                    1 => completer.complete(Err(failure())),
                    2 => drop(completer),
                    _ => completer.complete(Ok(number as u32)),
                })
            })
            .collect();
        let answers: Vec<Answer> = completions.into_iter().map(Completion::wait).collect();
        let is_right = |(number, answer): (usize, &Answer)| match number {
            1 => *answer == Err(failure()),
            2 => answer.is_err(),
            _ => *answer == Ok(number as u32),
        };
        assert!(answers.iter().enumerate().all(is_right), "{answers:?}");
        devices.into_iter().for_each(|device| device.join().unwrap());
    });
}
