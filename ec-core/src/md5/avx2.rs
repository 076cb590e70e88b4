//! Eight streams in 256-bit registers.
#![allow(unsafe_code)]

use super::Block;
use super::lanes::{self, States, compress, steps};
use std::arch::asm;
use std::arch::x86_64::*;

/// Takes in as many blocks of each stream as the first has, which is the shortest.
#[target_feature(enable = "avx2")]
pub(super) fn advance(states: &mut States<8>, streams: &[&[Block]; 8]) {
    compress!(states, streams);
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn load(words: &[u32; 8]) -> __m256i {
    // SAFETY: 32 bytes, at any alignment.
    unsafe { _mm256_loadu_si256(words.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn store(register: __m256i, words: &mut [u32; 8]) {
    // SAFETY: 32 bytes, at any alignment.
    unsafe { _mm256_storeu_si256(words.as_mut_ptr().cast(), register) }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn splat(word: u32) -> __m256i {
    _mm256_set1_epi32(word as i32)
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn add(a: __m256i, b: __m256i) -> __m256i {
    _mm256_add_epi32(a, b)
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn add_last(a: __m256i, b: __m256i) -> __m256i {
    let sum;
    // SAFETY: it adds two registers, and does nothing else.
    unsafe {
        asm!(
            "vpaddd {}, {}, {}",
            lateout(ymm_reg) sum,
            in(ymm_reg) a,
            in(ymm_reg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

#[inline]
#[target_feature(enable = "avx2")]
fn rotate_left(a: __m256i, bits: u32) -> __m256i {
    let left = _mm256_sll_epi32(a, _mm_cvtsi32_si128(bits as i32));
    let right = _mm256_srl_epi32(a, _mm_cvtsi32_si128(32 - bits as i32));
    _mm256_or_si256(left, right)
}

#[inline]
#[target_feature(enable = "avx2")]
fn choose(b: __m256i, c: __m256i, d: __m256i) -> __m256i {
    _mm256_xor_si256(d, _mm256_and_si256(b, _mm256_xor_si256(c, d)))
}

#[inline]
#[target_feature(enable = "avx2")]
fn parity(b: __m256i, c: __m256i, d: __m256i) -> __m256i {
    _mm256_xor_si256(b, _mm256_xor_si256(c, d))
}

#[inline]
#[target_feature(enable = "avx2")]
fn last(b: __m256i, c: __m256i, d: __m256i) -> __m256i {
    let not_d = _mm256_xor_si256(d, _mm256_set1_epi32(-1));
    _mm256_xor_si256(c, _mm256_or_si256(b, not_d))
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn words(streams: &[&[Block]; 8], at: usize) -> [__m256i; 16] {
    let mut words = [_mm256_setzero_si256(); 16];
    for half in 0..2 {
        let mut rows = [_mm256_setzero_si256(); 8];
        for (row, blocks) in rows.iter_mut().zip(streams) {
            // SAFETY: half of a block of 64 bytes, which needs no alignment.
            *row = unsafe { _mm256_loadu_si256(blocks[at][32 * half..].as_ptr().cast()) };
            _mm_prefetch::<_MM_HINT_T0>(blocks[at].as_ptr().wrapping_add(lanes::AHEAD_BYTES).cast());
        }
        // As with sixteen streams: words of pairs of rows, then of fours, then the halves of registers change places.
        let mut fours = [_mm256_setzero_si256(); 8];
        for four in 0..2 {
            let (r0, r1, r2, r3) = (
                rows[4 * four],
                rows[4 * four + 1],
                rows[4 * four + 2],
                rows[4 * four + 3],
            );
            let (low01, low23) = (_mm256_unpacklo_epi32(r0, r1), _mm256_unpacklo_epi32(r2, r3));
            let (high01, high23) = (_mm256_unpackhi_epi32(r0, r1), _mm256_unpackhi_epi32(r2, r3));
            fours[four] = _mm256_unpacklo_epi64(low01, low23);
            fours[2 + four] = _mm256_unpackhi_epi64(low01, low23);
            fours[4 + four] = _mm256_unpacklo_epi64(high01, high23);
            fours[6 + four] = _mm256_unpackhi_epi64(high01, high23);
        }
        for i in 0..4 {
            let (f0, f1) = (fours[2 * i], fours[2 * i + 1]);
            words[8 * half + i] = _mm256_permute2x128_si256::<0x20>(f0, f1);
            words[8 * half + 4 + i] = _mm256_permute2x128_si256::<0x31>(f0, f1);
        }
    }
    words
}
