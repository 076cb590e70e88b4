//! The state of the cluster at one moment, as JSON and for `cairn status`.

use super::ledger::LedgerLine;
use super::rebalance::RebalanceStatus;
use super::verdict::{self, DiskSeen, Facts, Verdict, VolumeSeen};
use crate::archive::ArchiveStatus;
use crate::cluster::disks::{Disk, Health};
use crate::cluster::nodes::{Contact, Node};
use crate::error::{Error, Result};
use crate::ledger::key;
use crate::ledger::model::{BlobRow, Membership, VolumeState};
use crate::maintenance::holds::Hold;
use crate::maintenance::rebuild::RebuildStatus;
use crate::maintenance::worker::WorkerStatus;
use crate::object::Objects;
use crate::placement::volumes::Volume;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use storage_node::protocol::DiskId;

/// Rows of a queue are counted up to this.
const COUNT_MAX: usize = 10_000;
/// An archive that has been behind for so many seconds is told.
const ARCHIVE_BEHIND_S: u64 = 60;

/// Everything `cairn status` shows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// What to know first: what is at risk, since when, and what to do.
    #[serde(default)]
    pub verdict: Verdict,
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
    /// The ledger.
    #[serde(default)]
    pub ledger: LedgerLine,
    /// The ledger's archive.
    #[serde(default)]
    pub archive: ArchiveStatus,
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
    /// Volumes that cannot be read until a disk is back, or of which blobs cannot: too many shards of those are gone.
    pub unreadable_volumes: usize,
    /// Such blobs, as far as reads, the census and verifying have found them.
    #[serde(default)]
    pub unreadable_blobs: usize,
    /// The first of them: the object that it was written for, as `bucket/key`.
    #[serde(default)]
    pub unreadable_first: Option<String>,
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
    /// Blobs that nothing names, set aside.
    #[serde(default)]
    pub unnamed_blobs: u64,
    /// Bytes of their shards.
    #[serde(default)]
    pub unnamed_bytes: u64,
    /// Why none of them goes by itself, if none does.
    #[serde(default)]
    pub unnamed_stopped: Option<String>,
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
    /// For how many seconds no step has succeeded, if the last one failed.
    #[serde(default)]
    pub failing_s: Option<u64>,
    /// How often it panicked and was started again.
    #[serde(default)]
    pub restarts: u64,
}

/// The state now.
pub async fn status(objects: &Objects, workers: Vec<WorkerStatus>, rebuild: RebuildStatus) -> Result<Status> {
    let disks = objects.disks.all();
    let (volumes, mut degraded) = volumes(objects, &disks);
    let units = units(objects);
    let serving = disks
        .iter()
        .filter(|d| d.standing() == Health::Online)
        .filter_map(|d| d.status.as_ref());
    let capacity = serving.fold(Capacity::default(), |sum, disk| Capacity {
        total_bytes: sum.total_bytes + disk.capacity_bytes,
        free_bytes: sum.free_bytes + disk.free_bytes,
        live_bytes: sum.live_bytes + disk.live_bytes,
    });
    let mut ledger = LedgerLine::of(&objects.ledger);
    let asked = async { Ok((queued(objects).await?, objects.rebalance_status().await?)) };
    let (queued, rebalance) = asked.await.unwrap_or_else(|error: Error| {
        // Without a ledger the rest is shown all the same.
        ledger.unavailable.get_or_insert(error.to_string());
        (queued_here(objects), None)
    });
    let facts = facts(objects, &ledger, &workers, &rebuild, &units);
    degraded.unreadable_blobs = facts.unreadable.blobs;
    degraded.unreadable_first = match objects.suspects.unreadable().first {
        Some(first) => Some(owner(objects, first).await),
        None => None,
    };
    let mut verdict = verdict::judge(&Facts {
        unreadable: verdict::Unreadable {
            first: degraded.unreadable_first.clone(),
            ..facts.unreadable
        },
        ..facts
    });
    verdict.since_ms = objects.clock.now_ms();
    let write_scheme = objects
        .volumes
        .write_scheme(objects.scheme)
        .map(|s| s.to_string());
    // What was decided a moment ago counts, too.
    let (left, bytes) = objects.to_rebuild();
    let rebuild = match rebuild.units {
        0 => RebuildStatus {
            units: left,
            left_bytes: bytes,
            ..rebuild
        },
        _ => rebuild,
    };
    let failing = workers.iter().any(|w| w.error.is_some());
    let settled = queued.garbage_blobs + queued.suspect_shards + queued.orphan_ranges == 0;
    Ok(Status {
        verdict,
        scheme: objects.scheme.to_string(),
        kernel: objects.codecs.kernel().to_string(),
        healthy: ledger.is_well()
            && degraded.disks == 0
            && settled
            && !failing
            && rebuild.units == 0
            && write_scheme.is_some(),
        write_scheme,
        nodes: node_lines(objects),
        disks: disks
            .iter()
            .map(|disk| disk_line(disk, units_on(&units, disk)))
            .collect(),
        rebuild,
        rebalance,
        volumes,
        capacity,
        degraded,
        queued,
        ledger,
        archive: objects.archive.status(objects.ledger.position()),
        workers: workers.into_iter().map(worker_line).collect(),
    })
}

/// What this process knows of what waits, in the order in which a blob passes through it.
fn queued_here(objects: &Objects) -> Queued {
    let requests = objects.metrics.requests_in_flight.get();
    let abandoned_blobs = objects.abandoned.len();
    let (repairs_in_vain, repair_failure) = objects.suspects.in_vain();
    let unnamed = objects.unnamed.summary();
    Queued {
        requests,
        abandoned_blobs,
        repairs_in_vain,
        repair_failure,
        unnamed_blobs: unnamed.blobs,
        unnamed_bytes: unnamed.bytes,
        unnamed_stopped: unnamed.stopped,
        in_flight_bytes: [
            objects.budget.writes.used_bytes(),
            objects.budget.reads.used_bytes(),
            objects.budget.decode.used_bytes(),
        ],
        ..Queued::default()
    }
}

async fn queued(objects: &Objects) -> Result<Queued> {
    let ledger = &objects.ledger;
    // Before the ledger, so that a blob on its way is seen at least once.
    let here = queued_here(objects);
    let own = objects.lease.id();
    let mut orphan_ranges = 0;
    ledger
        .for_each::<crate::ledger::model::IdRangeRow>(key::table(b'r'), |row_key, _| {
            orphan_ranges +=
                usize::from(key::id_range_parts(&row_key).is_some_and(|(lease, _)| lease != own));
        })
        .await?;
    let queued = Queued {
        garbage_blobs: ledger.count(key::table(b'g'), COUNT_MAX).await?,
        suspect_shards: ledger.count(key::table(b's'), COUNT_MAX).await?,
        orphan_ranges,
        ..here
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
    let units = units(objects);
    // One that was given up for good and holds nothing any more is missed by nobody.
    let is_missed = |disk: &Disk| match disk.membership {
        Membership::Out => false,
        Membership::Absent => units_on(&units, disk) > 0,
        Membership::Active | Membership::Draining => true,
    };
    let gone = objects.suspects.unreadable().volumes;
    let mut degraded = Degraded {
        disks: disks
            .iter()
            .filter(|disk| is_missed(disk) && !online.contains(&disk.id))
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
        let is_readable = lost <= volume.scheme.losses_survived() || is_decodable(objects, &volume, there);
        degraded.unreadable_volumes += usize::from(!is_readable || gone.contains(&volume.id));
    }
    let line = |((scheme, state), count): ((String, &str), usize)| VolumeLine {
        scheme,
        state: state.into(),
        count,
    };
    (lines.into_iter().map(line).collect(), degraded)
}

fn is_decodable(objects: &Objects, volume: &Volume, there: Vec<usize>) -> bool {
    let codec = objects.codecs.get(volume.scheme);
    codec.is_ok_and(|codec| codec.code().is_decodable(there) == Ok(true))
}

/// How many units the ledger has on each disk.
type Units = HashMap<DiskId, usize>;

fn units(objects: &Objects) -> Units {
    let mut units = Units::new();
    for volume in objects.volumes.all() {
        for disk in &volume.disks {
            *units.entry(*disk).or_default() += 1;
        }
    }
    units
}

fn units_on(units: &Units, disk: &Disk) -> usize {
    units.get(&disk.id).copied().unwrap_or(0)
}

/// Disks as operators see them.
pub fn disk_lines(objects: &Objects, disks: &[Arc<Disk>]) -> Vec<DiskLine> {
    let units = units(objects);
    let line = |disk: &Arc<Disk>| disk_line(disk, units_on(&units, disk));
    disks.iter().map(line).collect()
}

/// The verdict by what this process knows, without a question to the ledger.
pub fn verdict_now(objects: &Objects, workers: &[WorkerStatus], rebuild: &RebuildStatus) -> Verdict {
    let ledger = LedgerLine::of(&objects.ledger);
    verdict::judge(&facts(objects, &ledger, workers, rebuild, &units(objects)))
}

/// For how many seconds the archive has been behind, and why, when somebody should know.
fn archive_behind(objects: &Objects) -> Option<(u64, String)> {
    let archive = objects.archive.status(objects.ledger.position());
    let is_long = archive.on && archive.behind_s >= ARCHIVE_BEHIND_S;
    let why = archive.error.or(archive.due);
    is_long.then(|| {
        (
            archive.behind_s,
            why.unwrap_or_else(|| "its disks are asked where it ends".into()),
        )
    })
}

fn facts(
    objects: &Objects,
    ledger: &LedgerLine,
    workers: &[WorkerStatus],
    rebuild: &RebuildStatus,
    units: &Units,
) -> Facts {
    let disks = objects.disks.all();
    let seen = |disk: &Arc<Disk>| {
        let (why, is_suspect) = match disk.standing() {
            Health::Online => (None, false),
            Health::Suspect(why) => (Some(why), true),
            Health::Down(why) => (Some(why), false),
        };
        DiskSeen {
            label: disk.label.clone(),
            why,
            is_suspect,
            is_given_up: disk.is_given_up(),
            units: units_on(units, disk),
        }
    };
    let failing = workers.iter().filter_map(|worker| {
        let error = worker.error.as_ref()?;
        Some((worker.name.to_owned(), error.clone()))
    });
    let unnamed = objects.unnamed.summary();
    Facts {
        ledger: ledger.unavailable.clone(),
        holds: objects.holds.all().into_iter().map(hold).collect(),
        refused: refused(objects, ledger),
        volumes: volumes_seen(objects, &disks),
        unreadable: verdict::Unreadable {
            blobs: objects.suspects.unreadable().blobs,
            first: None,
        },
        disks: disks.iter().map(seen).collect(),
        rebuilding: rebuild.units,
        waiting: rebuild.waiting,
        eta_s: rebuild.eta_s,
        failing: failing.collect(),
        in_vain: objects.suspects.in_vain().0,
        // What a hold keeps, the hold is to be told for.
        unnamed: unnamed.stopped.filter(|_| objects.holds.may_delete()),
        rowless: unnamed.referenced,
        archive: archive_behind(objects),
    }
}

/// A hold, and what to do about it.
fn hold((hold, why): (Hold, String)) -> (String, String) {
    let next = match hold {
        Hold::LedgerBehind => {
            "restore a newer ledger, or see what `cairn ledger accept` would give up for going on with this one"
        }
        Hold::LedgerRestored => {
            "bring back the disks that are away, or see what `cairn ledger accept` finds without them"
        }
        Hold::LedgerDamaged => {
            "it is repaired from the archive by itself; `cairn ledger check` says what that waits for, `cairn ledger repair` does it while the gateway \
             is stopped"
        }
    };
    (why, next.into())
}

/// Why uploads are refused, and what to do about it.
fn refused(objects: &Objects, ledger: &LedgerLine) -> Option<(String, String)> {
    if ledger.room.as_ref().is_some_and(|room| !room.admits_uploads) {
        let next = "free space on the filesystem of the ledger, or delete objects";
        return Some(("the filesystem of the ledger is full".into(), next.into()));
    }
    match objects.volumes.write_scheme(objects.scheme) {
        Some(_) => None,
        None => {
            let next = "bring disks back, or add some: `cairn disk add --all`";
            Some(("too few disks can be written".into(), next.into()))
        }
    }
}

/// How each volume stands. A disk that is suspect is there.
fn volumes_seen(objects: &Objects, disks: &[Arc<Disk>]) -> Vec<VolumeSeen> {
    let is_there = |disk: &&Arc<Disk>| !matches!(disk.health, Health::Down(_));
    let there: HashSet<DiskId> = disks.iter().filter(is_there).map(|disk| disk.id).collect();
    let seen = |volume: Arc<Volume>| {
        let readable = (0..volume.disks.len())
            .filter(|&index| volume.is_whole(index as u8) && there.contains(&volume.disks[index]));
        let readable: Vec<usize> = readable.collect();
        let lost = (volume.disks.len() - readable.len()) as i64;
        let should = volume.scheme.losses_survived() as i64;
        VolumeSeen {
            spare: should - lost,
            should,
            readable: lost <= should || is_decodable(objects, &volume, readable),
            bytes: volume.used_bytes() * volume.scheme.data_shards() as u64,
        }
    };
    objects.volumes.all().into_iter().map(seen).collect()
}

/// The object that a blob was written for, or where the blob is.
async fn owner(objects: &Objects, (volume, blob): (u64, u64)) -> String {
    let row = objects.ledger.get::<BlobRow>(key::blob(volume, blob)).await;
    match row {
        Ok(Some(row)) if !row.row.owner.is_empty() => row.row.owner,
        _ => format!("blob {blob} of volume {volume}"),
    }
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
        failing_s: worker.failing_s,
        restarts: worker.restarts,
    }
}
