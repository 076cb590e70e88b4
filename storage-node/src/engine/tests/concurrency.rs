//! Writers, readers and deleters at once, with compaction going on under them.

use super::*;
use std::sync::atomic::AtomicBool;

#[test]
fn readers_never_see_wrong_bytes_while_extents_are_recycled() {
    let disk = SimulatedDisk::new(3 << 20, 1);
    format_simulated(&disk, 64 * 1024);
    let engine = Engine::open(disk.device()).unwrap();
    let done = AtomicBool::new(false);
    let len = |blob: u64| 500 + (blob % 37) as usize * 400;
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..4u64)
            .map(|volume| {
                let engine = &engine;
                scope.spawn(move || {
                    let to = unit(volume);
                    for blob in 0..800u64 {
                        let key = key(blob, 0);
                        match put(engine, &to, key, payload(&to, key, 0, len(blob))) {
                            Ok(()) | Err(NodeError::NoSpace) => {}
                            Err(error) => panic!("{error}"),
                        }
                        // Keeps every seventh, so compaction has something to move.
                        if blob > 20 && (blob - 20) % 7 != 0 {
                            delete(engine, &to, &[blob - 20]).unwrap();
                        }
                        if blob > 300 {
                            delete(engine, &to, &[blob - 300]).unwrap();
                        }
                    }
                })
            })
            .collect();
        for reader in 0..3u64 {
            let (engine, done) = (&engine, &done);
            scope.spawn(move || {
                let mut turn = reader;
                while !done.load(Ordering::Relaxed) {
                    turn += 1;
                    let from = unit(turn % 4);
                    for entry in engine.inventory(&from, None, 50).unwrap() {
                        match get(engine, &from, entry.key) {
                            Ok(blocks) => {
                                assert!(verifies(&from, entry.key, &blocks));
                                assert_eq!(blocks.payload, payload(&from, entry.key, 0, len(entry.key.blob)));
                            }
                            Err(NodeError::NotFound) => {}
                            Err(error) => panic!("{error}"),
                        }
                    }
                }
            });
        }
        let written: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
        done.store(true, Ordering::Relaxed);
        written.into_iter().for_each(|result| result.unwrap());
    });
    let metrics = engine.metrics();
    assert!(
        metrics.extents_freed > 10 && metrics.records_moved > 10,
        "{metrics:?}"
    );
    assert_eq!(metrics.corrupt_shards, 0);
}
