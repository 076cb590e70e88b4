//! A node with a valid certificate that answers wrongly, late, never or with errors, and says that all is well: clients get the
//! right bytes in time, and `cairn status` names the node, the disk and what it did.

// A failed `unwrap` is a failed test, in the functions beside the tests too.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use cairn_tests::liar::{Liar, Lie};
use cairn_tests::load::{self, SIZES};
use cairn_tests::processes::Processes;
use cairn_tests::status::wait_until;
use serde_json::Value;

const BUCKET: &str = "lies";
const PATIENCE: Duration = Duration::from_secs(60);
/// No request takes longer, whatever the node does; the machine may be busy with other tests.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(15);

fn disk_of(cluster: &Processes, node: usize) -> Value {
    let disks = cluster.status()["disks"].as_array().unwrap().clone();
    let name = format!("node-{node}");
    disks.into_iter().find(|disk| disk["node"] == name).unwrap()
}

/// The number of a node with a data shard of all that is coded: one whose answers are read.
fn node_of_data(cluster: &Processes) -> usize {
    let volumes = cluster.admin_json("/v1/volumes");
    let volumes = volumes.as_array().unwrap();
    let coded = volumes
        .iter()
        .find(|volume| volume["scheme"] == "rs(4,2)")
        .unwrap();
    let disk = coded["units"][0]["disk"].as_str().unwrap();
    let (node, _) = disk.strip_prefix("node-").unwrap().split_once('/').unwrap();
    node.parse().unwrap()
}

fn wrong_answers(cluster: &Processes, node: usize) -> u64 {
    let counts = disk_of(cluster, node)["wrong_answers"]
        .as_object()
        .unwrap()
        .clone();
    counts.values().map(|count| count.as_u64().unwrap()).sum()
}

#[test]
fn a_node_that_lies_harms_nobody_and_is_named() {
    let mut cluster = Processes::start(6, 1, "rs(4,2)");
    cluster.allow_lost_nodes();
    for text in [
        "stripe not stored",
        "shard queued for repair",
        "background work failed",
    ] {
        cluster.allow(text);
    }
    let client = cluster.client();
    client.create_bucket(BUCKET);
    let mut model = load::store(&client, BUCKET, "old-", &SIZES);
    for n in 0..12 {
        let name = format!("coded-{n}-");
        model.merge(load::store(&client, BUCKET, &name, &[600_000]));
    }
    let node = node_of_data(&cluster);
    assert!(cluster.terminate_node(node).success());
    let disk = cluster.disk(node, 0);
    let member = cluster.node_directory(node).join("member");
    let liar = Liar::start(&member, cluster.node_address(node), &[&disk]);
    cluster.wait_until_online(node);
    for (round, lie) in [
        Lie::OtherBytes,
        Lie::Forgery,
        Lie::OtherShard,
        Lie::Failing,
        Lie::Late,
        Lie::Never,
    ]
    .into_iter()
    .enumerate()
    {
        println!("{lie:?}");
        // One that has seen nothing of it yet: rests grow with what was seen.
        assert!(cluster.terminate_gateway().success());
        cluster.restart_gateway();
        cluster.wait_until_ready();
        cluster.wait_until_online(node);
        liar.tell(lie);
        let started = Instant::now();
        let violations = model.check(&client, BUCKET);
        assert!(violations.is_empty(), "{lie:?}:\n{}", violations.join("\n"));
        let name = format!("new-{round}-");
        model.merge(load::store(&client, BUCKET, &name, &[10_000, 600_000]));
        println!("{lie:?}: all read in {:?}", started.elapsed());
        assert!(
            started.elapsed() < REQUEST_TIME_MAX * 4,
            "{lie:?}: {:?}",
            started.elapsed()
        );
        if !matches!(lie, Lie::Late | Lie::Never) {
            assert!(wrong_answers(&cluster, node) > 0, "{lie:?} went unseen");
            let text = cluster.cairn(&["status"]);
            let text = String::from_utf8_lossy(&text.stdout).into_owned();
            let named = format!("of node node-{node}: ");
            assert!(
                text.contains(&named) && text.contains("wrong answers since start"),
                "{lie:?}:\n{text}"
            );
        }
        let others = (0..6).filter(|other| *other != node);
        others.for_each(|other| {
            assert_eq!(
                wrong_answers(&cluster, other),
                0,
                "{lie:?}: node {other} is blamed"
            )
        });
        // It behaves, and is trusted again, by itself.
        liar.tell(Lie::None);
        let checked = std::cell::RefCell::new(&mut model);
        let is_well = || {
            let violations = checked.borrow_mut().check(&client, BUCKET);
            assert!(violations.is_empty(), "after {lie:?}:\n{}", violations.join("\n"));
            disk_of(&cluster, node)["state"] == "online"
        };
        wait_until("the disk is trusted again", PATIENCE, is_well, || {
            disk_of(&cluster, node).to_string()
        });
    }
    drop(liar);
    cluster.restart_node(node);
}
