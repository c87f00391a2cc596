//! The host parses or rejects a machine's report, whatever the machine says about itself.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| anklume::fuzzing::machine(bytes));
