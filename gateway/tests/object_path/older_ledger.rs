//! Copies and older states of the ledger in its place: of two copies only one acts, and one that is behind deletes nothing, serves what it
//! names, and goes on only when an operator accepts it.

use crate::census::take;
use crate::orphans::config;
use crate::support::cluster::{BUCKET, MEMORY_BYTES, World};
use crate::support::content::{content, drain};
use bytes::Bytes;
use gateway::admin::operations::Refusal;
use gateway::admin::strays::{DropRequest, StrayUnit, UnitName, Why};
use gateway::archive::restored::{self, Places};
use gateway::clock::SystemClock;
use gateway::cluster::disks::Health;
use gateway::cluster::setup;
use gateway::error::Error;
use gateway::ledger::Ledger;
use gateway::ledger::key::{self, Counter};
use gateway::ledger::memory::MemoryStore;
use gateway::ledger::model::{CounterRow, Membership};
use gateway::maintenance::garbage::Garbage;
use gateway::maintenance::holds::Hold;
use gateway::maintenance::leftovers::Leftovers;
use gateway::maintenance::rebuild::pace::FLOOR;
use gateway::maintenance::rebuild::{Moving, Rebuild, Shared};
use gateway::maintenance::settling::Settling;
use gateway::maintenance::worker::{Step, Worker};
use gateway::object::condition::ReadConditions;
use gateway::object::get::Wanted;
use gateway::server::Gateway;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use storage_node::protocol::{Generation, LedgerMarks};
use tokio::sync::{Notify, watch};

type Model = BTreeMap<String, Bytes>;

async fn fill(world: &World, model: &mut Model, name: &str, count: u64) {
    for number in 0..count {
        let size = [900, 40_000, 700_000][number as usize % 3];
        let (name, bytes) = (format!("{name}-{number}"), content(number + size as u64, size));
        world.put(&name, &bytes).await.unwrap();
        model.insert(name, bytes);
    }
}

async fn assert_reads(world: &World, model: &Model) {
    for (name, bytes) in model {
        assert!(world.get(name).await.unwrap() == *bytes, "{name}");
    }
}

/// Disks are told how far the ledger is, as they are every few seconds.
async fn tell(world: &World) {
    let position = world.objects.ledger.position();
    world.objects.disks.tell_all(position).await;
}

fn copy(world: &World) -> MemoryStore {
    world.cluster.store.rows.copy()
}

/// Another gateway, over this copy of the ledger, on the same disks.
async fn beside(world: &World, rows: MemoryStore) -> World {
    World::on(world.cluster.with_ledger(rows), MEMORY_BYTES).await
}

fn is_safe(world: &World) -> bool {
    let holds = world.objects.holds.all();
    let is_held = holds.iter().any(|(hold, _)| *hold == Hold::LedgerBehind);
    assert_eq!(is_held, world.objects.ledger.check_writable().is_err());
    is_held
}

async fn assert_only_reads(world: &World) {
    assert!(is_safe(world));
    let bytes = content(1, 1_000);
    assert!(matches!(
        world.put("refused", &bytes).await,
        Err(Error::ReadOnly(_))
    ));
    assert!(matches!(world.delete("old-0").await, Err(Error::ReadOnly(_))));
    assert!(matches!(
        world.objects.create_bucket("another").await,
        Err(Error::ReadOnly(_))
    ));
    assert!(!world.objects.holds.may_delete());
}

async fn next_ids(world: &World) -> [u64; 2] {
    let mut next = [0; 2];
    for (at, counter) in [Counter::Blob, Counter::Volume].into_iter().enumerate() {
        let row = world
            .objects
            .ledger
            .get::<CounterRow>(key::counter(counter))
            .await
            .unwrap();
        next[at] = row.map_or(1, |row| row.row.next);
    }
    next
}

/// The first ids that no disk has seen.
fn used_ids(world: &World) -> [u64; 2] {
    let disks = world.objects.disks.all();
    let marks = || disks.iter().filter_map(|disk| disk.status.as_ref()?.ledger);
    let blobs = marks().map(|marks| marks.blob_limit);
    let volumes = marks().map(|marks| marks.volume_limit);
    [blobs.max().unwrap_or(0), volumes.max().unwrap_or(0)]
}

/// Runs the worker that moves units until it has nothing to do, and clears what they left.
async fn move_units(world: &World) {
    let (moving, shared) = (Moving::default(), Arc::new(Shared::new(&world.objects, FLOOR)));
    let (_stop, stopped) = watch::channel(false);
    let rebuild = Rebuild::new(world.objects.clone(), moving.clone(), shared, stopped);
    while rebuild.step().await.unwrap() != Step::Idle {}
    let leftovers = Leftovers::new(world.objects.clone(), moving);
    while leftovers.step().await.unwrap() != Step::Idle {}
}

#[tokio::test]
async fn a_copy_that_is_behind_only_reads_and_the_newest_goes_on() {
    let (world, mut model) = (World::new("rs(4,2)", 9).await, Model::new());
    fill(&world, &mut model, "old", 12).await;
    let (older, of_then) = (copy(&world), model.clone());
    fill(&world, &mut model, "new", 12).await;
    tell(&world).await;
    let behind = beside(&world, older).await;
    assert_only_reads(&behind).await;
    assert_reads(&behind, &of_then).await;
    // It did nothing to the one that runs.
    assert!(!is_safe(&world));
    fill(&world, &mut model, "newer", 3).await;
    assert_reads(&world, &model).await;
}

#[tokio::test]
async fn of_two_copies_that_are_alike_the_one_that_starts_later_acts() {
    let (world, mut model) = (World::new("rs(4,2)", 9).await, Model::new());
    fill(&world, &mut model, "old", 12).await;
    tell(&world).await;
    let second = beside(&world, copy(&world)).await;
    assert!(!is_safe(&second));
    assert!(world.put("late", &content(3, 500_000)).await.is_err());
    assert_only_reads(&world).await;
    assert_reads(&world, &model).await;
    fill(&second, &mut model, "new", 12).await;
    assert_reads(&second, &model).await;
    // A third, of the first one's ledger, knows less than the disks.
    assert_only_reads(&beside(&world, copy(&world)).await).await;
}

/// Nothing on a disk is deleted before it knows of the commit that made it garbage: a ledger that names it is behind then.
#[tokio::test]
async fn a_ledger_that_names_what_was_deleted_is_behind() {
    let (world, mut model) = (World::new("rs(4,2)", 9).await, Model::new());
    fill(&world, &mut model, "old", 6).await;
    let older = copy(&world);
    world.delete("old-1").await.unwrap();
    model.remove("old-1");
    world.collect().await;
    let behind = beside(&world, older).await;
    assert_only_reads(&behind).await;
    assert_reads(&behind, &model).await;
    assert!(behind.get("old-1").await.is_err(), "it was deleted");
}

/// Five of six units moved since: a reader that went by the older rows would find one shard of each stripe.
#[tokio::test]
async fn units_that_moved_since_are_found_and_taken_in() {
    let (world, mut model) = (World::new("rs(4,2)", 12).await, Model::new());
    fill(&world, &mut model, "old", 12).await;
    let (older, of_then) = (copy(&world), model.clone());
    for disk in 0..6 {
        let disk = world.disk(disk);
        world.objects.decide(disk, Membership::Draining).await.unwrap();
    }
    move_units(&world).await;
    fill(&world, &mut model, "new", 6).await;
    tell(&world).await;
    world.poll().await;
    let [used_blob, used_volume] = used_ids(&world);

    let behind = beside(&world, older).await;
    behind.objects.find_units().await;
    assert_only_reads(&behind).await;
    assert_reads(&behind, &of_then).await;

    let plan = behind.objects.accept_plan().await.unwrap();
    assert!(!plan.newer.is_empty() && plan.moved_volumes > 0);
    let mut other = plan.clone();
    other.next_blob += 1;
    assert!(matches!(
        behind.objects.accept(&other).await,
        Err(Error::Conflict)
    ));
    behind.objects.accept(&plan).await.unwrap();
    let accepted = behind.crash().await;
    assert!(!is_safe(&accepted));
    assert_reads(&accepted, &of_then).await;
    let [next_blob, next_volume] = next_ids(&accepted).await;
    assert!(
        next_blob >= used_blob && next_volume >= used_volume,
        "{next_blob} {next_volume}"
    );
    let mut since = of_then.clone();
    fill(&accepted, &mut since, "since", 6).await;
    assert_reads(&accepted, &since).await;

    // What was the newest ledger is behind now, and serves all that it names.
    assert!(world.put("late", &content(3, 1_000)).await.is_err());
    let newest = beside(&world, copy(&world)).await;
    newest.objects.find_units().await;
    assert_only_reads(&newest).await;
    assert_reads(&newest, &model).await;
    let garbage = Garbage::new(newest.objects.clone());
    let _refused = garbage.step().await;
    assert_reads(&accepted, &since).await;
}

/// A ledger that was restored as it was before units moved: they are taken where disks have them, and what it takes for left behind is not
/// dropped while it holds the only copy of something.
#[tokio::test(start_paused = true)]
async fn a_ledger_of_then_finds_units_that_moved_since_and_drops_none() {
    for disks_come in [true, false] {
        let (world, mut model) = (World::new("rs(4,2)", 12).await, Model::new());
        fill(&world, &mut model, "old", 12).await;
        let (older, of_then) = (world.cluster.with_ledger(copy(&world)), model.clone());
        for disk in 0..6 {
            let disk = world.disk(disk);
            world.objects.decide(disk, Membership::Draining).await.unwrap();
        }
        move_units(&world).await;
        fill(&world, &mut model, "new", 6).await;
        tell(&world).await;
        world.poll().await;

        let marks: Vec<_> = world
            .objects
            .disks
            .all()
            .iter()
            .filter_map(|disk| disk.status.as_ref()?.ledger)
            .collect();
        let ledger = Ledger::new(older.store.clone());
        let (cluster, _) = setup::find(&ledger).await.unwrap().unwrap();
        let places = if disks_come {
            Places::ToBeFound
        } else {
            Places::Known
        };
        restored::settle(&ledger, cluster, &marks, places, Default::default())
            .await
            .unwrap();
        let mut then = World::on(older, MEMORY_BYTES).await;
        if disks_come {
            let again = Arc::new(Notify::new());
            let settling = Settling::new(then.objects.clone(), again.clone());
            assert!(matches!(
                then.put("refused", &content(1, 900)).await,
                Err(Error::ReadOnly(_))
            ));
            assert!(!then.objects.holds.may_delete());
            assert_eq!(settling.step().await.unwrap(), Step::Worked);
            again.notified().await;
            then = then.crash().await;
            assert!(then.objects.holds.may_delete());
            assert_reads(&then, &of_then).await;
            let mut since = of_then.clone();
            fill(&then, &mut since, "since", 6).await;
            assert_reads(&then, &since).await;
        }
        // As if no disk had been asked, all that moved is left over, and none of it is dropped.
        let units = async || {
            let mut units = 0;
            for disk in then.objects.disks.all().iter() {
                let client = disk.client.as_ref().unwrap();
                let on_disk = client
                    .units(disk.id, disk.incarnation, Duration::from_secs(1))
                    .await
                    .unwrap();
                units += on_disk.iter().filter(|info| info.shards > 0).count();
            }
            units
        };
        let before = units().await;
        let leftovers = Leftovers::new(then.objects.clone(), Moving::default());
        while leftovers.step().await.unwrap() != Step::Idle {}
        assert_eq!(units().await, before, "asked before: {disks_come}");
        // An operator sees them, and lets go of those that are needed by their names only.
        let moving = Moving::default();
        let strays = then.objects.stray_units(&moving).await.unwrap();
        let is_needed = |unit: &&StrayUnit| unit.why == Why::Needed;
        let needed = strays.units.iter().find(is_needed).map(|unit| UnitName {
            disk: unit.disk.clone(),
            volume: unit.volume,
            index: unit.index,
        });
        assert_eq!(needed.is_some(), !disks_come, "{strays:?}");
        if let Some(unit) = needed {
            let all = DropRequest::default();
            let plan = then.objects.drop_strays(&moving, &all).await.unwrap();
            assert!(plan.left > 0 && plan.needed.is_empty(), "{plan:?}");
            let named = DropRequest {
                units: vec![unit.clone(), unit],
                plan: None,
            };
            let plan = then.objects.drop_strays(&moving, &named).await.unwrap();
            assert_eq!((plan.units, plan.needed.len(), plan.left), (1, 1, 0), "{plan:?}");
        }
        // The newest ledger is put back, and accepted: it lacks nothing.
        let newest = beside(&world, copy(&world)).await;
        newest.objects.find_units().await;
        assert_only_reads(&newest).await;
        assert_reads(&newest, &model).await;
        let plan = newest.objects.accept_plan().await.unwrap();
        newest.objects.accept(&plan).await.unwrap();
        let newest = newest.crash().await;
        assert_reads(&newest, &model).await;
    }
}

/// Volumes that only the newer ledger knew: their units stay, are counted apart from faults, and go when an operator says so.
#[tokio::test]
async fn units_of_volumes_that_are_not_known_stay_until_an_operator_lets_go_of_them() {
    let (world, mut model) = (World::new("rs(4,2)", 9).await, Model::new());
    fill(&world, &mut model, "old", 6).await;
    let (older, of_then) = (copy(&world), model.clone());
    let drained = world.disk(0);
    world.objects.decide(drained, Membership::Draining).await.unwrap();
    move_units(&world).await;
    fill(&world, &mut model, "new", 6).await;
    tell(&world).await;
    world.poll().await;
    let behind = beside(&world, older).await;
    behind.objects.find_units().await;
    let plan = behind.objects.accept_plan().await.unwrap();
    assert!(plan.unknown_volumes > 0, "{plan:?}");
    behind.objects.accept(&plan).await.unwrap();
    let accepted = behind.crash().await;

    let moving = Moving::default();
    let leftovers = Leftovers::new(accepted.objects.clone(), moving.clone());
    while leftovers.step().await.unwrap() != Step::Idle {}
    let found = accepted.objects.stray_units(&moving).await.unwrap();
    let unknown: Vec<&StrayUnit> = found
        .units
        .iter()
        .filter(|unit| unit.why == Why::UnknownVolume)
        .collect();
    let shards: u64 = unknown.iter().map(|unit| unit.shards).sum();
    assert!(!unknown.is_empty());
    assert_eq!(shards, plan.unknown_shards);
    let report = take(&accepted).await;
    assert_eq!(
        (report.unknown_units, report.stray_units),
        (unknown.len() as u64, 0)
    );

    let wrong = DropRequest {
        units: vec![UnitName {
            disk: unknown[0].disk.clone(),
            volume: unknown[0].volume + 1_000,
            index: 0,
        }],
        plan: None,
    };
    let refused = accepted.objects.drop_strays(&moving, &wrong).await;
    assert!(matches!(refused, Err(Refusal::NotFound(_))), "{refused:?}");
    let mut all = DropRequest::default();
    let plan = accepted.objects.drop_strays(&moving, &all).await.unwrap();
    assert_eq!(
        (plan.unknown, plan.shards),
        (unknown.len() as u64, shards),
        "{plan:?}"
    );
    all.plan = Some(plan.plan.clone());
    accepted
        .objects
        .holds
        .place(Hold::LedgerDamaged, "a row is damaged");
    let held = accepted.objects.drop_strays(&moving, &all).await;
    assert!(matches!(held, Err(Refusal::Refused(_))), "{held:?}");
    accepted.objects.holds.lift(Hold::LedgerDamaged);
    accepted.objects.drop_strays(&moving, &all).await.unwrap();
    let again = accepted.objects.drop_strays(&moving, &all).await;
    assert_eq!(again, Err(Refusal::Outdated), "they are gone");
    assert_eq!(accepted.objects.stray_units(&moving).await.unwrap().found, 0);
    assert_eq!(take(&accepted).await.unknown_units, 0);
    assert_reads(&accepted, &of_then).await;
}

/// A disk that lost the last write of its superblock obeys the generation of before again, and has ids that came since: it is told anew,
/// and the gateway goes on.
#[tokio::test]
async fn a_disk_that_forgot_its_gateway_is_told_again() {
    let (world, mut model) = (World::new("rs(4,2)", 9).await, Model::new());
    fill(&world, &mut model, "old", 3).await;
    let world = world.crash().await;
    let before = world.objects.disks.generations().base().generation;
    // Volumes that came since the ledger was opened, too.
    world
        .objects
        .decide(world.disk(0), Membership::Draining)
        .await
        .unwrap();
    move_units(&world).await;
    fill(&world, &mut model, "new", 12).await;
    tell(&world).await;
    let forgetful = world.disk(3);
    world.cluster.node.each(|id, disk| {
        if id == forgetful {
            disk.ledger.generation = before;
            disk.ledger.position = 1;
        }
    });
    world.poll().await;
    world.poll().await;
    assert!(!is_safe(&world));
    fill(&world, &mut model, "later", 3).await;
    assert_reads(&world, &model).await;
}

/// A disk whose superblock was damaged or forged claims what no ledger can be. It is left out; the others are written to, and no counter is
/// moved to its end.
#[tokio::test]
async fn a_disk_that_claims_what_no_ledger_can_be_is_left_out() {
    for claim in [
        LedgerMarks {
            generation: Generation {
                number: u64::MAX,
                nonce: 7,
            },
            ..LedgerMarks::default()
        },
        LedgerMarks {
            generation: Generation {
                number: u64::MAX - 1,
                nonce: 7,
            },
            ..LedgerMarks::default()
        },
        LedgerMarks {
            blob_limit: u64::MAX,
            ..LedgerMarks::default()
        },
        LedgerMarks {
            volume_limit: (1 << 63) + 5,
            ..LedgerMarks::default()
        },
    ] {
        let (world, mut model) = (World::new("rs(4,2)", 9).await, Model::new());
        fill(&world, &mut model, "old", 6).await;
        let rogue = world.disk(3);
        world.cluster.node.each(|id, disk| {
            if id == rogue {
                disk.ledger = LedgerMarks {
                    position: disk.ledger.position,
                    ..claim
                };
            }
        });
        for again in [false, true] {
            world.poll().await;
            let world = match again {
                true => World::on(world.cluster.clone(), MEMORY_BYTES).await,
                false => World::of_objects(world.cluster.clone(), world.objects.clone()),
            };
            assert!(!is_safe(&world), "{claim:?}");
            let disk = world.objects.disks.get(rogue).unwrap();
            assert!(
                matches!(&disk.health, Health::Down(why) if why.contains("cannot be")),
                "{:?}",
                disk.health
            );
            fill(&world, &mut model, &format!("new-{again}"), 6).await;
            assert_reads(&world, &model).await;
            let [blob, volume] = next_ids(&world).await;
            assert!(blob < 1 << 32 && volume < 1 << 32, "{blob} {volume}");
        }
    }
}

/// Whoever is taken over from could go on until its disks are told, and delete what the copy still names: disks stand still meanwhile.
#[tokio::test]
async fn disks_change_nothing_while_a_copy_takes_over() {
    let (world, mut model) = (Arc::new(World::new("rs(4,2)", 9).await), Model::new());
    fill(&world, &mut model, "old", 6).await;
    let older = copy(&world);
    let shards = world.cluster.node.shard_count();
    let [first, node] = [world.clone(), world.clone()];
    let deleted = model.keys().next().unwrap().clone();
    let meanwhile = async move {
        assert!(first.put("late", &content(5, 300_000)).await.is_err());
        // The row goes, and the shards stay.
        first.delete(&deleted).await.unwrap();
        first.collect().await;
    };
    node.cluster.node.before_obey(meanwhile).await;
    let second = beside(&world, older).await;
    assert!(!is_safe(&second));
    assert_eq!(world.cluster.node.shard_count(), shards);
    assert_reads(&second, &model).await;
    second.put("later", &content(3, 1_000)).await.unwrap();
    assert!(world.put("refused", &content(3, 1_000)).await.is_err());
}

/// With nodes of before disks could stand still: a volume that was opened meanwhile has an id that the copy would hand out again.
#[tokio::test]
async fn what_came_to_disks_while_a_copy_took_over_is_seen() {
    let (world, mut model) = (Arc::new(World::new("rs(4,2)", 9).await), Model::new());
    let unknown = &world.cluster.node.knows_no_stillness;
    unknown.store(true, std::sync::atomic::Ordering::Relaxed);
    let [first, late] = [world.clone(), world.clone()];
    let bytes = content(5, 300_000);
    model.insert("late".into(), bytes.clone());
    let meanwhile = async move {
        first.put("late", &bytes).await.unwrap();
    };
    late.cluster.node.before_obey(meanwhile).await;
    let second = beside(&world, copy(&world)).await;
    assert!(is_safe(&second));
    assert!(second.put("refused", &content(3, 1_000)).await.is_err());
    assert!(world.put("later", &content(3, 1_000)).await.is_err());
    assert_reads(&world, &model).await;
}

/// A move that disks were not told of yet, and that they know all the same: what is read by the older rows is refused there.
#[tokio::test]
async fn a_ledger_of_before_a_move_is_behind_where_its_own_disks_know_of_it() {
    let (world, mut model) = (World::new("rs(4,2)", 12).await, Model::new());
    fill(&world, &mut model, "old", 6).await;
    tell(&world).await;
    let older = copy(&world);
    for disk in 0..3 {
        let disk = world.disk(disk);
        world.objects.decide(disk, Membership::Draining).await.unwrap();
    }
    let (moving, shared) = (Moving::default(), Arc::new(Shared::new(&world.objects, FLOOR)));
    let (_stop, stopped) = watch::channel(false);
    let rebuild = Rebuild::new(world.objects.clone(), moving, shared, stopped);
    while rebuild.step().await.unwrap() != Step::Idle {}
    assert_reads(&world, &model).await;
    let cluster = world.cluster.with_ledger(older);
    let clock = Arc::new(SystemClock);
    let gateway = Gateway::start(&config(&cluster), cluster.ledger(), cluster.nodes(), clock)
        .await
        .unwrap();
    assert!(gateway.objects.ledger.check_writable().is_err());
    assert!(!gateway.objects.holds.may_delete());
    for (name, bytes) in &model {
        let (all, conditions) = (Wanted::All, ReadConditions::default());
        let (_, read) = gateway.objects.get(BUCKET, name, all, &conditions).await.unwrap();
        assert!(drain(read).await.unwrap() == *bytes, "{name}");
    }
}
