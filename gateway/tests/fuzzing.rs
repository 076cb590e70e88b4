//! What the fuzz targets of `tests/fuzz` for the gateway look for, without a fuzzer: their corpus, and mutations of it. Randomised;
//! prints its seed and takes it from `CAIRN_TEST_SEED`.
#![allow(clippy::unwrap_used)]

use gateway::fuzzing::{TARGETS, seeds};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::path::PathBuf;

const MUTATIONS: usize = 5_000;
/// What a parser looks for; put in at random places.
const WORDS: [&[u8]; 12] = [
    b"\r\n", b"--B", b"--", b"\"", b";", b"%", b"&", b"=", b"<!", b"]]>", b"\0\x01", b"x-amz-",
];

fn corpus_of(target: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fuzz/corpus")).join(target)
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let mut paths: Vec<_> = std::fs::read_dir(corpus_of(target))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

#[test]
fn the_corpus_and_mutations_of_it_keep_every_property() {
    let seed = std::env::var("CAIRN_TEST_SEED").map_or_else(|_| rand::random(), |text| text.parse().unwrap());
    println!("CAIRN_TEST_SEED={seed}");
    for (name, target) in TARGETS {
        let corpus = corpus(name);
        assert!(!corpus.is_empty(), "{name} has no corpus");
        let mut random = StdRng::seed_from_u64(seed);
        corpus.iter().for_each(|bytes| target(bytes));
        for _ in 0..MUTATIONS {
            let mut bytes = corpus[random.random_range(0..corpus.len())].clone();
            for _ in 0..random.random_range(1..4) {
                let at = random.random_range(0..=bytes.len());
                match random.random_range(0..5) {
                    0 if at < bytes.len() => bytes[at] ^= 1 << random.random_range(0..8),
                    1 => bytes.truncate(at),
                    2 if at < bytes.len() => drop(bytes.remove(at)),
                    3 => bytes.insert(at, random.random()),
                    _ => {
                        drop(bytes.splice(at..at, WORDS[random.random_range(0..WORDS.len())].iter().copied()))
                    }
                }
            }
            if let Err(broken) = std::panic::catch_unwind(|| target(&bytes)) {
                println!("{name}: {}", bytes.escape_ascii());
                std::panic::resume_unwind(broken);
            }
        }
    }
}

/// A seed that is another one now is no seed any more.
#[test]
fn the_seeds_are_in_the_corpus() {
    for (target, name, bytes) in seeds() {
        let kept = std::fs::read(corpus_of(target).join(name)).unwrap_or_default();
        assert!(
            kept == bytes,
            "{target}/{name}: `cargo test -p gateway -- --ignored write_the_seeds`"
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
