//! The policy of a form: what its holder may upload, and until when. Pure.
//!
//! Invariant: a field that no condition covers is refused, and so is a condition that is not understood.

use super::refusal::Refusal;
use base64_simd::STANDARD as BASE64;
use http::StatusCode;
use serde::Deserialize;
use serde_json::Value;
use std::ops::RangeInclusive;
use std::time::SystemTime;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// The longest policy, in bytes of base64.
pub const POLICY_BYTES_MAX: usize = 28 * 1024;

/// What a policy says.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    expiration: String,
    conditions: Vec<Value>,
}

enum Condition {
    Is(String, String),
    StartsWith(String, String),
    Length(u64, u64),
}

/// Fields that no condition has to cover.
const FREE: &[&str] = &["awsaccesskeyid", "signature", "x-amz-signature", "policy", "file"];

/// Checks the fields of a form, names in lower case, for a bucket. Answers how many bytes its file may have.
pub fn check(
    policy: &str,
    fields: &[(String, String)],
    bucket: &str,
    now: SystemTime,
) -> Result<RangeInclusive<u64>, Refusal> {
    let document = parse(policy)?;
    let expiration = OffsetDateTime::parse(&document.expiration, &Rfc3339)
        .map_err(|_| bad("its expiration is no date of ISO 8601"))?;
    if OffsetDateTime::from(now) > expiration {
        return Err(Refusal::access_denied("the policy of the form has expired"));
    }
    let conditions = document.conditions.iter().map(condition);
    let conditions = conditions.collect::<Result<Vec<_>, _>>()?;
    let value = |name: &str| match name {
        "bucket" => Some(bucket),
        _ => fields
            .iter()
            .find(|(other, _)| other == name)
            .map(|(_, value)| value.as_str()),
    };
    let mut length = 0..=u64::MAX;
    for condition in &conditions {
        let (holds, words) = match condition {
            Condition::Is(name, wanted) => (
                value(name) == Some(wanted.as_str()),
                format!("[\"eq\", \"${name}\", \"{wanted}\"]"),
            ),
            // Several types may be given, and each has to begin with it.
            Condition::StartsWith(name, start) if name == "content-type" => (
                value(name).is_some_and(|found| found.split(',').all(|part| part.trim().starts_with(start))),
                format!("[\"starts-with\", \"${name}\", \"{start}\"]"),
            ),
            Condition::StartsWith(name, start) => (
                value(name).is_some_and(|found| found.starts_with(start)),
                format!("[\"starts-with\", \"${name}\", \"{start}\"]"),
            ),
            Condition::Length(least, most) => {
                length = *length.start().max(least)..=*length.end().min(most);
                continue;
            }
        };
        if !holds {
            let message = format!("the form does not meet the condition {words} of its policy");
            return Err(Refusal::access_denied(message));
        }
    }
    let covered = |name: &str| {
        FREE.contains(&name)
            || name.starts_with("x-ignore-")
            || conditions.iter().any(|condition| match condition {
                Condition::Is(of, _) | Condition::StartsWith(of, _) => of == name,
                Condition::Length(..) => false,
            })
    };
    match fields.iter().find(|(name, _)| !covered(name)) {
        Some((name, _)) => Err(Refusal::access_denied(format!(
            "the policy of the form says nothing of its field {name}"
        ))),
        None => Ok(length),
    }
}

fn parse(policy: &str) -> Result<Document, Refusal> {
    if policy.len() > POLICY_BYTES_MAX {
        return Err(bad("it is too long"));
    }
    let json = BASE64.decode_to_vec(policy).map_err(|_| bad("it is no base64"))?;
    serde_json::from_slice(&json).map_err(|error| bad(&error.to_string()))
}

fn condition(value: &Value) -> Result<Condition, Refusal> {
    let not_understood = || bad(&format!("the condition {value} is not understood"));
    let field = |name: &Value| {
        let name = name.as_str().and_then(|name| name.strip_prefix('$'));
        name.map(str::to_ascii_lowercase).ok_or_else(not_understood)
    };
    let text = |value: &Value| value.as_str().map(str::to_owned).ok_or_else(not_understood);
    // Some clients write the numbers in quotes.
    let number = |value: &Value| {
        let number = value.as_u64().or_else(|| value.as_str()?.parse().ok());
        number.ok_or_else(not_understood)
    };
    match value {
        Value::Object(pairs) if pairs.len() == 1 => {
            let (name, wanted) = pairs.iter().next().ok_or_else(not_understood)?;
            Ok(Condition::Is(name.to_ascii_lowercase(), text(wanted)?))
        }
        Value::Array(items) => match items.as_slice() {
            [kind, name, wanted] => match kind.as_str().map(str::to_ascii_lowercase).as_deref() {
                Some("eq") => Ok(Condition::Is(field(name)?, text(wanted)?)),
                Some("starts-with") => Ok(Condition::StartsWith(field(name)?, text(wanted)?)),
                Some("content-length-range") => Ok(Condition::Length(number(name)?, number(wanted)?)),
                _ => Err(not_understood()),
            },
            _ => Err(not_understood()),
        },
        _ => Err(not_understood()),
    }
}

fn bad(why: &str) -> Refusal {
    Refusal::new(
        "InvalidPolicyDocument",
        StatusCode::BAD_REQUEST,
        format!("the policy of the form is invalid: {why}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    const NOW: u64 = 1_796_000_000; // 2026-11-29

    fn checked(json: &str, fields: &[(&str, &str)]) -> Result<RangeInclusive<u64>, &'static str> {
        let fields: Vec<_> = fields
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(NOW);
        let policy = BASE64.encode_to_string(json);
        check(&policy, &fields, "b", now).map_err(|refusal| refusal.code)
    }

    fn of(conditions: &str, fields: &[(&str, &str)]) -> Result<RangeInclusive<u64>, &'static str> {
        let json = format!("{{\"expiration\":\"2030-01-01T00:00:00.000Z\",\"conditions\":[{conditions}]}}");
        checked(&json, fields)
    }

    #[test]
    fn a_form_meets_every_condition_and_has_no_field_beside_them() {
        let key = ("key", "user/a.txt");
        let conditions = r#"{"bucket":"b"},["starts-with","$key","user/"]"#;
        assert_eq!(of(conditions, &[key]), Ok(0..=u64::MAX));
        assert_eq!(of(conditions, &[("key", "other")]), Err("AccessDenied"));
        assert_eq!(of(conditions, &[key, ("acl", "private")]), Err("AccessDenied"));
        assert_eq!(
            of(conditions, &[key, ("x-ignore-a", "1"), ("policy", "p")]),
            Ok(0..=u64::MAX)
        );
        assert_eq!(of(r#"{"bucket":"other"}"#, &[]), Err("AccessDenied"));
        assert_eq!(
            of(r#"["eq","$Content-Type","a/b"]"#, &[("content-type", "a/b")]),
            Ok(0..=u64::MAX)
        );
        let types = r#"["starts-with","$Content-Type","image/"]"#;
        assert_eq!(
            of(types, &[("content-type", "image/a, image/b")]),
            Ok(0..=u64::MAX)
        );
        assert_eq!(
            of(types, &[("content-type", "image/a, text/b")]),
            Err("AccessDenied")
        );
        let lengths = r#"["content-length-range",1,"10"],["content-length-range",0,5]"#;
        assert_eq!(of(lengths, &[]), Ok(1..=5));
    }

    #[test]
    fn what_is_over_or_not_understood_is_refused() {
        let expired = "{\"expiration\":\"2026-01-01T00:00:00Z\",\"conditions\":[]}";
        assert_eq!(checked(expired, &[]), Err("AccessDenied"));
        for json in [
            "",
            "[]",
            "{}",
            "{\"expiration\":\"soon\",\"conditions\":[]}",
            "{\"expiration\":\"2030-01-01T00:00:00Z\"}",
            "{\"expiration\":\"2030-01-01T00:00:00Z\",\"conditions\":[],\"more\":1}",
        ] {
            assert_eq!(checked(json, &[]), Err("InvalidPolicyDocument"), "{json}");
        }
        for condition in [
            "[\"ends-with\",\"$key\",\"a\"]",
            "[\"eq\",\"key\",\"a\"]",
            "{\"a\":\"1\",\"b\":\"2\"}",
            "7",
        ] {
            assert_eq!(
                of(condition, &[("key", "a")]),
                Err("InvalidPolicyDocument"),
                "{condition}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_text_is_understood_or_refused(json: String) {
            let _ = checked(&json, &[]); // Never panics.
            let _ = check(&json, &[], "b", SystemTime::UNIX_EPOCH);
        }
    }
}
