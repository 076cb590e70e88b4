//! What nothing names any more is deleted from every disk, and nothing else is.

use crate::support::cluster::{BUCKET, World};
use crate::support::content::{body, broken, content, drain, stalled};
use crate::support::memory_node::Faults;
use crate::support::store::{When, puts};
use gateway::error::Error;
use gateway::ledger::model::Headers;
use gateway::object::condition::WriteConditions;
use gateway::object::get::Wanted;
use gateway::object::multipart::{Completion, ListedPart, UploadTarget};
use gateway::object::put::Expected;
use std::time::Duration;
use storage_node::protocol::NodeError;

const SIZES: [usize; 4] = [0, 1_000, 100_000, 9 << 20];

async fn assert_empty(world: &World) {
    world.collect().await;
    let census = world.census().await;
    census.assert_clean();
    assert_eq!((census.blobs, world.cluster.node.shard_count()), (0, 0));
}

/// A copy of the ledger that was given up moved a unit of the volume, and a disk that was away then knows: it refused every delete, for ever.
#[tokio::test]
async fn a_disk_that_knows_a_newer_epoch_than_the_ledger_is_heard_in_the_end() {
    let world = World::new("rs(4,2)", 6).await;
    world.put("kept", &content(1, 100_000)).await.unwrap();
    world.put("gone", &content(2, 100_000)).await.unwrap();
    let disk = world.disk(2);
    world
        .cluster
        .node
        .with(disk, |d| d.units.values_mut().for_each(|unit| unit.epoch += 3));
    world.delete("gone").await.unwrap();
    world.collect().await;
    let volumes = world.objects.volumes.all();
    let epochs = || volumes.iter().map(|volume| volume.epoch);
    assert!(epochs().all(|epoch| epoch == 1), "a move may be under way");
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(30)).await;
    tokio::time::resume();
    world.collect().await;
    world.collect().await;
    assert_eq!(world.cluster.node.shard_count(), 6);
    assert!(world.get("kept").await.unwrap() == content(1, 100_000));
    world.census().await.assert_clean();
    // One that says what cannot be is not believed.
    world.cluster.node.with(disk, |d| {
        d.units.values_mut().for_each(|unit| unit.epoch = u32::MAX)
    });
    let volume = world.objects.volumes.all()[0].id;
    for _ in 0..2 {
        world.objects.note_newer_epoch(volume, 2, u32::MAX).await.unwrap();
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(30)).await;
        tokio::time::resume();
    }
    assert!(world.objects.volumes.refresh(volume).await.unwrap().epoch < 10);
}

#[tokio::test]
async fn overwritten_and_deleted_objects_go() {
    let world = World::new("rs(4,2)", 6).await;
    for round in 0..3 {
        for size in SIZES {
            world.put(&size.to_string(), &content(round, size)).await.unwrap();
        }
        world.collect().await;
        let census = world.census().await;
        census.assert_clean();
        assert_eq!(census.blobs, 3);
    }
    for size in SIZES {
        assert!(world.get(&size.to_string()).await.unwrap() == content(2, size));
        world.delete(&size.to_string()).await.unwrap();
        world.delete(&size.to_string()).await.unwrap();
    }
    assert_empty(&world).await;
    assert_eq!(world.objects.metrics.collected_blobs.get(), 9);
}

#[tokio::test]
async fn failed_uploads_leave_nothing() {
    let world = World::new("rs(4,2)", 6).await;
    world.put("object", &content(1, 1_000)).await.unwrap();
    for size in [1_000, 100_000, 9 << 20, 70 << 20] {
        let bytes = content(2, size);
        assert!(matches!(
            world.put_body("object", broken(&bytes)).await,
            Err(Error::IncompleteBody)
        ));
        let wrong = Expected {
            md5: Some([1; 16]),
            ..Default::default()
        };
        let put = world.objects.put(
            BUCKET,
            "object",
            body(&bytes),
            wrong,
            Headers::default(),
            Default::default(),
        );
        assert!(matches!(put.await, Err(Error::BadDigest { .. })));
        let create = WriteConditions {
            none_match: Some(gateway::object::condition::ETagIs::Any),
            matches: None,
        };
        assert!(matches!(
            world.put_if("object", body(&bytes), create).await,
            Err(Error::PreconditionFailed)
        ));
        let elsewhere = world.objects.put(
            "none",
            "object",
            body(&bytes),
            Expected::default(),
            Headers::default(),
            Default::default(),
        );
        assert!(matches!(elsewhere.await, Err(Error::NoSuchBucket)));
    }
    assert!(world.get("object").await.unwrap() == content(1, 1_000));
    world.delete("object").await.unwrap();
    assert_empty(&world).await;
}

/// Clients that disappear: while the body comes, while shards are sent, while the commit is under way.
#[tokio::test(start_paused = true)]
async fn clients_that_disappear_leave_nothing() {
    let world = World::new("rs(4,2)", 6).await;
    world
        .cluster
        .node
        .each(|_, disk| disk.faults.put_delay = Duration::from_millis(100));
    for size in [1_000, 100_000, 9 << 20] {
        for after_ms in [0, 50, 99, 101, 150, 250, 350] {
            let put = world.put_body("object", stalled(&content(3, size)));
            assert!(
                tokio::time::timeout(Duration::from_millis(after_ms), put)
                    .await
                    .is_err()
            );
        }
    }
    assert!(matches!(world.get("object").await, Err(Error::NoSuchKey)));
    world
        .cluster
        .node
        .each(|_, disk| disk.faults.put_delay = Duration::ZERO);
    assert_empty(&world).await;
}

/// A client that leaves in the middle of the commit: the object is there, whole.
#[tokio::test]
async fn a_client_that_leaves_during_the_commit_splits_nothing() {
    for when in [When::Before, When::After] {
        let world = World::new("rs(4,2)", 6).await;
        world.put("object", &content(1, 100_000)).await.unwrap();
        let mut held = world.cluster.store.hold(when, puts(b'o'));
        let bytes = content(2, 5 << 20);
        tokio::select! {
            _ = world.put("object", &bytes) => panic!("the commit is held"),
            _ = held.arrived() => {}
        }
        held.go_on();
        world.objects.gate.empty().await;
        world.collect().await;
        assert!(world.get("object").await.unwrap() == bytes, "{when:?}");
        world.census().await.assert_clean();
    }
}

#[tokio::test]
async fn copies_share_and_the_last_one_collects() {
    let world = World::new("rs(4,2)", 6).await;
    let bytes = content(1, 5 << 20);
    world.put("a", &bytes).await.unwrap();
    let shards = world.cluster.node.shard_count();
    world.copy("a", "b").await.unwrap();
    world.copy("b", "c").await.unwrap();
    world.copy("c", "c").await.unwrap();
    world.copy("a", "b").await.unwrap();
    assert_eq!(world.cluster.node.shard_count(), shards, "a copy copies no data");
    world.census().await.assert_clean();
    for gone in ["a", "c"] {
        world.delete(gone).await.unwrap();
        world.collect().await;
        assert!(world.get("b").await.unwrap() == bytes);
        world.census().await.assert_clean();
    }
    world.put("b", &content(2, 10)).await.unwrap();
    world.collect().await;
    world.census().await.assert_clean();
    assert_eq!(world.cluster.node.shard_count(), 3);
    assert!(matches!(world.copy("a", "d").await, Err(Error::NoSuchKey)));
    assert!(matches!(
        world
            .objects
            .copy(
                crate::support::cluster::source("b"),
                BUCKET,
                "b",
                None,
                None,
                Default::default()
            )
            .await,
        Err(Error::InvalidRequest(_))
    ));
}

#[tokio::test]
async fn a_disk_that_is_away_gets_its_deletes_when_it_is_back() {
    let faults = [
        Faults {
            missing: true,
            ..Default::default()
        },
        Faults {
            fenced: true,
            ..Default::default()
        },
        Faults {
            delete: Some(NodeError::Io { what: "EIO".into() }),
            ..Default::default()
        },
        Faults {
            delete: Some(NodeError::Timeout),
            ..Default::default()
        },
    ];
    for fault in faults {
        let world = World::new("rs(4,2)", 6).await;
        for n in 0..30 {
            world.put(&n.to_string(), &content(n, 100_000)).await.unwrap();
        }
        for n in [1, 4] {
            world.fault(n, fault.clone());
        }
        world.poll().await;
        for n in 0..30 {
            world.delete(&n.to_string()).await.unwrap();
        }
        world.collect().await;
        let census = world.census().await;
        assert_eq!(
            (census.garbage, census.unnamed.len()),
            (30, 60),
            "{fault:?}: only the two disks have any left"
        );
        // Also if the gateway is another one by then.
        world.heal().await;
        let world = world.crash().await;
        assert_empty(&world).await;
    }
}

/// More rows that wait than one step takes in do not hide those that need not wait.
#[tokio::test]
async fn rows_that_wait_do_not_hide_others() {
    let world = World::new("replica(3)", 4).await;
    let (mut waits, mut free) = (Vec::new(), Vec::new());
    world.lose(&[3]).await;
    for n in 0..20 {
        world.put(&format!("free-{n}"), &content(n, 10)).await.unwrap();
        free.push(format!("free-{n}"));
    }
    world.heal().await;
    for n in 0..1_300 {
        world.put(&format!("w-{n}"), &content(n, 10)).await.unwrap();
        waits.push(format!("w-{n}"));
    }
    world.lose(&[0]).await;
    for name in waits.iter().chain(&free) {
        world.delete(name).await.unwrap();
    }
    world.collect().await;
    let left = world.census().await;
    let disk = world.disk(0);
    let others = left
        .unnamed
        .iter()
        .filter(|s| !s.contains(&disk.to_string()))
        .count();
    assert_eq!(others, 0, "shards on disks that are there");
    world.heal().await;
    assert_empty(&world).await;
}

#[tokio::test(start_paused = true)]
async fn a_blob_is_not_collected_while_it_is_read() {
    let world = World::new("rs(4,2)", 6).await;
    let bytes = content(1, 40 << 20);
    for how in ["delete", "overwrite"] {
        world.put("object", &bytes).await.unwrap();
        let (_, slow) = world
            .objects
            .get(BUCKET, "object", Wanted::All, &Default::default())
            .await
            .unwrap();
        let (_, gone) = world
            .objects
            .get(BUCKET, "object", Wanted::All, &Default::default())
            .await
            .unwrap();
        match how {
            "delete" => world.delete("object").await.unwrap(),
            _ => drop(world.put("object", &content(2, 10)).await.unwrap()),
        }
        world.collect().await;
        assert_eq!(world.census().await.garbage, 1, "{how}: collected under a reader");
        drop(gone);
        tokio::time::sleep(Duration::from_millis(100)).await;
        world.collect().await;
        assert_eq!(world.census().await.garbage, 1, "{how}: collected under a reader");
        assert!(drain(slow).await.unwrap() == bytes, "{how}");
        tokio::time::sleep(Duration::from_millis(100)).await;
        world.collect().await;
        world.census().await.assert_clean();
    }
    world.delete("object").await.unwrap();
    assert_empty(&world).await;
}

/// A reader that has read the row and not said so yet: the collector must wait for it.
#[tokio::test(start_paused = true)]
async fn a_reader_on_its_way_in_is_waited_for() {
    let world = World::new("rs(4,2)", 6).await;
    world.put("object", &content(1, 100_000)).await.unwrap();
    let entering = world.objects.readers.enter();
    world.delete("object").await.unwrap();
    world.collect().await;
    assert_eq!(world.census().await.garbage, 1);
    drop(entering);
    assert_empty(&world).await;
}

#[tokio::test]
async fn uploads_aborted_completed_and_replaced_leave_nothing() {
    let world = World::new("rs(4,2)", 6).await;
    let objects = &world.objects;
    let begin = async || {
        let upload = objects
            .create_upload(BUCKET, "object", Headers::default(), None, false)
            .await
            .unwrap();
        UploadTarget {
            bucket: BUCKET.into(),
            name: "object".into(),
            upload,
        }
    };
    let part = async |target: &UploadTarget, number: u16, seed: u64, size: usize| {
        let bytes = content(seed, size);
        let stored = objects
            .put_part(target.clone(), number, body(&bytes), Expected::default())
            .await
            .unwrap();
        ListedPart {
            number: number.into(),
            etag: stored.etag,
            checksum: None,
        }
    };
    // Aborted, with a part replaced and one broken off.
    let target = begin().await;
    for seed in 0..3 {
        part(&target, 1, seed, 1 << 20).await;
    }
    let lost = objects
        .put_part(
            target.clone(),
            2,
            broken(&content(1, 5 << 20)),
            Expected::default(),
        )
        .await;
    assert!(matches!(lost, Err(Error::IncompleteBody)));
    objects.abort_upload(&target).await.unwrap();
    assert!(matches!(
        objects.abort_upload(&target).await,
        Err(Error::NoSuchUpload)
    ));
    assert_empty(&world).await;
    // Completed, with unused parts, over an object.
    world.put("object", &content(9, 100_000)).await.unwrap();
    let target = begin().await;
    let first = part(&target, 1, 1, 5 << 20).await;
    part(&target, 2, 2, 1 << 20).await;
    let last = part(&target, 3, 3, 1_000).await;
    part(&target, 4, 4, 10).await;
    objects
        .complete_upload(target, vec![first, last], Completion::default())
        .await
        .unwrap();
    world.collect().await;
    let census = world.census().await;
    census.assert_clean();
    assert_eq!(census.blobs, 2);
    // Parts of an upload go with the bucket.
    let target = begin().await;
    part(&target, 1, 1, 100_000).await;
    world.delete("object").await.unwrap();
    objects.delete_bucket(BUCKET).await.unwrap();
    assert_empty(&world).await;
}
