//! Answers questions about any tool of a service: one of anklume's, one that the machine declares itself, or one of an
//! upstream.

use serde_json::{Map, Value};

use super::{BadArguments, FixedFault, OwnTool, UpstreamTool, check};
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
        message: check::unknown_argument(&format!("`{}`", tool.name()), name, &known),
    };
    unknown.map(fault).collect()
}
