//! See `storage_node::fuzzing::wire_many`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| storage_node::fuzzing::wire_many(bytes));
