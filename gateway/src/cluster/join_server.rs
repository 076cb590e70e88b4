//! The join address: HTTPS under the cluster's certificate, for nodes that come with a token and those that announce
//! themselves under a certificate.
//!
//! Invariants: connections, bodies and time are bounded. Whoever is refused is told why, in JSON if TLS got that far; who is
//! refused again and again is logged once a minute.

use super::disks::Disks;
use super::join::{JoinError, Joining};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use storage_node::join::{ANNOUNCE_PATH, BODY_BYTES_MAX, JOIN_PATH, Refused};
use storage_node::server::Complaints;
use storage_node::tls::{self, Clients, Peer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

const CONNECTIONS_MAX: usize = 64;
/// A whole connection: one request, or a few.
const CONNECTION_MAX: Duration = Duration::from_secs(30);
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);

/// Answers until the task is ended.
pub async fn serve(
    listener: TcpListener,
    joining: Arc<Joining>,
    disks: Arc<Disks>,
) -> Result<(), tls::TlsError> {
    let acceptor = TlsAcceptor::from(joining.credentials().server(Clients::Any)?);
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let complaints = Arc::new(Complaints::default());
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            return Ok(());
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (acceptor, joining, disks, complaints) = (
            acceptor.clone(),
            joining.clone(),
            disks.clone(),
            complaints.clone(),
        );
        tokio::spawn(async move {
            let connection = connection(stream, acceptor, joining, disks, complaints);
            // A connection that takes longer is cut.
            let _ended = tokio::time::timeout(CONNECTION_MAX, connection).await;
            drop(place);
        });
    }
}

async fn connection(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    joining: Arc<Joining>,
    disks: Arc<Disks>,
    complaints: Arc<Complaints>,
) {
    let Ok(from) = stream.peer_addr() else { return };
    let stream = match tokio::time::timeout(HANDSHAKE_MAX, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            match tls::refusal(&error) {
                Some(why) if complaints.is_new(from.ip(), &why) => {
                    tracing::warn!(%from, why, "a node was not let in");
                }
                _ => tracing::debug!(%from, %error, "TLS handshake failed"),
            }
            return;
        }
        Err(_) => return,
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let peer = certificate.and_then(Peer::of);
    let service = service_fn(move |request| {
        let (joining, disks, complaints) = (joining.clone(), disks.clone(), complaints.clone());
        async move {
            let answer = answer(&joining, &disks, peer, request).await;
            let answer = answer.unwrap_or_else(|error| {
                let why = error.to_string();
                if complaints.is_new(from.ip(), &why) {
                    tracing::warn!(%from, why, "a node was not let in");
                }
                json(status_of(&error), &Refused { error: why })
            });
            Ok::<_, Infallible>(answer)
        }
    });
    let http = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HANDSHAKE_MAX)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = http.await {
        tracing::debug!(%error, "join connection ended");
    }
}

async fn answer(
    joining: &Joining,
    disks: &Arc<Disks>,
    peer: Option<Peer>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, JoinError> {
    let (node, answer) = match (request.method(), request.uri().path()) {
        (&Method::POST, JOIN_PATH) => {
            let (node, answer) = joining.join(&content(request).await?).await?;
            (node, json(StatusCode::OK, &answer))
        }
        (&Method::POST, ANNOUNCE_PATH) => {
            let node = joining.announce(peer, &content(request).await?).await?;
            (node, json(StatusCode::OK, &serde_json::json!({})))
        }
        _ => {
            return Err(JoinError::Bad(
                "nodes join and announce themselves here, and nothing else".into(),
            ));
        }
    };
    if let Some(node) = disks.nodes().get(node) {
        disks.name_nodes();
        let disks = disks.clone();
        tokio::spawn(async move { disks.poll_node(&node).await });
    }
    Ok(answer)
}

async fn content<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, JoinError> {
    let body = Limited::new(request.into_body(), BODY_BYTES_MAX).collect().await;
    let body = body.map_err(|e| JoinError::Bad(format!("body: {e}")))?.to_bytes();
    serde_json::from_slice(&body).map_err(|e| JoinError::Bad(format!("body: {e}")))
}

fn status_of(error: &JoinError) -> StatusCode {
    match error {
        JoinError::Bad(_) => StatusCode::BAD_REQUEST,
        JoinError::Forbidden(_) => StatusCode::FORBIDDEN,
        JoinError::InTheWay(_) => StatusCode::CONFLICT,
        JoinError::Failed(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

fn json(status: StatusCode, content: &impl Serialize) -> Response<Full<Bytes>> {
    let body = serde_json::to_vec(content).unwrap_or_default();
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(
        http::header::CONTENT_TYPE,
        http::HeaderValue::from_static("application/json"),
    );
    response
}
