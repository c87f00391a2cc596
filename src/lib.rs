//! anklume: machines that serve each other a few things, and nobody else.
//!
//! The house, from the roof down; a room uses only rooms below it:
//!
//! - [`command`]: one file a noun; the only rooms that print and that know all the rest.
//! - `apply`, `doctor`: a plan carried out, channels judged; from a `survey`, over a `session`. `sync`: files. `host`: its folders and processes.
//! - `mcp`: the protocol: wire, server, client. [`tool`]: the five tools; runs a grant, nothing else.
//! - `setup`: what the program does in a machine that it was pushed into.
//! - `machine_root`: a running machine's files, seen from the host.
//! - `transport`: which way to a machine. `plan`: an [`infra`] and what Incus has, compared; pure.
//! - `incus`: the only rooms that speak to Incus.
//! - [`machine_state`]: what a machine holds of anklume; pure.
//! - [`policy`]: may this caller use this service? [`services`]: one machine's services.
//! - [`edge`], [`inventory`]: what follows from an [`infra`]; pure.
//! - [`infra`]: `infra.yml`, checked. [`catalogue`]: what each tool takes and gives.
//! - [`cli`], [`error`], [`diagnostic`], [`name`], [`text`]: the ground.

mod apply;
pub mod audit;
pub mod catalogue;
pub mod cli;
mod command;
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
mod survey;
mod sync;
pub mod text;
pub mod tool;
mod transport;

use std::ffi::OsString;
use std::process::ExitCode;

/// Runs anklume: parses `args` (the program's name first), does it, reports, and says how it ended.
#[must_use]
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    command::main(args).into()
}
