//! Defines the tools that a machine declares itself: a program, and the typed arguments that callers may pass to it.
//!
//! No shell is involved: an argument becomes one element of the program's arguments, the end of one, or the program's
//! input, and cannot become an option.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{BadArguments, Description, FixedFault, check};
use crate::name::ArgumentName;
use crate::text::shown;

/// Maximum length of an argument that a program receives in its arguments, in characters: with four bytes each, it stays
/// below the kernel's 128 KiB for one element (`MAX_ARG_STRLEN` of `execve(2)`).
pub const ELEMENT_MAX: u32 = 16 * 1024;
/// Default for that length.
const ELEMENT_DEFAULT: u32 = 1000;
/// Maximum length of an argument that a program receives as its input, in characters.
pub const STDIN_MAX: u32 = 4 * 1024 * 1024;
/// Default for that length.
const STDIN_DEFAULT: u32 = 64 * 1024;
/// Maximum length of what a program may print, in bytes.
pub const STDOUT_MAX: usize = 1024 * 1024;
/// Length of what is kept of a program's error output, in bytes.
pub const STDERR_KEPT: usize = 32 * 1024;
/// Maximum length of a caller's text when a message quotes it back, in characters.
const SHOWN_MAX: usize = 80;

/// A tool that a machine declares itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OwnTool {
    /// Its effect, for people and models.
    pub description: String,
    /// The absolute path of the program, and its arguments.
    pub command: Vec<CommandElement>,
    /// What callers may pass to it; names are unique.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub arguments: Vec<OwnArgument>,
    /// The form of what the program prints.
    pub output: OwnOutput,
    /// Maximum duration of a call, in seconds.
    pub timeout: u32,
    /// How the program runs.
    pub process: ProcessSettings,
}

/// How a machine's own program runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessSettings {
    /// Its user; `None`: that of the machine's server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_as: Option<String>,
    /// A file in the machine with environment variables, such as secrets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env_file: Option<String>,
    /// Memory of all its processes together, in bytes.
    pub memory: u64,
}

/// The form of what a program prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OwnOutput {
    /// Text, in UTF-8.
    Text,
    /// One JSON value.
    Json,
}

/// An argument of a machine's own tool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OwnArgument {
    /// Its name.
    pub name: ArgumentName,
    /// Its type.
    pub r#type: ArgumentType,
    /// Its meaning, for people and models.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The allowed values; empty: any of the type.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub r#enum: Vec<Value>,
    /// Maximum length of a string, in characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_length: Option<u32>,
    /// Smallest allowed integer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<i64>,
    /// Largest allowed integer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<i64>,
    /// True if the program receives it as its input.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stdin: bool,
    /// True if a caller may leave it out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub optional: bool,
}

/// The type of an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ArgumentType {
    /// Text.
    String,
    /// A whole number.
    Integer,
    /// Any number.
    Number,
    /// True or false.
    Boolean,
}

impl ArgumentType {
    /// The words in `infra.yml`.
    pub const ALL: [&str; 4] = ["string", "integer", "number", "boolean"];

    /// Returns its word in `infra.yml`, which is also JSON Schema's.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Boolean => "boolean",
        }
    }

    /// Parses its word.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let all = [Self::String, Self::Integer, Self::Number, Self::Boolean];
        all.into_iter().find(|one| one.as_str() == text)
    }
}

/// One element of a program's arguments: text, in which `{name}` stands for an argument.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CommandElement {
    before: String,
    argument: Option<String>,
    after: String,
}

/// The reason why text is not a [`CommandElement`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ElementFault {
    /// A brace without its counterpart.
    #[error("has a `{{` or `}}` without its counterpart; for the character itself, double it")]
    Unpaired,
    /// Two arguments, so that one could change where the other begins.
    #[error("stands for more than one argument; give each an element of its own")]
    Several,
    /// A NUL byte, which no program can receive.
    #[error("contains a NUL character")]
    Nul,
}

impl CommandElement {
    /// Parses an element; `{{` and `}}` stand for braces.
    ///
    /// # Errors
    ///
    /// Returns the first fault.
    pub fn parse(text: &str) -> Result<Self, ElementFault> {
        let mut element = Self {
            before: String::new(),
            argument: None,
            after: String::new(),
        };
        let mut rest = text.chars().peekable();
        while let Some(c) = rest.next() {
            match c {
                '\0' => return Err(ElementFault::Nul),
                '{' | '}' if rest.peek() == Some(&c) => {
                    rest.next();
                    element.literal().push(c);
                }
                '{' => {
                    let mut name = String::new();
                    loop {
                        match rest.next() {
                            Some('}') => break,
                            Some('{') | None => return Err(ElementFault::Unpaired),
                            Some(c) => name.push(c),
                        }
                    }
                    if element.argument.replace(name).is_some() {
                        return Err(ElementFault::Several);
                    }
                }
                '}' => return Err(ElementFault::Unpaired),
                c => element.literal().push(c),
            }
        }
        Ok(element)
    }

    const fn literal(&mut self) -> &mut String {
        match self.argument {
            None => &mut self.before,
            Some(_) => &mut self.after,
        }
    }

    /// Returns the name of the argument that it stands for.
    #[must_use]
    pub fn argument(&self) -> Option<&str> {
        self.argument.as_deref()
    }

    /// Returns whether it is an argument and nothing else.
    #[must_use]
    pub fn is_bare(&self) -> bool {
        self.argument.is_some() && self.before.is_empty() && self.after.is_empty()
    }

    /// Returns whether it may be an option of the program.
    #[must_use]
    pub fn is_option(&self) -> bool {
        self.before.starts_with('-')
    }

    /// Returns whether it is the element after which nothing is an option.
    #[must_use]
    pub fn ends_options(&self) -> bool {
        self.argument.is_none() && self.before == "--"
    }
}

impl fmt::Display for CommandElement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let doubled = |text: &str| text.replace('{', "{{").replace('}', "}}");
        f.write_str(&doubled(&self.before))?;
        if let Some(argument) = &self.argument {
            write!(f, "{{{argument}}}")?;
        }
        f.write_str(&doubled(&self.after))
    }
}

impl TryFrom<String> for CommandElement {
    type Error = ElementFault;

    fn try_from(text: String) -> Result<Self, ElementFault> {
        Self::parse(&text)
    }
}

impl From<CommandElement> for String {
    fn from(element: CommandElement) -> Self {
        element.to_string()
    }
}

/// What a call runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandLine {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// The program's input.
    pub stdin: Option<String>,
}

impl OwnTool {
    fn argument(&self, name: &str) -> Option<&OwnArgument> {
        self.arguments.iter().find(|one| one.name.as_str() == name)
    }

    /// Checks the arguments that were sent; any may be missing.
    ///
    /// # Errors
    ///
    /// Returns every fault, not just the first.
    pub fn check_some(&self, arguments: &Map<String, Value>) -> Result<(), BadArguments> {
        check::refuse(self.faults(arguments).map(|fault| fault.message))
    }

    /// Checks fixed arguments and returns every fault. Any argument may be missing.
    #[must_use]
    pub fn check_fixed(&self, with: &Map<String, Value>) -> Vec<FixedFault> {
        self.faults(with).collect()
    }

    fn faults(&self, arguments: &Map<String, Value>) -> impl Iterator<Item = FixedFault> {
        arguments.iter().filter_map(|(name, value)| {
            let message = match self.argument(name) {
                Some(argument) => argument
                    .fault(value)
                    .or_else(|| self.option_fault(argument, value))?,
                None => self.unknown(name),
            };
            Some(FixedFault {
                argument: name.clone(),
                message,
            })
        })
    }

    fn unknown(&self, name: &str) -> String {
        let names = self.arguments.iter().map(|one| one.name.as_str());
        check::unknown_argument("this tool", name, &names.collect::<Vec<_>>())
    }

    /// Refuses a value that the program could take for an option.
    fn option_fault(&self, argument: &OwnArgument, value: &Value) -> Option<String> {
        let name = &argument.name;
        let mut elements = self.command.iter();
        let at = elements.position(|element| element.argument() == Some(name.as_str()))?;
        let (before, rest) = self.command.split_at(at);
        let element = rest.first()?;
        let is_safe =
            element.before.ends_with('=') || before.iter().any(CommandElement::ends_options);
        let begins = element_text(value).starts_with('-');
        (begins && !is_safe).then(|| format!("`{name}` may not begin with `-`"))
    }

    /// Returns what a call with these arguments, merged with the fixed ones, runs.
    ///
    /// # Errors
    ///
    /// Returns every fault of the arguments.
    pub fn command_line(
        &self,
        arguments: &Map<String, Value>,
    ) -> Result<CommandLine, BadArguments> {
        let required = self.arguments.iter().filter(|one| !one.optional);
        let missing = required.filter(|one| !arguments.contains_key(one.name.as_str()));
        let missing = missing.map(|one| format!("missing argument `{}`", one.name));
        check::refuse(missing.chain(self.faults(arguments).map(|fault| fault.message)))?;
        let argv = self.command.iter().filter_map(|element| {
            let value = match &element.argument {
                Some(name) => element_text(arguments.get(name)?),
                None => String::new(),
            };
            Some(format!("{}{value}{}", element.before, element.after))
        });
        let stdin = self.arguments.iter().find(|one| one.stdin);
        let stdin = stdin.and_then(|one| arguments.get(one.name.as_str()));
        Ok(CommandLine {
            argv: argv.collect(),
            stdin: stdin.map(element_text),
        })
    }

    /// Describes the tool without the hidden arguments, which the caller does not choose.
    #[must_use]
    pub fn describe(&self, hidden: impl Fn(&str) -> bool) -> Description {
        Description {
            title: None,
            description: Cow::Owned(self.description.clone()),
            read_only: false,
            // Unknown, so a client must expect the worst.
            destructive: true,
            idempotent: false,
            input: self.input_without(hidden),
            base64: &[],
            output: self.output_schema(),
        }
    }

    /// Returns the JSON Schema of the arguments, without the hidden ones, which the caller does not choose.
    fn input_without(&self, hidden: impl Fn(&str) -> bool) -> Map<String, Value> {
        let chosen = || {
            self.arguments
                .iter()
                .filter(|one| !hidden(one.name.as_str()))
        };
        let properties: Map<String, Value> = chosen()
            .map(|one| (one.name.to_string(), one.schema().into()))
            .collect();
        let required: Vec<&str> = chosen()
            .filter(|one| !one.optional)
            .map(|one| one.name.as_str())
            .collect();
        let mut schema = Map::new();
        schema.insert("type".to_owned(), "object".into());
        schema.insert("properties".to_owned(), properties.into());
        if !required.is_empty() {
            schema.insert("required".to_owned(), required.into());
        }
        schema.insert("additionalProperties".to_owned(), false.into());
        schema
    }

    /// Returns the JSON Schema of the structured result.
    fn output_schema(&self) -> Map<String, Value> {
        let text = |description: &str| json!({"type": "string", "description": description});
        let mut properties = Map::new();
        match self.output {
            OwnOutput::Text => properties.insert(
                "stdout".to_owned(),
                text("The text that the program printed"),
            ),
            OwnOutput::Json => properties.insert(
                "output".to_owned(),
                json!({"description": "The JSON value that the program printed"}),
            ),
        };
        properties.insert(
            "stderr".to_owned(),
            text("The beginning of the program's error output"),
        );
        properties.insert(
            "exit_status".to_owned(),
            json!({"type": "integer", "description": "The program's exit status; a call fails unless it is 0"}),
        );
        let required: Vec<&String> = properties.keys().collect();
        let required = json!(required);
        let mut schema = Map::new();
        schema.insert("type".to_owned(), "object".into());
        schema.insert("properties".to_owned(), properties.into());
        schema.insert("required".to_owned(), required);
        schema.insert("additionalProperties".to_owned(), false.into());
        schema
    }
}

/// Returns a checked value as the program receives it.
fn element_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        // `1.0` is an integer in JSON Schema, and the program gets `1`.
        number => {
            check::integer(number).map_or_else(|| number.to_string(), |whole| whole.to_string())
        }
    }
}

impl OwnArgument {
    /// Returns the maximum length of its text, in characters.
    #[must_use]
    pub fn length_max(&self) -> u32 {
        let default = if self.stdin {
            STDIN_DEFAULT
        } else {
            ELEMENT_DEFAULT
        };
        self.max_length.unwrap_or(default)
    }

    /// Returns why a value is refused, if it is.
    #[must_use]
    pub fn fault(&self, value: &Value) -> Option<String> {
        let name = &self.name;
        let (fits, expected) = match self.r#type {
            ArgumentType::String => (value.is_string(), "a string"),
            ArgumentType::Integer => (check::is_whole(value), "a whole number"),
            ArgumentType::Number => (value.is_number(), "a number"),
            ArgumentType::Boolean => (value.is_boolean(), "true or false"),
        };
        if !fits {
            return Some(format!(
                "`{name}` must be {expected}, not {}",
                if value.is_array() {
                    "a list"
                } else {
                    check::kind(value)
                }
            ));
        }
        if !self.r#enum.is_empty() && !self.r#enum.iter().any(|one| is_same(one, value)) {
            let allowed: Vec<String> = self.r#enum.iter().map(Value::to_string).collect();
            return Some(format!("`{name}` must be one of {}", allowed.join(", ")));
        }
        match value {
            Value::String(text) => self.text_fault(text),
            Value::Number(number) => self.range_fault(number.as_f64().unwrap_or(f64::NAN)),
            _ => None,
        }
    }

    fn text_fault(&self, text: &str) -> Option<String> {
        let (name, max) = (&self.name, self.length_max());
        let length = text.chars().count();
        if u32::try_from(length).map_or(true, |length| length > max) {
            return Some(format!(
                "`{name}` has {length} characters; at most {max} are taken"
            ));
        }
        // An argument may be printed to a terminal or a log, or read as several lines.
        let refused = |c: char| {
            if self.stdin {
                c == '\0'
            } else {
                c.is_control()
            }
        };
        let refused = text.chars().find(|c| refused(*c))?;
        Some(format!(
            "`{name}` contains the control character `{}`",
            shown(&refused.to_string(), SHOWN_MAX)
        ))
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "limits beyond 2^53 are refused when they are read"
    )]
    fn range_fault(&self, number: f64) -> Option<String> {
        let name = &self.name;
        let below = self.min.filter(|min| number < *min as f64);
        let above = self.max.filter(|max| number > *max as f64);
        let bound = below.map(|min| format!("at least {min}"));
        let bound = bound.or_else(|| above.map(|max| format!("at most {max}")))?;
        Some(format!("`{name}` must be {bound}, not {number}"))
    }

    fn schema(&self) -> Map<String, Value> {
        let mut schema = Map::new();
        let mut set = |key: &str, value: Value| schema.insert(key.to_owned(), value);
        set("type", self.r#type.as_str().into());
        if let Some(description) = &self.description {
            set("description", description.as_str().into());
        }
        if !self.r#enum.is_empty() {
            set("enum", self.r#enum.clone().into());
        }
        if self.r#type == ArgumentType::String && self.r#enum.is_empty() {
            set("maxLength", self.length_max().into());
        }
        if let Some(min) = self.min {
            set("minimum", min.into());
        }
        if let Some(max) = self.max {
            set("maximum", max.into());
        }
        schema
    }
}

/// Returns whether two values are the same for JSON Schema, to which `1` and `1.0` are.
fn is_same(one: &Value, other: &Value) -> bool {
    match (one.as_f64(), other.as_f64()) {
        (Some(one), Some(other)) => one.total_cmp(&other).is_eq(),
        _ => one == other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tool() -> OwnTool {
        let tool = json!({
            "description": "Deploys",
            "command": ["/bin/deploy", "--env={env}", "-n{count}", "{file}", "--", "{rest}", "{{x}}"],
            "arguments": [
                {"name": "env", "type": "string", "enum": ["staging", "prod"]},
                {"name": "count", "type": "integer", "min": -5, "max": 9, "optional": true},
                {"name": "file", "type": "string", "max_length": 5, "optional": true},
                {"name": "rest", "type": "string", "optional": true},
                {"name": "notes", "type": "string", "stdin": true, "optional": true},
            ],
            "output": "text",
            "timeout": 60,
            "process": {"memory": 1},
        });
        serde_json::from_value(tool).unwrap()
    }

    fn line(arguments: &Value) -> Result<CommandLine, String> {
        let arguments = arguments.as_object().unwrap();
        let line = tool().command_line(arguments);
        line.map_err(|wrong| wrong.to_string())
    }

    #[test]
    fn an_argument_becomes_one_element_or_the_input() {
        let all = json!({
            "env": "prod", "count": 3.0, "file": "a b;$", "rest": "--force", "notes": "1\n2\n",
        });
        assert_eq!(
            line(&all).unwrap(),
            CommandLine {
                argv: [
                    "/bin/deploy",
                    "--env=prod",
                    "-n3",
                    "a b;$",
                    "--",
                    "--force",
                    "{x}"
                ]
                .map(str::to_owned)
                .into(),
                stdin: Some("1\n2\n".to_owned()),
            }
        );
        let least = line(&json!({"env": "prod"})).unwrap();
        assert_eq!(least.argv, ["/bin/deploy", "--env=prod", "--", "{x}"]);
        assert_eq!(least.stdin, None);
    }

    #[test]
    fn a_value_is_never_an_option_and_stays_within_its_bounds() {
        let with = |name: &str, value: Value| {
            let mut arguments = json!({"env": "prod"});
            arguments[name] = value;
            line(&arguments).unwrap_err()
        };
        for (name, value, fault) in [
            ("file", json!("-rf"), "`file` may not begin with `-`"),
            (
                "file",
                json!("a\nb"),
                "`file` contains the control character `\\n`",
            ),
            (
                "file",
                json!("a\0b"),
                "`file` contains the control character `\\0`",
            ),
            (
                "file",
                json!("\u{1b}[2"),
                "`file` contains the control character `\\u{1b}`",
            ),
            (
                "file",
                json!("abcdef"),
                "`file` has 6 characters; at most 5 are taken",
            ),
            (
                "rest",
                json!("x".repeat(128 * 1024)),
                "`rest` has 131072 characters; at most 1000 are taken",
            ),
            ("count", json!(-4), "`count` may not begin with `-`"),
            ("count", json!(10), "`count` must be at most 9, not 10"),
            ("count", json!(-6), "`count` must be at least -5, not -6"),
            (
                "count",
                json!(1.5),
                "`count` must be a whole number, not a number with a fraction",
            ),
            (
                "count",
                json!("3"),
                "`count` must be a whole number, not a string",
            ),
            (
                "env",
                json!("test"),
                "`env` must be one of \"staging\", \"prod\"",
            ),
            ("env", json!(["prod"]), "`env` must be a string, not a list"),
            (
                "notes",
                json!("a\0"),
                "`notes` contains the control character `\\0`",
            ),
            (
                "counts",
                json!("x"),
                "unknown argument `counts`; closest: `count`",
            ),
        ] {
            assert_eq!(with(name, value), fault);
        }
        assert_eq!(line(&json!({})).unwrap_err(), "missing argument `env`");
    }

    #[test]
    fn an_element_reads_back() {
        for text in ["", "a", "--x={y}", "{y}", "{{y}}", "a{{{y}}}b", "}}{{"] {
            let element = CommandElement::parse(text).unwrap();
            assert_eq!(element.to_string(), text);
        }
        for (text, fault) in [
            ("{", ElementFault::Unpaired),
            ("a}", ElementFault::Unpaired),
            ("{a{b}}", ElementFault::Unpaired),
            ("{a}{b}", ElementFault::Several),
            ("\0", ElementFault::Nul),
        ] {
            assert_eq!(CommandElement::parse(text), Err(fault), "{text:?}");
        }
    }

    #[test]
    fn a_schema_shows_only_what_the_caller_chooses() {
        let schema = tool().input_without(|name| name == "env");
        assert_eq!(
            Value::from(schema),
            json!({
                "type": "object",
                "properties": {
                    "count": {"type": "integer", "minimum": -5, "maximum": 9},
                    "file": {"type": "string", "maxLength": 5},
                    "rest": {"type": "string", "maxLength": 1000},
                    "notes": {"type": "string", "maxLength": 65536},
                },
                "additionalProperties": false,
            })
        );
        let required = tool().input_without(|_| false);
        assert_eq!(required["required"], json!(["env"]));
    }
}
