//! What browsers are told of a bucket's CORS rules: the answer to a preflight, and headers of every other answer.
//!
//! Deliberately absent: any right. A browser keeps a page from what the rules do not name; who has no signature is refused either way.

use super::document;
use super::head::Target;
use super::refusal::Refusal;
use crate::ledger::model::CorsRuleRow;
use crate::object::Objects;
use crate::object::cors::rule_for;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use s3s::{Body, HttpResponse};

/// Headers that a preflight may ask for.
const HEADERS_MAX: usize = 100;

/// Answers may be another's for another of these.
const VARY: HeaderValue =
    HeaderValue::from_static("Origin, Access-Control-Request-Headers, Access-Control-Request-Method");

fn forbidden(message: &str) -> Refusal {
    Refusal::new("AccessForbidden", StatusCode::FORBIDDEN, message)
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The answer to a preflight request.
pub async fn preflight(objects: &Objects, head: &Parts, target: &Target) -> Result<HttpResponse, Refusal> {
    let bad = |message: &str| Refusal::new("BadRequest", StatusCode::BAD_REQUEST, message);
    let origin = text(&head.headers, &header::ORIGIN)
        .ok_or_else(|| bad("Insufficient information. Origin request header needed."))?;
    let method = text(&head.headers, &header::ACCESS_CONTROL_REQUEST_METHOD)
        .ok_or_else(|| bad("Invalid Access-Control-Request-Method: null"))?;
    let bucket = target
        .bucket
        .as_deref()
        .ok_or_else(|| forbidden("CORSResponse: CORS is of buckets, and the request is for none."))?;
    let asked = text(&head.headers, &header::ACCESS_CONTROL_REQUEST_HEADERS).unwrap_or_default();
    let headers: Vec<&str> = asked
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .collect();
    if headers.len() > HEADERS_MAX {
        return Err(bad("Too many headers are asked for."));
    }
    let rules = objects
        .cors(bucket)
        .await
        .map_err(document::refused)?
        .ok_or_else(|| forbidden("CORSResponse: CORS is not enabled for this bucket."))?;
    let rule = rule_for(&rules.rules, origin, method, &headers).ok_or_else(|| {
        forbidden(
            "CORSResponse: This CORS request is not allowed. This is usually because the evalution of Origin, \
             request method / Access-Control-Request-Method or Access-Control-Request-Headers are not whitelisted by \
             the resource's CORS spec.",
        )
    })?;
    let mut response = HttpResponse::new(Body::empty());
    tell(response.headers_mut(), rule, origin);
    insert(
        response.headers_mut(),
        header::ACCESS_CONTROL_ALLOW_HEADERS,
        &headers.join(", ").to_ascii_lowercase(),
    );
    if let Some(seconds) = rule.max_age_s {
        response
            .headers_mut()
            .insert(header::ACCESS_CONTROL_MAX_AGE, seconds.into());
    }
    Ok(response)
}

/// What there is to say to the browser that sent a request with this head, once it is answered.
pub async fn headers(objects: &Objects, head: &Asked, answer: &mut HeaderMap) {
    let Asked {
        origin,
        method,
        bucket,
    } = head;
    // Without the rules it is told nothing, and keeps the page from the answer.
    let Ok(Some(rules)) = objects.cors(bucket).await else {
        return;
    };
    if let Some(rule) = rule_for(&rules.rules, origin, method, &[]) {
        tell(answer, rule, origin);
    }
}

/// Who asks from a page, and for which bucket.
pub struct Asked {
    origin: String,
    method: String,
    bucket: String,
}

impl Asked {
    /// None if no browser asks, or for no bucket.
    pub fn by(head: &Parts, domains: &[String]) -> Option<Asked> {
        let origin = text(&head.headers, &header::ORIGIN)?.to_owned();
        let bucket = Target::read(head, domains).ok()?.bucket?;
        let method = head.method.as_str().to_owned();
        Some(Asked {
            origin,
            method,
            bucket,
        })
    }
}

fn tell(headers: &mut HeaderMap, rule: &CorsRuleRow, origin: &str) {
    let is_for_all = rule.origins.iter().any(|pattern| pattern == "*");
    if is_for_all {
        insert(headers, header::ACCESS_CONTROL_ALLOW_ORIGIN, "*");
    } else {
        insert(headers, header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        insert(headers, header::ACCESS_CONTROL_ALLOW_CREDENTIALS, "true");
    }
    insert(
        headers,
        header::ACCESS_CONTROL_ALLOW_METHODS,
        &rule.methods.join(", "),
    );
    insert(
        headers,
        header::ACCESS_CONTROL_EXPOSE_HEADERS,
        &rule.expose.join(", "),
    );
    headers.append(header::VARY, VARY);
}

fn insert(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value)
        && !value.is_empty()
    {
        headers.insert(name, value);
    }
}
