//! Headers that ask for something which this server does not do: refused, never ignored. Pure.
//!
//! Invariant: a value that means nothing here (an ACL that gives nobody anything, `COPY` of no tags) passes; any other one that would
//! have to be dropped is an error, so that nobody takes for encrypted, locked, tagged or shared what is not.

use super::refusal::Refusal;
use crate::object::digest::Algorithm;
use http::{HeaderMap, HeaderValue, StatusCode};

/// The one owner there is, as listings and ACLs have it.
pub const OWNER: &str = "cairn";

/// ACLs that give nobody more than the owner has, where buckets have one owner.
const OWN_ACLS: &[&str] = &["private", "bucket-owner-full-control", "bucket-owner-read"];

/// Looks at every `x-amz-` header of a request.
pub fn check(headers: &HeaderMap) -> Result<(), Refusal> {
    for (name, value) in headers {
        if name.as_str().starts_with("x-amz-") {
            check_one(name.as_str(), value)?;
        }
    }
    Ok(())
}

fn check_one(name: &str, value: &HeaderValue) -> Result<(), Refusal> {
    let is = |wanted: &str| value.as_bytes().eq_ignore_ascii_case(wanted.as_bytes());
    match name {
        "x-amz-expected-bucket-owner" | "x-amz-source-expected-bucket-owner" => match is(OWNER) {
            true => Ok(()),
            false => Err(Refusal::access_denied(
                "the bucket is not of the owner that is expected",
            )),
        },
        "x-amz-acl" => match OWN_ACLS.iter().any(|acl| is(acl)) {
            true => Ok(()),
            false => Err(no_acls()),
        },
        "x-amz-object-ownership" => match is("BucketOwnerEnforced") {
            true => Ok(()),
            false => Err(no_acls()),
        },
        _ if name.starts_with("x-amz-grant-") => Err(no_acls()),
        "x-amz-storage-class" => match is("STANDARD") {
            true => Ok(()),
            false => Err(Refusal::new(
                "InvalidStorageClass",
                StatusCode::BAD_REQUEST,
                "the storage class is STANDARD here",
            )),
        },
        "x-amz-metadata-directive" | "x-amz-tagging-directive" => {
            match value.as_bytes() == b"COPY" || value.as_bytes() == b"REPLACE" {
                true => Ok(()),
                false => Err(Refusal::invalid_argument(format!("{name} is COPY or REPLACE"))),
            }
        }
        "x-amz-tagging" if value.is_empty() => Ok(()),
        "x-amz-tagging" => Err(unsupported("object tagging", name)),
        "x-amz-bucket-object-lock-enabled" | "x-amz-bypass-governance-retention" if is("false") => Ok(()),
        "x-amz-object-lock-legal-hold" if is("OFF") => Ok(()),
        "x-amz-bucket-object-lock-enabled" | "x-amz-bypass-governance-retention" => {
            Err(unsupported("object lock", name))
        }
        _ if name.starts_with("x-amz-object-lock-") => Err(unsupported("object lock", name)),
        _ if name.starts_with("x-amz-server-side-encryption")
            || name.starts_with("x-amz-copy-source-server-side-encryption") =>
        {
            Err(unsupported("server-side encryption", name))
        }
        "x-amz-checksum-mode" | "x-amz-checksum-type" | "x-amz-checksum-algorithm" => Ok(()),
        _ if name.starts_with("x-amz-checksum-") => {
            let algorithm = name.strip_prefix("x-amz-checksum-").unwrap_or_default();
            match Algorithm::parse(algorithm) {
                Some(_) => Ok(()),
                None => Err(unsupported("this checksum", name)),
            }
        }
        "x-amz-write-offset-bytes" => Err(unsupported("appending to an object", name)),
        "x-amz-mfa" => Err(unsupported("deletion with a second factor", name)),
        _ => Ok(()),
    }
}

fn no_acls() -> Refusal {
    Refusal::new(
        "AccessControlListNotSupported",
        StatusCode::BAD_REQUEST,
        "the bucket does not allow ACLs that give anything to others than its owner",
    )
}

fn unsupported(what: &str, name: &str) -> Refusal {
    Refusal::not_implemented(format!(
        "{what} is not supported by this server; send the request without {name}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_have_to_be_dropped_is_refused() {
        let code = |name: &'static str, value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_static(value));
            check(&headers).err().map(|refusal| refusal.code)
        };
        for (name, value) in [
            ("x-amz-acl", "private"),
            ("x-amz-acl", "bucket-owner-full-control"),
            ("x-amz-storage-class", "STANDARD"),
            ("x-amz-expected-bucket-owner", OWNER),
            ("x-amz-metadata-directive", "REPLACE"),
            ("x-amz-tagging", ""),
            ("x-amz-bucket-object-lock-enabled", "false"),
            ("x-amz-object-lock-legal-hold", "OFF"),
            ("x-amz-meta-acl", "public-read"),
            ("content-type", "x-amz-acl"),
        ] {
            assert_eq!(code(name, value), None, "{name}: {value}");
        }
        for (name, value, refused) in [
            ("x-amz-acl", "public-read", "AccessControlListNotSupported"),
            ("x-amz-grant-read", "id=1", "AccessControlListNotSupported"),
            (
                "x-amz-object-ownership",
                "ObjectWriter",
                "AccessControlListNotSupported",
            ),
            ("x-amz-storage-class", "GLACIER", "InvalidStorageClass"),
            ("x-amz-storage-class", "nonsense", "InvalidStorageClass"),
            ("x-amz-expected-bucket-owner", "111122223333", "AccessDenied"),
            ("x-amz-metadata-directive", "replace", "InvalidArgument"),
            ("x-amz-tagging", "a=b", "NotImplemented"),
            ("x-amz-server-side-encryption", "AES256", "NotImplemented"),
            ("x-amz-server-side-encryption-customer-key", "k", "NotImplemented"),
            (
                "x-amz-server-side-encryption-aws-kms-key-id",
                "k",
                "NotImplemented",
            ),
            (
                "x-amz-copy-source-server-side-encryption-customer-key",
                "k",
                "NotImplemented",
            ),
            ("x-amz-object-lock-mode", "GOVERNANCE", "NotImplemented"),
            ("x-amz-object-lock-retain-until-date", "2035", "NotImplemented"),
            ("x-amz-object-lock-legal-hold", "ON", "NotImplemented"),
            ("x-amz-bucket-object-lock-enabled", "true", "NotImplemented"),
            ("x-amz-write-offset-bytes", "0", "NotImplemented"),
            ("x-amz-mfa", "1", "NotImplemented"),
            ("x-amz-checksum-tomorrow", "1", "NotImplemented"),
        ] {
            assert_eq!(code(name, value), Some(refused), "{name}: {value}");
        }
    }
}
