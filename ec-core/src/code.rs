//! A code as what it is: a generator matrix. Which losses it survives, and what a repair has to read, follow from the matrix.
//!
//! Shard i of a stripe is row i of the generator times the data shards, byte by byte. A lost shard can be computed exactly
//! if its row is a combination of the rows of shards that are there; the combination's coefficients are the repair. That has
//! two consequences callers may rely on: shards of one stripe are all equally long, and a range of bytes of a lost shard needs
//! the same range of its sources only.

use crate::error::{Error, Result};
use crate::matrix::{Basis, Matrix};
use crate::scheme::{STRIPE_SHARDS_MAX, Scheme};
use crate::{lrc, reed_solomon};
use std::collections::BTreeSet;

/// A linear code: replication, Reed-Solomon or a locally repairable one. Its mathematics are in `reed_solomon.rs` and `lrc.rs`.
#[derive(Clone, Debug)]
pub struct LinearCode {
    scheme: Scheme,
    generator: Matrix,
    /// Sets of shards of which each is the sum of the others.
    groups: Vec<BTreeSet<usize>>,
}

/// What to read for a repair, and the coefficients: one row for each wanted shard, one column for each source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Recipe {
    /// Ascending.
    pub(crate) sources: Vec<usize>,
    /// Row by row.
    pub(crate) coefficients: Vec<u8>,
    /// The sum of the sources' costs.
    pub(crate) cost: u64,
}

impl LinearCode {
    /// The code of a scheme.
    pub fn new(scheme: Scheme) -> LinearCode {
        let (data, total) = (scheme.data_shards(), scheme.total_shards());
        match scheme.local_groups() {
            0 => LinearCode {
                scheme,
                generator: reed_solomon::generator(data, total),
                groups: Vec::new(),
            },
            groups => LinearCode {
                scheme,
                generator: lrc::generator(data, groups, scheme.parity_shards() - groups),
                groups: (0..groups)
                    .map(|group| {
                        let len = data / groups;
                        (group * len..(group + 1) * len).chain([data + group]).collect()
                    })
                    .collect(),
            },
        }
    }

    /// The scheme this is the code of.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// How much of each data shard a shard is made of.
    pub fn row(&self, shard: usize) -> Result<&[u8]> {
        self.check_shards([shard])?;
        Ok(self.generator.row(shard))
    }

    /// Whether every shard of a stripe can be computed from these.
    pub fn is_decodable(&self, available: impl IntoIterator<Item = usize>) -> Result<bool> {
        let available: Vec<usize> = available.into_iter().collect();
        self.check_shards(available.iter().copied())?;
        if available.len() < self.scheme.data_shards() || self.groups.is_empty() {
            // Of a Reed-Solomon code any k are enough.
            return Ok(available.len() >= self.scheme.data_shards());
        }
        let mut basis = Basis::new(self.scheme.data_shards());
        available.iter().for_each(|&shard| {
            basis.add(self.generator.row(shard));
        });
        Ok(basis.is_full())
    }

    /// The rows of the parity shards, one after the other.
    pub(crate) fn parity_rows(&self) -> &[u8] {
        self.generator.rows_from(self.scheme.data_shards())
    }

    /// A cheap way to the wanted shards from sources with their costs. Two ways are compared: by the group of each wanted
    /// shard, if that is whole but for it, and by the cheapest shards that make up everything. Of equal costs the lower
    /// index is taken: data shards make cheaper arithmetic.
    ///
    /// The second is the least weight of a basis, which taking the cheapest first finds (the greedy algorithm of matroids). For
    /// one lost shard of a Reed-Solomon code every way is a basis, and of a maximally recoverable LRC every way is one of the
    /// two, so it gets the cheapest there is; other LRCs have a few equations besides, which are not looked for.
    pub(crate) fn recipe(&self, wanted: &[usize], sources: &[(usize, u32)]) -> Result<Recipe> {
        self.check_shards(wanted.iter().copied())?;
        self.check_shards(sources.iter().map(|&(shard, _)| shard))?;
        let mut ranked = sources.to_vec();
        ranked.sort_unstable_by_key(|&(shard, cost)| (cost, shard));
        let by_groups = self.group_sources(wanted, &ranked);
        let everything = ranked.iter().map(|&(shard, _)| shard);
        let ways = [
            by_groups.and_then(|group| self.solve(wanted, group, sources)),
            self.solve(wanted, everything, sources),
        ];
        let cheapest = ways.into_iter().flatten().min_by_key(|recipe| recipe.cost);
        cheapest.ok_or_else(|| Error::Undecodable {
            scheme: self.scheme,
            wanted: wanted.to_vec(),
            available: ranked
                .iter()
                .map(|&(shard, _)| shard)
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect(),
        })
    }

    /// For each wanted shard itself, if it is there, or else the others of its group; `None` unless all of those are.
    fn group_sources(&self, wanted: &[usize], ranked: &[(usize, u32)]) -> Option<BTreeSet<usize>> {
        let there: BTreeSet<usize> = ranked.iter().map(|&(shard, _)| shard).collect();
        let mut sources = BTreeSet::new();
        for wanted in wanted {
            if there.contains(wanted) {
                sources.insert(*wanted);
                continue;
            }
            let others = |group: &BTreeSet<usize>| -> Option<BTreeSet<usize>> {
                let others: BTreeSet<usize> = group.iter().copied().filter(|shard| shard != wanted).collect();
                (others.len() < group.len() && others.is_subset(&there)).then_some(others)
            };
            sources.extend(self.groups.iter().find_map(others)?);
        }
        Some(sources)
    }

    /// The wanted shards as combinations of shards that are added in this order until they suffice. Those that the
    /// combinations do not use are left out.
    fn solve(
        &self,
        wanted: &[usize],
        order: impl IntoIterator<Item = usize>,
        costs: &[(usize, u32)],
    ) -> Option<Recipe> {
        let mut basis = Basis::new(self.generator.columns());
        let mut members = Vec::new();
        for shard in order {
            if basis.is_full() {
                break;
            }
            if basis.add(self.generator.row(shard)) {
                members.push(shard);
            }
        }
        let rows: Option<Vec<Vec<u8>>> = wanted
            .iter()
            .map(|&shard| basis.express(self.generator.row(shard)))
            .collect();
        let rows = rows?;
        let mut used: Vec<(usize, usize)> = members
            .iter()
            .enumerate()
            .filter(|&(i, _)| rows.iter().any(|row| row[i] != 0))
            .map(|(i, &shard)| (shard, i))
            .collect();
        used.sort_unstable();
        let cost_of = |shard| {
            costs
                .iter()
                .find(|(s, _)| *s == shard)
                .map_or(0, |&(_, cost)| u64::from(cost))
        };
        Some(Recipe {
            sources: used.iter().map(|&(shard, _)| shard).collect(),
            coefficients: rows
                .iter()
                .flat_map(|row| used.iter().map(|&(_, i)| row[i]))
                .collect(),
            cost: used.iter().map(|&(shard, _)| cost_of(shard)).sum(),
        })
    }

    /// Errors unless each is a shard of the code, named once.
    pub(crate) fn check_shards(&self, shards: impl IntoIterator<Item = usize>) -> Result<()> {
        let total = self.scheme.total_shards();
        let mut seen = [false; STRIPE_SHARDS_MAX];
        for index in shards {
            if index >= total {
                return Err(Error::NoSuchShard { index, total });
            }
            if std::mem::replace(&mut seen[index], true) {
                return Err(Error::DuplicateShard { index });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
