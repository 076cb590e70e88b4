//! All rows of a ledger, in the order of their keys, page by page, while commits go on: the pieces of a snapshot.
//!
//! Invariant: a row that cannot be read ends the scan with an error. A snapshot without it would say that it does not exist.

use super::entry::{BODY_BYTES_MAX, Body, put_row, row_bytes};
use crate::error::Result;
use crate::ledger::key;
use crate::ledger::store::{Direction, KeyRange, LedgerError, Store};
use crate::object::off_reactor;
use bytes::{Bytes, BytesMut};

/// Bytes of rows after which a piece is full.
const PIECE_BYTES: usize = 1 << 20;
/// So many bytes are hashed in microseconds.
const HASHED_HERE_MAX: usize = 64 << 10;
/// Rows read at a time.
const PAGE_ROWS: usize = 500;

/// How far a scan is.
#[derive(Debug, Default)]
pub struct Scan {
    next: Bytes,
    done: bool,
    /// Rows so far.
    pub rows: u64,
}

impl Scan {
    /// The next rows; none when there are no more. One row alone may be longer than a body of an entry.
    pub async fn piece(&mut self, store: &dyn Store) -> std::result::Result<Option<Bytes>, LedgerError> {
        let mut body = BytesMut::new();
        let mut is_full = false;
        while !is_full && !self.done {
            let range = KeyRange {
                start: self.next.clone(),
                end: None,
            };
            let rows = store.scan(range, PAGE_ROWS, Direction::Forward).await?;
            self.done = rows.len() < PAGE_ROWS;
            for row in &rows {
                if body.len() + row_bytes(row) > 2 * PIECE_BYTES && !body.is_empty() {
                    // It begins the next piece.
                    (self.done, is_full) = (false, true);
                    break;
                }
                put_row(&mut body, row);
                self.rows += 1;
                self.next = key::after(&row.key);
            }
            is_full |= body.len() >= PIECE_BYTES;
        }
        Ok((!body.is_empty()).then(|| body.freeze()))
    }
}

/// Cuts bytes into bodies of entries, and hashes them: what takes long, off the reactor.
pub async fn bodies(bytes: Bytes) -> Result<Vec<Body>> {
    let is_short = bytes.len() <= HASHED_HERE_MAX;
    let hash = move || cut(bytes, BODY_BYTES_MAX).into_iter().map(Body::hash).collect();
    match is_short {
        true => Ok(hash()),
        false => off_reactor(hash).await,
    }
}

pub(super) fn cut(mut bytes: Bytes, most: usize) -> Vec<Bytes> {
    let mut parts = Vec::new();
    while bytes.len() > most {
        parts.push(bytes.split_to(most));
    }
    parts.push(bytes);
    parts
}
