//! A storage node at the other end of a socket: [`StorageClient`] over pooled HTTP/1.1 connections.
//!
//! Invariants: a call ends within its deadline, which the node is told too; an answer is bounded; a [`NodeError`] comes
//! out as the node made it. Where none came it is `Unreachable`, and where something came that is no answer, `Garbled`.

use crate::client::{DELETE_BLOBS_MAX, StorageClient, check_many};
use crate::protocol::{
    AdmitRequest, Beat, BlockRange, DiskId, Findings, FormatRequest, Generation, InventoryEntry, LedgerMarks,
    NodeError, NodeStatus, SealedShard, ShardBlocks, ShardKey, Still, UnitAddress, UnitInfo, VerifyOrder,
};
use crate::tls::{self, Credentials, Peer};
use crate::wire::{
    self, BODY_BYTES_MAX, DEADLINE_HEADER, JSON_BYTES_MAX, LEDGER_HEADER, MANY_BODY_BYTES_MAX, Pieces,
};
use async_trait::async_trait;
use bytes::Bytes;
use http::{Method, Request, Uri};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::time::Duration;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);
const IDLE_CONNECTIONS_MAX: usize = 64;

/// A client of one node.
pub struct HttpClient {
    base: String,
    client: Client<HttpsConnector<HttpConnector>, Pieces>,
}

/// Connects, with TLS where the URL says https.
pub(crate) fn connector(config: rustls::ClientConfig) -> HttpsConnector<HttpConnector> {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector.enforce_http(false);
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    HttpsConnectorBuilder::new()
        .with_tls_config(config)
        .https_or_http()
        .enable_http1()
        .wrap_connector(connector)
}

impl HttpClient {
    /// A client of the node at `base_url`, such as `http://10.0.0.7:9100`, without TLS. Connects when it is first used.
    pub fn new(base_url: &str) -> Result<Self, NodeError> {
        let bad = |what: String| NodeError::BadRequest {
            what: format!("node address {base_url:?}: {what}"),
        };
        let nobody = tls::client_of_nobody().map_err(|e| bad(e.to_string()))?;
        Self::at(base_url, "http", nobody)
    }

    /// A client of the node that is `node` and said to be at `address`, such as `10.0.0.7:9100`; whoever else answers
    /// there is refused. Connects when it is first used.
    pub fn with_tls(address: &str, node: Peer, credentials: &Credentials) -> Result<Self, NodeError> {
        let config = credentials
            .client(node)
            .map_err(|e| NodeError::BadRequest { what: e.to_string() })?;
        Self::at(&format!("https://{address}"), "https", config)
    }

    /// A client of whichever node of the cluster is at `address`, for who has lost the ledger that knows them.
    pub fn of_any_node(address: &str, credentials: &Credentials) -> Result<Self, NodeError> {
        let config = credentials.client_of_any_node();
        let config = config.map_err(|e| NodeError::BadRequest { what: e.to_string() })?;
        Self::at(&format!("https://{address}"), "https", config)
    }

    fn at(base_url: &str, scheme: &str, config: rustls::ClientConfig) -> Result<Self, NodeError> {
        let base = base_url.trim_end_matches('/').to_string();
        let bad = |what: String| NodeError::BadRequest {
            what: format!("node address {base_url:?}: {what}"),
        };
        let uri: Uri = base.parse().map_err(|e| bad(format!("{e}")))?;
        if uri.scheme_str() != Some(scheme) || uri.authority().is_none() || uri.path() != "/" {
            return Err(bad(format!("not {scheme}://host:port")));
        }
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
            .build(connector(config));
        Ok(HttpClient { base, client })
    }

    /// Sends a request and returns the body of a success.
    async fn call(
        &self,
        method: Method,
        path: String,
        body: Pieces,
        answer_bytes_max: usize,
        deadline: Duration,
    ) -> Result<Bytes, NodeError> {
        let nobody = Generation::NONE;
        self.call_for(nobody, method, path, body, answer_bytes_max, deadline)
            .await
    }

    /// The same, for a generation of the ledger.
    async fn call_for(
        &self,
        ledger: Generation,
        method: Method,
        path: String,
        body: Pieces,
        answer_bytes_max: usize,
        deadline: Duration,
    ) -> Result<Bytes, NodeError> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header(DEADLINE_HEADER, deadline.as_millis().to_string());
        if ledger != Generation::NONE {
            request = request.header(LEDGER_HEADER, ledger.to_string());
        }
        let request = request
            .body(body)
            .map_err(|e| NodeError::BadRequest { what: e.to_string() })?;
        let exchange = async {
            let response = self.client.request(request).await.map_err(|e| unanswered(&e))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), answer_bytes_max)
                .collect()
                .await;
            let body = body.map_err(|e| unanswered(&*e))?.to_bytes();
            if status.is_success() {
                Ok(body)
            } else {
                Err(wire::decode_error(status, &body))
            }
        };
        tokio::time::timeout(deadline, exchange)
            .await
            .unwrap_or(Err(NodeError::Timeout))
    }

    async fn call_json<T: DeserializeOwned>(&self, path: String, deadline: Duration) -> Result<T, NodeError> {
        let body = self
            .call(Method::GET, path, Pieces::new([]), JSON_BYTES_MAX, deadline)
            .await?;
        serde_json::from_slice(&body).map_err(|e| NodeError::Garbled { what: e.to_string() })
    }

    async fn post_json(
        &self,
        path: String,
        content: &impl Serialize,
        deadline: Duration,
    ) -> Result<(), NodeError> {
        let body = serde_json::to_vec(content).map_err(|e| NodeError::BadRequest { what: e.to_string() })?;
        let body = Pieces::new([body.into()]);
        self.call(Method::POST, path, body, BODY_BYTES_MAX, deadline)
            .await
            .map(drop)
    }
}

/// A node that answers for more or fewer than it was asked for does not know of which it speaks.
fn one_for_each<T>(answers: Vec<T>, count: usize) -> Result<Vec<T>, NodeError> {
    match answers.len() == count {
        true => Ok(answers),
        false => Err(NodeError::Garbled {
            what: format!("{} answers for {count} shards", answers.len()),
        }),
    }
}

/// Why no answer came, or none that can be read.
fn unanswered(error: &(dyn std::error::Error + 'static)) -> NodeError {
    let what = tls::refusal(error).unwrap_or_else(|| with_causes(error));
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    let is_garbled = causes.any(|cause| {
        cause.is::<LengthLimitError>() || cause.downcast_ref().is_some_and(hyper::Error::is_parse)
    });
    match is_garbled {
        true => NodeError::Garbled { what },
        false => NodeError::Unreachable { what },
    }
}

/// What went wrong on the way, with its cause: the outermost words alone seldom say it.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut what = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        what = format!("{what}: {error}");
        cause = error.source();
    }
    what
}

#[async_trait]
impl StorageClient for HttpClient {
    async fn put(&self, to: &UnitAddress, shard: SealedShard, deadline: Duration) -> Result<(), NodeError> {
        let path = format!(
            "{}/shards/{}/{}",
            wire::unit_path(to),
            shard.key.blob,
            shard.key.stripe
        );
        self.call_for(
            to.ledger,
            Method::PUT,
            path,
            wire::encode_shard(&shard),
            BODY_BYTES_MAX,
            deadline,
        )
        .await
        .map(drop)
    }

    async fn get(
        &self,
        from: &UnitAddress,
        key: ShardKey,
        blocks: BlockRange,
        deadline: Duration,
    ) -> Result<ShardBlocks, NodeError> {
        let BlockRange { first, count } = blocks;
        let unit = wire::unit_path(from);
        let path = format!(
            "{unit}/shards/{}/{}?first={first}&count={count}",
            key.blob, key.stripe
        );
        let body = self
            .call(Method::GET, path, Pieces::new([]), BODY_BYTES_MAX, deadline)
            .await?;
        // The node's fault, not the caller's.
        wire::decode_blocks(body).map_err(|error| NodeError::Garbled {
            what: error.to_string(),
        })
    }

    async fn get_many(
        &self,
        from: &UnitAddress,
        keys: &[ShardKey],
        deadline: Duration,
    ) -> Result<Vec<Result<ShardBlocks, NodeError>>, NodeError> {
        check_many(keys.len(), 0)?;
        let path = format!("{}/get", wire::unit_path(from));
        let keys_body = wire::many::encode_keys(keys);
        let body = self
            .call(Method::POST, path, keys_body, MANY_BODY_BYTES_MAX, deadline)
            .await?;
        let reads = wire::many::decode_reads(body).map_err(|error| NodeError::Corrupt {
            what: error.to_string(),
        })?;
        one_for_each(reads, keys.len())
    }

    async fn put_many(
        &self,
        to: &UnitAddress,
        shards: Vec<SealedShard>,
        deadline: Duration,
    ) -> Result<Vec<Result<(), NodeError>>, NodeError> {
        check_many(shards.len(), shards.iter().map(|shard| shard.payload.len()).sum())?;
        let path = format!("{}/put", wire::unit_path(to));
        let body = wire::many::encode_shards(&shards);
        let body = self
            .call_for(to.ledger, Method::POST, path, body, JSON_BYTES_MAX, deadline)
            .await?;
        let answers: Vec<Option<NodeError>> =
            serde_json::from_slice(&body).map_err(|e| NodeError::Garbled { what: e.to_string() })?;
        let answers = answers.into_iter().map(|error| error.map_or(Ok(()), Err));
        one_for_each(answers.collect(), shards.len())
    }

    async fn delete(&self, from: &UnitAddress, blobs: &[u64], deadline: Duration) -> Result<(), NodeError> {
        if blobs.len() > DELETE_BLOBS_MAX {
            return Err(NodeError::BadRequest {
                what: format!("at most {DELETE_BLOBS_MAX} blobs in one delete"),
            });
        }
        let path = format!("{}/delete", wire::unit_path(from));
        self.call_for(
            from.ledger,
            Method::POST,
            path,
            wire::encode_blobs(blobs),
            BODY_BYTES_MAX,
            deadline,
        )
        .await
        .map(drop)
    }

    async fn inventory(
        &self,
        from: &UnitAddress,
        after: Option<ShardKey>,
        limit: usize,
        deadline: Duration,
    ) -> Result<Vec<InventoryEntry>, NodeError> {
        let mut path = format!("{}/inventory?limit={limit}", wire::unit_path(from));
        if let Some(ShardKey { blob, stripe }) = after {
            path = format!("{path}&after_blob={blob}&after_stripe={stripe}");
        }
        let page: Vec<InventoryEntry> = self.call_json(path, deadline).await?;
        // Who asks for the next page goes on from the last entry.
        let follows = |key: ShardKey, entry: &InventoryEntry| entry.key > key;
        let ascends = page.windows(2).all(|pair| follows(pair[0].key, &pair[1]));
        let begins = page
            .first()
            .is_none_or(|first| after.is_none_or(|after| follows(after, first)));
        match ascends && begins && page.len() <= limit {
            true => Ok(page),
            false => Err(NodeError::Garbled {
                what: "an inventory out of order".into(),
            }),
        }
    }

    async fn units(
        &self,
        disk: DiskId,
        incarnation: u64,
        deadline: Duration,
    ) -> Result<Vec<UnitInfo>, NodeError> {
        self.call_json(wire::units_path(disk, incarnation), deadline)
            .await
    }

    async fn findings(
        &self,
        disk: DiskId,
        incarnation: u64,
        after: u64,
        deadline: Duration,
    ) -> Result<Findings, NodeError> {
        let path = wire::findings_path(disk, incarnation, after);
        self.call_json(path, deadline).await
    }

    async fn drop_unit(&self, unit: &UnitAddress, deadline: Duration) -> Result<(), NodeError> {
        let path = wire::unit_path(unit);
        let nothing = Pieces::new([]);
        self.call_for(
            unit.ledger,
            Method::DELETE,
            path,
            nothing,
            BODY_BYTES_MAX,
            deadline,
        )
        .await
        .map(drop)
    }

    async fn verify(
        &self,
        disk: DiskId,
        incarnation: u64,
        order: &VerifyOrder,
        deadline: Duration,
    ) -> Result<(), NodeError> {
        let path = wire::verify_path(disk, incarnation);
        self.post_json(path, order, deadline).await
    }

    async fn admit(
        &self,
        disk: DiskId,
        incarnation: u64,
        request: &AdmitRequest,
        deadline: Duration,
    ) -> Result<(), NodeError> {
        let path = wire::admit_path(disk, incarnation);
        self.post_json(path, request, deadline).await
    }

    async fn obey(
        &self,
        disk: DiskId,
        incarnation: u64,
        marks: &LedgerMarks,
        deadline: Duration,
    ) -> Result<(), NodeError> {
        let path = wire::obey_path(disk, incarnation);
        self.post_json(path, marks, deadline).await
    }

    async fn still(
        &self,
        disk: DiskId,
        incarnation: u64,
        still: &Still,
        deadline: Duration,
    ) -> Result<(), NodeError> {
        let path = wire::still_path(disk, incarnation);
        self.post_json(path, still, deadline).await
    }

    async fn beat(&self, beat: &Beat, deadline: Duration) -> Result<(), NodeError> {
        self.post_json(wire::BEAT_PATH.into(), beat, deadline).await
    }

    async fn format(&self, request: &FormatRequest, deadline: Duration) -> Result<(), NodeError> {
        self.post_json(wire::FORMAT_PATH.into(), request, deadline).await
    }

    async fn status(&self, deadline: Duration) -> Result<NodeStatus, NodeError> {
        self.call_json("/v1/status".into(), deadline).await
    }
}
