//! See `gateway::fuzzing::form_policy`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| gateway::fuzzing::form_policy(bytes));
