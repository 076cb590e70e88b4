//! The state of the cluster at one moment, as JSON and for `cairn status`.

use super::rebalance::RebalanceStatus;
use crate::cluster::disks::{Disk, Health};
use crate::cluster::nodes::{Contact, Node};
use crate::error::Result;
use crate::ledger::key;
use crate::ledger::model::{Membership, VolumeState};
use crate::maintenance::rebuild::RebuildStatus;
use crate::maintenance::worker::WorkerStatus;
use crate::object::Objects;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use storage_node::protocol::DiskId;

/// Rows of a queue are counted up to this.
const COUNT_MAX: usize = 10_000;

/// Everything `cairn status` shows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The default scheme.
    pub scheme: String,
    /// The scheme that new objects get right now: narrower when too few disks can be written; none if writes are refused.
    pub write_scheme: Option<String>,
    /// The kernel that codes.
    pub kernel: String,
    /// Per node; none in a cluster of one process.
    #[serde(default)]
    pub nodes: Vec<NodeLine>,
    /// Per disk.
    pub disks: Vec<DiskLine>,
    /// Volumes by scheme and state.
    pub volumes: Vec<VolumeLine>,
    /// Bytes over all disks.
    pub capacity: Capacity,
    /// What is not as it should be.
    pub degraded: Degraded,
    /// What waits to be done.
    pub queued: Queued,
    /// What is being rebuilt.
    #[serde(default)]
    pub rebuild: RebuildStatus,
    /// The rebalancing that is going on.
    #[serde(default)]
    pub rebalance: Option<RebalanceStatus>,
    /// Background workers.
    pub workers: Vec<WorkerLine>,
    /// Whether anything needs attention or time.
    pub healthy: bool,
}

/// One node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeLine {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: String,
    /// Where it is.
    pub address: String,
    /// Its rack; empty if nobody said.
    pub rack: String,
    /// Its zone; empty if nobody said.
    pub zone: String,
    /// online, suspect if it answers and all its disks are suspect, lost, or unknown before it was asked.
    pub state: String,
    /// Why it is not online.
    pub reason: Option<String>,
    /// Disks of the cluster on it.
    pub disks: usize,
    /// Of these, those that are online.
    pub disks_online: usize,
    /// Disks it has that are blank.
    pub disks_blank: usize,
    /// Wrong answers for its disks since this gateway started.
    #[serde(default)]
    pub wrong_answers: u64,
}

/// One disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DiskLine {
    /// Its name.
    pub label: String,
    /// The name of its node; none in a cluster of one process.
    #[serde(default)]
    pub node: Option<String>,
    /// Its id.
    pub id: String,
    /// online, suspect or down.
    pub state: String,
    /// What was decided of it: active, draining, out or absent.
    #[serde(default)]
    pub membership: String,
    /// Units that the ledger says are on it.
    #[serde(default)]
    pub units: usize,
    /// Why it is not online.
    pub reason: Option<String>,
    /// Where it is.
    pub path: Option<String>,
    /// How it is read and written.
    pub backend: Option<String>,
    /// Bytes that records could use.
    pub capacity_bytes: u64,
    /// Bytes still free.
    pub free_bytes: u64,
    /// Bytes of live shards.
    pub live_bytes: u64,
    /// Live shards.
    pub shards: u64,
    /// Corrupt shards met since start.
    pub corrupt_shards: u64,
    /// Wrong answers to this gateway since it started, by kind.
    #[serde(default)]
    pub wrong_answers: BTreeMap<String, u64>,
    /// The last of them, in words.
    #[serde(default)]
    pub last_wrong: Option<String>,
    /// How many seconds ago it was.
    #[serde(default)]
    pub last_wrong_s: Option<u64>,
}

/// Volumes of one scheme and state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VolumeLine {
    /// The scheme.
    pub scheme: String,
    /// open or sealed.
    pub state: String,
    /// How many.
    pub count: usize,
}

/// Bytes over all disks that serve.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Capacity {
    /// In all.
    pub total_bytes: u64,
    /// Still free.
    pub free_bytes: u64,
    /// Of live shards.
    pub live_bytes: u64,
}

/// What is not as it should be.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Degraded {
    /// Disks that are not online.
    pub disks: usize,
    /// Volumes with at least one unit on such a disk.
    pub volumes: usize,
    /// Volumes that have lost more units than they can: unreadable until a disk is back.
    pub unreadable_volumes: usize,
}

/// What waits to be done.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Queued {
    /// Blobs to be deleted from disks.
    pub garbage_blobs: usize,
    /// Of these, not yet in the ledger.
    pub abandoned_blobs: usize,
    /// Shards to be repaired.
    pub suspect_shards: usize,
    /// Of these, those that repair has tried in vain, and will try again.
    #[serde(default)]
    pub repairs_in_vain: usize,
    /// Why, for the one tried most often.
    #[serde(default)]
    pub repair_failure: Option<String>,
    /// Ranges of blob ids, of gateways that died, still to be swept.
    pub orphan_ranges: usize,
    /// Requests in progress.
    pub requests: i64,
    /// Bytes in flight: writes, reads, decoding.
    pub in_flight_bytes: [u64; 3],
}

/// One background worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WorkerLine {
    /// Its name.
    pub name: String,
    /// idle, working, or what went wrong.
    pub state: String,
    /// Steps that did something.
    pub steps: u64,
}

/// The state now.
pub async fn status(objects: &Objects, workers: Vec<WorkerStatus>, rebuild: RebuildStatus) -> Result<Status> {
    let disks = objects.disks.all();
    let (volumes, degraded) = volumes(objects, &disks);
    let serving = disks
        .iter()
        .filter(|d| d.standing() == Health::Online)
        .filter_map(|d| d.status.as_ref());
    let capacity = serving.fold(Capacity::default(), |sum, disk| Capacity {
        total_bytes: sum.total_bytes + disk.capacity_bytes,
        free_bytes: sum.free_bytes + disk.free_bytes,
        live_bytes: sum.live_bytes + disk.live_bytes,
    });
    let queued = queued(objects).await?;
    let write_scheme = objects
        .volumes
        .write_scheme(objects.scheme)
        .map(|s| s.to_string());
    // What was decided a moment ago counts, too.
    let (units, bytes) = objects.to_rebuild();
    let rebuild = match rebuild.units {
        0 => RebuildStatus {
            units,
            left_bytes: bytes,
            ..rebuild
        },
        _ => rebuild,
    };
    let failing = workers.iter().any(|w| w.error.is_some());
    let settled = queued.garbage_blobs + queued.suspect_shards + queued.orphan_ranges == 0;
    Ok(Status {
        scheme: objects.scheme.to_string(),
        kernel: objects.codecs.kernel().to_string(),
        healthy: degraded.disks == 0 && settled && !failing && rebuild.units == 0 && write_scheme.is_some(),
        write_scheme,
        nodes: node_lines(objects),
        disks: disk_lines(objects, &disks),
        rebuild,
        rebalance: objects.rebalance_status().await?,
        volumes,
        capacity,
        degraded,
        queued,
        workers: workers.into_iter().map(worker_line).collect(),
    })
}

async fn queued(objects: &Objects) -> Result<Queued> {
    let ledger = &objects.ledger;
    // In the order in which a blob passes through them, so that one on its way is seen at least once.
    let requests = objects.metrics.requests_in_flight.get();
    let abandoned_blobs = objects.abandoned.len();
    let own = objects.lease.id();
    let mut orphan_ranges = 0;
    ledger
        .for_each::<crate::ledger::model::IdRangeRow>(key::table(b'r'), |row_key, _| {
            orphan_ranges +=
                usize::from(key::id_range_parts(&row_key).is_some_and(|(lease, _)| lease != own));
        })
        .await?;
    let (repairs_in_vain, repair_failure) = objects.suspects.in_vain();
    let queued = Queued {
        repairs_in_vain,
        repair_failure,
        garbage_blobs: ledger.count(key::table(b'g'), COUNT_MAX).await?,
        abandoned_blobs,
        suspect_shards: ledger.count(key::table(b's'), COUNT_MAX).await?,
        orphan_ranges,
        requests,
        in_flight_bytes: [
            objects.budget.writes.used_bytes(),
            objects.budget.reads.used_bytes(),
            objects.budget.decode.used_bytes(),
        ],
    };
    objects.metrics.garbage_blobs.set(queued.garbage_blobs as i64);
    objects.metrics.suspect_shards.set(queued.suspect_shards as i64);
    Ok(queued)
}

fn volumes(objects: &Objects, disks: &[Arc<Disk>]) -> (Vec<VolumeLine>, Degraded) {
    let online: std::collections::HashSet<_> = disks
        .iter()
        .filter(|d| d.standing() == Health::Online)
        .map(|d| d.id)
        .collect();
    let mut degraded = Degraded {
        disks: disks
            .iter()
            .filter(|disk| disk.membership != Membership::Out && !online.contains(&disk.id))
            .count(),
        ..Degraded::default()
    };
    let mut lines: BTreeMap<(String, &str), usize> = BTreeMap::new();
    for volume in objects.volumes.all() {
        let state = match volume.state {
            VolumeState::Open => "open",
            VolumeState::Sealed => "sealed",
        };
        *lines.entry((volume.scheme.to_string(), state)).or_default() += 1;
        let there: Vec<usize> = (0..volume.disks.len())
            .filter(|&i| volume.is_whole(i as u8) && online.contains(&volume.disks[i]))
            .collect();
        let lost = volume.disks.len() - there.len();
        degraded.volumes += usize::from(lost > 0);
        if lost > volume.scheme.losses_survived() {
            let decodable = objects
                .codecs
                .get(volume.scheme)
                .is_ok_and(|c| c.code().is_decodable(there) == Ok(true));
            degraded.unreadable_volumes += usize::from(!decodable);
        }
    }
    let line = |((scheme, state), count): ((String, &str), usize)| VolumeLine {
        scheme,
        state: state.into(),
        count,
    };
    (lines.into_iter().map(line).collect(), degraded)
}

/// Disks as operators see them.
pub fn disk_lines(objects: &Objects, disks: &[Arc<Disk>]) -> Vec<DiskLine> {
    let mut units: HashMap<DiskId, usize> = HashMap::new();
    for volume in objects.volumes.all() {
        for disk in &volume.disks {
            *units.entry(*disk).or_default() += 1;
        }
    }
    let line = |disk: &Arc<Disk>| disk_line(disk, units.get(&disk.id).copied().unwrap_or(0));
    disks.iter().map(line).collect()
}

/// A membership in a word.
pub fn membership_word(membership: Membership) -> &'static str {
    match membership {
        Membership::Active => "active",
        Membership::Draining => "draining",
        Membership::Out => "out",
        Membership::Absent => "absent",
    }
}

/// The nodes that joined.
pub fn node_lines(objects: &Objects) -> Vec<NodeLine> {
    let disks = objects.disks.all();
    let nodes = objects.disks.nodes().all();
    let line = |node: &Arc<Node>| {
        let info = node.info.as_ref()?;
        let of_node = |disk: &&Arc<Disk>| disk.node.as_ref().is_some_and(|of| of.id == info.id);
        let standings: Vec<Health> = disks.iter().filter(of_node).map(|disk| disk.standing()).collect();
        let suspicion = standings.iter().find_map(|standing| match standing {
            Health::Suspect(why) => Some(why.clone()),
            _ => None,
        });
        let all_suspect = standings
            .iter()
            .all(|standing| matches!(standing, Health::Suspect(_)));
        let (state, reason) = match node.contact() {
            Contact::Never => ("unknown", None),
            Contact::Online if all_suspect && suspicion.is_some() => ("suspect", suspicion),
            Contact::Online => ("online", None),
            Contact::Lost(why) => ("lost", Some(why)),
        };
        let wrong = |disk: &Arc<Disk>| -> u64 {
            let counts = disk.conduct.wrong_seen().counts;
            counts.iter().map(|(_, count)| count).sum()
        };
        Some(NodeLine {
            name: info.name.clone(),
            id: info.id.to_string(),
            address: node.address.clone(),
            rack: info.rack.clone(),
            zone: info.zone.clone(),
            state: state.into(),
            reason,
            disks: standings.len(),
            disks_online: standings
                .iter()
                .filter(|standing| **standing == Health::Online)
                .count(),
            disks_blank: node.blank().len(),
            wrong_answers: disks.iter().filter(of_node).map(wrong).sum(),
        })
    };
    nodes.iter().filter_map(line).collect()
}

fn disk_line(disk: &Disk, units: usize) -> DiskLine {
    let standing = disk.standing();
    let state = standing.word();
    let reason = match standing {
        Health::Online => None,
        Health::Suspect(why) | Health::Down(why) => Some(why),
    };
    let wrong = disk.conduct.wrong_seen();
    let (last_wrong, last_wrong_s) = wrong.last.map(|(what, ago)| (what, ago.as_secs())).unzip();
    let status = disk.status.as_ref();
    DiskLine {
        label: disk.label.clone(),
        node: disk.node.as_ref().map(|node| node.name.clone()),
        id: disk.id.to_string(),
        state: state.into(),
        membership: membership_word(disk.membership).into(),
        units,
        reason,
        path: status.map(|s| s.path.clone()),
        backend: status.map(|s| s.backend.clone()),
        capacity_bytes: status.map_or(0, |s| s.capacity_bytes),
        free_bytes: status.map_or(0, |s| s.free_bytes),
        live_bytes: status.map_or(0, |s| s.live_bytes),
        shards: status.map_or(0, |s| s.shards),
        corrupt_shards: status.map_or(0, |s| s.corrupt_shards),
        wrong_answers: wrong
            .counts
            .iter()
            .map(|(kind, n)| (kind.word().to_string(), *n))
            .collect(),
        last_wrong,
        last_wrong_s,
    }
}

fn worker_line(worker: WorkerStatus) -> WorkerLine {
    let state = match (worker.error, worker.idle) {
        (Some(error), _) => error,
        (None, true) => "idle".into(),
        (None, false) => "working".into(),
    };
    WorkerLine {
        name: worker.name.into(),
        state,
        steps: worker.steps,
    }
}
