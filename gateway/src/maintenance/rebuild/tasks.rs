//! What is to be done: which units are not where they should be, or not whole there, and whose turn it is.

use crate::cluster::disks::{Health, Level};
use crate::ledger::model::Membership;
use crate::object::Objects;
use crate::placement::volumes::Volume;
use std::collections::HashSet;
use std::sync::Arc;
use storage_node::protocol::DiskId;

/// What is to be done with a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// Its disk is gone: another one.
    Move,
    /// It is on its new disk, and not whole.
    Fill,
    /// Its disk is to go, or it is to be on an emptier one: a copy elsewhere first.
    Drain,
}

/// One unit, and what it needs.
pub struct Task {
    /// Losses that its volume survives from now on; fewer come first.
    pub spare: i64,
    /// Its volume.
    pub volume: Arc<Volume>,
    /// Which of its units.
    pub index: u8,
    /// What is to be done.
    pub need: Need,
    /// Whether its volume can be decoded from what is there.
    pub decodable: bool,
}

impl Objects {
    /// What a unit needs, if it needs anything.
    pub fn need(&self, volume: &Volume, index: u8) -> Option<Need> {
        let is_crowded = || self.crowded(volume) == Some(index);
        self.need_of_disk(volume, index)
            .or_else(|| is_crowded().then_some(Need::Drain))
    }

    /// A unit that shares its machine with another one of its volume, and could be on one that has none of them. The ledger places none
    /// so; one that was accepted or restored takes units where disks have them.
    fn crowded(&self, volume: &Volume) -> Option<u8> {
        let machine = |id: &DiskId| self.disks.get(*id).map_or(id.0, |disk| disk.domain(Level::Node));
        let mut seen = HashSet::new();
        let shared = volume.disks.iter().position(|disk| !seen.insert(machine(disk)))?;
        let index = u8::try_from(shared).ok()?;
        let mut targets = self.volumes.targets(volume.scheme).into_iter();
        targets
            .any(|target| self.may_take(volume, index, target.disk))
            .then_some(index)
    }

    fn need_of_disk(&self, volume: &Volume, index: u8) -> Option<Need> {
        let disk = self.disks.get(*volume.disks.get(usize::from(index))?);
        let Some(disk) = disk else { return Some(Need::Move) };
        match (disk.membership, &disk.health) {
            (Membership::Out | Membership::Absent, _) => Some(Need::Move),
            (_, Health::Online) if !volume.is_whole(index) => Some(Need::Fill),
            (Membership::Draining, Health::Online) => Some(Need::Drain),
            (_, Health::Online) => self.relocation(volume, index).map(|_| Need::Drain),
            _ => None,
        }
    }

    /// Which units of a volume are not where they should be, or not whole there.
    fn needs(&self, volume: &Volume) -> Vec<(u8, Need)> {
        let indices = 0..volume.disks.len() as u8;
        let needs = indices.filter_map(|index| Some((index, self.need_of_disk(volume, index)?)));
        let needs: Vec<(u8, Need)> = needs.collect();
        match needs.is_empty() {
            false => needs,
            true => self
                .crowded(volume)
                .map(|index| (index, Need::Drain))
                .into_iter()
                .collect(),
        }
    }

    /// How many units are to be made whole on another disk, and about how many bytes they have.
    pub fn to_rebuild(&self) -> (usize, u64) {
        self.volumes.all().iter().fold((0, 0), |(units, bytes), volume| {
            let needs = self.needs(volume).len();
            (units + needs, bytes + needs as u64 * volume.used_bytes())
        })
    }

    /// Everything that is to be done, most endangered first.
    pub fn rebuild_tasks(&self) -> Vec<Task> {
        let mut tasks = Vec::new();
        for volume in self.volumes.all() {
            let needs = self.needs(&volume);
            if needs.is_empty() {
                continue;
            }
            let (spare, decodable) = self.spare(&volume, &[]);
            tasks.extend(needs.into_iter().map(|(index, need)| Task {
                spare,
                volume: volume.clone(),
                index,
                need,
                decodable,
            }));
        }
        tasks.sort_by_key(|task| (task.need == Need::Drain, task.spare, task.volume.id, task.need));
        tasks
    }
}
