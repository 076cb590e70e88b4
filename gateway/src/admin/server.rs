//! The admin address: `/health/live`, `/health/ready`, `/metrics`, `/v1/status`.

use crate::cluster::disks::Health;
use crate::server::Gateway;
use bytes::Bytes;
use http::{Method, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use std::sync::Arc;

/// Answers one admin request.
pub async fn answer(gateway: Arc<Gateway>, request: http::Request<Incoming>) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".into());
    }
    match request.uri().path() {
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
