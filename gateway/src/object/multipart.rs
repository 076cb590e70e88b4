//! Multipart uploads. A part is stored like an object; completing an upload moves no data: the object's row names the
//! parts' blobs in order.

use super::commit::BlobChange;
use super::condition::WriteConditions;
use super::copy::Source;
use super::digest::{Algorithm, hex};
use super::get::Wanted;
use super::ingest::ingest;
use super::put::{Expected, Stored, Target, checksum_row};
use super::{Body, Objects};
use crate::error::{Error, Result};
use crate::ledger::model::{BlobRef, ChecksumRow, Headers, ObjectRow, PartRow, PartSize, UploadRow};
use crate::ledger::{CommitBuilder, Typed, key};
use bytes::Bytes;
use ec_core::md5::Md5;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The highest part number.
pub const PARTS_MAX: u16 = 10_000;
/// The least bytes of a part that is not the last: 5 MiB.
pub const PART_BYTES_MIN: u64 = 5 << 20;

/// The most blobs of one object: 2.5 TiB of full ones. Deleting or replacing it must fit one ledger commit.
pub const BLOBS_MAX: usize = 40_000;

/// Blobs dropped in one commit when an upload is aborted.
const ABORT_BLOBS: usize = 10_000;

/// Which upload.
#[derive(Clone, Debug)]
pub struct UploadTarget {
    /// Its bucket.
    pub bucket: String,
    /// Its key.
    pub name: String,
    /// Its id.
    pub upload: u128,
}

/// A part as the client lists it when completing.
#[derive(Clone, Debug)]
pub struct ListedPart {
    /// Its number.
    pub number: u32,
    /// Its ETag, without quotes.
    pub etag: String,
    /// Its checksum, if given.
    pub checksum: Option<Vec<u8>>,
}

/// What the client says when completing, besides the parts.
#[derive(Clone, Debug, Default)]
pub struct Completion {
    /// Conditions on what the object is now.
    pub conditions: WriteConditions,
    /// The object's size, if given.
    pub size: Option<u64>,
    /// The object's checksum, if given.
    pub checksum: Option<Vec<u8>>,
    /// Whether that covers the object's content rather than its parts' checksums, if given.
    pub full_object: Option<bool>,
}

/// A page of parts.
pub struct PartsPage {
    /// The upload.
    pub upload: UploadRow,
    /// Numbers and rows, in order.
    pub parts: Vec<(u16, PartRow)>,
    /// Whether more follow.
    pub truncated: bool,
}

/// The id of an upload that begins now: later ones of this gateway are greater, so that those of a key are listed as they were begun.
fn new_upload(now_ms: u64) -> u128 {
    // Milliseconds since 1970, and 16 bits that tell those of one millisecond apart.
    static LAST: AtomicU64 = AtomicU64::new(0);
    let now = now_ms << 16;
    let next = |last: u64| Some(now.max(last.wrapping_add(1)));
    let last = LAST.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    let begun = now.max(last.unwrap_or_default().wrapping_add(1));
    u128::from(begun) << 64 | u128::from(rand::random::<u64>())
}

/// An upload id as clients see it.
pub fn upload_id(upload: u128) -> String {
    format!("{upload:032x}")
}

/// An upload id from a client.
pub fn parse_upload_id(id: &str) -> Result<u128> {
    let valid = id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit());
    valid
        .then(|| u128::from_str_radix(id, 16).ok())
        .flatten()
        .ok_or(Error::NoSuchUpload)
}

/// A part number from a client.
pub fn part_number(number: i32) -> Result<u16> {
    match u16::try_from(number) {
        Ok(number) if (1..=PARTS_MAX).contains(&number) => Ok(number),
        _ => Err(Error::InvalidArgument(format!(
            "part numbers are 1 to {PARTS_MAX}, not {number}"
        ))),
    }
}

impl Objects {
    /// Begins an upload.
    pub async fn create_upload(
        self: &Arc<Self>,
        bucket: &str,
        name: &str,
        headers: Headers,
        algorithm: Option<Algorithm>,
        full_object: bool,
    ) -> Result<u128> {
        self.ledger.check_writable()?;
        let (bucket, name) = (bucket.to_owned(), name.to_owned());
        self.decide_and_commit(None, move |objects| {
            let (bucket, name, headers) = (bucket.clone(), name.clone(), headers.clone());
            async move {
                let found = objects.bucket_to_change(&bucket).await?;
                let initiated_ms = objects.clock.now_ms();
                let upload = new_upload(initiated_ms);
                let row = UploadRow {
                    initiated_ms,
                    headers: Some(headers),
                    checksum_algorithm: algorithm.map(|a| a.name().to_string()).unwrap_or_default(),
                    checksum_full_object: full_object,
                };
                let row_key = key::upload(found.row.id, &name, upload);
                let commit = CommitBuilder::new()
                    .expect(&key::bucket(&bucket), Some(found.version))
                    .expect(&row_key, None)
                    .put(row_key, &row);
                Ok((commit, upload))
            }
        })
        .await
    }

    /// The row of an upload in progress, and its bucket's id.
    pub async fn upload(&self, target: &UploadTarget) -> Result<(u64, Typed<UploadRow>)> {
        let bucket = self.bucket(&target.bucket).await?.row.id;
        let row = self
            .ledger
            .get::<UploadRow>(key::upload(bucket, &target.name, target.upload))
            .await?;
        Ok((bucket, row.ok_or(Error::NoSuchUpload)?))
    }

    /// Stores a part; a part stored before under the number is replaced.
    pub async fn put_part(
        self: &Arc<Self>,
        target: UploadTarget,
        number: u16,
        body: Body,
        mut expected: Expected,
    ) -> Result<Stored> {
        self.ledger.check_writable()?;
        let (_, upload) = self.upload(&target).await?;
        let wanted = Algorithm::parse(&upload.row.checksum_algorithm);
        match (wanted, expected.algorithm) {
            (Some(wanted), Some(given)) if wanted != given => {
                return Err(Error::InvalidRequest(format!(
                    "the upload was created with checksum {}, the part came with {}",
                    wanted.name(),
                    given.name()
                )));
            }
            (Some(wanted), None) => expected.algorithm = Some(wanted),
            _ => {}
        }
        let (length, algorithm) = (expected.length.take(), expected.algorithm);
        let ingested = ingest(self, body, length, algorithm).await?;
        expected.verify(&ingested.digests)?;
        let row = PartRow {
            size: ingested.size,
            md5: Bytes::copy_from_slice(&ingested.digests.md5),
            modified_ms: self.clock.now_ms(),
            blobs: ingested.blobs,
            checksum: checksum_row(&ingested.digests),
        };
        let fresh = row.blobs.clone();
        self.commit_part(target, number, row, Some(ingested.pending), fresh, Vec::new())
            .await
    }

    /// Stores a part from an existing object: by reference if all of it is wanted, else by reading the range.
    pub async fn copy_part(
        self: &Arc<Self>,
        target: UploadTarget,
        number: u16,
        source: Source,
        wanted: Wanted,
    ) -> Result<Stored> {
        let (_, upload) = self.upload(&target).await?;
        let row = self.source_row(&source).await?;
        let plain_md5 = row.parts.is_empty().then(|| unhex(&row.etag)).flatten();
        match (wanted, plain_md5) {
            (Wanted::All, Some(md5)) if upload.row.checksum_algorithm.is_empty() => {
                let part = PartRow {
                    size: row.size,
                    md5: Bytes::copy_from_slice(&md5),
                    modified_ms: self.clock.now_ms(),
                    blobs: row.blobs.clone(),
                    checksum: None,
                };
                self.commit_part(target, number, part, None, Vec::new(), row.blobs)
                    .await
            }
            _ => {
                let (_, length, body) = self.source_body(&source, wanted).await?;
                let expected = Expected {
                    length: Some(length),
                    ..Default::default()
                };
                self.put_part(target, number, body, expected).await
            }
        }
    }

    async fn commit_part(
        self: &Arc<Self>,
        target: UploadTarget,
        number: u16,
        row: PartRow,
        pending: Option<super::abandoned::PendingBlobs>,
        fresh: Vec<BlobRef>,
        gained: Vec<BlobRef>,
    ) -> Result<Stored> {
        let stored = Stored {
            etag: hex(&row.md5),
            modified_ms: row.modified_ms,
            checksum: row.checksum.clone(),
            size: row.size,
        };
        self.decide_and_commit(pending, move |objects| {
            let (target, row, stored) = (target.clone(), row.clone(), stored.clone());
            let (fresh, gained) = (fresh.clone(), gained.clone());
            async move {
                let (bucket, upload) = objects.upload(&target).await?;
                let row_key = key::part(target.upload, number);
                let before = objects.ledger.get::<PartRow>(row_key.clone()).await?;
                let upload_key = key::upload(bucket, &target.name, target.upload);
                let mut commit = CommitBuilder::new()
                    .expect(&upload_key, Some(upload.version))
                    .expect(&row_key, before.as_ref().map(|b| b.version))
                    .put(row_key, &row);
                if before.is_none() {
                    // Whoever ends the upload and has seen its parts without this one must look again.
                    commit = commit.put(upload_key, &upload.row);
                }
                let lost = before.map(|b| b.row.blobs).unwrap_or_default();
                let owner = format!("{}/{}?part={number}", target.bucket, target.name);
                let change = BlobChange {
                    fresh,
                    gained,
                    lost,
                    owner,
                };
                Ok((objects.change_blobs(commit, &change).await?, stored))
            }
        })
        .await
    }

    /// Makes the object of an upload's parts. Completing an upload twice answers the same.
    pub async fn complete_upload(
        self: &Arc<Self>,
        target: UploadTarget,
        listed: Vec<ListedPart>,
        completion: Completion,
    ) -> Result<Stored> {
        if listed.is_empty() {
            return Err(Error::MalformedXml(
                "an upload is completed with at least one part".into(),
            ));
        }
        if listed.windows(2).any(|pair| pair[0].number >= pair[1].number) {
            return Err(Error::InvalidPartOrder);
        }
        self.decide_and_commit(None, move |objects| {
            let (target, listed, completion) = (target.clone(), listed.clone(), completion.clone());
            async move { objects.decide_completion(&target, &listed, &completion).await }
        })
        .await
    }

    async fn decide_completion(
        &self,
        target: &UploadTarget,
        listed: &[ListedPart],
        completion: &Completion,
    ) -> Result<(CommitBuilder, Stored)> {
        let (bucket, upload) = match self.upload(target).await {
            Err(Error::NoSuchUpload) => return self.completed_before(target).await,
            other => other?,
        };
        let decided = self
            .decide_completion_of(bucket, &upload, target, listed, completion)
            .await;
        // What was wrong with the parts means nothing if the upload changed, or ended, while they were read.
        match (&decided, self.upload(target).await) {
            (Ok(_), _) => decided,
            (Err(_), Ok((_, now))) if now.version == upload.version => decided,
            (Err(_), Err(error)) if !matches!(error, Error::NoSuchUpload) => Err(error),
            (Err(_), _) => Err(Error::Conflict),
        }
    }

    async fn decide_completion_of(
        &self,
        bucket: u64,
        upload: &Typed<UploadRow>,
        target: &UploadTarget,
        listed: &[ListedPart],
        completion: &Completion,
    ) -> Result<(CommitBuilder, Stored)> {
        let parts = self.all_parts(target.upload).await?;
        let chosen = choose_parts(listed, &parts)?;
        let row = assemble(&chosen, &upload.row, target.upload)?;
        if completion.size.is_some_and(|size| size != row.size) {
            return Err(Error::InvalidRequest(format!(
                "the parts have {} bytes, not what was announced",
                row.size
            )));
        }
        let has_checksum = !upload.row.checksum_algorithm.is_empty();
        if has_checksum
            && let Some(full) = completion.full_object
            && full != upload.row.checksum_full_object
        {
            return Err(Error::BadDigest {
                algorithm: "type of checksum",
            });
        }
        match (&completion.checksum, &row.checksum) {
            (Some(announced), Some(found)) if *announced != found.digest => {
                return Err(Error::BadDigest {
                    algorithm: "checksum",
                });
            }
            (Some(_), None) => {
                return Err(Error::InvalidRequest(
                    "the upload was created without a checksum".into(),
                ));
            }
            _ => {}
        }
        if row.blobs.len() + unused_blobs(listed, &parts) > BLOBS_MAX {
            return Err(Error::EntityTooLarge);
        }
        let upload_key = key::upload(bucket, &target.name, target.upload);
        let mut commit = CommitBuilder::new()
            .expect(&upload_key, Some(upload.version))
            .delete(upload_key);
        let mut unused = Vec::new();
        for (number, part) in &parts {
            let part_key = key::part(target.upload, *number);
            commit = commit.expect(&part_key, Some(part.version)).delete(part_key);
            if listed
                .binary_search_by_key(&u32::from(*number), |l| l.number)
                .is_err()
            {
                unused.extend(part.row.blobs.iter().copied());
            }
        }
        let object = Target {
            bucket: target.bucket.clone(),
            name: target.name.clone(),
            conditions: completion.conditions.clone(),
        };
        self.replace(commit, &object, row, Vec::new(), Vec::new(), unused)
            .await
    }

    /// The answer to completing an upload that is gone: fine if the object came from it, else there is no such upload.
    async fn completed_before(&self, target: &UploadTarget) -> Result<(CommitBuilder, Stored)> {
        let bucket = self.bucket(&target.bucket).await?.row.id;
        let row = self
            .ledger
            .get::<ObjectRow>(key::object(bucket, &target.name))
            .await?;
        match row {
            Some(Typed { row, .. }) if row.upload[..] == target.upload.to_be_bytes()[..] => {
                let stored = Stored {
                    etag: row.etag,
                    modified_ms: row.modified_ms,
                    checksum: row.checksum,
                    size: row.size,
                };
                Ok((CommitBuilder::new(), stored))
            }
            _ => Err(Error::NoSuchUpload),
        }
    }

    /// Ends an upload and collects its parts.
    pub async fn abort_upload(self: &Arc<Self>, target: &UploadTarget) -> Result<()> {
        let (bucket, _) = self.upload(target).await?;
        self.abort_upload_of(bucket, &target.name, target.upload).await
    }

    /// Ends an upload of a bucket that may be on its way out.
    pub async fn abort_upload_of(self: &Arc<Self>, bucket: u64, name: &str, upload: u128) -> Result<()> {
        let upload_key = key::upload(bucket, name, upload);
        // In batches, so that an upload of any size can be ended. Every batch moves the upload's version: whoever
        // completes it at the same time must look again.
        loop {
            let upload_key = upload_key.clone();
            let ended = self.decide_and_commit(None, move |objects| {
                let upload_key = upload_key.clone();
                async move { objects.decide_abort(upload_key, upload).await }
            });
            if ended.await? {
                return Ok(());
            }
        }
    }

    /// Drops some of an upload's parts, and the upload with the last. Answers whether it is gone.
    async fn decide_abort(&self, upload_key: Bytes, upload: u128) -> Result<(CommitBuilder, bool)> {
        let Some(row) = self.ledger.get::<UploadRow>(upload_key.clone()).await? else {
            return Err(Error::NoSuchUpload);
        };
        let mut commit = CommitBuilder::new().expect(&upload_key, Some(row.version));
        let (mut lost, mut ended) = (Vec::new(), true);
        for (number, part) in self.all_parts(upload).await? {
            if lost.len() >= ABORT_BLOBS {
                ended = false;
                break;
            }
            let part_key = key::part(upload, number);
            commit = commit.expect(&part_key, Some(part.version)).delete(part_key);
            lost.extend(part.row.blobs);
        }
        let commit = if ended {
            commit.delete(upload_key)
        } else {
            commit.put(upload_key, &row.row)
        };
        let change = BlobChange {
            lost,
            ..Default::default()
        };
        Ok((self.change_blobs(commit, &change).await?, ended))
    }

    /// A page of an upload's parts, those after number `after`.
    pub async fn list_parts(&self, target: &UploadTarget, after: u16, limit: usize) -> Result<PartsPage> {
        let (_, upload) = self.upload(target).await?;
        let range = key::parts(target.upload, after.saturating_add(1));
        let rows = self.ledger.scan::<PartRow>(range, limit + 1).await?;
        let truncated = limit > 0 && rows.len() > limit;
        let numbered = |(row_key, row): (Bytes, Typed<PartRow>)| Some((key::part_number(&row_key)?, row.row));
        let parts = rows.into_iter().take(limit).filter_map(numbered).collect();
        Ok(PartsPage {
            upload: upload.row,
            parts,
            truncated,
        })
    }

    async fn all_parts(&self, upload: u128) -> Result<Vec<(u16, Typed<PartRow>)>> {
        let rows = self
            .ledger
            .scan::<PartRow>(key::parts(upload, 0), PARTS_MAX as usize)
            .await?;
        Ok(rows
            .into_iter()
            .filter_map(|(row_key, row)| Some((key::part_number(&row_key)?, row)))
            .collect())
    }
}

/// The stored parts that the client lists, if each is what it says.
fn choose_parts<'a>(
    listed: &[ListedPart],
    parts: &'a [(u16, Typed<PartRow>)],
) -> Result<Vec<(u32, &'a PartRow)>> {
    let mut chosen = Vec::with_capacity(listed.len());
    for (position, want) in listed.iter().enumerate() {
        let number = want.number;
        let found = parts
            .binary_search_by_key(&number, |(n, _)| u32::from(*n))
            .map_err(|_| Error::InvalidPart { number })?;
        let row = &parts[found].1.row;
        let checksum_differs = match (&want.checksum, &row.checksum) {
            (Some(want), Some(have)) => *want != have.digest,
            _ => false,
        };
        if hex(&row.md5) != want.etag || checksum_differs {
            return Err(Error::InvalidPart { number });
        }
        if row.size < PART_BYTES_MIN && position + 1 < listed.len() {
            return Err(Error::EntityTooSmall { number });
        }
        chosen.push((number, row));
    }
    Ok(chosen)
}

/// The object that parts make, in order. Its time is set at the commit.
fn assemble(parts: &[(u32, &PartRow)], upload: &UploadRow, id: u128) -> Result<ObjectRow> {
    let mut md5 = Md5::new();
    parts.iter().for_each(|(_, part)| md5.update(&part.md5));
    Ok(ObjectRow {
        size: parts.iter().map(|(_, part)| part.size).sum(),
        etag: format!("{}-{}", hex(&md5.finish()), parts.len()),
        modified_ms: 0,
        blobs: parts
            .iter()
            .flat_map(|(_, part)| part.blobs.iter().copied())
            .collect(),
        headers: upload.headers.clone(),
        checksum: assemble_checksum(parts, upload)?,
        parts: parts
            .iter()
            .map(|(number, part)| PartSize {
                number: *number,
                size: part.size,
            })
            .collect(),
        upload: Bytes::copy_from_slice(&id.to_be_bytes()),
    })
}

/// The checksum of the whole: of the content (FULL_OBJECT), or of the parts' checksums (COMPOSITE).
fn assemble_checksum(parts: &[(u32, &PartRow)], upload: &UploadRow) -> Result<Option<ChecksumRow>> {
    let Some(algorithm) = Algorithm::parse(&upload.checksum_algorithm) else {
        return Ok(None);
    };
    let digests: Option<Vec<&[u8]>> = parts
        .iter()
        .map(|(_, p)| p.checksum.as_ref().map(|c| &c.digest[..]))
        .collect();
    let digests = digests.ok_or_else(|| Error::InvalidRequest("a part has no checksum".into()))?;
    let algorithm_name = algorithm.name().to_string();
    if !upload.checksum_full_object {
        let digest = algorithm.digest(&digests.concat()).into();
        return Ok(Some(ChecksumRow {
            algorithm: algorithm_name,
            digest,
            composite_parts: parts.len() as u32,
        }));
    }
    let mut whole = algorithm.digest(b"");
    for (digest, (_, part)) in digests.iter().zip(parts) {
        whole = algorithm.combine(&whole, digest, part.size).ok_or_else(|| {
            Error::InvalidRequest(format!("{algorithm_name} cannot cover the whole object"))
        })?;
    }
    Ok(Some(ChecksumRow {
        algorithm: algorithm_name,
        digest: whole.into(),
        composite_parts: 0,
    }))
}

/// Blobs of the parts that the client does not list.
fn unused_blobs(listed: &[ListedPart], parts: &[(u16, Typed<PartRow>)]) -> usize {
    let unused = |n: &u16| listed.binary_search_by_key(&u32::from(*n), |l| l.number).is_err();
    parts
        .iter()
        .filter(|(n, _)| unused(n))
        .map(|(_, part)| part.row.blobs.len())
        .sum()
}

/// 16 bytes from 32 hex digits.
fn unhex(text: &str) -> Option<[u8; 16]> {
    (text.len() == 32)
        .then(|| u128::from_str_radix(text, 16).ok())
        .flatten()
        .map(u128::to_be_bytes)
}
