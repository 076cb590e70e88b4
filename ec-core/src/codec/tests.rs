//! The codec against reed-solomon-erasure as the oracle of parity, and against every erasure pattern.

use super::*;
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use reed_solomon_erasure::galois_8::ReedSolomon;

fn codec(text: &str) -> Codec {
    Codec::new(text.parse().unwrap()).unwrap()
}

fn random_shards(count: usize, len: usize, seed: u64) -> Vec<Vec<u8>> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..count)
        .map(|_| {
            let mut shard = vec![0; len];
            rng.fill_bytes(&mut shard);
            shard
        })
        .collect()
}

fn slices(shards: &[Vec<u8>]) -> Vec<&[u8]> {
    shards.iter().map(Vec::as_slice).collect()
}

fn slices_mut(shards: &mut [Vec<u8>]) -> Vec<&mut [u8]> {
    shards.iter_mut().map(Vec::as_mut_slice).collect()
}

/// A whole stripe of random data, parity included. Outputs start dirty, so that nothing relies on zeros.
fn stripe(codec: &Codec, len: usize, seed: u64) -> Vec<Vec<u8>> {
    let mut shards = random_shards(codec.scheme().data_shards(), len, seed);
    let mut parity = vec![vec![0xAA; len]; codec.scheme().parity_shards()];
    codec
        .encode(&slices(&shards), &mut slices_mut(&mut parity))
        .unwrap();
    shards.append(&mut parity);
    shards
}

fn reconstruct(
    codec: &Codec,
    available: &[(usize, &[u8])],
    wanted: &[usize],
    len: usize,
) -> Result<Vec<Vec<u8>>> {
    let mut out = vec![vec![0x55; len]; wanted.len()];
    codec.reconstruct(available, wanted, &mut slices_mut(&mut out))?;
    Ok(out)
}

/// Loses exactly the shards whose bits are set, and expects either all of them back or a clear error.
fn lose(codec: &Codec, stripe: &[Vec<u8>], lost: u32) {
    let (wanted, kept): (Vec<usize>, Vec<usize>) = (0..stripe.len()).partition(|i| lost >> i & 1 == 1);
    // Highest index first: the order must not matter.
    let available: Vec<(usize, &[u8])> = kept.iter().rev().map(|&i| (i, stripe[i].as_slice())).collect();
    let result = reconstruct(codec, &available, &wanted, stripe[0].len());
    let scheme = codec.scheme();
    if wanted.len() <= scheme.parity_shards() {
        let expected: Vec<Vec<u8>> = wanted.iter().map(|&i| stripe[i].clone()).collect();
        assert_eq!(result.unwrap(), expected, "{scheme} without {wanted:?}");
    } else {
        let error = Error::TooFewShards {
            needed: scheme.data_shards(),
            available: kept.len(),
        };
        assert_eq!(result.unwrap_err(), error, "{scheme} without {wanted:?}");
    }
}

#[test]
fn parity_is_bit_identical_to_reed_solomon_erasure() {
    for (k, m) in (2..=20).flat_map(|k| (1..=6).map(move |m| (k, m))) {
        let len = 257;
        let stripe = stripe(
            &Codec::new(Scheme::rs(k, m).unwrap()).unwrap(),
            len,
            (k * 100 + m) as u64,
        );
        let mut expected = vec![vec![0; len]; m];
        ReedSolomon::new(k, m)
            .unwrap()
            .encode_sep(&stripe[..k], &mut expected)
            .unwrap();
        assert_eq!(stripe[k..], expected, "rs({k},{m})");
    }
}

#[test]
fn every_erasure_pattern() {
    for text in [
        "rs(4,2)",
        "rs(3,2)",
        "rs(2,2)",
        "rs(8,3)",
        "rs(2,1)",
        "replica(3)",
        "replica(1)",
    ] {
        let codec = codec(text);
        let stripe = stripe(&codec, 97, 1);
        for lost in 0..1u32 << stripe.len() {
            lose(&codec, &stripe, lost);
        }
    }
}

#[test]
fn replicas_are_copies() {
    let stripe = stripe(&codec("replica(3)"), 1000, 2);
    assert_eq!(stripe[0], stripe[1]);
    assert_eq!(stripe[0], stripe[2]);
}

#[test]
fn the_widest_codes_work() {
    for text in ["rs(254,1)", "rs(2,253)", "rs(200,55)", "replica(255)"] {
        let codec = codec(text);
        let (k, n) = (codec.scheme().data_shards(), codec.scheme().total_shards());
        let stripe = stripe(&codec, 33, 3);
        let available: Vec<(usize, &[u8])> = (n - k..n).map(|i| (i, stripe[i].as_slice())).collect();
        let wanted: Vec<usize> = (0..n - k).collect();
        assert_eq!(
            reconstruct(&codec, &available, &wanted, 33).unwrap(),
            stripe[..n - k],
            "{text}"
        );
    }
}

#[test]
fn lengths_around_the_chunk_and_empty() {
    let codec = codec("rs(4,2)");
    for len in [
        0,
        1,
        2,
        15,
        16,
        31,
        32,
        33,
        CHUNK_BYTES - 1,
        CHUNK_BYTES,
        CHUNK_BYTES + 1,
        3 * CHUNK_BYTES + 5,
    ] {
        let stripe = stripe(&codec, len, len as u64);
        let mut expected = vec![vec![0; len]; 2];
        if len > 0 {
            ReedSolomon::new(4, 2)
                .unwrap()
                .encode_sep(&stripe[..4], &mut expected)
                .unwrap();
        }
        assert_eq!(stripe[4..], expected);
        lose(&codec, &stripe, 0b000011);
        lose(&codec, &stripe, 0b100001);
    }
}

#[test]
fn a_shard_that_is_available_is_copied() {
    let codec = codec("rs(3,2)");
    let stripe = stripe(&codec, 50, 4);
    let available: Vec<(usize, &[u8])> = [4, 3, 1].iter().map(|&i| (i, stripe[i].as_slice())).collect();
    assert_eq!(
        reconstruct(&codec, &available, &[1, 4, 0], 50).unwrap(),
        [&stripe[1], &stripe[4], &stripe[0]].map(Clone::clone)
    );
    assert_eq!(
        reconstruct(&codec, &available, &[], 50).unwrap(),
        Vec::<Vec<u8>>::new()
    );
}

#[test]
fn mistakes_are_named() {
    let codec = codec("rs(2,1)");
    let (a, b, short) = ([1u8; 4], [2u8; 4], [3u8; 3]);
    let mut parity = [0u8; 4];

    let encoded = codec.encode(&[&a], &mut [&mut parity]);
    assert_eq!(
        encoded,
        Err(Error::WrongShardCount {
            what: "data",
            expected: 2,
            got: 1
        })
    );
    let encoded = codec.encode(&[&a, &b], &mut []);
    assert_eq!(
        encoded,
        Err(Error::WrongShardCount {
            what: "parity",
            expected: 1,
            got: 0
        })
    );
    let encoded = codec.encode(&[&a, &short], &mut [&mut parity]);
    assert_eq!(
        encoded,
        Err(Error::WrongShardLength {
            index: 1,
            expected: 4,
            got: 3
        })
    );
    let encoded = codec.encode(&[&a, &b], &mut [&mut parity[..3]]);
    assert_eq!(
        encoded,
        Err(Error::WrongShardLength {
            index: 2,
            expected: 4,
            got: 3
        })
    );

    let mut reconstruct = |available: &[(usize, &[u8])], wanted: &[usize]| {
        codec
            .reconstruct(available, wanted, &mut [&mut parity])
            .unwrap_err()
    };
    assert_eq!(
        reconstruct(&[(0, &a), (3, &b)], &[1]),
        Error::NoSuchShard { index: 3, total: 3 }
    );
    assert_eq!(
        reconstruct(&[(0, &a), (1, &b)], &[usize::MAX]),
        Error::NoSuchShard {
            index: usize::MAX,
            total: 3
        }
    );
    assert_eq!(
        reconstruct(&[(1, &a), (1, &a)], &[0]),
        Error::DuplicateShard { index: 1 }
    );
    assert_eq!(
        reconstruct(&[(0, &a), (1, &b)], &[2, 2]),
        Error::DuplicateShard { index: 2 }
    );
    assert_eq!(
        reconstruct(&[(0, &a), (1, &b)], &[]),
        Error::WrongShardCount {
            what: "output",
            expected: 0,
            got: 1
        }
    );
    assert_eq!(
        reconstruct(&[(0, &a), (1, &short)], &[2]),
        Error::WrongShardLength {
            index: 1,
            expected: 4,
            got: 3
        }
    );
    assert_eq!(
        reconstruct(&[(0, &short), (1, &short)], &[2]),
        Error::WrongShardLength {
            index: 2,
            expected: 3,
            got: 4
        }
    );
    assert_eq!(
        reconstruct(&[(0, &a)], &[2]),
        Error::TooFewShards {
            needed: 2,
            available: 1
        }
    );
    assert_eq!(
        reconstruct(&[], &[2]),
        Error::TooFewShards {
            needed: 2,
            available: 0
        }
    );
}

#[test]
fn a_codec_is_shared_between_threads() {
    fn shared<T: Send + Sync>(_: &T) {}
    shared(&codec("rs(4,2)"));
}

proptest! {
    #[test]
    fn a_range_of_the_sources_gives_the_same_range(
        k in 1usize..=12,
        m in 1usize..=5,
        len in 1usize..20_000,
        seed: u64,
        order in Just((0..17usize).collect::<Vec<_>>()).prop_shuffle(),
        cut in (0.0..1.0f64, 0.0..1.0f64),
    ) {
        let scheme = if k == 1 { Scheme::replica(m + 1) } else { Scheme::rs(k, m) };
        let codec = Codec::new(scheme.unwrap()).unwrap();
        let stripe = stripe(&codec, len, seed);
        let (low, high) = (cut.0.min(cut.1), cut.0.max(cut.1));
        let range = (low * len as f64) as usize..(high * len as f64) as usize;
        let order: Vec<usize> = order.into_iter().filter(|&i| i < k + m).collect();
        let available: Vec<(usize, &[u8])> = order[..k].iter().map(|&i| (i, &stripe[i][range.clone()])).collect();
        let rebuilt = reconstruct(&codec, &available, &order[k..], range.len()).unwrap();
        for (&index, shard) in order[k..].iter().zip(&rebuilt) {
            prop_assert_eq!(&stripe[index][range.clone()], shard.as_slice());
        }
    }
}
