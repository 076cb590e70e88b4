//! At most eight streams, in 256-bit registers with the instructions that came with the wider ones, which would be half empty.
#![allow(unsafe_code)]

use super::Block;
use super::avx2::{add, add_last, load, splat, store, words};
use super::lanes::{self, States, compress, steps};
use std::arch::x86_64::*;

/// Takes in as many blocks of each stream as the first has, which is the shortest.
#[target_feature(enable = "avx512f,avx512vl")]
pub(super) fn advance(states: &mut States<8>, streams: &[&[Block]; 8]) {
    compress!(states, streams);
}

#[inline]
#[target_feature(enable = "avx512f,avx512vl")]
fn rotate_left(a: __m256i, bits: u32) -> __m256i {
    _mm256_rolv_epi32(a, splat(bits))
}

#[inline]
#[target_feature(enable = "avx512f,avx512vl")]
fn choose(b: __m256i, c: __m256i, d: __m256i) -> __m256i {
    _mm256_ternarylogic_epi32::<{ lanes::CHOOSE }>(b, c, d)
}

#[inline]
#[target_feature(enable = "avx512f,avx512vl")]
fn parity(b: __m256i, c: __m256i, d: __m256i) -> __m256i {
    _mm256_ternarylogic_epi32::<{ lanes::PARITY }>(b, c, d)
}

#[inline]
#[target_feature(enable = "avx512f,avx512vl")]
fn last(b: __m256i, c: __m256i, d: __m256i) -> __m256i {
    _mm256_ternarylogic_epi32::<{ lanes::LAST }>(b, c, d)
}
