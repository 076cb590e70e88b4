//! A cluster of several processes that loses machines and disks: what they held is rebuilt elsewhere, more losses are
//! survived then, what returns is cleared, and operators replace a disk in a command.

// A failed `unwrap` is a failed test, in the functions beside the tests too.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use cairn_tests::faults;
use cairn_tests::load::{self, SIZES};
use cairn_tests::model::Model;
use cairn_tests::processes::{Processes, said};
use cairn_tests::status::wait_until;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(90);
const BUCKET: &str = "rebuild";

fn disk_of(cluster: &Processes, node: usize) -> Value {
    let disks = cluster.status()["disks"].as_array().unwrap().clone();
    let name = format!("node-{node}");
    disks.into_iter().find(|disk| disk["node"] == name).unwrap()
}

fn is_rebuilt(cluster: &Processes, node: usize) -> bool {
    disk_of(cluster, node)["units"] == 0 && cluster.status()["rebuild"]["units"] == 0
}

#[track_caller]
fn assert_right(cluster: &Processes, model: &mut Model) {
    let violations = model.check(&cluster.client(), BUCKET);
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}

fn allow_losses(cluster: &mut Processes) {
    cluster.allow_lost_nodes();
    for text in [
        "disk given up",
        "stripe not stored",
        "background work failed",
        "shard queued for repair",
    ] {
        cluster.allow(text);
    }
}

#[test]
fn a_lost_machine_is_rebuilt_two_more_are_survived_and_it_is_cleared_when_it_returns() {
    let mut cluster = Processes::start_with(9, 1, "rs(4,2)", &["--grace", "2s"]);
    allow_losses(&mut cluster);
    cluster.client().create_bucket(BUCKET);
    let mut model = load::store(&cluster.client(), BUCKET, "old-", &SIZES);
    cluster.kill_node(0);
    cluster.wait_until_lost(0);
    // Writes go on meanwhile, on the others.
    model.merge(load::store(&cluster.client(), BUCKET, "meanwhile-", &SIZES));
    let seen = || cluster.status().to_string();
    wait_until(
        "the machine's disk is rebuilt",
        PATIENCE,
        || is_rebuilt(&cluster, 0),
        seen,
    );
    assert_eq!(disk_of(&cluster, 0)["membership"], "absent");
    assert_right(&cluster, &mut model);

    cluster.kill_node(3);
    cluster.kill_node(6);
    cluster.wait_until_lost(3);
    cluster.wait_until_lost(6);
    assert_right(&cluster, &mut model);

    for node in [0, 3, 6] {
        cluster.restart_node(node);
    }
    let is_back = || {
        let disks = [0, 3, 6].map(|node| disk_of(&cluster, node));
        disks.iter().all(|disk| disk["membership"] == "active") && cluster.status()["rebuild"]["units"] == 0
    };
    wait_until("all are back in service", PATIENCE, is_back, || {
        cluster.status().to_string()
    });
    assert_right(&cluster, &mut model);
}

#[test]
fn a_dead_disk_is_replaced_in_one_command_and_a_drained_one_ends_empty() {
    let mut cluster = Processes::start(7, 1, "rs(4,2)");
    allow_losses(&mut cluster);
    for text in [
        "cairn::",
        "is not used",
        "invalid",
        "overwritten",
        "disk down",
        "cannot be opened",
    ] {
        cluster.allow(text);
    }
    cluster.client().create_bucket(BUCKET);
    let mut model = load::store(&cluster.client(), BUCKET, "object-", &SIZES);
    // The disk dies; an empty one is put into the same machine.
    faults::scramble(&cluster.disk(2, 0));
    let dead = disk_of(&cluster, 2)["label"].as_str().unwrap().to_owned();
    let is_down = || disk_of(&cluster, 2)["state"] == "down";
    wait_until("the disk is down", PATIENCE, is_down, || {
        cluster.status().to_string()
    });
    let refused = cluster.cairn(&["disk", "replace", &dead, "--yes"]);
    assert!(
        !refused.status.success() && said(&refused).contains("no node has an empty disk"),
        "{}",
        said(&refused)
    );
    cluster.add_blank_disk(2);
    let planned = cluster.cairn(&["disk", "replace", &dead, "--dry-run"]);
    assert!(said(&planned).contains("to 6 disks"), "{}", said(&planned));
    let replaced = cluster.cairn(&["disk", "replace", &dead, "--yes"]);
    assert!(replaced.status.success(), "{}", said(&replaced));
    let waited = cluster.cairn(&["rebuild", "status", "--wait"]);
    assert!(
        said(&waited).contains("nothing is to be rebuilt"),
        "{}",
        said(&waited)
    );
    let removed = cluster.cairn(&["disk", "remove", &dead, "--yes"]);
    assert!(removed.status.success(), "{}", said(&removed));
    assert_right(&cluster, &mut model);

    // Every shard is somewhere, whole.
    let key = model.contents()[0].0.to_owned();
    let located = cluster.cairn(&["object", "locate", BUCKET, &key]);
    assert!(
        located.status.success() && !said(&located).contains("being rebuilt"),
        "{}",
        said(&located)
    );

    let drained = disk_of(&cluster, 5)["label"].as_str().unwrap().to_owned();
    let plan = cluster.cairn(&["disk", "drain", &drained, "--dry-run", "--json"]);
    let plan: Value = serde_json::from_slice(&plan.stdout).unwrap();
    assert_eq!(plan["spare_then"], plan["spare_now"], "{plan}");
    let asked = cluster.cairn(&["disk", "drain", &drained]);
    assert!(
        !asked.status.success() && said(&asked).contains("say --yes"),
        "{}",
        said(&asked)
    );
    let done = cluster.cairn(&["disk", "drain", &drained, "--yes"]);
    assert!(done.status.success(), "{}", said(&done));
    wait_until(
        "the disk is drained",
        PATIENCE,
        || is_rebuilt(&cluster, 5),
        || cluster.status().to_string(),
    );
    assert_right(&cluster, &mut model);
}

#[test]
fn what_would_lose_data_is_refused_until_the_disk_is_named_twice() {
    let mut cluster = Processes::start(6, 1, "rs(4,2)");
    allow_losses(&mut cluster);
    cluster.client().create_bucket(BUCKET);
    load::store(&cluster.client(), BUCKET, "object-", &SIZES);
    for node in [0, 1] {
        cluster.kill_node(node);
        cluster.wait_until_lost(node);
    }
    let disk = disk_of(&cluster, 3)["label"].as_str().unwrap().to_owned();
    let refused = cluster.cairn(&["disk", "retire", &disk, "--yes"]);
    assert!(
        !refused.status.success() && said(&refused).contains("could not be read without"),
        "{}",
        said(&refused)
    );
    assert!(said(&refused).contains("LOSES"), "{}", said(&refused));
    let wrong = cluster.cairn(&["disk", "retire", &disk, "--yes", "--force", "disk-9"]);
    assert!(!wrong.status.success(), "{}", said(&wrong));
    assert_eq!(disk_of(&cluster, 3)["membership"], "active");
    let unknown = cluster.cairn(&["disk", "retire", "nodisk", "--yes"]);
    assert!(
        said(&unknown).contains("there is no disk \"nodisk\""),
        "{}",
        said(&unknown)
    );
}
