//! Nodes that do not speak the protocol, or break it: the client says so, typed, in time, and believes none of it.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};
use storage_node::client::StorageClient;
use storage_node::http_client::HttpClient;
use storage_node::protocol::{BlockRange, DiskId, NodeError, ShardKey, UnitAddress, UnitId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const DEADLINE: Duration = Duration::from_secs(5);
const UNIT: UnitAddress = UnitAddress {
    disk: DiskId(1),
    incarnation: 1,
    unit: UnitId { volume: 1, index: 0 },
    epoch: 1,
    ledger: storage_node::protocol::Generation::NONE,
};
const KEY: ShardKey = ShardKey { blob: 1, stripe: 0 };

/// A client of somebody who answers every request with these bytes, with pauses if there are to be any, and hangs up.
async fn answering(bytes: Vec<u8>, pause: Duration) -> HttpClient {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = HttpClient::new(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let bytes = bytes.clone();
            tokio::spawn(async move {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let at_once = if pause.is_zero() { bytes.len().max(1) } else { 64 };
                for some in bytes.chunks(at_once) {
                    if stream.write_all(some).await.is_err() {
                        return; // The client has had enough.
                    }
                    tokio::time::sleep(pause).await;
                }
            });
        }
    });
    client
}

async fn get(bytes: Vec<u8>) -> Result<(), NodeError> {
    let client = answering(bytes, Duration::ZERO).await;
    client.get(&UNIT, KEY, BlockRange::ALL, DEADLINE).await.map(drop)
}

fn http(status: &str, said: usize, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {said}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

#[tokio::test]
async fn what_is_no_answer_is_garbled() {
    let untyped = http("500 Internal Server Error", 4, b"oops");
    let other_protocol = b"SSH-2.0-OpenSSH_9.9\r\n\r\n".to_vec();
    let too_long = http("200 OK", 64 << 20, &vec![0; 2 << 20]);
    let cut_record = http("200 OK", 9, b"too short");
    let mut lying_lengths = vec![0xff; 16];
    lying_lengths.extend([0; 100]);
    let lying_lengths = http("200 OK", lying_lengths.len(), &lying_lengths);
    for answer in [untyped, other_protocol, too_long, cut_record, lying_lengths] {
        let got = get(answer).await;
        assert!(matches!(got, Err(NodeError::Garbled { .. })), "{got:?}");
    }
}

#[tokio::test]
async fn who_hangs_up_is_unreachable() {
    let cut_body = http("200 OK", 1000, b"a part of it");
    for answer in [Vec::new(), b"HTTP/1.1 200 O".to_vec(), cut_body] {
        let got = get(answer).await;
        assert!(matches!(got, Err(NodeError::Unreachable { .. })), "{got:?}");
    }
}

#[tokio::test]
async fn a_drip_ends_at_the_deadline() {
    let drip = http("200 OK", 100_000, &[0; 100_000]);
    let client = answering(drip, Duration::from_millis(20)).await;
    let started = Instant::now();
    let patience = Duration::from_millis(300);
    let got = client.get(&UNIT, KEY, BlockRange::ALL, patience).await;
    assert_eq!(got.map(drop), Err(NodeError::Timeout));
    assert!(
        started.elapsed() < Duration::from_secs(3),
        "{:?}",
        started.elapsed()
    );
}

/// Whoever asks for page after page would otherwise never come to an end.
#[tokio::test]
async fn an_inventory_that_does_not_go_on_is_refused() {
    let entry = |blob: u64| format!(r#"{{"key":{{"blob":{blob},"stripe":0}},"len":1}}"#);
    let page = |blobs: &[u64]| {
        let entries: Vec<String> = blobs.iter().map(|blob| entry(*blob)).collect();
        let json = format!("[{}]", entries.join(","));
        http("200 OK", json.len(), json.as_bytes())
    };
    let after = Some(ShardKey { blob: 5, stripe: 0 });
    for (blobs, is_right) in [
        (&[6, 7, 9][..], true),
        (&[][..], true),
        (&[5, 6][..], false),
        (&[2, 3][..], false),
        (&[7, 6][..], false),
        (&[6, 6][..], false),
        (&[6, 7, 8, 9][..], false),
    ] {
        let client = answering(page(blobs), Duration::ZERO).await;
        let got = client.inventory(&UNIT, after, 3, DEADLINE).await;
        match is_right {
            true => assert_eq!(got.unwrap().len(), blobs.len()),
            false => assert!(
                matches!(got, Err(NodeError::Garbled { .. })),
                "{blobs:?}: {got:?}"
            ),
        }
    }
}
