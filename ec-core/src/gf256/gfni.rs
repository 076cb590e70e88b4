//! Affine maps with GFNI, in 512-bit and in 256-bit registers.
//!
//! A tile is a few registers of every input and every output. For each input the tile is loaded once and multiplied into the sums of
//! all outputs, which stay in registers until every input has been added; so an input is read once and an output
//! written once, and a coefficient is loaded once a tile. Two inputs at a time, so that one `vpternlog` adds both products.
//!
//! Invariant: pointers stay within the slices that [`checked_len`] looked at.
#![allow(unsafe_code)]

use super::product::checked_len;
use super::scalar;
use std::arch::x86_64::*;

/// With at most so many shards the next tile of each is prefetched. Shards that start at pages compete for one set of the
/// first-level cache, of 12 ways since Ice Lake: more of them would push out what was just fetched.
const PREFETCH_SHARDS_MAX: usize = 12;

/// Exclusive or of all three, in `vpternlog`'s truth table.
const XOR3: i32 = 0x96;

/// As [`scalar::multiply`]; `maps` are the affine maps of the coefficients, in the same order.
#[target_feature(enable = "avx512f,avx512bw,gfni")]
pub(crate) fn multiply_512<const R: usize>(
    maps: &[u64],
    inputs: &[&[u8]],
    at: usize,
    outputs: &mut [&mut [u8]; R],
    add: bool,
) {
    let len = checked_len(maps.len(), inputs, at, outputs);
    let outputs: [*mut u8; R] = outputs.each_mut().map(|output| output.as_mut_ptr());
    const TILE: usize = 4 * 64;
    let whole = len - len % TILE;
    let prefetch = inputs.len() + R <= PREFETCH_SHARDS_MAX;
    for from in (0..whole).step_by(TILE) {
        // SAFETY: from + TILE ≤ len, the length of each output and of each input after `at`.
        unsafe {
            match prefetch {
                true => tile_512::<R, 4, true>(maps, inputs, at, &outputs, from, u64::MAX, add),
                false => tile_512::<R, 4, false>(maps, inputs, at, &outputs, from, u64::MAX, add),
            }
        };
    }
    for from in (whole..len).step_by(64) {
        let mask = u64::MAX >> (64 - (len - from).min(64));
        // SAFETY: the mask has a bit for each byte of this register that is within len; others are not touched.
        unsafe { tile_512::<R, 1, false>(maps, inputs, at, &outputs, from, mask, add) };
    }
}

/// C registers of each input and output, from byte `from`. The caller sees to it that those bytes are there; with a
/// mask that is not full, only the bytes of the mask.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,gfni")]
unsafe fn tile_512<const R: usize, const C: usize, const PREFETCH: bool>(
    maps: &[u64],
    inputs: &[&[u8]],
    at: usize,
    outputs: &[*mut u8; R],
    from: usize,
    mask: u64,
    add: bool,
) {
    // SAFETY: the caller vouches for the bytes; maps has R for each input (checked_len).
    unsafe {
        let mut sums = [[_mm512_setzero_si512(); C]; R];
        if add {
            for (output, sums) in outputs.iter().zip(&mut sums) {
                for (c, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm512_maskz_loadu_epi8(mask, output.add(from + 64 * c).cast());
                }
            }
        }
        let mut map = maps.as_ptr();
        let mut pairs = inputs.chunks_exact(2);
        for pair in &mut pairs {
            let mut x = [[_mm512_setzero_si512(); C]; 2];
            for (input, x) in pair.iter().zip(&mut x) {
                for (c, x) in x.iter_mut().enumerate() {
                    let place = input.as_ptr().add(at + from + 64 * c);
                    if PREFETCH {
                        _mm_prefetch::<_MM_HINT_T0>(place.wrapping_add(64 * C).cast());
                    }
                    *x = _mm512_maskz_loadu_epi8(mask, place.cast());
                }
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let map0 = _mm512_set1_epi64(map.add(r).read() as i64);
                let map1 = _mm512_set1_epi64(map.add(R + r).read() as i64);
                for (c, sum) in sums.iter_mut().enumerate() {
                    let products = (
                        _mm512_gf2p8affine_epi64_epi8::<0>(x[0][c], map0),
                        _mm512_gf2p8affine_epi64_epi8::<0>(x[1][c], map1),
                    );
                    *sum = _mm512_ternarylogic_epi64::<XOR3>(*sum, products.0, products.1);
                }
            }
            map = map.add(2 * R);
        }
        for input in pairs.remainder() {
            for c in 0..C {
                let x = _mm512_maskz_loadu_epi8(mask, input.as_ptr().add(at + from + 64 * c).cast());
                for (r, sums) in sums.iter_mut().enumerate() {
                    let map = _mm512_set1_epi64(map.add(r).read() as i64);
                    sums[c] = _mm512_xor_si512(sums[c], _mm512_gf2p8affine_epi64_epi8::<0>(x, map));
                }
            }
        }
        for (output, sums) in outputs.iter().zip(&sums) {
            for (c, &sum) in sums.iter().enumerate() {
                let place = output.add(from + 64 * c);
                if PREFETCH {
                    _mm_prefetch::<_MM_HINT_ET0>(place.wrapping_add(64 * C).cast());
                }
                _mm512_mask_storeu_epi8(place.cast(), mask, sum);
            }
        }
    }
}

/// As [`scalar::multiply`]; `maps` are the affine maps of the `coefficients`, in the same order.
#[target_feature(enable = "avx2,gfni")]
pub(crate) fn multiply_256<const R: usize>(
    maps: &[u64],
    coefficients: &[u8],
    inputs: &[&[u8]],
    at: usize,
    outputs: &mut [&mut [u8]; R],
    add: bool,
) {
    let len = checked_len(maps.len(), inputs, at, outputs);
    let pointers: [*mut u8; R] = outputs.each_mut().map(|output| output.as_mut_ptr());
    let tile = if R <= 2 { 4 * 32 } else { 2 * 32 };
    let (tiles, whole) = (len - len % tile, len - len % 32);
    for from in (0..tiles).step_by(tile) {
        // SAFETY: from + tile ≤ len, the length of each output and of each input after `at`.
        unsafe {
            match R {
                1 | 2 => tile_256::<R, 4>(maps, inputs, at, &pointers, from, add),
                _ => tile_256::<R, 2>(maps, inputs, at, &pointers, from, add),
            }
        };
    }
    for from in (tiles..whole).step_by(32) {
        // SAFETY: from + 32 ≤ len, as above.
        unsafe { tile_256::<R, 1>(maps, inputs, at, &pointers, from, add) };
    }
    let mut rest = outputs.each_mut().map(|output| &mut output[whole..]);
    scalar::multiply(coefficients, inputs, at + whole, &mut rest, add);
}

/// C registers of each input and output, from byte `from`. The caller sees to it that those bytes are there.
#[inline]
#[target_feature(enable = "avx2,gfni")]
unsafe fn tile_256<const R: usize, const C: usize>(
    maps: &[u64],
    inputs: &[&[u8]],
    at: usize,
    outputs: &[*mut u8; R],
    from: usize,
    add: bool,
) {
    // SAFETY: the caller vouches for the bytes; maps has R for each input (checked_len).
    unsafe {
        let mut sums = [[_mm256_setzero_si256(); C]; R];
        if add {
            for (output, sums) in outputs.iter().zip(&mut sums) {
                for (c, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm256_loadu_si256(output.add(from + 32 * c).cast());
                }
            }
        }
        let mut map = maps.as_ptr();
        for input in inputs {
            let mut x = [_mm256_setzero_si256(); C];
            for (c, x) in x.iter_mut().enumerate() {
                *x = _mm256_loadu_si256(input.as_ptr().add(at + from + 32 * c).cast());
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let map = _mm256_set1_epi64x(map.add(r).read() as i64);
                for (c, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm256_xor_si256(*sum, _mm256_gf2p8affine_epi64_epi8::<0>(x[c], map));
                }
            }
            map = map.add(R);
        }
        for (output, sums) in outputs.iter().zip(&sums) {
            for (c, &sum) in sums.iter().enumerate() {
                _mm256_storeu_si256(output.add(from + 32 * c).cast(), sum);
            }
        }
    }
}
