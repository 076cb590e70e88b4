//! Computes a shard from others of its stripe, and believes none of them without proof.
//!
//! What is read is the code's repair plan: k shards of a Reed-Solomon stripe, the rest of the group of a locally repairable one.
//! Sources are verified before use, and the result is checked against the BLAKE3 digests that every record of the stripe
//! carries. Where that fails, because a record lies, all shards are read, and what counts is the digests that most of those
//! agree on whose own bytes, and what they make up, have them.

use crate::cluster::conduct::{Kind, Outcome, Wrong};
use crate::error::{Error, Result};
use crate::object::deadline::{Deadline, PIECE_TIME};
use crate::object::shard_reader::StripeSource;
use crate::object::{Objects, off_reactor, sources};
use bytes::Bytes;
use ec_core::{Codec, RepairPlan, seal};
use std::collections::BTreeMap;
use std::sync::Arc;
use storage_node::protocol::{BlockRange, NodeError, Seal, SealedShard, seal_seed};

/// The digests of all shards of a stripe, as each record of it carries them.
type Digests = Vec<[u8; 32]>;

impl Objects {
    /// The shard computed from verified others that agree on the stripe's digests, sealed; or why that is not possible
    /// now.
    pub async fn reconstruct(
        &self,
        codec: &Arc<Codec>,
        source: &StripeSource,
        index: u8,
    ) -> Result<std::result::Result<SealedShard, String>> {
        let deadline = Deadline::after(PIECE_TIME);
        let sources = match self.read_sources(source, index, BlockRange::ALL, deadline).await {
            Ok(sources) => sources,
            Err(error @ Error::Unreadable { .. }) => return Ok(Err(error.to_string())),
            Err(error) => return Err(error),
        };
        let digests = sources
            .shards
            .first()
            .map(|shard| shard.digests.clone())
            .unwrap_or_default();
        if sources.shards.iter().all(|shard| shard.digests == digests) {
            let shards = sources.plan.sources().iter().copied().zip(sources.shards);
            let group: Vec<(usize, Bytes)> = shards.map(|(i, shard)| (i, shard.payload)).collect();
            if let Some(shard) = compute(codec, source, index, digests, group).await? {
                return Ok(Ok(shard));
            }
        }
        self.reconstruct_from_all(codec, source, index).await
    }

    /// The same when records disagree: reads all of them, and believes most of those whose digests are those of the
    /// shards that they are and make. The others lie about their stripe, and are queued for repair themselves.
    async fn reconstruct_from_all(
        &self,
        codec: &Arc<Codec>,
        source: &StripeSource,
        index: u8,
    ) -> Result<std::result::Result<SealedShard, String>> {
        let mut readable = Vec::new();
        let mut groups: BTreeMap<Digests, Vec<(usize, Bytes)>> = BTreeMap::new();
        for other in (0..codec.scheme().total_shards() as u8).filter(|i| *i != index) {
            let Ok(shard) = self.read_shard(source, other, BlockRange::ALL).await else {
                continue;
            };
            readable.push(other);
            let payload = shard.payload.clone();
            let digest = off_reactor(move || seal::digest(&payload)).await?;
            if shard.digests.get(usize::from(other)) == Some(&digest) {
                let group = groups.entry(shard.digests).or_default();
                group.push((other.into(), shard.payload));
            }
        }
        let mut groups: Vec<(Digests, Vec<(usize, Bytes)>)> = groups.into_iter().collect();
        groups.sort_by_key(|(_, group)| std::cmp::Reverse(group.len()));
        let agree = groups.first().map_or(0, |(_, group)| group.len());
        for (digests, group) in groups {
            let honest: Vec<usize> = group.iter().map(|(i, _)| *i).collect();
            let Some(shard) = compute(codec, source, index, digests, group).await? else {
                continue;
            };
            for &liar in readable.iter().filter(|&&i| !honest.contains(&i.into())) {
                let what = "its digests are not those of its stripe".to_string();
                if let Some(disk) = self.disks.get(source.volume.disks[usize::from(liar)]) {
                    let outcome = Outcome::Wrong(Wrong::Digests, what.clone());
                    disk.conduct.take_in(Kind::Read, outcome);
                }
                self.suspect(source, liar, &NodeError::Corrupt { what }).await;
            }
            return Ok(Ok(shard));
        }
        Ok(Err(format!(
            "{} other shards are readable, {agree} agree on the stripe's digests, too few for {}",
            readable.len(),
            codec.scheme()
        )))
    }
}

/// Computes and seals a shard from verified sources. None if they do not make it up, or if the digests, which they agree
/// on, are not those of the shards that they are or make.
async fn compute(
    codec: &Arc<Codec>,
    source: &StripeSource,
    index: u8,
    digests: Digests,
    sources: Vec<(usize, Bytes)>,
) -> Result<Option<SealedShard>> {
    let (codec, source) = (codec.clone(), source.clone());
    off_reactor(move || made_of(&codec, &source, index, digests, sources)).await?
}

/// As [`compute`], here and now: for whoever is off the reactor already.
pub fn made_of(
    codec: &Codec,
    source: &StripeSource,
    index: u8,
    digests: Digests,
    sources: Vec<(usize, Bytes)>,
) -> Result<Option<SealedShard>> {
    let there = || sources.iter().map(|(i, _)| (*i, 1));
    if digests.len() != codec.scheme().total_shards() || codec.plan(&[index.into()], there()).is_err() {
        return Ok(None);
    }
    let mut rebuilt = None;
    for (other, digest) in digests.iter().enumerate() {
        let shard = match sources.iter().find(|(i, _)| *i == other) {
            Some((_, shard)) => shard.clone(),
            None => match codec.plan(&[other], there()) {
                Ok(plan) => computed(&plan, &sources)?,
                Err(_) => continue, // Not theirs to say.
            },
        };
        if seal::digest(&shard) != *digest {
            return Ok(None);
        }
        if other == index as usize {
            rebuilt = Some(shard);
        }
    }
    let Some(payload) = rebuilt else { return Ok(None) };
    let seed = seal_seed(source.volume.unit(index), source.key, payload.len() as u32);
    let block_crcs = seal::block_crcs(seed, &payload);
    Ok(Some(SealedShard {
        key: source.key,
        seal: Seal { block_crcs, digests },
        payload,
    }))
}

/// What a plan makes of the shards among these that it uses.
fn computed(plan: &RepairPlan, shards: &[(usize, Bytes)]) -> Result<Bytes> {
    let payload = |index: &usize| {
        shards
            .iter()
            .find(|(i, _)| i == index)
            .map(|(_, shard)| shard.as_ref())
    };
    let payloads: Vec<&[u8]> = plan.sources().iter().filter_map(payload).collect();
    sources::compute(plan, &payloads)
}
