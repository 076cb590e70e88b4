//! Which shards a decode reads, and when it turns to others.
//!
//! It reads what the code's repair plan asks for: the cheapest shards that make up the wanted one. A shard that fails is left
//! out, one that is late becomes dear, and the plan is made again; what was read costs nothing more. So a local repair
//! stays local while it can, and a slow disk is waited for only where there is no way around it.
//!
//! When a read is late depends on its disk: see `Conduct::late_after`.
//!
//! Invariant: pure. It is told what was read and what time it is, and says what to read; nothing is asked for twice.

use crate::error::{Error, Result};
use bytes::{Bytes, BytesMut};
use ec_core::{Codec, RepairPlan};
use std::sync::Arc;
use std::time::Duration;
use storage_node::protocol::ShardBlocks;
use tokio::time::Instant;

// What a shard costs, next to others.
const COST_READ: u32 = 0;
const COST_RUNNING: u32 = COST_PROMPT - 1;
const COST_PROMPT: u32 = 10;
/// Late, or on a disk that is slow or down: going around it is cheaper, however many others that takes.
const COST_LATE: u32 = 256 * COST_PROMPT;

/// How far the reads for one decode have come.
pub struct Gathering {
    codec: Arc<Codec>,
    wanted: usize,
    shards: Vec<Shard>,
    /// Followed until it cannot be, or something better may have come up.
    plan: Option<Arc<RepairPlan>>,
}

enum Shard {
    NotAsked {
        late_after: Option<Duration>,
    },
    /// Nothing: it is late.
    Asked {
        late_at: Option<Instant>,
    },
    Read(ShardBlocks),
    /// Or not to be asked at all.
    Failed,
}

impl Shard {
    fn cost(&self) -> Option<u32> {
        match self {
            Shard::NotAsked { late_after: Some(_) } => Some(COST_PROMPT),
            Shard::Asked { late_at: Some(_) } => Some(COST_RUNNING),
            Shard::NotAsked { late_after: None } | Shard::Asked { late_at: None } => Some(COST_LATE),
            Shard::Read(_) => Some(COST_READ),
            Shard::Failed => None,
        }
    }
}

/// Verified shards, or the same blocks of them, and the plan that computes another from them.
pub struct Sources {
    /// How.
    pub plan: Arc<RepairPlan>,
    /// In the order of the plan's sources.
    pub shards: Vec<ShardBlocks>,
}

impl Gathering {
    /// For the `wanted` shard, with nothing read yet; `late_after` says how long an answer of a shard's disk may take, if that
    /// disk is likely to answer soon.
    pub fn new(codec: Arc<Codec>, wanted: u8, late_after: impl Fn(usize) -> Option<Duration>) -> Gathering {
        let wanted = usize::from(wanted);
        let shards = (0..codec.scheme().total_shards()).map(|index| match index == wanted {
            true => Shard::Failed,
            false => Shard::NotAsked {
                late_after: late_after(index),
            },
        });
        Gathering {
            shards: shards.collect(),
            codec,
            wanted,
            plan: None,
        }
    }

    /// What to begin reading now. An error when what is left cannot make up the shard: how many there are.
    pub fn begin(&mut self, now: Instant) -> std::result::Result<Vec<u8>, usize> {
        let plan = match &self.plan {
            Some(plan) => plan.clone(),
            None => {
                let costs = self.shards.iter().enumerate();
                let costs = costs.filter_map(|(index, shard)| Some((index, shard.cost()?)));
                let left = costs.clone().count();
                self.codec.plan(&[self.wanted], costs).map_err(|_| left)?
            }
        };
        let mut begun = Vec::new();
        for &index in plan.sources() {
            if let Shard::NotAsked { late_after } = self.shards[index] {
                let late_at = late_after.map(|after| now + after);
                self.shards[index] = Shard::Asked { late_at };
                begun.push(index as u8);
            }
        }
        self.plan = Some(plan);
        Ok(begun)
    }

    /// Takes the answer to one read: the blocks, verified, or nothing if it failed.
    pub fn answered(&mut self, index: u8, read: Option<ShardBlocks>) {
        let index = usize::from(index);
        let planned = |plan: &Arc<RepairPlan>| plan.sources().contains(&index);
        let as_planned = read.is_some() && self.plan.as_ref().is_some_and(planned);
        if !as_planned {
            self.plan = None;
        }
        self.shards[index] = read.map_or(Shard::Failed, Shard::Read);
    }

    /// When the next read will be late, if any can be.
    pub fn late_at(&self) -> Option<Instant> {
        let waiting = self.shards.iter().filter_map(|shard| match shard {
            Shard::Asked { late_at } => *late_at,
            _ => None,
        });
        waiting.min()
    }

    /// Takes note of the time: which reads have become late by it.
    pub fn expire(&mut self, now: Instant) {
        for shard in &mut self.shards {
            if let Shard::Asked { late_at } = shard
                && late_at.is_some_and(|at| now >= at)
            {
                *late_at = None;
                self.plan = None;
            }
        }
    }

    /// The sources, once all that the plan asks for are read. They are handed out once.
    pub fn complete(&mut self) -> Option<Sources> {
        let plan = self.plan.clone()?;
        let read = |index: &usize| matches!(self.shards[*index], Shard::Read(_));
        if !plan.sources().iter().all(read) {
            return None;
        }
        let take = |index: &usize| match std::mem::replace(&mut self.shards[*index], Shard::Failed) {
            Shard::Read(shard) => Some(shard),
            _ => None,
        };
        let shards = plan.sources().iter().filter_map(take).collect();
        Some(Sources { plan, shards })
    }
}

impl Sources {
    /// Computes the shard that the plan is for.
    pub fn compute(&self) -> Result<Bytes> {
        let payloads: Vec<&[u8]> = self.shards.iter().map(|shard| shard.payload.as_ref()).collect();
        compute(&self.plan, &payloads)
    }
}

/// The one shard that a plan is for.
pub fn compute(plan: &RepairPlan, sources: &[&[u8]]) -> Result<Bytes> {
    let mut out = BytesMut::zeroed(sources.first().map_or(0, |shard| shard.len()));
    plan.compute(sources, &mut [&mut out[..]])
        .map_err(|e| Error::Internal(format!("decode: {e}")))?;
    Ok(out.freeze())
}

#[cfg(test)]
mod tests;
