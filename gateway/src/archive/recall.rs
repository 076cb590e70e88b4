//! What the archive knows of parts of a ledger, as they were at one commit.
//!
//! A snapshot is scanned while commits go on: at its end it is right, before that it may show a row later than it was. What a row was at a
//! commit in between is known if a commit before it and in the log wrote it, or the scan saw it as it was, or nothing touched it until the
//! end of the scan. Else it is not known, and neither is its part.
//!
//! Invariants:
//! - A part is answered whole, or not at all: a row that is not in the answer was not there at that commit.
//! - Of several histories only the one is believed that the caller names by who wrote it, or that has the rows and commits which are left to
//!   the caller.
//! - Entries are read one after the other; in memory is what is asked for, and no more than a bound of it.

use super::chain::{Chain, Plan, chains, until_commit};
use super::entry::{Digest, Header, Kind, Writer, parse_log, parse_rows};
use super::finding::{Finder, Places};
use super::replay::{Bodies, groups, joined};
use crate::ledger::redb::offline::{KnownRows, LostCommits, LostRows};
use crate::ledger::store::{Gap, Mutation, Row, Versioned};
use bytes::Bytes;
use std::collections::{BTreeMap, HashSet};
use tokio::runtime::Handle;

/// The most bytes of rows that are kept; a part that has more is for a restore.
const BYTES_MAX: usize = 256 << 20;
/// What a row takes besides its bytes, about.
const ROW_OVERHEAD: usize = 160;

/// What is asked.
pub struct Asked<'a> {
    /// Parts of the key space, in the order of their keys, none in another.
    pub parts: &'a [Gap],
    /// The commit.
    pub position: u64,
    /// Rows that the ledger has at that commit, and the archive must have.
    pub witnesses: &'a [Row],
    /// The last commits up to there, without a gap, that the ledger itself still has: the archive may lack them, or must have the same.
    pub later: &'a [(u64, Vec<Mutation>)],
    /// Who writes the archive now; none if that is not known.
    pub writer: Option<Writer>,
}

/// Why nothing is known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecallError {
    /// No chain of entries is of this ledger's history and goes so far.
    #[error("the archive does not have the ledger as it was at commit {0}")]
    NotThere(u64),
    /// It has other rows where the ledger's can be read.
    #[error("the archive is of another history of this ledger")]
    OtherHistory,
    /// The ledger has nothing left of its log, after the loss, that the archive could be known by.
    #[error(
        "nothing is left of the ledger's log after the loss to know its archive by: a restore from the disks has what that has"
    )]
    NothingToCompare,
    /// It is too much.
    #[error("more is damaged than can be repaired row by row: restore the ledger")]
    TooMuch,
}

/// What the archive on some disks has, for a repair of a ledger that nobody has open. To be asked off the reactor.
pub struct FromArchive {
    /// Reads the disks.
    pub finder: Finder,
    /// What was found on them.
    pub found: Vec<(Header, Places)>,
    /// Where reading is done.
    pub runtime: Handle,
}

impl LostRows for FromArchive {
    fn rows_of(&self, parts: &[Gap], known: &KnownRows) -> Result<Vec<Option<Vec<Row>>>, String> {
        let asked = Asked {
            parts,
            position: known.position,
            witnesses: &known.witnesses,
            later: &known.last_commits,
            writer: None,
        };
        let recalled = recall(&self.found, &asked, &self.finder);
        self.runtime.block_on(recalled).map_err(|error| error.to_string())
    }

    fn commits_of(&self, lost: &LostCommits, known: &[Logged]) -> Result<Vec<Logged>, String> {
        let recalled = recall_commits(&self.found, lost, known, &self.finder);
        self.runtime.block_on(recalled).map_err(|error| error.to_string())
    }
}

/// A commit, and its version.
type Logged = (u64, Vec<Mutation>);

/// Commits that a ledger's own log lost, from the first on without a gap, as far as the archive has them. It is believed if it has a later
/// one that the log still has, and none that is another one there. An earlier one alone says nothing: a copy of the ledger that went on by
/// itself has that, too.
pub async fn recall_commits<T: Clone + Send + Sync>(
    found: &[(Header, T)],
    lost: &LostCommits,
    known: &[Logged],
    bodies: &impl Bodies<T>,
) -> Result<Vec<Logged>, RecallError> {
    let known: BTreeMap<u64, &Vec<Mutation>> = known.iter().map(|(version, own)| (*version, own)).collect();
    let last = lost.last.unwrap_or(u64::MAX);
    let from = known.keys().next().map_or(lost.first, |own| lost.first.min(*own));
    let until = known.keys().next_back().map_or(last, |own| last.max(*own));
    let mut failure = RecallError::NotThere(lost.first);
    for ours in chains(found, &HashSet::new()) {
        let is_asked = |(header, _): &&(Header, T)| {
            header.kind == Kind::Log && header.last >= from && header.first <= until
        };
        let log: Chain<T> = ours.iter().filter(is_asked).cloned().collect();
        let (mut commits, mut bytes) = (BTreeMap::new(), 0);
        let (mut is_vouched_for, mut is_other) = (false, false);
        for group in groups(&log) {
            let header = &group[0].0;
            // What cannot be read is a gap.
            let Ok(body) = joined(group, bodies).await else {
                continue;
            };
            bytes += body.len();
            if bytes > BYTES_MAX {
                return Err(RecallError::TooMuch);
            }
            for (version, mutations) in parse_log(body, header.first, header.last).unwrap_or_default() {
                match known.get(&version) {
                    Some(own) if **own == mutations => is_vouched_for |= version > lost.first,
                    Some(_) => is_other = true,
                    None => _ = commits.insert(version, mutations),
                }
            }
        }
        if is_other {
            failure = RecallError::OtherHistory;
            continue;
        }
        let run = (lost.first..=last).map_while(|version| Some((version, commits.remove(&version)?)));
        let run: Vec<Logged> = run.collect();
        match (is_vouched_for, run.is_empty()) {
            (true, false) => return Ok(run),
            (false, false) => failure = RecallError::NothingToCompare,
            (_, true) => {}
        }
    }
    Err(failure)
}

/// The rows of each part at that commit; none of one of which that is not known.
pub async fn recall<T: Clone + Send + Sync>(
    found: &[(Header, T)],
    asked: &Asked<'_>,
    bodies: &impl Bodies<T>,
) -> Result<Vec<Option<Vec<Row>>>, RecallError> {
    let mut failure = RecallError::NotThere(asked.position);
    for ours in chains(found, &HashSet::new()) {
        let newest = ours.last().map(|(header, _)| header.writer);
        if asked.writer.is_some_and(|writer| newest != Some(writer)) {
            continue;
        }
        match of_history(&ours, asked, bodies).await {
            Ok(rows) => return Ok(rows),
            Err(RecallError::NotThere(_)) => {}
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// Tries what there is of one history, without what cannot be read.
async fn of_history<T: Clone + Send + Sync>(
    ours: &Chain<T>,
    asked: &Asked<'_>,
    bodies: &impl Bodies<T>,
) -> Result<Vec<Option<Vec<Row>>>, RecallError> {
    let mut unusable: HashSet<Digest> = HashSet::new();
    loop {
        let usable = chains(ours, &unusable);
        let later = asked.later.first().map(|(version, _)| version.saturating_sub(1));
        let at_least = later.unwrap_or(asked.position).min(asked.position);
        let plan = usable
            .iter()
            .find_map(|chain| until_commit(chain, asked.position, at_least));
        let plan = plan.ok_or(RecallError::NotThere(asked.position))?;
        match of_plan(&plan, asked, bodies).await? {
            Ok(known) => return known.answer(asked),
            // An entry is given up once, so this ends.
            Err(unreadable) => _ = unusable.insert(unreadable),
        }
    }
}

/// The digest of the entry that cannot be read, inside.
async fn of_plan<T: Clone + Send + Sync>(
    plan: &Plan<T>,
    asked: &Asked<'_>,
    bodies: &impl Bodies<T>,
) -> Result<Result<Known, Digest>, RecallError> {
    let mut known = Known::new(asked);
    let own: BTreeMap<u64, &Vec<Mutation>> = asked
        .later
        .iter()
        .map(|(version, mutations)| (*version, mutations))
        .collect();
    for group in groups(&plan.pieces) {
        let body = match joined(group, bodies).await {
            Ok(body) => body,
            Err(unreadable) => return Ok(Err(unreadable)),
        };
        let Some(rows) = parse_rows(body) else {
            return Ok(Err(group[0].0.digest()));
        };
        for row in rows {
            known.scanned(row)?;
        }
    }
    for group in groups(&plan.log) {
        let header = &group[0].0;
        let body = match joined(group, bodies).await {
            Ok(body) => body,
            Err(unreadable) => return Ok(Err(unreadable)),
        };
        let Some(commits) = parse_log(body, header.first, header.last) else {
            return Ok(Err(header.digest()));
        };
        for (version, mutations) in commits {
            if let Some(own) = own.get(&version) {
                if **own != mutations {
                    return Err(RecallError::OtherHistory);
                }
                known.is_vouched_for = true;
            }
            if version > plan.end.0.first && version <= asked.position.max(plan.end.0.last) {
                for mutation in mutations {
                    known.committed(version, mutation)?;
                }
            }
        }
    }
    for (version, mutations) in asked.later.iter().filter(|(version, _)| *version > plan.position) {
        for mutation in mutations {
            known.committed(*version, mutation.clone())?;
        }
    }
    Ok(Ok(known))
}

/// What is known so far of the keys that are asked for.
struct Known {
    parts: Vec<Gap>,
    witnesses: HashSet<Bytes>,
    position: u64,
    /// By key: what it was at the commit.
    rows: BTreeMap<Bytes, Option<Versioned>>,
    /// Keys of which the snapshot and the log do not say it.
    unknown: HashSet<Bytes>,
    bytes: usize,
    /// The archive has a commit that the ledger's own log has, too.
    is_vouched_for: bool,
}

impl Known {
    fn new(asked: &Asked<'_>) -> Known {
        Known {
            parts: asked.parts.to_vec(),
            witnesses: asked.witnesses.iter().map(|row| row.key.clone()).collect(),
            position: asked.position,
            rows: BTreeMap::new(),
            unknown: HashSet::new(),
            bytes: 0,
            is_vouched_for: false,
        }
    }

    fn part_of(&self, key: &Bytes) -> Option<usize> {
        part_of(&self.parts, key)
    }

    fn is_wanted(&self, key: &Bytes) -> bool {
        self.part_of(key).is_some() || self.witnesses.contains(key)
    }

    fn put(&mut self, key: Bytes, row: Option<Versioned>) -> Result<(), RecallError> {
        let bytes_of = |row: &Option<Versioned>| {
            ROW_OVERHEAD + key.len() + row.as_ref().map_or(0, |row| row.value.len())
        };
        self.bytes += bytes_of(&row);
        self.bytes -= self.rows.get(&key).map_or(0, bytes_of);
        // Bytes of a body would keep all of it in memory.
        let row = row.map(|row| Versioned {
            value: Bytes::copy_from_slice(&row.value),
            ..row
        });
        self.rows.insert(Bytes::copy_from_slice(&key), row);
        match self.bytes > BYTES_MAX {
            true => Err(RecallError::TooMuch),
            false => Ok(()),
        }
    }

    fn scanned(&mut self, row: Row) -> Result<(), RecallError> {
        // A later one is in the log, too.
        match self.is_wanted(&row.key) && row.versioned.version <= self.position {
            true => self.put(row.key, Some(row.versioned)),
            false => Ok(()),
        }
    }

    /// Commits come in the order of their versions.
    fn committed(&mut self, version: u64, mutation: Mutation) -> Result<(), RecallError> {
        let (key, value) = match mutation {
            Mutation::Put { key, value } => (key, Some(value)),
            Mutation::Delete { key } => (key, None),
        };
        if !self.is_wanted(&key) {
            return Ok(());
        }
        if version <= self.position {
            return self.put(key, value.map(|value| Versioned { version, value }));
        }
        if !self.rows.contains_key(&key) {
            self.unknown.insert(Bytes::copy_from_slice(&key));
        }
        Ok(())
    }

    fn answer(self, asked: &Asked<'_>) -> Result<Vec<Option<Vec<Row>>>, RecallError> {
        let is_known = |row: &&Row| !self.unknown.contains(&row.key);
        let known: Vec<&Row> = asked.witnesses.iter().filter(is_known).collect();
        let is_there = |row: &&Row| self.rows.get(&row.key) == Some(&Some(row.versioned.clone()));
        let is_vouched_for = asked.writer.is_some() || self.is_vouched_for || !known.is_empty();
        if !is_vouched_for || !known.iter().all(is_there) {
            return Err(RecallError::OtherHistory);
        }
        let mut answer: Vec<Option<Vec<Row>>> = vec![Some(Vec::new()); self.parts.len()];
        for key in &self.unknown {
            if let Some(part) = part_of(&self.parts, key) {
                answer[part] = None;
            }
        }
        for (key, row) in self.rows {
            let part = part_of(&self.parts, &key);
            if let (Some(versioned), Some(Some(rows))) = (row, part.map(|part| &mut answer[part])) {
                rows.push(Row { key, versioned });
            }
        }
        Ok(answer)
    }
}

fn part_of(parts: &[Gap], key: &Bytes) -> Option<usize> {
    let at = parts.partition_point(|part| part.start <= *key).checked_sub(1)?;
    let is_inside = parts[at].end.as_ref().is_none_or(|end| key < end);
    is_inside.then_some(at)
}

#[cfg(test)]
mod tests;
