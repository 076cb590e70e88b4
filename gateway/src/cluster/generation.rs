//! Which ledger this is, of all that were ever copied from one or restored, and whether it may act on the disks.
//!
//! A gateway that starts takes a new *generation* of its ledger, a number and a nonce, by a commit, and tells every disk of it before
//! it does anything else. Disks keep the newest, with marks of how far that ledger was (`LedgerMarks`), and change nothing for
//! another one. So of two copies of a ledger only one can act:
//! ```text
//! what a disk knows                          against what this ledger was when it was opened
//! an older generation, or none               it is told of the new one
//! the same, at an earlier or equal position  it is told of the new one
//! the same, further on                       this is an older copy: behind
//! a newer one, or another nonce of the same  another copy went on: behind
//! ids that were never handed out             this is older than the disk: behind
//! a newer epoch of a unit that is its own    this does not know of a move: behind
//! ```
//! Whoever acted before could go on until disks are told, and delete what a copy that looked a moment ago still names. So disks are
//! first asked to stand still: they change nothing for whoever they obey until they are told, or some seconds have passed. Where a node
//! does not know that, ids and epochs are looked at once more after telling. Disks are told how far the ledger is
//! every few seconds, and its archive on them has what was committed a second ago. So where that ends is looked at, too: a ledger that
//! lacks only what was committed since disks were told is behind its archive.
//!
//! A ledger that is behind first catches up from the archive. One that stays behind makes its gateway *safe*: it commits nothing, tells
//! disks nothing, and deletes nothing; it serves reads,
//! and finds units by what disks say of newer epochs (`placement/found`). It stays so until a newer ledger is put in its place, or an
//! operator accepts this one (`admin/accept`).
//!
//! While a gateway runs, disks are told how far the ledger is every few seconds, and before anything on them is deleted: a ledger that
//! names what was deleted is then behind.
//!
//! Invariant: no disk is used for anything but reads before it said that it obeys this generation.
//! Invariant: nothing is deleted from a disk that does not know, durably, of the commit that made it garbage.
//! Invariant: a disk that comes later is judged like those that were there at the start.
//! Deliberately absent: clocks in the judgement. Only how long nodes have not heard of another gateway is waited for.

use super::disks::admit_reading;
use super::nodes::Nodes;
use super::setup;
use crate::archive::finding::{Finder, Newest, Source};
use crate::archive::replay::{CaughtUp, catch_up as apply_archive};
use crate::error::{Error, Result};
use crate::ledger::key::Counter;
use crate::ledger::model::{CounterRow, GenerationRow};
use crate::ledger::{CommitBuilder, Ledger, key};
use crate::maintenance::holds::{Hold, Holds};
use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;
use storage_node::client::StorageClient;
use storage_node::protocol::{Beat, DiskId, Generation, LedgerMarks, NodeError, NodeStatus, Still};
use tokio::time::Instant;

/// A gateway that a node heard within this time may be alive.
const ALIVE: Duration = Duration::from_secs(10);
/// How often nodes are asked whether they heard it again.
const LISTEN_PERIOD: Duration = Duration::from_millis(300);
/// A node answers from memory.
const SURVEY_DEADLINE: Duration = Duration::from_secs(2);
/// At a start it is looked where the archive ends, for so long,
const SEARCH_MAX: Duration = Duration::from_secs(2);
/// and a disk has so long for each answer.
const SEARCH_DEADLINE: Duration = Duration::from_millis(500);
/// Disks change nothing for whoever acts, while it is looked how far that is, for so long;
const STILL: Duration = Duration::from_secs(10);
/// where looking takes longer, it is begun again, so often.
const STILL_ATTEMPTS: usize = 3;
/// Telling a disk is a write of its superblock.
const TELL_DEADLINE: Duration = Duration::from_secs(10);

/// A ledger as it was when it was opened, before anything was changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Base {
    /// Its generation; none of a ledger of before there were any.
    pub generation: Generation,
    /// The version of its last commit.
    pub position: u64,
    /// The next blob id that it hands out.
    pub next_blob: u64,
    /// The next volume id.
    pub next_volume: u64,
    /// See [`GenerationRow::kept_below_blob`].
    pub kept_below_blob: u64,
    /// See [`GenerationRow::is_restored`].
    pub is_restored: bool,
    /// The version of its row.
    row_version: Option<u64>,
}

impl Base {
    /// Of a ledger, now.
    pub async fn of(ledger: &Ledger) -> Result<Base> {
        let position = ledger.position();
        let row = ledger.get::<GenerationRow>(key::generation()).await?;
        let next = async |counter| {
            let found = ledger.get::<CounterRow>(key::counter(counter)).await?;
            Ok::<u64, Error>(found.map_or(1, |found| found.row.next))
        };
        Ok(Base {
            generation: row.as_ref().map_or(Generation::NONE, |row| Generation {
                number: row.row.number,
                nonce: row.row.nonce,
            }),
            position,
            next_blob: next(Counter::Blob).await?,
            next_volume: next(Counter::Volume).await?,
            kept_below_blob: row.as_ref().map_or(0, |row| row.row.kept_below_blob),
            is_restored: row.as_ref().is_some_and(|row| row.row.is_restored),
            row_version: row.map(|row| row.version),
        })
    }

    /// Another process acted under this ledger, and may have acknowledged what is not in it: the archive has what was committed a second
    /// ago. Blobs that nothing names are kept until an operator decides.
    fn keep_unnamed(&mut self) {
        self.kept_below_blob = self.kept_below_blob.max(self.next_blob);
    }
}

/// Why a ledger may not act on a disk.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Behind {
    /// The disk obeys a newer generation.
    #[error("a disk obeys generation {disk} of the ledger, and this ledger is of generation {own}")]
    Newer {
        /// The disk's.
        disk: Generation,
        /// The ledger's.
        own: Generation,
    },
    /// The disk obeys another copy of the same generation.
    #[error("a disk obeys another copy of this ledger, which went on by itself as generation {disk}")]
    Copy {
        /// The disk's.
        disk: Generation,
    },
    /// The disk was told of later commits of the same generation.
    #[error("a disk was told of commit {disk} of this ledger, which ends at commit {own}")]
    Position {
        /// What the disk was told.
        disk: u64,
        /// Where the ledger ends.
        own: u64,
    },
    /// The disk knows of ids that the ledger never handed out.
    #[error(
        "a disk has blobs or volumes that this ledger has yet to number: it is older than what is on the disk"
    )]
    Ids,
    /// A disk was used with a newer epoch of a volume than the ledger has.
    #[error("a disk knows epoch {disk} of volume {volume}, which this ledger has at epoch {own}")]
    Epoch {
        /// The volume.
        volume: u64,
        /// What the disk knows.
        disk: u32,
        /// What the ledger has.
        own: u32,
    },
    /// The archive goes on after the ledger, or was written by another one.
    #[error(
        "the ledger's archive goes on to commit {position} of generation {written}, and this ledger ends at commit {own_position} of \
         generation {own}"
    )]
    Archive {
        /// Which generation wrote the last entry.
        written: Generation,
        /// The last commit in it, as far as was looked.
        position: u64,
        /// The ledger's generation.
        own: Generation,
        /// Where the ledger ends.
        own_position: u64,
    },
}

/// Judges a ledger by what a disk knows. `own` is the generation that it took since it was opened, if it did. Pure.
pub fn judge(base: &Base, own: Option<Generation>, disk: &LedgerMarks) -> std::result::Result<(), Behind> {
    judge_generation(base, own, disk)?;
    match own == Some(disk.generation) {
        true => Ok(()),
        false => judge_ids(base, disk),
    }
}

fn judge_generation(
    base: &Base,
    own: Option<Generation>,
    disk: &LedgerMarks,
) -> std::result::Result<(), Behind> {
    let known = disk.generation;
    if own == Some(known) {
        return Ok(());
    }
    if known.number > base.generation.number {
        return Err(Behind::Newer {
            disk: known,
            own: own.unwrap_or(base.generation),
        });
    }
    if known.number == base.generation.number && known != Generation::NONE {
        if known != base.generation {
            return Err(Behind::Copy { disk: known });
        }
        if disk.position > base.position {
            return Err(Behind::Position {
                disk: disk.position,
                own: base.position,
            });
        }
    }
    Ok(())
}

fn judge_ids(base: &Base, disk: &LedgerMarks) -> std::result::Result<(), Behind> {
    match disk.blob_limit > base.next_blob || disk.volume_limit > base.next_volume {
        true => Err(Behind::Ids),
        false => Ok(()),
    }
}

/// Judges a ledger by the last entry of its archive. What was shipped of its own generation is a commit that somebody may have been told
/// of. Pure.
pub fn judge_archive(base: &Base, newest: &Newest) -> std::result::Result<(), Behind> {
    let own = base.generation;
    let written = Generation {
        number: newest.writer.number,
        nonce: newest.writer.nonce,
    };
    let is_other = written.number == own.number && written != own;
    let is_further = written == own && newest.position > base.position;
    match written.number > own.number || is_other || is_further {
        false => Ok(()),
        true => Err(Behind::Archive {
            written,
            position: newest.position,
            own,
            own_position: base.position,
        }),
    }
}

/// Who this gateway is to nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Its name and where it runs, for people.
    pub name: String,
    /// The ledger file that this process has locked, as no other machine or file has it: whoever said the same before is dead. Empty
    /// where there is no file.
    pub instance: String,
    /// Whether to start beside a gateway that nodes heard a moment ago.
    pub takes_over: bool,
}

/// What a disk may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All; requests carry this generation.
    Obeys(Generation),
    /// Nothing before it was told of this gateway's generation.
    Untold,
    /// Reads: this gateway is safe.
    ReadOnly,
}

/// This gateway's generation, and what disks know of it.
pub struct Generations {
    ledger: Ledger,
    base: Base,
    identity: Identity,
    holds: Holds,
    /// None in safe mode.
    own: RwLock<Option<Generation>>,
    /// The position that each disk was told of, durably.
    told: Mutex<HashMap<DiskId, u64>>,
    /// Disks that said once that they obey this gateway.
    obeyed: Mutex<HashSet<DiskId>>,
}

impl Generations {
    /// Looks what the disks of these nodes know, and takes a new generation, which those that can be reached are told of; or, if the
    /// ledger is behind, takes none and freezes it. Refuses to start beside a gateway that is alive.
    pub async fn begin(
        ledger: &Ledger,
        nodes: &Nodes,
        identity: Identity,
        holds: Holds,
    ) -> Result<Generations> {
        let mut survey = wait_for_silence(nodes, &identity).await?;
        let (mut base, mut has_caught_up) = (Base::of(ledger).await?, false);
        let mut behind = None;
        for _ in 0..STILL_ATTEMPTS {
            let began = Instant::now();
            let is_held = hold_still(nodes, &survey, STILL).await;
            if is_held {
                survey = self::survey(nodes).await; // Nobody goes on from here.
            }
            behind = match first_behind(&base, &survey) {
                None => behind_archive(ledger, &base, nodes, &survey).await,
                behind => behind,
            };
            if let Some(why) = &behind
                && let Some(wanted) = wanted(why, &survey)
                && catch_up(ledger, nodes, &survey, wanted).await
            {
                tracing::warn!(%why, position = ledger.position(), "the ledger was behind, and has caught up from its archive; \
                     what was acknowledged in the second before its end may be missing: `cairn unnamed list` has it, and nothing of it is deleted");
                base = Base::of(ledger).await?;
                has_caught_up = true;
                behind = first_behind(&base, &survey);
            }
            if !is_held || began.elapsed() < STILL / 2 {
                break; // The disks are as they were looked at, for as long as telling them takes.
            }
        }
        if has_caught_up || identity.takes_over {
            base.keep_unnamed();
        }
        let generations = Generations {
            ledger: ledger.clone(),
            base,
            identity,
            holds,
            own: RwLock::new(None),
            told: Mutex::default(),
            obeyed: Mutex::default(),
        };
        match behind {
            Some(why) => {
                generations.enter_safe_mode(&why.to_string());
                hold_still(nodes, &survey, Duration::ZERO).await;
            }
            None if base.is_restored => generations.wait_for_places(),
            None => generations.take_next(nodes, &survey).await?,
        }
        Ok(generations)
    }

    async fn take_next(&self, nodes: &Nodes, survey: &[NodeStatus]) -> Result<()> {
        let next = GenerationRow {
            number: self.base.generation.number + 1,
            nonce: rand::random(),
            kept_below_blob: self.base.kept_below_blob,
            is_restored: false,
            before_number: self.base.generation.number,
            before_nonce: self.base.generation.nonce,
        };
        let row_key = key::generation();
        let commit = CommitBuilder::new()
            .expect(&row_key, self.base.row_version)
            .put(row_key, &next);
        self.ledger.commit(commit.build()).await?;
        self.set_own(Some(Generation {
            number: next.number,
            nonce: next.nonce,
        }));
        let each = nodes.all();
        let each = each.iter().zip(survey).flat_map(|(node, status)| {
            let disks = status.disks.iter().filter(|disk| disk.ledger.is_some());
            disks.map(move |disk| (node.client.clone(), disk.disk, disk.incarnation))
        });
        let tell = each.map(async |(client, disk, incarnation)| {
            let told = self.tell(&*client, disk, incarnation).await;
            // Who cannot be told now is told before it is used.
            told.inspect_err(|error| tracing::debug!(%disk, %error, "not told of the ledger yet"))
        });
        futures::future::join_all(tell).await;
        // Until it was told, a disk obeyed whoever went before, who may have gone on since it was asked. This gateway has put nothing yet.
        let asked = nodes.all();
        let asked = asked
            .iter()
            .zip(survey)
            .filter(|(_, status)| !status.disks.is_empty());
        let again = asked.map(async |(node, _)| node.client.status(SURVEY_DEADLINE).await);
        let again = futures::future::join_all(again).await;
        let again: Vec<NodeStatus> = again.into_iter().filter_map(|status| status.ok()).collect();
        if let Some(why) = marks(&again).find_map(|marks| judge_ids(&self.base, &marks).err()) {
            self.enter_safe_mode(&why.to_string());
        }
        Ok(())
    }

    /// Takes in that a disk which the ledger names for a unit knows this epoch of it: with an older one nothing can be read there.
    pub fn judge_epoch(&self, volume: u64, disk: u32, own: u32) {
        if disk > own && self.own().is_some() {
            self.enter_safe_mode(&Behind::Epoch { volume, disk, own }.to_string());
        }
    }

    /// The generation that this gateway acts under; none in safe mode.
    pub fn own(&self) -> Option<Generation> {
        *self.own.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_own(&self, own: Option<Generation>) {
        *self.own.write().unwrap_or_else(PoisonError::into_inner) = own;
    }

    /// The ledger as it was opened.
    pub fn base(&self) -> &Base {
        &self.base
    }

    /// Commits nothing, tells nothing and deletes nothing from now on.
    pub fn enter_safe_mode(&self, why: &str) {
        let why = format!(
            "{why}; nothing is written and nothing deleted until the newest ledger is put back, or `cairn ledger accept` \
             says that this one is to be used"
        );
        self.set_own(None);
        self.ledger.freeze(&why);
        self.holds.place(Hold::LedgerBehind, &why);
    }

    /// As safe mode, until it is known where units are: they may have moved after the last commit that was restored.
    fn wait_for_places(&self) {
        let why =
            "the ledger was restored: disks are asked where units are before anything is written or deleted";
        self.ledger.freeze(why);
        self.holds.place(Hold::LedgerRestored, why);
    }

    /// What a disk may be used for that says this of itself. One that knows better makes this gateway safe.
    pub fn verdict(&self, id: DiskId, disk: Option<&LedgerMarks>) -> Verdict {
        let Some(own) = self.own() else {
            return Verdict::ReadOnly;
        };
        let Some(disk) = disk else {
            return Verdict::Obeys(Generation::NONE); // Its node is of before disks knew any.
        };
        if disk.generation == own {
            return Verdict::Obeys(own);
        }
        if !disk.is_plausible() {
            return Verdict::ReadOnly; // Not a ledger that is newer, but a disk that is wrong.
        }
        // A disk that lost what it flushed may have forgotten this gateway, and not the ids that it brought.
        let has_obeyed = self.lock_obeyed().contains(&id);
        let judged = match has_obeyed {
            true => judge_generation(&self.base, Some(own), disk),
            false => judge(&self.base, Some(own), disk),
        };
        match judged {
            Ok(()) => Verdict::Untold,
            Err(why) => {
                self.enter_safe_mode(&why.to_string());
                Verdict::ReadOnly
            }
        }
    }

    /// Takes in that a disk refused a change because it obeys another generation.
    pub fn refused_by(&self, error: &NodeError) {
        if let NodeError::OtherLedger { current } = error
            && let Some(own) = self.own()
            && current.number >= own.number
            && *current != own
            && (LedgerMarks {
                generation: *current,
                ..LedgerMarks::default()
            })
            .is_plausible()
        {
            let why = Behind::Newer { disk: *current, own };
            self.enter_safe_mode(&why.to_string());
        }
    }

    /// Tells a disk how far the ledger is, durably, under this gateway's generation.
    pub async fn tell(
        &self,
        client: &dyn StorageClient,
        disk: DiskId,
        incarnation: u64,
    ) -> std::result::Result<(), NodeError> {
        let Some(generation) = self.own() else {
            return Err(NodeError::BadRequest {
                what: "this gateway is in safe mode".into(),
            });
        };
        let marks = LedgerMarks {
            generation,
            position: self.ledger.position(),
            blob_limit: 0, // The disk counts what comes to it.
            volume_limit: 0,
            epoch: 0,
        };
        let told = client.obey(disk, incarnation, &marks, TELL_DEADLINE).await;
        match &told {
            Ok(()) => {
                let mut known = self.told.lock().unwrap_or_else(PoisonError::into_inner);
                let position = known.entry(disk).or_default();
                *position = marks.position.max(*position);
                drop(known);
                self.lock_obeyed().insert(disk);
            }
            Err(error) => self.refused_by(error),
        }
        told
    }

    fn lock_obeyed(&self) -> MutexGuard<'_, HashSet<DiskId>> {
        self.obeyed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a disk knows of this commit, durably.
    pub fn knows(&self, disk: DiskId, position: u64) -> bool {
        let known = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&disk).is_some_and(|known| *known >= position)
    }

    /// Forgets what a disk was told: another medium may be in its place.
    pub fn forget(&self, disk: DiskId) {
        let mut known = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        known.remove(&disk);
    }

    /// What nodes are to hear of this gateway; nothing in safe mode.
    pub fn beat(&self) -> Option<Beat> {
        Some(Beat {
            gateway: self.identity.name.clone(),
            instance: self.identity.instance.clone(),
            generation: self.own()?,
        })
    }
}

/// What all nodes say, once none of them has heard another gateway for as long as one may be silent. In the order of the nodes; nothing
/// of one that does not answer.
async fn wait_for_silence(nodes: &Nodes, identity: &Identity) -> Result<Vec<NodeStatus>> {
    let began = Instant::now();
    let mut last_heard: Option<(String, Duration)> = None;
    loop {
        let survey = survey(nodes).await;
        let others = survey.iter().filter_map(|status| status.heard.as_ref());
        let others = others.filter(|heard| {
            let is_other = identity.instance.is_empty() || heard.beat.instance != identity.instance;
            is_other && heard.ago_ms < ALIVE.as_millis() as u64
        });
        let Some(newest) = others.min_by_key(|heard| heard.ago_ms) else {
            return Ok(survey);
        };
        let (name, ago) = (newest.beat.gateway.clone(), Duration::from_millis(newest.ago_ms));
        // When it was heard, by the clock of this process.
        let heard_at = began.elapsed().saturating_sub(ago);
        let is_again = last_heard
            .as_ref()
            .is_some_and(|(_, before)| heard_at > *before + LISTEN_PERIOD / 2);
        if identity.takes_over {
            tracing::warn!(
                other = name,
                "started beside another gateway of this cluster, which is fenced from now on"
            );
            return Ok(survey);
        }
        if is_again {
            return Err(Error::InvalidRequest(format!(
                "another gateway of this cluster is alive: nodes heard {name} a moment ago. Two copies of a ledger must not act on the \
                 same disks: stop that one first, or start this one with --take-over if it is to go on instead"
            )));
        }
        if last_heard.is_none() {
            tracing::info!(
                other = name,
                "a gateway was heard a moment ago: waiting whether it is alive"
            );
            last_heard = Some((name, heard_at));
        }
        tokio::time::sleep(LISTEN_PERIOD).await;
    }
}

fn marks(survey: &[NodeStatus]) -> impl Iterator<Item = LedgerMarks> {
    let disks = survey.iter().flat_map(|status| &status.disks);
    disks
        .filter_map(|disk| disk.ledger)
        .filter(LedgerMarks::is_plausible)
}

/// The commit that a ledger must catch up to at least.
fn wanted(why: &Behind, survey: &[NodeStatus]) -> Option<u64> {
    match why {
        Behind::Archive { position, .. } => Some(*position),
        _ => marks(survey)
            .max_by_key(|marks| (marks.generation.number, marks.position))
            .map(|marks| marks.position),
    }
}

fn first_behind(base: &Base, survey: &[NodeStatus]) -> Option<Behind> {
    marks(survey).find_map(|marks| judge(base, None, &marks).err())
}

/// The disks of these nodes, to find the archive on. Each is asked to answer reads, all at once; one that does not is left out.
async fn sources(nodes: &Nodes, survey: &[NodeStatus], deadline: Duration) -> Vec<Source> {
    let all = nodes.all();
    let disks = all.iter().zip(survey).flat_map(|(node, status)| {
        let client = &node.client;
        status.disks.iter().map(move |disk| (client.clone(), disk))
    });
    let admitted = disks.map(async |(client, disk)| {
        if let Some(opening) = &disk.opening
            && let Err(error) = admit_reading(&*client, disk.disk, disk.incarnation, opening, deadline).await
        {
            tracing::debug!(disk = %disk.disk, %error, "its part of the archive cannot be read");
            return None;
        }
        Some(Source {
            disk: disk.disk,
            incarnation: disk.incarnation,
            ledger: Generation::NONE,
            client,
        })
    });
    futures::future::join_all(admitted)
        .await
        .into_iter()
        .flatten()
        .collect()
}

/// Whether the archive on these disks goes beyond a ledger, as far as is known in time. Only where it ends is looked at.
async fn behind_archive(
    ledger: &Ledger,
    base: &Base,
    nodes: &Nodes,
    survey: &[NodeStatus],
) -> Option<Behind> {
    ledger.store().changes()?; // Else there is none.
    let cluster = setup::find(ledger).await.ok()??.0;
    let search = async {
        let sources = sources(nodes, survey, SEARCH_DEADLINE).await;
        Finder::new(cluster, sources)
            .within(SEARCH_DEADLINE)
            .newest()
            .await
    };
    let newest = tokio::time::timeout(SEARCH_MAX, search).await;
    let newest = newest.unwrap_or_else(|_| {
        tracing::info!("where the archive of the ledger ends was not found in time");
        None
    })?;
    judge_archive(base, &newest).err()
}

/// Applies what the archive on these disks has beyond a ledger that is behind, if that is whole up to `wanted`. Says whether anything
/// was.
async fn catch_up(ledger: &Ledger, nodes: &Nodes, survey: &[NodeStatus], wanted: u64) -> bool {
    let Ok(Some((cluster, _))) = setup::find(ledger).await else {
        return false;
    };
    let finder = Finder::new(cluster, sources(nodes, survey, TELL_DEADLINE).await);
    let found = finder.find(0).await;
    match apply_archive(ledger, &finder, &found.entries, wanted).await {
        Ok(CaughtUp::By { .. }) => true,
        Ok(CaughtUp::NothingNewer | CaughtUp::Broken) => false,
        Err(error) => {
            tracing::warn!(%error, "the archive of the ledger cannot be read");
            false
        }
    }
}

/// Has disks change nothing for the ledger that they obey, for so long, once what they were asked before is done. Whether any does.
async fn hold_still(nodes: &Nodes, survey: &[NodeStatus], lasts: Duration) -> bool {
    let each = nodes.all();
    let each = each.iter().zip(survey).flat_map(|(node, status)| {
        let disks = status.disks.iter();
        disks.filter_map(move |disk| {
            let still = Still {
                ledger: disk.ledger?.generation,
                lasts_ms: lasts.as_millis() as u64,
            };
            Some((node.client.clone(), disk.disk, disk.incarnation, still))
        })
    });
    let asked = each.map(async |(client, disk, incarnation, still)| {
        let still = client.still(disk, incarnation, &still, SURVEY_DEADLINE).await;
        // One that goes on is judged when it is told; a node of before there was this does not know it.
        still
            .inspect_err(|error| tracing::debug!(%disk, %error, "not held still"))
            .is_ok()
    });
    let held = futures::future::join_all(asked).await;
    held.contains(&true)
}

async fn survey(nodes: &Nodes) -> Vec<NodeStatus> {
    let all = nodes.all();
    let each = all.iter().map(async |node| {
        let status = node.client.status(SURVEY_DEADLINE).await;
        status.unwrap_or_default()
    });
    futures::future::join_all(each).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generation(number: u64, nonce: u64) -> Generation {
        Generation { number, nonce }
    }

    fn base() -> Base {
        Base {
            generation: generation(5, 50),
            position: 100,
            next_blob: 1_000,
            next_volume: 20,
            ..Base::default()
        }
    }

    fn disk(number: u64, nonce: u64, position: u64) -> LedgerMarks {
        LedgerMarks {
            generation: generation(number, nonce),
            position,
            blob_limit: 1_000,
            volume_limit: 20,
            epoch: 3,
        }
    }

    /// Every relation of a disk to a ledger, before the ledger took its generation and after.
    #[test]
    fn a_ledger_acts_only_on_disks_that_know_nothing_newer() {
        let own = generation(6, 60);
        for own in [None, Some(own)] {
            let is_behind = |disk: LedgerMarks| judge(&base(), own, &disk).is_err();
            for (number, nonce, position, behind) in [
                (0, 0, 0, false),
                (4, 7, 9_999, false),
                (5, 50, 99, false),
                (5, 50, 100, false),
                (5, 50, 101, true),
                (5, 51, 1, true),
                (6, 61, 1, true),
                (7, 60, 1, true),
            ] {
                assert_eq!(
                    is_behind(disk(number, nonce, position)),
                    behind,
                    "{number} {nonce} {position}"
                );
            }
            for (blob_limit, volume_limit) in [(1_001, 1), (1, 21)] {
                let ids = LedgerMarks {
                    blob_limit,
                    volume_limit,
                    ..disk(4, 7, 1)
                };
                assert_eq!(judge(&base(), own, &ids), Err(Behind::Ids));
            }
        }
        // What it told disks itself is no reason, whatever came to them since.
        let later = LedgerMarks {
            blob_limit: 5_000,
            ..disk(6, 60, 150)
        };
        assert_eq!(judge(&base(), Some(own), &later), Ok(()));
        assert!(judge(&base(), None, &later).is_err());
    }

    #[test]
    fn a_ledger_is_judged_by_where_its_archive_ends() {
        for (number, nonce, position, behind) in [
            (4, 7, 9_999, false),
            (5, 50, 99, false),
            (5, 50, 100, false),
            (5, 50, 101, true),
            (5, 51, 1, true),
            (6, 1, 1, true),
        ] {
            let writer = crate::archive::entry::Writer { number, nonce };
            let judged = judge_archive(&base(), &Newest { writer, position });
            assert_eq!(judged.is_err(), behind, "{number} {nonce} {position}");
        }
    }

    /// A ledger of before there were generations, and disks that were told of none.
    #[test]
    fn what_never_knew_a_generation_is_judged_by_ids() {
        let fresh = Base {
            next_blob: 10,
            next_volume: 3,
            ..Base::default()
        };
        let disk = |blob_limit| LedgerMarks {
            blob_limit,
            ..LedgerMarks::default()
        };
        assert_eq!(judge(&fresh, None, &disk(10)), Ok(()));
        assert_eq!(judge(&fresh, None, &disk(11)), Err(Behind::Ids));
    }
}
