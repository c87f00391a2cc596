//! Reading a log terminates normally, whatever a machine writes into it.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| anklume::fuzzing::audit(bytes));
