//! Adding disks: blank ones that nodes have shown become disks of the cluster.
//!
//! Order, as at the first start (`setup`): the disk's row, marked unformatted; the medium, by its node; the row, marked
//! formatted. Only then is the disk used. A crash anywhere is resumed by doing the same again for every row that is not
//! marked: the node answers the same request the same way, and an unformatted disk holds nothing yet.

use super::disks::Disks;
use super::lease::Lease;
use super::nodes::{Contact, Node, Nodes};
use crate::error::Result;
use crate::ledger::model::DiskRow;
use crate::ledger::{CommitBuilder, Ledger, Typed, key};
use bytes::Bytes;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use storage_node::client::StorageClient;
use storage_node::protocol::{BlankDisk, ClusterId, DiskId, FormatRequest, NodeError, NodeId};
use tokio::sync::Mutex;
use tokio::time::Instant;

/// A large disk takes minutes. What takes longer goes on at its node, and is resumed.
const FORMAT_DEADLINE: Duration = Duration::from_secs(600);
/// Disks added by one request.
pub const ADD_MAX: usize = 256;

/// A blank disk, and whose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blank {
    /// Whose.
    pub node: NodeId,
    /// The node's name.
    pub node_name: String,
    /// What the node says of it.
    pub disk: BlankDisk,
}

/// What became of a blank disk.
#[derive(Clone, Debug)]
pub struct Added {
    /// Its node's name.
    pub node: String,
    /// Where it is there.
    pub path: String,
    /// The disk's id.
    pub disk: DiskId,
    /// The disk's name.
    pub label: String,
    /// Its size in bytes.
    pub size: u64,
    /// What went wrong, if it is not a disk now.
    pub error: Option<String>,
}

/// Adds disks.
pub struct Adopting {
    cluster: ClusterId,
    ledger: Ledger,
    lease: Arc<Lease>,
    disks: Arc<Disks>,
    one_at_a_time: Mutex<()>,
}

/// A disk that has a row and is not known to be formatted.
struct Unformatted {
    id: DiskId,
    row: DiskRow,
    version: u64,
}

impl Unformatted {
    fn is_of(&self, blank: &Blank) -> bool {
        self.row.node.as_ref() == blank.node.0.to_be_bytes() && self.row.path == blank.disk.path
    }
}

impl Adopting {
    /// For this gateway's cluster.
    pub fn new(cluster: ClusterId, ledger: Ledger, lease: Arc<Lease>, disks: Arc<Disks>) -> Adopting {
        Adopting {
            cluster,
            ledger,
            lease,
            disks,
            one_at_a_time: Mutex::default(),
        }
    }

    /// The blank disks that nodes have shown.
    pub fn blank(&self) -> Vec<Blank> {
        blank(self.disks.nodes())
    }

    /// Makes these the cluster's. `overwrite`: also where something is.
    pub async fn add(&self, chosen: &[Blank], overwrite: bool) -> Result<Vec<Added>> {
        let _one_at_a_time = self.one_at_a_time.lock().await;
        let (mut waiting, labels) = self.rows().await?;
        let mut labels = labels;
        let mut commit = self.lease.fence(CommitBuilder::new());
        let mut new = Vec::new();
        for blank in chosen {
            if waiting.iter().any(|disk| disk.is_of(blank)) {
                continue; // An earlier attempt got this far.
            }
            let id = DiskId(rand::random());
            let row = DiskRow {
                incarnation: 1,
                label: free_label(&blank.node_name, &labels),
                size: blank.disk.size,
                formatted: false,
                node: Bytes::copy_from_slice(&blank.node.0.to_be_bytes()),
                path: blank.disk.path.clone(),
                ..DiskRow::default()
            };
            labels.insert(row.label.clone());
            let row_key = key::disk(id.0);
            commit = commit.expect(&row_key, None).put(row_key, &row);
            new.push((id, row));
        }
        if !new.is_empty() {
            let version = self.ledger.commit(commit.build()).await?;
            waiting.extend(new.into_iter().map(|(id, row)| Unformatted { id, row, version }));
        }
        waiting.retain(|disk| chosen.iter().any(|blank| disk.is_of(blank)));
        Ok(self.format_all(waiting, overwrite).await)
    }

    /// Goes on with what earlier attempts left, where nodes are there to go on with. How many are left after that.
    pub async fn resume(&self) -> Result<usize> {
        let _one_at_a_time = self.one_at_a_time.lock().await;
        let (mut waiting, _) = self.rows().await?;
        let total = waiting.len();
        let nodes = self.disks.nodes();
        waiting
            .retain(|disk| node_of(nodes, &disk.row).is_some_and(|node| node.contact() == Contact::Online));
        let away = total - waiting.len();
        let resumed = self.format_all(waiting, false).await;
        for added in &resumed {
            match &added.error {
                None => tracing::info!(disk = added.label, "disk added, as was begun before"),
                Some(error) => tracing::info!(disk = added.label, error, "adding the disk goes on later"),
            }
        }
        Ok(away + resumed.iter().filter(|added| added.error.is_some()).count())
    }

    /// Rows of nodes' disks that are not formatted, and the labels of all disks.
    async fn rows(&self) -> Result<(Vec<Unformatted>, HashSet<String>)> {
        let (mut waiting, mut labels) = (Vec::new(), HashSet::new());
        self.ledger
            .for_each(
                key::table(b'd'),
                |row_key, Typed { row, version }: Typed<DiskRow>| {
                    labels.insert(row.label.clone());
                    if let (Some(id), false, false) =
                        (key::disk_id(&row_key), row.formatted, row.node.is_empty())
                    {
                        let id = DiskId(id);
                        waiting.push(Unformatted { id, row, version });
                    }
                },
            )
            .await?;
        Ok((waiting, labels))
    }

    /// All at once; a node formats its own one after another.
    async fn format_all(&self, waiting: Vec<Unformatted>, overwrite: bool) -> Vec<Added> {
        let deadline = Instant::now() + FORMAT_DEADLINE;
        let all = waiting.iter().map(|disk| async move {
            let error = self.format(disk, overwrite, deadline).await.err();
            let node = node_of(self.disks.nodes(), &disk.row);
            Added {
                node: node.map_or_else(String::new, |node| node.name().to_owned()),
                path: disk.row.path.clone(),
                disk: disk.id,
                label: disk.row.label.clone(),
                size: disk.row.size,
                error,
            }
        });
        let added = futures::future::join_all(all).await;
        self.disks.poll().await;
        added
    }

    async fn format(
        &self,
        disk: &Unformatted,
        overwrite: bool,
        deadline: Instant,
    ) -> std::result::Result<(), String> {
        let Some(node) = node_of(self.disks.nodes(), &disk.row) else {
            return Err("its node is gone".into());
        };
        let request = FormatRequest {
            path: disk.row.path.clone(),
            cluster: self.cluster,
            disk: disk.id,
            incarnation: disk.row.incarnation,
            extent_size: None,
            overwrite,
        };
        let left = deadline.saturating_duration_since(Instant::now());
        match node.client.format(&request, left).await {
            Ok(()) => {}
            Err(error @ NodeError::BadRequest { .. }) => {
                // The node will not, and nothing is on it: there is nothing to resume.
                self.forget(disk).await.map_err(|e| e.to_string())?;
                return Err(error.to_string());
            }
            Err(error) => return Err(error.to_string()),
        }
        let row = DiskRow {
            formatted: true,
            ..disk.row.clone()
        };
        let row_key = key::disk(disk.id.0);
        let commit = self
            .lease
            .fence(CommitBuilder::new())
            .expect(&row_key, Some(disk.version))
            .put(row_key, &row);
        self.ledger
            .commit(commit.build())
            .await
            .map_err(|e| e.to_string())?;
        self.disks.put(disk.id, &row);
        tracing::info!(disk = row.label, id = %disk.id, node = node.name(), path = row.path, "disk added");
        Ok(())
    }

    async fn forget(&self, disk: &Unformatted) -> Result<()> {
        let row_key = key::disk(disk.id.0);
        let commit = self
            .lease
            .fence(CommitBuilder::new())
            .expect(&row_key, Some(disk.version))
            .delete(row_key);
        self.ledger.commit(commit.build()).await?;
        Ok(())
    }
}

/// The blank disks that nodes with a row have shown.
pub fn blank(nodes: &Nodes) -> Vec<Blank> {
    let of_node = |node: &Arc<Node>| {
        let info = node.info.clone();
        let blank = move |disk| {
            info.as_ref().map(|info| Blank {
                node: info.id,
                node_name: info.name.clone(),
                disk,
            })
        };
        node.blank().into_iter().filter_map(blank).collect::<Vec<_>>()
    };
    nodes.all().iter().flat_map(of_node).collect()
}

fn node_of(nodes: &Nodes, row: &DiskRow) -> Option<Arc<Node>> {
    let id: [u8; 16] = row.node.as_ref().try_into().ok()?;
    nodes.get(NodeId(u128::from_be_bytes(id)))
}

/// The first label of the node that no disk has: `NODE/0`, `NODE/1`, …
fn free_label(node: &str, taken: &HashSet<String>) -> String {
    let mut number = 0;
    loop {
        let label = format!("{node}/{number}");
        if !taken.contains(&label) {
            return label;
        }
        number += 1;
    }
}
