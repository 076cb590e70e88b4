//! Requests to a node, which wait no longer than the node answers at all.
//!
//! A machine that is cut off says nothing, and a request to it would wait for its whole deadline. But every node is asked for
//! its state all the while, which any node that can be reached answers at once. When that gets no answer, every request that is
//! waiting for the node ends as unreachable, and whoever sent it turns to other disks. A disk that is slow, on a node that
//! answers, is waited for as long as its request says.
//! Invariant: what ends here may still be done by the node, as with a deadline that is over.

use async_trait::async_trait;
use std::sync::Arc;
use std::time::Duration;
use storage_node::client::StorageClient;
use storage_node::protocol::{
    AdmitRequest, Beat, BlockRange, DiskId, Findings, FormatRequest, InventoryEntry, LedgerMarks, NodeError,
    NodeStatus, SealedShard, ShardBlocks, ShardKey, Still, UnitAddress, UnitInfo, VerifyOrder,
};
use tokio::sync::watch;

/// A node, until it stops answering.
pub struct Answering {
    node: Arc<dyn StorageClient>,
    /// Changes each time that it was asked for its state and gave none.
    lost: watch::Sender<()>,
}

impl Answering {
    /// Reached through this client.
    pub fn new(node: Arc<dyn StorageClient>) -> Answering {
        let lost = watch::Sender::new(());
        Answering { node, lost }
    }

    /// Ends all requests in progress.
    pub fn lost(&self) {
        self.lost.send_replace(());
    }

    async fn while_it_answers<T>(
        &self,
        call: impl Future<Output = Result<T, NodeError>>,
    ) -> Result<T, NodeError> {
        let mut lost = self.lost.subscribe();
        tokio::select! {
            biased;
            answer = call => answer,
            _ = lost.changed() => Err(NodeError::Unreachable {
                what: "the node stopped answering".into(),
            }),
        }
    }
}

#[async_trait]
impl StorageClient for Answering {
    async fn put(&self, to: &UnitAddress, shard: SealedShard, deadline: Duration) -> Result<(), NodeError> {
        self.while_it_answers(self.node.put(to, shard, deadline)).await
    }

    async fn get(
        &self,
        from: &UnitAddress,
        key: ShardKey,
        blocks: BlockRange,
        deadline: Duration,
    ) -> Result<ShardBlocks, NodeError> {
        self.while_it_answers(self.node.get(from, key, blocks, deadline))
            .await
    }

    async fn get_many(
        &self,
        from: &UnitAddress,
        keys: &[ShardKey],
        deadline: Duration,
    ) -> Result<Vec<Result<ShardBlocks, NodeError>>, NodeError> {
        self.while_it_answers(self.node.get_many(from, keys, deadline))
            .await
    }

    async fn put_many(
        &self,
        to: &UnitAddress,
        shards: Vec<SealedShard>,
        deadline: Duration,
    ) -> Result<Vec<Result<(), NodeError>>, NodeError> {
        self.while_it_answers(self.node.put_many(to, shards, deadline))
            .await
    }

    async fn delete(&self, from: &UnitAddress, blobs: &[u64], deadline: Duration) -> Result<(), NodeError> {
        self.while_it_answers(self.node.delete(from, blobs, deadline))
            .await
    }

    async fn inventory(
        &self,
        from: &UnitAddress,
        after: Option<ShardKey>,
        limit: usize,
        deadline: Duration,
    ) -> Result<Vec<InventoryEntry>, NodeError> {
        self.while_it_answers(self.node.inventory(from, after, limit, deadline))
            .await
    }

    async fn units(
        &self,
        disk: DiskId,
        incarnation: u64,
        deadline: Duration,
    ) -> Result<Vec<UnitInfo>, NodeError> {
        self.while_it_answers(self.node.units(disk, incarnation, deadline))
            .await
    }

    async fn drop_unit(&self, unit: &UnitAddress, deadline: Duration) -> Result<(), NodeError> {
        self.while_it_answers(self.node.drop_unit(unit, deadline)).await
    }

    async fn findings(
        &self,
        disk: DiskId,
        incarnation: u64,
        after: u64,
        deadline: Duration,
    ) -> Result<Findings, NodeError> {
        self.while_it_answers(self.node.findings(disk, incarnation, after, deadline))
            .await
    }

    async fn verify(
        &self,
        disk: DiskId,
        incarnation: u64,
        order: &VerifyOrder,
        deadline: Duration,
    ) -> Result<(), NodeError> {
        self.while_it_answers(self.node.verify(disk, incarnation, order, deadline))
            .await
    }

    async fn admit(
        &self,
        disk: DiskId,
        incarnation: u64,
        request: &AdmitRequest,
        deadline: Duration,
    ) -> Result<(), NodeError> {
        self.while_it_answers(self.node.admit(disk, incarnation, request, deadline))
            .await
    }

    async fn obey(
        &self,
        disk: DiskId,
        incarnation: u64,
        marks: &LedgerMarks,
        deadline: Duration,
    ) -> Result<(), NodeError> {
        self.while_it_answers(self.node.obey(disk, incarnation, marks, deadline))
            .await
    }

    async fn still(
        &self,
        disk: DiskId,
        incarnation: u64,
        still: &Still,
        deadline: Duration,
    ) -> Result<(), NodeError> {
        self.while_it_answers(self.node.still(disk, incarnation, still, deadline))
            .await
    }

    async fn beat(&self, beat: &Beat, deadline: Duration) -> Result<(), NodeError> {
        self.node.beat(beat, deadline).await
    }

    async fn format(&self, request: &FormatRequest, deadline: Duration) -> Result<(), NodeError> {
        self.while_it_answers(self.node.format(request, deadline)).await
    }

    /// The question by which it is known whether the node answers; nothing but its deadline ends it.
    async fn status(&self, deadline: Duration) -> Result<NodeStatus, NodeError> {
        self.node.status(deadline).await
    }
}
