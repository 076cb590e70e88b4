//! Reading one extent from its start to its end, past the page cache: for whoever looks at everything, in haste or beside others.
//!
//! Invariant: bytes are handed out in order, and each is read once; a block that cannot be read is zeros.

use crate::device::{AlignedBuf, BLOCK, Completion, Device, align_up};
use std::collections::VecDeque;
use std::ops::Range;

/// How a stream reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gait {
    /// Bytes of one read.
    read_bytes: u32,
    /// Reads in flight.
    in_flight: usize,
}

/// As fast as the disk reads.
pub const HASTY: Gait = Gait {
    read_bytes: 1 << 20,
    in_flight: 4,
};
/// Whoever else reads is hardly slowed: never more than one small read is before them.
pub const GENTLE: Gait = Gait {
    read_bytes: if cfg!(test) { 8 << 10 } else { 128 << 10 },
    in_flight: 1,
};

/// A part of an extent, read in order.
pub struct Stream<'a> {
    device: &'a dyn Device,
    /// Where the extent starts on the device.
    start: u64,
    limit: u32,
    gait: Gait,
    next: u32,
    reads: VecDeque<(u32, u32, Completion<AlignedBuf>)>,
    /// What was read and may still be asked for, from `at` on.
    bytes: Vec<u8>,
    at: u32,
}

impl<'a> Stream<'a> {
    /// Of the bytes `range` of the extent that starts at `start`. Both ends are on block boundaries.
    pub fn new(device: &'a dyn Device, start: u64, range: Range<u32>, gait: Gait) -> Stream<'a> {
        Stream {
            device,
            start,
            limit: range.end,
            gait,
            next: range.start,
            reads: VecDeque::new(),
            bytes: Vec::new(),
            at: range.start,
        }
    }

    /// Up to `len` bytes from `at`, fewer at the end. `at` never goes back.
    pub fn bytes(&mut self, at: u32, len: u32) -> &[u8] {
        let end = (at + len).min(self.limit);
        while (self.at as usize + self.bytes.len()) < end as usize && self.take_read(at) {}
        let skip = ((at - self.at) as usize).min(self.bytes.len());
        let until = (end.saturating_sub(self.at) as usize).clamp(skip, self.bytes.len());
        &self.bytes[skip..until]
    }

    /// Bytes read so far.
    pub fn position(&self) -> u32 {
        self.at + self.bytes.len() as u32
    }

    fn read_ahead(&mut self) {
        while self.reads.len() < self.gait.in_flight && self.next < self.limit {
            let len = self.gait.read_bytes.min(self.limit - self.next);
            let buf = AlignedBuf::recycled(align_up(len.into()) as usize);
            let read = self.device.read(self.start + u64::from(self.next), buf);
            self.reads.push_back((self.next, len, read));
            self.next += len;
        }
    }

    /// Waits for the next read, and forgets what is before `wanted`. Nothing is read before somebody asks for something.
    fn take_read(&mut self, wanted: u32) -> bool {
        self.read_ahead();
        let Some((from, len, read)) = self.reads.pop_front() else {
            return false;
        };
        let gone = (wanted.saturating_sub(self.at) as usize).min(self.bytes.len());
        self.bytes.drain(..gone);
        self.at += gone as u32;
        match read.wait() {
            Ok(buf) => self.bytes.extend_from_slice(&buf[..len as usize]),
            Err(_) => self.read_by_blocks(from, len),
        }
        true
    }

    /// One bad sector must not hide its neighbours.
    fn read_by_blocks(&mut self, from: u32, len: u32) {
        for at in (from..from + len).step_by(BLOCK) {
            let block = self
                .device
                .read(self.start + u64::from(at), AlignedBuf::recycled(BLOCK));
            match block.wait() {
                Ok(buf) => self.bytes.extend_from_slice(&buf),
                Err(_) => self.bytes.resize(self.bytes.len() + BLOCK, 0),
            }
        }
        self.bytes.truncate((from + len - self.at) as usize);
    }
}
