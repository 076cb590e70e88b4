//! What a damaged ledger answers: what was written, or a typed error; never that something is absent that is there.
//!
//! Each round damages a copy of a ledger that has rows in every table, opens it, and asks for everything. CI does a few dozens of
//! rounds, `CAIRN_TEST_LONG=1` all; `CAIRN_TEST_SEED` repeats a run.

use super::faulty::Lost;
use super::file::{BLOCK_BYTES, sums_path_of};
use super::*;
use crate::ledger::key;
use crate::ledger::store::Mutation;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

const CACHE_BYTES: usize = 4 << 20;

fn seed() -> u64 {
    let given = std::env::var("CAIRN_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(rand::random);
    println!("CAIRN_TEST_SEED={seed}");
    seed
}

fn rounds(few: usize, all: usize) -> usize {
    match std::env::var_os("CAIRN_TEST_LONG") {
        Some(_) => all,
        None => few,
    }
}

/// Rows of every table.
fn keys(rng: &mut StdRng) -> Vec<Bytes> {
    let mut keys = vec![
        key::settings(),
        key::pace(),
        key::rebalance(),
        key::generation(),
        key::scrub(),
    ];
    for counter in [
        key::Counter::Bucket,
        key::Counter::Volume,
        key::Counter::Blob,
        key::Counter::Lease,
    ] {
        keys.push(key::counter(counter));
    }
    for n in 0..20_u64 {
        keys.push(key::bucket(&format!("bucket-{n}")));
        keys.push(key::volume(n));
        keys.push(key::volume_census(n));
        keys.push(key::lease(n));
        keys.push(key::id_range(n, n * 100));
        keys.push(key::disk(rng.random()));
        keys.push(key::node(rng.random()));
        keys.push(key::token(&rng.random()));
    }
    for n in 0..200_u64 {
        let (volume, name) = (n % 20, format!("photos/{n:05}/{}", rng.random::<u32>()));
        keys.push(key::object(1 + n % 3, &name));
        keys.push(key::blob(volume, n));
        keys.push(key::seals(volume, n));
        if n % 5 == 0 {
            let upload = rng.random();
            keys.push(key::garbage(volume, n));
            keys.push(key::suspect(volume, n, 3, 1));
            keys.push(key::upload(2, &name, upload));
            keys.push(key::part(upload, 7));
        }
    }
    keys.sort();
    keys.dedup();
    keys
}

type Model = BTreeMap<Bytes, Versioned>;

/// A ledger that was closed, or one whose process was killed, and what it holds.
struct Original {
    files: Vec<(PathBuf, Vec<u8>)>,
    model: Model,
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

fn files_of(path: &Path) -> Vec<PathBuf> {
    vec![path.to_owned(), sums_path_of(path), log::path_of(path)]
}

/// `late` commits come after all the others and stay in the log.
fn original(rng: &mut StdRng, late: usize) -> Original {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ledger.redb");
    let mut model = Model::new();
    let mut files = Vec::new();
    runtime().block_on(async {
        let store = RedbStore::create(&path, CACHE_BYTES).unwrap();
        let keys = keys(rng);
        let put = async |keys: &[Bytes], model: &mut Model, rng: &mut StdRng| {
            let values = keys.iter().map(|key| {
                let bytes = if key.starts_with(b"e") {
                    2_000
                } else {
                    rng.random_range(20..300)
                };
                (
                    key.clone(),
                    Bytes::from((0..bytes).map(|_| rng.random()).collect::<Vec<u8>>()),
                )
            });
            let values: Vec<_> = values.collect();
            let mutations = values
                .iter()
                .cloned()
                .map(|(key, value)| Mutation::Put { key, value })
                .collect();
            let commit = Commit {
                preconditions: Vec::new(),
                mutations,
            };
            let version = store.commit(commit).await.unwrap();
            model.extend(
                values
                    .into_iter()
                    .map(|(key, value)| (key, Versioned { version, value })),
            );
        };
        // In several transactions, so that pages are used again.
        for pass in 0..3 {
            for some in keys.chunks(50 + pass * 20) {
                put(some, &mut model, rng).await;
            }
        }
        if late == 0 {
            drop(store);
            files = files_of(&path)
                .into_iter()
                .map(|path| (path.clone(), std::fs::read(path).unwrap()))
                .collect();
            return;
        }
        while store.shared.recent.sequence().1 || store.shared.recent.settling().is_some() {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
        let [tree, sums, log] = &files_of(&path)[..] else {
            unreachable!()
        };
        let read = |path: &PathBuf| (path.clone(), std::fs::read(path).unwrap());
        files.extend([read(tree), read(sums)]);
        for n in 0..late {
            let some: Vec<Bytes> = keys.iter().skip(n * 7).step_by(150).cloned().collect();
            put(&some, &mut model, rng).await;
        }
        files.push(read(log));
        drop(store);
    });
    Original { files, model }
}

impl Original {
    /// A copy of it in a directory.
    fn put_down(&self, directory: &Path) -> PathBuf {
        for (path, content) in &self.files {
            std::fs::write(directory.join(path.file_name().unwrap()), content).unwrap();
        }
        directory.join("ledger.redb")
    }
}

#[derive(Default, Debug)]
struct Seen {
    refused: usize,
    last_refusal: String,
    corrected: usize,
    /// Some answer was typed damage.
    noticed: usize,
    /// Everything was answered right, and nothing was noticed.
    harmless: usize,
    unreadable_rows: usize,
}

/// Asks a ledger for everything as a gateway would; answers that are wrong panic.
fn ask_everything(path: &Path, model: &Model, seen: &mut Seen) {
    let store = match RedbStore::open(path, CACHE_BYTES) {
        Ok(store) => store,
        Err(LedgerError::Damaged { what }) => {
            seen.refused += 1;
            seen.last_refusal = what;
            return;
        }
        Err(other) => panic!("{other}"),
    };
    runtime().block_on(async {
        let mut unreadable = 0;
        for (key, right) in model {
            match store.get(vec![key.clone()]).await {
                Ok(found) => assert_eq!(found[0].as_ref(), Some(right), "{}", key::words(key)),
                Err(LedgerError::Damaged { .. }) => unreadable += 1,
                Err(other) => panic!("{}: {other}", key::words(key)),
            }
        }
        let mut listed = 0;
        for tag in b"GUBCabcdeglnoprstuvwxz".iter().copied() {
            let range = key::table(tag);
            let right: Vec<Row> = model
                .range(range.start.clone()..range.end.clone().unwrap())
                .map(|(key, versioned)| Row {
                    key: key.clone(),
                    versioned: versioned.clone(),
                })
                .collect();
            for direction in [Direction::Forward, Direction::Backward] {
                match store.scan(range.clone(), SCAN_LIMIT_MAX, direction).await {
                    Ok(mut rows) => {
                        if direction == Direction::Backward {
                            rows.reverse();
                        }
                        assert!(rows == right, "a scan of {:?} is wrong", tag as char);
                    }
                    Err(LedgerError::Damaged { .. }) => {}
                    Err(other) => panic!("{other}"),
                }
            }
            // Page by page, beside what is damaged.
            let (mut rest, mut rows, mut gaps) = (range, Vec::new(), Vec::new());
            loop {
                let scanned = store.scan_beside(rest.clone(), 20).await.unwrap();
                gaps.extend(scanned.gaps);
                let is_full = scanned.rows.len() == 20;
                rows.extend(scanned.rows);
                let Some(last) = rows.last().filter(|_| is_full) else {
                    break;
                };
                rest.start = key::after(&last.key);
            }
            let is_in_gap = |key: &Bytes| gaps.iter().any(|gap| offline::contains(gap, key));
            let found: BTreeMap<_, _> = rows.into_iter().map(|row| (row.key, row.versioned)).collect();
            for row in &right {
                match found.get(&row.key) {
                    Some(found) => assert_eq!(*found, row.versioned),
                    None => {
                        assert!(is_in_gap(&row.key), "{} is not listed", key::words(&row.key));
                        let found = store.get(vec![row.key.clone()]).await;
                        assert!(found.is_err(), "{:?} is hidden by {gaps:?}", row.key);
                    }
                }
            }
            assert!(found.keys().all(|key| model.contains_key(key)));
            listed += found.len();
        }
        assert!(
            listed >= model.len() - unreadable,
            "{listed} listed, {unreadable} of {} unreadable",
            model.len()
        );
        let counts = store.damage().unwrap().counts();
        seen.unreadable_rows += unreadable;
        match (unreadable > 0, counts.corrected > 0) {
            (true, _) => seen.noticed += 1,
            (false, true) => seen.corrected += 1,
            (false, false) => seen.harmless += 1,
        }
        assert_eq!(unreadable > 0, counts.is_any(), "{counts:?}");
        // It goes on: what is not damaged can be written.
        let mutation = Mutation::Put {
            key: Bytes::from_static(b"zz"),
            value: Bytes::from_static(b"new"),
        };
        let commit = Commit {
            preconditions: Vec::new(),
            mutations: vec![mutation],
        };
        match store.commit(commit).await {
            Ok(_) | Err(LedgerError::Damaged { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    });
}

/// Where some bytes are in a file, one of the places.
fn find(content: &[u8], wanted: &[u8], rng: &mut StdRng) -> Option<usize> {
    let places: Vec<usize> = memchr::memmem::find_iter(content, wanted).collect();
    places.choose(rng).copied()
}

/// A byte of a row's key or value, or of anything.
fn aim(content: &[u8], model: &Model, round: usize, rng: &mut StdRng) -> usize {
    if round.is_multiple_of(2) {
        return rng.random_range(0..content.len());
    }
    let mut tags: Vec<u8> = model.keys().map(|key| key[0]).collect();
    tags.dedup();
    loop {
        let tag = *tags.choose(rng).unwrap();
        let of_table: Vec<_> = model.iter().filter(|(key, _)| key[0] == tag).collect();
        let (key, row) = of_table.choose(rng).unwrap();
        let wanted = if rng.random() { &key[..] } else { &row.value[..] };
        if let Some(at) = find(content, wanted, rng) {
            return at + rng.random_range(0..wanted.len());
        }
    }
}

#[test]
fn one_flipped_bit_of_the_tree_costs_nothing() {
    let mut rng = StdRng::seed_from_u64(seed());
    let original = original(&mut rng, 0);
    let mut seen = Seen::default();
    for round in 0..rounds(12, 2_000) {
        let directory = tempfile::tempdir().unwrap();
        let path = original.put_down(directory.path());
        let mut content = original.files[0].1.clone();
        let at = aim(&content, &original.model, round, &mut rng);
        content[at] ^= 1 << rng.random_range(0..8);
        std::fs::write(&path, content).unwrap();
        ask_everything(&path, &original.model, &mut seen);
    }
    println!("single bits of the tree: {seen:?}");
    assert_eq!((seen.refused, seen.noticed), (0, 0));
    assert!(seen.corrected > 0);
}

#[test]
fn one_flipped_bit_of_the_sums_costs_nothing() {
    let mut rng = StdRng::seed_from_u64(seed());
    let original = original(&mut rng, 0);
    let mut seen = Seen::default();
    for _ in 0..rounds(3, 200) {
        let directory = tempfile::tempdir().unwrap();
        let path = original.put_down(directory.path());
        let mut content = original.files[1].1.clone();
        let at = rng.random_range(0..content.len());
        content[at] ^= 1 << rng.random_range(0..8);
        std::fs::write(sums_path_of(&path), content).unwrap();
        ask_everything(&path, &original.model, &mut seen);
    }
    assert_eq!((seen.refused, seen.noticed), (0, 0));
}

/// Several bytes, a sector of zeros, or a block in the place of another: more than can be set right.
#[test]
fn lost_blocks_are_noticed_and_the_rest_is_answered() {
    let mut rng = StdRng::seed_from_u64(seed());
    let original = original(&mut rng, 0);
    let mut seen = Seen::default();
    for round in 0..rounds(8, 1_000) {
        let directory = tempfile::tempdir().unwrap();
        let path = original.put_down(directory.path());
        let mut content = original.files[0].1.clone();
        for _ in 0..rng.random_range(1..4) {
            let at = aim(&content, &original.model, round, &mut rng).max(BLOCK_BYTES);
            let block = at / BLOCK_BYTES * BLOCK_BYTES;
            match rng.random_range(0..3) {
                0 => content[at..(at + 40).min(block + BLOCK_BYTES)]
                    .iter_mut()
                    .for_each(|b| *b = rng.random()),
                1 => content[at / 512 * 512..][..512].fill(0),
                _ => {
                    let other = rng.random_range(1..content.len() / BLOCK_BYTES) * BLOCK_BYTES;
                    content.copy_within(other..other + BLOCK_BYTES, block);
                }
            }
        }
        std::fs::write(&path, content).unwrap();
        ask_everything(&path, &original.model, &mut seen);
    }
    println!("lost blocks of the tree: {seen:?}");
    assert!(seen.noticed > 0);
}

/// Sums that are missing, or of another file, are made anew once the tree was verified; if it does not verify, that is said.
#[test]
fn sums_that_are_not_of_this_tree_are_made_anew() {
    let mut rng = StdRng::seed_from_u64(seed());
    let (other, original) = (original(&mut rng, 0), original(&mut rng, 0));
    let directory = tempfile::tempdir().unwrap();
    for sums in [
        None,
        Some(&other.files[1].1[..]),
        Some(&original.files[1].1[..600]),
        Some(&[7; 5_000][..]),
    ] {
        let path = original.put_down(directory.path());
        match sums {
            None => std::fs::remove_file(sums_path_of(&path)).unwrap(),
            Some(sums) => std::fs::write(sums_path_of(&path), sums).unwrap(),
        }
        let mut seen = Seen::default();
        ask_everything(&path, &original.model, &mut seen);
        assert_eq!(seen.harmless, 1, "{seen:?}");
        // They are there again.
        let mut seen = Seen::default();
        let mut content = std::fs::read(&path).unwrap();
        let (key, _) = original
            .model
            .iter()
            .find(|(key, _)| key.starts_with(b"o"))
            .unwrap();
        let places: Vec<usize> = memchr::memmem::find_iter(&content, &key[..]).collect();
        places.iter().for_each(|at| content[*at + 12] ^= 1);
        std::fs::write(&path, &content).unwrap();
        let mut model = original.model.clone();
        let (version, value) = (
            model.values().map(|row| row.version).max().unwrap() + 1,
            Bytes::from_static(b"new"),
        );
        model.insert(Bytes::from_static(b"zz"), Versioned { version, value });
        ask_everything(&path, &model, &mut seen);
        assert_eq!(seen.corrected, 1, "{seen:?}");
    }
    let path = original.put_down(directory.path());
    let mut content = original.files[0].1.clone();
    let (key, _) = original
        .model
        .iter()
        .find(|(key, _)| key.starts_with(b"o"))
        .unwrap();
    let places: Vec<usize> = memchr::memmem::find_iter(&content, &key[..]).collect();
    places.iter().for_each(|at| content[*at + 12] ^= 1);
    std::fs::write(&path, &content).unwrap();
    std::fs::remove_file(sums_path_of(&path)).unwrap();
    let mut seen = Seen::default();
    ask_everything(&path, &original.model, &mut seen);
    assert_eq!(seen.refused, 1, "{seen:?}");
}

/// A lost block keeps commits that belong there from the tree, not from the log; when that is full they are refused with words. Once
/// the block is there again everything goes on.
#[test]
fn damage_keeps_commits_in_the_log_until_it_is_gone() {
    let mut rng = StdRng::seed_from_u64(seed());
    let original = original(&mut rng, 0);
    let directory = tempfile::tempdir().unwrap();
    let path = original.put_down(directory.path());
    let right = original.files[0].1.clone();
    let mut wrong = right.clone();
    let (key, _) = original
        .model
        .iter()
        .find(|(key, _)| key.starts_with(b"o"))
        .unwrap();
    let places: Vec<usize> = memchr::memmem::find_iter(&wrong, &key[..]).collect();
    places.iter().for_each(|at| wrong[*at..at + 12].fill(b'?'));
    std::fs::write(&path, &wrong).unwrap();
    runtime().block_on(async {
        let store = RedbStore::open(&path, CACHE_BYTES).unwrap();
        let put = |key: &Bytes| {
            let value = Bytes::from(vec![5; 30_000]);
            let mutations = vec![Mutation::Put {
                key: key.clone(),
                value,
            }];
            store.commit(Commit {
                preconditions: Vec::new(),
                mutations,
            })
        };
        let mut refusal = None;
        for _ in 0..100 {
            refusal = put(key).await.err();
            if refusal.is_some() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
        assert!(
            matches!(refusal, Some(LedgerError::Damaged { .. })),
            "{refusal:?}"
        );
        assert!(store.damage().unwrap().counts().pages > 0);
        let stuck = super::writer::lock(&store.shared.turn).stuck.clone();
        assert!(
            matches!(stuck, Some(LedgerError::Damaged { .. })),
            "redb panicked when the transaction was given up: {stuck:?}"
        );
        let (volume, row) = original
            .model
            .iter()
            .find(|(key, _)| key.starts_with(b"v"))
            .unwrap();
        assert_eq!(
            store.get(vec![volume.clone()]).await.unwrap()[0].as_ref(),
            Some(row)
        );
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        for at in places {
            let block = at / BLOCK_BYTES * BLOCK_BYTES;
            std::os::unix::fs::FileExt::write_all_at(&file, &right[block..block + BLOCK_BYTES], block as u64)
                .unwrap();
        }
        let mut tries = 0;
        while let Err(error) = put(key).await {
            assert!(tries < 200, "{error}");
            tries += 1;
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    });
}

/// What is lost is had from elsewhere while the ledger is open and others commit: then all is there, in memory and on disk.
#[test]
fn a_damaged_tree_is_mended_while_it_is_open() {
    let mut rng = StdRng::seed_from_u64(seed());
    let original = original(&mut rng, 0);
    let (mut mended, mut rows_lost) = (0, 0);
    for round in 0..rounds(10, 400) {
        let directory = tempfile::tempdir().unwrap();
        let path = original.put_down(directory.path());
        let mut content = original.files[0].1.clone();
        for _ in 0..rng.random_range(1..4) {
            let at = aim(&content, &original.model, round, &mut rng).max(BLOCK_BYTES);
            content[at / 512 * 512..][..512].fill(round as u8);
        }
        std::fs::write(&path, content).unwrap();
        let Ok(store) = RedbStore::open(&path, CACHE_BYTES) else {
            continue; // What opening needs: that is for a repair of a closed ledger.
        };
        let (mut model, before) = (original.model.clone(), mended);
        runtime().block_on(async {
            let put = async |store: &RedbStore, rng: &mut StdRng, model: &mut Model| {
                let keys: Vec<Bytes> = original.model.keys().cloned().collect();
                let key = keys.choose(rng).unwrap().clone();
                let mutation = match rng.random_bool(0.3) {
                    true => Mutation::Delete { key: key.clone() },
                    false => Mutation::Put {
                        key: key.clone(),
                        value: Bytes::from(vec![3; 50]),
                    },
                };
                let value = match &mutation {
                    Mutation::Put { value, .. } => Some(value.clone()),
                    Mutation::Delete { .. } => None,
                };
                let commit = Commit {
                    preconditions: Vec::new(),
                    mutations: vec![mutation],
                };
                let version = store.commit(commit).await.unwrap();
                match value {
                    Some(value) => model.insert(key, Versioned { version, value }),
                    None => model.remove(&key),
                };
            };
            put(&store, &mut rng, &mut model).await;
            let Some(mending) = store.find_damage().await.unwrap() else {
                return;
            };
            // Rows as they were when all was closed: nothing came into the tree since, or it came whole.
            let lost = |key: &Bytes| mending.parts().iter().any(|part| offline::contains(part, key));
            let of_then =
                match mending.position() == original.model.values().map(|row| row.version).max().unwrap() {
                    true => original.model.clone(),
                    false => model.clone(),
                };
            let rows: Vec<Row> = of_then
                .iter()
                .filter(|(key, _)| lost(key))
                .map(|(key, versioned)| Row {
                    key: key.clone(),
                    versioned: versioned.clone(),
                })
                .collect();
            rows_lost += rows.len();
            for _ in 0..3 {
                put(&store, &mut rng, &mut model).await;
                tokio::time::sleep(std::time::Duration::from_millis(rng.random_range(0..30))).await;
            }
            mending.mend(rows).await.unwrap();
            put(&store, &mut rng, &mut model).await;
            mended += 1;
            assert!(!store.damage().unwrap().counts().is_any());
            assert!(store.find_damage().await.unwrap().is_none());
            for (key, right) in &model {
                let found = store.get(vec![key.clone()]).await.unwrap();
                assert_eq!(found[0].as_ref(), Some(right), "{}", key::words(key));
            }
        });
        drop(store);
        let checked = offline::check(&path).unwrap();
        assert!(
            checked.damaged.is_empty() && checked.is_tree_whole,
            "{:?}",
            checked.damaged
        );
        // Damage where nothing is in use is left.
        assert!(checked.damaged_blocks.is_empty() || mended == before);
        let store = RedbStore::open(&path, CACHE_BYTES).unwrap();
        runtime().block_on(async {
            let range = KeyRange {
                start: Bytes::new(),
                end: None,
            };
            let rows = store
                .scan(range, SCAN_LIMIT_MAX, Direction::Forward)
                .await
                .unwrap();
            let found: Model = rows.into_iter().map(|row| (row.key, row.versioned)).collect();
            assert!(found == model);
        });
    }
    println!("mended {mended} trees, which had lost {rows_lost} rows");
    assert!(mended > 0 && rows_lost > 0);
}

/// Whatever block is lost, offline tools say so and end: also what redb reads only to close is met with words.
#[test]
fn no_lost_block_ends_a_check_or_a_repair_with_a_panic() {
    let mut rng = StdRng::seed_from_u64(seed());
    let original = original(&mut rng, 2);
    let directory = tempfile::tempdir().unwrap();
    let blocks = original.files[0].1.len() / BLOCK_BYTES;
    let every = rounds(5, 1);
    for block in (rng.random_range(1..=every)..blocks).step_by(every) {
        let path = original.put_down(directory.path());
        let mut content = original.files[0].1.clone();
        content[block * BLOCK_BYTES + 100..][..900].fill(0xA5);
        std::fs::write(&path, &content).unwrap();
        let (_said, _planned) = (offline::check(&path), offline::plan(&path, &offline::Nowhere));
        if let Ok(store) = RedbStore::open(&path, CACHE_BYTES) {
            runtime().block_on(async { _ = store.find_damage().await });
        }
    }
}

/// Wherever the file was cut, tools and the engine say so and end, and no panic prints its own words.
#[test]
fn no_cut_ends_a_check_or_a_repair_with_a_panic() {
    static UNEXPECTED: AtomicUsize = AtomicUsize::new(0);
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !expects_panic() {
            UNEXPECTED.fetch_add(1, Ordering::SeqCst);
            print(panic);
        }
    }));
    let mut rng = StdRng::seed_from_u64(seed());
    let original = original(&mut rng, 2);
    let directory = tempfile::tempdir().unwrap();
    let len = original.files[0].1.len();
    let anywhere: Vec<usize> = (0..rounds(40, 1_000)).map(|_| rng.random_range(0..len)).collect();
    let at_blocks = (0..len).step_by(BLOCK_BYTES * rounds(20, 1));
    for cut in anywhere.into_iter().chain(at_blocks).chain([0, 1, len - 1]) {
        let path = original.put_down(directory.path());
        std::fs::write(&path, &original.files[0].1[..cut]).unwrap();
        let checked = offline::check(&path);
        assert!(!checked.is_ok_and(|report| report.is_clean()), "cut at {cut}");
        let _planned = offline::plan(&path, &offline::Nowhere);
        if let Ok(store) = RedbStore::open(&path, CACHE_BYTES) {
            runtime().block_on(async { _ = store.find_damage().await });
        }
    }
    assert_eq!(UNEXPECTED.load(Ordering::SeqCst), 0);
}

/// If more is lost than was looked for, nothing is changed.
#[test]
fn a_tree_that_lost_more_than_was_known_is_left_as_it_is() {
    let mut rng = StdRng::seed_from_u64(seed());
    let original = original(&mut rng, 0);
    let directory = tempfile::tempdir().unwrap();
    let path = original.put_down(directory.path());
    let mut content = original.files[0].1.clone();
    let (key, _) = original
        .model
        .iter()
        .find(|(key, _)| key.starts_with(b"o"))
        .unwrap();
    let places: Vec<usize> = memchr::memmem::find_iter(&content, &key[..]).collect();
    places.iter().for_each(|at| content[*at..at + 9].fill(b'?'));
    std::fs::write(&path, &content).unwrap();
    let store = RedbStore::open(&path, CACHE_BYTES).unwrap();
    let before = std::fs::read(&path).unwrap();
    runtime().block_on(async {
        let mut mending = mend::TreeMending::begin(store.shared.clone()).unwrap().unwrap();
        mending.parts.clear();
        let refused = Box::new(mending).mend(Vec::new()).await;
        assert!(matches!(refused, Err(LedgerError::Damaged { .. })), "{refused:?}");
        assert!(std::fs::read(&path).unwrap() == before);
        assert!(!directory.path().join("ledger.redb.unfinished").exists());
        assert!(store.damage().unwrap().counts().is_any());
    });
}

/// Bits of the log of a gateway that was killed: what was acknowledged is there, or the ledger is refused.
#[test]
fn one_flipped_bit_of_the_log_loses_nothing_in_silence() {
    let mut rng = StdRng::seed_from_u64(seed());
    let original = original(&mut rng, 3);
    let frames: Vec<usize> = memchr::memmem::find_iter(&original.files[2].1, b"cairnlog")
        .filter(|at| at.is_multiple_of(4096))
        .collect();
    let mut seen = Seen::default();
    for round in 0..rounds(6, 500) {
        let directory = tempfile::tempdir().unwrap();
        let path = original.put_down(directory.path());
        let mut content = original.files[2].1.clone();
        let at = match round % 2 {
            0 => rng.random_range(0..content.len()),
            _ => frames.choose(&mut rng).unwrap() + rng.random_range(0..4096),
        };
        content[at] ^= 1 << rng.random_range(0..8);
        std::fs::write(log::path_of(&path), content).unwrap();
        ask_everything(&path, &original.model, &mut seen);
        if seen.noticed > 0 {
            panic!("{seen:?}");
        }
    }
    println!("single bits of the log: {seen:?}");
}

/// A check finds what is damaged and changes nothing; a repair keeps every row that verifies, and says what it gives up.
#[test]
fn a_repair_keeps_every_row_that_verifies_and_lists_the_others() {
    let mut rng = StdRng::seed_from_u64(seed());
    let original = original(&mut rng, 2);
    let (mut lost, mut recovered) = (0, 0);
    for round in 0..rounds(6, 300) {
        let directory = tempfile::tempdir().unwrap();
        let path = original.put_down(directory.path());
        let mut content = original.files[0].1.clone();
        for _ in 0..2 {
            let at = aim(&content, &original.model, round, &mut rng).max(BLOCK_BYTES);
            let until = (at + 40)
                .min(at / BLOCK_BYTES * BLOCK_BYTES + BLOCK_BYTES)
                .min(content.len());
            content[at..until].iter_mut().for_each(|b| *b = rng.random());
        }
        std::fs::write(&path, &content).unwrap();
        let checked = match offline::check(&path) {
            Ok(report) => report,
            Err(error) => panic!("{error}"),
        };
        assert!(
            std::fs::read(&path).unwrap() == content,
            "a check changed the file"
        );
        let Ok(planned) = offline::plan(&path, &offline::Nowhere) else {
            assert!(!checked.is_clean());
            continue;
        };
        let plan = offline::repair(&path, &offline::Nowhere).unwrap();
        assert_eq!((plan.rows, &plan.given_up), (planned.rows, &planned.given_up));
        assert_eq!(
            checked.damaged.is_empty(),
            plan.given_up.is_empty() && plan.recovered.is_empty()
        );
        assert!(!checked.damaged_blocks.is_empty() || checked.damaged.is_empty());
        assert!(plan.aside[0].exists() && std::fs::read(&plan.aside[0]).unwrap() == content);
        let after = offline::check(&path).unwrap();
        assert!(
            after.damaged.is_empty() && after.is_tree_whole && after.damaged_blocks.is_empty(),
            "{after:?}"
        );
        runtime().block_on(async {
            let store = RedbStore::open(&path, CACHE_BYTES).unwrap();
            let mut missing = 0;
            for (key, right) in &original.model {
                match &store.get(vec![key.clone()]).await.unwrap()[0] {
                    Some(found) => assert_eq!(found, right, "{}", key::words(key)),
                    None => missing += 1,
                }
            }
            assert!(
                missing == 0 || !plan.given_up.is_empty(),
                "{missing} missing: {plan:?}"
            );
            lost += missing;
            recovered += plan.recovered.len();
        });
    }
    println!("repairs: {lost} rows lost, {recovered} recovered from damaged pages");
}

/// Bytes of a block of a file.
fn block_at(block: usize) -> std::ops::Range<u64> {
    (block * BLOCK_BYTES) as u64..((block + 1) * BLOCK_BYTES) as u64
}

/// The key of an object's row, and a block that has it.
fn block_of_object(original: &Original, rng: &mut StdRng) -> usize {
    let is_object = |key: &&Bytes| key.starts_with(b"o");
    let keys: Vec<&Bytes> = original.model.keys().filter(is_object).collect();
    find(&original.files[0].1, keys.choose(rng).unwrap(), rng).unwrap() / BLOCK_BYTES
}

/// How many rows a ledger lost; those that it has are right.
fn missing_of(path: &Path, model: &Model) -> usize {
    let store = RedbStore::open(path, CACHE_BYTES).unwrap();
    runtime().block_on(async {
        let mut missing = 0;
        for (key, right) in model {
            match &store.get(vec![key.clone()]).await.unwrap()[0] {
                Some(found) => assert_eq!(found, right, "{}", key::words(key)),
                None => missing += 1,
            }
        }
        missing
    })
}

/// A sector that the disk lost costs offline tools the rows in it, and nothing else.
#[test]
fn a_sector_that_cannot_be_read_is_repaired_as_a_damaged_page_is() {
    let mut rng = StdRng::seed_from_u64(seed());
    let original = original(&mut rng, 2);
    let (blocks, mut repaired) = (original.files[0].1.len() / BLOCK_BYTES, 0);
    for round in 0..rounds(8, 200) {
        let block = match round {
            0 => 0,
            _ if round % 2 == 0 => rng.random_range(0..blocks),
            _ => block_of_object(&original, &mut rng),
        };
        let directory = tempfile::tempdir().unwrap();
        let path = original.put_down(directory.path());
        let _lost = Lost::of(&path, block_at(block));
        let checked = offline::check(&path).unwrap();
        assert!(!checked.is_clean() && checked.has_sums);
        assert_eq!(checked.unreadable_blocks, [block as u64]);
        assert_eq!(checked.damaged_blocks, [block as u64]);
        let plan = match offline::repair(&path, &offline::Nowhere) {
            Ok(plan) => plan,
            // What opening needs: said, and for a restore.
            Err(LedgerError::Damaged { .. }) => continue,
            Err(other) => panic!("block {block}: {other}"),
        };
        repaired += 1;
        assert!(plan.not_copied[0].starts_with("1 blocks of "), "{plan:?}");
        let mut right = original.files[0].1.clone();
        right[block * BLOCK_BYTES..][..BLOCK_BYTES].fill(0);
        assert!(std::fs::read(&plan.aside[0]).unwrap() == right);
        assert!(offline::check(&path).unwrap().is_tree_whole);
        let missing = missing_of(&path, &original.model);
        assert!(missing == 0 || !plan.given_up.is_empty(), "{missing}: {plan:?}");
        assert!(block > 0 || missing == 0, "the header is known from the sums");
    }
    assert!(repaired > 4, "{repaired}");
}

/// A sector that the disk lost is damage that a pass counts, at its place; the pass goes on, and so does the
/// engine.
#[test]
fn a_pass_goes_on_behind_a_sector_that_cannot_be_read() {
    let mut rng = StdRng::seed_from_u64(seed());
    let original = original(&mut rng, 0);
    let directory = tempfile::tempdir().unwrap();
    let path = original.put_down(directory.path());
    let block = block_of_object(&original, &mut rng);
    let blocks = (original.files[0].1.len() / BLOCK_BYTES) as u64;
    let _lost = Lost::of(&path, block_at(block));
    let store = RedbStore::open(&path, CACHE_BYTES).unwrap();
    runtime().block_on(async {
        let checked = store.check_blocks(0, 1 << 20).await.unwrap();
        assert_eq!((checked.wrong, checked.next), (1, None));
        assert!(checked.blocks >= blocks);
    });
    drop(store);
    let mut seen = Seen::default();
    ask_everything(&path, &original.model, &mut seen);
    assert_eq!(seen.refused, 0, "{seen:?}");
}

/// The block that is lost is noted, and not the first one of its page.
#[test]
fn the_block_that_is_lost_is_the_one_that_is_noted() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ledger.redb");
    let key = Bytes::from_static(b"zz");
    let value = Bytes::from(vec![0xC7; 10 * BLOCK_BYTES]);
    runtime().block_on(async {
        let store = Arc::new(RedbStore::create(&path, CACHE_BYTES).unwrap());
        let put = |key: Bytes, value: Bytes| Mutation::Put { key, value };
        // Enough that the row has a page which no other row is found through.
        let few = (0..300).map(|n: u32| put(n.to_be_bytes().to_vec().into(), vec![1; 90].into()));
        let mutations = few.chain([put(key.clone(), value)]).collect();
        let commit = Commit {
            preconditions: Vec::new(),
            mutations,
        };
        store.commit(commit).await.unwrap();
        store.shutdown().await;
    });
    let content = std::fs::read(&path).unwrap();
    let at = memchr::memmem::find(&content, &[0xC7; 9 * BLOCK_BYTES]).unwrap();
    let block = at / BLOCK_BYTES + 5;
    let _lost = Lost::of(&path, block_at(block));
    runtime().block_on(async {
        let store = RedbStore::open(&path, CACHE_BYTES).unwrap();
        let found = store.get(vec![key]).await;
        assert!(matches!(found, Err(LedgerError::Damaged { .. })), "{found:?}");
        store.check_blocks(0, 1 << 20).await.unwrap();
        assert_eq!(store.damage().unwrap().words(5), [format!("page {block}")]);
    });
}

/// Sums of which the disk lost a sector are made anew by the engine; tools go by redb's own.
#[test]
fn sums_that_cannot_be_read_are_as_none() {
    let mut rng = StdRng::seed_from_u64(seed());
    for late in [0, 2] {
        let original = original(&mut rng, late);
        let directory = tempfile::tempdir().unwrap();
        let path = original.put_down(directory.path());
        {
            let _lost = Lost::of(&sums_path_of(&path), 0..512);
            let checked = offline::check(&path).unwrap();
            assert!(!checked.has_sums && checked.damaged.is_empty() && checked.is_tree_whole);
            let plan = offline::plan(&path, &offline::Nowhere).unwrap();
            assert!(plan.given_up.is_empty(), "{plan:?}");
            let mut seen = Seen::default();
            ask_everything(&path, &original.model, &mut seen);
            assert_eq!(seen.harmless, 1, "{seen:?}");
        }
        // They are not there, and a page is damaged: what it may hide is not taken for absent.
        let path = original.put_down(directory.path());
        let mut content = original.files[0].1.clone();
        let block = block_of_object(&original, &mut rng);
        content[block * BLOCK_BYTES + 8..][..500].fill(0x11);
        std::fs::write(&path, &content).unwrap();
        std::fs::remove_file(sums_path_of(&path)).unwrap();
        let checked = offline::check(&path).unwrap();
        if !checked.is_tree_whole {
            match offline::plan(&path, &offline::Nowhere) {
                Ok(plan) => assert!(plan.given_up[0].contains("no checksums"), "{plan:?}"),
                Err(LedgerError::Damaged { .. }) => {} // It makes no sense to redb.
                Err(other) => panic!("{other}"),
            }
        }
        // They are there, and are no file: that is said, and they are not taken for absent.
        std::fs::create_dir(sums_path_of(&path)).unwrap();
        let refused = offline::plan(&path, &offline::Nowhere);
        assert!(
            matches!(refused, Err(LedgerError::Unavailable { .. })),
            "{refused:?}"
        );
    }
}

/// What of the log cannot be read is said to be lost, and the rest is taken up. A log that cannot be opened
/// is not taken for none.
#[test]
fn a_log_that_cannot_be_read_is_not_taken_for_an_empty_one() {
    let mut rng = StdRng::seed_from_u64(seed());
    let original = original(&mut rng, 3);
    let last = original.model.values().map(|row| row.version).max().unwrap();
    let frame = memchr::memmem::rfind_iter(&original.files[2].1, b"cairnlog")
        .find(|at| original.files[2].1[at + 24..at + 32] == last.to_le_bytes())
        .unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = original.put_down(directory.path());
    let log_path = log::path_of(&path);
    {
        let _lost = Lost::of(&log_path, block_at(frame / BLOCK_BYTES));
        let checked = offline::check(&path).unwrap();
        assert_eq!(
            (checked.log_commits, checked.log_damage.len()),
            (2, 1),
            "{checked:?}"
        );
        let plan = offline::plan(&path, &offline::Nowhere).unwrap();
        assert_eq!(plan.commits, 2);
        assert!(plan.given_up[0].contains("blocks of"), "{plan:?}");
    }
    std::fs::remove_file(&log_path).unwrap();
    std::fs::create_dir(&log_path).unwrap();
    for refused in [
        offline::check(&path).map(drop),
        offline::repair(&path, &offline::Nowhere).map(drop),
    ] {
        assert!(
            matches!(refused, Err(LedgerError::Unavailable { .. })),
            "{refused:?}"
        );
    }
}

/// Does something when it is asked, and has nothing.
struct Then<F>(F);

impl<F: Fn()> offline::LostRows for Then<F> {
    fn rows_of(&self, parts: &[Gap], _: &offline::KnownRows) -> Result<Vec<Option<Vec<Row>>>, String> {
        self.0();
        Ok(vec![None; parts.len()])
    }

    fn commits_of(&self, _: &offline::LostCommits, _: &[log::Logged]) -> Result<Vec<log::Logged>, String> {
        Ok(Vec::new())
    }
}

/// Has these commits.
struct Commits(Vec<log::Logged>);

impl offline::LostRows for Commits {
    fn rows_of(&self, parts: &[Gap], _: &offline::KnownRows) -> Result<Vec<Option<Vec<Row>>>, String> {
        Ok(vec![None; parts.len()])
    }

    fn commits_of(
        &self,
        lost: &offline::LostCommits,
        known: &[log::Logged],
    ) -> Result<Vec<log::Logged>, String> {
        assert!(known.iter().all(|commit| self.0.contains(commit)));
        let is_asked = |version: u64| version >= lost.first && lost.last.is_none_or(|last| version <= last);
        let asked = self.0.iter().filter(|(version, _)| is_asked(*version));
        Ok(asked.cloned().collect())
    }
}

/// A damaged frame of the log: what is had from elsewhere is in the new ledger, and nothing is given up.
#[test]
fn commits_that_the_log_lost_are_had_from_elsewhere() {
    let mut rng = StdRng::seed_from_u64(seed());
    let original = original(&mut rng, 5);
    let content = &original.files[2].1;
    let id: log::LogId = content[8..24].try_into().unwrap();
    let all = log::salvage(&id, content, 0).commits;
    let directory = tempfile::tempdir().unwrap();
    let path = original.put_down(directory.path());
    let read = async |path: &Path| {
        let store = RedbStore::open(path, CACHE_BYTES).unwrap();
        let keys = original.model.keys().cloned().collect();
        let found = store.get(keys).await.unwrap();
        let right = found.iter().zip(original.model.values());
        right
            .filter(|(found, right)| found.as_ref() == Some(*right))
            .count()
    };
    let frames: Vec<usize> = memchr::memmem::find_iter(content, b"cairnlog")
        .filter(|at| at.is_multiple_of(4096))
        .collect();
    for frame in frames {
        original.put_down(directory.path());
        let mut damaged = content.clone();
        damaged[frame + 60..frame + 70].fill(0xA5);
        std::fs::write(log::path_of(&path), &damaged).unwrap();
        let without = offline::plan(&path, &offline::Nowhere).unwrap();
        let plan = offline::repair(&path, &Commits(all.clone())).unwrap();
        assert_eq!(plan.given_up, Vec::<String>::new());
        assert_eq!(plan.fetched_commits > 0, !without.given_up.is_empty());
        assert_eq!(runtime().block_on(read(&path)), original.model.len());
        std::fs::read_dir(directory.path())
            .unwrap()
            .for_each(|file| std::fs::remove_file(file.unwrap().path()).unwrap());
    }
}

/// The log of another ledger is no log of this one: nothing is taken for whole without its own.
#[test]
fn the_log_of_another_ledger_is_refused() {
    let mut rng = StdRng::seed_from_u64(seed());
    let (own, other) = (original(&mut rng, 3), original(&mut rng, 3));
    let directory = tempfile::tempdir().unwrap();
    let path = own.put_down(directory.path());
    std::fs::write(log::path_of(&path), &other.files[2].1).unwrap();
    let checked = offline::check(&path).unwrap();
    assert!(!checked.is_clean() && checked.log_damage[0].contains("another ledger's"));
    let opened = RedbStore::open(&path, CACHE_BYTES);
    assert!(matches!(opened, Err(LedgerError::Damaged { .. })), "{opened:?}");
    assert!(std::fs::read(log::path_of(&path)).unwrap() == other.files[2].1);
    let plan = offline::plan(&path, &offline::Nowhere).unwrap();
    assert!(!plan.given_up.is_empty());
}

/// A ledger with a damaged page that has rows.
fn put_down_damaged(original: &Original, directory: &Path, rng: &mut StdRng) -> PathBuf {
    let path = original.put_down(directory);
    let mut content = original.files[0].1.clone();
    let is_object = |key: &&Bytes| key.starts_with(b"o");
    let keys: Vec<&Bytes> = original.model.keys().filter(is_object).collect();
    let key = keys.choose(rng).unwrap();
    let places: Vec<usize> = memchr::memmem::find_iter(&content, key).collect();
    places.iter().for_each(|at| content[*at..at + 9].fill(b'?'));
    std::fs::write(&path, &content).unwrap();
    path
}

/// A gateway that is started while a ledger is repaired commits to the new one, or not at all.
#[test]
fn what_is_committed_while_a_ledger_is_repaired_is_not_lost() {
    let mut rng = StdRng::seed_from_u64(seed());
    let original = original(&mut rng, 0);
    for _ in 0..rounds(5, 100) {
        let directory = tempfile::tempdir().unwrap();
        let path = put_down_damaged(&original, directory.path(), &mut rng);
        let (begun, begins) = std::sync::mpsc::channel();
        let started = path.clone();
        let gateway = std::thread::spawn(move || {
            begins.recv().unwrap();
            let store = loop {
                match RedbStore::open(&started, CACHE_BYTES) {
                    Ok(store) => break Arc::new(store),
                    Err(LedgerError::Unavailable { .. }) => std::thread::yield_now(),
                    Err(other) => panic!("{other}"),
                }
            };
            runtime().block_on(async {
                let mutations = vec![Mutation::Put {
                    key: Bytes::from_static(b"zz"),
                    value: Bytes::from_static(b"acknowledged"),
                }];
                let preconditions = Vec::new();
                let committed = store
                    .commit(Commit {
                        preconditions,
                        mutations,
                    })
                    .await;
                store.shutdown().await;
                committed.unwrap();
            });
        });
        offline::repair(&path, &Then(|| begun.send(()).unwrap())).unwrap();
        gateway.join().unwrap();
        let store = RedbStore::open(&path, CACHE_BYTES).unwrap();
        let found = runtime()
            .block_on(store.get(vec![Bytes::from_static(b"zz")]))
            .unwrap();
        assert_eq!(found[0].as_ref().unwrap().value, "acknowledged");
    }
}

/// A repair leaves what others make and have alone, and nothing of itself when it fails.
#[test]
fn a_repair_that_is_refused_changes_nothing() {
    let mut rng = StdRng::seed_from_u64(seed());
    let original = original(&mut rng, 0);
    let directory = tempfile::tempdir().unwrap();
    let path = put_down_damaged(&original, directory.path(), &mut rng);
    let names = || {
        let entries = std::fs::read_dir(directory.path()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    // What a gateway makes of a damaged ledger that it has open.
    let unfinished = directory.path().join("ledger.redb.unfinished");
    std::fs::write(&unfinished, "of a gateway").unwrap();
    let store = RedbStore::open(&path, CACHE_BYTES).unwrap();
    let before = names();
    let refused = offline::repair(&path, &offline::Nowhere);
    assert!(
        matches!(refused, Err(LedgerError::Unavailable { .. })),
        "{refused:?}"
    );
    assert_eq!(names(), before);
    drop(store);
    // Another one comes into its place, as when a gateway mends it between this one's opening and locking it.
    let other = directory.path().join("other");
    std::fs::write(&other, &original.files[0].1).unwrap();
    let replace = Then(|| std::fs::rename(&other, &path).unwrap());
    let refused = offline::repair(&path, &replace);
    assert!(
        matches!(refused, Err(LedgerError::Unavailable { .. })),
        "{refused:?}"
    );
    assert!(std::fs::read(&path).unwrap() == original.files[0].1);
    assert_eq!(std::fs::read(&unfinished).unwrap(), b"of a gateway");
    let is_new = |name: &std::ffi::OsString| name.to_string_lossy().contains("unrepaired");
    assert!(!names().iter().any(is_new), "{:?}", names());
}

/// A file that another one replaced before it was locked is not gone on with.
#[test]
fn a_file_that_was_replaced_while_it_was_opened_is_refused() {
    let mut rng = StdRng::seed_from_u64(seed());
    let original = original(&mut rng, 0);
    let directory = tempfile::tempdir().unwrap();
    let path = original.put_down(directory.path());
    let reserve = Arc::new(Reserve::beside(&path));
    let file = file::PageFile::open(&path, reserve, Arc::default(), Arc::default()).unwrap();
    let other = directory.path().join("other");
    std::fs::copy(&path, &other).unwrap();
    std::fs::rename(&other, &path).unwrap();
    let opened = ::redb::Builder::new().create_with_backend(file::Backend(file));
    let refused = opened.map(drop).unwrap_err().to_string();
    assert!(refused.contains("came into its place"), "{refused}");
}
