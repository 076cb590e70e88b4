//! Sixteen streams in 512-bit registers: one instruction for each of MD5's functions, one for a rotation.
#![allow(unsafe_code)]

use super::Block;
use super::lanes::{self, States, compress, steps};
use std::arch::asm;
use std::arch::x86_64::*;

/// Takes in as many blocks of each stream as the first has, which is the shortest.
#[target_feature(enable = "avx512f")]
pub(super) fn advance(states: &mut States<16>, streams: &[&[Block]; 16]) {
    compress!(states, streams);
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(words: &[u32; 16]) -> __m512i {
    // SAFETY: 64 bytes, at any alignment.
    unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(register: __m512i, words: &mut [u32; 16]) {
    // SAFETY: 64 bytes, at any alignment.
    unsafe { _mm512_storeu_si512(words.as_mut_ptr().cast(), register) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn splat(word: u32) -> __m512i {
    _mm512_set1_epi32(word as i32)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn add(a: __m512i, b: __m512i) -> __m512i {
    _mm512_add_epi32(a, b)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn add_last(a: __m512i, b: __m512i) -> __m512i {
    let sum;
    // SAFETY: it adds two registers, and does nothing else.
    unsafe {
        asm!(
            "vpaddd {}, {}, {}",
            lateout(zmm_reg) sum,
            in(zmm_reg) a,
            in(zmm_reg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

#[inline]
#[target_feature(enable = "avx512f")]
fn rotate_left(a: __m512i, bits: u32) -> __m512i {
    _mm512_rolv_epi32(a, splat(bits))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn choose(b: __m512i, c: __m512i, d: __m512i) -> __m512i {
    _mm512_ternarylogic_epi32::<{ lanes::CHOOSE }>(b, c, d)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn parity(b: __m512i, c: __m512i, d: __m512i) -> __m512i {
    _mm512_ternarylogic_epi32::<{ lanes::PARITY }>(b, c, d)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn last(b: __m512i, c: __m512i, d: __m512i) -> __m512i {
    _mm512_ternarylogic_epi32::<{ lanes::LAST }>(b, c, d)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn words(streams: &[&[Block]; 16], at: usize) -> [__m512i; 16] {
    let mut rows = [_mm512_setzero_si512(); 16];
    for (row, blocks) in rows.iter_mut().zip(streams) {
        // SAFETY: a block has 64 bytes, and needs no alignment.
        *row = unsafe { _mm512_loadu_si512(blocks[at].as_ptr().cast()) };
        _mm_prefetch::<_MM_HINT_T0>(blocks[at].as_ptr().wrapping_add(lanes::AHEAD_BYTES).cast());
    }
    // Words of pairs of rows, then of fours; the quarters of registers stay where they are.
    let mut fours = [_mm512_setzero_si512(); 16];
    for four in 0..4 {
        let (r0, r1, r2, r3) = (
            rows[4 * four],
            rows[4 * four + 1],
            rows[4 * four + 2],
            rows[4 * four + 3],
        );
        let (low01, low23) = (_mm512_unpacklo_epi32(r0, r1), _mm512_unpacklo_epi32(r2, r3));
        let (high01, high23) = (_mm512_unpackhi_epi32(r0, r1), _mm512_unpackhi_epi32(r2, r3));
        fours[four] = _mm512_unpacklo_epi64(low01, low23);
        fours[4 + four] = _mm512_unpackhi_epi64(low01, low23);
        fours[8 + four] = _mm512_unpacklo_epi64(high01, high23);
        fours[12 + four] = _mm512_unpackhi_epi64(high01, high23);
    }
    // Quarter q of fours[4i..4i + 4] is word 4q + i of four streams each: the quarters change places.
    let mut words = [_mm512_setzero_si512(); 16];
    for i in 0..4 {
        let (f0, f1, f2, f3) = (fours[4 * i], fours[4 * i + 1], fours[4 * i + 2], fours[4 * i + 3]);
        let (even01, even23) = (
            _mm512_shuffle_i32x4::<0x88>(f0, f1),
            _mm512_shuffle_i32x4::<0x88>(f2, f3),
        );
        let (odd01, odd23) = (
            _mm512_shuffle_i32x4::<0xdd>(f0, f1),
            _mm512_shuffle_i32x4::<0xdd>(f2, f3),
        );
        words[i] = _mm512_shuffle_i32x4::<0x88>(even01, even23);
        words[4 + i] = _mm512_shuffle_i32x4::<0x88>(odd01, odd23);
        words[8 + i] = _mm512_shuffle_i32x4::<0xdd>(even01, even23);
        words[12 + i] = _mm512_shuffle_i32x4::<0xdd>(odd01, odd23);
    }
    words
}
