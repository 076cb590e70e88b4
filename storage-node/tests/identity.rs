//! Which disks a node serves: never one of another cluster, never two copies of one, never one that was formatted anew.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use std::path::{Path, PathBuf};
use std::time::Duration;
use storage_node::client::StorageClient;
use storage_node::node::{DiskSpec, FormatOptions, Node, NodeOptions, format_disk};
use storage_node::protocol::*;

const DEADLINE: Duration = Duration::from_secs(10);
const CLUSTER: ClusterId = ClusterId(42);
const DISK_BYTES: u64 = 64 << 20;

fn format(path: &Path, cluster: ClusterId, disk: u128, incarnation: u64) {
    let options = FormatOptions {
        cluster,
        disk: DiskId(disk),
        incarnation,
        extent_size: None,
        overwrite: true,
    };
    format_disk(path, DISK_BYTES, &options).unwrap();
}

fn open(paths: &[&PathBuf]) -> Node {
    let options = NodeOptions {
        cluster: Some(CLUSTER),
        ..NodeOptions::default()
    };
    Node::open(paths.iter().map(|path| DiskSpec::at(*path)).collect(), options)
}

fn address(disk: u128, incarnation: u64) -> UnitAddress {
    UnitAddress {
        disk: DiskId(disk),
        incarnation,
        unit: UnitId { volume: 3, index: 1 },
        epoch: 1,
        ledger: storage_node::protocol::Generation::NONE,
    }
}

fn key(blob: u64) -> ShardKey {
    ShardKey { blob, stripe: 0 }
}

async fn put(node: &Node, to: UnitAddress, blob: u64) -> Result<(), NodeError> {
    let payload = Bytes::from(vec![blob as u8; 1000]);
    let seed = seal_seed(to.unit, key(blob), 1000);
    let seal = Seal {
        block_crcs: vec![block_crc(seed, 0, &payload)],
        digests: vec![[5; 32]; 6],
    };
    let shard = SealedShard {
        key: key(blob),
        seal,
        payload,
    };
    node.put(&to, shard, DEADLINE).await
}

async fn get(node: &Node, from: UnitAddress, blob: u64) -> Result<Bytes, NodeError> {
    let read = node.get(&from, key(blob), BlockRange::ALL, DEADLINE).await;
    read.map(|read| read.payload)
}

/// The state of each disk in words, in the order in which they were given.
async fn states(node: &Node) -> Vec<String> {
    let status = node.status(DEADLINE).await.unwrap();
    let words = |disk: DiskStatus| match disk.state {
        DiskState::Online => "online".into(),
        DiskState::Fenced { reason } => reason,
    };
    status.disks.into_iter().map(words).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_copies_of_a_disk_neither_serves_nor_is_written_to() {
    let folder = tempfile::tempdir().unwrap();
    let [original, copy, bystander] = ["original", "copy", "bystander"].map(|name| folder.path().join(name));
    format(&original, CLUSTER, 1, 1);
    format(&bystander, CLUSTER, 2, 1);
    let node = open(&[&original]);
    put(&node, address(1, 1), 1).await.unwrap();
    drop(node);
    std::fs::copy(&original, &copy).unwrap();
    // Both go on for a while, each without the other: neither holds all that was acknowledged.
    for (path, blob) in [(&original, 2), (&copy, 3), (&original, 4)] {
        let node = open(&[path]);
        put(&node, address(1, 1), blob).await.unwrap();
    }

    let bytes = |path| std::fs::read(path).unwrap();
    let before = [bytes(&original), bytes(&copy)];
    let node = open(&[&original, &bystander, &copy]);
    let states = states(&node).await;
    for (state, path) in [(&states[0], &original), (&states[2], &copy)] {
        assert!(state.contains("more than once"), "{state}");
        let paths = [path, &original, &copy].map(|path| path.display().to_string());
        assert!(paths.iter().all(|path| state.contains(path)), "{state}");
        assert!(
            state.contains(&format!("it is {} and", path.display())),
            "{state}"
        );
    }
    assert_eq!(states[1], "online");
    // Who asks for the disk is told, and not that there is no such disk.
    let refused = put(&node, address(1, 1), 5).await;
    assert!(
        matches!(&refused, Err(NodeError::Fenced { reason }) if *reason == states[0]),
        "{refused:?}"
    );
    assert!(matches!(
        get(&node, address(1, 1), 1).await,
        Err(NodeError::Fenced { .. })
    ));
    put(&node, address(2, 1), 5).await.unwrap();
    drop(node);
    assert!(
        before == [bytes(&original), bytes(&copy)],
        "a copy was written to"
    );

    // One was taken away.
    let node = open(&[&original, &bystander]);
    for blob in [1, 2, 4] {
        assert_eq!(
            get(&node, address(1, 1), blob).await.unwrap(),
            vec![blob as u8; 1000]
        );
    }
    assert_eq!(get(&node, address(1, 1), 3).await, Err(NodeError::NotFound));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_was_formatted_anew_serves_beside_what_it_was_before() {
    let folder = tempfile::tempdir().unwrap();
    let [old, new] = ["old", "new"].map(|name| folder.path().join(name));
    format(&old, CLUSTER, 1, 1);
    let node = open(&[&old]);
    put(&node, address(1, 1), 1).await.unwrap();
    drop(node);
    format(&new, CLUSTER, 1, 2);
    for paths in [[&old, &new], [&new, &old]] {
        let node = open(&paths);
        let states = states(&node).await;
        let place = |path| paths.iter().position(|p| *p == path).unwrap();
        assert_eq!(states[place(&new)], "online");
        let superseded = &states[place(&old)];
        assert!(superseded.contains("formatted anew"), "{superseded}");
        assert!(superseded.contains(&new.display().to_string()), "{superseded}");
        put(&node, address(1, 2), 7).await.unwrap();
        assert_eq!(get(&node, address(1, 1), 1).await, Err(NodeError::WrongDisk));
        drop(node);
    }
    // Two copies of the new one are two too many, and do not make the old one good again.
    let copy = folder.path().join("copy");
    std::fs::copy(&new, &copy).unwrap();
    let states = states(&open(&[&old, &new, &copy])).await;
    assert!(states.iter().all(|state| state != "online"), "{states:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_is_given_twice_serves_once() {
    let folder = tempfile::tempdir().unwrap();
    let [disk, symbolic, hard] = ["disk", "symbolic", "hard"].map(|name| folder.path().join(name));
    format(&disk, CLUSTER, 1, 1);
    std::os::unix::fs::symlink(&disk, &symbolic).unwrap();
    std::fs::hard_link(&disk, &hard).unwrap();
    for again in [&disk, &symbolic, &hard] {
        let node = open(&[again, &disk]);
        let states = states(&node).await;
        assert_eq!(states[0], "online");
        assert_eq!(states[1], format!("it is the same disk as {}", again.display()));
        put(&node, address(1, 1), 1).await.unwrap();
        assert_eq!(get(&node, address(1, 1), 1).await.unwrap(), vec![1; 1000]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_of_another_cluster_is_refused_and_not_written_to() {
    let folder = tempfile::tempdir().unwrap();
    let [ours, theirs] = ["ours", "theirs"].map(|name| folder.path().join(name));
    let other = ClusterId(0xbad);
    format(&ours, CLUSTER, 1, 1);
    format(&theirs, other, 2, 1);
    let before = std::fs::read(&theirs).unwrap();
    let node = open(&[&ours, &theirs]);
    let states = states(&node).await;
    assert_eq!(states[0], "online");
    let both = [other, CLUSTER].map(|cluster| cluster.to_string());
    assert!(
        both.iter().all(|cluster| states[1].contains(cluster)),
        "{}",
        states[1]
    );
    assert_eq!(put(&node, address(2, 1), 1).await, Err(NodeError::WrongDisk));
    drop(node);
    assert!(before == std::fs::read(&theirs).unwrap(), "it was written to");
}
