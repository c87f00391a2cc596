//! Doors for the fuzzer, built for it alone (`--cfg fuzzing`).

pub use crate::mcp::server::fuzzing::connection;
