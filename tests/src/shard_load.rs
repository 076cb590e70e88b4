//! Writers that load one disk of a node, each with shards of its own, one request at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use storage_node::client::StorageClient;
use storage_node::http_client::HttpClient;
use storage_node::protocol::{DiskId, NodeError, ShardKey};
use tokio::task::JoinHandle;

use crate::content::Content;
use crate::shards::{BYTES_MAX, Book, DEADLINE, ReadError, ShardName, UNITS, address, read, sealed};

/// Lengths at which something changes: a block of the disk, an aligned payload, a block of the seal, the longest.
const EDGES: [usize; 9] = [1, 64, 4096, 16_384, 32_768, 65_536, 131_072, 983_040, BYTES_MAX];
const BLOB_SHARDS_MAX: u32 = 3;
const DELETED_AT_ONCE_MAX: usize = 4;

/// How a disk is loaded.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// The disk.
    pub disk: DiskId,
    /// How many requests at once.
    pub writers: u64,
    /// A writer with so many bytes on the disk deletes more than it puts: the disk never fills up, and is compacted.
    pub writer_bytes_max: usize,
}

/// What was acknowledged.
#[derive(Clone, Copy, Debug, Default)]
pub struct Acknowledged {
    /// Puts.
    pub puts: usize,
    /// Delete calls.
    pub deletes: usize,
    /// Reads, every one of them right.
    pub reads: usize,
}

impl Acknowledged {
    /// All together.
    pub fn requests(&self) -> usize {
        self.puts + self.deletes + self.reads
    }
}

/// Writers at work.
pub struct Running {
    stop: Arc<AtomicBool>,
    writers: Vec<JoinHandle<Writer>>,
}

impl Load {
    /// Starts writers, which take over what their like left in `book`. Blob ids are the writer's number above 2^32.
    pub fn start(&self, client: &Arc<HttpClient>, book: &Book, seed: u64) -> Running {
        let stop = Arc::new(AtomicBool::new(false));
        let writers = (0..self.writers).map(|number| {
            let mut writer = Writer {
                load: *self,
                client: client.clone(),
                random: StdRng::seed_from_u64(seed ^ number << 32),
                book: Book::default(),
                next_blob: (number << 32) + 1,
                live: Vec::new(),
                acknowledged: Acknowledged::default(),
                refused: None,
            };
            writer.take_over(book, number);
            let stop = stop.clone();
            tokio::spawn(async move {
                while !stop.load(Ordering::SeqCst) && writer.refused.is_none() {
                    writer.step().await;
                }
                writer
            })
        });
        Running {
            writers: writers.collect(),
            stop,
        }
    }
}

/// What writers came to.
pub struct Ended {
    /// What was acknowledged, and what nobody knows.
    pub book: Book,
    /// How much.
    pub acknowledged: Acknowledged,
    /// Why writers stopped by themselves.
    pub refused: Vec<NodeError>,
}

impl Running {
    /// Ends the load: a writer finishes its request first, or has it refused.
    pub async fn stop(self) -> Ended {
        self.stop.store(true, Ordering::SeqCst);
        let mut ended = Ended {
            book: Book::default(),
            acknowledged: Acknowledged::default(),
            refused: Vec::new(),
        };
        for writer in self.writers {
            let writer = writer.await.unwrap();
            ended.book.merge(writer.book);
            ended.acknowledged.puts += writer.acknowledged.puts;
            ended.acknowledged.deletes += writer.acknowledged.deletes;
            ended.acknowledged.reads += writer.acknowledged.reads;
            ended.refused.extend(writer.refused);
        }
        ended
    }
}

/// A length, mostly near one at which something changes.
pub fn random_bytes(random: &mut StdRng) -> usize {
    match random.random_range(0..10) {
        0..=4 => {
            let edge = EDGES[random.random_range(0..EDGES.len())];
            (edge + random.random_range(0..=4))
                .saturating_sub(2)
                .clamp(1, BYTES_MAX)
        }
        5..=7 => random.random_range(1..=16_384),
        _ => random.random_range(1..=BYTES_MAX),
    }
}

struct Writer {
    load: Load,
    client: Arc<HttpClient>,
    random: StdRng,
    book: Book,
    next_blob: u64,
    /// What is certainly there.
    live: Vec<(ShardName, Content)>,
    acknowledged: Acknowledged,
    /// Why it cannot go on.
    refused: Option<NodeError>,
}

impl Writer {
    fn take_over(&mut self, book: &Book, number: u64) {
        for (name, possible) in book.shards().filter(|(name, _)| name.key.blob >> 32 == number) {
            self.next_blob = self.next_blob.max(name.key.blob + 1);
            self.book.insert(name, possible.to_vec());
        }
        self.live = self.book.present();
    }

    async fn step(&mut self) {
        let bytes: usize = self.live.iter().map(|(_, content)| content.bytes).sum();
        let full = bytes > self.load.writer_bytes_max;
        match self.random.random_range(0..20) {
            _ if self.live.is_empty() => self.put_new().await,
            0..=1 => self.put_again().await,
            2..=5 => self.read().await,
            6..=8 => self.delete().await,
            _ if full => self.delete().await,
            _ => self.put_new().await,
        }
    }

    /// A shard of a new blob, or another one of the newest.
    async fn put_new(&mut self) {
        let key = ShardKey {
            blob: self.next_blob,
            stripe: self.random.random_range(0..BLOB_SHARDS_MAX),
        };
        if self.random.random_range(0..3) > 0 {
            self.next_blob += 1;
        }
        let unit = (key.blob % UNITS.len() as u64) as usize;
        self.put(ShardName { unit, key }).await;
    }

    /// What repair does: the later put counts.
    async fn put_again(&mut self) {
        let name = self.live[self.random.random_range(0..self.live.len())].0;
        self.put(name).await;
    }

    async fn put(&mut self, name: ShardName) {
        let content = Content {
            seed: self.random.random(),
            bytes: random_bytes(&mut self.random),
        };
        let to = address(self.load.disk, UNITS[name.unit].0);
        let outcome = self.client.put(&to, sealed(name, content), DEADLINE).await;
        self.acknowledged.puts += usize::from(outcome.is_ok());
        self.write(&[name], Some(content), outcome);
    }

    /// Deletes some blobs of one unit, whole.
    async fn delete(&mut self) {
        let unit = self.live[self.random.random_range(0..self.live.len())].0.unit;
        let of_unit = self.live.iter().filter(|(name, _)| name.unit == unit);
        let mut blobs: Vec<u64> = of_unit.map(|(name, _)| name.key.blob).collect();
        blobs.dedup();
        let start = self.random.random_range(0..blobs.len());
        let count = self.random.random_range(1..=DELETED_AT_ONCE_MAX);
        let blobs: Vec<u64> = blobs.into_iter().skip(start).take(count).collect();
        // A deleted blob is deleted for ever: nothing more may be put into it.
        if let Some(last) = blobs.iter().max() {
            self.next_blob = self.next_blob.max(last + 1);
        }
        let names: Vec<ShardName> = self
            .book
            .shards()
            .map(|(name, _)| name)
            .filter(|name| name.unit == unit && blobs.contains(&name.key.blob))
            .collect();
        let from = address(self.load.disk, UNITS[unit].0);
        let outcome = self.client.delete(&from, &blobs, DEADLINE).await;
        self.acknowledged.deletes += usize::from(outcome.is_ok());
        self.write(&names, None, outcome);
    }

    async fn read(&mut self) {
        let (name, _) = self.live[self.random.random_range(0..self.live.len())];
        match read(&self.client, self.load.disk, name, self.book.possible(name)).await {
            Ok(_) => self.acknowledged.reads += 1,
            Err(ReadError::Refused(error)) => self.refused = Some(error),
            Err(ReadError::Wrong(wrong)) => panic!("{name:?}: {wrong}"),
        }
    }

    fn write(&mut self, names: &[ShardName], content: Option<Content>, outcome: Result<(), NodeError>) {
        self.live.retain(|(name, _)| !names.contains(name));
        for name in names {
            match &outcome {
                Ok(()) => {
                    self.book.acknowledged(*name, content);
                    self.live.extend(content.map(|content| (*name, content)));
                }
                Err(_) => self.book.uncertain(*name, content),
            }
        }
        self.refused = outcome.err();
    }
}
