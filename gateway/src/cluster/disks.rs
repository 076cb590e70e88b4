//! The disks of the cluster, how to reach each, and whether it can be used right now.
//!
//! Health comes from two sides: a poll of every node, and what requests run into. A request that meets a fenced,
//! missing or hanging disk marks it suspect at once, so that the next one does not; only a later poll clears it.
//! Invariant: health steers choices and never decides what data exists. The ledger does that.

use crate::ledger::model::DiskRow;
use crate::ledger::{Ledger, Typed, key};
use std::collections::{BTreeMap, HashMap};
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

/// All disks.
pub struct Disks {
    nodes: Vec<Arc<dyn StorageClient>>,
    disks: RwLock<HashMap<DiskId, Disk>>,
}

impl Disks {
    /// Reads the disks from the ledger; nothing is known of their health until [`Disks::poll`].
    pub async fn load(ledger: &Ledger, nodes: Vec<Arc<dyn StorageClient>>) -> crate::error::Result<Disks> {
        let mut disks = HashMap::new();
        ledger
            .for_each(key::table(b'd'), |row_key, Typed { row, .. }: Typed<DiskRow>| {
                let Some(id) = row_key
                    .get(1..17)
                    .and_then(|b| b.try_into().ok())
                    .map(u128::from_be_bytes)
                else {
                    return;
                };
                let disk = Disk {
                    id: DiskId(id),
                    incarnation: row.incarnation,
                    label: row.label,
                    client: None,
                    health: Health::Down("not seen yet".into()),
                    status: None,
                    rest_until: None,
                };
                disks.insert(DiskId(id), disk);
            })
            .await?;
        Ok(Disks {
            nodes,
            disks: RwLock::new(disks),
        })
    }

    /// Asks every node, all at once, and takes in what they say.
    pub async fn poll(&self) {
        let answers = futures::future::join_all(
            self.nodes
                .iter()
                .map(|node| async move { (node.clone(), node.status(POLL_DEADLINE).await) }),
        )
        .await;
        let mut seen: HashMap<DiskId, (Arc<dyn StorageClient>, DiskStatus)> = HashMap::new();
        let mut unreachable = None;
        for (node, answer) in answers {
            match answer {
                Ok(status) => seen.extend(status.disks.into_iter().map(|d| (d.disk, (node.clone(), d)))),
                Err(error) => unreachable = Some(error.to_string()),
            }
        }
        let now = Instant::now();
        let mut disks = self.disks.write().unwrap_or_else(|e| e.into_inner());
        for disk in disks.values_mut() {
            let health = match seen.remove(&disk.id) {
                None => Health::Down(unreachable.clone().unwrap_or_else(|| "no node has it".into())),
                Some((client, status)) => {
                    let health = health_of(disk, &status, now);
                    disk.client = Some(client);
                    disk.status = Some(status);
                    health
                }
            };
            if disk.health != health {
                log_change(disk, &health);
                disk.health = health;
            }
        }
    }

    /// Takes in that a request failed on a disk.
    pub fn report(&self, id: DiskId, error: &NodeError) {
        let rest = match error {
            NodeError::Fenced { .. } | NodeError::WrongDisk | NodeError::NoSpace => None,
            NodeError::Timeout | NodeError::Unreachable { .. } => Some(Instant::now() + TIMEOUT_REST),
            _ => return,
        };
        let mut disks = self.disks.write().unwrap_or_else(|e| e.into_inner());
        if let Some(disk) = disks.get_mut(&id) {
            disk.rest_until = rest.or(disk.rest_until);
            if disk.health == Health::Online {
                let health = Health::Suspect(error.to_string());
                log_change(disk, &health);
                disk.health = health;
            }
        }
    }

    /// One disk.
    pub fn get(&self, id: DiskId) -> Option<Disk> {
        self.disks
            .read()
            .unwrap_or_else(|e| e.into_inner())
            .get(&id)
            .cloned()
    }

    /// All of them, by label.
    pub fn all(&self) -> Vec<Disk> {
        let disks = self.disks.read().unwrap_or_else(|e| e.into_inner());
        let by_label: BTreeMap<(usize, String), Disk> = disks
            .values()
            .map(|d| ((d.label.len(), d.label.clone()), d.clone()))
            .collect();
        by_label.into_values().collect()
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
