//! Letting others go first, for threads that take what has come and do it at once.
//!
//! The moment one request has come is a bad one to begin: where processors are busy, those who are about to ask wait for one, and would
//! have shared the flush. Where nobody wants the processor, there is nothing to wait for.

use std::time::{Duration, Instant};

/// Who gets the processor back within this time did not lend it to anybody.
const AT_ONCE: Duration = Duration::from_micros(4);

/// Gives the processor away once, or again and again while somebody takes it, for about this long. Answers whether somebody did.
pub fn give_way(most: Duration) -> bool {
    let began = Instant::now();
    let mut turn = began;
    loop {
        std::thread::yield_now();
        let now = Instant::now();
        if now - turn < AT_ONCE {
            return turn > began;
        }
        if now - began >= most {
            return true;
        }
        turn = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// However many want the processor, it ends.
    #[test]
    fn it_ends_beside_threads_that_never_rest() {
        static STOP: AtomicBool = AtomicBool::new(false);
        let busy = || {
            while !STOP.load(Ordering::Relaxed) {
                std::hint::spin_loop()
            }
        };
        let threads: Vec<_> = (0..8).map(|_| std::thread::spawn(busy)).collect();
        for most in [Duration::ZERO, Duration::from_millis(1)] {
            give_way(most);
        }
        STOP.store(true, Ordering::Relaxed);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}
