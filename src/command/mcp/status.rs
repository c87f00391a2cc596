//! `anklume mcp status`: what the server of this machine serves to whom, and by which policy.

use std::path::Path;

use anyhow::Context as _;
use serde_json::{Map, Value, json};

use crate::cli::{Format, McpStatusArgs};
use crate::command::output::Output;
use crate::error::{Exit, Failure};
use crate::mcp::listen::ServerStatus;
use crate::mcp::listen::folder::SocketFolder;
use crate::name::MachineName;
use crate::services::Services;
use crate::text::Foreign;

/// Runs `anklume mcp status`: 0 served by the newest policy, 1 a newer one was refused, something of it failed or the log
/// cannot be written, 4 nobody serves.
pub(super) fn run(args: &McpStatusArgs, output: &Output) -> anyhow::Result<Exit> {
    let status = read(&args.folder)?;
    match output.format() {
        Format::Json => output.json(&json!({
            "pid": status.pid,
            "version": status.version,
            "machine": status.services.machine,
            "digest": status.digest,
            "refused": status.refused,
            "failed": status.failed,
            "unlogged": status.unlogged,
            "confinement": status.confinement,
            "memory": memory_of(&status.services),
            "services": status.services.services,
        }))?,
        Format::Text => output.answer(as_text(&status).as_bytes())?,
    }
    let is_well = status.refused.is_none() && status.failed.is_empty() && status.unlogged.is_none();
    Ok(if is_well { Exit::Done } else { Exit::Failed })
}

fn read(folder: &Path) -> anyhow::Result<ServerStatus> {
    let shown = folder.display();
    let served = SocketFolder::is_served(folder).map_err(|why| {
        let text = format!("whether a server runs in `{shown}` cannot be seen: {why}");
        Failure::new(Exit::Failed, text).help("its user may, and root")
    })?;
    if !served {
        return Err(Failure::new(
            Exit::Unavailable,
            format!("no server runs in `{shown}`"),
        )
        .help("`anklume mcp serve --listen` starts one; name another folder with --listen DIR")
        .into());
    }
    let file = SocketFolder::status_file(folder);
    let text = SocketFolder::status(folder)
        .with_context(|| format!("cannot read `{}`", file.display()))?;
    serde_json::from_slice(&text).map_err(|why| {
        let why = Foreign::from(why.to_string()).shown(WHY_SHOWN);
        let text = format!("`{}` was written by another version: {why}", file.display());
        Failure::new(Exit::Failed, text).into()
    })
}

/// Characters that are shown of why a status cannot be read.
const WHY_SHOWN: usize = 300;

/// The budgets in bytes: the server's and each consumer's.
fn memory_of(services: &Services) -> Value {
    let each = services.consumers().into_iter();
    let each: Map<String, Value> = each
        .map(|name| (name.to_string(), services.memory_of(name).into()))
        .collect();
    json!({"all": services.memory_of_all(), "each": each})
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes / 1024 / 1024)
}

/// How much memory the callers may make the server keep.
fn memory(services: &Services) -> String {
    let all = mebibytes(services.memory_of_all());
    let each = services.consumers().into_iter();
    let each = each.map(|name| format!("{} for {name}", mebibytes(services.memory_of(name))));
    let each: Vec<String> = each.collect();
    if each.is_empty() {
        return format!("memory: {all} at most");
    }
    format!("memory: {all} at most, {}", each.join(", "))
}

fn as_text(status: &ServerStatus) -> String {
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
            "calls run all the same"
        } else {
            "no call runs"
        };
        lines.push(format!("NOT logged, {calls}: {}", why.escaped()));
    }
    lines.push(memory(services));
    for service in &services.services {
        let consumers: Vec<&str> = service.consumers.iter().map(MachineName::as_str).collect();
        let consumers = if consumers.is_empty() {
            "nobody".to_owned()
        } else {
            consumers.join(", ")
        };
        lines.push(format!("{} ({}): {consumers}", service.name, service.tool));
    }
    lines.join("\n") + "\n"
}
