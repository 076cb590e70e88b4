//! A code made ready to compute: parity from data, at once, shard by shard or by what changed, and lost shards from others.

use crate::code::LinearCode;
use crate::error::{Error, Result};
use crate::gf256::{Kernel, Product};
use crate::plan::{Plans, RepairPlan};
use crate::scheme::{STRIPE_SHARDS_MAX, Scheme};
use std::sync::Arc;

/// A code that is ready to compute. Shared between threads; all it changes is which repair plans it remembers.
#[derive(Debug)]
pub struct Codec {
    code: LinearCode,
    kernel: Kernel,
    /// The parity rows of the generator; none when there is no parity.
    parity: Option<Product>,
    plans: Plans,
}

impl Codec {
    /// Prepares the code of a scheme for a kernel. Fails if this processor cannot run that.
    pub fn new(scheme: Scheme, kernel: Kernel) -> Result<Codec> {
        kernel.check_supported()?;
        let code = LinearCode::new(scheme);
        let parity = match scheme.parity_shards() {
            0 => None,
            _ => Some(Product::new(kernel, scheme.data_shards(), code.parity_rows())?),
        };
        Ok(Codec {
            code,
            kernel,
            parity,
            plans: Plans::default(),
        })
    }

    /// The code this computes.
    pub fn code(&self) -> &LinearCode {
        &self.code
    }

    /// The scheme this computes.
    pub fn scheme(&self) -> Scheme {
        self.code.scheme()
    }

    /// The kernel that computes it.
    pub fn kernel(&self) -> Kernel {
        self.kernel
    }

    /// Computes all parity shards from all data shards, each in index order and all equally long. Allocates nothing.
    pub fn encode(&self, data: &[&[u8]], parity: &mut [&mut [u8]]) -> Result<()> {
        check_count("data", self.scheme().data_shards(), data.len())?;
        check_count("parity", self.scheme().parity_shards(), parity.len())?;
        check_lengths(lengths(0, data).chain(lengths(data.len(), parity)))?;
        if let Some(product) = &self.parity {
            product.multiply(data, parity);
        }
        Ok(())
    }

    /// Begins an encode whose data shards come one by one.
    pub fn encoder<'a, 'b>(&'a self, parity: &'a mut [&'b mut [u8]]) -> Result<Encoder<'a, 'b>> {
        check_count("parity", self.scheme().parity_shards(), parity.len())?;
        check_lengths(lengths(self.scheme().data_shards(), parity))?;
        parity.iter_mut().for_each(|shard| shard.fill(0));
        Ok(Encoder {
            codec: self,
            parity,
            added: [false; STRIPE_SHARDS_MAX],
        })
    }

    /// Brings parity up to date after a range of one data shard changed: `change` is the old bytes of the range
    /// exclusive-or the new ones, and `parity` the same range of every parity shard.
    pub fn update(&self, index: usize, change: &[u8], parity: &mut [&mut [u8]]) -> Result<()> {
        let data_shards = self.scheme().data_shards();
        check_count("parity", self.scheme().parity_shards(), parity.len())?;
        if index >= data_shards {
            return Err(Error::NotADataShard { index, data_shards });
        }
        check_lengths(
            [(index, change.len())]
                .into_iter()
                .chain(lengths(data_shards, parity)),
        )?;
        if let Some(product) = &self.parity {
            product.add_column(index, change, parity);
        }
        Ok(())
    }

    /// What to read, and how to compute the `wanted` shards, data or parity. `sources` are shards that can be read, each with
    /// what that costs, in any order and unit. For one lost shard no other choice of sources costs less, except with
    /// locally repairable codes that are not maximally recoverable (`lrc.rs`); there, and for several at once, it is the cheaper
    /// of two good ones. Plans are remembered.
    pub fn plan(
        &self,
        wanted: &[usize],
        sources: impl IntoIterator<Item = (usize, u32)>,
    ) -> Result<Arc<RepairPlan>> {
        self.plans
            .get(&self.code, self.kernel, wanted, sources.into_iter())
    }

    /// Computes the `wanted` shards, data or parity, into `out` from those that are `available`, given with their
    /// indices in any order. The slices may be any range of the shards, if it is the same one for all.
    pub fn reconstruct(
        &self,
        available: &[(usize, &[u8])],
        wanted: &[usize],
        out: &mut [&mut [u8]],
    ) -> Result<()> {
        let plan = self.plan(wanted, available.iter().map(|&(index, _)| (index, 1)))?;
        check_count("output", wanted.len(), out.len())?;
        let given = available.iter().map(|(index, shard)| (*index, shard.len()));
        let asked = wanted
            .iter()
            .zip(out.iter())
            .map(|(&index, shard)| (index, shard.len()));
        check_lengths(given.chain(asked))?;
        let mut places: [Option<&[u8]>; STRIPE_SHARDS_MAX] = [None; STRIPE_SHARDS_MAX];
        available
            .iter()
            .for_each(|&(index, shard)| places[index] = Some(shard));
        let sources: Vec<&[u8]> = plan.sources().iter().filter_map(|&index| places[index]).collect();
        plan.compute(&sources, out)
    }
}

/// An encode in progress: data shards are added as they arrive, in any order.
#[derive(Debug)]
pub struct Encoder<'a, 'b> {
    codec: &'a Codec,
    parity: &'a mut [&'b mut [u8]],
    added: [bool; STRIPE_SHARDS_MAX],
}

impl Encoder<'_, '_> {
    /// Adds a whole data shard to the parity.
    pub fn add(&mut self, index: usize, shard: &[u8]) -> Result<()> {
        if self.added[..self.codec.scheme().data_shards()].get(index) == Some(&true) {
            return Err(Error::DuplicateShard { index });
        }
        self.codec.update(index, shard, self.parity)?;
        self.added[index] = true;
        Ok(())
    }

    /// Ends the encode: parity is right now. Errors if a data shard was not added.
    pub fn finish(self) -> Result<()> {
        let expected = self.codec.scheme().data_shards();
        let got = self.added.iter().filter(|added| **added).count();
        check_count("data", expected, got)
    }
}

fn lengths<'a, S: AsRef<[u8]>>(
    first: usize,
    shards: &'a [S],
) -> impl Iterator<Item = (usize, usize)> + use<'a, S> {
    shards
        .iter()
        .enumerate()
        .map(move |(i, shard)| (first + i, shard.as_ref().len()))
}

/// Errors unless there are as many slices as there should be.
pub(crate) fn check_count(what: &'static str, expected: usize, got: usize) -> Result<()> {
    if got == expected {
        Ok(())
    } else {
        Err(Error::WrongShardCount { what, expected, got })
    }
}

/// Errors unless all slices, given as shard and length, are equally long.
pub(crate) fn check_lengths(mut shards: impl Iterator<Item = (usize, usize)>) -> Result<()> {
    let Some((_, expected)) = shards.next() else {
        return Ok(());
    };
    match shards.find(|&(_, got)| got != expected) {
        None => Ok(()),
        Some((index, got)) => Err(Error::WrongShardLength { index, expected, got }),
    }
}

#[cfg(test)]
mod tests;
