//! Acceptance 3: any two of six disks may be lost, by damage while serving or by removal. Everything still reads
//! right, writes go on, and what is written then survives two further losses. With three gone, what was coded 4+2
//! fails with a clear 5xx and never with a wrong byte.

// A failed `unwrap` is a failed test, in the functions beside the tests too.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicBool, Ordering};

use cairn_tests::client::Client;
use cairn_tests::cluster::Cluster;
use cairn_tests::load::{self, REPLICATED_BYTES_MAX, SIZES};
use cairn_tests::model::Model;
use cairn_tests::{faults, setting};
use rand::seq::SliceRandom;

const BUCKET: &str = "disks";
const DISKS: usize = 6;

#[test]
fn two_disks_scrambled_while_serving() {
    for pair in pairs() {
        println!("scrambling {pair:?}");
        let mut cluster = cluster();
        let client = cluster.client();
        let old = load::store(&client, BUCKET, "old-", &SIZES);
        let reading = AtomicBool::new(true);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                while reading.load(Ordering::SeqCst) {
                    check_all(&client, &old, "while two disks are being scrambled");
                }
            });
            pair.iter()
                .for_each(|index| faults::scramble(&cluster.disk(*index)));
            reading.store(false, Ordering::SeqCst);
            reader.join().unwrap();
        });
        check_all(&client, &old, "two disks scrambled");
        let new = load::store(&client, BUCKET, "new-", &SIZES);
        check_all(&client, &new, "written with two disks scrambled");
        others(&pair)
            .iter()
            .take(2)
            .for_each(|index| faults::scramble(&cluster.disk(*index)));
        check_all(
            &client,
            &new,
            "written with two disks scrambled, and two more scrambled since",
        );
        check_right_or_refused(&client, &old);
        expect_alarms(&mut cluster);
    }
}

#[test]
fn two_disks_removed_and_restarted() {
    for pair in pairs() {
        println!("removing {pair:?}");
        let mut cluster = cluster();
        let client = cluster.client();
        let mut model = load::store(&client, BUCKET, "old-", &SIZES);
        lose(&mut cluster, &pair);
        let violations = model.check(&client, BUCKET);
        assert!(
            violations.is_empty(),
            "{pair:?} removed:\n{}",
            violations.join("\n")
        );
        let new = load::store(&client, BUCKET, "new-", &SIZES);
        // Two are left: enough to read, not to write.
        cluster.kill();
        remove(&cluster, &others(&pair)[..2]);
        cluster.restart_unready();
        check_all(
            &client,
            &new,
            &format!("{pair:?} removed, written, {:?} removed", &others(&pair)[..2]),
        );
        check_right_or_refused(&client, &model);
        expect_alarms(&mut cluster);
    }
}

#[test]
fn one_disk_removed_then_two_more() {
    let mut cluster = cluster();
    let client = cluster.client();
    let old = load::store(&client, BUCKET, "old-", &SIZES);
    let mut order: Vec<usize> = (0..DISKS).collect();
    order.shuffle(&mut rand::rng());
    lose(&mut cluster, &order[..1]);
    check_all(&client, &old, "one disk removed");
    let new = load::store(&client, BUCKET, "new-", &SIZES);
    lose(&mut cluster, &order[1..3]);
    check_all(
        &client,
        &new,
        "written with one disk removed, and two more removed since",
    );
    check_right_or_refused(&client, &old);
    expect_alarms(&mut cluster);
}

#[test]
fn three_disks_removed_refuse_and_never_lie() {
    let mut cluster = cluster();
    let client = cluster.client();
    let old = load::store(&client, BUCKET, "old-", &SIZES);
    lose(&mut cluster, &[0, 2, 5]);
    let refused = check_right_or_refused(&client, &old);
    let coded = SIZES
        .iter()
        .filter(|bytes| **bytes > REPLICATED_BYTES_MAX)
        .count();
    assert!(
        refused >= coded,
        "{refused} refused, {coded} were coded 4+2 and cannot be read from three disks"
    );
    assert_eq!(
        client.list(BUCKET).unwrap().len(),
        SIZES.len(),
        "the listing needs no disk"
    );
    let new = load::store(&client, BUCKET, "new-", &SIZES);
    check_all(&client, &new, "written with three disks left");
    cluster.kill();
    remove(&cluster, &[1]);
    cluster.restart_unready();
    check_all(
        &client,
        &new,
        "written with three disks left, one of them removed since",
    );
    let refusal = client.put(BUCKET, "refused", &[7; 100_000]).unwrap_err();
    assert_eq!(
        refusal.status(),
        Some(503),
        "a write with two disks left: {refusal}"
    );
    assert_eq!(client.find(BUCKET, "refused").unwrap(), None);
    expect_alarms(&mut cluster);
}

fn cluster() -> Cluster {
    let cluster = Cluster::start();
    cluster.client().create_bucket(BUCKET);
    cluster
}

/// What a lost disk makes the product say is not the subject here, as long as it does not panic.
fn expect_alarms(cluster: &mut Cluster) {
    cluster.allow("");
}

/// All 15 pairs, or four of them.
fn pairs() -> Vec<[usize; 2]> {
    let mut pairs: Vec<_> = (0..DISKS)
        .flat_map(|a| (a + 1..DISKS).map(move |b| [a, b]))
        .collect();
    assert_eq!(pairs.len(), 15);
    pairs.shuffle(&mut rand::rng());
    pairs.truncate(setting::scaled(4, 15));
    pairs
}

/// The other disks, those first that differ from pair to pair.
fn others(lost: &[usize]) -> Vec<usize> {
    let mut others: Vec<usize> = (0..DISKS).filter(|index| !lost.contains(index)).collect();
    let first = lost.iter().sum::<usize>() % others.len();
    others.rotate_left(first);
    others
}

/// Stops the cluster, removes the disks, starts it again.
fn lose(cluster: &mut Cluster, disks: &[usize]) {
    cluster.kill();
    remove(cluster, disks);
    cluster.restart();
}

fn remove(cluster: &Cluster, disks: &[usize]) {
    for index in disks {
        std::fs::remove_file(cluster.disk(*index)).unwrap();
    }
}

fn check_all(client: &Client, model: &Model, when: &str) {
    for (key, content) in model.contents() {
        match client.get(BUCKET, key) {
            Ok(found) => content.check(&found, &format!("{when}: {key}")),
            Err(failure) => panic!("{when}: {key}: {failure}"),
        }
    }
}

/// Answers how many were refused.
fn check_right_or_refused(client: &Client, model: &Model) -> usize {
    let refused = |(key, content): &(&str, cairn_tests::content::Content)| match client.get(BUCKET, key) {
        Ok(found) => {
            content.check(&found, &format!("after too many losses: {key}"));
            false
        }
        // A body that ends early is an error to every client; a status is better, where it is still possible.
        Err(failure) => {
            assert!(
                failure.status().is_none_or(|status| status >= 500),
                "{key}: {failure}"
            );
            true
        }
    };
    model.contents().iter().filter(|entry| refused(entry)).count()
}
