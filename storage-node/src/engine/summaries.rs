//! Summaries of sealed extents ([`crate::format::summary`]): what they list is kept while an extent is open, and written
//! when it is not any more.
//!
//! Invariants:
//! - A summary is written after the flush of every record that it lists: never in the same batch. A torn one does not
//!   verify, and the records are still there, so nothing waits for a summary to be durable.
//! - An extent whose summary is written, or may be, is never appended to.
//! - Before the first summary the superblock says that the disk is of a version that has them.

use super::committer::Committer;
use super::index::{ExtentUse, Index};
use super::scan::walk_extent;
use crate::device::{AlignedBuf, AlignedBytes, DeviceError, align_up};
use crate::format::extent::{DiskIdentity, SYSTEM_UNIT};
use crate::format::layout::Layout;
use crate::format::record::{CutPlace, RecordHead, RecordKind};
use crate::format::summary::{
    SUMMARY_ENTRY_BYTES, SUMMARY_FOOTER_BYTES, SummaryEntry, SummaryFooter, seeded_crc, summary_len,
    summary_start,
};
use crate::protocol::UnitId;
use std::collections::{HashMap, VecDeque};

/// About so many bytes of summaries go with one batch.
const BATCH_SUMMARY_BYTES: u64 = 8 << 20;
/// Records that recovery lists of sealed extents, 24 B each. Extents beyond that are walked again at the next start.
const BACKLOG_MAX: usize = 2 << 20;

/// What the summary of an extent will list.
pub struct Listing {
    unit: UnitId,
    generation: u64,
    entries: Vec<[u8; SUMMARY_ENTRY_BYTES]>,
    base: u64,
    end: u32,
    ordinal: u32,
    epoch: u32,
    sequence: u64,
    batch: u64,
}

impl Listing {
    /// Of an extent with nothing in it yet.
    pub fn new(unit: UnitId, generation: u64, layout: &Layout) -> Listing {
        Listing {
            unit,
            generation,
            entries: Vec::new(),
            base: 0,
            end: layout.data_start(),
            ordinal: 0,
            epoch: 0,
            sequence: 0,
            batch: 0,
        }
    }

    /// With the next record of the extent, which is not listed if it was cut; none if it cannot be listed.
    pub fn with(mut self, head: &RecordHead, was_cut: bool) -> Option<Listing> {
        if was_cut {
            self.pass(head);
            return Some(self);
        }
        self.add(head).then_some(self)
    }

    /// The next record of the extent. Says whether it can be listed; if not, the extent can have no summary.
    fn add(&mut self, head: &RecordHead) -> bool {
        if self.entries.is_empty() {
            self.base = head.sequence;
        }
        let entry = SummaryEntry {
            key: head.key,
            sequence: head.sequence,
            offset: head.place.offset,
            len: head.len,
            digests: head.digests.len() as u8,
        };
        let belongs = head.kind == RecordKind::Shard && head.unit == self.unit;
        match entry.encode(self.base) {
            Some(entry) if belongs => self.entries.push(entry),
            _ => return false,
        }
        self.pass(head);
        true
    }

    /// The next record of the extent, which is not listed.
    fn pass(&mut self, head: &RecordHead) {
        self.end = align_up(u64::from(head.place.offset + head.next_at)) as u32;
        self.ordinal = head.ordinal + 1;
        self.epoch = self.epoch.max(head.epoch);
        self.sequence = self.sequence.max(head.sequence);
        self.batch = self.batch.max(head.batch);
    }

    /// The record there was never acknowledged.
    fn leave_out(&mut self, place: &CutPlace) {
        if place.generation == self.generation {
            self.entries
                .retain(|entry| SummaryEntry::offset_of(entry) != place.offset);
        }
    }

    /// How many records it lists.
    fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether the extent has room for the summary.
    fn has_room(&self, layout: &Layout) -> bool {
        self.end <= summary_start(layout, self.entries.len() as u64)
    }

    /// The summary's bytes, when every batch up to `flushed` was flushed.
    fn encode(&self, identity: &DiskIdentity, extent: u32, flushed: u64) -> AlignedBytes {
        let mut buf = AlignedBuf::zeroed(summary_len(self.entries.len() as u64) as usize);
        let entries = self.entries.as_flattened();
        let footer = SummaryFooter {
            extent,
            generation: self.generation,
            unit: self.unit,
            entries: self.entries.len() as u32,
            entries_crc: seeded_crc(identity, extent, self.generation, entries),
            end: self.end,
            ordinal: self.ordinal,
            epoch: self.epoch,
            base: self.base,
            sequence: self.sequence,
            batch: self.batch,
            flushed,
        };
        buf[..entries.len()].copy_from_slice(entries);
        let at = buf.len() - SUMMARY_FOOTER_BYTES;
        buf[at..].copy_from_slice(&footer.encode(identity));
        buf.share()
    }
}

/// What is listed of the extents that are open, and of those that wait for their summary to be written.
#[derive(Default)]
pub struct Summaries {
    listings: HashMap<u32, Listing>,
    sealed: VecDeque<u32>,
}

impl Summaries {
    /// Goes on with what is listed of an extent.
    fn resume(&mut self, extent: u32, listing: Listing) {
        self.listings.insert(extent, listing);
    }

    /// An extent was opened for this owner.
    pub fn begin(&mut self, extent: u32, owner: UnitId, generation: u64, layout: &Layout) {
        self.forget(extent);
        if owner != SYSTEM_UNIT {
            self.resume(extent, Listing::new(owner, generation, layout));
        }
    }

    /// A record is in the batch that is being made, or was written.
    pub fn note(&mut self, head: &RecordHead) {
        let number = head.place.extent;
        if self
            .listings
            .get_mut(&number)
            .is_some_and(|listing| !listing.add(head))
        {
            self.forget(number);
        }
    }

    /// Where the next record must end, so that it can be listed.
    pub fn limit(&self, extent: u32, layout: &Layout) -> u32 {
        match self.listings.get(&extent) {
            Some(listing) => summary_start(layout, listing.len() as u64 + 1),
            None => layout.data_end(),
        }
    }

    /// An extent was left for a new one: nothing is appended to it any more.
    pub fn seal(&mut self, extent: u32) {
        if self.listings.contains_key(&extent) {
            self.sealed.push_back(extent);
        }
    }

    /// An extent gets no summary in this use of it.
    pub fn forget(&mut self, extent: u32) {
        if self.listings.remove(&extent).is_some() {
            self.sealed.retain(|sealed| *sealed != extent);
        }
    }

    /// Whether a summary could be written, when every batch up to `flushed` was flushed.
    pub fn is_due(&self, flushed: u64) -> bool {
        let due = |extent: &u32| self.listings.get(extent).is_some_and(|l| l.batch <= flushed);
        self.sealed.iter().any(due)
    }

    /// Takes out what can be written now, about as much as one batch should have.
    fn take_due(&mut self, flushed: u64) -> Vec<(u32, Listing)> {
        let (mut due, mut bytes) = (Vec::new(), 0);
        for extent in std::mem::take(&mut self.sealed) {
            match self.listings.get(&extent) {
                Some(listing) if listing.batch <= flushed && bytes < BATCH_SUMMARY_BYTES => {
                    bytes += summary_len(listing.len() as u64);
                    due.extend(self.listings.remove(&extent).map(|listing| (extent, listing)));
                }
                Some(_) => self.sealed.push_back(extent),
                None => {}
            }
        }
        due
    }
}

/// What recovery lists of the extents that it walks: of each unit's newest, which may go on, and of as many more as memory
/// allows, which are sealed and still without a summary.
#[derive(Default)]
pub struct Backlog {
    newest: HashMap<UnitId, (u32, Listing)>,
    sealed: Vec<(u32, Listing)>,
    records: usize,
}

impl Backlog {
    /// Keeps what is listed of an extent, if it may be of use.
    pub fn keep(&mut self, extent: u32, listing: Listing, is_sealed: bool, layout: &Layout) {
        let before = self.newest.get(&listing.unit);
        if is_sealed || before.is_some_and(|(_, before)| before.generation > listing.generation) {
            return self.keep_sealed(extent, listing, layout);
        }
        if let Some((extent, before)) = self.newest.insert(listing.unit, (extent, listing)) {
            self.keep_sealed(extent, before, layout);
        }
    }

    fn keep_sealed(&mut self, extent: u32, listing: Listing, layout: &Layout) {
        if listing.len() > 0 && listing.has_room(layout) && self.records + listing.len() <= BACKLOG_MAX {
            self.records += listing.len();
            self.sealed.push((extent, listing));
        }
    }

    /// What is left to be written, once it is known which extents go on and what was cut.
    pub fn settle(mut self, new_cuts: &[CutPlace], index: &Index, layout: &Layout) -> Summaries {
        let mut summaries = Summaries::default();
        for (unit, (extent, listing)) in std::mem::take(&mut self.newest) {
            match index.open_extent(unit) == Some(extent) {
                true => summaries.resume(extent, listing),
                false => self.keep_sealed(extent, listing, layout),
            }
        }
        for (extent, listing) in self.sealed {
            // An older one goes on when the newest is full.
            let goes_on = index.open_extent(listing.unit) == Some(extent);
            summaries.resume(extent, listing);
            if !goes_on {
                summaries.seal(extent);
            }
        }
        for place in new_cuts {
            if let Some(listing) = summaries.listings.get_mut(&place.extent) {
                listing.leave_out(place);
            }
        }
        summaries
    }
}

impl Committer {
    /// The summaries that go with the batch which is about to be written: where on the device, and the bytes.
    pub(super) fn due_summaries(&mut self) -> Result<Vec<(u64, AlignedBytes)>, DeviceError> {
        let due = self.summaries.take_due(self.counters.flushed);
        if !due.is_empty() && self.superblock.version < crate::format::superblock::FORMAT_VERSION {
            self.write_superblock()?;
        }
        let index = self.shared.index();
        let layout = &self.shared.layout;
        let writes = due.iter().filter_map(|(number, listing)| {
            let extent = &index.extents[*number as usize];
            let same =
                extent.used == ExtentUse::Owned(listing.unit) && extent.generation == listing.generation;
            let left = index.open_extent(listing.unit) != Some(*number);
            let stands = (extent.end, extent.ordinal) == (listing.end, listing.ordinal);
            if !(same && left && stands && listing.has_room(layout)) {
                return None;
            }
            let start = summary_start(layout, listing.len() as u64);
            let at = layout.extent_offset(*number) + u64::from(start);
            let bytes = listing.encode(&self.shared.identity, *number, self.counters.flushed);
            Some((at, bytes))
        });
        Ok(writes.collect())
    }

    /// Lists anew, from its records, what the summary of an extent must list. Nothing is in flight then.
    fn list_again(&mut self, (number, generation): (u32, u64)) {
        let owner = {
            let index = self.shared.index();
            let extent = &index.extents[number as usize];
            match extent.used {
                ExtentUse::Owned(owner) if extent.generation == generation => owner,
                _ => return,
            }
        };
        let (device, layout, identity) = (&*self.shared.device, &self.shared.layout, &self.shared.identity);
        let mut listing = Some(Listing::new(owner, generation, layout));
        let log = walk_extent(device, layout, identity, number, generation, |head| {
            let index = self.shared.index();
            let was_cut = index.cuts.iter().any(|(_, places)| places.contains(&head.place));
            listing = listing.take().and_then(|listing| listing.with(&head, was_cut));
        });
        // What cannot be read now may be readable at the next start, which walks it.
        if let Some(listing) = listing
            && log.gaps.is_empty()
            && !log.unreadable
        {
            self.summaries.forget(number);
            self.summaries.resume(number, listing);
            self.summaries.seal(number);
        }
    }

    /// Writes the summaries that no batch has taken along, and those that turned out to be bad.
    pub(super) fn write_summaries(&mut self) {
        let bad = std::mem::take(&mut *self.shared.bad_summaries());
        bad.into_iter().for_each(|extent| self.list_again(extent));
        while self.summaries.is_due(self.counters.flushed) && self.shared.fence.get().is_none() {
            let batch = self.new_batch();
            // A failure has fenced the disk.
            let _ = self.write_batch(batch);
        }
    }
}
