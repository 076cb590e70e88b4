//! Repair plans: which shards to read for those that are lost, and how to compute them; kept for the next time.

use crate::code::LinearCode;
use crate::codec::{check_count, check_lengths};
use crate::error::Result;
use crate::gf256::{Kernel, Product};
use std::collections::HashMap;
use std::sync::{Arc, RwLock};

/// Bytes of plans that are kept for one code. A plan of rs(12,4) for one shard takes about 800.
const KEPT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// How to compute some shards of a stripe from others.
#[derive(Clone, Debug)]
pub struct RepairPlan {
    wanted: Vec<usize>,
    sources: Vec<usize>,
    cost: u64,
    product: Option<Product>,
}

impl RepairPlan {
    /// Made from scratch. A cost is of reading one shard, in any unit.
    pub(crate) fn new(
        code: &LinearCode,
        kernel: Kernel,
        wanted: &[usize],
        sources: &[(usize, u32)],
    ) -> Result<RepairPlan> {
        let recipe = code.recipe(wanted, sources)?;
        let product = match recipe.sources.len() {
            0 => None, // Nothing is wanted.
            columns => Some(Product::new(kernel, columns, &recipe.coefficients)?),
        };
        Ok(RepairPlan {
            wanted: wanted.to_vec(),
            sources: recipe.sources,
            cost: recipe.cost,
            product,
        })
    }

    /// The shards it computes, in the order asked for.
    pub fn wanted(&self) -> &[usize] {
        &self.wanted
    }

    /// The shards to read, ascending: none that the computation does not use.
    pub fn sources(&self) -> &[usize] {
        &self.sources
    }

    /// The sum of their costs.
    pub fn cost(&self) -> u64 {
        self.cost
    }

    /// Computes the wanted shards into `out`, both in the order of [`RepairPlan::wanted`], from those of
    /// [`RepairPlan::sources`] in that order. The slices may be any range of the shards, if it is the same one for all.
    pub fn compute(&self, sources: &[&[u8]], out: &mut [&mut [u8]]) -> Result<()> {
        check_count("source", self.sources.len(), sources.len())?;
        check_count("output", self.wanted.len(), out.len())?;
        let given = self
            .sources
            .iter()
            .zip(sources)
            .map(|(&index, shard)| (index, shard.len()));
        let asked = self
            .wanted
            .iter()
            .zip(out.iter())
            .map(|(&index, shard)| (index, shard.len()));
        check_lengths(given.chain(asked))?;
        if let Some(product) = &self.product {
            product.multiply(sources, out);
        }
        Ok(())
    }

    /// About how much memory it takes.
    fn bytes(&self) -> usize {
        // A coefficient, and 32 bytes of tables for it at most.
        256 + self.wanted.len() * self.sources.len() * 33
    }
}

/// The plans of one code that were made so far, by what was lost and what was there at which cost. Bounded: when they are
/// too many they are all dropped, and those in use come back.
#[derive(Debug, Default)]
pub(crate) struct Plans {
    kept: RwLock<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    plans: HashMap<Pattern, Arc<RepairPlan>>,
    bytes: usize,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Pattern {
    wanted: Vec<usize>,
    /// Ascending.
    sources: Vec<(usize, u32)>,
}

impl Plans {
    /// The plan of a pattern, which is made if it is not there.
    pub(crate) fn get(
        &self,
        code: &LinearCode,
        kernel: Kernel,
        wanted: &[usize],
        sources: impl Iterator<Item = (usize, u32)>,
    ) -> Result<Arc<RepairPlan>> {
        let mut sources: Vec<(usize, u32)> = sources.collect();
        sources.sort_unstable();
        let pattern = Pattern {
            wanted: wanted.to_vec(),
            sources,
        };
        if let Some(plan) = self
            .kept
            .read()
            .unwrap_or_else(|e| e.into_inner())
            .plans
            .get(&pattern)
        {
            return Ok(plan.clone());
        }
        let plan = Arc::new(RepairPlan::new(code, kernel, wanted, &pattern.sources)?);
        let bytes = plan.bytes() + pattern.sources.len() * size_of::<(usize, u32)>();
        let mut kept = self.kept.write().unwrap_or_else(|e| e.into_inner());
        if kept.bytes + bytes > KEPT_BYTES_MAX {
            *kept = Kept::default();
        }
        if bytes <= KEPT_BYTES_MAX && kept.plans.insert(pattern, plan.clone()).is_none() {
            kept.bytes += bytes;
        }
        Ok(plan)
    }

    /// Bytes of the plans that are kept.
    #[cfg(test)]
    pub(crate) fn kept_bytes(&self) -> usize {
        self.kept.read().unwrap().bytes
    }
}
