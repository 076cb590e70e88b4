//! Which operation a request asks for: an allow-list. Pure.
//!
//! S3 tells operations apart by method, by what the path names, and by names in the query (or one header); and it adds new ones. What is
//! not in this list is refused, so that an operation of tomorrow is never run as one of today: `PUT /bucket/key?annotation` is not
//! PutObject.
//!
//! Invariant: a query name or an `x-amz-` header that an operation does not list is not passed on to it.

use super::head::Target;
use super::hoisted::{is_hoisted, is_presigned};
use super::refusal::Refusal;
use http::{HeaderMap, Method};

/// What the path of a request names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    /// The service.
    Service,
    /// A bucket.
    Bucket,
    /// An object.
    Object,
}

/// An operation, and what a request for it may have.
#[derive(Debug)]
pub struct Operation {
    /// S3's name.
    pub name: &'static str,
    method: &'static str,
    on: On,
    /// Names that the query must have.
    when: &'static [&'static str],
    /// Further ones that it may have.
    query: &'static [&'static str],
    /// A header that it must have.
    with: Option<&'static str>,
    /// `x-amz-` headers that it may have beside those of every request; a `*` at the end stands for any rest.
    headers: &'static [&'static [&'static str]],
    /// How its body is read.
    pub body: BodyKind,
}

/// How the body of a request is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyKind {
    /// There should be none.
    None,
    /// A document, whole.
    Document,
    /// An object's bytes, as they come.
    Data,
}

/// Names in a query that belong to its signature, or say nothing that matters.
const SIGNATURE: &[&str] = &[
    "X-Amz-Algorithm",
    "X-Amz-Credential",
    "X-Amz-Date",
    "X-Amz-Expires",
    "X-Amz-SignedHeaders",
    "X-Amz-Signature",
    "X-Amz-Content-Sha256",
    "X-Amz-Security-Token",
    "X-Amz-User-Agent",
    "AWSAccessKeyId",
    "Signature",
    "Expires",
    "x-id",
];

/// Headers that any request may have: of its signature and its body, and about who sends it.
const COMMON: &[&str] = &[
    "x-amz-date",
    "x-amz-content-sha256",
    "x-amz-security-token",
    "x-amz-user-agent",
    "x-amz-decoded-content-length",
    "x-amz-expected-bucket-owner",
    "x-amz-request-payer",
    "x-amz-te",
    "x-amz-api-version",
    "x-amz-id-2",
    "x-amz-request-id",
    "x-amz-cf-id",
];

/// Of the object that is written.
const KEPT: &[&str] = &[
    "x-amz-meta-*",
    "x-amz-storage-class",
    "x-amz-website-redirect-location",
    "x-amz-tagging",
];
/// Who may read what is written.
const ACL: &[&str] = &["x-amz-acl", "x-amz-grant-*", "x-amz-object-ownership"];
/// Encryption of what is written or read.
const ENCRYPTION: &[&str] = &["x-amz-server-side-encryption*"];
/// Retention of what is written.
const LOCK: &[&str] = &["x-amz-object-lock-*", "x-amz-bypass-governance-retention"];
/// Checksums of a body.
const SUMS: &[&str] = &[
    "x-amz-checksum-*",
    "x-amz-sdk-checksum-algorithm",
    "x-amz-trailer",
];
/// Of the source of a copy.
const SOURCE: &[&str] = &["x-amz-copy-source*", "x-amz-source-expected-bucket-owner"];

const RESPONSE: &[&str] = &[
    "response-cache-control",
    "response-content-disposition",
    "response-content-encoding",
    "response-content-language",
    "response-content-type",
    "response-expires",
    "versionId",
    "partNumber",
];

/// A shorter way to write a row.
const fn row(method: &'static str, on: On, name: &'static str) -> Operation {
    Operation {
        name,
        method,
        on,
        when: &[],
        query: &[],
        with: None,
        headers: &[],
        body: BodyKind::None,
    }
}

/// A read of one part of a bucket's or an object's configuration.
const fn part_of(on: On, when: &'static [&'static str], name: &'static str) -> Operation {
    Operation {
        when,
        ..row("GET", on, name)
    }
}

/// All that this server does.
pub const OPERATIONS: &[Operation] = &[
    Operation {
        query: &["max-buckets", "continuation-token", "prefix", "bucket-region"],
        ..row("GET", On::Service, "ListBuckets")
    },
    // Buckets.
    Operation {
        headers: &[ACL, &["x-amz-bucket-object-lock-enabled"]],
        body: BodyKind::Document,
        ..row("PUT", On::Bucket, "CreateBucket")
    },
    row("DELETE", On::Bucket, "DeleteBucket"),
    row("HEAD", On::Bucket, "HeadBucket"),
    Operation {
        query: &["delimiter", "encoding-type", "marker", "max-keys", "prefix"],
        headers: &[&["x-amz-optional-object-attributes"]],
        ..row("GET", On::Bucket, "ListObjects")
    },
    Operation {
        when: &["list-type"],
        query: &[
            "continuation-token",
            "delimiter",
            "encoding-type",
            "fetch-owner",
            "max-keys",
            "prefix",
            "start-after",
        ],
        headers: &[&["x-amz-optional-object-attributes"]],
        ..row("GET", On::Bucket, "ListObjectsV2")
    },
    Operation {
        when: &["versions"],
        query: &[
            "delimiter",
            "encoding-type",
            "key-marker",
            "max-keys",
            "prefix",
            "version-id-marker",
        ],
        headers: &[&["x-amz-optional-object-attributes"]],
        ..row("GET", On::Bucket, "ListObjectVersions")
    },
    Operation {
        when: &["uploads"],
        query: &[
            "delimiter",
            "encoding-type",
            "key-marker",
            "max-uploads",
            "prefix",
            "upload-id-marker",
        ],
        ..row("GET", On::Bucket, "ListMultipartUploads")
    },
    Operation {
        when: &["delete"],
        headers: &[SUMS, &["x-amz-mfa", "x-amz-bypass-governance-retention"]],
        body: BodyKind::Document,
        ..row("POST", On::Bucket, "DeleteObjects")
    },
    part_of(On::Bucket, &["location"], "GetBucketLocation"),
    part_of(On::Bucket, &["versioning"], "GetBucketVersioning"),
    part_of(On::Bucket, &["acl"], "GetBucketAcl"),
    part_of(On::Bucket, &["policy"], "GetBucketPolicy"),
    part_of(On::Bucket, &["policyStatus"], "GetBucketPolicyStatus"),
    part_of(On::Bucket, &["cors"], "GetBucketCors"),
    Operation {
        when: &["cors"],
        headers: &[SUMS],
        body: BodyKind::Document,
        ..row("PUT", On::Bucket, "PutBucketCors")
    },
    Operation {
        when: &["cors"],
        ..row("DELETE", On::Bucket, "DeleteBucketCors")
    },
    part_of(On::Bucket, &["tagging"], "GetBucketTagging"),
    part_of(On::Bucket, &["lifecycle"], "GetBucketLifecycleConfiguration"),
    part_of(On::Bucket, &["encryption"], "GetBucketEncryption"),
    part_of(On::Bucket, &["object-lock"], "GetObjectLockConfiguration"),
    part_of(On::Bucket, &["publicAccessBlock"], "GetPublicAccessBlock"),
    part_of(On::Bucket, &["ownershipControls"], "GetBucketOwnershipControls"),
    part_of(On::Bucket, &["website"], "GetBucketWebsite"),
    part_of(On::Bucket, &["replication"], "GetBucketReplication"),
    part_of(On::Bucket, &["logging"], "GetBucketLogging"),
    part_of(
        On::Bucket,
        &["notification"],
        "GetBucketNotificationConfiguration",
    ),
    part_of(On::Bucket, &["requestPayment"], "GetBucketRequestPayment"),
    part_of(On::Bucket, &["accelerate"], "GetBucketAccelerateConfiguration"),
    Operation {
        query: &["continuation-token"],
        ..part_of(On::Bucket, &["analytics"], "ListBucketAnalyticsConfigurations")
    },
    Operation {
        query: &["continuation-token"],
        ..part_of(On::Bucket, &["inventory"], "ListBucketInventoryConfigurations")
    },
    Operation {
        query: &["continuation-token"],
        ..part_of(On::Bucket, &["metrics"], "ListBucketMetricsConfigurations")
    },
    // Objects.
    Operation {
        headers: &[KEPT, ACL, ENCRYPTION, LOCK, SUMS, &["x-amz-write-offset-bytes"]],
        body: BodyKind::Data,
        ..row("PUT", On::Object, "PutObject")
    },
    Operation {
        with: Some("x-amz-copy-source"),
        headers: &[
            KEPT,
            ACL,
            ENCRYPTION,
            LOCK,
            SOURCE,
            &[
                "x-amz-metadata-directive",
                "x-amz-tagging-directive",
                "x-amz-checksum-algorithm",
            ],
        ],
        ..row("PUT", On::Object, "CopyObject")
    },
    Operation {
        query: RESPONSE,
        headers: &[ENCRYPTION, &["x-amz-checksum-mode"]],
        ..row("GET", On::Object, "GetObject")
    },
    Operation {
        query: RESPONSE,
        headers: &[ENCRYPTION, &["x-amz-checksum-mode"]],
        ..row("HEAD", On::Object, "HeadObject")
    },
    Operation {
        query: &["versionId"],
        headers: &[&["x-amz-mfa", "x-amz-bypass-governance-retention"]],
        ..row("DELETE", On::Object, "DeleteObject")
    },
    Operation {
        query: &["versionId"],
        ..part_of(On::Object, &["acl"], "GetObjectAcl")
    },
    Operation {
        query: &["versionId"],
        ..part_of(On::Object, &["tagging"], "GetObjectTagging")
    },
    Operation {
        query: &["versionId"],
        headers: &[
            ENCRYPTION,
            &[
                "x-amz-object-attributes",
                "x-amz-max-parts",
                "x-amz-part-number-marker",
            ],
        ],
        ..part_of(On::Object, &["attributes"], "GetObjectAttributes")
    },
    Operation {
        query: &["versionId"],
        ..part_of(On::Object, &["legal-hold"], "GetObjectLegalHold")
    },
    Operation {
        query: &["versionId"],
        ..part_of(On::Object, &["retention"], "GetObjectRetention")
    },
    // Multipart uploads.
    Operation {
        when: &["uploads"],
        headers: &[
            KEPT,
            ACL,
            ENCRYPTION,
            LOCK,
            &["x-amz-checksum-algorithm", "x-amz-checksum-type"],
        ],
        ..row("POST", On::Object, "CreateMultipartUpload")
    },
    Operation {
        when: &["partNumber", "uploadId"],
        headers: &[ENCRYPTION, SUMS],
        body: BodyKind::Data,
        ..row("PUT", On::Object, "UploadPart")
    },
    Operation {
        when: &["partNumber", "uploadId"],
        with: Some("x-amz-copy-source"),
        headers: &[ENCRYPTION, SOURCE],
        ..row("PUT", On::Object, "UploadPartCopy")
    },
    Operation {
        when: &["uploadId"],
        headers: &[ENCRYPTION, &["x-amz-checksum-*", "x-amz-mp-object-size"]],
        body: BodyKind::Document,
        ..row("POST", On::Object, "CompleteMultipartUpload")
    },
    Operation {
        when: &["uploadId"],
        ..row("DELETE", On::Object, "AbortMultipartUpload")
    },
    Operation {
        when: &["uploadId"],
        query: &["max-parts", "part-number-marker"],
        headers: &[ENCRYPTION],
        ..row("GET", On::Object, "ListParts")
    },
];

/// A form that uploads an object. Told apart by its media type, not by its query.
pub const POST_OBJECT: Operation = Operation {
    headers: &[KEPT, ACL, ENCRYPTION, LOCK, SUMS],
    body: BodyKind::Data,
    ..row("POST", On::Bucket, "PostObject")
};

/// Whether a name in a query belongs to its signature, or says nothing that matters.
pub fn is_of_signature(name: &str) -> bool {
    SIGNATURE.iter().any(|known| known.eq_ignore_ascii_case(name))
}

impl Operation {
    /// The operation that a request asks for; whether it may have its headers is for [`Operation::check_headers`].
    pub fn of(
        method: &Method,
        target: &Target,
        has_header: impl Fn(&str) -> bool,
    ) -> Result<&'static Operation, Refusal> {
        let on = match (&target.bucket, &target.key) {
            (None, _) => On::Service,
            (Some(_), None) => On::Bucket,
            (Some(_), Some(_)) => On::Object,
        };
        let asked = |operation: &&Operation| {
            operation.method == method.as_str()
                && operation.on == on
                && operation.when.iter().all(|name| target.has(name))
                && operation.with.is_none_or(&has_header)
        };
        // The more a row asks for, the better it fits.
        let found = OPERATIONS
            .iter()
            .filter(asked)
            .max_by_key(|operation| operation.when.len() * 2 + usize::from(operation.with.is_some()));
        let Some(operation) = found else {
            let what = match on {
                On::Service => "the service",
                On::Bucket => "a bucket",
                On::Object => "an object",
            };
            return Err(Refusal::not_implemented(format!(
                "there is no {method} on {what} with this query"
            )));
        };
        operation.check_query(target)?;
        if let Some(id) = target.value("x-id")
            && id != operation.name
        {
            return Err(Refusal::invalid_request(format!(
                "the query says {id}, and the request is {}",
                operation.name
            )));
        }
        Ok(operation)
    }

    fn check_query(&self, target: &Target) -> Result<(), Refusal> {
        let knows =
            |name: &str| self.when.contains(&name) || self.query.contains(&name) || is_of_signature(name);
        let mut unknown = target
            .query
            .iter()
            .map(|(name, _)| name)
            .filter(|name| !knows(name));
        let is_presigned = is_presigned(target);
        match unknown.find(|name| !(is_presigned && is_hoisted(name))) {
            None => Ok(()),
            Some(name) => Err(Refusal::not_implemented(format!(
                "{} does not have {name:?} in its query here",
                self.name
            ))),
        }
    }

    /// Refuses `x-amz-` headers that are not listed.
    pub fn check_headers(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let knows = |name: &str| {
            let listed = self.headers.iter().flat_map(|names| names.iter());
            COMMON.contains(&name)
                || listed.copied().any(|known| match known.strip_suffix('*') {
                    Some(start) => name.starts_with(start),
                    None => name == known,
                })
        };
        let mut acting = headers.keys().map(|name| name.as_str());
        match acting.find(|name| name.starts_with("x-amz-") && !knows(name)) {
            None => Ok(()),
            Some(name) => Err(Refusal::not_implemented(format!(
                "{} does not have the header {name} here",
                self.name
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn of(method: &str, target: &str, headers: &[&str]) -> Result<&'static str, &'static str> {
        let mut request = http::Request::builder().method(method).uri(target);
        for name in headers {
            request = request.header(*name, "1");
        }
        let (head, ()) = request.body(()).expect("a request").into_parts();
        let target = Target::read(&head, &[]).expect("a target");
        let operation = Operation::of(&head.method, &target, |name| head.headers.contains_key(name));
        let checked =
            operation.and_then(|operation| operation.check_headers(&head.headers).map(|()| operation.name));
        checked.map_err(|refusal| refusal.code)
    }

    #[test]
    fn operations_are_told_apart_by_path_query_and_one_header() {
        for (method, target, headers, name) in [
            ("GET", "/", &[][..], "ListBuckets"),
            ("GET", "/b", &[], "ListObjects"),
            ("GET", "/b?list-type=2&prefix=x", &[], "ListObjectsV2"),
            ("GET", "/b?versions", &[], "ListObjectVersions"),
            ("GET", "/b?uploads&prefix=x", &[], "ListMultipartUploads"),
            ("GET", "/b?location=", &[], "GetBucketLocation"),
            ("PUT", "/b/k", &["x-amz-meta-a"], "PutObject"),
            ("PUT", "/b/k?x-id=PutObject", &[], "PutObject"),
            ("PUT", "/b/k", &["x-amz-copy-source"], "CopyObject"),
            ("PUT", "/b/k?partNumber=1&uploadId=2", &[], "UploadPart"),
            (
                "PUT",
                "/b/k?partNumber=1&uploadId=2",
                &["x-amz-copy-source", "x-amz-copy-source-range"],
                "UploadPartCopy",
            ),
            ("GET", "/b/k?partNumber=1", &[], "GetObject"),
            ("GET", "/b/k?response-content-type=a", &[], "GetObject"),
            ("GET", "/b/k?uploadId=2&max-parts=1", &[], "ListParts"),
            (
                "GET",
                "/b/k?AWSAccessKeyId=a&Signature=b&Expires=1",
                &[],
                "GetObject",
            ),
            ("POST", "/b/k?uploads", &[], "CreateMultipartUpload"),
            ("POST", "/b/k?uploadId=1", &[], "CompleteMultipartUpload"),
            ("DELETE", "/b/k?uploadId=1", &[], "AbortMultipartUpload"),
            ("DELETE", "/b/k", &[], "DeleteObject"),
            ("POST", "/b?delete", &[], "DeleteObjects"),
        ] {
            assert_eq!(of(method, target, headers), Ok(name), "{method} {target}");
        }
    }

    #[test]
    fn what_is_not_listed_is_not_run_as_something_else() {
        for (method, target, header) in [
            ("PUT", "/b/k?annotation", ""),
            ("PUT", "/b/k?renameObject", "x-amz-rename-source"),
            ("PUT", "/b/k?encryption", ""),
            ("PUT", "/b/k?uploadId=1", ""),
            ("PUT", "/b/k?partNumber=1", ""),
            ("PUT", "/b/k?acl", ""),
            ("DELETE", "/b/k?acl", ""),
            ("DELETE", "/b/k?annotation", ""),
            ("DELETE", "/b?versioning", ""),
            ("DELETE", "/b?policy", ""),
            ("PUT", "/b?foo", ""),
            ("GET", "/b/k?torrent", ""),
            ("POST", "/b", ""),
            ("POST", "/", ""),
            ("PATCH", "/b/k", ""),
            ("PUT", "/", ""),
            ("PUT", "/b/k", "x-amz-rename-source"),
            ("PUT", "/b/k", "x-amz-new-of-tomorrow"),
            ("DELETE", "/b/k", "x-amz-copy-source"),
            ("DELETE", "/b/k", "x-amz-if-match-size"),
            ("GET", "/b/k", "x-amz-meta-a"),
        ] {
            let headers = [header];
            let headers = if header.is_empty() { &[][..] } else { &headers[..] };
            assert_eq!(
                of(method, target, headers),
                Err("NotImplemented"),
                "{method} {target} {header}"
            );
        }
        assert_eq!(of("PUT", "/b/k?x-id=DeleteObject", &[]), Err("InvalidRequest"));
    }

    #[test]
    fn no_two_rows_are_asked_for_alike() {
        let mut seen = HashSet::new();
        let mut names = HashSet::new();
        for row in OPERATIONS {
            assert!(
                seen.insert((row.method, format!("{:?}", row.on), row.when, row.with)),
                "{}",
                row.name
            );
            assert!(names.insert(row.name), "{}", row.name);
        }
    }
}
