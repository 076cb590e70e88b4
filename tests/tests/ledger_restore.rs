//! The gateway's machine is lost, and the ledger with it: the disks alone give the cluster back.
//!
//! `CAIRN_TEST_LONG=1` makes it 100,000 objects, and prints how long a restore took and what it lost.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Output;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cairn_tests::client::Client;
use cairn_tests::cluster::{Cluster, Options};
use cairn_tests::content::Content;
use cairn_tests::load::{self, SIZES};
use cairn_tests::model::Model;
use cairn_tests::processes::{Processes, cairn, run, said};
use cairn_tests::status::wait_until;

const BUCKET: &str = "kept";
/// What was acknowledged so long before the end is in the archive: it is shipped every second, and the machine is busy with other tests.
const SHIPPED_AFTER: Duration = Duration::from_secs(4);

fn is_long() -> bool {
    std::env::var("CAIRN_TEST_LONG").is_ok()
}

fn wait_until_shipped(archive: impl Fn() -> serde_json::Value) {
    let is_shipped = || {
        let archive = archive();
        archive["behind_commits"] == 0 && archive["snapshots"].as_u64() > Some(0)
    };
    wait_until("the archive has all", Duration::from_secs(60), is_shipped, || {
        archive().to_string()
    });
}

fn archive_of(cluster: &Cluster) -> serde_json::Value {
    serde_json::from_slice(&cluster.admin("/v1/archive").unwrap().body).unwrap()
}

/// What happens to the objects before anything is lost: overwritten, deleted, copied in parts.
fn prepare(client: &Client) -> Model {
    client.create_bucket(BUCKET);
    let mut model = load::store(client, BUCKET, "kept-", &SIZES);
    let again = load::store(client, BUCKET, "over-", &SIZES[..6]);
    model.merge(again);
    for (number, bytes) in SIZES[..6].iter().enumerate() {
        let (key, content) = (
            format!("over-{number:03}-{bytes}"),
            Content::random(30_000 + number),
        );
        client.put(BUCKET, &key, &content.make()).unwrap();
        model.acknowledged(&key, Some(content));
    }
    let gone = load::store(client, BUCKET, "gone-", &SIZES[..4]);
    for (key, _) in gone.contents() {
        client.delete(BUCKET, key).unwrap();
        model.acknowledged(key, None);
    }
    model
}

/// When each was acknowledged or refused, its key, what was written, and whether it was acknowledged.
type Written = Vec<(Instant, String, Content, bool)>;

/// Writes until it is told to stop: new keys, and one that is overwritten over and over.
fn write_on(client: &Client, number: usize, running: &AtomicBool, objects: &AtomicU64) -> Written {
    let mut written = Vec::new();
    for round in 0.. {
        if !running.load(Ordering::SeqCst) {
            break;
        }
        let key = match round % 4 {
            0 => format!("over-again-{number}"),
            _ => format!("during-{number}-{round}"),
        };
        let content = Content::random([4_096, 100, 70_000, 4_096][round % 4] + round);
        let stored = client.put(BUCKET, &key, &content.make()).is_ok();
        written.push((Instant::now(), key, content, stored));
        objects.fetch_add(1, Ordering::SeqCst);
        if !stored {
            break;
        }
    }
    written
}

/// What was acknowledged so long before the end is certain. How much that is.
fn take_in(model: &mut Model, written: &Written, ended: Instant, shipped_after: Duration) -> usize {
    let mut certain = 0;
    for (at, key, content, stored) in written {
        if *stored && *at + shipped_after <= ended {
            certain += 1;
            model.acknowledged(key, Some(*content));
        } else {
            model.uncertain(key, Some(*content));
        }
    }
    certain
}

/// How many acknowledged objects are not there, and how long before the end the first of them was acknowledged.
fn lost(client: &Client, written: &Written, ended: Instant) -> (usize, Duration) {
    let late = written
        .iter()
        .filter(|(at, key, _, stored)| *stored && *at + SHIPPED_AFTER > ended && key.starts_with("during-"));
    let lost: Vec<Duration> = late
        .filter(|(_, key, ..)| client.find(BUCKET, key).unwrap().is_none())
        .map(|(at, ..)| ended - *at)
        .collect();
    (lost.len(), lost.into_iter().max().unwrap_or_default())
}

fn restore(data: &Path, further: &[&str]) -> (String, Duration) {
    let began = Instant::now();
    let restored: Output = run(cairn()
        .args(["ledger", "restore", "--from-disks", "--data"])
        .arg(data)
        .args(further));
    assert!(restored.status.success(), "{restored:?}");
    (said(&restored), began.elapsed())
}

/// Scrubs all disks and takes a census until nothing is found.
fn assert_clean(cluster: &Cluster) {
    let mut told = String::new();
    for _ in 0..10 {
        let admin = cluster.admin_endpoint();
        let scrubbed = run(cairn().args(["scrub", "start", "--wait", "--admin", &admin]));
        told = said(&scrubbed);
        if scrubbed.status.success() {
            return;
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    panic!("never clean: {told}\n{}", cluster.status());
}

/// Kills the process under load and takes its ledger away, and `disks` of its disks.
fn lose_the_ledger(disks: usize, archive: &str) {
    let mut cluster = Cluster::start_with(Options {
        archive: archive.into(),
        ..Options::default()
    });
    let client = cluster.client();
    let mut model = prepare(&client);
    let mut upload = client.create_upload(BUCKET, "in-parts").unwrap();
    upload.part(1, &Content::random(5 << 20).make()).unwrap();
    wait_until_shipped(|| archive_of(&cluster));
    let (running, objects) = (AtomicBool::new(true), AtomicU64::new(0));
    let wanted = if is_long() { 100_000 } else { 0 };
    let written: Written = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..if is_long() { 32 } else { 4 })
            .map(|number| {
                let (client, running, objects) = (&client, &running, &objects);
                scope.spawn(move || write_on(client, number, running, objects))
            })
            .collect();
        std::thread::sleep(Duration::from_secs(7));
        while objects.load(Ordering::SeqCst) < wanted {
            std::thread::sleep(Duration::from_millis(100));
        }
        cluster.kill();
        running.store(false, Ordering::SeqCst);
        writers
            .into_iter()
            .flat_map(|writer| writer.join().unwrap())
            .collect()
    });
    let ended = written
        .iter()
        .filter(|(.., stored)| *stored)
        .map(|(at, ..)| *at)
        .max()
        .unwrap();
    let shipped_after = match archive {
        "sync" => Duration::ZERO,
        _ => SHIPPED_AFTER,
    };
    let certain = take_in(&mut model, &written, ended, shipped_after);
    for name in ["ledger.redb", "ledger.redb-log", "ledger.redb-sums"] {
        std::fs::remove_file(cluster.data().join(name)).unwrap();
    }
    for disk in 0..disks {
        std::fs::remove_file(cluster.disk(disk)).unwrap();
    }
    let (report, took) = restore(&cluster.data(), &[]);
    println!("{report}in {took:?}; {certain} objects are certain");
    assert!(report.contains("The ledger is restored"), "{report}");
    if disks > 0 {
        cluster.allow("disk not opened");
        cluster.allow("disk down");
        cluster.allow("disk suspect");
        cluster.allow("archive of the ledger is behind");
        cluster.restart_alive();
    } else {
        cluster.restart();
    }
    // It only reads until disks were asked where units are, and starts anew then.
    wait_until(
        "the ledger is settled",
        Duration::from_secs(60),
        || {
            let ready = cluster.admin("/health/ready");
            ready.is_ok_and(|answer| answer.status == 200)
        },
        || format!("{:?}", cluster.admin("/health/ready").map(|answer| answer.body)),
    );
    let client = cluster.client();
    let (missing, before) = lost(&client, &written, ended);
    println!("{missing} acknowledged objects are lost, of the last {before:?}");
    let violations = model.check(&client, BUCKET);
    assert!(violations.is_empty(), "{}", violations.join("\n"));
    if disks == 0 {
        // It goes on as before: new objects, an archive that follows, and disks that hold what the ledger says.
        let more = load::store(&client, BUCKET, "after-", &SIZES[..6]);
        wait_until_shipped(|| archive_of(&cluster));
        model.merge(more);
        assert_clean(&cluster);
        let violations = model.check(&client, BUCKET);
        assert!(violations.is_empty(), "{}", violations.join("\n"));
    }
}

#[test]
fn a_ledger_comes_back_from_the_disks_alone() {
    lose_the_ledger(0, "async");
}

#[test]
fn nothing_is_lost_where_the_archive_is_synchronous() {
    lose_the_ledger(0, "sync");
}

#[test]
fn a_ledger_comes_back_with_two_disks_gone_too() {
    lose_the_ledger(2, "async");
}

/// A backup that was made under load is a ledger; cut short or changed it is refused.
#[test]
fn a_backup_is_taken_online_checked_and_restored() {
    let mut cluster = Cluster::start();
    let client = cluster.client();
    let mut model = prepare(&client);
    let file = cluster.scratch().join("ledger.backup");
    let backup = |check: bool| {
        let mut command = cairn();
        command
            .args(["ledger", "backup"])
            .arg(&file)
            .args(["--admin", &cluster.admin_endpoint()]);
        run(command.args(check.then_some("--check")))
    };
    let made = backup(false);
    assert!(made.status.success(), "{made:?}");
    let whole = std::fs::read(&file).unwrap();
    for wrong in [&whole[..whole.len() - 10], &whole[..whole.len() / 2], b""] {
        std::fs::write(&file, wrong).unwrap();
        assert!(!backup(true).status.success());
    }
    let mut flipped = whole.clone();
    flipped[whole.len() / 3] ^= 4;
    std::fs::write(&file, flipped).unwrap();
    assert!(!backup(true).status.success());
    std::fs::write(&file, &whole).unwrap();
    assert!(backup(true).status.success());
    // Nothing but a backup is ever replaced.
    let used = [cluster.data().join("ledger.redb"), cluster.disk(0)];
    for used in used {
        let refused = run(cairn()
            .args(["ledger", "backup"])
            .arg(&used)
            .args(["--admin", &cluster.admin_endpoint()]));
        assert!(
            !refused.status.success() && said(&refused).contains("is not a backup"),
            "{refused:?}"
        );
    }
    // What comes after it is in the archive: a gateway that starts with the backup catches up.
    let later = load::store(&client, BUCKET, "later-", &SIZES[..6]);
    model.merge(later);
    assert!(cluster.terminate().0.success());
    for name in ["ledger.redb", "ledger.redb-log"] {
        std::fs::remove_file(cluster.data().join(name)).unwrap();
    }
    let restored = run(cairn()
        .args(["ledger", "restore"])
        .arg(&file)
        .arg("--data")
        .arg(cluster.data()));
    assert!(restored.status.success(), "{restored:?}");
    // Never over a ledger that is there.
    let again = run(cairn()
        .args(["ledger", "restore"])
        .arg(&file)
        .arg("--data")
        .arg(cluster.data()));
    assert!(!again.status.success());
    cluster.allow("the ledger was behind, and has caught up");
    cluster.restart();
    let violations = model.check(&cluster.client(), BUCKET);
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}

/// An empty directory, the recovery kit and the nodes: a gateway again.
#[test]
fn a_gateway_comes_back_from_its_kit_and_the_nodes() {
    let mut cluster = Processes::start(3, 2, "rs(4,2)");
    let client = cluster.client();
    let mut model = prepare(&client);
    wait_until_shipped(|| cluster.admin_json("/v1/archive"));
    let data = cluster.gateway_directory();
    let kit = data.parent().unwrap().join("kit.txt");
    let written = cluster.cairn(&[
        "kit",
        "write",
        &kit.display().to_string(),
        "--data",
        &data.display().to_string(),
    ]);
    assert!(written.status.success(), "{written:?}");
    let checked = run(cairn().args(["kit", "check"]).arg(&kit).arg("--data").arg(&data));
    assert!(checked.status.success(), "{checked:?}");
    cluster.kill_gateway();
    std::fs::remove_dir_all(&data).unwrap();
    // A restore that fails leaves nothing behind: it can be tried again.
    let failed = run(cairn()
        .args(["ledger", "restore", "--from-disks", "--kit"])
        .arg(&kit)
        .args(["--node", "127.0.0.1:1", "--data"])
        .arg(&data));
    assert!(!failed.status.success(), "{failed:?}");
    assert_eq!(std::fs::read_dir(&data).unwrap().count(), 0, "{failed:?}");
    let (report, _) = restore(&data, &["--kit", &kit.display().to_string()]);
    assert!(report.contains("6 disks answer"), "{report}");
    cluster.restart_gateway();
    cluster.wait_until_ready();
    let violations = model.check(&cluster.client(), BUCKET);
    assert!(violations.is_empty(), "{}", violations.join("\n"));
    // The ledger alone is lost: what the directory has is enough, its own kit or another copy of it.
    for with_kit in [false, true] {
        wait_until_shipped(|| cluster.admin_json("/v1/archive"));
        cluster.kill_gateway();
        let config = std::fs::read(data.join("cairn.toml")).unwrap();
        for name in ["ledger.redb", "ledger.redb-log", "ledger.redb-sums"] {
            std::fs::remove_file(data.join(name)).unwrap();
        }
        let kit = kit.display().to_string();
        let more: &[&str] = if with_kit { &["--kit", &kit] } else { &[] };
        let (report, _) = restore(&data, more);
        assert!(report.contains("6 disks answer"), "{report}");
        assert_eq!(std::fs::read(data.join("cairn.toml")).unwrap(), config);
        cluster.restart_gateway();
        cluster.wait_until_ready();
        let violations = model.check(&cluster.client(), BUCKET);
        assert!(violations.is_empty(), "{}", violations.join("\n"));
    }
}
