//! An entry of the archive: bytes ↔ struct.
//!
//! ```text
//!   0 "cairnarc"                      96 last version, 8
//!   8 format version, 4              104 when it was written, ms since 1970, 8
//!  12 kind, 1                        112 number of the snapshot's first entry, 8 (0: no snapshot)
//!  13 whether the next goes on, 1    120 bytes of the body, 4
//!  14 zeros, 2                       124 zeros, 4
//!  16 cluster, 16                    128 BLAKE3 of the body, 32
//!  32 generation, 8 · its nonce, 8   160 BLAKE3 of all before: the entry's digest, 32
//!  48 number of the entry, 8         192 body
//!  56 digest of the entry before, 32 (zeros: none)
//!  88 first version, 8
//! body of a log entry     commits of consecutive versions, as in the ledger's log
//! body of a piece         rows: bytes of the key, 4 · of the value, 4 · version, 8 · key · value
//! body of an end          rows of the snapshot, 8
//! ```
//! Integers are little-endian. First and last version: of a log entry, of its commits; of a snapshot, the position of the ledger from which
//! on the log must be replayed, and the one that it must be replayed to at least.
//!
//! A batch of commits, or a row, that is longer than a body is cut, and `more` says that the next entry of the same kind goes on with it.
//!
//! Invariant: nothing is believed of an entry whose digests do not match, and no length before it was checked.

use crate::ledger::store::{Mutation, Row, Versioned};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use storage_node::protocol::ClusterId;

/// Bytes of a header.
pub const HEADER_BYTES: usize = 192;
/// The longest body.
pub const BODY_BYTES_MAX: usize = 4 << 20;

const MAGIC: [u8; 8] = *b"cairnarc";
const FORMAT: u32 = 1;
const HASHED_BYTES: usize = 160;

/// BLAKE3.
pub type Digest = [u8; 32];

/// Which ledger wrote an entry, as `GenerationRow` has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Writer {
    /// The generation.
    pub number: u64,
    /// Its nonce.
    pub nonce: u64,
}

/// What an entry holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Commits.
    Log = 1,
    /// Rows of a snapshot.
    Piece = 2,
    /// That a snapshot is complete.
    End = 3,
}

/// What an entry says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What it holds.
    pub kind: Kind,
    /// Whether the next entry of this kind goes on with what is cut at its end.
    pub more: bool,
    /// Whose ledger.
    pub cluster: ClusterId,
    /// Which of them.
    pub writer: Writer,
    /// Its number.
    pub number: u64,
    /// The digest of the entry before; zeros if it is the first.
    pub before: Digest,
    /// See the module.
    pub first: u64,
    /// See the module.
    pub last: u64,
    /// When it was written, in milliseconds since 1970. For people, and for `--at`.
    pub at_ms: u64,
    /// The number of the snapshot's first entry.
    pub snapshot: u64,
    /// Bytes of the body.
    pub body_bytes: u32,
    /// BLAKE3 of the body.
    pub body_digest: Digest,
}

/// Why bytes are no entry of this archive.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// They are something else.
    #[error("no entry of an archive")]
    NotAnEntry,
    /// A newer program wrote it.
    #[error("an entry of format {0}, which this program does not understand")]
    Format(u32),
    /// What it says of itself does not match its digest, or makes no sense.
    #[error("a damaged entry: {0}")]
    Damaged(&'static str),
    /// It is another cluster's.
    #[error("an entry of cluster {0}")]
    OtherCluster(ClusterId),
    /// No copy of it is known to be wrong, and a disk that may have a right one did not answer.
    #[error("a disk that may have it did not answer")]
    Silent,
}

/// A body, and its digest.
pub struct Body {
    /// The body.
    pub bytes: Bytes,
    digest: Digest,
}

impl Body {
    /// Hashes: megabytes are to be hashed off the reactor.
    pub fn hash(bytes: Bytes) -> Body {
        let digest = *blake3::hash(&bytes).as_bytes();
        Body { bytes, digest }
    }
}

impl Header {
    /// For a body.
    pub fn of_body(mut self, body: &Body) -> Header {
        self.body_bytes = body.bytes.len() as u32;
        self.body_digest = body.digest;
        self
    }

    fn hashed(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.put_slice(&MAGIC);
        out.put_u32_le(FORMAT);
        out.put_u8(self.kind as u8);
        out.put_u8(u8::from(self.more));
        out.put_u16_le(0);
        out.put_slice(&self.cluster.0.to_be_bytes());
        out.put_u64_le(self.writer.number);
        out.put_u64_le(self.writer.nonce);
        out.put_u64_le(self.number);
        out.put_slice(&self.before);
        out.put_u64_le(self.first);
        out.put_u64_le(self.last);
        out.put_u64_le(self.at_ms);
        out.put_u64_le(self.snapshot);
        out.put_u32_le(self.body_bytes);
        out.put_u32_le(0);
        out.put_slice(&self.body_digest);
        out
    }

    /// The digest of the entry.
    pub fn digest(&self) -> Digest {
        *blake3::hash(&self.hashed()).as_bytes()
    }

    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.hashed();
        out.extend_from_slice(blake3::hash(&out).as_bytes());
        out
    }

    /// The header at the start of these bytes.
    pub fn decode(bytes: &[u8], cluster: ClusterId) -> Result<Header, EntryError> {
        let head = bytes.get(..HEADER_BYTES).ok_or(EntryError::NotAnEntry)?;
        if !head.starts_with(&MAGIC) {
            return Err(EntryError::NotAnEntry);
        }
        if blake3::hash(&head[..HASHED_BYTES]).as_bytes()[..] != head[HASHED_BYTES..] {
            return Err(EntryError::Damaged("its header does not match its digest"));
        }
        let mut rest = &head[MAGIC.len()..];
        match rest.get_u32_le() {
            FORMAT => {}
            other => return Err(EntryError::Format(other)),
        }
        let kind = match rest.get_u8() {
            1 => Kind::Log,
            2 => Kind::Piece,
            3 => Kind::End,
            _ => return Err(EntryError::Damaged("an unknown kind")),
        };
        let more = rest.get_u8() != 0;
        rest.advance(2);
        let owner = ClusterId(rest.get_u128());
        if owner != cluster {
            return Err(EntryError::OtherCluster(owner));
        }
        let writer = Writer {
            number: rest.get_u64_le(),
            nonce: rest.get_u64_le(),
        };
        let number = rest.get_u64_le();
        let before = take_digest(&mut rest);
        let (first, last) = (rest.get_u64_le(), rest.get_u64_le());
        let (at_ms, snapshot) = (rest.get_u64_le(), rest.get_u64_le());
        let body_bytes = rest.get_u32_le();
        rest.advance(4);
        if body_bytes as usize > BODY_BYTES_MAX || last < first || snapshot > number {
            return Err(EntryError::Damaged("its numbers make no sense"));
        }
        Ok(Header {
            kind,
            more,
            cluster,
            writer,
            number,
            before,
            first,
            last,
            at_ms,
            snapshot,
            body_bytes,
            body_digest: take_digest(&mut rest),
        })
    }

    /// Bytes of the whole entry.
    pub fn total_bytes(&self) -> usize {
        HEADER_BYTES + self.body_bytes as usize
    }

    /// The body, out of the bytes of the whole entry.
    pub fn check_body(&self, entry: &Bytes) -> Result<Bytes, EntryError> {
        if entry.len() < self.total_bytes() {
            return Err(EntryError::Damaged("its body is cut short"));
        }
        let body = entry.slice(HEADER_BYTES..self.total_bytes());
        match blake3::hash(&body).as_bytes() == &self.body_digest {
            true => Ok(body),
            false => Err(EntryError::Damaged("its body does not match its digest")),
        }
    }
}

fn take_digest(bytes: &mut &[u8]) -> Digest {
    let mut digest = [0; 32];
    bytes.copy_to_slice(&mut digest);
    digest
}

/// Adds a row to the body of a piece.
pub fn put_row(body: &mut BytesMut, row: &Row) {
    body.put_u32_le(row.key.len() as u32);
    body.put_u32_le(row.versioned.value.len() as u32);
    body.put_u64_le(row.versioned.version);
    body.put_slice(&row.key);
    body.put_slice(&row.versioned.value);
}

/// Bytes that a row takes in a piece.
pub fn row_bytes(row: &Row) -> usize {
    16 + row.key.len() + row.versioned.value.len()
}

/// The rows of a piece; none if the bytes make no sense. Believes no length.
pub fn parse_rows(mut body: Bytes) -> Option<Vec<Row>> {
    let mut rows = Vec::new();
    while !body.is_empty() {
        let (key, value) = (body.try_get_u32_le().ok()?, body.try_get_u32_le().ok()?);
        let version = body.try_get_u64_le().ok()?;
        let mut take = |bytes: u32| {
            let bytes = bytes as usize;
            (bytes <= body.len()).then(|| body.split_to(bytes))
        };
        let (key, value) = (take(key)?, take(value)?);
        let versioned = Versioned { version, value };
        rows.push(Row { key, versioned });
    }
    Some(rows)
}

/// The commits of log entries whose bodies were put together, with their versions; none if they make no sense.
pub fn parse_log(body: Bytes, first: u64, last: u64) -> Option<Vec<(u64, Vec<Mutation>)>> {
    let count = u32::try_from(last.checked_sub(first)?.checked_add(1)?).ok()?;
    let commits = crate::ledger::redb::parse_commits(body, count)?;
    Some((first..).zip(commits).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> impl Strategy<Value = Header> {
        let numbers = (
            any::<u64>(),
            any::<u64>(),
            0..1_000_u64,
            any::<u64>(),
            0..1_000_u64,
            any::<u64>(),
        );
        (0..3_u8, any::<bool>(), any::<u128>(), any::<Digest>(), numbers).prop_map(
            |(kind, more, cluster, before, (number, nonce, first, at_ms, more_versions, entry))| Header {
                kind: [Kind::Log, Kind::Piece, Kind::End][usize::from(kind)],
                more,
                cluster: ClusterId(cluster),
                writer: Writer { number, nonce },
                number: entry,
                before,
                first,
                last: first + more_versions,
                at_ms,
                snapshot: entry / 2,
                body_bytes: 0,
                body_digest: [0; 32],
            },
        )
    }

    proptest! {
        #[test]
        fn an_entry_comes_back_and_no_flipped_bit_passes(
            header in header(),
            body in proptest::collection::vec(any::<u8>(), 0..300),
            flip: usize,
        ) {
            let header = header.of_body(&Body::hash(body.clone().into()));
            let mut bytes = header.encode();
            prop_assert_eq!(bytes.len(), HEADER_BYTES);
            bytes.extend_from_slice(&body);
            let read = Header::decode(&bytes, header.cluster);
            prop_assert_eq!(&read, &Ok(header));
            prop_assert_eq!(header.check_body(&bytes.clone().into()), Ok(body.into()));
            let elsewhere = ClusterId(!header.cluster.0);
            prop_assert_eq!(Header::decode(&bytes, elsewhere), Err(EntryError::OtherCluster(header.cluster)));

            let at = flip % (bytes.len() * 8);
            bytes[at / 8] ^= 1 << (at % 8);
            let read = Header::decode(&bytes, header.cluster);
            let body = read.and_then(|header| header.check_body(&bytes.into()));
            prop_assert!(body.is_err());
        }

        #[test]
        fn rows_come_back(rows in proptest::collection::vec((any::<Vec<u8>>(), any::<Vec<u8>>(), any::<u64>()), 0..20)) {
            let rows: Vec<Row> = rows.into_iter().map(|(key, value, version)| Row {
                key: key.into(),
                versioned: Versioned { version, value: value.into() },
            }).collect();
            let mut body = BytesMut::new();
            rows.iter().for_each(|row| put_row(&mut body, row));
            prop_assert_eq!(body.len(), rows.iter().map(row_bytes).sum::<usize>());
            prop_assert_eq!(parse_rows(body.freeze()), Some(rows));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>, first: u64, last: u64) {
            let _ = Header::decode(&bytes, ClusterId(1));
            let _ = parse_rows(bytes.clone().into());
            let _ = parse_log(bytes.into(), first, last); // Never panics, and believes no length.
        }
    }
}
