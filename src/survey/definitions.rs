//! Asks providers whether their MCP servers still describe their tools as they are pinned.

use std::time::Duration;

use super::running_providers;
use crate::catalogue::UpstreamTool;
use crate::edge::Edge;
use crate::incus::State;
use crate::infra::Infra;
use crate::machine_state::{DEFINITIONS, DefinitionReport, DefinitionRequest, PROGRAM};
use crate::name::{ServerName, UpstreamToolName};
use crate::session::{Session, each};
use crate::text::listed;
use crate::transport::RemoteExec;

/// Timeout for a machine's servers to start and list their tools.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum length of a machine's reason in a note, in characters.
const REASON_SHOWN: usize = 300;

/// Returns a note on each server of these edges' providers that does not list its tools as they are pinned. What cannot be
/// learnt is left out: calls report the reason.
pub(crate) async fn notes(
    session: &Session,
    infra: &Infra,
    edges: &[&Edge],
    state: &State,
) -> Vec<String> {
    let providers = running_providers(infra, edges, state).into_iter();
    let requests = providers
        .filter_map(|(project, machine)| Some((project, machine, DefinitionRequest::of(machine)?)));
    let requests: Vec<_> = requests.collect();
    let asked = each(&requests, async |(project, machine, request)| {
        let exec = RemoteExec {
            project,
            machine: machine.name.as_str(),
            user: None,
            argv: &[PROGRAM, DEFINITIONS],
            // Plain data, which always serializes.
            input: &serde_json::to_vec(request).unwrap_or_default(),
            timeout: TIMEOUT,
        };
        let answer = exec.run().await.ok()?.answer;
        let report = session.reader.definitions(&answer).await.ok()??;
        let pinned = |server: &_, tool: &_| machine.mcp.servers.get(server)?.tools.get(tool);
        Some(compare(machine.name.as_str(), request, &report, pinned))
    });
    asked.await.into_iter().flatten().flatten().collect()
}

fn compare<'p>(
    machine: &str,
    request: &DefinitionRequest,
    report: &DefinitionReport,
    pinned: impl Fn(&ServerName, &UpstreamToolName) -> Option<&'p UpstreamTool>,
) -> Vec<String> {
    let servers = request.servers.iter();
    let notes = servers.filter_map(|(server, (_, tools))| {
        let answer = report.servers.get(server)?;
        if let Some(why) = &answer.failed {
            let why = why.shown(REASON_SHOWN);
            return Some(format!(
                "the server `{server}` of `{machine}` does not list its tools: {why}"
            ));
        }
        let differs = |tool: &&_| answer.tools.get(*tool) != pinned(server, tool);
        let changed: Vec<&str> = tools
            .iter()
            .filter(differs)
            .map(UpstreamToolName::as_str)
            .collect();
        if changed.is_empty() {
            return None;
        }
        Some(format!(
            "the server `{server}` of `{machine}` describes {} differently than it was accepted, so calls are refused; \
             `anklume mcp pin` shows the difference",
            listed(&changed)
        ))
    });
    notes.collect()
}
