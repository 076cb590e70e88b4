//! io_uring: one thread owns the ring; callers hand it operations over a channel, and wake it through an eventfd if it sleeps.
//!
//! Invariants:
//! - The ring thread owns every buffer from submission to the kernel's last word about it, so nothing that a caller
//!   drops can free memory the kernel uses. It leaves only when nothing is in flight; should it panic, it leaks them.
//! - Short reads and writes are continued, EINTR and EAGAIN are resubmitted; callers never see them.
//! - An operation that was sent is met by the ring thread's next look at the channel: the thread says that it sleeps, looks once
//!   more and only then sleeps; a caller sends first and looks whether it sleeps afterwards.
//! - The kernel does not order a flush after earlier writes: callers wait for the writes first.
#![allow(unsafe_code)]

use super::{
    AlignedBuf, AlignedBytes, Completer, Completion, Device, DeviceError, DeviceErrorKind, DeviceInfo,
    DiskFile, completion,
};
use io_uring::{IoUring, opcode, squeue, types};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Operations in flight at once; more wait in the channel.
const IN_FLIGHT_MAX: usize = 128;
/// Between two attempts of a submission that the kernel refuses.
const SUBMIT_PAUSE: Duration = Duration::from_millis(20);
const WAKE_TOKEN: u64 = u64::MAX;

enum Operation {
    Read(u64, AlignedBuf, Completer<AlignedBuf>),
    Write(u64, Vec<AlignedBytes>, Completer<()>),
    Flush(Completer<()>),
}

struct InFlight {
    operation: Operation,
    done: usize,
    /// What is left of a write, for the kernel: in place until it has answered.
    left: Left,
}

/// Where the bytes of a write are.
#[derive(Default)]
struct Left(Vec<libc::iovec>);

// SAFETY: these are the addresses of bytes that the operation beside them owns, and nothing here reads through them.
unsafe impl Send for Left {}

/// The parts from byte `done` on.
fn left_of(parts: &[AlignedBytes], mut done: usize) -> Left {
    let mut left = Vec::with_capacity(parts.len());
    for part in parts {
        let skip = done.min(part.len());
        done -= skip;
        let rest = &part[skip..];
        if !rest.is_empty() {
            left.push(libc::iovec {
                iov_base: rest.as_ptr().cast_mut().cast(), // The kernel only reads it.
                iov_len: rest.len(),
            });
        }
    }
    Left(left)
}

/// The io_uring backend.
pub struct Uring {
    info: DeviceInfo,
    file: Arc<DiskFile>,
    sender: Mutex<Option<Sender<Operation>>>,
    wake: Arc<File>,
    asleep: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Uring {
    /// Sets the ring up and starts its thread; says why when the kernel does not let us.
    pub fn start(file: Arc<DiskFile>, backend: String) -> io::Result<Self> {
        let ring = new_ring()?;
        let wake = Arc::new(eventfd()?);
        let asleep = Arc::new(AtomicBool::new(false));
        let (sender, receiver) = channel();
        let thread_state = RingThread {
            ring,
            file: file.clone(),
            wake: wake.clone(),
            asleep: asleep.clone(),
            receiver,
            in_flight: Vec::new(),
            free: Vec::new(),
            wake_count: Box::new([0; 8]),
            closed: false,
        };
        let thread = std::thread::Builder::new()
            .name("disk-ring".into())
            .spawn(move || thread_state.run())?;
        let info = DeviceInfo {
            size: file.size(),
            backend,
        };
        Ok(Uring {
            info,
            file,
            sender: Mutex::new(Some(sender)),
            wake,
            asleep,
            thread: Some(thread),
        })
    }

    fn submit(&self, operation: Operation) {
        // An operation that cannot be sent is dropped, and its completer answers `Gone`.
        if let Some(sender) = &*self.sender.lock().unwrap_or_else(PoisonError::into_inner)
            && sender.send(operation).is_ok()
        {
            self.wake_if_asleep();
        }
    }

    /// Of those who find it asleep, one wakes it.
    fn wake_if_asleep(&self) {
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::Relaxed) {
            self.wake();
        }
    }

    fn wake(&self) {
        if let Err(error) = (&*self.wake).write_all(&1u64.to_ne_bytes()) {
            tracing::error!(%error, "cannot wake the ring thread");
        }
    }
}

/// A ring that can do what is needed, or why the kernel does not give us one.
fn new_ring() -> io::Result<IoUring> {
    let entries = 2 * IN_FLIGHT_MAX as u32;
    // The ring thread asks the kernel for completions all the time: the kernel need not interrupt it. Before Linux 5.19 it does.
    let ring = IoUring::builder()
        .setup_coop_taskrun()
        .build(entries)
        .or_else(|_| IoUring::new(entries))?;
    let mut probe = io_uring::Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    for needed in [
        opcode::Read::CODE,
        opcode::Write::CODE,
        opcode::Writev::CODE,
        opcode::Fsync::CODE,
    ] {
        if !probe.is_supported(needed) {
            return Err(io::Error::other("the kernel is too old"));
        }
    }
    Ok(ring)
}

/// Whether the kernel gives us a ring, and why not.
pub fn check() -> io::Result<()> {
    new_ring().map(drop)
}

fn eventfd() -> io::Result<File> {
    // SAFETY: plain system call; the descriptor it returns is owned by nobody else.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just created and is valid.
    Ok(unsafe { File::from_raw_fd(fd) })
}

struct RingThread {
    ring: IoUring,
    file: Arc<DiskFile>,
    wake: Arc<File>,
    asleep: Arc<AtomicBool>,
    receiver: Receiver<Operation>,
    in_flight: Vec<Option<InFlight>>,
    free: Vec<usize>,
    wake_count: Box<[u8; 8]>,
    closed: bool,
}

impl Drop for RingThread {
    /// After a panic the kernel may still write to these buffers: they are leaked, and their callers told.
    fn drop(&mut self) {
        for in_flight in self.in_flight.drain(..).flatten() {
            match in_flight.operation {
                Operation::Read(_, buf, _) => std::mem::forget(buf),
                Operation::Write(_, parts, _) => std::mem::forget((parts, in_flight.left)),
                Operation::Flush(_) => {}
            }
        }
        if std::thread::panicking() {
            Box::leak(std::mem::replace(&mut self.wake_count, Box::new([0; 8])));
        }
    }
}

impl RingThread {
    fn run(mut self) {
        self.watch_wake();
        while !(self.closed && self.busy() == 0) {
            self.accept();
            if self.closed && self.busy() == 0 {
                break;
            }
            match self.submit_and_sleep() {
                Ok(_) => {}
                Err(error)
                    if matches!(
                        error.raw_os_error(),
                        Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)
                    ) => {}
                Err(error) => {
                    tracing::error!(%error, "io_uring submit failed");
                    std::thread::sleep(SUBMIT_PAUSE);
                }
            }
            self.reap();
        }
        self.retire_ring();
    }

    /// Hands the kernel what was accepted, and sleeps until something is done or somebody sends.
    fn submit_and_sleep(&mut self) -> io::Result<usize> {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        // Whoever sent before that did not see us asleep, and woke nobody.
        self.accept();
        let waited = self.ring.submit_and_wait(1);
        self.asleep.store(false, Ordering::Relaxed);
        waited
    }

    /// The wake read may still be pending in the kernel: satisfy it before its buffer goes away.
    fn retire_ring(&mut self) {
        loop {
            let tokens: Vec<u64> = self.ring.completion().map(|c| c.user_data()).collect();
            if tokens.contains(&WAKE_TOKEN) {
                return;
            }
            if (&*self.wake).write_all(&1u64.to_ne_bytes()).is_err() || self.ring.submit_and_wait(1).is_err()
            {
                // Leaking eight bytes is better than letting the kernel write into freed memory.
                Box::leak(std::mem::replace(&mut self.wake_count, Box::new([0; 8])));
                return;
            }
        }
    }

    fn busy(&self) -> usize {
        self.in_flight.len() - self.free.len()
    }

    fn watch_wake(&mut self) {
        let entry = opcode::Read::new(types::Fd(self.wake.as_raw_fd()), self.wake_count.as_mut_ptr(), 8)
            .build()
            .user_data(WAKE_TOKEN);
        self.push(entry);
    }

    fn accept(&mut self) {
        while !self.closed && self.busy() < IN_FLIGHT_MAX {
            match self.receiver.try_recv() {
                Ok(operation) => {
                    let index = self.free.pop().unwrap_or_else(|| {
                        self.in_flight.push(None);
                        self.in_flight.len() - 1
                    });
                    self.in_flight[index] = Some(InFlight {
                        operation,
                        done: 0,
                        left: Left::default(),
                    });
                    self.submit(index);
                }
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => self.closed = true,
            }
        }
    }

    fn submit(&mut self, index: usize) {
        let fd = types::Fd(self.file.file().as_raw_fd());
        let Some(in_flight) = &mut self.in_flight[index] else {
            return;
        };
        let done = in_flight.done;
        let entry = match &mut in_flight.operation {
            Operation::Read(offset, buf, _) => {
                let rest = &mut buf[done..];
                opcode::Read::new(fd, rest.as_mut_ptr(), rest.len() as u32)
                    .offset(*offset + done as u64)
                    .build()
            }
            Operation::Write(offset, parts, _) => {
                in_flight.left = left_of(parts, done);
                let offset = *offset + done as u64;
                match &in_flight.left.0[..] {
                    [one] => opcode::Write::new(fd, one.iov_base.cast(), one.iov_len as u32)
                        .offset(offset)
                        .build(),
                    several => opcode::Writev::new(fd, several.as_ptr(), several.len() as u32)
                        .offset(offset)
                        .build(),
                }
            }
            Operation::Flush(_) => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
        };
        self.push(entry.user_data(index as u64));
    }

    fn push(&mut self, entry: squeue::Entry) {
        // SAFETY: every buffer and vector an entry points to lives in `self.in_flight` or `self.wake_count`, at a stable heap
        // address, and is dropped only after its completion was reaped.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            if let Err(error) = self.ring.submit() {
                tracing::warn!(%error, "io_uring submission queue is full");
            }
        }
    }

    fn reap(&mut self) {
        let completions: Vec<(u64, i32)> = self
            .ring
            .completion()
            .map(|c| (c.user_data(), c.result()))
            .collect();
        for (token, result) in completions {
            if token == WAKE_TOKEN {
                self.watch_wake();
            } else {
                self.finish(token as usize, result);
            }
        }
    }

    fn finish(&mut self, index: usize, result: i32) {
        let Some(in_flight) = &mut self.in_flight[index] else {
            return;
        };
        let total = match &in_flight.operation {
            Operation::Read(_, buf, _) => buf.len(),
            Operation::Write(_, parts, _) => parts.iter().map(|part| part.len()).sum(),
            Operation::Flush(_) => 0,
        };
        if result == -libc::EINTR || result == -libc::EAGAIN {
            return self.submit(index);
        }
        if result > 0 {
            in_flight.done += result as usize;
            if in_flight.done < total {
                return self.submit(index);
            }
        }
        let error = match result {
            r if r < 0 => Some(io::Error::from_raw_os_error(-r).to_string()),
            0 if total > 0 => Some("end of device".to_string()),
            _ => None,
        };
        if let Some(in_flight) = self.in_flight[index].take() {
            self.free.push(index);
            answer(in_flight.operation, error);
        }
    }
}

fn answer(operation: Operation, error: Option<String>) {
    fn outcome<T>(value: T, kind: DeviceErrorKind, error: Option<String>) -> Result<T, DeviceError> {
        match error {
            None => Ok(value),
            Some(what) => Err(DeviceError::new(kind, what)),
        }
    }
    match operation {
        Operation::Read(_, buf, completer) => completer.complete(outcome(buf, DeviceErrorKind::Read, error)),
        Operation::Write(_, _, completer) => completer.complete(outcome((), DeviceErrorKind::Write, error)),
        Operation::Flush(completer) => completer.complete(outcome((), DeviceErrorKind::Flush, error)),
    }
}

impl Device for Uring {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn read(&self, offset: u64, buf: AlignedBuf) -> Completion<AlignedBuf> {
        let (completer, completion) = completion();
        self.submit(Operation::Read(offset, buf, completer));
        completion
    }

    fn write_parts(&self, offset: u64, parts: Vec<AlignedBytes>) -> Completion<()> {
        let (completer, completion) = completion();
        self.submit(Operation::Write(offset, parts, completer));
        completion
    }

    fn flush(&self) -> Completion<()> {
        let (completer, completion) = completion();
        self.submit(Operation::Flush(completer));
        completion
    }

    fn write_now(&self, offset: u64, parts: Vec<AlignedBytes>) -> Result<(), DeviceError> {
        self.file.write_all(offset, &parts)
    }

    fn flush_now(&self) -> Result<(), DeviceError> {
        self.file.flush()
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        self.file.allocate(offset, len)
    }

    fn check(&self) -> Result<(), DeviceError> {
        self.file.check()
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        self.sender.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.wake();
        super::join_patiently(self.thread.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::BLOCK;

    /// Each read finds the ring thread asleep, just awake or about to sleep; one that wakes nobody would never be answered. It
    /// is alone: the answer to another would wake the thread.
    #[test]
    fn every_operation_is_answered_whatever_the_ring_thread_is_at() {
        let (file, size) = (tempfile::tempfile().unwrap(), 64 * BLOCK as u64);
        file.set_len(size).unwrap();
        let Ok(device) = Uring::start(Arc::new(DiskFile::of(file, size)), "test".into()) else {
            println!("no io_uring here: nothing to test");
            return;
        };
        let (done, finished) = channel();
        std::thread::spawn(move || {
            for round in 0..40_000 {
                let read = device.read(round % 64 * BLOCK as u64, AlignedBuf::recycled(BLOCK));
                read.wait().unwrap();
                // The thread goes to sleep meanwhile, more or less.
                (0..round % 512).for_each(|_| std::hint::spin_loop());
            }
            done.send(()).unwrap();
        });
        let ended = finished.recv_timeout(Duration::from_secs(60));
        assert!(ended.is_ok(), "an operation is not answered: {ended:?}");
    }
}
