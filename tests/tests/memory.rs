//! Acceptance 5: resident memory stays under the budget and 256 MiB, whatever the clients do: many large puts at once,
//! and many readers that hardly read.

// A failed `unwrap` is a failed test, in the functions beside the tests too.
#![allow(clippy::unwrap_used)]

use std::io::Read;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cairn_tests::cluster::{Cluster, Options};
use cairn_tests::content::Content;
use cairn_tests::setting;

const BUCKET: &str = "memory";
const CLIENTS: usize = 64;
const ALLOWANCE_BYTES: u64 = 256 << 20;

#[test]
fn resident_memory_is_bounded() {
    let memory_mib: u64 = setting::scaled(256, 512);
    let object_bytes = setting::scaled(24 << 20, 64 << 20);
    let disk_size = setting::scaled("2GiB", "4GiB").to_owned();
    let cluster = Cluster::start_with(Options {
        memory: format!("{memory_mib}MiB"),
        disk_size,
        ..Options::default()
    });
    let client = cluster.client();
    client.create_bucket(BUCKET);
    let content = Content::random(object_bytes);
    let body = content.make();
    client.put(BUCKET, "read", &body).unwrap();

    let (running, peak) = (AtomicBool::new(true), AtomicU64::new(0));
    let stored = std::thread::scope(|scope| {
        scope.spawn(|| {
            while running.load(Ordering::SeqCst) {
                peak.fetch_max(cluster.resident_bytes(), Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let readers: Vec<_> = (0..CLIENTS)
            .map(|_| scope.spawn(|| read_slowly(&client, &body, &running)))
            .collect();
        let writers: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let (client, body) = (&client, &body);
                let patience = Duration::from_secs(300);
                scope
                    .spawn(move || client.put_patiently(BUCKET, &format!("written-{number}"), body, patience))
            })
            .collect();
        let outcomes: Vec<_> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
        running.store(false, Ordering::SeqCst);
        let opened = readers.into_iter().map(|reader| reader.join().unwrap());
        let opened = opened.filter(|opened| *opened).count();
        assert!(opened > 0, "no slow reader was ever served");
        println!("{opened} of {CLIENTS} slow readers were served");
        outcomes
    });
    for (number, outcome) in stored.into_iter().enumerate() {
        assert!(outcome.is_ok(), "put {number}: {}", outcome.unwrap_err());
        content.check(
            &client.get(BUCKET, &format!("written-{number}")).unwrap(),
            "read back",
        );
    }
    let (peak, limit) = (peak.into_inner(), (memory_mib << 20) + ALLOWANCE_BYTES);
    println!("{} MiB resident at most, {} MiB allowed", peak >> 20, limit >> 20);
    assert!(
        peak < limit,
        "{} MiB resident, {} MiB allowed",
        peak >> 20,
        limit >> 20
    );
}

/// Reads 64 KiB now and then until the puts are done, and finds nothing wrong. Whether it was served at all.
fn read_slowly(client: &cairn_tests::client::Client, expected: &[u8], running: &AtomicBool) -> bool {
    let mut served = false;
    while running.load(Ordering::SeqCst) {
        let mut incoming = match client.get_slowly(BUCKET, "read") {
            Ok(incoming) if incoming.status == 200 => incoming,
            Ok(incoming) => {
                assert_eq!(
                    incoming.status, 503,
                    "a slow reader is served or asked to come later"
                );
                std::thread::sleep(Duration::from_millis(500));
                continue;
            }
            Err(error) => panic!("a slow reader: {error}"),
        };
        served = true;
        let (mut at, mut piece, start) = (0, vec![0; 64 * 1024], Instant::now());
        while running.load(Ordering::SeqCst) && start.elapsed() < Duration::from_secs(60) {
            // The server may end a connection that moves too slowly; it may not send a wrong byte.
            let Ok(read @ 1..) = incoming.read(&mut piece) else {
                break;
            };
            assert!(piece[..read] == expected[at..at + read], "wrong bytes at {at}");
            at += read;
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    served
}
