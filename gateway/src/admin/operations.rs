//! What operators do with disks and nodes, as a plan first: what it moves, how low redundancy falls, and what it would lose.
//!
//! Invariant: an action runs only if what it was planned on is still so. A plan carries a fingerprint of every disk's membership and
//! every volume's epoch; when one has changed, the plan is refused and made again.
//! Invariant: nothing that would lose data runs, unless whoever asks for it names the disk, or the node, once more.
//! Invariant: what is decided of a node is decided of all its disks, in one commit.

use super::status::membership_word;
use crate::cluster::disks::{Disk, Health};
use crate::cluster::nodes::NodeInfo;
use crate::error::Error;
use crate::ledger::key;
use crate::ledger::model::Membership;
use crate::ledger::{CommitBuilder, Typed};
use crate::object::Objects;
use crate::placement::choose;
use crate::placement::volumes::Volume;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::sync::Arc;
use storage_node::protocol::DiskId;

/// What something is to be done with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// A disk, by its name or its id.
    Disk(String),
    /// A node, by its name: all its disks.
    Node(String),
}

impl Subject {
    /// As it is named.
    pub fn name(&self) -> &str {
        match self {
            Subject::Disk(name) | Subject::Node(name) => name,
        }
    }

    /// The word for what it is.
    pub fn word(&self) -> &'static str {
        match self {
            Subject::Disk(_) => "disk",
            Subject::Node(_) => "node",
        }
    }
}

/// What is to be done with a disk, or with all disks of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Copy what it holds elsewhere while it serves; nothing new goes there.
    Drain,
    /// Give it up now: what it holds is rebuilt from the others.
    Retire,
    /// Back to normal: it gets new units again.
    Activate,
    /// Forget what was drained, retired or given up, and holds nothing any more.
    Remove,
}

/// What is asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PlanRequest {
    /// With what.
    pub subject: Subject,
    /// What is to be done.
    pub action: Action,
}

/// What an action would do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// With what, by its name.
    pub subject: Subject,
    /// What is to be done.
    pub action: Action,
    /// What it is planned on: [`ApplyRequest::plan`].
    pub plan: String,
    /// The names of the disks it is about.
    pub disks: Vec<String>,
    /// Units that are on them.
    pub units: usize,
    /// Bytes to be written to other disks.
    pub move_bytes: u64,
    /// Losses that the most endangered volume survives now, and until its units are whole elsewhere.
    pub spare_now: Option<i64>,
    /// See `spare_now`.
    pub spare_then: Option<i64>,
    /// Disks that can take what it holds.
    pub targets: usize,
    /// Volumes that could not be read any more.
    pub lost_volumes: Vec<u64>,
    /// Units that no disk could take for now.
    pub stuck_units: usize,
    /// Why it cannot be done, if it cannot.
    pub refused: Option<String>,
}

/// A plan that is to run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ApplyRequest {
    /// With what.
    pub subject: Subject,
    /// What is to be done.
    pub action: Action,
    /// [`Plan::plan`].
    pub plan: String,
    /// Its name once more, to lose what only it has.
    #[serde(default)]
    pub force: Option<String>,
}

/// Why an operator's wish was not granted.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// There is no such disk, node, volume or object.
    #[error("{0}")]
    NotFound(String),
    /// It would do harm, or makes no sense.
    #[error("{0}")]
    Refused(String),
    /// The cluster has changed since the plan was made.
    #[error("the cluster has changed since this was planned: look at the new plan")]
    Outdated,
    /// The ledger could not be reached.
    #[error("{0}")]
    Failed(String),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        match error {
            Error::Conflict => Refusal::Outdated,
            error => Refusal::Failed(error.to_string()),
        }
    }
}

/// What an operator is told, or why not.
pub type Answer<T> = std::result::Result<T, Refusal>;

impl Objects {
    /// A disk by its name or id.
    pub fn find_disk(&self, name: &str) -> Answer<Arc<Disk>> {
        let disks = self.disks.all();
        let by_id = name.parse::<DiskId>().ok();
        let found = disks
            .iter()
            .find(|disk| disk.label == name || Some(disk.id) == by_id);
        found.cloned().ok_or_else(|| {
            let names: Vec<&str> = disks.iter().take(20).map(|disk| disk.label.as_str()).collect();
            Refusal::NotFound(format!(
                "there is no disk {name:?}; there are {}",
                names.join(", ")
            ))
        })
    }

    /// A node by its name, and its disks.
    fn find_node(&self, name: &str) -> Answer<(Arc<NodeInfo>, Vec<Arc<Disk>>)> {
        let nodes = self.disks.nodes();
        let Some(info) = nodes.named(name).and_then(|node| node.info.clone()) else {
            let all = nodes.all();
            let names: Vec<&str> = all
                .iter()
                .filter(|node| node.info.is_some())
                .take(20)
                .map(|node| node.name())
                .collect();
            return Err(Refusal::NotFound(match names.is_empty() {
                true => format!("there is no node {name:?}: no node has joined this cluster"),
                false => format!("there is no node {name:?}; there are {}", names.join(", ")),
            }));
        };
        let is_its = |disk: &&Arc<Disk>| disk.node.as_ref().is_some_and(|node| node.id == info.id);
        let disks = self.disks.all().iter().filter(is_its).cloned().collect();
        Ok((info, disks))
    }

    /// What an action is about: the same, by its name, and the disks.
    fn find(&self, subject: &Subject) -> Answer<(Subject, Vec<Arc<Disk>>)> {
        match subject {
            Subject::Disk(name) => {
                let disk = self.find_disk(name)?;
                Ok((Subject::Disk(disk.label.clone()), vec![disk]))
            }
            Subject::Node(name) => Ok((Subject::Node(name.clone()), self.find_node(name)?.1)),
        }
    }

    /// What an action would do.
    pub fn plan(&self, request: &PlanRequest) -> Answer<Plan> {
        let (subject, disks) = self.find(&request.subject)?;
        let ids: Vec<DiskId> = disks.iter().map(|disk| disk.id).collect();
        let volumes = self.volumes.all();
        let units_of = |volume: &Volume| volume.disks.iter().filter(|id| ids.contains(id)).count();
        let on_it: Vec<&Arc<Volume>> = volumes.iter().filter(|v| units_of(v) > 0).collect();
        let units = on_it.iter().map(|v| units_of(v)).sum();
        let moves = matches!(request.action, Action::Drain | Action::Retire);
        let without = match request.action {
            Action::Retire => &ids[..],
            _ => &[],
        };
        let spare = |without: &[DiskId]| on_it.iter().map(|v| self.spare(v, without).0).min();
        let is_lost = |v: &&&Arc<Volume>| self.spare(v, &[]).1 && !self.spare(v, without).1;
        let lost_volumes: Vec<u64> = on_it.iter().filter(is_lost).map(|v| v.id).collect();
        let candidates = |scheme| -> Vec<choose::Candidate> {
            let targets = self.volumes.targets(scheme).into_iter();
            targets
                .filter(|candidate| !ids.contains(&candidate.disk))
                .collect()
        };
        let stuck = |volume: &&Arc<Volume>| {
            let level = self.disks.level(volume.scheme.total_shards());
            let others = volume.disks.iter().filter(|other| !ids.contains(other));
            let taken: HashSet<u128> = others
                .filter_map(|other| Some(self.disks.get(*other)?.domain(level)))
                .collect();
            let mut free = candidates(volume.scheme);
            free.retain(|candidate| !taken.contains(&candidate.domain));
            units_of(volume).saturating_sub(choose::domains(&free))
        };
        Ok(Plan {
            refused: refusal(&subject, &disks, request.action, units, &lost_volumes),
            subject,
            action: request.action,
            plan: self.fingerprint(),
            disks: disks.iter().map(|disk| disk.label.clone()).collect(),
            units,
            move_bytes: match moves {
                true => on_it.iter().map(|v| v.used_bytes() * units_of(v) as u64).sum(),
                false => 0,
            },
            spare_now: spare(&[]),
            spare_then: spare(without),
            targets: candidates(self.scheme).len(),
            lost_volumes,
            stuck_units: match moves {
                true => on_it.iter().copied().map(|v| stuck(&v)).sum(),
                false => 0,
            },
        })
    }

    /// Does what was planned.
    pub async fn apply(&self, request: &ApplyRequest) -> Answer<Plan> {
        let plan = self.plan(&PlanRequest {
            subject: request.subject.clone(),
            action: request.action,
        })?;
        if plan.plan != request.plan {
            return Err(Refusal::Outdated);
        }
        let forced = request.force.as_deref() == Some(plan.subject.name()) && !plan.lost_volumes.is_empty();
        if let Some(why) = plan.refused.as_ref().filter(|_| !forced) {
            return Err(Refusal::Refused(why.clone()));
        }
        let (subject, disks) = self.find(&request.subject)?;
        let of = |wanted: fn(Membership) -> bool| -> Vec<DiskId> {
            let concerned = disks.iter().filter(|disk| wanted(disk.membership));
            concerned.map(|disk| disk.id).collect()
        };
        // Of a node's disks, those that it makes sense for; of one disk, the plan has refused what does not.
        match request.action {
            Action::Drain => {
                let disks = of(|m| !m.is_given_up());
                self.decide_all(&disks, Membership::Draining).await?
            }
            Action::Retire => self.decide_all(&of(|_| true), Membership::Out).await?,
            Action::Activate => {
                let disks = match &subject {
                    Subject::Disk(_) => of(|_| true),
                    Subject::Node(_) => of(|m| m != Membership::Out),
                };
                self.decide_all(&disks, Membership::Active).await?
            }
            Action::Remove => self.remove(&subject, &of(|_| true)).await?,
        }
        let (what, name) = (subject.word(), subject.name());
        tracing::info!(what, name, action = ?request.action, forced, "an operator decided");
        Ok(plan)
    }

    /// Forgets disks, and their node if it is about that.
    ///
    /// The ledger says whether a unit is on them: nothing comes to a disk that is not in service, so what it says now holds.
    async fn remove(&self, subject: &Subject, disks: &[DiskId]) -> Answer<()> {
        if self.volumes.units_on(disks).await? > 0 {
            return Err(Refusal::Outdated);
        }
        let mut rows: Vec<Bytes> = disks.iter().map(|id| key::disk(id.0)).collect();
        let node = match subject {
            Subject::Disk(_) => None,
            Subject::Node(name) => Some(self.find_node(name)?.0.id),
        };
        rows.extend(node.map(|id| key::node(id.0)));
        let mut commit = CommitBuilder::new();
        for row_key in rows {
            // Whatever it says: only its version is wanted.
            if let Some(Typed { version, .. }) = self
                .ledger
                .get::<()>(row_key.clone())
                .await
                .map_err(Error::from)?
            {
                commit = commit.expect(&row_key, Some(version)).delete(row_key);
            }
        }
        self.ledger
            .commit(self.lease.fence(commit).build())
            .await
            .map_err(Error::from)?;
        disks.iter().for_each(|id| self.disks.remove(*id));
        if let Some(id) = node {
            self.disks.nodes().remove(id);
        }
        Ok(())
    }

    /// How many more losses a volume survives, and whether it can be decoded; as if these disks were gone.
    pub fn spare(&self, volume: &Volume, without: &[DiskId]) -> (i64, bool) {
        let readable = |index: &usize| {
            let id = volume.disks[*index];
            let online = self
                .disks
                .get(id)
                .is_some_and(|disk| disk.health == Health::Online);
            volume.is_whole(*index as u8) && online && !without.contains(&id)
        };
        let there: Vec<usize> = (0..volume.disks.len()).filter(readable).collect();
        let lost = (volume.disks.len() - there.len()) as i64;
        let codec = self.codecs.get(volume.scheme);
        let decodable = codec.is_ok_and(|codec| codec.code().is_decodable(there) == Ok(true));
        (volume.scheme.losses_survived() as i64 - lost, decodable)
    }

    /// Of every disk's membership and health and every volume's epoch and whole units.
    pub(super) fn fingerprint(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for disk in self.disks.all().iter() {
            hasher.update(&disk.id.0.to_le_bytes());
            let online = u8::from(disk.health == Health::Online);
            hasher.update(&[disk.membership as u8, online]);
        }
        for volume in self.volumes.all() {
            hasher.update(&volume.id.to_le_bytes());
            hasher.update(&volume.epoch.to_le_bytes());
            hasher.update(&[volume.incomplete.len() as u8]);
            hasher.update(&volume.incomplete);
        }
        hasher.finalize().to_hex()[..16].to_string()
    }
}

/// Why an action is not done as it is asked for, if it is not.
fn refusal(
    subject: &Subject,
    disks: &[Arc<Disk>],
    action: Action,
    units: usize,
    lost: &[u64],
) -> Option<String> {
    let (what, name) = (subject.word(), subject.name());
    let are = |wanted: &[Membership]| disks.iter().all(|disk| wanted.contains(&disk.membership));
    let is = match (disks, subject) {
        ([disk], Subject::Disk(_)) => membership_word(disk.membership),
        _ => "in service",
    };
    const SERVING: [Membership; 2] = [Membership::Active, Membership::Draining];
    match action {
        Action::Drain if disks.iter().any(|disk| SERVING.contains(&disk.membership)) => None,
        Action::Drain if disks.is_empty() => Some(format!("{name} has no disks: remove it")),
        Action::Drain => Some(format!(
            "{name} is {}: there is nothing to be copied from it",
            if is == "in service" { "given up" } else { is }
        )),
        Action::Activate if !disks.is_empty() && are(&[Membership::Out]) && units == 0 => {
            Some(format!("{name} was retired; remove it, then add it anew"))
        }
        Action::Activate => None,
        Action::Retire if !lost.is_empty() => Some(format!(
            "{} volumes could not be read without {name}: drain it, or wait for the others; only --force {name} gives up what is in them",
            lost.len(),
        )),
        Action::Retire => None,
        Action::Remove if units > 0 && are(&[Membership::Out, Membership::Absent, Membership::Draining]) => {
            Some(format!(
                "{units} units are still to be made whole elsewhere: see `cairn rebuild status`"
            ))
        }
        Action::Remove if disks.iter().any(|disk| disk.membership == Membership::Active) => Some(format!(
            "{name} is {}: `cairn {what} drain {name}` first, or retire it if it is dead",
            if is == "in service" { "in service" } else { is }
        )),
        Action::Remove => None,
    }
}
