//! `anklume mcp pin`: shows the definitions of MCP servers' tools that nobody has accepted yet, and pins those that the person
//! at the terminal accepts. `anklume machine-definitions`, in a machine, asks its servers for them.

use std::io::{BufRead, IsTerminal as _, Read as _, Write as _};
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use diffy::DiffOptions;
use rustix::fs::{OFlags, ResolveFlags};
use serde::Serialize;

use crate::account::Account;
use crate::apply::provision::{push_program, remove_program};
use crate::catalogue::UpstreamTool;
use crate::child::{ChildUser, adopt_orphans};
use crate::cli::McpPinArgs;
use crate::command::apply::open_session;
use crate::command::output::{Output, paint_line};
use crate::dir::Dir;
use crate::error::{Exit, Failure};
use crate::incus::Object;
use crate::infra::{self, Infra, LOCK, Machine, Pins};
use crate::machine_state::{DEFINITIONS, DefinitionReport, DefinitionRequest, ServerDefinitions};
use crate::mcp::launcher;
use crate::name::{MachineName, ServerName, UpstreamToolName, closest};
use crate::session::{Session, block_on};
use crate::text::{escaped, listed};
use crate::transport::RemoteExec;

/// Maximum time for a machine's servers to start and list their tools.
const TIMEOUT: Duration = Duration::from_secs(120);
/// Maximum length of a request, in bytes.
const REQUEST_MAX: u64 = 4 * 1024 * 1024;
/// Maximum length of a machine's reason in a message, in characters.
const REASON_SHOWN: usize = 500;
/// Input that accepts the definitions.
const YES: &str = "yes";
/// Permissions of the lock file.
const LOCK_MODE: u32 = 0o644;

/// A definition that differs from what is pinned.
#[derive(Debug, Serialize)]
struct PinChange {
    machine: MachineName,
    server: ServerName,
    tool: UpstreamToolName,
    /// `new` or `changed`.
    change: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pinned: Option<UpstreamTool>,
    definition: UpstreamTool,
}

/// Runs `anklume mcp pin`.
pub(crate) fn run(args: &McpPinArgs, output: &Output) -> anyhow::Result<Exit> {
    let (read, pins) = infra::open_for_pinning(args.infra.infra.as_deref())?;
    let only = args.machine.as_deref().or(args.instance.as_deref());
    let requests = requests(&read.infra, only)?;
    if requests.is_empty() {
        let of = match only {
            Some(name) => format!(" of `{}`", name.escape_debug()),
            None => String::new(),
        };
        output.say(&format!(
            "no service{of} uses a tool of an MCP server, so nothing can be pinned"
        ));
        return Ok(Exit::Done);
    }
    let changes = block_on(async {
        let session = open_session(output).await?;
        let mut changes = Vec::new();
        for (project, machine, request) in &requests {
            let report = ask(&session, project, machine, request).await?;
            changes.extend(compare(&pins, machine, request, report)?);
        }
        Ok(changes)
    })?;
    let mut next = pins.clone();
    for change in &changes {
        let PinChange {
            machine,
            server,
            tool,
            definition,
            ..
        } = change;
        next.set(machine, server, tool, definition.clone());
    }
    next.retain_used(&read.infra);
    output.answer_as(&changes, || changes.iter().map(shown).collect())?;
    if next == pins {
        output.say("all definitions are pinned");
        return Ok(Exit::Done);
    }
    if args.check {
        let differs = !changes.is_empty();
        return Ok(if differs { Exit::Differs } else { Exit::Done });
    }
    if !args.yes && !changes.is_empty() {
        confirm()?;
    }
    write(&read.folder, &next)?;
    output.say(&if changes.is_empty() {
        format!("what no service uses any more was removed from `{LOCK}`")
    } else {
        format!("pinned in `{LOCK}`; keep it with `infra.yml`, and run `anklume apply`")
    });
    Ok(Exit::Done)
}

/// Returns what to ask each machine for, or only the named one.
fn requests<'i>(
    infra: &'i Infra,
    name: Option<&str>,
) -> anyhow::Result<Vec<(&'i str, &'i Machine, DefinitionRequest)>> {
    if let Some(name) = name
        && infra.machine(name).is_none()
    {
        let message = format!("`{}` is not a machine in this file", name.escape_debug());
        return Err(Failure::new(Exit::Failed, message)
            .help("without a machine, the servers of all of them are asked")
            .into());
    }
    let machines = infra.machines();
    let machines =
        machines.filter(|(_, machine)| name.is_none_or(|name| machine.name.as_str() == name));
    let requests = machines.filter_map(|(domain, machine)| {
        let request = DefinitionRequest::of(machine)?;
        Some((domain.name.as_str(), machine, request))
    });
    Ok(requests.collect())
}

/// Asks a machine's servers for the definitions of their tools.
async fn ask(
    session: &Session,
    project: &str,
    machine: &Machine,
    request: &DefinitionRequest,
) -> anyhow::Result<DefinitionReport> {
    let name = machine.name.as_str();
    let failed = |why: String| {
        let message = format!("the servers of `{name}` cannot be asked: {why}");
        Failure::new(Exit::Failed, message).help(
            "the machine must run and have the server: create it with `anklume apply`, without the services that use the \
             server, and install the server there",
        )
    };
    session.program()?;
    let mut incus = session.incus().await?;
    let object = Object::machine(project, name);
    let program = push_program(session, &mut incus, &object).await;
    let program = program.map_err(|why| failed(why.to_string()))?;
    let exec = RemoteExec {
        project,
        machine: name,
        user: None,
        argv: &[&program, DEFINITIONS],
        // Plain data, which always serializes.
        input: &serde_json::to_vec(request).unwrap_or_default(),
        timeout: TIMEOUT,
    };
    let ran = exec.run().await;
    let removed = remove_program(&mut incus, &object, &program).await;
    let ran = ran.map_err(|why| failed(why.to_string()))?;
    removed.map_err(|why| failed(why.to_string()))?;
    let report = session.reader.definitions(&ran.answer).await?;
    Ok(report.ok_or_else(|| failed(ran.stderr.shown(REASON_SHOWN)))?)
}

/// Compares the definitions of a machine's servers with the pinned ones. Fails if one is missing.
fn compare(
    pins: &Pins,
    machine: &Machine,
    request: &DefinitionRequest,
    mut report: DefinitionReport,
) -> anyhow::Result<Vec<PinChange>> {
    let mut changes = Vec::new();
    for (server, (_, tools)) in &request.servers {
        let ServerDefinitions {
            tools: mut found,
            names,
            failed,
        } = report.servers.remove(server).unwrap_or_default();
        if let Some(why) = failed {
            let message = format!(
                "the server `{server}` of `{}` does not list its tools: {}",
                machine.name,
                why.shown(REASON_SHOWN)
            );
            return Err(Failure::new(Exit::Failed, message).into());
        }
        for tool in tools {
            // A report is the machine's word: its key may differ from the name in the definition.
            let definition = found.remove(tool);
            let Some(definition) = definition.filter(|found| found.name() == tool.as_str()) else {
                return Err(missing(machine, server, tool, &names).into());
            };
            let pinned = pins.get(&machine.name, server, tool);
            if pinned == Some(&definition) {
                continue;
            }
            changes.push(PinChange {
                machine: machine.name.clone(),
                server: server.clone(),
                tool: tool.clone(),
                change: if pinned.is_some() { "changed" } else { "new" },
                pinned: pinned.cloned(),
                definition,
            });
        }
    }
    Ok(changes)
}

/// Says which tools a server has instead of one that it does not have.
fn missing(
    machine: &Machine,
    server: &ServerName,
    tool: &UpstreamToolName,
    names: &[UpstreamToolName],
) -> Failure {
    let of = format!("the server `{server}` of `{}`", machine.name);
    if names.contains(tool) {
        let message =
            format!("the definition of `{tool}` cannot be pinned: it is too long, or not valid");
        return Failure::new(Exit::Failed, format!("{of}: {message}"));
    }
    let names: Vec<&str> = names.iter().map(UpstreamToolName::as_str).collect();
    let help = match closest(tool.as_str(), names.iter().copied()) {
        Some(near) => format!("did you mean `{near}`? its tools are: {}", listed(&names)),
        None => format!("its tools are: {}", listed(&names)),
    };
    Failure::new(Exit::Failed, format!("{of} has no tool `{tool}`")).help(help)
}

/// Shows a change as the difference between two definitions. Every character that controls a terminal is escaped.
fn shown(change: &PinChange) -> String {
    let text = |tool: &UpstreamTool| {
        // Serialization of this type cannot fail.
        serde_json::to_string_pretty(tool.definition()).unwrap_or_default() + "\n"
    };
    let before = change.pinned.as_ref().map_or_else(String::new, text);
    let after = text(&change.definition);
    let mut options = DiffOptions::new();
    let patch = options
        .set_context_len(2)
        .create_patch(&before, &after)
        .to_string();
    // The first two lines are names of files.
    let lines = patch
        .lines()
        .skip(2)
        .filter(|line| !line.starts_with("@@") && !line.starts_with('\\'));
    let lines: String = lines
        .map(|line| paint_line(&escaped(line)) + "\n")
        .collect();
    let PinChange {
        machine,
        server,
        tool,
        change,
        ..
    } = change;
    format!("{machine}: {server}/{tool} ({change})\n{lines}\n")
}

fn confirm() -> anyhow::Result<()> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        let failure = Failure::new(Exit::Usage, "no terminal to ask for acceptance");
        return Err(failure
            .help("read the definitions, and accept them with `anklume mcp pin --yes`")
            .into());
    }
    let mut stderr = std::io::stderr().lock();
    write!(
        stderr,
        "a model reads these texts; accept all of them? type `{YES}`: "
    )?;
    stderr.flush()?;
    let mut answer = String::new();
    stdin.read_line(&mut answer)?;
    if answer.trim() == YES {
        return Ok(());
    }
    Err(Failure::new(Exit::Failed, "nothing was pinned").into())
}

fn write(folder: &Path, pins: &Pins) -> anyhow::Result<()> {
    let folder = if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    };
    let written = || {
        let dir = Dir::open(folder, OFlags::DIRECTORY, ResolveFlags::empty())?;
        let text = pins.to_text();
        // What cannot be read back would stop every other command.
        Pins::parse(&text).map_err(std::io::Error::other)?;
        dir.replace(LOCK, &format!(".{LOCK}.new"), LOCK_MODE, |file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        })
    };
    written().with_context(|| format!("`{LOCK}` cannot be written"))
}

/// Runs `anklume machine-definitions`: asks the servers that the request on stdin names.
pub(in crate::command) fn definitions(
    stdin: &mut impl BufRead,
) -> anyhow::Result<DefinitionReport> {
    let mut line = Vec::new();
    stdin.take(REQUEST_MAX).read_until(b'\n', &mut line)?;
    let request: DefinitionRequest = serde_json::from_slice(&line).map_err(|why| {
        Failure::new(
            Exit::Usage,
            format!("stdin does not contain a valid request: {why}"),
        )
        .help("`anklume mcp pin` on the host sends one")
    })?;
    let account = Account::find(request.run_as.as_deref())?;
    adopt_orphans()?;
    block_on(async { Ok(launcher::definitions(request, &ChildUser::Server(account)).await) })
}
