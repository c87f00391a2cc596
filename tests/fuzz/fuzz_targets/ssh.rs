//! Reads what an SSH client asks to be signed, and the messages of agents.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| anklume::fuzzing::ssh(bytes));
