//! Reads an `infra.yml` that a user wrote or received from somebody.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| anklume::fuzzing::infra(bytes));
