//! As many disks as the scheme promises may be lost, two of six with rs(4,2), by damage while serving or by removal. Everything
//! still reads right, writes go on, and what is written then survives as many further losses. With too many gone, what was
//! coded fails with a clear 5xx and never with a wrong byte.

// A failed `unwrap` is a failed test, in the functions beside the tests too.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicBool, Ordering};

use cairn_tests::client::Client;
use cairn_tests::cluster::{Cluster, Options};
use cairn_tests::load::{self, REPLICATED_BYTES_MAX, SIZES};
use cairn_tests::model::Model;
use cairn_tests::{faults, setting};
use ec_core::Scheme;
use rand::seq::SliceRandom;

const BUCKET: &str = "disks";

#[test]
fn disks_scrambled_while_serving() {
    for lost in losses() {
        println!("scrambling {lost:?}");
        let mut cluster = cluster(setting::scheme());
        let client = cluster.client();
        let old = load::store(&client, BUCKET, "old-", &SIZES);
        let reading = AtomicBool::new(true);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                while reading.load(Ordering::SeqCst) {
                    check_all(&client, &old, "while disks are being scrambled");
                }
            });
            lost.iter()
                .for_each(|index| faults::scramble(&cluster.disk(*index)));
            reading.store(false, Ordering::SeqCst);
            reader.join().unwrap();
        });
        check_all(&client, &old, "disks scrambled");
        let new = load::store(&client, BUCKET, "new-", &SIZES);
        check_all(&client, &new, "written with disks scrambled");
        let more = &others(&lost)[..lost.len()];
        more.iter()
            .for_each(|index| faults::scramble(&cluster.disk(*index)));
        check_all(
            &client,
            &new,
            "written with disks scrambled, and as many more scrambled since",
        );
        check_right_or_refused(&client, &old);
        expect_alarms(&mut cluster);
    }
}

#[test]
fn disks_removed_and_restarted() {
    for lost in losses() {
        println!("removing {lost:?}");
        let mut cluster = cluster(setting::scheme());
        let client = cluster.client();
        let mut model = load::store(&client, BUCKET, "old-", &SIZES);
        lose(&mut cluster, &lost);
        let violations = model.check(&client, BUCKET);
        assert!(
            violations.is_empty(),
            "{lost:?} removed:\n{}",
            violations.join("\n")
        );
        let new = load::store(&client, BUCKET, "new-", &SIZES);
        // Of six disks two are left: enough to read, not to write.
        cluster.kill();
        let more = &others(&lost)[..lost.len()];
        remove(&cluster, more);
        cluster.restart_alive();
        check_all(
            &client,
            &new,
            &format!("{lost:?} removed, written, {more:?} removed"),
        );
        check_right_or_refused(&client, &model);
        expect_alarms(&mut cluster);
    }
}

#[test]
fn one_disk_removed_then_more() {
    let mut cluster = cluster(setting::scheme());
    let client = cluster.client();
    let old = load::store(&client, BUCKET, "old-", &SIZES);
    let mut order: Vec<usize> = (0..setting::scheme().total_shards()).collect();
    order.shuffle(&mut rand::rng());
    lose(&mut cluster, &order[..1]);
    check_all(&client, &old, "one disk removed");
    let new = load::store(&client, BUCKET, "new-", &SIZES);
    lose(&mut cluster, &order[1..=setting::scheme().losses_survived()]);
    check_all(
        &client,
        &new,
        "written with one disk removed, and as many more as may be since",
    );
    check_right_or_refused(&client, &old);
    expect_alarms(&mut cluster);
}

#[test]
fn with_too_few_disks_left_reads_refuse_and_never_lie() {
    let scheme = setting::scheme();
    let mut cluster = cluster(scheme);
    let client = cluster.client();
    let old = load::store(&client, BUCKET, "old-", &SIZES);
    // As few as can be written to: three of six, with one copy each.
    let mut disks: Vec<usize> = (0..scheme.total_shards()).collect();
    disks.shuffle(&mut rand::rng());
    let (left, gone) = disks.split_at(scheme.losses_survived() + 1);
    lose(&mut cluster, gone);
    let refused = check_right_or_refused(&client, &old);
    let coded = SIZES
        .iter()
        .filter(|bytes| **bytes > REPLICATED_BYTES_MAX)
        .count();
    assert!(
        refused >= coded,
        "{refused} refused, {coded} were coded and cannot be read from disks {left:?}"
    );
    assert_eq!(
        client.list(BUCKET).unwrap().len(),
        SIZES.len(),
        "the listing needs no disk"
    );
    let new = load::store(&client, BUCKET, "new-", &SIZES);
    check_all(&client, &new, "written with few disks left");
    cluster.kill();
    remove(&cluster, &left[..1]);
    cluster.restart_unready();
    check_all(
        &client,
        &new,
        "written with few disks left, one of them removed since",
    );
    let refusal = client.put(BUCKET, "refused", &[7; 100_000]).unwrap_err();
    assert_eq!(
        refusal.status(),
        Some(503),
        "a write with too few disks left: {refusal}"
    );
    assert_eq!(client.find(BUCKET, "refused").unwrap(), None);
    expect_alarms(&mut cluster);
}

/// A locally repairable code survives any three losses of sixteen, and what is written then any three more.
#[test]
fn a_locally_repairable_code_loses_three_of_sixteen() {
    let scheme = Scheme::lrc(12, 2, 2).unwrap();
    let mut cluster = cluster(scheme);
    let client = cluster.client();
    let old = load::store(&client, BUCKET, "old-", &SIZES);
    let mut order: Vec<usize> = (0..16).collect();
    order.shuffle(&mut rand::rng());
    println!("losing {:?}, then {:?}", &order[..3], &order[3..6]);
    lose(&mut cluster, &order[..3]);
    check_all(&client, &old, "three disks removed");
    let new = load::store(&client, BUCKET, "new-", &SIZES);
    lose(&mut cluster, &order[3..6]);
    check_all(
        &client,
        &new,
        "written with three disks removed, three more since",
    );
    check_right_or_refused(&client, &old);
    expect_alarms(&mut cluster);
}

fn cluster(scheme: Scheme) -> Cluster {
    let cluster = Cluster::start_with(Options {
        scheme: scheme.to_string(),
        disks: scheme.total_shards(),
        ..Options::default()
    });
    cluster.client().create_bucket(BUCKET);
    cluster
}

/// What a lost disk makes the product say is not the subject here, as long as it does not panic.
fn expect_alarms(cluster: &mut Cluster) {
    cluster.allow("");
}

/// Sets of as many disks as may be lost, in random order: all 15 pairs of six, or fifteen of the triples of sixteen; a few of
/// them when all is not to be tested.
fn losses() -> Vec<Vec<usize>> {
    let scheme = setting::scheme();
    let mut sets: Vec<Vec<usize>> = (0..1u32 << scheme.total_shards())
        .filter(|set| set.count_ones() as usize == scheme.losses_survived())
        .map(|set| {
            (0..scheme.total_shards())
                .filter(|disk| set >> disk & 1 == 1)
                .collect()
        })
        .collect();
    sets.shuffle(&mut rand::rng());
    sets.truncate(setting::scaled(4, 15));
    sets
}

/// The other disks, those first that differ from set to set.
fn others(lost: &[usize]) -> Vec<usize> {
    let disks = 0..setting::scheme().total_shards();
    let mut others: Vec<usize> = disks.filter(|index| !lost.contains(index)).collect();
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
