//! The keys of the ledger's rows: one leading byte names the table, numbers are big-endian, strings are escaped so
//! that byte order is the order S3 lists in.
//!
//! ```text
//! 'a'                                               settings of the cluster (one row)
//! 'a' 0x01                                          that rebalancing is asked for
//! 'a' 0x02                                          how long what nothing names is kept (one row)
//! 'w'                                               how fast background work goes (one row)
//! 'c' counter                                       counters that hand out ids
//! 'b' bucket name                                   bucket
//! 'o' bucket:u64 key⟨escaped⟩ version:u64           object version; 0 is the null version
//! 'u' bucket:u64 key⟨escaped⟩ upload:16 bytes       multipart upload
//! 'p' upload:16 bytes part:u16                      part of an upload
//! 'v' volume:u64                                    volume
//! 'd' disk:16 bytes                                 disk
//! 'n' node:16 bytes                                 node
//! 't' token hash:32 bytes                           token that lets a node join
//! 'B' volume:u64 blob:u64                           blob
//! 'e' volume:u64 blob:u64                           seals: the checksums of a blob's blocks
//! 'g' volume:u64 blob:u64                           garbage: a blob whose shards are to be deleted
//! 's' volume:u64 blob:u64 stripe:u32 index:u8       suspect shard
//! 'l' lease:u64                                     lease of a gateway
//! 'r' lease:u64 start:u64                           range of blob ids leased to a gateway
//! 'x'                                               scrubbing: its settings, and the census (one row)
//! 'C' volume:u64                                    last census of a volume
//! 'G'                                               generation of the ledger (one row)
//! 'U' volume:u64 blob:u64                           blob that nothing names, set aside
//! ```
//!
//! Escaping: every 0x00 of a string becomes 0x00 0xFF, and 0x00 0x01 ends it. So no escaped string is a prefix of
//! another, and they compare as the strings do.

use super::store::KeyRange;
use bytes::Bytes;

/// The row of the cluster's settings.
pub fn settings() -> Bytes {
    Bytes::from_static(b"a")
}

/// The row of the rebalancing that is asked for.
pub fn rebalance() -> Bytes {
    Bytes::from_static(b"a\x01")
}

/// The row that says how long what nothing names is kept.
pub fn keep() -> Bytes {
    Bytes::from_static(b"a\x02")
}

/// The row that says how fast background work goes.
pub fn pace() -> Bytes {
    Bytes::from_static(b"w")
}

/// The row of the ledger's generation.
pub fn generation() -> Bytes {
    Bytes::from_static(b"G")
}

/// Hands out ids of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Bucket ids.
    Bucket = 1,
    /// Volume ids.
    Volume = 2,
    /// Blob ids; leased in ranges.
    Blob = 3,
    /// Lease ids.
    Lease = 4,
}

/// The row of a counter.
pub fn counter(counter: Counter) -> Bytes {
    Bytes::from(vec![b'c', counter as u8])
}

/// The row of a bucket.
pub fn bucket(name: &str) -> Bytes {
    let mut key = Vec::with_capacity(1 + name.len());
    key.push(b'b');
    key.extend_from_slice(name.as_bytes());
    key.into()
}

/// All buckets whose names are at or after `from`, in name order.
pub fn buckets(from: &str) -> KeyRange {
    KeyRange {
        start: bucket(from),
        end: Some(Bytes::from_static(b"c")),
    }
}

/// The row of the null version of an object.
pub fn object(bucket: u64, key: &str) -> Bytes {
    let mut out = object_prefix(bucket, key);
    out.extend_from_slice(&[0x00, 0x01]);
    out.extend_from_slice(&0u64.to_be_bytes());
    out.into()
}

/// Every object row of a bucket whose key starts with `prefix` and is not before `from` (raw key bytes).
pub fn objects(bucket: u64, prefix: &str, from: &[u8]) -> KeyRange {
    range_of(b'o', bucket, prefix, from)
}

/// Every upload row of a bucket whose key starts with `prefix` and is not before `from` (raw key bytes).
pub fn uploads(bucket: u64, prefix: &str, from: &[u8]) -> KeyRange {
    range_of(b'u', bucket, prefix, from)
}

fn range_of(table: u8, bucket: u64, prefix: &str, from: &[u8]) -> KeyRange {
    let base = named(table, bucket, prefix.as_bytes());
    let start = named(table, bucket, from).max(base.clone());
    KeyRange {
        start: start.into(),
        end: successor(&base),
    }
}

fn object_prefix(bucket: u64, key: &str) -> Vec<u8> {
    named(b'o', bucket, key.as_bytes())
}

fn named(table: u8, bucket: u64, key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(key.len() + 20);
    out.push(table);
    out.extend_from_slice(&bucket.to_be_bytes());
    escape(key, &mut out);
    out
}

/// The row of an upload.
pub fn upload(bucket: u64, key: &str, upload: u128) -> Bytes {
    let mut out = named(b'u', bucket, key.as_bytes());
    out.extend_from_slice(&[0x00, 0x01]);
    out.extend_from_slice(&upload.to_be_bytes());
    out.into()
}

/// The S3 key in an object row's key.
pub fn object_name(row: &[u8]) -> Option<String> {
    let (name, rest) = unescape(row.get(9..)?)?;
    (row[0] == b'o' && rest.len() == 8).then_some(())?;
    String::from_utf8(name).ok()
}

/// The bucket's id in an object row's key.
pub fn bucket_of_row(row: &[u8]) -> Option<u64> {
    (row.len() > 9 && row[0] == b'o').then(|| number_at(row, 1))
}

/// The S3 key and the upload id in an upload row's key.
pub fn upload_name(row: &[u8]) -> Option<(String, u128)> {
    let (name, rest) = unescape(row.get(9..)?)?;
    let id = u128::from_be_bytes(rest.try_into().ok()?);
    (row[0] == b'u').then_some((String::from_utf8(name).ok()?, id))
}

/// The bucket name in a bucket row's key.
pub fn bucket_name(row: &[u8]) -> Option<String> {
    String::from_utf8(row.strip_prefix(b"b")?.to_vec()).ok()
}

/// The row of a part.
pub fn part(upload: u128, number: u16) -> Bytes {
    let mut out = Vec::with_capacity(19);
    out.push(b'p');
    out.extend_from_slice(&upload.to_be_bytes());
    out.extend_from_slice(&number.to_be_bytes());
    out.into()
}

/// The rows of all parts of an upload from number `from` on.
pub fn parts(upload: u128, from: u16) -> KeyRange {
    let mut prefix = vec![b'p'];
    prefix.extend_from_slice(&upload.to_be_bytes());
    KeyRange {
        start: part(upload, from),
        end: successor(&prefix),
    }
}

/// The part number in a part row's key.
pub fn part_number(row: &[u8]) -> Option<u16> {
    (row.len() == 19 && row[0] == b'p').then(|| u16::from_be_bytes([row[17], row[18]]))
}

/// The row of a volume.
pub fn volume(id: u64) -> Bytes {
    numbers(b'v', &[id])
}

/// The row of a disk.
pub fn disk(id: u128) -> Bytes {
    let mut out = vec![b'd'];
    out.extend_from_slice(&id.to_be_bytes());
    out.into()
}

/// The disk id in a disk row's key.
pub fn disk_id(row: &[u8]) -> Option<u128> {
    row.strip_prefix(b"d")?.try_into().ok().map(u128::from_be_bytes)
}

/// The row of a node.
pub fn node(id: u128) -> Bytes {
    let mut out = vec![b'n'];
    out.extend_from_slice(&id.to_be_bytes());
    out.into()
}

/// The node id in a node row's key.
pub fn node_id(row: &[u8]) -> Option<u128> {
    row.strip_prefix(b"n")?.try_into().ok().map(u128::from_be_bytes)
}

/// The row of a token, by its hash.
pub fn token(hash: &[u8; 32]) -> Bytes {
    let mut out = vec![b't'];
    out.extend_from_slice(hash);
    out.into()
}

/// The row of a blob.
pub fn blob(volume: u64, blob: u64) -> Bytes {
    numbers(b'B', &[volume, blob])
}

/// Volume and blob of the key of a blob's row; none of any other key.
pub fn blob_of_row(row: &[u8]) -> Option<(u64, u64)> {
    (row.first() == Some(&b'B'))
        .then(|| volume_and_blob(row))
        .flatten()
}

/// The rows of all blobs of a volume.
pub fn blobs(volume: u64) -> KeyRange {
    let prefix = numbers(b'B', &[volume]);
    KeyRange {
        end: successor(&prefix),
        start: prefix,
    }
}

/// The row of a blob whose shards are to be deleted.
pub fn garbage(volume: u64, blob: u64) -> Bytes {
    numbers(b'g', &[volume, blob])
}

/// The row of a blob that nothing names.
pub fn unnamed(volume: u64, blob: u64) -> Bytes {
    numbers(b'U', &[volume, blob])
}

/// The row of a blob's seals.
pub fn seals(volume: u64, blob: u64) -> Bytes {
    numbers(b'e', &[volume, blob])
}

/// Volume and blob of the key of a blob's row, or of its seals or garbage, or of one that was set aside.
pub fn volume_and_blob(row: &[u8]) -> Option<(u64, u64)> {
    (row.len() == 17).then(|| (number_at(row, 1), number_at(row, 9)))
}

/// The row of a suspect shard.
pub fn suspect(volume: u64, blob: u64, stripe: u32, index: u8) -> Bytes {
    let mut out = numbers(b's', &[volume, blob]).to_vec();
    out.extend_from_slice(&stripe.to_be_bytes());
    out.push(index);
    out.into()
}

/// Volume, blob, stripe and index of a suspect's key.
pub fn suspect_parts(row: &[u8]) -> Option<(u64, u64, u32, u8)> {
    let stripe = u32::from_be_bytes(row.get(17..21)?.try_into().ok()?);
    (row.len() == 22).then(|| (number_at(row, 1), number_at(row, 9), stripe, row[21]))
}

/// The row of a gateway's lease.
pub fn lease(id: u64) -> Bytes {
    numbers(b'l', &[id])
}

/// The row of a range of blob ids under a lease.
pub fn id_range(lease: u64, start: u64) -> Bytes {
    numbers(b'r', &[lease, start])
}

/// The rows of all ranges under a lease.
pub fn id_ranges(lease: u64) -> KeyRange {
    let prefix = numbers(b'r', &[lease]);
    KeyRange {
        end: successor(&prefix),
        start: prefix,
    }
}

/// The row of scrubbing.
pub fn scrub() -> Bytes {
    Bytes::from_static(b"x")
}

/// The row of a volume's last census.
pub fn volume_census(volume: u64) -> Bytes {
    numbers(b'C', &[volume])
}

/// Lease and start of an id range's key.
pub fn id_range_parts(row: &[u8]) -> Option<(u64, u64)> {
    volume_and_blob(row)
}

/// The only number in a volume's or lease's key.
pub fn single_number(row: &[u8]) -> Option<u64> {
    (row.len() == 9).then(|| number_at(row, 1))
}

/// What a key is of, in words.
pub fn words(row: &[u8]) -> String {
    let number = |at: usize| row.get(at..at + 8).map(|_| number_at(row, at));
    let id = |at: usize| {
        row.get(at..at + 16)
            .map(|id| u128::from_be_bytes(id.try_into().unwrap_or_default()))
    };
    let of_blob = |what: &str| Some(format!("{what} {} of volume {}", number(9)?, number(1)?));
    let hex = |what: &str| Some(format!("{what} {:032x}", id(1)?));
    let named = match row.first() {
        Some(b'a' | b'w' | b'x' | b'G') => Some("a row of settings".to_owned()),
        Some(b'c') => Some("a counter of ids".to_owned()),
        Some(b'b') => bucket_name(row).map(|name| format!("bucket {name:?}")),
        Some(b'o') => {
            object_name(row).and_then(|name| Some(format!("object {name:?} of bucket {}", number(1)?)))
        }
        Some(b'u') => upload_name(row)
            .and_then(|(name, _)| Some(format!("an upload of {name:?} in bucket {}", number(1)?))),
        Some(b'p') => part_number(row).map(|part| format!("part {part} of an upload")),
        Some(b'v') => single_number(row).map(|volume| format!("volume {volume}")),
        Some(b'd') => hex("disk"),
        Some(b'n') => hex("node"),
        Some(b't') => Some("a token of a node".to_owned()),
        Some(b'B') => of_blob("blob"),
        Some(b'e') => of_blob("seals of blob"),
        Some(b'g') => of_blob("garbage: blob"),
        Some(b's') => of_blob("a suspect shard: blob"),
        Some(b'U') => of_blob("unnamed blob"),
        Some(b'l') => single_number(row).map(|lease| format!("lease {lease}")),
        Some(b'r') => number(1).map(|lease| format!("a range of ids of lease {lease}")),
        Some(b'C') => single_number(row).map(|volume| format!("the census of volume {volume}")),
        _ => None,
    };
    named.unwrap_or_else(|| format!("the row with key \"{}\"", row.escape_ascii()))
}

/// A whole table.
pub fn table(tag: u8) -> KeyRange {
    KeyRange {
        start: Bytes::from(vec![tag]),
        end: Some(Bytes::from(vec![tag + 1])),
    }
}

/// The smallest key after `key`: where a scan that stopped at `key` goes on.
pub fn after(key: &[u8]) -> Bytes {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next.into()
}

/// The first key after every key that starts with `prefix`; none if the prefix is all 0xFF.
pub fn successor(prefix: &[u8]) -> Option<Bytes> {
    let last = prefix.iter().rposition(|&b| b != 0xFF)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end.into())
}

fn numbers(tag: u8, values: &[u64]) -> Bytes {
    let mut out = Vec::with_capacity(1 + 8 * values.len());
    out.push(tag);
    for value in values {
        out.extend_from_slice(&value.to_be_bytes());
    }
    out.into()
}

fn number_at(row: &[u8], at: usize) -> u64 {
    let mut bytes = [0u8; 8];
    bytes.copy_from_slice(&row[at..at + 8]);
    u64::from_be_bytes(bytes)
}

fn escape(raw: &[u8], out: &mut Vec<u8>) {
    for &byte in raw {
        out.push(byte);
        if byte == 0 {
            out.push(0xFF);
        }
    }
}

/// Splits an escaped, terminated string from what follows it.
fn unescape(mut bytes: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut out = Vec::with_capacity(bytes.len());
    loop {
        let zero = bytes.iter().position(|&b| b == 0)?;
        out.extend_from_slice(&bytes[..zero]);
        match bytes.get(zero + 1)? {
            0xFF => out.push(0),
            0x01 => return Some((out, &bytes[zero + 2..])),
            _ => return None,
        }
        bytes = &bytes[zero + 2..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn object_rows_order_as_keys(a in ".{0,20}", b in ".{0,20}") {
            prop_assert_eq!(object(7, &a).cmp(&object(7, &b)), a.as_bytes().cmp(b.as_bytes()));
        }

        #[test]
        fn names_come_back(name in "(\\x00|a|\u{10FFFF}|.){0,20}", id: u128) {
            let row = object(3, &name);
            let upload_row = upload(3, &name, id);
            prop_assert_eq!(object_name(&row), Some(name.clone()));
            prop_assert_eq!(upload_name(&upload_row), Some((name, id)));
        }

        #[test]
        fn ranges_hold_just_the_prefix(prefix in "[ab\\x00]{0,3}", key in "[ab\\x00]{0,5}") {
            let range = objects(1, &prefix, b"");
            let row = object(1, &key);
            let inside = row >= range.start && range.end.is_none_or(|end| row < end);
            prop_assert_eq!(inside, key.starts_with(&prefix));
        }
    }

    #[test]
    fn damaged_keys_are_refused() {
        for row in [
            &b""[..],
            b"o",
            b"o12345678",
            b"o12345678\x00\x02",
            b"o12345678a\x00\x01123",
        ] {
            assert_eq!(object_name(row), None);
        }
        assert_eq!(successor(&[1, 0xFF]), Some(Bytes::from_static(&[2])));
        assert_eq!(successor(&[0xFF]), None);
    }
}
