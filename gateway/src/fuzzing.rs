//! What must hold of any bytes that come from a client, or from a ledger; for the fuzz targets of `tests/fuzz` and the tests that replay
//! their corpus. Each function takes bytes that somebody else made up, and panics where a parser breaks its word: no bytes make it
//! panic, and what it read it would write the same way.

use crate::ledger::key;
use crate::object::multipart::{parse_upload_id, upload_id};
use crate::s3::front::fuzzing;
pub use fuzzing::{chunks, document, form, form_policy, request};

/// A fuzz target.
pub type Target = fn(&[u8]);

/// Every target, by the name that its corpus has.
pub const TARGETS: [(&str, Target); 7] = [
    ("s3_request", request),
    ("s3_chunks", chunks),
    ("s3_form", form),
    ("s3_policy", form_policy),
    ("s3_document", document),
    ("s3_token", token),
    ("ledger_key", ledger_key),
];

/// Tokens of listings and upload ids.
pub fn token(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(id) = parse_upload_id(text) {
        assert_eq!(upload_id(id), text.to_ascii_lowercase());
    }
    crate::s3::check_token(text);
}

/// Keys of rows: a name that was read out of one is of that row, and of no other.
pub fn ledger_key(bytes: &[u8]) {
    if let (Some(bucket), Some(name)) = (key::bucket_of_row(bytes), key::object_name(bytes)) {
        let row = key::object(bucket, &name);
        // The number of a version is behind the name.
        assert_eq!(row[..row.len() - 8], bytes[..bytes.len() - 8]);
    }
    if let Some((name, id)) = key::upload_name(bytes) {
        let bucket = bytes[1..9].try_into().map_or(0, u64::from_be_bytes);
        assert_eq!(key::upload(bucket, &name, id), bytes);
    }
    if let Some(name) = key::bucket_name(bytes) {
        assert_eq!(key::bucket(&name), bytes);
    }
    if let Some((volume, blob)) = key::blob_of_row(bytes) {
        assert_eq!(key::blob(volume, blob), bytes);
    }
    let _ = (key::part_number(bytes), key::disk_id(bytes), key::node_id(bytes));
    let _ = (key::volume_and_blob(bytes), key::suspect_parts(bytes));
    let _ = (
        key::id_range_parts(bytes),
        key::single_number(bytes),
        key::words(bytes),
    );
}

/// Inputs that a client would send, for the corpus: target, file, content.
pub fn seeds() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let signed = "authorization:AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20260101/us-east-1/s3/aws4_request, \
                  SignedHeaders=host;x-amz-content-sha256;x-amz-date, Signature=00\nhost:h:9000\n\
                  x-amz-content-sha256:UNSIGNED-PAYLOAD\nx-amz-date:20260101T000000Z";
    let presigned = "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIDEXAMPLE%2F20260101%2Fus-east-1%2Fs3%2Faws4_request\
                     &X-Amz-Date=20260101T000000Z&X-Amz-Expires=60&X-Amz-SignedHeaders=host&X-Amz-Signature=00";
    let text = |text: String| text.into_bytes();
    vec![
        ("s3_request", "seed-get", text(format!("GET /b/a%20key?versionId=null\n{signed}\nrange:bytes=0-4"))),
        ("s3_request", "seed-copy", text(format!("PUT /b/k\n{signed}\nx-amz-copy-source:/b/%C3%BC?versionId=null"))),
        ("s3_request", "seed-list", text(format!("GET /b?list-type=2&prefix=a%2F&delimiter=/\n{signed}"))),
        ("s3_request", "seed-host", text(format!("PUT /k?partNumber=1&uploadId=00\n{signed}").replace("h:9000", "b.s3.example.com"))),
        ("s3_request", "seed-presigned", text(format!("PUT /b/k?{presigned}&x-amz-meta-a=1&x-id=PutObject\nhost:h"))),
        ("s3_request", "seed-dates", text(format!("GET /b/k\n{signed}\nif-modified-since:Sunday, 06-Nov-94 08:49:37 GMT"))),
        ("s3_request", "seed-v2", text("GET /b/k?AWSAccessKeyId=AKIDEXAMPLE&Expires=1767225700&Signature=aaaa\nhost:h".into())),
        ("s3_chunks", "seed-plain", b"\x055\r\nhello\r\n0\r\nx-amz-checksum-crc32:NhCmhg==\r\n\r\n".to_vec()),
        ("s3_chunks", "seed-signed", text(format!("\u{5}5;chunk-signature={0}\r\nhello\r\n0;chunk-signature={0}\r\n\r\n", "0".repeat(64)))),
        ("s3_form", "seed", text(form_of(&[("key", "a/${filename}"), ("policy", "e30="), ("x-amz-meta-a", "1")]))),
        ("s3_policy", "seed", br#"{"expiration":"2026-01-02T00:00:00Z","conditions":[{"bucket":"b"},["starts-with","$key",""],["eq","$x-amz-meta-a","1"],["content-length-range",1,9]]}"#.to_vec()),
        ("s3_document", "seed", b"<Delete><Object><Key><![CDATA[a<b]]></Key></Object><!-- c --></Delete>".to_vec()),
        ("s3_token", "seed-token", b"YS_DvAE".to_vec()),
        ("s3_token", "seed-upload", text(upload_id(7 << 64))),
        ("ledger_key", "seed-object", key::object(7, "a\0b/\u{fc}").to_vec()),
        ("ledger_key", "seed-upload", key::upload(7, "a\0", 9).to_vec()),
        ("ledger_key", "seed-bucket", key::bucket("photos").to_vec()),
        ("ledger_key", "seed-blob", key::blob(7, 8).to_vec()),
        ("ledger_key", "seed-suspect", key::suspect(7, 8, 9, 1).to_vec()),
    ]
}

fn form_of(fields: &[(&str, &str)]) -> String {
    let field = |(name, value): &(&str, &str)| {
        format!("--B\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
    };
    let fields: String = fields.iter().map(field).collect();
    format!(
        "{fields}--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f.txt\"\r\n\r\ndata\r\n--B--\r\n"
    )
}
