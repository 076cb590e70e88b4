//! Reads with disks lost, shards corrupt, missing or late: the right bytes or an error, never a wrong byte.

use crate::support::cluster::World;
use crate::support::content::content;
use crate::support::memory_node::{Faults, MemoryDisk, flip_bit};
use bytes::Bytes;
use gateway::error::Error;
use gateway::object::get::Wanted;
use std::time::Duration;
use storage_node::protocol::{DiskId, NodeError};

const SIZES: [usize; 3] = [10_000, 100_000, 5 << 20];

async fn filled() -> World {
    let world = World::new("rs(4,2)", 6).await;
    for size in SIZES {
        world
            .put(&size.to_string(), &content(size as u64, size))
            .await
            .unwrap();
    }
    world
}

async fn assert_reads(world: &World, what: &str) {
    for size in SIZES {
        let expected = content(size as u64, size);
        let read = world.get(&size.to_string()).await;
        assert!(
            read.unwrap_or_else(|e| panic!("{what}: {size}: {e}")) == expected,
            "{what}: {size}"
        );
        let middle = Wanted::From {
            first: size as u64 / 3,
            last: Some(size as u64 / 2),
        };
        let read = world.get_range(&size.to_string(), middle).await.unwrap();
        assert!(read == expected[size / 3..=size / 2], "{what}: {size}, a range");
    }
}

fn pairs() -> impl Iterator<Item = [usize; 2]> {
    (0..6).flat_map(|a| (a + 1..6).map(move |b| [a, b]))
}

type Damage = fn(&World, DiskId);

/// What can be wrong with all shards of a disk. None of it shows before a read.
const DAMAGES: [(&str, Damage); 8] = [
    ("a bit flipped", |w, disk| {
        w.cluster
            .node
            .with(disk, |d| d.shards_mut().for_each(|(_, s)| flip_bit(s, 4_711)))
    }),
    ("last byte", |w, disk| {
        w.cluster.node.with(disk, |d| {
            d.shards_mut().for_each(|(_, s)| flip_bit(s, s.payload.len() - 1))
        })
    }),
    ("CRCs", |w, disk| {
        w.cluster.node.with(disk, |d| {
            d.shards_mut()
                .for_each(|(_, s)| s.seal.block_crcs.iter_mut().for_each(|c| *c ^= 1))
        })
    }),
    ("cut short", |w, disk| {
        w.cluster.node.with(disk, |d| {
            d.shards_mut()
                .for_each(|(_, s)| s.payload = s.payload.slice(..s.payload.len() - 1))
        })
    }),
    ("dropped", |w, disk| {
        w.cluster
            .node
            .with(disk, |d| d.units.values_mut().for_each(|u| u.shards.clear()))
    }),
    ("another shard's bytes", |w, disk| {
        // With CRCs that match the bytes, but for another identity.
        w.cluster.node.with(disk, |d| {
            d.shards_mut().for_each(|(_, s)| {
                s.payload = Bytes::from(vec![0x55; s.payload.len()]);
                s.seal.block_crcs = ec_core::seal::block_crcs(1, &s.payload);
            })
        })
    }),
    ("unreadable", |w, disk| {
        w.cluster.node.with(disk, |d| {
            d.faults.get = Some(NodeError::Io { what: "EIO".into() })
        })
    }),
    ("fenced", |w, disk| {
        w.cluster.node.with(disk, |d| d.faults.fenced = true)
    }),
];

#[tokio::test]
async fn every_pair_of_disks_may_be_damaged() {
    let world = filled().await;
    let mut pristine = Vec::new();
    world
        .cluster
        .node
        .each(|id, disk| pristine.push((id, disk.units.clone())));
    for [a, b] in pairs() {
        for (what, damage) in DAMAGES {
            damage(&world, world.disk(a));
            damage(&world, world.disk(b));
            assert_reads(&world, &format!("{what} on {a} and {b}")).await;
            for (id, units) in &pristine {
                world
                    .cluster
                    .node
                    .with(*id, |d| (d.units, d.faults) = (units.clone(), Faults::default()));
            }
        }
        world.poll().await;
    }
    assert_reads(&world, "all well again").await;
}

#[tokio::test]
async fn every_pair_of_disks_may_be_lost() {
    let world = filled().await;
    for [a, b] in pairs() {
        // Once before the gateway knows, once after.
        world.fault(
            a,
            Faults {
                missing: true,
                ..Default::default()
            },
        );
        world.fault(
            b,
            Faults {
                missing: true,
                ..Default::default()
            },
        );
        assert_reads(&world, &format!("{a} and {b} just lost")).await;
        world.poll().await;
        assert_reads(&world, &format!("{a} and {b} lost")).await;
        world.heal().await;
    }
    assert_eq!(
        world.census().await.suspects,
        0,
        "a disk that is away is nothing to repair"
    );
}

/// Every loss of three, and those of four that can be decoded, which are most; the others are refused, not answered wrongly.
#[tokio::test]
async fn a_locally_repairable_code_survives_what_its_matrix_says() {
    let world = World::new("lrc(4,2,2)", 8).await;
    let bytes = content(3, 700_001);
    world.put("object", &bytes).await.unwrap();
    let codec = world.objects.codecs.get(world.cluster.scheme).unwrap();
    let volumes = world.objects.volumes.all();
    let volume = volumes.iter().find(|v| v.scheme == world.cluster.scheme).unwrap();
    let (mut read, mut refused) = (0, 0);
    for lost in (0u32..256).filter(|lost| lost.count_ones() <= 4) {
        let disks: Vec<usize> = (0..8).filter(|n| lost >> n & 1 == 1).collect();
        world.lose(&disks).await;
        let gone: Vec<DiskId> = disks.iter().map(|&n| world.disk(n)).collect();
        let left = (0..8).filter(|&index| !gone.contains(&volume.disks[index]));
        let readable = (0..4).all(|data| codec.plan(&[data], left.clone().map(|i| (i, 1))).is_ok());
        match world.get("object").await {
            Ok(got) => {
                assert!(readable && got == bytes, "{disks:?} lost");
                read += 1;
            }
            Err(Error::Unreadable { .. }) => {
                assert!(!readable && disks.len() == 4, "{disks:?} lost");
                refused += 1;
            }
            Err(error) => panic!("{disks:?} lost: {error}"),
        }
        world.heal().await;
    }
    assert!(read > 93 && refused > 0, "{read} read, {refused} refused");
}

/// A read around a lost disk reads the rest of its shard's group.
#[tokio::test]
async fn a_locally_repairable_piece_is_decoded_from_its_group() {
    let world = World::new("lrc(12,2,2)", 16).await;
    let bytes = content(4, 12 * (64 << 10));
    world.put("object", &bytes).await.unwrap();
    let volumes = world.objects.volumes.all();
    let volume = volumes.iter().find(|v| v.scheme == world.cluster.scheme).unwrap();
    let first = (0..16).find(|&n| world.disk(n) == volume.disks[0]).unwrap();
    world.lose(&[first]).await;
    let gets = || {
        let mut gets = 0;
        world.cluster.node.each(|_, disk| gets += disk.gets);
        gets
    };
    let before = gets();
    let piece = Wanted::From {
        first: 0,
        last: Some(9),
    };
    assert!(world.get_range("object", piece).await.unwrap() == bytes[..10]);
    assert_eq!(gets() - before, 6);
}

/// The rest of a group may hang or be wrong as well: the globals make it up, and soon.
#[tokio::test(start_paused = true)]
async fn a_group_that_is_no_help_is_gone_around() {
    for hang in [true, false] {
        let world = World::new("lrc(12,2,2)", 16).await;
        let bytes = content(4, 12 * (64 << 10));
        world.put("object", &bytes).await.unwrap();
        let volumes = world.objects.volumes.all();
        let volume = volumes.iter().find(|v| v.scheme == world.cluster.scheme).unwrap();
        let disk_of = |index: usize| (0..16).find(|&n| world.disk(n) == volume.disks[index]).unwrap();
        world.lose(&[disk_of(0)]).await;
        match hang {
            true => world.fault(
                disk_of(1),
                Faults {
                    get_delay: Duration::from_secs(3600),
                    ..Default::default()
                },
            ),
            false => world.cluster.node.with(world.disk(disk_of(1)), |d| {
                d.shards_mut().for_each(|(_, s)| flip_bit(s, 99))
            }),
        }
        let started = tokio::time::Instant::now();
        assert!(world.get("object").await.unwrap() == bytes);
        assert!(
            started.elapsed() < Duration::from_secs(2),
            "{:?}",
            started.elapsed()
        );
        assert_eq!(world.census().await.suspects, usize::from(!hang));
    }
}

#[tokio::test]
async fn one_disk_lost_and_one_corrupt() {
    let world = filled().await;
    for a in 0..6 {
        for b in (0..6).filter(|b| *b != a) {
            world.lose(&[a]).await;
            world.cluster.node.with(world.disk(b), |d| {
                d.shards_mut().for_each(|(_, s)| flip_bit(s, 99))
            });
            assert_reads(&world, &format!("{a} lost, {b} corrupt")).await;
            world.cluster.node.with(world.disk(b), |d| {
                d.shards_mut().for_each(|(_, s)| flip_bit(s, 99))
            });
            world.heal().await;
        }
    }
}

#[tokio::test]
async fn three_disks_lost_is_an_error_and_never_wrong_bytes() {
    let world = World::new("rs(4,2)", 6).await;
    let bytes = content(3, 9 << 20);
    world.put("object", &bytes).await.unwrap();
    for (what, damage) in DAMAGES {
        let mut pristine = Vec::new();
        world
            .cluster
            .node
            .each(|id, disk| pristine.push((id, disk.units.clone())));
        for n in [1, 3, 4] {
            damage(&world, world.disk(n));
        }
        match world.get("object").await {
            Err(Error::Unreadable { readable: 3, .. }) => {}
            other => panic!("{what}: {:?}", other.map(|b| b.len())),
        }
        for (id, units) in pristine {
            world
                .cluster
                .node
                .with(id, |d| (d.units, d.faults) = (units, Faults::default()));
        }
        world.poll().await;
    }
    // In the middle of a download: what came before is right, then it breaks off.
    world.cluster.node.each(|_, disk| {
        disk.shards_mut()
            .filter(|(_, s)| s.key.stripe == 1)
            .take(1)
            .for_each(|(_, s)| flip_bit(s, 0));
    });
    let (_, mut receive) = world
        .objects
        .get(
            crate::support::cluster::BUCKET,
            "object",
            Wanted::All,
            &Default::default(),
        )
        .await
        .unwrap();
    let mut got = Vec::new();
    let error = loop {
        match receive.next().await.expect("an error comes before the end") {
            Ok(piece) => got.extend_from_slice(&piece),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Unreadable { stripe: 1, .. }), "{error}");
    assert_eq!(got.len(), 4 << 20);
    assert!(got == bytes[..got.len()]);
    assert!(receive.next().await.is_none());
}

/// Two disks that hang: pieces are decoded long before their reads time out.
#[tokio::test(start_paused = true)]
async fn late_shards_are_decoded_around() {
    for [a, b] in pairs() {
        let world = filled().await;
        for n in [a, b] {
            let get_delay = Duration::from_secs(3600);
            world.fault(
                n,
                Faults {
                    get_delay,
                    ..Default::default()
                },
            );
        }
        let started = tokio::time::Instant::now();
        assert_reads(&world, &format!("{a} and {b} hang")).await;
        let took = started.elapsed();
        assert!(took < Duration::from_secs(9), "{a} and {b} hang: {took:?}");
        // Between them they hold at least two data shards of the large object.
        assert!(
            world.objects.metrics.hedged_reads.get() > 0 || world.objects.metrics.decoded_pieces.get() == 0
        );
    }
}

/// A hedge costs a moment; a disk that hangs must not cost every reader ten seconds once the hedges are used up.
#[tokio::test(start_paused = true)]
async fn a_hanging_disk_does_not_use_up_the_patience_of_all() {
    let world = World::new("rs(4,2)", 6).await;
    let bytes = content(8, 9_000);
    for n in 0..40 {
        world.put(&n.to_string(), &bytes).await.unwrap();
    }
    // The disk that most of them are read from first.
    let firsts = |n: &usize| {
        let first = |d: &mut MemoryDisk| d.shards().filter(|(unit, _)| unit.index == 0).count();
        world.cluster.node.with(world.disk(*n), first)
    };
    let hung = (0..6).max_by_key(firsts).unwrap();
    world.fault(
        hung,
        Faults {
            get_delay: Duration::from_secs(3600),
            ..Default::default()
        },
    );
    let mut slowest = Duration::ZERO;
    for round in 0..600 {
        let started = tokio::time::Instant::now();
        assert!(world.get(&(round % 40).to_string()).await.unwrap() == bytes);
        slowest = slowest.max(started.elapsed());
    }
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
}

#[tokio::test]
async fn what_a_read_finds_is_counted_and_queued() {
    let world = World::new("rs(4,2)", 6).await;
    let bytes = content(5, 300_000);
    world.put("object", &bytes).await.unwrap();
    let count = |kind| world.objects.metrics.bad_shards.with_label_values(&[kind]).get();
    for n in 0..6 {
        world.cluster.node.with(world.disk(n), |d| {
            d.shards_mut()
                .filter(|(unit, _)| unit.index == 2)
                .for_each(|(_, s)| flip_bit(s, 70_000));
        });
    }
    assert!(world.get("object").await.unwrap() == bytes);
    assert_eq!((count("corrupt"), count("missing")), (1, 0));
    assert_eq!(world.census().await.suspects, 1);
    assert_eq!(world.objects.metrics.decoded_pieces.get(), 1);
    // The flip is in the shard's second block: a range that does not need it does not see it.
    let first = Wanted::From {
        first: 150_000,
        last: Some(150_009),
    };
    assert!(world.get_range("object", first).await.unwrap() == bytes[150_000..=150_009]);
    assert_eq!(count("corrupt"), 1);
    for n in 0..6 {
        world.cluster.node.with(world.disk(n), |d| {
            d.units
                .iter_mut()
                .filter(|(unit, _)| unit.index == 0)
                .for_each(|(_, u)| u.shards.clear());
        });
    }
    assert!(world.get("object").await.unwrap() == bytes);
    // Each is met twice: by its own read, and as a source for the other.
    assert_eq!((count("corrupt"), count("missing")), (3, 2));
    assert_eq!(world.census().await.suspects, 2);
}

/// Two data shards of each stripe are gone. The others and the parity are read once, whatever is computed from them.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_left_of_a_stripe_is_read_once() {
    let world = World::new("rs(4,2)", 6).await;
    let bytes = content(1, 4 * (4 << 20));
    world.put("object", &bytes).await.unwrap();
    let lost: Vec<usize> = (0..6)
        .filter(|&n| {
            let has_data = |d: &mut MemoryDisk| d.shards().any(|(unit, _)| unit.index < 2);
            world.cluster.node.with(world.disk(n), has_data)
        })
        .collect();
    assert_eq!(lost.len(), 2, "one volume has all of it");
    world.lose(&lost).await;
    let gets = || {
        let mut gets = 0;
        world.cluster.node.each(|_, disk| gets += disk.gets);
        gets
    };
    let before = gets();
    assert!(world.get("object").await.unwrap() == bytes);
    assert_eq!(gets() - before, 16, "four shards of four stripes");
}
