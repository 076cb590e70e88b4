//! What the fuzz targets of `tests/fuzz` look for, without a fuzzer: their corpus, and mutations of it. Randomised;
//! prints its seed and takes it from `CAIRN_TEST_SEED`.
#![allow(clippy::unwrap_used)]

use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use std::path::PathBuf;
use storage_node::fuzzing::{TARGETS, Target, seeds};

const MUTATIONS: usize = 20_000;
const CORPUS_BYTES_MAX: usize = 200 << 10;

fn corpus_of(target: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fuzz/corpus")).join(target)
}

/// Every file of a target's corpus, by name.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(corpus_of(target)).unwrap();
    let mut files: Vec<_> = entries
        .map(|entry| {
            let path = entry.unwrap().path();
            (path.display().to_string(), std::fs::read(&path).unwrap())
        })
        .collect();
    files.sort();
    files
}

#[test]
fn the_corpus_keeps_every_property() {
    let mut bytes = 0;
    for (name, target) in TARGETS {
        let files = corpus(name);
        assert!(!files.is_empty(), "{name} has no corpus");
        for (path, content) in files {
            println!("{path}");
            bytes += content.len();
            target(&content);
        }
    }
    assert!(bytes <= CORPUS_BYTES_MAX, "{bytes} bytes");
}

/// A seed that the product would write otherwise now is no seed any more.
#[test]
fn the_seeds_are_what_the_product_writes() {
    for (target, name, bytes) in seeds() {
        let kept = std::fs::read(corpus_of(target).join(name)).unwrap_or_default();
        assert!(
            kept == bytes,
            "{target}/{name}: `cargo test -p storage-node -- --ignored write_the_seeds`"
        );
    }
}

#[test]
#[ignore = "writes to the source tree"]
fn write_the_seeds() {
    for (target, name, bytes) in seeds() {
        std::fs::create_dir_all(corpus_of(target)).unwrap();
        std::fs::write(corpus_of(target).join(name), bytes).unwrap();
    }
}

#[test]
fn mutations_of_the_corpus_keep_every_property() {
    let seed = std::env::var("CAIRN_TEST_SEED").map_or_else(|_| rand::random(), |text| text.parse().unwrap());
    println!("CAIRN_TEST_SEED={seed}");
    for (name, target) in TARGETS {
        mutate(&corpus(name), target, &mut StdRng::seed_from_u64(seed));
    }
}

fn mutate(corpus: &[(String, Vec<u8>)], target: Target, random: &mut StdRng) {
    for _ in 0..MUTATIONS {
        let mut bytes = corpus[random.random_range(0..corpus.len())].1.clone();
        for _ in 0..random.random_range(1..4) {
            change(&mut bytes, random);
        }
        target(&bytes);
    }
}

/// One change that a fuzzer would try.
fn change(bytes: &mut Vec<u8>, random: &mut StdRng) {
    if bytes.is_empty() {
        bytes.push(random.random());
    }
    let at = random.random_range(0..bytes.len());
    match random.random_range(0..6) {
        0 => bytes[at] ^= 1 << random.random_range(0..8),
        1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.random_range(0..5)],
        2 => bytes.truncate(at),
        3 => bytes.insert(at, random.random()),
        4 => {
            let end = (at + 8).min(bytes.len());
            random.fill_bytes(&mut bytes[at..end]);
        }
        _ => {
            let end = (at + 8).min(bytes.len());
            bytes[at..end].fill(0xff);
        }
    }
}
