//! Tests of behaviour through the binary, one module per noun.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a failed unwrap is a failed test; what a long test has tried is printed; tests start processes and read files"
)]

mod channel;
mod cli;
mod client;
mod client_entries;
mod completions;
mod conditions;
mod demo;
mod docs;
mod foreign;
mod harness;
mod helps;
mod infra;
mod layers;
mod makefile;
mod policy;
mod serve;
mod static_binary;
mod status;
mod sync;
mod tools;
