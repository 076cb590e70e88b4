//! Where records go: to the open extent of their owner, or to another one that is opened for it.
//!
//! Puts never touch the reserve; deletes leave the last two extents to compaction, and compaction the last one to recovery.
//! Part of the reserve has its space granted by the filesystem.

use super::batch::{Batch, Draft, LogEnd};
use super::committer::Committer;
use super::index::{Extent, ExtentUse};
use crate::device::{DeviceError, DeviceErrorKind};
use crate::format::extent::ExtentHeader;
use crate::format::record::RecordHead;
use crate::protocol::{NodeError, UnitId};
use std::sync::atomic::Ordering;

/// Generations reserved by one superblock write.
const GENERATIONS_AT_ONCE: u64 = 1024;

/// Free extents with granted space that puts leave to deletes, compaction and recovery: a full filesystem under a disk
/// file must not wedge it.
pub const READY_MIN: usize = 3;

/// What the space is wanted for: says how deep into the reserve it may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A new shard.
    Put,
    /// A tombstone or a drop.
    Delete,
    /// A copy that compaction makes.
    Move,
    /// What recovery decided.
    Cut,
}

impl Committer {
    /// Adds a record to the open extent of its owner, opening another one when it does not fit.
    pub(super) fn append(
        &mut self,
        batch: &mut Batch,
        owner: UnitId,
        draft: Draft,
        purpose: Purpose,
    ) -> Result<RecordHead, NodeError> {
        let layout = self.shared.layout;
        if !Batch::new(0, 0).fits(0, layout.data_start(), layout.data_end(), &draft) {
            return Err(NodeError::BadRequest {
                what: "the shard is larger than an extent of this disk".into(),
            });
        }
        let open = self.shared.index().open_extent(owner);
        let fitting = open.filter(|number| {
            let end = self.shared.index().extents[*number as usize].end;
            batch.fits(*number, end, self.summaries.limit(*number, &layout), &draft)
        });
        let number = match fitting {
            Some(number) => number,
            None => self.open_new(owner, purpose)?,
        };
        let index = self.shared.index();
        let extent = &index.extents[number as usize];
        if !batch.fits(number, extent.end, self.summaries.limit(number, &layout), &draft) {
            // It fills an extent: no room is left to sum it up.
            self.summaries.forget(number);
        }
        let loose = self
            .in_flight
            .iter()
            .filter_map(|batch| batch.starts.get(&number));
        let log = LogEnd {
            extent: number,
            generation: extent.generation,
            end: extent.end,
            loose_start: loose.copied().min().unwrap_or(extent.end),
            ordinal: extent.ordinal,
        };
        let head = batch.add(log, draft);
        self.summaries.note(&head);
        Ok(head)
    }

    fn open_new(&mut self, owner: UnitId, purpose: Purpose) -> Result<u32, NodeError> {
        if !self.may_open(purpose) {
            return Err(NodeError::NoSpace);
        }
        let number = self.take_ready(purpose)?;
        let layout = self.shared.layout;
        let generation = self
            .next_generation()
            .map_err(|error| self.shared.fence_with(&error))?;
        self.stage_header(number, Some(owner), generation);
        let mut index = self.shared.index_mut();
        if let Some(left) = index.open_extent(owner) {
            self.summaries.seal(left);
        }
        self.summaries.begin(number, owner, generation, &layout);
        let pin = index.extents[number as usize].pin.clone();
        let fresh = Extent::new(ExtentUse::Owned(owner), generation, layout.data_start());
        index.extents[number as usize] = Extent { pin, ..fresh };
        index.set_open(owner, Some(number));
        self.shared
            .free_extents
            .store(self.free.len() as u64, Ordering::Relaxed);
        Ok(number)
    }

    /// Whether there are free extents for this purpose, whatever the filesystem says.
    pub(super) fn may_open(&self, purpose: Purpose) -> bool {
        let keep = match purpose {
            Purpose::Put => self.shared.reserve,
            Purpose::Delete => 2,
            Purpose::Move => 1,
            Purpose::Cut => 0,
        };
        self.free.len() > keep
    }

    /// Takes a free extent whose space the filesystem has granted. A put leaves [`READY_MIN`] of them.
    fn take_ready(&mut self, purpose: Purpose) -> Result<u32, NodeError> {
        let wanted = if purpose == Purpose::Put { READY_MIN + 1 } else { 1 };
        while self.ready() < wanted
            && let Some(&number) = self.free.iter().find(|number| !self.granted.contains(number))
        {
            let layout = &self.shared.layout;
            let (start, len) = (layout.extent_offset(number), layout.extent_size());
            let granted = self.shared.device.allocate(start, len);
            let was_starved = std::mem::replace(&mut self.starved, granted.is_err());
            match granted {
                Ok(()) => self.granted.insert(number),
                Err(error) if error.kind == DeviceErrorKind::NoSpace => {
                    if !was_starved {
                        tracing::warn!(disk = %self.superblock.disk, %error, "the filesystem under the disk is full");
                    }
                    return Err(NodeError::NoSpace);
                }
                Err(error) => return Err(self.shared.fence_with(&error)),
            };
        }
        let place = self.free.iter().position(|number| self.granted.contains(number));
        place
            .and_then(|place| self.free.remove(place))
            .ok_or(NodeError::NoSpace)
    }

    /// Free extents whose space the filesystem has granted.
    pub(super) fn ready(&self) -> usize {
        self.free
            .iter()
            .filter(|number| self.granted.contains(number))
            .count()
    }

    fn next_generation(&mut self) -> Result<u64, DeviceError> {
        if self.counters.generation >= self.superblock.generation_limit {
            self.superblock.generation_limit = self.counters.generation + GENERATIONS_AT_ONCE;
            self.write_superblock()?;
        }
        self.counters.generation += 1;
        Ok(self.counters.generation - 1)
    }

    /// Lets the next batch write this header.
    pub(super) fn stage_header(&mut self, extent: u32, owner: Option<UnitId>, generation: u64) {
        let sequence = self.counters.header;
        self.counters.header += 1;
        self.headers.push(ExtentHeader {
            owner,
            extent,
            generation,
            sequence,
        });
    }
}
