//! Memory that direct I/O accepts: aligned to 4 KiB, a whole number of blocks, initialised when made.
//!
//! Invariant: an [`AlignedBuf`] has one owner, so whoever holds it may write it; an [`AlignedBytes`] is shared and
//! read-only. Both may be sent between threads. Neither is ever freed while a device holds it.
#![allow(unsafe_code)]

use super::{BLOCK, pool};
use bytes::Bytes;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;

/// Aligned memory, initialised when it was made.
pub(super) struct Memory {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: it is plain memory with one owner; nothing about it is tied to a thread.
unsafe impl Send for Memory {}
// SAFETY: shared references only allow reading.
unsafe impl Sync for Memory {}

impl Memory {
    /// Zeroed memory of `len` bytes, a positive number of whole blocks.
    pub(super) fn zeroed(len: usize) -> Self {
        assert!(len > 0 && len.is_multiple_of(BLOCK));
        let layout = Self::layout(len);
        // SAFETY: the layout has a non-zero size.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else {
            handle_alloc_error(layout)
        };
        Memory { start, len }
    }

    fn layout(len: usize) -> Layout {
        Layout::from_size_align(len, BLOCK).expect("a buffer length fits in memory")
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: `start` points to `len` initialised bytes that live as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `&mut self` is the only access.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }

    #[cfg(test)]
    pub(super) fn start(&self) -> *const u8 {
        self.start.as_ptr()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this very layout, and freed only here.
        unsafe { dealloc(self.start.as_ptr(), Self::layout(self.len)) }
    }
}

/// An owned aligned buffer.
pub struct AlignedBuf {
    /// There until the buffer is dropped.
    memory: Option<Memory>,
    len: usize,
    /// The memory goes back to the pool.
    pooled: bool,
}

impl AlignedBuf {
    /// A zeroed buffer of at least `len` bytes, rounded up to whole blocks (at least one).
    pub fn zeroed(len: usize) -> Self {
        let len = len.max(1).next_multiple_of(BLOCK);
        AlignedBuf {
            memory: Some(Memory::zeroed(len)),
            len,
            pooled: false,
        }
    }

    /// A buffer as long as [`AlignedBuf::zeroed`] makes it, with anything in it, be it somebody's
    /// object: for who fills it, or lets a device, and shows no more of it than that.
    pub fn recycled(len: usize) -> Self {
        let len = len.max(1).next_multiple_of(BLOCK);
        AlignedBuf {
            memory: Some(pool::take(len)),
            len,
            pooled: true,
        }
    }

    /// A zeroed buffer as [`AlignedBuf::zeroed`] makes it, of memory that was used before where there is some: to clear a little
    /// costs less than to get new pages.
    pub fn cleared(len: usize) -> Self {
        let mut buffer = Self::recycled(len);
        buffer.fill(0);
        buffer
    }

    /// Freezes the buffer so that it can be shared.
    pub fn share(self) -> AlignedBytes {
        AlignedBytes(Bytes::from_owner(self))
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        if let (Some(memory), true) = (self.memory.take(), self.pooled) {
            pool::give(memory);
        }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match &self.memory {
            Some(memory) => &memory.bytes()[..self.len],
            None => &[],
        }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Some(memory) => &mut memory.bytes_mut()[..self.len],
            None => &mut [],
        }
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl std::fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBuf({} bytes)", self.len)
    }
}

/// Shared read-only aligned bytes.
#[derive(Clone, Debug)]
pub struct AlignedBytes(Bytes);

impl AlignedBytes {
    /// Bytes of anybody's, if they are whole blocks in memory that direct I/O accepts: they are written from where they are.
    pub fn of(bytes: Bytes) -> Option<AlignedBytes> {
        let aligned = bytes.as_ptr().addr().is_multiple_of(BLOCK) && bytes.len().is_multiple_of(BLOCK);
        aligned.then_some(AlignedBytes(bytes))
    }

    /// A part of it, in whole blocks.
    pub fn slice(&self, range: Range<usize>) -> AlignedBytes {
        assert!(range.start.is_multiple_of(BLOCK) && range.end.is_multiple_of(BLOCK));
        AlignedBytes(self.0.slice(range))
    }
}

impl Deref for AlignedBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}
