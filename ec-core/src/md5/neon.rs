//! Four streams in aarch64's 128-bit registers.
#![allow(unsafe_code)]

use super::Block;
use super::lanes::{self, States, compress, steps};
use std::arch::aarch64::*;

/// Takes in as many blocks of each stream as the first has, which is the shortest.
pub(super) fn advance(states: &mut States<4>, streams: &[&[Block]; 4]) {
    compress!(states, streams);
}

#[inline]
fn load(words: &[u32; 4]) -> uint32x4_t {
    // SAFETY: 16 bytes, at any alignment.
    unsafe { vld1q_u32(words.as_ptr()) }
}

#[inline]
fn store(register: uint32x4_t, words: &mut [u32; 4]) {
    // SAFETY: 16 bytes, at any alignment.
    unsafe { vst1q_u32(words.as_mut_ptr(), register) }
}

#[inline]
fn splat(word: u32) -> uint32x4_t {
    vdupq_n_u32(word)
}

#[inline]
fn add(a: uint32x4_t, b: uint32x4_t) -> uint32x4_t {
    vaddq_u32(a, b)
}

/// Left to the compiler: what it does here was not looked at.
#[inline]
fn add_last(a: uint32x4_t, b: uint32x4_t) -> uint32x4_t {
    add(a, b)
}

#[inline]
fn rotate_left(a: uint32x4_t, bits: u32) -> uint32x4_t {
    // A negative shift is one to the right.
    let left = vshlq_u32(a, vdupq_n_s32(bits as i32));
    vorrq_u32(left, vshlq_u32(a, vdupq_n_s32(bits as i32 - 32)))
}

#[inline]
fn choose(b: uint32x4_t, c: uint32x4_t, d: uint32x4_t) -> uint32x4_t {
    vbslq_u32(b, c, d)
}

#[inline]
fn parity(b: uint32x4_t, c: uint32x4_t, d: uint32x4_t) -> uint32x4_t {
    veorq_u32(b, veorq_u32(c, d))
}

#[inline]
fn last(b: uint32x4_t, c: uint32x4_t, d: uint32x4_t) -> uint32x4_t {
    veorq_u32(c, vornq_u32(b, d))
}

#[inline]
fn words(streams: &[&[Block]; 4], at: usize) -> [uint32x4_t; 16] {
    let mut words = [vdupq_n_u32(0); 16];
    for quarter in 0..4 {
        let mut rows = [vdupq_n_u32(0); 4];
        for (row, blocks) in rows.iter_mut().zip(streams) {
            // SAFETY: a quarter of a block of 64 bytes, at any alignment.
            *row = vreinterpretq_u32_u8(unsafe { vld1q_u8(blocks[at][16 * quarter..].as_ptr()) });
        }
        // Pairs of words of pairs of rows, then words of all four.
        let (a, b) = (vtrnq_u32(rows[0], rows[1]), vtrnq_u32(rows[2], rows[3]));
        let wide = vreinterpretq_u64_u32;
        words[4 * quarter] = vreinterpretq_u32_u64(vtrn1q_u64(wide(a.0), wide(b.0)));
        words[4 * quarter + 1] = vreinterpretq_u32_u64(vtrn1q_u64(wide(a.1), wide(b.1)));
        words[4 * quarter + 2] = vreinterpretq_u32_u64(vtrn2q_u64(wide(a.0), wide(b.0)));
        words[4 * quarter + 3] = vreinterpretq_u32_u64(vtrn2q_u64(wide(a.1), wide(b.1)));
    }
    words
}
