//! What a caller may use, as `tools/list` says it.
//!
//! The list is the policy's; nothing is added or left out here.

use std::sync::Arc;

use rmcp::model::{MetaObject, Tool, ToolAnnotations};
use serde_json::Value;

use crate::catalogue;
use crate::policy::{self, Caller, Offer};
use crate::services::Services;

/// Key of a tool's `_meta`: what runs behind a service's name.
const TOOL_KEY: &str = "anklume/tool";

/// The tools of a caller, in the order of the services; for the operator, of the documentation.
pub(crate) fn list(services: &Services, caller: &Caller) -> Vec<Tool> {
    policy::offers(services, caller)
        .into_iter()
        .map(|offer| describe(offer, caller))
        .collect()
}

fn describe(offer: Offer, caller: &Caller) -> Tool {
    let words = catalogue::describe(offer.tool);
    let hidden = |argument: &str| {
        let others = *caller != Caller::Operator && policy::operator_only(offer.tool, argument);
        others || offer.fixed.contains_key(argument)
    };
    let input = catalogue::input_without(offer.tool, hidden);
    let mut meta = MetaObject::new();
    meta.0
        .insert(TOOL_KEY.to_owned(), Value::from(offer.tool.as_str()));
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
