//! Lists the services that a caller may use, for `tools/list`.
//!
//! The list is the policy's; nothing is added or left out here.

use std::sync::Arc;

use rmcp::model::{MetaObject, Tool, ToolAnnotations};
use serde_json::{Map, Value};

use crate::catalogue;
use crate::mcp::{BASE64_KEY, TOOL_KEY};
use crate::name::ToolName;
use crate::policy::{self, Caller, ServiceOffer};
use crate::services::Services;

/// The tools of a caller, in the order of the services; for the operator, of the documentation.
pub(crate) fn list(services: &Services, caller: &Caller) -> Vec<Tool> {
    policy::offers(services, caller)
        .into_iter()
        .map(|offer| describe(offer, caller))
        .collect()
}

/// One of the five tools, as the operator sees it.
pub(crate) fn of_operator(tool: ToolName) -> Tool {
    let offer = ServiceOffer {
        name: tool.as_str().to_owned(),
        tool,
        fixed: Map::new(),
    };
    describe(offer, &Caller::Operator)
}

fn describe(offer: ServiceOffer, caller: &Caller) -> Tool {
    let words = catalogue::describe(offer.tool);
    let hidden = |argument: &str| {
        let others = *caller != Caller::Operator && policy::operator_only(offer.tool, argument);
        others || offer.fixed.contains_key(argument)
    };
    let input = catalogue::input_without(offer.tool, hidden);
    let base64: Vec<&str> = words
        .base64
        .iter()
        .map(String::as_str)
        .filter(|argument| !hidden(argument))
        .collect();
    let mut meta = MetaObject::new();
    meta.0
        .insert(TOOL_KEY.to_owned(), Value::from(offer.tool.as_str()));
    if !base64.is_empty() {
        meta.0.insert(BASE64_KEY.to_owned(), Value::from(base64));
    }
    Tool::new(offer.name, words.description, Arc::new(input))
        .with_title(words.title)
        .with_raw_output_schema(Arc::new(words.output))
        .with_annotations(
            ToolAnnotations::new()
                .read_only(words.read_only)
                .destructive(words.destructive)
                .idempotent(words.idempotent)
                .open_world(false),
        )
        .with_meta(meta)
}
