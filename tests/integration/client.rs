//! Tests `anklume mcp list` and `mcp call` against anklume's own server and against malicious servers.

mod exec;
mod hostile;
mod local;
mod server;
mod socket;

use crate::harness::{Anklume, Ran, have_program};
use server::Server;

/// Memory limit in KiB for a client, whatever its server does.
const MEMORY: u32 = 96 * 1024;

/// Runs the client against a server of this kind; `None` if there is no Python to run the server.
fn against(kind: &str, args: &[&str]) -> Option<Ran> {
    against_with(kind, args, "")
}

/// The same, with input on stdin.
fn against_with(kind: &str, args: &[&str], stdin: &str) -> Option<Ran> {
    if !have_program("python3") {
        return None;
    }
    let server = Server::start(kind);
    let args = args.iter().copied().map(str::to_owned);
    let socket = ["--socket".to_owned(), server.socket()];
    let client = Anklume::new().args(args).args(socket).memory(MEMORY);
    Some(client.stdin(stdin).run())
}
