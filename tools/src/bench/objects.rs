//! The objects a benchmark works on: a numbered set under one prefix, every request presigned, and where their requests
//! come from.
//!
//! Gets, heads and lists have a set of their own that is written first and never changes. Puts go through their set in
//! order, again and again: the first time round they create, then they overwrite. Deletes follow the puts. So the space in
//! use is bounded by two working sets, whatever the duration.

use super::client::Job;
use super::content::{Content, Window};
use super::load::Source;
use super::plan::{Mix, Op};
use super::signer::Signer;
use http::Uri;
use rand::Rng;
use rand::rngs::StdRng;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// So many objects share a common prefix.
const DIRECTORY: u32 = 1_000;
/// A list starts at one of so many places.
const PLACES_MAX: u32 = 10_000;

fn name(prefix: &str, object: u32) -> String {
    format!("{prefix}{:05}/{:03}", object / DIRECTORY, object % DIRECTORY)
}

/// Objects of one size under one prefix.
#[derive(Debug)]
pub struct ObjectSet {
    content: Content,
    /// The number of the first object, so that two sets have different bytes.
    first: u32,
    count: u32,
    size: u64,
    /// By operation, then by object; empty for operations that were not asked for. Pages to list are fewer.
    uris: Vec<(Op, Vec<Uri>)>,
}

impl ObjectSet {
    /// Signs `ops` for `count` objects named `prefix` and a number, a thousand a directory.
    pub fn new(
        signer: &Signer,
        content: &Content,
        prefix: &str,
        first: u32,
        count: u32,
        size: u64,
        ops: &[Op],
    ) -> Self {
        let sign = |op: Op| match op {
            Op::List | Op::ListDirs => {
                let places = u64::from(count.clamp(1, PLACES_MAX));
                (0..places)
                    .map(|place| (place * u64::from(count) / places) as u32)
                    .map(|object| signer.list(op, prefix, &name(prefix, object)))
                    .collect()
            }
            _ => (0..count)
                .map(|object| signer.object(op, &name(prefix, object)))
                .collect(),
        };
        let uris = ops.iter().map(|&op| (op, sign(op))).collect();
        ObjectSet {
            content: content.clone(),
            first,
            count,
            size,
            uris,
        }
    }

    /// A request for one of the objects, counted round and round; `None` if the operation was not signed.
    fn job(&self, op: Op, object: u64) -> Option<Job> {
        let (_, uris) = self.uris.iter().find(|&&(have, _)| have == op)?;
        let object = (object % u64::from(self.count.max(1))) as u32;
        let content = match op {
            Op::Put | Op::Get => self.content.body(self.first + object, self.size),
            _ => Window::empty(),
        };
        let uri = object as usize * uris.len() / (self.count as usize).max(1);
        Some(Job {
            op,
            uri: uris.get(uri)?.clone(),
            content,
        })
    }

    /// The operation once for every object.
    pub fn each(self: &Arc<Self>, op: Op) -> Source {
        let (set, next) = (self.clone(), AtomicU64::new(0));
        Arc::new(move |_: &mut StdRng| {
            let object = next.fetch_add(1, Ordering::Relaxed);
            if object < u64::from(set.count) {
                set.job(op, object)
            } else {
                None
            }
        })
    }
}

/// Requests of a mix, without end but for a mix of deletes only, which ends when every object of `written` is deleted. At
/// most `concurrency` requests are in hand at once.
pub fn mixed(mix: Mix, read: Arc<ObjectSet>, written: Arc<ObjectSet>, concurrency: usize) -> Source {
    let (puts, deletes) = (AtomicU64::new(0), AtomicU64::new(0));
    let has_puts = mix.has(Op::Put);
    Arc::new(move |rng: &mut StdRng| {
        let put = || written.job(Op::Put, puts.fetch_add(1, Ordering::Relaxed));
        match mix.pick(rng.random_range(0..mix.total())) {
            Op::Put => put(),
            // A delete never overtakes the put of its object, which may still be in hand; instead it waits for its turn.
            Op::Delete if has_puts => {
                let before = puts.load(Ordering::Relaxed).saturating_sub(concurrency as u64);
                let next = deletes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
                    if next < before { Some(next + 1) } else { None }
                });
                next.map_or_else(|_| put(), |object| written.job(Op::Delete, object))
            }
            Op::Delete => {
                let object = deletes.fetch_add(1, Ordering::Relaxed);
                if object < u64::from(written.count) {
                    written.job(Op::Delete, object)
                } else {
                    None
                }
            }
            op => read.job(op, rng.random_range(0..u64::from(read.count.max(1)))),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::signer::Endpoint;
    use super::*;
    use rand::SeedableRng;
    use std::collections::HashSet;

    fn set(prefix: &str, count: u32) -> Arc<ObjectSet> {
        let endpoint = Endpoint::parse("http://127.0.0.1:1").unwrap();
        let signer = Signer::new(&endpoint, "b", "us-east-1", "k", "s").unwrap();
        Arc::new(ObjectSet::new(
            &signer,
            &Content::new(0),
            prefix,
            0,
            count,
            3,
            &Op::ALL,
        ))
    }

    fn draw(source: &Source, rng: &mut StdRng) -> Option<(Op, String)> {
        source(rng).map(|job| (job.op, job.uri.path().to_owned()))
    }

    #[test]
    fn each_is_each_once() {
        let source = set("r/", 7).each(Op::Delete);
        let mut rng = StdRng::seed_from_u64(0);
        let all: HashSet<String> = std::iter::from_fn(|| draw(&source, &mut rng))
            .map(|(_, path)| path)
            .collect();
        assert_eq!(all.len(), 7);
        assert!(all.contains("/b/r/00000/006"));
    }

    #[test]
    fn deletes_follow_puts() {
        let source = mixed(
            "put=1,delete=1,get=2".parse().unwrap(),
            set("r/", 5),
            set("w/", 50),
            4,
        );
        let mut rng = StdRng::seed_from_u64(1);
        let (mut alive, mut counts) = (HashSet::new(), [0; 3]);
        for _ in 0..5_000 {
            let (op, path) = draw(&source, &mut rng).unwrap();
            match op {
                Op::Put => {
                    counts[0] += 1;
                    alive.insert(path);
                }
                Op::Delete => {
                    counts[1] += 1;
                    assert!(alive.remove(&path), "{path} is not there");
                }
                op => {
                    counts[2] += 1;
                    assert_eq!(op, Op::Get);
                    assert!(path.starts_with("/b/r/"));
                }
            }
        }
        assert!(
            counts[0] >= counts[1] && counts[1] > 1_000 && counts[2] > 2_300,
            "{counts:?}"
        );
    }

    #[test]
    fn deletes_alone_end() {
        let source = mixed(Mix::only(Op::Delete), set("r/", 5), set("w/", 9), 4);
        let mut rng = StdRng::seed_from_u64(1);
        assert_eq!(std::iter::from_fn(|| draw(&source, &mut rng)).count(), 9);
    }
}
