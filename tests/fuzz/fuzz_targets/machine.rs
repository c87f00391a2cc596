//! Whatever a machine says of itself, the host reads what it looks for or nothing.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| anklume::fuzzing::machine(bytes));
