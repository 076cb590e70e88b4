//! The codec against reed-solomon-erasure as the oracle of parity, and against every erasure pattern.

use super::*;
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use reed_solomon_erasure::galois_8::ReedSolomon;

fn codec(text: &str) -> Codec {
    Codec::new(text.parse().unwrap(), Kernel::best()).unwrap()
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
    if wanted.len() <= scheme.losses_survived() {
        let expected: Vec<Vec<u8>> = wanted.iter().map(|&i| stripe[i].clone()).collect();
        assert_eq!(result.unwrap(), expected, "{scheme} without {wanted:?}");
    } else {
        let error = Error::Undecodable {
            scheme,
            wanted: wanted.clone(),
            available: kept,
        };
        assert_eq!(result.unwrap_err(), error, "{scheme} without {wanted:?}");
    }
}

/// A copy, or Reed-Solomon.
fn mds(k: usize, m: usize) -> Scheme {
    match k {
        1 => Scheme::replica(m + 1).unwrap(),
        _ => Scheme::rs(k, m).unwrap(),
    }
}

#[test]
fn parity_is_bit_identical_to_reed_solomon_erasure() {
    let (widest, len) = if cfg!(miri) { (3, 35) } else { (20, 257) };
    for (k, m) in (2..=widest).flat_map(|k| (1..=6).map(move |m| (k, m))) {
        for kernel in Kernel::supported() {
            let codec = Codec::new(mds(k, m), kernel).unwrap();
            let stripe = stripe(&codec, len, (k * 100 + m) as u64);
            let mut expected = vec![vec![0; len]; m];
            ReedSolomon::new(k, m)
                .unwrap()
                .encode_sep(&stripe[..k], &mut expected)
                .unwrap();
            assert_eq!(stripe[k..], expected, "rs({k},{m}) on {kernel}");
        }
    }
}

/// Every pattern of up to m losses of every k ≤ 12, m ≤ 4 gives the bytes back, and every one of m + 1 is refused.
#[test]
fn every_erasure_pattern() {
    let widest = if cfg!(miri) { 3 } else { 12 };
    let mut patterns = 0;
    for (k, m) in (1..=widest).flat_map(|k| (1..=4usize).map(move |m| (k, m))) {
        let codec = Codec::new(mds(k, m), Kernel::best()).unwrap();
        let stripe = stripe(&codec, 71, 1);
        for lost in (0..1u32 << (k + m)).filter(|lost| lost.count_ones() as usize <= m + 1) {
            lose(&codec, &stripe, lost);
            patterns += 1;
        }
    }
    println!("{patterns} patterns");
}

#[test]
fn every_kernel_decodes() {
    for kernel in Kernel::supported() {
        for text in ["rs(4,2)", "rs(5,4)", "rs(3,6)", "replica(3)"] {
            let codec = Codec::new(text.parse().unwrap(), kernel).unwrap();
            assert_eq!(codec.kernel(), kernel);
            let stripe = stripe(&codec, 333, 9);
            for lost in 0..1u32 << stripe.len() {
                lose(&codec, &stripe, lost);
            }
        }
    }
}

/// Every loss of up to 4 of lrc(12,2,2) that any code of that shape could decode is decoded, and the bytes are right.
#[test]
fn lrc_12_2_2_gives_back_what_can_be_given_back() {
    let codec = codec("lrc(12,2,2)");
    let stripe = stripe(&codec, 67, 11);
    let mut decoded = [0; 5];
    let losses = if cfg!(miri) { 1 } else { 4 };
    for lost in (0..1u32 << 16).filter(|lost| lost.count_ones() <= losses) {
        let (wanted, kept): (Vec<usize>, Vec<usize>) = (0..16).partition(|i| lost >> i & 1 == 1);
        let available: Vec<(usize, &[u8])> = kept.iter().map(|&i| (i, stripe[i].as_slice())).collect();
        if let Ok(shards) = reconstruct(&codec, &available, &wanted, 67) {
            let expected: Vec<Vec<u8>> = wanted.iter().map(|&i| stripe[i].clone()).collect();
            assert_eq!(shards, expected, "without {wanted:?}");
            decoded[wanted.len()] += 1;
        }
    }
    println!("decoded of 0 to 4 losses: {decoded:?}");
    if !cfg!(miri) {
        // Of the 1,820 losses of 4, 1,568 leave enough equations: see `code/tests.rs`, which counts them.
        assert_eq!(decoded, [1, 16, 120, 560, 1568]);
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
    let all = ["rs(2,253)", "rs(254,1)", "rs(200,55)", "replica(255)"];
    for text in &all[if cfg!(miri) { 3 } else { 0 }..] {
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
fn lengths_around_the_blocks_and_empty() {
    // rs(4,5) takes two passes, which take turns on blocks.
    for text in ["rs(4,2)", "rs(4,5)"] {
        let codec = codec(text);
        let (k, m) = (4, codec.scheme().parity_shards());
        let block = crate::gf256::BLOCK_BYTES;
        for len in [
            0,
            1,
            2,
            15,
            16,
            31,
            32,
            33,
            block - 1,
            block,
            block + 1,
            3 * block + 5,
        ] {
            if cfg!(miri) && len > 33 {
                break;
            }
            let stripe = stripe(&codec, len, len as u64);
            let mut expected = vec![vec![0; len]; m];
            if len > 0 {
                ReedSolomon::new(k, m)
                    .unwrap()
                    .encode_sep(&stripe[..k], &mut expected)
                    .unwrap();
            }
            assert_eq!(stripe[k..], expected);
            lose(&codec, &stripe, 0b000011);
            lose(&codec, &stripe, 0b100001);
        }
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
    for (available, indices) in [(vec![(0, &a[..])], vec![0]), (vec![], vec![])] {
        let error = reconstruct(&available, &[2]);
        assert_eq!(
            error,
            Error::Undecodable {
                scheme: codec.scheme(),
                wanted: vec![2],
                available: indices.clone()
            }
        );
        assert_eq!(
            error.to_string(),
            format!("rs(2,1): shards [2] cannot be computed from {indices:?}")
        );
    }

    assert_eq!(
        codec.update(2, &a, &mut [&mut parity]),
        Err(Error::NotADataShard {
            index: 2,
            data_shards: 2
        })
    );
    assert!(matches!(
        codec.update(1, &short, &mut [&mut parity]),
        Err(Error::WrongShardLength { .. })
    ));
    let mut outputs = [&mut parity[..]];
    let mut encoder = codec.encoder(&mut outputs).unwrap();
    encoder.add(1, &a).unwrap();
    assert_eq!(encoder.add(1, &a), Err(Error::DuplicateShard { index: 1 }));
    assert!(matches!(encoder.add(2, &a), Err(Error::NotADataShard { .. })));
    assert!(matches!(
        encoder.add(usize::MAX, &a),
        Err(Error::NotADataShard { .. })
    ));
    assert_eq!(
        encoder.finish(),
        Err(Error::WrongShardCount {
            what: "data",
            expected: 2,
            got: 1
        })
    );
}

#[test]
fn a_codec_is_shared_between_threads() {
    fn shared<T: Send + Sync>(_: &T) {}
    shared(&codec("rs(4,2)"));
}

#[test]
fn plans_are_kept_within_bounds() {
    let codec = codec("rs(20,20)");
    let sources = |skip: usize| (0..40).filter(move |i| *i != skip).map(|i| (i, 1));
    let first = codec.plan(&[0], sources(0)).unwrap();
    assert!(Arc::ptr_eq(&first, &codec.plan(&[0], sources(0)).unwrap()));
    // The order in which sources are named makes no other pattern.
    let reversed: Vec<(usize, u32)> = sources(0).collect();
    assert!(Arc::ptr_eq(
        &first,
        &codec.plan(&[0], reversed.into_iter().rev()).unwrap()
    ));
    let mut most = 0;
    for seed in 0..if cfg!(miri) { 10 } else { 8000 } {
        let cost = |i: usize| if seed >> (i % 13) & 1 == 1 { 7 } else { 1 };
        let plan = codec.plan(&[0], sources(0).map(|(i, _)| (i, cost(i)))).unwrap();
        assert_eq!(plan.sources().len(), 20);
        most = most.max(codec.plans.kept_bytes());
    }
    assert!(most <= 4 << 20, "{most} bytes of plans");
    assert!(cfg!(miri) || most > 3 << 20, "the test does not fill it: {most}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 2 } else { 256 }, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn shard_by_shard_or_by_changes_parity_is_the_same(
        scheme in prop_oneof![Just("rs(4,2)"), Just("rs(7,5)"), Just("lrc(12,2,2)"), Just("lrc(6,3,3)"), Just("replica(3)")],
        len in 0usize..700,
        seed: u64,
        order in Just((0..12usize).collect::<Vec<_>>()).prop_shuffle(),
        cut in (0.0..1.0f64, 0.0..1.0f64),
    ) {
        let codec = codec(scheme);
        let (k, m) = (codec.scheme().data_shards(), codec.scheme().parity_shards());
        let mut stripe = stripe(&codec, len, seed);
        let mut parity = vec![vec![0x33; len]; m];
        let mut outputs = slices_mut(&mut parity);
        let mut encoder = codec.encoder(&mut outputs).unwrap();
        for &index in order.iter().filter(|&&index| index < k) {
            encoder.add(index, &stripe[index]).unwrap();
        }
        encoder.finish().unwrap();
        prop_assert_eq!(&stripe[k..], &parity[..]);

        // A range of one shard is overwritten.
        let (low, high) = (cut.0.min(cut.1), cut.0.max(cut.1));
        let range = (low * len as f64) as usize..(high * len as f64) as usize;
        let index = order[0] % k;
        let new = random_shards(1, range.len(), seed ^ 1).remove(0);
        let change: Vec<u8> = stripe[index][range.clone()].iter().zip(&new).map(|(old, new)| old ^ new).collect();
        let mut ranges: Vec<&mut [u8]> = parity.iter_mut().map(|shard| &mut shard[range.clone()]).collect();
        codec.update(index, &change, &mut ranges).unwrap();
        stripe[index][range].copy_from_slice(&new);
        let mut expected = vec![vec![0; len]; m];
        codec.encode(&slices(&stripe[..k]), &mut slices_mut(&mut expected)).unwrap();
        prop_assert_eq!(expected, parity);
    }

    #[test]
    fn a_range_of_the_sources_gives_the_same_range(
        scheme in prop_oneof![Just("rs(4,2)"), Just("rs(12,5)"), Just("lrc(12,2,2)"), Just("replica(3)")],
        len in 1usize..20_000,
        seed: u64,
        order in Just((0..17usize).collect::<Vec<_>>()).prop_shuffle(),
        losses in 0usize..6,
        cut in (0.0..1.0f64, 0.0..1.0f64),
    ) {
        let codec = codec(scheme);
        let len = if cfg!(miri) { len % 100 + 1 } else { len };
        let stripe = stripe(&codec, len, seed);
        let (low, high) = (cut.0.min(cut.1), cut.0.max(cut.1));
        let range = (low * len as f64) as usize..(high * len as f64) as usize;
        let order: Vec<usize> = order.into_iter().filter(|&i| i < stripe.len()).collect();
        let (lost, kept) = order.split_at(losses.min(codec.scheme().losses_survived()));
        let available: Vec<(usize, &[u8])> = kept.iter().map(|&i| (i, &stripe[i][range.clone()])).collect();
        let rebuilt = reconstruct(&codec, &available, lost, range.len()).unwrap();
        for (&index, shard) in lost.iter().zip(&rebuilt) {
            prop_assert_eq!(&stripe[index][range.clone()], shard.as_slice());
        }
    }
}
