//! Older states and copies of the ledger in place of the newest, or beside it: no acknowledged object is lost, none reads wrong, and of
//! two copies of a gateway only one acts.

// A failed `unwrap` is a failed test, in the functions beside the tests too.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cairn_tests::client::Client;
use cairn_tests::cluster::{Cluster, binary};
use cairn_tests::content::Content;
use cairn_tests::ledger_files::{back_up, put_back};
use cairn_tests::model::Model;
use cairn_tests::processes::{Processes, cairn};
use cairn_tests::{http, setting};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const BUCKET: &str = "older";

/// Puts, overwrites and deletes.
fn change(client: &Client, model: &mut Model, rng: &mut StdRng, name: &str) {
    for number in 0..rng.random_range(4..16) {
        let known: Vec<String> = model
            .contents()
            .iter()
            .map(|(key, _)| (*key).to_owned())
            .collect();
        let key = match rng.random_range(0..4) {
            0 if !known.is_empty() => known[rng.random_range(0..known.len())].clone(),
            1 if !known.is_empty() => {
                let key = &known[rng.random_range(0..known.len())];
                client.delete(BUCKET, key).unwrap();
                model.acknowledged(key, None);
                continue;
            }
            _ => format!("{name}-{number}"),
        };
        let content = Content::random([900, 40_000, 1_500_000][rng.random_range(0..3)]);
        client.put(BUCKET, &key, &content.make()).unwrap();
        model.acknowledged(&key, Some(content));
    }
}

fn assert_right(cluster: &Cluster, model: &mut Model, what: &str) {
    let violations = model.check(&cluster.client(), BUCKET);
    assert!(violations.is_empty(), "{what}: {}", violations.join("\n"));
}

fn is_ready(cluster: &Cluster) -> bool {
    cluster
        .admin("/health/ready")
        .is_ok_and(|answer| answer.status == 200)
}

/// A backup of any age, clean or live, is put back; then the newest ledger.
#[test]
fn an_old_backup_put_back_loses_nothing() {
    let seed = setting::number("CAIRN_TEST_SEED", 19);
    let rounds = setting::scaled(3, 200);
    println!("CAIRN_TEST_SEED={seed}, {rounds} rounds");
    let mut rng = StdRng::seed_from_u64(seed);
    let (mut caught_up, mut only_read, mut untold) = (0, 0, 0);
    let mut cluster = Cluster::start();
    for text in [
        "the ledger was behind",
        "the ledger was accepted",
        "nothing is deleted from now on",
        "only reads",
        "still in progress",
    ] {
        cluster.allow(text);
    }
    cluster.client().create_bucket(BUCKET);
    let mut model = Model::default();
    let (old, newest) = (cluster.scratch().join("old"), cluster.scratch().join("newest"));
    for round in 0..rounds {
        let what = format!("seed {seed}, round {round}");
        for place in [&old, &newest] {
            let _gone = fs::remove_dir_all(place);
        }
        change(&cluster.client(), &mut model, &mut rng, &format!("a{round}"));
        match rng.random_range(0..3) {
            0 => back_up(&cluster.data(), &old), // While it runs.
            1 => {
                cluster.terminate();
                back_up(&cluster.data(), &old);
                cluster.restart();
            }
            _ => {
                cluster.kill();
                back_up(&cluster.data(), &old);
                cluster.restart();
            }
        }
        change(&cluster.client(), &mut model, &mut rng, &format!("b{round}"));
        // Disks are told every two seconds how far the ledger is. A copy that is younger than that may pass for the newest, until the
        // newest is put back.
        let are_told = rng.random_bool(0.7);
        if are_told {
            std::thread::sleep(Duration::from_secs(3));
        }
        match rng.random_bool(0.5) {
            true => drop(cluster.terminate()),
            false => cluster.kill(),
        }
        back_up(&cluster.data(), &newest);
        put_back(&old, &cluster.data());
        cluster.restart_alive();
        // It has all that was acknowledged, from its archive, or it changes nothing.
        match is_ready(&cluster) {
            true if are_told => {
                caught_up += 1;
                assert_right(&cluster, &mut model, &format!("{what}, caught up"));
            }
            true => untold += 1,
            false => {
                only_read += 1;
                let refused = cluster.client().put(BUCKET, "refused", b"no");
                assert_eq!(refused.unwrap_err().status(), Some(503), "{what}");
            }
        }
        std::thread::sleep(Duration::from_secs(1)); // What would delete has had time to.
        cluster.terminate();
        put_back(&newest, &cluster.data());
        cluster.restart_alive();
        assert_right(&cluster, &mut model, &format!("{what}, the newest ledger again"));
        if !is_ready(&cluster) {
            let accepted = Command::new(binary())
                .args(["ledger", "accept", "--yes", "--admin", &cluster.admin_endpoint()])
                .output()
                .unwrap();
            assert!(accepted.status.success(), "{what}: {accepted:?}");
            let until = Instant::now() + Duration::from_secs(30);
            while !is_ready(&cluster) {
                assert!(
                    Instant::now() < until,
                    "{what}: not ready after it was accepted\n{}",
                    cluster.log()
                );
                std::thread::sleep(Duration::from_millis(50));
            }
            assert_right(&cluster, &mut model, &format!("{what}, accepted"));
        }
    }
    println!(
        "{rounds} rounds: {caught_up} times the old ledger caught up, {only_read} times it only read, {untold} times disks had not been \
         told; nothing was lost"
    );
}

/// The directory of a gateway is copied, and the copy started beside it.
#[test]
fn a_copy_of_a_gateway_does_not_start_beside_it() {
    let mut cluster = Processes::start(6, 1, "rs(4,2)");
    for text in [
        "nothing is deleted from now on",
        "another gateway",
        "only reads",
        "stripe not stored",
        "the data could not be stored",
        "does not have it", // A look at a node from before its disk was added.
        "background work failed",
    ] {
        cluster.allow(text);
    }
    let client = cluster.client();
    client.create_bucket(BUCKET);
    let (mut model, mut rng) = (Model::default(), StdRng::seed_from_u64(5));
    change(&client, &mut model, &mut rng, "a");
    let (own, copy) = (
        cluster.gateway_directory(),
        cluster.gateway_directory().with_extension("copy"),
    );
    let copied = Command::new("cp").arg("-a").args([&own, &copy]).status().unwrap();
    assert!(copied.success());
    let address = || {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        socket.local_addr().unwrap()
    };
    let (s3, admin, join) = (address(), address(), address());
    let start = |further: &[&str]| {
        let mut command = cairn();
        command
            .arg("gateway")
            .arg("--config")
            .arg(copy.join("cairn.toml"))
            .arg("--data")
            .arg(&copy);
        for (flag, at) in [
            ("--listen", s3),
            ("--admin-listen", admin),
            ("--join-listen", join),
        ] {
            command.arg(flag).arg(at.to_string());
        }
        command
            .args(further)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    };
    let refused = start(&[]).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && said.contains("another gateway of this cluster is alive"),
        "{said}"
    );
    change(&client, &mut model, &mut rng, "b");
    let violations = model.check(&client, BUCKET);
    assert!(violations.is_empty(), "{}", violations.join("\n"));

    // Told to take over, it has to be as far as the disks know; then the first one acts no more.
    let mut second = start(&["--take-over"]).spawn().unwrap();
    let second_client = Client {
        address: s3,
        keys: client.keys.clone(),
    };
    let until = Instant::now() + Duration::from_secs(30);
    let host = [("host".to_owned(), admin.to_string())];
    let is_live =
        || http::exchange(admin, "GET", "/health/live", &host, &[]).is_ok_and(|answer| answer.status == 200);
    while !is_live() {
        assert!(Instant::now() < until, "the copy does not answer");
        std::thread::sleep(Duration::from_millis(50));
    }
    let acts = [
        client.put(BUCKET, "from-the-first", b"1"),
        second_client.put(BUCKET, "from-the-copy", b"2"),
    ];
    let acting = acts.iter().filter(|act| act.is_ok()).count();
    assert!(acting <= 1, "both act");
    second.kill().unwrap();
    second.wait().unwrap();
}

/// A copy that catches up from the archive may lack what was acknowledged in the last second. Nothing of that is deleted, however many
/// censuses find it unnamed: the newest ledger, put back, has all.
#[test]
fn what_a_ledger_that_caught_up_lacks_is_kept() {
    let mut cluster = Cluster::start();
    for text in [
        "the ledger was behind",
        "the ledger was accepted",
        "nothing is deleted from now on",
        "only reads",
    ] {
        cluster.allow(text);
    }
    let client = cluster.client();
    client.create_bucket(BUCKET);
    let put = |name: &str, count: usize| {
        for number in 0..count {
            let key = format!("{name}-{number}");
            let content = Content {
                seed: number as u64,
                bytes: 20_000,
            };
            client.put(BUCKET, &key, &content.make()).unwrap();
        }
    };
    let (old, newest) = (cluster.scratch().join("old"), cluster.scratch().join("newest"));
    put("before", 5);
    back_up(&cluster.data(), &old);
    put("after", 10);
    std::thread::sleep(Duration::from_secs(3));
    put("last", 30);
    cluster.kill();
    back_up(&cluster.data(), &newest);
    put_back(&old, &cluster.data());
    cluster.restart();
    let command = |words: &[&str]| {
        let done = cairn()
            .args(words)
            .args(["--admin", &cluster.admin_endpoint()])
            .output()
            .unwrap();
        assert!(done.status.success(), "{words:?}: {done:?}");
    };
    let lacking = 45 - client.list(BUCKET).unwrap().len();
    println!("{lacking} objects of the last second are not in the archive");
    command(&["unnamed", "keep", "1s"]);
    for _ in 0..6 {
        command(&["scrub", "start", "--wait"]);
        std::thread::sleep(Duration::from_millis(1_200));
    }
    cluster.kill();
    put_back(&newest, &cluster.data());
    cluster.restart_alive();
    if !is_ready(&cluster) {
        let done = cairn()
            .args(["ledger", "accept", "--yes", "--admin", &cluster.admin_endpoint()])
            .output()
            .unwrap();
        assert!(done.status.success(), "{done:?}");
        let until = Instant::now() + Duration::from_secs(30);
        while !is_ready(&cluster) {
            assert!(Instant::now() < until, "not ready\n{}", cluster.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    for (name, count) in [("before", 5), ("after", 10), ("last", 30)] {
        for number in 0..count {
            let content = Content {
                seed: number as u64,
                bytes: 20_000,
            };
            let found = cluster.client().get(BUCKET, &format!("{name}-{number}")).unwrap();
            content.check(&found, &format!("{name}-{number}"));
        }
    }
}
