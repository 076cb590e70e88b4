//! Against a model: rows that change while a snapshot of them is scanned, asked for at every commit.

use super::super::entry::{BODY_BYTES_MAX, Body, Kind, put_row};
use super::super::scan::cut;
use super::*;
use crate::ledger::key;
use bytes::{BufMut, BytesMut};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use storage_node::protocol::ClusterId;

type Rows = BTreeMap<Bytes, Versioned>;

/// Entries that follow each other, with their bodies.
struct Maker {
    entries: Vec<(Header, usize)>,
    bodies: Vec<Bytes>,
    lost: HashSet<usize>,
    number: u64,
    before: Digest,
    writer: Writer,
}

#[async_trait::async_trait]
impl Bodies<usize> for Maker {
    async fn body(&self, _header: &Header, at: &usize) -> Option<Bytes> {
        (!self.lost.contains(at)).then(|| self.bodies[*at].clone())
    }
}

fn writer(number: u64) -> Writer {
    Writer {
        number,
        nonce: number * 7,
    }
}

impl Maker {
    fn new(generation: u64) -> Maker {
        Maker {
            entries: Vec::new(),
            bodies: Vec::new(),
            lost: HashSet::new(),
            number: 0,
            before: [0; 32],
            writer: writer(generation),
        }
    }

    fn add(&mut self, kind: Kind, first: u64, last: u64, snapshot: u64, body: Bytes) {
        self.number += 1;
        let header = Header {
            kind,
            more: false,
            cluster: ClusterId(1),
            writer: self.writer,
            number: self.number,
            before: self.before,
            first,
            last,
            at_ms: self.number,
            snapshot,
            body_bytes: 0,
            body_digest: [0; 32],
        };
        assert_eq!(cut(body.clone(), BODY_BYTES_MAX).len(), 1);
        let header = header.of_body(&Body::hash(body.clone()));
        self.before = header.digest();
        self.entries.push((header, self.bodies.len()));
        self.bodies.push(body);
    }
}

fn log_body(commits: &[Vec<Mutation>]) -> Bytes {
    let mut body = BytesMut::new();
    for mutations in commits {
        body.put_u32_le(mutations.len() as u32);
        for mutation in mutations {
            let (key, value) = match mutation {
                Mutation::Put { key, value } => (key, Some(value)),
                Mutation::Delete { key } => (key, None),
            };
            body.put_u32_le(key.len() as u32);
            body.put_u32_le(value.map_or(u32::MAX, |value| value.len() as u32));
            body.put_slice(key);
            body.put_slice(value.map_or(&[], |value| &value[..]));
        }
    }
    body.freeze()
}

/// A history: the rows after each commit, and the archive of it with one snapshot after another.
struct History {
    states: Vec<Rows>,
    commits: Vec<Vec<Mutation>>,
    maker: Maker,
}

fn name(number: u32) -> Bytes {
    Bytes::from(format!("k{number:02}"))
}

fn history(rng: &mut StdRng, generation: u64) -> History {
    let (mut states, mut maker) = (vec![Rows::new()], Maker::new(generation));
    let mut all: Vec<Vec<Mutation>> = Vec::new();
    let mut commit = |states: &mut Vec<Rows>, rng: &mut StdRng| {
        let version = states.len() as u64;
        let mut rows = states.last().unwrap().clone();
        let mut mutations = Vec::new();
        for _ in 0..rng.random_range(1..3) {
            let key = name(rng.random_range(0..20));
            if mutations.iter().any(|m| matches!(m, Mutation::Put { key: other, .. } | Mutation::Delete { key: other } if *other == key)) {
                continue;
            }
            if rng.random_bool(0.4) {
                rows.remove(&key);
                mutations.push(Mutation::Delete { key });
            } else {
                let value = Bytes::from(vec![rng.random::<u8>(); 8]);
                let versioned = Versioned {
                    version,
                    value: value.clone(),
                };
                rows.insert(key.clone(), versioned);
                mutations.push(Mutation::Put { key, value });
            }
        }
        states.push(rows);
        all.push(mutations.clone());
        mutations
    };
    for _ in 0..2 {
        // A scan that goes on while others commit.
        let (after, snapshot) = (states.len() as u64 - 1, maker.number + 1);
        let mut waiting: Vec<Vec<Mutation>> = Vec::new();
        for piece in 0..10 {
            let mut body = BytesMut::new();
            let (from, to) = (name(piece * 2), name(piece * 2 + 2));
            for (key, versioned) in states.last().unwrap().range(from..to) {
                put_row(
                    &mut body,
                    &Row {
                        key: key.clone(),
                        versioned: versioned.clone(),
                    },
                );
            }
            maker.add(Kind::Piece, after, after, snapshot, body.freeze());
            for _ in 0..rng.random_range(0..3) {
                waiting.push(commit(&mut states, rng));
            }
            if rng.random_bool(0.3) && !waiting.is_empty() {
                let last = states.len() as u64 - 1;
                maker.add(
                    Kind::Log,
                    last + 1 - waiting.len() as u64,
                    last,
                    0,
                    log_body(&waiting),
                );
                waiting.clear();
            }
        }
        let last = states.len() as u64 - 1;
        if !waiting.is_empty() {
            maker.add(
                Kind::Log,
                last + 1 - waiting.len() as u64,
                last,
                0,
                log_body(&waiting),
            );
        }
        maker.add(Kind::End, after, last, snapshot, Bytes::from_static(&[0; 8]));
        for _ in 0..rng.random_range(0..12) {
            let mutations = commit(&mut states, rng);
            let version = states.len() as u64 - 1;
            maker.add(Kind::Log, version, version, 0, log_body(&[mutations]));
        }
    }
    History {
        states,
        commits: all,
        maker,
    }
}

impl History {
    /// The last ten commits up to one.
    fn log(&self, until: usize) -> Vec<(u64, Vec<Mutation>)> {
        let numbered = (1..).zip(self.commits.iter().cloned());
        numbered.take(until).skip(until.saturating_sub(10)).collect()
    }
}

fn parts() -> Vec<Gap> {
    let part = |from: u32, to: Option<u32>| Gap {
        start: name(from),
        end: to.map(name),
        is_one_row: false,
    };
    vec![
        part(1, Some(4)),
        Gap {
            start: name(5),
            end: Some(key::after(&name(5))),
            is_one_row: true,
        },
        part(12, Some(13)),
        part(15, None),
    ]
}

fn is_inside(part: &Gap, key: &Bytes) -> bool {
    part.start <= *key && part.end.as_ref().is_none_or(|end| key < end)
}

#[tokio::test]
async fn a_part_is_as_it_was_or_not_known() {
    let (mut known, mut unknown, mut refused) = (0, 0, 0);
    for seed in 0..60 {
        let rng = &mut StdRng::seed_from_u64(seed);
        let mut history = history(rng, 3);
        if rng.random_bool(0.5) {
            let lost = rng.random_range(0..history.maker.bodies.len());
            history.maker.lost.insert(lost);
        }
        let parts = parts();
        for (position, state) in history.states.iter().enumerate() {
            let asked = Asked {
                parts: &parts,
                position: position as u64,
                witnesses: &[],
                later: &[],
                writer: Some(writer(3)),
            };
            let Ok(answer) = recall(&history.maker.entries, &asked, &history.maker).await else {
                refused += 1;
                continue;
            };
            for (part, rows) in parts.iter().zip(answer) {
                let right = state.iter().filter(|(key, _)| is_inside(part, key));
                let right: Vec<Row> = right
                    .map(|(key, versioned)| Row {
                        key: key.clone(),
                        versioned: versioned.clone(),
                    })
                    .collect();
                match rows {
                    Some(rows) => assert_eq!(rows, right, "seed {seed}, commit {position}, {part:?}"),
                    None => unknown += 1,
                }
                known += 1;
            }
        }
    }
    println!("{known} parts known, {unknown} of them not, {refused} questions refused");
    assert!(
        known > 5_000 && unknown * 3 < known && unknown > 0 && refused > 0,
        "{known} {unknown} {refused}"
    );
}

/// Without a name of who writes, the rows that the ledger has tell which history is its own.
#[tokio::test]
async fn another_history_is_not_believed() {
    let (one, other) = (
        history(&mut StdRng::seed_from_u64(1), 3),
        history(&mut StdRng::seed_from_u64(2), 4),
    );
    let position = one.states.len().min(other.states.len()) - 1;
    let parts = parts();
    let is_outside = |key: &Bytes| !parts.iter().any(|part| is_inside(part, key));
    let witnesses = |history: &History| -> Vec<Row> {
        let rows = history.states[position].iter().filter(|(key, _)| is_outside(key));
        rows.map(|(key, versioned)| Row {
            key: key.clone(),
            versioned: versioned.clone(),
        })
        .collect()
    };
    let ask = async |witnesses: &[Row], writer: Option<Writer>| {
        let asked = Asked {
            parts: &parts,
            position: position as u64,
            witnesses,
            later: &[],
            writer,
        };
        recall(&one.maker.entries, &asked, &one.maker).await
    };
    assert!(ask(&witnesses(&one), None).await.is_ok());
    assert_eq!(
        ask(&witnesses(&other), None).await,
        Err(RecallError::OtherHistory)
    );
    assert_eq!(ask(&[], None).await, Err(RecallError::OtherHistory));
    // The commits of its own log tell as well.
    for (log, is_own) in [(&one, true), (&other, false)] {
        let later = log.log(position);
        let asked = Asked {
            parts: &parts,
            position: position as u64,
            witnesses: &[],
            later: &later,
            writer: None,
        };
        let answer = recall(&one.maker.entries, &asked, &one.maker).await;
        assert_eq!(answer.is_ok(), is_own, "{answer:?}");
    }
    let gone = Err(RecallError::NotThere(position as u64));
    assert_eq!(ask(&[], Some(writer(9))).await, gone);
}

/// Commits that a ledger's own log lost, between others that it has.
#[tokio::test]
async fn lost_commits_are_had_from_the_archive_of_this_history_alone() {
    let mut rng = StdRng::seed_from_u64(5);
    let ours = history(&mut rng, 1);
    let other = history(&mut rng, 1);
    let commit = |version: u64| (version, ours.commits[version as usize - 1].clone());
    let shipped = ours
        .maker
        .entries
        .iter()
        .filter(|(header, _)| header.kind == Kind::Log);
    let (first, last) = (2, shipped.map(|(header, _)| header.last).max().unwrap());
    let lost = LostCommits {
        first,
        last: Some(last - 1),
        why: "",
    };
    for known in [vec![commit(last)], vec![commit(1), commit(last)]] {
        let found = recall_commits(&ours.maker.entries, &lost, &known, &ours.maker).await;
        let wanted: Vec<Logged> = (first..last).map(commit).collect();
        assert_eq!(found, Ok(wanted));
        let found = recall_commits(&other.maker.entries, &lost, &known, &other.maker).await;
        assert_eq!(found, Err(RecallError::OtherHistory));
    }
    // Of earlier commits a copy that went on by itself has the same.
    let all = LostCommits {
        last: None,
        ..lost.clone()
    };
    for (lost, known) in [(&lost, vec![]), (&lost, vec![commit(1)]), (&all, vec![commit(1)])] {
        let found = recall_commits(&ours.maker.entries, lost, &known, &ours.maker).await;
        assert_eq!(found, Err(RecallError::NothingToCompare));
    }
}
