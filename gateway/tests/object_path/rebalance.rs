//! Units that move from full disks to empty ones because an operator asks for it: nothing is ever less safe meanwhile.

use crate::support::cluster::World;
use crate::support::content::content;
use gateway::ledger::model::Membership;
use gateway::maintenance::leftovers::Leftovers;
use gateway::maintenance::rebalance::Rebalance;
use gateway::maintenance::rebuild::{Moving, Rebuild, Shared};
use gateway::maintenance::worker::{Step, Worker};
use std::collections::HashMap;
use std::sync::Arc;
use storage_node::protocol::DiskId;
use tokio::sync::watch;

/// Bytes of each disk.
const CAPACITY: u64 = 64 << 20;

struct Workers {
    rebalance: Rebalance,
    rebuild: Rebuild,
    leftovers: Leftovers,
    _stop: watch::Sender<bool>,
}

fn workers(world: &World) -> Workers {
    let moving = Moving::default();
    let (stop, stopped) = watch::channel(false);
    let shared = Arc::new(Shared::new(&world.objects, 16 << 20));
    Workers {
        rebalance: Rebalance::new(world.objects.clone()),
        rebuild: Rebuild::new(world.objects.clone(), moving.clone(), shared, stopped),
        leftovers: Leftovers::new(world.objects.clone(), moving),
        _stop: stop,
    }
}

impl Workers {
    /// One round of all; whether anything was done.
    async fn round(&self) -> bool {
        let mut worked = false;
        worked |= self.rebalance.step().await.unwrap() == Step::Worked;
        worked |= self.rebuild.step().await.unwrap() == Step::Worked;
        worked |= self.leftovers.step().await.unwrap() == Step::Worked;
        worked
    }
}

fn live(world: &World) -> HashMap<DiskId, u64> {
    let mut live = HashMap::new();
    world.cluster.node.each(|id, disk| {
        live.insert(
            id,
            disk.units
                .values()
                .flat_map(|unit| unit.shards.values())
                .map(|s| s.payload.len() as u64)
                .sum(),
        );
    });
    live
}

/// Nine disks, three of which were away while everything was written.
async fn lopsided() -> (World, Vec<(String, bytes::Bytes)>) {
    let world = World::new("rs(4,2)", 9).await;
    world.cluster.node.each(|_, disk| disk.capacity = CAPACITY);
    world.lose(&[6, 7, 8]).await;
    let mut objects = Vec::new();
    for number in 0..60u64 {
        let (name, bytes) = (format!("{number}"), content(number, 900_000));
        world.put(&name, &bytes).await.unwrap();
        objects.push((name, bytes));
        if number % 6 == 5 {
            for volume in world.objects.volumes.all() {
                world.objects.volumes.seal(volume.id).await.unwrap();
            }
        }
    }
    world.heal().await;
    (world, objects)
}

#[tokio::test]
async fn empty_disks_are_filled_and_redundancy_never_falls() {
    let (world, objects) = lopsided().await;
    let before = live(&world);
    assert!((6..9).all(|n| before[&world.disk(n)] == 0));
    let mut request = gateway::admin::rebalance::RebalanceRequest {
        within_permille: 1,
        plan: None,
    };
    let plan = world.objects.rebalance(&request).await.unwrap();
    assert!(
        plan.units >= 10 && plan.spread_then < plan.spread_now / 2.0,
        "{plan:?}"
    );
    request.plan = Some("of another day".into());
    assert!(world.objects.rebalance(&request).await.is_err());
    assert!(world.objects.rebalance_status().await.unwrap().is_none());
    request.plan = Some(plan.plan);
    world.objects.rebalance(&request).await.unwrap();
    // In the middle of it the gateway dies; the next one goes on.
    let first = workers(&world);
    for _ in 0..3 {
        first.round().await;
    }
    drop(first);
    let world = world.crash().await;
    assert!(world.objects.rebalance_status().await.unwrap().is_some());
    let workers = workers(&world);
    let mut rounds = 0;
    while workers.round().await {
        rounds += 1;
        assert!(rounds < 1_000, "rebalancing never ends");
        assert!(
            world
                .objects
                .volumes
                .all()
                .iter()
                .all(|v| v.incomplete.is_empty())
        );
        for (name, bytes) in objects.iter().step_by(17) {
            assert!(world.get(name).await.unwrap() == *bytes, "{name}");
        }
    }
    assert!(world.objects.rebalance_status().await.unwrap().is_none());
    let after = live(&world);
    let (least, most) = (after.values().min().unwrap(), after.values().max().unwrap());
    assert!(*least * 2 > *most, "{after:?}");
    world.census().await.assert_clean();
    for (name, bytes) in &objects {
        assert!(world.get(name).await.unwrap() == *bytes, "{name}");
    }
    for volume in world.objects.volumes.all() {
        let distinct: std::collections::HashSet<_> = volume.disks.iter().collect();
        assert_eq!(distinct.len(), volume.disks.len());
    }
}

#[tokio::test]
async fn a_disk_that_is_lost_meanwhile_is_no_target() {
    let (world, objects) = lopsided().await;
    let mut request = gateway::admin::rebalance::RebalanceRequest {
        within_permille: 1,
        plan: None,
    };
    let plan = world.objects.rebalance(&request).await.unwrap();
    request.plan = Some(plan.plan);
    world.objects.rebalance(&request).await.unwrap();
    let workers = workers(&world);
    workers.round().await;
    world.lose(&[7]).await;
    world
        .objects
        .decide(world.disk(7), Membership::Out)
        .await
        .unwrap();
    let mut rounds = 0;
    while workers.round().await {
        rounds += 1;
        assert!(rounds < 1_000, "rebalancing never ends");
    }
    assert!(world.objects.rebalance_status().await.unwrap().is_none());
    let lost = world.disk(7);
    assert!(
        world
            .objects
            .volumes
            .all()
            .iter()
            .all(|v| !v.disks.contains(&lost))
    );
    for (name, bytes) in &objects {
        assert!(world.get(name).await.unwrap() == *bytes, "{name}");
    }
}
