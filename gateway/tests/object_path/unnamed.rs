//! What nothing names is kept: for a time, for a number of censuses, and for good where something speaks against letting go of it.
//! And ranges of ids retire, so that a crash leaves few to look for.

use crate::census::{census_of, filled, smuggle, take};
use crate::support::cluster::{BUCKET, World};
use crate::support::content::content;
use crate::support::store::{When, puts};
use bytes::Bytes;
use gateway::admin::operations::Refusal;
use gateway::admin::unnamed::{ObjectName, PurgeRequest, RestoreRequest};
use gateway::cluster::lease::RANGE_IDS;
use gateway::ledger::model::{BlobRow, GenerationRow, IdRangeRow, LeaseRow, ObjectRow};
use gateway::ledger::store::{Direction, KeyRange, Row, Store};
use gateway::ledger::{CommitBuilder, key};
use gateway::maintenance::census::record::CensusReport;
use gateway::maintenance::holds::Hold;
use gateway::maintenance::rebuild::Moving;
use gateway::maintenance::unnamed::keep::Keep;
use gateway::maintenance::worker::{Step, Worker};
use prost::Message;
use std::sync::Arc;
use std::time::Duration;

/// Collects what dead gateways left, as if its time was over.
pub async fn sweep_and_collect(world: &World) {
    world.keep_no_time(1).await;
    world.sweep().await.unwrap();
    world.collect().await;
    if !world.set_aside().await.is_empty() {
        take(world).await;
        assert_eq!(world.let_go().await, Step::Worked);
        world.collect().await;
    }
}

async fn rows(world: &World, range: KeyRange) -> Vec<Row> {
    let store = &world.cluster.store;
    store.scan(range, 10_000, Direction::Forward).await.unwrap()
}

/// Takes rows out of the ledger behind everybody's back. They can be put back.
async fn lose(world: &World, rows: &[Row]) {
    let delete = |commit: CommitBuilder, row: &Row| commit.delete(row.key.clone());
    let commit = rows.iter().fold(CommitBuilder::new(), delete);
    world.cluster.ledger().commit(commit.build()).await.unwrap();
}

async fn put_back(world: &World, rows: &[Row]) {
    let mut commit = CommitBuilder::new().build();
    for row in rows {
        commit.mutations.push(gateway::ledger::store::Mutation::Put {
            key: row.key.clone(),
            value: row.versioned.value.clone(),
        });
    }
    world.cluster.ledger().commit(commit).await.unwrap();
}

/// Ids that were handed out, and shards of them that nothing names.
async fn smuggle_many(world: &World, count: u64) -> u64 {
    let ledger = &world.objects.ledger;
    let first = ledger.take_ids(key::Counter::Blob, count).await.unwrap();
    for blob in first..first + count {
        smuggle(world, blob);
    }
    first
}

async fn assert_kept(world: &World, report: &CensusReport, blobs: u64) {
    assert_eq!(report.unnamed_blobs + report.set_aside_blobs, blobs, "{report:?}");
    assert_eq!(world.let_go().await, Step::Idle);
    world.collect().await;
    assert_eq!(world.objects.ledger.count(key::table(b'g'), 1).await.unwrap(), 0);
}

/// A backup of the ledger is put back: what it does not know is unnamed. The newest ledger comes back a day later.
#[tokio::test]
async fn an_older_ledger_costs_nothing_when_the_newest_is_put_back() {
    let mut world = filled().await;
    let before: Vec<Vec<Row>> = vec![
        rows(&world, key::table(b'o')).await,
        rows(&world, key::table(b'B')).await,
        rows(&world, key::table(b'e')).await,
    ];
    for n in 0..20 {
        world.put(&format!("new-{n}"), &content(n, 70_000)).await.unwrap();
    }
    let shards = world.cluster.node.shard_count();
    let mut newer = Vec::new();
    for (table, before) in [b'o', b'B', b'e'].into_iter().zip(before) {
        let now = rows(&world, key::table(table)).await;
        let is_new = |row: &Row| !before.iter().any(|old| old.key == row.key);
        newer.extend(now.into_iter().filter(is_new));
    }
    lose(&world, &newer).await;
    world = world.crash().await;
    for _ in 0..5 {
        world.sweep().await.unwrap();
        let report = take(&world).await;
        assert_kept(&world, &report, 20).await;
    }
    assert!(world.get("new-3").await.is_err());
    assert_eq!(world.objects.unnamed.summary().blobs, 20);
    put_back(&world, &newer).await;
    let world = world.crash().await;
    assert_eq!(world.cluster.node.shard_count(), shards);
    for n in 0..20 {
        assert!(world.get(&format!("new-{n}")).await.unwrap() == content(n, 70_000));
    }
    assert_eq!(world.let_go().await, Step::Idle);
    assert_eq!(world.set_aside().await, []);
    world.sweep().await.unwrap();
    assert!(take(&world).await.clean);
    world.census().await.assert_clean();
}

/// One bit flipped in the key of a blob's row: it is as if the row was not there, while the object still names the blob.
#[tokio::test]
async fn a_blob_that_an_object_names_is_kept_though_its_row_is_lost() {
    let world = filled().await;
    let all = rows(&world, key::table(b'B')).await;
    let lost = &all[7..8];
    lose(&world, lost).await;
    for _ in 0..4 {
        let report = take(&world).await;
        assert_kept(&world, &report, 1).await;
    }
    // The time is over, too.
    world.keep_no_time(1).await;
    for _ in 0..3 {
        let report = take(&world).await;
        assert_kept(&world, &report, 1).await;
    }
    let (blob, row) = world.set_aside().await.remove(0);
    assert_eq!(key::volume_and_blob(&lost[0].key), Some(blob));
    assert!(row.named_by.starts_with("cairn/"), "{row:?}");
    assert_eq!(world.objects.unnamed.summary().kept, 1);
    put_back(&world, lost).await;
    assert_eq!(world.let_go().await, Step::Idle);
    assert_eq!(world.set_aside().await, []);
    world.census().await.assert_clean();
}

#[tokio::test]
async fn it_goes_after_three_complete_censuses_and_a_day_of_running_and_not_before() {
    let mut world = filled().await;
    smuggle_many(&world, 3).await;
    let hour = |world: World| async move {
        tokio::time::pause();
        let mut went = false;
        for _ in 0..60 {
            tokio::time::advance(Duration::from_secs(60)).await;
            went = went || world.let_go().await == Step::Worked;
        }
        tokio::time::resume();
        (world, went)
    };
    // A disk that is away: its volume was not looked at as a whole.
    world.let_go().await;
    let all: Vec<usize> = (0..world.cluster.disks.len()).collect();
    world.lose(&all[1..]).await;
    take(&world).await;
    world.heal().await;
    assert!(world.set_aside().await.iter().all(|(_, row)| row.censuses == 0));
    for done in 1..=2 {
        take(&world).await;
        assert!(
            world
                .set_aside()
                .await
                .iter()
                .all(|(_, row)| row.censuses == done)
        );
    }
    // A day and more, with a restart: two censuses are not enough.
    for _ in 0..26 {
        let (now, went) = hour(world).await;
        assert!(!went);
        world = now;
    }
    world = world.crash().await;
    world.sweep().await.unwrap();
    take(&world).await;
    let rows = world.set_aside().await;
    assert!(
        rows.iter()
            .all(|(_, row)| (row.censuses, row.units.len()) == (3, 3)),
        "{rows:?}"
    );
    assert_eq!(world.let_go().await, Step::Worked);
    world.collect().await;
    world.census().await.assert_clean();
    // Three censuses, and not yet a day, of which the last minute of each process may not count.
    smuggle_many(&world, 3).await;
    for _ in 0..5 {
        take(&world).await;
    }
    for _ in 0..23 {
        let (now, went) = hour(world).await;
        assert!(!went);
        world = now;
    }
    let (world, went) = hour(world.crash().await).await;
    let (world, went) = match went {
        true => (world, went),
        false => hour(world).await,
    };
    assert!(went);
    world.collect().await;
    world.census().await.assert_clean();
}

#[tokio::test]
async fn more_than_a_few_are_kept_until_an_operator_decides() {
    let world = filled().await;
    world.keep_no_time(1).await;
    let few = gateway::maintenance::unnamed::judge::VOLUME_BLOBS_MAX;
    smuggle_many(&world, few + 1).await;
    for _ in 0..3 {
        let report = take(&world).await;
        assert_kept(&world, &report, few + 1).await;
    }
    let stopped = world.objects.unnamed.summary().stopped.unwrap();
    assert!(stopped.contains("1001 blobs of volume"), "{stopped}");
    // Another process says the same.
    let world = world.crash().await;
    assert_eq!(world.let_go().await, Step::Idle);
    assert!(world.objects.unnamed.summary().stopped.is_some());
    // One less is few.
    let one = rows(&world, key::table(b'U')).await.remove(0);
    lose(&world, &[one]).await;
    assert_eq!(world.let_go().await, Step::Worked);
    world.collect().await;
    assert!(
        world.census().await.unnamed.len() < 7,
        "only the one that is not listed"
    );
}

/// An operator makes an object of it, or the row comes back, between the judgement and the commit.
#[tokio::test]
async fn the_commit_that_lets_go_loses_against_a_row_that_came() {
    let world = Arc::new(filled().await);
    world.keep_no_time(1).await;
    let blob = smuggle_many(&world, 2).await;
    take(&world).await;
    let volume = world.objects.volumes.all()[0].id;
    let mut held = world.cluster.store.hold(When::Before, puts(b'g'));
    let going = tokio::spawn({
        let world = world.clone();
        async move { world.let_go().await }
    });
    held.arrived().await;
    let row = BlobRow {
        length: 1_000,
        references: 1,
        owner: "a test".into(),
    };
    let commit = CommitBuilder::new().put(key::blob(volume, blob), &row);
    world.objects.ledger.commit(commit.build()).await.unwrap();
    held.go_on();
    assert_eq!(going.await.unwrap(), Step::Worked);
    world.collect().await;
    let left: Vec<(u64, u64)> = world
        .set_aside()
        .await
        .into_iter()
        .map(|(blob, _)| blob)
        .collect();
    assert_eq!(left, [(volume, blob)], "the other one went");
    assert!(world.cluster.node.shard_count() > 0);
    world.let_go().await;
    assert_eq!(world.set_aside().await, []);
}

#[tokio::test]
async fn while_the_ledger_cannot_be_trusted_nothing_is_set_aside_counted_or_deleted() {
    let world = filled().await;
    world.keep_no_time(1).await;
    smuggle_many(&world, 2).await;
    take(&world).await;
    world.objects.holds.place(Hold::LedgerDamaged, "a test");
    assert_eq!(world.let_go().await, Step::Idle);
    assert_eq!(world.objects.unnamed.summary().stopped.as_deref(), Some("a test"));
    smuggle_many(&world, 2).await;
    let report = take(&world).await;
    assert!(report.unnamed_blobs > 0 && !report.clean, "{report:?}");
    let rows = world.set_aside().await;
    assert!(rows.len() == 2 && rows.iter().all(|(_, row)| row.censuses == 1));
    // Garbage waits, too.
    let shards = world.cluster.node.shard_count();
    world.delete("4-0").await.unwrap();
    world.collect().await;
    assert_eq!(world.cluster.node.shard_count(), shards);
    world.objects.holds.lift(Hold::LedgerDamaged);
    world.collect().await;
    assert!(world.cluster.node.shard_count() < shards);
    assert_eq!(world.let_go().await, Step::Worked);
    take(&world).await;
    assert_eq!(world.let_go().await, Step::Worked);
    world.collect().await;
    world.census().await.assert_clean();
}

#[tokio::test]
async fn what_may_be_of_a_ledger_that_was_given_up_is_kept() {
    let world = filled().await;
    world.keep_no_time(1).await;
    let first = smuggle_many(&world, 2).await;
    let generation = GenerationRow {
        kept_below_blob: first + 1,
        ..GenerationRow::default()
    };
    let commit = CommitBuilder::new().put(key::generation(), &generation);
    world.objects.ledger.commit(commit.build()).await.unwrap();
    take(&world).await;
    assert_eq!(world.let_go().await, Step::Worked);
    world.collect().await;
    assert_eq!(world.let_go().await, Step::Idle);
    let rows = world.set_aside().await;
    assert!(rows.len() == 1 && rows[0].0.1 == first);
}

/// A row that cannot be read is not a row that is missing.
#[tokio::test]
async fn a_damaged_row_is_no_missing_row() {
    let world = filled().await;
    world.keep_no_time(1).await;
    let blob_rows = rows(&world, key::table(b'B')).await;
    let mut bad = blob_rows[3].clone();
    bad.versioned.value = Bytes::from_static(b"\xff\xff\xff");
    put_back(&world, &[bad]).await;
    let report = take(&world).await;
    assert!(!report.clean && report.skipped_units > 0, "{report:?}");
    assert_eq!(report.unnamed_blobs, 0);
    assert_eq!(world.set_aside().await, []);
    put_back(&world, &blob_rows[3..4]).await;
    assert!(take(&world).await.clean);
}

async fn ranges(world: &World) -> usize {
    let ledger = &world.objects.ledger;
    ledger.count(key::table(b'r'), 1_000).await.unwrap()
}

/// Ten ranges of ids are used up: what is settled is forgotten, and what may still be named is not.
#[tokio::test]
async fn ranges_whose_ids_are_settled_retire() {
    let world = World::new("replica(2)", 2).await;
    let lease = &world.objects.lease;
    let hand_out = |count: u64| async move {
        for _ in 0..count {
            lease.next_blob().await.unwrap();
        }
    };
    let held = lease.next_blob().await.unwrap();
    hand_out(RANGE_IDS - 2).await;
    world.put("a", &content(1, 10)).await.unwrap();
    let volume = world.objects.volumes.all()[0].id;
    let mut writing = world.objects.abandoned.guard();
    writing.add((volume, lease.next_blob().await.unwrap().id));
    hand_out(RANGE_IDS - 1).await;
    let mut unknown = world.objects.abandoned.guard();
    unknown.add((volume, lease.next_blob().await.unwrap().id));
    unknown.may_be_named();
    hand_out(7 * RANGE_IDS).await;
    assert_eq!(ranges(&world).await, 10);
    world.sweep().await.unwrap();
    assert_eq!(
        ranges(&world).await,
        4,
        "three that are not settled, and the one in use"
    );
    drop(held);
    drop(writing);
    world.sweep().await.unwrap();
    assert_eq!(ranges(&world).await, 3, "what was abandoned is not a row yet");
    world.collect().await;
    world.sweep().await.unwrap();
    assert_eq!(ranges(&world).await, 2);
    // Given back, what nobody told the outcome of is still to be looked for.
    world
        .objects
        .lease
        .give_back(&world.objects.abandoned)
        .await
        .unwrap();
    assert_eq!(ranges(&world).await, 1);
    let world = world.crash().await;
    world.sweep().await.unwrap();
    assert_eq!(ranges(&world).await, 0);
}

/// However many ranges dead gateways left, a unit's inventory is read once.
#[tokio::test]
async fn a_sweep_looks_at_each_unit_once() {
    let world = filled().await;
    let world = world.crash().await;
    let ledger = &world.objects.ledger;
    let mut commit = CommitBuilder::new();
    let first = ledger.take_ids(key::Counter::Blob, 50 * 100).await.unwrap();
    for n in 0..50 {
        let row = IdRangeRow {
            end: first + (n + 1) * 100,
            swept: Vec::new(),
        };
        commit = commit.put(key::id_range(1_000_000 + n, first + n * 100), &row);
    }
    ledger.commit(commit.build()).await.unwrap();
    for n in [0, 1_234, 4_999] {
        smuggle(&world, first + n);
    }
    let mut units = 0;
    world.cluster.node.each(|_, disk| {
        disk.inventories.clear();
        units += disk.units.values().filter(|unit| !unit.shards.is_empty()).count();
    });
    world.sweep().await.unwrap();
    let mut looked = 0;
    world.cluster.node.each(|_, disk| {
        assert!(
            disk.inventories.values().all(|pages| *pages == 1),
            "{:?}",
            disk.inventories
        );
        looked += disk.inventories.len();
    });
    assert_eq!(looked, units);
    assert_eq!(world.set_aside().await.len(), 3);
    assert_eq!(ranges(&world).await, 0);
}

/// The gateway dies in the middle of everything, again and again.
#[tokio::test]
async fn a_restart_in_the_middle_changes_nothing() {
    let mut world = filled().await;
    let keep = Keep {
        keep_s: 0,
        censuses: 2,
    };
    world.objects.set_keep(keep).await.unwrap();
    smuggle_many(&world, 5).await;
    let lease = LeaseRow::default();
    let first = world
        .objects
        .ledger
        .take_ids(key::Counter::Blob, 10)
        .await
        .unwrap();
    let range = IdRangeRow {
        end: first + 10,
        swept: Vec::new(),
    };
    let commit = CommitBuilder::new()
        .put(key::lease(999), &lease)
        .put(key::id_range(999, first), &range);
    world.objects.ledger.commit(commit.build()).await.unwrap();
    smuggle(&world, first + 1);
    for round in 0..2 {
        let cycle = world.objects.begin_census(true).await.unwrap();
        for _ in 0..1_000 {
            world = world.crash().await; // The first crash ends the other lease.
            world.sweep().await.unwrap();
            let (census, _stop) = census_of(&world, Moving::default());
            census.step().await.unwrap();
            let last = world.objects.scrub_row().await.unwrap().last;
            if last.is_some_and(|last| last.cycle == cycle) {
                break;
            }
        }
        let rows = world.set_aside().await;
        assert_eq!(rows.len(), 6);
        assert!(rows.iter().all(|(_, row)| row.censuses == round + 1), "{rows:?}");
    }
    assert_eq!(world.let_go().await, Step::Worked);
    world = world.crash().await;
    world.collect().await;
    world.sweep().await.unwrap();
    world.census().await.assert_clean();
    assert!(take(&world).await.clean);
}

fn named(key: &str) -> Option<ObjectName> {
    Some(ObjectName {
        bucket: BUCKET.into(),
        key: key.into(),
    })
}

/// The rows of an object, its blobs and their seals, taken out of the ledger. Which blobs.
async fn lose_object(world: &World, name: &str) -> Vec<(u64, u64)> {
    let mut lost = Vec::new();
    let mut blobs = Vec::new();
    for row in rows(world, key::table(b'o')).await {
        if key::object_name(&row.key).as_deref() != Some(name) {
            continue;
        }
        let object = ObjectRow::decode(row.versioned.value.clone()).unwrap();
        blobs.extend(object.blobs.iter().map(|blob| (blob.volume, blob.blob)));
        lost.push(row);
    }
    for table in [b'B', b'e'] {
        let all = rows(world, key::table(table)).await;
        let is_its = |row: &Row| blobs.contains(&key::volume_and_blob(&row.key).unwrap());
        lost.extend(all.into_iter().filter(is_its));
    }
    lose(world, &lost).await;
    blobs
}

#[tokio::test]
async fn an_operator_makes_an_object_of_what_nothing_names() {
    let world = filled().await;
    // One byte, 16 KiB in copies, and lengths that leave padding in the last stripe, and that leave none.
    for (name, length, padded) in [
        ("0-1", 1, 1),
        ("1-1", 16_384, 16_384),
        ("2-1", 16_385, 16_388),
        ("3-1", 300_000, 300_000),
        ("4-1", 5_000_001, 5_000_004),
    ] {
        let whole = world.get(name).await.unwrap();
        let blobs = lose_object(&world, name).await;
        assert_eq!(blobs.len(), 1);
        let (volume, blob) = blobs[0];
        let mut request = RestoreRequest {
            volume,
            blob,
            object: named("back"),
        };
        let refused = world.objects.restore_unnamed(&request).await.unwrap_err();
        assert!(
            matches!(refused, Refusal::NotFound(_)),
            "not set aside yet: {refused}"
        );
        assert_eq!(take(&world).await.unnamed_blobs, 1);
        request.object = None;
        let refused = world.objects.restore_unnamed(&request).await.unwrap_err();
        assert!(
            refused.to_string().contains("say which bucket and key"),
            "{refused}"
        );
        request.object = named("0-0");
        let refused = world.objects.restore_unnamed(&request).await.unwrap_err();
        assert!(refused.to_string().contains("choose another key"), "{refused}");
        request.object = named(&format!("back/{name}"));
        let restored = world.objects.restore_unnamed(&request).await.unwrap();
        assert_eq!(
            (restored.length, restored.padding_max > 0),
            (padded, length > 16_384)
        );
        let back = world.get(&format!("back/{name}")).await.unwrap();
        assert!(back[..length] == whole[..], "{name}");
        assert!(back[length..].iter().all(|byte| *byte == 0), "{name}");
        assert_eq!(world.set_aside().await, []);
        assert!(take(&world).await.clean);
    }
    world.delete("back/4-1").await.unwrap();
    world.collect().await;
    assert!(take(&world).await.clean);
}

#[tokio::test]
async fn what_an_object_names_gets_its_row_back() {
    let world = filled().await;
    world.copy("4-0", "copied").await.unwrap();
    let all = rows(&world, key::table(b'B')).await;
    let is_copied = |row: &&Row| BlobRow::decode(row.versioned.value.clone()).unwrap().references == 2;
    let lost = all.iter().find(is_copied).unwrap().clone();
    let (volume, blob) = key::volume_and_blob(&lost.key).unwrap();
    lose(&world, &[lost]).await;
    take(&world).await;
    let mut request = RestoreRequest {
        volume,
        blob,
        object: named("another"),
    };
    let refused = world.objects.restore_unnamed(&request).await.unwrap_err();
    assert!(
        refused.to_string().contains("restore it without a name"),
        "{refused}"
    );
    // Everything that nothing names is to go: this is not among it.
    let plan = world.objects.purge(&PurgeRequest::default()).await.unwrap();
    assert_eq!((plan.blobs, plan.left), (0, 1), "{plan:?}");
    request.object = None;
    let restored = world.objects.restore_unnamed(&request).await.unwrap();
    assert_eq!((restored.length, restored.padding_max), (5_000_001, 0));
    assert!(world.get("4-0").await.unwrap() == world.get("copied").await.unwrap());
    world.census().await.assert_clean();
    world.delete("4-0").await.unwrap();
    world.collect().await;
    assert!(world.get("copied").await.unwrap() == content(40, 5_000_001));
    world.delete("copied").await.unwrap();
    world.collect().await;
    world.census().await.assert_clean();
}

#[tokio::test]
async fn a_purge_does_what_was_planned_or_nothing() {
    let world = filled().await;
    let first = smuggle_many(&world, 3).await;
    take(&world).await;
    let page = world.objects.unnamed_page(None).await.unwrap();
    let volume = page.lines[0].volume;
    assert_eq!(page.lines.len(), 3);
    assert!(
        page.lines
            .iter()
            .all(|line| line.censuses_left == 2 && line.run_s_left > 86_000)
    );
    let rest = world.objects.unnamed_page(Some((volume, first))).await.unwrap();
    assert_eq!(rest.lines[..], page.lines[1..]);
    let mut all = PurgeRequest::default();
    let plan = world.objects.purge(&all).await.unwrap();
    assert_eq!(
        (plan.blobs, plan.bytes),
        (3, 3 * 3 * 1_000),
        "copies on three disks"
    );
    // One goes by itself meanwhile: the plan is another one.
    let mut one = PurgeRequest {
        blobs: vec![(volume, first)],
        plan: None,
    };
    one.plan = Some(world.objects.purge(&one).await.unwrap().plan);
    world.objects.purge(&one).await.unwrap();
    all.plan = Some(plan.plan);
    assert_eq!(world.objects.purge(&all).await, Err(Refusal::Outdated));
    assert!(matches!(
        world.objects.purge(&one).await,
        Err(Refusal::NotFound(_))
    ));
    all.plan = None;
    let plan = world.objects.purge(&all).await.unwrap();
    all.plan = Some(plan.plan);
    world.objects.holds.place(Hold::LedgerBehind, "a test");
    let refused = world.objects.purge(&all).await;
    assert_eq!(refused, Err(Refusal::Refused("a test".into())));
    world.objects.holds.lift(Hold::LedgerBehind);
    world.objects.purge(&all).await.unwrap();
    world.collect().await;
    assert_eq!(world.set_aside().await, []);
    world.census().await.assert_clean();
}
