//! See `storage_node::fuzzing::extent_header`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| storage_node::fuzzing::extent_header(bytes));
