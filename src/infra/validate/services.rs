//! Checks `services`: a machine's services and their consumers. Unknown keys are faults.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::{Map, Value};

use super::conditions::{self, conditions};
use super::{Names, name};
use crate::catalogue::{Definition, OFFERED_ONLY, OwnTool};
use crate::condition::Conditions;
use crate::diagnostic::quote;
use crate::infra::field::{self, Fields, Text};
use crate::infra::findings::{At, Code, Findings};
use crate::infra::raw::{Entry, Node, NodeKind, Reading};
use crate::infra::{ArgumentPlaces, DeclaredService, McpUsers};
use crate::limits::{Limits, MEMORY_ALL, MEMORY_MIN, MESSAGE_BYTES_MAX, MESSAGES_SHOWN_PER_MINUTE};
use crate::name::{
    MACHINE_NAME_MAX, MachineName, OwnToolName, ServerName, ServiceName, ServiceTool, ToolName,
};

const KEYS: [&str; 9] = [
    "name",
    "tool",
    "consumers",
    OFFERED_ONLY,
    "with",
    "where",
    "only",
    "expires",
    "limits",
];

/// Example of a service's name.
const NAME: &str = "such as `file_sign`";
/// The likely cause of a missing key in a service.
const ONE_DASH: &str = "; only a service's first key has a `-`";
/// Maximum edit distance between a mistyped consumer and the machine that was meant.
const TYPO_EDITS: usize = 2;

/// The tools that a machine's services may use.
#[derive(Clone, Copy)]
struct MachineTools<'t> {
    own: &'t BTreeMap<OwnToolName, OwnTool>,
    /// The names in `mcp.tools`, including those of tools with a fault.
    declared: &'t [&'t str],
    /// The names in `mcp.servers`.
    servers: &'t [&'t str],
}

impl<'t> MachineTools<'t> {
    fn names(self) -> impl Iterator<Item = &'t str> {
        let built_in: [&'static str; _] = ToolName::ALL.map(ToolName::as_str);
        let own = self.declared.iter().copied();
        // One with the name of another tool has a finding of its own.
        built_in
            .into_iter()
            .chain(own.filter(|name| name.parse::<ToolName>().is_err()))
    }

    fn listed(self) -> String {
        self.names().collect::<Vec<_>>().join(", ")
    }

    /// Returns the definition of a tool; `None` if it has a fault.
    fn definition(self, tool: &ServiceTool) -> Option<Definition<'t>> {
        match tool {
            ServiceTool::BuiltIn(tool) => Some(Definition::BuiltIn(*tool)),
            ServiceTool::Own(name) => self.own.get(name).map(Definition::Own),
            // Its definition is not in this file.
            ServiceTool::Upstream(..) => None,
        }
    }
}

/// Returns the names in a section of `mcp`.
fn declared_in<'t>(machine: Fields<'t, '_>, section: &str) -> Vec<&'t str> {
    let map = |node: &'t Node<'_>, key: &str| match &node.kind {
        NodeKind::Map(entries) => entries
            .iter()
            .find(|entry| entry.key.text == key)
            .map(|entry| &entry.value),
        _ => None,
    };
    let tools = machine
        .entry("mcp")
        .and_then(|mcp| map(&mcp.value, section));
    match tools.map(|tools| &tools.kind) {
        Some(NodeKind::Map(tools)) => tools.iter().map(|tool| tool.key.text.as_ref()).collect(),
        _ => Vec::new(),
    }
}

/// Reads a machine's `services`.
pub(super) fn read(
    machine: &Entry<'_>,
    fields: Fields<'_, '_>,
    names: &Names<'_>,
    mcp: &McpUsers,
    findings: &mut Findings,
) -> Vec<DeclaredService> {
    let machine = machine.key.text.as_ref();
    let memory = mcp.memory.unwrap_or(MEMORY_ALL);
    let declared = declared_in(fields, "tools");
    let servers = declared_in(fields, "servers");
    let tools = MachineTools {
        own: &mcp.tools,
        declared: &declared,
        servers: &servers,
    };
    let mut seen = HashMap::new();
    let items = fields.strict().list("services", findings);
    items
        .unwrap_or_default()
        .iter()
        .filter_map(|item| service(machine, item, names, tools, memory, &mut seen, findings))
        .collect()
}

fn service<'t>(
    machine: &str,
    item: &'t Node<'_>,
    names: &Names<'_>,
    tools: MachineTools<'_>,
    memory: u64,
    seen: &mut HashMap<&'t str, At>,
    findings: &mut Findings,
) -> Option<DeclaredService> {
    let fields = Fields::of_item(item, "a service", findings)?.strict();
    fields.known("a service", &KEYS, findings);
    let name = service_name(fields, seen, findings);
    let tool = tool(fields, tools, findings);
    let is = |name| tool.as_ref().is_some_and(|tool| tool.is(name));
    let consumers = consumers(machine, fields, names, findings);
    let definition = tool.as_ref().and_then(|tool| tools.definition(tool));
    let mut with = fixed(fields, definition, findings);
    offered_only(fields, tool.as_ref(), &mut with, findings);
    if is(ToolName::SshSign) {
        ssh_sign(fields, &with, findings);
    }
    let conditions = conditions(fields, definition, &with, findings);
    let mut limits = limits(fields, memory, findings);
    if is(ToolName::Notify) {
        limits
            .calls_per_minute
            .get_or_insert(MESSAGES_SHOWN_PER_MINUTE);
    }
    let (name, at) = name?;
    let needs_places = matches!(tool, Some(ServiceTool::Upstream(..)));
    Some(DeclaredService {
        name,
        place: findings.place(at)?,
        tool: tool?,
        consumers,
        with,
        arguments: needs_places.then(|| argument_places(fields, &conditions, findings)),
        conditions,
        limits,
        written: written(fields),
    })
}

/// Returns where a service mentions its arguments.
fn argument_places(
    fields: Fields<'_, '_>,
    conditions: &Conditions,
    findings: &Findings,
) -> Box<ArgumentPlaces> {
    let with = fields.entry("with").map(|with| &with.value.kind);
    let with = match with {
        Some(NodeKind::Map(entries)) => entries.as_slice(),
        _ => &[],
    };
    let with = with
        .iter()
        .filter_map(|entry| Some((entry.key.text.to_string(), findings.place(entry.at)?)));
    Box::new(ArgumentPlaces {
        with: with.collect(),
        ..conditions::places(fields, conditions, findings)
    })
}

/// Reads `offered_only`, which fixes the tool's argument of that name.
fn offered_only(
    fields: Fields<'_, '_>,
    tool: Option<&ServiceTool>,
    with: &mut Map<String, Value>,
    findings: &mut Findings,
) {
    let Some(is_set) = fields.flag(OFFERED_ONLY, findings) else {
        return;
    };
    let at = fields
        .entry(OFFERED_ONLY)
        .map_or(fields.at, |entry| entry.at);
    if tool.is_some_and(|tool| !tool.is(ToolName::ClipboardGet)) {
        let message = "`offered_only` belongs to `tool: clipboard_get`";
        findings
            .error(Code::InvalidArgument, at, message)
            .help("remove it: only a clipboard is offered");
        return;
    }
    let fixed = with.insert(OFFERED_ONLY.to_owned(), is_set.into());
    if fixed.is_some_and(|fixed| fixed != is_set) {
        let message = "`offered_only` differs from that in `with`";
        findings
            .error(Code::InvalidArgument, at, message)
            .help("remove one of them");
    }
}

/// Checks what the fixed arguments of `ssh_sign` must have, and have together.
fn ssh_sign(fields: Fields<'_, '_>, with: &Map<String, Value>, findings: &mut Findings) {
    let at = fields.entry("with").map_or(fields.at, |entry| entry.at);
    if !with.contains_key("key") {
        let help = "add the public key to sign with: `with: {key: \"ssh-ed25519 AAAA… comment\"}`";
        findings.missing(at, "the service", "with.key", help);
    }
    let list = |key: &str| with.get(key).and_then(Value::as_array);
    let signs_logins = list("allow").is_some_and(|allow| allow.contains(&"login".into()));
    if list("allow").is_some_and(Vec::is_empty) {
        let help =
            "name what the service signs, such as `git`, or remove `allow`: its default is `git`";
        let message = "`allow` is empty, so the service would sign nothing";
        findings
            .error(Code::InvalidArgument, at, message)
            .help(help);
    }
    // A list of another type has its own finding.
    let has_hosts = with
        .get("hosts")
        .is_some_and(|hosts| *hosts != Value::Array(Vec::new()));
    let (message, help) = match (signs_logins, has_hosts) {
        (true, false) => (
            "`allow` has `login`, but `hosts` names no host",
            "add the fingerprints of the host keys, as `ssh-keygen -lf` prints them: `hosts: [\"SHA256:…\"]`",
        ),
        (false, true) => (
            "`hosts` is only for logins, which `allow` does not have",
            "remove `hosts`, or add `login` to `allow`",
        ),
        _ => return,
    };
    findings
        .error(Code::InvalidArgument, at, message)
        .help(help);
}

/// Returns the optional keys as written, if there are any.
fn written(fields: Fields<'_, '_>) -> Option<Box<Map<String, Value>>> {
    let optional = fields.entries().iter();
    let required = ["name", "tool", "consumers"];
    let optional = optional.filter(|entry| {
        let key = &*entry.key.text;
        KEYS.contains(&key) && !required.contains(&key)
    });
    let mut optional = optional.peekable();
    optional.peek()?;
    let values = optional.map(|entry| (entry.key.text.to_string(), field::json(&entry.value)));
    Some(Box::new(values.collect()))
}

/// Reads the tool of an MCP server of the machine.
fn upstream_tool(
    server: &str,
    tool: &str,
    at: At,
    tools: MachineTools<'_>,
    findings: &mut Findings,
) -> Option<ServiceTool> {
    if server.is_empty() || tool.is_empty() || tool == "*" {
        let message = format!("{} names no tool", quote(&format!("{server}/{tool}")));
        findings.error(Code::UnknownTool, at, message).help(
            "write the server and one of its tools, such as `github/list_issues`; each tool is named",
        );
        return None;
    }
    if !tools.servers.contains(&server) {
        let near = findings.closest(server, tools.servers.iter().copied());
        let help = match near {
            Some(near) => format!("did you mean `{near}/{tool}`?"),
            None if server.parse::<ServerName>().is_err() => {
                "name a server in `mcp: {servers: …}`: lower-case letters, digits and `_`"
                    .to_owned()
            }
            None => format!(
                "declare it: `mcp: {{servers: {{{server}: {{command: [/path/to/server]}}}}}}`"
            ),
        };
        let message = format!("{} is not a server of this machine", quote(server));
        findings.error(Code::UnknownTool, at, message).help(help);
        return None;
    }
    let tool = name(tool, at, "such as `github/list_issues`", findings)?;
    Some(ServiceTool::Upstream(server.parse().ok()?, tool))
}

/// Reads a service's `limits`: numbers of at least 1, and memory of at most `memory_max` bytes.
fn limits(fields: Fields<'_, '_>, memory_max: u64, findings: &mut Findings) -> Limits {
    let Some(fields) = fields.map("limits", findings) else {
        return Limits::default();
    };
    fields.known("`limits`", &Limits::KEYS, findings);
    let memory = fields.size("memory", MEMORY_MIN..=memory_max, findings);
    let mut number = |key, max: u32| fields.integer(key, 1..=max, findings);
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
        let help = format!("add the name that consumers call, such as `name: file_sign`{ONE_DASH}");
        findings.missing(fields.at, "the service", "name", help);
    }
    let help = || format!("choose a name {NAME}");
    let Text { text, at } = fields.text_like("name", help, findings)?;
    if let Some(first) = findings.earlier(seen, text, at) {
        let message = format!("service {} is already on this machine", quote(text));
        findings
            .error(Code::DuplicateService, at, message)
            .help(format!(
                "rename one of them: the first one is at {first}; a name must be unique on its machine"
            ));
    }
    Some((name(text, at, NAME, findings)?, at))
}

fn tool(
    fields: Fields<'_, '_>,
    tools: MachineTools<'_>,
    findings: &mut Findings,
) -> Option<ServiceTool> {
    if fields.entry("tool").is_none() {
        let help = format!("add `tool:` with one of: {}{ONE_DASH}", tools.listed());
        findings.missing(fields.at, "the service", "tool", help);
    }
    let help = || format!("the tools are: {}", tools.listed());
    let Text { text, at } = fields.text_like("tool", help, findings)?;
    if let Some((server, tool)) = text.split_once('/') {
        return upstream_tool(server, tool, at, tools, findings);
    }
    if !tools.names().any(|name| name == text) {
        let near = findings.closest(text, tools.names());
        let near = near.map_or(String::new(), |near| format!("did you mean `{near}`? "));
        if tools.servers.contains(&text) {
            let message = format!("{} is a server, not a tool", quote(text));
            findings
                .error(Code::UnknownTool, at, message)
                .help(format!("name one of its tools: `{text}/TOOL`"));
            return None;
        }
        let message = format!("{} is not a tool", quote(text));
        findings
            .error(Code::UnknownTool, at, message)
            .help(format!("{near}the tools are: {}", tools.listed()));
        return None;
    }
    text.parse().ok()
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
            let message = format!("consumer {} is listed twice", quote(written.text));
            findings
                .error(Code::DuplicateConsumer, written.at, message)
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
        let message = format!("{quoted} offers this service itself");
        findings
            .error(Code::OwnConsumer, at, message)
            .help("take it off the list: a machine needs no channel to itself");
    } else if let Some(home) = names.machines.get(text) {
        if names.is_disabled(home.domain) {
            let domain = quote(home.domain);
            let message = format!("{quoted} is in domain {domain}, which is disabled");
            findings
                .error(Code::DisabledConsumer, at, message)
                .help("enable the domain, or take the machine off the list");
        }
    } else if names.domains.contains_key(text) {
        let message = format!("{quoted} is a domain, but consumers must be machines");
        findings
            .error(Code::DomainAsConsumer, at, message)
            .help("instead, list the machines of the domain that may call the service, one by one");
    } else {
        let near = typo(text, names, findings);
        let parts = text.split([' ', ';', '/', '.']);
        let parts = parts.filter(|part| !["", "and"].contains(part));
        let is_machine = |part: &&str| names.machines.contains_key(*part);
        let parts: Vec<_> = parts
            .filter(|part| !names.domains.contains_key(part))
            .collect();
        let help = match near {
            _ if !parts.is_empty() && parts.iter().all(is_machine) => {
                format!("list only machines: {}", quote(&parts.join(", ")))
            }
            Some(near) => format!("did you mean {}?", quote(near)),
            None if ["*", "all"].contains(&text) => {
                "list the machines one by one: no name stands for all of them".to_owned()
            }
            None => "declare the machine in a domain, or take it off the list".to_owned(),
        };
        let message = format!("{quoted} is not a machine in {files}");
        findings
            .error(Code::UnknownConsumer, at, message)
            .help(help);
    }
}

/// Returns the machine that a mistyped consumer probably meant. Stricter than other suggestions, so that no machine
/// is granted a service because of a vague similarity.
fn typo<'t>(text: &str, names: &Names<'t>, findings: &mut Findings) -> Option<&'t str> {
    /// Shorter names are too similar to each other, and larger files always contain a similar name.
    const LEN_MIN: usize = 4;
    const MACHINES_MAX: usize = 1000;
    let machines = names.machines.len();
    let comparable = (LEN_MIN..=MACHINE_NAME_MAX).contains(&text.len()) && machines <= MACHINES_MAX;
    if !comparable || !findings.may_compare(machines) {
        return None;
    }
    let names = names.machine_names();
    let near = names.filter(|name| name.parse::<MachineName>().is_ok());
    let near = near.filter_map(|name| {
        let distance = strsim::osa_distance(text, name);
        (distance <= TYPO_EDITS).then_some((distance, name))
    });
    near.min().map(|(_, name)| name)
}

/// Reads the fixed arguments and checks them against the tool's schema.
fn fixed(
    fields: Fields<'_, '_>,
    tool: Option<Definition<'_>>,
    findings: &mut Findings,
) -> Map<String, Value> {
    let Some(with) = fields.map("with", findings) else {
        return Map::new();
    };
    let arguments = field::json_map(with.entries());
    let faults = tool.map(|tool| tool.check_fixed(&arguments));
    for fault in faults.unwrap_or_default() {
        let entry = with.entry(&fault.argument);
        let at = entry.map_or(with.at, |entry| entry.at);
        let quoted = entry.and_then(unquoted).filter(|text| {
            let argument = (fault.argument.clone(), Value::from(text.as_str()));
            tool.is_some_and(|tool| tool.check_fixed(&Map::from_iter([argument])).is_empty())
        });
        let help = match quoted {
            Some(text) => format!(
                "YAML reads a number or Boolean here; quote it to make it text: {}",
                quote(&format!("\"{text}\""))
            ),
            None => "correct the argument, or remove it from `with`".to_owned(),
        };
        findings
            .error(Code::InvalidArgument, at, fault.message)
            .help(help);
    }
    arguments
}

/// Returns a plain scalar that is not text, as written.
fn unquoted(entry: &Entry<'_>) -> Option<String> {
    match &entry.value.kind {
        NodeKind::Scalar(scalar) if scalar.reading() != Reading::Text => {
            Some(scalar.text.clone().into_owned())
        }
        _ => None,
    }
}
