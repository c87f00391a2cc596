//! A services file, whoever wrote it.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| anklume::fuzzing::services(bytes));
