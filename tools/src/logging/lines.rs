//! Where log lines go: a queue, and a thread that writes them.
//!
//! Standard error may be a full filesystem, a pipe whose reader is gone, or one whose reader sleeps. None of that may end the
//! process or have anybody wait: a line that cannot be written, or for which there is no room in the queue, is lost and counted.
//! When a line can be written again, how many were lost is logged.
//! Invariant: whoever logs waits for no I/O. The queue is bounded in bytes.
//! Invariant: a line that was cut short ends before the next begins.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tracing_subscriber::fmt::MakeWriter;

/// Bytes of lines that may wait.
const WAITING_BYTES_MAX: usize = 1 << 20;
/// A descriptor that takes nothing for the moment is tried again after this long,
const BUSY_PAUSE: Duration = Duration::from_millis(10);
/// and for this long.
const BUSY_MAX: Duration = Duration::from_secs(1);

/// See the module. Clones share the queue.
#[derive(Clone)]
pub struct Lines(Arc<Shared>);

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    come: Condvar,
    written: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Vec<u8>>,
    waiting_bytes: usize,
    is_writing: bool,
    lost: u64,
    why: String,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next line, once there is one.
    fn next(&self) -> Vec<u8> {
        let mut queue = self.lock();
        queue.is_writing = false;
        loop {
            if let Some(line) = queue.waiting.pop_front() {
                queue.waiting_bytes -= line.len();
                queue.is_writing = true;
                return line;
            }
            self.written.notify_all();
            queue = self.come.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Writes what comes, for as long as the process lives.
    fn write_all(&self, mut out: impl Write) {
        let mut is_cut = false;
        loop {
            let line = self.next();
            let written = match is_cut {
                true => write_line(&mut out, b"\n").map(|()| is_cut = false),
                false => Ok(()),
            };
            let written = written.and_then(|()| write_line(&mut out, &line));
            let mut queue = self.lock();
            match written {
                Ok(()) if queue.lost == 0 => {}
                Ok(()) => {
                    let (lost, why) = (std::mem::take(&mut queue.lost), std::mem::take(&mut queue.why));
                    drop(queue); // What follows comes back to it.
                    tracing::warn!(lost, why, "log lines could not be written, and are lost");
                }
                Err((cut, error)) => {
                    is_cut |= cut;
                    queue.lost += 1;
                    queue.why = error.to_string();
                }
            }
        }
    }
}

/// Writes one line; if that fails, whether a part of it was written.
fn write_line(out: &mut impl Write, line: &[u8]) -> Result<(), (bool, io::Error)> {
    let (mut left, began) = (line, Instant::now());
    while !left.is_empty() {
        match out.write(left) {
            Ok(0) => return Err((left.len() < line.len(), ErrorKind::WriteZero.into())),
            Ok(count) => left = left.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock && began.elapsed() < BUSY_MAX => {
                std::thread::sleep(BUSY_PAUSE);
            }
            Err(error) => return Err((left.len() < line.len(), error)),
        }
    }
    Ok(())
}

impl Lines {
    /// Starts the thread that writes to `out`.
    pub fn start(out: impl Write + Send + 'static) -> io::Result<Lines> {
        let shared = Arc::new(Shared::default());
        let lines = Lines(shared.clone());
        std::thread::Builder::new()
            .name("cairn-log".into())
            .spawn(move || shared.write_all(out))?;
        Ok(lines)
    }

    /// Has a line written, if there is room for it.
    pub fn push(&self, line: Vec<u8>) {
        let mut queue = self.0.lock();
        if queue.waiting_bytes + line.len() > WAITING_BYTES_MAX {
            queue.lost += 1;
            "they came faster than they were written".clone_into(&mut queue.why);
            return;
        }
        queue.waiting_bytes += line.len();
        queue.waiting.push_back(line);
        self.0.come.notify_one();
    }

    /// Waits until all that came is written or lost, but no longer than this.
    pub fn flush(&self, most: Duration) {
        let queue = self.0.lock();
        let is_left = |queue: &mut Queue| !queue.waiting.is_empty() || queue.is_writing;
        drop(self.0.written.wait_timeout_while(queue, most, is_left));
    }
}

/// One event being formatted, which comes in one piece.
pub struct Line<'a>(&'a Lines);

impl Write for Line<'_> {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.0.push(text.to_vec());
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, Sender, channel};

    const SOON: Duration = Duration::from_secs(10);

    /// Answers each write as it is told to, and keeps what it took.
    struct Told {
        answers: Receiver<io::Result<usize>>,
        taken: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Told {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            let most = self.answers.recv().unwrap_or(Ok(usize::MAX))?;
            let count = most.min(text.len());
            self.taken.lock().unwrap().extend(&text[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    type Taken = Arc<Mutex<Vec<u8>>>;

    fn told() -> (Lines, Sender<io::Result<usize>>, Taken) {
        let (say, answers) = channel();
        let taken = Arc::new(Mutex::new(Vec::new()));
        let out = Told {
            answers,
            taken: taken.clone(),
        };
        (Lines::start(out).unwrap(), say, taken)
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted_and_the_next_ones_are_whole() {
        let (lines, say, taken) = told();
        let full = || io::Error::from(ErrorKind::StorageFull);
        say.send(Err(full())).unwrap();
        say.send(Ok(3)).unwrap();
        say.send(Err(full())).unwrap();
        say.send(Err(ErrorKind::Interrupted.into())).unwrap();
        for text in ["lost\n", "cut short\n"] {
            lines.push(text.into());
        }
        while lines.0.lock().lost < 2 {
            std::thread::yield_now();
        }
        assert_eq!(lines.0.lock().why, full().to_string());
        drop(say); // From now on everything is taken.
        lines.push("whole\n".into());
        lines.flush(SOON);
        assert_eq!(String::from_utf8_lossy(&taken.lock().unwrap()), "cut\nwhole\n");
        assert_eq!(lines.0.lock().lost, 0, "it was told");
    }

    #[test]
    fn a_reader_that_sleeps_has_nobody_wait() {
        let (lines, say, taken) = told();
        let line = vec![b'.'; 1000];
        let began = Instant::now();
        for _ in 0..2_000 {
            lines.push(line.clone());
        }
        lines.flush(Duration::from_millis(1));
        assert!(began.elapsed() < SOON);
        {
            let queue = lines.0.lock();
            assert!(
                queue.waiting_bytes <= WAITING_BYTES_MAX && queue.lost >= 2_000 - 1_050,
                "{}",
                queue.lost
            );
        }
        drop(say);
        lines.flush(SOON);
        assert!(taken.lock().unwrap().len() > 1_000_000);
    }
}
