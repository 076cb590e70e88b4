//! Clients that are slow, silent or never done make way for those that are not: nobody else is refused, and all that they hold is
//! within the budget.

// A failed `unwrap` is a failed test, in the functions beside the tests too.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cairn_tests::client::Client;
use cairn_tests::cluster::{Cluster, Options};
use cairn_tests::content::Content;
use cairn_tests::http::Connection;
use cairn_tests::{setting, sigv4};

const BUCKET: &str = "slow";
const PATIENCE: Duration = Duration::from_secs(30);
const MEMORY_BYTES: u64 = 64 << 20;
const ALLOWANCE_BYTES: u64 = 128 << 20;

/// Says that it is over, also when a test fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// This process holds the other ends of all connections.
fn raise_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
}

fn cluster() -> Cluster {
    raise_open_files();
    let cluster = Cluster::start_with(Options {
        memory: format!("{}MiB", MEMORY_BYTES >> 20),
        ..Options::default()
    });
    cluster.client().create_bucket(BUCKET);
    cluster
}

/// Does something while others are slow, and looks at what the process has in memory meanwhile.
fn beside<T>(cluster: &Cluster, act: impl FnOnce() -> T) -> (T, u64) {
    let (over, peak) = (AtomicBool::new(false), AtomicU64::new(0));
    let done = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                peak.fetch_max(cluster.resident_bytes(), Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        let _over = Over(&over);
        act()
    });
    (done, peak.into_inner())
}

/// Uploads and downloads of a client that is not slow. It has the key and the address of those that are, so it may be told to come
/// back later; but soon it is served.
fn work_well(client: &Client, rounds: u64) {
    for round in 0..rounds {
        let key = format!("good-{round}");
        let bytes = Content::random([1_000, 100_000, 3_000_000][round as usize % 3]).make();
        client
            .put_patiently(BUCKET, &key, &bytes, PATIENCE)
            .unwrap_or_else(|failure| panic!("put {round}: {failure}"));
        let begun = Instant::now();
        let read = loop {
            match client.get(BUCKET, &key) {
                Err(failure) if failure.is_slow_down() && begun.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(500));
                }
                read => break read.unwrap_or_else(|failure| panic!("get {round}: {failure}")),
            }
        };
        assert!(read == bytes, "{key} came back as something else");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// One presigned URL on many connections, each with a byte now and then; and many readers of a byte now and then.
#[test]
fn trickling_uploads_and_slow_readers_make_way() {
    let cluster = cluster();
    let client = cluster.client();
    let large = Content::random(24 << 20).make();
    client.put(BUCKET, "large", &large).unwrap();
    let address: SocketAddr = cluster.endpoint().trim_start_matches("http://").parse().unwrap();
    let url = client.presign("PUT", BUCKET, "trickled", sigv4::now(), 3_600);
    let length = vec![
        ("host".to_owned(), address.to_string()),
        ("content-length".to_owned(), (16 << 20).to_string()),
    ];
    let each = setting::scaled(60, 500);
    let begun = Instant::now();
    let mut trickling: Vec<Connection> = (0..each)
        .map(|_| {
            let mut connection = Connection::open(address, "PUT", &url, &length).unwrap();
            connection.send(&[7; 1_000]).unwrap();
            connection
        })
        .collect();
    let (target, headers) = client.sign(
        &cairn_tests::client::Request {
            method: "GET",
            bucket: BUCKET,
            key: "large",
            ..Default::default()
        },
        &sigv4::sha256_hex(b""),
    );
    let mut reading: Vec<TcpStream> = (0..each)
        .map(|_| {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let mut head = format!("GET {target} HTTP/1.1\r\n");
            headers
                .iter()
                .for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
            stream.write_all(format!("{head}\r\n").as_bytes()).unwrap();
            stream
        })
        .collect();
    let over = AtomicBool::new(false);
    let (cut, peak) = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                // Those that were cut or refused find out here, and come back no more.
                trickling.retain_mut(|connection| connection.send(&[7]).is_ok());
                reading.retain_mut(|stream| matches!(stream.read(&mut [0]), Ok(1)));
                std::thread::sleep(Duration::from_millis(500));
            }
        });
        let _over = Over(&over);
        let (_, peak) = beside(&cluster, || work_well(&client, setting::scaled(20, 100)));
        (
            cluster.metric("cairn_cut_connections_total", "why=\"slow\""),
            peak,
        )
    });
    println!(
        "{each} trickling and {each} reading for {:?}: {cut} were cut, {} MiB resident at most",
        begun.elapsed(),
        peak >> 20
    );
    assert!(cut >= 1.0, "nobody was in the way");
    assert!(
        peak < MEMORY_BYTES + ALLOWANCE_BYTES,
        "{} MiB resident",
        peak >> 20
    );
    let client_sees = client.find(BUCKET, "trickled").unwrap();
    assert!(client_sees.is_none(), "an upload that never ended is an object");
}

/// Heads that are never complete, and connections on which nothing happens.
#[test]
fn unfinished_heads_and_idle_connections_make_way() {
    let cluster = cluster();
    let client = cluster.client();
    let address: SocketAddr = cluster.endpoint().trim_start_matches("http://").parse().unwrap();
    let head = format!(
        "GET / HTTP/1.1\r\nhost: {address}\r\nx-padding: {}",
        "x".repeat(60_000)
    );
    let (_heads, peak) = beside(&cluster, || {
        let heads: Vec<TcpStream> = (0..setting::scaled(400, 1_500))
            .map(|_| {
                let mut stream = TcpStream::connect(address).unwrap();
                // It may be cut while it sends.
                let _ = stream.write_all(head.as_bytes());
                stream
            })
            .collect();
        work_well(&client, 3);
        heads
    });
    let cut = cluster.metric("cairn_cut_connections_total", "why=\"head\"");
    println!("heads: {cut} cut, {} MiB resident at most", peak >> 20);
    assert!(cut >= 1.0);
    assert!(
        peak < MEMORY_BYTES + ALLOWANCE_BYTES,
        "{} MiB resident",
        peak >> 20
    );

    let idle: Vec<TcpStream> = (0..4_200).map(|_| TcpStream::connect(address).unwrap()).collect();
    work_well(&client, 3);
    let cut = cluster.metric("cairn_cut_connections_total", "why=\"idle\"");
    println!("{} idle connections: {cut} cut", idle.len());
    assert!(cut >= 1.0);
}

/// Health answers whatever else holds the admin address.
#[test]
fn health_answers_beside_silent_connections() {
    let cluster = cluster();
    let address: SocketAddr = cluster
        .admin_endpoint()
        .trim_start_matches("http://")
        .parse()
        .unwrap();
    let _silent: Vec<TcpStream> = (0..200).map(|_| TcpStream::connect(address).unwrap()).collect();
    std::thread::sleep(Duration::from_millis(1_500));
    for _ in 0..10 {
        let health = cluster.admin("/health/ready").unwrap();
        assert_eq!(health.status, 200);
    }
}
