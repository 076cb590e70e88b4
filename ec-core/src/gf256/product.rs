//! A matrix times data, cut so that inputs are read from memory once and sums stay in registers.
//!
//! ```text
//!            columns: one per input
//!          ┌─────────────┬─────────────┐   A pass: up to 4 rows by a run of columns, none of its coefficients
//!   rows:  │  a a a a a a│             │   needlessly 0. A dense matrix of 4 rows is one pass. One with zeros, such as an
//!   one    │             │  b b b b b b│   LRC's parity, is cut into runs of columns that have zeros in the same
//!   per    │  a a a a a a│  b b b b b b│   rows, where that saves work. With more than 4 rows there are groups of rows.
//!   output │  a a a a a a│  b b b b b b│
//!          └─────────────┴─────────────┘
//! ```
//!
//! A single pass streams over the whole length. Several passes take turns on one block of bytes after the other, so that
//! what one pass read or wrote is still in a near cache for the next.
//!
//! Invariant: [`Prepared::new`] makes nothing for a kernel that cannot run here; what calls the kernels relies on that.
#![allow(unsafe_code)]

use super::kernel::Kernel;
#[cfg(target_arch = "aarch64")]
use super::neon;
use super::scalar;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use super::tables;
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512, gfni};
use crate::error::Result;
use std::ops::Range;

/// The most outputs of one pass: their sums in two to four registers each, and a tile of inputs, fit 16 registers.
const PASS_ROWS_MAX: usize = 4;

/// Bytes of each shard that several passes work on before they go on to the next bytes.
pub(crate) const BLOCK_BYTES: usize = 4 * 1024;

/// How much work, in coefficients applied, one more run of columns costs an output: its sum is stored and loaded again.
const RUN_COST: usize = 1;

/// A matrix, ready for one kernel. Shared freely: nothing in it changes.
#[derive(Clone, Debug)]
pub(crate) struct Product {
    rows: usize,
    columns: usize,
    passes: Box<[Pass]>,
    /// Rows of zeros, which no pass touches.
    empty: Box<[usize]>,
}

/// Some rows by a run of columns.
#[derive(Clone, Debug)]
struct Pass {
    /// Ascending, 1 to [`PASS_ROWS_MAX`].
    rows: Box<[usize]>,
    columns: Range<usize>,
    /// Column by column: those of `rows` for the first column, then for the next.
    coefficients: Box<[u8]>,
    prepared: Prepared,
    /// The rows that no pass before has touched.
    fresh: Box<[usize]>,
}

/// A kernel, with the coefficients as it wants them, in the same order.
#[derive(Clone, Debug)]
enum Prepared {
    /// Needs no more than the coefficients.
    Scalar,
    #[cfg(target_arch = "aarch64")]
    Neon(Box<[[u8; 32]]>),
    #[cfg(target_arch = "x86_64")]
    Avx2(Box<[[u8; 32]]>),
    #[cfg(target_arch = "x86_64")]
    Avx512(Box<[[u8; 32]]>),
    #[cfg(target_arch = "x86_64")]
    GfniAvx2(Box<[u64]>),
    #[cfg(target_arch = "x86_64")]
    GfniAvx512(Box<[u64]>),
}

impl Prepared {
    /// Fails if the kernel cannot run here: what `Pass::run_rows` relies on.
    fn new(kernel: Kernel, coefficients: &[u8]) -> Result<Prepared> {
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        let nibbles = || coefficients.iter().map(|&c| tables::nibbles(c)).collect();
        #[cfg(target_arch = "x86_64")]
        let maps = || coefficients.iter().map(|&c| tables::affine(c)).collect();
        Ok(match kernel.check_supported()? {
            #[cfg(target_arch = "aarch64")]
            Kernel::Neon => Prepared::Neon(nibbles()),
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2 => Prepared::Avx2(nibbles()),
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx512 => Prepared::Avx512(nibbles()),
            #[cfg(target_arch = "x86_64")]
            Kernel::GfniAvx2 => Prepared::GfniAvx2(maps()),
            #[cfg(target_arch = "x86_64")]
            Kernel::GfniAvx512 => Prepared::GfniAvx512(maps()),
            // The others are not supported where their instructions do not exist.
            _ => Prepared::Scalar,
        })
    }
}

impl Product {
    /// Prepares a matrix, given row by row. There is at least one column. Fails if the kernel cannot run here.
    pub(crate) fn new(kernel: Kernel, columns: usize, cells: &[u8]) -> Result<Product> {
        kernel.check_supported()?;
        let matrix: Vec<&[u8]> = cells.chunks_exact(columns).collect();
        let mut passes = Vec::new();
        let mut touched = vec![false; matrix.len()];
        for group in groups(matrix.len()) {
            for (rows, columns) in cut(&matrix, group) {
                let fresh = rows.iter().copied().filter(|&row| !touched[row]).collect();
                rows.iter().for_each(|&row| touched[row] = true);
                let coefficients: Box<[u8]> = columns
                    .clone()
                    .flat_map(|column| rows.iter().map(move |&row| (row, column)))
                    .map(|(row, column)| matrix[row][column])
                    .collect();
                passes.push(Pass {
                    prepared: Prepared::new(kernel, &coefficients)?,
                    rows,
                    columns,
                    coefficients,
                    fresh,
                });
            }
        }
        Ok(Product {
            rows: matrix.len(),
            columns,
            passes: passes.into(),
            empty: (0..matrix.len()).filter(|&row| !touched[row]).collect(),
        })
    }

    /// outputs = matrix · inputs. As many inputs as columns, as many outputs as rows, all equally long.
    pub(crate) fn multiply(&self, inputs: &[&[u8]], outputs: &mut [&mut [u8]]) {
        assert_eq!((inputs.len(), outputs.len()), (self.columns, self.rows));
        let len = inputs.first().map_or(0, |input| input.len());
        let block = if self.passes.len() > 1 {
            BLOCK_BYTES
        } else {
            usize::MAX
        };
        self.empty.iter().for_each(|&row| outputs[row].fill(0));
        let mut from = 0;
        while from < len {
            let range = from..len.min(from.saturating_add(block));
            from = range.end;
            for pass in &self.passes {
                let add = pass.fresh.len() < pass.rows.len();
                if add {
                    pass.fresh
                        .iter()
                        .for_each(|&row| outputs[row][range.clone()].fill(0));
                }
                pass.run(
                    &inputs[pass.columns.clone()],
                    pass.columns.start,
                    outputs,
                    range.clone(),
                    add,
                );
            }
        }
    }

    /// outputs ⊕= column · input: what `multiply` does with one of its inputs.
    pub(crate) fn add_column(&self, column: usize, input: &[u8], outputs: &mut [&mut [u8]]) {
        assert!(column < self.columns && outputs.len() == self.rows);
        for pass in self.passes.iter().filter(|pass| pass.columns.contains(&column)) {
            pass.run(&[input], column, outputs, 0..input.len(), true);
        }
    }
}

impl Pass {
    /// Multiplies `inputs`, those of the columns from `column` on, into this range of the pass's rows.
    fn run(
        &self,
        inputs: &[&[u8]],
        column: usize,
        outputs: &mut [&mut [u8]],
        range: Range<usize>,
        add: bool,
    ) {
        match self.rows.len() {
            1 => self.run_rows::<1>(inputs, column, outputs, range, add),
            2 => self.run_rows::<2>(inputs, column, outputs, range, add),
            3 => self.run_rows::<3>(inputs, column, outputs, range, add),
            4 => self.run_rows::<4>(inputs, column, outputs, range, add),
            rows => unreachable!("a pass of {rows} rows"),
        }
    }

    fn run_rows<const R: usize>(
        &self,
        inputs: &[&[u8]],
        column: usize,
        outputs: &mut [&mut [u8]],
        range: Range<usize>,
        add: bool,
    ) {
        let rows: [usize; R] = std::array::from_fn(|i| self.rows[i]);
        let Ok(outputs) = outputs.get_disjoint_mut(rows) else {
            unreachable!("rows of a pass ascend and are within the matrix");
        };
        let outputs = &mut outputs.map(|output| &mut output[range.clone()]);
        let at = range.start;
        let skip = (column - self.columns.start) * R;
        let cells = skip..skip + inputs.len() * R;
        let coefficients = &self.coefficients[cells.clone()];
        match &self.prepared {
            Prepared::Scalar => scalar::multiply(coefficients, inputs, at, outputs, add),
            #[cfg(target_arch = "aarch64")]
            Prepared::Neon(tables) => {
                // SAFETY: `Prepared::new` makes this variant only where the processor has the instructions.
                unsafe { neon::multiply(&tables[cells], coefficients, inputs, at, outputs, add) }
            }
            #[cfg(target_arch = "x86_64")]
            Prepared::Avx2(tables) => {
                // SAFETY: as above.
                unsafe { avx2::multiply(&tables[cells], coefficients, inputs, at, outputs, add) }
            }
            #[cfg(target_arch = "x86_64")]
            Prepared::Avx512(tables) => {
                // SAFETY: as above.
                unsafe { avx512::multiply(&tables[cells], inputs, at, outputs, add) }
            }
            #[cfg(target_arch = "x86_64")]
            Prepared::GfniAvx2(maps) => {
                // SAFETY: as above.
                unsafe { gfni::multiply_256(&maps[cells], coefficients, inputs, at, outputs, add) }
            }
            #[cfg(target_arch = "x86_64")]
            Prepared::GfniAvx512(maps) => {
                // SAFETY: as above.
                unsafe { gfni::multiply_512(&maps[cells], inputs, at, outputs, add) }
            }
        }
    }
}

/// All rows, in as few groups as passes allow, as equal as possible.
fn groups(rows: usize) -> impl Iterator<Item = Range<usize>> {
    let count = rows.div_ceil(PASS_ROWS_MAX);
    (0..count).map(move |i| i * rows / count..(i + 1) * rows / count)
}

/// A group of rows as passes: one over all columns, or one for each run of columns with zeros in the same rows.
fn cut(matrix: &[&[u8]], group: Range<usize>) -> Vec<(Box<[usize]>, Range<usize>)> {
    let columns = matrix[group.start].len();
    let rows_of =
        |column: usize| -> Box<[usize]> { group.clone().filter(|&row| matrix[row][column] != 0).collect() };
    let mut runs: Vec<(Box<[usize]>, Range<usize>)> = Vec::new();
    for column in 0..columns {
        let rows = rows_of(column);
        match runs.last_mut() {
            Some((last, run)) if *last == rows => run.end = column + 1,
            _ => runs.push((rows, column..column + 1)),
        }
    }
    runs.retain(|(rows, _)| !rows.is_empty());
    let work = |(rows, run): &(Box<[usize]>, Range<usize>)| rows.len() * (run.len() + RUN_COST);
    let used: Box<[usize]> = group
        .clone()
        .filter(|&row| matrix[row].iter().any(|&cell| cell != 0))
        .collect();
    let dense = (used, 0..columns);
    if dense.0.is_empty() || runs.iter().map(work).sum::<usize>() < work(&dense) {
        return runs;
    }
    vec![dense]
}

/// The length of the outputs, after making sure that every output has it, every input has it from `at` on, and there
/// are R coefficients to each input.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) fn checked_len<const R: usize>(
    coefficients: usize,
    inputs: &[&[u8]],
    at: usize,
    outputs: &[&mut [u8]; R],
) -> usize {
    let len = outputs.first().map_or(0, |output| output.len());
    assert!(outputs.iter().all(|output| output.len() == len));
    assert!(inputs.iter().all(|input| input.len() >= at + len));
    assert_eq!(coefficients, R * inputs.len());
    len
}

#[cfg(test)]
mod tests;
