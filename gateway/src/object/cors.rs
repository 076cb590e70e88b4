//! Which pages of other origins may use a bucket from a browser: the rules of a bucket, what makes sense of them, and which one
//! applies. Pure, but for keeping them in the bucket's row.

use super::Objects;
use crate::error::{Error, Result};
use crate::ledger::model::{BucketRow, CorsRow, CorsRuleRow};
use crate::ledger::{CommitBuilder, key};
use prost::Message;
use std::sync::Arc;

/// The most rules of a bucket.
const RULES_MAX: usize = 100;
/// The most bytes of a bucket's rules, as they are kept.
const BYTES_MAX: usize = 64 * 1024;
/// The longest name of a rule.
const ID_BYTES_MAX: usize = 255;
/// Methods that rules may allow.
const METHODS: &[&str] = &["GET", "PUT", "POST", "DELETE", "HEAD"];

/// Whether a pattern with at most one `*`, for any text, is that of a text.
fn is_like(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, end)) => {
            text.len() >= start.len() + end.len() && text.starts_with(start) && text.ends_with(end)
        }
    }
}

/// Fails where rules make no sense.
fn check(rules: &[CorsRuleRow]) -> Result<()> {
    if rules.is_empty() || rules.len() > RULES_MAX {
        return Err(Error::MalformedXml(format!(
            "a bucket has 1 to {RULES_MAX} CORS rules"
        )));
    }
    for rule in rules {
        if rule.origins.is_empty() || rule.methods.is_empty() {
            return Err(Error::MalformedXml(
                "a CORS rule has at least one AllowedOrigin and one AllowedMethod".into(),
            ));
        }
        if rule.id.len() > ID_BYTES_MAX {
            return Err(Error::InvalidArgument(format!(
                "the ID of a CORS rule has at most {ID_BYTES_MAX} bytes"
            )));
        }
        if let Some(method) = rule.methods.iter().find(|it| !METHODS.contains(&it.as_str())) {
            return Err(Error::InvalidRequest(format!(
                "Found unsupported HTTP method in CORS config. Unsupported method is {method}"
            )));
        }
        let patterns = [("AllowedOrigin", &rule.origins), ("AllowedHeader", &rule.headers)];
        for (what, patterns) in patterns {
            if let Some(pattern) = patterns.iter().find(|it| it.matches('*').count() > 1) {
                return Err(Error::InvalidRequest(format!(
                    "{what} \"{pattern}\" can not have more than one wildcard."
                )));
            }
        }
        if let Some(header) = rule.expose.iter().find(|it| !is_header_name(it)) {
            return Err(Error::InvalidRequest(format!(
                "ExposeHeader \"{header}\" is no name of a header"
            )));
        }
        // They come back in headers.
        let is_text = |text: &String| text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        if let Some(text) = rule.origins.iter().chain(&rule.headers).find(|it| !is_text(it)) {
            return Err(Error::InvalidRequest(format!("{text:?} is not ASCII text")));
        }
    }
    Ok(())
}

fn is_header_name(name: &str) -> bool {
    http::HeaderName::from_bytes(name.as_bytes()).is_ok() && name != "*"
}

/// The first rule for an origin that wants to use a method with further headers, lower-case or not.
pub fn rule_for<'a>(
    rules: &'a [CorsRuleRow],
    origin: &str,
    method: &str,
    headers: &[&str],
) -> Option<&'a CorsRuleRow> {
    let allows = |rule: &&CorsRuleRow| {
        let allows_header = |header: &&str| {
            let header = header.to_ascii_lowercase();
            let mut patterns = rule.headers.iter().map(|pattern| pattern.to_ascii_lowercase());
            patterns.any(|pattern| is_like(&pattern, &header))
        };
        rule.methods.iter().any(|it| it == method)
            && rule.origins.iter().any(|pattern| is_like(pattern, origin))
            && headers.iter().all(allows_header)
    };
    rules.iter().find(allows)
}

impl Objects {
    /// The rules of a bucket; none if it has none.
    pub async fn cors(&self, bucket: &str) -> Result<Option<CorsRow>> {
        let found = self.bucket(bucket).await?.row.cors;
        if found.is_empty() {
            return Ok(None);
        }
        let damaged = |error| Error::Internal(format!("the CORS rules of bucket {bucket}: {error}"));
        CorsRow::decode(found).map(Some).map_err(damaged)
    }

    /// Gives a bucket these rules instead of those that it has; none takes them away.
    pub async fn set_cors(self: &Arc<Self>, bucket: &str, rules: Option<Vec<CorsRuleRow>>) -> Result<()> {
        if let Some(rules) = &rules {
            check(rules)?;
        }
        let cors = rules.map_or_else(Vec::new, |rules| CorsRow { rules }.encode_to_vec());
        if cors.len() > BYTES_MAX {
            return Err(Error::MalformedXml(format!(
                "CORS rules have at most {BYTES_MAX} bytes"
            )));
        }
        let bucket = bucket.to_owned();
        self.decide_and_commit(None, move |objects| {
            let (bucket, cors) = (bucket.clone(), bytes::Bytes::from(cors.clone()));
            async move {
                let found = objects.bucket_to_change(&bucket).await?;
                let row_key = key::bucket(&bucket);
                let row = BucketRow { cors, ..found.row };
                let commit = CommitBuilder::new()
                    .expect(&row_key, Some(found.version))
                    .put(row_key, &row);
                Ok((commit, ()))
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(origins: &[&str], methods: &[&str], headers: &[&str]) -> CorsRuleRow {
        let all = |texts: &[&str]| texts.iter().map(|text| text.to_string()).collect();
        CorsRuleRow {
            origins: all(origins),
            methods: all(methods),
            headers: all(headers),
            ..CorsRuleRow::default()
        }
    }

    #[test]
    fn the_first_rule_that_allows_all_of_it_applies() {
        let rules = [
            rule(&["https://a.example"], &["PUT"], &[]),
            rule(
                &["https://*.example"],
                &["PUT", "GET"],
                &["x-amz-*", "Content-Type"],
            ),
            rule(&["*"], &["GET"], &["*"]),
        ];
        let of = |origin, method, headers: &[&str]| {
            let found = rule_for(&rules, origin, method, headers)?;
            rules.iter().position(|rule| std::ptr::eq(rule, found))
        };
        assert_eq!(of("https://a.example", "PUT", &[]), Some(0));
        assert_eq!(
            of("https://a.example", "PUT", &["content-type", "X-Amz-Meta-A"]),
            Some(1)
        );
        assert_eq!(of("https://b.example", "GET", &[]), Some(1));
        assert_eq!(of("https://b.example", "GET", &["authorization"]), Some(2));
        assert_eq!(of("http://b.example", "PUT", &[]), None);
        assert_eq!(of("https://b.example.evil", "PUT", &[]), None);
        assert_eq!(of("https://b.example", "DELETE", &[]), None);
        assert_eq!(
            of("https://.exampl", "GET", &[]),
            Some(2),
            "a pattern's ends do not overlap"
        );
    }

    #[test]
    fn rules_that_make_no_sense_are_refused() {
        let good = || rule(&["*"], &["GET"], &["*"]);
        assert!(check(&[good()]).is_ok());
        assert!(check(&[]).is_err());
        assert!(check(&vec![good(); RULES_MAX + 1]).is_err());
        assert!(check(&[rule(&[], &["GET"], &[])]).is_err());
        assert!(check(&[rule(&["*"], &[], &[])]).is_err());
        assert!(check(&[rule(&["*"], &["PATCH"], &[])]).is_err());
        assert!(check(&[rule(&["*"], &["get"], &[])]).is_err());
        assert!(check(&[rule(&["*.a.*"], &["GET"], &[])]).is_err());
        assert!(check(&[rule(&["*"], &["GET"], &["x-*-*"])]).is_err());
        assert!(check(&[rule(&["http://a\r\nb"], &["GET"], &[])]).is_err());
        let expose = |name: &str| CorsRuleRow {
            expose: vec![name.to_owned()],
            ..good()
        };
        assert!(check(&[expose("ETag")]).is_ok());
        assert!(check(&[expose("*")]).is_err());
        assert!(check(&[expose("a b")]).is_err());
    }
}
