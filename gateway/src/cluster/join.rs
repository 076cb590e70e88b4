//! Who may join: tokens, the nodes that come with one, and what they announce later.
//!
//! Invariants: a token lets one node in, once; the commit that uses it up is the commit that names the node. A node whose
//! answer was lost asks again with the same token and key, and gets the same id. A name belongs to one key.
//! The clock decides how long a token is good, and nothing about data.

use super::authority::{Authority, AuthorityError, CertificateRequest};
use super::nodes::{self, Nodes};
use crate::clock::Clock;
use crate::cluster::lease::Lease;
use crate::error::Error;
use crate::ledger::model::{NodeRow, TokenRow};
use crate::ledger::{CommitBuilder, Ledger, Typed, key};
use bytes::Bytes;
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::time::Duration;
use storage_node::join::{Announcement, JoinAnswer, JoinRequest, Token, check_label, unhex};
use storage_node::protocol::{ClusterId, NodeId};
use storage_node::tls::{Credentials, Peer, Role};
use tokio::sync::Mutex;

/// The longest that a token may be good.
pub const TTL_MAX: Duration = Duration::from_secs(30 * 86_400);
/// Tokens are remembered this long after they expired, to say so to whoever still has one.
const REMEMBERED_MS: u64 = 7 * 86_400_000;
/// Tokens that are there at once.
const TOKENS_MAX: usize = 1_000;
/// Nodes of a cluster.
const NODES_MAX: usize = 10_000;

/// Why a node, or an operator, was told no.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The request makes no sense.
    #[error("{0}")]
    Bad(String),
    /// It may not.
    #[error("{0}")]
    Forbidden(String),
    /// It could, if something else were not in the way.
    #[error("{0}")]
    InTheWay(String),
    /// It could not be done now.
    #[error("{0}")]
    Failed(#[from] Error),
}

impl From<crate::ledger::store::LedgerError> for JoinError {
    fn from(error: crate::ledger::store::LedgerError) -> JoinError {
        JoinError::Failed(error.into())
    }
}

impl From<AuthorityError> for JoinError {
    fn from(error: AuthorityError) -> JoinError {
        match error {
            AuthorityError::BadRequest(_) => JoinError::Bad(error.to_string()),
            AuthorityError::Failed(what) => JoinError::Failed(Error::Internal(what)),
        }
    }
}

/// What a gateway needs to let nodes join.
pub struct Invitation {
    /// Which cluster.
    pub cluster: ClusterId,
    /// Signs for it.
    pub authority: Authority,
    /// This gateway's certificate.
    pub credentials: Arc<Credentials>,
    /// Where nodes reach its join address, `host:port`: tokens say so.
    pub address: String,
}

/// Lets nodes in.
pub struct Joining {
    invitation: Invitation,
    ledger: Ledger,
    lease: Arc<Lease>,
    nodes: Arc<Nodes>,
    clock: Arc<dyn Clock>,
    one_at_a_time: Mutex<()>,
}

impl Joining {
    /// For the nodes of this gateway.
    pub fn new(
        invitation: Invitation,
        ledger: Ledger,
        lease: Arc<Lease>,
        nodes: Arc<Nodes>,
        clock: Arc<dyn Clock>,
    ) -> Joining {
        Joining {
            invitation,
            ledger,
            lease,
            nodes,
            clock,
            one_at_a_time: Mutex::default(),
        }
    }

    /// This gateway's certificate.
    pub fn credentials(&self) -> &Credentials {
        &self.invitation.credentials
    }

    /// A new token, and when it expires (milliseconds since 1970). Only its hash is kept.
    pub async fn make_token(&self, ttl: Duration) -> Result<(Token, u64), JoinError> {
        if ttl.is_zero() || ttl > TTL_MAX {
            return Err(JoinError::Bad(format!(
                "a token is good for a second at least and {} days at most",
                TTL_MAX.as_secs() / 86_400
            )));
        }
        let _one_at_a_time = self.one_at_a_time.lock().await;
        let now_ms = self.clock.now_ms();
        let tokens = self
            .ledger
            .scan::<TokenRow>(key::table(b't'), TOKENS_MAX + 1)
            .await?;
        let is_forgotten = |row: &TokenRow| row.expires_ms.saturating_add(REMEMBERED_MS) < now_ms;
        let mut commit = self.lease.fence(CommitBuilder::new());
        let mut kept = 0;
        for (row_key, token) in tokens {
            match is_forgotten(&token.row) {
                true => commit = commit.delete(row_key),
                false => kept += 1,
            }
        }
        if kept >= TOKENS_MAX {
            return Err(JoinError::InTheWay(format!(
                "there are {kept} tokens already; wait until some expire"
            )));
        }
        let token = Token {
            address: self.invitation.address.clone(),
            authority: self.invitation.credentials.authority_fingerprint(),
            secret: rand::random(),
        };
        let row = TokenRow {
            expires_ms: now_ms.saturating_add(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)),
            ..TokenRow::default()
        };
        let commit = commit.put(key::token(&hash(&token.secret)), &row);
        self.ledger.commit(commit.build()).await?;
        Ok((token, row.expires_ms))
    }

    /// A node that comes with a token.
    pub async fn join(&self, request: &JoinRequest) -> Result<(NodeId, JoinAnswer), JoinError> {
        check_label(&request.name).map_err(JoinError::Bad)?;
        request.place.check().map_err(JoinError::Bad)?;
        let _one_at_a_time = self.one_at_a_time.lock().await;
        let token_key = match unhex::<16>(&request.secret) {
            Some(secret) => key::token(&hash(&secret)),
            None => return Err(JoinError::Bad("the token's secret is 32 hex digits".into())),
        };
        let Some(token) = self.ledger.get::<TokenRow>(token_key.clone()).await? else {
            return Err(no_token("the token is unknown here".into()));
        };
        let certificate_request = CertificateRequest::parse(&request.request)?;
        let public_key = certificate_request.key_hash();
        self.judge(&token.row, &public_key)?;
        let nodes = nodes::rows(&self.ledger).await?;
        let before = nodes
            .iter()
            .find(|(_, node)| node.row.public_key.as_ref() == public_key);
        let namesake = nodes.iter().find(|(_, node)| node.row.name == request.name);
        let (id, version) = match (before, namesake) {
            (Some((id, node)), _) if node.row.name == request.name => (*id, Some(node.version)),
            (Some((_, node)), _) => {
                return Err(JoinError::InTheWay(format!(
                    "this key is that of node {}; a node keeps its name",
                    node.row.name
                )));
            }
            (None, Some((id, _))) => {
                return Err(JoinError::InTheWay(format!(
                    "there is a node {} already, with another key (it is node {id}): take another name, or start that node's data directory",
                    request.name
                )));
            }
            (None, None) if nodes.len() >= NODES_MAX => {
                return Err(JoinError::InTheWay(format!(
                    "the cluster has {NODES_MAX} nodes, and takes no more"
                )));
            }
            (None, None) => (NodeId(rand::random()), None),
        };
        let certificate =
            self.invitation
                .authority
                .certify_node(id, &certificate_request, self.clock.now_ms())?;
        let row = NodeRow {
            name: request.name.clone(),
            address: request.place.address.clone(),
            rack: request.place.rack.clone(),
            zone: request.place.zone.clone(),
            public_key: Bytes::copy_from_slice(&public_key),
        };
        let used = TokenRow {
            used_by: request.name.clone(),
            used_key: Bytes::copy_from_slice(&public_key),
            ..token.row
        };
        let node_key = key::node(id.0);
        let commit = self
            .lease
            .fence(CommitBuilder::new())
            .expect(&token_key, Some(token.version))
            .expect(&node_key, version)
            .put(token_key, &used)
            .put(node_key, &row);
        self.ledger.commit(commit.build()).await?;
        self.nodes.put(id, &row);
        tracing::info!(node = row.name, %id, address = row.address, "node joined");
        let answer = JoinAnswer {
            node: id,
            cluster: self.invitation.cluster,
            certificate,
            authority: self.invitation.authority.certificate.clone(),
        };
        Ok((id, answer))
    }

    /// Whether this key may use the token.
    fn judge(&self, token: &TokenRow, public_key: &[u8; 32]) -> Result<(), JoinError> {
        if !token.used_by.is_empty() && token.used_key.as_ref() != public_key {
            return Err(no_token(format!("the token was used, by node {}", token.used_by)));
        }
        match self.clock.now_ms().checked_sub(token.expires_ms) {
            None => Ok(()),
            Some(late_ms) => Err(no_token(format!("the token expired {} s ago", late_ms / 1_000))),
        }
    }

    /// A node that has joined says where it is.
    pub async fn announce(&self, peer: Option<Peer>, place: &Announcement) -> Result<NodeId, JoinError> {
        let Some(Peer {
            role: Role::Node(id), ..
        }) = peer
        else {
            return Err(JoinError::Forbidden(
                "only a node announces itself, under its certificate".into(),
            ));
        };
        place.check().map_err(JoinError::Bad)?;
        let _one_at_a_time = self.one_at_a_time.lock().await;
        let node_key = key::node(id.0);
        let Some(Typed { mut row, version }) = self.ledger.get::<NodeRow>(node_key.clone()).await? else {
            return Err(JoinError::Forbidden(format!(
                "this cluster has no node {id} any more"
            )));
        };
        let before = (&row.address, &row.rack, &row.zone);
        if before == (&place.address, &place.rack, &place.zone) {
            return Ok(id);
        }
        row.address = place.address.clone();
        row.rack = place.rack.clone();
        row.zone = place.zone.clone();
        let commit = self
            .lease
            .fence(CommitBuilder::new())
            .expect(&node_key, Some(version))
            .put(node_key, &row);
        self.ledger.commit(commit.build()).await?;
        self.nodes.put(id, &row);
        tracing::info!(
            node = row.name,
            address = row.address,
            "node moved or changed its labels"
        );
        Ok(id)
    }
}

fn no_token(why: String) -> JoinError {
    JoinError::Forbidden(format!("{why}; `cairn node token` makes another"))
}

fn hash(secret: &[u8; 16]) -> [u8; 32] {
    Sha256::digest(secret).into()
}

#[cfg(test)]
mod tests;
