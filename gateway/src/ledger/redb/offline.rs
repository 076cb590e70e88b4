//! What can be said and done of a ledger that nobody has open: `cairn ledger check` and `repair`.
//!
//! A check reads every block against its sum, every row against its seal, the frames of the log, redb's own checksums, and whether rows
//! that name others find them. A repair builds a new ledger from all rows that verify, with what can be had of damaged parts: rows in
//! damaged pages that verify by their seals, commits of the log, and what somebody else has ([`LostRows`]).
//!
//! Invariants:
//! - A check changes no file. A repair first copies the files aside, and the new ledger comes under the name when it is whole.
//! - A repair has the ledger locked from before it reads it until the new one is in its place, as a gateway
//!   has.
//! - What cannot be read is damaged, or is why nothing is done; it is never taken for absent.
//! - What is given up is listed before it is.

use super::file::{BLOCK_BYTES, read_beside, sums_path_of};
use super::overlay::{Found, Still, read_whole};
use super::tree::{Failure, Table, Tree, damaged, unavailable, unseal};
use super::{Building, Rows, log};
use crate::ledger::key;
use crate::ledger::model::{BucketRow, ObjectRow, PartRow};
use crate::ledger::store::{Direction, Gap, KeyRange, LedgerError, Mutation, Row, Versioned};
use bytes::Bytes;
use prost::Message;
use serde::Serialize;
use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Rows at a time.
const PAGE: usize = 10_000;
/// The most of one kind that is listed.
const LISTED_MAX: usize = 10_000;
/// Rows that tell one history of a ledger from another.
const WITNESSES: usize = 64;
/// The largest page of the tree that is searched for rows when it is damaged.
const LEAF_BYTES_MAX: usize = 1 << 20;

/// Where rows that are lost may be had from.
pub trait LostRows {
    /// The rows of each of these parts of the key space as they were at this commit, none of one of which that is not known; or why
    /// nothing is. Blocks.
    fn rows_of(&self, parts: &[Gap], known: &KnownRows) -> Result<Vec<Option<Vec<Row>>>, String>;

    /// Commits that the log lost, from the first of them on, as far as they are known without a gap; or why none is. `known`: commits that
    /// the log still has; whoever has others of the same versions has another ledger's. Blocks.
    fn commits_of(&self, lost: &LostCommits, known: &[log::Logged]) -> Result<Vec<log::Logged>, String>;
}

/// Commits that a log lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostCommits {
    /// The version of the first.
    pub first: u64,
    /// The version of the last; none if it is not known how many there were.
    pub last: Option<u64>,
    /// What happened to them.
    pub why: &'static str,
}

impl std::fmt::Display for LostCommits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.last {
            Some(last) => write!(f, "commits {} to {last}{}", self.first, self.why),
            None => write!(f, "commits from {} on{}", self.first, self.why),
        }
    }
}

/// What is left of a ledger, for who has its lost rows.
#[derive(Debug, Default)]
pub struct KnownRows {
    /// The version of the last commit that the tree has.
    pub position: u64,
    /// The last rows that it has of then: who has others has another ledger's.
    pub witnesses: Vec<Row>,
    /// The last commits up to then, without a gap, as far as the log still has them.
    pub last_commits: Vec<(u64, Vec<Mutation>)>,
}

/// Nowhere.
pub struct Nowhere;

impl LostRows for Nowhere {
    fn rows_of(&self, parts: &[Gap], _: &KnownRows) -> Result<Vec<Option<Vec<Row>>>, String> {
        Ok(vec![None; parts.len()])
    }

    fn commits_of(&self, _: &LostCommits, _: &[log::Logged]) -> Result<Vec<log::Logged>, String> {
        Ok(Vec::new())
    }
}

/// What a check found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The version of the last commit in the tree.
    pub position: u64,
    /// Commits of the log that the tree has not.
    pub log_commits: u64,
    /// Blocks of the file.
    pub blocks: u64,
    /// Whether there are checksums of them.
    pub has_sums: bool,
    /// Blocks with one wrong bit, which is set right when they are read.
    pub correctable_blocks: Vec<u64>,
    /// Blocks that are not what was written. One that no row is lost by is not in use.
    pub damaged_blocks: Vec<u64>,
    /// Those of them that the disk cannot read, in use or not.
    pub unreadable_blocks: Vec<u64>,
    /// Rows that were read and verified.
    pub rows: u64,
    /// Rows and parts of the key space that cannot be read, in words.
    pub damaged: Vec<String>,
    /// Whether redb's own checksums hold.
    pub is_tree_whole: bool,
    /// What is wrong with the log.
    pub log_damage: Vec<String>,
    /// Rows that name others that are not there.
    pub references: Vec<String>,
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.damaged.is_empty()
            && self.is_tree_whole
            && self.log_damage.is_empty()
            && self.references.is_empty()
            && self.correctable_blocks.is_empty()
            && self.unreadable_blocks.is_empty()
    }
}

/// What a repair does, or did.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Plan {
    /// Rows that are kept.
    pub rows: u64,
    /// Rows of damaged pages that verify, in words.
    pub recovered: Vec<String>,
    /// Rows that were had from elsewhere,
    pub fetched: u64,
    /// parts that were whole with them,
    pub fetched_parts: u64,
    /// and why there were none, if they were asked for.
    pub not_fetched: Option<String>,
    /// Commits of the log that are taken up,
    pub commits: u64,
    /// and those of them that were had from elsewhere.
    pub fetched_commits: u64,
    /// What is given up, in words.
    pub given_up: Vec<String>,
    /// Files that the old ones are copied to.
    pub aside: Vec<PathBuf>,
    /// What of them could not be read and is zeros in the copies, in words.
    pub not_copied: Vec<String>,
    /// The version of the last commit of the new ledger.
    pub position: u64,
}

struct Opened {
    still: Still,
    tree: Tree,
    log_id: Option<log::LogId>,
    /// What the log holds, with wrong bits set right.
    log: Vec<u8>,
    /// Blocks of it that cannot be read, and are zeros in that.
    log_blocks_lost: usize,
    /// The log has commits that the tree has not.
    log_matters: bool,
    position: u64,
}

fn open(path: &Path) -> Result<Opened, LedgerError> {
    let failed = |error: std::io::Error| unavailable(path, &error);
    let before = Still::open(path).map_err(failed)?;
    let tree = Tree::of(Box::new(Still::open(path).map_err(failed)?))?;
    // Sums are read before the file is locked: a gateway that ended in between has left others.
    let still = Still::open(path).map_err(failed)?;
    if !still.has_sums_of(&before) {
        return Err(unavailable(
            path,
            &"it was written while it was opened: try again",
        ));
    }
    let described = tree.describe().map_err(|failure| damaged(path, &failure))?;
    let log_path = log::path_of(path);
    let log = read_whole(&log_path).map_err(|error| unavailable(&log_path, &error))?;
    let (mut log, log_blocks_lost) = log.unwrap_or_default();
    if let Some(id) = &described.log {
        log::correct(id, &mut log, described.sequence);
    }
    // Of a format before, in memory.
    tree.migrate().map_err(|failure| damaged(path, &failure))?;
    Ok(Opened {
        still,
        tree,
        log_id: described.log,
        log,
        log_blocks_lost: log_blocks_lost.len(),
        log_matters: described.log_matters,
        position: described.sequence,
    })
}

/// Whether a key is in a part.
pub(super) fn contains(part: &Gap, key: &Bytes) -> bool {
    part.start <= *key && part.end.as_ref().is_none_or(|end| key < end)
}

fn words_of(gap: &Gap) -> String {
    match (&gap.end, gap.is_one_row) {
        (_, true) => key::words(&gap.start),
        (Some(end), false) => format!("rows from {} up to {}", key::words(&gap.start), key::words(end)),
        (None, false) => format!("rows from {} on", key::words(&gap.start)),
    }
}

/// Every row that can be read, page by page, and what cannot.
pub(super) fn for_each_page(
    table: &Table,
    mut each: impl FnMut(Vec<Row>) -> Result<(), Failure>,
) -> Result<Vec<Gap>, Failure> {
    let mut rest = KeyRange {
        start: Bytes::new(),
        end: None,
    };
    let mut all = Vec::new();
    loop {
        // Pages without checksums may hold anything: redb panics where one makes no sense.
        let (rows, gaps) = super::tree::guarded(|| table.scan_beside(&rest, PAGE))?;
        all.extend(gaps);
        let next = rows
            .last()
            .filter(|_| rows.len() == PAGE)
            .map(|last| key::after(&last.key));
        each(rows)?;
        match next {
            Some(next) => rest.start = next,
            None => return Ok(all),
        }
    }
}

/// What can be read of a log.
#[derive(Default)]
struct LogRead {
    /// Commits that the tree has not.
    commits: Vec<log::Logged>,
    /// What it lost of them.
    lost: Vec<LostCommits>,
    /// Why it may have lost more, in words.
    doubts: Vec<String>,
    /// The last version of a frame that is damaged.
    last_torn: u64,
}

fn read_log(path: &Path, opened: &Opened) -> LogRead {
    let Some(id) = &opened.log_id else {
        return LogRead::default();
    };
    let shown = log::path_of(path);
    let salvaged = log::salvage(id, &opened.log, opened.position);
    let mut read = LogRead::default();
    let mut next = opened.position + 1;
    let mut lose = |first, last, why| read.lost.push(LostCommits { first, last, why });
    for (version, _) in &salvaged.commits {
        if *version > next {
            lose(next, Some(version - 1), "");
        }
        next = version + 1;
    }
    for (first, last) in salvaged.damaged.iter().filter(|(first, _)| *first >= next) {
        lose(*first, Some(*last), ", which a crash may have torn");
    }
    if opened.log_matters && opened.log.len() != 2 * log::HALF_BYTES {
        lose(next, None, ": the log is not there or was cut short");
    } else if opened.log_matters && log::is_of_another(id, &opened.log) {
        lose(next, None, ": the log is another ledger's");
    }
    if opened.log_matters && opened.log_blocks_lost > 0 {
        read.doubts.push(format!(
            "{} blocks of {} cannot be read: commits after {} that were in them",
            opened.log_blocks_lost,
            shown.display(),
            opened.position
        ));
    }
    let last_torn = salvaged.damaged.iter().map(|(_, last)| *last).max();
    read.last_torn = last_torn.unwrap_or(0);
    read.commits = salvaged.commits;
    read
}

/// The last commits that the tree has, as far as the log still has them.
fn last_commits(opened: &Opened) -> Vec<log::Logged> {
    let Some(id) = &opened.log_id else {
        return Vec::new();
    };
    let mut next = opened.position;
    let mut all = log::salvage(id, &opened.log, 0).commits;
    all.retain(|(version, _)| *version <= opened.position);
    let mut last = Vec::new();
    while let Some(commit) = all.pop_if(|(version, _)| *version >= next && next > 0) {
        if commit.0 == next {
            next -= 1;
            last.push(commit);
        }
    }
    last.reverse();
    last
}

/// Looks at all of a ledger that nobody has open, and changes nothing.
pub fn check(path: &Path) -> Result<Report, LedgerError> {
    let failed = |failure: Failure| damaged(path, &failure);
    let mut report = Report::default();
    let still = Still::open(path).map_err(|error| unavailable(path, &error))?;
    report.has_sums = still.has_sums();
    report.blocks = still.blocks().map_err(|error| unavailable(path, &error))?;
    look_at_blocks(&still, &mut report).map_err(|error| unavailable(path, &error))?;
    // Also finds out whether somebody has it open.
    let whole = still.database().map(|mut database| {
        // Dropped while it unwinds, if it does: redb then does not try to close what it could not read.
        super::tree::guarded(move || Ok(database.check_integrity()?))
    });
    let whole = match whole {
        Err(error @ LedgerError::Unavailable { .. }) => return Err(error),
        whole => whole,
    };
    // If not clean, it went back to an earlier commit, perhaps because of damage that no checksum of a block
    // tells.
    report.is_tree_whole = matches!(whole, Ok(Ok(is_clean)) if is_clean || report.has_sums);
    let opened = match open(path) {
        Ok(opened) => opened,
        Err(LedgerError::Damaged { what }) => {
            report.damaged.push(what);
            return Ok(report);
        }
        Err(error) => return Err(error),
    };
    report.position = opened.position;
    let table = opened.tree.table().map_err(failed)?;
    let mut references = References::default();
    let gaps = for_each_page(&table, |rows| {
        report.rows += rows.len() as u64;
        rows.iter().for_each(|row| references.take_in(row));
        Ok(())
    });
    let gaps = match gaps {
        Ok(gaps) => gaps,
        Err(Failure::Redb(error)) => return Err(unavailable(path, &error)),
        Err(failure) => {
            report.damaged.push(failure.to_string());
            return Ok(report);
        }
    };
    report.damaged.extend(gaps.iter().take(LISTED_MAX).map(words_of));
    let log = read_log(path, &opened);
    report.log_commits = log.commits.len() as u64;
    report.log_damage = log.lost.iter().map(LostCommits::to_string).collect();
    report.log_damage.extend(log.doubts);
    for (version, mutations) in log.commits {
        for mutation in mutations {
            match mutation {
                Mutation::Put { key, value } => references.take_in(&Row {
                    key,
                    versioned: Versioned { version, value },
                }),
                Mutation::Delete { key } => references.forget(&key),
            }
        }
    }
    report.references = references.dangling(&gaps);
    Ok(report)
}

fn look_at_blocks(still: &Still, report: &mut Report) -> io::Result<()> {
    for block in 0..report.blocks {
        let (found, is_readable) = still.look_at(block)?;
        match found {
            Found::Whole => {}
            Found::OneBit => report.correctable_blocks.push(block),
            Found::Damaged => report.damaged_blocks.push(block),
        }
        if !is_readable {
            report.unreadable_blocks.push(block);
        }
    }
    Ok(())
}

/// The bucket that a row names, and blobs.
type Names = (Option<u64>, Vec<(u64, u64)>);

/// Which rows name which.
#[derive(Default)]
struct References {
    buckets: HashSet<u64>,
    volumes: HashSet<u64>,
    blobs: HashSet<(u64, u64)>,
    /// By the row that names.
    names: BTreeMap<Bytes, Names>,
}

impl References {
    fn take_in(&mut self, Row { key, versioned }: &Row) {
        let value = versioned.value.clone();
        let blobs =
            |row: &[crate::ledger::model::BlobRef]| row.iter().map(|blob| (blob.volume, blob.blob)).collect();
        match key.first() {
            Some(b'b') => _ = BucketRow::decode(value).map(|row| self.buckets.insert(row.id)),
            Some(b'v') => _ = key::single_number(key).map(|id| self.volumes.insert(id)),
            Some(b'B') => _ = key::blob_of_row(key).map(|blob| self.blobs.insert(blob)),
            Some(b'o') => {
                let bucket = key
                    .get(1..9)
                    .and_then(|id| id.try_into().ok())
                    .map(u64::from_be_bytes);
                let names = ObjectRow::decode(value)
                    .map(|row| blobs(&row.blobs))
                    .unwrap_or_default();
                self.names.insert(key.clone(), (bucket, names));
            }
            Some(b'p') => {
                let names = PartRow::decode(value)
                    .map(|row| blobs(&row.blobs))
                    .unwrap_or_default();
                self.names.insert(key.clone(), (None, names));
            }
            _ => {}
        }
    }

    fn forget(&mut self, key: &Bytes) {
        self.names.remove(key);
        if let Some(blob) = key::blob_of_row(key) {
            self.blobs.remove(&blob);
        }
    }

    fn dangling(&self, gaps: &[Gap]) -> Vec<String> {
        let is_lost = |key: &Bytes| gaps.iter().any(|gap| contains(gap, key));
        let any_bucket_lost = gaps
            .iter()
            .any(|gap| gap.end.as_ref().is_none_or(|end| end[..] > b"b"[..]) && gap.start[..] < b"c"[..]);
        let mut dangling = Vec::new();
        for (key, (bucket, blobs)) in &self.names {
            if let Some(bucket) = bucket.filter(|id| !self.buckets.contains(id) && !any_bucket_lost) {
                dangling.push(format!("{}: there is no bucket {bucket}", key::words(key)));
            }
            for (volume, blob) in blobs {
                if !self.blobs.contains(&(*volume, *blob)) && !is_lost(&key::blob(*volume, *blob)) {
                    dangling.push(format!(
                        "{}: there is no blob {blob} of volume {volume}",
                        key::words(key)
                    ));
                }
                if !self.volumes.contains(volume) && !is_lost(&key::volume(*volume)) {
                    dangling.push(format!("{}: there is no volume {volume}", key::words(key)));
                }
            }
            if dangling.len() >= LISTED_MAX {
                break;
            }
        }
        dangling
    }
}

/// Says what a repair would do, and changes nothing.
pub fn plan(path: &Path, elsewhere: &dyn LostRows) -> Result<Plan, LedgerError> {
    gather(path, &open(path)?, elsewhere, &mut |_, _| Ok(()))
}

/// Builds the ledger anew from what can be had of it, and puts it in the place of the old one, which is copied aside.
pub fn repair(path: &Path, elsewhere: &dyn LostRows) -> Result<Plan, LedgerError> {
    // Locked until the new one is in its place: a gateway that is started meanwhile is refused, and commits
    // nothing that would be lost.
    let opened = open(path)?;
    let building = Building::to_repair(path)?;
    match gather_and_copy(path, &opened, elsewhere, &building) {
        Ok(plan) => building.finish().map(|()| plan),
        Err(error) => {
            building.abandon();
            Err(error)
        }
    }
}

fn gather_and_copy(
    path: &Path,
    opened: &Opened,
    elsewhere: &dyn LostRows,
    building: &Building,
) -> Result<Plan, LedgerError> {
    let mut plan = gather(path, opened, elsewhere, &mut |rows, position| {
        building.apply(rows, position)
    })?;
    for file in [path.to_owned(), sums_path_of(path), log::path_of(path)] {
        let copied = copy_aside(&file, &mut plan);
        copied.map_err(|error| unavailable(&file, &error))?;
    }
    // A lock is of a file, and not of a name.
    match opened.still.is_in_place() {
        Ok(true) => Ok(plan),
        Ok(false) => Err(unavailable(path, &"another ledger came into its place meanwhile")),
        Err(error) => Err(unavailable(path, &error)),
    }
}

/// Bytes that are copied at once.
const COPIED_AT_ONCE: usize = 1 << 20;

/// Copies a file, if it is there, with zeros for blocks that cannot be read.
fn copy_aside(path: &Path, plan: &mut Plan) -> io::Result<()> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    let aside = aside_of(path);
    let copied = fill(File::create_new(&aside)?, &file);
    if copied.is_err() {
        let _gone = std::fs::remove_file(&aside); // Half of a copy is none. If it stays, the next one has another name.
    }
    let lost = copied?;
    if lost > 0 {
        plan.not_copied.push(format!(
            "{lost} blocks of {} cannot be read, and are zeros in the copy",
            path.display()
        ));
    }
    plan.aside.push(aside);
    Ok(())
}

/// Makes this a copy, durably; answers how many blocks of the file cannot be read.
fn fill(mut copy: File, file: &File) -> io::Result<usize> {
    let found = file.metadata()?;
    copy.set_permissions(std::fs::Permissions::from_mode(found.permissions().mode()))?;
    let (mut bytes, mut lost) = (vec![0; COPIED_AT_ONCE], 0);
    for at in (0..found.len()).step_by(COPIED_AT_ONCE) {
        let left = usize::try_from(found.len() - at).unwrap_or(COPIED_AT_ONCE);
        let bytes = &mut bytes[..left.min(COPIED_AT_ONCE)];
        lost += read_beside(file, bytes, at)?.len();
        io::Write::write_all(&mut copy, bytes)?;
    }
    copy.sync_all()?;
    Ok(lost)
}

/// A name that is free.
fn aside_of(file: &Path) -> PathBuf {
    let named = |number: u32| {
        let mut name = file.as_os_str().to_owned();
        name.push(match number {
            0 => ".before-repair".to_owned(),
            number => format!(".before-repair-{number}"),
        });
        PathBuf::from(name)
    };
    let mut number = 0;
    while named(number).exists() {
        number += 1;
    }
    named(number)
}

/// The last rows that can be read of a ledger as it was at a commit.
#[derive(Default)]
struct Witnesses(BTreeMap<(u64, Bytes), Versioned>);

impl Witnesses {
    fn take_in(&mut self, rows: &[Row], position: u64) {
        for Row { key, versioned } in rows.iter().filter(|row| row.versioned.version <= position) {
            let is_late = self.0.len() < WITNESSES
                || self
                    .0
                    .first_key_value()
                    .is_some_and(|((version, _), _)| *version < versioned.version);
            if is_late {
                self.0.insert((versioned.version, key.clone()), versioned.clone());
            }
            if self.0.len() > WITNESSES {
                self.0.pop_first();
            }
        }
    }

    fn rows(self) -> Vec<Row> {
        let rows = self.0.into_iter();
        rows.map(|((_, key), versioned)| Row { key, versioned }).collect()
    }
}

type Sink<'a> = dyn FnMut(&Rows, u64) -> Result<(), LedgerError> + 'a;

fn gather(
    path: &Path,
    opened: &Opened,
    elsewhere: &dyn LostRows,
    sink: &mut Sink<'_>,
) -> Result<Plan, LedgerError> {
    let failed = |failure: Failure| damaged(path, &failure);
    let mut plan = Plan::default();
    if !opened.still.has_sums()
        && let Err(why) = verify(&opened.still)
    {
        plan.given_up.push(format!(
            "rows that a damaged page may hide: there are no checksums of the file's blocks, and redb's own do not hold: {why}"
        ));
    }
    let mut log = read_log(path, opened);
    fetch_commits(opened, &mut log, elsewhere, &mut plan);
    let commits = log.commits;
    let last = commits.last().map_or(opened.position, |(version, _)| *version);
    plan.position = last.max(log.last_torn);
    let table = opened.tree.table().map_err(failed)?;
    let (mut refused, mut witnesses) = (None, Witnesses::default());
    let gaps = for_each_page(&table, |rows| {
        plan.rows += rows.len() as u64;
        witnesses.take_in(&rows, opened.position);
        let rows = rows
            .into_iter()
            .map(|row| (row.key, Some(row.versioned)))
            .collect();
        refused = sink(&rows, plan.position).err();
        match &refused {
            Some(error) => Err(Failure::Damaged(error.to_string())),
            None => Ok(()),
        }
    });
    let gaps = match (gaps, refused) {
        (_, Some(error)) => return Err(error),
        (gaps, None) => gaps.map_err(failed)?,
    };
    let mut recovered: BTreeMap<Bytes, Versioned> = BTreeMap::new();
    for gap in gaps.iter().filter(|gap| !gap.is_one_row) {
        recovered.extend(salvage_page(&opened.still, &table, gap).map_err(failed)?);
    }
    let fetched = match gaps.is_empty() {
        true => Ok(Vec::new()),
        false => elsewhere.rows_of(
            &gaps,
            &KnownRows {
                position: opened.position,
                witnesses: witnesses.rows(),
                last_commits: last_commits(opened),
            },
        ),
    };
    let fetched = fetched.unwrap_or_else(|why| {
        plan.not_fetched = Some(why);
        vec![None; gaps.len()]
    });
    for (gap, fetched) in gaps.iter().zip(fetched) {
        match fetched {
            Some(rows) => {
                plan.fetched += rows.len() as u64;
                plan.fetched_parts += 1;
                // All that was there then, and nothing else.
                recovered.retain(|key, _| !contains(gap, key));
                let rows = rows.into_iter().map(|row| (row.key, Some(row.versioned)));
                sink(&rows.collect(), plan.position)?;
            }
            None => {
                let found = recovered.keys().filter(|key| contains(gap, key)).count();
                match (gap.is_one_row, found) {
                    (true, 1) => {}
                    (true, _) => plan.given_up.push(words_of(gap)),
                    (false, found) => plan.given_up.push(format!("{}, but for {found}", words_of(gap))),
                }
            }
        }
    }
    plan.recovered = recovered
        .keys()
        .take(LISTED_MAX)
        .map(|key| key::words(key))
        .collect();
    sink(
        &recovered.into_iter().map(|(key, row)| (key, Some(row))).collect(),
        plan.position,
    )?;
    plan.commits = commits.len() as u64;
    plan.given_up.extend(log.lost.iter().map(LostCommits::to_string));
    plan.given_up.extend(log.doubts);
    for some in commits.chunks(PAGE) {
        sink(&super::writer::rows_of(some.to_vec()), plan.position)?;
    }
    Ok(plan)
}

/// Takes what the log lost from elsewhere, where that has it.
fn fetch_commits(opened: &Opened, log: &mut LogRead, elsewhere: &dyn LostRows, plan: &mut Plan) {
    let Some(id) = opened.log_id.as_ref().filter(|_| !log.lost.is_empty()) else {
        return;
    };
    let known = log::salvage(id, &opened.log, 0).commits;
    let mut lost = Vec::new();
    for range in std::mem::take(&mut log.lost) {
        let fetched = match elsewhere.commits_of(&range, &known) {
            Ok(fetched) => fetched,
            Err(why) => {
                plan.not_fetched = Some(why);
                Vec::new()
            }
        };
        let next = fetched.last().map_or(range.first, |(version, _)| version + 1);
        plan.fetched_commits += fetched.len() as u64;
        log.commits.extend(fetched);
        // How many there were is not known: there may be later ones.
        if range.last.is_none_or(|last| next <= last) {
            lost.push(LostCommits { first: next, ..range });
        }
    }
    log.lost = lost;
    log.commits.sort_by_key(|(version, _)| *version);
}

/// Whether redb's own checksums hold, where its blocks have none: a lookup that a damaged page leads astray
/// would find nothing.
fn verify(still: &Still) -> Result<(), String> {
    let mut database = still.another_database().map_err(|error| error.to_string())?;
    // Dropped while it unwinds, if it does.
    let whole = super::tree::guarded(move || Ok(database.check_integrity()?));
    match whole {
        Ok(true) => Ok(()),
        Ok(false) => Err("it would go back to an earlier commit".to_owned()),
        Err(failure) => Err(failure.to_string()),
    }
}

/// Rows of the damaged page that hides a part of the key space, as far as they verify by their seals. Of that page only: others may have
/// these rows as they were before.
fn salvage_page(still: &Still, table: &Table, gap: &Gap) -> Result<Vec<(Bytes, Versioned)>, Failure> {
    let range = KeyRange {
        start: gap.start.clone(),
        end: gap.end.clone(),
    };
    let first = table.scan(&range, Direction::Forward).map(|mut scan| scan.next());
    let (Ok(Some(Err(Failure::Unreadable(what)))) | Err(Failure::Unreadable(what))) = first else {
        return Ok(Vec::new());
    };
    let Some(block) = super::tree::page_in(&what) else {
        return Ok(Vec::new());
    };
    // It may be a part of a page that began before it: of the nearest one that reaches it.
    for start in (0..=8).map(|order| block >> order << order) {
        let (bytes, _) = still.read(start, LEAF_BYTES_MAX)?;
        let entries = match bytes.first() {
            Some(&LEAF) => entries_of(&bytes),
            _ => continue,
        };
        let reaches = ((block - start) as usize) * BLOCK_BYTES;
        if entries.iter().any(|(end, _)| *end > reaches) {
            let rows = entries.into_iter().map(|(_, row)| row);
            return Ok(rows.filter(|(key, _)| contains(gap, key)).collect());
        }
    }
    Ok(Vec::new())
}

/// What a leaf of redb begins with.
const LEAF: u8 = 1;

/// The entries of a leaf that make sense and verify: 1, nothing, number of entries (2 bytes) · where each key ends (4) · where each value
/// ends (4) · keys · values.
/// Each with where it ends.
fn entries_of(page: &[u8]) -> Vec<(usize, (Bytes, Versioned))> {
    let number = |at: usize| {
        page.get(at..at + 4)
            .map(|n| u32::from_le_bytes([n[0], n[1], n[2], n[3]]) as usize)
    };
    let Some(count) = page
        .get(2..4)
        .map(|n| usize::from(u16::from_le_bytes([n[0], n[1]])))
    else {
        return Vec::new();
    };
    let key_end = |n: usize| number(4 + 4 * n);
    let value_end = |n: usize| number(4 + 4 * count + 4 * n);
    let entry = |n: usize| {
        let keys = 4 + 8 * count;
        let key_start = if n == 0 { keys } else { key_end(n - 1)? };
        let value_start = if n == 0 {
            key_end(count - 1)?
        } else {
            value_end(n - 1)?
        };
        let (key, row) = (
            page.get(key_start..key_end(n)?)?,
            page.get(value_start..value_end(n)?)?,
        );
        Some((value_end(n)?, (Bytes::copy_from_slice(key), unseal(key, row)?)))
    };
    (0..count).filter_map(entry).collect()
}
