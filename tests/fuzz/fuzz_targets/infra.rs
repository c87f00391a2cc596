//! Reads an `infra.yml` that a user wrote or received from somebody else.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| anklume::fuzzing::infra(bytes));
