//! Many shards in one body (integers little-endian).
//!
//! ```text
//! keys    for each:   0  blob 8 · stripe 4
//! put     for each:   0  blob 8 · stripe 4 · bytes 4     16  a shard, as one that is put alone
//! get     for each:   0  0: blocks, 1: an error · bytes 4   5  blocks, or the error's JSON
//! put's answer        a JSON list: null, or the error, for each
//! ```
//! Invariant: as for one shard, a decoder believes no length that the body does not have; and what was decoded encodes to the
//! same bytes, but for the JSON.

use super::{Pieces, bad, decode_blocks, decode_shard, encode_blocks, encode_shard};
use crate::client::MANY_SHARDS_MAX;
use crate::protocol::{NodeError, SealedShard, ShardBlocks, ShardKey};
use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Pieces up to this length are joined: a frame for each would cost more than the copy.
const JOINED_MAX: usize = 16 * 1024;
const KEY_BYTES: usize = 12;
const BLOCKS: u8 = 0;
const ERROR: u8 = 1;

/// Pieces in the making.
#[derive(Default)]
struct Joining {
    pieces: Vec<Bytes>,
    small: BytesMut,
}

impl Joining {
    fn push(&mut self, piece: Bytes) {
        if piece.len() <= JOINED_MAX {
            return self.small.put_slice(&piece);
        }
        self.pieces.push(self.small.split().freeze());
        self.pieces.push(piece);
    }

    fn push_key(&mut self, key: ShardKey) {
        self.small.put_u64_le(key.blob);
        self.small.put_u32_le(key.stripe);
    }

    fn push_sized(&mut self, body: Pieces) {
        let bytes: usize = body.0.iter().map(Bytes::len).sum();
        self.small.put_u32_le(bytes as u32);
        body.0.into_iter().for_each(|piece| self.push(piece));
    }

    fn done(mut self) -> Pieces {
        self.pieces.push(self.small.freeze());
        Pieces::new(self.pieces)
    }
}

/// So many bytes of the body, which says first how many.
fn take_sized(body: &mut Bytes) -> Result<Bytes, NodeError> {
    let cut = || bad("a list of shards cut short");
    let bytes = body.try_get_u32_le().map_err(|_| cut())? as usize;
    match bytes <= body.len() {
        true => Ok(body.split_to(bytes)),
        false => Err(cut()),
    }
}

fn take_key(body: &mut Bytes) -> Result<ShardKey, NodeError> {
    if body.len() < KEY_BYTES {
        return Err(bad("a list of shards cut short"));
    }
    Ok(ShardKey {
        blob: body.get_u64_le(),
        stripe: body.get_u32_le(),
    })
}

/// Takes one after the other until the body ends.
fn take_all<T>(
    mut body: Bytes,
    take: impl Fn(&mut Bytes) -> Result<T, NodeError>,
) -> Result<Vec<T>, NodeError> {
    let mut all = Vec::new();
    while !body.is_empty() {
        if all.len() == MANY_SHARDS_MAX {
            return Err(bad("too many shards in one request"));
        }
        all.push(take(&mut body)?);
    }
    Ok(all)
}

/// Names of shards.
pub fn encode_keys(keys: &[ShardKey]) -> Pieces {
    let mut joining = Joining::default();
    keys.iter().for_each(|key| joining.push_key(*key));
    joining.done()
}

/// The names in a body.
pub fn decode_keys(body: Bytes) -> Result<Vec<ShardKey>, NodeError> {
    take_all(body, take_key)
}

/// Shards to be stored.
pub fn encode_shards(shards: &[SealedShard]) -> Pieces {
    let mut joining = Joining::default();
    for shard in shards {
        joining.push_key(shard.key);
        joining.push_sized(encode_shard(shard));
    }
    joining.done()
}

/// The shards in a body.
pub fn decode_shards(body: Bytes) -> Result<Vec<SealedShard>, NodeError> {
    take_all(body, |body| {
        let key = take_key(body)?;
        decode_shard(key, take_sized(body)?)
    })
}

/// What reading each of some shards came to.
pub fn encode_reads(reads: &[Result<ShardBlocks, NodeError>]) -> Pieces {
    let mut joining = Joining::default();
    for read in reads {
        match read {
            Ok(blocks) => {
                joining.small.put_u8(BLOCKS);
                joining.push_sized(encode_blocks(blocks));
            }
            Err(error) => {
                joining.small.put_u8(ERROR);
                // Strings and numbers alone: it always can be written.
                let json = serde_json::to_vec(error).unwrap_or_default();
                joining.push_sized(Pieces::new([json.into()]));
            }
        }
    }
    joining.done()
}

/// What a body says that reading each of some shards came to.
pub fn decode_reads(body: Bytes) -> Result<Vec<Result<ShardBlocks, NodeError>>, NodeError> {
    take_all(body, |body| match body.get_u8() {
        BLOCKS => Ok(Ok(decode_blocks(take_sized(body)?)?)),
        ERROR => {
            let error = serde_json::from_slice(&take_sized(body)?);
            error
                .map(Err)
                .map_err(|_| bad("an error that is none in a list of shards"))
        }
        _ => Err(bad("neither blocks nor an error in a list of shards")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{BLOCK_BYTES, Seal};

    fn joined(pieces: Pieces) -> Bytes {
        pieces
            .0
            .iter()
            .flat_map(|piece| piece.to_vec())
            .collect::<Vec<u8>>()
            .into()
    }

    fn shard(blob: u64, len: usize) -> SealedShard {
        SealedShard {
            key: ShardKey { blob, stripe: 7 },
            seal: Seal {
                block_crcs: vec![3; len.div_ceil(BLOCK_BYTES as usize)],
                digests: vec![[4; 32]; 6],
            },
            payload: vec![blob as u8; len].into(),
        }
    }

    #[test]
    fn many_come_back_in_their_order_and_any_other_length_is_refused() {
        let shards: Vec<SealedShard> = [1, 4096, 100_000, 16 * 1024, 17 * 1024, 1 << 20]
            .into_iter()
            .enumerate()
            .map(|(blob, len)| shard(blob as u64, len))
            .collect();
        let body = joined(encode_shards(&shards));
        assert_eq!(decode_shards(body.clone()), Ok(shards.clone()));
        for cut in [1, 5, 1 << 20, body.len() - 3] {
            assert!(decode_shards(body.slice(..body.len() - cut)).is_err());
        }
        let keys: Vec<ShardKey> = shards.iter().map(|shard| shard.key).collect();
        assert_eq!(decode_keys(joined(encode_keys(&keys))), Ok(keys));

        let read = |shard: SealedShard| ShardBlocks {
            shard_len: shard.payload.len() as u32,
            first_block: 0,
            block_crcs: shard.seal.block_crcs,
            digests: shard.seal.digests,
            payload: shard.payload,
        };
        let mut reads: Vec<_> = shards.into_iter().map(|shard| Ok(read(shard))).collect();
        reads.insert(2, Err(NodeError::NotFound));
        reads.push(Err(NodeError::StaleEpoch { current: 9 }));
        let body = joined(encode_reads(&reads));
        assert_eq!(decode_reads(body.clone()), Ok(reads));
        assert!(decode_reads(body.slice(..body.len() - 1)).is_err());
    }

    #[test]
    fn more_than_the_bound_is_refused() {
        let keys = vec![ShardKey { blob: 1, stripe: 1 }; MANY_SHARDS_MAX + 1];
        assert!(decode_keys(joined(encode_keys(&keys))).is_err());
        assert!(decode_keys(joined(encode_keys(&keys[1..]))).is_ok());
    }
}
