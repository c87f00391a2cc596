//! `anklume policy …`: queries the policy in an `infra.yml`. `policy::decide` makes every decision.

mod check;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value};

use super::output::{Output, table};
use super::{joined, open_infra};
use crate::cli::{InfraArgs, PolicyCommand};
use crate::condition::Conditions;
use crate::error::Exit;
use crate::infra::Infra;
use crate::name::{MachineName, ServiceName, ServiceTool, ToolName};
use crate::services::{Service, Services};
use check::known_machine;

/// Runs `anklume policy …`.
pub(crate) fn run(command: &PolicyCommand, output: &Output) -> anyhow::Result<Exit> {
    match command {
        PolicyCommand::Check(args) => return check::check(args, output),
        PolicyCommand::Explain(args) => check::explain(args, output)?,
        PolicyCommand::List(args) => list(args, output)?,
        PolicyCommand::Export {
            name,
            machine,
            infra,
        } => {
            let machine = name.as_ref().or(machine.as_ref());
            export(machine.map_or("", String::as_str), infra, output)?;
        }
    }
    Ok(Exit::Done)
}

/// Prints a machine's services file, which is the same in every output format.
fn export(machine: &str, args: &InfraArgs, output: &Output) -> anyhow::Result<()> {
    let infra = open_infra(args, output)?.infra;
    let services = Services::of(known_machine(&infra, machine, "provider")?);
    if services.services.is_empty() {
        output.say(&format!("note: `{}` offers no services", services.machine));
    }
    Ok(output.answer(&services.to_file())?)
}

/// Lists every declared service with its consumers and the location of its declaration.
fn list(args: &InfraArgs, output: &Output) -> anyhow::Result<()> {
    let rows = rows(&open_infra(args, output)?.infra);
    if rows.is_empty() && !output.is_json() {
        output.say("no services are declared, so no calls are allowed");
        return Ok(());
    }
    output.answer_as(&rows, || text(&rows, Timestamp::now()))
}

#[derive(Debug, Serialize)]
struct Row {
    provider: MachineName,
    service: ServiceName,
    tool: ServiceTool,
    consumers: Vec<MachineName>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    with: Map<String, Value>,
    #[serde(skip_serializing_if = "Conditions::is_none")]
    conditions: Conditions,
    declared_at: Option<String>,
}

fn rows(infra: &Infra) -> Vec<Row> {
    let all = infra.machines().map(|(_, machine)| Services::of(machine));
    all.flat_map(|services| {
        let provider = services.machine;
        let row = move |service: Service| Row {
            provider: provider.clone(),
            service: service.name,
            tool: service.tool,
            consumers: service.consumers,
            with: service.with,
            conditions: service.conditions,
            declared_at: service.declared_at,
        };
        services.services.into_iter().map(row)
    })
    .collect()
}

/// The tool, and what `ssh_sign` may sign.
fn tool_text(row: &Row) -> String {
    if !row.tool.is(ToolName::SshSign) {
        return row.tool.to_string();
    }
    let texts = |key: &str| {
        let list = row
            .with
            .get(key)
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        list.filter_map(Value::as_str).collect::<Vec<_>>()
    };
    let allowed = match texts("allow") {
        none if none.is_empty() => vec!["git"],
        some => some,
    };
    let hosts = match texts("hosts").len() {
        0 => String::new(),
        1 => " to 1 host".to_owned(),
        count => format!(" to {count} hosts"),
    };
    format!("{} ({}{hosts})", row.tool, allowed.join(", "))
}

fn text(rows: &[Row], now: Timestamp) -> String {
    let headings = ["SERVICE", "TOOL", "CONSUMERS", "CONDITIONS", "DECLARED"];
    let cells = rows.iter().map(|row| {
        [
            format!("{}/{}", row.provider, row.service),
            tool_text(row),
            joined(&row.consumers, "(none)"),
            row.conditions.describe_at(now).join("; "),
            row.declared_at.clone().unwrap_or_default(),
        ]
    });
    table(headings, cells)
}
