//! What the ledger knows of a blob's bytes: the CRCs of all blocks of all its shards, as they were sealed when they were written.
//!
//! The seal that comes with a shard says that nothing happened to it on its way. It comes from the node, though, and a node that
//! makes up bytes can make up checksums that match. So what a node sends must have the checksums that the ledger has.
//!
//! ```text
//! stripe 0: shard 0: block 0, block 1, … │ shard 1: … │ … shard k+m-1 ║ stripe 1: …      4 bytes each, little-endian
//! ```
//! All stripes but the last have the same length. It is four bytes for 64 KiB of a shard.
//!
//! Invariant: the row is written in the commit that names the blob, and goes when its shards are deleted everywhere: whoever may
//! read the blob finds it. A blob of before there were such rows has none, and is checked by what comes with it.

use super::Objects;
use super::encode;
use crate::error::{Error, Result};
use crate::ledger::key;
use crate::ledger::model::{BlobRef, SealsRow};
use bytes::{BufMut, Bytes};
use ec_core::Codec;
use storage_node::protocol::{SealedShard, ShardBlocks, block_count};

const CRC_BYTES: usize = 4;

/// Adds a stripe's shards, which are all there and in order.
pub fn append(seals: &mut Vec<u8>, shards: &[SealedShard]) {
    for shard in shards {
        shard
            .seal
            .block_crcs
            .iter()
            .for_each(|crc| seals.put_u32_le(*crc));
    }
}

/// The part of a blob's seals that is about one stripe.
#[derive(Clone, Debug)]
pub struct StripeSeals(Bytes);

impl StripeSeals {
    /// Of a stripe of a blob with these seals.
    pub fn new(codec: &Codec, blob: &BlobRef, stripe: u32, seals: &Bytes) -> Result<StripeSeals> {
        let geometry = encode::geometry(codec, blob.length)?;
        let len = |stripe: u32| {
            codec.scheme().total_shards() * block_count(geometry.shard_len(stripe)) as usize * CRC_BYTES
        };
        let start = stripe as usize * len(0);
        let end = start + len(stripe);
        if end > seals.len() {
            return Err(Error::Internal(format!(
                "the ledger has {} bytes of seals of blob {}, too few for stripe {stripe}",
                seals.len(),
                blob.blob
            )));
        }
        Ok(StripeSeals(seals.slice(start..end)))
    }

    /// Whether these blocks of shard `index` come with the checksums that they were written with.
    pub fn agree(&self, index: u8, shard: &ShardBlocks) -> bool {
        let blocks = block_count(shard.shard_len) as usize;
        let start = (usize::from(index) * blocks + shard.first_block as usize) * CRC_BYTES;
        let end = start + shard.block_crcs.len() * CRC_BYTES;
        let Some(known) = self.0.get(start..end) else {
            return false;
        };
        let (known, _) = known.as_chunks::<CRC_BYTES>();
        known
            .iter()
            .zip(&shard.block_crcs)
            .all(|(known, crc)| u32::from_le_bytes(*known) == *crc)
    }
}

impl Objects {
    /// What the ledger knows of a blob's bytes.
    pub async fn seals(&self, blob: &BlobRef) -> Result<Option<Bytes>> {
        let row = self
            .ledger
            .get::<SealsRow>(key::seals(blob.volume, blob.blob))
            .await?;
        Ok(row.map(|row| row.row.block_crcs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ec_core::Kernel;
    use storage_node::protocol::{BLOCK_BYTES, ShardKey};

    /// Every block of every shard has its own place.
    #[test]
    fn each_block_is_known_and_no_other() {
        let codec = Codec::new("rs(4,2)".parse().unwrap(), Kernel::best()).unwrap();
        let length = (4 << 20) + 700_001;
        let blob = BlobRef {
            volume: 7,
            blob: 9,
            length,
        };
        let content: Bytes = (0..length).map(|i| (i * i % 251) as u8).collect();
        let (mut seals, mut stripes) = (Vec::new(), Vec::new());
        for stripe in 0..2 {
            let key = ShardKey { blob: 9, stripe };
            let start = (stripe as usize) << 22;
            let bytes = content.slice(start..content.len().min(start + (4 << 20)));
            let shards = encode::encode(&codec, &bytes, 7, key).unwrap();
            append(&mut seals, &shards);
            stripes.push(shards);
        }
        let seals = Bytes::from(seals);
        for (stripe, shards) in (0..).zip(&stripes) {
            let known = StripeSeals::new(&codec, &blob, stripe, &seals).unwrap();
            for (index, shard) in (0..).zip(shards) {
                let len = shard.payload.len() as u32;
                for first in 0..block_count(len) {
                    let at = first as usize;
                    let mut read = ShardBlocks {
                        shard_len: len,
                        first_block: first,
                        block_crcs: shard.seal.block_crcs[at..].to_vec(),
                        digests: Vec::new(),
                        payload: shard.payload.slice(at * BLOCK_BYTES as usize..),
                    };
                    assert!(known.agree(index, &read), "{stripe} {index} {first}");
                    assert!(!known.agree((index + 1) % 6, &read), "{stripe} {index} {first}");
                    *read.block_crcs.last_mut().unwrap() ^= 1;
                    assert!(!known.agree(index, &read), "{stripe} {index} {first}");
                }
            }
        }
        assert!(StripeSeals::new(&codec, &blob, 1, &seals.slice(..seals.len() - 1)).is_err());
    }
}
