//! Nibble tables with AVX-512: as `avx2.rs`, 64 bytes at a time, for processors that have the registers and not GFNI (Skylake and
//! Cascade Lake servers).
//!
//! Invariant: pointers stay within the slices that [`checked_len`] looked at.
#![allow(unsafe_code)]

use super::product::checked_len;
use std::arch::x86_64::*;

/// Exclusive or of all three, in `vpternlog`'s truth table.
const XOR3: i32 = 0x96;

/// As [`super::scalar::multiply`]; `tables` are the nibble tables of the coefficients, in the same order.
#[target_feature(enable = "avx512f,avx512bw")]
pub(crate) fn multiply<const R: usize>(
    tables: &[[u8; 32]],
    inputs: &[&[u8]],
    at: usize,
    outputs: &mut [&mut [u8]; R],
    add: bool,
) {
    let len = checked_len(tables.len(), inputs, at, outputs);
    let outputs: [*mut u8; R] = outputs.each_mut().map(|output| output.as_mut_ptr());
    const TILE: usize = 2 * 64;
    let whole = len - len % TILE;
    for from in (0..whole).step_by(TILE) {
        // SAFETY: from + TILE ≤ len, the length of each output and of each input after `at`.
        unsafe { tile::<R, 2>(tables, inputs, at, &outputs, from, u64::MAX, add) };
    }
    for from in (whole..len).step_by(64) {
        let mask = u64::MAX >> (64 - (len - from).min(64));
        // SAFETY: the mask has a bit for each byte of this register that is within len; others are not touched.
        unsafe { tile::<R, 1>(tables, inputs, at, &outputs, from, mask, add) };
    }
}

/// C registers of each input and output, from byte `from`. The caller sees to it that those bytes are there; with a
/// mask that is not full, only the bytes of the mask.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn tile<const R: usize, const C: usize>(
    tables: &[[u8; 32]],
    inputs: &[&[u8]],
    at: usize,
    outputs: &[*mut u8; R],
    from: usize,
    mask: u64,
    add: bool,
) {
    // SAFETY: the caller vouches for the bytes; tables has R for each input (checked_len).
    unsafe {
        let nibble = _mm512_set1_epi8(0x0F);
        let mut sums = [[_mm512_setzero_si512(); C]; R];
        if add {
            for (output, sums) in outputs.iter().zip(&mut sums) {
                for (c, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm512_maskz_loadu_epi8(mask, output.add(from + 64 * c).cast());
                }
            }
        }
        let mut table = tables.as_ptr();
        for input in inputs {
            let (mut low, mut high) = ([_mm512_setzero_si512(); C], [_mm512_setzero_si512(); C]);
            for c in 0..C {
                let x = _mm512_maskz_loadu_epi8(mask, input.as_ptr().add(at + from + 64 * c).cast());
                low[c] = _mm512_and_si512(x, nibble);
                high[c] = _mm512_and_si512(_mm512_srli_epi64::<4>(x), nibble);
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let halves: *const __m128i = table.add(r).cast();
                let table_low = _mm512_broadcast_i32x4(_mm_loadu_si128(halves));
                let table_high = _mm512_broadcast_i32x4(_mm_loadu_si128(halves.add(1)));
                for (c, sum) in sums.iter_mut().enumerate() {
                    let products = (
                        _mm512_shuffle_epi8(table_low, low[c]),
                        _mm512_shuffle_epi8(table_high, high[c]),
                    );
                    *sum = _mm512_ternarylogic_epi64::<XOR3>(*sum, products.0, products.1);
                }
            }
            table = table.add(R);
        }
        for (output, sums) in outputs.iter().zip(&sums) {
            for (c, &sum) in sums.iter().enumerate() {
                _mm512_mask_storeu_epi8(output.add(from + 64 * c).cast(), mask, sum);
            }
        }
    }
}
