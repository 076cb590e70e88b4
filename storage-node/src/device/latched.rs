//! A device whose first write or flush failure is its last operation: everything after it fails at once.
//!
//! Invariant: after a failed write or flush no later operation reaches the device, because what is on it is unknown
//! and a second flush may claim success for data that the first one lost. Read failures do not latch.

use super::{AlignedBuf, AlignedBytes, Completion, Device, DeviceError, DeviceErrorKind, DeviceInfo};
use std::sync::{Arc, OnceLock};

/// The latch around a device.
pub struct Latched {
    device: Arc<dyn Device>,
    failure: Arc<OnceLock<DeviceError>>,
}

impl Latched {
    /// Puts a latch around a device.
    pub fn new(device: Arc<dyn Device>) -> Self {
        Latched {
            device,
            failure: Arc::default(),
        }
    }

    /// The failure that latched, if one did.
    pub fn failure(&self) -> Option<&DeviceError> {
        self.failure.get()
    }

    fn unless_latched<T>(&self, start: impl FnOnce() -> Completion<T>) -> Completion<T> {
        match self.failure.get() {
            Some(failure) => Completion::ready(Err(failure.clone())),
            None => start(),
        }
    }

    fn latching<T>(&self, start: impl FnOnce() -> Completion<T>) -> Completion<T> {
        let failure = self.failure.clone();
        self.unless_latched(start).on_failure(move |error| {
            failure.get_or_init(|| error.clone());
        })
    }
}

impl Latched {
    fn latching_now(&self, act: impl FnOnce() -> Result<(), DeviceError>) -> Result<(), DeviceError> {
        if let Some(failure) = self.failure.get() {
            return Err(failure.clone());
        }
        act().inspect_err(|error| {
            self.failure.get_or_init(|| error.clone());
        })
    }
}

impl Device for Latched {
    fn info(&self) -> &DeviceInfo {
        self.device.info()
    }

    fn read(&self, offset: u64, buf: AlignedBuf) -> Completion<AlignedBuf> {
        self.unless_latched(|| self.device.read(offset, buf))
    }

    fn write_parts(&self, offset: u64, parts: Vec<AlignedBytes>) -> Completion<()> {
        self.latching(|| self.device.write_parts(offset, parts))
    }

    fn flush(&self) -> Completion<()> {
        self.latching(|| self.device.flush())
    }

    fn write_now(&self, offset: u64, parts: Vec<AlignedBytes>) -> Result<(), DeviceError> {
        self.latching_now(|| self.device.write_now(offset, parts))
    }

    fn flush_now(&self) -> Result<(), DeviceError> {
        self.latching_now(|| self.device.flush_now())
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        if let Some(failure) = self.failure.get() {
            return Err(failure.clone());
        }
        self.device.allocate(offset, len).inspect_err(|error| {
            if error.kind != DeviceErrorKind::NoSpace {
                self.failure.get_or_init(|| error.clone());
            }
        })
    }

    fn check(&self) -> Result<(), DeviceError> {
        match self.failure.get() {
            Some(failure) => Err(failure.clone()),
            None => self.device.check(),
        }
    }
}
