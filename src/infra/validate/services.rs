//! `services` and `mcp`: what a machine offers, to whom, and as which users. Strict: an unknown key refuses the file.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::Names;
use crate::catalogue;
use crate::diagnostic::quote;
use crate::infra::code::Code;
use crate::infra::field::{self, Fields, Text};
use crate::infra::findings::{At, Findings};
use crate::infra::raw::{Entry, Node, NodeKind, Reading};
use crate::infra::{Confinement, DeclaredService, McpUsers};
use crate::limits::{Limits, MEMORY_ALL, MEMORY_MAX, MEMORY_MIN, MESSAGE_BYTES_MAX};
use crate::name::{MACHINE_NAME_MAX, MachineName, ServiceName, ToolName};

const KEYS: [&str; 5] = ["name", "tool", "consumers", "with", "limits"];

/// Maximum size of a user or group id: the one above it is "nobody at all" to the kernel.
const ID_MAX: i64 = 0xffff_fffe;
/// Maximum length of a name of a user (Linux `LOGIN_NAME_MAX` as useradd keeps it).
const USER_MAX: usize = 32;
/// Edits between a mistyped consumer and the machine that was meant.
const TYPO: usize = 2;

/// The `mcp` section of a machine.
pub(super) fn users(fields: Fields<'_, '_>, findings: &mut Findings) -> McpUsers {
    let Some(entry) = fields.entry("mcp") else {
        return McpUsers::default();
    };
    let Some(fields) = Fields::of(entry, findings) else {
        return McpUsers::default();
    };
    let fields = fields.strict();
    fields.known(
        "`mcp`",
        &[
            "run_as",
            "uid",
            "gid",
            "allow_unlogged",
            "memory",
            "confinement",
        ],
        findings,
    );
    let mut id = |key| {
        let id = fields.integer(key, 0..=ID_MAX, findings);
        id.and_then(|(id, _)| u32::try_from(id).ok())
            .unwrap_or_default()
    };
    McpUsers {
        uid: id("uid"),
        gid: id("gid"),
        run_as: run_as(fields, findings),
        allow_unlogged: fields.flag("allow_unlogged", findings).unwrap_or_default(),
        memory: fields.size("memory", MEMORY_MIN..=MEMORY_MAX, findings),
        confinement: match fields.choice("confinement", &["available", "required"], findings) {
            Some("required") => Confinement::Required,
            _ => Confinement::Available,
        },
    }
}

fn run_as(fields: Fields<'_, '_>, findings: &mut Findings) -> Option<String> {
    let Text { text, at } = fields.text("run_as", findings)?;
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
    let begins = |c: char| c.is_ascii_lowercase() || c == '_';
    if text.len() > USER_MAX || !text.starts_with(begins) || !text.chars().all(inner) {
        findings
            .error(
                Code::InvalidName,
                at,
                format!("{} is no name of a user", quote(text)),
            )
            .help("a lower-case letter or `_`, then lower-case letters, digits, `_` and `-`, at most 32");
        return None;
    }
    Some(text.to_owned())
}

/// The `services` of a machine.
pub(super) fn read(
    machine: &str,
    fields: Fields<'_, '_>,
    names: &Names<'_>,
    memory: Option<u64>,
    findings: &mut Findings,
) -> Vec<DeclaredService> {
    let Some(entry) = fields.entry("services") else {
        return Vec::new();
    };
    let NodeKind::List(items) = &entry.value.kind else {
        field::wrong_entry(entry, "a list", findings);
        return Vec::new();
    };
    let mut seen = HashMap::new();
    let mut services = Vec::new();
    for item in items {
        let all = memory.unwrap_or(MEMORY_ALL);
        services.extend(service(machine, item, names, all, &mut seen, findings));
    }
    services
}

fn service<'t>(
    machine: &str,
    item: &'t Node<'_>,
    names: &Names<'_>,
    memory: u64,
    seen: &mut HashMap<&'t str, At>,
    findings: &mut Findings,
) -> Option<DeclaredService> {
    let fields = Fields::of_item(item, "a service", findings)?.strict();
    fields.known("a service", &KEYS, findings);
    let name = service_name(fields, seen, findings);
    let tool = tool(fields, findings);
    let consumers = consumers(machine, fields, names, findings);
    let with = fixed(fields, tool, findings);
    let limits = limits(fields, memory, findings);
    let (name, at) = name?;
    Some(DeclaredService {
        name,
        place: findings.place(at)?,
        tool: tool?,
        consumers,
        with,
        limits,
    })
}

/// The `limits` of a service: each a whole number of at least 1, and an amount of memory that the server has.
fn limits(fields: Fields<'_, '_>, all: u64, findings: &mut Findings) -> Limits {
    let Some(entry) = fields.entry("limits") else {
        return Limits::default();
    };
    let Some(fields) = Fields::of(entry, findings) else {
        return Limits::default();
    };
    let fields = fields.strict();
    fields.known("`limits`", &Limits::KEYS, findings);
    let memory = fields.size("memory", MEMORY_MIN..=all, findings);
    let mut number = |key, most: u32| {
        let number = fields.integer(key, 1..=i64::from(most), findings);
        number.and_then(|(number, _)| u32::try_from(number).ok())
    };
    Limits {
        memory,
        message_bytes: number("message_bytes", MESSAGE_BYTES_MAX).map(u64::from),
        calls_per_minute: number("calls_per_minute", u32::MAX),
        calls_per_minute_all: number("calls_per_minute_all", u32::MAX),
        in_flight: number("in_flight", u32::MAX),
        in_flight_all: number("in_flight_all", u32::MAX),
        call_seconds: number("call_seconds", u32::MAX),
        connections: number("connections", u32::MAX),
        idle_seconds: number("idle_seconds", u32::MAX),
    }
}

fn service_name<'t>(
    fields: Fields<'t, '_>,
    seen: &mut HashMap<&'t str, At>,
    findings: &mut Findings,
) -> Option<(ServiceName, At)> {
    if fields.entry("name").is_none() {
        findings
            .error(Code::MissingKey, fields.at, "the service has no `name`")
            .help("give it the name that consumers call, such as `name: file_sign`");
    }
    let Text { text, at } = fields.text("name", findings)?;
    if let Some(first) = seen.get(text) {
        let first = findings.short(*first);
        let message = format!("service {} is already on this machine", quote(text));
        findings
            .error(Code::DuplicateService, at, message)
            .help(format!(
                "the first one is at {first}; a name is unique on its machine"
            ));
    } else {
        seen.insert(text, at);
    }
    match text.parse() {
        Ok(name) => Some((name, at)),
        Err(why) => {
            findings
                .error(Code::InvalidName, at, format!("{}: {why}", quote(text)))
                .help("such as `file_sign`");
            None
        }
    }
}

fn tool(fields: Fields<'_, '_>, findings: &mut Findings) -> Option<ToolName> {
    if fields.entry("tool").is_none() {
        findings
            .error(Code::MissingKey, fields.at, "the service has no `tool`")
            .help(format!("one of: {}", tools()));
    }
    let Text { text, at } = fields.text("tool", findings)?;
    let tool = text.parse();
    if tool.is_err() {
        let near = findings.closest(text, ToolName::ALL.iter().map(|tool| tool.as_str()));
        let help = match near {
            Some(near) => format!("did you mean `{near}`? the tools are: {}", tools()),
            None => format!("the tools are: {}", tools()),
        };
        findings
            .error(
                Code::UnknownTool,
                at,
                format!("{} is not a tool", quote(text)),
            )
            .help(help);
    }
    tool.ok()
}

fn tools() -> String {
    ToolName::ALL.map(ToolName::as_str).join(", ")
}

fn consumers(
    machine: &str,
    fields: Fields<'_, '_>,
    names: &Names<'_>,
    findings: &mut Findings,
) -> Vec<MachineName> {
    let mut seen = HashSet::new();
    let mut consumers = Vec::new();
    for item in fields.list("consumers", findings).unwrap_or_default() {
        let Some(written) = field::text_item(item, "a consumer", findings) else {
            continue;
        };
        if !seen.insert(written.text) {
            findings
                .error(
                    Code::DuplicateConsumer,
                    written.at,
                    format!("consumer {} is listed twice", quote(written.text)),
                )
                .help("list it once");
            continue;
        }
        check_consumer(machine, written, names, findings);
        consumers.extend(written.text.parse::<MachineName>());
    }
    consumers
}

fn check_consumer(machine: &str, written: Text<'_>, names: &Names<'_>, findings: &mut Findings) {
    let Text { text, at } = written;
    let quoted = quote(text);
    let files = findings.this_file();
    if text == machine {
        findings
            .error(
                Code::OwnConsumer,
                at,
                format!("{quoted} offers this service itself"),
            )
            .help("take it off the list: a machine needs no channel to itself");
    } else if let Some(home) = names.machines.get(text) {
        if names.is_disabled(home.domain) {
            let domain = quote(home.domain);
            findings
                .error(
                    Code::DisabledConsumer,
                    at,
                    format!("{quoted} is in domain {domain}, which is disabled"),
                )
                .help("enable the domain, or take the machine off the list");
        }
    } else if names.domains.contains_key(text) {
        findings
            .error(
                Code::DomainAsConsumer,
                at,
                format!("{quoted} is a domain, and consumers are machines"),
            )
            .help("list the machines of the domain that may call the service, one by one");
    } else {
        let near = typo(text, names, findings);
        let help = match near {
            Some(near) => format!("did you mean {}?", quote(near)),
            None => "declare the machine in a domain, or take it off the list".to_owned(),
        };
        findings
            .error(
                Code::UnknownConsumer,
                at,
                format!("{quoted} is not a machine of {files}"),
            )
            .help(help);
    }
}

/// The machine that a consumer with a slip in its name was meant to be. Nearer than other suggestions: whom a service is
/// granted to is not guessed from a likeness.
fn typo<'t>(text: &str, names: &Names<'t>, findings: &mut Findings) -> Option<&'t str> {
    /// Names of fewer characters are all alike, and in larger files somebody else's machine is always near.
    const LEAST: usize = 4;
    const MOST: usize = 1000;
    let machines = names.machines.len();
    if text.len() < LEAST || text.len() > MACHINE_NAME_MAX || machines > MOST {
        return None;
    }
    if !findings.may_compare(machines) {
        return None;
    }
    let names = names.machine_names();
    let near = names.filter(|name| name.len() <= MACHINE_NAME_MAX);
    let near = near.filter_map(|name| {
        let distance = strsim::osa_distance(text, name);
        (distance <= TYPO).then_some((distance, name))
    });
    near.min().map(|(_, name)| name)
}

/// Fixed arguments, checked against the tool's schema.
fn fixed(
    fields: Fields<'_, '_>,
    tool: Option<ToolName>,
    findings: &mut Findings,
) -> Map<String, Value> {
    let Some(with) = fields.map("with", findings) else {
        return Map::new();
    };
    let arguments = field::json_map(with.entries());
    let faults = tool.map(|tool| catalogue::check_fixed(tool, &arguments));
    for fault in faults.unwrap_or_default() {
        let entry = with.entry(&fault.argument);
        let at = entry.map_or(with.at, |entry| entry.at);
        let new = findings.error(Code::InvalidArgument, at, fault.message);
        if let Some(written) = entry.and_then(unquoted) {
            new.help(format!(
                "YAML reads a number or truth value here; text is quoted: `\"{written}\"`"
            ));
        }
    }
    arguments
}

/// What a plain scalar that is no text looks like.
fn unquoted(entry: &Entry<'_>) -> Option<String> {
    match &entry.value.kind {
        NodeKind::Scalar(scalar) if scalar.reading() != Reading::Text => {
            Some(quote(&scalar.text).trim_matches('`').to_owned())
        }
        _ => None,
    }
}
