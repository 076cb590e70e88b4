//! The suite that every engine passes: what `store.rs` promises, as code.
//!
//! An engine gives an `Engine`, which makes empty stores; `run` does the rest. Whatever only one engine can do (kill
//! the process, refuse a foreign file) is tested beside that engine.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use tokio::runtime::Runtime;

use super::store::*;

/// Makes stores, and opens them again.
#[async_trait]
pub trait Engine: Send + Sync + 'static {
    /// A new, empty store.
    async fn empty(&self) -> Arc<dyn Store>;

    /// The same rows, after a clean stop. An engine that keeps nothing answers the store as it is.
    async fn reopen(&self, store: Arc<dyn Store>) -> Arc<dyn Store>;
}

/// Runs the whole suite.
pub fn run(engine: &dyn Engine) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        get_answers_in_order(engine.empty().await).await;
        scan_ranges_limits_and_directions(engine.empty().await).await;
        scan_limit_is_capped(engine.empty().await).await;
        keys_are_ordered_as_bytes(engine.empty().await).await;
        values_of_every_size_come_back(engine.empty().await).await;
        a_commit_is_all_or_nothing(engine.empty().await).await;
        preconditions_say_which_failed(engine.empty().await).await;
        versions_grow_and_are_never_reused(engine).await;
        increments_from_many_tasks_lose_none(engine.empty().await).await;
        commits_are_seen_whole(engine.empty().await).await;
        a_batch_of_the_greatest_size_fits(engine.empty().await).await;
        bounds_are_enforced(engine.empty().await).await;
        abandoned_commits_break_nothing(engine.empty().await).await;
        reopening_keeps_everything(engine).await;
        the_position_is_the_last_commits_version(engine).await;
    });
    behaves_as_a_map(engine, &runtime);
}

fn bytes(content: impl AsRef<[u8]>) -> Bytes {
    Bytes::copy_from_slice(content.as_ref())
}

fn put(key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Mutation {
    Mutation::Put {
        key: bytes(key),
        value: bytes(value),
    }
}

fn delete(key: impl AsRef<[u8]>) -> Mutation {
    Mutation::Delete { key: bytes(key) }
}

fn absent(key: impl AsRef<[u8]>) -> Precondition {
    Precondition::Absent { key: bytes(key) }
}

fn version(key: impl AsRef<[u8]>, version: u64) -> Precondition {
    Precondition::Version {
        key: bytes(key),
        version,
    }
}

fn write(mutations: Vec<Mutation>) -> Commit {
    Commit {
        preconditions: Vec::new(),
        mutations,
    }
}

fn range(start: impl AsRef<[u8]>, end: Option<&[u8]>) -> KeyRange {
    KeyRange {
        start: bytes(start),
        end: end.map(bytes),
    }
}

async fn get(store: &Arc<dyn Store>, key: impl AsRef<[u8]>) -> Option<Versioned> {
    store.get(vec![bytes(key)]).await.unwrap().remove(0)
}

async fn scan(store: &Arc<dyn Store>, range: KeyRange, limit: usize, direction: Direction) -> Vec<Row> {
    store.scan(range, limit, direction).await.unwrap()
}

async fn all(store: &Arc<dyn Store>) -> Vec<Row> {
    scan(store, range("", None), usize::MAX, Direction::Forward).await
}

fn keys(rows: &[Row]) -> Vec<&[u8]> {
    rows.iter().map(|row| &row.key[..]).collect()
}

async fn the_position_is_the_last_commits_version(engine: &dyn Engine) {
    let store = engine.empty().await;
    assert_eq!(store.position(), 0);
    let first = store.commit(write(vec![put("k", "1")])).await.unwrap();
    assert_eq!(store.position(), first);
    let refused = Commit {
        preconditions: vec![absent("k")],
        mutations: vec![put("k", "2")],
    };
    store.commit(refused).await.unwrap_err();
    assert_eq!(store.position(), first);
    let last = store.commit(write(vec![delete("k")])).await.unwrap();
    assert!(last > first);
    assert_eq!(engine.reopen(store).await.position(), last);
}

async fn get_answers_in_order(store: Arc<dyn Store>) {
    assert_eq!(store.get(Vec::new()).await.unwrap(), Vec::new());
    assert_eq!(get(&store, "a").await, None);
    let version = store
        .commit(write(vec![put("a", "1"), put("b", ""), put("", "empty key")]))
        .await
        .unwrap();
    let row = |value: &str| {
        Some(Versioned {
            version,
            value: bytes(value),
        })
    };
    let asked = ["b", "missing", "a", "a", ""].map(bytes).to_vec();
    assert_eq!(
        store.get(asked).await.unwrap(),
        [row(""), None, row("1"), row("1"), row("empty key")]
    );
}

async fn scan_ranges_limits_and_directions(store: Arc<dyn Store>) {
    use Direction::{Backward, Forward};
    assert_eq!(all(&store).await, []);
    let version = store
        .commit(write("abcde".chars().map(|c| put(c.to_string(), "v")).collect()))
        .await
        .unwrap();
    let rows = all(&store).await;
    assert!(rows.iter().all(|row| row.versioned
        == Versioned {
            version,
            value: bytes("v")
        }));
    let cases: [(&str, Option<&str>, usize, Direction, &str); 16] = [
        ("", None, 100, Forward, "abcde"),
        ("", None, 100, Backward, "edcba"),
        ("b", Some("d"), 100, Forward, "bc"),
        ("b", Some("d"), 100, Backward, "cb"),
        ("b", Some("d"), 1, Forward, "b"),
        ("b", Some("d"), 1, Backward, "c"),
        ("", None, 2, Forward, "ab"),
        ("", None, 2, Backward, "ed"),
        ("c", None, 100, Forward, "cde"),
        ("aa", Some("cc"), 100, Forward, "bc"),
        ("", None, 0, Forward, ""),
        ("", None, 0, Backward, ""),
        ("c", Some("c"), 100, Forward, ""),
        ("d", Some("b"), 100, Forward, ""),
        ("d", Some("b"), 100, Backward, ""),
        ("x", None, 100, Backward, ""),
    ];
    for (start, end, limit, direction, expected) in cases {
        let found = scan(&store, range(start, end.map(str::as_bytes)), limit, direction).await;
        let found: String = found.iter().map(|row| char::from(row.key[0])).collect();
        assert_eq!(found, expected, "{start:?}..{end:?} limit {limit} {direction:?}");
    }
}

async fn scan_limit_is_capped(store: Arc<dyn Store>) {
    let count = SCAN_LIMIT_MAX + 5;
    store
        .commit(write((0..count).map(|i| put(format!("{i:08}"), "")).collect()))
        .await
        .unwrap();
    let forward = all(&store).await;
    assert_eq!(forward.len(), SCAN_LIMIT_MAX);
    assert_eq!(
        forward[SCAN_LIMIT_MAX - 1].key,
        format!("{:08}", SCAN_LIMIT_MAX - 1)
    );
    let backward = scan(&store, range("", None), count, Direction::Backward).await;
    assert_eq!(backward.len(), SCAN_LIMIT_MAX);
    assert_eq!(backward[SCAN_LIMIT_MAX - 1].key, "00000005");
}

async fn keys_are_ordered_as_bytes(store: Arc<dyn Store>) {
    let mut ordered: Vec<&[u8]> = vec![
        b"",
        b"\x00",
        b"\x00\x00",
        b"\x00\xff",
        b"\x01",
        b"A",
        b"a",
        b"a\x00",
        b"a\x00b",
        b"aa",
        b"b",
        b"\x7f",
        b"\x80",
        b"\xc3\xa9",
        b"\xff",
        b"\xff\x00",
        b"\xff\xff",
        b"\xff\xff\xff",
    ];
    for key in ordered.iter().rev() {
        store.commit(write(vec![put(key, key)])).await.unwrap();
    }
    assert_eq!(keys(&all(&store).await), ordered);
    let from_ff = scan(&store, range(b"\xff", None), 10, Direction::Backward).await;
    assert_eq!(
        keys(&from_ff),
        [&b"\xff\xff\xff"[..], b"\xff\xff", b"\xff\x00", b"\xff"]
    );
    let after_a = scan(&store, range(b"a\x00", Some(b"aa")), 10, Direction::Forward).await;
    assert_eq!(keys(&after_a), [&b"a\x00"[..], b"a\x00b"]);
    ordered.reverse();
    assert_eq!(
        keys(&scan(&store, range("", None), 100, Direction::Backward).await),
        ordered
    );
}

async fn values_of_every_size_come_back(store: Arc<dyn Store>) {
    for size in [0, 1, 7, 8, 9, 400, 4095, 4096, 65_537, 3 << 20] {
        let value: Vec<u8> = (0..size).map(|i: u32| (i % 251) as u8).collect();
        store.commit(write(vec![put("k", &value)])).await.unwrap();
        assert_eq!(get(&store, "k").await.unwrap().value, value, "{size} bytes");
    }
    let longest = vec![b'k'; KEY_BYTES_MAX];
    store.commit(write(vec![put(&longest, "v")])).await.unwrap();
    assert_eq!(get(&store, &longest).await.unwrap().value, "v");
}

async fn a_commit_is_all_or_nothing(store: Arc<dyn Store>) {
    store
        .commit(write(vec![put("keep", "1"), put("gone", "1")]))
        .await
        .unwrap();
    let before = all(&store).await;
    let refused = Commit {
        preconditions: vec![absent("new"), absent("keep")],
        mutations: vec![put("new", "2"), put("keep", "2"), delete("gone")],
    };
    assert_eq!(
        store.commit(refused.clone()).await,
        Err(LedgerError::Conflict { index: 1 })
    );
    assert_eq!(all(&store).await, before);
    let applied = Commit {
        preconditions: vec![absent("new")],
        ..refused
    };
    store.commit(applied).await.unwrap();
    let rows = all(&store).await;
    assert_eq!(keys(&rows), [b"keep".as_slice(), b"new"]);
    assert!(rows.iter().all(|row| row.versioned.value == "2"));
    assert_eq!(rows[0].versioned.version, rows[1].versioned.version);
    store.commit(write(vec![delete("never there")])).await.unwrap();
    assert_eq!(all(&store).await, rows);
}

async fn preconditions_say_which_failed(store: Arc<dyn Store>) {
    let first = store.commit(write(vec![put("a", "1")])).await.unwrap();
    let second = store
        .commit(write(vec![put("a", "2"), put("b", "2")]))
        .await
        .unwrap();
    let cases = [
        (vec![version("a", first)], Some(0)),
        (vec![version("a", second)], None),
        (
            vec![version("a", second), version("b", second), absent("c")],
            None,
        ),
        (
            vec![
                version("a", second),
                version("b", second),
                absent("b"),
                absent("a"),
            ],
            Some(2),
        ),
        (vec![absent("c"), version("c", second)], Some(1)),
        (vec![version("c", 0)], Some(0)),
        (
            vec![absent("c"), version("a", u64::MAX), version("b", 0)],
            Some(1),
        ),
    ];
    for (preconditions, failed) in cases {
        let commit = Commit {
            preconditions,
            mutations: vec![put("witness", "")],
        };
        let outcome = store.commit(commit.clone()).await;
        match failed {
            Some(index) => assert_eq!(outcome, Err(LedgerError::Conflict { index }), "{commit:?}"),
            None => assert_eq!(get(&store, "witness").await.unwrap().version, outcome.unwrap()),
        }
    }
    store.commit(write(vec![delete("a")])).await.unwrap();
    let outcome = store
        .commit(Commit {
            preconditions: vec![version("a", second)],
            mutations: vec![],
        })
        .await;
    assert_eq!(outcome, Err(LedgerError::Conflict { index: 0 }));
    store
        .commit(Commit {
            preconditions: vec![absent("a")],
            mutations: vec![put("a", "")],
        })
        .await
        .unwrap();
}

async fn versions_grow_and_are_never_reused(engine: &dyn Engine) {
    let mut store = engine.empty().await;
    let mut last = 0;
    for round in 0..20 {
        let written = store.commit(write(vec![put("k", "v")])).await.unwrap();
        assert!(written > last, "version {written} after {last}");
        assert_eq!(get(&store, "k").await.unwrap().version, written);
        last = written;
        if round % 2 == 0 {
            last = store.commit(write(vec![delete("k")])).await.unwrap().max(last);
        }
        if round % 5 == 0 {
            store = engine.reopen(store).await;
        }
    }
}

async fn increments_from_many_tasks_lose_none(store: Arc<dyn Store>) {
    const TASKS: u64 = 16;
    const INCREMENTS: u64 = 25;
    let increment = |store: Arc<dyn Store>| async move {
        loop {
            let (precondition, count) = match get(&store, "counter").await {
                None => (absent("counter"), 0),
                Some(row) => {
                    let count = u64::from_le_bytes(row.value[..].try_into().unwrap());
                    (version("counter", row.version), count)
                }
            };
            let mutations = vec![put("counter", (count + 1).to_le_bytes())];
            match store
                .commit(Commit {
                    preconditions: vec![precondition],
                    mutations,
                })
                .await
            {
                Ok(_) => return,
                Err(LedgerError::Conflict { index: 0 }) => {}
                Err(other) => panic!("{other}"),
            }
        }
    };
    let tasks = (0..TASKS).map(|_| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            for _ in 0..INCREMENTS {
                increment(Arc::clone(&store)).await;
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    let counted = get(&store, "counter").await.unwrap().value;
    assert_eq!(counted, (TASKS * INCREMENTS).to_le_bytes().to_vec());
}

/// Readers never see half a commit, neither through `get` nor through `scan`.
async fn commits_are_seen_whole(store: Arc<dyn Store>) {
    let names: Vec<String> = (0..20).map(|i| format!("k{i:02}")).collect();
    let round = |i: u64| write(names.iter().map(|name| put(name, i.to_le_bytes())).collect());
    store.commit(round(0)).await.unwrap();
    let writer = tokio::spawn({
        let (store, rounds) = (Arc::clone(&store), (1..100).map(round).collect::<Vec<_>>());
        async move {
            for commit in rounds {
                store.commit(commit).await.unwrap();
            }
        }
    });
    while !writer.is_finished() {
        let got = store.get(names.iter().map(bytes).collect()).await.unwrap();
        assert!(got.iter().all(|row| *row == got[0]));
        let rows = all(&store).await;
        assert!(rows.len() == names.len() && rows.iter().all(|row| row.versioned == rows[0].versioned));
    }
    writer.await.unwrap();
}

async fn a_batch_of_the_greatest_size_fits(store: Arc<dyn Store>) {
    let name = |i: usize| format!("{i:06}");
    let commit = Commit {
        preconditions: (0..BATCH_MAX).map(|i| absent(name(i))).collect(),
        mutations: (0..BATCH_MAX).map(|i| put(name(i), name(i))).collect(),
    };
    let written = store.commit(commit).await.unwrap();
    let got = store
        .get((0..BATCH_MAX).map(|i| bytes(name(i))).collect())
        .await
        .unwrap();
    for (i, row) in got.into_iter().enumerate() {
        assert_eq!(
            row,
            Some(Versioned {
                version: written,
                value: bytes(name(i))
            })
        );
    }
    store
        .commit(write((0..BATCH_MAX).map(|i| delete(name(i))).collect()))
        .await
        .unwrap();
    assert_eq!(all(&store).await, []);
}

async fn bounds_are_enforced(store: Arc<dyn Store>) {
    let long_key = vec![b'k'; KEY_BYTES_MAX + 1];
    let too_many = || (0..=BATCH_MAX).map(|i| i.to_string());
    let commits = [
        write(vec![put("first", ""), put(&long_key, "")]),
        write(vec![put("first", ""), delete(&long_key)]),
        write(vec![put("first", ""), put("big", vec![0; VALUE_BYTES_MAX + 1])]),
        write(too_many().map(|key| put(key, "")).collect()),
        write(vec![put("first", ""), put("twice", "1"), delete("twice")]),
        Commit {
            preconditions: vec![absent(&long_key)],
            mutations: vec![put("first", "")],
        },
        Commit {
            preconditions: too_many().map(absent).collect(),
            mutations: vec![put("first", "")],
        },
    ];
    for commit in commits {
        assert!(matches!(
            store.commit(commit).await,
            Err(LedgerError::OutOfBounds { .. })
        ));
    }
    let gets = [vec![bytes(&long_key)], too_many().map(bytes).collect()];
    for keys in gets {
        assert!(matches!(
            store.get(keys).await,
            Err(LedgerError::OutOfBounds { .. })
        ));
    }
    assert_eq!(all(&store).await, []);
    store.commit(write(vec![put("after", "")])).await.unwrap();
}

async fn abandoned_commits_break_nothing(store: Arc<dyn Store>) {
    let mut kept = Vec::new();
    for i in 0..200_u32 {
        let store = Arc::clone(&store);
        let task = tokio::spawn(async move {
            let key = i.to_be_bytes();
            store
                .commit(write(vec![
                    put([&key[..], b"a"].concat(), key),
                    put([&key[..], b"b"].concat(), key),
                ]))
                .await
        });
        if i % 3 == 0 {
            tokio::task::yield_now().await;
            task.abort();
        } else {
            kept.push((i, task));
        }
    }
    for (i, task) in kept {
        task.await.unwrap().unwrap();
        assert!(get(&store, [&i.to_be_bytes()[..], b"a"].concat()).await.is_some());
    }
    let rows = all(&store).await;
    assert_eq!(
        rows.len() % 2,
        0,
        "an abandoned commit is there whole or not at all"
    );
    for pair in rows.chunks(2) {
        assert_eq!(
            (&pair[0].key[..4], &pair[0].versioned),
            (&pair[1].key[..4], &pair[1].versioned)
        );
    }
}

async fn reopening_keeps_everything(engine: &dyn Engine) {
    let store = engine.empty().await;
    for i in 1..50 {
        store
            .commit(write(vec![
                put(format!("k{i:03}"), vec![i; 1000]),
                delete(format!("k{:03}", i / 2)),
            ]))
            .await
            .unwrap();
    }
    let before = all(&store).await;
    let store = engine.reopen(store).await;
    assert_eq!(all(&store).await, before);
}

/// One step of a random history. Keys and versions are drawn from few, so that they meet.
#[derive(Clone, Debug)]
enum Step {
    Commit {
        preconditions: Vec<(Vec<u8>, Expectation)>,
        mutations: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    },
    Get(Vec<Vec<u8>>),
    Scan {
        start: Vec<u8>,
        end: Option<Vec<u8>>,
        limit: usize,
        direction: Direction,
    },
    Reopen,
}

/// What a random precondition says of its key.
#[derive(Clone, Copy, Debug)]
enum Expectation {
    Absent,
    /// The version it has now, if it has one.
    Current,
    Stale,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let key = || prop::collection::vec(prop::sample::select(vec![0_u8, 1, b'a', 0xff]), 0..3);
    let expectation = prop::sample::select(vec![
        Expectation::Absent,
        Expectation::Current,
        Expectation::Current,
        Expectation::Stale,
    ]);
    let value = prop::option::weighted(0.7, prop::collection::vec(any::<u8>(), 0..20));
    let commit = (
        prop::collection::vec((key(), expectation), 0..3),
        prop::collection::btree_map(key(), value, 0..5),
    );
    let direction = prop::sample::select(vec![Direction::Forward, Direction::Backward]);
    let scan = (key(), prop::option::of(key()), 0..20_usize, direction);
    let step = prop_oneof![
        6 => commit.prop_map(|(preconditions, mutations)| Step::Commit { preconditions, mutations }),
        2 => prop::collection::vec(key(), 0..4).prop_map(Step::Get),
        3 => scan.prop_map(|(start, end, limit, direction)| Step::Scan { start, end, limit, direction }),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..30)
}

fn behaves_as_a_map(engine: &dyn Engine, runtime: &Runtime) {
    let config = ProptestConfig {
        cases: 64,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let outcome = TestRunner::new(config).run(&steps(), |steps| {
        runtime.block_on(follow(engine, steps));
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}

async fn follow(engine: &dyn Engine, steps: Vec<Step>) {
    let mut store = engine.empty().await;
    let mut model: BTreeMap<Vec<u8>, Versioned> = BTreeMap::new();
    let mut last_version = 0;
    for step in steps {
        match step {
            Step::Reopen => store = engine.reopen(store).await,
            Step::Get(keys) => {
                let expected: Vec<_> = keys.iter().map(|key| model.get(key).cloned()).collect();
                assert_eq!(
                    store.get(keys.iter().map(bytes).collect()).await.unwrap(),
                    expected
                );
            }
            Step::Scan {
                start,
                end,
                limit,
                direction,
            } => {
                let inside = |key: &Vec<u8>| *key >= start && end.as_ref().is_none_or(|end| key < end);
                let mut expected: Vec<Row> = model
                    .iter()
                    .filter(|(key, _)| inside(key))
                    .map(|(key, versioned)| Row {
                        key: bytes(key),
                        versioned: versioned.clone(),
                    })
                    .collect();
                if direction == Direction::Backward {
                    expected.reverse();
                }
                expected.truncate(limit);
                assert_eq!(
                    scan(&store, range(&start, end.as_deref()), limit, direction).await,
                    expected
                );
            }
            Step::Commit {
                preconditions,
                mutations,
            } => {
                let (preconditions, held): (Vec<_>, Vec<_>) = preconditions
                    .into_iter()
                    .map(|(key, expectation)| expect(&model, key, expectation))
                    .unzip();
                let written = mutations.iter().map(|(key, value)| match value {
                    Some(value) => put(key, value),
                    None => delete(key),
                });
                let commit = Commit {
                    preconditions,
                    mutations: written.collect(),
                };
                match (store.commit(commit).await, held.iter().position(|held| !held)) {
                    (outcome, Some(index)) => assert_eq!(outcome, Err(LedgerError::Conflict { index })),
                    (outcome, None) => {
                        let version = outcome.unwrap();
                        assert!(version > last_version);
                        last_version = version;
                        for (key, value) in mutations {
                            match value {
                                Some(value) => model.insert(
                                    key,
                                    Versioned {
                                        version,
                                        value: value.into(),
                                    },
                                ),
                                None => model.remove(&key),
                            };
                        }
                    }
                }
            }
        }
    }
}

/// The precondition, and whether it holds in the model.
fn expect(
    model: &BTreeMap<Vec<u8>, Versioned>,
    key: Vec<u8>,
    expectation: Expectation,
) -> (Precondition, bool) {
    let now = model.get(&key).map(|row| row.version);
    match (expectation, now) {
        (Expectation::Absent, _) => (absent(key), now.is_none()),
        (Expectation::Current, Some(now)) => (version(key, now), true),
        (Expectation::Current, None) => (version(key, 1), false),
        (Expectation::Stale, now) => (version(key, now.unwrap_or(1) - 1), false),
    }
}
