//! From the bytes of a stripe to its k+m sealed shards. Pure work for a blocking thread; no I/O.

use crate::error::{Error, Result};
use bytes::{Bytes, BytesMut};
use ec_core::Codec;
use ec_core::seal::Sealing;
use ec_core::stripe::Geometry;
use storage_node::device::AlignedBuf;
use storage_node::protocol::{BLOCK_BYTES, Seal, SealedShard, ShardKey, UnitId, seal_seed};

/// Codes and seals one stripe of 1 to k × 1 MiB bytes. The data shards are slices of it; only one that the stripe's end
/// cuts short is copied, to be padded with zeros.
///
/// Block after block of all shards: what is coded is sealed while it is in the processor's caches.
pub fn encode(codec: &Codec, stripe: &Bytes, volume: u64, key: ShardKey) -> Result<Vec<SealedShard>> {
    if stripe.is_empty() {
        return Err(Error::Internal("an empty stripe".into()));
    }
    let (data, total) = (codec.scheme().data_shards(), codec.scheme().total_shards());
    let shard_len = stripe.len().div_ceil(data);
    let seed = |index| {
        let index = index as u8;
        seal_seed(UnitId { volume, index }, key, shard_len as u32)
    };
    // Copies are equal: one digest serves all.
    let is_copy = |index| data == 1 && index > 0;
    let mut sealing: Vec<Sealing> = (0..total)
        .map(|index| match is_copy(index) {
            true => Sealing::without_digest(seed(index)),
            false => Sealing::new(seed(index)),
        })
        .collect();
    let mut payloads: Vec<Bytes> = (0..data)
        .map(|index| data_shard(stripe, index, shard_len))
        .collect();
    // Anything may be in them: coding fills them.
    let mut parity: Vec<AlignedBuf> = match data {
        1 => Vec::new(),
        _ => (data..total).map(|_| AlignedBuf::recycled(shard_len)).collect(),
    };
    for start in (0..shard_len).step_by(BLOCK_BYTES as usize) {
        let block = start..shard_len.min(start + BLOCK_BYTES as usize);
        let sources: Vec<&[u8]> = payloads.iter().map(|shard| &shard[block.clone()]).collect();
        let mut targets: Vec<&mut [u8]> = parity.iter_mut().map(|shard| &mut shard[block.clone()]).collect();
        if data > 1 {
            codec
                .encode(&sources, &mut targets)
                .map_err(|e| Error::Internal(format!("encode: {e}")))?;
        }
        let coded = targets.iter().map(|target| &**target);
        let blocks = sources.iter().copied().chain(coded);
        let copies = std::iter::repeat(sources[0]);
        sealing
            .iter_mut()
            .zip(blocks.chain(copies))
            .for_each(|(sealing, block)| sealing.take_in(block));
    }
    match data {
        1 => payloads.resize(total, stripe.clone()),
        _ => payloads.extend(
            parity
                .into_iter()
                .map(|shard| Bytes::from_owner(shard).slice(..shard_len)),
        ),
    }
    let (block_crcs, digests): (Vec<_>, Vec<_>) = sealing.into_iter().map(Sealing::finish).unzip();
    let digests: Option<Vec<[u8; 32]>> = digests.iter().map(|digest| digest.or(digests[0])).collect();
    let digests = digests.ok_or_else(|| Error::Internal("a shard without a digest".into()))?;
    let sealed = |(block_crcs, payload)| {
        let digests = digests.clone();
        let seal = Seal { block_crcs, digests };
        SealedShard { key, seal, payload }
    };
    Ok(block_crcs.into_iter().zip(payloads).map(sealed).collect())
}

fn data_shard(stripe: &Bytes, index: usize, shard_len: usize) -> Bytes {
    let start = (index * shard_len).min(stripe.len());
    let end = (start + shard_len).min(stripe.len());
    if end - start == shard_len {
        return stripe.slice(start..end);
    }
    let mut padded = BytesMut::with_capacity(shard_len);
    padded.extend_from_slice(&stripe[start..end]);
    padded.resize(shard_len, 0);
    padded.freeze()
}

/// The geometry of a blob, which the ledger vouches for.
pub fn geometry(codec: &Codec, blob_len: u64) -> Result<Geometry> {
    Geometry::new(codec.scheme().data_shards(), blob_len)
        .map_err(|e| Error::Internal(format!("geometry: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ec_core::{Kernel, Scheme};
    use storage_node::protocol::block_crc;

    #[test]
    fn both_sides_of_the_envelope_compute_the_same_seal() {
        let codec = Codec::new(Scheme::rs(4, 2).expect("scheme"), Kernel::best()).expect("codec");
        let key = ShardKey { blob: 77, stripe: 3 };
        for len in [1, 3, 4, 5, 262_144, 262_145, 1_000_003, 4 << 20] {
            let bytes: Vec<u8> = (0..len).map(|i| ((i * 31) >> 2) as u8).collect();
            let shards = encode(&codec, &Bytes::from(bytes.clone()), 9, key).expect("encode");
            assert_eq!(shards.len(), 6);
            let joined: Vec<u8> = shards[..4].iter().flat_map(|s| s.payload.to_vec()).collect();
            assert_eq!(&joined[..len], &bytes[..]);
            for (index, shard) in shards.iter().enumerate() {
                let unit = UnitId {
                    volume: 9,
                    index: index as u8,
                };
                let seed = seal_seed(unit, key, shard.payload.len() as u32);
                for (block, bytes) in shard.payload.chunks(64 << 10).enumerate() {
                    assert_eq!(shard.seal.block_crcs[block], block_crc(seed, block as u32, bytes));
                }
                assert_eq!(
                    shard.seal.digests[index],
                    *blake3::hash(&shard.payload).as_bytes()
                );
            }
        }
    }
}
