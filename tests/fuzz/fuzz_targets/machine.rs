//! The host parses the report of a machine or rejects it, whatever the machine says about itself.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| anklume::fuzzing::machine(bytes));
