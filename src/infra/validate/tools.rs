//! Checks `mcp.tools` and `mcp.servers`: the programs that a machine's services use. Unknown keys are faults.

use std::collections::{BTreeMap, HashSet};

use serde_json::Value;

use super::name;
use crate::catalogue::{
    ArgumentType, CommandElement, ELEMENT_MAX, OwnArgument, OwnOutput, OwnTool, ProcessSettings,
    STDIN_MAX, UPSTREAM_IDLE, UpstreamServer,
};
use crate::diagnostic::quote;
use crate::infra::field::{self, Fields, Text};
use crate::infra::findings::{At, Code, Findings};
use crate::infra::raw::{Entry, Node, NodeKind};
use crate::limits::{
    MEMORY_MAX, PROGRAM_MEMORY, PROGRAM_MEMORY_MIN, TOOL_SECONDS, TOOL_SECONDS_MAX,
};
use crate::name::{ArgumentName, OwnToolName, ServerName, ToolName};

const KEYS: [&str; 8] = [
    "description",
    "command",
    "arguments",
    "output",
    "timeout",
    "run_as",
    "env_file",
    "memory",
];
const ARGUMENT_KEYS: [&str; 8] = [
    "type",
    "description",
    "enum",
    "max_length",
    "min",
    "max",
    "stdin",
    "optional",
];
/// Maximum length of a user name, in bytes, as in useradd.
const USER_MAX: usize = 32;
/// Maximum length of a description, in bytes: models read it with every list.
const DESCRIPTION_MAX: usize = 2000;
/// Largest time without a call after which a server is stopped, in seconds.
const UPSTREAM_IDLE_MAX: u32 = 24 * 60 * 60;
/// Largest integer that every JSON reader represents exactly (2^53 - 1).
const EXACT_MAX: i64 = 9_007_199_254_740_991;

/// Reads a machine's own tools.
pub(super) fn read(mcp: Fields<'_, '_>, findings: &mut Findings) -> BTreeMap<OwnToolName, OwnTool> {
    let Some(tools) = mcp.map("tools", findings) else {
        return BTreeMap::new();
    };
    let read = |entry| Some((tool_name(entry, findings)?, tool(entry, findings)?));
    tools.entries().iter().filter_map(read).collect()
}

fn tool_name(entry: &Entry<'_>, findings: &mut Findings) -> Option<OwnToolName> {
    let text = field::text_key(entry, "the name of a tool", findings)?;
    if text.parse::<ToolName>().is_ok() {
        let message = format!("{} is the name of one of anklume's tools", quote(text));
        findings
            .error(Code::ReservedName, entry.at, message)
            .help("choose another name, such as `deploy`");
        return None;
    }
    name(text, entry.at, "such as `deploy`", findings)
}

fn tool(entry: &Entry<'_>, findings: &mut Findings) -> Option<OwnTool> {
    let fields = Fields::of_named(entry, "a tool", &KEYS, findings)?.strict();
    fields.known("a tool", &KEYS, findings);
    if fields.entry("description").is_none() {
        let help = "add what the tool does, for people and models: `description: Deploys the current release`";
        findings.missing(fields.at, "the tool", "description", help);
    }
    let description = description(fields, findings);
    let arguments = arguments(fields, findings);
    let command = command(fields, findings);
    if let Some(command) = &command {
        check_uses(fields, command, &arguments, findings);
    }
    let command = command.map(|elements| elements.into_iter().map(|(element, _)| element));
    Some(OwnTool {
        description: description?,
        command: command?.collect(),
        arguments: arguments.into_iter().map(|one| one.argument).collect(),
        output: match fields.choice("output", &["text", "json"], findings) {
            Some("json") => OwnOutput::Json,
            _ => OwnOutput::Text,
        },
        timeout: fields
            .integer("timeout", 1..=TOOL_SECONDS_MAX, findings)
            .unwrap_or(TOOL_SECONDS),
        process: process(fields, findings),
    })
}

const SERVER_KEYS: [&str; 5] = ["command", "run_as", "env_file", "memory", "idle_seconds"];

/// Reads the MCP servers that a machine runs.
pub(super) fn read_servers(
    mcp: Fields<'_, '_>,
    findings: &mut Findings,
) -> BTreeMap<ServerName, UpstreamServer> {
    let Some(servers) = mcp.map("servers", findings) else {
        return BTreeMap::new();
    };
    let read = |entry| {
        let text = field::text_key(entry, "the name of a server", findings)?;
        let name = name(text, entry.at, "such as `github`", findings);
        Some((name?, server(entry, findings)?))
    };
    servers.entries().iter().filter_map(read).collect()
}

fn server(entry: &Entry<'_>, findings: &mut Findings) -> Option<UpstreamServer> {
    const HELP: &str = "write the program's absolute path and its arguments: `command: [/opt/github-mcp-server, stdio]`";
    let fields = Fields::of_named(entry, "a server", &SERVER_KEYS, findings)?.strict();
    fields.known("a server", &SERVER_KEYS, findings);
    if fields.entry("command").is_none() {
        findings.missing(fields.at, "the server", "command", HELP);
    }
    let items = fields.list("command", findings)?;
    let mut command = Vec::new();
    for item in items {
        command.push(field::text_item(
            item,
            "an element of the command",
            findings,
        )?);
    }
    let list = fields
        .entry("command")
        .map_or(fields.at, |entry| entry.value.at);
    let fault = match command.first() {
        None => Some((list, "the command is empty".to_owned())),
        Some(program) if !program.text.starts_with('/') => {
            let message = format!("{} is not an absolute path", quote(program.text));
            Some((program.at, message))
        }
        Some(_) => command
            .iter()
            .find(|element| element.text.contains('\0'))
            .map(|element| (element.at, "an element contains a NUL character".to_owned())),
    };
    if let Some((at, message)) = fault {
        findings.error(Code::InvalidCommand, at, message).help(HELP);
        return None;
    }
    Some(UpstreamServer {
        command: command
            .into_iter()
            .map(|element| element.text.to_owned())
            .collect(),
        idle_seconds: fields
            .integer("idle_seconds", 1..=UPSTREAM_IDLE_MAX, findings)
            .unwrap_or(UPSTREAM_IDLE),
        process: process(fields, findings),
        tools: BTreeMap::new(),
    })
}

/// Reads how a program runs.
fn process(fields: Fields<'_, '_>, findings: &mut Findings) -> ProcessSettings {
    ProcessSettings {
        run_as: user(fields, findings),
        env_file: fields
            .absolute_path("env_file", findings)
            .map(|path| path.text.to_owned()),
        memory: fields
            .size("memory", PROGRAM_MEMORY_MIN..=MEMORY_MAX, findings)
            .unwrap_or(PROGRAM_MEMORY),
    }
}

/// Reads `run_as`, the name of a user.
pub(super) fn user(fields: Fields<'_, '_>, findings: &mut Findings) -> Option<String> {
    const USER: &str = "name the user: a lower-case letter or `_`, then lower-case letters, digits, `_` and `-`, \
                        at most 32 characters";
    let Text { text, at } = fields.text_like("run_as", || USER.to_owned(), findings)?;
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
    let begins = |c: char| c.is_ascii_lowercase() || c == '_';
    if text.len() > USER_MAX || !text.starts_with(begins) || !text.chars().all(inner) {
        let message = format!("{} is not a valid user name", quote(text));
        findings.error(Code::InvalidName, at, message).help(USER);
        return None;
    }
    Some(text.to_owned())
}

fn description(fields: Fields<'_, '_>, findings: &mut Findings) -> Option<String> {
    let Text { text, at } = fields.text("description", findings)?;
    let is_refused = |c: char| c.is_control() && c != '\n';
    let fault = if text.trim().is_empty() {
        "the description is empty".to_owned()
    } else if text.len() > DESCRIPTION_MAX {
        format!("the description has {} bytes", text.len())
    } else if text.contains(is_refused) {
        "the description contains a control character".to_owned()
    } else {
        return Some(text.trim_end().to_owned());
    };
    findings.error(Code::InvalidValue, at, fault).help(format!(
        "write 1 to {DESCRIPTION_MAX} bytes of text, without control characters"
    ));
    None
}

/// An argument and its location.
struct DeclaredArgument {
    argument: OwnArgument,
    at: At,
}

fn arguments(fields: Fields<'_, '_>, findings: &mut Findings) -> Vec<DeclaredArgument> {
    let Some(arguments) = fields.map("arguments", findings) else {
        return Vec::new();
    };
    let entries = arguments.entries().iter();
    entries
        .filter_map(|entry| argument(entry, findings))
        .collect()
}

fn argument(entry: &Entry<'_>, findings: &mut Findings) -> Option<DeclaredArgument> {
    let text = field::text_key(entry, "the name of an argument", findings)?;
    let name: ArgumentName = name(text, entry.at, "such as `env`", findings)?;
    let fields = Fields::of_named(entry, "an argument", &ARGUMENT_KEYS, findings)?.strict();
    fields.known("an argument", &ARGUMENT_KEYS, findings);
    if fields.entry("type").is_none() {
        let help = format!("add `type:` with one of: {}", ArgumentType::ALL.join(", "));
        findings.missing(fields.at, "the argument", "type", help);
    }
    let kind = fields.choice("type", &ArgumentType::ALL, findings);
    let stdin = fields.flag("stdin", findings).unwrap_or_default();
    let longest = if stdin { STDIN_MAX } else { ELEMENT_MAX };
    let exact = -EXACT_MAX..=EXACT_MAX;
    let mut argument = OwnArgument {
        name,
        r#type: ArgumentType::parse(kind?)?,
        description: description(fields, findings),
        r#enum: Vec::new(),
        max_length: fields.integer("max_length", 1..=longest, findings),
        min: fields.integer("min", exact.clone(), findings),
        max: fields.integer("max", exact, findings),
        stdin,
        optional: fields.flag("optional", findings).unwrap_or_default(),
    };
    check_type(fields, &argument, findings);
    argument.r#enum = allowed(fields, &argument, findings);
    let at = entry.at;
    Some(DeclaredArgument { argument, at })
}

/// Reports keys that do not fit the argument's type.
fn check_type(fields: Fields<'_, '_>, argument: &OwnArgument, findings: &mut Findings) {
    let kind = argument.r#type;
    let is_number = matches!(kind, ArgumentType::Integer | ArgumentType::Number);
    let is_text = kind == ArgumentType::String;
    for (key, fits, of) in [
        ("max_length", is_text, "a string"),
        ("stdin", is_text, "a string"),
        ("min", is_number, "a number"),
        ("max", is_number, "a number"),
    ] {
        if let Some(at) = fields.place_if(key, !fits) {
            let message = format!("`{key}` belongs to {of}, but this is {}", article(kind));
            findings
                .error(Code::InvalidValue, at, message)
                .help("remove it, or correct `type`");
        }
    }
    if let (Some(min), Some(max), Some(entry)) = (argument.min, argument.max, fields.entry("max"))
        && max < min
    {
        let message = format!("`max` is {max}, but `min` is {min}, so no value is allowed");
        findings
            .error(Code::InvalidValue, entry.at, message)
            .help("exchange them");
    }
}

const fn article(kind: ArgumentType) -> &'static str {
    match kind {
        ArgumentType::String => "a string",
        ArgumentType::Integer => "an integer",
        ArgumentType::Number => "a number",
        ArgumentType::Boolean => "a boolean",
    }
}

/// Reads the values that an argument may have.
fn allowed(fields: Fields<'_, '_>, argument: &OwnArgument, findings: &mut Findings) -> Vec<Value> {
    let mut values = Vec::new();
    for item in fields.list("enum", findings).unwrap_or_default() {
        let value = field::json(item);
        if let Some(fault) = argument.fault(&value) {
            findings
                .error(Code::InvalidValue, item.at, fault)
                .help(item_help(argument.r#type));
        } else if values.contains(&value) {
            let message = format!("{value} is listed twice");
            findings
                .error(Code::DuplicateItem, item.at, message)
                .help("list it once");
        } else {
            values.push(value);
        }
    }
    if let Some(entry) = fields.entry("enum")
        && matches!(&entry.value.kind, NodeKind::List(items) if items.is_empty())
    {
        let message = "`enum` is empty, so no value is allowed";
        findings
            .error(Code::InvalidValue, entry.at, message)
            .help("list the allowed values, or remove it");
    }
    values
}

const fn item_help(kind: ArgumentType) -> &'static str {
    match kind {
        ArgumentType::String => "write text; quote what YAML reads as a number or Boolean",
        ArgumentType::Integer | ArgumentType::Number => "write a number, without quotes",
        ArgumentType::Boolean => "write true or false, without quotes",
    }
}

/// Reads the elements of a command, each with its location.
fn command(fields: Fields<'_, '_>, findings: &mut Findings) -> Option<Vec<(CommandElement, At)>> {
    const HELP: &str = "write the program's absolute path and its arguments: `command: [/usr/local/bin/deploy, \"--env={env}\"]`";
    if fields.entry("command").is_none() {
        findings.missing(fields.at, "the tool", "command", HELP);
    }
    let items = fields.list("command", findings)?;
    let mut elements = Vec::new();
    for item in items {
        elements.push((element(item, findings)?, item.at));
    }
    let list = fields
        .entry("command")
        .map_or(fields.at, |entry| entry.value.at);
    let at = items.first().map_or(list, |item| item.at);
    let fault = match elements.first() {
        None => "the command is empty".to_owned(),
        Some((program, _)) if program.argument().is_some() => {
            "the program's path depends on an argument".to_owned()
        }
        Some((program, _)) if !program.to_string().starts_with('/') => {
            format!("{} is not an absolute path", quote(&program.to_string()))
        }
        Some(_) => return Some(elements),
    };
    findings.error(Code::InvalidCommand, at, fault).help(HELP);
    None
}

fn element(item: &Node<'_>, findings: &mut Findings) -> Option<CommandElement> {
    let Text { text, at } = field::text_item(item, "an element of the command", findings)?;
    match CommandElement::parse(text) {
        Ok(element) => Some(element),
        Err(fault) => {
            findings
                .error(Code::InvalidCommand, at, format!("{} {fault}", quote(text)))
                .help("`{name}` stands for an argument; `{{` and `}}` stand for braces");
            None
        }
    }
}

/// Checks that the command and its arguments belong together.
fn check_uses(
    fields: Fields<'_, '_>,
    command: &[(CommandElement, At)],
    arguments: &[DeclaredArgument],
    findings: &mut Findings,
) {
    let mut used = HashSet::new();
    for (index, (element, at)) in command.iter().enumerate() {
        let Some(name) = element.argument() else {
            continue;
        };
        let Some(declared) = arguments
            .iter()
            .find(|one| one.argument.name.as_str() == name)
        else {
            // An argument with a fault has its own finding.
            let entry = fields.entry("arguments").map(|entry| &entry.value);
            if !entry.is_some_and(|node| has_key(node, name)) {
                let message = format!("{} is not one of the tool's arguments", quote(name));
                let help = match name.parse::<ArgumentName>() {
                    Ok(name) => format!("declare it: `arguments: {{{name}: {{type: string}}}}`"),
                    Err(_) => {
                        "double the braces: `{{` and `}}` stand for the characters".to_owned()
                    }
                };
                findings
                    .error(Code::InvalidCommand, *at, message)
                    .help(help);
            }
            continue;
        };
        let before = index.checked_sub(1).and_then(|index| command.get(index));
        let follows_option = before.is_some_and(|(before, _)| {
            before.is_option() && before.argument().is_none() && !before.ends_options()
        });
        if declared.argument.stdin {
            let message =
                format!("`{name}` is the program's input, but the command contains it too");
            findings
                .error(Code::InvalidCommand, *at, message)
                .help("remove it from the command, or remove `stdin`");
            continue;
        }
        let fault = if !used.insert(name) {
            format!("`{name}` occurs twice in the command")
        } else if declared.argument.optional && element.is_bare() && follows_option {
            format!("`{name}` is optional, but the option before it would remain without it")
        } else {
            continue;
        };
        let help = format!(
            "write the option and its value as one element, such as `\"--{name}={{{name}}}\"`, once"
        );
        findings.error(Code::InvalidCommand, *at, fault).help(help);
    }
    let mut input = None;
    for DeclaredArgument { argument, at } in arguments {
        let name = &argument.name;
        if argument.stdin {
            if let Some(other) = input.replace(name) {
                let message = format!("`{other}` and `{name}` are both the program's input");
                findings
                    .error(Code::InvalidCommand, *at, message)
                    .help("remove `stdin` from one of them, and add it to the command");
            }
        } else if !used.contains(name.as_str()) {
            let message = format!("`{name}` is not used");
            findings
                .error(Code::InvalidCommand, *at, message)
                .help(format!("add it to the command, such as `\"--{name}={{{name}}}\"`, or set `stdin: true`, or remove it"));
        }
    }
}

fn has_key(node: &Node<'_>, name: &str) -> bool {
    match &node.kind {
        NodeKind::Map(entries) => entries.iter().any(|entry| entry.key.text == name),
        _ => false,
    }
}
