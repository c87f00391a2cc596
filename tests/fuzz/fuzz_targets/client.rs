//! A client terminates normally, whatever its server answers.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| anklume::fuzzing::client(bytes));
