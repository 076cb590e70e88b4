//! Many requests on the same keys at once: whatever wins, the ledger and the disks agree afterwards.

use crate::support::cluster::{BUCKET, World};
use crate::support::content::{body, content};
use crate::support::log::Errors;
use crate::support::store::{When, puts};
use gateway::error::Error;
use gateway::ledger::key;
use gateway::ledger::store::{Commit, Direction, Mutation, Store};
use gateway::object::condition::{ETagIs, WriteConditions};
use gateway::object::get::Wanted;
use gateway::object::put::Expected;
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::sync::Arc;
use std::time::Duration;

/// Sixteen clients put, delete, copy and read four keys. Every read is some whole content that was put.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn puts_deletes_copies_and_reads_on_the_same_keys() {
    let world = Arc::new(World::new("rs(4,2)", 6).await);
    let collector = tokio::spawn({
        let world = world.clone();
        async move {
            loop {
                world.collect().await;
                tokio::task::yield_now().await;
            }
        }
    });
    let client = async |world: Arc<World>, client: u64| {
        let mut rng = StdRng::seed_from_u64(client);
        for round in 0..60 {
            let (a, b) = (
                format!("k{}", rng.random_range(0..4)),
                format!("k{}", rng.random_range(0..4)),
            );
            let seed = client * 1_000 + round;
            let outcome = match rng.random_range(0..10) {
                0..4 => world.put(&a, &content(seed, sized(seed))).await.map(drop),
                4..6 => world.delete(&a).await,
                6..8 => world.copy(&a, &b).await.map(drop),
                _ => world
                    .get(&a)
                    .await
                    .map(|bytes| assert!(known(&bytes), "a mix of contents: {}", bytes.len())),
            };
            match outcome {
                Ok(()) | Err(Error::NoSuchKey | Error::Conflict) => {}
                Err(error) => panic!("{error}"),
            }
        }
    };
    let clients: Vec<_> = (0..16).map(|n| tokio::spawn(client(world.clone(), n))).collect();
    for task in clients {
        task.await.unwrap();
    }
    collector.abort();
    let _ = collector.await; // Aborted.
    world.collect().await;
    world.census().await.assert_clean();
    for n in 0..4 {
        match world.get(&format!("k{n}")).await {
            Ok(bytes) => assert!(known(&bytes)),
            Err(error) => assert!(matches!(error, Error::NoSuchKey), "{error}"),
        }
        world.delete(&format!("k{n}")).await.unwrap();
    }
    world.collect().await;
    assert_eq!(world.cluster.node.shard_count(), 0);
}

/// Who loses a race for a key has read rows of two moments. It decides again, and nobody is told of damage.
#[tokio::test]
async fn a_lost_race_is_not_taken_for_damage() {
    let (errors, _listening) = Errors::listen();
    let world = Arc::new(World::new("rs(4,2)", 6).await);
    let client = async |world: Arc<World>, client: u64| {
        for round in 0..40 {
            let outcome = match (client + round) % 3 {
                0 => world.delete("k").await,
                _ => world.put("k", &content(round, 100)).await.map(drop),
            };
            assert!(matches!(outcome, Ok(()) | Err(Error::Conflict)), "{outcome:?}");
        }
    };
    let clients: Vec<_> = (0..8).map(|n| tokio::spawn(client(world.clone(), n))).collect();
    for task in clients {
        task.await.unwrap();
    }
    assert_eq!(errors.said(), Vec::<String>::new());
}

/// The object goes all the same; what is wrong with the ledger is said.
#[tokio::test]
async fn a_named_blob_without_a_row_is_told_when_its_object_goes() {
    let (errors, _listening) = Errors::listen();
    let world = World::new("rs(4,2)", 6).await;
    world.put("k", &content(1, 100)).await.unwrap();
    let rows = &world.cluster.store.rows;
    let blobs = rows.scan(key::table(b'B'), 10, Direction::Forward).await.unwrap();
    let lose = blobs.into_iter().map(|row| Mutation::Delete { key: row.key });
    let lost = Commit {
        preconditions: Vec::new(),
        mutations: lose.collect(),
    };
    assert_eq!(lost.mutations.len(), 1);
    rows.commit(lost).await.unwrap();
    world.delete("k").await.unwrap();
    assert!(matches!(world.get("k").await, Err(Error::NoSuchKey)));
    let said = errors.said();
    assert!(said.len() == 1 && said[0].contains("has no row"), "{said:?}");
}

fn sized(seed: u64) -> usize {
    [10, 5_000, 40_000, 300_000][seed as usize % 4]
}

fn known(bytes: &[u8]) -> bool {
    (0..16).any(|client| {
        (0..60).any(|round| {
            let seed = client * 1_000 + round;
            sized(seed) == bytes.len() && content(seed, bytes.len()) == bytes
        })
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_creators_one_wins() {
    let world = Arc::new(World::new("rs(4,2)", 6).await);
    for round in 0..20 {
        let create = WriteConditions {
            none_match: Some(ETagIs::Any),
            matches: None,
        };
        let name = round.to_string();
        let tasks: Vec<_> = (0..12u64)
            .map(|n| {
                let (world, name, create) = (world.clone(), name.clone(), create.clone());
                tokio::spawn(async move { (n, world.put_if(&name, body(&content(n, 20_000)), create).await) })
            })
            .collect();
        let mut won = Vec::new();
        for task in tasks {
            match task.await.unwrap() {
                (n, Ok(_)) => won.push(n),
                (_, Err(Error::PreconditionFailed)) => {}
                (_, Err(error)) => panic!("{error}"),
            }
        }
        assert_eq!(won.len(), 1, "{won:?}");
        assert!(world.get(&name).await.unwrap() == content(won[0], 20_000));
    }
    world.collect().await;
    world.census().await.assert_clean();
}

/// Compare and swap with If-Match: no update is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn if_match_loses_no_update() {
    let world = Arc::new(World::new("replica(3)", 3).await);
    world.put("counter", &vec![0].into()).await.unwrap();
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let world = world.clone();
            tokio::spawn(async move {
                let mut done = 0;
                while done < 5 {
                    let (found, bytes) = world
                        .objects
                        .get(BUCKET, "counter", Wanted::All, &Default::default())
                        .await
                        .unwrap();
                    let value = crate::support::content::drain(bytes).await.unwrap()[0];
                    let swap = WriteConditions {
                        matches: Some(ETagIs::Tag(found.row.etag)),
                        none_match: None,
                    };
                    match world.put_if("counter", body(&vec![value + 1].into()), swap).await {
                        Ok(_) => done += 1,
                        Err(Error::PreconditionFailed | Error::Conflict) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(world.get("counter").await.unwrap(), [40]);
    world.collect().await;
    world.census().await.assert_clean();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_bucket_is_deleted_or_written_to_and_never_both() {
    let world = Arc::new(World::new("rs(4,2)", 6).await);
    let (mut deleted, mut refused) = (0, 0);
    for round in 0..60u64 {
        let bucket = format!("bucket-{round}");
        world.objects.create_bucket(&bucket).await.unwrap();
        let puts: Vec<_> = (0..3)
            .map(|n| {
                let (world, bucket) = (world.clone(), bucket.clone());
                tokio::spawn(async move {
                    for _ in 0..(round % 4) * n {
                        tokio::task::yield_now().await;
                    }
                    let bytes = content(n, 5_000);
                    world
                        .objects
                        .put(
                            &bucket,
                            &n.to_string(),
                            body(&bytes),
                            Expected::default(),
                            Default::default(),
                            Default::default(),
                        )
                        .await
                        .is_ok()
                })
            })
            .collect();
        let delete = tokio::spawn({
            let (world, bucket) = (world.clone(), bucket.clone());
            async move {
                // The puts go through a thread that hashes, which has its own pace: by turns, and by time.
                match round % 12 {
                    turns @ ..6 => {
                        for _ in 0..turns * 12 {
                            tokio::task::yield_now().await;
                        }
                    }
                    longer => tokio::time::sleep(Duration::from_millis(1 << (longer - 6))).await,
                }
                world.objects.delete_bucket(&bucket).await
            }
        });
        let mut stored = Vec::new();
        for (n, put) in puts.into_iter().enumerate() {
            if put.await.unwrap() {
                stored.push(n);
            }
        }
        match delete.await.unwrap() {
            Ok(()) => {
                deleted += 1;
                assert!(stored.is_empty(), "acknowledged and deleted: {stored:?}");
                assert!(matches!(
                    world.objects.bucket(&bucket).await,
                    Err(Error::NoSuchBucket)
                ));
            }
            Err(Error::BucketNotEmpty | Error::Conflict) => {
                refused += 1;
                for n in stored {
                    let head = world
                        .objects
                        .head(&bucket, &n.to_string(), Wanted::All, &Default::default())
                        .await;
                    assert!(head.is_ok(), "an acknowledged object: {:?}", head.err());
                }
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(
        deleted > 0 && refused > 0,
        "{deleted} deleted, {refused} refused: no race"
    );
    world.collect().await;
    world.census().await.assert_clean();
}

/// The put is in its commit when the bucket is deleted: whichever commit is first decides.
#[tokio::test]
async fn a_put_that_commits_behind_a_bucket_delete_fails() {
    let world = World::new("rs(4,2)", 6).await;
    let mut held = world.cluster.store.hold(When::Before, puts(b'o'));
    let bytes = content(1, 100_000);
    let put = world.put("object", &bytes);
    tokio::pin!(put);
    tokio::select! {
        _ = &mut put => panic!("the commit is held"),
        _ = held.arrived() => {}
    }
    world.objects.delete_bucket(BUCKET).await.unwrap();
    world.objects.create_bucket(BUCKET).await.unwrap();
    held.go_on();
    // The bucket has the same name and is another one; the put may land in it, or fail, but not in the old one.
    let stored = put.await.is_ok();
    world.collect().await;
    assert_eq!(world.get("object").await.is_ok(), stored);
    world.census().await.assert_clean();
}

/// A client that leaves in the middle of DeleteBucket must not leave a bucket that is neither there nor gone.
#[tokio::test]
async fn a_bucket_delete_that_is_cut_off_is_finished_or_undone() {
    let world = World::new("rs(4,2)", 6).await;
    let mut held = world.cluster.store.hold(When::After, puts(b'b'));
    tokio::select! {
        _ = world.objects.delete_bucket(BUCKET) => panic!("the commit is held"),
        _ = held.arrived() => {}
    }
    held.go_on();
    world.objects.gate.empty().await;
    let gone = matches!(world.objects.bucket(BUCKET).await, Err(Error::NoSuchBucket));
    match world.objects.create_bucket(BUCKET).await {
        Ok(()) => assert!(gone),
        Err(Error::BucketAlreadyOwnedByYou) => assert!(!gone),
        Err(error) => panic!("the bucket is neither there nor gone: {error}"),
    }
}

/// An abort by a client at the same time as DeleteBucket aborts the bucket's uploads.
#[tokio::test]
async fn an_abort_during_a_bucket_delete_does_not_stop_it() {
    let world = World::new("rs(4,2)", 6).await;
    let upload = world
        .objects
        .create_upload(BUCKET, "object", Default::default(), None, false)
        .await
        .unwrap();
    let mut held = world
        .cluster
        .store
        .hold(When::Before, crate::support::store::deletes(b'u'));
    let delete = world.objects.delete_bucket(BUCKET);
    tokio::pin!(delete);
    tokio::select! {
        _ = &mut delete => panic!("the commit is held"),
        _ = held.arrived() => {}
    }
    let bucket = 1;
    world
        .objects
        .abort_upload_of(bucket, "object", upload)
        .await
        .unwrap();
    held.go_on();
    delete.await.unwrap();
    world.census().await.assert_clean();
    world.objects.create_bucket(BUCKET).await.unwrap();
}

/// Many overwrites of one key at once all succeed: it is the last writer that wins, not a conflict.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_overwrites_of_one_key_all_succeed() {
    let world = Arc::new(World::new("replica(3)", 3).await);
    let tasks: Vec<_> = (0..100u64)
        .map(|n| {
            let world = world.clone();
            tokio::spawn(async move { world.put("key", &content(n, 100)).await })
        })
        .collect();
    let mut failed = Vec::new();
    for task in tasks {
        if let Err(error) = task.await.unwrap() {
            failed.push(error.to_string());
        }
    }
    world.collect().await;
    world.census().await.assert_clean();
    assert!(failed.is_empty(), "{} of 100: {}", failed.len(), failed[0]);
}

/// Part copies and copies of one object change the row of its blobs, one commit after another: each has its turn.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_copies_of_one_object_all_succeed() {
    let world = Arc::new(World::new("rs(4,2)", 6).await);
    let bytes = content(1, 300_000);
    world.put("source", &bytes).await.unwrap();
    let copier = async |world: Arc<World>, client: u64| {
        for round in 0..20 {
            let copied = world.copy("source", &format!("copy-{client}-{round}")).await;
            copied.unwrap_or_else(|error| panic!("copy {round} of client {client}: {error}"));
        }
    };
    let clients: Vec<_> = (0..48).map(|n| tokio::spawn(copier(world.clone(), n))).collect();
    for task in clients {
        task.await.unwrap();
    }
    assert_eq!(world.get("copy-47-19").await.unwrap(), bytes);
    world.census().await.assert_clean();
}

/// While it is looked whether a bucket is empty, it is there: nobody hears that it is not, and a put waits for what is decided.
#[tokio::test]
async fn a_bucket_is_there_until_it_is_deleted() {
    let world = World::new("rs(4,2)", 6).await;
    let bytes = content(1, 1_000);
    let mut held = world.cluster.store.hold(When::After, puts(b'b'));
    let delete = world.objects.delete_bucket(BUCKET);
    tokio::pin!(delete);
    tokio::select! {
        _ = &mut delete => panic!("the commit is held"),
        _ = held.arrived() => {}
    }
    assert!(world.objects.bucket(BUCKET).await.is_ok());
    let listed = world.objects.list_buckets("", "", 10).await.unwrap();
    assert!(listed.found.iter().any(|bucket| bucket.name == BUCKET));
    assert!(matches!(world.get("object").await, Err(Error::NoSuchKey)));
    let put = world.put("object", &bytes);
    let (deleted, put, ()) = tokio::join!(delete, put, async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        held.go_on();
    });
    deleted.unwrap();
    assert!(matches!(put, Err(Error::NoSuchBucket)), "{put:?}");
    world.collect().await;
    world.census().await.assert_clean();
}
