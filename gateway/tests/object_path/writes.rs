//! Writes with disks failing: every acknowledged object has all its shards, or the write is refused.

use crate::support::cluster::{BUCKET, World};
use crate::support::content::{content, cut};
use crate::support::memory_node::{Faults, MemoryDisk};
use crate::unnamed::sweep_and_collect;
use bytes::Bytes;
use futures::StreamExt;
use gateway::error::Error;
use gateway::object::Body;
use gateway::object::get::Wanted;
use std::time::Duration;
use storage_node::protocol::NodeError;

fn io() -> NodeError {
    NodeError::Io { what: "EIO".into() }
}

fn fenced() -> NodeError {
    NodeError::Fenced {
        reason: "a test".into(),
    }
}

/// One disk fails in the middle of an upload, in every way and at every stripe: the object is right and whole.
#[tokio::test]
async fn a_disk_that_fails_in_the_middle_costs_nothing() {
    let unreachable = NodeError::Unreachable {
        what: "a test".into(),
    };
    let errors = [
        io(),
        fenced(),
        NodeError::Timeout,
        NodeError::NoSpace,
        NodeError::WrongDisk,
        unreachable,
    ];
    for error in errors {
        for puts_before in 0..4 {
            let world = World::new("rs(4,2)", 7).await;
            let bytes = content(puts_before, (13 << 20) + 5);
            // Which volume is picked is random; a disk in two fails, so one of them is met.
            for n in [2, 5] {
                world.fault(
                    n,
                    Faults {
                        put: Some(error.clone()),
                        puts_before,
                        ..Default::default()
                    },
                );
            }
            world.put_body("object", cut(&bytes, puts_before)).await.unwrap();
            if puts_before < 2 {
                assert!(
                    world.objects.metrics.rewritten_stripes.get() > 0,
                    "{error}: no disk failed"
                );
            }
            let world = collect_when_well(world).await;
            assert!(
                world.get("object").await.unwrap() == bytes,
                "{error} after {puts_before}"
            );
            world.census().await.assert_whole();
        }
    }
}

/// Collects once the faults are over. It takes another gateway: this one leaves a disk that timed out alone for a while.
async fn collect_when_well(world: World) -> World {
    world.heal().await;
    let world = world.crash().await;
    sweep_and_collect(&world).await;
    world
}

/// A stripe that was sent again leaves shards of the first attempt under a blob that goes on to be named. They are
/// garbage, and nobody collects them before the object is deleted.
#[tokio::test]
#[ignore = "known gap: shards of a failed stripe stay under a named blob until it is deleted"]
async fn a_failed_stripe_leaves_no_shards() {
    let world = World::new("rs(4,2)", 7).await;
    for n in [2, 5] {
        world.fault(
            n,
            Faults {
                put: Some(io()),
                puts_before: 1,
                ..Default::default()
            },
        );
    }
    world.put("object", &content(1, 13 << 20)).await.unwrap();
    let world = collect_when_well(world).await;
    world.census().await.assert_clean();
}

/// The same, and after the object is deleted nothing is left of either attempt.
#[tokio::test]
async fn a_failed_stripe_goes_with_its_object() {
    let world = World::new("rs(4,2)", 7).await;
    for n in [2, 5] {
        world.fault(
            n,
            Faults {
                put: Some(io()),
                puts_before: 1,
                ..Default::default()
            },
        );
    }
    world.put("object", &content(1, 13 << 20)).await.unwrap();
    world.delete("object").await.unwrap();
    let world = collect_when_well(world).await;
    world.census().await.assert_clean();
    assert_eq!(world.cluster.node.shard_count(), 0);
}

/// Width shrinks, parity never.
#[tokio::test]
async fn width_shrinks_with_the_disks_and_parity_does_not() {
    let world = World::new("rs(4,2)", 6).await;
    for (gone, scheme) in [(0, "rs(4,2)"), (1, "rs(3,2)"), (2, "rs(2,2)"), (3, "replica(3)")] {
        let away: Vec<usize> = (0..gone).collect();
        world.lose(&away).await;
        let bytes = content(gone as u64, 7 << 20);
        let before = world.census().await.schemes.get(scheme).copied().unwrap_or(0);
        world.put(scheme, &bytes).await.unwrap();
        world.put("small", &content(1, 100)).await.unwrap();
        world.collect().await;
        let census = world.census().await;
        assert!(census.schemes[scheme] > before, "{scheme}: {census:?}");
        assert!(census.missing.is_empty(), "{census:?}");
        // Two further losses among those that are left.
        for a in gone..6 {
            for b in a + 1..6 {
                world.lose(&[a, b]).await;
                assert!(
                    world.get(scheme).await.unwrap() == bytes,
                    "{scheme} without {a} and {b}"
                );
                assert!(world.get("small").await.unwrap() == content(1, 100));
                world.heal().await;
                world.lose(&away).await;
            }
        }
        world.heal().await;
    }
    world.lose(&[0, 1, 2, 3]).await;
    for size in [1, 100_000, 7 << 20] {
        let refused = world.put("refused", &content(1, size)).await;
        assert!(
            matches!(
                refused,
                Err(Error::TooFewDomains {
                    healthy: 2,
                    needed: 3
                })
            ),
            "{refused:?}"
        );
    }
    assert!(matches!(world.get("refused").await, Err(Error::NoSuchKey)));
    world.heal().await;
    world.put("accepted", &content(1, 100_000)).await.unwrap();
    world.collect().await;
    world.census().await.assert_clean();
}

/// Disks go one after the other while one object is written: from rs(4,2) down to replica(3), every stripe whole.
#[tokio::test]
async fn an_upload_survives_disks_going_one_by_one() {
    let world = World::new("rs(4,2)", 6).await;
    for (n, puts_before) in [(0, 2), (1, 4), (2, 6)] {
        world.fault(
            n,
            Faults {
                put: Some(fenced()),
                puts_before,
                ..Default::default()
            },
        );
    }
    let bytes = content(1, 40 << 20);
    world.put("object", &bytes).await.unwrap();
    for n in 0..3 {
        world.fault(n, Faults::default());
    }
    world.poll().await;
    world.collect().await;
    assert!(world.get("object").await.unwrap() == bytes);
    let census = world.census().await;
    census.assert_whole();
    assert_eq!(census.schemes.len(), 4, "{census:?}");
}

/// A body in pieces of a megabyte; before the tenth, when at least one stripe is durable, something happens to each disk.
fn interrupted(world: &World, bytes: &Bytes, mut harm: impl FnMut(&mut MemoryDisk) + Send + 'static) -> Body {
    let (node, bytes) = (world.cluster.node.clone(), bytes.clone());
    let pieces = futures::stream::iter(0..bytes.len().div_ceil(1 << 20)).map(move |piece| {
        if piece == 9 {
            node.each(|_, disk| harm(disk));
        }
        let start = piece << 20;
        Ok(bytes.slice(start..bytes.len().min(start + (1 << 20))))
    });
    Box::pin(pieces)
}

/// With disks enough for the full width the blob ends where it is durable, and the upload goes on in another volume like it.
#[tokio::test]
async fn an_upload_goes_on_in_another_volume() {
    let world = World::new("rs(4,2)", 9).await;
    let bytes = content(1, 30 << 20);
    let mut is_first = true;
    let body = interrupted(&world, &bytes, move |disk| {
        if is_first && disk.shards().next().is_some() {
            disk.faults.put = Some(io());
            is_first = false;
        }
    });
    world.put_body("object", body).await.unwrap();
    let head = world
        .objects
        .head(BUCKET, "object", Wanted::All, &Default::default())
        .await;
    let blobs = head.unwrap().row.blobs;
    assert_eq!(blobs.len(), 2, "{blobs:?}");
    assert!(
        blobs[0].volume != blobs[1].volume && blobs[0].length >= 4 << 20,
        "{blobs:?}"
    );
    assert_eq!(world.objects.metrics.rewritten_stripes.get(), 1);
    assert!(world.get("object").await.unwrap() == bytes);
    let census = world.census().await;
    census.assert_whole();
    assert_eq!(census.schemes.keys().collect::<Vec<_>>(), ["rs(4,2)"]);
}

/// With fewer domains than the parity needs an upload is refused in the middle, names nothing, and reads go on.
#[tokio::test(start_paused = true)]
async fn an_upload_that_runs_out_of_disks_is_refused() {
    let world = World::new("rs(4,2)", 6).await;
    let bytes = content(1, 30 << 20);
    world.put("before", &bytes).await.unwrap();
    let mut left = 4;
    let body = interrupted(&world, &bytes, move |disk| {
        if left > 0 {
            disk.faults.put = Some(io());
            left -= 1;
        }
    });
    let refused = world.put_body("object", body).await;
    assert!(
        matches!(refused, Err(Error::WriteFailed(_) | Error::TooFewDomains { .. })),
        "{refused:?}"
    );
    assert!(matches!(world.get("object").await, Err(Error::NoSuchKey)));
    assert!(world.get("before").await.unwrap() == bytes);
    let refused = world.put("another", &content(2, 100)).await;
    assert!(
        matches!(
            refused,
            Err(Error::TooFewDomains {
                healthy: 2,
                needed: 3
            } | Error::WriteFailed(_))
        ),
        "{refused:?}"
    );
    world.heal().await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    world.put("object", &bytes).await.unwrap();
    world.collect().await;
    world.census().await.assert_clean();
}

#[tokio::test]
async fn full_disks_are_storage_full() {
    let world = World::new("rs(4,2)", 6).await;
    world.put("before", &content(1, 100_000)).await.unwrap();
    // They say so.
    world.cluster.node.each(|_, disk| disk.capacity = 1 << 20);
    world.poll().await;
    for size in [1, 100_000, 9 << 20] {
        let refused = world.put("refused", &content(1, size)).await;
        assert!(matches!(refused, Err(Error::StorageFull)), "{refused:?}");
    }
    world.cluster.node.each(|_, disk| disk.capacity = 64 << 20);
    world.poll().await;
    // They fill up on the way.
    let refused = world.put("refused", &content(1, 300 << 20)).await;
    assert!(matches!(refused, Err(Error::StorageFull)), "{refused:?}");
    // And a delete makes room again.
    world.delete("before").await.unwrap();
    world.poll().await;
    world.collect().await;
    world.poll().await;
    world.put("after", &content(1, 100_000)).await.unwrap();
    world.census().await.assert_clean();
}

/// Disks that say there is room and then have none: the client must still hear that they are full.
#[tokio::test]
async fn disks_that_are_fuller_than_they_say_are_storage_full() {
    let world = World::new("rs(4,2)", 6).await;
    world
        .cluster
        .node
        .each(|_, disk| disk.faults.put = Some(NodeError::NoSpace));
    let refused = world.put("refused", &content(1, 1 << 20)).await;
    assert!(matches!(refused, Err(Error::StorageFull)), "{refused:?}");
    world.heal().await;
    world.collect().await;
    world.census().await.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn overloaded_disks_are_slow_down_and_then_well() {
    let world = World::new("rs(4,2)", 6).await;
    world
        .cluster
        .node
        .each(|_, disk| disk.faults.put = Some(NodeError::Overloaded));
    let refused = world.put("refused", &content(1, 5 << 20)).await;
    assert!(matches!(refused, Err(Error::SlowDown)), "{refused:?}");
    world.cluster.node.each(|_, disk| disk.faults = Faults::default());
    world.put("accepted", &content(1, 5 << 20)).await.unwrap();
    world.collect().await;
    world.census().await.assert_clean();
}

/// A disk that hangs is given up at the deadline; the next upload does not wait for it again.
#[tokio::test(start_paused = true)]
async fn a_hanging_disk_is_given_up() {
    let world = World::new("rs(4,2)", 6).await;
    world.fault(
        3,
        Faults {
            put_delay: Duration::from_secs(3600),
            ..Default::default()
        },
    );
    let bytes = content(1, 9 << 20);
    let started = tokio::time::Instant::now();
    world.put("first", &bytes).await.unwrap();
    assert!(
        started.elapsed() < Duration::from_secs(11),
        "{:?}",
        started.elapsed()
    );
    let started = tokio::time::Instant::now();
    world.put("second", &bytes).await.unwrap();
    assert!(
        started.elapsed() < Duration::from_secs(1),
        "{:?}",
        started.elapsed()
    );
    assert!(world.get("first").await.unwrap() == bytes);
    tokio::time::resume();
    let world = collect_when_well(world).await;
    world.census().await.assert_whole();
}

/// A volume that is full is sealed, and new blobs go elsewhere.
#[tokio::test]
async fn full_volumes_are_sealed() {
    use gateway::maintenance::{sealing::Sealing, worker::Worker};
    let world = World::new("rs(4,2)", 6).await;
    world.cluster.node.each(|_, disk| disk.capacity = 128 << 20);
    world.poll().await;
    let bytes = content(1, 17 << 20);
    for n in 0..4 {
        world.put(&n.to_string(), &bytes).await.unwrap();
        Sealing {
            objects: world.objects.clone(),
        }
        .step()
        .await
        .unwrap();
    }
    let sealed = |v: &std::sync::Arc<gateway::placement::volumes::Volume>| {
        v.state == gateway::ledger::model::VolumeState::Sealed
    };
    assert_eq!(
        world.objects.volumes.all().iter().filter(|v| sealed(v)).count(),
        4
    );
    for n in 0..4 {
        assert!(world.get(&n.to_string()).await.unwrap() == bytes);
    }
    world.census().await.assert_clean();
}
