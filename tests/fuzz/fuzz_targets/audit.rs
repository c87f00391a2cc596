//! Whatever a machine writes into its log, reading it ends in order.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| anklume::fuzzing::audit(bytes));
