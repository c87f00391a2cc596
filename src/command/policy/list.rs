//! `anklume policy list`: every declared service, who may call it, and where it is declared.

use std::fmt::Write as _;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::cli::{Format, PolicyListArgs};
use crate::command::{open_infra, output::Output};
use crate::error::Exit;
use crate::infra::Infra;
use crate::name::{MachineName, ServiceName, ToolName};
use crate::services::{Service, Services};

/// Columns are this many spaces apart.
const GAP: usize = 2;

/// Runs `anklume policy list`.
pub(crate) fn run(args: &PolicyListArgs, output: &Output) -> anyhow::Result<Exit> {
    let read = open_infra(&args.infra, output)?;
    let rows = rows(&read.infra);
    match output.format() {
        Format::Json => output.json(&rows)?,
        Format::Text if rows.is_empty() => {
            output.say("no services are declared: nobody may call anything");
        }
        Format::Text => output.answer(table(&rows).as_bytes())?,
    }
    Ok(Exit::Done)
}

/// A declared service, as it is listed.
#[derive(Debug, Serialize)]
struct Row {
    provider: MachineName,
    service: ServiceName,
    tool: ToolName,
    consumers: Vec<MachineName>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    with: Map<String, Value>,
    declared_at: Option<String>,
}

fn rows(infra: &Infra) -> Vec<Row> {
    infra
        .machines()
        .map(|(_, machine)| Services::of(machine))
        .flat_map(|services| {
            let provider = services.machine;
            let row = move |service: Service| Row {
                provider: provider.clone(),
                service: service.name,
                tool: service.tool,
                consumers: service.consumers,
                with: service.with,
                declared_at: service.declared_at,
            };
            services.services.into_iter().map(row)
        })
        .collect()
}

fn table(rows: &[Row]) -> String {
    let heads = ["SERVICE", "TOOL", "CONSUMERS", "DECLARED"].map(str::to_owned);
    let lines: Vec<[String; 4]> = std::iter::once(heads)
        .chain(rows.iter().map(cells))
        .collect();
    let width = |column: usize| {
        lines
            .iter()
            .filter_map(|line| line.get(column))
            .map(String::len)
            .max()
            .unwrap_or_default()
            + GAP
    };
    let (first, second, third) = (width(0), width(1), width(2));
    let mut text = String::new();
    for [service, tool, consumers, declared] in &lines {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{service:first$}{tool:second$}{consumers:third$}{declared}"
        );
    }
    text
}

fn cells(row: &Row) -> [String; 4] {
    let consumers: Vec<&str> = row.consumers.iter().map(MachineName::as_str).collect();
    let consumers = if consumers.is_empty() {
        "(nobody)".to_owned()
    } else {
        consumers.join(", ")
    };
    [
        format!("{}/{}", row.provider, row.service),
        row.tool.to_string(),
        consumers,
        row.declared_at.clone().unwrap_or_default(),
    ]
}
