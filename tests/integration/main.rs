//! Behaviour through the binary, one module a noun.
#![expect(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a failed unwrap is a failed test; skips are printed; tests start processes and read files"
)]

mod cli;
mod client;
mod harness;
mod policy;
mod serve;
mod sync;
