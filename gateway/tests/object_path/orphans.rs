//! A gateway that dies: what it wrote and did not name is found and set aside, then deleted, what it named stays. One that ends
//! in order leaves nothing to look for, and one that lives for long retires its ranges of ids.

use crate::census::take;
use crate::support::cluster::{BUCKET, Cluster, World};
use crate::support::content::{body, content, stalled};
use crate::support::memory_node::Faults;
use ec_core::Kernel;
use gateway::clock::SystemClock;
use gateway::ledger::model::{KeepRow, UnnamedRow, UnnamedWhy};
use gateway::ledger::{CommitBuilder, key};
use gateway::maintenance::worker::Step;
use gateway::object::put::Expected;
use gateway::s3::{S3Settings, StaticKeys};
use gateway::server::{Gateway, GatewayConfig, Listeners};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

/// One whose time can stand still.
fn living() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// A gateway that stored `named` and, when its process was killed, had three more uploads under way.
fn crashed(named: &[(String, usize)]) -> Cluster {
    let runtime = runtime();
    let cluster = runtime.block_on(async {
        let world = World::new("rs(4,2)", 6).await;
        for (name, size) in named {
            world.put(name, &content(*size as u64, *size)).await.unwrap();
        }
        let before = world.cluster.node.shard_count();
        for size in [9 << 20, 13 << 20] {
            let objects = world.objects.clone();
            let body = stalled(&content(1, size));
            tokio::spawn(async move {
                objects
                    .put(
                        BUCKET,
                        "lost",
                        body,
                        Expected::default(),
                        Default::default(),
                        Default::default(),
                    )
                    .await
            });
        }
        let upload = world
            .objects
            .create_upload(BUCKET, "lost", Default::default(), None, false)
            .await
            .unwrap();
        let target = gateway::object::multipart::UploadTarget {
            bucket: BUCKET.into(),
            name: "lost".into(),
            upload,
        };
        world
            .objects
            .put_part(target.clone(), 1, body(&content(2, 100_000)), Expected::default())
            .await
            .unwrap();
        world.objects.abort_upload(&target).await.unwrap();
        while world.cluster.node.shard_count() < before + 6 + 5 * 6 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        world.cluster.clone()
    });
    runtime.shutdown_background();
    cluster
}

/// Lets go of all that is set aside.
async fn collect_unnamed(world: &World) {
    world.keep_no_time(1).await;
    world.collect().await; // What was queued before the crash.
    assert!(take(world).await.set_aside_blobs > 0);
    assert_eq!(world.let_go().await, Step::Worked);
    world.collect().await;
}

fn named() -> Vec<(String, usize)> {
    [0, 1_000, 100_000, 5 << 20]
        .iter()
        .map(|size| (size.to_string(), *size))
        .collect()
}

#[test]
fn what_a_dead_gateway_left_is_deleted_and_what_it_named_stays() {
    let cluster = crashed(&named());
    living().block_on(async {
        assert!(cluster.census().await.unnamed.len() >= 30);
        let world = World::on(cluster, 1 << 30).await;
        world.put("new", &content(7, 100_000)).await.unwrap();
        world.sweep().await.unwrap();
        world.collect().await;
        assert_eq!(world.census().await.id_ranges, 1);
        let aside = world.set_aside().await;
        assert!(aside.iter().all(|(_, row)| row.why() == UnnamedWhy::DeadLease));
        let shards = aside.iter().map(|(_, row)| row.shards).sum::<u64>();
        assert_eq!(shards, world.census().await.unnamed.len() as u64);
        collect_unnamed(&world).await;
        let census = world.census().await;
        census.assert_clean();
        assert_eq!(census.id_ranges, 1, "only this gateway's");
        for (name, size) in named() {
            assert!(world.get(&name).await.unwrap() == content(size as u64, size));
        }
        assert!(world.get("new").await.unwrap() == content(7, 100_000));
    });
}

#[test]
fn a_disk_that_comes_back_later_is_swept_then() {
    let cluster = crashed(&named());
    living().block_on(async {
        cluster.node.fault(
            cluster.disks[2],
            Faults {
                missing: true,
                ..Default::default()
            },
        );
        let world = World::on(cluster, 1 << 30).await;
        world.sweep().await.unwrap();
        world.collect().await;
        let unit_count = |row: &UnnamedRow| row.units.len();
        let aside = world.set_aside().await;
        assert!(!aside.is_empty() && aside.iter().all(|(_, row)| unit_count(row) == 5));
        assert_eq!(world.census().await.id_ranges, 1);
        // Another crash in between changes nothing.
        let world = world.crash().await;
        world.sweep().await.unwrap();
        world.heal().await;
        world.sweep().await.unwrap();
        let aside = world.set_aside().await;
        assert!(aside.iter().all(|(_, row)| unit_count(row) == 6));
        collect_unnamed(&world).await;
        let census = world.census().await;
        census.assert_clean();
        assert_eq!(census.id_ranges, 0);
        for (name, size) in named() {
            assert!(world.get(&name).await.unwrap() == content(size as u64, size));
        }
    });
}

/// One disk that answers its poll and fails every request must not keep the others from being swept.
#[test]
fn a_disk_that_cannot_be_swept_does_not_stop_the_others() {
    let cluster = crashed(&[]);
    living().block_on(async {
        let world = World::on(cluster, 1 << 30).await;
        world.fault(
            0,
            Faults {
                fenced: true,
                ..Faults::default()
            },
        );
        world.sweep().await.unwrap_err();
        let aside = world.set_aside().await;
        assert!(!aside.is_empty() && aside.iter().all(|(_, row)| row.units.len() == 5));
        world.heal().await;
        world.sweep().await.unwrap();
        let aside = world.set_aside().await;
        assert!(aside.iter().all(|(_, row)| row.units.len() == 6));
        collect_unnamed(&world).await;
        world.census().await.assert_clean();
    });
}

/// Many blobs, and ids of the living gateway among them.
#[test]
fn many_orphans_are_deleted_and_nothing_of_the_living() {
    let runtime_of_the_dead = runtime();
    let cluster = runtime_of_the_dead.block_on(async {
        let world = World::new("replica(3)", 3).await;
        for n in 0..900 {
            world.put(&n.to_string(), &content(n, 10)).await.unwrap();
        }
        // As if no row had been written.
        let mut commit = gateway::ledger::CommitBuilder::new();
        for table in [b'o', b'B', b'e'] {
            let rows = world.cluster.ledger();
            let keys = gateway::ledger::store::Store::scan(
                &*world.cluster.store,
                gateway::ledger::key::table(table),
                10_000,
                gateway::ledger::store::Direction::Forward,
            );
            for row in keys.await.unwrap() {
                commit = commit.delete(row.key);
            }
            drop(rows);
        }
        world.cluster.ledger().commit(commit.build()).await.unwrap();
        world.cluster.clone()
    });
    runtime_of_the_dead.shutdown_background();
    living().block_on(async {
        let world = World::on(cluster, 1 << 30).await;
        assert_eq!(world.census().await.unnamed.len(), 2_700);
        // An upload in progress of this gateway: unnamed, and none of the sweep's business.
        world
            .cluster
            .node
            .each(|_, d| d.faults.put_delay = Duration::from_millis(20));
        let bytes = content(1, 9 << 20);
        let (put, _) = tokio::join!(world.put("alive", &bytes), async {
            for _ in 0..5 {
                world.sweep().await.unwrap();
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        put.unwrap();
        assert!(world.get("alive").await.unwrap() == bytes);
        assert_eq!(world.objects.metrics.orphan_blobs.get(), 900);
        collect_unnamed(&world).await;
        assert!(world.get("alive").await.unwrap() == bytes);
        world.census().await.assert_clean();
    });
}

pub fn config(cluster: &Cluster) -> GatewayConfig {
    GatewayConfig {
        name: "test".into(),
        scheme: cluster.scheme,
        kernel: Kernel::from_environment().unwrap(),
        memory_bytes: 256 << 20,
        cache_bytes: 0,
        rebuild_floor: gateway::maintenance::rebuild::pace::FLOOR,
        grace: std::time::Duration::from_secs(600),
        census_cycle: GatewayConfig::CENSUS_CYCLE,
        sync_archive: false,
        identity: Default::default(),
    }
}

fn settings() -> S3Settings {
    S3Settings {
        keys: StaticKeys {
            access_key: "a".into(),
            secret_key: "b".into(),
        },
        region: S3Settings::REGION.into(),
        domains: Vec::new(),
    }
}

/// The whole gateway with its workers: it crashes, the next one cleans up by itself, ends in order, and leaves no range.
#[test]
fn a_whole_gateway_cleans_up_by_itself_and_gives_its_lease_back() {
    let cluster = crashed(&named());
    runtime().block_on(async {
        let clock = Arc::new(SystemClock);
        let keep = KeepRow {
            keep_s: Some(0),
            censuses: Some(1),
            ..KeepRow::default()
        };
        let commit = CommitBuilder::new().put(key::keep(), &keep).build();
        cluster.ledger().commit(commit).await.unwrap();
        let gateway = Gateway::start(&config(&cluster), cluster.ledger(), cluster.nodes(), clock)
            .await
            .unwrap();
        let objects = gateway.objects.clone();
        for n in 0..5 {
            let bytes = content(n, 100_000);
            let put = objects.put(
                BUCKET,
                "again",
                body(&bytes),
                Expected::default(),
                Default::default(),
                Default::default(),
            );
            put.await.unwrap();
        }
        let deadline = tokio::time::Instant::now() + Duration::from_secs(40);
        loop {
            let census = cluster.census().await;
            if census.unnamed.is_empty() && census.garbage == 0 && census.id_ranges == 1 {
                census.assert_clean();
                break;
            }
            let scrub = objects.scrub_row().await.unwrap();
            let summary = objects.unnamed.summary();
            assert!(
                tokio::time::Instant::now() < deadline,
                "{census:#?} {scrub:?} {summary:?}"
            );
            if !scrub.at_once && summary.blobs > 0 {
                objects.begin_census(true).await.unwrap(); // By itself it would take a minute.
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // An upload that is cut by the end of the gateway.
        let lost = stalled(&content(1, 5 << 20));
        let before = cluster.node.shard_count();
        let mut put = Box::pin(objects.put(
            BUCKET,
            "cut",
            lost,
            Expected::default(),
            Default::default(),
            Default::default(),
        ));
        let wait = async {
            while cluster.node.shard_count() < before + 6 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            _ = &mut put => panic!("the body does not end"),
            _ = wait => {}
        }
        drop(put);
        let (s3, admin) = (
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
        );
        let listeners = Listeners {
            s3,
            admin,
            join: None,
        };
        gateway.serve(settings(), listeners, async {}).await.unwrap();
        assert_eq!(
            cluster.census().await.id_ranges,
            0,
            "the lease was given back with its ranges"
        );
        drop(objects);
        // The next one has nothing to sweep, only the queue to work off.
        let world = World::on(cluster, 1 << 30).await;
        world.collect().await;
        world.census().await.assert_clean();
        assert!(world.get("again").await.unwrap() == content(4, 100_000));
    });
}
