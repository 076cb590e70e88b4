//! Volumes that are made while somebody leaves: the one who waits for it, or a disk.

use crate::support::cluster::{BUCKET, World};
use crate::support::content::{body, content};
use crate::support::store::{When, puts};
use gateway::admin::operations::{Action, ApplyRequest, PlanRequest, Refusal, Subject};
use gateway::error::Result;
use gateway::ledger::model::Membership;
use gateway::object::condition::WriteConditions;
use gateway::object::put::Expected;
use tokio::task::JoinHandle;

fn begin_put(world: &World) -> JoinHandle<Result<()>> {
    let objects = world.objects.clone();
    tokio::spawn(async move {
        let (bytes, headers) = (body(&content(1, 100_000)), Default::default());
        let conditions = WriteConditions::default();
        let stored = objects.put(BUCKET, "object", bytes, Expected::default(), headers, conditions);
        stored.await.map(drop)
    })
}

/// An upload that leaves before, or just after, the volume that it wants is recorded.
async fn cut_off_a_put(world: &World, when: When) {
    let mut held = world.cluster.store.hold(when, puts(b'v'));
    let cut_off = begin_put(world);
    held.arrived().await;
    cut_off.abort();
    assert!(cut_off.await.unwrap_err().is_cancelled());
}

/// An upload is cut off while the volume that it wants is being recorded: the volume is known soon after, or never was, and
/// meanwhile no disk of it can be removed.
#[tokio::test]
async fn a_volume_that_was_begun_is_not_forgotten() {
    for when in [When::Before, When::After] {
        let world = World::new("rs(4,2)", 6).await;
        cut_off_a_put(&world, when).await;
        assert!(world.objects.volumes.all().is_empty());

        let disk = world.objects.disks.get(world.disk(0)).unwrap();
        world.objects.decide(disk.id, Membership::Out).await.unwrap();
        let subject = Subject::Disk(disk.label.clone());
        let remove = PlanRequest {
            subject: subject.clone(),
            action: Action::Remove,
        };
        let plan = world.objects.plan(&remove).unwrap();
        assert_eq!((plan.units, &plan.refused), (0, &None));
        if when == When::After {
            let request = ApplyRequest {
                subject,
                action: Action::Remove,
                plan: plan.plan,
                force: None,
            };
            let refused = world.objects.apply(&request).await.unwrap_err();
            assert!(matches!(refused, Refusal::Outdated), "{refused:?}");
            let plan = world.objects.plan(&remove).unwrap();
            assert!(plan.units == 1 && plan.refused.is_some(), "{plan:?}");
            continue;
        }
        // Its disk is not in service any more: it can never be.
        world.objects.volumes.settle_begun().await.unwrap();
        assert_eq!(world.objects.volumes.all().len(), 0);
        world.objects.decide(disk.id, Membership::Active).await.unwrap();
        world.put("object", &content(2, 100_000)).await.unwrap();
        assert_eq!(world.objects.volumes.all().len(), 1);
    }
}

/// The same, and nothing happens to its disks.
#[tokio::test]
async fn a_volume_that_was_begun_is_taken_in() {
    for when in [When::Before, When::After] {
        let world = World::new("rs(4,2)", 6).await;
        cut_off_a_put(&world, when).await;
        world.objects.volumes.settle_begun().await.unwrap();
        let [volume] = &world.objects.volumes.all()[..] else {
            panic!("one volume")
        };
        assert_eq!((volume.id, volume.epoch), (1, 1));
        world.put("object", &content(2, 100_000)).await.unwrap();
        assert_eq!(world.objects.volumes.all().len(), 1, "it is used");
    }
}

/// A disk is drained between the choice of a volume's disks and its commit: another group is chosen.
#[tokio::test]
async fn no_volume_is_made_on_a_disk_that_leaves() {
    let world = World::new("rs(2,2)", 4).await;
    let mut held = world.cluster.store.hold(When::Before, puts(b'v'));
    let writing = begin_put(&world);
    held.arrived().await;
    world
        .objects
        .decide(world.disk(0), Membership::Draining)
        .await
        .unwrap();
    held.go_on();
    writing.await.unwrap().unwrap();
    for volume in world.objects.volumes.all() {
        assert!(!volume.disks.contains(&world.disk(0)), "{volume:?}");
    }
    assert_eq!(world.get("object").await.unwrap(), content(1, 100_000));
}
