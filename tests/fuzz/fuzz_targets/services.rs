//! Reads a services file that anybody may have written.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| anklume::fuzzing::services(bytes));
