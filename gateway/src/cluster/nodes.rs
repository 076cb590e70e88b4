//! The nodes of the cluster and how each is reached. Nodes come and go while the gateway runs.
//!
//! A node that joined is a row of the ledger; `cairn dev` and its `--node` have nodes that no row names, whose disks are
//! failure domains of their own.
//! Invariant: the list is replaced, never changed; a request goes on with the node that it found.

use super::answering::Answering;
use crate::ledger::model::NodeRow;
use crate::ledger::{Ledger, Typed, key};
use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use storage_node::client::StorageClient;
use storage_node::protocol::{BlankDisk, DiskStatus, NodeError, NodeId, NodeStatus};
use tokio::sync::Mutex;
use tracing::{info, warn};

/// Whose disk it is, for labels and placement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeInfo {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// Its rack; empty if nobody said.
    pub rack: String,
    /// Its zone; empty if nobody said.
    pub zone: String,
}

/// What is known of a node's answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Contact {
    /// It was not asked yet.
    #[default]
    Never,
    /// It answered.
    Online,
    /// It did not, and why.
    Lost(String),
}

/// A node.
pub struct Node {
    /// Tells nodes apart in this process: the id, or a random one for a node without row.
    pub key: NodeId,
    /// Who it is; none for a node without row.
    pub info: Option<Arc<NodeInfo>>,
    /// Where it is; empty for a node without row.
    pub address: String,
    /// Reaches it, while it answers.
    pub client: Arc<Answering>,
    seen: RwLock<Seen>,
    /// Held while it is being asked: it is not asked twice at once.
    pub asking: Mutex<()>,
}

#[derive(Clone, Default)]
struct Seen {
    contact: Contact,
    disks: Vec<DiskStatus>,
    blank: Vec<BlankDisk>,
}

impl Node {
    fn new(info: Option<NodeInfo>, address: &str, client: Arc<dyn StorageClient>) -> Node {
        Node {
            key: info
                .as_ref()
                .map_or_else(|| NodeId(rand::random()), |info| info.id),
            info: info.map(Arc::new),
            address: address.into(),
            client: Arc::new(Answering::new(client)),
            seen: RwLock::default(),
            asking: Mutex::default(),
        }
    }

    /// Its name for people.
    pub fn name(&self) -> &str {
        self.info.as_ref().map_or("local", |info| &info.name)
    }

    /// How it last answered.
    pub fn contact(&self) -> Contact {
        self.seen
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .contact
            .clone()
    }

    /// The disks it last spoke of, whoever's they are.
    pub fn shown(&self) -> Vec<DiskStatus> {
        self.seen
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .disks
            .clone()
    }

    /// The blank disks it last spoke of.
    pub fn blank(&self) -> Vec<BlankDisk> {
        self.seen
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .blank
            .clone()
    }

    /// Takes in an answer; says why its disks cannot be reached, if they cannot. Requests in progress end then.
    pub fn take_in(&self, answer: &Result<NodeStatus, NodeError>) -> Option<String> {
        let lost = answer.as_ref().err().map(|error| self.why_lost(error));
        if lost.is_some() {
            self.client.lost();
        }
        let mut seen = self.seen.write().unwrap_or_else(PoisonError::into_inner);
        let contact = match &lost {
            None => Contact::Online,
            Some(why) => Contact::Lost(why.clone()),
        };
        if self.info.is_some() {
            match (&seen.contact, &contact) {
                (Contact::Online, Contact::Online) | (Contact::Lost(_), Contact::Lost(_)) => {}
                (_, Contact::Lost(why)) => warn!(node = self.name(), why, "node lost"),
                _ => info!(node = self.name(), address = self.address, "node online"),
            }
        }
        seen.contact = contact;
        match answer {
            Ok(status) => {
                seen.disks.clone_from(&status.disks);
                seen.blank.clone_from(&status.blank);
            }
            Err(_) => {
                seen.disks.clear();
                seen.blank.clear();
            }
        }
        lost
    }

    fn why_lost(&self, error: &NodeError) -> String {
        match (&self.info, error) {
            (None, error) => error.to_string(),
            (Some(info), NodeError::Unreachable { what }) => {
                format!("node {} at {} is unreachable: {what}", info.name, self.address)
            }
            (Some(info), NodeError::Timeout) => {
                format!("node {} at {} does not answer", info.name, self.address)
            }
            (Some(info), error) => format!("node {} at {}: {error}", info.name, self.address),
        }
    }
}

/// Makes a client of a node from its row.
pub type Connect = Box<dyn Fn(NodeId, &NodeRow) -> Result<Arc<dyn StorageClient>, NodeError> + Send + Sync>;

/// All nodes.
#[derive(Default)]
pub struct Nodes {
    connect: Option<Connect>,
    all: RwLock<Arc<[Arc<Node>]>>,
}

impl From<Vec<Arc<dyn StorageClient>>> for Nodes {
    /// Nodes that no row names.
    fn from(clients: Vec<Arc<dyn StorageClient>>) -> Nodes {
        let all = clients
            .into_iter()
            .map(|client| Arc::new(Node::new(None, "", client)));
        Nodes {
            connect: None,
            all: RwLock::new(all.collect()),
        }
    }
}

impl Nodes {
    /// The nodes that the ledger names.
    pub async fn load(ledger: &Ledger, connect: Connect) -> crate::error::Result<Nodes> {
        let nodes = Nodes {
            connect: Some(connect),
            all: RwLock::default(),
        };
        for (id, row) in rows(ledger).await? {
            nodes.put(id, &row.row);
        }
        Ok(nodes)
    }

    /// All of them, by name.
    pub fn all(&self) -> Arc<[Arc<Node>]> {
        self.all.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// One that a row names, by its id.
    pub fn get(&self, id: NodeId) -> Option<Arc<Node>> {
        self.all().iter().find(|node| node.key == id).cloned()
    }

    /// One that a row names, by its name.
    pub fn named(&self, name: &str) -> Option<Arc<Node>> {
        let is_it = |node: &&Arc<Node>| node.info.as_ref().is_some_and(|info| info.name == name);
        self.all().iter().find(is_it).cloned()
    }

    /// Takes in a row that is new or has changed.
    pub fn put(&self, id: NodeId, row: &NodeRow) {
        let Some(connect) = &self.connect else { return };
        let client = match connect(id, row) {
            Ok(client) => client,
            Err(error) => {
                warn!(node = row.name, %error, "node cannot be reached");
                return;
            }
        };
        let info = NodeInfo {
            id,
            name: row.name.clone(),
            rack: row.rack.clone(),
            zone: row.zone.clone(),
        };
        let node = Arc::new(Node::new(Some(info), &row.address, client));
        self.replace(id, Some(node));
    }

    /// Forgets a node whose row is gone.
    pub fn remove(&self, id: NodeId) {
        self.replace(id, None);
    }

    fn replace(&self, id: NodeId, node: Option<Arc<Node>>) {
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        let others = all.iter().filter(|node| node.key != id).cloned();
        let mut next: Vec<Arc<Node>> = others.chain(node).collect();
        next.sort_by(|a, b| (a.name().len(), a.name()).cmp(&(b.name().len(), b.name())));
        *all = next.into();
    }
}

/// The nodes' rows.
pub async fn rows(ledger: &Ledger) -> crate::error::Result<HashMap<NodeId, Typed<NodeRow>>> {
    let mut rows = HashMap::new();
    ledger
        .for_each(key::table(b'n'), |row_key, row: Typed<NodeRow>| {
            if let Some(id) = key::node_id(&row_key) {
                rows.insert(NodeId(id), row);
            }
        })
        .await?;
    Ok(rows)
}
