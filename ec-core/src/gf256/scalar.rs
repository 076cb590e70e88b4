//! One look-up per byte. Plain and safe: the oracle of the other kernels, and what does the bytes they leave over.

use super::tables::MUL;

/// outputs ⊕= coefficients · inputs, or = without `add`. The coefficients go column by column, R to each input; the
/// bytes of an input start at `at`, and there are as many as an output has.
pub(crate) fn multiply<const R: usize>(
    coefficients: &[u8],
    inputs: &[&[u8]],
    at: usize,
    outputs: &mut [&mut [u8]; R],
    add: bool,
) {
    if !add {
        outputs.iter_mut().for_each(|output| output.fill(0));
    }
    for (column, input) in coefficients.chunks_exact(R).zip(inputs) {
        for (&coefficient, output) in column.iter().zip(outputs.iter_mut()) {
            let products = &MUL[usize::from(coefficient)];
            for (sum, &byte) in output.iter_mut().zip(&input[at..]) {
                *sum ^= products[usize::from(byte)];
            }
        }
    }
}
