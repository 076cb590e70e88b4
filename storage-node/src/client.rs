//! How a gateway reaches a storage node: one trait, called in-process or over HTTP.
//!
//! Every method is bounded by `deadline` inside the implementation, is safe to drop at any await, and answers with
//! a typed [`NodeError`]. `put`, `put_many` and `delete` answer once the change is durable: flushed, not in a cache.

use crate::protocol::{
    AdmitRequest, Beat, BlockRange, DiskId, Findings, FormatRequest, InventoryEntry, LedgerMarks, NodeError,
    NodeStatus, SealedShard, ShardBlocks, ShardKey, Still, UnitAddress, UnitInfo, VerifyOrder,
};
use async_trait::async_trait;
use std::time::Duration;

/// A storage node, wherever it is.
#[async_trait]
pub trait StorageClient: Send + Sync + 'static {
    /// Stores one shard, durably. Storing the same key again supersedes the earlier record (repair does that).
    /// A put creates the unit on the disk if the disk has none, and raises the unit's epoch to the address's.
    async fn put(&self, to: &UnitAddress, shard: SealedShard, deadline: Duration) -> Result<(), NodeError>;

    /// Reads whole blocks of a shard. The bytes come as the disk had them: the caller checks them against the CRCs.
    async fn get(
        &self,
        from: &UnitAddress,
        key: ShardKey,
        blocks: BlockRange,
        deadline: Duration,
    ) -> Result<ShardBlocks, NodeError>;

    /// Reads whole shards of a unit, in any number up to [`MANY_SHARDS_MAX`] and [`MANY_BYTES_MAX`] of payload: those that lie
    /// next to each other with few reads of the disk. One answer for each key, in their order; an error outside is of all.
    async fn get_many(
        &self,
        from: &UnitAddress,
        keys: &[ShardKey],
        deadline: Duration,
    ) -> Result<Vec<Result<ShardBlocks, NodeError>>, NodeError>;

    /// Stores shards as [`StorageClient::put`] does, within the same bounds, sharing batches and flushes. One answer for each,
    /// in their order; after an error outside, any of them may have been stored.
    async fn put_many(
        &self,
        to: &UnitAddress,
        shards: Vec<SealedShard>,
        deadline: Duration,
    ) -> Result<Vec<Result<(), NodeError>>, NodeError>;

    /// Deletes every shard of each blob from the unit, durably and for ever: blob ids are never reused, and a late
    /// put of a deleted blob is refused while the disk remembers the delete. Idempotent; unknown blobs are no error.
    /// At most [`DELETE_BLOBS_MAX`] blobs a call.
    async fn delete(&self, from: &UnitAddress, blobs: &[u64], deadline: Duration) -> Result<(), NodeError>;

    /// Lists the live shards of a unit in key order, those after `after`, at most `limit` (bounded to
    /// [`INVENTORY_LIMIT_MAX`]).
    async fn inventory(
        &self,
        from: &UnitAddress,
        after: Option<ShardKey>,
        limit: usize,
        deadline: Duration,
    ) -> Result<Vec<InventoryEntry>, NodeError>;

    /// Lists the units of a disk, by unit id.
    async fn units(
        &self,
        disk: DiskId,
        incarnation: u64,
        deadline: Duration,
    ) -> Result<Vec<UnitInfo>, NodeError>;

    /// Drops a whole unit and everything in it.
    async fn drop_unit(&self, unit: &UnitAddress, deadline: Duration) -> Result<(), NodeError>;

    /// What verifying a disk found, all that was numbered above `after`.
    async fn findings(
        &self,
        disk: DiskId,
        incarnation: u64,
        after: u64,
        deadline: Duration,
    ) -> Result<Findings, NodeError>;

    /// Says how a disk is to be verified; returns without waiting for it.
    async fn verify(
        &self,
        disk: DiskId,
        incarnation: u64,
        order: &VerifyOrder,
        deadline: Duration,
    ) -> Result<(), NodeError>;

    /// Admits a disk as it was opened, durably. The same request again is no error; one with a smaller number, or another of
    /// the same, is refused. A node of a cluster refuses everything else that is asked of a disk before this.
    async fn admit(
        &self,
        disk: DiskId,
        incarnation: u64,
        request: &AdmitRequest,
        deadline: Duration,
    ) -> Result<(), NodeError>;

    /// Tells a disk which ledger it obeys from now on, and how far that is, durably. What is older than the disk knows, or another
    /// copy of the same generation, is refused with [`NodeError::OtherLedger`]. The same again is no error.
    async fn obey(
        &self,
        disk: DiskId,
        incarnation: u64,
        marks: &LedgerMarks,
        deadline: Duration,
    ) -> Result<(), NodeError>;

    /// Has a disk refuse every change for a ledger, if it obeys that now, with [`NodeError::Overloaded`], for a while (a minute at
    /// most), or until it is told of another; returns when the changes before are done. In memory: a disk that is opened anew has
    /// forgotten it.
    async fn still(
        &self,
        disk: DiskId,
        incarnation: u64,
        still: &Still,
        deadline: Duration,
    ) -> Result<(), NodeError>;

    /// Says that a gateway is there; the node remembers the last one in memory.
    async fn beat(&self, beat: &Beat, deadline: Duration) -> Result<(), NodeError>;

    /// Formats a blank disk and serves it from then on, durably. The same request again, for the disk that it made, is
    /// no error.
    async fn format(&self, request: &FormatRequest, _deadline: Duration) -> Result<(), NodeError> {
        Err(NodeError::BadRequest {
            what: format!("{}: this node formats no disks", request.path),
        })
    }

    /// What the node knows of its disks.
    async fn status(&self, deadline: Duration) -> Result<NodeStatus, NodeError>;
}

/// The most blobs one delete names.
pub const DELETE_BLOBS_MAX: usize = 1024;

/// The most shards that one call of many names.
pub const MANY_SHARDS_MAX: usize = 1024;

/// The most bytes of payload that one call of many carries.
pub const MANY_BYTES_MAX: usize = 16 << 20;

/// The most entries one inventory page holds.
pub const INVENTORY_LIMIT_MAX: usize = 10_000;

/// Refuses a call of many that is out of bounds.
pub fn check_many(shards: usize, bytes: usize) -> Result<(), NodeError> {
    if shards <= MANY_SHARDS_MAX && bytes <= MANY_BYTES_MAX {
        return Ok(());
    }
    Err(NodeError::BadRequest {
        what: format!(
            "{shards} shards of {bytes} bytes in one request, at most {MANY_SHARDS_MAX} of {MANY_BYTES_MAX}"
        ),
    })
}
