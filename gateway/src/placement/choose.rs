//! Chooses the disks of a new volume: a pure function of a snapshot of the topology and a seed.
//!
//! Weighted random order without replacement (Efraimidis and Spirakis, "Weighted random sampling with a reservoir",
//! 2006): disk i gets the key u^(1/w), w being its free bytes, and the greatest keys win. So disks fill by weight,
//! every group of disks can come out (declustering), and the order is random too, which spreads parity. Among disks with
//! different numbers of open units the number decides first; of the two that come first, the one that is less full is taken
//! (Mitzenmacher, "The power of two choices in randomized load balancing", 2001), which keeps them within a few percent.

use rand::{Rng, SeedableRng};
use std::collections::HashSet;
use storage_node::protocol::DiskId;

/// A disk that a new volume could use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The disk.
    pub disk: DiskId,
    /// Its failure domain; no two units of a volume share one.
    pub domain: u128,
    /// Its weight: bytes free.
    pub free_bytes: u64,
    /// Bytes in all.
    pub capacity_bytes: u64,
    /// Units on it of volumes that are open for the same scheme: disks with the fewest come first, so that the
    /// volumes that take new blobs at any moment load all disks alike.
    pub open_units: u32,
}

/// The distinct failure domains among the candidates.
pub fn domains(candidates: &[Candidate]) -> usize {
    candidates.iter().map(|c| c.domain).collect::<HashSet<_>>().len()
}

/// Chooses `count` disks in distinct failure domains, or none if there are too few. The same input and seed give the
/// same answer, whatever the order of the candidates.
pub fn choose(candidates: &[Candidate], count: usize, seed: u64) -> Option<Vec<DiskId>> {
    let mut sorted: Vec<&Candidate> = candidates.iter().collect();
    sorted.sort_by_key(|c| c.disk);
    let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
    let mut keyed: Vec<(f64, &Candidate)> = sorted
        .into_iter()
        .map(|c| (rng.random::<f64>().ln() / c.free_bytes.max(1) as f64, c))
        .collect();
    keyed.sort_by(|a, b| a.1.open_units.cmp(&b.1.open_units).then(b.0.total_cmp(&a.0)));
    let mut used = HashSet::new();
    let mut chosen = Vec::with_capacity(count);
    for alike in keyed.chunk_by(|a, b| a.1.open_units == b.1.open_units) {
        // Of two the one that is less full; those that were passed over come before disks with more open units.
        let fullest_last = |pair: &[(f64, &'_ Candidate)]| match pair {
            [(_, one), (_, two)] if two.fullness() < one.fullness() => [1, 0],
            _ => [0, 1],
        };
        for place in 0..2 {
            for pair in alike.chunks(2) {
                let Some((_, candidate)) = pair.get(fullest_last(pair)[place]) else {
                    continue;
                };
                if chosen.len() < count && used.insert(candidate.domain) {
                    chosen.push(candidate.disk);
                }
            }
        }
    }
    (chosen.len() == count).then_some(chosen)
}

impl Candidate {
    /// The share of it that is used.
    fn fullness(&self) -> f64 {
        1.0 - self.free_bytes as f64 / self.capacity_bytes.max(1) as f64
    }
}

/// Chooses the disk of one unit of a volume whose other units are in these failure domains.
pub fn choose_one(candidates: &[Candidate], taken: &HashSet<u128>, seed: u64) -> Option<DiskId> {
    let free: Vec<Candidate> = candidates
        .iter()
        .filter(|c| !taken.contains(&c.domain))
        .cloned()
        .collect();
    choose(&free, 1, seed)?.pop()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disks(weights: &[u64]) -> Vec<Candidate> {
        let make = |(i, &free_bytes)| Candidate {
            disk: DiskId(i as u128),
            domain: i as u128,
            free_bytes,
            capacity_bytes: free_bytes,
            open_units: 0,
        };
        weights.iter().enumerate().map(make).collect()
    }

    #[test]
    fn domains_are_distinct_and_order_does_not_matter() {
        let mut candidates = disks(&[100; 12]);
        for c in &mut candidates {
            c.domain /= 2;
        }
        for seed in 0..200 {
            let chosen = choose(&candidates, 6, seed).expect("six domains");
            let distinct: HashSet<u128> = chosen.iter().map(|d| d.0 / 2).collect();
            assert_eq!(distinct.len(), 6);
            let mut reversed = candidates.clone();
            reversed.reverse();
            assert_eq!(choose(&reversed, 6, seed), Some(chosen));
        }
        assert_eq!(choose(&candidates, 7, 1), None);
    }

    #[test]
    fn disks_fill_by_weight() {
        let candidates = disks(&[300, 100, 100, 100, 100, 100, 100, 100]);
        let mut picked = [0u32; 8];
        for seed in 0..8_000 {
            for disk in choose(&candidates, 1, seed).expect("one") {
                picked[disk.0 as usize] += 1;
            }
        }
        assert!((2_200..2_600).contains(&picked[0]), "{picked:?}");
        assert!(picked[1..].iter().all(|n| (600..1_000).contains(n)), "{picked:?}");
    }

    #[test]
    fn open_volumes_load_all_disks_alike() {
        let mut candidates = disks(&[100; 6]);
        for seed in 0..4 {
            for disk in choose(&candidates, 3, seed).expect("three") {
                candidates[disk.0 as usize].open_units += 1;
            }
        }
        assert!(candidates.iter().all(|c| c.open_units == 2), "{candidates:?}");
    }

    const UNIT: u64 = 1 << 30;

    /// Disks of these sizes, in units, eight to a machine.
    fn machines(sizes: impl Iterator<Item = u64>) -> Vec<Candidate> {
        let make = |(n, size): (usize, u64)| Candidate {
            disk: DiskId(n as u128),
            domain: n as u128 / 8,
            free_bytes: size * UNIT,
            capacity_bytes: size * UNIT,
            open_units: 0,
        };
        sizes.enumerate().map(make).collect()
    }

    /// The disks of one more volume of six units, on six machines.
    fn place(candidates: &mut [Candidate], seed: u64) -> Vec<DiskId> {
        let chosen = choose(candidates, 6, seed).expect("room");
        let domains: HashSet<u128> = chosen.iter().map(|disk| disk.0 / 8).collect();
        assert_eq!(domains.len(), 6, "{chosen:?}");
        for disk in &chosen {
            candidates[disk.0 as usize].free_bytes -= UNIT;
        }
        chosen
    }

    /// A thousand disks of three sizes, sixteen of them new when half of it is written; 100,000 volumes.
    #[test]
    fn a_large_cluster_fills_evenly() {
        const VOLUMES: u64 = 100_000;
        let mut candidates = machines((0..1_000).map(|n| [500, 1_000, 2_000][n % 3]));
        let late = candidates.split_off(984);
        for seed in 0..VOLUMES {
            if seed == VOLUMES / 2 {
                candidates.extend(late.iter().cloned());
            }
            place(&mut candidates, seed);
        }
        let (old, new) = candidates.split_at(984);
        let mean = old.iter().map(Candidate::fullness).sum::<f64>() / old.len() as f64;
        for candidate in old {
            let off = (candidate.fullness() - mean).abs();
            assert!(off <= 0.05 * mean, "{} of {mean}", candidate.fullness());
        }
        for candidate in new {
            assert!(
                candidate.fullness() > 0.5 * mean,
                "{} of {mean}",
                candidate.fullness()
            );
        }
    }

    #[test]
    fn what_one_disk_holds_is_rebuilt_by_nearly_all_others() {
        const DISKS: usize = 1_000;
        let mut candidates = machines((0..DISKS).map(|_| 1_000));
        let mut of_disk = vec![HashSet::new(); DISKS];
        for seed in 0..100_000 {
            let chosen = place(&mut candidates, seed);
            for disk in &chosen {
                let others = chosen.iter().filter(|other| *other != disk);
                of_disk[disk.0 as usize].extend(others.map(|other| other.0));
            }
        }
        // Others of its own machine share no volume with it.
        let least = of_disk.iter().map(HashSet::len).min().unwrap_or(0);
        assert!(least * 10 >= (DISKS - 1) * 9, "{least} others");
        let fullness = candidates.iter().map(Candidate::fullness);
        assert!(fullness.clone().all(|full| (0.57..=0.63).contains(&full)));
    }

    #[test]
    fn every_position_is_spread() {
        let candidates = disks(&[100; 6]);
        let mut first = [0u32; 6];
        for seed in 0..6_000 {
            first[choose(&candidates, 6, seed).expect("all")[5].0 as usize] += 1;
        }
        assert!(first.iter().all(|n| (850..1_150).contains(n)), "{first:?}");
    }
}
