//! A disk obeys the newest ledger that it was told of, and changes nothing for an older one or another copy.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::Duration;
use storage_node::client::StorageClient;
use storage_node::node::{DiskSpec, FormatOptions, Node, NodeOptions, format_disk};
use storage_node::protocol::{
    Admission, AdmitRequest, ClusterId, DiskId, Generation, LedgerMarks, NodeError, SYSTEM_VOLUME_MIN, Seal,
    SealedShard, ShardKey, Still, UnitAddress, UnitId, block_crc, seal_seed,
};

const DISK: DiskId = DiskId(5);
const DEADLINE: Duration = Duration::from_secs(10);

fn formatted(path: &Path) {
    let options = FormatOptions {
        cluster: ClusterId(1),
        disk: DISK,
        incarnation: 1,
        extent_size: Some(4 << 20),
        overwrite: false,
    };
    format_disk(path, 64 << 20, &options).unwrap();
}

fn open(path: &Path) -> Node {
    Node::open(vec![DiskSpec::at(path)], NodeOptions::default())
}

fn generation(number: u64, nonce: u64) -> Generation {
    Generation { number, nonce }
}

fn marks(generation: Generation, position: u64) -> LedgerMarks {
    LedgerMarks {
        generation,
        position,
        blob_limit: 100,
        volume_limit: 10,
        epoch: 3,
    }
}

fn address(volume: u64, ledger: Generation) -> UnitAddress {
    UnitAddress {
        disk: DISK,
        incarnation: 1,
        unit: UnitId { volume, index: 0 },
        epoch: 1,
        ledger,
    }
}

fn shard(to: &UnitAddress, blob: u64) -> SealedShard {
    let key = ShardKey { blob, stripe: 0 };
    let payload = vec![7; 100];
    let seed = seal_seed(to.unit, key, payload.len() as u32);
    SealedShard {
        key,
        seal: Seal {
            block_crcs: vec![block_crc(seed, 0, &payload)],
            digests: vec![[7; 32]],
        },
        payload: payload.into(),
    }
}

async fn shown(node: &Node) -> LedgerMarks {
    node.status(DEADLINE).await.unwrap().disks[0].ledger.unwrap()
}

/// Everything that changes a disk, asked for by a gateway of this generation.
async fn changes(node: &Node, by: Generation) -> Vec<Result<(), NodeError>> {
    let to = address(4, by);
    let opening = node.status(DEADLINE).await.unwrap().disks[0].opening.unwrap();
    let admit = AdmitRequest {
        opening: opening.id,
        admission: Admission {
            number: opening.admission.number + 1,
            nonce: 1,
        },
        ledger: by,
        is_reading: false,
    };
    let many = node.put_many(&to, vec![shard(&to, 2)], DEADLINE).await;
    vec![
        node.put(&to, shard(&to, 1), DEADLINE).await,
        many.and_then(|mut answers| answers.remove(0)),
        node.delete(&to, &[9], DEADLINE).await,
        node.admit(DISK, 1, &admit, DEADLINE).await,
        node.drop_unit(&to, DEADLINE).await,
    ]
}

#[tokio::test]
async fn a_disk_changes_nothing_for_an_older_ledger_or_another_copy() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    formatted(&path);
    let mut node = open(&path);
    assert!(
        changes(&node, Generation::NONE).await.iter().all(Result::is_ok),
        "nobody told it anything"
    );
    let (first, copy, second) = (generation(3, 30), generation(3, 31), generation(4, 40));
    for (told, others) in [
        (first, vec![Generation::NONE, copy, generation(2, 30), second]),
        (second, vec![Generation::NONE, first, copy, generation(4, 41)]),
    ] {
        node.obey(DISK, 1, &marks(told, 50), DEADLINE).await.unwrap();
        for opened_anew in [false, true] {
            if opened_anew {
                node.shutdown();
                drop(node);
                node = open(&path);
            }
            for &other in &others {
                let refused = changes(&node, other).await;
                assert_eq!(
                    refused,
                    vec![Err(NodeError::OtherLedger { current: told }); 5],
                    "{other}"
                );
                if other != second {
                    let obeyed = node.obey(DISK, 1, &marks(other, 99), DEADLINE).await;
                    assert_eq!(obeyed, Err(NodeError::OtherLedger { current: told }));
                }
            }
            assert!(changes(&node, told).await.iter().all(Result::is_ok));
            assert_eq!(shown(&node).await.generation, told);
        }
        assert!(
            node.units(DISK, 1, DEADLINE).await.is_ok(),
            "whoever asks is answered"
        );
    }
}

#[tokio::test]
async fn a_disk_stands_still_for_the_ledger_it_obeys_until_it_is_told_of_another() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    formatted(&path);
    let node = open(&path);
    let (first, second) = (generation(3, 30), generation(4, 40));
    let for_ledger = async |ledger, lasts_ms| {
        let still = Still { ledger, lasts_ms };
        node.still(DISK, 1, &still, DEADLINE).await.unwrap();
    };
    let still = async |lasts_ms| for_ledger(first, lasts_ms).await;
    for_ledger(Generation::NONE, 10_000).await;
    still(10_000).await;
    assert!(
        changes(&node, Generation::NONE).await.iter().all(Result::is_ok),
        "it obeys nobody"
    );
    node.obey(DISK, 1, &marks(first, 50), DEADLINE).await.unwrap();
    for_ledger(second, 10_000).await;
    assert!(
        changes(&node, first).await.iter().all(Result::is_ok),
        "it is meant for another"
    );
    still(10_000).await;
    assert_eq!(changes(&node, first).await, vec![Err(NodeError::Overloaded); 5]);
    let told = node.obey(DISK, 1, &marks(first, 51), DEADLINE).await;
    assert_eq!(told, Err(NodeError::Overloaded));
    assert!(node.units(DISK, 1, DEADLINE).await.is_ok(), "it answers");
    // It is over when whoever asked says so, when its time is, and when another ledger is obeyed.
    still(0).await;
    assert!(changes(&node, first).await.iter().all(Result::is_ok));
    still(50).await;
    tokio::time::sleep(Duration::from_millis(60)).await;
    assert!(changes(&node, first).await.iter().all(Result::is_ok));
    still(10_000).await;
    node.obey(DISK, 1, &marks(second, 50), DEADLINE).await.unwrap();
    assert!(changes(&node, second).await.iter().all(Result::is_ok));
}

#[tokio::test]
async fn marks_only_grow_and_a_position_is_one_of_its_generation() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    formatted(&path);
    let node = open(&path);
    node.obey(DISK, 1, &marks(generation(1, 1), 50), DEADLINE)
        .await
        .unwrap();
    let less = LedgerMarks {
        generation: generation(1, 1),
        position: 40,
        blob_limit: 7,
        volume_limit: 7,
        epoch: 1,
    };
    node.obey(DISK, 1, &less, DEADLINE).await.unwrap();
    assert_eq!(shown(&node).await, marks(generation(1, 1), 50));
    // A ledger that was given up for an older one is further back, and its ids go on all the same.
    let accepted = LedgerMarks {
        generation: generation(2, 9),
        ..less
    };
    node.obey(DISK, 1, &accepted, DEADLINE).await.unwrap();
    assert_eq!(shown(&node).await, marks(generation(2, 9), 40));
}

#[tokio::test]
async fn what_is_on_a_disk_is_below_its_limits() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    formatted(&path);
    let node = open(&path);
    let to = UnitAddress {
        epoch: 9,
        ..address(20, Generation::NONE)
    };
    node.put(&to, shard(&to, 400), DEADLINE).await.unwrap();
    let system = address(SYSTEM_VOLUME_MIN + 1, Generation::NONE);
    node.put(&system, shard(&system, 10_000), DEADLINE).await.unwrap();
    let expected = LedgerMarks {
        blob_limit: 401,
        volume_limit: 21,
        epoch: 9,
        ..LedgerMarks::default()
    };
    assert_eq!(shown(&node).await, expected);
    node.delete(&to, &[400], DEADLINE).await.unwrap();
    node.shutdown();
    drop(node);
    // The deleted one has a tombstone.
    assert_eq!(shown(&open(&path)).await, expected);
}

/// The ids of what is forgotten are not handed out again: a ledger that is behind is known by them.
#[tokio::test]
async fn limits_outlive_what_they_were_learned_from() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    formatted(&path);
    let node = open(&path);
    let told = LedgerMarks {
        generation: generation(1, 1),
        position: 5,
        ..LedgerMarks::default()
    };
    node.obey(DISK, 1, &told, DEADLINE).await.unwrap();
    let to = UnitAddress {
        epoch: 9,
        ..address(20, told.generation)
    };
    node.put(&to, shard(&to, 400), DEADLINE).await.unwrap();
    let later = LedgerMarks { position: 6, ..told };
    node.obey(DISK, 1, &later, DEADLINE).await.unwrap();
    node.drop_unit(&to, DEADLINE).await.unwrap();
    node.shutdown();
    drop(node);
    let expected = LedgerMarks {
        blob_limit: 401,
        volume_limit: 21,
        epoch: 9,
        ..later
    };
    assert_eq!(shown(&open(&path)).await, expected);
}
