//! What was put comes back: every size at an edge, every scheme, bodies cut anywhere, ranges at random.

use crate::support::cluster::{BUCKET, World};
use crate::support::content::{body, content, cut};
use crate::support::memory_node::Faults;
use bytes::Bytes;
use gateway::error::Error;
use gateway::ledger::model::Headers;
use gateway::object::condition::WriteConditions;
use gateway::object::digest::{Algorithm, hex};
use gateway::object::get::Wanted;
use gateway::object::put::Expected;
use md5::{Digest, Md5};
use proptest::prelude::*;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

async fn around_an_edge(scheme: &str, disks: u32, data_shards: usize) {
    let world = World::new(scheme, disks).await;
    let edges = [
        0,
        1,
        16 * KIB,
        64 * KIB,
        MIB,
        data_shards * MIB,
        (data_shards + 1) * MIB,
    ];
    let mut sizes: Vec<usize> = edges
        .iter()
        .flat_map(|e| [e.saturating_sub(1), *e, e + 1])
        .collect();
    sizes.extend([2, 3, 5, 2 * data_shards * MIB + 1]);
    sizes.sort_unstable();
    sizes.dedup();
    for &size in &sizes {
        let (name, bytes) = (size.to_string(), content(size as u64, size));
        let stored = world.put_body(&name, cut(&bytes, size as u64)).await.unwrap();
        assert_eq!(stored.etag, hex(&Md5::digest(&bytes)), "{scheme} {size}");
        assert_eq!(stored.size, size as u64);
    }
    for &size in &sizes {
        assert!(
            world.get(&size.to_string()).await.unwrap() == content(size as u64, size),
            "{scheme} {size}"
        );
    }
    let census = world.census().await;
    census.assert_clean();
    let small = sizes.iter().filter(|s| (1..=16 * KIB).contains(*s)).count();
    let copies = format!("replica({})", world.cluster.scheme.losses_survived() + 1);
    if scheme != copies {
        assert_eq!(
            census.schemes.get(&copies),
            Some(&small),
            "small objects are copies: {:?}",
            census.schemes
        );
    }
}

#[tokio::test]
async fn sizes_around_every_edge_rs_4_2() {
    around_an_edge("rs(4,2)", 6, 4).await;
}

#[tokio::test]
async fn sizes_around_every_edge_rs_2_1() {
    around_an_edge("rs(2,1)", 5, 2).await;
}

#[tokio::test]
async fn sizes_around_every_edge_replica_3() {
    around_an_edge("replica(3)", 3, 1).await;
}

#[tokio::test]
async fn sizes_around_every_edge_lrc_12_2_2() {
    around_an_edge("lrc(12,2,2)", 16, 12).await;
}

/// A blob holds 64 MiB: one byte more is two blobs, for every width of stripe.
#[tokio::test]
async fn a_blob_is_64_mib() {
    for (scheme, disks) in [
        ("rs(4,2)", 6),
        ("rs(2,1)", 3),
        ("replica(3)", 3),
        ("rs(3,2)", 5),
        ("lrc(12,2,2)", 16),
    ] {
        let world = World::new(scheme, disks).await;
        let full = 64 * MIB / (world.cluster.scheme.data_shards() * MIB)
            * (world.cluster.scheme.data_shards() * MIB);
        let mut bytes = vec![0; 64 * MIB + 1];
        for at in (0..bytes.len()).step_by(50_021) {
            bytes[at..]
                .iter_mut()
                .take(3)
                .zip(at.to_le_bytes())
                .for_each(|(b, value)| *b = value | 1);
        }
        let bytes = Bytes::from(bytes);
        for size in [full - 1, full, full + 1, 64 * MIB + 1] {
            let expected = bytes.slice(..size);
            world.put("big", &expected).await.unwrap();
            assert_eq!(world.census().await.blobs, size.div_ceil(full), "{scheme} {size}");
            assert!(world.get("big").await.unwrap() == expected, "{scheme} {size}");
            world.collect().await;
        }
        let over_the_edge = Wanted::From {
            first: full as u64 - 2,
            last: Some(full as u64),
        };
        assert!(world.get_range("big", over_the_edge).await.unwrap() == bytes[full - 2..=full]);
        world.census().await.assert_clean();
    }
}

#[tokio::test]
async fn lengths_and_digests_that_do_not_match_store_nothing() {
    let world = World::new("rs(4,2)", 6).await;
    let put = async |bytes: &Bytes, expected: Expected| {
        let conditions = WriteConditions::default();
        world
            .objects
            .put(
                BUCKET,
                "bad",
                body(bytes),
                expected,
                Headers::default(),
                conditions,
            )
            .await
    };
    for size in [10, 100_000, 5 * MIB] {
        let bytes = content(1, size);
        let length = |n: usize| Expected {
            length: Some(n as u64),
            ..Default::default()
        };
        assert!(matches!(
            put(&bytes, length(size + 1)).await,
            Err(Error::IncompleteBody)
        ));
        assert!(
            matches!(put(&bytes, length(size - 1)).await, Err(Error::InvalidRequest(_))),
            "{size}"
        );
        assert!(matches!(
            put(&bytes, length(0)).await,
            Err(Error::InvalidRequest(_))
        ));
        let md5 = Expected {
            md5: Some([7; 16]),
            ..Default::default()
        };
        assert!(matches!(put(&bytes, md5).await, Err(Error::BadDigest { .. })));
        for algorithm in Algorithm::ALL {
            let checksum = |digest: Vec<u8>| Expected {
                algorithm: Some(algorithm),
                checksum: Some(Box::new(move || Ok(Some(digest)))),
                ..Default::default()
            };
            let wrong = checksum(vec![0; algorithm.digest_len()]);
            assert!(
                matches!(put(&bytes, wrong).await, Err(Error::BadDigest { .. })),
                "{algorithm:?}"
            );
            assert!(matches!(world.get("bad").await, Err(Error::NoSuchKey)));
            let stored = put(&bytes, checksum(algorithm.digest(&bytes))).await.unwrap();
            assert_eq!(stored.checksum.unwrap().digest, algorithm.digest(&bytes));
            world.delete("bad").await.unwrap();
        }
    }
    assert!(matches!(
        put(
            &content(1, 1),
            Expected {
                length: Some((5 << 30) + 1),
                ..Default::default()
            }
        )
        .await,
        Err(Error::EntityTooLarge)
    ));
    world.collect().await;
    world.census().await.assert_clean();
    assert_eq!(world.cluster.node.shard_count(), 0);
}

fn wanted(size: u64) -> impl Strategy<Value = Wanted> {
    let near = prop_oneof![
        0..size + 3,
        Just(0),
        Just(size.saturating_sub(1)),
        (0..8u64).prop_map(|n| n << 20)
    ];
    prop_oneof![
        Just(Wanted::All),
        (near.clone(), proptest::option::of(near.clone()))
            .prop_map(|(first, last)| Wanted::From { first, last }),
        (near.clone(), 0..200_000u64).prop_map(|(first, len)| Wanted::From {
            first,
            last: Some(first + len)
        }),
        near.prop_map(Wanted::Suffix),
        Just(Wanted::Part(1)),
    ]
}

/// The bytes of the model that a request wants; none where the answer is 416.
fn model(bytes: &[u8], wanted: Wanted) -> Option<&[u8]> {
    let size = bytes.len();
    match wanted {
        Wanted::All | Wanted::Part(_) => Some(bytes),
        Wanted::From { first, last } => {
            let last = last.unwrap_or(u64::MAX);
            let end = size.min((last as usize).saturating_add(1));
            (first < size as u64 && first <= last).then(|| &bytes[first as usize..end])
        }
        Wanted::Suffix(n) => (n > 0 && size > 0).then(|| &bytes[size - size.min(n as usize)..]),
    }
}

/// Ranges at random, with none, one or two disks gone; three sizes and schemes. The seed is in the failure's message.
#[test]
fn ranges_match_the_model() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    for (scheme, disks, size) in [
        ("rs(4,2)", 6, 9 * MIB + 77_777),
        ("rs(2,1)", 3, 100_001),
        ("replica(3)", 3, 5_000),
        ("lrc(4,2,2)", 8, 5 * MIB + 7_777),
    ] {
        let bytes = content(size as u64, size);
        let world = runtime.block_on(World::new(scheme, disks));
        runtime.block_on(world.put("ranges", &bytes)).unwrap();
        let losses = world.cluster.scheme.losses_survived();
        let case = (
            wanted(size as u64),
            proptest::collection::vec(0..disks as usize, 0..=losses),
        );
        proptest!(ProptestConfig::with_cases(150), |((wanted, lost) in case)| {
            for &n in &lost {
                world.fault(n, Faults { missing: true, ..Default::default() });
            }
            let read = runtime.block_on(world.get_range("ranges", wanted));
            world.cluster.node.each(|_, disk| disk.faults = Faults::default());
            match model(&bytes, wanted) {
                Some(expected) => prop_assert!(read.unwrap() == expected),
                None => {
                    let refused = matches!(read, Err(Error::RangeNotSatisfiable { .. }));
                    prop_assert!(refused);
                }
            }
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// How the network cuts a body changes nothing.
    #[test]
    fn cuts_do_not_matter(size in 0usize..6 * MIB, seed: u64) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let world = World::new("rs(4,2)", 6).await;
            let bytes = content(seed, size);
            world.put_body("cut", cut(&bytes, seed)).await.unwrap();
            assert!(world.get("cut").await.unwrap() == bytes);
        });
    }
}
