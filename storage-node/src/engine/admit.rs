//! Which changes a batch takes in, and as which records: judged by the index, the batches in flight and the one in the making.

use super::batch::{Batch, Draft};
use super::committer::Committer;
use super::flusher::{Decided, Pending};
use super::queue::{Change, Request};
use super::room::Purpose;
use crate::format::extent::SYSTEM_UNIT;
use crate::format::record::{RecordHead, RecordKind};
use crate::protocol::{NodeError, SealedShard, ShardKey, UnitAddress, UnitId, bad_block, seal_seed};
use bytes::Bytes;

impl Committer {
    /// Whether a blob was deleted, by the index, a batch in flight or the one in the making.
    fn is_deleted(&self, pending: &Pending, deleted: (UnitId, u64)) -> bool {
        self.decided(pending)
            .any(|decided| decided.tombstones.contains(&deleted))
            || self.shared.index().tombstones.contains_key(&deleted)
    }

    fn decided<'a>(&'a self, pending: &'a Pending) -> impl Iterator<Item = &'a Decided> {
        self.in_flight
            .iter()
            .map(|batch| &batch.decided)
            .chain([&pending.decided])
    }

    /// Adds what a request asks for to a batch: the heads of its records.
    pub(super) fn admit(
        &mut self,
        batch: &mut Batch,
        pending: &mut Pending,
        request: &Request,
    ) -> Result<Vec<RecordHead>, NodeError> {
        let address = &request.address;
        self.shared.check_ledger(address)?;
        self.check_still(address.ledger)?;
        self.shared.check_epoch(address)?;
        let dropped = self
            .decided(pending)
            .filter_map(|decided| decided.drops.get(&address.unit));
        if let Some(&current) = dropped.max()
            && address.epoch < current
        {
            return Err(NodeError::StaleEpoch { current });
        }
        match &request.change {
            Change::Put(shard) => self
                .admit_put(batch, pending, address, shard)
                .map(|head| vec![head]),
            Change::Delete(blobs) => self.admit_delete(batch, pending, address, blobs),
            Change::Admit(..) | Change::Obey(_) | Change::Still(_) => Ok(Vec::new()), // Are no records.
            Change::DropUnit => {
                let draft = self.mark_draft(RecordKind::UnitDropped, address.unit, 0, address.epoch);
                let head = self.append(batch, SYSTEM_UNIT, draft, Purpose::Delete)?;
                pending.decided.drops.insert(address.unit, address.epoch);
                Ok(vec![head])
            }
        }
    }

    fn admit_put(
        &mut self,
        batch: &mut Batch,
        pending: &Pending,
        address: &UnitAddress,
        shard: &SealedShard,
    ) -> Result<RecordHead, NodeError> {
        self.shared
            .seen
            .take_in(address.unit, shard.key.blob, address.epoch);
        let deleted = (address.unit, shard.key.blob);
        if self.is_deleted(pending, deleted) {
            return Err(NodeError::Deleted);
        }
        check_seal(address.unit, shard)?;
        let draft = Draft {
            kind: RecordKind::Shard,
            unit: address.unit,
            key: shard.key,
            epoch: address.epoch,
            sequence: self.next_sequence(),
            block_crcs: shard.seal.block_crcs.clone(),
            digests: shard.seal.digests.clone(),
            payload: shard.payload.clone(),
        };
        self.append(batch, address.unit, draft, Purpose::Put)
    }

    fn admit_delete(
        &mut self,
        batch: &mut Batch,
        pending: &mut Pending,
        address: &UnitAddress,
        blobs: &[u64],
    ) -> Result<Vec<RecordHead>, NodeError> {
        let mut heads = Vec::new();
        for &blob in blobs {
            let deleted = (address.unit, blob);
            if self.is_deleted(pending, deleted) {
                continue;
            }
            let draft = self.mark_draft(RecordKind::Tombstone, address.unit, blob, address.epoch);
            match self.append(batch, SYSTEM_UNIT, draft, Purpose::Delete) {
                Ok(head) => heads.push(head),
                Err(error) => {
                    pending.unanswered.append(&mut heads);
                    return Err(error);
                }
            }
            pending.decided.tombstones.insert(deleted);
        }
        Ok(heads)
    }

    fn mark_draft(&mut self, kind: RecordKind, unit: UnitId, blob: u64, epoch: u32) -> Draft {
        Draft {
            kind,
            unit,
            key: ShardKey { blob, stripe: 0 },
            epoch,
            sequence: self.next_sequence(),
            block_crcs: Vec::new(),
            digests: Vec::new(),
            payload: Bytes::new(),
        }
    }

    fn next_sequence(&mut self) -> u64 {
        self.counters.sequence += 1;
        self.counters.sequence - 1
    }
}

/// Whether a shard's bytes match the seal that came with them.
fn check_seal(unit: UnitId, shard: &SealedShard) -> Result<(), NodeError> {
    let seed = seal_seed(unit, shard.key, shard.payload.len() as u32);
    match bad_block(seed, &shard.payload, &shard.seal.block_crcs) {
        None => Ok(()),
        Some(number) => Err(NodeError::SealMismatch {
            what: format!("block {number}"),
        }),
    }
}
