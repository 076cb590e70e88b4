//! Nodes of a gateway: who is who over mutual TLS, disks that are added whatever crashed before, polls that do not wait for
//! each other, disks that turn up where they do not belong.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use gateway::cluster::adopt::Adopting;
use gateway::cluster::authority::{Authority, CertificateRequest};
use gateway::cluster::disks::{Disks, Health};
use gateway::cluster::generation::{Generations, Identity};
use gateway::cluster::lease::Lease;
use gateway::cluster::nodes::{Connect, Contact, Nodes};
use gateway::ledger::memory::MemoryStore;
use gateway::ledger::model::{DiskRow, NodeRow};
use gateway::ledger::{CommitBuilder, Ledger, key};
use gateway::maintenance::holds::Holds;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use storage_node::client::StorageClient;
use storage_node::http_client::HttpClient;
use storage_node::join::{make_key, request_certificate};
use storage_node::node::{DiskSpec, FormatOptions, Node, NodeOptions, format_disk};
use storage_node::protocol::*;
use storage_node::tls::{Credentials, Peer};
use tokio::net::TcpListener;

const CLUSTER: ClusterId = ClusterId(42);
const NOW_MS: u64 = 1_790_000_000_000;
const DEADLINE: Duration = Duration::from_secs(10);
const DISK_BYTES: u64 = 64 << 20;

fn blank(path: &Path) {
    std::fs::File::create(path).unwrap().set_len(DISK_BYTES).unwrap();
}

fn node_on(paths: &[PathBuf]) -> Arc<Node> {
    let options = NodeOptions {
        cluster: Some(CLUSTER),
        takes_blank: true,
        ..NodeOptions::default()
    };
    Arc::new(Node::open(paths.iter().map(DiskSpec::at).collect(), options))
}

// Mutual TLS.

struct House {
    authority: Authority,
}

impl House {
    fn new(cluster: ClusterId, now_ms: u64) -> House {
        let certified = Authority::create(cluster, now_ms).unwrap();
        House {
            authority: Authority::open(cluster, &certified).unwrap(),
        }
    }

    fn gateway(&self, now_ms: u64) -> Credentials {
        let made = self.authority.certify_gateway(now_ms).unwrap();
        Credentials::from_pem(&self.authority.certificate, &made.certificate, &made.key).unwrap()
    }

    fn node(&self, id: u128, now_ms: u64) -> Credentials {
        let key = make_key().unwrap();
        let request = CertificateRequest::parse(&request_certificate(&key, "n").unwrap()).unwrap();
        let made = self.authority.certify_node(NodeId(id), &request, now_ms).unwrap();
        Credentials::from_pem(&self.authority.certificate, &made, &key).unwrap()
    }
}

/// Where a node with these credentials serves.
async fn serve(credentials: Credentials) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let forever = std::future::pending();
        storage_node::server::serve_tls(listener, node_on(&[]), &credentials, forever).await
    });
    address
}

/// What a client with these credentials is told that wants this node there.
async fn told(address: &str, wanted: Peer, credentials: &Credentials) -> Result<(), String> {
    let client = HttpClient::with_tls(address, wanted, credentials).unwrap();
    let mut answer = Ok(());
    // A connection that the other side ends may be gone before the request is on it, which says nothing of why: asked again, as
    // gateways ask twice a second.
    for _ in 0..10 {
        answer = client.status(DEADLINE).await.map(drop).map_err(|e| e.to_string());
        let says_why = |why: &String| !why.contains("connection was not ready");
        if answer.as_ref().err().is_none_or(says_why) {
            break;
        }
    }
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_and_its_node_know_each_other_and_nobody_else() {
    let (ours, theirs) = (House::new(CLUSTER, NOW_MS), House::new(ClusterId(7), NOW_MS));
    let node = Peer::node(CLUSTER, NodeId(1));
    let address = serve(ours.node(1, NOW_MS)).await;
    assert_eq!(told(&address, node, &ours.gateway(NOW_MS)).await, Ok(()));

    let refused = |answer: Result<(), String>, words: &str| {
        let why = answer.unwrap_err();
        assert!(why.contains(words), "{why}");
    };
    // Another node than is there.
    let other = Peer::node(CLUSTER, NodeId(2));
    let answer = told(&address, other, &ours.gateway(NOW_MS)).await;
    refused(
        answer,
        &format!("it shows the certificate of {node}, and should be {other}"),
    );
    // A gateway of another cluster, which finds out first.
    let answer = told(
        &address,
        Peer::node(ClusterId(7), NodeId(1)),
        &theirs.gateway(NOW_MS),
    )
    .await;
    refused(answer, "it shows the certificate of node");
    // A node is not a gateway, in its own cluster either.
    refused(
        told(&address, node, &ours.node(3, NOW_MS)).await,
        "serves gateways only",
    );
    // Somebody else's authority may sign any name.
    let impostor = House::new(CLUSTER, NOW_MS);
    let at = serve(impostor.node(1, NOW_MS)).await;
    refused(
        told(&at, node, &ours.gateway(NOW_MS)).await,
        "this cluster's authority did not sign",
    );
    // A client that trusts the impostor, so that it is the node that has to notice.
    let mixed = House {
        authority: ours.authority,
    };
    let gateway = impostor.authority.certify_gateway(NOW_MS).unwrap();
    let forged =
        Credentials::from_pem(&mixed.authority.certificate, &gateway.certificate, &gateway.key).unwrap();
    refused(
        told(&address, node, &forged).await,
        "the other side refused this side's certificate",
    );
    // Too old.
    const LONG_AGO_MS: u64 = 1_000_000_000_000;
    let at = serve(mixed.node(1, LONG_AGO_MS)).await;
    refused(told(&at, node, &mixed.gateway(NOW_MS)).await, "which has expired");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_shows_no_certificate_is_not_served() {
    let address = serve(House::new(CLUSTER, NOW_MS).node(1, NOW_MS)).await;
    let plain = HttpClient::new(&format!("http://{address}")).unwrap();
    let answer = plain.status(DEADLINE).await;
    assert!(
        matches!(
            answer,
            Err(NodeError::Unreachable { .. } | NodeError::Garbled { .. })
        ),
        "{answer:?}"
    );
}

// Disks and nodes of a ledger.

struct World {
    ledger: Ledger,
    lease: Arc<Lease>,
    clients: HashMap<String, Arc<dyn StorageClient>>,
}

impl World {
    async fn new() -> World {
        let ledger = Ledger::new(Arc::new(MemoryStore::default()));
        let lease = Arc::new(Lease::take_over(ledger.clone(), "test").await.unwrap());
        World {
            ledger,
            lease,
            clients: HashMap::new(),
        }
    }

    /// A node that joined, with this name and id.
    async fn node(&mut self, name: &str, id: u128, client: Arc<dyn StorageClient>) {
        self.clients.insert(name.into(), client);
        let row = NodeRow {
            name: name.into(),
            address: name.into(),
            rack: format!("rack of {name}"),
            ..NodeRow::default()
        };
        let commit = CommitBuilder::new().put(key::node(id), &row);
        self.ledger.commit(commit.build()).await.unwrap();
    }

    async fn disk(&self, id: u128, node: u128, path: &Path, formatted: bool) {
        let row = DiskRow {
            incarnation: 1,
            label: format!("disk {id}"),
            size: DISK_BYTES,
            formatted,
            node: Bytes::copy_from_slice(&node.to_be_bytes()),
            path: path.display().to_string(),
            ..DiskRow::default()
        };
        let commit = CommitBuilder::new().put(key::disk(id), &row);
        self.ledger.commit(commit.build()).await.unwrap();
    }

    /// As after a start of the gateway.
    async fn start(&self) -> (Arc<Disks>, Adopting) {
        let clients = self.clients.clone();
        let connect: Connect = Box::new(move |_, row| Ok(clients[&row.address].clone()));
        let nodes = Arc::new(Nodes::load(&self.ledger, connect).await.unwrap());
        let begun = Generations::begin(&self.ledger, &nodes, Identity::default(), Holds::default());
        let generations = Arc::new(begun.await.unwrap());
        let disks = Arc::new(
            Disks::load(&self.ledger, self.lease.clone(), nodes, generations)
                .await
                .unwrap(),
        );
        let adopting = Adopting::new(CLUSTER, self.ledger.clone(), self.lease.clone(), disks.clone());
        (disks, adopting)
    }
}

fn format(path: &Path, disk: u128) {
    let options = FormatOptions {
        cluster: CLUSTER,
        disk: DiskId(disk),
        incarnation: 1,
        extent_size: None,
        overwrite: false,
    };
    format_disk(path, DISK_BYTES, &options).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blank_disks_become_disks_with_names_and_labels() {
    let folder = tempfile::tempdir().unwrap();
    let paths: Vec<PathBuf> = (0..2).map(|n| folder.path().join(format!("{n}"))).collect();
    paths.iter().for_each(|path| blank(path));
    let mut world = World::new().await;
    world.node("a", 1, node_on(&paths)).await;
    let (disks, adopting) = world.start().await;
    disks.poll().await;
    let found = adopting.blank();
    assert_eq!(found.len(), 2);
    let added = adopting.add(&found, false).await.unwrap();
    assert!(added.iter().all(|added| added.error.is_none()), "{added:?}");
    let all = disks.all();
    let labels: Vec<&str> = all.iter().map(|disk| disk.label.as_str()).collect();
    assert_eq!(labels, ["a/0", "a/1"]);
    for disk in all.iter() {
        assert_eq!(disk.health, Health::Online);
        assert_eq!(disk.node.as_ref().unwrap().rack, "rack of a");
    }
    assert!(adopting.blank().is_empty());
    // A restart finds them.
    let (disks, adopting) = world.start().await;
    disks.poll().await;
    assert!(disks.all().iter().all(|disk| disk.health == Health::Online));
    assert_eq!(adopting.resume().await.unwrap(), 0);
}

/// Between the row and the medium, and between the medium and the mark.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn adding_is_resumed_where_it_was_cut_short() {
    let folder = tempfile::tempdir().unwrap();
    let paths: Vec<PathBuf> = (0..3).map(|n| folder.path().join(format!("{n}"))).collect();
    blank(&paths[0]);
    format(&paths[1], 11);
    format(&paths[2], 99); // Somebody else's by now: this one is not to be had any more.
    let mut world = World::new().await;
    world.node("a", 1, node_on(&paths)).await;
    for (id, path) in [(10, &paths[0]), (11, &paths[1]), (12, &paths[2])] {
        world.disk(id, 1, path, false).await;
    }
    let (disks, adopting) = world.start().await;
    assert!(disks.all().is_empty(), "what is not formatted is no disk");
    assert_eq!(adopting.resume().await.unwrap(), 3, "no node was heard of yet");
    disks.poll().await;
    assert_eq!(adopting.resume().await.unwrap(), 1);
    let online: Vec<DiskId> = disks.all().iter().map(|disk| disk.id).collect();
    assert_eq!(online, [DiskId(10), DiskId(11)]);
    assert!(disks.all().iter().all(|disk| disk.health == Health::Online));
    assert_eq!(adopting.resume().await.unwrap(), 0, "the third was given up");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_formats_what_is_blank_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let paths: Vec<PathBuf> = (0..3).map(|n| folder.path().join(format!("{n}"))).collect();
    blank(&paths[0]);
    std::fs::write(&paths[1], vec![7; DISK_BYTES as usize]).unwrap();
    format(&paths[2], 3);
    let node = node_on(&paths);
    let holds: Vec<Option<String>> = node
        .status(DEADLINE)
        .await
        .unwrap()
        .blank
        .into_iter()
        .map(|blank| blank.holds)
        .collect();
    assert_eq!(holds, [None, Some("data".to_owned())]);
    let request = |path: &Path, cluster, disk, overwrite| FormatRequest {
        path: path.display().to_string(),
        cluster,
        disk: DiskId(disk),
        incarnation: 1,
        extent_size: None,
        overwrite,
    };
    let refused = [
        request(Path::new("/etc/passwd"), CLUSTER, 4, true),
        request(&paths[0], ClusterId(7), 4, false),
        request(&paths[1], CLUSTER, 4, false),
        request(&paths[2], CLUSTER, 4, true),
    ];
    for request in refused {
        let answer = node.format(&request, DEADLINE).await;
        assert!(
            matches!(answer, Err(NodeError::BadRequest { .. })),
            "{request:?}: {answer:?}"
        );
    }
    let right = request(&paths[0], CLUSTER, 4, false);
    for _again in 0..2 {
        assert_eq!(node.format(&right, DEADLINE).await, Ok(()));
    }
    assert_eq!(
        node.format(&request(&paths[1], CLUSTER, 5, true), DEADLINE).await,
        Ok(())
    );
    let status = node.status(DEADLINE).await.unwrap();
    assert!(status.blank.is_empty());
    assert!(
        status.disks.iter().all(|disk| disk.state == DiskState::Online),
        "{status:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_hangs_delays_nothing_that_is_known_of_others() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    format(&path, 10);
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent_url = format!("http://{}", silent.local_addr().unwrap());
    let mut world = World::new().await;
    world.node("quick", 1, node_on(std::slice::from_ref(&path))).await;
    world
        .node("silent", 2, Arc::new(HttpClient::new(&silent_url).unwrap()))
        .await;
    world.disk(10, 1, &path, true).await;
    world.disk(20, 2, Path::new("/elsewhere"), true).await;
    let (disks, _) = world.start().await;
    disks.begin_poll();
    let online = async {
        while disks.get(DiskId(10)).unwrap().health != Health::Online {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(1), online)
        .await
        .expect("long before the other's deadline");
    assert_eq!(disks.nodes().named("silent").unwrap().contact(), Contact::Never);
    disks.begin_poll(); // The silent one is not asked again while it is being asked.
    let lost = async {
        while disks.nodes().named("silent").unwrap().contact() == Contact::Never {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, lost).await.unwrap();
    match &disks.get(DiskId(20)).unwrap().health {
        Health::Down(why) => assert!(why.contains("node silent at silent does not answer"), "{why}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_end_as_soon_as_their_node_stops_answering() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent_url = format!("http://{}", silent.local_addr().unwrap());
    let mut world = World::new().await;
    world
        .node("silent", 1, Arc::new(HttpClient::new(&silent_url).unwrap()))
        .await;
    let (disks, _) = world.start().await;
    let node = disks.nodes().named("silent").unwrap();
    let began = tokio::time::Instant::now();
    let (answer, ()) = tokio::join!(node.client.units(DiskId(10), 1, DEADLINE), disks.poll_node(&node));
    let ended = NodeError::Unreachable {
        what: "the node stopped answering".into(),
    };
    assert_eq!(answer, Err(ended));
    assert!(began.elapsed() < DEADLINE / 2, "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_cannot_be_reached_makes_its_whole_node_suspect_until_it_answers() {
    let folder = tempfile::tempdir().unwrap();
    let mut paths = Vec::new();
    for disk in 10..13 {
        let path = folder.path().join(disk.to_string());
        format(&path, disk);
        paths.push(path);
    }
    let mut world = World::new().await;
    world.node("one", 1, node_on(&paths[..2])).await;
    world.node("other", 2, node_on(&paths[2..])).await;
    for (disk, node) in [(10, 1), (11, 1), (12, 2)] {
        world.disk(disk, node, &paths[disk as usize - 10], true).await;
    }
    let (disks, _) = world.start().await;
    disks.poll().await;
    let writable = || [10, 11, 12].map(|disk| disks.get(DiskId(disk)).unwrap().writable());
    assert_eq!(writable(), [true; 3]);
    let refused = NodeError::Unreachable {
        what: "refused".into(),
    };
    disks.report(DiskId(10), &refused);
    assert_eq!(writable(), [false, false, true]);
    disks.poll().await;
    assert_eq!(writable(), [true; 3]);
    // That a disk is late says nothing of the one beside it.
    disks.report(DiskId(10), &NodeError::Timeout);
    assert_eq!(writable(), [false, true, true]);
}

/// A clone, or a disk that was carried to another machine: the failure domain of its units would not be what it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_is_used_on_its_own_node_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    format(&path, 10);
    let copy = folder.path().join("copy");
    std::fs::copy(&path, &copy).unwrap();
    let mut world = World::new().await;
    world.node("own", 1, node_on(&[])).await;
    world.node("other", 2, node_on(&[copy])).await;
    world.disk(10, 1, &path, true).await;
    let (disks, _) = world.start().await;
    disks.poll().await;
    disks.poll().await;
    let disk = disks.get(DiskId(10)).unwrap();
    assert_eq!(
        disk.health,
        Health::Down("node other shows it, where it does not belong".into())
    );
    assert!(disk.client.is_none());
    // Where it belongs it serves, whatever the other shows.
    world.node("own", 1, node_on(&[path])).await;
    let (disks, _) = world.start().await;
    disks.poll().await;
    assert_eq!(disks.get(DiskId(10)).unwrap().health, Health::Online);
}
