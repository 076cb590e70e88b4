//! What must hold of any bytes that come from a disk or a socket; for the fuzz targets of `tests/fuzz` and the tests
//! that replay their corpus. Each function takes bytes that somebody else made up, and panics where a decoder breaks
//! its word.
//!
//! - No bytes make a decoder panic.
//! - What was decoded encodes to bytes that decode to the same; where a format has no slack, to the same bytes.
//!
//! Checksums would keep a fuzzer outside: so bytes are tried as they are, and again with a checksum that is right.

use crate::client::MANY_SHARDS_MAX;
use crate::device::BLOCK;
use crate::format::extent::{DiskIdentity, EXTENT_HEADER_BYTES, ExtentHeader};
use crate::format::layout::{EXTENT_SIZE_MAX, Layout};
use crate::format::record::{
    HEAD_FIXED_BYTES, RecordHead, RecordKind, RecordPlace, WHITE_FROM, decode_cut_places, encode_cut_places,
    head_len, place, plain, whiten,
};
use crate::format::summary::{
    SUMMARY_ENTRY_BYTES, SUMMARY_FOOTER_BYTES, SummaryEntry, SummaryFooter, Tail, seeded_crc, summary_start,
};
use crate::format::superblock::{SUPERBLOCK_BYTES, SUPERBLOCK_BYTES_V2, Superblock, encoded_len};
use crate::protocol::{
    Admission, Beat, BlankDisk, ClusterId, DiskId, DiskState, DiskStatus, Finding, FindingKind, Findings,
    Generation, Heard, InventoryEntry, LedgerMarks, NodeError, NodeStatus, Opening, Seal, SealedShard,
    ShardKey, UnitId, UnitInfo, VerifyStatus, bad_block, block_count,
};
use crate::wire;
use bytes::Bytes;
use futures::FutureExt;
use http::StatusCode;
use http_body_util::BodyExt;
use serde::{Serialize, de::DeserializeOwned};
use std::str::FromStr;

/// A fuzz target.
pub type Target = fn(&[u8]);

/// Every target, by the name that its corpus has.
pub const TARGETS: [(&str, Target); 9] = [
    ("superblock", superblock),
    ("extent_header", extent_header),
    ("record_head", record_head),
    ("cut_places", cut_places),
    ("summary", summary),
    ("wire_shard", wire_shard),
    ("wire_many", wire_many),
    ("wire_blobs", wire_blobs),
    ("wire_json", wire_json),
];

const IDENTITY: DiskIdentity = DiskIdentity {
    disk: DiskId(77),
    incarnation: 3,
};
const EXTENT: u32 = 6;
const KEY: ShardKey = ShardKey { blob: 99, stripe: 2 };
const UNIT: UnitId = UnitId { volume: 12, index: 4 };
/// Which use of the extent it is.
const GENERATION: u64 = 11;
const DEVICE_SIZE: u64 = 1 << 30;
const EXTENT_SIZE: u64 = 4 << 20;
/// Extent, generation and offset, before a record's head.
const PLACE_BYTES: usize = 16;

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// A superblock.
pub fn superblock(bytes: &[u8]) {
    check_superblock(bytes);
    if let Some(bytes) = bytes.get(..SUPERBLOCK_BYTES) {
        let mut bytes = bytes.to_vec();
        bytes[..8].copy_from_slice(b"CAIRNDSK");
        for len in [SUPERBLOCK_BYTES_V2, SUPERBLOCK_BYTES] {
            let crc = crc32fast::hash(&bytes[12..len]);
            bytes[8..12].copy_from_slice(&crc.to_le_bytes());
            check_superblock(&bytes);
        }
    }
}

fn check_superblock(bytes: &[u8]) {
    let Ok(found) = Superblock::decode(bytes) else {
        return;
    };
    assert_eq!(Superblock::decode(&found.encode()), Ok(found));
    let len = encoded_len(found.version);
    let (before, reserved) = (&bytes[100..104], &bytes[len.min(172)..len]);
    if is_zero(before) && is_zero(reserved) {
        assert_eq!(found.encode()[..len], bytes[..len]);
    }
    if let Ok(layout) = Layout::new(found.device_size, found.extent_size) {
        let last = layout.extent_offset(layout.extents() - 1);
        assert!(last + layout.extent_size() <= found.device_size);
    }
}

/// An extent header.
pub fn extent_header(bytes: &[u8]) {
    check_extent_header(bytes);
    if let Some(bytes) = bytes.get(..EXTENT_HEADER_BYTES) {
        let mut bytes = bytes.to_vec();
        bytes[..4].copy_from_slice(b"CEXT");
        bytes[12..16].copy_from_slice(&EXTENT.to_le_bytes());
        bytes[40..48].copy_from_slice(&IDENTITY.incarnation.to_le_bytes());
        bytes[48..64].copy_from_slice(&IDENTITY.disk.0.to_le_bytes());
        let seed = crc32fast::hash(&IDENTITY.disk.0.to_le_bytes());
        set_crc(&mut bytes, seed);
        check_extent_header(&bytes);
    }
}

fn set_crc(head: &mut [u8], seed: u32) {
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    hasher.update(&head[8..]);
    let crc = hasher.finalize();
    head[4..8].copy_from_slice(&crc.to_le_bytes());
}

fn check_extent_header(bytes: &[u8]) {
    let Ok(found) = ExtentHeader::decode(bytes, &IDENTITY, EXTENT) else {
        return;
    };
    let again = found.encode(&IDENTITY);
    assert_eq!(ExtentHeader::decode(&again, &IDENTITY, EXTENT), Ok(found));
    assert!(ExtentHeader::decode(&again, &IDENTITY, EXTENT + 1).is_err());
    let nobody = found.owner.is_none();
    if is_zero(&bytes[10..12])
        && is_zero(&bytes[64..EXTENT_HEADER_BYTES])
        && !(nobody && (bytes[9] != 0 || !is_zero(&bytes[32..40])))
    {
        assert_eq!(again, bytes[..EXTENT_HEADER_BYTES]);
    }
}

/// Where a reader believes to be (extent, generation, offset), then the bytes there.
pub fn record_head(bytes: &[u8]) {
    let Some((start, head)) = bytes.split_at_checked(PLACE_BYTES) else {
        return;
    };
    let Ok(&[here]) = decode_cut_places(start).as_deref() else {
        return;
    };
    check_record_head(head, here);
    let Some(fixed) = head.get(..HEAD_FIXED_BYTES as usize) else {
        return;
    };
    let digests = u32::from(fixed[10]);
    let len = u32::from_le_bytes([fixed[20], fixed[21], fixed[22], fixed[23]]);
    let end = head_len(block_count(len), digests) as usize;
    if let Some(head) = head.get(..end) {
        let mut head = head.to_vec();
        head[..4].copy_from_slice(b"CREC");
        head[72..80].copy_from_slice(&here.generation.to_le_bytes());
        head[80..88].copy_from_slice(&IDENTITY.incarnation.to_le_bytes());
        head[88..92].copy_from_slice(&here.extent.to_le_bytes());
        head[92..96].copy_from_slice(&here.offset.to_le_bytes());
        let batch = u64::from_le_bytes(head[56..64].try_into().unwrap_or_default());
        for form in [0, 1] {
            head[11] = form;
            if form == 1 {
                whiten(&mut head[WHITE_FROM..], batch);
            }
            set_crc(&mut head, IDENTITY.record_seed(here.extent, here.generation));
            check_record_head(&head, here);
        }
    }
}

fn check_record_head(bytes: &[u8], here: RecordPlace) {
    let claimed = RecordHead::claim(bytes, here);
    let Ok(head) = RecordHead::decode(bytes, &IDENTITY, here) else {
        return;
    };
    assert_eq!(claimed, Some((head.unit, head.key, head.batch)));
    assert_eq!(head.block_crcs.len(), block_count(head.len) as usize);
    assert!(head.head_len() <= head.payload_at && head.payload_at + head.len <= head.next_at);
    assert!(u64::from(here.offset) + u64::from(head.next_at) <= EXTENT_SIZE_MAX);
    let mut again = vec![0; head.head_len() as usize];
    head.encode(&IDENTITY, &mut again);
    let plainly = |bytes: &[u8]| plain(bytes).map(|plain| [&plain[8..11], &plain[12..]].concat());
    let before = plain(&bytes[..again.len()]).unwrap_or_default();
    if is_zero(&before[104..HEAD_FIXED_BYTES as usize]) {
        assert_eq!(plainly(&again), plainly(&bytes[..again.len()]));
    }
    for elsewhere in [
        RecordPlace {
            extent: here.extent ^ 1,
            ..here
        },
        RecordPlace {
            generation: here.generation ^ 1,
            ..here
        },
        RecordPlace {
            offset: here.offset ^ 64,
            ..here
        },
    ] {
        assert!(RecordHead::decode(&again, &IDENTITY, elsewhere).is_err());
    }
    assert_eq!(RecordHead::decode(&again, &IDENTITY, here), Ok(head));
}

/// The places in a cut record.
pub fn cut_places(bytes: &[u8]) {
    if let Ok(places) = decode_cut_places(bytes) {
        assert_eq!(encode_cut_places(&places), bytes);
    }
}

/// A summary: its footer, then its entries.
pub fn summary(bytes: &[u8]) {
    let layout = Layout::new(DEVICE_SIZE, EXTENT_SIZE).expect("a disk of these sizes");
    let Some((footer, entries)) = bytes.split_at_checked(SUMMARY_FOOTER_BYTES) else {
        assert_eq!(
            Tail::of(bytes, &IDENTITY, EXTENT, GENERATION, &layout),
            Tail::Open
        );
        return;
    };
    check_summary(footer, entries, &layout);
    // With checksums that are right, and with as many entries as there are.
    let crc = |bytes: &[u8]| seeded_crc(&IDENTITY, EXTENT, GENERATION, bytes).to_le_bytes();
    let mut footer = footer.to_vec();
    footer[..4].copy_from_slice(b"CSUM");
    footer[8..12].copy_from_slice(&1u32.to_le_bytes());
    footer[12..16].copy_from_slice(&EXTENT.to_le_bytes());
    footer[16..24].copy_from_slice(&GENERATION.to_le_bytes());
    footer[24..32].copy_from_slice(&IDENTITY.incarnation.to_le_bytes());
    let claimed = u32::from_le_bytes([footer[44], footer[45], footer[46], footer[47]]);
    for count in [claimed as usize, entries.len() / SUMMARY_ENTRY_BYTES] {
        let listed = entries.get(..count.saturating_mul(SUMMARY_ENTRY_BYTES));
        footer[44..48].copy_from_slice(&(count as u32).to_le_bytes());
        footer[48..52].copy_from_slice(&crc(listed.unwrap_or_default()));
        let own = crc(&footer[8..]);
        footer[4..8].copy_from_slice(&own);
        check_summary(&footer, entries, &layout);
    }
}

fn check_summary(bytes: &[u8], entries: &[u8], layout: &Layout) {
    let found = SummaryFooter::decode(bytes, &IDENTITY, EXTENT, GENERATION, layout);
    let tail = Tail::of(bytes, &IDENTITY, EXTENT, GENERATION, layout);
    let Ok(footer) = found else {
        return assert!(!matches!(tail, Tail::Sealed(_)));
    };
    assert_eq!(tail, Tail::Sealed(footer));
    assert!(footer.batch <= footer.flushed && footer.entries <= footer.ordinal);
    assert!((layout.data_start()..=summary_start(layout, footer.entries.into())).contains(&footer.end));
    let again = footer.encode(&IDENTITY);
    let decode = |extent, generation| SummaryFooter::decode(&again, &IDENTITY, extent, generation, layout);
    assert_eq!(decode(EXTENT, GENERATION), Ok(footer));
    assert!(decode(EXTENT ^ 1, GENERATION).is_err() && decode(EXTENT, GENERATION ^ 1).is_err());
    if is_zero(&bytes[41..44]) && is_zero(&bytes[96..]) {
        assert_eq!(again, bytes);
    }
    if let Ok(listed) = footer.decode_entries(entries, &IDENTITY) {
        check_entries(&footer, &listed, entries, layout);
    }
}

/// They are as many as the footer says, in the order of their places, inside the log and beside one another; and an entry has
/// no slack.
fn check_entries(footer: &SummaryFooter, listed: &[SummaryEntry], bytes: &[u8], layout: &Layout) {
    assert_eq!(listed.len(), footer.entries as usize);
    let mut free = layout.data_start();
    for (entry, bytes) in listed.iter().zip(bytes.as_chunks::<SUMMARY_ENTRY_BYTES>().0) {
        assert_eq!(entry.encode(footer.base).as_ref(), Some(bytes));
        assert_eq!(SummaryEntry::offset_of(bytes), entry.offset);
        let head = head_len(block_count(entry.len), entry.digests.into());
        let (payload_at, end) = place(entry.offset, head, entry.len);
        assert!(free <= entry.offset && payload_at + entry.len <= end);
        free = entry.offset + end;
        assert!(free <= footer.end && entry.sequence <= footer.sequence);
    }
}

fn joined(pieces: wire::Pieces) -> Bytes {
    match pieces.collect().now_or_never() {
        Some(Ok(body)) => body.to_bytes(),
        _ => panic!("pieces that are there have to be waited for"),
    }
}

/// A body with a shard, or with blocks of one.
pub fn wire_shard(bytes: &[u8]) {
    let body = Bytes::copy_from_slice(bytes);
    let blocks = wire::decode_blocks(body.clone());
    if let Ok(blocks) = &blocks {
        assert!(bytes.len() <= wire::BODY_BYTES_MAX);
        assert_eq!(
            block_count(blocks.payload.len() as u32) as usize,
            blocks.block_crcs.len()
        );
        assert_eq!(joined(wire::encode_blocks(blocks)), body);
    }
    if let Ok(shard) = wire::decode_shard(KEY, body.clone()) {
        // Damaged or not, it can be compared with its seal.
        let _ = bad_block(1, &shard.payload, &shard.seal.block_crcs);
        assert!(blocks.is_ok());
        assert_eq!(joined(wire::encode_shard(&shard)), body);
    }
}

/// Many shards in one body.
pub fn wire_many(bytes: &[u8]) {
    let body = Bytes::copy_from_slice(bytes);
    if let Ok(keys) = wire::many::decode_keys(body.clone()) {
        assert_eq!(joined(wire::many::encode_keys(&keys)), body);
    }
    if let Ok(shards) = wire::many::decode_shards(body.clone()) {
        assert!(shards.len() <= MANY_SHARDS_MAX);
        assert_eq!(joined(wire::many::encode_shards(&shards)), body);
    }
    if let Ok(reads) = wire::many::decode_reads(body) {
        let again = joined(wire::many::encode_reads(&reads));
        assert_eq!(wire::many::decode_reads(again), Ok(reads));
    }
    check_json::<Vec<Option<NodeError>>>(bytes);
}

/// A body with blob ids.
pub fn wire_blobs(bytes: &[u8]) {
    if let Ok(blobs) = wire::decode_blobs(bytes) {
        assert_eq!(joined(wire::encode_blobs(&blobs)), bytes);
    }
}

/// Answers in JSON, and ids in paths.
pub fn wire_json(bytes: &[u8]) {
    check_json::<NodeStatus>(bytes);
    check_json::<Findings>(bytes);
    check_json::<Vec<InventoryEntry>>(bytes);
    check_json::<Vec<UnitInfo>>(bytes);
    check_json::<NodeError>(bytes);
    // Whatever a node answers is an error that has a status.
    let error = wire::decode_error(StatusCode::CONFLICT, bytes);
    assert!(!wire::status_of(&error).is_success());
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let (disk, cluster) = (DiskId::from_str(text), ClusterId::from_str(text));
    assert_eq!(disk.is_ok(), cluster.is_ok());
    if let Ok(disk) = disk {
        assert!(disk.to_string().eq_ignore_ascii_case(text));
    }
}

fn check_json<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    let Ok(found) = serde_json::from_slice::<T>(bytes) else {
        return;
    };
    let again = serde_json::to_vec(&found).map(|bytes| serde_json::from_slice::<T>(&bytes));
    assert!(
        matches!(&again, Ok(Ok(again)) if *again == found),
        "{found:?}, and then {again:?}"
    );
}

/// Bytes as the product writes them, to start from: target, name, bytes.
pub fn seeds() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let superblock = Superblock {
        disk: IDENTITY.disk,
        version: crate::format::superblock::FORMAT_VERSION,
        cluster: ClusterId(5),
        incarnation: IDENTITY.incarnation,
        sequence: 9,
        device_size: DEVICE_SIZE,
        extent_size: EXTENT_SIZE,
        generation_limit: 1024,
        flushed: 12,
        verified: 17,
        headers: 0,
        admission: Admission::default(),
        ledger: LedgerMarks::default(),
    };
    let header = |owner| ExtentHeader {
        owner,
        extent: EXTENT,
        generation: GENERATION,
        sequence: 12,
    };
    let places: Vec<u8> = encode_cut_places(&[1, 2, 3].map(place_of));
    let blobs = joined(wire::encode_blobs(&[1, u64::MAX, 7 << 32]));
    let mut seeds = vec![
        ("superblock", "seed", superblock.encode().to_vec()),
        (
            "extent_header",
            "seed-owned",
            header(Some(UNIT)).encode(&IDENTITY).to_vec(),
        ),
        (
            "extent_header",
            "seed-free",
            header(None).encode(&IDENTITY).to_vec(),
        ),
        ("record_head", "seed-shard", head(RecordKind::Shard, 70_000, 6)),
        ("record_head", "seed-small", head(RecordKind::Shard, 100, 1)),
        ("record_head", "seed-tombstone", head(RecordKind::Tombstone, 0, 0)),
        ("record_head", "seed-dropped", head(RecordKind::UnitDropped, 0, 0)),
        ("record_head", "seed-cut", head(RecordKind::Cut, 48, 0)),
        ("cut_places", "seed", places),
        ("summary", "seed", sealed(&[100, 70_000, 0, 1 << 20])),
        ("summary", "seed-empty", sealed(&[])),
        (
            "wire_shard",
            "seed-shard",
            joined(wire::encode_shard(&shard(200))).to_vec(),
        ),
        (
            "wire_shard",
            "seed-two-blocks",
            joined(wire::encode_shard(&shard(65_600))).to_vec(),
        ),
        (
            "wire_many",
            "seed-keys",
            joined(wire::many::encode_keys(&[KEY, KEY])).to_vec(),
        ),
        (
            "wire_many",
            "seed-shards",
            joined(wire::many::encode_shards(&[shard(200), shard(17_000)])).to_vec(),
        ),
        (
            "wire_many",
            "seed-reads",
            joined(wire::many::encode_reads(&[
                wire::decode_blocks(joined(wire::encode_shard(&shard(200)))),
                Err(NodeError::StaleEpoch { current: 4 }),
            ]))
            .to_vec(),
        ),
        ("wire_blobs", "seed", blobs.to_vec()),
        ("wire_json", "seed-id", IDENTITY.disk.to_string().into_bytes()),
    ];
    seeds.extend(
        json_seeds()
            .into_iter()
            .map(|(name, json)| ("wire_json", name, json.into_bytes())),
    );
    seeds
}

fn place_of(extent: u32) -> RecordPlace {
    RecordPlace {
        extent,
        generation: 8,
        offset: 4096 + extent * 64,
    }
}

fn head(kind: RecordKind, len: u32, digests: usize) -> Vec<u8> {
    let (here, blocks) = (place_of(3), block_count(len));
    let (payload_at, end) = place(here.offset, head_len(blocks, digests as u32), len);
    let head = RecordHead {
        kind,
        unit: UNIT,
        key: KEY,
        epoch: 6,
        sequence: 1000,
        batch: 50,
        flushed: 49,
        place: here,
        ordinal: 17,
        part_start: 4096,
        loose_start: 4096,
        payload_at,
        next_at: end.next_multiple_of(64),
        len,
        block_crcs: (0..blocks).collect(),
        digests: vec![[9; 32]; digests],
    };
    let mut bytes = encode_cut_places(&[here]);
    bytes.resize(PLACE_BYTES + head.head_len() as usize, 0);
    head.encode(&IDENTITY, &mut bytes[PLACE_BYTES..]);
    bytes
}

/// The summary of records of these lengths.
fn sealed(lens: &[u32]) -> Vec<u8> {
    let (base, mut end, mut entries) = (1000, BLOCK as u32, Vec::new());
    for (number, &len) in lens.iter().enumerate() {
        let entry = SummaryEntry {
            key: KEY,
            // Copies that compaction made are older than what is before them.
            sequence: base - number as u64,
            offset: end,
            len,
            digests: 6,
        };
        let (_, next) = place(end, head_len(block_count(len), 6), len);
        end += next.next_multiple_of(64);
        entries.extend(entry.encode(base).unwrap_or_default());
    }
    let footer = SummaryFooter {
        extent: EXTENT,
        generation: GENERATION,
        unit: UNIT,
        entries: lens.len() as u32,
        entries_crc: seeded_crc(&IDENTITY, EXTENT, GENERATION, &entries),
        end: end.next_multiple_of(BLOCK as u32),
        ordinal: lens.len() as u32 + 1,
        epoch: 6,
        base,
        sequence: base,
        batch: 50,
        flushed: 51,
    };
    [footer.encode(&IDENTITY).to_vec(), entries].concat()
}

fn shard(len: usize) -> SealedShard {
    let seal = Seal {
        block_crcs: vec![7; block_count(len as u32) as usize],
        digests: vec![[8; 32]; 3],
    };
    SealedShard {
        key: KEY,
        seal,
        payload: vec![0; len].into(),
    }
}

fn json_seeds() -> Vec<(&'static str, String)> {
    let disk = |state| DiskStatus {
        disk: IDENTITY.disk,
        incarnation: 3,
        path: "/disk".into(),
        state,
        backend: "io_uring".into(),
        capacity_bytes: 1 << 40,
        free_bytes: 1,
        live_bytes: 2,
        shards: 3,
        corrupt_shards: 0,
        opening: Some(Opening::default()),
        verify: Some(VerifyStatus::default()),
        ledger: Some(LedgerMarks::default()),
    };
    let reason = || "a \"reason\"".to_string();
    let status = NodeStatus {
        disks: vec![
            disk(DiskState::Online),
            disk(DiskState::Fenced { reason: reason() }),
        ],
        blank: vec![BlankDisk {
            path: "/dev/nothing".into(),
            size: 1 << 40,
            holds: Some(reason()),
        }],
        heard: Some(Heard {
            beat: Beat {
                gateway: "gateway".into(),
                instance: "a".into(),
                generation: Generation { number: 1, nonce: 2 },
            },
            ago_ms: 5,
        }),
    };
    let finding = Finding {
        kind: FindingKind::Corrupt,
        unit: UNIT,
        key: KEY,
        extent: EXTENT,
        offset: 4096,
        what: reason(),
    };
    let findings = Findings {
        opened: u64::MAX,
        last: 1,
        found: vec![finding],
    };
    let unit = UnitInfo {
        unit: UNIT,
        epoch: 1,
        shards: 2,
        live_bytes: 3,
    };
    vec![
        ("seed-status", json(&status)),
        ("seed-findings", json(&findings)),
        ("seed-inventory", json(&[InventoryEntry { key: KEY, len: 5 }])),
        ("seed-units", json(&[unit])),
        ("seed-stale", json(&NodeError::StaleEpoch { current: 4 })),
        ("seed-corrupt", json(&NodeError::Corrupt { what: reason() })),
        ("seed-no-space", json(&NodeError::NoSpace)),
    ]
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}
