//! pread/pwrite on a small pool of threads: for kernels and containers that block io_uring.
//!
//! Invariant: an operation that was accepted is answered, also at shutdown: dropping the device lets the threads
//! finish what is queued, then joins those that do not hang.

use super::{
    AlignedBuf, AlignedBytes, Completer, Completion, Device, DeviceError, DeviceErrorKind, DeviceInfo,
    DiskFile, completion,
};
use std::collections::VecDeque;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

const THREADS: usize = 4;

enum Operation {
    Read(u64, AlignedBuf, Completer<AlignedBuf>),
    Write(u64, Vec<AlignedBytes>, Completer<()>),
    Flush(Completer<()>),
}

#[derive(Default)]
struct Queue {
    operations: VecDeque<Operation>,
    stopping: bool,
}

struct Shared {
    file: Arc<DiskFile>,
    queue: Mutex<Queue>,
    arrived: Condvar,
}

/// The pread/pwrite backend.
pub struct Fallback {
    info: DeviceInfo,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Fallback {
    /// Starts the threads.
    pub fn start(file: Arc<DiskFile>, backend: String) -> Result<Self, DeviceError> {
        let info = DeviceInfo {
            size: file.size(),
            backend,
        };
        let shared = Arc::new(Shared {
            file,
            queue: Mutex::default(),
            arrived: Condvar::new(),
        });
        let mut device = Fallback {
            info,
            shared,
            threads: Vec::new(),
        };
        for _ in 0..THREADS {
            let shared = device.shared.clone();
            let thread = std::thread::Builder::new()
                .name("disk-io".into())
                .spawn(move || serve(&shared))
                .map_err(|e| DeviceError::new(DeviceErrorKind::Gone, format!("thread: {e}")))?;
            device.threads.push(thread);
        }
        Ok(device)
    }

    fn submit(&self, operation: Operation) {
        let mut queue = self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.operations.push_back(operation);
        drop(queue);
        self.shared.arrived.notify_one();
    }
}

fn serve(shared: &Shared) {
    loop {
        let mut queue = shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let operation = loop {
            if let Some(operation) = queue.operations.pop_front() {
                break operation;
            }
            if queue.stopping {
                return;
            }
            queue = shared.arrived.wait(queue).unwrap_or_else(PoisonError::into_inner);
        };
        drop(queue);
        perform(&shared.file, operation);
    }
}

fn perform(file: &DiskFile, operation: Operation) {
    match operation {
        Operation::Read(offset, mut buf, completer) => {
            let result = file.file().read_exact_at(&mut buf, offset);
            let failed = |error: io::Error| DeviceError::new(DeviceErrorKind::Read, error.to_string());
            completer.complete(result.map(|()| buf).map_err(failed));
        }
        Operation::Write(offset, parts, completer) => {
            completer.complete(file.write_all(offset, &parts));
        }
        Operation::Flush(completer) => completer.complete(file.flush()),
    }
}

impl Device for Fallback {
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
        self.shared.file.write_all(offset, &parts)
    }

    fn flush_now(&self) -> Result<(), DeviceError> {
        self.shared.file.flush()
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        self.shared.file.allocate(offset, len)
    }

    fn check(&self) -> Result<(), DeviceError> {
        self.shared.file.check()
    }
}

impl Drop for Fallback {
    fn drop(&mut self) {
        self.shared
            .queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .stopping = true;
        self.shared.arrived.notify_all();
        super::join_patiently(self.threads.drain(..));
    }
}
