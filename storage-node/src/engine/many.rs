//! Calls of many shards: puts that share their batches, and reads of neighbours that share a read of the device.
//!
//! Whoever rebuilds a unit asks for its shards by name, in the order of names; on the disk they lie in the order they were
//! written. So they are read in the order of places, and records that lie next to each other at once: of 4 KiB shards that
//! is two hundred to a read.
//!
//! Invariants: what a shared read shows counts only where it is right. A record that is not, or a read that fails, is read
//! again alone, as [`Engine::get`] does, and that decides. A call reads one record at least, and no more than
//! [`RUNS_AT_ONCE`] reads are in progress for it.

use super::index::Entry;
use super::queue::{Change, Request};
use super::reader::{Permit, check_head, read_span};
use super::{Engine, Shared, check_shape};
use crate::client::check_many;
use crate::protocol::{BlockRange, NodeError, SealedShard, ShardBlocks, ShardKey, UnitAddress};
use futures::StreamExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// Records are read at once when at most this many bytes between them are not wanted.
const GAP_MAX: u32 = 16 * 1024;
/// As long as they do not make up more than this.
const RUN_BYTES_MAX: u32 = 1 << 20;
/// Reads of the device that one call has in progress.
const RUNS_AT_ONCE: usize = 4;

/// Where a wanted shard is: its number among those asked for, its name, its record.
type Found = (usize, ShardKey, Entry);

impl Engine {
    /// Stores shards durably; see [`crate::client::StorageClient::put_many`].
    pub async fn put_many(
        &self,
        to: &UnitAddress,
        shards: Vec<SealedShard>,
        deadline: Duration,
    ) -> Result<Vec<Result<(), NodeError>>, NodeError> {
        check_many(shards.len(), shards.iter().map(|shard| shard.payload.len()).sum())?;
        self.shared.check_serving()?;
        self.shared.check_ledger(to)?;
        self.shared.check_epoch(to)?;
        let (mut requests, mut answers) = (Vec::new(), Vec::new());
        for shard in shards {
            answers.push(check_shape(&shard).map(|()| {
                let (reply, answer) = oneshot::channel();
                requests.push(Request {
                    address: *to,
                    change: Change::Put(shard),
                    reply,
                    retried: false,
                });
                answer
            }));
        }
        self.shared.queue.push_all(requests)?;
        let until = Instant::now() + deadline;
        let mut done = Vec::new();
        for answer in answers {
            done.push(match answer {
                Err(error) => Err(error),
                Ok(answer) => match tokio::time::timeout_at(until, answer).await {
                    Err(_) => Err(NodeError::Timeout),
                    Ok(Ok(result)) => result,
                    Ok(Err(_)) => Err(self.lost_reply().await),
                },
            });
        }
        let stored = done.iter().filter(|answer| answer.is_ok()).count();
        self.shared.metrics.puts.add(stored as u64);
        Ok(done)
    }

    /// Reads whole shards; see [`crate::client::StorageClient::get_many`].
    pub async fn get_many(
        &self,
        from: &UnitAddress,
        keys: &[ShardKey],
        deadline: Duration,
    ) -> Result<Vec<Result<ShardBlocks, NodeError>>, NodeError> {
        check_many(keys.len(), 0)?;
        self.shared.check_serving()?;
        self.shared.check_epoch(from)?;
        let Ok(permit) = self.reads.clone().try_acquire_owned() else {
            return Err(NodeError::Overloaded);
        };
        let read = self.shared.get_many(from, keys, Arc::new(permit));
        let read = tokio::time::timeout(deadline, read)
            .await
            .map_err(|_| NodeError::Timeout)??;
        self.shared.metrics.gets.add(read.len() as u64);
        Ok(read)
    }
}

impl Shared {
    async fn get_many(
        &self,
        from: &UnitAddress,
        keys: &[ShardKey],
        permit: Permit,
    ) -> Result<Vec<Result<ShardBlocks, NodeError>>, NodeError> {
        let (mut found, _pins) = self.locate_many(from, keys);
        check_many(
            found.len(),
            found.iter().map(|(_, _, entry)| entry.len as usize).sum(),
        )?;
        found.sort_unstable_by_key(|(_, _, entry)| (entry.place.extent, entry.place.offset));
        let mut answers: Vec<Result<ShardBlocks, NodeError>> = vec![Err(NodeError::NotFound); keys.len()];
        let reads = runs(found)
            .into_iter()
            .map(|run| self.read_run(from, run, &permit));
        let mut reads = futures::stream::iter(reads).buffer_unordered(RUNS_AT_ONCE);
        while let Some(run) = reads.next().await {
            for (number, read) in run {
                answers[number] = read;
            }
        }
        Ok(answers)
    }

    /// The records that there are, and what keeps them where they are.
    fn locate_many(&self, from: &UnitAddress, keys: &[ShardKey]) -> (Vec<Found>, Vec<Arc<()>>) {
        let index = self.index();
        let numbered = keys.iter().enumerate();
        let found = numbered.filter_map(|(number, key)| Some((number, *key, index.find(from.unit, *key)?)));
        let found: Vec<Found> = found.collect();
        let mut extents: Vec<u32> = found.iter().map(|(_, _, entry)| entry.place.extent).collect();
        extents.sort_unstable();
        extents.dedup();
        let pins = extents
            .iter()
            .map(|extent| index.extents[*extent as usize].pin.clone());
        let pins = pins.collect();
        (found, pins)
    }

    /// Reads neighbours at once, and those that are not right there one by one.
    async fn read_run(
        &self,
        from: &UnitAddress,
        run: Vec<Found>,
        permit: &Permit,
    ) -> Vec<(usize, Result<ShardBlocks, NodeError>)> {
        let Some(((_, _, first), (_, _, last))) = run.first().zip(run.last()) else {
            return Vec::new();
        };
        let start = first.place.offset;
        let span = read_span(self, first.place, 0, record_end(last) - start);
        let bytes = span.read(permit).await.map(|span| span.bytes());
        let mut answers = Vec::new();
        for (number, key, entry) in run {
            let shown = bytes.as_ref().ok().and_then(|bytes| {
                let record =
                    bytes.slice((entry.place.offset - start) as usize..(record_end(&entry) - start) as usize);
                let head = check_head(&self.identity, &record, from.unit, key, &entry).ok()?;
                Some(ShardBlocks {
                    shard_len: head.len,
                    first_block: 0,
                    block_crcs: head.block_crcs,
                    digests: head.digests,
                    payload: record.slice(entry.payload_at as usize..),
                })
            });
            let read = match shown {
                Some(blocks) => Ok(blocks),
                None => self.get(from, key, BlockRange::ALL, permit.clone()).await,
            };
            answers.push((number, read));
        }
        answers
    }
}

/// Where the bytes of a record end in its extent.
fn record_end(entry: &Entry) -> u32 {
    entry.place.offset + entry.payload_at + entry.len
}

/// Groups records, which are in the order of their places, into what is read at once.
fn runs(found: Vec<Found>) -> Vec<Vec<Found>> {
    let mut runs: Vec<Vec<Found>> = Vec::new();
    for next in found {
        let (start, end, place) = (next.2.place.offset, record_end(&next.2), next.2.place);
        let joins = |run: &&mut Vec<Found>| {
            run.first().zip(run.last()).is_some_and(|(first, last)| {
                first.2.place.extent == place.extent
                    && start <= record_end(&last.2) + GAP_MAX
                    && end - first.2.place.offset <= RUN_BYTES_MAX
            })
        };
        match runs.last_mut().filter(joins) {
            Some(run) => run.push(next),
            None => runs.push(vec![next]),
        }
    }
    runs
}
