//! Buckets and objects: what S3 requests mean, without a word of S3's protocol.
//!
//! ```text
//! put ─► ingest (fill a stripe ‖ hash, encode, send the one before) ─► blob_writer ─► commit
//! get ─► reader (pieces ahead, within the budget) ─► shard_reader (verify, hedge, decode from sources)
//! ```
//!
//! Invariants: an object row is committed only after every shard it needs is durable. A blob that was begun ends
//! either named by a row or in the garbage queue. Nothing here decides by the wall clock.

pub mod abandoned;
pub mod blob_writer;
pub mod block_cache;
pub mod bucket;
pub mod commit;
pub mod condition;
pub mod copy;
pub mod cors;
pub mod deadline;
pub mod delete;
pub mod digest;
pub mod encode;
pub mod get;
pub mod hashing;
pub mod ingest;
pub mod latencies;
pub mod list;
pub mod multipart;
pub mod put;
pub mod readers;
pub mod seals;
pub mod shard_reader;
pub mod shared_reads;
pub mod sources;
pub mod suspects;
pub mod tokens;
pub mod turns;

use crate::archive::Archive;
use crate::budget::Budget;
use crate::clock::Clock;
use crate::cluster::disks::Disks;
use crate::cluster::lease::Lease;
use crate::error::{Error, Result};
use crate::gate::Gate;
use crate::ledger::Ledger;
use crate::maintenance::holds::Holds;
use crate::maintenance::unnamed::Known;
use crate::metrics::Metrics;
use crate::placement::relocations::Relocations;
use crate::placement::volumes::Volumes;
use abandoned::Abandoned;
use block_cache::BlockCache;
use ec_core::{Codec, Kernel, Scheme};
use readers::Readers;
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, RwLock};
use suspects::Suspects;
use tokens::Tokens;

/// The bytes of a request's body, with typed errors.
pub type Body = Pin<Box<dyn futures::Stream<Item = Result<bytes::Bytes>> + Send>>;

/// Objects of at most this many bytes are stored as m+1 copies: one read, no decode, the same losses survived.
pub const SMALL_BYTES_MAX: usize = 16 * 1024;

/// The most bytes one PUT or part may have: 5 GiB, as in S3.
pub const PUT_BYTES_MAX: u64 = 5 << 30;

/// Everything the object path works with.
pub struct Objects {
    /// The ledger.
    pub ledger: Ledger,
    /// This gateway's lease.
    pub lease: Arc<Lease>,
    /// The disks and their health.
    pub disks: Arc<Disks>,
    /// The volumes.
    pub volumes: Arc<Volumes>,
    /// Memory for bytes in flight.
    pub budget: Budget,
    /// Blocks that are read again and again.
    pub cache: Arc<BlockCache>,
    /// Who reads what.
    pub readers: Readers,
    /// Blobs that were begun and will not be named.
    pub abandoned: Abandoned,
    /// Why nothing may be deleted at the moment.
    pub holds: Holds,
    /// What is set aside because nothing names it.
    pub unnamed: Known,
    /// The ledger's archive.
    pub archive: Arc<Archive>,
    /// How long requests wait for disks.
    pub latencies: Arc<latencies::Latencies>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// For Last-Modified.
    pub clock: Arc<dyn Clock>,
    /// The default scheme.
    pub scheme: Scheme,
    /// Hedges that may still be made.
    pub hedges: Tokens,
    /// Retries that may still be made, of stripes and pieces.
    pub retries: Tokens,
    /// Shards queued for repair.
    pub suspects: Suspects,
    /// Units whose disks know newer epochs than the ledger.
    pub newer_epochs: crate::maintenance::epochs::NewerEpochs,
    /// Units that are to be on another disk.
    pub relocations: Relocations,
    /// For commits that lost a race.
    pub turns: turns::Turns,
    /// Counts requests and commits in progress; closed at shutdown.
    pub gate: Gate,
    /// A codec per scheme in use.
    pub codecs: Codecs,
    /// MD5 of uploads.
    pub hashing: hashing::Hashing,
}

/// Codecs, made once per scheme, all for one kernel.
pub struct Codecs {
    kernel: Kernel,
    made: RwLock<HashMap<Scheme, Arc<Codec>>>,
}

impl Objects {
    /// Pays for doing something again that failed; past the budget the client is told to slow down.
    fn pay_for_retry(&self) -> Result<()> {
        // What failed because this process stood still is no load that failures could multiply.
        if self.disks.pauses().lately() || self.retries.spend() {
            self.metrics.retries.inc();
            return Ok(());
        }
        self.metrics.refused_retries.inc();
        Err(Error::SlowDown)
    }
}

impl Codecs {
    /// None made yet.
    pub fn new(kernel: Kernel) -> Codecs {
        Codecs {
            kernel,
            made: RwLock::default(),
        }
    }

    /// What computes.
    pub fn kernel(&self) -> Kernel {
        self.kernel
    }

    /// The codec of a scheme.
    pub fn get(&self, scheme: Scheme) -> Result<Arc<Codec>> {
        if let Some(codec) = self.made.read().unwrap_or_else(|e| e.into_inner()).get(&scheme) {
            return Ok(codec.clone());
        }
        let codec = Codec::new(scheme, self.kernel);
        let codec = Arc::new(codec.map_err(|e| Error::Internal(format!("codec {scheme}: {e}")))?);
        self.made
            .write()
            .unwrap_or_else(|e| e.into_inner())
            .insert(scheme, codec.clone());
        Ok(codec)
    }
}

/// Runs work that would hold up the reactor on a blocking thread.
pub async fn off_reactor<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Error::Internal(format!("a worker stopped: {e}")))
}
