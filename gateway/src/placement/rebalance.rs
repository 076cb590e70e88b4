//! Chooses which units move so that all disks are about equally full: a pure function of who holds what.
//!
//! One move after the other, from the fullest disk to the emptiest that may take the unit, until every disk is within the
//! tolerance of the mean or nothing helps.
//! Invariant: after a move the disk that gave is at least as full as the one that took. So the spread shrinks with every move, and
//! the plan ends.
//! Invariant: a unit moves at most once.

use std::collections::HashMap;
use storage_node::protocol::{DiskId, UnitId};

/// Disks on each end that are tried for one move; of very many that cannot be helped not all are looked at.
const TRIED_MAX: usize = 64;

/// A disk that may give and take.
#[derive(Clone, Debug)]
pub struct Load {
    /// Which.
    pub disk: DiskId,
    /// Bytes that it could hold.
    pub capacity_bytes: u64,
    /// Bytes of live shards.
    pub used_bytes: u64,
}

/// A unit that could move.
#[derive(Clone, Debug)]
pub struct Movable {
    /// Which.
    pub unit: UnitId,
    /// Where it is.
    pub disk: DiskId,
    /// Bytes of its live shards.
    pub bytes: u64,
}

/// A unit that is to move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// Which.
    pub unit: UnitId,
    /// Where it is to be.
    pub to: DiskId,
    /// Bytes of its live shards.
    pub bytes: u64,
}

/// What is to move, and how far from the mean fullness a disk is at most: before, and after.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// In order.
    pub moves: Vec<Move>,
    /// The greatest distance from the mean, as a share of a disk, before.
    pub spread_now: f64,
    /// And after.
    pub spread_then: f64,
}

/// Plans up to `moves_max` moves that bring every disk's fullness to within `within` (a share of a disk, 0.05 being 5 %) of the mean.
/// `may_take` says whether a unit may be on a disk when those that have moved by then are where they are to be.
pub fn plan(
    mut loads: Vec<Load>,
    units: Vec<Movable>,
    within: f64,
    moves_max: usize,
    may_take: impl Fn(UnitId, DiskId, &HashMap<UnitId, DiskId>) -> bool,
) -> Plan {
    loads.retain(|load| load.capacity_bytes > 0);
    loads.sort_by_key(|load| load.disk);
    let capacity: u64 = loads.iter().map(|load| load.capacity_bytes).sum();
    let used: u64 = loads.iter().map(|load| load.used_bytes).sum();
    let mean = used as f64 / capacity.max(1) as f64;
    let mut on_disk: HashMap<DiskId, Vec<Movable>> = HashMap::new();
    for unit in units.into_iter().filter(|unit| unit.bytes > 0) {
        on_disk.entry(unit.disk).or_default().push(unit);
    }
    for units in on_disk.values_mut() {
        units.sort_by_key(|unit| (std::cmp::Reverse(unit.bytes), unit.unit));
    }
    let mut moved = HashMap::new();
    let mut plan = Plan {
        spread_now: spread(&loads, mean),
        ..Plan::default()
    };
    while plan.moves.len() < moves_max {
        loads.sort_by(|a, b| b.fullness().total_cmp(&a.fullness()));
        let may_move = |unit, to| may_take(unit, to, &moved);
        let Some((from, at, to)) = next(&loads, &on_disk, mean, within, may_move) else {
            break;
        };
        let units = on_disk.entry(loads[from].disk).or_default();
        let unit = units.remove(at);
        moved.insert(unit.unit, loads[to].disk);
        loads[from].used_bytes = loads[from].used_bytes.saturating_sub(unit.bytes);
        loads[to].used_bytes += unit.bytes;
        plan.moves.push(Move {
            unit: unit.unit,
            to: loads[to].disk,
            bytes: unit.bytes,
        });
    }
    plan.spread_then = spread(&loads, mean);
    plan
}

/// The next move: who gives, which of its units, who takes. `loads` are sorted, the fullest first.
fn next(
    loads: &[Load],
    on_disk: &HashMap<DiskId, Vec<Movable>>,
    mean: f64,
    within: f64,
    may_move: impl Fn(UnitId, DiskId) -> bool,
) -> Option<(usize, usize, usize)> {
    for (from, giver) in loads.iter().enumerate().take(TRIED_MAX) {
        for (to, taker) in loads.iter().enumerate().rev().take(TRIED_MAX) {
            let is_off = giver.fullness() > mean + within || taker.fullness() < mean - within;
            if !is_off || taker.fullness() >= giver.fullness() {
                break; // The others are fuller still.
            }
            let helps = |unit: &Movable| {
                let left = giver.used_bytes.saturating_sub(unit.bytes) as f64 / giver.capacity_bytes as f64;
                let full = (taker.used_bytes + unit.bytes) as f64 / taker.capacity_bytes as f64;
                left >= full && may_move(unit.unit, taker.disk)
            };
            let units = on_disk.get(&giver.disk).map_or(&[][..], Vec::as_slice);
            if let Some(at) = units.iter().position(helps) {
                return Some((from, at, to));
            }
        }
    }
    None
}

impl Load {
    fn fullness(&self) -> f64 {
        self.used_bytes as f64 / self.capacity_bytes.max(1) as f64
    }
}

fn spread(loads: &[Load], mean: f64) -> f64 {
    let off = loads.iter().map(|load| (load.fullness() - mean).abs());
    off.fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};
    use std::collections::HashSet;

    fn loads(used: &[(u64, u64)]) -> Vec<Load> {
        let load = |(n, (used_bytes, capacity_bytes)): (usize, &(u64, u64))| Load {
            disk: DiskId(n as u128),
            capacity_bytes: *capacity_bytes,
            used_bytes: *used_bytes,
        };
        used.iter().enumerate().map(load).collect()
    }

    fn unit(volume: u64, disk: u128, bytes: u64) -> Movable {
        Movable {
            unit: UnitId { volume, index: 0 },
            disk: DiskId(disk),
            bytes,
        }
    }

    #[test]
    fn a_new_disk_is_filled_from_the_fullest() {
        let units = (0..8).map(|n| unit(n, u128::from(n % 2), 10)).collect();
        let plan = plan(
            loads(&[(40, 100), (40, 100), (0, 100)]),
            units,
            0.05,
            100,
            |_, _, _| true,
        );
        assert!(plan.spread_now > 0.26 && plan.spread_then <= 0.07, "{plan:?}");
        assert!(plan.moves.iter().all(|m| m.to == DiskId(2)), "{plan:?}");
        assert_eq!(plan.moves.len(), 2);
    }

    #[test]
    fn what_is_even_enough_stays() {
        let units = vec![unit(1, 0, 3)];
        let plan = plan(loads(&[(43, 100), (40, 100)]), units, 0.05, 100, |_, _, _| true);
        assert_eq!(plan.moves, []);
    }

    #[test]
    fn a_unit_that_would_only_trade_places_stays() {
        let plan = plan(
            loads(&[(50, 100), (0, 100)]),
            vec![unit(1, 0, 50)],
            0.05,
            100,
            |_, _, _| true,
        );
        assert_eq!(plan.moves, []);
    }

    /// Disks of three sizes on machines of four, volumes of four units on distinct machines, some disks new.
    #[test]
    fn a_large_cluster_becomes_even_and_domains_stay_distinct() {
        let seed = rand::random();
        println!("seed {seed}");
        let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
        const DISKS: u128 = 80;
        let mut table: Vec<(u64, u64)> = (0..DISKS)
            .map(|n| (0, [400, 800, 1_600][n as usize % 3]))
            .collect();
        let mut places: HashMap<UnitId, DiskId> = HashMap::new();
        let mut units = Vec::new();
        for volume in 0..2_000u64 {
            let mut machines = HashSet::new();
            let mut index = 0;
            while index < 4 {
                let disk = rng.random_range(0..DISKS - 8);
                if !machines.insert(disk / 4) {
                    continue;
                }
                let unit = UnitId { volume, index };
                let bytes = rng.random_range(1..4);
                places.insert(unit, DiskId(disk));
                table[disk as usize].0 += bytes;
                units.push(Movable {
                    unit,
                    disk: DiskId(disk),
                    bytes,
                });
                index += 1;
            }
        }
        let may_take = |unit: UnitId, disk: DiskId, moved: &HashMap<UnitId, DiskId>| {
            let others = (0..4).filter(|index| *index != unit.index);
            others
                .map(|index| UnitId { index, ..unit })
                .all(|other| moved.get(&other).unwrap_or(&places[&other]).0 / 4 != disk.0 / 4)
        };
        let plan = plan(loads(&table), units, 0.02, 10_000, may_take);
        assert!(
            plan.spread_now > 0.1 && plan.spread_then <= 0.02,
            "{} {}",
            plan.spread_now,
            plan.spread_then
        );
        for moved in &plan.moves {
            assert!(places.insert(moved.unit, moved.to).is_some());
        }
        for volume in 0..2_000 {
            let machines: HashSet<u128> = (0..4)
                .map(|index| places[&UnitId { volume, index }].0 / 4)
                .collect();
            assert_eq!(machines.len(), 4);
        }
        let moved: HashSet<UnitId> = plan.moves.iter().map(|m| m.unit).collect();
        assert_eq!(moved.len(), plan.moves.len(), "a unit moves once");
    }
}
