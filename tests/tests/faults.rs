//! Machines that die, are cut off, or are stopped on purpose, under load: real processes on a network of namespaces, with
//! loop devices as disks. Nothing acknowledged is lost or wrong, and clients, who try nothing again, hardly notice.

// A failed `unwrap` is a failed test, in the functions beside the tests too.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use cairn_tests::client::Request;
use cairn_tests::content::Content;
use cairn_tests::http::Connection;
use cairn_tests::load::{self, SIZES};
use cairn_tests::mixed_load::{self, Report};
use cairn_tests::model::Model;
use cairn_tests::processes::Processes;
use cairn_tests::setting::scaled;
use cairn_tests::status::wait_until;

const PATIENCE: Duration = Duration::from_secs(90);
const BUCKET: &str = "faults";
/// Two gateways' worth of them.
const CLIENTS: usize = 8;
/// A request may fail this long after a fault.
const FAULT_NOTICED: Duration = Duration::from_secs(3);
/// No request takes longer, whatever fails: its deadlines alone would let it wait for 10 s.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(6);

fn seconds(short: u64, everything: u64) -> Duration {
    Duration::from_secs(scaled(short, everything))
}

/// What a gateway says when machines go away under load.
fn allow_faults(cluster: &mut Processes) {
    cluster.allow_lost_nodes();
    for text in ["stripe not stored", "background work failed"] {
        cluster.allow(text);
    }
}

#[track_caller]
fn assert_right(cluster: &Processes, model: &mut Model) {
    let violations = model.check(&cluster.client(), BUCKET);
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}

/// Waits until all disks are there and nothing is left to be done in the background.
fn wait_until_quiet(cluster: &Processes) {
    let is_quiet = || cluster.status()["healthy"] == true;
    wait_until("the cluster is healthy", PATIENCE, is_quiet, || {
        cluster.status().to_string()
    });
}

#[track_caller]
fn assert_none_waited(report: &Report) {
    for done in &report.requests {
        assert!(done.ended - done.began < REQUEST_TIME_MAX, "{done:?}");
    }
}

/// No wrong byte, fewer than one request in a thousand failed, and none of them long after a fault.
#[track_caller]
fn assert_hardly_noticed(report: &Report, faults: &[Instant]) {
    assert!(report.violations.is_empty(), "{}", report.violations.join("\n"));
    let failed = report.failed().count();
    assert!(failed * 1_000 < report.requests.len(), "{failed} requests failed");
    assert_none_waited(report);
    for done in report.failed() {
        let is_soon = |fault: &Instant| done.ended > *fault && done.ended < *fault + FAULT_NOTICED;
        assert!(faults.iter().any(is_soon), "failed long after a fault: {done:?}");
    }
}

/// One machine is killed, then another's cable is pulled for a while, then both come back.
fn one_killed_and_one_cut_off(nodes: usize) {
    let mut cluster = Processes::start_on_network(nodes, 2, "rs(4,2)", &[]);
    allow_faults(&mut cluster);
    let client = cluster.client();
    client.create_bucket(BUCKET);
    let start = Instant::now();
    let (mut report, faults) = mixed_load::during(&client, BUCKET, CLIENTS, &Model::default(), || {
        std::thread::sleep(seconds(3, 20));
        let mut faults = vec![Instant::now()];
        cluster.kill_node(1);
        std::thread::sleep(seconds(5, 30));
        faults.push(Instant::now());
        cluster.unplug_node(4);
        std::thread::sleep(seconds(8, 60));
        let seen = cluster.status();
        assert_eq!(seen["degraded"]["disks"], 4, "{seen}");
        faults.push(Instant::now());
        cluster.plug_node(4);
        cluster.restart_node(1);
        cluster.wait_until_online(4);
        std::thread::sleep(seconds(4, 30));
        faults
    });
    println!("{nodes} nodes: {}", mixed_load::summary(&report, start));
    assert_hardly_noticed(&report, &faults);
    assert_right(&cluster, &mut report.model);
    client.abort_uploads(BUCKET).unwrap();
    wait_until_quiet(&cluster);
    assert_right(&cluster, &mut report.model);
}

#[test]
fn eight_machines_lose_one_and_miss_another_under_load() {
    one_killed_and_one_cut_off(8);
}

#[test]
fn six_machines_write_narrower_while_two_are_away() {
    one_killed_and_one_cut_off(6);
}

/// Every machine in turn is asked to stop, and started again once it has, under load. Then the gateway is.
#[test]
fn a_rolling_restart_fails_no_request() {
    let nodes = scaled(6, 8);
    let mut cluster = Processes::start_on_network(nodes, 2, "rs(4,2)", &[]);
    allow_faults(&mut cluster);
    let client = cluster.client();
    client.create_bucket(BUCKET);
    let start = Instant::now();
    let (mut report, ()) = mixed_load::during(&client, BUCKET, CLIENTS, &Model::default(), || {
        for round in 0..scaled(1, 3) {
            for node in 0..nodes {
                std::thread::sleep(Duration::from_secs(1));
                let status = cluster.terminate_node(node);
                assert!(status.success(), "round {round}: node {node} ended with {status}");
                cluster.restart_node(node);
            }
        }
    });
    println!("{nodes} nodes, in turn: {}", mixed_load::summary(&report, start));
    assert_eq!(report.failed().count(), 0);
    assert_none_waited(&report);
    assert!(report.violations.is_empty(), "{}", report.violations.join("\n"));
    assert_right(&cluster, &mut report.model);

    // The gateway ends what was begun: an upload of which half was sent is taken whole.
    let content = Content::random(6_000_000);
    let body = content.make();
    let request = Request {
        method: "PUT",
        bucket: BUCKET,
        key: "halfway",
        headers: &[("content-length", "6000000")],
        ..Request::default()
    };
    let (target, headers) = client.sign(&request, cairn_tests::sigv4::UNSIGNED_PAYLOAD);
    let mut upload = Connection::open(client.address, "PUT", &target, &headers).unwrap();
    upload.send(&body[..3_000_000]).unwrap();
    let answer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(1));
        upload.send(&body[3_000_000..]).unwrap();
        upload.receive("PUT").unwrap().status
    });
    std::thread::sleep(Duration::from_millis(300));
    assert!(cluster.terminate_gateway().success());
    assert_eq!(answer.join().unwrap(), 200);
    report.model.acknowledged("halfway", Some(content));
    cluster.restart_gateway();
    client.abort_uploads(BUCKET).unwrap();
    wait_until_quiet(&cluster);
    assert_right(&cluster, &mut report.model);
}

/// A machine that stays away is given up, and what it held is rebuilt on the others: then two more may go.
#[test]
fn a_machine_that_is_out_is_rebuilt_and_two_more_may_be_lost() {
    let mut cluster = Processes::start_on_network(8, 2, "rs(4,2)", &["--grace", "2s"]);
    allow_faults(&mut cluster);
    for text in ["disk given up", "shard queued for repair"] {
        cluster.allow(text);
    }
    let client = cluster.client();
    client.create_bucket(BUCKET);
    let mut model = load::store(&client, BUCKET, "before-", &SIZES);
    let start = Instant::now();
    let (report, ()) = mixed_load::during(&client, BUCKET, scaled(2, CLIENTS), &Model::default(), || {
        std::thread::sleep(seconds(2, 20));
        cluster.kill_node(2);
        let is_given_up = || {
            disks_of(&cluster, 2)
                .iter()
                .all(|disk| disk["membership"] == "absent")
        };
        wait_until("the machine is given up", PATIENCE, is_given_up, || {
            cluster.status().to_string()
        });
        let waited = cluster.cairn(&["rebuild", "status", "--wait"]);
        assert!(waited.status.success(), "{waited:?}");
        let units: Vec<_> = disks_of(&cluster, 2)
            .iter()
            .map(|disk| disk["units"].clone())
            .collect();
        assert_eq!(units, [0, 0]);
    });
    println!("rebuilt: {}", mixed_load::summary(&report, start));
    assert_hardly_noticed(&report, &[]);
    model.merge(report.model);
    assert_right(&cluster, &mut model);
    client.abort_uploads(BUCKET).unwrap();
    cluster.wait_until_clean();

    cluster.kill_node(5);
    cluster.unplug_node(7);
    for node in [5, 7] {
        cluster.wait_until_lost(node);
    }
    assert_right(&cluster, &mut model);
    cluster.plug_node(7);
    for node in [2, 5] {
        cluster.restart_node(node);
    }
    wait_until_quiet(&cluster);
    assert_right(&cluster, &mut model);
    cluster.wait_until_clean();
}

fn disks_of(cluster: &Processes, node: usize) -> Vec<serde_json::Value> {
    let disks = cluster.status()["disks"].as_array().unwrap().clone();
    let name = format!("node-{node}");
    disks.into_iter().filter(|disk| disk["node"] == name).collect()
}
