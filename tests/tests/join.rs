//! A cluster of several processes: made, joined, refused where it should be, restarted, over mutual TLS.

// A failed `unwrap` is a failed test, in the functions beside the tests too.
#![allow(clippy::unwrap_used)]

use std::net::TcpListener;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::process::Output;
use std::time::Duration;

use cairn_tests::content::Content;
use cairn_tests::node;
use cairn_tests::processes::{Processes, cairn, run};
use cairn_tests::status::wait_until;
use storage_node::protocol::DiskId;

const PATIENCE: Duration = Duration::from_secs(30);

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn refused_with(output: &Output, words: &str) {
    let errors = errors(output);
    assert!(!output.status.success(), "{errors}");
    assert!(errors.contains(words), "{errors}");
}

#[test]
fn three_nodes_serve_and_come_back_without_token() {
    let mut cluster = Processes::start(3, 1, "rs(2,1)");
    cluster.allow_lost_nodes();
    let client = cluster.client();
    client.create_bucket("first");
    let small = Content::random(1_000).make();
    let large = Content::random(5 << 20).make();
    client.put("first", "small", &small).unwrap();
    client.put("first", "large", &large).unwrap();
    let all_reads = |cluster: &Processes| {
        let client = cluster.client();
        assert_eq!(client.get("first", "small").unwrap(), small);
        assert_eq!(client.get("first", "large").unwrap(), large);
    };
    all_reads(&cluster);

    // Nothing is spoken but TLS, and nobody is served without a certificate.
    let host = [("host".to_owned(), "node".to_owned())];
    let plain = cairn_tests::http::exchange(cluster.node_address(0), "GET", "/v1/status", &host, &[]);
    assert!(plain.is_err(), "{plain:?}");

    cluster.kill_node(1);
    cluster.wait_until_lost(1);
    let reason = cluster.node(1)["reason"].as_str().unwrap().to_owned();
    assert!(
        reason.contains("node node-1 at") && reason.contains("refused"),
        "{reason}"
    );
    let status = cluster.status();
    let disk = status["disks"]
        .as_array()
        .unwrap()
        .iter()
        .find(|disk| disk["label"] == "node-1/0");
    assert!(
        disk.unwrap()["reason"].as_str().unwrap().contains("node-1"),
        "{status}"
    );
    all_reads(&cluster);
    cluster.restart_node(1);
    cluster.wait_until_ready();
    client.put("first", "again", &small).unwrap();

    cluster.kill_gateway();
    cluster.restart_gateway();
    cluster.wait_until_ready();
    all_reads(&cluster);
    cluster.client().put("first", "after", &small).unwrap();
    assert!(cluster.terminate_gateway().success());
    assert!(cluster.terminate_node(0).success());
}

#[test]
fn a_node_that_moved_is_found() {
    let mut cluster = Processes::start(1, 1, "replica(1)");
    cluster.allow_lost_nodes();
    cluster.kill_node(0);
    cluster.wait_until_lost(0);
    // The port is free again as soon as this is dropped; nobody else is told of it.
    let port = TcpListener::bind("127.0.0.1:0").unwrap();
    let moved = port.local_addr().unwrap().to_string();
    drop(port);
    cluster.spawn_node(0, &["--listen", &moved, "--zone", "z-2"]);
    cluster.wait_until_online(0);
    let node = cluster.node(0);
    assert_eq!(
        (node["address"].as_str(), node["zone"].as_str()),
        (Some(moved.as_str()), Some("z-2"))
    );
}

#[test]
fn a_gateway_without_nodes_refuses_writes_until_disks_are_added() {
    let mut cluster = Processes::start_gateway("replica(2)");
    let client = cluster.client();
    client.create_bucket("first");
    cluster.allow("request failed");
    let refused = client.put("first", "k", b"content").unwrap_err();
    assert_eq!(refused.status(), Some(503), "{refused}");
    assert_eq!(cluster.status()["healthy"], false);
    for _ in 0..2 {
        cluster.add_node(1);
    }
    let refused = client.put("first", "k", b"content").unwrap_err();
    assert_eq!(refused.status(), Some(503), "{refused}");
    let added = cluster.cairn(&["disk", "add", "--all", "--yes", "--json"]);
    assert!(added.status.success(), "{added:?}");
    let added: serde_json::Value = serde_json::from_slice(&added.stdout).unwrap();
    assert_eq!(added["disks"].as_array().unwrap().len(), 2, "{added}");
    cluster.wait_until_ready();
    client.put("first", "k", b"content").unwrap();
    assert_eq!(client.get("first", "k").unwrap(), b"content");
}

#[test]
fn tokens_that_are_used_expired_or_unknown_are_refused_in_words() {
    let mut cluster = Processes::start_gateway("rs(2,1)");
    cluster.allow("a node was not let in");
    let used = cluster.token();
    let first = cluster.prepare_node(0);
    cluster.spawn_node(first, &["--join", &used]);
    cluster.wait_until_online(first);
    let second = cluster.prepare_node(0);
    refused_with(
        &cluster.node_refused(second, &["--join", &used]),
        "the token was used, by node node-0",
    );
    let made = cluster.cairn(&["node", "token", "--ttl", "1s"]);
    let expired = String::from_utf8(made.stdout).unwrap().trim().to_owned();
    std::thread::sleep(Duration::from_millis(1_100));
    refused_with(
        &cluster.node_refused(second, &["--join", &expired]),
        "the token expired",
    );
    let (rest, secret) = expired.rsplit_once('/').unwrap();
    let unknown = format!("{rest}/{}", secret.chars().rev().collect::<String>());
    refused_with(
        &cluster.node_refused(second, &["--join", &unknown]),
        "the token is unknown",
    );
    refused_with(
        &cluster.node_refused(second, &["--join", "nonsense"]),
        "cairn node token",
    );
    refused_with(&cluster.node_refused(second, &[]), "has joined no cluster");
    // A name belongs to whoever had it first.
    let good = cluster.token();
    let taken = cluster.node_refused(second, &["--name", "node-0", "--join", &good]);
    refused_with(&taken, "already, with another key");
    // A token that led nowhere is still good.
    cluster.spawn_node(second, &["--join", &good]);
    cluster.wait_until_online(second);
    assert!(
        !cluster.gateway_log().contains(good.rsplit('/').next().unwrap()),
        "a secret was logged"
    );
}

#[test]
fn a_node_of_another_cluster_is_refused_and_told_on_both_sides() {
    let mut ours = Processes::start(1, 0, "replica(1)");
    let mut theirs = Processes::start(1, 0, "replica(1)");
    ours.allow_lost_nodes();
    theirs.allow_lost_nodes();
    theirs.allow("connection refused");
    ours.kill_node(0);
    theirs.kill_node(0);
    // Where our node was, theirs serves now.
    let address = ours.node_address(0).to_string();
    theirs.spawn_node(0, &["--listen", &address]);
    let reason = || ours.node(0)["reason"].as_str().unwrap_or_default().to_owned();
    let their_id = theirs.node(0)["id"].as_str().unwrap().to_owned();
    let is_told = || reason().contains(&format!("it shows the certificate of node {their_id} of cluster"));
    wait_until("the gateway says whose it is", PATIENCE, is_told, reason);
    let told = || theirs.node_log(0).contains("refused this side's certificate");
    wait_until("the node says that it is refused", PATIENCE, told, || {
        theirs.node_log(0)
    });
    // With its certificate it joins nobody else.
    theirs.kill_node(0);
    let refused = theirs.node_refused(0, &["--join", &ours.token()]);
    refused_with(&refused, "the token is of another cluster");
}

#[test]
fn disks_are_added_as_the_operator_saw_them() {
    let mut cluster = Processes::start_gateway("replica(1)");
    let index = cluster.prepare_node(3);
    // One has a filesystem, one is of another cluster.
    let file = std::fs::File::options()
        .write(true)
        .open(cluster.disk(index, 1))
        .unwrap();
    file.write_all_at(&[0x53, 0xEF], 1_080).unwrap();
    std::fs::remove_file(cluster.disk(index, 2)).unwrap();
    node::format(&cluster.disk(index, 2), 64 << 20, DiskId(9));
    cluster.allow("disk not opened");
    let token = cluster.token();
    cluster.spawn_node(index, &["--join", &token]);
    cluster.wait_until_online(index);
    let path = |disk| cluster.disk(index, disk).display().to_string();
    let list = cluster.admin_json("/v1/disks");
    assert_eq!(list["blank"].as_array().unwrap().len(), 2, "{list}");
    assert_eq!(list["strange"][0]["path"], path(2), "{list}");
    assert!(
        list["strange"][0]["reason"]
            .as_str()
            .unwrap()
            .contains("belongs to cluster"),
        "{list}"
    );

    refused_with(&cluster.cairn(&["disk", "add", "--all"]), "say --yes");
    let planned = cluster.cairn(&["disk", "add", "--all", "--dry-run"]);
    let plan = String::from_utf8(planned.stdout).unwrap();
    assert!(plan.contains(&path(0)) && !plan.contains(&path(1)), "{plan}");
    assert_eq!(
        cluster.admin_json("/v1/disks")["disks"].as_array().unwrap().len(),
        0
    );

    assert!(cluster.cairn(&["disk", "add", "--all", "--yes"]).status.success());
    refused_with(
        &cluster.cairn(&["disk", "add", "--yes", &path(1)]),
        "holds an ext4 filesystem",
    );
    refused_with(
        &cluster.cairn(&["disk", "add", "--yes", &path(2)]),
        "no node has a blank disk",
    );
    refused_with(
        &cluster.cairn(&["disk", "add", "--yes", &path(0)]),
        "no node has a blank disk",
    );
    let added = cluster.cairn(&[
        "disk",
        "add",
        "--yes",
        "--overwrite",
        "--node",
        "node-0",
        &path(1),
    ]);
    assert!(added.status.success(), "{added:?}");
    let list = cluster.admin_json("/v1/disks");
    let labels: Vec<&str> = list["disks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|d| d["label"].as_str().unwrap())
        .collect();
    assert_eq!(labels, ["node-0/0", "node-0/1"], "{list}");
    cluster.wait_until_online(index);
}

#[test]
fn init_makes_a_cluster_once_and_keeps_its_secrets() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("gateway");
    let init = || {
        run(cairn()
            .arg("init")
            .arg("--data")
            .arg(&data)
            .args(["--name", "main"]))
    };
    let made = init();
    assert!(made.status.success(), "{made:?}");
    for name in ["authority.key", "gateway.key", "credentials"] {
        let mode = data.join(name).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    refused_with(&init(), "holds a cluster already");
    refused_with(&run(cairn().arg("dev").arg("--data").arg(&data)), "cairn gateway");
    let checked = run(cairn().args(["config", "check"]).arg(data.join("cairn.toml")));
    assert!(checked.status.success(), "{checked:?}");
    std::fs::remove_file(data.join("cairn.toml")).unwrap();
    std::fs::remove_file(data.join("ledger.redb")).unwrap();
    refused_with(&init(), "not finished");
}

#[test]
fn a_node_without_cluster_serves_loopback_alone() {
    let refused = run(cairn().args(["node", "--disk", "/nowhere", "--listen", "0.0.0.0:0"]));
    refused_with(&refused, "on loopback only");
}

#[test]
fn every_mistake_in_a_configuration_is_explained() {
    let directory = tempfile::tempdir().unwrap();
    let wrong = r#"name = "node-1"

[gateway]
listen = "localhost:9000"
admin-listen = "127.0.0.1:9001"
join_listen = "0.0.0.0:9002"
memory = "4 parsecs"
kernel = 3

[nod]
data = "x"

[node]
name = "node 1"
address = "0.0.0.0:9100"
rack = ""
disks = ["/dev/sdb", 7, "/dev/sdb", ""]
verify_every = "1 fortnight"
colour = "grey"
"#;
    let path = directory.path().join("cairn.toml");
    std::fs::write(&path, wrong).unwrap();
    let expected = r#"cairn.toml:1:1: `name` is in no section; put it below a line [node]
cairn.toml:3:2: [gateway] lacks `data`; add a line like data = "/var/lib/cairn/gateway"
cairn.toml:4:10: `listen`: "localhost:9000" is not an address to listen on; write IP:PORT, as 127.0.0.1:9000 or 0.0.0.0:9000
cairn.toml:5:1: unknown key `admin-listen` in [gateway]; did you mean `admin_listen`?
cairn.toml:6:15: `join_listen` is every interface, which does not say how others reach it; add a line like join_address = "10.0.0.1:9002"
cairn.toml:7:10: `memory`: "4 parsecs" is not a size; write 64KiB, 512MiB, 10GiB or a number of bytes
cairn.toml:8:10: `kernel` is written like "avx2", and this is an integer
cairn.toml:10:2: unknown section [nod]; did you mean [node]?
cairn.toml:13:2: [node] lacks `data`; add a line like data = "/var/lib/cairn/node"
cairn.toml:14:8: `name`: "node 1" cannot be a name: letters, digits, `-`, `_` and `.`, a letter or digit first, at most 63
cairn.toml:15:11: `address`: "0.0.0.0:9100" is not an address to connect to: it means every interface, and no machine
cairn.toml:16:8: `rack`: "" cannot be a name: letters, digits, `-`, `_` and `.`, a letter or digit first, at most 63
cairn.toml:17:22: `disks` is a list of paths, and this is an integer
cairn.toml:17:25: `disks`: "/dev/sdb" is there twice
cairn.toml:17:37: `disks`: the path is empty
cairn.toml:18:16: `verify_every`: "1 fortnight" is not a span of time; write 90s, 15m, 1h or 7d, or never
cairn.toml:19:1: unknown key `colour` in [node]; there are name, data, listen, address, rack, zone, disks, verify_every
cairn: 17 mistakes in the configuration
"#;
    let check = run(cairn()
        .args(["config", "check", "cairn.toml"])
        .current_dir(&directory));
    assert_eq!(check.status.code(), Some(1));
    assert_eq!(errors(&check), expected);
    // Whoever reads a configuration says the same.
    let start = run(cairn()
        .args(["node", "--config", "cairn.toml"])
        .current_dir(&directory));
    assert_eq!(start.status.code(), Some(1));
    assert_eq!(errors(&start), expected);
}
