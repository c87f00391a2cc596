//! Contains anklume's modules and the entry point of its binary.
//!
//! `docs/architecture.md` lists the modules from top to bottom: each uses only modules below it.

mod account;
mod apply;
pub mod audit;
pub mod catalogue;
mod child;
pub mod cli;
mod command;
pub mod condition;
mod confinement;
pub mod diagnostic;
pub mod digest;
mod dir;
mod doctor;
pub mod edge;
pub mod error;
mod foreign;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod host;
mod incus;
pub mod infra;
pub mod inventory;
mod ipc;
pub mod limits;
mod machine_root;
pub mod machine_state;
mod mcp;
pub mod name;
mod plan;
pub mod policy;
pub mod services;
mod session;
mod setup;
pub mod ssh;
mod survey;
mod sync;
pub mod text;
pub mod tool;
mod transport;

use std::ffi::OsString;
use std::process::ExitCode;

/// Runs anklume with `args`, starting with the program's name, and returns its exit code.
#[must_use]
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    command::main(args).into()
}
