//! The admin address: `/health/live`, `/health/ready`, `/metrics`, and `/v1/…` in JSON.
//!
//! It asks for no key, and is on loopback unless somebody says otherwise.
//! Invariants: bodies are bounded; what changes anything is a POST of `application/json`, which no page of a browser can
//! send here unasked; a name that somebody else may have pointed here (`Host`) and a page of another place (`Origin`) are refused; an
//! error is `{"error": …}` with a fitting status.

use super::accept::AcceptPlan;
use super::archive;
use super::ledger::LedgerLine;
use super::nodes;
use super::operations::Refusal;
use super::scrub;
use super::unnamed::UnnamedPage;
use crate::cluster::disks::Health;
use crate::cluster::join::JoinError;
use crate::error::Error;
use crate::maintenance::rebuild::pace::Wanted;
use crate::maintenance::unnamed::keep::Keep;
use crate::placement::volumes::Volume;
use crate::server::Gateway;
use bytes::Bytes;
use http::{HeaderMap, Method, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::net::IpAddr;
use std::sync::Arc;

/// Slower than this a rebuild would not end.
const BANDWIDTH_MIN: u64 = 1 << 20;
/// The longest body of a request.
const BODY_BYTES_MAX: usize = 256 << 10;

/// The body of an answer.
pub type Body = UnsyncBoxBody<Bytes, Error>;

/// Answers one admin request.
pub async fn answer(gateway: Arc<Gateway>, request: http::Request<Incoming>) -> Response<Body> {
    if request.method() == Method::GET && request.uri().path() == "/v1/ledger/backup" {
        return match archive::backup(&gateway).await {
            Ok(body) => Response::new(body),
            Err(error) => whole(json::<()>(Err(error))),
        };
    }
    whole(answer_whole(gateway, request).await)
}

/// Refuses what a page of a browser sends that its maker had resolve its own name to this address: the browser takes that page for this
/// server's. Who means this server has its address, or a name without dots.
fn check_source(headers: &HeaderMap) -> Result<(), AdminError> {
    let refused = |what: String| AdminError {
        status: StatusCode::FORBIDDEN,
        what,
    };
    if let Some(origin) = headers.get(header::ORIGIN) {
        return Err(refused(format!("a page of {origin:?} may not ask this")));
    }
    let Some(host) = headers.get(header::HOST) else {
        return Ok(());
    };
    let host = host.to_str().unwrap_or("?");
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let is_address = name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    match is_address || !name.contains('.') || name.ends_with(".localhost") {
        true => Ok(()),
        false => Err(refused(format!(
            "{name:?} may be anybody's name for this server: reach it by its IP address, or by a name without dots"
        ))),
    }
}

fn whole(answer: Response<Full<Bytes>>) -> Response<Body> {
    answer.map(|body| body.map_err(|never| match never {}).boxed_unsync())
}

async fn answer_whole(gateway: Arc<Gateway>, request: http::Request<Incoming>) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    if !path.starts_with("/health/")
        && let Err(error) = check_source(request.headers())
    {
        return json::<()>(Err(error));
    }
    match (request.method(), path.as_str()) {
        (&Method::GET | &Method::HEAD, "/health/live") => text(StatusCode::OK, "live\n".into()),
        (&Method::GET | &Method::HEAD, "/health/ready") => match ready(&gateway) {
            Ok(()) => text(StatusCode::OK, "ready\n".into()),
            Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
        },
        (&Method::GET | &Method::HEAD, "/metrics") => metrics(&gateway).await,
        (&Method::GET, "/v1/status") => json(gateway.status().await.map_err(AdminError::from)),
        (&Method::GET, "/v1/volumes") => {
            let volumes = gateway.objects.volumes.all();
            let detail = |volume: &Arc<Volume>| gateway.objects.volume_detail(volume);
            json(Ok(volumes.iter().map(detail).collect::<Vec<_>>()))
        }
        (&Method::POST, "/v1/plan") => {
            let plan = async |wanted| Ok(gateway.objects.plan(&wanted)?);
            json(with_body(request, plan).await)
        }
        (&Method::POST, "/v1/apply") => {
            let apply = async |wanted| Ok(gateway.objects.apply(&wanted).await?);
            json(with_body(request, apply).await)
        }
        (&Method::POST, "/v1/rebalance") => {
            let rebalance = async |wanted| Ok(gateway.objects.rebalance(&wanted).await?);
            json(with_body(request, rebalance).await)
        }
        (&Method::POST, "/v1/rebalance/stop") => {
            let stop = async |_: Nothing| Ok(gateway.objects.ask_rebalance(None).await?);
            json(with_body(request, stop).await)
        }
        (&Method::POST, "/v1/rebuild/pace") => {
            json(with_body(request, |wanted| pace(&gateway, wanted)).await)
        }
        (&Method::POST, "/v1/locate") => {
            let locate =
                async |wanted: Locate| Ok(gateway.objects.locate(&wanted.bucket, &wanted.key).await?);
            json(with_body(request, locate).await)
        }
        (&Method::GET, "/v1/scrub") => json(scrub::status(&gateway.objects).await.map_err(AdminError::from)),
        (&Method::POST, "/v1/scrub/start") => {
            let start = async |wanted| Ok(scrub::start(&gateway, &wanted).await?);
            json(with_body(request, start).await)
        }
        (&Method::POST, "/v1/scrub/pace") => {
            let set = async |wanted| Ok(scrub::set_pace(&gateway.objects, &wanted).await?);
            json(with_body(request, set).await)
        }
        (&Method::GET, "/v1/ledger/accept") => {
            json(gateway.objects.accept_plan().await.map_err(AdminError::from))
        }
        (&Method::POST, "/v1/ledger/accept") => json(with_body(request, |plan| accept(&gateway, plan)).await),
        (&Method::GET, "/v1/archive") => json(Ok(archive::status(&gateway))),
        (&Method::POST, "/v1/archive/snapshot") => {
            let snapshot = async |_: Nothing| Ok(archive::want_snapshot(&gateway));
            json(with_body(request, snapshot).await)
        }
        (&Method::GET, "/v1/unnamed") => json(unnamed_page(&gateway, request.uri().query()).await),
        (&Method::POST, "/v1/unnamed/purge") => {
            let purge = async |wanted| Ok(gateway.objects.purge(&wanted).await?);
            json(with_body(request, purge).await)
        }
        (&Method::POST, "/v1/unnamed/restore") => {
            let restore = async |wanted| Ok(gateway.objects.restore_unnamed(&wanted).await?);
            json(with_body(request, restore).await)
        }
        (&Method::GET, "/v1/unnamed/units") => {
            let units = gateway.objects.stray_units(&gateway.moving).await;
            json(units.map_err(AdminError::from))
        }
        (&Method::POST, "/v1/unnamed/units/drop") => {
            let drop = async |wanted| Ok(gateway.objects.drop_strays(&gateway.moving, &wanted).await?);
            json(with_body(request, drop).await)
        }
        (&Method::POST, "/v1/unnamed/keep") => {
            json(with_body(request, |wanted| keep(&gateway, wanted)).await)
        }
        (&Method::GET, "/v1/nodes") => json(Ok(nodes::list(&gateway))),
        (&Method::GET, "/v1/disks") => json(Ok(nodes::disks(&gateway))),
        (&Method::POST, "/v1/tokens") => {
            json(with_body(request, |body| nodes::make_token(&gateway, body)).await)
        }
        (&Method::POST, "/v1/disks") => {
            json(with_body(request, |body| nodes::add_disks(&gateway, body)).await)
        }
        (&Method::GET | &Method::HEAD | &Method::POST, _) => json::<()>(Err(AdminError {
            status: StatusCode::NOT_FOUND,
            what: "try /health/live, /health/ready, /metrics, /v1/status, /v1/nodes or /v1/disks".into(),
        })),
        _ => json::<()>(Err(AdminError {
            status: StatusCode::METHOD_NOT_ALLOWED,
            what: "only GET and POST".into(),
        })),
    }
}

/// Why a request of an operator was not done.
#[derive(Debug)]
pub struct AdminError {
    /// What fits.
    pub status: StatusCode,
    /// In words.
    pub what: String,
}

impl AdminError {
    /// The request makes no sense.
    pub fn bad(what: impl Into<String>) -> AdminError {
        AdminError {
            status: StatusCode::BAD_REQUEST,
            what: what.into(),
        }
    }

    /// Something is in the way.
    pub fn conflict(what: impl Into<String>) -> AdminError {
        AdminError {
            status: StatusCode::CONFLICT,
            what: what.into(),
        }
    }
}

impl From<Error> for AdminError {
    fn from(error: Error) -> AdminError {
        let status = match error {
            Error::InvalidRequest(_) => StatusCode::CONFLICT,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        AdminError {
            status,
            what: error.to_string(),
        }
    }
}

impl From<JoinError> for AdminError {
    fn from(error: JoinError) -> AdminError {
        let status = match &error {
            JoinError::Bad(_) => StatusCode::BAD_REQUEST,
            JoinError::Forbidden(_) => StatusCode::FORBIDDEN,
            JoinError::InTheWay(_) => StatusCode::CONFLICT,
            JoinError::Failed(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        AdminError {
            status,
            what: error.to_string(),
        }
    }
}

/// Does something with the JSON of a request. It goes on to its end when the operator leaves.
async fn with_body<B: DeserializeOwned, T, F>(
    request: http::Request<Incoming>,
    operation: impl FnOnce(B) -> F,
) -> Result<T, AdminError>
where
    F: Future<Output = Result<T, AdminError>>,
{
    let content_type = request.headers().get(http::header::CONTENT_TYPE);
    let is_json = content_type.is_some_and(|t| t.as_bytes().starts_with(b"application/json"));
    if !is_json {
        return Err(AdminError {
            status: StatusCode::UNSUPPORTED_MEDIA_TYPE,
            what: "send application/json".into(),
        });
    }
    let body = Limited::new(request.into_body(), BODY_BYTES_MAX).collect().await;
    let body = body
        .map_err(|e| AdminError::bad(format!("body: {e}")))?
        .to_bytes();
    let body = serde_json::from_slice(&body).map_err(|e| AdminError::bad(format!("body: {e}")))?;
    operation(body).await
}

fn json<T: Serialize>(answer: Result<T, AdminError>) -> Response<Full<Bytes>> {
    let (status, body) = match answer {
        Ok(content) => (StatusCode::OK, serde_json::to_string(&content)),
        Err(error) => (
            error.status,
            Ok(serde_json::json!({ "error": error.what }).to_string()),
        ),
    };
    match body {
        Ok(body) => typed(status, "application/json", body),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

impl From<Refusal> for AdminError {
    fn from(refusal: Refusal) -> AdminError {
        let status = match refusal {
            Refusal::NotFound(_) => StatusCode::NOT_FOUND,
            Refusal::Refused(_) => StatusCode::CONFLICT,
            Refusal::Outdated => StatusCode::PRECONDITION_FAILED,
            Refusal::Failed(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        AdminError {
            status,
            what: refusal.to_string(),
        }
    }
}

/// `{}`.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

#[derive(serde::Deserialize)]
struct Locate {
    bucket: String,
    key: String,
}

/// How fast rebuilding is to go.
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PaceRequest {
    /// As clients allow.
    Auto,
    /// So many bytes a second.
    Bandwidth(u64),
    /// Done in so many seconds from now.
    DeadlineS(u64),
}

async fn pace(gateway: &Gateway, request: PaceRequest) -> Result<Wanted, AdminError> {
    let objects = &gateway.objects;
    let wanted = match request {
        PaceRequest::Auto => Wanted::Auto,
        PaceRequest::Bandwidth(bytes @ BANDWIDTH_MIN..) => Wanted::Bandwidth(bytes),
        PaceRequest::DeadlineS(seconds @ 1..) => Wanted::Deadline(
            objects
                .clock
                .now_ms()
                .saturating_add(seconds.saturating_mul(1000)),
        ),
        PaceRequest::Bandwidth(_) => return Err(AdminError::bad("a bandwidth is 1 MiB a second at least")),
        PaceRequest::DeadlineS(_) => return Err(AdminError::bad("a deadline is a second at least")),
    };
    objects.want_pace(wanted, None).await?;
    tracing::info!(?wanted, "the pace of rebuilding was set");
    Ok(wanted)
}

/// `?after=VOLUME/BLOB`, or the first page.
async fn unnamed_page(gateway: &Gateway, query: Option<&str>) -> Result<UnnamedPage, AdminError> {
    let after = match query {
        None => None,
        Some(query) => {
            let blob = query
                .strip_prefix("after=")
                .and_then(|after| after.split_once('/'));
            let blob = blob.and_then(|(volume, blob)| Some((volume.parse().ok()?, blob.parse().ok()?)));
            Some(blob.ok_or_else(|| AdminError::bad("ask with after=VOLUME/BLOB, or with nothing"))?)
        }
    };
    Ok(gateway.objects.unnamed_page(after).await?)
}

async fn keep(gateway: &Gateway, wanted: Keep) -> Result<Keep, AdminError> {
    if wanted.censuses == 0 {
        return Err(AdminError::bad("a census at least has to find what is to go"));
    }
    gateway.objects.set_keep(wanted).await?;
    tracing::info!(?wanted, "how long unnamed blobs are kept was set");
    Ok(wanted)
}

/// Accepts the ledger as it is, and has the gateway start anew.
async fn accept(gateway: &Gateway, plan: AcceptPlan) -> Result<(), AdminError> {
    match gateway.objects.accept(&plan).await {
        Ok(()) => {
            tracing::warn!(?plan, "the ledger was accepted as it is");
            gateway.start_again();
            Ok(())
        }
        Err(Error::Conflict) => Err(AdminError {
            status: StatusCode::PRECONDITION_FAILED,
            what: "what disks say has changed since the plan was made: look at it again".into(),
        }),
        Err(error) => Err(error.into()),
    }
}

/// Ready means: open for requests, with a ledger that can be asked, and enough disks to write with the wanted parity.
fn ready(gateway: &Gateway) -> Result<(), String> {
    let objects = &gateway.objects;
    if objects.gate.is_closed() {
        return Err("shutting down".into());
    }
    if let Some((why, since)) = objects.ledger.state().unavailable {
        let seconds = since.as_secs();
        return Err(format!("the ledger has been unavailable for {seconds} s: {why}"));
    }
    if let Err(error) = objects.ledger.check_writable() {
        return Err(error.to_string());
    }
    let online = objects
        .disks
        .all()
        .iter()
        .filter(|d| d.health == Health::Online)
        .count();
    match objects.volumes.write_scheme(objects.scheme) {
        Some(_) => Ok(()),
        None => Err(format!("only {online} disks are online")),
    }
}

async fn metrics(gateway: &Gateway) -> Response<Full<Bytes>> {
    let metrics = &gateway.objects.metrics;
    match gateway.status().await {
        Ok(status) => {
            metrics.verdict.set(status.verdict.level as i64);
            let unreadable = status.degraded.unreadable_blobs;
            metrics.unreadable_blobs.set(unreadable as i64);
        }
        Err(error) => tracing::debug!(%error, "status for metrics"),
    }
    for worker in gateway.workers() {
        let counter = metrics.worker_restarts.with_label_values(&[worker.name]);
        counter.inc_by(worker.restarts.saturating_sub(counter.get()));
    }
    let pauses = gateway.objects.disks.pauses().count();
    metrics.pauses.inc_by(pauses.saturating_sub(metrics.pauses.get()));
    LedgerLine::of(&gateway.objects.ledger).show(metrics);
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
    let archive = gateway.objects.archive.status(gateway.objects.ledger.position());
    metrics.archive_behind_seconds.set(archive.behind_s as i64);
    metrics.archive_behind_commits.set(archive.behind_commits as i64);
    metrics.cache_bytes.set(gateway.objects.cache.used_bytes() as i64);
    let mut states = [("online", 0), ("suspect", 0), ("down", 0)];
    for disk in gateway.objects.disks.all().iter() {
        let at = match disk.standing() {
            Health::Online => 0,
            Health::Suspect(_) => 1,
            Health::Down(_) => 2,
        };
        states[at].1 += 1;
        for (wrong, count) in disk.conduct.wrong_seen().counts {
            let counter = metrics
                .wrong_answers
                .with_label_values(&[disk.label.as_str(), wrong.word()]);
            counter.inc_by(count.saturating_sub(counter.get()));
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_may_be_anybodys_and_a_page_of_another_place_are_refused() {
        let is_taken = |name: header::HeaderName, value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, http::HeaderValue::from_static(value));
            check_source(&headers).is_ok()
        };
        for host in [
            "127.0.0.1:9001",
            "[::1]:9001",
            "10.0.0.1",
            "localhost:9001",
            "gateway:9001",
            "x.localhost",
        ] {
            assert!(is_taken(header::HOST, host), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:9001",
            "127.0.0.1.evil.example",
            "localhost.evil.example:9001",
        ] {
            assert!(!is_taken(header::HOST, host), "{host}");
        }
        assert!(!is_taken(header::ORIGIN, "http://evil.example"));
        assert!(check_source(&HeaderMap::new()).is_ok());
    }
}
