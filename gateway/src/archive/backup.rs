//! A backup: the entries of one snapshot and of the log that it needs, one after the other in a file.
//!
//! It is made while the gateway runs, and checked and restored as the archive on disks is: each entry names the one before, and the last one
//! says that all is there. A file that was cut short has no end, and is refused.
//!
//! Invariant: what is read was verified by its digests; how much is read into memory at once is bounded by an entry.

use super::chain::choose;
use super::entry::{BODY_BYTES_MAX, Digest, EntryError, HEADER_BYTES, Header, Kind, Writer};
use super::replay::Bodies;
use super::scan::{Scan, bodies};
use crate::clock::Clock;
use crate::ledger::changes::Tap;
use crate::ledger::store::{LedgerError, Store};
use bytes::{Bytes, BytesMut};
use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use storage_node::protocol::ClusterId;

/// What is committed while a backup is made waits in so many bytes at most.
const TAP_BYTES: usize = 64 << 20;
/// Bytes of log for an entry.
const LOG_BYTES: usize = BODY_BYTES_MAX;

/// Makes a backup, piece by piece.
pub struct Backup {
    store: Arc<dyn Store>,
    tap: Arc<Tap>,
    clock: Arc<dyn Clock>,
    cluster: ClusterId,
    writer: Writer,
    scan: Scan,
    number: u64,
    before: Digest,
    after: u64,
    shipped: u64,
    until: Option<u64>,
    done: bool,
}

impl Backup {
    /// Of a ledger whose engine says what it commits.
    pub fn begin(
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        cluster: ClusterId,
        writer: Writer,
    ) -> Result<Backup, LedgerError> {
        let changes = store.changes().ok_or_else(|| LedgerError::Unavailable {
            what: "this engine does not say what it commits".into(),
        })?;
        // In this order: what is committed after the position is in the tap.
        let tap = changes.tap(TAP_BYTES);
        let after = store.position();
        Ok(Backup {
            store,
            tap,
            clock,
            cluster,
            writer,
            scan: Scan::default(),
            number: 0,
            before: [0; 32],
            after,
            shipped: after,
            until: None,
            done: false,
        })
    }

    /// The next bytes of the file; none after the last.
    pub async fn next(&mut self) -> Result<Option<Bytes>, LedgerError> {
        if self.done {
            return Ok(None);
        }
        let mut out = BytesMut::new();
        if self.until.is_none() {
            match self.scan.piece(&*self.store).await? {
                Some(rows) => {
                    let versions = (self.after, self.after);
                    self.entry(&mut out, Kind::Piece, versions, rows).await?;
                }
                None => self.until = Some(self.store.position()),
            }
        }
        self.log(&mut out).await?;
        if let Some(until) = self.until {
            while self.shipped < until {
                // It is visible before it is in the tap, for a moment.
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                self.log(&mut out).await?;
            }
            let rows = Bytes::copy_from_slice(&self.scan.rows.to_le_bytes());
            self.entry(&mut out, Kind::End, (self.after, until), rows).await?;
            self.done = true;
        }
        Ok(Some(out.freeze()))
    }

    async fn log(&mut self, out: &mut BytesMut) -> Result<(), LedgerError> {
        let until = self.store.position();
        while self.shipped < until {
            let mut taken = self.tap.take(LOG_BYTES);
            if taken.lost_up_to.is_some() {
                return Err(LedgerError::Unavailable {
                    what: "more was committed meanwhile than the backup could take: try again".into(),
                });
            }
            taken.batches.retain(|batch| batch.last() > self.shipped);
            let (Some(first), Some(last)) = (taken.batches.first(), taken.batches.last()) else {
                break;
            };
            let versions = (first.first, last.last());
            let mut body = BytesMut::new();
            taken
                .batches
                .iter()
                .for_each(|batch| body.extend_from_slice(&batch.body));
            self.entry(out, Kind::Log, versions, body.freeze()).await?;
            self.shipped = versions.1;
        }
        Ok(())
    }

    async fn entry(
        &mut self,
        out: &mut BytesMut,
        kind: Kind,
        versions: (u64, u64),
        bytes: Bytes,
    ) -> Result<(), LedgerError> {
        let bodies = bodies(bytes).await.map_err(|error| LedgerError::Unavailable {
            what: error.to_string(),
        })?;
        let mut parts = bodies.into_iter().peekable();
        while let Some(body) = parts.next() {
            self.number += 1;
            let header = Header {
                kind,
                more: parts.peek().is_some(),
                cluster: self.cluster,
                writer: self.writer,
                number: self.number,
                before: self.before,
                first: versions.0,
                last: versions.1,
                at_ms: self.clock.now_ms(),
                snapshot: if kind == Kind::Log { 0 } else { 1 },
                body_bytes: 0,
                body_digest: [0; 32],
            };
            let header = header.of_body(&body);
            self.before = header.digest();
            out.extend_from_slice(&header.encode());
            out.extend_from_slice(&body.bytes);
        }
        Ok(())
    }
}

/// Why a file is no backup that can be restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// It cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// An entry of it does not verify.
    #[error("at byte {at}: {error}")]
    Entry {
        /// Where.
        at: u64,
        /// What.
        error: EntryError,
    },
    /// It is not whole.
    #[error("the backup is not whole: {0}")]
    NotWhole(String),
}

/// A backup that was read through and verified.
#[derive(Debug)]
pub struct BackupFile {
    file: File,
    /// Whose ledger it is of.
    pub cluster: ClusterId,
    /// Its entries, and where the body of each is.
    pub entries: Vec<(Header, u64)>,
    /// The position of the ledger that it makes.
    pub position: u64,
    /// When it was complete, in milliseconds since 1970.
    pub at_ms: u64,
}

impl BackupFile {
    /// Whether a file begins as a backup does, whatever comes of the rest. Blocks.
    pub fn is_one(path: &Path) -> bool {
        let mut head = vec![0; HEADER_BYTES];
        let read = File::open(path).and_then(|mut file| file.read_exact(&mut head));
        let own = ClusterId(u128::from_be_bytes(*head[16..].first_chunk().unwrap_or(&[0; 16])));
        read.is_ok() && Header::decode(&head, own).is_ok()
    }

    /// Reads all of it, and checks it. Blocks.
    pub fn open(path: &Path) -> Result<BackupFile, BackupError> {
        let mut file = File::open(path)?;
        let total = file.metadata()?.len();
        let mut head = vec![0; HEADER_BYTES];
        let mut entries = Vec::new();
        let (mut at, mut cluster) = (0, None);
        while at < total {
            let wrong = |error| BackupError::Entry { at, error };
            let is_cut = |error: io::Error| match error.kind() {
                io::ErrorKind::UnexpectedEof => {
                    wrong(EntryError::Damaged("the file ends in the middle of it"))
                }
                _ => error.into(),
            };
            file.read_exact(&mut head).map_err(is_cut)?;
            let own = match cluster {
                Some(cluster) => cluster,
                None => ClusterId(u128::from_be_bytes(*head[16..].first_chunk().unwrap_or(&[0; 16]))),
            };
            let header = Header::decode(&head, own).map_err(wrong)?;
            cluster = Some(own);
            let mut whole = head.clone();
            whole.resize(header.total_bytes(), 0);
            file.read_exact(&mut whole[HEADER_BYTES..]).map_err(is_cut)?;
            header.check_body(&whole.into()).map_err(wrong)?;
            entries.push((header, at + HEADER_BYTES as u64));
            at += header.total_bytes() as u64;
        }
        let cluster = cluster.ok_or_else(|| BackupError::NotWhole("it is empty".into()))?;
        let plan = choose(&entries, &HashSet::new(), None)
            .map_err(|error| BackupError::NotWhole(error.to_string()))?;
        if let Some(loss) = plan.losses.first() {
            return Err(BackupError::NotWhole(loss.to_string()));
        }
        Ok(BackupFile {
            file,
            cluster,
            position: plan.position,
            at_ms: plan.at_ms,
            entries,
        })
    }
}

#[async_trait::async_trait]
impl Bodies<u64> for BackupFile {
    async fn body(&self, header: &Header, at: &u64) -> Option<Bytes> {
        let (file, header, at) = (self.file.try_clone().ok()?, *header, *at);
        let read = move || {
            let mut whole = header.encode();
            whole.resize(header.total_bytes(), 0);
            file.read_exact_at(&mut whole[HEADER_BYTES..], at).ok()?;
            header.check_body(&whole.into()).ok()
        };
        tokio::task::spawn_blocking(read).await.ok()?
    }
}
