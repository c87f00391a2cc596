//! Answers questions about any tool of a service: one of anklume's, one that the machine declares itself, or one of an
//! upstream.

use serde_json::{Map, Value};

use super::{BadArguments, FixedFault, OwnTool, UpstreamTool, check, describe};
use crate::name::ToolName;

/// The definition of a service's tool.
#[derive(Debug, Clone, Copy)]
pub enum Definition<'a> {
    /// One of anklume's tools.
    BuiltIn(ToolName),
    /// A tool that the machine declares itself.
    Own(&'a OwnTool),
    /// A tool of an MCP server that the machine runs, as it is pinned.
    Upstream(&'a UpstreamTool),
}

impl Definition<'_> {
    /// Returns the JSON Schema of the tool's arguments.
    #[must_use]
    pub fn input(self) -> Map<String, Value> {
        match self {
            Self::BuiltIn(tool) => describe(tool).input,
            Self::Own(tool) => tool.describe(|_| false).input,
            Self::Upstream(tool) => tool.input_without(|_| false),
        }
    }

    /// Returns the text of an unknown argument's fault.
    #[must_use]
    pub fn unknown_argument(self, name: &str, known: &[&str]) -> String {
        let label = match self {
            Self::BuiltIn(tool) => format!("`{tool}`"),
            Self::Own(_) => "this tool".to_owned(),
            Self::Upstream(tool) => format!("`{}`", tool.name()),
        };
        check::unknown_argument(&label, name, known)
    }

    /// Checks the arguments that were sent: known names, right types, allowed values. Any may be missing.
    ///
    /// # Errors
    ///
    /// Returns every fault, not just the first.
    pub fn check_some(self, arguments: &Map<String, Value>) -> Result<(), BadArguments> {
        match self {
            Self::BuiltIn(tool) => check::check_some(tool, arguments),
            Self::Own(tool) => tool.check_some(arguments),
            // The server checks them itself.
            Self::Upstream(_) => Ok(()),
        }
    }

    /// Checks fixed arguments against the tool's schema and returns every fault. Any argument may be missing.
    #[must_use]
    pub fn check_fixed(self, with: &Map<String, Value>) -> Vec<FixedFault> {
        match self {
            Self::BuiltIn(tool) => check::check_fixed(tool, with),
            Self::Own(tool) => tool.check_fixed(with),
            Self::Upstream(tool) => unknown(tool, with),
        }
    }
}

/// Finds fixed arguments that an upstream's tool does not name.
fn unknown(tool: &UpstreamTool, with: &Map<String, Value>) -> Vec<FixedFault> {
    let known: Vec<&str> = tool.arguments().collect();
    let unknown = with.keys().filter(|name| !known.contains(&name.as_str()));
    let fault = |name: &String| FixedFault {
        argument: name.clone(),
        message: Definition::Upstream(tool).unknown_argument(name, &known),
    };
    unknown.map(fault).collect()
}
