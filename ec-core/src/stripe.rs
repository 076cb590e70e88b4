//! Where the bytes of a blob are: which stripe, which data shard, at what offset.
//!
//! ```text
//! blob    |<------ stripe 0: k × 1 MiB ------>|<- stripe 1 ->|<- last stripe: what is left ->|
//! stripe  |<- shard 0 ->|<- shard 1 ->| … |<- shard k-1 ->|
//!           each ceil(stripe_len / k) bytes; the stripe's bytes lie in them one after the other,
//!           and what the last ones have too many is zeros
//! ```
//!
//! A data shard holds contiguous bytes, so that a small range read touches one disk. Only the last stripe of a blob can
//! be short, and only it has padding. With few bytes the last data shards may be padding altogether: 5 bytes over 4 shards are
//! 2, 2, 1, 0. Parity shards are as long as data shards.
//!
//! Invariants: pure; exact at every length, 0 included; lengths and offsets out of range give nothing rather than panic.

use crate::error::{Error, Result};
use crate::scheme::STRIPE_SHARDS_MAX;
use std::ops::Range;

/// The most bytes of one shard.
pub const SHARD_BYTES_MAX: u32 = 1024 * 1024;

/// The most bytes of one blob.
pub const BLOB_BYTES_MAX: u64 = 64 * 1024 * 1024;

// A stripe of the most shards still has a length that fits u32, and so has everything inside of it.
const _: () = assert!(STRIPE_SHARDS_MAX as u64 * SHARD_BYTES_MAX as u64 <= u32::MAX as u64);

/// How one blob is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    data_shards: u32,
    blob_len: u64,
    /// [`SHARD_BYTES_MAX`], but for tests that check every range of a small blob.
    shard_bytes_max: u32,
}

/// Consecutive bytes of a blob that lie in one data shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The stripe, from 0.
    pub stripe: u32,
    /// The data shard.
    pub shard: u8,
    /// Where in the shard they start.
    pub offset: u32,
    /// How many there are, at least 1.
    pub len: u32,
}

impl Geometry {
    /// The geometry of a blob of `blob_len` bytes over `data_shards` data shards.
    pub fn new(data_shards: usize, blob_len: u64) -> Result<Geometry> {
        if blob_len > BLOB_BYTES_MAX {
            return Err(Error::BlobTooLong { len: blob_len });
        }
        match u32::try_from(data_shards) {
            Ok(count) if (1..=STRIPE_SHARDS_MAX).contains(&data_shards) => Ok(Geometry {
                data_shards: count,
                blob_len,
                shard_bytes_max: SHARD_BYTES_MAX,
            }),
            _ => Err(Error::BadDataShards(data_shards)),
        }
    }

    /// Bytes in the blob.
    pub fn blob_len(&self) -> u64 {
        self.blob_len
    }

    /// How many stripes the blob has; none if it is empty.
    pub fn stripes(&self) -> u32 {
        // At most BLOB_BYTES_MAX: it fits.
        self.blob_len.div_ceil(self.stripe_bytes_max()) as u32
    }

    /// Where in the blob a stripe starts.
    pub fn stripe_start(&self, stripe: u32) -> u64 {
        u64::from(stripe) * self.stripe_bytes_max()
    }

    /// Bytes of the blob in a stripe; 0 past the last.
    pub fn stripe_len(&self, stripe: u32) -> u32 {
        let left = self.blob_len.saturating_sub(self.stripe_start(stripe));
        left.min(self.stripe_bytes_max()) as u32
    }

    /// Bytes of each shard of a stripe, data and parity, padding included; 0 past the last stripe.
    pub fn shard_len(&self, stripe: u32) -> u32 {
        self.stripe_len(stripe).div_ceil(self.data_shards)
    }

    /// Bytes of the blob in one data shard of a stripe; what the shard has beyond them is zeros.
    pub fn data_len(&self, stripe: u32, shard: u8) -> u32 {
        if u32::from(shard) >= self.data_shards {
            return 0;
        }
        let shard_len = self.shard_len(stripe);
        self.stripe_len(stripe)
            .saturating_sub(u32::from(shard) * shard_len)
            .min(shard_len)
    }

    /// What to read for a range of the blob's bytes, in order. What lies past the blob's end gives no pieces.
    pub fn pieces(&self, range: Range<u64>) -> impl Iterator<Item = Piece> + use<> {
        let geometry = *self;
        let end = range.end.min(self.blob_len);
        let mut at = range.start;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let piece = geometry.piece(at, end);
            at += u64::from(piece.len);
            Some(piece)
        })
    }

    /// The longest piece that starts at `at` and ends by `end`; `at` < `end` ≤ the blob's length.
    fn piece(&self, at: u64, end: u64) -> Piece {
        let stripe = (at / self.stripe_bytes_max()) as u32;
        let in_stripe = (at % self.stripe_bytes_max()) as u32;
        let shard_len = self.shard_len(stripe);
        // Below k ≤ 255, since in_stripe < stripe_len ≤ k × shard_len.
        let shard = (in_stripe / shard_len) as u8;
        let offset = in_stripe % shard_len;
        let len = u64::from(self.data_len(stripe, shard) - offset).min(end - at) as u32;
        Piece {
            stripe,
            shard,
            offset,
            len,
        }
    }

    fn stripe_bytes_max(&self) -> u64 {
        u64::from(self.data_shards) * u64::from(self.shard_bytes_max)
    }
}

#[cfg(test)]
mod tests;
