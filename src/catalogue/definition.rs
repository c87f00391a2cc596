//! Answers questions about any tool of a service: one of anklume's, or one that the machine declares itself.

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::{BadArguments, Description, FixedFault, OwnTool, check, schema};
use crate::name::ToolName;

/// The definition of a service's tool.
#[derive(Debug, Clone, Copy)]
pub enum Definition<'a> {
    /// One of anklume's tools.
    BuiltIn(ToolName),
    /// A tool that the machine declares itself.
    Own(&'a OwnTool),
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
        }
    }

    /// Checks fixed arguments against the tool's schema and returns every fault. Any argument may be missing.
    #[must_use]
    pub fn check_fixed(self, with: &Map<String, Value>) -> Vec<FixedFault> {
        match self {
            Self::BuiltIn(tool) => check::check_fixed(tool, with),
            Self::Own(tool) => tool.check_fixed(with),
        }
    }

    /// Describes the tool without the hidden arguments, which the caller does not choose.
    #[must_use]
    pub fn describe(self, hidden: impl Fn(&str) -> bool) -> Description {
        match self {
            Self::BuiltIn(tool) => Description {
                input: schema::input_without(tool, hidden),
                ..schema::describe(tool)
            },
            Self::Own(tool) => Description {
                title: None,
                description: Cow::Owned(tool.description.clone()),
                read_only: false,
                // Unknown, so a client must expect the worst.
                destructive: true,
                idempotent: false,
                input: tool.input_without(hidden),
                base64: &[],
                output: tool.output_schema(),
            },
        }
    }
}
