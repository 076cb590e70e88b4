//! What the nodes find while they verify their disks is queued and repaired, once, and only what is still theirs.

use crate::support::cluster::World;
use crate::support::content::content;
use crate::support::memory_node::flip_bit;
use gateway::maintenance::scrub::Scrub;
use gateway::maintenance::worker::{Step, Worker};
use storage_node::protocol::{DiskId, Finding, FindingKind, ShardKey, UnitId};

/// Damages every shard of an index and lets its disk say so. Where they are, and how many.
fn find(world: &World, index: u8, kind: FindingKind) -> (DiskId, u64) {
    let mut holder = None;
    world.cluster.node.each(|id, disk| {
        let mut found = Vec::new();
        for (unit, shard) in disk.shards_mut().filter(|(unit, _)| unit.index == index) {
            flip_bit(shard, 7);
            found.push(finding(kind, unit, shard.key));
        }
        if !found.is_empty() {
            holder = Some((id, found.len() as u64));
            disk.findings.last += found.len() as u64;
            disk.findings.found.extend(found);
        }
    });
    holder.unwrap()
}

fn finding(kind: FindingKind, unit: UnitId, key: ShardKey) -> Finding {
    Finding {
        kind,
        unit,
        key,
        extent: 1,
        offset: 4096,
        what: "a test".into(),
    }
}

#[tokio::test]
async fn damage_that_no_read_meets_is_repaired() {
    let world = World::new("rs(4,2)", 6).await;
    let bytes = content(1, 9 << 20);
    world.put("object", &bytes).await.unwrap();
    let scrub = Scrub::new(world.objects.clone());
    assert_eq!(scrub.step().await.unwrap(), Step::Idle);
    // Parity: healthy reads never touch it.
    for (index, kind) in [(4, FindingKind::Corrupt), (5, FindingKind::Unreadable)] {
        let (disk, count) = find(&world, index, kind);
        assert!(world.get("object").await.unwrap() == bytes);
        assert_eq!(world.census().await.suspects, 0);
        assert_eq!(scrub.step().await.unwrap(), Step::Worked);
        assert_eq!(world.census().await.suspects as u64, count);
        world.repair().await;
        world.census().await.assert_clean();
        assert_eq!(scrub.step().await.unwrap(), Step::Idle, "it was heard before");
        // The disk was opened anew, and finds something else.
        world.cluster.node.with(disk, |d| {
            d.findings.opened += 1;
            d.findings.last = 0;
            d.findings.found.clear();
        });
        assert_eq!(scrub.step().await.unwrap(), Step::Idle);
        find(&world, index, kind);
        assert_eq!(scrub.step().await.unwrap(), Step::Worked);
        world.repair().await;
        world.census().await.assert_clean();
    }
}

#[tokio::test]
async fn what_is_not_the_disks_own_is_not_queued() {
    let world = World::new("rs(4,2)", 6).await;
    world.put("object", &content(1, 1 << 20)).await.unwrap();
    let scrub = Scrub::new(world.objects.clone());
    let mut units: Vec<(DiskId, UnitId, ShardKey)> = Vec::new();
    world
        .cluster
        .node
        .each(|id, disk| units.extend(disk.shards().map(|(unit, shard)| (id, unit, shard.key))));
    let (disk, unit, key) = units[0];
    let other = units.iter().find(|(other, _, _)| *other != disk).unwrap().1;
    let unknown = UnitId {
        volume: 999_999,
        index: 0,
    };
    world.cluster.node.with(disk, |d| {
        d.findings.found = vec![
            finding(FindingKind::Forgotten, unit, key),
            finding(FindingKind::Summary, unit, key),
            finding(FindingKind::Corrupt, other, key),
            finding(FindingKind::Corrupt, unknown, key),
        ];
        d.findings.last = 4;
    });
    assert_eq!(scrub.step().await.unwrap(), Step::Idle);
    assert_eq!(world.census().await.suspects, 0);
}
