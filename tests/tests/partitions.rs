//! A network that splits: the gateway and half of the machines on one side, the others on the other, both ways or one way only, for
//! longer than the grace period, under load. Nobody is given up, writes go on, nothing is lost or wrong; and once it is whole
//! again, the ledger and the disks agree.

// A failed `unwrap` is a failed test, in the functions beside the tests too.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use cairn_tests::mixed_load::{self, Report};
use cairn_tests::model::Model;
use cairn_tests::processes::Processes;
use cairn_tests::setting::{number, scaled};
use cairn_tests::status::wait_until;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(90);
const BUCKET: &str = "partitions";
const NODES: usize = 8;
const CLIENTS: usize = 6;
const GRACE: Duration = Duration::from_secs(2);
/// A write may fail this long after the split: see `tests/faults.rs`.
const FAULT_NOTICED: Duration = Duration::from_secs(3);

/// Which packets are lost between the gateway and the far side.
#[derive(Clone, Copy, Debug)]
enum Lost {
    All,
    ToNodes,
    FromNodes,
}

fn split(cluster: &Processes, far: &[usize], lost: Lost) {
    for &node in far {
        if !matches!(lost, Lost::FromNodes) {
            cluster.cut_to_node(node);
        }
        if !matches!(lost, Lost::ToNodes) {
            cluster.cut_from_node(node);
        }
    }
}

fn heal(cluster: &Processes, far: &[usize], lost: Lost) {
    for &node in far {
        if !matches!(lost, Lost::FromNodes) {
            cluster.heal_to_node(node);
        }
        if !matches!(lost, Lost::ToNodes) {
            cluster.heal_from_node(node);
        }
    }
}

#[track_caller]
fn assert_right(cluster: &Processes, model: &mut Model, when: &str) {
    let violations = model.check(&cluster.client(), BUCKET);
    assert!(violations.is_empty(), "{when}:\n{}", violations.join("\n"));
}

/// Reads may fail, or break off, while too many shards are on the far side; writes go on, but for a moment after the split.
#[track_caller]
fn assert_writes_went_on(report: &Report, splits: &[Instant]) {
    assert!(report.violations.is_empty(), "{}", report.violations.join("\n"));
    for done in report.failed().filter(|done| !done.what.starts_with("GET")) {
        let is_soon = |split: &Instant| done.ended > *split && done.ended < *split + FAULT_NOTICED;
        assert!(splits.iter().any(is_soon), "{done:?}");
    }
}

fn is_settled(status: &Value) -> bool {
    let queues = ["garbage_blobs", "abandoned_blobs", "suspect_shards", "requests"];
    status["healthy"] == true && queues.iter().all(|queue| status["queued"][queue] == 0)
}

#[test]
fn a_network_that_splits_and_heals_leaves_ledger_and_disks_agreed() {
    let grace = format!("{}s", GRACE.as_secs());
    let mut cluster = Processes::start_on_network(NODES, 2, "rs(4,2)", &["--grace", &grace]);
    cluster.allow_lost_nodes();
    for text in [
        "stripe not stored",
        "background work failed",
        "request failed",
        "download cut off",
        "disk given up",
    ] {
        cluster.allow(text);
    }
    let client = cluster.client();
    client.create_bucket(BUCKET);
    let seed = number("CAIRN_TEST_SEED", rand::random::<u64>());
    println!("CAIRN_TEST_SEED={seed}");
    let mut model = Model::default();
    for round in 0..number("CAIRN_TEST_ROUNDS", scaled(3, 20)) {
        let mut rng = StdRng::seed_from_u64(seed.wrapping_add(round));
        let mut far: Vec<usize> = (0..NODES).collect();
        far.shuffle(&mut rng);
        far.truncate(NODES / 2);
        let lost = [Lost::All, Lost::ToNodes, Lost::FromNodes][(round % 3) as usize];
        let length = GRACE + Duration::from_millis(rng.random_range(1_500..4_000));
        let start = Instant::now();
        let (report, splits) = mixed_load::during(&client, BUCKET, CLIENTS, &model, || {
            std::thread::sleep(Duration::from_millis(rng.random_range(500..2_000)));
            let splits = [Instant::now()];
            split(&cluster, &far, lost);
            std::thread::sleep(length);
            heal(&cluster, &far, lost);
            std::thread::sleep(Duration::from_millis(1_500));
            splits
        });
        println!(
            "round {round}: {far:?}, lost: {lost:?}, {length:?}: {}",
            mixed_load::summary(&report, start)
                .lines()
                .next()
                .unwrap_or_default()
        );
        assert_writes_went_on(&report, &splits);
        model = report.model;
        client.abort_uploads(BUCKET).unwrap();
        wait_until(
            "all is settled",
            PATIENCE,
            || is_settled(&cluster.status()),
            || cluster.status().to_string(),
        );
        assert_right(&cluster, &mut model, &format!("after round {round}"));
    }

    assert!(
        !cluster.gateway_log().contains("given up"),
        "a split was taken for a loss"
    );

    // What the ledger names is on the disks, and nothing else is.
    cluster.wait_until_clean();
    assert_right(&cluster, &mut model, "after the census");
    // The other way round: when the ledger names nothing, they are empty.
    for (key, _) in model.contents() {
        client.delete(BUCKET, key).unwrap();
    }
    let is_empty = || is_settled(&cluster.status());
    wait_until("all is deleted", PATIENCE, is_empty, || {
        cluster.status().to_string()
    });
    cluster.wait_until_clean();
}
