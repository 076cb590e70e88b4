//! Hot objects come from memory, and are what they are now.

use crate::support::cluster::World;
use crate::support::content::content;
use crate::support::memory_node::Faults;
use gateway::error::Error;
use gateway::object::get::Wanted;
use storage_node::protocol::NodeError;

const SIZES: [usize; 4] = [5, 10_000, 300_000, 9 << 20];

async fn caching() -> World {
    World::caching("rs(4,2)", 6, 64 << 20).await
}

async fn assert_reads(world: &World) {
    for size in SIZES {
        let (name, expected) = (size.to_string(), content(size as u64, size));
        assert!(world.get(&name).await.unwrap() == expected, "{name}");
        for (first, last) in [(0, 0), (size / 3, size / 2), (size - 1, size)] {
            let wanted = Wanted::From {
                first: first as u64,
                last: Some(last as u64),
            };
            let read = world.get_range(&name, wanted).await.unwrap();
            assert!(read == expected[first..size.min(last + 1)], "{name} from {first}");
        }
    }
}

/// What was read twice does not need a disk any more: every byte of it, and every range.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_read_again_comes_from_memory() {
    let world = caching().await;
    for size in SIZES {
        let bytes = content(size as u64, size);
        world.put(&size.to_string(), &bytes).await.unwrap();
    }
    let other = content(3, 70_000);
    world.put("read once", &other).await.unwrap();
    assert!(world.get("read once").await.unwrap() == other);
    for _ in 0..2 {
        assert_reads(&world).await;
    }
    let metrics = &world.objects.metrics;
    let missed = metrics.cache_misses.get();
    for disk in 0..6 {
        let get = Some(NodeError::Timeout);
        world.fault(
            disk,
            Faults {
                get,
                ..Default::default()
            },
        );
    }
    assert_reads(&world).await;
    assert_eq!(metrics.cache_misses.get(), missed);
    assert!(metrics.cache_hits.get() > 0);
    assert!(world.objects.cache.used_bytes() >= 9 << 20);
    assert!(world.get("read once").await.is_err());
}

/// What is in memory is answered though the disks that have it are gone, and their volume would be unreadable.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_in_memory_outlives_its_disks() {
    let world = caching().await;
    let (hot, cold) = (content(1, 500_000), content(2, 500_000));
    world.put("hot", &hot).await.unwrap();
    world.put("cold", &cold).await.unwrap();
    for _ in 0..3 {
        assert!(world.get("hot").await.unwrap() == hot);
    }
    world.lose(&[0, 1, 2, 3, 4, 5]).await;
    let metrics = &world.objects.metrics;
    let (found, missed) = (metrics.cache_hits.get(), metrics.cache_misses.get());
    assert!(world.get("hot").await.unwrap() == hot);
    assert!(metrics.cache_hits.get() > found);
    assert_eq!(metrics.cache_misses.get(), missed);
    assert!(matches!(world.get("cold").await, Err(Error::Unreadable { .. })));
}

/// A name that has other bytes now, or none, is not answered from what it had.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_was_written_over_or_deleted_is_not_read_again() {
    let world = caching().await;
    for size in [100, 200_000, 5 << 20] {
        for version in 0..4 {
            let bytes = content(version * 1_000 + size as u64, size);
            world.put("object", &bytes).await.unwrap();
            for _ in 0..4 {
                assert!(world.get("object").await.unwrap() == bytes, "version {version}");
            }
        }
    }
    world.delete("object").await.unwrap();
    assert!(matches!(world.get("object").await, Err(Error::NoSuchKey)));
    world.collect().await;
    world.census().await.assert_clean();
}
