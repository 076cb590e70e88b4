//! Moves units from full disks to emptier ones, when an operator asks for it.
//!
//! That it is asked for is a row of the ledger, so a gateway that starts goes on with it. What is to move is planned from what
//! the disks hold now (`placement/rebalance`), a few units at a time; `rebuild` moves them as it drains a disk: a copy first, then the
//! ledger's row.
//! Invariant: a unit moves at most once in a run, so a run ends however wrong the estimates are.

use super::worker::{Step, Worker};
use crate::cluster::disks::{Disk, Health, Level};
use crate::error::Result;
use crate::ledger::model::{Membership, RebalanceRow};
use crate::ledger::{CommitBuilder, key};
use crate::object::{Objects, off_reactor};
use crate::placement::rebalance::{Load, Movable, Plan, plan};
use crate::placement::volumes::Volume;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use storage_node::protocol::{DiskId, UnitId};

const DEADLINE: Duration = Duration::from_secs(10);
/// Units that are on their way at once.
const MOVES_AT_ONCE: usize = 32;
/// Moves that are planned for people to see.
pub const MOVES_MAX: usize = 10_000;

impl Objects {
    /// Where a unit is to move although its disk is well, if it may be there: the disk can be written, and is in no failure domain of the
    /// volume's other units.
    pub fn relocation(&self, volume: &Volume, index: u8) -> Option<DiskId> {
        let to = self.relocations.target(volume.unit(index))?;
        let is_elsewhere = to != volume.disks[usize::from(index)];
        (is_elsewhere && self.may_take(volume, index, to)).then_some(to)
    }

    /// Whether a unit may be on a disk: it can be written, and is in no failure domain of the volume's other units.
    pub fn may_take(&self, volume: &Volume, index: u8, to: DiskId) -> bool {
        let level = self.disks.level(volume.disks.len());
        let others = (0..).zip(&volume.disks).filter(|(i, _)| *i != index);
        let others = others.map(|(_, disk)| *disk);
        may_take(|id| self.disks.get(id), level, others, to)
    }

    /// What would make the disks equally full, but for these units.
    pub async fn plan_rebalance(
        &self,
        within: f64,
        moves_max: usize,
        moved: &HashSet<UnitId>,
    ) -> Result<Plan> {
        let (mut loads, mut units) = (Vec::new(), Vec::new());
        for disk in self.disks.all().iter() {
            let (Some(client), Some(status)) = (&disk.client, &disk.status) else {
                continue;
            };
            if disk.health != Health::Online || disk.membership != Membership::Active {
                continue;
            }
            // One that does not answer neither gives nor takes.
            let Ok(held) = client.units(disk.id, disk.incarnation, DEADLINE).await else {
                continue;
            };
            loads.push(Load {
                disk: disk.id,
                capacity_bytes: status.capacity_bytes,
                used_bytes: held.iter().map(|info| info.live_bytes).sum(),
            });
            for info in held.iter().filter(|info| !moved.contains(&info.unit)) {
                let Ok(volume) = self.volumes.get(info.unit.volume).await else {
                    continue; // Not the ledger's: a leftover, or another's.
                };
                let is_there = volume.disks.get(usize::from(info.unit.index)) == Some(&disk.id);
                if is_there && volume.incomplete.is_empty() {
                    units.push(Movable {
                        unit: info.unit,
                        disk: disk.id,
                        bytes: info.live_bytes,
                    });
                }
            }
        }
        let volumes: HashMap<u64, Arc<Volume>> = self.volumes.all().into_iter().map(|v| (v.id, v)).collect();
        let widths: HashSet<usize> = volumes.values().map(|v| v.disks.len()).collect();
        let levels = widths.into_iter().map(|width| (width, self.disks.level(width)));
        let levels: HashMap<usize, Level> = levels.collect();
        let disks: HashMap<DiskId, Arc<Disk>> = self.disks.all().iter().map(|d| (d.id, d.clone())).collect();
        let planned = off_reactor(move || {
            let may_take = |unit: UnitId, to: DiskId, moved: &HashMap<UnitId, DiskId>| {
                let Some(volume) = volumes.get(&unit.volume) else {
                    return false;
                };
                let at = |index: u8| moved.get(&volume.unit(index)).copied();
                let others = (0..).zip(&volume.disks).filter(|(index, _)| *index != unit.index);
                let others = others.map(|(index, disk)| at(index).unwrap_or(*disk));
                let disk = |id| disks.get(&id).cloned();
                may_take(disk, levels[&volume.disks.len()], others, to)
            };
            plan(loads, units, within, moves_max, may_take)
        });
        planned.await
    }

    /// The rebalancing that is asked for, if one is.
    pub async fn rebalance_asked(&self) -> Result<Option<RebalanceRow>> {
        let found = self.ledger.get::<RebalanceRow>(key::rebalance()).await?;
        Ok(found.map(|found| found.row))
    }

    /// Asks for it, or with nothing ends it.
    pub async fn ask_rebalance(&self, wanted: Option<RebalanceRow>) -> Result<()> {
        let commit = match &wanted {
            Some(row) => CommitBuilder::new().put(key::rebalance(), row),
            None => CommitBuilder::new().delete(key::rebalance()),
        };
        self.ledger.commit(self.lease.fence(commit).build()).await?;
        if wanted.is_none() {
            self.relocations.clear();
        }
        Ok(())
    }

    /// Units on their way to another disk because of it.
    pub fn relocating(&self) -> usize {
        self.relocations.count()
    }
}

/// The same, of any disks.
fn may_take(
    disk: impl Fn(DiskId) -> Option<Arc<Disk>>,
    level: Level,
    others: impl IntoIterator<Item = DiskId>,
    to: DiskId,
) -> bool {
    let Some(target) = disk(to).filter(|disk| disk.writable()) else {
        return false;
    };
    let mut taken = others.into_iter().filter_map(|id| Some(disk(id)?.domain(level)));
    taken.all(|domain| domain != target.domain(level))
}

/// See the module.
pub struct Rebalance {
    objects: Arc<Objects>,
    moved: Mutex<HashSet<UnitId>>,
}

impl Rebalance {
    /// For one gateway.
    pub fn new(objects: Arc<Objects>) -> Rebalance {
        Rebalance {
            objects,
            moved: Mutex::default(),
        }
    }

    /// Forgets the units that have arrived, or cannot go where they were to.
    async fn settle(&self) -> Result<()> {
        let on_their_way: Vec<UnitId> = self.objects.relocations.units();
        for unit in on_their_way {
            let volume = self.objects.volumes.get(unit.volume).await?;
            let disk = self.objects.disks.get(volume.disks[usize::from(unit.index)]);
            let is_served = disk.is_some_and(|disk| disk.health == Health::Online);
            if !is_served || self.objects.relocation(&volume, unit.index).is_none() {
                self.objects.relocations.remove(unit);
            }
        }
        Ok(())
    }

    fn moved(&self) -> MutexGuard<'_, HashSet<UnitId>> {
        self.moved.lock().unwrap_or_else(|e| e.into_inner())
    }
}

#[async_trait::async_trait]
impl Worker for Rebalance {
    fn name(&self) -> &'static str {
        "rebalance"
    }

    fn rest(&self) -> Duration {
        Duration::from_secs(1)
    }

    async fn step(&self) -> Result<Step> {
        let Some(asked) = self.objects.rebalance_asked().await? else {
            self.moved().clear();
            return Ok(Step::Idle);
        };
        self.settle().await?;
        if self.objects.relocating() > 0 {
            return Ok(Step::Idle);
        }
        let moved = self.moved().clone();
        let within = f64::from(asked.within_permille) / 1_000.0;
        let plan = self.objects.plan_rebalance(within, MOVES_AT_ONCE, &moved).await?;
        if plan.moves.is_empty() {
            self.objects.ask_rebalance(None).await?;
            tracing::info!(
                units = moved.len(),
                spread_percent = plan.spread_now * 100.0,
                "rebalanced"
            );
            return Ok(Step::Worked);
        }
        self.moved().extend(plan.moves.iter().map(|m| m.unit));
        let moves = plan.moves.iter().map(|m| (m.unit, m.to));
        self.objects.relocations.extend(moves);
        Ok(Step::Worked)
    }
}
