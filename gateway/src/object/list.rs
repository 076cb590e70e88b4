//! Lists objects and uploads: a scan in key order, with a seek past each common prefix.

use super::Objects;
use crate::error::{Error, Result};
use crate::ledger::key;
use crate::ledger::model::{ObjectRow, UploadRow};
use crate::ledger::store::KeyRange;
use bytes::Bytes;
use prost::Message;

/// The most entries of one page.
pub const PAGE_MAX: usize = 1_000;

/// Rows read at a time: the row of a large object is long, and a page holds only what it shows.
const ROWS_AT_ONCE: usize = 256;

/// What is listed.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// Only keys that start with it.
    pub prefix: String,
    /// Keys are grouped up to its first occurrence behind the prefix; empty for no grouping.
    pub delimiter: String,
    /// Only entries after this key or common prefix. The common prefix of a key is listed if keys after it have it, and it is not this.
    pub after: Option<String>,
    /// The most entries, common prefixes included; at most [`PAGE_MAX`].
    pub limit: usize,
}

/// One entry of a page.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry<T> {
    /// A key and what it has.
    Item(String, T),
    /// A common prefix, delimiter included.
    Prefix(String),
}

impl<T> Entry<T> {
    /// The key or common prefix.
    pub fn name(&self) -> &str {
        match self {
            Entry::Item(name, _) => name,
            Entry::Prefix(name) => name,
        }
    }
}

/// A page of a listing.
#[derive(Clone, Debug, PartialEq)]
pub struct Page<T> {
    /// In order.
    pub entries: Vec<Entry<T>>,
    /// Whether more follow.
    pub truncated: bool,
    /// Whether rows of the ledger among them cannot be read: what they name may be there, and is not listed.
    pub incomplete: bool,
}

/// An object as listed: its row without what a listing does not show, which can be long.
#[derive(Clone, Debug, PartialEq)]
pub struct ObjectEntry {
    /// Bytes.
    pub size: u64,
    /// Without quotes.
    pub etag: String,
    /// Milliseconds since 1970.
    pub modified_ms: u64,
    /// The algorithm of its checksum, if it has one.
    pub checksum_algorithm: Option<String>,
}

/// An upload as listed.
#[derive(Clone, Debug, PartialEq)]
pub struct UploadEntry {
    /// Its id.
    pub upload: u128,
    /// Its row.
    pub row: UploadRow,
}

impl Objects {
    /// A page of a bucket's objects.
    pub async fn list(&self, bucket: &str, query: &Query) -> Result<Page<ObjectEntry>> {
        let bucket = self.bucket(bucket).await?.row.id;
        let range = |from: &[u8]| key::objects(bucket, &query.prefix, from);
        let from = query
            .after
            .as_ref()
            .map(|after| [after.as_bytes(), b"\0"].concat())
            .unwrap_or_default();
        self.page(query, range, &from, None, |row_key, row: ObjectRow| {
            let entry = ObjectEntry {
                size: row.size,
                etag: row.etag,
                modified_ms: row.modified_ms,
                checksum_algorithm: row.checksum.map(|c| c.algorithm),
            };
            Some((key::object_name(row_key)?, entry))
        })
        .await
    }

    /// A page of a bucket's uploads; `after_upload` skips those of the key `query.after` up to that id too.
    pub async fn list_uploads(
        &self,
        bucket: &str,
        query: &Query,
        after_upload: Option<u128>,
    ) -> Result<Page<UploadEntry>> {
        let bucket = self.bucket(bucket).await?.row.id;
        let range = |from: &[u8]| key::uploads(bucket, &query.prefix, from);
        let from = query
            .after
            .as_ref()
            .map(|after| [after.as_bytes(), b"\0"].concat())
            .unwrap_or_default();
        let resume = match (&query.after, after_upload) {
            (Some(name), Some(upload)) => Some(key::after(&key::upload(bucket, name, upload))),
            _ => None,
        };
        self.page(query, range, &from, resume, |row_key, row: UploadRow| {
            let (name, upload) = key::upload_name(row_key)?;
            Some((name, UploadEntry { upload, row }))
        })
        .await
    }

    /// Scans on from `from` (or `resume`) until the page is full or the rows end.
    async fn page<R, T>(
        &self,
        query: &Query,
        range: impl Fn(&[u8]) -> KeyRange,
        from: &[u8],
        resume: Option<Bytes>,
        read: impl Fn(&[u8], R) -> Option<(String, T)>,
    ) -> Result<Page<T>>
    where
        R: Message + Default,
    {
        let limit = query.limit.min(PAGE_MAX);
        let mut page = Page {
            entries: Vec::new(),
            truncated: false,
            incomplete: false,
        };
        if limit == 0 {
            return Ok(page);
        }
        let mut at = range(from);
        if let Some(resume) = resume {
            at.start = range(b"").start.max(resume);
        }
        // With a delimiter most rows may be skipped by a seek, so begin with a small scan.
        let most = (limit + 1).min(ROWS_AT_ONCE);
        let mut batch = if query.delimiter.is_empty() {
            most
        } else {
            most.min(32)
        };
        loop {
            let shown = self.ledger.scan_beside::<R>(at.clone(), batch).await?;
            page.incomplete |= shown.lacks;
            let mut seek = None;
            for (row_key, row) in shown.rows {
                at.start = key::after(&row_key);
                let damaged = || Error::Internal(format!("row {} cannot be read", row_key.escape_ascii()));
                let (name, item) = read(&row_key, row.row).ok_or_else(damaged)?;
                let common = common_prefix(&name, &query.prefix, &query.delimiter);
                if let Some(common) = &common
                    && query.after.as_ref() == Some(common)
                {
                    seek = Some(common.clone()); // Listed on an earlier page.
                    break;
                }
                if page.entries.len() == limit {
                    page.truncated = true;
                    return Ok(page);
                }
                match common {
                    Some(common) => {
                        seek = Some(common.clone());
                        page.entries.push(Entry::Prefix(common));
                        break;
                    }
                    None => page.entries.push(Entry::Item(name, item)),
                }
            }
            match seek {
                // Past everything that starts with the common prefix.
                Some(common) => match key::successor(common.as_bytes()) {
                    Some(next) => at.start = range(&next).start,
                    None => return Ok(page),
                },
                None => match shown.next {
                    None => return Ok(page),
                    Some(next) => {
                        at.start = next;
                        batch = (batch * 4).min(most);
                    }
                },
            }
        }
    }
}

/// The common prefix a key falls under, if it does.
fn common_prefix(name: &str, prefix: &str, delimiter: &str) -> Option<String> {
    if delimiter.is_empty() {
        return None;
    }
    let behind = name.get(prefix.len()..)?;
    let at = behind.find(delimiter)?;
    Some(name[..prefix.len() + at + delimiter.len()].to_string())
}
