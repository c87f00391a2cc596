//! Defines the upstreams of a machine: MCP servers that run in it, some of whose tools its services offer.
//!
//! An upstream may change its tools at any time, and with them what a model reads and does. So a service offers only the
//! definition that a person has accepted, which is pinned in `anklume.lock`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::ProcessSettings;
use crate::digest::sha256;
use crate::name::UpstreamToolName;

/// Maximum length of a tool's definition, in bytes of its canonical JSON.
const DEFINITION_MAX: usize = 256 * 1024;
/// Maximum nesting of a definition: less than the JSON reader's, because `anklume.lock` adds levels.
const DEPTH_MAX: usize = 64;
/// Default time without a call after which an upstream is stopped, in seconds.
pub const UPSTREAM_IDLE: u32 = 300;

/// The members of a definition that are pinned: what a model reads, and what a client relies on.
const PINNED: [&str; 6] = [
    "name",
    "title",
    "description",
    "inputSchema",
    "outputSchema",
    "annotations",
];

/// An MCP server that runs in a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamServer {
    /// The absolute path of the program, and its arguments.
    pub command: Vec<String>,
    /// Time without a call after which it is stopped, in seconds.
    pub idle_seconds: u32,
    /// How the program runs.
    pub process: ProcessSettings,
    /// The pinned definitions of the tools that services use, by their names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tools: BTreeMap<UpstreamToolName, UpstreamTool>,
}

/// The definition of an upstream's tool, as far as it is pinned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Map<String, Value>")]
pub struct UpstreamTool {
    definition: Map<String, Value>,
    /// Computed once: each call compares it.
    digest: String,
}

impl From<UpstreamTool> for Map<String, Value> {
    fn from(tool: UpstreamTool) -> Self {
        tool.definition
    }
}

impl TryFrom<Value> for UpstreamTool {
    type Error = DefinitionFault;

    fn try_from(listed: Value) -> Result<Self, DefinitionFault> {
        Self::of(&listed)
    }
}

/// The reason why a definition cannot be pinned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DefinitionFault {
    /// It is not an object with a name and a schema of its arguments.
    #[error("it is not the definition of a tool")]
    Shape,
    /// It is longer than [`DEFINITION_MAX`].
    #[error("its definition has {0} bytes; at most {DEFINITION_MAX} are accepted")]
    TooLong(usize),
    /// It is nested more deeply than [`DEPTH_MAX`].
    #[error("its definition is nested more than {DEPTH_MAX} levels deep")]
    TooDeep,
}

impl UpstreamTool {
    /// Keeps what is pinned of a definition from a server's list.
    ///
    /// # Errors
    ///
    /// Returns the first fault.
    pub fn of(listed: &Value) -> Result<Self, DefinitionFault> {
        let listed = listed.as_object().ok_or(DefinitionFault::Shape)?;
        let pinned = PINNED.into_iter();
        let pinned = pinned.filter_map(|key| Some((key.to_owned(), listed.get(key)?)));
        let pinned = pinned.map(|(key, value)| Some((key, sorted(value, DEPTH_MAX)?)));
        let pinned = pinned.collect::<Option<Map<_, _>>>();
        let definition = pinned.ok_or(DefinitionFault::TooDeep)?;
        let is_object = |key: &str| definition.get(key).is_none_or(Value::is_object);
        let is_text = |key: &str| definition.get(key).is_none_or(Value::is_string);
        let has_shape = definition.get("name").is_some_and(Value::is_string)
            && definition.get("inputSchema").is_some_and(Value::is_object)
            && ["outputSchema", "annotations"].into_iter().all(is_object)
            && ["title", "description"].into_iter().all(is_text);
        if !has_shape {
            return Err(DefinitionFault::Shape);
        }
        // Its keys are sorted already.
        let canonical = json!(definition).to_string();
        if canonical.len() > DEFINITION_MAX {
            return Err(DefinitionFault::TooLong(canonical.len()));
        }
        Ok(Self {
            definition,
            digest: sha256(canonical),
        })
    }

    /// Returns the tool's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.text("name").unwrap_or_default()
    }

    /// Returns a member that is text.
    #[must_use]
    pub fn text(&self, key: &str) -> Option<&str> {
        self.definition.get(key).and_then(Value::as_str)
    }

    /// Returns a member that is an object.
    #[must_use]
    pub fn object(&self, key: &str) -> Option<&Map<String, Value>> {
        self.definition.get(key).and_then(Value::as_object)
    }

    /// Returns the definition.
    #[must_use]
    pub const fn definition(&self) -> &Map<String, Value> {
        &self.definition
    }

    /// Returns the SHA-256 of its canonical JSON (without spaces, and with sorted keys), in hexadecimal.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Returns the names of its arguments.
    pub fn arguments(&self) -> impl Iterator<Item = &str> {
        let schema = self.object("inputSchema");
        let properties = schema.and_then(|schema| schema.get("properties"));
        let properties = properties.and_then(Value::as_object).into_iter();
        properties.flat_map(Map::keys).map(String::as_str)
    }

    /// Returns the schema of its arguments without the hidden ones, which the caller does not choose.
    #[must_use]
    pub fn input_without(&self, hidden: impl Fn(&str) -> bool) -> Map<String, Value> {
        let mut input = self.object("inputSchema").cloned().unwrap_or_default();
        super::schema::hide(&mut input, hidden);
        input
    }
}

/// Returns a value with the keys of all objects sorted; `None` if it has more than `depth` levels.
fn sorted(value: &Value, depth: usize) -> Option<Value> {
    let below = || depth.checked_sub(1);
    match value {
        Value::Object(members) => {
            let below = below()?;
            let members = members.iter();
            let members = members.map(|(key, value)| Some((key.clone(), sorted(value, below)?)));
            let members: BTreeMap<String, Value> = members.collect::<Option<_>>()?;
            Some(members.into_iter().collect())
        }
        Value::Array(items) => {
            let below = below()?;
            items.iter().map(|item| sorted(item, below)).collect()
        }
        other => Some(other.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed() -> Value {
        json!({
            "name": "list", "description": "Lists", "icons": [1], "_meta": {"a": 1},
            "inputSchema": {"type": "object", "required": ["b", "a"], "properties": {"b": {}, "a": {"x": 1}}},
            "annotations": {"readOnlyHint": true},
        })
    }

    #[test]
    fn a_digest_is_of_what_a_model_reads_in_any_order() {
        let tool = UpstreamTool::of(&listed()).unwrap();
        let mut same = listed();
        same["_meta"] = json!({"a": 2});
        same["inputSchema"] = json!({"properties": {"a": {"x": 1}, "b": {}}, "required": ["b", "a"], "type": "object"});
        assert_eq!(UpstreamTool::of(&same).unwrap().digest(), tool.digest());
        for (key, value) in [
            ("name", json!("lists")),
            ("title", json!("List")),
            ("description", json!("Lists.")),
            ("inputSchema", json!({"type": "object"})),
            ("outputSchema", json!({"type": "object"})),
            ("annotations", json!({"readOnlyHint": false})),
        ] {
            let mut other = listed();
            other[key] = value;
            assert_ne!(
                UpstreamTool::of(&other).unwrap().digest(),
                tool.digest(),
                "{key}"
            );
        }
    }

    #[test]
    fn what_is_no_definition_or_too_long_is_refused() {
        for (key, value) in [
            ("name", json!(5)),
            ("inputSchema", json!([])),
            ("description", json!({})),
            ("annotations", json!("x")),
        ] {
            let mut other = listed();
            other[key] = value;
            assert_eq!(
                UpstreamTool::of(&other),
                Err(DefinitionFault::Shape),
                "{key}"
            );
        }
        assert_eq!(UpstreamTool::of(&json!("x")), Err(DefinitionFault::Shape));
        let mut deep = json!(1);
        for _ in 0..DEPTH_MAX {
            deep = json!([deep]);
        }
        let mut other = listed();
        other["inputSchema"]["x"] = deep;
        assert_eq!(UpstreamTool::of(&other), Err(DefinitionFault::TooDeep));
        let mut long = listed();
        long["description"] = "x".repeat(DEFINITION_MAX).into();
        assert!(matches!(
            UpstreamTool::of(&long),
            Err(DefinitionFault::TooLong(_))
        ));
    }

    #[test]
    fn a_hidden_argument_leaves_the_schema() {
        let tool = UpstreamTool::of(&listed()).unwrap();
        assert_eq!(tool.arguments().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(
            Value::from(tool.input_without(|name| name == "a")),
            json!({"properties": {"b": {}}, "required": ["b"], "type": "object"})
        );
        // So do combined schemas that name it, which a caller could not satisfy.
        let mut branches = listed();
        branches["inputSchema"]["anyOf"] = json!([{"required": ["a"]}, {"required": ["b"]}]);
        branches["inputSchema"]["not"] = json!({"properties": {"b": {"const": "a b"}}});
        let tool = UpstreamTool::of(&branches).unwrap();
        let kept = |hidden: &str| {
            let input = tool.input_without(|name| name == hidden);
            ["anyOf", "not"].map(|key| input.contains_key(key))
        };
        assert_eq!(kept("a"), [false, true]);
        assert_eq!(kept("b"), [false, false]);
        assert_eq!(kept("c"), [true, true]);
    }
}
