//! The server answers with lines of JSON and terminates normally, whatever a caller sends.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| anklume::fuzzing::connection(bytes));
