//! The disks of the cluster, how to reach each, and whether it can be used right now.
//!
//! Health comes from two sides: a poll of every node, and what requests run into. A request that meets a fenced,
//! missing or hanging disk marks it suspect at once, so that the next one does not; only a later poll clears it.
//! Invariant: health steers choices and never decides what data exists. The ledger does that.

use crate::ledger::model::DiskRow;
use crate::ledger::{Ledger, Typed, key};
use std::collections::HashMap;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};
use storage_node::client::StorageClient;
use storage_node::protocol::{DiskId, DiskState, DiskStatus, NodeError};
use tracing::{info, warn};

/// How often nodes are asked.
pub const POLL_PERIOD: Duration = Duration::from_millis(500);
const POLL_DEADLINE: Duration = Duration::from_secs(2);
/// A disk that timed out is left alone this long, even if its node says it is fine.
const TIMEOUT_REST: Duration = Duration::from_secs(5);
/// Room kept free on every disk: a put is not sent to a disk with less.
const FREE_BYTES_MIN: u64 = 8 << 20;

/// Whether a disk can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It serves.
    Online,
    /// A request failed on it a moment ago; no new writes until a poll clears it.
    Suspect(String),
    /// It is fenced, missing, or its node does not answer.
    Down(String),
}

/// A disk as the gateway knows it.
#[derive(Clone)]
pub struct Disk {
    /// Its id.
    pub id: DiskId,
    /// The incarnation the ledger holds valid.
    pub incarnation: u64,
    /// Its name for people.
    pub label: String,
    /// The node that has it, if any node says so.
    pub client: Option<Arc<dyn StorageClient>>,
    /// Whether it can be used.
    pub health: Health,
    /// What its node last said.
    pub status: Option<DiskStatus>,
    rest_until: Option<Instant>,
}

impl Disk {
    /// Whether new shards may go there.
    pub fn writable(&self) -> bool {
        self.health == Health::Online && !self.full()
    }

    /// Whether it serves but has no room.
    pub fn full(&self) -> bool {
        self.status
            .as_ref()
            .is_some_and(|s| s.free_bytes < FREE_BYTES_MIN)
    }
}

/// The disks at one moment. Requests share it; it is replaced, never changed.
#[derive(Default)]
struct Snapshot {
    by_id: HashMap<DiskId, Arc<Disk>>,
    by_label: Arc<[Arc<Disk>]>,
}

impl Snapshot {
    fn new(disks: impl Iterator<Item = Disk>) -> Snapshot {
        let mut sorted: Vec<Arc<Disk>> = disks.map(Arc::new).collect();
        sorted.sort_by(|a, b| (a.label.len(), &a.label).cmp(&(b.label.len(), &b.label)));
        let by_id = sorted.iter().map(|d| (d.id, d.clone())).collect();
        Snapshot {
            by_id,
            by_label: sorted.into(),
        }
    }
}

/// All disks.
pub struct Disks {
    nodes: Vec<Arc<dyn StorageClient>>,
    now: RwLock<Snapshot>,
}

impl Disks {
    /// Reads the disks from the ledger; nothing is known of their health until [`Disks::poll`].
    pub async fn load(ledger: &Ledger, nodes: Vec<Arc<dyn StorageClient>>) -> crate::error::Result<Disks> {
        let mut disks = Vec::new();
        ledger
            .for_each(key::table(b'd'), |row_key, Typed { row, .. }: Typed<DiskRow>| {
                let Some(id) = key::disk_id(&row_key) else { return };
                disks.push(Disk {
                    id: DiskId(id),
                    incarnation: row.incarnation,
                    label: row.label,
                    client: None,
                    health: Health::Down("not seen yet".into()),
                    status: None,
                    rest_until: None,
                });
            })
            .await?;
        Ok(Disks {
            nodes,
            now: RwLock::new(Snapshot::new(disks.into_iter())),
        })
    }

    /// Asks every node, all at once, and takes in what they say.
    pub async fn poll(&self) {
        let ask = |node: &Arc<dyn StorageClient>| {
            let node = node.clone();
            async move { (node.clone(), node.status(POLL_DEADLINE).await) }
        };
        let answers = futures::future::join_all(self.nodes.iter().map(ask)).await;
        let mut seen: HashMap<DiskId, (Arc<dyn StorageClient>, DiskStatus)> = HashMap::new();
        let mut unreachable = None;
        for (node, answer) in answers {
            match answer {
                Ok(status) => seen.extend(status.disks.into_iter().map(|d| (d.disk, (node.clone(), d)))),
                Err(error) => unreachable = Some(error.to_string()),
            }
        }
        let now = Instant::now();
        self.update(|disk| {
            let health = match seen.remove(&disk.id) {
                None => Health::Down(unreachable.clone().unwrap_or_else(|| "no node has it".into())),
                Some((client, status)) => {
                    let health = health_of(disk, &status, now);
                    disk.client = Some(client);
                    disk.status = Some(status);
                    health
                }
            };
            set_health(disk, health);
        });
    }

    /// Takes in that a request failed on a disk.
    pub fn report(&self, id: DiskId, error: &NodeError) {
        let rest = match error {
            NodeError::Fenced { .. } | NodeError::WrongDisk | NodeError::NoSpace => None,
            NodeError::Timeout | NodeError::Unreachable { .. } => Some(Instant::now() + TIMEOUT_REST),
            _ => return,
        };
        self.update(|disk| {
            if disk.id == id {
                disk.rest_until = rest.or(disk.rest_until);
                if let (NodeError::NoSpace, Some(status)) = (error, &mut disk.status) {
                    status.free_bytes = 0; // Until the next poll: it knows better than what it last said.
                }
                if disk.health == Health::Online {
                    set_health(disk, Health::Suspect(error.to_string()));
                }
            }
        });
    }

    /// One disk.
    pub fn get(&self, id: DiskId) -> Option<Arc<Disk>> {
        self.now
            .read()
            .unwrap_or_else(|e| e.into_inner())
            .by_id
            .get(&id)
            .cloned()
    }

    /// All of them, by label.
    pub fn all(&self) -> Arc<[Arc<Disk>]> {
        self.now
            .read()
            .unwrap_or_else(|e| e.into_inner())
            .by_label
            .clone()
    }

    /// Replaces the snapshot by one in which every disk went through `change`.
    fn update(&self, mut change: impl FnMut(&mut Disk)) {
        let mut now = self.now.write().unwrap_or_else(|e| e.into_inner());
        let changed = now.by_label.iter().map(|disk| {
            let mut disk = Disk::clone(disk);
            change(&mut disk);
            disk
        });
        let next = Snapshot::new(changed.collect::<Vec<_>>().into_iter());
        *now = next;
    }
}

fn set_health(disk: &mut Disk, health: Health) {
    if disk.health != health {
        log_change(disk, &health);
        disk.health = health;
    }
}

fn health_of(disk: &Disk, status: &DiskStatus, now: Instant) -> Health {
    if status.incarnation != disk.incarnation {
        return Health::Down(format!("incarnation {} is not the valid one", status.incarnation));
    }
    match &status.state {
        DiskState::Fenced { reason } => Health::Down(reason.clone()),
        DiskState::Online => match (&disk.health, disk.rest_until) {
            (Health::Suspect(why), Some(until)) if now < until => Health::Suspect(why.clone()),
            _ => Health::Online,
        },
    }
}

fn log_change(disk: &Disk, health: &Health) {
    match health {
        Health::Online => info!(disk = %disk.label, "disk online"),
        Health::Suspect(why) => warn!(disk = %disk.label, why, "disk suspect: no new writes to it"),
        Health::Down(why) => warn!(disk = %disk.label, why, "disk down"),
    }
}
