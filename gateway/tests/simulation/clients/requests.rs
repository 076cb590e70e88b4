//! What clients ask for, one request each, and what they make of the answer.

use super::{Client, KEYS, Outcome};
use crate::model::{Span, Value, bytes_of};
use crate::world::{BUCKET, Serving};
use bytes::Bytes;
use futures::StreamExt;
use gateway::error::{Error, Result};
use gateway::ledger::model::Headers;
use gateway::object::Body;
use gateway::object::condition::{ReadConditions, WriteConditions};
use gateway::object::copy::Source;
use gateway::object::get::Wanted;
use gateway::object::list::{Entry, Query};
use gateway::object::multipart::{Completion, ListedPart, PART_BYTES_MIN, UploadTarget};
use gateway::object::put::Expected;
use rand::Rng;
use rand::rngs::StdRng;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

impl Client {
    pub(super) async fn put(&mut self, serving: &Serving, key: &str) {
        let size = self.size();
        let piece = self.piece(size);
        let body = cut(&bytes_of(&[piece]), &mut self.rng);
        let put = serving.objects.put(
            BUCKET,
            key,
            body,
            Expected::default(),
            Headers::default(),
            WriteConditions::default(),
        );
        let outcome = self.ask(serving, put).await;
        self.changed("put", key, Some(vec![piece]), outcome);
    }

    pub(super) async fn delete(&mut self, serving: &Serving, key: &str) {
        let delete = serving.objects.delete(BUCKET, key, WriteConditions::default());
        let outcome = self.ask(serving, delete).await;
        self.changed("delete", key, None, outcome);
    }

    pub(super) async fn copy(&mut self, serving: &Serving, key: &str) {
        let from = self.key();
        let source = Source {
            bucket: BUCKET.into(),
            name: from.clone(),
            conditions: ReadConditions::default(),
        };
        let headers = (from == key).then(Headers::default);
        let copy = serving
            .objects
            .copy(source, BUCKET, key, headers, None, WriteConditions::default());
        let outcome = self.ask(serving, copy).await;
        let sources = self.model.of(&from);
        match outcome {
            Outcome::Refused(Error::NoSuchKey) if sources.contains(&None) => {
                self.model
                    .found(&from, None, self.span)
                    .unwrap_or_else(|why| self.run.fail(why));
            }
            Outcome::Refused(Error::NoSuchKey) => self.run.fail(format!("copy: {from} is gone")),
            // Which of its contents was copied, if the source may have several, a read will say.
            outcome => {
                let certain = matches!(outcome, Outcome::Answered(_));
                self.changed("copy", key, sources[0].clone(), outcome);
                let others = sources.into_iter().filter(|value| !certain || value.is_some());
                others.for_each(|value| self.model.maybe(key, value, self.span));
            }
        }
    }

    /// A multipart upload, completed, aborted or left.
    pub(super) async fn upload(&mut self, serving: &Serving, key: &str) {
        let objects = &serving.objects;
        let create = objects.create_upload(BUCKET, key, Headers::default(), None, false);
        let Outcome::Answered(upload) = self.ask(serving, create).await else {
            return;
        };
        let target = UploadTarget {
            bucket: BUCKET.into(),
            name: key.into(),
            upload,
        };
        let (mut pieces, mut listed) = (Vec::new(), Vec::new());
        let parts = if self.rng.random_range(0..4) == 0 { 2 } else { 1 };
        for number in 1..=parts {
            let size = match number < parts {
                true => PART_BYTES_MIN as usize,
                false => self.rng.random_range(1..400_000),
            };
            // Sometimes a part is sent twice, and the second one counts.
            for _ in 0..self.rng.random_range(1..3) {
                let piece = self.piece(size);
                let body = cut(&bytes_of(&[piece]), &mut self.rng);
                let put = objects.put_part(target.clone(), number, body, Expected::default());
                let Outcome::Answered(stored) = self.ask(serving, put).await else {
                    return;
                };
                listed.truncate(usize::from(number) - 1);
                pieces.truncate(usize::from(number) - 1);
                let number = u32::from(number);
                listed.push(ListedPart {
                    number,
                    etag: stored.etag,
                    checksum: None,
                });
                pieces.push(piece);
            }
        }
        if self.rng.random_range(0..5) == 0 {
            let abort = objects.abort_upload(&target);
            self.ask(serving, abort).await;
            return;
        }
        let complete = objects.complete_upload(target, listed, Completion::default());
        let outcome = self.ask(serving, complete).await;
        self.changed("upload", key, Some(pieces), outcome);
    }

    pub(super) async fn get(&mut self, serving: &Serving, key: &str) {
        let from = self.run.unreadable_until();
        let outcome = self.ask(serving, read(serving, key, Wanted::All)).await;
        self.run.counts.reads.fetch_add(1, Ordering::Relaxed);
        let found = match outcome {
            Outcome::Answered(bytes) => self.model.found(key, Some(&bytes), self.span),
            Outcome::Refused(Error::NoSuchKey) => self.model.found(key, None, self.span),
            Outcome::Refused(error) => self.run.excuse(from, format!("get {key}: {error}")),
            Outcome::Unknown => Ok(()),
        };
        found.unwrap_or_else(|why| self.run.fail(why));
    }

    pub(super) async fn get_range(&mut self, serving: &Serving, key: &str) {
        let from = self.run.unreadable_until();
        let len = self
            .model
            .of(key)
            .iter()
            .flatten()
            .flatten()
            .map(|(_, len)| *len)
            .max();
        let len = len.unwrap_or(0).max(1);
        let first = self.rng.random_range(0..len);
        let last = self.rng.random_range(first..len);
        let wanted = Wanted::From {
            first: first as u64,
            last: Some(last as u64),
        };
        let outcome = self.ask(serving, read(serving, key, wanted)).await;
        self.run.counts.reads.fetch_add(1, Ordering::Relaxed);
        let found = match outcome {
            Outcome::Answered(bytes) => self.model.found_range(key, first, last, &bytes),
            Outcome::Refused(Error::NoSuchKey) => self.model.found(key, None, self.span),
            Outcome::Refused(Error::RangeNotSatisfiable { size }) if size <= first as u64 => Ok(()),
            Outcome::Refused(error) => self.run.excuse(from, format!("get {key}, a range: {error}")),
            Outcome::Unknown => Ok(()),
        };
        found.unwrap_or_else(|why| self.run.fail(why));
    }

    pub(super) async fn list(&mut self, serving: &Serving) {
        let limit = self.rng.random_range(1..=KEYS);
        let prefix = format!("c{}/", self.number);
        let list = list_all(serving, prefix, limit);
        let Outcome::Answered(listed) = self.ask(serving, list).await else {
            return;
        };
        self.compare(&listed);
    }

    fn compare(&self, listed: &[(String, u64)]) {
        for (key, size) in listed {
            let fits = |value: &Value| {
                let len = value
                    .as_ref()
                    .map(|pieces| pieces.iter().map(|(_, len)| *len as u64).sum::<u64>());
                len == Some(*size)
            };
            if !self.model.of(key).iter().any(fits) {
                self.run.fail(format!(
                    "{key} is listed with {size} bytes, and may be {:?}",
                    self.model.of(key)
                ));
            }
        }
        for key in self.model.keys() {
            let there = listed.iter().any(|(name, _)| *name == key);
            if !there && !self.model.of(&key).contains(&None) {
                self.run.fail(format!("{key} is not listed"));
            }
        }
    }

    /// Reads and lists everything.
    pub async fn check(&mut self, serving: &Serving) {
        let prefix = format!("c{}/", self.number);
        let position = serving.store.file.position();
        self.span = Span {
            begun: position,
            ended: position,
        };
        match list_all(serving, prefix, KEYS * 2).await {
            Ok(listed) => self.compare(&listed),
            Err(error) => self.run.fail(format!("list: {error}")),
        }
        for number in 0..KEYS {
            let key = format!("c{}/{number:02}", self.number);
            let found = match read(serving, &key, Wanted::All).await {
                Ok(bytes) => self.model.found(&key, Some(&bytes), self.span),
                Err(Error::NoSuchKey) => self.model.found(&key, None, self.span),
                Err(error) => Err(format!("get {key}: {error}")),
            };
            found.unwrap_or_else(|why| self.run.fail(why));
        }
    }

    // Keys that all clients write to.

    pub(super) async fn put_shared(&mut self, serving: &Serving, key: &str) {
        let size = self.size();
        let piece = self.piece(size);
        let body = cut(&bytes_of(&[piece]), &mut self.rng);
        let begun = serving.store.file.position();
        let write = self.run.shared.begin(key, Some(vec![piece]), begun);
        let put = serving.objects.put(
            BUCKET,
            key,
            body,
            Expected::default(),
            Headers::default(),
            WriteConditions::default(),
        );
        let outcome = self.ask(serving, put).await;
        self.changed_shared("put", key, write, outcome);
    }

    pub(super) async fn delete_shared(&mut self, serving: &Serving, key: &str) {
        let begun = serving.store.file.position();
        let write = self.run.shared.begin(key, None, begun);
        let delete = serving.objects.delete(BUCKET, key, WriteConditions::default());
        let outcome = self.ask(serving, delete).await;
        self.changed_shared("delete", key, write, outcome);
    }

    pub(super) fn changed_shared<T>(&self, what: &str, key: &str, write: usize, outcome: Outcome<T>) {
        let how = match &outcome {
            Outcome::Answered(_) => "done".into(),
            Outcome::Refused(error) => error.to_string(),
            Outcome::Unknown => "nobody knows".into(),
        };
        let acknowledged = matches!(outcome, Outcome::Answered(_));
        self.run.shared.end(key, write, acknowledged, self.span.ended);
        self.run.trace.note(format!("{what} {key} ({write}): {how}"));
    }

    pub async fn get_shared(&mut self, serving: &Serving, key: &str) {
        let (from, begun) = (self.run.unreadable_until(), Instant::now());
        let outcome = self.ask(serving, read(serving, key, Wanted::All)).await;
        let found = match outcome {
            Outcome::Answered(bytes) => self.run.shared.found(key, begun, Some(&bytes)),
            Outcome::Refused(Error::NoSuchKey) => self.run.shared.found(key, begun, None),
            Outcome::Refused(error) => self.run.excuse(from, format!("get {key}: {error}")),
            Outcome::Unknown => Ok(()),
        };
        found.unwrap_or_else(|why| self.run.fail(why));
    }
}

pub async fn read(serving: &Serving, key: &str, wanted: Wanted) -> Result<Vec<u8>> {
    let (_, mut bytes) = serving
        .objects
        .get(BUCKET, key, wanted, &ReadConditions::default())
        .await?;
    let mut all = Vec::new();
    while let Some(piece) = bytes.next().await {
        all.extend_from_slice(&piece?);
    }
    Ok(all)
}

/// What a read of all of it wants.
pub fn wanted_all() -> Wanted {
    Wanted::All
}

async fn list_all(serving: &Serving, prefix: String, limit: usize) -> Result<Vec<(String, u64)>> {
    let mut listed = Vec::new();
    let mut query = Query {
        prefix,
        limit,
        ..Query::default()
    };
    loop {
        let page = serving.objects.list(BUCKET, &query).await?;
        for entry in page.entries {
            if let Entry::Item(name, entry) = entry {
                listed.push((name, entry.size));
            }
        }
        if !page.truncated {
            return Ok(listed);
        }
        query.after = listed.last().map(|(name, _)| name.clone());
    }
}

/// A body in pieces, some of them a while apart.
fn cut(bytes: &Bytes, rng: &mut StdRng) -> Body {
    let most = [3_000, 100_000, 2 << 20][rng.random_range(0..3)].max(bytes.len() / 50);
    let mut pieces = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let end = (at + rng.random_range(1..=most)).min(bytes.len());
        let pause = match rng.random_range(0..20) {
            0 => Duration::from_millis(rng.random_range(0..500)),
            _ => Duration::ZERO,
        };
        pieces.push((pause, bytes.slice(at..end)));
        at = end;
    }
    let sent = futures::stream::iter(pieces).then(|(pause, piece)| async move {
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        Ok(piece)
    });
    Box::pin(sent)
}
