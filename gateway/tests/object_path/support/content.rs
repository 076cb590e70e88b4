//! Bodies to send and to compare: bytes made from a seed, cut as a network would.

use bytes::Bytes;
use futures::StreamExt;
use gateway::error::{Error, Result};
use gateway::object::Body;
use gateway::object::get::Pieces;
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};

/// `len` bytes that another seed would make differently.
pub fn content(seed: u64, len: usize) -> Bytes {
    let mut bytes = vec![0; len];
    StdRng::seed_from_u64(seed ^ 0x9E37_79B9_7F4A_7C15).fill_bytes(&mut bytes);
    bytes.into()
}

/// A body in one piece.
pub fn body(bytes: &Bytes) -> Body {
    let piece = bytes.clone();
    Box::pin(futures::stream::iter((!piece.is_empty()).then_some(Ok(piece))))
}

/// A body cut at random, empty pieces included.
pub fn cut(bytes: &Bytes, seed: u64) -> Body {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut pieces = Vec::new();
    let mut at = 0;
    let most = [7, 1_000, 70_000, 3 << 20][rng.random_range(0..4)].max(bytes.len() / 2_000);
    while at < bytes.len() {
        let end = (at + rng.random_range(0..=most)).min(bytes.len());
        pieces.push(Ok(bytes.slice(at..end)));
        at = end;
    }
    Box::pin(futures::stream::iter(pieces))
}

/// A body that breaks off with an error.
pub fn broken(bytes: &Bytes) -> Body {
    let sent = cut(bytes, 1);
    Box::pin(sent.chain(futures::stream::iter([Err(Error::IncompleteBody)])))
}

/// A body that stops coming and does not end.
pub fn stalled(bytes: &Bytes) -> Body {
    Box::pin(body(bytes).chain(futures::stream::pending()))
}

/// All bytes of a download.
pub async fn drain(mut bytes: Pieces) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    while let Some(piece) = bytes.next().await {
        all.extend_from_slice(&piece?);
    }
    Ok(all)
}
