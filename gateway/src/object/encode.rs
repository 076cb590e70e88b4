//! From the bytes of a stripe to its k+m sealed shards. Pure work for a blocking thread; no I/O.

use crate::error::{Error, Result};
use bytes::{Bytes, BytesMut};
use ec_core::stripe::Geometry;
use ec_core::{Codec, seal};
use storage_node::protocol::{Seal, SealedShard, ShardKey, UnitId, seal_seed};

/// Codes and seals one stripe of 1 to k × 1 MiB bytes. The data shards are slices of it; only one that the stripe's end
/// cuts short is copied, to be padded with zeros.
pub fn encode(codec: &Codec, stripe: &Bytes, volume: u64, key: ShardKey) -> Result<Vec<SealedShard>> {
    let payloads = shards(codec, stripe)?;
    let digests: Vec<[u8; 32]> = match codec.scheme().data_shards() {
        // Copies are equal: one digest serves all.
        1 => vec![seal::digest(&payloads[0]); payloads.len()],
        _ => payloads.iter().map(|p| seal::digest(p)).collect(),
    };
    let seal_one = |(index, payload): (usize, Bytes)| {
        let unit = UnitId {
            volume,
            index: index as u8,
        };
        let seed = seal_seed(unit, key, payload.len() as u32);
        let seal = Seal {
            block_crcs: seal::block_crcs(seed, &payload),
            digests: digests.clone(),
        };
        SealedShard { key, seal, payload }
    };
    Ok(payloads.into_iter().enumerate().map(seal_one).collect())
}

/// The k data shards and m parity shards of a stripe, in index order.
fn shards(codec: &Codec, stripe: &Bytes) -> Result<Vec<Bytes>> {
    let (data, parity) = (codec.scheme().data_shards(), codec.scheme().parity_shards());
    if stripe.is_empty() {
        return Err(Error::Internal("an empty stripe".into()));
    }
    if data == 1 {
        return Ok(vec![stripe.clone(); 1 + parity]);
    }
    let shard_len = stripe.len().div_ceil(data);
    let mut all: Vec<Bytes> = (0..data).map(|i| data_shard(stripe, i, shard_len)).collect();
    let mut coded = BytesMut::zeroed(parity * shard_len);
    let sources: Vec<&[u8]> = all.iter().map(|b| b.as_ref()).collect();
    let mut targets: Vec<&mut [u8]> = coded.chunks_mut(shard_len).collect();
    codec
        .encode(&sources, &mut targets)
        .map_err(|e| Error::Internal(format!("encode: {e}")))?;
    let coded = coded.freeze();
    all.extend((0..parity).map(|i| coded.slice(i * shard_len..(i + 1) * shard_len)));
    Ok(all)
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
