//! The admin address: `/health/live`, `/health/ready`, `/metrics`, `/v1/status`.

use super::operations::Refusal;
use crate::cluster::disks::Health;
use crate::server::Gateway;
use bytes::Bytes;
use http::{Method, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::time::Duration;

/// Answers one admin request.
pub async fn answer(gateway: Arc<Gateway>, request: http::Request<Incoming>) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_string();
    if request.method() == Method::POST {
        return match path.as_str() {
            "/v1/disks/plan" => operation(request, async |wanted| gateway.objects.plan(&wanted)).await,
            "/v1/disks/apply" => {
                operation(request, async |wanted| gateway.objects.apply(&wanted).await).await
            }
            "/v1/locate" => {
                let locate = async |wanted: Locate| gateway.objects.locate(&wanted.bucket, &wanted.key).await;
                operation(request, locate).await
            }
            _ => refused(StatusCode::NOT_FOUND, "there is no such operation"),
        };
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET and POST\n".into());
    }
    match path.as_str() {
        "/v1/volumes" => {
            let volumes = gateway.objects.volumes.all();
            let lines: Vec<_> = volumes.iter().map(|v| gateway.objects.volume_detail(v)).collect();
            json(&lines)
        }
        "/health/live" => text(StatusCode::OK, "live\n".into()),
        "/health/ready" => match ready(&gateway) {
            Ok(()) => text(StatusCode::OK, "ready\n".into()),
            Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
        },
        "/metrics" => metrics(&gateway).await,
        "/v1/status" => match gateway.status().await.map(|s| serde_json::to_string(&s)) {
            Ok(Ok(json)) => typed(StatusCode::OK, "application/json", json),
            Ok(Err(error)) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
            Err(error) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
        },
        _ => text(
            StatusCode::NOT_FOUND,
            "try /health/live, /health/ready, /metrics or /v1/status\n".into(),
        ),
    }
}

/// The most bytes of an operation's request.
const REQUEST_BYTES_MAX: usize = 64 * 1024;
/// An operation's request arrives in this time.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(10);

#[derive(serde::Deserialize)]
struct Locate {
    bucket: String,
    key: String,
}

/// Reads a request in JSON, does what it says, and answers in JSON.
async fn operation<T: DeserializeOwned, R: Serialize>(
    request: http::Request<Incoming>,
    act: impl AsyncFnOnce(T) -> Result<R, Refusal>,
) -> Response<Full<Bytes>> {
    let body = Limited::new(request.into_body(), REQUEST_BYTES_MAX).collect();
    let body = match tokio::time::timeout(REQUEST_TIME_MAX, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) => return refused(StatusCode::BAD_REQUEST, &error.to_string()),
        Err(_) => return refused(StatusCode::REQUEST_TIMEOUT, "the request did not arrive in time"),
    };
    let wanted = match serde_json::from_slice(&body) {
        Ok(wanted) => wanted,
        Err(error) => return refused(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    match act(wanted).await {
        Ok(answer) => json(&answer),
        Err(refusal) => {
            let status = match refusal {
                Refusal::NotFound(_) => StatusCode::NOT_FOUND,
                Refusal::Refused(_) => StatusCode::CONFLICT,
                Refusal::Outdated => StatusCode::PRECONDITION_FAILED,
                Refusal::Failed(_) => StatusCode::SERVICE_UNAVAILABLE,
            };
            refused(status, &refusal.to_string())
        }
    }
}

fn json<T: Serialize>(answer: &T) -> Response<Full<Bytes>> {
    match serde_json::to_string(answer) {
        Ok(json) => typed(StatusCode::OK, "application/json", json),
        Err(error) => refused(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

fn refused(status: StatusCode, why: &str) -> Response<Full<Bytes>> {
    let body = serde_json::json!({ "error": why }).to_string();
    typed(status, "application/json", body)
}

/// Ready means: open for requests, and enough disks to write with the wanted parity.
fn ready(gateway: &Gateway) -> Result<(), String> {
    let objects = &gateway.objects;
    if objects.gate.is_closed() {
        return Err("shutting down".into());
    }
    let online = objects
        .disks
        .all()
        .iter()
        .filter(|d| d.health == Health::Online)
        .count();
    match objects.scheme.narrowed(online) {
        Some(_) => Ok(()),
        None => Err(format!("only {online} disks are online")),
    }
}

async fn metrics(gateway: &Gateway) -> Response<Full<Bytes>> {
    let metrics = &gateway.objects.metrics;
    if let Err(error) = gateway.status().await {
        tracing::debug!(%error, "status for metrics");
    }
    let budget = &gateway.objects.budget;
    for (pool, used) in [
        ("writes", &budget.writes),
        ("reads", &budget.reads),
        ("decode", &budget.decode),
    ] {
        metrics
            .budget_used_bytes
            .with_label_values(&[pool])
            .set(used.used_bytes() as i64);
    }
    let mut states = [("online", 0), ("suspect", 0), ("down", 0)];
    for disk in gateway.objects.disks.all().iter() {
        let at = match disk.health {
            Health::Online => 0,
            Health::Suspect(_) => 1,
            Health::Down(_) => 2,
        };
        states[at].1 += 1;
        let Some(status) = &disk.status else { continue };
        for (kind, bytes) in [
            ("capacity", status.capacity_bytes),
            ("free", status.free_bytes),
            ("live", status.live_bytes),
        ] {
            metrics
                .disk_bytes
                .with_label_values(&[disk.label.as_str(), kind])
                .set(bytes as i64);
        }
    }
    for (state, count) in states {
        metrics.disks.with_label_values(&[state]).set(count);
    }
    typed(StatusCode::OK, "text/plain; version=0.0.4", metrics.render())
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    typed(status, "text/plain", body)
}

fn typed(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(
        http::header::CONTENT_TYPE,
        http::HeaderValue::from_static(content_type),
    );
    response
}
