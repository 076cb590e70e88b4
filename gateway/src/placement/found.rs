//! Where units are by what disks say, for a ledger that is behind them: since it was copied, units moved.
//!
//! Of a unit the disk counts that has shards of it under the greatest epoch; of several, the one with the most shards, then the one that
//! the row names. A unit that no disk shows stays where the row has it: its disk may be away.
//! Invariant: pure. What comes of it is where to read, and in a plan that an operator accepts where units are from then on.

use std::collections::HashMap;
use storage_node::protocol::{DiskId, SYSTEM_VOLUME_MIN, UnitInfo};

/// What disks say of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FoundVolume {
    /// The greatest epoch that any disk knows of it.
    pub epoch: u32,
    /// The disks that show each unit, by its index.
    units: HashMap<u8, Vec<Holder>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Holder {
    disk: DiskId,
    epoch: u32,
    shards: u64,
}

/// What disks say, by volume; volumes of the system are left out.
pub fn by_volume(disks: impl IntoIterator<Item = (DiskId, Vec<UnitInfo>)>) -> HashMap<u64, FoundVolume> {
    let mut found: HashMap<u64, FoundVolume> = HashMap::new();
    for (disk, units) in disks {
        for info in units.iter().filter(|info| info.unit.volume < SYSTEM_VOLUME_MIN) {
            let volume = found.entry(info.unit.volume).or_default();
            volume.epoch = volume.epoch.max(info.epoch);
            volume.units.entry(info.unit.index).or_default().push(Holder {
                disk,
                epoch: info.epoch,
                shards: info.shards,
            });
        }
    }
    found
}

impl FoundVolume {
    /// The disks of a volume whose row has these.
    pub fn disks(&self, row: &[DiskId]) -> Vec<DiskId> {
        let place = |(index, named): (usize, &DiskId)| {
            let holders = u8::try_from(index).ok().and_then(|index| self.units.get(&index));
            let holders = holders.into_iter().flatten().filter(|holder| holder.shards > 0);
            let best = holders.max_by_key(|holder| (holder.epoch, holder.shards, holder.disk == *named));
            best.map_or(*named, |best| best.disk)
        };
        row.iter().enumerate().map(place).collect()
    }

    /// Shards that disks have of it.
    pub fn shards(&self) -> u64 {
        self.units.values().flatten().map(|holder| holder.shards).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use storage_node::protocol::UnitId;

    fn info(volume: u64, index: u8, epoch: u32, shards: u64) -> UnitInfo {
        UnitInfo {
            unit: UnitId { volume, index },
            epoch,
            shards,
            live_bytes: shards,
        }
    }

    #[test]
    fn a_unit_is_where_the_newest_epoch_has_shards_of_it() {
        let disks = [1, 2, 3, 4, 5].map(DiskId);
        let [a, b, c, d, e] = disks;
        let found = by_volume([
            (a, vec![info(7, 0, 1, 10), info(7, 1, 9, 0)]),
            (b, vec![info(7, 1, 1, 10), info(SYSTEM_VOLUME_MIN, 0, 99, 1)]),
            // Unit 2 moved from c to d, and then there is what a move to e left behind.
            (c, vec![info(7, 2, 1, 10)]),
            (d, vec![info(7, 2, 3, 10), info(8, 0, 2, 4)]),
            (e, vec![info(7, 2, 3, 4)]),
        ]);
        assert_eq!(found.len(), 2);
        assert_eq!(found[&7].epoch, 9);
        assert_eq!(found[&7].disks(&[a, b, c]), [a, b, d]);
        assert_eq!(
            found[&7].disks(&[a, b, c, e]),
            [a, b, d, e],
            "what nobody shows stays"
        );
        assert_eq!(found[&8].shards(), 4);
    }
}
