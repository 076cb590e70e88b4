//! A [`StorageClient`] served over HTTP/1.1, with or without TLS.
//!
//! Invariants: with TLS only gateways of the node's cluster are served, and everybody else is told why not; connections, headers, bodies and time are bounded; no request can take the process down; an error
//! leaves as the JSON of its [`NodeError`]. Connections beyond the bound wait in the listen queue.

use crate::client::{DELETE_BLOBS_MAX, MANY_SHARDS_MAX, StorageClient};
use crate::protocol::{
    BlockRange, DiskId, FormatRequest, Generation, NodeError, ShardKey, UnitAddress, UnitId,
};
use crate::tls::{self, Clients, Credentials, Peer, Role, TlsError};
use crate::wire::{
    self, BODY_BYTES_MAX, DEADLINE_HEADER, DEADLINE_MAX, LEDGER_HEADER, MANY_BODY_BYTES_MAX, Pieces,
    REQUEST_JSON_BYTES_MAX,
};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

const CONNECTIONS_MAX: usize = 1024;
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
const DEADLINE_USUAL: Duration = Duration::from_secs(30);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Somebody who is refused again and again is spoken of this often.
const COMPLAINT_PERIOD: Duration = Duration::from_secs(60);
const COMPLAINTS_MAX: usize = 256;
/// Requests of many shards that are in memory at once; more wait, within their deadlines.
const MANY_AT_ONCE: usize = 16;
/// How long requests in progress may go on after the shutdown began.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(10);

/// Serves without TLS until `shutdown` is ready, then lets requests in progress finish for up to ten seconds.
pub async fn serve(
    listener: TcpListener,
    client: Arc<dyn StorageClient>,
    shutdown: impl Future<Output = ()>,
) {
    serve_through(listener, client, None, shutdown).await;
}

/// As [`serve`], for gateways of this node's cluster alone, over TLS.
pub async fn serve_tls(
    listener: TcpListener,
    client: Arc<dyn StorageClient>,
    credentials: &Credentials,
    shutdown: impl Future<Output = ()>,
) -> Result<(), TlsError> {
    let door = Door {
        own: credentials.peer,
        acceptor: TlsAcceptor::from(credentials.server(Clients::Certified)?),
        complaints: Complaints::default(),
    };
    serve_through(listener, client, Some(Arc::new(door)), shutdown).await;
    Ok(())
}

async fn serve_through(
    listener: TcpListener,
    client: Arc<dyn StorageClient>,
    door: Option<Arc<Door>>,
    shutdown: impl Future<Output = ()>,
) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let client = Arc::new(Served {
        client,
        many: Semaphore::new(MANY_AT_ONCE),
    });
    let graceful = GracefulShutdown::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &connections) => accepted,
            () = &mut shutdown => break,
        };
        match accepted {
            Ok((stream, permit)) => {
                start_connection(stream, permit, client.clone(), door.clone(), graceful.watcher());
            }
            Err(error) => {
                // Out of descriptors, mostly: waiting lets some close.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drop(listener);
    if tokio::time::timeout(SHUTDOWN_PATIENCE, graceful.shutdown())
        .await
        .is_err()
    {
        tracing::warn!("requests were still running after the shutdown timeout");
    }
}

/// What is served, and how much of it at once.
struct Served {
    client: Arc<dyn StorageClient>,
    many: Semaphore,
}

/// Who is let in, with TLS.
struct Door {
    own: Peer,
    acceptor: TlsAcceptor,
    complaints: Complaints,
}

impl Door {
    /// The stream inside, and why its requests are refused, if they are. None: nobody is there.
    async fn admit(
        &self,
        stream: TcpStream,
    ) -> Option<(tokio_rustls::server::TlsStream<TcpStream>, Option<String>)> {
        let from = stream.peer_addr().ok()?;
        let accepted = tokio::time::timeout(HANDSHAKE_TIMEOUT, self.acceptor.accept(stream)).await;
        let stream = match accepted {
            Err(_) => {
                tracing::debug!(%from, "no TLS handshake in time");
                return None;
            }
            Ok(Err(error)) => {
                match tls::refusal(&error) {
                    Some(why) => self.complain(from.ip(), &why),
                    None => tracing::debug!(%from, %error, "TLS handshake failed"),
                }
                return None;
            }
            Ok(Ok(stream)) => stream,
        };
        let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let refused = match certificate.and_then(Peer::of) {
            Some(Peer {
                role: Role::Gateway,
                cluster,
            }) if cluster == self.own.cluster => None,
            Some(other) => Some(format!(
                "this is {}, and serves gateways only, not {other}",
                self.own
            )),
            None => Some("only gateways are served".into()),
        };
        if let Some(why) = &refused {
            self.complain(from.ip(), why);
        }
        Some((stream, refused))
    }

    fn complain(&self, from: IpAddr, why: &str) {
        if self.complaints.is_new(from, why) {
            tracing::warn!(%from, why, this = %self.own, "connection refused");
        }
    }
}

/// What was said of late, so that it is not said twice a second.
#[derive(Default)]
pub struct Complaints(Mutex<HashMap<(IpAddr, String), Instant>>);

impl Complaints {
    /// Whether this was not said within the last minute; it counts as said now.
    pub fn is_new(&self, from: IpAddr, why: &str) -> bool {
        let now = Instant::now();
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        said.retain(|_, at| now < *at + COMPLAINT_PERIOD);
        if said.contains_key(&(from, why.to_owned())) || said.len() >= COMPLAINTS_MAX {
            return false;
        }
        said.insert((from, why.to_owned()), now);
        true
    }
}

async fn accept(
    listener: &TcpListener,
    connections: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let permit = connections
        .clone()
        .acquire_owned()
        .await
        .map_err(std::io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    stream.set_nodelay(true)?;
    Ok((stream, permit))
}

fn start_connection(
    stream: TcpStream,
    permit: OwnedSemaphorePermit,
    client: Arc<Served>,
    door: Option<Arc<Door>>,
    watcher: Watcher,
) {
    tokio::spawn(async move {
        let _permit = permit;
        match door {
            None => serve_connection(stream, client, None, watcher).await,
            Some(door) => {
                if let Some((stream, refused)) = door.admit(stream).await {
                    serve_connection(stream, client, refused, watcher).await;
                }
            }
        }
    });
}

async fn serve_connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    client: Arc<Served>,
    refused: Option<String>,
    watcher: Watcher,
) {
    let service = service_fn(move |request| {
        let (client, refused) = (client.clone(), refused.clone());
        async move {
            let answer = match refused {
                None => answer(&client, request).await,
                // To a gateway this is what it is to meet a node that is not its own.
                Some(what) => json(StatusCode::FORBIDDEN, &NodeError::Unreachable { what }),
            };
            Ok::<_, Infallible>(answer)
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = watcher.watch(connection).await {
        tracing::debug!(%error, "connection ended");
    }
}

async fn answer(served: &Served, request: Request<Incoming>) -> Response<Pieces> {
    let deadline = deadline_of(&request);
    if deadline.is_zero() {
        return json(wire::status_of(&NodeError::Timeout), &NodeError::Timeout);
    }
    let result = match tokio::time::timeout(deadline, handle(served, request, deadline)).await {
        Ok(result) => result,
        Err(_) => Err(NodeError::Timeout),
    };
    result.unwrap_or_else(|error| json(wire::status_of(&error), &error))
}

fn deadline_of(request: &Request<Incoming>) -> Duration {
    let header = request
        .headers()
        .get(DEADLINE_HEADER)
        .and_then(|value| value.to_str().ok()?.parse().ok());
    header
        .map_or(DEADLINE_USUAL, Duration::from_millis)
        .min(DEADLINE_MAX)
}

fn json(status: StatusCode, content: &impl serde::Serialize) -> Response<Pieces> {
    let (status, body) = match serde_json::to_vec(content) {
        Ok(body) => (status, body),
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, Vec::new()),
    };
    respond(status, Pieces::new([body.into()]))
}

fn respond(status: StatusCode, body: Pieces) -> Response<Pieces> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}

fn done() -> Response<Pieces> {
    respond(StatusCode::NO_CONTENT, Pieces::new([]))
}

/// What a path names.
enum Target {
    Status,
    Format,
    Units(DiskId, u64),
    Findings(DiskId, u64),
    Verify(DiskId, u64),
    Admit(DiskId, u64),
    Obey(DiskId, u64),
    Still(DiskId, u64),
    Beat,
    Unit(UnitAddress),
    Shard(UnitAddress, ShardKey),
    GetMany(UnitAddress),
    PutMany(UnitAddress),
    Delete(UnitAddress),
    Inventory(UnitAddress),
}

fn parse<T: FromStr>(part: &str) -> Result<T, NodeError> {
    part.parse().map_err(|_| NodeError::BadRequest {
        what: format!("{part:?} in the path"),
    })
}

fn parse_path(path: &str, ledger: Generation) -> Result<Target, NodeError> {
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    let address = |disk, incarnation, volume, index, epoch| {
        let unit = UnitId {
            volume: parse(volume)?,
            index: parse(index)?,
        };
        Ok(UnitAddress {
            disk: parse(disk)?,
            incarnation: parse(incarnation)?,
            unit,
            epoch: parse(epoch)?,
            ledger,
        })
    };
    match parts[..] {
        ["v1", "status"] => Ok(Target::Status),
        ["v1", "format"] => Ok(Target::Format),
        ["v1", "beat"] => Ok(Target::Beat),
        ["v1", "disks", disk, inc, "obey"] => Ok(Target::Obey(parse(disk)?, parse(inc)?)),
        ["v1", "disks", disk, inc, "still"] => Ok(Target::Still(parse(disk)?, parse(inc)?)),
        ["v1", "disks", disk, inc, "units"] => Ok(Target::Units(parse(disk)?, parse(inc)?)),
        ["v1", "disks", disk, inc, "findings"] => Ok(Target::Findings(parse(disk)?, parse(inc)?)),
        ["v1", "disks", disk, inc, "verify"] => Ok(Target::Verify(parse(disk)?, parse(inc)?)),
        ["v1", "disks", disk, inc, "admit"] => Ok(Target::Admit(parse(disk)?, parse(inc)?)),
        ["v1", "disks", disk, inc, "units", v, i, e] => Ok(Target::Unit(address(disk, inc, v, i, e)?)),
        ["v1", "disks", disk, inc, "units", v, i, e, "get"] => {
            Ok(Target::GetMany(address(disk, inc, v, i, e)?))
        }
        ["v1", "disks", disk, inc, "units", v, i, e, "put"] => {
            Ok(Target::PutMany(address(disk, inc, v, i, e)?))
        }
        ["v1", "disks", disk, inc, "units", v, i, e, "delete"] => {
            Ok(Target::Delete(address(disk, inc, v, i, e)?))
        }
        ["v1", "disks", disk, inc, "units", v, i, e, "inventory"] => {
            Ok(Target::Inventory(address(disk, inc, v, i, e)?))
        }
        ["v1", "disks", disk, inc, "units", v, i, e, "shards", blob, stripe] => {
            let key = ShardKey {
                blob: parse(blob)?,
                stripe: parse(stripe)?,
            };
            Ok(Target::Shard(address(disk, inc, v, i, e)?, key))
        }
        _ => Err(NodeError::BadRequest {
            what: "no such path".into(),
        }),
    }
}

/// The generation of the ledger that the caller speaks for.
fn ledger_of(request: &Request<Incoming>) -> Result<Generation, NodeError> {
    let Some(header) = request.headers().get(LEDGER_HEADER) else {
        return Ok(Generation::NONE);
    };
    header.to_str().unwrap_or("").parse()
}

/// A number in the query, if it is there.
fn query<T: FromStr>(request: &Request<Incoming>, name: &str) -> Result<Option<T>, NodeError> {
    let pairs = request
        .uri()
        .query()
        .unwrap_or("")
        .split('&')
        .filter_map(|pair| pair.split_once('='));
    pairs
        .filter(|(key, _)| *key == name)
        .map(|(_, value)| parse(value))
        .next()
        .transpose()
}

async fn body(request: Request<Incoming>, bytes_max: usize) -> Result<Bytes, NodeError> {
    match Limited::new(request.into_body(), bytes_max).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) => Err(NodeError::BadRequest {
            what: format!("body: {error}"),
        }),
    }
}

async fn json_body<T: serde::de::DeserializeOwned>(request: Request<Incoming>) -> Result<T, NodeError> {
    let body = body(request, REQUEST_JSON_BYTES_MAX).await?;
    serde_json::from_slice(&body).map_err(|e| NodeError::BadRequest { what: e.to_string() })
}

async fn handle(
    served: &Served,
    request: Request<Incoming>,
    deadline: Duration,
) -> Result<Response<Pieces>, NodeError> {
    let client = &*served.client;
    let target = parse_path(request.uri().path(), ledger_of(&request)?)?;
    match (request.method(), target) {
        (&Method::GET, Target::Status) => Ok(json(StatusCode::OK, &client.status(deadline).await?)),
        (&Method::POST, Target::Format) => {
            let request: FormatRequest = json_body(request).await?;
            client.format(&request, deadline).await.map(|()| done())
        }
        (&Method::GET, Target::Units(disk, incarnation)) => Ok(json(
            StatusCode::OK,
            &client.units(disk, incarnation, deadline).await?,
        )),
        (&Method::GET, Target::Findings(disk, incarnation)) => {
            let after = query(&request, "after")?.unwrap_or(0);
            let findings = client.findings(disk, incarnation, after, deadline).await?;
            Ok(json(StatusCode::OK, &findings))
        }
        (&Method::POST, Target::Verify(disk, incarnation)) => {
            let order = json_body(request).await?;
            client
                .verify(disk, incarnation, &order, deadline)
                .await
                .map(|()| done())
        }
        (&Method::POST, Target::Admit(disk, incarnation)) => {
            let request = json_body(request).await?;
            client
                .admit(disk, incarnation, &request, deadline)
                .await
                .map(|()| done())
        }
        (&Method::POST, Target::Obey(disk, incarnation)) => {
            let marks = json_body(request).await?;
            client
                .obey(disk, incarnation, &marks, deadline)
                .await
                .map(|()| done())
        }
        (&Method::POST, Target::Still(disk, incarnation)) => {
            let still = json_body(request).await?;
            client
                .still(disk, incarnation, &still, deadline)
                .await
                .map(|()| done())
        }
        (&Method::POST, Target::Beat) => {
            let beat = json_body(request).await?;
            client.beat(&beat, deadline).await.map(|()| done())
        }
        (&Method::GET, Target::Inventory(unit)) => {
            let after = match (query(&request, "after_blob")?, query(&request, "after_stripe")?) {
                (Some(blob), Some(stripe)) => Some(ShardKey { blob, stripe }),
                _ => None,
            };
            let limit = query(&request, "limit")?.unwrap_or(1000);
            Ok(json(
                StatusCode::OK,
                &client.inventory(&unit, after, limit, deadline).await?,
            ))
        }
        (&Method::GET, Target::Shard(unit, key)) => {
            let first = query(&request, "first")?.unwrap_or(BlockRange::ALL.first);
            let count = query(&request, "count")?.unwrap_or(BlockRange::ALL.count);
            let blocks = client
                .get(&unit, key, BlockRange { first, count }, deadline)
                .await?;
            Ok(respond(StatusCode::OK, wire::encode_blocks(&blocks)))
        }
        (&Method::PUT, Target::Shard(unit, key)) => {
            let shard = wire::decode_shard(key, body(request, BODY_BYTES_MAX).await?)?;
            client.put(&unit, shard, deadline).await.map(|()| done())
        }
        (&Method::POST, Target::GetMany(unit)) => {
            let keys = wire::many::decode_keys(body(request, MANY_SHARDS_MAX * 12).await?)?;
            let _at_once = served.many.acquire().await;
            let reads = client.get_many(&unit, &keys, deadline).await?;
            Ok(respond(StatusCode::OK, wire::many::encode_reads(&reads)))
        }
        (&Method::POST, Target::PutMany(unit)) => {
            let _at_once = served.many.acquire().await;
            let shards = wire::many::decode_shards(body(request, MANY_BODY_BYTES_MAX).await?)?;
            let answers = client.put_many(&unit, shards, deadline).await?;
            let errors: Vec<Option<NodeError>> = answers.into_iter().map(Result::err).collect();
            Ok(json(StatusCode::OK, &errors))
        }
        (&Method::POST, Target::Delete(unit)) => {
            let blobs = wire::decode_blobs(&body(request, DELETE_BLOBS_MAX * 8).await?)?;
            client.delete(&unit, &blobs, deadline).await.map(|()| done())
        }
        (&Method::DELETE, Target::Unit(unit)) => client.drop_unit(&unit, deadline).await.map(|()| done()),
        _ => Err(NodeError::BadRequest {
            what: "no such method on this path".into(),
        }),
    }
}
