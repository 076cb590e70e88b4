//! What crosses a socket: paths, the deadline header, binary bodies, errors as JSON.
//!
//! A shard on the wire, in both directions (integers little-endian):
//! ```text
//!   0  shard length    4
//!   4  first block     4   0 in a put
//!   8  payload bytes   4
//!  12  block CRCs      2
//!  14  digests         2
//!  16  the CRCs, 4 each; the digests, 32 each; the payload, to the end of the body
//! ```
//! Many shards in one body: [`many`].
//!
//! Invariant: a decoder believes no length that the body does not have, and never panics.

pub mod many;

use crate::client::{MANY_BYTES_MAX, MANY_SHARDS_MAX};
use crate::protocol::{
    BLOCK_BYTES, DiskId, NodeError, SHARD_BYTES_MAX, STRIPE_SHARDS_MAX, Seal, SealedShard, ShardBlocks,
    ShardKey, UnitAddress, block_count,
};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::StatusCode;
use hyper::body::{Body, Frame, SizeHint};
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

/// Milliseconds that the caller will wait.
pub const DEADLINE_HEADER: &str = "cairn-deadline-ms";
/// No request takes longer than this, whatever its header says.
pub const DEADLINE_MAX: Duration = Duration::from_secs(600);
/// The longest body: a shard with the longest tables.
pub const BODY_BYTES_MAX: usize =
    HEAD_BYTES + 4 * 65536 / 64 + 32 * STRIPE_SHARDS_MAX + SHARD_BYTES_MAX as usize;
/// The longest body of many shards: their payloads, and the longest tables for each.
pub const MANY_BODY_BYTES_MAX: usize =
    MANY_BYTES_MAX + MANY_SHARDS_MAX * (BODY_BYTES_MAX - SHARD_BYTES_MAX as usize + 16);
/// The longest JSON answer: a page of the inventory, or many units.
pub const JSON_BYTES_MAX: usize = 64 << 20;

/// The longest JSON of a request.
pub const REQUEST_JSON_BYTES_MAX: usize = 16 << 10;

/// The path of formatting a blank disk.
pub const FORMAT_PATH: &str = "/v1/format";

const HEAD_BYTES: usize = 16;

/// The header that says for which generation of the ledger a change is asked for.
pub const LEDGER_HEADER: &str = "cairn-ledger";

/// The path by which a gateway says that it is there.
pub const BEAT_PATH: &str = "/v1/beat";

/// The path of a unit, without the generation of the caller's ledger, which goes in [`LEDGER_HEADER`].
pub fn unit_path(address: &UnitAddress) -> String {
    let UnitAddress {
        disk,
        incarnation,
        unit,
        epoch,
        ledger: _,
    } = address;
    format!(
        "/v1/disks/{disk}/{incarnation}/units/{}/{}/{epoch}",
        unit.volume, unit.index
    )
}

/// The path by which a disk is told which ledger it obeys.
pub fn obey_path(disk: DiskId, incarnation: u64) -> String {
    format!("/v1/disks/{disk}/{incarnation}/obey")
}

/// The path by which a disk is asked to change nothing for a while.
pub fn still_path(disk: DiskId, incarnation: u64) -> String {
    format!("/v1/disks/{disk}/{incarnation}/still")
}

/// The path of a disk's units.
pub fn units_path(disk: DiskId, incarnation: u64) -> String {
    format!("/v1/disks/{disk}/{incarnation}/units")
}

/// The path of what verifying a disk found.
pub fn findings_path(disk: DiskId, incarnation: u64, after: u64) -> String {
    format!("/v1/disks/{disk}/{incarnation}/findings?after={after}")
}

/// The path of how a disk is verified.
pub fn verify_path(disk: DiskId, incarnation: u64) -> String {
    format!("/v1/disks/{disk}/{incarnation}/verify")
}

/// The path of admitting a disk.
pub fn admit_path(disk: DiskId, incarnation: u64) -> String {
    format!("/v1/disks/{disk}/{incarnation}/admit")
}

fn bad(what: &str) -> NodeError {
    NodeError::BadRequest { what: what.into() }
}

/// A body of a few pieces, sent without joining them.
pub struct Pieces(std::collections::VecDeque<Bytes>);

impl Pieces {
    /// A body of these pieces.
    pub fn new(pieces: impl IntoIterator<Item = Bytes>) -> Self {
        Pieces(pieces.into_iter().filter(|piece| !piece.is_empty()).collect())
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop_front().map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.iter().map(|piece| piece.len() as u64).sum())
    }
}

fn encode_head(
    shard_len: u32,
    first_block: u32,
    payload: usize,
    crcs: &[u32],
    digests: &[[u8; 32]],
) -> Bytes {
    let mut head = BytesMut::with_capacity(HEAD_BYTES + 4 * crcs.len() + 32 * digests.len());
    head.put_u32_le(shard_len);
    head.put_u32_le(first_block);
    head.put_u32_le(payload as u32);
    head.put_u16_le(crcs.len() as u16);
    head.put_u16_le(digests.len() as u16);
    crcs.iter().for_each(|crc| head.put_u32_le(*crc));
    digests.iter().for_each(|digest| head.put_slice(digest));
    head.freeze()
}

/// A shard to be stored.
pub fn encode_shard(shard: &SealedShard) -> Pieces {
    let (seal, len) = (&shard.seal, shard.payload.len());
    let head = encode_head(len as u32, 0, len, &seal.block_crcs, &seal.digests);
    Pieces::new([head, shard.payload.clone()])
}

/// Blocks that were read.
pub fn encode_blocks(blocks: &ShardBlocks) -> Pieces {
    let payload = blocks.payload.clone();
    let head = encode_head(
        blocks.shard_len,
        blocks.first_block,
        payload.len(),
        &blocks.block_crcs,
        &blocks.digests,
    );
    Pieces::new([head, payload])
}

/// The blocks in a body.
pub fn decode_blocks(mut body: Bytes) -> Result<ShardBlocks, NodeError> {
    if body.len() < HEAD_BYTES {
        return Err(bad("a shard body cut short"));
    }
    let (shard_len, first_block, payload) = (body.get_u32_le(), body.get_u32_le(), body.get_u32_le());
    let (crcs, digests) = (usize::from(body.get_u16_le()), usize::from(body.get_u16_le()));
    if shard_len > SHARD_BYTES_MAX || digests > STRIPE_SHARDS_MAX {
        return Err(bad("a shard body out of bounds"));
    }
    if body.len() != 4 * crcs + 32 * digests + payload as usize {
        return Err(bad("a shard body of another length than it says"));
    }
    // Whole blocks of the shard, one CRC each: nobody who counts on from them may find others.
    let start = u64::from(first_block) * u64::from(BLOCK_BYTES);
    let rest = u64::from(shard_len).saturating_sub(start);
    let whole =
        u64::from(payload) == rest || payload.is_multiple_of(BLOCK_BYTES) && u64::from(payload) < rest;
    if first_block > block_count(shard_len) || !whole && payload > 0 || crcs != block_count(payload) as usize
    {
        return Err(bad("a shard body whose blocks do not fit the shard"));
    }
    let block_crcs = (0..crcs).map(|_| body.get_u32_le()).collect();
    let table = body.split_to(32 * digests);
    let digests = table.as_chunks::<32>().0.to_vec();
    Ok(ShardBlocks {
        shard_len,
        first_block,
        block_crcs,
        digests,
        payload: body,
    })
}

/// The shard in a body.
pub fn decode_shard(key: ShardKey, body: Bytes) -> Result<SealedShard, NodeError> {
    let blocks = decode_blocks(body)?;
    if blocks.shard_len as usize != blocks.payload.len() || blocks.first_block != 0 {
        return Err(bad("a put of part of a shard"));
    }
    let seal = Seal {
        block_crcs: blocks.block_crcs,
        digests: blocks.digests,
    };
    Ok(SealedShard {
        key,
        seal,
        payload: blocks.payload,
    })
}

/// Blob ids.
pub fn encode_blobs(blobs: &[u64]) -> Pieces {
    Pieces::new([blobs
        .iter()
        .flat_map(|blob| blob.to_le_bytes())
        .collect::<Vec<u8>>()
        .into()])
}

/// The blob ids in a body.
pub fn decode_blobs(body: &[u8]) -> Result<Vec<u64>, NodeError> {
    let (ids, rest) = body.as_chunks::<8>();
    if !rest.is_empty() {
        return Err(bad("a list of blobs cut short"));
    }
    Ok(ids.iter().map(|id| u64::from_le_bytes(*id)).collect())
}

/// The status that fits an error, for people and proxies; the client decides on the JSON.
pub fn status_of(error: &NodeError) -> StatusCode {
    match error {
        NodeError::NotFound => StatusCode::NOT_FOUND,
        NodeError::WrongDisk => StatusCode::MISDIRECTED_REQUEST,
        NodeError::Deleted => StatusCode::GONE,
        NodeError::Corrupt { .. } | NodeError::Io { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        NodeError::SealMismatch { .. } => StatusCode::UNPROCESSABLE_ENTITY,
        NodeError::Fenced { .. } | NodeError::Overloaded => StatusCode::SERVICE_UNAVAILABLE,
        NodeError::NoSpace => StatusCode::INSUFFICIENT_STORAGE,
        NodeError::StaleEpoch { .. } | NodeError::OtherLedger { .. } => StatusCode::CONFLICT,
        NodeError::BadRequest { .. } => StatusCode::BAD_REQUEST,
        NodeError::Timeout => StatusCode::GATEWAY_TIMEOUT,
        NodeError::Unreachable { .. } | NodeError::Garbled { .. } => StatusCode::BAD_GATEWAY,
    }
}

/// The error in an answer that is not a success.
pub fn decode_error(status: StatusCode, body: &[u8]) -> NodeError {
    serde_json::from_slice(body).unwrap_or_else(|_| NodeError::Garbled {
        what: format!("answered {status}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Generation;
    use proptest::prelude::*;

    fn joined(pieces: Pieces) -> Bytes {
        pieces
            .0
            .iter()
            .flat_map(|piece| piece.to_vec())
            .collect::<Vec<u8>>()
            .into()
    }

    proptest! {
        #[test]
        fn any_body_is_decoded_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let _ = decode_blobs(&bytes);
            let _ = decode_error(StatusCode::CONFLICT, &bytes);
            let _ = decode_shard(ShardKey { blob: 1, stripe: 1 }, bytes.clone().into());
            let _ = decode_blocks(bytes.into());
        }

        #[test]
        fn a_shard_comes_back_and_any_other_length_is_refused(
            len in 1..200_000usize, digests in 1..255usize, cut in 1..100usize,
        ) {
            let key = ShardKey { blob: 1, stripe: 1 };
            let seal = Seal { block_crcs: vec![7; len.div_ceil(65536)], digests: vec![[8; 32]; digests] };
            let shard = SealedShard { key, seal, payload: vec![9; len].into() };
            let body = joined(encode_shard(&shard));
            prop_assert!(body.len() <= BODY_BYTES_MAX);
            prop_assert_eq!(decode_shard(key, body.clone()), Ok(shard));
            prop_assert!(decode_shard(key, body.slice(..body.len() - cut.min(body.len()))).is_err());
        }
    }

    /// A node that answers nonsense must not make its caller count blocks that are not there.
    #[test]
    fn blocks_that_do_not_fit_their_shard_are_refused() {
        let blocks = |shard_len, first_block, len, crcs| ShardBlocks {
            shard_len,
            first_block,
            block_crcs: vec![7; crcs],
            digests: vec![[8; 32]; 6],
            payload: vec![9; len].into(),
        };
        let decoded = |blocks: ShardBlocks| decode_blocks(joined(encode_blocks(&blocks)));
        for right in [
            blocks(100_000, 0, 100_000, 2),
            blocks(100_000, 0, 65536, 1),
            blocks(100_000, 1, 34_464, 1),
            blocks(100_000, 2, 0, 0),
            blocks(100_000, 0, 0, 0),
        ] {
            assert_eq!(decoded(right.clone()), Ok(right));
        }
        for wrong in [
            blocks(100_000, u32::MAX, 65536, 1),
            blocks(100_000, 1, 65536, 1),
            blocks(100_000, 0, 65536, 2),
            blocks(100_000, 0, 70_000, 2),
            blocks(100_000, 0, 65536, 0),
        ] {
            assert!(decoded(wrong).is_err());
        }
    }

    #[test]
    fn every_error_survives_the_wire() {
        let what = || "x".to_string();
        let errors = [
            NodeError::NotFound,
            NodeError::Deleted,
            NodeError::Corrupt { what: what() },
            NodeError::SealMismatch { what: what() },
            NodeError::Io { what: what() },
            NodeError::Fenced { reason: what() },
            NodeError::NoSpace,
            NodeError::StaleEpoch { current: 4 },
            NodeError::OtherLedger {
                current: Generation { number: 7, nonce: 9 },
            },
            NodeError::WrongDisk,
            NodeError::BadRequest { what: what() },
            NodeError::Overloaded,
            NodeError::Timeout,
            NodeError::Unreachable { what: what() },
            NodeError::Garbled { what: what() },
        ];
        for error in errors {
            let body = serde_json::to_vec(&error).unwrap();
            assert!(!status_of(&error).is_success());
            assert_eq!(decode_error(status_of(&error), &body), error);
        }
    }
}
