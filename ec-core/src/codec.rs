//! Computes parity from data, and any shard from any k others.
//!
//! A code is its generator matrix (see `matrix`): shard i of a stripe is row i of the generator times the data shards,
//! byte by byte. That has two consequences callers may rely on: shards of one stripe are all equally long, and a range of
//! bytes of a lost shard needs the same range of its sources only.
//!
//! The multiplication of a slice by a constant comes from the crate reed-solomon-erasure.

use crate::error::{Error, Result};
use crate::matrix::Matrix;
use crate::scheme::{STRIPE_SHARDS_MAX, Scheme};
use reed_solomon_erasure::galois_8;

/// How many bytes of each shard are coded before going on to the next bytes: one input and a few outputs fit in a 32 KiB
/// first-level cache, so outputs are not read from memory again for each input.
const CHUNK_BYTES: usize = 8 * 1024;

/// A code that is ready to compute. Shared freely between threads: it has no state that changes.
#[derive(Clone, Debug)]
pub struct Codec {
    scheme: Scheme,
    generator: Matrix,
}

impl Codec {
    /// Prepares the code of a scheme.
    pub fn new(scheme: Scheme) -> Result<Codec> {
        Ok(Codec {
            scheme,
            generator: Matrix::generator(scheme.data_shards(), scheme.total_shards()),
        })
    }

    /// The scheme this computes.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Computes all parity shards from all data shards, each in index order and all equally long.
    pub fn encode(&self, data: &[&[u8]], parity: &mut [&mut [u8]]) -> Result<()> {
        let k = self.scheme.data_shards();
        check_count("data", k, data.len())?;
        check_count("parity", self.scheme.parity_shards(), parity.len())?;
        let lengths = data
            .iter()
            .map(|shard| shard.len())
            .chain(parity.iter().map(|shard| shard.len()));
        check_lengths(lengths.enumerate())?;
        multiply(self.generator.rows_from(k), data, parity);
        Ok(())
    }

    /// Computes the `wanted` shards, data or parity, into `out` from those that are `available`, given with their
    /// indices in any order. At least k must be; of more, those with the lowest indices are used. The slices may
    /// be any range of the shards, if it is the same one for all.
    pub fn reconstruct(
        &self,
        available: &[(usize, &[u8])],
        wanted: &[usize],
        out: &mut [&mut [u8]],
    ) -> Result<()> {
        let k = self.scheme.data_shards();
        self.check_indices(available.iter().map(|&(index, _)| index))?;
        self.check_indices(wanted.iter().copied())?;
        check_count("output", wanted.len(), out.len())?;
        let given = available.iter().map(|(index, shard)| (*index, shard.len()));
        check_lengths(
            given.chain(
                wanted
                    .iter()
                    .zip(out.iter())
                    .map(|(&index, shard)| (index, shard.len())),
            ),
        )?;
        if available.len() < k {
            return Err(Error::TooFewShards {
                needed: k,
                available: available.len(),
            });
        }

        // Lowest indices first: data shards are rows of the identity, which make the inverse and the product cheap.
        let mut sources = available.to_vec();
        sources.sort_unstable_by_key(|&(index, _)| index);
        sources.truncate(k);
        let (rows, inputs): (Vec<usize>, Vec<&[u8]>) = sources.into_iter().unzip();
        let Some(data_from_sources) = self.generator.pick(&rows).inverse() else {
            unreachable!("any k rows of the generator invert");
        };
        let coefficients = self.generator.pick(wanted).times(&data_from_sources);
        multiply(coefficients.rows_from(0), &inputs, out);
        Ok(())
    }

    fn check_indices(&self, indices: impl Iterator<Item = usize>) -> Result<()> {
        let total = self.scheme.total_shards();
        let mut seen = [false; STRIPE_SHARDS_MAX];
        for index in indices {
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

fn check_count(what: &'static str, expected: usize, got: usize) -> Result<()> {
    if got == expected {
        Ok(())
    } else {
        Err(Error::WrongShardCount { what, expected, got })
    }
}

fn check_lengths(mut shards: impl Iterator<Item = (usize, usize)>) -> Result<()> {
    let Some((_, expected)) = shards.next() else {
        return Ok(());
    };
    match shards.find(|&(_, got)| got != expected) {
        None => Ok(()),
        Some((index, got)) => Err(Error::WrongShardLength { index, expected, got }),
    }
}

/// outputs = coefficients · inputs. One row of coefficients per output, one column per input; slices equally long.
fn multiply(coefficients: &[u8], inputs: &[&[u8]], outputs: &mut [&mut [u8]]) {
    let len = inputs.first().map_or(0, |input| input.len());
    for start in (0..len).step_by(CHUNK_BYTES) {
        let chunk = start..len.min(start + CHUNK_BYTES);
        for (column, input) in inputs.iter().enumerate() {
            let input = &input[chunk.clone()];
            for (row, output) in coefficients.chunks_exact(inputs.len()).zip(outputs.iter_mut()) {
                let output = &mut output[chunk.clone()];
                match (row[column], column) {
                    (0, 0) => output.fill(0),
                    (0, _) => {}
                    (1, 0) => output.copy_from_slice(input),
                    (factor, 0) => galois_8::mul_slice(factor, input, output),
                    (factor, _) => galois_8::mul_slice_xor(factor, input, output),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
