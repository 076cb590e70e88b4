//! Decoders on any bytes, on damaged valid ones, and on their own output; golden bytes of format version 1.

use super::extent::{DiskIdentity, EXTENT_HEADER_BYTES, ExtentHeader};
use super::layout::{EXTENT_SIZE_USUAL_MIN, Layout, extent_size_for, superblock_offset};
use super::record::{
    HEAD_BYTES_MAX, RecordHead, RecordKind, RecordPlace, decode_cut_places, encode_cut_places, head_len,
    place,
};
use super::superblock::{SUPERBLOCK_BYTES, SUPERBLOCK_COPIES, Superblock};
use crate::device::BLOCK;
use crate::protocol::{ClusterId, DiskId, SHARD_BYTES_MAX, ShardKey, UnitId, block_count};
use proptest::prelude::*;

const IDENTITY: DiskIdentity = DiskIdentity {
    disk: DiskId(77),
    incarnation: 3,
};

fn superblock() -> Superblock {
    Superblock {
        disk: DiskId(77),
        cluster: ClusterId(5),
        incarnation: 3,
        sequence: 9,
        device_size: 1 << 30,
        extent_size: 4 << 20,
        generation_limit: 1024,
        flushed: 0,
        verified: 0,
    }
}

fn head(at: u32, len: u32, digests: usize) -> RecordHead {
    let blocks = block_count(len);
    let (payload_at, end) = place(at, head_len(blocks, digests as u32), len);
    RecordHead {
        kind: RecordKind::Shard,
        unit: UnitId { volume: 12, index: 4 },
        key: ShardKey { blob: 99, stripe: 2 },
        epoch: 6,
        sequence: 1000,
        batch: 50,
        flushed: 49,
        place: RecordPlace {
            extent: 3,
            generation: 8,
            offset: at,
        },
        ordinal: 17,
        part_start: 4096,
        loose_start: 4096,
        payload_at,
        next_at: end.next_multiple_of(64),
        len,
        block_crcs: (0..blocks).collect(),
        digests: (0..digests).map(|n| [n as u8; 32]).collect(),
    }
}

fn encoded(head: &RecordHead) -> Vec<u8> {
    let mut bytes = vec![0; head.head_len() as usize];
    head.encode(&IDENTITY, &mut bytes);
    bytes
}

proptest! {
    #[test]
    fn any_bytes_are_refused_without_a_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..10_000),
        magic in 0..4usize,
        offset in any::<u32>(),
    ) {
        let mut bytes = bytes;
        let magic: &[u8] = [&b""[..], b"CREC", b"CEXT", b"CAIRNDSK"][magic];
        if bytes.len() >= magic.len() {
            bytes[..magic.len()].copy_from_slice(magic);
        }
        let here = RecordPlace { extent: 3, generation: 8, offset };
        prop_assert!(RecordHead::decode(&bytes, &IDENTITY, here).is_err());
        prop_assert!(ExtentHeader::decode(&bytes, &IDENTITY, 3).is_err());
        prop_assert!(Superblock::decode(&bytes).is_err());
        let _ = decode_cut_places(&bytes);
    }

    #[test]
    fn a_record_head_comes_back_and_any_flipped_bit_is_noticed(
        len in 0..=SHARD_BYTES_MAX,
        digests in 0..=255usize,
        at in 0..1000u32,
        flip in any::<prop::sample::Index>(),
    ) {
        let head = head(4096 + at * 64, len, digests);
        let mut bytes = encoded(&head);
        prop_assert_eq!(RecordHead::decode(&bytes, &IDENTITY, head.place), Ok(head.clone()));
        for short in [0, 4, 127, bytes.len() - 1] {
            prop_assert!(RecordHead::decode(&bytes[..short], &IDENTITY, head.place).is_err());
        }
        let bit = flip.index(bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(RecordHead::decode(&bytes, &IDENTITY, head.place).is_err());
    }

    #[test]
    fn a_head_is_valid_only_in_its_own_place(extent in 0..6u32, generation in 6..10u64, block in 0..3u32) {
        let head = head(4096, 70_000, 6);
        let bytes = encoded(&head);
        let here = RecordPlace { extent, generation, offset: block * 4096 };
        prop_assert_eq!(RecordHead::decode(&bytes, &IDENTITY, here).is_ok(), here == head.place);
        let other = DiskIdentity { incarnation: 4, ..IDENTITY };
        prop_assert!(RecordHead::decode(&bytes, &other, head.place).is_err());
    }

    #[test]
    fn a_superblock_and_an_extent_header_notice_any_flipped_bit(bit in 0..SUPERBLOCK_BYTES * 8, owned: bool) {
        let mut bytes = superblock().encode();
        prop_assert_eq!(Superblock::decode(&bytes), Ok(superblock()));
        let verified = Superblock { verified: 17, ..superblock() };
        prop_assert_eq!(Superblock::decode(&verified.encode()), Ok(verified));
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(Superblock::decode(&bytes).is_err());
        let owner = owned.then_some(UnitId { volume: 4, index: 1 });
        let header = ExtentHeader { owner, extent: 6, generation: 11, sequence: 12 };
        let mut bytes = header.encode(&IDENTITY);
        prop_assert_eq!(ExtentHeader::decode(&bytes, &IDENTITY, 6), Ok(header));
        prop_assert!(ExtentHeader::decode(&bytes, &IDENTITY, 7).is_err());
        let bit = bit % (EXTENT_HEADER_BYTES * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(ExtentHeader::decode(&bytes, &IDENTITY, 6).is_err());
    }

    #[test]
    fn nothing_on_a_disk_overlaps(size in (64u64 << 20)..(1 << 42)) {
        let extent_size = extent_size_for(size);
        prop_assert!(extent_size >= EXTENT_SIZE_USUAL_MIN);
        let layout = Layout::new(size, extent_size).unwrap();
        let superblocks = (0..SUPERBLOCK_COPIES).map(|copy| (superblock_offset(size, copy), BLOCK as u64));
        let some = (0..layout.extents()).step_by((layout.extents() as usize / 500).max(1));
        let edges = some.chain([layout.extents() - 1]);
        let mut regions: Vec<_> = edges.map(|e| (layout.extent_offset(e), extent_size)).chain(superblocks).collect();
        regions.sort_unstable();
        regions.dedup();
        prop_assert!(regions.iter().all(|(start, _)| start % BLOCK as u64 == 0));
        prop_assert!(regions.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0));
        let (last, len) = regions[regions.len() - 1];
        prop_assert!(last + len <= size);
        if size >= 1 << 30 {
            prop_assert!(layout.extents() >= 60, "{} extents", layout.extents());
        }
    }
}

/// Bytes whose checksum is right and whose numbers leave no room to count on: refused, or adding one would overflow.
#[test]
fn impossible_numbers_are_refused() {
    let refused = |change: fn(&mut RecordHead)| {
        let mut head = head(4096, 70_000, 6);
        change(&mut head);
        RecordHead::decode(&encoded(&head), &IDENTITY, head.place).is_err()
    };
    assert!(!refused(|_| {}));
    assert!(refused(|head| head.sequence = u64::MAX));
    assert!(refused(|head| head.batch = u64::MAX));
    assert!(refused(|head| head.flushed = head.batch));
    assert!(refused(|head| head.ordinal = u32::MAX));
    assert!(refused(|head| head.part_start = head.place.offset + 4096));
    for (generation, sequence) in [(u64::MAX, 1), (1, u64::MAX)] {
        let header = ExtentHeader {
            owner: None,
            extent: 6,
            generation,
            sequence,
        };
        assert!(ExtentHeader::decode(&header.encode(&IDENTITY), &IDENTITY, 6).is_err());
    }
    for (sequence, generation_limit) in [(u64::MAX, 1), (1, u64::MAX)] {
        let superblock = Superblock {
            sequence,
            generation_limit,
            ..superblock()
        };
        assert!(Superblock::decode(&superblock.encode()).is_err());
    }
}

/// At most an eighth of an extent is lost to whole shards of 1 MiB that do not fit, and there are extents enough.
#[test]
fn small_disks_have_extents_that_large_shards_fill() {
    for mib in [256, 300, 512, 700, 1024, 1500, 4096, 20_000, 4 << 20] {
        let size = (mib as u64) << 20;
        let extent_size = extent_size_for(size);
        let layout = Layout::new(size, extent_size).unwrap();
        let (_, record) = place(4096, head_len(16, 6), SHARD_BYTES_MAX);
        let record = record.next_multiple_of(BLOCK as u32);
        let wasted = layout.extent_capacity() % record;
        assert!(wasted <= layout.extent_capacity() / 7, "{mib} MiB: {extent_size}");
        assert!(size / extent_size >= 32, "{mib} MiB: {extent_size}");
    }
    assert!(Layout::new(64 << 20, extent_size_for(64 << 20)).is_ok());
}

#[test]
fn payloads_are_aligned_when_they_are_large() {
    for at in (0..8192).step_by(64) {
        let (payload_at, end) = place(at, 400, 32 * 1024);
        assert_eq!((at + payload_at) % 4096, 0);
        assert_eq!(end, payload_at + 32 * 1024);
        assert_eq!(place(at, 400, 100), (400, 500));
    }
    assert!(head_len(16, 255) <= HEAD_BYTES_MAX);
}

#[test]
fn cut_places_come_back() {
    let places: Vec<_> = (0..5)
        .map(|n| RecordPlace {
            extent: n,
            generation: 7,
            offset: n * 64,
        })
        .collect();
    assert_eq!(decode_cut_places(&encode_cut_places(&places)), Ok(places));
    assert!(decode_cut_places(&[0; 17]).is_err());
}

/// A change of these is a change of the format: it needs a new version, and the old one still read.
#[test]
fn the_bytes_of_version_1_stay_what_they_are() {
    let header = ExtentHeader {
        owner: None,
        extent: 6,
        generation: 11,
        sequence: 12,
    };
    let golden = [
        crc32fast::hash(&superblock().encode()),
        crc32fast::hash(
            &Superblock {
                flushed: 12,
                ..superblock()
            }
            .encode(),
        ),
        crc32fast::hash(&header.encode(&IDENTITY)),
        crc32fast::hash(&encoded(&head(4096, 70_000, 6))),
    ];
    assert_eq!(golden, GOLDEN_V1);
}

const GOLDEN_V1: [u32; 4] = [300_613_907, 4_157_531_701, 2_280_872_910, 1_177_414_131];
