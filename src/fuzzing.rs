//! Doors for the fuzzer, built for it alone (`--cfg fuzzing`), and for a test of its seeds.

pub use crate::mcp::server::fuzzing::connection;
