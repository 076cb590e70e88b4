//! Ships what is committed, every second or when 4 MiB wait, and makes snapshots.
//!
//! Entries are made, then written in order; one that could not be written is tried again as it is, so that its number never means two
//! things. Where the archive ends is found on the disks before anything is written. What the ledger has beyond that is in its own log; if
//! it is not there any more, or the archive is of another history, a new snapshot is due.
//!
//! Invariants:
//! - What waits in memory is bounded: the engine's tap drops what is too much, and then a snapshot is due.
//! - Shipped is what a restore would have. After a gap in the log that is what came before it, until a newer snapshot is complete.
//! - A chain is of one history. After another one, the first entry names none before it.
//! - A snapshot is complete only when the log up to the end of its scan is written.

use super::chain::{Chain, chains, choose};
use super::entry::{BODY_BYTES_MAX, Body, Digest, EntryError, Header, Kind, Writer};
use super::finding::{Finder, Found, Places, Source};
use super::retention;
use super::scan::{Scan, bodies};
use super::state::{Archive, SnapshotStatus};
use super::system_blobs::{Renewed, SystemBlobs};
use crate::cluster::setup;
use crate::error::{Error, Result};
use crate::ledger::changes::{Batch, Tap};
use crate::ledger::model::GenerationRow;
use crate::ledger::store::{LedgerError, Mutation, Store};
use crate::ledger::{Typed, key};
use crate::maintenance::worker::{Step, Worker};
use crate::object::Objects;
use bytes::{Bytes, BytesMut};
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use storage_node::protocol::{ClusterId, DiskId, SHARD_BYTES_MAX};
use tokio::sync::Mutex;
use tokio::time::Instant;

/// How often what was committed is shipped.
const PERIOD: Duration = Duration::from_secs(1);
/// What waits to be shipped is dropped when it is more than this, where the engine has not said so itself.
const TAP_BYTES: usize = 32 << 20;
/// So many bytes are shipped at once.
const SHIP_BYTES: usize = BODY_BYTES_MAX;
/// A snapshot is due when the log since the last one is larger than it, and than this.
const LOG_BYTES_MIN: u64 = 64 << 20;
/// And when there are so many entries since then: a restore reads each.
const ENTRIES_MAX: u64 = 20_000;
/// Where the archive ends is not known while too many disks are away. For so long they are waited for.
const SEARCH_PATIENCE: Duration = Duration::from_secs(60);
/// How often it is counted what the archive takes on the disks.
const COUNT_PERIOD: Duration = Duration::from_secs(60);
/// How often it is looked for what is old.
const RETIRE_PERIOD: Duration = Duration::from_secs(5);
/// A disk has so long to say what it holds.
const COUNT_DEADLINE: Duration = Duration::from_secs(2);
/// Copies that are written anew in a step.
const RENEWED_AT_ONCE: usize = 4;
/// The pause after a snapshot that could not be made; each further one in a row is followed by one twice as long.
const PUT_OFF: Duration = Duration::from_secs(2);
/// The longest.
const PUT_OFF_MAX: Duration = Duration::from_secs(240);
/// After a search that was not complete, numbers go on so much further.
const DOUBT: u64 = 1 << 20;

/// Where the archive ends.
struct End {
    number: u64,
    digest: Digest,
    /// The newest entry, once there is one.
    header: Option<Header>,
    /// The version of the last commit in it.
    shipped: u64,
    /// The first entries of the complete snapshots of this chain.
    snapshots: Vec<u64>,
    /// Entries below this number were let go of.
    floor: u64,
    snapshot_bytes: u64,
    log_bytes: u64,
    log_entries: u64,
    due: Option<&'static str>,
    /// A restore ends at this commit, though later ones are in the archive: the log has a gap, or there is no snapshot.
    gap: Option<u64>,
}

impl End {
    /// The last commit that a restore would have.
    fn restorable(&self) -> u64 {
        self.gap.unwrap_or(self.shipped)
    }
}

/// A snapshot in the making.
struct Making {
    scan: Scan,
    /// The number of its first entry.
    snapshot: u64,
    /// The log is replayed from here.
    after: u64,
    bytes: u64,
    /// The position when the scan ended, once it has.
    until: Option<u64>,
}

/// Why no snapshot can be made for now.
struct PutOff {
    why: String,
    times: u32,
    until: Instant,
    /// Rows are damaged.
    is_damage: bool,
}

struct State {
    blobs: SystemBlobs,
    end: Option<End>,
    /// Entries to be written, in order.
    entries: VecDeque<(Header, Bytes)>,
    /// What was taken, and is not in `entries`.
    backlog: VecDeque<Batch>,
    /// Commits before the backlog were lost before it was known where the archive ends.
    missed: bool,
    making: Option<Making>,
    put_off: Option<PutOff>,
    searching_since: Option<Instant>,
    shipped_at: Option<Instant>,
    counted_at: Option<Instant>,
    /// Disks on which entries are that are still needed.
    disks: HashSet<DiskId>,
    writer: Writer,
}

/// See the module.
pub struct Shipper {
    objects: Arc<Objects>,
    store: Arc<dyn Store>,
    cluster: ClusterId,
    tap: Arc<Tap>,
    archive: Arc<Archive>,
    sync: bool,
    state: Mutex<State>,
}

/// A gateway's disks, to find entries on.
pub fn sources(objects: &Objects) -> Vec<Source> {
    let all = objects.disks.all();
    let source = |disk: &Arc<crate::cluster::disks::Disk>| {
        Some(Source {
            disk: disk.id,
            incarnation: disk.incarnation,
            ledger: disk.ledger,
            client: disk.client.clone()?,
        })
    };
    all.iter().filter_map(source).collect()
}

impl Shipper {
    /// For a gateway whose engine says what it commits; none for another.
    pub async fn new(objects: Arc<Objects>, sync: bool) -> Result<Option<Arc<Shipper>>> {
        let store = objects.ledger.store().clone();
        // A gateway that is started anew in this process finds the first one taken.
        let tap = store
            .changes()
            .map(|changes| changes.take_first().unwrap_or_else(|| changes.tap(TAP_BYTES)));
        let (Some(tap), Some((cluster, _))) = (tap, setup::find(&objects.ledger).await?) else {
            return Ok(None);
        };
        tap.wake_at(if sync { 0 } else { SHIP_BYTES });
        let blobs = SystemBlobs::new(objects.clone())?;
        let copies = super::system_blobs::scheme(objects.scheme)?.total_shards();
        let archive = objects.archive.clone();
        archive.change(|status| (status.on, status.sync, status.copies) = (true, sync, copies));
        let state = State {
            blobs,
            end: None,
            entries: VecDeque::new(),
            backlog: VecDeque::new(),
            missed: false,
            making: None,
            put_off: None,
            searching_since: None,
            shipped_at: None,
            counted_at: None,
            disks: HashSet::new(),
            writer: Writer::default(),
        };
        Ok(Some(Arc::new(Shipper {
            objects,
            store,
            cluster,
            tap,
            archive,
            sync,
            state: Mutex::new(state),
        })))
    }

    /// Ships what there is, and makes a piece of a snapshot if one is due.
    async fn work(&self) -> Result<Step> {
        let state = &mut *self.state.lock().await;
        let worked = self.advance(state).await;
        // What came since is of the next second.
        let has_gap = state.end.as_ref().is_none_or(|end| end.gap.is_some());
        let waits = worked.is_err() || has_gap;
        let error = worked.as_ref().err().map(|error| error.to_string());
        self.archive.change(|status| {
            status.error.clone_from(&error);
            status.making_rows = state.making.as_ref().map(|making| making.scan.rows);
            let end = state.end.as_ref();
            let put_off = state.put_off.as_ref();
            status.due = end.and_then(|end| end.due).map(|due| match put_off {
                Some(put_off) => format!("{due}; it is tried again later, because {}", put_off.why),
                None => due.to_owned(),
            });
            status.snapshots = end.map_or(0, |end| end.snapshots.len());
        });
        self.archive.note_waiting(waits);
        match worked {
            // It is in the status, and a warning when it has lasted.
            Err(error) => {
                tracing::debug!(%error, "the archive of the ledger goes on later");
                Ok(Step::Idle)
            }
            step => step,
        }
    }

    async fn advance(&self, state: &mut State) -> Result<Step> {
        if state.end.is_none() && !self.begin(state).await? {
            return Ok(Step::Idle);
        }
        self.write_entries(state).await?;
        self.renew_rotten(state).await;
        self.count(state).await;
        let making = state.making.is_some();
        let is_time = state.shipped_at.is_none_or(|at| at.elapsed() >= PERIOD);
        let is_much = self.tap.waiting().0 >= SHIP_BYTES;
        if !making || is_time || is_much || self.sync {
            self.ship(state).await?;
        }
        self.snapshot(state).await
    }

    /// Ships on, after the worker was stopped, for commits that wait for it. Never returns.
    pub async fn keep_shipping(&self) {
        if !self.sync {
            return std::future::pending().await;
        }
        loop {
            if let Err(error) = self.ship_rest().await {
                tracing::debug!(%error, "the archive of the ledger goes on later");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ships what is left, before the gateway ends.
    pub async fn ship_rest(&self) -> Result<()> {
        let state = &mut *self.state.lock().await;
        if state.end.is_some() {
            self.write_entries(state).await?;
            self.ship(state).await?;
        }
        Ok(())
    }

    /// Finds where the archive ends; false while too many disks are away to know.
    async fn begin(&self, state: &mut State) -> Result<bool> {
        let since = *state.searching_since.get_or_insert_with(Instant::now);
        let disks = self.objects.disks.all();
        let wanted = disks.iter().filter(|disk| !disk.is_given_up()).count();
        let finder = Finder::new(self.cluster, sources(&self.objects));
        let found = finder.find(0).await;
        let silent = found.silent.len() + wanted.saturating_sub(sources(&self.objects).len());
        let is_doubtful = silent > self.objects.scheme.losses_survived();
        if is_doubtful && since.elapsed() < SEARCH_PATIENCE {
            return Ok(false);
        }
        let generation = self
            .objects
            .ledger
            .get::<GenerationRow>(key::generation())
            .await?;
        state.writer = writer_of(generation.as_ref());
        let position = self.store.position();
        self.take_backlog(state);
        let (batches, lost) = (&state.backlog, state.missed);
        let chain = chains(&found.entries, &HashSet::new()).into_iter().next();
        let known = chain.as_ref().and_then(of_chain);
        let goes_on = |end: &End| {
            let new: Vec<&Batch> = batches
                .iter()
                .filter(|batch| batch.last() > end.shipped)
                .collect();
            let first = new.first().map_or(position + 1, |batch| batch.first);
            let writer = end.header.map(|header| header.writer).unwrap_or_default();
            !is_doubtful
                && !lost
                && first == end.shipped + 1
                && is_same_history(writer, end.shipped, generation.as_ref(), &new)
        };
        let end = match known.filter(goes_on) {
            Some(end) if self.renew_newest(state, &finder, &found, &end, since).await? => {
                state.backlog.retain(|batch| batch.last() > end.shipped);
                end
            }
            _ => {
                let newest = found.newest_number();
                let is_first = found.entries.is_empty();
                let last = state.backlog.back().map(Batch::last);
                // The snapshot that is due has them.
                (state.backlog, state.missed) = (VecDeque::new(), false);
                End {
                    number: newest + if is_doubtful { DOUBT } else { 0 },
                    digest: [0; 32],
                    header: None,
                    shipped: last.unwrap_or(position),
                    snapshots: Vec::new(),
                    floor: 0,
                    snapshot_bytes: 0,
                    log_bytes: 0,
                    log_entries: 0,
                    due: Some(if is_first {
                        "there is none yet"
                    } else {
                        "the ledger is not where the archive ends"
                    }),
                    gap: Some(0),
                }
            }
        };
        tracing::info!(
            entry = end.number,
            shipped = end.shipped,
            due = end.due,
            "the archive of the ledger goes on"
        );
        self.archive.note_shipped(end.restorable());
        self.archive.note_rotten(finder.take_rotten());
        state.blobs.take_up(&found);
        state.disks = found.units.keys().map(|place| place.disk).collect();
        state.end = Some(end);
        Ok(true)
    }

    /// Takes what was committed, for as long as it is not known where the archive ends. Bounded as the tap is.
    fn take_backlog(&self, state: &mut State) {
        let taken = self.tap.take(usize::MAX);
        if taken.lost_up_to.is_some() {
            (state.backlog, state.missed) = (VecDeque::new(), true);
        }
        state.backlog.extend(taken.batches);
        let bytes: usize = state.backlog.iter().map(|batch| batch.body.len()).sum();
        if bytes > TAP_BYTES {
            (state.backlog, state.missed) = (VecDeque::new(), true);
        }
    }

    /// Writes the newest entry once more, if it has too few copies: the process died while it wrote them, or disks are away. False if no
    /// copy is whole: it was never written then, and nothing can follow it.
    async fn renew_newest(
        &self,
        state: &mut State,
        finder: &Finder,
        found: &Found,
        end: &End,
        since: Instant,
    ) -> Result<bool> {
        let Some(header) = end.header else { return Ok(true) };
        let is_it = |(other, _): &&(Header, Places)| other.digest() == header.digest();
        let places = found.entries.iter().find(is_it).map(|(_, places)| places.clone());
        let places = places.unwrap_or_default();
        let copies = super::system_blobs::scheme(self.objects.scheme)?.total_shards();
        let disks: HashSet<DiskId> = places.iter().map(|place| place.disk).collect();
        // Its last stripe may be missing on a disk that has its first.
        let is_long = header.total_bytes() > SHARD_BYTES_MAX as usize;
        if disks.len() >= copies && !is_long {
            return Ok(true);
        }
        match finder.body(&header, &places).await {
            Ok(body) => {
                state.entries.push_back((header, body));
                Ok(true)
            }
            Err(error @ EntryError::Silent) if since.elapsed() < SEARCH_PATIENCE => Err(Error::Internal(
                format!("the newest entry of the archive: {error}"),
            )),
            Err(error) => {
                tracing::info!(entry = header.number, %error, "the newest entry of the archive is not whole");
                Ok(false)
            }
        }
    }

    /// Counts what the archive takes on the disks: it is among what they hold, and no objects.
    async fn count(&self, state: &mut State) {
        if state.counted_at.is_some_and(|at| at.elapsed() < COUNT_PERIOD) {
            return;
        }
        state.counted_at = Some(Instant::now());
        let sources = sources(&self.objects);
        let asked = sources.iter().map(|source| {
            let client = &source.client;
            client.units(source.disk, source.incarnation, COUNT_DEADLINE)
        });
        let (mut shards, mut bytes) = (0, 0);
        for units in futures::future::join_all(asked).await.into_iter().flatten() {
            for info in units.iter().filter(|info| info.unit.is_system()) {
                shards += info.shards;
                bytes += info.live_bytes;
            }
        }
        self.archive
            .change(|status| (status.held_shards, status.held_bytes) = (shards, bytes));
    }

    /// Writes copies of entries anew that were found wrong on a disk, from copies that are right.
    async fn renew_rotten(&self, state: &mut State) {
        let rotten = self.archive.take_rotten(RENEWED_AT_ONCE);
        if rotten.is_empty() {
            return;
        }
        let finder = Finder::new(self.cluster, sources(&self.objects));
        for copy in rotten {
            match state.blobs.renew(&finder, &copy).await {
                Ok(Renewed::NotNeeded) => {}
                Ok(Renewed::Written) => {
                    self.objects.metrics.repaired_shards.inc();
                    tracing::info!(entry = copy.number, disk = %copy.disk, "a copy of an entry of the ledger's archive was written anew");
                }
                // Another entry may need it: there is one to take its place when a snapshot is newer than both.
                Ok(Renewed::NoCopyIsRight) => {
                    let snapshots = state.end.as_ref().and_then(|end| end.snapshots.first().copied());
                    if let (Some(end), true) = (
                        &mut state.end,
                        snapshots.is_some_and(|first| copy.number >= first),
                    ) {
                        tracing::warn!(
                            entry = copy.number,
                            "an entry of the ledger's archive is damaged on all its disks: a new snapshot is made"
                        );
                        end.due = end.due.or(Some("an entry is damaged on all its disks"));
                        end.gap = Some(0); // How far a restore comes without it is not worth finding out.
                        self.archive.note_shipped(0);
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, entry = copy.number, "a damaged copy is written anew later");
                    self.archive.note_rotten([copy]);
                    return;
                }
            }
        }
    }

    /// Makes entries of this. They are written with those that wait.
    async fn make(
        &self,
        state: &mut State,
        kind: Kind,
        versions: (u64, u64),
        snapshot: u64,
        bytes: Bytes,
    ) -> Result<()> {
        let parts = bodies(bytes).await?;
        self.make_of(state, kind, versions, snapshot, parts);
        Ok(())
    }

    /// The same, of bodies that are hashed.
    fn make_of(&self, state: &mut State, kind: Kind, versions: (u64, u64), snapshot: u64, bodies: Vec<Body>) {
        let at_ms = self.objects.clock.now_ms();
        let mut parts = bodies.into_iter().peekable();
        while let (Some(body), Some(end)) = (parts.next(), &mut state.end) {
            let header = Header {
                kind,
                more: parts.peek().is_some(),
                cluster: self.cluster,
                writer: state.writer,
                number: end.number + 1,
                before: end.digest,
                first: versions.0,
                last: versions.1,
                at_ms,
                snapshot,
                body_bytes: 0,
                body_digest: [0; 32],
            };
            let header = header.of_body(&body);
            end.number = header.number;
            end.digest = header.digest();
            end.header = Some(header);
            state.entries.push_back((header, body.bytes));
        }
    }

    async fn write_entries(&self, state: &mut State) -> Result<()> {
        while let Some((header, body)) = state.entries.front() {
            let header = *header;
            let places = state.blobs.write(&header, &body.clone()).await?;
            state.disks.extend(places.iter().map(|place| place.disk));
            state.entries.pop_front();
            let bytes = header.total_bytes() as u64;
            self.archive.change(|status| {
                status.entries += 1;
                status.bytes += bytes;
            });
            let metrics = &self.objects.metrics;
            metrics.archive_entries.inc();
            metrics.archive_bytes.inc_by(bytes);
            match header.kind {
                Kind::Log => {
                    if let Some(end) = &mut state.end {
                        end.log_bytes += bytes;
                        end.log_entries += 1;
                    }
                    if !header.more {
                        let gap = state.end.as_ref().map_or(Some(0), |end| end.gap);
                        self.archive.note_shipped(gap.unwrap_or(header.last));
                    }
                }
                Kind::Piece => {}
                Kind::End => self.complete(state, &header),
            }
        }
        Ok(())
    }

    /// Takes what was committed by now, and writes it.
    async fn ship(&self, state: &mut State) -> Result<()> {
        let until = self.store.position();
        // What comes meanwhile is of the next entry: under a steady load there would be no end.
        while state.end.as_ref().is_some_and(|end| end.shipped < until) {
            self.take(state);
            let batches = next_of(&state.backlog);
            let (Some(first), Some(last)) = (batches.first(), batches.last()) else {
                break;
            };
            let versions = (first.first, last.last());
            let body = match &batches[..] {
                [only] => only.body.clone(),
                many => {
                    let mut body = BytesMut::new();
                    many.iter().for_each(|batch| body.extend_from_slice(&batch.body));
                    body.freeze()
                }
            };
            let parts = bodies(body).await?;
            // From here on without a pause: a commit is either waiting, or in an entry.
            self.make_of(state, Kind::Log, versions, 0, parts);
            state.backlog.drain(..batches.len());
            if let Some(end) = &mut state.end {
                end.shipped = versions.1;
            }
            self.write_entries(state).await?;
        }
        state.shipped_at = Some(Instant::now());
        Ok(())
    }

    /// Takes what waits in the tap, unless there is more of what was taken before.
    fn take(&self, state: &mut State) {
        let (true, Some(end)) = (state.backlog.is_empty(), &mut state.end) else {
            return;
        };
        let taken = self.tap.take(SHIP_BYTES);
        if let Some(lost) = taken.lost_up_to {
            end.due = Some("what was committed could not be shipped in time");
            end.gap = Some(end.restorable());
            end.shipped = end.shipped.max(lost);
            state.making = None; // It would lack that log.
        }
        let newer = taken
            .batches
            .into_iter()
            .filter(|batch| batch.last() > end.shipped);
        state.backlog.extend(newer);
    }

    /// Begins a snapshot that is due, goes on with it, or ends it.
    async fn snapshot(&self, state: &mut State) -> Result<Step> {
        let Some(mut making) = state.making.take() else {
            return Ok(self.begin_snapshot(state));
        };
        if making.until.is_none() {
            let piece = match making.scan.piece(&*self.store).await {
                Ok(piece) => piece,
                Err(error) => {
                    // What is written of it is deleted with all that is older than the next ones. The log goes on.
                    put_off(state, &error);
                    return Ok(Step::Idle);
                }
            };
            match piece {
                Some(rows) => {
                    making.bytes += rows.len() as u64;
                    let versions = (making.after, making.after);
                    self.make(state, Kind::Piece, versions, making.snapshot, rows)
                        .await?;
                }
                None => making.until = Some(self.store.position()),
            }
        }
        let (until, rows, after, snapshot) = (making.until, making.scan.rows, making.after, making.snapshot);
        state.making = Some(making);
        if let Some(until) = until {
            self.ship(state).await?;
            let shipped = state.end.as_ref().map_or(0, |end| end.shipped);
            if shipped >= until && state.making.is_some() {
                let body = Bytes::copy_from_slice(&rows.to_le_bytes());
                let versions = (after, until.max(after));
                self.make(state, Kind::End, versions, snapshot, body).await?;
            }
        }
        self.write_entries(state).await?;
        Ok(Step::Skipped)
    }

    /// Whether what kept a snapshot from being made may be gone.
    fn is_time(&self, put_off: &PutOff) -> bool {
        let damage = self.store.damage();
        let is_damaged = damage.is_some_and(|damage| damage.counts().is_any());
        (put_off.is_damage && !is_damaged) || Instant::now() >= put_off.until
    }

    fn begin_snapshot(&self, state: &mut State) -> Step {
        if state
            .put_off
            .as_ref()
            .is_some_and(|put_off| !self.is_time(put_off))
        {
            return Step::Idle;
        }
        let wanted = self.archive.take_wanted();
        let given_up = |id: &DiskId| {
            let disk = self.objects.disks.get(*id);
            disk.is_none_or(|disk| disk.membership != crate::ledger::model::Membership::Active)
        };
        let is_thin = state.disks.iter().any(given_up);
        let Some(end) = &mut state.end else {
            return Step::Idle;
        };
        let is_long = end.log_bytes > end.snapshot_bytes.max(LOG_BYTES_MIN) || end.log_entries > ENTRIES_MAX;
        let why = end
            .due
            .or(wanted.then_some("it was asked for"))
            .or(is_long.then_some("the log since the last one is long"))
            .or(is_thin.then_some("disks with copies of it are no longer in service"));
        let Some(why) = why else { return Step::Idle };
        end.due = Some(why);
        if is_thin {
            state.disks.retain(|id| !given_up(id));
        }
        state.making = Some(Making {
            scan: Scan::default(),
            snapshot: end.number + 1,
            after: end.shipped,
            bytes: 0,
            until: None,
        });
        Step::Worked
    }

    /// Takes in that a snapshot is complete. What is older than the one before goes by itself ([`Retiring`]).
    fn complete(&self, state: &mut State, header: &Header) {
        let bytes = state.making.take().map_or(0, |making| making.bytes);
        state.put_off = None;
        let Some(end) = &mut state.end else { return };
        (end.due, end.gap) = (None, None);
        end.snapshots.push(header.snapshot);
        (end.snapshot_bytes, end.log_bytes, end.log_entries) = (bytes, 0, 0);
        let shipped = end.shipped;
        let (position, at_ms) = (header.last, header.at_ms);
        self.archive.change(|status| {
            status.snapshot = Some(SnapshotStatus {
                position,
                at_ms,
                bytes,
            })
        });
        self.archive.note_shipped(shipped);
        tracing::info!(position, bytes, "a snapshot of the ledger is in its archive");
    }

    /// Deletes what is older than the snapshots that are kept. Nothing waits for it: disks that do not answer hold up no commit.
    async fn retire(&self) -> Result<Step> {
        let old = {
            let state = &*self.state.lock().await;
            let end = state.end.as_ref();
            end.and_then(|end| {
                Some(retention::Old {
                    floor: retention::floor(&end.snapshots).filter(|floor| *floor > end.floor)?,
                    known: end.header?,
                    in_use: state.blobs.volume().map(|volume| volume.id),
                    own: state.blobs.own().clone(),
                })
            })
        };
        let Some(old) = old.filter(|_| self.objects.holds.may_delete()) else {
            return Ok(Step::Idle);
        };
        let finder = Finder::new(self.cluster, sources(&self.objects));
        let deleted = retention::delete_below(&finder, &old, || self.objects.holds.may_delete()).await;
        self.archive.note_rotten(finder.take_rotten());
        let Some(deleted) = deleted else {
            return Ok(Step::Idle);
        };
        if let Some(end) = &mut self.state.lock().await.end {
            end.snapshots.retain(|first| *first >= old.floor);
            end.floor = old.floor;
            let left = end.snapshots.len();
            self.archive.change(|status| status.snapshots = left);
        }
        tracing::debug!(
            deleted,
            floor = old.floor,
            "old entries of the archive are deleted"
        );
        Ok(Step::Idle)
    }
}

/// As many of these as go into an entry.
fn next_of(backlog: &VecDeque<Batch>) -> Vec<Batch> {
    let mut bytes = 0;
    let fits = |batch: &&Batch| {
        let is_first = bytes == 0;
        bytes += batch.body.len();
        is_first || bytes <= SHIP_BYTES
    };
    backlog.iter().take_while(fits).cloned().collect()
}

fn put_off(state: &mut State, error: &LedgerError) {
    let (why, is_damage) = (error.to_string(), matches!(error, LedgerError::Damaged { .. }));
    let times = state.put_off.as_ref().map_or(0, |put_off| put_off.times);
    let pause = (PUT_OFF * (1 << times.min(16))).min(PUT_OFF_MAX);
    if times == 0 {
        tracing::info!(why, "no snapshot of the ledger can be made for now");
    }
    state.put_off = Some(PutOff {
        why,
        times: times + 1,
        until: Instant::now() + pause,
        is_damage,
    });
}

fn writer_of(generation: Option<&Typed<GenerationRow>>) -> Writer {
    generation.map_or_else(Writer::default, |generation| Writer {
        number: generation.row.number,
        nonce: generation.row.nonce,
    })
}

/// Where a chain ends.
fn of_chain<T: Clone>(chain: &Chain<T>) -> Option<End> {
    let (newest, _) = chain.last()?;
    let snapshots = retention::snapshots(chain);
    let logs = chain.iter().filter(|(header, _)| header.kind == Kind::Log);
    let whole = logs.clone().filter(|(header, _)| !header.more);
    let shipped = whole.map(|(header, _)| header.last).next_back();
    let restorable = choose(chain, &HashSet::new(), None).map_or(0, |plan| plan.position);
    let ended = chain.iter().rev().find(|(header, _)| header.kind == Kind::End);
    let since = ended.map_or(0, |(header, _)| header.number);
    let since_then = logs.filter(|(header, _)| header.number > since);
    let pieces = chain.iter().filter(|(header, _)| {
        header.kind == Kind::Piece && ended.is_some_and(|(ended, _)| header.snapshot == ended.snapshot)
    });
    // A part of something that was cut is followed by nothing that could go on with it.
    let is_cut = newest.kind == Kind::Log && newest.more;
    let begins = chain.iter().map(|(header, _)| header.first).next();
    let shipped = shipped.max(ended.map(|(header, _)| header.first)).or(begins)?;
    let has_gap = snapshots.is_empty() || is_cut || restorable < shipped;
    Some(End {
        number: newest.number,
        digest: newest.digest(),
        header: Some(*newest),
        shipped,
        due: match (snapshots.is_empty(), is_cut) {
            (true, _) => Some("there is none yet"),
            (_, true) => Some("the last entry is not whole"),
            _ => has_gap.then_some("the log since the last one has a gap"),
        },
        gap: has_gap.then_some(restorable),
        snapshots,
        floor: 0,
        snapshot_bytes: pieces.map(|(header, _)| header.total_bytes() as u64).sum(),
        log_bytes: since_then
            .clone()
            .map(|(header, _)| header.total_bytes() as u64)
            .sum(),
        log_entries: since_then.count() as u64,
    })
}

/// Whether a ledger is the one that the archive is of, further on: its generation is the archive's, or was taken since, as the first one
/// after it. A copy that went on by itself has taken another.
pub(super) fn is_same_history(
    archived: Writer,
    shipped: u64,
    generation: Option<&Typed<GenerationRow>>,
    new: &[&Batch],
) -> bool {
    let Some(generation) = generation else {
        return archived == Writer::default();
    };
    if generation.version <= shipped {
        return writer_of(Some(generation)) == archived;
    }
    let commits = new
        .iter()
        .filter_map(|batch| crate::ledger::redb::parse_commits(batch.body.clone(), batch.commits))
        .flatten();
    let taken = commits.flatten().find_map(|mutation| match mutation {
        Mutation::Put { key, value } if key == key::generation() => Some(value),
        _ => None,
    });
    let first = taken.and_then(|value| <GenerationRow as prost::Message>::decode(value).ok());
    // Another copy, or a ledger that was accepted or restored, may take the same number: what it had before says of which history it is.
    first.is_some_and(|first| (first.before_number, first.before_nonce) == (archived.number, archived.nonce))
}

/// Runs it.
pub struct Shipping(pub Arc<Shipper>);

#[async_trait::async_trait]
impl Worker for Shipping {
    fn name(&self) -> &'static str {
        "archive"
    }

    fn rest(&self) -> Duration {
        PERIOD
    }

    async fn step(&self) -> Result<Step> {
        self.0.work().await
    }

    async fn woken(&self) {
        tokio::select! {
            () = self.0.tap.woken() => {}
            () = self.0.archive.wake.notified() => {}
        }
    }
}

/// Lets go of what is old in the archive.
pub struct Retiring(pub Arc<Shipper>);

#[async_trait::async_trait]
impl Worker for Retiring {
    fn name(&self) -> &'static str {
        "archive retention"
    }

    fn rest(&self) -> Duration {
        RETIRE_PERIOD
    }

    async fn step(&self) -> Result<Step> {
        self.0.retire().await
    }
}
