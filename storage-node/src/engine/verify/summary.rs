//! The summary of a sealed extent, while the extent's records are met: what it lists is what is there, and what is there it
//! lists.
//!
//! A summary that does not verify costs a walk at the next start; one that verifies and leaves a record out would lose it. Either is
//! a finding, and the committer writes it anew from the records ([`Shared::bad_summaries`]).
//!
//! A summary may be on its way to the disk while it is looked at: what looks wrong is read again for as long as that could last.

use super::*;
use crate::engine::tail::{look_at_tail, read_entries, read_footer};
use crate::format::summary::{SummaryEntry, Tail, summary_len};

/// One use of an extent that a pass looks at.
#[derive(Clone, Copy)]
pub struct Use {
    pub number: u32,
    pub owner: UnitId,
    pub generation: u64,
}

impl Use {
    /// A hold on the extent that keeps it from being used again, if it is still this use.
    pub fn pin(&self, shared: &Shared) -> Option<Arc<()>> {
        let index = shared.index();
        let extent = &index.extents[self.number as usize];
        let same = extent.used == ExtentUse::Owned(self.owner) && extent.generation == self.generation;
        same.then(|| extent.pin.clone())
    }

    /// What the summary lists; none if there is no summary, and why not if there is one that does not verify.
    fn read(&self, shared: &Shared) -> Result<Option<Vec<SummaryEntry>>, String> {
        let (device, layout, identity) = (&*shared.device, &shared.layout, &shared.identity);
        let first = read_footer(device, layout, self.number);
        let footer = match look_at_tail(device, layout, identity, (self.number, self.generation), first) {
            Tail::Open => return Ok(None),
            Tail::Damaged(why) => return Err(why),
            Tail::Sealed(footer) => footer,
        };
        let log = {
            let extent = &shared.index().extents[self.number as usize];
            (extent.end, extent.ordinal)
        };
        if footer.unit != self.owner || (footer.end, footer.ordinal) != log {
            return Err("it is of another unit, or of another log".into());
        }
        read_entries(device, layout, identity, &footer).map(Some)
    }
}

/// A record that a summary must list. Of one that only the index names the sequence is not known.
#[derive(Clone, Copy)]
struct Expected {
    key: ShardKey,
    sequence: Option<u64>,
    offset: u32,
    len: u32,
    digests: u8,
}

impl Expected {
    fn of_index(key: ShardKey, entry: &Entry) -> Expected {
        Expected {
            key,
            sequence: None,
            offset: entry.place.offset,
            len: entry.len,
            digests: entry.digests,
        }
    }

    fn of_head(head: &RecordHead) -> Expected {
        Expected {
            sequence: Some(head.sequence),
            ..Expected::of_index(head.key, &Entry::of(head))
        }
    }

    fn is_in(&self, listed: &[SummaryEntry]) -> bool {
        let at = listed.binary_search_by_key(&self.offset, |entry| entry.offset);
        at.is_ok_and(|at| {
            let found = &listed[at];
            (found.key, found.len, found.digests) == (self.key, self.len, self.digests)
                && self.sequence.is_none_or(|sequence| sequence == found.sequence)
        })
    }
}

/// A summary while the records of its extent are met, and the first thing that looked wrong.
pub struct Summed {
    of: Use,
    listed: Option<Vec<SummaryEntry>>,
    doubt: Option<Option<Expected>>,
}

impl Summed {
    /// Reads it, and looks for what is live.
    pub fn begin<'a>(
        shared: &Shared,
        of: Use,
        live: impl IntoIterator<Item = &'a (ShardKey, Entry)>,
    ) -> Summed {
        let _pin = of.pin(shared);
        let read = of.read(shared);
        let doubt = read.is_err().then_some(None);
        let listed = read.ok().flatten();
        let mut summed = Summed { of, listed, doubt };
        for (key, entry) in live {
            summed.expect(Expected::of_index(*key, entry));
        }
        summed
    }

    /// About how many bytes that took.
    pub fn bytes(&self) -> u64 {
        self.listed
            .as_ref()
            .map_or(BLOCK as u64, |listed| summary_len(listed.len() as u64))
    }

    fn expect(&mut self, expected: Expected) {
        let is_missing = |listed: &Vec<SummaryEntry>| !expected.is_in(listed);
        if self.doubt.is_none() && self.listed.as_ref().is_some_and(is_missing) {
            self.doubt = Some(Some(expected));
        }
    }

    /// A record of the extent.
    pub fn meet(&mut self, shared: &Shared, head: &RecordHead) {
        if self.doubt.is_none() && self.listed.is_some() && !was_cut(&shared.index(), head) {
            self.expect(Expected::of_head(head));
        }
    }

    /// What looked wrong is looked at again until it is right, or has been wrong for long enough. Says whether it is a finding;
    /// none if it was told to stop.
    pub fn settle(&self, shared: &Shared, pace: &mut Pace) -> Option<bool> {
        let Some(doubt) = &self.doubt else {
            return Some(false);
        };
        let started = Instant::now();
        let what = loop {
            let Some(_pin) = self.of.pin(shared) else {
                return Some(false);
            };
            let what = match (self.of.read(shared), doubt) {
                (Err(why), _) => why,
                (Ok(Some(listed)), Some(expected)) if !expected.is_in(&listed) => {
                    let at = expected.offset;
                    format!("it says otherwise than the record at {at} in the extent")
                }
                _ => return Some(false),
            };
            if started.elapsed() > INDEX_PATIENCE {
                break what;
            }
            if !pace.sleep(INDEX_PAUSE) {
                return None;
            }
        };
        if shared.fence.get().is_some() {
            return Some(false);
        }
        if superblocks::is_overwritten(&superblocks::read(&*shared.device), &shared.identity) {
            shared.fence_because(superblocks::OVERWRITTEN);
            return Some(false);
        }
        let place = RecordPlace {
            extent: self.of.number,
            generation: self.of.generation,
            offset: shared.layout.data_end() - BLOCK as u32,
        };
        let nobody = ShardKey { blob: 0, stripe: 0 };
        let what = format!("the summary of the extent: {what}");
        report(shared, FindingKind::Summary, self.of.owner, nobody, place, what);
        shared.bad_summaries().push((self.of.number, self.of.generation));
        shared.queue.nudge();
        Some(true)
    }
}

fn was_cut(index: &Index, head: &RecordHead) -> bool {
    index.cuts.iter().any(|(_, places)| places.contains(&head.place))
}
