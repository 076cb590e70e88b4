//! A disk that answers wrongly, late or never, while its node says that all is well: clients get the right bytes in time, the
//! disk is named with what it did, gets no new writes, and is trusted again when it behaves.

use crate::support::cluster::{BUCKET, World};
use crate::support::content::content;
use crate::support::memory_node::{Faults, Lie};
use gateway::admin::verdict::Level;
use gateway::cluster::conduct::Wrong;
use gateway::cluster::disks::Health;
use gateway::error::Error;
use gateway::ledger::model::BlobRef;
use gateway::maintenance::rebuild::RebuildStatus;
use gateway::maintenance::worker::Step;
use gateway::object::get::Wanted;
use std::time::Duration;
use storage_node::protocol::NodeError;
use tokio::time::Instant;

const SIZES: [usize; 3] = [9_000, 300_000, 5 << 20];
/// Objects of each size: enough that every disk holds what is read first of some of them.
const OBJECTS: u64 = 12;

async fn filled() -> World {
    let world = World::new("rs(4,2)", 6).await;
    for size in SIZES {
        for n in 0..OBJECTS {
            let name = format!("{size}-{n}");
            world.put(&name, &content(n, size)).await.unwrap();
        }
    }
    world
}

/// A disk that large objects are read from: it has a data shard of each.
fn data_disk(world: &World) -> usize {
    let volumes = world.objects.volumes.all();
    let volume = volumes.iter().find(|v| v.scheme == world.cluster.scheme).unwrap();
    (0..6).find(|&n| world.disk(n) == volume.disks[0]).unwrap()
}

/// Reads everything, and says how long the slowest took.
async fn read_all(world: &World, what: &str) -> Duration {
    let mut slowest = Duration::ZERO;
    for size in SIZES {
        for n in 0..OBJECTS {
            let started = Instant::now();
            let read = world.get(&format!("{size}-{n}")).await;
            let read = read.unwrap_or_else(|e| panic!("{what}: {size}-{n}: {e}"));
            assert!(read == content(n, size), "{what}: {size}-{n}");
            slowest = slowest.max(started.elapsed());
        }
    }
    slowest
}

/// The first blob of an object.
async fn blob_of(world: &World, name: &str) -> BlobRef {
    let conditions = Default::default();
    let head = world.objects.head(BUCKET, name, Wanted::All, &conditions).await;
    head.unwrap().row.blobs[0]
}

fn lying(lie: Lie) -> Faults {
    Faults {
        lie: Some(lie),
        ..Faults::default()
    }
}

fn failing(get: NodeError) -> Faults {
    Faults {
        get: Some(get),
        ..Faults::default()
    }
}

fn counts(world: &World, disk: usize) -> Vec<(Wrong, u64)> {
    let disk = world.objects.disks.get(world.disk(disk)).unwrap();
    disk.conduct.wrong_seen().counts
}

async fn status(world: &World) -> gateway::admin::status::Status {
    gateway::admin::status::status(&world.objects, Vec::new(), RebuildStatus::default())
        .await
        .unwrap()
}

/// Every wrong answer to a read, typed; nobody waits long, and the disk is suspect although its node says otherwise.
#[tokio::test(start_paused = true)]
async fn wrong_answers_cost_nothing_and_name_the_disk() {
    let what = || "a test".to_string();
    for (faults, kind) in [
        (lying(Lie::OtherBytes), Wrong::Bytes),
        (lying(Lie::OtherShard), Wrong::Forged),
        (lying(Lie::Forgery), Wrong::Forged),
        (lying(Lie::Truncated), Wrong::Shape),
        (lying(Lie::Garbage), Wrong::Garbled),
        (lying(Lie::Epoch), Wrong::Refused),
        (failing(NodeError::Corrupt { what: what() }), Wrong::Damaged),
        (failing(NodeError::Io { what: what() }), Wrong::Unreadable),
        (failing(NodeError::BadRequest { what: what() }), Wrong::Refused),
    ] {
        let world = filled().await;
        let liar = data_disk(&world);
        world.fault(liar, faults);
        let slowest = read_all(&world, kind.word()).await;
        assert!(slowest < Duration::from_secs(1), "{kind:?}: {slowest:?}");
        let seen = counts(&world, liar);
        assert!(
            seen.iter().any(|(k, n)| *k == kind && *n >= 8),
            "{kind:?}: {seen:?}"
        );
        assert!((0..6).all(|n| n == liar || counts(&world, n).is_empty()));
        // Most reads went around it.
        let wrong: u64 = seen.iter().map(|(_, n)| n).sum();
        assert!(wrong < 30, "{kind:?}: {seen:?}");
        world.poll().await;
        let disk = world.objects.disks.get(world.disk(liar)).unwrap();
        assert_eq!(disk.health, Health::Online, "{kind:?}: its node says so");
        assert!(matches!(disk.standing(), Health::Suspect(_)), "{kind:?}");
        assert!(!disk.writable(), "{kind:?}");
        let status = status(&world).await;
        let line = status.disks.iter().find(|line| line.label == disk.label).unwrap();
        assert_eq!(line.state, "suspect");
        let volumes = world.objects.volumes.all();
        let mut units = volumes
            .iter()
            .flat_map(|volume| world.objects.volume_detail(volume).units);
        assert_eq!(
            units.find(|unit| unit.disk == disk.label).unwrap().state,
            "suspect"
        );
        assert_eq!(line.wrong_answers.values().sum::<u64>(), wrong);
        assert!(line.last_wrong.is_some() && !status.healthy && status.degraded.disks == 1);
        // It is used again once it behaves, and what it was caught with is forgotten by nobody.
        world.heal().await;
        tokio::time::sleep(Duration::from_secs(6)).await;
        read_all(&world, "well again").await;
        assert_eq!(disk.standing(), Health::Online, "{kind:?}");
        assert!(disk.writable() && counts(&world, liar) == seen, "{kind:?}");
        while world.repair().await == Step::Worked {}
        world.census().await.assert_clean();
    }
}

/// What a disk lacks is read from others, counted and repaired. It says nothing of whether the disk can write.
#[tokio::test(start_paused = true)]
async fn a_disk_that_lacks_shards_is_not_suspect() {
    let world = filled().await;
    let disk = data_disk(&world);
    world.fault(disk, failing(NodeError::NotFound));
    let spent = world.objects.metrics.retries.get();
    for _ in 0..4 {
        let slowest = read_all(&world, "missing").await;
        assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    }
    assert_eq!(
        world.objects.metrics.retries.get(),
        spent,
        "decoding at once costs no retry"
    );
    let seen = counts(&world, disk);
    assert!(
        seen.iter().any(|(k, n)| *k == Wrong::Missing && *n >= 8),
        "{seen:?}"
    );
    let known = world.objects.disks.get(world.disk(disk)).unwrap();
    assert!(known.writable() && known.standing() == Health::Online);
    let status = status(&world).await;
    assert!(status.queued.suspect_shards >= 8 && status.degraded.disks == 0);
    assert!(!status.healthy && status.write_scheme.as_deref() == Some("rs(4,2)"));
    world.heal().await;
    while world.repair().await == Step::Worked {}
    world.census().await.assert_clean();
}

/// An object whose shards are gone, read again and again, stops nothing else, and shows in the status.
#[tokio::test(start_paused = true)]
async fn a_lost_object_costs_no_writes() {
    let world = filled().await;
    let bytes = content(77, 300_000);
    world.put("lost", &bytes).await.unwrap();
    let lost = blob_of(&world, "lost").await.blob;
    world.cluster.node.each(|_, disk| {
        for unit in disk.units.values_mut() {
            unit.shards.retain(|key, _| key.blob != lost);
        }
    });
    for n in 0..100 {
        let read = world.get("lost").await;
        assert!(
            matches!(read, Err(Error::Unreadable { .. })),
            "{n}: {:?}",
            read.map(|b| b.len())
        );
        if n % 10 == 0 {
            world.put(&format!("new-{n}"), &bytes).await.unwrap();
        }
    }
    for disk in world.objects.disks.all().iter() {
        assert_eq!(disk.standing(), Health::Online, "{}", disk.label);
        assert!(disk.writable(), "{}", disk.label);
    }
    read_all(&world, "the others").await;
    assert_eq!(status(&world).await.write_scheme.as_deref(), Some("rs(4,2)"));
    // Repair finds that it cannot be read, and that it was deleted.
    world.repair().await;
    let seen = status(&world).await;
    assert_eq!(
        (seen.degraded.unreadable_blobs, seen.degraded.unreadable_volumes),
        (1, 1)
    );
    assert_eq!(seen.degraded.unreadable_first, Some(format!("{BUCKET}/lost")));
    assert!(
        seen.verdict.level == Level::Loss && seen.verdict.words.contains("1 blob"),
        "{:?}",
        seen.verdict
    );
    assert_eq!(
        world
            .objects
            .disks
            .all()
            .iter()
            .filter(|disk| !disk.writable())
            .count(),
        0
    );
    world.delete("lost").await.unwrap();
    world.collect().await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    while world.repair().await == Step::Worked {}
    let seen = status(&world).await;
    assert_eq!(
        (seen.degraded.unreadable_blobs, seen.verdict.level),
        (0, Level::Ok),
        "{:?}",
        seen.verdict
    );
}

/// Reads that are wrong everywhere steer no write away: there is no better disk to go to. Nor do writes that failed a moment ago,
/// when all did.
#[tokio::test(start_paused = true)]
async fn suspects_take_writes_when_nobody_else_can() {
    let world = filled().await;
    for disk in 0..6 {
        world.fault(disk, lying(Lie::OtherBytes));
    }
    let disks = world.objects.disks.all();
    let suspects = || disks.iter().filter(|disk| !disk.writable()).count();
    // Which disks a read asks is not always the same: one round does not always convict enough of them.
    for n in 0..10 * OBJECTS {
        if suspects() > 3 {
            break;
        }
        let _lies = world.get(&format!("300000-{}", n % OBJECTS)).await;
    }
    assert!(suspects() > 3);
    world.put("while all lie", &content(1, 300_000)).await.unwrap();
    assert!(status(&world).await.write_scheme.is_some());

    let io = || NodeError::Io { what: "EIO".into() };
    for disk in 0..6 {
        let put = Some(io());
        world.fault(
            disk,
            Faults {
                put,
                ..Faults::default()
            },
        );
    }
    for n in 0..20 {
        let refused = world.put(&format!("refused-{n}"), &content(n, 300_000)).await;
        assert!(refused.is_err());
    }
    assert!(disks.iter().filter(|disk| !disk.writable()).count() > 3);
    world.heal().await;
    world.put("all well", &content(2, 300_000)).await.unwrap();
    assert!(world.get("all well").await.unwrap() == content(2, 300_000));

    // One disk that is suspect is gone around while there are others.
    tokio::time::sleep(Duration::from_secs(600)).await;
    let world = filled().await;
    let liar = data_disk(&world);
    world.fault(liar, lying(Lie::OtherBytes));
    read_all(&world, "one lies").await;
    world.put("around", &content(3, 300_000)).await.unwrap();
    let volume = blob_of(&world, "around").await.volume;
    let volume = world.objects.volumes.get(volume).await.unwrap();
    assert!(!volume.disks.contains(&world.disk(liar)), "{volume:?}");
}

/// Late, never, refused or cut off: reads and writes end in time, whichever it is.
#[tokio::test(start_paused = true)]
async fn a_disk_that_is_late_or_gone_delays_nobody_for_long() {
    let hang = Duration::from_secs(3600);
    let unreachable = NodeError::Unreachable {
        what: "a test".into(),
    };
    let slow = |get_delay, put_delay| Faults {
        get_delay,
        put_delay,
        ..Faults::default()
    };
    let second = Duration::from_secs(1);
    for (what, faults) in [
        ("late", slow(second, second)),
        ("never", slow(hang, hang)),
        (
            "unreachable",
            Faults {
                put: Some(unreachable.clone()),
                ..failing(unreachable)
            },
        ),
        (
            "timed out",
            Faults {
                put: Some(NodeError::Timeout),
                ..failing(NodeError::Timeout)
            },
        ),
    ] {
        let world = filled().await;
        world.fault(data_disk(&world), faults);
        let slowest = read_all(&world, what).await;
        assert!(slowest < second, "{what}: {slowest:?}");
        let mut waited = Duration::ZERO;
        for n in 0..30 {
            let started = Instant::now();
            let bytes = content(n, 5 << 20);
            world.put(&format!("new-{n}"), &bytes).await.unwrap();
            let took = started.elapsed();
            waited += took;
            // The first time it is given up soon. After that it gets the longest time, and seldom.
            let most = if n == 0 { 3 } else { 11 };
            assert!(took < second * most, "{what}, {n}: {took:?}");
            assert!(world.get(&format!("new-{n}")).await.unwrap() == bytes, "{what}");
            tokio::time::sleep(second).await;
        }
        // A write that is late and arrives is waited for each time.
        assert!(what == "late" || waited < second * 45, "{what}: {waited:?}");
    }
}

/// A disk whose answers take a little longer than they did is raced by a decode at its own pace, not after a fixed time.
#[tokio::test(start_paused = true)]
async fn hedges_follow_what_the_disk_took_before() {
    let world = filled().await;
    for _ in 0..10 {
        read_all(&world, "prompt").await;
    }
    let hedged = world.objects.metrics.hedged_reads.get();
    let get_delay = Duration::from_millis(150);
    world.fault(
        data_disk(&world),
        Faults {
            get_delay,
            ..Faults::default()
        },
    );
    let slowest = read_all(&world, "a little late").await;
    assert!(slowest < Duration::from_millis(100), "{slowest:?}");
    assert!(world.objects.metrics.hedged_reads.get() > hedged);
}

/// Where all disks are slow nobody is any better, and reading several shards for one would make it worse.
#[tokio::test(start_paused = true)]
async fn when_all_disks_are_slow_nothing_is_decoded() {
    let world = filled().await;
    for n in 0..6 {
        let get_delay = Duration::from_millis(600);
        world.fault(
            n,
            Faults {
                get_delay,
                ..Faults::default()
            },
        );
    }
    read_all(&world, "all slow").await;
    let gets = || {
        let mut gets = 0;
        world.cluster.node.each(|_, disk| gets += disk.gets);
        gets
    };
    let before = gets();
    let slowest = read_all(&world, "all slow").await;
    // What is there to read: one copy of the small ones, four shards of the others.
    let needed: u64 = OBJECTS * (1 + 4 + 8);
    let asked = gets() - before;
    assert!(asked <= needed * 3 / 2, "{asked} reads for {needed}");
    assert!(slowest < Duration::from_secs(3), "{slowest:?}");
}

/// Puts that are acknowledged and not stored are found by reads. Repair writes such shards a few times, not for ever, and
/// says so; it mends them when the disk keeps what it is given.
#[tokio::test(start_paused = true)]
async fn a_disk_that_forgets_is_not_written_to_for_ever() {
    let world = World::new("rs(4,2)", 6).await;
    world.put("first", &content(9, 1 << 20)).await.unwrap();
    let liar = data_disk(&world);
    world.fault(liar, lying(Lie::Forgets));
    for n in 0..8 {
        world.put(&n.to_string(), &content(n, 1 << 20)).await.unwrap();
    }
    for n in 0..8 {
        assert!(world.get(&n.to_string()).await.unwrap() == content(n, 1 << 20));
    }
    let before = world.cluster.node.with(world.disk(liar), |disk| disk.puts);
    let (mut attempts, started) = (0, Instant::now());
    while started.elapsed() < Duration::from_secs(3600) {
        world.repair().await;
        attempts += 1;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let written = world.cluster.node.with(world.disk(liar), |disk| disk.puts) - before;
    let suspects = world.census().await.suspects as u64;
    assert!(suspects > 0 && attempts > 7_000);
    assert!(
        written <= suspects * 20,
        "{written} puts of {suspects} shards in an hour"
    );
    let seen = counts(&world, liar);
    assert!(seen.iter().any(|(kind, _)| *kind == Wrong::Unkept), "{seen:?}");
    let queued = status(&world).await.queued;
    assert_eq!(queued.repairs_in_vain as u64, suspects);
    assert!(queued.repair_failure.unwrap().contains("not read back right"));
    world.heal().await;
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_secs(600)).await;
        // What was never read is found now.
        for n in 0..8 {
            assert!(world.get(&n.to_string()).await.unwrap() == content(n, 1 << 20));
        }
        while world.repair().await == Step::Worked {}
    }
    world.census().await.assert_clean();
    assert_eq!(status(&world).await.queued.repairs_in_vain, 0);
}

/// Digest tables that lie mislead no repair.
#[tokio::test]
async fn lying_digests_do_not_poison_a_repair() {
    let world = World::new("rs(4,2)", 6).await;
    let bytes = content(1, 3 << 20);
    world.put("object", &bytes).await.unwrap();
    let volumes = world.objects.volumes.all();
    let volume = volumes.iter().find(|v| v.scheme == world.cluster.scheme).unwrap();
    let disk_of = |index: usize| (0..6).find(|&n| world.disk(n) == volume.disks[index]).unwrap();
    world.fault(disk_of(1), lying(Lie::Digests));
    world.cluster.node.with(world.disk(disk_of(0)), |disk| {
        disk.units.values_mut().for_each(|unit| unit.shards.clear());
    });
    assert!(world.get("object").await.unwrap() == bytes);
    while world.repair().await == Step::Worked {}
    assert!(
        counts(&world, disk_of(1))
            .iter()
            .any(|(kind, _)| *kind == Wrong::Digests)
    );
    world.heal().await;
    while world.repair().await == Step::Worked {}
    world.census().await.assert_clean();
}

/// When more fails than may be tried again, clients are told to slow down: failures do not multiply the load.
#[tokio::test(start_paused = true)]
async fn retries_are_bounded() {
    let world = World::new("rs(4,2)", 6).await;
    world.put("object", &content(1, 5 << 20)).await.unwrap();
    while world.objects.retries.spend() {}
    world
        .cluster
        .node
        .each(|_, disk| disk.faults.put = Some(NodeError::Io { what: "EIO".into() }));
    let refused = world.put("refused", &content(2, 5 << 20)).await;
    assert!(matches!(refused, Err(Error::SlowDown)), "{refused:?}");
    assert!(world.objects.metrics.refused_retries.get() > 0);
    // The same for a read whose disk fails; one that works needs no budget.
    world.cluster.node.each(|_, disk| disk.faults = Faults::default());
    assert!(world.get("object").await.unwrap() == content(1, 5 << 20));
    while world.objects.retries.spend() {}
    world.cluster.node.each(|_, disk| {
        disk.faults.get = Some(NodeError::Overloaded); // Which is held against no disk.
    });
    let _may_be_the_last = world.get("object").await; // The write and the read earned a little.
    let refused = world.get("object").await;
    assert!(
        matches!(refused, Err(Error::SlowDown)),
        "{:?}",
        refused.map(|b| b.len())
    );
    // Requests that succeed earn it back.
    world.heal().await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    for n in 0..20 {
        world.put(&n.to_string(), &content(n, 9_000)).await.unwrap();
    }
    assert!(world.objects.retries.spend());
    world.collect().await;
    world
        .objects
        .delete(BUCKET, "object", Default::default())
        .await
        .unwrap();
}
