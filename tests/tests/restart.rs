//! SIGTERM ends the process cleanly and soon, a second start resumes, and a start that does not fit what the
//! directory holds says so and stops.

// A failed `unwrap` is a failed test, in the functions beside the tests too.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cairn_tests::cluster::{Cluster, Options};
use cairn_tests::content::Content;
use cairn_tests::load::{self, SIZES};

const BUCKET: &str = "restart";

#[test]
fn sigterm_ends_cleanly_under_load_and_a_second_start_resumes() {
    let mut cluster = Cluster::start();
    let client = cluster.client();
    client.create_bucket(BUCKET);
    let mut model = load::store(&client, BUCKET, "before-", &SIZES);
    let running = AtomicBool::new(true);
    let (status, elapsed) = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..4)
            .map(|number| {
                let (client, running) = (&client, &running);
                scope.spawn(move || {
                    let mut written = Vec::new();
                    while running.load(Ordering::SeqCst) {
                        let (key, content) = (format!("during-{number}"), Content::random(2_000_000));
                        let stored = client.put(BUCKET, &key, &content.make()).is_ok();
                        written.push((key, content, stored));
                        if !stored {
                            break;
                        }
                    }
                    written
                })
            })
            .collect();
        // A reader that would take for ever must not keep the process.
        let stuck = client
            .get_slowly(BUCKET, &format!("before-011-{}", SIZES[11]))
            .unwrap();
        std::thread::sleep(Duration::from_secs(1));
        let stopped = cluster.terminate();
        running.store(false, Ordering::SeqCst);
        drop(stuck);
        for (key, content, stored) in writers.into_iter().flat_map(|writer| writer.join().unwrap()) {
            if stored {
                model.acknowledged(&key, Some(content));
            } else {
                model.uncertain(&key, Some(content));
            }
        }
        stopped
    });
    cluster.allow("still in progress");
    assert!(status.success(), "{status}");
    assert!(elapsed <= Duration::from_secs(10), "{elapsed:?}");
    assert!(model.contents().len() + 4 > SIZES.len());
    cluster.restart();
    let violations = model.check(&cluster.client(), BUCKET);
    assert!(violations.is_empty(), "{}", violations.join("\n"));
    println!("stopped after {elapsed:?}");
}

#[test]
fn an_idle_cluster_stops_at_once_and_keeps_everything_many_times() {
    let mut cluster = Cluster::start();
    let client = cluster.client();
    client.create_bucket(BUCKET);
    let mut model = load::store(&client, BUCKET, "", &SIZES);
    for round in 0..5 {
        let (status, elapsed) = cluster.terminate();
        assert!(
            status.success() && elapsed < Duration::from_secs(3),
            "{status} after {elapsed:?}"
        );
        cluster.restart();
        let violations = model.check(&client, BUCKET);
        assert!(violations.is_empty(), "round {round}: {}", violations.join("\n"));
        model.merge(load::store(
            &client,
            BUCKET,
            &format!("round-{round}-"),
            &[0, 1000, 100_000],
        ));
    }
}

#[test]
fn another_scheme_or_disk_count_is_refused() {
    let six = || Options {
        scheme: "rs(4,2)".into(),
        disks: 6,
        ..Options::default()
    };
    let mut cluster = Cluster::start_with(six());
    let client = cluster.client();
    client.create_bucket(BUCKET);
    let mut model = load::store(&client, BUCKET, "", &SIZES);
    assert!(cluster.terminate().0.success());
    let others = [
        (
            Options {
                scheme: "rs(3,2)".into(),
                ..six()
            },
            "rs(4,2)",
        ),
        (Options { disks: 7, ..six() }, "6"),
        (
            Options {
                disks: 5,
                scheme: "rs(3,2)".into(),
                ..six()
            },
            "rs(4,2)",
        ),
    ];
    for (options, held) in others {
        let output = cluster.start_refused(&options);
        let said = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(!output.status.success(), "{options:?} was accepted: {said}");
        assert!(
            output.status.code().is_some(),
            "{options:?}: ended by a signal: {said}"
        );
        assert!(
            said.contains(held),
            "{options:?}: it does not say what the directory holds: {said}"
        );
        assert!(!said.contains("panicked"), "{said}");
    }
    assert!(!cluster.disk(6).exists(), "a refused start made a disk");
    cluster.restart();
    let violations = model.check(&client, BUCKET);
    assert!(
        violations.is_empty(),
        "after refused starts: {}",
        violations.join("\n")
    );
}
