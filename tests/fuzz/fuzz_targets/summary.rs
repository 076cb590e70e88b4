//! See `storage_node::fuzzing::summary`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| storage_node::fuzzing::summary(bytes));
