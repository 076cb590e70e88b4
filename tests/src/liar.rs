//! A node of a cluster that lies: it takes the place of one that has stopped, with its certificate and its disks, and answers
//! truly until it is told how to lie.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use storage_node::client::StorageClient;
use storage_node::membership::Membership;
use storage_node::node::{DiskSpec, Node, NodeOptions};
use storage_node::protocol::{
    AdmitRequest, BLOCK_BYTES, Beat, BlockRange, DiskId, Findings, InventoryEntry, LedgerMarks, NodeError,
    NodeStatus, SealedShard, ShardBlocks, ShardKey, Still, UnitAddress, UnitInfo, VerifyOrder, block_crc,
    seal_seed,
};
use storage_node::server;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// How reads and writes are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Lie {
    /// As they should be.
    None,
    /// Reads with other bytes, under the shard's own checksums.
    OtherBytes,
    /// Reads with other bytes, and checksums and digests made to match.
    Forgery,
    /// Reads with another shard's bytes and checksums.
    OtherShard,
    /// Everything a second late.
    Late,
    /// Never.
    Never,
    /// With 500s.
    Failing,
}

const LIES: [Lie; 7] = [
    Lie::None,
    Lie::OtherBytes,
    Lie::Forgery,
    Lie::OtherShard,
    Lie::Late,
    Lie::Never,
    Lie::Failing,
];

/// A node that lies; it stops when dropped.
#[derive(Debug)]
pub struct Liar {
    lie: Arc<AtomicU8>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Liar {
    /// Serves these disks at the address of the node whose membership is in `directory`, and which must have stopped.
    pub fn start(directory: &Path, address: SocketAddr, disks: &[&Path]) -> Liar {
        let membership = Membership::load(directory).unwrap().unwrap();
        let specs: Vec<DiskSpec> = disks.iter().map(|disk| DiskSpec::at(*disk)).collect();
        let lie = Arc::new(AtomicU8::new(0));
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = mpsc::channel();
        let told = lie.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            let node = Arc::new(Node::open(specs, NodeOptions::default()));
            let client = Arc::new(Lying {
                node: node.clone(),
                lie: told,
            });
            runtime.block_on(async {
                let listener = TcpListener::bind(address).await.unwrap();
                ready.send(()).unwrap();
                let stopped = async { drop(stopped.await) };
                server::serve_tls(listener, client, &membership.credentials, stopped)
                    .await
                    .unwrap();
            });
            node.shutdown();
        });
        is_ready.recv().unwrap();
        Liar {
            lie,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// From now on it answers like this.
    pub fn tell(&self, lie: Lie) {
        self.lie.store(lie as u8, Ordering::SeqCst);
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.tell(Lie::None);
        self.stop.take().map(|stop| stop.send(()));
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the lying node panicked");
        }
    }
}

struct Lying {
    node: Arc<Node>,
    lie: Arc<AtomicU8>,
}

impl Lying {
    fn lie(&self) -> Lie {
        LIES[usize::from(self.lie.load(Ordering::SeqCst))]
    }

    /// What comes before an answer, or instead of it.
    async fn stall(&self, deadline: Duration) -> Result<(), NodeError> {
        match self.lie() {
            Lie::Late => tokio::time::sleep(Duration::from_secs(1)).await,
            Lie::Never => tokio::time::sleep(deadline + Duration::from_secs(1)).await,
            Lie::Failing => {
                return Err(NodeError::Io {
                    what: "a lie".to_owned(),
                });
            }
            _ => {}
        }
        Ok(())
    }

    async fn other_shard(&self, from: &UnitAddress, key: ShardKey, deadline: Duration) -> Option<ShardKey> {
        let shards = self.node.inventory(from, None, 1_000, deadline).await.ok()?;
        shards
            .into_iter()
            .map(|entry| entry.key)
            .find(|other| *other != key)
    }
}

#[async_trait::async_trait]
impl StorageClient for Lying {
    async fn put(&self, to: &UnitAddress, shard: SealedShard, deadline: Duration) -> Result<(), NodeError> {
        self.stall(deadline).await?;
        self.node.put(to, shard, deadline).await
    }

    async fn get(
        &self,
        from: &UnitAddress,
        key: ShardKey,
        blocks: BlockRange,
        deadline: Duration,
    ) -> Result<ShardBlocks, NodeError> {
        self.stall(deadline).await?;
        let lie = self.lie();
        let asked = match lie {
            Lie::OtherShard => self.other_shard(from, key, deadline).await.unwrap_or(key),
            _ => key,
        };
        let mut read = self.node.get(from, asked, blocks, deadline).await?;
        if matches!(lie, Lie::OtherBytes | Lie::Forgery) {
            read.payload = Bytes::from(vec![0x55; read.payload.len()]);
        }
        if lie == Lie::Forgery {
            let seed = seal_seed(from.unit, key, read.shard_len);
            let blocks = (read.first_block..).zip(read.payload.chunks(BLOCK_BYTES as usize));
            read.block_crcs = blocks
                .map(|(number, bytes)| block_crc(seed, number, bytes))
                .collect();
        }
        Ok(read)
    }

    async fn get_many(
        &self,
        from: &UnitAddress,
        keys: &[ShardKey],
        deadline: Duration,
    ) -> Result<Vec<Result<ShardBlocks, NodeError>>, NodeError> {
        let mut reads = Vec::new();
        for key in keys {
            reads.push(self.get(from, *key, BlockRange::ALL, deadline).await);
        }
        Ok(reads)
    }

    async fn put_many(
        &self,
        to: &UnitAddress,
        shards: Vec<SealedShard>,
        deadline: Duration,
    ) -> Result<Vec<Result<(), NodeError>>, NodeError> {
        self.stall(deadline).await?;
        self.node.put_many(to, shards, deadline).await
    }

    async fn delete(&self, from: &UnitAddress, blobs: &[u64], deadline: Duration) -> Result<(), NodeError> {
        self.node.delete(from, blobs, deadline).await
    }

    async fn inventory(
        &self,
        from: &UnitAddress,
        after: Option<ShardKey>,
        limit: usize,
        deadline: Duration,
    ) -> Result<Vec<InventoryEntry>, NodeError> {
        self.node.inventory(from, after, limit, deadline).await
    }

    async fn units(
        &self,
        disk: DiskId,
        incarnation: u64,
        deadline: Duration,
    ) -> Result<Vec<UnitInfo>, NodeError> {
        self.node.units(disk, incarnation, deadline).await
    }

    async fn drop_unit(&self, unit: &UnitAddress, deadline: Duration) -> Result<(), NodeError> {
        self.node.drop_unit(unit, deadline).await
    }

    async fn findings(
        &self,
        disk: DiskId,
        incarnation: u64,
        after: u64,
        deadline: Duration,
    ) -> Result<Findings, NodeError> {
        self.node.findings(disk, incarnation, after, deadline).await
    }

    async fn verify(
        &self,
        disk: DiskId,
        incarnation: u64,
        order: &VerifyOrder,
        deadline: Duration,
    ) -> Result<(), NodeError> {
        self.node.verify(disk, incarnation, order, deadline).await
    }

    async fn admit(
        &self,
        disk: DiskId,
        incarnation: u64,
        request: &AdmitRequest,
        deadline: Duration,
    ) -> Result<(), NodeError> {
        self.node.admit(disk, incarnation, request, deadline).await
    }

    async fn obey(
        &self,
        disk: DiskId,
        incarnation: u64,
        marks: &LedgerMarks,
        deadline: Duration,
    ) -> Result<(), NodeError> {
        self.node.obey(disk, incarnation, marks, deadline).await
    }

    async fn still(
        &self,
        disk: DiskId,
        incarnation: u64,
        still: &Still,
        deadline: Duration,
    ) -> Result<(), NodeError> {
        self.node.still(disk, incarnation, still, deadline).await
    }

    async fn beat(&self, beat: &Beat, deadline: Duration) -> Result<(), NodeError> {
        self.node.beat(beat, deadline).await
    }

    async fn status(&self, deadline: Duration) -> Result<NodeStatus, NodeError> {
        self.node.status(deadline).await
    }
}
