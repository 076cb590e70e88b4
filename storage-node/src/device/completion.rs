//! The answer to an operation that a device is doing: awaited, or waited for on a plain thread.
//!
//! Invariants: a completion is answered exactly once, also when the device is dropped first (then with `Gone`).
//! Dropping it abandons the answer only. A failure hook runs, and what is held is let go, whether or not anybody waits.

use super::{DeviceError, DeviceErrorKind};
use crate::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

type FailureHook = Box<dyn FnOnce(&DeviceError) + Send>;

struct Slot<T> {
    result: Option<Result<T, DeviceError>>,
    waker: Option<Waker>,
    /// A thread waits: waking nobody costs a system call all the same.
    waited_for: bool,
    on_failure: Option<FailureHook>,
    held: Option<Box<dyn Send>>,
}

struct Shared<T> {
    slot: Mutex<Slot<T>>,
    done: Condvar,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, Slot<T>> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn complete(&self, result: Result<T, DeviceError>) {
        let mut slot = self.lock();
        if let (Err(error), Some(hook)) = (&result, slot.on_failure.take()) {
            hook(error);
        }
        slot.result = Some(result);
        let waker = slot.waker.take();
        let held = slot.held.take();
        let waited_for = slot.waited_for;
        drop(slot);
        drop(held);
        if waited_for {
            self.done.notify_all();
        }
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// The waiting side.
pub struct Completion<T>(Arc<Shared<T>>);

/// The device's side. Dropping it unanswered answers `Gone`.
pub struct Completer<T>(Option<Arc<Shared<T>>>);

/// A connected pair.
pub fn completion<T>() -> (Completer<T>, Completion<T>) {
    let slot = Mutex::new(Slot {
        result: None,
        waker: None,
        waited_for: false,
        on_failure: None,
        held: None,
    });
    let shared = Arc::new(Shared {
        slot,
        done: Condvar::new(),
    });
    (Completer(Some(shared.clone())), Completion(shared))
}

impl<T> Completer<T> {
    /// Answers.
    pub fn complete(mut self, result: Result<T, DeviceError>) {
        if let Some(shared) = self.0.take() {
            shared.complete(result);
        }
    }
}

impl<T> Drop for Completer<T> {
    fn drop(&mut self) {
        if let Some(shared) = self.0.take() {
            shared.complete(Err(DeviceError::new(DeviceErrorKind::Gone, "the device stopped")));
        }
    }
}

impl<T> Completion<T> {
    /// An answer that is already there.
    pub fn ready(result: Result<T, DeviceError>) -> Self {
        let (completer, completion) = completion();
        completer.complete(result);
        completion
    }

    /// Blocks the thread until the answer is there. Not for async code.
    pub fn wait(self) -> Result<T, DeviceError> {
        let mut slot = self.0.lock();
        loop {
            if let Some(result) = slot.result.take() {
                return result;
            }
            slot.waited_for = true;
            slot = self.0.done.wait(slot).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Keeps `thing` until the device answers, even if the completion is dropped by then: what bounds the memory that
    /// devices hold must last as long as they hold it.
    pub fn holding(self, thing: impl Send + 'static) -> Self {
        let mut slot = self.0.lock();
        if slot.result.is_none() {
            slot.held = Some(Box::new(thing));
        }
        drop(slot);
        self
    }

    /// Calls `hook` when the operation fails, even if the completion is dropped by then.
    pub fn on_failure(self, hook: impl FnOnce(&DeviceError) + Send + 'static) -> Self {
        let mut slot = self.0.lock();
        match &slot.result {
            Some(Err(error)) => hook(error),
            Some(Ok(_)) => {}
            None => slot.on_failure = Some(Box::new(hook)),
        }
        drop(slot);
        self
    }
}

impl<T> Future for Completion<T> {
    type Output = Result<T, DeviceError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut slot = self.0.lock();
        match slot.result.take() {
            Some(result) => Poll::Ready(result),
            None => {
                slot.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}
