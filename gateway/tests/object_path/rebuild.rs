//! Disks that are lost, drained, given up and come back: what they held is whole elsewhere, and nothing is served from where it
//! no longer belongs.

use crate::support::cluster::World;
use crate::support::content::content;
use crate::support::memory_node::{Faults, flip_bit};
use bytes::Bytes;
use gateway::ledger::model::{Membership, VolumeRow};
use gateway::ledger::{CommitBuilder, key};
use gateway::maintenance::absence::Absence;
use gateway::maintenance::leftovers::Leftovers;
use gateway::maintenance::rebuild::pace::{FLOOR, Wanted};
use gateway::maintenance::rebuild::{Moving, Rebuild, Shared};
use gateway::maintenance::worker::{Step, Worker};
use gateway::object::shard_reader::StripeSource;
use std::collections::HashSet;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use storage_node::protocol::{BlockRange, DiskId, NodeError, UnitId};
use tokio::sync::watch;

struct Maintenance {
    rebuild: Rebuild,
    leftovers: Leftovers,
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
}

fn maintenance(world: &World) -> Maintenance {
    let moving = Moving::default();
    let shared = Arc::new(Shared::new(&world.objects, FLOOR));
    let (stop, stopped) = watch::channel(false);
    Maintenance {
        rebuild: Rebuild::new(world.objects.clone(), moving.clone(), shared.clone(), stopped),
        leftovers: Leftovers::new(world.objects.clone(), moving),
        shared,
        stop,
    }
}

impl Maintenance {
    /// Until there is nothing left that can be done.
    async fn settle(&self) {
        for _ in 0..10_000 {
            if self.rebuild.step().await.unwrap() == Step::Idle {
                return;
            }
        }
        panic!("rebuilding never ends");
    }

    fn units_left(&self) -> usize {
        self.shared.status().units
    }
}

/// Objects of every kind of size.
async fn filled(scheme: &str, disks: u32) -> (World, Vec<(String, Bytes)>) {
    let world = World::new(scheme, disks).await;
    let mut objects = Vec::new();
    for (number, size) in [1, 700, 16_384, 16_385, 1 << 20, 5_000_001, 9 << 20]
        .into_iter()
        .enumerate()
    {
        for copy in 0..3 {
            let (name, bytes) = (
                format!("{number}-{copy}"),
                content(number as u64 * 10 + copy, size),
            );
            world.put(&name, &bytes).await.unwrap();
            objects.push((name, bytes));
        }
    }
    (world, objects)
}

async fn assert_readable(world: &World, objects: &[(String, Bytes)]) {
    for (name, bytes) in objects {
        assert!(world.get(name).await.unwrap() == *bytes, "{name}");
    }
}

/// A census that finds nothing but what these disks, which are away, still have.
async fn assert_clean_without(world: &World, away: &[usize]) {
    let mut census = world.census().await;
    let away: Vec<String> = away.iter().map(|n| world.disk(*n).to_string()).collect();
    census
        .stray
        .retain(|stray| !away.iter().any(|disk| stray.contains(disk)));
    census.assert_clean();
}

fn units_of(world: &World, n: usize) -> usize {
    let disk = world.disk(n);
    let volumes = world.objects.volumes.all();
    volumes
        .iter()
        .filter(|volume| volume.disks.contains(&disk))
        .count()
}

#[tokio::test]
async fn what_a_lost_disk_held_is_whole_elsewhere_and_more_losses_are_survived() {
    for (scheme, disks) in [("rs(4,2)", 9), ("replica(3)", 6), ("lrc(4,2,2)", 12)] {
        let (world, objects) = filled(scheme, disks).await;
        let maintenance = maintenance(&world);
        // One after the other: of as many as the scheme survives at once there is one more than that.
        for lost in 0..3 {
            world.lose(&[lost]).await;
            assert!(units_of(&world, lost) > 0);
            world
                .objects
                .decide(world.disk(lost), Membership::Out)
                .await
                .unwrap();
            maintenance.settle().await;
            assert_eq!(
                (units_of(&world, lost), maintenance.units_left()),
                (0, 0),
                "{scheme}"
            );
            assert_clean_without(&world, &[0, 1, 2][..=lost]).await;
            assert_readable(&world, &objects).await;
        }
        assert!(world.objects.metrics.rebuilt_bytes.get() > 0);
    }
}

#[tokio::test]
async fn two_disks_lost_at_once_are_rebuilt_and_writes_go_on() {
    let (world, mut objects) = filled("rs(4,2)", 9).await;
    let maintenance = maintenance(&world);
    world.lose(&[3, 7]).await;
    for lost in [3, 7] {
        world
            .objects
            .decide(world.disk(lost), Membership::Out)
            .await
            .unwrap();
    }
    for number in 0..40 {
        let (name, bytes) = (format!("new-{number}"), content(1000 + number, 300_000));
        let (stored, step) = tokio::join!(world.put(&name, &bytes), maintenance.rebuild.step());
        stored.unwrap();
        step.unwrap();
        objects.push((name, bytes));
        assert_readable(&world, &objects[..3]).await;
    }
    maintenance.settle().await;
    world.collect().await;
    assert_clean_without(&world, &[3, 7]).await;
    world.lose(&[0, 1]).await;
    assert_readable(&world, &objects).await;
}

#[tokio::test]
async fn a_drained_disk_ends_with_nothing_and_its_copies_never_fall_short() {
    let (world, objects) = filled("rs(4,2)", 9).await;
    let maintenance = maintenance(&world);
    world
        .objects
        .decide(world.disk(2), Membership::Draining)
        .await
        .unwrap();
    loop {
        // What is being copied is nobody's leftover.
        let (step, cleared) = tokio::join!(maintenance.rebuild.step(), maintenance.leftovers.step());
        cleared.unwrap();
        if step.unwrap() != Step::Worked {
            break;
        }
        let volumes = world.objects.volumes.all();
        assert!(volumes.iter().all(|volume| volume.incomplete.is_empty()));
    }
    assert_eq!((units_of(&world, 2), maintenance.units_left()), (0, 0));
    while maintenance.leftovers.step().await.unwrap() == Step::Worked {}
    world.census().await.assert_clean();
    world
        .cluster
        .node
        .each(|id, disk| assert!(id != world.disk(2) || disk.units.is_empty()));
    let before = world.objects.metrics.decoded_pieces.get();
    assert_readable(&world, &objects).await;
    assert_eq!(world.objects.metrics.decoded_pieces.get(), before);
}

#[tokio::test]
async fn a_disk_that_stays_away_is_given_up_and_back_in_service_when_it_returns() {
    let (world, objects) = filled("rs(4,2)", 9).await;
    let maintenance = maintenance(&world);
    let absence = Absence::new(world.objects.clone(), Duration::ZERO);
    assert_eq!(absence.step().await.unwrap(), Step::Idle);
    world.lose(&[5]).await;
    world.poll().await;
    assert_eq!(absence.step().await.unwrap(), Step::Worked);
    let membership = || world.objects.disks.get(world.disk(5)).unwrap().membership;
    assert_eq!(membership(), Membership::Absent);
    maintenance.settle().await;
    // Deleted, and written over, while it was away.
    world.delete(&objects[20].0).await.unwrap();
    world.put(&objects[19].0, &objects[18].1).await.unwrap();
    world.collect().await;
    world.heal().await;
    while maintenance.leftovers.step().await.unwrap() == Step::Worked {}
    assert_eq!(membership(), Membership::Active);
    world
        .cluster
        .node
        .each(|id, disk| assert!(id != world.disk(5) || disk.units.is_empty()));
    world.census().await.assert_clean();
    assert_readable(&world, &objects[..18]).await;
    assert!(world.get(&objects[19].0).await.unwrap() == objects[18].1);
}

#[tokio::test]
async fn nobody_is_given_up_when_many_are_away() {
    let (world, objects) = filled("rs(4,2)", 9).await;
    let absence = Absence::new(world.objects.clone(), Duration::ZERO);
    world.lose(&[0, 1, 2, 3]).await;
    world.poll().await;
    assert_eq!(absence.step().await.unwrap(), Step::Idle);
    world.heal().await;
    assert_readable(&world, &objects).await;
}

/// Who is given up and stays away is no sign of a split: the next machine that dies is given up too.
#[tokio::test]
async fn those_given_up_before_do_not_keep_others_from_it() {
    let (world, _) = filled("rs(4,2)", 12).await;
    let absence = Absence::new(world.objects.clone(), Duration::ZERO);
    let maintenance = maintenance(&world);
    for lost in [&[0, 1][..], &[2, 3], &[4]] {
        world.lose(lost).await;
        world.poll().await;
        assert_eq!(absence.step().await.unwrap(), Step::Worked, "{lost:?}");
        for disk in lost {
            let membership = world.objects.disks.get(world.disk(*disk)).unwrap().membership;
            assert_eq!(membership, Membership::Absent);
        }
        maintenance.settle().await;
    }
}

/// Machines do not come back in the same moment when a network is whole again.
#[tokio::test(start_paused = true)]
async fn who_returns_last_from_a_split_is_waited_for_anew() {
    const GRACE: Duration = Duration::from_secs(60);
    let (world, _) = filled("rs(4,2)", 9).await;
    let absence = Absence::new(world.objects.clone(), GRACE);
    world.lose(&[0, 1, 2, 3]).await;
    world.poll().await;
    assert_eq!(absence.step().await.unwrap(), Step::Idle);
    tokio::time::advance(2 * GRACE).await;
    assert_eq!(absence.step().await.unwrap(), Step::Idle);
    for disk in [0, 1, 2] {
        world.fault(disk, Faults::default());
    }
    world.poll().await;
    assert_eq!(absence.step().await.unwrap(), Step::Idle);
    tokio::time::advance(GRACE).await;
    assert_eq!(absence.step().await.unwrap(), Step::Worked);
    let membership = world.objects.disks.get(world.disk(3)).unwrap().membership;
    assert_eq!(membership, Membership::Absent);
}

#[tokio::test]
async fn a_gateway_that_dies_in_the_middle_leaves_it_to_the_next() {
    for polls in [1, 5, 20, 60, 150, 400, 1000] {
        for membership in [Membership::Out, Membership::Draining] {
            let (world, objects) = filled("rs(4,2)", 8).await;
            if membership == Membership::Out {
                world.lose(&[1]).await;
            }
            world.objects.decide(world.disk(1), membership).await.unwrap();
            {
                let maintenance = maintenance(&world);
                let mut work = pin!(maintenance.settle());
                for _ in 0..polls {
                    if futures::poll!(&mut work).is_ready() {
                        break;
                    }
                    tokio::task::yield_now().await;
                }
            }
            let world = world.crash().await;
            let maintenance = maintenance(&world);
            maintenance.settle().await;
            world.heal().await;
            while maintenance.leftovers.step().await.unwrap() == Step::Worked {}
            assert_eq!(units_of(&world, 1), 0);
            assert_readable(&world, &objects).await;
            let census = world.census().await;
            assert!(
                census.missing.is_empty() && census.stray.is_empty(),
                "{census:#?}"
            );
        }
    }
}

#[tokio::test]
async fn without_a_disk_to_go_to_it_waits_for_one() {
    let (world, objects) = filled("rs(4,2)", 6).await;
    let maintenance = maintenance(&world);
    world.lose(&[4]).await;
    world
        .objects
        .decide(world.disk(4), Membership::Absent)
        .await
        .unwrap();
    maintenance.settle().await;
    assert!(units_of(&world, 4) > 0);
    let status = maintenance.shared.status();
    assert!(status.waiting > 0 && status.waiting == status.units, "{status:?}");
    // What it still has is still right.
    world.heal().await;
    maintenance.leftovers.step().await.unwrap();
    maintenance.settle().await;
    assert_eq!(maintenance.units_left(), 0);
    world.census().await.assert_clean();
    assert_readable(&world, &objects).await;
}

#[tokio::test]
async fn a_volume_that_cannot_be_decoded_is_left_as_it_is() {
    let (world, objects) = filled("rs(4,2)", 9).await;
    let maintenance = maintenance(&world);
    let before: Vec<_> = world
        .objects
        .volumes
        .all()
        .iter()
        .map(|v| v.disks.clone())
        .collect();
    world.lose(&[0, 1, 2, 3, 4]).await;
    for lost in 0..5 {
        world
            .objects
            .decide(world.disk(lost), Membership::Absent)
            .await
            .unwrap();
    }
    maintenance.settle().await;
    let undecodable = |disks: &Vec<_>| (0..5).filter(|n| disks.contains(&world.disk(*n))).count() > 2;
    for (before, after) in before.iter().zip(world.objects.volumes.all()) {
        assert!(!undecodable(before) || *before == after.disks);
    }
    world.heal().await;
    while maintenance.leftovers.step().await.unwrap() == Step::Worked {}
    maintenance.settle().await;
    assert_readable(&world, &objects).await;
    world.census().await.assert_clean();
}

/// Found by the simulation: three disks that were given up came back at once, and all three units left them.
#[tokio::test]
async fn a_unit_that_the_others_need_stays_until_they_are_whole() {
    let (world, objects) = filled("rs(4,2)", 9).await;
    let maintenance = maintenance(&world);
    let lost = [0, 1, 2, 3];
    world.lose(&lost).await;
    for n in lost {
        let decided = world.objects.decide(world.disk(n), Membership::Absent).await;
        decided.unwrap();
    }
    maintenance.settle().await;
    assert!(lost.iter().any(|n| units_of(&world, *n) > 0));
    // They serve again before anybody has noticed that they are back in service.
    world.heal().await;
    maintenance.settle().await;
    while maintenance.leftovers.step().await.unwrap() == Step::Worked {}
    maintenance.settle().await;
    assert_readable(&world, &objects).await;
    assert_eq!(maintenance.units_left(), 0);
    world.census().await.assert_clean();
}

/// The copies of a drain that a gateway's death cut off are leftovers, until the next gateway goes on with the drain.
#[tokio::test]
async fn a_leftover_that_is_dropped_late_is_not_the_unit_that_is_there_by_then() {
    // One disk is spare: whoever drains goes there.
    let (world, objects) = filled("rs(4,2)", 7).await;
    let decided = world.objects.decide(world.disk(2), Membership::Draining).await;
    decided.unwrap();
    assert_eq!(maintenance(&world).rebuild.step().await.unwrap(), Step::Worked);
    let world = world.crash().await;
    let late = Faults {
        drops_late: true,
        ..Faults::default()
    };
    (0..7).for_each(|n| world.fault(n, late.clone()));
    let maintenance = maintenance(&world);
    maintenance.leftovers.step().await.unwrap();
    world.heal().await;
    maintenance.settle().await;
    assert_eq!((units_of(&world, 2), maintenance.units_left()), (0, 0));
    assert!(world.cluster.node.late_drops().await > 0);
    while maintenance.leftovers.step().await.unwrap() == Step::Worked {}
    let census = world.census().await;
    assert!(
        census.missing.is_empty() && census.stray.is_empty(),
        "{census:#?}"
    );
    assert_readable(&world, &objects).await;
}

/// While a unit is copied to a disk, another one of its volume is lost and takes the place there: two of a volume are never on one disk.
#[tokio::test]
async fn a_drain_does_not_end_where_another_unit_has_come_to_be() {
    let world = World::new("rs(2,2)", 5).await;
    let bytes = content(1, 300_000);
    world.lose(&[4]).await;
    world.put("object", &bytes).await.unwrap();
    world.heal().await;
    let maintenance = maintenance(&world);
    world
        .objects
        .decide(world.disk(0), Membership::Draining)
        .await
        .unwrap();
    let no_space = Faults {
        put: Some(NodeError::NoSpace),
        ..Default::default()
    };
    world.fault(4, no_space);
    let copied = maintenance.rebuild.step().await;
    assert!(!matches!(copied, Ok(Step::Idle)), "the copy was begun");
    world.fault(4, Faults::default());
    world.lose(&[1]).await;
    world
        .objects
        .decide(world.disk(1), Membership::Out)
        .await
        .unwrap();
    maintenance.settle().await;
    for volume in world.objects.volumes.all() {
        let disks: HashSet<DiskId> = volume.disks.iter().copied().collect();
        assert_eq!(disks.len(), volume.disks.len(), "{volume:?}");
        assert!(!disks.contains(&world.disk(1)), "{volume:?}");
    }
    assert_eq!(world.get("object").await.unwrap(), bytes);
}

/// A ledger that was accepted takes units where disks have them, and two of a volume may be on one machine: one of them moves on.
#[tokio::test]
async fn units_of_a_volume_that_share_a_machine_are_spread() {
    let world = World::new("rs(2,2)", 5).await;
    let bytes = content(1, 300_000);
    world.put("object", &bytes).await.unwrap();
    for volume in world.objects.volumes.all() {
        let (from, to) = (volume.disks[3], volume.disks[2]);
        let held = world
            .cluster
            .node
            .with(from, |disk| disk.units.remove(&volume.unit(3)));
        if let Some(held) = held {
            world
                .cluster
                .node
                .with(to, |disk| disk.units.insert(volume.unit(3), held));
        }
        let row_key = key::volume(volume.id);
        let found = world.objects.ledger.get::<VolumeRow>(row_key.clone()).await;
        let mut row = found.unwrap().unwrap().row;
        row.disks[3] = row.disks[2].clone();
        let commit = CommitBuilder::new().put(row_key, &row);
        world.objects.ledger.commit(commit.build()).await.unwrap();
    }
    let world = world.crash().await;
    assert!(world.objects.to_rebuild().0 > 0, "it is to be done");
    maintenance(&world).settle().await;
    for volume in world.objects.volumes.all() {
        let disks: HashSet<DiskId> = volume.disks.iter().copied().collect();
        assert_eq!(disks.len(), volume.disks.len(), "{volume:?}");
    }
    assert_eq!(world.objects.to_rebuild().0, 0);
    assert_eq!(world.get("object").await.unwrap(), bytes);
}

#[tokio::test]
async fn a_unit_waits_for_the_upload_that_writes_to_its_volume() {
    let (world, _) = filled("rs(4,2)", 9).await;
    let maintenance = maintenance(&world);
    let mut uploads = world.objects.abandoned.guard();
    world
        .objects
        .volumes
        .all()
        .iter()
        .for_each(|volume| uploads.add((volume.id, 1 << 40)));
    world.lose(&[0]).await;
    world
        .objects
        .decide(world.disk(0), Membership::Out)
        .await
        .unwrap();
    let before = units_of(&world, 0);
    maintenance.settle().await;
    assert_eq!(units_of(&world, 0), before);
    uploads.named();
    maintenance.settle().await;
    assert_eq!(units_of(&world, 0), 0);
    assert_clean_without(&world, &[0]).await;
}

#[tokio::test]
async fn a_reader_with_an_old_epoch_finds_the_unit_where_it_is_now() {
    let (world, _) = filled("rs(4,2)", 9).await;
    let maintenance = maintenance(&world);
    let volumes = world.objects.volumes.all();
    let old = volumes
        .iter()
        .find(|v| v.scheme.to_string() == "rs(4,2)")
        .unwrap()
        .clone();
    let index = 1;
    let place = (0..9).find(|n| world.disk(*n) == old.disks[index]).unwrap();
    let (mut key, mut shard_len) = (None, 0);
    world.cluster.node.each(|id, disk| {
        if id == old.disks[index] {
            let found = disk.shards().find(|(unit, _)| unit.volume == old.id).unwrap().1;
            (key, shard_len) = (Some(found.key), found.payload.len() as u32);
        }
    });
    let source = StripeSource {
        volume: old,
        key: key.unwrap(),
        shard_len,
        seals: None,
        shared: None,
    };
    let before = world
        .objects
        .read_shard(&source, index as u8, BlockRange::ALL)
        .await
        .unwrap();
    world
        .objects
        .decide(world.disk(place), Membership::Draining)
        .await
        .unwrap();
    maintenance.settle().await;
    while maintenance.leftovers.step().await.unwrap() == Step::Worked {}
    let after = world
        .objects
        .read_shard(&source, index as u8, BlockRange::ALL)
        .await
        .unwrap();
    assert_eq!(before, after);
    assert_eq!(world.census().await.suspects, 0);
}

#[tokio::test]
async fn it_stops_when_it_is_told_to() {
    let (world, _) = filled("rs(4,2)", 9).await;
    let maintenance = maintenance(&world);
    maintenance.stop.send(true).unwrap();
    world.lose(&[0]).await;
    world
        .objects
        .decide(world.disk(0), Membership::Out)
        .await
        .unwrap();
    maintenance.rebuild.step().await.unwrap();
    assert!(units_of(&world, 0) > 0);
}

#[tokio::test]
async fn a_dead_node_of_a_fault_is_not_a_dead_disk() {
    let (world, objects) = filled("rs(4,2)", 9).await;
    world.fault(
        0,
        Faults {
            fenced: true,
            ..Default::default()
        },
    );
    world.poll().await;
    let absence = Absence::new(world.objects.clone(), Duration::from_secs(3600));
    assert_eq!(absence.step().await.unwrap(), Step::Idle);
    assert_readable(&world, &objects).await;
}

/// Thousands of small shards, a few large ones: they are asked for and written many at once, and what is wrong among them is made
/// of others.
#[tokio::test]
async fn many_small_shards_are_moved_with_few_calls_and_a_wrong_source_spoils_no_other() {
    let world = World::new("rs(4,2)", 9).await;
    let mut objects = Vec::new();
    for number in 0..600 {
        let (name, bytes) = (format!("small-{number}"), content(number, 3_000));
        world.put(&name, &bytes).await.unwrap();
        objects.push((name, bytes));
    }
    world.lose(&[4]).await;
    // Of each unit that moves, the first source.
    let sources: Vec<UnitId> = world
        .objects
        .volumes
        .all()
        .iter()
        .filter_map(|volume| {
            let lost = volume.disks.iter().position(|disk| *disk == world.disk(4))?;
            Some(volume.unit(u8::from(lost == 0)))
        })
        .collect();
    let mut damaged = 0;
    world.cluster.node.each(|_, disk| {
        let of_sources = disk.shards_mut().filter(|(unit, _)| sources.contains(unit));
        for (_, shard) in of_sources.step_by(50).take(3) {
            flip_bit(shard, 100);
            damaged += 1;
        }
        (disk.puts, disk.gets, disk.many) = (0, 0, 0);
    });
    assert!(damaged > 0);
    let maintenance = maintenance(&world);
    world
        .objects
        .decide(world.disk(4), Membership::Out)
        .await
        .unwrap();
    maintenance.settle().await;
    let (mut puts, mut many) = (0, 0);
    world.cluster.node.each(|_, disk| {
        puts += disk.puts;
        many += disk.many;
    });
    assert!(
        puts >= 100 && many < puts / 5,
        "{puts} puts, {many} calls of many"
    );
    // What was wrong has been seen, and is mended where it is.
    while world.repair().await == Step::Worked {}
    assert_clean_without(&world, &[4]).await;
    assert_readable(&world, &objects).await;
}

#[tokio::test]
async fn a_target_that_refuses_some_shards_gets_them_later() {
    let (world, objects) = filled("rs(4,2)", 7).await;
    let maintenance = maintenance(&world);
    world.lose(&[1]).await;
    for place in [0, 2, 3, 4, 5, 6] {
        let faults = Faults {
            put: Some(NodeError::Overloaded),
            puts_before: 3,
            ..Faults::default()
        };
        world.fault(place, faults);
    }
    world
        .objects
        .decide(world.disk(1), Membership::Out)
        .await
        .unwrap();
    assert!(maintenance.rebuild.step().await.is_err() || maintenance.units_left() > 0);
    world.heal().await;
    world.lose(&[1]).await;
    maintenance.settle().await;
    assert_eq!((units_of(&world, 1), maintenance.units_left()), (0, 0));
    assert_clean_without(&world, &[1]).await;
    assert_readable(&world, &objects).await;
}

#[tokio::test]
async fn bytes_left_are_those_of_the_ledger_and_a_pace_outlives_the_gateway() {
    let (world, _) = filled("rs(4,2)", 9).await;
    world.lose(&[3]).await;
    world
        .objects
        .decide(world.disk(3), Membership::Out)
        .await
        .unwrap();
    let mut held = 0;
    world.cluster.node.each(|id, disk| {
        if id == world.disk(3) {
            held = disk.shards().map(|(_, shard)| shard.payload.len() as u64).sum();
        }
    });
    let wanted = Wanted::Bandwidth(1 << 20);
    world.objects.want_pace(wanted, None).await.unwrap();
    let world = world.crash().await;
    let maintenance = maintenance(&world);
    let began = tokio::time::Instant::now();
    maintenance.rebuild.step().await.unwrap();
    let status = maintenance.shared.status();
    assert_eq!((status.wanted, status.limit), (wanted, Some(1 << 20)));
    assert_eq!(status.left_bytes + status.done_bytes, held);
    let most = (1 << 20) as f64 * (began.elapsed().as_secs_f64() + 3.0);
    assert!((status.done_bytes as f64) < most, "{status:?}");
    // A deadline is for what there is to do: it is forgotten with it.
    world.objects.want_pace(Wanted::Deadline(1), None).await.unwrap();
    maintenance.settle().await;
    assert_eq!(world.objects.wanted_pace().await.unwrap(), Wanted::Auto);
    assert_eq!(maintenance.units_left(), 0);
}
