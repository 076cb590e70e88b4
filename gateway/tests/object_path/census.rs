//! The census against a cluster in memory: what is missing is repaired, what nothing can name any more is set aside, and nothing
//! else, whatever is going on meanwhile. (When what is set aside goes is in `unnamed.rs`.)

use crate::support::cluster::{BUCKET, World};
use crate::support::content::{content, stalled};
use crate::support::memory_node::Faults;
use crate::support::store::{When, puts, puts_volume};
use bytes::Bytes;
use gateway::ledger::model::{GarbageRow, IdRangeRow, LeaseRow, Membership, ObjectRow, VolumeRow};
use gateway::ledger::{CommitBuilder, Typed, key};
use gateway::maintenance::census::Census;
use gateway::maintenance::census::record::CensusReport;
use gateway::maintenance::leftovers::Leftovers;
use gateway::maintenance::rebuild::pace::FLOOR;
use gateway::maintenance::rebuild::{Moving, Rebuild, Shared};
use gateway::maintenance::worker::{Step, Worker};
use gateway::object::put::Expected;
use std::sync::Arc;
use std::time::Duration;
use storage_node::protocol::{SealedShard, ShardKey, UnitId, block_crc, seal_seed};
use tokio::sync::{Notify, watch};

pub fn census_of(world: &World, moving: Moving) -> (Census, watch::Sender<bool>) {
    let (stop, stopped) = watch::channel(false);
    let wake = Arc::new(Notify::new());
    let census = Census::new(world.objects.clone(), moving, Duration::ZERO, wake, stopped);
    (census, stop)
}

/// Runs one cycle, in the middle of which nothing else of this gateway runs.
pub async fn take(world: &World) -> CensusReport {
    let (census, _stop) = census_of(world, Moving::default());
    let cycle = world.objects.begin_census(true).await.unwrap();
    run_to_end(world, &census, cycle).await
}

async fn run_to_end(world: &World, census: &Census, cycle: u64) -> CensusReport {
    for _ in 0..10_000 {
        let last = world.objects.scrub_row().await.unwrap().last;
        if let Some(last) = last.filter(|last| last.cycle == cycle) {
            return CensusReport::new(&last);
        }
        tokio::time::pause(); // What it waits for, nothing here does meanwhile.
        let stepped = census.step().await;
        tokio::time::resume();
        stepped.unwrap();
    }
    panic!("the census does not end");
}

fn units(world: &World) -> u64 {
    let volumes = world.objects.volumes.all();
    volumes.iter().map(|volume| volume.disks.len() as u64).sum()
}

pub async fn filled() -> World {
    let world = World::new("rs(4,2)", 9).await;
    for (number, size) in [1, 16_384, 16_385, 300_000, 5_000_001].into_iter().enumerate() {
        for copy in 0..4 {
            let bytes = content(number as u64 * 10 + copy, size);
            world.put(&format!("{number}-{copy}"), &bytes).await.unwrap();
        }
    }
    // The disks are new, and compared before any cycle goes on.
    let (census, _stop) = census_of(&world, Moving::default());
    assert_eq!(census.step().await.unwrap(), Step::Worked);
    assert!(
        world
            .objects
            .disks
            .all()
            .iter()
            .all(|disk| disk.in_doubt().is_none())
    );
    world
}

/// A shard that its node would take.
fn sealed(unit: UnitId, key: ShardKey, len: usize) -> SealedShard {
    let payload = content(key.blob, len);
    let seed = seal_seed(unit, key, len as u32);
    let blocks = payload.chunks(64 << 10).enumerate();
    let block_crcs = blocks
        .map(|(n, block)| block_crc(seed, n as u32, block))
        .collect();
    let digests = vec![*blake3::hash(&payload).as_bytes(); 6];
    SealedShard {
        key,
        seal: storage_node::protocol::Seal { block_crcs, digests },
        payload,
    }
}

/// Puts a shard of this blob on every unit of a volume, without anybody's word. How many.
pub fn smuggle(world: &World, blob: u64) -> usize {
    let volume = world.objects.volumes.all()[0].clone();
    for (index, disk) in volume.disks.iter().enumerate() {
        let unit = volume.unit(index as u8);
        let key = ShardKey { blob, stripe: 0 };
        let shard = sealed(unit, key, 1000);
        world.cluster.node.with(*disk, |d| {
            d.units.entry(unit).or_default().shards.insert(key, shard);
        });
    }
    volume.disks.len()
}

#[tokio::test]
async fn a_cluster_that_is_well_is_clean_and_every_unit_was_compared() {
    let world = filled().await;
    world.copy("1-0", "copied").await.unwrap();
    world.delete("1-0").await.unwrap();
    world.collect().await;
    let report = take(&world).await;
    assert!(report.clean, "{report:?}");
    let volumes = world.objects.volumes.all();
    assert_eq!(
        (report.volumes, report.units),
        (volumes.len() as u64, units(&world))
    );
    for volume in volumes {
        let seen = world.objects.last_census(volume.id).await.unwrap().unwrap();
        assert_eq!(seen.cycle, report.cycle);
        assert!(seen.units.iter().all(|unit| unit.at_ms > 0 && unit.missing == 0));
    }
}

#[tokio::test]
async fn what_a_disk_lacks_or_has_at_another_length_is_repaired() {
    let world = filled().await;
    let before = world.cluster.node.shard_count();
    // One loses all it has, one a shard, and one has a shard that is too short.
    let (mut lost, mut short) = (0, 0);
    world.cluster.node.with(world.disk(1), |d| {
        lost += d.shards().count() as u64;
        d.units.clear();
    });
    world.cluster.node.with(world.disk(2), |d| {
        let unit = d.units.values_mut().find(|unit| !unit.shards.is_empty()).unwrap();
        unit.shards.pop_first();
        lost += 1;
    });
    world.cluster.node.with(world.disk(3), |d| {
        let (id, unit) = d
            .units
            .iter_mut()
            .find(|(_, unit)| !unit.shards.is_empty())
            .unwrap();
        let (key, len) = unit
            .shards
            .iter()
            .map(|(key, shard)| (*key, shard.payload.len()))
            .max_by_key(|(_, len)| *len)
            .unwrap();
        unit.shards.insert(key, sealed(*id, key, len / 2));
        short += 1;
    });
    let report = take(&world).await;
    assert_eq!((report.missing_shards, report.wrong_shards), (lost, short));
    assert!(
        !report.clean && report.suspect_shards == lost + short,
        "{report:?}"
    );
    while world.repair().await == Step::Worked {}
    assert_eq!(world.cluster.node.shard_count(), before);
    let report = take(&world).await;
    assert!(report.clean, "{report:?}");
    world.census().await.assert_clean();
}

/// Shards of a blob that was deleted while a copy of its disk lay in a drawer.
#[tokio::test]
async fn what_nothing_names_is_set_aside_then_collected_and_what_something_names_stays() {
    let world = filled().await;
    let image = world.cluster.node.with(world.disk(0), |d| d.units.clone());
    let names = ["0-0", "2-1", "4-3"];
    for name in names {
        world.delete(name).await.unwrap();
    }
    world.collect().await;
    world.cluster.node.with(world.disk(0), |d| d.units = image);
    let unnamed = world.census().await.unnamed.len();
    assert!(unnamed > 0);
    world.keep_no_time(2).await;
    let report = take(&world).await;
    let blobs = report.unnamed_blobs;
    assert!(
        blobs > 0 && blobs == world.set_aside().await.len() as u64,
        "{report:?}"
    );
    assert!(!report.clean && (report.garbage_blobs, report.set_aside_blobs) == (0, 0));
    assert_eq!(world.let_go().await, Step::Idle);
    // Known now, and accounted for.
    let report = take(&world).await;
    assert!(report.clean, "{report:?}");
    assert_eq!((report.unnamed_blobs, report.set_aside_blobs), (0, blobs));
    assert_eq!(world.census().await.unnamed.len(), unnamed);
    assert_eq!(world.let_go().await, Step::Worked);
    world.collect().await;
    world.census().await.assert_clean();
    let report = take(&world).await;
    assert!(report.clean && report.set_aside_blobs == 0, "{report:?}");
    assert!(world.get("4-2").await.unwrap() == content(42, 5_000_001));
}

#[tokio::test]
async fn an_upload_in_progress_and_a_commit_in_flight_are_left_alone() {
    let world = Arc::new(filled().await);
    let objects = world.objects.clone();
    let before = world.cluster.node.shard_count();
    let stuck = tokio::spawn(async move {
        let body = stalled(&content(5, 9 << 20));
        let headers = Default::default();
        objects
            .put(
                BUCKET,
                "stalled",
                body,
                Expected::default(),
                headers,
                Default::default(),
            )
            .await
    });
    while world.cluster.node.shard_count() < before + 6 {
        tokio::task::yield_now().await;
    }
    let report = take(&world).await;
    assert!(report.clean, "{report:?}");
    stuck.abort();
    for when in [When::Before, When::After] {
        let mut held = world.cluster.store.hold(when, puts(b'o'));
        let name = format!("{when:?}");
        let put = tokio::spawn({
            let (world, name) = (world.clone(), name.clone());
            async move { world.put(&name, &content(9, 70_000)).await }
        });
        held.arrived().await;
        let report = take(&world).await;
        assert_eq!((report.unnamed_blobs, report.missing_shards), (0, 0), "{when:?}");
        held.go_on();
        put.await.unwrap().unwrap();
        assert!(world.get(&name).await.unwrap() == content(9, 70_000));
    }
    world.collect().await;
    assert!(take(&world).await.clean);
    world.census().await.assert_clean();
}

/// Between the upload's end and its garbage row, and from there until the disks have deleted it.
#[tokio::test]
async fn garbage_on_its_way_is_not_found_again() {
    let world = Arc::new(filled().await);
    let objects = world.objects.clone();
    let before = world.cluster.node.shard_count();
    let stuck = tokio::spawn(async move {
        let body = stalled(&content(5, 9 << 20));
        let headers = Default::default();
        objects
            .put(
                BUCKET,
                "stalled",
                body,
                Expected::default(),
                headers,
                Default::default(),
            )
            .await
    });
    while world.cluster.node.shard_count() < before + 6 {
        tokio::task::yield_now().await;
    }
    stuck.abort();
    while world.objects.abandoned.is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(take(&world).await.unnamed_blobs, 0);
    // Disks that delete nothing for now: the row waits for them.
    let faults = Faults {
        delete: Some(storage_node::protocol::NodeError::Overloaded),
        ..Faults::default()
    };
    world.cluster.node.each(|_, disk| disk.faults = faults.clone());
    world.delete("4-0").await.unwrap();
    world.collect().await;
    let report = take(&world).await;
    assert_eq!((report.unnamed_blobs, report.missing_shards), (0, 0));
    world.heal().await;
    world.collect().await;
    assert!(take(&world).await.clean);
}

/// A disk confirmed a delete, lost it, and was compared while the garbage row waited for another disk: the row was no more than that,
/// and went, and the shard stayed until the census of the next day.
#[tokio::test]
async fn a_delete_that_a_disk_confirmed_and_lost_is_asked_for_again() {
    let world = filled().await;
    let held = |disk| world.cluster.node.with(disk, |d| d.shards().count());
    let refusing = Faults {
        delete: Some(storage_node::protocol::NodeError::Overloaded),
        ..Faults::default()
    };
    world.cluster.node.each(|_, disk| disk.faults = refusing.clone());
    world.delete("4-0").await.unwrap();
    world.collect().await;
    let garbage: Vec<(Bytes, Typed<GarbageRow>)> =
        world.objects.ledger.scan(key::table(b'g'), 10).await.unwrap();
    let (volume, _) = key::volume_and_blob(&garbage[0].0).unwrap();
    let volume = world.objects.volumes.get(volume).await.unwrap();
    let (away, liar) = (volume.disks[0], volume.disks[1]);
    let units = world.cluster.node.with(liar, |d| d.units.clone());
    world.heal().await;
    world
        .cluster
        .node
        .with(away, |disk| disk.faults = refusing.clone());
    world.collect().await;
    let (before, with_blob) = (held(liar), units.values().map(|unit| unit.shards.len()).sum());
    assert!(before < with_blob, "its delete is confirmed");
    world.cluster.node.with(liar, |d| d.units = units);
    assert_eq!(held(liar), with_blob);
    assert_eq!(take(&world).await.unnamed_blobs, 0, "it is garbage");
    world.heal().await;
    world.collect().await;
    assert_eq!(held(liar), before);
    let report = take(&world).await;
    assert!(report.clean, "{report:?}");
}

#[tokio::test]
async fn ids_that_another_gateway_may_name_are_left_alone_until_its_lease_ends() {
    let world = filled().await;
    let ledger = &world.objects.ledger;
    let start = ledger.take_ids(key::Counter::Blob, 100).await.unwrap();
    let other = 999;
    let range = IdRangeRow {
        end: start + 100,
        swept: Vec::new(),
    };
    let lease = LeaseRow {
        gateway: "another".into(),
    };
    let commit = CommitBuilder::new()
        .put(key::lease(other), &lease)
        .put(key::id_range(other, start), &range);
    ledger.commit(commit.build()).await.unwrap();
    let smuggled = smuggle(&world, start + 3);
    let report = take(&world).await;
    assert!(report.clean, "{report:?}");
    assert_eq!(world.census().await.unnamed.len(), smuggled);
    let ended = CommitBuilder::new()
        .delete(key::lease(other))
        .delete(key::id_range(other, start));
    ledger.commit(ended.build()).await.unwrap();
    world.keep_no_time(1).await;
    assert_eq!(take(&world).await.unnamed_blobs, 1);
    assert_eq!(world.let_go().await, Step::Worked);
    world.collect().await;
    world.census().await.assert_clean();
}

/// The ledger was restored from a backup: it will hand these ids out again, and nobody knows what the shards are.
#[tokio::test]
async fn ids_that_were_never_handed_out_are_reported_and_left_alone() {
    let world = filled().await;
    let smuggled = smuggle(&world, 1 << 40);
    world.keep_no_time(1).await;
    for _ in 0..2 {
        let report = take(&world).await;
        assert!(!report.clean && report.unnamed_blobs > 0, "{report:?}");
        assert_eq!(world.let_go().await, Step::Idle);
    }
    assert_eq!(world.set_aside().await, []);
    world.collect().await;
    assert_eq!(world.census().await.unnamed.len(), smuggled);
}

/// Deleted after a drain copied it, and before its unit moved: the old disk deletes it, and the new one has it still.
#[tokio::test]
async fn a_blob_deleted_during_a_drain_is_found_on_the_new_disk() {
    let world = filled().await;
    let moving = Moving::default();
    let (_stop, stopped) = watch::channel(false);
    let shared = Arc::new(Shared::new(&world.objects, FLOOR));
    let rebuild = Arc::new(Rebuild::new(
        world.objects.clone(),
        moving.clone(),
        shared,
        stopped,
    ));
    let volumes = world.objects.volumes.all();
    for volume in &volumes {
        world.objects.volumes.seal(volume.id).await.unwrap();
    }
    let drained = volumes[0].disks[0];
    world.objects.decide(drained, Membership::Draining).await.unwrap();
    // Copied, and the move is about to be committed.
    let is_moved = move |row: &VolumeRow| !row.disks.iter().any(|disk| disk[..] == drained.0.to_be_bytes());
    let mut held = world.cluster.store.hold(When::Before, puts_volume(is_moved));
    let step = tokio::spawn({
        let rebuild = rebuild.clone();
        async move { rebuild.step().await }
    });
    held.arrived().await;
    // The copies are nobody's yet, and nobody's to delete.
    let leftovers = Leftovers::new(world.objects.clone(), moving.clone());
    let (census, _stop_census) = census_of(&world, moving);
    let cycle = world.objects.begin_census(true).await.unwrap();
    let report = run_to_end(&world, &census, cycle).await;
    assert_eq!(
        (report.unnamed_blobs, report.missing_shards),
        (0, 0),
        "{report:?}"
    );
    for copy in 0..4 {
        for number in 0..5 {
            world.delete(&format!("{number}-{copy}")).await.unwrap();
        }
    }
    world.collect().await;
    held.go_on();
    step.await.unwrap().unwrap();
    while rebuild.step().await.unwrap() == Step::Worked {}
    assert!(
        !world.census().await.unnamed.is_empty(),
        "this is what it is about"
    );
    // What moved before the deletes is whole on the drained disk, and not its own any more.
    while leftovers.step().await.unwrap() == Step::Worked {}
    world.keep_no_time(1).await;
    let report = take(&world).await;
    assert!(
        report.unnamed_blobs > 0 && report.missing_shards == 0,
        "{report:?}"
    );
    assert_eq!(world.let_go().await, Step::Worked);
    world.collect().await;
    assert!(take(&world).await.clean);
    assert_eq!(world.cluster.node.shard_count(), 0);
}

#[tokio::test]
async fn what_could_not_be_looked_at_is_not_clean() {
    let world = filled().await;
    world.lose(&[4]).await;
    world.poll().await;
    let report = take(&world).await;
    assert!(
        !report.clean && report.skipped_units > 0 && report.disks_away == 1,
        "{report:?}"
    );
    assert_eq!(report.missing_shards, 0);
    // Retired: its units move, and are not whole where they come to. Still nothing is missing.
    world
        .objects
        .decide(world.disk(4), Membership::Out)
        .await
        .unwrap();
    let (_stop, stopped) = watch::channel(false);
    let shared = Arc::new(Shared::new(&world.objects, FLOOR));
    let rebuild = Arc::new(Rebuild::new(
        world.objects.clone(),
        Moving::default(),
        shared,
        stopped,
    ));
    let is_whole = |row: &VolumeRow| row.incomplete.is_empty() && row.epoch > 1;
    let mut held = world.cluster.store.hold(When::Before, puts_volume(is_whole));
    let step = tokio::spawn({
        let rebuild = rebuild.clone();
        async move { rebuild.step().await }
    });
    held.arrived().await;
    let report = take(&world).await;
    assert!(!report.clean && report.skipped_units > 0, "{report:?}");
    assert_eq!((report.missing_shards, report.disks_away), (0, 0));
    held.go_on();
    step.await.unwrap().unwrap();
    while rebuild.step().await.unwrap() == Step::Worked {}
    assert!(take(&world).await.clean);
}

/// Killed after every volume.
#[tokio::test]
async fn a_cycle_goes_on_where_a_gateway_that_died_left_it() {
    let mut world = filled().await;
    let volumes = world.objects.volumes.all().len() as u64;
    assert!(volumes > 2);
    let cycle = world.objects.begin_census(true).await.unwrap();
    for done in 0..volumes {
        let row = world.objects.scrub_row().await.unwrap();
        assert_eq!(row.now.unwrap().volumes, done);
        let (census, _stop) = census_of(&world, Moving::default());
        assert_eq!(census.step().await.unwrap(), Step::Worked);
        world = world.crash().await;
    }
    let (census, _stop) = census_of(&world, Moving::default());
    let report = run_to_end(&world, &census, cycle).await;
    assert_eq!((report.volumes, report.units), (volumes, units(&world)));
    world.sweep().await.unwrap();
    assert!(take(&world).await.clean);
}

/// The last volume was looked at: nothing is left to wait for.
#[tokio::test]
async fn a_cycle_ends_right_after_its_last_volume() {
    let world = World::new("rs(4,2)", 6).await;
    world.put("a", &content(1, 100_000)).await.unwrap();
    assert_eq!(world.objects.volumes.all().len(), 1);
    let (_stop, stopped) = watch::channel(false);
    let (objects, wake) = (world.objects.clone(), Arc::new(Notify::new()));
    let day = Duration::from_secs(86_400);
    let census = Census::new(objects, Moving::default(), day, wake, stopped);
    for _ in 0..10 {
        census.step().await.unwrap();
    }
    let row = world.objects.scrub_row().await.unwrap();
    assert_eq!((row.now, row.last.map(|last| last.volumes)), (None, Some(1)));
}

/// Nobody asked for it, so that it would take a day; and nobody knows any more how much of that is left.
#[tokio::test]
async fn a_cycle_that_was_under_way_at_a_restart_goes_on_at_once() {
    let mut world = filled().await;
    let census_of_a_day = |world: &World| {
        let (stop, stopped) = watch::channel(false);
        let (objects, wake) = (world.objects.clone(), Arc::new(Notify::new()));
        let day = Duration::from_secs(86_400);
        (Census::new(objects, Moving::default(), day, wake, stopped), stop)
    };
    let (census, _stop) = census_of_a_day(&world);
    for _ in 0..10 {
        census.step().await.unwrap();
    }
    let now = world.objects.scrub_row().await.unwrap().now.unwrap();
    assert_eq!(
        (now.cycle, now.volumes),
        (1, 1),
        "one, and the next one hours later"
    );
    world = world.crash().await;
    let (census, _stop) = census_of_a_day(&world);
    let report = run_to_end(&world, &census, 1).await;
    assert_eq!(report.units, units(&world));
    // The next one takes its time again.
    for _ in 0..10 {
        census.step().await.unwrap();
    }
    assert_eq!(world.objects.scrub_row().await.unwrap().now, None);
}

/// A census that is begun anew is another one: what was seen before counts for nothing.
#[tokio::test]
async fn one_that_is_asked_for_looks_at_everything_from_then_on() {
    let world = filled().await;
    let first = world.objects.begin_census(false).await.unwrap();
    let (census, _stop) = census_of(&world, Moving::default());
    while world.objects.scrub_row().await.unwrap().now.unwrap().volumes == 0 {
        census.step().await.unwrap();
    }
    let second = world.objects.begin_census(true).await.unwrap();
    assert_eq!(second, first + 1);
    let report = run_to_end(&world, &census, second).await;
    assert_eq!(report.units, units(&world));
    assert!(report.clean);
}

/// Thousands of blobs, so that pieces and pages end everywhere.
#[tokio::test]
async fn many_small_blobs_with_holes_everywhere() {
    let world = World::new("rs(2,1)", 4).await;
    for number in 0..1_200 {
        world
            .put(&format!("{number}"), &content(number, 100 + number as usize))
            .await
            .unwrap();
    }
    let mut lost = 0;
    world.cluster.node.each(|_, disk| {
        let keys: Vec<(UnitId, ShardKey)> = disk.shards().map(|(unit, shard)| (unit, shard.key)).collect();
        for (unit, key) in keys
            .into_iter()
            .filter(|(unit, key)| unit.index == 0 && key.blob % 7 == 0)
        {
            disk.units.get_mut(&unit).unwrap().shards.remove(&key);
            lost += 1;
        }
    });
    let report = take(&world).await;
    assert_eq!(report.missing_shards, lost);
    while world.repair().await != Step::Idle {}
    // Every third is deleted behind the disks' back, and the row of none is left.
    let ledger = &world.objects.ledger;
    let mut objects = Vec::new();
    let each = |row_key, row: Typed<ObjectRow>| objects.push((row_key, row.row.blobs));
    ledger.for_each(key::table(b'o'), each).await.unwrap();
    let mut commit = CommitBuilder::new();
    let gone = objects.iter().step_by(3).count() as u64;
    for (row_key, blobs) in objects.into_iter().step_by(3) {
        commit = commit.delete(row_key);
        for blob in blobs {
            let rows = [
                key::blob(blob.volume, blob.blob),
                key::seals(blob.volume, blob.blob),
            ];
            commit = rows.into_iter().fold(commit, CommitBuilder::delete);
        }
    }
    ledger.commit(commit.build()).await.unwrap();
    world.keep_no_time(1).await;
    assert_eq!(take(&world).await.unnamed_blobs, gone);
    assert_eq!(world.let_go().await, Step::Worked);
    world.collect().await;
    let report = take(&world).await;
    assert!(report.clean, "{report:?}");
    assert!(world.census().await.unnamed.is_empty());
}
