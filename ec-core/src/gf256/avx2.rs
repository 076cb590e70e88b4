//! Nibble tables with AVX2: two shuffles look up 32 bytes.
//!
//! Tiles as in `gfni.rs`. The two halves of an input's bytes are taken apart once for all outputs.
//!
//! Invariant: pointers stay within the slices that [`checked_len`] looked at.
#![allow(unsafe_code)]

use super::product::checked_len;
use super::scalar;
use std::arch::x86_64::*;

/// As [`scalar::multiply`]; `tables` are the nibble tables of the `coefficients`, in the same order.
#[target_feature(enable = "avx2")]
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
    const TILE: usize = 2 * 32;
    let (tiles, whole) = (len - len % TILE, len - len % 32);
    for from in (0..tiles).step_by(TILE) {
        // SAFETY: from + TILE ≤ len, the length of each output and of each input after `at`.
        unsafe { tile::<R, 2>(tables, inputs, at, &pointers, from, add) };
    }
    for from in (tiles..whole).step_by(32) {
        // SAFETY: from + 32 ≤ len, as above.
        unsafe { tile::<R, 1>(tables, inputs, at, &pointers, from, add) };
    }
    let mut rest = outputs.each_mut().map(|output| &mut output[whole..]);
    scalar::multiply(coefficients, inputs, at + whole, &mut rest, add);
}

/// C registers of each input and output, from byte `from`. The caller sees to it that those bytes are there.
#[inline]
#[target_feature(enable = "avx2")]
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
        let nibble = _mm256_set1_epi8(0x0F);
        let mut sums = [[_mm256_setzero_si256(); C]; R];
        if add {
            for (output, sums) in outputs.iter().zip(&mut sums) {
                for (c, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm256_loadu_si256(output.add(from + 32 * c).cast());
                }
            }
        }
        let mut table = tables.as_ptr();
        for input in inputs {
            let (mut low, mut high) = ([_mm256_setzero_si256(); C], [_mm256_setzero_si256(); C]);
            for c in 0..C {
                let x = _mm256_loadu_si256(input.as_ptr().add(at + from + 32 * c).cast());
                low[c] = _mm256_and_si256(x, nibble);
                high[c] = _mm256_and_si256(_mm256_srli_epi64::<4>(x), nibble);
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let halves: *const __m128i = table.add(r).cast();
                let table_low = _mm256_broadcastsi128_si256(_mm_loadu_si128(halves));
                let table_high = _mm256_broadcastsi128_si256(_mm_loadu_si128(halves.add(1)));
                for (c, sum) in sums.iter_mut().enumerate() {
                    let product = _mm256_xor_si256(
                        _mm256_shuffle_epi8(table_low, low[c]),
                        _mm256_shuffle_epi8(table_high, high[c]),
                    );
                    *sum = _mm256_xor_si256(*sum, product);
                }
            }
            table = table.add(R);
        }
        for (output, sums) in outputs.iter().zip(&sums) {
            for (c, &sum) in sums.iter().enumerate() {
                _mm256_storeu_si256(output.add(from + 32 * c).cast(), sum);
            }
        }
    }
}
