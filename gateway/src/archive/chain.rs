//! Which of the entries that were found make a ledger. Pure.
//!
//! Entries that follow each other by number and digest are a chain. The newest end whose chain has a complete snapshot decides; what is
//! replayed is that snapshot and the log from where it began, as far as it goes without a gap.
//!
//! Invariant: an entry is used only if every entry between it and the snapshot's first one is there, as the one after it names it.

use super::entry::{Digest, Header, Kind, Writer};
use crate::clock::rfc3339;
use std::collections::{HashMap, HashSet};
use std::fmt;

/// Why no ledger can be made of what was found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// There are no entries.
    #[error("there is no archive of this cluster on these disks")]
    Nothing,
    /// There are entries, and no snapshot that is whole together with the log that it needs.
    #[error(
        "the archive has {entries} entries, the last one number {newest}, and no complete snapshot among those that follow each other"
    )]
    NoSnapshot {
        /// How many.
        entries: usize,
        /// The greatest number.
        newest: u64,
    },
    /// The archive does not go back so far.
    #[error("the archive does not go back to that time: its oldest state is of {}", rfc3339(*oldest_ms))]
    NotSoOld {
        /// The oldest state that it has.
        oldest_ms: u64,
    },
}

/// Why not all that was found is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Loss {
    /// An entry is not there, or is damaged on all its disks, and what came after it is not used.
    Gap {
        /// The last entry that is used.
        after: u64,
        /// The newest entry that was found.
        newest: u64,
    },
    /// The log misses commits: the archive lagged too far behind then.
    Versions {
        /// The last version before.
        after: u64,
        /// The first one after.
        next: u64,
    },
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Loss::Gap { after, newest } => write!(
                f,
                "entries after number {after} cannot be used, up to {newest}: one is missing or damaged"
            ),
            Loss::Versions { after, next } => {
                write!(
                    f,
                    "the log goes on at commit {next} after {after}: what was between is not in the archive"
                )
            }
        }
    }
}

/// What makes a ledger.
#[derive(Clone, Debug)]
pub struct Plan<T> {
    /// The rows of the snapshot, in order, with whatever the caller knows of each entry.
    pub pieces: Vec<(Header, T)>,
    /// The log over them, in order.
    pub log: Vec<(Header, T)>,
    /// The entry that completed the snapshot.
    pub end: (Header, T),
    /// The position that comes of it: the version of the last commit.
    pub position: u64,
    /// When its last entry was written.
    pub at_ms: u64,
    /// Which ledger wrote the last entry.
    pub writer: Writer,
    /// What is not used.
    pub losses: Vec<Loss>,
}

/// Entries that follow each other, oldest first.
pub type Chain<T> = Vec<(Header, T)>;

/// All chains, the one with the newest end first. An entry is in the first of them that has it, and in no later one.
pub fn chains<T: Clone>(found: &[(Header, T)], unusable: &HashSet<Digest>) -> Vec<Chain<T>> {
    let mut by_digest: HashMap<Digest, usize> = HashMap::new();
    for (index, (header, _)) in found.iter().enumerate() {
        by_digest.insert(header.digest(), index);
    }
    by_digest.retain(|digest, _| !unusable.contains(digest));
    let mut order: Vec<usize> = by_digest.values().copied().collect();
    order.sort_by_key(|index| {
        let header = &found[*index].0;
        std::cmp::Reverse((header.writer.number, header.number, header.writer.nonce))
    });
    let mut used = HashSet::new();
    let mut chains = Vec::new();
    for end in order {
        let mut chain = Vec::new();
        let mut at = Some(end);
        while let Some(index) = at.filter(|index| used.insert(*index)) {
            let header = &found[index].0;
            chain.push(found[index].clone());
            let before = by_digest.get(&header.before).copied();
            at = before.filter(|before| found[*before].0.number.checked_add(1) == Some(header.number));
        }
        chain.reverse();
        if !chain.is_empty() {
            chains.push(chain);
        }
    }
    chains
}

/// Decides. `until_ms`: nothing that was written later.
pub fn choose<T: Clone>(
    found: &[(Header, T)],
    unusable: &HashSet<Digest>,
    until_ms: Option<u64>,
) -> Result<Plan<T>, ChainError> {
    let newest = found.iter().map(|(header, _)| header.number).max();
    let newest = newest.ok_or(ChainError::Nothing)?;
    let all = chains(found, unusable);
    let mut oldest_ms: Option<u64> = None;
    for chain in &all {
        for at in (0..chain.len()).rev().filter(|at| chain[*at].0.kind == Kind::End) {
            let Some(plan) = of_snapshot(chain, at, None) else {
                continue;
            };
            oldest_ms = oldest_ms.min(Some(plan.end.0.at_ms)).or(Some(plan.end.0.at_ms));
            let plan = match until_ms {
                None => Some(plan),
                Some(until) if chain[at].0.at_ms <= until => of_snapshot(chain, at, until_ms),
                Some(_) => None,
            };
            let Some(mut plan) = plan else { continue };
            let after = chain.last().map_or(0, |(header, _)| header.number);
            if until_ms.is_none() && after < newest {
                plan.losses.push(Loss::Gap { after, newest });
            }
            return Ok(plan);
        }
    }
    match oldest_ms {
        Some(oldest_ms) => Err(ChainError::NotSoOld { oldest_ms }),
        None => Err(ChainError::NoSnapshot {
            entries: found.len(),
            newest,
        }),
    }
}

/// The newest snapshot of a chain that began at a commit or before it, with the log up to there, or up to `at_least`.
pub fn until_commit<T: Clone>(chain: &Chain<T>, commit: u64, at_least: u64) -> Option<Plan<T>> {
    let ends = (0..chain.len()).rev().filter(|at| chain[*at].0.kind == Kind::End);
    let mut plans = ends
        .filter(|at| chain[*at].0.first <= commit)
        .filter_map(|at| of_snapshot(chain, at, None));
    let mut plan = plans.find(|plan| plan.position >= at_least)?;
    let needed = commit.max(plan.end.0.last);
    plan.log.retain(|(header, _)| header.first <= needed);
    Some(plan)
}

/// What a snapshot of a chain and the log over it come to, if that is enough.
fn of_snapshot<T: Clone>(chain: &Chain<T>, at: usize, until_ms: Option<u64>) -> Option<Plan<T>> {
    let end = &chain[at];
    // The numbers of a chain have no gaps: if the first one is there, all are.
    let start = chain
        .iter()
        .position(|(header, _)| header.number == end.0.snapshot)?;
    let is_piece =
        |(header, _): &&(Header, T)| header.kind == Kind::Piece && header.snapshot == end.0.snapshot;
    let pieces: Vec<_> = chain[start..at].iter().filter(is_piece).cloned().collect();
    if pieces.last().is_some_and(|(header, _)| header.more) {
        return None;
    }
    let (log, position, losses) = log_from(&chain[start..], end.0.first, until_ms);
    let newest = log
        .last()
        .into_iter()
        .chain([end])
        .max_by_key(|(header, _)| header.number)?;
    let (at_ms, writer) = (newest.0.at_ms, newest.0.writer);
    (position >= end.0.last).then(|| Plan {
        pieces,
        log,
        end: end.clone(),
        position,
        at_ms,
        writer,
        losses,
    })
}

/// The log entries whose commits follow `after` without a gap, the version of the last one, and why they go no further.
pub fn log_from<T: Clone>(
    entries: &[(Header, T)],
    after: u64,
    until_ms: Option<u64>,
) -> (Vec<(Header, T)>, u64, Vec<Loss>) {
    let (mut log, mut position, mut losses) = (Vec::new(), after, Vec::new());
    // What was cut counts once its last part is there.
    let mut parts: Vec<(Header, T)> = Vec::new();
    let mut seen = 0;
    for entry in entries.iter().filter(|(header, _)| header.kind == Kind::Log) {
        let header = &entry.0;
        let is_back = header.first <= seen && parts.is_empty();
        seen = header.last;
        if is_back {
            // Another history.
            let (after, next) = (position, header.first);
            losses.push(Loss::Versions { after, next });
            break;
        }
        if header.last <= position && parts.is_empty() && log.is_empty() {
            continue;
        }
        if until_ms.is_some_and(|until| header.at_ms > until) {
            break;
        }
        let goes_on = match parts.first() {
            Some((part, _)) => part.first == header.first && part.last == header.last,
            // The first one may begin with what is known.
            None => header.first == position + 1 || (log.is_empty() && header.first <= position),
        };
        if !goes_on {
            let (after, next) = (position, header.first);
            losses.push(Loss::Versions { after, next });
            break;
        }
        parts.push(entry.clone());
        if !header.more {
            log.append(&mut parts);
            position = header.last;
        }
    }
    (log, position, losses)
}

#[cfg(test)]
mod tests {
    use super::*;
    use storage_node::protocol::ClusterId;

    /// Entries that follow each other, written by one ledger.
    struct Maker {
        entries: Vec<(Header, ())>,
        number: u64,
        before: Digest,
        writer: Writer,
    }

    impl Maker {
        fn new(number: u64, generation: u64) -> Maker {
            Maker {
                entries: Vec::new(),
                number,
                before: [0; 32],
                writer: Writer {
                    number: generation,
                    nonce: generation,
                },
            }
        }

        fn add(&mut self, kind: Kind, first: u64, last: u64, snapshot: u64) {
            self.number += 1;
            let header = Header {
                kind,
                more: false,
                cluster: ClusterId(1),
                writer: self.writer,
                number: self.number,
                before: self.before,
                first,
                last,
                at_ms: self.number * 1_000,
                snapshot,
                body_bytes: 0,
                body_digest: [0; 32],
            };
            self.before = header.digest();
            self.entries.push((header, ()));
        }

        fn log(&mut self, first: u64, last: u64) {
            self.add(Kind::Log, first, last, 0);
        }

        /// A snapshot of a piece, with a log entry before its end.
        fn snapshot(&mut self, after: u64, until: u64) {
            let snapshot = self.number + 1;
            self.add(Kind::Piece, after, after, snapshot);
            if until > after {
                self.log(after + 1, until);
            }
            self.add(Kind::End, after, until, snapshot);
        }
    }

    fn plan(entries: &[(Header, ())]) -> Result<Plan<()>, ChainError> {
        choose(entries, &HashSet::new(), None)
    }

    fn made() -> Maker {
        let mut maker = Maker::new(0, 1);
        maker.snapshot(0, 10);
        maker.log(11, 20);
        maker.snapshot(20, 30);
        maker.log(31, 40);
        maker.log(41, 50);
        maker
    }

    #[test]
    fn the_newest_whole_snapshot_and_all_log_after_it_are_used() {
        let entries = made().entries;
        let found = plan(&entries).unwrap();
        assert_eq!(
            (found.position, found.end.0.first, found.losses.len()),
            (50, 20, 0)
        );
        let log: Vec<u64> = found.log.iter().map(|(header, _)| header.last).collect();
        assert_eq!(log, [30, 40, 50]);
        assert_eq!(plan(&[]).err(), Some(ChainError::Nothing));
    }

    /// Every entry missing by itself: what is used never skips one.
    #[test]
    fn nothing_after_a_gap_is_used() {
        let entries = made().entries;
        for gone in 0..entries.len() {
            let mut left = entries.clone();
            let (lost, ()) = left.remove(gone);
            let wanted = match lost.number {
                1..=3 => Some(50), // Of the snapshot before.
                4 => Some(50),
                5..=6 => Some(20),
                7..=8 => Some(30),
                _ => Some(40),
            };
            let found = plan(&left).ok();
            assert_eq!(
                found.as_ref().map(|plan| plan.position),
                wanted,
                "without {}",
                lost.number
            );
        }
    }

    #[test]
    fn a_log_that_misses_commits_ends_there() {
        let mut maker = made();
        maker.log(61, 70);
        let found = plan(&maker.entries).unwrap();
        assert_eq!(
            (found.position, &found.losses[..]),
            (50, &[Loss::Versions { after: 50, next: 61 }][..])
        );
        maker.snapshot(70, 75);
        assert_eq!(plan(&maker.entries).unwrap().position, 75);
    }

    /// Another copy of the ledger went on by itself: what it wrote is never mixed with what was there.
    #[test]
    fn histories_are_not_mixed() {
        let first = made();
        let mut other = Maker::new(first.number, 2);
        other.log(46, 55);
        let mut both = first.entries.clone();
        both.extend(other.entries.clone());
        let found = plan(&both).unwrap();
        assert_eq!((found.position, found.writer.number), (50, 1));
        // As soon as it has a snapshot, the newer one counts.
        other.snapshot(55, 56);
        both.extend(other.entries.clone());
        let found = plan(&both).unwrap();
        assert_eq!((found.position, found.writer.number), (56, 2));
    }

    #[test]
    fn a_ledger_as_it_was_at_a_commit() {
        let chain = made().entries;
        for (commit, wanted) in [
            (0, Some((0, 10))), // While the snapshot was made.
            (10, Some((0, 10))),
            (15, Some((0, 20))),
            (20, Some((20, 30))),
            (30, Some((20, 30))),
            (50, Some((20, 50))),
            (51, None),
        ] {
            let found = until_commit(&chain, commit, commit).map(|plan| (plan.end.0.first, plan.log));
            let found = found.map(|(first, log)| (first, log.last().map_or(0, |(header, _)| header.last)));
            assert_eq!(found, wanted, "{commit}");
        }
        // Without the newer snapshot the older one does.
        let cut: Vec<_> = chain[..4].to_vec();
        assert_eq!(until_commit(&cut, 20, 20).map(|plan| plan.end.0.first), Some(0));
        assert!(until_commit(&chain[4..].to_vec(), 10, 10).is_none());
    }

    #[test]
    fn a_ledger_as_it_was_at_a_time() {
        let entries = made().entries;
        for (until_ms, wanted) in [
            (3_999, Some(10)),
            (4_000, Some(20)),
            (6_999, Some(30)),
            (8_500, Some(40)),
            (99_999, Some(50)),
            (2_000, None),
        ] {
            let found = choose(&entries, &HashSet::new(), Some(until_ms)).ok();
            assert_eq!(found.map(|plan| plan.position), wanted, "{until_ms}");
        }
    }
}
