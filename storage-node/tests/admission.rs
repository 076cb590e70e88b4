//! A disk of a cluster serves nothing until a gateway has admitted it, and remembers that durably; a copy of it remembers what was
//! then.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::Duration;
use storage_node::client::StorageClient;
use storage_node::node::{DiskSpec, FormatOptions, Node, NodeOptions, format_disk};
use storage_node::protocol::*;

const DEADLINE: Duration = Duration::from_secs(10);
const CLUSTER: ClusterId = ClusterId(42);
const DISK: DiskId = DiskId(1);

fn open(path: &Path) -> Node {
    let options = NodeOptions {
        cluster: Some(CLUSTER),
        waits_for_admission: true,
        ..NodeOptions::default()
    };
    Node::open(vec![DiskSpec::at(path)], options)
}

async fn opening(node: &Node) -> Opening {
    node.status(DEADLINE).await.unwrap().disks[0].opening.unwrap()
}

async fn admit(node: &Node, opening: u64, number: u64, nonce: u64) -> Result<(), NodeError> {
    let admission = Admission { number, nonce };
    let request = AdmitRequest {
        opening,
        admission,
        ledger: Generation::NONE,
        is_reading: false,
    };
    node.admit(DISK, 1, &request, DEADLINE).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_serves_only_in_an_opening_that_was_admitted() {
    let folder = tempfile::tempdir().unwrap();
    let (path, copy) = (folder.path().join("disk"), folder.path().join("copy"));
    let format = FormatOptions {
        cluster: CLUSTER,
        disk: DISK,
        incarnation: 1,
        extent_size: None,
        overwrite: false,
    };
    format_disk(&path, 64 << 20, &format).unwrap();
    let node = open(&path);
    let first = opening(&node).await;
    assert_eq!(first.admission, Admission::default());
    assert_eq!(node.units(DISK, 1, DEADLINE).await, Err(NodeError::WrongDisk));
    assert_eq!(admit(&node, first.id ^ 1, 1, 11).await, Err(NodeError::WrongDisk));
    assert_eq!(node.units(DISK, 1, DEADLINE).await, Err(NodeError::WrongDisk));
    admit(&node, first.id, 1, 11).await.unwrap();
    admit(&node, first.id, 1, 11).await.unwrap();
    assert_eq!(node.units(DISK, 1, DEADLINE).await, Ok(Vec::new()));
    for (number, nonce) in [(1, 12), (0, 11), (0, 0)] {
        let refused = admit(&node, first.id, number, nonce).await;
        assert!(
            matches!(refused, Err(NodeError::BadRequest { .. })),
            "{refused:?}"
        );
    }
    assert_eq!(opening(&node).await.admission, Admission { number: 1, nonce: 11 });
    // Killed: what was answered is on the medium.
    std::fs::copy(&path, &copy).unwrap();
    node.shutdown();
    drop(node);
    for number in 2..5 {
        let node = open(&path);
        let again = opening(&node).await;
        assert_eq!(again.admission.number, number - 1);
        assert_ne!(again.id, first.id);
        assert_eq!(node.units(DISK, 1, DEADLINE).await, Err(NodeError::WrongDisk));
        admit(&node, again.id, number, number * 7).await.unwrap();
        assert_eq!(node.units(DISK, 1, DEADLINE).await, Ok(Vec::new()));
        // Another superblock is written at the end: it remembers, too.
        node.shutdown();
    }
    for _ in 0..8 {
        let node = open(&copy);
        assert_eq!(opening(&node).await.admission, Admission { number: 1, nonce: 11 });
        node.shutdown();
    }
}
