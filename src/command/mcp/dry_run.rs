//! `--dry-run`: the command and the messages, as they would be; nothing is run.

use serde_json::Value;

use super::with_client::{find, interruptible, patience, way};
use crate::cli::ChannelArgs;
use crate::command::output::Output;
use crate::error::Exit;
use crate::incus::MachineRef;
use crate::mcp::client::{DryRunRequest, dry_run_messages};
use crate::text::Foreign;
use crate::transport::{LOCAL_REMOTE, Route, Transport, incus_exec, shell_line, this_program};

/// The requests that would be sent, and what is to be said beside them.
pub(super) type DryRunRequests = (Vec<DryRunRequest>, Vec<String>);

/// A request that asks for nothing special.
pub(super) const fn asked(method: &'static str, params: Value) -> DryRunRequest {
    DryRunRequest {
        method,
        params,
        one_copy: false,
    }
}

/// Shows how a conversation would go.
pub(super) fn rehearse(
    args: &ChannelArgs,
    output: &Output,
    requests: impl AsyncFnOnce() -> anyhow::Result<DryRunRequests>,
) -> anyhow::Result<Exit> {
    let patience = patience(args)?;
    let way = way(args)?;
    interruptible(async {
        let (requests, remarks) = requests().await?;
        let channel = match find(way.clone(), patience, output).await {
            Ok(channel) => channel,
            Err(why) => {
                output.say(&format!("warning: {why}"));
                assumed(way)
            }
        };
        let mut text = format!("{}\n", opening(&channel));
        for message in dry_run_messages(&requests)? {
            text.push_str(&Foreign::new(String::from_utf8_lossy(&message)).lines());
            text.push('\n');
        }
        for remark in remarks {
            output.say(&remark);
        }
        output.answer(text.as_bytes())?;
        Ok(Exit::Done)
    })
}

/// The channel if what Incus would not say is as usual.
fn assumed(way: Route) -> Transport {
    match way {
        Route::Local => Transport::Local,
        Route::Socket(socket) => Transport::Socket(socket),
        Route::Host { machine, project } => Transport::Exec(MachineRef {
            name: machine,
            project: project.unwrap_or_else(|| "PROJECT".to_owned()),
            status: String::new(),
        }),
    }
}

/// The command that would be run, as a shell takes it; a socket is opened by no command.
fn opening(channel: &Transport) -> String {
    match channel {
        Transport::Local => {
            let program = this_program();
            shell_line([program.as_os_str(), "mcp".as_ref(), "serve".as_ref()])
        }
        Transport::Exec(machine) => {
            let (name, value) = LOCAL_REMOTE;
            let mut words = vec![format!("{name}={value}"), "incus".to_owned()];
            words.extend(incus_exec(machine));
            shell_line(words)
        }
        Transport::Socket(socket) => {
            format!("# connect to {}", shell_line([socket.path.as_os_str()]))
        }
    }
}
