//! `anklume mcp`.

mod answer;
mod arguments;
mod call;
mod config;
mod connect;
mod key;
mod launcher;
mod pin;
mod serve;
mod status;
mod with_client;
mod worker;

pub(super) use answer::text_out;
pub(super) use call::client_error;
pub(super) use key::{signing_key, ssh_key};
pub(super) use launcher::run_launcher;
pub(super) use pin::definitions;
pub(super) use with_client::{
    ServerClient, connected, interruptible, is_invalid, machine_on_host, offered, unreachable,
    with_client,
};
pub(super) use worker::{run_helper, run_worker};

use crate::cli::McpCommand;
use crate::error::Exit;

use super::output::Output;

/// Runs `anklume mcp …`.
pub(crate) fn run(command: &McpCommand, output: &Output) -> anyhow::Result<Exit> {
    match command {
        McpCommand::Serve(args) => serve::run(args, output),
        McpCommand::List(args) => call::list(args, output),
        McpCommand::Call(args) => call::call(args, output),
        McpCommand::Connect(args) => connect::run(args, output),
        McpCommand::Config(args) => config::run(args, output),
        McpCommand::Pin(args) => pin::run(args, output),
        McpCommand::Status { folder } => status::run(folder, output),
    }
}
