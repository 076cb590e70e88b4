//! See `storage_node::fuzzing::record_head`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| storage_node::fuzzing::record_head(bytes));
