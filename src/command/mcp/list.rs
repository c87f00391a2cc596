//! `anklume mcp list`: the tools of a machine.

use rmcp::model::Tool;
use serde_json::json;

use super::dry_run::{asked, rehearse};
use super::with_client::converse;
use crate::cli::{Format, McpListArgs};
use crate::command::output::Output;
use crate::error::Exit;
use crate::mcp::client::LIST;
use crate::text::{Foreign, first_sentence};

/// Maximum length of a tool name that is shown, in characters; MCP allows 128.
const NAME_SHOWN: usize = 128;
/// Maximum length of a description that is shown, in characters.
const DESCRIPTION_SHOWN: usize = 100;

/// Runs `anklume mcp list`.
pub(super) fn run(args: &McpListArgs, output: &Output) -> anyhow::Result<Exit> {
    if args.channel.dry_run {
        return rehearse(&args.channel, output, async || {
            Ok((vec![asked(LIST, json!({}))], Vec::new()))
        });
    }
    converse(&args.channel, output, async |server, _| {
        match output.format() {
            Format::Json => output.json(&server.listing().await?)?,
            Format::Text => match server.tools().await?.as_slice() {
                [] => output.say("no tools"),
                tools => output.answer(table(tools).as_bytes())?,
            },
        }
        Ok(Exit::Done)
    })
}

/// One line a tool: its name, and the first sentence of what it says of itself.
fn table(tools: &[Foreign<Tool>]) -> String {
    let rows: Vec<(String, String)> = tools
        .iter()
        .map(|tool| {
            let said = tool.part(|tool| tool.description.as_deref().unwrap_or_default());
            (
                tool.part(|tool| &*tool.name).one_line(NAME_SHOWN),
                said.part(|said| first_sentence(said))
                    .one_line(DESCRIPTION_SHOWN),
            )
        })
        .collect();
    let width = rows
        .iter()
        .map(|(name, _)| name.chars().count())
        .max()
        .unwrap_or_default();
    let mut text = String::new();
    for (name, said) in rows {
        let line = format!("{name:width$}  {said}");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}
