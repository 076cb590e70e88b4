//! Memory: requests wait for it or are told to slow down, and all of it is given back.

use crate::support::cluster::{BUCKET, World};
use crate::support::content::{broken, content, drain, stalled};
use crate::support::memory_node::Faults;
use gateway::error::Error;
use gateway::object::get::Wanted;
use std::sync::Arc;
use std::time::Duration;

const MIB: usize = 1 << 20;

fn used(world: &World) -> [u64; 3] {
    let budget = &world.objects.budget;
    [
        budget.writes.used_bytes(),
        budget.reads.used_bytes(),
        budget.decode.used_bytes(),
    ]
}

async fn assert_all_given_back(world: &World) {
    wait_until_used(world, [0; 3]).await;
}

async fn wait_until_used(world: &World, wanted: [u64; 3]) {
    for _ in 0..500 {
        if used(world) == wanted {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        std::thread::sleep(Duration::from_millis(1)); // The threads that hash know nothing of a clock that is paused.
    }
    panic!("never {wanted:?}, but {:?}", used(world));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_puts_and_gets_in_little_memory() {
    let world = Arc::new(World::with_memory("rs(4,2)", 6, 16 << 20).await);
    let tasks: Vec<_> = (0..48u64)
        .map(|n| {
            let world = world.clone();
            tokio::spawn(async move {
                let (name, bytes) = (
                    n.to_string(),
                    content(n, [100, 70_000, 5 * MIB, 9 * MIB][n as usize % 4]),
                );
                match world.put(&name, &bytes).await {
                    Ok(_) => {}
                    Err(Error::SlowDown) => return false,
                    Err(error) => panic!("{error}"),
                }
                match world.get(&name).await {
                    Ok(read) => assert!(read == bytes),
                    Err(Error::SlowDown) => {}
                    Err(error) => panic!("{error}"),
                }
                true
            })
        })
        .collect();
    let mut stored = 0;
    for task in tasks {
        stored += task.await.unwrap() as usize;
    }
    assert!(stored >= 12, "{stored} of 48");
    assert_all_given_back(&world).await;
    world.collect().await;
    world.census().await.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn past_the_budget_uploads_are_told_to_slow_down() {
    let world = World::with_memory("rs(4,2)", 6, 32 << 20).await; // 12 MiB that one party may have for writes: two stripes with their parity.
    let bytes = content(1, 10 * MIB);
    let mut stalled: Vec<_> = (0..2)
        .map(|_| Box::pin(world.put_body("stalled", stalled(&bytes))))
        .collect();
    // Their bodies do not end. The threads that hash know nothing of a clock that is paused, so real time passes too.
    for _ in 0..10_000 {
        for put in &mut stalled {
            let _ = tokio::time::timeout(Duration::from_millis(1), put.as_mut()).await;
        }
        if world.objects.budget.writes.used_bytes() >= 12 << 20 {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(world.objects.budget.writes.used_bytes() >= 12 << 20);
    let started = tokio::time::Instant::now();
    assert!(matches!(world.put("refused", &bytes).await, Err(Error::SlowDown)));
    assert!(started.elapsed() >= Duration::from_secs(4));
    drop(stalled);
    world.put("accepted", &bytes).await.unwrap();
    assert_all_given_back(&world).await;
    world.collect().await;
    world.census().await.assert_clean();
}

/// Uploads never hold more than the budget, whatever the bodies do, and failures give it back.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn failures_give_memory_back() {
    let world = Arc::new(World::with_memory("rs(4,2)", 6, 64 << 20).await);
    world
        .cluster
        .node
        .each(|_, d| d.faults.put_delay = Duration::from_millis(2));
    let most = (64 << 20) / 2;
    for round in 0..5 {
        let tasks: Vec<_> = (0..12)
            .map(|n| {
                let world = world.clone();
                tokio::spawn(async move {
                    let bytes = content(n, 9 * MIB);
                    match n % 3 {
                        0 => drop(world.put_body("broken", broken(&bytes)).await),
                        1 => {
                            let put = world.put_body("cut", stalled(&bytes));
                            let _ = tokio::time::timeout(Duration::from_millis(10 * round), put).await;
                        }
                        _ => drop(world.put("right", &bytes).await),
                    }
                    assert!(world.objects.budget.writes.used_bytes() <= most);
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    }
    assert_all_given_back(&world).await;
    world.collect().await;
    world.census().await.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn downloads_hold_memory_until_their_bytes_are_taken() {
    let world = World::with_memory("rs(4,2)", 6, 64 << 20).await;
    let bytes = content(1, 40 * MIB);
    world.put("object", &bytes).await.unwrap();
    let settle = || tokio::time::sleep(Duration::from_secs(1));
    assert_all_given_back(&world).await;
    let (_, mut receive) = world
        .objects
        .get(BUCKET, "object", Wanted::All, &Default::default())
        .await
        .unwrap();
    settle().await;
    let ahead = world.objects.budget.reads.used_bytes();
    assert!((2 << 20..=12 << 20).contains(&ahead), "{ahead} bytes ahead");
    let block = receive.next().await.unwrap().unwrap();
    assert_eq!(block.len(), 64 << 10, "the first byte waits for one block");
    let piece = receive.next().await.unwrap().unwrap();
    drop((receive, block));
    // The piece that is held.
    wait_until_used(&world, [0, piece.len() as u64, 0]).await;
    drop(piece);
    assert_eq!(used(&world), [0; 3]);
    // Clients that take nothing fill the pool; a newcomer is told to slow down, and all get their bytes in the end.
    let mut slow = Vec::new();
    let refused = loop {
        match world
            .objects
            .get(BUCKET, "object", Wanted::All, &Default::default())
            .await
        {
            Ok((_, receive)) => slow.push(receive),
            Err(error) => break error,
        }
        assert!(slow.len() < 100);
        settle().await;
    };
    assert!(matches!(refused, Error::SlowDown), "{refused}");
    assert!(world.objects.budget.reads.used_bytes() <= 24 << 20);
    for read in futures::future::join_all(slow.into_iter().map(drain)).await {
        assert!(read.unwrap() == bytes);
    }
    assert_all_given_back(&world).await;
}

/// Decoding has memory of its own: downloads that all need it go on, however little there is.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn decoding_in_little_memory_goes_on() {
    let world = Arc::new(World::with_memory("rs(4,2)", 6, 8 << 20).await);
    let bytes = content(1, 9 * MIB);
    world.put("object", &bytes).await.unwrap();
    for n in [0, 1] {
        world.fault(
            n,
            Faults {
                missing: true,
                ..Default::default()
            },
        );
    }
    let tasks: Vec<_> = (0..16)
        .map(|_| {
            let (world, bytes) = (world.clone(), bytes.clone());
            tokio::spawn(async move {
                match world.get("object").await {
                    Ok(read) => assert!(read == bytes),
                    Err(Error::SlowDown) => {}
                    Err(error) => panic!("{error}"),
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_all_given_back(&world).await;
}
