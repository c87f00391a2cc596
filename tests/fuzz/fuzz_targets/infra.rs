//! What a user writes, or somebody who sends a user a file.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| anklume::fuzzing::infra(bytes));
