//! `anklume mcp status`: shows the services of this machine's server, their consumers, and the policy in force.

use std::path::Path;

use anyhow::Context as _;
use serde_json::{Map, Value, json};

use crate::account::Account;
use crate::command::joined;
use crate::command::output::{Output, done_or_failed};
use crate::error::{Exit, Failure};
use crate::machine_state::SERVICES;
use crate::mcp::launcher::{self, LauncherStatus};
use crate::mcp::listen::ServerStatus;
use crate::mcp::listen::folder::SocketFolder;
use crate::services::Services;
use crate::text::Foreign;

/// Maximum length of a status file's fault in a message, in characters.
const WHY_MAX: usize = 300;

/// Runs `anklume mcp status`; returns 0 if the newest policy is in force, 1 if it was refused or partly failed, or if
/// the log cannot be written, and 4 if no server is running.
pub(super) fn run(folder: &Path, output: &Output) -> anyhow::Result<Exit> {
    let status = read(folder)?;
    let programs = programs(&status);
    let answer = json!({
        "pid": status.pid,
        "version": status.version,
        "machine": status.services.machine,
        "digest": status.digest,
        "refused": status.refused,
        "failed": status.failed,
        "unlogged": status.unlogged,
        "confinement": status.confinement,
        "memory": memory_json(&status.services),
        "programs": programs.as_ref().and_then(|programs| programs.as_ref().ok()),
        "services": status.services.services,
    });
    output.answer_as(&answer, || as_text(&status, programs.as_ref()))?;
    Ok(done_or_failed(
        status.refused.is_none()
            && status.failed.is_empty()
            && status.unlogged.is_none()
            && programs
                .is_none_or(|programs| programs.is_ok_and(|programs| programs.changed.is_empty())),
    ))
}

/// Asks the launcher about the machine's own programs; `None` if no service uses one.
fn programs(status: &ServerStatus) -> Option<std::io::Result<LauncherStatus>> {
    let launcher = status.launcher.as_ref();
    let launcher = launcher.filter(|_| status.services.have_programs())?;
    Some(launcher::status(launcher))
}

fn read(folder: &Path) -> anyhow::Result<ServerStatus> {
    let place = folder.display();
    let served = SocketFolder::is_served(folder).map_err(|why| {
        let text = format!("cannot check for a server in `{place}`: {why}");
        Failure::new(Exit::Failed, text).help("run this as root or as the server's user")
    })?;
    if !served {
        let failure = Failure::new(
            Exit::Unavailable,
            format!("no server is running in `{place}`"),
        );
        let offers_nothing = Account::machine().is_some() && !Path::new(SERVICES).exists();
        let help = if offers_nothing {
            "this machine offers no services; `anklume mcp list -i PROVIDER` shows what it may use"
        } else {
            "`anklume mcp serve --listen` starts one; name another folder with --listen DIR"
        };
        return Err(failure.help(help).into());
    }
    let file = SocketFolder::status_file(folder);
    let text = SocketFolder::status(folder)
        .with_context(|| format!("cannot read `{}`", file.display()))?;
    serde_json::from_slice(&text).map_err(|why| {
        let why = Foreign::from(why.to_string()).shown(WHY_MAX);
        let text = format!("`{}` was written by another version: {why}", file.display());
        Failure::new(Exit::Failed, text).into()
    })
}

/// Returns the memory budgets in bytes: the server's and each consumer's.
fn memory_json(services: &Services) -> Value {
    let each = services.consumers().into_iter();
    let each: Map<String, Value> = each
        .map(|name| (name.to_string(), services.memory_of(name).into()))
        .collect();
    json!({"all": services.memory_of_all(), "each": each})
}

/// Formats the memory budgets for people.
fn memory_text(services: &Services) -> String {
    let mebibytes = |bytes: u64| format!("{} MiB", bytes / 1024 / 1024);
    let all = mebibytes(services.memory_of_all());
    let each = services.consumers().into_iter();
    let each = each.map(|name| format!(", {} for {name}", mebibytes(services.memory_of(name))));
    format!("memory: {all} at most{}", each.collect::<String>())
}

fn as_text(status: &ServerStatus, programs: Option<&std::io::Result<LauncherStatus>>) -> String {
    let services = &status.services;
    let mut lines = vec![
        format!(
            "`{}` is served by anklume {} (process {})",
            services.machine,
            status.version.escaped(),
            status.pid
        ),
        format!("policy: {}", status.digest.escaped()),
    ];
    if let Some(confinement) = &status.confinement {
        lines.push(format!("confined by: {confinement}"));
    }
    if let Some(refused) = &status.refused {
        lines.push(format!(
            "NOT in force: a newer policy was refused: {}",
            refused.escaped()
        ));
    }
    for failed in &status.failed {
        lines.push(format!("NOT done: {}", failed.escaped()));
    }
    if let Some(why) = &status.unlogged {
        let calls = if services.allow_unlogged {
            "calls run anyway"
        } else {
            "no call runs"
        };
        lines.push(format!("NOT logged, {calls}: {}", why.escaped()));
    }
    lines.push(memory_text(services));
    match programs {
        None => {}
        Some(Err(why)) => lines.push(format!(
            "NOT served: the machine's programs do not run: {why}"
        )),
        Some(Ok(programs)) => {
            let (running, max) = (programs.running, services.children_max());
            lines.push(format!("programs: {running} of {max} running"));
            for tool in &programs.changed {
                lines.push(format!(
                    "NOT called: the definition of `{tool}` has changed; `anklume mcp pin` on the host shows how"
                ));
            }
        }
    }
    for service in &services.services {
        let consumers = joined(&service.consumers, "no consumers");
        lines.push(format!("{} ({}): {consumers}", service.name, service.tool));
    }
    lines.join("\n") + "\n"
}
