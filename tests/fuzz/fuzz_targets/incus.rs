//! Whatever answers at Incus's socket, the host ends in order.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| anklume::fuzzing::incus(bytes));
