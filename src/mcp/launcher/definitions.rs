//! Asks upstreams for the definitions of their tools, so that a person can accept them.

use std::sync::{Arc, Mutex, PoisonError};

use super::upstream::connect;
use crate::catalogue::UpstreamTool;
use crate::child::ChildUser;
use crate::machine_state::{DefinitionReport, DefinitionRequest, ServerDefinitions};
use crate::name::UpstreamToolName;

/// Maximum number of names of a server's tools in an answer.
const NAMES_MAX: usize = 1000;

/// Starts each server once, in the same way as for a call, and returns its definitions of the requested tools.
pub(crate) async fn definitions(request: DefinitionRequest, user: &ChildUser) -> DefinitionReport {
    let mut report = DefinitionReport::default();
    for (name, (server, tools)) in request.servers {
        let said: Arc<Mutex<Vec<String>>> = Arc::default();
        let sink = Arc::clone(&said);
        let report_fault: super::ReportFault = Arc::new(move |text: &str| {
            let mut said = sink.lock().unwrap_or_else(PoisonError::into_inner);
            said.push(text.to_owned());
        });
        let mut answer = ServerDefinitions::default();
        let listed = match connect(&server, user, &report_fault, format!("`{name}`"), None).await {
            Ok(connection) => {
                let listed = connection.tools().await.map_err(|why| why.to_string());
                connection.stop();
                listed
            }
            Err(why) => Err(why.to_string()),
        };
        match listed {
            Ok(listed) => {
                let wanted = |tool: &UpstreamTool| {
                    let name = tool.name().parse::<UpstreamToolName>().ok()?;
                    tools.contains(&name).then_some(name)
                };
                let names = listed.iter().filter_map(|tool| tool.get("name")?.as_str());
                let names = names.filter_map(|name| name.parse().ok());
                answer.names = names.take(NAMES_MAX).collect();
                for tool in listed.iter().filter_map(|tool| UpstreamTool::of(tool).ok()) {
                    if let Some(name) = wanted(&tool) {
                        answer.tools.insert(name, tool);
                    }
                }
            }
            Err(why) => {
                // The first message is the reason, if there is one.
                let said = said.lock().unwrap_or_else(PoisonError::into_inner);
                answer.failed = Some(said.first().cloned().unwrap_or(why).into());
            }
        }
        report.servers.insert(name, answer);
    }
    report
}
