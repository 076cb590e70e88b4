//! Rewrites shards that a read found missing or wrong.
//!
//! What is read is the code's repair plan: k shards of a Reed-Solomon stripe, the rest of the group of a locally repairable one.
//! Sources are verified before use, and the result is checked against the BLAKE3 digests that every record of the stripe
//! carries. Where that fails, because a record lies, all shards are read, and what counts is the digests that most of those
//! agree on whose own bytes, and what they make up, have them. The shard counts as repaired only after it was read back from its disk
//! and verified. A shard on a disk that is down waits: what a lost disk held is rebuilt elsewhere, not repaired in place.

use super::worker::{Step, Worker};
use crate::cluster::disks::Health;
use crate::error::{Error, Result};
use crate::ledger::model::{BlobRef, BlobRow, SuspectRow};
use crate::ledger::{CommitBuilder, Typed, key};
use crate::object::Objects;
use crate::object::shard_reader::StripeSource;
use crate::object::{encode, off_reactor, sources};
use bytes::Bytes;
use ec_core::{Codec, RepairPlan, seal};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use storage_node::protocol::{BlockRange, NodeError, Seal, SealedShard, seal_seed};

const BATCH: usize = 64;
const WRITE_DEADLINE: Duration = Duration::from_secs(10);

/// See the module.
pub struct Repair {
    objects: Arc<Objects>,
    cursor: Mutex<Option<Bytes>>,
}

/// The digests of all shards of a stripe, as each record of it carries them.
type Digests = Vec<[u8; 32]>;

/// How a repair ended.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// The shard is right again, or was all along.
    Repaired,
    /// Nothing needs it any more.
    Gone,
    /// Not now: its disk is down, or too few sources can be read.
    Later(String),
}

impl Repair {
    /// For one gateway.
    pub fn new(objects: Arc<Objects>) -> Repair {
        Repair {
            objects,
            cursor: Mutex::new(None),
        }
    }

    async fn repair(&self, volume: u64, blob: u64, stripe: u32, index: u8) -> Result<Outcome> {
        let entering = self.objects.readers.enter();
        let Some(row) = self
            .objects
            .ledger
            .get::<BlobRow>(key::blob(volume, blob))
            .await?
        else {
            return Ok(Outcome::Gone);
        };
        // Pinned, so that the shard is not written again after its blob was collected.
        let _pins = entering.pin(vec![(volume, blob)]);
        let volume = self.objects.volumes.get(volume).await?;
        let codec = self.objects.codecs.get(volume.scheme)?;
        let blob = BlobRef {
            volume: volume.id,
            blob,
            length: row.row.length,
        };
        if stripe >= encode::geometry(&codec, blob.length)?.stripes() || index as usize >= volume.disks.len()
        {
            return Ok(Outcome::Gone);
        }
        let disk = self.objects.disks.get(volume.disks[index as usize]);
        let Some(disk) = disk.filter(|d| d.health == Health::Online) else {
            return Ok(Outcome::Later("its disk is not online".into()));
        };
        let source = StripeSource::new(&codec, volume.clone(), &blob, stripe)?;
        let bytes = source.shard_len as u64 * (volume.scheme.total_shards() as u64 + 1);
        let _reserved = self.objects.budget.decode.reserve_patiently(bytes).await?;
        let shard = match self.rebuild(&codec, &source, index).await? {
            Ok(shard) => shard,
            Err(why) => return Ok(Outcome::Later(why)),
        };
        let Some(client) = disk.client.clone() else {
            return Ok(Outcome::Later("no node has its disk".into()));
        };
        if let Err(error) = client
            .put(&volume.address(index, &disk), shard, WRITE_DEADLINE)
            .await
        {
            self.objects.disks.report(disk.id, &error);
            return Ok(Outcome::Later(format!("not written: {error}")));
        }
        match self.objects.read_shard(&source, index, BlockRange::ALL).await {
            Ok(_) => Ok(Outcome::Repaired),
            Err(error) => Ok(Outcome::Later(format!(
                "written, but not read back right: {error}"
            ))),
        }
    }

    /// The shard computed from verified others that agree on the stripe's digests, sealed; or why that is not possible
    /// now.
    async fn rebuild(
        &self,
        codec: &Arc<Codec>,
        source: &StripeSource,
        index: u8,
    ) -> Result<std::result::Result<SealedShard, String>> {
        let sources = match self.objects.read_sources(source, index, BlockRange::ALL).await {
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
        self.rebuild_from_all(codec, source, index).await
    }

    /// The same when records disagree: reads all of them, and believes most of those whose digests are those of the
    /// shards that they are and make. The others lie about their stripe, and are queued for repair themselves.
    async fn rebuild_from_all(
        &self,
        codec: &Arc<Codec>,
        source: &StripeSource,
        index: u8,
    ) -> Result<std::result::Result<SealedShard, String>> {
        let mut readable = Vec::new();
        let mut groups: BTreeMap<Digests, Vec<(usize, Bytes)>> = BTreeMap::new();
        for other in (0..codec.scheme().total_shards() as u8).filter(|i| *i != index) {
            let Ok(shard) = self.objects.read_shard(source, other, BlockRange::ALL).await else {
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
                let what = "its digests are not those of its stripe".into();
                self.objects
                    .suspect(source, liar, &NodeError::Corrupt { what })
                    .await;
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
    off_reactor(move || {
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
    })
    .await?
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

#[async_trait::async_trait]
impl Worker for Repair {
    fn name(&self) -> &'static str {
        "repair"
    }

    fn rest(&self) -> Duration {
        Duration::from_millis(500)
    }

    async fn step(&self) -> Result<Step> {
        let mut range = key::table(b's');
        if let Some(cursor) = self.cursor.lock().unwrap_or_else(|e| e.into_inner()).take() {
            range.start = cursor;
        }
        let rows: Vec<(Bytes, Typed<SuspectRow>)> = self.objects.ledger.scan(range, BATCH).await?;
        let more = rows.len() == BATCH;
        if more {
            let next = rows.last().map(|(row_key, _)| key::after(row_key));
            *self.cursor.lock().unwrap_or_else(|e| e.into_inner()) = next;
        }
        let mut repaired = 0;
        for (row_key, row) in rows {
            let Some((volume, blob, stripe, index)) = key::suspect_parts(&row_key) else {
                continue;
            };
            let outcome = match self.repair(volume, blob, stripe, index).await {
                Err(error @ Error::Ledger(_)) => return Err(error),
                Err(error) => Outcome::Later(error.to_string()), // One bad row does not hold up the others.
                Ok(outcome) => outcome,
            };
            match outcome {
                Outcome::Later(why) => {
                    tracing::debug!(volume, blob, stripe, index, why, "repair put off");
                    self.objects.metrics.failed_repairs.inc();
                    continue;
                }
                Outcome::Repaired => {
                    tracing::info!(
                        volume,
                        blob,
                        stripe,
                        index,
                        reason = row.row.reason,
                        "shard repaired"
                    );
                    self.objects.metrics.repaired_shards.inc();
                    repaired += 1;
                }
                Outcome::Gone => {}
            }
            self.objects.suspects.forget(&row_key);
            let commit = CommitBuilder::new()
                .expect(&row_key, Some(row.version))
                .delete(row_key);
            match self
                .objects
                .ledger
                .commit(self.objects.lease.fence(commit).build())
                .await
                .map_err(Error::from)
            {
                Ok(_) | Err(Error::Conflict) => {} // Found wrong again meanwhile: the row stays.
                Err(error) => return Err(error),
            }
        }
        Ok(match more {
            _ if repaired > 0 => Step::Worked,
            true => Step::Skipped,
            false => Step::Idle,
        })
    }
}
