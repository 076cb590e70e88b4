//! Decoders on any bytes, on damaged valid ones, and on their own output; golden bytes of format versions.

use super::extent::{DiskIdentity, EXTENT_HEADER_BYTES, ExtentHeader};
use super::layout::{EXTENT_SIZE_USUAL_MIN, Layout, extent_size_for, superblock_offset};
use super::record::{
    HEAD_BYTES_MAX, RecordHead, RecordKind, RecordPlace, decode_cut_places, encode_cut_places, head_len,
    place, plain,
};
use super::summary::{
    SUMMARY_ENTRY_BYTES, SUMMARY_FOOTER_BYTES, SummaryEntry, SummaryFooter, Tail, seeded_crc, summary_len,
    summary_start,
};
use super::superblock::{FORMAT_VERSION, SUPERBLOCK_BYTES, SUPERBLOCK_COPIES, Superblock};
use crate::device::BLOCK;
use crate::protocol::{
    Admission, ClusterId, DiskId, Generation, LedgerMarks, SHARD_BYTES_MAX, ShardKey, UnitId, block_count,
};
use proptest::prelude::*;

const IDENTITY: DiskIdentity = DiskIdentity {
    disk: DiskId(77),
    incarnation: 3,
};

fn superblock() -> Superblock {
    Superblock {
        version: FORMAT_VERSION,
        disk: DiskId(77),
        cluster: ClusterId(5),
        incarnation: 3,
        sequence: 9,
        device_size: 1 << 30,
        extent_size: 4 << 20,
        generation_limit: 1024,
        flushed: 0,
        verified: 0,
        headers: 0,
        admission: Admission::default(),
        ledger: LedgerMarks::default(),
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

fn layout() -> Layout {
    Layout::new(1 << 30, 4 << 20).unwrap()
}

/// Records of these lengths, digests and keys, one behind the other.
fn entries(lens: &[(u32, u8, u64, u32)], (base, step): (u64, i32)) -> Vec<SummaryEntry> {
    let (mut at, mut entries) = (4096, Vec::new());
    for (number, (len, digests, blob, stripe)) in lens.iter().enumerate() {
        let far = if number == 0 { 0 } else { i64::from(step) };
        entries.push(SummaryEntry {
            key: ShardKey {
                blob: *blob,
                stripe: *stripe,
            },
            sequence: base.saturating_add_signed(far),
            offset: at,
            len: *len,
            digests: *digests,
        });
        let (_, length) = place(at, head_len(block_count(*len), (*digests).into()), *len);
        at += length.next_multiple_of(64);
    }
    entries
}

/// The summary of such records.
fn summary(entries: &[SummaryEntry]) -> (SummaryFooter, Vec<u8>) {
    let base = entries.first().map_or(0, |entry| entry.sequence);
    let encoded = entries.iter().map(|entry| entry.encode(base).unwrap());
    let mut bytes: Vec<u8> = encoded.flatten().collect();
    let end = entries
        .last()
        .map_or(4096, |last| last.offset + last.len + 16_384);
    let footer = SummaryFooter {
        extent: 3,
        generation: 8,
        unit: UnitId { volume: 12, index: 4 },
        entries: entries.len() as u32,
        entries_crc: seeded_crc(&IDENTITY, 3, 8, &bytes),
        end: end.next_multiple_of(4096),
        ordinal: entries.len() as u32,
        epoch: 6,
        base,
        sequence: entries.iter().map(|entry| entry.sequence).max().unwrap_or(0),
        batch: 50,
        flushed: 51,
    };
    bytes.resize(
        summary_len(entries.len() as u64) as usize - SUMMARY_FOOTER_BYTES,
        0,
    );
    bytes.extend(footer.encode(&IDENTITY));
    (footer, bytes)
}

fn encoded(head: &RecordHead) -> Vec<u8> {
    let mut bytes = vec![0; head.head_len() as usize];
    head.encode(&IDENTITY, &mut bytes);
    bytes
}

/// As programs of format version 1 wrote it.
fn encoded_by_version_1(head: &RecordHead) -> Vec<u8> {
    let mut bytes = plain(&encoded(head)).unwrap().into_owned();
    bytes[11] = 0;
    let mut crc =
        crc32fast::Hasher::new_with_initial(IDENTITY.record_seed(head.place.extent, head.place.generation));
    crc.update(&bytes[8..]);
    bytes[4..8].copy_from_slice(&crc.finalize().to_le_bytes());
    bytes
}

proptest! {
    #[test]
    fn any_bytes_are_refused_without_a_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..10_000),
        magic in 0..5usize,
        offset in any::<u32>(),
    ) {
        let mut bytes = bytes;
        let magic: &[u8] = [&b""[..], b"CREC", b"CEXT", b"CAIRNDSK", b"CSUM"][magic];
        if bytes.len() >= magic.len() {
            bytes[..magic.len()].copy_from_slice(magic);
        }
        let here = RecordPlace { extent: 3, generation: 8, offset };
        prop_assert!(RecordHead::decode(&bytes, &IDENTITY, here).is_err());
        prop_assert!(ExtentHeader::decode(&bytes, &IDENTITY, 3).is_err());
        prop_assert!(Superblock::decode(&bytes).is_err());
        let _ = decode_cut_places(&bytes);
        prop_assert!(SummaryFooter::decode(&bytes, &IDENTITY, 3, 8, &layout()).is_err());
        prop_assert!(!matches!(Tail::of(&bytes, &IDENTITY, 3, 8, &layout()), Tail::Sealed(_)));
        // Entries whose checksum is right.
        let crc = seeded_crc(&IDENTITY, 3, 8, &bytes[..bytes.len() / 24 * 24]);
        let footer = SummaryFooter { entries: bytes.len() as u32 / 24, entries_crc: crc, ..summary(&[]).0 };
        let _ = footer.decode_entries(&bytes, &IDENTITY);
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
    fn a_summary_comes_back_and_any_flipped_bit_is_noticed(
        lens in proptest::collection::vec((0..=SHARD_BYTES_MAX / 8, 0..=255u8, any::<u64>(), any::<u32>()), 0..20),
        sequences in (0..1u64 << 40, any::<i32>()),
        flip in any::<prop::sample::Index>(),
    ) {
        let (footer, mut bytes) = summary(&entries(&lens, sequences));
        let at = bytes.len() - SUMMARY_FOOTER_BYTES;
        let decode = |bytes: &[u8]| {
            let footer = SummaryFooter::decode(&bytes[at..], &IDENTITY, 3, 8, &layout())?;
            Ok::<_, super::FormatError>((footer, footer.decode_entries(bytes, &IDENTITY)?))
        };
        prop_assert_eq!(decode(&bytes), Ok((footer, entries(&lens, sequences))));
        prop_assert_eq!(Tail::of(&bytes[at..], &IDENTITY, 3, 8, &layout()), Tail::Sealed(footer));
        prop_assert!(footer.decode_entries(&bytes[..(lens.len() * SUMMARY_ENTRY_BYTES).saturating_sub(1)], &IDENTITY).is_err() || lens.is_empty());
        // Between entries and footer is padding, which nothing reads.
        let used = lens.len() * SUMMARY_ENTRY_BYTES + SUMMARY_FOOTER_BYTES;
        let bit = flip.index(used * 8);
        let byte = if bit / 8 < lens.len() * SUMMARY_ENTRY_BYTES { bit / 8 } else { bytes.len() - used + bit / 8 };
        bytes[byte] ^= 1 << (bit % 8);
        prop_assert!(decode(&bytes).is_err());
    }

    #[test]
    fn a_summary_is_valid_only_for_its_own_use_of_its_extent(extent in 2..5u32, generation in 7..10u64, incarnation in 2..5u64) {
        let (_, bytes) = summary(&[]);
        let footer = &bytes[bytes.len() - SUMMARY_FOOTER_BYTES..];
        let identity = DiskIdentity { incarnation, ..IDENTITY };
        let found = Tail::of(footer, &identity, extent, generation, &layout());
        match (extent, generation, incarnation) == (3, 8, 3) {
            true => prop_assert!(matches!(found, Tail::Sealed(_))),
            false => prop_assert_eq!(found, Tail::Open),
        }
    }

    /// Its first sectors of one write, the rest of another that says the same but in its own batch.
    #[test]
    fn a_head_of_two_writes_is_none(
        len in 0..=SHARD_BYTES_MAX, digests in 0..=20usize, at in 0..64u32, batches in (49..60u64, 49..60u64), sectors in 1..4usize,
    ) {
        let at = 4096 + at * 64;
        let write = |batch| encoded(&RecordHead { batch, flushed: 48, ..head(at, len, digests) });
        let (old, new) = (write(batches.0), write(batches.1));
        let boundary = sectors * 512 - at as usize % 512;
        prop_assume!(batches.0 != batches.1 && boundary < old.len());
        let mixed = [&old[..boundary], &new[boundary..]].concat();
        prop_assert!(RecordHead::decode(&mixed, &IDENTITY, head(at, len, digests).place).is_err());
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
    let refused = |change: fn(&mut SummaryFooter)| {
        let mut footer = summary(&[]).0;
        change(&mut footer);
        SummaryFooter::decode(&footer.encode(&IDENTITY), &IDENTITY, 3, 8, &layout()).is_err()
    };
    assert!(!refused(|_| {}));
    assert!(refused(|footer| footer.flushed = footer.batch - 1));
    assert!(refused(|footer| footer.sequence = u64::MAX));
    assert!(refused(|footer| footer.base = u64::MAX));
    assert!(refused(|footer| footer.end = layout().data_end()));
    assert!(refused(|footer| footer.end = 0));
    assert!(refused(|footer| footer.ordinal = u32::MAX));
    assert!(refused(
        |footer| (footer.entries, footer.ordinal) = (1 << 20, 1 << 20)
    ));
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

/// An extent whose sequences are too far apart for its entries gets no summary.
#[test]
fn a_sequence_far_from_the_others_is_not_encoded() {
    let at = |sequence| SummaryEntry {
        sequence,
        ..entries(&[(10, 6, 1, 0)], (0, 0))[0]
    };
    let base = 1 << 40;
    for (sequence, fits) in [
        (base + (1 << 31) - 1, true),
        (base + (1 << 31), false),
        (base - (1 << 31), true),
        (base - (1 << 31) - 1, false),
    ] {
        assert_eq!(at(sequence).encode(base).is_some(), fits, "{sequence}");
    }
}

#[test]
fn a_summary_ends_where_header_b_starts() {
    let end = layout().data_end();
    assert_eq!(summary_start(&layout(), 0), end - 4096);
    assert_eq!(summary_start(&layout(), 165), end - 4096);
    assert_eq!(summary_start(&layout(), 166), end - 8192);
    assert_eq!(summary_start(&layout(), 1 << 40), 0);
}

#[test]
fn superblocks_of_versions_0_and_4_are_refused() {
    for (version, is_read) in [(0, false), (1, true), (2, true), (3, true), (4, false)] {
        let bytes = Superblock {
            version,
            ..superblock()
        }
        .encode();
        match is_read {
            true => assert_eq!(Superblock::decode(&bytes).map(|s| s.version), Ok(version)),
            false => assert_eq!(
                Superblock::decode(&bytes),
                Err(super::FormatError::Version(version))
            ),
        }
    }
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
    let of_version_1 = Superblock {
        version: 1,
        ..superblock()
    };
    let flushed = Superblock {
        flushed: 12,
        ..of_version_1
    };
    assert_eq!(Superblock::decode(&flushed.encode()), Ok(flushed));
    let golden = [
        crc32fast::hash(&of_version_1.encode()[..128]),
        crc32fast::hash(&flushed.encode()[..128]),
        crc32fast::hash(&header.encode(&IDENTITY)),
        crc32fast::hash(&encoded_by_version_1(&head(4096, 70_000, 6))),
    ];
    assert_eq!(golden, GOLDEN_V1);
    let head = head(4096, 70_000, 6);
    let decoded = RecordHead::decode(&encoded_by_version_1(&head), &IDENTITY, head.place);
    assert_eq!(decoded, Ok(head));
}

const GOLDEN_V1: [u32; 4] = [300_613_907, 4_157_531_701, 2_280_872_910, 1_177_414_131];

#[test]
fn the_bytes_of_version_2_stay_what_they_are() {
    let (_, summary) = summary(&entries(&[(100, 6, 7, 1), (70_000, 16, 8, 0)], (1000, -3)));
    let of_version_2 = Superblock {
        version: 2,
        ..superblock()
    };
    assert_eq!(
        Superblock::decode(&of_version_2.encode()[..128]),
        Ok(of_version_2)
    );
    let golden = [
        crc32fast::hash(&of_version_2.encode()[..128]),
        crc32fast::hash(&summary),
        crc32fast::hash(&encoded(&head(4096, 70_000, 6))),
    ];
    assert_eq!(golden, GOLDEN_V2);
}

#[test]
fn the_bytes_of_version_3_stay_what_they_are() {
    let of_version_3 = Superblock {
        version: 3,
        ledger: LedgerMarks {
            generation: Generation {
                number: 7,
                nonce: 0x5eed,
            },
            position: 1_234,
            blob_limit: 1_000,
            volume_limit: 40,
            epoch: 6,
        },
        ..superblock()
    };
    assert_eq!(Superblock::decode(&of_version_3.encode()), Ok(of_version_3));
    assert_eq!(crc32fast::hash(&of_version_3.encode()), GOLDEN_V3);
}

const GOLDEN_V3: u32 = 3_446_508_248;

const GOLDEN_V2: [u32; 3] = [2_236_549_153, 3_101_123_833, 2_371_272_474];
