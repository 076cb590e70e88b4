//! The disks of the cluster, how to reach each, and whether it can be used right now.
//!
//! Health comes from two sides: a poll of every node, and what requests run into. A request that meets a fenced,
//! missing or hanging disk marks it suspect at once, so that the next one does not; only a later poll clears it.
//! Invariant: health steers choices and never decides what data exists. The ledger does that.

use crate::ledger::model::{DiskRow, Membership};
use crate::ledger::{Ledger, Typed, key};
use std::collections::HashMap;
use std::sync::{Arc, RwLock};
use std::time::Duration;
use storage_node::client::StorageClient;
use storage_node::protocol::{DiskId, DiskState, DiskStatus, NodeError};
use tokio::time::Instant;
use tracing::{info, warn};

/// How often nodes are asked.
pub const POLL_PERIOD: Duration = Duration::from_millis(500);
const POLL_DEADLINE: Duration = Duration::from_secs(2);
/// A disk that timed out is left alone this long the first time, even if its node says it is fine.
const REST_MIN: Duration = Duration::from_secs(5);
/// And this long at most.
const REST_MAX: Duration = Duration::from_secs(300);
/// After this long without another time-out the next rest is a first one again.
const REST_FORGOTTEN: Duration = Duration::from_secs(60);
/// A disk that lost a race against a decode is not waited for this long.
const SLOW_FOR: Duration = Duration::from_secs(30);
/// Polls that a node may miss before its disks count as down.
const MISSES_MAX: u32 = 2;
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
    /// What was decided of it.
    pub membership: Membership,
    /// The node that has it, if any node says so.
    pub client: Option<Arc<dyn StorageClient>>,
    /// Whether it can be used.
    pub health: Health,
    /// What its node last said.
    pub status: Option<DiskStatus>,
    rest: Rest,
}

/// How long a disk that timed out is left alone: twice as long each time, until it has behaved for a while.
#[derive(Clone, Copy, Debug, Default)]
struct Rest {
    until: Option<Instant>,
    length: Duration,
    misses: u32,
}

impl Rest {
    fn begin(&mut self, now: Instant) {
        let again = self.until.is_some_and(|until| now < until + REST_FORGOTTEN);
        self.length = if again {
            (self.length * 2).min(REST_MAX)
        } else {
            REST_MIN
        };
        self.until = Some(now + self.length);
    }
}

impl Disk {
    /// Whether new shards may go there.
    pub fn writable(&self) -> bool {
        self.health == Health::Online && self.membership == Membership::Active && !self.full()
    }

    /// Its failure domain: no two units of a volume share one.
    pub fn domain(&self) -> u128 {
        self.id.0
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
    slow: RwLock<HashMap<DiskId, Instant>>,
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
                    membership: row.membership(),
                    label: row.label,
                    client: None,
                    health: Health::Down("not seen yet".into()),
                    status: None,
                    rest: Rest::default(),
                });
            })
            .await?;
        Ok(Disks {
            nodes,
            now: RwLock::new(Snapshot::new(disks.into_iter())),
            slow: RwLock::default(),
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
                None => {
                    disk.rest.misses += 1;
                    let why = unreachable.clone().unwrap_or_else(|| "no node has it".into());
                    // One answer that is late is no reason to refuse what can be read.
                    if disk.rest.misses < MISSES_MAX && disk.health == Health::Online {
                        Health::Suspect(why)
                    } else {
                        Health::Down(why)
                    }
                }
                Some((client, status)) => {
                    disk.rest.misses = 0;
                    let health = health_of(disk, &status, now);
                    disk.client = Some(client);
                    disk.status = Some(status);
                    health
                }
            };
            set_health(disk, health);
        });
    }

    /// Takes in what was decided of a disk, once the ledger has it.
    pub fn set_membership(&self, id: DiskId, membership: Membership) {
        self.update(|disk| {
            if disk.id == id {
                disk.membership = membership;
            }
        });
    }

    /// Forgets a disk that the ledger no longer names.
    pub fn forget(&self, id: DiskId) {
        let mut now = self.now.write().unwrap_or_else(|e| e.into_inner());
        let left: Vec<Disk> = now
            .by_label
            .iter()
            .filter(|disk| disk.id != id)
            .map(|disk| Disk::clone(disk))
            .collect();
        *now = Snapshot::new(left.into_iter());
    }

    /// Takes in that a request failed on a disk.
    pub fn report(&self, id: DiskId, error: &NodeError) {
        let rests = match error {
            NodeError::Fenced { .. } | NodeError::WrongDisk | NodeError::NoSpace => false,
            NodeError::Timeout | NodeError::Unreachable { .. } => true,
            _ => return,
        };
        if self.get(id).is_none_or(|disk| disk.health != Health::Online) {
            return; // Known already.
        }
        self.update(|disk| {
            if disk.id == id && disk.health == Health::Online {
                if let (NodeError::NoSpace, Some(status)) = (error, &mut disk.status) {
                    status.free_bytes = 0; // Until the next poll: it knows better than what it last said.
                }
                if rests {
                    disk.rest.begin(Instant::now());
                }
                set_health(disk, Health::Suspect(error.to_string()));
            }
        });
    }

    /// Takes in that a decode was faster than the disk.
    pub fn report_slow(&self, id: DiskId) {
        let until = Instant::now() + SLOW_FOR;
        self.slow
            .write()
            .unwrap_or_else(|e| e.into_inner())
            .insert(id, until);
    }

    /// Whether a read should ask the disk first: it is online and has not just been slow.
    pub fn prompt(&self, id: DiskId) -> bool {
        let slow = self
            .slow
            .read()
            .unwrap_or_else(|e| e.into_inner())
            .get(&id)
            .copied();
        slow.is_none_or(|until| until < Instant::now())
            && self.get(id).is_some_and(|disk| disk.health == Health::Online)
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
        DiskState::Online => match (&disk.health, disk.rest.until) {
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
