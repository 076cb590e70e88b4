//! Finds the archive on disks, by what they say they hold, and reads it.
//!
//! Invariant: an entry is read from whichever of its copies verifies; it is missing only when none does.

use super::entry::{Digest, EntryError, HEADER_BYTES, Header, Kind, Writer};
use super::state::Rotten;
use crate::object::off_reactor;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use storage_node::client::StorageClient;
use storage_node::protocol::{
    BlockRange, ClusterId, DiskId, Generation, NodeError, SHARD_BYTES_MAX, ShardKey, UnitAddress, UnitId,
    bad_block, seal_seed,
};

const DEADLINE: Duration = Duration::from_secs(10);
/// Entries that are looked at at once.
const AT_ONCE: usize = 16;
/// The most copies that are remembered to be wrong.
const ROTTEN_MAX: usize = 1_000;
/// Entries of one page of an inventory.
const PAGE: usize = 10_000;
/// Entries from the end on that are looked at to find the last one of the log: others come between while a snapshot is made.
const TAIL_MAX: usize = 2_048;
/// So many bytes are hashed in microseconds.
const CHECKED_HERE_MAX: usize = 64 << 10;
/// A disk that left so many reads unanswered is not asked any more: there are other copies, and each costs a deadline.
const UNANSWERED_MAX: u32 = 2;
/// The greatest number that is believed. An archive that wrote a billion entries a second would take years to get there.
const NUMBER_MAX: u64 = 1 << 56;
/// The most entries that are believed to be there: an archive is far smaller.
const ENTRIES_MAX: usize = 2_000_000;

/// A disk to look at.
#[derive(Clone)]
pub struct Source {
    /// Which.
    pub disk: DiskId,
    /// Its incarnation.
    pub incarnation: u64,
    /// The generation of the ledger that it obeys.
    pub ledger: Generation,
    /// Reaches it.
    pub client: Arc<dyn StorageClient>,
}

/// A unit of a system volume, on a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The disk.
    pub disk: DiskId,
    /// The unit.
    pub unit: UnitId,
    /// Its epoch there.
    pub epoch: u32,
}

/// Where an entry is.
pub type Places = Arc<Vec<Place>>;

/// What was found.
#[derive(Clone, Default)]
pub struct Found {
    /// Entries whose header verifies, each once, and where they are.
    pub entries: Vec<(Header, Places)>,
    /// All units of system volumes, with the number of blobs in each.
    pub units: BTreeMap<Place, usize>,
    /// Blobs of system volumes without a readable header of this cluster, and why, of the first copy that said.
    pub unreadable: Vec<(u64, EntryError)>,
    /// Disks that did not say what they hold.
    pub silent: Vec<(DiskId, NodeError)>,
}

/// Reads from some disks.
pub struct Finder {
    cluster: ClusterId,
    sources: HashMap<DiskId, Source>,
    deadline: Duration,
    /// Copies that were read and are wrong.
    rotten: Mutex<Vec<Rotten>>,
    /// How often each disk did not answer a read.
    unanswered: Mutex<HashMap<DiskId, u32>>,
}

/// Why there is no stripe from a disk.
enum Miss {
    /// It does not have it, or not as it was written.
    Wrong,
    /// It did not answer.
    Silent,
}

/// How far an archive goes, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Newest {
    /// Who wrote the last entry.
    pub writer: Writer,
    /// The last commit that this one is known to have had.
    pub position: u64,
}

impl Finder {
    /// For a cluster's archive.
    pub fn new(cluster: ClusterId, sources: impl IntoIterator<Item = Source>) -> Finder {
        let sources = sources.into_iter().map(|source| (source.disk, source));
        Finder {
            cluster,
            sources: sources.collect(),
            deadline: DEADLINE,
            rotten: Mutex::default(),
            unanswered: Mutex::default(),
        }
    }

    /// Waits for each answer no longer than this.
    pub fn within(self, deadline: Duration) -> Finder {
        Finder { deadline, ..self }
    }

    /// Where the archive ends, by the headers of its last entries; none if there is none on the disks that answer.
    pub async fn newest(&self) -> Option<Newest> {
        let looked = self.sources.values().map(|source| self.look(source, 0));
        let held = futures::future::join_all(looked).await;
        let mut copies: BTreeMap<(u64, u64), Vec<Place>> = BTreeMap::new();
        for (place, blobs) in held.into_iter().filter_map(|held| held.ok()).flatten() {
            // Of what is older no unit needs to tell.
            for blob in blobs.into_iter().rev().take(TAIL_MAX) {
                copies.entry((blob, place.unit.volume)).or_default().push(place);
            }
        }
        let copies: Vec<_> = copies.into_iter().rev().take(TAIL_MAX).collect();
        let mut newest: Option<Newest> = None;
        for some in copies.chunks(AT_ONCE) {
            let headers = some
                .iter()
                .map(|((number, _), places)| self.header(*number, places));
            let headers = futures::future::join_all(headers).await;
            let mut has_log = false;
            for header in headers.into_iter().filter_map(|header| header.ok()) {
                let (writer, position) = (header.writer, header.last);
                has_log |= header.kind == Kind::Log;
                newest = match newest {
                    Some(known) if known.writer == writer => Some(Newest {
                        writer,
                        position: position.max(known.position),
                    }),
                    Some(known) if known.writer.number >= writer.number => Some(known),
                    _ => Some(Newest { writer, position }),
                };
            }
            if has_log {
                break;
            }
        }
        newest
    }

    /// Looks at all disks at once. `from`: entries with a smaller number are of no interest.
    pub async fn find(&self, from: u64) -> Found {
        let looked = self.sources.values().map(|source| async {
            let held = self.look(source, from).await;
            (source.disk, held)
        });
        let mut found = Found::default();
        // By volume and number: the copies of one entry.
        let mut copies: BTreeMap<(u64, u64), Vec<Place>> = BTreeMap::new();
        for (disk, held) in futures::future::join_all(looked).await {
            match held {
                Ok(held) => {
                    for (place, blobs) in held {
                        found.units.insert(place, blobs.len());
                        for blob in blobs.into_iter().take(ENTRIES_MAX) {
                            copies.entry((place.unit.volume, blob)).or_default().push(place);
                        }
                    }
                }
                Err(error) => found.silent.push((disk, error)),
            }
        }
        let headers = copies.into_iter().map(|((_, number), places)| async move {
            let header = self.header(number, &places).await;
            (number, header, places)
        });
        let mut headers = futures::stream::iter(headers).buffer_unordered(AT_ONCE);
        let mut by_digest: HashMap<Digest, (Header, Vec<Place>)> = HashMap::new();
        while let Some((number, header, places)) = headers.next().await {
            match header {
                Ok(header) => {
                    let known = by_digest.entry(header.digest());
                    known.or_insert_with(|| (header, Vec::new())).1.extend(places);
                }
                Err(error) => found.unreadable.push((number, error)),
            }
        }
        found.entries = by_digest
            .into_values()
            .map(|(header, places)| (header, Arc::new(places)))
            .collect();
        found.entries.sort_by_key(|(header, _)| header.number);
        found
    }

    /// The blobs of each unit of a system volume on a disk.
    async fn look(&self, source: &Source, from: u64) -> Result<Vec<(Place, Vec<u64>)>, NodeError> {
        let units = source
            .client
            .units(source.disk, source.incarnation, self.deadline)
            .await?;
        let mut held = Vec::new();
        for info in units.into_iter().filter(|info| info.unit.is_system()) {
            let place = Place {
                disk: source.disk,
                unit: info.unit,
                epoch: info.epoch,
            };
            held.push((place, self.blobs(source, &place, from).await?));
        }
        Ok(held)
    }

    async fn blobs(&self, source: &Source, place: &Place, from: u64) -> Result<Vec<u64>, NodeError> {
        let mut blobs: Vec<u64> = Vec::new();
        let mut after = from.checked_sub(1).map(|blob| ShardKey {
            blob,
            stripe: u32::MAX,
        });
        loop {
            let page = source
                .client
                .inventory(&address(source, place), after, PAGE, self.deadline)
                .await?;
            for entry in &page {
                if blobs.last() != Some(&entry.key.blob) {
                    blobs.push(entry.key.blob);
                }
            }
            match page.last() {
                Some(last) if page.len() == PAGE && blobs.len() < ENTRIES_MAX => after = Some(last.key),
                _ => return Ok(blobs),
            }
        }
    }

    /// The blobs below a number, unit by unit, on the disks that say.
    pub(super) async fn blobs_below(&self, number: u64) -> Vec<(Place, Vec<u64>)> {
        let looked = self.sources.values().map(|source| self.look(source, 0));
        let looked = futures::future::join_all(looked).await;
        let mut all: Vec<(Place, Vec<u64>)> = looked
            .into_iter()
            .filter_map(|held| held.ok())
            .flatten()
            .collect();
        for (_, blobs) in &mut all {
            blobs.retain(|blob| *blob < number);
        }
        all
    }

    /// The header of an entry, from whichever copy has it.
    pub(super) async fn header(&self, number: u64, places: &[Place]) -> Result<Header, EntryError> {
        let mut failure = EntryError::Damaged("no disk gives it");
        let mut is_silent = false;
        for place in places {
            let first = BlockRange { first: 0, count: 1 };
            let block = match self.stripe(number, 0, place, first).await {
                Ok(block) => block,
                Err(miss) => {
                    is_silent |= matches!(miss, Miss::Silent);
                    continue;
                }
            };
            match Header::decode(&block, self.cluster) {
                Ok(header) if header.number == number => return Ok(header),
                Ok(_) => failure = EntryError::Damaged("it is another entry"),
                Err(error) => failure = error,
            }
        }
        Err(if is_silent { EntryError::Silent } else { failure })
    }

    /// The body of an entry, from whichever copies have it.
    pub async fn body(&self, header: &Header, places: &[Place]) -> Result<Bytes, EntryError> {
        let stripes = header.total_bytes().div_ceil(SHARD_BYTES_MAX as usize) as u32;
        let mut failure = EntryError::Damaged("no disk gives it");
        let mut is_silent = false;
        for place in places {
            let mut bytes = BytesMut::with_capacity(header.total_bytes());
            for stripe in 0..stripes {
                match self.stripe(header.number, stripe, place, BlockRange::ALL).await {
                    Ok(stripe) => bytes.extend_from_slice(&stripe),
                    Err(miss) => {
                        is_silent |= matches!(miss, Miss::Silent);
                        break;
                    }
                }
            }
            let bytes = bytes.freeze();
            if bytes.get(..HEADER_BYTES) != Some(&header.encode()[..]) {
                continue;
            }
            let own = *header;
            let checked = match bytes.len() > CHECKED_HERE_MAX {
                true => off_reactor(move || own.check_body(&bytes)).await,
                false => Ok(own.check_body(&bytes)),
            };
            match checked.unwrap_or(Err(EntryError::Silent)) {
                Ok(body) => return Ok(body),
                Err(error) => failure = error,
            }
        }
        Err(if is_silent { EntryError::Silent } else { failure })
    }

    /// Blocks of a stripe from one disk, as they were written.
    async fn stripe(&self, blob: u64, stripe: u32, place: &Place, blocks: BlockRange) -> Result<Bytes, Miss> {
        let source = self.sources.get(&place.disk).ok_or(Miss::Silent)?;
        if self.unanswered().get(&place.disk) >= Some(&UNANSWERED_MAX) {
            return Err(Miss::Silent);
        }
        let key = ShardKey { blob, stripe };
        let from = address(source, place);
        let read = match source.client.get(&from, key, blocks, self.deadline).await {
            Ok(read) => read,
            Err(NodeError::Corrupt { .. }) => {
                self.note_rotten(place, blob);
                return Err(Miss::Wrong);
            }
            Err(NodeError::NotFound | NodeError::Deleted) => return Err(Miss::Wrong),
            Err(error) => {
                if error == NodeError::Timeout {
                    *self.unanswered().entry(place.disk).or_default() += 1;
                }
                return Err(Miss::Silent);
            }
        };
        let seed = seal_seed(place.unit, key, read.shard_len);
        let is_right = read.first_block == 0 && bad_block(seed, &read.payload, &read.block_crcs).is_none();
        if !is_right {
            self.note_rotten(place, blob);
        }
        match is_right {
            true => Ok(read.payload),
            false => Err(Miss::Wrong),
        }
    }

    fn unanswered(&self) -> MutexGuard<'_, HashMap<DiskId, u32>> {
        self.unanswered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_rotten(&self, place: &Place, number: u64) {
        let mut rotten = self.rotten.lock().unwrap_or_else(PoisonError::into_inner);
        if rotten.len() < ROTTEN_MAX {
            let (disk, unit) = (place.disk, place.unit);
            rotten.push(Rotten { disk, unit, number });
        }
    }

    /// Copies that were read and are wrong, since this was asked last.
    pub(super) fn take_rotten(&self) -> Vec<Rotten> {
        std::mem::take(&mut *self.rotten.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// All copies of an entry of a volume, where disks say that they have that volume; none if a disk that may have it does not say.
    pub(super) async fn places_of(&self, volume: u64) -> Option<Vec<Place>> {
        let asked = self.sources.values().map(async |source| {
            let (disk, client) = (source.disk, &source.client);
            let units = client.units(disk, source.incarnation, self.deadline).await;
            units.map(|units| (disk, units))
        });
        let mut places = Vec::new();
        for answer in futures::future::join_all(asked).await {
            let (disk, units) = answer.ok()?;
            let of_volume = units.into_iter().filter(|info| info.unit.volume == volume);
            places.extend(of_volume.map(|info| Place {
                disk,
                unit: info.unit,
                epoch: info.epoch,
            }));
        }
        Some(places)
    }

    /// Whether a copy is what was written.
    pub(super) async fn is_right(&self, header: &Header, place: &Place) -> bool {
        self.body(header, std::slice::from_ref(place)).await.is_ok()
    }

    /// Deletes entries from the units that hold them. True if all disks said that they did.
    pub(super) async fn delete(&self, place: &Place, blobs: &[u64]) -> Result<(), NodeError> {
        let Some(source) = self.sources.get(&place.disk) else {
            return Err(NodeError::WrongDisk);
        };
        for blobs in blobs.chunks(storage_node::client::DELETE_BLOBS_MAX) {
            let from = address(source, place);
            source.client.delete(&from, blobs, self.deadline).await?;
        }
        Ok(())
    }

    /// Drops a unit that holds nothing.
    pub(super) async fn drop_unit(&self, place: &Place) -> Result<(), NodeError> {
        match self.sources.get(&place.disk) {
            Some(source) => {
                source
                    .client
                    .drop_unit(&address(source, place), self.deadline)
                    .await
            }
            None => Err(NodeError::WrongDisk),
        }
    }
}

fn address(source: &Source, place: &Place) -> UnitAddress {
    UnitAddress {
        disk: source.disk,
        incarnation: source.incarnation,
        unit: place.unit,
        epoch: place.epoch,
        ledger: source.ledger,
    }
}

impl Found {
    /// The greatest number that any blob of a system volume has, readable or not; of those that can be.
    pub fn newest_number(&self) -> u64 {
        let unreadable = self.unreadable.iter().map(|(number, _)| *number);
        let entries = self.entries.iter().map(|(header, _)| header.number);
        let numbers = unreadable.chain(entries).filter(|number| *number <= NUMBER_MAX);
        numbers.max().unwrap_or(0)
    }
}
