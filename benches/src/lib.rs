//! Benchmarks of Cairn: see `benches/`. Each is small by default, so that running them all is a test that they have not
//! rotted, and large on request (`-- --full`).
