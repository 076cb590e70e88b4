//! Nibble tables with NEON: two table look-ups do 16 bytes.
//!
//! Tiles as in `gfni.rs`. The two halves of an input's bytes are taken apart once for all outputs.
//!
//! Invariant: pointers stay within the slices that [`checked_len`] looked at.
#![allow(unsafe_code)]

use super::product::checked_len;
use super::scalar;
use std::arch::aarch64::*;

/// As [`scalar::multiply`]; `tables` are the nibble tables of the `coefficients`, in the same order.
#[target_feature(enable = "neon")]
pub(crate) fn multiply<const R: usize>(
    tables: &[[u8; 32]],
    coefficients: &[u8],
    inputs: &[&[u8]],
    at: usize,
    outputs: &mut [&mut [u8]; R],
    add: bool,
) {
    let len = checked_len(tables.len(), inputs, at, outputs);
    let pointers: [*mut u8; R] = outputs.each_mut().map(|output| output.as_mut_ptr());
    const TILE: usize = 4 * 16;
    let (tiles, whole) = (len - len % TILE, len - len % 16);
    for from in (0..tiles).step_by(TILE) {
        // SAFETY: from + TILE ≤ len, the length of each output and of each input after `at`.
        unsafe { tile::<R, 4>(tables, inputs, at, &pointers, from, add) };
    }
    for from in (tiles..whole).step_by(16) {
        // SAFETY: from + 16 ≤ len, as above.
        unsafe { tile::<R, 1>(tables, inputs, at, &pointers, from, add) };
    }
    let mut rest = outputs.each_mut().map(|output| &mut output[whole..]);
    scalar::multiply(coefficients, inputs, at + whole, &mut rest, add);
}

/// C registers of each input and output, from byte `from`. The caller sees to it that those bytes are there.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn tile<const R: usize, const C: usize>(
    tables: &[[u8; 32]],
    inputs: &[&[u8]],
    at: usize,
    outputs: &[*mut u8; R],
    from: usize,
    add: bool,
) {
    // SAFETY: the caller vouches for the bytes; tables has R for each input (checked_len).
    unsafe {
        let nibble = vdupq_n_u8(0x0F);
        let mut sums = [[vdupq_n_u8(0); C]; R];
        if add {
            for (output, sums) in outputs.iter().zip(&mut sums) {
                for (c, sum) in sums.iter_mut().enumerate() {
                    *sum = vld1q_u8(output.add(from + 16 * c));
                }
            }
        }
        let mut table = tables.as_ptr();
        for input in inputs {
            let (mut low, mut high) = ([vdupq_n_u8(0); C], [vdupq_n_u8(0); C]);
            for c in 0..C {
                let x = vld1q_u8(input.as_ptr().add(at + from + 16 * c));
                low[c] = vandq_u8(x, nibble);
                high[c] = vshrq_n_u8::<4>(x);
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let halves: *const u8 = table.add(r).cast();
                let (table_low, table_high) = (vld1q_u8(halves), vld1q_u8(halves.add(16)));
                for (c, sum) in sums.iter_mut().enumerate() {
                    let product = veorq_u8(vqtbl1q_u8(table_low, low[c]), vqtbl1q_u8(table_high, high[c]));
                    *sum = veorq_u8(*sum, product);
                }
            }
            table = table.add(R);
        }
        for (output, sums) in outputs.iter().zip(&sums) {
            for (c, &sum) in sums.iter().enumerate() {
                vst1q_u8(output.add(from + 16 * c), sum);
            }
        }
    }
}
