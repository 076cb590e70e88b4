//! What nothing names, for operators: the list, letting go of it at once, and making an object of it again.
//!
//! Invariant: a purge runs only on the blobs that its plan counted: the plan has a fingerprint of them.
//! Invariant: what an object names is in no purge of everything; by its own name only.
//! Invariant: what is restored gets its rows in one commit with the end of its being set aside, so that nobody lets go of it meanwhile.

use super::operations::{Answer, Refusal};
use crate::error::Error;
use crate::ledger::model::{BlobRef, BlobRow, ObjectRow, UnnamedRow, UnnamedWhy, VolumeRow};
use crate::ledger::{CommitBuilder, Typed, key};
use crate::maintenance::unnamed::Reference;
use crate::maintenance::unnamed::judge::{Verdict, Why, judge};
use crate::maintenance::unnamed::keep::Keep;
use crate::object::Objects;
use crate::object::readers::BlobKey;
use crate::placement::volumes::Volume;
use bytes::Bytes;
use ec_core::Codec;
use ec_core::stripe::{BLOB_BYTES_MAX, SHARD_BYTES_MAX};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;
use storage_node::protocol::ShardKey;

/// So many blobs are on a page of the list.
pub const PAGE_MAX: usize = 1_000;
const DEADLINE: Duration = Duration::from_secs(10);
/// A blob has at most so many stripes: one of a replica volume has 64.
const STRIPES_MAX: usize = 1_000;

/// The list, or a page of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UnnamedPage {
    /// How long it is kept.
    pub keep: Keep,
    /// Blobs in all, as they were last counted.
    pub blobs: u64,
    /// Bytes of their shards.
    pub bytes: u64,
    /// Why nothing goes by itself, if nothing does.
    pub stopped: Option<String>,
    /// Units of volumes that the ledger does not know, as the last census found them.
    #[serde(default)]
    pub unknown_units: u64,
    /// Blobs, in the order of their volumes and ids.
    pub lines: Vec<UnnamedLine>,
    /// Where the next page begins: `VOLUME/BLOB`; none if this is the last.
    pub next: Option<String>,
}

/// A blob that is set aside.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UnnamedLine {
    /// Its volume.
    pub volume: u64,
    /// Its id.
    pub blob: u64,
    /// Bytes of its shards.
    pub bytes: u64,
    /// How many there are.
    pub shards: u64,
    /// Units that have some.
    pub units: Vec<u32>,
    /// When it was first seen, in milliseconds since 1970.
    pub seen_ms: u64,
    /// Complete censuses that found it.
    pub censuses: u32,
    /// `census`, or `dead gateway` if its id is of one.
    pub found_by: String,
    /// It goes after so many more complete censuses,
    pub censuses_left: u32,
    /// and so many more seconds of running.
    pub run_s_left: u64,
    /// Why it stays, if it does.
    pub kept: Option<String>,
}

/// Letting go of blobs.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PurgeRequest {
    /// Which, as volume and blob; all that are set aside and that no object names, if empty.
    #[serde(default)]
    pub blobs: Vec<(u64, u64)>,
    /// [`PurgePlan::plan`], if it is to run.
    #[serde(default)]
    pub plan: Option<String>,
}

/// What would go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PurgePlan {
    /// What it is planned on.
    pub plan: String,
    /// Blobs that go.
    pub blobs: u64,
    /// Bytes of their shards.
    pub bytes: u64,
    /// Of these, blobs that may be of a ledger that was given up.
    pub of_another_ledger: u64,
    /// Of these, blobs that objects name, which cannot be read any more then: the first few, and what names them.
    pub named: Vec<String>,
    /// Blobs that stay because objects name them.
    pub left: u64,
    /// Why it cannot be done, if it cannot.
    pub refused: Option<String>,
}

/// Making an object of a blob.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestoreRequest {
    /// Its volume.
    pub volume: u64,
    /// Its id.
    pub blob: u64,
    /// The name of the object. None: it gets back the row that the objects which name it miss.
    #[serde(default)]
    pub object: Option<ObjectName>,
}

/// A bucket and a key in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectName {
    /// The bucket.
    pub bucket: String,
    /// The key.
    pub key: String,
}

/// What a blob is again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Restored {
    /// The object: `bucket/key`.
    pub object: String,
    /// Bytes.
    pub length: u64,
    /// Of these, so many at the end may be padding, and not what was uploaded.
    pub padding_max: u64,
    /// What else is to be known of it.
    pub notes: Vec<String>,
}

/// What the disks say of a blob.
#[derive(Debug, PartialEq, Eq)]
struct Extent {
    length: u64,
    padding_max: u64,
    /// Stripes past the end, of which too little is there.
    torn: usize,
}

impl Objects {
    /// A page of what is set aside, after a blob if one is told.
    pub async fn unnamed_page(&self, after: Option<BlobKey>) -> Answer<UnnamedPage> {
        let mut range = key::table(b'U');
        if let Some((volume, blob)) = after {
            range.start = key::after(&key::unnamed(volume, blob));
        }
        let (keep, ran_s) = self.keep().await?;
        let kept_below = self.kept_below_blob().await?;
        let rows = self
            .ledger
            .scan::<UnnamedRow>(range, PAGE_MAX)
            .await
            .map_err(Error::from)?;
        let is_full = rows.len() == PAGE_MAX;
        let line = |(row_key, row): (Bytes, Typed<UnnamedRow>)| {
            Some(line(
                key::volume_and_blob(&row_key)?,
                row.row,
                &keep,
                ran_s,
                kept_below,
            ))
        };
        let lines: Vec<UnnamedLine> = rows.into_iter().filter_map(line).collect();
        let last = lines.last().filter(|_| is_full);
        let summary = self.unnamed.summary();
        let census = self.scrub_row().await?.last;
        Ok(UnnamedPage {
            keep,
            unknown_units: census.map_or(0, |census| census.unknown_units),
            blobs: summary.blobs,
            bytes: summary.bytes,
            stopped: summary.stopped,
            next: last.map(|line| format!("{}/{}", line.volume, line.blob)),
            lines,
        })
    }

    /// What letting go of blobs would do; with the fingerprint of such a plan, it is done.
    pub async fn purge(&self, request: &PurgeRequest) -> Answer<PurgePlan> {
        let rows = self.asked_for(&request.blobs).await?;
        let kept_below = self.kept_below_blob().await?;
        let named = self
            .references(&rows.iter().map(|(blob, _)| *blob).collect())
            .await?;
        let is_all = request.blobs.is_empty();
        let (left, going): (Vec<_>, Vec<_>) = rows
            .into_iter()
            .partition(|(blob, _)| is_all && named.contains_key(blob));
        let mut hasher = blake3::Hasher::new();
        for ((volume, blob), _) in &going {
            hasher.update(&volume.to_le_bytes());
            hasher.update(&blob.to_le_bytes());
        }
        let say = |((volume, blob), _): &(BlobKey, Typed<UnnamedRow>)| {
            let reference = named.get(&(*volume, *blob))?;
            Some(format!("{volume}/{blob}: {}", reference.by))
        };
        let plan = PurgePlan {
            plan: hasher.finalize().to_hex()[..16].to_string(),
            blobs: going.len() as u64,
            bytes: going.iter().map(|(_, row)| row.row.bytes).sum(),
            of_another_ledger: going.iter().filter(|((_, blob), _)| *blob < kept_below).count() as u64,
            named: going.iter().filter_map(say).take(20).collect(),
            left: left.len() as u64,
            refused: self.holds.all().into_iter().next().map(|(_, why)| why),
        };
        let Some(wanted) = &request.plan else {
            return Ok(plan);
        };
        if *wanted != plan.plan {
            return Err(Refusal::Outdated);
        }
        if let Some(why) = &plan.refused {
            return Err(Refusal::Refused(why.clone()));
        }
        let versions: Vec<_> = going.iter().map(|(blob, row)| (*blob, row.version)).collect();
        let purged = self.purge_unnamed(&versions).await?;
        tracing::info!(
            blobs = purged.len(),
            planned = plan.blobs,
            "unnamed blobs are purged: an operator decided"
        );
        match purged.len() as u64 == plan.blobs {
            true => Ok(plan),
            false => Err(Refusal::Failed(format!(
                "{} of {} blobs go; the others changed meanwhile: look at the list",
                purged.len(),
                plan.blobs
            ))),
        }
    }

    /// The rows of these blobs, all of which must be there; or of all.
    async fn asked_for(&self, blobs: &[BlobKey]) -> Answer<Vec<(BlobKey, Typed<UnnamedRow>)>> {
        let mut rows = Vec::new();
        if blobs.is_empty() {
            let each =
                |row_key: Bytes, row| rows.extend(key::volume_and_blob(&row_key).map(|blob| (blob, row)));
            self.ledger
                .for_each(key::table(b'U'), each)
                .await
                .map_err(Error::from)?;
            return Ok(rows);
        }
        let wanted: std::collections::BTreeSet<BlobKey> = blobs.iter().copied().collect();
        let keys = wanted
            .iter()
            .map(|(volume, blob)| key::unnamed(*volume, *blob))
            .collect();
        let found = self
            .ledger
            .get_many::<UnnamedRow>(keys)
            .await
            .map_err(Error::from)?;
        for (blob, found) in wanted.into_iter().zip(found) {
            let row = found.ok_or_else(|| not_set_aside(blob))?;
            rows.push((blob, row));
        }
        Ok(rows)
    }

    /// Makes an object of a blob that is set aside, or gives it back its row.
    pub async fn restore_unnamed(&self, request: &RestoreRequest) -> Answer<Restored> {
        let blob = (request.volume, request.blob);
        let rows = self.asked_for(&[blob]).await?;
        let version = rows
            .first()
            .map(|(_, row)| row.version)
            .ok_or_else(|| not_set_aside(blob))?;
        let volume = self.known_volume(blob.0).await?;
        let codec = self.codecs.get(volume.scheme)?;
        let extent = self.extent(&volume, &codec, blob.1).await?;
        let mut named = self.references(&HashSet::from([blob])).await?;
        let mut notes = Vec::new();
        if extent.torn > 0 {
            notes.push(format!(
                "of {} more stripes too few shards are there: what was uploaded was longer",
                extent.torn
            ));
        }
        let (row_key, unnamed) = (key::blob(blob.0, blob.1), key::unnamed(blob.0, blob.1));
        let commit = CommitBuilder::new()
            .expect(&row_key, None)
            .expect(&key::garbage(blob.0, blob.1), None)
            .expect(&unnamed, Some(version))
            .delete(unnamed);
        let (commit, restored) = match (&request.object, named.remove(&blob)) {
            (None, Some(reference)) => {
                let length = named_length(&extent, &reference, blob)?;
                let row = BlobRow {
                    length,
                    references: reference.times,
                    owner: reference.by.clone(),
                };
                let restored = Restored {
                    object: reference.by,
                    length,
                    padding_max: 0,
                    notes,
                };
                (commit.put(row_key, &row), restored)
            }
            (Some(_), Some(reference)) => {
                return Err(Refusal::Refused(format!(
                    "{} names it, and only its own row is missing: restore it without a name",
                    reference.by
                )));
            }
            (None, None) => {
                return Err(Refusal::Refused(
                    "no object names it: say which bucket and key it is to have".into(),
                ));
            }
            (Some(name), None) => {
                if rows.iter().any(|(_, row)| row.row.why() == UnnamedWhy::DeadLease) {
                    notes.push("a gateway died while this was uploaded: it may be only the beginning".into());
                }
                if extent.padding_max > 0 {
                    notes.push(format!(
                        "the disks do not say how long the last stripe is: up to {} zero bytes at the end may be padding",
                        extent.padding_max
                    ));
                }
                let (commit, row) = self.object_over(commit, name, blob, extent.length).await?;
                let restored = Restored {
                    object: format!("{}/{}", name.bucket, name.key),
                    length: extent.length,
                    padding_max: extent.padding_max,
                    notes,
                };
                (commit.put(row_key, &row), restored)
            }
        };
        let committed = self.ledger.commit(self.lease.fence(commit).build()).await;
        committed.map_err(Error::from)?;
        tracing::info!(
            volume = blob.0,
            blob = blob.1,
            object = restored.object,
            "a blob that nothing named is an object again"
        );
        Ok(restored)
    }

    /// Adds the row of a new object to a commit. And the blob's row.
    async fn object_over(
        &self,
        commit: CommitBuilder,
        name: &ObjectName,
        (volume, blob): BlobKey,
        length: u64,
    ) -> Answer<(CommitBuilder, BlobRow)> {
        let bucket = match self.bucket_to_change(&name.bucket).await {
            Err(Error::NoSuchBucket) => {
                return Err(Refusal::NotFound(format!("there is no bucket {:?}", name.bucket)));
            }
            bucket => bucket?,
        };
        let too_long = name.key.is_empty() || name.key.len() > 1_024;
        if too_long {
            return Err(Refusal::Refused("a key has 1 to 1,024 bytes".into()));
        }
        let row_key = key::object(bucket.row.id, &name.key);
        let there = self
            .ledger
            .get::<ObjectRow>(row_key.clone())
            .await
            .map_err(Error::from)?;
        if there.is_some() {
            return Err(Refusal::Refused(format!(
                "there is an object {}/{}: choose another key",
                name.bucket, name.key
            )));
        }
        let digest = blake3::hash(format!("{volume}/{blob}").as_bytes()).to_hex();
        let object = ObjectRow {
            size: length,
            // Not an MD5, as the ETag of an object that came in parts is none: so no client takes it for one.
            etag: format!("{}-1", &digest[..32]),
            modified_ms: self.clock.now_ms(),
            blobs: vec![BlobRef { volume, blob, length }],
            ..ObjectRow::default()
        };
        let row = BlobRow {
            length,
            references: 1,
            owner: format!("{}/{}", name.bucket, name.key),
        };
        let commit = commit
            .expect(&key::bucket(&name.bucket), Some(bucket.version))
            .expect(&row_key, None)
            .put(row_key, &object);
        Ok((commit, row))
    }

    async fn known_volume(&self, id: u64) -> Answer<std::sync::Arc<Volume>> {
        let row = self
            .ledger
            .get::<VolumeRow>(key::volume(id))
            .await
            .map_err(Error::from)?;
        if row.is_none() {
            return Err(Refusal::NotFound(format!("the ledger has no volume {id}")));
        }
        Ok(self.volumes.refresh(id).await?)
    }

    /// How long a blob is, by what the disks of its volume have of it.
    async fn extent(&self, volume: &Volume, codec: &Codec, blob: u64) -> Answer<Extent> {
        let mut stripes: BTreeMap<u32, BTreeMap<usize, u32>> = BTreeMap::new();
        for index in 0..volume.disks.len() {
            let Some(disk) = self.disks.get(volume.disks[index]) else {
                continue;
            };
            let Some(client) = &disk.client else { continue };
            let after = blob.checked_sub(1).map(|blob| ShardKey {
                blob,
                stripe: u32::MAX,
            });
            let address = volume.address(index as u8, &disk);
            // What cannot be asked is as if it was not there: there may be enough without it.
            let Ok(page) = client.inventory(&address, after, STRIPES_MAX, DEADLINE).await else {
                continue;
            };
            for entry in page.iter().filter(|entry| entry.key.blob == blob) {
                stripes
                    .entry(entry.key.stripe)
                    .or_default()
                    .insert(index, entry.len);
            }
        }
        extent_of(codec, &stripes)
    }
}

/// How long a blob is that consists of these stripes: of each, which units have a shard, and how long it is.
fn extent_of(codec: &Codec, stripes: &BTreeMap<u32, BTreeMap<usize, u32>>) -> Answer<Extent> {
    let data = codec.scheme().data_shards() as u64;
    let shard_max = u64::from(SHARD_BYTES_MAX).min(BLOB_BYTES_MAX / data);
    let mut whole = Vec::new();
    for stripe in 0.. {
        let Some(shards) = stripes.get(&stripe) else { break };
        // Units that disagree: those of one length that are enough to decode with.
        let mut by_length: HashMap<u32, Vec<usize>> = HashMap::new();
        shards
            .iter()
            .for_each(|(index, len)| by_length.entry(*len).or_default().push(*index));
        let enough = |units: &Vec<usize>| codec.code().is_decodable(units.clone()) == Ok(true);
        let mut lengths = by_length
            .iter()
            .filter(|(_, units)| enough(units))
            .map(|(len, _)| *len);
        match (lengths.next(), lengths.next()) {
            (Some(len), None) => whole.push(u64::from(len)),
            (Some(_), Some(_)) => {
                return Err(Refusal::Refused(format!(
                    "the disks disagree about the length of stripe {stripe}, and the shards of either length could be decoded"
                )));
            }
            (None, _) => break,
        }
    }
    let Some((last, before)) = whole.split_last() else {
        return Err(Refusal::Refused(
            "too few of its shards can be reached to decode its first stripe".into(),
        ));
    };
    if before.iter().any(|len| *len != shard_max) || *last > shard_max || *last == 0 {
        return Err(Refusal::Refused(
            "its stripes are not those of one blob: only the last one may be short".into(),
        ));
    }
    let length = data * (shard_max * before.len() as u64 + last);
    if length > BLOB_BYTES_MAX {
        return Err(Refusal::Refused("it is longer than a blob can be".into()));
    }
    Ok(Extent {
        length,
        // A full stripe may be short of its end by as much, too.
        padding_max: data - 1,
        torn: stripes.len() - whole.len(),
    })
}

/// The length that a blob is named with, if the disks have that much.
fn named_length(extent: &Extent, reference: &Reference, blob: BlobKey) -> Answer<u64> {
    let fits = (extent.length - extent.padding_max..=extent.length).contains(&reference.length);
    match fits {
        true => Ok(reference.length),
        false => Err(Refusal::Refused(format!(
            "{} names blob {}/{} with {} bytes, and the disks have {} of it",
            reference.by, blob.0, blob.1, reference.length, extent.length
        ))),
    }
}

fn not_set_aside((volume, blob): BlobKey) -> Refusal {
    Refusal::NotFound(format!("blob {volume}/{blob} is not set aside"))
}

fn line((volume, blob): BlobKey, row: UnnamedRow, keep: &Keep, ran_s: u64, kept_below: u64) -> UnnamedLine {
    let (censuses_left, run_s_left, kept) = match judge(blob, &row, keep, ran_s, kept_below) {
        Verdict::Goes => (0, 0, None),
        Verdict::Waits { censuses, run_s } => (censuses, run_s, None),
        Verdict::Kept(Why::Referenced) => (
            0,
            0,
            Some(format!("{} names it, and its own row is missing", row.named_by)),
        ),
        Verdict::Kept(Why::OfAnotherLedger) => (0, 0, Some("it may be of a ledger that was given up".into())),
    };
    let found_by = match row.why() {
        UnnamedWhy::Census => "census",
        UnnamedWhy::DeadLease => "dead gateway",
    };
    UnnamedLine {
        volume,
        blob,
        bytes: row.bytes,
        shards: row.shards,
        units: row.units,
        seen_ms: row.seen_ms,
        censuses: row.censuses,
        found_by: found_by.into(),
        censuses_left,
        run_s_left,
        kept,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ec_core::Kernel;

    fn stripes(all: &[&[(usize, u32)]]) -> BTreeMap<u32, BTreeMap<usize, u32>> {
        let numbered = (0u32..).zip(all);
        numbered
            .map(|(n, shards)| (n, shards.iter().copied().collect()))
            .collect()
    }

    #[test]
    fn the_length_is_told_from_the_shards_or_refused() {
        let codec = Codec::new("rs(4,2)".parse().expect("a scheme"), Kernel::Scalar).expect("a codec");
        let full: Vec<(usize, u32)> = (0..6).map(|i| (i, SHARD_BYTES_MAX)).collect();
        let short = [(0, 100), (2, 100), (4, 100), (5, 100)];
        let torn = [(0, 7), (1, 7)];
        let told = extent_of(&codec, &stripes(&[&full, &short, &torn])).expect("a length");
        let length = 4 * (u64::from(SHARD_BYTES_MAX) + 100);
        assert_eq!((told.length, told.padding_max, told.torn), (length, 3, 1));
        for bad in [
            stripes(&[]),
            stripes(&[&torn]),
            stripes(&[&short, &full]),
            stripes(&[&[(0, 1), (1, 1), (2, 1), (3, 2)]]),
        ] {
            assert!(extent_of(&codec, &bad).is_err(), "{bad:?}");
        }
        let copies = Codec::new("replica(3)".parse().expect("a scheme"), Kernel::Scalar).expect("a codec");
        let told = extent_of(&copies, &stripes(&[&[(1, 5)]])).expect("a length");
        assert_eq!((told.length, told.padding_max), (5, 0));
        assert!(
            extent_of(&copies, &stripes(&[&[(1, 5), (2, 6)]])).is_err(),
            "either may be it"
        );
    }

    #[test]
    fn a_named_length_must_be_there() {
        let extent = Extent {
            length: 400,
            padding_max: 3,
            torn: 0,
        };
        for (length, fits) in [(396, false), (397, true), (400, true), (401, false)] {
            let reference = Reference {
                length,
                ..Reference::default()
            };
            assert_eq!(
                named_length(&extent, &reference, (1, 2)).is_ok(),
                fits,
                "{length}"
            );
        }
    }
}
