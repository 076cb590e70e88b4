//! Compares a piece of a volume in the ledger with what one unit of it holds, both ways.
//!
//! The order decides what a difference means.
//! - A shard is *missing* if a blob row named it before the inventory was taken, and its blob was pinned from before the row was
//!   read until after: an upload's shards are durable before its row is, and what is pinned is not collected.
//! - A blob is *unnamed* if the inventory had it first, then this gateway was not writing it (or about to make it garbage, or
//!   waiting for the outcome of a commit of it), then no blob row, then no garbage row named it, and the inventory still had it
//!   after that. Whoever names a blob for the first time wrote its shards, and before that its range of ids, under a lease that
//!   stands; a blob goes from writing to its row, from there to its garbage row, and never back; and that row goes when the disks
//!   have deleted it. So what is in none of these places, and under nobody else's lease, nobody can name any more, and nobody is
//!   about to delete. No clock is asked.
//!
//! That nothing names it may still be the ledger's fault. So it is set aside (`maintenance/unnamed`), no more.
//!
//! Invariant: nothing is deleted here; a garbage row may wait again for a disk that has what it had deleted. A
//! blob whose id was never handed out is not even set aside: the ledger is older than the disks, and would hand it
//! out again.

use super::{Census, Unit};
use crate::error::Result;
use crate::ledger::key;
use crate::ledger::model::{BlobRow, UnnamedWhy};
use crate::maintenance::unnamed::aside::{self, Aside, Finding, HeldBlobs, whole_blobs};
use crate::object::encode;
use crate::object::readers::Pins;
use crate::placement::volumes::Volume;
use ec_core::Codec;
use ec_core::stripe::Geometry;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use storage_node::protocol::{InventoryEntry, NodeError, ShardKey};

/// Blobs of a volume that are compared at once.
const BLOBS_AT_ONCE: usize = 256;
/// Entries asked of an inventory at once.
const INVENTORY_AT_ONCE: usize = 4_096;
const DEADLINE: Duration = Duration::from_secs(10);

/// Consecutive blobs of a volume as the ledger has them, pinned.
pub struct Piece {
    blobs: BTreeMap<u64, Geometry>,
    from: u64,
    last: u64,
    /// The blob that the next piece begins with.
    pub next: Option<u64>,
    _pins: Pins,
}

impl Piece {
    /// The shards that every unit should have, in order, and how long each is.
    fn expected(&self) -> impl Iterator<Item = (ShardKey, u32)> {
        self.blobs.iter().flat_map(|(&blob, geometry)| {
            let geometry = *geometry;
            (0..geometry.stripes()).map(move |stripe| (ShardKey { blob, stripe }, geometry.shard_len(stripe)))
        })
    }
}

/// How a unit differs from a piece of its volume.
#[derive(Default)]
pub struct Difference {
    /// Shards that it lacks.
    pub missing: Vec<ShardKey>,
    /// Shards of another length than they should have, and which.
    pub wrong: Vec<(ShardKey, u32)>,
    /// Shards past the end of their blob.
    pub surplus: u64,
    /// Blobs of which it has shards, that nothing names, and that were not known.
    pub unnamed: u64,
    /// Those that were.
    pub set_aside: u64,
}

/// The census that a comparison is part of.
#[derive(Clone, Copy, Debug)]
pub struct Cycle {
    /// Its number; or that of the last one, if it is part of none.
    pub number: u64,
    /// Whether it is part of it.
    pub counts: bool,
}

/// Goes through what should be there and what is, side by side.
struct Merge<'a, E: Iterator<Item = (ShardKey, u32)>> {
    piece: &'a Piece,
    expected: std::iter::Peekable<E>,
    difference: Difference,
}

impl<E: Iterator<Item = (ShardKey, u32)>> Merge<'_, E> {
    /// Takes in a page of the inventory. The blobs in it that the ledger did not name when the piece was read.
    fn take_in(&mut self, page: &[InventoryEntry]) -> HeldBlobs {
        let mut unknown = HeldBlobs::new();
        for entry in page {
            while let Some((key, _)) = self.expected.next_if(|(key, _)| *key < entry.key) {
                self.difference.missing.push(key);
            }
            match self.expected.next_if(|(key, _)| *key == entry.key) {
                Some((key, len)) if len != entry.len => self.difference.wrong.push((key, entry.len)),
                Some(_) => {}
                None if self.piece.blobs.contains_key(&entry.key.blob) => self.difference.surplus += 1,
                None => aside::take_in(&mut unknown, entry),
            }
        }
        unknown
    }

    fn finish(mut self) -> Difference {
        self.difference.missing.extend(self.expected.map(|(key, _)| key));
        self.difference
    }
}

impl Census {
    /// The next blobs of a volume, from this one on.
    pub async fn piece(&self, volume: &Volume, codec: &Codec, from: u64) -> Result<Piece> {
        let entering = self.objects.readers.enter();
        let mut range = key::blobs(volume.id);
        range.start = key::blob(volume.id, from);
        let rows = self.objects.ledger.scan::<BlobRow>(range, BLOBS_AT_ONCE).await?;
        let mut blobs = BTreeMap::new();
        for (row_key, row) in &rows {
            if let Some((_, blob)) = key::volume_and_blob(row_key) {
                blobs.insert(blob, encode::geometry(codec, row.row.length)?);
            }
        }
        let pins = entering.pin(blobs.keys().map(|blob| (volume.id, *blob)).collect());
        let last = match rows.len() == BLOBS_AT_ONCE {
            true => blobs.keys().next_back().copied().unwrap_or(u64::MAX),
            false => u64::MAX,
        };
        Ok(Piece {
            blobs,
            from,
            last,
            next: last.checked_add(1),
            _pins: pins,
        })
    }

    /// Compares a unit with a piece of its volume, and sets aside what nothing names. An inner error is the disk's.
    pub async fn compare(
        &self,
        unit: &Unit,
        piece: &Piece,
        cycle: Cycle,
    ) -> Result<std::result::Result<Difference, NodeError>> {
        let mut merge = Merge {
            piece,
            expected: piece.expected().peekable(),
            difference: Difference::default(),
        };
        let mut after = piece.from.checked_sub(1).map(|blob| ShardKey {
            blob,
            stripe: u32::MAX,
        });
        loop {
            let asked = unit
                .client
                .inventory(&unit.address, after, INVENTORY_AT_ONCE, DEADLINE);
            let mut page = match asked.await {
                Ok(page) => page,
                Err(error) => return Ok(Err(error)),
            };
            let is_full = page.len() >= INVENTORY_AT_ONCE;
            if is_full {
                whole_blobs(&mut page);
            }
            after = page.last().map(|entry| entry.key);
            page.retain(|entry| entry.key.blob <= piece.last);
            let unknown = merge.take_in(&page);
            match self.set_aside_unnamed(unit, unknown, cycle).await? {
                Ok(aside) => {
                    merge.difference.unnamed += aside.new + aside.unlisted;
                    merge.difference.set_aside += aside.known;
                }
                Err(error) => return Ok(Err(error)),
            }
            if !is_full || after.is_none_or(|key| key.blob > piece.last) {
                return Ok(Ok(merge.finish()));
            }
        }
    }

    /// Of blobs that a disk has and the ledger did not name a moment ago, sets aside those that nothing names.
    async fn set_aside_unnamed(
        &self,
        unit: &Unit,
        held: HeldBlobs,
        cycle: Cycle,
    ) -> Result<std::result::Result<Aside, NodeError>> {
        let volume = unit.address.unit.volume;
        if held.is_empty() {
            return Ok(Ok(Aside::default()));
        }
        let mut blobs: BTreeSet<u64> = held.keys().copied().collect();
        self.objects.abandoned.retain_settled(volume, &mut blobs);
        let ahead = self.objects.lease.retain_ended(&mut blobs).await?;
        blobs.extend(&ahead);
        let mut held = held;
        held.retain(|blob, _| blobs.contains(blob));
        let candidates: Vec<u64> = held.keys().copied().collect();
        self.objects.delete_again(volume, unit.index, &candidates).await?;
        self.objects.retain_without_rows(volume, &mut held).await?;
        if let Err(error) = retain_there(unit, &mut held).await {
            return Ok(Err(error));
        }
        let all = held.len();
        held.retain(|blob, _| !ahead.contains(blob));
        let ahead = all - held.len();
        if ahead > 0 {
            tracing::error!(
                volume,
                "a disk has blobs whose ids were never handed out: the ledger is older than the disks; they are left alone"
            );
        }
        let finding = Finding {
            volume,
            index: unit.index,
            why: UnnamedWhy::Census,
            cycle: cycle.number,
            counts: cycle.counts,
        };
        let mut aside = self.objects.set_aside(&finding, &held).await?;
        aside.unlisted += ahead as u64;
        Ok(Ok(aside))
    }
}

/// Takes out those that a unit does not have any more.
async fn retain_there(unit: &Unit, blobs: &mut HeldBlobs) -> std::result::Result<(), NodeError> {
    let (Some(&first), Some(&last)) = (blobs.keys().next(), blobs.keys().next_back()) else {
        return Ok(());
    };
    let mut there = BTreeSet::new();
    let mut after = first.checked_sub(1).map(|blob| ShardKey {
        blob,
        stripe: u32::MAX,
    });
    loop {
        let asked = unit
            .client
            .inventory(&unit.address, after, INVENTORY_AT_ONCE, DEADLINE);
        let page = asked.await?;
        let found = page.iter().map(|entry| entry.key.blob);
        there.extend(found.filter(|blob| blobs.contains_key(blob)));
        match page.last() {
            Some(entry) if page.len() >= INVENTORY_AT_ONCE && entry.key.blob <= last => {
                after = Some(entry.key)
            }
            _ => break,
        }
    }
    blobs.retain(|blob, _| there.contains(blob));
    Ok(())
}
