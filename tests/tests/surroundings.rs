//! What the surroundings of a process do to it: its log cannot be written, its terminal hangs up, its machine stands still. It goes
//! on, and blames nobody.

// A failed `unwrap` is a failed test, in the functions beside the tests too.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cairn_tests::cluster::{Cluster, Options, binary};
use cairn_tests::processes::Processes;
use cairn_tests::status::wait_until;
use cairn_tests::tools;

const PATIENCE: Duration = Duration::from_secs(30);
const BUCKET: &str = "surroundings";

fn full() -> Stdio {
    File::options().write(true).open("/dev/full").unwrap().into()
}

/// A pipe that nobody reads any more.
fn abandoned() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

fn start() -> Cluster {
    Cluster::start_with(Options {
        disk_size: "256MiB".into(),
        ..Options::default()
    })
}

fn disks_online(cluster: &Cluster) -> usize {
    let status = cluster.status();
    let disks = status["disks"].as_array().unwrap();
    disks.iter().filter(|disk| disk["state"] == "online").count()
}

/// Something is logged meanwhile: a disk is removed. Requests go on, and the end is in order.
#[test]
fn a_log_that_cannot_be_written_ends_nothing() {
    let mut cluster = start();
    let client = cluster.client();
    client.create_bucket(BUCKET);
    for (round, outputs) in [(full(), full()), (abandoned(), abandoned())]
        .into_iter()
        .enumerate()
    {
        assert!(cluster.terminate().0.success());
        cluster.restart_saying(outputs.0, outputs.1);
        std::fs::remove_file(cluster.disk(round)).unwrap();
        let is_missed = || disks_online(&cluster) == 5 - round;
        wait_until("a disk is missed", PATIENCE, is_missed, || {
            cluster.status().to_string()
        });
        let key = format!("round-{round}");
        client.put(BUCKET, &key, &[7; 300_000]).unwrap();
        assert_eq!(client.get(BUCKET, &key).unwrap(), [7; 300_000]);
    }
    assert!(cluster.terminate().0.success());
}

/// The same for a reader that is there and reads nothing: a pipe holds 64 KiB, and then whoever writes waits.
#[test]
fn a_log_that_nobody_reads_holds_up_nothing() {
    let mut cluster = start();
    let client = cluster.client();
    client.create_bucket(BUCKET);
    assert!(cluster.terminate().0.success());
    let (_reader, writer) = std::io::pipe().unwrap();
    // What the kernel lets wait is used up.
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    while rustix::io::write(&writer, &[b'.'; 4096]).is_ok() {}
    rustix::io::ioctl_fionbio(&writer, false).unwrap();
    cluster.restart_saying(Stdio::null(), writer);
    client.put(BUCKET, "key", &[7; 300_000]).unwrap();
    assert_eq!(client.get(BUCKET, "key").unwrap(), [7; 300_000]);
    assert!(cluster.terminate().0.success());
}

#[test]
fn a_hangup_is_no_end() {
    let mut cluster = start();
    let client = cluster.client();
    client.create_bucket(BUCKET);
    cluster.signal("HUP");
    wait_until(
        "it is said",
        PATIENCE,
        || cluster.log().contains("SIGHUP"),
        || cluster.log(),
    );
    client.put(BUCKET, "key", &[7; 300_000]).unwrap();
    assert!(cluster.terminate().0.success());
}

/// Commands say that their answer did not arrive, unless somebody has read enough of it.
#[test]
fn an_answer_that_cannot_be_written_is_a_failure_without_a_panic() {
    let cluster = start();
    let command = |stdout: Stdio| {
        let admin = cluster.admin_endpoint();
        let child = Command::new(binary())
            .args(["status", "--json", "--admin", &admin])
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(Stdio::piped())
            .spawn();
        let output = child.unwrap().wait_with_output().unwrap();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let (code, said) = command(full());
    assert!(
        code == Some(1) && said.contains("No space left"),
        "{code:?}: {said}"
    );
    let (code, said) = command(abandoned());
    assert!(code == Some(0) && said.is_empty(), "{code:?}: {said}");
}

/// Ends the load, also when an assertion fails.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

const PAUSE: Duration = Duration::from_secs(12);
const WRITERS: usize = 8;

/// The gateway is stopped under load for longer than any call to a disk may take, as a machine is that moves, and goes on. No disk
/// or node is suspect or lost because of it (a WARN in the log would fail this test), and no upload fails that begins afterwards.
#[test]
fn a_pause_of_the_gateway_is_held_against_nobody() {
    let cluster = Processes::start(6, 1, "rs(4,2)");
    let client = cluster.client();
    client.create_bucket(BUCKET);
    let running = AtomicBool::new(true);
    let (resumed, puts) = std::thread::scope(|scope| {
        let (client, stop) = (&client, StopOnDrop(&running));
        let running = &running;
        let write = |writer: usize| {
            move || {
                let mut puts = Vec::new();
                while running.load(Ordering::Relaxed) {
                    let key = format!("{writer}-{}", puts.len());
                    let began = Instant::now();
                    let put = client.put(BUCKET, &key, &[writer as u8; 20_000]);
                    std::thread::sleep(Duration::from_millis(5)); // So that the disks are not filled.
                    puts.push((began, key, put.map_err(|error| error.to_string())));
                }
                puts
            }
        };
        let writers: Vec<_> = (0..WRITERS).map(|writer| scope.spawn(write(writer))).collect();
        std::thread::sleep(Duration::from_secs(3));
        tools::signal(cluster.gateway_pid(), "STOP");
        std::thread::sleep(PAUSE);
        tools::signal(cluster.gateway_pid(), "CONT");
        let resumed = Instant::now();
        while resumed.elapsed() < Duration::from_secs(6) {
            let status = cluster.status();
            let disks = status["disks"].as_array().unwrap();
            for disk in disks.iter().filter(|disk| disk["state"] != "online") {
                println!("{:?} after the pause: {disk}", resumed.elapsed());
            }
            assert!(disks.iter().all(|disk| disk["state"] == "online"), "{status}");
            std::thread::sleep(Duration::from_millis(100));
        }
        drop(stop);
        let puts = writers.into_iter().flat_map(|writer| writer.join().unwrap());
        (resumed, puts.collect::<Vec<_>>())
    });
    let after = puts.iter().filter(|(began, ..)| *began >= resumed).count();
    println!("{} uploads, {after} of them after the pause", puts.len());
    assert!(after > WRITERS, "the load went on");
    for (began, key, put) in &puts {
        let is_before = *began < resumed;
        assert!(
            put.is_ok(),
            "{key}, begun before the end of the pause: {is_before}: {put:?}"
        );
    }
    let (_, key, _) = &puts[puts.len() / 2];
    assert_eq!(client.get(BUCKET, key).unwrap().len(), 20_000);
    let metrics = cluster.admin("/metrics").unwrap().text();
    assert!(metrics.contains("cairn_pauses_total 1"), "{metrics}");
}
