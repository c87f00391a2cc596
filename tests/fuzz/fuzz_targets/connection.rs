//! Whatever a caller sends, the server answers in lines of JSON and ends in order.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| anklume::fuzzing::connection(bytes));
