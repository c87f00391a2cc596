//! Tests of behaviour on a real Incus, with the binary that is also pushed into its machines.
//!
//! Each test creates its own project, and removes it even if the test fails.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a failed unwrap or index is a failed test; tests start processes and read files"
)]

mod agents;
mod apply;
mod channel;
mod client;
mod connection;
mod daemon;
mod debian;
mod doctor;
#[path = "../integration/harness.rs"]
#[expect(dead_code, reason = "the other tests use the rest of it")]
mod harness;
mod host;
mod own_services;
mod pages;
mod pin;
mod processes;
mod programs;
mod project;
mod recorder;
mod soak;
mod ssh;
mod supervised;
mod traffic;
mod world;
