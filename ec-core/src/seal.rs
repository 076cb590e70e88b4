//! The seal: the checksums that travel with a shard, so that every later reader can tell right bytes from wrong ones.
//!
//! - A CRC-32 per block of 64 KiB. Each starts from `seed + block` rather than 0, where the seed stands for the identity of
//!   the shard: two CRC states that differ never meet again on equal data, so the same bytes under another identity, or another
//!   block of the same shard, do not verify. The caller makes the seed: this crate knows no ids.
//! - A BLAKE3 digest of the whole shard: what a rebuilt shard is compared with before it is written.
//!
//! Invariant: the CRCs are those of the storage node's protocol (`protocol::block_crc`), bit for bit.

/// Bytes of payload covered by one CRC, and the unit of partial reads.
pub const BLOCK_BYTES: u32 = 64 * 1024;

const BLOCK: usize = BLOCK_BYTES as usize;

/// A block that does not match its checksum, or that one of the two lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("block {block} does not match its checksum")]
pub struct SealError {
    /// The block, counted from the start of the shard.
    pub block: u32,
}

/// The CRC of one block: `bytes` are those of block number `block` of a shard whose seed is `seed`.
pub fn block_crc(seed: u32, block: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(seed.wrapping_add(block));
    hasher.update(bytes);
    hasher.finalize()
}

/// The CRCs of all blocks of a shard; none if it is empty.
pub fn block_crcs(seed: u32, payload: &[u8]) -> Vec<u32> {
    (0..)
        .zip(payload.chunks(BLOCK))
        .map(|(block, bytes)| block_crc(seed, block, bytes))
        .collect()
}

/// Checks consecutive blocks from `first_block` on: as many CRCs as the payload has blocks, and each block matching. All
/// blocks are full but the last, and that one only if it is the shard's last.
pub fn check_blocks(seed: u32, first_block: u32, crcs: &[u32], payload: &[u8]) -> Result<(), SealError> {
    let mut blocks = payload.chunks(BLOCK);
    let mut crcs = crcs.iter();
    let mut block = first_block;
    loop {
        match (blocks.next(), crcs.next()) {
            (None, None) => return Ok(()),
            (Some(bytes), Some(&crc)) if block_crc(seed, block, bytes) == crc => {
                block = block.wrapping_add(1)
            }
            _ => return Err(SealError { block }),
        }
    }
}

/// The seal of a shard in the making: takes its blocks in as they come, while they are in the processor's caches.
pub struct Sealing {
    seed: u32,
    crcs: Vec<u32>,
    digest: Option<blake3::Hasher>,
}

impl Sealing {
    /// Of a shard whose CRCs have this seed.
    pub fn new(seed: u32) -> Sealing {
        Sealing {
            seed,
            crcs: Vec::new(),
            digest: Some(blake3::Hasher::new()),
        }
    }

    /// The same, of a shard whose digest is known.
    pub fn without_digest(seed: u32) -> Sealing {
        Sealing {
            digest: None,
            ..Sealing::new(seed)
        }
    }

    /// Takes in the next block: [`BLOCK_BYTES`], or fewer if it is the last.
    pub fn take_in(&mut self, block: &[u8]) {
        debug_assert!(block.len() <= BLOCK);
        self.crcs
            .push(block_crc(self.seed, self.crcs.len() as u32, block));
        if let Some(digest) = &mut self.digest {
            digest.update(block);
        }
    }

    /// The CRCs, and the digest if it was not known.
    pub fn finish(self) -> (Vec<u32>, Option<[u8; 32]>) {
        (self.crcs, self.digest.map(|digest| *digest.finalize().as_bytes()))
    }
}

/// The BLAKE3 digest of a shard.
pub fn digest(payload: &[u8]) -> [u8; 32] {
    *blake3::hash(payload).as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn payload(len: usize) -> Vec<u8> {
        (0..=250u8).cycle().take(len).collect()
    }

    /// Made with Python's `zlib.crc32(bytes, (seed + block) % 2**32)`: what is on disks must verify for ever.
    #[test]
    fn crc_vectors() {
        assert_eq!(block_crc(0, 0, b"cairn"), 0x6B2F_CD62);
        assert_eq!(block_crc(3, 4, b"cairn"), 0xD90F_1172);
        assert_eq!(block_crc(u32::MAX, 8, b"cairn"), 0xD90F_1172);
        assert_eq!(
            block_crcs(0xFFFF_FFFE, &payload(150_000)),
            [0x4C87_3029, 0xFCD4_B32F, 0xAB39_1BBF]
        );
        assert_eq!(block_crcs(7, &[]), [0u32; 0]);
    }

    /// The first two are in the BLAKE3 specification's test vectors.
    #[test]
    fn digest_vectors() {
        let hex = |digest: [u8; 32]| {
            digest
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<String>()
        };
        assert_eq!(
            hex(digest(b"")),
            "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
        );
        assert_eq!(
            hex(digest(&[0])),
            "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213"
        );
        assert_eq!(
            hex(digest(b"abc")),
            "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85"
        );
    }

    #[test]
    fn every_length_must_match() {
        let payload = payload(2 * BLOCK + 1);
        let crcs = block_crcs(9, &payload);
        assert_eq!(crcs.len(), 3);
        assert_eq!(check_blocks(9, 0, &crcs, &payload), Ok(()));
        assert_eq!(check_blocks(9, 1, &crcs[1..], &payload[BLOCK..]), Ok(()));
        assert_eq!(
            check_blocks(9, 1, &crcs[1..2], &payload[BLOCK..2 * BLOCK]),
            Ok(())
        );
        assert_eq!(check_blocks(9, 5, &[], &[]), Ok(()));
        let refused =
            |first, crcs: &[u32], payload: &[u8]| check_blocks(9, first, crcs, payload).unwrap_err().block;
        assert_eq!(refused(0, &crcs[..2], &payload), 2);
        assert_eq!(refused(0, &crcs, &payload[..2 * BLOCK]), 2);
        assert_eq!(refused(0, &crcs, &payload[..2 * BLOCK - 1]), 1);
        assert_eq!(refused(0, &crcs, &[]), 0);
        assert_eq!(refused(1, &[], &payload[BLOCK..]), 1);
        assert_eq!(refused(u32::MAX, &crcs, &payload), u32::MAX);
    }

    proptest! {
        #[test]
        fn another_identity_block_or_bit_is_refused(
            len in prop_oneof![Just(1), Just(BLOCK - 1), Just(BLOCK), Just(BLOCK + 1), 1..3 * BLOCK],
            seed: u32,
            other in 1u32..,
            bit: proptest::sample::Index,
        ) {
            let mut payload = payload(len);
            let crcs = block_crcs(seed, &payload);
            prop_assert_eq!(check_blocks(seed, 0, &crcs, &payload), Ok(()));
            let (mut sealing, mut again) = (Sealing::new(seed), Sealing::without_digest(seed));
            payload.chunks(BLOCK).for_each(|block| sealing.take_in(block));
            payload.chunks(BLOCK).for_each(|block| again.take_in(block));
            prop_assert_eq!(sealing.finish(), (crcs.clone(), Some(digest(&payload))));
            prop_assert_eq!(again.finish(), (crcs.clone(), None));
            prop_assert!(check_blocks(seed.wrapping_add(other), 0, &crcs, &payload).is_err());
            prop_assert!(check_blocks(seed, other, &crcs, &payload).is_err());
            let bit = bit.index(len * 8);
            payload[bit / 8] ^= 1 << (bit % 8);
            let block = (bit / 8 / BLOCK) as u32;
            prop_assert_eq!(check_blocks(seed, 0, &crcs, &payload), Err(SealError { block }));
        }
    }
}
