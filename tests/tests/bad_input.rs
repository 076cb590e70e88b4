//! Bad input: each gets the error that S3 names for it, nothing is stored, nothing leaks, and the next request works.

// A failed `unwrap` is a failed test, in the functions beside the tests too.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use cairn_tests::client::{Client, Outcome, Request};
use cairn_tests::cluster::{Cluster, Options, binary};
use cairn_tests::content::Content;
use cairn_tests::http::{self, Connection, Response};
use cairn_tests::sigv4::{self, UNSIGNED_PAYLOAD};
use cairn_tests::{status, xml};
use md5::{Digest, Md5};

const BUCKET: &str = "bad-input";
const BODY: &[u8] = b"never to be stored";
const PART_BYTES_MIN: usize = 5 << 20;
const SETTLE_TIME_MAX: Duration = Duration::from_secs(90);

/// What a case found wrong.
type Verdict = Result<(), String>;
/// A bad request, sent and judged, and its name.
type Case = (&'static str, fn(&Client) -> Verdict);

#[test]
fn every_bad_request_is_refused_and_leaves_nothing() {
    let cluster = Cluster::start();
    let client = cluster.client();
    client.create_bucket(BUCKET);
    probe(&client).unwrap();
    status::wait_until_settled(&cluster, SETTLE_TIME_MAX);
    let cases: [Case; 22] = [
        ("wrong signature", wrong_signature),
        ("wrong signature of a large body", wrong_signature_of_a_large_body),
        ("wrong presigned signature", wrong_presigned_signature),
        ("unknown access key", unknown_access_key),
        ("no signature", no_signature),
        ("expired presigned URLs", expired_presigned_urls),
        ("body that is not what was signed", body_is_not_what_was_signed),
        ("short body", short_body),
        ("Content-MD5 mismatch", content_md5_mismatch),
        ("Content-MD5 that is none", content_md5_malformed),
        ("checksum mismatch", checksum_mismatch),
        ("key of 1,025 bytes", key_too_long),
        ("bad bucket names", bad_bucket_names),
        ("missing bucket", missing_bucket),
        ("missing key", missing_key),
        ("part out of order", part_out_of_order),
        ("part too small", part_too_small),
        ("range past the end", range_past_the_end),
        ("XML that is none", malformed_xml),
        ("no HTTP at all", no_http_at_all),
        ("client gone in mid-upload", client_gone_in_mid_upload),
        ("client gone in mid-part", client_gone_in_mid_part),
    ];
    let mut failed = Vec::new();
    for (name, case) in cases {
        let verdict = case(&client)
            .and_then(|()| nothing_stored(&client))
            .and_then(|()| probe(&client));
        println!("{name}: {verdict:?}");
        failed.extend(verdict.err().map(|why| format!("{name}: {why}")));
    }
    assert!(
        failed.is_empty(),
        "{} of {} failed:\n{}",
        failed.len(),
        cases.len(),
        failed.join("\n")
    );
    status::wait_until_settled(&cluster, SETTLE_TIME_MAX);
    // What refused requests left on the disks, a census would find, that nothing names.
    let census = Command::new(binary())
        .args(["scrub", "start", "--wait", "--admin", &cluster.admin_endpoint()])
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&census.stdout).into_owned();
    assert!(census.status.success() && told.ends_with("clean\n"), "{told}");
    let unexplained = status::unexplained(&cluster);
    assert!(unexplained.is_empty(), "{}", unexplained.join("\n"));
}

#[test]
fn a_full_disk_says_so_and_can_still_delete() {
    let mut cluster = Cluster::start_with(Options {
        disk_size: "64MiB".into(),
        ..Options::default()
    });
    cluster.allow("the archive of the ledger is behind"); // It has no room either.
    let client = cluster.client();
    client.create_bucket(BUCKET);
    let content = Content::random(4 << 20);
    let body = content.make();
    let mut stored = 0;
    let refusal = loop {
        match client.put(BUCKET, &format!("filler-{stored:03}"), &body) {
            Ok(_) => stored += 1,
            Err(failure) => break failure,
        }
        assert!(
            stored < 100,
            "6 × 64 MiB cannot hold {stored} objects of 4 MiB, coded 4+2"
        );
    };
    assert!(
        stored > 10,
        "only {stored} objects of 4 MiB fit on 6 × 64 MiB: {refusal}"
    );
    assert_eq!(refusal.status(), Some(507), "{refusal}");
    assert!(
        refusal.to_string().to_lowercase().contains("full"),
        "not a clear message: {refusal}"
    );
    assert_eq!(
        client.list(BUCKET).unwrap().len(),
        stored,
        "what was refused is not listed"
    );
    for number in 0..stored {
        content.check(
            &client.get(BUCKET, &format!("filler-{number:03}")).unwrap(),
            "read from a full disk",
        );
    }
    for number in 0..stored {
        client.delete(BUCKET, &format!("filler-{number:03}")).unwrap();
    }
    let again = || client.put(BUCKET, "again", &body).is_ok();
    status::wait_until("deleted space is usable again", SETTLE_TIME_MAX, again, || {
        cluster.log()
    });
    content.check(&client.get(BUCKET, "again").unwrap(), "stored after the deletes");
    // That the disks are full may be said loudly.
    cluster.allow("full");
    cluster.allow("space");
}

fn wrong_signature(client: &Client) -> Verdict {
    let mut liar = client.clone();
    liar.keys.secret.push('x');
    refused(liar.put(BUCKET, "k", BODY), 403, &["SignatureDoesNotMatch"])?;
    refused(liar.get(BUCKET, "k"), 403, &["SignatureDoesNotMatch"])
}

fn wrong_signature_of_a_large_body(client: &Client) -> Verdict {
    let mut liar = client.clone();
    liar.keys.secret.push('x');
    refused(
        liar.put(BUCKET, "k", &vec![7; 3 << 20]),
        403,
        &["SignatureDoesNotMatch"],
    )
}

fn wrong_presigned_signature(client: &Client) -> Verdict {
    let target = client.presign("PUT", BUCKET, "k", sigv4::now(), 60);
    let (rest, last) = target.split_at(target.len() - 1);
    let target = format!("{rest}{}", if last == "0" { "1" } else { "0" });
    answered(
        raw(client, "PUT", &target, &[], BODY),
        403,
        &["SignatureDoesNotMatch"],
    )
}

fn unknown_access_key(client: &Client) -> Verdict {
    let mut stranger = client.clone();
    stranger.keys.access = "nobody".to_owned();
    refused(stranger.put(BUCKET, "k", BODY), 403, &["InvalidAccessKeyId"])
}

fn no_signature(client: &Client) -> Verdict {
    answered(
        raw(client, "PUT", &format!("/{BUCKET}/k"), &[], BODY),
        403,
        &["AccessDenied"],
    )?;
    answered(
        raw(client, "GET", &format!("/{BUCKET}"), &[], &[]),
        403,
        &["AccessDenied"],
    )
}

fn expired_presigned_urls(client: &Client) -> Verdict {
    for method in ["GET", "PUT"] {
        let target = client.presign(method, BUCKET, "k", sigv4::now() - 100, 60);
        answered(raw(client, method, &target, &[], BODY), 403, &["AccessDenied"])?;
    }
    Ok(())
}

fn body_is_not_what_was_signed(client: &Client) -> Verdict {
    let request = Request {
        method: "PUT",
        bucket: BUCKET,
        key: "k",
        ..Request::default()
    };
    let (target, headers) = client.sign(&request, &sigv4::sha256_hex(b"something else"));
    answered(
        raw(client, "PUT", &target, &headers, BODY),
        400,
        &["XAmzContentSHA256Mismatch"],
    )
}

fn short_body(client: &Client) -> Verdict {
    for (promised, sent) in [(1000, 0), (1000, 500), (8 << 20, (8 << 20) - 1)] {
        let mut connection = upload(client, "k", promised);
        connection
            .send(&vec![7; sent])
            .map_err(|error| error.to_string())?;
        connection.finish_sending().map_err(|error| error.to_string())?;
        let response = connection.receive("PUT").and_then(http::Incoming::read_all);
        answered(response, 400, &["IncompleteBody"])
            .map_err(|why| format!("{sent} of {promised} bytes: {why}"))?;
    }
    Ok(())
}

fn content_md5_mismatch(client: &Client) -> Verdict {
    let md5 = BASE64.encode(Md5::digest(b"something else"));
    for bytes in [18, 300_000, 6_000_000] {
        refused(
            put_with(client, &[("content-md5", &md5)], &vec![7; bytes]),
            400,
            &["BadDigest"],
        )?;
    }
    Ok(())
}

fn content_md5_malformed(client: &Client) -> Verdict {
    refused(
        put_with(client, &[("content-md5", "not base64!")], BODY),
        400,
        &["InvalidDigest"],
    )
}

fn checksum_mismatch(client: &Client) -> Verdict {
    let checksums = [
        ("crc32", 4),
        ("crc32c", 4),
        ("crc64nvme", 8),
        ("sha1", 20),
        ("sha256", 32),
    ];
    for (name, bytes) in checksums {
        let wrong = BASE64.encode(vec![1; bytes]);
        let header = format!("x-amz-checksum-{name}");
        for bytes in [18, 6_000_000] {
            let outcome = put_with(client, &[(&header, &wrong)], &vec![7; bytes]);
            refused(outcome, 400, &["BadDigest", "XAmzContentChecksumMismatch"])
                .map_err(|why| format!("{name} of {bytes} bytes: {why}"))?;
        }
    }
    Ok(())
}

fn key_too_long(client: &Client) -> Verdict {
    for key in ["k".repeat(1025), format!("{}x", "ü".repeat(512))] {
        refused(client.put(BUCKET, &key, BODY), 400, &["KeyTooLongError"])?;
        refused(client.create_upload(BUCKET, &key), 400, &["KeyTooLongError"])?;
    }
    let longest = "ü".repeat(512);
    client
        .put(BUCKET, &longest, BODY)
        .map_err(|failure| format!("1,024 bytes: {failure}"))?;
    client
        .delete(BUCKET, &longest)
        .map_err(|failure| failure.to_string())
}

fn bad_bucket_names(client: &Client) -> Verdict {
    let too_long = "b".repeat(64);
    let names = [
        "ab",
        "Upper",
        "under_score",
        "-dash",
        "dash-",
        "two..dots",
        "192.168.1.1",
        &too_long,
        "xn--bucket",
    ];
    for bucket in names {
        let outcome = client.call(&Request {
            method: "PUT",
            bucket,
            ..Request::default()
        });
        refused(outcome, 400, &["InvalidBucketName"]).map_err(|why| format!("{bucket}: {why}"))?;
    }
    Ok(())
}

fn missing_bucket(client: &Client) -> Verdict {
    refused(client.put("no-such-bucket", "k", BODY), 404, &["NoSuchBucket"])?;
    refused(
        client.put("no-such-bucket", "k", &vec![7; 6_000_000]),
        404,
        &["NoSuchBucket"],
    )?;
    refused(client.get("no-such-bucket", "k"), 404, &["NoSuchBucket"])?;
    refused(client.delete("no-such-bucket", "k"), 404, &["NoSuchBucket"])?;
    refused(client.list("no-such-bucket"), 404, &["NoSuchBucket"])?;
    refused(
        client.create_upload("no-such-bucket", "k"),
        404,
        &["NoSuchBucket"],
    )
}

fn missing_key(client: &Client) -> Verdict {
    refused(client.get(BUCKET, "no-such-key"), 404, &["NoSuchKey"])
}

fn part_out_of_order(client: &Client) -> Verdict {
    with_upload(client, &[&[1; PART_BYTES_MIN], b"end"], |upload| {
        upload.parts.reverse();
        refused(upload.complete(), 400, &["InvalidPartOrder"])?;
        upload.parts[1] = upload.parts[0].clone();
        refused(upload.complete(), 400, &["InvalidPartOrder"])
    })
}

fn part_too_small(client: &Client) -> Verdict {
    with_upload(client, &[&[1; PART_BYTES_MIN - 1], b"end"], |upload| {
        refused(upload.complete(), 400, &["EntityTooSmall"])
    })
}

fn range_past_the_end(client: &Client) -> Verdict {
    client
        .put(BUCKET, "ten", b"0123456789")
        .map_err(|failure| failure.to_string())?;
    for range in ["bytes=10-", "bytes=10-20", "bytes=99999999999-", "bytes=-0"] {
        let headers = &[("range", range)];
        let outcome = client.call(&Request {
            method: "GET",
            bucket: BUCKET,
            key: "ten",
            headers,
            ..Request::default()
        });
        refused(outcome, 416, &["InvalidRange"]).map_err(|why| format!("{range}: {why}"))?;
    }
    client
        .delete(BUCKET, "ten")
        .map_err(|failure| failure.to_string())
}

fn malformed_xml(client: &Client) -> Verdict {
    for body in [&b"<Delete><Object>"[..], b"not XML", b"", b"<Delete></Delete>"] {
        let md5 = BASE64.encode(Md5::digest(body));
        let (query, headers) = (&[("delete", "")], &[("content-md5", md5.as_str())]);
        let outcome = client.call(&Request {
            method: "POST",
            bucket: BUCKET,
            key: "",
            query,
            headers,
            body,
        });
        refused(outcome, 400, &["MalformedXML", "MissingRequestBodyError"])
            .map_err(|why| format!("{:?}: {why}", String::from_utf8_lossy(body)))?;
    }
    Ok(())
}

fn no_http_at_all(client: &Client) -> Verdict {
    for noise in [
        &b"\x16\x03\x01\x02\x00\x01\x00"[..],
        b"GET\r\n\r\n",
        &[b'x'; 100_000],
        b"PUT / HTTP/1.1\r\nhost",
    ] {
        let mut stream = TcpStream::connect(client.address).map_err(|error| error.to_string())?;
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .map_err(|error| error.to_string())?;
        // The server may close while it is being written to.
        let _sent = stream.write_all(noise);
        let _half_closed = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _reset = stream.read_to_end(&mut answer);
        if answer.starts_with(b"HTTP/1.1 2") || answer.starts_with(b"HTTP/1.1 5") {
            return Err(String::from_utf8_lossy(&answer).into_owned());
        }
    }
    Ok(())
}

fn client_gone_in_mid_upload(client: &Client) -> Verdict {
    for sent in [0, 1000, 100_000, 3 << 20, 20 << 20] {
        let mut connection = upload(client, "gone", 32 << 20);
        connection
            .send(&vec![7; sent])
            .map_err(|error| error.to_string())?;
        std::thread::sleep(Duration::from_millis(200));
        drop(connection);
    }
    std::thread::sleep(Duration::from_millis(500));
    Ok(())
}

fn client_gone_in_mid_part(client: &Client) -> Verdict {
    with_upload(client, &[], |upload| {
        let query = &[("partNumber", "1"), ("uploadId", upload.id.as_str())];
        let request = Request {
            method: "PUT",
            bucket: BUCKET,
            key: "parts",
            query,
            ..Request::default()
        };
        let (target, mut headers) = client.sign(&request, UNSIGNED_PAYLOAD);
        headers.push(("content-length".to_owned(), (16 << 20).to_string()));
        let mut connection =
            Connection::open(client.address, "PUT", &target, &headers).map_err(|error| error.to_string())?;
        connection
            .send(&vec![7; 9 << 20])
            .map_err(|error| error.to_string())?;
        drop(connection);
        std::thread::sleep(Duration::from_millis(500));
        let query = &[("uploadId", upload.id.as_str())];
        let listed = client.call(&Request {
            method: "GET",
            bucket: BUCKET,
            key: "parts",
            query,
            ..Request::default()
        });
        let parts = xml::texts(
            &listed.map_err(|failure| failure.to_string())?.text(),
            "PartNumber",
        );
        if parts.is_empty() {
            Ok(())
        } else {
            Err(format!("parts {parts:?} are listed"))
        }
    })
}

/// Runs `check` on a multipart upload with these parts, and aborts it.
fn with_upload(
    client: &Client,
    parts: &[&[u8]],
    check: impl FnOnce(&mut cairn_tests::client::Upload) -> Verdict,
) -> Verdict {
    let mut upload = client
        .create_upload(BUCKET, "parts")
        .map_err(|failure| failure.to_string())?;
    for (index, part) in parts.iter().enumerate() {
        upload
            .part(index as u32 + 1, part)
            .map_err(|failure| failure.to_string())?;
    }
    let verdict = check(&mut upload);
    upload.abort().map_err(|failure| format!("aborting: {failure}"))?;
    verdict
}

/// The head of a PUT that promises so many bytes.
fn upload(client: &Client, key: &str, promised: usize) -> Connection {
    let request = Request {
        method: "PUT",
        bucket: BUCKET,
        key,
        ..Request::default()
    };
    let (target, mut headers) = client.sign(&request, UNSIGNED_PAYLOAD);
    headers.push(("content-length".to_owned(), promised.to_string()));
    Connection::open(client.address, "PUT", &target, &headers).unwrap()
}

fn put_with(client: &Client, headers: &[(&str, &str)], body: &[u8]) -> Outcome<Response> {
    client.call(&Request {
        method: "PUT",
        bucket: BUCKET,
        key: "k",
        headers,
        body,
        ..Request::default()
    })
}

fn raw(
    client: &Client,
    method: &str,
    target: &str,
    headers: &[(String, String)],
    body: &[u8],
) -> std::io::Result<Response> {
    let mut headers = headers.to_vec();
    if !headers.iter().any(|(name, _)| name == "host") {
        headers.push(("host".to_owned(), client.address.to_string()));
    }
    http::exchange(client.address, method, target, &headers, body)
}

fn refused<T>(outcome: Outcome<T>, status: u16, codes: &[&str]) -> Verdict {
    match outcome {
        Ok(_) => Err(format!("{status} {codes:?} expected, but it succeeded")),
        Err(cairn_tests::client::Failure::Answer(response)) => answered(Ok(response), status, codes),
        Err(failure) => Err(format!("{status} {codes:?} expected: {failure}")),
    }
}

fn answered(response: std::io::Result<Response>, status: u16, codes: &[&str]) -> Verdict {
    let response = response.map_err(|error| format!("{status} {codes:?} expected: no answer: {error}"))?;
    let code = xml::text(&response.text(), "Code").unwrap_or_default();
    if response.status == status && codes.contains(&code.as_str()) {
        return Ok(());
    }
    Err(format!(
        "{status} {codes:?} expected: {} {}",
        response.status,
        response.text()
    ))
}

fn nothing_stored(client: &Client) -> Verdict {
    let objects = client.list(BUCKET).map_err(|failure| failure.to_string())?;
    let uploads = client.uploads(BUCKET).map_err(|failure| failure.to_string())?;
    if objects.is_empty() && uploads.is_empty() {
        return Ok(());
    }
    Err(format!("left behind: objects {objects:?}, uploads {uploads:?}"))
}

/// The next request works.
fn probe(client: &Client) -> Verdict {
    let content = Content::random(100_000);
    let outcome = client
        .put(BUCKET, "probe", &content.make())
        .and_then(|_| client.get(BUCKET, "probe"));
    let found = outcome.map_err(|failure| format!("the next request: {failure}"))?;
    content
        .compare(&found)
        .map_err(|difference| format!("the next request: {difference}"))?;
    client
        .delete(BUCKET, "probe")
        .map_err(|failure| format!("the next request: {failure}"))
}
