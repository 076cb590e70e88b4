//! The geometry against a model that lays out a blob byte by byte: exhaustively on tiny shards, at the edges on real ones.

use super::*;
use proptest::prelude::*;

const MIB: u64 = 1024 * 1024;

/// Lays bytes 0, 1, 2 … of a blob into shards one at a time, filling each shard of a stripe before the next.
struct Model {
    /// (stripe, shard, offset) of each byte.
    places: Vec<(u32, u8, u32)>,
    stripe_lens: Vec<u32>,
}

impl Model {
    fn new(k: u32, blob_len: u32, shard_max: u32) -> Model {
        let mut stripe_lens = Vec::new();
        let mut left = blob_len;
        while left > 0 {
            stripe_lens.push(left.min(k * shard_max));
            left -= left.min(k * shard_max);
        }
        let mut places = Vec::new();
        for (stripe, &len) in stripe_lens.iter().enumerate() {
            let (mut shard, mut offset) = (0, 0);
            for _ in 0..len {
                places.push((stripe as u32, shard, offset));
                offset += 1;
                // A shard is full when k shards of that size would hold the stripe.
                if offset * k >= len {
                    (shard, offset) = (shard + 1, 0);
                }
            }
        }
        Model { places, stripe_lens }
    }
}

fn bytes_of(pieces: impl Iterator<Item = Piece>) -> Vec<(u32, u8, u32)> {
    pieces
        .flat_map(|piece| {
            assert!(piece.len > 0);
            (0..piece.len).map(move |i| (piece.stripe, piece.shard, piece.offset + i))
        })
        .collect()
}

#[test]
fn every_range_of_every_small_blob() {
    for (k, shard_max) in (1..=5u32).flat_map(|k| (1..=4u32).map(move |max| (k, max))) {
        for blob_len in 0..=2 * k * shard_max + 3 {
            let model = Model::new(k, blob_len, shard_max);
            let geometry = Geometry {
                data_shards: k,
                blob_len: blob_len.into(),
                shard_bytes_max: shard_max,
            };
            assert_eq!(geometry.stripes() as usize, model.stripe_lens.len());
            for (stripe, &len) in model.stripe_lens.iter().enumerate() {
                let stripe = stripe as u32;
                assert_eq!(geometry.stripe_len(stripe), len);
                assert_eq!(geometry.shard_len(stripe), len.div_ceil(k));
                assert!(geometry.shard_len(stripe) <= shard_max);
                for shard in 0..k as u8 {
                    let held = model
                        .places
                        .iter()
                        .filter(|place| (place.0, place.1) == (stripe, shard))
                        .count();
                    assert_eq!(geometry.data_len(stripe, shard) as usize, held);
                }
                assert_eq!(geometry.data_len(stripe, k as u8), 0);
            }
            for start in 0..=blob_len + 2 {
                for end in start..=blob_len + 2 {
                    let expected = &model.places[start.min(blob_len) as usize..end.min(blob_len) as usize];
                    assert_eq!(bytes_of(geometry.pieces(start.into()..end.into())), expected);
                }
            }
        }
    }
}

#[test]
fn past_the_end_there_is_nothing() {
    for len in [0, 1, 5 * MIB] {
        let geometry = Geometry::new(4, len).unwrap();
        for stripe in [geometry.stripes(), u32::MAX] {
            assert_eq!(geometry.stripe_len(stripe), 0);
            assert_eq!(geometry.shard_len(stripe), 0);
            assert_eq!(geometry.data_len(stripe, 0), 0);
        }
        assert_eq!(geometry.data_len(0, u8::MAX), 0);
        assert_eq!(geometry.pieces(len..u64::MAX).count(), 0);
        assert_eq!(geometry.pieces(u64::MAX..u64::MAX).count(), 0);
        let backwards = Range { start: 3, end: 1 };
        assert_eq!(geometry.pieces(backwards).count(), 0);
    }
}

#[test]
fn known_values() {
    let piece = |stripe, shard, offset, len| Piece {
        stripe,
        shard,
        offset,
        len,
    };
    let geometry = Geometry::new(4, 5).unwrap();
    assert_eq!(
        (0..4)
            .map(|shard| geometry.data_len(0, shard))
            .collect::<Vec<_>>(),
        [2, 2, 1, 0]
    );
    assert_eq!(
        geometry.pieces(1..5).collect::<Vec<_>>(),
        [piece(0, 0, 1, 1), piece(0, 1, 0, 2), piece(0, 2, 0, 1)]
    );

    let geometry = Geometry::new(4, BLOB_BYTES_MAX).unwrap();
    assert_eq!(
        (
            geometry.stripes(),
            geometry.stripe_len(15),
            geometry.shard_len(15)
        ),
        (16, 4 * MIB as u32, MIB as u32)
    );
    let geometry = Geometry::new(3, BLOB_BYTES_MAX).unwrap();
    assert_eq!(
        (
            geometry.stripes(),
            geometry.stripe_len(21),
            geometry.shard_len(21)
        ),
        (22, MIB as u32, 349_526)
    );
    assert_eq!(geometry.data_len(21, 2), 349_524);

    let geometry = Geometry::new(4, 4 * MIB + 1).unwrap();
    assert_eq!(
        (geometry.stripes(), geometry.stripe_len(1), geometry.shard_len(1)),
        (2, 1, 1)
    );
    let around = geometry.pieces(MIB - 1..MIB + 1).collect::<Vec<_>>();
    assert_eq!(around, [piece(0, 0, MIB as u32 - 1, 1), piece(0, 1, 0, 1)]);
    assert_eq!(
        geometry.pieces(4 * MIB - 1..u64::MAX).collect::<Vec<_>>(),
        [piece(0, 3, MIB as u32 - 1, 1), piece(1, 0, 0, 1)]
    );
}

#[test]
fn what_cannot_be_is_refused() {
    assert_eq!(Geometry::new(0, 1), Err(Error::BadDataShards(0)));
    assert_eq!(Geometry::new(256, 1), Err(Error::BadDataShards(256)));
    assert_eq!(
        Geometry::new(4, BLOB_BYTES_MAX + 1),
        Err(Error::BlobTooLong {
            len: BLOB_BYTES_MAX + 1
        })
    );
}

/// A length near one where something changes for k data shards, or any.
fn edgy_len(k: u64) -> impl Strategy<Value = u64> {
    let edges = vec![
        0,
        k,
        64 * 1024,
        MIB,
        k * MIB,
        2 * k * MIB,
        (BLOB_BYTES_MAX / (k * MIB)) * k * MIB,
        BLOB_BYTES_MAX,
    ];
    let near =
        (proptest::sample::select(edges), 0..5u64).prop_map(|(edge, delta)| (edge + delta).saturating_sub(2));
    prop_oneof![3 => near, 1 => 0..=BLOB_BYTES_MAX].prop_map(|len| len.min(BLOB_BYTES_MAX))
}

proptest! {
    #[test]
    fn real_sizes((k, len, start, end) in (1u64..=20).prop_flat_map(|k| (Just(k), edgy_len(k), edgy_len(k), edgy_len(k)))) {
        let geometry = Geometry::new(k as usize, len).unwrap();
        let stripe_lens: Vec<u64> = (0..geometry.stripes()).map(|stripe| geometry.stripe_len(stripe).into()).collect();
        prop_assert_eq!(stripe_lens.iter().sum::<u64>(), len);
        prop_assert!(stripe_lens.iter().rev().skip(1).all(|&len| len == k * MIB));
        prop_assert!(stripe_lens.iter().all(|&len| len > 0));

        let mut at = start;
        for piece in geometry.pieces(start..end) {
            // Where the piece says it is, counted forwards from the start of the blob.
            let shard_len = geometry.shard_len(piece.stripe);
            let place = stripe_lens[..piece.stripe as usize].iter().sum::<u64>()
                + u64::from(piece.shard) * u64::from(shard_len)
                + u64::from(piece.offset);
            prop_assert_eq!(place, at);
            prop_assert!(piece.len > 0);
            prop_assert!(u64::from(piece.shard) < k);
            prop_assert!(piece.offset + piece.len <= geometry.data_len(piece.stripe, piece.shard));
            // Pieces are as long as they can be.
            let whole = piece.offset + piece.len == geometry.data_len(piece.stripe, piece.shard);
            at += u64::from(piece.len);
            prop_assert!(whole || at == end.min(len));
        }
        prop_assert_eq!(at, end.min(len).max(start));
    }
}
