//! MD5 (RFC 1321), of many streams at once. S3's ETags are MD5, and one stream's is slow: each step waits for the step before
//! it, so a core that could do sixteen things does one. [`update_many`] advances as many streams as a register has lanes by the
//! same instructions (`lanes`, and a file for each kind of register and instruction); a stream that is alone is the md-5 crate's.
//!
//! Not for security: MD5 is broken, and nothing but ETags and Content-MD5 uses it.
//!
//! Invariant: whatever is advanced together, and however it is cut, a digest is the one that the md-5 crate computes.

#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512vl;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod lanes;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(test)]
mod tests;

use crate::Kernel;
use ::md5::block_api::compress;

type Block = [u8; 64];

/// An MD5 in progress.
#[derive(Clone)]
pub struct Md5 {
    state: [u32; 4],
    /// Bytes so far; as many as do not make a block are in `tail`.
    length: u64,
    tail: Block,
}

impl Default for Md5 {
    fn default() -> Md5 {
        Md5::new()
    }
}

impl Md5 {
    /// Of nothing yet.
    pub fn new() -> Md5 {
        Md5 {
            state: [0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476],
            length: 0,
            tail: [0; 64],
        }
    }

    /// Takes in more bytes of one stream.
    pub fn update(&mut self, bytes: &[u8]) {
        let blocks = self.take_edges(bytes);
        compress(&mut self.state, blocks);
    }

    /// The digest.
    pub fn finish(mut self) -> [u8; 16] {
        let bits = self.length.wrapping_mul(8);
        let mut padding = [0; 72];
        padding[0] = 0x80;
        let zeros = (119 - self.tail_len()) % 64;
        self.update(&padding[..=zeros]);
        self.update(&bits.to_le_bytes());
        let mut digest = [0; 16];
        for (bytes, word) in digest.chunks_exact_mut(4).zip(self.state) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        digest
    }

    fn tail_len(&self) -> usize {
        (self.length % 64) as usize
    }

    /// Takes in all but the whole blocks, which are to be taken in next: what completes the block that was begun, and, kept for
    /// later, what is left after the last.
    fn take_edges<'a>(&mut self, bytes: &'a [u8]) -> &'a [Block] {
        let begun = self.tail_len();
        self.length = self.length.wrapping_add(bytes.len() as u64);
        let mut rest = bytes;
        if begun > 0 {
            let (head, after) = bytes.split_at(bytes.len().min(64 - begun));
            self.tail[begun..begun + head.len()].copy_from_slice(head);
            if begun + head.len() < 64 {
                return &[];
            }
            compress(&mut self.state, &[self.tail]);
            rest = after;
        }
        let (blocks, left) = rest.as_chunks();
        self.tail[..left.len()].copy_from_slice(left);
        blocks
    }
}

/// How many streams a kernel advances at once.
pub fn lanes(kernel: Kernel) -> usize {
    match kernel {
        Kernel::Scalar => 1,
        Kernel::Neon => 4,
        Kernel::Avx2 | Kernel::GfniAvx2 => 8,
        Kernel::Avx512 | Kernel::GfniAvx512 => 16,
    }
}

/// Takes in more bytes of each stream, as [`Md5::update`] does. Fastest where there are as many as the kernel has [`lanes`], of
/// one length. A kernel that does not run here is replaced by one that does.
pub fn update_many(kernel: Kernel, streams: &mut [(&mut Md5, &[u8])]) {
    let mut left: Vec<(&mut [u32; 4], &[Block])> = Vec::with_capacity(streams.len());
    for (md5, bytes) in streams {
        let blocks = md5.take_edges(bytes);
        if !blocks.is_empty() {
            left.push((&mut md5.state, blocks));
        }
    }
    let kernel = match kernel.is_supported() {
        true => kernel,
        false => Kernel::Scalar,
    };
    while left.len() > 1 && lanes(kernel) > 1 {
        let together = left.len().min(lanes(kernel));
        let done = advance(kernel, &mut left[..together]);
        for (_, blocks) in &mut left[..together] {
            *blocks = &blocks[done..];
        }
        left.retain(|(_, blocks)| !blocks.is_empty());
    }
    for (state, blocks) in left {
        compress(state, blocks);
    }
}

/// Advances these streams, at most as many as there are lanes, by the blocks of the shortest. Answers how many those were. The
/// kernel runs here.
fn advance(kernel: Kernel, streams: &mut [(&mut [u32; 4], &[Block])]) -> usize {
    match kernel {
        #[cfg(target_arch = "x86_64")]
        Kernel::Avx512 | Kernel::GfniAvx512 if streams.len() > 8 => advance_by(streams, |states, blocks| {
            // SAFETY: the caller has seen that the kernel runs here.
            unsafe { avx512::advance(states, blocks) }
        }),
        #[cfg(target_arch = "x86_64")]
        Kernel::Avx512 | Kernel::GfniAvx512 => advance_by(streams, |states, blocks| {
            // SAFETY: as above.
            unsafe { avx512vl::advance(states, blocks) }
        }),
        #[cfg(target_arch = "x86_64")]
        Kernel::Avx2 | Kernel::GfniAvx2 => advance_by(streams, |states, blocks| {
            // SAFETY: as above.
            unsafe { avx2::advance(states, blocks) }
        }),
        #[cfg(target_arch = "aarch64")]
        Kernel::Neon => advance_by(streams, neon::advance),
        _ => unreachable!("{kernel} advances one stream at a time here"),
    }
}

/// Lanes without a stream do what the first does, for nothing.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn advance_by<const N: usize>(
    streams: &mut [(&mut [u32; 4], &[Block])],
    compress: impl FnOnce(&mut lanes::States<N>, &[&[Block]; N]),
) -> usize {
    let of = |lane: usize| if lane < streams.len() { lane } else { 0 };
    let done = streams.iter().map(|(_, blocks)| blocks.len()).min().unwrap_or(0);
    let blocks = std::array::from_fn(|lane| &streams[of(lane)].1[..done]);
    let mut states: lanes::States<N> =
        std::array::from_fn(|word| std::array::from_fn(|lane| streams[of(lane)].0[word]));
    compress(&mut states, &blocks);
    for (lane, (state, _)) in streams.iter_mut().enumerate() {
        for (word, words) in states.iter().enumerate() {
            state[word] = words[lane];
        }
    }
    done
}
