//! Benchmarks of Cairn; see `benches/`.
