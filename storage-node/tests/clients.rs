//! One suite, run against a node in this process and against the same node over HTTP.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use storage_node::client::{DELETE_BLOBS_MAX, MANY_BYTES_MAX, MANY_SHARDS_MAX, StorageClient};
use storage_node::device::Backend;
use storage_node::http_client::HttpClient;
use storage_node::node::{DiskSpec, FormatDiskError, FormatOptions, Node, NodeOptions, format_disk};
use storage_node::protocol::*;

const DEADLINE: Duration = Duration::from_secs(10);
const CLUSTER: ClusterId = ClusterId(42);

fn options(disk: u128) -> FormatOptions {
    FormatOptions {
        cluster: CLUSTER,
        disk: DiskId(disk),
        incarnation: 1,
        extent_size: None,
        overwrite: false,
    }
}

struct House {
    folder: tempfile::TempDir,
    node: Arc<Node>,
}

fn specs(folder: &tempfile::TempDir) -> Vec<DiskSpec> {
    (0..2)
        .map(|n| DiskSpec::at(folder.path().join(format!("disk-{n}"))))
        .collect()
}

fn house(backend: Backend) -> House {
    let folder = tempfile::tempdir().unwrap();
    for (n, spec) in specs(&folder).iter().enumerate() {
        format_disk(&spec.path, 64 << 20, &options(n as u128 + 1)).unwrap();
    }
    let node = Arc::new(Node::open(
        specs(&folder),
        NodeOptions {
            cluster: Some(CLUSTER),
            backend,
            ..NodeOptions::default()
        },
    ));
    House { folder, node }
}

fn address(disk: u128) -> UnitAddress {
    UnitAddress {
        disk: DiskId(disk),
        incarnation: 1,
        unit: UnitId { volume: 3, index: 1 },
        epoch: 2,
        ledger: storage_node::protocol::Generation::NONE,
    }
}

fn sealed(to: &UnitAddress, key: ShardKey, len: usize) -> SealedShard {
    let payload: Bytes = (0..len)
        .map(|i| (i as u64 * 31 + key.blob) as u8)
        .collect::<Vec<u8>>()
        .into();
    let seed = seal_seed(to.unit, key, len as u32);
    let blocks = payload.chunks(BLOCK_BYTES as usize).enumerate();
    let block_crcs = blocks
        .map(|(n, block)| block_crc(seed, n as u32, block))
        .collect();
    SealedShard {
        key,
        seal: Seal {
            block_crcs,
            digests: vec![[5; 32]; 6],
        },
        payload,
    }
}

/// Many at once, in a unit of their own, on the other disk.
async fn many(client: &dyn StorageClient) {
    let to = UnitAddress {
        unit: UnitId { volume: 8, index: 2 },
        ..address(2)
    };
    let key = |blob| ShardKey { blob, stripe: 0 };
    let len = |blob| [1, 4096, 20_000, 300_000][blob as usize % 4];
    let mut shards: Vec<SealedShard> = (0..40).map(|blob| sealed(&to, key(blob), len(blob))).collect();
    let right = shards.clone();
    shards[7].seal.block_crcs[0] ^= 1;
    let stored = client.put_many(&to, shards, DEADLINE).await.unwrap();
    for (blob, stored) in stored.iter().enumerate() {
        match blob {
            7 => assert!(matches!(stored, Err(NodeError::SealMismatch { .. }))),
            _ => assert_eq!(*stored, Ok(())),
        }
    }
    let keys: Vec<ShardKey> = (0..41).rev().map(key).collect();
    let read = client.get_many(&to, &keys, DEADLINE).await.unwrap();
    for (key, read) in keys.iter().zip(read) {
        match key.blob {
            7 | 40 => assert_eq!(read, Err(NodeError::NotFound)),
            blob => {
                let (read, right) = (read.unwrap(), &right[blob as usize]);
                assert_eq!(read.payload, right.payload);
                assert_eq!(
                    (read.block_crcs, read.digests),
                    (right.seal.block_crcs.clone(), right.seal.digests.clone())
                );
                assert_eq!((read.shard_len as usize, read.first_block), (len(blob), 0));
            }
        }
    }
    assert_eq!(client.get_many(&to, &[], DEADLINE).await, Ok(Vec::new()));
    let old = UnitAddress { epoch: 1, ..to };
    let stale = NodeError::StaleEpoch { current: 2 };
    assert_eq!(client.get_many(&old, &keys, DEADLINE).await, Err(stale.clone()));
    assert_eq!(client.put_many(&old, right.clone(), DEADLINE).await, Err(stale));
    let refused = |error: NodeError| assert!(matches!(error, NodeError::BadRequest { .. }), "{error}");
    let too_many = vec![key(1); MANY_SHARDS_MAX + 1];
    refused(client.get_many(&to, &too_many, DEADLINE).await.unwrap_err());
    let too_large = vec![key(3); MANY_BYTES_MAX / 300_000 + 1];
    refused(client.get_many(&to, &too_large, DEADLINE).await.unwrap_err());
    let too_large = vec![right[3].clone(); too_large.len()];
    refused(client.put_many(&to, too_large, DEADLINE).await.unwrap_err());
    client.drop_unit(&to, DEADLINE).await.unwrap();
}

async fn suite(client: &dyn StorageClient) {
    let to = address(1);
    let key = |blob, stripe| ShardKey { blob, stripe };
    let status = client.status(DEADLINE).await.unwrap();
    assert_eq!(status.disks.len(), 2);
    assert!(
        status.disks.iter().all(|disk| disk.state == DiskState::Online),
        "{status:?}"
    );
    for (blob, len) in [(1, 1), (2, 65536), (3, 1 << 20)] {
        let shard = sealed(&to, key(blob, 7), len);
        client.put(&to, shard.clone(), DEADLINE).await.unwrap();
        let read = client
            .get(&to, key(blob, 7), BlockRange::ALL, DEADLINE)
            .await
            .unwrap();
        assert_eq!(
            (read.payload, read.block_crcs),
            (shard.payload, shard.seal.block_crcs)
        );
        assert_eq!(
            (read.shard_len as usize, read.first_block, read.digests),
            (len, 0, shard.seal.digests)
        );
    }
    let incarnation = status.disks[0].incarnation;
    let nothing = client.findings(to.disk, incarnation, 0, DEADLINE).await.unwrap();
    assert_eq!((nothing.last, nothing.found), (0, Vec::new()));
    let other = client.findings(to.disk, incarnation + 1, 0, DEADLINE).await;
    assert_eq!(other, Err(NodeError::WrongDisk));
    let part = client
        .get(&to, key(3, 7), BlockRange { first: 5, count: 2 }, DEADLINE)
        .await
        .unwrap();
    assert_eq!(
        (part.first_block, part.payload.len(), part.block_crcs.len()),
        (5, 131072, 2)
    );
    let listed = client
        .inventory(&to, Some(key(1, 7)), 10, DEADLINE)
        .await
        .unwrap();
    assert_eq!(
        listed.iter().map(|e| (e.key.blob, e.len)).collect::<Vec<_>>(),
        [(2, 65536), (3, 1 << 20)]
    );
    assert_eq!(client.inventory(&to, None, 1, DEADLINE).await.unwrap().len(), 1);
    many(client).await;
    let units = client.units(DiskId(1), 1, DEADLINE).await.unwrap();
    assert_eq!((units.len(), units[0].shards, units[0].epoch), (1, 3, 2));

    client.delete(&to, &[2], DEADLINE).await.unwrap();
    let gone = client.get(&to, key(2, 7), BlockRange::ALL, DEADLINE).await;
    assert_eq!(gone, Err(NodeError::NotFound));
    assert_eq!(
        client.put(&to, sealed(&to, key(2, 9), 10), DEADLINE).await,
        Err(NodeError::Deleted)
    );
    let many = vec![1; DELETE_BLOBS_MAX + 1];
    assert!(matches!(
        client.delete(&to, &many, DEADLINE).await,
        Err(NodeError::BadRequest { .. })
    ));

    let mut bad = sealed(&to, key(9, 0), 10);
    bad.seal.block_crcs[0] ^= 1;
    assert!(matches!(
        client.put(&to, bad, DEADLINE).await,
        Err(NodeError::SealMismatch { .. })
    ));
    let empty = sealed(&to, key(9, 0), 0);
    assert!(matches!(
        client.put(&to, empty, DEADLINE).await,
        Err(NodeError::BadRequest { .. })
    ));
    let stale = UnitAddress { epoch: 1, ..to };
    assert_eq!(
        client.inventory(&stale, None, 1, DEADLINE).await,
        Err(NodeError::StaleEpoch { current: 2 })
    );
    let strange = UnitAddress {
        disk: DiskId(99),
        ..to
    };
    let wrong = client.get(&strange, key(1, 7), BlockRange::ALL, DEADLINE).await;
    assert_eq!(wrong, Err(NodeError::WrongDisk));
    let order = VerifyOrder {
        cycle_s: Some(86_400),
        now: true,
    };
    client.verify(DiskId(1), 1, &order, DEADLINE).await.unwrap();
    let seen = async || client.status(DEADLINE).await.unwrap().disks[0].clone();
    while seen().await.verify.unwrap().passes == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let verify = seen().await.verify.unwrap();
    assert_eq!(
        (verify.cycle_s, verify.at_once, verify.findings),
        (Some(86_400), false, 0)
    );
    let request = AdmitRequest {
        opening: seen().await.opening.unwrap().id,
        admission: Admission { number: 3, nonce: 4 },
        ledger: Generation::NONE,
        is_reading: false,
    };
    client.admit(DiskId(1), 1, &request, DEADLINE).await.unwrap();
    assert_eq!(seen().await.opening.unwrap().admission, request.admission);
    for wrong in [(DiskId(99), 1), (DiskId(1), 2)] {
        let refused = client.admit(wrong.0, wrong.1, &request, DEADLINE).await;
        assert_eq!(refused, Err(NodeError::WrongDisk));
        let refused = client.verify(wrong.0, wrong.1, &order, DEADLINE).await;
        assert_eq!(refused, Err(NodeError::WrongDisk));
    }
    client.drop_unit(&to, DEADLINE).await.unwrap();
    let gone = client.get(&to, key(1, 7), BlockRange::ALL, DEADLINE).await;
    assert_eq!(gone, Err(NodeError::NotFound));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_process_with_every_backend() {
    for backend in [Backend::Auto, Backend::Pread] {
        suite(&*house(backend).node).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_http() {
    let house = house(Backend::Auto);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = tokio::spawn(storage_node::server::serve(listener, house.node.clone(), async {
        stopped.await.ok();
    }));
    let client = HttpClient::new(&base).unwrap();
    suite(&client).await;
    stop.send(()).unwrap();
    server.await.unwrap();
    let unreachable = client.status(DEADLINE).await;
    assert!(
        matches!(unreachable, Err(NodeError::Unreachable { .. })),
        "{unreachable:?}"
    );
}

/// A gateway repairs what it is told is corrupt: an error without its type would be retried or reported, and never repaired.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn corruption_keeps_its_type_over_http() {
    let house = house(Backend::Auto);
    let (to, key) = (address(1), ShardKey { blob: 1, stripe: 0 });
    let shard = sealed(&to, key, 5000);
    house.node.put(&to, shard.clone(), DEADLINE).await.unwrap();
    let path = house.folder.path().join("disk-0");
    let bytes = std::fs::read(&path).unwrap();
    let payload_at = bytes.windows(64).position(|w| w == &shard.payload[..64]).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    let spoil = |at: usize| {
        std::os::unix::fs::FileExt::write_all_at(&file, &[!bytes[at]], at as u64).unwrap();
        file.sync_all().unwrap();
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = HttpClient::new(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    let server = tokio::spawn(storage_node::server::serve(
        listener,
        house.node.clone(),
        std::future::pending(),
    ));
    // A spoilt payload is for the caller to find, by the CRCs that come with it.
    spoil(payload_at + 70);
    let read = client.get(&to, key, BlockRange::ALL, DEADLINE).await.unwrap();
    assert_eq!(read.block_crcs, shard.seal.block_crcs);
    assert_ne!(read.payload, shard.payload);
    spoil(payload_at - 200);
    let read = client.get(&to, key, BlockRange::ALL, DEADLINE).await;
    assert!(
        matches!(&read, Err(NodeError::Corrupt { what }) if what.contains("blob 1")),
        "{read:?}"
    );
    server.abort();
}

#[tokio::test]
async fn a_silent_node_times_out() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = HttpClient::new(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    assert_eq!(
        client.status(Duration::from_millis(50)).await,
        Err(NodeError::Timeout)
    );
    assert!(HttpClient::new("https://x").is_err());
    assert!(HttpClient::new("nonsense").is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_does_not_open_is_shown_and_stops_nobody() {
    let house = house(Backend::Auto);
    let (to, key) = (address(1), ShardKey { blob: 1, stripe: 0 });
    house
        .node
        .put(&to, sealed(&to, key, 1000), DEADLINE)
        .await
        .unwrap();
    house.node.shutdown();
    let stopped = house.node.get(&to, key, BlockRange::ALL, DEADLINE).await;
    assert!(matches!(stopped, Err(NodeError::Fenced { .. })));
    let House { folder, node } = house;
    drop(node);

    std::fs::write(folder.path().join("disk-1"), vec![0x77; 64 << 20]).unwrap();
    let mut specs = specs(&folder);
    specs[1].expected = Some(DiskId(2));
    specs.push(DiskSpec {
        expected: Some(DiskId(3)),
        ..DiskSpec::at(folder.path().join("missing"))
    });
    let node = Node::open(specs, NodeOptions::default());
    let read = node.get(&to, key, BlockRange::ALL, DEADLINE).await.unwrap();
    assert_eq!(read.payload, sealed(&to, key, 1000).payload);
    let status = node.status(DEADLINE).await.unwrap();
    let reasons: Vec<String> = status
        .disks
        .iter()
        .map(|disk| match &disk.state {
            DiskState::Online => "online".into(),
            DiskState::Fenced { reason } => reason.clone(),
        })
        .collect();
    assert_eq!(reasons[0], "online");
    assert!(reasons[1].contains("no valid superblock"), "{reasons:?}");
    assert!(reasons[2].contains("No such file"), "{reasons:?}");
    assert_eq!(status.disks[2].disk, DiskId(3));
    let fenced = node.get(&address(3), key, BlockRange::ALL, DEADLINE).await;
    assert!(matches!(fenced, Err(NodeError::Fenced { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_or_truncated_disk_file_is_noticed_while_serving() {
    let House { folder, node } = house(Backend::Auto);
    std::fs::remove_file(folder.path().join("disk-0")).unwrap();
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(folder.path().join("disk-1"))
        .unwrap();
    file.set_len(4096).unwrap();
    let status = node.status(DEADLINE).await.unwrap();
    for (disk, word) in status.disks.iter().zip(["removed", "truncated"]) {
        assert!(
            matches!(&disk.state, DiskState::Fenced { reason } if reason.contains(word)),
            "{disk:?}"
        );
    }
}

#[test]
fn formatting_over_a_cairn_disk_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    format_disk(&path, 64 << 20, &options(1)).unwrap();
    let again = format_disk(&path, 64 << 20, &options(2));
    assert!(
        matches!(
            again,
            Err(FormatDiskError::AlreadyFormatted { disk: DiskId(1), .. })
        ),
        "{again:?}"
    );
    format_disk(
        &path,
        64 << 20,
        &FormatOptions {
            overwrite: true,
            incarnation: 2,
            ..options(2)
        },
    )
    .unwrap();
    let other = NodeOptions {
        cluster: Some(ClusterId(1)),
        ..NodeOptions::default()
    };
    let status = status_of(&Node::open(vec![DiskSpec::at(&path)], other));
    assert!(matches!(&status.disks[0].state, DiskState::Fenced { reason } if reason.contains("cluster")));
    assert!(format_disk(&folder.path().join("tiny"), 1 << 20, &options(3)).is_err());
}

/// What was a Cairn disk may hold the last copy of something, also when it cannot be opened as it is.
#[test]
fn formatting_over_a_resized_or_damaged_cairn_disk_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    format_disk(&path, 64 << 20, &options(1)).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(96 << 20).unwrap();
    let again = format_disk(&path, 96 << 20, &options(2));
    assert!(
        matches!(again, Err(FormatDiskError::AlreadyFormatted { .. })),
        "{again:?}"
    );
    // One bad byte in each copy.
    for at in [0, 16 << 20, 32 << 20, 48 << 20] {
        std::os::unix::fs::FileExt::write_all_at(&file, &[0xee], at + 50).unwrap();
    }
    file.set_len(64 << 20).unwrap();
    let again = format_disk(&path, 64 << 20, &options(2));
    assert!(
        matches!(&again, Err(FormatDiskError::Failed { what, .. }) if what.contains("damaged")),
        "{again:?}"
    );
    // Under the same name and incarnation, what an earlier life wrote would be valid again.
    let again = |incarnation| {
        let options = FormatOptions {
            overwrite: true,
            incarnation,
            ..options(1)
        };
        format_disk(&path, 64 << 20, &options)
    };
    again(4).unwrap();
    assert!(again(4).is_err());
    again(5).unwrap();
}

fn status_of(node: &Node) -> NodeStatus {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(node.status(DEADLINE)).unwrap()
}
