//! See `gateway::fuzzing::ledger_key`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| gateway::fuzzing::ledger_key(bytes));
