//! Shards as a gateway would send them, and the record of what a node acknowledged of them.
//!
//! A shard is written by one writer at a time, so a request that was not answered leaves two possibilities for each
//! shard it names, and what is read after the next start leaves one: recovery decides once.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use storage_node::client::StorageClient;
use storage_node::http_client::HttpClient;
use storage_node::protocol::{
    BLOCK_BYTES, BlockRange, DiskId, NodeError, SHARD_BYTES_MAX, Seal, SealedShard, ShardBlocks, ShardKey,
    UnitAddress, UnitId, bad_block, block_crc, seal_seed,
};

use crate::content::Content;
use crate::node::INCARNATION;

/// No request of the tests takes longer.
pub const DEADLINE: Duration = Duration::from_secs(60);
const READS_AT_ONCE: usize = 16;
const PAGE: usize = 1000;
/// So many deleted shards are asked for one by one; all of them must be absent from the list.
const DELETED_READ_MAX: usize = 200;

/// The units that the tests write to, each with as many digests as its scheme would have shards.
pub const UNITS: [(UnitId, usize); 3] = [
    (UnitId { volume: 1, index: 0 }, 6),
    (UnitId { volume: 1, index: 5 }, 16),
    (UnitId { volume: 77, index: 2 }, 3),
];

/// Where a unit of the tests is.
pub fn address(disk: DiskId, unit: UnitId) -> UnitAddress {
    UnitAddress {
        disk,
        incarnation: INCARNATION,
        unit,
        epoch: 1,
        ledger: storage_node::protocol::Generation::NONE,
    }
}

/// Which shard of which unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ShardName {
    /// An index into [`UNITS`].
    pub unit: usize,
    /// Which of it.
    pub key: ShardKey,
}

/// The shard with this content.
pub fn sealed(name: ShardName, content: Content) -> SealedShard {
    let (unit, digests) = UNITS[name.unit];
    let payload = content.make();
    let seed = seal_seed(unit, name.key, payload.len() as u32);
    let blocks = (0..).zip(payload.chunks(BLOCK_BYTES as usize));
    let block_crcs = blocks
        .map(|(number, block)| block_crc(seed, number, block))
        .collect();
    let digest = |number: usize| [(content.seed as u8) ^ number as u8; 32];
    SealedShard {
        key: name.key,
        seal: Seal {
            block_crcs,
            digests: (0..digests).map(digest).collect(),
        },
        payload: payload.into(),
    }
}

/// Why a shard is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The node said no.
    #[error("{0}")]
    Refused(NodeError),
    /// The node answered with something else.
    #[error("{0}")]
    Wrong(String),
}

/// Which of these contents a shard has that was read whole.
fn recognise(
    name: ShardName,
    read: &ShardBlocks,
    possible: &[Option<Content>],
) -> Result<Content, ReadError> {
    let seed = seal_seed(UNITS[name.unit].0, name.key, read.shard_len);
    if let Some(block) = bad_block(seed, &read.payload, &read.block_crcs) {
        return Err(ReadError::Wrong(format!("block {block} does not verify")));
    }
    let mut contents = possible.iter().flatten();
    let same = |content: &&Content| {
        let shard = sealed(name, **content);
        let seal = (&shard.seal.block_crcs, &shard.seal.digests);
        content.bytes == read.shard_len as usize
            && (shard.payload == read.payload && seal == (&read.block_crcs, &read.digests))
    };
    contents.find(same).copied().ok_or_else(|| {
        let wrong = format!("{} bytes that verify and that nobody put there", read.shard_len);
        ReadError::Wrong(wrong)
    })
}

/// Reads a whole shard, and finds out which of these it holds.
pub async fn read(
    client: &HttpClient,
    disk: DiskId,
    name: ShardName,
    possible: &[Option<Content>],
) -> Result<Option<Content>, ReadError> {
    let from = address(disk, UNITS[name.unit].0);
    match client.get(&from, name.key, BlockRange::ALL, DEADLINE).await {
        Ok(read) => recognise(name, &read, possible).map(Some),
        Err(NodeError::NotFound) if possible.contains(&None) => Ok(None),
        Err(error) => Err(ReadError::Refused(error)),
    }
}

/// What each shard of a disk may hold; `None` is nothing. A shard that is not here was never put.
#[derive(Clone, Debug, Default)]
pub struct Book {
    shards: BTreeMap<ShardName, Vec<Option<Content>>>,
}

/// How a disk stands to its book.
#[derive(Clone, Debug, Default)]
pub struct Checked {
    /// Shards that are there, and right.
    pub right: usize,
    /// Shards that were deleted and are not there.
    pub deleted: usize,
    /// Of the shards in flight, those whose new state was found.
    pub in_flight_done: usize,
    /// And those whose old state was.
    pub in_flight_undone: usize,
    /// What is wrong.
    pub violations: Vec<String>,
}

impl Book {
    /// The request was acknowledged: this and nothing else is there.
    pub fn acknowledged(&mut self, name: ShardName, content: Option<Content>) {
        self.shards.insert(name, vec![content]);
    }

    /// The request got no answer: this, or what was there before.
    pub fn uncertain(&mut self, name: ShardName, content: Option<Content>) {
        self.shards
            .entry(name)
            .or_insert_with(|| vec![None])
            .push(content);
    }

    /// What a shard may hold.
    pub fn possible(&self, name: ShardName) -> &[Option<Content>] {
        self.shards.get(&name).map_or(&[None], Vec::as_slice)
    }

    /// Shards that are certainly there.
    pub fn present(&self) -> Vec<(ShardName, Content)> {
        self.certain()
            .filter_map(|(name, content)| Some((name, content?)))
            .collect()
    }

    fn certain(&self) -> impl Iterator<Item = (ShardName, Option<Content>)> {
        self.shards
            .iter()
            .filter_map(|(name, possible)| match possible[..] {
                [content] => Some((*name, content)),
                _ => None,
            })
    }

    /// Every shard that was ever put, and what it may hold.
    pub fn shards(&self) -> impl Iterator<Item = (ShardName, &[Option<Content>])> {
        self.shards
            .iter()
            .map(|(name, possible)| (*name, possible.as_slice()))
    }

    /// Takes over a shard of another book.
    pub fn insert(&mut self, name: ShardName, possible: Vec<Option<Content>>) {
        self.shards.insert(name, possible);
    }

    /// Takes over the shards of another book that has none of these.
    pub fn merge(&mut self, other: Book) {
        self.shards.extend(other.shards);
    }

    /// Reads the whole disk, and takes what it finds for certain from now on.
    pub async fn check(&mut self, client: &HttpClient, disk: DiskId) -> Checked {
        let mut checked = Checked::default();
        let listed = match list(client, disk).await {
            Ok(listed) => listed,
            Err(error) => {
                checked.violations.push(format!("listing: {error}"));
                return checked;
            }
        };
        for name in listed.keys() {
            if self.possible(*name).iter().all(Option::is_none) {
                checked
                    .violations
                    .push(format!("{name:?} is listed, and was deleted or never put"));
            }
        }
        for (name, found) in self.read_all(client, disk).await {
            match found {
                Err(wrong) => checked.violations.push(format!("{name:?}: {wrong}")),
                Ok(content) if content.map(|c| c.bytes) != listed.get(&name).copied() => {
                    let listed = listed.get(&name);
                    checked
                        .violations
                        .push(format!("{name:?}: listed as {listed:?}, read as {content:?}"));
                }
                Ok(content) => self.settle(name, content, &mut checked),
            }
        }
        checked.right = self.present().len();
        checked.deleted = self.certain().filter(|(_, content)| content.is_none()).count();
        checked
    }

    /// Reads all but most of the shards that were deleted long ago: those are not listed.
    async fn read_all(
        &self,
        client: &HttpClient,
        disk: DiskId,
    ) -> Vec<(ShardName, Result<Option<Content>, ReadError>)> {
        let deleted = self.certain().filter(|(_, content)| content.is_none()).count();
        let step = deleted.div_ceil(DELETED_READ_MAX).max(1);
        let wanted = self.shards.iter().enumerate().filter(|(number, (_, possible))| {
            possible.iter().any(Option::is_some) || number.is_multiple_of(step)
        });
        let reads = wanted
            .map(|(_, (name, possible))| async move { (*name, read(client, disk, *name, possible).await) });
        let reads = futures::stream::iter(reads.collect::<Vec<_>>());
        reads.buffer_unordered(READS_AT_ONCE).collect().await
    }

    fn settle(&mut self, name: ShardName, found: Option<Content>, checked: &mut Checked) {
        let possible = self.shards.insert(name, vec![found]).unwrap_or_default();
        if possible.len() > 1 {
            let done = *possible.last().unwrap() == found;
            checked.in_flight_done += usize::from(done);
            checked.in_flight_undone += usize::from(!done);
        }
    }
}

/// Every shard that a disk lists, with its length.
async fn list(client: &HttpClient, disk: DiskId) -> Result<BTreeMap<ShardName, usize>, NodeError> {
    let mut listed = BTreeMap::new();
    for (number, (unit, _)) in UNITS.iter().enumerate() {
        let mut after = None;
        loop {
            let page = client
                .inventory(&address(disk, *unit), after, PAGE, DEADLINE)
                .await?;
            listed.extend(page.iter().map(|entry| {
                let name = ShardName {
                    unit: number,
                    key: entry.key,
                };
                (name, entry.len as usize)
            }));
            after = page.last().map(|entry| entry.key);
            if page.len() < PAGE {
                break;
            }
        }
    }
    Ok(listed)
}

/// The longest shard.
pub const BYTES_MAX: usize = SHARD_BYTES_MAX as usize;
