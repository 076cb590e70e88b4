//! Repair: a shard found wrong is rewritten as it was, verified, and its row goes; nothing that lies can poison it.

use crate::support::cluster::World;
use crate::support::content::content;
use crate::support::memory_node::{Faults, flip_bit};
use bytes::Bytes;
use gateway::ledger::model::SuspectRow;
use gateway::ledger::{CommitBuilder, key};
use gateway::maintenance::worker::Step;
use std::collections::BTreeMap;
use std::time::Duration;
use storage_node::protocol::{DiskId, SealedShard, ShardKey, UnitId, seal_seed};

type Shards = BTreeMap<(DiskId, UnitId, ShardKey), SealedShard>;

fn shards(world: &World) -> Shards {
    let mut all = Shards::new();
    world.cluster.node.each(|id, disk| {
        all.extend(
            disk.shards()
                .map(|(unit, shard)| ((id, unit, shard.key), shard.clone())),
        );
    });
    all
}

/// Changes every shard of these indices in volumes of one scheme's width.
fn damage(world: &World, indices: &[u8], mut act: impl FnMut(&mut SealedShard)) {
    world.cluster.node.each(|_, disk| {
        disk.shards_mut()
            .filter(|(unit, _)| indices.contains(&unit.index))
            .for_each(|(_, shard)| act(shard));
    });
}

fn drop_shards(world: &World, indices: &[u8]) {
    world.cluster.node.each(|_, disk| {
        disk.units
            .iter_mut()
            .filter(|(id, _)| indices.contains(&id.index))
            .for_each(|(_, u)| u.shards.clear());
    });
}

/// Queues every shard of these indices, as a scrub that found them would.
async fn queue(world: &World, indices: &[u8]) {
    let mut commit = CommitBuilder::new();
    for (_, unit, shard) in shards(world)
        .into_keys()
        .filter(|(_, unit, _)| indices.contains(&unit.index))
    {
        let row_key = key::suspect(unit.volume, shard.blob, shard.stripe, unit.index);
        commit = commit.put(
            row_key,
            &SuspectRow {
                reason: "a test".into(),
            },
        );
    }
    world.cluster.ledger().commit(commit.build()).await.unwrap();
}

async fn with_object(scheme: &str, disks: u32, size: usize) -> (World, Bytes, Shards) {
    let world = World::new(scheme, disks).await;
    let bytes = content(size as u64, size);
    world.put("object", &bytes).await.unwrap();
    let shards = shards(&world);
    (world, bytes, shards)
}

#[tokio::test]
async fn every_shard_is_rewritten_as_it_was() {
    for (scheme, disks, size) in [
        ("rs(4,2)", 6, 9_000_000),
        ("rs(4,2)", 6, 9_000),
        ("rs(2,1)", 3, 3_000_001),
        ("replica(3)", 3, 100_000),
        ("lrc(4,2,2)", 8, 9_000_000),
        ("lrc(12,2,2)", 16, 13_000_001),
    ] {
        let (world, bytes, original) = with_object(scheme, disks, size).await;
        for index in 0..disks as u8 {
            let bad = original.keys().filter(|(_, unit, _)| unit.index == index).count();
            queue(&world, &[index]).await;
            match index % 3 {
                0 => damage(&world, &[index], |s| flip_bit(s, 1)),
                1 => damage(&world, &[index], |s| s.seal.block_crcs[0] ^= 1),
                _ => drop_shards(&world, &[index]),
            }
            let before = world.objects.metrics.repaired_shards.get();
            world.repair().await;
            assert_eq!(
                world.objects.metrics.repaired_shards.get(),
                before + bad as u64,
                "{scheme} {index}"
            );
            assert!(shards(&world) == original, "{scheme} {index}: not as it was");
        }
        world.census().await.assert_clean();
        assert!(world.get("object").await.unwrap() == bytes);
    }
}

#[tokio::test]
async fn a_read_finds_it_and_repair_mends_it() {
    let (world, bytes, original) = with_object("rs(4,2)", 6, 5 << 20).await;
    damage(&world, &[1, 3], |s| flip_bit(s, 12_345));
    assert!(world.get("object").await.unwrap() == bytes);
    assert_eq!(world.census().await.suspects, 4, "two stripes, two shards each");
    // Each is met again as a source for the other, and so queued again after it was mended.
    while world.repair().await == Step::Worked {}
    assert!(shards(&world) == original);
    world.census().await.assert_clean();
    assert!((4..=8).contains(&world.objects.metrics.repaired_shards.get()));
}

#[tokio::test]
async fn a_corrupt_source_is_found_and_repaired_too() {
    let (world, bytes, original) = with_object("rs(4,2)", 6, 1 << 20).await;
    queue(&world, &[5]).await;
    damage(&world, &[0], |s| flip_bit(s, 0));
    drop_shards(&world, &[5]);
    world.repair().await;
    assert_eq!(world.census().await.suspects, 1, "the source");
    world.repair().await;
    assert!(shards(&world) == original);
    world.census().await.assert_clean();
    assert!(world.get("object").await.unwrap() == bytes);
}

#[tokio::test(start_paused = true)]
async fn too_few_sources_wait_until_there_are_enough() {
    let (world, _, original) = with_object("rs(4,2)", 6, 1 << 20).await;
    queue(&world, &[5]).await;
    drop_shards(&world, &[5]);
    let holders: Vec<DiskId> = original
        .keys()
        .filter(|(_, unit, _)| unit.index < 2)
        .map(|(disk, _, _)| *disk)
        .collect();
    for disk in &holders {
        world.cluster.node.fault(
            *disk,
            Faults {
                missing: true,
                ..Default::default()
            },
        );
    }
    world.poll().await;
    world.repair().await;
    assert_eq!(world.census().await.suspects, 1);
    assert_eq!(world.objects.metrics.failed_repairs.get(), 1);
    world.heal().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.repair().await;
    assert!(shards(&world) == original);
    world.census().await.assert_clean();
}

#[tokio::test]
async fn a_shard_on_a_disk_that_is_away_waits_for_it() {
    let (world, _, original) = with_object("rs(4,2)", 6, 1 << 20).await;
    queue(&world, &[2]).await;
    drop_shards(&world, &[2]);
    let holder = original.keys().find(|(_, unit, _)| unit.index == 2).unwrap().0;
    world.cluster.node.fault(
        holder,
        Faults {
            missing: true,
            ..Default::default()
        },
    );
    world.poll().await;
    world.repair().await;
    assert_eq!(world.census().await.suspects, 1);
    world.heal().await;
    world.repair().await;
    assert!(shards(&world) == original);
    world.census().await.assert_clean();
}

/// The table of digests in a record can be wrong while the payload is right. As long as k others agree, that is no
/// reason to give up, nor to write what the liar says.
#[tokio::test]
async fn a_lying_digest_table_does_not_poison_repair() {
    for (scheme, disks, lying, lost) in [
        ("rs(4,2)", 6, 0u8, 5u8),
        ("rs(4,2)", 6, 4, 5),
        ("replica(3)", 3, 0, 2),
        ("lrc(4,2,2)", 8, 0, 1),
        ("lrc(4,2,2)", 8, 0, 7),
    ] {
        for entry in 0..disks as usize {
            let (world, bytes, original) = with_object(scheme, disks, 1 << 20).await;
            queue(&world, &[lost]).await;
            drop_shards(&world, &[lost]);
            damage(&world, &[lying], |s| s.seal.digests[entry][3] ^= 0x40);
            world.repair().await;
            let rebuilt: Vec<_> = shards(&world)
                .into_iter()
                .filter(|((_, u, _), _)| u.index == lost)
                .collect();
            assert_eq!(
                rebuilt.len(),
                1,
                "{scheme}: shard {lying} lies about {entry}: given up"
            );
            for (at, shard) in rebuilt {
                assert!(
                    original[&at] == shard,
                    "{scheme}: shard {lying} lies about {entry}: rewritten otherwise"
                );
            }
            if lying != 0 {
                continue; // It was not needed, and so not met.
            }
            // The liar is found out on the way.
            while world.repair().await == Step::Worked {}
            assert!(
                shards(&world) == original,
                "{scheme}: shard {lying} still lies about {entry}"
            );
            world.census().await.assert_clean();
            assert!(world.get("object").await.unwrap() == bytes);
        }
    }
}

/// A record can be whole by its CRCs and not what its own digest says. It takes part in no repair, and is repaired itself.
#[tokio::test]
async fn a_record_that_is_not_its_own_digest_is_left_out_and_mended() {
    for (scheme, disks, lying, lost) in [
        ("rs(4,2)", 6, 0u8, 5u8),
        ("lrc(4,2,2)", 8, 0, 1),
        ("replica(3)", 3, 0, 2),
    ] {
        let (world, bytes, original) = with_object(scheme, disks, 1 << 20).await;
        queue(&world, &[lost]).await;
        drop_shards(&world, &[lost]);
        world.cluster.node.each(|_, disk| {
            for (unit, shard) in disk.shards_mut().filter(|(unit, _)| unit.index == lying) {
                flip_bit(shard, 77);
                let seed = seal_seed(unit, shard.key, shard.payload.len() as u32);
                shard.seal.block_crcs = ec_core::seal::block_crcs(seed, &shard.payload);
            }
        });
        while world.repair().await == Step::Worked {}
        assert!(shards(&world) == original, "{scheme}");
        world.census().await.assert_clean();
        assert!(world.get("object").await.unwrap() == bytes);
    }
}

/// One lost shard of a locally repairable stripe costs the reads of its group, and not of the whole stripe.
#[tokio::test]
async fn a_locally_repairable_shard_is_repaired_from_its_group() {
    for (lost, reads) in [(0u8, 6), (7, 6), (12, 6), (13, 6), (14, 12), (15, 12)] {
        let (world, bytes, original) = with_object("lrc(12,2,2)", 16, 1 << 20).await;
        queue(&world, &[lost]).await;
        drop_shards(&world, &[lost]);
        let gets = || {
            let mut gets = 0;
            world.cluster.node.each(|_, disk| gets += disk.gets);
            gets
        };
        let before = gets();
        world.repair().await;
        assert!(shards(&world) == original, "shard {lost}");
        assert_eq!(
            gets() - before,
            reads + 1,
            "shard {lost}: its sources, and itself read back"
        );
        world.census().await.assert_clean();
        assert!(world.get("object").await.unwrap() == bytes);
    }
}

/// One row that cannot be handled must not keep the others waiting.
#[tokio::test]
async fn a_row_that_makes_no_sense_does_not_stop_the_others() {
    let (world, _, original) = with_object("rs(4,2)", 6, 1 << 20).await;
    queue(&world, &[1]).await;
    drop_shards(&world, &[1]);
    let (_, unit, shard) = original.keys().next().unwrap();
    let row = SuspectRow {
        reason: "a test".into(),
    };
    let commit = CommitBuilder::new()
        .put(key::suspect(0, 1, 0, 0), &row)
        .put(key::suspect(unit.volume, shard.blob, 900, 0), &row)
        .put(key::suspect(unit.volume, shard.blob, 0, 200), &row)
        .put(key::suspect(unit.volume, u64::MAX, 0, 0), &row);
    world.cluster.ledger().commit(commit.build()).await.unwrap();
    world.repair().await;
    assert!(shards(&world) == original);
    world.census().await.assert_clean();
}

#[tokio::test]
async fn a_suspect_of_a_deleted_object_goes_and_nothing_is_written() {
    let (world, _, _) = with_object("rs(4,2)", 6, 1 << 20).await;
    queue(&world, &[1, 2]).await;
    world.delete("object").await.unwrap();
    world.repair().await;
    world.collect().await;
    world.census().await.assert_clean();
    assert_eq!(world.cluster.node.shard_count(), 0);
    assert_eq!(world.objects.metrics.repaired_shards.get(), 0);
}
