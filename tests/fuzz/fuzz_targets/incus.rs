//! The host terminates normally, whatever answers on Incus's socket.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| anklume::fuzzing::incus(bytes));
