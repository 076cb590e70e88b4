//! Disks that return, and copies that return in their place: nothing deleted comes back, nothing is served wrongly, what is not there
//! any more is made again, and a census says so in the end.

// A failed `unwrap` is a failed test, in the functions beside the tests too.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use cairn_tests::load::{self, SIZES};
use cairn_tests::model::Model;
use cairn_tests::processes::{Processes, said};
use cairn_tests::status::wait_until;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(90);
const BUCKET: &str = "returning";

fn start(further: &[&str]) -> (Processes, Model) {
    let mut cluster = Processes::start_with(8, 1, "rs(4,2)", further);
    cluster.allow_lost_nodes();
    for text in [
        "disk given up",
        "stripe not stored",
        "background work failed",
        "queued for repair",
    ] {
        cluster.allow(text);
    }
    cluster.client().create_bucket(BUCKET);
    let model = load::store(&cluster.client(), BUCKET, "old-", &SIZES);
    (cluster, model)
}

fn disk_of(cluster: &Processes, node: usize) -> Value {
    let disks = cluster.status()["disks"].as_array().unwrap().clone();
    let name = format!("node-{node}");
    disks.into_iter().find(|disk| disk["node"] == name).unwrap()
}

/// Some objects are deleted, and others come.
fn change(cluster: &Processes, model: &mut Model, name: &str) {
    let known: Vec<String> = model
        .contents()
        .iter()
        .map(|(key, _)| (*key).to_owned())
        .collect();
    for key in known.iter().step_by(2) {
        cluster.client().delete(BUCKET, key).unwrap();
        model.acknowledged(key, None);
    }
    model.merge(load::store(&cluster.client(), BUCKET, name, &SIZES));
}

#[track_caller]
fn assert_right(cluster: &Processes, model: &mut Model) {
    let violations = model.check(&cluster.client(), BUCKET);
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp")
        .arg("--sparse=always")
        .args([from, to])
        .status();
    assert!(copied.unwrap().success());
}

fn wait_for_disk(cluster: &Processes, node: usize, what: &str, is_so: impl Fn(&Value) -> bool) {
    let seen = || format!("{}\n{}", cluster.status(), cluster.node_log(node));
    wait_until(what, PATIENCE, || is_so(&disk_of(cluster, node)), seen);
}

fn is_a_copy(disk: &Value) -> bool {
    let reason = disk["reason"].as_str().unwrap_or_default();
    disk["state"] == "down" && reason.contains("a copy of an earlier state")
}

#[test]
fn a_disk_that_returns_before_or_after_it_was_replaced_brings_nothing_back() {
    let (mut cluster, mut model) = start(&["--grace", "15s"]);
    // Before.
    cluster.kill_node(1);
    cluster.wait_until_lost(1);
    change(&cluster, &mut model, "meanwhile-");
    cluster.restart_node(1);
    assert_right(&cluster, &mut model);
    cluster.wait_until_clean();
    // After.
    cluster.kill_node(1);
    cluster.wait_until_lost(1);
    change(&cluster, &mut model, "again-");
    wait_for_disk(&cluster, 1, "the disk is replaced", |disk| {
        disk["membership"] == "absent" && disk["units"] == 0
    });
    cluster.restart_node(1);
    wait_for_disk(&cluster, 1, "the disk is back and empty", |disk| {
        disk["membership"] == "active" && disk["state"] == "online"
    });
    assert_right(&cluster, &mut model);
    cluster.wait_until_clean();
}

#[test]
fn an_old_copy_of_a_disk_serves_nothing_and_its_space_is_free_when_the_disk_was_replaced() {
    let (mut cluster, mut model) = start(&["--grace", "15s"]);
    let (disk, aside) = (cluster.disk(2, 0), cluster.node_directory(2).join("aside"));
    assert!(cluster.terminate_node(2).success());
    copy(&disk, &aside);
    cluster.restart_node(2);
    change(&cluster, &mut model, "new-");
    assert!(cluster.terminate_node(2).success());
    std::fs::rename(&aside, &disk).unwrap();
    cluster.spawn_node(2, &[]);
    wait_for_disk(&cluster, 2, "the copy is refused", is_a_copy);
    assert_right(&cluster, &mut model);
    change(&cluster, &mut model, "newer-");
    // It is still one when it is opened again, and again.
    cluster.kill_node(2);
    cluster.spawn_node(2, &[]);
    wait_for_disk(&cluster, 2, "the copy is refused or cleared", |disk| {
        is_a_copy(disk) || disk["membership"] != "active"
    });
    wait_for_disk(
        &cluster,
        2,
        "what it held is rebuilt, and it is cleared",
        |disk| disk["membership"] == "active" && disk["state"] == "online" && disk["units"] == 0,
    );
    assert_right(&cluster, &mut model);
    cluster.wait_until_clean();
    let key = model.contents()[0].0.to_owned();
    let located = || said(&cluster.cairn(&["object", "locate", BUCKET, &key]));
    let is_seen = || located().contains("disk verified") && !located().contains("not yet");
    wait_until("every unit was looked at", PATIENCE, is_seen, located);
}

#[test]
fn what_a_new_copy_of_a_disk_lacks_is_made_again_and_the_disk_itself_is_an_old_copy_then() {
    let (mut cluster, mut model) = start(&[]);
    let (disk, aside) = (cluster.disk(3, 0), cluster.node_directory(3).join("aside"));
    let original = cluster.node_directory(3).join("original");
    // The medium is at rest: its last superblock says so.
    std::thread::sleep(Duration::from_secs(2));
    copy(&disk, &aside);
    change(&cluster, &mut model, "new-");
    cluster.kill_node(3);
    cluster.wait_until_lost(3);
    std::fs::rename(&disk, &original).unwrap();
    std::fs::rename(&aside, &disk).unwrap();
    cluster.restart_node(3);
    assert_right(&cluster, &mut model);
    cluster.wait_until_clean();
    assert_right(&cluster, &mut model);
    cluster.kill_node(3);
    cluster.wait_until_lost(3);
    std::fs::rename(&original, &disk).unwrap();
    cluster.spawn_node(3, &[]);
    wait_for_disk(&cluster, 3, "the disk itself is refused", is_a_copy);
    assert_right(&cluster, &mut model);
}

#[test]
fn the_pace_of_verifying_reaches_every_node_and_those_that_come_later() {
    let (mut cluster, _) = start(&[]);
    let paced = cluster.cairn(&["scrub", "pace", "3d"]);
    assert!(
        said(&paced).contains("every disk is read once in 3 d"),
        "{}",
        said(&paced)
    );
    let cycles = |cluster: &Processes| -> Vec<Value> {
        let disks = cluster.admin_json("/v1/scrub")["disks"]
            .as_array()
            .unwrap()
            .clone();
        disks
            .iter()
            .map(|disk| disk["verify"]["cycle_s"].clone())
            .collect()
    };
    let are_set = |cluster: &Processes| cycles(cluster).iter().all(|cycle| *cycle == 3 * 86_400);
    let seen = || cluster.admin_json("/v1/scrub").to_string();
    wait_until("every node has it", PATIENCE, || are_set(&cluster), seen);
    cluster.kill_node(0);
    cluster.wait_until_lost(0);
    cluster.kill_gateway();
    cluster.restart_gateway();
    cluster.restart_node(0);
    let seen = || cluster.admin_json("/v1/scrub").to_string();
    wait_until("it has it again", PATIENCE, || are_set(&cluster), seen);
    let refused = cluster.cairn(&["scrub", "pace", "3s"]);
    assert!(!refused.status.success() && said(&refused).contains("at least a minute"));
    let status = said(&cluster.cairn(&["scrub", "status"]));
    assert!(status.contains("every disk is read once in 3 d"), "{status}");
}
