//! Whatever a server answers, its client ends in order.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| anklume::fuzzing::client(bytes));
