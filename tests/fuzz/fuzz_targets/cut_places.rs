//! See `storage_node::fuzzing::cut_places`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| storage_node::fuzzing::cut_places(bytes));
